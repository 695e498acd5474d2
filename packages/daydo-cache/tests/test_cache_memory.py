"""What a process keeps in memory is bounded, and what is asked for often stays."""

from __future__ import annotations

import random
from collections import OrderedDict

from hypothesis import given, settings
from hypothesis import strategies as st

from daydo_cache.memory import ENTRY_BYTES, Held, Memory
from daydo_cache.news import News
from daydo_kernel import Counter


def held(size: int = 10, tags: tuple[str, ...] = ()) -> Held[int]:
    return Held(1, None, 0, tags, size, 0.0, 0.0, 0.0, 0.0, 0.0)


def filled(entries_max: int, bytes_max: int = 10**9) -> Memory[int]:
    return Memory(entries_max, bytes_max, Counter())


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 9), st.integers(0, 300)),
        st.tuples(st.sampled_from(["drop", "hit", "tag"]), st.integers(0, 9), st.none()),
        st.tuples(st.just("clear"), st.none(), st.none()),
    )
)


@settings(max_examples=60, deadline=None)
@given(operations=OPERATIONS, entries_max=st.integers(0, 6), bytes_max=st.integers(0, 6 * ENTRY_BYTES))
def test_bounds_hold_whatever_happens(operations: list, entries_max: int, bytes_max: int) -> None:
    """After every operation both bounds hold, sizes add up, tags lead to what is there, and a put stays if it fits."""
    memory = filled(entries_max, bytes_max)
    for kind, number, size in operations:
        key = f"k{number}"
        if kind == "put":
            entry = held(size, (f"t{number % 3}",))
            memory.put(key, entry)
            fits = entries_max > 0 and size + len(key) + ENTRY_BYTES <= bytes_max
            assert (memory.entries.get(key) is entry) == fits
        elif kind == "drop":
            memory.drop(key)
            assert key not in memory.entries
        elif kind == "hit" and key in memory.entries:
            memory.entries[key].seen = True
        elif kind == "tag":
            memory.drop_tagged(f"t{number % 3}")
            assert not any(f"t{number % 3}" in entry.tags for entry in memory.entries.values())
        elif kind == "clear":
            memory.clear()
        assert len(memory.entries) <= entries_max
        assert memory.bytes == sum(entry.size for entry in memory.entries.values()) <= bytes_max
        assert {key for keys in memory._tagged.values() for key in keys} == set(memory.entries)


def test_what_is_asked_for_stays() -> None:
    """A mark saves an entry from the hand once, and the oldest without one goes."""
    memory = filled(3)
    for key in "abc":
        memory.put(key, held())
    memory.entries["a"].seen = True
    memory.put("d", held())
    assert set(memory.entries) == {"a", "c", "d"}
    memory.put("e", held())
    assert set(memory.entries) == {"a", "d", "e"}


def test_sieve_keeps_more_than_lru() -> None:
    """On the access pattern of most services (a few keys most of the time) it hits at least as often as LRU."""
    dice = random.Random(7)
    keys = [f"k{int(dice.paretovariate(0.9))}" for _ in range(30_000)]
    memory, lru, hits, lru_hits = filled(200), OrderedDict[str, None](), 0, 0
    for key in keys:
        entry = memory.entries.get(key)
        if entry is None:
            memory.put(key, held())
        else:
            entry.seen = True
            hits += 1
        if key in lru:
            lru.move_to_end(key)
            lru_hits += 1
        else:
            lru[key] = None
            if len(lru) > 200:
                lru.popitem(last=False)
    assert hits > lru_hits


@settings(max_examples=60, deadline=None)
@given(names=st.lists(st.integers(0, 9)), bound=st.integers(1, 4))
def test_news_are_never_forgotten_silently(names: list[int], bound: int) -> None:
    """Whoever took a mark before is told of every name noted since; a list that ran over says "perhaps" to all."""
    news = News(bound)
    marks: list[tuple[int, set[str]]] = []
    for number in names:
        marks.append((news.mark, set()))
        news.note(f"k{number}")
        for _, noted in marks:
            noted.add(f"k{number}")
        for mark, noted in marks:
            assert not any(news.quiet(name, mark) for name in noted)
    assert news.quiet("k0", news.mark)
    before = news.mark
    news.note_all()
    assert not news.quiet("never noted", before)
    assert news.quiet("never noted", news.mark)

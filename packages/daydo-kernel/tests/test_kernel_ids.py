"""Ids sort by the order of their creation."""

from __future__ import annotations

import os
import re
import secrets
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_kernel import ids, new_id

FORM = re.compile(r"run_[0-7][0-9A-HJKMNP-TV-Z]{25}")


def number_of(made: str) -> int:
    """The 128 bits behind an id."""
    number = 0
    for character in made.partition("_")[2]:
        number = number << 5 | ids.ALPHABET.index(character)
    return number


def test_form() -> None:
    """An id is its prefix and 26 Crockford characters."""
    assert FORM.fullmatch(new_id("run"))


def test_bits_are_those_of_a_uuid7() -> None:
    """Time, version and variant stand where RFC 9562 puts them."""
    before_ms = time.time_ns() // 1_000_000
    number = number_of(new_id("run"))
    assert before_ms <= number >> 80 <= time.time_ns() // 1_000_000 + 1
    assert number >> 76 & 0xF == 7
    assert number >> 62 & 0b11 == 0b10


@given(st.lists(st.integers(-5_000, 5_000), max_size=50))
def test_always_ascending(steps_ms: list[int]) -> None:
    """Every id is greater than the one before it, however the wall clock jumps."""
    now_ns = time.time_ns()
    with pytest.MonkeyPatch.context() as patch:
        made = [new_id("run")]
        for step_ms in steps_ms:
            now_ns += step_ms * 1_000_000
            patch.setattr(time, "time_ns", lambda frozen=now_ns: frozen)
            made += [new_id("run"), new_id("run")]
    assert made == sorted(set(made))
    assert all(FORM.fullmatch(each) for each in made)


def test_full_millisecond_moves_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the random part has no room left the next id borrows from the next millisecond."""
    first = new_id("run")
    monkeypatch.setattr(ids, "_last_tail", (1 << ids._TAIL_BITS) - 1)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    second = new_id("run")
    assert second > first
    assert FORM.fullmatch(second)


def test_threads_never_share_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that interrupt each other in the middle of a step make different ids, each thread's own ascending."""
    frozen = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: frozen)
    monkeypatch.setattr(secrets, "randbits", lambda _: time.sleep(0) or 0)  # another thread goes on here
    made: list[list[str]] = [[] for _ in range(4)]
    start = threading.Barrier(4)

    def work(mine: list[str]) -> None:
        start.wait()
        mine.extend(new_id("run") for _ in range(500))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({each for mine in made for each in mine}) == 2_000
    assert all(mine == sorted(mine) for mine in made)


def test_forked_processes_never_share_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes forked within one millisecond share the state of the sequence, and no id."""
    frozen = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: frozen)
    new_id("run")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, "\n".join(new_id("run") for _ in range(500)).encode())
        os._exit(0)
    os.close(writer)
    mine = {new_id("run") for _ in range(500)}
    with os.fdopen(reader) as theirs:
        lines = theirs.read().split()
    os.waitpid(child, 0)
    assert len(lines) == 500
    assert not mine & set(lines)

"""What one process keeps of one space: bounded by entries and by bytes.

Eviction is SIEVE (Zhang et al., NSDI 2024): entries stand in the order of their arrival, a hit sets a mark, and a hand
goes from the oldest to the newest, taking marks away and evicting the first entry without one. A hit costs one
attribute, where LRU moves the entry; and what is asked for once leaves sooner than with LRU.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from daydo_kernel import Counter

T = TypeVar("T")

ENTRY_BYTES = 400  # what an entry takes beside its key and value, roughly


class Held(msgspec.Struct, Generic[T], eq=False):
    """A value in memory. Times are seconds of this process's clock.

    A Struct, because one is made for every value that is read from Redis.

    Attributes:
        value: as it is handed out, if all callers may have the same object.
        body: the bytes to make a new one of for each caller, if not.
        loaded_us: when its load began, by Redis' clock.
        checked_s: it was true at this time, or later.
        soft_s: until then it needs no thought.
        early_s: from then on it is loaded anew behind the scenes.
        fresh_s, dead_s: as the record says.
        seen: asked for since the hand last came by.
        older, newer: its neighbours in order of arrival.
    """

    value: T | None
    body: bytes | None
    loaded_us: int
    tags: tuple[str, ...]
    size: int
    checked_s: float
    soft_s: float
    early_s: float
    fresh_s: float
    dead_s: float
    seen: bool = False
    key: str = ""
    older: Any = None
    newer: Any = None


class Memory(Generic[T]):
    """``entries`` is read directly on the hot path; everything else changes it through the methods."""

    def __init__(self, entries_max: int, bytes_max: int, evicted: Counter) -> None:
        self.entries: dict[str, Held[T]] = {}
        self.bytes = 0
        self._evicted = evicted
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._tagged: dict[str, set[str]] = {}
        self._end: Held[T] = _end()
        self._hand = self._end

    def put(self, key: str, held: Held[T]) -> None:
        """Keep ``held``, in the place of what was there, if it fits at all."""
        self.drop(key)
        size = held.size + len(key) + ENTRY_BYTES
        if not self._entries_max or size > self._bytes_max:
            return
        held.size = size
        while len(self.entries) >= self._entries_max or self.bytes + held.size > self._bytes_max:
            self._evict()
        held.key = key
        held.older, held.newer = self._end.older, self._end
        held.older.newer = held.newer.older = held
        self.entries[key] = held
        self.bytes += held.size
        for tag in held.tags:
            self._tagged.setdefault(tag, set()).add(key)

    def drop(self, key: str) -> None:
        held = self.entries.pop(key, None)
        if held is None:
            return
        if self._hand is held:
            self._hand = held.newer
        held.older.newer, held.newer.older = held.newer, held.older
        self.bytes -= held.size
        for tag in held.tags:
            keys = self._tagged[tag]
            keys.discard(key)
            if not keys:
                del self._tagged[tag]

    def drop_tagged(self, tag: str) -> None:
        for key in list(self._tagged.get(tag, ())):
            self.drop(key)

    def clear(self) -> None:
        self.entries.clear()
        self._tagged.clear()
        self.bytes = 0
        # The ring holds its members in circles; without them the collector has nothing to do.
        held = self._end.newer
        while held is not self._end:
            following = held.newer
            held.older = held.newer = None
            held = following
        self._end.older = self._end.newer = self._hand = self._end

    def _evict(self) -> None:
        held = self._hand
        while held is self._end or held.seen:
            held.seen = False
            held = held.newer
        self._hand = held
        self._evicted.inc()
        self.drop(held.key)


def _end() -> Held[T]:
    """The member of the ring that is none: newer than the newest, older than the oldest."""
    end: Held[T] = Held(None, None, 0, (), 0, 0.0, 0.0, 0.0, 0.0, 0.0)
    end.older = end.newer = end
    return end

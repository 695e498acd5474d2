"""Which database a key lives in: pure, the same in every process and every version.

A key hashes to one of a fixed number of slots, and ranges of slots belong to shards. Adding a shard moves whole
slots, never single keys, so that a move can be planned, copied and checked slot by slot. See docs/sharding.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import NamedTuple

SLOTS = 1024


def slot_of(key: str | bytes, slots: int = SLOTS) -> int:
    """The slot of ``key``: its BLAKE2b-64, read big-endian, modulo ``slots``. It must never change."""
    data = key.encode() if isinstance(key, str) else key
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big") % slots


class Move(NamedTuple):
    """A slot that changes its owner."""

    slot: int
    source: str
    target: str


class Shards:
    """``Shards({"a": [(0, 511)], "b": [(512, 1023)]})``: ranges of slots, both ends included, by shard.

    Raises:
        ValueError: a slot has no owner or two, or a range is not within ``0 … slots - 1``.
    """

    def __init__(self, ranges: Mapping[str, Sequence[tuple[int, int]]], slots: int = SLOTS) -> None:
        owners: dict[int, str] = {}
        for shard, first, last in ((shard, *pair) for shard, pairs in ranges.items() for pair in pairs):
            if not 0 <= first <= last < slots:
                raise ValueError(f"{shard}: {first}-{last} is no range of slots; they are 0 to {slots - 1}")
            if taken := [slot for slot in range(first, last + 1) if slot in owners]:
                raise ValueError(f"slot {taken[0]} belongs to {owners[taken[0]]} and to {shard}; give it to one")
            owners |= dict.fromkeys(range(first, last + 1), shard)
        if missing := [slot for slot in range(slots) if slot not in owners]:
            raise ValueError(f"{len(missing)} slots, first {missing[0]}, belong to no shard; they are 0 to {slots - 1}")
        self.owners = [owners[slot] for slot in range(slots)]

    @property
    def ranges(self) -> dict[str, list[tuple[int, int]]]:
        """What the constructor takes, in its shortest form: write it to the configuration."""
        found: dict[str, list[tuple[int, int]]] = {}
        for shard, pairs in groupby(enumerate(self.owners), lambda pair: pair[1]):
            slots = [slot for slot, _ in pairs]
            found.setdefault(shard, []).append((slots[0], slots[-1]))
        return found

    def of(self, key: str | bytes) -> str:
        """The shard that ``key`` lives in."""
        return self.owners[slot_of(key, len(self.owners))]

    def rebalanced(self, *names: str) -> Shards:
        """The slots spread evenly over ``names``, as few as possible moved; who is not named gives away all."""
        if not 1 <= len(set(names)) == len(names) <= len(self.owners):
            raise ValueError(f"name 1 to {len(self.owners)} different shards")
        fewest, over = divmod(len(self.owners), len(names))
        fullest = sorted(names, key=self.owners.count, reverse=True)  # those that hold more may keep one more
        room = Counter({name: fewest + (place < over) for place, name in enumerate(fullest)})
        own = {name: [slot for slot, owner in enumerate(self.owners) if owner == name] for name in names}
        stays = {slot: name for name in names for slot in own[name][: room[name]]}
        takers = (room - Counter(stays.values())).elements()
        given = {slot: stays.get(slot) or next(takers) for slot in range(len(self.owners))}
        return Shards({name: [(slot, slot) for slot in given if given[slot] == name] for name in names}, len(given))

    def moves(self, to: Shards) -> list[Move]:
        """The slots whose rows are copied on the way from this map to ``to``."""
        pairs = zip(self.owners, to.owners, strict=True)  # the number of slots never changes
        return [Move(slot, source, target) for slot, (source, target) in enumerate(pairs) if source != target]

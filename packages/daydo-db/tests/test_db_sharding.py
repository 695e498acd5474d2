"""A key's shard is the same everywhere and for good, and a new shard takes no more than its part."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_db.sharding import SLOTS, Move, Shards, slot_of

NAMES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True)


@st.composite
def maps(draw: st.DrawFn) -> Shards:
    """Any map, also a lopsided one in pieces."""
    slots = draw(st.integers(8, 64))
    owners = draw(st.lists(st.sampled_from("abcdefgh"), min_size=slots, max_size=slots))
    ranges: dict[str, list[tuple[int, int]]] = {}
    for slot, owner in enumerate(owners):
        ranges.setdefault(owner, []).append((slot, slot))
    return Shards(ranges, slots)


@pytest.mark.parametrize(
    ("key", "slot"), [("", 692), ("a", 559), ("u_7", 969), ("汉字", 615), (b"\x00\xff", 228), (b"a", 559)]
)
def test_a_key_never_changes_its_slot(key, slot):
    """Golden values: a release that computes others would look for everybody's rows in the wrong database."""
    assert slot_of(key) == slot


def test_another_process_computes_the_same():
    """Python's own hash() differs from process to process."""
    code = "from daydo_db.sharding import slot_of; print([slot_of(f'u_{n}') for n in range(50)])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str([slot_of(f"u_{n}") for n in range(50)])


def test_keys_spread_evenly():
    """Four shards of a quarter of the slots each have a quarter of ten thousand users, give or take a tenth."""
    shards = Shards({"a": [(0, SLOTS - 1)]}).rebalanced("a", "b", "c", "d")
    users = Counter(shards.of(f"u_{number}") for number in range(10_000))
    assert all(2_250 < count < 2_750 for count in users.values()), users


@given(shards=maps(), names=NAMES)
def test_rebalancing_is_even_and_moves_as_few_slots_as_can_be(shards, names):
    """Every named shard has its part, give or take one slot; nothing moves that could have stayed."""
    after = shards.rebalanced(*names)
    sizes = [after.owners.count(name) for name in names]
    assert sum(sizes) == len(shards.owners)
    assert max(sizes) - min(sizes) <= 1
    fewest, over = divmod(len(shards.owners), len(names))
    held = [shards.owners.count(name) for name in names]
    could_stay = sum(min(count, fewest) for count in held) + min(over, sum(count > fewest for count in held))
    assert len(shards.moves(after)) == len(shards.owners) - could_stay
    assert after.moves(after.rebalanced(*names)) == []


@given(shards=maps(), names=NAMES)
def test_moves_lead_from_one_map_to_the_other(shards, names):
    """Whoever follows the list ends at the new map; the ranges written to a configuration read back as the map."""
    after = shards.rebalanced(*names)
    owners = list(shards.owners)
    for move in shards.moves(after):
        assert owners[move.slot] == move.source
        owners[move.slot] = move.target
    assert owners == after.owners
    assert Shards(after.ranges, len(after.owners)).owners == after.owners


def test_a_new_shard_takes_a_third_from_two():
    """341 of 1024 slots move, all of them to the new one."""
    two = Shards({"a": [(0, 511)], "b": [(512, 1023)]})
    moves = two.moves(two.rebalanced("a", "b", "c"))
    assert len(moves) == 341
    assert {move.target for move in moves} == {"c"}
    assert moves[0] == Move(moves[0].slot, "a", "c")


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({"a": [(0, 1022)]}, "1 slots, first 1023, belong to no shard"),
        ({"a": [(0, 1023)], "b": [(0, 0)]}, "slot 0 belongs to a and to b"),
        ({"a": [(0, 1024)]}, "0-1024 is no range"),
        ({"a": [(5, 4)]}, "5-4 is no range"),
        ({"a": [(-1, 1023)]}, "-1-1023 is no range"),
        ({}, "1024 slots, first 0"),
    ],
)
def test_a_map_with_a_hole_or_two_owners_is_refused(ranges, said):
    """A mistake in the configuration shows at start, not as rows that are not there."""
    with pytest.raises(ValueError, match=said):
        Shards(ranges)


@pytest.mark.parametrize("names", [(), ("a", "a"), tuple(f"s{n}" for n in range(1025))])
def test_slots_are_spread_over_different_shards_and_not_too_many(names):
    """A shard without a slot would be a database without rows."""
    with pytest.raises(ValueError, match="1 to 1024 different shards"):
        Shards({"a": [(0, 1023)]}).rebalanced(*names)

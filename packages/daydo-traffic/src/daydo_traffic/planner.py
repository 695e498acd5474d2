"""How each algorithm decides. Pure: states in, verdicts and states out, the time passed in, whole numbers only.

**GCRA** (bursty, paced). A bucket with a level. A unit adds ``unit`` to it, every µs takes ``drain`` away, and a cost
fits if the level before it is at most ``room``. Bursty: room is what the burst leaves beside the cost. Paced: room is
what drains away within ``wait_max_s``; the level before is then the time to wait.

**Window.** The time of every unit let in. Those as old as the period are gone; the others and the cost are at most
the limit.

**Concurrent.** The leases that have not run out.

**Daily.** A count, and the beginning of the day that it belongs to. Days are instants (``Day``) worked out beforehand
for yesterday, today and tomorrow by the asker's clock; which of them it is, the clock of the decision says.

All checks of a request are judged first; only if each fits are all charged. So a refusal costs nothing, and the order
of the checks does not matter. Time that goes backwards counts as none gone by.

**Shares.** While Redis is away each of N processes decides alone with 1/N of every limit: a unit weighs N times as
much in a bucket, a count may reach limit ÷ N. What fits into an empty state is let in however small the share, so
that no rule refuses for ever.

``daydo_traffic.lua`` says the same in Lua. A test lets both decide the same history, and a third that knows only
fractions and lists.
"""

from __future__ import annotations

import math
from collections import deque
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import msgspec

from .rules import EXACT_MAX, US, Bursty, Concurrent, Daily, Paced, Rule, Window, drip

LEVEL_MAX = 2 * EXACT_MAX
AGAIN_US = US  # when to ask again for a lease: nobody knows when one is given back


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """``used``: level or count, with the cost if it was charged; ``next_us``: until the state eases by itself."""

    fits: bool
    used: int
    next_us: int


class Outlook(msgspec.Struct, frozen=True, gc=False):
    """A verdict in the words of callers."""

    remaining: int
    reset_us: int
    retry_us: int
    wait_us: int


class Plan(Protocol):
    """A rule, ready to decide for one share. States are opaque to everybody else; None is the state of the unseen."""

    kind: str
    cost_max: int

    def word(self, cost: int, lease: str, now_us: int) -> str:
        """``kind:cost:…``, what the Lua twin goes by. One word, for every word costs both ends of the wire."""

    def judge(self, state: Any, cost: int, now_us: int) -> tuple[Verdict, Any]:
        """Whether ``cost`` fits, and ``state`` as it is by now."""

    def charge(self, state: Any, verdict: Verdict, cost: int, lease: str, now_us: int) -> tuple[Verdict, Any]:
        """The verdict and the state with ``cost`` spent."""

    def outlook(self, verdict: Verdict, cost: int, charged: bool) -> Outlook:
        """What ``verdict`` means for the caller."""


class Gcra:
    """State: (level, instant, unit); the unit because rules change, and a level is worth units."""

    kind = "g"

    def __init__(self, unit: int, drain: int, capacity: int, share: int, cost_max: int, wait_us: int | None) -> None:
        self.unit = unit * share
        self.drain = drain
        self.capacity = capacity
        self.cost_max = cost_max
        self.wait_us = wait_us
        self._word_of_one = self._word(1)

    def room(self, cost: int) -> int:
        if self.wait_us is not None:
            return self.wait_us * self.drain
        return max(0, self.capacity - cost * self.unit)

    def word(self, cost: int, lease: str, now_us: int) -> str:
        return self._word_of_one if cost == 1 else self._word(cost)

    def _word(self, cost: int) -> str:
        return f"g:{cost}:{self.room(cost)}:{self.drain}:{self.unit}"

    def judge(self, state: tuple[int, int, int] | None, cost: int, now_us: int) -> tuple[Verdict, Any]:
        level = 0
        if state is not None:
            level, instant, unit = state
            if unit != self.unit:
                level = converted(level, unit, self.unit)
            if now_us > instant:
                level -= (now_us - instant) * self.drain
                if level < 0:
                    level = 0
        return Verdict(level <= self.room(cost), level, 0), state

    def charge(self, state: Any, verdict: Verdict, cost: int, lease: str, now_us: int) -> tuple[Verdict, Any]:
        level = verdict.used + cost * self.unit
        return Verdict(True, level, 0), (level, now_us, self.unit)

    def outlook(self, verdict: Verdict, cost: int, charged: bool) -> Outlook:
        level, unit, drain = verdict.used, self.unit, self.drain
        remaining = (self.capacity - level) // unit if level < self.capacity else 0
        one_more = self.capacity - (remaining + 1) * unit
        if one_more < 0:  # as full as it gets; or a share too small for one unit, which an empty bucket lets in
            one_more = 0 if remaining == 0 else level
        reset_us = -((one_more - level) // drain)  # rounded up
        retry_us = 0 if verdict.fits else -((self.room(cost) - level) // drain)
        wait_us = -((cost * unit - level) // drain) if charged and self.wait_us is not None else 0
        return Outlook(remaining, reset_us, retry_us, wait_us)


class SlidingWindow:
    """State: the instants of units let in, oldest first."""

    kind = "w"

    def __init__(self, limit: int, period_us: int, share: int) -> None:
        self.cost_max = limit
        self.limit = max(1, limit // share)
        self.period_us = period_us

    def word(self, cost: int, lease: str, now_us: int) -> str:
        return f"w:{cost}:{self.limit}:{self.period_us}"

    def judge(self, state: deque[int] | None, cost: int, now_us: int) -> tuple[Verdict, Any]:
        units: deque[int] = deque() if state is None else state
        while units and units[0] <= now_us - self.period_us:
            units.popleft()
        excess = len(units) + cost - self.limit
        fits = excess <= 0 or not units
        waiting_for = 0 if fits else min(excess, len(units)) - 1
        next_us = units[waiting_for] + self.period_us - now_us if units else 0
        return Verdict(fits, len(units), next_us), units

    def charge(self, state: deque[int], verdict: Verdict, cost: int, lease: str, now_us: int) -> tuple[Verdict, Any]:
        state.extend([now_us] * cost)
        return Verdict(True, len(state), state[0] + self.period_us - now_us), state

    def outlook(self, verdict: Verdict, cost: int, charged: bool) -> Outlook:
        remaining = max(0, self.limit - verdict.used)
        return Outlook(remaining, verdict.next_us, 0 if verdict.fits else verdict.next_us, 0)


class Leases:
    """State: instants at which leases run out, by their ids."""

    kind = "c"
    cost_max = 1

    def __init__(self, limit: int, lease_us: int, share: int) -> None:
        self.limit = max(1, limit // share)
        self.lease_us = lease_us

    def word(self, cost: int, lease: str, now_us: int) -> str:
        return f"c:{cost}:{self.limit}:{self.lease_us}:{lease}"

    def judge(self, state: dict[str, int] | None, cost: int, now_us: int) -> tuple[Verdict, Any]:
        leases = {lease: end for lease, end in (state or {}).items() if end > now_us}
        next_us = min(leases.values()) - now_us if leases else 0
        return Verdict(len(leases) < self.limit, len(leases), next_us), leases

    def charge(
        self, state: dict[str, int], verdict: Verdict, cost: int, lease: str, now_us: int
    ) -> tuple[Verdict, Any]:
        state[lease] = now_us + self.lease_us
        return Verdict(True, len(state), min(state.values()) - now_us), state

    def outlook(self, verdict: Verdict, cost: int, charged: bool) -> Outlook:
        # Leases end when work ends; that they run out is the exception, and nothing to tell a client.
        return Outlook(max(0, self.limit - verdict.used), 0, 0 if verdict.fits else AGAIN_US, 0)


class Day:
    """State: (beginning of the day, units of that day)."""

    kind = "d"

    def __init__(self, limit: int, zone: str, share: int) -> None:
        self.cost_max = limit
        self.limit = max(1, limit // share)
        self.zone = zone

    def word(self, cost: int, lease: str, now_us: int) -> str:
        days = ":".join(map(str, midnights(self.zone, now_us)))
        return f"d:{cost}:{self.limit}:{days}"

    def judge(self, state: tuple[int, int] | None, cost: int, now_us: int) -> tuple[Verdict, Any]:
        _, today, tomorrow, _ = midnights(self.zone, now_us)
        used = state[1] if state is not None and state[0] == today else 0
        return Verdict(used + cost <= self.limit or used == 0, used, tomorrow - now_us), (today, used)

    def charge(
        self, state: tuple[int, int], verdict: Verdict, cost: int, lease: str, now_us: int
    ) -> tuple[Verdict, Any]:
        used = verdict.used + cost
        return Verdict(True, used, verdict.next_us), (state[0], used)

    def outlook(self, verdict: Verdict, cost: int, charged: bool) -> Outlook:
        reset_us = verdict.next_us if verdict.used else 0
        return Outlook(max(0, self.limit - verdict.used), reset_us, 0 if verdict.fits else verdict.next_us, 0)


def plan(rule: Rule, share: int = 1) -> Plan:
    """``rule`` for one of ``share`` processes that decide alone; 1: for all of them together."""
    match rule:
        case Bursty():
            unit, drain = drip(rule.limit, rule.period_s)
            return Gcra(unit, drain, unit * rule.burst_units, share, rule.burst_units, None)
        case Paced():
            unit, drain = drip(rule.limit, rule.period_s)
            wait_us = round(rule.wait_max_s * US)
            return Gcra(unit, drain, unit * share + wait_us * drain, share, rule.limit, wait_us)
        case Window():
            return SlidingWindow(rule.limit, round(rule.period_s * US), share)
        case Concurrent():
            return Leases(rule.limit, round(rule.lease_s * US), share)
        case Daily():
            return Day(rule.limit, rule.zone, share)


def converted(level: int, unit: int, new_unit: int) -> int:
    """A level under a rule that has changed: as many units as before, rounded up, or more than any rule has room for.
    In doubles, as Lua does it."""
    return math.ceil(min(level / unit * new_unit, LEVEL_MAX))


def midnights(zone: str, now_us: int) -> tuple[int, int, int, int]:
    """When yesterday, today, tomorrow and the day after begin in ``zone``, µs."""
    return _midnights(zone, datetime.fromtimestamp(now_us // US, _zone(zone)).toordinal())


@lru_cache(maxsize=256)
def _midnights(zone: str, day: int) -> tuple[int, int, int, int]:
    first, second, third, fourth = (_midnight(zone, day + offset) for offset in (-1, 0, 1, 2))
    return first, second, third, fourth


def _midnight(zone: str, day: int) -> int:
    # Where the clocks jump over midnight the day begins after the jump: fold=0 is the moment of it.
    wall = datetime.fromordinal(day).replace(tzinfo=_zone(zone))
    return (wall.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)

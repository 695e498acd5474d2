"""For tests, ours and yours: a model to compare with, a suite for every back end, processes that try to break a limit.

Needs pytest; the suite also pytest-asyncio.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from datetime import datetime
from fractions import Fraction
from zoneinfo import ZoneInfo

import msgspec
import pytest

from daydo_kernel import Clock
from daydo_kernel.testing import ManualClock
from daydo_redis import Redis, RedisConfig

from .decision import Check
from .errors import RateLimited, TooManyAtOnce
from .limits import Limits, LimitsConfig
from .rules import US, Bursty, Concurrent, Daily, Paced, Rule, Window

__all__ = ["Attack", "LimitsConformance", "ReferenceLimits", "attack"]


class ReferenceLimits:
    """The rules as a person would check them with paper: fractions, lists and calendars; slow, and never forgets.

    Leases do not end here: it is for histories without :class:`Concurrent` rules.
    """

    def __init__(self, rules: dict[str, Rule]) -> None:
        self._rules = rules
        self._spent: dict[tuple[str, str], list[tuple[int, int]]] = {}

    def decide(self, checks: Sequence[Check], now_us: int) -> bool:
        """Whether all fit; then all are spent."""
        admitted = all(self.fits(check, now_us) for check in checks)
        if admitted:
            for check in checks:
                self._spent.setdefault((check.rule, check.key), []).append((now_us, check.cost))
        return admitted

    def fits(self, check: Check, now_us: int) -> bool:
        """Whether one check fits by itself."""
        spent = self._spent.get((check.rule, check.key), [])
        rule = self._rules[check.rule]
        match rule:
            case Bursty():
                rate = Fraction(rule.limit, round(rule.period_s * US))
                return _level(spent, rate, now_us) + check.cost <= rule.burst_units
            case Paced():
                rate = Fraction(rule.limit, round(rule.period_s * US))
                return _level(spent, rate, now_us) <= rate * round(rule.wait_max_s * US)
            case Window():
                since = now_us - round(rule.period_s * US)
                return sum(cost for at, cost in spent if at > since) + check.cost <= rule.limit
            case Daily():
                today = _date(rule.zone, now_us)
                return sum(cost for at, cost in spent if _date(rule.zone, at) == today) + check.cost <= rule.limit
            case Concurrent():
                raise ValueError("leases end, and this model has no end")


def _level(spent: Sequence[tuple[int, int]], rate: Fraction, now_us: int) -> Fraction:
    """Units in a bucket that leaks ``rate`` a µs."""
    level, last = Fraction(0), 0
    for at, cost in spent:
        level = max(Fraction(0), level - (at - last) * rate) + cost
        last = at
    return max(Fraction(0), level - (now_us - last) * rate)


def _date(zone: str, now_us: int) -> str:
    return datetime.fromtimestamp(now_us // US, ZoneInfo(zone)).date().isoformat()


class LimitsConformance:
    """What holds on every back end. Subclass it and say which::

    class TestMine(LimitsConformance):
        @pytest.fixture
        def redis_source(self) -> str | None:
            return "redis://127.0.0.1:6379/9"  # an empty one; None: in memory
    """

    @asynccontextmanager
    async def limits(self, source: str | None, clock: Clock, **rules: Rule) -> AsyncIterator[Limits]:
        """Limits on the back end under test, by ``clock``."""
        config = LimitsConfig(rules=rules)
        if source is None:
            async with Limits(None, config, clock=clock) as limits:
                yield limits
        else:
            patient = RedisConfig(command_timeout_s=10)
            async with Redis(source, patient) as redis, Limits(redis, config, clock=clock) as limits:
                yield limits

    async def test_bursty_refills_steadily(self, redis_source: str | None) -> None:
        """A full bucket is spent at once; then a unit comes back every period ÷ limit, to the microsecond."""
        clock = ManualClock()
        async with self.limits(redis_source, clock, r=Bursty(limit=4, period_s=1)) as limits:
            assert [(await limits.decide(Check("r", "k"))).admitted for _ in range(5)] == [True] * 4 + [False]
            clock.advance(0.249_999)
            assert not (await limits.decide(Check("r", "k"))).admitted
            clock.advance(0.000_001)
            assert [(await limits.decide(Check("r", "k"))).admitted for _ in range(2)] == [True, False]

    async def test_fractions_are_not_lost(self, redis_source: str | None) -> None:
        """7 a minute, asked every 9 s for a week, admits what 7 a minute admits; rounding to µs would drift."""
        clock = ManualClock()
        rule = Bursty(limit=7, period_s=60, burst=1)
        async with self.limits(redis_source, clock, r=rule) as limits:
            model = ReferenceLimits({"r": rule})
            for _ in range(200):
                expected = model.decide([Check("r", "k")], clock.now_us())
                assert (await limits.decide(Check("r", "k"))).admitted == expected
                clock.advance(60 / 7)

    async def test_paced_gives_turns(self, redis_source: str | None) -> None:
        """Each is told its turn, one interval after the other; who would wait too long is refused."""
        clock = ManualClock()
        async with self.limits(redis_source, clock, r=Paced(limit=2, period_s=1, wait_max_s=1)) as limits:
            waits = [(await limits.decide(Check("r", "k"))) for _ in range(4)]
            assert [decision.wait_s for decision in waits] == [0, 0.5, 1.0, 0]
            assert [decision.admitted for decision in waits] == [True, True, True, False]
            assert waits[3].retry_after_s == 0.5

    async def test_window_is_exact(self, redis_source: str | None) -> None:
        """No stretch of the period holds more than the limit, wherever it begins."""
        clock = ManualClock()
        async with self.limits(redis_source, clock, r=Window(limit=2, period_s=10)) as limits:
            assert (await limits.decide(Check("r", "k"))).admitted
            clock.advance(9)
            assert (await limits.decide(Check("r", "k"))).admitted
            refused = await limits.decide(Check("r", "k"))
            assert (refused.admitted, refused.retry_after_s) == (False, 1.0)
            clock.advance(1)
            assert (await limits.decide(Check("r", "k"))).admitted
            assert (await limits.decide(Check("r", "k"))).retry_after_s == 9.0

    async def test_a_cost_waits_for_as_many_units(self, redis_source: str | None) -> None:
        """Who asks for two at once is told when two have gone, not when the first has."""
        clock = ManualClock()
        async with self.limits(redis_source, clock, r=Window(limit=3, period_s=10)) as limits:
            for _ in range(3):
                await limits.decide(Check("r", "k"))
                clock.advance(2)
            assert (await limits.decide(Check("r", "k", cost=1))).retry_after_s == 4
            assert (await limits.decide(Check("r", "k", cost=2))).retry_after_s == 6

    async def test_daily_starts_afresh_at_midnight(self, redis_source: str | None) -> None:
        """The cap of a day in Shanghai ends at 16:00 UTC."""
        clock = ManualClock(1_699_977_599_000_000)  # one second before
        async with self.limits(redis_source, clock, r=Daily(limit=2)) as limits:
            assert (await limits.decide(Check("r", "k", cost=2))).admitted
            assert (await limits.decide(Check("r", "k"))).retry_after_s == 1.0
            clock.advance(1)
            assert (await limits.decide(Check("r", "k"))).standings[0].remaining == 1

    async def test_all_or_nothing(self, redis_source: str | None) -> None:
        """A refusal spends nothing of any rule, whatever their order."""
        clock = ManualClock()
        rules: dict[str, Rule] = {"wide": Window(limit=10, period_s=60), "tight": Bursty(limit=1, period_s=60)}
        async with self.limits(redis_source, clock, **rules) as limits:
            assert (await limits.decide(Check("tight", "k"))).admitted
            for checks in ((Check("wide", "k"), Check("tight", "k")), (Check("tight", "k"), Check("wide", "k"))):
                assert not (await limits.decide(*checks)).admitted
            assert (await limits.decide(Check("wide", "k"))).standings[0].remaining == 9

    async def test_keys_do_not_meet(self, redis_source: str | None) -> None:
        """Each key has its own allowance; long ones too, that differ at their end."""
        clock = ManualClock()
        async with self.limits(redis_source, clock, r=Window(limit=1, period_s=60)) as limits:
            keys = ["a", "b", "长" * 500, "长" * 499 + "短", "\ud800"]
            assert [(await limits.decide(Check("r", key))).admitted for key in keys * 2] == [True] * 5 + [False] * 5

    async def test_concurrent_counts_those_under_way(self, redis_source: str | None) -> None:
        """As many as the limit at once; one that ends makes room, whatever ended it."""
        clock = ManualClock()
        async with self.limits(redis_source, clock, r=Concurrent(limit=2)) as limits:
            check = Check("r", "k")
            async with limits.admit(check):
                async with limits.admit(check):
                    with pytest.raises(TooManyAtOnce) as refused:
                        async with limits.admit(check):
                            raise AssertionError("a third was let in")
                    assert refused.value.rule == "r"
                async with limits.admit(check) as decision:
                    assert decision.standings[0].remaining == 0

    async def test_lease_runs_out(self, redis_source: str | None) -> None:
        """What never ends (its process is gone) makes room after ``lease_s``."""
        clock = ManualClock()
        rule = Concurrent(limit=1, lease_s=30)
        async with self.limits(redis_source, clock, r=rule) as limits, limits.admit(Check("r", "k")):
            clock.advance(30)
            async with limits.admit(Check("r", "k")):
                pass

    async def test_a_refusal_says_everything(self, redis_source: str | None) -> None:
        """The error names the rule that lets in last, and when; the decision has all standings."""
        clock = ManualClock()
        rules: dict[str, Rule] = {"short": Window(limit=1, period_s=5), "long": Window(limit=1, period_s=50)}
        async with self.limits(redis_source, clock, **rules) as limits:
            checks = (Check("short", "k"), Check("long", "k"))
            await limits.enforce(*checks)
            with pytest.raises(RateLimited) as refused:
                await limits.enforce(*checks)
            assert (refused.value.rule, refused.value.retry_after_s) == ("long", 50)
            assert [standing.retry_after_s for standing in refused.value.decision.standings] == [5, 50]


class Attack(msgspec.Struct, frozen=True):
    """How an attack went: units let in, asked for, and the seconds on Redis' clock from before to after it."""

    admitted: int
    asked: int
    seconds: float


async def attack(url: str, rule: Rule, *, processes: int = 4, tasks: int = 16, seconds: float = 1.0) -> Attack:
    """Let ``processes`` processes ask the same key of ``rule`` as fast as they can, on the Redis at ``url``."""
    work = (url, msgspec.json.encode(rule), tasks, seconds)
    async with Redis(url, RedisConfig(command_timeout_s=10)) as redis:
        began = await _redis_s(redis)
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            loop = asyncio.get_running_loop()
            counts = await asyncio.gather(*(loop.run_in_executor(pool, _attack, *work) for _ in range(processes)))
        ended = await _redis_s(redis)
    return Attack(sum(admitted for admitted, _ in counts), sum(asked for _, asked in counts), ended - began)


async def _redis_s(redis: Redis) -> float:
    seconds, micros = await redis.call("TIME")
    return int(seconds) + int(micros) / 1e6


def _attack(url: str, encoded: bytes, tasks: int, seconds: float) -> tuple[int, int]:
    rule: Rule = msgspec.json.decode(encoded, type=Rule)
    return asyncio.run(_ask(url, rule, tasks, seconds))


async def _ask(url: str, rule: Rule, tasks: int, seconds: float) -> tuple[int, int]:
    admitted = asked = 0
    config = LimitsConfig(rules={"attacked": rule})
    async with Redis(url, RedisConfig(command_timeout_s=10)) as redis, Limits(redis, config) as limits:
        until = time.monotonic() + seconds

        async def insist() -> None:
            nonlocal admitted, asked
            while time.monotonic() < until:
                decision = await limits.decide(Check("attacked", "k"))
                asked += 1
                admitted += decision.admitted

        await asyncio.gather(*(insist() for _ in range(tasks)))
    return admitted, asked

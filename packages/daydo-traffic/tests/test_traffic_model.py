"""The planner, its Lua twin and a model on paper agree about every history."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daydo_kernel import new_id
from daydo_kernel.testing import ManualClock
from daydo_redis import Redis
from daydo_traffic import Bursty, Check, Concurrent, Daily, Decision, Limits, LimitsConfig, Paced, Rule, Window
from daydo_traffic.memory import Memory
from daydo_traffic.planner import plan
from daydo_traffic.rules import US
from daydo_traffic.testing import ReferenceLimits

T0_US = 1_700_000_000_000_000
DAYS_US = 2 * 86_400 * US

limits_ = st.integers(1, 12)
periods = st.sampled_from([0.001, 0.7, 1, 3, 59.999999, 60, 3600])
rules = st.one_of(
    st.builds(Bursty, limit=limits_, period_s=periods, burst=st.integers(0, 9)),
    st.builds(Paced, limit=limits_, period_s=st.sampled_from([0.7, 1, 60]), wait_max_s=st.sampled_from([0, 0.3, 1.5])),
    st.builds(Window, limit=limits_, period_s=periods),
    st.builds(Daily, limit=limits_, zone=st.sampled_from(["Asia/Shanghai", "America/New_York", "UTC"])),
)
steps_us = st.one_of(
    st.just(0), st.integers(1, 2_000), st.integers(1, 2 * US), st.integers(1, 4_000 * US), st.integers(1, DAYS_US)
)
history = st.lists(
    st.tuples(steps_us, st.lists(st.tuples(st.integers(0, 2), st.sampled_from("kl"), st.integers(1, 3)), max_size=4)),
    max_size=30,
)


def cost_max(rule: Rule) -> int:
    return plan(rule).cost_max


def checks_of(asked: list[tuple[int, str, int]], chosen: dict[str, Rule]) -> list[Check]:
    """At most one check a rule and key, of a cost that can fit."""
    names = list(chosen)
    unique = {(names[number % len(names)], key): cost for number, key, cost in asked}
    return [Check(name, key, min(cost, cost_max(chosen[name]))) for (name, key), cost in unique.items()]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(chosen=st.lists(rules, min_size=1, max_size=3), history=history)
async def test_memory_decides_as_on_paper(chosen: list[Rule], history: Any) -> None:
    """Whatever is asked whenever: admitted is what fractions, lists and calendars admit, and nothing else."""
    named = {f"r{number}": rule for number, rule in enumerate(chosen)}
    clock, paper = ManualClock(T0_US), ReferenceLimits(named)
    async with Limits(None, LimitsConfig(rules=named), clock=clock) as limits:
        for step_us, asked in history:
            clock.advance(step_us / US)
            checks = checks_of(asked, named)
            fits = [paper.fits(check, clock.now_us()) for check in checks]
            decision = await limits.decide(*checks)
            assert [standing.admitted for standing in decision.standings] == fits
            assert decision.admitted == paper.decide(checks, clock.now_us())


@settings(max_examples=60, deadline=None)
@given(rule=rules, steps=st.lists(steps_us, max_size=12), cost=st.integers(1, 3))
def test_retry_after_is_the_first_moment(rule: Rule, steps: list[int], cost: int) -> None:
    """One µs before ``retry_after`` a refused cost is refused still, and then it fits."""
    chosen, now_us = plan(rule), T0_US
    cost = min(cost, chosen.cost_max)
    state: Any = None
    for step_us in [*steps, *[0] * 30]:
        now_us += step_us
        verdict, state = chosen.judge(state, cost, now_us)
        if not verdict.fits:
            break
        _, state = chosen.charge(state, verdict, cost, "", now_us)
    else:
        return
    wait_us = chosen.outlook(verdict, cost, False).retry_us
    assert wait_us > 0
    assert not chosen.judge(state, cost, now_us + wait_us - 1)[0].fits
    assert chosen.judge(state, cost, now_us + wait_us)[0].fits


@settings(max_examples=60, deadline=None)
@given(rule=rules, steps=st.lists(steps_us, min_size=1, max_size=20))
def test_remaining_is_what_fits(rule: Rule, steps: list[int]) -> None:
    """As many single units as ``remaining`` says are let in at once, and not one more; the next comes at ``reset``."""
    chosen, now_us = plan(rule), T0_US
    state: Any = None
    verdict = None
    for step_us in steps:
        now_us += step_us
        verdict, state = chosen.judge(state, 1, now_us)
        if verdict.fits:
            verdict, state = chosen.charge(state, verdict, 1, "", now_us)
    assert verdict is not None
    outlook = chosen.outlook(verdict, 1, False)
    if outlook.reset_us:
        before, _ = chosen.judge(state, 1, now_us + outlook.reset_us - 1)
        then, _ = chosen.judge(_copy(state), 1, now_us + outlook.reset_us)
        assert chosen.outlook(before, 1, False).remaining == outlook.remaining
        assert chosen.outlook(then, 1, False).remaining > outlook.remaining
    admitted = 0
    while (asked := chosen.judge(state, 1, now_us))[0].fits:
        verdict, state = chosen.charge(asked[1], asked[0], 1, "", now_us)
        admitted += 1
    assert admitted == outlook.remaining


def _copy(state: Any) -> Any:
    return state.copy() if hasattr(state, "copy") else state


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    chosen=st.lists(rules | st.builds(Concurrent, limit=st.integers(1, 3)), min_size=1, max_size=3),
    later=st.lists(rules, min_size=1, max_size=3),
    history=history,
)
async def test_redis_decides_as_memory(redis: Redis, chosen: list[Rule], later: list[Rule], history: Any) -> None:
    """The Lua twin gives the same answers to the last figure, leases, changed rules and time going back included."""
    named = {f"r{number}": rule for number, rule in enumerate(chosen)}
    clock = ManualClock(T0_US)
    config = LimitsConfig(rules=named, key_prefix="{" + new_id("test") + "}", refresh_s=60)
    async with Limits(redis, config, clock=clock) as shared, Limits(None, config, clock=clock) as alone:
        for turn, (step_us, asked) in enumerate(history):
            clock.advance(step_us / US if turn % 7 else -step_us / US / 3)
            if turn == 20:
                for name, rule in zip(named, later, strict=False):
                    for limits in (shared, alone) if not isinstance(named[name], Concurrent) else ():
                        await limits.change(name, rule)
            checks = checks_of(asked, named)  # what the program may ask, also where a rule was changed since
            # Both by the way that also asks for leases; these stay until they run out, as after a crash.
            mine, theirs = alone._asked(checks), shared._asked(checks)
            assert await shared._decide(theirs, f"lease_{turn}") == await alone._decide(mine, f"lease_{turn}")


@settings(deadline=None)
@given(rule=rules, share=st.integers(1, 20))
def test_shares_together_stay_below_the_limit(rule: Rule, share: int) -> None:
    """N processes that decide by 1/N let in together what the rule allows, or one unit each where that is less.

    (Each of N paced ones has its own first turn, which is now.)
    """
    local, paper = plan(rule, share), ReferenceLimits({"r": rule})
    admitted = allowed = 0
    for memory in [Memory(100) for _ in range(share)]:
        while memory.decide([(local, "k", 1)], "", T0_US)[0]:
            admitted += 1
    while paper.decide([Check("r", "k")], T0_US):
        allowed += 1
    assert admitted <= (allowed + share - 1 if isinstance(rule, Paced) else max(allowed, share))


def test_exactness_has_bounds() -> None:
    """A rule that doubles could not count exactly is refused when it is written."""
    with pytest.raises(ValueError, match="cannot be counted exactly"):
        Bursty(limit=999_999_937, period_s=31_000_000.5)
    Bursty(limit=1_000_000, period_s=86_400)


def test_rules_are_data() -> None:
    """They travel as JSON and come back equal; what is wrong in them is refused on the way."""
    import msgspec

    for rule in (Bursty(limit=5, period_s=1), Paced(limit=1, period_s=2), Window(limit=1, period_s=1), Daily(limit=1)):
        assert msgspec.json.decode(msgspec.json.encode(rule), type=Rule) == rule
    for wrong in (b'{"kind":"window","limit":0,"period_s":1}', b'{"kind":"daily","limit":1,"zone":"Mars/Olympus"}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(wrong, type=Rule)


async def test_daylight_saving_days(clock: ManualClock) -> None:
    """The day of the change has 23 or 25 hours, and the cap lasts as long."""
    spring = 1_710_046_800_000_000  # 2024-03-10 00:00 in New York
    rule = Daily(limit=1, zone="America/New_York")
    clock.advance((spring - clock.now_us()) / US)
    async with Limits(None, LimitsConfig(rules={"r": rule}), clock=clock) as limits:
        decision: Decision = await limits.decide(Check("r", "k"))
        assert decision.standings[0].reset_s == 23 * 3600

"""The breaker: a model of it, its windows, probes, slow calls, and what counts."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from daydo_kernel import NotFound
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_traffic import Breaker, BreakerConfig, CircuitOpen, State

CONFIG = BreakerConfig(window_calls=10, calls_min=4, failed_share=0.5, open_s=5, open_max_s=20, probes=2)


async def well() -> str:
    return "well"


async def broken() -> None:
    raise ConnectionError("refused")


async def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(ConnectionError):
            await breaker.call(broken)


async def test_opens_probes_and_closes(clock: ManualClock) -> None:
    """Enough failures open it, after open_s so many probes go out, and if all are well it closes."""
    events = RecordedEvents()
    breaker = Breaker("vendor", CONFIG, clock=clock, events=events)
    await fail(breaker, 4)
    assert breaker.state is State.OPEN
    with pytest.raises(CircuitOpen) as refused:
        await breaker.call(well)
    assert (refused.value.breaker, refused.value.retry_after_s) == ("vendor", 5)
    clock.advance(5)
    assert breaker.state is State.HALF_OPEN
    assert await breaker.call(well) == "well"
    assert breaker.state is State.HALF_OPEN
    await breaker.call(well)
    assert breaker.state is State.CLOSED
    await fail(breaker, 3)
    assert breaker.state is State.CLOSED, "it has forgotten what was before"
    assert events.names == ["traffic.breaker_opened", "traffic.breaker_closed"]


async def test_failed_probing_waits_twice_as_long(clock: ManualClock) -> None:
    """5 s, 10 s, 20 s, 20 s; once closed, 5 s again."""
    breaker = Breaker("vendor", CONFIG, clock=clock)
    await fail(breaker, 4)
    for open_s in (5, 10, 20, 20):
        clock.advance(open_s - 0.001)
        assert breaker.state is State.OPEN
        clock.advance(0.001)
        await fail(breaker)
    clock.advance(20)
    for _ in range(2):
        await breaker.call(well)
    await fail(breaker, 4)
    clock.advance(5)
    assert breaker.state is State.HALF_OPEN


async def test_few_probes_at_once(clock: ManualClock) -> None:
    """Half-open, only so many calls go out; a cancelled one makes room for another."""
    breaker = Breaker("vendor", CONFIG, clock=clock)
    await fail(breaker, 4)
    clock.advance(5)
    gate = asyncio.Event()
    probes = [asyncio.create_task(breaker.call(gate.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(CircuitOpen):
        await breaker.call(well)
    probes[0].cancel()
    await asyncio.gather(probes[0], return_exceptions=True)
    probes[0] = asyncio.create_task(breaker.call(gate.wait))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*probes)
    assert breaker.state is State.CLOSED


async def test_judge_that_raises_keeps_no_room(clock: ManualClock) -> None:
    """An ``is_failure`` that raises itself about a probe: the call counts as nothing, and another probe may go out."""

    def judge(error: Exception) -> bool:
        return {"busy": True}[str(error)]

    async def fail_with(error: str) -> None:
        raise ConnectionError(error)

    breaker = Breaker("vendor", CONFIG, clock=clock, is_failure=judge)
    for _ in range(4):
        with pytest.raises(ConnectionError):
            await breaker.call(fail_with, "busy")
    clock.advance(5)
    for _ in range(5):
        with pytest.raises(KeyError):
            await breaker.call(fail_with, "unheard of")
    assert breaker.state is State.HALF_OPEN
    for _ in range(2):
        await breaker.call(well)
    assert breaker.state is State.CLOSED


async def test_old_calls_change_nothing(clock: ManualClock) -> None:
    """A call that began before the breaker opened neither closes it nor opens it again."""
    breaker = Breaker("vendor", CONFIG, clock=clock)
    gate = asyncio.Event()
    late_well = asyncio.create_task(breaker.call(gate.wait))

    async def late_failure() -> None:
        await gate.wait()
        raise ConnectionError

    late_failures = [asyncio.create_task(breaker.call(late_failure)) for _ in range(9)]
    await asyncio.sleep(0)
    await fail(breaker, 4)
    clock.advance(5)
    probe_gate = asyncio.Event()
    probe = asyncio.create_task(breaker.call(probe_gate.wait))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(late_well, *late_failures, return_exceptions=True)
    assert breaker.state is State.HALF_OPEN
    probe_gate.set()
    await probe


async def test_slow_calls_open_it(clock: ManualClock) -> None:
    """Calls that succeed too slowly are as bad as those that fail."""
    config = BreakerConfig(window_calls=10, calls_min=4, slow_s=1, slow_share=0.5)
    breaker = Breaker("vendor", config, clock=clock)

    async def takes(seconds: float) -> None:
        clock.advance(seconds)

    for seconds in (0.999, 1, 0, 1):
        assert breaker.state is State.CLOSED
        await breaker.call(takes, seconds)
    assert breaker.state is State.OPEN
    assert breaker.health().status == "degraded"


async def test_time_window_forgets(clock: ManualClock) -> None:
    """Failures older than window_s do not count."""
    breaker = Breaker("vendor", BreakerConfig(window="time", window_s=10, calls_min=4), clock=clock)
    await fail(breaker, 3)
    clock.advance(11)
    await fail(breaker, 3)
    assert breaker.state is State.CLOSED
    await fail(breaker)
    assert breaker.state is State.OPEN


async def test_our_own_refusals_do_not_count(clock: ManualClock) -> None:
    """A 404 says nothing against the dependency; neither does a caller that gave up."""
    breaker = Breaker("vendor", CONFIG, clock=clock)

    async def not_there() -> None:
        raise NotFound()

    for _ in range(20):
        with pytest.raises(NotFound):
            await breaker.call(not_there)
        task = asyncio.create_task(breaker.call(asyncio.Event().wait))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert breaker.state is State.CLOSED


async def test_decorates(clock: ManualClock) -> None:
    """As a decorator it keeps the function's name and arguments."""
    breaker = Breaker("vendor", clock=clock)

    @breaker
    async def add(one: int, *, other: int) -> int:
        return one + other

    assert await add(1, other=2) == 3
    assert add.__name__ == "add"


def test_config_that_never_opens() -> None:
    """A window smaller than calls_min is a mistake, and said to be one."""
    with pytest.raises(ValueError, match="never open"):
        BreakerConfig(window_calls=5, calls_min=6)


async def test_good_calls_weigh_after_many_of_them(clock: ManualClock) -> None:
    """A window full of good calls is not the end of counting: failures weigh against those good ones alone that are
    in it, and leave it behind later ones.
    """
    breaker = Breaker("vendor", CONFIG, clock=clock)
    for _ in range(3):
        for _ in range(12):
            await breaker.call(well)
        await fail(breaker, 4)
        assert breaker.state is State.CLOSED, "four of ten"
    await fail(breaker)
    assert breaker.state is State.OPEN


async def test_good_calls_are_timed_where_time_counts(clock: ManualClock) -> None:
    """In a window of seconds good calls weigh for as long as it is, and no longer."""
    breaker = Breaker("vendor", BreakerConfig(window="time", window_s=10, calls_min=4), clock=clock)
    for _ in range(6):
        await breaker.call(well)
    clock.advance(5)
    await fail(breaker, 5)
    assert breaker.state is State.CLOSED, "five of eleven"
    clock.advance(5)
    await fail(breaker)
    assert breaker.state is State.OPEN, "six of six"


class Machine(RuleBasedStateMachine):
    """The breaker beside a deque and three variables."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.breaker = Breaker("b", CONFIG, clock=self.clock)
        self.marks: deque[bool] = deque(maxlen=10)
        self.state, self.until_s, self.open_s, self.good_probes = State.CLOSED, 0.0, 5.0, 0

    def now_s(self) -> float:
        return self.clock.now_us() / 1e6

    @rule(good=st.booleans())
    def call(self, good: bool) -> None:
        if self.state is State.OPEN and self.now_s() >= self.until_s:
            self.state, self.good_probes = State.HALF_OPEN, 0
        try:
            asyncio.run(self.breaker.call(well if good else broken))
        except CircuitOpen:
            assert self.state is State.OPEN
            return
        except ConnectionError:
            assert not good
        assert self.state is not State.OPEN
        if self.state is State.HALF_OPEN:
            self.probed(good)
            return
        self.marks.append(good)
        if not good and len(self.marks) >= 4 and self.marks.count(False) * 2 >= len(self.marks):
            self.open()

    def probed(self, good: bool) -> None:
        if not good:
            self.open_s = min(20, self.open_s * 2)
            self.open()
            return
        self.good_probes += 1
        if self.good_probes == 2:
            self.state, self.open_s = State.CLOSED, 5.0
            self.marks.clear()

    def open(self) -> None:
        self.state, self.until_s = State.OPEN, self.now_s() + self.open_s

    @rule(seconds=st.sampled_from([0.5, 4, 5, 11, 20]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def same(self) -> None:
        waited = self.state is State.OPEN and self.now_s() >= self.until_s
        assert self.breaker.state is (State.HALF_OPEN if waited else self.state)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)

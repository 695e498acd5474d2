"""Bulkhead, retry, timeout, fallback, and all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from daydo_kernel import NotFound, NotStarted
from daydo_traffic import (
    Breaker,
    BreakerConfig,
    Bulkhead,
    BulkheadConfig,
    BulkheadFull,
    CallTimeout,
    CircuitOpen,
    Fallback,
    Guard,
    GuardConfig,
    Overloaded,
    Retry,
    RetryConfig,
    State,
    Timeout,
    chain,
)


class Dependency:
    """Answers as told, and counts; the last answer is repeated."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls = 0

    async def __call__(self, *args: Any) -> Any:
        self.calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def value(metrics: Any, name: str, *labels: str) -> float:
    family = next(family for family in metrics.snapshot() if family.name == f"daydo_traffic_{name}")
    return next(cell.values[0] for cell in family.cells if cell.labels == labels)


# -- bulkhead ----------------------------------------------------------------------------------------------------------


async def test_bulkhead_bounds_what_is_under_way() -> None:
    """Two at once, two more wait in order, a fifth is refused at once."""
    bulkhead = Bulkhead("b", BulkheadConfig(concurrent_max=2, waiting_max=2, wait_s=60))
    under_way = most = 0
    gates = [asyncio.Event() for _ in range(4)]
    ended: list[int] = []

    async def work(number: int) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await gates[number].wait()
        under_way -= 1
        ended.append(number)

    tasks = [asyncio.create_task(bulkhead.call(work, number)) for number in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFull):
        await bulkhead.call(work, 0)
    for gate, task in zip(gates, tasks, strict=True):
        gate.set()
        await task
    assert (ended, most) == ([0, 1, 2, 3], 2)
    assert value(bulkhead.metrics, "bulkhead_calls_total", "b", "refused") == 1


async def test_bulkhead_bounds_the_wait() -> None:
    """Waiting in vain ends after wait_s, and a cancelled waiter leaves nothing behind."""
    bulkhead = Bulkhead("b", BulkheadConfig(concurrent_max=1, waiting_max=1, wait_s=0.01))
    gate = asyncio.Event()
    first = asyncio.create_task(bulkhead.call(gate.wait))
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFull):
        await bulkhead.call(gate.wait)
    waiter = asyncio.create_task(bulkhead.call(gate.wait))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    gate.set()
    await first
    await bulkhead.call(gate.wait)
    assert value(bulkhead.metrics, "bulkhead_waiting", "b") == 0


# -- retry -------------------------------------------------------------------------------------------------------------


def recorded(pauses: list[float]) -> Callable[[float], Any]:
    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    return sleep


async def test_retry_pauses_longer_and_longer() -> None:
    """The bounds of the pauses double up to the greatest; then the last error is raised."""
    pauses: list[float] = []
    config = RetryConfig(attempts=5, pause_s=0.1, pause_max_s=0.3)
    retry = Retry("r", config, sleep=recorded(pauses), draw=lambda bound: bound)
    dependency = Dependency(ConnectionError("x"))
    with pytest.raises(ConnectionError):
        await retry.call(dependency)
    assert dependency.calls == 5
    assert pauses == [0.1, 0.2, 0.3, 0.3]


async def test_retry_ends_with_success() -> None:
    """An answer is an answer; nothing is repeated after it."""
    dependency = Dependency(TimeoutError(), ConnectionError(), "well")
    assert await Retry("r", RetryConfig(attempts=5), sleep=recorded([])).call(dependency) == "well"
    assert dependency.calls == 3


async def test_retry_leaves_other_errors_alone() -> None:
    """What will not pass is not repeated."""
    for error in (ValueError("x"), NotFound()):
        dependency = Dependency(error)
        with pytest.raises(type(error)):
            await Retry("r", sleep=recorded([])).call(dependency)
        assert dependency.calls == 1


async def test_retry_listens_to_retry_after() -> None:
    """It waits as long as it is asked to, or not at all if that is too long."""
    pauses: list[float] = []
    retry = Retry("r", RetryConfig(pause_s=0.1, pause_max_s=2), sleep=recorded(pauses), draw=lambda bound: bound)
    assert await retry.call(Dependency(Overloaded(retry_after_s=1.5), "well")) == "well"
    assert pauses == [1.6]
    with pytest.raises(Overloaded):
        await retry.call(Dependency(Overloaded(retry_after_s=3), "well"))


async def test_retry_budget() -> None:
    """While everything fails, 100 calls are repeated 10 + 100 × 0.1 times, not 200 times."""
    config = RetryConfig(attempts=3, budget_share=0.1, budget_max=10)
    retry, dependency = Retry("r", config, sleep=recorded([])), Dependency(ConnectionError("x"))
    for _ in range(100):
        with pytest.raises(ConnectionError):
            await retry.call(dependency)
    assert 118 <= dependency.calls <= 120
    assert value(retry.metrics, "retries_total", "r", "over_budget") > 80


# -- timeout and fallback ----------------------------------------------------------------------------------------------


async def test_timeout_is_an_error_of_ours() -> None:
    """Its own limit raises CallTimeout; a TimeoutError from inside stays what it is."""
    with pytest.raises(CallTimeout) as late:
        await Timeout(0.001).call(asyncio.Event().wait)
    assert (late.value.status, late.value.retryable) == (504, True)
    with pytest.raises(TimeoutError):
        await Timeout(5).call(Dependency(TimeoutError("its own")))
    with pytest.raises(ValueError, match="positive"):
        Timeout(0)


async def test_fallback_answers_with_the_same_arguments() -> None:
    """Where the call fails; not where it was refused for a reason of the caller's."""

    async def local(photo: str) -> str:
        return f"local {photo}"

    assert await Fallback(local).call(Dependency(ConnectionError()), "cat") == "local cat"
    assert await Fallback(local).call(Dependency("remote"), "cat") == "remote"
    with pytest.raises(NotFound):
        await Fallback(local).call(Dependency(NotFound()), "cat")


# -- together ----------------------------------------------------------------------------------------------------------


async def test_chain_is_outermost_first() -> None:
    """Retry around the breaker: what the breaker refuses is not tried over and over."""
    breaker = Breaker("b", BreakerConfig(window_calls=2, calls_min=2, open_s=60))
    safe = chain(Retry("r", RetryConfig(attempts=9), sleep=recorded([])), breaker, Timeout(5))
    dependency = Dependency(ConnectionError())
    with pytest.raises(CircuitOpen):
        await safe.call(dependency)
    assert dependency.calls == 2


async def test_guard_from_configuration() -> None:
    """One part: retried, counted, refused when open, answered by the fallback, seen in health and metrics."""

    async def local(photo: str) -> str:
        return "local"

    config = GuardConfig(
        timeout_s=0.05,
        retry=RetryConfig(attempts=2, pause_s=0.001),
        breaker=BreakerConfig(window_calls=4, calls_min=4, open_s=60),
    )
    guard = Guard("matting", config, fallback=local)
    dependency = Dependency(ConnectionError(), "remote", ConnectionError())
    with pytest.raises(NotStarted):
        await guard.call(dependency, "cat")
    async with guard:
        assert await guard.call(dependency, "cat") == "remote"
        assert (await guard.health()).status == "ok"
        for _ in range(5):
            assert await guard.call(dependency, "cat") == "local"
        assert guard.is_refusing
        assert (await guard.health()).status == "degraded"
        assert value(guard.metrics, "breaker_state", "matting") == State.OPEN
        calls = dependency.calls
        assert await guard.call(dependency, "cat") == "local"
        assert dependency.calls == calls
    assert (await guard.health()).status == "down"


async def test_guard_drains() -> None:
    """Leaving waits for calls under way."""
    guard, gate, ended = Guard("g"), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await gate.wait()
        ended.set()

    async with guard:
        task = asyncio.create_task(guard.call(work))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.01, gate.set)
    assert ended.is_set()
    await task

"""Whose time a deadline counts."""

from __future__ import annotations

import asyncio
import time

import pytest

from daydo_redis.deadline import SLICES, Deadline, Pulse


async def test_silence_ends_at_the_deadline() -> None:
    """While the loop runs freely, the deadline is the clock on the wall."""
    began = time.perf_counter()
    with pytest.raises(TimeoutError), Deadline(0.08):
        await asyncio.Event().wait()
    assert 0.079 < time.perf_counter() - began < 0.4


async def test_own_pause_costs_one_slice() -> None:
    """A pause five times as long as the deadline leaves all but one slice of it to the other side."""
    answer = asyncio.Event()
    with Deadline(0.08):
        time.sleep(0.4)  # noqa: ASYNC251 (the pause is the point)
        asyncio.get_running_loop().call_later(0.08 / SLICES, answer.set)
        await answer.wait()


async def test_what_is_done_in_time_is_left_alone() -> None:
    """Nothing happens after the block, and an exception inside passes through."""
    with pytest.raises(KeyError), Deadline(0.01):
        raise KeyError
    await asyncio.sleep(0.03)


async def test_cancellation_from_outside_stays_a_cancellation() -> None:
    """Only the deadline's own end reads TimeoutError."""

    async def wait() -> None:
        with Deadline(60):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_both_at_once_are_a_cancellation() -> None:
    """Who is cancelled from outside while its deadline ends it hears of the former, and the count is right after."""

    deadline = Deadline(60)

    async def wait() -> int:
        try:
            with deadline:
                asyncio.get_running_loop().call_soon(both)
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            return task.cancelling()
        return -1

    def both() -> None:
        task.cancel()
        for _ in range(SLICES):
            deadline._tick()

    task = asyncio.create_task(wait())
    assert await task == 1


async def test_deadline_leaves_no_cancellation_behind() -> None:
    """After the TimeoutError the task goes on as if nothing had been."""
    for _ in range(2):
        with pytest.raises(TimeoutError), Deadline(0.002):
            await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_deadlines_share_a_pulse_that_rests() -> None:
    """Each has its whole length, whenever it joins; with nobody counting there is no timer, and it starts again."""
    pulse = Pulse(0.08)

    async def wait(after_s: float) -> float:
        await asyncio.sleep(after_s)
        began = time.perf_counter()
        with pytest.raises(TimeoutError), Deadline(pulse):
            await asyncio.Event().wait()
        return time.perf_counter() - began

    for _ in range(2):
        waits_s = await asyncio.gather(*(wait(number * 0.007) for number in range(9)))
        assert all(0.079 < wait_s < 0.4 for wait_s in waits_s)
        await asyncio.sleep(2 * 0.08 / SLICES)
        assert not pulse._beating
        assert not pulse.counting

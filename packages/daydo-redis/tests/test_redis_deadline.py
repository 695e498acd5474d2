"""Whose time a deadline counts."""

from __future__ import annotations

import asyncio
import time

import pytest

from daydo_redis.deadline import SLICES, Deadline


async def test_silence_ends_at_the_deadline() -> None:
    """While the loop runs freely, the deadline is the clock on the wall."""
    began = time.perf_counter()
    with pytest.raises(TimeoutError):
        async with Deadline(0.08):
            await asyncio.Event().wait()
    assert 0.079 < time.perf_counter() - began < 0.4


async def test_own_pause_costs_one_slice() -> None:
    """A pause five times as long as the deadline leaves all but one slice of it to the other side."""
    answer = asyncio.Event()
    async with Deadline(0.08):
        time.sleep(0.4)  # noqa: ASYNC251 (the pause is the point)
        asyncio.get_running_loop().call_later(0.08 / SLICES, answer.set)
        await answer.wait()


async def test_what_is_done_in_time_is_left_alone() -> None:
    """No timer survives the block, and an exception inside passes through."""
    with pytest.raises(KeyError):
        async with Deadline(0.01):
            raise KeyError
    await asyncio.sleep(0.03)


async def test_cancellation_from_outside_stays_a_cancellation() -> None:
    """Only the deadline's own end reads TimeoutError."""

    async def wait() -> None:
        async with Deadline(60):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

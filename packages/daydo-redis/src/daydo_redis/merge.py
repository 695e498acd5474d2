"""Calls made in one turn of the event loop leave together.

The first call of a turn waits for the turn to end (``sleep(0)``: everything that is ready now runs once, and what it
asks for joins). Alone it then goes out in its own task, as if there were no merging. With company, a task of its own
carries them all, so that a caller who gives up takes nobody along; each waits on a future. Callers woken by the
answers of one packet ask again in one turn, so crowds stay together by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from daydo_kernel import Counter

from .call import Call
from .config import RedisConfig

Work = Coroutine[Any, Any, None]


class _Batch:
    """Calls in the order in which they were made, at most so many and so large."""

    __slots__ = ("calls", "size")

    def __init__(self, call: Call) -> None:
        self.calls = [call]
        self.size = len(call.packed)


class Merge:
    """``run`` settles every call that it is given."""

    def __init__(self, run: Callable[[list[Call]], Work], config: RedisConfig, merged: Counter) -> None:
        self._run = run
        self._max = config.merge_max
        self._max_bytes = config.merge_max_bytes
        self._merged = merged
        self._forming: dict[str | None, _Batch] = {}

    def open(self, place: Callable[[Call], str | None], spawn: Callable[[Work, str], object]) -> None:
        """Gather by ``place``: calls to one server."""
        self._place = place
        self._spawn = spawn
        self._make_waiter = asyncio.get_running_loop().create_future

    def send(self, call: Call) -> Awaitable[None]:
        """``call`` is settled when this was awaited; do that at once. (No coroutine: most calls follow another one,
        and each would be one more.)
        """
        if self._max == 1:
            return self._run([call])
        place = self._place(call)
        batch = self._forming.get(place)
        if batch is None or len(batch.calls) >= self._max or batch.size + len(call.packed) > self._max_bytes:
            return self._lead(place, call)
        batch.calls.append(call)
        batch.size += len(call.packed)
        call.waiter = waiter = self._make_waiter()
        return waiter

    async def _lead(self, place: str | None, call: Call) -> None:
        batch = self._forming[place] = _Batch(call)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            batch.calls.remove(call)
            raise
        finally:
            if self._forming.get(place) is batch:
                del self._forming[place]
            alone = batch.calls == [call]
            if batch.calls and not alone:
                call.waiter = self._make_waiter()
                self._merged.inc(len(batch.calls))
                self._spawn(self._run(batch.calls), "merged")
        if call.waiter is None:
            await self._run(batch.calls)
        else:
            await call.waiter

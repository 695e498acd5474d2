"""A timeout that measures the server, not ourselves.

``asyncio.timeout`` measures the clock on the wall. When our own process was held up meanwhile (a garbage
collection, a neighbour on the same core), the answer may already lie in the socket, and a limit of 80 ms would
blame Redis for our pause and open the breaker for everyone. So a deadline is counted in slices, each started when
the one before was noticed: a slice that our event loop served late costs the time it was meant to last, no more.
While the loop runs freely that is the same as the clock on the wall.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

SLICES = 8


class Deadline:
    """``async with Deadline(0.08): …`` raises ``TimeoutError`` like ``asyncio.timeout``."""

    __slots__ = ("_left", "_loop", "_scope", "_slice_s", "_timer")

    def __init__(self, seconds: float) -> None:
        self._slice_s = seconds / SLICES
        self._left = SLICES
        self._scope = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._scope.__aenter__()
        self._timer = self._loop.call_later(self._slice_s, self._tick)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._scope.__aexit__(kind, error, trace)

    def _tick(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = self._loop.call_later(self._slice_s, self._tick)
        else:
            self._scope.reschedule(self._loop.time())

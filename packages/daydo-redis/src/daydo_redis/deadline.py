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
    """``with Deadline(0.08): …``, in a task, raises ``TimeoutError`` like ``asyncio.timeout``."""

    __slots__ = ("_before", "_left", "_loop", "_slice_s", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._slice_s = seconds / SLICES
        self._left = SLICES

    def __enter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline ends a task, and here is none")
        self._task = task
        self._before = task.cancelling()
        self._timer = self._loop.call_later(self._slice_s, self._tick)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        # Who was cancelled by somebody else as well shall hear of that.
        if not self._left and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _tick(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = self._loop.call_later(self._slice_s, self._tick)
        else:
            self._task.cancel()

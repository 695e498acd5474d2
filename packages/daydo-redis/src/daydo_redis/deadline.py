"""A timeout that measures the server, not ourselves.

``asyncio.timeout`` measures the clock on the wall. When our own process was held up meanwhile (a garbage
collection, a neighbour on the same core), the answer may already lie in the socket, and a limit of 80 ms would
blame Redis for our pause and open the breaker for everyone. So a deadline is counted in slices, each started when
the one before was noticed: a slice that our event loop served late costs the time it was meant to last, no more.
While the loop runs freely that is the same as the clock on the wall.

Making a timer for each call, and cancelling it, would cost a fifth of the call. Calls share one: a :class:`Pulse`,
which beats only while somebody counts. Who comes between two beats is given the rest of that slice for nothing.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

SLICES = 16


class Pulse:
    """Beats ``SLICES`` times within ``seconds`` while there are deadlines that count its beats; of one event loop."""

    def __init__(self, seconds: float) -> None:
        self._slice_s = seconds / SLICES
        self._loop = asyncio.get_running_loop()
        self.counting: set[Deadline] = set()
        self._beating = False

    def join(self, deadline: Deadline) -> int:
        """Count for ``deadline`` from now on; how many beats it has."""
        self.counting.add(deadline)
        if self._beating:
            return SLICES + 1
        self._start()
        return SLICES

    def _start(self) -> None:
        self._beating = True
        self._loop.call_later(self._slice_s, self._beat)

    def _beat(self) -> None:
        self._beating = False
        if self.counting:
            self._start()
        for deadline in list(self.counting):
            deadline._tick()


class Deadline:
    """``with Deadline(0.08): …``, in a task, raises ``TimeoutError`` like ``asyncio.timeout``.

    In the place of seconds a :class:`Pulse`, for many of one length.
    """

    __slots__ = ("_before", "_left", "_pulse", "_seconds", "_task")
    _task: asyncio.Task[Any]

    def __init__(self, seconds: float | Pulse) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline ends a task, and here is none")
        self._task = task
        self._before = task.cancelling()
        self._pulse = self._seconds if isinstance(self._seconds, Pulse) else Pulse(self._seconds)
        self._left = self._pulse.join(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pulse.counting.discard(self)
        # Who was cancelled by somebody else as well shall hear of that.
        if not self._left and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _tick(self) -> None:
        self._left -= 1
        if not self._left:
            self._pulse.counting.discard(self)
            self._task.cancel()

"""The life of a noun: made without I/O, entered, drained, left.

``async with noun`` checks what it stands on and starts its tasks; leaving it stops taking work, waits at most
``drain_s`` for what is under way, cancels the rest and says so. No task outlives its noun.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, Self, TypeVar

import msgspec

from .errors import NotStarted
from .metrics import Metrics

T = TypeVar("T")

log = logging.getLogger("daydo")
CANCELLATIONS_MAX = 10


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How a part is: ``degraded`` still serves, ``down`` does not. ``detail`` holds figures, never secrets."""

    status: Literal["ok", "degraded", "down"] = "ok"
    detail: dict[str, str | int | float] = {}


class Part:
    """Base of every noun. Subclasses override the four hooks they need and nothing else.

    ``metrics`` holds the part's cells. Constructors do no I/O and need no running loop.
    """

    metrics: Metrics

    def __init__(self, *, drain_s: float) -> None:
        self.drain_s = drain_s
        self._running = False
        self._tasks: set[asyncio.Task[Any]] = set()

    async def _start(self) -> None:
        """Check the schema, connect, spawn tasks. A failure here leaves nothing behind: ``_close`` follows."""

    async def _drain(self) -> None:
        """Wait for work under way; bounded by ``drain_s``."""

    async def _close(self) -> None:
        """Let go of connections; runs always, also after a failed start."""

    async def health(self) -> Health:
        """How this part is right now; bounded in time and never raises."""
        return Health(status="ok" if self._running else "down")

    async def __aenter__(self) -> Self:
        if self._running:
            raise RuntimeError(f"{type(self).__name__} is already running; enter it once and share it")
        try:
            await self._start()
        except BaseException:
            await self._leave()
            raise
        self._running = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._running = False
        try:
            async with asyncio.timeout(self.drain_s):
                await self._drain()
        except TimeoutError:
            log.warning("%s: work was still under way after drain_s=%s", type(self).__name__, self.drain_s)
        finally:
            await self._leave()

    async def _leave(self) -> None:
        # Again and again: asyncio.wait_for before Python 3.12 can swallow a cancellation.
        for _ in range(CANCELLATIONS_MAX):
            if not (tasks := {task for task in self._tasks if not task.done()}):
                break
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1.0)
        else:
            log.error("%s: tasks do not end: %s", type(self).__name__, [task.get_name() for task in tasks])
        await self._close()

    def _require_started(self) -> None:
        if not self._running:
            raise NotStarted(part=type(self).__name__)

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run ``work`` as a task of this part; a crash is logged, and exit cancels it."""
        task = asyncio.create_task(work, name=f"{type(self).__name__}.{name}")
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _repeat(self, seconds: float, work: Callable[[], Awaitable[object]], name: str) -> asyncio.Task[None]:
        """Run ``work`` every ``seconds`` as a task of this part; an error is logged and its next turn comes."""

        async def forever() -> None:
            while True:
                await asyncio.sleep(seconds)
                try:
                    await work()
                except Exception:
                    log.exception("%s.%s failed; it runs again in %s s", type(self).__name__, name, seconds)

        return self._spawn(forever(), name)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s stopped with an error", task.get_name(), exc_info=error)


@asynccontextmanager
async def running(parts: Iterable[Part]) -> AsyncIterator[None]:
    """Enter ``parts`` in order and leave them in reverse, also when one of them fails to start."""
    async with AsyncExitStack() as stack:
        for part in parts:
            await stack.enter_async_context(part)
        yield


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` although the calling task is cancelled, then pass the cancellation on.

    For what must not stop half-way, COMMIT first of all; ``work`` bounds its own time. If ``work`` fails its
    error wins over the cancellation, for it says more.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as stop:
            cancelled = stop
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result

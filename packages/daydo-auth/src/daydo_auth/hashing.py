"""A bounded place for slow hashing: a few threads, a short queue, and a clear no beyond it.

bcrypt releases the GIL, so threads do; a burst of logins then costs the event loop nothing and the clients a wait that
is bounded by ``queue_max / workers`` hashes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from daydo_kernel import Metrics

from .errors import HashingSaturated

T = TypeVar("T")

_SMOOTHING = 0.2


class HashingPool:
    """Runs functions on ``workers`` threads, with at most ``queue_max`` waiting."""

    def __init__(self, workers: int, queue_max: int, metrics: Metrics) -> None:
        self._workers = workers
        self._queue_max = queue_max
        self._threads = self._new_threads()
        self.open()
        self._mean_s = 0.25
        metrics.gauge("hashing_queue", "Passwords waiting for a thread.").cell().follow(lambda: self.waiting)
        self._seconds = metrics.histogram("hashing_seconds", "Time of one hash, without its wait.").cell()
        self._refused = metrics.counter("hashing_refused_total", "Passwords refused because the queue was full.").cell()

    @property
    def waiting(self) -> int:
        return max(0, self._jobs - self._workers)

    def open(self) -> None:
        """Begin in the running loop, maybe another than last time: an Event belongs to the first that waited for it."""
        self._jobs = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def drained(self) -> None:
        await self._idle.wait()

    def close(self) -> None:
        """Give up what waits and let the threads end; the pool can be used again."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._threads = self._new_threads()

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """``work(*args)`` on a thread. A caller that is cancelled gives up its place in the queue.

        Raises:
            HashingSaturated: the queue is full; ``retry_after_s`` is how long the queue takes.
        """
        if self._jobs >= self._workers + self._queue_max:
            self._refused.inc()
            raise HashingSaturated(retry_after_s=self._mean_s * self._jobs / self._workers)
        loop, idle = asyncio.get_running_loop(), self._idle
        self._jobs += 1
        idle.clear()
        job = self._threads.submit(_timed, work, *args)

        def left(job: Future[Any]) -> None:
            # Called on the thread, also where the waiting caller has gone: only then the place is free.
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._leave, idle)

        job.add_done_callback(left)
        result, seconds = await asyncio.wrap_future(job)
        self._seconds.observe(seconds)
        self._mean_s += _SMOOTHING * (seconds - self._mean_s)
        return result

    def _new_threads(self) -> ThreadPoolExecutor:
        # Makes no thread before the first job.
        return ThreadPoolExecutor(self._workers, thread_name_prefix="daydo-auth-hashing")

    def _leave(self, idle: asyncio.Event) -> None:
        if idle is not self._idle:
            return  # A hash from before we were left and entered again: it is not counted any more.
        self._jobs -= 1
        if not self._jobs:
            self._idle.set()


def _timed(work: Callable[..., T], *args: Any) -> tuple[T, float]:
    began = time.perf_counter()
    return work(*args), time.perf_counter() - began

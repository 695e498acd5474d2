"""A bound on calls under way, so that one slow dependency does not take everybody's memory and connections."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

from msgspec import Meta

from daydo_kernel import Config, Metrics

from .errors import BulkheadFull
from .policy import P, Policy, T


class BulkheadConfig(Config, frozen=True, kw_only=True):
    """How much may be under way.

    Attributes:
        concurrent_max: calls at once.
        waiting_max: further calls that wait for a slot, first come, first served; 0: none waits.
        wait_s: how long one of them waits at most.
    """

    concurrent_max: Annotated[int, Meta(ge=1, le=100_000)] = 16
    waiting_max: Annotated[int, Meta(ge=0, le=100_000)] = 64
    wait_s: Annotated[float, Meta(gt=0, le=600)] = 1.0


class Bulkhead(Policy):
    """At most so many calls at once in this process (for all processes: a :class:`Concurrent` rule).

    ``metrics``: where its cells go; by default they are its own.
    """

    def __init__(
        self,
        name: str,
        config: BulkheadConfig = BulkheadConfig(),  # noqa: B008 (frozen)
        *,
        metrics: Metrics | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self._slots = asyncio.Semaphore(config.concurrent_max)
        self._under_way = 0
        self._waiting = 0
        self._declare(metrics if metrics is not None else Metrics("daydo_traffic"))

    def _declare(self, metrics: Metrics) -> None:
        self.metrics = metrics
        calls = metrics.counter("bulkhead_calls_total", "Calls, by how they got a slot.", ("bulkhead", "outcome"))
        self._at_once, self._waited = calls.cell(self.name, "at_once"), calls.cell(self.name, "waited")
        self._refused, self._gave_up = calls.cell(self.name, "refused"), calls.cell(self.name, "waited_in_vain")
        busy = metrics.gauge("bulkhead_under_way", "Calls under way.", ("bulkhead",))
        busy.cell(self.name).follow(lambda: float(self._under_way))
        waiting = metrics.gauge("bulkhead_waiting", "Calls that wait for a slot.", ("bulkhead",))
        waiting.cell(self.name).follow(lambda: float(self._waiting))

    async def call(self, fn: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await ``fn`` as soon as there is a slot.

        Raises:
            BulkheadFull: nobody else may wait, or ``wait_s`` has passed; ``fn`` was not called.
        """
        await self._take()
        self._under_way += 1
        try:
            return await fn(*args, **kwargs)
        finally:
            self._under_way -= 1
            self._slots.release()

    async def _take(self) -> None:
        if not self._slots.locked():
            await self._slots.acquire()  # does not wait
            self._at_once.inc()
            return
        if self._waiting >= self.config.waiting_max:
            self._refused.inc()
            raise BulkheadFull(bulkhead=self.name, retry_after_s=self.config.wait_s)
        self._waiting += 1
        try:
            async with asyncio.timeout(self.config.wait_s):
                await self._slots.acquire()
        except TimeoutError:
            self._gave_up.inc()
            raise BulkheadFull(bulkhead=self.name, retry_after_s=self.config.wait_s) from None
        finally:
            self._waiting -= 1
        self._waited.inc()

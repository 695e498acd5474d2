"""Everything around one dependency, from configuration: the policies in the order that fits most."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from msgspec import Meta

from daydo_kernel import Clock, Config, EventSink, Health, Metrics, Part

from .breaker import Breaker, BreakerConfig, State
from .bulkhead import Bulkhead, BulkheadConfig
from .policy import Fallback, Judge, P, Policy, T, Timeout, blames_the_other, chain, is_passing
from .retry import Retry, RetryConfig


class GuardConfig(Config, frozen=True, kw_only=True):
    """How one dependency is called.

    Attributes:
        timeout_s: each attempt; a slot is waited for outside of it.
        total_s: the whole call, with waiting and all attempts.
        retry, bulkhead, breaker: see there. ``RetryConfig(attempts=1)``, the default, calls once.
        drain_s: on exit, how long calls under way may take.
    """

    timeout_s: Annotated[float, Meta(gt=0, le=3_600)] = 10.0
    total_s: Annotated[float, Meta(gt=0, le=3_600)] = 30.0
    retry: RetryConfig = RetryConfig(attempts=1)
    bulkhead: BulkheadConfig = BulkheadConfig()
    breaker: BreakerConfig = BreakerConfig()
    drain_s: Annotated[float, Meta(ge=0, le=600)] = 5.0


class Guard(Part, Policy):
    """``await matting.call(vendor.cut_out, photo)``: fallback, time limit for all, retries, bulkhead, breaker, time
    limit for each; a part with metrics, health and an end.

    ``fallback`` is called with the same arguments where the rest has failed. ``is_failure`` is the breaker's (and the
    fallback's), ``when`` the retry's. ``events``: the breaker's.
    """

    def __init__(
        self,
        name: str,
        config: GuardConfig = GuardConfig(),  # noqa: B008 (frozen)
        *,
        fallback: Callable[..., Awaitable[Any]] | None = None,
        is_failure: Judge = blames_the_other,
        when: Judge = is_passing,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        self.name = name
        self.metrics = Metrics("daydo_traffic")
        self.breaker = Breaker(
            name, config.breaker, is_failure=is_failure, metrics=self.metrics, clock=clock, events=events
        )
        outermost = [Fallback(fallback, when=is_failure)] if fallback is not None else []
        self._policy = chain(
            *outermost,
            Timeout(config.total_s),
            Retry(name, config.retry, when=when, metrics=self.metrics),
            Bulkhead(name, config.bulkhead, metrics=self.metrics),
            self.breaker,
            Timeout(config.timeout_s),
        )
        self._under_way = 0

    async def call(self, fn: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await ``fn`` in all these ways.

        Raises:
            CircuitOpen, BulkheadFull: it was not called (this time), and there is no fallback.
            CallTimeout: ``timeout_s`` or ``total_s`` has passed.
        """
        self._require_started()
        self._under_way += 1
        try:
            return await self._policy.call(fn, *args, **kwargs)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._quiet.set()

    async def health(self) -> Health:
        """``degraded`` while the breaker is not closed."""
        return self.breaker.health() if self._running else Health(status="down")

    @property
    def is_refusing(self) -> bool:
        """Whether its breaker is open; what a switch follows."""
        return self.breaker.state is State.OPEN

    async def _start(self) -> None:
        self._quiet = asyncio.Event()

    async def _drain(self) -> None:
        while self._under_way:
            self._quiet.clear()
            await self._quiet.wait()

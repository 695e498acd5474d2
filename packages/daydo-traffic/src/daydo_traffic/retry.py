"""Calling again, without making an outage worse.

Pauses are random between nothing and a bound that doubles ("full jitter"): callers that failed together do not come
back together. The **budget** bounds what all calls together may repeat: every first call earns ``budget_share`` of a
repetition, at most ``budget_max`` are saved up. While everything fails, the dependency so gets 1.1 times the calls,
and not ``attempts`` times.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Annotated

from msgspec import Meta

from daydo_kernel import Config, DaydoError, Metrics

from .policy import Judge, P, Policy, T, is_passing


class RetryConfig(Config, frozen=True, kw_only=True):
    """How often and how soon.

    Attributes:
        attempts: calls in all, the first included.
        pause_s, pause_max_s: bound of the first pause, doubling up to the latter. An error that asks for a longer
            wait (``retry_after_s``) is not waited for.
        budget_share: repetitions that each first call earns.
        budget_max: repetitions saved up at most; so many are there from the start.
    """

    attempts: Annotated[int, Meta(ge=1, le=20)] = 3
    pause_s: Annotated[float, Meta(gt=0, le=60)] = 0.1
    pause_max_s: Annotated[float, Meta(gt=0, le=600)] = 2.0
    budget_share: Annotated[float, Meta(gt=0, le=1)] = 0.1
    budget_max: Annotated[int, Meta(ge=1, le=100_000)] = 10


class Retry(Policy):
    """Calls again after a passing error: ``@Retry("vendor")``. Only for what may run twice.

    ``when`` says which errors pass (default: errors that say so by ``retryable``, time-outs, lost connections).
    ``sleep`` and ``draw`` (a number from 0 to a bound) are replaced in tests. ``metrics``: where its cells go.
    """

    def __init__(
        self,
        name: str,
        config: RetryConfig = RetryConfig(),  # noqa: B008 (frozen)
        *,
        when: Judge = is_passing,
        metrics: Metrics | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        draw: Callable[[float], float] | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self._when = when
        self._sleep = sleep
        self._draw = draw if draw is not None else _draw
        self._budget = float(config.budget_max)
        self.metrics = metrics if metrics is not None else Metrics("daydo_traffic")
        ends = self.metrics.counter("retries_total", "Failed calls, by what came next.", ("retry", "outcome"))
        self._again, self._exhausted = ends.cell(name, "repeated"), ends.cell(name, "exhausted")
        self._unaffordable, self._too_long = ends.cell(name, "over_budget"), ends.cell(name, "wait_too_long")

    async def call(self, fn: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await ``fn``, and again after a passing error; raises the error of the last attempt."""
        self._budget = min(self._budget + self.config.budget_share, self.config.budget_max)
        attempt = 1
        while True:
            try:
                return await fn(*args, **kwargs)
            except Exception as error:
                if not self._when(error) or not self._may_repeat(error, attempt):
                    raise
                pause_s = self._pause_s(error, attempt)
            await self._sleep(pause_s)
            attempt += 1

    def _may_repeat(self, error: Exception, attempt: int) -> bool:
        if attempt >= self.config.attempts:
            self._exhausted.inc()
        elif _asked_wait_s(error) > self.config.pause_max_s:
            self._too_long.inc()
        elif self._budget < 1:
            self._unaffordable.inc()
        else:
            self._budget -= 1
            self._again.inc()
            return True
        return False

    def _pause_s(self, error: Exception, attempt: int) -> float:
        bound_s = min(self.config.pause_s * 2 ** (attempt - 1), self.config.pause_max_s)
        return _asked_wait_s(error) + self._draw(bound_s)


def _asked_wait_s(error: Exception) -> float:
    return (error.retry_after_s or 0.0) if isinstance(error, DaydoError) else 0.0


def _draw(bound_s: float) -> float:
    return random.uniform(0, bound_s)  # noqa: S311 (spreads callers, guards no secret)

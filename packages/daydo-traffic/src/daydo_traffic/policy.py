"""Ways of calling what may fail, each around any coroutine, and around one another.

``await breaker.call(fetch, url)`` for one call, ``@breaker`` for a function, ``chain(Retry(), breaker, Timeout(2))``
for several, the outermost first.
"""

from __future__ import annotations

import asyncio
import functools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from daydo_kernel import DaydoError

from .errors import CallTimeout

P = ParamSpec("P")
T = TypeVar("T")

Judge = Callable[[Exception], bool]


class Policy(ABC):
    """One way of calling. Safe to share between any number of tasks of one event loop."""

    @abstractmethod
    async def call(self, fn: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await ``fn(*args, **kwargs)``, in this way."""

    def __call__(self, fn: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        """As a decorator: every call of ``fn`` goes through :meth:`call`."""

        @functools.wraps(fn)
        async def protected(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.call(fn, *args, **kwargs)

        return protected


class _Chain(Policy):
    def __init__(self, policies: tuple[Policy, ...]) -> None:
        self._policies = policies

    async def call(self, fn: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        innermost: Callable[..., Awaitable[T]] = fn
        for policy in reversed(self._policies):
            innermost = functools.partial(policy.call, innermost)
        return await innermost(*args, **kwargs)


def chain(*policies: Policy) -> Policy:
    """Several as one, the outermost first. The order that fits most: ``chain(Fallback(…), Timeout(whole),
    Retry(…), bulkhead, breaker, Timeout(each))``; with it a full bulkhead does not count against the dependency, and
    what the breaker refuses is not waited for.
    """
    return _Chain(policies)


class Timeout(Policy):
    """At most ``seconds`` for a call, waiting included; then it is cancelled and :class:`CallTimeout` raised."""

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"a timeout is positive, not {seconds}")
        self._seconds = seconds

    async def call(self, fn: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises CallTimeout; a TimeoutError of ``fn``'s own passes through."""
        try:
            async with asyncio.timeout(self._seconds) as scope:
                return await fn(*args, **kwargs)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise CallTimeout(seconds=self._seconds) from error


class Fallback(Policy):
    """Another answer where the call fails: ``Fallback(cut_out_locally)`` is called with the same arguments.

    ``when`` says for which errors (default: all that :func:`blames_the_other` side). The other answer's own
    error has the first one as its context.
    """

    def __init__(self, answer: Callable[..., Awaitable[Any]], *, when: Judge | None = None) -> None:
        self._answer = answer
        self._when = when if when is not None else blames_the_other

    async def call(self, fn: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await fn(*args, **kwargs)
        except Exception as error:
            if not self._when(error):
                raise
            answer: T = await self._answer(*args, **kwargs)
            return answer


def blames_the_other(error: Exception) -> bool:
    """Whether an error says something about the callee: everything but our own refusals below status 500."""
    return not (isinstance(error, DaydoError) and error.status < 500)


def is_passing(error: Exception) -> bool:
    """Whether the same call may succeed in a moment: errors that say so, time-outs and lost connections."""
    if isinstance(error, DaydoError):
        return error.retryable
    return isinstance(error, TimeoutError | ConnectionError)

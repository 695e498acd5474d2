"""The Litestar edge: a limit for every route, declared where the route is. Extra: ``[litestar]``.

``LimitsPlugin(limits, default=[…])`` limits every route; ``opt=limited(…)`` on a route, controller or router gives its
own limits in place of the default, ``opt=unlimited("why")`` none. Limits are asked after all guards, so keys may depend
on who has logged in. :func:`route_limits` lists what holds where, for a page, and for the test that none is forgotten.
Errors become answers through ``daydo_kernel.litestar.KernelPlugin``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
from litestar import Litestar
from litestar.config.app import AppConfig
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.middleware import DefineMiddleware
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.routes import BaseRoute, HTTPRoute
from litestar.types import ASGIApp, Receive, Scope, Send

from daydo_kernel import running
from daydo_kernel.litestar import refusals

from .asgi import enter, with_headers
from .decision import Check, Decision
from .errors import LimitExceeded, Overloaded, RateLimited, TooManyAtOnce
from .limits import Limits
from .rules import Concurrent
from .shedder import Priority, Shedder

Connection = ASGIConnection[Any, Any, Any, Any]
Key = Callable[[Connection], str | None]
"""Whom a request counts for (an address, a user, a tenant); None: the limit does not concern it."""

_LIMITS = "daydo_limits"
_PRIORITY = "daydo_priority"
_STATE = "daydo_traffic"


class RouteLimit(msgspec.Struct, frozen=True):
    """``RouteLimit("login", by=client_address)``: ask this rule for that key, and for so many units."""

    rule: str
    by: Key
    cost: int = 1


class Unlimited(msgspec.Struct, frozen=True):
    """Why a route has no limit."""

    reason: str


class RouteLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for one route: names of rules; none where ``unlimited`` says why, or where it was forgotten."""

    method: str
    path: str
    rules: tuple[str, ...]
    unlimited: str = ""


def limited(*limits: RouteLimit) -> dict[str, Any]:
    """The ``opt=`` of what has limits of its own, in place of those further out."""
    if not limits:
        raise ValueError('limited() needs a limit; a route without any says why: opt=unlimited("…")')
    return {_LIMITS: limits}


def unlimited(reason: str) -> dict[str, Any]:
    """The ``opt=`` of what has no limit, and why that is right."""
    return {_LIMITS: Unlimited(reason)}


def prioritized(priority: Priority) -> dict[str, Any]:
    """The ``opt=`` that tells the shedder; beside limits: ``opt={**limited(…), **prioritized(…)}``."""
    return {_PRIORITY: priority}


class LimitsPlugin(InitPlugin, ReceiveRoutePlugin):
    """Runs ``limits`` (and ``shedder``) with the application, puts them before every route, and documents refusals.

    ``default``: the limits of routes that declare none. ``priority``: who is shed last, for routes that do not say
    (the user is not known yet: the shedder comes before the guards). Redis must run already: put it into ``lifespan=``.

    Raises:
        ValueError: on registration, a route names a rule that the configuration does not.
    """

    def __init__(
        self,
        limits: Limits,
        default: Sequence[RouteLimit] = (),
        *,
        shedder: Shedder | None = None,
        priority: Callable[[Scope], Priority] | None = None,
    ) -> None:
        self.limits = limits
        self.default = tuple(default)
        self.shedder = shedder
        self._priority = priority

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        app_config.lifespan = [*app_config.lifespan, self._lifespan]
        app_config.middleware = [DefineMiddleware(_Edge, plugin=self), *app_config.middleware]
        app_config.state[_STATE] = self
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        for handler in _handlers(route):
            declared = self.of(handler)
            unknown = {limit.rule for limit in declared} - set(self.limits.config.rules)
            if unknown:
                raise ValueError(f"{route.path}: no rule {sorted(unknown)}; add it to LimitsConfig.rules")
            guards = handler.resolve_guards()
            if declared and self._guard not in guards:
                guards.append(self._guard)  # the last of all layers: the others say who is asking
            if isinstance(route, HTTPRoute):
                self._document(handler, declared)

    def of(self, handler: BaseRouteHandler) -> tuple[RouteLimit, ...]:
        """The limits of ``handler``: its own, those of the nearest layer around it, or the default."""
        declared = handler.opt.get(_LIMITS, self.default)
        return () if isinstance(declared, Unlimited) else tuple(declared)

    def priority_of(self, scope: Scope) -> Priority:
        declared: Priority | None = scope["route_handler"].opt.get(_PRIORITY)
        if declared is not None:
            return declared
        return self._priority(scope) if self._priority is not None else Priority.NORMAL

    async def _guard(self, connection: Connection, handler: BaseRouteHandler) -> None:
        keys = [(limit, limit.by(connection)) for limit in self.of(handler)]
        checks = [Check(limit.rule, key, limit.cost) for limit, key in keys if key is not None]
        request: _Request = connection.scope[_STATE]  # type: ignore[literal-required]
        try:
            request.decision = await request.stack.enter_async_context(self.limits.admit(*checks))
        except LimitExceeded as error:
            request.decision = error.decision
            raise

    def _document(self, handler: Any, declared: tuple[RouteLimit, ...]) -> None:
        rules = [self.limits.config.rules[limit.rule] for limit in declared]
        errors = [
            *([RateLimited] if any(not isinstance(rule, Concurrent) for rule in rules) else []),
            *([TooManyAtOnce] if any(isinstance(rule, Concurrent) for rule in rules) else []),
            *([Overloaded] if self.shedder is not None else []),
        ]
        if errors:
            handler.responses = {**refusals(*errors), **(handler.responses or {})}

    @asynccontextmanager
    async def _lifespan(self, app: Litestar) -> AsyncIterator[None]:
        async with running([self.limits, *([self.shedder] if self.shedder is not None else [])]):
            yield


class _Request:
    """One request on its way: what it holds, and what it was told."""

    __slots__ = ("decision", "stack")

    def __init__(self, stack: AsyncExitStack) -> None:
        self.stack = stack
        self.decision: Decision | None = None


class _Edge:
    """Outside of everything Litestar does for a route: sheds, adds headers, gives leases back."""

    def __init__(self, app: ASGIApp, plugin: LimitsPlugin) -> None:
        self._app = app
        self._plugin = plugin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            request = _Request(stack)
            scope[_STATE] = request  # type: ignore[literal-required]
            if self._plugin.shedder is not None:
                enter(self._plugin.shedder, self._plugin.priority_of(scope), scope, stack)
            sending: Any = with_headers(send, lambda: request.decision)  # type: ignore[arg-type]
            await self._app(scope, receive, sending)


def route_limits(app: Litestar) -> list[RouteLimits]:
    """What holds for each method and path of ``app``, in the order of the paths::

    assert [route for route in route_limits(app) if not route.rules and not route.unlimited] == []
    """
    plugin: LimitsPlugin = app.state[_STATE]
    return [
        RouteLimits(
            method=method,
            path=route.path,
            rules=tuple(limit.rule for limit in plugin.of(handler)),
            unlimited=_reason(handler),
        )
        for route in sorted(app.routes, key=lambda route: route.path)
        for handler in _handlers(route)
        for method in _methods(handler)
    ]


def _reason(handler: BaseRouteHandler) -> str:
    declared = handler.opt.get(_LIMITS)
    return declared.reason if isinstance(declared, Unlimited) else ""


def _handlers(route: BaseRoute) -> list[BaseRouteHandler]:
    if isinstance(route, HTTPRoute):
        return list(route.route_handlers)
    handler: BaseRouteHandler = route.route_handler  # type: ignore[attr-defined]
    return [handler]


def _methods(handler: BaseRouteHandler) -> list[str]:
    return sorted(getattr(handler, "http_methods", ())) or [
        "WEBSOCKET" if "websocket" in type(handler).__name__.lower() else "ASGI"
    ]

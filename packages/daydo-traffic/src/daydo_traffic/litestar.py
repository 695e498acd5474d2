"""The Litestar edge: a limit for every route, declared where the route is. Extra: ``[litestar]``.

``LimitsPlugin(limits, default=[…])`` limits every route; ``opt=limited(…)`` on a route, controller or router gives its
own limits in place of the default, ``opt=unlimited("why")`` none. They are asked before guards, body and handler: what
a guard refuses has been counted, too. ``plugin.wrap(app)`` counts what no route answers (404, 405).
:func:`route_limits` lists what holds where, for a page, and for the test that none is forgotten.

``opt=switched("uploads")`` refuses a route while its switch is off, ``opt=prioritized(…)`` tells the shedder.
:func:`limits_admin_router` and :func:`switches_admin_router` change all that at run time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Annotated, Any

import msgspec
from litestar import Litestar, Request, Router, delete, get, post, put
from litestar.config.app import AppConfig
from litestar.connection import ASGIConnection
from litestar.exceptions import ImproperlyConfiguredException
from litestar.handlers import BaseRouteHandler
from litestar.middleware import DefineMiddleware
from litestar.params import Body, PathParameter, QueryParameter
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.routes import BaseRoute, HTTPRoute
from litestar.types import ASGIApp, Guard, Message, Receive, Scope, Send
from msgspec import Meta

from daydo_kernel import Envelope, Page, ok, running
from daydo_kernel.litestar import refusals

from .asgi import refuse, through, with_headers
from .decision import Check, Decision
from .errors import (
    FeatureOff,
    LimitExceeded,
    Overloaded,
    RateLimited,
    RuleOfAnotherKind,
    RuleUnknown,
    SwitchUnknown,
    TooManyAtOnce,
)
from .limits import Limits
from .rules import Concurrent, Rule
from .shedder import Priority, Shedder
from .switches import Mode, Switch, Switches

Connection = ASGIConnection[Any, Any, Any, Any]
Key = Callable[[Connection], str | None]
"""Whom a request counts for (an address, a user, a tenant); None: the limit does not concern it."""

_LIMITS = "daydo_limits"
_PRIORITY = "daydo_priority"
_SWITCHES = "daydo_switches"
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
    if not reason:
        raise ValueError("unlimited() says why")
    return {_LIMITS: Unlimited(reason)}


def prioritized(priority: Priority) -> dict[str, Any]:
    """The ``opt=`` that tells the shedder; beside limits: ``opt={**limited(…), **prioritized(…)}``."""
    return {_PRIORITY: priority}


def switched(*names: str) -> dict[str, Any]:
    """The ``opt=`` of what is refused while one of these switches is off."""
    return {_SWITCHES: names}


class LimitsPlugin(InitPlugin, ReceiveRoutePlugin):
    """Runs ``limits`` (and ``shedder``, ``switches``) with the application, puts them before every route, and
    documents refusals. Redis, and whatever the keys stand on, must run already: put it into ``lifespan=``.

    ``default``: the limits of routes that declare none, and of what no route answers (:meth:`wrap`), other than to
    a CORS preflight that is granted: browsers ask that on their own, and it costs nothing. ``priority``: who
    is shed last, for routes that do not say.

    Raises:
        ValueError: on registration, a route names a rule or a switch that the configuration does not.
    """

    def __init__(
        self,
        limits: Limits,
        default: Sequence[RouteLimit] = (),
        *,
        shedder: Shedder | None = None,
        priority: Callable[[Connection], Priority] | None = None,
        switches: Switches | None = None,
    ) -> None:
        self.limits = limits
        self.default = tuple(default)
        self.shedder = shedder
        self.switches = switches
        self._priority = priority
        self._app: Litestar | None = None

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """``app``, Litestar or what is around it, with ``default`` for what no route answers."""

        async def limiting(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] not in ("http", "websocket"):
                await app(scope, receive, send)
                return
            if self._app is not None:  # keys may ask for it, although what is around it answers
                scope.setdefault("litestar_app", self._app)
            async with AsyncExitStack() as stack:
                await app(scope, receive, _Unrouted(self, scope, send, stack).send)

        return limiting

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        app_config.lifespan = [*app_config.lifespan, self._lifespan]
        app_config.middleware = [DefineMiddleware(_Edge, plugin=self), *app_config.middleware]
        app_config.state[_STATE] = self
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        for handler in _handlers(route):
            declared, switches = self.of(handler), handler.opt.get(_SWITCHES, ())
            if unknown := {limit.rule for limit in declared} - set(self.limits.config.rules):
                raise ValueError(f"{route.path}: no rule {sorted(unknown)}; add it to LimitsConfig.rules")
            known = self.switches.config.switches if self.switches is not None else {}
            if unknown := set(switches) - set(known):
                raise ValueError(f"{route.path}: no switch {sorted(unknown)}; add it to SwitchesConfig.switches")
            if isinstance(route, HTTPRoute):
                self._document(handler, declared, switched=bool(switches))

    def of(self, handler: BaseRouteHandler) -> tuple[RouteLimit, ...]:
        """The limits of ``handler``: its own, those of the nearest layer around it, or the default."""
        declared = handler.opt.get(_LIMITS, self.default)
        return () if isinstance(declared, Unlimited) else tuple(declared)

    def priority_of(self, connection: Connection) -> Priority:
        """How late it is shed."""
        declared: Priority | None = connection.route_handler.opt.get(_PRIORITY)
        if declared is not None:
            return declared
        return self._priority(connection) if self._priority is not None else Priority.NORMAL

    async def admit(
        self, connection: Connection, limits: Sequence[RouteLimit], stack: AsyncExitStack
    ) -> Decision | None:
        """Ask ``limits``, where they concern this request; leases last as long as ``stack``."""
        keys = [(limit, limit.by(connection)) for limit in limits]
        checks = [Check(limit.rule, key, limit.cost) for limit, key in keys if key is not None]
        return await stack.enter_async_context(self.limits.admit(*checks)) if checks else None

    async def admit_routed(self, connection: Connection, stack: AsyncExitStack) -> Decision | None:
        """Ask the switches and limits of the route."""
        handler = connection.route_handler
        for name in handler.opt.get(_SWITCHES, ()):
            if self.switches is not None:
                self.switches.require(name)
        return await self.admit(connection, self.of(handler), stack)

    def _document(self, handler: Any, declared: tuple[RouteLimit, ...], *, switched: bool) -> None:
        rules = [self.limits.config.rules[limit.rule] for limit in declared]
        errors = [
            *([RateLimited] if any(not isinstance(rule, Concurrent) for rule in rules) else []),
            *([TooManyAtOnce] if any(isinstance(rule, Concurrent) for rule in rules) else []),
            *([Overloaded] if self.shedder is not None else []),
            *([FeatureOff] if switched else []),
        ]
        if errors:
            handler.responses = {**refusals(*errors), **(handler.responses or {})}

    @asynccontextmanager
    async def _lifespan(self, app: Litestar) -> AsyncIterator[None]:
        self._app = app
        async with running([part for part in (self.limits, self.shedder, self.switches) if part is not None]):
            yield


class _Edge:
    """Outside of everything Litestar does for a route."""

    def __init__(self, app: ASGIApp, plugin: LimitsPlugin) -> None:
        self._app = app
        self._plugin = plugin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[_STATE] = True  # type: ignore[literal-required]  # routed
        connection: Connection = ASGIConnection(scope, receive, send)
        await through(
            self._app,
            scope,
            receive,
            send,  # type: ignore[arg-type]
            admit=partial(self._plugin.admit_routed, connection),
            shedder=self._plugin.shedder,
            priority=self._plugin.priority_of(connection),
        )


class _Unrouted:
    """What an application sends: asked about limits when it turns out that no route has answered."""

    def __init__(self, plugin: LimitsPlugin, scope: Scope, send: Send, stack: AsyncExitStack) -> None:
        self._plugin = plugin
        self._scope = scope
        self._send: Any = send
        self._stack = stack
        self._begun = False
        self._refused = False

    async def send(self, message: Message) -> None:
        if not self._begun:
            self._begun = True
            if _STATE not in self._scope and not self._grants_preflight(message):
                await self._ask()
        if not self._refused:
            await self._send(message)

    def _grants_preflight(self, message: Message) -> bool:
        scope: Any = self._scope
        status: Any = message.get("status", 500)
        if scope["type"] != "http" or scope["method"] != "OPTIONS" or status >= 300:
            return False
        names = {name for name, _ in scope["headers"]}
        return names >= {b"origin", b"access-control-request-method"}

    async def _ask(self) -> None:
        connection: Connection = ASGIConnection(self._scope)
        try:
            decision = await self._plugin.admit(connection, self._plugin.default, self._stack)
        except LimitExceeded as error:
            self._refused = True
            await refuse(error, self._scope, self._send)
        else:
            self._send = with_headers(self._send, decision)


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


# What an administrator does

Reason = Annotated[str, Meta(min_length=1, max_length=200, description="for whoever reads the events")]
ReasonQuery = Annotated[str, QueryParameter(min_length=1, max_length=200)]
Name = Annotated[str, PathParameter(max_length=64)]
Actor = Callable[[Connection], str]
"""Who is changing something: the subject of the event."""


class RuleOut(msgspec.Struct, frozen=True, kw_only=True):
    """A rule: what holds, and what the configuration says."""

    name: str
    rule: Rule
    configured: Rule
    changed: bool


class RuleIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rule that is to hold from now on, and why."""

    rule: Rule
    reason: Reason


class ForgiveIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose spending is forgotten, and why."""

    key: Annotated[str, Meta(min_length=1, max_length=256, description="an address, a user: what the limit counts by")]
    reason: Reason


class Forgiven(msgspec.Struct, frozen=True, kw_only=True):
    """Who starts afresh."""

    name: str
    key: str


class SwitchOut(msgspec.Struct, frozen=True, kw_only=True):
    """A switch as set, and ``mode``: what holds, with what it follows."""

    name: str
    mode: Mode
    switch: Switch
    configured: Switch
    changed: bool


class SwitchIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the switch is to stand from now on, and why."""

    switch: Switch
    reason: Reason


def limits_admin_router(limits: Limits, actor: Actor, path: str = "/limits", *, guards: Sequence[Guard]) -> Router:
    """Below ``path``: GET, and by name PUT (change), DELETE ``?reason=`` (restore), POST ``/forgiven`` (one key).

    ``guards``, at least one, let administrators in and nobody else. Each change is told as an event of the limits whose
    subject is ``actor``; all processes have it within ``refresh_s``.
    """
    _require_guards("limits_admin_router", guards)

    def shown(name: str) -> RuleOut:
        rule, configured = limits.rules[name], limits.config.rules[name]
        return RuleOut(name=name, rule=rule, configured=configured, changed=rule != configured)

    @get("/", summary="All rules", operation_id="LimitsAdminList")
    async def rules() -> Envelope[Page[RuleOut]]:
        return ok(Page(items=[shown(name) for name in limits.rules]))

    @put(
        "/{name:str}",
        summary="Change a rule",
        operation_id="LimitsAdminChange",
        responses=refusals(RuleUnknown, RuleOfAnotherKind),
    )
    async def change(request: Request[Any, Any, Any], name: Name, data: Annotated[RuleIn, Body()]) -> Envelope[RuleOut]:
        """For all processes, until it is restored. What keys have spent goes on to count."""
        await limits.change(name, data.rule, by=actor(request), reason=data.reason)
        return ok(shown(name))

    @delete(
        "/{name:str}",
        status_code=200,
        summary="Back to the configured rule",
        operation_id="LimitsAdminRestore",
        responses=refusals(RuleUnknown),
    )
    async def restore(request: Request[Any, Any, Any], name: Name, reason: ReasonQuery) -> Envelope[RuleOut]:
        await limits.restore(name, by=actor(request), reason=reason)
        return ok(shown(name))

    @post(
        "/{name:str}/forgiven",
        status_code=200,
        summary="Let one key start afresh",
        operation_id="LimitsAdminForgive",
        responses=refusals(RuleUnknown),
    )
    async def forgive(
        request: Request[Any, Any, Any], name: Name, data: Annotated[ForgiveIn, Body()]
    ) -> Envelope[Forgiven]:
        """For somebody who was locked out by mistake."""
        await limits.forgive(name, data.key, by=actor(request), reason=data.reason)
        return ok(Forgiven(name=name, key=data.key))

    handlers = [rules, change, restore, forgive]
    return Router(path, route_handlers=handlers, guards=guards, tags=["traffic administration"])


def switches_admin_router(
    switches: Switches, actor: Actor, path: str = "/switches", *, guards: Sequence[Guard]
) -> Router:
    """As :func:`limits_admin_router`: below ``path`` GET, and by name PUT (change), DELETE ``?reason=`` (restore)."""
    _require_guards("switches_admin_router", guards)

    def shown(name: str) -> SwitchOut:
        switch, configured = switches.switches[name], switches.config.switches[name]
        return SwitchOut(
            name=name,
            mode=switches.mode(name),
            switch=switch,
            configured=configured,
            changed=switch != configured,
        )

    @get("/", summary="All switches", operation_id="SwitchesAdminList")
    async def all_switches() -> Envelope[Page[SwitchOut]]:
        return ok(Page(items=[shown(name) for name in switches.switches]))

    @put(
        "/{name:str}",
        summary="Turn a feature on, down or off",
        operation_id="SwitchesAdminChange",
        responses=refusals(SwitchUnknown),
    )
    async def change(
        request: Request[Any, Any, Any], name: Name, data: Annotated[SwitchIn, Body()]
    ) -> Envelope[SwitchOut]:
        """For all processes, until it is restored. Clients read its answer."""
        await switches.change(name, data.switch, by=actor(request), reason=data.reason)
        return ok(shown(name))

    @delete(
        "/{name:str}",
        status_code=200,
        summary="Back to the configured position",
        operation_id="SwitchesAdminRestore",
        responses=refusals(SwitchUnknown),
    )
    async def restore(request: Request[Any, Any, Any], name: Name, reason: ReasonQuery) -> Envelope[SwitchOut]:
        await switches.restore(name, by=actor(request), reason=reason)
        return ok(shown(name))

    handlers = [all_switches, change, restore]
    return Router(path, route_handlers=handlers, guards=guards, tags=["traffic administration"])


def _require_guards(router: str, guards: Sequence[Guard]) -> None:
    if not guards:
        raise ImproperlyConfiguredException(f"{router} needs a guard: without one everybody could change what holds")

"""The Litestar edge: who is calling, declared where it matters. Extra: ``[litestar]``.

A route is open unless it says otherwise: ``guards=[authenticated]`` on a route, router or application,
``guards=[permitted("image:create")]``, or ``guards=[ticketed]`` for WebSocket and SSE. The plugin finds guarded
routes and documents them. Errors become answers through ``daydo_kernel.litestar.KernelPlugin``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy
from typing import Annotated, Any

import msgspec
from litestar import Litestar, Request, Router, post
from litestar.config.app import AppConfig
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.openapi.spec import Components, SecurityScheme
from litestar.params import Body
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.routes import BaseRoute, HTTPRoute
from litestar.types import Guard

from daydo_kernel import Envelope, get_context, ok
from daydo_kernel.litestar import refusals

from .auth import Auth
from .errors import Forbidden, RefreshReused, SessionRevoked, TicketInvalid, TokenExpired, TokenInvalid, TokenMissing
from .model import Principal, Tokens

Connection = ASGIConnection[Any, Any, Any, Any]

SCHEME = "bearer"
_STATE = "daydo_auth"


class RefreshIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``POST /refresh`` takes."""

    refresh_token: str


class TokensOut(msgspec.Struct, frozen=True):
    """What a client is given on login and refresh."""

    access_token: str
    refresh_token: str
    expires_in_s: int

    @classmethod
    def of(cls, tokens: Tokens) -> TokensOut:
        return cls(tokens.access, tokens.refresh, tokens.expires_in_s)


class LoggedOut(msgspec.Struct, frozen=True):
    """The session that has ended."""

    session_id: str


class TicketOut(msgspec.Struct, frozen=True):
    """A ticket for ``?ticket=``: good for one connection within ``expires_in_s``."""

    ticket: str
    expires_in_s: float


async def authenticated(connection: Connection, handler: BaseRouteHandler) -> None:
    """A guard: exactly one good Authorization header; ``connection.user`` is the :class:`Principal` then.

    Raises:
        TokenMissing, TokenInvalid, TokenExpired, SessionRevoked: see :meth:`daydo_auth.Auth.verify`.
    """
    headers = [value for name, value in connection.scope["headers"] if name == b"authorization"]
    if len(headers) > 1:
        raise TokenInvalid()
    _enter(connection, _auth_of(connection).verify(headers[0].decode("latin-1") if headers else None))


def permitted(*permissions: str) -> Guard:
    """A guard: authenticated, and with all of ``permissions``.

    Raises:
        Forbidden: one is missing; besides what :func:`authenticated` raises.
    """

    async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        await authenticated(connection, handler)
        for permission in permissions:
            connection.user.require(permission)

    guard.daydo_permissions = permissions  # type: ignore[attr-defined]
    return guard


async def ticketed(connection: Connection, handler: BaseRouteHandler) -> None:
    """A guard for WebSocket and SSE: the single-use ticket in ``?ticket=``. Redis gone: nobody gets in.

    Raises:
        TicketInvalid, SessionRevoked: see :meth:`daydo_auth.Auth.redeem_ticket`.
    """
    tickets = connection.query_params.getall("ticket", [])
    if len(tickets) != 1:
        raise TicketInvalid()
    _enter(connection, await _auth_of(connection).redeem_ticket(tickets[0]))


class AuthPlugin(InitPlugin, ReceiveRoutePlugin):
    """Runs ``auth`` with the application, lets the guards find it, and documents guarded routes.

    Its database and Redis must run already: put them into ``lifespan=``.
    """

    def __init__(self, auth: Auth) -> None:
        self._auth = auth

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        app_config.lifespan = [*app_config.lifespan, self._lifespan]
        app_config.state[_STATE] = self._auth
        if (openapi := app_config.openapi_config) is not None:
            known = openapi.components if isinstance(openapi.components, list) else [openapi.components]
            scheme = Components(security_schemes={SCHEME: SecurityScheme("http", scheme=SCHEME, bearer_format="JWT")})
            app_config.openapi_config = copy(openapi)  # Litestar's default is one object for every application
            app_config.openapi_config.components = [*known, scheme]
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                _document(handler)

    @asynccontextmanager
    async def _lifespan(self, app: Litestar) -> AsyncIterator[None]:
        async with self._auth:
            yield


def auth_router(auth: Auth, path: str = "/auth") -> Router:
    """``POST /refresh`` and ``POST /logout`` below ``path``; registering and logging in are your application's."""

    @post(
        "/refresh",
        status_code=200,
        summary="The next pair of tokens",
        operation_id="AuthRefresh",
        responses=refusals(TokenInvalid, TokenExpired, RefreshReused, SessionRevoked),
    )
    async def refresh(data: Annotated[RefreshIn, Body()]) -> Envelope[TokensOut]:
        return ok(TokensOut.of(await auth.refresh(data.refresh_token)))

    @post("/logout", status_code=200, guards=[authenticated], summary="End this session", operation_id="AuthLogout")
    async def logout(request: Request[Principal, Any, Any]) -> Envelope[LoggedOut]:
        await auth.logout(request.user)
        return ok(LoggedOut(request.user.session_id))

    return Router(path, route_handlers=[refresh, logout], tags=["auth"])


def live_ticket_handler(auth: Auth, path: str = "/live-tickets") -> HTTPRouteHandler:
    """``POST path``: a ticket for one WebSocket or SSE connection, in ``?ticket=``."""

    @post(
        path,
        guards=[authenticated],
        tags=["auth"],
        summary="A ticket for one live connection",
        operation_id="LiveTicket",
    )
    async def live_ticket(request: Request[Principal, Any, Any]) -> Envelope[TicketOut]:
        return ok(TicketOut(await auth.issue_ticket(request.user), auth.config.ticket_ttl_s))

    return live_ticket


def _auth_of(connection: Connection) -> Auth:
    auth: Auth = connection.app.state[_STATE]
    return auth


def _enter(connection: Connection, principal: Principal) -> None:
    connection.scope["user"] = principal
    if (context := get_context()) is not None:
        context.tenant, context.subject = principal.tenant, principal.subject


def _document(handler: HTTPRouteHandler) -> None:
    # All guards here are coroutine functions: Litestar replaces others by wrappers, and runs them in threads.
    guards = handler.resolve_guards()
    permissions = [guard.daydo_permissions for guard in guards if hasattr(guard, "daydo_permissions")]
    if permissions or authenticated in guards:
        errors = [TokenMissing, TokenInvalid, TokenExpired, SessionRevoked, *([Forbidden] if permissions else [])]
        handler.security = [{SCHEME: []}]
    elif ticketed in guards:
        errors = [TicketInvalid, SessionRevoked]
    else:
        return
    handler.responses = {**refusals(*errors), **(handler.responses or {})}

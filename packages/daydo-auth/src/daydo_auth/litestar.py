"""The Litestar edge: who is calling, declared where it matters. Extra: ``[litestar]``.

Every route says who may call it, on itself, its router or the application: ``guards=[authenticated]``,
``guards=[permitted("image:create")]``, ``guards=[ticketed]`` for WebSocket and SSE, or ``guards=[anyone]``. The plugin
finds guarded routes and documents them; :func:`route_postures` lists all, for a page and for the test that none was
forgotten. Errors become answers through ``daydo_kernel.litestar.KernelPlugin``.

A caller brings one Authorization header (an access token, an API key, a signature) or, from a web page of
:func:`web_sessions_router`, a cookie; changes by cookie bring a CSRF token as well. ``guards=[person]`` lets no key in,
``guards=[fresh(300)]`` only who has proven themselves lately.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

import msgspec
from litestar import Litestar, Request, Router, delete, get, post
from litestar.config.app import AppConfig
from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Components, Reference, SecurityScheme
from litestar.params import Body, PathParameter
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.response import Response
from litestar.routes import BaseRoute, HTTPRoute, WebSocketRoute
from litestar.types import Guard
from msgspec import Meta

from daydo_kernel import (
    BadRequest,
    DaydoError,
    Envelope,
    FieldError,
    Page,
    PayloadTooLarge,
    UnsupportedMediaType,
    get_context,
    isoformat,
    ok,
)
from daydo_kernel.litestar import refusals

from .asgi import SAFE_METHODS
from .auth import Auth
from .cookies import ACCESS_COOKIE, CSRF_HEADER, Cookies, WebCookie, refresh_cookie_of
from .errors import (
    AccountDisabled,
    AuthError,
    CodesLimited,
    CodesUnavailable,
    CodeWrong,
    CsrfInvalid,
    Forbidden,
    HashingSaturated,
    HeaderRefused,
    JsonRefused,
    KeyInvalid,
    KeyRefused,
    KeyUnknown,
    NoncesUnavailable,
    OriginRefused,
    PersonRequired,
    RefreshReused,
    RequestTimedOut,
    RequestTooSlow,
    SessionRevoked,
    SessionsUnavailable,
    SessionUnknown,
    SignatureInvalid,
    StepUpRequired,
    TicketInvalid,
    TicketsUnavailable,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
    TokenStale,
    WrongCredentials,
)
from .key_rows import ApiKey, KeyKind
from .keys import MAX_NAME_CHARS, MAX_SCOPES
from .model import Code, Password, Principal, Tokens, Way
from .permissions import Grant
from .presented import Presented
from .sql_sessions import SessionInfo

Connection = ASGIConnection[Any, Any, Any, Any]
Caller = Request[Principal, Any, Any]
SessionId = Annotated[str, PathParameter(pattern=r"^[!-~]{1,48}$")]

SCHEME = "bearer"
COOKIE_SCHEME = "cookie"
SIGNATURE_SCHEME = "signature"
_STATE = "daydo_auth"
_COOKIES = "daydo_auth_cookies"
_ENTERED = "daydo_auth_entered"
_CSRF = "daydo_csrf"  # of a route that checks it itself

Access = Literal["anyone", "authenticated", "person", "ticket"]


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


class SessionOut(msgspec.Struct, frozen=True):
    """Where somebody is logged in; ``current``: the session that asks."""

    id: str
    device: str
    created_at: str
    last_used_at: str
    current: bool

    @classmethod
    def of(cls, session: SessionInfo) -> SessionOut:
        created_at, last_used_at = isoformat(session.created_at_us), isoformat(session.last_used_at_us)
        return cls(session.id, session.device, created_at, last_used_at, session.current)


class SessionsEnded(msgspec.Struct, frozen=True):
    """How many sessions were ended."""

    ended: int


class WebLoginIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a page logs in with: ``login`` is a phone number, an address, a name."""

    login: Annotated[str, Meta(min_length=1, max_length=254)]
    password: Annotated[str, Meta(min_length=1, max_length=1_024)]
    device: Annotated[str, Meta(max_length=64)] = "web"

    def __repr__(self) -> str:
        return "WebLoginIn(***)"


class WebSession(msgspec.Struct, frozen=True):
    """What a page may know of its session: who it is, what it sends as ``X-CSRF-Token``, for how long it is good.

    ``expires_in_s`` 0: as long as it was said before.
    """

    subject: str
    csrf_token: str
    expires_in_s: int


class KeyIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key to be made. ``expires_in_s`` absent: it does not expire."""

    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
    scopes: Annotated[list[Grant], Meta(min_length=1, max_length=MAX_SCOPES)]
    kind: KeyKind = "bearer"
    expires_in_s: Annotated[int, Meta(ge=60, le=315_360_000)] | None = None


class KeyOut(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key of mine; times that are absent are never. ``works``: neither revoked nor expired."""

    id: str
    kind: KeyKind
    name: str
    scopes: tuple[str, ...]
    works: bool
    created_at: str
    expires_at: str | msgspec.UnsetType = msgspec.UNSET
    revoked_at: str | msgspec.UnsetType = msgspec.UNSET
    used_at: str | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def of(cls, key: ApiKey, now_us: int) -> KeyOut:
        times = (key.expires_at_us, key.revoked_at_us, key.used_at_us)
        shown = [isoformat(each) if each else msgspec.UNSET for each in times]
        works = key.works_at(now_us)
        return cls(key.id, key.kind, key.name, key.scopes, works, isoformat(key.created_at_us), *shown)


class NewKeyOut(msgspec.Struct, frozen=True):
    """A key that was just made. ``secret`` is shown this once; see :class:`daydo_auth.NewKey` for what it is."""

    key: KeyOut
    secret: str

    def __repr__(self) -> str:
        return f"NewKeyOut(id={self.key.id!r}, ***)"


class KeyRevoked(msgspec.Struct, frozen=True):
    """The key that works no more."""

    key_id: str


class StepUpIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One's login, with the password or with a code that was sent for the purpose ``step_up``."""

    login: Annotated[str, Meta(min_length=1, max_length=254)]
    password: Annotated[str, Meta(min_length=1, max_length=1_024)] | None = None
    code: Annotated[str, Meta(min_length=1, max_length=16)] | None = None

    def __repr__(self) -> str:
        return "StepUpIn(***)"


class AccessOut(msgspec.Struct, frozen=True):
    """Another access token of the same session; the refresh token stays."""

    access_token: str
    expires_in_s: int


class TicketOut(msgspec.Struct, frozen=True):
    """A ticket for ``?ticket=``: good for one connection within ``expires_in_s``."""

    ticket: str
    expires_in_s: float


class RoutePosture(msgspec.Struct, frozen=True, kw_only=True):
    """Who may call one route.

    Attributes:
        method: ``GET``, …, ``WEBSOCKET``, ``ASGI``.
        access: None where nothing was declared.
        ways: what a caller may show.
        permissions: all of which they need.
        csrf: whether a caller by cookie needs a CSRF token.
        fresh_s: how long ago they may have proved themselves; 0: any time.
    """

    method: str
    path: str
    access: Access | None
    ways: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()
    csrf: bool = False
    fresh_s: float = 0.0


async def anyone(connection: Connection, handler: BaseRouteHandler) -> None:
    """A guard that lets everybody in, and so says that this is meant."""


async def authenticated(connection: Connection, handler: BaseRouteHandler) -> None:
    """A guard: whoever can show who they are, by any way in; ``connection.user`` is who then.

    Raises:
        AuthError: see :meth:`daydo_auth.Auth.authenticate`.
    """
    scope: Any = connection.scope
    if _ENTERED in scope:  # by another guard of this route; a signed request counts once
        return
    presented = Presented.of_scope(scope, connection.body) if isinstance(connection, Request) else None
    _enter(connection, await _auth_of(connection).authenticate(presented or Presented.of_scope(scope)))
    scope[_ENTERED] = True


async def person(connection: Connection, handler: BaseRouteHandler) -> None:
    """A guard: authenticated, and not through an API key: for sessions, keys and passwords.

    Raises:
        PersonRequired: a key; besides what :func:`authenticated` raises.
    """
    await authenticated(connection, handler)
    connection.user.require_person()


def fresh(within_s: float) -> Guard:
    """A guard: a person who has proven themselves less than ``within_s`` ago, when logging in or since.

    Raises:
        StepUpRequired: longer ago; see :meth:`daydo_auth.Auth.step_up`. Besides what :func:`person` raises.
    """

    async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        await authenticated(connection, handler)
        _auth_of(connection).require_fresh(connection.user, within_s)

    guard.daydo_fresh_s = within_s  # type: ignore[attr-defined]
    return guard


def permitted(*permissions: str) -> Guard:
    """A guard: authenticated, and with all of ``permissions``.

    Raises:
        Forbidden: one is missing; besides what :func:`authenticated` raises.
    """

    async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        await authenticated(connection, handler)
        connection.user.require(*permissions)

    guard.daydo_permissions = permissions  # type: ignore[attr-defined]
    return guard


async def ticketed(connection: Connection, handler: BaseRouteHandler) -> None:
    """A guard for WebSocket and SSE: the single-use ticket in ``?ticket=``. Redis away: nobody gets in.

    Raises:
        TicketInvalid, TicketsUnavailable, SessionRevoked, KeyInvalid, TokenStale: see
            :meth:`daydo_auth.Auth.redeem_ticket`.
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
        app_config.state[_COOKIES] = Cookies(self._auth.config)
        if (openapi := app_config.openapi_config) is not None:
            known = openapi.components if isinstance(openapi.components, list) else [openapi.components]
            schemes: dict[str, SecurityScheme | Reference] = {
                SCHEME: SecurityScheme(
                    "http", scheme=SCHEME, bearer_format="JWT", description="an access token, or an API key `dk_…`"
                ),
                SIGNATURE_SCHEME: SecurityScheme(
                    "apiKey",
                    name="Authorization",
                    security_scheme_in="header",
                    description="`bce-auth-v1/…`, made with a signing key",
                ),
                COOKIE_SCHEME: SecurityScheme(
                    "apiKey",
                    name=ACCESS_COOKIE,
                    security_scheme_in="cookie",
                    description=f"web pages; changes also need the header {CSRF_HEADER}",
                ),
            }
            app_config.openapi_config = copy(openapi)  # Litestar's default is one object for every application
            app_config.openapi_config.components = [*known, Components(security_schemes=schemes)]
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                _document_guards(handler)

    @asynccontextmanager
    async def _lifespan(self, app: Litestar) -> AsyncIterator[None]:
        async with self._auth:
            yield


def auth_router(auth: Auth, path: str = "/auth", *, refresh_opt: Mapping[str, Any] | None = None) -> Router:
    """``POST /refresh``, ``POST /logout`` and the sessions below ``path``; logging in is your application's.

    ``refresh_opt``: the ``opt=`` of refreshing, where its limit belongs: who refreshes shows no access token.
    """

    @post(
        "/refresh",
        status_code=200,
        guards=[anyone],
        opt=refresh_opt,
        summary="The next pair of tokens",
        operation_id="AuthRefresh",
        responses=refusals(TokenInvalid, TokenExpired, RefreshReused, SessionRevoked, SessionsUnavailable),
    )
    async def refresh(data: Annotated[RefreshIn, Body()]) -> Envelope[TokensOut]:
        return ok(TokensOut.of(await auth.refresh(data.refresh_token)))

    @post("/logout", status_code=200, guards=[person], summary="End this session", operation_id="AuthLogout")
    async def logout(request: Caller) -> Envelope[LoggedOut]:
        await auth.logout(request.user)
        return ok(LoggedOut(request.user.session_id))

    @get("/sessions", guards=[person], summary="Where I am logged in", operation_id="AuthSessions")
    async def sessions(request: Caller) -> Envelope[Page[SessionOut]]:
        """The last used first, at most 100."""
        return ok(Page(items=[SessionOut.of(session) for session in await auth.sessions.list(request.user)]))

    @delete(
        "/sessions",
        status_code=200,
        guards=[person],
        summary="Log out everywhere else",
        operation_id="AuthEndOtherSessions",
    )
    async def end_others(request: Caller) -> Envelope[SessionsEnded]:
        """All sessions but the one that asks."""
        user = request.user
        return ok(SessionsEnded(await auth.sessions.end_all(user.subject, tenant=user.tenant, but=user.session_id)))

    @delete(
        "/sessions/{session_id:str}",
        status_code=200,
        guards=[person],
        summary="Log out one device",
        operation_id="AuthEndSession",
        responses=refusals(SessionUnknown),
    )
    async def end(request: Caller, session_id: SessionId) -> Envelope[LoggedOut]:
        """One of my own sessions, this one included."""
        await auth.sessions.end(request.user, session_id)
        return ok(LoggedOut(session_id))

    return Router(path, route_handlers=[refresh, logout, sessions, end_others, end], tags=["auth"])


def web_sessions_router(
    auth: Auth,
    path: str = "/auth/web",
    *,
    tenant: str = "",
    login_opt: Mapping[str, Any] | None = None,
    refresh_opt: Mapping[str, Any] | None = None,
) -> Router:
    """For web pages, whose scripts never see a token: ``POST /login``, ``POST /refresh``, ``POST /logout``,
    ``GET /session`` below ``path``.

    The tokens live in ``__Host-`` cookies; the page keeps the CSRF token of the answer in memory, sends it as
    ``X-CSRF-Token`` with every change, and asks ``GET /session`` for it after a reload. ``login_opt`` and
    ``refresh_opt``: the ``opt=`` of logging in and refreshing, where their limits belong.
    """
    cookies = Cookies(auth.config)

    def answer(tokens: Tokens) -> Response[Envelope[WebSession]]:
        session = WebSession(tokens.subject, cookies.csrf_token(tokens.session_id), tokens.expires_in_s)
        return Response(ok(session), cookies=_kept(cookies.of(tokens)))

    @post(
        "/login",
        status_code=200,
        guards=[anyone],
        opt=login_opt,
        summary="Log a page in",
        operation_id="WebLogin",
        responses=refusals(WrongCredentials, HashingSaturated),
    )
    async def login(data: Annotated[WebLoginIn, Body()]) -> Response[Envelope[WebSession]]:
        return answer(await auth.login(Password(data.login, data.password), device=data.device, tenant=tenant))

    @post(
        "/refresh",
        status_code=200,
        guards=[anyone],
        opt={_CSRF: True, **(refresh_opt or {})},
        summary="Keep a page logged in",
        operation_id="WebRefresh",
        responses=refusals(
            TokenMissing, TokenInvalid, TokenExpired, RefreshReused, SessionRevoked, CsrfInvalid, SessionsUnavailable
        ),
    )
    async def refresh(request: Request[Any, Any, Any]) -> Response[Envelope[WebSession]]:
        headers = request.scope["headers"]
        token, session_id = refresh_cookie_of(headers)
        cookies.require_csrf(session_id, headers)
        return answer(await auth.refresh(token))

    @post("/logout", status_code=200, guards=[person], summary="Log a page out", operation_id="WebLogout")
    async def logout(request: Caller) -> Response[Envelope[LoggedOut]]:
        await auth.logout(request.user)
        return Response(ok(LoggedOut(request.user.session_id)), cookies=_kept(cookies.gone()))

    @get("/session", guards=[person], summary="Who this page is", operation_id="WebSession", sync_to_thread=False)
    def session(request: Caller) -> Envelope[WebSession]:
        return ok(WebSession(request.user.subject, cookies.csrf_token(request.user.session_id), 0))

    return Router(path, route_handlers=[login, refresh, logout, session], tags=["auth"])


def keys_router(auth: Auth, path: str = "/api-keys", *, fresh_s: float = 900.0) -> Router:
    """``GET``, ``POST``, ``DELETE /{id}`` below ``path``: a person's own API keys.

    Who makes one has proven themselves within ``fresh_s``; see :func:`step_up_handler`.
    """

    @get(guards=[person], summary="My API keys", operation_id="ApiKeys")
    async def keys(request: Caller) -> Envelope[Page[KeyOut]]:
        """The newest first: all that work, and the last that were revoked or expired."""
        found = await auth.keys.list(request.user)
        return ok(Page(items=[KeyOut.of(key, auth.now_us()) for key in found]))

    @post(
        guards=[fresh(fresh_s)],
        summary="Make an API key",
        operation_id="MakeApiKey",
        responses=refusals(Forbidden, KeyRefused),
    )
    async def make(request: Caller, data: Annotated[KeyIn, Body()]) -> Envelope[NewKeyOut]:
        """Its secret is in this answer and nowhere else. It may do what its scopes and my roles both allow."""
        now_us = auth.now_us()
        new = await auth.keys.create(
            request.user.subject,
            tenant=request.user.tenant,
            name=data.name,
            scopes=data.scopes,
            kind=data.kind,
            expires_at_us=now_us + data.expires_in_s * 1_000_000 if data.expires_in_s else 0,
            by=request.user,
        )
        return ok(NewKeyOut(KeyOut.of(new.key, now_us), new.secret))

    @delete(
        "/{key_id:str}",
        status_code=200,
        guards=[person],
        summary="Revoke an API key",
        operation_id="RevokeApiKey",
        responses=refusals(KeyUnknown),
    )
    async def revoke(request: Caller, key_id: SessionId) -> Envelope[KeyRevoked]:
        """It works no more, at once here and within a second or so everywhere."""
        await auth.keys.revoke(request.user, key_id)
        return ok(KeyRevoked(key_id))

    return Router(path, route_handlers=[keys, make, revoke], tags=["auth"])


def step_up_handler(
    auth: Auth,
    path: str = "/auth/step-up",
    *,
    address_of: Callable[[Caller], str] = lambda _: "",
    opt: Mapping[str, Any] | None = None,
) -> HTTPRouteHandler:
    """``POST path``: prove oneself again, for routes with ``guards=[fresh(…)]``.

    ``address_of`` says where a request comes from, for the limit of wrong codes: without proxies
    ``lambda request: request.client.host``. ``opt``: where your own limit belongs.
    """

    @post(
        path,
        status_code=200,
        guards=[person],
        opt=opt,
        tags=["auth"],
        summary="Prove oneself again",
        operation_id="StepUp",
        responses=refusals(WrongCredentials, CodeWrong, CodesLimited, CodesUnavailable, HashingSaturated),
    )
    async def step_up(request: Caller, data: Annotated[StepUpIn, Body()]) -> Envelope[AccessOut]:
        """The login's password, or a code that was sent to it for the purpose `step_up`."""
        if (data.password is None) == (data.code is None):
            raise BadRequest(fields=(FieldError("password", "请提供密码或验证码", "Give a password or a code"),))
        credential = Code(data.login, data.code) if data.code is not None else Password(data.login, data.password or "")
        token = await auth.step_up(request.user, credential, address=address_of(request))
        return ok(AccessOut(token.access, token.expires_in_s))

    return step_up


def live_ticket_handler(
    auth: Auth, path: str = "/live-tickets", *, permissions: Sequence[str] = ()
) -> HTTPRouteHandler:
    """``POST path``: a ticket for one WebSocket or SSE connection, in ``?ticket=``, for who has ``permissions``."""

    @post(
        path,
        guards=[permitted(*permissions) if permissions else authenticated],
        tags=["auth"],
        summary="A ticket for one live connection",
        operation_id="LiveTicket",
        responses=refusals(TicketsUnavailable),
    )
    async def live_ticket(request: Caller) -> Envelope[TicketOut]:
        return ok(TicketOut(await auth.issue_ticket(request.user), auth.config.ticket_ttl_s))

    return live_ticket


async def until_refused(connection: Connection, *permissions: str) -> AuthError:
    """For a stream behind :func:`ticketed`: wait until its next request would be refused; with what error.

    End the stream then, a WebSocket with ``4000 + error.status``; see :meth:`daydo_auth.Auth.until_refused`.
    """
    return await _auth_of(connection).until_refused(connection.user, *permissions)


def _auth_of(connection: Connection) -> Auth:
    auth: Auth = connection.app.state[_STATE]
    return auth


def _enter(connection: Connection, principal: Principal) -> None:
    connection.scope["user"] = principal
    if (context := get_context()) is not None:
        context.tenant, context.subject = principal.tenant, principal.subject


def _cookies_of(connection: Connection) -> Cookies:
    cookies: Cookies = connection.app.state[_COOKIES]
    return cookies


def _kept(cookies: list[WebCookie]) -> list[Cookie]:
    return [
        Cookie(
            cookie.name,
            value=cookie.value,
            max_age=cookie.ttl_s,
            httponly=True,
            secure=True,
            samesite=cookie.same_site,
        )
        for cookie in cookies
    ]


# What the routes are: for the document, and for the list


class ShieldPlugin(ReceiveRoutePlugin):
    """Documents what a :class:`daydo_auth.asgi.Shield` around the application refuses."""

    def receive_route(self, route: BaseRoute) -> None:
        for handler in route.route_handlers if isinstance(route, HTTPRoute) else ():
            errors: list[type[DaydoError]] = [HeaderRefused, JsonRefused, RequestTimedOut]
            if handler.http_methods - SAFE_METHODS:
                errors += [OriginRefused, PayloadTooLarge, RequestTooSlow, UnsupportedMediaType]
            _document(handler, errors)


def route_postures(app: Litestar) -> list[RoutePosture]:
    """Who may call each method and path of ``app``, in the order of the paths::

    assert [route for route in route_postures(app) if route.access is None] == []
    """
    return [
        _posture(handler, method, route.path)
        for route in sorted(app.routes, key=lambda route: route.path)
        for handler in _handlers(route)
        for method in _methods(handler)
    ]


def _posture(handler: BaseRouteHandler, method: str, path: str) -> RoutePosture:
    guards = handler.resolve_guards()
    access = _access(guards)
    by_cookie = access in ("authenticated", "person") and method != "WEBSOCKET"
    return RoutePosture(
        method=method,
        path=path,
        access=access,
        ways=_ways(access, by_cookie=by_cookie),
        permissions=_permissions(guards),
        csrf=handler.opt.get(_CSRF, by_cookie and method not in SAFE_METHODS),
        fresh_s=_fresh_s(guards),
    )


def _access(guards: list[Guard]) -> Access | None:
    # All guards here are coroutine functions: Litestar replaces others by wrappers, and runs them in threads.
    if person in guards or _fresh_s(guards):
        return "person"
    if authenticated in guards or any(hasattr(guard, "daydo_permissions") for guard in guards):
        return "authenticated"
    if ticketed in guards:
        return "ticket"
    return "anyone" if anyone in guards else None


def _ways(access: Access | None, *, by_cookie: bool) -> tuple[Way, ...]:
    if access not in ("authenticated", "person"):
        return ("ticket",) if access == "ticket" else ()
    keys: tuple[Way, ...] = ("key", "signature") if access == "authenticated" else ()
    return ("bearer", *(("cookie",) if by_cookie else ()), *keys)


def _fresh_s(guards: list[Guard]) -> float:
    """The strictest of them; 0 where there is none."""
    return min((guard.daydo_fresh_s for guard in guards if hasattr(guard, "daydo_fresh_s")), default=0.0)


def _permissions(guards: list[Guard]) -> tuple[str, ...]:
    named = [permission for guard in guards for permission in getattr(guard, "daydo_permissions", ())]
    return tuple(dict.fromkeys(named))


def _handlers(route: BaseRoute) -> list[BaseRouteHandler]:
    if not isinstance(route, HTTPRoute):
        return [cast("WebSocketRoute", route).route_handler]
    return [handler for handler in route.route_handlers if not _is_made_by_litestar(handler)]


def _is_made_by_litestar(handler: HTTPRouteHandler) -> bool:
    """Whether it is the answer to OPTIONS that every path has."""
    return handler.fn.__qualname__.startswith("HTTPRoute.create_options_handler")


def _methods(handler: BaseRouteHandler) -> list[str]:
    if isinstance(handler, HTTPRouteHandler):
        return sorted(handler.http_methods)
    return ["WEBSOCKET" if "websocket" in type(handler).__name__.lower() else "ASGI"]


def _document_guards(handler: HTTPRouteHandler) -> None:
    guards = handler.resolve_guards()
    access = _access(guards)
    if access in ("authenticated", "person"):
        errors: list[type[DaydoError]] = [TokenMissing, TokenInvalid, TokenExpired, SessionRevoked, TokenStale]
        errors += [KeyInvalid, SignatureInvalid, AccountDisabled, NoncesUnavailable]
        errors += [PersonRequired] if access == "person" else []
        errors += [StepUpRequired] if _fresh_s(guards) else []
        errors += [Forbidden] if _permissions(guards) else []
        errors += [CsrfInvalid] if handler.http_methods - SAFE_METHODS else []
        handler.security = [{scheme: []} for scheme in (SCHEME, COOKIE_SCHEME, SIGNATURE_SCHEME)]
        if access == "person":
            handler.security.pop()
        _document(handler, errors)
    elif access == "ticket":
        _document(handler, [TicketInvalid, SessionRevoked, KeyInvalid, TokenStale, TicketsUnavailable])


def _document(handler: HTTPRouteHandler, errors: list[type[DaydoError]]) -> None:
    """Add ``errors`` to what the route says of itself; of one status there is one entry, which names all."""
    known = dict(handler.responses or {})
    for status, spec in refusals(*errors).items():
        before = known.get(status)
        if before is None:
            known[status] = spec
        elif isinstance(before, ResponseSpec) and (spec.description or "") not in (before.description or ""):
            known[status] = replace(before, description=f"{before.description}; {spec.description}")
    handler.responses = known

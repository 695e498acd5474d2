"""Routes for web pages, whose scripts never see a token: the same in cookies, with a CSRF token for changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from litestar import Request, Router, get, post
from litestar.datastructures import Cookie
from litestar.params import Body
from litestar.response import Response
from msgspec import Meta

from daydo_auth.auth import Auth
from daydo_auth.cookies import Cookies, WebCookie, refresh_cookie_of
from daydo_auth.errors import (
    CsrfInvalid,
    HashingSaturated,
    RefreshReused,
    SessionRevoked,
    SessionsUnavailable,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
    WrongCredentials,
)
from daydo_auth.model import Password, Tokens
from daydo_kernel import Envelope, ok
from daydo_kernel.litestar import refusals

from .guards import Caller, anyone, person
from .postures import CSRF
from .session_routes import LoggedOut


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
        opt={CSRF: True, **(refresh_opt or {})},
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

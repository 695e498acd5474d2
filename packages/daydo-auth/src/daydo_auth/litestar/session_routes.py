"""Routes for who is logged in with tokens: refresh, log out, the list of one's sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from litestar import Router, delete, get, post
from litestar.params import Body, PathParameter

from daydo_auth.auth import Auth
from daydo_auth.errors import (
    RefreshReused,
    SessionRevoked,
    SessionsUnavailable,
    SessionUnknown,
    TokenExpired,
    TokenInvalid,
)
from daydo_auth.model import Tokens
from daydo_auth.sql_sessions import SessionInfo
from daydo_kernel import Envelope, Page, isoformat, ok
from daydo_kernel.litestar import refusals

from .guards import Caller, anyone, person

SessionId = Annotated[str, PathParameter(pattern=r"^[!-~]{1,48}$")]


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

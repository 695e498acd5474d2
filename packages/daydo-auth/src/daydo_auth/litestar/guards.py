"""Who may come in: the guards that a route names, and what a stream waits for.

All are coroutine functions: Litestar replaces others by wrappers, and runs them in threads. :mod:`.postures` knows them
again, and reads what they ask for.
"""

from __future__ import annotations

from typing import Any, Final

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard

from daydo_auth.auth import Auth
from daydo_auth.errors import AuthError, TicketInvalid
from daydo_auth.model import Principal
from daydo_auth.presented import Presented
from daydo_kernel import get_context

Connection = ASGIConnection[Any, Any, Any, Any]
Caller = Request[Principal, Any, Any]

STATE: Final = "daydo_auth"
"""Under which name the application's state holds its Auth."""
_ENTERED: Final = "daydo_auth_entered"


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


async def until_refused(connection: Connection, *permissions: str) -> AuthError:
    """For a stream behind :func:`ticketed`: wait until its next request would be refused; with what error.

    End the stream then, a WebSocket with ``4000 + error.status``; see :meth:`daydo_auth.Auth.until_refused`.
    """
    return await _auth_of(connection).until_refused(connection.user, *permissions)


def _auth_of(connection: Connection) -> Auth:
    auth: Auth = connection.app.state[STATE]
    return auth


def _enter(connection: Connection, principal: Principal) -> None:
    connection.scope["user"] = principal
    if (context := get_context()) is not None:
        context.tenant, context.subject = principal.tenant, principal.subject

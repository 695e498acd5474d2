"""Routes that make something out of who one is: a fresh proof for what is sensitive, a ticket for one connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from litestar import post
from litestar.handlers import HTTPRouteHandler
from litestar.params import Body
from msgspec import Meta

from daydo_auth.auth import Auth
from daydo_auth.errors import (
    CodesLimited,
    CodesUnavailable,
    CodeWrong,
    HashingSaturated,
    TicketsUnavailable,
    WrongCredentials,
)
from daydo_auth.model import Code, Password
from daydo_kernel import BadRequest, Envelope, FieldError, ok
from daydo_kernel.litestar import refusals

from .guards import Caller, authenticated, permitted, person


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

"""The Litestar edge: routes that cost quota, what an owner sees, what an administrator does. Extra: ``[litestar]``.

Errors become answers through ``daydo_kernel.litestar.KernelPlugin``, which the application installs once.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

import msgspec
from litestar import Litestar, Router, get, post
from litestar.config.app import AppConfig
from litestar.connection import ASGIConnection, Request
from litestar.exceptions import ImproperlyConfiguredException, ValidationException
from litestar.handlers import BaseRouteHandler
from litestar.params import Body, HeaderParameter, QueryParameter
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.response import Response
from litestar.routes import ASGIRoute, BaseRoute, HTTPRoute, WebSocketRoute
from litestar.types import Guard
from msgspec import Meta

from daydo_db import Tx
from daydo_db.paging import CURSOR_CHARS_MAX
from daydo_kernel import Envelope, Event, Page, isoformat, ok
from daydo_kernel.litestar import refusals

from . import arguments, asgi
from .asgi import BrokenStream, hold_request, request_key, settling
from .blocks import OpenHold
from .errors import (
    AccountBusy,
    BadName,
    BalanceLimit,
    HoldCancelled,
    HoldConfirmed,
    HoldExpired,
    HoldOpen,
    HoldUnknown,
    InsufficientQuota,
    KeyConflict,
    RefundExceedsCharge,
)
from .ledger import Ledger
from .model import Account, AccountBalance, Entry, EntryKind, Grant, Hold, Overage, Phase, Policy
from .rows import MAX_UNITS

Connection = ASGIConnection[Any, Any, Any, Any]

Owner = Callable[[Connection], tuple[str, str]]
"""(tenant, subject) of whoever is asking; raises where nobody is logged in."""

Amounts = Mapping[str, int] | Callable[[Connection], Mapping[str, int]]
"""How much of which unit, or what says so of a request; 0 holds nothing."""


class LedgerPlugin(InitPlugin, ReceiveRoutePlugin):
    """Runs ``ledger`` with the application, and settles and documents the routes that :func:`holding` guards.

    The ledger's database must run already: put it into ``lifespan=``.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        app_config.lifespan = [*app_config.lifespan, self._lifespan]
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        if isinstance(route, ASGIRoute | WebSocketRoute) and _holdings(route.route_handler):
            raise ImproperlyConfiguredException(
                f"{route.path}: holding(…) is for HTTP handlers; use ledger.hold there, or daydo_quota.asgi around it"
            )
        for handler in route.route_handlers if isinstance(route, HTTPRoute) else ():
            if not (found := _holdings(handler)):
                continue
            if found > 1:
                raise ImproperlyConfiguredException(f"{route.path}: name all units in one holding(…)")
            if settling not in (handler.middleware or ()):
                handler.middleware = [*(handler.middleware or ()), cast("Any", settling)]
            errors = refusals(InsufficientQuota, KeyConflict, HoldOpen, HoldConfirmed, HoldCancelled, HoldExpired)
            handler.responses = {**errors, **refusals(AccountBusy), **(handler.responses or {})}

    @asynccontextmanager
    async def _lifespan(self, app: Litestar) -> AsyncIterator[None]:
        async with self._ledger:
            yield


# A route that costs quota


def holding(
    ledger: Ledger,
    amounts: Amounts,
    *,
    owner: Owner,
    key: Callable[[Connection], str] | None = None,
    ttl_s: float | None = None,
    overage: Overage = "reject",
    late: Policy = "reject",
    broken_stream: BrokenStream = "cancel",
    reason: str = "",
) -> Guard:
    """A guard that holds ``amounts`` of the owner's units around the handler; needs :class:`LedgerPlugin`.

    A router may have it, too: each of its routes costs, but for OPTIONS, which Litestar answers by itself.

    Put it after the guard that says who is asking: ``guards=[authenticated, holding(ledger, {"credits": 4},
    owner=owner)]``. An answer below 400 confirms, any other cancels; ``daydo_quota.asgi`` tells the whole of it, of
    streams and of clients that go. ``held(request)`` is the open hold. A body or query that turns out unreadable is an
    answer of 400: the hold was made, and is cancelled.

    Args:
        amounts: several units are held all or none: ``{"credits": 4, "daily": 1}``.
        key: names the operation. By default the ``Idempotency-Key`` header, scoped to owner, method and path, so that
            ``/pictures/1`` and ``/pictures/2`` have each their own; without that header each request is an operation
            of its own (request ids come from clients, and come twice).
        ttl_s: longer than the handler, or the stream, may take.
        overage, late: as :meth:`Ledger.confirm`.
        broken_stream: what becomes of a stream that breaks: ``"charge"`` confirms ``held(request).charge``.
        reason: for the history, which the owner reads; by default method and route.

    Raises:
        InsufficientQuota: the handler is not called.
        HoldOpen: a request with this key is still being worked on. The handler is not called: work would be done
            twice and charged once.
        HoldConfirmed, HoldCancelled, HoldExpired: a request with this key has ended so.
        BadRequest: the ``Idempotency-Key`` is not 1 to 64 visible ASCII characters.
        BadPolicy: at once, for an ``overage``, ``late`` or ``broken_stream`` that there is not.
    """
    arguments.check_policies(overage, late)
    arguments.check_choice("broken_stream", broken_stream, get_args(BrokenStream))

    async def guard(connection: Connection, handler: BaseRouteHandler) -> None:
        if connection.scope.get("method") == "OPTIONS":
            return
        wanted = amounts(connection) if callable(amounts) else amounts
        tenant, subject = owner(connection)
        route = f"{connection.scope.get('method')} {connection.scope.get('path_template')}"
        if legs := [(Account(tenant, subject, unit), amount) for unit, amount in wanted.items() if amount]:
            await hold_request(
                cast("Any", connection.scope),
                ledger,
                legs,
                key=request_key(cast("Any", connection.scope), tenant, subject) if key is None else key(connection),
                ttl_s=ttl_s,
                overage=overage,
                late=late,
                broken_stream=broken_stream,
                reason=reason or route[: arguments.MAX_REASON],
            )

    guard.daydo_holding = True  # type: ignore[attr-defined]
    return guard


def held(connection: Connection, unit: str = "") -> OpenHold:
    """The hold around this request's handler: ``held(request).charge = 2``; of ``unit``, where there are several.

    Raises:
        KeyError: nothing is held, or not of this unit.
    """
    return asgi.held(cast("Any", connection.scope), unit)


def _holdings(handler: BaseRouteHandler) -> int:
    return sum(hasattr(guard, "daydo_holding") for guard in handler.resolve_guards())


# What an owner sees


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an account's history; ``available`` and ``reserved`` are the balances after it."""

    unit: str
    seq: int
    kind: EntryKind
    amount: int
    available: int
    reserved: int
    key: str
    reason: str
    at: str


UnitQuery = Annotated[str | None, QueryParameter(max_length=arguments.MAX_UNIT)]
CursorQuery = Annotated[str | None, QueryParameter(max_length=CURSOR_CHARS_MAX)]
LimitQuery = Annotated[int, QueryParameter(ge=1, le=100)]


def quota_router(ledger: Ledger, owner: Owner, path: str = "/") -> Router:
    """``GET /accounts`` and ``GET /history?unit=&cursor=&limit=`` below ``path``.

    ``key`` and ``reason`` of an entry are the ones your code gave: say nothing there that the owner may not read. Of
    an administrator's key the name is left out.
    """

    @get("/accounts", summary="Balances by unit", operation_id="QuotaAccounts")
    async def accounts(request: Request[Any, Any, Any]) -> Envelope[Page[AccountBalance]]:
        return ok(Page(items=await ledger.accounts(*owner(request))))

    @get(
        "/history",
        summary="What happened to the quota, newest first",
        operation_id="QuotaHistory",
        responses=refusals(BadName),
    )
    async def history(
        request: Request[Any, Any, Any], unit: UnitQuery = None, cursor: CursorQuery = None, limit: LimitQuery = 50
    ) -> Envelope[Page[HistoryEntry]]:
        tenant, subject = owner(request)
        page = await ledger.history(tenant, subject, unit=unit, cursor=cursor, limit=limit)
        return ok(Page(items=[_shown(entry) for entry in page.items], next_cursor=page.next_cursor))

    return Router(path, route_handlers=[accounts, history], tags=["quota"])


def _shown(entry: Entry) -> HistoryEntry:
    return HistoryEntry(
        unit=entry.unit,
        seq=entry.seq,
        kind=entry.kind,
        amount=entry.amount,
        available=entry.available,
        reserved=entry.reserved,
        key=_without_actor(entry.key),
        reason=entry.reason,
        at=isoformat(entry.at_us),
    )


# What an administrator does

Subject = Annotated[str, Meta(pattern=r"^[!-~]{1,128}(?!\n)$", description="whose account, in your own tenant")]
Unit = Annotated[str, Meta(pattern=r"^[!-~]{1,32}(?!\n)$", description="credits, points, …")]
Units = Annotated[int, Meta(ge=1, le=MAX_UNITS)]
Reason = Annotated[
    str, Meta(min_length=1, max_length=arguments.MAX_REASON, description="the account's owner reads it, too")
]
Instant = Annotated[datetime, Meta(tz=True)]

SubjectQuery = Annotated[str, QueryParameter(pattern=r"^[!-~]{1,128}(?!\n)$")]
AdminKey = Annotated[
    str,
    HeaderParameter(name="Idempotency-Key", pattern=r"^[!-~]{1,64}(?!\n)$", description="a repeat changes nothing"),
]

# With spaces, which no other key has: see OwnKey.
_ADMIN_KEY = re.compile(r"admin ([!-~]+) ([!-~]+)")
_EPOCH = datetime.fromtimestamp(0, UTC)


class _Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    subject: Subject
    unit: Unit
    amount: Units
    reason: Reason


class GrantIn(_Change, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Units to give, and why."""

    source: Annotated[str, Meta(pattern=r"^[!-~]{1,32}(?!\n)$")] = "admin"
    priority: Annotated[int, Meta(ge=0, le=arguments.MAX_PRIORITY, description="smaller is used up first")] = 50
    effective_at: Instant | None = None
    expires_at: Instant | None = None


class ChargeIn(_Change, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Units to take, and why: a correction downwards."""

    overage: Annotated[
        Literal["reject", "debt"], Meta(description="debt: take it although the balance does not cover it")
    ] = "reject"


class RefundIn(_Change, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Units to return of what ``hold_key`` was charged, and why."""

    hold_key: Annotated[
        str,
        Meta(
            max_length=arguments.MAX_KEY,
            pattern=r"^[!-~]+( [!-~]+)*(?!\n)$",
            description="the key of the charge, see history",
        ),
    ]


class GrantOut(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A grant as it is now."""

    id: str
    subject: str
    unit: str
    key: str
    amount: int
    remaining: int
    source: str
    priority: int
    effective_at: str
    expires_at: str | None = None


class HoldOut(msgspec.Struct, frozen=True, kw_only=True):
    """A charge as it is now: ``refunded`` of what was ``charged``."""

    id: str
    subject: str
    unit: str
    key: str
    phase: Phase
    charged: int
    refunded: int


class AdminEntry(HistoryEntry, frozen=True, kw_only=True, omit_defaults=True):
    """A line of history with all there is; ``actor`` is the administrator who did it."""

    hold_key: str = ""
    actor: str = ""
    spent: int
    expired: int
    debt: int
    available_change: int
    reserved_change: int
    spent_change: int
    expired_change: int
    debt_change: int


def quota_admin_router(ledger: Ledger, actor: Owner, path: str = "/", *, guards: Sequence[Guard]) -> Router:
    """Below ``path``: POST ``/grants``, ``/charges``, ``/refunds``; GET ``/accounts?subject=``, ``/history?subject=``.

    ``guards``, at least one, let administrators in and nobody else. ``actor`` is (tenant, subject) of the
    administrator, who acts on accounts of that tenant alone. Each change needs an ``Idempotency-Key``, scoped to the
    administrator and the kind of change; a repeat answers ``Idempotent-Replayed: true`` and changes nothing. Who did it
    stands in the entry's key, ``admin <Idempotency-Key> <actor>``, whose spaces no other key can have, and in an event
    ``quota.administered`` (``actor``, ``action``, ``unit``, ``amount``, ``reason``, ``key``, ``id``) in the same
    transaction as the change.

    Raises:
        ImproperlyConfiguredException: without guards everybody would be an administrator.
    """
    if not guards:
        raise ImproperlyConfiguredException("quota_admin_router needs a guard: without one everybody could grant units")
    changes = _Changes(ledger, actor)

    @post(
        "/grants",
        summary="Give units",
        operation_id="QuotaAdminGrant",
        responses=refusals(KeyConflict, BalanceLimit),
    )
    async def grant(
        request: Request[Any, Any, Any], data: Annotated[GrantIn, Body()], idempotency_key: AdminKey
    ) -> Response[Envelope[GrantOut]]:
        """Of any source and priority, from and until when you say."""
        return await changes.grant(request, data, idempotency_key)

    @post(
        "/charges",
        summary="Take units",
        operation_id="QuotaAdminCharge",
        responses=refusals(InsufficientQuota, KeyConflict),
    )
    async def charge(
        request: Request[Any, Any, Any], data: Annotated[ChargeIn, Body()], idempotency_key: AdminKey
    ) -> Response[Envelope[HoldOut]]:
        """A correction downwards, of what is available unless a debt may be left; a refund of its ``key`` undoes it."""
        return await changes.charge(request, data, idempotency_key)

    @post(
        "/refunds",
        summary="Return what was charged",
        operation_id="QuotaAdminRefund",
        responses=refusals(HoldUnknown, KeyConflict, RefundExceedsCharge),
    )
    async def refund(
        request: Request[Any, Any, Any], data: Annotated[RefundIn, Body()], idempotency_key: AdminKey
    ) -> Response[Envelope[HoldOut]]:
        """To the grants it came from. Units of a grant that has expired stay expired: give others instead."""
        return await changes.refund(request, data, idempotency_key)

    @get("/accounts", summary="A subject's balances by unit", operation_id="QuotaAdminAccounts")
    async def accounts(request: Request[Any, Any, Any], subject: SubjectQuery) -> Envelope[Page[AccountBalance]]:
        return ok(Page(items=await ledger.accounts(actor(request)[0], subject)))

    @get(
        "/history",
        summary="What happened to a subject's quota, newest first",
        operation_id="QuotaAdminHistory",
        responses=refusals(BadName),
    )
    async def history(
        request: Request[Any, Any, Any],
        subject: SubjectQuery,
        unit: UnitQuery = None,
        cursor: CursorQuery = None,
        limit: LimitQuery = 50,
    ) -> Envelope[Page[AdminEntry]]:
        page = await ledger.history(actor(request)[0], subject, unit=unit, cursor=cursor, limit=limit)
        return ok(Page(items=[_shown_in_full(entry) for entry in page.items], next_cursor=page.next_cursor))

    handlers = [grant, charge, refund, accounts, history]
    return Router(path, route_handlers=handlers, guards=guards, tags=["quota administration"])


_Done = TypeVar("_Done", Grant, Hold)


class _Changes:
    """What an administrator may change, each with its event in one transaction."""

    def __init__(self, ledger: Ledger, actor: Owner) -> None:
        self._ledger = ledger
        self._actor = actor

    async def grant(self, request: Request[Any, Any, Any], data: GrantIn, given: str) -> Response[Envelope[GrantOut]]:
        done = await self._change(
            "grant",
            request,
            data,
            given,
            partial(
                self._ledger.grant,
                source=data.source,
                priority=data.priority,
                effective_at_us=_us(data.effective_at),
                expires_at_us=_us(data.expires_at),
            ),
        )
        return _answer(_grant(done), created=done.created)

    async def charge(self, request: Request[Any, Any, Any], data: ChargeIn, given: str) -> Response[Envelope[HoldOut]]:
        call = partial(self._ledger.charge, overage=data.overage)
        done = await self._change("charge", request, data, given, call)
        return _answer(_hold(done), created=done.created)

    async def refund(self, request: Request[Any, Any, Any], data: RefundIn, given: str) -> Response[Envelope[HoldOut]]:
        call = partial(self._ledger.refund, hold_key=data.hold_key)
        done = await self._change("refund", request, data, given, call)
        return _answer(_hold(done), created=done.created)

    async def _change(
        self,
        action: str,
        request: Request[Any, Any, Any],
        data: _Change,
        given: str,
        call: Callable[..., Awaitable[_Done]],
    ) -> _Done:
        _require_exact(await request.json(), data)
        tenant, who = self._actor(request)
        account, key = Account(tenant, data.subject, data.unit), arguments.OwnKey("admin", given, who)

        async def change(tx: Tx) -> _Done:
            done = await call(account, data.amount, key=key, tx=tx, reason=data.reason)
            await self._tell(done, action, data, who, key, tx)
            return done

        return await self._ledger.db.run(change)

    async def _tell(self, done: Grant | Hold, action: str, data: _Change, who: str, key: str, tx: Tx) -> None:
        if done.created:
            facts = {"actor": who, "action": action, "unit": data.unit, "amount": data.amount, "reason": data.reason}
            facts |= {"key": str(key), "id": done.id}
            event = Event(name="quota.administered", tenant=done.tenant, subject=done.subject, data=facts)
            await self._ledger.events.emit(event, tx=tx)


def _require_exact(body: Any, data: _Change) -> None:
    """Litestar takes "5" and 5.0 for 5, too; units are whole numbers as JSON writes them, or it is an answer of 400."""
    try:
        msgspec.convert(body, type(data))
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        raise ValidationException(extra=[{"key": place.rstrip("`"), "message": message}]) from None


def _answer(data: Any, *, created: bool) -> Response[Any]:
    return Response(ok(data), headers={} if created else {"Idempotent-Replayed": "true"})


def _grant(grant: Grant) -> GrantOut:
    return GrantOut(
        id=grant.id,
        subject=grant.subject,
        unit=grant.unit,
        key=grant.key,
        amount=grant.amount,
        remaining=grant.remaining,
        source=grant.source,
        priority=grant.priority,
        effective_at=isoformat(grant.effective_at_us),
        expires_at=None if grant.expires_at_us is None else isoformat(grant.expires_at_us),
    )


def _hold(hold: Hold) -> HoldOut:
    return HoldOut(
        id=hold.id,
        subject=hold.subject,
        unit=hold.unit,
        key=hold.key,
        phase=hold.phase,
        charged=hold.captured,
        refunded=hold.refunded,
    )


def _shown_in_full(entry: Entry) -> AdminEntry:
    by_admin = _ADMIN_KEY.fullmatch(entry.key)
    return AdminEntry(
        unit=entry.unit,
        seq=entry.seq,
        kind=entry.kind,
        amount=entry.amount,
        available=entry.available,
        reserved=entry.reserved,
        key=entry.key,
        reason=entry.reason,
        at=isoformat(entry.at_us),
        hold_key=entry.hold_key,
        actor=by_admin[2] if by_admin else "",
        spent=entry.spent,
        expired=entry.expired,
        debt=entry.debt,
        available_change=entry.available_change,
        reserved_change=entry.reserved_change,
        spent_change=entry.spent_change,
        expired_change=entry.expired_change,
        debt_change=entry.debt_change,
    )


def _without_actor(key: str) -> str:
    by_admin = _ADMIN_KEY.fullmatch(key)
    return f"admin {by_admin[1]}" if by_admin else key


def _us(instant: datetime | None) -> int | None:
    return None if instant is None else (instant - _EPOCH) // timedelta(microseconds=1)

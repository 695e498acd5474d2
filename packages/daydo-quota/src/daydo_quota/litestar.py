"""The Litestar edge: an account's owner sees balances and history. Extra: ``[litestar]``.

Errors become answers through ``daydo_kernel.litestar.KernelPlugin``, which the application installs once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from litestar import Router, get
from litestar.connection import ASGIConnection, Request
from litestar.params import QueryParameter

from daydo_db.paging import CURSOR_CHARS_MAX
from daydo_kernel import Envelope, Page, isoformat, ok

from .ledger import Ledger
from .model import AccountBalance, Entry, EntryKind

Owner = Callable[[ASGIConnection[Any, Any, Any, Any]], tuple[str, str]]
"""(tenant, subject) of whoever is asking; raises where nobody is logged in."""


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


def quota_router(ledger: Ledger, owner: Owner, path: str = "/") -> Router:
    """``GET /accounts`` and ``GET /history?unit=&cursor=&limit=`` below ``path``.

    ``key`` and ``reason`` of an entry are the ones your code gave: say nothing there that the owner may not read.
    """

    @get("/accounts", summary="Balances by unit", operation_id="QuotaAccounts")
    async def accounts(request: Request[Any, Any, Any]) -> Envelope[Page[AccountBalance]]:
        return ok(Page(items=await ledger.accounts(*owner(request))))

    @get("/history", summary="What happened to the quota, newest first", operation_id="QuotaHistory")
    async def history(
        request: Request[Any, Any, Any],
        unit: Annotated[str | None, QueryParameter(max_length=32)] = None,
        cursor: Annotated[str | None, QueryParameter(max_length=CURSOR_CHARS_MAX)] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 50,
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
        key=entry.key,
        reason=entry.reason,
        at=isoformat(entry.at_us),
    )

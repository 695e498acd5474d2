"""Pages of history: one keyset read per unit, merged by time.

A cursor says, per unit, which entry comes next (``{"credits": 118, "points": 4}``). Units that opened after the first
page are left out of the pages that follow it: their entries are newer than what has been shown.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from heapq import merge
from itertools import islice

import msgspec

from daydo_db import Database
from daydo_kernel import BadRequest, FieldError, Page

from .model import Entry
from .planner import AccountRow, EntryRow

_MAX_CURSOR = 8_192
_COLUMNS = ", ".join(EntryRow.__struct_fields__)
_BEFORE = f"SELECT {_COLUMNS} FROM daydo_quota_entry WHERE account_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?"  # noqa: S608


async def read_history(db: Database, accounts: list[AccountRow], cursor: str | None, limit: int) -> Page[Entry]:
    """The newest ``limit`` entries before ``cursor``.

    Raises:
        BadRequest: the cursor is not one of ours.
    """
    before = {row.unit: row.seq + 1 for row in accounts} if cursor is None else _decode(cursor)
    streams = [await _entries(db, row, before[row.unit], limit + 1) for row in accounts if row.unit in before]
    # Each stream keeps its own order even where a clock stepped back: merge only compares their heads.
    found = list(islice(merge(*streams, key=lambda entry: entry.at_us, reverse=True), limit + 1))
    shown = found[:limit]
    for entry in shown:
        before[entry.unit] = entry.seq
    return Page(items=shown, next_cursor=_encode(before) if len(found) > limit else None)


async def _entries(db: Database, account: AccountRow, before: int, limit: int) -> list[Entry]:
    result = await db.query(_BEFORE, [account.id, before, limit])
    return [_entry(account.unit, EntryRow(*row)) for row in result.rows]


def _entry(unit: str, row: EntryRow) -> Entry:
    return Entry(
        unit=unit,
        seq=row.seq,
        kind=row.kind,
        key=row.op_key,
        reason=row.reason,
        at_us=row.at_us,
        amount=row.amount,
        available_change=row.available_change,
        reserved_change=row.reserved_change,
        spent_change=row.spent_change,
        expired_change=row.expired_change,
        available=row.available,
        reserved=row.reserved,
        spent=row.spent,
        expired=row.expired,
    )


def _encode(before: dict[str, int]) -> str:
    return urlsafe_b64encode(msgspec.json.encode(before)).decode().rstrip("=")


def _decode(cursor: str) -> dict[str, int]:
    try:
        if len(cursor) > _MAX_CURSOR:
            raise ValueError("too long")
        before = msgspec.json.decode(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=dict[str, int])
        if any(not 0 < seq < 2**63 for seq in before.values()):
            raise ValueError("out of range")
    except ValueError:  # also binascii's, msgspec's and the text codec's
        field = FieldError("cursor", "游标无效，请从第一页重新开始", "Is not valid; start from the first page")
        raise BadRequest(fields=(field,)) from None
    return before

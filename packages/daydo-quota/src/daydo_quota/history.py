"""Pages of history: one statement with a slice per unit, merged by time.

A cursor says, per unit, which entry comes next (``{"credits": 118, "points": 4}``). Units that opened after the first
page are left out of the pages that follow it: their entries are newer than what has been shown. So is a unit whose
oldest entry has been shown. A roll-up may take away what comes next on a cursor; then the unit ends with the entry that
took its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import merge
from itertools import islice
from typing import Annotated

from msgspec import Meta

from daydo_db import Cursors, Database
from daydo_kernel import Page

from .model import Entry
from .rows import AccountRow, EntryRow

Position = dict[str, Annotated[int, Meta(gt=0, le=2**63 - 1)]]
"""By unit, the seq that the page lies below."""

_COLUMNS = ", ".join(EntryRow.__struct_fields__)
# A derived table each, because SQLite takes no LIMIT in a part of a UNION.
_SLICE = (
    f"SELECT * FROM (SELECT {_COLUMNS} FROM daydo_quota_entry "  # noqa: S608 - names of ours
    "WHERE account_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?) part"
)
_OLDEST = f"SELECT * FROM (SELECT {_COLUMNS} FROM daydo_quota_entry WHERE account_id = ? ORDER BY seq LIMIT 1) part"  # noqa: S608


class History:
    """Reads the history of a subject's accounts."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._cursors = Cursors("quota.history", Position, key=db.config.cursor_key)

    async def page(
        self, accounts: Sequence[AccountRow], owner: Sequence[str | None], cursor: str | None, limit: int
    ) -> Page[Entry]:
        """The newest ``limit`` entries before ``cursor``, which is only good for the same ``owner``.

        Raises:
            CursorInvalid: the cursor is not one of ours, or somebody else's.
        """
        before = {row.unit: row.seq + 1 for row in accounts} if cursor is None else self._cursors.open(cursor, owner)
        streams = await self._read([row for row in accounts if row.unit in before], before, limit + 1)
        # Each stream keeps its own order even where a clock stepped back: merge only compares their heads.
        found = list(islice(merge(*streams, key=lambda entry: entry.at_us, reverse=True), limit + 1))
        shown = found[:limit]
        for entry in shown:
            if _is_oldest(entry):
                del before[entry.unit]
            else:
                before[entry.unit] = entry.seq
        return Page(items=shown, next_cursor=self._cursors.seal(before, owner) if len(found) > limit else None)

    async def _read(self, accounts: Sequence[AccountRow], before: Position, limit: int) -> list[list[Entry]]:
        if not accounts:
            return []
        args = [value for row in accounts for value in (row.id, before[row.unit], limit)]
        result = await self._db.query(" UNION ALL ".join([_SLICE] * len(accounts)), args, replica=True)
        streams: dict[int, list[EntryRow]] = {row.id: [] for row in accounts}
        for row in sorted((EntryRow(*row) for row in result.rows), key=lambda row: row.seq, reverse=True):
            streams[row.account_id].append(row)
        for row in await self._overtaken(accounts, streams, limit):
            streams[row.account_id].append(row)
        return [[_entry(row.unit, entry) for entry in streams[row.id]] for row in accounts]

    async def _overtaken(
        self, accounts: Sequence[AccountRow], streams: dict[int, list[EntryRow]], limit: int
    ) -> list[EntryRow]:
        """The oldest entries of those accounts whose next ones were rolled up since the page before."""
        short = [row.id for row in accounts if row.seq and len(streams[row.id]) < limit]
        ended = [
            account_id for account_id in short if not (streams[account_id] and _is_oldest(streams[account_id][-1]))
        ]
        if not ended:
            return []
        result = await self._db.query(" UNION ALL ".join([_OLDEST] * len(ended)), ended, replica=True)
        return [row for row in (EntryRow(*row) for row in result.rows) if row.kind == "rolled_up"]


def _is_oldest(entry: Entry | EntryRow) -> bool:
    return entry.seq == 1 or entry.kind == "rolled_up"


def _entry(unit: str, row: EntryRow) -> Entry:
    return Entry(
        unit=unit,
        seq=row.seq,
        kind=row.kind,
        key=row.op_key,
        hold_key=row.hold_key,
        reason=row.reason,
        at_us=row.at_us,
        amount=row.amount,
        available_change=row.available_change,
        reserved_change=row.reserved_change,
        spent_change=row.spent_change,
        expired_change=row.expired_change,
        debt_change=row.debt_change,
        available=row.available,
        reserved=row.reserved,
        spent=row.spent,
        expired=row.expired,
        debt=row.debt,
    )

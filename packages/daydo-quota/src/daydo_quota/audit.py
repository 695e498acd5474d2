"""Recomputes the books from their rows and entries; reads only, and never much at a time.

Others write meanwhile, so what must agree is read by one statement: on both engines that is one moment. Rows that are
only ever added (entries up to an account's ``seq``) may be read in any number of statements. Accounts, and separately
grants, holds and amendments, go by in the order of their ids; of what was added since the audit began some is seen.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from daydo_db import Database, Value

from .model import Audit, Disagreement
from .planner import Share

_PARTS = msgspec.json.Decoder(list[Share])

_OF_ACCOUNTS = {
    "an account differs from the sum of its grants": """
        SELECT a.id, a.id FROM daydo_quota_account a LEFT JOIN daydo_quota_grant g ON g.account_id = a.id
        WHERE a.id IN ({ids}) GROUP BY a.id, a.pending, a.available, a.reserved, a.spent, a.expired
        HAVING a.pending <> COALESCE(SUM(CASE WHEN g.phase = 'pending' THEN g.remaining ELSE 0 END), 0)
            OR a.available <> COALESCE(SUM(CASE WHEN g.phase <> 'pending' THEN g.remaining ELSE 0 END), 0)
            OR a.reserved <> COALESCE(SUM(g.held), 0) OR a.spent <> COALESCE(SUM(g.spent), 0)
            OR a.expired <> COALESCE(SUM(g.expired), 0)""",
    "reserved is not the sum of the open holds": """
        SELECT a.id, a.id FROM daydo_quota_account a
        LEFT JOIN daydo_quota_hold h ON h.account_id = a.id AND h.phase = 'open'
        WHERE a.id IN ({ids}) GROUP BY a.id, a.reserved
        HAVING a.reserved <> COALESCE(SUM(h.amount - h.captured), 0)""",
    "the last entry differs from the account": """
        SELECT a.id, a.seq FROM daydo_quota_account a
        LEFT JOIN daydo_quota_entry e ON e.account_id = a.id AND e.seq = a.seq
        WHERE a.id IN ({ids}) AND (
            COALESCE(e.available, 0) <> a.available OR COALESCE(e.reserved, 0) <> a.reserved
            OR COALESCE(e.spent, 0) <> a.spent OR COALESCE(e.expired, 0) <> a.expired
            OR (a.seq > 0 AND e.seq IS NULL))""",
    "there are entries after the last": """
        SELECT a.id, MAX(e.seq) FROM daydo_quota_account a JOIN daydo_quota_entry e ON e.account_id = a.id
        WHERE a.id IN ({ids}) AND e.seq > a.seq GROUP BY a.id""",
    "an account would look too late": """
        SELECT a.id, h.id FROM daydo_quota_account a JOIN daydo_quota_hold h ON h.account_id = a.id
        WHERE a.id IN ({ids}) AND h.phase = 'open' AND h.expires_at_us < a.next_due_at_us
        UNION ALL
        SELECT a.id, g.id FROM daydo_quota_account a JOIN daydo_quota_grant g ON g.account_id = a.id
        WHERE a.id IN ({ids}) AND ((g.phase = 'live' AND g.remaining > 0 AND g.expires_at_us < a.next_due_at_us)
            OR (g.phase = 'pending' AND g.effective_at_us < a.next_due_at_us))""",
}
_HELD = """
    SELECT account_id, id, held, '' FROM daydo_quota_grant WHERE account_id IN ({ids}) AND held > 0
    UNION ALL
    SELECT account_id, id, 0, parts FROM daydo_quota_hold WHERE account_id IN ({ids}) AND phase = 'open'"""
_ENTRIES = """
    SELECT e.account_id, e.seq FROM daydo_quota_entry e
    LEFT JOIN daydo_quota_entry b ON b.account_id = e.account_id AND b.seq = e.seq - 1
    WHERE ({slices}) AND ((e.seq > 1 AND b.seq IS NULL)
        OR e.available <> COALESCE(b.available, 0) + e.available_change
        OR e.reserved <> COALESCE(b.reserved, 0) + e.reserved_change
        OR e.spent <> COALESCE(b.spent, 0) + e.spent_change
        OR e.expired <> COALESCE(b.expired, 0) + e.expired_change)
    ORDER BY e.account_id, e.seq LIMIT 1"""
_SLICE = "(e.account_id = ? AND e.seq > ? AND e.seq <= ?)"
_GRANTS = """
    SELECT g.account_id, g.id, g.granted, g.remaining + g.held + g.spent + g.expired, COALESCE(e.amount, -1)
    FROM daydo_quota_grant g LEFT JOIN daydo_quota_entry e ON e.op_id = g.id AND e.step = 'granted'
    WHERE g.id > ? AND g.id <= ? {tenant}ORDER BY g.id"""
_AMENDMENTS = """
    SELECT m.account_id, m.id, m.amount, COALESCE(e.amount, -1)
    FROM daydo_quota_amendment m LEFT JOIN daydo_quota_entry e
        ON e.op_id = m.id AND e.step = CASE m.kind WHEN 'capture' THEN 'captured' ELSE 'refunded' END
    WHERE m.id > ? AND m.id <= ? {tenant}ORDER BY m.id"""
_HOLDS = """
    SELECT h.account_id, h.id, h.phase, h.amount, h.captured, h.final, h.refunded, h.parts,
        COALESCE(made.amount, -1), ended.op_id IS NOT NULL,
        COALESCE(ended.spent_change, 0) + COALESCE(late.spent_change, 0),
        (SELECT COALESCE(SUM(m.amount), 0) FROM daydo_quota_amendment m WHERE m.hold_id = h.id AND m.kind = 'capture'),
        (SELECT COALESCE(SUM(m.amount), 0) FROM daydo_quota_amendment m WHERE m.hold_id = h.id AND m.kind = 'refund')
    FROM daydo_quota_hold h
    LEFT JOIN daydo_quota_entry made ON made.op_id = h.id AND made.step = 'held'
    LEFT JOIN daydo_quota_entry ended ON ended.op_id = h.id AND ended.step = 'resolve'
    LEFT JOIN daydo_quota_entry late ON late.op_id = h.id AND late.step = 'late'
    WHERE h.id > ? AND h.id <= ? {tenant}ORDER BY h.id"""


class Slice(NamedTuple):
    """Entries of an account: those after ``after`` up to ``last``."""

    account_id: int
    after: int
    last: int


class Auditor:
    """One walk through the books of a tenant, or of all (None)."""

    def __init__(self, db: Database, tenant: str | None, accounts: int, rows: int) -> None:
        self._db = db
        self._tenant = tenant
        self._accounts_most = accounts
        self._rows_most = rows

    async def run(self) -> Audit:
        """Up to the first disagreement, if there is one."""
        accounts = entries = 0
        async for batch in self._batches():
            accounts += len(batch)
            entries += sum(seq for _, seq in batch)
            found = await self._check_accounts([account_id for account_id, _ in batch])
            found = found or await self._check_entries(batch)
            if found is not None:
                return Audit(accounts=accounts, entries=entries, disagreement=found)
        found = await self._check_rows()
        return Audit(accounts=accounts, entries=entries, disagreement=found)

    async def _batches(self) -> AsyncIterator[Sequence[tuple[int, int]]]:
        mine, args = ("", []) if self._tenant is None else ("AND tenant = ? ", [self._tenant])
        last = 0
        select = f"SELECT id, seq FROM daydo_quota_account WHERE id > ? {mine}ORDER BY id LIMIT ?"  # noqa: S608
        while rows := (await self._db.query(select, [last, *args, self._accounts_most])).rows:
            yield [(row[0], row[1]) for row in rows]
            last = rows[-1][0]

    async def _check_accounts(self, ids: Sequence[int]) -> Disagreement | None:
        marks = ", ".join("?" * len(ids))
        found = []
        for complaint, sql in _OF_ACCOUNTS.items():
            args = [*ids] * sql.count("{ids}")
            rows = (await self._db.query(sql.format(ids=marks), args)).rows
            found += [Disagreement(complaint, row[0], str(row[1])) for row in rows]
        rows = (await self._db.query(_HELD.format(ids=marks), [*ids, *ids])).rows
        found += _misheld(rows)
        return min(found, key=lambda one: one.account_id, default=None)

    async def _check_entries(self, batch: Sequence[tuple[int, int]]) -> Disagreement | None:
        for slices in _packed(batch, self._rows_most):
            sql = _ENTRIES.format(slices=" OR ".join([_SLICE] * len(slices)))
            for row in (await self._db.query(sql, [value for one in slices for value in one])).rows:
                return Disagreement("an entry's balances do not follow from the one before", row[0], str(row[1]))
        return None

    async def _check_rows(self) -> Disagreement | None:
        async for row in self._walk("daydo_quota_grant", "g", _GRANTS):
            account_id, grant_id, granted, parts, entered = row
            if not granted == parts == entered:
                return Disagreement("a grant differs from its parts or its entry", account_id, grant_id)
        async for row in self._walk("daydo_quota_hold", "h", _HOLDS):
            if not _hold_agrees(*row[2:]):
                return Disagreement("a hold differs from its parts, amendments or entries", row[0], row[1])
        async for row in self._walk("daydo_quota_amendment", "m", _AMENDMENTS):
            account_id, amendment_id, amount, entered = row
            if amount != entered:
                return Disagreement("a capture or refund differs from its entry", account_id, amendment_id)
        return None

    async def _walk(self, table: str, name: str, select: str) -> AsyncIterator[Sequence[Any]]:
        """The tenant's rows, from windows of everybody's: so one costs the same whoever it belongs to."""
        mine: list[Value] = [] if self._tenant is None else [self._tenant]
        sql = select.format(tenant=f"AND {name}.tenant = ? " if mine else "")
        ids = f"SELECT MAX(id) FROM (SELECT id FROM {table} WHERE id > ? ORDER BY id LIMIT ?) some_ids"  # noqa: S608
        after = ""
        while last := (await self._db.query(ids, [after, self._rows_most])).rows[0][0]:
            for row in (await self._db.query(sql, [after, last, *mine])).rows:
                yield row
            after = last


def _misheld(rows: Iterable[Sequence[Any]]) -> Iterator[Disagreement]:
    """Grants whose ``held`` is not what the open holds say they took from them."""
    held: dict[tuple[int, str], int] = {}
    for account_id, row_id, units, parts in rows:
        shares = [(part.grant_id, -part.free) for part in _PARTS.decode(parts)] if parts else [(row_id, units)]
        for grant_id, change in shares:
            held[account_id, grant_id] = held.get((account_id, grant_id), 0) + int(change)
    for (account_id, grant_id), difference in sorted(held.items()):
        if difference:
            yield Disagreement("a grant's held units are not those of the open holds", account_id, grant_id)


def _hold_agrees(
    phase: str,
    amount: int,
    captured: int,
    final: int,
    refunded: int,
    parts: str,
    made: int,
    ended: int,
    charged_at_end: int,
    captures: int,
    refunds: int,
) -> bool:
    shares = _PARTS.decode(parts)
    return (
        (made == -1 if phase == "tombstone" else made == amount)
        and bool(ended) == (phase in ("confirmed", "cancelled", "expired"))
        and amount == sum(part.amount for part in shares)
        and captured == sum(part.used for part in shares) == captures + final
        and refunded == sum(part.refunded for part in shares) == refunds
        and final == charged_at_end
    )


def _packed(batch: Sequence[tuple[int, int]], most: int) -> Iterator[list[Slice]]:
    """Slices of at most ``most`` entries together."""
    pack, room = list[Slice](), most
    for account_id, seq in batch:
        after = 0
        while after < seq:
            last = min(seq, after + room)
            pack.append(Slice(account_id, after, last))
            room -= last - after
            after = last
            if not room:
                yield pack
                pack, room = [], most
    if pack:
        yield pack

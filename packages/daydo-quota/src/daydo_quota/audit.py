"""Recomputes the books from their rows and entries; reads only, and never much at a time.

Others write meanwhile, so what must agree is read by one statement: on both engines that is one moment. Entries never
change, so up to an account's ``seq`` they may be read in any number of statements.

A walk has stages. Each goes by in the order of its ids, in steps that can be far apart in time; of what was added
since the walk began some is seen. Together they leave no number of the books without another that proves it:

* *accounts*: each balance is the sum over the grants; ``reserved`` and each grant's ``held`` are what the open holds
  say; the last entry has the account's balances; nothing is due before the account would look.
* *grants*, *holds*, *amendments*: each row agrees with itself and has its entries. A grant still is what was asked
  for: its fingerprint says so.
* *entries*: each follows from the one before, moves units as its kind does, and says what its row says.
* *charges*: what the account has spent is what its holds were charged and not refunded.

Entries that were rolled up (see ``upkeep.py``) can prove nothing any more. Their place is taken by one entry with the
balances of that moment; rows from before it need no entry.

An account may have more holds than one statement should read, and be written to between two. So their charges are
added up in slices by id, each read in one moment together with the account's ``seq``; what entries since the slice
before say about the holds that have gone by is added to the sum. When the last slice has gone by, the sum is that of
one moment, and every entry was read once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from daydo_db import Database, Tx, Value

from .model import Audit, Disagreement
from .planner import NEVER_US, GrantUnits, Share, fingerprint

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
            OR (a.seq <> 0 AND e.seq IS NULL))""",
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

# When the entries of an account that were rolled up ended; -1 where none were.
_ROLLED = """COALESCE((SELECT CASE r.kind WHEN 'rolled_up' THEN r.at_us ELSE -1 END FROM daydo_quota_entry r
        WHERE r.account_id = {row}.account_id ORDER BY r.seq LIMIT 1), -1)"""
_GRANTS = f"""
    SELECT g.account_id, g.id, g.granted, g.remaining + g.held + g.spent + g.expired,
        e.amount, g.created_at_us, {_ROLLED.format(row="g")},
        a.tenant, a.subject, a.unit, g.op_key, g.source, g.priority, g.effective_at_us, g.expires_at_us, g.fingerprint
    FROM daydo_quota_grant g LEFT JOIN daydo_quota_account a ON a.id = g.account_id
    LEFT JOIN daydo_quota_entry e ON e.op_id = g.id AND e.step = 'granted'
    WHERE g.id > ? AND g.id <= ? {{tenant}}ORDER BY g.id"""  # noqa: S608 - names of ours
_HOLDS = f"""
    SELECT h.account_id, h.id, h.phase, h.leg, h.amount, h.captured, h.final, h.refunded, h.parts,
        h.created_at_us, h.expires_at_us, h.resolved_at_us, {_ROLLED.format(row="h")},
        made.amount, ended.kind, COALESCE(ended.spent_change, 0) + COALESCE(late.spent_change, 0),
        (SELECT COALESCE(SUM(m.amount), 0) FROM daydo_quota_amendment m WHERE m.hold_id = h.id AND m.kind = 'capture'),
        (SELECT COALESCE(SUM(m.amount), 0) FROM daydo_quota_amendment m WHERE m.hold_id = h.id AND m.kind = 'refund')
    FROM daydo_quota_hold h
    LEFT JOIN daydo_quota_entry made ON made.op_id = h.id AND made.step = 'held'
    LEFT JOIN daydo_quota_entry ended ON ended.op_id = h.id AND ended.step = 'resolve'
    LEFT JOIN daydo_quota_entry late ON late.op_id = h.id AND late.step = 'late'
    WHERE h.id > ? AND h.id <= ? {{tenant}}ORDER BY h.id"""  # noqa: S608 - names of ours
_AMENDMENTS = f"""
    SELECT m.account_id, m.id, m.amount, e.amount, m.created_at_us, {_ROLLED.format(row="m")}
    FROM daydo_quota_amendment m LEFT JOIN daydo_quota_entry e
        ON e.op_id = m.id AND e.step = CASE m.kind WHEN 'capture' THEN 'captured' ELSE 'refunded' END
    WHERE m.id > ? AND m.id <= ? {{tenant}}ORDER BY m.id"""  # noqa: S608 - names of ours

_SLICE = "(e.account_id = ? AND e.seq > ? AND e.seq <= ?)"
_FOLLOWS = """
    SELECT e.account_id, e.seq FROM daydo_quota_entry e
    LEFT JOIN daydo_quota_entry b ON b.account_id = e.account_id AND b.seq = e.seq - 1
    WHERE ({slices}) AND ((e.seq > 1 AND b.seq IS NULL AND e.kind <> 'rolled_up')
        OR (b.seq IS NOT NULL AND e.kind = 'rolled_up')
        OR e.available <> COALESCE(b.available, 0) + e.available_change
        OR e.reserved <> COALESCE(b.reserved, 0) + e.reserved_change
        OR e.spent <> COALESCE(b.spent, 0) + e.spent_change
        OR e.expired <> COALESCE(b.expired, 0) + e.expired_change)
    ORDER BY e.account_id, e.seq LIMIT 1"""
# By kind: what its row says, and where its units go. A kind that is not here agrees with nothing.
_SAYS = {
    "granted": """g.account_id = e.account_id AND e.at_us = g.created_at_us AND e.amount = g.granted
        AND e.available_change IN (0, e.amount) AND e.reserved_change = 0 AND e.spent_change = 0
        AND e.expired_change = 0""",
    "activated": """g.account_id = e.account_id AND e.at_us = g.effective_at_us
        AND e.available_change = e.amount AND e.reserved_change = 0 AND e.spent_change = 0 AND e.expired_change = 0""",
    "grant_expired": """g.account_id = e.account_id AND e.at_us = g.expires_at_us
        AND e.available_change = -e.amount AND e.expired_change = e.amount AND e.reserved_change = 0
        AND e.spent_change = 0""",
    "held": """h.account_id = e.account_id AND e.at_us = h.created_at_us AND e.amount = h.amount
        AND e.available_change = -e.amount AND e.reserved_change = e.amount AND e.spent_change = 0
        AND e.expired_change = 0""",
    "confirmed": """h.account_id = e.account_id AND e.at_us = h.resolved_at_us AND e.amount = h.final
        AND e.spent_change = e.amount
        AND e.available_change + e.reserved_change + e.spent_change + e.expired_change = 0""",
    "cancelled": """h.account_id = e.account_id AND e.at_us = h.resolved_at_us AND e.amount = h.amount - h.captured
        AND e.reserved_change = -e.amount AND e.spent_change = 0
        AND e.available_change + e.expired_change = e.amount""",
    "hold_expired": """h.account_id = e.account_id AND e.at_us = h.expires_at_us
        AND e.amount = h.amount - (h.captured - h.final) AND e.reserved_change = -e.amount AND e.spent_change = 0
        AND e.available_change + e.expired_change = e.amount""",
    "captured": """m.account_id = e.account_id AND e.at_us = m.created_at_us AND e.amount = m.amount
        AND e.reserved_change = -e.amount AND e.spent_change = e.amount AND e.available_change = 0
        AND e.expired_change = 0""",
    "refunded": """m.account_id = e.account_id AND e.at_us = m.created_at_us AND e.amount = m.amount
        AND e.spent_change = -e.amount AND e.reserved_change = 0
        AND e.available_change + e.expired_change = e.amount""",
    "rolled_up": "e.amount = 0",
}
_SPEAKS = f"""
    SELECT e.account_id, e.seq FROM daydo_quota_entry e
    LEFT JOIN daydo_quota_grant g ON g.id = e.op_id
    LEFT JOIN daydo_quota_hold h ON h.id = e.op_id
    LEFT JOIN daydo_quota_amendment m ON m.id = e.op_id
    WHERE ({{slices}}) AND CASE e.kind
        {" ".join(f"WHEN '{kind}' THEN COALESCE({says}, 0)" for kind, says in _SAYS.items())} ELSE 0 END = 0
    ORDER BY e.account_id, e.seq LIMIT 1"""  # noqa: S608 - names of ours

_CHARGES = """
    SELECT a.id, a.id FROM daydo_quota_account a LEFT JOIN daydo_quota_hold h ON h.account_id = a.id
    WHERE a.id IN ({ids}) GROUP BY a.id, a.spent HAVING a.spent <> COALESCE(SUM(h.captured - h.refunded), 0)
    ORDER BY a.id LIMIT 1"""
_SOME_CHARGES = """
    SELECT a.seq, a.spent, COUNT(h.id), COALESCE(MAX(h.id), ''), COALESCE(SUM(h.captured - h.refunded), 0)
    FROM daydo_quota_account a LEFT JOIN (
        SELECT id, account_id, captured, refunded FROM daydo_quota_hold
        WHERE account_id = ? AND id > ? ORDER BY id LIMIT ?) h ON h.account_id = a.id
    WHERE a.id = ? GROUP BY a.seq, a.spent"""
_SINCE = """
    SELECT COUNT(*), COALESCE(SUM(CASE WHEN COALESCE(m.hold_id, e.op_id) <= ? THEN e.spent_change ELSE 0 END), 0)
    FROM daydo_quota_entry e LEFT JOIN daydo_quota_amendment m ON m.id = e.op_id
    WHERE e.account_id = ? AND e.seq > ? AND e.seq <= ?"""

Stage = Literal["accounts", "grants", "holds", "amendments", "entries", "charges"]
_NEXT: dict[Stage, Stage] = {
    "accounts": "grants",
    "grants": "holds",
    "holds": "amendments",
    "amendments": "entries",
    "entries": "charges",
}


class Place(msgspec.Struct, frozen=True):
    """How far a walk is.

    Attributes:
        account_id: accounts up to this one have gone by; of this one itself only a part, where ``seq`` is not 0.
        seq: its entries up to this one have gone by.
        row_id: rows up to this one have gone by; in the stage of charges, of the account's holds.
        charged: what those holds were charged, as of ``seq``.
    """

    stage: Stage = "accounts"
    account_id: int = 0
    seq: int = 0
    row_id: str = ""
    charged: int = 0


class Step(NamedTuple):
    """What one step has looked at and found; ``place`` is None at the end of the walk."""

    place: Place | None
    accounts: int = 0
    entries: int = 0
    found: Disagreement | None = None


class Slice(NamedTuple):
    """Entries of an account: those after ``after`` up to ``last``."""

    account_id: int
    after: int
    last: int


class _Account(NamedTuple):
    """``first`` is the seq of its oldest entry, 1 where there is none."""

    id: int
    first: int
    seq: int


class Auditor:
    """Walks through the books of a tenant, or of all (None)."""

    def __init__(self, where: Database | Tx, tenant: str | None, accounts: int, rows: int) -> None:
        self._read = where.query if isinstance(where, Database) else where.execute
        self._tenant = tenant
        self._accounts_most = accounts
        self._rows_most = rows

    async def run(self) -> Audit:
        """Up to the first disagreement, if there is one."""
        accounts = entries = 0
        place: Place | None = Place()
        while place is not None:
            step = await self.step(place)
            accounts, entries = accounts + step.accounts, entries + step.entries
            if step.found is not None:
                return Audit(accounts=accounts, entries=entries, disagreement=step.found)
            place = step.place
        return Audit(accounts=accounts, entries=entries, disagreement=None)

    async def step(self, place: Place) -> Step:
        """Go on from ``place``, by a few statements at most."""
        match place.stage:
            case "accounts":
                return await self._accounts(place)
            case "entries":
                return await self._entries(place)
            case "charges":
                return await self._charges(place)
        return await self._rows(place)

    async def _accounts(self, place: Place) -> Step:
        batch = await self._batch(place)
        if not batch:
            return Step(_after(place))
        ids = [account.id for account in batch]
        marks = ", ".join("?" * len(ids))
        found = []
        for complaint, sql in _OF_ACCOUNTS.items():
            args = [*ids] * sql.count("{ids}")
            rows = (await self._read(sql.format(ids=marks), args)).rows
            found += [Disagreement(complaint, row[0], str(row[1])) for row in rows]
        rows = (await self._read(_HELD.format(ids=marks), [*ids, *ids])).rows
        found += _misheld(rows)
        first = min(found, key=lambda one: one.account_id, default=None)
        return Step(Place("accounts", ids[-1]), accounts=len(ids), found=first)

    async def _batch(self, place: Place) -> list[_Account]:
        mine: list[Value] = [] if self._tenant is None else [self._tenant]
        rows = await self._read(
            "SELECT a.id, COALESCE((SELECT MIN(e.seq) FROM daydo_quota_entry e WHERE e.account_id = a.id), 1), a.seq "
            f"FROM daydo_quota_account a WHERE a.id {'>=' if place.seq else '>'} ? "  # noqa: S608 - names of ours
            f"{'AND a.tenant = ? ' if mine else ''}ORDER BY a.id LIMIT ?",
            [place.account_id, *mine, self._accounts_most],
        )
        return [_Account(*row) for row in rows.rows]

    async def _rows(self, place: Place) -> Step:
        table, select, complaint_of = _WALKS[place.stage]
        # The tenant's rows, from windows of everybody's: so one costs the same whoever it belongs to.
        ids = f"SELECT MAX(id) FROM (SELECT id FROM {table} WHERE id > ? ORDER BY id LIMIT ?) some_ids"  # noqa: S608
        last = (await self._read(ids, [place.row_id, self._rows_most])).rows[0][0]
        if last is None:
            return Step(_after(place))
        mine: list[Value] = [] if self._tenant is None else [self._tenant]
        sql = select.format(tenant=f"AND {table.removeprefix('daydo_quota_')[0]}.tenant = ? " if mine else "")
        for row in (await self._read(sql, [place.row_id, last, *mine])).rows:
            if not agrees(*row[2:]):
                return Step(None, found=Disagreement(complaint, row[0], row[1]))
        return Step(Place(place.stage, row_id=last))

"""Recomputes the books from their rows and entries; reads only, and never much at a time.

Others write meanwhile, so what must agree is read by one statement: on both engines that is one moment. Entries never
change, so up to an account's ``seq`` they may be read in any number of statements.

A walk has stages. Each goes by in the order of its ids, in steps that can be far apart in time; of what was added
since the walk began some is seen. Together they leave no number of the books without another that proves it (of the
texts the README lists those that nothing proves):

* *accounts*: each balance is the sum over the grants; ``reserved`` and each grant's ``held`` are what the open holds
  say; the last entry has the account's balances; nothing is due before the account would look.
* *grants*, *allowances*, *holds*, *amendments*: each row agrees with itself, is of its account's tenant and has its
  entries. Grants and allowances still are what was asked for: their fingerprints say so.
* *entries*: each follows from the one before, moves units as its kind does, and says what its row says, and its key.
* *charges*: what the account has spent is what its holds were charged and not refunded.

Entries that were rolled up (see ``upkeep.py``) can prove nothing any more. Their place is taken by one entry with the
balances of that moment; rows from before it need no entry.

An account may have more holds than one statement should read, and be written to between two. So their charges are
added up in slices by id, each read in one moment together with the account's ``seq``; what entries since the slice
before say about the holds that have gone by is added to the sum. When the last slice has gone by, the sum is that of
one moment, and every entry was read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from daydo_db import Database, Tx, Value

from .model import Audit, Disagreement
from .ops import Allow, GrantUnits, fingerprint
from .periods import Anchor, Every
from .rows import DEBT, NEVER_US, Share, read_parts

_BATCH = """
    SELECT a.id, COALESCE((SELECT MIN(e.seq) FROM daydo_quota_entry e WHERE e.account_id = a.id), 1), a.seq
    FROM daydo_quota_account a WHERE a.id {beyond} ? {tenant}ORDER BY a.id LIMIT ?"""
_OF_ACCOUNTS = {
    "an account differs from the sum of its grants": """
        SELECT a.id, a.id FROM daydo_quota_account a LEFT JOIN daydo_quota_grant g ON g.account_id = a.id
        WHERE a.id IN ({ids}) GROUP BY a.id, a.pending, a.available, a.reserved, a.spent, a.expired, a.debt
        HAVING a.pending <> COALESCE(SUM(CASE WHEN g.phase = 'pending' THEN g.remaining ELSE 0 END), 0)
            OR a.available <> COALESCE(SUM(CASE WHEN g.phase <> 'pending' THEN g.remaining ELSE 0 END), 0)
            OR a.reserved <> COALESCE(SUM(g.held), 0) OR a.spent - a.debt <> COALESCE(SUM(g.spent), 0)
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
            OR COALESCE(e.spent, 0) <> a.spent OR COALESCE(e.expired, 0) <> a.expired OR COALESCE(e.debt, 0) <> a.debt
            OR (a.seq <> 0 AND e.seq IS NULL))""",
    "there are entries after the last": """
        SELECT a.id, MAX(e.seq) FROM daydo_quota_account a JOIN daydo_quota_entry e ON e.account_id = a.id
        WHERE a.id IN ({ids}) AND e.seq > a.seq GROUP BY a.id""",
    "an account would look too late": """
        SELECT a.id, h.id FROM daydo_quota_account a JOIN daydo_quota_hold h ON h.account_id = a.id
        WHERE a.id IN ({ids}) AND h.phase = 'open' AND h.expires_at_us < a.next_due_at_us
        UNION ALL
        SELECT a.id, g.id FROM daydo_quota_account a JOIN daydo_quota_grant g ON g.account_id = a.id
        WHERE a.id IN ({ids}) AND ((g.phase = 'live' AND g.remaining > 0
                AND (g.expires_at_us < a.next_due_at_us OR g.notice_at_us < a.next_due_at_us))
            OR (g.phase = 'pending' AND g.effective_at_us < a.next_due_at_us))
        UNION ALL
        SELECT a.id, a.id FROM daydo_quota_account a LEFT JOIN daydo_quota_allowance w ON w.account_id = a.id
        WHERE a.id IN ({ids}) GROUP BY a.id, a.renews_at_us
        HAVING a.renews_at_us <> COALESCE(MIN(w.next_at_us), {never})""",
    "something is available beside a debt": """
        SELECT a.id, a.id FROM daydo_quota_account a WHERE a.id IN ({ids}) AND a.debt > 0 AND a.available > 0""",
}
_HELD = """
    SELECT account_id, id, held, '', 0 FROM daydo_quota_grant WHERE account_id IN ({ids}) AND held > 0
    UNION ALL
    SELECT account_id, id, 0, parts, captured FROM daydo_quota_hold
        WHERE account_id IN ({ids}) AND phase IN ('open', 'owing')
    UNION ALL
    SELECT id, '', debt, '', 0 FROM daydo_quota_account WHERE id IN ({ids}) AND debt > 0"""

# When the entries of an account that were rolled up ended; -1 where none were.
_ROLLED = """COALESCE((SELECT CASE r.kind WHEN 'rolled_up' THEN r.at_us ELSE -1 END FROM daydo_quota_entry r
        WHERE r.account_id = {row}.account_id ORDER BY r.seq LIMIT 1), -1)"""
_GRANTS = f"""
    SELECT g.account_id, g.id, g.granted, g.remaining + g.held + g.spent + g.expired,
        g.phase, g.remaining + g.held, e.amount, g.created_at_us, {_ROLLED.format(row="g")},
        g.tenant = a.tenant, a.tenant, a.subject, a.unit, g.op_key, g.source, g.priority, g.effective_at_us,
        g.expires_at_us, g.fingerprint
    FROM daydo_quota_grant g LEFT JOIN daydo_quota_account a ON a.id = g.account_id
    LEFT JOIN daydo_quota_entry e ON e.op_id = g.id AND e.step = 'granted'
    WHERE g.id > ? AND g.id <= ? {{tenant}}ORDER BY g.id"""  # noqa: S608 - names of ours
_HOLDS = f"""
    SELECT h.account_id, h.id, h.phase, h.leg, h.amount, h.captured, h.final, h.refunded, h.parts,
        h.created_at_us, h.expires_at_us, h.resolved_at_us, {_ROLLED.format(row="h")},
        h.tenant = a.tenant, made.amount, ended.kind, late.kind,
        COALESCE(ended.spent_change, 0) + COALESCE(late.spent_change, 0),
        (SELECT COALESCE(SUM(m.amount), 0) FROM daydo_quota_amendment m WHERE m.hold_id = h.id AND m.kind = 'capture'),
        (SELECT COALESCE(SUM(m.amount), 0) FROM daydo_quota_amendment m WHERE m.hold_id = h.id AND m.kind = 'refund'),
        (SELECT COUNT(*) FROM daydo_quota_hold f WHERE f.tenant = h.tenant AND f.op_key = h.op_key AND f.leg = 0)
    FROM daydo_quota_hold h LEFT JOIN daydo_quota_account a ON a.id = h.account_id
    LEFT JOIN daydo_quota_entry made ON made.op_id = h.id AND made.step = 'held'
    LEFT JOIN daydo_quota_entry ended ON ended.op_id = h.id AND ended.step = 'resolve'
    LEFT JOIN daydo_quota_entry late ON late.op_id = h.id AND late.step = 'late'
    WHERE h.id > ? AND h.id <= ? {{tenant}}ORDER BY h.id"""  # noqa: S608 - names of ours
_ALLOWANCES = """
    SELECT w.account_id, w.id, w.tenant = a.tenant, a.tenant, a.subject, a.unit, w.op_key, w.amount, w.every, w.zone,
        w.anchor, w.source, w.priority, w.starts_at_us, w.until_us, w.next_at_us, w.created_at_us, w.fingerprint
    FROM daydo_quota_allowance w LEFT JOIN daydo_quota_account a ON a.id = w.account_id
    WHERE w.id > ? AND w.id <= ? {tenant}ORDER BY w.id"""
_AMENDMENTS = f"""
    SELECT m.account_id, m.id, m.amount, e.amount, m.created_at_us, {_ROLLED.format(row="m")}, h.account_id,
        m.tenant = h.tenant
    FROM daydo_quota_amendment m LEFT JOIN daydo_quota_hold h ON h.id = m.hold_id
    LEFT JOIN daydo_quota_entry e
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
        OR e.expired <> COALESCE(b.expired, 0) + e.expired_change
        OR e.debt <> COALESCE(b.debt, 0) + e.debt_change
        OR (e.kind = 'repaid' AND b.kind <> 'rolled_up' AND e.at_us <> b.at_us))
    ORDER BY e.account_id, e.seq LIMIT 1"""
# By kind: what its row says, and where its units go. A kind that is not here agrees with nothing.
_SAYS = {
    "granted": """g.account_id = e.account_id AND e.at_us = g.created_at_us AND e.amount = g.granted
        AND e.available_change IN (0, e.amount) AND e.reserved_change = 0 AND e.spent_change = 0
        AND e.expired_change = 0
        AND e.debt_change = 0""",
    "activated": """g.account_id = e.account_id AND e.at_us = g.effective_at_us AND g.effective_at_us > g.created_at_us
        AND e.amount = g.granted AND e.available_change = e.amount AND e.reserved_change = 0
        AND e.spent_change = 0 AND e.expired_change = 0
        AND e.debt_change = 0""",
    "grant_expired": """g.account_id = e.account_id AND e.at_us = g.expires_at_us
        AND e.available_change = -e.amount AND e.expired_change = e.amount AND e.reserved_change = 0
        AND e.spent_change = 0
        AND e.debt_change = 0""",
    "held": """h.account_id = e.account_id AND e.at_us = h.created_at_us AND e.amount = h.amount
        AND e.available_change = -e.amount AND e.reserved_change = e.amount AND e.spent_change = 0
        AND e.expired_change = 0
        AND e.debt_change = 0""",
    "confirmed": """h.account_id = e.account_id AND e.at_us = h.resolved_at_us AND e.amount = h.final AND h.amount > 0
        AND e.spent_change = e.amount
        AND e.available_change + e.reserved_change + e.spent_change + e.expired_change = e.debt_change
        AND e.debt_change >= 0""",
    "charged": """h.account_id = e.account_id AND e.at_us = h.resolved_at_us AND e.amount = h.final AND h.amount = 0
        AND e.spent_change = e.amount AND e.available_change + e.amount = e.debt_change AND e.debt_change >= 0
        AND e.reserved_change = 0 AND e.expired_change = 0""",
    "repaid": """COALESCE(g.account_id, h.account_id, m.account_id) = e.account_id AND e.amount > 0
        AND e.available_change = -e.amount AND e.debt_change = -e.amount AND e.reserved_change = 0
        AND e.spent_change = 0 AND e.expired_change = 0""",
    "cancelled": """h.account_id = e.account_id AND e.at_us = h.resolved_at_us AND e.amount = h.amount - h.captured
        AND e.reserved_change = -e.amount AND e.spent_change = 0
        AND e.available_change + e.expired_change = e.amount
        AND e.debt_change = 0""",
    "hold_expired": """h.account_id = e.account_id AND e.at_us = h.expires_at_us
        AND e.amount = h.amount - (h.captured - h.final) AND e.reserved_change = -e.amount AND e.spent_change = 0
        AND e.available_change + e.expired_change = e.amount
        AND e.debt_change = 0""",
    "captured": """m.account_id = e.account_id AND e.at_us = m.created_at_us AND e.amount = m.amount
        AND e.reserved_change = -e.amount AND e.spent_change = e.amount AND e.available_change = 0
        AND e.expired_change = 0
        AND e.debt_change = 0""",
    "refunded": """m.account_id = e.account_id AND e.at_us = m.created_at_us AND e.amount = m.amount
        AND e.spent_change = -e.amount AND e.reserved_change = 0
        AND e.available_change + e.expired_change = e.amount + e.debt_change AND e.debt_change <= 0""",
    "rolled_up": "e.amount = 0",
}
_SPEAKS = f"""
    SELECT e.account_id, e.seq FROM daydo_quota_entry e
    LEFT JOIN daydo_quota_grant g ON g.id = e.op_id
    LEFT JOIN daydo_quota_hold h ON h.id = e.op_id
    LEFT JOIN daydo_quota_amendment m ON m.id = e.op_id
    LEFT JOIN daydo_quota_hold amended ON amended.id = m.hold_id AND e.kind IN ('captured', 'refunded')
    WHERE ({{slices}}) AND (e.op_key <> COALESCE(g.op_key, h.op_key, m.op_key, '')
        OR e.hold_key <> COALESCE(amended.op_key, '') OR CASE e.kind
        {" ".join(f"WHEN '{kind}' THEN COALESCE({says}, 0)" for kind, says in _SAYS.items())} ELSE 0 END = 0)
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

_OF_ENTRIES = {
    "an entry's balances do not follow from the one before": _FOLLOWS,
    "an entry says other than its row": _SPEAKS,
}
_CHARGED = "what is spent is not what the holds were charged"

Stage = Literal["accounts", "grants", "allowances", "holds", "amendments", "entries", "charges"]
_NEXT: dict[Stage, Stage] = {
    "accounts": "grants",
    "grants": "allowances",
    "allowances": "holds",
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
            rows = (await self._read(sql.format(ids=marks, never=NEVER_US), args)).rows
            found += [Disagreement(complaint, row[0], str(row[1])) for row in rows]
        rows = (await self._read(_HELD.format(ids=marks), ids * 3)).rows
        found += _misheld(rows)
        first = min(found, key=lambda one: one.account_id, default=None)
        return Step(Place("accounts", ids[-1]), accounts=len(ids), found=first)

    async def _batch(self, place: Place) -> list[_Account]:
        mine: list[Value] = [] if self._tenant is None else [self._tenant]
        select = _BATCH.format(beyond=">=" if place.seq else ">", tenant="AND a.tenant = ? " if mine else "")
        return [
            _Account(*row) for row in (await self._read(select, [place.account_id, *mine, self._accounts_most])).rows
        ]

    async def _rows(self, place: Place) -> Step:
        walk = _WALKS[place.stage]
        # The tenant's rows, from windows of everybody's: so one costs the same whoever it belongs to.
        ids = f"SELECT MAX(id) FROM (SELECT id FROM {walk.table} WHERE id > ? ORDER BY id LIMIT ?) some_ids"  # noqa: S608
        last = (await self._read(ids, [place.row_id, self._rows_most])).rows[0][0]
        if last is None:
            return Step(_after(place))
        mine: list[Value] = [] if self._tenant is None else [self._tenant]
        sql = walk.select.format(tenant=walk.tenant if mine else "")
        for row in (await self._read(sql, [place.row_id, last, *mine])).rows:
            if not walk.agrees(*row):
                return Step(None, found=Disagreement(walk.complaint, row[0], row[1]))
        return Step(Place(place.stage, row_id=last))

    async def _entries(self, place: Place) -> Step:
        batch = await self._batch(place)
        if not batch:
            return Step(_after(place))
        slices, rest = _pack(batch, place, self._rows_most)
        entries = sum(one.last - one.after for one in slices)
        args = [value for one in slices for value in one]
        for complaint, select in _OF_ENTRIES.items():
            sql = select.format(slices=" OR ".join([_SLICE] * len(slices)))
            for row in (await self._read(sql, args)).rows if slices else ():
                return Step(None, entries=entries, found=Disagreement(complaint, row[0], str(row[1])))
        return Step(rest, entries=entries)

    async def _charges(self, place: Place) -> Step:
        batch = await self._batch(place)
        if not batch:
            return Step(None)
        if batch[0].seq > self._rows_most:
            return await self._some_charges(place if place.seq else Place("charges", batch[0].id))
        ids, room = list[int](), self._rows_most
        for account in batch:
            room -= account.seq
            if room < 0:
                break
            ids.append(account.id)
        for row in (await self._read(_CHARGES.format(ids=", ".join("?" * len(ids))), ids)).rows:
            return Step(None, found=Disagreement(_CHARGED, row[0], str(row[1])))
        return Step(Place("charges", ids[-1]))

    async def _some_charges(self, place: Place) -> Step:
        args: list[Value] = [place.account_id, place.row_id, self._rows_most, place.account_id]
        seq, spent, holds, last, charged = (await self._read(_SOME_CHARGES, args)).rows[0]
        charged += place.charged
        for after in range(place.seq, seq, self._rows_most) if place.seq else ():
            until = min(seq, after + self._rows_most)
            args = [place.row_id, place.account_id, after, until]
            entries, since = (await self._read(_SINCE, args)).rows[0]
            if entries != until - after:
                # Rolled up since the slice before: what they said is lost, so this account begins anew.
                return Step(Place("charges", place.account_id - 1))
            charged += since
        if holds == self._rows_most:
            return Step(Place("charges", place.account_id, seq, last, charged))
        found = Disagreement(_CHARGED, place.account_id, str(place.account_id)) if charged != spent else None
        return Step(Place("charges", place.account_id), found=found)


def _after(place: Place) -> Place:
    return Place(_NEXT[place.stage])


def _misheld(rows: Iterable[Sequence[Any]]) -> Iterator[Disagreement]:
    """Grants whose ``held`` is not what the open holds say they took from them; debts that are not what holds owe."""
    held: dict[tuple[int, str], int] = {}
    for account_id, row_id, units, parts, captured in rows:
        shares = _claimed(_shares(parts, captured)) if parts else [(row_id, units)]
        for grant_id, change in shares:
            held[account_id, grant_id] = held.get((account_id, grant_id), 0) + int(change)
    for (account_id, grant_id), difference in sorted(held.items()):
        if difference and grant_id == DEBT:
            yield Disagreement("the debt is not what the holds owe", account_id, str(account_id))
        elif difference:
            yield Disagreement("a grant's held units are not those of the open holds", account_id, grant_id)


def _claimed(shares: Iterable[Share]) -> list[tuple[str, int]]:
    return [(part.grant_id, part.refunded - part.used if part.grant_id == DEBT else -part.free) for part in shares]


def _shares(parts: str, captured: int) -> list[Share]:
    """None at all where they cannot be read: then the sums do not agree either."""
    try:
        return read_parts(parts, captured)
    except msgspec.DecodeError:
        return []


def _grant_agrees(
    account_id: int,
    grant_id: str,
    granted: int,
    parts: int,
    phase: str,
    kept: int,
    entered: int | None,
    created_at_us: int,
    rolled_us: int,
    at_home: int | None,
    tenant: str,
    subject: str,
    unit: str,
    key: str,
    source: str,
    priority: int,
    effective_at_us: int,
    expires_at_us: int,
    stored: str,
) -> bool:
    # A closed grant is not looked at when units are taken.
    if not at_home or granted != parts or phase not in (("pending", "live", "lapsed") if kept else ("closed",)):
        return False
    if entered != granted and (entered is not None or created_at_us > rolled_us):
        return False
    # "From now on" is stored as the time of that now.
    begins = [effective_at_us, None] if effective_at_us == created_at_us else [effective_at_us]
    asked = GrantUnits(
        id="",
        account=(tenant, subject, unit),
        key=key,
        amount=granted,
        source=source,
        priority=priority,
        effective_at_us=None,
        expires_at_us=_unless_never(expires_at_us),
        reason="",
    )
    return any(fingerprint(replace(asked, effective_at_us=begin)) == stored for begin in begins)


def _allowance_agrees(
    account_id: int,
    allowance_id: str,
    at_home: int | None,
    tenant: str,
    subject: str,
    unit: str,
    key: str,
    amount: int,
    every: Every,
    zone: str,
    anchor: Anchor,
    source: str,
    priority: int,
    starts_at_us: int,
    until_us: int,
    next_at_us: int,
    created_at_us: int,
    stored: str,
) -> bool:
    if not at_home:
        return False
    if next_at_us == NEVER_US:
        # It is over, perhaps by a disallow: until when it was to go on is not known any more.
        return True
    starts = [starts_at_us, None] if starts_at_us == created_at_us else [starts_at_us]
    asked = Allow(
        id="",
        account=(tenant, subject, unit),
        key=key,
        amount=amount,
        every=every,
        zone=zone,
        anchor=anchor,
        source=source,
        priority=priority,
        starts_at_us=None,
        until_us=_unless_never(until_us),
        reason="",
    )
    return any(fingerprint(replace(asked, starts_at_us=start)) == stored for start in starts)


def _unless_never(at_us: int) -> int | None:
    return at_us if at_us != NEVER_US else None


def _hold_agrees(
    account_id: int,
    hold_id: str,
    phase: str,
    leg: int,
    amount: int,
    captured: int,
    final: int,
    refunded: int,
    parts: str,
    created_at_us: int,
    expires_at_us: int,
    resolved_at_us: int,
    rolled_us: int,
    at_home: int | None,
    made: int | None,
    ended: str | None,
    late: str | None,
    charged_at_end: int,
    captures: int,
    refunds: int,
    claims: int,
) -> bool:
    shares = _shares(parts, captured)
    if not amount:
        # A tombstone, or a charge that nothing was held for.
        entered = made is None and created_at_us == expires_at_us == resolved_at_us
    else:
        entered = made == amount if made is not None else created_at_us <= rolled_us
    if ended is None:
        rolled_up = resolved_at_us <= rolled_us or expires_at_us <= rolled_us
        settled = phase in ("open", "tombstone") or (rolled_up and (phase, late) in _ENDS)
    else:
        settled = ended in _ENDS.get((phase, late), ())
    return (
        bool(at_home)
        and entered
        and settled
        and leg in (0, account_id)
        and claims == 1
        and (resolved_at_us == NEVER_US) == (phase == "open")
        and (resolved_at_us == expires_at_us or phase not in ("expired", "tombstone"))
        and (phase == "owing") == any(part.grant_id == DEBT and part.used > part.refunded for part in shares)
        and amount == sum(part.amount for part in shares)
        and captured == sum(part.used for part in shares) == captures + final
        and refunded == sum(part.refunded for part in shares) == refunds
        and (final == charged_at_end or resolved_at_us <= rolled_us)
        and (not final or phase in ("confirmed", "owing"))
    )


# By phase, and the entry of a confirm after the end: the entry that ended it.
_ENDS = {
    ("confirmed", None): ("confirmed", "charged"),
    ("confirmed", "confirmed"): ("hold_expired",),
    ("owing", None): ("confirmed", "charged"),
    ("cancelled", None): ("cancelled",),
    ("expired", None): ("hold_expired",),
}


def _amendment_agrees(
    account_id: int,
    amendment_id: str,
    amount: int,
    entered: int | None,
    created_at_us: int,
    rolled_us: int,
    owner_id: int | None,
    at_home: int | None,
) -> bool:
    entered_so = entered == amount if entered is not None else created_at_us <= rolled_us
    return bool(at_home) and owner_id == account_id and entered_so


class _Walk(NamedTuple):
    table: str
    select: str
    tenant: str
    complaint: str
    agrees: Callable[..., bool]


_WALKS = {
    "grants": _Walk(
        "daydo_quota_grant",
        _GRANTS,
        "AND ? IN (g.tenant, a.tenant) ",
        "a grant differs from its parts or its entry",
        _grant_agrees,
    ),
    "holds": _Walk(
        "daydo_quota_hold",
        _HOLDS,
        "AND ? IN (h.tenant, a.tenant) ",
        "a hold differs from its parts, amendments or entries",
        _hold_agrees,
    ),
    "allowances": _Walk(
        "daydo_quota_allowance",
        _ALLOWANCES,
        "AND ? IN (w.tenant, a.tenant) ",
        "an allowance is not what was asked for",
        _allowance_agrees,
    ),
    "amendments": _Walk(
        "daydo_quota_amendment",
        _AMENDMENTS,
        "AND ? IN (m.tenant, h.tenant) ",
        "a capture or refund differs from its entry",
        _amendment_agrees,
    ),
}


def _pack(batch: Sequence[_Account], place: Place, most: int) -> tuple[list[Slice], Place]:
    """Slices of at most ``most`` entries together, and the place behind them."""
    slices, room = list[Slice](), most
    for account in batch:
        if not room:
            break
        after = place.seq if place.seq and account.id == place.account_id else account.first - 1
        last = min(account.seq, after + room)
        if last > after:
            slices.append(Slice(account.id, after, last))
            room -= last - after
        if last < account.seq:
            return slices, Place("entries", account.id, last)
        place = Place("entries", account.id)
    return slices, place

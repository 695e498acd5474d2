"""The tables under the planner: what a batch must know, read under its accounts' locks, and what it decided, written.

The account row's lock is the only mutex: grants, holds and entries of an account change only under it. In our own
transaction (READ COMMITTED, or SQLite's one writer) everything after that lock is read plainly. In a caller's
transaction (``enlisted``) the session may be at REPEATABLE READ with an old snapshot, so everything is read with
locks. One exception: a locking read of a *missing* key would lock a gap there, and two newcomers would deadlock. So
keys of rows to be made are looked up plainly first, and where a row is missing only because the snapshot is old, its
INSERT says so (``UniqueViolation``): then the state is read again, with ``sure=True``.

Accounts are always locked in the order of their owners: a batch by one statement along the index on them, a caller's
transaction one by one. So two that lock several wait for each other in turn and never in a circle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec.structs import astuple

from daydo_db import Database, LockTimeout, Result, Tx, Value, now_sql, read_now_us
from daydo_kernel import Clock

from .planner import (
    NEVER_US,
    AccountKey,
    AccountRow,
    AmendmentRow,
    Cancel,
    Capture,
    CatchUp,
    Confirm,
    EntryRow,
    Extend,
    GrantRow,
    GrantUnits,
    HoldRow,
    Op,
    Plan,
    Refund,
    Reserve,
    ReserveAll,
    Share,
    State,
    accounts_of,
)

ALL_DUE = 2**31 - 1
"""As a limit: every overdue hold, because an operation must see the account exactly as it is now."""

_INSERT_ROWS = 500
# Fewer: a CASE is gone through row by row.
_UPDATE_ROWS = 64

Row = TypeVar("Row", AccountRow, GrantRow, HoldRow, AmendmentRow)

_TABLES: dict[type[msgspec.Struct], str] = {
    AccountRow: "daydo_quota_account",
    GrantRow: "daydo_quota_grant",
    HoldRow: "daydo_quota_hold",
    AmendmentRow: "daydo_quota_amendment",
    EntryRow: "daydo_quota_entry",
}
_CHANGING: dict[type[msgspec.Struct], tuple[str, ...]] = {
    AccountRow: ("pending", "available", "reserved", "spent", "expired", "seq", "next_due_at_us"),
    GrantRow: ("phase", "remaining", "held", "spent", "expired"),
    HoldRow: ("phase", "captured", "final", "refunded", "parts", "expires_at_us", "resolved_at_us"),
}
_KEYED_BY: dict[type[msgspec.Struct], str] = {
    GrantRow: "tenant = ? AND op_key = ?",
    HoldRow: "tenant = ? AND op_key = ?",
    AmendmentRow: "tenant = ? AND kind = ? AND op_key = ?",
}
_PARTS = msgspec.json.Decoder(list[Share])

# The two ways of "make it unless it is there": catching UniqueViolation instead would leave a shared lock on the other
# transaction's row, and two newcomers who both want it exclusively next would deadlock.
_UNLESS_THERE = {"sqlite": "ON CONFLICT DO NOTHING", "mysql": "ON DUPLICATE KEY UPDATE id = id"}
# A small table would otherwise be scanned, and every row locked on the way.
_BY_OWNER = {"sqlite": "", "mysql": "FORCE INDEX (daydo_quota_account_owner)"}
_BY_ID = {"sqlite": "", "mysql": "FORCE INDEX (PRIMARY)"}


class Reading(NamedTuple):
    """What a batch may be decided on. Operations on accounts in ``held`` or ``missing`` are no part of it.

    ``held``: other transactions have these. ``missing``: an operation would open these.
    """

    state: State
    now_us: int
    held: set[AccountKey]
    missing: set[AccountKey]


class Store(msgspec.Struct, frozen=True):
    """One transaction's view of the tables."""

    tx: Tx
    clock: Clock | None
    enlisted: bool

    async def read(self, ops: Sequence[Op], *, sure: bool = False, wait_s: float | None = None) -> tuple[State, int]:
        """The state ``ops`` are decided on, and the time, read after the locks were had.

        Raises:
            LockTimeout: an account was not had within ``wait_s`` (None: the database's ``lock_timeout_s``).
        """
        try:
            async with asyncio.timeout(wait_s):
                accounts = await self._lock_all(ops)
        except TimeoutError:
            raise LockTimeout() from None
        return await self._read_under_lock(accounts, ops, sure, ALL_DUE)

    async def _lock_all(self, ops: Sequence[Op]) -> dict[AccountKey, AccountRow]:
        keys, opening = sorted({key for op in ops for key in accounts_of(op)}), _opening(ops)
        if self.enlisted:
            found = [await self._lock(key, key in opening) for key in keys]
            rows = [row for row in found if row is not None]
        else:
            rows = await self._lock_together(keys)
            known = {_owner(row) for row in rows}
            if opened := [key for key in keys if key in opening and key not in known]:
                await self._open(opened)
                rows += await self._lock_together(opened)
        return {_owner(row): row for row in rows}

    async def read_free(self, ops: Sequence[Op]) -> Reading:
        """As :meth:`read`, without waiting for anybody: accounts that others have are left out, and none is opened."""
        keys = sorted({key for op in ops for key in accounts_of(op)})
        rows = await self._lock_together(keys, self.tx.dialect.skip_locked)
        accounts = {_owner(row): row for row in rows}
        held, missing = set[AccountKey](), set[AccountKey]()
        if absent := [key for key in keys if key not in accounts]:
            held = await self._existing(absent)
            missing = (_opening(ops) & {*absent}) - held
        ready = [op for op in ops if not any(key in held or key in missing for key in accounts_of(op))]
        if not ready:
            return Reading(State(), 0, held, missing)
        return Reading(*await self._read_under_lock(accounts, ready, True, ALL_DUE), held, missing)

    async def read_due(self, account_id: int, limit: int) -> tuple[State, int]:
        """The first ``limit`` overdue holds of an account; an empty state if another process has the account."""
        select = f"{_select(AccountRow)} WHERE id = ? {self.tx.dialect.for_update} {self.tx.dialect.skip_locked}"
        rows = await self._fetch(AccountRow, select, [account_id])
        return await self._read_under_lock({_owner(row): row for row in rows}, [], True, limit)

    async def insert_keys(self, plan: Plan) -> None:
        """The rows that claim keys; first of all writes, so that a refused one has nothing to undo.

        Raises:
            UniqueViolation: another transaction claimed a key since it was looked up.
        """
        await self._insert(plan.new_grants)
        await self._insert(plan.new_holds)
        await self._insert(plan.new_amendments)

    async def write(self, plan: Plan) -> None:
        """Everything else. A wrong second writer would fail here: (account, seq) and (op_id, step) are unique."""
        await self._insert(plan.entries)
        await self._update(plan.grants)
        await self._update(plan.holds)
        await self._update(plan.accounts)

    async def _now_and_grants(self, account_ids: Sequence[int]) -> tuple[int, list[GrantRow]]:
        # Not with the lock: MySQL's time is that of the statement's start, and the lock may have taken a while.
        if self.enlisted or not account_ids:
            return await read_now_us(self.tx, self.clock), await self._unfinished_grants(account_ids)
        columns = ", ".join(GrantRow.__struct_fields__)
        result = await self.tx.execute(
            f"SELECT {now_sql(self.tx.dialect, self.clock)} AS now_us, {columns} FROM (SELECT 1 AS one) once "  # noqa: S608
            f"LEFT JOIN {_TABLES[GrantRow]} ON account_id IN ({marks(account_ids)}) AND {_UNFINISHED}",
            account_ids,
        )
        return int(result.rows[0][0]), _rows(GrantRow, [row[1:] for row in result.rows if row[1] is not None])

    @property
    def _locking(self) -> str:
        return self.tx.dialect.for_update if self.enlisted else ""

    async def _lock(self, key: AccountKey, opens: bool) -> AccountRow | None:
        select = f"{_select(AccountRow)} WHERE {_OWNED}"
        if opens and not await self._fetch(AccountRow, select, key):
            await self._open([key])
        select = f"{select} {self.tx.dialect.for_update}"
        rows = await self._fetch(AccountRow, select, key)
        if not rows and opens:
            await self._open([key])
            rows = await self._fetch(AccountRow, select, key)
        return rows[0] if rows else None

    async def _lock_together(self, keys: Sequence[AccountKey], skip: str = "") -> list[AccountRow]:
        dialect = self.tx.dialect
        where = f"{_BY_OWNER[dialect.name]} WHERE {_any(_OWNED, keys)} {dialect.for_update} {skip}"
        return await self._fetch(AccountRow, f"{_select(AccountRow)} {where}", _flat(keys))

    async def _open(self, keys: Sequence[AccountKey]) -> None:
        places = ", ".join(["(?, ?, ?)"] * len(keys))
        insert = f"INSERT INTO daydo_quota_account (tenant, subject, unit) VALUES {places}"  # noqa: S608
        await self.tx.execute(f"{insert} {_UNLESS_THERE[self.tx.dialect.name]}", _flat(keys))

    async def _existing(self, keys: Sequence[AccountKey]) -> set[AccountKey]:
        select = f"SELECT tenant, subject, unit FROM daydo_quota_account WHERE {_any(_OWNED, keys)}"  # noqa: S608
        return {(row[0], row[1], row[2]) for row in (await self.tx.execute(select, _flat(keys))).rows}

    async def _read_under_lock(
        self, accounts: dict[AccountKey, AccountRow], ops: Sequence[Op], sure: bool, limit: int
    ) -> tuple[State, int]:
        grants = await self._by_key(GrantRow, _grant_keys(ops), sure)
        holds = await self._named_holds(ops, sure)
        amendments = await self._by_key(AmendmentRow, _amendment_keys(ops), sure)
        moved = {
            accounts[key].id for op in ops if not isinstance(op, _QUIET) for key in accounts_of(op) if key in accounts
        }
        now_us, unfinished = await self._now_and_grants(sorted(moved))
        due = [row.id for row in accounts.values() if row.next_due_at_us <= now_us]
        grants += unfinished + await self._unfinished_grants(sorted({*due} - moved))
        grants += await self._charged_grants(ops, holds, {row.id for row in grants})
        next_hold_us = {}
        for account_id in due:
            overdue, next_hold_us[account_id] = await self._overdue_holds(account_id, now_us, limit)
            holds += overdue
        return State(accounts, grants, holds, next_hold_us, amendments), now_us

    async def _named_holds(self, ops: Sequence[Op], sure: bool) -> list[HoldRow]:
        holds = await self._by_key(HoldRow, _hold_keys(ops), sure)
        if self._locking and not sure:
            # Not to be made but to be there, so they are missing because the snapshot is old, or the caller is wrong.
            seen = {(row.tenant, row.op_key) for row in holds}
            holds += await self._by_key(HoldRow, [key for key in _old_hold_keys(ops) if key not in seen], sure=True)
        return holds

    async def _charged_grants(self, ops: Sequence[Op], holds: Sequence[HoldRow], known: set[str]) -> list[GrantRow]:
        """Where refunds go: also to grants that are closed."""
        refunded = {(op.account[0], op.hold_key) for op in ops if isinstance(op, Refund)}
        parts = [part for row in holds if (row.tenant, row.op_key) in refunded for part in row.parts]
        ids = sorted({part.grant_id for part in parts if part.used > part.refunded} - known)
        if not ids:
            return []
        return await self._fetch(GrantRow, f"{_select(GrantRow)} WHERE id IN ({marks(ids)}) {self._locking}", ids)

    async def _by_key(self, table: type[Row], keys: Sequence[tuple[str, ...]], sure: bool) -> list[Row]:
        if not keys:
            return []
        where, args = _any(_KEYED_BY[table], keys), _flat(keys)
        if self._locking and not sure:
            found = await self._fetch(table, f"{_select(table)} WHERE {where}", args)
            if not found:
                return []
            where, args = f"id IN ({marks(found)})", [str(row.id) for row in found]
        return await self._fetch(table, f"{_select(table)} WHERE {where} {self._locking}", args)

    async def _unfinished_grants(self, account_ids: Sequence[int]) -> list[GrantRow]:
        if not account_ids:
            return []
        return await self._fetch(GrantRow, f"{_unfinished_grants_of(account_ids)} {self._locking}", account_ids)

    async def _overdue_holds(self, account_id: int, now_us: int, limit: int) -> tuple[list[HoldRow], int]:
        in_order = f"ORDER BY expires_at_us LIMIT ? {self._locking}"
        args = (account_id, now_us)
        overdue = await self._fetch(HoldRow, f"{_OPEN_HOLDS} AND expires_at_us <= ? {in_order}", (*args, limit))
        if len(overdue) == limit:
            return overdue, overdue[-1].expires_at_us
        later = await self._fetch(HoldRow, f"{_OPEN_HOLDS} AND expires_at_us > ? {in_order}", (*args, 1))
        return overdue, later[0].expires_at_us if later else NEVER_US

    async def _fetch(self, table: type[Row], sql: str, args: Sequence[Value]) -> list[Row]:
        return _rows(table, (await self.tx.execute(sql, args)).rows)

    async def _insert(self, rows: Sequence[GrantRow | HoldRow | AmendmentRow | EntryRow]) -> None:
        for start in range(0, len(rows), _INSERT_ROWS):
            some = rows[start : start + _INSERT_ROWS]
            names = some[0].__struct_fields__
            places = ", ".join([f"({marks(names)})"] * len(some))
            insert = f"INSERT INTO {_TABLES[type(some[0])]} ({', '.join(names)}) VALUES {places}"  # noqa: S608
            await self.tx.execute(insert, [value for row in some for value in _values(row)])

    async def _update(self, rows: Sequence[AccountRow] | Sequence[GrantRow] | Sequence[HoldRow]) -> None:
        for start in range(0, len(rows), _UPDATE_ROWS):
            some = rows[start : start + _UPDATE_ROWS]
            ids: list[Value] = [row.id for row in some]
            changes, args = [], list[Value]()
            names = _CHANGING[type(some[0])]
            for name, values in zip(names, zip(*map(attrgetter(*names), some), strict=True), strict=True):
                written = [_parts(value) for value in values] if name == "parts" else values
                if len(set(written)) == 1:
                    changes.append(f"{name} = ?")
                    args.append(written[0])
                else:
                    changes.append(f"{name} = CASE id {'WHEN ? THEN ? ' * len(some)}END")
                    args += chain.from_iterable(zip(ids, written, strict=True))
            table = f"{_TABLES[type(some[0])]} {_BY_ID[self.tx.dialect.name]}"
            update = f"UPDATE {table} SET {', '.join(changes)} WHERE id IN ({marks(ids)})"  # noqa: S608 - names of ours
            await self.tx.execute(update, args + ids)


async def read_unlocked(db: Database, accounts: Sequence[AccountRow], now_us: int) -> dict[int, State]:
    """What CatchUps at ``now_us`` are decided on, by account, outside any transaction and without a lock; for looking.

    Two statements, each with the account's row in it: where it is the same in both and as in ``accounts``, nobody has
    written in between and all belongs together. Accounts that somebody has written to are left out.
    """
    ids = [row.id for row in accounts]
    grants = await db.query(_beside_accounts(GrantRow, ids, _UNFINISHED), ids)
    overdue = await db.query(_beside_accounts(HoldRow, ids, "phase = 'open' AND expires_at_us <= ?"), [now_us, *ids])
    grants_of, holds_of = _by_account(GrantRow, grants), _by_account(HoldRow, overdue)
    seen = [AccountRow(*row[:_ACCOUNT_WIDTH]) for result in (grants, overdue) for row in result.rows]
    known = {row.id: row for row in accounts}
    changed = {row.id for row in seen if row != known[row.id]}
    return {
        row.id: State(
            accounts={(row.tenant, row.subject, row.unit): row}, grants=grants_of[row.id], holds=holds_of[row.id]
        )
        for row in accounts
        if row.id not in changed
    }


_QUIET = (GrantUnits, Extend, CatchUp)
"""Operations that need no grants but their own."""


def _select(table: type[msgspec.Struct]) -> str:
    return f"SELECT {', '.join(table.__struct_fields__)} FROM {_TABLES[table]}"  # noqa: S608 - names of ours


_OPEN_HOLDS = f"{_select(HoldRow)} WHERE account_id = ? AND phase = 'open'"


_UNFINISHED = "phase IN ('pending', 'live', 'lapsed')"
_ACCOUNT_WIDTH = len(AccountRow.__struct_fields__)


def _unfinished_grants_of(account_ids: Sequence[int]) -> str:
    return f"{_select(GrantRow)} WHERE account_id IN ({marks(account_ids)}) AND {_UNFINISHED}"


def _beside_accounts(table: type[Row], account_ids: Sequence[int], condition: str) -> str:
    columns = [f"a.{name}" for name in AccountRow.__struct_fields__]
    columns += [f"its.{name}" for name in table.__struct_fields__]
    return (
        f"SELECT {', '.join(columns)} FROM {_TABLES[AccountRow]} a "  # noqa: S608 - names of ours
        f"LEFT JOIN {_TABLES[table]} its ON its.account_id = a.id AND {condition} WHERE a.id IN ({marks(account_ids)})"
    )


def _by_account(table: type[Row], result: Result) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {row[0]: [] for row in result.rows}
    for row in _rows(table, [row[_ACCOUNT_WIDTH:] for row in result.rows if row[_ACCOUNT_WIDTH] is not None]):
        found[row.account_id].append(row)  # type: ignore[attr-defined]  # never accounts themselves
    return found


def _rows(table: type[Row], found: Iterable[Sequence[Any]]) -> list[Row]:
    rows = [table(*row) for row in found]
    for row in rows:
        if isinstance(row, HoldRow):
            row.parts = _PARTS.decode(row.parts)  # type: ignore[arg-type]  # text, as it came
    return rows


def marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


_OWNED = "tenant = ? AND subject = ? AND unit = ?"


def _any(condition: str, keys: Sequence[object]) -> str:
    return " OR ".join([condition] * len(keys))


def _flat(keys: Iterable[Sequence[str]]) -> list[Value]:
    return [part for key in keys for part in key]


def _values(row: GrantRow | HoldRow | AmendmentRow | EntryRow) -> Sequence[Value]:
    values = astuple(row)
    return [_parts(value) if type(value) is list else value for value in values] if type(row) is HoldRow else values


def _parts(parts: Sequence[Share]) -> str:
    return msgspec.json.encode(parts).decode()


def _owner(row: AccountRow) -> AccountKey:
    return row.tenant, row.subject, row.unit


def _opening(ops: Sequence[Op]) -> set[AccountKey]:
    """The accounts that are made if they are not there."""
    return {op.account for op in ops if isinstance(op, GrantUnits | Cancel)}


def _grant_keys(ops: Sequence[Op]) -> list[tuple[str, str]]:
    return sorted({(op.account[0], op.key) for op in ops if isinstance(op, GrantUnits)})


def _hold_keys(ops: Sequence[Op]) -> list[tuple[str, str]]:
    made = {(accounts_of(op)[0][0], op.key) for op in ops if isinstance(op, Reserve | ReserveAll | Cancel)}
    return sorted({*made, *_old_hold_keys(ops)})


def _old_hold_keys(ops: Sequence[Op]) -> list[tuple[str, str]]:
    named = {(op.account[0], op.key) for op in ops if isinstance(op, Confirm | Extend)}
    amended = {(op.account[0], op.hold_key) for op in ops if isinstance(op, Capture | Refund)}
    return sorted(named | amended)


def _amendment_keys(ops: Sequence[Op]) -> list[tuple[str, str, str]]:
    captures = {(op.account[0], "capture", op.key) for op in ops if isinstance(op, Capture)}
    refunds = {(op.account[0], "refund", op.key) for op in ops if isinstance(op, Refund)}
    return sorted(captures | refunds)

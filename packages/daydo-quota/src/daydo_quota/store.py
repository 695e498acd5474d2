"""The tables under the planner: what a batch must know, read under its accounts' locks, and what it decided, written.

The account row's lock is the only mutex: grants, holds and entries of an account change only under it. In our own
transaction (READ COMMITTED, or SQLite's one writer) everything after that lock is read plainly. In a caller's
transaction (``enlisted``) the session may be at REPEATABLE READ with an old snapshot, so everything is read with
locks. One exception: a locking read of a *missing* key would lock a gap there, and two newcomers would deadlock. So
keys of rows to be made are looked up plainly first, and where a row is missing only because the snapshot is old, its
INSERT says so (``UniqueViolation``): then the state is read again, with ``sure=True``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from daydo_db import Database, Result, Tx, Value, read_now_us
from daydo_kernel import Clock

from .planner import (
    NEVER_US,
    AccountKey,
    AccountRow,
    Cancel,
    CatchUp,
    Confirm,
    EntryRow,
    GrantRow,
    GrantUnits,
    HoldRow,
    Op,
    Plan,
    Reserve,
    Share,
    State,
)

ALL_DUE = 2**31 - 1
"""As a limit: every overdue hold, because an operation must see the account exactly as it is now."""

_INSERT_ROWS = 500

Row = TypeVar("Row", AccountRow, GrantRow, HoldRow)

_TABLES: dict[type[msgspec.Struct], str] = {
    AccountRow: "daydo_quota_account",
    GrantRow: "daydo_quota_grant",
    HoldRow: "daydo_quota_hold",
    EntryRow: "daydo_quota_entry",
}
_CHANGING: dict[type[msgspec.Struct], tuple[str, ...]] = {
    AccountRow: ("pending", "available", "reserved", "spent", "expired", "seq", "next_due_at_us"),
    GrantRow: ("phase", "remaining", "held", "spent", "expired"),
    HoldRow: ("phase", "captured", "parts", "resolved_at_us"),
}
_PARTS = msgspec.json.Decoder(list[Share])

# The two ways of "make it unless it is there": catching UniqueViolation instead would leave a shared lock on the other
# transaction's row, and two newcomers who both want it exclusively next would deadlock.
_OPEN_ACCOUNT = {
    "sqlite": "INSERT INTO daydo_quota_account (tenant, subject, unit) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
    "mysql": "INSERT INTO daydo_quota_account (tenant, subject, unit) VALUES (?, ?, ?) ON DUPLICATE KEY UPDATE id = id",
}


class Store(msgspec.Struct, frozen=True):
    """One transaction's view of the tables."""

    tx: Tx
    clock: Clock | None
    enlisted: bool

    async def read(self, ops: Sequence[Op], *, sure: bool = False) -> tuple[State, int]:
        """The state ``ops`` are decided on, and the time, read after the locks were had."""
        rows = [await self._lock(key, _opens_account(key, ops)) for key in sorted({op.account for op in ops})]
        accounts = {(row.tenant, row.subject, row.unit): row for row in rows if row is not None}
        return await self._read_under_lock(accounts, ops, sure, ALL_DUE)

    async def read_due(self, account_id: int, limit: int) -> tuple[State, int]:
        """The first ``limit`` overdue holds of an account; an empty state if another process has the account."""
        select = f"{_select(AccountRow)} WHERE id = ? {self.tx.dialect.for_update} {self.tx.dialect.skip_locked}"
        rows = await self._fetch(AccountRow, select, [account_id])
        return await self._read_under_lock({(row.tenant, row.subject, row.unit): row for row in rows}, [], True, limit)

    async def insert_keys(self, plan: Plan) -> None:
        """The rows that claim keys; first of all writes, so that a refused one has nothing to undo.

        Raises:
            UniqueViolation: another transaction claimed a key since it was looked up.
        """
        await self._insert(plan.new_grants)
        await self._insert(plan.new_holds)

    async def write(self, plan: Plan) -> None:
        """Everything else. A wrong second writer would fail here: (account, seq) and (op_id, step) are unique."""
        await self._insert(plan.entries)
        for grant in plan.grants:
            await self._update(grant, grant.id)
        for hold in plan.holds:
            await self._update(hold, hold.id)
        for account in plan.accounts:
            await self._update(account, account.id)

    async def now_us(self) -> int:
        # A statement of its own: MySQL's time is that of the statement's start, and the lock may have taken a while.
        return await read_now_us(self.tx, self.clock)

    @property
    def _locking(self) -> str:
        return self.tx.dialect.for_update if self.enlisted else ""

    async def _lock(self, key: AccountKey, opens: bool) -> AccountRow | None:
        select = f"{_select(AccountRow)} WHERE tenant = ? AND subject = ? AND unit = ?"
        open_account = _OPEN_ACCOUNT[self.tx.dialect.name]
        if opens and self.enlisted and not await self._fetch(AccountRow, select, key):
            await self.tx.execute(open_account, key)
        select = f"{select} {self.tx.dialect.for_update}"
        rows = await self._fetch(AccountRow, select, key)
        if not rows and opens:
            await self.tx.execute(open_account, key)
            rows = await self._fetch(AccountRow, select, key)
        return rows[0] if rows else None

    async def _read_under_lock(
        self, accounts: dict[AccountKey, AccountRow], ops: Sequence[Op], sure: bool, limit: int
    ) -> tuple[State, int]:
        now_us = await self.now_us()
        grants = await self._by_key(GrantRow, _keys(ops, GrantUnits), sure)
        holds = await self._by_key(HoldRow, _keys(ops, Confirm), sure=True)
        holds += await self._by_key(HoldRow, _keys(ops, Reserve, Cancel), sure)
        due = [row.id for row in accounts.values() if row.next_due_at_us <= now_us]
        moved = [accounts[op.account].id for op in ops if op.account in accounts and not isinstance(op, _QUIET)]
        grants += await self._unfinished_grants(sorted({*due, *moved}))
        next_hold_us = {}
        for account_id in due:
            overdue, next_hold_us[account_id] = await self._overdue_holds(account_id, now_us, limit)
            holds += overdue
        return State(accounts=accounts, grants=grants, holds=holds, next_hold_us=next_hold_us), now_us

    async def _by_key(self, table: type[Row], keys: Sequence[tuple[str, str]], sure: bool) -> list[Row]:
        if not keys:
            return []
        where = " OR ".join(["tenant = ? AND op_key = ?"] * len(keys))
        args = [part for key in keys for part in key]
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

    async def _insert(self, rows: Sequence[GrantRow | HoldRow | EntryRow]) -> None:
        for start in range(0, len(rows), _INSERT_ROWS):
            some = rows[start : start + _INSERT_ROWS]
            names = some[0].__struct_fields__
            places = ", ".join([f"({marks(names)})"] * len(some))
            insert = f"INSERT INTO {_TABLES[type(some[0])]} ({', '.join(names)}) VALUES {places}"  # noqa: S608
            await self.tx.execute(insert, [value for row in some for value in _values(row, names)])

    async def _update(self, row: AccountRow | GrantRow | HoldRow, row_id: int | str) -> None:
        names = _CHANGING[type(row)]
        changes = ", ".join(f"{name} = ?" for name in names)
        await self.tx.execute(
            f"UPDATE {_TABLES[type(row)]} SET {changes} WHERE id = ?",  # noqa: S608 - names of ours
            [*_values(row, names), row_id],
        )


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


_QUIET = (GrantUnits, CatchUp)


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


def _values(row: msgspec.Struct, names: Iterable[str]) -> list[Value]:
    values = (getattr(row, name) for name in names)
    return [msgspec.json.encode(value).decode() if isinstance(value, list) else value for value in values]


def _opens_account(key: AccountKey, ops: Sequence[Op]) -> bool:
    return any(op.account == key and isinstance(op, GrantUnits | Cancel) for op in ops)


def _keys(ops: Sequence[Op], *kinds: type[GrantUnits | Reserve | Confirm | Cancel]) -> list[tuple[str, str]]:
    named = {(op.account[0], op.key) for op in ops if not isinstance(op, CatchUp) and isinstance(op, kinds)}
    return sorted(named)

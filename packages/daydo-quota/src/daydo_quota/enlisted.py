"""The tables under the planner inside a caller's own transaction, ours or one that is enlisted.

Calls in one transaction take turns, whichever tasks they are of: each is decided on what the one before has written. A
call that fails half-way cannot undo its half, so that transaction can only be rolled back then.

A session that is not ours may be at REPEATABLE READ with an old snapshot, so everything is read with locks. But there a
locking read also locks the gaps beside what it finds, or where it finds nothing, and newcomers would wait for the
caller, or deadlock. So rows are first looked for plainly, and then locked by their ids. What the snapshot does not show
is looked for on another connection, the ledger's own: of a locked account at once; of a key that seems to be new only
where its INSERT says that it is not (``UniqueViolation``), or where without it the call would be refused
(``sure=True``).

Accounts are locked one by one, in the order of their owners.
"""

from __future__ import annotations

from collections.abc import Sequence

from daydo_db import Database, Transaction, Tx, Value, read_now_us
from daydo_kernel import Clock

from .ops import Allow, CatchUp, Disallow, Extend, GrantUnits, Op, accounts_of
from .rows import (
    AccountKey,
    AccountRow,
    AllowanceRow,
    AmendmentRow,
    GrantRow,
    HoldRow,
    Plan,
    State,
    owner_of,
)
from .store import (
    ALL_DUE,
    BY_ID,
    OWNED,
    TABLES,
    Ask,
    Found,
    Row,
    Store,
    by_key,
    inserts,
    keys_of,
    marks,
    next_hold_us,
    opening,
    select,
)

_QUIET = (GrantUnits, Allow, Disallow, Extend, CatchUp)
"""Operations that need no grants but their own."""


class EnlistedStore(Store):
    """A caller's transaction and its view of the tables; ``db`` is asked for what its snapshot may not show."""

    def __init__(self, tx: Tx, clock: Clock | None, db: Database) -> None:
        super().__init__(tx, clock)
        self.locking = tx.dialect.for_update
        self._db = db
        self.may_be_old = bool(self.locking) and not isinstance(tx, Transaction)
        """Ours are at READ COMMITTED, where a locking read of a missing row locks nothing."""

    async def read_enlisted(self, op: Op, *, sure: bool = False) -> tuple[State, int]:
        """The state ``op`` is decided on, and the time, read after the locks were had; ``sure``: whatever it costs."""
        keys, opened = sorted(accounts_of(op)), opening([op])
        locked = [await self._lock(key, key in opened) for key in keys]
        accounts = {owner_of(row): row for row in locked if row is not None}
        grants = await self._by_key(GrantRow, op, sure)
        holds = await self._by_key(HoldRow, op, sure)
        amendments = await self._by_key(AmendmentRow, op, sure)
        allowances = await self._by_key(AllowanceRow, op, sure)
        # Operations that need no grants but their own are spared the others.
        moved = [] if isinstance(op, _QUIET) else sorted(row.id for row in accounts.values())
        now_us = await read_now_us(self.tx, self._clock)
        grants += await self._unfinished_grants(moved)
        found = Found(now_us, grants, holds, amendments, allowances, set(moved))
        return await self._complete([op], accounts, found, ALL_DUE)

    async def claim(self, plan: Plan) -> None:
        """The rows that claim keys.

        Raises:
            UniqueViolation: another transaction claimed a key that this session cannot see. Nothing was written.
        """
        await self.tx.execute_all(self._claims(plan))

    async def write(self, plan: Plan, *, last: bool = False) -> None:
        """All but the claims, which are made; it is the caller who commits."""
        await self.tx.execute_all([*inserts(plan.entries), *self._changes(plan)])

    async def _lock(self, key: AccountKey, opens: bool) -> AccountRow | None:
        rows = await self._find(AccountRow, OWNED, key, sure=not opens)
        if not rows and opens:
            await self._open([key])
            rows = await self._fetch(AccountRow, f"{select(AccountRow)} WHERE {OWNED} {self.locking}", key)
        return rows[0] if rows else None

    async def _by_key(self, table: type[Row], op: Op, sure: bool) -> list[Row]:
        keys = keys_of(table, [op])
        return await self._find(table, *by_key(table, keys), sure=sure) if keys else []

    async def _find(self, table: type[Row], where: str, args: Sequence[Value], *, sure: bool) -> list[Row]:
        """What is named; rows that belong to one name come and go together."""
        if not self.may_be_old:
            return await super()._among(table, where, args)
        ids = await self._ids(self.tx.execute, table, where, args)
        if sure and not ids:
            ids = await self._ids(self._db.query, table, where, args)
        return await self._locked(table, where, args, ids)

    async def _among(self, table: type[Row], where: str, args: Sequence[Value], first: int = ALL_DUE) -> list[Row]:
        if not self.may_be_old:
            return await super()._among(table, where, args, first)
        # The accounts are locked: what was not committed before is this transaction's own.
        ids = await self._ids(self.tx.execute, table, where, args) | await self._ids(self._db.query, table, where, args)
        return await self._locked(table, where, args, ids)

    async def _next_hold_us(self, account_id: int, now_us: int) -> int:
        seen_us = await super()._next_hold_us(account_id, now_us)
        return min(seen_us, await next_hold_us(self._db.query, account_id, now_us)) if self.may_be_old else seen_us

    async def _ids(self, ask: Ask, table: type[Row], where: str, args: Sequence[Value]) -> set[Value]:
        found = await ask(f"SELECT id FROM {TABLES[table]} WHERE {where}", args)  # noqa: S608 - names of ours
        return {row_id for (row_id,) in found.rows}

    async def _locked(self, table: type[Row], where: str, args: Sequence[Value], ids: set[Value]) -> list[Row]:
        """Those of ``ids`` of which ``where`` is true now."""
        if not ids:
            return []
        by_id = f"{BY_ID[self._dialect]} WHERE id IN ({marks(ids)}) AND ({where})"
        return await self._fetch(table, f"{select(table)} {by_id} {self.locking}", [*ids, *args])

"""The tables under the planner inside a caller's own transaction, ours or one that is enlisted.

Its session may be at REPEATABLE READ with an old snapshot, so everything is read with locks. One exception: a locking
read of a *missing* key would lock a gap there, and two newcomers would deadlock. So keys of rows to be made are looked
up plainly first, and where a row is missing only because the snapshot is old, its INSERT says so (``UniqueViolation``):
then the state is read again, with ``sure=True``. A refusal is looked into in that way, too: it may be a repeat, or name
a hold, that the snapshot does not show. At REPEATABLE READ that locks the gap where its key would be, until the caller
ends.

Accounts are locked one by one, in the order of their owners.
"""

from __future__ import annotations

from daydo_db import Tx, read_now_us
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
    OWNED,
    Found,
    Row,
    Store,
    by_key,
    inserts,
    keys_of,
    marks,
    opening,
    select,
)

_QUIET = (GrantUnits, Allow, Disallow, Extend, CatchUp)
"""Operations that need no grants but their own."""


class EnlistedStore(Store):
    """A caller's transaction and its view of the tables."""

    def __init__(self, tx: Tx, clock: Clock | None) -> None:
        super().__init__(tx, clock)
        self.locking = tx.dialect.for_update

    async def read_enlisted(self, op: Op, *, sure: bool = False) -> tuple[State, int]:
        """The state ``op`` is decided on, and the time, read after the locks were had; ``sure``: whatever it costs."""
        keys, opened = sorted(accounts_of(op)), opening([op])
        locked = [await self._lock(key, key in opened) for key in keys]
        accounts = {owner_of(row): row for row in locked if row is not None}
        grants = await self._by_key(GrantRow, op, sure)
        holds = await self._by_key(HoldRow, op, sure)
        amendments = await self._by_key(AmendmentRow, op, sure)
        allowances = await self._by_key(AllowanceRow, op, sure)
        # To lock what is not needed would lock gaps in which others put theirs.
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
        plainly = f"{select(AccountRow)} WHERE {OWNED}"
        if opens and not await self._fetch(AccountRow, plainly, key):
            await self._open([key])
        locking = f"{plainly} {self.locking}"
        rows = await self._fetch(AccountRow, locking, key)
        if not rows and opens:
            await self._open([key])
            rows = await self._fetch(AccountRow, locking, key)
        return rows[0] if rows else None

    async def _by_key(self, table: type[Row], op: Op, sure: bool) -> list[Row]:
        keys = keys_of(table, [op])
        if not keys:
            return []
        where, args = by_key(table, keys)
        if self.locking and not sure:
            found = await self._fetch(table, f"{select(table)} WHERE {where}", args)
            if not found:
                return []
            where, args = f"id IN ({marks(found)})", [str(row.id) for row in found]
        return await self._fetch(table, f"{select(table)} WHERE {where} {self.locking}", args)

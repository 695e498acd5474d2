"""The tables under the planner in a batch's transaction that waits for nobody, and reads only what is not remembered.

It is for what cannot be decided without reading (``draft.py``).

The first packet locks every account that is free. Of an account that is remembered it reads the stamp alone: if that is
the one that was left, all that was remembered is so (``memory.py``). A second packet, where one is needed, reads what
is new here and what others have written to since.
"""

from __future__ import annotations

from collections.abc import Sequence

from daydo_db import Tx
from daydo_kernel import Clock

from .memory import Memory, Sheet, open_hold, sheets_of
from .ops import Op, accounts_of
from .rows import AccountKey, AccountRow, Plan, owner_of
from .store import ALL_DUE, BY_ID, Asked, Found, Lookups, Reading, Store, marks, opening, rows_of

Accounts = dict[AccountKey, AccountRow]
Sheets = dict[AccountKey, Sheet]


class FreeStore(Store):
    """A transaction of the batcher's and its view of the tables."""

    def __init__(self, tx: Tx, clock: Clock | None, patience_s: float, memory: Memory) -> None:
        super().__init__(tx, clock, patience_s)
        self._memory = memory

    async def read_free(self, ops: Sequence[Op]) -> Reading:
        """The state ``ops`` are decided on; accounts that others have are left out, and none is opened."""
        keys = {key for op in ops for key in accounts_of(op)}
        known = {key: sheet for key in keys if (sheet := self._memory.get(key)) is not None}
        new = sorted(keys - known.keys())
        stamps, accounts, found = await self._lock(ops, known, new)
        true = {key: sheet for key, sheet in known.items() if stamps.get(sheet.account.id) == sheet.account.stamp}
        stale = {key: sheet.account.id for key, sheet in known.items() if key not in true}
        held = {key for key, account_id in stale.items() if account_id not in stamps}
        missing = set[AccountKey]()
        if absent := [key for key in new if key not in accounts]:
            existing = await self._existing(absent)
            held |= existing
            missing = opening(ops).intersection(absent) - existing
        accounts |= await self._read_rest(ops, accounts, {key: stale[key] for key in stale.keys() - held}, found)
        # In a database that was set back the id may be another owner's by now.
        held |= stale.keys() - accounts.keys()
        _recall(ops, true, found)
        accounts |= {key: sheet.account for key, sheet in true.items()}
        left_out = held | missing
        ready = [op for op in ops if left_out.isdisjoint(accounts_of(op))] if left_out else ops
        state, now_us = await self._complete(ready, accounts, found, ALL_DUE)
        sheets = {sheet.account.id: sheet for sheet in true.values()}
        return Reading(ready, state, now_us, held, missing, sheets | sheets_of(state, found.complete - sheets.keys()))

    async def write(self, plan: Plan, *, last: bool = False) -> None:
        """As :meth:`Store.write`. If that fails, perhaps for rows that are not as remembered, they are read again."""
        try:
            await super().write(plan, last=last)
        except Exception:
            for account in plan.accounts:
                self._memory.forget(owner_of(account))
            raise

    async def _lock(
        self, ops: Sequence[Op], known: Sheets, new: Sequence[AccountKey]
    ) -> tuple[dict[int, int], Accounts, Found]:
        """The stamps of ``known`` accounts by id, the rows of ``new`` ones, and what the keys of ``ops`` name at the
        time for the former."""
        locks = list[Asked]()
        if known:
            # With the time, for an account whose stamp is true: nobody has written to it since, so none wrote later.
            ids = sorted(sheet.account.id for sheet in known.values())
            where = f"{BY_ID[self._dialect]} WHERE id IN ({marks(ids)}) {self._free}"
            locks.append((f"SELECT id, stamp, {self._now} FROM daydo_quota_account {where}", ids))  # noqa: S608 - ours
        if new:
            locks.append(self._lock_owners(new))
        lookups = Lookups(ops, (), [op for op in ops if open_hold(op, known) is None])
        results = await self.tx.execute_all([*locks, *lookups.asked])
        seen = results[0].rows if known else []
        rows = rows_of(AccountRow, results[len(locks) - 1].rows) if new else []
        found = lookups.read(results[len(locks) :], int(seen[0][2]) if seen else 0)
        return {account_id: stamp for account_id, stamp, _ in seen}, {owner_of(row): row for row in rows}, found

    async def _read_rest(
        self, ops: Sequence[Op], new: Accounts, stale: dict[AccountKey, int], found: Found
    ) -> Accounts:
        """Into ``found`` what else is there of accounts that are locked but not, or no longer, known."""
        unknown = {row.id for row in new.values()}.union(stale.values())
        if not unknown:
            return {}
        again = [op for op in ops if not stale.keys().isdisjoint(accounts_of(op))]
        found.join(await self._look_up(Lookups(again, unknown)))
        rows = await self._by_id(AccountRow, sorted(stale.values()))
        return {owner_of(row): row for row in rows}


def _recall(ops: Sequence[Op], true: Sheets, found: Found) -> None:
    for sheet in true.values():
        sheet.seen()
        found.grants += sheet.grants.values()
        found.complete.add(sheet.account.id)
    found.holds += [row for op in ops if (row := open_hold(op, true)) is not None]

"""What the ledger does by itself, on as many processes as there are: time is written down."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from daydo_db import Database, Tx, now_sql
from daydo_kernel import Clock

from .counts import Counts
from .planner import CatchUp, Op, Plan, plan
from .store import Store

if TYPE_CHECKING:
    from .ledger import LedgerConfig

log = logging.getLogger("daydo.quota")

MakeSo = Callable[[Sequence[Op], Plan, Store], Awaitable[None]]
"""Write what was decided, and tell those who listen."""


class Upkeep:
    """Everything that happens without a call."""

    def __init__(
        self, db: Database, config: LedgerConfig, clock: Clock | None, make_so: MakeSo, counts: Counts
    ) -> None:
        self._db = db
        self._config = config
        self._clock = clock
        self._make_so = make_so
        self._counts = counts

    async def sweep_all(self) -> None:
        """Until nothing is overdue."""
        while await self.sweep() == self._config.sweep_accounts:
            pass
        self._counts.lagging(await self.expiry_lag_s())

    async def sweep(self) -> int:
        """Bring at most ``sweep_accounts`` overdue accounts up to date; how many were."""
        started = time.perf_counter()
        due = await self._db.query(
            f"SELECT id FROM daydo_quota_account WHERE next_due_at_us <= {self._now} ORDER BY next_due_at_us LIMIT ?",  # noqa: S608
            (self._config.sweep_accounts,),
        )
        reached = [await self._catch_up(account_id) for (account_id,) in due.rows]
        self._counts.swept(time.perf_counter() - started)
        return sum(reached)

    async def expiry_lag_s(self) -> float:
        """How long the most overdue account has been so."""
        result = await self._db.query(f"SELECT {self._now}, MIN(next_due_at_us) FROM daydo_quota_account")  # noqa: S608
        [(now_us, first_us)] = result.rows
        return max(0, int(now_us) - int(first_us)) / 1_000_000 if first_us is not None else 0.0

    async def _catch_up(self, account_id: int) -> bool:
        try:
            return await self._db.run(partial(self._catch_up_in, account_id), retries=self._config.retries)
        except Exception as error:
            if getattr(error, "retryable", False):
                raise
            # One account whose books are broken must not keep the others waiting.
            log.exception("account %s could not be brought up to date", account_id)
            return False

    async def _catch_up_in(self, account_id: int, tx: Tx) -> bool:
        store = Store(tx, self._clock)
        state, now_us = await store.read_due(account_id, self._config.sweep_holds)
        ops = [CatchUp(account=key) for key in state.accounts]
        await self._make_so(ops, plan(ops, state, now_us), store)
        return bool(state.accounts)

    @property
    def _now(self) -> str:
        return now_sql(self._db.dialect, self._clock)

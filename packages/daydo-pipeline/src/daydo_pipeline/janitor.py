"""What makes "never stuck" true: steps of dead workers, runs past their deadline, flow versions nobody knows.

Every process sweeps; each case is settled in a transaction of its own under the run's lock, so it does not
matter who comes first. A case that fails is logged and tried again by the next sweep; the others go on. Sweeps
are bounded (:data:`BATCH`), the rest waits for the next one.
"""
# ruff: noqa: S608 - statements are composed of this file's own names; every value is a parameter

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from daydo_db import ConnectionLost, Database, PoolTimeout, Tx

from . import planner
from .cells import Cells
from .config import RunsConfig
from .errors import FlowUnavailable, RunTimedOut
from .lease import remove_worker
from .planner import RunRow
from .store import Store, marks
from .values import RunError

log = logging.getLogger("daydo.pipeline")

BATCH = 100

T = TypeVar("T")


class Janitor:
    """The sweeps of one process."""

    def __init__(self, db: Database, store: Store, config: RunsConfig, cells: Cells) -> None:
        self._db = db
        self._store = store
        self._config = config
        self._cells = cells

    async def sweep(self) -> None:
        """Everything once. Called every second, or every third of a shorter lease."""
        # One reading of the clock finds the candidates; each case looks again under its lock.
        now_us = await self._store.read_clock(self._db)
        await self._recover_steps(now_us)
        await self._end_overdue(now_us)
        await self._end_orphans(now_us)
        await self._sample(now_us)

    async def _recover_steps(self, now_us: int) -> None:
        lost = await self._db.query(
            "SELECT s.run_id, s.n, s.worker_id FROM daydo_pipeline_step s "
            "LEFT JOIN daydo_pipeline_worker w ON w.id = s.worker_id "
            "WHERE s.state = 'running' AND (w.id IS NULL OR w.expires_at_us <= ?) "
            f"ORDER BY s.run_id, s.n LIMIT {BATCH}",
            (now_us,),
        )
        for run_id, n, worker_id in lost.rows:
            recovered = await self._try(f"run {run_id}", self._recover(run_id, n, worker_id))
            if recovered is not None:
                self._cells.recovered.inc()
                log.warning("step %s of run %s taken back from dead worker %s", n, run_id, worker_id)
        dead = await self._db.query(
            f"SELECT id FROM daydo_pipeline_worker WHERE expires_at_us <= ? ORDER BY id LIMIT {BATCH}", (now_us,)
        )
        for (worker_id,) in dead.rows:
            await self._try(f"worker {worker_id}", self._bury(worker_id))

    async def _try(self, case: str, work: Callable[[Tx], Awaitable[T]]) -> T | None:
        """``work`` in its own transaction; None: it failed, and that is no reason to stop the sweep."""
        try:
            return await self._db.run(work)
        except (ConnectionLost, PoolTimeout):
            # Not this case's fault: the others would only wait for the same.
            raise
        except Exception:
            log.exception("%s could not be swept; the next sweep tries again", case)
            return None

    def _recover(self, run_id: str, n: int, worker_id: str) -> Callable[[Tx], Awaitable[RunRow | None]]:
        async def recover(tx: Tx) -> RunRow | None:
            runs, now_us = await self._store.lock(tx, [run_id])
            # After the run, before the decision: a renewal waits for us, or we see it.
            if not runs or await self._lives(tx, worker_id, now_us):
                return None
            after = planner.recover(
                runs[0], n, worker_id=worker_id, max_recoveries=self._config.max_recoveries, now_us=now_us
            )
            if after is not None:
                await self._store.write(tx, runs[0], after, now_us)
            return after

        return recover

    def _bury(self, worker_id: str) -> Callable[[Tx], Awaitable[None]]:
        async def bury(tx: Tx) -> None:
            if not await self._lives(tx, worker_id, await self._store.now_us(tx)):
                await remove_worker(tx, worker_id)

        return bury

    async def _lives(self, tx: Tx, worker_id: str, now_us: int) -> bool:
        found = await tx.execute(
            f"SELECT expires_at_us FROM daydo_pipeline_worker WHERE id = ? {tx.dialect.for_update}", (worker_id,)
        )
        return bool(found.rows) and int(found.rows[0][0]) > now_us

    async def _end_overdue(self, now_us: int) -> None:
        overdue = await self._db.query(
            "SELECT id FROM daydo_pipeline_run WHERE state IN ('queued', 'running') AND deadline_us <= ? "
            f"ORDER BY deadline_us LIMIT {BATCH}",
            (now_us,),
        )
        for (run_id,) in overdue.rows:
            await self._abort(run_id, RunError.of(RunTimedOut(run_id=run_id), ""))

    async def _end_orphans(self, now_us: int) -> None:
        workers = await self._db.query("SELECT flows FROM daydo_pipeline_worker WHERE expires_at_us > ?", (now_us,))
        known = sorted({flow for (flows,) in workers.rows for flow in msgspec.json.decode(flows, type=list[str])})
        if not known:
            return
        orphans = await self._db.query(
            "SELECT DISTINCT r.id, r.flow, r.version FROM daydo_pipeline_step s "
            "JOIN daydo_pipeline_run r ON r.id = s.run_id "
            f"WHERE s.state = 'ready' AND s.wake_at_us <= ? AND s.flow_key NOT IN ({marks(len(known))}) LIMIT {BATCH}",
            (now_us - round(self._config.orphan_s * 1_000_000), *known),
        )
        for run_id, flow, version in orphans.rows:
            log.error("run %s ends: no live process knows flow %s version %s", run_id, flow, version)
            await self._abort(run_id, RunError.of(FlowUnavailable(flow=flow, version=version), ""))

    async def _abort(self, run_id: str, error: RunError) -> None:
        await self._try(
            f"run {run_id}",
            lambda tx: self._store.change(
                tx, run_id, lambda run, now_us: planner.abort(run, error=error, now_us=now_us)
            ),
        )

    async def _sample(self, now_us: int) -> None:
        found = await self._db.query(
            "SELECT COUNT(*), MIN(wake_at_us) FROM daydo_pipeline_step WHERE state = 'ready' AND wake_at_us <= ?",
            (now_us,),
        )
        count, oldest_us = found.rows[0]
        self._cells.ready.set(count)
        self._cells.ready_age.set((now_us - oldest_us) / 1_000_000 if count else 0.0)

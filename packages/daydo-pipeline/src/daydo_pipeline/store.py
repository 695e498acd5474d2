"""The planner's values in SQL. One transaction per transition; locks in the order run, step, quota, owner.

Every transition locks its run row first, so that row is the run's mutex, whatever isolation level the caller's
session has (all that is decided on is read with a locking read). Nothing waits for a run while it holds an
owner's counter, so transitions cannot dead-lock one another.
"""
# ruff: noqa: S608 - statements are composed of this file's own names; every value is a parameter

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import asdict

from daydo_db import Database, DbError, Tx, UniqueViolation, Value, now_sql, read_now_us, whole
from daydo_kernel import Clock, DaydoError, Event, EventSink

from . import planner
from .errors import KeyConflict
from .flow import Flow
from .planner import Fact, RunRow, StepRow
from .ports import Quota
from .values import Account, Cost, Owner, RunError, RunEvent, StepPhase

log = logging.getLogger("daydo.pipeline")

RUN_COLUMNS = (
    "r.id, r.tenant, r.subject, r.flow, r.version, r.state, r.unit, r.amount, r.inputs, r.output, r.error, "
    "r.created_at_us, r.deadline_us, r.finished_at_us"
)
STEP_COLUMNS = (
    "s.run_id, s.n, s.name, s.provider, s.state, s.fence, s.worker_id, s.attempt, s.recoveries, s.deps_left, "
    "s.wake_at_us, s.progress, s.output, s.error, s.started_at_us, s.finished_at_us"
)
_RUN_WIDTH = 14
_CHANGING = tuple(field for field in StepRow.__struct_fields__ if field not in ("n", "name", "provider"))
_ATTEMPT_STATES: dict[StepPhase, str] = {"succeeded": "ok", "failed": "failed"}

Decision = Callable[[RunRow, int], RunRow | None]
"""A planner function bound to its arguments: the run as it stands and the time (µs) → the run as it shall be."""


def marks(count: int) -> str:
    return ", ".join("?" * count)


async def insert_row(tx: Tx, table: str, **values: Value) -> None:
    """``INSERT INTO table (columns) VALUES (…)``; names are ours, values are parameters."""
    await tx.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks(len(values))})", list(values.values()))


def read_run(row: Sequence[Any], steps: Sequence[Sequence[Any]]) -> RunRow:
    """A run out of one row of ``RUN_COLUMNS`` and its rows of ``STEP_COLUMNS`` in order."""
    run_id, tenant, subject, flow, version, state, unit, amount, inputs, output, error, created, deadline, done = row
    return RunRow(
        id=run_id,
        owner=Owner(tenant, subject),
        flow=flow,
        version=version,
        state=state,
        cost=Cost(unit, amount) if unit else None,
        inputs=inputs,
        output=output,
        error=error,
        created_at_us=created,
        deadline_us=deadline,
        finished_at_us=done,
        steps=tuple(StepRow(**dict(zip(StepRow.__struct_fields__, step[1:], strict=True))) for step in steps),
    )


def group_runs(rows: Sequence[Sequence[Any]]) -> list[RunRow]:
    """Runs out of a join of ``RUN_COLUMNS`` and ``STEP_COLUMNS``, sorted by run."""
    steps: dict[str, list[Sequence[Any]]] = {}
    runs: dict[str, Sequence[Any]] = {}
    for row in rows:
        runs.setdefault(row[0], row[:_RUN_WIDTH])
        steps.setdefault(row[0], []).append(row[_RUN_WIDTH:])
    return [read_run(row, steps[run_id]) for run_id, row in runs.items()]


class Store:
    """Writes what the planner decided. ``committed(before, after)`` is called after each commit."""

    def __init__(
        self,
        quota: Quota | None,
        clock: Clock | None,
        sink: EventSink,
        committed: Callable[[RunRow | None, RunRow], None],
    ) -> None:
        self._quota = quota
        self._clock = clock
        self._sink = sink
        self._committed = committed

    async def now_us(self, tx: Tx) -> int:
        return await read_now_us(tx, self._clock)

    async def read_clock(self, db: Database) -> int:
        """The time outside any transaction, to look for candidates by."""
        return await read_now_us(db, self._clock)

    async def lock(self, tx: Tx, run_ids: Sequence[str], *, skip_locked: bool = False) -> tuple[list[RunRow], int]:
        """Lock runs in the order of their ids; the time in µs is read in the packet that locks."""
        d = tx.dialect
        skip = d.skip_locked if skip_locked else ""
        found = await tx.execute(
            f"SELECT {RUN_COLUMNS}, {now_sql(d, self._clock)} FROM daydo_pipeline_run r "
            f"WHERE r.id IN ({marks(len(run_ids))}) ORDER BY r.id {d.for_update} {skip}",
            run_ids,
        )
        if not found.rows:
            return [], 0
        ids = [row[0] for row in found.rows]
        steps = await tx.execute(
            f"SELECT {STEP_COLUMNS} FROM daydo_pipeline_step s WHERE s.run_id IN ({marks(len(ids))}) "
            f"ORDER BY s.run_id, s.n {d.for_update}",
            ids,
        )
        by_run: dict[str, list[Sequence[Any]]] = {run_id: [] for run_id in ids}
        for step in steps.rows:
            by_run[step[0]].append(step)
        return [read_run(row[:-1], by_run[row[0]]) for row in found.rows], int(found.rows[0][-1])

    async def change(self, tx: Tx, run_id: str, decide: Decision) -> RunRow | None:
        """Lock a run, decide, write the difference. None: no such run, or the decision was to leave it."""
        runs, now_us = await self.lock(tx, [run_id])
        after = decide(runs[0], now_us) if runs else None
        if after is not None:
            await self.write(tx, runs[0], after, now_us)
        return after

    async def write(self, tx: Tx, before: RunRow, after: RunRow, now_us: int) -> None:
        """Make ``after`` of the locked ``before``: rows, quota, events, in the caller's transaction."""
        with whole(tx):
            for old, new in zip(before.steps, after.steps, strict=True):
                if old != new:
                    await self._write_step(tx, after, old, new, now_us)
            if (before.state, before.output, before.error) != (after.state, after.output, after.error):
                await tx.execute(
                    "UPDATE daydo_pipeline_run SET state = ?, output = ?, error = ?, finished_at_us = ? WHERE id = ?",
                    (after.state, after.output, after.error, after.finished_at_us, after.id),
                )
            await self._settle(tx, before, after)
            told = planner.facts(before, after)
            await self._tell(tx, after, told, now_us)
            tx.after_commit(lambda: self._committed(before, after))

    async def insert(
        self, tx: Tx, run: RunRow, *, key: str, fingerprint: str, def_hash: str, hold_ttl_s: float
    ) -> bool:
        """A new run with its hold; False: the owner has used this key before.

        When the quota refuses, its error passes and nothing of the run is left in the transaction.
        """
        with whole(tx):
            try:
                await self._insert_run(tx, run, key, fingerprint, def_hash)
            except UniqueViolation:
                return False
            for step in run.steps:
                flow_key = f"{run.flow}/{run.version}"
                await insert_row(tx, "daydo_pipeline_step", run_id=run.id, flow_key=flow_key, **asdict(step))
            refusal = await self._reserve(tx, run, hold_ttl_s)
            if refusal is None:
                await self._tell(tx, run, [Fact(f"run.{run.state}", None)], run.created_at_us)
                tx.after_commit(lambda: self._committed(None, run))
        if refusal is not None:
            raise refusal
        return True

    async def _insert_run(self, tx: Tx, run: RunRow, key: str, fingerprint: str, def_hash: str) -> None:
        unit, amount = (run.cost.unit, run.cost.amount) if run.cost else ("", 0)
        await insert_row(
            tx,
            "daydo_pipeline_run",
            id=run.id,
            tenant=run.owner.tenant,
            subject=run.owner.subject,
            op_key=key,
            fingerprint=fingerprint,
            flow=run.flow,
            version=run.version,
            def_hash=def_hash,
            state=run.state,
            unit=unit,
            amount=amount,
            inputs=run.inputs,
            created_at_us=run.created_at_us,
            deadline_us=run.deadline_us,
        )

    async def _reserve(self, tx: Tx, run: RunRow, ttl_s: float) -> DaydoError | None:
        """Hold the price; else why not, with nothing left of the run."""
        if run.cost is None or self._quota is None:
            return None
        try:
            await self._quota.reserve(
                account(run), run.cost.amount, key=run.id, ttl_s=ttl_s, tx=tx, reason=f"flow {run.flow}"
            )
        except DbError:
            raise
        except DaydoError as refusal:
            # The caller may catch it and commit the rest of their transaction.
            await tx.execute("DELETE FROM daydo_pipeline_step WHERE run_id = ?", (run.id,))
            await tx.execute("DELETE FROM daydo_pipeline_run WHERE id = ?", (run.id,))
            return refusal
        return None

    async def repeated(
        self, tx: Tx, owner: Owner, *, key: str, fingerprint: str, locking: bool = False
    ) -> RunRow | None:
        """The run this owner started earlier under ``key``.

        Look without ``locking`` first: on InnoDB a locking read of a row that is not there blocks those who
        would insert it. Once an INSERT was refused, the locking read sees past the caller's old snapshot.

        Raises:
            KeyConflict: it was another request.
        """
        found = await tx.execute(
            "SELECT id, fingerprint FROM daydo_pipeline_run "
            f"WHERE tenant = ? AND subject = ? AND op_key = ? {tx.dialect.for_update if locking else ''}",
            (owner.tenant, owner.subject, key),
        )
        if not found.rows:
            return None
        run_id, known = found.rows[0]
        if known != fingerprint:
            raise KeyConflict(key=key)
        runs, _ = await self.lock(tx, [run_id])
        return runs[0]

    async def pin(self, tx: Tx, flow: Flow) -> str:
        """Store a definition unless it is there; the hash of the stored one."""
        stored = await self._pinned(tx, flow)
        if stored is None:
            try:
                await insert_row(
                    tx,
                    "daydo_pipeline_def",
                    name=flow.name,
                    version=flow.version,
                    hash=flow.hash(),
                    body=_text(flow.describe()),
                    created_at_us=await self.now_us(tx),
                )
            except UniqueViolation:
                stored = await self._pinned(tx, flow)
        return stored or flow.hash()

    async def _pinned(self, tx: Tx, flow: Flow) -> str | None:
        found = await tx.execute(
            f"SELECT hash FROM daydo_pipeline_def WHERE name = ? AND version = ? {tx.dialect.for_update}",
            (flow.name, flow.version),
        )
        return str(found.rows[0][0]) if found.rows else None

    async def lock_owners(self, tx: Tx, owners: Sequence[Owner]) -> set[Owner]:
        """Lock those owners' counters that nobody else holds right now."""
        d = tx.dialect
        found = await tx.execute(
            "SELECT tenant, subject FROM daydo_pipeline_owner WHERE "
            + " OR ".join(["(tenant = ? AND subject = ?)"] * len(owners))
            + f" ORDER BY tenant, subject {d.for_update} {d.skip_locked}",
            [part for owner in owners for part in (owner.tenant, owner.subject)],
        )
        return {Owner(*row) for row in found.rows}

    async def _write_step(self, tx: Tx, run: RunRow, old: StepRow, new: StepRow, now_us: int) -> None:
        written = await tx.execute(
            f"UPDATE daydo_pipeline_step SET {' = ?, '.join(_CHANGING)} = ? "
            "WHERE run_id = ? AND n = ? AND fence = ? AND state = ?",
            [*(getattr(new, column) for column in _CHANGING), run.id, old.n, old.fence, old.state],
        )
        if written.rowcount != 1:
            raise RuntimeError(f"step {old.name} of {run.id} changed under the lock of its run")
        if new.state == "running" != old.state:
            await insert_row(
                tx,
                "daydo_pipeline_attempt",
                run_id=run.id,
                n=new.n,
                fence=new.fence,
                attempt=new.attempt,
                worker_id=new.worker_id,
                provider=new.provider,
                provider_key=planner.attempt_key(run, new),
                state="intended",
                started_at_us=now_us,
            )
        elif old.state == "running" != new.state:
            retried = new.state == "ready" and new.attempt != old.attempt
            state = "failed" if retried else _ATTEMPT_STATES.get(new.state, "unknown")
            error = msgspec.json.decode(new.error, type=RunError).name if new.error else None
            await tx.execute(
                "UPDATE daydo_pipeline_attempt SET state = ?, error_name = ?, finished_at_us = ? "
                "WHERE run_id = ? AND n = ? AND fence = ?",
                (state, error, now_us, run.id, old.n, old.fence),
            )

    async def _settle(self, tx: Tx, before: RunRow, after: RunRow) -> None:
        owed = planner.settlement(before, after)
        if owed is None:
            return
        if self._quota is None:
            log.error("run %s ends without a quota to %s its hold; it returns when it expires", after.id, owed)
        elif owed == "confirm":
            await self._quota.confirm(account(after), key=after.id, tx=tx, reason=f"flow {after.flow}")
        else:
            await self._cancel_hold(self._quota, tx, after)

    async def _cancel_hold(self, quota: Quota, tx: Tx, run: RunRow) -> None:
        try:
            await quota.cancel(account(run), key=run.id, tx=tx, reason=f"flow {run.flow} {run.state}")
        except DbError:
            raise
        except DaydoError:
            # A run must be able to end; what the quota cannot return now, it returns when the hold expires.
            log.exception("the hold of run %s could not be cancelled", run.id)

    async def _tell(self, tx: Tx, run: RunRow, told: Sequence[Fact], now_us: int) -> None:
        if not told:
            return
        last = await self._advance(tx, run.owner, len(told))
        for seq, fact in enumerate(told, last - len(told) + 1):
            event = RunEvent(
                name=fact.name,
                run_id=run.id,
                flow=run.flow,
                state=run.state,
                progress=round(run.progress, 4),
                at_us=now_us,
                step=fact.step,
                error=msgspec.json.decode(run.error, type=RunError) if run.error else None,
            )
            await insert_row(
                tx,
                "daydo_pipeline_event",
                tenant=run.owner.tenant,
                subject=run.owner.subject,
                seq=seq,
                run_id=run.id,
                name=fact.name,
                body=_text(event),
                at_us=now_us,
            )
            if fact.step is None:
                name = fact.name.replace("run.", "pipeline.run_")
                data = {"run": run.id, "flow": run.flow, "version": run.version}
                await self._sink.emit(
                    Event(name=name, tenant=run.owner.tenant, subject=run.owner.subject, data=data), tx=tx
                )

    async def _advance(self, tx: Tx, owner: Owner, by: int) -> int:
        """Count the owner's events up, under the row's lock; the last number taken."""
        who = (owner.tenant, owner.subject)
        # The plain read spares the common case a failing INSERT, which on InnoDB leaves a shared lock behind.
        known = await tx.execute("SELECT 1 FROM daydo_pipeline_owner WHERE tenant = ? AND subject = ?", who)
        if not known.rows:
            try:
                await insert_row(tx, "daydo_pipeline_owner", tenant=owner.tenant, subject=owner.subject, seq=by)
            except UniqueViolation:
                pass
            else:
                return by
        await tx.execute("UPDATE daydo_pipeline_owner SET seq = seq + ? WHERE tenant = ? AND subject = ?", (by, *who))
        counted = await tx.execute(
            f"SELECT seq FROM daydo_pipeline_owner WHERE tenant = ? AND subject = ? {tx.dialect.for_update}", who
        )
        return int(counted.rows[0][0])


def account(run: RunRow) -> Account:
    """Who pays for a run with a price.

    Raises:
        ValueError: it has none; nobody may be charged for it.
    """
    if run.cost is None:
        raise ValueError(f"run {run.id} has no price")
    return Account(run.owner.tenant, run.owner.subject, run.cost.unit)


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()

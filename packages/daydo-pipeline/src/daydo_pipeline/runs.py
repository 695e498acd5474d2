"""The noun: starts runs, executes them, and shows them to their owners."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from daydo_db import Database, Keyset, Tx, Value
from daydo_kernel import Clock, EventSink, FieldError, Health, Metrics, NoEvents, Page, Part, new_id

from . import planner
from .cells import Cells
from .config import RunsConfig
from .errors import (
    FlowChanged,
    FlowUnknown,
    InputsInvalid,
    InputsTooLarge,
    KeyConflict,
    Overloaded,
    RunFinished,
    RunUnknown,
)
from .flow import Flow
from .planner import RunRow, StepRow
from .ports import Provider, Quota
from .store import RUN_COLUMNS, STEP_COLUMNS, Store, group_runs
from .stream import Hub, read_cursor
from .values import JSON, TERMINAL, Owner, Run, RunError, RunEvent, StepState, is_identifier
from .worker import Worker


class Runs(Part):
    """Durable runs of ``flows``: their state is in ``db``, their credits in ``quota``.

    Every process with a ``Runs`` over one database shares the work; a run survives any of them. ``flows`` may
    hold several versions of one name: new runs take the highest, older ones finish on the one they began with.

    Raises:
        ValueError: a flow has no steps or is given twice, a provider it names is missing, or it has a price
            and there is no ``quota``.
    """

    def __init__(
        self,
        db: Database,
        config: RunsConfig = RunsConfig(),  # noqa: B008 - frozen
        *,
        flows: Sequence[Flow],
        providers: Mapping[str, Provider] | None = None,
        quota: Quota | None = None,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        self.config = config
        self.metrics = Metrics("daydo_pipeline")
        self._db = db
        self._clock = clock
        self._flows = _check(flows, providers or {}, quota)
        self._latest = {flow.name: flow for flow in sorted(flows, key=lambda flow: flow.version)}
        self._cells = Cells(self.metrics, flows)
        self._store = Store(quota, clock, events or NoEvents(), self._committed)
        owner = ("r.tenant", "r.subject")
        self._newest = Keyset("r.id DESC", within=owner, name="pipeline.runs", key=db.config.cursor_key)
        self._hub = Hub(db, config, self._cells)
        self._worker = Worker(db, self._store, config, self._cells, self._flows, providers or {}, self._spawn)

    async def _start(self) -> None:
        """
        Raises:
            SchemaOutdated: run the migrations.
            FlowChanged: a flow differs from what is stored under its version.
        """
        await self._db.require_schema("daydo_pipeline")
        for flow in self._flows.values():
            if await self._db.run(partial(self._store.pin, flow=flow)) != flow.hash():
                raise FlowChanged(flow=flow.name, version=flow.version)
        self._hub.start()
        await self._worker.start()
        self._repeat(self.config.poll_s, self._hub.watch_others, "streams")

    def begin_drain(self) -> None:
        """End all event streams and claim no more steps; everything else goes on until exit.

        For servers that wait for open connections before they run their shutdown hooks.
        """
        self._hub.stop()
        self._worker.stop_claiming()

    async def _drain(self) -> None:
        self.begin_drain()
        await self._worker.drain()

    async def _close(self) -> None:
        self._hub.stop()

    async def health(self) -> Health:
        """``degraded``: the lease could not be renewed in time, so this process claims nothing. No I/O."""
        if not self._running:
            return Health(status="down")
        cells = self._cells
        return Health(
            status="ok" if self._worker.lease.valid else "degraded",
            detail={
                "running": int(cells.running.values()[0]),
                "ready": int(cells.ready.value),
                "ready_age_s": round(cells.ready_age.value, 3),
                "streams": int(cells.streams.values()[0]),
            },
        )

    async def start(
        self, flow: str, inputs: Mapping[str, JSON], *, owner: Owner, key: str, tx: Tx | None = None
    ) -> Run:
        """Store a run and reserve its price, in one transaction; a worker takes it from there.

        A repeat with the same ``key`` and request returns the run as it is now, with ``created=False``.

        Args:
            flow: name of a flow; its highest version is taken.
            inputs: small JSON values by input name; files travel as storage keys.
            key: idempotency key of this owner, 1 to 64 printable ASCII characters.

        Raises:
            FlowUnknown, InputsInvalid, InputsTooLarge: the request is wrong; nothing is stored.
            KeyConflict: the key belongs to another request.
            Overloaded: ``max_queued`` steps wait already.
            DaydoError: whatever the quota raises when it refuses; nothing is stored.
        """
        self._require_started()
        definition = self._latest.get(flow)
        if definition is None:
            raise FlowUnknown(flow=flow[:64])
        if not is_identifier(key):
            field = FieldError("key", "幂等键须为 1–64 个可见 ASCII 字符。", "Use 1 to 64 printable ASCII characters.")
            raise InputsInvalid(flow=flow, fields=(field,))
        given = self._encode(definition, inputs)
        complete = msgspec.json.encode(definition.complete(msgspec.json.decode(given))).decode()
        fingerprint = hashlib.sha256(flow.encode() + b"\0" + given).hexdigest()

        async def insert(tx: Tx) -> Run:
            known = await self._store.repeated(tx, owner, key=key, fingerprint=fingerprint)
            if known is not None:
                return _show(known)
            if self._cells.ready.value >= self.config.max_queued:
                raise Overloaded(what="max_queued", retry_after_s=self.config.lease_s / 3)
            run = self._plan(definition, owner, complete, await self._store.now_us(tx))
            if await self._store.insert(
                tx,
                run,
                key=key,
                fingerprint=fingerprint,
                def_hash=definition.hash(),
                hold_ttl_s=self.config.run_deadline_s + self.config.hold_margin_s,
            ):
                return _show(run, created=True)
            known = await self._store.repeated(tx, owner, key=key, fingerprint=fingerprint, locking=True)
            if known is None:
                raise KeyConflict(key=key)
            return _show(known)

        return await self._db.run(insert, tx=tx)

    async def get(self, owner: Owner, run_id: str) -> Run:
        """
        Raises:
            RunUnknown: no such run of this owner.
        """
        self._require_started()
        one, args = "r.id = ? AND r.tenant = ? AND r.subject = ?", [run_id, owner.tenant, owner.subject]
        runs = await self._read(one, args) if is_identifier(run_id) else []
        if not runs:
            raise RunUnknown(run_id=run_id[:64])
        return _show(runs[0])

    async def list(self, owner: Owner, cursor: str | None = None, limit: int = 50) -> Page[Run]:
        """The owner's runs, newest first; ``cursor`` is the previous page's ``next_cursor``.

        Raises:
            CursorInvalid: the cursor is not one of ours, or somebody else's.
            BadRequest: ``limit`` is not between 1 and 100.
        """
        self._require_started()
        cut = self._newest.cut(self._db.dialect, within=(owner.tenant, owner.subject), cursor=cursor, limit=limit)
        page = cut.slice(await self._read(cut.sql, cut.args, replica=True), lambda run: [run.id])
        return Page(items=[_show(run) for run in page.rows], next_cursor=page.next_cursor)

    async def cancel(self, owner: Owner, run_id: str, *, tx: Tx | None = None) -> Run:
        """End a run that has not ended: its hold is cancelled with it, a step under way is stopped.

        A process elsewhere that runs the step hears of it with its next heartbeat; what it delivers is refused.
        Cancelling a cancelled run returns it.

        Raises:
            RunUnknown: no such run of this owner.
            RunFinished: it has succeeded or failed before; exactly one of the two wins.
        """
        self._require_started()
        if not is_identifier(run_id):
            raise RunUnknown(run_id=run_id[:64])

        async def cancel(tx: Tx) -> Run:
            runs, now_us = await self._store.lock(tx, [run_id])
            if not runs or runs[0].owner != owner:
                raise RunUnknown(run_id=run_id)
            after = planner.cancel(runs[0], now_us=now_us)
            if after is not None:
                await self._store.write(tx, runs[0], after, now_us)
            elif runs[0].state != "cancelled":
                raise RunFinished(run_id=run_id, state=runs[0].state)
            return _show(after or runs[0])

        return await self._db.run(cancel, tx=tx)

    async def cursor(self, owner: Owner) -> str:
        """Where the owner's events stand now: take it before reading runs, and miss nothing after."""
        self._require_started()
        return str(await self._hub.latest(owner))

    def events(self, owner: Owner, cursor: str | None = None) -> AsyncGenerator[RunEvent, None]:
        """Replay the owner's events after ``cursor``, then follow them live until this part drains.

        ``"0"`` replays everything; None begins now. Gap-free, in commit order, each once. Events of this
        process arrive at once, those of others within ``poll_s``. Close it (``contextlib.aclosing``) when you
        stop before its end.

        Raises (here, before anything is answered to a client):
            CursorInvalid: not a cursor of ours.
            Overloaded: ``max_streams`` are open.
        """
        self._require_started()
        self._hub.require_room()
        return self._hub.stream(owner, None if cursor is None else read_cursor(cursor))

    def _encode(self, flow: Flow, inputs: Mapping[str, JSON]) -> bytes:
        try:
            given = msgspec.json.encode(dict(inputs), order="sorted")
        except (TypeError, ValueError, RecursionError):
            field = FieldError("inputs", "输入必须是 JSON 值。", "Inputs must be JSON values.")
            raise InputsInvalid(flow=flow.name, fields=(field,)) from None
        if len(given) > self.config.max_inputs_bytes:
            raise InputsTooLarge(size=len(given), limit=self.config.max_inputs_bytes)
        return given

    def _plan(self, flow: Flow, owner: Owner, inputs: str, now_us: int) -> RunRow:
        return RunRow(
            id=new_id("run"),
            owner=owner,
            flow=flow.name,
            version=flow.version,
            state="queued",
            cost=flow.quota,
            inputs=inputs,
            created_at_us=now_us,
            deadline_us=now_us + round(self.config.run_deadline_s * 1_000_000),
            steps=tuple(
                StepRow(
                    n=n,
                    name=step.name,
                    provider=step.provider,
                    state="waiting" if n else "ready",
                    deps_left=1 if n else 0,
                    wake_at_us=now_us,
                )
                for n, step in enumerate(flow.steps)
            ),
        )

    async def _read(self, where: str, args: Sequence[Value], *, replica: bool = False) -> Sequence[RunRow]:
        # One statement, so that a run and its steps are of one moment.
        found = await self._db.query(
            f"SELECT {RUN_COLUMNS}, {STEP_COLUMNS} FROM (SELECT * FROM daydo_pipeline_run r WHERE {where}) r "  # noqa: S608
            "JOIN daydo_pipeline_step s ON s.run_id = r.id ORDER BY r.id DESC, s.n",
            args,
            replica=replica,
        )
        return group_runs(found.rows)

    def _committed(self, before: RunRow | None, after: RunRow) -> None:
        """A transition of this process is in the database: tell streams, worker and metrics."""
        self._hub.notify(after.owner)
        if any(step.state == "ready" for step in after.steps):
            self._worker.wake()
        if before is None:
            self._cells.runs.cell(after.flow, "started").inc()
            return
        self._worker.forget(after)
        if before.state != after.state and after.state in TERMINAL:
            self._cells.runs.cell(after.flow, after.state).inc()
        for old, new in zip(before.steps, after.steps, strict=True):
            if old.state == "running" != new.state:
                again = "retried" if new.attempt != old.attempt else "released"
                outcome = again if new.state == "ready" else new.state
                self._cells.steps.cell(after.flow, new.name, outcome).inc()


def _check(flows: Sequence[Flow], providers: Mapping[str, Provider], quota: Quota | None) -> dict[str, Flow]:
    by_key: dict[str, Flow] = {}
    for flow in flows:
        flow.seal()
        if by_key.setdefault(flow.key, flow) is not flow:
            raise ValueError(f"flow {flow.key} is given twice; raise the version of one")
        if flow.quota is not None and quota is None:
            raise ValueError(f"flow {flow.key} costs {flow.quota.unit}; pass quota= (daydo_quota.Ledger fits)")
        for step in flow.steps:
            if step.provider and step.provider not in providers:
                raise ValueError(f"flow {flow.key}, step {step.name!r}: pass providers={{{step.provider!r}: …}}")
    return by_key


def _show(run: RunRow, *, created: bool = False) -> Run:
    return Run(
        id=run.id,
        flow=run.flow,
        version=run.version,
        state=run.state,
        progress=round(run.progress, 4),
        inputs=msgspec.json.decode(run.inputs),
        output=_decode(run.output),
        error=msgspec.json.decode(run.error, type=RunError) if run.error else None,
        steps=tuple(
            StepState(
                name=step.name,
                state=step.state,
                progress=step.progress,
                attempt=step.attempt,
                started_at_us=step.started_at_us,
                finished_at_us=step.finished_at_us,
            )
            for step in run.steps
        ),
        created_at_us=run.created_at_us,
        finished_at_us=run.finished_at_us,
        created=created,
    )


def _decode(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)

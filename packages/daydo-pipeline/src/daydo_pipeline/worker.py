"""The executor in this process: claims ready steps in batches, runs them, commits what came of them.

The database is the truth and everything in memory is a hint. A step runs here only between two commits: the
claim (which also writes the attempt as ``intended``) and the outcome, which is refused if the step has another
owner by then. Four loops share the work: one claims, one renews the lease and compares what the database says we
hold with what we run, one sweeps (the janitor), one writes progress.
"""
# ruff: noqa: S608 - statements are composed of this file's own names; every value is a parameter

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any

import msgspec

from daydo_db import Database, DbError, Tx
from daydo_kernel import DaydoError

from . import planner
from .cells import Cells
from .config import RunsConfig
from .errors import StepTimedOut
from .flow import Flow, StepDefinition
from .janitor import Janitor
from .lease import Lease
from .planner import RunRow
from .ports import Provider, ProviderCall, StepCall
from .store import Decision, Store, marks
from .values import JSON, RunError

log = logging.getLogger("daydo.pipeline")

_SWEEP_S = 1.0
# How often a run that cannot be settled may refuse its refusal, too.
_REFUSALS = 2

Spawn = Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]]


class Execution:
    """One claimed step in the hands of this process."""

    def __init__(self, run: RunRow, n: int, definition: StepDefinition) -> None:
        self.run = run
        self.n = n
        self.fence = run.steps[n].fence
        self.definition = definition
        self.progress = 0.0
        self.reported = 0.0
        self.committing = False
        self.task: asyncio.Task[None] | None = None

    @property
    def id(self) -> tuple[str, int, int]:
        return self.run.id, self.n, self.fence

    def stop(self) -> None:
        """Cancel the call; a commit under way is left alone, since the fence decides about it."""
        if self.task is not None and not self.committing:
            self.task.cancel()


class Worker:
    """Executes steps of the ``flows`` it knows, at most ``max_parallel`` at once."""

    def __init__(
        self,
        db: Database,
        store: Store,
        config: RunsConfig,
        cells: Cells,
        flows: Mapping[str, Flow],
        providers: Mapping[str, Provider],
        spawn: Spawn,
    ) -> None:
        self._db = db
        self._store = store
        self._config = config
        self._cells = cells
        self._flows = flows
        self._providers = providers
        self._spawn = spawn
        self._executions: dict[tuple[str, int, int], Execution] = {}
        self._strays: set[tuple[str, int, int]] = set()
        self._wake = asyncio.Event()
        self._reports = asyncio.Event()
        self._draining = False
        self._claimer: asyncio.Task[None] | None = None
        self.lease = Lease(db, store, config.lease_s, list(flows))
        self.janitor = Janitor(db, store, config, cells)
        cells.running.follow(lambda: len(self._executions))
        cells.leased.follow(lambda: int(self.lease.valid))

    async def start(self) -> None:
        """Register, recover what the dead left behind, and begin."""
        self._draining = False
        self._executions.clear()
        self._strays.clear()
        # An Event belongs to the loop that waited for it first; a part may be entered again in another one.
        self._wake, self._reports = asyncio.Event(), asyncio.Event()
        await self.lease.take()
        await self._sweep_once()
        self._spawn(self._every(self._config.lease_s / 3, self._renew), "heartbeat")
        # Apart from the heartbeat: a long sweep must not cost the lease.
        self._spawn(self._every(min(_SWEEP_S, self._config.lease_s / 3), self.janitor.sweep), "janitor")
        if self._config.max_parallel:
            self._claimer = self._spawn(self._claim_steps(), "claim")
            self._spawn(self._write_reports(), "progress")

    async def _sweep_once(self) -> None:
        # What stops a sweep must not stop a start: the next sweep comes within a second.
        try:
            await self.janitor.sweep()
        except Exception:
            log.exception("the sweep at start failed")

    def wake(self) -> None:
        """Something may be ready."""
        self._wake.set()

    def stop_claiming(self) -> None:
        """Take no new steps; running ones go on."""
        self._draining = True
        self._wake.set()

    def forget(self, run: RunRow) -> None:
        """A run has changed: stop calls of steps that are no longer ours."""
        for execution in list(self._executions.values()):
            if execution.run.id == run.id and run.steps[execution.n].fence != execution.fence:
                execution.stop()

    async def drain(self) -> None:
        """Wait for running steps, hand back those that take longer than ``drain_s``, give the lease up."""
        self.stop_claiming()
        if self._claimer is not None:
            await asyncio.wait([self._claimer])
        # The rest of drain_s is for stopping what is left and handing it back.
        await self._wait_for_steps(self._config.drain_s * 0.75)
        left = list(self._executions.values())
        for execution in left:
            execution.stop()
        await self._wait_for_steps(self._config.drain_s * 0.1)
        for execution in left:
            await self._hand_back(*execution.id)
        await self.lease.leave()

    async def _wait_for_steps(self, timeout_s: float) -> None:
        tasks = [execution.task for execution in self._executions.values() if execution.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    # Claiming

    async def _claim_steps(self) -> None:
        while not self._draining:
            self._wake.clear()
            wait_s = self._config.poll_s
            free = self._config.max_parallel - len(self._executions)
            if free > 0 and self.lease.valid:
                try:
                    wait_s = await self._claim_some(free)
                except DbError as error:
                    log.warning("claiming failed, again in %s s: %s", wait_s, error)
                except Exception:
                    log.exception("claiming failed, again in %s s", wait_s)
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _claim_some(self, free: int) -> float:
        """Claim up to ``free`` steps; the seconds until looking again makes sense."""
        now_us = await self._store.read_clock(self._db)
        found = await self._db.query(
            "SELECT run_id, n, wake_at_us FROM daydo_pipeline_step "
            f"WHERE state = 'ready' AND flow_key IN ({marks(len(self._flows))}) ORDER BY wake_at_us LIMIT ?",
            (*self._flows, free + 1),
        )
        due = {run_id: n for run_id, n, wake_at_us in found.rows[:free] if wake_at_us <= now_us}
        later_s = [(wake_at_us - now_us) / 1_000_000 for _, _, wake_at_us in found.rows if wake_at_us > now_us]
        wait_s: float = min([self._config.poll_s, *later_s])
        if due:
            claimed = await self._db.run(partial(self._claim, due=due))
            for execution in claimed:
                self._begin(execution)
            # Others hold what we did not get, and will be done with it in a moment.
            wait_s = min(wait_s, 0.05) if len(claimed) < len(due) else wait_s
        return wait_s

    async def _claim(self, tx: Tx, due: dict[str, int]) -> list[Execution]:
        """Take the steps in ``due`` (run → n) that are still free. Waits for nobody but our own heartbeat."""
        if not await self.lease.holds(tx):
            return []
        runs, now_us = await self._store.lock(tx, list(due), skip_locked=True)
        owners = await self._store.lock_owners(tx, sorted({run.owner for run in runs}, key=_by_name)) if runs else set()
        claimed = []
        for run in runs:
            n = due[run.id]
            after = planner.claim(run, n, worker_id=self.lease.worker_id, now_us=now_us)
            if after is not None and run.owner in owners:
                await self._store.write(tx, run, after, now_us)
                claimed.append(Execution(after, n, self._flows[f"{run.flow}/{run.version}"].steps[n]))
        return claimed

    def _begin(self, execution: Execution) -> None:
        self._executions[execution.id] = execution
        execution.task = self._spawn(self._execute(execution), "step")
        # Not inside the task: one that is stopped before its first step never gets there.
        execution.task.add_done_callback(lambda _: self._end(execution))

    # Executing

    async def _execute(self, execution: Execution) -> None:
        decide = await self._call(execution)
        execution.committing = True
        await self._commit(execution, decide)

    def _end(self, execution: Execution) -> None:
        self._executions.pop(execution.id, None)
        self._wake.set()

    async def _call(self, execution: Execution) -> Decision:
        """Run the step once; what to make of the run."""
        step, run, n, fence = execution.definition, execution.run, execution.n, execution.fence
        if not self.lease.valid:
            # Paused between claim and call: nothing has been asked of anybody yet, so nobody has to pay twice.
            return lambda row, now_us: planner.hand_back(row, n, fence, now_us=now_us)
        started = time.monotonic()
        try:
            async with asyncio.timeout(step.timeout_s) as bound:
                output = self._encode(step, await self._ask(execution))
        except (Exception, asyncio.CancelledError) as raised:
            task = asyncio.current_task()
            if isinstance(raised, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            error: BaseException = raised
            if isinstance(raised, TimeoutError) and bound.expired():
                error = StepTimedOut(step=step.name, timeout_s=step.timeout_s)
            elif not isinstance(raised, DaydoError):
                log.exception("step %s of run %s failed", step.name, run.id)
            return self._after_error(execution, error)
        finally:
            self._cells.attempt_seconds.cell(run.flow, step.name).observe(time.monotonic() - started)
        return lambda row, now_us: planner.succeed(row, n, fence, output=output, now_us=now_us)

    async def _ask(self, execution: Execution) -> JSON:
        step, run = execution.definition, execution.run
        row = run.steps[execution.n]
        outputs = {done.name: msgspec.json.decode(done.output) for done in run.steps if done.output is not None}
        inputs, params = step.arguments(msgspec.json.decode(run.inputs), outputs)
        facts: dict[str, Any] = {
            "run_id": run.id,
            "flow": run.flow,
            "version": run.version,
            "step": step.name,
            "attempt": row.attempt,
            "key": planner.attempt_key(run, row),
            "owner": run.owner,
            "report": partial(self._report, execution),
        }
        if step.function is not None:
            return await step.function(StepCall(**facts), **inputs, **params)
        output = await self._providers[step.provider].run(ProviderCall(**facts, inputs=inputs, params=params))
        if not isinstance(output, dict):
            raise TypeError(f"provider {step.provider!r} returned {type(output).__name__}; it must return a dict")
        return output

    def _encode(self, step: StepDefinition, output: JSON) -> str:
        text = msgspec.json.encode(output)
        if len(text) > self._config.max_output_bytes:
            raise ValueError(
                f"step {step.name!r} returned {len(text)} bytes of JSON, the limit is max_output_bytes="
                f"{self._config.max_output_bytes}; store the bytes and return their key"
            )
        return text.decode()

    def _after_error(self, execution: Execution, error: BaseException) -> Decision:
        step, n, fence = execution.definition, execution.n, execution.fence
        attempt = execution.run.steps[n].attempt
        told = RunError.of(error, step.name)
        if not isinstance(error, DaydoError) or not error.retryable or attempt > step.retries:
            return lambda row, now_us: planner.fail(row, n, fence, error=told, now_us=now_us)
        delay_s = planner.retry_delay_s(
            attempt,
            base_s=self._config.backoff_s,
            max_s=self._config.backoff_max_s,
            jitter=random.random(),  # noqa: S311 - spreads load, guards nothing
            asked_s=error.retry_after_s,
        )
        return lambda row, now_us: planner.retry(
            row, n, fence, error=told, delay_us=round(delay_s * 1_000_000), now_us=now_us
        )

    async def _commit(self, execution: Execution, decide: Decision) -> None:
        """Write the outcome, however long the database is away; the fence ends it if the step is given away.

        What cannot be settled for another reason is refused; where that fails twice too, the heartbeat finds the
        step without an execution and takes it back.
        """
        pause_s = 0.05
        failures = 0
        while True:
            try:
                after = await self._db.run(partial(self._store.change, run_id=execution.run.id, decide=decide))
            except DbError as error:
                self._cells.unsaved.inc()
                log.warning("outcome of run %s not written, again in %.2f s: %s", execution.run.id, pause_s, error)
            except Exception as error:
                failures += 1
                log.exception("run %s could not be settled", execution.run.id)
                if failures > _REFUSALS:
                    log.error("step %s of run %s is left to recovery", execution.n, execution.run.id)
                    return
                # The quota would not charge for a success (or broke): then the run has not succeeded.
                decide = self._refused(execution, error)
            else:
                if after is None:
                    self._cells.fenced.inc()
                return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, self._config.poll_s)

    def _refused(self, execution: Execution, error: Exception) -> Decision:
        told = RunError.of(error, execution.definition.name)
        return lambda row, now_us: planner.fail(row, execution.n, execution.fence, error=told, now_us=now_us)

    async def _hand_back(self, run_id: str, n: int, fence: int) -> None:
        await self._db.run(
            lambda tx: self._store.change(
                tx, run_id, lambda row, now_us: planner.hand_back(row, n, fence, now_us=now_us)
            )
        )

    # Progress

    def _report(self, execution: Execution, progress: float) -> None:
        # 1 is for the commit to say.
        execution.progress = max(execution.progress, min(0.99, progress))
        if execution.progress > execution.reported:
            self._reports.set()

    async def _write_reports(self) -> None:
        while True:
            await self._reports.wait()
            self._reports.clear()
            for execution in list(self._executions.values()):
                if execution.progress > execution.reported and not execution.committing:
                    try:
                        await self._write_report(execution)
                    except Exception as error:
                        log.warning("progress of run %s not written: %s", execution.run.id, error)
            await asyncio.sleep(self._config.progress_s)

    async def _write_report(self, execution: Execution) -> None:
        n, fence, progress = execution.n, execution.fence, execution.progress
        execution.reported = progress
        await self._db.run(
            lambda tx: self._store.change(
                tx, execution.run.id, lambda row, _now_us: planner.report(row, n, fence, progress=progress)
            )
        )

    # Heartbeat

    async def _every(self, period_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(period_s)
            try:
                await work()
            except DbError as error:
                log.warning("%s failed, again in %.1f s: %s", work.__name__, period_s, error)
            except Exception:
                log.exception("%s failed, again in %.1f s", work.__name__, period_s)

    async def _renew(self) -> None:
        if not await self.lease.renew():
            log.warning("this worker was taken for dead; its %d steps are dropped", len(self._executions))
            for execution in self._executions.values():
                execution.stop()
            if self._draining:
                return
            await self.lease.take()
        await self._compare()
        self._wake.set()

    async def _compare(self) -> None:
        """Stop what is no longer ours; take back what is ours and not executed here.

        That is a claim whose answer we never saw, or a step that could not be settled.
        """
        before = set(self._executions)
        held = await self._held()
        for lost in before - held:
            execution = self._executions.get(lost)
            if execution is not None:
                execution.stop()
        # Seen twice in a row: a claim that is just being answered is no stray.
        strays = held - before - set(self._executions)
        for stray in strays & self._strays:
            try:
                await self._take_back(*stray)
            except Exception:
                log.exception("step %s of run %s could not be taken back", stray[1], stray[0])
        self._strays = strays

    async def _take_back(self, run_id: str, n: int, fence: int) -> None:
        """Counts as a recovery: a step that can never be settled must not be executed for ever."""
        worker_id, max_recoveries = self.lease.worker_id, self._config.max_recoveries

        def decide(row: RunRow, now_us: int) -> RunRow | None:
            if row.steps[n].fence != fence:
                return None
            return planner.recover(row, n, worker_id=worker_id, max_recoveries=max_recoveries, now_us=now_us)

        log.warning("step %s of run %s is ours but not executed; taken back", n, run_id)
        await self._db.run(lambda tx: self._store.change(tx, run_id, decide))

    async def _held(self) -> set[tuple[str, int, int]]:
        found = await self._db.query(
            "SELECT run_id, n, fence FROM daydo_pipeline_step WHERE worker_id = ?", (self.lease.worker_id,)
        )
        return {(run_id, n, fence) for run_id, n, fence in found.rows}


def _by_name(owner: Any) -> tuple[str, str]:
    return owner.tenant, owner.subject

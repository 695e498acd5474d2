"""Errors nobody declared, from sinks, rows and sockets: they cost what they touch and nothing else."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

import msgspec
import pytest

from daydo_kernel.testing import ManualClock
from daydo_pipeline import Owner, Runs
from daydo_pipeline.store import account
from daydo_pipeline.testing import IDLE, OWNER, QUICK, FakeProvider, MemoryQuota, bench, cutout, eventually, finished

ENDS = ("pipeline.run_succeeded", "pipeline.run_failed")
FAST = msgspec.structs.replace(QUICK, lease_s=0.3)


class BrokenSink:
    """Raises for every end of a run of ``subject``, until ``broken`` is False."""

    def __init__(self, subject=OWNER.subject):
        self.subject = subject
        self.broken = True
        self.refused = 0

    async def emit(self, event, tx=None):
        if self.broken and event.subject == self.subject and event.name in ENDS:
            self.refused += 1
            raise RuntimeError("the audit table is gone")


def make(db, sink, config, provider=None, quota=None, clock=None):
    return Runs(
        db,
        config,
        flows=[cutout()],
        providers={"matting": provider or FakeProvider()},
        quota=quota or MemoryQuota(),
        events=sink,
        clock=clock,
    )


def running_steps(runs):
    return next(
        family.cells[0].values[0] for family in runs.metrics.snapshot() if family.name == "daydo_pipeline_running_steps"
    )


async def start(runs, owner=OWNER, key="k"):
    return await runs.start("cutout", {"photo": "p"}, owner=owner, key=key)


async def test_what_cannot_be_settled_is_not_tried_for_ever(db):
    """Outcome, refusal, refusal again: then the worker lets go, and its slot is free."""
    sink = BrokenSink()
    async with make(db, sink, msgspec.structs.replace(QUICK, lease_s=60.0)) as runs:
        run = await start(runs)
        await eventually(lambda: sink.refused == 3)
        await eventually(lambda: running_steps(runs) == 0)
        await asyncio.sleep(0.3)
        assert sink.refused == 3
        assert (await runs.get(OWNER, run.id)).state == "running"


async def test_a_step_left_unsettled_is_recovered(db):
    """The same worker takes it up again, under the same attempt, once settling works."""
    sink, provider, quota = BrokenSink(), FakeProvider(), MemoryQuota()
    async with make(db, sink, FAST, provider, quota) as runs:
        run = await start(runs)
        await eventually(lambda: sink.refused == 3)
        sink.broken = False
        run = await finished(runs, run.id)
        assert (run.state, run.steps[1].attempt) == ("succeeded", 1)
        assert quota.operations(run.id) == ["reserve", "confirm"]


async def test_a_step_that_is_never_settled_stops_being_executed(db):
    """After max_recoveries it only waits to be given up, which happens as soon as it can."""
    sink, quota = BrokenSink(), MemoryQuota()
    async with make(db, sink, msgspec.structs.replace(FAST, max_recoveries=1), quota=quota) as runs:
        run = await start(runs)
        # Three for each of two executions; then every heartbeat fails to give the run up.
        await eventually(lambda: sink.refused >= 8, within_s=10)
        attempts = await db.query("SELECT COUNT(*) FROM daydo_pipeline_attempt WHERE run_id = ? AND n = 1", (run.id,))
        assert attempts.rows[0][0] == 2
        sink.broken = False
        run = await finished(runs, run.id)
        assert run.error is not None
        assert run.error.name == "pipeline.step_abandoned"
        assert quota.operations(run.id) == ["reserve", "cancel"]


class BrokenCancel(MemoryQuota):
    """Leaves half of a cancellation behind, and says so to the transaction."""

    tried = 0

    async def cancel(self, account, *, key, tx, reason=""):
        self.tried += 1
        error = RuntimeError("the entry cannot be stored")
        tx.set_rollback_only(error)
        raise error


async def test_a_hold_that_cannot_be_cancelled_for_a_fault_keeps_no_slot(db):
    """A refusal is passed over; a fault is tried three times, as any other, and not for as long as it lasts."""
    provider, quota = FakeProvider(), BrokenCancel()
    provider.refuses = True
    async with bench(db, config=msgspec.structs.replace(QUICK, lease_s=60.0), provider=provider, quota=quota) as b:
        run = await b.start()
        await eventually(lambda: quota.tried == 3)
        await eventually(lambda: running_steps(b.runs) == 0)
        with pytest.raises(RuntimeError, match="cannot be stored"):
            await b.runs.cancel(OWNER, run.id)
        assert quota.tried == 4


async def test_a_poisoned_run_stops_neither_start_nor_sweep(db, caplog):
    """A run that cannot be ended is logged; one behind it ends, and it ends itself when it can."""
    caplog.set_level(logging.CRITICAL, "daydo.pipeline")
    sink, clock, quota = BrokenSink("u_poisoned"), ManualClock(), MemoryQuota()
    poisoned_owner = Owner("acme", "u_poisoned")
    async with make(db, sink, IDLE, quota=quota, clock=clock) as runs:
        poisoned = await start(runs, poisoned_owner)
        clock.advance(1)
        behind = await start(runs)
    clock.advance(4_000)
    async with make(db, sink, msgspec.structs.replace(IDLE, lease_s=0.3), quota=quota, clock=clock) as runs:
        assert (await runs.get(OWNER, behind.id)).state == "failed"
        assert (await runs.get(poisoned_owner, poisoned.id)).state == "queued"
        await eventually(lambda: sink.refused > 2)
        sink.broken = False
        assert (await finished(runs, poisoned.id, poisoned_owner)).state == "failed"
    assert quota.settled_once()


async def test_a_sweep_that_fails_does_not_stop_a_start(db):
    """Here a row that cannot be read, of a worker that is taken for alive."""
    await db.execute(
        "INSERT INTO daydo_pipeline_worker (id, flows, started_at_us, expires_at_us) VALUES (?, ?, ?, ?)",
        ("worker_odd", "no JSON", 0, 1 << 60),
    )
    async with bench(db) as b:
        assert (await finished(b.runs, (await b.start()).id)).state == "succeeded"


async def test_watching_others_survives_any_error(db, monkeypatch):
    """Events of other processes are late while it lasts, and come after."""
    query, failed, broken = db.query, 0, True

    async def shaky(sql, args=()):
        nonlocal failed
        if broken and sql.startswith("SELECT tenant, subject, seq FROM daydo_pipeline_owner"):
            failed += 1
            raise OSError("too many open files")
        return await query(sql, args)

    monkeypatch.setattr(db, "query", shaky)
    async with (
        bench(db, config=IDLE) as first,
        bench(db, config=IDLE) as second,
        aclosing(second.runs.events(OWNER, "0")) as events,
    ):
        news = asyncio.create_task(anext(events))
        await eventually(lambda: failed >= 2)
        run = await first.start()
        assert not news.done()
        broken = False
        async with asyncio.timeout(5):
            assert (await news).run_id == run.id


async def test_a_run_without_a_price_has_no_account(db):
    """Charging for it is a mistake that is told, also under python -O."""
    async with bench(db, config=IDLE) as b:
        plan = b.runs._plan(cutout(), OWNER, "{}", 0)
    assert account(plan).unit == "credits"
    with pytest.raises(ValueError, match="no price"):
        account(msgspec.structs.replace(plan, cost=None))

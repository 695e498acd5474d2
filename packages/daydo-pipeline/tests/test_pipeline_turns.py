# ruff: noqa: PT012 - the block that raises is the test
"""Calls with ``tx=``: whole or not at all, one at a time, on every database, in our transactions and in a session's."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from daydo_db import StatementFailed, TransactionAborted
from daydo_db.testing import FailingTx, fail_each_step
from daydo_pipeline import Owner, Runs
from daydo_pipeline.testing import CREDITS_SHORT, IDLE, OWNER, QUICK, FakeProvider, MemoryQuota, cutout, until

TABLES = ("run", "step", "attempt", "event", "owner")
REFUSED = StatementFailed(reason="a letter that its character set lacks", statement="")


class Sink:
    """Stores events in the transaction it is given, as an audit or an outbox would."""

    async def emit(self, event, tx=None):
        if isinstance(tx, FailingTx):
            tx.step()


class BreakingQuota(MemoryQuota):
    """Writes, and then breaks, which is no refusal."""

    async def reserve(self, account, amount, *, key, tx, **more):
        await tx.execute("UPDATE daydo_pipeline_owner SET seq = seq + 100")
        raise RuntimeError("half of a hold")


@pytest.fixture(params=["ours", "enlisted"])
async def begin(request, db, database_url):
    """Opens a transaction that ends with the block."""
    if request.param == "ours":
        yield db.transaction
        return
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    from daydo_db.sqlalchemy import enlist

    url = database_url.replace("sqlite:", "sqlite+aiosqlite:", 1).replace("mysql:", "mysql+aiomysql:", 1)
    engine = create_async_engine(url)

    @asynccontextmanager
    async def enlisted():
        async with AsyncSession(engine) as session, session.begin():
            yield await enlist(session)

    yield enlisted
    await engine.dispose()


def make(db, config=IDLE, *, provider=None, quota=None):
    return Runs(
        db,
        config,
        flows=[cutout()],
        providers={"matting": provider or FakeProvider()},
        quota=quota or MemoryQuota(),
        events=Sink(),
    )


async def rows(db):
    found = {table: await db.query(f"SELECT * FROM daydo_pipeline_{table}") for table in TABLES}
    return {table: sorted(map(repr, result.rows)) for table, result in found.items()}


async def start(runs, tx=None, owner=OWNER, key="k"):
    return await runs.start("cutout", {"photo": "p"}, owner=owner, key=key, tx=tx)


async def fail(db, begin, error, call):
    """What there was before; ``call`` has left nothing until it failed nowhere."""
    before = await rows(db)
    async for step in fail_each_step(begin, call, error):
        assert await rows(db) == before, f"at step {step}"
    return before


every_error = pytest.mark.parametrize("error", [REFUSED, asyncio.CancelledError()], ids=["refused", "cancelled"])


@every_error
@pytest.mark.parametrize("name", ["start", "cancel"])
async def test_a_call_that_failed_at_its_nth_step_leaves_nothing_that_can_be_committed(db, begin, name, error):
    """Whoever bears the error and commits keeps nothing of it: no run without its hold, no end without its refund."""
    quota = MemoryQuota()
    async with make(db, quota=quota) as runs:
        run = await start(runs)
        entries = len(quota.entries)
        calls = {
            "start": lambda tx: start(runs, tx, key="another"),
            "cancel": lambda tx: runs.cancel(OWNER, run.id, tx=tx),
        }
        before = await fail(db, begin, error, calls[name])
        assert await rows(db) != before, "nothing failed"
        assert len(quota.entries) == entries + 1


@every_error
async def test_to_cancel_what_is_under_way_is_as_whole(db, begin, error):
    """It has an attempt besides."""
    provider = FakeProvider()
    provider.gate.clear()
    async with make(db, QUICK, provider=provider) as runs:
        run = await start(runs)
        await until(runs, run.id, lambda run: run.steps[0].state == "running")
        await fail(db, begin, error, lambda tx: runs.cancel(OWNER, run.id, tx=tx))
        assert (await runs.get(OWNER, run.id)).state == "cancelled"


@every_error
async def test_a_refused_start_is_taken_back_or_cannot_be_committed(db, begin, error):
    """The quota refuses when the run is written already."""
    async with make(db, quota=MemoryQuota(credits=0)) as runs:

        async def refused(tx):
            with suppress(type(CREDITS_SHORT)):
                await start(runs, tx)

        before = await fail(db, begin, error, refused)
        assert await rows(db) == before


async def test_a_quota_that_breaks_ends_the_transaction(db, begin):
    """What it has written of a hold cannot be committed without the run."""
    async with make(db) as runs:
        await start(runs)
    before = await rows(db)
    async with make(db, quota=BreakingQuota()) as runs:
        with pytest.raises(TransactionAborted):
            async with begin() as tx:
                with suppress(RuntimeError):
                    await start(runs, tx, key="another")
    assert await rows(db) == before


async def test_runs_that_are_started_at_once_in_one_transaction_are_told_without_a_gap(db, begin):
    """The second counts its event behind that of the first."""
    async with make(db) as runs:
        async with begin() as tx:
            await asyncio.gather(*(start(runs, tx, key=key) for key in ("a", "b", "c")))
        told = await db.query("SELECT seq, name FROM daydo_pipeline_event ORDER BY seq")
        assert told.rows == [(1, "run.queued"), (2, "run.queued"), (3, "run.queued")]


async def test_a_run_that_is_started_twice_at_once_in_one_transaction_is_one(db, begin):
    """The second gets all of it, with its steps."""
    quota = MemoryQuota()
    async with make(db, quota=quota) as runs:
        async with begin() as tx:
            first, second = await asyncio.gather(start(runs, tx), start(runs, tx))
        assert (first.created, second.created) == (True, False)
        assert (first.id, first.steps) == (second.id, second.steps)
        assert quota.operations(first.id) == ["reserve"]


async def test_a_run_that_is_cancelled_twice_at_once_in_one_transaction_is_cancelled_once(db, begin):
    """The second finds it cancelled."""
    quota = MemoryQuota()
    async with make(db, quota=quota) as runs:
        run = await start(runs)
        async with begin() as tx:
            ended = await asyncio.gather(*(runs.cancel(OWNER, run.id, tx=tx) for _ in range(2)))
        assert [each.state for each in ended] == ["cancelled", "cancelled"]
        assert quota.operations(run.id) == ["reserve", "cancel"]


async def test_a_sink_may_start_another_run_in_the_same_transaction(db, begin):
    """It is part of the one that it hears of, and does not wait for its end."""
    other = Owner("acme", "u_8")

    class Follower:
        async def emit(self, event, tx=None):
            if event.subject == OWNER.subject:
                await start(runs, tx, other)

    async with Runs(
        db, IDLE, flows=[cutout()], providers={"matting": FakeProvider()}, quota=MemoryQuota(), events=Follower()
    ) as runs:
        async with asyncio.timeout(5), begin() as tx:
            await start(runs, tx)
        assert len((await runs.list(other)).items) == 1

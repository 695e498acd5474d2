"""kill −9, SIGSTOP and rival processes: every run ends, every hold is settled once, no key is charged twice."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import signal
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from daydo_db import Database
from daydo_pipeline.testing import finished, until

PROGRAM = Path(__file__).with_name("crash_program.py")
_spec = importlib.util.spec_from_file_location("crash_program", PROGRAM)
assert _spec is not None
assert _spec.loader is not None
crash = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(crash)

IDLE = msgspec.structs.replace(crash.CONFIG, max_parallel=0)


@pytest.fixture(autouse=True)
async def outside(db):
    for statement in crash.TABLES:
        await db.execute(statement)


@contextlib.asynccontextmanager
async def process(url: str, point: str = "", takes_s: float = 0.0):
    child = await asyncio.create_subprocess_exec(sys.executable, str(PROGRAM), url, point, str(takes_s))
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def settled(db: Database) -> dict[str, list[str]]:
    rows = await db.query("SELECT run_id, op FROM test_ledger ORDER BY run_id, op DESC")
    found: dict[str, list[str]] = {}
    for run_id, op in rows.rows:
        found.setdefault(run_id, []).append(op)
    return found


async def events_without_gaps(db: Database) -> bool:
    rows = await db.query("SELECT seq FROM daydo_pipeline_event ORDER BY seq")
    return [seq for (seq,) in rows.rows] == list(range(1, len(rows.rows) + 1))


async def value(db: Database, sql: str) -> int:
    return int((await db.query(sql)).rows[0][0])


async def become(db: Database, sql: str, wanted: int, within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while await value(db, sql) < wanted:  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("point", crash.POINTS)
async def test_a_killed_process_loses_nothing(db, database_url, point):
    """Whatever it was doing when it was killed, after a restart the run ends and is settled exactly once."""
    async with process(database_url, point) as child:
        assert await child.wait() == -signal.SIGKILL
    before = await settled(db)
    async with crash.make_runs(db) as runs:
        page = await runs.list(crash.OWNER)
        if point == "reserve":
            # Killed before the commit: neither the run nor its hold ever were.
            assert (page.items, before) == ([], {})
            return
        (run,) = page.items
        assert run.state == ("succeeded" if point == "committed" else "queued" if point == "started" else "running")
        run = await finished(runs, run.id)
    assert run.state == "succeeded"
    assert await settled(db) == {run.id: ["reserve", "confirm"]}
    assert await value(db, "SELECT COUNT(*) FROM test_charge") == 1
    assert await events_without_gaps(db)
    ok = await db.query("SELECT n, COUNT(*) FROM daydo_pipeline_attempt WHERE state = 'ok' GROUP BY n ORDER BY n")
    assert [tuple(row) for row in ok.rows] == [(0, 1), (1, 1)]


async def test_one_of_two_workers_is_killed(db, database_url):
    """The other one finishes everything; nothing is committed or charged twice."""
    async with (
        crash.make_runs(db, IDLE) as runs,
        process(database_url, takes_s=0.2) as first,
        process(database_url, takes_s=0.2),
    ):
        await become(db, "SELECT COUNT(*) FROM daydo_pipeline_worker", 3)
        started = [await runs.start("cutout", {"photo": "p"}, owner=crash.OWNER, key=f"k_{n}") for n in range(24)]
        await become(db, "SELECT COUNT(DISTINCT pid) FROM test_charge", 2)
        first.kill()
        for run in started:
            assert (await finished(runs, run.id, crash.OWNER, 20)).state == "succeeded"
    assert Counter(map(tuple, (await settled(db)).values())) == {("reserve", "confirm"): 24}
    assert await value(db, "SELECT COUNT(*) FROM test_charge") == 24
    assert await value(db, "SELECT COUNT(*) FROM daydo_pipeline_attempt WHERE state = 'ok'") == 48
    assert await events_without_gaps(db)


async def test_a_worker_stopped_beyond_its_lease_is_fenced(db, database_url):
    """SIGSTOP in the middle of a call, another process finishes the run, SIGCONT: its late result is refused."""
    async with process(database_url, takes_s=0.3) as sleeper, crash.make_runs(db, IDLE) as watcher:
        run = await watcher.start("cutout", {"photo": "p"}, owner=crash.OWNER, key="k_1")
        await become(db, "SELECT COUNT(*) FROM test_charge", 1)
        sleeper.send_signal(signal.SIGSTOP)
        async with crash.make_runs(db) as runs:
            run = await finished(runs, run.id)
        after = await settled(db)
        sleeper.send_signal(signal.SIGCONT)
        # It lives on under a new id, and that it does work again shows that it has dropped the old step.
        second = await watcher.start("cutout", {"photo": "p"}, owner=crash.OWNER, key="k_2")
        second = await finished(watcher, second.id)
        assert second.output == {"image": f"by {sleeper.pid}"}
        assert await watcher.get(crash.OWNER, run.id) == run
    assert run.output != second.output
    assert after[run.id] == (await settled(db))[run.id] == ["reserve", "confirm"]
    states = await db.query(
        "SELECT state FROM daydo_pipeline_attempt WHERE run_id = ? AND n = 0 ORDER BY fence", (run.id,)
    )
    assert [state for (state,) in states.rows] == ["unknown", "ok"]


async def test_a_cancellation_reaches_another_process(db, database_url):
    """The call elsewhere is stopped with the next heartbeat; the slot is free for the next run."""
    async with process(database_url, takes_s=30) as child, crash.make_runs(db, IDLE) as runs:
        for n in range(crash.CONFIG.max_parallel + 1):
            run = await runs.start("cutout", {"photo": "p"}, owner=crash.OWNER, key=f"k_{n}")
            # The last one gets a slot only if the others gave theirs back.
            run = await until(runs, run.id, lambda run: run.state == "running", crash.OWNER)
            await runs.cancel(crash.OWNER, run.id)
        assert child.returncode is None
    assert Counter(map(tuple, (await settled(db)).values())) == {("reserve", "cancel"): 5}


async def test_a_worker_that_renews_in_time_keeps_its_steps(db):
    """Between a sweep's look and its lock the lease was renewed: nothing is taken back."""
    async with crash.make_runs(db, takes_s=30) as runs:
        run = await runs.start("cutout", {"photo": "p"}, owner=crash.OWNER, key="k_1")
        await until(runs, run.id, lambda run: run.state == "running", crash.OWNER)
        worker = runs._worker
        assert await db.run(worker.janitor._recover(run.id, 0, worker.lease.worker_id)) is None
        assert (await runs.get(crash.OWNER, run.id)).steps[0].state == "running"
        await runs.cancel(crash.OWNER, run.id)

"""Inside the caller's own SQLAlchemy session, as stock applications have it: REPEATABLE READ, an old snapshot."""

from __future__ import annotations

import asyncio

import pytest

from daydo_pipeline import KeyConflict
from daydo_pipeline.testing import IDLE, OWNER, MemoryQuota, bench, finished


@pytest.fixture
async def session(database_url):
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    engine = create_async_engine(
        database_url.replace("mysql:", "mysql+aiomysql:", 1),
        isolation_level="REPEATABLE READ",
        connect_args={"client_flag": 0},
    )
    async with AsyncSession(engine) as session:
        yield session
    await engine.dispose()


@pytest.mark.dialect("mysql")
async def test_an_old_snapshot_decides_nothing(db, session):
    """What was committed after the session's first read is seen where it matters: keys, counters, states."""
    from sqlalchemy import text

    from daydo_db.sqlalchemy import enlist

    async with bench(db, config=IDLE) as b:
        await session.execute(text("SELECT COUNT(*) FROM daydo_pipeline_run"))
        earlier = await b.start(key="k_1")
        cancelled = await b.start(key="k_2")
        await b.runs.cancel(OWNER, cancelled.id)
        tx = await enlist(session)
        same = await b.runs.start("cutout", {"photo": "photo.jpg"}, owner=OWNER, key="k_1", tx=tx)
        assert (same.id, same.created) == (earlier.id, False)
        with pytest.raises(KeyConflict):
            await b.runs.start("cutout", {"photo": "other.jpg"}, owner=OWNER, key="k_1", tx=tx)
        assert (await b.runs.cancel(OWNER, cancelled.id, tx=tx)).state == "cancelled"
        fresh = await b.runs.start("cutout", {"photo": "photo.jpg"}, owner=OWNER, key="k_3", tx=tx)
        assert fresh.created
        await session.commit()
        rows = await db.query("SELECT seq, name FROM daydo_pipeline_event ORDER BY seq")
        assert [tuple(row) for row in rows.rows] == [
            (1, "run.queued"),
            (2, "run.queued"),
            (3, "run.cancelled"),
            (4, "run.queued"),
        ]
        assert b.quota.operations(cancelled.id) == ["reserve", "cancel"]


@pytest.mark.dialect("mysql")
async def test_a_session_left_open_delays_one_owner_only(db, session):
    """A claim waits for nobody: others' runs go on while somebody's transaction holds their counter."""
    from daydo_db.sqlalchemy import enlist
    from daydo_pipeline import Owner

    async with bench(db, quota=MemoryQuota()) as b:
        tx = await enlist(session)
        held = await b.runs.start("cutout", {"photo": "p"}, owner=OWNER, key="k_1", tx=tx)
        other = await b.runs.start("cutout", {"photo": "p"}, owner=Owner("acme", "u_8"), key="k_1")
        assert (await finished(b.runs, other.id, Owner("acme", "u_8"))).state == "succeeded"
        async with asyncio.timeout(5):
            await session.commit()
        assert (await finished(b.runs, held.id)).state == "succeeded"

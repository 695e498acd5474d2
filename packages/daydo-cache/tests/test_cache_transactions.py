"""``invalidate(tx=)`` on every database, in our transactions and in those of an SQLAlchemy session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from cache_loaders import PATIENT, counted
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from daydo_cache import Cache, CacheConfig, Space
from daydo_cache.testing import FaultyRedis
from daydo_db import Database, Tx
from daydo_db.sqlalchemy import enlist
from daydo_kernel.testing import ManualClock
from daydo_redis.testing import eventually

Begin = Callable[[], AbstractAsyncContextManager[Tx]]


class Changed(Exception):
    """The reason for a rollback."""


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as db:
        await db.execute("CREATE TABLE shop_user (id VARCHAR(40) NOT NULL PRIMARY KEY, name VARCHAR(40) NOT NULL)")
        await db.execute("INSERT INTO shop_user VALUES ('u_7', 'Ann')")
        yield db


@pytest.fixture(params=["ours", "enlisted"])
async def begin(request: pytest.FixtureRequest, db: Database, database_url: str) -> AsyncIterator[Begin]:
    """Opens a transaction that ends with the block."""
    if request.param == "ours":
        yield db.transaction
        return
    url = database_url.replace("sqlite:", "sqlite+aiosqlite:", 1).replace("mysql:", "mysql+aiomysql:", 1)
    engine = create_async_engine(url)

    @asynccontextmanager
    async def enlisted() -> AsyncIterator[Tx]:
        async with AsyncSession(engine) as session, session.begin():
            yield await enlist(session)

    yield enlisted
    await engine.dispose()


class Reader:
    """Loads names out of the database; while ``gate`` is clear it keeps what it read to itself."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()

    async def __call__(self, key: str) -> str | None:
        self.asked += 1
        found = await self.db.query("SELECT name FROM shop_user WHERE id = ?", (key,))
        self.reached.set()
        await self.gate.wait()
        return str(found.rows[0][0]) if found.rows else None


async def rename(names: Space[str], name: str, tx: Tx) -> None:
    await tx.execute("UPDATE shop_user SET name = ? WHERE id = 'u_7'", (name,))
    await names.invalidate("u_7", tx=tx)


async def settled(cache: Cache, times: int = 1) -> None:
    """Wait for what follows a COMMIT."""
    await eventually(lambda: counted(cache.metrics, "invalidations_total", "name", "done") == times)


async def test_change_is_read_everywhere_after_its_commit(
    near: FaultyRedis, far: FaultyRedis, db: Database, begin: Begin
) -> None:
    """Who reads before the COMMIT gets the old name, which nobody keeps; after it all get the new one, once loaded."""
    async with Cache(near, PATIENT) as cache, Cache(far, PATIENT) as other:
        here, there, load = cache.space("name", str), other.space("name", str), Reader(db)
        assert [await space.get_or_load("u_7", load) for space in (here, there)] == ["Ann", "Ann"]
        async with begin() as tx:
            await rename(here, "Bea", tx)
            await eventually(lambda: not there._shelf.memory.entries)
            assert await there.get_or_load("u_7", load) == "Ann"
            assert await far.get(there._guard.value_key("u_7")) is None
        await settled(cache)
        await eventually(lambda: not there._shelf.memory.entries)
        assert [await space.get_or_load("u_7", load) for space in (there, here)] == ["Bea", "Bea"]
        assert load.asked == 3


async def test_load_that_spans_the_commit_is_not_kept(
    near: FaultyRedis, far: FaultyRedis, db: Database, begin: Begin
) -> None:
    """Another process has read the old name before the COMMIT and stores it after it: refused."""
    async with Cache(near, PATIENT) as cache, Cache(far, PATIENT) as other:
        here, there, load = cache.space("name", str), other.space("name", str), Reader(db)
        load.gate.clear()
        early = asyncio.create_task(there.get_or_load("u_7", load))
        await load.reached.wait()
        async with begin() as tx:
            await rename(here, "Bea", tx)
        await settled(cache)
        load.gate.set()
        assert await early == "Ann", "it asked before the change"
        await eventually(lambda: counted(other.metrics, "fills_total", "name", "refused") == 1)
        assert [await space.get_or_load("u_7", load) for space in (there, here)] == ["Bea", "Bea"]


async def test_rollback_leaves_the_barrier_to_its_time(
    near: FaultyRedis, far: FaultyRedis, db: Database, begin: Begin, clock: ManualClock
) -> None:
    """Nothing has changed, so the old name is read; it is kept in Redis again once the barrier has ended."""
    config = CacheConfig(barrier_ttl_s=10, staleness_s=2)
    async with Cache(near, config, clock=clock) as cache, Cache(far, config, clock=clock) as other:
        here, there, load = cache.space("name", str), other.space("name", str), Reader(db)

        async def change() -> None:
            async with begin() as tx:
                await rename(here, "Bea", tx)
                raise Changed

        with pytest.raises(Changed):
            await change()
        key = there._guard.value_key("u_7")
        for passed_s, stored in ((0.0, False), (9.0, False), (2.5, True)):
            clock.advance(passed_s)
            assert await there.get_or_load("u_7", load) == "Ann"
            assert (await far.get(key) is not None) is stored
        assert counted(cache.metrics, "invalidations_total", "name", "done") == 0


async def test_tags_and_spaces_follow_the_commit(
    near: FaultyRedis, far: FaultyRedis, db: Database, begin: Begin
) -> None:
    """The same for a tag and for a whole space, named in one transaction."""
    async with Cache(near, PATIENT) as cache, Cache(far, PATIENT) as other:
        tags = {"tags": lambda key, name: ["everybody"]}
        spaces = [(each.space("name", str, **tags), each.space("title", str)) for each in (cache, other)]
        load = Reader(db)
        everything = [space for pair in spaces for space in pair]
        for space in everything:
            assert await space.get_or_load("u_7", load) == "Ann"
        async with begin() as tx:
            await tx.execute("UPDATE shop_user SET name = 'Bea' WHERE id = 'u_7'")
            await cache.invalidate_tags("everybody", tx=tx)
            await spaces[0][1].clear(tx=tx)
        await eventually(lambda: counted(cache.metrics, "tag_invalidations_total", "done") == 2)
        await eventually(lambda: not any(space._shelf.memory.entries for space in everything))
        assert [await space.get_or_load("u_7", load) for space in everything] == ["Bea"] * 4


async def test_rolled_back_savepoint_takes_its_invalidation_along(
    near: FaultyRedis, db: Database, clock: ManualClock
) -> None:
    """What was named inside the savepoint is not invalidated by the COMMIT around it; what was named outside is."""
    async with Cache(near, clock=clock) as cache:
        names, load = cache.space("name", str), Reader(db)

        async def fail(tx: Tx) -> None:
            async with tx.savepoint():  # type: ignore[attr-defined]  # ours alone has them
                await rename(names, "Bea", tx)
                raise Changed

        async with db.transaction() as tx:
            await names.invalidate("u_8", tx=tx)
            with pytest.raises(Changed):
                await fail(tx)
        await settled(cache)
        assert await names.get_or_load("u_7", load) == "Ann"
        assert await near.get(names._guard.value_key("u_7")) is None, "its barrier is there"
        clock.advance(11)
        assert await names.get_or_load("u_7", load) == "Ann"
        assert await near.get(names._guard.value_key("u_7")) is not None

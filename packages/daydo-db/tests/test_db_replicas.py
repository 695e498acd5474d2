"""A primary and its replica, two real servers: who answers a read, and what a reader can count on."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from daydo_db import Database, DatabaseConfig, SchemaOutdated, StatementFailed, migrate
from daydo_db.mapping import from_mysql
from daydo_db.testing import Backend, PrivateMariaDB, fresh_database
from daydo_db.testing.servers import admin
from daydo_kernel import RequestContext, reset_context, set_context

FAST = DatabaseConfig(replica_lag_s=0.4, replica_beat_s=0.05, pool_min=0, connect_timeout_s=1.0)
FOLLOW = """CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port}, MASTER_USER = 'root',
    MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1"""


@pytest.fixture(scope="module")
def pair(pytestconfig: pytest.Config) -> Iterator[tuple[PrivateMariaDB, PrivateMariaDB]]:
    """A primary and a replica that follows it."""
    program = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
    if pytestconfig.option.embedded or program is None:
        pytest.skip("needs mariadbd, to run two of them")
    with ExitStack() as stack:
        servers = []
        for number in (1, 2):
            server = PrivateMariaDB(program, "--log-bin", f"--server-id={number}", restarts=number == 2)
            stack.callback(server.stop)
            servers.append(server)
        for server in servers:
            server.wait()
        yield servers[0], servers[1]


@pytest.fixture(scope="module")
def following(pair: tuple[PrivateMariaDB, PrivateMariaDB]) -> tuple[PrivateMariaDB, PrivateMariaDB]:
    """The pair, replicating."""
    admin(pair[1].url, FOLLOW.format(port=pair[0].port))
    admin(pair[1].url, "START SLAVE")
    return pair


@pytest.fixture
async def urls(following: tuple[PrivateMariaDB, PrivateMariaDB], tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    """The same fresh database on both servers, with the heartbeat and a table; the replica has caught up."""
    primary, replica = following
    with fresh_database(Backend("mariadb", "mysql", "", primary.url), tmp_path) as url:
        follower = url.replace(str(primary.port), str(replica.port))
        async with Database(url) as db:
            await migrate(db, "daydo_db")
            await db.execute("CREATE TABLE note (id INT PRIMARY KEY, body VARCHAR(20) NOT NULL) ENGINE=InnoDB")
        async with Database(f"{replica.url}/mysql") as other:
            await until(lambda: is_there(other, url.rpartition("/")[2]))
            yield url, follower
        admin(replica.url, "START SLAVE")


@pytest.fixture
async def db(urls: tuple[str, str]) -> AsyncIterator[Database]:
    async with Database(urls[0], FAST, replicas=[urls[1]]) as db:
        await until(lambda: is_fresh(db))
        yield db


async def is_there(db: Database, name: str) -> bool:
    """Whether the replica has the table that was made last."""
    sql = "SELECT 1 FROM information_schema.tables WHERE table_schema = ? AND table_name = 'note'"
    return bool((await db.query(sql, (name,))).rows)


async def is_fresh(db: Database) -> bool:
    return not db._replicas.stale


async def is_stale(db: Database) -> bool:
    return bool(db._replicas.stale)


async def until(holds: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(20):
        while not await holds():  # noqa: ASYNC110 - a server's state, not an event of ours
            await asyncio.sleep(0.02)


async def server(db: Database) -> int:
    """Which server answers a read that may be old."""
    return int((await db.query("SELECT @@server_id", replica=True)).rows[0][0])


async def elsewhere(work: Callable[[], Awaitable[Any]]) -> Any:
    """``work`` in a task of its own: another request."""
    return await asyncio.create_task(work())  # type: ignore[arg-type]


def routes(db: Database) -> dict[str, float]:
    (family,) = [each for each in db.metrics.snapshot() if each.name == "daydo_db_replica_reads_total"]
    return {cell.labels[0]: cell.values[0] for cell in family.cells}


async def test_a_replica_answers_what_may_be_old_and_the_primary_all_else(db: Database) -> None:
    """Only reads that ask for it leave the primary."""
    assert await server(db) == 2
    assert (await db.query("SELECT @@server_id")).rows == [(1,)]
    async with db.transaction() as tx:
        assert (await tx.execute("SELECT @@server_id")).rows == [(1,)]


async def test_a_request_reads_what_it_has_written(db: Database, urls: tuple[str, str]) -> None:
    """After a write the same task asks the primary, while others still ask the replica, which has stopped."""
    admin(urls[1], "STOP SLAVE SQL_THREAD")

    async def write_and_read() -> tuple[int, list[tuple[str]]]:
        await db.execute("INSERT INTO note VALUES (1, 'mine')")
        return await server(db), (await db.query("SELECT body FROM note", replica=True)).rows

    assert await elsewhere(write_and_read) == (1, [("mine",)])
    assert await elsewhere(lambda: server(db)) == 2
    assert routes(db)["own_writes"] == 2


async def test_a_transaction_counts_as_a_write_however_it_ended(db: Database) -> None:
    """Also after an error, for it may be a COMMIT whose answer was lost."""

    async def fail_and_read() -> int:
        with pytest.raises(StatementFailed):
            async with db.transaction() as tx:
                await tx.execute("SELEC")
        return await server(db)

    assert await elsewhere(fail_and_read) == 1


async def test_all_tasks_of_a_request_read_its_writes(db: Database) -> None:
    """Where an edge made a request context, a write in one of its tasks counts for the others."""
    token = set_context(RequestContext(request_id="req_1"))
    try:
        await elsewhere(lambda: db.execute("INSERT INTO note VALUES (2, 'ours')"))
        assert await server(db) == 1
    finally:
        reset_context(token)
    assert await elsewhere(lambda: server(db)) == 2


async def test_own_writes_are_forgotten_once_every_replica_must_have_them(db: Database) -> None:
    """The primary is spared again after the lag that a replica may have."""
    await db.execute("INSERT INTO note VALUES (3, 'old')")
    assert await server(db) == 1
    await until(lambda: _equals(server(db), 2))
    assert (await db.query("SELECT body FROM note WHERE id = 3", replica=True)).rows == [("old",)]


async def test_a_locked_heartbeat_makes_nobody_fresher(db: Database, urls: tuple[str, str]) -> None:
    """While it cannot be moved nothing is known of later commits: own writes stay visible, and the replica ages."""
    admin(urls[1], "STOP SLAVE SQL_THREAD")
    async with db.transaction() as tx:
        await tx.execute("SELECT at_us FROM daydo_db_heartbeat WHERE id = 1 FOR UPDATE")

        async def write_and_read_until_stale() -> list[int]:
            await db.execute("INSERT INTO note VALUES (9, 'mine')")
            seen = []
            while not await is_stale(db):
                seen.append(await server(db))
                await asyncio.sleep(0.02)
            return [*seen, await server(db)]

        assert set(await elsewhere(write_and_read_until_stale)) == {1}


async def test_fresh_replicas_answer_while_the_primary_is_away(db: Database, pair: tuple[Any, Any]) -> None:
    """A read that may be old needs no primary; nothing newer could have been committed."""
    os.kill(pair[0].pid, signal.SIGSTOP)
    try:
        await until(lambda: _is(not db._replicas._primary_answers))
        assert await server(db) == 2
    finally:
        os.kill(pair[0].pid, signal.SIGCONT)
    await until(lambda: _is(db._replicas._primary_answers))


async def test_a_replica_that_lags_is_left_out_until_it_has_caught_up(db: Database, urls: tuple[str, str]) -> None:
    """The lag is measured by the primary's clock, and health says who is left out."""
    admin(urls[1], "STOP SLAVE SQL_THREAD")
    await until(lambda: is_stale(db))
    assert await server(db) == 1
    health = await db.health()
    assert health.status == "degraded"
    assert str(health.detail["replicas_left_out"]).startswith("127.0.0.1:")
    admin(urls[1], "START SLAVE")
    await until(lambda: is_fresh(db))
    assert await server(db) == 2
    assert (await db.health()).status == "ok"


async def test_a_replica_that_dies_costs_no_answer(
    db: Database, following: tuple[PrivateMariaDB, PrivateMariaDB]
) -> None:
    """Reads under way go to the primary instead; it is used again when it is back."""
    wrong: list[object] = []

    async def read_on() -> None:
        while await is_fresh(db):
            answer = (await db.query("SELECT 42", replica=True)).rows
            wrong.extend(row for row in answer if row != (42,))

    readers = [asyncio.create_task(read_on()) for _ in range(8)]
    await asyncio.sleep(0)
    os.kill(following[1].pid, signal.SIGKILL)
    await asyncio.gather(*readers)
    assert wrong == []
    assert await server(db) == 1
    await until(lambda: is_fresh(db))
    assert await server(db) == 2


async def test_tables_that_have_not_arrived_are_read_from_the_primary(db: Database, urls: tuple[str, str]) -> None:
    """Right after a migration a replica may not know a table yet."""

    async def has_arrived() -> bool:
        return bool(admin(urls[1], "SELECT COUNT(*) FROM information_schema.tables WHERE table_name = 'late'"))

    await elsewhere(lambda: db.execute("CREATE TABLE late (id INT PRIMARY KEY) ENGINE=InnoDB"))
    await until(has_arrived)
    admin(urls[1], f"DROP TABLE {db.location.name}.late")
    await until(lambda: is_fresh(db))
    assert await server(db) == 2
    assert (await db.query("SELECT id FROM late", replica=True)).rows == []
    assert routes(db)["failed_over"] == 1


async def test_a_service_starts_without_its_replica(urls: tuple[str, str]) -> None:
    """A replica that is away at the start is simply not used."""
    async with Database(urls[0], FAST, replicas=["mysql://root@127.0.0.1:1/nowhere"]) as db:
        assert await server(db) == 1
        assert routes(db)["none_fresh"] == 1


async def test_replicas_need_the_heartbeat(pair: tuple[PrivateMariaDB, PrivateMariaDB]) -> None:
    """Without its table nothing could be measured; the error is the command to run."""
    with pytest.raises(SchemaOutdated, match=r"migrate .* daydo_db"):
        await Database(f"{pair[0].url}/mysql", FAST, replicas=[f"{pair[1].url}/mysql"]).__aenter__()


def test_a_replica_is_named_once() -> None:
    """Twice would give it two pools, and its share of reads twice."""
    with pytest.raises(ValueError, match="twice"):
        Database("mysql://root@127.0.0.1/x", replicas=["mysql://root@127.0.0.2/x", "mysql://root@127.0.0.2/x"])


def test_the_heart_beats_faster_than_replicas_may_lag() -> None:
    """Otherwise a replica would look too old between two beats."""
    with pytest.raises(ValueError, match="half"):
        Database("mysql://root@a/x", DatabaseConfig(replica_beat_s=4, replica_lag_s=5), replicas=["mysql://root@b/x"])


def test_sqlite_has_no_replicas() -> None:
    """A file is not followed by anybody."""
    with pytest.raises(ValueError, match="MySQL"):
        Database("sqlite://", replicas=["mysql://root@127.0.0.1/x"])


def test_a_demoted_primary_is_a_lost_connection() -> None:
    """Read-only means that another server has taken over; a new connection finds it, so the call is worth repeating."""
    assert from_mysql(1290, "--read-only").retryable
    assert type(from_mysql(1836, "read only mode")).__name__ == "ConnectionLost"


async def _is(holds: bool) -> bool:
    return holds


async def _equals(answer: Awaitable[int], wanted: int) -> bool:
    return await answer == wanted

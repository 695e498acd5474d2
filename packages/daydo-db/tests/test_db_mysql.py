# ruff: noqa: PT012 - the block that raises is the test
"""What only a server across a wire can do to us: deadlocks, lost connections, statements that go on alone."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote, urlsplit

import aiomysql.connection
import pytest

from daydo_db import (
    CheckViolation,
    CommitUnknown,
    ConnectionLost,
    Database,
    DatabaseConfig,
    DbError,
    Deadlock,
    LockTimeout,
    QueryTimeout,
    StatementFailed,
    TransactionAborted,
    Tx,
)
from daydo_db.config import parse_url
from daydo_db.mapping import from_mysql, without_values
from daydo_db.mysql import MysqlEngine, _Login, _Thread, _version
from daydo_db.testing import PrivateMariaDB
from daydo_db.testing.servers import admin

pytestmark = pytest.mark.dialect("mysql")


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as db:
        await db.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, n INTEGER NOT NULL) ENGINE=InnoDB")
        await db.execute("INSERT INTO account VALUES (1, 0), (2, 0)")
        yield db


async def add(tx: Tx, account: int) -> None:
    await tx.execute("UPDATE account SET n = n + 1 WHERE id = ?", (account,))


async def balances(db: Database) -> list[int]:
    return [n for (n,) in (await db.query("SELECT n FROM account ORDER BY id")).rows]


async def connection_id(tx: Tx) -> int:
    return int((await tx.execute("SELECT CONNECTION_ID()")).rows[0][0])


async def until_gone(db: Database, thread: int) -> None:
    for _ in range(100):
        if not (await db.query("SELECT 1 FROM information_schema.processlist WHERE id = ?", (thread,))).rows:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"thread {thread} is still there")


async def test_a_real_deadlock_is_retried_until_both_are_through(db: Database) -> None:
    """Two transactions lock two rows in opposite order; each row is changed twice in the end."""
    both_hold_one = asyncio.Barrier(2)
    tries = 0

    async def cross(first: int, second: int, meet: bool) -> None:
        async def change(tx: Tx) -> None:
            nonlocal meet, tries
            tries += 1
            await add(tx, first)
            if meet:
                meet = False
                await both_hold_one.wait()
            await add(tx, second)

        await db.run(change)

    await asyncio.gather(cross(1, 2, True), cross(2, 1, True))
    assert await balances(db) == [2, 2]
    assert tries == 3


async def deadlocked(db: Database) -> tuple[Any, Any]:
    """A context and its transaction that has just lost a deadlock; the winner is committed."""
    loser, winner = db.transaction(), db.transaction()
    lost = await loser.__aenter__()
    await add(lost, 1)

    async def win() -> None:
        async with winner as tx:
            # The heavier transaction survives.
            await tx.execute("INSERT INTO account VALUES (3, 0), (4, 0), (5, 0), (6, 0)")
            await add(tx, 2)
            await add(tx, 1)

    task = asyncio.create_task(win())
    await asyncio.sleep(0.1)
    with pytest.raises(Deadlock):
        await add(lost, 2)
    await task
    return loser, lost


async def test_after_a_deadlock_nothing_more_is_committed(db: Database) -> None:
    """The server has rolled back; without the check the next statement would commit by itself."""
    loser, tx = await deadlocked(db)
    with pytest.raises(TransactionAborted, match="Deadlock"):
        await add(tx, 2)
    with pytest.raises(TransactionAborted) as caught:
        await loser.__aexit__(None, None, None)
    assert isinstance(caught.value.__cause__, Deadlock)
    assert (await balances(db))[:2] == [1, 1]


async def test_run_repeats_where_the_function_swallowed_the_deadlock(db: Database) -> None:
    """A blanket except inside does not turn a rolled back transaction into a success."""
    tries = 0

    async def careless(tx: Tx) -> None:
        nonlocal tries
        tries += 1
        await add(tx, 1)
        if tries == 1:
            await db.query("KILL ?", (await connection_id(tx),))
            try:
                await add(tx, 1)
            except ConnectionLost:
                return

    await db.run(careless)
    assert (tries, await balances(db)) == (2, [1, 0])


async def test_a_lock_timeout_ends_the_transaction(database_url: str, db: Database) -> None:
    """MySQL undoes only the statement then; half a transaction is nobody's wish."""
    async with db.transaction() as holder, Database(database_url, DatabaseConfig(lock_timeout_s=1)) as other:
        await add(holder, 1)
        with pytest.raises(TransactionAborted):
            async with other.transaction() as tx:
                await add(tx, 2)
                with pytest.raises(LockTimeout):
                    await add(tx, 1)
    assert await balances(db) == [1, 0]


async def test_nowait_says_so_at_once(db: Database) -> None:
    """The two servers use two numbers for it."""
    async with db.transaction() as holder:
        await add(holder, 1)

        async def impatient() -> None:
            async with db.transaction() as tx:
                await tx.execute("SELECT n FROM account WHERE id = 1 FOR UPDATE NOWAIT")

        with pytest.raises(LockTimeout):
            await asyncio.create_task(impatient())


async def test_a_cancelled_statement_is_killed_on_the_server(db: Database) -> None:
    """Its thread leaves the process list and its locks go, long before it would have ended."""
    thread = 0
    started = asyncio.Event()

    async def hold_and_sleep() -> None:
        nonlocal thread
        async with db.transaction() as tx:
            thread = await connection_id(tx)
            await add(tx, 1)
            started.set()
            await tx.execute("SELECT SLEEP(60)")

    task = asyncio.create_task(hold_and_sleep())
    await started.wait()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert db._writers.in_use == 0
    await until_gone(db, thread)
    await asyncio.wait_for(db.execute("UPDATE account SET n = 7 WHERE id = 1"), 2)


STREAM = "SELECT SLEEP(0.02), REPEAT('x', 40000) FROM information_schema.columns LIMIT 400"


@pytest.mark.parametrize("fate", ["cancelled", "killed"])
async def test_rows_that_break_off_are_no_rows(db: Database, fate: str) -> None:
    """In the middle of an answer: the connection is closed, the server's thread gone, the place free."""
    thread, streaming = 0, asyncio.Event()

    async def stream() -> None:
        nonlocal thread
        async with db.transaction() as tx:
            thread = await connection_id(tx)
            streaming.set()
            await tx.execute(STREAM)

    task = asyncio.create_task(stream())
    await streaming.wait()
    await asyncio.sleep(0.2)
    if fate == "cancelled":
        task.cancel()
    else:
        await db.query("KILL ?", (thread,))
    with pytest.raises(asyncio.CancelledError if fate == "cancelled" else ConnectionLost):
        await task
    await until_gone(db, thread)
    assert (db._writers.in_use, await balances(db)) == (0, [0, 0])


async def test_leaving_waits_for_the_killing(database_url: str, db: Database) -> None:
    """A service that stops does not leave its statements behind."""
    async with Database(database_url, DatabaseConfig(statement_timeout_s=0.05)) as other:
        thread = (await other.query("SELECT CONNECTION_ID()")).rows[0][0]
        task = asyncio.create_task(other.query("SELECT SLEEP(60)"))
        await asyncio.wait([task])
    assert isinstance(task.exception(), Exception)
    await until_gone(db, thread)


async def test_a_connection_that_died_in_the_pool_is_not_handed_out(db: Database) -> None:
    """Nobody gets an error for it."""
    async with db.transaction() as tx:
        idle = (await asyncio.create_task(db.query("SELECT CONNECTION_ID()"))).rows[0][0]
        await tx.execute("KILL ?", (idle,))
        await until_gone(db, idle)
    assert (await db.query("SELECT CONNECTION_ID()")).rows != [(idle,)]
    await asyncio.gather(*(db.execute("UPDATE account SET n = 1") for _ in range(3)))


async def test_a_connection_idle_for_long_is_pinged(database_url: str) -> None:
    """One whose server is gone without a word is replaced."""
    async with Database(database_url, DatabaseConfig(pool_ping_s=1e-6)) as db:
        (idle,) = db._writers._idle
        asked = 0

        async def dead() -> bool:
            nonlocal asked
            asked += 1
            return False

        idle.connection.ping = dead  # type: ignore[method-assign]
        assert (await db.query("SELECT 1")).rows == [(1,)]
        assert asked == 1


async def test_a_connection_does_not_outlive_its_time(database_url: str) -> None:
    """So that a failover or a changed password reaches every connection."""
    async with Database(database_url, DatabaseConfig(pool_lifetime_s=1e-6)) as db:
        first = (await db.query("SELECT CONNECTION_ID()")).rows
        assert (await db.query("SELECT CONNECTION_ID()")).rows != first


async def test_a_connection_lost_before_commit_is_repeated(db: Database) -> None:
    """Nothing was kept, so doing it again is right."""
    tries = 0

    async def change(tx: Tx) -> None:
        nonlocal tries
        tries += 1
        await add(tx, 1)
        if tries == 1:
            await db.query("KILL ?", (await connection_id(tx),))
        await add(tx, 2)

    await db.run(change)
    assert (tries, await balances(db)) == (2, [1, 1])


@pytest.mark.parametrize("reaches_the_server", [True, False])
async def test_an_unanswered_commit_is_unknown_and_never_repeated(
    database_url: str, db: Database, reaches_the_server: bool
) -> None:
    """The connection breaks when COMMIT is sent: in one case it was kept, in the other not. We cannot tell."""
    calls: list[str] = []
    async with cut_at(b"COMMIT", database_url, reaches_the_server) as url, Database(url) as far:
        tries = 0

        async def change(tx: Tx) -> None:
            nonlocal tries
            tries += 1
            tx.after_commit(lambda: calls.append("committed"))
            await add(tx, 1)

        with pytest.raises(CommitUnknown):
            await far.run(change)
        assert (tries, calls, far._writers.in_use) == (1, [], 0)
    assert await balances(db) == [1 if reaches_the_server else 0, 0]


async def test_an_unanswered_commit_stays_unknown_whatever_is_made_of_it(database_url: str, db: Database) -> None:
    """Who swallows it in his function is neither told that nothing was kept nor run again."""
    tries = 0
    async with cut_at(b"COMMIT", database_url, True) as url, Database(url) as far:

        async def change(tx: Tx) -> None:
            nonlocal tries
            tries += 1
            await tx.execute_all([("UPDATE account SET n = n + 1 WHERE id = ?", (1,)), ("SELECT 1", ())])
            with suppress(CommitUnknown):
                await tx.execute_all([], commit_within_s=30)

        with pytest.raises(CommitUnknown):
            await far.run(change)
    assert (tries, await balances(db)) == (1, [1, 0])


async def test_a_commit_keeps_its_time_also_where_nothing_goes_with_it(db: Database) -> None:
    """The answer is not read; a statement would wait for it for half a minute."""
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(CommitUnknown):
        async with db.transaction() as tx:
            await add(tx, 1)
            tx._connection._wire._transport.pause_reading()  # type: ignore[attr-defined]
            await tx.execute_all([], commit_within_s=0.1)
    assert asyncio.get_running_loop().time() - began_s < 10


async def test_an_unanswered_statement_of_its_own_is_unknown_too(database_url: str, db: Database) -> None:
    """Autocommit is a COMMIT in the same packet."""
    async with cut_at(b"UPDATE", database_url, True) as url, Database(url) as far:
        with pytest.raises(CommitUnknown):
            await far.execute("UPDATE account SET n = 5")
    assert await balances(db) == [5, 5]


@pytest.mark.parametrize("ddl", ["CREATE TABLE x (id INTEGER)", " /* hidden */ drop TABLE account", "TRUNCATE account"])
async def test_ddl_inside_a_transaction_is_refused(db: Database, ddl: str) -> None:
    """It would commit what came before, silently."""
    with pytest.raises(StatementFailed):
        async with db.transaction() as tx:
            await add(tx, 1)
            await tx.execute(ddl)
    assert await balances(db) == [0, 0]


async def test_a_statement_that_commits_behind_our_back_is_noticed(db: Database) -> None:
    """A procedure may; from then on every statement would stand alone."""
    await db.execute("CREATE PROCEDURE sly() COMMIT")
    with pytest.raises(TransactionAborted):
        async with db.transaction() as tx:
            await tx.execute("CALL sly()")


async def test_the_session_is_set_up(database_url: str, db: Database) -> None:
    """Strict, in UTC, READ COMMITTED, and double quotes are names."""
    variables = "@@sql_mode, @@time_zone, @@innodb_lock_wait_timeout, @@autocommit"
    mode, zone, lock_s, autocommit = (await db.query(f"SELECT {variables}")).rows[0]
    assert {"ANSI_QUOTES", "PIPES_AS_CONCAT", "STRICT_TRANS_TABLES", "ONLY_FULL_GROUP_BY"} <= set(mode.split(","))
    assert "NO_BACKSLASH_ESCAPES" not in mode
    assert (zone, lock_s, autocommit) == ("+00:00", 5, 1)
    rows = (await db.query("SELECT 'a' || 'b' AS \"c\"")).rows
    assert rows == [("ab",)]
    async with db.transaction() as first:
        await first.execute("SELECT n FROM account WHERE id = 1")
        await asyncio.create_task(db.execute("UPDATE account SET n = 9 WHERE id = 1"))
        assert (await first.execute("SELECT n FROM account WHERE id = 1")).rows == [(9,)]


@pytest.mark.parametrize("function", ["DO NOT IMPORT THIS!!!", lambda value: "'broken'"])
async def test_bytes_do_not_depend_on_pymysql(monkeypatch: pytest.MonkeyPatch, db: Database, function: Any) -> None:
    """aiomysql escapes bytes by a function that PyMySQL 1.2.3 replaced by a sentence; both versions work."""
    monkeypatch.setattr(aiomysql.connection, "escape_bytes_prefixed", function)
    assert (await db.query("SELECT ?", (b"\x00'\\",))).rows == [(b"\x00'\\",)]


async def test_tls_is_refused_where_the_server_offers_none(
    monkeypatch: pytest.MonkeyPatch, database_url: str, db: Database
) -> None:
    """The driver would go on in plaintext without a word."""
    offered = aiomysql.connection.Connection._get_server_information

    async def without_tls(session: _Login) -> None:
        await offered(session)
        session.server_capabilities &= ~aiomysql.connection.CLIENT.SSL

    monkeypatch.setattr(aiomysql.connection.Connection, "_get_server_information", without_tls)
    with pytest.raises(StatementFailed, match="tls"):
        async with Database(database_url, DatabaseConfig(tls=True)):
            pass


async def test_a_server_that_never_greets_costs_connect_timeout_s() -> None:
    """The driver's own limit ends with the TCP connection."""
    silent: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda reader, writer: silent.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    database = Database(f"mysql://u:secret@127.0.0.1:{port}/x", DatabaseConfig(connect_timeout_s=0.1))
    try:
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(database.__aenter__(), 2)
    finally:
        for writer in silent:
            writer.transport.abort()
        server.close()


async def test_a_server_that_is_not_there_is_connection_lost() -> None:
    """At start, and the message holds no password."""
    with pytest.raises(ConnectionLost) as caught:
        async with Database("mysql://u:secret@127.0.0.1:1/x"):
            pass
    assert "secret" not in f"{caught.value}{caught.value.__cause__}"


async def test_a_wrong_password_is_told_without_it(database_url: str) -> None:
    """Not a lost connection: waiting does not help."""
    parts = urlsplit(database_url)
    url = parts._replace(netloc=f"nobody:secret-pw@{parts.hostname}:{parts.port}").geturl()
    with pytest.raises(StatementFailed, match=r"nobody:\*\*\*@") as caught:
        async with Database(url):
            pass
    assert "secret-pw" not in f"{caught.value}{caught.value.__cause__}"


async def test_a_password_may_hold_any_character(database_url: str, db: Database) -> None:
    """The driver would send it in latin1."""
    user = f"daydo_{secrets.token_hex(4)}"
    await db.execute(f"CREATE USER {user}@'%' IDENTIFIED BY 'pä密/@:%'")
    try:
        await db.execute(f"GRANT ALL ON *.* TO {user}@'%'")
        parts = urlsplit(database_url)
        netloc = f"{user}:{quote('pä密/@:%', safe='')}@{parts.hostname}:{parts.port}"
        async with Database(parts._replace(netloc=netloc).geturl()) as other:
            assert (await other.query("SELECT 1")).rows == [(1,)]
    finally:
        await db.execute(f"DROP USER {user}@'%'")


async def test_health_tells_a_full_pool_from_a_dead_server(database_url: str, db: Database) -> None:
    """Degraded serves on, down does not; both answers come within health_timeout_s."""
    config = DatabaseConfig(pool_max=1, health_timeout_s=0.1, acquire_timeout_s=60)
    async with Database(database_url, config) as small:
        async with small.transaction():
            health = await asyncio.wait_for(asyncio.create_task(small.health()), 1)
            assert (health.status, health.detail["in_use"]) == ("degraded", 1)
        assert (await small.health()).status == "ok"
        small.location = small._engine._location = parse_url("mysql://u@127.0.0.1:1/x")  # type: ignore[attr-defined]
        await small._writers.close()
        assert (await small.health()).detail["error"] == "ConnectionLost"
        assert (await small.health()).status == "down"


async def test_a_hung_connect_does_not_block_the_others(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is locked while connecting; who finds a free connection goes ahead."""
    connect, hung = db._engine.connect, asyncio.Event()

    async def hang(*, writable: bool) -> Any:
        hung.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(db._engine, "connect", hang)
    async with db.transaction():
        stuck = asyncio.create_task(db.query("SELECT 1"))
        await hung.wait()
    assert (await asyncio.wait_for(db.query("SELECT 1"), 1)).rows == [(1,)]
    stuck.cancel()
    await asyncio.wait([stuck])
    monkeypatch.setattr(db._engine, "connect", connect)
    assert db._writers.in_use == 0


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("INSERT INTO account VALUES (1, ?)", "ann@example.org"),
        ("UPDATE account SET n = ?", "ann@example.org"),
        ("SELEC 1 + ?", "ann@example.org"),
        ("INSERT INTO named VALUES (?), (?)", "ann@example.org"),
        ("SELECT * FROM (SELECT ?, ?) x", "ann@example.org"),
        ("SELECT EXTRACTVALUE('<a/>', ?)", "//ann@example.org["),
        ("SELECT 'a' REGEXP ?", "(ann@example.org"),
        ("SELECT CAST(1 AS UNSIGNED) - ?", 8412345678901),
    ],
)
async def test_no_parameter_is_in_the_cause_either(db: Database, sql: str, value: str | int) -> None:
    """Logs print the whole chain, and MySQL quotes what it was sent."""
    await db.execute("CREATE TABLE named (name VARCHAR(40) PRIMARY KEY)")
    with pytest.raises(DbError) as caught:
        await db.execute(sql, [value] * sql.count("?"))
    assert caught.value.__cause__ is not None
    told = f"{caught.value} {caught.value.__cause__}"
    assert "example" not in told
    assert "8412345678901" not in told


async def test_names_are_in_the_cause(db: Database) -> None:
    """Who looks for a mistake finds which column there is not."""
    with pytest.raises(StatementFailed) as caught:
        await db.query("SELECT balance FROM account WHERE id = ?", (1,))
    assert "balance" in str(caught.value.__cause__)


def test_parameters_are_taken_out_of_what_the_server_quotes() -> None:
    """MySQL repeats them in its messages, quotes and all; names of keys stay."""
    duplicate = "Duplicate entry 'o'neil' for key 'x' for key 'users.email'"
    assert without_values(1062, duplicate) == "Duplicate entry … for key 'users.email'"
    assert from_mysql(1062, duplicate).facts == {"constraint": "users.email"}
    assert without_values(1064, "... near 'x = 'sec'ret'' at line 1") == "... … at line 1"
    assert without_values(1366, "Incorrect integer value: 'secret' for column `d`.`t`.`n` at row 1") == ""
    assert without_values(1062, "Doppelter Eintrag 'secret'") == ""


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (1213, Deadlock),
        (1020, Deadlock),
        (1205, LockTimeout),
        (3572, LockTimeout),
        (2013, ConnectionLost),
        (1969, QueryTimeout),
        (3024, QueryTimeout),
        (3819, CheckViolation),
        (4025, CheckViolation),
        (1064, StatementFailed),
    ],
)
def test_both_servers_numbers_are_known(number: int, error: type[DbError]) -> None:
    """MySQL and MariaDB use different ones for the same thing."""
    assert type(from_mysql(number, "")) is error


def test_only_a_read_only_server_is_left_for_another() -> None:
    """1290 names some option; elsewhere the next connection would meet the same one."""
    refusal = "The MySQL server is running with the --{} option so it cannot execute this statement"
    assert type(from_mysql(1290, refusal.format("super-read-only"))) is ConnectionLost
    assert type(from_mysql(1290, refusal.format("secure-file-priv"))) is StatementFailed


def test_servers_that_are_too_old_are_refused() -> None:
    """By name, with the version that is needed."""
    assert _version("5.5.5-10.11.6-MariaDB-0+deb12u1") == "MariaDB 10.11.6"
    assert _version("8.4.3") == "MySQL 8.4.3"
    for old in ("5.7.44-log", "5.5.5-10.5.1-MariaDB"):
        with pytest.raises(StatementFailed, match="too old"):
            _version(old)


@asynccontextmanager
async def cut_at(word: bytes, url: str, reaches_the_server: bool) -> AsyncIterator[str]:
    """A proxy in front of the server that breaks the connection at the first statement beginning with ``word``."""
    parts = urlsplit(url)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(parts.hostname, parts.port)
        back = asyncio.create_task(pump(far_reader, writer))
        while data := await reader.read(65536):
            if data[5:].startswith(word):  # behind length, number and command
                back.cancel()
                await asyncio.wait([back])
                if reaches_the_server:
                    far_writer.write(data)
                    await far_reader.read(65536)
                writer.transport.abort()
                break
            far_writer.write(data)
        back.cancel()
        far_writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    login = parts.netloc.rpartition("@")[0]
    try:
        yield parts._replace(netloc=f"{login}@127.0.0.1:{server.sockets[0].getsockname()[1]}").geturl()
    finally:
        server.close()


@pytest.mark.parametrize(
    "sql", ["SET autocommit = 0", "USE mysql", "PREPARE x FROM 'SELECT 1'", "CREATE TEMPORARY TABLE t (x INT)"]
)
async def test_nobody_changes_a_connection_for_the_next(db: Database, sql: str) -> None:
    """Later writes would be lost, or go to another schema."""
    for call in (db.execute, db.query):
        with pytest.raises(StatementFailed, match="whoever has it next"):
            await call(sql)
    async with db.transaction() as tx:
        with pytest.raises(StatementFailed, match=r"next|end the transaction"):
            await tx.execute(sql)
        await add(tx, 1)
    assert await balances(db) == [1, 0]


async def test_a_procedure_that_leaves_a_transaction_open_has_not_succeeded(db: Database) -> None:
    """What it did is rolled back with its connection."""
    await db.execute("CREATE PROCEDURE open_end() BEGIN START TRANSACTION; UPDATE account SET n = 5; END")
    with pytest.raises(StatementFailed, match="left a transaction open"):
        await db.execute("CALL open_end()")
    assert await balances(db) == [0, 0]


async def test_a_connection_without_autocommit_is_not_used_again(database_url: str, db: Database) -> None:
    """A procedure may turn it off for good; the writes of the next would never be committed."""
    await db.execute("CREATE PROCEDURE quietly() SET autocommit = 0")
    async with Database(database_url, DatabaseConfig(pool_max=1, pool_min=1)) as small:
        await small.execute("CALL quietly()")
        await small.execute("UPDATE account SET n = 5")
    assert await balances(db) == [5, 5]


async def test_a_connection_for_reading_cannot_write(db: Database) -> None:
    """As those to replicas are, which might not refuse it themselves."""
    connection = await db._engine.connect(writable=False)
    assert (await connection.script("SELECT n FROM account WHERE id = 1")).rows == [(0,)]
    with pytest.raises(StatementFailed, match="1792"):
        await connection.script("UPDATE account SET n = 1")
    await connection.close()


async def test_a_session_of_another_character_set_is_refused(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something between us and the server may drop what we set."""
    monkeypatch.setattr(MysqlEngine, "_settings", lambda self, writable: ["SET NAMES gbk"])
    with pytest.raises(StatementFailed, match="gbk/gbk/gbk and not utf8mb4"):
        await db._engine.connect(writable=True)


async def test_only_ones_own_thread_on_ones_own_server_is_killed(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address may lead to another server by now, or to the same one started anew: numbers mean others there."""
    engine = db._engine
    assert isinstance(engine, MysqlEngine)
    connection = await engine.connect(writable=True)
    thread = connection._kill.args[0]  # type: ignore[attr-defined]

    for other in (_Thread("another", thread.number + 1), _Thread(thread.server, thread.number - 1)):

        async def identify(*_: object, found: _Thread = other) -> _Thread:
            return found

        with monkeypatch.context() as patch:
            patch.setattr(engine, "_identify", identify)
            engine._kill(thread)
            assert engine._killer is not None
            await engine._killer
        assert await connection.ping()
    engine._kill(thread)
    await until_gone(db, thread.number)
    await connection.close()


async def test_leaving_does_not_wait_for_each_of_many_threads(database_url: str, db: Database) -> None:
    """A server that no longer greets is asked once."""
    greeted: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda reader, writer: greeted.append(writer), "127.0.0.1", 0)
    config = DatabaseConfig(pool_max=8, connect_timeout_s=0.3, drain_s=0)
    async with Database(database_url, config) as other:
        sleeping = [asyncio.create_task(other.query("SELECT SLEEP(1)")) for _ in range(8)]
        await asyncio.wait(sleeping, timeout=0.1)
        port = silent.sockets[0].getsockname()[1]
        other._engine._location = parse_url(f"mysql://u@127.0.0.1:{port}/x")  # type: ignore[attr-defined]
        for task in sleeping:
            task.cancel()
        await asyncio.wait(sleeping)
        engine = other._engine
        assert isinstance(engine, MysqlEngine)
        assert engine._killer is not None
        await engine._killer
        assert not engine._doomed
    assert len(greeted) == 1
    greeted[0].transport.abort()
    silent.close()


def test_a_database_may_be_left_and_entered_in_another_loop(database_url: str) -> None:
    """Nothing of the engine belongs to the loop in which it first had to wait."""
    database = Database(database_url, DatabaseConfig(pool_max=8, statement_timeout_s=0.05))

    async def give_up_eight() -> None:
        async with database:
            sleeping = (database.query("SELECT SLEEP(10)") for _ in range(8))
            answers = await asyncio.gather(*sleeping, return_exceptions=True)
            assert {type(answer) for answer in answers} == {QueryTimeout}

    for _ in range(2):
        asyncio.run(give_up_eight())


@pytest.fixture(scope="module")
def odd_server(pytestconfig: pytest.Config) -> Iterator[PrivateMariaDB]:
    """It takes every client's text for GBK, and turns autocommit off for all but root."""
    program = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
    if pytestconfig.option.embedded or program is None:
        pytest.skip("needs mariadbd")
    options = "--character-set-server=gbk", "--skip-character-set-client-handshake", "--init-connect=SET autocommit = 0"
    server = PrivateMariaDB(program, *options)
    try:
        server.wait()
        admin(server.url, "CREATE DATABASE shop CHARACTER SET utf8mb4")
        admin(server.url, "CREATE USER shop@'%' IDENTIFIED BY ''")
        admin(server.url, "GRANT ALL ON shop.* TO shop@'%'")
        yield server
    finally:
        server.stop()


@pytest.fixture
async def odd(odd_server: PrivateMariaDB) -> AsyncIterator[Database]:
    async with Database(f"mysql://shop@127.0.0.1:{odd_server.port}/shop") as db:
        await db.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, n INTEGER NOT NULL) ENGINE=InnoDB")
        await db.execute("INSERT INTO account VALUES (1, 0)")
        yield db
        admin(odd_server.url, "SET GLOBAL read_only = 0")
        await db.execute("DROP TABLE account")


async def test_text_is_not_taken_for_another_character_set(odd: Database) -> None:
    """The last byte of 纗 and the backslash that escapes the quote behind it are one letter in GBK."""
    assert (await odd.query("SELECT ?, ?", ("纗'", ", USER() -- "))).rows == [("纗'", ", USER() -- ")]


async def test_what_a_server_does_at_each_login_is_undone(odd: Database) -> None:
    """Writes are kept, whatever init_connect says."""
    await odd.execute("UPDATE account SET n = 3")
    async with Database(str(odd.location)) as other:
        assert (await other.query("SELECT n FROM account")).rows == [(3,)]


async def test_two_servers_are_told_apart(odd: Database, db: Database) -> None:
    """So that neither is asked to kill the other's connections."""
    threads = set()
    for database in (odd, odd, db):
        connection = await database._engine.connect(writable=True)
        threads.add(connection._kill.args[0].server)  # type: ignore[attr-defined]
        await connection.close()
    assert len(threads) == 2


async def test_a_read_only_server_has_kept_nothing(odd_server: PrivateMariaDB, odd: Database) -> None:
    """It says so instead of doing anything: no CommitUnknown, neither for a statement nor for a COMMIT."""
    admin(odd_server.url, "SET GLOBAL read_only = 1")
    with pytest.raises(ConnectionLost):
        await odd.execute("UPDATE account SET n = 3")
    admin(odd_server.url, "SET GLOBAL read_only = 0")
    transaction = odd.transaction()
    tx = await transaction.__aenter__()
    await tx.execute("UPDATE account SET n = 4")
    admin(odd_server.url, "SET GLOBAL read_only = 1")
    with pytest.raises(ConnectionLost):
        await transaction.__aexit__(None, None, None)
    assert tx.outcome == "aborted"
    assert (await odd.query("SELECT n FROM account")).rows == [(0,)]

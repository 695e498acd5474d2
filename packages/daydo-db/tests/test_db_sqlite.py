"""What one file and several processes can do to us."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from daydo_db import (
    CommitUnknown,
    Database,
    DatabaseConfig,
    DbError,
    LockTimeout,
    QueryTimeout,
    StatementFailed,
    StorageFull,
    TransactionAborted,
    Tx,
)

pytestmark = pytest.mark.dialect("sqlite")


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url, DatabaseConfig(lock_timeout_s=1)) as db:
        await db.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
        await db.execute("INSERT INTO account VALUES (1, 0)")
        yield db


async def add_one(tx: Tx) -> None:
    ((n,),) = (await tx.execute("SELECT n FROM account")).rows
    await tx.execute("UPDATE account SET n = ?", (n + 1,))


async def test_read_modify_write_of_two_processes_loses_nothing(database_url: str, db: Database) -> None:
    """Transactions are opened IMMEDIATE: each waits its turn instead of failing when it writes."""
    async with Database(database_url) as other:
        await asyncio.gather(*(noun.run(add_one, retries=0) for _ in range(20) for noun in (db, other)))
    assert (await db.query("SELECT n FROM account")).rows == [(40,)]


async def test_another_process_that_keeps_the_lock_is_a_lock_timeout(database_url: str, db: Database) -> None:
    """After lock_timeout_s, and readers go on meanwhile."""
    stranger = sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    try:
        writing = asyncio.create_task(db.execute("UPDATE account SET n = 1"))
        assert (await db.query("SELECT n FROM account")).rows == [(0,)]
        with pytest.raises(LockTimeout):
            await writing
        with pytest.raises(LockTimeout):
            await db.run(add_one, retries=0)
    finally:
        stranger.close()
    await db.run(add_one)


async def begin_and_add(db: Database) -> None:
    async with db.transaction() as tx:
        await add_one(tx)


async def add_alone(db: Database) -> None:
    await db.execute("UPDATE account SET n = n + 1")


@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "timed out"])
@pytest.mark.parametrize("add", [begin_and_add, add_alone])
async def test_who_gives_up_waiting_for_the_lock_leaves_nothing_on_the_connection(
    database_url: str, add: Callable[[Database], Awaitable[None]], cancelled: bool
) -> None:
    """SQLite goes on waiting in its thread; a BEGIN that succeeds there later would swallow what comes next."""
    stranger = sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None, timeout=1)
    async with Database(database_url, DatabaseConfig(statement_timeout_s=60 if cancelled else 0.1)) as db:
        await db.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
        await db.execute("INSERT INTO account VALUES (1, 0)")
        stranger.execute("BEGIN IMMEDIATE")
        adding = asyncio.create_task(add(db))
        await asyncio.sleep(0.2)
        adding.cancel()
        with pytest.raises(asyncio.CancelledError if cancelled else (QueryTimeout, CommitUnknown)):
            await adding
        stranger.execute("COMMIT")
        await asyncio.sleep(0.3)  # SQLite looks again at least every 100 ms.
        ((before,),) = stranger.execute("SELECT n FROM account").fetchall()
        assert (await db.execute("UPDATE account SET n = n + 10")).rowcount == 1
        assert stranger.execute("SELECT n FROM account").fetchall() == [(before + 10,)]
        assert before == 0 or add is add_alone
        stranger.execute("BEGIN IMMEDIATE")
        stranger.close()


SMALL_ROW = "INSERT INTO account (n) VALUES (1)"
LARGE_ROW = "INSERT INTO account (n) VALUES (zeroblob(200000))"
# Of itself SQLite undoes the whole transaction after the first, and after the second only the statement.
LARGE_ROWS = "INSERT INTO account (n) SELECT zeroblob(50000) FROM (SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3)"


async def limit(db: Database, pages: int) -> None:
    async with db._dedicated() as connection:
        await connection.script(f"PRAGMA max_page_count = {pages}")


async def insert_both(db: Database, large: str, *swallowed: type[DbError]) -> None:
    async with db.transaction() as tx:
        await tx.execute(SMALL_ROW)
        with suppress(*swallowed):
            await tx.execute(large)


@pytest.mark.parametrize("large", [LARGE_ROW, LARGE_ROWS], ids=["one row", "many rows"])
async def test_a_full_disk_undoes_the_transaction_and_is_no_end(db: Database, large: str) -> None:
    """StorageFull; nothing is kept, reading goes on, and so does writing once there is room."""
    await limit(db, 10)
    with pytest.raises(StorageFull):
        await insert_both(db, large)
    with pytest.raises(TransactionAborted):
        await insert_both(db, large, StorageFull)
    assert (await db.query("SELECT COUNT(*) FROM account")).rows == [(1,)]
    await db.execute(SMALL_ROW)
    await limit(db, 1000)
    await db.execute(large)
    assert (await db.query("SELECT COUNT(*) FROM account")).rows[0][0] > 2


async def test_readers_read_beside_a_writer(db: Database) -> None:
    """They see the last commit, and do not wait."""
    async with db.transaction() as tx:
        await add_one(tx)
        assert (await asyncio.wait_for(db.query("SELECT n FROM account"), 0.5)).rows == [(0,)]
    assert (await db.query("SELECT n FROM account")).rows == [(1,)]


async def test_a_query_cannot_write(db: Database) -> None:
    """Whatever the statement looks like: its connection is not made for it."""
    with pytest.raises(StatementFailed, match="READONLY"):
        async with db._readers.connection() as connection:
            await connection.script("UPDATE account SET n = 1")


async def test_a_commit_survives_a_power_cut(db: Database) -> None:
    """WAL with synchronous=FULL and foreign keys, on every connection; and a log that is rarely copied back."""
    async with db.transaction() as tx:
        names = ("journal_mode", "synchronous", "foreign_keys", "wal_autocheckpoint")
        settings = [(await tx.execute(f"PRAGMA {name}")).rows[0][0] for name in names]
    assert settings == ["wal", 2, 1, 8_000]


async def test_many_can_open_a_new_file_at_once(tmp_path: Path) -> None:
    """The switch to WAL needs the file for itself for a moment."""
    databases = [Database(f"sqlite:///{tmp_path}/new.db") for _ in range(8)]
    await asyncio.gather(*(db.__aenter__() for db in databases))
    await asyncio.gather(*(db.__aexit__() for db in databases))


async def test_the_switch_to_wal_waits_for_who_writes(tmp_path: Path) -> None:
    """SQLite itself refuses it at once, as it does while another process is making the same switch."""
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("CREATE TABLE note (text TEXT)")
        writer.execute("BEGIN IMMEDIATE")
        db = Database(f"sqlite:///{path}", DatabaseConfig(lock_timeout_s=30))
        entering = asyncio.create_task(db.__aenter__())
        done, _ = await asyncio.wait([entering], timeout=0.2)
        assert not done
        with pytest.raises(LockTimeout):
            async with Database(f"sqlite:///{path}", DatabaseConfig(lock_timeout_s=1)):
                pass
        writer.execute("COMMIT")
    await entering
    assert (await db.query("PRAGMA journal_mode")).rows == [("wal",)]
    await db.__aexit__(None, None, None)


async def test_a_temporary_database_leaves_nothing_behind() -> None:
    """sqlite:// is a file for the time between entry and exit."""
    async with Database("sqlite://") as db:
        file = (await db.query("PRAGMA database_list")).rows[0][2]
        assert os.path.exists(file)  # noqa: ASYNC240, PTH110
    assert not os.path.exists(os.path.dirname(file))  # noqa: ASYNC240, PTH110, PTH120


async def test_a_stopped_statement_leaves_the_database_usable(database_url: str) -> None:
    """It is interrupted in its thread, and its connection replaced, be it the only one."""
    async with Database(database_url, DatabaseConfig(statement_timeout_s=0.05, sqlite_readers=1)) as db:
        endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"
        for _ in range(2):
            with pytest.raises(QueryTimeout):
                await db.query(endless)
            assert (await db.query("SELECT 1")).rows == [(1,)]


async def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """At start, not at the first statement."""
    with pytest.raises(StatementFailed, match=r"missing/x\.db"):
        async with Database(f"sqlite:///{tmp_path}/missing/x.db"):
            pass
    (tmp_path / "text.db").write_text("not a database, " * 100)
    with pytest.raises(StatementFailed, match="NOTADB"):
        async with Database(f"sqlite:///{tmp_path}/text.db"):
            pass


@pytest.mark.parametrize("folder", [".", "missing"])
def test_a_program_that_ends_while_a_file_is_being_opened_ends_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """The thread that opens it cannot be stopped; it must not outlive the loop that it answers."""
    threads: list[threading.Thread] = []
    opened: list[sqlite3.Connection] = []
    opening = threading.Event()
    connect = sqlite3.connect

    def slowly(path: str, **options: Any) -> sqlite3.Connection:
        threads.append(threading.current_thread())
        if len(threads) > 1:  # The first is the writer's, at start.
            opening.set()
            time.sleep(0.05)
            path = path.replace("/x.db", f"/{folder}/x.db")
        opened.append(connect(path, **options, check_same_thread=False))
        return opened[-1]

    async def ask_and_leave() -> None:
        async with Database(f"sqlite:///{tmp_path}/x.db") as db:
            asking = asyncio.create_task(db.query("SELECT 1"))
            await asyncio.to_thread(opening.wait)
            asking.cancel()

    monkeypatch.setattr(sqlite3, "connect", slowly)
    died: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    asyncio.run(ask_and_leave())
    for thread in threads:
        thread.join(5)
    assert not died
    assert not any(thread.is_alive() for thread in threads)
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


@pytest.mark.parametrize(
    ("sql", "kept"),
    [
        ("SELECT json_extract('{}', ?)", False),
        ("SELECT ? FROM nowhere", True),
        ("SELECT nothing, ?", True),
        ("SELEC ?", True),
    ],
)
async def test_the_cause_holds_names_and_no_values(db: Database, sql: str, kept: bool) -> None:
    """SQLite repeats a path, or what a trigger says; a name that stands in the statement is worth showing."""
    with pytest.raises(StatementFailed) as caught:
        await db.query(sql, ("$[ann@example.org",))
    assert "example" not in str(caught.value.__cause__)
    assert (str(caught.value.__cause__) != "SQLITE_ERROR") is kept


async def test_text_that_is_none_is_not_shown(db: Database) -> None:
    """The module repeats what it could not decode."""
    with pytest.raises(StatementFailed) as caught:
        await db.query("SELECT CAST(? AS TEXT)", (b"ann@example.org\xff",))
    assert "example" not in str(caught.value.__cause__)

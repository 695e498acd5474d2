"""Calls under faults at their statements, on every back end; and that the faults are what they say.

These are samples; `nox -s proof` tries every fault at every statement.
"""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from daydo_db import (
    CommitUnknown,
    ConnectionLost,
    Database,
    DatabaseConfig,
    Deadlock,
    LockTimeout,
    QueryTimeout,
    StatementFailed,
    migrate,
)
from daydo_quota.testing import Fault, Faults, LedgerFaults

ADD = "INSERT INTO note (name) VALUES (?)"


class TestFaults(LedgerFaults):
    # A silence takes as long as the client's patience.
    faults_to_try = tuple(fault for fault in Fault if fault is not Fault.SILENT)
    samples = 12
    patience_s = 30.0

    @pytest.fixture
    async def fault_url(self, database_url: str) -> str:
        async with Database(database_url) as db:
            await migrate(db, "daydo_quota")
        return database_url


@pytest.fixture
async def observer(database_url: str) -> AsyncIterator[Database]:
    """Sees what is committed, and waits for no lock."""
    async with Database(database_url, DatabaseConfig(lock_timeout_s=1.0)) as db:
        await db.execute("CREATE TABLE note (name VARCHAR(20) NOT NULL PRIMARY KEY)")
        yield db


@pytest.fixture
async def faults(database_url: str, observer: Database) -> AsyncIterator[Faults]:
    async with Faults(database_url) as faults:
        yield faults


@pytest.fixture
async def db(faults: Faults) -> AsyncIterator[Database]:
    async with faults.database(DatabaseConfig(statement_timeout_s=1.0)) as db:
        yield db


async def _names(db: Database) -> list[str]:
    return [row[0] for row in (await db.query("SELECT name FROM note ORDER BY name")).rows]


async def _three(db: Database) -> None:
    async with db.transaction() as tx:
        await tx.execute(ADD, ("a",))
        await tx.execute_all([(ADD, ("b",)), (ADD, ("c",))])


async def test_every_statement_is_seen(faults: Faults, db: Database) -> None:
    """Also those that travel in one packet, and what begins and ends the transaction."""
    statements = await faults.statements_of(lambda: _three(db))
    assert [statement.split()[0] for statement in statements] == [statements[0].split()[0], *["INSERT"] * 3, "COMMIT"]
    assert statements[0] in ("START TRANSACTION", "BEGIN IMMEDIATE")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.DEADLOCK, Deadlock),
        (Fault.LOCK_TIMEOUT, LockTimeout),
        (Fault.STOPPED, QueryTimeout),
        (Fault.CUT_BEFORE, ConnectionLost),
        (Fault.CUT_AFTER, ConnectionLost),
        (Fault.SILENT, QueryTimeout),
    ],
)
@pytest.mark.parametrize("at", [1, 3])
async def test_a_fault_is_an_error_of_the_database(
    faults: Faults, db: Database, observer: Database, fault: Fault, error: type[Exception], at: int
) -> None:
    """The caller gets the error that belongs to it, and nothing is kept of the transaction."""
    struck = await faults.strike(fault, at, lambda: _three(db))
    assert type(struck.error) is error
    assert struck.statement.startswith("INSERT")
    await observer.execute(ADD, ("a",))  # No lock is left.
    assert await _names(observer) == ["a"]
    assert (await db.query("SELECT 1")).rows == [(1,)], "it goes on with another connection"


@pytest.mark.parametrize(
    ("fault", "kept"), [(Fault.CUT_BEFORE, []), (Fault.CUT_AFTER, ["a", "b", "c"]), (Fault.SILENT, ["a", "b", "c"])]
)
async def test_a_lost_answer_to_commit_is_unknown(
    faults: Faults, db: Database, observer: Database, fault: Fault, kept: list[str]
) -> None:
    """Before: the server never heard of it and rolls back. After: it is committed, and nobody was told."""
    struck = await faults.strike(fault, 4, lambda: _three(db))
    assert type(struck.error) is CommitUnknown
    assert struck.statement == "COMMIT"
    assert await _names(observer) == kept


async def test_a_lock_timeout_undoes_its_statement_alone(faults: Faults, db: Database, observer: Database) -> None:
    """The server's transaction is still open, with all that came before."""

    async def one_by_one(name: str) -> None:
        async with db._dedicated() as connection:
            await connection.script("BEGIN")
            await connection.execute(*_compiled(db, "a"))
            try:
                await connection.execute(*_compiled(db, name))
            finally:
                assert connection.in_transaction
                await connection.script("COMMIT")

    at = 2 if db.dialect.name == "mysql" else 1  # A relay sees what `script` sends.
    struck = await faults.strike(Fault.LOCK_TIMEOUT, at, lambda: one_by_one("b"))
    assert type(struck.error) is LockTimeout
    assert await _names(observer) == ["a"]


async def test_a_cancelled_task_leaves_nothing(faults: Faults, db: Database, observer: Database) -> None:
    """Cancelled in the middle of a statement that the server carries out: rolled back, and no lock is left."""
    struck = await faults.strike(Fault.CANCELLED, 2, lambda: _three(db))
    assert isinstance(struck.error, BaseException)
    assert "CANCELLED at statement 2" in str(struck)
    await observer.execute(ADD, ("a",))
    assert await _names(observer) == ["a"]


async def test_a_call_is_struck_until_it_has_no_statement_left(faults: Faults, db: Database) -> None:
    """Five statements, five strikes; a call that is not struck returns what it returns."""
    struck = [one async for one in faults.at_every_statement(Fault.CUT_BEFORE, lambda: _three(db))]
    assert [one.at for one in struck] == [0, 1, 2, 3, 4]
    left = await faults.strike(Fault.CUT_BEFORE, 99, lambda: db.query("SELECT 7"))
    assert (left.statement, left.error, left.answer.rows) == ("", None, [(7,)])


@pytest.mark.dialect("mysql")
async def test_another_driver_goes_through_the_relay(faults: Faults, observer: Database) -> None:
    """SQLAlchemy's errors are those of its driver; prepared statements are refused in words."""
    engine = create_async_engine(faults.url.replace("mysql:", "mysql+aiomysql:"))
    try:

        async def add() -> None:
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO note (name) VALUES ('x')"))

        await add()
        struck = await faults.strike(Fault.DEADLOCK, 0, add)
        assert isinstance(struck.error, OperationalError)
        assert struck.error.orig is not None
        assert struck.error.orig.args[0] == 1213
    finally:
        await engine.dispose()
    assert await _names(observer) == ["x"]


@pytest.mark.dialect("mysql")
async def test_a_relay_offers_no_tls(faults: Faults) -> None:
    """It could not read what is encrypted, so whoever insists is told instead of being led past the faults."""
    with pytest.raises(StatementFailed, match="tls"):
        async with faults.database(DatabaseConfig(tls=True)):
            pass


@pytest.mark.dialect("mysql")
async def test_values_larger_than_a_packet_pass(faults: Faults, db: Database) -> None:
    """A statement and a row of more than 16 MiB travel in several packets each."""
    size = 17 * 1024 * 1024
    room = int((await db.query("SELECT @@max_allowed_packet")).rows[0][0])
    rows = (await db.query("SELECT REPEAT('x', ?)", (min(size, room - 1024),))).rows
    assert len(rows[0][0]) == min(size, room - 1024)


def _compiled(db: Database, name: str):
    from daydo_db.tx import compile_statement

    return compile_statement(db.dialect.name, ADD), (name,)

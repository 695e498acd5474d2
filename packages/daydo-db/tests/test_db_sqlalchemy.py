from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import BigInteger, String, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import AsyncAdaptedQueuePool

from daydo_db import (
    ConnectionLost,
    Database,
    Deadlock,
    LockTimeout,
    PoolTimeout,
    StatementFailed,
    StorageFull,
    TransactionAborted,
    Tx,
    UniqueViolation,
)
from daydo_db.sqlalchemy import enlist
from daydo_db.testing import TxConformance

Sessions = async_sessionmaker[AsyncSession]
Run = Callable[[str], Any]

# As a stock application has them: no FOUND_ROWS, the server's own SQL mode, the server's own isolation.
STOCK = {"isolation_level": "REPEATABLE READ", "connect_args": {"client_flag": 0}}


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "shop_order"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    amount: Mapped[int] = mapped_column(BigInteger)


def sqlalchemy_url(database_url: str) -> str:
    return database_url.replace("sqlite:", "sqlite+aiosqlite:", 1).replace("mysql:", "mysql+aiomysql:", 1)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as db:
        await db.execute("CREATE TABLE shop_order (id VARCHAR(40) NOT NULL PRIMARY KEY, amount BIGINT NOT NULL)")
        await db.execute("CREATE TABLE shop_file (id VARCHAR(40) NOT NULL PRIMARY KEY, body BLOB NOT NULL)")
        yield db


@pytest.fixture
async def sessions(db: Database, database_url: str) -> AsyncIterator[Sessions]:
    options: dict[str, Any] = STOCK if db.dialect.name == "mysql" else {}
    engine = create_async_engine(sqlalchemy_url(database_url), poolclass=AsyncAdaptedQueuePool, **options)
    yield async_sessionmaker(engine)
    await engine.dispose()


@pytest.fixture(params=["ours", "the session's own"])
def runner(request: pytest.FixtureRequest) -> Callable[[AsyncSession, Tx], Run]:
    """Runs a statement through the Tx, or as an application does that knows only its session."""
    ours = request.param == "ours"
    return lambda session, tx: tx.execute if ours else lambda sql: session.execute(text(sql))


Runner = Callable[[AsyncSession, Tx], Run]


async def amounts(db: Database) -> dict[str, int]:
    return dict((await db.query("SELECT id, amount FROM shop_order")).rows)


class TestConformance(TxConformance):
    """The enlisted session keeps to everything our own transactions keep to."""

    @pytest.fixture
    def observer(self, db: Database) -> Database:
        return db

    @pytest.fixture
    def open_tx(self, sessions: Sessions) -> Callable[[], Any]:
        self._sessions: dict[Tx, AsyncSession] = {}

        @asynccontextmanager
        async def open_tx() -> AsyncIterator[Tx]:
            async with sessions.begin() as session:
                tx = await enlist(session)
                self._sessions[tx] = session
                yield tx

        return open_tx

    def savepoint(self, tx: Tx) -> AbstractAsyncContextManager[Any]:
        return self._sessions[tx].begin_nested()


async def test_shares_the_sessions_transaction(db: Database, sessions: Sessions) -> None:
    """Rows of the ORM and rows written through the Tx see each other, and commit together."""
    async with sessions.begin() as session:
        session.add(Order(id="orm", amount=1))
        await session.flush()
        tx = await enlist(session)
        await tx.execute("UPDATE shop_order SET amount = amount + ? WHERE id = ?", (1, "orm"))
        await tx.execute("INSERT INTO shop_order (id, amount) VALUES (?, ?)", ("ours", 5))
        assert (await session.get_one(Order, "ours")).amount == 5
        assert await amounts(db) == {}
    assert await amounts(db) == {"orm": 2, "ours": 5}


async def test_rolls_back_with_the_session(db: Database, sessions: Sessions) -> None:
    """A rollback of the session takes the Tx's rows along."""
    async with sessions() as session:
        await (await enlist(session)).execute("INSERT INTO shop_order (id, amount) VALUES ('x', 1)")
        await session.rollback()
        await session.commit()
    assert await amounts(db) == {}


async def test_never_commits_by_itself(db: Database, sessions: Sessions) -> None:
    """A session that is merely closed keeps nothing."""
    called: list[str] = []
    async with sessions() as session:
        tx = await enlist(session)
        await tx.execute("INSERT INTO shop_order (id, amount) VALUES ('x', 1)")
        tx.after_commit(lambda: called.append("x"))
    assert await amounts(db) == {}
    assert called == []


@pytest.mark.dialect("mysql")
async def test_a_locking_read_sees_the_newest_row_at_repeatable_read(db: Database, sessions: Sessions) -> None:
    """At REPEATABLE READ, after an earlier SELECT, FOR UPDATE reads what is committed and not the snapshot."""
    await db.execute("INSERT INTO shop_order (id, amount) VALUES ('x', 1)")
    async with sessions() as session:
        assert (await session.get_one(Order, "x")).amount == 1
        await db.execute("UPDATE shop_order SET amount = 2 WHERE id = 'x'")
        tx = await enlist(session)
        plain = await tx.execute("SELECT amount FROM shop_order WHERE id = ?", ("x",))
        assert plain.rows == [(1,)], "the test means nothing unless there is a snapshot"
        strict = await tx.execute("SHOW VARIABLES LIKE 'innodb_snapshot_isolation'")
        locking = f"SELECT amount FROM shop_order WHERE id = ? {tx.dialect.for_update}"
        if strict.rows and strict.rows[0][1] == "ON":
            # MariaDB ≥ 11.6 refuses a row that is newer than the snapshot. Retryable, and never the old row.
            with pytest.raises(Deadlock):
                await tx.execute(locking, ("x",))
        else:
            assert (await tx.execute(locking, ("x",))).rows == [(2,)]


@pytest.mark.dialect("sqlite")
async def test_reads_before_writes_are_safe_on_sqlite(db: Database, sessions: Sessions) -> None:
    """Read, compute, write through enlisted sessions loses no update: each waits for the write lock first."""
    await db.execute("INSERT INTO shop_order (id, amount) VALUES ('x', 0)")

    async def add_one() -> None:
        async with sessions.begin() as session:
            tx = await enlist(session)
            (amount,) = (await tx.execute("SELECT amount FROM shop_order WHERE id = 'x'")).rows[0]
            await tx.execute("UPDATE shop_order SET amount = ? WHERE id = 'x'", (amount + 1,))

    await asyncio.gather(*(add_one() for _ in range(20)))
    assert await amounts(db) == {"x": 20}


@pytest.mark.dialect("mysql")
async def test_runs_in_a_plain_mysql_session(db: Database, sessions: Sessions) -> None:
    """The session really is at REPEATABLE READ, without ANSI_QUOTES and FOUND_ROWS, and stays so."""
    async with sessions.begin() as session:
        tx = await enlist(session)
        (mode,) = (await tx.execute("SELECT @@sql_mode")).rows[0]
        levels = dict((await tx.execute("SHOW VARIABLES LIKE '%isolation'")).rows)
        assert "ANSI_QUOTES" not in mode
        assert levels.get("transaction_isolation", levels.get("tx_isolation")) == "REPEATABLE-READ"
        await tx.execute("INSERT INTO shop_order (id, amount) VALUES (?, ?)", ('50% "off" ?', 1))
        same = await tx.execute("UPDATE shop_order SET amount = 1 WHERE id LIKE '50\\% %' AND amount = ?", (1,))
        assert same.rowcount == 0, "rows changed: the session counts without FOUND_ROWS"
    assert await amounts(db) == {'50% "off" ?': 1}


async def test_bytes_come_back_as_they_went(sessions: Sessions) -> None:
    """Every byte value survives, beside text with percent signs; PyMySQL 1.2.3 broke this for aiomysql."""
    body = bytes(range(256)) + b"%s ? '"
    async with sessions.begin() as session:
        tx = await enlist(session)
        await tx.execute("INSERT INTO shop_file (body, id) VALUES (?, ?)", (body, "100%s"))
        found = await tx.execute("SELECT id, body FROM shop_file WHERE id LIKE '100%' AND body = ?", (body,))
    assert found.rows == [("100%s", body)]


async def test_errors_are_ours(db: Database, sessions: Sessions) -> None:
    """A duplicate is a UniqueViolation, broken SQL a StatementFailed; neither shows a parameter."""
    await db.execute("INSERT INTO shop_order (id, amount) VALUES ('secret-id', 1)")
    async with sessions() as session:
        tx = await enlist(session)
        with pytest.raises(UniqueViolation) as duplicate:
            await tx.execute("INSERT INTO shop_order (id, amount) VALUES (?, 1)", ("secret-id",))
        assert "secret-id" not in f"{duplicate.value} {duplicate.value.__cause__}"
        with pytest.raises(StatementFailed):
            await tx.execute("SELECT nothing FROM nowhere")
        with pytest.raises(TypeError, match="1 placeholders and got 0"):
            await tx.execute("SELECT ?")
        assert (await tx.execute("SELECT COUNT(*) FROM shop_order")).rows == [(1,)], "and the transaction goes on"


async def test_refuses_to_end_the_sessions_transaction(sessions: Sessions) -> None:
    """COMMIT through the Tx is refused: it would leave the session believing in a transaction that is gone."""
    async with sessions() as session:
        with pytest.raises(StatementFailed, match="COMMIT"):
            await (await enlist(session)).execute("COMMIT")


async def test_the_same_transaction_gives_the_same_tx(sessions: Sessions) -> None:
    """Enlisting twice is one Tx; the session's next transaction is another, and the first one is over."""
    async with sessions() as session:
        first = await enlist(session)
        assert await enlist(session) is first
        await session.commit()
        second = await enlist(session)
        assert second is not first
        with pytest.raises(TransactionAborted, match="left"):
            await first.execute("SELECT 1")
        with pytest.raises(TransactionAborted, match="left"):
            first.after_commit(lambda: None)
        assert (await second.execute("SELECT 1")).rows == [(1,)]


async def test_leaves_no_listener_behind(sessions: Sessions) -> None:
    """However often a session is enlisted, and however its transactions end, it ends as it began."""
    async with sessions() as session:
        for end in (session.commit, session.rollback, session.close) * 3:
            await enlist(session)
            await enlist(session)
            await end()
        await asyncio.sleep(0)  # one turn of the loop
        dispatch = session.sync_session.dispatch
        events = (dispatch.before_commit, dispatch.after_commit, dispatch.after_transaction_end)
        assert [len(listeners) for listeners in events] == [0, 0, 0]
        assert session.sync_session.info == {}
        engine = cast("AsyncEngine", session.bind).sync_engine
        assert len(engine.dialect.dispatch.handle_error) == 1, "one for all sessions, from the start"


async def test_nothing_lives_longer_than_the_session(sessions: Sessions) -> None:
    """Neither the Tx nor SQLAlchemy's connection is held by what listens on the engine."""
    async with sessions() as session:
        tx, connection = await enlist(session), (await session.connection()).sync_connection
        seen = [weakref.ref(tx), weakref.ref(cast("Any", connection))]
    del session, tx, connection
    await asyncio.sleep(0)
    gc.collect()
    assert [ref() for ref in seen] == [None, None]


async def test_after_commit_sees_the_connection_given_back(db: Database, sessions: Sessions) -> None:
    """The functions run after COMMIT, in order, and an error in one neither stops the rest nor the caller."""
    called: list[object] = []
    async with sessions() as session:
        bind = cast("AsyncEngine", session.bind)
        tx = await enlist(session)
        await tx.execute("INSERT INTO shop_order (id, amount) VALUES ('x', 1)")
        tx.after_commit(lambda: called.append(bind.pool.checkedout()))
        tx.after_commit(lambda: called.append(1 / 0))
        tx.after_commit(lambda: called.append("last"))
        assert called == []
        await session.commit()
    assert called == [0, "last"]
    assert await amounts(db) == {"x": 1}


async def test_a_failed_flush_drops_what_was_registered(db: Database, sessions: Sessions) -> None:
    """When the ORM's own flush fails inside a savepoint, its functions go with it; those around it stay."""
    called: list[str] = []
    await db.execute("INSERT INTO shop_order (id, amount) VALUES ('taken', 1)")
    async with sessions.begin() as session:
        tx = await enlist(session)
        tx.after_commit(lambda: called.append("around"))
        inside = await session.begin_nested()
        tx.after_commit(lambda: called.append("inside"))
        session.add(Order(id="taken", amount=2))
        with pytest.raises(IntegrityError):
            await inside.commit()
        await inside.rollback()
        await tx.execute("INSERT INTO shop_order (id, amount) VALUES ('new', 3)")
    assert called == ["around"]
    assert await amounts(db) == {"taken": 1, "new": 3}


# A session's life: statements, and savepoints (kept or not) that hold more of the same.
steps = st.recursive(
    st.just("write"), lambda inner: st.tuples(st.booleans(), st.lists(inner, max_size=4)), max_leaves=12
)


class Undo(Exception):
    """Ends a savepoint, or the transaction, without keeping it."""


@given(keep=st.booleans(), life=st.lists(steps, max_size=5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_what_is_called_is_what_is_kept(db: Database, sessions: Sessions, keep: bool, life: list[Any]) -> None:
    """Through any nesting of savepoints, the functions called after commit are those whose rows exist."""
    await db.execute("DELETE FROM shop_order")
    called: list[str] = []
    number = 0

    async def live(session: AsyncSession, steps: list[Any]) -> None:
        nonlocal number
        for step in steps:
            if step == "write":
                number += 1
                tx = await enlist(session)
                await tx.execute("INSERT INTO shop_order (id, amount) VALUES (?, ?)", (f"{number:03}", number))
                tx.after_commit(partial(called.append, f"{number:03}"))
            else:
                await nest(session, *step)

    async def nest(session: AsyncSession, keep: bool, steps: list[Any]) -> None:
        try:
            async with session.begin_nested():
                await live(session, steps)
                if not keep:
                    raise Undo
        except Undo:
            pass

    try:
        async with sessions.begin() as session:
            await enlist(session)
            await live(session, life)
            if not keep:
                raise Undo
    except Undo:
        pass
    assert called == sorted(await amounts(db))


@pytest.mark.dialect("mysql")
async def test_a_deadlock_ends_the_sessions_transaction(db: Database, sessions: Sessions, runner: Runner) -> None:
    """After the server has rolled back, the Tx refuses statements and the session refuses to commit the rest."""
    await db.execute("INSERT INTO shop_order (id, amount) VALUES ('a', 0), ('b', 0)")
    called: list[str] = []

    async def add(session: AsyncSession, ids: str, met: asyncio.Barrier) -> None:
        tx = await enlist(session)
        tx.after_commit(lambda: called.append(ids))
        await tx.execute("UPDATE shop_order SET amount = amount + 1 WHERE id = ?", (ids[0],))
        await met.wait()
        try:
            await runner(session, tx)(f"UPDATE shop_order SET amount = amount + 1 WHERE id = '{ids[1]}'")
        except (Deadlock, OperationalError):
            with pytest.raises(TransactionAborted, match="Deadlock"):
                await tx.execute("UPDATE shop_order SET amount = 99")
            with pytest.raises(TransactionAborted, match="Deadlock"):
                await session.commit()
            await session.rollback()
            assert (await (await enlist(session)).execute("SELECT 1")).rows == [(1,)]
        else:
            await session.commit()

    met = asyncio.Barrier(2)
    async with sessions() as one, sessions() as two:
        await asyncio.gather(add(one, "ab", met), add(two, "ba", met))
    assert len(called) == 1
    assert await amounts(db) == {"a": 1, "b": 1}


@pytest.mark.dialect("mysql")
async def test_a_lock_that_is_not_had_ends_the_transaction(db: Database, sessions: Sessions, runner: Runner) -> None:
    """The server may have undone all of it or the statement only, and does not say which."""
    await db.execute("INSERT INTO shop_order (id, amount) VALUES ('a', 0)")
    async with db.transaction() as other, sessions() as session:
        await other.execute("UPDATE shop_order SET amount = 1")
        tx = await enlist(session)
        with pytest.raises((LockTimeout, OperationalError)):
            await runner(session, tx)("SELECT amount FROM shop_order FOR UPDATE NOWAIT")
        with pytest.raises(TransactionAborted, match="LockTimeout"):
            await session.commit()


SMALL = "INSERT INTO shop_file VALUES ('small', 'x')"
LARGE = "INSERT INTO shop_file VALUES ('large', zeroblob(900000))"
# After this SQLite undoes the statement alone, after the one above all of the transaction.
SEVERAL = "INSERT INTO shop_file SELECT id, zeroblob(300000) FROM (SELECT 'b' AS id UNION SELECT 'c' UNION SELECT 'd')"


@pytest.mark.dialect("sqlite")
@pytest.mark.parametrize("much", [LARGE, SEVERAL], ids=["one row", "several"])
async def test_a_full_disk_ends_the_sessions_transaction(
    db: Database, sessions: Sessions, runner: Runner, much: str
) -> None:
    """What came before is lost, so what comes after is refused, also where there is room again."""
    async with sessions() as session:
        tx = await enlist(session)
        await tx.execute("INSERT INTO shop_order (id, amount) VALUES ('before', 1)")
        pages = (await session.execute(text("PRAGMA page_count"))).scalar_one()
        await session.execute(text(f"PRAGMA max_page_count = {pages + 1}"))
        with pytest.raises((StorageFull, OperationalError)):
            await runner(session, tx)(much)
        await session.execute(text("PRAGMA max_page_count = 1000000"))
        await session.execute(text(SMALL))
        with pytest.raises(TransactionAborted, match="StorageFull"):
            await tx.execute(SMALL)
        with pytest.raises(TransactionAborted, match="StorageFull"):
            await session.commit()
    assert await amounts(db) == {}
    assert (await db.query("SELECT id FROM shop_file")).rows == []


@pytest.mark.dialect("sqlite")
async def test_what_sqlite_undoes_for_any_other_error(db: Database, sessions: Sessions, runner: Runner) -> None:
    """No list of errors names them all: an I/O error, a trigger that says ROLLBACK."""
    async with sessions() as session:
        tx = await enlist(session)
        await tx.execute("INSERT INTO shop_order (id, amount) VALUES ('x', 1)")
        with pytest.raises((UniqueViolation, IntegrityError)):
            await runner(session, tx)("INSERT OR ROLLBACK INTO shop_order (id, amount) VALUES ('x', 1)")
        await session.execute(text("INSERT INTO shop_order (id, amount) VALUES ('y', 1)"))
        with pytest.raises(TransactionAborted, match="UniqueViolation"):
            await session.commit()
    assert await amounts(db) == {}


@pytest.mark.dialect("sqlite")
async def test_a_transaction_that_is_gone_without_an_error(db: Database, sessions: Sessions) -> None:
    """Where the application has rolled back behind its session, what the Tx has answered is lost as well."""
    async with sessions() as session:
        tx = await enlist(session)
        await tx.execute("INSERT INTO shop_order (id, amount) VALUES ('x', 1)")
        await session.execute(text("ROLLBACK"))
        with pytest.raises(TransactionAborted):
            await session.commit()
        with pytest.raises(TransactionAborted):
            await tx.execute("INSERT INTO shop_order (id, amount) VALUES ('y', 1)")
    assert await amounts(db) == {}


async def test_the_sessions_other_errors_are_its_own(db: Database, sessions: Sessions) -> None:
    """They end nothing, and the driver's words stay as they were."""
    async with sessions.begin() as session:
        tx = await enlist(session)
        add = "INSERT INTO shop_order (id, amount) VALUES ('x', 1)"
        await tx.execute(add)
        with pytest.raises(IntegrityError) as duplicate:
            await session.execute(text(add))
        with pytest.raises(DBAPIError) as mistake:
            await session.execute(text("SELECT 'secret' FROM nowhere"))
        await tx.execute("INSERT INTO shop_order (id, amount) VALUES ('y', 2)")
    words = {"sqlite": "UNIQUE constraint failed: shop_order.id", "mysql": "Duplicate entry 'x' for key"}
    assert words[db.dialect.name] in str(cast("Any", duplicate.value.orig).args)
    assert "nowhere" in str(cast("Any", mistake.value.orig).args)
    assert await amounts(db) == {"x": 1, "y": 2}


@pytest.mark.dialect("sqlite")
async def test_an_applications_own_listener_hides_no_error(db: Database, sessions: Sessions) -> None:
    """One that raises an error of its own is the last that SQLAlchemy calls; we come before."""

    def raise_ours(context: object) -> None:
        raise Undo

    async with sessions() as session:
        event.listen(cast("AsyncEngine", session.bind).sync_engine, "handle_error", raise_ours)
        await (await enlist(session)).execute("INSERT INTO shop_order (id, amount) VALUES ('x', 1)")
        with pytest.raises(Undo):
            await session.execute(text("INSERT OR ROLLBACK INTO shop_order (id, amount) VALUES ('x', 1)"))
        await session.execute(text("INSERT INTO shop_order (id, amount) VALUES ('y', 1)"))
        with pytest.raises(TransactionAborted):
            await session.commit()
    assert await amounts(db) == {}


@pytest.mark.dialect("sqlite")
async def test_a_taken_write_lock_is_a_lock_timeout(db: Database, database_url: str) -> None:
    """Where another writer does not let go, enlisting fails with the error that callers retry on."""
    engine = create_async_engine(sqlalchemy_url(database_url), connect_args={"timeout": 0.05})
    async with db.transaction(), AsyncSession(engine) as session:
        with pytest.raises(LockTimeout):
            await enlist(session)
        await session.rollback()
    async with AsyncSession(engine) as session:
        await (await enlist(session)).execute("SELECT 1")
    await engine.dispose()


async def test_a_pool_that_is_empty_and_a_server_that_is_gone(db: Database, database_url: str) -> None:
    """What keeps a session from its connection is told in our words too."""
    url = sqlalchemy_url(database_url)
    small = create_async_engine(url, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0, pool_timeout=0.05)
    async with AsyncSession(small) as first, AsyncSession(small) as second:
        await enlist(first)
        with pytest.raises(PoolTimeout, match=r"0\.05 s \(1 in all\)"):
            await enlist(second)
    await small.dispose()
    if db.dialect.name == "mysql":
        gone = create_async_engine("mysql+aiomysql://nobody@127.0.0.1:1/nowhere")
        async with AsyncSession(gone) as session:
            with pytest.raises(ConnectionLost):
                await enlist(session)


@pytest.mark.dialect("sqlite")
async def test_asks_to_come_before_the_first_savepoint(db: Database, sessions: Sessions) -> None:
    """A savepoint that opens the transaction would commit when released, and a rollback keep its rows."""
    async with sessions() as session:
        async with session.begin_nested():
            with pytest.raises(ValueError, match="before session"):
                await enlist(session)
        await session.rollback()
        tx = await enlist(session)
        async with session.begin_nested():
            await tx.execute("INSERT INTO shop_order (id, amount) VALUES ('x', 1)")
        await session.rollback()
    assert await amounts(db) == {}


@pytest.mark.dialect("mysql")
async def test_refuses_a_session_that_commits_every_statement(db: Database, database_url: str) -> None:
    """AUTOCOMMIT would keep half of a library's work when the session rolls back."""
    engine = create_async_engine(sqlalchemy_url(database_url), isolation_level="AUTOCOMMIT")
    async with AsyncSession(engine) as session:
        with pytest.raises(ValueError, match="AUTOCOMMIT"):
            await enlist(session)
    await engine.dispose()


async def test_a_cancelled_statement_ends_the_transaction(db: Database, sessions: Sessions) -> None:
    """A task cancelled in the middle of a statement leaves a Tx that refuses, and keeps nothing."""
    async with sessions() as session:
        tx = await enlist(session)
        await tx.execute("INSERT INTO shop_order (id, amount) VALUES ('x', 1)")
        slow = {
            "mysql": "SELECT SLEEP(0.5)",
            "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) "
            "SELECT MAX(i) FROM n",
        }
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await tx.execute(slow[tx.dialect.name])
        with pytest.raises(TransactionAborted, match="CancelledError"):
            await tx.execute("SELECT 1")
    assert await amounts(db) == {}


@pytest.mark.parametrize(("drop", "refusal"), [("invalidate", "PendingRollback"), ("close", "ResourceClosed")])
async def test_a_connection_that_is_dropped(db: Database, sessions: Sessions, drop: str, refusal: str) -> None:
    """SQLAlchemy itself refuses what follows, and the Tx says so in our words."""
    async with sessions() as session:
        tx = await enlist(session)
        await tx.execute("INSERT INTO shop_order (id, amount) VALUES ('x', 1)")
        await getattr(await session.connection(), drop)()
        with pytest.raises(TransactionAborted, match=refusal):
            await tx.execute("SELECT 1")
        with pytest.raises(TransactionAborted, match=refusal):
            await session.commit()
    assert await amounts(db) == {}

# ruff: noqa: PT012, S608 - the block that raises is the test; fragments of a dialect belong in statements
"""What every back end passes. Needs pytest-asyncio in auto mode; subclass it and give the fixture it names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from daydo_db import errors
from daydo_db.config import DatabaseConfig
from daydo_db.database import Database
from daydo_db.transaction import Transaction
from daydo_db.tx import Result, Tx
from daydo_kernel import NotStarted

from .suite_rows import SUITE_TABLE, Stop, add_row, names_in, names_of


class DatabaseConformance:
    """What a :class:`daydo_db.Database` keeps to on every back end; needs the fixture ``database_url``."""

    @pytest.fixture
    async def db(self, database_url: str) -> AsyncIterator[Database]:
        async with Database(database_url) as db:
            for statement in SUITE_TABLE[db.dialect.name]:
                await db.execute(statement)
            yield db

    async def test_it_must_be_entered_first(self, database_url: str) -> None:
        """Every call says so instead of failing somewhere inside."""
        db = Database(database_url)
        for call in (db.query("SELECT 1"), db.execute("SELECT 1"), db.run(_nothing)):
            with pytest.raises(NotStarted):
                await call
        assert (await db.health()).status == "down"

    async def test_one_statement_commits_by_itself(self, db: Database) -> None:
        """rowcount is the rows matched, also where the value was there already; lastrowid is the row's new id."""
        first = await db.execute("INSERT INTO suite_row (name, n) VALUES (?, ?)", ("a", 1))
        second = await db.execute("INSERT INTO suite_row (name, n) VALUES (?, ?)", ("b", 1))
        unchanged = await db.execute("UPDATE suite_row SET n = ?", (1,))
        assert (first.rowcount, second.lastrowid - first.lastrowid, unchanged.rowcount) == (1, 1, 2)
        assert (unchanged.lastrowid, (await db.query("SELECT n FROM suite_row")).lastrowid) == (0, 0)

    async def test_foreign_keys_hold(self, db: Database) -> None:
        """In both directions: no row may point nowhere, and none that is pointed at may go."""
        row = (await db.execute("INSERT INTO suite_row (name) VALUES ('a')")).lastrowid
        with pytest.raises(errors.ForeignKeyViolation):
            await db.execute("INSERT INTO suite_part (row_id) VALUES (?)", (row + 1,))
        await db.execute("INSERT INTO suite_part (row_id) VALUES (?)", (row,))
        with pytest.raises(errors.ForeignKeyViolation):
            await db.execute("DELETE FROM suite_row")

    @pytest.mark.parametrize(
        "sql",
        [
            "INSERT INTO suite_row (name) VALUES ('a')",
            "UPDATE suite_row SET n = 1",
            "DELETE FROM suite_row",
            "DROP TABLE suite_row",
            "WITH x AS (SELECT 1 AS a) DELETE FROM suite_row WHERE n IN (SELECT a FROM x)",
        ],
    )
    async def test_a_query_does_not_write(self, db: Database, sql: str) -> None:
        """The mistake shows here and not on the first replica; the message names the call that does."""
        with pytest.raises(errors.StatementFailed, match="execute"):
            await db.query(sql)
        assert await names_of(db) == []

    async def test_nothing_stays_behind_on_a_connection(self, db: Database) -> None:
        """What changes it for whoever has it next is refused, inside a transaction and outside."""
        lasting = {"sqlite": "ATTACH ':memory:' AS other", "mysql": "SET @other = 1"}[db.dialect.name]
        for call in (db.execute, db.query):
            with pytest.raises(errors.StatementFailed):
                await call(lasting)
        async with db.transaction() as tx:
            with pytest.raises(errors.StatementFailed):
                await tx.execute(lasting)

    async def test_writing_without_tx_inside_a_transaction_is_refused_at_once(self, db: Database) -> None:
        """It would wait for itself. Reading, another task, and the time after are free."""
        async with db.transaction() as tx:
            for call in (db.execute("DELETE FROM suite_row"), db.run(_nothing), db.transaction().__aenter__()):
                with pytest.raises(errors.InsideTransaction):
                    await call
            assert (await db.query("SELECT COUNT(*) FROM suite_row")).rows == [(0,)]
            assert await db.run(names_in, tx=tx) == []
        await db.execute("DELETE FROM suite_row")

    async def test_run_with_tx_neither_commits_nor_repeats(self, db: Database) -> None:
        """The caller's transaction is the caller's."""
        calls = 0

        async def fail(tx: Tx) -> None:
            nonlocal calls
            calls += 1
            await add_row(tx, "a")
            raise errors.Deadlock()

        with pytest.raises(errors.Deadlock):
            async with db.transaction() as tx:
                await db.run(fail, tx=tx)
        assert (calls, await names_of(db)) == (1, [])

    @pytest.mark.parametrize("error", [errors.Deadlock, errors.LockTimeout, errors.ConnectionLost])
    async def test_run_repeats_what_the_server_undid(self, db: Database, error: type[errors.DbError]) -> None:
        """Each time from the start, and only the last try is kept."""
        tries = 0

        async def third_time_lucky(tx: Tx) -> int:
            nonlocal tries
            tries += 1
            await add_row(tx, f"try{tries}")
            if tries < 3:
                raise error()
            return tries

        assert await db.run(third_time_lucky) == 3
        assert await names_of(db) == ["try3"]

    async def test_run_gives_up_after_its_retries(self, db: Database) -> None:
        """And raises the last error."""
        tries = 0

        async def never(tx: Tx) -> None:
            nonlocal tries
            tries += 1
            raise errors.Deadlock()

        with pytest.raises(errors.Deadlock):
            await db.run(never, retries=2)
        assert tries == 3

    @pytest.mark.parametrize("error", [errors.CommitUnknown(), errors.PoolTimeout(waited_s=1.0, size=1), ValueError()])
    async def test_run_repeats_nothing_else(self, db: Database, error: Exception) -> None:
        """Least of all what may have been committed."""
        tries = 0

        async def once(tx: Tx) -> None:
            nonlocal tries
            tries += 1
            raise error

        with pytest.raises(type(error)):
            await db.run(once)
        assert tries == 1

    async def test_the_last_of_a_savepoint_commits_nothing(self, db: Database) -> None:
        """What is around it may still be undone."""
        add = "INSERT INTO suite_row (name) VALUES (?)"
        async with db.transaction() as tx:
            async with tx.savepoint():
                await tx.execute_all([(add, ("a",)), (add, ("b",))], commit_within_s=30)
            assert await names_of(db) == []
            await tx.execute_all([(add, ("c",))], commit_within_s=30)
        assert await names_of(db) == ["a", "b", "c"]

    async def test_run_does_not_repeat_what_it_has_committed_itself(self, db: Database) -> None:
        """What fails afterwards, another database say, fails; the row is there once."""

        async def commit_then_fail(tx: Tx) -> None:
            await tx.execute_all([("INSERT INTO suite_row (name) VALUES (?)", ("a",))], commit_within_s=30)
            raise errors.Deadlock()

        with pytest.raises(errors.Deadlock):
            await db.run(commit_then_fail)
        assert await names_of(db) == ["a"]

    async def test_concurrent_read_modify_write_loses_nothing(self, db: Database) -> None:
        """Forty tasks add one each; the lock is taken with the read."""
        await db.execute("INSERT INTO suite_row (name, n) VALUES ('a', 0)")

        async def add_one(tx: Tx) -> None:
            sql = f"SELECT n FROM suite_row WHERE name = ? {tx.dialect.for_update}"
            ((n,),) = (await tx.execute(sql, ("a",))).rows
            await tx.execute("UPDATE suite_row SET n = ? WHERE name = ?", (n + 1, "a"))

        await asyncio.gather(*(db.run(add_one) for _ in range(40)))
        assert (await db.query("SELECT n FROM suite_row")).rows == [(40,)]

    async def test_tasks_may_share_a_transaction(self, db: Database) -> None:
        """Their statements take turns on the one connection."""
        async with db.transaction() as tx:
            await asyncio.gather(*(add_row(tx, f"{number:02}") for number in range(20)))
        assert len(await names_of(db)) == 20

    async def test_a_transaction_that_was_left_refuses(self, db: Database) -> None:
        """Its connection belongs to someone else by now."""
        async with db.transaction() as tx:
            pass
        with pytest.raises(errors.TransactionAborted):
            await tx.execute("SELECT 1")
        with pytest.raises(errors.TransactionAborted):
            tx.after_commit(lambda: None)

    @pytest.mark.parametrize("verb", ["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT x", "RELEASE SAVEPOINT x"])
    async def test_transaction_control_by_hand_is_refused(self, db: Database, verb: str) -> None:
        """It would leave the connection in a state nobody knows of."""
        with pytest.raises(errors.StatementFailed):
            await db.execute(verb)
        with pytest.raises(errors.StatementFailed):
            await db.query(f"/* sly */ {verb}")
        async with db.transaction() as tx:
            await add_row(tx, "a")
            with pytest.raises(errors.StatementFailed):
                await tx.execute(verb.lower())
        assert await names_of(db) == ["a"]

    async def test_a_cancelled_transaction_is_undone_and_its_slot_free(self, db: Database) -> None:
        """Wherever it was: in the block, or in a statement."""
        for wait in (asyncio.sleep, _long_statement):
            reached = asyncio.Event()
            task = asyncio.create_task(_hold(db, wait, reached))
            await reached.wait()
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert db._writers.in_use == 0
            await db.execute("INSERT INTO suite_row (name) VALUES (?)", (f"after {wait.__name__}",))
        assert set(await names_of(db)) == {"after _long_statement", "after sleep"}

    async def test_a_cancellation_during_commit_waits_for_its_answer(self, db: Database) -> None:
        """The change is kept, its after_commit functions run, and the cancellation arrives."""
        calls: list[str] = []
        committing = asyncio.Event()

        class Slow(Transaction):
            async def commit(self) -> None:
                committing.set()
                await asyncio.sleep(0.05)
                await super().commit()

        async def change() -> None:
            async with db.transaction() as tx:
                tx.__class__ = Slow
                tx.after_commit(lambda: calls.append("committed"))
                await add_row(tx, "a")

        task = asyncio.create_task(change())
        await committing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (calls, await names_of(db), db._writers.in_use) == (["committed"], ["a"], 0)

    async def test_a_statement_that_takes_too_long_is_stopped(self, database_url: str) -> None:
        """QueryTimeout outside and inside a transaction, which is over then."""
        async with Database(database_url, DatabaseConfig(statement_timeout_s=0.1)) as db:
            with pytest.raises(errors.QueryTimeout):
                await _long_statement(db.query)
            with pytest.raises(errors.TransactionAborted):
                async with db.transaction() as tx:
                    with pytest.raises(errors.QueryTimeout):
                        await _long_statement(tx.execute)
            assert (await db.query("SELECT 1")).rows == [(1,)]

    async def test_waiting_for_a_connection_has_an_end(self, database_url: str) -> None:
        """PoolTimeout names the bound; the wait leaves nothing behind."""
        config = DatabaseConfig(pool_max=1, pool_min=0, acquire_timeout_s=0.5)
        async with Database(database_url, config) as db:
            async with db.transaction():
                assert db._writers.in_use == 1
                with pytest.raises(errors.PoolTimeout, match=r"0\.5"):
                    await asyncio.create_task(db.execute("SELECT 1"))
            assert (db._writers.in_use, db._writers.waiting) == (0, 0)
            await db.execute("SELECT 1")

    async def test_leaving_waits_for_open_transactions(self, database_url: str) -> None:
        """What was begun is committed; new work is refused meanwhile."""
        async with Database(database_url) as db:
            await db.execute("CREATE TABLE suite_late (id INTEGER)")
            reached, go = asyncio.Event(), asyncio.Event()

            async def slow() -> None:
                async with db.transaction() as tx:
                    reached.set()
                    await go.wait()
                    await tx.execute("INSERT INTO suite_late VALUES (1)")

            task = asyncio.create_task(slow())
            await reached.wait()
            asyncio.get_running_loop().call_later(0.05, go.set)
        await task
        with pytest.raises(NotStarted):
            await db.query("SELECT 1")
        async with Database(database_url) as db:
            assert (await db.query("SELECT id FROM suite_late")).rows == [(1,)]

    async def test_leaving_ends_what_does_not_end_by_itself(self, database_url: str) -> None:
        """After drain_s the connection is taken away; the straggler gets a DbError."""
        async with Database(database_url, DatabaseConfig(drain_s=0.05)) as db:
            await db.execute("CREATE TABLE suite_late (id INTEGER)")
            reached, go = asyncio.Event(), asyncio.Event()

            async def straggler() -> None:
                async with db.transaction() as tx:
                    await tx.execute("INSERT INTO suite_late VALUES (1)")
                    reached.set()
                    await go.wait()
                    await tx.execute("INSERT INTO suite_late VALUES (2)")

            task = asyncio.create_task(straggler())
            await reached.wait()
        go.set()
        with pytest.raises(errors.DbError):
            await task
        async with Database(database_url) as db:
            assert (await db.query("SELECT id FROM suite_late")).rows == []

    async def test_it_can_be_entered_again(self, database_url: str) -> None:
        """One object, several lives."""
        db = Database(database_url)
        for _ in range(2):
            async with db:
                assert (await db.query("SELECT 1")).rows == [(1,)]

    async def test_health_and_metrics_tell_what_happened(self, db: Database) -> None:
        """The outcomes are there from the start, and count."""
        async with db.transaction() as tx:
            await add_row(tx, "a")
        with pytest.raises(Stop):
            async with db.transaction():
                raise Stop
        health = await db.health()
        assert (health.status, health.detail["dialect"]) == ("ok", db.dialect.name)
        families = {family.name: family for family in db.metrics.snapshot()}
        outcomes = {cell.labels[0]: cell.values[0] for cell in families["daydo_db_transactions_total"].cells}
        assert outcomes == {"committed": 1, "rolled_back": 1, "aborted": 0, "unknown": 0}


async def _nothing(tx: Tx) -> None:
    return None


async def _hold(db: Database, wait: Callable[[Any], Awaitable[Any]], reached: asyncio.Event) -> None:
    async with db.transaction() as tx:
        await add_row(tx, "held")
        reached.set()
        await wait(60 if wait is asyncio.sleep else tx.execute)


async def _long_statement(execute: Callable[[str], Awaitable[Result]]) -> Result:
    """Several seconds of work for either server, by SQL that both read."""
    return await execute(
        "WITH RECURSIVE step (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM step WHERE n < 999) "
        "SELECT COUNT(*) FROM step a, step b, step c WHERE a.n * b.n * c.n % 7 = 8"
    )

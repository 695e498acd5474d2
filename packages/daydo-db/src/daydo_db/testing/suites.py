# ruff: noqa: PT012, S608 - the block that raises is the test; fragments of a dialect belong in statements
"""The suites that every back end passes.

They need pytest-asyncio in auto mode. Subclass them and give the fixtures they name.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from daydo_db import errors
from daydo_db.config import DatabaseConfig
from daydo_db.database import Database
from daydo_db.transaction import Transaction
from daydo_db.turns import whole
from daydo_db.tx import Result, Tx
from daydo_kernel import NotStarted


class TxConformance:
    """What every :class:`daydo_db.Tx` keeps to.

    A subclass gives two fixtures: ``observer``, a started Database, and ``open_tx``, a function that returns an
    async context manager over a transaction on the same database: leaving it commits, an exception rolls back.
    It may override :meth:`savepoint`.
    """

    def savepoint(self, tx: Any) -> AbstractAsyncContextManager[Any]:
        """A part of ``tx`` that can fail alone."""
        point: AbstractAsyncContextManager[Any] = tx.savepoint()
        return point

    @pytest.fixture(autouse=True)
    async def suite_table(self, observer: Database) -> None:
        for statement in _SUITE_TABLE[observer.dialect.name]:
            await observer.execute(statement)

    async def test_a_change_shows_to_others_once_it_is_committed(self, observer: Database, open_tx: OpenTx) -> None:
        """Before the commit others read the old state, afterwards the new."""
        async with open_tx() as tx:
            await _add(tx, "a", 1)
            assert (await tx.execute("SELECT name, n FROM suite_row")).rows == [("a", 1)]
            assert await _names(observer) == []
        assert await _names(observer) == ["a"]

    async def test_an_exception_undoes_everything(self, observer: Database, open_tx: OpenTx) -> None:
        """The exception passes on, nothing is kept."""
        with pytest.raises(_Stop):
            async with open_tx() as tx:
                await _add(tx, "a")
                raise _Stop
        assert await _names(observer) == []

    @pytest.mark.parametrize("value", [None, 0, -1, 2**63 - 1, -(2**63), "", "x'\"`\\%s?%%\n\r\0é漢🎈", "' OR 1=1 -- "])
    async def test_a_value_comes_back_as_it_went(self, open_tx: OpenTx, value: int | str | None) -> None:
        """Integers and text are bound, not pasted."""
        n, note = (value, None) if isinstance(value, int) else (None, value)
        async with open_tx() as tx:
            await tx.execute("INSERT INTO suite_row (name, n, note) VALUES ('a', ?, ?)", (n, note))
            assert (await tx.execute("SELECT n, note FROM suite_row WHERE name = ?", ("a",))).rows == [(n, note)]

    async def test_several_statements_at_once(self, observer: Database, open_tx: OpenTx) -> None:
        """They run in order, each with its own result, as the first of a transaction and later in it."""
        add = "INSERT INTO suite_row (name, note, n) VALUES (?, ?, ?)"
        odd = "a;'\\\"%s -- \n"
        async with open_tx() as tx:
            for turn in range(2):
                results = await tx.execute_all(
                    [
                        (add, (f"a{turn}", odd, turn)),
                        ("SELECT n, note FROM suite_row WHERE name = ? -- and no more", (f"a{turn}",)),
                        ("UPDATE suite_row SET n = n + ?", (10,)),
                        ("SELECT name, n FROM suite_row ORDER BY name", ()),
                    ]
                )
                assert results[1].rows == [(turn, odd)]
                assert results[1].columns == ("n", "note")
                assert [result.rowcount for result in results] == [1, 1, turn + 1, turn + 1]
            assert results[3].rows == [("a0", 20), ("a1", 11)]
            assert await tx.execute_all([]) == []
            assert await _names(observer) == []
        assert await _names(observer) == ["a0", "a1"]

    async def test_the_first_of_several_that_fails_ends_it(self, observer: Database, open_tx: OpenTx) -> None:
        """What stood before it is done, what stands behind it is not run, and the transaction goes on."""
        add = "INSERT INTO suite_row (name) VALUES (?)"
        async with open_tx() as tx:
            with pytest.raises(errors.UniqueViolation):
                await tx.execute_all([(add, ("a",)), (add, ("a",)), (add, ("b",))])
            assert [row[0] for row in (await tx.execute("SELECT name FROM suite_row")).rows] == ["a"]
            await _add(tx, "c")
        assert await _names(observer) == ["a", "c"]

    @pytest.mark.parametrize("before", [0, 1])
    async def test_the_last_of_a_transaction(self, observer: Database, open_tx: OpenTx, before: int) -> None:
        """They are committed, be they also the first, and so is told who wants to know."""
        told: list[str] = []
        async with open_tx() as tx:
            for number in range(before):
                await _add(tx, f"a{number}")
            tx.after_commit(lambda: told.append("committed"))
            results = await tx.execute_all(
                [("INSERT INTO suite_row (name) VALUES (?)", ("b",)), ("SELECT name FROM suite_row ORDER BY name", ())],
                commit_within_s=30,
            )
            names = [row[0] for row in results[1].rows]
            assert names == [*(f"a{number}" for number in range(before)), "b"]
            assert told == []
        assert told == ["committed"]
        assert await _names(observer) == names

    async def test_the_last_of_several_that_fail(self, observer: Database, open_tx: OpenTx) -> None:
        """Nothing is committed, and the transaction goes on."""
        add = "INSERT INTO suite_row (name) VALUES (?)"
        async with open_tx() as tx:
            with pytest.raises(errors.UniqueViolation):
                await tx.execute_all([(add, ("a",)), (add, ("a",)), (add, ("b",))], commit_within_s=30)
            assert await _names(observer) == []
            await _add(tx, "c")
        assert await _names(observer) == ["a", "c"]

    @pytest.mark.parametrize("sql", ["SELECT 1; DELETE FROM suite_row", "CALL anything()", "SELECT 1;"])
    async def test_each_of_several_is_one_statement(self, observer: Database, open_tx: OpenTx, sql: str) -> None:
        """Else results and statements could not be told apart. Nothing is run then."""
        async with open_tx() as tx:
            await _add(tx, "a")
            with pytest.raises(errors.StatementFailed):
                await tx.execute_all([("DELETE FROM suite_row", ()), (sql, ())])
        assert await _names(observer) == ["a"]

    async def test_every_byte_survives(self, open_tx: OpenTx) -> None:
        """Bytes go in and come out unchanged, those that end a literal included."""
        raw = bytes(range(256)) + b"\\'\"; DROP TABLE suite_row; -- "
        async with open_tx() as tx:
            await tx.execute("INSERT INTO suite_row (name, raw) VALUES (?, ?)", ("a", raw))
            assert (await tx.execute("SELECT raw FROM suite_row WHERE raw = ?", (raw,))).rows == [(raw,)]

    async def test_enum_members_count_as_their_values(self, open_tx: OpenTx) -> None:
        """A member of an IntEnum or StrEnum, and a bool, is stored as what it stands for."""
        async with open_tx() as tx:
            await tx.execute("INSERT INTO suite_row (name, note, n) VALUES (?, ?, ?)", ("a", _Word.RED, _Level.HIGH))
            await tx.execute("INSERT INTO suite_row (name, n) VALUES (?, ?)", ("b", True))
            rows = (await tx.execute("SELECT note, n FROM suite_row ORDER BY name")).rows
        assert rows == [("red", 7), (None, 1)]

    async def test_a_float_keeps_its_bits(self, open_tx: OpenTx) -> None:
        """Also where its text needs an exponent."""
        async with open_tx() as tx:
            for value in (0.1, 1e300, -2.5e-308, 3.0):
                await tx.execute("DELETE FROM suite_row")
                await tx.execute("INSERT INTO suite_row (name, share) VALUES ('a', ?)", (value,))
                assert (await tx.execute("SELECT share FROM suite_row")).rows == [(value,)]

    async def test_marks_in_literals_and_comments_are_text(self, open_tx: OpenTx) -> None:
        """Only a question mark in the code is a placeholder, and a percent sign is one nowhere."""
        async with open_tx() as tx:
            sql = "SELECT '?', '100%', '%s', ? -- why? 5%\n /* 50% of ? */ WHERE 'it''s ?' LIKE 'it%' AND 7 % 4 = ?"
            assert (await tx.execute(sql, ("x", 3))).rows == [("?", "100%", "%s", "x")]

    @pytest.mark.parametrize("args", [(), (1, 2), (object(),), (bytearray(b"x"),), ([1],)])
    async def test_wrong_arguments_are_refused_before_anything_is_sent(self, open_tx: OpenTx, args: Any) -> None:
        """A wrong number or type is a TypeError; the transaction goes on."""
        async with open_tx() as tx:
            with pytest.raises(TypeError):
                await tx.execute("SELECT ?", args)
            assert (await tx.execute("SELECT ?", (1,))).rows == [(1,)]

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**63, -(2**63) - 1, "\ud800"])
    async def test_what_no_database_can_hold_is_refused(self, open_tx: OpenTx, value: float | str) -> None:
        """Not a number, more than 64 bits, half a surrogate: ValueError; the transaction goes on."""
        async with open_tx() as tx:
            with pytest.raises(ValueError):  # noqa: PT011 - the codec's own message for a surrogate
                await tx.execute("SELECT ?", (value,))
            assert (await tx.execute("SELECT ?", (1,))).rows == [(1,)]

    async def test_a_second_of_the_same_is_a_unique_violation(self, observer: Database, open_tx: OpenTx) -> None:
        """The transaction goes on, and no message holds the value."""
        async with open_tx() as tx:
            await _add(tx, "ann@example.org")
            with pytest.raises(errors.UniqueViolation) as caught:
                await _add(tx, "ann@example.org")
            await _add(tx, "b")
        assert "name" in str(getattr(caught.value, "constraint", ""))
        assert "example" not in f"{caught.value} {caught.value.facts}"
        assert await _names(observer) == ["ann@example.org", "b"]

    async def test_a_missing_or_forbidden_value_is_named(self, open_tx: OpenTx) -> None:
        """NOT NULL and CHECK are told apart, the column or constraint is named, the transaction goes on."""
        async with open_tx() as tx:
            with pytest.raises(errors.NotNullViolation) as missing:
                await tx.execute("INSERT INTO suite_row (name) VALUES (?)", (None,))
            with pytest.raises(errors.CheckViolation) as forbidden:
                await tx.execute("INSERT INTO suite_row (name, share) VALUES ('a', ?)", (-1.0,))
            await _add(tx, "a")
        assert (missing.value.constraint, forbidden.value.constraint) == ("name", "suite_share")

    async def test_a_mistake_in_sql_shows_the_statement_without_its_parameters(self, open_tx: OpenTx) -> None:
        """The driver's exception is the cause, the parameters are nowhere in our message."""
        async with open_tx() as tx:
            with pytest.raises(errors.StatementFailed) as caught:
                await tx.execute("SELEC nonsense, ?", ("secret-8431",))
        assert "SELEC nonsense" in str(caught.value)
        assert "8431" not in str(caught.value)
        assert caught.value.__cause__ is not None

    async def test_several_statements_in_one_text_are_refused(self, observer: Database, open_tx: OpenTx) -> None:
        """So an injected second statement has nowhere to run."""
        with pytest.raises(errors.StatementFailed):
            async with open_tx() as tx:
                await tx.execute("INSERT INTO suite_row (name) VALUES ('a'); DELETE FROM suite_row")
        assert await _names(observer) == []

    async def test_a_sum_of_integers_is_an_integer(self, open_tx: OpenTx) -> None:
        """MySQL's own answer would be a Decimal."""
        async with open_tx() as tx:
            await _add(tx, "a", 1)
            await _add(tx, "b", 2)
            total = (await tx.execute("SELECT SUM(n) FROM suite_row")).rows[0][0]
        assert (total, type(total)) == (3, int)

    async def test_results_tell_columns_and_counts(self, open_tx: OpenTx) -> None:
        """Names for rows, none for a writing statement; rowcount counts rows returned or changed."""
        async with open_tx() as tx:
            await _add(tx, "a", 1)
            await _add(tx, "b", 1)
            changed = await tx.execute("UPDATE suite_row SET n = n + 1")
            read = await tx.execute("SELECT name AS who, n FROM suite_row ORDER BY name")
            none = await tx.execute("DELETE FROM suite_row WHERE name = ?", ("nobody",))
        assert (changed.columns, changed.rows, changed.rowcount) == ((), [], 2)
        assert (read.columns, read.rows, read.rowcount) == (("who", "n"), [("a", 2), ("b", 2)], 2)
        assert none.rowcount == 0

    async def test_the_fragments_of_the_dialect_are_sql(self, open_tx: OpenTx) -> None:
        """Locks can be asked for, and the database's clock is ours in microseconds."""
        async with open_tx() as tx:
            await _add(tx, "a")
            locked = f"SELECT name FROM suite_row {tx.dialect.for_update}"
            assert (await tx.execute(locked)).rows == [("a",)]
            assert (await tx.execute(f"{locked} {tx.dialect.skip_locked}")).rows == [("a",)]
            now_us = (await tx.execute(f"SELECT {tx.dialect.now_us}")).rows[0][0]
        assert isinstance(now_us, int)
        assert abs(now_us - time.time_ns() // 1000) < 60_000_000

    async def test_after_commit_runs_in_order_and_only_then(self, open_tx: OpenTx) -> None:
        """A function that fails stops neither the others nor the caller."""
        calls: list[str] = []
        async with open_tx() as tx:
            tx.after_commit(lambda: calls.append("first"))
            tx.after_commit(_fail)
            tx.after_commit(lambda: calls.append("second"))
            await _add(tx, "a")
            assert calls == []
        assert calls == ["first", "second"]

    async def test_after_commit_takes_no_coroutine_function(self, open_tx: OpenTx) -> None:
        """It would never be awaited."""

        async def later() -> None: ...

        async with open_tx() as tx:
            with pytest.raises(TypeError):
                tx.after_commit(later)  # type: ignore[arg-type]

    async def test_a_rollback_drops_what_was_to_follow_the_commit(self, open_tx: OpenTx) -> None:
        """Nothing was committed, so nothing follows."""
        calls: list[str] = []
        with pytest.raises(_Stop):
            async with open_tx() as tx:
                tx.after_commit(lambda: calls.append("never"))
                raise _Stop
        assert calls == []

    async def test_a_savepoint_fails_alone(self, observer: Database, open_tx: OpenTx) -> None:
        """Its statements and its after_commit functions go, those before and after stay."""
        calls: list[str] = []
        async with open_tx() as tx:
            await _add(tx, "before")
            tx.after_commit(lambda: calls.append("before"))
            with pytest.raises(_Stop):
                async with self.savepoint(tx):
                    await _add(tx, "inside")
                    tx.after_commit(lambda: calls.append("inside"))
                    async with self.savepoint(tx):
                        tx.after_commit(lambda: calls.append("deeper, released, and yet undone"))
                    raise _Stop
            async with self.savepoint(tx):
                await _add(tx, "kept")
                tx.after_commit(lambda: calls.append("kept"))
            with pytest.raises(errors.UniqueViolation):
                async with self.savepoint(tx):
                    await _add(tx, "before")
            await _add(tx, "zulu")
        assert await _names(observer) == ["before", "kept", "zulu"]
        assert calls == ["before", "kept"]

    @pytest.mark.parametrize("before", [0, 1])
    async def test_one_that_can_only_be_rolled_back(self, observer: Database, open_tx: OpenTx, before: int) -> None:
        """Every call and leaving are refused with the first cause; nothing is kept and nothing follows."""
        first, calls = _Stop(), list[str]()
        with pytest.raises(errors.TransactionAborted) as left:
            async with open_tx() as tx:
                for number in range(before):
                    await _add(tx, f"a{number}")
                tx.after_commit(lambda: calls.append("never"))
                for because in (first, ValueError()):
                    tx.set_rollback_only(because)
                for call in (_add(tx, "b"), tx.execute_all([("SELECT 1", ())], commit_within_s=30)):
                    with pytest.raises(errors.TransactionAborted) as refused:
                        await call
                    assert refused.value.__cause__ is first
                with pytest.raises(errors.TransactionAborted):
                    tx.after_commit(lambda: calls.append("never"))
        assert left.value.__cause__ is first
        assert (calls, await _names(observer)) == ([], [])

    async def test_a_savepoint_does_not_save_what_can_only_be_rolled_back(
        self, observer: Database, open_tx: OpenTx
    ) -> None:
        """Who left half of something did so in the whole, wherever it was said."""
        with pytest.raises(errors.TransactionAborted) as left:
            async with open_tx() as tx:
                await _add(tx, "a")
                with pytest.raises(_Stop) as because:
                    async with self.savepoint(tx):
                        await _add(tx, "inside")
                        tx.set_rollback_only(stop := _Stop())
                        raise stop
                with pytest.raises(errors.TransactionAborted):
                    await _add(tx, "b")
        assert left.value.__cause__ is because.value
        assert await _names(observer) == []

    async def test_what_fails_as_a_whole_can_only_be_rolled_back(self, observer: Database, open_tx: OpenTx) -> None:
        """But for the one way in which it says that it has left nothing."""
        with pytest.raises(errors.TransactionAborted) as left:
            async with open_tx() as tx:
                with pytest.raises(KeyError), whole(tx, but=KeyError):
                    raise KeyError
                await _add(tx, "a")
                with pytest.raises(asyncio.CancelledError) as because, whole(tx, but=KeyError):
                    raise asyncio.CancelledError
        assert left.value.__cause__ is because.value
        assert await _names(observer) == []

    async def test_calls_at_once_in_one_take_turns(self, observer: Database, open_tx: OpenTx) -> None:
        """Each finds what the one before has written. Those from within one wait for nobody but each other."""

        async def add(tx: Tx) -> None:
            known = await _names_in(tx)
            await _add(tx, f"n{len(known)}")

        async def add_two(tx: Tx) -> None:
            await asyncio.gather(*(observer.run(add, tx=tx) for _ in range(2)))

        async with asyncio.timeout(10), open_tx() as tx:
            await asyncio.gather(*(observer.run(add_two, tx=tx) for _ in range(2)))
        assert await _names(observer) == ["n0", "n1", "n2", "n3"]

    async def test_what_has_ended_is_beyond_rolling_back(self, observer: Database, open_tx: OpenTx) -> None:
        """To say so then changes nothing, neither for it nor for the next."""
        async with open_tx() as tx:
            await _add(tx, "a")
        tx.set_rollback_only(_Stop())
        with pytest.raises(errors.TransactionAborted, match="left"):
            await tx.execute("SELECT 1")
        async with open_tx() as tx:
            await _add(tx, "b")
        assert await _names(observer) == ["a", "b"]


class DatabaseConformance:
    """What a :class:`daydo_db.Database` keeps to on every back end; needs the fixture ``database_url``."""

    @pytest.fixture
    async def db(self, database_url: str) -> AsyncIterator[Database]:
        async with Database(database_url) as db:
            for statement in _SUITE_TABLE[db.dialect.name]:
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
        assert await _names(db) == []

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
            assert await db.run(_names_in, tx=tx) == []
        await db.execute("DELETE FROM suite_row")

    async def test_run_with_tx_neither_commits_nor_repeats(self, db: Database) -> None:
        """The caller's transaction is the caller's."""
        calls = 0

        async def fail(tx: Tx) -> None:
            nonlocal calls
            calls += 1
            await _add(tx, "a")
            raise errors.Deadlock()

        with pytest.raises(errors.Deadlock):
            async with db.transaction() as tx:
                await db.run(fail, tx=tx)
        assert (calls, await _names(db)) == (1, [])

    @pytest.mark.parametrize("error", [errors.Deadlock, errors.LockTimeout, errors.ConnectionLost])
    async def test_run_repeats_what_the_server_undid(self, db: Database, error: type[errors.DbError]) -> None:
        """Each time from the start, and only the last try is kept."""
        tries = 0

        async def third_time_lucky(tx: Tx) -> int:
            nonlocal tries
            tries += 1
            await _add(tx, f"try{tries}")
            if tries < 3:
                raise error()
            return tries

        assert await db.run(third_time_lucky) == 3
        assert await _names(db) == ["try3"]

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
            assert await _names(db) == []
            await tx.execute_all([(add, ("c",))], commit_within_s=30)
        assert await _names(db) == ["a", "b", "c"]

    async def test_run_does_not_repeat_what_it_has_committed_itself(self, db: Database) -> None:
        """What fails afterwards, another database say, fails; the row is there once."""

        async def commit_then_fail(tx: Tx) -> None:
            await tx.execute_all([("INSERT INTO suite_row (name) VALUES (?)", ("a",))], commit_within_s=30)
            raise errors.Deadlock()

        with pytest.raises(errors.Deadlock):
            await db.run(commit_then_fail)
        assert await _names(db) == ["a"]

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
            await asyncio.gather(*(_add(tx, f"{number:02}") for number in range(20)))
        assert len(await _names(db)) == 20

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
            await _add(tx, "a")
            with pytest.raises(errors.StatementFailed):
                await tx.execute(verb.lower())
        assert await _names(db) == ["a"]

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
        assert set(await _names(db)) == {"after _long_statement", "after sleep"}

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
                await _add(tx, "a")

        task = asyncio.create_task(change())
        await committing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (calls, await _names(db), db._writers.in_use) == (["committed"], ["a"], 0)

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
            await _add(tx, "a")
        with pytest.raises(_Stop):
            async with db.transaction():
                raise _Stop
        health = await db.health()
        assert (health.status, health.detail["dialect"]) == ("ok", db.dialect.name)
        families = {family.name: family for family in db.metrics.snapshot()}
        outcomes = {cell.labels[0]: cell.values[0] for cell in families["daydo_db_transactions_total"].cells}
        assert outcomes == {"committed": 1, "rolled_back": 1, "aborted": 0, "unknown": 0}


OpenTx = Callable[[], AbstractAsyncContextManager[Tx]]

_SUITE_TABLE = {
    "sqlite": (
        """CREATE TABLE suite_row (
             id INTEGER PRIMARY KEY, name TEXT NOT NULL, n INTEGER, share REAL, note TEXT, raw BLOB,
             CONSTRAINT suite_name UNIQUE (name), CONSTRAINT suite_share CHECK (share >= -0.5))""",
        "CREATE TABLE suite_part (id INTEGER PRIMARY KEY, row_id INTEGER NOT NULL REFERENCES suite_row (id))",
    ),
    "mysql": (
        """CREATE TABLE suite_row (
             id BIGINT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(100) NOT NULL, n BIGINT, share DOUBLE,
             note TEXT CHARACTER SET utf8mb4, raw BLOB,
             CONSTRAINT suite_name UNIQUE (name), CONSTRAINT suite_share CHECK (share >= -0.5)) ENGINE=InnoDB""",
        """CREATE TABLE suite_part (
             id BIGINT AUTO_INCREMENT PRIMARY KEY, row_id BIGINT NOT NULL,
             CONSTRAINT suite_points FOREIGN KEY (row_id) REFERENCES suite_row (id)) ENGINE=InnoDB""",
    ),
}


class _Stop(Exception):
    """Raised by a test to leave a block."""


class _Word(enum.StrEnum):
    RED = "red"


class _Level(enum.IntEnum):
    HIGH = 7


async def _add(tx: Tx, name: str, n: int = 0) -> None:
    await tx.execute("INSERT INTO suite_row (name, n) VALUES (?, ?)", (name, n))


async def _names(db: Database) -> list[str]:
    return [name for (name,) in (await db.query("SELECT name FROM suite_row ORDER BY name")).rows]


async def _names_in(tx: Tx) -> list[tuple[str]]:
    return (await tx.execute("SELECT name FROM suite_row")).rows


async def _nothing(tx: Tx) -> None:
    return None


def _fail() -> None:
    raise _Stop


async def _hold(db: Database, wait: Callable[[Any], Awaitable[Any]], reached: asyncio.Event) -> None:
    async with db.transaction() as tx:
        await _add(tx, "held")
        reached.set()
        await wait(60 if wait is asyncio.sleep else tx.execute)


async def _long_statement(execute: Callable[[str], Awaitable[Result]]) -> Result:
    """Several seconds of work for either server, by SQL that both read."""
    return await execute(
        "WITH RECURSIVE step (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM step WHERE n < 999) "
        "SELECT COUNT(*) FROM step a, step b, step c WHERE a.n * b.n * c.n % 7 = 8"
    )

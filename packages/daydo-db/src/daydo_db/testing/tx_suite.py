# ruff: noqa: PT012, S608 - the block that raises is the test; fragments of a dialect belong in statements
"""What every transaction passes. Needs pytest-asyncio in auto mode; subclass it and give the fixtures it names."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from daydo_db import errors
from daydo_db.database import Database
from daydo_db.turns import whole
from daydo_db.tx import Tx

from .suite_rows import SUITE_TABLE, Stop, add_row, names_in, names_of

OpenTx = Callable[[], AbstractAsyncContextManager[Tx]]


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
        for statement in SUITE_TABLE[observer.dialect.name]:
            await observer.execute(statement)

    async def test_a_change_shows_to_others_once_it_is_committed(self, observer: Database, open_tx: OpenTx) -> None:
        """Before the commit others read the old state, afterwards the new."""
        async with open_tx() as tx:
            await add_row(tx, "a", 1)
            assert (await tx.execute("SELECT name, n FROM suite_row")).rows == [("a", 1)]
            assert await names_of(observer) == []
        assert await names_of(observer) == ["a"]

    async def test_an_exception_undoes_everything(self, observer: Database, open_tx: OpenTx) -> None:
        """The exception passes on, nothing is kept."""
        with pytest.raises(Stop):
            async with open_tx() as tx:
                await add_row(tx, "a")
                raise Stop
        assert await names_of(observer) == []

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
            assert await names_of(observer) == []
        assert await names_of(observer) == ["a0", "a1"]

    async def test_the_first_of_several_that_fails_ends_it(self, observer: Database, open_tx: OpenTx) -> None:
        """What stood before it is done, what stands behind it is not run, and the transaction goes on."""
        add = "INSERT INTO suite_row (name) VALUES (?)"
        async with open_tx() as tx:
            with pytest.raises(errors.UniqueViolation):
                await tx.execute_all([(add, ("a",)), (add, ("a",)), (add, ("b",))])
            assert [row[0] for row in (await tx.execute("SELECT name FROM suite_row")).rows] == ["a"]
            await add_row(tx, "c")
        assert await names_of(observer) == ["a", "c"]

    @pytest.mark.parametrize("before", [0, 1])
    async def test_the_last_of_a_transaction(self, observer: Database, open_tx: OpenTx, before: int) -> None:
        """They are committed, be they also the first, and so is told who wants to know."""
        told: list[str] = []
        async with open_tx() as tx:
            for number in range(before):
                await add_row(tx, f"a{number}")
            tx.after_commit(lambda: told.append("committed"))
            results = await tx.execute_all(
                [("INSERT INTO suite_row (name) VALUES (?)", ("b",)), ("SELECT name FROM suite_row ORDER BY name", ())],
                commit_within_s=30,
            )
            names = [row[0] for row in results[1].rows]
            assert names == [*(f"a{number}" for number in range(before)), "b"]
            assert told == []
        assert told == ["committed"]
        assert await names_of(observer) == names

    async def test_the_last_of_several_that_fail(self, observer: Database, open_tx: OpenTx) -> None:
        """Nothing is committed, and the transaction goes on."""
        add = "INSERT INTO suite_row (name) VALUES (?)"
        async with open_tx() as tx:
            with pytest.raises(errors.UniqueViolation):
                await tx.execute_all([(add, ("a",)), (add, ("a",)), (add, ("b",))], commit_within_s=30)
            assert await names_of(observer) == []
            await add_row(tx, "c")
        assert await names_of(observer) == ["a", "c"]

    @pytest.mark.parametrize("sql", ["SELECT 1; DELETE FROM suite_row", "CALL anything()", "SELECT 1;"])
    async def test_each_of_several_is_one_statement(self, observer: Database, open_tx: OpenTx, sql: str) -> None:
        """Else results and statements could not be told apart. Nothing is run then."""
        async with open_tx() as tx:
            await add_row(tx, "a")
            with pytest.raises(errors.StatementFailed):
                await tx.execute_all([("DELETE FROM suite_row", ()), (sql, ())])
        assert await names_of(observer) == ["a"]

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
            await add_row(tx, "ann@example.org")
            with pytest.raises(errors.UniqueViolation) as caught:
                await add_row(tx, "ann@example.org")
            await add_row(tx, "b")
        assert "name" in str(getattr(caught.value, "constraint", ""))
        assert "example" not in f"{caught.value} {caught.value.facts}"
        assert await names_of(observer) == ["ann@example.org", "b"]

    async def test_a_missing_or_forbidden_value_is_named(self, open_tx: OpenTx) -> None:
        """NOT NULL and CHECK are told apart, the column or constraint is named, the transaction goes on."""
        async with open_tx() as tx:
            with pytest.raises(errors.NotNullViolation) as missing:
                await tx.execute("INSERT INTO suite_row (name) VALUES (?)", (None,))
            with pytest.raises(errors.CheckViolation) as forbidden:
                await tx.execute("INSERT INTO suite_row (name, share) VALUES ('a', ?)", (-1.0,))
            await add_row(tx, "a")
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
        assert await names_of(observer) == []

    async def test_a_sum_of_integers_is_an_integer(self, open_tx: OpenTx) -> None:
        """MySQL's own answer would be a Decimal."""
        async with open_tx() as tx:
            await add_row(tx, "a", 1)
            await add_row(tx, "b", 2)
            total = (await tx.execute("SELECT SUM(n) FROM suite_row")).rows[0][0]
        assert (total, type(total)) == (3, int)

    async def test_results_tell_columns_and_counts(self, open_tx: OpenTx) -> None:
        """Names for rows, none for a writing statement; rowcount counts rows returned or changed."""
        async with open_tx() as tx:
            await add_row(tx, "a", 1)
            await add_row(tx, "b", 1)
            changed = await tx.execute("UPDATE suite_row SET n = n + 1")
            read = await tx.execute("SELECT name AS who, n FROM suite_row ORDER BY name")
            none = await tx.execute("DELETE FROM suite_row WHERE name = ?", ("nobody",))
        assert (changed.columns, changed.rows, changed.rowcount) == ((), [], 2)
        assert (read.columns, read.rows, read.rowcount) == (("who", "n"), [("a", 2), ("b", 2)], 2)
        assert none.rowcount == 0

    async def test_the_fragments_of_the_dialect_are_sql(self, open_tx: OpenTx) -> None:
        """Locks can be asked for, and the database's clock is ours in microseconds."""
        async with open_tx() as tx:
            await add_row(tx, "a")
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
            await add_row(tx, "a")
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
        with pytest.raises(Stop):
            async with open_tx() as tx:
                tx.after_commit(lambda: calls.append("never"))
                raise Stop
        assert calls == []

    async def test_a_savepoint_fails_alone(self, observer: Database, open_tx: OpenTx) -> None:
        """Its statements and its after_commit functions go, those before and after stay."""
        calls: list[str] = []
        async with open_tx() as tx:
            await add_row(tx, "before")
            tx.after_commit(lambda: calls.append("before"))
            with pytest.raises(Stop):
                async with self.savepoint(tx):
                    await add_row(tx, "inside")
                    tx.after_commit(lambda: calls.append("inside"))
                    async with self.savepoint(tx):
                        tx.after_commit(lambda: calls.append("deeper, released, and yet undone"))
                    raise Stop
            async with self.savepoint(tx):
                await add_row(tx, "kept")
                tx.after_commit(lambda: calls.append("kept"))
            with pytest.raises(errors.UniqueViolation):
                async with self.savepoint(tx):
                    await add_row(tx, "before")
            await add_row(tx, "zulu")
        assert await names_of(observer) == ["before", "kept", "zulu"]
        assert calls == ["before", "kept"]

    @pytest.mark.parametrize("before", [0, 1])
    async def test_one_that_can_only_be_rolled_back(self, observer: Database, open_tx: OpenTx, before: int) -> None:
        """Every call and leaving are refused with the first cause; nothing is kept and nothing follows."""
        first, calls = Stop(), list[str]()
        with pytest.raises(errors.TransactionAborted) as left:
            async with open_tx() as tx:
                for number in range(before):
                    await add_row(tx, f"a{number}")
                tx.after_commit(lambda: calls.append("never"))
                for because in (first, ValueError()):
                    tx.set_rollback_only(because)
                for call in (add_row(tx, "b"), tx.execute_all([("SELECT 1", ())], commit_within_s=30)):
                    with pytest.raises(errors.TransactionAborted) as refused:
                        await call
                    assert refused.value.__cause__ is first
                with pytest.raises(errors.TransactionAborted):
                    tx.after_commit(lambda: calls.append("never"))
        assert left.value.__cause__ is first
        assert (calls, await names_of(observer)) == ([], [])

    async def test_a_savepoint_does_not_save_what_can_only_be_rolled_back(
        self, observer: Database, open_tx: OpenTx
    ) -> None:
        """Who left half of something did so in the whole, wherever it was said."""
        with pytest.raises(errors.TransactionAborted) as left:
            async with open_tx() as tx:
                await add_row(tx, "a")
                with pytest.raises(Stop) as because:
                    async with self.savepoint(tx):
                        await add_row(tx, "inside")
                        tx.set_rollback_only(stop := Stop())
                        raise stop
                with pytest.raises(errors.TransactionAborted):
                    await add_row(tx, "b")
        assert left.value.__cause__ is because.value
        assert await names_of(observer) == []

    async def test_what_fails_as_a_whole_can_only_be_rolled_back(self, observer: Database, open_tx: OpenTx) -> None:
        """But for the one way in which it says that it has left nothing."""
        with pytest.raises(errors.TransactionAborted) as left:
            async with open_tx() as tx:
                with pytest.raises(KeyError), whole(tx, but=KeyError):
                    raise KeyError
                await add_row(tx, "a")
                with pytest.raises(asyncio.CancelledError) as because, whole(tx, but=KeyError):
                    raise asyncio.CancelledError
        assert left.value.__cause__ is because.value
        assert await names_of(observer) == []

    async def test_calls_at_once_in_one_take_turns(self, observer: Database, open_tx: OpenTx) -> None:
        """Each finds what the one before has written. Those from within one wait for nobody but each other."""

        async def add(tx: Tx) -> None:
            known = await names_in(tx)
            await add_row(tx, f"n{len(known)}")

        async def add_two(tx: Tx) -> None:
            await asyncio.gather(*(observer.run(add, tx=tx) for _ in range(2)))

        async with asyncio.timeout(10), open_tx() as tx:
            await asyncio.gather(*(observer.run(add_two, tx=tx) for _ in range(2)))
        assert await names_of(observer) == ["n0", "n1", "n2", "n3"]

    async def test_what_has_ended_is_beyond_rolling_back(self, observer: Database, open_tx: OpenTx) -> None:
        """To say so then changes nothing, neither for it nor for the next."""
        async with open_tx() as tx:
            await add_row(tx, "a")
        tx.set_rollback_only(Stop())
        with pytest.raises(errors.TransactionAborted, match="left"):
            await tx.execute("SELECT 1")
        async with open_tx() as tx:
            await add_row(tx, "b")
        assert await names_of(observer) == ["a", "b"]


class _Word(enum.StrEnum):
    RED = "red"


class _Level(enum.IntEnum):
    HIGH = 7


def _fail() -> None:
    raise Stop

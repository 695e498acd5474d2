"""Loading by many keys, and the counter that tells it from one statement per row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from daydo_db import SQLITE, Database, StatementFailed, load_many
from daydo_db.testing import count_statements

TAGS = "SELECT note_id, word FROM tag WHERE note_id IN (:keys) ORDER BY word"


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as db:
        text = "VARCHAR(20) NOT NULL" if db.dialect is SQLITE else "VARCHAR(20) COLLATE utf8mb4_general_ci NOT NULL"
        await db.execute(f"CREATE TABLE tag (note_id BIGINT NOT NULL, word {text}, PRIMARY KEY (note_id, word))")
        await db.execute("INSERT INTO tag VALUES (1, 'b'), (1, 'a'), (2, 'c'), (4, 'd'), (5, 'e')")
        yield db


async def test_every_key_has_its_rows_in_order_and_a_missing_one_has_none(db: Database) -> None:
    """Named twice is asked once; the answer is in the order of the keys."""
    with count_statements(db, at_most=1):
        found = await load_many(db, TAGS, [5, 3, 1, 5])
    assert list(found.items()) == [(5, [(5, "e")]), (3, []), (1, [(1, "a"), (1, "b")])]


async def test_no_keys_are_no_statement(db: Database) -> None:
    """``IN ()`` is an error everywhere but on SQLite."""
    with count_statements(db, at_most=0):
        assert await load_many(db, TAGS, []) == {}


async def test_many_keys_are_read_in_batches_and_in_few_texts(db: Database) -> None:
    """A hundred sizes of list share a handful of statements, so caches and slow logs stay small."""
    with count_statements(db) as statements:
        for count in (1, 2, 3, 100):
            found = await load_many(db, TAGS, range(1, count + 1), batch=8)
            assert sum(map(len, found.values())) == (2, 3, 3, 5)[(1, 2, 3, 100).index(count)]
    assert len(statements) == 3 + 13
    assert len({sent.statement.text for sent in statements}) == 4, "1, 2, 4 and 8 keys"


async def test_other_placeholders_keep_their_places_inside_a_transaction(db: Database) -> None:
    """Before the keys and after them; the transaction's own rows are found."""
    select = "SELECT note_id, word FROM tag WHERE word <> ? AND note_id IN (:keys) AND word <> ?"
    async with db.transaction() as tx:
        await tx.execute("INSERT INTO tag VALUES (7, 'new')")
        assert await load_many(tx, select, [7, 1, 2], ["a", "c"]) == {7: [(7, "new")], 1: [(1, "b")], 2: []}


async def test_rows_that_belong_to_nobody_are_an_error(db: Database) -> None:
    """The key is not the first column, or a collation takes another key for it: silence would lose rows."""
    with pytest.raises(ValueError, match="not asked for"):
        await load_many(db, "SELECT word, note_id FROM tag WHERE note_id IN (:keys)", [1])
    with pytest.raises(ValueError, match=":keys"):
        await load_many(db, "SELECT 1", [1])
    if db.dialect is not SQLITE:
        with pytest.raises(ValueError, match="not asked for"):
            await load_many(db, "SELECT word FROM tag WHERE word IN (:keys)", ["A"])


async def test_one_statement_per_row_is_noticed_and_told(db: Database) -> None:
    """The message has every statement, without its arguments and without what a transaction needs anyway."""

    async def read_each() -> None:
        async with db.transaction() as tx:
            for note_id in (1, 2):
                async with tx.savepoint():
                    await tx.execute("SELECT word\n  FROM tag WHERE note_id = ?", [note_id])
        await db.query("SELECT 'last'")

    with pytest.raises(AssertionError) as told, count_statements(db, at_most=2):
        await read_each()
    text = str(told.value)
    assert text.startswith("at most 2 were allowed")
    assert text.count("SELECT word FROM tag WHERE note_id =") == 2
    assert text.endswith("SELECT 'last'")


async def test_a_failure_in_the_block_is_not_covered_up_by_the_count(db: Database) -> None:
    """What went wrong first is what the test shows."""
    with pytest.raises(StatementFailed), count_statements(db, at_most=0):
        await asyncio.gather(db.query("SELECT 1"), db.query("SELECT nothing"))


async def test_counted_are_this_task_and_those_it_starts(db: Database) -> None:
    """A sweeper beside the test changes nothing, unless everybody is asked for."""
    go = asyncio.Event()

    async def sweeper() -> None:
        await go.wait()
        await db.query("SELECT 'sweeper'")

    sweeping = asyncio.create_task(sweeper())
    with count_statements(db) as ours, count_statements(db, any_task=True) as everybody:
        go.set()
        await asyncio.gather(sweeping, db.query("SELECT 1"), db.query("SELECT 2"))
    await db.query("SELECT 'afterwards'")
    assert (len(ours), len(everybody)) == (2, 3)

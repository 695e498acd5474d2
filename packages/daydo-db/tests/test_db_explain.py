"""Plans as the server makes them: what scans, what sorts, what was read for what was returned."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from daydo_db import Database
from daydo_db.explain import EXAMPLES_MAX, Examined, examine, recording
from daydo_db.fingerprint import fingerprint
from daydo_db.plan import MANY_ROWS, explaining, read_plan
from daydo_db.tx import Result, compile_statement

ROWS = 2_000


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """Orders of ten customers, one row in two with a note; customers without an index but their key."""
    async with Database(database_url) as db:
        await db.execute("CREATE TABLE customer (id INTEGER PRIMARY KEY, name VARCHAR(40) NOT NULL)")
        await db.execute(
            "CREATE TABLE purchase (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL, n INTEGER NOT NULL, "
            "note VARCHAR(100) NOT NULL)"
        )
        await db.execute("CREATE INDEX purchase_customer ON purchase (customer_id, n)")
        for first in range(0, ROWS, 500):
            rows = [(i, i % 10, i * 7 % ROWS, f"note {i}") for i in range(first, first + 500)]
            marks = ", ".join(["(?, ?, ?, ?)"] * len(rows))
            await db.execute(f"INSERT INTO purchase VALUES {marks}", [value for row in rows for value in row])
            names = [value for i in range(first, first + 500) for value in (i, f"n{i}")]
            await db.execute(f"INSERT INTO customer VALUES {', '.join(['(?, ?)'] * 500)}", names)
        if db.dialect.name == "mysql":
            await db.execute("ANALYZE TABLE customer, purchase")
        yield db


async def one(db: Database, sql: str, *args: int | str) -> Examined:
    with recording(db) as workload:
        await db.query(sql, args)
    [examined] = await examine(db, workload)
    return examined


SCANNING = {
    "SELECT id FROM customer WHERE name = ?": "customer",
    "SELECT COUNT(*) FROM customer c WHERE c.name LIKE ?": "customer",
    "SELECT p.id FROM purchase p JOIN customer AS c ON c.id = p.customer_id WHERE p.note = ?": "purchase",
    "SELECT x.n FROM (SELECT n FROM purchase WHERE note = ?) x": "purchase",
    "SELECT id FROM customer WHERE id = (SELECT COUNT(*) FROM purchase WHERE note = ?)": "purchase",
    "SELECT SUM(n) FROM purchase WHERE ? <> ''": "purchase",
}
SEEKING = (
    "SELECT name FROM customer WHERE id = ?",
    "SELECT n FROM purchase WHERE customer_id = ? AND n < 100",
    "SELECT p.id FROM purchase p JOIN customer c ON c.id = p.customer_id WHERE p.customer_id = ? AND p.n < 100",
    "SELECT id FROM customer WHERE id IN (?, 3, 5)",
    "SELECT c.id FROM (SELECT n FROM purchase WHERE customer_id = ? LIMIT 5) x JOIN customer c ON c.id = x.n",
    "SELECT MIN(n), 1 FROM purchase WHERE customer_id = ?",
    "SELECT 1 WHERE 1 = ?",
    "SELECT name FROM customer WHERE id = ? UNION ALL SELECT 'x'",
)
WRITING = {
    "UPDATE customer SET name = 'x' WHERE id = ?": (),
    "DELETE FROM customer WHERE id = ?": (),
    "DELETE FROM customer WHERE LENGTH(name) > ?": ("customer",),
    "INSERT INTO customer VALUES (?, 'new')": (),
    "INSERT INTO customer SELECT id + 100000, name FROM customer WHERE LENGTH(name) < ?": ("customer",),
}


async def test_a_table_or_an_index_read_from_end_to_end_is_a_scan(db: Database) -> None:
    """Under its own name, whatever alias the statement gives it, and wherever in the statement it stands."""
    for sql, table in SCANNING.items():
        examined = await one(db, sql, "note 7")
        assert examined.plan.scans == (table,), sql
        assert examined.rows_read is None or examined.rows_read >= ROWS, sql


async def test_what_goes_through_an_index_is_no_scan(db: Database) -> None:
    """Nor are rows that the statement has put aside itself, or a statement without a table."""
    for sql in SEEKING:
        examined = await one(db, sql, 4)
        assert examined.plan.scans == (), sql
        assert examined.rows_read is None or examined.rows_read < ROWS / 10, sql


async def test_a_writing_statement_is_examined_and_undone(db: Database) -> None:
    """It runs a second time only to be rolled back."""

    async def everything() -> list[object]:
        return [(await db.query(f"SELECT * FROM {table} ORDER BY id")).rows for table in ("customer", "purchase")]

    for sql, scans in WRITING.items():
        with recording(db) as workload:
            async with db.transaction() as tx:
                await tx.execute(sql, (900_000,))
                await tx.execute("DELETE FROM customer WHERE id >= 100000")
        before = await everything()
        [examined] = await examine(db, workload.only(fingerprint(db.dialect.name, sql).text))
        assert await everything() == before, sql
        assert examined.plan.scans == scans, sql


@pytest.mark.dialect("mysql")
async def test_rows_read_are_those_of_the_statement_alone(db: Database) -> None:
    """One by key, a hundred by range, all without an index; what was asked before does not count."""
    assert (await one(db, "SELECT name FROM customer WHERE id = ?", 5)).rows_read == 1
    by_range = await one(db, "SELECT id FROM customer WHERE id >= ? AND id < 200", 100)
    assert by_range.rows_returned == 100
    assert by_range.rows_read is not None
    assert 100 <= by_range.rows_read <= 102


async def test_sorting_is_seen(db: Database) -> None:
    """Of many rows on MySQL; SQLite does not say of how many. An order that an index has is no sort."""
    assert (await one(db, "SELECT id FROM purchase WHERE id > ? ORDER BY note", -1)).plan.sorts
    assert not (await one(db, "SELECT n FROM purchase WHERE customer_id = ? ORDER BY n LIMIT 5", 4)).plan.sorts


async def test_an_index_that_comes_or_goes_shows_at_once(db: Database) -> None:
    """Also on a connection that has explained the statement before."""
    with recording(db) as workload:
        await db.query("SELECT id FROM customer WHERE name = ?", ("n7",))
    assert [examined.plan.scans for examined in await examine(db, workload)] == [("customer",)]
    await db.execute("CREATE INDEX customer_name ON customer (name)")
    assert [examined.plan.scans for examined in await examine(db, workload)] == [()]
    await db.execute("DROP INDEX customer_name" + (" ON customer" if db.dialect.name == "mysql" else ""))
    assert [examined.plan.scans for examined in await examine(db, workload)] == [("customer",)]


async def test_of_several_examples_the_worst_counts(db: Database) -> None:
    """The same statement for another customer may be another plan; as many executions as you like cost no memory."""
    sql = "SELECT id FROM purchase WHERE customer_id = ? AND n >= ?"
    with recording(db) as workload:
        for least in (1_990, 1_000, 0, 1_999, 1_500, 1_998):
            await db.query(sql, (3, least))
    [examples] = workload.examples.values()
    assert len(examples) == EXAMPLES_MAX
    assert [example.args for example in examples] == [(3, 1_990), (3, 0), (3, 1_998)]
    [examined] = await examine(db, workload)
    if examined.rows_read is not None:
        assert examined.rows_returned == 200


async def test_an_insert_that_was_kept_is_examined_all_the_same(db: Database) -> None:
    """The second time it breaks a constraint, which says nothing about its plan."""
    with recording(db) as workload:
        await db.execute("INSERT INTO customer VALUES (?, ?)", (900_000, "new"))
    [examined] = await examine(db, workload)
    assert examined.rows_returned == 0
    assert examined.plan.scans == ()


async def test_a_recording_knows_who_asked(db: Database) -> None:
    """The file and line of the call, through however many functions; calls of this package are left out."""
    with recording(db) as workload:
        await one(db, "SELECT 1 WHERE 1 = ?", 1)
    files = {file for file, _ in workload.callers}
    assert __file__ in files
    assert not any("daydo_db/telemetry" in file for file in files)


async def test_control_statements_and_explanations_are_not_recorded(db: Database) -> None:
    """They have no plan."""
    with recording(db) as workload:
        async with db.transaction():
            pass
        await db.query("EXPLAIN SELECT 1")
    assert workload.examples == {}
    assert explaining("mysql", compile_statement("mysql", "COMMIT")) is None


@pytest.mark.parametrize(
    ("details", "scans"),
    [
        (["SCAN TABLE customer AS c"], ("customer",)),
        (["SCAN customer"], ("customer",)),
        (["SEARCH customer"], ("customer",)),
        (["SEARCH customer USING COVERING INDEX customer_name"], ()),
        (["SEARCH customer USING AUTOMATIC COVERING INDEX (id=?)"], ("customer",)),
        (["SCAN CONSTANT ROW", "SCAN 2 CONSTANT ROWS", "SCAN SUBQUERY 1", "SCAN 3-ROW VALUES CLAUSE"], ()),
        (["SCAN json_each VIRTUAL TABLE INDEX 1:"], ()),
        (["CO-ROUTINE x", "SCAN x"], ()),
        (["SCAN x"], ("x",)),
    ],
)
def test_how_several_versions_of_sqlite_write_it(details: list[str], scans: tuple[str, ...]) -> None:
    """Older ones say TABLE and AS."""
    rows = [(number, 0, 0, detail) for number, detail in enumerate(details)]
    plan = read_plan(
        "sqlite", "SELECT ? FROM customer c", Result(("id", "parent", "notused", "detail"), rows, len(rows))
    )
    assert plan.scans == scans


def test_a_short_index_read_whole_is_no_fault_and_a_long_one_is() -> None:
    """The first page in the order of a key reads the index from its end, and stops."""
    columns = ("id", "select_type", "table", "type", "key", "rows", "Extra")
    for rows, scans in ((MANY_ROWS - 1, ()), (MANY_ROWS, ("t",))):
        result = Result(columns, [(1, "SIMPLE", "t", "index", "PRIMARY", rows, None)], 1)
        assert read_plan("mysql", "SELECT a FROM t ORDER BY id LIMIT ?", result).scans == scans

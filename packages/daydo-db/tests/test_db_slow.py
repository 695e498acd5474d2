"""Slow statements are counted, told once with their plan, and never held up for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from daydo_db import Database, DatabaseConfig, Deadlock, QueryTimeout, Transaction
from daydo_db.fingerprint import fingerprint, normalise
from daydo_db.tx import compile_statement
from daydo_kernel import Event
from daydo_kernel.testing import RecordedEvents

EVERYTHING_S = 1e-9
NAME = "ann@example.com"


class Told(RecordedEvents):
    """A sink that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()

    async def emit(self, event: Event, tx: Any = None) -> None:
        await super().emit(event, tx)
        self._more.set()

    async def of(self, statement: str) -> dict[str, Any]:
        """What is told of the statement that begins so."""
        async with asyncio.timeout(10):
            while True:
                for event in self.events:
                    if event.data["statement"].startswith(statement):
                        return event.data
                self._more.clear()
                await self._more.wait()

    def count(self, statement: str) -> int:
        return sum(event.data["statement"].startswith(statement) for event in self.events)


@asynccontextmanager
async def watched(url: str, told: Told, **config: Any) -> AsyncIterator[Database]:
    settings = DatabaseConfig(**{"slow_query_s": EVERYTHING_S, "pool_min": 1, **config})
    async with Database(url, settings, events=told) as db:
        await asyncio.sleep(0)  # The watching task begins.
        yield db


async def fill(db: Database) -> None:
    await db.execute("CREATE TABLE person (id INTEGER PRIMARY KEY, name VARCHAR(40) NOT NULL)")
    for number in range(5):
        await db.execute("INSERT INTO person (id, name) VALUES (?, ?)", (number, f"n{number}"))


def counted(db: Database) -> dict[str, float]:
    [family] = [family for family in db.metrics.snapshot() if family.name == "daydo_db_slow_queries_total"]
    return {cell.labels[0]: cell.values[0] for cell in family.cells}


@asynccontextmanager
async def undone(tx: Transaction) -> AsyncIterator[None]:
    with suppress(LookupError):
        async with tx.savepoint():
            yield
            raise LookupError


def name_of(db: Database, sql: str) -> str:
    return fingerprint(db.dialect.name, compile_statement(db.dialect.name, sql).text).id


async def test_a_slow_statement_is_counted_and_told_with_its_plan(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The event and the warning hold the same facts: the statement, seconds, rows, and how its tables are read."""
    told = Told()
    async with watched(database_url, told) as db:
        await fill(db)
        with caplog.at_level(logging.WARNING, "daydo.db"):
            await db.query("SELECT id FROM person WHERE name = ? AND id > 0", ("n3",))
            facts = await told.of("SELECT id")
        assert facts["fingerprint"] == name_of(db, "SELECT id FROM person WHERE name = ? AND id > 1")
        assert counted(db)[facts["fingerprint"]] == 1
    assert facts["statement"] == "SELECT id FROM person WHERE name = ? AND id > ?"
    assert facts["seconds"] >= 0
    assert facts["rows"] == 1
    assert facts["given_up"] is False
    assert [line.partition(":")[0] for line in facts["plan"]] == ["person"]
    [logged] = [record for record in caplog.records if getattr(record, "facts", {}) == facts]
    assert facts["fingerprint"] in logged.getMessage()


async def test_a_table_that_is_read_from_end_to_end_is_named(database_url: str) -> None:
    """So the reader of the alert sees at once that an index is missing."""
    told = Told()
    async with watched(database_url, told) as db:
        await fill(db)
        await db.query("SELECT id FROM person WHERE name LIKE ?", ("%3",))
        assert (await told.of("SELECT id"))["scans"] == ["person"]
        await db.query("SELECT name FROM person WHERE id = 3")
        assert (await told.of("SELECT name"))["scans"] == []


async def test_no_value_leaves_by_event_or_log(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither as an argument nor where the caller has put it into the text."""
    told = Told()
    with caplog.at_level(logging.DEBUG, "daydo"):
        async with watched(database_url, told) as db:
            await fill(db)
            await db.query("SELECT id FROM person WHERE name = ?", (NAME,))
            await db.query(f"SELECT id, name FROM person WHERE name = '{NAME}'")
            await told.of("SELECT id FROM")
            await told.of("SELECT id, name")
    everything = str([event.data for event in told.events]) + str([vars(record) for record in caplog.records])
    assert NAME not in everything


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE person SET name = 'x' WHERE id >= 0",
        "DELETE FROM person WHERE id >= 0",
        "INSERT INTO person (id, name) SELECT id + 100, name FROM person WHERE id >= 0",
    ],
)
async def test_the_plan_of_a_writing_statement_does_not_execute_it(database_url: str, statement: str) -> None:
    """It is explained after it was rolled back, and the rows are as they were."""
    told = Told()
    async with watched(database_url, told) as db:
        await fill(db)
        before = (await db.query("SELECT id, name FROM person ORDER BY id")).rows
        async with db.transaction() as tx, undone(tx):
            await tx.execute(statement)
        facts = await told.of(normalise(db.dialect.name, statement))
        assert any(line.startswith("person") for line in facts["plan"])
        assert (await db.query("SELECT id, name FROM person ORDER BY id")).rows == before


async def test_one_statement_is_told_once_and_counted_every_time(database_url: str) -> None:
    """A thousand slow repetitions are a thousand in the metric and one line in the log."""
    told = Told()
    async with watched(database_url, told) as db:
        await fill(db)
        for number in range(20):
            await db.query("SELECT id FROM person WHERE id = ?", (number,))
        await told.of("SELECT id")
        await db.query("SELECT name FROM person")
        await told.of("SELECT name")
        assert told.count("SELECT id") == 1
        assert counted(db)[name_of(db, "SELECT id FROM person WHERE id = ?")] == 20


async def test_it_is_told_again_after_slow_explain_every_s(database_url: str) -> None:
    """With a pause of zero, each time."""
    told = Told()
    async with watched(database_url, told, slow_explain_every_s=0) as db:
        await fill(db)
        for name in ("a", "b"):
            await db.query("SELECT id FROM person WHERE name = ?", (name,))
            await db.query(f"SELECT '{name}', {name} FROM (SELECT 1 AS {name}) x")
            await told.of(f"SELECT ?, {name}")
        assert told.count("SELECT id") == 2


async def test_labels_are_bounded(database_url: str) -> None:
    """Beyond slow_fingerprints_max kinds of statements the rest is counted as other."""
    async with watched(database_url, Told(), slow_fingerprints_max=3) as db:
        for number in range(10):
            await db.query(f"SELECT 1 AS c{number}")
        labels = counted(db)
        assert len(labels) == 4
        assert labels["other"] == 7
        assert sum(labels.values()) == 10


async def test_the_plan_itself_is_not_a_slow_statement(database_url: str) -> None:
    """Everything is slow here, and still EXPLAIN is neither counted nor explained."""
    told = Told()
    async with watched(database_url, told) as db:
        await fill(db)
        await db.query("SELECT id FROM person")
        await told.of("SELECT id")
        before = sum(counted(db).values())
        explain = "EXPLAIN QUERY PLAN SELECT 1" if db.dialect.name == "sqlite" else "EXPLAIN SELECT 1"
        await db.query(explain)
        await db.query("SELECT name FROM person")
        await told.of("SELECT name")
        assert sum(counted(db).values()) == before + 1
        assert not told.count("EXPLAIN")


async def test_a_statement_that_ran_out_of_time_is_told_though_it_was_quicker(database_url: str) -> None:
    """Where statement_timeout_s is below slow_query_s, giving up is what makes it slow."""
    told = Told()
    endless = {
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n",
        "mysql": "SELECT SLEEP(30)",
    }
    async with watched(database_url, told, statement_timeout_s=0.05, slow_query_s=60) as db:
        await db.query("SELECT 1")
        with pytest.raises(QueryTimeout):
            await db.query(endless[db.dialect.name])
        facts = await told.of(endless[db.dialect.name][:4])
        assert facts["given_up"] is True
        assert "rows" not in facts
        assert list(counted(db).values()) == [1]


async def test_a_busy_pool_costs_the_plan_and_not_the_caller(database_url: str) -> None:
    """While every connection is taken the report comes without a plan, and says why."""
    told = Told()
    bounds: dict[str, Any] = {"pool_max": 1, "sqlite_readers": 1, "slow_explain_timeout_s": 0.05}
    async with watched(database_url, told, **bounds) as db:
        async with db._readers.connection() as only:
            await only.execute(compile_statement(db.dialect.name, "SELECT 1"))
            facts = await told.of("SELECT ?")
        assert facts["no_plan"] == "TimeoutError"
        assert "plan" not in facts
        assert (await db.query("SELECT 2")).rows == [(2,)]


async def test_more_than_the_queue_holds_is_only_counted(database_url: str) -> None:
    """Nothing waits and nothing is remembered without bound; the next of its kind is told."""
    told = Told()
    bounds: dict[str, Any] = {"pool_max": 1, "sqlite_readers": 1, "slow_queue_max": 1}
    async with watched(database_url, told, **bounds) as db:
        async with db._readers.connection() as only:
            for number in range(6):
                await only.execute(compile_statement(db.dialect.name, f"SELECT 1 AS c{number}"))
        assert sum(counted(db).values()) == 6
        await told.of("SELECT ? AS c1")
        assert told.count("SELECT ? AS c") == 2  # One in hand, one in the queue.
        await db.query("SELECT 1 AS c5")
        await told.of("SELECT ? AS c5")


async def test_a_sink_that_fails_does_not_end_the_watch(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The next slow statement is told as ever."""

    class Broken(Told):
        async def emit(self, event: Event, tx: Any = None) -> None:
            if "broken" in event.data["statement"]:
                raise Deadlock
            await super().emit(event, tx)

    told = Broken()
    async with watched(database_url, told) as db:
        await db.query("SELECT 1 AS broken")
        await db.query("SELECT 1 AS whole")
        await told.of("SELECT ? AS whole")
    assert "could not be told" in caplog.text


async def test_zero_switches_it_off(database_url: str) -> None:
    """Then nobody listens: a statement costs what it costs without this module."""
    async with watched(database_url, Told(), slow_query_s=0) as db:
        await db.query("SELECT 1")
        assert counted(db) == {}
        assert db.telemetry._listeners == []


async def test_a_quick_statement_is_none_of_its_business(database_url: str) -> None:
    """Neither is one of the migration runner, which takes as long as the table is large."""
    told = Told()
    async with watched(database_url, told, slow_query_s=60) as db:
        await db.query("SELECT 1")
        assert counted(db) == {}
    async with watched(database_url, told) as db:
        async with db._dedicated() as connection:
            await connection.script("SELECT 1")
        assert counted(db) == {}


async def test_it_listens_again_when_the_database_is_entered_again(database_url: str) -> None:
    """And not twice."""
    told = Told()
    db = Database(database_url, DatabaseConfig(slow_query_s=EVERYTHING_S), events=told)
    for _ in range(2):
        async with db:
            await asyncio.sleep(0)
            await db.query("SELECT 1")
    assert list(counted(db).values()) == [2]
    assert db.telemetry._listeners == []

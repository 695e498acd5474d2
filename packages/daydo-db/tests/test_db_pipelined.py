"""Transactions that follow each other on one connection: in their order, whatever becomes of those ahead."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import pytest

from daydo_db import (
    CommitUnknown,
    Database,
    DatabaseConfig,
    DbError,
    Pipelined,
    StatementFailed,
    TransactionAborted,
    Tx,
    UniqueViolation,
)
from daydo_db.packets import Wire
from daydo_db.tx import Result, compile_statement

ADD = "INSERT INTO paid (name) VALUES (?)"


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url, DatabaseConfig(connect_timeout_s=2)) as db:
        engine = " ENGINE=InnoDB" if db.dialect.name == "mysql" else ""
        await db.execute(f"CREATE TABLE paid (id INTEGER PRIMARY KEY {serial(db)}, name VARCHAR(20) UNIQUE){engine}")
        yield db


@pytest.fixture
def line(db: Database) -> Pipelined:
    return db.pipelined()


def serial(db: Database) -> str:
    return "AUTO_INCREMENT" if db.dialect.name == "mysql" else "AUTOINCREMENT"


async def add(db: Database, line: Pipelined, *names: str, within_s: float = 5) -> None:
    async def write(tx: Tx) -> None:
        await tx.execute_all([(ADD, (name,)) for name in names], commit_within_s=within_s)

    await db.run(write, behind=line, retries=0)


async def names(db: Database) -> list[str]:
    return [name for (name,) in (await db.query("SELECT name FROM paid ORDER BY id")).rows]


async def settled(*calls: Any) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_they_are_carried_out_in_the_order_of_coming(db: Database, line: Pipelined) -> None:
    """Each answered by itself, and on one connection where the engine can."""
    await asyncio.gather(*(add(db, line, f"n_{number:02}", f"m_{number:02}") for number in range(20)))
    assert await names(db) == [f"{letter}_{number:02}" for number in range(20) for letter in "nm"]
    assert db._writers.open == 1
    assert db._writers.in_use == 0


async def test_one_that_fails_takes_nothing_of_the_others_with_it(db: Database, line: Pipelined) -> None:
    """And what it had written is not committed by the one behind it."""
    await add(db, line, "taken")
    good, bad, behind = await settled(add(db, line, "a"), add(db, line, "b", "taken", "c"), add(db, line, "d"))
    assert good is behind is None
    assert isinstance(bad, UniqueViolation)
    assert await names(db) == ["taken", "a", "d"]


async def test_one_that_fails_last_leaves_nothing_open(db: Database, line: Pipelined) -> None:
    """Not even a lock on what it had written."""
    await add(db, line, "taken")
    with pytest.raises(UniqueViolation):
        await add(db, line, "b", "taken")
    assert db._writers.in_use == 0
    await db.execute(ADD, ("b",))
    assert await names(db) == ["taken", "b"]


@pytest.mark.parametrize(
    "misuse",
    [
        lambda tx: tx.execute(ADD, ("a",)),
        lambda tx: tx.execute_all([(ADD, ("a",))]),
        lambda tx: tx.savepoint().__aenter__(),
    ],
    ids=["execute", "execute_all", "savepoint"],
)
async def test_it_is_one_packet_and_nothing_else(db: Database, line: Pipelined, misuse: Any) -> None:
    """More of it would stand among the statements of others."""
    other, refused = await settled(add(db, line, "other"), db.run(misuse, behind=line))
    assert other is None
    assert isinstance(refused, StatementFailed)
    assert await names(db) == ["other"]


async def test_after_its_packet_it_is_over(db: Database, line: Pipelined) -> None:
    """Well or not: what came then would be no part of it."""
    await add(db, line, "taken")
    for first, outcome in (("new", TransactionAborted), ("taken", TransactionAborted)):
        async with asyncio.timeout(5):
            with pytest.raises(outcome):  # noqa: PT012 - the transaction is left by it
                async with db.transaction(behind=line) as tx:
                    with suppress(UniqueViolation):
                        await tx.execute_all([(ADD, (first,))], commit_within_s=5)
                    await tx.execute_all([(ADD, ("more",))], commit_within_s=5)
    assert await names(db) == ["taken", "new"]


async def test_an_empty_one_is_nothing(db: Database, line: Pipelined) -> None:
    """Left well or by an error, it has asked nothing and holds nothing."""
    async with db.transaction(behind=line):
        pass
    with pytest.raises(ZeroDivisionError):
        async with db.transaction(behind=line):
            raise ZeroDivisionError
    assert db._writers.in_use == 0


@pytest.mark.dialect("mysql")
async def test_a_cancelled_one_is_carried_out_all_the_same(db: Database, line: Pipelined) -> None:
    """Its COMMIT was on its way; whoever is behind it is not disturbed."""
    tasks = [asyncio.create_task(add(db, line, name)) for name in "abc"]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks[1].cancel()
    outcomes = await settled(*tasks)
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert await names(db) == ["a", "b", "c"]


@pytest.mark.dialect("mysql")
async def test_it_is_sent_before_the_one_ahead_is_answered(
    db: Database, line: Pipelined, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is what it is for."""
    under_way = list[int]()
    exchange = Wire._exchange

    async def watched(wire: Wire, *args: Any) -> None:
        under_way.append(len(wire._asked))
        await exchange(wire, *args)

    monkeypatch.setattr(Wire, "_exchange", watched)
    await asyncio.gather(*(add(db, line, name) for name in "abc"))
    assert under_way[-3:] == [0, 1, 2]


@pytest.mark.dialect("mysql")
async def test_a_lost_connection_leaves_all_that_were_under_way_in_doubt(db: Database, line: Pipelined) -> None:
    """Those that come next have another."""
    await add(db, line, "a")
    async with db.transaction() as holder:
        await holder.execute("SELECT name FROM paid WHERE name = 'a' FOR UPDATE")
        waiting = asyncio.create_task(settled(add_after(db, line, "b"), add_after(db, line, "c")))
        await asyncio.sleep(0.1)
        held = "SELECT id FROM information_schema.processlist WHERE info LIKE '%ahead */%' AND id <> CONNECTION_ID()"
        [(thread,)] = (await db.query(held)).rows
        await asyncio.create_task(db.execute(f"KILL {int(thread)}"))
        outcomes = await waiting
    assert [type(outcome) for outcome in outcomes] == [CommitUnknown, CommitUnknown]
    await add(db, line, "d")
    assert await names(db) == ["a", "d"]


async def add_after(db: Database, line: Pipelined, name: str) -> None:
    wait = "SELECT name FROM paid WHERE name = 'a' FOR UPDATE /* ahead */"
    statements: Sequence[tuple[str, Sequence[Any]]] = [(wait, ()), (ADD, (name,))]
    await db.run(lambda tx: tx.execute_all(statements, commit_within_s=5), behind=line, retries=0)


@pytest.mark.dialect("mysql")
async def test_the_time_of_those_ahead_does_not_count(db: Database, line: Pipelined) -> None:
    """Each has its own, from when the server begins with it."""
    sleep = [("SELECT SLEEP(0.3)", ())]

    async def slow(tx: Tx) -> None:
        await tx.execute_all(sleep, commit_within_s=0.6)

    await asyncio.gather(*(db.run(slow, behind=line, retries=0) for _ in range(3)))


@pytest.mark.dialect("mysql")
async def test_a_connection_that_is_old_is_not_shared_for_ever(db: Database, line: Pipelined) -> None:
    """However busy it is: those that come next get another, those that are on it stay."""
    stop = asyncio.Event()

    async def keep_busy() -> None:
        while not stop.is_set():
            await db.run(lambda tx: tx.execute_all([("SELECT SLEEP(0.02)", ())], commit_within_s=5), behind=line)

    busy = [asyncio.create_task(keep_busy()) for _ in range(2)]
    await asyncio.sleep(0.05)
    old = line._lent
    assert old is not None
    old.born_s -= 2 * db.config.pool_lifetime_s
    await asyncio.sleep(0.1)
    assert line._lent is not old
    stop.set()
    await asyncio.gather(*busy)
    assert db._writers.in_use == 0
    assert old not in db._writers._busy


@pytest.mark.dialect("mysql")
async def test_it_gives_way_to_those_who_wait_for_a_connection(database_url: str) -> None:
    """However busy it is: a connection that is always shared would never be given back."""
    async with Database(database_url, DatabaseConfig(pool_max=1, acquire_timeout_s=5)) as db:
        line, stop = db.pipelined(), asyncio.Event()

        async def keep_busy() -> None:
            while not stop.is_set():
                await db.run(lambda tx: tx.execute_all([("SELECT SLEEP(0.01)", ())], commit_within_s=5), behind=line)

        busy = [asyncio.create_task(keep_busy()) for _ in range(3)]
        await asyncio.sleep(0.05)
        for _ in range(5):
            assert (await db.query("SELECT 1")).rows == [(1,)]
        stop.set()
        await asyncio.gather(*busy)


async def test_without_pipelining_each_has_a_connection_to_itself(database_url: str) -> None:
    """For a proxy that cannot; the promises are the same."""
    async with Database(database_url, DatabaseConfig(pipelining=False)) as db:
        line = db.pipelined()
        assert not line.possible
        assert not line.pays
        await db.execute("CREATE TABLE paid (id INTEGER PRIMARY KEY, name VARCHAR(20) UNIQUE)")
        outcomes = await settled(
            *(
                db.run(
                    lambda tx, n=number: tx.execute_all(
                        [("INSERT INTO paid VALUES (?, ?)", (n, f"n_{n}"))], commit_within_s=5
                    ),
                    behind=line,
                )
                for number in range(8)
            ),
            db.run(lambda tx: tx.execute("SELECT 1"), behind=line),
        )
        assert [type(outcome).__name__ for outcome in outcomes] == ["list"] * 8 + ["StatementFailed"]
        assert len(await names(db)) == 8


@pytest.mark.dialect("mysql")
async def test_it_pays_while_commits_are_quick(db: Database, line: Pipelined) -> None:
    """As most of the last ones were: a slow disk is found out, and a quick one again; a single wait says nothing."""
    assert line.pays
    await add(db, line, "first")
    assert 0 < db.telemetry.commit_s < 5

    def commits(*seconds: float) -> bool:
        commit = (compile_statement("mysql", "COMMIT"), ())
        for one in seconds:
            db.telemetry.done_all([commit], [Result()], [10.0, 10.0 + one])
        return line.pays

    assert commits(*[0.0001] * 200)
    assert commits(*[*[0.0001] * 20, 2.0] * 10)
    assert not commits(*[0.003] * 100)
    assert commits(*[0.0001] * 100)


async def test_a_database_that_is_left_answers_all(database_url: str) -> None:
    """Those who are under way then are told, and nobody hangs."""
    async with Database(database_url, DatabaseConfig(drain_s=0)) as db:
        await db.execute("CREATE TABLE paid (id INTEGER PRIMARY KEY, name VARCHAR(20) UNIQUE)")
        line = db.pipelined()

        async def look(tx: Tx) -> list[Any]:
            return await tx.execute_all([("SELECT COUNT(*) FROM paid", ())], commit_within_s=5)

        waiting = [asyncio.create_task(db.run(look, behind=line, retries=0)) for _ in range(3)]
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        outcomes = await settled(*waiting)
    assert all(isinstance(outcome, list | DbError) for outcome in outcomes), outcomes

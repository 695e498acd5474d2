"""Turns that end otherwise than they began, and the test against what is left half-done.

What turns are for stands in the suite of a Tx.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Context

import pytest

from daydo_db import Database, StatementFailed, Tx, taking_turns, whole
from daydo_db.testing import FailingTx, fail_each_step


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as db:
        await db.execute("CREATE TABLE item (name VARCHAR(20) NOT NULL)")
        yield db


async def add_two(tx: Tx) -> None:
    await tx.execute("INSERT INTO item VALUES (?)", ("first",))
    await tx.execute_all([("INSERT INTO item VALUES (?)", ("second",))])


async def add_two_or_none(tx: Tx) -> None:
    with whole(tx):
        await add_two(tx)


async def add_two_and_tell(tx: FailingTx) -> None:
    await add_two_or_none(tx)
    with whole(tx):
        tx.step()


@pytest.mark.parametrize(
    ("error", "call", "left"),
    [
        (StatementFailed(reason="no", statement=""), add_two, [0, 1]),
        (asyncio.CancelledError(), add_two, [1, 2]),
        (StatementFailed(reason="no", statement=""), add_two_or_none, [0, 0]),
        (asyncio.CancelledError(), add_two_or_none, [0, 0]),
        (asyncio.CancelledError(), add_two_and_tell, [0, 0, 0]),
    ],
)
async def test_each_step_fails_once_and_what_is_left_shows(
    db: Database, error: BaseException, call: Callable[[FailingTx], Awaitable[None]], left: list[int]
) -> None:
    """A database refuses a statement before it has done it; who is cancelled goes when it is done."""
    found = []
    async for step in fail_each_step(db.transaction, call, error):
        found.append((await db.execute("DELETE FROM item")).rowcount)
        assert step == len(found)
    assert found == left
    assert (await db.query("SELECT name FROM item")).rows == [("first",), ("second",)]


async def test_a_task_that_outlives_its_call_takes_turns_with_those_after_it(db: Database) -> None:
    """It is part of that call no more."""
    go_on, told, tasks = asyncio.Event(), list[str](), list[asyncio.Task[None]]()

    async def look(tx: Tx) -> None:
        told.append("begins")
        await tx.execute("SELECT 1")
        told.append("ends")

    async def look_later(tx: Tx) -> None:
        await go_on.wait()
        await db.run(look, tx=tx)

    async def leave_a_task(tx: Tx) -> None:
        tasks.append(asyncio.create_task(look_later(tx)))

    async with db.transaction() as tx:
        await db.run(leave_a_task, tx=tx)
        go_on.set()
        await asyncio.gather(*tasks, db.run(look, tx=tx))
    assert told == ["begins", "ends"] * 2


async def test_a_task_that_outlives_its_call_keeps_no_transaction(db: Database) -> None:
    """However long it lives."""
    tasks = list[asyncio.Task[bool]]()

    async def leave_a_task(tx: Tx) -> None:
        tasks.append(asyncio.create_task(asyncio.Event().wait()))

    async with db.transaction() as tx:
        await db.run(leave_a_task, tx=tx)
    ended = weakref.ref(tx)
    del tx
    gc.collect()
    assert ended() is None
    tasks[0].cancel()


async def test_a_turn_may_end_in_another_context_than_it_began_in(db: Database) -> None:
    """As that of a dependency which a framework closes in a task of its own."""
    async with db.transaction() as tx:
        turn = taking_turns(tx)
        await asyncio.create_task(turn.__aenter__(), context=Context())
        await asyncio.create_task(turn.__aexit__(None, None, None), context=Context())
        async with asyncio.timeout(1), taking_turns(tx):
            pass

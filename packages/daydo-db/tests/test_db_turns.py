"""The test against what is left half-done finds it, and nothing where there is nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from daydo_db import Database, StatementFailed, Tx, whole
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

"""The barrier: a step is done at most once, undone at most once, and never done after its undo."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from daydo_db import Database, Tx, migrate
from daydo_db.sqlalchemy import enlist
from daydo_quota import Account, BadName, Balance, HoldCancelled, Ledger
from daydo_quota.saga import Action, barrier, forget
from daydo_quota.testing import check_books

SHIP = {"saga": "order_9", "step": "ship"}


async def asked(db: Database, action: Action, saga: str = "order_9", step: str = "ship") -> bool:
    return await db.run(partial(barrier, saga=saga, step=step, action=action))


@asynccontextmanager
async def ending(db: Database, *, commits: bool) -> AsyncIterator[Tx]:
    """A transaction that is kept, or undone at its end."""
    with nullcontext() if commits else pytest.raises(ZeroDivisionError):
        async with db.transaction() as tx:
            yield tx
            if not commits:
                raise ZeroDivisionError


async def test_a_step_is_done_once_and_undone_once(db: Database) -> None:
    """Every repeat is told that there is nothing to do."""
    assert [await asked(db, "do") for _ in range(3)] == [True, False, False]
    assert [await asked(db, "undo") for _ in range(3)] == [True, False, False]
    assert not await asked(db, "do"), "what was undone is over"


async def test_an_undo_without_a_do_undoes_nothing_and_refuses_the_late_do(db: Database) -> None:
    """An empty undo leaves a tombstone."""
    assert not await asked(db, "undo")
    assert not await asked(db, "do")
    assert not await asked(db, "undo")


async def test_sagas_and_steps_do_not_know_one_another(db: Database) -> None:
    """Only the same step of the same saga is a repeat; letters differ by case."""
    assert await asked(db, "do")
    assert await asked(db, "do", step="pack")
    assert await asked(db, "do", step="Ship")
    assert await asked(db, "do", saga="order_90")
    assert not await asked(db, "undo", saga="order_91")
    assert await asked(db, "undo", step="pack")
    assert not await asked(db, "do")


async def test_what_is_rolled_back_was_never_asked(db: Database) -> None:
    """The barrier's row goes the way of the step's own rows."""
    async with ending(db, commits=False) as tx:
        assert await barrier(tx, **SHIP, action="do")
    assert not await asked(db, "undo"), "it was never done"


@pytest.mark.parametrize(("saga", "step"), [("", "ship"), ("o" * 129, "ship"), ("o", "s" * 65), ("o 1", "ship")])
@pytest.mark.dialect("sqlite")
async def test_names_that_cannot_be_stored_are_refused(db: Database, saga: str, step: str) -> None:
    """Before any statement runs, as everywhere in the ledger."""
    with pytest.raises(BadName):
        await asked(db, "do", saga=saga, step=step)
    with pytest.raises(ValueError, match="'do' or 'undo'"):
        await asked(db, "undone")  # type: ignore[arg-type]


async def test_duplicates_in_parallel_are_one(db: Database) -> None:
    """Eight deliveries at once of each message: one does, then one undoes, and no delivery fails."""
    for action in ("do", "undo"):
        answers = await asyncio.gather(*(asked(db, action) for _ in range(8)))
        assert sorted(answers) == [False] * 7 + [True]


async def test_do_and_undo_at_once_end_with_nothing_done(db: Database) -> None:
    """Whichever comes first: either it was done and undone, or neither."""
    for number in range(20):
        saga = f"order_{number}"
        done, undone = await asyncio.gather(asked(db, "do", saga), asked(db, "undo", saga))
        assert done == undone
        assert not await asked(db, "do", saga)


@pytest.mark.dialect("mysql")
async def test_a_duplicate_waits_for_the_first_and_takes_over_if_that_rolls_back(db: Database) -> None:
    """What is not committed is not done: the second delivery does it."""
    async with ending(db, commits=False) as tx:
        assert await barrier(tx, **SHIP, action="do")
        second = asyncio.create_task(asked(db, "do"))
        answered, _ = await asyncio.wait({second}, timeout=0.05)
        assert not answered
    assert await second
    assert not await asked(db, "do")


LEVELS = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


@asynccontextmanager
async def stock_sessions(database_url: str, level: str | None) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    """As an application has them: the level it likes, none of our settings."""
    url = database_url.replace("sqlite:", "sqlite+aiosqlite:").replace("mysql:", "mysql+aiomysql:")
    engine = create_async_engine(url, **({"isolation_level": level} if level else {}))
    yield async_sessionmaker(engine)
    await engine.dispose()


@pytest.mark.dialect("mysql")
@pytest.mark.parametrize("level", LEVELS)
async def test_an_old_snapshot_is_told_the_truth_at_any_level(db: Database, database_url: str, level: str) -> None:
    """A caller's session that has looked before the others came still meets what they have done since."""
    async with stock_sessions(database_url, level) as sessions, sessions.begin() as session:
        tx = await enlist(session)
        # Of another table: at SERIALIZABLE a read of the barrier's own would keep the others out.
        await session.execute(text("SELECT COUNT(*) FROM daydo_quota_account"))
        await asked(db, "do")
        await asked(db, "undo", saga="order_10")
        await asked(db, "do", saga="order_11")
        await asked(db, "undo", saga="order_11")
        assert not await barrier(tx, **SHIP, action="do")
        assert await barrier(tx, **SHIP, action="undo")
        assert not await barrier(tx, saga="order_10", step="ship", action="do")
        assert not await barrier(tx, saga="order_11", step="ship", action="undo")


async def test_a_session_is_one_transaction_with_its_barrier(db: Database, database_url: str) -> None:
    """Committed together, rolled back together, and usable after a refusal."""
    async with stock_sessions(database_url, None) as sessions:
        async with sessions() as session:
            assert await barrier(await enlist(session), **SHIP, action="do")
            await session.rollback()
        for expected in (True, False):
            async with sessions.begin() as session:
                assert await barrier(await enlist(session), **SHIP, action="do") is expected
                await session.execute(text("SELECT 1"))


@pytest.mark.dialect("sqlite")
async def test_only_what_is_old_enough_is_forgotten(db: Database) -> None:
    """In bites, oldest first; after that a message would be carried out anew."""
    for number in range(5):
        await asked(db, "do", f"order_{number}")
        await db.execute("UPDATE daydo_quota_barrier SET at_us = ? WHERE saga = ?", [number, f"order_{number}"])
    await asked(db, "do", "order_new")
    assert [await forget(db, older_than_s=3600, rows=2) for _ in range(4)] == [2, 2, 1, 0]
    assert await asked(db, "do", "order_3")
    assert not await asked(db, "do", "order_new")


@pytest.mark.parametrize("older_than_s", [-60, 0, float("nan"), float("inf"), 1e300])
async def test_an_age_that_is_none_forgets_nothing(db: Database, older_than_s: float) -> None:
    """Below 0 the tombstone of a minute ago would go, too, and the late do be carried out."""
    assert not await asked(db, "undo")
    with pytest.raises(ValueError, match="older_than_s"):
        await forget(db, older_than_s=older_than_s)
    assert not await asked(db, "do")


messages = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["do", "undo"]), st.booleans()), max_size=12)


@pytest.mark.dialect("sqlite")
@given(deliveries=messages)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_deliveries_in_any_order_do_and_undo_at_most_once(deliveries: list[tuple[str, Action, bool]]) -> None:
    """Committed or rolled back, each answer is what three words of state per step say it must be."""

    async def deliver() -> None:
        state: dict[str, str] = {}
        async with Database("sqlite://") as db:
            await migrate(db, "daydo_quota")
            for step, action, commits in deliveries:
                before = state.get(step)
                expected = before == ("done" if action == "undo" else None)
                async with ending(db, commits=commits) as tx:
                    assert await barrier(tx, saga="s", step=step, action=action) is expected
                if commits:
                    state[step] = "over" if action == "undo" else before or "done"

    asyncio.run(deliver())


# A small saga over two databases: credits are held in one, a parcel is shipped in the other, the credits are charged;
# or the parcel cannot be shipped after all, and everything is taken back.

CREDITS = Account("acme", "u_7", "credits")


class Crash(Exception):
    """The process died here; what was not committed is gone, and the message comes again."""


class Crashes:
    """Dies at the ``at``-th point that is passed, once."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.passed = 0

    def point(self) -> None:
        self.passed += 1
        if self.passed - 1 == self.at:
            raise Crash


class Shop:
    """The participants. Each message may come any number of times, in any order."""

    def __init__(self, ledger: Ledger, elsewhere: Database, saga: str, crashes: Crashes) -> None:
        self.ledger, self.elsewhere, self.saga, self.crashes = ledger, elsewhere, saga, crashes

    async def reserve(self) -> None:
        await self._in_quota(partial(self.ledger.reserve, CREDITS, 4, key=self.saga))

    async def charge(self) -> None:
        await self._in_quota(partial(self.ledger.confirm, CREDITS, key=self.saga))

    async def give_back(self) -> None:
        await self._in_quota(partial(self.ledger.cancel, CREDITS, key=self.saga))

    async def ship(self) -> None:
        await self._elsewhere("do", "UPDATE parcels SET shipped = shipped + 1")

    async def unship(self) -> None:
        await self._elsewhere("undo", "UPDATE parcels SET shipped = shipped - 1")

    async def _in_quota(self, call: Callable[[], Awaitable[object]]) -> None:
        self.crashes.point()
        await call()
        self.crashes.point()  # committed, and the answer is lost

    async def _elsewhere(self, action: Action, sql: str) -> None:
        self.crashes.point()
        async with self.elsewhere.transaction() as tx:
            first = await barrier(tx, saga=self.saga, step="ship", action=action)
            self.crashes.point()
            if first:
                await tx.execute(sql)
            self.crashes.point()
        self.crashes.point()

    async def shipped(self) -> int:
        return int((await self.elsewhere.query("SELECT shipped FROM parcels")).rows[0][0])


async def delivered(*messages: Callable[[], Awaitable[None]], times: int) -> None:
    """In their order, each ``times`` times and again until it was answered."""
    for message in messages:
        for _ in range(times):
            while True:
                try:
                    await message()
                except Crash:
                    continue
                break


@pytest.fixture
async def elsewhere(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database(f"sqlite:///{tmp_path / 'elsewhere.db'}") as elsewhere:
        await migrate(elsewhere, "daydo_quota")
        await elsewhere.execute("CREATE TABLE parcels (shipped INTEGER NOT NULL)")
        await elsewhere.execute("INSERT INTO parcels (shipped) VALUES (0)")
        yield elsewhere


async def test_a_saga_ends_exactly_whatever_crashes_and_comes_twice(db: Database, elsewhere: Database) -> None:
    """A crash at every point of the way out and of the way back, every message once or twice: the books are exact."""
    shipped = charged = 0
    numbers = itertools.count()
    async with Ledger(db) as ledger:
        await ledger.grant(CREDITS, 1000, key="order")
        for succeeds, times in itertools.product((True, False), (1, 2)):
            for at in itertools.count():
                crashes = Crashes(at)
                shop = Shop(ledger, elsewhere, f"saga_{next(numbers)}", crashes)
                way_back = (shop.unship, shop.give_back)
                await delivered(shop.reserve, shop.ship, *((shop.charge,) if succeeds else way_back), times=times)
                shipped, charged = shipped + succeeds, charged + 4 * succeeds
                assert await shop.shipped() == shipped
                assert await ledger.balance(CREDITS) == Balance(available=1000 - charged, spent=charged)
                if crashes.passed <= at:
                    break
    await check_books(db)


async def test_a_saga_is_taken_back_before_its_messages_arrive(db: Database, elsewhere: Database) -> None:
    """The coordinator gives up while the way out is still on the road: what arrives late is refused."""
    async with Ledger(db) as ledger:
        await ledger.grant(CREDITS, 10, key="order")
        shop = Shop(ledger, elsewhere, "saga_1", Crashes(None))
        await delivered(shop.unship, shop.give_back, times=2)
        await delivered(shop.ship, times=2)
        with pytest.raises(HoldCancelled):
            await shop.reserve()
        assert await shop.shipped() == 0
        assert await ledger.balance(CREDITS) == Balance(available=10)
    await check_books(db)

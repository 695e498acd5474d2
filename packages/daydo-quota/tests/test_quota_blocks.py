"""Blocks: around several accounts, all held or none, each settled by itself; cancelled and left at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from daydo_db import Database, InsideTransaction
from daydo_kernel import Event, EventSink
from daydo_kernel.testing import ManualClock
from daydo_quota import (
    Account,
    BadAmount,
    Balance,
    ChargeExceedsHold,
    HoldConfirmed,
    HoldExpired,
    InsufficientQuota,
    Ledger,
    LedgerConfig,
    LedgerLeft,
)
from daydo_quota.testing import check_books

CREDITS = Account("acme", "u_7", "credits")
CAP = Account("acme", "u_7", "daily")
POINTS = Account("acme", "u_7", "points")
ALL = [(CREDITS, 4), (CAP, 1), (POINTS, 8)]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def ledger(db: Database, clock: ManualClock) -> AsyncIterator[Ledger]:
    async with Ledger(db, clock=clock) as ledger:
        for account in (CREDITS, CAP, POINTS):
            await ledger.grant(account, 10, key=f"order_{account.unit}")
        yield ledger
    await check_books(db)


class Gate(EventSink):
    """Stops a transaction before its COMMIT, once it has written an entry that is told as ``name``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reached, self.opened = asyncio.Event(), asyncio.Event()

    async def emit(self, event: Event, tx: Any = None) -> None:
        if event.name == self.name:
            self.reached.set()
            await self.opened.wait()


async def kinds(ledger: Ledger) -> list[str]:
    return [entry.kind for entry in (await ledger.history("acme", "u_7", unit="credits")).items][::-1]


async def balances(ledger: Ledger) -> list[Balance]:
    return [await ledger.balance(account) for account, _ in ALL]


UNTOUCHED = [Balance(available=10)] * 3


async def test_each_account_is_charged_what_its_own_charge_says(ledger: Ledger) -> None:
    """In the order they were named; all of it where nothing is said."""
    async with ledger.hold_all(ALL, key="task") as (first, cap, points):
        assert [work.hold.unit for work in (first, cap, points)] == ["credits", "daily", "points"]
        assert [balance.reserved for balance in await balances(ledger)] == [4, 1, 8]
        first.charge = 1
        points.charge = 0
    assert await balances(ledger) == [
        Balance(available=9, spent=1),
        Balance(available=9, spent=1),
        Balance(available=10),
    ]


async def test_an_error_returns_all_of_them_but_what_was_captured(ledger: Ledger) -> None:
    """A part that was charged on the way stays charged, on its account alone."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with ledger.hold_all(ALL, key="task") as (first, *_):
            await first.capture(3, key="page_1")
            raise ZeroDivisionError
    assert await balances(ledger) == [Balance(available=7, spent=3), Balance(available=10), Balance(available=10)]


async def test_one_account_that_lacks_lets_nothing_begin(ledger: Ledger) -> None:
    """The daily cap is used up: no credit is held for the block that does not run."""
    with pytest.raises(InsufficientQuota) as refused:
        async with ledger.hold_all([(CREDITS, 4), (CAP, 11)], key="task"):
            pytest.fail("the block must not run")
    assert refused.value.unit == "daily"
    assert await balances(ledger) == UNTOUCHED


async def test_one_that_cannot_be_settled_does_not_leave_the_others_unsettled(
    ledger: Ledger, clock: ManualClock
) -> None:
    """Its error is raised, its hold is left to the timeout; the other accounts are charged."""
    with pytest.raises(ChargeExceedsHold):
        async with ledger.hold_all(ALL, key="task", ttl_s=30) as (first, *_):
            first.charge = 5
    rest = [Balance(available=9, spent=1), Balance(available=2, spent=8)]
    assert await balances(ledger) == [Balance(available=6, reserved=4), *rest]
    clock.advance(30)
    assert await balances(ledger) == [Balance(available=10), *rest]


@pytest.mark.parametrize("charge", [2.0, -1, True, "2", 2**53])
async def test_a_charge_that_is_none_is_refused_before_the_work_is_done(ledger: Ledger, charge: int) -> None:
    """Where it is set, and it changes nothing there; None is all of it again."""
    async with ledger.hold(CREDITS, 4, key="task") as work:
        work.charge = 2
        with pytest.raises(BadAmount) as refused:
            work.charge = charge
        assert (refused.value.field, work.charge) == ("charge", 2)
        work.charge = None
    assert await ledger.balance(CREDITS) == Balance(available=6, spent=4)


async def test_several_that_cannot_be_settled_are_all_heard_of(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is raised, in the order of the accounts; the others are in the log."""
    with pytest.raises(ChargeExceedsHold) as raised:  # noqa: PT012
        async with ledger.hold_all(ALL, key="task") as (first, _, points):
            first.charge = 5
            points.charge = 9
    assert raised.value.held == 4
    assert "hold task could not be settled" in caplog.text
    assert "8 held" in caplog.text


async def test_a_cancelled_block_settles_all_of_them_to_the_end(ledger: Ledger) -> None:
    """Also if its task is cancelled once more while that goes on; leaving the ledger waits for it."""
    inside = asyncio.Event()

    async def work() -> None:
        async with ledger.hold_all(ALL, key="task"):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ledger.__aexit__(None, None, None)
    await ledger.__aenter__()
    assert await balances(ledger) == UNTOUCHED


async def test_a_block_that_hangs_is_left_to_the_timeout(ledger: Ledger, clock: ManualClock) -> None:
    """As one whose process has died: every account has its units back then, and a block that comes late is told."""
    block = ledger.hold_all(ALL, key="task", ttl_s=30)
    await block.__aenter__()
    assert [balance.reserved for balance in await balances(ledger)] == [4, 1, 8]
    clock.advance(30)
    assert await balances(ledger) == UNTOUCHED
    with pytest.raises(HoldExpired):
        await block.__aexit__(None, None, None)


async def test_a_duplicate_that_fails_leaves_the_original_alone(ledger: Ledger) -> None:
    """The holds belong to the block that made them; and a block that was settled is not run again."""
    async with ledger.hold_all(ALL, key="task"):
        with pytest.raises(ZeroDivisionError):
            async with ledger.hold_all(ALL, key="task"):
                raise ZeroDivisionError
    assert [balance.spent for balance in await balances(ledger)] == [4, 1, 8]
    with pytest.raises(HoldConfirmed):
        async with ledger.hold_all(ALL, key="task"):
            pytest.fail("the block must not run")


# Before the block


@pytest.mark.parametrize("cancellations", [1, 2])
async def test_a_block_that_is_cancelled_while_it_reserves_holds_nothing(
    ledger: Ledger, db: Database, clock: ManualClock, cancellations: int
) -> None:
    """The hold is on its way to being committed: it is given back before the cancellation goes on.

    Whoever is cancelled again does not wait for that, and then leaving the ledger does.
    """
    gate = Gate("quota.held")
    async with Ledger(db, clock=clock, events=gate) as gated:
        task = asyncio.create_task(gated.hold_all(ALL, key="task").__aenter__())
        await gate.reached.wait()
        for _ in range(cancellations):
            task.cancel()
            await asyncio.sleep(0)
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        if cancellations == 1:
            assert await kinds(ledger) == ["granted", "held", "cancelled"]
    assert await kinds(ledger) == ["granted", "held", "cancelled"]
    assert await balances(ledger) == UNTOUCHED


async def test_a_duplicate_that_is_cancelled_while_it_reserves_leaves_the_original_alone(ledger: Ledger) -> None:
    """Its answer says that the hold is another block's."""
    async with ledger.hold(CREDITS, 4, key="task"):
        duplicate = asyncio.create_task(ledger.hold(CREDITS, 4, key="task").__aenter__())
        await asyncio.sleep(0)
        duplicate.cancel()
        with pytest.raises(asyncio.CancelledError):
            await duplicate
        assert await ledger.balance(CREDITS) == Balance(available=6, reserved=4)
    assert await ledger.balance(CREDITS) == Balance(available=6, spent=4)


async def test_a_refusal_reaches_a_cancelled_block_as_its_cancellation(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """There is nothing to give back, and nothing to complain of."""
    task = asyncio.create_task(ledger.hold(CREDITS, 11, key="task").__aenter__())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await kinds(ledger) == ["granted"]
    assert not caplog.records


async def test_a_block_inside_a_transaction_is_refused(ledger: Ledger, db: Database) -> None:
    """It would wait for the account that its own task has."""
    async with db.transaction() as tx:
        await ledger.balance(CREDITS, tx=tx)
        with pytest.raises(InsideTransaction):
            await ledger.hold(CREDITS, 1, key="task").__aenter__()


# Leaving


async def test_a_block_that_reserves_while_the_ledger_is_left_is_waited_for(
    ledger: Ledger, db: Database, clock: ManualClock
) -> None:
    """It has begun: it does its work and is charged."""
    gate = Gate("quota.held")
    gated = Ledger(db, clock=clock, events=gate)

    async def work() -> None:
        async with gated.hold(CREDITS, 4, key="task"):
            await ledger.balance(CREDITS)

    async with gated:
        task = asyncio.create_task(work())
        await gate.reached.wait()
        leaving = asyncio.create_task(gated.__aexit__(None, None, None))
        await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(task, leaving)
    assert await ledger.balance(CREDITS) == Balance(available=6, spent=4)


@pytest.mark.parametrize("name", ["held", "confirmed"])
async def test_a_block_that_is_left_behind_is_told_so(
    ledger: Ledger, db: Database, clock: ManualClock, name: str
) -> None:
    """Its task is not cancelled, although what works for it is: it hears that the ledger was left."""
    gate = Gate(f"quota.{name}")

    async def work() -> None:
        async with gated.hold(CREDITS, 4, key="task", ttl_s=30):
            pass

    async with Ledger(db, LedgerConfig(drain_s=0), clock=clock, events=gate) as gated:
        task = asyncio.create_task(work())
        await gate.reached.wait()
    with pytest.raises(LedgerLeft):
        await task
    clock.advance(30)
    assert await balances(ledger) == UNTOUCHED


@pytest.mark.parametrize("cancellations", [1, 2])
async def test_what_a_cancelled_block_could_not_settle_is_logged(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, cancellations: int
) -> None:
    """The cancellation goes on in the error's place, so nobody else would hear of it."""
    ended = asyncio.Event()

    async def work() -> None:
        async with ledger.hold(CREDITS, 4, key="task") as hold:
            hold.charge = 5
            ended.set()

    task = asyncio.create_task(work())
    await ended.wait()
    for _ in range(cancellations):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    await ledger.__aexit__(None, None, None)
    await ledger.__aenter__()
    assert "hold task could not be settled" in caplog.text
    assert "4 held" in caplog.text

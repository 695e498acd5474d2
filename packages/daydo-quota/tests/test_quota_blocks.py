"""``hold_all``: a block around several accounts, all held or none, each settled by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from daydo_db import Database
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
    QuotaError,
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


@pytest.mark.parametrize(("charge", "error"), [(5, ChargeExceedsHold), (-1, BadAmount), (1.5, BadAmount)])
async def test_one_that_cannot_be_settled_does_not_leave_the_others_unsettled(
    ledger: Ledger, clock: ManualClock, charge: int, error: type[QuotaError]
) -> None:
    """Its error is raised, its hold is left to the timeout; the other accounts are charged."""
    with pytest.raises(error):
        async with ledger.hold_all(ALL, key="task", ttl_s=30) as (first, *_):
            first.charge = charge
    rest = [Balance(available=9, spent=1), Balance(available=2, spent=8)]
    assert await balances(ledger) == [Balance(available=6, reserved=4), *rest]
    clock.advance(30)
    assert await balances(ledger) == [Balance(available=10), *rest]


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

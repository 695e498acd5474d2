"""What has gone wrong in gateways that sell credits, each as a test, with everybody at once.

The callers are spread over two ledgers on the same database, as over two processes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from daydo_db import Database
from daydo_kernel.testing import ManualClock
from daydo_quota import (
    Account,
    Balance,
    Hold,
    HoldCancelled,
    HoldConfirmed,
    HoldExpired,
    InsufficientQuota,
    KeyConflict,
    Ledger,
    LedgerConfig,
    RefundExceedsCharge,
)
from daydo_quota.testing import check_books

CREDITS = Account("acme", "u_7", "credits")
DAILY = Account("acme", "u_7", "daily")
CALLERS = 24


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def ledgers(db: Database, database_url: str, clock: ManualClock) -> AsyncIterator[list[Ledger]]:
    config = LedgerConfig(busy_timeout_s=30, sweep_interval_s=0)
    async with (
        Database(database_url) as other_db,
        Ledger(db, config, clock=clock) as ledger,
        Ledger(other_db, config, clock=clock) as other,
    ):
        yield [ledger, other]
    await check_books(db)


@pytest.fixture
def ledger(ledgers: list[Ledger]) -> Ledger:
    return ledgers[0]


async def outcomes(calls: Iterable[Any]) -> Counter[str]:
    """How calls made at once ended: ``created``, ``known``, or the name of the error."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    return Counter(_outcome(answer) for answer in answers)


def _outcome(answer: Any) -> str:
    if isinstance(answer, BaseException):
        return type(answer).__name__
    first = answer[0] if isinstance(answer, list) else answer
    return "created" if first.created else "known"


async def test_parallel_requests_do_not_all_pass_the_balance_check(ledgers: list[Ledger]) -> None:
    """Everybody sees ten credits and asks for four: two get them, the balance never falls below zero."""
    await ledgers[0].grant(CREDITS, 10, key="order")
    seen = await asyncio.gather(*(ledgers[n % 2].balance(CREDITS) for n in range(CALLERS)))
    assert all(balance.available == 10 for balance in seen)
    asked = await outcomes(ledgers[n % 2].reserve(CREDITS, 4, key=f"request_{n}") for n in range(CALLERS))
    assert asked == {"created": 2, "InsufficientQuota": CALLERS - 2}
    assert await ledgers[0].balance(CREDITS) == Balance(available=2, reserved=8)


async def test_a_balance_read_before_the_lock_is_not_decided_on(ledgers: list[Ledger]) -> None:
    """Transactions that have all seen ten credits take them one after the other, until there are none."""
    await ledgers[0].grant(CREDITS, 10, key="order")
    ready = asyncio.Barrier(4)

    async def buy(number: int) -> Hold:
        ledger = ledgers[number % 2]
        assert (await ledger.balance(CREDITS)).available == 10
        await ready.wait()
        async with ledger.db.transaction() as tx:
            return await ledger.reserve(CREDITS, 4, key=f"order_{number}", tx=tx)

    assert await outcomes(buy(number) for number in range(4)) == {"created": 2, "InsufficientQuota": 2}
    assert await ledgers[0].balance(CREDITS) == Balance(available=2, reserved=8)


async def test_credits_added_and_taken_at_once_are_all_counted(ledgers: list[Ledger]) -> None:
    """No top-up overwrites a charge, and no charge a top-up."""
    await ledgers[0].grant(CREDITS, 100, key="opening")

    async def use(number: int) -> None:
        await ledgers[number % 2].reserve(CREDITS, 3, key=f"task_{number}")
        await ledgers[number % 2].confirm(CREDITS, 2, key=f"task_{number}")

    top_ups = [ledgers[n % 2].grant(CREDITS, 5, key=f"order_{n}") for n in range(CALLERS)]
    await asyncio.gather(*top_ups, *(use(n) for n in range(CALLERS)))
    assert await ledgers[0].balance(CREDITS) == Balance(available=100 + 3 * CALLERS, spent=2 * CALLERS)


async def test_streams_that_cost_more_than_was_thought_do_not_go_below_zero(ledgers: list[Ledger]) -> None:
    """Each stream holds two, charges as it goes, and wants four more at its end: all together get what there is."""
    streams, total = 12, 40
    await ledgers[0].grant(CREDITS, total, key="order")
    all_began = asyncio.Barrier(streams)

    async def stream(number: int) -> Hold:
        ledger, key = ledgers[number % 2], f"stream_{number}"
        await ledger.reserve(CREDITS, 2, key=key)
        await all_began.wait()
        for chunk in range(2):
            await ledger.capture(CREDITS, 1, key=f"{key}_{chunk}", hold_key=key)
        return await ledger.confirm(CREDITS, 4, key=key, overage="available")

    ended = await outcomes(stream(number) for number in range(streams))
    assert ended == {"created": 4, InsufficientQuota.__name__: 8}
    assert await ledgers[0].balance(CREDITS) == Balance(spent=total)


async def test_a_client_that_disconnects_pays_for_what_it_got_and_no_more(ledgers: list[Ledger]) -> None:
    """Neither the whole hold nor nothing: what was delivered stays charged, the rest is back at once."""
    await ledgers[0].grant(CREDITS, 10 * CALLERS, key="order")
    delivered = asyncio.Barrier(CALLERS + 1)

    async def stream(number: int) -> None:
        async with ledgers[number % 2].hold(CREDITS, 10, key=f"stream_{number}") as work:
            for chunk in range(number % 4):
                await work.capture(1, key=f"stream_{number}_{chunk}")
            await delivered.wait()
            await asyncio.Event().wait()  # the rest of the stream

    streams = [asyncio.create_task(stream(number)) for number in range(CALLERS)]
    await delivered.wait()
    for task in streams:
        task.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    spent = sum(number % 4 for number in range(CALLERS))
    assert await ledgers[0].balance(CREDITS) == Balance(available=10 * CALLERS - spent, spent=spent)


async def test_a_disconnect_while_it_is_settled_loses_no_charge(ledgers: list[Ledger]) -> None:
    """Whoever got everything is charged, at whatever moment the connection breaks; whoever did not has all back."""
    await ledgers[0].grant(CREDITS, 1_000, key="order")
    got_everything = 0

    async def stream(number: int) -> None:
        nonlocal got_everything
        async with ledgers[number % 2].hold(CREDITS, 5, key=f"stream_{number}"):
            await asyncio.sleep(0)
            got_everything += 1

    async def broken_after(ticks: int) -> None:
        task = asyncio.create_task(stream(ticks))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for ticks in range(0, 400, 10):
        await broken_after(ticks)
    await asyncio.gather(*(ledger.__aexit__(None, None, None) for ledger in ledgers))
    for ledger in ledgers:
        await ledger.__aenter__()
    spent = 5 * got_everything
    assert await ledgers[0].balance(CREDITS) == Balance(available=1_000 - spent, spent=spent), "and nothing is held"


async def test_a_failed_task_is_given_back_once_by_all_who_see_it_fail(ledgers: list[Ledger]) -> None:
    """Two pollers, a time-out and a webhook find the same failure, twice each; the units come back once."""
    await ledgers[0].grant(CREDITS, 10, key="order")
    await ledgers[0].reserve(CREDITS, 4, key="task")
    given_back = await outcomes(ledgers[n % 2].cancel(CREDITS, key="task") for n in range(8))
    assert given_back == {"created": 1, "known": 7}
    assert await ledgers[0].balance(CREDITS) == Balance(available=10)

    await ledgers[0].reserve(CREDITS, 4, key="charged")
    await ledgers[0].confirm(CREDITS, key="charged")
    refunds = await outcomes(ledgers[n % 2].refund(CREDITS, 4, key="failed", hold_key="charged") for n in range(8))
    assert refunds == {"created": 1, "known": 7}
    assert await ledgers[0].balance(CREDITS) == Balance(available=10)


async def test_refunds_by_two_ways_never_return_more_than_was_charged(ledgers: list[Ledger]) -> None:
    """Support and the payment's webhook refund the same charge under keys of their own: the second is refused."""
    await ledgers[0].grant(CREDITS, 10, key="order")
    await ledgers[0].reserve(CREDITS, 6, key="task")
    await ledgers[0].confirm(CREDITS, key="task")
    ways = [ledgers[n % 2].refund(CREDITS, 4, key=f"way_{n}", hold_key="task") for n in range(4)]
    assert await outcomes(ways) == {"created": 1, RefundExceedsCharge.__name__: 3}
    assert await ledgers[0].balance(CREDITS) == Balance(available=8, spent=2)


async def test_a_settlement_that_is_repeated_returns_the_rest_once(ledgers: list[Ledger]) -> None:
    """Settled below the hold by many at once: one charge, one return; another amount is another settlement."""
    await ledgers[0].grant(CREDITS, 10, key="order")
    await ledgers[0].reserve(CREDITS, 10, key="task")
    settled = await outcomes(ledgers[n % 2].confirm(CREDITS, 3, key="task") for n in range(CALLERS))
    assert settled == {"created": 1, "known": CALLERS - 1}
    with pytest.raises(KeyConflict):
        await ledgers[1].confirm(CREDITS, 0, key="task")
    assert await ledgers[0].balance(CREDITS) == Balance(available=7, spent=3)


async def test_success_and_failure_at_once_settle_once(ledgers: list[Ledger]) -> None:
    """The result arrives while the time-out gives up: charged or given back, and both sides are told which."""
    await ledgers[0].grant(CREDITS, CALLERS, key="order")
    charged = 0
    for number in range(CALLERS):
        key = f"task_{number}"
        await ledgers[0].reserve(CREDITS, 1, key=key)
        both = [ledgers[0].confirm(CREDITS, key=key), ledgers[1].cancel(CREDITS, key=key)]
        ended = await outcomes(both if number % 2 else both[::-1])
        assert ended in ({"created": 1, HoldConfirmed.__name__: 1}, {"created": 1, HoldCancelled.__name__: 1})
        charged += HoldConfirmed.__name__ in ended
    assert await ledgers[0].balance(CREDITS) == Balance(available=CALLERS - charged, spent=charged)


async def test_a_result_after_the_time_out_is_charged_once_or_not_at_all(
    ledgers: list[Ledger], clock: ManualClock
) -> None:
    """The hold was given back, then the vendor delivers: charged from what is left now, or refused; never into debt."""
    await ledgers[0].grant(CREDITS, 10, key="order")
    await ledgers[0].reserve(CREDITS, 6, key="late", ttl_s=10)
    await ledgers[0].reserve(CREDITS, 4, key="refused", ttl_s=10)
    clock.advance(10)
    late = [ledgers[n % 2].confirm(CREDITS, key="late", late="available") for n in range(8)]
    refused = [ledgers[n % 2].confirm(CREDITS, key="refused") for n in range(4)]
    assert await outcomes(late + refused) == {"created": 1, "known": 7, HoldExpired.__name__: 4}
    with pytest.raises(InsufficientQuota):
        await ledgers[1].confirm(CREDITS, 5, key="refused", late="available", overage="available")
    assert await ledgers[0].balance(CREDITS) == Balance(available=4, spent=6)


async def test_a_retry_on_another_channel_is_not_a_second_charge(ledgers: list[Ledger]) -> None:
    """Each attempt reserves and settles under the request's key, also two that overlap: one hold, one charge."""
    await ledgers[0].grant(CREDITS, 20, key="order")

    async def attempt(channel: int) -> Hold:
        ledger = ledgers[channel % 2]
        await ledger.reserve(CREDITS, 8, key="request")
        return await ledger.confirm(CREDITS, 5, key="request")

    assert (await outcomes(attempt(channel) for channel in range(6)))["created"] == 1
    assert await ledgers[0].balance(CREDITS) == Balance(available=15, spent=5)


async def test_a_retry_after_a_refund_does_not_run_for_free(ledgers: list[Ledger]) -> None:
    """The first attempt was given back, so its key holds nothing; a block under it does not begin."""
    await ledgers[0].grant(CREDITS, 10, key="order")
    await ledgers[0].reserve(CREDITS, 4, key="request")
    await ledgers[0].cancel(CREDITS, key="request")
    ran = False
    with pytest.raises(HoldCancelled):
        async with ledgers[1].hold(CREDITS, 4, key="request"):
            ran = True
    assert not ran
    assert (await ledgers[1].reserve(CREDITS, 4, key="request")).phase == "cancelled", "and says so"


async def test_the_error_path_of_a_duplicate_leaves_the_originals_hold(ledgers: list[Ledger]) -> None:
    """A request that was sent twice fails in its copies while the original works on: its units stay held."""
    await ledgers[0].grant(CREDITS, 10, key="order")

    async def duplicate(number: int) -> None:
        async with ledgers[number % 2].hold(CREDITS, 4, key="request"):
            raise ConnectionAbortedError

    async with ledgers[0].hold(CREDITS, 4, key="request") as original:
        copies = await outcomes(duplicate(number) for number in range(CALLERS))
        assert copies == {"ConnectionAbortedError": CALLERS}
        assert await ledgers[1].balance(CREDITS) == Balance(available=6, reserved=4)
        original.charge = 3
    assert await ledgers[0].balance(CREDITS) == Balance(available=7, spent=3)


async def test_a_request_that_was_cancelled_before_it_came_is_not_held(ledgers: list[Ledger]) -> None:
    """Its cancel overtakes it, or does not: nothing stays held either way."""
    await ledgers[0].grant(CREDITS, CALLERS, key="order")
    for number in range(CALLERS):
        key = f"request_{number}"
        both = [ledgers[0].reserve(CREDITS, 1, key=key), ledgers[1].cancel(CREDITS, key=key)]
        await outcomes(both if number % 2 else both[::-1])
    assert await ledgers[0].balance(CREDITS) == Balance(available=CALLERS)


async def test_a_code_is_redeemed_once_by_many(ledgers: list[Ledger]) -> None:
    """Many customers enter the same code at once; one gets the credits, and entering it again adds nothing."""
    accounts = [Account("acme", f"u_{number}", "credits") for number in range(CALLERS)]
    codes = await outcomes(ledgers[n % 2].grant(account, 50, key="code_77") for n, account in enumerate(accounts))
    assert codes == {"created": 1, KeyConflict.__name__: CALLERS - 1}
    balances = [(await ledgers[0].balance(account)).available for account in accounts]
    assert sorted(balances) == [0] * (CALLERS - 1) + [50]
    winner = accounts[balances.index(50)]
    assert await outcomes(ledgers[n % 2].grant(winner, 50, key="code_77") for n in range(4)) == {"known": 4}


async def test_a_payment_that_is_notified_many_times_is_credited_once(ledgers: list[Ledger]) -> None:
    """The vendor repeats its webhook within milliseconds, to several processes, for a customer who is new."""
    notices = [ledgers[n % 2].grant(CREDITS, 50, key="payment_1") for n in range(CALLERS)]
    assert await outcomes(notices) == {"created": 1, "known": CALLERS - 1}
    assert await ledgers[0].balance(CREDITS) == Balance(available=50)


async def test_expired_promotional_units_do_not_come_back(ledgers: list[Ledger], clock: ManualClock) -> None:
    """Held, charged and given back after their date by every way there is: they are gone."""
    ends_us = clock.now_us() + 60_000_000
    await ledgers[0].grant(CREDITS, 10, key="promo", source="promo", expires_at_us=ends_us)
    for key, ttl_s in {"cancelled": 600, "timed_out": 60, "partly": 600, "refunded": 600}.items():
        await ledgers[0].reserve(CREDITS, 2, key=key, ttl_s=ttl_s)
    await ledgers[0].confirm(CREDITS, key="refunded")
    clock.advance(60)
    await asyncio.gather(
        ledgers[0].cancel(CREDITS, key="cancelled"),
        ledgers[1].sweep(),
        ledgers[0].confirm(CREDITS, 1, key="partly"),
        ledgers[1].refund(CREDITS, 2, key="sorry", hold_key="refunded"),
    )
    assert await ledgers[0].balance(CREDITS) == Balance(expired=9, spent=1)


async def test_a_period_that_ends_under_a_hold_takes_nothing_from_the_next(
    ledgers: list[Ledger], clock: ManualClock
) -> None:
    """A request from before midnight is settled after it: against yesterday's units, and today's are whole."""
    midnight_us = clock.now_us() + 60_000_000
    await ledgers[0].grant(DAILY, 5, key="yesterday", expires_at_us=midnight_us)
    await ledgers[0].grant(DAILY, 5, key="today", effective_at_us=midnight_us)
    await ledgers[0].reserve(DAILY, 4, key="request", ttl_s=600)
    clock.advance(60)
    settled = [ledgers[n % 2].confirm(DAILY, 3, key="request") for n in range(4)]
    taken = [ledgers[n % 2].reserve(DAILY, 1, key=f"today_{n}") for n in range(CALLERS)]
    assert await outcomes(settled + taken) == {
        "created": 1 + 5,
        "known": 3,
        InsufficientQuota.__name__: CALLERS - 5,
    }
    assert await ledgers[0].balance(DAILY) == Balance(reserved=5, spent=3, expired=2)


async def test_credits_and_a_cap_are_taken_together_or_not_at_all(ledgers: list[Ledger]) -> None:
    """The day's cap lets three through; of the others' credits none are held, in whichever order they name them."""
    await ledgers[0].grant(CREDITS, 1_000, key="order")
    await ledgers[0].grant(DAILY, 3, key="day")
    amounts = [(CREDITS, 10), (DAILY, 1)]
    asked = [
        ledgers[n % 2].reserve_all(amounts if n % 3 else amounts[::-1], key=f"request_{n}") for n in range(CALLERS)
    ]
    assert await outcomes(asked) == {"created": 3, InsufficientQuota.__name__: CALLERS - 3}
    assert await ledgers[0].balance(CREDITS) == Balance(available=970, reserved=30)
    assert await ledgers[0].balance(DAILY) == Balance(reserved=3)


async def test_holds_that_nobody_settles_do_not_lock_a_customer_out(ledgers: list[Ledger], clock: ManualClock) -> None:
    """Their processes are gone and no sweeper has come by: after their time the units are there for the next call."""
    await ledgers[0].grant(CREDITS, 10, key="order")
    for number in range(5):
        await ledgers[number % 2].reserve(CREDITS, 2, key=f"gone_{number}", ttl_s=30)
    with pytest.raises(InsufficientQuota):
        await ledgers[1].reserve(CREDITS, 1, key="too_early")
    clock.advance(30)
    asked = [ledgers[n % 2].reserve(CREDITS, 2, key=f"next_{n}") for n in range(CALLERS)]
    assert await outcomes(asked) == {"created": 5, InsufficientQuota.__name__: CALLERS - 5}


async def test_sweepers_in_small_steps_keep_the_order_of_time(
    db: Database, ledgers: list[Ledger], clock: ManualClock
) -> None:
    """A grant ends before the last of three holds, and each step closes one: the history is that of one long look."""
    small = LedgerConfig(sweep_interval_s=0, sweep_holds=1)
    kinds = []
    for subject, config in {"u_7": small, "u_8": LedgerConfig(sweep_interval_s=0)}.items():
        account = Account("acme", subject, "credits")
        async with Ledger(db, config, clock=clock) as one, Ledger(ledgers[1].db, config, clock=clock) as other:
            await one.grant(account, 10, key=f"order_{subject}", expires_at_us=clock.now_us() + 35_000_000)
            for ttl_s in (10, 30, 40):
                await one.reserve(account, 2, key=f"{subject}_{ttl_s}", ttl_s=ttl_s)
            clock.advance(60)
            while await one.sweep() + await other.sweep():
                pass
            entries = (await one.history("acme", subject)).items
            assert await one.balance(account) == Balance(expired=10)
        assert [entry.at_us for entry in entries] == sorted((entry.at_us for entry in entries), reverse=True)
        kinds.append([(entry.kind, entry.amount) for entry in entries])
    assert kinds[0] == kinds[1]

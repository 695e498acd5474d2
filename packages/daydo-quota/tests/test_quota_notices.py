# ruff: noqa: PT012, SIM117 - the block that raises is the test; two ledgers on two databases read as such
"""Notices, and allowances beside other ledgers, sweepers and looks."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from daydo_db import Database
from daydo_db.testing import count_statements
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_quota import (
    Account,
    AccountBalance,
    Balance,
    BooksDisagree,
    Hold,
    InsufficientQuota,
    Ledger,
    LedgerConfig,
)
from daydo_quota.ops import CatchUp
from daydo_quota.planner import plan
from daydo_quota.rows import NEVER_US, AccountRow, AllowanceRow, State
from daydo_quota.testing import check_books

CREDITS = Account("acme", "u_7", "credits")
DAY_S = 86_400
CONFIG = LedgerConfig(
    low_balance={"credits": 5}, expiring_notice_s=3 * DAY_S, sweep_interval_s=0, audit_interval_s=0, max_hold_ttl_s=1e7
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def events() -> RecordedEvents:
    return RecordedEvents()


@pytest.fixture
async def ledger(db: Database, clock: ManualClock, events: RecordedEvents) -> AsyncIterator[Ledger]:
    async with Ledger(db, CONFIG, clock=clock, events=events) as ledger:
        yield ledger
    await check_books(db)


def told(events: RecordedEvents, name: str) -> list[dict[str, Any]]:
    return [event.data for event in events.events if event.name == name]


# Low balances


async def test_a_balance_is_low_once_it_falls_below(ledger: Ledger, events: RecordedEvents) -> None:
    """Told when a change takes it there, not by what it does below, and again after it has been up."""
    await ledger.grant(CREDITS, 10, key="order")
    await ledger.charge(CREDITS, 5, key="a")
    assert not told(events, "quota.low"), "at the threshold it is not below it"
    await ledger.reserve(CREDITS, 2, key="b")
    await ledger.charge(CREDITS, 2, key="c")
    low = {"unit": "credits", "available": 3, "low_balance": 5}
    assert told(events, "quota.low") == [low]
    await ledger.grant(CREDITS, 10, key="order_2")
    await ledger.charge(CREDITS, 8, key="d")
    assert told(events, "quota.low") == [low, low]
    notice = next(event for event in events.events if event.name == "quota.low")
    assert (notice.tenant, notice.subject) == ("acme", "u_7")


async def test_other_units_are_never_low(ledger: Ledger, events: RecordedEvents) -> None:
    """A unit without a threshold has no notices."""
    points = Account("acme", "u_7", "points")
    await ledger.grant(points, 10, key="order")
    await ledger.charge(points, 10, key="a")
    assert not told(events, "quota.low")


async def test_a_notice_belongs_to_its_transaction(ledger: Ledger, db: Database, events: RecordedEvents) -> None:
    """Rolled back, it was never given; a refused call gives none."""
    await ledger.grant(CREDITS, 10, key="order")
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as tx:
            await ledger.charge(CREDITS, 9, key="a", tx=tx)
            raise ZeroDivisionError
    with pytest.raises(InsufficientQuota):
        await ledger.charge(CREDITS, 11, key="b")
    assert not told(events, "quota.low")


async def test_a_balance_is_not_low_between_two_periods(
    ledger: Ledger, clock: ManualClock, events: RecordedEvents
) -> None:
    """The sweeper writes that yesterday's units are gone; today's are there for whoever asks."""
    await ledger.allow(CREDITS, 8, key="free", every="day")
    clock.advance(DAY_S)
    assert await ledger.sweep() == 1
    assert [event.name for event in events.events] == ["quota.granted", "quota.expired"]
    await ledger.charge(CREDITS, 4, key="a")
    assert [data["available"] for data in told(events, "quota.low")] == [4]


async def test_time_alone_can_make_a_balance_low(ledger: Ledger, clock: ManualClock, events: RecordedEvents) -> None:
    """When the sweeper writes that a grant has expired, and its allowance is too small to make up for it."""
    await ledger.allow(CREDITS, 2, key="free", every="day")
    await ledger.grant(CREDITS, 8, key="promo", expires_at_us=clock.now_us() + DAY_S * 1_000_000)
    clock.advance(DAY_S)
    await ledger.sweep()
    assert [data["available"] for data in told(events, "quota.low")] == [2]
    await ledger.charge(CREDITS, 1, key="a")
    assert len(told(events, "quota.low")) == 1


# Units that will expire


async def test_units_that_will_expire_are_told_of_once(
    ledger: Ledger, clock: ManualClock, events: RecordedEvents
) -> None:
    """Three days before, with what is left then; by the sweeper if nobody else comes by."""
    ends_us = clock.now_us() + 10 * DAY_S * 1_000_000
    grant = await ledger.grant(CREDITS, 10, key="promo", expires_at_us=ends_us)
    await ledger.charge(CREDITS, 4, key="a")
    clock.advance(7 * DAY_S - 0.000001)
    assert await ledger.sweep() == 0
    clock.advance(0.000001)
    assert await ledger.sweep() == 1
    expiring = {"unit": "credits", "id": grant.id, "key": "promo", "amount": 6, "expires_at_us": ends_us}
    assert told(events, "quota.expiring") == [expiring]
    await ledger.charge(CREDITS, 1, key="b")
    await ledger.refund(CREDITS, 1, key="c", hold_key="b")
    clock.advance(DAY_S)
    assert await ledger.sweep() == 0
    assert told(events, "quota.expiring") == [expiring]


async def test_units_that_return_before_they_expire_are_told_of(
    ledger: Ledger, clock: ManualClock, events: RecordedEvents
) -> None:
    """Nothing was left when notice was due, and then a hold returned some."""
    await ledger.grant(CREDITS, 5, key="promo", expires_at_us=clock.now_us() + 10 * DAY_S * 1_000_000)
    await ledger.reserve(CREDITS, 5, key="task", ttl_s=60 * DAY_S)
    clock.advance(8 * DAY_S)
    await ledger.sweep()
    assert not told(events, "quota.expiring")
    await ledger.confirm(CREDITS, 2, key="task")
    await ledger.sweep()
    assert [data["amount"] for data in told(events, "quota.expiring")] == [3]


async def test_what_lasts_no_longer_than_the_notice_expires_without_one(
    ledger: Ledger, clock: ManualClock, events: RecordedEvents
) -> None:
    """A day's units do not announce their end every day, and what never expires does not either."""
    await ledger.allow(CREDITS, 8, key="free", every="day")
    await ledger.grant(CREDITS, 8, key="promo", expires_at_us=clock.now_us() + 3 * DAY_S * 1_000_000)
    await ledger.grant(CREDITS, 8, key="order")
    for _ in range(4):
        clock.advance(DAY_S)
        await ledger.sweep()
    assert not told(events, "quota.expiring")


# Allowances beside others


async def test_two_ledgers_grant_a_period_once(db: Database, database_url: str, clock: ManualClock) -> None:
    """Two processes, each with its own connections, find the new period at the same time, midnight after midnight."""
    async with Database(database_url) as elsewhere:
        async with Ledger(db, CONFIG, clock=clock) as one, Ledger(elsewhere, CONFIG, clock=clock) as other:
            await one.allow(CREDITS, 5, key="free", every="day")
            for day in range(5):
                clock.advance(DAY_S)
                ledgers = [one, other] * 5
                calls = [at.reserve(CREDITS, 1, key=f"{day}_{n}") for n, at in enumerate(ledgers)]
                answers = await asyncio.gather(*calls, return_exceptions=True)
                assert sum(isinstance(answer, Hold) for answer in answers) == 5
                assert all(isinstance(answer, Hold | InsufficientQuota) for answer in answers)
            entries = (await one.history("acme", "u_7", limit=100)).items
            assert [entry.kind for entry in entries].count("granted") == 6
    await check_books(db)


async def test_a_look_at_a_new_period_writes_nothing(
    ledger: Ledger, db: Database, clock: ManualClock, events: RecordedEvents
) -> None:
    """It shows what the next call finds: today's units, less what is owed; by one statement more than without."""
    await ledger.allow(CREDITS, 8, key="free", every="day")
    await ledger.charge(CREDITS, 11, key="a", overage="debt")
    clock.advance(DAY_S)
    heard = len(events.events)
    with count_statements(db, at_most=5):
        assert await ledger.balance(CREDITS) == Balance(available=5, spent=11)
    assert await ledger.accounts("acme", "u_7") == [AccountBalance(unit="credits", available=5, spent=11)]
    assert len(events.events) == heard
    assert (await db.query("SELECT COUNT(*) FROM daydo_quota_grant")).rows[0][0] == 1
    async with db.transaction() as tx:
        assert await ledger.balance(CREDITS, tx=tx) == Balance(available=5, spent=11)
    assert (await db.query("SELECT COUNT(*) FROM daydo_quota_grant")).rows[0][0] == 2


async def test_the_sweeper_does_not_ask(ledger: Ledger, db: Database, clock: ManualClock) -> None:
    """It writes that a period's units have expired, once, and then has nothing to do with an idle account."""
    await ledger.allow(CREDITS, 8, key="free", every="day")
    clock.advance(DAY_S)
    assert await ledger.sweep() == 1
    for _ in range(3):
        clock.advance(DAY_S)
        assert await ledger.sweep() == 0
    entries = (await ledger.history("acme", "u_7")).items
    assert [entry.kind for entry in entries] == ["grant_expired", "granted"]


async def test_an_allowance_that_ended_while_nobody_asked_is_over(ledger: Ledger, clock: ManualClock) -> None:
    """The first call after its end finds it so, and the account has nothing to renew any more."""
    dates = {"until_us": clock.now_us() + 3 * DAY_S * 1_000_000}
    await ledger.allow(CREDITS, 8, key="free", every="day", **dates)
    clock.advance(10 * DAY_S)
    over = await ledger.allow(CREDITS, 8, key="free", every="day", **dates)
    assert (over.renews_at_us, over.created) == (None, False)
    assert await ledger.balance(CREDITS) == Balance(expired=8)


def test_another_table_of_zones_grants_no_period_twice() -> None:
    """A process whose zones say that yesterday goes on finds the account renewed for today, and waits."""
    account = AccountRow(1, "acme", "u_7", "credits", renews_at_us=0)
    noon_us = 1_772_596_800_000_000  # 2026-03-04, 12:00 in Shanghai
    calendar = {"every": "day", "zone": "Asia/Shanghai", "anchor": "calendar", "until_us": NEVER_US}
    for period, granted in (("2026-03-05", 0), ("2026-03-04", 0), ("2026-03-03", 1)):
        row = AllowanceRow(
            id="allow_1", account_id=1, tenant="acme", op_key="free", fingerprint="", amount=5, source="free",
            priority=50, starts_at_us=0, next_at_us=noon_us - 1, period=period, reason="", created_at_us=0, **calendar,
        )  # fmt: skip
        state = State(accounts={("acme", "u_7", "credits"): account}, allowances=[row])
        decided = plan([CatchUp(account=("acme", "u_7", "credits"))], state, noon_us)
        assert len(decided.new_grants) == granted
        assert decided.accounts[0].renews_at_us == noon_us + DAY_S // 2 * 1_000_000
        assert decided.allowances[0].period == max(period, "2026-03-04")


async def test_a_debt_that_was_edited_by_hand_is_not_made_worse(db: Database, clock: ManualClock) -> None:
    """Where no hold owes what the account does, every call is refused and nothing changes."""
    async with Ledger(db, CONFIG, clock=clock) as ledger:
        await ledger.charge(CREDITS, 5, key="a", overage="debt")
        await db.run(lambda tx: tx.execute("UPDATE daydo_quota_account SET debt = 4, stamp = 0", ()))
        with pytest.raises(BooksDisagree):
            await ledger.grant(CREDITS, 10, key="order")
        with pytest.raises(AssertionError, match="Disagreement"):
            await check_books(db)
        await db.run(lambda tx: tx.execute("UPDATE daydo_quota_account SET debt = 5, stamp = 0", ()))
        assert (await ledger.grant(CREDITS, 10, key="order")).created
    await check_books(db)

"""Batches that are decided before anything is asked: one packet where they come true, and no harm where they do not."""

import asyncio
import random
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_db import Database, DatabaseConfig, Pipelined, migrate
from daydo_db.packets import Wire
from daydo_db.transaction import Transaction
from daydo_kernel.testing import ManualClock
from daydo_quota import (
    Account,
    Balance,
    HoldExpired,
    InsufficientQuota,
    KeyConflict,
    Ledger,
    LedgerConfig,
    batcher,
    draft,
)
from daydo_quota.testing import check_books

ANN, BEN = Account("acme", "u_7", "credits"), Account("acme", "u_8", "credits")
CONFIG = LedgerConfig(sweep_interval_s=0, audit_interval_s=0)


@pytest.fixture
async def ledger(db: Database) -> AsyncIterator[Ledger]:
    async with Ledger(db, CONFIG, clock=ManualClock()) as ledger:
        await ledger.grant(ANN, 9, key="ann")
        await ledger.grant(BEN, 9, key="ben")
        yield ledger


@pytest.fixture
async def other(db: Database) -> AsyncIterator[Ledger]:
    """Another process, as far as memory goes."""
    async with Ledger(db, CONFIG, clock=ManualClock()) as other:
        yield other


class Here:
    """This machine's clock."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    here = Here()
    monkeypatch.setattr(draft, "monotonic", here)
    return here


def batches(ledger: Ledger) -> dict[str, int]:
    """How many there were, by how they were decided."""
    outcomes = ("drafted", "overtaken", "read")
    return {outcome: int(ledger._counts._batches[outcome].value) for outcome in outcomes}


@pytest.fixture
def packets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of statements that went to the database together."""
    sent = list[int]()
    execute_all, execute, commit = Transaction.execute_all, Transaction.execute, Transaction.commit

    async def all_of(tx: Transaction, statements: Any, **more: Any) -> Any:
        sent.append(len(statements))
        return await execute_all(tx, statements, **more)

    async def one(tx: Transaction, *statement: Any) -> Any:
        sent.append(1)
        return await execute(tx, *statement)

    async def end(tx: Transaction) -> None:
        sent.append(0)
        await commit(tx)

    monkeypatch.setattr(Transaction, "execute_all", all_of)
    monkeypatch.setattr(Transaction, "execute", one)
    monkeypatch.setattr(Transaction, "commit", end)
    return sent


async def test_what_is_remembered_needs_one_packet(ledger: Ledger, packets: list[int]) -> None:
    """A hold, its capture, its extension and its confirm: each is asked and answered once."""
    await ledger.reserve(ANN, 5, key="task")
    await ledger.capture(ANN, 2, key="page", hold_key="task")
    await ledger.extend(ANN, key="task", ttl_s=3000)
    await ledger.confirm(ANN, 1, key="task")
    await ledger.reserve_all([(ANN, 1), (BEN, 1)], key="both")
    assert len(packets) == 5
    assert await ledger.balance(ANN) == Balance(available=5, reserved=1, spent=3)


async def test_of_several_accounts_one_may_have_been_written_to_since(
    ledger: Ledger, other: Ledger, db: Database
) -> None:
    """Then nothing of the batch is kept, it is read, and all of it is right."""
    await other.reserve(BEN, 8, key="elsewhere")
    with pytest.raises(InsufficientQuota):
        await ledger.reserve_all([(ANN, 2), (BEN, 2)], key="both")
    assert (await ledger.reserve_all([(ANN, 2), (BEN, 1)], key="both"))[0].created
    assert batches(ledger)["overtaken"] == 1
    await check_books(db)


async def test_a_longer_time_that_another_gave_is_not_made_shorter(ledger: Ledger, other: Ledger) -> None:
    """No entry is written for it, whose number another writer could not take again: it is the stamp that tells."""
    await ledger.reserve(ANN, 5, key="task", ttl_s=10)
    longer = await other.extend(ANN, key="task", ttl_s=100)
    assert (await ledger.extend(ANN, key="task", ttl_s=20)).expires_at_us == longer.expires_at_us


async def test_a_key_that_is_not_new_is_a_repeat_or_a_conflict(ledger: Ledger, db: Database) -> None:
    """A hold that was settled is not remembered; its key is found all the same, whoever may ask."""
    await ledger.reserve(ANN, 2, key="task")
    await ledger.confirm(ANN, key="task")
    again = await ledger.reserve(ANN, 2, key="task")
    assert (again.created, again.phase, again.captured) == (False, "confirmed", 2)
    with pytest.raises(KeyConflict):
        await ledger.reserve(ANN, 3, key="task")
    with pytest.raises(KeyConflict):
        await ledger.charge(BEN, 2, key="task")
    assert await ledger.balance(ANN) == Balance(available=7, spent=2)
    await check_books(db)


async def test_a_repeat_is_not_refused_for_want_of_units(ledger: Ledger) -> None:
    """The units that it asks for are those that it took."""
    await ledger.charge(ANN, 9, key="all")
    assert not (await ledger.charge(ANN, 9, key="all")).created
    with pytest.raises(InsufficientQuota):
        await ledger.charge(ANN, 1, key="more")


async def test_a_batch_fails_for_nobody_but_whose_fault_it_is(ledger: Ledger, db: Database) -> None:
    """Repeats, refusals, what is not remembered and what is, together."""
    await ledger.charge(ANN, 1, key="done")
    outcomes = await asyncio.gather(
        ledger.charge(ANN, 1, key="done"),
        ledger.charge(ANN, 100, key="dear"),
        ledger.charge(Account("acme", "nobody", "credits"), 1, key="none"),
        ledger.grant(BEN, 1, key="ben"),
        *(ledger.charge(BEN, 1, key=f"page_{number}") for number in range(3)),
        return_exceptions=True,
    )
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == ["Hold", "InsufficientQuota", "InsufficientQuota", "KeyConflict", "Hold", "Hold", "Hold"]
    assert await ledger.balance(BEN) == Balance(available=6, spent=3)
    await check_books(db)


async def test_drafts_that_fail_are_tried_less_and_less(ledger: Ledger, other: Ledger) -> None:
    """Where two processes write to an account in turn all would fail; where one does, they soon come true again."""
    for number in range(30):
        await ledger.extend(ANN, key=(await other.reserve(ANN, 1, key=f"task_{number}")).key, ttl_s=600 + number)
        await other.cancel(ANN, key=f"task_{number}")
    assert batches(ledger)["overtaken"] <= 5
    await ledger.reserve(ANN, 1, key="task")
    before = batches(ledger)["drafted"]
    for number in range(80):
        await ledger.extend(ANN, key="task", ttl_s=1000 + number)
    assert batches(ledger)["drafted"] > before + 10
    assert batches(ledger)["overtaken"] <= 5


# Behind one another


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the disk is."""
    monkeypatch.setattr(Pipelined, "pays", property(lambda line: line.possible))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few calls are several batches."""
    monkeypatch.setattr(batcher, "_LEAST_CALLS", 1)


@pytest.fixture
def under_way(behind: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many packets were under way on its connection when one was sent."""
    ahead, exchange = list[int](), Wire._exchange

    async def watched(wire: Wire, *args: Any) -> None:
        ahead.append(len(wire._asked))
        await exchange(wire, *args)

    monkeypatch.setattr(Wire, "_exchange", watched)
    return ahead


@pytest.mark.dialect("mysql")
async def test_batches_on_one_account_follow_each_other_unanswered(
    ledger: Ledger, db: Database, under_way: list[int]
) -> None:
    """Each is decided on what those ahead will leave; what is there is taken once, and what is not is refused."""
    await ledger.grant(ANN, 300, key="more")

    async def task(number: int) -> int:
        amount = 0
        for turn in range(10):
            try:
                amount += (await ledger.reserve(ANN, 1, key=f"task_{number}_{turn}")).amount
            except InsufficientQuota:
                break
            await ledger.confirm(ANN, key=f"task_{number}_{turn}")
        return amount

    amounts = await asyncio.gather(*(task(number) for number in range(40)))
    assert sum(amounts) == 309
    assert max(under_way) == 1
    assert under_way.count(1) > 10
    assert await ledger.balance(ANN) == Balance(spent=309)
    await check_books(db)


@pytest.mark.dialect("mysql")
@pytest.mark.usefixtures("behind", "small")
async def test_what_was_decided_on_a_batch_that_fails_fails_with_it(
    ledger: Ledger, other: Ledger, db: Database
) -> None:
    """Somebody else has taken nearly all: of what is asked at once as much is held as there is."""
    await ledger.reserve(ANN, 1, key="mine")
    await other.reserve(ANN, 6, key="theirs")
    asked = [ledger.reserve(ANN, 1, key=f"task_{number}") for number in range(7)]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(outcome).__name__ for outcome in outcomes] == ["Hold"] * 2 + ["InsufficientQuota"] * 5
    assert batches(ledger)["overtaken"] == 2
    assert await ledger.balance(ANN) == Balance(reserved=9)
    await check_books(db)


@pytest.mark.dialect("mysql")
@pytest.mark.usefixtures("behind", "small")
async def test_a_lost_connection_with_batches_under_way_is_no_loss(ledger: Ledger, db: Database) -> None:
    """Nobody knows which of them were carried out: their keys do."""
    await ledger.grant(ANN, 5000, key="more")
    wires, done = set[Wire](), 0

    async def task(number: int) -> None:
        nonlocal done
        for turn in range(30):
            await ledger.charge(ANN, 1, key=f"task_{number}_{turn}")
            done += 1
            if len(wires) < done // 100:
                for connection in list(ledger._batcher._behind._users):  # type: ignore[union-attr]
                    wires.add(connection._wire)  # type: ignore[attr-defined]
                    connection._wire.abort()  # type: ignore[attr-defined]

    await asyncio.gather(*(task(number) for number in range(20)))
    assert len(wires) >= 3
    assert await ledger.balance(ANN) == Balance(available=4409, spent=600)
    await check_books(db)


@pytest.mark.dialect("mysql")
@pytest.mark.usefixtures("behind", "small")
async def test_what_waits_for_a_connection_is_decided_when_it_has_one(database_url: str) -> None:
    """Two batches wait; the first fails, for the sake of a repeat. What it would have made is made once, and there."""
    async with Database(database_url, DatabaseConfig(pool_max=1)) as db:
        await migrate(db, "daydo_quota")
        async with Ledger(db, CONFIG, clock=ManualClock()) as ledger:
            await ledger.grant(ANN, 100, key="order")
            await ledger.charge(ANN, 1, key="done")
            async with db.transaction() as tx:  # has the only connection
                await tx.execute("SELECT 1")
                calls = [ledger.grant(ANN, 50, key="topup"), ledger.charge(ANN, 1, key="done")]
                calls += [ledger.charge(ANN, 1, key="a"), ledger.charge(ANN, 1, key="b")]
                waiting = [asyncio.create_task(call) for call in calls]
                await asyncio.sleep(0.01)
            created = [(await task).created for task in waiting]
            assert created == [True, False, True, True]
            assert await ledger.balance(ANN) == Balance(available=147, spent=3)
            assert (await ledger.charge(ANN, 147, key="all")).created
        await check_books(db)


@pytest.mark.dialect("mysql")
@pytest.mark.usefixtures("behind", "small")
async def test_who_waits_for_a_key_does_not_make_the_others_wait_as_long(ledger: Ledger, db: Database) -> None:
    """A caller's transaction has claimed it: it is waited for in a lane, and those behind are answered long before."""
    others = [Account("acme", f"u_{number}", "credits") for number in range(4)]
    for account in others:
        await ledger.grant(account, 5, key=account.subject)
    async with db.transaction() as tx:
        await ledger.charge(BEN, 1, key="taken", tx=tx)
        stuck = asyncio.create_task(ledger.charge(ANN, 1, key="taken"))
        await asyncio.sleep(0.01)
        outside = [asyncio.create_task(ledger.charge(account, 1, key=account.subject + "_")) for account in others]
        async with asyncio.timeout(CONFIG.busy_timeout_s * 0.75):
            assert [charge.created for charge in await asyncio.gather(*outside)] == [True] * 4
        assert not stuck.done()
    with pytest.raises(KeyConflict):
        await stuck
    await check_books(db)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("small")
async def test_the_books_agree_whichever_way_batches_go(
    ledger: Ledger, other: Ledger, db: Database, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Behind one another or side by side as chance will have it, with another process on the same few accounts, callers
    that go, keys that come twice and units that do not suffice."""
    chance = random.Random(seed)
    monkeypatch.setattr(Pipelined, "pays", property(lambda line: line.possible and chance.random() < 0.6))
    accounts = [Account("acme", f"u_{number}", "credits") for number in range(4)]
    await asyncio.gather(*(ledger.grant(account, 60, key=account.subject) for account in accounts))
    spent = dict.fromkeys(accounts, 0)

    async def task(number: int) -> None:
        for turn in range(12):
            who, account = chance.choice([ledger, ledger, ledger, other]), chance.choice(accounts)
            key, amount = f"task_{number}_{turn}", chance.randint(1, 3)
            if chance.random() < 0.2:
                gone = asyncio.create_task(who.reserve(account, amount, key=key))
                await asyncio.sleep(0)
                gone.cancel()
            asked = [who.reserve(account, amount, key=key) for _ in range(chance.choice([1, 1, 2]))]
            held = await asyncio.gather(*asked, return_exceptions=True)
            settled = 0 if any(isinstance(hold, InsufficientQuota) for hold in held) else chance.randint(0, amount)
            if settled:
                await who.confirm(account, settled, key=key)
            else:
                await who.cancel(account, key=key)
            spent[account] += settled

    await asyncio.gather(*(task(number) for number in range(16)))
    for account in accounts:
        assert await ledger.balance(account) == Balance(available=60 - spent[account], spent=spent[account])
    await check_books(db)


# Time


async def test_a_hold_that_has_timed_out_is_not_confirmed_by_a_clock_that_lags(db: Database, here: Here) -> None:
    """The database's clock decides; that of a process that stood still meanwhile does not."""
    async with Ledger(db, CONFIG) as ledger:
        await ledger.grant(ANN, 9, key="order")
        await ledger.reserve(ANN, 1, key="task", ttl_s=0.05)
        await asyncio.sleep(0.1)
        with pytest.raises(HoldExpired):
            await ledger.confirm(ANN, key="task")
        assert batches(ledger)["overtaken"] == 1
    await check_books(db)


@pytest.mark.parametrize("jump_s", [-3600.0, -1.0, 0.05, 3600.0])
async def test_a_clock_that_jumps_dates_nothing_wrongly(db: Database, here: Here, jump_s: float) -> None:
    """Neither later than the database nor much earlier, whatever this machine's clock does."""

    async def now_us() -> int:
        return int((await db.query(f"SELECT {db.dialect.now_us}")).rows[0][0])

    async with Ledger(db, CONFIG) as ledger:
        await ledger.grant(ANN, 9, key="order")
        here.now_s += jump_s
        before_us = await now_us()
        hold = await ledger.reserve(ANN, 1, key="task", ttl_s=60)
        assert before_us - 250_000 <= hold.expires_at_us - 60_000_000 <= await now_us()


async def test_the_times_of_an_account_only_grow(db: Database, here: Here) -> None:
    """Whether they were told or reckoned."""
    async with Ledger(db, CONFIG) as ledger:
        await ledger.grant(ANN, 99, key="order")
        for number, step_s in enumerate([0.0, 0.001, -0.004, 0.0, 30.0, 0.0, -0.002, 0.001, 0.0]):
            here.now_s += step_s
            await ledger.charge(ANN, 1, key=f"page_{number}")
        times = [entry.at_us for entry in (await ledger.history(ANN.tenant, ANN.subject, unit=ANN.unit)).items]
    assert all(later >= earlier for later, earlier in pairwise(times))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["told", "asked"]),
            st.integers(0, 12_000_000),  # µs that pass before
            st.integers(0, 500_000),  # µs that the answer took
        ),
        max_size=30,
    ),
    st.floats(-0.0004, 0.0004),
)
def test_the_time_that_is_reckoned_is_never_later_than_the_databases(
    steps: list[tuple[str, int, int]], drift: float
) -> None:
    """However long answers take and whichever clock is faster; and it never goes back."""
    true_us, here = 1_700_000_000_000_000, Here()
    began_us, before = true_us, here.now_s
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draft, "monotonic", here)
        time, last_us = draft._Time(None), 0
        for what, passed_us, answer_us in steps:
            true_us += passed_us
            told_us = true_us
            true_us += answer_us if what == "told" else 0
            here.now_s = before + (true_us - began_us) / 1e6 * (1 + drift)
            if what == "told":
                time.told(told_us)
            elif (now_us := time.now_us()) is not None:
                assert last_us <= now_us <= true_us
                last_us = now_us

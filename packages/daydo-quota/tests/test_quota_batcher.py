"""Many callers, one commit: nobody waits, fails or is lost for another's sake."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext, suppress
from itertools import count
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_db import CommitUnknown, ConnectionLost, Database, DatabaseConfig, LockTimeout
from daydo_db.transaction import Transaction
from daydo_kernel import Event
from daydo_kernel.testing import ManualClock
from daydo_quota import (
    Account,
    AccountBusy,
    Balance,
    HoldUnknown,
    InsufficientQuota,
    KeyConflict,
    Ledger,
    LedgerConfig,
    LedgerLeft,
    QueueFull,
    store,
)
from daydo_quota.batcher import _Batch, _Call, _Line
from daydo_quota.ops import Leg, Op, ReserveAll
from daydo_quota.rows import AccountKey
from daydo_quota.testing import check_books

CREDITS = Account("acme", "u_7", "credits")
ACCOUNTS = [Account("acme", f"u_{number}", "credits") for number in range(64)]


class Gate:
    """An event sink that holds a batch in its transaction while it is shut, and refuses one key."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self.opened.set()
        self.poison = ""
        self.batches: dict[Any, list[str]] = {}
        """The keys of each transaction's events."""

    def shut(self) -> None:
        self.opened.clear()
        self.reached.clear()

    async def emit(self, event: Event, tx: Any = None) -> None:
        self.batches.setdefault(tx, []).append(event.data["key"])
        if event.data["key"] == self.poison:
            raise ZeroDivisionError
        self.reached.set()
        await self.opened.wait()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def ledger(db: Database, gate: Gate) -> AsyncIterator[Ledger]:
    config = LedgerConfig(sweep_interval_s=0, busy_timeout_s=0.3)
    async with Ledger(db, config, clock=ManualClock(), events=gate) as ledger:
        yield ledger
    await check_books(db)


async def give(ledger: Ledger, accounts: list[Account], amount: int = 10) -> None:
    await asyncio.gather(*(ledger.grant(account, amount, key=f"order_{account.subject}") for account in accounts))


async def answers(*calls: Any) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_callers_share_a_commit(db: Database, gate: Gate) -> None:
    """What comes while a batch is written is the next batch, however much that is; a refusal concerns its caller."""
    config = LedgerConfig(sweep_interval_s=0, flushers=1)
    async with Ledger(db, config, clock=ManualClock(), events=gate) as ledger:
        await give(ledger, ACCOUNTS)
        gate.batches.clear()
        gate.shut()
        first = asyncio.create_task(ledger.reserve(ACCOUNTS[0], 1, key="first"))
        await gate.reached.wait()
        others = [ledger.reserve(account, 2, key=account.subject) for account in ACCOUNTS]
        unknown = ledger.confirm(ACCOUNTS[1], key="never")
        waiting = asyncio.create_task(answers(*others, ledger.reserve(ACCOUNTS[3], 9, key="too_much"), unknown))
        await asyncio.sleep(0)
        gate.opened.set()
        assert (await first).created
        *held, refused, missing = await waiting
    assert all(hold.amount == 2 for hold in held)
    assert isinstance(refused, InsufficientQuota)
    assert isinstance(missing, HoldUnknown)
    assert len(gate.batches) == 2
    await check_books(db)


@pytest.mark.dialect("mysql")
async def test_one_batch_is_decided_while_another_is_written(ledger: Ledger, gate: Gate) -> None:
    """Of other accounts: what is asked about one that is being written waits for that, and comes after it."""
    await give(ledger, ACCOUNTS)
    gate.batches.clear()
    gate.shut()
    tasks = [asyncio.create_task(ledger.reserve(CREDITS, 1, key="first"))]
    await gate.reached.wait()
    both = [(CREDITS, 1), (ACCOUNTS[9], 1)]
    asked = [ledger.reserve(CREDITS, 1, key="second"), ledger.reserve_all(both, key="both")]
    asked += [ledger.reserve(account, 1, key="third") for account in (ACCOUNTS[9],)]
    asked.append(ledger.reserve(ACCOUNTS[8], 1, key="beside"))
    tasks += [asyncio.create_task(call) for call in asked]
    gate.reached.clear()
    await gate.reached.wait()
    assert list(gate.batches.values()) == [["first"], ["beside"]]
    gate.opened.set()
    await asyncio.gather(*tasks)
    orders = [["first", "second", "both"], ["both", "third"]]
    for account, keys in zip((CREDITS, ACCOUNTS[9]), orders, strict=True):
        entries = (await ledger.history("acme", account.subject)).items
        assert [entry.key for entry in entries if entry.kind == "held"][::-1] == keys


@pytest.mark.dialect("mysql")
async def test_writers_share_accounts_and_not_the_calls_on_one(ledger: Ledger, gate: Gate) -> None:
    """64 accounts are two batches of 32; 64 calls on one account are one batch."""
    await give(ledger, ACCOUNTS, 100)
    gate.batches.clear()
    await asyncio.gather(*(ledger.reserve(account, 1, key=account.subject) for account in ACCOUNTS))
    assert [len(keys) for keys in gate.batches.values()] == [32, 32]
    gate.batches.clear()
    await asyncio.gather(*(ledger.reserve(CREDITS, 1, key=f"task_{number}") for number in range(64)))
    assert [len(keys) for keys in gate.batches.values()] == [64]


@pytest.mark.parametrize("position", [0, 17, 63])
async def test_a_poison_operation_fails_alone(ledger: Ledger, gate: Gate, position: int) -> None:
    """In a batch of 64 it is found by halves; its 63 neighbours are written, each once."""
    await give(ledger, ACCOUNTS)
    gate.poison = f"task_{position}"
    holds = await answers(
        *(ledger.reserve(account, 4, key=f"task_{number}") for number, account in enumerate(ACCOUNTS))
    )
    assert [number for number, hold in enumerate(holds) if isinstance(hold, ZeroDivisionError)] == [position]
    assert all(hold.created for number, hold in enumerate(holds) if number != position)
    balances = [await ledger.balance(account) for account in ACCOUNTS]
    assert balances[position] == Balance(available=10)
    del balances[position]
    assert balances == [Balance(available=6, reserved=4)] * 63


class Writers:
    """Of a line whose batches end at any time, well or not, as ``chance`` will have it."""

    def __init__(self, line: _Line, chance: random.Random) -> None:
        self.line = line
        self.chance = chance
        self.order: list[_Call] = []
        self.wrong: list[_Batch] = []

    def take(self, most: int) -> None:
        line, under_way = self.line, self.line.under_way
        batch = line.take(most, behind=self.chance.random() < 0.7)
        assert len(batch.calls) <= most
        assert batch.calls or under_way or not line.calls, "whom nobody works for would wait for ever"
        assert len({call.read for call in batch.calls}) < 2
        assert not (batch.behind and any(call.read for call in batch.calls))
        for other in under_way:
            assert (batch.behind and other.behind) or batch.accounts.isdisjoint(other.accounts)
        if not batch.calls:
            return
        under_way.append(batch)
        # What was decided on what does not come true is wrong, too.
        follows = any(not batch.accounts.isdisjoint(before.accounts) for before in self.wrong)
        if not batch.calls[0].read and (follows or self.chance.random() < 0.3):
            self.wrong.append(batch)

    def end_one(self) -> None:
        ended = self.chance.choice(self.line.under_way)
        if ended.behind:  # A server carries them out in their order.
            ended = next(batch for batch in self.line.under_way if batch.behind)
        self.line.under_way.remove(ended)
        if ended not in self.wrong:
            self.order += ended.calls
            return
        self.wrong.remove(ended)
        for call in ended.calls:
            call.read = True
        self.line.add(*ended.calls)


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True), max_size=40),
    st.integers(1, 4),
    st.integers(1, 8),
    st.integers(),
)
def test_calls_on_an_account_are_taken_in_their_order_whatever_becomes_of_batches(
    asked: list[list[int]], writers: int, most: int, seed: int
) -> None:
    """Whatever is asked, whoever goes, whichever batch ends first or fails, behind one another or side by side: nothing
    is lost, what is asked later never comes before, and an account is in one batch at a time, those behind excepted.
    """
    chance = random.Random(seed)

    async def work_off() -> None:
        line = _Line("flush", patient=False, shared=True, writers=writers)
        calls = [_Call(reserve_in(numbers, key=str(at)), at) for at, numbers in enumerate(asked)]
        line.calls.extend(calls)
        gone = {at for at in range(len(asked)) if chance.random() < 0.1}
        for at in gone:
            calls[at].answer.cancel()
        at_work = Writers(line, chance)
        while line.calls or line.under_way:
            if len(line.under_way) < writers:
                at_work.take(most)
            if line.under_way and chance.random() < 0.5:
                at_work.end_one()
        for number in range(5):
            keys = [int(call.op.key) for call in at_work.order if account_key(number) in call.accounts]
            assert keys == [at for at, numbers in enumerate(asked) if number in numbers and at not in gone]

    with patch("daydo_quota.batcher._LEAST_SHARE", 1), patch("daydo_quota.batcher._LEAST_CALLS", 1):
        asyncio.run(work_off())


def account_key(number: int) -> AccountKey:
    return ("acme", f"u_{number}", "credits")


def reserve_in(numbers: list[int], key: str) -> Op:
    legs = tuple(Leg(f"hold_{key}_{number}", account_key(number), 1) for number in numbers)
    return ReserveAll(legs=legs, key=key, ttl_us=1, ttl_given_us=None, reason="")


async def test_keys_are_claimed_in_one_order(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches that claim the same keys for other accounts would otherwise wait for each other in a circle."""
    await give(ledger, ACCOUNTS)
    claimed, execute_all = list[list[str]](), Transaction.execute_all

    async def watched(tx: Transaction, statements: Any, **more: Any) -> Any:
        for sql, args in statements:
            if sql.startswith("INSERT INTO daydo_quota_hold"):
                claimed.append([value for value in args if str(value).startswith("task_")])
        return await execute_all(tx, statements, **more)

    monkeypatch.setattr(Transaction, "execute_all", watched)
    keys = [f"task_{number:02}" for number in range(64)]
    await asyncio.gather(
        *(ledger.reserve(account, 1, key=key) for account, key in zip(ACCOUNTS, keys[::-1], strict=True))
    )
    assert sorted({key for some in claimed for key in some}) == keys  # A draft that comes too late is written again.
    assert all(some == sorted(some) for some in claimed)


async def test_a_key_that_is_claimed_after_it_was_looked_up_is_found(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is to be repeated after a failure, for this is none."""
    async with Ledger(db, LedgerConfig(sweep_interval_s=0)) as before:
        await give(before, [CREDITS])
        await before.charge(CREDITS, 1, key="task")
    seen, keys_of = count(), store.keys_of
    monkeypatch.setattr(store, "keys_of", lambda table, ops: keys_of(table, ops) if next(seen) >= 4 else [])
    async with Ledger(db, LedgerConfig(sweep_interval_s=0, retries=0)) as ledger:
        assert not (await ledger.charge(CREDITS, 1, key="task")).created
    assert next(seen) > 4


async def test_a_caller_that_goes_while_it_waits_is_taken_out(ledger: Ledger, gate: Gate) -> None:
    """One in line is never written; one in a batch under way is written, and its neighbours get their answers."""
    await give(ledger, [CREDITS])
    gate.shut()
    under_way = [asyncio.create_task(ledger.reserve(CREDITS, 1, key=f"under_way_{number}")) for number in range(2)]
    await gate.reached.wait()
    in_line = [asyncio.create_task(ledger.reserve(CREDITS, 1, key=f"in_line_{number}")) for number in range(3)]
    await asyncio.sleep(0)
    for task in (under_way[0], in_line[1]):
        task.cancel()
    await asyncio.sleep(0)
    gate.opened.set()
    done = await answers(*under_way, *in_line)
    assert [isinstance(answer, asyncio.CancelledError) for answer in done] == [True, False, False, True, False]
    keys = [entry.key for entry in (await ledger.history("acme", "u_7")).items]
    assert keys == ["in_line_2", "in_line_0", "under_way_1", "under_way_0", "order_u_7"]


async def test_an_accounts_calls_are_decided_as_they_came(ledger: Ledger) -> None:
    """Over several accounts and batches each account's entries stand in the order of its calls."""
    some = ACCOUNTS[:3]
    await give(ledger, some, 1_000)
    keys = [f"task_{number}" for number in range(300)]
    await asyncio.gather(*(ledger.reserve(some[number % 3], 1, key=key) for number, key in enumerate(keys)))
    for number, account in enumerate(some):
        found: list[str] = []
        cursor = None
        while len(found) < 100:
            page = await ledger.history("acme", account.subject, cursor=cursor, limit=100)
            found += [entry.key for entry in page.items if entry.kind == "held"]
            cursor = page.next_cursor
        assert found[::-1] == keys[number::3]


@pytest.mark.dialect("mysql")
async def test_an_open_transaction_stalls_its_own_account_alone(db: Database, database_url: str) -> None:
    """63 others are written meanwhile; its own calls wait for it, then say AccountBusy, and work again afterwards."""
    slow, config = DatabaseConfig(lock_timeout_s=60), LedgerConfig(sweep_interval_s=0, busy_timeout_s=0.3)
    async with Database(database_url, slow) as own_db, Ledger(own_db, config) as ledger:
        await give(ledger, ACCOUNTS)
        async with db.transaction() as tx, asyncio.timeout(30):
            await ledger.reserve(CREDITS, 1, key="callers", tx=tx)
            tasks = [asyncio.create_task(ledger.reserve(account, 2, key=account.subject)) for account in ACCOUNTS]
            later = asyncio.create_task(ledger.reserve(CREDITS, 3, key="later"))
            others = [task for task, account in zip(tasks, ACCOUNTS, strict=True) if account != CREDITS]
            held = await asyncio.gather(*others)
            assert all(hold.created for hold in held)
            [own] = [task for task in tasks if task not in others]
            assert not own.done()
            for task in (own, later):
                with pytest.raises(AccountBusy) as busy:
                    await task
                assert busy.value.retryable
            assert (await ledger.reserve(ACCOUNTS[8], 1, key="more")).created
        assert (await ledger.reserve(CREDITS, 2, key="u_7")).created
        assert await ledger.balance(CREDITS) == Balance(available=7, reserved=3)
    await check_books(db)


@pytest.mark.dialect("mysql")
@pytest.mark.parametrize("fails", [False, True])
async def test_the_end_of_a_block_outlasts_a_busy_account(ledger: Ledger, db: Database, fails: bool) -> None:
    """Work that is done is charged, and work that failed is given back, although a call would long have given up."""
    await give(ledger, [CREDITS])

    async def work() -> None:
        async with ledger.hold(CREDITS, 4, key="task_1"):
            begun.set()
            await locked.wait()
            if fails:
                raise ZeroDivisionError

    begun, locked = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(work())
    await begun.wait()
    async with db.transaction() as tx:
        await ledger.balance(CREDITS, tx=tx)
        locked.set()
        with pytest.raises(AccountBusy):
            await asyncio.create_task(ledger.reserve(CREDITS, 1, key="impatient"))
        assert not task.done()
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        await task
    assert await ledger.balance(CREDITS) == (Balance(available=10) if fails else Balance(available=6, spent=4))


@pytest.mark.dialect("mysql")
async def test_calls_in_a_lane_go_on_in_their_order(db: Database) -> None:
    """When the transaction that has the account ends, those that waited are written as they came; one went away."""
    async with Ledger(db, LedgerConfig(busy_timeout_s=30, sweep_interval_s=0)) as ledger:
        await give(ledger, [CREDITS])
        async with db.transaction() as tx:
            await ledger.balance(CREDITS, tx=tx)
            tasks = []
            for number in range(6):
                tasks.append(asyncio.create_task(ledger.reserve(CREDITS, 1, key=f"task_{number}")))
                await asyncio.sleep(0.01 * number)
            tasks[4].cancel()
            await asyncio.sleep(0)
        await answers(*tasks)
        keys = [entry.key for entry in (await ledger.history("acme", "u_7")).items if entry.kind == "held"]
        assert keys[::-1] == [f"task_{number}" for number in (0, 1, 2, 3, 5)]
    await check_books(db)


@pytest.mark.dialect("mysql")
async def test_a_lane_takes_its_later_calls_along(db: Database, gate: Gate) -> None:
    """A call that was in line when its account turned out to be busy goes before those that come afterwards."""
    other = ACCOUNTS[1]
    async with Ledger(db, LedgerConfig(busy_timeout_s=30, sweep_interval_s=0), events=gate) as ledger:
        await give(ledger, [CREDITS, other])
        async with db.transaction() as tx:
            await ledger.balance(CREDITS, tx=tx)
            gate.shut()
            tasks = [asyncio.create_task(ledger.reserve(CREDITS, 1, key="first"))]
            beside = asyncio.create_task(ledger.reserve(other, 1, key="beside"))
            await gate.reached.wait()
            tasks.append(asyncio.create_task(ledger.reserve(CREDITS, 1, key="second")))
            behind = asyncio.create_task(ledger.reserve(other, 1, key="behind"))
            await asyncio.sleep(0)
            gate.opened.set()
            await beside
            gate.shut()
            await gate.reached.wait()
            tasks.append(asyncio.create_task(ledger.reserve(CREDITS, 1, key="third")))
            await asyncio.sleep(0)
            gate.opened.set()
            await behind
        await asyncio.gather(*tasks)
        keys = [entry.key for entry in (await ledger.history("acme", "u_7")).items if entry.kind == "held"]
        assert keys[::-1] == ["first", "second", "third"]


@pytest.mark.dialect("mysql")
async def test_a_newcomer_that_another_is_making_holds_up_nobody(db: Database) -> None:
    """A first grant that a caller's transaction makes too: other accounts, new ones also, do not wait for its end."""
    async with Ledger(db, LedgerConfig(busy_timeout_s=1.5, sweep_interval_s=0)) as ledger:
        await give(ledger, ACCOUNTS[:2])
        async with db.transaction() as tx:
            await ledger.grant(CREDITS, 5, key="callers", tx=tx)
            some = ACCOUNTS[:16]
            tasks = [asyncio.create_task(ledger.grant(account, 1, key=f"new_{account.subject}")) for account in some]
            others = [task for task, account in zip(tasks, some, strict=True) if account != CREDITS]
            assert all(grant.created for grant in await asyncio.gather(*others))
            with pytest.raises(AccountBusy):
                await next(task for task in tasks if task not in others)
    await check_books(db)


@pytest.mark.parametrize("kept", [True, False])
async def test_a_connection_cut_at_commit_loses_and_doubles_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Every second COMMIT goes unanswered, kept or not; each call is told what it did, once."""
    real, turn = Transaction._finish, 0

    async def commit(tx: Transaction, statements: Any, timeout_s: Any = None) -> Any:
        nonlocal turn
        turn += 1
        if turn % 2 == 0:
            await real(tx, statements)
            return
        if kept:
            await real(tx, statements)
        else:
            tx._ended = True
        tx.outcome = "unknown"
        raise CommitUnknown from ConnectionLost()

    monkeypatch.setattr(Transaction, "_finish", commit)
    await give(ledger, ACCOUNTS)
    for _ in range(2):
        holds = await asyncio.gather(*(ledger.reserve(account, 4, key=account.subject) for account in ACCOUNTS))
        settled = await asyncio.gather(*(ledger.confirm(account, 3, key=account.subject) for account in ACCOUNTS))
        assert [hold.captured for hold in settled] == [3] * 64
    assert not any(hold.created for hold in holds), "the second time they were there"
    for account in ACCOUNTS[:3]:
        assert await ledger.balance(account) == Balance(available=7, spent=3)


async def test_a_commit_that_stays_unanswered_is_said_to_be_unknown(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never that nothing was changed, though the last attempt did not even reach the server."""
    await give(ledger, [CREDITS])
    real, turn = Transaction._finish, 0

    async def commit(tx: Transaction, statements: Any, timeout_s: Any = None) -> Any:
        nonlocal turn
        turn += 1
        if turn > 1:
            tx._ended = True
            raise ConnectionLost
        await real(tx, statements)
        tx.outcome = "unknown"
        raise CommitUnknown

    with monkeypatch.context() as cut:
        cut.setattr(Transaction, "_finish", commit)
        with pytest.raises(CommitUnknown):
            await ledger.reserve(CREDITS, 4, key="task")
    assert not (await ledger.reserve(CREDITS, 4, key="task")).created
    assert await ledger.balance(CREDITS) == Balance(available=6, reserved=4)


@pytest.mark.parametrize("error", [ConnectionLost, LockTimeout])
async def test_a_batch_that_the_server_undid_is_written_again(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Whole, and for everybody: nobody notices."""
    await give(ledger, ACCOUNTS)
    real, turn = Transaction.execute, 0

    async def execute(tx: Transaction, sql: str, args: Any = ()) -> Any:
        nonlocal turn
        turn += 1
        if turn in (3, 9):
            raise error
        return await real(tx, sql, args)

    monkeypatch.setattr(Transaction, "execute", execute)
    holds = await asyncio.gather(*(ledger.reserve(account, 4, key=account.subject) for account in ACCOUNTS))
    assert all(hold.created for hold in holds)


async def test_leaving_writes_what_waits(db: Database, gate: Gate) -> None:
    """A full queue refuses the next call at once, and is written before the ledger is left."""
    ledger = Ledger(db, LedgerConfig(queue_max=20, sweep_interval_s=0), events=gate)
    async with ledger:
        await ledger.grant(CREDITS, 100, key="order")
        gate.shut()
        tasks = [asyncio.create_task(ledger.reserve(CREDITS, 1, key=f"task_{number}")) for number in range(20)]
        await gate.reached.wait()
        with pytest.raises(QueueFull):
            await ledger.reserve(CREDITS, 1, key="one_more")
        leaving = asyncio.create_task(ledger.__aexit__(None, None, None))
        await asyncio.sleep(0)
        gate.opened.set()
        await leaving
        assert all(hold.created for hold in await asyncio.gather(*tasks))
    await check_books(db)


async def test_leaving_tells_those_it_does_not_wait_for(db: Database, gate: Gate) -> None:
    """After ``drain_s`` what is not committed is undone and says so: nothing was changed."""
    ledger = Ledger(db, LedgerConfig(batch_max=8, drain_s=0.05, sweep_interval_s=0), events=gate)
    async with ledger:
        await ledger.grant(CREDITS, 100, key="order")
        gate.shut()
        tasks = [asyncio.create_task(ledger.reserve(CREDITS, 1, key=f"task_{number}")) for number in range(20)]
        await gate.reached.wait()
    assert all(isinstance(answer, LedgerLeft) for answer in await answers(*tasks))
    gate.opened.set()
    async with ledger:
        assert await ledger.balance(CREDITS) == Balance(available=100)
        assert (await ledger.reserve(CREDITS, 1, key="task_0")).created
    await check_books(db)


class Commits:
    """Those of transactions that are written from now on are done, and their answers on their way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real, self.done, self.answered = Transaction._finish, asyncio.Event(), asyncio.Event()
        self.delayed = False

        async def finish(tx: Transaction, statements: Any, timeout_s: Any = None) -> Any:
            results = await real(tx, statements, timeout_s)
            if self.delayed:
                self.done.set()
                await self.answered.wait()
            return results

        monkeypatch.setattr(Transaction, "_finish", finish)

    async def wait(self) -> None:
        self.delayed = True
        await self.done.wait()

    async def answer_while_left(self, ledger: Ledger) -> None:
        """Leave ``ledger``; the answers come when all else in it has been stopped."""
        leaving = asyncio.create_task(ledger.__aexit__(None, None, None))
        for _ in range(20):
            await asyncio.sleep(0)
        self.answered.set()
        await leaving


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Commits]:
    commits = Commits(monkeypatch)
    yield commits
    commits.answered.set()


LEAVING = LedgerConfig(drain_s=0.0, sweep_interval_s=0, audit_interval_s=0)


async def test_leaving_waits_for_a_commit_that_is_on_its_way(db: Database, commits: Commits) -> None:
    """Its callers are told that it was done, and not that nothing was changed."""
    ledger = Ledger(db, LEAVING)
    async with ledger:
        await give(ledger, [CREDITS])
        call = asyncio.create_task(ledger.reserve(CREDITS, 4, key="task"))
        await commits.wait()
        await commits.answer_while_left(ledger)
        assert (await call).created


async def test_a_block_waits_for_a_commit_that_is_on_its_way(db: Database, commits: Commits) -> None:
    """It begins, for its hold was made; only then it hears that nobody is left to settle it."""
    begun = False

    async def work() -> None:
        nonlocal begun
        async with ledger.hold(CREDITS, 4, key="task"):
            begun = True

    ledger = Ledger(db, LEAVING)
    async with ledger:
        await give(ledger, [CREDITS])
        call = asyncio.create_task(work())
        await commits.wait()
        await commits.answer_while_left(ledger)
        with pytest.raises(LedgerLeft):
            await call
        assert begun
    assert (await db.query("SELECT phase FROM daydo_quota_hold")).rows == [("open",)]


async def test_a_block_that_ends_while_the_ledger_is_left_hears_that_it_was_charged(
    db: Database, commits: Commits
) -> None:
    """Its confirm is committed, and its answer comes after all else was stopped."""
    begun, over = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with ledger.hold(CREDITS, 4, key="task"):
            begun.set()
            await over.wait()

    ledger = Ledger(db, LEAVING)
    async with ledger:
        await give(ledger, [CREDITS])
        call = asyncio.create_task(work())
        await begun.wait()
        over.set()
        await commits.wait()
        await commits.answer_while_left(ledger)
        await call
    assert (await db.query("SELECT phase FROM daydo_quota_hold")).rows == [("confirmed",)]


@pytest.mark.parametrize("how", ["a call", "a block"])
async def test_a_commit_that_outlasts_leaving_is_said_to_be_unknown(
    db: Database, commits: Commits, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It was done, as it happens; nobody who leaves can know."""
    monkeypatch.setattr("daydo_kernel.lifecycle.CANCELLATIONS_MAX", 1)

    async def work() -> None:
        if how == "a call":
            await ledger.reserve(CREDITS, 4, key="task")
        else:
            async with ledger.hold(CREDITS, 4, key="task"):
                pass

    ledger = Ledger(db, LEAVING)
    async with ledger:
        await give(ledger, [CREDITS])
        call = asyncio.create_task(work())
        await commits.wait()
    with pytest.raises(CommitUnknown):
        await call


OTHER_PROCESS = """
import asyncio, sys
from daydo_db import Database
from daydo_quota import Account, Ledger

async def main(url):
    async with Database(url) as db, Ledger(db) as ledger:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        async def pair(number):
            account = Account("acme", f"u_{number % 3}", "credits")
            await ledger.reserve(account, 2, key=f"other_{number}")
            await ledger.confirm(account, 1, key=f"other_{number}")
        await asyncio.gather(*(pair(number) for number in range(90)))

asyncio.run(main(sys.argv[1]))
"""


async def test_two_processes_share_accounts(db: Database, database_url: str) -> None:
    """Each waits for the other's batches in turn; no unit is lost or taken twice."""
    some = ACCOUNTS[:3]
    async with Ledger(db, LedgerConfig(busy_timeout_s=30)) as ledger:
        await give(ledger, some, 1_000)
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-c", OTHER_PROCESS, database_url, stdin=-1, stdout=-1
        )
        assert other.stdin is not None
        assert other.stdout is not None
        assert await other.stdout.readline() == b"ready\n"
        other.stdin.write(b"go\n")

        async def pair(number: int) -> None:
            await ledger.reserve(some[number % 3], 2, key=f"own_{number}")
            await ledger.confirm(some[number % 3], 1, key=f"own_{number}")

        await asyncio.gather(*(pair(number) for number in range(90)))
        await other.communicate()
        assert other.returncode == 0
        for account in some:
            assert await ledger.balance(account) == Balance(available=940, spent=60)
    await check_books(db)


# -- what others hold up ---------------------------------------------------------------------------------------------


async def test_forgotten_ids_are_looked_up_again(db: Database) -> None:
    """Accounts that do not fit into what is remembered are found all the same, in one batch with those that do."""
    async with Ledger(db, LedgerConfig(sweep_interval_s=0, remembered_rows=3)) as ledger:
        await give(ledger, ACCOUNTS[:8])
        for account in ACCOUNTS[:2]:
            await ledger.reserve(account, 1, key=f"first_{account.subject}")
        holds = await asyncio.gather(*(ledger.reserve(account, 9, key=account.subject) for account in ACCOUNTS[2:8]))
        assert all(hold.created for hold in holds)
        confirmed = await asyncio.gather(
            *(ledger.confirm(account, key=f"first_{account.subject}") for account in ACCOUNTS[:2]),
            *(ledger.confirm(account, key=account.subject) for account in ACCOUNTS[2:8]),
        )
        assert all(hold.phase == "confirmed" for hold in confirmed)


@pytest.mark.dialect("mysql")
async def test_a_key_that_somebody_is_claiming_holds_up_its_own_call_alone(db: Database, database_url: str) -> None:
    """The other transaction's row cannot be seen yet; only the INSERT waits for it, and nobody waits along."""
    mine, others, later = ACCOUNTS[:3]
    slow = DatabaseConfig(lock_timeout_s=60)
    async with Database(database_url, slow) as own, Ledger(own, LedgerConfig(busy_timeout_s=0.3)) as ledger:
        await give(ledger, ACCOUNTS[:3])
        async with db.transaction() as tx, asyncio.timeout(30):
            await ledger.grant(mine, 5, key="code_77", tx=tx)
            blocked = asyncio.create_task(ledger.grant(others, 5, key="code_77"))
            beside = asyncio.create_task(ledger.reserve(later, 1, key="beside"))
            assert (await beside).created
            assert (await ledger.reserve(later, 1, key="behind")).created
            with pytest.raises(CommitUnknown):  # It was on its way, COMMIT and all, when it was given up.
                await blocked
        with pytest.raises(KeyConflict):
            await ledger.grant(others, 5, key="code_77")


async def press(ledger: Ledger, account: Account) -> None:
    """Ask for the account again and again."""
    for number in count():
        with suppress(AccountBusy):
            await ledger.reserve(account, 1, key=f"{id(asyncio.current_task())}_{number}")


@pytest.mark.dialect("mysql")
async def test_lanes_take_turns(db: Database) -> None:
    """An account that is locked for long, and asked for again and again, does not keep another one's lane waiting."""
    config = LedgerConfig(sweep_interval_s=0, busy_timeout_s=0.3, busy_accounts=1)
    stuck, other = ACCOUNTS[:2]

    async def lock() -> None:
        async with db.transaction() as theirs:
            await ledger.balance(other, tx=theirs)
            locked.set()
            await unlock.wait()

    async with Ledger(db, config) as ledger:
        await give(ledger, [stuck, other])
        locked, unlock = asyncio.Event(), asyncio.Event()
        async with db.transaction() as tx:
            await ledger.balance(stuck, tx=tx)
            pressing = [asyncio.create_task(press(ledger, stuck)) for _ in range(3)]
            holder = asyncio.create_task(lock())
            await locked.wait()
            call = asyncio.create_task(ledger.reserve(other, 1, key="task"))
            while key_of(other) not in ledger._batcher._lanes:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
            unlock.set()
            await holder
            async with asyncio.timeout(30):
                assert (await call).created
            for task in pressing:
                task.cancel()
            await asyncio.wait(pressing)


def key_of(account: Account) -> tuple[str, str, str]:
    return account.tenant, account.subject, account.unit


@pytest.mark.dialect("mysql")
async def test_newcomers_share_a_connection(db: Database) -> None:
    """However many accounts others are just making, those who wait for them do not take all connections."""
    config = LedgerConfig(sweep_interval_s=0, busy_timeout_s=0.5, busy_accounts=2)
    async with Ledger(db, config) as ledger:
        most = 0
        async with db.transaction() as tx:
            for account in ACCOUNTS[:20]:
                await ledger.grant(account, 1, key=f"theirs_{account.subject}", tx=tx)
            tasks = []
            for account in ACCOUNTS[:20]:
                tasks.append(asyncio.create_task(ledger.grant(account, 1, key=f"ours_{account.subject}")))
                await asyncio.sleep(0.01)
            while not all(task.done() for task in tasks):
                most = max(most, db._writers.in_use)
                await asyncio.sleep(0.01)
        assert all(isinstance(task.exception(), AccountBusy) for task in tasks)
        # The transaction above, the main line, the newcomers, two lanes.
        assert most <= 5
    await check_books(db)

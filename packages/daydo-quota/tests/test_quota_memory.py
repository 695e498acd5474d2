"""What a ledger remembers of accounts: believed where nobody has written since, and read again where somebody has."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from daydo_db import Database
from daydo_db.transaction import Transaction
from daydo_kernel.testing import ManualClock
from daydo_quota import (
    Account,
    Balance,
    BooksDisagree,
    HoldExpired,
    HoldUnknown,
    InsufficientQuota,
    KeyConflict,
    Ledger,
    LedgerConfig,
)
from daydo_quota.memory import Memory, Sheet
from daydo_quota.rows import AccountRow, GrantRow, HoldRow, Plan
from daydo_quota.testing import check_books

ANN, BEN = Account("acme", "u_7", "credits"), Account("acme", "u_8", "credits")
CONFIG = LedgerConfig(sweep_interval_s=0, audit_interval_s=0)


class Counting:
    """The statements that a ledger runs, by their first words."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tables: list[str] = []
        execute_all = Transaction.execute_all

        async def counted(tx: Transaction, statements: Any, **more: Any) -> Any:
            self.tables += [sql.split(" FROM ")[1].split()[0] for sql, _ in statements if " FROM daydo" in sql]
            return await execute_all(tx, statements, **more)

        monkeypatch.setattr(Transaction, "execute_all", counted)


@pytest.fixture
async def ledger(db: Database, clock: ManualClock) -> AsyncIterator[Ledger]:
    async with Ledger(db, CONFIG, clock=clock) as ledger:
        yield ledger


@pytest.fixture
async def other(db: Database, clock: ManualClock) -> AsyncIterator[Ledger]:
    """Another process, as far as memory goes."""
    async with Ledger(db, CONFIG, clock=clock) as other:
        yield other


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def test_what_was_written_here_is_not_read_again(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A confirm locks its account, and reads neither the hold nor the grants."""
    await ledger.grant(ANN, 9, key="order")
    await ledger.reserve(ANN, 2, key="task")
    seen = Counting(monkeypatch)
    await ledger.confirm(ANN, key="task")
    assert seen.tables == ["daydo_quota_account"]


async def test_what_another_process_wrote_is_read(ledger: Ledger, other: Ledger, db: Database) -> None:
    """A grant, a hold and a settlement of the other are there for the next call here."""
    await ledger.grant(ANN, 2, key="order")
    await ledger.reserve(ANN, 2, key="task")
    await other.confirm(ANN, 1, key="task")
    assert not (await ledger.confirm(ANN, 1, key="task")).created
    await other.grant(ANN, 5, key="more")
    await ledger.reserve(ANN, 6, key="all")
    with pytest.raises(InsufficientQuota):
        await other.reserve(ANN, 1, key="none")
    await check_books(db)


async def test_a_longer_time_that_another_process_gave_counts(
    ledger: Ledger, other: Ledger, clock: ManualClock
) -> None:
    """No unit moved and no entry was written; the hold that is remembered has the old time all the same."""
    await ledger.grant(ANN, 5, key="order")
    await ledger.reserve(ANN, 5, key="task", ttl_s=10)
    await other.extend(ANN, key="task", ttl_s=100)
    clock.advance(50)
    assert (await ledger.confirm(ANN, key="task")).created


async def test_time_goes_on_for_what_is_remembered(ledger: Ledger, db: Database, clock: ManualClock) -> None:
    """Holds time out and grants expire by the clock, whether or not they had to be read."""
    now_us = clock.now_us()
    await ledger.grant(ANN, 5, key="promo", expires_at_us=now_us + 20_000_000)
    await ledger.reserve(ANN, 5, key="task", ttl_s=10)
    clock.advance(10)
    with pytest.raises(HoldExpired):
        await ledger.confirm(ANN, key="task")
    clock.advance(10)
    with pytest.raises(InsufficientQuota):
        await ledger.reserve(ANN, 1, key="late")
    assert await ledger.balance(ANN) == Balance(expired=5)
    await check_books(db)


async def test_a_transaction_that_is_undone_is_not_remembered(ledger: Ledger, db: Database) -> None:
    """Neither a batch that failed nor a caller's transaction that was rolled back."""
    await ledger.grant(ANN, 5, key="order")

    async def fail() -> None:
        async with db.transaction() as tx:
            await ledger.reserve(ANN, 5, key="undone", tx=tx)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert (await ledger.reserve(ANN, 5, key="task")).created
    await check_books(db)


async def test_a_database_that_was_set_back_is_noticed(ledger: Ledger, other: Ledger, db: Database) -> None:
    """Rows as they were, then as many changes as before, but others: a count would be the same again."""
    tables = ("account", "grant", "hold", "entry")
    await ledger.grant(ANN, 9, key="order")
    saved = {table: await db.query(f"SELECT * FROM daydo_quota_{table}") for table in tables}
    await ledger.reserve(ANN, 9, key="lost")
    for table, rows in saved.items():
        await db.execute(f"DELETE FROM daydo_quota_{table}")
        places = ", ".join("?" * len(rows.columns))
        for row in rows.rows:
            await db.execute(f"INSERT INTO daydo_quota_{table} VALUES ({places})", row)
    await other.reserve(ANN, 1, key="found")
    assert (await ledger.reserve(ANN, 8, key="rest")).created
    await check_books(db)


@pytest.mark.parametrize("what", ["reserve", "grant", "cancel"])
async def test_an_id_that_is_another_owners_by_now_is_noticed(
    ledger: Ledger, other: Ledger, db: Database, what: str
) -> None:
    """A database that was set back hands the ids of lost accounts out again."""
    await ledger.grant(ANN, 9, key="lost")
    ids = (await db.query("SELECT id FROM daydo_quota_account")).rows
    for table in ("account", "grant", "entry"):
        await db.execute(f"DELETE FROM daydo_quota_{table}")
    if db.dialect.name == "mysql":
        await db.execute("ALTER TABLE daydo_quota_account AUTO_INCREMENT = 1")
    await other.grant(BEN, 5, key="first")
    assert (await db.query("SELECT id FROM daydo_quota_account")).rows == ids
    await other.grant(ANN, 9, key="second")
    calls = {
        "reserve": lambda: ledger.reserve(ANN, 9, key="task"),
        "grant": lambda: ledger.grant(ANN, 1, key="more"),
        "cancel": lambda: ledger.cancel(ANN, key="nothing"),
    }
    assert (await calls[what]()).created
    await check_books(db)


@pytest.mark.dialect("mysql")
@pytest.mark.parametrize("what", ["confirm", "late", "capture", "refund"])
async def test_a_lane_may_learn_while_an_answer_is_on_its_way(
    db: Database, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A hold over both accounts is written in the other's lane. It finds this one's hold overdue, and remembers so
    after the main line has asked for the stamp and before it has it.
    """
    own, others = ANN, BEN
    async with Ledger(db, CONFIG, clock=clock) as ledger:
        for account in (own, others):
            await ledger.grant(account, 100, key=account.subject)
        await ledger.reserve(own, 10, key="task", ttl_s=10)
        await ledger.capture(own, 3, key="page", hold_key="task")
        clock.advance(11)
        committed, told = asyncio.Event(), asyncio.Event()
        commit, execute_all = Transaction.commit, Transaction.execute_all

        async def commit_and_hear_late(tx: Transaction) -> None:
            is_first = not committed.is_set()
            committed.set()
            await commit(tx)
            if is_first:
                await told.wait()

        async def answer_late(tx: Transaction, statements: Any, **more: Any) -> Any:
            results = await execute_all(tx, statements, **more)
            if committed.is_set() and not told.is_set():
                told.set()
                await over
            return results

        with suppress(ZeroDivisionError):
            async with db.transaction() as tx:
                await ledger.balance(others, tx=tx)
                over = asyncio.create_task(ledger.reserve_all([(others, 1), (own, 1)], key="both"))
                while not ledger._batcher._lanes:  # noqa: ASYNC110 - another task finds that it must wait
                    await asyncio.sleep(0)
                monkeypatch.setattr(Transaction, "commit", commit_and_hear_late)
                monkeypatch.setattr(Transaction, "execute_all", answer_late)
                raise ZeroDivisionError
        await committed.wait()
        await until_committed(db, "both")
        if what == "confirm":
            with pytest.raises(HoldExpired):
                await ledger.confirm(own, key="task")
        elif what == "late":
            assert (await ledger.confirm(own, 5, key="task", late="available")).created
        elif what == "capture":
            assert not (await ledger.capture(own, 3, key="page", hold_key="task")).created
        else:
            assert (await ledger.refund(own, 3, key="back", hold_key="task")).created
    await check_books(db)


async def until_committed(db: Database, key: str) -> None:
    async with asyncio.timeout(10):
        made = "SELECT id FROM daydo_quota_hold WHERE op_key = ?"
        while not (await db.query(made, [key])).rows:  # noqa: ASYNC110 - the server has it before its client knows
            await asyncio.sleep(0.01)


async def test_what_the_tables_contradict_is_forgotten(ledger: Ledger, other: Ledger, db: Database) -> None:
    """Somebody deleted a row by hand: the call that would have changed it is refused, the next one looks."""
    await ledger.grant(ANN, 5, key="order")
    await other.grant(ANN, 5, key="gift")
    await ledger.reserve(ANN, 1, key="task")  # Its draft was wrong, so the next call is not drafted.
    await db.execute("DELETE FROM daydo_quota_hold")
    with pytest.raises(BooksDisagree):
        await ledger.confirm(ANN, key="task")
    with pytest.raises(HoldUnknown):
        await ledger.confirm(ANN, key="task")


async def test_a_draft_that_the_tables_contradict_is_read_anew(ledger: Ledger, db: Database) -> None:
    """What it would have left is not remembered; what is there is."""
    await ledger.grant(ANN, 5, key="order")
    await ledger.reserve(ANN, 1, key="task")
    await db.execute("DELETE FROM daydo_quota_hold")
    with pytest.raises(HoldUnknown):
        await ledger.confirm(ANN, key="task")
    assert await ledger.balance(ANN) == Balance(available=4, reserved=1)
    assert (await ledger.reserve(ANN, 1, key="other")).created


async def test_a_key_of_another_account_is_still_a_conflict(ledger: Ledger) -> None:
    """Of the account that the call names the hold is not remembered, whatever is of others."""
    await ledger.grant(ANN, 5, key="order")
    await ledger.grant(BEN, 5, key="other")
    await ledger.reserve(ANN, 1, key="task")
    for call in (ledger.confirm(BEN, key="task"), ledger.cancel(BEN, key="task"), ledger.reserve(BEN, 1, key="task")):
        with pytest.raises(KeyConflict):
            await call


async def test_known_and_unknown_accounts_share_a_batch(db: Database, clock: ManualClock) -> None:
    """Some remembered, some forgotten, some changed by another, some that do not exist: each gets its own answer."""
    accounts = [Account("acme", f"u_{number}", "credits") for number in range(12)]
    little = LedgerConfig(sweep_interval_s=0, audit_interval_s=0, remembered_rows=12)
    async with Ledger(db, little, clock=clock) as ledger, Ledger(db, CONFIG, clock=clock) as other:
        await asyncio.gather(*(ledger.grant(account, 9, key=account.subject) for account in accounts))
        await asyncio.gather(*(ledger.reserve(account, 3, key=account.subject) for account in accounts))
        await asyncio.gather(*(other.confirm(account, 1, key=account.subject) for account in accounts[:6]))
        calls = [ledger.confirm(account, key=account.subject) for account in accounts]
        nobody = ledger.confirm(Account("acme", "u_99", "credits"), key="u_99")
        *answers, unknown = await asyncio.gather(*calls, nobody, return_exceptions=True)
        assert [type(answer).__name__ for answer in answers] == ["KeyConflict"] * 6 + ["Hold"] * 6
        assert type(unknown).__name__ == "HoldUnknown"
        assert ledger._memory._size <= 12
    await check_books(db)


def test_memory_keeps_within_its_bound() -> None:
    """Rows are counted, not accounts; who was written longest ago goes; what is larger than all of it is not kept."""
    memory = Memory(most=5)

    def write(number: int, grants: int) -> None:
        account = AccountRow(number, "acme", f"u_{number}", "credits", stamp=7)
        plan = _plan(account, [_grant(number, f"g_{number}_{at}") for at in range(grants)])
        memory.learn({number: Sheet(account)}, plan)

    def known() -> list[int]:
        return [number for number in range(9) if memory.get(("acme", f"u_{number}", "credits"))]

    write(1, 1)
    write(2, 1)
    assert known() == [1, 2]
    write(1, 1)
    write(3, 1)
    assert known() == [1, 3]
    write(4, 5)
    assert known() == [1, 3]
    write(5, 4)
    assert known() == [5]


def test_a_sheet_has_open_holds_and_grants_that_are_not_closed() -> None:
    """What is settled or used up is of no more use to the next operation."""
    account = AccountRow(1, "acme", "u_7", "credits")
    sheet, grant, hold = Sheet(account), _grant(1, "g_1"), _hold(1, "task")
    Memory(most=9).learn({1: sheet}, _plan(account, [grant], [hold]))
    assert (list(sheet.grants), list(sheet.holds)) == (["g_1"], ["task"])
    grant.phase, hold.phase = "closed", "confirmed"
    Memory(most=9).learn({1: sheet}, _plan(account, [grant], [hold]))
    assert (sheet.grants, sheet.holds) == ({}, {})


def _plan(account: AccountRow, grants: list[GrantRow], holds: list[HoldRow] | None = None) -> Plan:
    return Plan([], grants, holds or [], [], [], [account], [], [], [], [], [], {})


def _grant(account_id: int, grant_id: str) -> GrantRow:
    return GrantRow(grant_id, account_id, "acme", grant_id, "", "topup", 50, 0, 9, 9, 0, "live", 1, 1, 0, 0, 0)


def _hold(account_id: int, key: str) -> HoldRow:
    return HoldRow(f"hold_{key}", account_id, "acme", key, 0, "", 1, 0, 0, 0, "open", 9, [], 0, 0)

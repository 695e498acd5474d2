# ruff: noqa: PT012 - the block that raises is the test
"""Blocks, processes, events, counters and health: what surrounds the operations."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
import pytest

from daydo_db import (
    CommitUnknown,
    CursorInvalid,
    Database,
    InsideTransaction,
    SchemaOutdated,
    TransactionAborted,
    Tx,
    migrate,
)
from daydo_db.testing import count_statements
from daydo_kernel import BadRequest, Event, NotStarted
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_quota import (
    Account,
    AccountBalance,
    BadName,
    BadPeriod,
    BadPolicy,
    BadReason,
    Balance,
    BooksDisagree,
    ChargeExceedsHold,
    HoldCancelled,
    HoldConfirmed,
    HoldExpired,
    InsufficientQuota,
    Ledger,
    LedgerConfig,
)
from daydo_quota.testing import check_books

T = TypeVar("T")

CREDITS = Account("acme", "u_7", "credits")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def events() -> RecordedEvents:
    return RecordedEvents()


@pytest.fixture
async def ledger(db: Database, clock: ManualClock, events: RecordedEvents) -> AsyncIterator[Ledger]:
    async with Ledger(db, clock=clock, events=events) as ledger:
        yield ledger
    await check_books(db)


def count(ledger: Ledger, family: str, *labels: str) -> float:
    [found] = [found for found in ledger.metrics.snapshot() if found.name == f"daydo_quota_{family}"]
    return next((cell.values[0] for cell in found.cells if cell.labels == labels), 0.0)


# Blocks


async def test_a_block_confirms_what_it_charges(ledger: Ledger) -> None:
    """The rest of the hold is available again; without a charge, all of it is charged."""
    await ledger.grant(CREDITS, 20, key="order")
    async with ledger.hold(CREDITS, 5, key="a") as work:
        work.charge = 2
    async with ledger.hold(CREDITS, 5, key="b"):
        assert await ledger.balance(CREDITS) == Balance(available=13, reserved=5, spent=2)
    assert await ledger.balance(CREDITS) == Balance(available=13, spent=7)


async def test_a_block_that_fails_returns_everything(ledger: Ledger) -> None:
    """And its own error passes through."""
    await ledger.grant(CREDITS, 5, key="order")
    with pytest.raises(ZeroDivisionError):
        async with ledger.hold(CREDITS, 5, key="task"):
            raise ZeroDivisionError
    assert await ledger.balance(CREDITS) == Balance(available=5)


async def test_a_block_that_is_cancelled_returns_everything(ledger: Ledger) -> None:
    """A client that disconnects pays nothing, also if its task is cancelled again while that is settled."""
    await ledger.grant(CREDITS, 5, key="order")
    inside = asyncio.Event()

    async def work() -> None:
        async with ledger.hold(CREDITS, 5, key="task"):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(30):
        while (await ledger.balance(CREDITS)).reserved:  # noqa: ASYNC110 - another task's commit
            await asyncio.sleep(0.01)
    assert await ledger.balance(CREDITS) == Balance(available=5)


async def test_a_duplicate_block_that_fails_leaves_the_original_alone(ledger: Ledger) -> None:
    """The hold belongs to the block that made it."""
    await ledger.grant(CREDITS, 5, key="order")
    async with ledger.hold(CREDITS, 5, key="task"):
        with pytest.raises(ZeroDivisionError):
            async with ledger.hold(CREDITS, 5, key="task") as duplicate:
                assert not duplicate.hold.created
                raise ZeroDivisionError
    assert await ledger.balance(CREDITS) == Balance(spent=5)


async def test_a_block_is_not_entered_for_a_hold_that_is_over(ledger: Ledger, clock: ManualClock) -> None:
    """Work that was settled, cancelled or timed out under this key must not be done again for nothing."""
    await ledger.grant(CREDITS, 10, key="order")
    for key in ("confirmed", "cancelled", "expired"):
        await ledger.reserve(CREDITS, 1, key=key, ttl_s=30)
    await ledger.confirm(CREDITS, key="confirmed")
    await ledger.cancel(CREDITS, key="cancelled")
    clock.advance(30)
    for key, error in (("confirmed", HoldConfirmed), ("cancelled", HoldCancelled), ("expired", HoldExpired)):
        with pytest.raises(error):
            async with ledger.hold(CREDITS, 1, key=key, ttl_s=30):
                pytest.fail("the block must not run")


async def test_a_charge_above_the_hold_leaves_it_to_its_timeout(ledger: Ledger, clock: ManualClock) -> None:
    """The caller hears of it and may still confirm; nobody is charged by accident."""
    await ledger.grant(CREDITS, 10, key="order")
    with pytest.raises(ChargeExceedsHold):
        async with ledger.hold(CREDITS, 5, key="task", ttl_s=30) as work:
            work.charge = 6
    assert await ledger.balance(CREDITS) == Balance(available=5, reserved=5)
    clock.advance(30)
    assert await ledger.balance(CREDITS) == Balance(available=10)


async def test_a_block_charges_as_it_goes(ledger: Ledger, clock: ManualClock) -> None:
    """What it captured stays charged although it fails; without an error the rest is charged, or as much as it says."""
    await ledger.grant(CREDITS, 30, key="order")
    with pytest.raises(ZeroDivisionError):
        async with ledger.hold(CREDITS, 5, key="fails") as work:
            assert (await work.capture(2, key="fails_1")).captured == 2
            raise ZeroDivisionError
    assert await ledger.balance(CREDITS) == Balance(available=28, spent=2)
    async with ledger.hold(CREDITS, 5, key="ends", ttl_s=30) as work:
        await work.extend(60)
        clock.advance(59)
        await work.capture(2, key="ends_1")
        work.charge = 1
    assert await ledger.balance(CREDITS) == Balance(available=25, spent=5)
    async with ledger.hold(CREDITS, 5, key="more", overage="available") as work:
        await work.capture(2, key="more_1")
        work.charge = 6
    assert await ledger.balance(CREDITS) == Balance(available=17, spent=13)
    async with ledger.hold(CREDITS, 5, key="late", ttl_s=30, late="available"):
        clock.advance(30)
    assert await ledger.balance(CREDITS) == Balance(available=12, spent=18)


async def test_a_block_may_capture_while_the_ledger_drains(db: Database, clock: ManualClock) -> None:
    """Work that is still under way when the ledger is left charges what it has done."""
    inside, leaving_began = asyncio.Event(), asyncio.Event()
    ledger = Ledger(db, clock=clock)

    async def work() -> None:
        async with ledger.hold(CREDITS, 5, key="task", ttl_s=30) as hold:
            inside.set()
            await leaving_began.wait()
            await hold.extend(60)
            await hold.capture(2, key="page")
            hold.charge = 0

    async with ledger:
        await ledger.grant(CREDITS, 5, key="order")
        task = asyncio.create_task(work())
        await inside.wait()
        leaving = asyncio.create_task(ledger.__aexit__(None, None, None))
        await asyncio.sleep(0)
        leaving_began.set()
        await asyncio.gather(task, leaving)
    async with Ledger(db, clock=clock) as after:
        assert await after.balance(CREDITS) == Balance(available=3, spent=2)


async def test_a_ledger_waits_for_open_blocks(db: Database, clock: ManualClock) -> None:
    """On its way out it takes no new work, and lets the blocks that are open settle."""
    inside, done = asyncio.Event(), asyncio.Event()
    ledger = Ledger(db, clock=clock)

    async def work() -> None:
        async with ledger.hold(CREDITS, 5, key="task"):
            inside.set()
            await done.wait()

    async with ledger:
        await ledger.grant(CREDITS, 5, key="order")
        task = asyncio.create_task(work())
        await inside.wait()
        leaving = asyncio.create_task(ledger.__aexit__(None, None, None))
        await asyncio.sleep(0)
        with pytest.raises(NotStarted):
            await ledger.reserve(CREDITS, 1, key="new")
        done.set()
        await asyncio.gather(task, leaving)
    async with Ledger(db, clock=clock) as after:
        assert await after.balance(CREDITS) == Balance(spent=5)


def test_a_ledger_can_be_entered_in_another_loop(database_url: str) -> None:
    """One noun, left while a block is open and entered in the next event loop, waits for blocks there too."""
    db = Database(database_url)
    ledger = Ledger(db)

    async def block(inside: asyncio.Event, key: str) -> None:
        async with ledger.hold(CREDITS, 1, key=key):
            inside.set()
            await asyncio.sleep(0.05)

    async def live(key: str) -> None:
        async with db:
            await migrate(db, "daydo_quota")
            async with ledger:
                await ledger.grant(CREDITS, 1, key=key)
                inside = asyncio.Event()
                task = asyncio.create_task(block(inside, key))
                await inside.wait()
            await task

    for key in ("first", "second"):
        asyncio.run(live(key))


# Arguments


@pytest.mark.parametrize("reason", ["\ud800", "paid \udc80 twice", "x" * 201, None, b"paid"])
async def test_a_reason_that_cannot_be_stored_is_refused(ledger: Ledger, db: Database, reason: Any) -> None:
    """By the package's own error, with ``tx=`` and without, and before a block runs; half a character is no text."""
    with pytest.raises(BadReason):
        await ledger.grant(CREDITS, 5, key="order", reason=reason)
    async with db.transaction() as tx:
        with pytest.raises(BadReason):
            await ledger.cancel(CREDITS, key="task", reason=reason, tx=tx)
    with pytest.raises(BadReason):
        async with ledger.hold(CREDITS, 1, key="task", reason=reason):
            pytest.fail("the block must not run")
    assert (await ledger.grant(CREDITS, 5, key="order", reason="首充 🎁")).created


@pytest.mark.parametrize(
    ("tenant", "subject", "field"),
    [("\ud800", "u_7", "tenant"), ("acme", "\ud800", "subject"), ("acme", "", "subject"), ("a" * 129, "u", "tenant")],
)
async def test_an_owner_that_cannot_be_is_refused_where_it_is_read(
    ledger: Ledger, tenant: str, subject: str, field: str
) -> None:
    """As where it is written, instead of looked for; a tenant may be empty."""
    for look in (ledger.accounts, ledger.history):
        with pytest.raises(BadName) as refused:
            await look(tenant, subject)
        assert refused.value.field == field
    assert await ledger.accounts("", "u_7") == []
    assert (await ledger.history("", "u_7")).items == []


class Unit(str):
    """As an enumeration's member is one: drivers and encoders look at the type."""


async def test_a_name_may_be_of_a_subclass_of_str(ledger: Ledger, db: Database) -> None:
    """It is the same name, by itself and with ``tx=``, for every call."""
    names = Account(Unit("acme"), Unit("u_7"), Unit("credits"))
    await ledger.grant(names, 9, key=Unit("order"), source=Unit("promo"))
    assert not (await ledger.grant(CREDITS, 9, key="order", source="promo")).created
    await ledger.allow(names, 1, key=Unit("daily"), every="day", source=Unit("promo"))
    await ledger.reserve(names, 4, key=Unit("task"))
    await ledger.capture(names, 1, key=Unit("page"), hold_key=Unit("task"))
    async with db.transaction() as tx:
        await ledger.confirm(names, 2, key=Unit("task"), tx=tx)
        await ledger.refund(names, 3, key=Unit("back"), hold_key=Unit("task"), tx=tx)
    assert await ledger.balance(names) == await ledger.balance(CREDITS) == Balance(available=10)
    page = await ledger.history(Unit("acme"), Unit("u_7"), unit=Unit("credits"), limit=1)
    assert (await ledger.history("acme", "u_7", unit="credits", cursor=page.next_cursor)).items


@pytest.mark.parametrize("ttl_s", ["1", None, b"1", []])
async def test_a_time_that_is_no_number_is_refused(ledger: Ledger, ttl_s: Any) -> None:
    """As one out of bounds."""
    await ledger.grant(CREDITS, 5, key="order")
    async with ledger.hold(CREDITS, 1, key="task") as work:
        for extension in (ledger.extend(CREDITS, key="task", ttl_s=ttl_s), work.extend(ttl_s)):
            with pytest.raises(BadPeriod):
                await extension


@pytest.mark.parametrize("policies", [{"overage": "avaliable"}, {"late": "debt"}], ids=["overage", "late"])
async def test_a_misspelt_policy_is_refused_before_the_block(ledger: Ledger, policies: dict[str, Any]) -> None:
    """Not when the work is done; nothing is held."""
    await ledger.grant(CREDITS, 5, key="order")
    for block in (
        ledger.hold(CREDITS, 1, key="one", **policies),
        ledger.hold_all([(CREDITS, 1)], key="all", **policies),
    ):
        with pytest.raises(BadPolicy):
            await block.__aenter__()
    assert [entry.key for entry in (await ledger.history("acme", "u_7")).items] == ["order"]


def test_a_default_time_beyond_the_longest_is_refused() -> None:
    """Every reserve without ``ttl_s`` would fail."""
    with pytest.raises(ValueError, match="hold_ttl_s"):
        LedgerConfig(hold_ttl_s=301, max_hold_ttl_s=300)
    assert LedgerConfig(hold_ttl_s=300, max_hold_ttl_s=300)


# Transactions


async def test_with_tx_a_call_belongs_to_the_caller(ledger: Ledger, db: Database, events: RecordedEvents) -> None:
    """Rolled back with it: rows, events and counters; and its refusals do not end it."""
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as tx:
            await ledger.grant(CREDITS, 5, key="order", tx=tx)
            await ledger.reserve(CREDITS, 5, key="task", tx=tx)
            raise ZeroDivisionError
    assert await ledger.balance(CREDITS) == Balance()
    assert events.names == []
    assert count(ledger, "holds_total", "held") == 0
    async with db.transaction() as tx:
        await ledger.grant(CREDITS, 5, key="order", tx=tx)
        await ledger.reserve(CREDITS, 5, key="task", tx=tx)
        with pytest.raises(ChargeExceedsHold):
            await ledger.confirm(CREDITS, 6, key="task", tx=tx)
        await ledger.confirm(CREDITS, 4, key="task", tx=tx)
        assert await ledger.balance(CREDITS, tx=tx) == Balance(available=1, spent=4)
    assert await ledger.balance(CREDITS) == Balance(available=1, spent=4)
    assert events.names == ["quota.granted", "quota.held", "quota.confirmed"]


async def test_forgetting_tx_is_refused(ledger: Ledger, db: Database) -> None:
    """Inside a transaction of this task a call without ``tx=`` raises instead of waiting for itself."""
    async with db.transaction():
        with pytest.raises(InsideTransaction):
            await ledger.grant(CREDITS, 5, key="order")


class LostAnswers(Database):
    """A database whose every commit of ``run`` happens and whose answer is lost, once per call."""

    lose = True

    async def run(self, fn: Callable[[Tx], Awaitable[T]], **options: Any) -> T:
        result = await super().run(fn, **options)
        self.lose = not self.lose
        if not self.lose:
            raise CommitUnknown
        return result


async def test_a_lost_answer_to_commit_is_asked_again(database_url: str, clock: ManualClock) -> None:
    """The call is repeated under its key: nothing is doubled, and ``created`` says that it was this call."""
    async with LostAnswers(database_url) as db:
        await migrate(db, "daydo_quota")
        async with Ledger(db, clock=clock) as ledger:
            assert (await ledger.grant(CREDITS, 10, key="order")).created
            assert (await ledger.reserve(CREDITS, 4, key="task")).created
            assert (await ledger.confirm(CREDITS, 3, key="task")).captured == 3
            assert (await ledger.cancel(CREDITS, key="unknown")).created
            assert [hold.created for hold in await ledger.reserve_all([(CREDITS, 2)], key="several")] == [True]
            assert (await ledger.capture(CREDITS, 1, key="page", hold_key="several")).created
            assert (await ledger.refund(CREDITS, 1, key="back", hold_key="several")).created
            assert (await ledger.cancel(CREDITS, key="several")).captured == 1
            assert await ledger.balance(CREDITS) == Balance(available=7, spent=3)


async def test_the_databases_clock_rules(db: Database) -> None:
    """Without a clock passed in, a hold is dated by the database: as of the call, or up to a quarter of a second before
    if it could be decided without asking."""

    async def now_us() -> int:
        return int((await db.query(f"SELECT {db.dialect.now_us}")).rows[0][0])

    async with Ledger(db) as ledger:
        await ledger.grant(CREDITS, 10, key="order")
        before_us = await now_us()
        hold = await ledger.reserve(CREDITS, 4, key="task", ttl_s=60)
        assert before_us - 250_000 <= hold.expires_at_us - 60_000_000 <= await now_us()
        await ledger.reserve(CREDITS, 4, key="short", ttl_s=0.001)
        await asyncio.sleep(0.01)
        assert (await ledger.cancel(CREDITS, key="short")).phase == "expired"
        assert await ledger.sweep() == 0


@pytest.mark.dialect("mysql")
async def test_time_is_read_after_the_wait_for_the_lock(db: Database) -> None:
    """A confirm that waited for the account beyond its hold's end comes too late, although it was sent in time."""
    async with Ledger(db) as ledger:
        await ledger.grant(CREDITS, 10, key="order")
        await ledger.reserve(CREDITS, 4, key="task", ttl_s=0.3)
        async with db.transaction() as tx:
            await ledger.balance(CREDITS, tx=tx)
            waiting = asyncio.create_task(ledger.confirm(CREDITS, key="task"))
            await asyncio.sleep(0.4)
        with pytest.raises(HoldExpired):
            await waiting


async def test_books_that_were_edited_by_hand_are_not_made_worse(ledger: Ledger, db: Database) -> None:
    """An account that claims more than its grants hold refuses to reserve it."""
    await ledger.grant(CREDITS, 5, key="order")
    await db.execute("UPDATE daydo_quota_account SET available = 50, stamp = 0")
    with pytest.raises(BooksDisagree):
        await ledger.reserve(CREDITS, 6, key="task")
    await db.execute("UPDATE daydo_quota_account SET available = 5, stamp = 0")


# Auditing


async def a_little_of_everything(ledger: Ledger, clock: ManualClock, account: Account) -> None:
    name = account.subject
    await ledger.grant(account, 20, key=f"{name}_order")
    await ledger.grant(account, 5, key=f"{name}_promo", priority=1, expires_at_us=clock.now_us() + 60_000_000)
    await ledger.reserve_all([(account, 7)], key=f"{name}_done")
    await ledger.capture(account, 2, key=f"{name}_page", hold_key=f"{name}_done")
    await ledger.confirm(account, 8, key=f"{name}_done", overage="available")
    await ledger.refund(account, 3, key=f"{name}_back", hold_key=f"{name}_done")
    await ledger.reserve(account, 1, key=f"{name}_late", ttl_s=1)
    clock.advance(1)
    await ledger.confirm(account, key=f"{name}_late", late="available")
    await ledger.reserve(account, 4, key=f"{name}_open")
    await ledger.cancel(account, key=f"{name}_never_made")


WRONG = {
    "an account differs from the sum of its grants": "UPDATE daydo_quota_account SET pending = 1 {its}",
    "reserved is not the sum of the open holds": "UPDATE daydo_quota_hold SET phase = 'cancelled' {open}",
    "the last entry differs from the account": "UPDATE daydo_quota_entry SET spent = 9 {last}",
    "there are entries after the last": "UPDATE daydo_quota_entry SET seq = 100 {second}",
    "an account would look too late": "UPDATE daydo_quota_account SET next_due_at_us = 9007199254740991 {its}",
    "a grant's held units are not those of the open holds":
        "UPDATE daydo_quota_hold SET parts = '[[\"grant_x\",4,0,0]]' {open}",
    "an entry's balances do not follow from the one before":
        "UPDATE daydo_quota_entry SET available_change = 1 WHERE op_key = 'u_8_late' AND step = 'held'",
    "a grant differs from its parts or its entry":
        "UPDATE daydo_quota_entry SET amount = 1 WHERE op_key = 'u_8_promo' AND step = 'granted'",
    "a hold differs from its parts, amendments or entries":
        "UPDATE daydo_quota_hold SET refunded = 2 WHERE op_key = 'u_8_done'",
    "a capture or refund differs from its entry":
        "UPDATE daydo_quota_entry SET amount = 1 WHERE op_key = 'u_8_page'",
}  # fmt: skip


@pytest.mark.parametrize("complaint", WRONG)
async def test_an_audit_names_the_first_row_that_disagrees(db: Database, clock: ManualClock, complaint: str) -> None:
    """Whatever was tampered with, in however small steps it reads; another tenant's audit is not disturbed by it."""
    config = LedgerConfig(audit_accounts=2, audit_rows=3, sweep_interval_s=0)
    async with Ledger(db, config, clock=clock) as ledger:
        for tenant, subject in (("acme", "u_7"), ("acme", "u_8"), ("acme", "u_9"), ("other", "u_8")):
            await a_little_of_everything(ledger, clock, Account(tenant, subject, "credits"))
        sound = await ledger.audit()
        assert (sound.accounts, sound.disagreement) == (4, None)
        [(entries,)] = (await db.query("SELECT COUNT(*) FROM daydo_quota_entry")).rows
        assert sound.entries == entries
        [(account_id, seq)] = (
            await db.query("SELECT id, seq FROM daydo_quota_account WHERE tenant = 'acme' AND subject = 'u_8'")
        ).rows
        places = {
            "its": f"WHERE id = {account_id}",
            "open": f"WHERE account_id = {account_id} AND op_key = 'u_8_open'",
            "second": f"WHERE account_id = {account_id} AND seq = 2",
            "last": f"WHERE account_id = {account_id} AND seq = {seq}",
        }
        edit = WRONG[complaint].format(**places)
        if "op_key = 'u_8" in edit and "account_id" not in edit:
            edit += f" AND account_id = {account_id}"
        await db.execute(edit)
        told = (await ledger.audit("acme")).disagreement
        assert told is not None
        assert (told.complaint, told.account_id) == (complaint, account_id)
        assert (await ledger.audit("other")) == msgspec.structs.replace(sound, accounts=1, entries=entries // 4)


async def test_an_audit_changes_nothing_and_waits_for_nobody(ledger: Ledger, db: Database, clock: ManualClock) -> None:
    """Also where something is overdue, and beside a transaction that has an account."""
    await a_little_of_everything(ledger, clock, CREDITS)
    clock.advance(3600)
    tables = ("account", "grant", "hold", "amendment", "entry")
    before = [(await db.query(f"SELECT * FROM daydo_quota_{table}")).rows for table in tables]
    assert (await ledger.audit()).disagreement is None
    assert before == [(await db.query(f"SELECT * FROM daydo_quota_{table}")).rows for table in tables]
    async with db.transaction() as tx:
        await ledger.reserve(CREDITS, 1, key="mine", tx=tx)
        assert (await ledger.audit()).disagreement is None


# Looking


async def test_looking_writes_nothing(ledger: Ledger, db: Database, clock: ManualClock, events: RecordedEvents) -> None:
    """Whatever is overdue, balances are as of now and nothing is written, also inside the caller's own transaction."""
    await ledger.grant(CREDITS, 9, key="order")
    await ledger.grant(CREDITS, 5, key="promo", priority=1, expires_at_us=clock.now_us() + 40_000_000)
    await ledger.grant(CREDITS, 2, key="gift", effective_at_us=clock.now_us() + 35_000_000)
    await ledger.reserve(CREDITS, 7, key="short", ttl_s=30)
    await ledger.reserve(CREDITS, 1, key="long", ttl_s=300)
    clock.advance(60)
    now = Balance(available=10, reserved=1, expired=5)
    told, rows = list(events.names), await db.query("SELECT * FROM daydo_quota_account")
    async with db.transaction() as tx:
        assert await ledger.balance(CREDITS) == now
        assert await ledger.accounts("acme", "u_7") == [AccountBalance(unit="credits", **msgspec.structs.asdict(now))]
        assert (await ledger.history("acme", "u_7")).items[0].key == "long"
        assert (await db.query("SELECT * FROM daydo_quota_account")).rows == rows.rows
        assert events.names == told
        assert await ledger.balance(CREDITS, tx=tx) == now
    assert await ledger.balance(CREDITS) == now
    kinds = [entry.kind for entry in (await ledger.history("acme", "u_7")).items[:3]]
    assert kinds == ["grant_expired", "activated", "hold_expired"], "written by the call with tx="


async def test_a_look_that_a_writer_overtakes_looks_again(
    ledger: Ledger, db: Database, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows read before and after another's commit do not belong together: the balance is that after it."""
    await ledger.grant(CREDITS, 9, key="order")
    await ledger.reserve(CREDITS, 4, key="task", ttl_s=30)
    clock.advance(30)
    query, overtaken = db.query, []

    async def overtaking(sql: str, args: Any = (), **options: Any) -> Any:
        if "daydo_quota_hold" in sql and not overtaken:
            overtaken.append(await ledger.reserve(CREDITS, 2, key="next", ttl_s=60))
        return await query(sql, args, **options)

    monkeypatch.setattr(db, "query", overtaking)
    assert await ledger.balance(CREDITS) == Balance(available=7, reserved=2)
    assert overtaken


async def test_looks_and_writes_at_once_agree(ledger: Ledger, clock: ManualClock) -> None:
    """Of two balances, before and after a commit, every look shows one."""
    await ledger.grant(CREDITS, 40, key="order")
    for number in range(10):
        await ledger.reserve(CREDITS, 4, key=f"task_{number}", ttl_s=30 + number)
    for number in range(10):
        clock.advance(30 if not number else 1)
        looks = [ledger.balance(CREDITS) for _ in range(5)]
        seen = await asyncio.gather(*looks, ledger.sweep(), *(ledger.balance(CREDITS) for _ in range(5)))
        left = 4 * (9 - number)
        assert {look for look in seen if isinstance(look, Balance)} == {Balance(available=40 - left, reserved=left)}


# Sweeping


async def test_sweepers_share_the_work(
    ledger: Ledger, db: Database, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Many at once, in small steps, write every expiry once, and in order where holds and a grant fall due together."""
    config = LedgerConfig(sweep_interval_s=0, sweep_holds=2, sweep_accounts=3)
    async with Ledger(db, config, clock=clock) as one, Ledger(db, config, clock=clock) as two:
        accounts = [Account("acme", f"u_{number}", "credits") for number in range(5)]
        for account in accounts:
            await one.grant(account, 9, key=f"{account.subject}_g", expires_at_us=clock.now_us() + 30_000_000)
            for number in range(5):
                await one.reserve(account, 1, key=f"{account.subject}_{number}", ttl_s=30 + number // 3)
        clock.advance(60)
        while sum(await asyncio.gather(one.sweep(), two.sweep())):
            pass
        for account in accounts:
            history = (await one.history("acme", account.subject)).items
            kinds = [entry.kind for entry in reversed(history)][6:]
            assert kinds == ["hold_expired"] * 3 + ["grant_expired"] + ["hold_expired"] * 2
            assert await one.balance(account) == Balance(expired=9)
    assert not caplog.records, "they never got into each other's way"


async def test_one_broken_account_does_not_stop_the_sweep(
    ledger: Ledger, db: Database, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the others are brought up to date."""
    broken, fine = CREDITS, Account("acme", "u_8", "credits")
    for account in (broken, fine):
        await ledger.grant(account, 5, key=f"{account.subject}_g")
        await ledger.reserve(account, 5, key=f"{account.subject}_h", ttl_s=30)
    await db.execute("UPDATE daydo_quota_hold SET parts = '[[\"gone\",5,0]]' WHERE op_key = 'u_7_h'")
    clock.advance(30)
    assert await ledger.sweep() == 1
    assert "could not be brought up to date" in caplog.text
    assert (await ledger.history("acme", "u_8")).items[0].kind == "hold_expired"
    await db.execute("DELETE FROM daydo_quota_hold WHERE op_key = 'u_7_h'")
    await db.execute("DELETE FROM daydo_quota_entry WHERE op_key LIKE 'u_7%'")
    await db.execute("DELETE FROM daydo_quota_grant WHERE op_key = 'u_7_g'")
    await db.execute("DELETE FROM daydo_quota_account WHERE subject = 'u_7'")


async def test_the_sweeper_runs_by_itself(db: Database, clock: ManualClock) -> None:
    """Nobody touches the account, and its history is complete soon after."""
    async with Ledger(db, LedgerConfig(sweep_interval_s=0.01), clock=clock) as ledger:
        await ledger.grant(CREDITS, 5, key="order")
        await ledger.reserve(CREDITS, 5, key="task", ttl_s=30)
        clock.advance(30)
        async with asyncio.timeout(30):
            while not count(ledger, "settlements_total", "expired"):  # noqa: ASYNC110 - another task's commit
                await asyncio.sleep(0.01)


# Telling others


async def test_every_entry_is_an_event(ledger: Ledger, clock: ManualClock, events: RecordedEvents) -> None:
    """In its transaction, in order, with JSON facts; a repeat is none."""
    await ledger.grant(CREDITS, 5, key="order", effective_at_us=clock.now_us() + 1, reason="首充")
    clock.advance(1)
    for _ in range(2):
        await ledger.reserve(CREDITS, 3, key="a", ttl_s=30)
    await ledger.reserve(CREDITS, 2, key="b", ttl_s=30)
    await ledger.cancel(CREDITS, key="b", reason="changed my mind")
    clock.advance(30)
    await ledger.sweep()
    assert events.names == [
        "quota.granted",
        "quota.activated",
        "quota.held",
        "quota.held",
        "quota.cancelled",
        "quota.expired",
    ]
    cancelled = events.events[4]
    assert (cancelled.tenant, cancelled.subject) == ("acme", "u_7")
    assert cancelled.data.items() >= {"unit": "credits", "key": "b", "amount": 2, "available": 2}.items()
    assert cancelled.data["reason"] == "changed my mind"
    msgspec.json.encode([event.data for event in events.events])


class BrokenSink:
    async def emit(self, event: Event, tx: Any = None) -> None:
        raise RuntimeError("no room for another event")


async def test_an_event_that_cannot_be_stored_stops_the_change(db: Database, clock: ManualClock) -> None:
    """The change commits with its event or not at all."""
    async with Ledger(db, clock=clock, events=BrokenSink()) as ledger:
        with pytest.raises(RuntimeError, match="no room"):
            await ledger.grant(CREDITS, 5, key="order")
        assert await ledger.balance(CREDITS) == Balance()


async def test_a_call_that_fails_half_way_takes_its_transaction_along(db: Database, clock: ManualClock) -> None:
    """Whoever bore the error and committed would keep a key, and nothing under it."""
    async with Ledger(db, clock=clock, events=BrokenSink()) as ledger:
        with pytest.raises(TransactionAborted):
            async with db.transaction() as tx:
                with suppress(RuntimeError):
                    await ledger.grant(CREDITS, 5, key="order", tx=tx)
    assert (await db.query("SELECT COUNT(*) FROM daydo_quota_grant")).rows == [(0,)]


async def test_a_refusal_leaves_its_transaction_as_it_was(db: Database, ledger: Ledger) -> None:
    """It is an answer, and nothing was written for it."""
    async with db.transaction() as tx:
        with pytest.raises(InsufficientQuota):
            await ledger.reserve(CREDITS, 5, key="task", tx=tx)
        await ledger.grant(CREDITS, 5, key="order", tx=tx)
    assert await ledger.balance(CREDITS) == Balance(available=5)


async def test_calls_at_once_in_one_transaction_take_turns(db: Database, ledger: Ledger) -> None:
    """Each is decided on what the one before has written."""
    await ledger.grant(CREDITS, 10, key="order")
    async with db.transaction() as tx:
        calls = [ledger.reserve(CREDITS, 4, key=f"task_{number}", tx=tx) for number in range(3)]
        *held, refused = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(refused, InsufficientQuota)
    assert [hold.amount for hold in held] == [4, 4]
    assert await ledger.balance(CREDITS) == Balance(available=2, reserved=8)


class ToppingUp:
    """Grants, in the transaction in which it hears of it, whatever was held."""

    ledger: Ledger

    async def emit(self, event: Event, tx: Any = None) -> None:
        if event.name == "quota.held":
            await self.ledger.grant(CREDITS, event.data["amount"], key=f"for_{event.data['key']}", tx=tx)


async def test_a_sink_may_call_the_ledger_in_the_same_transaction(db: Database, clock: ManualClock) -> None:
    """Its call is part of the one that it is told of, and does not wait for its end."""
    sink = ToppingUp()
    async with Ledger(db, clock=clock, events=sink) as ledger:
        sink.ledger = ledger
        await ledger.grant(CREDITS, 5, key="order")
        async with asyncio.timeout(20), db.transaction() as tx:
            await ledger.reserve(CREDITS, 4, key="task", tx=tx)
        assert await ledger.balance(CREDITS) == Balance(available=5, reserved=4)


async def test_counters_tell_what_happened(ledger: Ledger, clock: ManualClock) -> None:
    """By outcome and, in units, by unit."""
    await ledger.grant(CREDITS, 10, key="order")
    await ledger.reserve(CREDITS, 4, key="a")
    await ledger.reserve(CREDITS, 4, key="a")
    for call in (ledger.reserve(CREDITS, 40, key="b"), ledger.reserve(CREDITS, 5, key="a")):
        with pytest.raises(Exception, match=r"quota|key"):
            await call
    await ledger.confirm(CREDITS, 3, key="a")
    await ledger.cancel(CREDITS, key="never_made")
    await ledger.reserve(CREDITS, 2, key="c", ttl_s=30)
    clock.advance(30)
    await ledger.sweep()
    outcomes = {outcome: count(ledger, "holds_total", outcome) for outcome in ("held", "replayed", "insufficient")}
    assert outcomes == {"held": 2, "replayed": 1, "insufficient": 1}
    assert count(ledger, "holds_total", "refused") == 1
    settled = {name: count(ledger, "settlements_total", name) for name in ("confirmed", "expired", "tombstone")}
    assert settled == {"confirmed": 1, "expired": 1, "tombstone": 1}
    units = {name: count(ledger, f"{name}_units_total", "credits") for name in ("granted", "held", "spent", "returned")}
    assert units == {"granted": 10, "held": 6, "spent": 3, "returned": 3}


async def test_counters_tell_of_charges_debts_and_allowances(ledger: Ledger, clock: ManualClock) -> None:
    """A period's units are counted as granted when they are; what is owed and what is repaid each go up alone."""
    for _ in range(2):
        await ledger.allow(CREDITS, 3, key="free", every="day")
    for _ in range(2):
        await ledger.charge(CREDITS, 8, key="a", overage="debt")
    with pytest.raises(InsufficientQuota):
        await ledger.charge(CREDITS, 1, key="b")
    clock.advance(86_400)
    await ledger.disallow(CREDITS, key="free")
    charges = {name: count(ledger, "charges_total", name) for name in ("charged", "replayed", "insufficient")}
    assert charges == {"charged": 1, "replayed": 1, "insufficient": 1}
    allowances = [count(ledger, "allowances_total", name) for name in ("allowed", "replayed", "disallowed")]
    assert allowances == [1, 1, 1]
    units = {name: count(ledger, f"{name}_units_total", "credits") for name in ("granted", "spent", "owed", "repaid")}
    assert units == {"granted": 6, "spent": 8, "owed": 5, "repaid": 3}


async def test_counters_tell_of_captures_and_refunds(ledger: Ledger) -> None:
    """Spent counts what was ever charged; refunds are counted by themselves, and nothing counts backwards."""
    await ledger.grant(CREDITS, 20, key="order")
    await ledger.reserve_all([(CREDITS, 4)], key="a")
    for _ in range(2):
        await ledger.capture(CREDITS, 1, key="page", hold_key="a")
    await ledger.extend(CREDITS, key="a", ttl_s=600)
    with pytest.raises(ChargeExceedsHold):
        await ledger.capture(CREDITS, 9, key="page_2", hold_key="a")
    await ledger.confirm(CREDITS, 5, key="a", overage="available")
    await ledger.refund(CREDITS, 2, key="back", hold_key="a")
    captures = {outcome: count(ledger, "captures_total", outcome) for outcome in ("captured", "replayed", "refused")}
    assert captures == {"captured": 1, "replayed": 1, "refused": 1}
    assert count(ledger, "extensions_total", "extended") == count(ledger, "refunds_total", "refunded") == 1
    names = ("held", "spent", "returned", "refunded")
    assert [count(ledger, f"{name}_units_total", "credits") for name in names] == [4, 6, 0, 2]


async def test_health_tells_of_a_sweeper_that_is_late(ledger: Ledger, clock: ManualClock, db: Database) -> None:
    """Nothing is wrong with the balances then, but idle accounts' history and events wait."""
    assert (await ledger.health()).status == "ok"
    await ledger.grant(CREDITS, 5, key="order")
    await ledger.reserve(CREDITS, 5, key="task", ttl_s=30)
    clock.advance(30 + 91)
    late = await ledger.health()
    assert (late.status, late.detail["expiry_lag_s"]) == ("degraded", 91)
    await ledger.sweep()
    assert (await ledger.health()).status == "ok"
    assert (await Ledger(db).health()).status == "down"


async def test_a_ledger_without_its_tables_does_not_start(database_url: str) -> None:
    """The error names the command that makes them."""
    async with Database(database_url) as db:
        with pytest.raises(SchemaOutdated, match="daydo_db migrate"):
            async with Ledger(db):
                pytest.fail("it started")


async def test_a_ledger_that_was_not_entered_says_so(db: Database) -> None:
    """Every call does."""
    ledger = Ledger(db)
    calls: list[Awaitable[object]] = [
        ledger.grant(CREDITS, 1, key="k"),
        ledger.reserve(CREDITS, 1, key="k"),
        ledger.confirm(CREDITS, key="k"),
        ledger.cancel(CREDITS, key="k"),
        ledger.reserve_all([(CREDITS, 1)], key="k"),
        ledger.capture(CREDITS, 1, key="k", hold_key="h"),
        ledger.extend(CREDITS, key="k", ttl_s=1),
        ledger.refund(CREDITS, 1, key="k", hold_key="h"),
        ledger.audit(),
        ledger.hold(CREDITS, 1, key="k").__aenter__(),
        ledger.balance(CREDITS),
        ledger.accounts("acme", "u_7"),
        ledger.history("acme", "u_7"),
        ledger.sweep(),
    ]
    for call in calls:
        with pytest.raises(NotStarted):
            await call


@pytest.mark.parametrize("cursor", ["", "x", "e30x", "bnVsbA", "eyJjIjotMX0", "é", "A" * 9000])
async def test_a_cursor_that_is_none_is_refused(ledger: Ledger, cursor: str) -> None:
    """Clients invent cursors; that is their 400, not our 500."""
    await ledger.grant(CREDITS, 1, key="order")
    with pytest.raises(CursorInvalid):
        await ledger.history("acme", "u_7", cursor=cursor)


async def test_a_cursor_is_good_for_its_own_history_alone(ledger: Ledger) -> None:
    """Not for another subject's, another tenant's, or the history of one unit instead of all."""
    for number in range(3):
        await ledger.grant(CREDITS, 1, key=f"order_{number}")
    cursor = (await ledger.history("acme", "u_7", limit=1)).next_cursor
    assert [entry.seq for entry in (await ledger.history("acme", "u_7", cursor=cursor)).items] == [2, 1]
    for tenant, subject, unit in (("acme", "u_8", None), ("", "u_7", None), ("acme", "u_7", "credits")):
        with pytest.raises(CursorInvalid):
            await ledger.history(tenant, subject, unit=unit, cursor=cursor)


async def test_a_limit_out_of_range_is_refused(ledger: Ledger) -> None:
    """By the same 400 as in every list."""
    for limit in (0, 101, 1.0, "5", None, True):
        with pytest.raises(BadRequest):
            await ledger.history("acme", "u_7", limit=limit)


@pytest.mark.parametrize("units", [1, 7])
async def test_a_look_takes_three_statements_however_much_there_is(
    ledger: Ledger, db: Database, clock: ManualClock, units: int
) -> None:
    """History, and balances of accounts where something has been due since: no statement per unit or row."""
    for number in range(units):
        account = Account("acme", "u_7", f"unit_{number}")
        for key in range(8):
            await ledger.grant(account, 5, key=f"{number}_{key}")
        for key in ("a", "b"):
            await ledger.reserve(account, 2, key=f"{number}_{key}", ttl_s=30)
    clock.advance(31)
    with count_statements(db, at_most=3):
        accounts = await ledger.accounts("acme", "u_7")
    assert [(account.available, account.reserved) for account in accounts] == [(40, 0)] * units
    cursor = None
    for _ in range(2):
        with count_statements(db, at_most=2):
            page = await ledger.history("acme", "u_7", cursor=cursor, limit=5)
        assert len(page.items) == 5
        cursor = page.next_cursor
    with count_statements(db, at_most=3):
        assert await ledger.balance(Account("acme", "u_7", "unit_0")) == Balance(available=40)

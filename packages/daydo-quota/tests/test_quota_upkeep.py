"""What happens without a call: swept, audited and rolled up by any number of processes, each thing once."""

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from daydo_db import CommitUnknown, Database, StatementFailed, Tx
from daydo_db.transaction import Transaction
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_quota import Account, Audit, Balance, BooksDisagree, Entry, Ledger, LedgerConfig, upkeep
from daydo_quota.testing import check_books

CREDITS = Account("acme", "u_7", "credits")
POINTS = Account("acme", "u_7", "points")
DAY_S = 86_400
STILL = LedgerConfig(sweep_interval_s=0, audit_interval_s=0)
KEEPING = LedgerConfig(sweep_interval_s=0, audit_interval_s=0, entries_kept_s=6 * DAY_S, roll_up_rows=4)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@asynccontextmanager
async def processes(
    url: str, number: int, config: LedgerConfig, clock: ManualClock
) -> AsyncIterator[list[tuple[Ledger, RecordedEvents]]]:
    """Ledgers that share nothing but the database, and what each tells."""
    async with AsyncExitStack() as stack:
        ledgers = []
        for _ in range(number):
            db, events = await stack.enter_async_context(Database(url)), RecordedEvents()
            ledgers.append((await stack.enter_async_context(Ledger(db, config, clock=clock, events=events)), events))
        yield ledgers


def value(ledger: Ledger, family: str, *labels: str) -> float:
    [found] = [found for found in ledger.metrics.snapshot() if found.name == f"daydo_quota_{family}"]
    return next(cell.values[0] for cell in found.cells if cell.labels == labels)


async def live_through(ledger: Ledger, clock: ManualClock, account: Account, days: int) -> None:
    """Three entries a day."""
    await ledger.grant(account, 1000, key=f"{account.unit}_order")
    for day in range(days):
        name = f"{account.unit}_{day}"
        await ledger.reserve(account, 3, key=name)
        await ledger.capture(account, 1, key=f"{name}_page", hold_key=name)
        await ledger.confirm(account, 1, key=name)
        clock.advance(DAY_S)


async def whole_history(ledger: Ledger, unit: str | None = None, limit: int = 5) -> list[Entry]:
    found, cursor = list[Entry](), None
    for _ in range(100):
        page = await ledger.history("acme", "u_7", unit=unit, cursor=cursor, limit=limit)
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise AssertionError("the history has no end")


# Sweeping


async def test_processes_share_what_is_overdue(db: Database, database_url: str, clock: ManualClock) -> None:
    """Three sweep at once: each hold times out once, and all of them do."""
    config = LedgerConfig(sweep_interval_s=0, audit_interval_s=0, sweep_accounts=10)
    async with processes(database_url, 3, config, clock) as ledgers:
        first, _ = ledgers[0]
        for number in range(25):
            account = Account("acme", f"u_{number}", "credits")
            await first.grant(account, 5, key=f"order_{number}")
            await first.reserve(account, 2, key=f"task_{number}", ttl_s=30)
        clock.advance(60)
        await asyncio.gather(*(ledger.upkeep.sweep_all() for ledger, _ in ledgers))
        await first.upkeep.sweep_all()
        told = Counter(
            event.data["key"] for _, events in ledgers for event in events.events if event.name == "quota.expired"
        )
        assert told == {f"task_{number}": 1 for number in range(25)}
        assert sum(value(ledger, "settlements_total", "expired") for ledger, _ in ledgers) == 25
        assert await first.sweep() == 0
    await check_books(db)


async def account_id_of(db: Database, account: Account) -> int:
    sql = "SELECT id FROM daydo_quota_account WHERE tenant = ? AND subject = ? AND unit = ?"
    [(account_id,)] = (await db.query(sql, [account.tenant, account.subject, account.unit])).rows
    return int(account_id)


@pytest.mark.parametrize("sweep_accounts", [1, 2, 100])
async def test_an_account_whose_books_are_broken_keeps_no_other_waiting(
    db: Database, clock: ManualClock, caplog: pytest.LogCaptureFixture, sweep_accounts: int
) -> None:
    """Though it was due first, and however few are swept at a time; the log has each of them, by its id."""
    config = LedgerConfig(sweep_interval_s=0, audit_interval_s=0, sweep_accounts=sweep_accounts)
    accounts = [Account("acme", f"u_{number}", "credits") for number in range(5)]
    async with Ledger(db, config, clock=clock) as ledger:
        for number, account in enumerate(accounts):
            await ledger.grant(account, 5, key=f"order_{number}")
            await ledger.reserve(account, 2, key=f"task_{number}", ttl_s=30 + number)
        await db.execute("DELETE FROM daydo_quota_grant WHERE op_key IN ('order_0', 'order_1')")
        clock.advance(60)
        async with asyncio.timeout(30):
            await ledger.upkeep.sweep_all()
        overdue = "SELECT subject FROM daydo_quota_account WHERE next_due_at_us <= ?"
        assert {row[0] for row in (await db.query(overdue, [clock.now_us()])).rows} == {"u_0", "u_1"}
        for account in accounts[:2]:
            broken = await account_id_of(db, account)
            assert f"account {broken} could not be brought up to date" in caplog.text
            with pytest.raises(BooksDisagree) as refusal:
                await ledger.balance(account)
            assert refusal.value.account_id == broken
        assert value(ledger, "settlements_total", "expired") == 3
        for account in accounts[2:]:
            assert await ledger.balance(account) == Balance(available=5)


async def test_a_sweep_of_which_nobody_knows_whether_it_was_kept_is_looked_at_again(
    db: Database, clock: ManualClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was, here: nothing is written twice, and nobody is told that an account's books are broken."""
    commit = Transaction.commit

    async def commit_unheard(tx: Transaction) -> None:
        await commit(tx)
        tx.outcome = "unknown"
        raise CommitUnknown

    async with Ledger(db, LedgerConfig(sweep_interval_s=0, audit_interval_s=0), clock=clock) as ledger:
        account = Account("acme", "u_7", "credits")
        await ledger.grant(account, 5, key="order")
        await ledger.reserve(account, 2, key="task", ttl_s=30)
        clock.advance(60)
        with monkeypatch.context() as unheard:
            unheard.setattr(Transaction, "commit", commit_unheard)
            assert await ledger.sweep() == 0
        assert await ledger.sweep() == 0
        assert [entry.kind for entry in await whole_history(ledger)] == ["hold_expired", "held", "granted"]
    assert not caplog.records
    await check_books(db)


async def test_health_tells_of_holds_that_are_stuck(db: Database, clock: ManualClock) -> None:
    """Since when the oldest is open beyond its time; an overdue grant is a lag only, an ended hold nothing."""
    async with Ledger(db, LedgerConfig(sweep_interval_s=3600, audit_interval_s=0), clock=clock) as ledger:
        await ledger.grant(CREDITS, 5, key="promo", expires_at_us=clock.now_us() + 10_000_000)
        await ledger.grant(POINTS, 5, key="order")
        await ledger.reserve(POINTS, 1, key="task", ttl_s=30)
        await ledger.charge(CREDITS, 1, key="done")
        clock.advance(20)
        detail = (await ledger.health()).detail
        assert (detail["expiry_lag_s"], detail["stuck_hold_s"]) == (10, 0)
        clock.advance(3 * 3600)
        health = await ledger.health()
        assert (health.status, health.detail["stuck_hold_s"]) == ("degraded", 3 * 3600 - 10)
        assert value(ledger, "stuck_hold_seconds") == 3 * 3600 - 10
        assert value(ledger, "expiry_lag_seconds") == 3 * 3600 + 10
        await ledger.upkeep.sweep_all()
        assert (await ledger.health()).detail == {"expiry_lag_s": 0, "stuck_hold_s": 0, "audit_age_s": 0}


# Auditing


async def walk(ledgers: list[Ledger], clock: ManualClock, turns: int = 300) -> int:
    """Turns, all processes' at once, until the audit that is under way ends."""
    for number in range(turns):
        await asyncio.gather(*(ledger.upkeep.audit_turn() for ledger in ledgers))
        if sum(value(ledger, "audits_total", end) for ledger in ledgers for end in ("agreed", "disagreed")):
            return number
        clock.advance(60)
    raise AssertionError("it does not come to its end")


async def test_processes_take_the_steps_of_one_audit(db: Database, database_url: str, clock: ManualClock) -> None:
    """Every account and entry is looked at once, by whichever process; then it rests until the next is due."""
    config = LedgerConfig(sweep_interval_s=0, audit_accounts=2, audit_rows=7)
    async with processes(database_url, 3, config, clock) as told:
        ledgers = [ledger for ledger, _ in told]
        for number in range(7):
            await live_through(ledgers[0], clock, Account("acme", "u_7", f"unit_{number}"), days=2)
        began_us = clock.now_us()
        assert await walk(ledgers, clock) > 10
        sums = [sum(value(ledger, "audited_total", what) for ledger in ledgers) for what in ("accounts", "entries")]
        assert sums == [7, 49]
        assert sum(value(ledger, "audits_total", "agreed") for ledger in ledgers) == 1
        whole = await ledgers[0].audit()
        assert whole == Audit(accounts=7, entries=49, disagreement=None)
        rest_s = config.audit_interval_s - (clock.now_us() - began_us) / 1_000_000
        clock.advance(rest_s - 1)
        assert await ledgers[1].upkeep.audit_turn() > 0
        assert sum(value(ledger, "audited_total", "accounts") for ledger in ledgers) == 7
        clock.advance(2)
        await ledgers[1].upkeep.audit_turn()
        assert sum(value(ledger, "audited_total", "accounts") for ledger in ledgers) == 9
    await check_books(db)


async def test_a_disagreement_stays_in_sight_until_an_audit_ends_without(
    db: Database, database_url: str, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """On every process, in health, metrics and log; and it names the row."""
    config = LedgerConfig(sweep_interval_s=0, audit_interval_s=3600)
    async with processes(database_url, 2, config, clock) as told:
        (finder, _), (other, _) = told
        await live_through(finder, clock, CREDITS, days=2)
        await db.execute("UPDATE daydo_quota_account SET spent = spent + 1")
        await walk([finder], clock)
        [(account_id,)] = (await db.query("SELECT id FROM daydo_quota_account")).rows
        assert "an account differs from the sum of its grants" in caplog.text
        for ledger in (finder, other):
            health = await ledger.health()
            assert health.status == "degraded"
            assert str(health.detail["disagreement"]).startswith(f"account {account_id}, row {account_id}: an account")
            assert value(ledger, "books_disagree") == 1
        await db.execute("UPDATE daydo_quota_account SET spent = spent - 1")
        clock.advance(2 * 3600)
        assert (await other.health()).detail["audit_age_s"] >= 2 * 3600
        await walk([other], clock)
        for ledger in (finder, other):
            assert (await ledger.health()).status == "ok"
            assert value(ledger, "books_disagree") == 0
            assert value(ledger, "audit_age_seconds") == 0


async def test_a_step_that_fails_is_taken_again(
    db: Database, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transaction takes the cursor back with it; a state that cannot be read begins anew."""
    async with Ledger(db, LedgerConfig(sweep_interval_s=0, audit_accounts=1), clock=clock) as ledger:
        await live_through(ledger, clock, CREDITS, days=1)
        await live_through(ledger, clock, POINTS, days=1)
        await ledger.upkeep.audit_turn()
        clock.advance(60)
        before = (await db.query("SELECT * FROM daydo_quota_upkeep ORDER BY name")).rows
        with monkeypatch.context() as broken:
            broken.setattr(upkeep.Auditor, "step", step_that_dies)
            with pytest.raises(StatementFailed):
                await ledger.upkeep.audit_turn()
        assert (await db.query("SELECT * FROM daydo_quota_upkeep ORDER BY name")).rows == before
        await walk([ledger], clock)
        assert value(ledger, "audited_total", "accounts") == 2
        await db.execute("UPDATE daydo_quota_upkeep SET state = 'not ours', due_at_us = 0 WHERE name = 'audit'")
        await ledger.upkeep.audit_turn()
        assert value(ledger, "audited_total", "accounts") == 3


async def step_that_dies(*args: Any) -> Any:
    raise StatementFailed(reason="the server went away", statement="SELECT")


# Rolling up


async def test_old_entries_become_one(db: Database, clock: ManualClock) -> None:
    """Balances, the newer history, repeats of old calls and refunds of old holds are as before; the audit agrees."""
    async with Ledger(db, KEEPING, clock=clock) as ledger:
        await live_through(ledger, clock, CREDITS, days=12)
        before, balance = await whole_history(ledger), await ledger.balance(CREDITS)
        assert await ledger.upkeep.roll_up() == 3 * 6
        after = await whole_history(ledger)
        *kept, first = after
        assert kept == before[: len(kept)]
        assert clock.now_us() - kept[-1].at_us <= 6 * DAY_S * 1_000_000 < clock.now_us() - first.at_us
        gone = before[len(kept) :]
        assert (first.kind, first.seq, first.at_us) == ("rolled_up", gone[0].seq, gone[0].at_us)
        for name in ("available", "reserved", "spent", "expired", "debt"):
            assert getattr(first, name) == getattr(gone[0], name)
            assert getattr(first, f"{name}_change") == sum(getattr(entry, f"{name}_change") for entry in gone)
        assert await ledger.balance(CREDITS) == balance
        assert not (await ledger.grant(CREDITS, 1000, key="credits_order")).created
        assert (await ledger.reserve(CREDITS, 3, key="credits_0")).phase == "confirmed"
        assert (await ledger.refund(CREDITS, 2, key="back", hold_key="credits_0")).refunded == 2
        assert value(ledger, "rolled_up_entries_total") == 3 * 6
        await check_books(db)
        clock.advance(40 * DAY_S)
        await ledger.upkeep.roll_up()
        [only] = await whole_history(ledger)
        assert (only.kind, only.spent) == ("rolled_up", balance.spent - 2)
    await check_books(db)


async def test_entries_are_kept_for_ever_unless_told_otherwise(db: Database, clock: ManualClock) -> None:
    """And an account with one old entry is left alone: one for one would say less for nothing."""
    async with Ledger(db, STILL, clock=clock) as ledger:
        await live_through(ledger, clock, CREDITS, days=3)
        clock.advance(10_000 * DAY_S)
        assert await ledger.upkeep.roll_up() == 0
    async with Ledger(db, KEEPING, clock=clock) as ledger:
        await ledger.grant(POINTS, 5, key="points")
        clock.advance(40 * DAY_S)
        assert await ledger.upkeep.roll_up() == 9
        assert [entry.kind for entry in await whole_history(ledger, "points")] == ["granted"]


async def test_a_page_goes_on_across_a_roll_up(db: Database, clock: ManualClock) -> None:
    """What a cursor had before it is gone: the unit ends with the entry that took its place, shown once."""
    async with Ledger(db, KEEPING, clock=clock) as ledger:
        await live_through(ledger, clock, CREDITS, days=3)
        await live_through(ledger, clock, POINTS, days=3)
        first = await ledger.history("acme", "u_7", limit=13)
        clock.advance(40 * DAY_S)
        assert await ledger.upkeep.roll_up() == 18
        found, cursor = list(first.items), first.next_cursor
        while cursor is not None and len(found) < 100:
            page = await ledger.history("acme", "u_7", cursor=cursor, limit=1)
            found += page.items
            cursor = page.next_cursor
        ends = [(entry.unit, entry.kind) for entry in found[13:]]
        assert ends == [("credits", "rolled_up")], "all ten of points had been shown, and three of credits"


async def test_a_unit_that_has_ended_does_not_begin_again(db: Database, clock: ManualClock) -> None:
    """Its first entry was shown on the page before: what a roll-up has put there since is no news."""
    async with Ledger(db, KEEPING, clock=clock) as ledger:
        await live_through(ledger, clock, POINTS, days=2)
        await ledger.grant(CREDITS, 9, key="order")
        first = await ledger.history("acme", "u_7", limit=1)
        await ledger.charge(CREDITS, 1, key="later")
        clock.advance(40 * DAY_S)
        assert await ledger.upkeep.roll_up() == 7
        last = await ledger.history("acme", "u_7", cursor=first.next_cursor, limit=5)
        assert [(entry.unit, entry.kind) for entry in first.items] == [("credits", "granted")]
        assert [(entry.unit, entry.kind) for entry in last.items] == [("points", "rolled_up")]
        assert last.next_cursor is None


async def test_processes_share_a_round_and_writers_go_on(db: Database, database_url: str, clock: ManualClock) -> None:
    """Each account is rolled up by one; nobody waits for the others, and what is written meanwhile stays."""
    config = LedgerConfig(
        sweep_interval_s=0, audit_interval_s=0, entries_kept_s=30 * DAY_S, roll_up_rows=3, roll_up_accounts=2
    )
    accounts = [Account("acme", f"u_{number}", "credits") for number in range(9)]
    async with processes(database_url, 3, config, clock) as told:
        ledgers = [ledger for ledger, _ in told]
        for account in accounts:
            await ledgers[0].grant(account, 100, key=f"order_{account.subject}")
            for number in range(5):
                await ledgers[0].charge(account, 1, key=f"charge_{account.subject}_{number}")
        clock.advance(40 * DAY_S)

        async def write(ledger: Ledger, account: Account) -> None:
            for number in range(5):
                await ledger.charge(account, 1, key=f"now_{account.subject}_{number}")

        rolling = [ledger.upkeep.roll_up_all() for ledger in ledgers]
        async with asyncio.timeout(60):
            await asyncio.gather(*rolling, *(write(ledgers[0], account) for account in accounts))
        # An account that a writer had when its turn came waits for the next round.
        clock.advance(config.roll_up_interval_s)
        await ledgers[1].upkeep.roll_up_all()
        assert sum(value(ledger, "rolled_up_entries_total") for ledger in ledgers) == 9 * 5
        for account in accounts:
            kinds = [entry.kind for entry in (await ledgers[2].history("acme", account.subject)).items]
            assert kinds == ["charged"] * 5 + ["rolled_up"]
            assert await ledgers[2].balance(account) == Balance(available=90, spent=10)
    await check_books(db)


@pytest.mark.dialect("mysql")
async def test_a_round_that_another_process_goes_on_with_is_left_to_it(
    db: Database, database_url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look at a claim that is not to be had, not one after another for as long as it lasts."""
    async with processes(database_url, 2, KEEPING, clock) as [(busy, _), (other, _)]:
        await live_through(busy, clock, CREDITS, days=2)
        clock.advance(40 * DAY_S)
        looks, look = list[str](), other.upkeep._claim

        async def counted(tx: Tx, name: str, kind: Any) -> Any:
            looks.append(name)
            return await look(tx, name, kind)

        monkeypatch.setattr(other.upkeep, "_claim", counted)
        async with busy.db.transaction() as tx, asyncio.timeout(20):
            await tx.execute("SELECT name FROM daydo_quota_upkeep WHERE name = 'retention' FOR UPDATE")
            await other.upkeep.roll_up_all()
        assert looks == ["retention"]
        await other.upkeep.roll_up_all()
        assert value(other, "rolled_up_entries_total") == 6


async def test_nothing_is_rolled_up_for_ever(db: Database, clock: ManualClock) -> None:
    """Where entries are kept, a round that is asked for ends at once."""
    async with Ledger(db, STILL, clock=clock) as ledger, asyncio.timeout(20):
        await ledger.upkeep.roll_up_all()


@pytest.mark.dialect("mysql")
async def test_a_roll_up_passes_over_an_account_that_is_in_use(
    db: Database, database_url: str, clock: ManualClock
) -> None:
    """It neither waits for a caller's open transaction nor touches the account's entries meanwhile."""
    async with processes(database_url, 2, KEEPING, clock) as [(caller, _), (roller, _)]:
        await live_through(caller, clock, CREDITS, days=2)
        clock.advance(40 * DAY_S)
        async with caller.db.transaction() as tx:
            await caller.charge(CREDITS, 1, key="now", tx=tx)
            assert await roller.upkeep.roll_up() == 0
        clock.advance(KEEPING.roll_up_interval_s)
        assert await roller.upkeep.roll_up() == 6


KILLED = """
import asyncio, sys
from daydo_db import Database, Tx
from daydo_kernel.testing import ManualClock
from daydo_quota import Ledger, LedgerConfig, upkeep

async def main(url, now_us):
    async with Database(url) as db:
        clock = ManualClock()
        clock.advance(now_us / 1_000_000 - clock.now_us() / 1_000_000)
        config = LedgerConfig(entries_kept_s=6 * 86_400, roll_up_rows=4, sweep_interval_s=0, audit_interval_s=0)
        async with Ledger(db, config, clock=clock) as ledger:
            transaction = db.run

            async def dying(fn, **options):
                async def to_the_last_statement(tx):
                    execute = tx.execute
                    async def execute_or_hang(sql, args=()):
                        if sql is upkeep._ROLLED_UP:
                            print("deleted", flush=True)
                            await asyncio.Event().wait()
                        return await execute(sql, args)
                    tx.execute = execute_or_hang
                    return await fn(tx)
                return await transaction(to_the_last_statement, **options)

            db.run = dying
            await ledger.upkeep.roll_up()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_a_roll_up_that_is_killed_loses_nothing(db: Database, database_url: str, clock: ManualClock) -> None:
    """kill −9 after the entries were deleted and before the one that replaces them is written."""
    async with Ledger(db, KEEPING, clock=clock) as ledger:
        await live_through(ledger, clock, CREDITS, days=9)
        before = await whole_history(ledger, limit=100)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", KILLED, database_url, str(clock.now_us()), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"deleted\n"
        process.send_signal(signal.SIGKILL)
        await process.wait()
        assert await whole_history(ledger, limit=100) == before
        await check_books(db)
        clock.advance(KEEPING.roll_up_interval_s)
        async with asyncio.timeout(30):
            # The server may not have noticed yet that the client is gone.
            while not await ledger.upkeep.roll_up():
                clock.advance(KEEPING.roll_up_interval_s)
                await asyncio.sleep(0.05)
    await check_books(db)


# Loops


async def test_the_loops_run_by_themselves(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a call, and they go on after one turn has failed."""
    monkeypatch.setattr(upkeep, "LOOK_S", 0.01)
    step, failed = upkeep.Auditor.step, list[int]()

    async def fails_once(self: Any, place: Any) -> Any:
        if not failed:
            failed.append(1)
            raise StatementFailed(reason="once", statement="SELECT")
        return await step(self, place)

    monkeypatch.setattr(upkeep.Auditor, "step", fails_once)
    async with Ledger(db, LedgerConfig(sweep_interval_s=0.01, audit_share=1.0)) as ledger:
        await ledger.grant(CREDITS, 5, key="order")
        await ledger.reserve(CREDITS, 1, key="task", ttl_s=0.01)
        async with asyncio.timeout(20):
            while not (  # noqa: ASYNC110 - other tasks
                value(ledger, "audits_total", "agreed") and value(ledger, "settlements_total", "expired")
            ):
                await asyncio.sleep(0.01)
        assert failed

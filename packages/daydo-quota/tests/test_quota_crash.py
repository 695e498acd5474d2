"""Clients and servers die, clocks are wrong, tasks go away in COMMIT: every unit is where it was said to be."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from quota_jobs import CREDITS as ACCOUNTS
from quota_jobs import check_jobs, do_jobs, open_accounts

from daydo_db import Database, DatabaseConfig, DbError, migrate, read_now_us
from daydo_db.testing import Backend, PrivateMariaDB, fresh_database
from daydo_kernel.testing import ManualClock
from daydo_quota import Account, Balance, Ledger, LedgerConfig, LedgerLeft
from daydo_quota.testing import Fault, Faults, check_books

CREDITS = Account("acme", "u_7", "credits")
JOBS = Path(__file__).with_name("quota_jobs.py")
# What was committed must survive a kill of the server; of the machine it need not.
DURABLE = ("--innodb-flush-log-at-trx-commit=2", "--innodb-doublewrite=ON")

HOLDER = """
import asyncio, sys
from daydo_db import Database
from daydo_kernel.testing import ManualClock
from daydo_quota import Account, Ledger

async def main(url):
    async with Database(url) as db, Ledger(db, clock=ManualClock()) as ledger:
        async with ledger.hold(Account("acme", "u_7", "credits"), 4, key="task", ttl_s=30):
            print("held", flush=True)
            await asyncio.Event().wait()

asyncio.run(main(sys.argv[1]))
"""


@asynccontextmanager
async def client(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    return await process.stdout.readline()


async def test_a_killed_client_loses_its_hold_exactly_on_time(db: Database, database_url: str) -> None:
    """kill −9 between reserve and confirm: held until the last microsecond, then returned once, whoever looks."""
    clock = ManualClock()
    async with Ledger(db, clock=clock) as ledger:
        await ledger.grant(CREDITS, 10, key="order")
        async with client("-c", HOLDER, database_url) as holder:
            assert await line(holder) == b"held\n"
            holder.send_signal(signal.SIGKILL)
            await holder.wait()
        clock.advance(29.999999)
        assert await ledger.balance(CREDITS) == Balance(available=6, reserved=4)
        clock.advance(0.000001)
        async with Ledger(db, clock=clock) as other:
            everybody = [ledger.sweep(), other.sweep(), ledger.balance(CREDITS), other.balance(CREDITS)]
            await asyncio.gather(*everybody)
        assert await ledger.balance(CREDITS) == Balance(available=10)
        kinds = [entry.kind for entry in (await ledger.history("acme", "u_7")).items]
        assert kinds == ["hold_expired", "held", "granted"]
    await check_books(db)


async def kill_clients(db: Database, url: str, processes: int, jobs: int, seed: int) -> None:
    """Each does all the jobs in its own order and is killed in the middle; then the jobs are done once more."""
    dice = random.Random(seed)
    async with Ledger(db, LedgerConfig(busy_timeout_s=30)) as ledger:
        await open_accounts(ledger)
        async with AsyncExitStack() as stack:
            programs = [(str(JOBS), url, str(seed + number), str(jobs)) for number in range(processes)]
            clients = [await stack.enter_async_context(client(*program)) for program in programs]

            async def kill(process: asyncio.subprocess.Process) -> None:
                for _ in range(dice.randint(1, jobs // 3)):
                    assert await line(process), "it had something to do"
                process.send_signal(signal.SIGKILL)
                await process.wait()

            await asyncio.gather(*map(kill, clients))
        await do_jobs(ledger, range(jobs))
        await check_jobs(db, ledger, jobs)


@pytest.mark.parametrize("processes", [2, 4])
async def test_killed_clients_lose_and_double_nothing(db: Database, database_url: str, processes: int) -> None:
    """Two and four processes do the same jobs on the same accounts and die; a survivor repeats them all."""
    await kill_clients(db, database_url, processes, jobs=90, seed=processes)


async def kill_server(folder: Path, kills: int, jobs: int) -> None:
    """Do the jobs on a MariaDB that is killed now and then and comes up again."""
    program = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
    if program is None:
        pytest.skip("needs mariadbd, to kill it")
    server = PrivateMariaDB(program, *DURABLE, restarts=True)
    try:
        version = await asyncio.to_thread(server.wait)
        pids = {server.pid}
        with fresh_database(Backend("mariadb", "mysql", version, server.url), folder) as url:
            async with Database(url, DatabaseConfig(connect_timeout_s=2.0)) as db:
                await migrate(db, "daydo_quota")
                async with Ledger(db) as ledger:
                    await open_accounts(ledger)
                    done = 0

                    def one_more(number: int) -> None:
                        nonlocal done
                        done += 1
                        if done % (jobs // (kills + 1)) == 0 and done < jobs:
                            pids.add(server.pid)
                            os.kill(server.pid, signal.SIGKILL)

                    await do_jobs(ledger, range(jobs), one_more)
                    assert len({*pids, server.pid}) == kills + 1, "it came up again after each kill"
                    await check_jobs(db, ledger, jobs)
    finally:
        await asyncio.to_thread(server.stop)


async def test_a_killed_server_loses_and_doubles_nothing(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Sixteen tasks work while the server is killed; whoever has no answer asks again with the same key."""
    if pytestconfig.option.embedded:
        pytest.skip("needs mariadbd, to kill it")
    await kill_server(tmp_path, kills=2, jobs=300)


SHIFTED = """
import sys, time
shift = float(sys.argv[2])
now, now_ns = time.time, time.time_ns
time.time = lambda: now() + shift
time.time_ns = lambda: now_ns() + int(shift * 1e9)

import asyncio
from daydo_db import Database
from daydo_quota import Account, Ledger

async def main(url):
    credits = Account("acme", "u_7", "credits")
    async with Database(url) as db, Ledger(db) as ledger:
        hold = await ledger.reserve(credits, 4, key="long", ttl_s=1800)
        await ledger.reserve(credits, 1, key="short", ttl_s=0.001)
        while (await ledger.balance(credits)).reserved != 4:
            pass
        await ledger.sweep()
        print(hold.expires_at_us, flush=True)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("shift_s", [3600, -3600])
async def test_a_wrong_clock_of_the_application_does_not_matter(db: Database, database_url: str, shift_s: int) -> None:
    """An hour ahead or behind: holds last, and end, by the database's clock, whichever process looks."""
    async with Ledger(db) as ledger:
        await ledger.grant(CREDITS, 10, key="order")
        began_us = await db.run(lambda tx: read_now_us(tx, None))
        async with client("-c", SHIFTED, database_url, str(shift_s)) as process:
            expires_at_us = int(await line(process))
        ended_us = await db.run(lambda tx: read_now_us(tx, None))
        assert began_us + 1_800_000_000 <= expires_at_us <= ended_us + 1_800_000_000
        assert await ledger.balance(CREDITS) == Balance(available=6, reserved=4)
        assert (await ledger.confirm(CREDITS, key="long")).phase == "confirmed"
    await check_books(db)


async def test_leaving_with_a_full_queue_loses_and_doubles_nothing(db: Database) -> None:
    """Batches are under way and calls wait when the time to leave is over: what was refused never happened."""
    config = LedgerConfig(batch_max=4, queue_max=120, drain_s=0.0, sweep_interval_s=0)
    calls = 120
    async with Ledger(db, config) as ledger:
        await ledger.grant(CREDITS, 1_000, key="order")
        tasks = [asyncio.create_task(ledger.reserve(CREDITS, 1, key=f"task_{number}")) for number in range(calls)]
        await tasks[0]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert refused, "it was left with calls in its queue"
    assert all(isinstance(answer, LedgerLeft | DbError) for answer in refused)
    async with Ledger(db) as ledger:
        held = calls - sum(isinstance(answer, LedgerLeft) for answer in answers)
        assert await ledger.balance(CREDITS) == Balance(available=1_000 - held, reserved=held)
        again = await asyncio.gather(*(ledger.reserve(CREDITS, 1, key=f"task_{number}") for number in range(calls)))
        assert [hold.created for hold in again] == [isinstance(answer, LedgerLeft) for answer in answers]
        assert await ledger.balance(CREDITS) == Balance(available=1_000 - calls, reserved=calls)
    await check_books(db)


async def test_a_row_that_cannot_be_read_fails_its_own_call_alone(db: Database) -> None:
    """One of 64 confirms in a batch finds a hold whose parts were overwritten; the other 63 are charged, each once."""
    async with Ledger(db, LedgerConfig(sweep_interval_s=0)) as ledger:
        await open_accounts(ledger)
        keys = [f"task_{number}" for number in range(64)]
        await asyncio.gather(*(ledger.reserve(ACCOUNTS[n % 3], 2, key=key) for n, key in enumerate(keys)))
        parts = (await db.query("SELECT parts FROM daydo_quota_hold WHERE op_key = ?", ("task_17",))).rows[0][0]
        write = "UPDATE daydo_quota_hold SET parts = ? WHERE op_key = ?"
        await db.execute(write, ("[[", "task_17"))
        await db.execute("UPDATE daydo_quota_account SET stamp = 0")  # as whoever edits rows must
        confirms = [ledger.confirm(ACCOUNTS[n % 3], key=key) for n, key in enumerate(keys)]
        answers = await asyncio.gather(*confirms, return_exceptions=True)
        assert [n for n, answer in enumerate(answers) if isinstance(answer, BaseException)] == [17]
        await db.execute(write, (parts, "task_17"))
        assert (await ledger.confirm(ACCOUNTS[17 % 3], key="task_17")).created
        assert sum([(await ledger.balance(account)).spent for account in ACCOUNTS]) == 2 * 64
    await check_books(db)


async def commits_of(faults: Faults, call: object) -> list[int]:
    statements = await faults.statements_of(call)  # type: ignore[arg-type]
    return [at for at, statement in enumerate(statements) if statement == "COMMIT"]


async def test_a_block_that_is_cancelled_during_commit_is_settled(db: Database, database_url: str) -> None:
    """At the confirm's COMMIT it is charged all the same; at the reserve's nothing is charged, whatever was held."""
    accounts = [Account("acme", f"u_{number}", "credits") for number in range(3)]

    async def block(ledger: Ledger, account: Account) -> None:
        async with ledger.hold(account, 4, key=account.subject) as work:
            work.charge = 3

    async with Faults(database_url) as faults, faults.database() as struck, Ledger(struck) as ledger:
        for account in accounts:
            await ledger.grant(account, 10, key=f"order_{account.subject}")
        at_reserve, at_confirm = await commits_of(faults, lambda: block(ledger, accounts[0]))
        for account, at in zip(accounts[1:], (at_reserve, at_confirm), strict=True):
            left = await faults.strike(Fault.CANCELLED, at, lambda account=account: block(ledger, account))
            assert left.statement == "COMMIT"
            assert isinstance(left.error, asyncio.CancelledError)
    async with Ledger(db) as ledger:
        assert await ledger.balance(accounts[1]) in (Balance(available=10), Balance(available=6, reserved=4))
        assert await ledger.balance(accounts[2]) == Balance(available=7, spent=3)
    await check_books(db)


async def test_a_transaction_that_is_cancelled_during_commit_is_committed(db: Database, database_url: str) -> None:
    """COMMIT is not left halfway: its answer is waited for, and the call is kept with all else in it."""

    async def buy(number: int) -> None:
        async with struck.transaction() as tx:
            await ledger.grant(CREDITS, 10, key=f"order_{number}", tx=tx)
            await ledger.reserve(CREDITS, 4, key=f"task_{number}", tx=tx)

    async with Faults(database_url) as faults, faults.database() as struck, Ledger(struck) as ledger:
        await buy(0)
        [commit] = await commits_of(faults, lambda: buy(1))
        left = await faults.strike(Fault.CANCELLED, commit, lambda: buy(2))
        assert isinstance(left.error, asyncio.CancelledError)
        assert await ledger.balance(CREDITS) == Balance(available=18, reserved=12)
    await check_books(db)

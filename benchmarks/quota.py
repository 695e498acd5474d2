"""daydo-quota beside what the database could do at best, and beside the usual way of writing a ledger.

A *pair* is a hold and its confirm, two calls and two commits to the caller, by 64 tasks on a durable MariaDB of our own
(``innodb_flush_log_at_trx_commit=1``). The measure is C: what a plain aiomysql pool of 64 does in INSERTs of one row,
each committed by itself. The rival is one transaction per call around ``SELECT … FOR UPDATE``, on that same pool. It is
also run on daydo-db, which makes it faster.

``uniform``, ``hot``, ``three_grants``: pairs/s ÷ C over 10,000 accounts, on one account, and over 10,000 accounts with
three grants each. ``uniform_vs_locking``, ``hot_vs_locking``: pairs/s ÷ the rival's. ``p99_vs_locking``: the greater of
the two ratios of p99, less is better. ``…_vs_locking_on_daydo_db``: as these, of the rival there. ``sqlite``: pairs/s ÷
one-row commits/s, both on a SQLite file; ``sqlite_at_best`` is what it would be if a pair took no time but that of its
statements in SQLite. ``history_deep``: the time of a page in the midst of a million entries ÷ that
of one among a thousand, less is better.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Protocol

import aiomysql  # type: ignore[import-untyped]
from pymysql.constants import ER  # type: ignore[import-untyped]

from daydo_db import Database, DatabaseConfig, Result, Value, migrate
from daydo_db.config import parse_url
from daydo_db.testing.servers import PrivateMariaDB, admin
from daydo_kernel import new_id
from daydo_quota import Account, Ledger

from .measure import Comparison, Operation, Report, compare, console

TASKS = 64
ACCOUNTS = 10_000
DEEP_ENTRIES = 1_000_000
FEW_ENTRIES = 1_000
PAGE = 50
AMPLE = 2**40
# The defaults of a server in service; the private server of the tests has none of them.
DURABLE = (
    "--innodb-flush-log-at-trx-commit=1",
    "--innodb-flush-method=fsync",
    "--innodb-doublewrite=ON",
    "--innodb-log-file-size=128M",
    "--innodb-buffer-pool-size=256M",
)

_TABLES = (
    "CREATE TABLE bench_row (id BIGINT PRIMARY KEY, owner VARCHAR(40), amount BIGINT)",
    "CREATE TABLE bench_account (id BIGINT PRIMARY KEY, available BIGINT, reserved BIGINT, spent BIGINT, seq BIGINT)",
    "CREATE TABLE bench_hold (op_key VARCHAR(40) PRIMARY KEY, account_id BIGINT, amount BIGINT, phase VARCHAR(16))",
    (
        "CREATE TABLE bench_entry (account_id BIGINT, seq BIGINT, kind VARCHAR(16), op_key VARCHAR(40), amount BIGINT, "
        "available BIGINT, reserved BIGINT, spent BIGINT, PRIMARY KEY (account_id, seq))"
    ),
)


class Timed:
    """An operation that remembers how long each call of it took."""

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self._seconds: list[float] = []

    async def __call__(self) -> None:
        began = time.perf_counter()
        await self._operation()
        self._seconds.append(time.perf_counter() - began)

    @property
    def p99_ms(self) -> float:
        return round(quantiles(self._seconds, n=100)[98] * 1e3, 1)


def pairs(ledger: Ledger, accounts: Callable[[], Account]) -> Operation:
    """Hold one unit and confirm it."""
    run, turn = new_id("run"), count()

    async def pair() -> None:
        account, key = accounts(), f"{run}_{next(turn)}"
        await ledger.reserve(account, 1, key=key)
        await ledger.confirm(account, key=key)

    return pair


class Executes(Protocol):
    async def execute(self, sql: str, args: Sequence[Value] = ()) -> Result: ...


class Plain:
    """Transactions on a pool of the plain driver, repeated after a deadlock."""

    def __init__(self, pool: aiomysql.Pool) -> None:
        self._pool = pool

    async def run(self, fn: Callable[[Executes], Awaitable[None]]) -> None:
        while True:
            async with self._pool.acquire() as connection, connection.cursor() as cursor:
                await connection.begin()
                try:
                    await fn(_PlainTx(cursor))
                    await connection.commit()
                except aiomysql.OperationalError as error:
                    await connection.rollback()
                    if error.args[0] not in (ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT):
                        raise
                else:
                    return


class _PlainTx:
    def __init__(self, cursor: aiomysql.Cursor) -> None:
        self._cursor = cursor

    async def execute(self, sql: str, args: Sequence[Value] = ()) -> Result:
        await self._cursor.execute(sql.replace("?", "%s"), args)
        return Result(rows=list(await self._cursor.fetchall()))


class Locking:
    """The usual way: each call locks the account, looks, and writes, in a transaction of its own."""

    def __init__(self, run: Callable[[Callable[[Executes], Awaitable[None]]], Awaitable[None]], name: str) -> None:
        self._run = run
        self._name = name
        self._turn = count()

    def pairs(self, accounts: Callable[[], int]) -> Operation:
        async def pair() -> None:
            account, key = accounts(), f"{self._name}_{next(self._turn)}"
            await self._run(lambda tx: self._reserve(tx, account, key))
            await self._run(lambda tx: self._confirm(tx, account, key))

        return pair

    async def _reserve(self, tx: Executes, account: int, key: str) -> None:
        available, reserved, spent, seq = await self._lock(tx, account)
        assert available >= 1
        await tx.execute("INSERT INTO bench_hold VALUES (?, ?, ?, ?)", (key, account, 1, "open"))
        await self._write(tx, account, "held", key, (available - 1, reserved + 1, spent, seq + 1))

    async def _confirm(self, tx: Executes, account: int, key: str) -> None:
        available, reserved, spent, seq = await self._lock(tx, account)
        found = await tx.execute("SELECT phase FROM bench_hold WHERE op_key = ?", (key,))
        assert found.rows == [("open",)]
        await tx.execute("UPDATE bench_hold SET phase = 'confirmed' WHERE op_key = ?", (key,))
        await self._write(tx, account, "confirmed", key, (available, reserved - 1, spent + 1, seq + 1))

    async def _lock(self, tx: Executes, account: int) -> tuple[int, int, int, int]:
        select = "SELECT available, reserved, spent, seq FROM bench_account WHERE id = ? FOR UPDATE"
        [(available, reserved, spent, seq)] = (await tx.execute(select, (account,))).rows
        return available, reserved, spent, seq

    async def _write(self, tx: Executes, account: int, kind: str, key: str, now: tuple[int, int, int, int]) -> None:
        available, reserved, spent, seq = now
        await tx.execute(
            "INSERT INTO bench_entry VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (account, seq, kind, key, 1, available, reserved, spent),
        )
        await tx.execute(
            "UPDATE bench_account SET available = ?, reserved = ?, spent = ?, seq = ? WHERE id = ?", (*now, account)
        )


async def run() -> Report:
    """Measure on servers and files that are gone afterwards; about three minutes."""
    report = Report()
    program = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
    assert program is not None, "no mariadbd on PATH or in /usr/sbin"
    server = PrivateMariaDB(program, *DURABLE)
    try:
        server.wait()
        admin(server.url, "CREATE DATABASE bench CHARACTER SET utf8mb4")
        await _measure_mariadb(report, f"{server.url}/bench")
        report.figures["deadlocks"] = _deadlocks(server.url)
    finally:
        server.stop()
    await _measure_sqlite(report)
    return report


async def _measure_mariadb(report: Report, url: str) -> None:
    async with AsyncExitStack() as stack:
        raw = await stack.enter_async_context(_raw_pool(url))
        db = await stack.enter_async_context(Database(url, DatabaseConfig(pool_max=TASKS + 8, slow_query_s=0)))
        await migrate(db, "daydo_quota")
        ledger = await stack.enter_async_context(Ledger(db))
        for statement in _TABLES:
            await db.execute(statement)
        await _fill(db, ledger)
        chosen, rows = random.Random(1), count()
        locking, on_daydo_db = Locking(Plain(raw).run, "plain"), Locking(db.run, "ours")

        async def insert_row() -> None:
            async with raw.acquire() as connection, connection.cursor() as cursor:
                row = (next(rows), "user_00000000000000000000000007", 1)
                await cursor.execute("INSERT INTO bench_row VALUES (%s, %s, %s)", row)

        timed = {
            "one-row commits": Timed(insert_row),
            "uniform": Timed(pairs(ledger, lambda: _account("one", chosen.randrange(ACCOUNTS)))),
            "hot": Timed(pairs(ledger, lambda: _account("hot", 0))),
            "three grants": Timed(pairs(ledger, lambda: _account("three", chosen.randrange(ACCOUNTS)))),
            "locking, uniform": Timed(locking.pairs(lambda: chosen.randrange(ACCOUNTS))),
            "locking, hot": Timed(locking.pairs(lambda: ACCOUNTS)),
            "locking on daydo-db, uniform": Timed(on_daydo_db.pairs(lambda: chosen.randrange(ACCOUNTS))),
            "locking on daydo-db, hot": Timed(on_daydo_db.pairs(lambda: ACCOUNTS)),
        }
        compared = await compare(f"hold + confirm, {TASKS} tasks, MariaDB", timed, tasks=TASKS, rounds=7)
        compared.show("one-row commits")
        _note(report, compared, timed)
        await _measure_history(report, db, ledger)


def _note(report: Report, compared: Comparison, timed: dict[str, Timed]) -> None:
    for name in ("uniform", "hot"):
        report.ratios[name] = compared.ratio(name, "one-row commits")
        report.ratios[f"{name}_vs_locking"] = compared.ratio(name, f"locking, {name}")
        report.ratios[f"{name}_vs_locking_on_daydo_db"] = compared.ratio(name, f"locking on daydo-db, {name}")
    report.ratios["three_grants"] = compared.ratio("three grants", "one-row commits")
    p99 = {name: operation.p99_ms for name, operation in timed.items()}
    console.print("p99 ms: " + ", ".join(f"{name} {value}" for name, value in p99.items()))
    report.ratios["p99_vs_locking"] = round(
        max(p99["uniform"] / p99["locking, uniform"], p99["hot"] / p99["locking, hot"]), 3
    )
    report.figures["commits_per_s"] = _per_s(compared, "one-row commits")
    for name in ("uniform", "hot", "three grants", "locking, uniform", "locking, hot"):
        figure = name.replace(", ", "_").replace(" ", "_")
        report.figures[f"{figure}_pairs_per_s"] = _per_s(compared, name)
        report.figures[f"{figure}_p99_ms"] = p99[name]


async def _measure_sqlite(report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="daydo-bench-") as folder:
        async with Database(f"sqlite:///{Path(folder, 'bench.db')}", DatabaseConfig(slow_query_s=0)) as db:
            await migrate(db, "daydo_quota")
            await db.execute(_TABLES[0])
            async with Ledger(db) as ledger:
                await _grant(ledger, "one", ACCOUNTS)
                chosen, rows = random.Random(1), count()

                async def insert_row() -> None:
                    row = (next(rows), "user_00000000000000000000000007", 1)
                    await db.execute("INSERT INTO bench_row VALUES (?, ?, ?)", row)

                rivals = {
                    "one-row commits": insert_row,
                    "uniform": pairs(ledger, lambda: _account("one", chosen.randrange(ACCOUNTS))),
                }
                compared = await compare(f"hold + confirm, {TASKS} tasks, SQLite", rivals, tasks=TASKS, rounds=7)
                inside_s = await _inside_s(db, rivals["uniform"])
    compared.show("one-row commits")
    report.ratios["sqlite"] = compared.ratio("uniform", "one-row commits")
    at_best = median(compared.wall_s["one-row commits"]) / inside_s
    console.print(f"of a pair SQLite itself takes {inside_s * 1e6:.0f} µs; if all else cost nothing: {at_best:.2f}")
    report.figures["sqlite_at_best"] = round(at_best, 3)
    report.figures["sqlite_commits_per_s"] = _per_s(compared, "one-row commits")
    report.figures["sqlite_pairs_per_s"] = _per_s(compared, "uniform")


async def _inside_s(db: Database, pair: Operation) -> float:
    """How long SQLite is at work for a pair: its statements, COMMIT included."""
    seconds, rounds = list[float](), 50

    async def task() -> None:
        for _ in range(rounds):
            await pair()

    with db.telemetry.listening(lambda sent: seconds.append(sent.seconds)):
        await asyncio.gather(*(task() for _ in range(TASKS)))
    return sum(seconds) / (TASKS * rounds)


async def _measure_history(report: Report, db: Database, ledger: Ledger) -> None:
    for subject, entries in (("few", FEW_ENTRIES), ("deep", DEEP_ENTRIES)):
        await _grant(ledger, subject, 1)
        await _write_entries(db, subject, entries)
    await db.execute("ANALYZE TABLE daydo_quota_entry")
    cursors = {subject: await _cursor_into(db, ledger, subject) for subject in ("few", "deep")}

    def page(subject: str) -> Operation:
        return lambda: ledger.history("bench", f"{subject}_0", unit="credits", cursor=cursors[subject], limit=PAGE)

    compared = await compare(f"a page of {PAGE} entries", {"of a thousand": page("few"), "of a million": page("deep")})
    compared.show("of a thousand")
    report.ratios["history_deep"] = round(1 / compared.ratio("of a million", "of a thousand"), 3)
    report.figures["history_deep_us"] = round(median(compared.wall_s["of a million"]) * 1e6, 1)


async def _write_entries(db: Database, subject: str, entries: int) -> None:
    """As if so much had happened; the first entry, the grant's, is there."""
    [(account,)] = (await db.query("SELECT id FROM daydo_quota_account WHERE subject = ?", (f"{subject}_0",))).rows
    # Two times a thousand: MariaDB stops a recursion there without a word.
    digits = "WITH RECURSIVE digit (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM digit WHERE n < 999)"
    for start in range(0, entries, 100_000):
        await db.execute(
            "INSERT INTO daydo_quota_entry (account_id, seq, op_id, step, kind, op_key, reason, at_us, amount, "
            "available_change, reserved_change, spent_change, expired_change, available, reserved, spent, expired) "
            f"{digits} SELECT ?, seq, CONCAT(?, seq), 'held', 'held', CONCAT('task_', seq), '', seq, 1, -1, 1, 0, 0, "
            "1, 1, 0, 0 FROM (SELECT ? + a.n * 1000 + b.n + 2 AS seq FROM digit a, digit b WHERE a.n < 100) numbered "
            "WHERE seq <= ?",
            (account, f"{subject}_", start, entries),
        )
    await db.execute("UPDATE daydo_quota_account SET seq = ? WHERE id = ?", (entries, account))


async def _cursor_into(db: Database, ledger: Ledger, subject: str) -> str | None:
    """A cursor from the newer half to the older one."""
    await db.execute("UPDATE daydo_quota_account SET seq = seq / 2 WHERE subject = ?", (f"{subject}_0",))
    page = await ledger.history("bench", f"{subject}_0", unit="credits", limit=PAGE)
    assert len(page.items) == PAGE  # an empty page would be a fast one
    await db.execute("UPDATE daydo_quota_account SET seq = seq * 2 WHERE subject = ?", (f"{subject}_0",))
    return page.next_cursor


async def _fill(db: Database, ledger: Ledger) -> None:
    await _grant(ledger, "one", ACCOUNTS)
    await _grant(ledger, "hot", 1)
    await _grant(ledger, "three", ACCOUNTS, grants=3)
    for start in range(0, ACCOUNTS + 1, 1000):
        numbers = range(start, min(start + 1000, ACCOUNTS + 1))
        values = ", ".join(f"({number}, {AMPLE}, 0, 0, 0)" for number in numbers)
        await db.execute(f"INSERT INTO bench_account VALUES {values}")


async def _grant(ledger: Ledger, subject: str, accounts: int, grants: int = 1) -> None:
    for start in range(0, accounts, 500):
        numbers = range(start, min(start + 500, accounts))
        await asyncio.gather(
            *(
                ledger.grant(_account(subject, number), AMPLE, key=f"{subject}_{number}_{grant}", priority=grant)
                for number in numbers
                for grant in range(grants)
            )
        )


def _account(subject: str, number: int) -> Account:
    return Account("bench", f"{subject}_{number}", "credits")


@asynccontextmanager
async def _raw_pool(url: str) -> AsyncIterator[aiomysql.Pool]:
    at = parse_url(url)
    pool = await aiomysql.create_pool(
        host=at.host, port=at.port, user=at.user, db=at.name, minsize=TASKS, maxsize=TASKS, autocommit=True
    )
    try:
        yield pool
    finally:
        pool.close()
        await pool.wait_closed()


def _deadlocks(url: str) -> float:
    return float(str(admin(url, "SELECT COUNT FROM information_schema.INNODB_METRICS WHERE NAME = 'lock_deadlocks'")))


def _per_s(compared: Comparison, name: str) -> float:
    return round(1 / median(compared.wall_s[name]), 1)

"""SQLite: one writer, a few readers beside it, one file.

A transaction is opened IMMEDIATE. A deferred one that reads first and writes later cannot get the write lock
once another writer has committed, and fails however long it waits; an immediate one waits its turn. Within
this process the turn is the writer's pool slot, towards other processes it is SQLite's busy timeout.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiosqlite

from daydo_kernel import to_the_end

from .config import DatabaseConfig, Location
from .errors import ConnectionLost, LockTimeout, QueryTimeout, StatementFailed
from .mapping import from_sqlite
from .telemetry import Telemetry
from .tx import SQLITE, Result, Statement, Value, compile_statement

# Of 4 KiB, so the log may grow to 32 MiB. Of pages that many commits change the last version alone is copied back into
# the file: a fourth more transactions of sixty rows than with SQLite's 1,000.
_LOG_PAGES = 8_000
_PAUSE_S = 0.01


class SqliteEngine:
    """Connections to one file. Without a path it is a private temporary file, removed at the end."""

    dialect = SQLITE
    begin = compile_statement("sqlite", "BEGIN IMMEDIATE")
    begins_late = False
    refused_inside = frozenset({"BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE", "ATTACH", "VACUUM"})

    version = f"SQLite {sqlite3.sqlite_version}"

    def __init__(self, location: Location, config: DatabaseConfig, telemetry: Telemetry) -> None:
        self._path = location.path
        self._telemetry = telemetry
        self._config = config
        self._folder: str | None = None

    async def connect(self, *, writable: bool) -> SqliteConnection:
        if not self._path and self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="daydo-")
        path = self._path or str(Path(self._folder or "", "daydo.db"))
        # isolation_level=None: the module opens no transactions of its own.
        driver = aiosqlite.connect(
            path, isolation_level=None, timeout=self._config.lock_timeout_s, cached_statements=512
        )
        connection = SqliteConnection(driver, self._config, self._telemetry)
        try:
            await to_the_end(_open(driver, path))
            await connection.prepare(writable=writable)
        except BaseException:
            await to_the_end(connection.close())
            raise
        return connection

    async def aclose(self) -> None:
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
            self._folder = None


class SqliteConnection:
    """One connection and its thread. All of a statement happens in one visit to that thread."""

    def __init__(self, driver: aiosqlite.Connection, config: DatabaseConfig, telemetry: Telemetry) -> None:
        self._driver = driver
        self._timeout_s = config.statement_timeout_s
        self._close_s = config.connect_timeout_s
        self._lock_s = config.lock_timeout_s
        self._telemetry = telemetry
        self._closed = False
        self._abandoned = False
        self.born_s = asyncio.get_running_loop().time()

    @property
    def usable(self) -> bool:
        return not (self._closed or self._abandoned)

    @property
    def in_transaction(self) -> bool:
        return not self._closed and self._driver.in_transaction

    async def prepare(self, *, writable: bool) -> None:
        """Session settings. WAL lets readers go on while one writes; FULL keeps a commit through a power cut."""
        if writable:
            await self._use_wal()
        await self.script("PRAGMA synchronous=FULL")
        await self.script(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
        await self.script("PRAGMA foreign_keys=ON")
        if not writable:
            await self.script("PRAGMA query_only=ON")

    async def _use_wal(self) -> None:
        """The switch needs the file for itself, and here SQLite does not wait for others as it does elsewhere."""
        until_s = time.monotonic() + self._lock_s
        while (await self.script("PRAGMA journal_mode")).rows != [("wal",)]:
            try:
                await self.script("PRAGMA journal_mode=WAL")
            except LockTimeout:
                if time.monotonic() > until_s:
                    raise
                await asyncio.sleep(_PAUSE_S)
            else:
                return  # Also where a file system has no WAL: then it is as it was.

    async def execute(self, statement: Statement, args: Sequence[Value] = ()) -> Result:
        return (await self._run([(statement, args)], self._timeout_s))[0]

    async def execute_all(
        self, statements: Sequence[tuple[Statement, Sequence[Value]]], timeout_s: float | None = None
    ) -> list[Result]:
        return await self._run(statements, self._timeout_s if timeout_s is None else timeout_s)

    async def script(self, text: str) -> Result:
        return (await self._run([(Statement(text, 0, ""), ())], None))[0]

    async def ping(self) -> bool:
        return self.usable

    async def close(self) -> None:
        """Stop what runs and close; behind a BEGIN that waits for the file's lock this takes ``lock_timeout_s``."""
        if self._closed:
            return
        self._closed = True
        try:
            self._driver._conn.interrupt()
            async with asyncio.timeout(self._close_s):
                await self._driver.close()
        except (sqlite3.Error, ValueError, TimeoutError):
            return  # It is broken already; its thread ends with its last statement.

    async def _run(
        self, statements: Sequence[tuple[Statement, Sequence[Value]]], timeout_s: float | None
    ) -> list[Result]:
        if not self.usable:
            raise ConnectionLost()
        driver, given_up, inside = self._driver._conn, False, self.in_transaction
        results: list[Result] = []
        ended_s = [time.perf_counter()]

        def work() -> None:
            for statement, args in statements:
                if given_up:
                    return
                results.append(_fetch(statement, driver.execute(statement.text, args)))
                ended_s.append(time.perf_counter())

        try:
            async with asyncio.timeout(timeout_s):
                # The one private name used here: the public calls would visit the thread once per row set,
                # column list and count.
                await self._driver._execute(work)  # type: ignore[no-untyped-call]
        except (TimeoutError, asyncio.CancelledError) as stop:
            given_up = True
            driver.interrupt()
            # An interrupt does not end SQLite's wait for a lock: a BEGIN may still succeed when nobody knows any
            # more. Inside a transaction the ROLLBACK to come waits for the statement.
            self._abandoned = not inside
            statement, args = statements[min(len(results), len(statements) - 1)]
            self._telemetry.given_up(statement, args, time.perf_counter() - ended_s[-1])
            if isinstance(stop, TimeoutError):
                raise QueryTimeout() from None
            raise
        except sqlite3.Error as error:
            self._telemetry.failed()
            raise from_sqlite(error, statements[len(results)][0].text) from error
        finally:
            self._telemetry.done_all(statements, results, ended_s)
        return results


async def _open(driver: aiosqlite.Connection, path: str) -> None:
    """Start its thread, which nothing stops and which would answer a loop that is closed; so it is waited for."""
    try:
        await driver
    except sqlite3.Error as error:
        thread: Any = getattr(driver, "_thread", driver)  # Until aiosqlite 0.22 the connection is the thread.
        await asyncio.to_thread(thread.join)
        raise StatementFailed(reason=f"{error}", statement=f"open {path}") from error


def _fetch(statement: Statement, cursor: sqlite3.Cursor) -> Result:
    rows = cursor.fetchall()
    if cursor.description:
        return Result(tuple(column[0] for column in cursor.description), rows, len(rows))
    inserted = statement.verb in ("INSERT", "REPLACE") and cursor.rowcount > 0
    return Result((), [], max(cursor.rowcount, 0), (cursor.lastrowid or 0) if inserted else 0)

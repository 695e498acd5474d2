"""What can go wrong between a program and its database, done to one statement at a time; for tests, ours and yours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

from daydo_db import (
    ConnectionLost,
    Database,
    DatabaseConfig,
    Deadlock,
    LockTimeout,
    QueryTimeout,
)
from daydo_db.config import Location, parse_url
from daydo_db.connection import Connection, Engine
from daydo_db.pool import Pool
from daydo_db.tx import Dialect, Result, Statement, Value

from .aim import Aim, Fault
from .relay import Relay

Call = Callable[[], Awaitable[Any]]


class Struck(NamedTuple):
    """What became of a call: ``statement`` is the one that was hurt (empty: it had none left), then what came of it.

    ``error`` is what the call raised, ``answer`` what it returned where it raised nothing.
    """

    fault: Fault
    at: int
    statement: str
    answer: Any
    error: BaseException | None

    def __str__(self) -> str:
        return f"{self.fault.name} at statement {self.at} ({self.statement[:100]})"


class Faults:
    """Stands between a database and those who use it, and hurts one statement of a call.

        async with Faults(url) as faults, faults.database() as db, Ledger(db) as ledger:
            async for struck in faults.at_every_statement(Fault.CUT_AFTER, lambda: ledger.grant(…)):
                …  # call again, with the same key, and look

    In front of MySQL and MariaDB it is a relay for any driver (``faults.url``): errors come from the server, cut is a
    socket. A SQLite file has no server; there the connections of ``faults.database()`` do it.

    Sessions' own settings (``SET …``, ``SELECT @@…``, ``KILL``) are no statements of a call and not counted.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._location = parse_url(url)
        self._aim: Aim | None = None
        self._relay: Relay | None = None

    async def __aenter__(self) -> Self:
        if self._location.dialect.name == "mysql":
            self._relay = Relay(self._location, lambda: self._aim)
            self.url = _url(self._location, await self._relay.start())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._relay is not None:
            await self._relay.stop()

    def database(self, config: DatabaseConfig = DatabaseConfig()) -> Database:  # noqa: B008 - frozen
        """A database whose statements can be hurt; enter it as any other."""
        if self._relay is not None:
            return Database(self.url, config)
        return _FaultyDatabase(self.url, config, lambda: self._aim)

    async def strike(self, fault: Fault, at: int, call: Call) -> Struck:
        """Make ``call`` in a task of its own and let ``fault`` happen to its statement number ``at`` (from 0).

        Nobody else may use the database meanwhile, for their statements would be counted, too.
        """
        task = asyncio.ensure_future(_run(call))
        self._aim = aim = Aim(fault, at, task.cancel)
        try:
            await asyncio.wait([task])
        finally:
            self._aim = None
            task.cancel()
        if task.cancelled():
            return Struck(fault, at, aim.hit, None, asyncio.CancelledError())
        error = task.exception()
        return Struck(fault, at, aim.hit, None if error else task.result(), error)

    async def at_every_statement(self, fault: Fault, call: Call) -> AsyncIterator[Struck]:
        """Strike ``call`` at its first statement, then at its second, until it has none left.

        It is called once for each, so it makes itself what it needs (an account, a key).
        """
        at = 0
        while (struck := await self.strike(fault, at, call)).statement:
            yield struck
            at += 1

    async def statements_of(self, call: Call) -> list[str]:
        """Make ``call``, hurt nothing, and return the statements it is made of, BEGIN and COMMIT included."""
        self._aim = aim = Aim(Fault.SILENT, -1)
        try:
            await call()
        finally:
            self._aim = None
        return aim.seen


async def _run(call: Call) -> Any:
    return await call()


def _url(location: Location, port: int) -> str:
    login = ":".join(quote(part, safe="") for part in (location.user, location.password) if part)
    return f"mysql://{login}{'@' if login else ''}127.0.0.1:{port}/{quote(location.name, safe='')}"


class _FaultyDatabase(Database):
    """SQLite whose connections do what a relay does elsewhere."""

    def __init__(self, url: str, config: DatabaseConfig, aim: Callable[[], Aim | None]) -> None:
        self._aim = aim
        super().__init__(url, config)

    def _pool(self, name: str, size: int, keep: int, *, writable: bool, engine: Engine | None = None) -> Pool:
        faulty = _FaultyEngine(engine or self._engine, self._aim)
        return super()._pool(name, size, keep, writable=writable, engine=faulty)


class _FaultyEngine:
    def __init__(self, engine: Engine, aim: Callable[[], Aim | None]) -> None:
        self._engine, self._aim = engine, aim
        self.dialect: Dialect = engine.dialect
        self.version = engine.version
        self.begin = engine.begin
        self.begins_late = engine.begins_late
        self.refused_inside = engine.refused_inside

    async def connect(self, *, writable: bool) -> Connection:
        return _FaultyConnection(await self._engine.connect(writable=writable), self._aim)

    async def aclose(self) -> None:
        await self._engine.aclose()


class _FaultyConnection:
    def __init__(self, connection: Connection, aim: Callable[[], Aim | None]) -> None:
        self._connection, self._aim = connection, aim
        self.born_s = connection.born_s

    @property
    def usable(self) -> bool:
        return self._connection.usable

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    async def execute(self, statement: Statement, args: Sequence[Value] = ()) -> Result:
        aim = self._aim()
        if aim is None or not aim.hits(statement.text):
            return await self._connection.execute(statement, args)
        await self._before(aim)
        result = await self._connection.execute(statement, args)
        await self._after(aim)
        return result

    async def execute_all(
        self, statements: Sequence[tuple[Statement, Sequence[Value]]], timeout_s: float | None = None
    ) -> list[Result]:
        if self._aim() is None:
            return await self._connection.execute_all(statements, timeout_s)
        return [await self.execute(statement, args) for statement, args in statements]

    async def script(self, text: str) -> Result:
        return await self._connection.script(text)

    async def ping(self) -> bool:
        return await self._connection.ping()

    async def close(self) -> None:
        await self._connection.close()

    async def _before(self, aim: Aim) -> None:
        match aim.fault:
            case Fault.DEADLOCK:  # SQLite has none, but after some errors (no room, no disk) it rolls back by itself.
                if self._connection.in_transaction:
                    await self._connection.script("ROLLBACK")
                raise Deadlock()
            case Fault.LOCK_TIMEOUT:
                raise LockTimeout()
            case Fault.STOPPED:
                raise QueryTimeout()
            case Fault.CUT_BEFORE:
                await self._connection.close()
                raise ConnectionLost()
            case Fault.CANCELLED:
                aim.cancel()

    async def _after(self, aim: Aim) -> None:
        match aim.fault:
            case Fault.CUT_AFTER:
                await self._connection.close()
                raise ConnectionLost()
            case Fault.SILENT:
                raise QueryTimeout()

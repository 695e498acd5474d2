"""A transaction on one of our own connections.

Two things a transaction must never do are told apart here. It must not go on after the server has dropped it
(a deadlock, a lost connection): later statements would commit one by one, so it is *dead* then and refuses
them. And it must not claim to know what it does not: a COMMIT whose answer never came is ``CommitUnknown``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Literal

from daydo_kernel import to_the_end

from .connection import Connection, Engine
from .errors import (
    CommitUnknown,
    ConnectionLost,
    DbError,
    Deadlock,
    LockTimeout,
    QueryTimeout,
    StatementFailed,
    StorageFull,
    TransactionAborted,
)
from .mapping import was_refused
from .tx import (
    Dialect,
    Result,
    Statement,
    Value,
    bind,
    compile_statement,
    require_passing,
    require_single,
)

log = logging.getLogger("daydo")

Outcome = Literal["committed", "rolled_back", "aborted", "unknown"]
OUTCOMES: tuple[Outcome, ...] = ("committed", "rolled_back", "aborted", "unknown")

# After these the server has no transaction, or only a part of what the caller believes is in it.
DEADLY = (Deadlock, LockTimeout, ConnectionLost, QueryTimeout, StorageFull)


class Transaction:
    """An open transaction; made by :meth:`daydo_db.Database.transaction`, implements :class:`daydo_db.Tx`.

    Tasks may share one; their statements take turns. One in a ``single_packet`` may be on a connection of others, too.
    """

    outcome: Outcome

    def __init__(self, engine: Engine, connection: Connection, *, single_packet: bool = False) -> None:
        self._engine = engine
        self._connection = connection
        self._single_packet = single_packet
        self._turn = asyncio.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._dead: BaseException | None = None
        self._begun = False
        self._ended = False
        self._savepoints = self._open_savepoints = 0
        self.outcome = "rolled_back"

    @property
    def dialect(self) -> Dialect:
        return self._engine.dialect

    async def execute(self, sql: str, args: Sequence[Value] = ()) -> Result:
        """As :meth:`Tx.execute`; besides it refuses what would end the transaction behind its back.

        Raises:
            TransactionAborted: the transaction is over.
            StatementFailed: the statement commits silently (DDL on MySQL) or is itself BEGIN, COMMIT, …, or it would
                change the connection for whoever has it next.
        """
        statement = self._checked(sql, args)
        async with self._turn:
            self._require_alive()
            self._require_packets()
            await self._begin_now()
            [result] = await self._run([statement])
            return result

    async def execute_all(
        self, statements: Sequence[tuple[str, Sequence[Value]]], *, commit_within_s: float | None = None
    ) -> list[Result]:
        """As :meth:`Tx.execute_all`; it refuses what :meth:`execute` refuses. Once committed, it has been left."""
        checked = [self._checked(sql, args) for sql, args in statements]
        for statement, _ in checked:
            require_single(self.dialect.name, statement)
        async with self._turn:
            self._require_alive()
            if commit_within_s is not None and not self._open_savepoints:
                return await to_the_end(self._finish(checked, commit_within_s))
            self._require_packets()
            if not checked:
                return []
            if self._begun:
                return await self._run(checked)
            self._begun = True
            return (await self._run([(self._engine.begin, ()), *checked]))[1:]

    def _checked(self, sql: str, args: Sequence[Value]) -> tuple[Statement, Sequence[Value]]:
        statement = compile_statement(self.dialect.name, sql)
        if statement.verb in self._engine.refused_inside:
            raise StatementFailed(
                reason=f"{statement.verb} would end the transaction; run DDL outside, nest with tx.savepoint()",
                statement=statement.text[:200],
            )
        require_passing(statement)
        return bind(statement, args)

    async def _run(self, statements: Sequence[tuple[Statement, Sequence[Value]]]) -> list[Result]:
        results = await self._send(statements)
        if not self._connection.in_transaction:
            statement = statements[-1][0].text[:200]
            self.set_rollback_only(StatementFailed(reason="it committed silently", statement=statement))
            self._require_alive()
        return results

    async def _send(
        self, statements: Sequence[tuple[Statement, Sequence[Value]]], timeout_s: float | None = None
    ) -> list[Result]:
        try:
            if len(statements) == 1 and timeout_s is None:
                return [await self._connection.execute(*statements[0])]
            return await self._connection.execute_all(statements, timeout_s)
        except BaseException as error:
            # Also dead: cancelled in mid-statement, or rolled back by SQLite itself (an I/O error). And what came after
            # the only packet would not come next on its connection.
            alive = isinstance(error, Exception) and self._connection.in_transaction and not self._single_packet
            if isinstance(error, DEADLY) or not alive:
                self.set_rollback_only(error)
            raise

    def after_commit(self, fn: Callable[[], None]) -> None:
        """As :meth:`Tx.after_commit`.

        Raises:
            TypeError: ``fn`` is a coroutine function.
        """
        if inspect.iscoroutinefunction(fn):
            raise TypeError("after_commit takes a plain function; start a task of your own in it")
        self._require_alive()
        self._callbacks.append(fn)

    def set_rollback_only(self, because: BaseException) -> None:
        """As :meth:`Tx.set_rollback_only`."""
        if self._dead is None and not self._ended:
            self._dead = because
            self.outcome = "aborted"

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """A part that can fail alone: an exception undoes the statements of the block and passes on."""
        self._savepoints += 1
        name, registered = f"daydo_{self._savepoints}", len(self._callbacks)
        await self._control(f"SAVEPOINT {name}")
        self._open_savepoints += 1
        try:
            yield
        except BaseException:
            self._open_savepoints -= 1
            del self._callbacks[registered:]
            if self._dead is None and not self._ended:
                await self._control(f"ROLLBACK TO SAVEPOINT {name}")
                await self._control(f"RELEASE SAVEPOINT {name}")
            raise
        self._open_savepoints -= 1
        await self._control(f"RELEASE SAVEPOINT {name}")

    async def begin(self) -> None:
        """BEGIN; where that takes no lock it goes with the first statement."""
        if not self._engine.begins_late:
            await self._begin_now()

    async def _begin_now(self) -> None:
        if not self._begun:
            self._begun = True
            await self._run([(self._engine.begin, ())])

    async def commit(self) -> None:
        """COMMIT.

        Raises:
            TransactionAborted: it was dead already; the cause says since what.
            CommitUnknown: the answer did not come.
            ConnectionLost: the server is read only by now; nothing was kept.
        """
        async with self._turn:
            self._require_alive()
            await self._finish([])

    async def _finish(
        self, statements: Sequence[tuple[Statement, Sequence[Value]]], timeout_s: float | None = None
    ) -> list[Result]:
        """Run them and, if none fails, COMMIT, all in one round trip."""
        if not self._connection.usable:
            self.set_rollback_only(ConnectionLost())
            raise ConnectionLost()
        begin = [(self._opening, ())] if statements and not self._begun else []
        commit = [(compile_statement(self.dialect.name, "COMMIT"), ())] if statements or self._begun else []
        self._begun = bool(commit)
        try:
            results = await self._send([*begin, *statements, *commit], timeout_s) if commit else []
        except (ConnectionLost, QueryTimeout) as error:
            if was_refused(error):
                raise
            self.outcome = "unknown"
            raise CommitUnknown() from error
        self._ended, self.outcome = True, "committed"
        return results[len(begin) : len(results) - len(commit)]

    @property
    def _opening(self) -> Statement:
        # START TRANSACTION would commit what failed ahead on this connection.
        return compile_statement(self.dialect.name, "ROLLBACK AND CHAIN") if self._single_packet else self._engine.begin

    async def rollback(self) -> None:
        """ROLLBACK where there is something to roll back; its own failure is the pool's business only."""
        self._ended = True
        async with self._turn:
            if not (self._connection.usable and self._connection.in_transaction):
                return
            try:
                await self._connection.execute(compile_statement(self.dialect.name, "ROLLBACK"))
            except DbError as error:
                log.debug("rollback failed, the connection is dropped: %s", error)

    def run_callbacks(self) -> None:
        for fn in self._callbacks:
            try:
                fn()
            except Exception:
                log.exception("an after_commit function failed; the change itself is committed")

    async def _control(self, sql: str) -> None:
        async with self._turn:
            self._require_alive()
            self._require_packets()
            try:
                await self._begin_now()
                await self._connection.execute(compile_statement(self.dialect.name, sql))
            except BaseException as error:
                self.set_rollback_only(error)
                raise

    def _require_packets(self) -> None:
        if self._single_packet:
            reason = "a transaction behind others is one execute_all(…, commit_within_s=…) and nothing else"
            raise StatementFailed(reason=reason, statement="")

    def _require_alive(self) -> None:
        if self.outcome == "unknown":  # Whoever has swallowed that must not be told that nothing was kept.
            raise CommitUnknown() from self._dead
        if self._dead is not None:
            raise TransactionAborted(reason=f"{type(self._dead).__name__} ended it") from self._dead
        if self._ended:
            raise TransactionAborted(reason="it has been left")

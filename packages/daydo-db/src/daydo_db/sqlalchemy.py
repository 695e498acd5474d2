"""Our transaction inside yours: a :class:`daydo_db.Tx` on the connection of an SQLAlchemy ``AsyncSession``.

    async with sessions.begin() as session:
        session.add(order)
        tx = await enlist(session)
        await ledger.grant(account, 50, key=order.id, tx=tx)

Works with ``sqlite+aiosqlite`` and ``mysql+aiomysql``. The session decides everything: it commits, it rolls
back, and its isolation level and SQL mode stay as they are. What was only added to the session is not yet in
the database: ``await session.flush()`` where a library should meet it.

Where the database has undone the transaction, or may have undone a part of it, the session can only be rolled back: its
commit raises :class:`daydo_db.TransactionAborted`, also where a statement of its own met the error. SQLAlchemy tells of
those by an event of the engine.

SQLAlchemy tells about commits and savepoints by events of the session. A function given to ``after_commit``
belongs to the innermost ``session.begin_nested()`` of that moment; when a savepoint is released its functions
move out to the enclosing one, when it is rolled back they go with it, and what has arrived outside when the
session has committed is called. Extra: ``[sqlalchemy]``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import sqlite3
from collections.abc import Callable, Sequence
from copy import copy
from decimal import Decimal
from typing import Any, cast
from weakref import WeakValueDictionary

from sqlalchemy import Connection, Engine, ExceptionContext, QueuePool, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from .errors import ConnectionLost, DbError, PoolTimeout, StatementFailed, TransactionAborted
from .mapping import from_mysql, from_sqlite, without_values
from .sqlite import SqliteEngine
from .transaction import DEADLY
from .tx import (
    _TOKENS,
    MYSQL,
    SQLITE,
    Dialect,
    DialectName,
    Result,
    Tx,
    Value,
    bind,
    compile_statement,
    require_single,
)

log = logging.getLogger("daydo")

_DRIVERS = {("sqlite", "aiosqlite"): SQLITE, ("mysql", "aiomysql"): MYSQL, ("mariadb", "aiomysql"): MYSQL}
_ENLISTED = "daydo_db.enlisted"  # the session's own notebook (Session.info) holds the Tx while it lives


async def enlist(session: AsyncSession) -> Tx:
    """The session's transaction as a Tx; begins it where there is none yet. Again gives the same Tx.

    On SQLite a transaction that has not yet begun in the file begins IMMEDIATE, as ours do: what a library
    has read can then no longer change before it writes.

    Raises:
        ValueError: the session's driver is another one, or in autocommit; on SQLite, a savepoint is open already.
        DbError: the connection or, on SQLite, the write lock could not be had.
    """
    sync_session = session.sync_session
    known = sync_session.info.get(_ENLISTED)
    if isinstance(known, EnlistedTransaction) and known.root is sync_session.get_transaction():
        return known
    try:
        connection = await session.connection()
    except DBAPIError as error:
        raise _mapped(error.orig, "", lost=error.connection_invalidated) from error.orig
    except PoolTimeoutError as error:
        pool = cast("QueuePool", cast("Engine", sync_session.get_bind()).pool)
        raise PoolTimeout(waited_s=pool.timeout(), size=pool.checkedout()) from error
    driver = (connection.dialect.name, connection.dialect.driver)
    if driver not in _DRIVERS:
        raise ValueError(f"enlist works with sqlite+aiosqlite and mysql+aiomysql, not {'+'.join(driver)}")
    tx = EnlistedTransaction(session, _DRIVERS[driver])
    await tx.begin(connection)
    return tx


class EnlistedTransaction:
    """Implements :class:`daydo_db.Tx`; made by :func:`enlist`, over when the session's transaction is."""

    def __init__(self, session: AsyncSession, dialect: Dialect) -> None:
        self._session = session
        self._sync_session = session.sync_session
        self._dialect = dialect
        self._refused = _refused(dialect)
        self._turn = asyncio.Lock()
        self._callbacks: list[tuple[SessionTransaction, Callable[[], None]]] = []
        self._dead: BaseException | None = None
        self._sqlite: Any = None  # the driver's connection, once a transaction has begun on it
        self._committed = False
        self._ended = False
        self.root = cast("SessionTransaction", self._sync_session.get_transaction())
        self._listeners: dict[str, Callable[..., None]] = {
            "before_commit": self._before_commit,
            "after_commit": self._after_commit,
            "after_transaction_end": self._after_transaction_end,
        }
        for name, listener in self._listeners.items():
            event.listen(self._sync_session, name, listener)
        self._sync_session.info[_ENLISTED] = self

    @property
    def dialect(self) -> Dialect:
        return self._dialect

    async def begin(self, connection: AsyncConnection) -> None:
        """Make sure that there is a transaction: neither autocommit, nor one that only SQLAlchemy believes in."""
        self._connection = cast("Connection", connection.sync_connection)
        _enlisted_on[self._connection] = self
        raw = await connection.get_raw_connection()
        driver = cast("Any", raw.driver_connection)
        if self._dialect is SQLITE:
            # The sqlite3 module begins, deferred, before the first writing statement and not before. A savepoint
            # that comes earlier is itself the transaction, and to release it is to commit.
            if self._sync_session.in_nested_transaction() and driver.isolation_level is not None:
                raise ValueError("on SQLite call enlist(session) before session.begin_nested()")
            if not driver.in_transaction:
                await self._run("BEGIN IMMEDIATE", ())
            self._sqlite = driver
        elif driver.get_autocommit():
            raise ValueError("the session commits every statement by itself; drop isolation_level=AUTOCOMMIT")

    async def execute(self, sql: str, args: Sequence[Value] = ()) -> Result:
        """As :meth:`daydo_db.Tx.execute`.

        Raises:
            TransactionAborted: the session's transaction is over, or the server has dropped it.
            StatementFailed: besides the usual, what would end the transaction (COMMIT, DDL on MySQL).
        """
        statement = compile_statement(self._dialect.name, sql)
        if statement.verb in self._refused:
            reason = f"{statement.verb} would end the session's transaction; that is for the session to do"
            raise StatementFailed(reason=reason, statement=statement.text[:200])
        # SQLAlchemy's MySQL sessions run several statements at a go; ours never do, so neither does this.
        if ";" in sql and _several(self._dialect.name, sql):
            raise StatementFailed(reason="several statements in one text", statement=statement.text[:200])
        return await self._run(statement.text, bind(statement, args)[1])

    async def execute_all(
        self, statements: Sequence[tuple[str, Sequence[Value]]], *, commit_within_s: float | None = None
    ) -> list[Result]:
        """As :meth:`daydo_db.Tx.execute_all`, one after the other: the session's driver knows no other way."""
        for sql, _ in statements:
            require_single(self._dialect.name, compile_statement(self._dialect.name, sql))
        return [await self.execute(sql, args) for sql, args in statements]

    def after_commit(self, fn: Callable[[], None]) -> None:
        """As :meth:`daydo_db.Tx.after_commit`; called once the session has committed and let its connection go.

        Raises:
            TypeError: ``fn`` is a coroutine function.
        """
        if inspect.iscoroutinefunction(fn):
            raise TypeError("after_commit takes a plain function; start a task of your own in it")
        self._require_alive()
        self._callbacks.append((self._sync_session.get_nested_transaction() or self.root, fn))

    def set_rollback_only(self, because: BaseException) -> None:
        """As :meth:`daydo_db.Tx.set_rollback_only`; the session can then only be rolled back."""
        if self._dead is None and not self._ended:
            self._dead = because

    async def _run(self, text: str, args: Sequence[Value]) -> Result:
        if self._dialect is MYSQL:
            text, args = _with_bytes_inline(text, args)
        async with self._turn:
            self._require_alive()
            try:
                return await self._session.run_sync(_execute, text, tuple(args))
            except DBAPIError as error:
                raise _mapped(error.orig, text, lost=error.connection_invalidated) from error.orig
            except SQLAlchemyError as error:
                # Not the driver but SQLAlchemy refuses: closed, invalidated, or a flush has failed before.
                self.set_rollback_only(error)
                raise TransactionAborted(reason=type(error).__name__) from error
            except asyncio.CancelledError as error:
                self.set_rollback_only(error)
                raise

    def _met(self, error: BaseException, *, lost: bool) -> None:
        """Be told of what the driver raised on the connection, in a statement of ours or of the session's own."""
        # A copy, for the mapping takes values out of it, and the session's errors are the application's.
        mapped = _mapped(copy(error), "", lost=lost)
        if isinstance(mapped, DEADLY) or self._is_gone():
            self.set_rollback_only(mapped)

    def _is_gone(self) -> bool:
        """Whether SQLite has no transaction any more: it rolls back by itself when it is full or cannot read."""
        if self._sqlite is None or self._connection.closed or self._connection.invalidated:
            return False  # Not begun; and without its connection SQLAlchemy itself refuses.
        return not self._sqlite.in_transaction

    def _require_alive(self) -> None:
        if self._is_gone():
            self.set_rollback_only(StatementFailed(reason="SQLite has ended the transaction", statement=""))
        if self._dead is not None:
            raise TransactionAborted(reason=f"{type(self._dead).__name__} ended it") from self._dead
        if self._ended:
            raise TransactionAborted(reason="the session has left it")

    def _before_commit(self, session: Session) -> None:
        # Where the server has rolled back already, COMMIT would keep whatever came after and lose the rest.
        if not self._ended:
            self._require_alive()

    def _after_commit(self, session: Session) -> None:
        done = session.get_nested_transaction() or self.root
        if done is self.root:
            self._committed = True
            return
        around = done.parent or self.root
        while not (around.nested or around is self.root):
            around = around.parent or self.root
        self._callbacks = [(around if owner is done else owner, fn) for owner, fn in self._callbacks]

    def _after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction is not self.root:
            self._callbacks = [(owner, fn) for owner, fn in self._callbacks if owner is not transaction]
            return
        self._ended = True
        session.info.pop(_ENLISTED, None)
        # SQLAlchemy walks over its listeners at this moment, so they go in the next one.
        asyncio.get_running_loop().call_soon(self._unlisten)
        callbacks, self._callbacks = self._callbacks, []
        for _, fn in callbacks if self._committed else ():
            try:
                fn()
            except Exception:
                log.exception("an after_commit function failed; the change itself is committed")

    def _unlisten(self) -> None:
        for name, listener in self._listeners.items():
            event.remove(self._sync_session, name, listener)


# An error names its connection, and only this tells whose that is. Weak: nothing lives longer for it.
_enlisted_on: WeakValueDictionary[Connection, EnlistedTransaction] = WeakValueDictionary()


# On the class, which comes before an application's listeners on its engine: one of those that raises an error of its
# own is the last to be called.
@event.listens_for(Engine, "handle_error")
def _notice(context: ExceptionContext) -> None:
    tx = _enlisted_on.get(context.connection) if context.connection is not None else None
    if tx is not None and isinstance(context.sqlalchemy_exception, DBAPIError):
        tx._met(context.original_exception, lost=context.is_disconnect)


def _refused(dialect: Dialect) -> frozenset[str]:
    if dialect is SQLITE:
        return SqliteEngine.refused_inside
    from .mysql import MysqlEngine  # noqa: PLC0415 - aiomysql is an extra

    return MysqlEngine.refused_inside


def _several(dialect: DialectName, sql: str) -> bool:
    code = _TOKENS[dialect].sub(" ", sql)
    return ";" in code.rstrip().removesuffix(";")


def _execute(session: Session, text: str, args: tuple[Value, ...]) -> Result:
    # Through the session each time: it emits a SAVEPOINT only once the connection is asked for within it.
    answer = session.connection().exec_driver_sql(text, args)
    cursor = cast("Any", answer.cursor)
    description = cursor.description if answer.returns_rows else None
    if not description:
        return Result(rowcount=max(answer.rowcount, 0), lastrowid=answer.lastrowid or 0)
    rows = [tuple(map(_plain, row)) for row in answer.fetchall()]
    # The driver's own names: in answer.keys() SQLAlchemy cuts SQLite's at a dot.
    return Result(tuple(column[0] for column in description), rows, len(rows))


def _plain(value: object) -> object:
    """A SUM of integers comes as DECIMAL; an integer is what was meant."""
    return int(value) if isinstance(value, Decimal) and value.as_tuple().exponent == 0 else value


def _mapped(error: BaseException | None, text: str, *, lost: bool) -> DbError:
    if lost:
        return ConnectionLost()
    if isinstance(error, sqlite3.Error):
        return from_sqlite(error, text)
    match error:
        case Exception(args=(int(number), message, *_)):
            error.args = (number, without_values(number, str(message)))
            return from_mysql(number, str(message), text)
    return ConnectionLost()  # The driver itself, on a connection that is closed or half read.


def _with_bytes_inline(text: str, args: Sequence[Value]) -> tuple[str, Sequence[Value]]:
    """Bytes as literals: from PyMySQL 1.2.3 on, aiomysql 0.3.2 can no longer escape a bytes parameter."""
    if not any(isinstance(value, bytes) for value in args):
        return text, args
    values, kept = iter(args), []

    def literal(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%%"
        value = next(values)
        if isinstance(value, bytes):
            return f"_binary X'{value.hex()}'"
        kept.append(value)
        return "%s"

    return re.sub("%[%s]", literal, text), kept

"""MySQL and MariaDB through aiomysql. The one module that touches the driver's private parts.

What the driver leaves open is closed here: several statements in one string, plaintext where TLS was asked
for, a login that hangs, bytes broken by newer PyMySQL, and a statement that goes on (and holds its locks) on
the server after its task was cancelled: that one is killed from another connection, in the background.
"""

from __future__ import annotations

import asyncio
import math
import re
import ssl
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import aiomysql  # type: ignore[import-untyped]
from pymysql.constants import CLIENT, FIELD_TYPE  # type: ignore[import-untyped]
from pymysql.converters import decoders  # type: ignore[import-untyped]
from pymysql.err import MySQLError  # type: ignore[import-untyped]

from .config import DatabaseConfig, Location
from .errors import ConnectionLost, DbError, QueryTimeout, StatementFailed
from .mapping import from_mysql, without_values
from .telemetry import Telemetry
from .tx import MYSQL, Result, Statement, Value, compile_statement

_OLDEST = {"MySQL": (8, 0, 20), "MariaDB": (10, 6, 0)}
_KILLS_AT_ONCE = 4

# NO_BACKSLASH_ESCAPES is absent for good: with it a driver that escapes by backslash can be injected into.
_SQL_MODE = "ANSI_QUOTES,PIPES_AS_CONCAT,STRICT_TRANS_TABLES,ONLY_FULL_GROUP_BY,NO_ENGINE_SUBSTITUTION"


def _decimal(text: str) -> Decimal | int:
    # SUM of integers is DECIMAL on MySQL; on SQLite, and to everyone's expectation, it is an integer.
    return Decimal(text) if "." in text else int(text)


_DECODERS = {**decoders, FIELD_TYPE.DECIMAL: _decimal, FIELD_TYPE.NEWDECIMAL: _decimal}


class _Session(aiomysql.Connection):  # type: ignore[misc]
    """The driver's connection with its traps taken out."""

    def __init__(self, **options: Any) -> None:
        # FOUND_ROWS: rowcount is rows matched, as on SQLite, so that an UPDATE that changes nothing counts.
        super().__init__(**options, charset="utf8mb4", autocommit=True, conv=_DECODERS, client_flag=CLIENT.FOUND_ROWS)
        self.client_flag &= ~CLIENT.MULTI_STATEMENTS

    async def _get_server_information(self) -> None:
        await super()._get_server_information()
        if self._ssl_context and not self.server_capabilities & CLIENT.SSL:
            raise StatementFailed(reason="tls is asked for and the server offers none", statement="connect")

    def escape(self, obj: Value) -> str:
        """A literal. Bytes are never written as text: PyMySQL ≥ 1.2.3 lost the function aiomysql does it by."""
        match obj:
            case None:
                return "NULL"
            case str():
                return f"'{self.escape_string(obj)}'"
            case bytes():
                return f"_binary X'{obj.hex()}'"
            case float():
                text = repr(obj)
                return text if "e" in text else f"{text}e0"
        return str(int(obj))

    @property
    def healthy(self) -> bool:
        return not self.closed and not self._reader.eof_received and self._reader.exception() is None

    async def fetch(self, sql: bytes) -> Result:
        await self.query(sql)
        result = self._result
        if result.description is None:
            return Result((), [], result.affected_rows, result.insert_id)
        return Result(tuple(column[0] for column in result.description), list(result.rows), len(result.rows))


class MysqlEngine:
    """Connections to one server."""

    dialect = MYSQL
    begin = compile_statement("mysql", "START TRANSACTION")
    # The second line is what MySQL commits for silently, before and after.
    refused_inside = frozenset(
        {"BEGIN", "START", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "XA", "LOCK", "UNLOCK"}
        | {"CREATE", "ALTER", "DROP", "RENAME", "TRUNCATE", "ANALYZE", "OPTIMIZE", "GRANT", "REVOKE"}
    )

    def __init__(self, location: Location, config: DatabaseConfig, telemetry: Telemetry) -> None:
        self._location = location
        self._config = config
        self._telemetry = telemetry
        self._tls: ssl.SSLContext | None = None
        self._kills: set[asyncio.Task[None]] = set()
        self._killers = asyncio.Semaphore(_KILLS_AT_ONCE)
        self.version = ""

    async def connect(self, *, writable: bool) -> MysqlConnection:
        session = self._session()
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                await session._connect()
                self.version = _version(session.server_version)
                await session.fetch(self._settings().encode())
                await session.fetch(b"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        except BaseException as error:
            session.close()
            if isinstance(error, DbError) or not isinstance(error, Exception):
                raise
            raise self._refusal(error) from error
        return MysqlConnection(session, self._config, self._telemetry, self._kill)

    async def aclose(self) -> None:
        while self._kills:
            await asyncio.wait(self._kills)

    def _session(self) -> _Session:
        location = self._location
        if self._config.tls and self._tls is None:
            self._tls = ssl.create_default_context(cafile=self._config.tls_ca_file or None)
        return _Session(
            host=location.host,
            port=location.port,
            unix_socket=location.unix_socket or None,
            user=location.user or None,
            # The driver writes passwords in latin1; servers keep the hash of their UTF-8.
            password=location.password.encode().decode("latin1"),
            db=location.name,
            ssl=self._tls,
            program_name="daydo",
        )

    def _settings(self) -> str:
        lock_s = math.ceil(self._config.lock_timeout_s)
        return (
            f"SET SESSION sql_mode = '{_SQL_MODE}', time_zone = '+00:00', "
            f"innodb_lock_wait_timeout = {lock_s}, lock_wait_timeout = {lock_s}"
        )

    def _refusal(self, error: Exception) -> DbError:
        if isinstance(error.__cause__, ssl.SSLError):  # Waiting does not mend a certificate.
            return StatementFailed(reason=f"TLS: {error.__cause__}", statement=f"connect to {self._location}")
        if isinstance(error, MySQLError):
            return from_mysql(_number(error), _message(error), f"connect to {self._location}")
        if isinstance(error, TimeoutError):
            return ConnectionLost()
        return StatementFailed(reason=f"{type(error).__name__}: {error}", statement=f"connect to {self._location}")

    def _kill(self, thread: int) -> None:
        task = asyncio.get_running_loop().create_task(self._kill_now(thread))
        self._kills.add(task)
        task.add_done_callback(self._kills.discard)

    async def _kill_now(self, thread: int) -> None:
        async with self._killers:
            session = self._session()
            try:
                async with asyncio.timeout(self._config.connect_timeout_s):
                    await session._connect()
                    await session.fetch(b"KILL %d" % thread)
            except (MySQLError, DbError, OSError):
                pass  # It has ended by itself, or the server is not there to be asked.
            finally:
                session.close()


class MysqlConnection:
    """One connection: statements out, results or our errors in."""

    def __init__(
        self, session: _Session, config: DatabaseConfig, telemetry: Telemetry, kill: Callable[[int], None]
    ) -> None:
        self._session = session
        self._config = config
        self._telemetry = telemetry
        self._kill = kill
        self.born_s = asyncio.get_running_loop().time()

    @property
    def usable(self) -> bool:
        return bool(self._session.healthy)

    @property
    def in_transaction(self) -> bool:
        return bool(self._session.get_transaction_status())

    async def execute(self, statement: Statement, args: Sequence[Value] = ()) -> Result:
        text = statement.text % tuple(map(self._session.escape, args))
        return await self._send(text.encode(), statement, args, self._config.statement_timeout_s)

    async def script(self, text: str) -> Result:
        return await self._send(text.encode(), Statement(text, 0, ""), (), None)

    async def ping(self) -> bool:
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                await self._session.ping(reconnect=False)
        except (MySQLError, OSError):
            return False
        return True

    async def close(self) -> None:
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                await self._session.ensure_closed()
        except (MySQLError, OSError):
            return
        finally:
            self._session.close()

    async def _send(self, sql: bytes, statement: Statement, args: Sequence[Value], timeout_s: float | None) -> Result:
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                result = await self._session.fetch(sql)
        except MySQLError as error:
            self._telemetry.failed()
            number, message = _number(error), _message(error)
            error.args = (number, message)
            mapped = from_mysql(number, message, statement.text)
            if isinstance(mapped, ConnectionLost):
                self._session.close()
            raise mapped from error
        except BaseException as stop:
            # Cancelled, out of time, or an answer the driver cannot read. Either way we do not know what the
            # server is doing, so this connection is done for, and the server is told.
            self._session.close()
            self._kill(self._session.server_thread_id[0])
            self._telemetry.given_up(statement, args, time.perf_counter() - began_s)
            if isinstance(stop, TimeoutError):
                raise QueryTimeout() from None
            if isinstance(stop, Exception):
                raise ConnectionLost() from stop
            raise
        self._telemetry.done(statement, args, time.perf_counter() - began_s, result)
        return result


def _number(error: MySQLError) -> int:
    return error.args[0] if error.args and isinstance(error.args[0], int) else 0


def _message(error: MySQLError) -> str:
    return without_values(str(error.args[-1])) if error.args else ""


def _version(text: str) -> str:
    """``5.5.5-10.11.6-MariaDB-0+deb12`` → ``MariaDB 10.11.6``; refuses servers that are too old."""
    name = "MariaDB" if "MariaDB" in text else "MySQL"
    number = re.search(r"\d+\.\d+\.\d+", text.removeprefix("5.5.5-"))
    version = number[0] if number else text
    if number and tuple(map(int, version.split("."))) < _OLDEST[name]:
        oldest = ".".join(map(str, _OLDEST[name]))
        raise StatementFailed(reason=f"{name} {version} is too old, {oldest} is needed", statement="connect")
    return f"{name} {version}"

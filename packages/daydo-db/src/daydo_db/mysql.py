"""MySQL and MariaDB. The driver, aiomysql, connects and logs in; what follows is ours (``packets.py``).

What the driver leaves open is closed here: several statements in one string, plaintext where TLS was asked
for, a password in plaintext because a server said so, a login that hangs, bytes broken by newer PyMySQL, and a
statement that goes on (and holds its locks) on the server after its task was cancelled: that one is killed from
another connection, in the background.
"""

from __future__ import annotations

import asyncio
import math
import re
import ssl
from collections.abc import Callable, Sequence
from typing import Any

import aiomysql  # type: ignore[import-untyped]
from pymysql.constants import CLIENT  # type: ignore[import-untyped]
from pymysql.converters import escape_string  # type: ignore[import-untyped]
from pymysql.err import MySQLError, OperationalError  # type: ignore[import-untyped]

from .config import DatabaseConfig, Location
from .errors import ConnectionLost, DbError, QueryTimeout, StatementFailed
from .mapping import from_mysql, without_values
from .packets import IN_TRANSACTION, NO_BACKSLASH_ESCAPES, PING, QUERY, Shapes, Wire
from .telemetry import Telemetry
from .tx import MYSQL, Result, Statement, Value, compile_statement

_OLDEST = {"MySQL": (8, 0, 20), "MariaDB": (10, 6, 0)}
_KILLS_AT_ONCE = 4

# NO_BACKSLASH_ESCAPES is absent for good: with it a driver that escapes by backslash can be injected into.
_SQL_MODE = "ANSI_QUOTES,PIPES_AS_CONCAT,STRICT_TRANS_TABLES,ONLY_FULL_GROUP_BY,NO_ENGINE_SUBSTITUTION"


class _Login(aiomysql.Connection):  # type: ignore[misc]
    """The driver's connection with its traps taken out, up to the moment it is logged in."""

    def __init__(self, **options: Any) -> None:
        # FOUND_ROWS: rowcount is rows matched, as on SQLite, so that an UPDATE that changes nothing counts.
        super().__init__(**options, charset="utf8mb4", autocommit=True, client_flag=CLIENT.FOUND_ROWS)
        self.client_flag &= ~CLIENT.MULTI_STATEMENTS

    async def wire(self) -> Wire:
        """Connect, log in and hand over the connection; this object must live as long as it is used."""
        await self._connect()
        transport = self._writer.transport
        if self._reader.eof_received or transport.is_closing():
            raise OperationalError(2013, "the server closed the connection after the login")
        return Wire(transport, self.server_status)

    async def _get_server_information(self) -> None:
        await super()._get_server_information()
        if self._ssl_context and not self.server_capabilities & CLIENT.SSL:
            raise StatementFailed(reason="tls is asked for and the server offers none", statement="connect")

    async def _process_auth(self, plugin_name: bytes, auth_packet: Any) -> Any:
        # Whoever stands between us and the server could ask for it.
        if plugin_name in (b"mysql_clear_password", b"mysql_old_password") and not self._secure:
            raise StatementFailed(reason="the server asks for the password in plaintext; use tls", statement="connect")
        return await super()._process_auth(plugin_name, auth_packet)


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
        self._shapes = Shapes()
        self.version = ""

    async def connect(self, *, writable: bool) -> MysqlConnection:
        login = self._login()
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                wire = await login.wire()
                self.version = _version(login.server_version)
                for sql in (self._settings(), "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"):
                    await wire.ask(QUERY + sql.encode(), sql, self._shapes, None)
        except BaseException as error:
            login.close()
            if isinstance(error, DbError) or not isinstance(error, Exception):
                raise
            raise self._refusal(error) from error
        return MysqlConnection(login, wire, self._config, self._telemetry, self._shapes, self._kill)

    async def aclose(self) -> None:
        while self._kills:
            await asyncio.wait(self._kills)

    def _login(self) -> _Login:
        location = self._location
        if self._config.tls and self._tls is None:
            self._tls = _tls_context(self._config.tls_ca_file)
        return _Login(
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
            login = self._login()
            try:
                async with asyncio.timeout(self._config.connect_timeout_s):
                    wire = await login.wire()
                    await wire.ask(QUERY + b"KILL %d" % thread, "KILL", self._shapes, None)
            except (MySQLError, DbError, OSError):
                pass  # It has ended by itself, or the server is not there to be asked.
            finally:
                login.close()


class MysqlConnection:
    """One connection: statements out, results or our errors in."""

    def __init__(
        self,
        login: _Login,
        wire: Wire,
        config: DatabaseConfig,
        telemetry: Telemetry,
        shapes: Shapes,
        kill: Callable[[int], None],
    ) -> None:
        self._login = login
        self._wire = wire
        self._timeout_s = config.statement_timeout_s
        self._connect_timeout_s = config.connect_timeout_s
        self._telemetry = telemetry
        self._shapes = shapes
        self._kill = kill
        self._now_s = asyncio.get_running_loop().time
        self.born_s = self._now_s()

    @property
    def usable(self) -> bool:
        return not self._wire.lost

    @property
    def in_transaction(self) -> bool:
        return bool(self._wire.status & IN_TRANSACTION)

    async def execute(self, statement: Statement, args: Sequence[Value] = ()) -> Result:
        if self._wire.status & NO_BACKSLASH_ESCAPES:
            self._wire.abort()
            raise StatementFailed(reason="the session was set to NO_BACKSLASH_ESCAPES", statement=statement.text[:200])
        sql = statement.text % tuple([literal(value) for value in args])
        return await self._send(sql.encode(), statement, args, self._timeout_s)

    async def script(self, text: str) -> Result:
        return await self._send(text.encode(), Statement(text, 0, ""), (), None)

    async def ping(self) -> bool:
        try:
            await self._wire.ask(PING, "", self._shapes, self._connect_timeout_s)
        except (MySQLError, TimeoutError):
            return False
        return True

    async def close(self) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._wire.quit()
        except TimeoutError:
            return
        finally:
            self._wire.abort()
            self._login.close()

    async def _send(self, sql: bytes, statement: Statement, args: Sequence[Value], timeout_s: float | None) -> Result:
        began_s = self._now_s()
        try:
            result = await self._wire.ask(QUERY + sql, statement.text, self._shapes, timeout_s)
        except MySQLError as error:
            self._telemetry.failed()
            number, message = _number(error), _message(error)
            error.args = (number, message)
            mapped = from_mysql(number, message, statement.text)
            if isinstance(mapped, ConnectionLost):
                self._wire.abort()
            raise mapped from error
        except BaseException as stop:
            # Cancelled, out of time, or an answer nobody can read. Either way we do not know what the server is
            # doing, so this connection is done for, and the server is told.
            self._wire.abort()
            self._kill(self._login.server_thread_id[0])
            self._telemetry.given_up(statement, args, self._now_s() - began_s)
            if isinstance(stop, TimeoutError):
                raise QueryTimeout() from None
            if isinstance(stop, Exception):
                raise ConnectionLost() from stop
            raise
        self._telemetry.done(statement, args, self._now_s() - began_s, result)
        return result


def _tls_context(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:  # Missing, or no certificate in it.
        raise StatementFailed(reason=f"TLS: tls_ca_file {ca_file}: {error}", statement="connect") from error


def _text(value: str) -> str:
    return f"'{escape_string(value)}'"


def _bytes(value: bytes) -> str:
    # Never as text: the function the driver does that by is gone from PyMySQL 1.2.3 on.
    return f"_binary X'{value.hex()}'"


def _float(value: float) -> str:
    text = repr(value)
    return text if "e" in text else f"{text}e0"


_LITERALS: dict[type, Callable[[Any], str]] = {
    type(None): lambda _: "NULL",
    bool: lambda value: "1" if value else "0",
    int: repr,
    float: _float,
    str: _text,
    bytes: _bytes,
}


def literal(value: Value) -> str:
    """``value`` as it stands in a statement."""
    write = _LITERALS.get(type(value))
    if write is None:  # A subclass; of which kind, check_arguments has seen to.
        write = next(write for kind, write in _LITERALS.items() if isinstance(value, kind))
    return write(value)


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

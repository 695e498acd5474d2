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
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from itertools import compress
from typing import Any, NamedTuple

import aiomysql  # type: ignore[import-untyped]
from pymysql.constants import CLIENT  # type: ignore[import-untyped]
from pymysql.err import MySQLError, OperationalError  # type: ignore[import-untyped]

from .config import DatabaseConfig, Location
from .errors import ConnectionLost, DbError, QueryTimeout, StatementFailed
from .mapping import from_mysql, without_values
from .packets import AUTOCOMMIT, IN_TRANSACTION, NO_BACKSLASH_ESCAPES, PING, QUERY, Shapes, Wire
from .telemetry import Telemetry
from .tx import MYSQL, Kinds, Result, Statement, Value, compile_statement, is_remembered

_OLDEST = {"MySQL": (8, 0, 20), "MariaDB": (10, 6, 0)}

# NO_BACKSLASH_ESCAPES is absent for good: with it a driver that escapes by backslash can be injected into.
_SQL_MODE = "ANSI_QUOTES,PIPES_AS_CONCAT,STRICT_TRANS_TABLES,ONLY_FULL_GROUP_BY,NO_ENGINE_SUBSTITUTION"

_CHARSET = "utf8mb4"
# What may not stand between single quotes as it is, or would be hard to read in a log there. A double quote may: JSON.
# The backslash comes first: the others are written with one.
_ESCAPES = {"\\": r"\\", "'": r"\'", "\0": r"\0", "\n": r"\n", "\r": r"\r", "\x1a": r"\Z"}
_PLACE = re.compile("%[s%]")
# What tells a server from every other; one that took over the address of another must not be confused with it.
_IDENTITY = {"MySQL": "@@server_uuid", "MariaDB": "CONCAT_WS(' ', @@server_id, @@hostname, @@port, @@datadir)"}


class _Thread(NamedTuple):
    """A connection as its server knows it."""

    server: str
    number: int


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
    begins_late = True
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
        self._doomed: deque[_Thread] = deque()
        self._killer: asyncio.Task[None] | None = None
        self._shapes = Shapes()
        self.version = ""

    async def connect(self, *, writable: bool) -> MysqlConnection:
        login = self._login()
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                wire = await login.wire()
                self.version = _version(login.server_version)
                for sql in self._settings(writable=writable):
                    await self._ask(wire, sql)
                thread = await self._identify(login, wire)
        except BaseException as error:
            login.close()
            if isinstance(error, DbError) or not isinstance(error, Exception):
                raise
            raise self._refusal(error) from error
        return MysqlConnection(login, wire, self._config, self._telemetry, self._shapes, partial(self._kill, thread))

    async def aclose(self) -> None:
        killer = self._killer
        if killer is not None and not killer.done():
            await asyncio.wait([killer], timeout=self._config.connect_timeout_s)
            killer.cancel()
            await asyncio.wait([killer])
        self._doomed.clear()

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

    def _settings(self, *, writable: bool) -> Sequence[str]:
        lock_s = math.ceil(self._config.lock_timeout_s)
        # First the character set: a server may ignore that of the login, and init_connect change it. Without COLLATE,
        # since the server's choice for it is also that of tables made without one.
        variables = (
            f"SET NAMES {_CHARSET}, SESSION sql_mode = '{_SQL_MODE}', time_zone = '+00:00', autocommit = 1, "
            f"innodb_lock_wait_timeout = {lock_s}, lock_wait_timeout = {lock_s}"
        )
        access = "READ WRITE" if writable else "READ ONLY"
        return variables, f"SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, {access}"

    async def _identify(self, login: _Login, wire: Wire) -> _Thread:
        """The other end of ``wire``, once it has been seen that both ends mean the same by a byte.

        Text is escaped as UTF-8. A server that takes it for GBK sees a quote escaped where none is, and is injected
        into.
        """
        identity = _IDENTITY[_version(login.server_version).partition(" ")[0]]
        names = "@@character_set_client, @@character_set_connection, @@character_set_results"
        *charsets, server = (await self._ask(wire, f"SELECT {names}, {identity}")).rows[0]
        if set(charsets) != {_CHARSET}:
            reason = f"the session's character set is {'/'.join(map(str, charsets))} and not {_CHARSET}"
            raise StatementFailed(reason=reason, statement="connect")
        return _Thread(str(server), login.server_thread_id[0])

    async def _ask(self, wire: Wire, sql: str) -> Result:
        return await wire.ask(QUERY + sql.encode(), sql, self._shapes, self._config.connect_timeout_s)

    def _refusal(self, error: Exception) -> DbError:
        if isinstance(error.__cause__, ssl.SSLError):  # Waiting does not mend a certificate.
            return StatementFailed(reason=f"TLS: {error.__cause__}", statement=f"connect to {self._location}")
        if isinstance(error, MySQLError):
            return from_mysql(_number(error), _message(error), f"connect to {self._location}")
        if isinstance(error, TimeoutError):
            return ConnectionLost()
        return StatementFailed(reason=f"{type(error).__name__}: {error}", statement=f"connect to {self._location}")

    def _kill(self, thread: _Thread) -> None:
        self._doomed.append(thread)
        if self._killer is None or self._killer.done():
            self._killer = asyncio.get_running_loop().create_task(self._kill_doomed())

    async def _kill_doomed(self) -> None:
        """End the threads that nobody listens to any more, all by one connection.

        It is another connection than theirs, and the address may lead to another server by now, or to the same one
        started anew: there their numbers are somebody else's. Numbers only grow while a server runs.
        """
        login = self._login()
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                wire = await login.wire()
                own = await self._identify(login, wire)
            while self._doomed:
                thread = self._doomed.popleft()
                if thread.server == own.server and thread.number < own.number:
                    await self._kill_one(wire, thread)
        except (MySQLError, DbError, OSError):
            self._doomed.clear()  # The server is not there to be asked, for none of them.
        finally:
            login.close()

    async def _kill_one(self, wire: Wire, thread: _Thread) -> None:
        try:
            await self._ask(wire, f"KILL {thread.number}")
        except MySQLError:
            if wire.lost:
                raise
            # Else it has ended by itself.


class MysqlConnection:
    """One connection: statements out, results or our errors in."""

    def __init__(
        self,
        login: _Login,
        wire: Wire,
        config: DatabaseConfig,
        telemetry: Telemetry,
        shapes: Shapes,
        kill: Callable[[], None],
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
        # A procedure may have turned autocommit off: what came next here would be lost.
        return not self._wire.lost and bool(self._wire.status & AUTOCOMMIT)

    @property
    def in_transaction(self) -> bool:
        return bool(self._wire.status & IN_TRANSACTION)

    async def execute(self, statement: Statement, args: Sequence[Value] = ()) -> Result:
        return await self._send(self._written(statement, args), statement, args, self._timeout_s)

    async def execute_all(
        self, statements: Sequence[tuple[Statement, Sequence[Value]]], timeout_s: float | None = None
    ) -> list[Result]:
        # A comment at the end of one must not swallow the semicolon.
        texts = b"\n;".join([self._written(statement, args) for statement, args in statements])
        began_s = self._now_s()
        try:
            answers = await self._wire.ask_all(texts, self._shapes, self._timeout_s if timeout_s is None else timeout_s)
        except MySQLError as error:
            raise self._refused(error, statements[0][0]) from error
        except BaseException as stop:
            statement, args = statements[0]
            self._give_up(stop, statement, args, began_s)
            raise
        self._telemetry.done_all(statements, answers.results, [answers.began_s, *answers.ended_s])
        if answers.error is not None:
            failed = statements[min(len(answers.results), len(statements) - 1)][0]
            raise self._refused(answers.error, failed) from answers.error
        return answers.results

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

    def _written(self, statement: Statement, args: Sequence[Value]) -> bytes:
        if self._wire.status & NO_BACKSLASH_ESCAPES:
            self._wire.abort()
            raise StatementFailed(reason="the session was set to NO_BACKSLASH_ESCAPES", statement=statement.text[:200])
        return _filled(statement, args).encode()

    async def _send(self, sql: bytes, statement: Statement, args: Sequence[Value], timeout_s: float | None) -> Result:
        began_s = self._now_s()
        try:
            result = await self._wire.ask(QUERY + sql, statement.text, self._shapes, timeout_s)
        except MySQLError as error:
            raise self._refused(error, statement) from error
        except BaseException as stop:
            self._give_up(stop, statement, args, began_s)
            raise
        self._telemetry.done(statement, args, self._now_s() - began_s, result)
        return result

    def _refused(self, error: MySQLError, statement: Statement) -> DbError:
        self._telemetry.failed()
        number, message = _number(error), _message(error)
        error.args = (number, without_values(number, message))
        mapped = from_mysql(number, message, statement.text)
        if isinstance(mapped, ConnectionLost):
            self._wire.abort()
        return mapped

    def _give_up(self, stop: BaseException, statement: Statement, args: Sequence[Value], began_s: float) -> None:
        """Cancelled, out of time, or an answer nobody can read.

        Either way we do not know what the server is doing, so this connection is done for, and the server is told.
        """
        self._wire.abort()
        self._kill()
        self._telemetry.given_up(statement, args, self._now_s() - began_s)
        if isinstance(stop, TimeoutError):
            raise QueryTimeout() from None
        if isinstance(stop, Exception):
            stop.args = ()  # What could not be read stands in it.
            raise ConnectionLost() from stop


def _tls_context(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:  # Missing, or no certificate in it.
        raise StatementFailed(reason=f"TLS: tls_ca_file {ca_file}: {error}", statement="connect") from error


def _filled(statement: Statement, args: Sequence[Value]) -> str:
    """The text of the statement with literals in the places of ``args``. To ``%`` an int is one already."""
    kinds = statement.kinds
    if kinds is None:
        return statement.text % tuple(map(literal, args))
    texts = "".join(compress(args, kinds.texts))  # type: ignore[arg-type]  # they are str
    escapes = [char for char in _ESCAPES if char in texts]
    if not escapes and kinds.simple and is_remembered(statement):
        # Nearly always, and then a thousand values of a batch need not be looked at one by one.
        return _quoted(statement.text, kinds) % tuple(args)
    return statement.text % tuple(
        [
            value if type(value) is int else _text(value, escapes) if type(value) is str else literal(value)
            for value in args
        ]
    )


@lru_cache(maxsize=1024)
def _quoted(text: str, kinds: Kinds) -> str:
    """The text of a statement, with quotes around the places of texts."""
    is_text = iter(kinds.texts)
    return _PLACE.sub(lambda place: "'%s'" if place[0] == "%s" and next(is_text) else place[0], text)


def _text(value: str, escapes: Iterable[str] = _ESCAPES) -> str:
    for char in escapes:
        value = value.replace(char, _ESCAPES[char])
    return f"'{value}'"


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
    if write is None:  # A subclass; of which kind, bind has seen to.
        write = next(write for kind, write in _LITERALS.items() if isinstance(value, kind))
    return write(value)


def _number(error: MySQLError) -> int:
    return error.args[0] if error.args and isinstance(error.args[0], int) else 0


def _message(error: MySQLError) -> str:
    return str(error.args[-1]) if error.args else ""


def _version(text: str) -> str:
    """``5.5.5-10.11.6-MariaDB-0+deb12`` → ``MariaDB 10.11.6``; refuses servers that are too old."""
    name = "MariaDB" if "MariaDB" in text else "MySQL"
    number = re.search(r"\d+\.\d+\.\d+", text.removeprefix("5.5.5-"))
    version = number[0] if number else text
    if number and tuple(map(int, version.split("."))) < _OLDEST[name]:
        oldest = ".".join(map(str, _OLDEST[name]))
        raise StatementFailed(reason=f"{name} {version} is too old, {oldest} is needed", statement="connect")
    return f"{name} {version}"

"""Numbered SQL, applied once, on each dialect in the way it allows.

A package keeps ``schema/sqlite/0001_name.sql`` and ``schema/mysql/0001_name.sql``; a statement ends with ``;``
at the end of a line. ``daydo_migration`` holds one row per *statement*.

SQLite changes its schema inside a transaction: all that is missing is applied in one, or nothing is.

MySQL commits every DDL statement by itself, so a crash can fall between a statement and the row that says it
is done. Therefore a row ``started`` is committed before the DDL and becomes ``done`` after it; a rerun that
finds ``started`` runs the statement again and takes "already exists" (or "already gone") for done. A refusal
by the server removes the row, so that only a crash leaves one. Statements that are not DDL commit together with
their row. ``GET_LOCK`` lets one runner work at a time, and the server frees it when its connection goes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from daydo_kernel import Event, to_the_end

from .connection import Connection
from .errors import ConnectionLost, LockTimeout, SchemaOutdated
from .tx import MYSQL, SQLITE, Dialect, DialectName, Value, compile_statement

if TYPE_CHECKING:
    from .database import Database

_LOCK_WAIT_S = 600
_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_DDL = frozenset({"ALTER", "ANALYZE", "CREATE", "DROP", "OPTIMIZE", "RENAME", "TRUNCATE"})

# What MySQL says to a DDL statement that has been applied already: table, column, index, foreign key, check
# exists; column or key, table, unknown index is gone.
_APPLIED_ALREADY = frozenset({1050, 1060, 1061, 1826, 3822, 1091, 1051, 1176})

_ROW = "WHERE package = ? AND version = ? AND statement = ?"
_TABLE = {
    "sqlite": """CREATE TABLE IF NOT EXISTS daydo_migration (
  package TEXT NOT NULL,
  version INTEGER NOT NULL,
  statement INTEGER NOT NULL,
  state TEXT NOT NULL,
  changed_at_us INTEGER NOT NULL,
  PRIMARY KEY (package, version, statement)
)""",
    "mysql": """CREATE TABLE IF NOT EXISTS daydo_migration (
  package VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  version INT NOT NULL,
  statement INT NOT NULL,
  state VARCHAR(8) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  changed_at_us BIGINT NOT NULL,
  PRIMARY KEY (package, version, statement)
) ENGINE=InnoDB""",
}

_TABLE_EXISTS = {
    "sqlite": "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'daydo_migration'",
    "mysql": "SELECT 1 FROM information_schema.tables "
    "WHERE table_schema = DATABASE() AND table_name = 'daydo_migration'",
}


class Applied(msgspec.Struct, frozen=True):
    """A schema file that this run brought to its end; ``statements`` is how many of them it ran."""

    package: str
    version: int
    name: str
    statements: int


class _File(NamedTuple):
    package: str
    version: int
    name: str
    statements: list[str]


async def migrate(db: Database, *packages: str) -> list[Applied]:
    """Bring the tables of ``packages`` (import names) to the version of the installed code, in the order given.

    Safe to repeat, after a crash at any point, and in several processes at once. Emits ``db.migrated``.

    Raises:
        ValueError: a package is not importable or has no schema for this dialect.
        LockTimeout: another runner did not finish within ten minutes, or a table stayed locked.
        DbError: a statement was refused; what came before it stays applied on MySQL, nothing does on SQLite.
    """
    shipped = [file for package in packages for file in _files(db.dialect.name, package)]
    async with db._dedicated() as connection:
        runner = _Runner(connection, db.dialect, None if db.clock is None else str(db.clock.now_us()))
        alone = _sqlite_alone if db.dialect is SQLITE else _mysql_alone
        async with alone(connection):
            await runner.prepare()
            applied = [done for file in shipped if (done := await runner.apply(file)).statements]
    for file in applied:
        data = {"package": file.package, "version": file.version, "statements": file.statements}
        await db.events.emit(Event(name="db.migrated", data=data))
    return applied


async def require_schema(db: Database, package: str) -> None:
    """See :meth:`Database.require_schema`."""
    shipped = _files(db.dialect.name, package)
    done = await _done(db, package)
    have = 0
    for file in shipped:
        if any((file.version, number) not in done for number in range(1, len(file.statements) + 1)):
            break
        have = file.version
    need = shipped[-1].version
    if have < need:
        command = f'python -m daydo_db migrate "{db.location}" {package}'
        raise SchemaOutdated(package=package, have=have, need=need, command=command)


def sql(dialect: DialectName, *packages: str) -> str:
    """All statements as one script, for Alembic, Flyway or a DBA; it ends in the state :func:`migrate` would leave."""
    now_us = (SQLITE if dialect == "sqlite" else MYSQL).now_us
    lines = [f"{_TABLE[dialect]};"]
    for package in packages:
        for file in _files(dialect, package):
            lines.append(f"-- {file.package} {file.version:04} {file.name}")
            for number, statement in enumerate(file.statements, 1):
                lines.append(f"{statement};")
                values = f"'{package}', {file.version}, {number}, 'done', {now_us}"
                lines.append(f"INSERT INTO daydo_migration VALUES ({values});")  # noqa: S608 - all of it ours
    return "\n".join(lines) + "\n"


class _Runner:
    """Applies files over one connection that nobody else uses; ``now_us`` is fixed in tests."""

    def __init__(self, connection: Connection, dialect: Dialect, now_us: str | None) -> None:
        self._connection = connection
        self._dialect = dialect
        self._now_us = now_us or dialect.now_us
        self._states: dict[tuple[str, int, int], str] = {}

    async def prepare(self) -> None:
        await self._connection.script(_TABLE[self._dialect.name])
        rows = (await self._connection.script("SELECT package, version, statement, state FROM daydo_migration")).rows
        self._states = {(package, version, statement): state for package, version, statement, state in rows}

    async def apply(self, file: _File) -> Applied:
        ran = 0
        for number, statement in enumerate(file.statements, 1):
            key = (file.package, file.version, number)
            if self._states.get(key) == "done":
                continue
            verb = compile_statement(self._dialect.name, statement).verb
            if self._dialect is SQLITE:
                await self._connection.script(statement)
                await self._note(key, "done")
            elif verb in _DDL:
                await self._apply_ddl(key, statement)
            else:
                await self._apply_with_row(key, statement)
            ran += 1
        return Applied(file.package, file.version, file.name, ran)

    async def _apply_ddl(self, key: tuple[str, int, int], statement: str) -> None:
        crashed = self._states.get(key) == "started"
        if not crashed:
            await self._note(key, "started")
        try:
            await self._connection.script(statement)
        except ConnectionLost:
            raise
        except Exception as error:
            if not (crashed and _number(error) in _APPLIED_ALREADY):
                await self._write(f"DELETE FROM daydo_migration {_ROW}", key)  # noqa: S608
                raise
        done = f"UPDATE daydo_migration SET state = 'done', changed_at_us = {self._now_us} {_ROW}"  # noqa: S608
        await self._write(done, key)

    async def _apply_with_row(self, key: tuple[str, int, int], statement: str) -> None:
        await self._connection.script("START TRANSACTION")
        try:
            await self._connection.script(statement)
            await self._note(key, "done")
            await self._connection.script("COMMIT")
        except BaseException:
            if self._connection.usable:
                await to_the_end(self._connection.script("ROLLBACK"))
            raise

    async def _note(self, key: tuple[str, int, int], state: str) -> None:
        await self._write(f"INSERT INTO daydo_migration VALUES (?, ?, ?, ?, {self._now_us})", (*key, state))  # noqa: S608

    async def _write(self, text: str, args: Sequence[Value]) -> None:
        await self._connection.execute(compile_statement(self._dialect.name, text), args)


@asynccontextmanager
async def _sqlite_alone(connection: Connection) -> AsyncIterator[None]:
    await connection.script("BEGIN IMMEDIATE")
    try:
        yield
        await to_the_end(connection.script("COMMIT"))
    except BaseException:
        if connection.in_transaction:
            await to_the_end(connection.script("ROLLBACK"))
        raise


@asynccontextmanager
async def _mysql_alone(connection: Connection) -> AsyncIterator[None]:
    # Names of locks are the server's, not the database's, and hold 64 characters.
    name = (await connection.script("SELECT DATABASE()")).rows[0][0]
    lock = f"daydo_migrate_{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    if (await connection.script(f"SELECT GET_LOCK('{lock}', {_LOCK_WAIT_S})")).rows != [(1,)]:
        raise LockTimeout()
    try:
        yield
    finally:
        if connection.usable:
            await to_the_end(connection.script(f"SELECT RELEASE_LOCK('{lock}')"))


async def _done(db: Database, package: str) -> set[tuple[int, int]]:
    if not (await db.query(_TABLE_EXISTS[db.dialect.name])).rows:
        return set()
    rows = await db.query(
        "SELECT version, statement FROM daydo_migration WHERE package = ? AND state = 'done'", (package,)
    )
    return {(version, statement) for version, statement in rows.rows}


def _files(dialect: DialectName, package: str) -> list[_File]:
    try:
        module = import_module(package)
    except ModuleNotFoundError:
        raise ValueError(f"{package} is not installed; name packages as they are imported, like daydo_quota") from None
    folder = files(module) / "schema" / dialect
    found = sorted(
        (int(match[1]), match[2], entry.read_text("utf-8"))
        for entry in (folder.iterdir() if folder.is_dir() else ())
        if (match := _FILE.fullmatch(entry.name))
    )
    if not found:
        raise ValueError(f"{package} has no files like schema/{dialect}/0001_name.sql")
    return [_File(package, version, name, _split(text, f"{version:04}_{name}")) for version, name, text in found]


def _split(text: str, name: str) -> list[str]:
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    *statements, rest = (part.strip() for part in re.split(r";[ \t]*$", code, flags=re.MULTILINE))
    if rest:
        raise ValueError(f"{name}: the last statement does not end with ; at the end of a line")
    return statements


def _number(error: BaseException | None) -> int:
    """The server's error number behind one of our errors."""
    cause = error.__cause__ if error is not None else None
    return cause.args[0] if cause is not None and cause.args and isinstance(cause.args[0], int) else 0

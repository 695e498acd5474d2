"""Numbered SQL, applied once, on each dialect in the way it allows.

A package keeps ``schema/sqlite/0001_name.sql`` and ``schema/mysql/0001_name.sql``. ``daydo_migration`` holds one row
per *statement*, with the checksum of its text; an applied statement that was edited later stops every run.

SQLite changes its schema inside a transaction: all that is missing is applied in one, or nothing is. Foreign keys
are not enforced meanwhile, for a table that others point at is changed by making it anew, and DROP TABLE would
delete, or refuse to; before COMMIT every reference is checked instead.

MySQL commits every DDL statement by itself, so a crash can fall between a statement and the row that says it
is done. Therefore a row ``started`` is committed before the DDL and becomes ``done`` after it; a rerun that
finds ``started`` runs the statement again and takes "already exists" (or "already gone") for done. A refusal
by the server removes the row, so that only a crash leaves one. Statements that are not DDL commit together with
their row. ``GET_LOCK`` lets one runner work at a time. The server frees it when its session ends, and the session of
a runner that was killed does not end before its last statement: the next runner finds that one applied or not,
never under way.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from daydo_kernel import Event, to_the_end

from .connection import Connection
from .errors import ConnectionLost, DbError, LockTimeout, SchemaEdited, SchemaOutdated, StatementFailed
from .schema_files import SchemaFile, checksum, schema_files
from .tx import MYSQL, SQLITE, Dialect, DialectName, Value, compile_statement

if TYPE_CHECKING:
    from .database import Database

_DDL = frozenset({"ALTER", "ANALYZE", "CREATE", "DROP", "OPTIMIZE", "RENAME", "TRUNCATE"})

# What MySQL and MariaDB say to a DDL statement that has been applied already. It exists: table, column, index,
# primary key, foreign key or check. It is gone: column or key, table, renamed index, constraint, check, view, sequence.
_APPLIED_ALREADY = frozenset({1050, 1060, 1061, 1068, 1826, 3822, 1091, 1051, 1176, 3821, 3940, 4091, 4092})
_OLD_NAME_IS_GONE = frozenset({1054, 1146})  # Said of a misspelled name as well, so believed of a renaming alone.
_RENAMING = re.compile(r"\b(RENAME|CHANGE)\b", re.IGNORECASE)
_CANNOT_CREATE = 1005  # MariaDB, of a foreign key whose name is taken and of much else.

_COLUMNS = "package, version, statement, state, checksum"
_INSERT = f"INSERT INTO daydo_migration ({_COLUMNS}, changed_at_us)"
_ROW = "WHERE package = ? AND version = ? AND statement = ?"
_TABLE = {
    "sqlite": """CREATE TABLE IF NOT EXISTS daydo_migration (
  package TEXT NOT NULL,
  version INTEGER NOT NULL,
  statement INTEGER NOT NULL,
  state TEXT NOT NULL,
  checksum TEXT NOT NULL,
  changed_at_us INTEGER NOT NULL,
  PRIMARY KEY (package, version, statement)
)""",
    "mysql": """CREATE TABLE IF NOT EXISTS daydo_migration (
  package VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  version INT NOT NULL,
  statement INT NOT NULL,
  state VARCHAR(8) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  checksum VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
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


class Step(msgspec.Struct, frozen=True):
    """One statement that has yet to run.

    Attributes:
        number, of: which statement of its file, from 1, and how many those are.
        again: a runner died in it, so it may have been applied; "exists already" will be taken for done.
        needs: the oldest code that runs on what this file leaves, where it contracts; else empty.
    """

    package: str
    version: int
    name: str
    number: int
    of: int
    sql: str
    again: bool = False
    needs: str = ""

    def __str__(self) -> str:
        return f"{self.package} {self.version:04}_{self.name} {self.number}/{self.of}"


State = Literal["applied", "pending", "half_applied", "edited", "newer"]


class Status(msgspec.Struct, frozen=True):
    """Where one schema file stands.

    Attributes:
        state: ``newer``: this code does not have the file, a later release does. ``edited``: an applied statement
            is not the one in the file any more; ``migrate`` refuses.
        done, of: statements applied, and in the file (``newer``: as far as is known).
        at, sql: the first statement that is edited or not done, from 1, and its text; 0 and empty where there is none.
        died: a runner died in that statement, or is at it now; it may have been applied.
        needs: the oldest code that runs on what this file leaves, where it contracts; else empty.
    """

    package: str
    version: int
    name: str
    state: State
    done: int
    of: int
    at: int = 0
    sql: str = ""
    died: bool = False
    needs: str = ""


class _Row(NamedTuple):
    state: str
    checksum: str


_Key = tuple[str, int, int]
_Rows = Mapping[_Key, _Row]


async def migrate(db: Database, *packages: str, progress: Callable[[Step], None] | None = None) -> list[Applied]:
    """Bring the tables of ``packages`` (import names) to the version of the installed code, in the order given.

    Safe to repeat, after a crash at any point, and in several processes at once. ``progress`` is told of each
    statement before it runs. Emits ``db.migrated``.

    Raises:
        ValueError: a package is not importable, has no schema for this dialect, or a file that cannot be read.
        LockTimeout: another runner did not finish within ``migrate_wait_s``, or a table stayed locked.
        SchemaEdited: an applied file was changed.
        DbError: a statement was refused; what came before it stays applied on MySQL, nothing does on SQLite.
    """
    shipped = _shipped(db.dialect.name, packages)
    async with db._dedicated() as connection:
        runner = _Runner(connection, db.dialect, None if db.clock is None else str(db.clock.now_us()))
        alone = _sqlite_alone if db.dialect is SQLITE else _mysql_alone
        async with alone(connection, db.config.migrate_wait_s):
            steps = _steps(db.dialect.name, shipped, await runner.prepare())
            for step in steps:
                if progress is not None:
                    progress(step)
                await runner.apply(step)
            if steps and db.dialect is SQLITE:
                await _check_references(connection)
    ran = Counter((step.package, step.version, step.name) for step in steps)
    applied = [Applied(*file, statements) for file, statements in ran.items()]
    for file in applied:
        data = {"package": file.package, "version": file.version, "statements": file.statements}
        await db.events.emit(Event(name="db.migrated", data=data))
    return applied


async def plan(db: Database, *packages: str) -> list[Step]:
    """What :func:`migrate` would run now; reads only.

    Raises:
        ValueError, SchemaEdited: as :func:`migrate`.
    """
    return _steps(db.dialect.name, _shipped(db.dialect.name, packages), await _read(db))


async def status(db: Database, *packages: str) -> list[Status]:
    """Where each file of ``packages`` stands, by package and number; reads only and refuses nothing.

    Raises:
        ValueError: as :func:`migrate`.
    """
    rows, standing = await _read(db), []
    for package in packages:
        shipped = {file.version: file for file in schema_files(db.dialect.name, package)}
        applied = {version for name, version, _ in rows if name == package}
        for version in sorted(applied | shipped.keys()):
            file = shipped.get(version)
            standing.append(
                _unknown(package, version, rows) if file is None else _standing(db.dialect.name, file, rows)
            )
    return standing


async def require_schema(db: Database, package: str) -> None:
    """See :meth:`Database.require_schema`."""
    shipped = schema_files(db.dialect.name, package)
    rows = await _read(db)
    have = 0
    for file in shipped:
        if any(_state(rows, key) != "done" for key, _ in _keyed(file)):
            break
        have = file.version
    need = shipped[-1].version
    if have < need:
        command = f'python -m daydo_db migrate "{db.location}" {package}'
        raise SchemaOutdated(package=package, have=have, need=need, command=command)


def statements(dialect: DialectName, *packages: str, after: int = 0, upto: int = 9999) -> list[str]:
    """What leads to the state that :func:`migrate` leaves, without ``;``, for Alembic and other tools.

    Only files whose number is above ``after`` and at most ``upto``: a step of another tool is written once, and a
    later release of the package has more files. May follow what :func:`migrate` or an earlier part has applied.

    Raises:
        ValueError: as :func:`migrate`.
    """
    return [statement for _, part in _script(dialect, packages, after, upto) for statement in part]


def sql(dialect: DialectName, *packages: str, after: int = 0, upto: int = 9999) -> str:
    """The same as one commented script, for Flyway or a DBA.

    Raises:
        ValueError: as :func:`migrate`.
    """
    script = _script(dialect, packages, after, upto)
    return "".join(f"-- {heading}\n" + "".join(f"{statement};\n" for statement in part) for heading, part in script)


def _script(dialect: DialectName, packages: Sequence[str], after: int, upto: int) -> Iterator[tuple[str, list[str]]]:
    """What belongs together, under a heading."""
    now_us = (SQLITE if dialect == "sqlite" else MYSQL).now_us
    yield "what has been applied", [_TABLE[dialect]]
    for file in _shipped(dialect, packages):
        if after < file.version <= upto:
            part = []
            for (package, version, number), statement in _keyed(file):
                values = f"'{package}', {version}, {number}, 'done', '{checksum(dialect, statement)}', {now_us}"
                part += [statement, f"{_INSERT} VALUES ({values})"]
            yield str(file), part


def _shipped(dialect: DialectName, packages: Sequence[str]) -> list[SchemaFile]:
    return [file for package in packages for file in schema_files(dialect, package)]


def _keyed(file: SchemaFile) -> Iterator[tuple[_Key, str]]:
    for number, statement in enumerate(file.statements, 1):
        yield (file.package, file.version, number), statement


def _state(rows: _Rows, key: _Key) -> str:
    row = rows.get(key)
    return row.state if row is not None else ""


def _steps(dialect: DialectName, shipped: Sequence[SchemaFile], rows: _Rows) -> list[Step]:
    for file in shipped:
        if edited := _edited(dialect, file, rows):
            raise SchemaEdited(file=str(file), statement=edited)
    return [
        Step(
            file.package,
            file.version,
            file.name,
            number=key[2],
            of=len(file.statements),
            sql=statement,
            again=_state(rows, key) == "started",
            needs=file.needs,
        )
        for file in shipped
        for key, statement in _keyed(file)
        if _state(rows, key) != "done"
    ]


def _edited(dialect: DialectName, file: SchemaFile, rows: _Rows) -> int:
    """The first statement that is not what ran (or is gone from the file), 0 if all are. No checksum, no opinion."""
    now = {key: checksum(dialect, statement) for key, statement in _keyed(file)}
    for key in sorted(key for key in rows if key[:2] == (file.package, file.version)):
        if rows[key].checksum and rows[key].checksum != now.get(key):
            return key[2]
    return 0


def _standing(dialect: DialectName, file: SchemaFile, rows: _Rows) -> Status:
    keyed = list(_keyed(file))
    missing = [key[2] for key, _ in keyed if _state(rows, key) != "done"]
    died = bool(missing) and _state(rows, (file.package, file.version, missing[0])) == "started"
    done, of = len(keyed) - len(missing), len(keyed)
    state: State = "applied" if not missing else "half_applied" if done or died else "pending"
    edited = _edited(dialect, file, rows)
    at = edited or (missing[0] if missing else 0)
    text = file.statements[at - 1] if 0 < at <= of else ""
    name = "edited" if edited else state
    return Status(file.package, file.version, file.name, name, done, of, at, text, died, file.needs)


def _unknown(package: str, version: int, rows: _Rows) -> Status:
    states = [row.state for key, row in rows.items() if key[:2] == (package, version)]
    return Status(package, version, "", "newer", done=states.count("done"), of=len(states))


async def _read(db: Database) -> _Rows:
    if not (await db.query(_TABLE_EXISTS[db.dialect.name])).rows:
        return {}
    return _rows((await db.query(f"SELECT {_COLUMNS} FROM daydo_migration")).rows)  # noqa: S608 - ours


def _rows(rows: Sequence[tuple[str, int, int, str, str]]) -> _Rows:
    return {(package, version, number): _Row(state, check) for package, version, number, state, check in rows}


class _Runner:
    """Applies statements over one connection that nobody else uses; ``now_us`` is fixed in tests."""

    def __init__(self, connection: Connection, dialect: Dialect, now_us: str | None) -> None:
        self._connection = connection
        self._dialect = dialect
        self._now_us = now_us or dialect.now_us

    async def prepare(self) -> _Rows:
        await self._connection.script(_TABLE[self._dialect.name])
        return _rows((await self._connection.script(f"SELECT {_COLUMNS} FROM daydo_migration")).rows)  # noqa: S608

    async def apply(self, step: Step) -> None:
        try:
            if self._dialect is SQLITE:
                await self._connection.script(step.sql)
                await self._note(step, "done")
            elif compile_statement("mysql", step.sql).verb in _DDL:
                await self._apply_ddl(step)
            else:
                await self._apply_with_row(step)
        except DbError as error:
            error.add_note(f"in statement {step}")
            raise

    async def _apply_ddl(self, step: Step) -> None:
        if not step.again:
            await self._note(step, "started")
        try:
            await self._connection.script(step.sql)
        except ConnectionLost:
            raise
        except DbError as error:
            if not (step.again and _was_applied(step.sql, error.__cause__)):
                await self._write(f"DELETE FROM daydo_migration {_ROW}", _key(step))  # noqa: S608
                raise
        done = f"UPDATE daydo_migration SET state = 'done', changed_at_us = {self._now_us} {_ROW}"  # noqa: S608
        await self._write(done, _key(step))

    async def _apply_with_row(self, step: Step) -> None:
        await self._connection.script("START TRANSACTION")
        try:
            await self._connection.script(step.sql)
            await self._note(step, "done")
            await self._connection.script("COMMIT")
        except BaseException:
            if self._connection.usable:
                await to_the_end(self._connection.script("ROLLBACK"))
            raise

    async def _note(self, step: Step, state: str) -> None:
        values = (*_key(step), state, checksum(self._dialect.name, step.sql))
        await self._write(f"{_INSERT} VALUES (?, ?, ?, ?, ?, {self._now_us})", values)

    async def _write(self, text: str, args: Sequence[Value]) -> None:
        await self._connection.execute(compile_statement(self._dialect.name, text), args)


def _key(step: Step) -> _Key:
    return step.package, step.version, step.number


def _was_applied(statement: str, refusal: BaseException | None) -> bool:
    """Whether the server refuses because the statement has had its effect already."""
    number, message = refusal.args[:2] if refusal is not None and len(refusal.args) > 1 else (0, "")
    if number == _CANNOT_CREATE:
        return "errno: 121" in str(message)
    return number in _APPLIED_ALREADY or (number in _OLD_NAME_IS_GONE and bool(_RENAMING.search(statement)))


@asynccontextmanager
async def _sqlite_alone(connection: Connection, wait_s: float) -> AsyncIterator[None]:
    await connection.script("PRAGMA foreign_keys=OFF")  # Inside a transaction this would do nothing.
    try:
        await _begin(connection, wait_s)
        try:
            yield
            await to_the_end(connection.script("COMMIT"))
        except BaseException:
            if connection.in_transaction:
                await to_the_end(connection.script("ROLLBACK"))
            raise
    finally:
        if connection.usable:
            await to_the_end(connection.script("PRAGMA foreign_keys=ON"))


async def _begin(connection: Connection, wait_s: float) -> None:
    """Wait for another process in turns of ``lock_timeout_s``, so that a cancellation is heard between two."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + wait_s
    while True:
        try:
            await connection.script("BEGIN IMMEDIATE")
        except LockTimeout:
            if loop.time() >= until_s:
                raise
        else:
            return


async def _check_references(connection: Connection) -> None:
    rows = (await connection.script("PRAGMA foreign_key_check")).rows
    if rows:
        broken = Counter((child, parent) for child, _, parent, _ in rows)
        listed = ", ".join(f"{number} of {child} to {parent}" for (child, parent), number in broken.items())
        raise StatementFailed(
            reason=f"references that lead nowhere: {listed}; nothing was applied", statement="PRAGMA foreign_key_check"
        )


@asynccontextmanager
async def _mysql_alone(connection: Connection, wait_s: float) -> AsyncIterator[None]:
    # Names of locks are the server's, not the database's, and hold 64 characters.
    name = (await connection.script("SELECT DATABASE()")).rows[0][0]
    lock = f"daydo_migrate_{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    if (await connection.script(f"SELECT GET_LOCK('{lock}', {math.ceil(wait_s)})")).rows != [(1,)]:
        raise LockTimeout()
    try:
        yield
    finally:
        if connection.usable:
            await to_the_end(connection.script(f"SELECT RELEASE_LOCK('{lock}')"))

"""MySQL and MariaDB through their own dump and client programs.

How a dump is verified without a lock, while others write. The dump is one consistent snapshot, which no other
session can share. So it is loaded into a scratch database, and that is dumped by the same program: the two dumps must
be equal, byte by byte, definitions included, but for what MySQL words anew once reloaded. What this cannot see is a
value that the program itself wrote down wrongly (in a wrong character set, say). Therefore every table that nobody
wrote to meanwhile is compared with the source as well: its checksum before and after the dump, and the time of its
last write, must agree, and then the restored table has that checksum too.

Event definitions come last and are left out of the scratch database, where they would run.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from daydo_db.config import DatabaseConfig, Location
from daydo_db.connection import Connection
from daydo_db.database import Database
from daydo_db.errors import DbError, LockTimeout, StatementFailed
from daydo_kernel import new_id, to_the_end

from .errors import BackupFailed, BackupToolMissing, RestoreRefused
from .folder import Backup, HashingFile, Journal, Taken, chunks
from .work import CHUNK, Stage, Work

log = logging.getLogger("daydo")

_DROP_TRIES = 12
_VERSION_S = 10.0
# A client that was killed, or has just said goodbye, is in the list of sessions for another moment.
_LEAVING_TRIES, _LEAVING_S = 10, 0.1
_ALWAYS = (
    *("--single-transaction", "--skip-lock-tables", "--quick", "--order-by-primary"),
    *("--hex-blob", "--no-tablespaces", "--skip-comments", "--default-character-set=utf8mb4"),
    "--max-allowed-packet=1G",
)
# MySQL's own alone: replication positions and statistics belong to the server that was dumped.
_ALWAYS_MYSQL = ("--set-gtid-purged=OFF", "--column-statistics=0")
_DATA = ("--routines", "--triggers")
_EVENTS = ("--events", "--no-data", "--no-create-info", "--skip-triggers")
_TABLE = re.compile(rb"CREATE TABLE (?:`[^`]*+`)++ \(\n")
# Its name, its type, and the character set, which the collation names as well.
_COLUMN = re.compile(
    rb"(  (?:`[^`]*+`)++ [a-z]++(?:\((?:[^')]|'[^']*+')*+\))?) CHARACTER SET ([0-9a-z]++)(?= COLLATE \2_)"
)
_DROP = {"BASE TABLE": "TABLE", "SYSTEM VERSIONED": "TABLE", "VIEW": "VIEW", "SEQUENCE": "SEQUENCE"}


class Tools(NamedTuple):
    """The two programs of a server's own make."""

    dump: str
    client: str
    mariadb: bool


class _Mark(NamedTuple):
    """What a table is recognised by."""

    checksum: int
    written_at: object


async def take(db: Database, verify_url: str, path: Path, work: Work, journal: Journal) -> Taken:
    """Dump ``db`` to ``path`` and verify it.

    Raises:
        BackupToolMissing: the programs of this server's make are not on PATH.
        BackupFailed: a program failed, or the restored copy is not what was dumped.
        DbError: the server refused or went away.
    """
    server = db._engine.version
    tools = await work.run(lambda: find_tools(server))
    await _refuse_unfit(db)
    async with AsyncExitStack() as stack:
        verifier = db
        if verify_url:
            verifier = await stack.enter_async_context(Database(verify_url, db.config))
            if verifier._engine.version != server:
                raise BackupFailed(reason=f"verify_url is {verifier._engine.version}, the database is on {server}")
        login = stack.enter_context(option_file(db.location, db.config, tools))
        before = await _marks(db)
        dumped = await work.run(lambda: _dump(work, tools, login, db.location.name, path))
        after = await _marks(db)
        quiet = {table: mark.checksum for table, mark in before.items() if after.get(table) == mark}
        scratch_login = stack.enter_context(option_file(verifier.location, db.config, tools))
        async with _scratch(verifier, await _charset(db), journal) as scratch:
            length = dumped.verified_bytes
            with path.open("rb") as packed:
                await work.run(lambda: load(work, tools, scratch_login, scratch, packed, length, "verify"))
            await work.run(lambda: _compare(work, tools, scratch_login, scratch, path, length))
            async with verifier._dedicated() as connection:
                tables, migrations = await _inspect(connection, scratch)
                await _compare_checksums(connection, scratch, quiet)
    return dumped._replace(tables=tables, compared=sorted(quiet), migrations=migrations)


async def restore(
    target: Database, backup: Backup, packed: IO[bytes], work: Work, *, force: bool, while_in_use: bool
) -> None:
    """Load ``packed`` into ``target``, which is started, by one connection; ``force`` first drops everything in it.

    Raises:
        RestoreRefused: the target is not empty, or a server of the other make; with ``force``: others use it.
        BackupToolMissing: the client of this server's make is not on PATH.
        BackupFailed: the client failed, or rows are missing afterwards.
    """
    server = target._engine.version
    if server.split()[0] != backup.server.split()[0]:
        raise RestoreRefused(reason=f"the backup is of {backup.server}, the target is {server}")
    tools = await work.run(lambda: find_tools(server))
    async with target._dedicated() as connection:
        things = await _things(connection)
        if things and not force:
            raise RestoreRefused(
                reason=f"{target.location} holds {len(things)} tables or other things; force=True drops them"
            )
        if things and not while_in_use:
            await _refuse_in_use(connection, target.location)
        await _drop_all(connection, things)
    with option_file(target.location, target.config, tools) as login:
        name, length = target.location.name, backup.content_bytes
        await work.run(lambda: load(work, tools, login, name, packed, length, "restore"))
    async with target._dedicated() as connection:
        tables, _ = await _inspect(connection, target.location.name)
    if tables != backup.tables:
        raise BackupFailed(reason=f"after loading, {_different(tables, backup.tables)} has not the rows it should")


def find_tools(server: str) -> Tools:
    """The dump program and the client that fit ``server``.

    Raises:
        BackupToolMissing: one of them is not on PATH, or only the other make's is.
        BackupFailed: one does not tell whose it is.
    """
    mariadb = server.startswith("MariaDB")
    package = "mariadb-client" if mariadb else "mysql-community-client (MySQL's own package repository)"
    dumps, clients = ("mariadb-dump", "mysqldump"), ("mariadb", "mysql")
    found = []
    for names in (dumps, clients):
        fitting = (shutil.which(name) for name in (names if mariadb else names[1:]))
        program = next((path for path in fitting if path and _is_mariadbs(path) == mariadb), None)
        if program is None:
            tool = names[0] if mariadb else f"MySQL's own {names[1]}"
            raise BackupToolMissing(server=server, tool=tool, package=package)
        found.append(program)
    return Tools(found[0], found[1], mariadb)


@contextmanager
def option_file(location: Location, config: DatabaseConfig, tools: Tools) -> Iterator[str]:
    """A private file with the login, for ``--defaults-file``: a command line can be read by everybody."""
    options = {"user": location.user, "password": location.password, "host": location.host, "port": location.port}
    if location.unix_socket:
        options["socket"] = location.unix_socket
    else:
        options["protocol"] = "tcp"
    lines = [f'{name}="{_escaped(str(value))}"' for name, value in options.items() if value]
    with tempfile.NamedTemporaryFile("w", prefix="daydo-", suffix=".cnf", encoding="utf-8") as file:  # mode 0600
        file.write("\n".join(["[client]", *lines, *_tls(config, tools)]) + "\n")
        file.flush()
        yield file.name


def load(work: Work, tools: Tools, login: str, database: str, packed: IO[bytes], length: int, stage: Stage) -> None:
    """Feed the first ``length`` bytes of the SQL in ``packed`` to the client."""
    command = [tools.client, f"--defaults-file={login}", "--binary-mode", "--default-character-set=utf8mb4"]
    command += ["--max-allowed-packet=1G", f"--database={database}"]
    with gzip.open(packed) as sql, work.program(command, stdin=subprocess.PIPE) as client:
        assert client.stdin is not None  # noqa: S101 - it was asked for
        done = 0
        for size in chunks(length):
            client.stdin.write(sql.read(size))
            done += size
            work.tell(stage, done, length)


def _dump(work: Work, tools: Tools, login: str, database: str, path: Path) -> Taken:
    target = HashingFile(path)
    try:
        with gzip.GzipFile(fileobj=target, mode="wb", filename="", compresslevel=6, mtime=0) as packed:
            data_bytes = _pour(work, [*_command(tools, login), *_DATA, "--", database], packed, 0)
            content_bytes = _pour(work, [*_command(tools, login), *_EVENTS, "--", database], packed, data_bytes)
    finally:
        target.close()
    return Taken(target.size_bytes, target.sha256, content_bytes, data_bytes, {}, [], {})


def _pour(work: Work, command: list[str], packed: gzip.GzipFile, done: int) -> int:
    with work.program(command, stdout=subprocess.PIPE) as dump:
        for chunk in _read(dump.stdout):
            packed.write(chunk)
            done += len(chunk)
            work.tell("dump", done, None)
    return done


def _compare(work: Work, tools: Tools, login: str, scratch: str, path: Path, length: int) -> None:
    command = [*_command(tools, login), *_DATA, "--", scratch]
    done, in_table = 0, False
    with gzip.open(path) as dumped, work.program(command, stdout=subprocess.PIPE) as again:
        for piece in _lines(again.stdout):
            wanted = dumped.readline(min(CHUNK, length - done))
            in_table = _TABLE.fullmatch(wanted) is not None or (in_table and not wanted.startswith(b")"))
            worded_anew = in_table and not tools.mariadb and _without_charset(piece) == _without_charset(wanted)
            if piece != wanted and not worded_anew:
                raise BackupFailed(
                    reason="the database it was restored into gives another dump; the first difference lies within "
                    f"{CHUNK} bytes after byte {done} of the SQL"
                )
            done += len(wanted)
            work.tell("verify", done, length)
    if done != length:
        raise BackupFailed(reason=f"the database it was restored into gives a dump of {done} bytes, not {length}")


def _without_charset(line: bytes) -> bytes:
    """A column's definition without the character set that MySQL adds to its collation once it has been reloaded.

    A column that took both from its table is ``COLLATE utf8mb4_0900_bin`` until then, and means the same.
    """
    column = _COLUMN.match(line)
    return line if column is None else column[1] + line[column.end() :]


def _lines(output: IO[bytes] | None) -> Iterator[bytes]:
    """Its lines, long ones in pieces."""
    assert output is not None  # noqa: S101 - it was asked for
    while piece := output.readline(CHUNK):
        yield piece


def _read(output: IO[bytes] | None) -> Iterator[bytes]:
    assert output is not None  # noqa: S101 - it was asked for
    while chunk := output.read(CHUNK):
        yield chunk


def _command(tools: Tools, login: str) -> list[str]:
    return [tools.dump, f"--defaults-file={login}", *_ALWAYS, *(() if tools.mariadb else _ALWAYS_MYSQL)]


def _is_mariadbs(program: str) -> bool:
    try:
        said = subprocess.run([program, "--version"], capture_output=True, timeout=_VERSION_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackupFailed(reason=f"{program} --version: {error}") from error
    return b"MariaDB" in said.stdout


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _tls(config: DatabaseConfig, tools: Tools) -> list[str]:
    if not config.tls:
        return ["loose-skip-ssl"] if tools.mariadb else ["get-server-public-key"]
    authorities = config.tls_ca_file or ssl.get_default_verify_paths().cafile or ""
    verified = ["ssl", "ssl-verify-server-cert"] if tools.mariadb else ["ssl-mode=VERIFY_IDENTITY"]
    return [*verified, *([f'ssl-ca="{_escaped(authorities)}"'] if authorities else [])]


async def _refuse_unfit(db: Database) -> None:
    rows = await db.query(
        "SELECT table_name, engine FROM information_schema.tables "
        "WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE' AND engine <> 'InnoDB' ORDER BY table_name"
    )
    if rows.rows:
        table, engine = rows.rows[0]
        raise BackupFailed(
            reason=f"{table} is a table of {engine}, which no snapshot holds; ALTER TABLE {table} ENGINE=InnoDB"
        )


async def _marks(db: Database) -> dict[str, _Mark]:
    async with db._dedicated() as connection:
        # The hint is MySQL's, which else answers from a cache of a day; to MariaDB it is a comment.
        rows = await connection.script(
            "SELECT /*+ SET_VAR(information_schema_stats_expiry = 0) */ table_name, update_time "
            "FROM information_schema.tables WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE'"
        )
        written = dict(rows.rows)
        sums = await _checksums(connection, db.location.name, list(written))
    return {table: _Mark(checksum, written[table]) for table, checksum in sums.items()}


async def _checksums(connection: Connection, database: str, tables: list[str]) -> dict[str, int]:
    if not tables:
        return {}
    names = ", ".join(f"{_quoted(database)}.{_quoted(table)}" for table in tables)
    rows = (await connection.script(f"CHECKSUM TABLE {names}")).rows
    return dict(zip(tables, (checksum for _, checksum in rows), strict=True))


async def _compare_checksums(connection: Connection, scratch: str, quiet: dict[str, int]) -> None:
    restored = await _checksums(connection, scratch, list(quiet))
    if restored != quiet:
        raise BackupFailed(
            reason=f"{_different(restored, quiet)} has other rows once restored; if it has a FLOAT column, make it a "
            "DOUBLE: a dump keeps six digits of a FLOAT"
        )


async def _inspect(connection: Connection, database: str) -> tuple[dict[str, int], dict[str, int]]:
    rows = await connection.script(
        f"SELECT table_name FROM information_schema.tables WHERE table_schema = '{_text(database)}' "  # noqa: S608
        "AND table_type = 'BASE TABLE' ORDER BY table_name"
    )
    tables = {}
    for (table,) in rows.rows:
        count = await connection.script(f"SELECT COUNT(*) FROM {_quoted(database)}.{_quoted(table)}")  # noqa: S608
        tables[table] = int(count.rows[0][0])
    if "daydo_migration" not in tables:
        return tables, {}
    versions = await connection.script(
        f"SELECT package, MAX(version) FROM {_quoted(database)}.daydo_migration "  # noqa: S608
        "WHERE state = 'done' GROUP BY package ORDER BY package"
    )
    return tables, dict(versions.rows)


async def _charset(db: Database) -> str:
    charset, collation = (await db.query("SELECT @@character_set_database, @@collation_database")).rows[0]
    return f"CHARACTER SET {charset} COLLATE {collation}"


@asynccontextmanager
async def _scratch(db: Database, charset: str, journal: Journal) -> AsyncIterator[str]:
    """An empty database that is gone afterwards; if we are killed, the next backup drops it."""
    if left := journal.read():
        await _drop_database(db, left)
    name = new_id("daydo_scratch").lower()
    journal.write(name)
    try:
        async with db._dedicated() as connection:
            await connection.script(f"CREATE DATABASE {name} {charset}")
    except StatementFailed:  # the right is missing, to drop it as well
        journal.write("")
        raise
    except BaseException:
        await _tidy_up(db, name, journal)
        raise
    try:
        yield name
    finally:
        await _tidy_up(db, name, journal)


async def _tidy_up(db: Database, scratch: str, journal: Journal) -> None:
    try:
        await to_the_end(_drop_database(db, scratch))
        journal.write("")
    except DbError as error:
        log.warning("the scratch database %s could not be dropped, the next backup does it: %s", scratch, error)


async def _drop_database(db: Database, name: str) -> None:
    for attempt in range(_DROP_TRIES, 0, -1):
        try:
            async with db._dedicated() as connection:
                await connection.script(f"DROP DATABASE IF EXISTS {name}")
                return
        except LockTimeout:  # the server has not noticed yet that the client was killed
            if attempt == 1:
                raise


async def _things(connection: Connection) -> list[tuple[str, str]]:
    """Everything in the current database, as what DROP calls it and its name."""
    tables = await connection.script(
        "SELECT table_type, table_name FROM information_schema.tables WHERE table_schema = DATABASE()"
    )
    others = await connection.script(
        "SELECT routine_type, routine_name FROM information_schema.routines WHERE routine_schema = DATABASE() "
        "UNION ALL SELECT 'EVENT', event_name FROM information_schema.events WHERE event_schema = DATABASE()"
    )
    return [(_DROP.get(kind, kind), name) for kind, name in [*tables.rows, *others.rows]]


async def _refuse_in_use(connection: Connection, target: Location) -> None:
    own = (await connection.script("SELECT CONNECTION_ID()")).rows[0][0]
    for attempt in range(_LEAVING_TRIES, 0, -1):
        # information_schema.processlist says the same, and is to go from MySQL.
        sessions = await connection.script("SHOW PROCESSLIST")
        others = [(user, host) for number, user, host, db, *_ in sessions.rows if db == target.name and number != own]
        if not others:
            return
        if attempt > 1:
            await asyncio.sleep(_LEAVING_S)
    user, host = others[0]
    raise RestoreRefused(
        reason=f"{target} is in use: {len(others)} other sessions, one of {user} from {host}; stop the service first, "
        "or go on all the same by while_in_use=True"
    )


async def _drop_all(connection: Connection, things: list[tuple[str, str]]) -> None:
    await connection.script("SET SESSION foreign_key_checks = 0")
    try:
        for kind, name in things:
            await connection.script(f"DROP {kind} IF EXISTS {_quoted(name)}")
    finally:
        if connection.usable:
            await to_the_end(connection.script("SET SESSION foreign_key_checks = 1"))


def _different(left: dict[str, int], right: dict[str, int]) -> str:
    return next(table for table in sorted({*left, *right}) if left.get(table) != right.get(table))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")

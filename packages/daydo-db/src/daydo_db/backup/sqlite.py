"""SQLite through its online backup: a snapshot of the pages, while others write.

It is packed, unpacked again and compared with the snapshot byte by byte, and the unpacked database is asked for its
integrity. A restore writes a file beside the target and renames it, so that a target is the old database or the
whole new one. A rename takes one file, an SQLite database may be three: so the old one is locked and its log moved
into its file first.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

from .errors import BackupFailed, RestoreRefused
from .folder import Backup, HashingFile, Taken, chunks, private_file, sync
from .work import Stage, Work

_PAGES = 1024
_LOGS = ("-journal", "-wal", "-shm")
_MAGIC = b"SQLite format 3\0"
_IN_USE = "{} is open in another program; stop it first"
_File = IO[bytes] | gzip.GzipFile


def take(source: Path, path: Path, work: Work) -> Taken:
    """Copy the database ``source`` to ``path``, packed, and verify it. Blocks.

    Raises:
        BackupFailed: the copy is not sound, or cannot be written.
    """
    scratch = path.parent / "scratch"
    scratch.mkdir(mode=0o700)
    try:
        snapshot, restored = scratch / "snapshot.db", scratch / "restored.db"
        _copy(source, snapshot, work)
        content_bytes = snapshot.stat().st_size
        target = HashingFile(path)
        try:
            with (
                snapshot.open("rb") as content,
                gzip.GzipFile(fileobj=target, mode="wb", filename="", compresslevel=6, mtime=0) as packed,
            ):
                wanted = _stream(content, packed, content_bytes, "dump", work)
        finally:
            target.close()
        with gzip.open(path) as packed, restored.open("wb") as content:
            if _stream(packed, content, content_bytes, "verify", work) != wanted or packed.read(1):
                raise BackupFailed(reason="what was read back is not what was written")
        tables, migrations = _inspect(restored)
    finally:
        shutil.rmtree(scratch)
    sizes = (target.size_bytes, target.sha256, content_bytes, content_bytes)
    return Taken(*sizes, tables, sorted(tables), migrations)


def restore(target: Path, backup: Backup, packed: IO[bytes], work: Work, *, force: bool) -> None:
    """Put ``backup``, whose data is ``packed``, in the place of ``target``. Blocks.

    Raises:
        RestoreRefused: ``target`` is there and not empty, and ``force`` was not given; or it is open elsewhere, or
            no database that SQLite can read.
        BackupFailed: it cannot be written.
    """
    target = target.resolve()  # a link stays one, and SQLite's logs are beside the file itself
    exists = target.exists()
    if exists and target.stat().st_size and not force:
        raise RestoreRefused(reason=f"{target} holds a database already; force=True replaces it")
    fresh = target.with_name(f".{target.name}.restoring")
    fresh.unlink(missing_ok=True)
    try:
        with _alone(target):
            mode = target.stat().st_mode & 0o777 if exists else 0o600
            with gzip.open(packed) as data, private_file(fresh, mode) as content:
                _stream(data, content, backup.content_bytes, "restore", work)
                content.flush()
                os.fsync(content.fileno())
            _inspect(fresh)
            for suffix in _LOGS:  # nothing of the old database is in them; SQLite would apply them to the new one
                target.with_name(target.name + suffix).unlink(missing_ok=True)
            fresh.rename(target)
        sync(target.parent)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Nobody else reads or writes the database ``target``, and all that was committed is in its one file.

    Raises:
        RestoreRefused: somebody has it open, or SQLite cannot read it.
        BackupFailed: it cannot be written.
    """
    if not (target.exists() and target.stat().st_size):
        yield
        return
    with target.open("rb") as file:  # before SQLite opens it: closing it, SQLite would remove the log
        if file.read(len(_MAGIC)) != _MAGIC:
            raise RestoreRefused(reason=f"{target} is no SQLite database; move it away, with a -wal file beside it")
    uri = f"{target.as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None)) as old:
            busy = old.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            # Leaving the WAL needs every other connection gone, also one that does nothing now.
            if busy or old.execute("PRAGMA journal_mode=DELETE").fetchone()[0] != "delete":
                raise RestoreRefused(reason=_IN_USE.format(target))
            old.execute("BEGIN EXCLUSIVE")
            yield
    except sqlite3.Error as error:
        raise _unready(target, error) from error


def _unready(target: Path, error: sqlite3.Error) -> RestoreRefused | BackupFailed:
    kind = error.sqlite_errorcode & 0xFF  # the low byte of an extended code
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return RestoreRefused(reason=_IN_USE.format(target))
    return BackupFailed(reason=f"{target}: {error}; if it cannot be mended, move it away, with a -wal file beside it")


def _copy(source: Path, snapshot: Path, work: Work) -> None:
    if not source.is_file():
        raise BackupFailed(reason=f"there is no database {source}")
    snapshot.touch(0o600)
    try:
        with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(snapshot)) as new:
            size = old.execute("PRAGMA page_size").fetchone()[0]
            # Holds on to one moment; else every write of another process starts the copy over again.
            old.execute("BEGIN")
            old.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()

            def told(_: int, left: int, pages: int) -> None:
                work.tell("dump", (pages - left) * size, pages * size)

            old.backup(new, pages=_PAGES, progress=told, sleep=0)
    except sqlite3.Error as error:
        raise BackupFailed(reason=f"copying the database: {error}") from error


def _stream(
    source: IO[bytes] | gzip.GzipFile, target: IO[bytes] | gzip.GzipFile, size: int, stage: Stage, work: Work
) -> str:
    digest, done = hashlib.sha256(), 0
    for length in chunks(size):
        chunk = source.read(length)
        digest.update(chunk)
        target.write(chunk)
        done += len(chunk)
        work.tell(stage, done, size)
    return digest.hexdigest()


def _inspect(database: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Rows per table and schema version per package of a sound database.

    Raises:
        BackupFailed: it is not sound.
    """
    try:
        # Immutable: nothing is created beside it. as_uri() quotes: `#`, `?` and `%` would name another file.
        uri = f"{database.absolute().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
            if found != ["ok"]:
                raise BackupFailed(reason=f"the copy is not sound: {found[0]}")
            names = [
                name
                for (name,) in connection.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite^_%' ESCAPE '^' "
                    "ORDER BY name"
                )
            ]
            quoted = {name: '"' + name.replace('"', '""') + '"' for name in names}
            tables = {
                name: connection.execute(f"SELECT COUNT(*) FROM {quoted[name]}").fetchone()[0]  # noqa: S608
                for name in names
            }
            versions = (
                "SELECT package, MAX(version) FROM daydo_migration WHERE state = 'done' GROUP BY package"
                if "daydo_migration" in tables
                else "SELECT '', 0 WHERE 0"
            )
            return tables, dict(connection.execute(versions).fetchall())
    except sqlite3.Error as error:
        raise BackupFailed(reason=f"the copy is not sound: {error}") from error

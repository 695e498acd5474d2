"""The folder of backups: what is in it, what may appear in it, and what goes.

A backup is a folder of its own, ``daydo-20260131T030000Z/``, with the data and ``manifest.json``. It is made under
another name (``.daydo-….partial``) and renamed once everything in it is on disk and has been verified, so that a
crash, a full disk or a power cut at any moment leaves nothing that looks like a backup. Removing renames first, too.
A lock lets one backup be made at a time; under it whatever an earlier one left half done is swept away. Names of
any other shape are not ours and never touched, nor are symbolic links, whatever their name.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import IO, Literal, NamedTuple

import msgspec

from .errors import BackupBusy, BackupDamaged, BackupFailed, BackupUnknown
from .work import CHUNK

log = logging.getLogger("daydo")

_NAME = re.compile(r"daydo-\d{8}T\d{6}Z(?:-\d+)?")
_UNFINISHED = re.compile(rf"\.{_NAME.pattern}\.partial")
_MANIFEST = "manifest.json"
_LOCK = ".daydo-lock"
_DAY_US = 86_400_000_000
_SCRATCH = re.compile(r"daydo_scratch_[0-9a-z]{26}")


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of one verified backup.

    Attributes:
        name: of its folder.
        dialect, server: what was dumped: ``mysql``, ``MariaDB 10.11.6``.
        database: its name, or that of SQLite's file; not where it is, so that it may move.
        started_us: the data is that of this moment, or shortly after; µs UTC.
        finished_us: when it had been verified.
        file: the data, gzip: SQL, or an SQLite file.
        size_bytes, sha256: of ``file``.
        content_bytes: of the SQL or SQLite file inside.
        verified_bytes: as far as it was compared byte by byte; the rest are event definitions, which must not
            run in the scratch database.
        tables: rows per table.
        compared: tables that were besides compared with the source, since nobody wrote to them meanwhile.
        migrations: the newest schema version per package.
    """

    format: Literal[1] = 1
    name: str
    dialect: Literal["sqlite", "mysql"]
    server: str
    database: str
    started_us: int
    finished_us: int
    file: str
    size_bytes: int
    sha256: str
    content_bytes: int
    verified_bytes: int
    tables: dict[str, int]
    compared: list[str]
    migrations: dict[str, int]


class Taken(NamedTuple):
    """What a back end tells of a backup that it has made and verified."""

    size_bytes: int
    sha256: str
    content_bytes: int
    verified_bytes: int
    tables: dict[str, int]
    compared: list[str]
    migrations: dict[str, int]


def kept(started_us: Iterable[int], *, last: int, days: int) -> set[int]:
    """Which backups stay: the ``last`` newest, and the newest of each of the ``days`` days (UTC) up to the newest's.

    Counted from the newest one, not from today: where backups have stopped, nothing is removed. The newest always
    stays.
    """
    newest_first = sorted(set(started_us), reverse=True)
    stays = set(newest_first[: max(last, 1)])
    seen: set[int] = set()
    for moment in newest_first:
        day = moment // _DAY_US
        if day not in seen and newest_first[0] // _DAY_US - day < days:
            stays.add(moment)
        seen.add(day)
    return stays


class Folder:
    """The backups below ``path``, all of one database. Its methods block."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def backups(self) -> list[Backup]:
        """The good ones, oldest first.

        Raises:
            OSError: the folder cannot be read. One that is not there yet holds none.
        """
        found = (self._manifest(name) for name in self._names())
        return sorted((backup for backup in found if backup is not None), key=lambda backup: backup.started_us)

    def broken(self) -> list[str]:
        """What has the name of a backup and is none, for its manifest is not as we wrote it.

        Raises:
            OSError: as :meth:`backups`.
        """
        return sorted(name for name in self._names() if self._manifest(name) is None and not self._is_link(name))

    def find(self, name: str) -> Backup:
        """The backup ``name``.

        Raises:
            BackupUnknown: there is none.
            OSError: the folder is a file.
        """
        self._require_folder()
        backup = self._manifest(name) if _NAME.fullmatch(name) else None
        if backup is None:
            raise BackupUnknown(backup=name)
        return backup

    def open(self, backup: Backup) -> BufferedReader:
        """The data; once open it can be read to its end, also when retention removes the backup meanwhile.

        Raises:
            BackupDamaged: it is gone, or cannot be read.
        """
        try:
            return (self.path / backup.name / backup.file).open("rb")
        except OSError as error:
            raise BackupDamaged(backup=backup.name, reason=f"{error.strerror}") from error

    def check(self, backup: Backup, data: BufferedReader) -> None:
        """Compare the open data with the manifest, and go back to its beginning.

        Raises:
            BackupDamaged: it is shorter, longer, or not what it was.
        """
        try:
            size, digest = os.fstat(data.fileno()).st_size, hashlib.file_digest(data, "sha256").hexdigest()
            data.seek(0)
        except OSError as error:
            raise BackupDamaged(backup=backup.name, reason=f"{error.strerror}") from error
        if size != backup.size_bytes:
            raise BackupDamaged(backup=backup.name, reason=f"{size} bytes, {backup.size_bytes} were written")
        if digest != backup.sha256:
            raise BackupDamaged(backup=backup.name, reason="its checksum is not the one that was written down")

    @contextmanager
    def locked(self) -> Iterator[Journal]:
        """Alone in this folder, and tidied up as far as that can be done.

        Raises:
            BackupBusy: somebody else is at work here.
            BackupFailed: the folder cannot be written.
        """
        try:
            self._require_folder()
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BackupFailed(reason=f"{self.path}: {error.strerror}") from error
        try:
            self._claim(lock)
            yield Journal(lock)
        finally:
            os.close(lock)

    @contextmanager
    def unfinished(self, started_us: int) -> Iterator[tuple[str, Path]]:
        """The name of a new backup, and the folder it is made in, which is gone afterwards unless published."""
        moment = datetime.fromtimestamp(started_us // 1_000_000, UTC)
        name = stem = f"daydo-{moment:%Y%m%dT%H%M%SZ}"
        number = 1
        while os.path.lexists(self.path / name) or os.path.lexists(self._partial(name)):
            number += 1
            name = f"{stem}-{number}"
        partial = self._partial(name)
        partial.mkdir(mode=0o700)
        try:
            yield name, partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def publish(self, backup: Backup, partial: Path) -> None:
        """Afterwards ``backup`` is one, and stays one through a power cut.

        Raises:
            OSError: it is none.
        """
        manifest = partial / _MANIFEST
        with private_file(manifest) as file:
            file.write(msgspec.json.format(msgspec.json.encode(backup)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync(partial)
        published = self.path / backup.name
        partial.rename(published)
        try:
            sync(self.path)
        except OSError:
            published.rename(partial)
            raise

    def prune(self, new: Backup, *, last: int, days: int) -> None:
        """Remove what need not stay, now that ``new`` is there; see :func:`kept`.

        A backup of a later moment than ``new`` is of a clock that went wrong: it stays, and counts for nothing. What
        fails here is logged alone, for ``new`` is good whatever becomes of the old ones; the next backup tries again.
        """
        try:
            backups = self.backups()
        except OSError as error:
            log.warning("old backups were not looked for in %s: %s", self.path, error)
            return
        past = [backup for backup in backups if backup.started_us <= new.started_us]
        if ahead := [backup.name for backup in backups if backup.started_us > new.started_us]:
            log.warning(
                "%s in %s: of a later moment than %s, made just now; a clock went wrong. Retention leaves them out",
                ", ".join(ahead),
                self.path,
                new.name,
            )
        stays = kept((backup.started_us for backup in past), last=last, days=days)
        for backup in past:
            if backup.started_us not in stays:
                self._remove(backup)

    def _remove(self, backup: Backup) -> None:
        going = self._partial(backup.name)
        try:
            (self.path / backup.name).rename(going)
            shutil.rmtree(going)
        except OSError as error:
            log.warning("the old backup %s in %s could not be removed: %s", backup.name, self.path, error)

    def _claim(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sweep()
        except BlockingIOError:
            raise BackupBusy() from None
        except OSError as error:
            raise BackupFailed(reason=f"{self.path}: {error.strerror}") from error

    def _sweep(self) -> None:
        with os.scandir(self.path) as entries:
            left = [entry.name for entry in entries if _UNFINISHED.fullmatch(entry.name)]
        for name in left:
            try:
                shutil.rmtree(self.path / name)  # refuses a symbolic link
            except OSError as error:
                log.warning("%s in %s, of an earlier backup, could not be removed: %s", name, self.path, error)

    def _partial(self, name: str) -> Path:
        return self.path / f".{name}.partial"

    def _require_folder(self) -> None:
        if self.path.is_file():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file; backups need a folder", str(self.path))

    def _names(self) -> list[str]:
        self._require_folder()
        try:
            return [entry.name for entry in os.scandir(self.path) if _NAME.fullmatch(entry.name)]
        except FileNotFoundError:
            return []

    def _is_link(self, name: str) -> bool:
        return (self.path / name).is_symlink()

    def _manifest(self, name: str) -> Backup | None:
        folder = self.path / name
        if self._is_link(name):
            return None
        try:
            backup = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=Backup)
        except (OSError, msgspec.MsgspecError):
            return None
        # Renamed by hand, or with a path in it: not as we wrote it.
        ours = backup.name == name and backup.file in DATA_FILES.values()
        return backup if ours else None


DATA_FILES = {"sqlite": "daydo.db.gz", "mysql": "daydo.sql.gz"}


class Journal:
    """The lock's content: the scratch database under way, so that the next backup drops it if this one is killed."""

    def __init__(self, lock: int) -> None:
        self._lock = lock

    def read(self) -> str:
        name = os.pread(self._lock, 100, 0).decode(errors="replace")
        return name if _SCRATCH.fullmatch(name) else ""

    def write(self, name: str) -> None:
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, name.encode(), 0)
        os.fsync(self._lock)


class HashingFile:
    """Writes a new private file, counting and hashing; :meth:`close` returns once it is on disk."""

    def __init__(self, path: Path) -> None:
        self._file = private_file(path)
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self.size_bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def private_file(path: Path, mode: int = 0o600) -> IO[bytes]:
    """A new file, open for writing; its owner's alone from its first moment on."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")


def chunks(size: int) -> Iterator[int]:
    """``size`` in pieces."""
    while size > 0:
        yield min(size, CHUNK)
        size -= CHUNK


def sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

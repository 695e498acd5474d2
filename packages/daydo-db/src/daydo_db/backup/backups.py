"""The noun: backups of one database in one folder."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Annotated

import msgspec
from msgspec import Meta

from daydo_db.config import Seconds
from daydo_db.database import Database
from daydo_db.tx import SQLITE
from daydo_kernel import Clock, Config, Event, EventSink, Health, Metrics, NoEvents, Part, SystemClock, to_the_end

from . import mysql, sqlite
from .errors import BackupFailed, RestoreFailed, RestoreRefused
from .folder import DATA_FILES, Backup, Folder, Journal, Taken
from .work import Told, Work

log = logging.getLogger("daydo")

# A full or failing disk, and what a packed file says that the disk has changed.
_BROKEN = (OSError, EOFError, zlib.error)


class BackupsConfig(Config, frozen=True, kw_only=True):
    """How many backups stay, and the bounds of making one.

    Attributes:
        keep_last: this many of the newest stay.
        keep_days: besides, the newest of each of this many days.
        verify_url: restore into a scratch database on this server, given by any database there; empty: on the same
            one. It is of the same version. MySQL and MariaDB only.
        timeout_s: a backup or a restore that takes longer is given up.
        max_age_s: health is ``degraded`` when the newest was begun longer ago; 26 hours, for one a night.
        look_every_s: how often the folder is read for the metrics.
        drain_s: leaving waits this long for the last look.
    """

    keep_last: Annotated[int, Meta(ge=1, le=10_000)] = 7
    keep_days: Annotated[int, Meta(ge=0, le=3660)] = 14
    verify_url: str = ""
    timeout_s: Annotated[float, Meta(gt=0, le=604_800)] = 14_400.0
    max_age_s: Annotated[float, Meta(gt=0, le=316_224_000)] = 93_600.0
    look_every_s: Seconds = 60.0
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = 5.0


class Backups(Part):
    """Verified backups of ``db`` in ``folder``, which holds those of this one database.

    Which one that is the manifests tell by its name, or its file's: that survives a move to another host or folder, and
    cannot tell two of one name apart, on two servers say.

    Started, it measures the age of the newest; only :meth:`create` needs ``db`` to be started as well, so that a
    database can be restored while there is none. ``clock`` stamps them, None meaning this host's; ``events`` hears
    ``db.backed_up``.
    """

    def __init__(
        self,
        db: Database,
        folder: str | Path,
        config: BackupsConfig = BackupsConfig(),  # noqa: B008 - frozen
        *,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        self.config = config
        self._db = db
        self._folder = Folder(Path(folder))
        self._clock = clock if clock is not None else SystemClock()
        self._events: EventSink = events if events is not None else NoEvents()
        self._newest: Backup | None = None
        self._declare_metrics()

    async def create(self, *, progress: Told | None = None) -> Backup:
        """Dump the database, restore the dump into a scratch database, compare, keep it; then remove old ones.

        Nobody is locked out meanwhile. ``progress`` is called in another thread. An old backup that cannot be
        removed is logged, and no error. Cancelled in its last moment the backup may have been kept: what
        :meth:`list` shows is good.

        Raises:
            BackupBusy: another backup is being made in this folder.
            BackupToolMissing: the server's own programs are not on PATH.
            BackupFailed: the rest: no table is in it, the folder is another database's, a program failed, the copy
                differs, no room, out of time. Nothing is kept.
            DbError: the database refused or went away.
        """
        self._require_started()
        last, days = self.config.keep_last, self.config.keep_days
        with self._folder.locked() as journal:
            try:
                await asyncio.to_thread(self._require_own_folder)
                backup = self._newest = await self._create(Work(progress), journal)
            except _BROKEN as error:
                raise BackupFailed(reason=f"{self._folder.path}: {error}") from error
            # The backup is there: nothing from here on may say that it is not.
            await to_the_end(asyncio.to_thread(self._folder.prune, backup, last=last, days=days))
        data = {"name": backup.name, "size_bytes": backup.size_bytes, "rows": sum(backup.tables.values())}
        await self._events.emit(Event(name="db.backed_up", data=data))
        return backup

    async def list(self) -> list[Backup]:
        """The good ones, oldest first; the log names what has a backup's name and is none.

        Raises:
            OSError: the folder cannot be read.
        """
        return [*await asyncio.to_thread(self._told)]

    async def newest(self) -> Backup | None:
        """The newest good one. One of the future, made while a clock was wrong, is never it.

        Raises:
            OSError: the folder cannot be read.
        """
        return self._newest_of(await self.list())

    async def restore(
        self,
        name: str,
        into_url: str,
        *,
        force: bool = False,
        while_in_use: bool = False,
        progress: Told | None = None,
    ) -> Backup:
        """Load the backup ``name`` into an empty database; ``force`` drops what is in it.

        On SQLite the target is replaced at once or not at all, and refused while it is open elsewhere. MySQL has no
        such thing: a restore that is interrupted leaves a part, and the next one needs ``force``. Nothing is dropped
        there while other sessions use the database, unless ``while_in_use``; those of other users are seen with the
        right PROCESS alone, so stop the service before. Retention may remove ``name`` meanwhile; it is restored all
        the same.

        Raises:
            BackupUnknown, BackupDamaged: it is not there, or not what it was; the target has not been touched.
            RestoreRefused: the target is not empty, in use, another kind of database, or an SQLite file that is
                unreadable.
            RestoreFailed: it was begun and did not end well.
            BackupToolMissing, DbError: as :meth:`create`.
            OSError: the folder cannot be read.
        """
        backup = await asyncio.to_thread(self._folder.find, name)
        # One connection: another one of ours would look like somebody who uses the target.
        config = msgspec.structs.replace(self._db.config, pool_min=0, pool_max=1)
        target, work = Database(into_url, config), Work(progress)
        if target.dialect.name != backup.dialect:
            raise RestoreRefused(reason=f"the backup is of {backup.server}, the target is {target.location}")
        try:
            with self._folder.open(backup) as data:
                async with asyncio.timeout(self.config.timeout_s):
                    await work.run(lambda: self._folder.check(backup, data))
                    await self._restore(backup, data, target, work, force, while_in_use)
        except TimeoutError:
            raise RestoreFailed(reason=f"it was not done within timeout_s={self.config.timeout_s:g}") from None
        except BackupFailed as error:
            raise RestoreFailed(reason=error.reason) from error
        except _BROKEN as error:
            raise RestoreFailed(reason=f"{target.location}: {error}") from error
        return backup

    async def health(self) -> Health:
        """``degraded`` without a backup, or when the newest is older than ``max_age_s``, as last seen. No I/O."""
        if not self._running:
            return Health(status="down")
        if self._newest is None:
            return Health(status="degraded", detail={"newest": "none"})
        age_s = self._age_s()
        return Health(
            status="ok" if age_s <= self.config.max_age_s else "degraded",
            detail={"newest": self._newest.name, "age_s": round(age_s, 3)},
        )

    async def _create(self, work: Work, journal: Journal) -> Backup:
        dialect = self._db.dialect
        started_us = self._clock.now_us()
        with self._folder.unfinished(started_us) as (name, unfinished):
            path = unfinished / DATA_FILES[dialect.name]
            taken = await self._take(path, work, journal)
            if not taken.tables:  # as good as no backup, and it would take the place of a real one
                raise BackupFailed(reason=f"{self._db.location} holds no table; is it the right database?")
            backup = Backup(
                name=name,
                dialect=dialect.name,
                database=_name(self._db),
                server=self._db._engine.version,
                started_us=started_us,
                finished_us=self._clock.now_us(),
                file=path.name,
                **taken._asdict(),
            )
            # Out of the timeout: once begun it is soon done, and then the backup is there.
            await to_the_end(asyncio.to_thread(self._folder.publish, backup, unfinished))
        return backup

    async def _take(self, path: Path, work: Work, journal: Journal) -> Taken:
        try:
            async with asyncio.timeout(self.config.timeout_s):
                if self._db.dialect is not SQLITE:
                    return await mysql.take(self._db, self.config.verify_url, path, work, journal)
                source = self._sqlite_path(self._db)
                return await work.run(lambda: sqlite.take(source, path, work))
        except TimeoutError:
            raise BackupFailed(reason=f"it was not done within timeout_s={self.config.timeout_s:g}") from None

    async def _restore(
        self, backup: Backup, data: IO[bytes], target: Database, work: Work, force: bool, while_in_use: bool
    ) -> None:
        if target.dialect is SQLITE:
            file = self._sqlite_path(target)
            await work.run(lambda: sqlite.restore(file, backup, data, work, force=force))
        else:
            async with target:
                await mysql.restore(target, backup, data, work, force=force, while_in_use=while_in_use)

    async def _start(self) -> None:
        await self._look()
        self._repeat(self.config.look_every_s, self._look, "look")

    async def _look(self) -> None:
        try:
            backups = await asyncio.to_thread(self._folder.backups)  # untold: it is looked at every minute
        except OSError as error:  # what was seen last grows old, and the alert on its age comes
            log.warning("the backups in %s cannot be read: %s", self._folder.path, error)
            return
        self._newest = self._newest_of(backups)

    def _newest_of(self, backups: Sequence[Backup]) -> Backup | None:
        now_us = self._clock.now_us()  # one of the future would look new for as long as that takes
        return next((backup for backup in reversed(backups) if backup.started_us <= now_us), None)

    def _told(self) -> Sequence[Backup]:
        for name in self._folder.broken():
            log.warning(
                "%s in %s is left out: its manifest is missing, or not as it was written", name, self._folder.path
            )
        return self._folder.backups()

    def _require_own_folder(self) -> None:
        """Retention counts all that is in the folder, so another database's backups would go for ours.

        Raises:
            BackupFailed: there are some.
        """
        ours = (self._db.dialect.name, _name(self._db))
        for backup in self._told():
            if (backup.dialect, backup.database) != ours:
                raise BackupFailed(
                    reason=f"{self._folder.path} holds backups of another database, {backup.dialect} "
                    f"{backup.database}, and this is {self._db.location}; is it the right database? Each has a folder "
                    "of its own"
                )

    def _sqlite_path(self, db: Database) -> Path:
        if not db.location.path:
            raise BackupFailed(reason="sqlite:// is a private temporary database; name a file")
        return Path(db.location.path)

    def _declare_metrics(self) -> None:
        self.metrics = Metrics("daydo_db")
        # Every worker reads the same folder.
        age = self.metrics.gauge(
            "backup_age_seconds", "Since the newest verified backup was begun; since 1970 without one.", merge="max"
        )
        size = self.metrics.gauge("backup_size_bytes", "Of the newest verified backup.", merge="max")
        duration = self.metrics.gauge(
            "backup_duration_seconds", "Making and verifying the newest verified backup.", merge="max"
        )
        age.cell().follow(self._age_s)
        size.cell().follow(lambda: self._newest.size_bytes if self._newest else 0)
        duration.cell().follow(self._duration_s)

    def _age_s(self) -> float:
        # Without a backup the age is that of the epoch: a number that every alert on "too old" takes for too old.
        return (self._clock.now_us() - (self._newest.started_us if self._newest else 0)) / 1_000_000

    def _duration_s(self) -> float:
        return (self._newest.finished_us - self._newest.started_us) / 1_000_000 if self._newest else 0.0


def _name(db: Database) -> str:
    return db.location.name or Path(db.location.path).name

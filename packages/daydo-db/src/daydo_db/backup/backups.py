"""The noun: backups of one database in one folder."""

from __future__ import annotations

import asyncio
import logging
import zlib
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from daydo_db.config import Seconds
from daydo_db.database import Database
from daydo_db.tx import SQLITE
from daydo_kernel import Clock, Config, Event, EventSink, Metrics, NoEvents, Part, SystemClock, to_the_end

from . import mysql, sqlite
from .errors import BackupFailed, RestoreFailed, RestoreRefused
from .folder import DATA_FILES, Backup, Folder, Journal, kept
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
        look_every_s: how often the folder is read for the metrics.
        drain_s: leaving waits this long for the last look.
    """

    keep_last: Annotated[int, Meta(ge=1, le=10_000)] = 7
    keep_days: Annotated[int, Meta(ge=0, le=3660)] = 14
    verify_url: str = ""
    timeout_s: Annotated[float, Meta(gt=0, le=604_800)] = 14_400.0
    look_every_s: Seconds = 60.0
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = 5.0


class Backups(Part):
    """Verified backups of ``db`` in ``folder``, which holds those of this one database.

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

        Nobody is locked out meanwhile. ``progress`` is called in another thread.

        Raises:
            BackupBusy: another backup is being made in this folder.
            BackupToolMissing: the server's own programs are not on PATH.
            BackupFailed: the rest: a program failed, the copy differs, no room, out of time. Nothing is kept.
            DbError: the database refused or went away.
        """
        self._require_started()
        work = Work(progress)
        try:
            async with asyncio.timeout(self.config.timeout_s):
                with self._folder.locked() as journal:
                    backup = await self._create(work, journal)
                    await self._prune()
        except TimeoutError:
            raise BackupFailed(reason=f"it was not done within timeout_s={self.config.timeout_s:g}") from None
        except _BROKEN as error:
            raise BackupFailed(reason=f"{self._folder.path}: {error}") from error
        self._newest = backup
        data = {"name": backup.name, "size_bytes": backup.size_bytes, "rows": sum(backup.tables.values())}
        await self._events.emit(Event(name="db.backed_up", data=data))
        return backup

    async def list(self) -> list[Backup]:
        """The good ones, oldest first.

        Raises:
            OSError: the folder cannot be read.
        """
        return await asyncio.to_thread(self._folder.backups)

    async def restore(self, name: str, into_url: str, *, force: bool = False, progress: Told | None = None) -> Backup:
        """Load the backup ``name`` into an empty database; ``force`` drops what is in it.

        On SQLite the target is replaced at once or not at all. MySQL has no such thing: a restore that is interrupted
        leaves a part, and the next one needs ``force``. Stop the service before.

        Raises:
            BackupUnknown, BackupDamaged: it is not there, or not what it was; the target has not been touched.
            RestoreRefused: the target is not empty, or another kind of database.
            RestoreFailed: it was begun and did not end well.
            BackupToolMissing, DbError: as :meth:`create`.
        """
        backup = await asyncio.to_thread(self._folder.find, name)
        target, work = Database(into_url, self._db.config), Work(progress)
        if target.dialect.name != backup.dialect:
            raise RestoreRefused(reason=f"the backup is of {backup.server}, the target is {target.location}")
        try:
            async with asyncio.timeout(self.config.timeout_s):
                await work.run(lambda: self._folder.check(backup))
                await self._restore(backup, target, work, force)
        except TimeoutError:
            raise RestoreFailed(reason=f"it was not done within timeout_s={self.config.timeout_s:g}") from None
        except BackupFailed as error:
            raise RestoreFailed(reason=error.reason) from error
        except _BROKEN as error:
            raise RestoreFailed(reason=f"{target.location}: {error}") from error
        return backup

    async def _create(self, work: Work, journal: Journal) -> Backup:
        dialect = self._db.dialect
        started_us = self._clock.now_us()
        with self._folder.unfinished(started_us) as (name, partial):
            path = partial / DATA_FILES[dialect.name]
            if dialect is SQLITE:
                source = self._sqlite_path(self._db)
                taken = await work.run(lambda: sqlite.take(source, path, work))
            else:
                taken = await mysql.take(self._db, self.config.verify_url, path, work, journal)
            backup = Backup(
                name=name,
                dialect=dialect.name,
                started_us=started_us,
                finished_us=self._clock.now_us(),
                file=path.name,
                **taken._asdict(),
            )
            await to_the_end(asyncio.to_thread(self._folder.publish, backup, partial))
        return backup

    async def _restore(self, backup: Backup, target: Database, work: Work, force: bool) -> None:
        path = self._folder.data(backup)
        if target.dialect is SQLITE:
            file = self._sqlite_path(target)
            await work.run(lambda: sqlite.restore(file, backup, path, work, force=force))
        else:
            async with target:
                await mysql.restore(target, backup, path, work, force=force)

    async def _prune(self) -> None:
        backups = await self.list()
        stays = kept((backup.started_us for backup in backups), last=self.config.keep_last, days=self.config.keep_days)
        for backup in backups:
            if backup.started_us not in stays:
                await to_the_end(asyncio.to_thread(self._folder.remove, backup))

    async def _start(self) -> None:
        await self._look()
        self._repeat(self.config.look_every_s, self._look, "look")

    async def _look(self) -> None:
        try:
            backups = await self.list()
        except OSError as error:  # what was seen last grows old, and the alert on its age comes
            log.warning("the backups in %s cannot be read: %s", self._folder.path, error)
            return
        self._newest = backups[-1] if backups else None

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

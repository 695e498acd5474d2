"""Live events: each stream reads the event table from its cursor and sleeps until there is more.

The table is the queue: a slow reader holds no memory here. A stream is woken by a commit of this process at
once, and by those of other processes through one poll for all streams (:meth:`Hub.watch_others`).
"""
# ruff: noqa: S608 - statements are composed of this file's own names; every value is a parameter

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

import msgspec

from daydo_db import Database, DbError
from daydo_db.paging import invalid_cursor

from .cells import Cells
from .config import RunsConfig
from .errors import Overloaded
from .values import Owner, RunEvent

log = logging.getLogger("daydo.pipeline")

_OWNERS_PER_QUERY = 100


class _Watch:
    """One open stream: where it stands, and the bell that wakes it."""

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.bell = asyncio.Event()


class Hub:
    """All open streams of this process."""

    def __init__(self, db: Database, config: RunsConfig, cells: Cells) -> None:
        self._db = db
        self._config = config
        self._watches: dict[Owner, set[_Watch]] = {}
        self._count = 0
        self._stopped = False
        cells.streams.follow(lambda: self._count)

    def notify(self, owner: Owner) -> None:
        """A transition of one of the owner's runs was committed."""
        for watch in self._watches.get(owner, ()):
            watch.bell.set()

    def start(self) -> None:
        self._stopped = False

    def stop(self) -> None:
        """End every stream, now and for good."""
        self._stopped = True
        for owner in self._watches:
            self.notify(owner)

    async def latest(self, owner: Owner) -> int:
        found = await self._db.query(
            "SELECT seq FROM daydo_pipeline_owner WHERE tenant = ? AND subject = ?", (owner.tenant, owner.subject)
        )
        return int(found.rows[0][0]) if found.rows else 0

    def require_room(self) -> None:
        """
        Raises:
            Overloaded: ``max_streams`` are open.
        """
        if self._count >= self._config.max_streams:
            raise Overloaded(what="max_streams")

    async def stream(self, owner: Owner, seq: int | None) -> AsyncGenerator[RunEvent, None]:
        """Everything after ``seq`` (None: after now), then whatever comes, until :meth:`stop`."""
        self.require_room()
        self._count += 1
        try:
            watch = _Watch(await self.latest(owner) if seq is None else seq)
            watches = self._watches.setdefault(owner, set())
            watches.add(watch)
            try:
                while not self._stopped:
                    watch.bell.clear()
                    events = await self._read(owner, watch.seq)
                    for seq, event in events:
                        watch.seq = seq
                        yield event
                        if self._stopped:
                            return
                    if len(events) < self._config.stream_batch and not self._stopped:
                        await watch.bell.wait()
            finally:
                watches.discard(watch)
                if not watches:
                    self._watches.pop(owner, None)
        finally:
            self._count -= 1

    async def watch_others(self) -> None:
        """Wake streams whose owner's counter has moved on without us: commits of other processes. Called often."""
        owners = [] if self._stopped else list(self._watches)
        for start in range(0, len(owners), _OWNERS_PER_QUERY):
            try:
                await self._wake(owners[start : start + _OWNERS_PER_QUERY])
            except DbError as error:
                log.warning("live events of other processes are late: %s", error)

    async def _wake(self, owners: list[Owner]) -> None:
        found = await self._db.query(
            "SELECT tenant, subject, seq FROM daydo_pipeline_owner WHERE "
            + " OR ".join(["(tenant = ? AND subject = ?)"] * len(owners)),
            [part for owner in owners for part in (owner.tenant, owner.subject)],
        )
        for tenant, subject, seq in found.rows:
            for watch in self._watches.get(Owner(tenant, subject), ()):
                if watch.seq < seq:
                    watch.bell.set()

    async def _read(self, owner: Owner, seq: int) -> list[tuple[int, RunEvent]]:
        found = await self._db.query(
            "SELECT seq, body FROM daydo_pipeline_event WHERE tenant = ? AND subject = ? AND seq > ? "
            f"ORDER BY seq LIMIT {self._config.stream_batch}",
            (owner.tenant, owner.subject, seq),
        )
        return [
            (seq, msgspec.structs.replace(msgspec.json.decode(body, type=RunEvent), cursor=str(seq)))
            for seq, body in found.rows
        ]


def read_cursor(cursor: str) -> int:
    """The number in a stream's cursor.

    It stays a plain number, other than the cursors of pages: it is the ``id`` of a server-sent event, which browsers
    send back as ``Last-Event-ID`` and people type (``0`` replays all); and it can say nothing of another owner, whose
    events are never looked at, so there is nothing for a signature to protect.

    Raises:
        CursorInvalid: there is none, or it is out of range.
    """
    if len(cursor) <= 18 and cursor.isascii() and cursor.isdigit():
        return int(cursor)
    raise invalid_cursor()

"""What tokens are no longer good for: known to every worker, asked without I/O.

A token is believed until it expires, so whatever takes something away from one (a logout, a role taken, a key revoked)
writes a row here in the transaction of the change. Every worker reads the rows of the others each
``revocation_poll_s``: that is the bound on how long a change takes to reach all of them. Redis pub/sub only makes it
faster, usually a few milliseconds; what it loses, the next look finds.

A transaction may commit a while after its statement's time, so each look reaches back over the last one by
``OVERLAP_S``. Rows are remembered for ``revocation_keep_s``, at most ``KNOWN_MAX`` of them; whoever acts on something
older than ``known_since_us`` has to ask the database.

While the database is away nothing can be taken away by others either; access tokens then live to their end, at most
``access_ttl_s``. While Redis is away the look alone tells.
"""

# ruff: noqa: S608 - what is put into statements is the dialect's time and functions and question marks, never a value

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from daydo_db import Database, DbError, Tx, now_sql
from daydo_kernel import Clock, Metrics
from daydo_redis import Redis, RedisError

from .config import AuthConfig

log = logging.getLogger("daydo.auth")

Kind = Literal["session", "subject", "roles", "key"]
Callback = Callable[[str, str, int], None]

OVERLAP_S = 15.0
KNOWN_MAX = 100_000
_OUTBOX_MAX = 1_000
_SWEEP_BATCH = 500
_NEVER_US = 2**62
_EARLIER = {"sqlite": "MIN", "mysql": "LEAST"}


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One row: ``name`` is a session, a subject, a role or a key, by ``kind``; 0 stands for no epoch."""

    id: int
    kind: str
    tenant: str
    name: str
    epoch: int
    at_us: int


_change_of = msgspec.json.Decoder(Change)


class Feed:
    """The revocations of the last ``revocation_keep_s``."""

    def __init__(
        self, db: Database, redis: Redis, config: AuthConfig, clock: Clock | None, host_clock: Clock, metrics: Metrics
    ) -> None:
        self._db = db
        self._redis = redis
        self._clock = clock
        self._host_clock = host_clock
        self._poll_s = config.revocation_poll_s
        self.keep_us = round(max(config.revocation_keep_s, config.access_ttl_s + config.clock_skew_s) * 1e6)
        self._channel = config.redis_prefix + "feed"
        self._callbacks: dict[str, list[Callback]] = {}
        self._clear()
        self._outbox: asyncio.Queue[Change] = asyncio.Queue(_OUTBOX_MAX)
        metrics.gauge(
            "revocations_known", "Changes that tokens still running may not know.", merge="max"
        ).cell().follow(lambda: len(self._changes))
        metrics.gauge(
            "revocation_lag_seconds", "Since revocations of other workers were read.", merge="max"
        ).cell().follow(lambda: self.lag_s)
        heard = metrics.counter("revocations_total", "Changes by how this worker learnt of them.", ("way",))
        self._heard = {way: heard.cell(way) for way in ("own", "pubsub", "look")}

    def _clear(self) -> None:
        self._changes: dict[int, Change] = {}
        self._ended: dict[str, int] = {}
        self._keys_ended: dict[str, int] = {}
        self._epochs: dict[tuple[str, str], int] = {}
        self._read_at_s: float | None = None
        self.known_since_us = 0
        self.read_until_us = 0

    # -- asked without I/O ---------------------------------------------------------------------------------------

    def session_ended(self, session_id: str) -> bool:
        """Whether a session has ended, as far as is known here and not longer ago than ``known_since_us``."""
        return session_id in self._ended

    def key_ended(self, key_id: str) -> bool:
        """Whether a key was revoked, as far as is known here and not longer ago than ``known_since_us``."""
        return key_id in self._keys_ended

    def subject_epoch(self, tenant: str, subject: str) -> int:
        """The newest epoch of a subject; 0 where it has not changed since ``known_since_us``."""
        return self._epochs.get((tenant, subject), 0)

    @property
    def lag_s(self) -> float:
        """Seconds since other workers' changes were read; 0 before the first time."""
        return 0.0 if self._read_at_s is None else time.monotonic() - self._read_at_s

    @property
    def is_stale(self) -> bool:
        return self.lag_s > 5 * self._poll_s + 1

    def on(self, kind: Kind, fn: Callback) -> None:
        """Call ``fn(tenant, name, epoch)`` for every change of ``kind``, once; it must be quick and not raise."""
        self._callbacks.setdefault(kind, []).append(fn)

    # -- written -------------------------------------------------------------------------------------------------

    async def write(self, tx: Tx, kind: Kind, tenant: str, name: str, epoch: int = 0) -> None:
        """Say with the transaction that something has changed; here it counts from the commit on."""
        written = await tx.execute(
            "INSERT INTO daydo_auth_revocation (kind, tenant, name, epoch, at_us) "
            f"VALUES (?, ?, ?, ?, {now_sql(self._db.dialect, self._clock)})",
            (kind, tenant, name, epoch),
        )
        change = Change(written.lastrowid, kind, tenant, name, epoch, self._host_clock.now_us())
        tx.after_commit(lambda: self._tell(change))

    def _tell(self, change: Change) -> None:
        self._learn(change, "own")
        with contextlib.suppress(asyncio.QueueFull):  # the others look for themselves
            self._outbox.put_nowait(change)

    # -- read ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Begin anew, in the running loop, with what is on record.

        Raises:
            DbError: the database is away.
        """
        self._clear()
        self._outbox = asyncio.Queue(_OUTBOX_MAX)
        await self.read()

    async def read(self) -> None:
        """Learn what others have written, and forget what is older than ``revocation_keep_s``.

        Raises:
            DbError: the database is away; nothing is forgotten or lost, the next look reaches back as far.
        """
        began_s = time.monotonic()
        window_us, since_us = self.keep_us, _NEVER_US
        if self._read_at_s is not None:
            # By both clocks: this host's stands still while it is suspended, the database's may be set back.
            window_us, since_us = min(window_us, round((self.lag_s + OVERLAP_S) * 1e6)), self.read_until_us
        now = now_sql(self._db.dialect, self._clock)
        found = await self._db.query(
            "SELECT id, kind, tenant, name, epoch, at_us FROM daydo_auth_revocation "
            f"WHERE at_us > {_EARLIER[self._db.dialect.name]}({now} - ?, ?) UNION ALL SELECT 0, '', '', '', 0, {now} "
            f"ORDER BY at_us DESC LIMIT {KNOWN_MAX}",
            (window_us, since_us),
        )
        changes = [Change(*row) for row in reversed(found.rows)]
        now_us = max(change.at_us for change in changes if not change.id)
        for change in changes:
            if change.id:
                self._learn(change, "look")
        self._read_at_s, self.read_until_us = began_s, now_us - round(OVERLAP_S * 1e6)
        self._forget(changes[0].at_us if len(changes) == KNOWN_MAX else now_us - self.keep_us)

    async def look(self) -> None:
        """One look in the background: a database that is away is worth a line, not a traceback."""
        try:
            await self.read()
        except DbError as error:
            log.warning("revocations of other workers cannot be read: %s", error)

    def _learn(self, change: Change, way: str) -> None:
        is_new = change.id not in self._changes
        self._changes[change.id] = change
        if not is_new:
            return
        self._heard[way].inc()
        if change.kind == "session":
            self._ended[change.name] = change.id
        elif change.kind == "key":
            self._keys_ended[change.name] = change.id
        elif change.kind == "subject":
            key = (change.tenant, change.name)
            self._epochs[key] = max(change.epoch, self._epochs.get(key, 0))
        for fn in self._callbacks.get(change.kind, ()):
            fn(change.tenant, change.name, change.epoch)

    def _forget(self, before_us: int) -> None:
        """Forget the oldest; what one still knows is complete from ``known_since_us`` on."""
        excess = len(self._changes) - KNOWN_MAX
        for change in sorted(self._changes.values(), key=lambda change: change.at_us)[: max(0, excess)]:
            before_us = max(before_us, change.at_us)
        for change in [change for change in self._changes.values() if change.at_us <= before_us]:
            del self._changes[change.id]
            if change.kind == "session" and self._ended.get(change.name) == change.id:
                del self._ended[change.name]
            elif change.kind == "key" and self._keys_ended.get(change.name) == change.id:
                del self._keys_ended[change.name]
            elif change.kind == "subject" and self._epochs.get((change.tenant, change.name)) == change.epoch:
                del self._epochs[change.tenant, change.name]
        self.known_since_us = max(self.known_since_us, before_us)

    # -- the fast path -------------------------------------------------------------------------------------------

    async def publish(self) -> None:
        """Pass on what this worker has committed, until cancelled. Redis away: the others look for themselves."""
        while True:
            change = await self._outbox.get()
            with contextlib.suppress(RedisError):
                await self._redis.publish(self._channel, msgspec.json.encode(change))

    async def listen(self) -> None:
        """Hear what others have committed, until cancelled; look at once where something may have been missed."""
        while True:
            with contextlib.suppress(RedisError):
                async with self._redis.subscribe(self._channel) as messages:
                    async for message in messages:
                        await self._hear(message.payload, missed=message.missed)
            await asyncio.sleep(self._poll_s)

    async def _hear(self, payload: bytes, *, missed: bool) -> None:
        if missed:
            await self.look()
            return
        try:
            self._learn(_change_of.decode(payload), "pubsub")
        except msgspec.DecodeError:
            log.warning("something that is no revocation was published on %s", self._channel)

    # -- swept ---------------------------------------------------------------------------------------------------

    async def sweep(self) -> int:
        """Remove rows that no worker reads any more, one batch; how many these were."""
        old = await self._db.query(
            "SELECT id FROM daydo_auth_revocation "
            f"WHERE at_us < {now_sql(self._db.dialect, self._clock)} - ? ORDER BY at_us LIMIT {_SWEEP_BATCH}",
            (2 * self.keep_us,),
        )
        if not old.rows:
            return 0
        ids = sorted(row[0] for row in old.rows)
        marks = ", ".join("?" * len(ids))
        return (await self._db.execute(f"DELETE FROM daydo_auth_revocation WHERE id IN ({marks})", ids)).rowcount

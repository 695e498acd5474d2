"""Reads that replicas may answer: which of them, and when none of them.

How far a replica has come is measured, not asked for: every ``replica_beat_s`` this process writes the primary's time
into a row of the primary and looks which time the replicas show. A replica that shows 12:00:00 has all that was
committed before 12:00:00. Only the primary's clock takes part and no privilege is needed, unlike
``Seconds_Behind_Source``, which besides reads 0 while a replica waits for a primary it has lost. (It rests on replicas
that commit in the primary's order, as they do unless ``replica_preserve_commit_order`` was switched off.)

A replica is *fresh* while what it is known to have is at most ``replica_lag_s`` old. Whoever has written reads their
own writes: the reads of the same request (where an edge made a request context, else of the same task) go only to a
replica that is known to have them, else to the primary.

While the primary does not answer, nothing can be measured: the replicas that were fresh stay in use, and reads that
may be a moment old go on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from daydo_kernel import Gauge, Metrics, get_context

from .config import DatabaseConfig
from .connection import Connection
from .errors import ConnectionLost, DbError, PoolTimeout, StatementFailed
from .pool import Pool
from .tx import MYSQL, compile_statement

log = logging.getLogger("daydo.db")

_BEAT = compile_statement(
    "mysql",
    f"UPDATE daydo_db_heartbeat SET at_us = {MYSQL.now_us} WHERE id = 1 AND at_us < {MYSQL.now_us} - ?",  # noqa: S608
)
_NOW = compile_statement("mysql", f"SELECT {MYSQL.now_us}")
_SHOWN = compile_statement("mysql", "SELECT at_us FROM daydo_db_heartbeat WHERE id = 1")

_ROUTES = ("replica", "own_writes", "none_fresh", "failed_over")


class Replica:
    """One server that follows the primary.

    ``has_until_s``: everything committed before that has reached it, on the monotonic clock.
    """

    def __init__(self, name: str, pool: Pool, lag_s: Gauge) -> None:
        self.name = name
        self.pool = pool
        self.answers = False
        self.has_until_s = -math.inf
        self._lag_s = lag_s

    def seen(self, now_s: float, has_until_s: float) -> None:
        if not self.answers:
            log.info("replica %s answers", self.name)
        self.answers = True
        self.has_until_s = has_until_s
        self._lag_s.set(max(0.0, now_s - has_until_s))

    def lost(self, error: Exception) -> None:
        if self.answers:
            log.warning("replica %s is left out: %s", self.name, type(error).__name__)
        self.answers = False


class Replicas:
    """The replicas of one primary; there may be none. ``primary`` is a pool for the heartbeat alone."""

    def __init__(self, primary: Pool, pools: dict[str, Pool], config: DatabaseConfig, metrics: Metrics) -> None:
        lag = metrics.gauge("replica_lag_seconds", "How far a replica was last seen behind.", ("replica",), merge="max")
        reads = metrics.counter("replica_reads_total", "Reads that a replica may answer, by who did.", ("route",))
        fresh = metrics.gauge("replicas_fresh", "Replicas close enough behind to be used.", merge="max")
        self._routes = {route: reads.cell(route) for route in _ROUTES}
        self._primary = primary
        self._config = config
        self._all = [Replica(name, pool, lag.cell(name)) for name, pool in pools.items()]
        self._turn = 0
        self._primary_answers = True
        self._last_fresh: set[str] = set()
        self._written_s: WeakKeyDictionary[object, float] = WeakKeyDictionary()
        fresh.cell().follow(lambda: float(len(self._all) - len(self.stale)))

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def stale(self) -> Sequence[str]:
        """Those left out at the moment."""
        return [replica.name for replica in self._all if not self._is_fresh(replica)]

    def choose(self) -> Replica | None:
        """A replica for the next read of this request; None: the primary."""
        if not self._all:
            return None
        fresh = [replica for replica in self._all if self._is_fresh(replica)]
        written_s = self._written_s.get(_scope(), -math.inf)
        fit = [replica for replica in fresh if replica.has_until_s > written_s]
        if not fit:
            self._routes["own_writes" if fresh else "none_fresh"].inc()
            return None
        self._turn = (self._turn + 1) % len(fit)
        self._routes["replica"].inc()
        return fit[self._turn]

    def failed(self, replica: Replica, error: DbError) -> None:
        """It did not answer, or not what the primary will: the primary is asked instead."""
        self._routes["failed_over"].inc()
        if isinstance(error, ConnectionLost | PoolTimeout):
            replica.lost(error)

    def wrote(self) -> None:
        """This request has changed something, or may have."""
        if self._all:
            self._written_s[_scope()] = time.monotonic()

    async def beat(self) -> None:
        """Move the heartbeat on, and see how far each replica has come."""
        fresh = {replica.name for replica in self._all} - {*self.stale}
        try:
            async with asyncio.timeout(self._config.replica_beat_s), self._primary.connection() as connection:
                now_s = time.monotonic()  # Before it is asked: what we conclude is then never too good.
                now_us = int((await connection.execute(_NOW)).rows[0][0])
        except (DbError, TimeoutError) as error:
            if self._primary_answers:
                log.warning("the primary does not answer (%s); fresh replicas stay in use", type(error).__name__)
                self._last_fresh = fresh
            self._primary_answers = False
            return
        self._primary_answers = True
        await self._move()
        await asyncio.gather(*(self._measure(replica, now_s, now_us) for replica in self._all))

    async def _move(self) -> None:
        # Half a beat: with several processes one of them moves it for all.
        age_us = round(self._config.replica_beat_s * 500_000)
        try:
            async with self._primary.connection() as connection:
                await connection.execute(_BEAT, (age_us,))
        except DbError as error:
            log.warning("the heartbeat could not be moved (%s); replicas look older than they are", error)

    async def _measure(self, replica: Replica, now_s: float, now_us: int) -> None:
        try:
            async with asyncio.timeout(self._config.replica_lag_s), replica.pool.connection() as connection:
                [(shown_us,)] = (await connection.execute(_SHOWN)).rows
        except (DbError, TimeoutError, ValueError) as error:  # ValueError: the row has not arrived yet
            replica.lost(error)
            return
        replica.seen(time.monotonic(), now_s - (now_us - shown_us) / 1e6)

    def _is_fresh(self, replica: Replica) -> bool:
        if not replica.answers:
            return False
        if not self._primary_answers:
            return replica.name in self._last_fresh
        return time.monotonic() - replica.has_until_s <= self._config.replica_lag_s


async def heart_beats(connection: Connection) -> bool:
    """Whether the primary has the row that measures lag."""
    try:
        return bool((await connection.execute(_SHOWN)).rows)
    except StatementFailed:
        return False


def _scope() -> object:
    return get_context() or asyncio.current_task()

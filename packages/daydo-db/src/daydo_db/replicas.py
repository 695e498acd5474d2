"""Reads that replicas may answer: which of them, and when none of them.

A replica is *fresh* while it is at most ``replica_lag_s`` behind. That is measured, not asked for: every
``replica_beat_s`` this process writes the primary's time into a row of the primary and looks which time the replicas
show. Only one clock takes part and no privilege is needed, unlike ``Seconds_Behind_Source``, which besides reads 0
while a replica waits for a primary it has lost.

Whoever has written reads their own writes: until every fresh replica must have them, the reads of the same request
(where an edge made a request context, else of the same task) go to the primary.

When the primary does not answer, nothing can be measured: the replicas stay as they were last seen. They miss nothing
that was committed before they were fresh, and reads that may be a moment old go on while the primary is away.
"""

from __future__ import annotations

import asyncio
import logging
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
    """One server that follows the primary."""

    def __init__(self, name: str, pool: Pool, lag_s: Gauge) -> None:
        self.name = name
        self.pool = pool
        self.fresh = False
        self._lag_s = lag_s

    def seen(self, lag_s: float, fresh: bool) -> None:
        self._lag_s.set(lag_s)
        if fresh != self.fresh:
            log.warning("replica %s is %s, %.1f s behind", self.name, "used again" if fresh else "left out", lag_s)
        self.fresh = fresh

    def lost(self, error: Exception) -> None:
        if self.fresh:
            log.warning("replica %s is left out: %s", self.name, type(error).__name__)
        self.fresh = False


class Replicas:
    """The replicas of one primary; there may be none."""

    def __init__(self, primary: Pool, pools: dict[str, Pool], config: DatabaseConfig, metrics: Metrics) -> None:
        lag = metrics.gauge("replica_lag_seconds", "How far a replica was last seen behind.", ("replica",), merge="max")
        reads = metrics.counter("replica_reads_total", "Reads that a replica may answer, by who did.", ("route",))
        fresh = metrics.gauge("replicas_fresh", "Replicas close enough behind to be used.", merge="max")
        self._routes = {route: reads.cell(route) for route in _ROUTES}
        self._primary = primary
        self._config = config
        self._all = [Replica(name, pool, lag.cell(name)) for name, pool in pools.items()]
        self._turn = 0
        self._written_s: WeakKeyDictionary[object, float] = WeakKeyDictionary()
        fresh.cell().follow(lambda: float(len(self._fresh)))

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def names(self) -> Sequence[str]:
        return [replica.name for replica in self._all]

    @property
    def stale(self) -> Sequence[str]:
        """Those left out at the moment."""
        return [replica.name for replica in self._all if not replica.fresh]

    @property
    def _fresh(self) -> list[Replica]:
        return [replica for replica in self._all if replica.fresh]

    def choose(self) -> Replica | None:
        """A replica for the next read of this request; None: the primary."""
        if not self._all:
            return None
        if self._has_written():
            self._routes["own_writes"].inc()
            return None
        fresh = self._fresh
        if not fresh:
            self._routes["none_fresh"].inc()
            return None
        self._turn = (self._turn + 1) % len(fresh)
        self._routes["replica"].inc()
        return fresh[self._turn]

    def failed(self, replica: Replica, error: DbError) -> None:
        """It did not answer, or not what the primary will: the primary is asked instead."""
        self._routes["failed_over"].inc()
        if isinstance(error, ConnectionLost | PoolTimeout):
            replica.lost(error)

    def wrote(self) -> None:
        """This request has changed something, or may have."""
        if self._all:
            self._written_s[_scope()] = asyncio.get_running_loop().time()

    async def beat(self) -> None:
        """Move the heartbeat on, and see how far each replica has come."""
        # Half a beat: with several processes one of them moves it for all.
        age_us = round(self._config.replica_beat_s * 500_000)
        try:
            async with self._primary.connection() as connection:
                await connection.execute(_BEAT, (age_us,))
                now_us = int((await connection.execute(_NOW)).rows[0][0])
        except DbError as error:
            log.warning("the primary's heartbeat could not be moved (%s); replicas stay as they were", error)
            return
        at_s = asyncio.get_running_loop().time()
        await asyncio.gather(*(self._measure(replica, now_us, at_s) for replica in self._all))

    async def _measure(self, replica: Replica, now_us: int, at_s: float) -> None:
        bound_s = self._config.replica_lag_s
        try:
            async with asyncio.timeout(bound_s), replica.pool.connection() as connection:
                [(shown_us,)] = (await connection.execute(_SHOWN)).rows
        except (DbError, TimeoutError, ValueError) as error:  # ValueError: the row has not arrived yet
            replica.lost(error)
            return
        passed_s = asyncio.get_running_loop().time() - at_s
        lag_s = max(0.0, (now_us - shown_us) / 1e6 + passed_s)
        replica.seen(lag_s, lag_s <= bound_s)

    def _has_written(self) -> bool:
        written_s = self._written_s.get(_scope())
        if written_s is None:
            return False
        # A fresh replica was at most replica_lag_s behind when it was last measured.
        until_s = written_s + self._config.replica_lag_s + 2 * self._config.replica_beat_s
        return asyncio.get_running_loop().time() < until_s


async def heart_beats(connection: Connection) -> bool:
    """Whether the primary has the row that measures lag."""
    try:
        return bool((await connection.execute(_SHOWN)).rows)
    except StatementFailed:
        return False


def _scope() -> object:
    return get_context() or asyncio.current_task()

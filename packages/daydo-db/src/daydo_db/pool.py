"""A small connection pool.

Connections are lent last in, first out, so that the surplus of a busy minute grows old at the bottom and is
closed. Who finds none waits in line, and where there is room a connection is brought for them in the
background: an idle one that must be pinged first, else a new one. Whatever comes first serves: one that is
given back goes to the first in line, and what was brought for somebody served meanwhile goes to the next. So a
slow or hung connect costs one place of ``size`` for ``connect_timeout_s`` and nobody else any time. Giving back
is synchronous, hence no cancellation can lose a connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from .config import DatabaseConfig
from .connection import Connection
from .errors import ConnectionLost, PoolTimeout

log = logging.getLogger("daydo.db")


class _Idle(NamedTuple):
    connection: Connection
    since_s: float


_Waiter = asyncio.Future[Connection]


class _Loan:
    """``async with``: a connection for the block."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def __aenter__(self) -> Connection:
        self._connection = await self._pool.acquire()
        return self._connection

    async def __aexit__(self, *exc_info: object) -> None:
        self._pool.release(self._connection)


class Pool:
    """At most ``size`` connections made by ``connect``: lent, idle and being brought together.

    ``keep`` are kept open, and opened ahead, while they are young; more of them for ``pool_idle_s``.
    ``observe_wait`` is told the seconds each acquisition took.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        config: DatabaseConfig,
        *,
        size: int,
        keep: int,
        observe_wait: Callable[[float], None],
    ) -> None:
        self._connect = connect
        self._config = config
        self._keep = min(keep, size)
        self._observe_wait = observe_wait
        self._waiters: dict[_Waiter, bool] = {}  # In order; whether something is being brought for them.
        self._idle: deque[_Idle] = deque()
        self._busy: set[Connection] = set()
        self._coming: dict[asyncio.Task[None] | None, Connection | None] = {}  # And what each of them pings.
        self._closing: set[asyncio.Task[None]] = set()
        self._emptied: asyncio.Future[None] | None = None
        self.size = size

    @property
    def in_use(self) -> int:
        return len(self._busy)

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def open(self) -> int:
        """Lent, idle and being brought."""
        return len(self._busy) + len(self._idle) + len(self._coming)

    def connection(self) -> _Loan:
        return _Loan(self)

    async def acquire(self) -> Connection:
        """A usable connection, until :meth:`release`.

        Raises:
            PoolTimeout: all were in use for ``acquire_timeout_s``.
            ConnectionLost: a new one was needed and could not be made within ``connect_timeout_s`` or
                ``acquire_timeout_s``, or the pool was closed meanwhile.
        """
        if (connection := self._ready()) is not None:  # Then nobody waits: they would have it.
            self._busy.add(connection)
            self._observe_wait(0.0)
            return connection
        started_s = _now_s()
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = False
        self._supply()
        try:
            async with asyncio.timeout(self._config.acquire_timeout_s):
                connection = await waiter
        except BaseException as error:
            supplied = self._give_up(waiter)
            if not isinstance(error, TimeoutError):
                raise
            if supplied:  # There was room; it is the server that does not answer.
                raise ConnectionLost() from None
            raise PoolTimeout(waited_s=self._config.acquire_timeout_s, size=self.size) from None
        if connection not in self._busy:  # Closed in the tick in which it was handed to us.
            raise ConnectionLost()
        self._observe_wait(_now_s() - started_s)
        return connection

    def release(self, connection: Connection) -> None:
        """Give it back. One that is broken, old or still inside a transaction is closed."""
        if connection not in self._busy:
            return  # The pool was closed around its user.
        self._busy.discard(connection)
        if self.is_fit(connection) and not connection.in_transaction:
            self._hand_over(connection)
        else:
            self._discard(connection)
            self._supply()
        self._tell_if_empty()

    def is_fit(self, connection: Connection) -> bool:
        """Whether one that is lent can go on being used."""
        return connection.usable and not self._is_old(connection)

    def trim(self) -> None:
        """Close what has been idle too long or lives too long, open ahead what is missing; called now and then."""
        now_s = _now_s()
        kept: deque[_Idle] = deque()
        surplus = len(self._idle) - self._keep
        for idle in self._idle:
            unneeded = surplus > 0 and now_s - idle.since_s > self._config.pool_idle_s
            if unneeded or not self.is_fit(idle.connection):
                self._discard(idle.connection)
                surplus -= 1
            else:
                kept.append(idle)
        self._idle = kept
        self._open_ahead()

    async def drained(self) -> None:
        """Return once every connection has been given back."""
        if self.in_use:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    async def close(self) -> None:
        """Close every connection, also those whose users did not leave in time: they get ``ConnectionLost``.

        So do those who wait for one. Who asks afterwards opens the pool again.
        """
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(ConnectionLost())
        self._waiters.clear()
        self._discard_idle()
        for connection in self._busy:
            self._discard(connection)
        self._busy.clear()
        self._tell_if_empty()
        coming, self._coming = self._coming, {}
        for task, pinged in coming.items():
            if pinged is not None:
                self._discard(pinged)
            if task is not None:
                task.cancel()
        while pending := self._closing | {task for task in coming if task is not None and not task.done()}:
            await asyncio.wait(pending)

    def _ready(self) -> Connection | None:
        """An idle connection that needs no ping."""
        while self._idle:
            connection, since_s = self._idle[-1]
            fit = self.is_fit(connection)
            if fit and not self._is_stale(since_s):
                return self._idle.pop().connection
            if fit:
                return None
            self._discard(self._idle.pop().connection)
        return None

    def _supply(self) -> None:
        """Bring one connection for each who waits, as long as there is room."""
        for waiter, supplied in self._waiters.items():
            if not self._idle and self.open >= self.size:
                return
            if not supplied and not waiter.done():
                self._waiters[waiter] = True
                self._bring(waiter)

    def _open_ahead(self) -> None:
        if self.open < self._keep and not self._coming:  # One by one: no crowd at the server's door.
            self._bring(None)

    def _bring(self, waiter: _Waiter | None) -> None:
        idle = self._idle.pop() if self._idle and waiter is not None else None
        task = asyncio.get_running_loop().create_task(self._bring_now(idle, waiter))
        self._coming[task] = idle.connection if idle is not None else None

    async def _bring_now(self, idle: _Idle | None, waiter: _Waiter | None) -> None:
        task = asyncio.current_task()
        try:
            connection = await self._reuse_or_connect(idle)
        except Exception as error:
            if task in self._coming:
                del self._coming[task]
                self._refuse(waiter, ConnectionLost() if isinstance(error, TimeoutError) else error)
            return
        if task not in self._coming:
            self._discard(connection)  # The pool was closed meanwhile.
            return
        del self._coming[task]
        self._hand_over(connection, waiter)
        if waiter is None:
            self._open_ahead()

    async def _reuse_or_connect(self, idle: _Idle | None) -> Connection:
        if idle is not None:
            if await self._is_fit(idle):
                return idle.connection
            self._coming[asyncio.current_task()] = None
            self._discard(idle.connection)
        async with asyncio.timeout(self._config.connect_timeout_s):
            return await self._connect()

    async def _is_fit(self, idle: _Idle) -> bool:
        if not self.is_fit(idle.connection):
            return False
        if not self._is_stale(idle.since_s) or await idle.connection.ping():
            return True
        self._discard_idle()  # Most likely they went with it, and would cost a ping each.
        return False

    def _refuse(self, waiter: _Waiter | None, error: Exception) -> None:
        if waiter is not None and waiter in self._waiters and not waiter.done():
            del self._waiters[waiter]
            waiter.set_exception(error)
        else:
            log.debug("a connection that nobody waits for could not be made: %s", error)
        self._supply()

    def _hand_over(self, connection: Connection, wished: _Waiter | None = None) -> None:
        """To whom it was brought for, else to the first in line, else to the idle ones."""
        if wished is None or wished not in self._waiters or wished.done():
            wished = next((waiter for waiter in self._waiters if not waiter.done()), None)
        if wished is None:
            self._idle.append(_Idle(connection, _now_s()))
            return
        del self._waiters[wished]
        self._busy.add(connection)
        wished.set_result(connection)

    def _give_up(self, waiter: _Waiter) -> bool:
        """Leave the line; whether a connection is still being brought."""
        if waiter in self._waiters:
            return self._waiters.pop(waiter)
        if not waiter.cancelled() and waiter.exception() is None:
            self.release(waiter.result())  # It was handed to us in the same tick in which we gave up.
        return False

    def _tell_if_empty(self) -> None:
        if self._emptied is not None and not self._busy and not self._emptied.done():
            self._emptied.set_result(None)

    def _is_old(self, connection: Connection) -> bool:
        return _now_s() - connection.born_s > self._config.pool_lifetime_s

    def _is_stale(self, since_s: float) -> bool:
        return _now_s() - since_s > self._config.pool_ping_s

    def _discard_idle(self) -> None:
        while self._idle:
            self._discard(self._idle.pop().connection)

    def _discard(self, connection: Connection) -> None:
        closing = asyncio.get_running_loop().create_task(connection.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def _now_s() -> float:
    return asyncio.get_running_loop().time()

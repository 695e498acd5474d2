"""A small connection pool.

A slot is a right to hold one connection. Slots are handed out in order of asking, connections last in, first
out, so that the surplus of a busy minute grows old at the bottom and is closed. Nothing here holds a lock
while it connects: a slow or hung connect costs its own slot only. Giving back is synchronous, hence no
cancellation can lose a slot.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from daydo_kernel import to_the_end

from .config import DatabaseConfig
from .connection import Connection
from .errors import ConnectionLost, PoolTimeout


class _Idle(NamedTuple):
    connection: Connection
    since_s: float


class Pool:
    """At most ``size`` connections made by ``connect``.

    ``keep`` idle ones are kept while they are young, others for ``pool_idle_s``; ``observe_wait`` is told the
    seconds each acquisition took.
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
        self._keep = keep
        self._observe_wait = observe_wait
        self._free = size
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._idle: deque[_Idle] = deque()
        self._busy: set[Connection] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._emptied: asyncio.Future[None] | None = None
        self._closed = 0  # How often: who asked before a close is refused also when the pool is in use again.
        self.size = size

    @property
    def in_use(self) -> int:
        return self.size - self._free

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        connection = await self.acquire()
        try:
            yield connection
        finally:
            self.release(connection)

    async def acquire(self) -> Connection:
        """A usable connection, until :meth:`release`.

        Raises:
            PoolTimeout: none became free within ``acquire_timeout_s``.
            ConnectionLost: a new one was needed and could not be made within ``connect_timeout_s``, or the pool
                was closed meanwhile.
        """
        started_s = _now_s()
        try:
            async with asyncio.timeout(self._config.acquire_timeout_s + self._config.connect_timeout_s):
                connection = await self._slot_and_connection()
        except TimeoutError:
            raise ConnectionLost() from None
        self._busy.add(connection)
        self._observe_wait(_now_s() - started_s)
        return connection

    def release(self, connection: Connection) -> None:
        """Give it back. One that is broken, old or still inside a transaction is closed."""
        now_s = _now_s()
        if connection not in self._busy:
            pass  # The pool was closed around its user.
        elif connection.usable and not connection.in_transaction and not self._is_old(connection, now_s):
            self._idle.append(_Idle(connection, now_s))
        else:
            self._discard(connection)
        self._busy.discard(connection)
        self._return_slot()

    def trim(self) -> None:
        """Close what has been idle too long or lives too long; called now and then."""
        now_s = _now_s()
        kept: deque[_Idle] = deque()
        surplus = len(self._idle) - self._keep
        for idle in self._idle:
            unneeded = surplus > 0 and now_s - idle.since_s > self._config.pool_idle_s
            if unneeded or self._is_old(idle.connection, now_s):
                self._discard(idle.connection)
                surplus -= 1
            else:
                kept.append(idle)
        self._idle = kept

    async def drained(self) -> None:
        """Return once every connection has been given back."""
        if self.in_use:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    async def close(self) -> None:
        """Close every connection, also those whose users did not leave in time: they get ``ConnectionLost``.

        So do those who wait for one. Who asks afterwards opens the pool again.
        """
        self._closed += 1
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(ConnectionLost())
        self._discard_idle()
        for connection in self._busy:
            self._discard(connection)
        self._busy.clear()
        while self._closing:
            await asyncio.wait(self._closing)

    async def _slot_and_connection(self) -> Connection:
        closed = self._closed
        await self._take_slot()
        try:
            if self._closed != closed:
                raise ConnectionLost()
            connection = await self._reuse() or await self._connect()
            if self._closed != closed:
                await to_the_end(connection.close())
                raise ConnectionLost()
        except BaseException:
            self._return_slot()
            raise
        return connection

    async def _take_slot(self) -> None:
        if self._free:
            self._free -= 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._config.acquire_timeout_s):
                await waiter
        except BaseException as error:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._return_slot()  # It was handed to us in the same tick in which we gave up.
            if isinstance(error, TimeoutError):
                raise PoolTimeout(waited_s=self._config.acquire_timeout_s, size=self.size) from None
            raise

    def _return_slot(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1
        if self._emptied is not None and not self.in_use and not self._emptied.done():
            self._emptied.set_result(None)

    async def _reuse(self) -> Connection | None:
        while self._idle:
            connection, since_s = self._idle.pop()
            now_s = _now_s()
            if not connection.usable or self._is_old(connection, now_s):
                self._discard(connection)
            elif now_s - since_s <= self._config.pool_ping_s or await self._answers(connection):
                return connection
        return None

    async def _answers(self, connection: Connection) -> bool:
        try:
            if await connection.ping():
                return True
        except BaseException:
            self._discard(connection)
            raise
        self._discard(connection)
        self._discard_idle()  # Most likely they went with it, and would cost a ping each.
        return False

    def _is_old(self, connection: Connection, now_s: float) -> bool:
        return now_s - connection.born_s > self._config.pool_lifetime_s

    def _discard_idle(self) -> None:
        while self._idle:
            self._discard(self._idle.pop().connection)

    def _discard(self, connection: Connection) -> None:
        closing = asyncio.get_running_loop().create_task(connection.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def _now_s() -> float:
    return asyncio.get_running_loop().time()

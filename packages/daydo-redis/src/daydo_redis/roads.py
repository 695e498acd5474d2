"""Ways to a server: where connections come from, and where they go after use.

All connections carry one call, or one batch, at a time; how many there are at once is the caller's business. One
that failed in any way is closed, so that no answer is ever read by the wrong caller.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import redis
import redis.exceptions as driver
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection

from .call import Call
from .wire import is_stale, transport_of

Make = Callable[[], AbstractConnection]


class Road(Protocol):
    """What :class:`daydo_redis.calls.Calls` needs to know of a server, or of several."""

    several: bool  # servers; with one, every call has the same place

    async def ready(self) -> None:
        """Wait until :meth:`place` knows its way; raises like :meth:`take`."""

    def place(self, call: Call) -> str | None:
        """The server for ``call``; None if there is one only, or no telling yet."""

    async def take(self, place: str | None) -> AbstractConnection:
        """A connection for one use, connected. Raises ``driver.RedisError`` or ``OSError``: nothing was sent."""

    async def give(self, place: str | None, connection: AbstractConnection) -> None:
        """Back after use, everything asked having been answered."""

    async def spoil(self, connection: AbstractConnection) -> None:
        """Back after a failure."""

    def redirect(self, call: Call, answer: Exception) -> None:
        """The server did not carry ``call`` out, and may have said where to go instead."""

    async def look_again(self, place: str | None = None) -> None:
        """What was known of ``place`` (None: of all) may hold no more."""

    def spare(self) -> AbstractConnection:
        """A new connection, not yet connected, that is the caller's to keep and to close."""

    async def aclose(self) -> None:
        """Close what was opened here."""


class OwnRoad:
    """To one server, over connections of our own; ``make`` makes one, and finds the server when it connects."""

    several = False

    def __init__(self, make: Make) -> None:
        self.spare = make
        self._idle: list[AbstractConnection] = []
        self._closed = False

    async def ready(self) -> None:
        return

    def place(self, call: Call) -> str | None:
        return None

    async def take(self, place: str | None) -> AbstractConnection:
        while self._idle:
            connection = self._idle.pop()
            if not is_stale(connection):
                return connection
            await hang_up([connection])
        return await connected(self.spare())

    async def give(self, place: str | None, connection: AbstractConnection) -> None:
        if self._closed:
            await hang_up([connection])
        else:
            self._idle.append(connection)

    async def spoil(self, connection: AbstractConnection) -> None:
        await hang_up([connection])

    def redirect(self, call: Call, answer: Exception) -> None:
        return

    async def look_again(self, place: str | None = None) -> None:
        idle, self._idle = self._idle, []
        await hang_up(idle)

    async def aclose(self) -> None:
        self._closed = True
        await self.look_again()


class MemoryRoad(OwnRoad):
    """To fakeredis in this process."""

    async def take(self, place: str | None) -> AbstractConnection:
        # fakeredis answers without ever giving way: a loop of calls would starve everything else.
        await asyncio.sleep(0)
        return await super().take(place)


class BorrowedRoad:
    """Over the pool of a client that is not ours."""

    several = False

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        before_5_3 = tuple(int(part) for part in redis.__version__.split(".")[:2]) < (5, 3)
        # A name that meant nothing had to be passed then, and may not be passed any more.
        self._take: Callable[..., Awaitable[Any]] = pool.get_connection
        self._words = ("_",) if before_5_3 else ()

    async def ready(self) -> None:
        return

    def place(self, call: Call) -> str | None:
        return None

    async def take(self, place: str | None) -> AbstractConnection:
        connection: AbstractConnection = await self._take(*self._words)
        return connection

    async def give(self, place: str | None, connection: AbstractConnection) -> None:
        await self._pool.release(connection)

    async def spoil(self, connection: AbstractConnection) -> None:
        await hang_up([connection])
        await self._pool.release(connection)

    def redirect(self, call: Call, answer: Exception) -> None:
        return

    async def look_again(self, place: str | None = None) -> None:
        with contextlib.suppress(driver.RedisError, OSError):
            await self._pool.disconnect(inuse_connections=False)

    def spare(self) -> AbstractConnection:
        make: Make = self._pool.make_connection
        return make()

    async def aclose(self) -> None:
        return


async def connected(connection: AbstractConnection) -> AbstractConnection:
    """``connection``, connected, logged in and on its database; or closed and an exception."""
    connect: Callable[[], Awaitable[None]] = connection.connect
    try:
        await connect()
    except BaseException:
        await hang_up([connection])
        raise
    return connection


async def hang_up(connections: Iterable[AbstractConnection]) -> None:
    """Close without waiting: a frozen server does not say goodbye, for which TLS would wait."""
    for connection in connections:
        if (transport := transport_of(connection)) is not None:
            transport.abort()
        with contextlib.suppress(driver.RedisError, OSError):
            await connection.disconnect(nowait=True)

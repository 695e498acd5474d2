"""Values asked for in one turn of the event loop travel as one MGET.

One command instead of many spares the server and both ends of the wire. With company, a task of its own reads for all,
so that who gives up takes nobody along. A value asked for alone goes out as a GET in its own caller, and at once if the
last one was alone as well and has been answered. Somebody else's key of another type reads as nothing, as does a key
that is not there.

A cluster answers an MGET only for keys of one slot. The first one it refuses tells us, and from then on every key is
asked for by itself; :class:`daydo_redis.Redis` still makes one packet of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from daydo_redis import Redis, RedisCommandFailed, RedisUnavailable

Waiters = dict[str, list[asyncio.Future[bytes | None]]]


class Reader:
    """``spawn`` runs a task of the noun. Every call raises :class:`daydo_redis.RedisError` when Redis is away."""

    def __init__(self, redis: Redis, merge_max: int, spawn: Callable[[Coroutine[Any, Any, None], str], object]) -> None:
        self._redis = redis
        self._merge_max = merge_max
        self._spawn = spawn
        self._forming: Waiters | None = None
        self._several = False
        self._crowded = False
        self._alone = 0

    def read(self, key: str) -> Awaitable[bytes | None]:
        """The value of ``key``, when awaited; do that at once. (No coroutine: many are read, and each would be one.)"""
        forming = self._forming
        if forming is None:
            return self._lead(key) if self._crowded or self._alone else self._read_alone(key)
        future = self._make_waiter()
        waiters = forming.get(key)
        if waiters is not None:
            waiters.append(future)
            return future
        forming[key] = [future]
        if len(forming) >= self._merge_max:
            self._forming = None  # full; its leader takes it along when its turn comes
        return future

    async def read_many(self, keys: list[str]) -> list[bytes | None]:
        """The values of ``keys``, in their order."""
        parts = [keys[start : start + self._merge_max] for start in range(0, len(keys), self._merge_max)]
        answers = await asyncio.gather(*map(self._mget, parts))
        return [value for answer in answers for value in answer]

    async def _lead(self, key: str) -> bytes | None:
        forming: Waiters = {}
        self._forming = forming
        self._make_waiter = asyncio.get_running_loop().create_future
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._depart(forming)
            raise
        self._crowded = bool(forming)
        if not forming:
            self._forming = None
            return await self._read_alone(key)
        future = self._make_waiter()
        forming.setdefault(key, []).append(future)
        self._depart(forming)
        value: bytes | None = await future
        return value

    async def _read_alone(self, key: str) -> bytes | None:
        self._alone += 1
        try:
            return await self._redis.get(key)
        finally:
            self._alone -= 1

    def _depart(self, forming: Waiters) -> None:
        if self._forming is forming:
            self._forming = None
        if forming:
            self._spawn(self._answer(forming), "read")

    async def _answer(self, forming: Waiters) -> None:
        try:
            values = await self._mget(list(forming))
        except Exception as error:
            for future in _waiting(forming):
                future.set_exception(error)
        else:
            for waiters, value in zip(forming.values(), values, strict=True):
                for future in waiters:
                    if not future.done():
                        future.set_result(value)
        finally:
            # Cancelled: nobody may wait for ever for a task that is gone.
            for future in _waiting(forming):
                future.set_exception(RedisUnavailable(reason="connection lost"))

    async def _mget(self, keys: list[str]) -> list[bytes | None]:
        if not self._several:
            try:
                answer: list[bytes | None] = await self._redis.call("MGET", *keys)
            except RedisCommandFailed:
                self._several = True
            else:
                return answer
        return list(await asyncio.gather(*map(self._redis.get, keys)))


def _waiting(forming: Waiters) -> list[asyncio.Future[bytes | None]]:
    return [future for waiters in forming.values() for future in waiters if not future.done()]

"""Values asked for in one turn of the event loop travel as one MGET.

One command instead of many spares the server and both ends of the wire. A task of its own reads for all, so that who
gives up takes nobody along. That costs a turn of the loop; so where nothing else is being read, and the last one had no
company either, a read goes out at once, as a GET in its own caller. Somebody else's key of another type reads as
nothing, as does a key that is not there.

A cluster answers an MGET only for keys of one slot. The first one it refuses tells us, and from then on every key is
asked for by itself; :class:`daydo_redis.Redis` still makes one packet per node of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from daydo_redis import Redis, RedisCommandFailed, RedisUnavailable

Waiters = dict[str, list[asyncio.Future[bytes | None]]]


class Reader:
    """``spawn`` runs a task of the noun. Every call raises :class:`daydo_redis.RedisError` when Redis is away."""

    def __init__(
        self,
        redis: Redis,
        merge_max: int,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self._redis = redis
        self._merge_max = merge_max
        self._spawn = spawn
        self._forming: Waiters | None = None
        self._several = False
        self._crowded = False
        self._under_way = 0

    def read(self, key: str) -> Awaitable[bytes | None]:
        """The value of ``key``, when awaited; do that at once. (No coroutine: many are read, and each would be one.)"""
        forming = self._forming
        if forming is None:
            if not (self._crowded or self._under_way):
                return self._read_alone(key)
            forming = self._form()
        future: asyncio.Future[bytes | None] = self._make_waiter()
        waiters = forming.get(key)
        if waiters is not None:
            waiters.append(future)
            return future
        forming[key] = [future]
        if len(forming) >= self._merge_max:
            self._forming = None  # full; its task takes it along when its turn comes
        return future

    async def read_many(self, keys: list[str]) -> list[bytes | None]:
        """The values of ``keys``, in their order."""
        parts = [keys[start : start + self._merge_max] for start in range(0, len(keys), self._merge_max)]
        answers = await asyncio.gather(*map(self._mget, parts))
        return [value for answer in answers for value in answer]

    async def _read_alone(self, key: str) -> bytes | None:
        self._under_way += 1
        try:
            return await self._redis.get(key, merge=False)
        finally:
            self._under_way -= 1

    def _form(self) -> Waiters:
        """A crowd that departs when all that is ready now has run."""
        forming: Waiters = {}
        self._forming = forming
        self._make_waiter = partial(asyncio.Future, loop=asyncio.get_running_loop())
        # Not in the task itself: one that is cancelled before its first turn never runs at all.
        self._spawn(self._answer(forming), "read").add_done_callback(lambda _: self._abandon(forming))
        return forming

    async def _answer(self, forming: Waiters) -> None:
        if self._forming is forming:
            self._forming = None
        if not (self._crowded and self._under_way):
            # One that has lost its crowd does not end it.
            self._crowded = sum(map(len, forming.values())) > 1
        self._under_way += 1
        try:
            values = await self._mget(list(forming))
        except Exception as error:
            for future in _waiting(forming):
                future.set_exception(error)
            return
        finally:
            self._under_way -= 1
        for waiters, value in zip(forming.values(), values, strict=True):
            for future in waiters:
                if not future.done():
                    future.set_result(value)

    def _abandon(self, forming: Waiters) -> None:
        """Nobody waits for ever for a task that was cancelled, nor joins those who did."""
        if self._forming is forming:
            self._forming = None
        for future in _waiting(forming):
            future.set_exception(RedisUnavailable(reason="connection lost"))

    async def _mget(self, keys: list[str]) -> list[bytes | None]:
        if not self._several:
            try:
                answer: list[bytes | None] = await self._redis.call("MGET", *keys, merge=False)
            except RedisCommandFailed:
                self._several = True
            else:
                return answer
        return list(await asyncio.gather(*map(self._redis.get, keys)))


def _waiting(forming: Waiters) -> list[asyncio.Future[bytes | None]]:
    return [future for waiters in forming.values() for future in waiters if not future.done()]

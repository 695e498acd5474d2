"""Values asked for in one turn of the event loop travel as one MGET, and are judged together.

One command instead of many spares the server and both ends of the wire. A task of its own reads for all, so that who
gives up takes nobody along. That costs a turn of the loop; so where nothing else is being read, and the last one had no
company either, a read goes out at once, as a GET in its own caller. Somebody else's key of another type reads as
nothing, as does a key that is not there.

A cluster answers an MGET only for keys of one slot. The first one it refuses tells us, and from then on every key is
asked for by itself; :class:`daydo_redis.Redis` still makes one packet per node of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from functools import partial
from itertools import islice, repeat
from typing import Any, TypeVar

from daydo_redis import Redis, RedisCommandFailed, RedisError

from .shelf import AWAY, Shelf, Sight

T = TypeVar("T")

Waiter = asyncio.Future[Sight[Any]]
Crowd = dict[Shelf[Any], dict[str, list[Waiter]]]  # who waits for which key
Seen = list[list[Sight[Any]]]  # of each shelf its keys, in their order


class Reader:
    """``spawn`` runs a task of the noun. What Redis does not say, being away, is seen as :data:`AWAY`."""

    def __init__(
        self,
        redis: Redis,
        merge_max: int,
        now_s: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, Seen], str], asyncio.Task[Seen]],
    ) -> None:
        self._redis = redis
        self._merge_max = merge_max
        self._now_s = now_s
        self._spawn = spawn
        self._forming: Crowd | None = None
        self._room = 0
        self._several = False
        self._crowded = False
        self._under_way = 0

    def look(self, shelf: Shelf[T], key: str) -> Awaitable[Sight[T]]:
        """What Redis has of ``key``, when awaited; do that at once. (No coroutine: there are many.)"""
        crowd = self._forming
        if crowd is None:
            if not (self._crowded or self._under_way):
                return self._look_alone(shelf, key)
            crowd = self._form()
        waiter: Waiter = self._make_waiter()
        waiting = crowd.get(shelf)
        if waiting is None:
            crowd[shelf] = {key: [waiter]}
        elif key in waiting:
            waiting[key].append(waiter)
        else:
            waiting[key] = [waiter]
        self._room -= 1
        if not self._room:
            self._forming = None  # full; its task takes it along when its turn comes
        return waiter

    async def look_many(self, shelf: Shelf[T], keys: list[str]) -> list[Sight[T]]:
        """What Redis has of ``keys``, in their order."""
        parts = [keys[start : start + self._merge_max] for start in range(0, len(keys), self._merge_max)]
        seen = await asyncio.gather(*(self._look({shelf: part}) for part in parts))
        return [sight for [sights] in seen for sight in sights]

    async def _look_alone(self, shelf: Shelf[T], key: str) -> Sight[T]:
        [[sight]] = await self._look({shelf: [key]})
        return sight

    def _form(self) -> Crowd:
        """A crowd that departs when all that is ready now has run."""
        crowd: Crowd = {}
        self._forming = crowd
        self._room = self._merge_max
        self._make_waiter = asyncio.get_running_loop().create_future
        # Not at the end of the task itself: one that is cancelled before its first turn never runs at all.
        self._spawn(self._answer(crowd), "read").add_done_callback(partial(self._tell, crowd))
        return crowd

    async def _answer(self, crowd: Crowd) -> Seen:
        self._part_from(crowd)
        if not (self._crowded and self._under_way):
            # One that has lost its crowd does not end it.
            waiting = [waiters for part in crowd.values() for waiters in part.values()]
            self._crowded = sum(not waiter.done() for waiters in waiting for waiter in waiters) > 1
        return await self._look(crowd)

    def _part_from(self, crowd: Crowd) -> None:
        """Nobody joins it any more."""
        if self._forming is crowd:
            self._forming = None

    def _tell(self, crowd: Crowd, task: asyncio.Task[Seen]) -> None:
        """What was seen; nothing, if the task was cancelled or met a fault of ours (which is logged)."""
        self._part_from(crowd)
        lost = task.cancelled() or task.exception() is not None
        seen = repeat(repeat(AWAY)) if lost else task.result()
        for waiting, sights in zip(crowd.values(), seen, strict=False):
            for waiters, sight in zip(waiting.values(), sights, strict=False):
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(sight)

    async def _look(self, asked: Mapping[Shelf[Any], Collection[str]]) -> Seen:
        """What Redis has of these keys of each shelf: read in one go."""
        # Once for all, and now: what was heard until here had happened before Redis reads.
        marks, asked_s = [shelf.news.mark for shelf in asked], self._now_s()
        self._under_way += 1
        try:
            values = iter(
                await self._read([key for shelf, keys in asked.items() for key in shelf.guard.value_keys(keys)])
            )
            parts = [list(islice(values, len(keys))) for keys in asked.values()]
            return [
                await shelf.accept(keys, part, mark, asked_s)
                for (shelf, keys), part, mark in zip(asked.items(), parts, marks, strict=True)
            ]
        except RedisError:
            return [[AWAY] * len(keys) for keys in asked.values()]
        finally:
            self._under_way -= 1

    async def _read(self, keys: list[str]) -> list[bytes | None]:
        if len(keys) == 1:
            return [await self._redis.get(keys[0], merge=False)]
        if not self._several:
            try:
                values: list[bytes | None] = await self._redis.call("MGET", *keys, merge=False)
            except RedisCommandFailed:
                self._several = True
            else:
                return values
        return list(await asyncio.gather(*map(self._redis.get, keys)))

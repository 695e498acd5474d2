"""Values asked for in one turn of the event loop travel as one MGET, and are judged together.

One command instead of many spares the server and both ends of the wire. A task of its own reads for all, so that who
gives up takes nobody along. That costs a turn of the loop; so where nothing else is being read, and the last one had no
company either, a read goes out at once, as a GET in its own caller. Somebody else's key of another type reads as
nothing, as does a key that is not there.

A crowd is sent as two halves, if they are large enough: while one half is on its way to Redis and back, the answers of
the other are judged and its callers go on, so that neither end of the wire waits for the other.

A cluster answers an MGET only for keys of one slot. The first one it refuses tells us, and from then on every key is
asked for by itself; :class:`daydo_redis.Redis` still makes one packet per node of them. Then a node that is away takes
only its own keys along.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, TypeVar

from daydo_redis import Redis, RedisCommandFailed, RedisError

from .shelf import AWAY, UNKNOWN, Shelf, Sight

T = TypeVar("T")

Waiter = asyncio.Future[Sight[Any]]
Asked = dict[Shelf[Any], dict[str, list[Waiter]]]  # who waits for which key
Seen = list[list[Sight[Any]]]  # of each shelf its keys, in their order

HALF_MIN = 16  # callers: for fewer of them a packet more costs more than there is to hide behind it
DEPARTURES = 8  # that tell how many callers there are


class Crowd:
    """Who asks together: ``size`` callers, at most ``room``."""

    __slots__ = ("asked", "room", "size")

    def __init__(self, room: int) -> None:
        self.asked: Asked = {}
        self.room = room
        self.size = 0

    def tell(self, seen: Iterable[Iterable[Sight[Any]]]) -> None:
        """Each its sight; once."""
        for waiting, sights in zip(self.asked.values(), seen, strict=False):
            for waiters, sight in zip(waiting.values(), sights, strict=False):
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(sight)
        self.asked.clear()


class Reader:
    """``spawn`` runs a task of the noun. What Redis does not say, being away, is seen as :data:`AWAY`.

    ``check`` raises what who asks a noun that does not run has to hear: once for all who ask together.
    """

    def __init__(
        self,
        redis: Redis,
        merge_max: int,
        now_s: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        check: Callable[[], None],
    ) -> None:
        self._redis = redis
        self._merge_max = merge_max
        self._now_s = now_s
        self._spawn = spawn
        self._check = check
        self._forming: Crowd | None = None
        self._several = False
        self._crowded = False
        self._under_way = 0
        self._travelling = 0  # callers whose crowds have departed
        self._lately: deque[int] = deque([0], maxlen=DEPARTURES)  # how many that were when the last ones did

    def look(self, shelf: Shelf[T], key: str) -> Awaitable[Sight[T]]:
        """What Redis has of ``key``, when awaited; do that at once. (No coroutine: there are many.)"""
        crowd = self._forming
        if crowd is None:
            self._check()
            if not (self._crowded or self._under_way):
                return self._look_alone(shelf, key)
            crowd = self._form()
        waiter: Waiter = asyncio.Future(loop=self._loop)
        waiting = crowd.asked.get(shelf)
        if waiting is None:
            crowd.asked[shelf] = {key: [waiter]}
        elif key in waiting:
            waiting[key].append(waiter)
        else:
            waiting[key] = [waiter]
        crowd.size += 1
        if crowd.size == crowd.room:
            self._forming = None  # full; its task takes it along when its turn comes
        return waiter

    async def look_many(self, shelf: Shelf[T], keys: list[str]) -> list[Sight[T]]:
        """What Redis has of ``keys``, in their order."""
        parts = [keys[start : start + self._merge_max] for start in range(0, len(keys), self._merge_max)]
        seen = await asyncio.gather(*(self._look({shelf: part}) for part in parts))
        return [sight for [sights] in seen for sight in sights]

    async def _look_alone(self, shelf: Shelf[T], key: str) -> Sight[T]:
        mark, asked_s = shelf.news.mark, self._now_s()
        self._under_way += 1
        try:
            raw = await self._redis.get(shelf.guard.value_key(key), merge=False)
        except RedisError:
            return AWAY
        finally:
            self._under_way -= 1
        [sight] = shelf.judge((key,), (raw,), mark, asked_s)
        if sight is UNKNOWN:
            [sight] = await shelf.judge_again((key,), (raw,), mark, asked_s)
        return sight

    def _form(self) -> Crowd:
        """A crowd that departs when all that is ready now has run."""
        room = self._merge_max
        if not self._under_way:
            # They come all at once: as halves they take turns from now on. Not as many as travel in this moment, for
            # who was answered just now is on the way back.
            room = min(max((max(self._lately) + 1) // 2, HALF_MIN), room)
        self._forming = crowd = Crowd(room)
        self._loop = asyncio.get_running_loop()
        # Not at the end of the task itself: one that is cancelled before its first turn never runs at all.
        self._spawn(self._answer(crowd), "read").add_done_callback(lambda _: self._lose(crowd))
        return crowd

    def _part_from(self, crowd: Crowd) -> None:
        """Nobody joins it any more."""
        if self._forming is crowd:
            self._forming = None

    async def _answer(self, crowd: Crowd) -> None:
        self._part_from(crowd)
        if not (self._crowded and self._under_way):
            # One that has lost its crowd does not end it.
            groups = [waiters for waiting in crowd.asked.values() for waiters in waiting.values()]
            self._crowded = sum(not waiter.done() for waiters in groups for waiter in waiters) > 1
        self._travelling += crowd.size
        self._lately.append(self._travelling)
        try:
            crowd.tell(await self._look(crowd.asked))
        finally:
            self._travelling -= crowd.size

    def _lose(self, crowd: Crowd) -> None:
        """Its task is over. Who was told nothing (the task was cancelled, or met a fault of ours) has seen nothing."""
        if crowd.asked:
            self._part_from(crowd)
            crowd.tell(repeat(repeat(AWAY)))

    async def _look(self, asked: Mapping[Shelf[Any], Collection[str]]) -> Seen:
        """What Redis has of these keys of each shelf: read in one go."""
        # Once for all, and now: what was heard until here had happened before Redis reads.
        asked_s = self._now_s()
        marks: list[int] = []
        keys: list[str] = []
        for shelf, part in asked.items():
            marks.append(shelf.news.mark)
            keys += shelf.guard.value_keys(part)
        self._under_way += 1
        try:
            values, away = await self._read(keys)
            seen, end = [], 0
            for (shelf, part), mark in zip(asked.items(), marks, strict=True):
                begin, end = end, end + len(part)
                sights = shelf.judge(part, values[begin:end], mark, asked_s)
                if UNKNOWN in sights:
                    sights = await shelf.judge_again(part, values[begin:end], mark, asked_s)
                for place in away:
                    if begin <= place < end:
                        sights[place - begin] = AWAY
                seen.append(sights)
            return seen
        except RedisError:
            return [[AWAY] * len(keys) for keys in asked.values()]
        finally:
            self._under_way -= 1

    async def _read(self, keys: list[str]) -> tuple[list[bytes | None], Sequence[int]]:
        """The values, and the places of those that could not be had by themselves."""
        if len(keys) == 1:
            return [await self._redis.get(keys[0], merge=False)], ()
        if not self._several:
            try:
                return await self._redis.call("MGET", *keys, merge=False), ()
            except RedisCommandFailed:
                pass  # Perhaps for what it is; if single keys can be had, it was.
        return await self._read_one_by_one(keys)

    async def _read_one_by_one(self, keys: list[str]) -> tuple[list[bytes | None], Sequence[int]]:
        values = await asyncio.gather(*map(self._redis.get, keys), return_exceptions=True)
        errors = {place: value for place, value in enumerate(values) if isinstance(value, BaseException)}
        for error in errors.values():
            if len(errors) == len(keys) or not isinstance(error, RedisError):
                raise error
        self._several = True
        return [None if isinstance(value, BaseException) else value for value in values], tuple(errors)

"""The values of one kind: asked for, loaded once, invalidated."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

from daydo_db import Tx
from daydo_kernel import Draining, new_id, to_the_end
from daydo_redis import RedisError

from .config import Policy
from .counts import SpaceCounts
from .errors import LoadTimeout
from .existing import Filter
from .flights import Flight, Flights, LoadMany
from .guard import Guard
from .memory import Held
from .names import text_of
from .shelf import AWAY, Shelf, Sight

if TYPE_CHECKING:
    from .cache import Cache

K = TypeVar("K", bound=str | int)
T = TypeVar("T")

log = logging.getLogger("daydo.cache")


class Space(Generic[T]):
    """Made by :meth:`daydo_cache.Cache.space`. Keys are text or whole numbers, which mean the same as their digits.

    None is a value: it says that there is no such thing, and is remembered for ``absent_ttl_s``. What callers get may
    be the same object for all of them where its type cannot change (frozen Structs, text, numbers, tuples of these),
    and is their own otherwise.

    Every method raises :class:`BadKey` for a key that cannot be one.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        *,
        cache: Cache,
        shelf: Shelf[T],
        flights: Flights[T],
        counts: SpaceCounts,
        existing: Filter | None,
    ) -> None:
        self.name = name
        self.policy = policy
        self._cache = cache
        self._shelf = shelf
        self._flights = flights
        self._under_way = flights.under_way
        self._counts = counts
        self._existing = existing
        self._link = shelf.link
        self._now_s = shelf.timeline.now_s
        self._held = shelf.memory.entries
        self._local = counts.reads["local"]
        self._redis = counts.reads["redis"]
        self._pending = cache._pending
        self._guard: Guard = shelf.guard
        self._reader = cache._reader

    # -- asking --------------------------------------------------------------------------------------------------

    async def get_or_load(self, key: K, load: Callable[[K], Awaitable[T | None]]) -> T | None:
        """The value of ``key``; where it is not known ``await load(key)`` says it, once for all who ask.

        An old value is served within its grace while a new one is loaded, and when that fails. Whatever ``load``
        raises is raised by all who wait for it, and by who asks within ``failure_ttl_s``. It runs in a task of the
        cache and may outlive its caller: let it open what it needs, a session of the request is gone by then.

        Redis slow, frozen, gone or full: the value is loaded, once per process, and kept for ``staleness_s``. Redis
        flushed: it is loaded anew.

        Raises:
            LoadTimeout: nothing within ``hard_timeout_s``; the load goes on.
            LoadFailed: the loader failed in another process, and is not asked again yet.
            TypeError: the loader gave something else than this space holds.
            Draining: the cache was left while Redis was asked, and has no value that may be served.
        """
        held = self._held.get(key)  # type: ignore[arg-type]  # a number is not found, and looked up as text below
        if held is not None:
            now_s = self._now_s()
            if now_s < held.soft_s and now_s < self._link.vouched_s and held.body is None:
                if not held.seen:  # storing costs more than looking
                    held.seen = True
                self._local.value += 1.0
                return held.value
        # All of it here, without a method between: a hit in Redis is mostly the price of coroutines.
        name = text_of(key)
        if (held is not None or name is not key) and (held := self._in_memory(name)) is not None:
            return self._shelf.value(held)
        if name in self._under_way and (flight := self._flights.joinable(name)) is not None:
            return self._shelf.value(await self._join(flight))
        sight: Sight[T] = AWAY
        if not self._pending.covers(self.name, name):
            sight = await self._reader.look(self._shelf, name)
        if isinstance(sight, Held) and (self._now_s() < sight.early_s or not self._is_due(name, sight)):
            self._redis.value += 1.0
            return sight.value if sight.body is None else self._shelf.value(sight)
        return await self._load(name, key, load, sight)

    async def get_many_or_load(
        self, keys: Iterable[K], load: Callable[[list[K]], Awaitable[Mapping[K, T]]]
    ) -> dict[K, T]:
        """The values of ``keys``; those that are not known are asked of ``load`` in one call, which leaves out what
        does not exist. So does the answer.

        Redis away, and errors: as :meth:`get_or_load`; the first error of any key is raised.
        """
        self._cache._require_started()
        asked = {text_of(key): key for key in keys}
        found: dict[str, T | None] = {}
        for key in asked:
            held = self._in_memory(key)
            if held is not None:
                found[key] = self._shelf.value(held)
        if len(found) < len(asked):
            found |= await self._find_many({key: asked[key] for key in asked if key not in found}, load)
        return {asked[key]: value for key, value in found.items() if value is not None}

    # -- changing ------------------------------------------------------------------------------------------------

    async def set(self, key: str | int, value: T | None) -> bool:
        """Store ``value`` (None: there is no such thing) in the place of whatever is there or being loaded.

        False while a transaction that invalidates ``key`` is open: then nothing is there afterwards.

        Redis slow, frozen, gone or full: raises its error, and ``key`` is invalidated as soon as it is back.

        Raises:
            TypeError: the value is not what this space holds.
        """
        self._cache._require_started()
        name = text_of(key)
        await self._cache._know_time()
        record, body = self._shelf.record(name, value, 0.0)
        life_s = self._shelf.timeline.local_s(record.dead_us) - self._now_s()
        return await to_the_end(self._put(name, body, life_s))

    async def invalidate(self, *keys: str | int, tx: Tx | None = None) -> None:
        """``keys`` have changed: what is known of them, or being loaded, is not served or stored any more.

        When this returns it is so in Redis and in this process, and within ``staleness_s`` in all others.

        With ``tx``: call it before or after the change, inside the transaction. Redis stores nothing under these
        keys until the COMMIT; then it is so everywhere within ``staleness_s``. Should the process end in between, or
        the transaction roll back, nothing is stored for ``barrier_ttl_s``. Reads inside the transaction see what it
        does not: read your own writes through ``tx``.

        Redis slow, frozen or gone: raises its error, and the invalidation is repeated until Redis takes it. With
        ``tx`` it raises nothing, because a cache must not stop a change: the invalidation is repeated after the
        COMMIT, and what others do meanwhile with their Redis is up to their TTL. Redis full: done; but a key that the
        space's ``existing`` filter does not know yet cannot be added to it, which counts as gone above, with
        ``RedisFull`` as its error. Redis flushed: nothing is lost, it holds no values.
        """
        self._cache._require_started()
        names = [text_of(key) for key in keys]
        if tx is None:
            await to_the_end(self._settle(names))
            return
        token = new_id("tx")
        # First, so that a transaction that is over says so before anything happens.
        tx.after_commit(lambda: self._committed(names, token))
        self._forget(*names)
        if not await self._try(names, token, bar=True):
            log.warning("%d keys of %s could not be barred before COMMIT: Redis is away", len(names), self.name)

    async def clear(self, *, tx: Tx | None = None) -> None:
        """All values of this space end: :meth:`daydo_cache.Cache.invalidate_tags`, of a tag that all of them carry.

        Redis away or full: as there.
        """
        self._cache._require_started()
        await self._cache._end_tags([self._shelf.own_tag], tx)

    # -- finding -------------------------------------------------------------------------------------------------

    def _in_memory(self, key: str) -> Held[T] | None:
        held = self._held.get(key)
        if held is None:
            return None
        now_s = self._now_s()
        if now_s < held.soft_s and self._link.vouches(held.checked_s, now_s):
            held.seen = True
            self._local.inc()
            return held
        return None

    async def _load(self, key: str, asked: K, load: Callable[[K], Awaitable[T | None]], sight: Sight[T]) -> T | None:
        """The value of ``key``, of which ``sight`` is no good, or not for long: from a load."""
        flight = self._flights.joinable(key)  # others have looked as well
        if flight is None:
            if not await self._may_load(key, sight):
                return None
            flight = self._launch({key: (asked, sight)}, _one_by_one(load))[key]
        return self._shelf.value(await self._join(flight))

    async def _find_many(self, asked: dict[str, K], load: LoadMany) -> dict[str, T | None]:
        found: dict[str, T | None] = {}
        flights = {key: flight for key in asked if (flight := self._flights.joinable(key)) is not None}
        others = [key for key in asked if key not in flights]
        due: dict[str, Sight[T]] = {}
        for key, sight in zip(others, await self._look_many(others), strict=True):
            if isinstance(sight, Held) and not self._is_due(key, sight):
                self._redis.inc()
                found[key] = self._shelf.value(sight)
            else:
                due[key] = sight
        loads = await asyncio.gather(*(self._may_load(key, sight) for key, sight in due.items()))
        wanted = {key: (asked[key], sight) for (key, sight), may in zip(due.items(), loads, strict=True) if may}
        flights |= self._launch(wanted, load)
        joined = await asyncio.gather(*map(self._join, flights.values()))
        return found | {key: self._shelf.value(held) for key, held in zip(flights, joined, strict=True)}

    async def _look_many(self, keys: list[str]) -> list[Sight[T]]:
        if not keys:
            return []
        sights = await self._reader.look_many(self._shelf, keys)
        return [
            AWAY if self._pending.covers(self.name, key) else sight for key, sight in zip(keys, sights, strict=True)
        ]

    def _is_due(self, key: str, held: Held[T]) -> bool:
        """Whether a value that may be served should be loaded anew, and can: nobody has just failed to."""
        return self._cache._running and self._now_s() >= held.early_s and self._flights.failure(key) is None

    async def _may_load(self, key: str, sight: Sight[T]) -> bool:
        """Whether it makes sense to load. Raises what the last load raised, while that is remembered."""
        if isinstance(sight, Held):
            return True
        if (failure := self._flights.failure(key)) is not None:
            self._counts.reads["failed"].inc()
            raise failure
        if self._existing is None or sight.away or await self._existing.may_have(key):
            return True
        self._counts.reads["absent"].inc()
        return False

    def _launch(self, wanted: Mapping[str, tuple[object, Sight[T]]], load: LoadMany) -> dict[str, Flight[T]]:
        """The loads of ``wanted``; none in a cache that was left while Redis was asked."""
        if wanted and not self._cache._running:
            raise Draining()
        return self._flights.launch(wanted, load)

    async def _join(self, flight: Flight[T]) -> Held[T]:
        """What ``flight`` brings, or the old value where there is one and the new one takes long or fails."""
        old = flight.held
        now_s = self._now_s()
        if old is not None and (now_s >= old.dead_s or not self._link.vouches(old.checked_s, now_s)):
            old = None
        wait_s = self.policy.hard_timeout_s
        if old is not None:
            wait_s = self.policy.soft_timeout_s if now_s >= old.fresh_s else 0.0
        future = flight.future
        if not future.done() and wait_s:
            await flight.wait(wait_s)
        if future.done() and future.exception() is None:
            self._counts.reads["loaded"].inc()
            return future.result()
        if old is not None:
            self._counts.reads["stale" if now_s >= old.fresh_s else "redis"].inc()
            return old
        if future.done():
            self._counts.reads["failed"].inc()
            return future.result()
        self._counts.reads["timeout"].inc()
        raise LoadTimeout(space=self.name, timeout_s=wait_s)

    # -- storing and invalidating --------------------------------------------------------------------------------

    async def _put(self, name: str, body: bytes, life_s: float) -> bool:
        try:
            if self._existing is not None:
                await self._existing.add(name)
            return await self._guard.put(name, body, life_s, self._news(name))
        except RedisError:
            self._defer(name)
            raise
        finally:
            self._forget(name)

    def _hear(self, key: str) -> None:
        """News from another process: ``key`` has changed."""
        self._forget(key)

    def _hear_all(self) -> None:
        """All may have changed."""
        self._shelf.clear()
        self._flights.void_all()

    def _hear_tag(self, tag: str) -> None:
        """A tag was invalidated."""
        if tag == self._shelf.own_tag:
            self._hear_all()
        elif self._shelf.is_tagged:
            self._shelf.memory.drop_tagged(tag)
            self._flights.part()

    def _forget(self, *keys: str) -> None:
        for key in keys:
            self._shelf.drop(key)
            self._flights.void(key)

    def _news(self, key: str) -> str:
        return f"k {self._cache._origin} {self.name} {key}"

    async def _settle(self, names: list[str], token: str = "") -> None:
        """Invalidate in Redis and here.

        Raises:
            RedisError: what was not done is pending now.
        """
        outcomes = await asyncio.gather(*(self._one(name, token) for name in names), return_exceptions=True)
        self._forget(*names)
        failed = None
        for name, outcome in zip(names, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                self._defer(name, token)
                failed = outcome
            else:
                self._counts.invalidations["done"].inc()
        if failed is not None:
            raise failed

    async def _try(self, names: list[str], token: str, *, bar: bool) -> bool:
        outcomes = await asyncio.gather(*(self._one(name, token, bar=bar) for name in names), return_exceptions=True)
        return not any(isinstance(outcome, BaseException) for outcome in outcomes)

    async def _one(self, name: str, token: str = "", *, bar: bool = False) -> None:
        await self._guard.invalidate(name, self._news(name), token=token, bar=bar)
        if self._existing is not None:
            await self._existing.add(name)  # it may have come to be

    def _committed(self, names: list[str], token: str) -> None:
        self._forget(*names)
        if not self._cache._run_in_background(self._settle_in_background(names, token)):
            log.warning("a transaction was committed after its cache was left: its barrier ends by itself")

    async def _settle_in_background(self, names: list[str], token: str) -> None:
        try:
            await self._settle(names, token)
        except RedisError as error:
            log.warning("keys of %s are invalidated once Redis is back: %s", self.name, error)

    def _defer(self, name: str, token: str = "") -> None:
        self._counts.invalidations["deferred"].inc()
        self._cache._pending.add_key(
            self.name,
            name,
            lambda: self._one(name, token),
            self._end_all,
            self._counts.invalidations["delivered"],
        )

    async def _end_all(self) -> None:
        """In place of invalidations that are too many to remember one by one."""
        if self._existing is not None:
            await self._existing.drop()  # it lacks the keys that came to be
        await self._cache._tags.invalidate(self._shelf.own_tag)


def _one_by_one(load: Callable[[K], Awaitable[T | None]]) -> LoadMany:
    """A loader of one key as one of many; it is only ever given one."""

    async def load_one(keys: list[K]) -> Mapping[K, T | None]:
        return {keys[0]: await load(keys[0])}

    return load_one

"""The noun: spaces of values, tags over them, locks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, ParamSpec, TypeVar

from msgspec.structs import replace

from daydo_db import Tx
from daydo_kernel import Clock, EventSink, Health, Metrics, Part, new_id, to_the_end
from daydo_redis import Redis, RedisError

from .cached import Cached, KeyOf, name_of, type_of
from .config import CacheConfig, Policy
from .counts import Counts
from .existing import Existing, Filter
from .flights import Flights
from .guard import Guard
from .link import Link
from .lock import HeldLock, Locks
from .memory import Memory
from .names import check_space, text_of
from .names import tags_of as check_tags
from .news import News
from .pending import Pending
from .reader import Reader
from .record import Codec
from .shelf import Shelf, TagsOf
from .space import Space
from .tags import Tags
from .timeline import Timeline

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("daydo.cache")


class Cache(Part):
    """Values in memory and in Redis, loaded once, never stored again after they were invalidated.

    The promise: what was invalidated is served by no process longer than ``staleness_s`` after that call returned, or
    after the COMMIT with ``tx=``; whether or not news are lost, and whether or not Redis is there. Its limits: a
    failover to a replica that had not heard, and a process that ends while its invalidation waits for Redis: then
    values last until their TTL; on a cluster news take several ways, and the bound is ``Policy.local_ttl_s``.

    Entering needs no Redis: values are then loaded, once per process, and kept for ``staleness_s``. Enter ``redis``
    first. ``clock`` replaces Redis' clock, in tests. ``events`` is taken as by every noun; a cache has none to tell.
    """

    def __init__(
        self,
        redis: Redis,
        config: CacheConfig = CacheConfig(),  # noqa: B008 (frozen)
        *,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        self._redis = redis
        self._config = config
        self._spaces: dict[str, Space[Any]] = {}
        self._filters: list[Filter] = []
        self._origin = new_id("node")
        self.metrics = Metrics("daydo_cache")
        self._counts = Counts(self.metrics)
        self._timeline = Timeline(clock)
        self._link = Link(redis, config, self._timeline, self._origin, self._hear, self._lost)
        self._tags = Tags(redis, config, self._timeline, self._link, self._origin, self._told)
        self._pending = Pending(config.pending_max, self._tags.distrust)
        self._reader = Reader(redis, config.merge_max, self._timeline.now_s, self._spawn, self._require_started)
        self._locks = Locks(redis, config, self._counts.locks, self._spawn)
        self._background: set[asyncio.Task[Any]] = set()
        up = self.metrics.gauge("link_up", "1 while news of invalidations are known to arrive.", merge="sum")
        up.cell().follow(lambda: float(self._is_linked))
        waiting = self.metrics.gauge("pending_invalidations", "Invalidations that Redis has not taken yet.")
        waiting.cell().follow(lambda: float(len(self._pending)))

    # -- spaces --------------------------------------------------------------------------------------------------

    def space(
        self,
        name: str,
        type: type[T],
        *,
        version: int = 1,
        ttl_s: float | None = None,
        grace_s: float | None = None,
        policy: Policy = Policy(),  # noqa: B008 (frozen)
        tags: TagsOf[T] | None = None,
        existing: Existing | None = None,
    ) -> Space[T]:
        """The values of one kind; no I/O, so make it once, next to what loads them.

        Args:
            type: anything msgspec can encode and decode.
            version: raise it by one when ``type`` changes. A deploy before and after share no values, and each
                invalidates the other's.
            ttl_s, grace_s: instead of those of ``policy``.
            tags: ``tags(key, value)`` names what else ends the value: ``lambda key, user: [f"tenant:{user.tenant}"]``.
            existing: all keys there are, against those who ask for others.

        Raises:
            ValueError: the name is taken or no name, or a number is out of bounds.
            TypeError: msgspec does not know the type.
        """
        if check_space(name) in self._spaces:
            raise ValueError(f"there is a space {name!r} already; share it")
        if version < 1:
            raise ValueError("version counts from 1")
        changes = {"ttl_s": ttl_s, "grace_s": grace_s}
        policy = replace(policy, **{field: value for field, value in changes.items() if value is not None})
        if max(policy.ttl_s + policy.grace_s, policy.absent_ttl_s) > self._config.tag_ttl_s:
            raise ValueError("values must not outlive tag_ttl_s, the time for which an invalidated tag is remembered")
        counts = self._counts.of(name)
        memory: Memory[T] = Memory(policy.local_entries, policy.local_bytes, counts.evicted)
        counts.entries.follow(lambda: float(len(memory.entries)))
        counts.bytes.follow(lambda: float(memory.bytes))
        shelf = Shelf(
            name,
            policy,
            Codec(type),
            memory,
            guard=Guard(self._redis, self._config, name, version, self._timeline.argument),
            tags=self._tags,
            tags_of=None if tags is None else lambda key, value: check_tags(list(tags(key, value))),
            link=self._link,
            news=News(self._config.news_max),
            timeline=self._timeline,
        )
        flights = Flights(name, self._config, policy, shelf, counts, self._spawn_work)
        keys = None if existing is None else Filter(name, existing, self._redis, self._config, lambda: self._locks)
        space = Space(name, policy, cache=self, shelf=shelf, flights=flights, counts=counts, existing=keys)
        self._spaces[name] = space
        if keys is not None:
            self._filters.append(keys)
            if self._running:
                self._spawn(self._build(keys), "filter")
        return space

    def cached(
        self,
        *,
        name: str | None = None,
        version: int = 1,
        ttl_s: float | None = None,
        grace_s: float | None = None,
        policy: Policy = Policy(),  # noqa: B008 (frozen)
        key: KeyOf | None = None,
    ) -> Callable[[Callable[P, Awaitable[T]]], Cached[P, T]]:
        """A decorator for a coroutine function: its answers are the values of a space of its own.

        Args:
            name: of the space; by default module and name of the function, which then must not move.
            key: makes the key out of the arguments, for those that are not plain.

        Raises:
            TypeError: the function does not say what it returns, or msgspec does not know that type.
            ValueError: as :meth:`space`.
        """

        def decorate(function: Callable[P, Awaitable[T]]) -> Cached[P, T]:
            space: Space[Any] = self.space(
                name or name_of(function),
                type_of(function),
                version=version,
                ttl_s=ttl_s,
                grace_s=grace_s,
                policy=policy,
            )
            return Cached(function, space, key)

        return decorate

    # -- over all spaces -----------------------------------------------------------------------------------------

    async def invalidate_tags(self, *tags: str, tx: Tx | None = None) -> None:
        """Every value with one of ``tags``, in any space, ends. Takes one step per tag, however many values there are.

        With ``tx`` as :meth:`Space.invalidate`. Redis slow, frozen or gone: raises its error, this process takes all
        these values for bad, and the invalidation is repeated until Redis takes it; with ``tx`` it raises nothing.
        Redis full: done. Redis flushed: nothing is lost. One that evicts may forget that a tag was invalidated: use
        ``noeviction`` or ``volatile-ttl`` (tags have the longest TTL of all).

        Raises:
            BadKey: a tag is empty, too long, or begins with ``*``.
        """
        self._require_started()
        await self._end_tags(check_tags(list(tags)), tx)

    def lock(self, name: str, *, ttl_s: float = 30.0, wait_s: float = 0.0) -> AbstractAsyncContextManager[HeldLock]:
        """``async with cache.lock("nightly") as held: …``: one holder over all processes, as far as that is possible.

        It lives for ``ttl_s`` and is renewed while the block runs. If that fails for ``ttl_s`` the block is cancelled.
        ``held.fence`` goes with what is written: ``… WHERE fence <= ?`` refuses who was overtaken (:mod:`.lock`). It
        is not re-entrant, and promises no order among those who wait.

        Redis slow, frozen, gone or full: on entry raises its error; inside, the block ends with :class:`LockLost`
        after ``ttl_s`` at most. Redis flushed or failed over: another may take it; the next renewal notices.

        Raises:
            LockBusy: somebody else has it, and had for ``wait_s`` seconds.
            LockLost: out of the block.
            BadKey: the name cannot be part of a key.
            ValueError: ``ttl_s`` is not between 0.1 and 3600, or ``wait_s`` not between 0 and 3600.
        """
        self._require_started()
        if not (0.1 <= ttl_s <= 3600 and 0 <= wait_s <= 3600):
            raise ValueError("a lock lives for 0.1 to 3600 s, and is waited for at most 3600 s")
        return self._locks.hold(text_of(name), ttl_s=ttl_s, wait_s=wait_s)

    async def health(self) -> Health:
        """``degraded`` while news do not arrive (memory is not used, or Redis is away) or invalidations wait. No I/O:
        the beat is the question."""
        if not self._running:
            return Health(status="down")
        shelves = [space._shelf.memory for space in self._spaces.values()]
        detail: dict[str, str | int | float] = {
            "linked": int(self._is_linked),
            "pending_invalidations": len(self._pending),
            "spaces": len(shelves),
            "local_entries": sum(len(memory.entries) for memory in shelves),
            "local_bytes": sum(memory.bytes for memory in shelves),
        }
        return Health(status="ok" if self._is_linked and not self._pending else "degraded", detail=detail)

    # -- for the parts of this package ---------------------------------------------------------------------------

    async def _know_time(self) -> None:
        """Ask Redis what time it is, if that is not known. Redis away: it stays unknown."""
        if not self._timeline.known:
            await self._link.beat()

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run ``work``, which leaving waits for. False: this cache was left."""
        if not self._running:
            work.close()
            return False
        self._spawn_work(work, "background")
        return True

    def _spawn_work(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task that leaving waits for, unlike those that run for ever."""
        task = self._spawn(work, name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    # -- tags ----------------------------------------------------------------------------------------------------

    async def _end_tags(self, tags: list[str], tx: Tx | None) -> None:
        """Also those that are ours: of a whole space."""
        if tx is None:
            await to_the_end(self._settle_tags(tags, ""))
            return
        token = new_id("tx")
        tx.after_commit(lambda: self._committed(tags, token))
        outcomes = await asyncio.gather(
            *(self._tags.invalidate(tag, token=token, bar=True) for tag in tags), return_exceptions=True
        )
        if any(isinstance(outcome, BaseException) for outcome in outcomes):
            log.warning("tags could not be barred before COMMIT: Redis is away")

    async def _settle_tags(self, tags: list[str], token: str) -> None:
        failed = None
        for tag in tags:
            try:
                await self._tags.invalidate(tag, token=token)
                self._counts.tags["done"].inc()
            except RedisError as error:
                self._counts.tags["deferred"].inc()
                self._pending.add_tag(tag, self._delivery(tag, token), self._counts.tags["delivered"])
                failed = error
        if failed is not None:
            raise failed

    def _delivery(self, tag: str, token: str) -> Callable[[], Awaitable[None]]:
        return lambda: self._tags.invalidate(tag, token=token)

    def _committed(self, tags: list[str], token: str) -> None:
        for tag in tags:
            self._told(tag)

        async def settle() -> None:
            with contextlib.suppress(RedisError):  # pending now
                await self._settle_tags(tags, token)

        if not self._run_in_background(settle()):
            log.warning("a transaction was committed after its cache was left: its barrier ends by itself")

    # -- news ----------------------------------------------------------------------------------------------------

    @property
    def _is_linked(self) -> bool:
        return self._timeline.now_s() < self._link.vouched_s

    def _hear(self, news: str) -> None:
        kind, origin, rest = news.split(" ", 2)
        if kind == "t":
            us, tag = rest.split(" ", 1)
            self._tags.hear(tag, int(us))
        elif origin != self._origin:
            name, key = rest.split(" ", 1)
            space = self._spaces.get(name)
            if space is not None:
                space._hear(key)

    def _told(self, tag: str) -> None:
        for space in self._spaces.values():
            space._hear_tag(tag)

    def _lost(self) -> None:
        self._counts.gaps.inc()
        self._tags.forget()
        for space in self._spaces.values():
            space._hear_all()

    # -- life ----------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._spawn(self._link.listen(), "news")
        self._repeat(self._config.staleness_s / self._config.beats, self._link.beat, "beat")
        self._repeat(self._config.pending_retry_s, self._pending.deliver, "pending")
        for keys in self._filters:
            self._spawn(self._build(keys), "filter")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.start_wait_s):
                await self._link.decided.wait()

    async def _build(self, keys: Filter) -> None:
        while True:
            try:
                await keys.rebuild_if_due()
            except Exception:
                log.exception("a filter was not built; it is tried again in %s s", keys.look_s)
            await asyncio.sleep(keys.look_s)

    async def _drain(self) -> None:
        while self._background:
            await asyncio.wait(set(self._background))
        await self._pending.deliver()

    async def _close(self) -> None:
        if self._pending:
            log.error("%d invalidations were not delivered; values last until their TTL", len(self._pending))
        self._link.vouched_s = float("-inf")
        for space in self._spaces.values():
            space._hear_all()

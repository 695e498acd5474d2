"""A lock over all processes, with a fence.

A lock with a lifetime cannot keep two holders apart for certain: a process may stand still in the middle of its block,
for longer than the lock lives, and go on when another has it. What helps is the *fence*, a number that is greater for
every holder: let what is written remember it, and refuse a smaller one::

    UPDATE report SET body = ?, fence = ? WHERE id = ? AND fence <= ?

So: without the fence this is for what may happen twice and had better not (a report, a rebuild); with it, for the rest.

Redis is asked for both in one step. The fence is the time of Redis' clock in µs, or one more than the last: it also
grows when Redis has forgotten everything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from daydo_kernel import Counter, new_id
from daydo_redis import Redis, RedisError

from .config import CacheConfig
from .errors import LockBusy, LockLost

log = logging.getLogger("daydo.cache")

_FENCE_KEPT_MS = 86_400_000  # a day: then the clock alone is far enough ahead
_POLL_MIN_S, _POLL_MAX_S = 0.01, 0.25

_TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local fence = math.max(time[1] * 1000000 + time[2], (tonumber(redis.call('GET', KEYS[2])) or 0) + 1)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], string.format('%.0f', fence), 'PX', ARGV[3])
return fence
"""
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
_GIVE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class HeldLock(msgspec.Struct, frozen=True):
    """What the block of a lock gets: its name, and the ``fence`` that is greater than every one before it."""

    name: str
    fence: int


class Locks:
    """All locks of one cache."""

    def __init__(
        self,
        redis: Redis,
        config: CacheConfig,
        counts: dict[str, Counter],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self._prefix = config.prefix
        self._counts = counts
        self._spawn = spawn
        self._take = redis.script(_TAKE, idempotent=True)
        self._renew = redis.script(_RENEW, idempotent=True)
        self._give = redis.script(_GIVE, idempotent=True)

    @asynccontextmanager
    async def hold(self, name: str, *, ttl_s: float, wait_s: float) -> AsyncIterator[HeldLock]:
        """See :meth:`daydo_cache.Cache.lock`."""
        head = f"{self._prefix}:lock:{{{name}}}"
        token = new_id("lock")
        try:
            asked_s, fence = await self._acquire(name, head, token, ttl_s, wait_s)
            self._counts["taken"].inc()
            scope = asyncio.timeout_at(asked_s + ttl_s)
            try:
                async with scope:
                    renewing = self._spawn(self._keep(head, token, ttl_s, scope), "lock")
                    try:
                        yield HeldLock(name, fence)
                    finally:
                        renewing.cancel()
            except TimeoutError as error:
                if not scope.expired():
                    raise  # it is the block's own
                self._counts["lost"].inc()
                raise LockLost(lock=name) from error
        finally:
            await self._release(head, token)

    async def _acquire(self, name: str, head: str, token: str, ttl_s: float, wait_s: float) -> tuple[float, int]:
        """When it was asked for, and the fence."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            asked_s = loop.time()
            ttl_ms = round(ttl_s * 1000)
            fence = await self._take(keys=[head, f"{head}:fence"], args=[token, ttl_ms, _FENCE_KEPT_MS])
            if fence:
                return asked_s, fence
            waited_s = loop.time() - began_s
            if waited_s >= wait_s:
                self._counts["busy"].inc()
                raise LockBusy(lock=name, wait_s=wait_s)
            await asyncio.sleep(min(max(waited_s / 4, _POLL_MIN_S), _POLL_MAX_S, wait_s - waited_s))

    async def _keep(self, head: str, token: str, ttl_s: float, scope: asyncio.Timeout) -> None:
        """Move the end of the block on, as long as Redis says that the lock is ours."""
        loop = asyncio.get_running_loop()
        pause_s = ttl_s / 3
        while True:
            await asyncio.sleep(pause_s)
            asked_s = loop.time()
            try:
                ours = await self._renew(keys=[head], args=[token, round(ttl_s * 1000)])
            except RedisError as error:
                log.warning("a lock was not renewed, trying again: %s", error)
                pause_s = ttl_s / 10
                continue
            pause_s = ttl_s / 3
            if not scope.expired():
                scope.reschedule(asked_s + ttl_s if ours else asked_s)
            if not ours:
                return

    async def _release(self, head: str, token: str) -> None:
        # Also after an acquisition that failed: it may have been carried out.
        try:
            await self._give(keys=[head], args=[token])
        except RedisError as error:
            log.warning("a lock was not given back, it ends by itself: %s", error)

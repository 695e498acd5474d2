"""Which keys may exist: a Bloom filter on Redis bits, against those who ask for keys at random.

It answers "certainly not" or "perhaps". It is built from a source that lists all keys, by one process at a time, anew
after ``rebuild_s``; whatever is invalidated meanwhile is added to it, for it may have come to be. A key whose insert is
followed by ``invalidate`` is therefore never denied: the addition after the COMMIT finds the filter in use and the one
that is being built, or comes before that one's source is read.

No filter, or no Redis: everything may exist.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable
from hashlib import blake2b
from typing import Annotated, Protocol

from msgspec import Meta

from daydo_kernel import Config, DaydoError
from daydo_redis import Redis, RedisError

from .config import CacheConfig
from .errors import LockBusy
from .lock import Locks
from .names import text_of

log = logging.getLogger("daydo.cache")

BITS_MAX = 2**32  # what a text of Redis can hold
LOCK_S = 30.0
_KEYS_AT_ONCE = 200
_LIVES = 4  # a filter that was not rebuilt for so many times rebuild_s is not believed any more

_MAY_HAVE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 1 end
for i = 1, #ARGV do
  if redis.call('GETBIT', KEYS[1], ARGV[i]) == 0 then return 0 end
end
return 1
"""
# Only bits that are not set: what is there already needs no room.
_ADD = """
local there = 0
for k = 1, #KEYS do
  if redis.call('EXISTS', KEYS[k]) == 1 then
    there = there + 1
    for i = 1, #ARGV do
      if redis.call('GETBIT', KEYS[k], ARGV[i]) == 0 then redis.call('SETBIT', KEYS[k], ARGV[i], 1) end
    end
  end
end
return there
"""
_USE = """
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
redis.call('RENAME', KEYS[2], KEYS[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[3], 1, 'PX', ARGV[1])
return 1
"""


class Source(Protocol):
    """Lists all keys that exist, in batches; as of now or later."""

    def __call__(self) -> AsyncIterator[Iterable[str | int]]: ...


class FilterConfig(Config, frozen=True, kw_only=True):
    """How large a filter is, and how often it is built.

    Attributes:
        capacity: keys it is made for; with more of them it denies less.
        wrong_share: how many of the keys that do not exist it lets through when full.
        rebuild_s: age at which it is built anew.
    """

    capacity: Annotated[int, Meta(ge=1, le=400_000_000)] = 1_000_000
    wrong_share: Annotated[float, Meta(ge=0.0001, le=0.5)] = 0.01
    rebuild_s: Annotated[float, Meta(ge=1, le=2_592_000)] = 3_600.0


class Existing:
    """All keys of a space: ``cache.space(…, existing=Existing(list_user_ids))``.

    ``source`` is called without arguments and gives an asynchronous iterator over batches of keys.

    Raises:
        ValueError: a filter that large does not fit into Redis.
    """

    def __init__(self, source: Source, config: FilterConfig = FilterConfig()) -> None:  # noqa: B008 (frozen)
        self.source = source
        self.config = config
        self.bits = math.ceil(-config.capacity * math.log(config.wrong_share) / math.log(2) ** 2)
        self.hashes = max(1, round(self.bits / config.capacity * math.log(2)))
        if self.bits > BITS_MAX:
            raise ValueError(f"a filter for {config.capacity} keys needs more than 2**32 bits; raise wrong_share")

    def offsets(self, key: str) -> list[int]:
        """The bits of ``key``; the same in every process."""
        digest = blake2b(key.encode(), digest_size=16).digest()
        first, step = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big") | 1
        return [(first + number * step) % self.bits for number in range(self.hashes)]


class Filter:
    """One space's filter in Redis."""

    def __init__(
        self, space: str, existing: Existing, redis: Redis, config: CacheConfig, locks: Callable[[], Locks]
    ) -> None:
        self._existing = existing
        self._redis = redis
        self._locks = locks
        self._lock = f"existing.{space}"
        # Of another size it is another filter.
        head = f"{config.prefix}:existing:{{{space}}}:{existing.bits}.{existing.hashes}"
        self._now, self._next, self._built = f"{head}:now", f"{head}:next", f"{head}:built"
        self._may_have = redis.script(_MAY_HAVE, idempotent=True)
        self._add = redis.script(_ADD, idempotent=True)
        self._use = redis.script(_USE, idempotent=True)
        self.look_s = min(60.0, existing.config.rebuild_s / 4)

    async def may_have(self, key: str) -> bool:
        """False: there is no such key. Redis away, or no filter yet: True."""
        try:
            return bool(await self._may_have(keys=[self._now], args=self._existing.offsets(key)))
        except RedisError:
            return True

    async def add(self, key: str) -> None:
        """``key`` may exist from now on. Redis away: raises, and the caller tries again."""
        await self._add(keys=[self._now, self._next], args=self._existing.offsets(key))

    async def drop(self) -> None:
        """Everything may exist until it is built anew. Redis away: raises, and the caller tries again."""
        await self._redis.delete(self._now, self._next, self._built)

    async def rebuild_if_due(self) -> None:
        """Build it, unless it is young enough or somebody else is at it. Redis away: the next turn comes."""
        try:
            if await self._redis.get(self._built) is not None:
                return
            async with self._locks().hold(self._lock, ttl_s=LOCK_S, wait_s=0.0):
                if await self._redis.get(self._built) is None:
                    await self._rebuild()
        except LockBusy:
            return
        except DaydoError as error:
            log.warning("the filter %s was not built: %s", self._lock, error)

    async def _rebuild(self) -> None:
        await self._redis.delete(self._next)
        await self._redis.call("SETBIT", self._next, self._existing.bits - 1, 0)
        async for keys in self._existing.source():
            batch = [text_of(key) for key in keys]
            for start in range(0, len(batch), _KEYS_AT_ONCE):
                offsets = {
                    offset for key in batch[start : start + _KEYS_AT_ONCE] for offset in self._existing.offsets(key)
                }
                if not await self._add(keys=[self._next], args=list(offsets)):
                    log.warning("the filter %s was lost while it was built; it is built anew", self._lock)
                    return
        life_ms = round(self._existing.config.rebuild_s * 1000)
        await self._use(keys=[self._now, self._next, self._built], args=[life_ms, life_ms * _LIVES])

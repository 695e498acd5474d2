"""The scripts of one space, called: see :mod:`.scripts` for what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from daydo_kernel import new_id
from daydo_redis import Redis

from . import scripts
from .config import CacheConfig
from .record import digits


class Lease(NamedTuple):
    """The right to store the next value of a key. ``since_us`` is when it was given: the value is no older."""

    token: str
    since_us: int


class Claim(NamedTuple):
    """What a claim found: a ``value``, a ``lease``, or that somebody else loads, failed to, or changes it."""

    says: str  # value, load, wait, barred, failed …
    now_us: int
    value: bytes | None
    token: str

    @property
    def lease(self) -> Lease:
        return Lease(self.token, self.now_us)


class Guard:
    """Leases, barriers and values of one space.

    ``now`` gives the time as the scripts take it: µs, or nothing for Redis' own. Every method raises
    :class:`daydo_redis.RedisError` when Redis does not do it, or may not have. All of them may be repeated.
    """

    def __init__(self, redis: Redis, config: CacheConfig, space: str, version: int, now: Callable[[], str]) -> None:
        self._head = f"{config.prefix}:{{{space}:"
        self._version = version
        self._tail = f"}}:{version}"
        self._now = now
        self._lease_us = round(config.lease_s * 1e6)
        self._barrier_us = round(config.barrier_ttl_s * 1e6)
        self._channel = channel(config)
        self._claim = redis.script(scripts.CLAIM, idempotent=True)
        self._fill = redis.script(scripts.FILL, idempotent=True)
        self._renew = redis.script(scripts.RENEW, idempotent=True)
        self._fail = redis.script(scripts.FAIL, idempotent=True)
        self._invalidate = redis.script(scripts.INVALIDATE, idempotent=True)
        self._put = redis.script(scripts.PUT, idempotent=True)

    def value_key(self, key: str) -> str:
        return self._head + key + self._tail

    def value_keys(self, keys: Iterable[str]) -> list[str]:
        """The same for all of ``keys``, which may be many."""
        head, tail = self._head, self._tail
        return [head + key + tail for key in keys]

    def _guard_key(self, key: str) -> str:
        return f"{self._head}{key}}}:g"

    def _keys(self, key: str) -> list[str]:
        """All that ends with an invalidation: the value as this version has it, as the deploy before and the deploy
        after have it (both may be at work right now), and the guard."""
        versions = (self._version, self._version - 1, self._version + 1)
        return [f"{self._head}{key}}}:{name}" for name in (*versions, "g")]

    async def claim(self, key: str, seen: bytes) -> Claim:
        """Ask for the right to load; ``seen``: the digits of the value that is known and not wanted."""
        token = new_id("lease")
        says, now_us, value = await self._claim(
            keys=[self.value_key(key), self._guard_key(key)],
            args=[self._now(), self._version, token, self._lease_us, seen],
        )
        return Claim(says.decode(), now_us, value, token)

    async def fill(self, key: str, lease: Lease, body: bytes, life_s: float) -> bool:
        """Store what was loaded; False if the right to do so was lost."""
        stored = await self._fill(
            keys=[self.value_key(key), self._guard_key(key)],
            args=[self._now(), self._version, lease.token, _millis(life_s), digits(lease.since_us) + body],
        )
        return bool(stored)

    async def renew(self, key: str, lease: Lease) -> bool:
        """Keep others waiting; False if the right was lost."""
        keys = [self._guard_key(key)]
        return bool(await self._renew(keys=keys, args=[self._now(), self._version, lease.token, self._lease_us]))

    async def give_up(self, key: str, lease: Lease, pause_s: float, reason: str) -> None:
        """Give the right back; nobody shall load for ``pause_s``."""
        pause_us = round(pause_s * 1e6)
        keys = [self._guard_key(key)]
        await self._fail(keys=keys, args=[self._now(), self._version, lease.token, pause_us, reason])

    async def invalidate(self, key: str, news: str, *, token: str = "", bar: bool = False) -> None:
        """End the value and every load under way. ``bar``: and let none be stored until the same ``token`` comes
        without it."""
        barrier_us = self._barrier_us if bar else 0
        await self._invalidate(keys=self._keys(key), args=[self._now(), token, barrier_us, self._channel, news])

    async def put(self, key: str, body: bytes, life_s: float, news: str) -> bool:
        """Store whatever was there before; False, and nothing is there, while a transaction bars the key."""
        life_ms = _millis(life_s)
        stored = await self._put(keys=self._keys(key), args=[self._now(), life_ms, body, self._channel, news])
        return bool(stored)


def channel(config: CacheConfig) -> str:
    """Where the news of invalidations are published."""
    return f"{config.prefix}:news"


def _millis(seconds: float) -> int:
    return max(1, round(seconds * 1000))

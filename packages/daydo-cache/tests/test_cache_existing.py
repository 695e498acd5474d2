"""Random keys do not reach the loader, and a key that exists is never denied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from cache_loaders import Loader, User, users_of

from daydo_cache import Cache, CacheConfig, Existing, FilterConfig, Space
from daydo_cache.testing import FaultyRedis
from daydo_redis import RedisUnavailable
from daydo_redis.testing import eventually

SMALL = FilterConfig(capacity=1000, wrong_share=0.01)


class Source:
    """Lists ``keys``; stops after the first batch while ``gate`` is clear."""

    def __init__(self, *keys: str | int) -> None:
        self.keys = list(keys)
        self.read = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()

    async def __call__(self) -> AsyncIterator[Iterable[str | int]]:
        self.read += 1
        keys = list(self.keys)
        self.reached.set()
        yield keys[:1]
        await self.gate.wait()
        yield keys[1:]


async def ready(users: Space[User]) -> None:
    """Wait until its filter is built."""
    keys = users._existing
    assert keys is not None

    async def built() -> bool:
        return await keys._redis.get(keys._built) is not None

    await eventually(built)


async def test_random_keys_do_not_reach_the_loader(redis: FaultyRedis) -> None:
    """Of two hundred keys that nobody has, nearly none is loaded; those that exist all are; the answer is None."""
    source = Source(*(f"u_{number}" for number in range(100)), 7)
    async with Cache(redis) as cache:
        users, load = users_of(cache, existing=Existing(source, SMALL)), Loader(**{"u_7": "Ann", "7": "Bea"})
        await ready(users)
        random_keys = [f"x_{number}" for number in range(200)]
        assert await users.get_many_or_load(random_keys, load.many) == {}
        assert len([key for keys in load.asked for key in keys]) < 20
        load.asked.clear()
        assert await users.get_or_load("u_7", load) == User("u_7", "Ann")
        assert await users.get_or_load(7, load) == User("7", "Bea")
        await users.get_many_or_load([f"u_{number}" for number in range(100)], load.many)
        assert len(load.asked[-1]) == 99, "none of those that exist is denied"


async def test_nobody_is_denied_before_it_is_built(redis: FaultyRedis) -> None:
    """Without a filter everything may exist; nor does a flush deny anybody."""
    source = Source("a", "u_7")
    source.gate.clear()
    async with Cache(redis) as cache:
        users, load = users_of(cache, existing=Existing(source, SMALL)), Loader(u_7="Ann", u_8="Eve", u_9="Ida")
        assert await users.get_or_load("u_8", load) == User("u_8", "Eve")
        await redis.call("FLUSHDB")
        source.gate.set()
        assert await users.get_or_load("u_9", load) == User("u_9", "Ida")


async def test_who_comes_to_be_is_not_denied(redis: FaultyRedis) -> None:
    """A key inserted while the filter is built, behind the back of its source, is known after its invalidation."""
    source = Source("a", "b")
    source.gate.clear()
    async with Cache(redis) as cache:
        users, load = users_of(cache, existing=Existing(source, SMALL)), Loader()
        await source.reached.wait()
        load.users["u_new"] = "Ann"
        await users.invalidate("u_new")
        source.gate.set()
        await ready(users)
        assert await users.get_or_load("u_other", load) is None
        assert load.asked == []
        assert await users.get_or_load("u_new", load) == User("u_new", "Ann")
        assert await users.set("u_newer", User("u_newer", "Bea"))
        users._forget("u_newer")
        await redis.delete(users._guard.value_key("u_newer"))
        load.users["u_newer"] = "Bea"
        assert await users.get_or_load("u_newer", load) is not None


async def test_too_many_to_remember_are_not_denied(near: FaultyRedis) -> None:
    """More keys came to be while Redis was away than are remembered one by one: the filter goes until it is rebuilt."""
    config = CacheConfig(pending_max=2, pending_retry_s=600)
    async with Cache(near, config) as cache:
        users, load = users_of(cache, existing=Existing(Source("a", "b"), SMALL)), Loader(u_1="x", u_2="y", u_3="z")
        await ready(users)
        assert await users.get_or_load("u_1", load) is None
        near.gone = True
        for key in load.users:
            with pytest.raises(RedisUnavailable):
                await users.invalidate(key)
        near.gone = False
        await cache._pending.deliver()
        assert not cache._pending
        assert await users.get_or_load("u_1", load) == User("u_1", "x")
        assert users._existing is not None
        await users._existing.rebuild_if_due()
        assert await users.get_or_load("u_4", load) is None
        assert "u_4" not in load.asked


async def test_one_process_builds(redis: FaultyRedis) -> None:
    """Two processes start together: the source is read once, and again when the filter is old."""
    source = Source("a", "b")
    async with Cache(redis) as one, Cache(redis) as two:
        spaces = [users_of(cache, existing=Existing(source, SMALL)) for cache in (one, two)]
        await ready(spaces[0])
        for users in spaces:
            assert users._existing is not None
            await users._existing.rebuild_if_due()
        assert source.read == 1
        keys = spaces[1]._existing
        assert keys is not None
        await redis.delete(keys._built)
        await keys.rebuild_if_due()
        assert source.read == 2


async def test_redis_away_denies_nobody(near: FaultyRedis) -> None:
    """Without Redis all keys are loaded."""
    async with Cache(near) as cache:
        users, load = users_of(cache, existing=Existing(Source("a", "b"), SMALL)), Loader(u_7="Ann")
        await ready(users)
        near.gone = True
        assert await users.get_or_load("u_7", load) == User("u_7", "Ann")


def test_filter_has_bounds() -> None:
    """Its size follows from its numbers; one that cannot be is refused."""
    existing = Existing(Source())
    assert (existing.bits, existing.hashes) == (9_585_059, 7)
    assert len(set(existing.offsets("u_7"))) == 7
    assert existing.offsets("u_7") == Existing(Source()).offsets("u_7")
    with pytest.raises(ValueError, match=r"2\*\*32"):
        Existing(Source(), FilterConfig(capacity=400_000_000, wrong_share=0.0001))

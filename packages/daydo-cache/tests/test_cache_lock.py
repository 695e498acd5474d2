"""One holder at a time, as far as that is possible, and a number for the rest."""

from __future__ import annotations

import asyncio

import pytest
from cache_loaders import counted

from daydo_cache import BadKey, Cache, LockBusy, LockLost
from daydo_cache.testing import FaultyRedis
from daydo_redis import RedisTimeout
from daydo_redis.testing import SHORT_S, eventually


async def test_one_at_a_time(cache: Cache, redis: FaultyRedis) -> None:
    """While one holds it another is refused, in this process and in others; then it is free."""
    async with Cache(redis) as other:
        async with cache.lock("nightly"):
            for each in (cache, other):
                with pytest.raises(LockBusy) as busy:
                    async with each.lock("nightly"):
                        raise AssertionError("two at once")
                assert busy.value.retryable
            async with other.lock("hourly"):
                pass
        async with other.lock("nightly"):
            pass


async def test_waiting_is_bounded(cache: Cache) -> None:
    """Who waits long enough gets it when it is given back; all of ten take their turn."""
    inside = most = 0

    async def work() -> None:
        nonlocal inside, most
        async with cache.lock("x", wait_s=SHORT_S):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1

    await asyncio.gather(*(work() for _ in range(10)))
    assert most == 1


async def test_fence_grows(cache: Cache, redis: FaultyRedis) -> None:
    """Every holder has a greater number, also after Redis has forgotten everything."""
    fences = []
    for _ in range(5):
        async with cache.lock("x") as held:
            fences.append(held.fence)
    await redis.call("FLUSHDB")
    async with cache.lock("x") as held:
        fences.append(held.fence)
    assert fences == sorted(set(fences))
    assert fences[-1] < 2**53


async def test_lock_is_renewed(cache: Cache, redis: FaultyRedis) -> None:
    """Inside a block what is left of the lock's life grows again."""
    async with cache.lock("x", ttl_s=1.5):
        lives: list[int] = []

        async def renewed() -> bool:
            lives.append(await redis.call("PTTL", "daydo_cache:lock:{x}"))
            return len(lives) > 1 and lives[-1] > lives[-2]

        await eventually(renewed)
        with pytest.raises(LockBusy):
            async with cache.lock("x"):
                raise AssertionError("two at once")


async def test_only_the_owner_gives_back(cache: Cache, redis: FaultyRedis) -> None:
    """A holder that was overtaken does not take the lock from its successor, and its block ends."""

    async def work() -> None:
        async with cache.lock("x", ttl_s=0.15):
            await redis.delete("daydo_cache:lock:{x}")
            async with cache.lock("x", ttl_s=30):
                await asyncio.sleep(SHORT_S)

    with pytest.raises(LockLost):
        await work()
    assert counted(cache.metrics, "locks_total", "lost") == 1


async def test_successor_keeps_it(cache: Cache, redis: FaultyRedis) -> None:
    """The late release of the first leaves the second where it is."""
    first = cache.lock("x")
    await first.__aenter__()
    await redis.delete("daydo_cache:lock:{x}")
    async with cache.lock("x"):
        await first.__aexit__(None, None, None)
        with pytest.raises(LockBusy):
            async with cache.lock("x"):
                raise AssertionError("two at once")


async def test_error_of_the_block_passes(cache: Cache) -> None:
    """What the block raises is raised, a timeout of its own included; the lock is free afterwards."""
    for error in (RuntimeError, TimeoutError):
        with pytest.raises(error):
            async with cache.lock("x"):
                raise error
    async with cache.lock("x"):
        pass


async def test_lost_answer_gives_back(near: FaultyRedis) -> None:
    """The lock may have been taken, nobody knows: it is given back, and the error says what happened."""
    async with Cache(near) as cache:
        near.losing = True
        with pytest.raises(RedisTimeout):
            async with cache.lock("x"):
                raise AssertionError("nobody knows")
        near.losing = False
        async with cache.lock("x"):
            pass


async def test_bad_arguments_are_refused(cache: Cache) -> None:
    """Names, lifetimes and waits that cannot be."""
    for name, times in (("", {}), ("x" * 513, {})):
        with pytest.raises(BadKey):
            cache.lock(name, **times)
    for times in ({"ttl_s": 0.0}, {"ttl_s": 4000.0}, {"wait_s": -1.0}):
        with pytest.raises(ValueError, match="a lock lives"):
            cache.lock("x", **times)

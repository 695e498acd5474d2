"""Redis slow, frozen, gone, flushed, full: values still come, and nothing wrong stays."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
from cache_loaders import Loader, User, counted, users_of

from daydo_cache import Cache, CacheConfig, Existing, FilterConfig, LockLost, Policy
from daydo_cache.testing import FaultyRedis
from daydo_kernel.testing import ManualClock
from daydo_redis import Redis, RedisConfig, RedisError, RedisFull
from daydo_redis.embedded import PrivateRedis
from daydo_redis.testing import CALM, SHORT_S, eventually

ANN = User("u_7", "Ann")


def timed_out(redis: Redis) -> float:
    """Calls that waited for an answer in vain."""
    [family] = [family for family in redis.metrics.snapshot() if family.name == "daydo_redis_commands_total"]
    return sum(cell.values[0] for cell in family.cells if cell.labels == ("timeout",))


# -- gone --------------------------------------------------------------------------------------------------------------


async def test_starts_without_redis() -> None:
    """Nobody listens there: values are loaded, health says degraded, locks and changes say why."""
    async with Redis("redis://127.0.0.1:1") as redis, Cache(redis) as cache:
        users, load = users_of(cache), Loader(u_7="Ann")
        assert await users.get_or_load("u_7", load) == ANN
        assert await users.get_many_or_load(["u_7", "u_0"], load.many) == {"u_7": ANN}
        assert (await cache.health()).status == "degraded"
        for change in (users.set("u_7", ANN), users.invalidate("u_7"), users.clear(), cache.invalidate_tags("t")):
            with pytest.raises(RedisError):
                await change
        with pytest.raises(RedisError):
            async with cache.lock("x"):
                raise AssertionError("nobody has it")


async def test_without_redis_one_load_per_bound(near: FaultyRedis, clock: ManualClock) -> None:
    """While Redis is away a value is loaded once per process and ``staleness_s``, not once per call."""
    async with Cache(near, CacheConfig(staleness_s=2), clock=clock) as cache:
        users, load = users_of(cache), Loader(u_7="Ann")
        near.gone = True
        for passed_s, asked in ((0, 1), (1.9, 1), (0.2, 2), (1.9, 2)):
            clock.advance(passed_s)
            await asyncio.gather(*(users.get_or_load("u_7", load) for _ in range(10)))
            assert len(load.asked) == asked


async def test_redis_that_comes_back_is_used(near: FaultyRedis, clock: ManualClock) -> None:
    """What was loaded meanwhile is stored the next time it is loaded."""
    async with Cache(near, clock=clock) as cache:
        users, load = users_of(cache), Loader(u_7="Ann")
        near.gone = True
        await users.get_or_load("u_7", load)
        near.gone = False
        clock.advance(3)
        await users.get_or_load("u_7", load)
        assert await near.get(users._guard.value_key("u_7")) is not None


async def test_redis_gone_during_the_load(near: FaultyRedis) -> None:
    """The value is handed out though it cannot be stored, also if nobody knows whether it was."""
    async with Cache(near) as cache:
        users, load = users_of(cache), Loader(u_7="Ann", u_8="Eve")
        for fault, key in (("gone", "u_7"), ("losing", "u_8")):
            load.gate.clear()
            load.reached.clear()
            task = asyncio.create_task(users.get_or_load(key, load))
            await load.reached.wait()
            setattr(near, fault, True)
            load.gate.set()
            assert await task is not None
            setattr(near, fault, False)
        assert counted(cache.metrics, "fills_total", "user", "not_stored") == 2


# -- slow and frozen ---------------------------------------------------------------------------------------------------


async def test_slow_redis_is_waited_for(near: FaultyRedis) -> None:
    """A Redis that takes its time is asked as often as a quick one: the loader is not."""
    async with Cache(near) as cache:
        users, load = users_of(cache, policy=Policy(local_entries=0)), Loader(u_7="Ann")
        near.delay_s = 0.01
        await asyncio.gather(*(users.get_or_load("u_7", load) for _ in range(20)))
        await users.get_or_load("u_7", load)
        assert len(load.asked) == 1


async def test_frozen_redis_costs_one_timeout(server: PrivateRedis) -> None:
    """A crowd that meets a frozen server waits for the timeout, loads once, and then no more waits."""
    async with Redis(server.url, RedisConfig(breaker_failures=1, breaker_open_s=60)) as redis, Cache(redis) as cache:
        users, load = users_of(cache), Loader(u_7="Ann", u_8="Eve")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(SHORT_S):  # 80 ms, and what a busy machine is late
                values = await asyncio.gather(*(users.get_or_load("u_7", load) for _ in range(200)))
            assert set(values) == {ANN}
            waited = timed_out(redis)
            assert waited > 0
            await users.get_or_load("u_8", load)
            assert timed_out(redis) == waited
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert load.asked[-1] == "u_8"
        # On a busy machine a crowd comes in two: who begins after the first load has ended, without Redis, loads anew.
        assert load.asked.count("u_7") <= 3


# -- flushed -----------------------------------------------------------------------------------------------------------


async def test_flush_is_a_miss(cache: Cache, redis: FaultyRedis) -> None:
    """Everything is loaded anew; a load that was under way is not stored, for its lease is forgotten."""
    users, load = users_of(cache, policy=Policy(local_entries=0)), Loader(u_7="Ann", u_8="Eve")
    await users.get_or_load("u_7", load)
    load.gate.clear()
    load.reached.clear()
    task = asyncio.create_task(users.get_or_load("u_8", load))
    await load.reached.wait()
    await redis.call("FLUSHDB")
    load.gate.set()
    await task
    assert await redis.get(users._guard.value_key("u_8")) is None
    assert await users.get_or_load("u_7", load) == ANN
    assert load.asked == ["u_7", "u_8", "u_7"]


# -- full --------------------------------------------------------------------------------------------------------------


async def test_full_redis_still_invalidates(server: PrivateRedis) -> None:
    """No room: values are loaded and handed out, invalidations are carried out, what must be stored says so."""
    async with Redis(server.url, CALM) as redis, Cache(redis) as cache:
        users, load = users_of(cache, policy=Policy(local_entries=0)), Loader(u_7="Ann", u_8="Eve")
        await users.get_or_load("u_7", load)
        await redis.call("CONFIG SET", "maxmemory", 1)
        assert await users.get_or_load("u_8", load) == User("u_8", "Eve")
        load.users["u_7"] = "Bea"
        await users.invalidate("u_7")
        assert await users.get_or_load("u_7", load) == User("u_7", "Bea")
        await cache.invalidate_tags("t")
        await users.clear()
        with pytest.raises(RedisFull):
            await users.set("u_9", ANN)
        with pytest.raises(RedisFull):
            async with cache.lock("x"):
                raise AssertionError("nobody has it")
        await redis.call("CONFIG SET", "maxmemory", 0)
        await eventually(lambda: not cache._pending)


async def test_full_redis_has_no_room_in_the_filter(server: PrivateRedis) -> None:
    """The values of a key that the filter does not know end, and the caller is told; it is added when there is room."""

    async def nobody() -> AsyncIterator[list[str]]:
        yield []

    async with Redis(server.url, CALM) as redis, Cache(redis) as cache:
        users, load = users_of(cache, existing=Existing(nobody, FilterConfig(capacity=1000))), Loader(u_7="Ann")
        keys = users._existing
        assert keys is not None
        await eventually(lambda: redis.get(keys._built))
        assert await users.get_or_load("u_7", load) is None
        await redis.call("CONFIG SET", "maxmemory", 1)
        with pytest.raises(RedisFull):
            await users.invalidate("u_7")
        await redis.call("CONFIG SET", "maxmemory", 0)
        await eventually(lambda: not cache._pending)
        await users.invalidate("u_7")  # now that it is known there is no need for room
        await redis.call("CONFIG SET", "maxmemory", 1)
        await users.invalidate("u_7")
        await redis.call("CONFIG SET", "maxmemory", 0)
        assert await users.get_or_load("u_7", load) == ANN


# -- killed ------------------------------------------------------------------------------------------------------------


async def test_restart_is_survived(server: PrivateRedis) -> None:
    """Another, empty server in its place: news arrive again, memory was cleared, values are loaded and stored."""
    config = RedisConfig(breaker_open_s=0.05, pubsub_retry_max_s=0.1)
    async with Redis(server.url, config) as redis, Cache(redis, CacheConfig(staleness_s=0.5)) as cache:
        users, load = users_of(cache), Loader(u_7="Ann")
        await users.get_or_load("u_7", load)
        await asyncio.to_thread(server.start_again, 10)
        await eventually(lambda: not users._shelf.memory.entries, within_s=2 * SHORT_S)
        await eventually(lambda: cache._is_linked, within_s=2 * SHORT_S)
        assert await users.get_or_load("u_7", load) == ANN
        assert await redis.get(users._guard.value_key("u_7")) is not None


async def test_lock_is_lost_with_redis(near: FaultyRedis) -> None:
    """A holder that cannot renew is stopped when its lock ends."""
    async with Cache(near) as cache:

        async def work() -> None:
            async with cache.lock("x", ttl_s=0.1):
                near.gone = True
                await asyncio.sleep(SHORT_S)

        with pytest.raises(LockLost):
            await work()

"""The noun as a whole: its life, its health, its figures."""

from __future__ import annotations

import asyncio

import pytest
from cache_loaders import Loader, counted, users_of

from daydo_cache import Cache, CacheConfig, Policy
from daydo_cache.testing import FaultyRedis, stampede
from daydo_kernel import Draining, NotStarted
from daydo_kernel.testing import ManualClock
from daydo_redis import Redis
from daydo_redis.testing import eventually


async def test_not_entered_says_so() -> None:
    """Every call before entry and after exit is refused; spaces can be made at any time."""
    async with Redis("embedded://memory") as redis:
        cache = Cache(redis)
        users, load = users_of(cache), Loader(u_7="Ann")
        for _ in range(2):
            for call in (
                lambda: users.get_or_load("u_7", load),
                lambda: users.get_many_or_load(["u_7"], load.many),
                lambda: users.set("u_7", None),
                lambda: users.invalidate("u_7"),
                lambda: users.clear(),
                lambda: cache.invalidate_tags("t"),
            ):
                with pytest.raises(NotStarted):
                    await call()
            with pytest.raises(NotStarted):
                cache.lock("x")
            async with cache:
                await users.get_or_load("u_7", load)
        assert not users._shelf.memory.entries


async def test_no_task_outlives_it(near: FaultyRedis) -> None:
    """Also when a load is under way that does not end by itself."""
    load = Loader()
    load.gate.clear()
    async with Cache(near, CacheConfig(drain_s=0.01)) as cache:
        waiting = asyncio.create_task(users_of(cache).get_or_load("u_7", load))
        await load.reached.wait()
    await asyncio.gather(waiting, return_exceptions=True)
    left = [task for task in asyncio.all_tasks() if task.get_name().startswith("Cache") or "in_turn" in repr(task)]
    assert left == []


@pytest.mark.parametrize("asks", ["alone", "in a crowd", "for many"])
async def test_left_while_redis_is_asked_starts_no_load(near: FaultyRedis, asks: str) -> None:
    """Who still waits for Redis when the cache is left is told so: no load begins in a cache that has ended."""
    load = Loader(u_7="Ann")
    async with Cache(near) as cache:
        users, cache._reader._crowded = users_of(cache), asks == "in a crowd"
        look = users.get_many_or_load(["u_7"], load.many) if asks == "for many" else users.get_or_load("u_7", load)
        near.hold()
        waiting = asyncio.create_task(look)
        await eventually(lambda: cache._reader._under_way == 1)
    near.release()
    with pytest.raises(Draining):
        await waiting
    assert load.asked == []


async def test_left_while_redis_is_asked_serves_what_is_there(near: FaultyRedis, clock: ManualClock) -> None:
    """A value within its grace, which would be loaded anew, is served once more."""
    load = Loader(u_7="Ann")
    async with Cache(near, clock=clock) as cache:
        users = users_of(cache, ttl_s=10, grace_s=1000, policy=Policy(local_entries=0))
        ann = await users.get_or_load("u_7", load)
        clock.advance(20)
        near.hold()
        waiting = asyncio.create_task(users.get_or_load("u_7", load))
        await eventually(lambda: cache._reader._under_way == 1)
        asyncio.get_running_loop().call_later(0.05, near.release)
    assert await waiting == ann
    assert load.asked == ["u_7"]


async def test_health_tells_figures(cache: Cache) -> None:
    """Entries, bytes, spaces; ok while the news arrive."""
    await users_of(cache).get_or_load("u_7", Loader(u_7="Ann"))
    health = await cache.health()
    assert health.status == "ok"
    assert health.detail["local_entries"] == health.detail["spaces"] == health.detail["linked"] == 1


async def test_metrics_are_there_from_the_start(cache: Cache) -> None:
    """Every outcome of a space reads 0 before it first happens; evictions are counted."""
    users = users_of(cache, policy=Policy(local_entries=2))
    reads = next(family for family in cache.metrics.snapshot() if family.name == "daydo_cache_reads_total")
    assert {cell.labels[1] for cell in reads.cells} == {
        *("local", "redis", "stale", "loaded", "absent", "failed", "timeout")
    }
    load = Loader(a="A", b="B", c="C")
    for key in "abc":
        await users.get_or_load(key, load)
    assert counted(cache.metrics, "local_evicted_total", "user") == 1
    assert counted(cache.metrics, "local_entries", "user") == 2
    assert counted(cache.metrics, "link_up") == 1


async def test_stampede_reports_a_failing_process(redis_server_url: str | None) -> None:
    """A process that cannot run is an error with its words, not a hang."""
    if redis_server_url is None:
        pytest.skip("processes share a server, and --embedded leaves servers out")
    with pytest.raises(RuntimeError, match="no_such_module"):
        await stampede(redis_server_url, processes=1, gets=1, target="no_such_module:x")

"""The bound: what was invalidated is not served from memory for longer, whatever breaks."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from cache_loaders import Loader, User, counted, users_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daydo_cache import Cache, CacheConfig, Policy
from daydo_cache.testing import FaultyRedis
from daydo_kernel import new_id
from daydo_kernel.testing import ManualClock
from daydo_redis import RedisError, embedded
from daydo_redis.testing import eventually

ANN, BEA = User("u_7", "Ann"), User("u_7", "Bea")
BOUND = CacheConfig(staleness_s=2)


async def test_deaf_process_stops_using_its_memory(near: FaultyRedis, far: FaultyRedis, clock: ManualClock) -> None:
    """News are lost without a word: the old value is served within the bound, and not after it."""
    async with Cache(near, BOUND, clock=clock) as cache, Cache(far, BOUND, clock=clock) as other:
        here, there, load = users_of(cache), users_of(other), Loader(u_7="Ann")
        await here.get_or_load("u_7", load)
        near.deaf = True
        load.users["u_7"] = "Bea"
        await there.invalidate("u_7")
        clock.advance(1.9)
        assert await here.get_or_load("u_7", load) == ANN
        clock.advance(0.2)
        assert await here.get_or_load("u_7", load) == BEA
        assert (await cache.health()).status == "degraded"


async def test_deaf_process_does_not_join_old_loads(near: FaultyRedis, far: FaultyRedis, clock: ManualClock) -> None:
    """A load that has been under way for longer than the bound is not joined by who could not hear of a change."""
    async with Cache(near, BOUND, clock=clock) as cache, Cache(far, BOUND, clock=clock) as other:
        here, there, load = users_of(cache), users_of(other), Loader(u_7="Ann")
        load.gate.clear()
        early = asyncio.create_task(here.get_or_load("u_7", load))
        await load.reached.wait()
        near.deaf = True
        load.users["u_7"] = "Bea"
        await there.invalidate("u_7")
        clock.advance(2.1)
        late = asyncio.create_task(here.get_or_load("u_7", load))
        await eventually(lambda: len(load.asked) == 2)
        load.gate.set()
        assert await late == BEA
        assert await early == ANN


async def test_deaf_process_asks_for_tags_again(near: FaultyRedis, far: FaultyRedis, clock: ManualClock) -> None:
    """Times of tags are under the same bound."""
    tags = {"tags": lambda key, user: ["all"], "policy": Policy(local_entries=0)}
    async with Cache(near, BOUND, clock=clock) as cache, Cache(far, BOUND, clock=clock) as other:
        here, load = users_of(cache, **tags), Loader(u_7="Ann")
        await here.get_or_load("u_7", load)
        near.deaf = True
        load.users["u_7"] = "Bea"
        clock.advance(0.1)
        await other.invalidate_tags("all")
        clock.advance(2.1)
        assert await here.get_or_load("u_7", load) == BEA


async def test_memory_is_cleared_when_news_may_be_missing(near: FaultyRedis, far: FaultyRedis) -> None:
    """The connection was lost and is back: everything in memory goes, reads under way included."""
    async with Cache(near) as cache, Cache(far) as other:
        here, there, load = users_of(cache), users_of(other), Loader(u_7="Ann")
        await here.get_or_load("u_7", load)
        mark = here._shelf.news.mark
        gaps = counted(cache.metrics, "news_gaps_total")
        near.drop_subscribers()
        await there.invalidate("u_8")
        await eventually(lambda: counted(cache.metrics, "news_gaps_total") > gaps)
        assert not here._shelf.memory.entries
        assert not here._shelf.news.quiet("u_7", mark)


async def test_late_beat_proves_what_was_before_it(near: FaultyRedis, clock: ManualClock) -> None:
    """What counts is when a beat was sent: one that took long vouches for that much less."""
    async with Cache(near, CacheConfig(staleness_s=2, beats=2), clock=clock) as cache:
        await eventually(lambda: cache._is_linked)
        near.hold()
        clock.advance(0.1)
        sent_s = clock.now_us() / 1e6
        beat = asyncio.create_task(cache._link.beat())
        await asyncio.sleep(0)
        clock.advance(1.5)
        near.release()
        await beat
        await eventually(lambda: cache._link.vouched_s > sent_s + 1.95)
        assert cache._link.vouched_s - sent_s == pytest.approx(2, abs=0.01)


async def test_beats_keep_the_link(near: FaultyRedis) -> None:
    """While news arrive memory is used well beyond the bound; health is ok."""
    async with Cache(near, CacheConfig(staleness_s=0.2, beats=10)) as cache:
        users, load = users_of(cache), Loader(u_7="Ann")
        await users.get_or_load("u_7", load)
        await asyncio.sleep(0.5)
        await eventually(lambda: cache._is_linked)
        calls = near.calls
        await users.get_or_load("u_7", load)
        assert near.calls - calls <= 1, "no more than a beat"
        assert (await cache.health()).status == "ok"


# -- any order of events, two processes --------------------------------------------------------------------------------

STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 1), st.sampled_from(["key", "tag", "clear"])),
    st.tuples(st.just("read"), st.integers(0, 1), st.booleans()),
    st.tuples(st.just("pass"), st.floats(0.05, 1.5), st.none()),
    st.tuples(st.sampled_from(["deaf", "gone", "losing", "drop", "hold"]), st.integers(0, 1), st.booleans()),
    st.tuples(st.just("yield"), st.integers(1, 6), st.none()),
    st.tuples(st.just("flush"), st.none(), st.none()),
)


class World:
    """A number that grows, two caches in front of it, and a record of what each read was allowed to see."""

    def __init__(self, redises: list[FaultyRedis], clock: ManualClock) -> None:
        self.redises = redises
        self.clock = clock
        self.number = 0
        self.acknowledged: list[tuple[float, int]] = []
        self.reading: list[asyncio.Task[None]] = []

    @property
    def now_s(self) -> float:
        return self.clock.now_us() / 1e6

    async def load(self, key: str) -> int:
        number = self.number
        for _ in range(random.randrange(4)):
            await asyncio.sleep(0)
        return number

    async def write(self, caches: list[Cache], who: int, how: str) -> None:
        self.number += 1
        number, cache = self.number, caches[who]
        work = {
            "key": lambda: cache._spaces["n"].invalidate("k"),
            "tag": lambda: cache.invalidate_tags("all"),
            "clear": lambda: cache._spaces["n"].clear(),
        }[how]
        try:
            async with asyncio.timeout(0.5):
                await work()
        except (RedisError, TimeoutError):
            return
        self.acknowledged.append((self.now_s, number))

    async def read(self, caches: list[Cache], who: int) -> None:
        asked_s = self.now_s
        value = await caches[who]._spaces["n"].get_or_load("k", self.load)
        owed = max((number for at_s, number in self.acknowledged if at_s <= asked_s - BOUND.staleness_s), default=0)
        assert value >= owed, f"read {value}, though {owed} was acknowledged longer ago than the bound"


async def play(steps: list[tuple[Any, ...]], url: str) -> None:
    clock = ManualClock()
    async with FaultyRedis(url) as one, FaultyRedis(url) as two:
        world = World([one, two], clock)
        quick = CacheConfig(staleness_s=2, pending_retry_s=0.01, start_wait_s=0.2)
        async with Cache(one, quick, clock=clock) as first, Cache(two, quick, clock=clock) as second:
            caches = [first, second]
            for cache in caches:
                cache.space("n", int, ttl_s=1000, grace_s=1000, tags=lambda key, number: ["all"])
            for step in steps:
                await take(step, world, caches)
            for redis in world.redises:
                redis.release()
                redis.gone = redis.losing = redis.deaf = False
            await asyncio.gather(*world.reading)
            for who in (0, 1):
                clock.advance(BOUND.staleness_s + 0.1)
                await world.read(caches, who)


async def take(step: tuple[Any, ...], world: World, caches: list[Cache]) -> None:
    kind, what, how = step
    if kind == "write":
        world.redises[what].release()
        await world.write(caches, what, how)
    elif kind == "read":
        task = asyncio.create_task(world.read(caches, what))
        world.reading.append(task)
        if how and world.redises[what]._gate.is_set():
            await task
    elif kind == "pass":
        world.clock.advance(what)
    elif kind == "yield":
        for _ in range(what):
            await asyncio.sleep(0)
    elif kind == "flush":
        await caches[0]._redis.__class__.__mro__[1].call(world.redises[0], "FLUSHALL")  # whatever is broken
    elif kind == "drop":
        world.redises[what].drop_subscribers()
    elif kind == "hold":
        (world.redises[what].hold if how else world.redises[what].release)()
    else:
        setattr(world.redises[what], kind, how)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, min_size=5, max_size=40))
def test_nothing_is_staler_than_the_bound(steps: list[tuple[Any, ...]]) -> None:
    """Writes, reads, lost news, lost answers, frozen and flushed Redis, in any order, through two caches."""
    url = f"embedded://memory/{new_id('test')}"
    try:
        asyncio.run(play(steps, url))
    finally:
        embedded.forget_memory(url)


# -- two real processes ------------------------------------------------------------------------------------------------


async def test_two_processes_keep_the_bound(redis_server_url: str | None) -> None:
    """Two processes read and write as fast as they can while connections are cut: no read is older than the bound."""
    if redis_server_url is None:
        pytest.skip("processes share a server, and --embedded leaves servers out")
    program = Path(__file__).parent / "cache_process.py"
    children = [
        await asyncio.create_subprocess_exec(
            sys.executable, str(program), redis_server_url, str(seed), stdout=asyncio.subprocess.PIPE
        )
        for seed in (1, 2)
    ]
    outputs = [json.loads((await child.communicate())[0]) for child in children]
    written = sorted(write for output in outputs for write in output["written"])
    reads = [read for output in outputs for read in output["reads"]]
    assert len(written) > 20
    assert len(reads) > 200
    assert max(output["bound_s"] for output in outputs) == outputs[0]["bound_s"]
    for asked_s, value in reads:
        owed = max((number for at_s, number in written if at_s <= asked_s - outputs[0]["bound_s"]), default=0)
        assert value >= owed

"""Many ask at once: one loads, and nobody pays for what another does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from cache_loaders import Loader, User, counted, users_of

from daydo_cache import Cache, CacheConfig, LoadTimeout, Policy
from daydo_cache.testing import FaultyRedis, stampede
from daydo_kernel import DaydoError, Draining
from daydo_kernel.testing import ManualClock
from daydo_redis import Redis, RedisCommandFailed, RedisUnavailable
from daydo_redis.embedded import PrivateRedis
from daydo_redis.testing import CALM, SHORT_S, eventually

ANN = User("u_7", "Ann")


async def test_one_load_for_all_who_ask(cache: Cache, redis: FaultyRedis) -> None:
    """Two hundred callers in two processes: the loader is asked once."""
    load = Loader(u_7="Ann")
    async with Cache(redis) as other:
        spaces = [users_of(cache), users_of(other)]
        values = await asyncio.gather(*(users.get_or_load("u_7", load) for users in spaces for _ in range(100)))
    assert set(values) == {ANN}
    assert load.asked == ["u_7"]


async def test_four_processes_load_once(redis_server_url: str | None) -> None:
    """The same with processes of their own, as many as a small service has."""
    if redis_server_url is None:
        pytest.skip("processes share a server, and --embedded leaves servers out")
    seen = await stampede(redis_server_url, processes=4, gets=50, load_s=0.05)
    assert (seen.loads, seen.values) == (1, 1)


async def test_cancelled_caller_takes_nobody_along(cache: Cache) -> None:
    """The first of ten gives up, then another: the load goes on, and eight get its value."""
    users, load = users_of(cache), Loader(u_7="Ann")
    load.gate.clear()
    tasks = [asyncio.create_task(users.get_or_load("u_7", load)) for _ in range(10)]
    await load.reached.wait()
    for task in (tasks[0], tasks[5]):
        task.cancel()
    await asyncio.sleep(0)
    load.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert outcomes.count(ANN) == 8
    assert tasks[0].cancelled()
    assert tasks[5].cancelled()
    assert load.asked == ["u_7"]


async def test_load_outlives_all_who_asked(cache: Cache) -> None:
    """Everybody gives up; the value is there for the next one."""
    users, load = users_of(cache), Loader(u_7="Ann")
    load.gate.clear()
    task = asyncio.create_task(users.get_or_load("u_7", load))
    await load.reached.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    load.gate.set()
    await eventually(lambda: bool(users._shelf.memory.entries))
    assert await users.get_or_load("u_7", load) == ANN
    assert load.asked == ["u_7"]


async def test_readers_cancelled_in_a_crowd(cache: Cache) -> None:
    """Callers that give up while their keys are read together leave the others their answers, whoever led them."""
    users, load = users_of(cache, policy=Policy(local_entries=0)), Loader()
    load.users = {f"u_{number}": "x" for number in range(30)}
    await users.get_many_or_load(load.users, load.many)
    for turn in range(6):
        tasks = [asyncio.create_task(users.get_or_load(key, load)) for key in load.users]
        for _ in range(turn):
            await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(
            outcome == User(key, "x")
            for key, outcome in zip(load.users, outcomes, strict=True)
            if key and not isinstance(outcome, asyncio.CancelledError)
        )
        assert sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes) <= 10
    assert len(load.asked) == 1


def noted(redis: FaultyRedis, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the commands that are sent from now on."""
    sent, send = [], redis.call

    def note(*command: Any, merge: bool = True) -> Awaitable[Any]:
        sent.append(command[0])
        return send(*command, merge=merge)

    monkeypatch.setattr(redis, "call", note)
    return sent


async def test_readers_of_several_spaces_share_a_packet(
    cache: Cache, redis: FaultyRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of any space in one turn is one MGET; each space judges its own, and one who gives up is alone."""
    load = Loader()
    spaces = [cache.space(name, User, policy=Policy(local_entries=0)) for name in ("one", "two")]
    asked = [(space, key) for space in spaces for key in ("a", "b", "nobody") for _ in range(3)]
    for space in spaces:
        load.users = {"a": f"Ann of {space.name}", "b": f"Bea of {space.name}"}
        await space.get_many_or_load(["a", "b"], load.many)
        assert await space.get_or_load("nobody", load) is None
    loads, cache._reader._crowded = len(load.asked), True
    sent = noted(redis, monkeypatch)
    tasks = [asyncio.create_task(space.get_or_load(key, load)) for space, key in asked]
    await asyncio.sleep(0)
    tasks[0].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    names = {"a": "Ann", "b": "Bea"}
    wanted = [User(key, f"{names[key]} of {space.name}") if key in names else None for space, key in asked]
    assert outcomes[1:] == wanted[1:]
    assert len(load.asked) == loads
    assert sent.count("MGET") == 1


@pytest.mark.parametrize("alone", [True, False])
async def test_a_key_of_another_type_does_not_end_reading_together(
    cache: Cache, redis: FaultyRedis, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """Asked for by itself it is refused; the next readers share a packet all the same."""
    users, load = users_of(cache, policy=Policy(local_entries=0)), Loader(u_1="x", u_2="x", strange="x")
    await users.get_many_or_load(["u_1", "u_2"], load.many)
    await redis.call("LPUSH", users._guard.value_key("strange"), "1")
    await users.get_many_or_load(["strange"] if alone else ["u_1", "strange"], load.many)
    sent = noted(redis, monkeypatch)
    await users.get_many_or_load(["u_1", "u_2"], load.many)
    assert sent == ["MGET"]


async def test_where_keys_travel_alone_they_fail_alone(
    cache: Cache, redis: FaultyRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster refuses keys of several slots in one MGET; one of its nodes is away, and its keys alone are loaded."""
    load = Loader()
    load.users = {f"u_{number}": "x" for number in range(9)}
    users = users_of(cache, policy=Policy(local_entries=0))
    await users.get_many_or_load(load.users, load.many)
    load.asked.clear()
    call, get, lost = redis.call, redis.get, users._guard.value_key("u_3")

    def refuse(*command: Any, merge: bool = True) -> Awaitable[Any]:
        if command[0] == "MGET":
            raise RedisCommandFailed(reason="CROSSSLOT Keys in request don't hash to the same slot", command="MGET")
        return call(*command, merge=merge)

    async def get_or_fail(key: str, *, merge: bool = True) -> bytes | None:
        if key == lost:
            raise RedisUnavailable(reason="connection lost")
        return await get(key, merge=merge)

    monkeypatch.setattr(redis, "call", refuse)
    monkeypatch.setattr(redis, "get", get_or_fail)
    assert await users.get_many_or_load(load.users, load.many) == {key: User(key, "x") for key in load.users}
    assert load.asked == [["u_3"]]


async def test_lone_read_waits_for_nobody(server: PrivateRedis) -> None:
    """Where nothing else is being read, a read is on its way to Redis within its caller's own turn."""
    async with Redis(server.url, CALM) as redis, Cache(redis) as cache:
        users, load = users_of(cache, policy=Policy(local_entries=0)), Loader(u_7="Ann")
        await users.get_or_load("u_7", load)
        free = redis._calls.slots._value
        task = asyncio.create_task(users.get_or_load("u_7", load))
        await asyncio.sleep(0)
        assert redis._calls.slots._value < free
        assert await task == ANN


async def test_crowd_of_readers_gathers_once(server: PrivateRedis) -> None:
    """What came together in one turn of the loop is on its way in the next, and waits for no second crowd."""
    async with Redis(server.url, CALM) as redis, Cache(redis) as cache:
        users, load = users_of(cache, policy=Policy(local_entries=0)), Loader(**{f"u_{n}": "Ann" for n in range(8)})
        for _ in range(2):  # of the second time it is known that they come in crowds
            await asyncio.gather(*(users.get_or_load(f"u_{number}", load) for number in range(8)))
        free = redis._calls.slots._value
        tasks = [asyncio.create_task(users.get_or_load(f"u_{number}", load)) for number in range(8)]
        for _ in range(2):
            await asyncio.sleep(0)
        assert redis._calls.slots._value < free
        assert len(await asyncio.gather(*tasks)) == 8


async def test_large_crowd_of_readers_takes_turns(server: PrivateRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many who ask at once, again and again, go as two halves, both on their way at once; a few go together."""
    async with Redis(server.url, CALM) as redis, Cache(redis) as cache:
        names = [f"u_{number}" for number in range(64)]
        users, load = users_of(cache, policy=Policy(local_entries=0)), Loader(**dict.fromkeys(names, "Ann"))
        await users.get_many_or_load(names, load.many)
        sent, send = [], redis.call

        def noted(*command: Any, merge: bool = True) -> Awaitable[Any]:
            sent.append((len(command) - 1, cache._reader._under_way))
            return send(*command, merge=merge)

        monkeypatch.setattr(redis, "call", noted)

        async def read_at_once(callers: int) -> list[tuple[int, int]]:
            sent.clear()
            found = await asyncio.gather(*(users.get_or_load(name, load) for name in names[:callers]))
            assert found == [User(name, "Ann") for name in names[:callers]]
            return sent

        for _ in range(3):  # It is learnt how many there are.
            await read_at_once(64)
        assert await read_at_once(64) == [(32, 1), (32, 2)]
        assert await read_at_once(16) == [(16, 1)]


async def test_process_that_dies_gives_way(near: FaultyRedis, far: FaultyRedis, clock: ManualClock) -> None:
    """When the lease of a loader that died has run out, who waits loads in its place."""
    config = CacheConfig(lease_s=30)
    async with Cache(far, config, clock=clock) as dead, Cache(near, config, clock=clock) as living:
        gone, users, load = users_of(dead), users_of(living), Loader(u_7="Ann")
        await gone._guard.claim("u_7", b"")  # and never heard of again
        task = asyncio.create_task(users.get_or_load("u_7", load))
        calls = near.calls
        await eventually(lambda: near.calls > calls + 5)
        assert load.asked == []
        clock.advance(31)
        assert await task == ANN


async def test_long_load_keeps_its_lease(near: FaultyRedis, far: FaultyRedis, clock: ManualClock) -> None:
    """A load that lasts longer than a lease is not repeated by another process."""
    config = CacheConfig(lease_s=1.2)  # renewed three times as often, by the host's clock
    async with Cache(far, config, clock=clock) as one, Cache(near, config, clock=clock) as two:
        load, here, there = Loader(u_7="Ann"), users_of(one), users_of(two)
        load.gate.clear()
        tasks = [asyncio.create_task(users.get_or_load("u_7", load)) for users in (here, there)]
        await load.reached.wait()

        async def renewed() -> bool:
            lease = await near.call("HGET", here._guard._guard_key("u_7"), "l:1")
            return int(lease.split()[0]) == clock.now_us() + 1_200_000

        for _ in range(2):
            clock.advance(1)
            await eventually(renewed)
        assert load.asked == ["u_7"]
        load.gate.set()
        assert await asyncio.gather(*tasks) == [ANN, ANN]
    assert load.asked == ["u_7"]


async def test_follower_does_not_wait_for_ever(near: FaultyRedis, clock: ManualClock) -> None:
    """Who waits for another process's load gives up after ``load_max_s``."""
    async with Cache(near, clock=clock) as cache:
        users, load = users_of(cache, policy=Policy(load_max_s=0.05)), Loader(u_7="Ann")
        await users._guard.claim("u_7", b"")
        with pytest.raises(LoadTimeout):
            await users.get_or_load("u_7", load)
    assert load.asked == []


async def test_leaving_waits_for_loads(near: FaultyRedis) -> None:
    """A load that ends within ``drain_s`` is stored, and its callers get it."""
    load = Loader(u_7="Ann")
    load.gate.clear()
    async with Cache(near) as cache:
        users = users_of(cache)
        task = asyncio.create_task(users.get_or_load("u_7", load))
        await load.reached.wait()
        asyncio.get_running_loop().call_later(0.02, load.gate.set)
    assert await task == ANN
    assert await near.get(users._guard.value_key("u_7")) is not None


async def test_leaving_at_once_strands_nobody(near: FaultyRedis) -> None:
    """Reads and loads whose task was cancelled before its first turn end for those who wait for them."""
    cache = Cache(near, CacheConfig(drain_s=0))
    users, load = users_of(cache, policy=Policy(local_entries=0, hard_timeout_s=600)), Loader(u_7="Ann")
    for turns in range(2, 9):
        async with cache:
            users._reader._crowded = True
            tasks = [asyncio.create_task(users.get_or_load(f"u_{number}", load)) for number in range(7, 10)]
            for _ in range(turns):
                await asyncio.sleep(0)
        async with asyncio.timeout(SHORT_S):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, DaydoError | User | None) for each in outcomes)


async def test_leaving_ends_what_is_under_way(near: FaultyRedis) -> None:
    """Callers that still wait when the cache is left are told that it drains, and their load is cancelled."""
    load = Loader(u_7="Ann")
    load.gate.clear()
    async with Cache(near, CacheConfig(drain_s=0.01)) as cache:
        task = asyncio.create_task(users_of(cache).get_or_load("u_7", load))
        await load.reached.wait()
    with pytest.raises(Draining):
        await task


@pytest.mark.parametrize("crowded", [False, True])
async def test_readers_ask_for_tags_that_are_not_known(near: FaultyRedis, crowded: bool) -> None:
    """After a gap in the news nobody knows when a tag was invalidated: who reads asks for that, and does not load."""
    async with Cache(near) as cache:
        users, load = users_of(cache, policy=Policy(local_entries=0)), Loader(a="Ann", b="Bea")
        await users.get_many_or_load(["a", "b"], load.many)
        cache._tags.forget()
        cache._reader._crowded = crowded
        await asyncio.gather(*(users.get_or_load(key, load) for key in ("a", "b")))
        assert counted(cache.metrics, "reads_total", "user", "redis") == 2
        assert load.asked == [["a", "b"]]

"""Three real nodes that share the keys: everything of one key is on one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from cache_loaders import PATIENT, Loader, User, counted, users_of

from daydo_cache import Cache, Existing, FilterConfig, LockBusy, Policy
from daydo_redis import Redis
from daydo_redis.testing import CALM, PrivateCluster, eventually

KEYS = [f"u_{number}" for number in range(40)]


@pytest.fixture(scope="module")
def cluster(pytestconfig: pytest.Config) -> Iterator[PrivateCluster]:
    if pytestconfig.getoption("--embedded"):
        pytest.skip("needs a cluster, and --embedded leaves servers out")
    cluster = PrivateCluster()
    yield cluster
    cluster.stop()


@pytest.fixture
async def caches(cluster: PrivateCluster) -> AsyncIterator[tuple[Cache, Cache]]:
    """Of two processes."""
    for port in cluster.ports:
        cluster.ask(port).flushall()
    one, two = Redis(cluster.url, CALM), Redis(cluster.url, CALM)
    async with one, two, Cache(one, PATIENT) as cache, Cache(two, PATIENT) as other:
        yield cache, other


async def test_values_are_spread_and_read_together(cluster: PrivateCluster, caches: tuple[Cache, Cache]) -> None:
    """One load for all; the other process finds them on three nodes, asked for in one turn or in one call."""
    cache, other = caches
    load = Loader(**dict.fromkeys(KEYS, "Ann"))
    users = users_of(cache)
    assert len(await users.get_many_or_load(KEYS, load.many)) == len(KEYS)
    there = users_of(other, policy=Policy(local_entries=0))
    for _ in range(3):
        values = await asyncio.gather(*(there.get_or_load(key, load) for key in KEYS))
        assert values == [User(key, "Ann") for key in KEYS]
    assert len(await there.get_many_or_load(KEYS, load.many)) == len(KEYS)
    assert len(load.asked) == 1
    assert all(cluster.ask(port).dbsize() > 5 for port in cluster.ports)


async def test_invalidation_reaches_every_node(caches: tuple[Cache, Cache]) -> None:
    """Keys on all nodes, a tag on one of them, a whole space: gone in Redis and in the other process."""
    cache, other = caches
    options = {"tags": lambda key, user: ["everybody"]}
    here, there, load = users_of(cache, **options), users_of(other, **options), Loader(**dict.fromkeys(KEYS, "0"))

    async def renamed(name: str) -> bool:
        return await there.get_many_or_load(KEYS, load.many) == {key: User(key, name) for key in KEYS}

    assert await renamed("0")
    for turn, end in enumerate((here.invalidate(*KEYS), cache.invalidate_tags("everybody"), here.clear()), 1):
        load.users = dict.fromkeys(KEYS, str(turn))
        await end
        await eventually(lambda turn=turn: renamed(str(turn)))


async def test_late_fill_is_refused(caches: tuple[Cache, Cache]) -> None:
    """Lease, barrier and value of a key are in one slot, so one script decides over them."""
    cache, other = caches
    users, load = users_of(cache), Loader(u_7="Ann")
    load.gate.clear()
    early = asyncio.create_task(users.get_or_load("u_7", load))
    await load.reached.wait()
    load.users["u_7"] = "Bea"
    await users_of(other).invalidate("u_7")
    load.gate.set()
    await early
    assert counted(cache.metrics, "fills_total", "user", "refused") == 1
    assert await users.set("u_7", User("u_7", "Cid"))


async def test_lock_and_filter_keep_to_one_slot(caches: tuple[Cache, Cache]) -> None:
    """A lock and its fence; a filter, the one being built, and the note that it was built."""
    cache, other = caches
    async with cache.lock("report") as held:
        assert held.fence > 0
        with pytest.raises(LockBusy):
            async with other.lock("report"):
                raise AssertionError("two at once")

    async def source() -> AsyncIterator[list[str]]:
        yield KEYS

    users, load = users_of(cache, existing=Existing(source, FilterConfig(capacity=1000))), Loader(u_7="Ann")
    keys = users._existing
    assert keys is not None

    async def built() -> bool:
        return await keys._redis.get(keys._built) is not None

    await eventually(built)
    assert await users.get_or_load("u_7", load) == User("u_7", "Ann")
    assert await users.get_or_load("nobody", load) is None
    assert load.asked == ["u_7"]

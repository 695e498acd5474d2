"""Three real nodes that share the slots; a slot moves, a node dies."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import RedisCluster
from redis.crc import key_slot

from daydo_redis import Message, Redis, RedisCommandFailed, RedisConfig, RedisError, RedisUnavailable
from daydo_redis.cluster import LOOK_PAUSE_S
from daydo_redis.testing import CALM, SHORT_S, START_S, PrivateCluster, RoutedConformance, eventually

MISSED = Message(channel="", missed=True)
KEYS = [f"key {number}" for number in range(60)]


@pytest.fixture(scope="module")
def cluster(pytestconfig: pytest.Config) -> Iterator[PrivateCluster]:
    if pytestconfig.getoption("--embedded"):
        pytest.skip("needs a cluster, and --embedded leaves servers out")
    cluster = PrivateCluster()
    yield cluster
    cluster.stop()


def empty(cluster: PrivateCluster) -> None:
    for port in cluster.ports:
        cluster.ask(port).flushall()
        cluster.ask(port).config_resetstat()


def count(cluster: PrivateCluster, port: int, command: str) -> int:
    """How often the node at ``port`` has carried ``command`` out."""
    statistics = cluster.ask(port).info("commandstats")
    return int(statistics.get(f"cmdstat_{command}", {"calls": 0})["calls"])


@pytest.fixture
async def redis(cluster: PrivateCluster) -> AsyncIterator[Redis]:
    empty(cluster)
    async with Redis(cluster.url, CALM) as redis:
        yield redis


class TestCluster(RoutedConformance):
    pass


class TestClusterOfYours(RoutedConformance):
    """Around a redis.asyncio.RedisCluster of the caller, whatever its protocol and decoding."""

    @pytest.fixture
    async def redis(self, cluster: PrivateCluster) -> AsyncIterator[Redis]:
        empty(cluster)
        client = RedisCluster(host="127.0.0.1", port=cluster.ports[0], decode_responses=True, protocol=3)
        async with Redis(client, CALM) as redis:
            yield redis
        for nodes in ("nodes_cache", "startup_nodes"):
            await client.nodes_manager.aclose(nodes)

    async def test_it_is_not_closed(self, cluster: PrivateCluster) -> None:
        """It works on afterwards."""
        async with RedisCluster(host="127.0.0.1", port=cluster.ports[0]) as client:
            async with Redis(client) as redis:
                await redis.set("k", "v")
            assert await client.get("k") == b"v"


async def test_keys_are_spread_and_calls_merged_by_node(cluster: PrivateCluster, redis: Redis) -> None:
    """Sixty keys land on all three nodes, and sixty calls of one turn need a connection to each node, not more."""
    await asyncio.gather(*(redis.set(key, key) for key in KEYS))
    connections = [len(idle) for idle in redis._road._idle.values()]
    assert await asyncio.gather(*map(redis.get, KEYS)) == [key.encode() for key in KEYS]
    assert all(cluster.ask(port).dbsize() > 5 for port in cluster.ports)
    assert max(connections) == 1
    assert await redis.delete(*KEYS) == 60


async def test_single_key_scripts_run_where_their_key_is(cluster: PrivateCluster, redis: Redis) -> None:
    """Each node is told the script once, by the first of the calls that it gets; each call runs once."""
    add = redis.script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    assert await asyncio.gather(*(add(keys=[key], args=[7]) for key in KEYS)) == [7] * 60
    assert await asyncio.gather(*(add(keys=[key], args=[1]) for key in KEYS)) == [8] * 60
    assert [count(cluster, port, "eval") for port in cluster.ports] == [1, 1, 1]


async def test_keys_in_several_slots_are_a_clear_error(redis: Redis) -> None:
    """A script over two slots says what to do about it; with a tag in common it runs."""
    both = redis.script("return {redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])}")
    with pytest.raises(RedisCommandFailed, match=r"share a slot.*\{tag\}"):
        await both(keys=["a", "b"])
    await redis.set("a:{u_7}", 1)
    assert await both(keys=["a:{u_7}", "b:{u_7}"]) == [b"1", None]


async def test_commands_with_their_key_elsewhere_find_it(redis: Redis) -> None:
    """The key of XADD, OBJECT, XREAD and SINTERCARD stands at four different places."""
    for key in KEYS[:6]:
        await redis.call("XADD", key, "*", "field", "value")
        assert await redis.call("OBJECT ENCODING", key) == b"stream"
        [[name, entries]] = await redis.call("XREAD", "COUNT", 1, "STREAMS", key, 0)
        assert (name, len(entries)) == (key.encode(), 1)
    assert await redis.call("SINTERCARD", 1, "absent") == 0


async def test_moved_slot_is_followed(cluster: PrivateCluster, redis: Redis) -> None:
    """While a slot moves and after it has moved, every call is answered, and carried out once."""
    key = "moving"
    slot = key_slot(key.encode())
    assert await redis.call("INCR", key) == 1
    [source] = [port for port in cluster.ports if cluster.ask(port).execute_command("CLUSTER COUNTKEYSINSLOT", slot)]
    target = next(port for port in cluster.ports if port != source)
    ids = {port: cluster.ask(port).execute_command("CLUSTER MYID") for port in cluster.ports}

    cluster.ask(target).execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
    cluster.ask(source).execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
    cluster.ask(source).execute_command("MIGRATE", "127.0.0.1", target, key, 0, 5000)
    add = redis.script("return redis.call('INCR', KEYS[1])")
    asked = await asyncio.gather(redis.call("INCR", key), add(keys=[key]), redis.get("other"))
    assert asked == [2, 3, None]

    for port in (target, source, *cluster.ports):
        cluster.ask(port).execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])
    moved = await asyncio.gather(redis.call("INCR", key), add(keys=[key]), redis.get("other"))
    assert moved == [4, 5, None]
    assert cluster.ask(target).get(key) == "5"


def test_cluster_has_one_database() -> None:
    """A number in the path, several databases being no thing of clusters, is refused at once."""
    assert not Redis("redis+cluster://h:1,h2/0").embedded
    with pytest.raises(ValueError, match="one database"):
        Redis("redis+cluster://h/1")


async def test_no_node_at_all_is_unavailable() -> None:
    """Without any node calls end in time, and say so without naming hosts."""
    async with Redis("redis+cluster://127.0.0.1:1,127.0.0.1:2", RedisConfig(breaker_failures=100)) as redis:
        for _ in range(3):
            with pytest.raises(RedisUnavailable, match="connection lost") as caught:
                await redis.get("k")
        assert "127.0.0.1" not in str(caught.value)


async def test_lost_node_takes_only_its_own_keys_along(cluster: PrivateCluster) -> None:
    """The last test of this file: a node dies. Keys elsewhere are served, and subscribers move over and are told."""
    empty(cluster)
    config = RedisConfig(breaker_open_s=LOOK_PAUSE_S, pubsub_retry_max_s=0.1)
    async with asyncio.timeout(2 * START_S), Redis(cluster.url, config) as redis, redis.subscribe("c") as messages:
        await asyncio.gather(*(redis.set(key, key) for key in KEYS))
        listened = [port for port in cluster.ports if cluster.ask(port).pubsub_channels()]
        [lost] = [number for number, port in enumerate(cluster.ports) if port in listened]
        kept = [key for key in KEYS if not lost * 16384 // 3 <= key_slot(key.encode()) < (lost + 1) * 16384 // 3]
        os.kill(cluster.nodes[lost].pid, signal.SIGKILL)
        with pytest.raises(RedisError):
            await redis.get(next(key for key in KEYS if key not in kept))

        async def served() -> bool:
            answers = await asyncio.gather(*map(redis.get, kept), return_exceptions=True)
            return answers == [key.encode() for key in kept]

        await eventually(served, within_s=SHORT_S)
        assert await anext(messages) == MISSED

        async def published() -> bool:
            try:
                await redis.publish("c", b"after")
            except RedisError:
                return False
            return True

        await eventually(published)
        assert await anext(messages) == Message("c", b"after")

        # What concerns no key is not asked of the lost node for ever.
        while not redis._road._any().name.endswith(f":{cluster.ports[lost]}"):
            redis._road._turn += 1

        async def well() -> bool:
            return (await redis.health()).status == "ok"

        await eventually(well)

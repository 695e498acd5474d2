"""Calls of one turn travel together: what goes over the wire, and what nobody may notice."""

from __future__ import annotations

import asyncio
from typing import Any

import redis as driver
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daydo_kernel import new_id
from daydo_redis import Redis, RedisCommandFailed, RedisConfig, embedded
from daydo_redis.embedded import PrivateRedis
from daydo_redis.testing import CALM, SHORT_S


def merged(redis: Redis) -> float:
    [family] = [family for family in redis.metrics.snapshot() if family.name == "daydo_redis_merged_total"]
    return family.cells[0].values[0]


def statistics(server: PrivateRedis) -> dict[str, int]:
    """How often the server has carried out what, and how many connections it has had."""
    with driver.Redis.from_url(server.url) as client:
        carried_out = {name.removeprefix("cmdstat_"): it["calls"] for name, it in client.info("commandstats").items()}
        return carried_out | {"reads": client.info("stats")["total_reads_processed"]}


async def test_a_turn_is_one_packet(server: PrivateRedis) -> None:
    """A hundred GETs made at once reach the server in one read, as a hundred GETs."""
    async with Redis(server.url, CALM) as redis:
        await redis.set("k", "v")
        before = statistics(server)
        assert await asyncio.gather(*(redis.get("k") for _ in range(100))) == [b"v"] * 100
        after = statistics(server)
        assert after["get"] == 100
        # Besides ours there are the reads of the two clients that ask for these figures.
        assert after["reads"] - before["reads"] < 10
        assert merged(redis) == 100


async def test_one_call_alone_is_not_merged(server: PrivateRedis) -> None:
    """Calls one after another go the plain way: in the caller's own task, uncounted."""
    async with Redis(server.url, CALM) as redis:
        tasks = len(asyncio.all_tasks())
        call = asyncio.create_task(redis.get("k"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == tasks + 1
        await call
        assert merged(redis) == 0


async def test_bounds_of_a_batch_hold(server: PrivateRedis) -> None:
    """merge_max calls or merge_max_bytes bytes make a packet full; what is larger goes alone; all are answered."""
    async with Redis(server.url, RedisConfig(command_timeout_s=SHORT_S, merge_max=10)) as redis:
        answers = await asyncio.gather(*(redis.call("ECHO", number) for number in range(95)))
        assert answers == [b"%d" % number for number in range(95)]
        assert len(redis._road._idle) == 10
    async with Redis(server.url, RedisConfig(command_timeout_s=SHORT_S, merge_max_bytes=5_000)) as redis:
        values = [b"x" * size for size in (10_000, 10, 4_000, 4_000, 10, 20_000)]
        assert await asyncio.gather(*(redis.call("ECHO", value) for value in values)) == values
        assert len(redis._road._idle) == 4, "alone, two, two, alone"


async def test_merging_can_be_switched_off(server: PrivateRedis) -> None:
    """merge_max=1: each call has a connection of its own."""
    async with Redis(server.url, RedisConfig(command_timeout_s=SHORT_S, merge_max=1)) as redis:
        await asyncio.gather(*(redis.get("k") for _ in range(8)))
        assert merged(redis) == 0
        assert len(redis._road._idle) == 8


async def test_who_expects_no_company_does_not_wait_for_it(server: PrivateRedis) -> None:
    """merge=False: the call is on its way within its own turn, and joins nobody."""
    async with Redis(server.url, RedisConfig(command_timeout_s=SHORT_S)) as redis:
        await redis.set("k", "v")
        calls = [asyncio.create_task(redis.get("k", merge=False)) for _ in range(8)]
        await asyncio.sleep(0)
        assert redis._calls.slots._value == RedisConfig().pool_size - 8
        assert await asyncio.gather(*calls) == [b"v"] * 8
        assert merged(redis) == 0


async def test_long_packets_keep_their_order(server: PrivateRedis) -> None:
    """What is too long to be handed to the socket at once arrives in order over one connection, answers likewise."""
    async with Redis(server.url, CALM) as redis:
        lengths = await asyncio.gather(*(redis.call("RPUSH", "list", b"%0*d" % (300, n)) for n in range(100)))
        assert lengths == list(range(1, 101))
        assert [int(value) for value in await redis.call("LRANGE", "list", 0, -1)] == list(range(100))
        assert len(redis._road._idle) == 1


async def test_health_check_of_the_driver_takes_no_answer(server: PrivateRedis) -> None:
    """A connection that is due for the driver's own PING is asked before a long packet, never in the middle of it."""
    async with Redis(server.url, CALM) as redis:
        await redis.set("k", "v")
        [connection] = redis._road._idle
        connection.health_check_interval = 1e-9
        values = [b"%0*d" % (300, number) for number in range(100)]
        assert await asyncio.gather(*(redis.call("ECHO", value) for value in values)) == values
        assert redis._road._idle == [connection]


async def test_wrong_argument_reaches_its_caller_alone(server: PrivateRedis) -> None:
    """What cannot be sent fails where it is written, before it could spoil a packet."""
    async with Redis(server.url, CALM) as redis:
        answers = await asyncio.gather(
            redis.set("k", "v"), redis.set("k", True), redis.set("k", [1]), redis.get("k"), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [bool, TypeError, TypeError, bytes]


async def test_cancelled_before_it_left_is_not_sent(server: PrivateRedis) -> None:
    """A caller that gives up in the turn in which it asked leaves no trace, be it the first of its packet or not."""
    async with asyncio.timeout(SHORT_S), Redis(server.url, CALM) as redis:
        for given_up in ([0], [1], [0, 1, 2], [0, 1, 2, 3]):
            tasks = [asyncio.create_task(redis.call("RPUSH", "list", number)) for number in range(4)]
            await asyncio.sleep(0)
            for number in given_up:
                tasks[number].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            kept = [b"%d" % number for number in range(4) if number not in given_up]
            assert await redis.call("LRANGE", "list", 0, -1) == kept
            await redis.delete("list")


async def test_unknown_scripts_are_told_once_and_run_once(server: PrivateRedis) -> None:
    """After SCRIPT FLUSH a packet of two scripts and other calls sends each text once and repeats nothing else."""
    async with Redis(server.url, CALM) as redis:
        count = redis.script("return redis.call('INCR', KEYS[1])")
        push = redis.script("return redis.call('RPUSH', KEYS[1], ARGV[1])")
        for _ in range(2):
            await redis.call("SCRIPT", "FLUSH")
            await redis.delete("n", "m", "list")
            before = statistics(server)
            calls = [
                call
                for number in range(10)
                for call in (count(keys=["n"]), redis.call("INCR", "m"), push(keys=["list"], args=[number]))
            ]
            answers = await asyncio.gather(*calls)
            assert answers[::3] == answers[1::3] == answers[2::3] == list(range(1, 11))
            assert await redis.call("LRANGE", "list", 0, -1) == [b"%d" % number for number in range(10)]
            after = statistics(server)
            assert after["eval"] - before.get("eval", 0) == 2
            assert after["incr"] - before.get("incr", 0) == 20


async def test_first_call_of_a_script_keeps_its_place(server: PrivateRedis) -> None:
    """A script that the server has never seen runs between the calls made before and after it."""
    async with Redis(server.url, CALM) as redis:
        append = redis.script("return redis.call('APPEND', KEYS[1], ARGV[1])")
        await asyncio.gather(redis.set("k", "a"), append(keys=["k"], args=["b"]), redis.call("APPEND", "k", "c"))
        assert await redis.get("k") == b"abc"


async def test_broken_script_fails_its_callers_alone(server: PrivateRedis) -> None:
    """Lua that does not compile is an error for each of its callers, and for nobody else."""
    async with Redis(server.url, CALM) as redis:
        broken = redis.script("return (")
        answers = await asyncio.gather(broken(), redis.call("INCR", "n"), broken(), broken(), return_exceptions=True)
        assert [type(answer) for answer in answers] == [RedisCommandFailed, int, RedisCommandFailed, RedisCommandFailed]


async def test_leaving_waits_for_a_packet_that_forms(server: PrivateRedis) -> None:
    """Calls made in the very turn in which the Redis is left are answered."""
    redis = Redis(server.url, CALM)
    async with asyncio.timeout(SHORT_S):
        async with redis:
            await redis.set("k", "v")
            tasks = [asyncio.create_task(redis.get("k")) for _ in range(3)]
            await asyncio.sleep(0)
        assert await asyncio.gather(*tasks) == [b"v"] * 3


# -- against a model -------------------------------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "c"])
OPERATIONS = st.one_of(
    st.tuples(st.just("get"), KEYS),
    st.tuples(st.just("take"), KEYS),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("set"), KEYS, st.binary(max_size=5)),
    st.tuples(st.just("new"), KEYS, st.binary(max_size=5)),
    st.tuples(st.just("push"), KEYS, st.binary(max_size=5)),
    st.tuples(st.just("append"), KEYS, st.binary(min_size=1, max_size=5)),  # fakeredis: empty makes no key
)
# How many turns after the call it is given up; None: never. Up to one turn after it nothing has been sent.
GIVEN_UP = st.sampled_from([None, None, None, 0, 1])
TURNS = st.lists(st.lists(st.tuples(OPERATIONS, GIVEN_UP), max_size=12), max_size=6)
APPEND = "redis.call('APPEND', KEYS[1], ARGV[1]); return redis.call('GET', KEYS[1])"
WRONG = RedisCommandFailed


class Model:
    """What a Redis of text and lists answers, one command after the other."""

    def __init__(self) -> None:
        self.data: dict[str, bytes | list[bytes]] = {}

    def apply(self, name: str, key: str, value: bytes = b"") -> Any:
        held = self.data.get(key)
        if name == "set" or (name == "new" and held is None):
            self.data[key] = value
            return True
        if name == "new":
            return False
        if name == "delete":
            return int(self.data.pop(key, None) is not None)
        if name == "push":
            if isinstance(held, bytes):
                return WRONG
            self.data[key] = [*(held or []), value]
            return len(self.data[key])
        if isinstance(held, list):
            return WRONG
        if name == "append":
            self.data[key] = held = (held or b"") + value
        elif name == "take":
            self.data.pop(key, None)
        return held


def sent(redis: Redis, name: str, key: str, value: bytes = b"") -> Any:
    calls = {
        "get": lambda: redis.get(key),
        "take": lambda: redis.take(key),
        "delete": lambda: redis.delete(key),
        "set": lambda: redis.set(key, value),
        "new": lambda: redis.set(key, value, only_new=True),
        "push": lambda: redis.call("RPUSH", key, value),
        "append": lambda: redis.script(APPEND)(keys=[key], args=[value]),
    }
    return calls[name]()


async def play(redis: Redis, turns: list[list[tuple[tuple[Any, ...], int | None]]]) -> None:
    model = Model()
    await redis.call("FLUSHDB")
    for turn in turns:
        tasks = [asyncio.create_task(sent(redis, *operation)) for operation, _ in turn]
        for later in (0, 1):
            for task, (_, given_up) in zip(tasks, turn, strict=True):
                if given_up == later:
                    task.cancel()
            await asyncio.sleep(0)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for (operation, given_up), answer in zip(turn, answers, strict=True):
            if given_up is not None:
                assert isinstance(answer, asyncio.CancelledError)
                continue
            expected = model.apply(*operation)
            if expected is WRONG:
                assert isinstance(answer, WRONG)
                assert "WRONGTYPE" in str(answer)
            else:
                assert answer == expected


@given(TURNS)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_turns_answer_like_one_call_after_the_other(redis_url: str, turns: list[Any]) -> None:
    """Whatever a turn holds — types that do not fit, scripts, callers that give up — a dict says what comes out."""

    async def run() -> None:
        async with Redis(redis_url, CALM) as redis:
            await play(redis, turns)

    asyncio.run(run())


async def test_memory_merges_too() -> None:
    """In process as well a turn is one batch."""
    url = f"embedded://memory/{new_id('test')}"
    async with Redis(url) as redis:
        assert await asyncio.gather(*(redis.call("INCR", "n") for _ in range(50))) == list(range(1, 51))
        assert merged(redis) == 50
    embedded.forget_memory(url)

"""Redis frozen, killed, restarted, overloaded, demoted: every call still ends in time and says how."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis as Client
from redis.exceptions import ResponseError

from daydo_kernel.testing import ManualClock
from daydo_redis import (
    Message,
    Redis,
    RedisCommandFailed,
    RedisConfig,
    RedisError,
    RedisFull,
    RedisTimeout,
    RedisUnavailable,
)
from daydo_redis.call import Call
from daydo_redis.calls import _refused
from daydo_redis.embedded import PrivateRedis
from daydo_redis.testing import SHORT_S, START_S, eventually

MISSED = Message(channel="", missed=True)


@pytest.fixture
def frozen(server: PrivateRedis) -> Iterator[PrivateRedis]:
    """A server that holds its connections and answers nothing, until it is thawed."""
    os.kill(server.pid, signal.SIGSTOP)
    yield server
    os.kill(server.pid, signal.SIGCONT)


def count(redis: Redis, outcome: str) -> float:
    return redis._calls.outcomes[outcome].value


async def answering(redis: Redis) -> None:
    """Wait until calls are answered again."""

    async def is_ok() -> bool:
        return (await redis.health()).status == "ok"

    await eventually(is_ok)


async def test_frozen_server_costs_one_timeout_then_microseconds(frozen: PrivateRedis) -> None:
    """The first call ends after command_timeout_s; once the breaker is open the rest cost next to nothing."""
    clock = ManualClock()
    async with Redis(frozen.url, RedisConfig(breaker_failures=2), clock=clock) as redis:
        began = time.perf_counter()
        with pytest.raises(RedisTimeout) as timed_out:
            await redis.get("k")
        # 80 ms by default; the rest is what this machine may be late.
        assert 0.07 < time.perf_counter() - began < 0.5
        assert timed_out.value.retryable
        with pytest.raises(RedisTimeout):
            await redis.set("k", "v")

        began = time.perf_counter()
        for _ in range(100):
            with pytest.raises(RedisUnavailable, match="breaker open") as refused:
                await redis.get("k")
        assert time.perf_counter() - began < 0.1
        assert refused.value.retry_after_s == 1.0
        assert (count(redis, "timeout"), count(redis, "refused")) == (2, 100)
        assert (await redis.health()).status == "down"


async def test_breaker_lets_one_probe_out_and_closes_on_its_answer(frozen: PrivateRedis) -> None:
    """After open_s one call of many goes out; unanswered it opens the breaker again, answered it closes it."""
    clock = ManualClock()
    async with Redis(frozen.url, RedisConfig(breaker_failures=1), clock=clock) as redis:
        with pytest.raises(RedisTimeout):
            await redis.get("k")
        clock.advance(1.1)
        outcomes = await asyncio.gather(*(redis.get("k") for _ in range(20)), return_exceptions=True)
        assert sum(isinstance(outcome, RedisTimeout) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, RedisUnavailable) for outcome in outcomes) == 19

        os.kill(frozen.pid, signal.SIGCONT)
        with pytest.raises(RedisUnavailable):
            await redis.get("k")
        assert breaker_gauge(redis) == 1
        clock.advance(1.1)
        assert await redis.get("k") is None
        assert await redis.set("k", "v")
        assert breaker_gauge(redis) == 0


def breaker_gauge(redis: Redis) -> float:
    [family] = [family for family in redis.metrics.snapshot() if family.name == "daydo_redis_breaker_open"]
    return family.cells[0].values[0]


async def test_probe_goes_over_a_connection_of_its_own(server: PrivateRedis) -> None:
    """When the breaker opens, idle connections of before are dropped: another server may be in charge by then."""
    config = RedisConfig(breaker_failures=1, merge_max=1)
    async with Redis(server.url, config, clock=ManualClock()) as redis:
        await asyncio.gather(*(redis.get("k") for _ in range(4)))
        assert len(redis._road._idle) == 4
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(RedisTimeout):
                await redis.get("k")
            assert redis._road._idle == []
        finally:
            os.kill(server.pid, signal.SIGCONT)


async def test_cancelled_probe_leaves_its_place_to_the_next(frozen: PrivateRedis) -> None:
    """A caller that gives up while it carries the probe does not keep the breaker open for ever."""
    clock = ManualClock()
    async with Redis(frozen.url, RedisConfig(breaker_failures=1), clock=clock) as redis:
        with pytest.raises(RedisTimeout):
            await redis.get("k")
        clock.advance(1.1)
        probe = asyncio.create_task(redis.get("k"))
        await asyncio.sleep(0)
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        os.kill(frozen.pid, signal.SIGCONT)
        assert await redis.get("k") is None
        assert count(redis, "cancelled") == 1


async def test_late_answer_is_not_given_to_the_next_caller(server: PrivateRedis) -> None:
    """What a frozen server answers once it thaws belongs to a call that has ended; nobody else reads it."""
    config = RedisConfig(breaker_failures=1000, pool_size=2)
    async with Redis(server.url, config) as redis:
        await redis.set("old", "old")
        await redis.set("new", "new")
        os.kill(server.pid, signal.SIGSTOP)
        for _ in range(3):
            with pytest.raises(RedisTimeout):
                await redis.get("old")
        os.kill(server.pid, signal.SIGCONT)
        await answering(redis)
        assert [await redis.get("new") for _ in range(5)] == [b"new"] * 5


async def test_frozen_server_holds_nobody_in_the_queue(frozen: PrivateRedis) -> None:
    """Hundreds of calls through few slots end after one round of timeouts, because the breaker opens."""
    config = RedisConfig(pool_size=5, pool_wait_s=5.0, merge_max=1)
    async with Redis(frozen.url, config) as redis:
        began = time.perf_counter()
        outcomes = await asyncio.gather(*(redis.get("k") for _ in range(300)), return_exceptions=True)
        assert time.perf_counter() - began < 1.0
        assert all(isinstance(outcome, RedisError) for outcome in outcomes)
        # The breaker counts to three, and each of the first two hands its slot on before that.
        assert count(redis, "timeout") <= 5 + 2


async def test_full_pool_waits_then_says_so(server: PrivateRedis) -> None:
    """A call that finds no slot waits pool_wait_s and is refused; the breaker does not blame Redis for it."""
    config = RedisConfig(pool_size=1, pool_wait_s=0.02, command_timeout_s=5.0, breaker_failures=1, merge_max=1)
    async with Redis(server.url, config) as redis:
        os.kill(server.pid, signal.SIGSTOP)
        slow = asyncio.create_task(redis.get("k"))
        await asyncio.sleep(0)
        with pytest.raises(RedisUnavailable, match="pool exhausted"):
            await redis.get("k")
        os.kill(server.pid, signal.SIGCONT)
        assert await slow is None
        assert await redis.get("k") is None


@pytest.mark.parametrize("merge_max", [1, 4, 128])
async def test_cancelled_calls_leave_the_pool_whole(server: PrivateRedis, merge_max: int) -> None:
    """Calls cancelled while waiting, while sending and while reading give back what they held; the rest is answered."""
    config = RedisConfig(pool_size=3, pool_wait_s=SHORT_S, merge_max=merge_max, breaker_failures=1)
    async with Redis(server.url, config) as redis:
        for turn in range(60):
            calls = [asyncio.create_task(redis.call("ECHO", number)) for number in range(12)]
            for _ in range(turn % 12):
                await asyncio.sleep(0)
            for call in calls[turn % 3 :: 2]:
                call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            for number, outcome in enumerate(outcomes):
                assert isinstance(outcome, asyncio.CancelledError) or outcome == b"%d" % number
        assert redis._calls.slots._value == 3
        assert len(redis._road._idle) <= 3
        assert redis._calls._under_way == 0


async def test_breaker_hears_of_a_try_whose_caller_leaves_before_the_next() -> None:
    """Nobody listens there: the first try has shown it, whoever gives up in the pause behind it."""
    async with Redis("redis://127.0.0.1:1", RedisConfig(breaker_failures=2, retry_pause_s=60)) as redis:
        for number in (1, 2):
            assert not redis._calls.breaker.is_open
            call = asyncio.create_task(redis.get("k"))
            await eventually(lambda: redis._calls._repeated.value == number)  # noqa: B023 - awaited at once
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        await eventually(lambda: redis._calls.breaker.is_open)


async def test_woken_and_cancelled_waiter_passes_its_turn_on(server: PrivateRedis) -> None:
    """A waiter cancelled in the moment a slot is given to it does not take the slot with it."""
    async with Redis(server.url, RedisConfig(pool_size=1, pool_wait_s=SHORT_S)) as redis:
        assert await redis._calls._wait_for_slot()
        woken, next_one = asyncio.create_task(redis.get("k")), asyncio.create_task(redis.get("k"))
        await asyncio.sleep(0.01)
        redis._calls.slots.release()
        woken.cancel()
        async with asyncio.timeout(1):
            assert await next_one is None
        assert woken.cancelled()


async def test_own_pause_is_not_blamed_on_redis(server: PrivateRedis) -> None:
    """An event loop held up for longer than the timeout still reads the answer that came meanwhile."""
    async with Redis(server.url, RedisConfig(breaker_failures=1)) as redis:
        await redis.set("k", "v")
        for _ in range(5):
            call = asyncio.create_task(redis.get("k"))
            await asyncio.sleep(0.0001)
            time.sleep(0.1)  # noqa: ASYNC251 (the pause is the point)
            assert await call == b"v"


async def test_killed_server_is_unavailable_and_comes_back() -> None:
    """Nobody there: RedisUnavailable without a word about hosts; a server in its place serves again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with Redis(f"redis://127.0.0.1:{port}", RedisConfig(breaker_open_s=0.05)) as redis:
        with pytest.raises(RedisUnavailable) as caught:
            await redis.get("k")
        assert str(port) not in str(caught.value)
        assert caught.value.__cause__ is not None
        assert (await redis.health()).status == "down"


@asynccontextmanager
async def server_on(port: int) -> AsyncIterator[PrivateRedis]:
    server = PrivateRedis(["--port", str(port), "--bind", "127.0.0.1"])
    try:
        await asyncio.to_thread(server.wait_ready, START_S)
        yield server
    finally:
        await asyncio.to_thread(server.stop)


async def test_restart_is_survived(server: PrivateRedis) -> None:
    """Killed by SIGKILL and started again: calls fail, then work; scripts reload; a subscriber hears ``missed``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = RedisConfig(breaker_open_s=0.05, pubsub_retry_max_s=0.1)
    async with asyncio.timeout(30), Redis(f"redis://127.0.0.1:{port}/0", config) as redis:
        script = redis.script("return redis.call('INCR', KEYS[1])")
        async with server_on(port) as first:
            subscription = redis.subscribe("c")
            messages = await subscription.__aenter__()
            assert await script(keys=["n"]) == 1
            os.kill(first.pid, signal.SIGKILL)
            await eventually(lambda: not first._process.alive)
            with pytest.raises(RedisUnavailable):
                await redis.get("k")
        async with server_on(port):
            await answering(redis)
            assert await script(keys=["n"]) == 1
            assert await anext(messages) == MISSED
            await redis.publish("c", b"after")
            assert await anext(messages) == Message("c", b"after")
            await subscription.__aexit__(None, None, None)


async def test_lost_subscription_is_renewed_and_confessed(server: PrivateRedis) -> None:
    """A cut connection: each subscriber reads ``missed`` once, after all of its channels are subscribed again."""
    async with (
        asyncio.timeout(SHORT_S),
        Redis(server.url) as redis,
        redis.subscribe("a", "b") as one,
        redis.subscribe("b") as other,
    ):
        await redis.publish("b", b"before")
        await redis.call("CLIENT", "KILL", "TYPE", "pubsub")
        assert [await anext(one), await anext(other)] == [Message("b", b"before")] * 2
        assert [await anext(one), await anext(other)] == [MISSED] * 2
        assert await redis.publish("a", b"1") == 1
        assert await redis.publish("b", b"2") == 1
        assert [await anext(one), await anext(one)] == [Message("a", b"1"), Message("b", b"2")]
        assert await anext(other) == Message("b", b"2")
        assert redis._pubsub._missed.value == 2


async def test_frozen_subscription_is_noticed(server: PrivateRedis) -> None:
    """A server that closes nothing and says nothing is given up after two silences, and rejoined when it thaws."""
    config = RedisConfig(pubsub_ping_s=0.05, pubsub_retry_max_s=0.1)
    async with asyncio.timeout(SHORT_S), Redis(server.url, config) as redis, redis.subscribe("c") as messages:
        await asyncio.sleep(0.3)
        assert redis._pubsub._connection is not None, "silence alone, with pings answered, is no loss"
        os.kill(server.pid, signal.SIGSTOP)
        await eventually(lambda: redis._pubsub._connection is None)
        os.kill(server.pid, signal.SIGCONT)
        assert await anext(messages) == MISSED


async def test_subscribing_without_redis_fails_in_time(frozen: PrivateRedis) -> None:
    """Entering a subscription on a frozen server raises instead of waiting."""
    async with Redis(frozen.url) as redis:
        began = time.perf_counter()
        with pytest.raises((RedisUnavailable, RedisTimeout)):
            async with redis.subscribe("c"):
                raise AssertionError("entered without Redis")
        assert time.perf_counter() - began < 1.0


async def test_quick_resubscription_waits_for_its_own_confirmation(server: PrivateRedis) -> None:
    """Leaving and entering a channel at once never enters on the confirmation of the subscription before."""
    async with asyncio.timeout(SHORT_S), Redis(server.url) as redis, redis.subscribe("other"):
        for number in range(50):
            entering = asyncio.create_task(redis.subscribe("c").__aenter__())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            entering.cancel()
            await asyncio.gather(entering, return_exceptions=True)
            async with redis.subscribe("c") as messages:
                await redis.publish("c", b"%d" % number)
                assert (await anext(messages)).payload == b"%d" % number


async def test_read_only_server_is_a_failover(server: PrivateRedis) -> None:
    """A primary that was demoted is RedisUnavailable (retry), and its idle connections are dropped."""
    async with Redis(server.url) as redis:
        await redis.set("k", "v")
        await redis.call("REPLICAOF", "127.0.0.1", 1)
        with pytest.raises(RedisUnavailable, match="failing over"):
            await redis.set("k", "w")
        assert redis._road._idle == []
        await redis.call("REPLICAOF", "NO", "ONE")
        assert await redis.set("k", "w")


async def test_wrong_password_is_unavailable(server: PrivateRedis) -> None:
    """A refused login is not a driver exception either, and the password is in no message."""
    async with Redis(server.url) as redis:
        await redis.call("CONFIG", "SET", "requirepass", "right")
    async with Redis(f"{server.url}?password=wr0ng") as redis:
        with pytest.raises(RedisUnavailable, match="authentication") as caught:
            await redis.get("k")
        assert "wr0ng" not in str(caught.value)
    async with Redis(f"{server.url}?password=right") as redis:
        assert await redis.get("k") is None


async def test_unknown_database_is_the_calls_fault(server: PrivateRedis) -> None:
    """A server that refuses SELECT has answered: its words come through and nothing is repeated."""
    async with Redis(f"{server.url}?db=99", RedisConfig(breaker_failures=1)) as redis:
        for _ in range(2):
            with pytest.raises(RedisCommandFailed, match="DB index"):
                await redis.get("k")
        assert redis._calls._repeated.value == 0


async def test_refused_ping_is_degraded(server: PrivateRedis) -> None:
    """A user that may not PING is told so by health, which stays a report and no exception."""
    async with Redis(server.url) as redis:
        await redis.call("ACL", "SETUSER", "default", "-ping")
        health = await redis.health()
        assert health.status == "degraded"
        assert "PING" in str(health.detail["error"])


@pytest.mark.parametrize("options", [{}, {"protocol": 2}, {"decode_responses": True}])
async def test_client_of_yours_is_used_and_not_closed(server: PrivateRedis, options: dict[str, int | bool]) -> None:
    """An existing client, whatever its protocol and decoding: bytes come out, and it works on afterwards."""
    client = Client.from_url(server.url, **options)
    async with asyncio.timeout(SHORT_S), Redis(client) as redis, redis.subscribe("c") as messages:
        assert not redis.embedded
        await redis.set("k", b"\xff")
        assert await redis.get("k") == b"\xff"
        assert await redis.script("return ARGV[1]")(args=[b"\xfe"]) == b"\xfe"
        await redis.publish("c", b"\xfd")
        assert await anext(messages) == Message("c", b"\xfd")
        await redis.call("CLIENT", "KILL", "TYPE", "pubsub")
        assert await anext(messages) == MISSED
        with pytest.raises(RedisCommandFailed):
            await redis.call("LPUSH", "k", "x")
    assert await client.delete("k") == 1
    await client.aclose()


async def test_patient_client_is_bounded_too(frozen: PrivateRedis) -> None:
    """A client with the driver's own patience (5 s, ten times) still answers within command_timeout_s."""
    client = Client.from_url(frozen.url)
    async with Redis(client) as redis:
        began = time.perf_counter()
        with pytest.raises(RedisTimeout):
            await redis.get("k")
        assert time.perf_counter() - began < 0.5
    await client.aclose()


@pytest.mark.parametrize("calls", [1, 5])
async def test_impatient_client_is_a_timeout_too(server: PrivateRedis, calls: int) -> None:
    """A client whose own timeout comes first: RedisTimeout, and no second attempt at a server that is silent."""
    client = Client.from_url(server.url, socket_timeout=0.03, protocol=3)
    async with Redis(client, RedisConfig(command_timeout_s=SHORT_S)) as redis:
        await redis.set("k", "v")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            answers = await asyncio.gather(*(redis.get("k") for _ in range(calls)), return_exceptions=True)
            assert [type(answer) for answer in answers] == [RedisTimeout] * calls
            assert redis._calls._repeated.value == 0
        finally:
            os.kill(server.pid, signal.SIGCONT)
    await client.aclose()


async def test_leaving_waits_for_calls_under_way(server: PrivateRedis) -> None:
    """Exit lets a call finish and takes no new one."""
    redis = Redis(server.url, RedisConfig(command_timeout_s=SHORT_S))
    async with redis:
        await redis.set("k", "v")
        os.kill(server.pid, signal.SIGSTOP)
        call = asyncio.create_task(redis.get("k"))
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.05, os.kill, server.pid, signal.SIGCONT)
    assert await call == b"v"


async def test_leaving_lets_nobody_hang(frozen: PrivateRedis) -> None:
    """Merged callers still waiting when drain_s is over are told that their connection is lost."""
    redis = Redis(frozen.url, RedisConfig(command_timeout_s=60, drain_s=0.05))
    async with asyncio.timeout(SHORT_S):
        async with redis:
            calls = [asyncio.create_task(redis.get("k")) for _ in range(5)]
            await asyncio.sleep(0.01)
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(answer, RedisUnavailable) for answer in answers)


@pytest.fixture
async def out_of_memory(server: PrivateRedis) -> AsyncIterator[Redis]:
    """A server that is at its maxmemory."""
    async with Redis(server.url) as redis:
        await redis.call("CONFIG", "SET", "maxmemory", "1")
        yield redis


async def test_no_memory_is_an_outage_and_over_once_there_is_room(out_of_memory: Redis) -> None:
    """Writes and writing scripts are RedisFull, worth another try; reads go on, and the breaker stays closed."""
    write = out_of_memory.script("return redis.call('SET', KEYS[1], 'v')")
    for call in (lambda: out_of_memory.set("k", "v"), lambda: write(keys=["k"])):
        for _ in range(4):
            with pytest.raises(RedisFull) as full:
                await call()
            assert (full.value.status, full.value.retryable, full.value.reason) == (507, True, "OOM")
    assert await out_of_memory.get("k") is None
    await out_of_memory.call("CONFIG", "SET", "maxmemory", "0")
    assert await out_of_memory.set("k", "v")


async def test_a_disk_that_cannot_be_saved_to_is_an_outage_and_health_says_so(server: PrivateRedis) -> None:
    """MISCONF: Redis refuses writes, and PING too."""
    (server.folder / "dump.rdb").mkdir()  # What is saved cannot be given its name.
    async with Redis(server.url) as redis:
        await redis.call("CONFIG", "SET", "save", "3600 1")
        await redis.set("k", "v")
        await redis.call("BGSAVE")

        async def failed_to_save() -> bool:
            return b"rdb_last_bgsave_status:err" in await redis.call("INFO", "persistence")

        await eventually(failed_to_save)
        with pytest.raises(RedisFull) as full:
            await redis.set("k", "w")
        assert full.value.reason == "MISCONF"
        assert await redis.get("k") == b"v"
        assert (await redis.health()).status == "degraded"
        await redis.call("CONFIG", "SET", "save", "")  # It would not end without having saved.


@pytest.mark.parametrize("kind", ["OOM", "MISCONF"])
def test_a_script_of_redis_6_hides_the_reason_behind_its_own_words(kind: str) -> None:
    """There the error of what a script called stands at the end."""
    said = f"Error running script (call to f_0): @user_script:1: @user_script: 1: -{kind} not now"
    assert isinstance(_refused(Call("EVALSHA"), ResponseError(said)), RedisFull)
    assert isinstance(_refused(Call("SET"), ResponseError(f"no such thing as {kind}")), RedisCommandFailed)

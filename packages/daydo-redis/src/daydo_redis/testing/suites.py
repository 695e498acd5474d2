"""What every back end does alike, and how to wait for it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

import pytest

from daydo_redis.client import Redis
from daydo_redis.config import RedisConfig
from daydo_redis.errors import RedisCommandFailed
from daydo_redis.pubsub import Message

SHORT_S = 5.0  # for what should come at once: generous, because only a failure waits that long
# For tests that are not about time, on machines that are busy with others.
CALM = RedisConfig(command_timeout_s=SHORT_S, subscribe_timeout_s=SHORT_S)


async def eventually(condition: Callable[[], Awaitable[bool] | bool], within_s: float = SHORT_S) -> None:
    """Return as soon as ``condition()`` holds; fail when it does not come to hold in time."""
    pause_s = 0.005
    for _ in range(round(within_s / pause_s)):
        held = condition()
        if await held if inspect.isawaitable(held) else held:
            return
        await asyncio.sleep(pause_s)
    raise AssertionError(f"not so within {within_s} s: {condition}")


class RoutedConformance:
    """What also holds where servers change: behind sentinels, on a cluster.

    Subclass it where a fixture ``redis`` gives an entered ``Redis`` that is empty.
    """

    async def test_value_is_kept_as_bytes(self, redis: Redis) -> None:
        """Text, numbers and bytes go in; bytes come out, every one of them unchanged."""
        every_byte = bytes(range(256))
        values: list[tuple[str | int | float, bytes]] = [("剪图", "剪图".encode()), (7, b"7"), (0.5, b"0.5")]
        for value, stored in values:
            assert await redis.set("k", value)
            assert await redis.get("k") == stored
        await redis.set(every_byte, every_byte)
        assert await redis.get(every_byte) == every_byte

    async def test_missing_key_is_none(self, redis: Redis) -> None:
        """A key that was never set reads None, is taken as None and deleted as 0."""
        assert await redis.get("absent") is None
        assert await redis.take("absent") is None
        assert await redis.delete("absent") == 0
        assert await redis.delete() == 0

    async def test_only_new_keeps_the_first(self, redis: Redis) -> None:
        """The second set with only_new says False and changes nothing."""
        assert await redis.set("k", "first", only_new=True) is True
        assert await redis.set("k", "second", only_new=True) is False
        assert await redis.get("k") == b"first"
        assert await redis.set("k", "third") is True
        assert await redis.get("k") == b"third"

    async def test_ttl_counts_milliseconds(self, redis: Redis) -> None:
        """A lifetime of 1.5 s is neither rounded to a second nor kept for ever, and a plain set removes it."""
        await redis.set("k", "v", ttl_s=1.5)
        assert 1000 < await redis.call("PTTL", "k") <= 1500
        await redis.set("k", "v")
        assert await redis.call("PTTL", "k") == -1
        with pytest.raises(ValueError, match="delete"):
            await redis.set("k", "v", ttl_s=0)

    async def test_take_gives_to_one(self, redis: Redis) -> None:
        """Of twenty callers that take one ticket exactly one gets it."""
        await redis.set("ticket", "u_7")
        taken = await asyncio.gather(*(redis.take("ticket") for _ in range(20)))
        assert sorted(taken, key=bool) == [None] * 19 + [b"u_7"]

    async def test_delete_counts_what_existed(self, redis: Redis) -> None:
        """Three keys named, two there: 2."""
        await redis.set("a", 1)
        await redis.set("b", 2)
        assert await redis.delete("a", "b", "c") == 2
        assert await redis.get("a") is None

    async def test_answers_come_as_redis_sends_them(self, redis: Redis) -> None:
        """No answer is converted: OK is bytes, a hash a flat list, a score text."""
        assert await redis.call("SET", "k", "v") == b"OK"
        assert await redis.call("HSET", "h", "field", 1) == 1
        assert await redis.call("HGETALL", "h") == [b"field", b"1"]
        assert await redis.call("ZADD", "z", 1.5, "m") == 1
        assert await redis.call("ZSCORE", "z", "m") == b"1.5"
        assert await redis.call(b"LRANGE", "absent", 0, -1) == []

    async def test_error_answers_name_the_command(self, redis: Redis) -> None:
        """A wrong type is RedisCommandFailed, not an exception of the driver, and the connection stays usable."""
        await redis.call("RPUSH", "list", "x")
        with pytest.raises(RedisCommandFailed, match="GET") as caught:
            await redis.get("list")
        assert caught.value.command == "GET"
        with pytest.raises(RedisCommandFailed):
            await redis.call("NOSUCHCOMMAND")
        assert await redis.call("LLEN", "list") == 1

    async def test_script_reads_keys_and_args(self, redis: Redis) -> None:
        """KEYS and ARGV arrive as sent, and what the script returns comes back."""
        script = redis.script("redis.call('SET', KEYS[1], ARGV[1]); return {KEYS[1], ARGV[1], 7, false}")
        assert await script(keys=["k"], args=[b"\xff\x00"]) == [b"k", b"\xff\x00", 7, None]
        assert await redis.get("k") == b"\xff\x00"

    async def test_failing_script_is_command_failed(self, redis: Redis) -> None:
        """An error raised in Lua carries its words."""
        script = redis.script("return redis.error_reply('TOO MANY')")
        with pytest.raises(RedisCommandFailed, match="TOO MANY"):
            await script()

    async def test_health_is_ok(self, redis: Redis) -> None:
        """A living server is ok and says how long it took."""
        health = await redis.health()
        assert health.status == "ok"
        assert health.detail["latency_ms"]

    async def test_calls_of_one_turn_get_their_own_answers(self, redis: Redis) -> None:
        """A hundred calls of every kind, made at once: each gets what it would get alone, errors included."""
        await redis.set("text", "v")
        await redis.call("RPUSH", "list", "x")
        double, fail = redis.script("return ARGV[1] * 2"), redis.script("return redis.error_reply('TOO MANY')")
        calls = [
            call
            for number in range(20)
            for call in (
                redis.get("text"),
                redis.get(f"absent {number}"),
                redis.get("list"),
                double(keys=[f"k{number}"], args=[number]),
                fail(keys=[f"k{number}"]),
                redis.set(f"k{number}", number),
            )
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for number in range(20):
            text, absent, wrong_type, doubled, failed, stored = answers[6 * number : 6 * number + 6]
            assert (text, absent, doubled, stored) == (b"v", None, 2 * number, True)
            assert isinstance(wrong_type, RedisCommandFailed)
            assert "WRONGTYPE" in str(wrong_type)
            assert isinstance(failed, RedisCommandFailed)
            assert "TOO MANY" in str(failed)
        stored_keys = [f"k{number}" for number in range(20)]
        assert await asyncio.gather(*map(redis.get, stored_keys)) == [b"%d" % number for number in range(20)]

    async def test_calls_made_in_order_arrive_in_order(self, redis: Redis) -> None:
        """Calls to one key made in one turn are carried out in the order in which they were made."""
        pushes = [redis.call("RPUSH", "list", number) for number in range(50)]
        assert await asyncio.gather(*pushes) == list(range(1, 51))
        assert await redis.call("LRANGE", "list", 0, -1) == [b"%d" % number for number in range(50)]

    async def test_who_gives_up_takes_nobody_along(self, redis: Redis) -> None:
        """Every third of sixty merged callers is cancelled: the others get their answers."""
        await redis.set("k", "v")
        tasks = [asyncio.create_task(redis.get("k")) for _ in range(60)]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::3])
        assert answers[1::3] == answers[2::3] == [b"v"] * 20

    async def test_large_values_among_small_ones(self, redis: Redis) -> None:
        """Values beyond any buffer, with line ends inside, come back whole beside small and empty ones."""
        values = [b"", b"\r\n", b"$3\r\nabc\r\n" * 50_000, b"x", bytes(300_000)]
        await asyncio.gather(*(redis.set(f"k{number}", value) for number, value in enumerate(values)))
        assert await asyncio.gather(*(redis.get(f"k{number}") for number in range(5))) == values

    async def test_subscriber_hears_others(self, redis: Redis) -> None:
        """What is published after entry arrives, from wherever it was published."""
        async with asyncio.timeout(SHORT_S), redis.subscribe("c") as messages:
            for number in range(10):
                await redis.publish("c", b"%d" % number)
                assert await anext(messages) == Message("c", b"%d" % number)


class RedisConformance(RoutedConformance):
    """What every single server does alike, real or in process.

    Subclass it where a fixture ``redis`` gives an entered ``Redis``, and ``redis_url`` its URL.
    """

    @pytest.mark.parametrize(
        "command",
        [
            ("SELECT", 1),
            ("multi",),
            (b"SUBSCRIBE", "c"),
            ("BLPOP", "l", 0),
            ("client reply", "OFF"),
            ("CLIENT", "TRACKING", "ON"),
            ("XREAD", "BLOCK", 0, "STREAMS", "s", "$"),
            ("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "block", 0, "STREAMS", "s", ">"),
        ],
    )
    async def test_commands_that_need_their_own_connection_are_refused(
        self, redis: Redis, command: tuple[str | int, ...]
    ) -> None:
        """What blocks or changes a shared connection is refused before it is sent."""
        with pytest.raises(ValueError, match="connection of its own"):
            await redis.call(*command)

    async def test_expired_key_is_gone(self, redis: Redis) -> None:
        """After its lifetime a key can be set anew with only_new."""
        await redis.set("k", "old", ttl_s=0.001)
        await asyncio.sleep(0.01)
        assert await redis.get("k") is None
        assert await redis.set("k", "new", only_new=True) is True

    async def test_script_survives_a_flush(self, redis: Redis) -> None:
        """A server that has forgotten the script is told it again, and the script runs once."""
        count = redis.script("return redis.call('INCR', KEYS[1])")
        assert await count(keys=["n"]) == 1
        await redis.call("SCRIPT", "FLUSH")
        assert await count(keys=["n"]) == 2
        assert await redis.call("SCRIPT", "EXISTS", count.sha) == [1]
        assert await count(keys=["n"]) == 3

    async def test_subscriber_hears_everything_in_order(self, redis: Redis) -> None:
        """Once inside the block, all that is published on its channels arrives, and nothing else."""
        async with asyncio.timeout(SHORT_S), redis.subscribe("a", "b") as messages:
            for number in range(50):
                assert await redis.publish("ab"[number % 2], b"%d\xff" % number) == 1
                assert await redis.publish("other", b"noise") == 0
            for number in range(50):
                assert await anext(messages) == Message("ab"[number % 2], b"%d\xff" % number)

    async def test_subscribers_come_and_go(self, redis: Redis) -> None:
        """Two subscribers of a channel hear the same; when one leaves the other stays; then nobody listens."""
        async with asyncio.timeout(SHORT_S), redis.subscribe("c") as stays:
            async with redis.subscribe("c", "d") as leaves:
                await redis.publish("c", b"1")
                assert (await anext(stays)).payload == (await anext(leaves)).payload == b"1"
            await redis.publish("c", b"2")
            assert (await anext(stays)).payload == b"2"

        async def nobody_listens() -> bool:
            return await redis.publish("c", b"3") == 0

        await eventually(nobody_listens)

    async def test_slow_subscriber_is_told_what_it_lost(self, redis_url: str) -> None:
        """Beyond its queue a subscriber loses the oldest messages and reads ``missed`` in their place."""
        async with (
            asyncio.timeout(SHORT_S),
            Redis(redis_url, RedisConfig(pubsub_queue=3)) as redis,
            redis.subscribe("c") as slow,
            redis.subscribe("c") as quick,
        ):
            for number in range(5):
                await redis.publish("c", b"%d" % number)
                assert (await anext(quick)).payload == b"%d" % number
            read = [await anext(slow) for _ in range(4)]
            assert [message.missed for message in read] == [True, False, False, False]
            assert [message.payload for message in read[1:]] == [b"2", b"3", b"4"]

    async def test_leaving_ends_the_iteration(self, redis_url: str) -> None:
        """A stream over a subscription ends when the Redis is left, so shutdown does not hang on it."""
        heard: list[Message] = []
        inside = asyncio.Event()

        async def listen(redis: Redis) -> None:
            async with redis.subscribe("c") as messages:
                inside.set()
                heard.extend([message async for message in messages])

        async with asyncio.timeout(SHORT_S):
            async with Redis(redis_url) as redis:
                listening = asyncio.create_task(listen(redis))
                await inside.wait()
                assert await redis.publish("c", b"1") == 1
            await listening
        assert len(heard) <= 1

    async def test_two_nouns_on_one_url_share_their_data(self, redis: Redis, redis_url: str) -> None:
        """What one service stores the other reads; what it publishes the other hears."""
        async with asyncio.timeout(SHORT_S), Redis(redis_url) as other, other.subscribe("c") as messages:
            await redis.set("k", "v")
            assert await other.get("k") == b"v"
            await redis.publish("c", b"hello")
            assert (await anext(messages)).payload == b"hello"

    async def test_many_calls_at_once_wait_for_their_turn(self, redis_url: str) -> None:
        """Three hundred calls through two slots all get their own answer."""
        async with Redis(redis_url, RedisConfig(pool_size=2, pool_wait_s=SHORT_S)) as redis:
            answers = await asyncio.gather(*(redis.call("ECHO", number) for number in range(300)))
        assert answers == [b"%d" % number for number in range(300)]

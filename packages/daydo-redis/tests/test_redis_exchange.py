"""A packet and its answers on one connection: what is cut, late, cancelled or too much reaches nobody else."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

import pytest
from redis_impostor import Impostor

from daydo_redis import Redis, RedisConfig, RedisTimeout, RedisUnavailable
from daydo_redis.embedded import PrivateRedis
from daydo_redis.testing import SHORT_S, eventually

PATIENT = RedisConfig(command_timeout_s=SHORT_S, retries=0, breaker_failures=1000)


class Scripted(Impostor):
    """A server that reads whole commands (arrays of texts) and says what the test wants.

    ``say`` gets the words of each command and gives what is written, piece by piece; None ends the connection.
    """

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.connections = 0
        self.say: Callable[[bytes], Iterator[bytes | None]] = lambda word: iter((b"$%d\r\n%b\r\n" % (len(word), word),))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writer = writer
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                name, *rest = await self._command(reader)
                if name == b"CLIENT":
                    writer.write(b"+OK\r\n")
                    continue
                self.seen.append(rest[0])
                for piece in self.say(rest[0]):
                    if piece is None:
                        raise ConnectionError
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        writer.close()


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    await scripted.start()
    yield scripted
    await scripted.stop()


def text(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


async def test_who_gives_up_on_the_way_takes_no_answer_along(scripted: Scripted) -> None:
    """Some callers of a packet are cancelled before it is answered: each of the others gets what it asked for."""
    async with Redis(scripted.url, PATIENT) as redis:
        assert await redis.get("warm") == b"warm"
        scripted.say = lambda word: iter(())
        tasks = [asyncio.create_task(redis.get(str(number))) for number in range(9)]
        await eventually(lambda: len(scripted.seen) == 10)
        for task in tasks[::3]:
            task.cancel()
        scripted.writer.write(b"".join(text(b"%d" % number) for number in range(9)))
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[::3])
        assert (outcomes[1::3], outcomes[2::3]) == ([b"1", b"4", b"7"], [b"2", b"5", b"8"])
        assert scripted.connections == 1


async def test_cancelled_caller_leaves_no_answer_behind(scripted: Scripted) -> None:
    """A call that is given up while its packet waits ends that connection: its late answer is for nobody."""
    plain = scripted.say
    async with Redis(scripted.url, PATIENT) as redis:
        assert await redis.get("warm", merge=False) == b"warm"
        scripted.say = lambda word: iter((b"$4\r\nla",))
        given_up = asyncio.create_task(redis.get("old", merge=False))
        await eventually(lambda: b"old" in scripted.seen)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        scripted.say = plain
        assert [await redis.get(f"new {number}", merge=False) for number in range(3)] == [b"new 0", b"new 1", b"new 2"]
        assert scripted.connections == 2


@pytest.mark.parametrize(
    "half", [b"", b"$", b"$5\r\nhe", b"$5\r\nhello", b"*2\r\n$1\r\na\r\n", b"*2\r\n:1\r\n*1\r\n$3"]
)
async def test_answer_that_is_cut_off_is_none(scripted: Scripted, half: bytes) -> None:
    """The connection ends inside an answer: its caller hears that, those answered before it have their answers."""
    plain = scripted.say
    scripted.say = lambda word: iter((half, None)) if word == b"3" else plain(word)
    async with Redis(scripted.url, PATIENT) as redis:
        calls = [redis.call("INCRBY", number) for number in range(6)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert answers[:3] == [b"0", b"1", b"2"]
        assert [type(answer) for answer in answers[3:]] == [RedisUnavailable] * 3
        assert await redis.get("after") == b"after"


async def test_silence_inside_an_answer_ends_at_the_deadline(scripted: Scripted) -> None:
    """A server that freezes half-way through: RedisTimeout, and what it says when it thaws is read by nobody."""
    plain = scripted.say
    async with Redis(scripted.url, RedisConfig(command_timeout_s=0.05, breaker_failures=1000)) as redis:
        assert await redis.get("warm") == b"warm"
        scripted.say = lambda word: iter((b"$6\r\nfro",))
        with pytest.raises(RedisTimeout):
            await redis.get("frozen")
        scripted.say = plain
        assert await asyncio.gather(*(redis.get(f"{number}") for number in range(4))) == [b"0", b"1", b"2", b"3"]
        assert scripted.connections == 2


async def test_answer_too_many_is_given_to_nobody(scripted: Scripted) -> None:
    """Who answers twice is not asked again over the same connection."""
    plain = scripted.say
    async with Redis(scripted.url, PATIENT) as redis:
        scripted.say = lambda word: iter((text(word) + text(b"somebody else's"),))
        assert await redis.get("a") == b"a"
        scripted.say = plain
        assert await redis.get("b") == b"b"
        assert scripted.connections == 2


async def test_what_is_no_redis_is_unavailable(scripted: Scripted) -> None:
    """Bytes of another protocol are a lost connection, within the call."""
    scripted.say = lambda word: iter((b"HTTP/1.1 400 Bad Request\r\n\r\n",))
    async with Redis(scripted.url, PATIENT) as redis:
        with pytest.raises(RedisUnavailable, match="connection lost"):
            await redis.get("k")


async def test_long_values_go_both_ways(server: PrivateRedis) -> None:
    """Megabytes are written and read in as many pieces as the socket takes, among others that are short."""
    value = bytes(range(256)) * 40_000
    async with Redis(server.url, PATIENT) as redis:
        await asyncio.gather(redis.set("long", value), redis.set("short", b"s"))
        answers = await asyncio.gather(*(redis.get(key) for key in ("short", "long", "short", "long", "short")))
        assert answers == [b"s", value, b"s", value, b"s"]
        assert await redis.call("MGET", "long", "none", "short", "long") == [value, None, b"s", value]


def test_a_redis_may_be_entered_in_one_loop_after_the_other(server: PrivateRedis) -> None:
    """Nothing of a loop that has ended is used in the next: neither connections nor the beat of the deadlines."""
    redis = Redis(server.url, RedisConfig(command_timeout_s=0.5))

    async def run(number: int) -> None:
        async with redis:
            await asyncio.gather(*(redis.set(f"{each}", number) for each in range(20)))
            assert await redis.get("7") == b"%d" % number

    async def run_frozen() -> None:
        async with redis:
            with pytest.raises(RedisTimeout):
                await redis.get("7")

    for number in range(2):
        asyncio.run(run(number))
    os.kill(server.pid, signal.SIGSTOP)
    try:
        asyncio.run(run_frozen())
    finally:
        os.kill(server.pid, signal.SIGCONT)

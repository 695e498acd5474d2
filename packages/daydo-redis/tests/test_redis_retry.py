"""What is tried again and what never is, against a server whose moods the test decides."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
from redis_impostor import Impostor

from daydo_redis import Redis, RedisConfig, RedisError, RedisTimeout, RedisUnavailable
from daydo_redis.embedded import PrivateRedis
from daydo_redis.testing import SHORT_S, eventually

# Room for every attempt; no test waits for it.
PATIENT = RedisConfig(command_timeout_s=SHORT_S, breaker_failures=1, retry_pause_s=0.001)


class Hangup(Exception):
    """The mood in which a server closes the connection instead of answering."""


class Moody(Impostor):
    """Speaks enough RESP to answer; ``mood`` is asked for each command, ``greet`` for each connection."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.greeted = 0
        self.greet: Callable[[int], bool] = lambda number: True
        self.mood: Callable[[int, str], bytes] = lambda number, command: b"+%s\r\n" % command.encode()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.greeted += 1
        with suppress(Hangup, asyncio.IncompleteReadError, ConnectionError):
            while self.greet(self.greeted):
                command = b" ".join(await self._command(reader)).decode()
                if command.startswith("CLIENT"):
                    writer.write(b"+OK\r\n")
                    continue
                self.seen.append(command)
                writer.write(self.mood(len(self.seen), command))
        writer.close()


@pytest.fixture
async def moody() -> AsyncIterator[Moody]:
    moody = Moody()
    await moody.start()
    yield moody
    await moody.stop()


def hang_up_at(*numbers: int) -> Callable[[int, str], bytes]:
    def mood(number: int, command: str) -> bytes:
        if number in numbers:
            raise Hangup
        return b"+%s\r\n" % command.encode()

    return mood


async def test_lost_answer_to_a_read_is_asked_for_again(moody: Moody) -> None:
    """GET, and a script that was declared idempotent, are repeated on a new connection; the breaker stays closed."""
    moody.mood = hang_up_at(1, 2, 4)
    async with Redis(moody.url, PATIENT) as redis:
        assert await redis.get("k") == b"GET k"
        assert moody.seen == ["GET k"] * 3
        script = redis.script("return 1", idempotent=True)
        assert await script() == f"EVALSHA {script.sha} 0".encode()
        assert len(moody.seen) == 5


@pytest.mark.parametrize(
    "call",
    [
        lambda redis: redis.set("k", "v"),
        lambda redis: redis.delete("k"),
        lambda redis: redis.take("k"),
        lambda redis: redis.publish("c", b""),
        lambda redis: redis.call("INCR", "k"),
        lambda redis: redis.script("return redis.call('INCR', KEYS[1])")(keys=["k"]),
    ],
    ids=["set", "delete", "take", "publish", "incr", "script"],
)
async def test_what_may_have_been_carried_out_is_not_repeated(moody: Moody, call: Callable[[Redis], object]) -> None:
    """After a lost answer only the caller knows whether to write again: the server sees the command once."""
    moody.mood = hang_up_at(1)
    async with Redis(moody.url, PATIENT) as redis:
        with pytest.raises(RedisUnavailable, match="connection lost"):
            await call(redis)  # type: ignore[misc]
        assert len(moody.seen) == 1


async def test_what_was_never_sent_is_tried_again(moody: Moody) -> None:
    """No connection came about, twice: a write goes out by the third, once."""
    moody.greet = lambda number: number > 2
    async with Redis(moody.url, PATIENT) as redis:
        assert await redis.call("INCR", "k") == b"INCR k"
    assert moody.seen == ["INCR k"]
    assert moody.greeted == 3


async def test_retries_are_bounded(moody: Moody) -> None:
    """retries=2 means three attempts, retries=0 one; then the caller hears."""
    moody.mood = hang_up_at(*range(100))
    for retries in (0, 2):
        moody.seen.clear()
        config = RedisConfig(command_timeout_s=SHORT_S, retries=retries, retry_pause_s=0.001)
        async with Redis(moody.url, config) as redis:
            with pytest.raises(RedisUnavailable):
                await redis.get("k")
        assert len(moody.seen) == retries + 1


async def test_lost_packet_divides_its_callers(moody: Moody) -> None:
    """Those answered keep their answers, reads are repeated, writes fail; together they count once for the breaker."""
    moody.mood = hang_up_at(5)
    config = RedisConfig(command_timeout_s=SHORT_S, breaker_failures=2, retry_pause_s=0.001)
    async with Redis(moody.url, config) as redis:
        calls = [
            redis.call(name, number)
            for number, name in enumerate(("INCR", "GET", "INCR", "GET", "INCR", "GET", "INCR", "GET"))
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert answers[:4] == [b"INCR 0", b"GET 1", b"INCR 2", b"GET 3"]
        assert [type(answer) for answer in answers[4::2]] == [RedisUnavailable] * 2
        assert answers[5::2] == [b"GET 5", b"GET 7"]
        assert moody.seen[5:] == ["GET 5", "GET 7"]
        assert not redis._calls.breaker.is_open

        moody.mood = hang_up_at(*range(100))
        lost = await asyncio.gather(*(redis.call("INCR", number) for number in range(9)), return_exceptions=True)
        assert all(isinstance(answer, RedisUnavailable) for answer in lost)
        assert not redis._calls.breaker.is_open, "nine callers, one loss"


async def test_packet_of_silence_counts_once(server: PrivateRedis) -> None:
    """A frozen server costs a whole packet one timeout, each caller told, and the breaker counts one."""
    async with Redis(server.url, RedisConfig(breaker_failures=2)) as redis:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            answers = await asyncio.gather(*(redis.get("k") for _ in range(30)), return_exceptions=True)
            assert all(isinstance(answer, RedisTimeout) for answer in answers)
            assert len({id(answer) for answer in answers}) == 30, "an exception of one's own each"
            assert not redis._calls.breaker.is_open
        finally:
            os.kill(server.pid, signal.SIGCONT)


async def test_silence_is_never_asked_again(moody: Moody) -> None:
    """A timeout is final: the read went out once, and no connection of before serves the next call."""
    moody.mood = lambda number, command: b"" if number == 1 else b"+late\r\n"
    async with Redis(moody.url, RedisConfig(command_timeout_s=0.05)) as redis:
        with pytest.raises(RedisTimeout):
            await redis.get("k")
        assert moody.seen == ["GET k"]
        assert await redis.get("k") == b"late"
        assert moody.greeted == 2


async def test_refusal_by_a_demoted_server_is_no_execution(moody: Moody) -> None:
    """READONLY says that nothing was done: a write is sent again, over a new connection."""
    moody.mood = lambda number, command: b"-READONLY You can't write\r\n" if number == 1 else b"+OK\r\n"
    async with Redis(moody.url, PATIENT) as redis:
        assert await redis.set("k", "v")
    assert moody.seen == ["SET k v"] * 2
    assert moody.greeted == 2


async def test_closed_while_idle_is_noticed_before_sending(server: PrivateRedis) -> None:
    """A server that has closed our idle connections costs a write nothing: it goes out over a new one."""
    async with Redis(server.url, RedisConfig(retries=0)) as redis:
        await redis.set("k", "v")
        [connection] = redis._road._idle
        async with Redis(server.url) as other:
            await other.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await eventually(lambda: connection._reader.at_eof())
        assert await redis.set("k", "w")


@pytest.mark.parametrize("merge_max", [1, 128])
async def test_no_call_hangs_whatever_happens(server: PrivateRedis, merge_max: int) -> None:
    """Connections killed at random under load: every call ends, and every answer is its caller's own."""
    config = RedisConfig(merge_max=merge_max, breaker_failures=1000, pool_size=4, pool_wait_s=SHORT_S)
    async with asyncio.timeout(2 * SHORT_S), Redis(server.url, config) as redis, Redis(server.url) as killer:
        wrong = 0

        async def ask(number: int) -> None:
            nonlocal wrong
            for turn in range(40):
                with suppress(RedisError):
                    wrong += await redis.call("ECHO", f"{number} {turn}") != f"{number} {turn}".encode()

        load = asyncio.gather(*(ask(number) for number in range(20)))
        for _ in range(15):
            with suppress(RedisError):
                await killer.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.01)
        await load
        assert wrong == 0
        assert redis._calls._under_way == 0
        assert redis._calls.slots._value == 4

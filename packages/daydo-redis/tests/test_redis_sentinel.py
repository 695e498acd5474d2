"""A primary, its replica and a sentinel, all real; the primary is lost for good."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from daydo_redis import Message, Redis, RedisConfig, RedisError
from daydo_redis.testing import SHORT_S, START_S, PrivateSentinel, RoutedConformance, eventually

MISSED = Message(channel="", missed=True)
CALM = RedisConfig(command_timeout_s=SHORT_S, subscribe_timeout_s=SHORT_S)


@pytest.fixture(scope="module")
def sentinel(pytestconfig: pytest.Config) -> Iterator[PrivateSentinel]:
    if pytestconfig.getoption("--embedded"):
        pytest.skip("needs servers to fail over between, and --embedded leaves servers out")
    sentinel = PrivateSentinel()
    yield sentinel
    sentinel.stop()


@pytest.fixture
async def redis(sentinel: PrivateSentinel) -> AsyncIterator[Redis]:
    sentinel.ask(sentinel.in_charge()).flushall()
    async with Redis(sentinel.url, CALM) as redis:
        yield redis


class TestSentinel(RoutedConformance):
    pass


async def test_unknown_name_is_unavailable(sentinel: PrivateSentinel) -> None:
    """A sentinel that watches nobody of that name leaves calls without a server, not without an answer."""
    async with Redis(sentinel.url.replace("/shop", "/shoe")) as redis:
        assert (await redis.health()).status == "down"


async def test_frozen_primary_is_replaced(sentinel: PrivateSentinel) -> None:
    """Calls end in time while the primary is silent, then find the new one; scripts reload, subscribers are told."""
    config = RedisConfig(breaker_open_s=0.05, pubsub_ping_s=0.2, pubsub_retry_max_s=0.1)
    async with asyncio.timeout(2 * START_S), Redis(sentinel.url, config) as redis, redis.subscribe("c") as messages:
        count = redis.script("return redis.call('INCR', KEYS[1])")
        before = sentinel.in_charge()
        assert before == sentinel.primary_port
        assert await count(keys=["n"]) == 1
        await eventually(lambda: sentinel.ask(sentinel.replica_port).get("n") == "1")

        os.kill(sentinel.primary.pid, signal.SIGSTOP)
        try:
            with pytest.raises(RedisError):
                await count(keys=["n"])

            async def counts_again() -> bool:
                try:
                    return bool(await count(keys=["n"]) > 1)
                except RedisError:
                    return False

            await eventually(counts_again, within_s=START_S)
            assert sentinel.in_charge() == sentinel.replica_port
            assert await anext(messages) == MISSED
            await redis.publish("c", b"after")
            assert await anext(messages) == Message("c", b"after")
        finally:
            os.kill(sentinel.primary.pid, signal.SIGCONT)

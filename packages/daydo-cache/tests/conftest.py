from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from cache_loaders import PATIENT

from daydo_cache import Cache
from daydo_cache.testing import FaultyRedis
from daydo_kernel import new_id
from daydo_kernel.testing import ManualClock
from daydo_redis import embedded
from daydo_redis.testing import CALM, START_S


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[FaultyRedis]:
    async with FaultyRedis(redis_url, CALM) as redis:
        yield redis


@pytest.fixture
async def cache(redis: FaultyRedis) -> AsyncIterator[Cache]:
    async with Cache(redis, PATIENT) as cache:
        yield cache


@pytest.fixture
def memory_url() -> Iterator[str]:
    """A Redis in process, for tests that every back end would pass alike."""
    url = f"embedded://memory/{new_id('test')}"
    yield url
    embedded.forget_memory(url)


@pytest.fixture
async def near(memory_url: str) -> AsyncIterator[FaultyRedis]:
    """What this process has of that Redis."""
    async with FaultyRedis(memory_url, CALM) as redis:
        yield redis


@pytest.fixture
async def far(memory_url: str) -> AsyncIterator[FaultyRedis]:
    """What another process has of it."""
    async with FaultyRedis(memory_url, CALM) as redis:
        yield redis


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def server(pytestconfig: pytest.Config) -> Iterator[embedded.PrivateRedis]:
    """A server of this test's own, to freeze and to fill."""
    if pytestconfig.getoption("--embedded"):
        pytest.skip("needs a server to freeze or fill, and --embedded leaves servers out")
    server = embedded.PrivateRedis()
    try:
        server.wait_ready(START_S)
        yield server
    finally:
        server.stop()

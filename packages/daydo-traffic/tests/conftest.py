from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

pytest.register_assert_rewrite("daydo_traffic.testing")

from daydo_kernel.testing import ManualClock  # noqa: E402
from daydo_redis import Redis, embedded  # noqa: E402
from daydo_redis.testing import CALM, START_S  # noqa: E402


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis(redis_url, CALM) as redis:
        yield redis


@pytest.fixture
def server(pytestconfig: pytest.Config) -> Iterator[embedded.PrivateRedis]:
    """A server of this test's own, to freeze and to kill."""
    if pytestconfig.getoption("--embedded"):
        pytest.skip("needs a server to freeze or kill, and --embedded leaves servers out")
    server = embedded.PrivateRedis()
    try:
        server.wait_ready(START_S)
        yield server
    finally:
        server.stop()

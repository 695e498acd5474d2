"""Every back end of ``redis_url`` behaves alike, from a URL and around a client of the caller."""

from __future__ import annotations

from collections.abc import AsyncIterator

import fakeredis
import pytest
from redis.asyncio import Redis as Client

from daydo_redis import Redis, RedisConfig
from daydo_redis.testing import SHORT_S, RedisConformance, RoutedConformance


class TestRedis(RedisConformance):
    pass


class TestClientOfYours(RoutedConformance):
    """Around a redis.asyncio.Redis, or a fakeredis, that decodes."""

    @pytest.fixture
    async def redis(self, redis_url: str) -> AsyncIterator[Redis]:
        options = {"decode_responses": True, "protocol": 2}
        if redis_url.startswith("embedded"):
            client: Client = fakeredis.FakeAsyncRedis(version=(7,), **options)
        else:
            client = Client.from_url(redis_url, **options)
        async with Redis(client, RedisConfig(command_timeout_s=SHORT_S, subscribe_timeout_s=SHORT_S)) as redis:
            yield redis
        await client.aclose(close_connection_pool=True)

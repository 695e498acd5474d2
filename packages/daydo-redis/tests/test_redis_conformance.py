"""Every back end of ``redis_url`` behaves alike."""

from __future__ import annotations

from daydo_redis.testing import RedisConformance


class TestRedis(RedisConformance):
    pass

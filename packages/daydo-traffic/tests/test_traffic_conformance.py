"""The suite that ships to users, in memory and on every Redis."""

from __future__ import annotations

import pytest

from daydo_traffic.testing import LimitsConformance


class TestInMemory(LimitsConformance):
    @pytest.fixture
    def redis_source(self) -> None:
        return None


class TestOnRedis(LimitsConformance):
    @pytest.fixture
    def redis_source(self, redis_url: str) -> str:
        return redis_url

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from daydo_auth import Auth
from daydo_auth.testing import AuthConformance
from daydo_db import Database
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_redis import Redis
from daydo_redis.testing import CALM


class TestCountedInTheDatabase(AuthConformance):
    """Every database, session_store="sql"."""

    @pytest.fixture
    async def auth(
        self, db: Database, memory: Redis, clock: ManualClock, events: RecordedEvents, configure: Any
    ) -> AsyncIterator[Auth]:
        async with Auth(db, memory, configure(session_store="sql"), clock=clock, events=events) as auth:
            yield auth


class TestCountedInRedis(AuthConformance):
    """Every kind of Redis; the rows are read and written as above."""

    @pytest.fixture
    async def auth(
        self, sqlite: Database, redis_url: str, clock: ManualClock, events: RecordedEvents, configure: Any
    ) -> AsyncIterator[Auth]:
        async with (
            Redis(redis_url, CALM) as redis,
            Auth(sqlite, redis, configure(), clock=clock, events=events) as auth,
        ):
            yield auth

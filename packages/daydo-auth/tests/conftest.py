from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

pytest.register_assert_rewrite("daydo_auth.testing")

from daydo_auth import Auth, AuthConfig  # noqa: E402
from daydo_db import Database, migrate  # noqa: E402
from daydo_kernel.testing import ManualClock, RecordedEvents  # noqa: E402
from daydo_redis import Redis  # noqa: E402
from daydo_redis.testing import CALM  # noqa: E402

KEY = "test-key-0123456789-abcdefghijklmnop"
PEPPER = "test-pepper-0123456789-abcdefghijkl"


def make_config(**changes: Any) -> AuthConfig:
    return AuthConfig(**{"keys": {"k1": KEY}, "pepper": PEPPER, "bcrypt_rounds": 4} | changes)


@pytest.fixture
def configure() -> Callable[..., AuthConfig]:
    return make_config


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def events() -> RecordedEvents:
    return RecordedEvents()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """A migrated database of every kind."""
    async with Database(database_url) as db:
        await migrate(db, "daydo_auth")
        yield db


@pytest.fixture
async def sqlite() -> AsyncIterator[Database]:
    """One migrated database, for what does not depend on the kind."""
    async with Database("sqlite://") as db:
        await migrate(db, "daydo_auth")
        yield db


@pytest.fixture
async def memory() -> AsyncIterator[Redis]:
    async with Redis("embedded://memory", CALM) as redis:
        yield redis


@pytest.fixture
async def auth(sqlite: Database, memory: Redis, clock: ManualClock, events: RecordedEvents) -> AsyncIterator[Auth]:
    async with Auth(sqlite, memory, make_config(), clock=clock, events=events) as auth:
        yield auth

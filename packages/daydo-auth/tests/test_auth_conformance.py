from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from daydo_auth import Auth
from daydo_auth.testing import AuthConformance
from daydo_db import Database
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_redis import Redis


class TestEveryDatabase(AuthConformance):
    @pytest.fixture
    async def auth(
        self, db: Database, memory: Redis, clock: ManualClock, events: RecordedEvents, configure: object
    ) -> AsyncIterator[Auth]:
        async with Auth(db, memory, configure(), clock=clock, events=events) as auth:  # type: ignore[operator]
            yield auth

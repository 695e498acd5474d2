from collections.abc import AsyncIterator

import pytest

from daydo_db import Database, migrate

pytest.register_assert_rewrite("daydo_quota.testing")


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as db:
        await migrate(db, "daydo_quota")
        yield db

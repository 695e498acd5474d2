import pytest

from daydo_db import Database, migrate

pytest.register_assert_rewrite("daydo_pipeline.testing")


@pytest.fixture
async def db(database_url):
    async with Database(database_url) as db:
        await migrate(db, "daydo_pipeline")
        yield db

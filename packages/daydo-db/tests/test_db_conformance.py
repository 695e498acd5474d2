"""The shipped suites, over our own Database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from daydo_db import Database
from daydo_db.testing import DatabaseConformance, TxConformance


class TestDatabase(DatabaseConformance):
    pass


class TestTransaction(TxConformance):
    @pytest.fixture
    async def observer(self, database_url: str) -> AsyncIterator[Database]:
        async with Database(database_url) as db:
            yield db

    @pytest.fixture
    async def open_tx(self, database_url: str) -> AsyncIterator[Callable[[], Any]]:
        async with Database(database_url) as db:
            yield db.transaction

"""Every fault at every statement of every call: by itself, in a transaction of ours, and in a session of SQLAlchemy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from daydo_db import Tx
from daydo_db.sqlalchemy import enlist
from daydo_quota.testing import Fault, Faults, LedgerFaults
from daydo_quota.testing.fault_suite import OpenTx

LOUD = tuple(fault for fault in Fault if fault is not Fault.SILENT)


class TestEveryFault(LedgerFaults):
    faults_to_try = LOUD
    patience_s = 30.0

    @pytest.fixture
    def fault_url(self, migrated_url: str) -> str:
        return migrated_url


@pytest.mark.dialect("mysql")
class TestSilence(LedgerFaults):
    """Each takes as long as the client's patience, so not at every statement; ``--seed`` says at which."""

    faults_to_try = (Fault.SILENT,)
    samples = 5
    patience_s = 0.5

    @pytest.fixture
    def fault_url(self, migrated_url: str, seed: int) -> str:
        self.seed = seed
        return migrated_url


@pytest.mark.dialect("mysql")
class TestInASession(LedgerFaults):
    """Another driver, at REPEATABLE READ, which COMMITs in words of its own; samples, for it has many statements."""

    faults_to_try = LOUD
    samples = 40
    session_errors = (DBAPIError,)
    patience_s = 30.0

    @pytest.fixture
    def fault_url(self, migrated_url: str, seed: int) -> str:
        self.seed = seed
        return migrated_url

    @pytest.fixture
    async def open_tx(self, faults: Faults) -> AsyncIterator[OpenTx]:
        url = faults.url.replace("mysql:", "mysql+aiomysql:")
        engine = create_async_engine(url, isolation_level="REPEATABLE READ")
        sessions = async_sessionmaker(engine)

        @asynccontextmanager
        async def enlisted() -> AsyncIterator[Tx]:
            async with sessions.begin() as session:
                yield await enlist(session)

        yield enlisted
        await engine.dispose()

    @pytest.mark.skip("needs no session")
    async def test_by_itself(self) -> None:
        """TestEveryFault has it."""

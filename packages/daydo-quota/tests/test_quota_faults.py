"""Every call under every fault at every statement, on every back end; and that the faults are what they say."""

import pytest

from daydo_db import Database, migrate
from daydo_quota.testing.faults import Fault, LedgerFaults


@pytest.fixture
async def migrated(database_url: str) -> str:
    async with Database(database_url) as db:
        await migrate(db, "daydo_quota")
    return database_url


class TestFaults(LedgerFaults):
    # A silence takes as long as the client's patience; `nox -s proof` has those.
    faults_to_try = tuple(fault for fault in Fault if fault is not Fault.SILENT)
    patience_s = 30.0

    @pytest.fixture
    def fault_url(self, migrated: str) -> str:
        return migrated

"""The shipped suite over every back end, by itself and with ``tx=``; test_quota_enlisted.py has the sessions."""

from collections.abc import AsyncIterator

import pytest

from daydo_db import Database
from daydo_kernel.testing import ManualClock
from daydo_quota import Ledger
from daydo_quota.testing import InTransaction, LedgerConformance, check_books


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def own(db: Database, clock: ManualClock) -> AsyncIterator[Ledger]:
    async with Ledger(db, clock=clock) as ledger:
        yield ledger
    await check_books(db)


class TestByItself(LedgerConformance):
    @pytest.fixture
    def ledger(self, own: Ledger) -> Ledger:
        return own


# MySQL with tx= is run at REPEATABLE READ, which asks for more.
@pytest.mark.dialect("sqlite")
class TestInTheCallersTransaction(LedgerConformance):
    @pytest.fixture
    def ledger(self, own: Ledger, db: Database) -> InTransaction:
        return InTransaction(own, db.transaction)

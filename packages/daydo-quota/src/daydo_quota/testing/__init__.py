"""For tests, ours and yours: a model that is obviously right, and the suite every back end must pass.

In a project of yours::

    class TestOurDatabase(LedgerConformance):
        @pytest.fixture
        async def ledger(self, db, clock):
            async with Ledger(db, clock=clock) as ledger:
                yield ledger

(and ``pytest.register_assert_rewrite("daydo_quota.testing")`` in conftest.py, so that failures show values).
"""

from .aim import Fault
from .fault_suite import LedgerFaults
from .faults import Faults
from .model import LedgerModel
from .suites import InTransaction, LedgerConformance, LedgerLike, check_books

__all__ = [
    "Fault",
    "Faults",
    "InTransaction",
    "LedgerConformance",
    "LedgerFaults",
    "LedgerLike",
    "LedgerModel",
    "check_books",
]

"""A batch that is decided before anything is asked, and written in one packet.

Theory
------
Most batches are about accounts that were written here a moment ago. Everything of these is remembered (``memory.py``);
what is not known is whether somebody else has written to them since, and exactly what time it is. So the plan is made
of what is remembered, and the first statement of its packet finds out: it locks the accounts that are free, and fails
unless all of them bear the stamps that were left and it is the time that the plan was made for. Then nothing that
follows is carried out. The keys that a plan claims are believed to be new; where one is not, its UNIQUE index says so.

A plan that refuses anything is no draft: what was to be refused may be a repeat, and no statement would find that out.
Nor is one about time that has come, debts, refunds or allowances, for they need rows that are not remembered.

An account that other processes write to in turn with this one would make every draft fail. So the accounts of a draft
that failed are next read, and found as they were remembered, before they are drafted about again: once, and after each
further failure twice as often.

*Whatever goes wrong* with a draft is nobody's error. It is undone, and the batch is read and decided anew
(``free.py``); if there is an error it shows there. Only of a COMMIT whose answer did not come nobody knows what became
of it.

*Time* is what the database told last, and what has passed here since then. That is never later than the database's
time, and nothing was due in between: else the draft fails. Per account times only grow: a draft is of accounts that
were written here last, and no draft is dated before what was written here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from time import monotonic
from typing import NamedTuple

from daydo_db import CommitUnknown, DbError, Tx
from daydo_kernel import Clock

from .errors import QuotaError
from .memory import Memory, Sheet, open_hold
from .ops import Allow, Disallow, Op, Refund, accounts_of, settled_key
from .planner import plan
from .rows import AccountKey, AccountRow, HoldRow, Plan, Rules, State
from .store import BY_ID, Asked, Store, marks

_ASKING_MORE = (Refund, Allow, Disallow)
# A draft is carried out within this, or not at all.
_LATEST_US = 250_000
# 2⁶³ is no number of 64 bits: this is 2⁶³ - 1, or an error in every database.
_UNLESS = "ABS(-9223372036854775807 - ({}))"

_TOLD_LATELY_S = 10.0
# Clocks that are set right by steering differ by less.
_DRIFT = 0.0005
# SQLite tells milliseconds, rounded.
_ROUNDED_US = 1_000


class Overtaken(Exception):
    """A draft did not come true; nothing of it was kept."""


class Draft(NamedTuple):
    """What becomes of ``ops`` if ``accounts`` are as remembered, and if it is not earlier than ``from_us`` and not
    later than ``until_us``. ``sheets`` are those of the accounts, by id, and may have gone on since."""

    ops: Sequence[Op]
    plan: Plan
    accounts: Sequence[AccountRow]
    sheets: dict[int, Sheet]
    from_us: int
    until_us: int


class Drafts:
    """Makes drafts, and hears what became of them."""

    def __init__(self, memory: Memory, rules: Rules, clock: Clock | None) -> None:
        self._memory = memory
        self._rules = rules
        self._time = _Time(clock)

    def told(self, now_us: int) -> None:
        """The database said what time it is (0: it was not asked)."""
        if now_us:
            self._time.told(now_us)

    def sent(self, draft: Draft) -> None:
        """From now on the accounts are remembered as it will leave them: what follows it is decided on that.

        If it fails, the stamp that is remembered stands nowhere, so nothing that follows it comes true either.
        """
        self._memory.learn(draft.sheets, draft.plan)

    def came_true(self, draft: Draft, now_us: int) -> None:
        self._time.told(now_us)
        for sheet in draft.sheets.values():
            sheet.doubts = 0

    def failed(self, draft: Draft) -> None:
        self._time.forget()  # It may have been that.
        for sheet in draft.sheets.values():
            sheet.doubt()

    def draft(self, ops: Sequence[Op]) -> Draft | None:
        """None where something must be read first."""
        now_us, remembered = self._time.now_us(), self._remembered(ops)
        if now_us is None or remembered is None:
            return None
        known, holds = remembered
        accounts = {key: sheet.account for key, sheet in known.items()}
        due_us = min([min(row.next_due_at_us, row.renews_at_us) for row in accounts.values()])
        if due_us <= now_us:
            return None
        grants = list(chain.from_iterable([sheet.grants.values() for sheet in known.values()]))
        decided = plan(ops, State(accounts, grants, holds), now_us, self._rules)
        if any([isinstance(outcome, QuotaError) for outcome in decided.outcomes]):  # noqa: C419 - half the time
            return None
        sheets = {sheet.account.id: sheet for sheet in known.values()}
        until_us = min(due_us - 1, now_us + _LATEST_US)
        return Draft(ops, decided, list(accounts.values()), sheets, now_us, until_us)

    def may_draft(self, op: Op) -> bool:
        """Whether all that ``op`` needs is remembered, and believed."""
        return self._remembered([op]) is not None

    def _remembered(self, ops: Sequence[Op]) -> tuple[dict[AccountKey, Sheet], list[HoldRow]] | None:
        """The sheets of all accounts, and the holds that ``ops`` are about, if nothing else is needed."""
        known, holds = dict[AccountKey, Sheet](), list[HoldRow]()
        for op in ops:
            if isinstance(op, _ASKING_MORE):
                return None
            for key in accounts_of(op):
                sheet = self._memory.get(key)
                if sheet is None or sheet.to_see or sheet.account.debt:
                    return None
                known[key] = sheet
            if settled_key(op) is not None:
                hold = open_hold(op, known)
                if hold is None:
                    return None
                holds.append(hold)
        return known, holds


class DraftStore(Store):
    """The transaction in which a draft is written; ``sent`` is called when it goes out."""

    def __init__(
        self, tx: Tx, clock: Clock | None, patience_s: float, draft: Draft, sent: Callable[[Draft], None]
    ) -> None:
        super().__init__(tx, clock, patience_s)
        self._draft = draft
        self._sent = sent
        self.now_us = 0
        """The database's time, once it is written."""

    async def write(self, plan: Plan, *, last: bool = False) -> None:
        """As :meth:`Store.write`.

        Raises:
            Overtaken: an account is locked, or not as it was remembered, a key is not new, or it is another time.
            CommitUnknown: of the ``last``.
        """
        packet = [self._require_true(), *self._writes(plan)]
        self._sent(self._draft)
        try:
            [seen, *_] = await self._send(packet, last=last)
        except CommitUnknown:
            raise
        except DbError as error:
            raise Overtaken from error
        self.now_us = int(seen.rows[0][0])

    def _require_true(self) -> Asked:
        """The stamps are compared by their sum: those of a batch are alike, and any other are random."""
        rows = self._draft.accounts
        ids = sorted(row.id for row in rows)
        wrong = f"COALESCE(SUM(stamp), 0) <> ? OR {self._now} NOT BETWEEN ? AND ?"
        where = f"{BY_ID[self._dialect]} WHERE id IN ({marks(ids)}) {self._free}"
        select = f"SELECT {self._now}, {_UNLESS.format(wrong)} FROM daydo_quota_account {where}"  # noqa: S608 - ours
        return select, [sum(row.stamp for row in rows), self._draft.from_us, self._draft.until_us, *ids]


class _Time:
    """The database's time without asking, never later than it is there: told by it, plus what has passed here."""

    def __init__(self, clock: Clock | None) -> None:
        self._clock = clock
        self._ahead_us = 0.0  # of our clock
        self._told_at_s = -_TOLD_LATELY_S
        self._least_us = 0

    def told(self, now_us: int) -> None:
        """An answer takes its time; the one that took least says most, but not for ever."""
        here_s = monotonic()
        since_s = here_s - self._told_at_s
        ahead_us = now_us - _ROUNDED_US - here_s * 1e6
        if since_s < _TOLD_LATELY_S:
            ahead_us = max(ahead_us, self._ahead_us - since_s * 1e6 * _DRIFT)
        self._ahead_us, self._told_at_s = ahead_us, here_s
        self._least_us = max(self._least_us, now_us)

    def forget(self) -> None:
        self._told_at_s, self._least_us = -_TOLD_LATELY_S, 0

    def now_us(self) -> int | None:
        """None if it was told too long ago. Never less than it was before, or than it was told."""
        if self._clock is not None:
            return self._clock.now_us()
        here_s = monotonic()
        since_s = here_s - self._told_at_s
        if since_s >= _TOLD_LATELY_S:
            return None
        now_us = int(self._ahead_us + here_s * 1e6 - since_s * 1e6 * _DRIFT)
        self._least_us = max(self._least_us, now_us)
        return self._least_us

"""What the ledger does without being called, on as many processes as there are.

Three loops, each safe beside itself in other processes, killed at any moment, and needed by nothing: balances are
right without them.

*Sweep*: accounts for which something is overdue are brought up to date. The account's lock shares the work: a process
passes over accounts that another has, and finds nothing left to do in those that another had.

*Audit*: the books are recomputed again and again, a step at a time (``audit.py``). How far the walk is and what the
last one found stands in a row of ``daydo_quota_upkeep``; whoever has the row's lock takes the next step and writes its
result in the same transaction, so N processes do the work of one, and a step that dies is taken again. After a step
there is a pause in proportion to what it took: ``audit_share`` of one process's time, however slow the database is.

*Roll-up*: entries older than ``entries_kept_s`` go. The oldest ones of an account, as many as may go in one
transaction, become one entry ``rolled_up`` with the balances after the last of them and its ``seq``. A process claims
some accounts by moving the cursor in its row of ``daydo_quota_upkeep``, commits, and rolls them up one by one under
the account's lock. If it dies, the claimed accounts wait for the next round; nothing else is lost. Rows of grants,
holds and amendments stay for ever: they are what makes a repeat harmless.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, TypeVar

import msgspec

from daydo_db import CommitUnknown, Database, Tx, now_sql
from daydo_kernel import Clock

from .audit import Auditor, Place
from .counts import Counts
from .errors import QuotaError
from .model import Disagreement
from .ops import CatchUp, Op
from .planner import plan
from .rows import Plan
from .store import Store, marks

if TYPE_CHECKING:
    from .ledger import LedgerConfig

log = logging.getLogger("daydo.quota")

LOOK_S = 60.0
"""The longest that a loop sleeps before it looks at its row again, which another process may have changed."""

MakeSo = Callable[[Sequence[Op], Plan, Store], Awaitable[None]]
"""Write what was decided, and tell those who listen."""


class AuditState(msgspec.Struct):
    """Of the row ``audit``. ``place`` is None between two walks.

    ``since_us`` is when the last walk ended (until one has: when the first began), and ``disagreement`` what it found.
    """

    since_us: int = 0
    disagreement: Disagreement | None = None
    place: Place | None = None
    begun_at_us: int = 0
    accounts: int = 0
    entries: int = 0


class RollUpState(msgspec.Struct):
    """Of the row ``retention``: accounts up to ``after`` have been looked at in this round."""

    after: int = 0


Remembered = TypeVar("Remembered", AuditState, RollUpState)


class Condition(msgspec.Struct, frozen=True):
    """How the books are, by one look.

    Attributes:
        expiry_lag_s: how long the most overdue account has been so.
        stuck_hold_s: how long the oldest hold has been open beyond its time, among the ``sweep_accounts`` most overdue
            accounts.
        audit_age_s: since when the books are not known to agree: the end of the last background audit, or the first's
            beginning; 0 before.
        disagreement: what the last one found.
    """

    expiry_lag_s: float
    stuck_hold_s: float
    audit_age_s: float
    disagreement: Disagreement | None


class Upkeep:
    """The loops, and single turns of each for those who call them from elsewhere."""

    def __init__(
        self, db: Database, config: LedgerConfig, clock: Clock | None, make_so: MakeSo, counts: Counts
    ) -> None:
        self._db = db
        self._config = config
        self._clock = clock
        self._make_so = make_so
        self._counts = counts

    async def condition(self) -> Condition:
        """One statement; the gauges are set by it, too."""
        result = await self._db.query(
            f"SELECT {self._now}, (SELECT MIN(next_due_at_us) FROM daydo_quota_account), ("  # noqa: S608
            f"SELECT MIN(h.expires_at_us) FROM (SELECT id FROM daydo_quota_account WHERE next_due_at_us <= {self._now} "
            "ORDER BY next_due_at_us LIMIT ?) a JOIN daydo_quota_hold h ON h.account_id = a.id AND h.phase = 'open' "
            f"AND h.expires_at_us <= {self._now}), (SELECT state FROM daydo_quota_upkeep WHERE name = 'audit')",
            [self._config.sweep_accounts],
        )
        now_us, due_us, stuck_us, text = result.rows[0]
        audit = _state(AuditState, text)
        condition = Condition(
            _seconds(due_us, now_us),
            _seconds(stuck_us, now_us),
            _seconds(audit.since_us or None, now_us),
            audit.disagreement,
        )
        self._counts.condition_is(
            condition.expiry_lag_s, condition.stuck_hold_s, condition.audit_age_s, condition.disagreement is not None
        )
        return condition

    # Sweep

    async def sweep_all(self) -> None:
        """Until nothing is overdue that another process does not have, or that is broken."""
        passed = set[int]()
        while True:
            # However many are passed over, those that became due after them have their turn.
            due = [one for one in await self._due(len(passed)) if one not in passed]
            passed.update(set(due) - await self._sweep(due))
            if len(due) < self._config.sweep_accounts:
                break
        await self.condition()

    async def sweep(self) -> int:
        """Bring at most ``sweep_accounts`` overdue accounts up to date; how many were."""
        return len(await self._sweep(await self._due()))

    async def _due(self, more: int = 0) -> list[int]:
        result = await self._db.query(
            f"SELECT id FROM daydo_quota_account WHERE next_due_at_us <= {self._now} ORDER BY next_due_at_us LIMIT ?",  # noqa: S608
            [self._config.sweep_accounts + more],
        )
        return [row[0] for row in result.rows]

    async def _sweep(self, due: list[int]) -> set[int]:
        """Those that were brought up to date, or nearer to it."""
        started = time.perf_counter()
        # Processes that look at the same moment see the same accounts; they should not go through them in step.
        random.shuffle(due)
        reached = {account_id for account_id in due if await self._catch_up(account_id)}
        self._counts.upkeep_took("sweep", time.perf_counter() - started)
        return reached

    async def _catch_up(self, account_id: int) -> bool:
        try:
            return await self._db.run(partial(self._catch_up_in, account_id), retries=self._config.retries)
        except CommitUnknown:
            return False  # Whether it is done the next look shows.
        except Exception as error:
            if getattr(error, "retryable", False):
                raise
            # One account whose books are broken must not keep the others waiting.
            log.exception("account %s could not be brought up to date", account_id)
            return False

    async def _catch_up_in(self, account_id: int, tx: Tx) -> bool:
        store = Store(tx, self._clock)
        state, now_us = await store.read_due(account_id, self._config.sweep_holds)
        due = [key for key, row in state.accounts.items() if row.next_due_at_us <= now_us]
        ops = [CatchUp(account=key, asked=False) for key in due]
        decided = plan(ops, state, now_us, self._config.rules)
        for outcome in decided.outcomes:
            if isinstance(outcome, QuotaError):
                raise outcome
        await self._make_so(ops, decided, store)
        return bool(due)

    # Audit

    async def audit(self) -> None:
        """For ever."""
        pause_s = LOOK_S / 2
        while True:
            # Jitter: processes that were started together should not look together.
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                pause_s = await self.audit_turn()
            except Exception:
                pause_s = LOOK_S
                log.exception("a step of the background audit failed; it is taken again in %s s", LOOK_S)

    async def audit_turn(self) -> float:
        """The next step of the background audit, if it is due and no other process is at it; s until the next look."""
        pause_s = await self._pause_s("audit")
        if not pause_s:
            pause_s = await self._db.run(self._audit_in, retries=self._config.retries)
        await self.condition()
        return pause_s

    async def _audit_in(self, tx: Tx) -> float:
        started = time.perf_counter()
        claimed = await self._claim(tx, "audit", AuditState)
        if claimed is None:
            return LOOK_S
        state, now_us = claimed
        state.since_us = state.since_us or now_us
        if state.place is None:
            state.begun_at_us, state.accounts, state.entries = now_us, 0, 0
        step = await Auditor(tx, None, self._config.audit_accounts, self._config.audit_rows).step(
            state.place or Place()
        )
        state.accounts += step.accounts
        state.entries += step.entries
        state.place = step.place if step.found is None else None
        took_s = time.perf_counter() - started
        pause_s = took_s / self._config.audit_share - took_s
        if state.place is None:
            state.since_us, state.disagreement = now_us, step.found
            pause_s = max(pause_s, self._config.audit_interval_s - (now_us - state.begun_at_us) / 1_000_000)
        await self._write(tx, "audit", now_us, took_s + pause_s, state)
        tx.after_commit(partial(self._audited, state, step.accounts, step.entries, took_s))
        return min(pause_s, LOOK_S)

    def _audited(self, state: AuditState, accounts: int, entries: int, took_s: float) -> None:
        self._counts.upkeep_took("audit", took_s)
        self._counts.audited(accounts, entries, ended=state.place is None, agrees=state.disagreement is None)
        if state.place is None and (found := state.disagreement) is not None:
            log.error("the books of account %s disagree: %s (row %s)", found.account_id, found.complaint, found.row)

    # Roll-up

    async def roll_up_all(self) -> None:
        """The rest of this round, or as much of it as no other process takes: whoever has the row goes on with it."""
        while not await self._pause_s("retention"):
            if await self._roll_up() is None:
                break

    async def roll_up(self) -> int:
        """Roll up the next ``roll_up_accounts`` accounts, if a round is due; how many entries that removed."""
        return await self._roll_up() or 0

    async def _roll_up(self) -> int | None:
        """None where there was nothing to claim, or another process has the row."""
        started = time.perf_counter()
        if not self._config.entries_kept_s:
            return None
        claimed = await self._db.run(self._claim_accounts, retries=self._config.retries)
        if claimed is None:
            return None
        accounts, before_us = claimed
        removed = 0
        for account_id in await self._with_old_entries(accounts, before_us):
            roll_up = partial(self._roll_up_in, account_id, before_us)
            while some := await self._db.run(roll_up, retries=self._config.retries):
                removed += some
        self._counts.upkeep_took("roll_up", time.perf_counter() - started)
        return removed

    async def _claim_accounts(self, tx: Tx) -> tuple[list[int], int] | None:
        """Accounts to be rolled up, and the time before which their entries are old."""
        claimed = await self._claim(tx, "retention", RollUpState)
        if claimed is None:
            return None
        state, now_us = claimed
        select = "SELECT id FROM daydo_quota_account WHERE id > ? ORDER BY id LIMIT ?"
        found = (await tx.execute(select, [state.after, self._config.roll_up_accounts])).rows
        more = len(found) == self._config.roll_up_accounts
        state.after = found[-1][0] if more else 0
        await self._write(tx, "retention", now_us, 0 if more else self._config.roll_up_interval_s, state)
        return [row[0] for row in found], now_us - round(self._config.entries_kept_s * 1_000_000)

    async def _with_old_entries(self, accounts: Sequence[int], before_us: int) -> list[int]:
        if not accounts:
            return []
        # The second: the first alone is what a roll-up leaves.
        second = "SELECT e.at_us FROM daydo_quota_entry e WHERE e.account_id = a.id ORDER BY e.seq LIMIT 1 OFFSET 1"
        result = await self._db.query(
            f"SELECT a.id FROM daydo_quota_account a WHERE a.id IN ({marks(accounts)}) AND ({second}) < ?",  # noqa: S608
            [*accounts, before_us],
        )
        return [row[0] for row in result.rows]

    async def _roll_up_in(self, account_id: int, before_us: int, tx: Tx) -> int:
        lock = f"{tx.dialect.for_update} {tx.dialect.skip_locked}"
        if not (await tx.execute(f"SELECT id FROM daydo_quota_account WHERE id = ? {lock}", [account_id])).rows:  # noqa: S608
            return 0
        select = "SELECT seq, at_us FROM daydo_quota_entry WHERE account_id = ? ORDER BY seq LIMIT ?"
        entries = (await tx.execute(select, [account_id, self._config.roll_up_rows])).rows
        old = list(takewhile(lambda entry: entry[1] < before_us, entries))
        if len(old) < 2:
            return 0
        last = old[-1][0]
        await tx.execute("DELETE FROM daydo_quota_entry WHERE account_id = ? AND seq < ?", [account_id, last])
        await tx.execute(_ROLLED_UP, [f"account_{account_id}", max(at_us for _, at_us in old), account_id, last])
        tx.after_commit(partial(self._counts.rolled_up, len(old) - 1))
        return len(old) - 1

    # Rows that all processes share

    async def _pause_s(self, name: str) -> float:
        """Until the work is due, :data:`LOOK_S` at most; by a look that locks nothing."""
        sql = f"SELECT {self._now}, due_at_us FROM daydo_quota_upkeep WHERE name = ?"  # noqa: S608
        [(now_us, due_at_us)] = (await self._db.query(sql, [name])).rows
        return min(_seconds(now_us, due_at_us), LOOK_S)

    async def _claim(self, tx: Tx, name: str, kind: type[Remembered]) -> tuple[Remembered, int] | None:
        """The state and the time, if the work is due and no other process has it."""
        lock = f"{tx.dialect.for_update} {tx.dialect.skip_locked}"
        sql = f"SELECT {self._now}, state FROM daydo_quota_upkeep WHERE name = ? AND due_at_us <= {self._now} {lock}"  # noqa: S608
        rows = (await tx.execute(sql, [name])).rows
        return (_state(kind, rows[0][1]), int(rows[0][0])) if rows else None

    async def _write(self, tx: Tx, name: str, now_us: int, pause_s: float, state: AuditState | RollUpState) -> None:
        await tx.execute(
            "UPDATE daydo_quota_upkeep SET due_at_us = ?, state = ? WHERE name = ?",
            [now_us + round(pause_s * 1_000_000), msgspec.json.encode(state).decode(), name],
        )

    @property
    def _now(self) -> str:
        return now_sql(self._db.dialect, self._clock)


_ROLLED_UP = """
    UPDATE daydo_quota_entry SET op_id = ?, step = 'rolled_up', kind = 'rolled_up', op_key = '', hold_key = '',
        reason = '', at_us = ?, amount = 0, available_change = available, reserved_change = reserved,
        spent_change = spent, expired_change = expired, debt_change = debt
    WHERE account_id = ? AND seq = ?"""


def _state(kind: type[Remembered], text: str) -> Remembered:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError:
        # Of a later version, perhaps: what is lost is only how far the work was.
        log.warning("the state of %s cannot be read; it begins anew: %s", kind.__name__, text)
        return kind()


def _seconds(since_us: int | None, until_us: int) -> float:
    return max(0, int(until_us) - int(since_us)) / 1_000_000 if since_us is not None else 0.0

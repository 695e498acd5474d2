"""How units move: the account's, its grants' and its holds' rows, always all of them together.

``planner.py`` has the theory, and decides which of these movements an operation is; ``due.py`` which of them time is.
Every change of a balance goes through :meth:`Book.post`, which also writes its entry.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from operator import attrgetter
from typing import Any, TypeVar

from msgspec.structs import replace

from .errors import BalanceLimit, BooksDisagree, InsufficientQuota
from .model import EntryKind
from .ops import GrantUnits, fingerprint
from .rows import (
    DEBT,
    MAX_UNITS,
    NEVER_US,
    AccountKey,
    AccountRow,
    AllowanceRow,
    AmendmentRow,
    ChangingRow,
    EntryRow,
    GrantRow,
    HoldPhase,
    HoldRow,
    Notice,
    Outcome,
    Plan,
    Rules,
    Share,
    State,
    owner_of,
)

Row = TypeVar("Row", GrantRow, HoldRow, AllowanceRow)

_BURN_ORDER = attrgetter("priority", "expires_at_us", "created_at_us", "id")
_RESOLVING = ("charged", "confirmed", "cancelled", "hold_expired")


class Book:
    """A working copy of the state."""

    def __init__(self, state: State, now_us: int, rules: Rules) -> None:
        self.now_us = now_us
        self.rules = rules
        rows = chain[ChangingRow](state.accounts.values(), state.grants, state.holds, state.allowances)
        self._before: dict[int | str, ChangingRow] = {row.id: row for row in rows}
        self._touched: dict[str, GrantRow | HoldRow | AllowanceRow] = {}
        self.accounts = {key: replace(row) for key, row in state.accounts.items()}
        # By id, for some rows come twice, found by their key and by their account.
        self.grants = {row.id: replace(row) for row in state.grants}
        self._grants_of: dict[int, list[GrantRow]] = {}
        for grant in self.grants.values():
            self._grants_of.setdefault(grant.account_id, []).append(grant)
        for grants in self._grants_of.values():
            grants.sort(key=_BURN_ORDER)
        self.holds = {row.id: replace(row) for row in state.holds}
        self.holds_of_key: dict[tuple[str, str], list[HoldRow]] = {}
        for hold in self.holds.values():
            self.holds_of_key.setdefault((hold.tenant, hold.op_key), []).append(hold)
        self.amendments = {(row.tenant, row.kind, row.op_key): row for row in state.amendments}
        self.allowances = {row.id: replace(row) for row in state.allowances}
        self.new_amendments: list[AmendmentRow] = []
        self.next_hold_us = state.next_hold_us
        self.entries: list[EntryRow] = []
        self.notices: list[Notice] = []
        # By account id: the row whose entry last made units available.
        self._freed_by: dict[int, GrantRow | HoldRow | AmendmentRow] = {}

    def close(self, outcomes: list[Outcome]) -> Plan:
        made: dict[type, list[Any]] = {GrantRow: [], HoldRow: [], AllowanceRow: []}
        changed: dict[type, list[Any]] = {GrantRow: [], HoldRow: [], AllowanceRow: []}
        owners = {row.account_id for row in self.new_amendments}
        for row in self._touched.values():
            before = self._before.get(row.id)
            if row != before:  # else it was changed and changed back
                (made if before is None else changed)[type(row)].append(row)
                owners.add(row.account_id)
        return Plan(
            outcomes,
            new_grants=made[GrantRow],
            new_holds=made[HoldRow],
            new_amendments=self.new_amendments,
            new_allowances=made[AllowanceRow],
            accounts=[row for row in self.accounts.values() if row.id in owners or row != self._before[row.id]],
            grants=changed[GrantRow],
            holds=changed[HoldRow],
            allowances=changed[AllowanceRow],
            entries=self.entries,
            notices=self.notices,
            before=self._before,
        )

    # Rows

    def touch(self, row: Row) -> Row:
        self._touched[row.id] = row
        return row

    def new_grant(self, account: AccountRow, op: GrantUnits, effective_at_us: int, expires_at_us: int) -> GrantRow:
        notice_at_us = expires_at_us - self.rules.expiring_notice_us
        # None for what lasts no longer than that: its end is no news.
        wanted = self.rules.expiring_notice_us and effective_at_us < notice_at_us and expires_at_us < NEVER_US
        return GrantRow(
            id=op.id,
            account_id=account.id,
            tenant=account.tenant,
            op_key=op.key,
            fingerprint=fingerprint(op),
            source=op.source,
            priority=op.priority,
            effective_at_us=effective_at_us,
            expires_at_us=expires_at_us,
            notice_at_us=notice_at_us if wanted else NEVER_US,
            created_at_us=self.now_us,
            phase="pending" if effective_at_us > self.now_us else "live",
            granted=op.amount,
            remaining=op.amount,
            held=0,
            spent=0,
            expired=0,
        )

    def add_grant(self, account: AccountRow, row: GrantRow, reason: str) -> None:
        """Units begin to be: pending, or available at once."""
        self.grants[row.id] = self.grant_of_key[row.tenant, row.op_key] = self.touch(row)
        insort(self._grants_of.setdefault(row.account_id, []), row, key=_BURN_ORDER)
        pending = row.phase == "pending"
        look_at(account, row.effective_at_us if pending else next_moment(row))
        if pending:
            self.post(account, row, "granted", row.granted, reason, pending=row.granted)
        else:
            self.post(account, row, "granted", row.granted, reason, available=row.granted)

    def add_hold(self, row: HoldRow) -> HoldRow:
        self.holds[row.id] = self._touched[row.id] = row
        self.holds_of_key.setdefault((row.tenant, row.op_key), []).append(row)
        return row

    def allowances_of(self, account: AccountRow) -> list[AllowanceRow]:
        """Those that are not over."""
        mine = [row for row in self.allowances.values() if row.account_id == account.id and row.next_at_us < NEVER_US]
        return sorted(mine, key=lambda row: (row.created_at_us, row.id))

    @cached_property
    def grant_of_key(self) -> dict[tuple[str, str], GrantRow]:
        return {(row.tenant, row.op_key): row for row in self.grants.values()}

    def grants_of(self, account: AccountRow) -> list[GrantRow]:
        """Those that are not closed, and those whose key was named; in burn order."""
        return self._grants_of.get(account.id, [])

    # Available → reserved or spent

    def require(self, account: AccountRow, amount: int) -> None:
        if amount > account.available:
            raise insufficient(owner_of(account), amount, account.available)
        live = 0
        for row in self.grants_of(account):
            live += row.remaining if row.phase == "live" else 0
        if live < amount:
            raise BooksDisagree(account_id=account.id)

    def take(self, account: AccountRow, amount: int) -> list[Share]:
        """Hold ``amount`` of the grants, in burn order; :meth:`require` has seen that they are there."""
        parts = []
        for row in self.grants_of(account):
            if not amount:
                break
            if row.phase == "live" and row.remaining:
                taken = min(row.remaining, amount)
                row.remaining -= taken
                row.held += taken
                amount -= taken
                parts.append(Share(self.touch(row).id, taken, 0))
        return parts

    def spend(self, account: AccountRow, amount: int, *, owing: bool = False) -> list[Share]:
        """From available to spent, as parts beyond their hold; with ``owing`` what is not available becomes debt."""
        if not amount:
            return []
        paid = min(amount, account.available) if owing else amount
        if amount - paid > MAX_UNITS - _total_of(account):
            raise BalanceLimit(most=MAX_UNITS)
        self.require(account, paid)
        parts = [Share(part.grant_id, 0, part.amount) for part in self._pay(account, paid)]
        return [*parts, Share(DEBT, 0, amount - paid)] if amount > paid else parts

    def _pay(self, account: AccountRow, amount: int) -> list[Share]:
        parts = self.take(account, amount)
        for part in parts:
            self._charge(part.grant_id, part.amount)
        return parts

    def _charge(self, grant_id: str, amount: int) -> None:
        grant = self.touch(self.grants[grant_id])
        grant.held -= amount
        grant.spent += amount
        _close_if_done(grant)

    def use(self, row: HoldRow, amount: int) -> None:
        """Charge ``amount`` of what an open hold still has, from the front."""
        parts = []
        row.captured += amount
        for part in row.parts:
            used = min(part.free, amount)
            if used:
                self._charge(part.grant_id, used)
            amount -= used
            parts.append(replace(part, used=part.used + used))
        self.touch(row).parts = parts

    def settle(self, row: HoldRow, charge: int, beyond: Sequence[Share]) -> int:
        """A hold is confirmed; ``charge`` includes ``beyond``, which it had not set aside. Returns what is owed."""
        row.final, row.resolved_at_us = charge, self.now_us
        if beyond:
            row.captured += sum(part.used for part in beyond)
            row.parts = [*row.parts, *beyond]
        owed = self.touch(row).owed
        row.phase = "owing" if owed else "confirmed"
        return owed

    def repay(self, account: AccountRow, at_us: int) -> None:
        """What has become available pays the debt first: the longest owed first, by grants in burn order."""
        if not (account.debt and account.available):
            return
        amount = min(account.debt, account.available)
        paid = self._pay(account, amount)
        for row in sorted(self._owing(account), key=lambda row: (row.resolved_at_us, row.id)):
            paid = self._pay_off(row, paid)
        cause = self._freed_by[account.id]
        self.post(account, cause, "repaid", amount, "", at_us=at_us, available=-amount, debt=-amount)

    def require_sound_debt(self, account: AccountRow) -> None:
        """A debt is that of the holds that owe, and nothing is available beside it: else :meth:`repay` would fail."""
        if account.debt and (account.available or account.debt != sum(row.owed for row in self._owing(account))):
            raise BooksDisagree(account_id=account.id)

    def require_grants(self, account: AccountRow, row: HoldRow, *, charged: bool = False) -> None:
        """The grants that an open hold's units are in, or with ``charged`` those that a refund's would go to."""
        for part in row.parts:
            moves = part.used > part.refunded if charged else part.amount > part.used
            if moves and part.grant_id not in self.grants and part.grant_id != DEBT:
                raise BooksDisagree(account_id=account.id)

    def _owing(self, account: AccountRow) -> list[HoldRow]:
        return [row for row in self.holds.values() if row.account_id == account.id and row.phase == "owing"]

    def _pay_off(self, row: HoldRow, paid: list[Share]) -> list[Share]:
        """Give ``paid`` units to what the hold owes; returns what is left of them."""
        *parts, debt = row.parts
        owed, left = row.owed, []
        for part in paid:
            units = min(part.amount, owed)
            owed -= units
            if units:
                parts.append(Share(part.grant_id, 0, units))
            if part.amount > units:
                left.append(replace(part, amount=part.amount - units))
        debt = replace(debt, used=debt.refunded + owed)
        self.touch(row).parts = [*parts, debt] if debt.used else parts
        row.phase = "owing" if owed else "confirmed"
        return left

    # Reserved or spent → available, or expired

    def give_back(self, account: AccountRow, row: HoldRow, at_us: int) -> tuple[int, int]:
        """What the hold was not charged returns: (available again, expired)."""
        returned = lost = 0
        for part in row.parts:
            units = part.free
            if units:
                grant = self.touch(self.grants[part.grant_id])
                grant.held -= units
                lapsed = self._return(account, grant, units, at_us)
                lost += units if lapsed else 0
                returned += 0 if lapsed else units
                _close_if_done(grant)
        return returned, lost

    def unuse(self, account: AccountRow, row: HoldRow, amount: int) -> tuple[int, int, int]:
        """Undo ``amount`` of the hold's charges, from the back: (available again, expired, never paid)."""
        returned, lost, forgiven, parts = 0, 0, 0, []
        row.refunded += amount
        for part in reversed(row.parts):
            undone = min(part.used - part.refunded, amount)
            if undone and part.grant_id == DEBT:
                forgiven += undone
            elif undone:
                grant = self.touch(self.grants[part.grant_id])
                grant.spent -= undone
                lapsed = self._return(account, grant, undone, self.now_us)
                lost += undone if lapsed else 0
                returned += 0 if lapsed else undone
            amount -= undone
            parts.append(replace(part, refunded=part.refunded + undone))
        self.touch(row).parts = parts[::-1]
        if row.phase == "owing" and not row.owed:
            row.phase = "confirmed"
        return returned, lost, forgiven

    def _return(self, account: AccountRow, grant: GrantRow, amount: int, at_us: int) -> bool:
        """Units come back to their grant; True if that had expired, and they with it."""
        lapsed = grant.phase == "lapsed" or grant.expires_at_us <= at_us
        if lapsed:
            grant.expired += amount
        else:
            grant.remaining += amount
            grant.phase = "live"  # or it was closed, and opens again
            look_at(account, next_moment(grant))
        return lapsed

    def resolve(
        self,
        account: AccountRow,
        row: HoldRow,
        phase: HoldPhase,
        kind: EntryKind,
        at_us: int,
        reason: str,
    ) -> None:
        """End an open hold without a charge: what was not captured returns."""
        reserved = row.amount - row.captured
        returned, lost = self.give_back(account, row, at_us)
        row.phase, row.resolved_at_us = phase, at_us
        self.post(
            account,
            self.touch(row),
            kind,
            reserved,
            reason,
            at_us=at_us,
            available=returned,
            reserved=-reserved,
            expired=lost,
        )

    # What a grant's time does

    def activate(self, account: AccountRow, row: GrantRow, at_us: int) -> None:
        self.touch(row).phase = "live"
        amount = row.remaining
        self.post(account, row, "activated", amount, "", at_us=at_us, pending=-amount, available=amount)

    def expire(self, account: AccountRow, row: GrantRow, at_us: int) -> None:
        lost, row.remaining = row.remaining, 0
        row.expired += lost
        self.touch(row).phase = "lapsed"
        _close_if_done(row)
        if lost:
            self.post(account, row, "grant_expired", lost, "", at_us=at_us, available=-lost, expired=lost)

    # The entry

    def post(
        self,
        account: AccountRow,
        about: GrantRow | HoldRow | AmendmentRow,
        kind: EntryKind,
        amount: int,
        reason: str,
        *,
        step: str = "",
        hold_key: str = "",
        at_us: int | None = None,
        pending: int = 0,
        available: int = 0,
        reserved: int = 0,
        spent: int = 0,
        expired: int = 0,
        debt: int = 0,
    ) -> None:
        account.seq += 1
        account.pending += pending
        account.available += available
        account.reserved += reserved
        account.spent += spent
        account.expired += expired
        account.debt += debt
        if available > 0:
            self._freed_by[account.id] = about
        # Half of them by position: a call with more than 15 names is several times as slow, whatever is called.
        entry = EntryRow(
            account.id,
            account.seq,
            about.id,
            step or ("resolve" if kind in _RESOLVING else kind),
            kind,
            about.op_key,
            hold_key,
            reason,
            self.now_us if at_us is None else at_us,
            amount,
            available_change=available,
            reserved_change=reserved,
            spent_change=spent,
            expired_change=expired,
            debt_change=debt,
            available=account.available,
            reserved=account.reserved,
            spent=account.spent,
            expired=account.expired,
            debt=account.debt,
        )
        self.entries.append(entry)


def _total_of(account: AccountRow) -> int:
    """All that was ever granted, and the debt."""
    return account.pending + account.available + account.reserved + account.spent + account.expired


def room_in(account: AccountRow) -> int:
    """How much may still be granted in the account's life."""
    return MAX_UNITS - (_total_of(account) - account.debt)


def look_at(account: AccountRow, at_us: int) -> None:
    if at_us < account.next_due_at_us:
        account.next_due_at_us = at_us


def next_moment(grant: GrantRow) -> int:
    """When time will next do something to a live grant that has units."""
    return min(grant.notice_at_us, grant.expires_at_us)


def insufficient(account: AccountKey, amount: int, available: int) -> InsufficientQuota:
    return InsufficientQuota(subject=account[1], unit=account[2], amount=amount, available=available)


def _close_if_done(grant: GrantRow) -> None:
    if not grant.remaining and not grant.held:
        grant.phase = "closed"

"""Every decision of the ledger, and nothing else: no I/O, no clock, no ids of its own.

Theory
------
``plan(ops, state, now_us)`` takes what was asked, what the database holds (read under the account's lock) and the
time (read after that lock was had), and says what each caller is told and which rows that leaves. The store makes it
so in one transaction. The same inputs give the same plan on every engine, so the books do not depend on the engine.

*Units* are in one of five places: ``pending`` (granted, not yet effective), ``available``, ``reserved`` (in an open
hold), ``spent``, ``expired``. They only ever move between these, and three sums hold after every operation:

1. per grant:    granted = remaining + held + spent + expired        (``remaining`` is pending or available)
2. per account:  each balance = the sum over its grants
3. per account:  reserved = the sum over its open holds of what they were not yet charged

*Burn order*: smallest ``priority``, then earliest expiry, then oldest. A hold remembers its parts, (grant, amount), in
that order: captures and the confirm charge them from the front, and what is left returns to the grant it came from. If
that grant has expired meanwhile, it returns as expired: promotional money must not come back to life by being held,
nor by being refunded. A refund goes the other way, from the back, so that what stays charged is what a smaller charge
would have taken. What a confirm charges beyond its hold (overage, or a hold that had timed out) is taken from the
balance in burn order and remembered as parts of amount 0.

*Time* is three things that happen by themselves: a hold times out, a pending grant becomes effective, a grant
expires. Each is written when somebody next writes to the account (or the sweeper does), in the order in which they
were due and dated when they were due; so the books read the same whoever wrote them and however late. At an
instant's tie holds go first. An instant belongs to the future: at exactly ``expires_at_us`` a thing has expired.
``next_due_at_us`` of the account is never later than the first such moment, and may be earlier: it says when to look,
not what is there.

*Exactly once*: a key names one operation in a tenant. Found again with the same fingerprint (a hash of the parameters
as the caller gave them; ``reason`` is a remark, not a parameter) the answer is the row as it is now, ``created=False``;
True if the row bears the operation's own id, for then it is the same call, repeated by us after a lost answer. With
another fingerprint it is KeyConflict. A hold is resolved once, its phase says how; only a confirm that may be late
comes after a time-out, and once. Captures and refunds are rows of their own (amendments), for each has a key. Refusals
leave no trace. A cancel that comes before its reserve leaves a tombstone, which the reserve then finds.

*Several accounts* under one key are several holds, each settled by (account, key). The first in the order of accounts
has ``leg`` 0 and thereby claims the key in the tenant, as any single hold does; the others' ``leg`` is their account's
id. None of them is decided before all can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal, NamedTuple, TypeVar

import msgspec

from .errors import (
    BadPeriod,
    BalanceLimit,
    BooksDisagree,
    ChargeExceedsHold,
    HoldCancelled,
    HoldConfirmed,
    HoldExpired,
    HoldUnknown,
    InsufficientQuota,
    KeyConflict,
    QuotaError,
    RefundExceedsCharge,
)
from .model import Balance, EntryKind, Grant, Hold, Phase, Policy

MAX_UNITS = 2**53 - 1
"""The greatest whole number that every JSON reader keeps exactly; no account's lifetime total exceeds it."""

NEVER_US = 2**53 - 1
"""Year 2255: what stands in the tables for "does not happen", so that times compare and sort without NULL."""

AccountKey = tuple[str, str, str]
"""(tenant, subject, unit)"""


class GrantUnits(msgspec.Struct, frozen=True, kw_only=True):
    """Add ``amount``. ``id`` is the new row's, if one is made; times are microseconds, None as in Ledger.grant."""

    id: str
    account: AccountKey
    key: str
    amount: int
    source: str
    priority: int
    effective_at_us: int | None
    expires_at_us: int | None
    reason: str


class Reserve(msgspec.Struct, frozen=True, kw_only=True):
    """Set ``amount`` aside for ``ttl_us``; ``ttl_given_us`` is what the caller said (None: the configured one)."""

    id: str
    account: AccountKey
    key: str
    amount: int
    ttl_us: int
    ttl_given_us: int | None
    reason: str


class Leg(NamedTuple):
    """One account's share in a :class:`ReserveAll`; ``id`` is the new hold's."""

    id: str
    account: AccountKey
    amount: int


class ReserveAll(msgspec.Struct, frozen=True, kw_only=True):
    """:class:`Reserve` of every leg, or of none. The accounts differ, the tenant does not."""

    legs: tuple[Leg, ...]
    key: str
    ttl_us: int
    ttl_given_us: int | None
    reason: str


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """Charge ``amount`` of the open hold ``hold_key``, which stays open; ``id`` is the new amendment's."""

    id: str
    account: AccountKey
    key: str
    hold_key: str
    amount: int
    reason: str


class Confirm(msgspec.Struct, frozen=True, kw_only=True):
    """Charge ``amount`` of what the hold still has (None: all of it) and return the rest."""

    account: AccountKey
    key: str
    amount: int | None
    reason: str
    overage: Policy = "reject"
    late: Policy = "reject"


class Extend(msgspec.Struct, frozen=True, kw_only=True):
    """Let the hold last at least ``ttl_us`` from now."""

    account: AccountKey
    key: str
    ttl_us: int


class Refund(msgspec.Struct, frozen=True, kw_only=True):
    """Return ``amount`` of what the hold ``hold_key`` was charged; ``id`` is the new amendment's."""

    id: str
    account: AccountKey
    key: str
    hold_key: str
    amount: int
    reason: str


class Cancel(msgspec.Struct, frozen=True, kw_only=True):
    """Return what the hold was not charged; ``id`` is the tombstone's, if there is no hold."""

    id: str
    account: AccountKey
    key: str
    reason: str


class CatchUp(msgspec.Struct, frozen=True, kw_only=True):
    """Write down what time has done; nothing else."""

    account: AccountKey


SingleOp = GrantUnits | Reserve | Capture | Confirm | Cancel | Extend | Refund | CatchUp
Op = SingleOp | ReserveAll
Outcome = Grant | Hold | list[Hold] | Balance | QuotaError


class AccountRow(msgspec.Struct):
    """``daydo_quota_account``; the other rows are their tables too, field by field."""

    id: int
    tenant: str
    subject: str
    unit: str
    pending: int
    available: int
    reserved: int
    spent: int
    expired: int
    seq: int
    next_due_at_us: int


class GrantRow(msgspec.Struct):
    """``phase``: ``pending`` → ``live`` → ``lapsed`` (expired, but in part still held) → ``closed`` (nothing left)."""

    id: str
    account_id: int
    tenant: str
    op_key: str
    fingerprint: str
    source: str
    priority: int
    effective_at_us: int
    expires_at_us: int
    created_at_us: int
    phase: str
    granted: int
    remaining: int
    held: int
    spent: int
    expired: int


AmendmentKind = Literal["capture", "refund"]


class Share(NamedTuple):
    """What a hold took from one grant, how much of that was charged, and how much of the charge was refunded.

    ``amount`` is 0 for what was charged beyond the hold.
    """

    grant_id: str
    amount: int
    used: int
    refunded: int = 0

    @property
    def free(self) -> int:
        return max(0, self.amount - self.used)


class HoldRow(msgspec.Struct):
    """``captured`` is all that was ever charged; ``final`` is the confirm's part of it, so that its repeat is known."""

    id: str
    account_id: int
    tenant: str
    op_key: str
    leg: int
    fingerprint: str
    amount: int
    captured: int
    final: int
    refunded: int
    phase: Phase
    expires_at_us: int
    parts: list[Share]
    created_at_us: int
    resolved_at_us: int


class AmendmentRow(msgspec.Struct, frozen=True):
    """A capture or a refund of a hold: what its key means."""

    id: str
    account_id: int
    tenant: str
    kind: AmendmentKind
    op_key: str
    fingerprint: str
    hold_id: str
    amount: int
    created_at_us: int


class EntryRow(msgspec.Struct, frozen=True):
    """``op_id`` is the grant, hold or amendment; (op_id, step) is unique: wrong code cannot settle twice.

    ``hold_key`` is the hold's where ``op_key`` is the key of its amendment, and empty otherwise.
    """

    account_id: int
    seq: int
    op_id: str
    step: str
    kind: EntryKind
    op_key: str
    hold_key: str
    reason: str
    at_us: int
    amount: int
    available_change: int
    reserved_change: int
    spent_change: int
    expired_change: int
    available: int
    reserved: int
    spent: int
    expired: int


Row = TypeVar("Row", AccountRow, GrantRow, HoldRow)

_RESOLVING = ("confirmed", "cancelled", "hold_expired")


class State(msgspec.Struct):
    """What the database holds, as far as the batch needs it.

    Per account that is due or has an operation on holds: all its grants that are not closed. Per account that is due:
    its overdue holds, and in ``next_hold_us`` (by account id) a time no later than the expiry of the first open hold
    that is *not* here. Besides: every grant, hold and amendment whose (tenant, key) an operation names, and the grants
    that a hold to be refunded was charged to, closed or not.
    """

    accounts: dict[AccountKey, AccountRow] = {}
    grants: list[GrantRow] = []
    holds: list[HoldRow] = []
    next_hold_us: dict[int, int] = {}
    amendments: list[AmendmentRow] = []


class Plan(msgspec.Struct):
    """``outcomes`` in the order of the operations; then the rows to insert and, in their final state, to update."""

    outcomes: list[Outcome]
    new_grants: list[GrantRow]
    new_holds: list[HoldRow]
    new_amendments: list[AmendmentRow]
    accounts: list[AccountRow]
    grants: list[GrantRow]
    holds: list[HoldRow]
    entries: list[EntryRow]


def plan(ops: Sequence[Op], state: State, now_us: int) -> Plan:
    """Decide ``ops`` in their order. An operation that is refused leaves the books as the others made them."""
    book = _Book(state, now_us)
    outcomes = [book.decide(op) for op in ops]
    return book.close(outcomes)


def accounts_of(op: Op) -> tuple[AccountKey, ...]:
    """The accounts that must be locked and read for ``op``."""
    return tuple(leg.account for leg in op.legs) if isinstance(op, ReserveAll) else (op.account,)


def fingerprint(op: GrantUnits | Reserve | ReserveAll | Capture | Refund) -> str:
    """32 hex digits over the parameters as the caller gave them."""
    facts: list[object]
    match op:
        case GrantUnits():
            facts = [op.account, op.amount, op.source, op.priority, op.effective_at_us, op.expires_at_us]
        case Reserve():
            facts = [op.account, op.amount, op.ttl_given_us]
        case ReserveAll():
            facts = [sorted((leg.account, leg.amount) for leg in op.legs), op.ttl_given_us]
        case Capture() | Refund():
            facts = [op.account, op.hold_key, op.amount]
    return blake2b(msgspec.json.encode(facts), digest_size=16).hexdigest()


class _Book:
    """A working copy of the state; every change of a balance goes through :meth:`_post`."""

    def __init__(self, state: State, now_us: int) -> None:
        self.now_us = now_us
        self.accounts = {key: msgspec.structs.replace(row) for key, row in state.accounts.items()}
        self.grants = {row.id: msgspec.structs.replace(row) for row in state.grants}
        self.holds = {row.id: msgspec.structs.replace(row) for row in state.holds}
        self.grant_of_key = {(row.tenant, row.op_key): row for row in self.grants.values()}
        self.holds_of_key: dict[tuple[str, str], list[HoldRow]] = {}
        for row in self.holds.values():
            self.holds_of_key.setdefault((row.tenant, row.op_key), []).append(row)
        self.amendments = {(row.tenant, row.kind, row.op_key): row for row in state.amendments}
        self.new_amendments: list[AmendmentRow] = []
        self.next_hold_us = state.next_hold_us
        self.known = {*self.grants, *self.holds}
        self.touched: dict[str | int, AccountRow | GrantRow | HoldRow] = {}
        self.entries: list[EntryRow] = []

    def decide(self, op: Op) -> Outcome:
        for key in accounts_of(op):
            due = self.accounts.get(key)
            if due is not None and due.next_due_at_us <= self.now_us:
                self._catch_up(due)
        try:
            return self._reserve_all(op) if isinstance(op, ReserveAll) else self._decide_in(op)
        except QuotaError as refusal:
            return refusal

    def _decide_in(self, op: SingleOp) -> Outcome:
        account = self.accounts.get(op.account)
        if account is None:
            return self._without_account(op)
        match op:
            case GrantUnits():
                return self._grant(account, op)
            case Reserve():
                return self._reserve(account, op)
            case Capture():
                return self._capture(account, op)
            case Confirm():
                return self._confirm(account, op)
            case Cancel():
                return self._cancel(account, op)
            case Extend():
                return self._extend(account, op)
            case Refund():
                return self._refund(account, op)
            case CatchUp():
                return balance_of(account)

    def close(self, outcomes: list[Outcome]) -> Plan:
        rows = list(self.touched.values())
        grants = [row for row in rows if isinstance(row, GrantRow)]
        holds = [row for row in rows if isinstance(row, HoldRow)]
        return Plan(
            outcomes,
            new_grants=[row for row in grants if row.id not in self.known],
            new_holds=[row for row in holds if row.id not in self.known],
            new_amendments=self.new_amendments,
            accounts=[row for row in rows if isinstance(row, AccountRow)],
            grants=[row for row in grants if row.id in self.known],
            holds=[row for row in holds if row.id in self.known],
            entries=self.entries,
        )

    def _without_account(self, op: SingleOp) -> Outcome:
        # Only a grant and a cancel open an account; the store has done so before it asks us.
        match op:
            case Reserve():
                return _insufficient(op.account, op.amount, 0)
            case Confirm() | Extend():
                return HoldUnknown(key=op.key)
            case Capture() | Refund():
                return HoldUnknown(key=op.hold_key)
            case CatchUp():
                return Balance()
        raise KeyError(op.account)

    # The operations

    def _grant(self, account: AccountRow, op: GrantUnits) -> Grant:
        known = self.grant_of_key.get((account.tenant, op.key))
        if known is not None:
            if known.fingerprint != fingerprint(op):
                raise KeyConflict(key=op.key)
            return _grant_result(account, known, created=known.id == op.id)
        effective_at_us = self.now_us if op.effective_at_us is None else op.effective_at_us
        expires_at_us = NEVER_US if op.expires_at_us is None else op.expires_at_us
        if expires_at_us <= max(self.now_us, effective_at_us):
            raise BadPeriod(field="expires_at_us")
        total = account.pending + account.available + account.reserved + account.spent + account.expired
        if total + op.amount > MAX_UNITS:
            raise BalanceLimit(most=MAX_UNITS)
        pending = effective_at_us > self.now_us
        row = GrantRow(
            id=op.id,
            account_id=account.id,
            tenant=account.tenant,
            op_key=op.key,
            fingerprint=fingerprint(op),
            source=op.source,
            priority=op.priority,
            effective_at_us=effective_at_us,
            expires_at_us=expires_at_us,
            created_at_us=self.now_us,
            phase="pending" if pending else "live",
            granted=op.amount,
            remaining=op.amount,
            held=0,
            spent=0,
            expired=0,
        )
        self.grants[row.id] = self.grant_of_key[row.tenant, row.op_key] = self._touch(row)
        _look_at(account, effective_at_us if pending else expires_at_us)
        if pending:
            self._post(account, row, "granted", op.amount, op.reason, pending=op.amount)
        else:
            self._post(account, row, "granted", op.amount, op.reason, available=op.amount)
        return _grant_result(account, row, created=True)

    def _reserve(self, account: AccountRow, op: Reserve) -> Hold:
        rows = self.holds_of_key.get((account.tenant, op.key), ())
        for row in rows:
            if row.phase == "tombstone" and row.account_id == account.id:
                raise HoldCancelled(key=op.key, hold_id=row.id)
            if row.fingerprint != fingerprint(op):
                raise KeyConflict(key=op.key)
            return _hold_result(account, row, created=row.id == op.id)
        self._require_units(account, op.amount)
        return self._hold(account, Leg(op.id, op.account, op.amount), op, leg=0)

    def _reserve_all(self, op: ReserveAll) -> list[Hold]:
        accounts = {key: self.accounts[key] for key in accounts_of(op) if key in self.accounts}
        rows = self.holds_of_key.get((op.legs[0].account[0], op.key), ())
        if rows:
            return self._reserved_before(op, accounts, rows)
        for leg in op.legs:
            if leg.account not in accounts:
                raise _insufficient(leg.account, leg.amount, 0)
            self._require_units(accounts[leg.account], leg.amount)
        first = min(accounts)
        return [
            self._hold(accounts[leg.account], leg, op, leg=0 if leg.account == first else accounts[leg.account].id)
            for leg in op.legs
        ]

    def _reserved_before(
        self, op: ReserveAll, accounts: dict[AccountKey, AccountRow], rows: Sequence[HoldRow]
    ) -> list[Hold]:
        mine = {account.id for account in accounts.values()}
        for row in rows:
            if row.phase == "tombstone" and row.account_id in mine:
                raise HoldCancelled(key=op.key, hold_id=row.id)
        if any(row.fingerprint != fingerprint(op) for row in rows):
            raise KeyConflict(key=op.key)
        of_account = {row.account_id: row for row in rows}
        found = [(accounts[leg.account], of_account[accounts[leg.account].id], leg) for leg in op.legs]
        return [_hold_result(account, row, created=row.id == leg.id) for account, row, leg in found]

    def _hold(self, account: AccountRow, what: Leg, op: Reserve | ReserveAll, *, leg: int) -> Hold:
        row = self._add_hold(
            HoldRow(
                id=what.id,
                account_id=account.id,
                tenant=account.tenant,
                op_key=op.key,
                leg=leg,
                fingerprint=fingerprint(op),
                amount=what.amount,
                captured=0,
                final=0,
                refunded=0,
                phase="open",
                expires_at_us=self.now_us + op.ttl_us,
                parts=self._take(account, what.amount),
                created_at_us=self.now_us,
                resolved_at_us=NEVER_US,
            )
        )
        _look_at(account, row.expires_at_us)
        self._post(account, row, "held", row.amount, op.reason, available=-row.amount, reserved=row.amount)
        return _hold_result(account, row, created=True)

    def _capture(self, account: AccountRow, op: Capture) -> Hold:
        known = self._amended(account, op, "capture")
        if known is not None:
            return _hold_result(account, self.holds[known.hold_id], created=known.id == op.id)
        row = self._open_hold_of(account, op.hold_key)
        left = row.amount - row.captured
        if op.amount > left:
            raise ChargeExceedsHold(key=op.hold_key, amount=op.amount, held=left)
        self._use(row, op.amount)
        amendment = self._amend(account, row, op, "capture")
        self._post(
            account,
            amendment,
            "captured",
            op.amount,
            op.reason,
            hold_key=row.op_key,
            reserved=-op.amount,
            spent=op.amount,
        )
        return _hold_result(account, row, created=True)

    def _confirm(self, account: AccountRow, op: Confirm) -> Hold:
        row = self._hold_of(account, op.key)
        if row is None:
            raise HoldUnknown(key=op.key)
        if row.phase in ("cancelled", "tombstone") or (row.phase == "expired" and op.late != "available"):
            raise _over(row)
        left = row.amount - (row.captured - row.final)
        charge = left if op.amount is None else op.amount
        if row.phase == "confirmed":
            if charge != row.final:
                raise KeyConflict(key=op.key)
            return _hold_result(account, row, created=False)
        if charge > left and op.overage != "available":
            raise ChargeExceedsHold(key=op.key, amount=charge, held=left)
        # A hold that has timed out has returned its units: all of the charge is then beyond it.
        from_hold = min(charge, left) if row.phase == "open" else 0
        beyond = self._spend(account, charge - from_hold)
        if row.phase == "open":
            self._resolve(account, row, "confirmed", "confirmed", self.now_us, op.reason, from_hold, beyond)
        else:
            self._confirm_late(account, row, charge, beyond, op.reason)
        return _hold_result(account, row, created=True)

    def _confirm_late(self, account: AccountRow, row: HoldRow, charge: int, beyond: list[Share], reason: str) -> None:
        row.phase, row.final, row.resolved_at_us = "confirmed", charge, self.now_us
        row.captured += charge
        row.parts = [*row.parts, *beyond]
        self._post(account, self._touch(row), "confirmed", charge, reason, step="late", available=-charge, spent=charge)

    def _cancel(self, account: AccountRow, op: Cancel) -> Hold:
        row = self._hold_of(account, op.key)
        if row is None:
            return _hold_result(account, self._tombstone(account, op), created=True)
        if row.phase == "confirmed":
            raise _over(row)
        if row.phase == "open":
            self._resolve(account, row, "cancelled", "cancelled", self.now_us, op.reason)
            return _hold_result(account, row, created=True)
        # Cancelled before, or timed out: what the caller wants has already happened.
        return _hold_result(account, row, created=row.id == op.id)

    def _extend(self, account: AccountRow, op: Extend) -> Hold:
        row = self._open_hold_of(account, op.key)
        until_us = self.now_us + op.ttl_us
        longer = until_us > row.expires_at_us
        if longer:
            # The account still looks at the old time: it may look too early, never too late.
            self._touch(row).expires_at_us = until_us
        return _hold_result(account, row, created=longer)

    def _refund(self, account: AccountRow, op: Refund) -> Hold:
        known = self._amended(account, op, "refund")
        if known is not None:
            return _hold_result(account, self.holds[known.hold_id], created=known.id == op.id)
        row = self._hold_of(account, op.hold_key)
        if row is None:
            raise HoldUnknown(key=op.hold_key)
        charged = row.captured - row.refunded
        if op.amount > charged:
            raise RefundExceedsCharge(key=op.hold_key, amount=op.amount, charged=charged)
        returned, lost = self._unuse(account, row, op.amount)
        amendment = self._amend(account, row, op, "refund")
        self._post(
            account,
            amendment,
            "refunded",
            op.amount,
            op.reason,
            hold_key=row.op_key,
            available=returned,
            spent=-op.amount,
            expired=lost,
        )
        return _hold_result(account, row, created=True)

    def _catch_up(self, account: AccountRow) -> None:
        grants = [row for row in self.grants.values() if row.account_id == account.id]
        next_hold_us = self.next_hold_us.get(account.id, NEVER_US)
        # A sweeper brings only some of the overdue holds; then time has come no further than the next of them.
        until_us = min(self.now_us, next_hold_us - 1)
        due = [
            *((row.expires_at_us, 0, row.id) for row in self.holds.values() if self._is_overdue(account, row)),
            *((row.effective_at_us, 1, row.id) for row in grants if row.effective_at_us <= until_us),
            *((row.expires_at_us, 2, row.id) for row in grants if row.expires_at_us <= until_us),
        ]
        for at_us, what, row_id in sorted(due):
            if what == 0:
                self._resolve(account, self.holds[row_id], "expired", "hold_expired", at_us, "")
            elif what == 1 and self.grants[row_id].phase == "pending":
                self._activate(account, self.grants[row_id], at_us)
            elif what == 2 and self.grants[row_id].phase == "live":
                self._expire(account, self.grants[row_id], at_us)
        self._touch(account).next_due_at_us = min(
            next_hold_us,
            *(row.effective_at_us for row in grants if row.phase == "pending"),
            *(row.expires_at_us for row in grants if row.phase == "live" and row.remaining),
            NEVER_US,
        )

    # What they are made of

    def _is_overdue(self, account: AccountRow, row: HoldRow) -> bool:
        return row.account_id == account.id and row.phase == "open" and row.expires_at_us <= self.now_us

    def _hold_of(self, account: AccountRow, key: str) -> HoldRow | None:
        rows = self.holds_of_key.get((account.tenant, key), ())
        for row in rows:
            if row.account_id == account.id:
                return row
        # Tombstones of other accounts are no one's claim: a hold over several is cancelled account by account.
        if any(row.phase != "tombstone" for row in rows):
            raise KeyConflict(key=key)
        return None

    def _open_hold_of(self, account: AccountRow, key: str) -> HoldRow:
        row = self._hold_of(account, key)
        if row is None:
            raise HoldUnknown(key=key)
        if row.phase != "open":
            raise _over(row)
        return row

    def _add_hold(self, row: HoldRow) -> HoldRow:
        self.holds[row.id] = self._touch(row)
        self.holds_of_key.setdefault((row.tenant, row.op_key), []).append(row)
        return row

    def _tombstone(self, account: AccountRow, op: Cancel) -> HoldRow:
        others = self.holds_of_key.get((account.tenant, op.key), ())
        return self._add_hold(
            HoldRow(
                id=op.id,
                account_id=account.id,
                tenant=account.tenant,
                op_key=op.key,
                leg=account.id if others else 0,
                fingerprint="",
                amount=0,
                captured=0,
                final=0,
                refunded=0,
                phase="tombstone",
                expires_at_us=self.now_us,
                parts=[],
                created_at_us=self.now_us,
                resolved_at_us=self.now_us,
            )
        )

    def _amended(self, account: AccountRow, op: Capture | Refund, kind: AmendmentKind) -> AmendmentRow | None:
        known = self.amendments.get((account.tenant, kind, op.key))
        if known is not None and known.fingerprint != fingerprint(op):
            raise KeyConflict(key=op.key)
        return known

    def _amend(self, account: AccountRow, row: HoldRow, op: Capture | Refund, kind: AmendmentKind) -> AmendmentRow:
        amendment = AmendmentRow(
            id=op.id,
            account_id=account.id,
            tenant=account.tenant,
            kind=kind,
            op_key=op.key,
            fingerprint=fingerprint(op),
            hold_id=row.id,
            amount=op.amount,
            created_at_us=self.now_us,
        )
        self.amendments[account.tenant, kind, op.key] = amendment
        self.new_amendments.append(amendment)
        return amendment

    def _require_units(self, account: AccountRow, amount: int) -> None:
        if amount > account.available:
            raise _insufficient((account.tenant, account.subject, account.unit), amount, account.available)
        if sum(row.remaining for row in self._live(account)) < amount:
            raise BooksDisagree(account_id=account.id)

    def _live(self, account: AccountRow) -> list[GrantRow]:
        return [row for row in self.grants.values() if row.account_id == account.id and row.phase == "live"]

    def _take(self, account: AccountRow, amount: int) -> list[Share]:
        """From available to reserved; :meth:`_require_units` has seen that they are there."""
        parts = []
        for row in sorted(
            self._live(account), key=lambda row: (row.priority, row.expires_at_us, row.created_at_us, row.id)
        ):
            taken = min(row.remaining, amount)
            if taken:
                row.remaining -= taken
                row.held += taken
                amount -= taken
                parts.append(Share(self._touch(row).id, taken, 0))
        return parts

    def _spend(self, account: AccountRow, amount: int) -> list[Share]:
        """From available to spent, as parts beyond their hold."""
        if not amount:
            return []
        self._require_units(account, amount)
        parts = self._take(account, amount)
        for part in parts:
            self._charge(part.grant_id, part.amount)
        return [Share(part.grant_id, 0, part.amount) for part in parts]

    def _use(self, row: HoldRow, amount: int) -> None:
        """Charge ``amount`` of what an open hold still has, from the front."""
        parts = []
        row.captured += amount
        for part in row.parts:
            used = min(part.free, amount)
            if used:
                self._charge(part.grant_id, used)
            amount -= used
            parts.append(part._replace(used=part.used + used))
        self._touch(row).parts = parts

    def _charge(self, grant_id: str, amount: int) -> None:
        grant = self._touch(self.grants[grant_id])
        grant.held -= amount
        grant.spent += amount
        _close_if_done(grant)

    def _unuse(self, account: AccountRow, row: HoldRow, amount: int) -> tuple[int, int]:
        """Undo ``amount`` of the hold's charges, from the back: (available again, expired)."""
        returned, lost, parts = 0, 0, []
        row.refunded += amount
        for part in reversed(row.parts):
            undone = min(part.used - part.refunded, amount)
            if undone:
                grant = self._touch(self.grants[part.grant_id])
                grant.spent -= undone
                lapsed = self._return(account, grant, undone, self.now_us)
                lost += undone if lapsed else 0
                returned += 0 if lapsed else undone
            amount -= undone
            parts.append(part._replace(refunded=part.refunded + undone))
        self._touch(row).parts = parts[::-1]
        return returned, lost

    def _return(self, account: AccountRow, grant: GrantRow, amount: int, at_us: int) -> bool:
        """Units come back to their grant; True if that had expired, and they with it."""
        lapsed = grant.phase == "lapsed" or grant.expires_at_us <= at_us
        if lapsed:
            grant.expired += amount
        else:
            grant.remaining += amount
            grant.phase = "live"  # or it was closed, and opens again
            _look_at(account, grant.expires_at_us)
        return lapsed

    def _resolve(
        self,
        account: AccountRow,
        row: HoldRow,
        phase: Phase,
        kind: EntryKind,
        at_us: int,
        reason: str,
        from_hold: int = 0,
        beyond: Sequence[Share] = (),
    ) -> None:
        """End an open hold: charge ``from_hold`` of it and what was taken ``beyond`` it, return the rest."""
        reserved = row.amount - row.captured
        self._use(row, from_hold)
        returned = lost = 0
        for part in row.parts:
            if part.free:
                grant = self._touch(self.grants[part.grant_id])
                grant.held -= part.free
                lapsed = self._return(account, grant, part.free, at_us)
                lost += part.free if lapsed else 0
                returned += 0 if lapsed else part.free
                _close_if_done(grant)
        extra = sum(part.used for part in beyond)
        charge = from_hold + extra
        row.phase, row.final, row.resolved_at_us = phase, charge, at_us
        row.captured += extra
        row.parts = [*row.parts, *beyond]
        self._post(
            account,
            row,
            kind,
            charge if phase == "confirmed" else reserved,
            reason,
            at_us=at_us,
            available=returned - extra,
            reserved=-reserved,
            spent=charge,
            expired=lost,
        )

    def _activate(self, account: AccountRow, row: GrantRow, at_us: int) -> None:
        self._touch(row).phase = "live"
        amount = row.remaining
        self._post(account, row, "activated", amount, "", at_us=at_us, pending=-amount, available=amount)

    def _expire(self, account: AccountRow, row: GrantRow, at_us: int) -> None:
        lost, row.remaining = row.remaining, 0
        row.expired += lost
        self._touch(row).phase = "lapsed"
        _close_if_done(row)
        if lost:
            self._post(account, row, "grant_expired", lost, "", at_us=at_us, available=-lost, expired=lost)

    def _post(
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
    ) -> None:
        self._touch(account)
        account.seq += 1
        account.pending += pending
        account.available += available
        account.reserved += reserved
        account.spent += spent
        account.expired += expired
        entry = EntryRow(
            account_id=account.id,
            seq=account.seq,
            op_id=about.id,
            step=step or ("resolve" if kind in _RESOLVING else kind),
            kind=kind,
            op_key=about.op_key,
            hold_key=hold_key,
            reason=reason,
            at_us=self.now_us if at_us is None else at_us,
            amount=amount,
            available_change=available,
            reserved_change=reserved,
            spent_change=spent,
            expired_change=expired,
            available=account.available,
            reserved=account.reserved,
            spent=account.spent,
            expired=account.expired,
        )
        self.entries.append(entry)

    def _touch(self, row: Row) -> Row:
        self.touched[row.id] = row
        return row


def _look_at(account: AccountRow, at_us: int) -> None:
    account.next_due_at_us = min(account.next_due_at_us, at_us)


def _close_if_done(grant: GrantRow) -> None:
    if not grant.remaining and not grant.held:
        grant.phase = "closed"


def _insufficient(account: AccountKey, amount: int, available: int) -> InsufficientQuota:
    return InsufficientQuota(subject=account[1], unit=account[2], amount=amount, available=available)


def _over(row: HoldRow) -> QuotaError:
    """Why nothing more can be done with a hold that is not open."""
    if row.phase == "confirmed":
        return HoldConfirmed(key=row.op_key, hold_id=row.id, captured=row.captured)
    if row.phase == "expired":
        return HoldExpired(key=row.op_key, hold_id=row.id, expired_at_us=row.expires_at_us)
    return HoldCancelled(key=row.op_key, hold_id=row.id)


def _grant_result(account: AccountRow, row: GrantRow, *, created: bool) -> Grant:
    return Grant(
        id=row.id,
        tenant=account.tenant,
        subject=account.subject,
        unit=account.unit,
        key=row.op_key,
        amount=row.granted,
        source=row.source,
        priority=row.priority,
        effective_at_us=row.effective_at_us,
        expires_at_us=row.expires_at_us if row.expires_at_us < NEVER_US else None,
        remaining=row.remaining,
        created=created,
    )


def _hold_result(account: AccountRow, row: HoldRow, *, created: bool) -> Hold:
    return Hold(
        id=row.id,
        tenant=account.tenant,
        subject=account.subject,
        unit=account.unit,
        key=row.op_key,
        amount=row.amount,
        captured=row.captured,
        refunded=row.refunded,
        phase=row.phase,
        expires_at_us=row.expires_at_us,
        created=created,
    )


def balance_of(account: AccountRow) -> Balance:
    return Balance(
        available=account.available,
        reserved=account.reserved,
        spent=account.spent,
        expired=account.expired,
        pending=account.pending,
    )

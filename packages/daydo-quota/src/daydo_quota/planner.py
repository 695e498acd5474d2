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
3. per account:  reserved = the sum of its open holds

*Burn order*: smallest ``priority``, then earliest expiry, then oldest. A hold remembers its parts, (grant, amount), in
that order: a confirm charges them from the front, and what is left returns to the grant it came from. If that grant
has expired meanwhile, it returns as expired: promotional money must not come back to life by being held.

*Time* is three things that happen by themselves: a hold times out, a pending grant becomes effective, a grant
expires. Each is written when somebody next writes to the account (or the sweeper does), in the order in which they
were due and dated when they were due; so the books read the same whoever wrote them and however late. At an
instant's tie holds go first. An instant belongs to the future: at exactly ``expires_at_us`` a thing has expired.
``next_due_at_us`` of the account is never later than the first such moment, and may be earlier: it says when to look,
not what is there.

*Exactly once*: a key names one operation in a tenant. Found again with the same fingerprint (a hash of the parameters
as the caller gave them; ``reason`` is a remark, not a parameter) the answer is the row as it is now, ``created=False``;
True if the row bears the operation's own id, for then it is the same call, repeated by us after a lost answer. With
another fingerprint it is KeyConflict. A hold is resolved once, its phase says how. Refusals leave no trace. A cancel
that comes before its reserve leaves a tombstone, which the reserve then finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple, TypeVar

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
)
from .model import Balance, EntryKind, Grant, Hold, Phase

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


class Confirm(msgspec.Struct, frozen=True, kw_only=True):
    """Charge ``amount`` of the hold (None: all of it) and return the rest."""

    account: AccountKey
    key: str
    amount: int | None
    reason: str


class Cancel(msgspec.Struct, frozen=True, kw_only=True):
    """Return the whole hold; ``id`` is the tombstone's, if there is none."""

    id: str
    account: AccountKey
    key: str
    reason: str


class CatchUp(msgspec.Struct, frozen=True, kw_only=True):
    """Write down what time has done; nothing else."""

    account: AccountKey


Op = GrantUnits | Reserve | Confirm | Cancel | CatchUp
Outcome = Grant | Hold | Balance | QuotaError


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


class Share(NamedTuple):
    """What a hold took from one grant, and how much of that was charged."""

    grant_id: str
    amount: int
    used: int


class HoldRow(msgspec.Struct):
    id: str
    account_id: int
    tenant: str
    op_key: str
    fingerprint: str
    amount: int
    captured: int
    phase: Phase
    expires_at_us: int
    parts: list[Share]
    created_at_us: int
    resolved_at_us: int


class EntryRow(msgspec.Struct, frozen=True):
    """``op_id`` is the grant or hold; (op_id, step) is unique: wrong code cannot settle twice."""

    account_id: int
    seq: int
    op_id: str
    step: str
    kind: EntryKind
    op_key: str
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
    that is *not* here. Besides: every grant and hold whose (tenant, key) an operation names.
    """

    accounts: dict[AccountKey, AccountRow] = {}
    grants: list[GrantRow] = []
    holds: list[HoldRow] = []
    next_hold_us: dict[int, int] = {}


class Plan(msgspec.Struct):
    """``outcomes`` in the order of the operations; then the rows to insert and, in their final state, to update."""

    outcomes: list[Outcome]
    new_grants: list[GrantRow]
    new_holds: list[HoldRow]
    accounts: list[AccountRow]
    grants: list[GrantRow]
    holds: list[HoldRow]
    entries: list[EntryRow]


def plan(ops: Sequence[Op], state: State, now_us: int) -> Plan:
    """Decide ``ops`` in their order. An operation that is refused leaves the books as the others made them."""
    book = _Book(state, now_us)
    outcomes = [book.decide(op) for op in ops]
    return book.close(outcomes)


def fingerprint(op: GrantUnits | Reserve) -> str:
    """32 hex digits over the parameters as the caller gave them."""
    if isinstance(op, GrantUnits):
        facts: list[object] = [op.account, op.amount, op.source, op.priority, op.effective_at_us, op.expires_at_us]
    else:
        facts = [op.account, op.amount, op.ttl_given_us]
    return blake2b(msgspec.json.encode(facts), digest_size=16).hexdigest()


class _Book:
    """A working copy of the state; every change of a balance goes through :meth:`_post`."""

    def __init__(self, state: State, now_us: int) -> None:
        self.now_us = now_us
        self.accounts = {key: msgspec.structs.replace(row) for key, row in state.accounts.items()}
        self.grants = {row.id: msgspec.structs.replace(row) for row in state.grants}
        self.holds = {row.id: msgspec.structs.replace(row) for row in state.holds}
        self.grant_of_key = {(row.tenant, row.op_key): row for row in self.grants.values()}
        self.hold_of_key = {(row.tenant, row.op_key): row for row in self.holds.values()}
        self.next_hold_us = state.next_hold_us
        self.known = {*self.grants, *self.holds}
        self.touched: dict[str | int, AccountRow | GrantRow | HoldRow] = {}
        self.entries: list[EntryRow] = []

    def decide(self, op: Op) -> Outcome:
        account = self.accounts.get(op.account)
        if account is None:
            return self._without_account(op)
        if account.next_due_at_us <= self.now_us:
            self._catch_up(account)
        try:
            match op:
                case GrantUnits():
                    return self._grant(account, op)
                case Reserve():
                    return self._reserve(account, op)
                case Confirm():
                    return self._confirm(account, op)
                case Cancel():
                    return self._cancel(account, op)
                case CatchUp():
                    return balance_of(account)
        except QuotaError as refusal:
            return refusal

    def close(self, outcomes: list[Outcome]) -> Plan:
        rows = list(self.touched.values())
        grants = [row for row in rows if isinstance(row, GrantRow)]
        holds = [row for row in rows if isinstance(row, HoldRow)]
        return Plan(
            outcomes,
            new_grants=[row for row in grants if row.id not in self.known],
            new_holds=[row for row in holds if row.id not in self.known],
            accounts=[row for row in rows if isinstance(row, AccountRow)],
            grants=[row for row in grants if row.id in self.known],
            holds=[row for row in holds if row.id in self.known],
            entries=self.entries,
        )

    def _without_account(self, op: Op) -> Outcome:
        # Only a grant and a cancel open an account; the store has done so before it asks us.
        match op:
            case Reserve():
                return InsufficientQuota(unit=op.account[2], amount=op.amount, available=0)
            case Confirm():
                return HoldUnknown(key=op.key)
            case CatchUp():
                return Balance()
        raise KeyError(op.account)

    # The five operations

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
        known = self.hold_of_key.get((account.tenant, op.key))
        if known is not None:
            if known.phase == "tombstone" and known.account_id == account.id:
                raise HoldCancelled(key=op.key, hold_id=known.id)
            if known.fingerprint != fingerprint(op):
                raise KeyConflict(key=op.key)
            return _hold_result(account, known, created=known.id == op.id)
        if op.amount > account.available:
            raise InsufficientQuota(unit=account.unit, amount=op.amount, available=account.available)
        row = self._new_hold(account, op, "open", self._take(account, op.amount))
        _look_at(account, row.expires_at_us)
        self._post(account, row, "held", row.amount, op.reason, available=-row.amount, reserved=row.amount)
        return _hold_result(account, row, created=True)

    def _confirm(self, account: AccountRow, op: Confirm) -> Hold:
        row = self._hold_of(account, op.key)
        if row is None:
            raise HoldUnknown(key=op.key)
        if row.phase in ("cancelled", "tombstone"):
            raise HoldCancelled(key=op.key, hold_id=row.id)
        if row.phase == "expired":
            raise HoldExpired(key=op.key, hold_id=row.id, expired_at_us=row.expires_at_us)
        charge = row.amount if op.amount is None else op.amount
        if row.phase == "confirmed":
            if charge != row.captured:
                raise KeyConflict(key=op.key)
            return _hold_result(account, row, created=False)
        if charge > row.amount:
            raise ChargeExceedsHold(key=op.key, amount=charge, held=row.amount)
        self._resolve(account, row, "confirmed", charge, "confirmed", self.now_us, op.reason)
        return _hold_result(account, row, created=True)

    def _cancel(self, account: AccountRow, op: Cancel) -> Hold:
        row = self._hold_of(account, op.key)
        if row is None:
            return _hold_result(account, self._new_hold(account, op, "tombstone", []), created=True)
        if row.phase == "confirmed":
            raise HoldConfirmed(key=op.key, hold_id=row.id, captured=row.captured)
        if row.phase == "open":
            self._resolve(account, row, "cancelled", 0, "cancelled", self.now_us, op.reason)
            return _hold_result(account, row, created=True)
        # Cancelled before, or timed out: what the caller wants has already happened.
        return _hold_result(account, row, created=row.id == op.id)

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
                self._resolve(account, self.holds[row_id], "expired", 0, "hold_expired", at_us, "")
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
        row = self.hold_of_key.get((account.tenant, key))
        if row is not None and row.account_id != account.id:
            raise KeyConflict(key=key)
        return row

    def _new_hold(self, account: AccountRow, op: Reserve | Cancel, phase: Phase, parts: list[Share]) -> HoldRow:
        reserving = isinstance(op, Reserve)
        row = HoldRow(
            id=op.id,
            account_id=account.id,
            tenant=account.tenant,
            op_key=op.key,
            fingerprint=fingerprint(op) if isinstance(op, Reserve) else "",
            amount=sum(part.amount for part in parts),
            captured=0,
            phase=phase,
            expires_at_us=self.now_us + op.ttl_us if isinstance(op, Reserve) else self.now_us,
            parts=parts,
            created_at_us=self.now_us,
            resolved_at_us=NEVER_US if reserving else self.now_us,
        )
        self.holds[row.id] = self.hold_of_key[row.tenant, row.op_key] = self._touch(row)
        return row

    def _take(self, account: AccountRow, amount: int) -> list[Share]:
        live = [row for row in self.grants.values() if row.account_id == account.id and row.phase == "live"]
        if sum(row.remaining for row in live) < amount:
            raise BooksDisagree(account_id=account.id)
        parts = []
        for row in sorted(live, key=lambda row: (row.priority, row.expires_at_us, row.created_at_us, row.id)):
            taken = min(row.remaining, amount)
            if taken:
                row.remaining -= taken
                row.held += taken
                amount -= taken
                parts.append(Share(self._touch(row).id, taken, 0))
        return parts

    def _resolve(
        self, account: AccountRow, row: HoldRow, phase: Phase, charge: int, kind: EntryKind, at_us: int, reason: str
    ) -> None:
        left, returned, lost, parts = charge, 0, 0, []
        for part in row.parts:
            used = min(part.amount, left)
            rest = part.amount - used
            left -= used
            grant = self._touch(self.grants[part.grant_id])
            grant.held -= part.amount
            grant.spent += used
            if grant.phase == "lapsed" or grant.expires_at_us <= at_us:
                grant.expired += rest
                lost += rest
            elif rest:
                grant.remaining += rest
                returned += rest
                _look_at(account, grant.expires_at_us)
            _close_if_done(grant)
            parts.append(part._replace(used=used))
        row.phase, row.captured, row.parts, row.resolved_at_us = phase, charge, parts, at_us
        self._touch(row)
        self._post(
            account,
            row,
            kind,
            charge if phase == "confirmed" else row.amount,
            reason,
            at_us=at_us,
            available=returned,
            reserved=-row.amount,
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
        about: GrantRow | HoldRow,
        kind: EntryKind,
        amount: int,
        reason: str,
        *,
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
            step="resolve" if kind in _RESOLVING else kind,
            kind=kind,
            op_key=about.op_key,
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

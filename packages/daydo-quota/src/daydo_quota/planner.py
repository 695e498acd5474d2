"""Every decision of the ledger, and nothing else: no I/O, no clock, no ids of its own.

Theory
------
``plan(ops, state, now_us)`` takes what was asked, what the database holds (read under the account's lock) and the
time (read after that lock was had), and says what each caller is told and which rows that leaves. The store makes it
so in one transaction. The same inputs give the same plan on every engine, so the books do not depend on the engine.

*Units* are in one of five places: ``pending`` (granted, not yet effective), ``available``, ``reserved`` (in an open
hold), ``spent``, ``expired``. They only ever move between these, and three sums hold after every operation:

1. per grant:    granted = remaining + held + spent + expired        (``remaining`` is pending or available)
2. per account:  each balance = the sum over its grants, ``spent`` besides the debt
3. per account:  reserved = the sum over its open holds of what they were not yet charged

*Burn order*: smallest ``priority``, then earliest expiry, then oldest. A hold remembers its parts, (grant, amount), in
that order: captures and the confirm charge them from the front, and what is left returns to the grant it came from. If
that grant has expired meanwhile, it returns as expired: promotional money must not come back to life by being held, nor
by being refunded. A refund goes the other way, from the back, so that what stays charged is what a smaller charge would
have taken. What a confirm charges beyond its hold (overage, or a hold that had timed out) is taken from the balance in
burn order and remembered as parts of amount 0. A charge without a hold is a hold of amount 0 that was charged beyond
itself.

*Debt* is what was charged (``overage="debt"``) and no grant has paid. The hold remembers it as its last part, of no
grant. Units that become available, wherever from, pay debts first, those owed longest before all; the part is then the
paying grant's, so that a refund knows where to return it. What was never paid is refunded first. So nothing is ever
available beside a debt.

*Time* is four things that happen by themselves: a hold times out, a pending grant becomes effective, a grant's end is
near and notice is given of it, a grant expires. Each is written when somebody next writes to the account (or the
sweeper does), in the order in which they were due and dated when they were due; so the books read the same whoever
wrote them and however late. At an instant's tie holds go first. An instant belongs to the future: at exactly
``expires_at_us`` a thing has expired. ``next_due_at_us`` of the account is never later than the first such moment, and
may be earlier: it says when to look, not what is there.

*Allowances* grant the units of a period when an operation first finds the account in that period, dated then, and these
expire with it; a period in which nobody asks leaves nothing behind. The sweeper does not ask. ``renews_at_us`` of the
account says when an allowance may next have units to grant. A look that writes nothing plans the same and forgets it.

*Exactly once*: a key names one operation in a tenant. Found again with the same fingerprint (a hash of the parameters
as the caller gave them; ``reason`` is a remark, not a parameter) the answer is the row as it is now, ``created=False``;
True if the row bears the operation's own id, for then it is the same call, repeated by us after a lost answer. With
another fingerprint it is KeyConflict. A hold is resolved once, its phase says how; only a confirm that may be late
comes after a time-out, and once. Captures and refunds are rows of their own (amendments), for each has a key. The units
of a period are a grant whose key says which. Refusals leave no trace. A cancel that comes before its reserve leaves a
tombstone, which the reserve then finds.

*Several accounts* under one key are several holds, each settled by (account, key). The first in the order of accounts
has ``leg`` 0 and thereby claims the key in the tenant, as any single hold does; the others' ``leg`` is their account's
id. None of them is decided before all can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .book import Book, insufficient, look_at, room_in
from .due import catch_up, renew, renewable
from .errors import (
    AllowanceLimit,
    AllowanceUnknown,
    BadPeriod,
    BalanceLimit,
    ChargeExceedsHold,
    HoldCancelled,
    HoldConfirmed,
    HoldExpired,
    HoldUnknown,
    KeyConflict,
    QuotaError,
    RefundExceedsCharge,
)
from .model import Allowance, Balance, Grant, Hold
from .ops import (
    Allow,
    Cancel,
    Capture,
    CatchUp,
    Charge,
    Confirm,
    Disallow,
    Extend,
    GrantUnits,
    Op,
    Refund,
    Reserve,
    ReserveAll,
    SingleOp,
    accounts_of,
    fingerprint,
)
from .rows import (
    MAX_UNITS,
    NEVER_US,
    AccountKey,
    AccountRow,
    AllowanceRow,
    AmendmentKind,
    AmendmentRow,
    GrantRow,
    HoldPhase,
    HoldRow,
    Notice,
    Outcome,
    Plan,
    Rules,
    State,
)

MAX_ALLOWANCES = 16
"""Of an account at a time: all of them are read when one renews."""


def plan(ops: Sequence[Op], state: State, now_us: int, rules: Rules = Rules()) -> Plan:  # noqa: B008 - frozen
    """Decide ``ops`` in their order. An operation that is refused leaves the books as the others made them."""
    planner = _Planner(Book(state, now_us, rules))
    outcomes = [planner.decide(op) for op in ops]
    return planner.book.close(outcomes)


class _Planner:
    """What each operation means for a book; it changes nothing before it is sure."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.now_us = book.now_us

    def decide(self, op: Op) -> Outcome:
        try:
            return self._decide_in_all(op) if type(op) is ReserveAll else self._decide_in_one(op)
        except QuotaError as refusal:
            return refusal

    def _decide_in_all(self, op: ReserveAll) -> list[Hold]:
        accounts = {key: self.book.accounts[key] for key in accounts_of(op) if key in self.book.accounts}
        for account in accounts.values():
            self._bring_up_to_date(account)
        before = {key: account.available for key, account in accounts.items()}
        holds = self._reserve_all(op, accounts)
        for key, account in accounts.items():
            self._notice_if_low(account, before[key], account.available)
        return holds

    def _decide_in_one(self, op: SingleOp) -> Outcome:
        account = self.book.accounts.get(op.account)
        if account is None:
            return self._without_account(op)
        self._bring_up_to_date(account, asked=type(op) is not CatchUp or op.asked)
        before = account.available
        outcome = _DECISIONS[type(op)](self, account, op)
        self._notice_if_low(account, before, account.available)
        return outcome

    def _bring_up_to_date(self, account: AccountRow, *, asked: bool = True) -> None:
        self.book.require_sound_debt(account)
        due, renews = account.next_due_at_us <= self.now_us, account.renews_at_us <= self.now_us
        if not (due or renews):
            return
        before = account.available
        if due:
            catch_up(self.book, account)
        if renews and asked:
            renew(self.book, account)
        # As a look would show it: a balance is not low because a period's units have gone, if the next are there.
        unasked = renewable(self.book, account) if renews and not asked else 0
        self._notice_if_low(account, before, account.available + unasked)

    def _notice_if_low(self, account: AccountRow, before: int, after: int) -> None:
        low = self.book.rules.low_balance.get(account.unit, 0)
        if after < low <= before:
            self.book.notices.append(Notice(account.id, "low", {"available": after, "low_balance": low}))

    def _without_account(self, op: SingleOp) -> Outcome:
        # Only these open an account: a grant, an allowance, a cancel, a charge that may owe. The store has done so.
        match op:
            case Reserve() | Charge():
                return insufficient(op.account, op.amount, 0)
            case Confirm() | Extend():
                return HoldUnknown(key=op.key)
            case Capture() | Refund():
                return HoldUnknown(key=op.hold_key)
            case Disallow():
                return AllowanceUnknown(key=op.key)
            case CatchUp():
                return Balance()
        raise KeyError(op.account)

    def _catch_up(self, account: AccountRow, op: CatchUp) -> Balance:
        return balance_of(account)

    # Grants and allowances

    def _grant(self, account: AccountRow, op: GrantUnits) -> Grant:
        known = self.book.grant_of_key.get((account.tenant, op.key))
        if known is not None:
            if known.fingerprint != fingerprint(op):
                raise KeyConflict(key=op.key)
            return _grant_result(account, known, created=known.id == op.id)
        effective_at_us = self.now_us if op.effective_at_us is None else op.effective_at_us
        expires_at_us = NEVER_US if op.expires_at_us is None else op.expires_at_us
        if expires_at_us <= max(self.now_us, effective_at_us):
            raise BadPeriod(field="expires_at_us")
        if op.amount > room_in(account):
            raise BalanceLimit(most=MAX_UNITS)
        row = self.book.new_grant(account, op, effective_at_us, expires_at_us)
        self.book.add_grant(account, row, op.reason)
        self.book.repay(account, self.now_us)
        return _grant_result(account, row, created=True)

    def _allow(self, account: AccountRow, op: Allow) -> Allowance:
        known = self._allowance_of(account, op.key)
        if known is not None:
            if known.fingerprint != fingerprint(op):
                raise KeyConflict(key=op.key)
            return _allowance_result(account, known, created=known.id == op.id)
        starts_at_us = self.now_us if op.starts_at_us is None else op.starts_at_us
        until_us = NEVER_US if op.until_us is None else op.until_us
        if until_us <= max(self.now_us, starts_at_us):
            raise BadPeriod(field="until_us")
        if len(self.book.allowances_of(account)) >= MAX_ALLOWANCES:
            raise AllowanceLimit(most=MAX_ALLOWANCES)
        row = AllowanceRow(
            id=op.id,
            account_id=account.id,
            tenant=account.tenant,
            op_key=op.key,
            fingerprint=fingerprint(op),
            amount=op.amount,
            every=op.every,
            zone=op.zone,
            anchor=op.anchor,
            source=op.source,
            priority=op.priority,
            starts_at_us=starts_at_us,
            until_us=until_us,
            next_at_us=starts_at_us,
            period="",
            reason=op.reason,
            created_at_us=self.now_us,
        )
        self.book.allowances[row.id] = self.book.touch(row)
        renew(self.book, account)
        return _allowance_result(account, row, created=True)

    def _disallow(self, account: AccountRow, op: Disallow) -> Allowance:
        row = self._allowance_of(account, op.key)
        if row is None:
            raise AllowanceUnknown(key=op.key)
        runs = self.now_us < row.until_us
        if runs:
            self.book.touch(row).until_us = self.now_us
            row.next_at_us = NEVER_US
            renew(self.book, account)
        return _allowance_result(account, row, created=runs)

    # Holds and charges

    def _reserve(self, account: AccountRow, op: Reserve) -> Hold:
        known = self._made_before(account, op)
        if known is not None:
            return _hold_result(account, known, created=known.id == op.id)
        self.book.require(account, op.amount)
        return self._hold(account, op.id, op.amount, op)

    def _reserve_all(self, op: ReserveAll, accounts: dict[AccountKey, AccountRow]) -> list[Hold]:
        rows = self.book.holds_of_key.get((op.legs[0].account[0], op.key), ())
        if rows:
            return self._reserved_before(op, accounts, rows)
        for leg in op.legs:
            if leg.account not in accounts:
                raise insufficient(leg.account, leg.amount, 0)
            self.book.require(accounts[leg.account], leg.amount)
        first = min(accounts)
        leg_of = {key: 0 if key == first else account.id for key, account in accounts.items()}
        return [self._hold(accounts[key], row_id, amount, op, leg=leg_of[key]) for row_id, key, amount in op.legs]

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

    def _hold(self, account: AccountRow, row_id: str, amount: int, op: Reserve | ReserveAll, *, leg: int = 0) -> Hold:
        row = self._new_hold(account, row_id, op.key, "open", fingerprint=fingerprint(op), leg=leg)
        row.amount, row.expires_at_us = amount, self.now_us + op.ttl_us
        row.parts = self.book.take(account, amount)
        look_at(account, row.expires_at_us)
        self.book.post(account, row, "held", amount, op.reason, available=-amount, reserved=amount)
        return _hold_result(account, row, created=True)

    def _charge(self, account: AccountRow, op: Charge) -> Hold:
        known = self._made_before(account, op)
        if known is not None:
            return _hold_result(account, known, created=known.id == op.id)
        beyond = self.book.spend(account, op.amount, owing=op.overage == "debt")
        row = self._new_hold(account, op.id, op.key, "confirmed", fingerprint=fingerprint(op))
        owed = self.book.settle(row, op.amount, beyond)
        self.book.post(
            account,
            row,
            "charged",
            op.amount,
            op.reason,
            available=owed - op.amount,
            spent=op.amount,
            debt=owed,
        )
        return _hold_result(account, row, created=True)

    def _capture(self, account: AccountRow, op: Capture) -> Hold:
        known = self._amended(account, op, "capture")
        if known is not None:
            return _hold_result(account, self.book.holds[known.hold_id], created=known.id == op.id)
        row = self._open_hold_of(account, op.hold_key)
        left = row.amount - row.captured
        if op.amount > left:
            raise ChargeExceedsHold(key=op.hold_key, amount=op.amount, held=left)
        self.book.require_grants(account, row)
        self.book.use(row, op.amount)
        amendment = self._amend(account, row, op, "capture")
        self.book.post(
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
        if row.confirmed:
            if charge != row.final:
                raise KeyConflict(key=op.key)
            return _hold_result(account, row, created=False)
        if charge > left and op.overage not in ("available", "debt"):
            raise ChargeExceedsHold(key=op.key, amount=charge, held=left)
        if row.phase == "open":
            self._confirm_in_time(account, row, op, charge, min(charge, left))
        else:
            self._confirm_late(account, row, op, charge)
        return _hold_result(account, row, created=True)

    def _confirm_in_time(self, account: AccountRow, row: HoldRow, op: Confirm, charge: int, from_hold: int) -> None:
        self.book.require_grants(account, row)
        extra, reserved = charge - from_hold, row.amount - row.captured
        beyond = self.book.spend(account, extra, owing=op.overage == "debt")
        self.book.use(row, from_hold)
        returned, lost = self.book.give_back(account, row, self.now_us)
        owed = self.book.settle(row, charge, beyond)
        self.book.post(
            account,
            row,
            "confirmed",
            charge,
            op.reason,
            available=returned + owed - extra,
            reserved=-reserved,
            spent=charge,
            expired=lost,
            debt=owed,
        )
        self.book.repay(account, self.now_us)

    def _confirm_late(self, account: AccountRow, row: HoldRow, op: Confirm, charge: int) -> None:
        # Its units have returned: all of the charge is beyond it. A debt would be one that nobody agreed to.
        self.book.settle(row, charge, self.book.spend(account, charge))
        self.book.post(account, row, "confirmed", charge, op.reason, step="late", available=-charge, spent=charge)

    def _cancel(self, account: AccountRow, op: Cancel) -> Hold:
        row = self._hold_of(account, op.key)
        if row is None:
            others = self.book.holds_of_key.get((account.tenant, op.key), ())
            tombstone = self._new_hold(account, op.id, op.key, "tombstone", leg=account.id if others else 0)
            return _hold_result(account, tombstone, created=True)
        if row.confirmed:
            raise _over(row)
        if row.phase == "open":
            self.book.require_grants(account, row)
            self.book.resolve(account, row, "cancelled", "cancelled", self.now_us, op.reason)
            self.book.repay(account, self.now_us)
            return _hold_result(account, row, created=True)
        # Cancelled before, or timed out: what the caller wants has already happened.
        return _hold_result(account, row, created=row.id == op.id)

    def _extend(self, account: AccountRow, op: Extend) -> Hold:
        row = self._open_hold_of(account, op.key)
        until_us = self.now_us + op.ttl_us
        longer = until_us > row.expires_at_us
        if longer:
            # The account still looks at the old time: it may look too early, never too late.
            self.book.touch(row).expires_at_us = until_us
        return _hold_result(account, row, created=longer)

    def _refund(self, account: AccountRow, op: Refund) -> Hold:
        known = self._amended(account, op, "refund")
        if known is not None:
            return _hold_result(account, self.book.holds[known.hold_id], created=known.id == op.id)
        row = self._hold_of(account, op.hold_key)
        if row is None:
            raise HoldUnknown(key=op.hold_key)
        charged = row.captured - row.refunded
        if op.amount > charged:
            raise RefundExceedsCharge(key=op.hold_key, amount=op.amount, charged=charged)
        self.book.require_grants(account, row, charged=True)
        returned, lost, forgiven = self.book.unuse(account, row, op.amount)
        amendment = self._amend(account, row, op, "refund")
        self.book.post(
            account,
            amendment,
            "refunded",
            op.amount,
            op.reason,
            hold_key=row.op_key,
            available=returned,
            spent=-op.amount,
            expired=lost,
            debt=-forgiven,
        )
        self.book.repay(account, self.now_us)
        return _hold_result(account, row, created=True)

    # What a key names

    def _allowance_of(self, account: AccountRow, key: str) -> AllowanceRow | None:
        for row in self.book.allowances.values():
            if (row.tenant, row.op_key) == (account.tenant, key):
                if row.account_id != account.id:
                    raise KeyConflict(key=key)
                return row
        return None

    def _made_before(self, account: AccountRow, op: Reserve | Charge) -> HoldRow | None:
        for row in self.book.holds_of_key.get((account.tenant, op.key), ()):
            if row.phase == "tombstone" and row.account_id == account.id:
                raise HoldCancelled(key=op.key, hold_id=row.id)
            if row.fingerprint != fingerprint(op):
                raise KeyConflict(key=op.key)
            return row
        return None

    def _hold_of(self, account: AccountRow, key: str) -> HoldRow | None:
        rows = self.book.holds_of_key.get((account.tenant, key), ())
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

    def _new_hold(
        self, account: AccountRow, row_id: str, key: str, phase: HoldPhase, *, fingerprint: str = "", leg: int = 0
    ) -> HoldRow:
        """One that holds nothing yet."""
        return self.book.add_hold(
            HoldRow(
                id=row_id,
                account_id=account.id,
                tenant=account.tenant,
                op_key=key,
                leg=leg,
                fingerprint=fingerprint,
                amount=0,
                captured=0,
                final=0,
                refunded=0,
                phase=phase,
                expires_at_us=self.now_us,
                parts=[],
                created_at_us=self.now_us,
                resolved_at_us=NEVER_US if phase == "open" else self.now_us,
            )
        )

    def _amended(self, account: AccountRow, op: Capture | Refund, kind: AmendmentKind) -> AmendmentRow | None:
        known = self.book.amendments.get((account.tenant, kind, op.key))
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
        self.book.amendments[account.tenant, kind, op.key] = amendment
        self.book.new_amendments.append(amendment)
        return amendment


_DECISIONS: dict[type[SingleOp], Callable[[_Planner, AccountRow, Any], Outcome]] = {
    GrantUnits: _Planner._grant,
    Allow: _Planner._allow,
    Disallow: _Planner._disallow,
    Reserve: _Planner._reserve,
    Charge: _Planner._charge,
    Capture: _Planner._capture,
    Confirm: _Planner._confirm,
    Cancel: _Planner._cancel,
    Extend: _Planner._extend,
    Refund: _Planner._refund,
    CatchUp: _Planner._catch_up,
}


def _over(row: HoldRow) -> QuotaError:
    """Why nothing more can be done with a hold that is not open."""
    if row.confirmed:
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
        expires_at_us=_or_none(row.expires_at_us),
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
        owed=row.owed,
        phase="confirmed" if row.phase == "owing" else row.phase,
        expires_at_us=row.expires_at_us,
        created=created,
    )


def _allowance_result(account: AccountRow, row: AllowanceRow, *, created: bool) -> Allowance:
    return Allowance(
        id=row.id,
        tenant=account.tenant,
        subject=account.subject,
        unit=account.unit,
        key=row.op_key,
        amount=row.amount,
        every=row.every,
        zone=row.zone,
        anchor=row.anchor,
        source=row.source,
        priority=row.priority,
        starts_at_us=row.starts_at_us,
        until_us=_or_none(row.until_us),
        renews_at_us=_or_none(row.next_at_us),
        created=created,
    )


def _or_none(at_us: int) -> int | None:
    return at_us if at_us < NEVER_US else None


def balance_of(account: AccountRow) -> Balance:
    return Balance(
        available=account.available,
        reserved=account.reserved,
        spent=account.spent,
        expired=account.expired,
        pending=account.pending,
        debt=account.debt,
    )

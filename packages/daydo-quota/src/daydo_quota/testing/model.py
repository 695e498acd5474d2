"""What a ledger must answer, said so plainly that it is obviously right."""

from __future__ import annotations

from copy import deepcopy

import msgspec

from daydo_quota.errors import (
    AllowanceLimit,
    AllowanceUnknown,
    BadPeriod,
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
from daydo_quota.model import Balance
from daydo_quota.periods import Anchor, Every, Period, period_at
from daydo_quota.planner import MAX_ALLOWANCES

Owner = tuple[str, str, str]
"""(tenant, subject, unit)"""


class ModelGrant(msgspec.Struct):
    """``born``: when, and of those of one moment an allowance's before others."""

    amount: int
    priority: int
    from_us: int
    until_us: float
    facts: tuple[object, ...]
    born: tuple[int, int]


class ModelHold(msgspec.Struct):
    """``charged``: from which grants, in the order in which it was charged; a refund takes away from its end.

    ``owed`` was charged to none yet, since ``ended_us``.
    """

    account: Owner
    parts: list[tuple[ModelGrant, int]]
    until_us: int
    facts: tuple[object, ...]
    ended: str = ""
    charged: list[tuple[ModelGrant, int]] = []
    from_hold: int = 0
    beyond: int = 0
    final: int | None = None
    refunded: int = 0
    owed: int = 0
    ended_us: int = 0

    @property
    def amount(self) -> int:
        return sum(taken for _, taken in self.parts)

    @property
    def left(self) -> list[tuple[ModelGrant, int]]:
        """What it was not charged yet, in burn order."""
        return _skip(self.parts, self.from_hold)

    @property
    def captured(self) -> int:
        return self.from_hold + self.beyond


class ModelAllowance(msgspec.Struct):
    account: Owner
    amount: int
    every: Every
    zone: str
    anchor: Anchor
    priority: int
    from_us: int
    until_us: float
    facts: tuple[object, ...]
    periods: set[str] = set()

    def period(self, now_us: int) -> Period | None:
        if not self.from_us <= now_us < self.until_us:
            return None
        return period_at(now_us, self.every, self.zone, self.from_us if self.anchor == "start" else None)

    def renews_at_us(self, now_us: int) -> int | None:
        if now_us < self.from_us < self.until_us:
            return self.from_us
        period = self.period(now_us)
        return period.end_us if period is not None and period.end_us < self.until_us else None


class LedgerModel:
    """What a ledger must answer, without a database, without running totals and without expiry as an event.

    It only remembers what was granted, held and settled; every balance is computed from that, as of ``now_us``. Two
    things it must do when they happen: grant an allowance's period when somebody asks, and pay debts from whatever
    becomes available. The calls mirror :class:`daydo_quota.Ledger`'s and raise its errors.
    """

    def __init__(self, hold_ttl_us: int = 300_000_000) -> None:
        self.now_us = 0
        self.hold_ttl_us = hold_ttl_us
        self.grants: dict[tuple[str, str], tuple[Owner, ModelGrant]] = {}
        self.holds: dict[tuple[Owner, str], ModelHold] = {}
        self.amendments: dict[tuple[str, str, str], tuple[tuple[object, ...], ModelHold]] = {}
        self.allowances: dict[tuple[str, str], ModelAllowance] = {}

    def wait_until(self, now_us: int) -> None:
        """Time passes. What becomes available on the way pays debts there and then."""
        moments = {hold.until_us for hold in self.holds.values()} | {grant.from_us for _, grant in self.grants.values()}
        for at_us in sorted(at_us for at_us in moments if self.now_us < at_us <= now_us):
            self.now_us = at_us
            for account in {hold.account for hold in self.holds.values()}:
                self._pay_debts(account)
        self.now_us = now_us

    def _renew(self, account: Owner) -> None:
        for key, allowance in list(self.allowances.items()):
            period = allowance.period(self.now_us)
            if allowance.account == account and period is not None and period.name not in allowance.periods:
                allowance.periods.add(period.name)
                until_us = min(period.end_us, allowance.until_us)
                grant = ModelGrant(allowance.amount, allowance.priority, self.now_us, until_us, (), (self.now_us, 0))
                self.grants[f"{key} of {account}", period.name] = (account, grant)
        self._pay_debts(account)

    def _pay_debts(self, account: Owner) -> None:
        owing = [hold for hold in self.holds.values() if hold.account == account and hold.owed]
        for hold in sorted(owing, key=lambda hold: hold.ended_us):
            paid = self._burn(account, min(hold.owed, self._balance(account).available))
            hold.charged = [*hold.charged, *paid]
            hold.owed -= sum(units for _, units in paid)

    def grant(
        self,
        account: Owner,
        amount: int,
        key: str,
        priority: int = 50,
        effective_at_us: int | None = None,
        expires_at_us: int | None = None,
    ) -> tuple[int, bool]:
        """(remaining, created)"""
        self._renew(account)
        facts = (account, amount, priority, effective_at_us, expires_at_us)
        if (account[0], key) in self.grants:
            known = self.grants[account[0], key][1]
            if known.facts != facts:
                raise KeyConflict(key=key)
            return 0 if self.now_us >= known.until_us else self._remaining(known), False
        from_us = self.now_us if effective_at_us is None else effective_at_us
        until_us = float("inf") if expires_at_us is None else expires_at_us
        if until_us <= max(self.now_us, from_us):
            raise BadPeriod(field="expires_at_us")
        grant = ModelGrant(amount, priority, from_us, until_us, facts, (self.now_us, 1))
        self.grants[account[0], key] = (account, grant)
        self._pay_debts(account)
        return self._remaining(grant), True

    def allow(
        self,
        account: Owner,
        amount: int,
        key: str,
        every: Every,
        zone: str,
        anchor: Anchor = "calendar",
        priority: int = 50,
        starts_at_us: int | None = None,
        until_us: int | None = None,
    ) -> tuple[int, int | None, bool]:
        """(amount, renews_at_us, created)"""
        self._renew(account)
        facts = (account, amount, every, zone, anchor, priority, starts_at_us, until_us)
        known = self.allowances.get((account[0], key))
        if known is not None:
            if known.facts != facts:
                raise KeyConflict(key=key)
            return known.amount, known.renews_at_us(self.now_us), False
        from_us = self.now_us if starts_at_us is None else starts_at_us
        ends_us = float("inf") if until_us is None else until_us
        if ends_us <= max(self.now_us, from_us):
            raise BadPeriod(field="until_us")
        running = [allowance for allowance in self.allowances.values() if allowance.account == account]
        if sum(allowance.renews_at_us(self.now_us) is not None for allowance in running) >= MAX_ALLOWANCES:
            raise AllowanceLimit(most=MAX_ALLOWANCES)
        new = ModelAllowance(account, amount, every, zone, anchor, priority, from_us, ends_us, facts)
        self.allowances[account[0], key] = new
        self._renew(account)
        return amount, new.renews_at_us(self.now_us), True

    def disallow(self, account: Owner, key: str) -> tuple[int, int | None, bool]:
        """(amount, renews_at_us, created)"""
        self._renew(account)
        known = self.allowances.get((account[0], key))
        if known is None:
            raise AllowanceUnknown(key=key)
        if known.account != account:
            raise KeyConflict(key=key)
        runs = self.now_us < known.until_us
        known.until_us = min(known.until_us, self.now_us)
        return known.amount, None, runs

    def reserve(self, account: Owner, amount: int, key: str, ttl_us: int | None = None) -> Outcome:
        return self._reserve([(account, amount)], key, ttl_us, (account, amount, ttl_us))[0]

    def reserve_all(self, amounts: list[tuple[Owner, int]], key: str, ttl_us: int | None = None) -> list[Outcome]:
        return self._reserve(amounts, key, ttl_us, (tuple(sorted(amounts)), ttl_us))

    def _reserve(
        self,
        amounts: list[tuple[Owner, int]],
        key: str,
        ttl_us: int | None,
        facts: tuple[object, ...],
    ) -> list[Outcome]:
        for account, _ in amounts:
            self._renew(account)
        known = self._under(amounts[0][0][0], key)
        if any(hold.ended == "tombstone" and hold.account in dict(amounts) for hold in known):
            raise HoldCancelled(key=key, hold_id="")
        if any(hold.facts != facts for hold in known):
            raise KeyConflict(key=key)
        if known:
            return [self._outcome(self.holds[account, key], False) for account, _ in amounts]
        for account, amount in amounts:
            self._require(account, amount)
        until_us = self.now_us + (self.hold_ttl_us if ttl_us is None else ttl_us)
        for account, amount in amounts:
            self.holds[account, key] = ModelHold(account, self._burn(account, amount), until_us, facts)
        return [self._outcome(self.holds[account, key], True) for account, _ in amounts]

    def charge(self, account: Owner, amount: int, key: str, overage: str = "reject") -> Outcome:
        self._renew(account)
        facts = (account, amount, "charge")
        known = self._under(account[0], key)
        if any(hold.ended == "tombstone" and hold.account == account for hold in known):
            raise HoldCancelled(key=key, hold_id="")
        if any(hold.facts != facts for hold in known):
            raise KeyConflict(key=key)
        if known:
            return self._outcome(known[0], False)
        hold = ModelHold(account, [], self.now_us, facts)
        self._confirm(hold, amount, 0, overage)
        self.holds[account, key] = hold
        return self._outcome(hold, True)

    def capture(self, account: Owner, amount: int, key: str, hold_key: str) -> Outcome:
        self._renew(account)
        facts = (account, hold_key, amount)
        known = self._amended("capture", account[0], key, facts)
        if known is not None:
            return self._outcome(known, False)
        hold = self._open_hold(account, hold_key)
        if amount > hold.amount - hold.from_hold:
            raise ChargeExceedsHold(key=hold_key, amount=amount, held=hold.amount - hold.from_hold)
        self._charge(hold, amount)
        self.amendments["capture", account[0], key] = (facts, hold)
        return self._outcome(hold, True)

    def confirm(
        self,
        account: Owner,
        amount: int | None,
        key: str,
        overage: str = "reject",
        late: str = "reject",
    ) -> Outcome:
        self._renew(account)
        hold = self._hold(account, key)
        if hold is None:
            raise HoldUnknown(key=key)
        phase = self.phase(hold)
        if phase in ("cancelled", "tombstone") or (phase == "expired" and late == "reject"):
            raise self._over(hold, key)
        if hold.final is not None:
            before = hold.captured - hold.final
            if hold.final != (hold.amount - before if amount is None else amount):
                raise KeyConflict(key=key)
            return self._outcome(hold, False)
        left = hold.amount - hold.from_hold
        charge = left if amount is None else amount
        if charge > left and overage == "reject":
            raise ChargeExceedsHold(key=key, amount=charge, held=left)
        late_or_not = overage if phase == "open" else late
        self._confirm(hold, charge, min(charge, left) if phase == "open" else 0, late_or_not)
        self._pay_debts(account)
        return self._outcome(hold, True)

    def _confirm(self, hold: ModelHold, charge: int, from_hold: int, overage: str) -> None:
        beyond = charge - from_hold
        owed = max(0, beyond - self._balance(hold.account).available) if overage == "debt" else 0
        self._require(hold.account, beyond - owed)
        self._charge(hold, from_hold)
        hold.charged = [*hold.charged, *self._burn(hold.account, beyond - owed)]
        hold.ended, hold.ended_us = "confirmed", self.now_us
        hold.final, hold.beyond, hold.owed = charge, beyond, owed

    def cancel(self, account: Owner, key: str) -> Outcome:
        self._renew(account)
        hold = self._hold(account, key)
        if hold is None:
            hold = self.holds[account, key] = ModelHold(account, [], self.now_us, (), "tombstone")
            return self._outcome(hold, True)
        if hold.ended == "confirmed":
            raise self._over(hold, key)
        changes = self.phase(hold) == "open"
        if changes:
            hold.ended = "cancelled"
            self._pay_debts(account)
        return self._outcome(hold, changes)

    def extend(self, account: Owner, ttl_us: int, key: str) -> Outcome:
        self._renew(account)
        hold = self._open_hold(account, key)
        longer = self.now_us + ttl_us > hold.until_us
        hold.until_us = max(hold.until_us, self.now_us + ttl_us)
        return self._outcome(hold, longer)

    def refund(self, account: Owner, amount: int, key: str, hold_key: str) -> Outcome:
        self._renew(account)
        facts = (account, hold_key, amount)
        known = self._amended("refund", account[0], key, facts)
        if known is not None:
            return self._outcome(known, False)
        hold = self._hold(account, hold_key)
        if hold is None:
            raise HoldUnknown(key=hold_key)
        charged = hold.captured - hold.refunded
        if amount > charged:
            raise RefundExceedsCharge(key=hold_key, amount=amount, charged=charged)
        forgiven = min(amount, hold.owed)
        hold.owed -= forgiven
        hold.charged = _skip(hold.charged[::-1], amount - forgiven)[::-1]
        hold.refunded += amount
        self.amendments["refund", account[0], key] = (facts, hold)
        self._pay_debts(account)
        return self._outcome(hold, True)

    def phase(self, hold: ModelHold) -> str:
        return hold.ended or ("open" if self.now_us < hold.until_us else "expired")

    def balance(self, account: Owner) -> Balance:
        """What a look shows: as if somebody asked now, and it was forgotten again."""
        return deepcopy(self).ask(account) if self._renews(account) else self._balance(account)

    def ask(self, account: Owner) -> Balance:
        self._renew(account)
        return self._balance(account)

    def _renews(self, account: Owner) -> bool:
        mine = [allowance for allowance in self.allowances.values() if allowance.account == account]
        periods = [(allowance.period(self.now_us), allowance.periods) for allowance in mine]
        return any(period is not None and period.name not in known for period, known in periods)

    def _balance(self, account: Owner) -> Balance:
        sums = dict.fromkeys(("available", "reserved", "spent", "expired", "pending"), 0)
        for grant in self._grants_of(account):
            early, late = self.now_us < grant.from_us, self.now_us >= grant.until_us
            sums["pending" if early else "expired" if late else "available"] += self._remaining(grant)
            sums["reserved"] += self._held(grant)
            sums["spent"] += self._spent(grant)
        debt = sum(hold.owed for hold in self.holds.values() if hold.account == account)
        sums["spent"] += debt
        return Balance(**sums, debt=debt)

    def _remaining(self, grant: ModelGrant) -> int:
        return grant.amount - self._held(grant) - self._spent(grant)

    def _held(self, grant: ModelGrant) -> int:
        holds = [hold for hold in self.holds.values() if self.phase(hold) == "open"]
        return sum(taken for hold in holds for source, taken in hold.left if source is grant)

    def _spent(self, grant: ModelGrant) -> int:
        return sum(used for hold in self.holds.values() for source, used in hold.charged if source is grant)

    def _require(self, account: Owner, amount: int) -> None:
        available = self._balance(account).available
        if amount > available:
            raise InsufficientQuota(subject=account[1], unit=account[2], amount=amount, available=available)

    def _burn(self, account: Owner, amount: int) -> list[tuple[ModelGrant, int]]:
        usable = [grant for grant in self._grants_of(account) if grant.from_us <= self.now_us < grant.until_us]
        in_order = sorted(usable, key=lambda grant: (grant.priority, grant.until_us, grant.born))
        return _first([(grant, self._remaining(grant)) for grant in in_order], amount)

    def _charge(self, hold: ModelHold, amount: int) -> None:
        hold.charged = [*hold.charged, *_first(hold.left, amount)]
        hold.from_hold += amount

    def _grants_of(self, account: Owner) -> list[ModelGrant]:
        return [grant for owner, grant in self.grants.values() if owner == account]

    def _under(self, tenant: str, key: str) -> list[ModelHold]:
        return [hold for (account, its_key), hold in self.holds.items() if (account[0], its_key) == (tenant, key)]

    def _hold(self, account: Owner, key: str) -> ModelHold | None:
        hold = self.holds.get((account, key))
        if hold is None and any(other.ended != "tombstone" for other in self._under(account[0], key)):
            raise KeyConflict(key=key)
        return hold

    def _open_hold(self, account: Owner, key: str) -> ModelHold:
        hold = self._hold(account, key)
        if hold is None:
            raise HoldUnknown(key=key)
        if self.phase(hold) != "open":
            raise self._over(hold, key)
        return hold

    def _over(self, hold: ModelHold, key: str) -> QuotaError:
        match self.phase(hold):
            case "confirmed":
                return HoldConfirmed(key=key, hold_id="", captured=hold.captured)
            case "expired":
                return HoldExpired(key=key, hold_id="", expired_at_us=hold.until_us)
        return HoldCancelled(key=key, hold_id="")

    def _amended(self, kind: str, tenant: str, key: str, facts: tuple[object, ...]) -> ModelHold | None:
        known_facts, hold = self.amendments.get((kind, tenant, key), (facts, None))
        if known_facts != facts:
            raise KeyConflict(key=key)
        return hold

    def _outcome(self, hold: ModelHold, created: bool) -> Outcome:
        return self.phase(hold), hold.amount, hold.captured, hold.refunded, hold.owed, created


Outcome = tuple[str, int, int, int, int, bool]
"""(phase, amount, captured, refunded, owed, created)"""


def _first(parts: list[tuple[ModelGrant, int]], amount: int) -> list[tuple[ModelGrant, int]]:
    """The first ``amount`` units of ``parts``."""
    first = []
    for grant, units in parts:
        taken = min(units, amount)
        amount -= taken
        if taken:
            first.append((grant, taken))
    return first


def _skip(parts: list[tuple[ModelGrant, int]], amount: int) -> list[tuple[ModelGrant, int]]:
    """All but the first ``amount`` units of ``parts``."""
    rest = []
    for grant, units in parts:
        skipped = min(units, amount)
        amount -= skipped
        if units > skipped:
            rest.append((grant, units - skipped))
    return rest

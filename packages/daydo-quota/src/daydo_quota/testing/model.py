"""What a ledger must answer, said so plainly that it is obviously right."""

from __future__ import annotations

import msgspec

from daydo_quota.errors import (
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


class ModelGrant(msgspec.Struct):
    amount: int
    priority: int
    from_us: int
    until_us: float
    facts: tuple[object, ...]


class ModelHold(msgspec.Struct):
    """``charged``: from which grants, in the order in which it was charged; a refund takes away from its end."""

    account: tuple[str, str, str]
    parts: list[tuple[ModelGrant, int]]
    until_us: int
    facts: tuple[object, ...]
    ended: str = ""
    charged: list[tuple[ModelGrant, int]] = []
    from_hold: int = 0
    beyond: int = 0
    final: int | None = None
    refunded: int = 0

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


class LedgerModel:
    """What a ledger must answer, without a database, without running totals and without expiry as an event.

    It only remembers what was granted, held and settled; every balance is computed from that, as of ``now_us``. The
    calls mirror :class:`daydo_quota.Ledger`'s and raise its errors.
    """

    def __init__(self, hold_ttl_us: int = 300_000_000) -> None:
        self.now_us = 0
        self.hold_ttl_us = hold_ttl_us
        self.grants: dict[tuple[str, str], tuple[tuple[str, str, str], ModelGrant]] = {}
        self.holds: dict[tuple[tuple[str, str, str], str], ModelHold] = {}
        self.amendments: dict[tuple[str, str, str], tuple[tuple[object, ...], ModelHold]] = {}

    def grant(
        self,
        account: tuple[str, str, str],
        amount: int,
        key: str,
        priority: int = 50,
        effective_at_us: int | None = None,
        expires_at_us: int | None = None,
    ) -> tuple[int, bool]:
        """(remaining, created)"""
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
        self.grants[account[0], key] = (account, ModelGrant(amount, priority, from_us, until_us, facts))
        return amount, True

    def reserve(self, account: tuple[str, str, str], amount: int, key: str, ttl_us: int | None = None) -> Outcome:
        return self._reserve([(account, amount)], key, ttl_us, (account, amount, ttl_us))[0]

    def reserve_all(
        self, amounts: list[tuple[tuple[str, str, str], int]], key: str, ttl_us: int | None = None
    ) -> list[Outcome]:
        return self._reserve(amounts, key, ttl_us, (tuple(sorted(amounts)), ttl_us))

    def _reserve(
        self,
        amounts: list[tuple[tuple[str, str, str], int]],
        key: str,
        ttl_us: int | None,
        facts: tuple[object, ...],
    ) -> list[Outcome]:
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

    def capture(self, account: tuple[str, str, str], amount: int, key: str, hold_key: str) -> Outcome:
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
        account: tuple[str, str, str],
        amount: int | None,
        key: str,
        overage: str = "reject",
        late: str = "reject",
    ) -> Outcome:
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
        from_hold = min(charge, left) if phase == "open" else 0
        self._require(account, charge - from_hold)
        self._charge(hold, from_hold)
        beyond = self._burn(account, charge - from_hold)
        hold.charged = [*hold.charged, *beyond]
        hold.ended, hold.final, hold.beyond = "confirmed", charge, charge - from_hold
        return self._outcome(hold, True)

    def cancel(self, account: tuple[str, str, str], key: str) -> Outcome:
        hold = self._hold(account, key)
        if hold is None:
            hold = self.holds[account, key] = ModelHold(account, [], self.now_us, (), "tombstone")
            return self._outcome(hold, True)
        if hold.ended == "confirmed":
            raise self._over(hold, key)
        changes = self.phase(hold) == "open"
        if changes:
            hold.ended = "cancelled"
        return self._outcome(hold, changes)

    def extend(self, account: tuple[str, str, str], ttl_us: int, key: str) -> Outcome:
        hold = self._open_hold(account, key)
        longer = self.now_us + ttl_us > hold.until_us
        hold.until_us = max(hold.until_us, self.now_us + ttl_us)
        return self._outcome(hold, longer)

    def refund(self, account: tuple[str, str, str], amount: int, key: str, hold_key: str) -> Outcome:
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
        hold.charged = _skip(hold.charged[::-1], amount)[::-1]
        hold.refunded += amount
        self.amendments["refund", account[0], key] = (facts, hold)
        return self._outcome(hold, True)

    def phase(self, hold: ModelHold) -> str:
        return hold.ended or ("open" if self.now_us < hold.until_us else "expired")

    def balance(self, account: tuple[str, str, str]) -> Balance:
        sums = dict.fromkeys(("available", "reserved", "spent", "expired", "pending"), 0)
        for grant in self._grants_of(account):
            early, late = self.now_us < grant.from_us, self.now_us >= grant.until_us
            sums["pending" if early else "expired" if late else "available"] += self._remaining(grant)
            sums["reserved"] += self._held(grant)
            sums["spent"] += self._spent(grant)
        return Balance(**sums)

    def _remaining(self, grant: ModelGrant) -> int:
        return grant.amount - self._held(grant) - self._spent(grant)

    def _held(self, grant: ModelGrant) -> int:
        holds = [hold for hold in self.holds.values() if self.phase(hold) == "open"]
        return sum(taken for hold in holds for source, taken in hold.left if source is grant)

    def _spent(self, grant: ModelGrant) -> int:
        return sum(used for hold in self.holds.values() for source, used in hold.charged if source is grant)

    def _require(self, account: tuple[str, str, str], amount: int) -> None:
        available = self.balance(account).available
        if amount > available:
            raise InsufficientQuota(subject=account[1], unit=account[2], amount=amount, available=available)

    def _burn(self, account: tuple[str, str, str], amount: int) -> list[tuple[ModelGrant, int]]:
        usable = [grant for grant in self._grants_of(account) if grant.from_us <= self.now_us < grant.until_us]
        in_order = sorted(usable, key=lambda grant: (grant.priority, grant.until_us))
        return _first([(grant, self._remaining(grant)) for grant in in_order], amount)

    def _charge(self, hold: ModelHold, amount: int) -> None:
        hold.charged = [*hold.charged, *_first(hold.left, amount)]
        hold.from_hold += amount

    def _grants_of(self, account: tuple[str, str, str]) -> list[ModelGrant]:
        return [grant for owner, grant in self.grants.values() if owner == account]

    def _under(self, tenant: str, key: str) -> list[ModelHold]:
        return [hold for (account, its_key), hold in self.holds.items() if (account[0], its_key) == (tenant, key)]

    def _hold(self, account: tuple[str, str, str], key: str) -> ModelHold | None:
        hold = self.holds.get((account, key))
        if hold is None and any(other.ended != "tombstone" for other in self._under(account[0], key)):
            raise KeyConflict(key=key)
        return hold

    def _open_hold(self, account: tuple[str, str, str], key: str) -> ModelHold:
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
        return self.phase(hold), hold.amount, hold.captured, hold.refunded, created


Outcome = tuple[str, int, int, int, bool]
"""(phase, amount, captured, refunded, created)"""


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

"""What can be asked of the planner: one struct per call, its arguments checked and in microseconds.

``id`` is the new row's, if one is made: the planner makes no ids of its own.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import msgspec

from .model import Overage, Policy
from .periods import Anchor, Every
from .rows import AccountKey


class GrantUnits(msgspec.Struct, frozen=True, kw_only=True):
    """Add ``amount``. Times are microseconds, None as in Ledger.grant."""

    id: str
    account: AccountKey
    key: str
    amount: int
    source: str
    priority: int
    effective_at_us: int | None
    expires_at_us: int | None
    reason: str


class Allow(msgspec.Struct, frozen=True, kw_only=True):
    """Add ``amount`` in every period. Times are microseconds, None as in Ledger.allow."""

    id: str
    account: AccountKey
    key: str
    amount: int
    every: Every
    zone: str
    anchor: Anchor
    source: str
    priority: int
    starts_at_us: int | None
    until_us: int | None
    reason: str


class Disallow(msgspec.Struct, frozen=True, kw_only=True):
    """No further period of the allowance ``key``."""

    account: AccountKey
    key: str


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


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """Charge ``amount`` that was not held; the row is that of a hold, confirmed as it is made."""

    id: str
    account: AccountKey
    key: str
    amount: int
    overage: Overage
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
    overage: Overage = "reject"
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
    """Write down what time has done; nothing else.

    ``asked`` is False for the sweeper: a period in which nobody asks for an account's units grants none.
    """

    account: AccountKey
    asked: bool = True


SingleOp = GrantUnits | Allow | Disallow | Reserve | Charge | Capture | Confirm | Cancel | Extend | Refund | CatchUp
Op = SingleOp | ReserveAll


def accounts_of(op: Op) -> tuple[AccountKey, ...]:
    """The accounts that must be locked and read for ``op``."""
    return tuple(leg.account for leg in op.legs) if isinstance(op, ReserveAll) else (op.account,)


def settled_key(op: Op) -> str | None:
    """The key of the hold that ``op`` does something with, if it is about one that should be there."""
    match op:
        case Confirm() | Cancel() | Extend():
            return op.key
        case Capture() | Refund():
            return op.hold_key
    return None


def fingerprint(op: GrantUnits | Allow | Reserve | ReserveAll | Charge | Capture | Refund) -> str:
    """32 hex digits over the parameters as the caller gave them."""
    facts: list[object]
    match op:
        case GrantUnits():
            facts = [op.account, op.amount, op.source, op.priority, op.effective_at_us, op.expires_at_us]
        case Allow():
            calendar = [op.every, op.zone, op.anchor, op.starts_at_us, op.until_us]
            facts = [op.account, op.amount, op.source, op.priority, *calendar]
        case Reserve():
            facts = [op.account, op.amount, op.ttl_given_us]
        case ReserveAll():
            facts = [sorted((leg.account, leg.amount) for leg in op.legs), op.ttl_given_us]
        case Charge():
            facts = [op.account, op.amount, "charge"]
        case Capture() | Refund():
            facts = [op.account, op.hold_key, op.amount]
    return blake2b(msgspec.json.encode(facts), digest_size=16).hexdigest()

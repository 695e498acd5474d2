"""What can be asked of the planner: one struct per call, its arguments checked and in microseconds.

``id`` is the new row's, if one is made: the planner makes no ids of its own. Where there is a ``facts``, these are what
the key stands for: the parameters as the caller gave them.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from operator import attrgetter
from typing import NamedTuple, final

import msgspec

from .model import Overage, Policy
from .periods import Anchor, Every
from .rows import AccountKey


class GrantUnits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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

    def facts(self) -> tuple[object, ...]:
        times = self.effective_at_us, self.expires_at_us
        return self.account, self.amount, self.source, self.priority, *times


class Allow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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

    def facts(self) -> tuple[object, ...]:
        calendar = self.every, self.zone, self.anchor, self.starts_at_us, self.until_us
        return self.account, self.amount, self.source, self.priority, *calendar


class Disallow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """No further period of the allowance ``key``."""

    account: AccountKey
    key: str


class Reserve(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Set ``amount`` aside for ``ttl_us``; ``ttl_given_us`` is what the caller said (None: the configured one)."""

    id: str
    account: AccountKey
    key: str
    amount: int
    ttl_us: int
    ttl_given_us: int | None
    reason: str

    def facts(self) -> tuple[object, ...]:
        return self.account, self.amount, self.ttl_given_us


class Leg(NamedTuple):
    """One account's share in a :class:`ReserveAll`; ``id`` is the new hold's."""

    id: str
    account: AccountKey
    amount: int


@final
class ReserveAll(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """:class:`Reserve` of every leg, or of none. The accounts differ, the tenant does not."""

    legs: tuple[Leg, ...]
    key: str
    ttl_us: int
    ttl_given_us: int | None
    reason: str

    def facts(self) -> tuple[object, ...]:
        return sorted((leg.account, leg.amount) for leg in self.legs), self.ttl_given_us


class Charge(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Charge ``amount`` that was not held; the row is that of a hold, confirmed as it is made."""

    id: str
    account: AccountKey
    key: str
    amount: int
    overage: Overage
    reason: str

    def facts(self) -> tuple[object, ...]:
        return self.account, self.amount, "charge"


class Capture(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Charge ``amount`` of the open hold ``hold_key``, which stays open; ``id`` is the new amendment's."""

    id: str
    account: AccountKey
    key: str
    hold_key: str
    amount: int
    reason: str

    def facts(self) -> tuple[object, ...]:
        return self.account, self.hold_key, self.amount


class Confirm(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Charge ``amount`` of what the hold still has (None: all of it) and return the rest."""

    account: AccountKey
    key: str
    amount: int | None
    reason: str
    overage: Overage = "reject"
    late: Policy = "reject"


class Extend(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Let the hold last at least ``ttl_us`` from now."""

    account: AccountKey
    key: str
    ttl_us: int


class Refund(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Return ``amount`` of what the hold ``hold_key`` was charged; ``id`` is the new amendment's."""

    id: str
    account: AccountKey
    key: str
    hold_key: str
    amount: int
    reason: str

    def facts(self) -> tuple[object, ...]:
        return self.account, self.hold_key, self.amount


class Cancel(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Return what the hold was not charged; ``id`` is the tombstone's, if there is no hold."""

    id: str
    account: AccountKey
    key: str
    reason: str


class CatchUp(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Write down what time has done; nothing else.

    ``asked`` is False for the sweeper: a period in which nobody asks for an account's units grants none.
    """

    account: AccountKey
    asked: bool = True


SingleOp = GrantUnits | Allow | Disallow | Reserve | Charge | Capture | Confirm | Cancel | Extend | Refund | CatchUp
Op = SingleOp | ReserveAll


KeyedOp = GrantUnits | Allow | Reserve | ReserveAll | Charge | Capture | Refund

_SETTLED_KEY: dict[type[Op], Callable[[Op], str]] = {
    Confirm: attrgetter("key"),
    Cancel: attrgetter("key"),
    Extend: attrgetter("key"),
    Capture: attrgetter("hold_key"),
    Refund: attrgetter("hold_key"),
}
_ENCODE = msgspec.json.Encoder().encode


def accounts_of(op: Op) -> tuple[AccountKey, ...]:
    """The accounts that must be locked and read for ``op``."""
    return tuple(leg.account for leg in op.legs) if type(op) is ReserveAll else (op.account,)


def settled_key(op: Op) -> str | None:
    """The key of the hold that ``op`` does something with, if it is about one that should be there."""
    key_of = _SETTLED_KEY.get(type(op))
    return None if key_of is None else key_of(op)


def fingerprint(op: KeyedOp) -> str:
    """32 hex digits over ``facts``."""
    return blake2b(_ENCODE(op.facts()), digest_size=16).hexdigest()

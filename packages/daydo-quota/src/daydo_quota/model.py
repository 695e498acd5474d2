"""The words of the ledger: what goes in and what comes out, all frozen."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from .periods import Anchor, Every

Phase = Literal["open", "confirmed", "cancelled", "expired", "tombstone"]
"""A hold is ``open`` until exactly one of the others happens; a ``tombstone`` was cancelled before it was made."""

Policy = Literal["reject", "available"]
"""What a late confirm may take, whose hold has timed out: nothing, or what the account has available."""

Overage = Literal["reject", "available", "debt"]
"""What a confirm may take beyond its hold: nothing, what the account has available, or that and then on credit."""

EntryKind = Literal[
    "granted",
    "activated",
    "held",
    "captured",
    "charged",
    "confirmed",
    "cancelled",
    "refunded",
    "repaid",
    "hold_expired",
    "grant_expired",
    "rolled_up",
]


class AccountLike(Protocol):
    """Anything with these three read-only names; packages that only pass accounts through bring their own."""

    @property
    def tenant(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def unit(self) -> str: ...


class Account(msgspec.Struct, frozen=True):
    """Whose units of what: ``Account("acme", "u_7", "credits")``. It begins to exist with its first grant.

    ``tenant`` (may be empty) and ``subject`` have up to 128, ``unit`` up to 32 visible ASCII characters.
    """

    tenant: str
    subject: str
    unit: str


class Grant(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Units given, as they are now. ``created`` is False when the key was known and nothing changed."""

    id: str
    tenant: str
    subject: str
    unit: str
    key: str
    amount: int
    source: str
    priority: int
    effective_at_us: int
    expires_at_us: int | None
    remaining: int
    created: bool


class Hold(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Units set aside, as they are now: ``amount`` of them, ``captured`` charged so far, ``refunded`` of these.

    ``captured`` exceeds ``amount`` where a confirm was allowed to take more; a charge had set nothing aside, its
    ``amount`` is 0. ``owed`` is the part of the charge that no grant has paid yet. ``created`` says whether *this call*
    made the change: False for every repeat. After a COMMIT whose answer was lost the ledger repeats by itself, and then
    a confirm, cancel or extend that did change the hold may say False, too.
    """

    id: str
    tenant: str
    subject: str
    unit: str
    key: str
    amount: int
    captured: int
    refunded: int
    owed: int
    phase: Phase
    expires_at_us: int
    created: bool


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """``amount`` units in every period; they expire at its end. ``created`` says whether this call changed anything.

    ``renews_at_us`` is when the next period's may be granted, None once the allowance is over; ``until_us`` is its end.
    """

    id: str
    tenant: str
    subject: str
    unit: str
    key: str
    amount: int
    every: Every
    zone: str
    anchor: Anchor
    source: str
    priority: int
    starts_at_us: int
    until_us: int | None
    renews_at_us: int | None
    created: bool


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """``available`` can be held now, ``reserved`` is held, ``pending`` is granted for later; the rest is gone.

    ``debt`` is the part of ``spent`` that is not paid. What becomes available pays it first, so there is never both.
    """

    available: int = 0
    reserved: int = 0
    spent: int = 0
    expired: int = 0
    pending: int = 0
    debt: int = 0


class AccountBalance(Balance, frozen=True, kw_only=True):
    """The balance of one unit of a subject."""

    unit: str


class Disagreement(msgspec.Struct, frozen=True):
    """``row`` is what disagrees with the rest: an id or, for an entry, its ``seq`` in the account's history."""

    complaint: str
    account_id: int
    row: str


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit has looked at, and the first thing that is wrong, or None."""

    accounts: int
    entries: int
    disagreement: Disagreement | None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an account's history: what changed, and the balances after it.

    ``seq`` counts 1, 2, 3, … per account without a gap; where old lines were rolled up, the first is ``rolled_up``:
    it has the balances after the last of them, and its ``…_change`` are the sums of theirs. ``amount`` is what the line
    is about (granted, held, charged, given back, expired, paid), the five ``…_change`` say where it went. A capture and
    a refund have a key of their own and name their hold in ``hold_key``. ``at_us`` of an expiry is the instant it was
    due, however late it was written down.
    """

    unit: str
    seq: int
    kind: EntryKind
    key: str
    hold_key: str
    reason: str
    at_us: int
    amount: int
    available_change: int
    reserved_change: int
    spent_change: int
    expired_change: int
    debt_change: int
    available: int
    reserved: int
    spent: int
    expired: int
    debt: int

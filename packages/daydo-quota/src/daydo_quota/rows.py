"""The tables as the planner sees them, row by row and field by field; what it is given and what it gives back.

``schema/*/0001_ledger.sql`` has the same names in the same words. The store makes a statement of whatever fields a
struct here has. None of them can be part of a cycle, so the collector need not look at them (``gc=False``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec.structs import astuple

from .errors import QuotaError
from .model import Allowance, Balance, EntryKind, Grant, Hold, Phase
from .periods import Anchor, Every

MAX_UNITS = 2**53 - 1
"""The greatest whole number that every JSON reader keeps exactly; no account's lifetime total exceeds it."""

NEVER_US = 2**53 - 1
"""Year 2255: what stands in the tables for "does not happen", so that times compare and sort without NULL."""

DEBT = ""
"""Stands in a hold's parts where a grant's id stands otherwise: charged, and no grant has paid it yet."""

AccountKey = tuple[str, str, str]
"""(tenant, subject, unit)"""


class AccountRow(msgspec.Struct, gc=False):
    """``daydo_quota_account``. ``debt`` is the part of ``spent`` that no grant has paid.

    ``stamp`` is the random number of the transaction that last changed the account or anything that belongs to it:
    ``memory.py``. The store sets it.
    """

    id: int
    tenant: str
    subject: str
    unit: str
    pending: int = 0
    available: int = 0
    reserved: int = 0
    spent: int = 0
    expired: int = 0
    debt: int = 0
    seq: int = 0
    next_due_at_us: int = NEVER_US
    renews_at_us: int = NEVER_US
    stamp: int = 0


def owner_of(account: AccountRow) -> AccountKey:
    return account.tenant, account.subject, account.unit


class GrantRow(msgspec.Struct, gc=False):
    """``phase``: ``pending`` → ``live`` → ``lapsed`` (expired, but in part still held) → ``closed`` (nothing left).

    ``notice_at_us`` is when its owner is told that it will expire; NEVER_US once told, or if it is not wanted.
    """

    id: str
    account_id: int
    tenant: str
    op_key: str
    fingerprint: str
    source: str
    priority: int
    effective_at_us: int
    expires_at_us: int
    notice_at_us: int
    created_at_us: int
    phase: str
    granted: int
    remaining: int
    held: int
    spent: int
    expired: int


class Share(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What a hold took from one grant, how much of that was charged, and how much of the charge was refunded.

    ``amount`` is 0 for what was charged beyond the hold. A share of :data:`DEBT` is the last; when a grant pays, units
    move from it to a share of that grant.
    """

    grant_id: str
    amount: int
    used: int
    refunded: int = 0

    @property
    def free(self) -> int:
        return self.amount - self.used if self.amount > self.used else 0


class _Taken(msgspec.Struct, frozen=True, array_like=True):
    grant_id: str
    amount: int
    used: int | None = None
    refunded: int = 0


_PARTS = msgspec.json.Decoder(list[_Taken])


def written_parts(parts: Sequence[Share]) -> str:
    """JSON for the column ``parts`` of ``daydo_quota_hold``: [grant, amount, used, refunded] each.

    Only [grant, amount] where nothing of any was charged, or all of all and nothing refunded: which of the two,
    ``captured`` tells. So most holds are confirmed without writing their parts anew.
    """
    unused, whole = True, True
    for part in parts:
        unused = unused and not part.used
        whole = whole and part.used == part.amount and not part.refunded
    taken = [part[:2] for part in map(astuple, parts)] if unused or whole else parts
    return msgspec.json.encode(taken).decode()


def read_parts(text: str, captured: int) -> list[Share]:
    """What ``written_parts`` wrote.

    Raises:
        msgspec.DecodeError: nothing like it.
    """
    return [
        Share(grant_id, amount, (amount if captured else 0) if used is None else used, refunded)
        for grant_id, amount, used, refunded in map(astuple, _PARTS.decode(text))
    ]


HoldPhase = Phase | Literal["owing"]
"""``owing`` is a confirmed hold with a part that no grant has paid; to callers it is ``confirmed``."""


class HoldRow(msgspec.Struct, gc=False):
    """``captured`` is all that was ever charged; ``final`` is the confirm's part of it, so that its repeat is known.

    A charge is a hold of amount 0 that was confirmed as it was made.
    """

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
    phase: HoldPhase
    expires_at_us: int
    parts: list[Share]
    created_at_us: int
    resolved_at_us: int

    @property
    def confirmed(self) -> bool:
        return self.phase in ("confirmed", "owing")

    @property
    def owed(self) -> int:
        if not self.parts or self.parts[-1].grant_id != DEBT:
            return 0
        return self.parts[-1].used - self.parts[-1].refunded


AmendmentKind = Literal["capture", "refund"]


class AmendmentRow(msgspec.Struct, frozen=True, gc=False):
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


class AllowanceRow(msgspec.Struct, gc=False):
    """``period`` is the name of the last one granted (empty: none yet), ``next_at_us`` when the next may be: NEVER_US
    once it is over."""

    id: str
    account_id: int
    tenant: str
    op_key: str
    fingerprint: str
    amount: int
    every: Every
    zone: str
    anchor: Anchor
    source: str
    priority: int
    starts_at_us: int
    until_us: int
    next_at_us: int
    period: str
    reason: str
    created_at_us: int


class EntryRow(msgspec.Struct, frozen=True, gc=False):
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
    debt_change: int
    available: int
    reserved: int
    spent: int
    expired: int
    debt: int


ChangingRow = AccountRow | GrantRow | HoldRow | AllowanceRow


class Notice(NamedTuple):
    """Something an account's owner should hear of: event ``quota.<name>``."""

    account_id: int
    name: Literal["low", "expiring"]
    facts: dict[str, Any]


class Rules(msgspec.Struct, frozen=True):
    """Of whom notice is given: below which balance, by unit, and how long before a grant expires (0: never)."""

    low_balance: dict[str, int] = {}
    expiring_notice_us: int = 0


Outcome = Grant | Hold | list[Hold] | Allowance | Balance | QuotaError


class State(msgspec.Struct):
    """What the database holds, as far as the batch needs it.

    Per account that is due or has an operation on holds: all its grants that are not closed. Per account that is due:
    its overdue holds, and in ``next_hold_us`` (by account id) a time no later than the expiry of the first open hold
    that is *not* here. Per account in debt: its holds that owe. Per account that renews by now or has an operation on
    allowances: those of its allowances that are not over. Besides: every grant, hold, amendment and allowance whose
    (tenant, key) an operation names, and the grants that a hold to be refunded was charged to, closed or not.
    """

    accounts: dict[AccountKey, AccountRow] = {}
    grants: list[GrantRow] = []
    holds: list[HoldRow] = []
    next_hold_us: dict[int, int] = {}
    amendments: list[AmendmentRow] = []
    allowances: list[AllowanceRow] = []


class Plan(msgspec.Struct):
    """``outcomes`` in the order of the operations; then the rows to insert and, in their final state, to update.

    ``accounts`` are all to which any of the rows belongs. ``before`` has the rows that were read, by id.
    """

    outcomes: list[Outcome]
    new_grants: list[GrantRow]
    new_holds: list[HoldRow]
    new_amendments: list[AmendmentRow]
    new_allowances: list[AllowanceRow]
    accounts: list[AccountRow]
    grants: list[GrantRow]
    holds: list[HoldRow]
    allowances: list[AllowanceRow]
    entries: list[EntryRow]
    notices: list[Notice]
    before: dict[int | str, ChangingRow]

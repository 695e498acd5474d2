"""For tests, ours and yours: a model that is obviously right, and the suite every back end must pass.

In a project of yours::

    class TestOurDatabase(LedgerConformance):
        @pytest.fixture
        async def ledger(self, db, clock):
            async with Ledger(db, clock=clock) as ledger:
                yield ledger

(and ``pytest.register_assert_rewrite("daydo_quota.testing")`` in conftest.py, so that failures show values).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
import pytest

from daydo_db import Database
from daydo_kernel import Page, new_id
from daydo_kernel.testing import ManualClock

from .errors import (
    BadAmount,
    BadName,
    BadPeriod,
    BadReason,
    BalanceLimit,
    ChargeExceedsHold,
    HoldCancelled,
    HoldConfirmed,
    HoldExpired,
    HoldUnknown,
    InsufficientQuota,
    KeyConflict,
    QuotaError,
)
from .ledger import Ledger
from .model import Account, AccountBalance, AccountLike, Balance, Entry, Grant, Hold
from .planner import MAX_UNITS


class LedgerLike(Protocol):
    """The calls that the suite makes; :class:`daydo_quota.Ledger` and :class:`InTransaction` have them."""

    async def grant(self, account: AccountLike, amount: int, *, key: str, **options: Any) -> Grant: ...
    async def reserve(self, account: AccountLike, amount: int, *, key: str, **options: Any) -> Hold: ...
    async def confirm(self, account: AccountLike, amount: int | None = None, *, key: str, **options: Any) -> Hold: ...
    async def cancel(self, account: AccountLike, *, key: str, **options: Any) -> Hold: ...
    async def balance(self, account: AccountLike) -> Balance: ...
    async def accounts(self, tenant: str, subject: str) -> list[AccountBalance]: ...
    async def history(self, tenant: str, subject: str, **options: Any) -> Page[Entry]: ...
    async def sweep(self) -> int: ...


class InTransaction:
    """A ledger whose every writing call runs with ``tx=`` in a transaction that ``transaction()`` opens.

    ``InTransaction(ledger, db.transaction)``, or anything that opens a session of yours and enlists it.
    """

    def __init__(self, ledger: Ledger, transaction: Callable[[], Any]) -> None:
        self._ledger = ledger
        self._transaction = transaction

    async def _call(self, method: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        async with self._transaction() as tx:
            return await method(*args, **options, tx=tx)

    async def grant(self, account: AccountLike, amount: int, **options: Any) -> Any:
        return await self._call(self._ledger.grant, account, amount, **options)

    async def reserve(self, account: AccountLike, amount: int, **options: Any) -> Any:
        return await self._call(self._ledger.reserve, account, amount, **options)

    async def confirm(self, account: AccountLike, amount: int | None = None, **options: Any) -> Any:
        return await self._call(self._ledger.confirm, account, amount, **options)

    async def cancel(self, account: AccountLike, **options: Any) -> Any:
        return await self._call(self._ledger.cancel, account, **options)

    async def balance(self, account: AccountLike) -> Any:
        return await self._call(self._ledger.balance, account)

    async def accounts(self, tenant: str, subject: str) -> list[AccountBalance]:
        return await self._ledger.accounts(tenant, subject)

    async def history(self, tenant: str, subject: str, **options: Any) -> Page[Entry]:
        return await self._ledger.history(tenant, subject, **options)

    async def sweep(self) -> int:
        return await self._ledger.sweep()


class ModelGrant(msgspec.Struct):
    amount: int
    priority: int
    from_us: int
    until_us: float
    facts: tuple[object, ...]


class ModelHold(msgspec.Struct):
    account: tuple[str, str, str]
    parts: list[tuple[ModelGrant, int]]
    until_us: int
    facts: tuple[object, ...]
    ended: str = ""
    captured: int = 0

    @property
    def amount(self) -> int:
        return sum(taken for _, taken in self.parts)


class LedgerModel:
    """What a ledger must answer, without a database, without running totals and without expiry as an event.

    It only remembers what was granted, held and settled; every balance is computed from that, as of ``now_us``. The
    calls mirror :class:`daydo_quota.Ledger`'s and raise its errors.
    """

    def __init__(self, hold_ttl_us: int = 300_000_000) -> None:
        self.now_us = 0
        self.hold_ttl_us = hold_ttl_us
        self.grants: dict[tuple[str, str], tuple[tuple[str, str, str], ModelGrant]] = {}
        self.holds: dict[tuple[str, str], ModelHold] = {}

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
        facts = (account, amount, ttl_us)
        known = self.holds.get((account[0], key))
        if known is not None:
            if known.ended == "tombstone" and known.account == account:
                raise HoldCancelled(key=key, hold_id="")
            if known.facts != facts:
                raise KeyConflict(key=key)
            return self._outcome(known, False)
        if amount > self.balance(account).available:
            raise InsufficientQuota(unit=account[2], amount=amount, available=self.balance(account).available)
        parts = []
        usable = [grant for grant in self._grants_of(account) if grant.from_us <= self.now_us < grant.until_us]
        for grant in sorted(usable, key=lambda grant: (grant.priority, grant.until_us)):
            taken = min(amount, self._remaining(grant))
            if taken:
                parts.append((grant, taken))
                amount -= taken
        until_us = self.now_us + (self.hold_ttl_us if ttl_us is None else ttl_us)
        hold = self.holds[account[0], key] = ModelHold(account, parts, until_us, facts)
        return self._outcome(hold, True)

    def confirm(self, account: tuple[str, str, str], amount: int | None, key: str) -> Outcome:
        hold = self._hold(account, key)
        if hold is None:
            raise HoldUnknown(key=key)
        match self.phase(hold):
            case "cancelled" | "tombstone":
                raise HoldCancelled(key=key, hold_id="")
            case "expired":
                raise HoldExpired(key=key, hold_id="", expired_at_us=hold.until_us)
        charge = hold.amount if amount is None else amount
        if hold.ended == "confirmed":
            if charge != hold.captured:
                raise KeyConflict(key=key)
            return self._outcome(hold, False)
        if charge > hold.amount:
            raise ChargeExceedsHold(key=key, amount=charge, held=hold.amount)
        hold.ended, hold.captured = "confirmed", charge
        return self._outcome(hold, True)

    def cancel(self, account: tuple[str, str, str], key: str) -> Outcome:
        hold = self._hold(account, key)
        if hold is None:
            hold = self.holds[account[0], key] = ModelHold(account, [], self.now_us, (), "tombstone")
            return self._outcome(hold, True)
        if hold.ended == "confirmed":
            raise HoldConfirmed(key=key, hold_id="", captured=hold.captured)
        changes = self.phase(hold) == "open"
        if changes:
            hold.ended = "cancelled"
        return self._outcome(hold, changes)

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
        return sum(taken for hold in holds for source, taken in hold.parts if source is grant)

    def _spent(self, grant: ModelGrant) -> int:
        total = 0
        for hold in self.holds.values():
            left = hold.captured
            for source, taken in hold.parts:
                used = min(left, taken)
                left -= used
                total += used if source is grant else 0
        return total

    def _grants_of(self, account: tuple[str, str, str]) -> list[ModelGrant]:
        return [grant for owner, grant in self.grants.values() if owner == account]

    def _hold(self, account: tuple[str, str, str], key: str) -> ModelHold | None:
        hold = self.holds.get((account[0], key))
        if hold is not None and hold.account != account:
            raise KeyConflict(key=key)
        return hold

    def _outcome(self, hold: ModelHold, created: bool) -> Outcome:
        return self.phase(hold), hold.amount, hold.captured, created


Outcome = tuple[str, int, int, bool]
"""(phase, amount, captured, created)"""


async def check_books(db: Database) -> None:
    """Recompute every sum in the ledger's tables and compare; an AssertionError names what disagrees."""
    checks = {
        "a grant is not the sum of its parts": """
            SELECT id FROM daydo_quota_grant WHERE granted <> remaining + held + spent + expired""",
        "an account differs from its grants": """
            SELECT a.id FROM daydo_quota_account a LEFT JOIN daydo_quota_grant g ON g.account_id = a.id
            GROUP BY a.id, a.pending, a.available, a.reserved, a.spent, a.expired
            HAVING a.pending <> COALESCE(SUM(CASE WHEN g.phase = 'pending' THEN g.remaining ELSE 0 END), 0)
                OR a.available <> COALESCE(SUM(CASE WHEN g.phase <> 'pending' THEN g.remaining ELSE 0 END), 0)
                OR a.reserved <> COALESCE(SUM(g.held), 0) OR a.spent <> COALESCE(SUM(g.spent), 0)
                OR a.expired <> COALESCE(SUM(g.expired), 0)""",
        "reserved is not the sum of the open holds": """
            SELECT a.id FROM daydo_quota_account a
            LEFT JOIN daydo_quota_hold h ON h.account_id = a.id AND h.phase = 'open'
            GROUP BY a.id, a.reserved HAVING a.reserved <> COALESCE(SUM(h.amount), 0)""",
        "the sequence of entries has a gap": """
            SELECT a.id FROM daydo_quota_account a LEFT JOIN daydo_quota_entry e ON e.account_id = a.id
            GROUP BY a.id, a.seq HAVING COUNT(e.seq) <> a.seq OR COALESCE(MAX(e.seq), 0) <> a.seq""",
        "an entry's balances do not follow from the one before": """
            SELECT e.account_id, e.seq FROM daydo_quota_entry e
            LEFT JOIN daydo_quota_entry b ON b.account_id = e.account_id AND b.seq = e.seq - 1
            WHERE e.available <> COALESCE(b.available, 0) + e.available_change
                OR e.reserved <> COALESCE(b.reserved, 0) + e.reserved_change
                OR e.spent <> COALESCE(b.spent, 0) + e.spent_change
                OR e.expired <> COALESCE(b.expired, 0) + e.expired_change""",
        "the last entry differs from the account": """
            SELECT a.id FROM daydo_quota_account a
            JOIN daydo_quota_entry e ON e.account_id = a.id AND e.seq = a.seq
            WHERE e.available <> a.available OR e.reserved <> a.reserved
                OR e.spent <> a.spent OR e.expired <> a.expired""",
        "a settled hold has no settling entry, or an open one has": """
            SELECT h.id FROM daydo_quota_hold h
            LEFT JOIN daydo_quota_entry e ON e.op_id = h.id AND e.step = 'resolve'
            WHERE (h.phase IN ('confirmed', 'cancelled', 'expired')) <> (e.op_id IS NOT NULL)""",
        "an account would look too late": """
            SELECT a.id FROM daydo_quota_account a JOIN daydo_quota_hold h ON h.account_id = a.id
            WHERE h.phase = 'open' AND h.expires_at_us < a.next_due_at_us
            UNION ALL
            SELECT a.id FROM daydo_quota_account a JOIN daydo_quota_grant g ON g.account_id = a.id
            WHERE (g.phase = 'live' AND g.remaining > 0 AND g.expires_at_us < a.next_due_at_us)
                OR (g.phase = 'pending' AND g.effective_at_us < a.next_due_at_us)""",
    }
    for complaint, query in checks.items():
        found = (await db.query(query)).rows
        assert not found, f"{complaint}: {found[:5]}"


class LedgerConformance:
    """What every database and every kind of transaction must show. Subclass it and give the fixture ``ledger``.

    ``ledger`` runs on the fixture ``clock``. Every test has a tenant of its own, so the database may be shared.
    """

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def account(self) -> Account:
        return Account(new_id("tenant"), "u_7", "credits")

    async def test_a_hold_sets_units_aside(self, ledger: LedgerLike, account: Account) -> None:
        """What is held is neither available nor spent."""
        granted = await ledger.grant(account, 10, key="order")
        assert (granted.amount, granted.remaining, granted.created) == (10, 10, True)
        hold = await ledger.reserve(account, 4, key="task")
        assert (hold.amount, hold.phase, hold.created) == (4, "open", True)
        assert await ledger.balance(account) == Balance(available=6, reserved=4)

    async def test_a_confirm_charges_once(self, ledger: LedgerLike, account: Account) -> None:
        """A second confirm with the same key returns the first one's hold and charges nothing."""
        await ledger.grant(account, 10, key="order")
        await ledger.reserve(account, 4, key="task")
        first = await ledger.confirm(account, key="task")
        again = await ledger.confirm(account, key="task")
        assert (first.phase, first.captured, first.created) == ("confirmed", 4, True)
        assert again == msgspec.structs.replace(first, created=False)
        assert await ledger.balance(account) == Balance(available=6, spent=4)

    async def test_a_smaller_charge_returns_the_rest_to_its_source(self, ledger: LedgerLike, account: Account) -> None:
        """Of a hold over two grants the first in burn order is charged, and the second gets its units back."""
        await ledger.grant(account, 5, key="paid", priority=90)
        await ledger.grant(account, 5, key="promo", priority=10)
        await ledger.reserve(account, 8, key="task")
        confirmed = await ledger.confirm(account, 6, key="task")
        assert (confirmed.amount, confirmed.captured) == (8, 6)
        assert await ledger.balance(account) == Balance(available=4, spent=6)
        assert (await ledger.grant(account, 5, key="paid", priority=90)).remaining == 4
        assert (await ledger.grant(account, 5, key="promo", priority=10)).remaining == 0

    async def test_the_burn_order_is_priority_then_expiry_then_age(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """Units go in that order, whatever the order in which they came."""
        soon, late = clock.now_us() + 10_000_000, clock.now_us() + 20_000_000
        grants: list[tuple[str, dict[str, Any]]] = [
            ("5th", {"priority": 60}),
            ("3rd", {"expires_at_us": late}),
            ("2nd", {"expires_at_us": soon}),
            ("4th", {}),
            ("1st", {"priority": 0}),
        ]
        for key, options in grants:
            await ledger.grant(account, 1, key=key, **options)
            clock.advance(0.001)
        burnt = []
        for number in range(len(grants)):
            await ledger.reserve(account, 1, key=f"task_{number}")
            left = {key for key, options in grants if (await ledger.grant(account, 1, key=key, **options)).remaining}
            burnt.append(next(key for key, _ in grants if key not in left and key not in burnt))
        assert burnt == ["1st", "2nd", "3rd", "4th", "5th"]

    async def test_a_cancel_returns_everything(self, ledger: LedgerLike, account: Account) -> None:
        """And a second one changes nothing."""
        await ledger.grant(account, 10, key="order")
        await ledger.reserve(account, 4, key="task")
        assert (await ledger.cancel(account, key="task")).created
        assert not (await ledger.cancel(account, key="task")).created
        assert await ledger.balance(account) == Balance(available=10)

    async def test_a_repeat_returns_the_original(self, ledger: LedgerLike, account: Account) -> None:
        """The same call with the same key changes nothing, also after the hold was settled."""
        granted = await ledger.grant(account, 10, key="order")
        assert await ledger.grant(account, 10, key="order") == msgspec.structs.replace(granted, created=False)
        hold = await ledger.reserve(account, 4, key="task", ttl_s=60)
        assert await ledger.reserve(account, 4, key="task", ttl_s=60) == msgspec.structs.replace(hold, created=False)
        await ledger.confirm(account, 3, key="task")
        late = await ledger.reserve(account, 4, key="task", ttl_s=60)
        assert (late.id, late.phase, late.captured, late.created) == (hold.id, "confirmed", 3, False)
        assert await ledger.balance(account) == Balance(available=7, spent=3)

    async def test_other_parameters_under_a_known_key_conflict(self, ledger: LedgerLike, account: Account) -> None:
        """Another amount, date, source, time or account is another operation and needs another key."""
        other = Account(account.tenant, account.subject, "points")
        await ledger.grant(account, 10, key="order")
        await ledger.grant(other, 10, key="points")
        await ledger.reserve(account, 4, key="task")
        conflicts: list[Awaitable[object]] = [
            ledger.grant(account, 11, key="order"),
            ledger.grant(account, 10, key="order", source="promo"),
            ledger.grant(account, 10, key="order", priority=1),
            ledger.grant(account, 10, key="order", expires_at_us=MAX_UNITS - 1),
            ledger.grant(other, 10, key="order"),
            ledger.reserve(account, 5, key="task"),
            ledger.reserve(account, 4, key="task", ttl_s=60),
            ledger.reserve(other, 4, key="task"),
            ledger.confirm(other, key="task"),
            ledger.cancel(other, key="task"),
        ]
        for conflict in conflicts:
            await _raises(KeyConflict, conflict)
        await ledger.confirm(account, 3, key="task")
        await _raises(KeyConflict, ledger.confirm(account, 4, key="task"))
        assert await ledger.balance(account) == Balance(available=7, spent=3)
        assert await ledger.balance(other) == Balance(available=10)

    async def test_keys_of_tenants_are_apart(self, ledger: LedgerLike, account: Account) -> None:
        """Two tenants may use the same key, and a grant and a hold may too."""
        other = Account(f"{account.tenant}x", account.subject, account.unit)
        for one in (account, other):
            assert (await ledger.grant(one, 10, key="same")).created
            assert (await ledger.reserve(one, 4, key="same")).created

    async def test_too_little_refuses_and_leaves_no_trace(self, ledger: LedgerLike, account: Account) -> None:
        """After a top-up the very same call succeeds."""
        await _raises(InsufficientQuota, ledger.reserve(account, 4, key="task"))
        await ledger.grant(account, 3, key="order")
        refusal = await _raises(InsufficientQuota, ledger.reserve(account, 4, key="task"))
        assert (refusal.facts["amount"], refusal.facts["available"]) == (4, 3)
        await ledger.grant(account, 1, key="order_2")
        assert (await ledger.reserve(account, 4, key="task")).created

    async def test_a_cancel_before_its_reserve_wins(self, ledger: LedgerLike, account: Account) -> None:
        """The late reserve is refused, and so is a confirm; another cancel finds the tombstone."""
        await ledger.grant(account, 10, key="order")
        tombstone = await ledger.cancel(account, key="task")
        assert (tombstone.phase, tombstone.created) == ("tombstone", True)
        await _raises(HoldCancelled, ledger.reserve(account, 4, key="task"))
        await _raises(HoldCancelled, ledger.confirm(account, key="task"))
        assert await ledger.cancel(account, key="task") == msgspec.structs.replace(tombstone, created=False)
        assert await ledger.balance(account) == Balance(available=10)

    async def test_a_settled_hold_stays_as_it_is(self, ledger: LedgerLike, account: Account) -> None:
        """Confirm after cancel, cancel after confirm, a charge above the hold, an unknown hold: each has its error."""
        await ledger.grant(account, 10, key="order")
        await ledger.reserve(account, 2, key="kept")
        await ledger.reserve(account, 3, key="dropped")
        await _raises(ChargeExceedsHold, ledger.confirm(account, 3, key="kept"))
        await ledger.confirm(account, key="kept")
        await ledger.cancel(account, key="dropped")
        await _raises(HoldConfirmed, ledger.cancel(account, key="kept"))
        await _raises(HoldCancelled, ledger.confirm(account, key="dropped"))
        await _raises(HoldUnknown, ledger.confirm(account, key="nothing"))
        assert await ledger.balance(account) == Balance(available=8, spent=2)

    async def test_a_charge_of_nothing_is_a_charge(self, ledger: LedgerLike, account: Account) -> None:
        """Zero returns everything and still settles the hold."""
        await ledger.grant(account, 10, key="order")
        await ledger.reserve(account, 4, key="task")
        assert (await ledger.confirm(account, 0, key="task")).phase == "confirmed"
        await _raises(HoldConfirmed, ledger.cancel(account, key="task"))
        assert await ledger.balance(account) == Balance(available=10)

    async def test_a_hold_times_out_to_the_microsecond(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """One microsecond before its time it is held; at its time it is returned, and a confirm comes too late."""
        await ledger.grant(account, 10, key="order")
        hold = await ledger.reserve(account, 4, key="task", ttl_s=30)
        assert hold.expires_at_us == clock.now_us() + 30_000_000
        clock.advance(29.999999)
        assert await ledger.balance(account) == Balance(available=6, reserved=4)
        clock.advance(0.000001)
        await _raises(HoldExpired, ledger.confirm(account, key="task"))
        assert await ledger.balance(account) == Balance(available=10)
        assert (await ledger.cancel(account, key="task")).phase == "expired"
        assert (await ledger.reserve(account, 4, key="task", ttl_s=30)).phase == "expired"
        assert await ledger.balance(account) == Balance(available=10)

    async def test_a_timed_out_hold_makes_room_for_the_next(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """The reserve that needs the units finds them, without any sweeper."""
        await ledger.grant(account, 4, key="order")
        await ledger.reserve(account, 4, key="stranded", ttl_s=30)
        await _raises(InsufficientQuota, ledger.reserve(account, 4, key="task"))
        clock.advance(30)
        assert (await ledger.reserve(account, 4, key="task")).created

    async def test_a_grant_has_its_time(self, ledger: LedgerLike, clock: ManualClock, account: Account) -> None:
        """It is pending before its first microsecond and gone from its last one on."""
        begins, ends = clock.now_us() + 10_000_000, clock.now_us() + 20_000_000
        await ledger.grant(account, 5, key="promo", effective_at_us=begins, expires_at_us=ends)
        assert await ledger.balance(account) == Balance(pending=5)
        await _raises(InsufficientQuota, ledger.reserve(account, 1, key="early"))
        clock.advance(10)
        assert await ledger.balance(account) == Balance(available=5)
        await ledger.reserve(account, 2, key="in_time", ttl_s=60)
        clock.advance(10)
        assert await ledger.balance(account) == Balance(reserved=2, expired=3)
        await _raises(InsufficientQuota, ledger.reserve(account, 1, key="late"))
        assert (await ledger.grant(account, 5, key="promo", effective_at_us=begins, expires_at_us=ends)).remaining == 0

    async def test_promotional_units_do_not_come_back_to_life(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """What a hold took from a grant may be charged after that grant's end, but what it returns has expired."""
        ends = clock.now_us() + 10_000_000
        await ledger.grant(account, 5, key="promo", expires_at_us=ends)
        await ledger.grant(account, 5, key="paid", priority=90)
        await ledger.reserve(account, 1, key="other", ttl_s=60)
        await ledger.reserve(account, 7, key="task", ttl_s=60)
        clock.advance(10)
        await ledger.confirm(account, 3, key="task")
        assert await ledger.balance(account) == Balance(available=5, reserved=1, spent=3, expired=1)
        await ledger.cancel(account, key="other")
        assert await ledger.balance(account) == Balance(available=5, spent=3, expired=2)

    async def test_history_tells_everything_in_order(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """Gap-free, newest first, with balances that add up, and dated when things were due, however late written."""
        start = clock.now_us()
        ends = start + 45_000_000
        await ledger.grant(account, 10, key="order", expires_at_us=ends, reason="首充")
        await ledger.reserve(account, 4, key="a", ttl_s=30)
        await ledger.reserve(account, 3, key="b", ttl_s=60)
        clock.advance(40)
        await ledger.confirm(account, 2, key="b", reason="two pictures")
        clock.advance(3600)
        assert (await ledger.history(account.tenant, account.subject)).items[0].kind == "confirmed", (
            "a look writes nothing"
        )
        await ledger.sweep()
        page = await ledger.history(account.tenant, account.subject)
        told = [(e.seq, e.kind, e.key, e.amount, e.available, e.reserved, e.spent, e.expired) for e in page.items]
        assert told == [
            (6, "grant_expired", "order", 8, 0, 0, 2, 8),
            (5, "confirmed", "b", 2, 8, 0, 2, 0),
            (4, "hold_expired", "a", 4, 7, 3, 0, 0),
            (3, "held", "b", 3, 3, 7, 0, 0),
            (2, "held", "a", 4, 6, 4, 0, 0),
            (1, "granted", "order", 10, 10, 0, 0, 0),
        ]
        assert [entry.at_us for entry in page.items[:3]] == [ends, start + 40_000_000, start + 30_000_000]
        assert [page.items[1].reason, page.items[5].reason] == ["two pictures", "首充"]
        assert page.next_cursor is None

    async def test_pages_of_history_meet_without_gap_or_repeat(self, ledger: LedgerLike, account: Account) -> None:
        """Two units together, page by page, are the same as each alone; newcomers do not disturb."""
        points = Account(account.tenant, account.subject, "points")
        for number in range(5):
            await ledger.grant(account, 1, key=f"c{number}")
            await ledger.grant(points, 1, key=f"p{number}")
        seen, cursor = [], None
        for _ in range(4):
            page = await ledger.history(account.tenant, account.subject, cursor=cursor, limit=3)
            seen += [(entry.unit, entry.seq) for entry in page.items]
            cursor = page.next_cursor
            await ledger.grant(account, 1, key=f"late{len(seen)}")
        assert cursor is None
        assert sorted(seen) == [(unit, seq) for unit in (account.unit, "points") for seq in range(1, 6)]
        alone = await ledger.history(account.tenant, account.subject, unit="points")
        assert [entry.seq for entry in alone.items] == [5, 4, 3, 2, 1]

    async def test_accounts_lists_every_unit(self, ledger: LedgerLike, clock: ManualClock, account: Account) -> None:
        """As of now, also where nobody has touched a unit since its hold timed out."""
        await ledger.grant(account, 3, key="c")
        await ledger.grant(Account(account.tenant, account.subject, "points"), 7, key="p")
        await ledger.grant(Account(account.tenant, "somebody_else", "points"), 9, key="x")
        await ledger.reserve(account, 2, key="task", ttl_s=30)
        clock.advance(30)
        assert await ledger.accounts(account.tenant, account.subject) == [
            AccountBalance(unit="credits", available=3),
            AccountBalance(unit="points", available=7),
        ]

    async def test_a_unit_is_a_name(self, ledger: LedgerLike, account: Account) -> None:
        """Clients ask for any unit: what a table cannot hold, or a padding one takes for another, is BadName."""
        await ledger.grant(account, 1, key="order")
        for unit in ("crédits", "积分", f"{account.unit} ", f" {account.unit}", "", "c" * 33, "\ud800", "c\0"):
            await _raises(BadName, ledger.history(account.tenant, account.subject, unit=unit))
        assert not (await ledger.history(account.tenant, account.subject, unit="unknown")).items

    async def test_many_at_once_never_oversell(self, ledger: LedgerLike, account: Account) -> None:
        """Forty callers want one of ten units: ten get one."""
        await ledger.grant(account, 6, key="order")
        await ledger.grant(account, 4, key="order_2")
        answers = await asyncio.gather(
            *(ledger.reserve(account, 1, key=f"task_{number}") for number in range(40)), return_exceptions=True
        )
        assert sum(isinstance(answer, Hold) for answer in answers) == 10
        assert sum(isinstance(answer, InsufficientQuota) for answer in answers) == 30
        assert await ledger.balance(account) == Balance(reserved=10)

    async def test_one_key_at_once_makes_one_hold(self, ledger: LedgerLike, account: Account) -> None:
        """Ten callers with the same key share one hold; one of them made it. The same goes for grant and confirm."""
        granted = await asyncio.gather(*(ledger.grant(account, 10, key="order") for _ in range(10)))
        holds = await asyncio.gather(*(ledger.reserve(account, 2, key="task") for _ in range(10)))
        confirmed = await asyncio.gather(*(ledger.confirm(account, key="task") for _ in range(10)))
        for answers in (granted, holds, confirmed):
            assert len({answer.id for answer in answers}) == 1
            assert [answer.created for answer in answers].count(True) == 1
        assert await ledger.balance(account) == Balance(available=8, spent=2)

    async def test_what_cannot_be_right_is_refused(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """Amounts, names and periods out of bounds raise their own error and change nothing."""
        soon = clock.now_us() + 1_000_000
        refused: list[tuple[type[QuotaError], Awaitable[object]]] = [
            *((BadAmount, ledger.grant(account, amount, key="k")) for amount in (0, -1, 2**53, True, 1.0, "5")),  # type: ignore[arg-type]
            (BadAmount, ledger.grant(account, 1, key="k", priority=101)),
            (BadAmount, ledger.reserve(account, 0, key="k")),
            (BadAmount, ledger.confirm(account, -1, key="k")),
            *((BadName, ledger.grant(account, 1, key=key)) for key in ("", " k", "k\n", "钥", "k" * 201)),
            (BadName, ledger.grant(Account(account.tenant, "", "credits"), 1, key="k")),
            (BadName, ledger.grant(Account(account.tenant, "u", "c" * 33), 1, key="k")),
            (BadReason, ledger.grant(account, 1, key="k", reason="x" * 201)),
            (BadPeriod, ledger.grant(account, 1, key="k", expires_at_us=clock.now_us())),
            (BadPeriod, ledger.grant(account, 1, key="k", effective_at_us=soon, expires_at_us=soon)),
            (BadPeriod, ledger.grant(account, 1, key="k", expires_at_us=-1)),
            *((BadPeriod, ledger.reserve(account, 1, key="k", ttl_s=ttl)) for ttl in (0.0, -1.0, 1e9, float("nan"))),
        ]
        for error, call in refused:
            await _raises(error, call)
        await ledger.grant(account, MAX_UNITS, key="all")
        await _raises(BalanceLimit, ledger.grant(account, 1, key="k"))
        assert await ledger.balance(account) == Balance(available=MAX_UNITS)

    async def test_the_sweeper_writes_what_is_due(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """Once; a second sweep finds nothing to do for this account."""
        await ledger.grant(account, 5, key="order", expires_at_us=clock.now_us() + 60_000_000)
        await ledger.reserve(account, 2, key="task", ttl_s=30)
        clock.advance(30)
        assert await ledger.sweep() >= 1
        clock.advance(30)
        await asyncio.gather(ledger.sweep(), ledger.sweep())
        history = await ledger.history(account.tenant, account.subject)
        assert [entry.kind for entry in history.items] == ["grant_expired", "hold_expired", "held", "granted"]


async def _raises(expected: type[QuotaError], call: Awaitable[object]) -> QuotaError:
    try:
        answer = await call
    except expected as refusal:
        return refusal
    raise AssertionError(f"{expected.__name__} was not raised; the answer was {answer}")

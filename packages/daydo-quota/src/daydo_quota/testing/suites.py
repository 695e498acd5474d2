"""What every database and every kind of transaction must show."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import msgspec
import pytest

from daydo_db import Database, Deadlock
from daydo_kernel import Page, new_id
from daydo_kernel.testing import ManualClock
from daydo_quota.audit import Auditor
from daydo_quota.errors import (
    AllowanceLimit,
    AllowanceUnknown,
    BadAccounts,
    BadAmount,
    BadCalendar,
    BadName,
    BadPeriod,
    BadPolicy,
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
    RefundExceedsCharge,
)
from daydo_quota.ledger import Ledger
from daydo_quota.model import Account, AccountBalance, AccountLike, Allowance, Balance, Entry, Grant, Hold
from daydo_quota.rows import MAX_UNITS


class LedgerLike(Protocol):
    """The calls that the suite makes; :class:`daydo_quota.Ledger` and :class:`InTransaction` have them."""

    async def grant(self, account: AccountLike, amount: int, *, key: str, **options: Any) -> Grant: ...
    async def allow(self, account: AccountLike, amount: int, *, key: str, **options: Any) -> Allowance: ...
    async def disallow(self, account: AccountLike, *, key: str) -> Allowance: ...
    async def reserve(self, account: AccountLike, amount: int, *, key: str, **options: Any) -> Hold: ...
    async def reserve_all(
        self, amounts: Sequence[tuple[AccountLike, int]], *, key: str, **options: Any
    ) -> list[Hold]: ...
    async def charge(self, account: AccountLike, amount: int, *, key: str, **options: Any) -> Hold: ...
    async def capture(self, account: AccountLike, amount: int, *, key: str, hold_key: str, **options: Any) -> Hold: ...
    async def confirm(self, account: AccountLike, amount: int | None = None, *, key: str, **options: Any) -> Hold: ...
    async def cancel(self, account: AccountLike, *, key: str, **options: Any) -> Hold: ...
    async def extend(self, account: AccountLike, *, key: str, ttl_s: float) -> Hold: ...
    async def refund(self, account: AccountLike, amount: int, *, key: str, hold_key: str, **options: Any) -> Hold: ...
    async def balance(self, account: AccountLike) -> Balance: ...
    async def accounts(self, tenant: str, subject: str) -> list[AccountBalance]: ...
    async def history(self, tenant: str, subject: str, **options: Any) -> Page[Entry]: ...
    async def sweep(self) -> int: ...


_REPEATS = 5


class InTransaction:
    """A ledger whose every writing call runs with ``tx=`` in a transaction that ``transaction()`` opens.

    ``InTransaction(ledger, db.transaction)``, or anything that opens a session of yours and enlists it. It is repeated
    after a deadlock, as everybody's transactions must be: servers undo one of several that make the same account.
    """

    def __init__(self, ledger: Ledger, transaction: Callable[[], Any]) -> None:
        self._ledger = ledger
        self._transaction = transaction
        self.clock = ledger.clock

    async def _call(self, method: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        for _ in range(_REPEATS):
            with suppress(Deadlock):
                async with self._transaction() as tx:
                    return await method(*args, **options, tx=tx)
        async with self._transaction() as tx:
            return await method(*args, **options, tx=tx)

    async def grant(self, account: AccountLike, amount: int, **options: Any) -> Any:
        return await self._call(self._ledger.grant, account, amount, **options)

    async def allow(self, account: AccountLike, amount: int, **options: Any) -> Any:
        return await self._call(self._ledger.allow, account, amount, **options)

    async def disallow(self, account: AccountLike, **options: Any) -> Any:
        return await self._call(self._ledger.disallow, account, **options)

    async def charge(self, account: AccountLike, amount: int, **options: Any) -> Any:
        return await self._call(self._ledger.charge, account, amount, **options)

    async def reserve(self, account: AccountLike, amount: int, **options: Any) -> Any:
        return await self._call(self._ledger.reserve, account, amount, **options)

    async def reserve_all(self, amounts: Sequence[tuple[AccountLike, int]], **options: Any) -> Any:
        return await self._call(self._ledger.reserve_all, amounts, **options)

    async def capture(self, account: AccountLike, amount: int, **options: Any) -> Any:
        return await self._call(self._ledger.capture, account, amount, **options)

    async def confirm(self, account: AccountLike, amount: int | None = None, **options: Any) -> Any:
        return await self._call(self._ledger.confirm, account, amount, **options)

    async def cancel(self, account: AccountLike, **options: Any) -> Any:
        return await self._call(self._ledger.cancel, account, **options)

    async def extend(self, account: AccountLike, **options: Any) -> Any:
        return await self._call(self._ledger.extend, account, **options)

    async def refund(self, account: AccountLike, amount: int, **options: Any) -> Any:
        return await self._call(self._ledger.refund, account, amount, **options)

    async def balance(self, account: AccountLike) -> Any:
        return await self._call(self._ledger.balance, account)

    async def accounts(self, tenant: str, subject: str) -> list[AccountBalance]:
        return await self._ledger.accounts(tenant, subject)

    async def history(self, tenant: str, subject: str, **options: Any) -> Page[Entry]:
        return await self._ledger.history(tenant, subject, **options)

    async def sweep(self) -> int:
        return await self._ledger.sweep()


async def check_books(db: Database) -> None:
    """:meth:`Ledger.audit` of everything, without a ledger; an AssertionError names what disagrees."""
    audit = await Auditor(db, None, accounts=100, rows=1000).run()
    assert audit.disagreement is None, audit.disagreement


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

    @pytest.fixture(autouse=True)
    def _on_the_clock(self, ledger: LedgerLike, clock: ManualClock) -> None:
        # Else half of the tests would fail, and none would say why.
        if getattr(ledger, "clock", clock) is not clock:
            pytest.fail("the fixture ledger must run on the fixture clock: Ledger(db, clock=clock)")

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

    async def test_captures_charge_parts_of_an_open_hold(self, ledger: LedgerLike, account: Account) -> None:
        """Each once by its own key, from the front; the hold stays open with the rest and gives no more than it has."""
        await ledger.grant(account, 5, key="paid", priority=90)
        await ledger.grant(account, 5, key="promo", priority=10)
        await ledger.reserve(account, 8, key="task")
        first = await ledger.capture(account, 4, key="page_1", hold_key="task")
        assert (first.key, first.phase, first.captured, first.created) == ("task", "open", 4, True)
        again = await ledger.capture(account, 4, key="page_1", hold_key="task")
        assert again == msgspec.structs.replace(first, created=False)
        assert await ledger.balance(account) == Balance(available=2, reserved=4, spent=4)
        refusal = await _raises(ChargeExceedsHold, ledger.capture(account, 5, key="page_2", hold_key="task"))
        assert refusal.facts["held"] == 4
        assert (await ledger.capture(account, 3, key="page_2", hold_key="task")).captured == 7
        assert await ledger.balance(account) == Balance(available=2, reserved=1, spent=7)
        await ledger.cancel(account, key="task")
        assert (await ledger.grant(account, 5, key="paid", priority=90)).remaining == 3
        assert (await ledger.grant(account, 5, key="promo", priority=10)).remaining == 0

    async def test_a_captures_key_names_one_capture(self, ledger: LedgerLike, account: Account) -> None:
        """With another amount, hold or account it is a conflict; a refund may bear the same key."""
        other = Account(account.tenant, account.subject, "points")
        for one in (account, other):
            await ledger.grant(one, 10, key=f"order_{one.unit}")
            await ledger.reserve(one, 5, key=f"task_{one.unit}")
        await ledger.reserve(account, 5, key="second")
        await ledger.capture(account, 2, key="page", hold_key="task_credits")
        await _raises(KeyConflict, ledger.capture(account, 3, key="page", hold_key="task_credits"))
        await _raises(KeyConflict, ledger.capture(account, 2, key="page", hold_key="second"))
        await _raises(KeyConflict, ledger.capture(other, 2, key="page", hold_key="task_points"))
        await _raises(KeyConflict, ledger.capture(other, 2, key="page_2", hold_key="task_credits"))
        assert (await ledger.refund(account, 2, key="page", hold_key="task_credits")).created
        await _raises(KeyConflict, ledger.refund(account, 1, key="page", hold_key="task_credits"))

    async def test_a_confirm_after_captures_charges_the_rest_or_less(
        self, ledger: LedgerLike, account: Account
    ) -> None:
        """Its amount counts besides the captures; what is left returns, and a repeat is compared by that amount."""
        await ledger.grant(account, 20, key="order")
        for key in ("all", "less", "none"):
            await ledger.reserve(account, 6, key=key)
            await ledger.capture(account, 2, key=f"{key}_page", hold_key=key)
        await _raises(ChargeExceedsHold, ledger.confirm(account, 5, key="less"))
        assert (await ledger.confirm(account, key="all")).captured == 6
        assert (await ledger.confirm(account, 3, key="less")).captured == 5
        assert (await ledger.confirm(account, 0, key="none")).captured == 2
        assert await ledger.balance(account) == Balance(available=7, spent=13)
        for key, same in (("all", 4), ("all", None), ("less", 3), ("none", 0)):
            assert not (await ledger.confirm(account, same, key=key)).created
        for key, differs in (("all", 6), ("less", 5), ("less", None), ("none", 2)):
            await _raises(KeyConflict, ledger.confirm(account, differs, key=key))
        late = await ledger.capture(account, 2, key="less_page", hold_key="less")
        assert (late.phase, late.captured, late.created) == ("confirmed", 5, False)

    async def test_what_was_captured_stays_charged(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """A cancel and a time-out return only the rest."""
        await ledger.grant(account, 10, key="order")
        for key in ("dropped", "stranded"):
            await ledger.reserve(account, 5, key=key, ttl_s=30)
            await ledger.capture(account, 2, key=f"{key}_page", hold_key=key)
        cancelled = await ledger.cancel(account, key="dropped")
        assert (cancelled.phase, cancelled.captured) == ("cancelled", 2)
        assert await ledger.balance(account) == Balance(available=3, reserved=3, spent=4)
        clock.advance(30)
        assert await ledger.balance(account) == Balance(available=6, spent=4)
        assert (await ledger.cancel(account, key="stranded")).captured == 2

    async def test_only_an_open_hold_is_captured_or_extended(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """Unknown, cancelled, confirmed and timed out each have their error."""
        await ledger.grant(account, 10, key="order")
        for key in ("confirmed", "cancelled", "expired"):
            await ledger.reserve(account, 2, key=key, ttl_s=30)
        await ledger.confirm(account, 1, key="confirmed")
        await ledger.cancel(account, key="cancelled")
        await ledger.cancel(account, key="tombstone")
        clock.advance(30)
        over: dict[str, type[QuotaError]] = {
            "unknown": HoldUnknown,
            "confirmed": HoldConfirmed,
            "cancelled": HoldCancelled,
            "tombstone": HoldCancelled,
            "expired": HoldExpired,
        }
        nobody = Account(account.tenant, "nobody", "credits")
        for key, error in over.items():
            await _raises(error, ledger.capture(account, 1, key="page", hold_key=key))
            await _raises(error, ledger.extend(account, key=key, ttl_s=60))
        await _raises(HoldUnknown, ledger.capture(nobody, 1, key="page", hold_key="unknown"))
        await _raises(HoldUnknown, ledger.extend(nobody, key="unknown", ttl_s=60))
        await _raises(HoldUnknown, ledger.refund(nobody, 1, key="back", hold_key="unknown"))
        assert await ledger.balance(account) == Balance(available=9, spent=1)

    async def test_an_extended_hold_lasts_as_long_as_asked(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """From now, to the microsecond; asking for less changes nothing, and nothing is written in the history."""
        await ledger.grant(account, 10, key="order")
        hold = await ledger.reserve(account, 4, key="task", ttl_s=30)
        clock.advance(20)
        same = await ledger.extend(account, key="task", ttl_s=5)
        assert (same.expires_at_us, same.created) == (hold.expires_at_us, False)
        longer = await ledger.extend(account, key="task", ttl_s=60)
        assert (longer.expires_at_us, longer.created) == (clock.now_us() + 60_000_000, True)
        assert not (await ledger.extend(account, key="task", ttl_s=60)).created
        assert (await ledger.history(account.tenant, account.subject)).items[0].kind == "held"
        clock.advance(59.999999)
        await ledger.sweep()
        assert await ledger.balance(account) == Balance(available=6, reserved=4)
        clock.advance(0.000001)
        assert await ledger.balance(account) == Balance(available=10)
        await _raises(HoldExpired, ledger.extend(account, key="task", ttl_s=60))
        for ttl_s in (0.0, -1.0, 1e9, float("nan")):
            await _raises(BadPeriod, ledger.extend(account, key="task", ttl_s=ttl_s))

    async def test_a_refund_returns_units_to_their_grants(self, ledger: LedgerLike, account: Account) -> None:
        """From the back, as if less had been charged; each once by its own key, and never more than was charged."""
        await ledger.grant(account, 5, key="paid", priority=90)
        await ledger.grant(account, 5, key="promo", priority=10)
        await ledger.reserve(account, 8, key="task")
        await ledger.confirm(account, 7, key="task")
        first = await ledger.refund(account, 3, key="back_1", hold_key="task")
        assert (first.captured, first.refunded, first.created) == (7, 3, True)
        again = await ledger.refund(account, 3, key="back_1", hold_key="task")
        assert again == msgspec.structs.replace(first, created=False)
        assert await ledger.balance(account) == Balance(available=6, spent=4)
        assert (await ledger.grant(account, 5, key="paid", priority=90)).remaining == 5
        assert (await ledger.grant(account, 5, key="promo", priority=10)).remaining == 1
        refusal = await _raises(RefundExceedsCharge, ledger.refund(account, 5, key="back_2", hold_key="task"))
        assert refusal.facts["charged"] == 4
        await ledger.refund(account, 4, key="back_2", hold_key="task")
        await _raises(RefundExceedsCharge, ledger.refund(account, 1, key="back_3", hold_key="task"))
        assert not (await ledger.confirm(account, 7, key="task")).created
        assert (await ledger.reserve(account, 10, key="next")).created

    async def test_a_refund_to_a_grant_that_has_expired_is_expired(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """The other grant's share of it is available again, until that one's time."""
        ends = clock.now_us() + 10_000_000
        await ledger.grant(account, 3, key="promo", expires_at_us=ends)
        await ledger.grant(account, 3, key="paid", expires_at_us=ends + 10_000_000)
        await ledger.reserve(account, 6, key="task")
        await ledger.confirm(account, key="task")
        clock.advance(10)
        await ledger.refund(account, 6, key="back", hold_key="task")
        assert await ledger.balance(account) == Balance(available=3, expired=3)
        [entry] = (await ledger.history(account.tenant, account.subject, limit=1)).items
        assert (entry.kind, entry.available_change, entry.expired_change) == ("refunded", 3, 3)
        clock.advance(10)
        assert await ledger.balance(account) == Balance(expired=6)

    async def test_a_confirm_above_the_hold_is_the_callers_choice(self, ledger: LedgerLike, account: Account) -> None:
        """``overage="available"`` takes the rest from the balance, or, if that is too little, changes nothing."""
        await ledger.grant(account, 6, key="paid", priority=90)
        await ledger.grant(account, 3, key="promo", priority=10)
        await ledger.reserve(account, 4, key="task")
        await _raises(ChargeExceedsHold, ledger.confirm(account, 6, key="task"))
        refusal = await _raises(InsufficientQuota, ledger.confirm(account, 10, key="task", overage="available"))
        assert (refusal.facts["amount"], refusal.facts["available"]) == (6, 5)
        assert await ledger.balance(account) == Balance(available=5, reserved=4)
        confirmed = await ledger.confirm(account, 6, key="task", overage="available")
        assert (confirmed.amount, confirmed.captured, confirmed.created) == (4, 6, True)
        assert not (await ledger.confirm(account, 6, key="task")).created
        assert await ledger.balance(account) == Balance(available=3, spent=6)
        await ledger.refund(account, 6, key="back", hold_key="task")
        assert (await ledger.grant(account, 6, key="paid", priority=90)).remaining == 6

    async def test_a_late_confirm_is_the_callers_choice(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """``late="available"`` charges the balance once for what a timed-out hold had left, if that still covers it."""
        await ledger.grant(account, 10, key="order")
        await ledger.reserve(account, 6, key="task", ttl_s=30)
        await ledger.capture(account, 1, key="page", hold_key="task")
        clock.advance(30)
        await ledger.reserve(account, 6, key="other")
        await _raises(HoldExpired, ledger.confirm(account, 2, key="task"))
        await _raises(InsufficientQuota, ledger.confirm(account, key="task", late="available"))
        await _raises(ChargeExceedsHold, ledger.confirm(account, 6, key="task", late="available"))
        assert await ledger.balance(account) == Balance(available=3, reserved=6, spent=1)
        late = await ledger.confirm(account, 2, key="task", late="available")
        assert (late.phase, late.captured, late.created) == ("confirmed", 3, True)
        assert not (await ledger.confirm(account, 2, key="task", late="available")).created
        await _raises(KeyConflict, ledger.confirm(account, 3, key="task", late="available"))
        await _raises(HoldConfirmed, ledger.cancel(account, key="task"))
        await ledger.cancel(account, key="cancelled")
        await _raises(HoldCancelled, ledger.confirm(account, 1, key="cancelled", late="available"))
        assert await ledger.balance(account) == Balance(available=1, reserved=6, spent=3)

    async def test_several_accounts_are_held_together_or_not_at_all(self, ledger: LedgerLike, account: Account) -> None:
        """The refusal names the account that lacks; the holds are settled one by one under the one key."""
        cap = Account(account.tenant, account.subject, "daily_cap")
        await ledger.grant(account, 10, key="order")
        both = [(account, 4), (cap, 1)]
        refusal = await _raises(InsufficientQuota, ledger.reserve_all(both, key="task"))
        assert (refusal.facts["subject"], refusal.facts["unit"], refusal.facts["amount"]) == ("u_7", "daily_cap", 1)
        assert await ledger.balance(account) == Balance(available=10)
        await ledger.grant(cap, 1, key="today")
        holds = await ledger.reserve_all(both, key="task")
        assert [(hold.unit, hold.key, hold.amount, hold.created) for hold in holds] == [
            ("credits", "task", 4, True),
            ("daily_cap", "task", 1, True),
        ]
        again = await ledger.reserve_all(both[::-1], key="task")
        assert again == [msgspec.structs.replace(hold, created=False) for hold in holds[::-1]]
        await _raises(InsufficientQuota, ledger.reserve_all(both, key="next"))
        assert await ledger.balance(account) == Balance(available=6, reserved=4)
        await ledger.capture(cap, 1, key="page", hold_key="task")
        await ledger.confirm(account, 3, key="task")
        await ledger.cancel(cap, key="task")
        assert (await ledger.balance(account), await ledger.balance(cap)) == (
            Balance(available=7, spent=3),
            Balance(spent=1),
        )

    async def test_a_key_of_several_accounts_belongs_to_these(self, ledger: LedgerLike, account: Account) -> None:
        """Another amount, set of accounts or a single hold under it conflicts; so does it under a single hold's key."""
        cap, points = (Account(account.tenant, account.subject, unit) for unit in ("daily_cap", "points"))
        for one in (account, cap, points):
            await ledger.grant(one, 10, key=f"g_{one.unit}")
        await ledger.reserve_all([(account, 4), (cap, 1)], key="task")
        await ledger.reserve(cap, 1, key="single")
        conflicts: list[Awaitable[object]] = [
            ledger.reserve_all([(account, 4), (cap, 2)], key="task"),
            ledger.reserve_all([(account, 4)], key="task"),
            ledger.reserve_all([(account, 4), (cap, 1), (points, 1)], key="task"),
            ledger.reserve_all([(account, 4), (cap, 1)], key="task", ttl_s=60),
            ledger.reserve(cap, 1, key="task"),
            ledger.confirm(points, key="task"),
            ledger.cancel(points, key="task"),
            ledger.reserve_all([(account, 1), (cap, 1)], key="single"),
        ]
        for conflict in conflicts:
            await _raises(KeyConflict, conflict)
        for one in (account, cap):
            await ledger.cancel(one, key="task")
            assert await ledger.balance(one) == Balance(available=10 if one is account else 9, reserved=one is cap)

    async def test_a_cancel_before_a_hold_over_several_wins(self, ledger: LedgerLike, account: Account) -> None:
        """Each account's cancel leaves its own tombstone, and one is enough to refuse them all."""
        cap = Account(account.tenant, account.subject, "daily_cap")
        for one in (account, cap):
            await ledger.grant(one, 10, key=f"g_{one.unit}")
        await ledger.cancel(cap, key="one")
        for one in (account, cap):
            assert (await ledger.cancel(one, key="both")).created
            assert not (await ledger.cancel(one, key="both")).created
        for key in ("one", "both"):
            await _raises(HoldCancelled, ledger.reserve_all([(account, 4), (cap, 1)], key=key))
        assert await ledger.balance(account) == Balance(available=10)

    async def test_accounts_held_in_any_order_do_not_block_each_other(
        self, ledger: LedgerLike, account: Account
    ) -> None:
        """Twenty callers name two accounts in either order: as many succeed as there are units, and none deadlocks."""
        cap = Account(account.tenant, account.subject, "daily_cap")
        await ledger.grant(account, 100, key="order")
        await ledger.grant(cap, 5, key="today")
        both = [(account, 2), (cap, 1)]
        calls = [ledger.reserve_all(both[:: (-1) ** number], key=f"task_{number // 2}") for number in range(20)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(answer, list) and answer[0].created for answer in answers) == 5
        assert all(isinstance(answer, list | InsufficientQuota) for answer in answers)
        assert (await ledger.balance(account)).reserved == 10

    async def test_history_names_the_hold_of_a_capture_and_a_refund(self, ledger: LedgerLike, account: Account) -> None:
        """Under their own keys, in order, with what they moved."""
        await ledger.grant(account, 10, key="order")
        await ledger.reserve(account, 6, key="task")
        await ledger.capture(account, 2, key="page", hold_key="task", reason="page 1")
        await ledger.confirm(account, 8, key="task", overage="available")
        await ledger.refund(account, 9, key="back", hold_key="task")
        told = [
            (e.kind, e.key, e.hold_key, e.amount, e.available_change, e.reserved_change, e.spent_change)
            for e in (await ledger.history(account.tenant, account.subject, limit=3)).items
        ]
        assert told == [
            ("refunded", "back", "task", 9, 9, 0, -9),
            ("confirmed", "task", "", 8, -4, -4, 8),
            ("captured", "page", "task", 2, 0, -2, 2),
        ]

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
        """Ten callers with the same key share one hold; one of them made it. The same goes for every other call."""
        granted = await asyncio.gather(*(ledger.grant(account, 10, key="order") for _ in range(10)))
        holds = await asyncio.gather(*(ledger.reserve(account, 2, key="task") for _ in range(10)))
        confirmed = await asyncio.gather(*(ledger.confirm(account, key="task") for _ in range(10)))
        for answers in (granted, holds, confirmed):
            assert len({answer.id for answer in answers}) == 1
            assert [answer.created for answer in answers].count(True) == 1
        assert await ledger.balance(account) == Balance(available=8, spent=2)
        await ledger.reserve(account, 3, key="open")
        captured = await asyncio.gather(*_ten(ledger.capture, account, key="page", hold_key="open"))
        refunded = await asyncio.gather(*_ten(ledger.refund, account, key="back", hold_key="task"))
        for answers in (captured, refunded):
            assert [answer.created for answer in answers].count(True) == 1
        assert await ledger.balance(account) == Balance(available=6, reserved=2, spent=2)

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
            (BadAmount, ledger.capture(account, 0, key="k", hold_key="h")),
            (BadAmount, ledger.refund(account, 0, key="k", hold_key="h")),
            (BadAmount, ledger.reserve_all([(account, 0)], key="k")),
            (BadName, ledger.capture(account, 1, key="k", hold_key="")),
            (BadName, ledger.refund(account, 1, key="k", hold_key=" ")),
            (BadAccounts, ledger.reserve_all([], key="k")),
            (BadAccounts, ledger.reserve_all([(account, 1), (account, 1)], key="k")),
            (BadAccounts, ledger.reserve_all([(account, 1), (Account("other", "u", "credits"), 1)], key="k")),
            (
                BadAccounts,
                ledger.reserve_all([(Account(account.tenant, f"u{n}", "credits"), 1) for n in range(17)], key="k"),
            ),
            *((BadName, ledger.grant(account, 1, key=key)) for key in ("", " k", "k\n", "钥", "k" * 201)),
            (BadName, ledger.grant(Account(account.tenant, "", "credits"), 1, key="k")),
            (BadName, ledger.grant(Account(account.tenant, "u", "c" * 33), 1, key="k")),
            (BadReason, ledger.grant(account, 1, key="k", reason="x" * 201)),
            (BadPeriod, ledger.grant(account, 1, key="k", expires_at_us=clock.now_us())),
            (BadPeriod, ledger.grant(account, 1, key="k", effective_at_us=soon, expires_at_us=soon)),
            (BadPeriod, ledger.grant(account, 1, key="k", expires_at_us=-1)),
            *((BadAmount, ledger.charge(account, amount, key="k")) for amount in (0, -1, 2**53)),
            (BadAmount, ledger.allow(account, 0, key="k", every="day")),
            (BadAmount, ledger.allow(account, 1, key="k", every="day", priority=101)),
            (BadCalendar, ledger.allow(account, 1, key="k", every="year")),
            (BadCalendar, ledger.allow(account, 1, key="k", every="day", anchor="end")),
            (BadCalendar, ledger.allow(account, 1, key="k", every="day", zone="Nowhere/Land")),
            (BadCalendar, ledger.allow(account, 1, key="k", every="day", zone="x" * 65)),
            (BadPeriod, ledger.allow(account, 1, key="k", every="day", until_us=clock.now_us())),
            (BadPeriod, ledger.allow(account, 1, key="k", every="day", starts_at_us=soon, until_us=soon)),
            (BadPeriod, ledger.allow(account, 1, key="k", every="day", starts_at_us=-1)),
            (AllowanceUnknown, ledger.disallow(account, key="k")),
            *(
                (BadPeriod, ledger.reserve(account, 1, key="k", ttl_s=ttl))
                for ttl in (0.0, -1.0, 1e9, float("nan"), "1")
            ),
            *((BadPolicy, ledger.charge(account, 1, key="k", overage=word)) for word in ("available", "Debt")),
            *((BadPolicy, ledger.confirm(account, key="k", overage=word)) for word in ("avaliable", None)),
            *((BadPolicy, ledger.confirm(account, key="k", late=word)) for word in ("avaliable", "debt")),
        ]
        for error, call in refused:
            await _raises(error, call)
        await ledger.grant(account, MAX_UNITS, key="all")
        await _raises(BalanceLimit, ledger.grant(account, 1, key="k"))
        await ledger.reserve(account, 1, key="one")
        await _raises(BalanceLimit, ledger.charge(account, MAX_UNITS, key="k", overage="debt"))
        await ledger.cancel(account, key="one")
        await ledger.allow(account, 1, key="k", every="day")
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

    # Charges without a hold, and debts

    async def test_a_charge_needs_no_hold(self, ledger: LedgerLike, account: Account) -> None:
        """It charges at once and once, in burn order; too little refuses it and leaves its key free."""
        await ledger.grant(account, 3, key="paid", priority=90)
        await ledger.grant(account, 3, key="promo", priority=10)
        await _raises(InsufficientQuota, ledger.charge(account, 7, key="sms"))
        charged = await ledger.charge(account, 4, key="sms", reason="two texts")
        assert (charged.phase, charged.amount, charged.captured, charged.created) == ("confirmed", 0, 4, True)
        assert await ledger.charge(account, 4, key="sms") == msgspec.structs.replace(charged, created=False)
        assert await ledger.balance(account) == Balance(available=2, spent=4)
        assert (await ledger.grant(account, 3, key="promo", priority=10)).remaining == 0
        entry = (await ledger.history(account.tenant, account.subject, limit=1)).items[0]
        assert (entry.kind, entry.key, entry.amount, entry.reason) == ("charged", "sms", 4, "two texts")
        assert (entry.available_change, entry.reserved_change, entry.spent_change) == (-4, 0, 4)

    async def test_a_charges_key_is_a_holds(self, ledger: LedgerLike, account: Account) -> None:
        """A hold and a charge never share one; what was charged can be refunded by it, and nothing else be done."""
        await ledger.grant(account, 10, key="order")
        await ledger.charge(account, 4, key="sms")
        await ledger.reserve(account, 4, key="task")
        conflicts: list[Awaitable[object]] = [
            ledger.charge(account, 5, key="sms"),
            ledger.reserve(account, 4, key="sms"),
            ledger.charge(account, 4, key="task"),
            ledger.confirm(account, 5, key="sms"),
            ledger.charge(Account(account.tenant, "u_8", "credits"), 4, key="sms", overage="debt"),
        ]
        for conflict in conflicts:
            await _raises(KeyConflict, conflict)
        await _raises(HoldConfirmed, ledger.cancel(account, key="sms"))
        await _raises(HoldConfirmed, ledger.capture(account, 1, key="page", hold_key="sms"))
        assert (await ledger.refund(account, 3, key="back", hold_key="sms")).refunded == 3
        assert await ledger.balance(account) == Balance(available=5, reserved=4, spent=1)
        await ledger.cancel(account, key="late")
        await _raises(HoldCancelled, ledger.charge(account, 1, key="late"))

    async def test_a_debt_is_paid_from_the_next_units(self, ledger: LedgerLike, account: Account) -> None:
        """What a confirm may owe is spent at once; nothing is available before that is paid, by however many grants."""
        await ledger.grant(account, 10, key="order")
        await ledger.reserve(account, 4, key="task")
        await _raises(InsufficientQuota, ledger.confirm(account, 13, key="task", overage="available"))
        owing = await ledger.confirm(account, 13, key="task", overage="debt")
        assert (owing.phase, owing.captured, owing.owed) == ("confirmed", 13, 3)
        assert await ledger.confirm(account, 13, key="task") == msgspec.structs.replace(owing, created=False)
        assert await ledger.balance(account) == Balance(spent=13, debt=3)
        await _raises(InsufficientQuota, ledger.reserve(account, 1, key="next"))
        assert (await ledger.grant(account, 2, key="order_2")).remaining == 0
        assert await ledger.balance(account) == Balance(spent=13, debt=1)
        assert (await ledger.grant(account, 2, key="order_3")).remaining == 1
        assert await ledger.balance(account) == Balance(available=1, spent=13)
        assert (await ledger.confirm(account, 13, key="task")).owed == 0
        told = [
            (e.kind, e.key, e.amount, e.available_change, e.spent_change, e.debt_change, e.debt)
            for e in (await ledger.history(account.tenant, account.subject, limit=5)).items
        ]
        assert told == [
            ("repaid", "order_3", 1, -1, 0, -1, 0),
            ("granted", "order_3", 2, 2, 0, 0, 1),
            ("repaid", "order_2", 2, -2, 0, -2, 1),
            ("granted", "order_2", 2, 2, 0, 0, 3),
            ("confirmed", "task", 13, -6, 13, 3, 3),
        ]

    async def test_whatever_becomes_available_pays_a_debt(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """A cancelled hold, one that times out, a refund, a grant that begins: none leaves units beside a debt."""
        begins = clock.now_us() + 40_000_000
        await ledger.grant(account, 12, key="order")
        await ledger.grant(account, 3, key="later", effective_at_us=begins)
        await ledger.charge(account, 2, key="paid")
        for key in ("cancelled", "timed_out"):
            await ledger.reserve(account, 5, key=key, ttl_s=30)
        await ledger.charge(account, 20, key="owing", overage="debt")
        assert await ledger.balance(account) == Balance(reserved=10, spent=22, pending=3, debt=20)
        await ledger.cancel(account, key="cancelled")
        assert await ledger.balance(account) == Balance(reserved=5, spent=22, pending=3, debt=15)
        await ledger.refund(account, 2, key="back", hold_key="paid")
        assert await ledger.balance(account) == Balance(reserved=5, spent=20, pending=3, debt=13)
        clock.advance(30)
        assert await ledger.balance(account) == Balance(spent=20, pending=3, debt=8)
        clock.advance(10)
        assert await ledger.balance(account) == Balance(spent=20, debt=5)
        await ledger.sweep()
        assert await ledger.balance(account) == Balance(spent=20, debt=5)
        history = await ledger.history(account.tenant, account.subject, limit=4)
        assert [(entry.kind, entry.key) for entry in history.items] == [
            ("repaid", "later"),
            ("activated", "later"),
            ("repaid", "timed_out"),
            ("hold_expired", "timed_out"),
        ]

    async def test_a_refund_undoes_what_was_never_paid_first(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """Then what was paid last, to the grant that paid: units of an expired one do not come back through a debt."""
        promo = {"expires_at_us": clock.now_us() + 10_000_000}
        await ledger.grant(account, 2, key="order")
        await ledger.charge(account, 7, key="task", overage="debt")
        await ledger.grant(account, 3, key="promo", **promo)
        assert await ledger.balance(account) == Balance(spent=7, debt=2)
        assert (await ledger.refund(account, 3, key="back_1", hold_key="task")).owed == 0
        assert await ledger.balance(account) == Balance(available=1, spent=4)
        assert (await ledger.grant(account, 3, key="promo", **promo)).remaining == 1
        clock.advance(10)
        await ledger.refund(account, 3, key="back_2", hold_key="task")
        assert await ledger.balance(account) == Balance(available=1, spent=1, expired=3)
        await _raises(RefundExceedsCharge, ledger.refund(account, 2, key="back_3", hold_key="task"))

    async def test_the_longest_owed_is_paid_first(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """A grant pays the holds in the order in which they came to owe."""
        await ledger.grant(account, 2, key="order")
        for key in ("late", "early"):
            await ledger.reserve(account, 1, key=key)
        for key in ("early", "late"):
            await ledger.confirm(account, 4, key=key, overage="debt")
            clock.advance(1)
        await ledger.grant(account, 4, key="order_2")
        owed = [(await ledger.confirm(account, 4, key=key)).owed for key in ("early", "late")]
        assert owed == [0, 2]

    async def test_an_account_may_begin_with_a_debt(self, ledger: LedgerLike, account: Account) -> None:
        """What is charged that way opens it, as a grant does; without, it is refused."""
        await _raises(InsufficientQuota, ledger.charge(account, 3, key="sms"))
        assert (await ledger.charge(account, 3, key="sms", overage="debt")).owed == 3
        assert await ledger.accounts(account.tenant, account.subject) == [
            AccountBalance(unit="credits", spent=3, debt=3)
        ]
        await ledger.grant(account, 5, key="order")
        assert await ledger.balance(account) == Balance(available=2, spent=3)

    async def test_a_late_confirm_makes_no_debt(self, ledger: LedgerLike, clock: ManualClock, account: Account) -> None:
        """Its hold has timed out and promised nothing any more: the balance covers all of it, or it is refused."""
        await ledger.grant(account, 4, key="order")
        await ledger.reserve(account, 4, key="task", ttl_s=30)
        clock.advance(30)
        await _raises(HoldExpired, ledger.confirm(account, 4, key="task", overage="debt"))
        await _raises(InsufficientQuota, ledger.confirm(account, 5, key="task", overage="debt", late="available"))
        assert await ledger.balance(account) == Balance(available=4)
        assert (await ledger.confirm(account, 4, key="task", overage="debt", late="available")).owed == 0

    async def test_debts_at_once_are_owed_once(self, ledger: LedgerLike, account: Account) -> None:
        """Ten callers with one key owe together what one owes; ten grants pay it once."""
        owing = await asyncio.gather(*(ledger.charge(account, 5, key="sms", overage="debt") for _ in range(10)))
        assert [hold.created for hold in owing].count(True) == 1
        await asyncio.gather(*(ledger.grant(account, 1, key=f"order_{number}") for number in range(10)))
        assert await ledger.balance(account) == Balance(available=5, spent=5)

    # Allowances

    async def test_an_allowance_is_there_in_every_period(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """Looked at or not, and gone at its end; a period in which nobody asks leaves no entry."""
        await self._at(clock, "2026-03-04T12:00")
        daily = await ledger.allow(account, 5, key="free", every="day", reason="每日免费")
        midnight = self._us("2026-03-05T00:00")
        assert (daily.amount, daily.renews_at_us, daily.until_us, daily.created) == (5, midnight, None, True)
        assert await ledger.balance(account) == Balance(available=5)
        await ledger.charge(account, 2, key="wednesday")
        await self._at(clock, "2026-03-04T23:59:59.999999")
        assert await ledger.balance(account) == Balance(available=3, spent=2)
        await self._at(clock, "2026-03-05T00:00")
        # A balance with tx= would ask for the day's units, and that is an entry.
        shown = AccountBalance(unit="credits", available=5, spent=2, expired=3)
        assert await ledger.accounts(account.tenant, account.subject) == [shown]
        await self._at(clock, "2026-03-08T09:00")
        assert await ledger.balance(account) == Balance(available=5, spent=2, expired=3)
        await ledger.charge(account, 5, key="sunday")
        await _raises(InsufficientQuota, ledger.charge(account, 1, key="too_much"))
        history = (await ledger.history(account.tenant, account.subject)).items
        assert [(entry.kind, entry.amount, entry.at_us) for entry in history] == [
            ("charged", 5, clock.now_us()),
            ("granted", 5, clock.now_us()),
            ("grant_expired", 3, midnight),
            ("charged", 2, self._us("2026-03-04T12:00")),
            ("granted", 5, self._us("2026-03-04T12:00")),
        ]
        assert (history[1].reason, history[1].key[-10:]) == ("每日免费", "2026-03-08")

    async def test_a_period_is_granted_once_however_many_ask(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """Twenty at once at its first moment, want one of five units each: five get one, and there is one grant."""
        await ledger.allow(account, 5, key="free", every="day")
        for day in ("2026-03-05T00:00", "2026-03-06T00:00"):
            await self._at(clock, day)
            calls = [ledger.reserve(account, 1, key=f"{day} {number}".replace(" ", "_")) for number in range(20)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert sum(isinstance(answer, Hold) for answer in answers) == 5
            assert all(isinstance(answer, Hold | InsufficientQuota) for answer in answers)
            history = await ledger.history(account.tenant, account.subject, limit=100)
            assert [entry.key[-10:] for entry in history.items if entry.kind == "granted"].count(day[:10]) == 1

    async def test_a_clock_that_is_set_back_grants_no_period_twice(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """After a midnight that was too early comes the day before, and then the same midnight again."""
        await self._at(clock, "2026-03-04T12:00")
        await ledger.allow(account, 5, key="free", every="day")
        for moment in ("2026-03-05T00:00", "2026-03-04T23:00", "2026-03-05T00:01"):
            await self._at(clock, moment)
            await ledger.charge(account, 1, key=moment)
        assert await ledger.balance(account) == Balance(available=2, spent=3, expired=5)

    async def test_an_allowance_follows_its_zone_and_its_start(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """A day of 23 hours, a month from the 31st: as a customer's calendar says."""
        await self._at(clock, "2024-01-31T18:30")
        monthly = {"every": "month", "anchor": "start", "starts_at_us": clock.now_us()}
        assert (await ledger.allow(account, 9, key="plan", **monthly)).renews_at_us == self._us("2024-02-29T18:30")
        await self._at(clock, "2024-02-29T18:30")
        assert (await ledger.allow(account, 9, key="plan", **monthly)).renews_at_us == self._us("2024-03-31T18:30")
        new_york = {"every": "day", "zone": "America/New_York"}
        await self._at(clock, "2024-03-10T14:00")  # there it is one hour into a Sunday that is one hour short
        sunday = await ledger.allow(account, 1, key="day", **new_york)
        assert sunday.renews_at_us == self._us("2024-03-11T12:00")

    async def test_an_allowance_has_a_beginning_and_an_end(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """No unit before the one, none after the other, whatever its periods are."""
        await self._at(clock, "2026-03-04T12:00")
        dates = {"starts_at_us": self._us("2026-03-05T12:00"), "until_us": self._us("2026-03-06T12:00")}
        allowance = await ledger.allow(account, 5, key="trial", every="day", **dates)
        assert (allowance.renews_at_us, allowance.until_us) == (dates["starts_at_us"], dates["until_us"])
        await self._at(clock, "2026-03-05T11:59:59.999999")
        assert await ledger.balance(account) == Balance()
        for moment in ("2026-03-05T12:00", "2026-03-06T00:00"):
            await self._at(clock, moment)
            await ledger.charge(account, 4, key=moment)
        assert await ledger.balance(account) == Balance(available=1, spent=8, expired=1)
        assert (await ledger.allow(account, 5, key="trial", every="day", **dates)).renews_at_us is None
        await self._at(clock, "2026-03-06T12:00")
        assert await ledger.balance(account) == Balance(spent=8, expired=2)
        await self._at(clock, "2026-03-08T12:00")
        assert await ledger.balance(account) == Balance(spent=8, expired=2)

    async def test_a_disallowed_allowance_ends_with_its_period(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """What was granted stays until then; a repeat changes nothing, and the same key allows nothing new."""
        await self._at(clock, "2026-03-04T12:00")
        await ledger.allow(account, 5, key="plan", every="day")
        await ledger.allow(account, 2, key="other", every="day")
        ended = await ledger.disallow(account, key="plan")
        assert (ended.until_us, ended.renews_at_us, ended.created) == (clock.now_us(), None, True)
        assert await ledger.disallow(account, key="plan") == msgspec.structs.replace(ended, created=False)
        assert not (await ledger.allow(account, 5, key="plan", every="day")).created
        assert await ledger.balance(account) == Balance(available=7)
        await self._at(clock, "2026-03-05T00:00")
        assert await ledger.balance(account) == Balance(available=2, expired=7)
        await _raises(AllowanceUnknown, ledger.disallow(account, key="nothing"))

    async def test_an_allowances_key_names_one(self, ledger: LedgerLike, account: Account) -> None:
        """The same call returns it; another amount, calendar, date or account conflicts; a grant may bear it, too."""
        other = Account(account.tenant, account.subject, "points")
        await ledger.grant(other, 1, key="order")
        daily = {"every": "day"}
        allowance = await ledger.allow(account, 5, key="plan", **daily)
        assert await ledger.allow(account, 5, key="plan", **daily) == msgspec.structs.replace(allowance, created=False)
        conflicts: list[Awaitable[object]] = [
            ledger.allow(account, 6, key="plan", **daily),
            ledger.allow(account, 5, key="plan", every="week"),
            ledger.allow(account, 5, key="plan", zone="UTC", **daily),
            ledger.allow(account, 5, key="plan", anchor="start", **daily),
            ledger.allow(account, 5, key="plan", priority=10, **daily),
            ledger.allow(account, 5, key="plan", until_us=MAX_UNITS - 1, **daily),
            ledger.allow(other, 5, key="plan", **daily),
            ledger.disallow(other, key="plan"),
        ]
        for conflict in conflicts:
            await _raises(KeyConflict, conflict)
        assert (await ledger.grant(account, 5, key="plan")).created
        assert await ledger.balance(account) == Balance(available=10)

    async def test_an_account_has_so_many_allowances(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """Sixteen that go on; one that has ended makes room, and all of them renew together."""
        await self._at(clock, "2026-03-04T12:00")
        for number in range(16):
            await ledger.allow(account, 1, key=f"plan_{number}", every="day")
        await _raises(AllowanceLimit, ledger.allow(account, 1, key="one_more", every="day"))
        await self._at(clock, "2026-03-05T12:00")
        assert await ledger.balance(account) == Balance(available=16, expired=16)
        await ledger.disallow(account, key="plan_3")
        assert (await ledger.allow(account, 1, key="one_more", every="day")).created
        assert await ledger.balance(account) == Balance(available=17, expired=16)

    async def test_an_allowance_works_with_the_longest_names(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """Its grants' keys and ids are made of its own id, so they fit whatever the owner's names and keys are."""
        long = Account(account.tenant.ljust(128, "x"), "s" * 128, "u" * 32)
        await self._at(clock, "2026-03-04T12:00")
        await ledger.allow(long, 5, key="k" * 200, every="month", zone="America/Argentina/ComodRivadavia")
        await ledger.charge(long, 5, key="h" * 200)
        await self._at(clock, "2026-04-04T12:00")
        await ledger.charge(long, 5, key="i" * 200)
        entries = (await ledger.history(long.tenant, long.subject)).items
        granted = [entry.key for entry in entries if entry.kind == "granted"]
        assert [key[-10:] for key in granted] == ["2026-04-01", "2026-03-01"]
        assert all(len(key) <= 48 for key in granted)

    async def test_a_cap_may_be_an_allowance(self, ledger: LedgerLike, clock: ManualClock, account: Account) -> None:
        """Held together with what is paid for, and there again on the next day."""
        cap = Account(account.tenant, account.subject, "daily_cap")
        await ledger.grant(account, 10, key="order")
        await ledger.allow(cap, 1, key="cap", every="day")
        both = [(account, 4), (cap, 1)]
        for day in ("2026-03-05T09:00", "2026-03-06T09:00"):
            await self._at(clock, day)
            assert all(hold.created for hold in await ledger.reserve_all(both, key=day, ttl_s=172_800))
            await _raises(InsufficientQuota, ledger.reserve_all([(account, 1), (cap, 1)], key=f"{day}_again"))
        assert (await ledger.balance(cap)).reserved == 2

    async def test_an_allowance_pays_debts_once_somebody_asks(
        self, ledger: LedgerLike, clock: ManualClock, account: Account
    ) -> None:
        """The period's units begin to be with the first call in it, and pay what is owed then."""
        await self._at(clock, "2026-03-04T12:00")
        await ledger.allow(account, 3, key="free", every="day")
        await ledger.charge(account, 8, key="task", overage="debt")
        await self._at(clock, "2026-03-06T12:00")
        await ledger.sweep()
        assert await ledger.balance(account) == Balance(spent=8, debt=2), "a look shows what a call would find"
        await _raises(InsufficientQuota, ledger.reserve(account, 1, key="next"))
        await ledger.grant(account, 1, key="order")
        await self._at(clock, "2026-03-07T12:00")
        await ledger.charge(account, 2, key="next")
        assert await ledger.balance(account) == Balance(spent=10)

    async def _at(self, clock: ManualClock, moment: str) -> None:
        """Until the clocks of Shanghai show ``moment``."""
        clock.advance((self._us(moment) - clock.now_us()) / 1_000_000)

    def _us(self, moment: str) -> int:
        at = datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo("Asia/Shanghai"))
        return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _ten(call: Callable[..., Awaitable[Hold]], account: Account, **options: Any) -> list[Awaitable[Hold]]:
    return [call(account, 1, **options) for _ in range(10)]


async def _raises(expected: type[QuotaError], call: Awaitable[object]) -> QuotaError:
    try:
        answer = await call
    except expected as refusal:
        return refusal
    raise AssertionError(f"{expected.__name__} was not raised; the answer was {answer}")

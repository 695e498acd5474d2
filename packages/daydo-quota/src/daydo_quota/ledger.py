"""The noun: asks the planner, makes it so in the database, and tells those who listen."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Literal, cast

from msgspec import Meta
from msgspec.structs import asdict

from daydo_db import Database, Tx, UniqueViolation, Value, now_sql, taking_turns, whole
from daydo_db.paging import check_limit
from daydo_kernel import Clock, Config, Event, EventSink, Health, NoEvents, Page, Part, new_id

from . import arguments
from .audit import Auditor
from .batcher import Batcher, Bounds, Tell, WriteDraft, Written
from .blocks import Blocks, OpenHold, Terms
from .counts import Counts
from .draft import Draft, Drafts, DraftStore, Overtaken
from .enlisted import EnlistedStore
from .errors import QuotaError
from .free import FreeStore
from .history import History
from .memory import Memory
from .model import AccountBalance, AccountLike, Allowance, Audit, Balance, Entry, Grant, Hold, Overage, Policy
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
    Leg,
    Op,
    Refund,
    Reserve,
    ReserveAll,
    accounts_of,
)
from .periods import Anchor, Every
from .planner import balance_of, plan
from .rows import MAX_UNITS, AccountRow, EntryRow, Notice, Plan, Rules
from .store import Store, marks, read_unlocked
from .upkeep import LOOK_S, Upkeep

_MAX_UNITS_OF_A_SUBJECT = 100
_EVENTS = {"hold_expired": "expired", "grant_expired": "expired"}


class LedgerConfig(Config, frozen=True, kw_only=True):
    """Bounds of a :class:`Ledger`.

    Attributes:
        hold_ttl_s: how long a hold lasts unless the call says otherwise.
        max_hold_ttl_s: the longest a call may ask for.
        retries: how often a call of its own transaction is repeated after a deadlock, a lock timeout or a connection
            lost before COMMIT.
        batch_max: calls of its own transaction that are written together, at most.
        queue_max: calls that may wait to be written, those being written included; beyond that they raise
            :class:`QueueFull`.
        flushers: batches written at a time, so that one is decided here while the server carries out another; one on
            SQLite, which has one writer.
        busy_timeout_s: a call waits this long for an account that another transaction has, then :class:`AccountBusy`;
            the database's ``lock_timeout_s`` where that is shorter.
        busy_accounts: accounts that are waited for at a time, each with a connection; more of them wait their turn.
        settle_timeout_s: the end of a ``hold(…)`` block is asked for again this long while another transaction has the
            account or the database is away.
        remembered_rows: of accounts, their grants and open holds, so that a batch need not read what it finds as it was
            left; about half a kilobyte each.
        sweep_interval_s: pause between two looks for overdue accounts; 0 turns the sweeper off (nothing becomes
            wrong, history and events of idle accounts come later).
        sweep_accounts: accounts looked up at a time.
        sweep_holds: overdue holds closed in one transaction.
        audit_accounts: accounts that one statement of an audit compares.
        audit_rows: entries, grants, holds or amendments that one statement of an audit reads.
        audit_interval_s: from the beginning of one background audit to that of the next; 0 turns it off.
        audit_share: of one process's time, however many there are, that the background audit may take.
        entries_kept_s: entries older than this are rolled up into one per account; 0 keeps them for ever.
        roll_up_interval_s: pause between two rounds of the roll-up.
        roll_up_accounts: accounts that a process takes at a time in such a round.
        roll_up_rows: entries rolled up in one transaction.
        low_balance: by unit, the balance below which ``quota.low`` tells of an account; units that are not named have
            none.
        expiring_notice_s: so long before a grant expires ``quota.expiring`` tells of it, if units are left then; 0 for
            never, and never for grants that do not last longer than that. It counts for grants made from now on.
        health_timeout_s: ``health()`` answers within this.
        drain_s: leaving waits this long for open ``hold(…)`` blocks; what is left then times out by itself.
    """

    hold_ttl_s: Annotated[float, Meta(gt=0, le=31_536_000)] = 300.0
    max_hold_ttl_s: Annotated[float, Meta(gt=0, le=31_536_000)] = 604_800.0
    retries: Annotated[int, Meta(ge=0, le=100)] = 5
    batch_max: Annotated[int, Meta(ge=1, le=1_000)] = 128
    queue_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    flushers: Annotated[int, Meta(ge=1, le=64)] = 2
    busy_timeout_s: Annotated[float, Meta(gt=0, le=60)] = 2.0
    busy_accounts: Annotated[int, Meta(ge=1, le=1_000)] = 8
    settle_timeout_s: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    remembered_rows: Annotated[int, Meta(ge=0, le=10_000_000)] = 100_000
    sweep_interval_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    sweep_accounts: Annotated[int, Meta(ge=1, le=10_000)] = 100
    sweep_holds: Annotated[int, Meta(ge=1, le=10_000)] = 500
    audit_accounts: Annotated[int, Meta(ge=1, le=10_000)] = 100
    audit_rows: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    audit_interval_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 86_400.0
    audit_share: Annotated[float, Meta(gt=0, le=1)] = 0.05
    entries_kept_s: Annotated[float, Meta(ge=0, le=3_155_760_000)] = 0.0
    roll_up_interval_s: Annotated[float, Meta(ge=1, le=31_536_000)] = 3600.0
    roll_up_accounts: Annotated[int, Meta(ge=1, le=10_000)] = 100
    roll_up_rows: Annotated[int, Meta(ge=2, le=10_000)] = 500
    low_balance: Annotated[
        dict[Annotated[str, Meta(min_length=1, max_length=32)], Annotated[int, Meta(ge=1, le=MAX_UNITS)]],
        Meta(max_length=100),
    ] = {}  # noqa: RUF012 - copied by msgspec
    expiring_notice_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0
    health_timeout_s: Annotated[float, Meta(gt=0, le=60)] = 1.0
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hold_ttl_s > self.max_hold_ttl_s:
            raise ValueError("LedgerConfig.hold_ttl_s: more than max_hold_ttl_s, so no hold could be made")

    @property
    def rules(self) -> Rules:
        return Rules(self.low_balance, round(self.expiring_notice_s * 1_000_000))


class Ledger(Part):
    """Accounts of whole units: granted, held, charged, returned; each exactly once.

    Every writing call names its ``key``, unique per tenant (grants, holds, captures and refunds each have their own).
    The same call with the same key changes nothing and returns what is there with ``created=False``; with other
    parameters it raises :class:`KeyConflict`. So after any doubt, a timeout or a crash: call again with the same key.

    With ``tx=`` a call becomes part of the caller's transaction, at any isolation level: it locks the account until
    that transaction ends, and neither commits nor retries. Without, it is written in one of the ledger's, together with
    the other calls that are waiting; it never fails for another's sake.

    Besides the errors named below every call may raise :class:`daydo_db.DbError`, and BadName, BadAmount, BadPeriod,
    BadPolicy or BadReason for arguments that cannot be right; without ``tx=`` also AccountBusy (another transaction has
    the account), QueueFull and LedgerLeft. A call that raises has changed nothing, ``CommitUnknown`` excepted; one that
    is cancelled may have. With ``tx=`` one that fails half-way, or is cancelled there, ends the transaction: it can
    only be rolled back then. Calls at once in one transaction take turns.

    ``clock`` is for tests: it replaces the database's. ``events`` hears one event per history entry (``quota.granted``,
    ``.activated``, ``.held``, ``.captured``, ``.charged``, ``.confirmed``, ``.cancelled``, ``.refunded``, ``.repaid``,
    ``.expired``), inside its transaction, and two notices: ``quota.low`` when a change takes ``available`` below the
    unit's ``low_balance``, and ``quota.expiring`` once per grant, ``expiring_notice_s`` before its end.
    """

    def __init__(
        self,
        db: Database,
        config: LedgerConfig = LedgerConfig(),  # noqa: B008 - frozen
        *,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        self.db = db
        self.config = config
        self.clock = clock
        self.events: EventSink = events if events is not None else NoEvents()
        self._tells = not isinstance(self.events, NoEvents)
        self._rules = config.rules
        self._blocks = Blocks(self)
        self._history = History(db)
        self._memory = Memory(config.remembered_rows)
        self._drafts = Drafts(self._memory, self._rules, clock)
        self._batcher = self._new_batcher()
        self._counts = Counts()
        self.metrics = self._counts.metrics
        self.upkeep = Upkeep(db, config, clock, self._make_so, self._counts)

    async def grant(
        self,
        account: AccountLike,
        amount: int,
        *,
        key: str,
        source: str = "topup",
        priority: int = 50,
        effective_at_us: int | None = None,
        expires_at_us: int | None = None,
        tx: Tx | None = None,
        reason: str = "",
    ) -> Grant:
        """Give ``amount`` units; the account is opened if it is new.

        Args:
            source: where they come from, a word of yours: topup, promo, membership, refund, …
            priority: 0 to 100, smaller is used up first; then the earlier expiry, then the older grant.
            effective_at_us: from when they can be held (None: now).
            expires_at_us: when what is left of them goes (None: never). What is held then may still be confirmed.

        Raises:
            KeyConflict: the key belongs to another grant.
            BadPeriod: it would expire before it begins, or has already.
            BalanceLimit: more than 2⁵³ − 1 over the account's life.
        """
        self._require_started()
        op = GrantUnits(
            id=new_id("grant"),
            account=arguments.check_account(account),
            key=arguments.check_key(key),
            amount=arguments.check_amount(amount),
            source=arguments.check_name("source", source, arguments.MAX_SOURCE),
            priority=arguments.check_amount(priority, field="priority", least=0, most=arguments.MAX_PRIORITY),
            effective_at_us=arguments.check_instant("effective_at_us", effective_at_us),
            expires_at_us=arguments.check_instant("expires_at_us", expires_at_us),
            reason=arguments.check_reason(reason),
        )
        grant: Grant = await self._do(op, tx)
        return grant

    async def allow(
        self,
        account: AccountLike,
        amount: int,
        *,
        key: str,
        every: Every,
        zone: str = "Asia/Shanghai",
        anchor: Anchor = "calendar",
        source: str = "allowance",
        priority: int = 50,
        starts_at_us: int | None = None,
        until_us: int | None = None,
        tx: Tx | None = None,
        reason: str = "",
    ) -> Allowance:
        """Give ``amount`` units in every period, once; they expire at its end. The account is opened if it is new.

        A period's units are granted, as a grant of their own, by the first call for the account in that period, and
        :meth:`balance` shows them before that; a period in which nobody asks leaves no entry. So no job has to run.

        Args:
            every: ``"day"``, ``"week"`` or ``"month"``.
            zone: on whose wall clock, by its IANA name.
            anchor: ``"calendar"``: from 00:00, Monday, the first of the month; what is left of a period at the start
                counts as one. ``"start"``: from the day and time of ``starts_at_us``; or a short month's last.
            priority: as in :meth:`grant`.
            starts_at_us: no units before (None: now).
            until_us: no units after, also of the last period (None: for ever).

        Raises:
            KeyConflict: the key belongs to another allowance.
            BadCalendar: ``every``, ``zone`` or ``anchor`` is none.
            BadPeriod: it would end before it begins, or has already.
            AllowanceLimit: the account has 16 that go on.
        """
        self._require_started()
        arguments.check_calendar(every, zone, anchor)
        op = Allow(
            id=new_id("allow"),
            account=arguments.check_account(account),
            key=arguments.check_key(key),
            amount=arguments.check_amount(amount),
            every=every,
            zone=zone,
            anchor=anchor,
            source=arguments.check_name("source", source, arguments.MAX_SOURCE),
            priority=arguments.check_amount(priority, field="priority", least=0, most=arguments.MAX_PRIORITY),
            starts_at_us=arguments.check_instant("starts_at_us", starts_at_us),
            until_us=arguments.check_instant("until_us", until_us),
            reason=arguments.check_reason(reason),
        )
        allowance: Allowance = await self._do(op, tx)
        return allowance

    async def disallow(self, account: AccountLike, *, key: str, tx: Tx | None = None) -> Allowance:
        """End the allowance ``key``: no further period. The units of the current one stay until it ends.

        A repeat changes nothing. To allow more or less, disallow and :meth:`allow` under another key.

        Raises:
            AllowanceUnknown: there never was one under this key.
            KeyConflict: the key belongs to another account.
        """
        self._require_started()
        op = Disallow(account=arguments.check_account(account), key=arguments.check_key(key))
        allowance: Allowance = await self._do(op, tx)
        return allowance

    async def charge(
        self,
        account: AccountLike,
        amount: int,
        *,
        key: str,
        overage: Literal["reject", "debt"] = "reject",
        tx: Tx | None = None,
        reason: str = "",
    ) -> Hold:
        """Charge ``amount`` that was not held: for what is done already, or an adjustment downwards.

        It is a hold that is confirmed as it is made; ``key`` is a hold's, and :meth:`refund` returns it by that.

        Args:
            overage: ``"debt"`` charges what the balance does not cover, too; the account then owes it. No parameter of
                the key.

        Raises:
            InsufficientQuota: fewer are available. The key stays free.
            KeyConflict: the key belongs to another charge, or to a hold.
            HoldCancelled: a cancel of this key has come first.
            BalanceLimit: a debt would lift the account's total above 2⁵³ − 1.
        """
        self._require_started()
        arguments.check_choice("overage", overage, ("reject", "debt"))
        op = Charge(
            id=new_id("hold"),
            account=arguments.check_account(account),
            key=arguments.check_key(key),
            amount=arguments.check_amount(amount),
            overage=overage,
            reason=arguments.check_reason(reason),
        )
        hold: Hold = await self._do(op, tx)
        return hold

    async def reserve(
        self,
        account: AccountLike,
        amount: int,
        *,
        key: str,
        ttl_s: float | None = None,
        tx: Tx | None = None,
        reason: str = "",
    ) -> Hold:
        """Set ``amount`` units aside under ``key`` until confirm, cancel, or ``ttl_s`` seconds from now.

        A repeat returns the hold as it is now: look at ``phase`` where it may have been settled since.

        Raises:
            InsufficientQuota: fewer are available. The key stays free.
            KeyConflict: the key belongs to another hold.
            HoldCancelled: a cancel of this key has come first.
        """
        self._require_started()
        op = Reserve(
            id=new_id("hold"),
            account=arguments.check_account(account),
            key=arguments.check_key(key),
            amount=arguments.check_amount(amount),
            ttl_us=self._ttl_us(self.config.hold_ttl_s if ttl_s is None else ttl_s),
            ttl_given_us=None if ttl_s is None else self._ttl_us(ttl_s),
            reason=arguments.check_reason(reason),
        )
        hold: Hold = await self._do(op, tx)
        return hold

    async def reserve_all(
        self,
        amounts: Sequence[tuple[AccountLike, int]],
        *,
        key: str,
        ttl_s: float | None = None,
        tx: Tx | None = None,
        reason: str = "",
    ) -> list[Hold]:
        """Set units of several accounts aside under one ``key``, all or none: credits *and* a daily cap.

        The holds come in the order of ``amounts``; each is captured, confirmed, cancelled and times out by itself, as
        (account, ``key``). The order of ``amounts`` is no parameter: a repeat may have another.

        Raises:
            InsufficientQuota: ``subject`` and ``unit`` name the first account that lacks. The key stays free.
            KeyConflict: the key belongs to another hold, single or not.
            HoldCancelled: a cancel of this key has come first, on any of the accounts.
            BadAccounts: not 1 to 16 different accounts of one tenant.
        """
        self._require_started()
        owners = arguments.check_accounts([account for account, _ in amounts])
        op = ReserveAll(
            legs=tuple(
                Leg(new_id("hold"), owner, arguments.check_amount(amount))
                for owner, (_, amount) in zip(owners, amounts, strict=True)
            ),
            key=arguments.check_key(key),
            ttl_us=self._ttl_us(self.config.hold_ttl_s if ttl_s is None else ttl_s),
            ttl_given_us=None if ttl_s is None else self._ttl_us(ttl_s),
            reason=arguments.check_reason(reason),
        )
        holds: list[Hold] = await self._do(op, tx)
        return holds

    async def capture(
        self,
        account: AccountLike,
        amount: int,
        *,
        key: str,
        hold_key: str,
        tx: Tx | None = None,
        reason: str = "",
    ) -> Hold:
        """Charge ``amount`` of the hold ``hold_key`` at once; the hold stays open with what is left.

        ``key`` is the capture's own, so a hold may be captured several times. What was captured stays charged whatever
        becomes of the hold; :meth:`refund` returns it.

        Raises:
            HoldUnknown: nothing was ever held under ``hold_key``.
            HoldExpired, HoldCancelled, HoldConfirmed: it is over.
            ChargeExceedsHold: ``amount`` is more than the hold has left.
            KeyConflict: ``key`` belongs to another capture, or the hold to another account.
        """
        self._require_started()
        op = Capture(
            id=new_id("capture"),
            account=arguments.check_account(account),
            key=arguments.check_key(key),
            hold_key=arguments.check_name("hold_key", hold_key, arguments.MAX_KEY),
            amount=arguments.check_amount(amount),
            reason=arguments.check_reason(reason),
        )
        hold: Hold = await self._do(op, tx)
        return hold

    async def confirm(
        self,
        account: AccountLike,
        amount: int | None = None,
        *,
        key: str,
        overage: Overage = "reject",
        late: Policy = "reject",
        tx: Tx | None = None,
        reason: str = "",
    ) -> Hold:
        """Charge ``amount`` of the hold ``key`` and close it; the rest returns to the grants it came from.

        After captures ``amount`` is what is charged *besides* them (None: all that is left; 0: nothing more).

        Args:
            overage: ``"available"`` takes what exceeds the hold from the account's balance; ``"debt"`` does, too, and
                charges what the balance does not cover: the account owes it, and pays from the next units it gets.
            late: ``"available"`` takes the charge from the account's balance if the hold has timed out; never a debt.

        Neither is a parameter of the key: they say what may happen, and a repeat returns what did.

        Raises:
            HoldUnknown: nothing was ever held under this key.
            HoldExpired, HoldCancelled: it is gone; its units were returned.
            ChargeExceedsHold: ``amount`` is more than the hold has left.
            InsufficientQuota: the balance does not cover what ``overage`` or ``late`` would take. Nothing was changed,
                the hold is as it was.
            KeyConflict: it was confirmed with another amount, or belongs to another account.
            BalanceLimit: a debt would lift the account's total above 2⁵³ − 1.
        """
        self._require_started()
        arguments.check_policies(overage, late)
        op = Confirm(
            account=arguments.check_account(account),
            key=arguments.check_key(key),
            amount=None if amount is None else arguments.check_amount(amount, least=0),
            reason=arguments.check_reason(reason),
            overage=overage,
            late=late,
        )
        hold: Hold = await self._do(op, tx)
        return hold

    async def cancel(self, account: AccountLike, *, key: str, tx: Tx | None = None, reason: str = "") -> Hold:
        """Return what is left of the hold ``key``: all that was not captured.

        A hold that has timed out is returned already, which is no error.

        An unknown key leaves a tombstone: the reserve that is still on its way will be refused.

        Raises:
            HoldConfirmed: it was charged.
            KeyConflict: the key belongs to another account.
        """
        self._require_started()
        op = Cancel(
            id=new_id("hold"),
            account=arguments.check_account(account),
            key=arguments.check_key(key),
            reason=arguments.check_reason(reason),
        )
        hold: Hold = await self._do(op, tx)
        return hold

    async def extend(self, account: AccountLike, *, key: str, ttl_s: float, tx: Tx | None = None) -> Hold:
        """Let the open hold ``key`` last at least ``ttl_s`` seconds from now; it never becomes shorter.

        Work that does not know how long it takes calls this now and then. It needs no key of its own, for a repeat
        asks for no more than the first; and it leaves no entry, for no unit moves. ``created`` says whether the
        time-out moved.

        Raises:
            HoldUnknown: nothing was ever held under this key.
            HoldExpired, HoldCancelled, HoldConfirmed: it is over.
            BadPeriod: ``ttl_s`` is not above 0 or exceeds ``max_hold_ttl_s``.
            KeyConflict: the key belongs to another account.
        """
        self._require_started()
        op = Extend(account=arguments.check_account(account), key=arguments.check_key(key), ttl_us=self._ttl_us(ttl_s))
        hold: Hold = await self._do(op, tx)
        return hold

    async def refund(
        self,
        account: AccountLike,
        amount: int,
        *,
        key: str,
        hold_key: str,
        tx: Tx | None = None,
        reason: str = "",
    ) -> Hold:
        """Return ``amount`` units that the hold ``hold_key`` was charged, to the grants they came from.

        ``key`` is the refund's own, so a hold may be refunded in parts. Units of a grant that has expired come back as
        expired: whoever shall have them all the same gets a :meth:`grant`, with ``source="refund"``.

        Raises:
            HoldUnknown: nothing was ever held under ``hold_key``.
            RefundExceedsCharge: ``amount`` is more than is charged and not yet refunded.
            KeyConflict: ``key`` belongs to another refund, or the hold to another account.
        """
        self._require_started()
        op = Refund(
            id=new_id("refund"),
            account=arguments.check_account(account),
            key=arguments.check_key(key),
            hold_key=arguments.check_hold_key(hold_key),
            amount=arguments.check_amount(amount),
            reason=arguments.check_reason(reason),
        )
        hold: Hold = await self._do(op, tx)
        return hold

    @asynccontextmanager
    async def hold(
        self,
        account: AccountLike,
        amount: int,
        *,
        key: str,
        ttl_s: float | None = None,
        overage: Overage = "reject",
        late: Policy = "reject",
        reason: str = "",
    ) -> AsyncIterator[OpenHold]:
        """Hold around a block: confirm ``work.charge`` (default: all) when it ends, cancel when it raises.

        ``await work.capture(…)`` charges a part at once, for good; ``await work.extend(ttl_s)`` asks for more time.
        ``overage`` and ``late`` are the confirm's.

        The settlement runs to its end also if the task is cancelled; one that is cancelled before its block begins
        gives back what it held. If the process dies, or the settlement fails (``work.charge`` above what was held, no
        database), the hold is left to its timeout. Where the key was held already by another open block
        (``work.hold.created`` is False), an error here leaves that hold alone: it is the other's to cancel.

        Raises:
            as :meth:`reserve` before the block, :meth:`confirm` after it; and before it, for a repeated key whose
            hold is over: HoldConfirmed, HoldCancelled, HoldExpired.
        """

        async def reserve() -> list[Hold]:
            return [await self.reserve(account, amount, key=key, ttl_s=ttl_s, reason=reason)]

        arguments.check_policies(overage, late)  # before the work, not after it
        async with self._blocks.around(reserve, Terms(overage, late, reason)) as [work]:
            yield work

    @asynccontextmanager
    async def hold_all(
        self,
        amounts: Sequence[tuple[AccountLike, int]],
        *,
        key: str,
        ttl_s: float | None = None,
        overage: Overage = "reject",
        late: Policy = "reject",
        reason: str = "",
    ) -> AsyncIterator[list[OpenHold]]:
        """As :meth:`hold`, around several accounts: all are held or none, and each has its own ``charge``::

            async with ledger.hold_all([(credits, 4), (cap, 1)], key="task_3") as (work, capped):
                work.charge = 2

        The holds come in the order of ``amounts``. When the block ends every one is settled, whatever becomes of the
        others' settlements: one that fails is left to its timeout, and raises (the first of them, if there are more;
        the others are logged).

        Raises:
            as :meth:`reserve_all` before the block, otherwise as :meth:`hold`.
        """
        arguments.check_policies(overage, late)
        reserve = partial(self.reserve_all, amounts, key=key, ttl_s=ttl_s, reason=reason)
        async with self._blocks.around(reserve, Terms(overage, late, reason)) as works:
            yield works

    async def balance(self, account: AccountLike, *, tx: Tx | None = None) -> Balance:
        """The balances as of now; all zero for an account that was never granted anything.

        With ``tx`` the account is locked, so what you read is what your next call finds. Without, nothing is locked or
        written, and you see what is committed, also inside a transaction of your own.
        """
        self._require_started()
        key = arguments.check_account(account)
        if tx is None:
            rows = await self._accounts("tenant = ? AND subject = ? AND unit = ?", *key)
            return (await self._current(rows))[0] if rows else Balance()
        balance: Balance = await self._do(CatchUp(account=key), tx)
        return balance

    async def accounts(self, tenant: str, subject: str) -> list[AccountBalance]:
        """All of a subject's balances as of now, by unit; the first 100. Writes nothing and sees what is committed."""
        self._require_started()
        rows = await self._accounts("tenant = ? AND subject = ?", *arguments.check_owner(tenant, subject))
        balances = await self._current(rows)
        return [AccountBalance(unit=row.unit, **asdict(now)) for (row, _), now in zip(rows, balances, strict=True)]

    async def history(
        self, tenant: str, subject: str, *, unit: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page[Entry]:
        """What happened, newest first, of one unit or of all; ``cursor`` is the previous page's ``next_cursor``.

        It shows what is written and committed. What time alone has done, an expiry, is written by the account's next
        writing call or by the sweeper, and dated when it was due; until then :meth:`balance` is ahead of it.

        A page costs the same however long the history is.

        Raises:
            BadName: the owner or ``unit`` is none that an account can have.
            CursorInvalid: the cursor is not one of ours, or it is of another subject or unit.
            BadRequest: ``limit`` is not between 1 and 100.
        """
        self._require_started()
        check_limit(limit)
        tenant, subject = arguments.check_owner(tenant, subject)
        condition, args = "tenant = ? AND subject = ?", [tenant, subject]
        if unit is not None:
            unit = arguments.check_name("unit", unit, arguments.MAX_UNIT)
            condition, args = f"{condition} AND unit = ?", [*args, unit]
        rows = await self._accounts(condition, *args, replica=True)
        return await self._history.page([row for row, _ in rows], (tenant, subject, unit), cursor, limit)

    async def sweep(self) -> int:
        """Write down what time has done to at most ``sweep_accounts`` accounts; returns to how many.

        Runs by itself every ``sweep_interval_s``. Balances do not need it: every call does this for its own account.
        Any number of processes may sweep at once; each passes over accounts that another one has.
        """
        self._require_started()
        return await self.upkeep.sweep()

    async def audit(self, tenant: str | None = None) -> Audit:
        """Recompute the books of ``tenant`` (None: of all) from their rows and entries; changes and locks nothing.

        It stops at the first row that disagrees and names it. Other calls may go on meanwhile: each comparison is of
        one moment. One statement reads at most ``audit_accounts`` accounts or ``audit_rows`` rows, so this takes a
        while, and disturbs nobody.
        """
        self._require_started()
        return await Auditor(self.db, tenant, self.config.audit_accounts, self.config.audit_rows).run()

    async def health(self) -> Health:
        """``down`` without database; ``degraded`` while an account has been overdue for more than three sweeps, and
        while the books disagree, as the last background audit found.

        ``detail`` has ``expiry_lag_s``, ``stuck_hold_s`` (of the oldest hold that is open beyond its time) and
        ``audit_age_s`` (since the background audit last came to an end), and where it found something ``disagreement``.
        """
        if not self._running:
            return Health(status="down")
        try:
            async with asyncio.timeout(self.config.health_timeout_s):
                found = await self.upkeep.condition()
        except Exception as error:
            return Health(status="down", detail={"error": type(error).__name__})
        late = self.config.sweep_interval_s > 0 and found.expiry_lag_s > 3 * self.config.sweep_interval_s
        detail: dict[str, str | int | float] = {
            "expiry_lag_s": round(found.expiry_lag_s, 3),
            "stuck_hold_s": round(found.stuck_hold_s, 3),
            "audit_age_s": round(found.audit_age_s, 3),
        }
        if found.disagreement is not None:
            wrong = found.disagreement
            detail["disagreement"] = f"account {wrong.account_id}, row {wrong.row}: {wrong.complaint}"
        return Health(status="degraded" if late or found.disagreement else "ok", detail=detail)

    # Life

    async def _start(self) -> None:
        self._blocks.start()
        self._batcher = self._new_batcher()
        await self.db.require_schema("daydo_quota")
        if self.config.sweep_interval_s > 0:
            # Jitter: processes that were started together should not look together.
            self._repeat(self.config.sweep_interval_s * random.uniform(0.8, 1.2), self.upkeep.sweep_all, "sweeper")  # noqa: S311
        if self.config.audit_interval_s > 0:
            self._spawn(self.upkeep.audit(), "audit")
        if self.config.entries_kept_s > 0:
            self._repeat(LOOK_S * random.uniform(0.8, 1.2), self.upkeep.roll_up_all, "roll-up")  # noqa: S311

    async def _drain(self) -> None:
        await self._blocks.ended()
        await self._batcher.drained()

    async def _close(self) -> None:
        self._batcher.leave()
        await self._blocks.answered()

    def _new_batcher(self) -> Batcher:
        bounds = Bounds(
            writers=self.config.flushers,
            lanes=self.config.busy_accounts,
            batch=self.config.batch_max,
            queue=self.config.queue_max,
            retries=self.config.retries,
            busy_timeout_s=self.config.busy_timeout_s,
        )
        # What an event sink writes does not go into one packet with what it tells of.
        behind = None if self._tells else self.db.pipelined()
        return Batcher(self.db, self._drafts.may_draft, self._draft, self._write, self._spawn, bounds, behind)

    # One operation

    def _ttl_us(self, ttl_s: float) -> int:
        return arguments.check_ttl(ttl_s, self.config.max_hold_ttl_s)

    async def _do(self, op: Op, tx: Tx | None) -> Any:
        # No _require_started here: blocks that are open when the ledger drains still settle.
        started = time.perf_counter()
        try:
            outcome = await (self._batcher.ask(op) if tx is None else self._apply(op, tx))
        finally:
            self._counts.answered(op, time.perf_counter() - started)
        if isinstance(outcome, QuotaError):
            self._counts.refused(op, outcome)
            raise outcome
        return outcome

    async def _apply(self, op: Op, tx: Tx) -> Any:
        """In the caller's transaction: a batch of one."""
        async with taking_turns(tx):
            store = EnlistedStore(tx, self.clock, self.db)
            decided = plan([op], *await store.read_enlisted(op), self._rules)
            if isinstance(decided.outcomes[0], QuotaError) and store.may_be_old:
                # What this call repeats, or is about, must not be refused for want of it.
                decided = plan([op], *await store.read_enlisted(op, sure=True), self._rules)
            try:
                with whole(tx, but=UniqueViolation):
                    await store.claim(decided)
            except UniqueViolation:
                decided = plan([op], *await store.read_enlisted(op, sure=True), self._rules)
                with whole(tx):
                    await store.claim(decided)
            with whole(tx):
                await self._make_so([op], decided, store)
        return decided.outcomes[0]

    def _draft(self, ops: Sequence[Op]) -> WriteDraft | None:
        """As the batcher's ``Decide``."""
        draft = self._drafts.draft(ops)
        return None if draft is None else partial(self._write_draft, draft)

    async def _write_draft(self, draft: Draft, tx: Tx, patience_s: float, tell: Tell) -> None:
        store = DraftStore(tx, self.clock, patience_s, draft, self._drafts.sent)
        tx.after_commit(partial(tell, draft.plan.outcomes))
        try:
            await self._make_so(draft.ops, draft.plan, store, last=True)
        except Overtaken:
            self._counts.batch("overtaken")
            self._drafts.failed(draft)
            raise
        self._counts.batch("drafted")
        self._drafts.came_true(draft, store.now_us)

    async def _write(self, ops: Sequence[Op], tx: Tx, patience_s: float, waits: bool, tell: Tell) -> Written:
        """As the batcher's ``Write``."""
        store = FreeStore(tx, self.clock, patience_s, self._memory)
        reading = await (store.read(ops) if waits else store.read_free(ops))
        self._drafts.told(reading.now_us)
        decided = plan(reading.ready, reading.state, reading.now_us, self._rules)
        left_out, outcomes = reading.held | reading.missing, iter(decided.outcomes)
        told = [next(outcomes) if left_out.isdisjoint(accounts_of(op)) else None for op in ops]
        tx.after_commit(partial(self._memory.learn, reading.sheets, decided))
        tx.after_commit(partial(tell, told))
        await self._make_so(reading.ready, decided, store, last=not waits)
        self._counts.batch("read")
        return Written(told, reading.held, reading.missing)

    async def _make_so(self, ops: Sequence[Op], decided: Plan, store: Store, *, last: bool = False) -> None:
        accounts = {row.id: row for row in decided.accounts}
        store.tx.after_commit(partial(self._counts.committed, ops, decided, accounts))
        await store.write(decided, last=last and not self._tells)
        if self._tells:
            for entry in decided.entries:
                await self.events.emit(_event(accounts[entry.account_id], entry), tx=store.tx)
            for notice in decided.notices:
                await self.events.emit(_notice(accounts[notice.account_id], notice), tx=store.tx)

    # Reading

    async def _accounts(self, condition: str, *args: Value, replica: bool = False) -> list[tuple[AccountRow, int]]:
        """Accounts by unit, each with the time at which it was read."""
        columns = ", ".join(AccountRow.__struct_fields__)
        result = await self.db.query(
            f"SELECT {columns}, {self._now} AS now_us FROM daydo_quota_account WHERE {condition} ORDER BY unit LIMIT ?",  # noqa: S608
            [*args, _MAX_UNITS_OF_A_SUBJECT],
            replica=replica,
        )
        return [(AccountRow(*row[:-1]), int(row[-1])) for row in result.rows]

    async def _current(self, rows: Sequence[tuple[AccountRow, int]]) -> list[Balance]:
        """What accounts amount to now. Nothing is written: writing down what is due is for writers and the sweeper."""
        known = {row.id: balance_of(row) for row, _ in rows}
        while due := [(row, now_us) for row, now_us in rows if _is_due(row, now_us)]:
            now_us = due[0][1]  # read by one statement, so the same for all
            states = await read_unlocked(self.db, [row for row, _ in due], now_us)
            overtaken = []
            for row, _ in due:
                if row.id in states:
                    key = (row.tenant, row.subject, row.unit)
                    [balance] = plan([CatchUp(account=key)], states[row.id], now_us).outcomes
                    if isinstance(balance, QuotaError):
                        raise balance
                    known[row.id] = cast("Balance", balance)
                else:
                    overtaken.append(row.id)
            rows = await self._accounts(f"id IN ({marks(overtaken)})", *overtaken) if overtaken else []
            # Whoever wrote between our statements has caught up, too.
            known |= {row.id: balance_of(row) for row, _ in rows}
        return list(known.values())

    @property
    def _now(self) -> str:
        return now_sql(self.db.dialect, self.clock)


def _is_due(row: AccountRow, now_us: int) -> bool:
    return min(row.next_due_at_us, row.renews_at_us) <= now_us


def _notice(account: AccountRow, notice: Notice) -> Event:
    data = {"unit": account.unit, **notice.facts}
    return Event(name=f"quota.{notice.name}", tenant=account.tenant, subject=account.subject, data=data)


def _event(account: AccountRow, entry: EntryRow) -> Event:
    data = {
        "unit": account.unit,
        "kind": entry.kind,
        "id": entry.op_id,
        "key": entry.op_key,
        "hold_key": entry.hold_key,
        "amount": entry.amount,
        "available": entry.available,
        "reserved": entry.reserved,
        "debt": entry.debt,
        "reason": entry.reason,
        "at_us": entry.at_us,
    }
    name = f"quota.{_EVENTS.get(entry.kind, entry.kind)}"
    return Event(name=name, tenant=account.tenant, subject=account.subject, data=data)

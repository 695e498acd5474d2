"""Random histories against the reference model: the planner alone with many, each database with some.

Uniformly random keys find little, so the rules draw from live holds, and one repeats an earlier call verbatim.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from copy import deepcopy
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from daydo_db import Database, migrate
from daydo_kernel import new_id
from daydo_kernel.testing import ManualClock
from daydo_quota import (
    Account,
    Allowance,
    Anchor,
    Balance,
    Every,
    Grant,
    Hold,
    Ledger,
    LedgerConfig,
    Overage,
    Policy,
    QuotaError,
)
from daydo_quota.ops import (
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
)
from daydo_quota.planner import plan
from daydo_quota.rows import (
    NEVER_US,
    AccountKey,
    AccountRow,
    AllowanceRow,
    AmendmentRow,
    EntryRow,
    GrantRow,
    HoldRow,
    Notice,
    Plan,
    Rules,
    State,
)
from daydo_quota.testing import LedgerModel, check_books

TTL_US = 300_000_000
SECOND_US = 1_000_000
# 2024-03-08: two days before America/New_York puts its clocks forward; four weeks later Lord Howe puts its back.
START_US = 1_709_900_000 * SECOND_US
RULES = Rules({"credits": 3}, 30 * SECOND_US)


class Books:
    """The tables as lists, for the planner alone; checks after every plan what must always hold."""

    def __init__(self) -> None:
        self.accounts: dict[AccountKey, AccountRow] = {}
        self.grants: dict[str, GrantRow] = {}
        self.holds: dict[str, HoldRow] = {}
        self.amendments: list[AmendmentRow] = []
        self.allowances: dict[str, AllowanceRow] = {}
        self.entries: list[EntryRow] = []
        self.told: list[Notice] = []

    def state(self, ops: list[Op], now_us: int) -> State:
        for op in ops:
            opens = isinstance(op, GrantUnits | Allow | Cancel) or (isinstance(op, Charge) and op.overage == "debt")
            if opens and op.account not in self.accounts:
                fresh = AccountRow(len(self.accounts) + 1, *op.account)
                self.accounts[op.account] = fresh
        later: dict[int, int] = {}
        for hold in self.holds.values():
            if hold.phase == "open" and hold.expires_at_us > now_us:
                later[hold.account_id] = min(later.get(hold.account_id, NEVER_US), hold.expires_at_us)
        grants, holds = list(self.grants.values()), list(self.holds.values())
        return State(dict(self.accounts), grants, holds, later, list(self.amendments), list(self.allowances.values()))

    def decide(self, ops: list[Op], now_us: int) -> Plan:
        state = self.state(ops, now_us)
        before = msgspec.json.encode(state.grants), msgspec.json.encode(state.holds)
        decided = plan(ops, state, now_us, RULES)
        assert before == (msgspec.json.encode(state.grants), msgspec.json.encode(state.holds)), "plan() is pure"
        return decided

    def run(self, ops: list[Op], now_us: int) -> list[Any]:
        decided = self.decide(ops, now_us)
        self.apply(decided)
        self.check()
        return decided.outcomes

    def apply(self, decided: Plan) -> None:
        for account in decided.accounts:
            self.accounts[account.tenant, account.subject, account.unit] = account
        self.grants |= {row.id: row for row in [*decided.grants, *decided.new_grants]}
        self.holds |= {row.id: row for row in [*decided.holds, *decided.new_holds]}
        self.amendments += decided.new_amendments
        self.allowances |= {row.id: row for row in [*decided.allowances, *decided.new_allowances]}
        self.told += decided.notices
        self.entries += decided.entries

    def check(self) -> None:
        for grant in self.grants.values():
            assert grant.granted == grant.remaining + grant.held + grant.spent + grant.expired
            assert min(grant.remaining, grant.held, grant.spent, grant.expired) >= 0
            assert (grant.phase == "closed") == (grant.remaining == grant.held == 0)
        for account in self.accounts.values():
            grants = [row for row in self.grants.values() if row.account_id == account.id]
            pending = sum(row.remaining for row in grants if row.phase == "pending")
            assert account.pending == pending
            assert account.available == sum(row.remaining for row in grants) - pending
            assert account.reserved == sum(row.held for row in grants)
            assert account.spent == sum(row.spent for row in grants) + account.debt
            assert account.debt == sum(row.owed for row in self.holds.values() if row.account_id == account.id)
            assert not (account.debt and account.available), "what is available pays the debt"
            assert account.expired == sum(row.expired for row in grants)
            holds = [row for row in self.holds.values() if row.account_id == account.id and row.phase == "open"]
            assert account.reserved == sum(row.amount - row.captured for row in holds)
            entries = [row for row in self.entries if row.account_id == account.id]
            assert [row.seq for row in entries] == list(range(1, account.seq + 1)), "no gap"
            assert [row.at_us for row in entries] == sorted(row.at_us for row in entries), "in the order of time"
            if entries:
                last = entries[-1]
                assert (last.available, last.reserved) == (account.available, account.reserved)
                assert (last.spent, last.expired, last.debt) == (account.spent, account.expired, account.debt)
            due = [
                *(row.expires_at_us for row in holds),
                *(row.effective_at_us for row in grants if row.phase == "pending"),
                *(min(row.expires_at_us, row.notice_at_us) for row in grants if row.phase == "live" and row.remaining),
            ]
            renewals = [row.next_at_us for row in self.allowances.values() if row.account_id == account.id]
            assert account.renews_at_us == min(renewals, default=NEVER_US)
            assert account.next_due_at_us <= min(due, default=NEVER_US)
        steps = [(row.op_id, row.step) for row in self.entries]
        assert len(steps) == len(set(steps)), "one of each step, one settlement per hold"
        for hold in self.holds.values():
            assert hold.amount == sum(part.amount for part in hold.parts)
            assert hold.captured == sum(part.used for part in hold.parts)
            assert hold.refunded == sum(part.refunded for part in hold.parts)
            assert all(0 <= part.refunded <= part.used for part in hold.parts)
            assert hold.phase != "open" or all(part.used <= part.amount for part in hold.parts)
            assert (hold.phase == "owing") == (hold.owed > 0)
        told = [notice.facts["id"] for notice in self.told if notice.name == "expiring"]
        assert len(told) == len(set(told)), "of each end once"
        for grant in self.grants.values():
            parts = [part for hold in self.holds.values() for part in hold.parts if part.grant_id == grant.id]
            assert grant.spent == sum(part.used - part.refunded for part in parts)


class PlannerUnderTest:
    """The planner with :class:`Books`, one operation a batch."""

    def __init__(self) -> None:
        self.books = Books()
        self.clock = ManualClock()
        self.tenant = "t"

    def call(self, op: Op, in_transaction: bool) -> Any:
        decided = self.books.decide([op], self.clock.now_us())
        [outcome] = decided.outcomes
        refused, looked = isinstance(outcome, QuotaError), isinstance(op, CatchUp)
        # As with a ledger: a caller's transaction is rolled back by a refusal, and a look without one writes nothing.
        if not (refused and in_transaction) and not (looked and not in_transaction):
            self.books.apply(decided)
            self.books.check()
        if refused:
            raise outcome
        return outcome

    def sweep(self) -> None:
        self.books.run([CatchUp(account=key, asked=False) for key in self.books.accounts], self.clock.now_us())

    def finish(self) -> None:
        self.books.check()


# By operation: the call it comes from, and which of its fields are that call's arguments.
CALLS: dict[type[Op], tuple[Callable[..., Any], tuple[str, ...]]] = {
    GrantUnits: (Ledger.grant, ("amount", "key", "priority", "effective_at_us", "expires_at_us")),
    Allow: (
        Ledger.allow,
        ("amount", "key", "every", "zone", "anchor", "priority", "starts_at_us", "until_us"),
    ),
    Disallow: (Ledger.disallow, ("key",)),
    Reserve: (Ledger.reserve, ("amount", "key", "ttl_us")),
    Charge: (Ledger.charge, ("amount", "key", "overage")),
    Capture: (Ledger.capture, ("amount", "key", "hold_key")),
    Confirm: (Ledger.confirm, ("amount", "key", "overage", "late")),
    Cancel: (Ledger.cancel, ("key",)),
    Extend: (Ledger.extend, ("key", "ttl_us")),
    Refund: (Ledger.refund, ("amount", "key", "hold_key")),
    CatchUp: (Ledger.balance, ()),
}


def _given(op: Op, names: tuple[str, ...]) -> dict[str, Any]:
    given = {name: getattr(op, name) for name in names}
    return given | {"ttl_us": op.ttl_given_us} if isinstance(op, Reserve) else given


def _seconds(us: int | None) -> float | None:
    return None if us is None else us / SECOND_US


class LedgerUnderTest:
    """Real ledgers on one database, driven from outside their event loop; any of them gets the next call."""

    def __init__(self, runner: asyncio.Runner, db: Database, ledgers: Sequence[Ledger], clock: ManualClock) -> None:
        self.runner, self.db, self.ledgers, self.clock = runner, db, ledgers, clock
        self.tenant = new_id("tenant")
        self._chosen = random.Random(1)

    @property
    def ledger(self) -> Ledger:
        return self._chosen.choice(self.ledgers)

    def call(self, op: Op, in_transaction: bool) -> Any:
        return self.runner.run(self._call(op, in_transaction))

    async def _call(self, op: Op, in_transaction: bool) -> Any:
        if not in_transaction:
            return await self._ask(op, {})
        async with self.db.transaction() as tx:
            return await self._ask(op, {"tx": tx})

    async def _ask(self, op: Op, options: dict[str, Any]) -> Any:
        if isinstance(op, ReserveAll):
            amounts = [(Account(*leg.account), leg.amount) for leg in op.legs]
            return await self.ledger.reserve_all(amounts, key=op.key, ttl_s=_seconds(op.ttl_given_us), **options)
        method, names = CALLS[type(op)]
        given = _given(op, names)
        if "ttl_us" in given:
            given["ttl_s"] = _seconds(given.pop("ttl_us"))
        return await method(self.ledger, Account(*op.account), **given, **options)

    def sweep(self) -> None:
        self.runner.run(self.ledger.sweep())

    def finish(self) -> None:
        self.runner.run(check_books(self.db))


AMOUNTS = st.integers(1, 12)
SECONDS = st.sampled_from([1, 1, 1, 1, 5, 10, 60, 300])
SOMETIMES = st.sampled_from([None, None, None, 1, 10, 60])
PRIORITY = st.sampled_from([10, 50])
WHO = st.sampled_from(["a", "a", "a", "b"])
OVERAGE = st.sampled_from(["reject", "available", "debt"])
LATE = st.sampled_from(["available", "available", "reject"])
KEYED = (GrantUnits, Allow, Reserve, Charge, Capture, Refund)
# Two of them changed their clocks within days of the tests' first moment; one is half an hour off.
ZONES = st.sampled_from(["America/New_York", "Australia/Lord_Howe", "Asia/Shanghai"])
PREFIXES: dict[type[Op], str] = {
    GrantUnits: "grant",
    Allow: "allow",
    Reserve: "hold",
    Charge: "hold",
    Cancel: "hold",
    Capture: "capture",
    Refund: "refund",
}


class History(RuleBasedStateMachine):
    """Every call goes to the ledger and to the model; answers, refusals and balances must agree."""

    under_test: Callable[[], PlannerUnderTest | LedgerUnderTest]

    def __init__(self) -> None:
        super().__init__()
        self.real = type(self).under_test()
        self.real.clock.advance((START_US - self.real.clock.now_us()) / SECOND_US)
        self.model = LedgerModel(TTL_US)
        self.model.wait_until(self.real.clock.now_us())
        self.calls: list[Op] = []

    def account(self, who: str) -> AccountKey:
        return (self.real.tenant, who, "credits")

    def call(self, op: Op, in_transaction: bool) -> None:
        self.calls.append(op)
        before = deepcopy(self.model) if in_transaction and self.model.allowances else None
        try:
            expected: object = self._ask_model(op, in_transaction)
        except QuotaError as refusal:
            expected = type(refusal)
            # The caller's transaction is rolled back, and with it what the call found due and wrote down.
            self.model = before or self.model
        try:
            answer = _summary(self.real.call(op, in_transaction))
        except QuotaError as refusal:
            answer = type(refusal)
        assert answer == expected, op

    def _ask_model(self, op: Op, in_transaction: bool) -> object:
        if isinstance(op, ReserveAll):
            amounts = [(leg.account, leg.amount) for leg in op.legs]
            return self.model.reserve_all(amounts, op.key, op.ttl_given_us)
        if isinstance(op, CatchUp):
            return self.model.ask(op.account) if in_transaction else self.model.balance(op.account)
        method, names = CALLS[type(op)]
        return getattr(self.model, method.__name__)(op.account, **_given(op, names))

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.real.clock.advance(seconds)
        self.model.wait_until(self.real.clock.now_us())

    @initialize(amount=st.integers(5, 30), ends=SOMETIMES, tx=st.booleans())
    def begin(self, amount: int, ends: int | None, tx: bool) -> None:
        self.grant("a", amount, 50, None, None, tx)
        self.grant("a", amount, 50, None, ends, tx)
        self.grant("a", amount // 2, 10, None, None, tx)
        self.grant("b", amount, 50, None, ends, tx)
        for number in range(1, 4):
            self._reserve("a", new_id("h"), min(amount, 3 * number), None if number > 1 else ends, tx)

    @rule(who=WHO, amount=AMOUNTS, priority=PRIORITY, begins=SOMETIMES, ends=SOMETIMES, tx=st.booleans())
    def grant(self, who: str, amount: int, priority: int, begins: int | None, ends: int | None, tx: bool) -> None:
        now_us = self.real.clock.now_us()
        self.call(
            GrantUnits(
                id=new_id("grant"),
                account=self.account(who),
                key=new_id("g"),
                amount=amount,
                source="topup",
                priority=priority,
                effective_at_us=None if begins is None else now_us + begins * SECOND_US,
                expires_at_us=None if ends is None else now_us + ends * SECOND_US,
                reason="",
            ),
            tx,
        )

    @rule(
        who=WHO,
        amount=st.integers(1, 6),
        every=st.sampled_from(["day", "day", "week", "month"]),
        zone=ZONES,
        anchor=st.sampled_from(["calendar", "calendar", "start"]),
        priority=PRIORITY,
        begins=st.sampled_from([None, None, -100_000, 60]),
        ends=st.sampled_from([None, None, None, 60, 100_000]),
        tx=st.booleans(),
    )
    def allow(
        self,
        who: str,
        amount: int,
        every: Every,
        zone: str,
        anchor: Anchor,
        priority: int,
        begins: int | None,
        ends: int | None,
        tx: bool,
    ) -> None:
        now_us = self.real.clock.now_us()
        op = Allow(
            id=new_id("allow"),
            account=self.account(who),
            key=new_id("a"),
            amount=amount,
            every=every,
            zone=zone,
            anchor=anchor,
            source="allowance",
            priority=priority,
            starts_at_us=None if begins is None else now_us + begins * SECOND_US,
            until_us=None if ends is None else now_us + ends * SECOND_US,
            reason="",
        )
        self.call(op, tx)

    @precondition(lambda self: self.model.allowances)
    @rule(data=st.data(), who=st.sampled_from([None, None, None, "a", "b"]), tx=st.booleans())
    def disallow(self, data: st.DataObject, who: str | None, tx: bool) -> None:
        _, key = data.draw(st.sampled_from(list(self.model.allowances)))
        account = self.model.allowances[self.real.tenant, key].account if who is None else self.account(who)
        self.call(Disallow(account=account, key=key), tx)

    @precondition(lambda self: self.model.allowances)
    @rule(data=st.data(), early_us=st.sampled_from([0, 0, 1]), periods=st.sampled_from([1, 1, 2, 3]))
    def a_period_ends(self, data: st.DataObject, early_us: int, periods: int) -> None:
        allowance = data.draw(st.sampled_from(list(self.model.allowances.values())))
        for _ in range(periods):
            ends_us = allowance.renews_at_us(self.model.now_us)
            if ends_us is not None:
                self.time_passes((ends_us - early_us - self.model.now_us) / SECOND_US)

    @rule(who=WHO, amount=AMOUNTS, overage=st.sampled_from(["reject", "debt"]), tx=st.booleans())
    def charge(self, who: str, amount: int, overage: Overage, tx: bool) -> None:
        op = Charge(
            id=new_id("hold"), account=self.account(who), key=new_id("h"), amount=amount, overage=overage, reason=""
        )
        self.call(op, tx)

    @rule(who=WHO, beyond=AMOUNTS, hold=st.booleans(), data=st.data(), tx=st.booleans())
    def owe(self, who: str, beyond: int, hold: bool, data: st.DataObject, tx: bool) -> None:
        account = self.account(who)
        amount = beyond + self.model.balance(account).available
        mine = [key for owner, key in self._live() if owner == account]
        if hold and mine:
            key = data.draw(st.sampled_from(mine))
            amount += self.model.holds[account, key].amount
            self.call(Confirm(account=account, key=key, amount=amount, reason="", overage="debt"), tx)
        else:
            op = Charge(id=new_id("hold"), account=account, key=new_id("h"), amount=amount, overage="debt", reason="")
            self.call(op, tx)

    @precondition(lambda self: any(hold.owed for hold in self.model.holds.values()))
    @rule(units=st.integers(1, 4), tx=st.booleans())
    def pay_a_part(self, units: int, tx: bool) -> None:
        debtors = {account for (account, _), hold in self.model.holds.items() if hold.owed}
        for _, who, _ in sorted(debtors):
            self.grant(who, units, 50, None, None, tx)
        for (account, key), hold in self.model.holds.items():
            if hold.ended == "confirmed" and hold.beyond:
                self.call(Confirm(account=account, key=key, amount=hold.final, reason=""), tx)

    @rule(who=WHO, tx=st.booleans())
    def ask(self, who: str, tx: bool) -> None:
        self.call(CatchUp(account=self.account(who)), tx)

    @rule(who=WHO, data=st.data(), ttl=SOMETIMES, tx=st.booleans())
    def reserve(self, who: str, data: st.DataObject, ttl: int | None, tx: bool) -> None:
        available = self.model.balance(self.account(who)).available
        amount = data.draw(st.integers(1, min(available, 15)) if available else AMOUNTS)
        self._reserve(who, new_id("h"), amount, ttl, tx)

    def _reserve(self, who: str, key: str, amount: int, ttl: int | None, tx: bool) -> None:
        given = None if ttl is None else ttl * SECOND_US
        account, ttl_us = self.account(who), TTL_US if given is None else given
        op = Reserve(
            id=new_id("hold"), account=account, key=key, amount=amount, ttl_us=ttl_us, ttl_given_us=given, reason=""
        )
        self.call(op, tx)

    @rule(data=st.data(), key=st.sampled_from([None, None, "capped"]), ttl=SOMETIMES, tx=st.booleans())
    def reserve_several(self, data: st.DataObject, key: str | None, ttl: int | None, tx: bool) -> None:
        who = data.draw(st.permutations(["a", "b"]))
        legs = [Leg(new_id("hold"), self.account(name), data.draw(st.integers(1, 6))) for name in who]
        given = None if ttl is None else ttl * SECOND_US
        op = ReserveAll(legs=tuple(legs), key=key or new_id("h"), ttl_us=given or TTL_US, ttl_given_us=given, reason="")
        self.call(op, tx)

    @rule(who=st.sampled_from(["a", "b"]), tx=st.booleans())
    def cancel_comes_first_for_one_of_several(self, who: str, tx: bool) -> None:
        self.call(Cancel(id=new_id("hold"), account=self.account(who), key="capped", reason=""), tx)

    @precondition(lambda self: self._live())
    @rule(data=st.data(), amount=st.integers(1, 6), tx=st.booleans())
    def capture(self, data: st.DataObject, amount: int, tx: bool) -> None:
        account, hold_key = data.draw(st.sampled_from(self._live()))
        self._capture(account, amount, hold_key, tx)

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data(), amount=st.integers(1, 4), tx=st.booleans())
    def capture_whatever_it_is(self, data: st.DataObject, amount: int, tx: bool) -> None:
        account, hold_key = data.draw(st.sampled_from(list(self.model.holds)))
        self._capture(account, amount, hold_key, tx)

    def _capture(self, account: AccountKey, amount: int, hold_key: str, tx: bool) -> None:
        op = Capture(
            id=new_id("capture"), account=account, key=new_id("c"), hold_key=hold_key, amount=amount, reason=""
        )
        self.call(op, tx)

    @precondition(lambda self: self._live())
    @rule(data=st.data(), amount=st.none() | st.integers(0, 12), overage=OVERAGE, tx=st.booleans())
    def confirm(self, data: st.DataObject, amount: int | None, overage: Overage, tx: bool) -> None:
        account, key = data.draw(st.sampled_from(self._live()))
        self.call(Confirm(account=account, key=key, amount=amount, reason="", overage=overage), tx)

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data(), amount=st.none() | st.integers(0, 6), overage=OVERAGE, late=LATE, tx=st.booleans())
    def confirm_even_late(
        self, data: st.DataObject, amount: int | None, overage: Overage, late: Policy, tx: bool
    ) -> None:
        account, key = data.draw(st.sampled_from(list(self.model.holds)))
        op = Confirm(account=account, key=key, amount=amount, reason="", overage=overage, late=late)
        self.call(op, tx)

    @precondition(lambda self: self._live())
    @rule(data=st.data(), seconds=st.sampled_from([1, 60, 600]), tx=st.booleans())
    def extend(self, data: st.DataObject, seconds: int, tx: bool) -> None:
        account, key = data.draw(st.sampled_from(self._live()))
        self.call(Extend(account=account, key=key, ttl_us=seconds * SECOND_US), tx)

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data(), tx=st.booleans())
    def extend_whatever_it_is(self, data: st.DataObject, tx: bool) -> None:
        account, key = data.draw(st.sampled_from(list(self.model.holds)))
        self.call(Extend(account=account, key=key, ttl_us=SECOND_US), tx)

    @precondition(lambda self: self._charged())
    @rule(data=st.data(), more=st.sampled_from([0, 0, 0, 1]), tx=st.booleans())
    def refund(self, data: st.DataObject, more: int, tx: bool) -> None:
        owing = [place for place in self._charged() if self.model.holds[place].owed]
        account, hold_key = data.draw(st.sampled_from(owing or self._charged()))
        hold = self.model.holds[account, hold_key]
        amount = data.draw(st.integers(1, hold.captured - hold.refunded)) + more * hold.captured
        op = Refund(id=new_id("refund"), account=account, key=new_id("r"), hold_key=hold_key, amount=amount, reason="")
        self.call(op, tx)

    @precondition(lambda self: self._live())
    @rule(data=st.data(), tx=st.booleans())
    def cancel(self, data: st.DataObject, tx: bool) -> None:
        account, key = data.draw(st.sampled_from(self._live()))
        self.call(Cancel(id=new_id("hold"), account=account, key=key, reason=""), tx)

    @precondition(lambda self: self._live())
    @rule(data=st.data(), early_us=st.sampled_from([0, 1]), confirm=st.booleans(), tx=st.booleans())
    def settle_on_the_last_microsecond(self, data: st.DataObject, early_us: int, confirm: bool, tx: bool) -> None:
        account, key = data.draw(st.sampled_from(self._live()))
        wait_us = self.model.holds[account, key].until_us - early_us - self.model.now_us
        self.time_passes(wait_us / SECOND_US)
        self._settle(account, key, confirm, tx)

    @precondition(lambda self: self.model.holds)
    @rule(data=st.data(), confirm=st.booleans(), tx=st.booleans())
    def settle_whatever_it_is(self, data: st.DataObject, confirm: bool, tx: bool) -> None:
        account, key = data.draw(st.sampled_from(list(self.model.holds)))
        self._settle(account, key, confirm, tx)

    def _settle(self, account: AccountKey, key: str, confirm: bool, tx: bool) -> None:
        if confirm:
            self.call(Confirm(account=account, key=key, amount=None, reason=""), tx)
        else:
            self.call(Cancel(id=new_id("hold"), account=account, key=key, reason=""), tx)

    @rule(who=WHO, amount=AMOUNTS, tx=st.booleans())
    def too_much(self, who: str, amount: int, tx: bool) -> None:
        self._reserve(who, new_id("h"), self.model.balance(self.account(who)).available + amount, None, tx)

    @rule(who=WHO, amount=AMOUNTS, tx=st.booleans())
    def cancel_comes_first(self, who: str, amount: int, tx: bool) -> None:
        key = new_id("h")
        self.call(Cancel(id=new_id("hold"), account=self.account(who), key=key, reason=""), tx)
        self._reserve(who, key, amount, None, tx)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), tx=st.booleans())
    def the_same_again(self, data: st.DataObject, tx: bool) -> None:
        op = data.draw(st.sampled_from(self.calls[::-1]))
        # A caller's repeat is a new operation: it has another id.
        match op:
            case Confirm() | Extend() | Disallow() | CatchUp():
                self.call(op, tx)
            case ReserveAll():
                legs = tuple(leg._replace(id=new_id("hold")) for leg in op.legs[::-1])
                self.call(msgspec.structs.replace(op, legs=legs), tx)
            case _:
                self.call(msgspec.structs.replace(op, id=new_id(PREFIXES[type(op)])), tx)

    @precondition(lambda self: any(isinstance(op, KEYED) for op in self.calls))
    @rule(data=st.data(), tx=st.booleans())
    def almost_the_same_again(self, data: st.DataObject, tx: bool) -> None:
        made = [op for op in self.calls if isinstance(op, KEYED)]
        op = data.draw(st.sampled_from(made))
        self.call(msgspec.structs.replace(op, id=new_id(PREFIXES[type(op)]), amount=op.amount + 1), tx)

    @rule()
    def sweep(self) -> None:
        self.real.sweep()

    @invariant()
    def balances_agree(self) -> None:
        for who in ("a", "b"):
            account = self.account(who)
            assert self.real.call(CatchUp(account=account), False) == self.model.balance(account)

    def teardown(self) -> None:
        self.real.finish()

    def _live(self) -> list[tuple[AccountKey, str]]:
        holds = self.model.holds.items()
        return [place for place, hold in holds if self.model.phase(hold) == "open"]

    def _charged(self) -> list[tuple[AccountKey, str]]:
        return [place for place, hold in self.model.holds.items() if hold.captured > hold.refunded]


def _summary(answer: Grant | Allowance | Hold | list[Hold] | Balance) -> object:
    match answer:
        case list():
            return [_summary(hold) for hold in answer]
        case Grant():
            return answer.remaining, answer.created
        case Hold():
            return (answer.phase, answer.amount, answer.captured, answer.refunded, answer.owed, answer.created)
        case Allowance():
            return answer.amount, answer.renews_at_us, answer.created
        case Balance():
            return answer


def explore(under_test: Callable[[], Any], examples: int, steps: int) -> None:
    machine = type("History", (History,), {"under_test": staticmethod(under_test)})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_planner_agrees_with_the_model() -> None:
    """Over many random histories, one operation at a time, with every invariant checked after each."""
    explore(PlannerUnderTest, examples=80, steps=40)


def test_a_ledger_agrees_with_the_model(database_url: str) -> None:
    """The same histories through SQL, each call by itself or with ``tx=``."""
    with running_ledger(database_url) as under_test:
        explore(under_test, examples=25, steps=25)


@contextmanager
def running_ledger(url: str) -> Iterator[Callable[[], LedgerUnderTest]]:
    clock = ManualClock()
    config = LedgerConfig(
        hold_ttl_s=TTL_US / SECOND_US,
        sweep_interval_s=0,
        sweep_holds=2,
        audit_interval_s=0,
        low_balance=RULES.low_balance,
        expiring_notice_s=RULES.expiring_notice_us / SECOND_US,
    )
    # Two processes, one of which remembers little; each must notice what the other has written.
    forgetful = msgspec.structs.replace(config, remembered_rows=4)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def enter() -> LedgerUnderTest:
            db = await stack.enter_async_context(Database(url))
            await migrate(db, "daydo_quota")
            ledgers = [await stack.enter_async_context(Ledger(db, some, clock=clock)) for some in (config, forgetful)]
            return LedgerUnderTest(runner, db, ledgers, clock)

        try:
            first = runner.run(enter())
            yield lambda: LedgerUnderTest(runner, first.db, first.ledgers, clock)
        finally:
            runner.run(stack.aclose())


@pytest.mark.parametrize("size", [2, 7, 64])
def test_a_batch_is_its_operations_in_order(size: int) -> None:
    """Deciding many at once gives the answers and the books of deciding them one by one."""
    ops: list[Op] = []
    for number in range(size):
        account: AccountKey = ("t", f"u{number % 3}", "credits")
        key, hold = f"k{number // 4}", new_id("hold")
        ops += [
            GrantUnits(
                id=new_id("grant"), account=account, key=f"g{number}", amount=number % 5 + 1, source="topup",
                priority=50, effective_at_us=None, expires_at_us=None, reason="",
            ),
            Reserve(id=hold, account=account, key=key, amount=2, ttl_us=9, ttl_given_us=9, reason=""),
            Confirm(account=account, key=key, amount=1, reason="") if number % 2 else CatchUp(account=account),
            Cancel(id=new_id("hold"), account=account, key=f"c{number}", reason=""),
        ]  # fmt: skip
    together, alone = Books(), Books()
    answers = together.run(ops, 1_000)
    assert [repr(answer) for answer in answers] == [repr(alone.run([op], 1_000)[0]) for op in ops]
    assert (together.accounts, together.grants, together.holds) == (alone.accounts, alone.grants, alone.holds)
    assert together.entries == alone.entries

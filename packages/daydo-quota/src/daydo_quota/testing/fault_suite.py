"""The suite that proves a ledger under faults, on our databases and on yours.

::

    class TestFaultsOnOurServer(LedgerFaults):
        @pytest.fixture
        def fault_url(self):
            return "mysql://root@127.0.0.1:3306/a_database_for_tests"

The database has the tables of daydo_quota; every test has a tenant of its own in it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, NamedTuple

import msgspec
import pytest

from daydo_db import CommitUnknown, Database, DatabaseConfig, DbError
from daydo_kernel import new_id
from daydo_kernel.testing import ManualClock
from daydo_quota.errors import AccountBusy
from daydo_quota.ledger import Ledger, LedgerConfig
from daydo_quota.model import Account, Allowance, Balance, Grant, Hold

from .aim import Fault
from .faults import Faults, Struck
from .model import LedgerModel


class Step(NamedTuple):
    """A call of a ledger or a model, on the account of ``unit`` (or on several: (unit, amount), …)."""

    method: str
    unit: str | tuple[tuple[str, int], ...]
    options: dict[str, Any]


def _step(method: str, unit: str | tuple[tuple[str, int], ...] = "credits", **options: Any) -> Step:
    return Step(method, unit, options)


_HELD = _step("reserve", amount=33, key="held")
_CHARGED = (_HELD, _step("confirm", amount=32, key="held"))
_OWED = _step("charge", amount=60, key="owed", overage="debt")
_DAILY = _step("allow", "free", amount=5, key="free", every="day", zone="Asia/Shanghai")
_OPENING = (
    _step("grant", amount=20, key="topup"),
    _step("grant", amount=30, key="promo", priority=10, expires_in_s=1_000),
    _step("grant", "daily", amount=10, key="daily"),
    _step("reserve", amount=4, key="forgotten", ttl_s=5),
)
"""Two grants that the calls below need both, and a hold whose time is over when they come."""

CALLS: dict[str, tuple[tuple[Step, ...], Step]] = {
    "grant": ((), _step("grant", amount=7, key="one", priority=20, expires_in_s=500)),
    "grant that repays": ((_OWED,), _step("grant", amount=7, key="one")),
    "allow": ((), _DAILY),
    "disallow": ((_DAILY,), _step("disallow", "free", key="free")),
    "reserve": ((), _HELD),
    "reserve_all": ((), _step("reserve_all", (("daily", 2), ("credits", 33)), key="one")),
    "charge": ((), _step("charge", amount=33, key="one")),
    "charge into debt": ((), _OWED),
    "capture": ((_HELD,), _step("capture", amount=31, key="one", hold_key="held")),
    "confirm": ((_HELD,), _step("confirm", amount=32, key="held")),
    "confirm more": ((_HELD,), _step("confirm", amount=40, key="held", overage="available")),
    "confirm into debt": ((_HELD,), _step("confirm", amount=70, key="held", overage="debt")),
    "confirm late": ((), _step("confirm", amount=4, key="forgotten", late="available")),
    "cancel": ((_HELD,), _step("cancel", key="held")),
    "cancel first": ((), _step("cancel", key="one")),
    "extend": ((_HELD,), _step("extend", key="held", ttl_s=900)),
    "refund": (_CHARGED, _step("refund", amount=31, key="one", hold_key="held")),
}
"""What must have happened, and the call that is struck."""

OpenTx = Callable[[], AbstractAsyncContextManager[Any]]


class Scene:
    """A subject to whom a call is made, and the model of it. Every scene is another subject."""

    def __init__(
        self,
        ledger: Ledger,
        clock: ManualClock,
        tenant: str,
        call: Step,
        open_tx: OpenTx | None,
        session_errors: tuple[type[Exception], ...],
    ) -> None:
        self._ledger, self._clock, self._call, self._open_tx = ledger, clock, call, open_tx
        self._session_errors = session_errors
        self._tenant, self._subject = tenant, new_id("u")
        self._began_us = clock.now_us()
        self._model = LedgerModel(int(ledger.config.hold_ttl_s * 1_000_000))
        self._model.now_us = self._began_us

    async def prepare(self, steps: Sequence[Step]) -> None:
        for step in steps:
            assert _summary(await self._ask(step)) == self._ask_model(step), step

    def rehearse(self) -> None:
        """Let the model say what is to come."""
        self._before = self._modelled()
        self._answer = self._ask_model(self._call)
        self._repeated = self._ask_model(self._call)
        if self._open_tx is not None:
            self._ask_model(_WITNESS)
        self._after = self._modelled()

    async def call(self) -> Any:
        """The call that is struck; with ``tx=`` together with another, to be kept or lost as one."""
        if self._open_tx is None:
            return await self._ask(self._call)
        async with self._open_tx() as tx:
            await self._ask(_WITNESS, tx=tx)
            return await self._ask(self._call, tx=tx)

    async def check(self, struck: Struck) -> None:
        """What was said is so, and a repeat finds it or does it."""
        if isinstance(struck.error, asyncio.CancelledError) and self._open_tx is None:
            # Its batch goes on, so what we find now may be of before and after.
            assert _summary(await self.call()) in (self._answer, self._repeated)
            return
        balances = await self._balances()
        if struck.error is None:
            # A call without a row of its own cannot tell its own repeat, made after a lost answer, from another's.
            told_apart = struck.statement != "COMMIT" or self._call.method not in _WITHOUT_ROW
            assert _summary(struck.answer) in ([self._answer] if told_apart else [self._answer, self._repeated])
            assert balances == self._after, "it said that it was done"
        elif isinstance(struck.error, (CommitUnknown, asyncio.CancelledError, *self._session_errors)):
            assert balances in (self._before, self._after), "half of it was done"
        else:
            assert isinstance(struck.error, DbError | AccountBusy)
            assert balances == self._before, "it said that nothing was changed"
        again = _summary(await self.call())
        if self._before != self._after:  # else they do not tell what was done
            assert again == (self._repeated if balances == self._after else self._answer)

    async def settled(self) -> list[tuple[Any, ...]]:
        """What its history tells, once nothing but the call has happened, and that once."""
        assert _summary(await self.call()) == self._repeated
        assert await self._balances() == self._after
        page = await self._ledger.history(self._tenant, self._subject, limit=100)
        assert page.next_cursor is None
        return sorted((entry.unit, entry.seq, entry.kind, entry.amount, entry.available) for entry in page.items)

    async def _ask(self, step: Step, **more: Any) -> Any:
        what: Any = (
            Account(self._tenant, self._subject, step.unit)
            if isinstance(step.unit, str)
            else [(Account(self._tenant, self._subject, unit), amount) for unit, amount in step.unit]
        )
        return await getattr(self._ledger, step.method)(what, **self._options(step), **more)

    def _ask_model(self, step: Step) -> Any:
        self._model.wait_until(self._clock.now_us())
        options = self._options(step)
        if "ttl_s" in options:
            options["ttl_us"] = int(options.pop("ttl_s") * 1_000_000)
        what: Any = (
            (self._tenant, self._subject, step.unit)
            if isinstance(step.unit, str)
            else [((self._tenant, self._subject, unit), amount) for unit, amount in step.unit]
        )
        return getattr(self._model, step.method)(what, **options)

    def _options(self, step: Step) -> dict[str, Any]:
        options = dict(step.options)
        for name in {"key", "hold_key"} & options.keys():
            options[name] = f"{options[name]}_{self._subject}"
        if "expires_in_s" in options:
            options["expires_at_us"] = self._began_us + options.pop("expires_in_s") * 1_000_000
        return options

    async def _balances(self) -> dict[str, Balance]:
        found = await self._ledger.accounts(self._tenant, self._subject)
        return _opened({one.unit: msgspec.convert(one, Balance, from_attributes=True) for one in found})

    def _modelled(self) -> dict[str, Balance]:
        self._model.wait_until(self._clock.now_us())
        units = ("credits", "daily", "free", "witness")
        return _opened({unit: self._model.balance((self._tenant, self._subject, unit)) for unit in units})


def _opened(balances: dict[str, Balance]) -> dict[str, Balance]:
    return {unit: balance for unit, balance in balances.items() if balance != Balance()}


_WITHOUT_ROW = {"confirm", "cancel", "extend", "disallow"}
_WITNESS = _step("grant", "witness", amount=1, key="witness")


def _summary(answer: Any) -> Any:
    """An answer as the model gives it."""
    match answer:
        case list():
            return [_summary(one) for one in answer]
        case Grant():
            return answer.remaining, answer.created
        case Hold():
            return answer.phase, answer.amount, answer.captured, answer.refunded, answer.owed, answer.created
        case Allowance():
            return answer.amount, answer.renews_at_us, answer.created
    return answer


class LedgerFaults:
    """Every call of a ledger under every fault at every statement: nothing lost, doubled or half done.

    Subclass it and give the fixture ``fault_url``: a database with the tables of daydo_quota. ``open_tx`` may be
    something that opens a session of yours (made with ``faults.url``) and enlists it.

    Attributes:
        faults_to_try: all, unless a subclass says otherwise.
        samples: None tries every fault at every statement; a number so many of these pairs per call, by ``seed``.
        seed: another one is another sample.
        session_errors: what a session of yours raises where it commits; such an error says nothing of what is kept.
        patience_s: how long a client waits for an answer that does not come; longer than the slowest statement of a
            healthy database takes.
    """

    faults_to_try: tuple[Fault, ...] = tuple(Fault)
    samples: int | None = None
    seed = 0
    session_errors: tuple[type[Exception], ...] = ()
    patience_s = 1.0

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    async def faults(self, fault_url: str) -> AsyncIterator[Faults]:
        async with Faults(fault_url) as faults:
            yield faults

    @pytest.fixture
    async def db(self, faults: Faults) -> AsyncIterator[Database]:
        config = DatabaseConfig(statement_timeout_s=self.patience_s, retry_wait_s=0.001)
        async with faults.database(config) as db:
            yield db

    @pytest.fixture
    async def ledger(self, db: Database, clock: ManualClock) -> AsyncIterator[Ledger]:
        async with Ledger(db, LedgerConfig(sweep_interval_s=0), clock=clock) as ledger:
            yield ledger

    @pytest.fixture
    def open_tx(self, db: Database) -> OpenTx:
        return db.transaction

    @pytest.mark.parametrize("call", CALLS)
    async def test_by_itself(self, faults: Faults, ledger: Ledger, clock: ManualClock, call: str) -> None:
        """What the ledger says after a fault is so, and the same call again leaves exactly one effect."""
        await self._prove(faults, ledger, clock, call, None)

    @pytest.mark.parametrize("call", CALLS)
    async def test_with_tx(
        self, faults: Faults, ledger: Ledger, clock: ManualClock, open_tx: OpenTx, call: str
    ) -> None:
        """In a caller's transaction, too; and the call and what else is in it are kept or lost together."""
        await self._prove(faults, ledger, clock, call, open_tx)

    async def _prove(
        self, faults: Faults, ledger: Ledger, clock: ManualClock, call: str, open_tx: OpenTx | None
    ) -> None:
        before, step = CALLS[call]
        tenant = new_id("tenant")

        async def prepared(number: int) -> list[Scene]:
            scenes = [Scene(ledger, clock, tenant, step, open_tx, self.session_errors) for _ in range(number)]
            await asyncio.gather(*(scene.prepare(_OPENING) for scene in scenes))
            clock.advance(5)
            await asyncio.gather(*(scene.prepare(before) for scene in scenes))
            for scene in scenes:
                scene.rehearse()
            return scenes

        first, undisturbed = await prepared(2)
        await first.call()  # A driver may have questions on its first connection.
        statements = await faults.statements_of(undisturbed.call)
        history = await undisturbed.settled()
        plan = [(fault, at) for fault in self.faults_to_try for at in range(len(statements))]
        if self.samples is not None:
            plan = random.Random(self.seed).sample(plan, min(self.samples, len(plan)))  # noqa: S311 - a sample of tests
        scenes = await prepared(len(plan))
        for scene, (fault, at) in zip(scenes, plan, strict=True):
            struck = await faults.strike(fault, at, scene.call)
            with _noting(f"{struck}: {struck.error!r}"):
                assert struck.statement, "it took fewer statements than undisturbed"
                await scene.check(struck)
        for scene, (fault, at) in zip(scenes, plan, strict=True):
            with _noting(f"after {fault.name} at statement {at} ({statements[at][:100]})"):
                assert await scene.settled() == history
        audit = await ledger.audit(tenant)
        assert audit.disagreement is None, audit.disagreement


@contextmanager
def _noting(note: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(note)
        raise

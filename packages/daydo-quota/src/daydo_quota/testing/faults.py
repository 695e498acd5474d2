"""What can go wrong between a ledger and its database, at every statement; for our databases and for yours.

::

    class TestFaultsOnOurServer(LedgerFaults):
        @pytest.fixture
        def fault_url(self):
            return "mysql://root@127.0.0.1:3306/a_database_for_tests"

The database has the tables of daydo_quota; every test has a tenant of its own in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import pytest

from daydo_db import CommitUnknown, ConnectionLost, Database, DatabaseConfig, DbError, Deadlock, LockTimeout, QueryTimeout
from daydo_db.config import Location, parse_url
from daydo_db.connection import Connection, Engine
from daydo_db.pool import Pool
from daydo_db.tx import Dialect, Result, Statement, Value
from daydo_kernel import new_id
from daydo_kernel.testing import ManualClock

from ..errors import AccountBusy
from ..ledger import Ledger, LedgerConfig
from ..model import Account, Grant, Hold
from .aim import Aim, Fault
from .model import LedgerModel
from .relay import Relay

Call = Callable[[], Awaitable[Any]]


class Struck(NamedTuple):
    """What became of a call: ``statement`` is the one that was hurt (empty: it had none left), then what came of it.

    ``error`` is what the call raised, ``answer`` what it returned where it raised nothing.
    """

    fault: Fault
    at: int
    statement: str
    answer: Any
    error: BaseException | None

    def __str__(self) -> str:
        return f"{self.fault.name} at statement {self.at} ({self.statement[:100]})"


class Faults:
    """Stands between a database and those who use it, and hurts one statement of a call.

        async with Faults(url) as faults, faults.database() as db, Ledger(db) as ledger:
            async for struck in faults.at_every_statement(Fault.CUT_AFTER, lambda: ledger.grant(…)):
                …  # call again, with the same key, and look

    In front of MySQL and MariaDB it is a relay for any driver (``faults.url``): errors come from the server, cut is a
    socket. A SQLite file has no server; there the connections of ``faults.database()`` do it.

    Sessions' own settings (``SET …``, ``SELECT @@…``, ``KILL``) are no statements of a call and not counted.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._location = parse_url(url)
        self._aim: Aim | None = None
        self._relay: Relay | None = None

    async def __aenter__(self) -> Self:
        if self._location.dialect.name == "mysql":
            self._relay = Relay(self._location, lambda: self._aim)
            self.url = _url(self._location, await self._relay.start())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._relay is not None:
            await self._relay.stop()

    def database(self, config: DatabaseConfig = DatabaseConfig()) -> Database:  # noqa: B008 - frozen
        """A database whose statements can be hurt; enter it as any other."""
        if self._relay is not None:
            return Database(self.url, config)
        return _FaultyDatabase(self.url, config, lambda: self._aim)

    async def strike(self, fault: Fault, at: int, call: Call) -> Struck:
        """Make ``call`` in a task of its own and let ``fault`` happen to its statement number ``at`` (from 0).

        Nobody else may use the database meanwhile, for their statements would be counted, too.
        """
        task = asyncio.ensure_future(_run(call))
        self._aim = aim = Aim(fault, at, task)
        try:
            await asyncio.wait([task])
        finally:
            self._aim = None
            task.cancel()
        if task.cancelled():
            return Struck(fault, at, aim.statement, None, asyncio.CancelledError())
        error = task.exception()
        return Struck(fault, at, aim.statement, None if error else task.result(), error)

    async def at_every_statement(self, fault: Fault, call: Call) -> AsyncIterator[Struck]:
        """Strike ``call`` at its first statement, then at its second, until it has none left.

        It is called once for each, so it makes itself what it needs (an account, a key).
        """
        at = 0
        while (struck := await self.strike(fault, at, call)).statement:
            yield struck
            at += 1


async def _run(call: Call) -> Any:
    return await call()


def _url(location: Location, port: int) -> str:
    login = ":".join(quote(part, safe="") for part in (location.user, location.password) if part)
    return f"mysql://{login}{'@' if login else ''}127.0.0.1:{port}/{quote(location.name, safe='')}"


class _FaultyDatabase(Database):
    """SQLite whose connections do what a relay does elsewhere."""

    def __init__(self, url: str, config: DatabaseConfig, aim: Callable[[], Aim | None]) -> None:
        self._aim = aim
        super().__init__(url, config)

    def _pool(self, name: str, size: int, keep: int, *, writable: bool, engine: Engine | None = None) -> Pool:
        faulty = _FaultyEngine(engine or self._engine, self._aim)
        return super()._pool(name, size, keep, writable=writable, engine=faulty)


class _FaultyEngine:
    def __init__(self, engine: Engine, aim: Callable[[], Aim | None]) -> None:
        self._engine, self._aim = engine, aim
        self.dialect: Dialect = engine.dialect
        self.version = engine.version
        self.begin = engine.begin
        self.begins_late = engine.begins_late
        self.refused_inside = engine.refused_inside

    async def connect(self, *, writable: bool) -> Connection:
        return _FaultyConnection(await self._engine.connect(writable=writable), self._aim)

    async def aclose(self) -> None:
        await self._engine.aclose()


class _FaultyConnection:
    def __init__(self, connection: Connection, aim: Callable[[], Aim | None]) -> None:
        self._connection, self._aim = connection, aim
        self.born_s = connection.born_s

    @property
    def usable(self) -> bool:
        return self._connection.usable

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    async def execute(self, statement: Statement, args: Sequence[Value] = ()) -> Result:
        aim = self._aim()
        if aim is None or not aim.hits(statement.text):
            return await self._connection.execute(statement, args)
        await self._before(aim)
        result = await self._connection.execute(statement, args)
        await self._after(aim)
        return result

    async def execute_all(self, statements: Sequence[tuple[Statement, Sequence[Value]]]) -> list[Result]:
        if self._aim() is None:
            return await self._connection.execute_all(statements)
        return [await self.execute(statement, args) for statement, args in statements]

    async def script(self, text: str) -> Result:
        return await self._connection.script(text)

    async def ping(self) -> bool:
        return await self._connection.ping()

    async def close(self) -> None:
        await self._connection.close()

    async def _before(self, aim: Aim) -> None:
        match aim.fault:
            case Fault.DEADLOCK:  # SQLite has none, but after some errors (no room, no disk) it rolls back by itself.
                if self._connection.in_transaction:
                    await self._connection.script("ROLLBACK")
                raise Deadlock()
            case Fault.LOCK_TIMEOUT:
                raise LockTimeout()
            case Fault.STOPPED:
                raise QueryTimeout()
            case Fault.CUT_BEFORE:
                await self._connection.close()
                raise ConnectionLost()
            case Fault.CANCELLED:
                aim.cancel()

    async def _after(self, aim: Aim) -> None:
        match aim.fault:
            case Fault.CUT_AFTER:
                await self._connection.close()
                raise ConnectionLost()
            case Fault.SILENT:
                raise QueryTimeout()


class Step(NamedTuple):
    """A call of a ledger or a model, on the account of ``unit`` (or on several: (unit, amount), …)."""

    method: str
    unit: str | tuple[tuple[str, int], ...]
    options: dict[str, Any]


def _step(method: str, unit: str | tuple[tuple[str, int], ...] = "credits", **options: Any) -> Step:
    return Step(method, unit, options)


_HELD = _step("reserve", amount=33, key="held")
_CHARGED = (_HELD, _step("confirm", amount=32, key="held"))
_OPENING = (
    _step("grant", amount=20, key="topup"),
    _step("grant", amount=30, key="promo", priority=10, expires_in_s=1_000),
    _step("grant", "daily", amount=10, key="daily"),
    _step("reserve", amount=4, key="forgotten", ttl_s=5),
)
"""Two grants that the calls below need both, and a hold whose time is over when they come."""

CALLS: dict[str, tuple[tuple[Step, ...], Step]] = {
    "grant": ((), _step("grant", amount=7, key="one", priority=20, expires_in_s=500)),
    "reserve": ((), _HELD),
    "reserve_all": ((), _step("reserve_all", (("daily", 2), ("credits", 33)), key="one")),
    "capture": ((_HELD,), _step("capture", amount=31, key="one", hold_key="held")),
    "confirm": ((_HELD,), _step("confirm", amount=32, key="held")),
    "confirm more": ((_HELD,), _step("confirm", amount=40, key="held", overage="available")),
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

    def __init__(self, ledger: Ledger, clock: ManualClock, tenant: str, call: Step, open_tx: OpenTx | None) -> None:
        self._ledger, self._clock, self._call, self._open_tx = ledger, clock, call, open_tx
        self._tenant, self._subject = tenant, new_id("u")
        self._began_us = clock.now_us()
        self._model = LedgerModel(int(ledger.config.hold_ttl_s * 1_000_000))

    async def prepare(self, before: Sequence[Step]) -> None:
        for step in _OPENING:
            await self._both(step)
        self._clock.advance(5)
        for step in before:
            await self._both(step)
        self._balances_before = self._expected_balances(0)
        self._answer = self._ask_model(self._call)
        self._answer_again = self._ask_model(self._call)
        self._balances_after = self._expected_balances(0 if self._open_tx is None else 1)

    async def call(self) -> Any:
        """The call that is struck; with ``tx=`` together with another, to be kept or lost as one."""
        if self._open_tx is None:
            return await self._ask(self._call)
        async with self._open_tx() as tx:
            await self._ask(_WITNESS, tx=tx)
            return await self._ask(self._call, tx=tx)

    async def check(self, struck: Struck | None) -> None:
        """What was said is so, a repeat finds it or does it, and nothing else has happened."""
        balances = await self._balances()
        error = None if struck is None else struck.error
        if struck is not None and error is None:
            assert _summary(struck.answer) == self._answer
            assert balances == self._balances_after, "it said that it was done"
        elif isinstance(error, CommitUnknown | asyncio.CancelledError):
            assert balances in (self._balances_before, self._balances_after), "half of it was done"
        else:
            assert error is None or isinstance(error, DbError | AccountBusy), error
            assert balances == self._balances_before, "it said that nothing was changed"
        answers = [self._answer_again if balances == self._balances_after else self._answer]
        if self._balances_after == self._balances_before or isinstance(error, asyncio.CancelledError):
            # The balances do not tell, or what nobody waits for any more was carried out since.
            answers = [self._answer, self._answer_again]
        assert _summary(await self.call()) in answers
        assert _summary(await self.call()) == self._answer_again
        assert await self._balances() == self._balances_after

    async def entries(self) -> list[tuple[Any, ...]]:
        """What its history tells; the same for every scene of a call."""
        page = await self._ledger.history(self._tenant, self._subject, limit=100)
        assert page.next_cursor is None
        return sorted((entry.unit, entry.seq, entry.kind, entry.amount, entry.available) for entry in page.items)

    async def _both(self, step: Step) -> None:
        assert _summary(await self._ask(step)) == self._ask_model(step)

    async def _ask(self, step: Step, **more: Any) -> Any:
        what: Any = (
            Account(self._tenant, self._subject, step.unit)
            if isinstance(step.unit, str)
            else [(Account(self._tenant, self._subject, unit), amount) for unit, amount in step.unit]
        )
        return await getattr(self._ledger, step.method)(what, **self._options(step), **more)

    def _ask_model(self, step: Step) -> Any:
        self._model.now_us = self._clock.now_us()
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

    async def _balances(self) -> list[Any]:
        return [await self._ledger.balance(Account(self._tenant, self._subject, unit)) for unit in _UNITS]

    def _expected_balances(self, witnessed: int) -> list[Any]:
        self._model.now_us = self._clock.now_us()
        if witnessed:
            self._ask_model(_WITNESS)
        return [self._model.balance((self._tenant, self._subject, unit)) for unit in _UNITS]


_WITNESS = _step("grant", "witness", amount=1, key="witness")
_UNITS = ("credits", "daily", "witness")


def _summary(answer: Any) -> Any:
    """An answer as the model gives it."""
    match answer:
        case list():
            return [_summary(one) for one in answer]
        case Grant():
            return answer.remaining, answer.created
        case Hold():
            return answer.phase, answer.amount, answer.captured, answer.refunded, answer.created
    return answer


class LedgerFaults:
    """Every call of a ledger under every fault at every statement: nothing lost, doubled or half done.

    Subclass it and give the fixture ``fault_url``: a database with the tables of daydo_quota. ``open_tx`` may be
    something that opens a session of yours (made with ``faults.url``) and enlists it.

    ``faults_to_try``: all, unless a subclass says otherwise. ``patience_s`` is how long a client waits for an answer
    that does not come; it must be longer than the slowest statement of a healthy database takes.
    """

    faults_to_try: tuple[Fault, ...] = tuple(Fault)
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

        async def prepared() -> Scene:
            scene = Scene(ledger, clock, tenant, step, open_tx)
            await scene.prepare(before)
            return scene

        undisturbed = await prepared()
        await undisturbed.check(None)
        entries = await undisturbed.entries()
        for fault in self.faults_to_try:
            struck = Struck(fault, -1, "", None, None)
            while struck.at < 0 or struck.statement:
                scene = await prepared()
                struck = await faults.strike(fault, struck.at + 1, scene.call)
                try:
                    await scene.check(struck)
                    assert await scene.entries() == entries
                except BaseException as error:
                    error.add_note(f"{struck}: it raised {struck.error!r}")
                    raise
            assert struck.at > 0, "no statement was seen"
        audit = await ledger.audit(tenant)
        assert audit.disagreement is None, audit.disagreement

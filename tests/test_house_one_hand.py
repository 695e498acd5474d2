"""Every package's noun is made, entered, used and left in the same way."""

from __future__ import annotations

import asyncio
import inspect
import secrets
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, get_type_hints

import msgspec
import pytest

from daydo_auth import Auth, AuthConfig, Password
from daydo_cache import Cache, CacheConfig
from daydo_db import Database, DatabaseConfig, migrate
from daydo_kernel import Config, Event, Health, Metrics, NotStarted, Part, running
from daydo_observe import Observe, ObserveConfig
from daydo_pipeline import Cost, Flow, Owner, Runs, RunsConfig
from daydo_quota import Account, Ledger, LedgerConfig
from daydo_redis import Redis, RedisConfig
from daydo_sandbox import Sandbox, SandboxConfig
from daydo_traffic import Limits, LimitsConfig, Shedder, ShedderConfig, Switches, SwitchesConfig, Window

NOUNS: dict[type[Part], type[Config]] = {
    Database: DatabaseConfig,
    Redis: RedisConfig,
    Auth: AuthConfig,
    Cache: CacheConfig,
    Ledger: LedgerConfig,
    Runs: RunsConfig,
    Limits: LimitsConfig,
    Sandbox: SandboxConfig,
    Shedder: ShedderConfig,
    Switches: SwitchesConfig,
    Observe: ObserveConfig,
}
TOUCHES_THE_WORLD = ("open", "os.", "socket.", "sqlite3.", "subprocess.", "tempfile.", "shutil.")

every_noun = pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: noun.__name__)


async def _nothing(*_: Any) -> None:
    return None


def small_flow() -> Flow:
    flow = Flow("small")
    flow.step("rest", _nothing)
    return flow


def house() -> dict[type[Part], Part]:
    """One of each noun, wired as an application wires them, in the order of entering."""
    db, redis = Database("sqlite://"), Redis("embedded://memory", RedisConfig(command_timeout_s=5))
    ledger = Ledger(db)
    runs = Runs(db, flows=[small_flow()], quota=ledger)
    auth = Auth(db, redis, AuthConfig(keys={"test": secrets.token_urlsafe(48)}, pepper=secrets.token_urlsafe(48)))
    limits = Limits(redis, LimitsConfig(rules={"login": Window(limit=5, period_s=60)}))
    calm = Shedder(ShedderConfig(lag_begin_s=5, lag_max_s=60))  # a test machine is late at times
    parts = [db, redis, Cache(redis), auth, ledger, runs, limits, calm, Switches(redis), Sandbox()]
    named = {type(part).__name__.lower(): part for part in parts}
    return {type(part): part for part in [*parts, Observe(parts=named)]}


# -- made --------------------------------------------------------------------------------------------------------------


@every_noun
def test_constructor_has_the_one_shape(noun: type[Part]) -> None:
    """Resources, then ``config=NounConfig()``, then keywords alone, among them ``clock=None`` and ``events=None``."""
    parameters = dict(inspect.signature(noun).parameters)
    positional = [name for name, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert positional[-1] == "config"
    assert all(parameters[name].default is inspect.Parameter.empty for name in positional[:-1])
    assert parameters["config"].default == NOUNS[noun]()
    for name in ("clock", "events"):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default is None


@every_noun
def test_noun_and_config_are_exported(noun: type[Part]) -> None:
    """Both come from the package itself: ``from daydo_quota import Ledger, LedgerConfig``."""
    package = sys.modules[noun.__module__.partition(".")[0]]
    assert {noun.__name__, NOUNS[noun].__name__} <= set(package.__all__)
    assert NOUNS[noun].__name__ == f"{noun.__name__}Config"


def test_constructors_touch_nothing() -> None:
    """Making the whole house opens no file, no socket, no database and starts no process; it needs no loop."""
    house()  # what is imported lazily is imported now
    watching, seen = True, []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event.startswith(TOUCHES_THE_WORLD):
            seen.append((event, arguments[:1]))

    sys.addaudithook(watch)  # there is no way to take it off again
    try:
        house()
    finally:
        watching = False
    assert seen == []


# -- configured --------------------------------------------------------------------------------------------------------

FIELDS = [(config, field) for config in NOUNS.values() for field in msgspec.structs.fields(config)]
every_field = pytest.mark.parametrize(
    ("config", "field"), FIELDS, ids=[f"{config.__name__}.{field.name}" for config, field in FIELDS]
)


@every_noun
def test_config_is_frozen_and_keyword_only(noun: type[Part]) -> None:
    """A configuration is shared and never changes; a call that makes one says which field it sets."""
    traits = NOUNS[noun].__struct_config__
    assert traits.frozen
    assert traits.forbid_unknown_fields
    assert "drain_s" in NOUNS[noun].__struct_fields__
    with pytest.raises(TypeError, match="positional"):
        NOUNS[noun](1)


@every_field
def test_field_has_a_default(config: type[Config], field: msgspec.structs.FieldInfo) -> None:
    """Every field has a default, so that ``NounConfig()`` is one."""
    assert not field.required


@every_field
def test_number_has_bounds_and_a_unit(config: type[Config], field: msgspec.structs.FieldInfo) -> None:
    """A number is bounded by its annotation, and one with a fraction says its unit: seconds, or a share of one."""
    hint = get_type_hints(config, include_extras=True)[field.name]
    if getattr(hint, "__origin__", hint) not in (int, float):
        return
    bounds = [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, msgspec.Meta)]
    assert any(mark.ge is not None or mark.gt is not None for mark in bounds), "Annotated[…, Meta(ge=…)]"
    assert any(mark.le is not None or mark.lt is not None for mark in bounds), "Annotated[…, Meta(le=…)]"
    if getattr(hint, "__origin__", hint) is float:
        assert field.name.endswith(("_s", "_share", "_factor"))


# -- used --------------------------------------------------------------------------------------------------------------


PLAUSIBLE: dict[str, Any] = {
    "account": Account("acme", "u_1", "credits"),
    "amount": 1,
    "args": (),
    "channel": "c",
    "channels": "c",
    "command": "PING",
    "credential": Password("a@example.cn", "secret-of-a-test"),
    "flow_name": "small",
    "flow": "small",
    "fn": _nothing,
    "inputs": {},
    "keys": "k",
    "limit": 1,
    "owner": Owner("acme", "u_1"),
    "payload": b"",
    "principal": None,
    "sql": "SELECT 1",
    "value": b"v",
}


def waits(method: Callable[..., Any]) -> bool:
    """Whether calling this leads to something one awaits, enters or iterates."""
    method = inspect.unwrap(method)
    returns = str(inspect.signature(method).return_annotation)
    return inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method) or "Async" in returns


def methods(noun: type[Part]) -> list[str]:
    """The public asynchronous methods; how it is (``health``, Observe's ``report``) may be asked at any time."""
    functions = inspect.getmembers(noun, inspect.isfunction)
    return [name for name, method in functions if not name.startswith(("_", "health", "report")) and waits(method)]


async def call(part: Part, name: str) -> None:
    """Call a method with whatever it plausibly takes, and wait for the first thing it does."""
    method = getattr(part, name)
    arguments, keywords = [], {}
    for parameter in inspect.signature(method).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            keywords[parameter.name] = PLAUSIBLE.get(parameter.name, "x")
        elif parameter.kind is not parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            arguments.append(PLAUSIBLE.get(parameter.name, "x"))
    result = method(*arguments, **keywords)
    if hasattr(result, "__aenter__"):
        async with result:
            pass
    elif hasattr(result, "__anext__"):
        async with aclosing(result):
            await anext(result)
    else:
        await result


CALLS = [(noun, name) for noun in NOUNS for name in methods(noun)]


@pytest.mark.parametrize(("noun", "name"), CALLS, ids=[f"{noun.__name__}.{name}" for noun, name in CALLS])
async def test_not_started_says_so(noun: type[Part], name: str) -> None:
    """Whatever is asked of a noun before its entry is refused with NotStarted, first of all."""
    with pytest.raises(NotStarted):
        await call(house()[noun], name)


@every_noun
def test_asynchronous_methods_are_found(noun: type[Part]) -> None:
    """The test above is not empty by accident."""
    assert methods(noun) or noun in (Observe, Sandbox, Shedder)


# -- watched -----------------------------------------------------------------------------------------------------------


@every_noun
def test_metrics_carry_the_packages_name(noun: type[Part]) -> None:
    """Every noun has cells, all called ``daydo_<package>_…`` (HTTP: ``daydo_http_…``)."""
    metrics = house()[noun].metrics
    assert isinstance(metrics, Metrics)
    package = noun.__module__.partition(".")[0]
    names = [family.name for family in metrics.snapshot()]
    assert names
    assert all(name.startswith((f"{package}_", "daydo_http_")) for name in names)


@every_noun
async def test_health_before_entry(noun: type[Part]) -> None:
    """A noun that is not running is down, and says so without raising."""
    health = await house()[noun].health()
    assert isinstance(health, Health)
    assert health.status == "down"


# -- in one transaction ------------------------------------------------------------------------------------------------


class Follow:
    """Starts a run, in the transaction in which it hears of it, for whatever was granted by ``follow``."""

    runs: Runs

    async def emit(self, event: Event, tx: Any = None) -> None:
        if event.name == "quota.granted" and event.data["key"] == "follow":
            await self.runs.start("small", {}, owner=Owner("acme", "u_7"), key="followed", tx=tx)


async def test_parts_that_call_each_other_in_one_transaction_wait_for_nobody() -> None:
    """A run that reserves while a grant starts a run: the turns are the transaction's, not each package's own."""
    account, owner, follow = Account("acme", "u_7", "credits"), Owner("acme", "u_7"), Follow()
    async with Database("sqlite://") as db:
        await migrate(db, "daydo_pipeline", "daydo_quota")
        ledger = Ledger(db, events=follow)
        flow = Flow("small", quota=Cost("credits", 1))
        flow.step("rest", _nothing)
        follow.runs = Runs(db, RunsConfig(max_parallel=0), flows=[flow], quota=ledger)
        async with ledger, follow.runs as runs:
            await ledger.grant(account, 5, key="order")
            async with asyncio.timeout(5), db.transaction() as tx:
                await asyncio.gather(
                    ledger.grant(account, 5, key="follow", tx=tx),
                    runs.start("small", {}, owner=owner, key="own", tx=tx),
                )
            assert (await ledger.balance(account)).reserved == 2


# -- entered and left --------------------------------------------------------------------------------------------------


@pytest.fixture
async def entered() -> AsyncIterator[dict[type[Part], Part]]:
    """The house, running on a fresh SQLite and an in-process Redis."""
    parts = house()
    db = parts[Database]
    assert isinstance(db, Database)
    async with db:
        await migrate(db, "daydo_auth", "daydo_pipeline", "daydo_quota")
        others = [part for part in parts.values() if part is not db]
        async with running(others):
            yield parts


async def test_running_parts_are_well(entered: dict[type[Part], Part]) -> None:
    """Inside ``async with`` every part is ok."""
    assert {noun.__name__: (await part.health()).status for noun, part in entered.items()} == {
        noun.__name__: "ok" for noun in NOUNS
    }


async def test_entered_once(entered: dict[type[Part], Part]) -> None:
    """A running part refuses a second entry and goes on."""
    for part in entered.values():
        with pytest.raises(RuntimeError, match="already running"):
            await part.__aenter__()
        assert (await part.health()).status == "ok"


async def test_no_task_outlives_its_noun() -> None:
    """After the exit no task is left, and the nouns refuse again."""
    before = asyncio.all_tasks()
    parts = house()
    db = parts[Database]
    assert isinstance(db, Database)
    async with db:
        await migrate(db, "daydo_auth", "daydo_pipeline", "daydo_quota")
        async with running([part for part in parts.values() if part is not db]):
            pass
    assert asyncio.all_tasks() == before
    with pytest.raises(NotStarted):
        await db.query("SELECT 1")


async def test_schema_is_checked_on_entry() -> None:
    """A noun with tables of its own refuses to start on a database without them, naming the command to run."""
    async with Database("sqlite://") as db:
        for part in (Ledger(db), Runs(db, flows=[small_flow()])):
            with pytest.raises(Exception, match="python -m daydo_db migrate"):
                await part.__aenter__()
            assert (await part.health()).status == "down"

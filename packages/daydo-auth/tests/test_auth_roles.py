"""Roles on every database: who may do what, who may change that, and how fast every worker knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from daydo_auth import (
    AccountDisabled,
    Auth,
    Forbidden,
    Password,
    Permissions,
    Principal,
    Role,
    RoleInvalid,
    RoleSpec,
    RoleTable,
    RoleUnknown,
    SessionRevoked,
    Standing,
    Tokens,
    TokenStale,
    WrongCredentials,
)
from daydo_db import ConnectionLost, Database, Tx
from daydo_db.sqlalchemy import enlist
from daydo_kernel import DaydoError, NotFound
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_redis import Redis
from daydo_redis.testing import CALM

GOOD = "Correct-Horse-7"
BUILT_IN = {
    "admin": RoleSpec(permissions=("*",)),
    "support": RoleSpec(permissions=("users:read", "roles:*")),
}


@pytest.fixture
async def auth(
    db: Database, memory: Redis, clock: ManualClock, events: RecordedEvents, configure: Any
) -> AsyncIterator[Auth]:
    """One worker on every kind of database."""
    async with Auth(db, memory, configure(roles=BUILT_IN), clock=clock, events=events) as auth:
        yield auth


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


def who(auth: Auth, tokens: Tokens) -> Principal:
    return auth.verify(f"Bearer {tokens.access}")


def somebody(*grants: str, tenant: str = "") -> Principal:
    return Principal(tenant, "u_boss", permissions=Permissions(grants))


# -- what a token may do -----------------------------------------------------------------------------------------


async def test_roles_count_from_the_next_token_on(auth: Auth) -> None:
    """A token of before is stale once its subject's roles change; the refreshed one has what the roles give."""
    await auth.roles.define("editor", permissions=["image:*"])
    await auth.roles.define("chief", permissions=["users:read"], inherits=["editor"])
    before = await auth.open_session("u_1")
    assert not who(auth, before).may("image:create")
    assert await auth.roles.assign("u_1", ["chief"]) == Standing(("chief",), 1)
    with pytest.raises(TokenStale):
        who(auth, before)
    principal = who(auth, await auth.refresh(before.refresh))
    assert principal.roles == ("chief",)
    principal.require("image:create", "users:read")
    with pytest.raises(Forbidden, match="users:write"):
        principal.require("users:write")
    assert who(auth, await auth.open_session("u_1")).may("image:create"), "and so has a new login"


async def test_a_change_of_a_role_counts_for_tokens_that_are_out(auth: Auth) -> None:
    """Redefining and dropping a role reaches tokens that were made before, and they stay good."""
    await auth.roles.define("editor", permissions=["image:create"])
    await auth.roles.assign("u_1", ["editor"])
    tokens = await auth.open_session("u_1")
    assert who(auth, tokens).may("image:create")
    await auth.roles.define("editor", permissions=["image:delete"])
    assert [*who(auth, tokens).permissions] == ["image:delete"]
    await auth.roles.drop("editor")
    assert [*who(auth, tokens).permissions] == []


async def test_verifying_asks_no_database(sqlite: Database, memory: Redis, configure: Any) -> None:
    """What a token may do is known without a single statement, also for a subject and tenant never seen before."""
    async with Auth(sqlite, memory, configure(roles=BUILT_IN, default_permissions=("image:create",))) as auth:
        await auth.roles.assign("u_1", ["support"], tenant="acme")
        tokens = await auth.open_session("u_1", tenant="acme")
        asked: list[Any] = []
        sqlite.query = sqlite.execute = sqlite.transaction = lambda *args, **_: asked.append(args)  # type: ignore[method-assign, assignment]
        try:
            principal = who(auth, tokens)
            principal.require("users:read", "roles:define", "image:create")
        finally:
            del sqlite.query, sqlite.execute, sqlite.transaction
        assert asked == []
        assert not principal.may("users:write")


async def test_a_tenants_role_replaces_the_one_for_all(auth: Auth) -> None:
    """In its tenant alone, for what inherits it as well; dropped, the one for all holds again."""
    await auth.roles.define("staff", permissions=["a"])
    await auth.roles.define("lead", permissions=["b"], inherits=["staff"])
    for tenant in ("t1", "t2"):
        await auth.roles.assign("u_1", ["lead"], tenant=tenant)
    one, two = [await auth.open_session("u_1", tenant=tenant) for tenant in ("t1", "t2")]
    await auth.roles.define("staff", permissions=["c"], tenant="t1")
    assert [*who(auth, one).permissions] == ["b", "c"]
    assert [*who(auth, two).permissions] == ["a", "b"]
    listed = await auth.roles.list("t1")
    assert [(role.name, role.tenant, role.is_built_in) for role in listed] == [
        ("admin", "", True),
        ("lead", "", False),
        ("staff", "t1", False),
        ("support", "", True),
    ]
    await auth.roles.drop("staff", tenant="t1")
    assert [*who(auth, one).permissions] == ["a", "b"]
    with pytest.raises(RoleUnknown):
        await auth.roles.drop("staff", tenant="t1")


async def test_no_ticket_with_roles_of_before(auth: Auth) -> None:
    """Whoever loses a role between being let in and asking for a ticket gets none."""
    await auth.roles.assign("u_1", ["support"])
    before = who(auth, await auth.open_session("u_1"))
    await auth.roles.assign("u_1", [])
    with pytest.raises(TokenStale):
        await auth.issue_ticket(before)


async def test_a_ticket_goes_by_the_roles_of_its_use(auth: Auth) -> None:
    """A ticket of a demoted person opens nothing, and one of a narrow key is no wider than the key."""
    await auth.roles.define("editor", permissions=["image:*"])
    await auth.roles.assign("u_1", ["editor"])
    principal = who(auth, await auth.open_session("u_1"))
    ticket = await auth.issue_ticket(principal)
    redeemed = await auth.redeem_ticket(ticket)
    assert redeemed.way == "ticket"
    assert redeemed.may("image:create")
    narrow = msgspec.structs.replace(principal, key_id="dk_1", permissions=Permissions(["image:read"]))
    assert [*(await auth.redeem_ticket(await auth.issue_ticket(narrow))).permissions] == ["image:read"]
    ticket = await auth.issue_ticket(principal)
    await auth.roles.remove("u_1", "editor")
    with pytest.raises(TokenStale):
        await auth.redeem_ticket(ticket)


# -- what may be defined -----------------------------------------------------------------------------------------


async def test_a_bad_role_is_refused_and_changes_nothing(auth: Auth, events: RecordedEvents) -> None:
    """Circles (over tenants too), unknown parents, what is needed or built in, no name, too much: 422 and the field."""
    define = auth.roles.define
    await define("a", permissions=["x"])
    await define("b", permissions=[], inherits=["a"])
    await define("c", permissions=[], inherits=["b"], tenant="t1")
    before, told = await auth.roles.list("t1"), len(events.events)
    for fields, refused in (
        (["inherits"], define("a", permissions=[], inherits=["a"])),
        (["inherits"], define("a", permissions=[], inherits=["b"])),
        (["inherits"], define("a", permissions=[], inherits=["c"], tenant="t1")),
        (["inherits"], define("d", permissions=[], inherits=["c"])),
        (["inherits"], define("d", permissions=[], inherits=["x" * 10_000])),
        (["name"], auth.roles.drop("a")),
        (["name"], define("admin", permissions=["x"])),
        (["name"], define("A B", permissions=[])),
        (["permissions[1]", "permissions[2]"], define("d", permissions=["x", "x y", "z\n"])),
        (["permissions"], define("d", permissions=map(str, range(201)))),
        (["inherits"], define("d", permissions=[], inherits=map(str, range(21)))),
    ):
        with pytest.raises(RoleInvalid) as error:
            await refused
        assert [field.field for field in error.value.fields] == fields
        assert all(len(field.en) < 200 for field in error.value.fields)
    assert (await auth.roles.list("t1"), len(events.events)) == (before, told)


async def test_a_change_for_all_may_not_spoil_a_tenant(auth: Auth) -> None:
    """A global role that would close a circle in somebody's tenant is refused, as is dropping what one inherits."""
    await auth.roles.define("s", permissions=[])
    await auth.roles.define("r", permissions=[])
    await auth.roles.define("s", permissions=[], inherits=["r"], tenant="t1")
    with pytest.raises(RoleInvalid):
        await auth.roles.define("r", permissions=[], inherits=["s"])
    with pytest.raises(RoleInvalid):
        await auth.roles.drop("r")
    await auth.roles.define("r", permissions=["x"])


async def test_there_are_limits(db: Database, memory: Redis, configure: Any, clock: ManualClock) -> None:
    """Roles per tenant, in all, and per subject: the one too many is refused, changing what is there is not."""
    config = configure(roles_per_tenant_max=2, roles_max=3, roles_per_subject_max=2)
    async with Auth(db, memory, config, clock=clock) as auth:
        for name in ("a", "b"):
            await auth.roles.define(name, permissions=[])
        with pytest.raises(RoleInvalid):
            await auth.roles.define("c", permissions=[])
        await auth.roles.define("a", permissions=["x"])
        await auth.roles.define("c", permissions=[], tenant="t1")
        with pytest.raises(RoleInvalid):
            await auth.roles.define("d", permissions=[], tenant="t1")
        await auth.roles.assign("u_1", ["a", "b"], tenant="t1")
        with pytest.raises(RoleInvalid):
            await auth.roles.add("u_1", "c", tenant="t1")
        with pytest.raises(RoleUnknown):
            await auth.roles.assign("u_1", ["a", "nobody"], tenant="t1")
        assert (await auth.roles.of("u_1", tenant="t1")).roles == ("a", "b")
        for odd in ("u 1", "", "x" * 129, "\n"):
            with pytest.raises(ValueError, match="subject"):
                await auth.roles.assign(odd, ["a"])


# -- who may change it -------------------------------------------------------------------------------------------


async def test_nobody_touches_what_is_above_them(auth: Auth) -> None:
    """``by`` gives and takes only what they may do themselves, and somebody above them is not theirs to shut out."""
    roles, support = auth.roles, somebody("users:read", "roles:*", "image:create")
    await roles.define("editor", permissions=["image:*"])
    await roles.assign("u_admin", ["admin"])
    for refused in (
        roles.define("mine", permissions=["image:delete"], by=support),
        roles.define("mine", permissions=["*"], by=support),
        roles.define("mine", permissions=[], inherits=["editor"], by=support),
        roles.define("editor", permissions=["image:create"], by=support),
        roles.drop("editor", by=support),
        roles.assign("u_1", ["editor"], by=support),
        roles.add("u_boss", "admin", by=support),
        roles.assign("u_admin", [], by=support),
        roles.remove("u_admin", "admin", by=support),
        roles.disable("u_admin", by=support),
        roles.enable("u_admin", by=support),
    ):
        with pytest.raises(Forbidden):
            await refused
    await roles.define("helper", permissions=["image:create"], inherits=["support"], by=support)
    assert (await roles.add("u_1", "helper", by=support)).roles == ("helper",)
    await roles.disable("u_1", by=support)
    assert (await roles.of("u_admin")) == Standing(("admin",), 1)


async def test_nobody_reaches_into_another_tenant(auth: Auth) -> None:
    """Whoever is of one tenant finds nothing in another, whatever they may do at home; of none, they may."""
    there, everywhere = somebody("*", tenant="t1"), somebody("*")
    for refused in (
        auth.roles.define("a", permissions=[], tenant="t2", by=there),
        auth.roles.define("a", permissions=[], by=there),
        auth.roles.drop("a", tenant="t2", by=there),
        auth.roles.assign("u_1", [], tenant="t2", by=there),
        auth.roles.assign("u_1", ["admin"], by=there),
        auth.roles.disable("u_1", tenant="t2", by=there),
    ):
        with pytest.raises(NotFound):
            await refused
    for by in (there, everywhere):
        await auth.roles.define("a", permissions=["x"], tenant="t1", by=by)
        await auth.roles.assign("u_1", ["a"], tenant="t1", by=by)


async def test_events_tell_who_did_what(auth: Auth, events: RecordedEvents) -> None:
    """Each change is told once, with the change; doing again what is done already is no change."""
    boss = somebody("*")
    for _ in range(2):
        await auth.roles.define("a", permissions=["y", "x", "x"], by=boss)
        await auth.roles.assign("u_1", ["a", "a"], tenant="t1", by=boss)
        await auth.roles.disable("u_1", tenant="t1", by=boss)
    for _ in range(2):
        await auth.roles.enable("u_1", tenant="t1")
    await auth.roles.assign("u_1", [], tenant="t1", by=boss)
    await auth.roles.drop("a")
    assert [(event.name, event.tenant, event.subject, event.data) for event in events.events] == [
        ("auth.role_defined", "", "", {"role": "a", "permissions": ["x", "y"], "inherits": [], "by": "u_boss"}),
        ("auth.roles_assigned", "t1", "u_1", {"roles": ["a"], "before": [], "by": "u_boss"}),
        ("auth.account_disabled", "t1", "u_1", {"by": "u_boss"}),
        ("auth.account_enabled", "t1", "u_1", {}),
        ("auth.roles_assigned", "t1", "u_1", {"roles": [], "before": ["a"], "by": "u_boss"}),
        ("auth.role_dropped", "", "", {"role": "a"}),
    ]


async def test_a_rolled_back_change_is_none(auth: Auth, events: RecordedEvents) -> None:
    """With tx= the role, the assignment, the shutting out, their events and their notices go with the transaction."""
    tokens = await auth.open_session("u_1")
    told = len(events.events)

    async def fail(tx: Tx) -> None:
        await auth.roles.define("a", permissions=["x"], tx=tx)
        await auth.roles.assign("u_1", ["a"], tx=tx)
        await auth.roles.disable("u_1", tx=tx)
        raise KeyError

    with pytest.raises(KeyError):
        await auth._db.run(fail)
    await auth._feed.read()
    await auth.roles.reload()
    assert who(auth, tokens).subject == "u_1"
    assert await auth.roles.of("u_1") == Standing()
    assert "a" not in [role.name for role in await auth.roles.list()]
    assert len(events.events) == told


# -- shut out ----------------------------------------------------------------------------------------------------


async def test_a_disabled_subject_is_out(auth: Auth) -> None:
    """Its sessions end at once, the right password says why, a wrong one does not; enabled, it has its roles again."""
    await auth.register(Password("a@x.cn", GOOD), subject="u_1")
    await auth.roles.assign("u_1", ["support"])
    tokens = await auth.login(Password("a@x.cn", GOOD))
    assert await auth.roles.disable("u_1") == Standing(("support",), 2, is_disabled=True)
    with pytest.raises(SessionRevoked):
        who(auth, tokens)
    with pytest.raises(SessionRevoked):
        await auth.refresh(tokens.refresh)
    with pytest.raises(AccountDisabled):
        await auth.login(Password("a@x.cn", GOOD))
    with pytest.raises(WrongCredentials):
        await auth.login(Password("a@x.cn", "Wrong-Horse-7"))
    with pytest.raises(AccountDisabled):
        await auth.open_session("u_1")
    assert await auth.sessions.list("u_1") == []
    await auth.open_session("u_1", tenant="elsewhere")
    await auth.roles.enable("u_1")
    assert who(auth, await auth.login(Password("a@x.cn", GOOD))).roles == ("support",)


async def test_nobody_slips_in_while_being_shut_out(auth: Auth) -> None:
    """A login under way is waited for and its session ended too, also of a subject nobody had heard of."""
    opened: list[Tokens] = []
    shutting: list[asyncio.Task[Standing]] = []

    async def enter(tx: Tx) -> None:
        opened.append(await auth.open_session("u_new", tx=tx))
        shutting.append(asyncio.create_task(auth.roles.disable("u_new")))
        await asyncio.wait(shutting, timeout=0.05)  # as far as it comes without us

    async with auth._db.transaction() as tx:
        await enter(tx)
    assert (await shutting[0]).is_disabled
    with pytest.raises(SessionRevoked):
        who(auth, opened[0])
    with pytest.raises(SessionRevoked):
        await auth.refresh(opened[0].refresh)


# -- several at once ---------------------------------------------------------------------------------------------


async def test_of_two_admins_at_once_both_count(auth: Auth) -> None:
    """Ten give one subject without a row a role each, at once: it has all ten, and its epoch says so."""
    names = [f"r{number}" for number in range(10)]
    for name in names:
        await auth.roles.define(name, permissions=[name])
    boss = somebody("*")
    await asyncio.gather(
        *(auth.roles.add("u_1", name, by=(boss, None)[number % 2]) for number, name in enumerate(names))
    )
    assert await auth.roles.of("u_1") == Standing(tuple(names), 10)
    await asyncio.gather(*(auth.roles.remove("u_1", name) for name in names[1:]))
    assert await auth.roles.of("u_1") == Standing(("r0",), 19)


async def test_nobody_waits_for_each_other(auth: Auth) -> None:
    """Whoever shuts somebody out, forgets them, lets them prove themselves or gives them roles locks in one order.

    Each goes as far as it comes while another holds what it wants next; a deadlock would be repeated, and counted.
    """
    await auth.register(Password("a@x.cn", GOOD), subject="u_1")
    me = who(auth, await auth.login(Password("a@x.cn", GOOD)))
    insert = (
        "INSERT INTO daydo_auth_role (inherits, permissions, tenant, name, changed_at_us) VALUES ('', 'x', '', ?, 1)"
    )
    await auth._db.execute(insert, ("news",))  # which this worker has not heard of

    async def hold_subject(tx: Tx) -> None:
        await auth.roles.hold(tx, "", "u_1")

    async def hold_roles(tx: Tx) -> None:
        await auth.roles._store.lock_roles(tx, "")

    async def end_sessions(tx: Tx) -> None:
        await auth.sessions.end_all("u_1", tx=tx)

    steps: list[tuple[Any, Any, Any]] = [
        (hold_roles, lambda: auth.roles.assign("u_1", ["news"]), hold_subject),
        (hold_subject, lambda: auth.step_up(me, Password("a@x.cn", GOOD)), end_sessions),
        (hold_subject, lambda: auth.forget("u_1"), end_sessions),
    ]
    retries = auth._db._retries.value
    for first, other, then in steps:
        await auth.open_session("u_1")
        async with auth._db.transaction() as tx:
            await first(tx)
            meanwhile = asyncio.create_task(other())
            await asyncio.wait([meanwhile], timeout=0.2)  # as far as it comes without us
            await then(tx)
        await asyncio.gather(meanwhile, return_exceptions=True)
    assert auth._db._retries.value == retries
    assert await auth.roles.of("u_1") == Standing(), "the last one was forgotten"


async def test_two_halves_of_a_circle_do_not_meet(auth: Auth) -> None:
    """``a`` inherits ``b`` and ``b`` inherits ``a``, defined at once, in one tenant and for all: one is refused."""
    for tenant in ("", "t1"):
        await auth.roles.define("a", permissions=[])
        await auth.roles.define("b", permissions=[])
        done = await asyncio.gather(
            auth.roles.define("a", permissions=["x"], inherits=["b"]),
            auth.roles.define("b", permissions=["x"], inherits=["a"], tenant=tenant),
            return_exceptions=True,
        )
        assert sorted(type(each).__name__ for each in done) == ["Role", "RoleInvalid"]
        for name in ("a", "b"):
            await auth.roles.define(name, permissions=[])


async def test_the_last_places_are_given_once(db: Database, memory: Redis, configure: Any, clock: ManualClock) -> None:
    """Into an empty table, at once: of four new roles two find room, and one that four define is one role."""
    async with Auth(db, memory, configure(roles_per_tenant_max=2), clock=clock) as auth:
        many = [auth.roles.define(name, permissions=[], tenant="t1") for name in "abcd"]
        done = await asyncio.gather(*many, return_exceptions=True)
        assert sorted(type(each).__name__ for each in done) == ["Role", "Role", "RoleInvalid", "RoleInvalid"]
        assert len(set(await asyncio.gather(*(auth.roles.define("a", permissions=["x"]) for _ in range(4))))) == 1


@pytest.mark.dialect("mysql")
async def test_an_old_snapshot_decides_nothing(auth: Auth, database_url: str) -> None:
    """A caller at REPEATABLE READ whose snapshot is old does not undo, close a circle over, or slip past a change."""
    await auth.roles.define("a", permissions=[])
    await auth.roles.define("b", permissions=[])
    await auth.roles.assign("u_1", ["a"])
    engine = create_async_engine(database_url.replace("mysql:", "mysql+aiomysql:"), isolation_level="REPEATABLE READ")

    @asynccontextmanager
    async def old() -> AsyncIterator[Tx]:
        async with async_sessionmaker(engine).begin() as session:
            tx = await enlist(session)
            for table in ("role", "role_table", "subject"):
                await session.execute(text(f"SELECT COUNT(*) FROM daydo_auth_{table}"))
            yield tx

    try:
        async with old() as tx:
            await auth.roles.define("a", permissions=[], inherits=["b"])
            with pytest.raises(RoleInvalid):
                await auth.roles.define("b", permissions=[], inherits=["a"], tx=tx)
        async with old() as tx:
            await auth.roles.add("u_1", "b")
            assert (await auth.roles.add("u_1", "admin", tx=tx)) == Standing(("a", "admin", "b"), 3)
        async with old() as tx:
            await auth.roles.define("b", permissions=["secret:read"])
            with pytest.raises(Forbidden):
                await auth.roles.assign("u_2", ["b"], by=somebody("users:read"), tx=tx)
        async with old() as tx:
            await auth.roles.disable("u_1")
            with pytest.raises(AccountDisabled):
                await auth.open_session("u_1", tx=tx)
    finally:
        await engine.dispose()


# -- every worker ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["pubsub", "look"])
async def test_every_worker_knows(db: Database, configure: Any, way: str) -> None:
    """What one worker defines, gives and takes counts at another: by Redis, and where Redis is away by the poll."""
    url = "embedded://memory" if way == "pubsub" else "redis://127.0.0.1:1/0"
    config = configure(revocation_poll_s=60 if way == "pubsub" else 0.02, session_store="sql", roles_refresh_s=3_600)
    async with Redis(url, CALM) as redis, Auth(db, redis, config) as one, Auth(db, redis, config) as two:
        while two.roles.epoch("") == 0:  # until it listens
            await one.roles.define("other", permissions=[f"n{one.roles.epoch('')}"])
            await asyncio.sleep(0.005)
        await one.roles.define("a", permissions=["x"])
        await one.roles.assign("u_1", ["a"])
        tokens = await one.open_session("u_1")
        await until(lambda: who(two, tokens).may("x"))
        await one.roles.define("a", permissions=["y"])
        await until(lambda: [*who(two, tokens).permissions] == ["y"])
        assert two.roles.epoch("") == one.roles.epoch("") > 2
        await until(lambda: two.roles.lag_s == 0)
        await one.roles.assign("u_1", [])

        def is_stale() -> bool:
            try:
                who(two, tokens)
            except TokenStale:
                return True
            return False

        await until(is_stale)


async def test_a_token_tells_of_newer_roles(db: Database, configure: Any) -> None:
    """A worker that has heard of no change reads the roles when it sees a token that was made with newer ones."""
    config = configure(revocation_poll_s=60, session_store="sql", roles_refresh_s=3_600)
    async with Redis("redis://127.0.0.1:1/0") as redis, Auth(db, redis, config) as one, Auth(db, redis, config) as two:
        await one.roles.define("a", permissions=["x"])
        await one.roles.assign("u_1", ["a"])
        tokens = await one.open_session("u_1")
        assert not who(two, tokens).may("x"), "it does not know yet"
        await until(lambda: who(two, tokens).may("x"))


async def test_newer_roles_that_are_no_more(sqlite: Database, memory: Redis, configure: Any) -> None:
    """Tokens from before the database was restored make nobody read the roles at each request."""
    source = Cached(RoleTable())
    async with Auth(sqlite, memory, configure(revocation_poll_s=60), role_source=source) as auth:
        for _ in range(5):
            auth.roles.notice("", 7)
            await until(lambda: source.loads >= 2)  # at the start, and once since
            await asyncio.sleep(0)
        await auth.roles.reload()  # waits for whoever reads
        assert source.loads == 3


async def test_a_worker_that_starts_later_knows(db: Database, memory: Redis, configure: Any) -> None:
    """Roles of before are there with the first request."""
    async with Auth(db, memory, configure()) as one:
        await one.roles.define("a", permissions=["x"])
        await one.roles.assign("u_1", ["a"])
        tokens = await one.open_session("u_1")
    async with Auth(db, memory, configure()) as two:
        assert who(two, tokens).may("x")


class Cached:
    """A cache in front of the table that somebody forgot to tell of changes."""

    def __init__(self, table: RoleTable) -> None:
        self.table = table
        self.loads = 0
        self.error: Exception | None = None

    async def load(self) -> RoleTable:
        self.loads += 1
        if self.error is not None:
            raise self.error
        return self.table


async def test_a_cache_in_front_of_the_table(sqlite: Database, memory: Redis, configure: Any, caplog: Any) -> None:
    """While a cache is behind the worker asks again and says how long; what is older than it holds it does not take."""
    source = Cached(RoleTable((Role("a", ("x",)),), {"": 1}))
    config = configure(revocation_poll_s=0.01)
    async with Auth(sqlite, memory, config, role_source=source) as auth:
        allowed = auth.roles.permissions
        assert allowed("", ("a",)).may("x")
        auth.roles._heard("", "a", 2)
        seen = source.loads
        await until(lambda: source.loads > seen + 2)
        assert auth.roles.lag_s > 0
        source.error = ConnectionLost()
        await until(lambda: any("roles cannot be read" in record.getMessage() for record in caplog.records))
        assert allowed("", ("a",)).may("x")
        source.table, source.error = RoleTable((Role("a", ("y",)),), {"": 2}), None
        await until(lambda: auth.roles.lag_s == 0)
        assert [*allowed("", ("a",))] == ["y"]
        source.table = RoleTable((Role("a", ("x",)),), {"": 1})
        await auth.roles.reload()
        assert [*allowed("", ("a",))] == ["y"]


async def test_a_change_is_done_whatever_the_source_says(sqlite: Database, memory: Redis, configure: Any) -> None:
    """A source that fails after the commit, however it fails, does not make a change look as if it had not been."""
    source = Cached(RoleTable())
    async with Auth(sqlite, memory, configure(), role_source=source) as auth:
        source.error = KeyError("a cache of yours")
        assert (await auth.roles.define("a", permissions=["x"])).name == "a"
        await auth.roles.drop("a")
        assert await auth.roles.list() == ()


async def test_defining_while_loading(auth: Auth) -> None:
    """An answer that set out before a change and arrives after it does not bring the old roles back."""
    await auth.roles.define("a", permissions=["x"])
    load, release, began = auth.roles._store.load, asyncio.Event(), asyncio.Event()

    async def slow() -> RoleTable:
        table = await load()
        began.set()
        await release.wait()
        return table

    auth.roles._store.load = slow  # type: ignore[method-assign]
    reading = asyncio.create_task(auth.roles.reload())
    await began.wait()
    auth.roles._store.load = load  # type: ignore[method-assign]
    defining = asyncio.create_task(auth.roles.define("a", permissions=["y"]))
    await until(lambda: auth.roles._behind_since_s is not None)
    release.set()
    await asyncio.gather(reading, defining)
    assert [*auth.roles.permissions("", ("a",))] == ["y"]
    assert auth.roles.lag_s == 0


async def test_a_restored_table_is_believed(auth: Auth) -> None:
    """Where the database went back to yesterday, so do the roles, at the latest after ``roles_refresh_s``."""
    await auth.roles.define("a", permissions=["x"])
    await auth.roles.define("a", permissions=["y"])
    async with auth._db.transaction() as tx:
        await tx.execute("UPDATE daydo_auth_role SET permissions = 'x'")
        await tx.execute("UPDATE daydo_auth_role_table SET epoch = 1")
    await auth.roles.reload()
    assert [*auth.roles.permissions("", ("a",))] == ["x"]


async def test_many_at_a_time(auth: Auth) -> None:
    """A page of users is one statement; whoever has no row stands as everybody does at first."""
    await auth.roles.assign("u_1", ["support"])
    await auth.roles.disable("u_2")
    found = await auth.roles.of_many(["u_1", "u_2", "u_3"])
    assert found == {"u_1": Standing(("support",), 1), "u_2": Standing((), 1, is_disabled=True), "u_3": Standing()}
    assert await auth.roles.of_many([]) == {}
    with pytest.raises(ValueError, match="100"):
        await auth.roles.of_many([str(number) for number in range(101)])


async def test_what_is_forgotten_is_gone(auth: Auth) -> None:
    """Erasing a person leaves no row of their roles."""
    await auth.roles.assign("u_1", ["support"])
    await auth._db.run(lambda tx: auth.roles.forget(tx, "", "u_1"))
    assert (await auth._db.query("SELECT COUNT(*) FROM daydo_auth_subject")).rows == [(0,)]


async def test_who_was_forgotten_may_come_again(auth: Auth) -> None:
    """A name that is given again soon after is not stale for what its first bearer's roles have been through."""
    tokens = await auth.open_session("u_1")
    await auth.roles.assign("u_1", ["support"])
    await auth.forget("u_1")
    with pytest.raises(SessionRevoked):
        who(auth, tokens)
    again = await auth.open_session("u_1")
    assert who(auth, again).roles == ()
    assert who(auth, await auth.refresh(again.refresh)).roles == ()
    await auth.roles.assign("u_1", ["support"])
    with pytest.raises(TokenStale):
        who(auth, again)


async def test_every_refusal_is_an_answer(auth: Auth) -> None:
    """Whatever roles refuse is a 4xx in two languages."""
    for refused, status in (
        (auth.roles.drop("x" * 10_000), 404),
        (auth.roles.assign("u_1", ["x" * 10_000]), 404),
        (auth.roles.define("", permissions=[]), 422),
    ):
        with pytest.raises(DaydoError) as error:
            await refused
        assert error.value.status == status
        assert len(error.value.text("zh") + error.value.text("en")) < 500

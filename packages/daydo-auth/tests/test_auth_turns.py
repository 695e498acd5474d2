"""Calls with ``tx=``: whole or not at all, one at a time, on every database, in our transactions and in a session's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import Context
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from daydo_auth import AccountDisabled, Auth, LoginTaken, Password, Principal, Proof, RoleUnknown, SubjectTaken
from daydo_auth.keys import KeyRefused
from daydo_db import Database, StatementFailed, Tx, taking_turns
from daydo_db.sqlalchemy import enlist
from daydo_db.testing import FailingTx, fail_each_step
from daydo_kernel import Event
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_redis import Redis

Begin = Callable[[], AbstractAsyncContextManager[Tx]]

SECRET, OTHER = "Secret-2026-xyz", "Other-2027-abc"
TABLES = ("identity", "password", "session", "subject", "role", "role_table", "api_key", "revocation")
REFUSED = StatementFailed(reason="a letter that its character set lacks", statement="")


class House:
    """An Auth that knows a person ``u_1`` with a login, a role, as many sessions as there may be, and a key."""

    def __init__(self, auth: Auth, db: Database) -> None:
        self.auth = auth
        self.db = db
        self.stranger = Proof("", "wechat:app", "openid_1", None, way="wechat", union="union_1")
        self.own = Proof("", "login", "a@x.cn", "u_1", way="code")

    async def furnish(self) -> None:
        auth = self.auth
        await auth.register(await auth.hash(Password("a@x.cn", SECRET)), subject="u_1")
        self.newcomer = await auth.hash(Password("b@x.cn", SECRET))
        await auth.roles.define("editor", permissions=["image:create"])
        await auth.roles.define("viewer", permissions=["image:view"])
        await auth.roles.assign("u_1", ["editor"])
        await auth.roles.disable("u_2")
        self.key = (await auth.keys.create("u_1", name="first", scopes=["image:create"])).key.id
        self.principal: Principal = auth.verify(f"Bearer {(await auth.open_session('u_1')).access}")
        await auth.open_session("u_1")

    async def rows(self) -> dict[str, list[str]]:
        found = {table: await self.db.query(f"SELECT * FROM daydo_auth_{table}") for table in TABLES}
        return {table: sorted(map(repr, result.rows)) for table, result in found.items()}


@pytest.fixture
async def house(
    db: Database, memory: Redis, configure: Any, clock: ManualClock, events: RecordedEvents
) -> AsyncIterator[House]:
    config = configure(session_store="sql", sessions_per_subject_max=2, keys_per_subject_max=2)
    async with Auth(db, memory, config, clock=clock, events=events) as auth:
        house = House(auth, db)
        await house.furnish()
        yield house


@pytest.fixture(params=["ours", "enlisted"])
async def begin(request: pytest.FixtureRequest, db: Database, database_url: str) -> AsyncIterator[Begin]:
    """Opens a transaction that ends with the block."""
    if request.param == "ours":
        yield db.transaction
        return
    url = database_url.replace("sqlite:", "sqlite+aiosqlite:", 1).replace("mysql:", "mysql+aiomysql:", 1)
    engine = create_async_engine(url)

    @asynccontextmanager
    async def enlisted() -> AsyncIterator[Tx]:
        async with AsyncSession(engine) as session, session.begin():
            yield await enlist(session)

    yield enlisted
    await engine.dispose()


# -- whole -------------------------------------------------------------------------------------------------------------

Call = Callable[[Auth, House, Tx], Awaitable[object]]
CALLS: dict[str, Call] = {
    "register": lambda auth, house, tx: auth.register(house.newcomer, subject="u_3", tx=tx),
    "link": lambda auth, house, tx: auth.link(house.stranger, subject="u_3", tx=tx),
    "link what is theirs": lambda auth, house, tx: auth.link(house.own, subject="u_1", tx=tx),
    "open a session": lambda auth, house, tx: auth.open_session("u_1", tx=tx),
    "change the password": lambda auth, house, tx: auth.change_password(house.principal, SECRET, OTHER, tx=tx),
    "set a password": lambda auth, house, tx: auth.set_password("u_3", OTHER, tx=tx),
    "forget": lambda auth, house, tx: auth.forget("u_1", tx=tx),
    "log out": lambda auth, house, tx: auth.logout(house.principal, tx=tx),
    "end a session": lambda auth, house, tx: auth.sessions.end("u_1", house.principal.session_id, tx=tx),
    "end all sessions": lambda auth, house, tx: auth.sessions.end_all("u_1", tx=tx),
    "remove an identity": lambda auth, house, tx: auth.identities.remove("u_1", "a@x.cn", tx=tx),
    "make a key": lambda auth, house, tx: auth.keys.create("u_1", name="second", scopes=["image:create"], tx=tx),
    "revoke a key": lambda auth, house, tx: auth.keys.revoke("u_1", house.key, tx=tx),
    "define a role": lambda auth, house, tx: auth.roles.define("teller", permissions=["quota:grant"], tx=tx),
    "change a role": lambda auth, house, tx: auth.roles.define("editor", permissions=["image:*"], tx=tx),
    "drop a role": lambda auth, house, tx: auth.roles.drop("viewer", tx=tx),
    "give a role": lambda auth, house, tx: auth.roles.add("u_1", "viewer", tx=tx),
    "take a role": lambda auth, house, tx: auth.roles.remove("u_1", "editor", tx=tx),
    "set the roles": lambda auth, house, tx: auth.roles.assign("u_1", ["viewer"], tx=tx),
    "disable": lambda auth, house, tx: auth.roles.disable("u_1", tx=tx),
    "leave": lambda auth, house, tx: auth.roles.disable("u_1", by=house.principal, tx=tx),
    "enable": lambda auth, house, tx: auth.roles.enable("u_2", tx=tx),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("error", [REFUSED, asyncio.CancelledError()], ids=["refused", "cancelled"])
async def test_a_call_that_failed_at_its_nth_step_leaves_nothing_that_can_be_committed(
    house: House,
    begin: Begin,
    events: RecordedEvents,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: BaseException,
) -> None:
    """Whoever bears the error and commits keeps nothing of it: no password without its sessions ended, say."""
    before = await house.rows()

    async def call(tx: FailingTx) -> None:
        async def emit(event: Event, tx_of_event: Tx | None = None) -> None:
            tx.step()

        monkeypatch.setattr(events, "emit", emit)
        await CALLS[name](house.auth, house, tx)

    async for step in fail_each_step(begin, call, error):
        assert await house.rows() == before, f"at step {step}"
    assert await house.rows() != before, "nothing failed"


async def test_a_refusal_leaves_its_transaction_as_it_was(house: House, begin: Begin) -> None:
    """It is an answer, and nothing was written for it."""
    auth = house.auth
    taken = await auth.hash(Password("a@x.cn", SECRET))
    refused: list[tuple[type[Exception], Callable[[Tx], Awaitable[object]]]] = [
        (LoginTaken, lambda tx: auth.register(taken, subject="u_3", tx=tx)),
        (LoginTaken, lambda tx: auth.link(house.own, subject="u_3", tx=tx)),
        (SubjectTaken, lambda tx: auth.set_password("u_1", OTHER, tx=tx)),
        (AccountDisabled, lambda tx: auth.open_session("u_2", tx=tx)),
        (RoleUnknown, lambda tx: auth.roles.add("u_1", "nobody", tx=tx)),
    ]
    async with begin() as tx:
        for refusal, call in refused:
            with pytest.raises(refusal):
                await call(tx)
        await auth.roles.add("u_1", "viewer", tx=tx)
    assert (await auth.roles.of("u_1")).roles == ("editor", "viewer")
    assert [each.login for each in await auth.identities.list("u_3")] == []


LATE: dict[str, tuple[type[Exception], Call]] = {
    "register": (SubjectTaken, lambda auth, house, tx: auth.register(house.newcomer, subject="u_1", tx=tx)),
    "link": (LoginTaken, lambda auth, house, tx: auth.link(house.stranger, subject="u_3", tx=tx)),
}
"""Refusals that come when the login, the openid, has been written: the password, the unionid is there already."""


@pytest.fixture(params=LATE)
async def late(request: pytest.FixtureRequest, house: House) -> tuple[type[Exception], Call]:
    await house.auth.link(Proof("", "wechat", "union_1", None, way="wechat"), subject="u_2")
    return LATE[request.param]


async def test_a_refusal_that_comes_late_is_taken_back(
    house: House, begin: Begin, events: RecordedEvents, late: tuple[type[Exception], Call]
) -> None:
    """Its transaction goes on, and nothing was told."""
    refusal, call = late
    before, told = await house.rows(), len(events.events)
    async with begin() as tx:
        with pytest.raises(refusal):
            await call(house.auth, house, tx)
        await tx.execute("UPDATE daydo_auth_role_table SET epoch = epoch + 1")
    assert len(events.events) == told
    after = await house.rows()
    assert after.pop("role_table") != before.pop("role_table")
    assert after == before


@pytest.mark.parametrize("error", [REFUSED, asyncio.CancelledError()], ids=["refused", "cancelled"])
async def test_a_refusal_that_cannot_be_taken_back_cannot_be_committed(
    house: House, begin: Begin, late: tuple[type[Exception], Call], error: BaseException
) -> None:
    """There would be a login without its password, an openid without its unionid."""
    refusal, call = late
    before = await house.rows()

    async def refused(tx: Tx) -> None:
        with suppress(refusal):
            await call(house.auth, house, tx)

    async for step in fail_each_step(begin, refused, error):
        assert await house.rows() == before, f"at step {step}"
    assert await house.rows() == before


@pytest.mark.dialect("mysql")
async def test_a_refusal_that_was_taken_back_keeps_nobody_else_waiting(
    house: House, database_url: str, late: tuple[type[Exception], Call]
) -> None:
    """Not even at REPEATABLE READ, where what is looked for and missing is locked with all around it."""
    refusal, call = late
    engine = create_async_engine(database_url.replace("mysql:", "mysql+aiomysql:"), isolation_level="REPEATABLE READ")
    auth = house.auth
    around = [("u_0", "aa@x.cn", "openid_0"), ("u_10", "b@x.cm", "openid_10"), ("u_30", "b@x.cnn", "openid_2")]
    try:
        async with asyncio.timeout(10), AsyncSession(engine) as session, session.begin():
            tx = await enlist(session)
            with pytest.raises(refusal):
                await call(auth, house, tx)
            for subject, login, openid in around:
                await auth.register(Password(login, SECRET), subject=subject)
                await auth.link(Proof("", "wechat:app", openid, None, way="wechat"), subject=subject)
    finally:
        await engine.dispose()


# -- in turn -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_sends_nothing_outside_its_turn(house: House, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What it reads may be what the one before it has yet to write: during each statement nobody else gets a turn."""
    others: list[asyncio.Task[None]] = []

    async def take_a_turn(tx: Tx) -> None:
        async with taking_turns(tx):
            pass

    def watched(send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def send_in_turn(*args: Any) -> Any:
            others.append(asyncio.create_task(take_a_turn(tx), context=Context()))
            await asyncio.sleep(0)
            assert not others[-1].done(), args
            return await send(*args)

        return send_in_turn

    async with house.db.transaction() as tx:
        monkeypatch.setattr(tx, "execute", watched(tx.execute))
        monkeypatch.setattr(tx, "execute_all", watched(tx.execute_all))
        await CALLS[name](house.auth, house, tx)
        await asyncio.gather(*others)
    assert others


async def at_once(tx: Tx, *calls: Callable[[Tx], Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*(call(tx) for call in calls), return_exceptions=True)


async def test_roles_that_are_given_at_once_in_one_transaction_both_count(house: House, begin: Begin) -> None:
    """The second is decided on what the first has written."""
    add = house.auth.roles.add
    async with begin() as tx:
        await at_once(tx, lambda tx: add("u_3", "editor", tx=tx), lambda tx: add("u_3", "viewer", tx=tx))
    assert (await house.auth.roles.of("u_3")).roles == ("editor", "viewer")


async def test_a_role_that_is_defined_twice_at_once_in_one_transaction_is_one(house: House, begin: Begin) -> None:
    """The second finds it there."""
    define = house.auth.roles.define
    async with begin() as tx:
        first, second = await at_once(tx, *[lambda tx: define("teller", permissions=["quota:grant"], tx=tx)] * 2)
    assert first == second


async def test_keys_that_are_made_at_once_in_one_transaction_keep_to_their_number(house: House, begin: Begin) -> None:
    """There is room for one more."""
    create = house.auth.keys.create
    async with begin() as tx:
        done = await at_once(tx, *[lambda tx: create("u_1", name="more", scopes=["image:create"], tx=tx)] * 3)
    assert [type(each) for each in done if isinstance(each, Exception)] == [KeyRefused] * 2
    assert len(await house.auth.keys.list("u_1")) == 2


async def test_of_two_registrations_at_once_in_one_transaction_one_is_refused(house: House, begin: Begin) -> None:
    """And leaves nothing: it could be committed with the password of a subject that has no login."""
    register, before = house.auth.register, await house.rows()
    async with begin() as tx:
        subjects = ("u_3", "u_4")
        done = await at_once(tx, *(lambda tx, s=s: register(house.newcomer, subject=s, tx=tx) for s in subjects))
    assert [type(each) for each in done] == [type(None), LoginTaken]
    assert len((await house.rows())["password"]) == len(before["password"]) + 1


async def test_nobody_is_let_in_while_being_shut_out_in_one_transaction(house: House, begin: Begin) -> None:
    """Whoever asks second is told."""
    auth = house.auth
    async with begin() as tx:
        _, told = await at_once(
            tx, lambda tx: auth.roles.disable("u_1", tx=tx), lambda tx: auth.open_session("u_1", tx=tx)
        )
    assert isinstance(told, AccountDisabled)


async def test_a_sink_may_call_auth_in_the_same_transaction(
    house: House, begin: Begin, events: RecordedEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its call is part of the one that it hears of, and does not wait for its end."""

    async def give_a_role(event: Event, tx: Any = None) -> None:
        if event.name == "auth.registered":
            await house.auth.roles.add(event.subject, "viewer", tx=tx)

    monkeypatch.setattr(events, "emit", give_a_role)
    async with asyncio.timeout(5), begin() as tx:
        await house.auth.register(house.newcomer, subject="u_3", tx=tx)
    assert (await house.auth.roles.of("u_3")).roles == ("viewer",)

"""Credentials become proofs: by password, code and WeChat; and what others lose by it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from daydo_auth import (
    AccountDisabled,
    Auth,
    Code,
    CodeWrong,
    HashingSaturated,
    LoginTaken,
    Password,
    PasswordTooWeak,
    Principal,
    Proof,
    SessionRevoked,
    SubjectTaken,
    TokenInvalid,
    Tokens,
    UnknownIdentity,
    WeChatCode,
    WeChatCodeInvalid,
    WeChatUnavailable,
    WeChatUser,
    WrongCredentials,
)
from daydo_db import Database, Tx
from daydo_db.sqlalchemy import enlist
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_redis import Redis

PHONE, MAIL = "13812345678", "zhang@x.cn"
OLD, NEW = "Correct-Horse-7", "Other-Horse-8"
APP, SISTER = "wx_app", "wx_sister"


class Outbox:
    """Carries codes nowhere and remembers the last."""

    code = ""

    async def send(self, to: str, code: str, purpose: str, *, key: str, ttl_s: float) -> None:
        self.code = code


class People:
    """WeChat, where each code is good once."""

    def __init__(self) -> None:
        self.behind: dict[str, WeChatUser] = {}

    def __call__(self, openid: str, unionid: str = "", appid: str = APP) -> WeChatCode:
        code = f"code_{len(self.behind)}_{openid}"
        self.behind[code] = WeChatUser(appid, openid, unionid)
        return WeChatCode(code)

    async def code2session(self, code: str) -> WeChatUser:
        try:
            return self.behind.pop(code)
        except KeyError:
            raise WeChatCodeInvalid() from None


class House:
    """An Auth and the outside world around it."""

    def __init__(self, db: Database, redis: Redis, config: Any, clock: ManualClock | None) -> None:
        self.db, self.out, self.wechat, self.events = db, Outbox(), People(), RecordedEvents()
        senders: Any = {"phone": self.out, "email": self.out}
        self.auth = Auth(db, redis, config, senders=senders, wechat=self.wechat, clock=clock, events=self.events)

    async def code(self, login: str = PHONE, purpose: str = "login", tenant: str = "") -> Code:
        await self.auth.codes.send(login, purpose, tenant=tenant)
        return Code(login, self.out.code)

    async def proof(self, login: str = PHONE, purpose: str = "login", by: Principal | None = None) -> Proof:
        return await self.auth.prove(await self.code(login, purpose), purpose=purpose, by=by)

    async def enter(self, login: str = PHONE, subject: str = "u_1") -> Tokens:
        await self.auth.register(Password(login, OLD), subject=subject)
        return await self.auth.login(Password(login, OLD))

    def who(self, tokens: Tokens) -> Principal:
        return self.auth.verify(f"Bearer {tokens.access}")

    async def is_out(self, tokens: Tokens) -> bool:
        """Whether neither of the tokens is good any more."""
        try:
            self.who(tokens)
        except SessionRevoked:
            with pytest.raises((SessionRevoked, TokenInvalid)):
                await self.auth.refresh(tokens.refresh)
            return True
        return False

    def told(self, name: str) -> list[dict[str, Any]]:
        return [event.data for event in self.events.events if event.name == f"auth.{name}"]


@pytest.fixture
def settings(configure: Any) -> Any:
    return configure(code_interval_s=0)


@pytest.fixture
async def house(db: Database, memory: Redis, settings: Any, clock: ManualClock) -> AsyncIterator[House]:
    """On a database of every kind."""
    house = House(db, memory, settings, clock)
    async with house.auth:
        yield house


@pytest.fixture
async def home(sqlite: Database, memory: Redis, settings: Any, clock: ManualClock) -> AsyncIterator[House]:
    """For what does not depend on the kind of database."""
    home = House(sqlite, memory, settings, clock)
    async with home.auth:
        yield home


# -- first steps -------------------------------------------------------------------------------------------------------


async def test_a_stranger_by_code_is_registered_in_one_transaction(house: House) -> None:
    """Prove, link and open a session; from then on the code alone logs in."""
    proof = await house.proof("+86 138 1234 5678")
    assert (proof.kind, proof.login, proof.subject) == ("login", PHONE, None)

    async def sign_up(tx: Tx) -> Tokens:
        await house.auth.link(proof, subject="u_1", tx=tx)
        return await house.auth.open_session("u_1", tx=tx)

    assert house.who(await house.db.run(sign_up)).subject == "u_1"
    assert (await house.auth.login(await house.code())).subject == "u_1"
    assert house.told("linked") == [{"kind": "login", "login": "138****5678"}]


async def test_linking_belongs_to_the_transaction(home: House) -> None:
    """With tx= a rollback takes the identity with it."""
    proof = await home.proof()

    async def fail(tx: Tx) -> None:
        await home.auth.link(proof, subject="u_1", tx=tx)
        raise KeyError

    with pytest.raises(KeyError):
        await home.db.run(fail)
    assert home.told("linked") == []
    assert await home.auth.identities.list("u_1") == []
    with pytest.raises(UnknownIdentity):
        await home.auth.login(await home.code())


async def test_one_of_many_gets_the_identity(house: House) -> None:
    """Ten proofs of one stranger, linked at once to ten subjects: one has it, and for that one it is no error twice."""
    proofs = [await house.proof() for _ in range(10)]
    done = await asyncio.gather(
        *(house.auth.link(proof, subject=f"u_{number}") for number, proof in enumerate(proofs)), return_exceptions=True
    )
    assert Counter(type(result).__name__ for result in done) == {"NoneType": 1, "LoginTaken": 9}
    await house.auth.link(proofs[0], subject=f"u_{done.index(None)}")
    assert len(house.told("linked")) == 1


async def test_linking_the_same_to_the_same_at_once(house: House) -> None:
    """Ten proofs of one person, linked at once to their one subject: no error, and one is told."""
    proofs = [await house.auth.prove(house.wechat("o_1", "union_1")) for _ in range(10)]
    await asyncio.gather(*(house.auth.link(proof, subject="u_1") for proof in proofs))
    kinds = [identity.kind for identity in await house.auth.identities.list("u_1")]
    assert sorted(kinds) == ["wechat", f"wechat:{APP}"]
    assert len(house.told("linked")) == 2


async def test_linking_in_a_transaction_that_looked_too_early(house: House) -> None:
    """Somebody else links the same between the look and the row: to the same subject it is done, else LoginTaken."""
    proof, exists = await house.proof(), house.auth._proofs._store.exists

    async def looked_before(*_: Any) -> bool:
        return False

    await house.auth.link(proof, subject="u_1")
    house.auth._proofs._store.exists = looked_before  # type: ignore[method-assign]

    async def link_and_go_on(tx: Tx) -> Tokens:
        await house.auth.link(proof, subject="u_1", tx=tx)
        return await house.auth.open_session("u_1", tx=tx)

    assert (await house.db.run(link_and_go_on)).subject == "u_1"
    with pytest.raises(LoginTaken):
        await house.auth.link(proof, subject="u_2")
    house.auth._proofs._store.exists = exists  # type: ignore[method-assign]
    assert len(house.told("linked")) == 1


@pytest.mark.dialect("mysql")
async def test_a_caller_with_an_old_snapshot(house: House, database_url: str) -> None:
    """At REPEATABLE READ they see who has linked since, wait for no other newcomer; of sessions that they do not see
    the next one ends what is too many.
    """
    engine = create_async_engine(database_url.replace("mysql:", "mysql+aiomysql:"), isolation_level="REPEATABLE READ")

    @asynccontextmanager
    async def old() -> AsyncIterator[Tx]:
        async with async_sessionmaker(engine).begin() as session:
            tx = await enlist(session)
            for table in ("identity", "session", "subject"):
                await session.execute(text(f"SELECT COUNT(*) FROM daydo_auth_{table}"))
            yield tx

    proof = await house.proof()
    try:
        async with old() as tx:
            await house.auth.link(proof, subject="u_1")
            await house.auth.link(proof, subject="u_1", tx=tx)
        async with old() as tx:
            first = await house.auth.open_session("u_1")
            for _ in range(house.auth.config.sessions_per_subject_max - 1):
                await house.auth.open_session("u_1")
            await house.auth.open_session("u_1", tx=tx)
        await house.auth.open_session("u_1")
        assert await house.is_out(first)
        async with old() as one, old() as two:
            for number, tx in enumerate((one, two, one, two)):
                await house.auth.open_session(f"u_new_{number}", tx=tx)
    finally:
        await engine.dispose()
    assert len(await house.auth.sessions.list("u_1")) == house.auth.config.sessions_per_subject_max


@pytest.mark.parametrize("way", ["wechat", "code"])
async def test_parallel_first_requests_of_one_person(house: House, way: str) -> None:
    """All prove that they are nobody yet; one registers them, the others ask again and are the same."""
    proof = await house.auth.prove(house.wechat("o_1", "union_1") if way == "wechat" else await house.code())

    async def enter(subject: str) -> str:
        async def sign_up(tx: Tx) -> Tokens:
            await house.auth.link(proof, subject=subject, tx=tx)
            return await house.auth.open_session(subject, tx=tx)

        try:
            return (await house.db.run(sign_up)).subject
        except LoginTaken:
            return str((await house.auth.identify(proof)).subject)

    assert len({*await asyncio.gather(*(enter(f"u_{number}") for number in range(8)))}) == 1


async def test_asking_again_follows_the_rules_of_a_proof(home: House) -> None:
    """Nobody's yet, whose it is by now, or AccountDisabled; an unproven login changes hands; a password does not."""
    proof = await home.proof()
    assert (await home.auth.identify(proof)).subject is None
    squatter = await home.enter()
    password = await home.auth.prove(Password(PHONE, OLD))
    assert (await home.auth.identify(proof)).subject == "u_1"
    assert await home.is_out(squatter)
    await home.auth.identities.remove("u_1", PHONE)
    await home.auth.link(proof, subject="u_2")
    assert (await home.auth.identify(password)).subject == "u_1"
    assert (await home.auth.identify(proof)).subject == "u_2"
    await home.auth.roles.disable("u_2")
    with pytest.raises(AccountDisabled):
        await home.auth.identify(proof)


async def test_a_code_is_used_up_by_what_it_proves(home: House) -> None:
    """Of ten parallel log-ins with one code one succeeds; of a wrong tenant or purpose none does."""
    await home.auth.link(await home.proof(), subject="u_1")
    code = await home.code()
    for wrong in ({"purpose": "bind"}, {"tenant": "acme"}):
        with pytest.raises(CodeWrong):
            await home.auth.prove(code, **wrong)
    done = await asyncio.gather(*(home.auth.login(code) for _ in range(10)), return_exceptions=True)
    assert Counter(type(result).__name__ for result in done) == {"Tokens": 1, "CodeWrong": 9}


async def test_wechat_and_its_union(house: House) -> None:
    """A person of one mini-program is the same in its sister: found by the unionid, from then on by the openid too."""
    proof = await house.auth.prove(house.wechat("o_1", "union_1"))
    assert (proof.kind, proof.subject) == (f"wechat:{APP}", None)
    await house.auth.link(proof, subject="u_1")
    assert (await house.auth.login(house.wechat("o_1", "union_1"))).subject == "u_1"
    assert (await house.auth.login(house.wechat("o_2", "union_1", SISTER))).subject == "u_1"
    assert (await house.auth.login(house.wechat("o_2", appid=SISTER))).subject == "u_1"
    # An openid means nothing in another application.
    with pytest.raises(UnknownIdentity):
        await house.auth.login(house.wechat("o_1", appid=SISTER))
    kinds = {identity.kind for identity in await house.auth.identities.list("u_1")}
    assert kinds == {f"wechat:{APP}", f"wechat:{SISTER}", "wechat"}


async def test_a_unionid_that_comes_later(home: House) -> None:
    """Known by the openid first, a person is known by the unionid once it appears, and two people stay two."""
    await home.auth.link(await home.auth.prove(home.wechat("o_1")), subject="u_1")
    await home.auth.link(await home.auth.prove(home.wechat("o_2", "union_2", SISTER)), subject="u_2")
    assert (await home.auth.login(home.wechat("o_1", "union_1"))).subject == "u_1"
    assert (await home.auth.login(home.wechat("o_9", "union_1", SISTER))).subject == "u_1"
    # The openid says who it is, though the unionid is another's.
    assert (await home.auth.login(home.wechat("o_1", "union_2"))).subject == "u_1"
    assert (await home.auth.login(home.wechat("o_3", "union_2"))).subject == "u_2"


async def test_parallel_first_visits_to_a_sister(house: House) -> None:
    """Ten first log-ins through a second mini-program at once: all are the same person."""
    await house.auth.link(await house.auth.prove(house.wechat("o_1", "union_1")), subject="u_1")
    visits = [house.auth.login(house.wechat("o_2", "union_1", SISTER)) for _ in range(10)]
    assert {tokens.subject for tokens in await asyncio.gather(*visits)} == {"u_1"}


async def test_a_replayed_wechat_code(home: House) -> None:
    """The second use is refused and told, without a subject."""
    code = home.wechat("o_1")
    await home.auth.link(await home.auth.prove(code), subject="u_1")
    with pytest.raises(WeChatCodeInvalid):
        await home.auth.login(code, address="192.0.2.1")
    assert home.told("refused") == [{"error": "auth.wechat_code_invalid", "address": "192.0.2.1"}]


async def test_without_wechat(sqlite: Database, memory: Redis, settings: Any) -> None:
    """An Auth that was given no WeChat cannot ask it."""
    async with Auth(sqlite, memory, settings) as auth:
        with pytest.raises(WeChatUnavailable):
            await auth.login(WeChatCode("c"))
        assert auth._logins.value("wechat", "unavailable") == 1


async def test_binding_a_phone(home: House) -> None:
    """Whoever came by WeChat proves a phone, and logs in by either; a phone of somebody else stays theirs."""
    await home.auth.link(await home.auth.prove(home.wechat("o_1")), subject="u_1")
    principal = home.who(await home.auth.login(home.wechat("o_1")))
    await home.auth.link(await home.proof(purpose="bind", by=principal), subject="u_1")
    assert (await home.auth.login(await home.code())).subject == "u_1"
    other = await home.proof(purpose="bind")
    assert other.subject == "u_1"
    with pytest.raises(LoginTaken):
        await home.auth.link(other, subject="u_2")


async def test_identities_are_listed_and_removed(home: House) -> None:
    """A phone that was given up logs in nobody, and is free for another; of others' identities nothing goes."""
    await home.auth.link(await home.proof(), subject="u_1")
    (identity,) = await home.auth.identities.list("u_1")
    assert (identity.login, identity.verified_at_us > 0) == (PHONE, True)
    assert PHONE not in repr(identity)
    assert not await home.auth.identities.remove("u_2", PHONE)
    assert await home.auth.identities.remove("u_1", "+86 138-1234-5678")
    assert not await home.auth.identities.remove("u_1", PHONE)
    assert home.told("unlinked") == [{"kind": "login", "login": "138****5678"}]
    await home.auth.link(await home.proof(), subject="u_2")


async def test_logins_are_counted_by_what_was_shown(home: House) -> None:
    """Each once, in one step or in two; with all that refuses them, and without what is no login."""
    auth, people = home.auth, home.wechat
    counted: Counter[tuple[str, str]] = Counter()

    def after(*expected: tuple[str, str]) -> None:
        counted.update(expected)
        values = {key: cell.value for key, cell in auth._logins._cells.items()}
        assert {key: value for key, value in values.items() if value} == counted

    await auth.register(Password(MAIL, OLD), subject="u_2")
    here = home.who(await auth.open_session("u_2"))
    after(("other", "ok"))
    await auth.login(Password(MAIL, OLD))
    await auth.open_session("u_2", proof=await auth.prove(Password(MAIL, OLD)))
    after(("password", "ok"), ("password", "ok"))
    for login in (auth.prove, auth.login):
        with pytest.raises(WrongCredentials):
            await login(Password(MAIL, NEW))
        with pytest.raises(CodeWrong):
            await login(Code(PHONE, "000000"))
        with pytest.raises(WeChatCodeInvalid):
            await login(WeChatCode("none"))
        after(("password", "wrong"), ("code", "wrong"), ("wechat", "wrong"))
    with pytest.raises(UnknownIdentity):
        await auth.login(await home.code())
    with pytest.raises(UnknownIdentity):
        await auth.login(people("o_1"))
    after(("code", "unknown"), ("wechat", "unknown"))

    for proof in (await home.proof(), await auth.prove(people("o_1"))):
        await auth.link(proof, subject="u_1")
        await auth.open_session("u_1", proof=proof)
        after((proof.way, "ok"))
    await auth.login(await home.code())
    await auth.login(people("o_1"))
    after(("code", "ok"), ("wechat", "ok"))

    with pytest.raises(WrongCredentials):
        await auth.step_up(here, Password(MAIL, NEW))
    with pytest.raises(WrongCredentials):
        await auth.change_password(here, NEW, NEW)
    with pytest.raises(CodeWrong):
        await auth.reset_password(Code(PHONE, "000000"), NEW)
    after()
    proof = await auth.prove(people("o_1"))
    await auth.roles.disable("u_1")
    await auth.roles.disable("u_2")
    for credential in (Password(MAIL, OLD), await home.code(), people("o_1")):
        with pytest.raises(AccountDisabled):
            await auth.login(credential)
    with pytest.raises(AccountDisabled):
        await auth.open_session("u_1", proof=proof)
    after(("password", "disabled"), ("code", "disabled"), ("wechat", "disabled"), ("wechat", "disabled"))


# -- logins that nobody has proven -------------------------------------------------------------------------------------


async def test_a_squatter_loses_the_account_to_the_owner_of_the_phone(house: House) -> None:
    """Registered with a stranger's number: when the stranger comes by a code, password, sessions and keys are gone."""
    squatter, dropped = await house.enter(), []
    await insert_key(house, "u_1")
    house.auth._feed.on("key", lambda tenant, name, epoch: dropped.append(name))
    tokens = await house.auth.login(await house.code())
    assert tokens.subject == "u_1"
    assert await house.is_out(squatter)
    assert house.who(tokens).subject == "u_1"
    with pytest.raises(WrongCredentials):
        await house.auth.login(Password(PHONE, OLD))
    assert (await count_keys(house, "u_1"), dropped) == (0, ["key_1"])
    assert house.told("login_reclaimed") == [{"login": "138****5678", "subject_kept": False}]
    # Proven once, it is theirs: the second code takes nothing.
    await house.auth.set_password("u_1", NEW)
    await house.auth.login(await house.code())
    assert (await house.auth.login(Password(PHONE, NEW))).subject == "u_1"
    assert len(house.told("login_reclaimed")) == 1


async def test_an_account_that_changes_hands_starts_clean(house: House) -> None:
    """Roles that were given to a squatter go, and the application cleans up while nobody can get in; if that fails
    nobody does, and the next proof tries again.
    """
    squatter, cleaned = await house.enter(), []
    await house.auth.roles.define("editor", permissions=["articles:*"])
    await house.auth.roles.assign("u_1", ["editor"])

    async def clean(tenant: str, subject: str) -> None:
        assert await house.is_out(squatter)
        with pytest.raises(WrongCredentials):
            await house.auth.login(Password(PHONE, OLD))
        cleaned.append((tenant, subject))
        if len(cleaned) == 1:
            raise KeyError

    house.auth._proofs._start_clean = clean
    with pytest.raises(KeyError):
        await house.auth.login(await house.code())
    assert house.told("login_reclaimed") == []
    tokens = await house.auth.login(await house.code())
    assert house.who(tokens).roles == ()
    assert cleaned == [("", "u_1")] * 2
    assert house.told("login_reclaimed") == [{"login": "138****5678", "subject_kept": False}]
    await house.auth.login(await house.code())
    assert len(cleaned) == 2
    assert not await house.is_out(tokens)


async def test_two_proofs_while_an_account_changes_hands(house: House) -> None:
    """By codes for two purposes at once: it is cleaned before either gets in, and handed over once."""
    await house.enter()
    codes = {purpose: await house.code(purpose=purpose) for purpose in ("login", "bind")}
    both, waiting = asyncio.Event(), []

    async def clean(_: str, subject: str) -> None:
        waiting.append(subject)
        if len(waiting) == 2:
            both.set()
        await both.wait()

    house.auth._proofs._start_clean = clean
    proofs = await asyncio.gather(*(house.auth.prove(code, purpose=purpose) for purpose, code in codes.items()))
    assert [proof.subject for proof in proofs] == ["u_1"] * 2
    assert len(house.told("login_reclaimed")) == 1


async def test_a_squatter_who_is_somebody_keeps_all_but_the_login(home: House) -> None:
    """An account that WeChat has proven is not handed over with a number that was never proven: the number is."""
    squatter = await home.enter()
    await home.auth.link(await home.auth.prove(home.wechat("o_squatter")), subject="u_1")
    proof = await home.proof()
    assert proof.subject is None
    assert not await home.is_out(squatter)
    await home.auth.link(proof, subject="u_2")
    assert (await home.auth.login(await home.code())).subject == "u_2"
    assert (await home.auth.login(home.wechat("o_squatter"))).subject == "u_1"
    with pytest.raises(WrongCredentials):
        await home.auth.login(Password(PHONE, OLD))
    assert home.told("login_reclaimed") == [{"login": "138****5678", "subject_kept": True}]


async def test_a_squatter_who_left_keeps_nobody_out(house: House) -> None:
    """Registered with a stranger's number, then deactivated: the stranger proves the number and is somebody new."""
    await house.auth.roles.disable("u_1", by=house.who(await house.enter()))
    with pytest.raises(UnknownIdentity):
        await house.auth.reset_password(await house.code(purpose="reset"), NEW)
    proof = await house.proof()
    assert proof.subject is None
    await house.auth.register(Password(PHONE, NEW), subject="u_2")
    await house.auth.link(proof, subject="u_2")
    assert (await house.auth.login(await house.code())).subject == "u_2"
    with pytest.raises(WrongCredentials):
        await house.auth.login(Password(PHONE, OLD))
    assert (await house.auth.roles.of("u_1")).has_left
    assert house.told("login_reclaimed") == [{"login": "138****5678", "subject_kept": True}]


async def test_who_was_shut_out_does_not_come_back_anew(house: House) -> None:
    """By a login that was never proven, until they are let in again: then the first proof has the account, clean."""
    leaving = house.who(await house.enter())
    await house.auth.roles.disable("u_1", by=leaving)
    await house.auth.roles.disable("u_1")  # who has left can be shut out still
    await house.auth.roles.disable("u_1", by=leaving)  # and who was shut out cannot leave any more
    assert not (await house.auth.roles.of("u_1")).has_left
    for way in (house.auth.prove, house.auth.login):
        with pytest.raises(AccountDisabled):
            await way(await house.code())
    with pytest.raises(AccountDisabled):
        await house.auth.reset_password(await house.code(purpose="reset"), NEW)
    with pytest.raises(LoginTaken):
        await house.auth.register(Password(PHONE, NEW), subject="u_2")
    await house.auth.link(await house.auth.prove(house.wechat("o_2")), subject="u_2")
    other = house.who(await house.auth.login(house.wechat("o_2")))
    with pytest.raises(AccountDisabled):
        await house.proof(purpose="bind", by=other)
    assert house.told("login_reclaimed") == []
    await house.auth.roles.enable("u_1")
    assert (await house.auth.login(await house.code())).subject == "u_1"
    with pytest.raises(WrongCredentials):
        await house.auth.login(Password(PHONE, OLD))


async def test_a_squatter_who_left_keeps_nobody_from_binding(home: House) -> None:
    """Who is somebody else here binds the number: the account behind it is nobody's to enter."""
    await home.auth.roles.disable("u_1", by=home.who(await home.enter()))
    await home.auth.link(await home.auth.prove(home.wechat("o_2")), subject="u_2")
    principal = home.who(await home.auth.login(home.wechat("o_2")))
    await home.auth.link(await home.proof(purpose="bind", by=principal), subject="u_2")
    assert (await home.auth.login(await home.code())).subject == "u_2"


async def test_proving_ones_own_login_takes_nothing(home: House) -> None:
    """Who registered and then proves the number from the session of that very account keeps password and sessions."""
    tokens = await home.enter()
    proof = await home.proof(purpose="bind", by=home.who(tokens))
    assert proof.subject == "u_1"
    await home.auth.link(proof, subject="u_1")
    assert not await home.is_out(tokens)
    await home.auth.login(Password(PHONE, OLD))
    await home.auth.login(await home.code())
    await home.auth.login(Password(PHONE, OLD))
    assert home.told("login_reclaimed") == []


async def test_binding_takes_nothing_from_an_unproven_account(home: House) -> None:
    """Who is somebody else here finds the number taken; the account behind it is theirs by logging in with a code."""
    squatter = await home.enter()
    await home.auth.link(await home.auth.prove(home.wechat("o_2")), subject="u_2")
    principal = home.who(await home.auth.login(home.wechat("o_2")))
    with pytest.raises(LoginTaken):
        await home.auth.link(await home.proof(purpose="bind", by=principal), subject="u_2")
    assert not await home.is_out(squatter)


async def test_a_password_proves_nothing_about_its_login(home: House) -> None:
    """Knowing the password of an unproven login does not make it proven, though it may be linked."""
    await home.enter()
    proof = await home.auth.prove(Password(PHONE, OLD))
    await home.auth.link(proof, subject="u_1")
    (identity,) = await home.auth.identities.list("u_1")
    assert identity.verified_at_us == 0
    with pytest.raises(LoginTaken):
        await home.auth.link(proof, subject="u_2")


# -- passwords ---------------------------------------------------------------------------------------------------------


async def test_a_changed_password_ends_the_others(house: House) -> None:
    """This session stays, all others end, the old password is nobody's."""
    other = await house.enter()
    mine = await house.auth.login(Password(PHONE, OLD))
    await house.auth.change_password(house.who(mine), OLD, NEW)
    assert await house.is_out(other)
    assert not await house.is_out(mine)
    await house.auth.refresh(mine.refresh)
    with pytest.raises(WrongCredentials):
        await house.auth.login(Password(PHONE, OLD))
    await house.auth.login(Password(PHONE, NEW))
    assert house.told("password_changed") == [{"how": "change"}]


async def test_a_change_belongs_to_the_transaction(home: House) -> None:
    """With tx= a rollback leaves the password and the sessions."""
    tokens = await home.enter()

    async def fail(tx: Tx) -> None:
        await home.auth.change_password(home.who(tokens), OLD, NEW, tx=tx)
        raise KeyError

    with pytest.raises(KeyError):
        await home.db.run(fail)
    await home.auth.login(Password(PHONE, OLD))
    assert home.told("password_changed") == []


async def test_a_change_needs_the_old_password_and_a_good_new_one(home: House) -> None:
    """Neither a stolen session nor a careless owner changes it; the refusal is told."""
    tokens = await home.enter()
    with pytest.raises(WrongCredentials):
        await home.auth.change_password(home.who(tokens), NEW, NEW)
    with pytest.raises(PasswordTooWeak):
        await home.auth.change_password(home.who(tokens), OLD, "weak")
    assert home.told("refused") == [{"why": "change_password"}]
    await home.auth.login(Password(PHONE, OLD))


async def test_one_of_many_changes_wins(house: House) -> None:
    """Five changes at once from five sessions: one is done, and its session alone is left."""
    first = await house.enter()
    sessions = [first, *[await house.auth.login(Password(PHONE, OLD)) for _ in range(4)]]
    people = [house.who(tokens) for tokens in sessions]
    done = await asyncio.gather(
        *(house.auth.change_password(each, OLD, f"{NEW}-{number}") for number, each in enumerate(people)),
        return_exceptions=True,
    )
    assert Counter(type(result).__name__ for result in done) == {"NoneType": 1, "WrongCredentials": 4}
    winner = done.index(None)
    assert [await house.is_out(tokens) for tokens in sessions] == [number != winner for number in range(5)]
    await house.auth.login(Password(PHONE, f"{NEW}-{winner}"))


async def test_a_login_that_began_before_a_change_does_not_end_after_it(house: House) -> None:
    """The old password was right when it was checked; by the time of the session it is not."""
    principal = house.who(await house.enter())
    store = house.auth._proofs._store
    find, before = store.find_password, await store.password_of("", "u_1")
    looks = iter([before])

    async def look_before_the_change(tenant: str, login: str) -> tuple[str, str] | None:
        found = await find(tenant, login)
        return (found[0], next(looks, found[1])) if found is not None else None

    await house.auth.change_password(principal, OLD, NEW)
    store.find_password = look_before_the_change  # type: ignore[method-assign]
    with pytest.raises(WrongCredentials):
        await house.auth.login(Password(PHONE, OLD))
    assert next(looks, None) is None
    assert len(await house.auth.sessions.list("u_1")) == 1


async def test_parallel_logins_while_the_recipe_changes(
    db: Database, memory: Redis, settings: Any, configure: Any
) -> None:
    """Five log-ins at once, each wanting to store a stronger hash: all get in, and the password stays the same."""
    async with Auth(db, memory, settings) as auth:
        await auth.register(Password(PHONE, OLD), subject="u_1")
    async with Auth(db, memory, configure(bcrypt_rounds=5, hashing_workers=4)) as auth:
        logins = await asyncio.gather(*(auth.login(Password(PHONE, OLD)) for _ in range(5)))
        assert len(logins) == 5
        assert (await auth._proofs._store.password_of("", "u_1")).startswith("d1:$2b$05$")


async def test_a_reset_ends_every_session(home: House) -> None:
    """By a code for that purpose; with it a first password may be set too."""
    await home.auth.link(await home.proof(), subject="u_1")
    tokens = await home.auth.login(await home.code())
    with pytest.raises(CodeWrong):
        await home.auth.reset_password(await home.code(purpose="login"), NEW)
    await home.auth.reset_password(await home.code(purpose="reset"), NEW)
    assert await home.is_out(tokens)
    other = await home.auth.login(Password(PHONE, NEW))
    await home.auth.reset_password(await home.code(purpose="reset"), OLD)
    assert await home.is_out(other)
    await home.auth.login(Password(PHONE, OLD))
    assert home.told("password_changed") == [{"how": "reset"}] * 2


async def test_a_reset_does_not_cost_a_code_for_nothing(home: House) -> None:
    """A weak password, or a full queue, leaves the code good."""
    await home.enter()
    code = await home.code(purpose="reset")
    with pytest.raises(PasswordTooWeak):
        await home.auth.reset_password(code, "weak")
    run = home.auth._pool.run

    async def full(*_: Any) -> Any:
        raise HashingSaturated()

    home.auth._pool.run = full  # type: ignore[method-assign]
    with pytest.raises(HashingSaturated):
        await home.auth.reset_password(code, NEW)
    home.auth._pool.run = run  # type: ignore[method-assign]
    await home.auth.reset_password(code, NEW)


async def test_a_reset_tells_strangers_nothing(home: House) -> None:
    """Without the right code known and unknown look the same; with it the owner may know."""
    await home.auth.link(await home.proof(), subject="u_1")
    for login in (PHONE, MAIL):
        sent = await home.auth.codes.send(login, "reset")
        assert (sent.ttl_s, sent.again_after_s) == (300, 0)
        wrong = f"{(int(home.out.code) + 1) % 10**6:06}"
        with pytest.raises(CodeWrong):
            await home.auth.reset_password(Code(login, wrong), NEW)
    with pytest.raises(UnknownIdentity):
        await home.auth.reset_password(await home.code(MAIL, "reset"), NEW)


async def test_sending_looks_nobody_up(home: House) -> None:
    """No statement reaches the database, so neither answer nor time can depend on what is in it."""
    await home.enter()
    query, execute = home.db.query, home.db.execute

    async def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("sending a code asked the database")

    home.db.query = home.db.execute = asked  # type: ignore[method-assign,assignment]
    try:
        assert await home.auth.codes.send(PHONE, "login") == await home.auth.codes.send(MAIL, "login")
    finally:
        home.db.query, home.db.execute = query, execute  # type: ignore[method-assign]


async def test_a_first_password(home: House) -> None:
    """Set once by who has none, and not by who has one."""
    await home.auth.link(await home.proof(), subject="u_1")
    with pytest.raises(WrongCredentials):
        await home.auth.login(Password(PHONE, ""))
    with pytest.raises(PasswordTooWeak):
        await home.auth.set_password("u_1", "weak")
    await home.auth.set_password("u_1", NEW)
    assert (await home.auth.login(Password(PHONE, NEW))).subject == "u_1"
    with pytest.raises(SubjectTaken):
        await home.auth.set_password("u_1", OLD)
    assert home.told("password_changed") == [{"how": "set"}]


async def test_the_policy_knows_every_login(memory: Redis, sqlite: Database, configure: Any) -> None:
    """Under ``nist`` a new password contains none of the subject's logins."""
    house = House(sqlite, memory, configure(password_policy="nist", code_interval_s=0), None)
    async with house.auth as auth:
        for login in (PHONE, MAIL):
            await auth.link(await house.proof(login), subject="u_1")
        for weak in (f"my {MAIL} pass", f"my {PHONE} pass"):
            with pytest.raises(PasswordTooWeak):
                await auth.set_password("u_1", weak)
        await auth.set_password("u_1", "four horses and a cart")


# -- shut out, forgotten -----------------------------------------------------------------------------------------------


async def test_shut_out_is_said_after_the_proof_only(home: House) -> None:
    """Every right credential of a disabled subject meets AccountDisabled, every wrong one its own error."""
    await home.enter()
    await home.auth.prove(await home.code(), by=Principal("", "u_1"))
    await home.auth.link(await home.auth.prove(home.wechat("o_1")), subject="u_1")
    await home.auth.roles.disable("u_1")
    with pytest.raises(WrongCredentials):
        await home.auth.login(Password(PHONE, NEW))
    with pytest.raises(CodeWrong):
        await home.auth.login(Code(PHONE, "000000"))
    for right in (Password(PHONE, OLD), await home.code(), home.wechat("o_1")):
        with pytest.raises(AccountDisabled):
            await home.auth.login(right)
    for right in (Password(PHONE, OLD), await home.code(), home.wechat("o_1")):
        with pytest.raises(AccountDisabled):
            await home.auth.prove(right)
    with pytest.raises(AccountDisabled):
        await home.auth.reset_password(await home.code(purpose="reset"), NEW)
    refused = [event.subject for event in home.events.events if event.data.get("error") == AccountDisabled.name]
    assert refused == ["u_1"] * 7


async def test_forgetting_leaves_nothing(house: House) -> None:
    """Identities, password, sessions, keys and roles are gone, tokens end at once, the login is free again."""
    tokens = await house.enter()
    await house.auth.link(await house.auth.prove(house.wechat("o_1", "union_1")), subject="u_1")
    await insert_key(house, "u_1")
    await house.auth.register(Password(MAIL, OLD), subject="u_2")
    await house.auth.forget("u_1")
    assert await house.is_out(tokens)
    for table in ("identity", "password", "subject", "session", "api_key"):
        left = await house.db.query(f"SELECT subject FROM daydo_auth_{table}")
        assert {row[0] for row in left.rows} <= {"u_2"}, table
    with pytest.raises(UnknownIdentity):
        await house.auth.login(house.wechat("o_1", "union_1"))
    await house.auth.login(Password(MAIL, OLD))
    await house.enter(subject="u_3")
    assert len(house.told("forgotten")) == 1


async def test_a_login_during_forgetting_ends_with_the_rest(house: House) -> None:
    """Its session opens before the subject is gone, and is ended like those that were there."""
    await house.auth.link(await house.proof(), subject="u_1")
    code, open_session = await house.code(), house.auth._proofs._open
    end_all, opening, ending, go_on = house.auth.sessions.end_all, asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def open_late(tx: Tx, tenant: str, subject: str, device: str, method: Any) -> Tokens:
        opening.set()
        await go_on.wait()
        return await open_session(tx, tenant, subject, device, method)

    async def tell(subject: str, **options: Any) -> int:
        ending.set()
        return await end_all(subject, **options)

    house.auth._proofs._open = open_late
    house.auth.sessions.end_all = tell  # type: ignore[method-assign]
    login = asyncio.create_task(house.auth.login(code))
    await opening.wait()
    forget = asyncio.create_task(house.auth.forget("u_1"))
    with contextlib.suppress(TimeoutError):  # it waits for the login, and must not have looked for sessions before
        await asyncio.wait_for(ending.wait(), 0.2)
    go_on.set()
    tokens = await login
    await forget
    assert await house.is_out(tokens)


async def test_forgetting_belongs_to_the_transaction(home: House) -> None:
    """With tx= a rollback leaves everything, sessions too."""
    tokens = await home.enter()

    async def fail(tx: Tx) -> None:
        await home.auth.forget("u_1", tx=tx)
        raise KeyError

    with pytest.raises(KeyError):
        await home.db.run(fail)
    assert not await home.is_out(tokens)
    await home.auth.refresh(tokens.refresh)
    await home.auth.login(Password(PHONE, OLD))


async def test_tenants_do_not_meet(home: House) -> None:
    """One phone is two people in two tenants, by code and by WeChat."""
    for tenant, subject in (("", "u_1"), ("acme", "u_2")):
        proof = await home.auth.prove(await home.code(tenant=tenant), tenant=tenant)
        assert proof.subject is None
        await home.auth.link(proof, subject=subject)
        assert (await home.auth.login(await home.code(tenant=tenant), tenant=tenant)).subject == subject
    await home.auth.forget("u_1", tenant="acme")
    assert (await home.auth.login(await home.code())).subject == "u_1"


async def test_nothing_secret_is_told(home: House) -> None:
    """Neither events nor reprs hold a number, a code, a password or an openid."""
    await home.enter()
    code = await home.code()
    proof = await home.auth.prove(code)
    await home.auth.link(await home.auth.prove(home.wechat("o_secret", "union_secret")), subject="u_1")
    with pytest.raises(WrongCredentials):
        await home.auth.login(Password(PHONE, "Guess-1234"))
    await home.auth.set_password("u_1", NEW)
    await home.auth.forget("u_1")
    shown = f"{home.events.events} {code!r} {proof!r} {home.wechat('o_secret')!r} {WeChatUser(APP, 'o_secret')!r}"
    for secret in (PHONE, code.code, OLD, NEW, "Guess-1234", "o_secret", "union_secret"):
        assert secret not in shown


async def insert_key(house: House, subject: str) -> None:
    await house.db.execute(
        "INSERT INTO daydo_auth_api_key (id, tenant, subject, kind, name, hashed, scopes, created_at_us, "
        "expires_at_us, revoked_at_us, used_at_us) VALUES ('key_1', '', ?, 'bearer', 'ci', ?, '', 0, 0, 0, 0)",
        (subject, b"x"),
    )


async def count_keys(house: House, subject: str) -> int:
    found = await house.db.query("SELECT COUNT(*) FROM daydo_auth_api_key WHERE subject = ?", (subject,))
    return int(found.rows[0][0])

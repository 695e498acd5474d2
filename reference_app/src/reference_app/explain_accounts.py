"""Part of :mod:`.explain_walk`: everything about people, done once: who they are, where they are logged in, what they
may do, their keys, profiles and invite codes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

from daydo_auth import (
    Auth,
    AuthConfig,
    Code,
    KeyInvalid,
    Password,
    Principal,
    RefreshReused,
    Tokens,
    WeChatCode,
    WeChatUser,
)
from daydo_auth.sql_sessions import SessionRows
from daydo_db import Database, Tx
from daydo_kernel import NoEvents, new_id
from daydo_quota import Ledger
from daydo_redis import Redis, RedisConfig

from .accounts.config import TENANT, InvitesConfig, SignUpCredits
from .accounts.contact import Contact
from .accounts.invites import Invites, new_code
from .accounts.repository import InviteCodes, Profiles
from .accounts.service import Accounts, Arrival
from .accounts.tables import Profile
from .explain_data import People
from .explain_steps import PAGE, leaf, sent

_PASSWORD, _OTHER_PASSWORD = "Correct-horse-7", "Correct-horse-8"  # of users of a scratch database
_KEEP_S = 3600.0
# Nobody waits here; and what hashes passwords beside it keeps a busy machine for longer than a request would wait.
_PATIENT = RedisConfig(command_timeout_s=10.0, subscribe_timeout_s=10.0)


async def walk_accounts(db: Database, ledger: Ledger, people: People) -> None:
    """All of it."""
    async with Redis("embedded://", _PATIENT) as redis:
        outside = _Outside()
        async with _auth(db, redis, outside, rounds=4) as auth:
            contact = await _walk_sign_up(db, auth, ledger)
            await _walk_proofs(auth, outside)
            await _walk_sessions(db, auth, people)
            await _walk_roles(db, auth, people)
            await _walk_keys(auth, people)
            for _ in range(2):  # The second time, what the first one has found is gone.
                await sent(db, "SELECT id FROM daydo_auth_session WHERE expires_at_us <")
        # A newer recipe: the hash is replaced. What Redis has counted is written back.
        async with _auth(db, redis, outside, rounds=5, session_store="redis") as auth:
            tokens = await auth.login(Password(contact.login, _PASSWORD), tenant=TENANT)
            await auth.refresh(tokens.refresh)
    await _walk_profiles(db, people)
    await _walk_invite_codes(db, people)


class _Outside:
    """The world: a mailbox, and a WeChat that knows whoever comes."""

    def __init__(self) -> None:
        self.code = ""

    async def send(self, to: str, code: str, purpose: str, *, key: str, ttl_s: float) -> None:
        self.code = code

    async def code2session(self, code: str) -> WeChatUser:
        return WeChatUser("walk", f"openid-{code}", f"unionid-{code}")

    async def mailed(self, auth: Auth, login: str, purpose: str) -> Code:
        """A code that has arrived."""
        await auth.codes.send(login, purpose, tenant=TENANT)
        return Code(login, self.code)


@asynccontextmanager
async def _auth(
    db: Database, redis: Redis, outside: _Outside, *, rounds: int, session_store: Literal["sql", "redis"] = "sql"
) -> AsyncIterator[Auth]:
    config = AuthConfig(
        keys={"walk": "0123456789abcdef" * 4},
        pepper="fedcba9876543210" * 4,
        bcrypt_rounds=rounds,
        session_store=session_store,
        replay_window_s=0,
        code_interval_s=0,
        revocation_keep_s=_KEEP_S,
        # Each loop turns before the walk is over.
        revocation_poll_s=0.05,
        sweep_s=0.05,
    )
    async with Auth(db, redis, config, senders={"email": outside}, wechat=outside) as auth:
        yield auth


async def _walk_sign_up(db: Database, auth: Auth, ledger: Ledger) -> Contact:
    contact = Contact(email="walker@example.com")
    profiles = Profiles(db)
    invites = Invites(db, ledger, profiles, InvitesConfig(), events=NoEvents())
    accounts = Accounts(db, auth, ledger, profiles, invites, SignUpCredits(welcome=100, daily=10))
    profile, tokens = await accounts.register(contact, _PASSWORD, Arrival(device="desk"))
    await accounts.login(contact, _PASSWORD, Arrival(device="phone"))
    await auth.refresh(tokens.refresh)
    with suppress(RefreshReused):
        await auth.refresh(tokens.refresh)
    again = await auth.open_session(profile.id, tenant=TENANT)
    await auth.logout(_who(auth, again))
    return contact


def _who(auth: Auth, tokens: Tokens) -> Principal:
    return auth.verify(f"Bearer {tokens.access}")


async def _walk_proofs(auth: Auth, outside: _Outside) -> None:
    await _prove_oneself(auth, outside)
    await _prove_what_nobody_had_proven(auth, outside)
    await _prove_what_somebody_else_claims(auth, outside)


async def _newcomer(auth: Auth) -> tuple[str, str]:
    """(subject, login) of somebody who has just registered."""
    subject = new_id("user")
    login = f"{subject.lower()}@example.com"
    await auth.register(Password(login, _PASSWORD), subject=subject, tenant=TENANT)
    return subject, login


async def _prove_oneself(auth: Auth, outside: _Outside) -> None:
    subject, login = await _newcomer(auth)
    user = _who(auth, await auth.login(Password(login, _PASSWORD), tenant=TENANT))
    await auth.step_up(user, Password(login, _PASSWORD))
    await auth.change_password(user, _PASSWORD, _OTHER_PASSWORD)
    await auth.prove(await outside.mailed(auth, login, "bind"), tenant=TENANT, purpose="bind", by=user)
    await auth.reset_password(await outside.mailed(auth, login, "reset"), _PASSWORD, tenant=TENANT)
    await auth.login(await outside.mailed(auth, login, "login"), tenant=TENANT)
    await auth.forget(subject, tenant=TENANT)


async def _prove_what_nobody_had_proven(auth: Auth, outside: _Outside) -> None:
    """It goes over to the prover: password, keys and sessions end."""
    subject, login = await _newcomer(auth)
    await auth.roles.assign(subject, ["r0"], tenant=TENANT)
    await auth.keys.create(subject, name="walk", scopes=["photos:read"], tenant=TENANT)
    await auth.prove(await outside.mailed(auth, login, "login"), tenant=TENANT)
    await auth.set_password(subject, _PASSWORD, tenant=TENANT)


async def _prove_what_somebody_else_claims(auth: Auth, outside: _Outside) -> None:
    """Whose it seemed to be is known by WeChat, and keeps the rest."""
    subject, login = await _newcomer(auth)
    await auth.link(await auth.prove(WeChatCode("walk"), tenant=TENANT), subject=subject)
    known = await auth.prove(WeChatCode("walk"), tenant=TENANT)
    await auth.link(known, subject=subject)
    await auth.prove(await outside.mailed(auth, login, "login"), tenant=TENANT)
    await auth.identities.remove(subject, known.login, kind=known.kind, tenant=TENANT)


async def _walk_sessions(db: Database, auth: Auth, people: People) -> None:
    for subject in (people.others[-1], people.whale):
        opened = await auth.open_session(subject, tenant=TENANT)
        await auth.identities.list(subject, tenant=TENANT)
        await auth.sessions.list(subject, tenant=TENANT)
        await SessionRows(db, auth.config, None).lives([opened.session_id])
        await auth.sessions.end(subject, opened.session_id, tenant=TENANT)
        await auth.sessions.end_all(subject, tenant=TENANT)
    # The feed is read again and again.
    await sent(db, "FROM daydo_auth_revocation WHERE at_us >")


async def _walk_roles(db: Database, auth: Auth, people: People) -> None:
    for tenant in (TENANT, ""):
        for permission in ("photos:read", "photos:write"):
            await auth.roles.define("walk", permissions=[permission], tenant=tenant)
        await auth.roles.list(tenant)
    await auth.roles.add(people.whale, "walk", tenant=TENANT)
    await auth.roles.drop("walk", tenant=TENANT)
    await auth.roles.of_many(people.others[:100], tenant=TENANT)
    async with db.transaction() as tx:
        await auth.roles.of(people.whale, tenant=TENANT, tx=tx)
    await auth.roles.disable(people.others[0], tenant=TENANT)
    await auth.roles.enable(people.others[0], tenant=TENANT)


async def _walk_keys(auth: Auth, people: People) -> None:
    await auth.roles.assign(people.whale, ["r0"], tenant=TENANT)
    made = await auth.keys.create(people.whale, name="walk", scopes=["photos:read"], tenant=TENANT)
    await auth.keys.prove(made.secret)
    await auth.keys.write_uses()
    await auth.keys.list(people.whale, tenant=TENANT)
    await auth.keys.lives([made.key.id])
    await auth.keys.revoke(people.whale, made.key.id, tenant=TENANT)
    with suppress(KeyInvalid):
        await auth.keys.prove(made.secret)


async def _walk_profiles(db: Database, people: People) -> None:
    profiles = Profiles(db)
    known = await profiles.find(TENANT, people.others[0])
    phone = await profiles.find(TENANT, people.others[1])
    for profile in filter(None, (known, phone)):
        for text in filter(None, (profile.id, profile.email, profile.phone)):
            await profiles.look_up(TENANT, text)

    async def change(tx: Tx) -> None:
        await profiles.lock(TENANT, people.others[0], tx=tx)
        await profiles.change(TENANT, people.others[0], {Profile.nickname: "walk", Profile.phone: "13900000000"}, tx=tx)
        await profiles.release_phone(TENANT, "13900000000", tx=tx)
        await profiles.remove(TENANT, people.others[0], tx=tx)

    await db.run(change)
    await leaf(lambda cursor: profiles.page(TENANT, cursor, PAGE))


async def _walk_invite_codes(db: Database, people: People) -> None:
    codes = InviteCodes(db)
    code = new_code()

    async def give(tx: Tx) -> None:
        await codes.hold_pool(TENANT, tx=tx)
        await codes.count_free(TENANT, tx=tx)
        await codes.add(TENANT, [code], 1, tx=tx)
        await codes.find_key(TENANT, people.whale, new_id("walk"), tx=tx)
        await codes.count_open(TENANT, people.whale, tx=tx)
        await codes.pick(TENANT, tx=tx)
        await codes.take(TENANT, code, people.whale, "walk", 1, tx=tx)
        await codes.find(TENANT, code, tx=tx)
        await codes.claim(TENANT, code, people.due, 1, tx=tx)

    async def begin(tx: Tx) -> None:
        await codes.hold_pool("walk", tx=tx)

    await db.run(begin)
    await db.run(give)
    await leaf(lambda cursor: codes.page(TENANT, people.whale, cursor, PAGE // 2))
    await db.run(lambda tx: codes.remove_open(TENANT, people.whale, tx=tx))

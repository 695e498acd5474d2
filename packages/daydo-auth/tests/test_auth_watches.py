from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from daydo_auth import (
    Auth,
    AuthError,
    Forbidden,
    KeyInvalid,
    Password,
    Principal,
    SessionRevoked,
    TokenExpired,
    TokenStale,
)
from daydo_db import Database
from daydo_db.errors import ConnectionLost
from daydo_kernel.testing import ManualClock
from daydo_redis import Redis

NOWHERE = "redis://127.0.0.1:1/0"
GOOD = "Correct-Horse-1"
BETTER = "Battery-Staple-2"

Waiting = asyncio.Task[AuthError]


@pytest.fixture
async def auth(sqlite: Database, memory: Redis, configure: Any) -> AsyncIterator[Auth]:
    """A worker that is told, and would look for itself too late."""
    async with Auth(sqlite, memory, configure(revocation_poll_s=60)) as auth:
        yield auth


async def enter(auth: Auth, subject: str) -> Principal:
    return auth.verify(f"Bearer {(await auth.open_session(subject)).access}")


async def on_a_stream(auth: Auth, principal: Principal, *permissions: str) -> Waiting:
    """Somebody whose stream is open, so that what follows has to end it."""
    waiting = asyncio.create_task(auth.until_refused(principal, *permissions))
    known = len(watches(auth))
    async with asyncio.timeout(10):
        while len(watches(auth)) == known:  # noqa: ASYNC110 - it says nothing when it begins
            await asyncio.sleep(0)
    assert not waiting.done()
    return waiting


def watches(auth: Auth) -> set[Any]:
    return {watch for each in auth._watches._open.values() for watch in each}


async def logged_out(auth: Auth, principal: Principal) -> None:
    await auth.logout(principal)


async def ended_elsewhere(auth: Auth, principal: Principal) -> None:
    await auth.sessions.end(principal.subject, principal.session_id)


async def shut_out(auth: Auth, principal: Principal) -> None:
    await auth.roles.disable(principal.subject)


async def forgotten(auth: Auth, principal: Principal) -> None:
    await auth.forget(principal.subject)


async def new_password(auth: Auth, principal: Principal) -> None:
    await auth.change_password(await enter(auth, principal.subject), GOOD, BETTER)


async def demoted(auth: Auth, principal: Principal) -> None:
    await auth.roles.remove(principal.subject, "viewer")


async def redefined(auth: Auth, principal: Principal) -> None:
    await auth.roles.define("viewer", permissions=["task:read"])


ENDS: list[tuple[Callable[[Auth, Principal], Awaitable[None]], tuple[type[AuthError], ...]]] = [
    (logged_out, (SessionRevoked,)),
    (ended_elsewhere, (SessionRevoked,)),
    (shut_out, (SessionRevoked, TokenStale)),
    (forgotten, (SessionRevoked, TokenStale)),
    (new_password, (SessionRevoked,)),
    (demoted, (TokenStale,)),
    (redefined, (Forbidden,)),
]


@pytest.mark.parametrize(("end", "errors"), ENDS, ids=[end.__name__ for end, _ in ENDS])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "another worker"])
async def test_whatever_takes_access_away_ends_the_wait(
    sqlite: Database, configure: Any, end: Any, errors: Any, elsewhere: bool
) -> None:
    """Every such change ends the streams of its subject on every worker, without Redis too, and nobody else's."""
    config = configure(revocation_poll_s=0.02)
    async with Redis(NOWHERE) as away, Auth(sqlite, away, config) as one, Auth(sqlite, away, config) as two:
        await one.roles.define("viewer", permissions=["image:read"])
        await two.roles.reload()
        await one.register(Password("a@example.com", GOOD), subject="u_1")
        for subject in ("u_1", "u_2"):
            await one.roles.assign(subject, ["viewer"])
        await two._feed.read()
        principal, other = await enter(one, "u_1"), await enter(one, "u_2")
        here = two if elsewhere else one
        streams = [await on_a_stream(here, each, "image:read") for each in (principal, principal)]
        bystander = await on_a_stream(here, other)
        await end(one, principal)
        found = await asyncio.wait_for(asyncio.gather(*streams), 10)
        assert {type(error) for error in found} <= set(errors)
        await here._watches.look()
        assert not bystander.done()
        bystander.cancel()


async def test_the_other_sessions_of_a_subject_stay_connected(auth: Auth) -> None:
    """Logging out of one device ends the streams of that device."""
    one, two = await enter(auth, "u_1"), await enter(auth, "u_1")
    ending, staying = await on_a_stream(auth, one), await on_a_stream(auth, two)
    await auth.logout(one)
    assert isinstance(await asyncio.wait_for(ending, 10), SessionRevoked)
    await auth._watches.look()
    assert not staying.done()
    await auth.logout(two)
    assert isinstance(await asyncio.wait_for(staying, 10), SessionRevoked)


async def test_a_stream_that_a_key_has_opened_ends_with_the_key(auth: Auth) -> None:
    """Its ticket too: one that was not used yet opens nothing, and no other is made."""
    await auth.roles.define("viewer", permissions=["image:read"])
    await auth.roles.assign("u_1", ["viewer"])
    new = await auth.keys.create("u_1", name="script", scopes=["image:read"])
    other = await auth.keys.create("u_1", name="another", scopes=["image:read"])
    key, person = await auth.keys.prove(new.secret), await enter(auth, "u_1")
    opened = await auth.redeem_ticket(await auth.issue_ticket(key))
    unused = await auth.issue_ticket(key)
    ending = await on_a_stream(auth, opened, "image:read")
    staying = [await on_a_stream(auth, each) for each in (person, await auth.keys.prove(other.secret))]
    await auth.keys.revoke("u_1", new.key.id)
    assert isinstance(await asyncio.wait_for(ending, 10), KeyInvalid)
    with pytest.raises(KeyInvalid):
        await auth.redeem_ticket(unused)
    with pytest.raises(KeyInvalid):
        await auth.issue_ticket(key)
    await auth._watches.look()
    assert not any(stream.done() for stream in staying)
    for stream in staying:
        stream.cancel()


async def test_a_stream_ends_with_its_session_though_nobody_ends_that(
    db: Database, memory: Redis, configure: Any, clock: ManualClock
) -> None:
    """A session that rests or lives too long takes its streams along; one that is refreshed keeps them, to its end."""
    config = configure(session_store="sql", revocation_poll_s=60, refresh_ttl_s=3_600, session_ttl_s=7_200)
    async with Auth(db, memory, config, clock=clock) as auth:
        resting, tokens = await enter(auth, "u_1"), await auth.open_session("u_1")
        busy = auth.verify(f"Bearer {tokens.access}")
        resting_stream = await on_a_stream(auth, resting)
        busy_streams = [await on_a_stream(auth, busy) for _ in range(2)]
        for _ in range(6):
            clock.advance(1_000)
            tokens = await auth.refresh(tokens.refresh)
            await auth._watches.look_at_ends()
        assert isinstance(await asyncio.wait_for(resting_stream, 10), TokenExpired)
        assert not any(stream.done() for stream in busy_streams)
        clock.advance(1_200)
        await auth._watches.look_at_ends()
        for stream in busy_streams:
            assert isinstance(await asyncio.wait_for(stream, 10), TokenExpired)
        assert not auth._watches._open


async def test_a_stream_ends_with_its_key_though_nobody_revokes_that(
    db: Database, memory: Redis, configure: Any, clock: ManualClock
) -> None:
    """When it expires; one that does not goes on."""
    async with Auth(db, memory, configure(revocation_poll_s=60, default_permissions=("a:b",)), clock=clock) as auth:
        until_us = clock.now_us() + 3_600_000_000
        streams = []
        for expires_at_us in (until_us, 0):
            new = await auth.keys.create("u_1", name="script", scopes=["a:b"], expires_at_us=expires_at_us)
            streams.append(await on_a_stream(auth, await auth.keys.prove(new.secret)))
        clock.advance(3_599)
        await auth._watches.look_at_ends()
        assert not any(stream.done() for stream in streams)
        clock.advance(1)
        await auth._watches.look_at_ends()
        assert isinstance(await asyncio.wait_for(streams[0], 10), KeyInvalid)
        assert not streams[1].done()
        streams[1].cancel()


async def test_streams_go_on_while_the_database_is_away(auth: Auth, caplog: pytest.LogCaptureFixture) -> None:
    """Whether their sessions are over is asked again until somebody answers."""
    stream = await on_a_stream(auth, await enter(auth, "u_1"))
    [watch] = watches(auth)
    watch.due_us, query = 0, auth._db.query

    async def away(*_: Any, **__: Any) -> Any:
        raise ConnectionLost()

    auth._db.query = away  # type: ignore[method-assign]
    await auth._watches.look_at_ends()
    auth._db.query = query  # type: ignore[method-assign]
    assert "1 streams" in caplog.text
    assert watch.due_us == 0
    await auth._watches.look_at_ends()
    assert watch.due_us > 0
    assert not stream.done()
    stream.cancel()


async def test_ends_are_looked_at_by_themselves(sqlite: Database, memory: Redis, configure: Any) -> None:
    """Nobody has to ask."""
    async with Auth(sqlite, memory, configure(revocation_poll_s=0.02)) as auth:
        stream = await on_a_stream(auth, await enter(auth, "u_1"))
        [watch] = watches(auth)
        await sqlite.execute("UPDATE daydo_auth_session SET expires_at_us = 1")
        watch.due_us = 0
        assert isinstance(await asyncio.wait_for(stream, 10), TokenExpired)


async def test_who_is_refused_already_does_not_wait(auth: Auth) -> None:
    """What happened between being let in and waiting counts; so does a permission that was never there."""
    principal = await enter(auth, "u_1")
    assert isinstance(await asyncio.wait_for(auth.until_refused(principal, "image:read"), 10), Forbidden)
    await auth.logout(principal)
    assert isinstance(await asyncio.wait_for(auth.until_refused(principal), 10), SessionRevoked)
    assert not auth._watches._open


async def test_a_client_that_leaves_first_leaves_nothing_behind(auth: Auth) -> None:
    """A wait that is given up is forgotten, and so is one that has ended, while others of that subject go on."""
    principal = await enter(auth, "u_1")
    staying = await on_a_stream(auth, principal)
    before = asyncio.all_tasks()
    leaving = await on_a_stream(auth, principal)
    assert len(watches(auth)) == 2
    leaving.cancel()
    await asyncio.wait([leaving])
    assert asyncio.all_tasks() == before
    assert len(watches(auth)) == 1
    await auth.logout(principal)
    assert isinstance(await asyncio.wait_for(staying, 10), SessionRevoked)
    assert not auth._watches._open

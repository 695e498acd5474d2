"""Several workers on one database, the databases' own clocks, and back ends that go away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from daydo_auth import (
    Auth,
    Password,
    RefreshReused,
    SessionRevoked,
    SessionsUnavailable,
    TicketInvalid,
    TicketsUnavailable,
)
from daydo_db import Database, DbError, SchemaOutdated, migrate
from daydo_kernel.testing import RecordedEvents
from daydo_redis import Redis
from daydo_redis.testing import CALM

GOOD = "Correct-Horse-7"


@pytest.fixture(params=["redis", "sql"])
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def enter(auth: Auth) -> Any:
    await auth.register(Password("a@x.cn", GOOD), subject="u_1")
    return await auth.login(Password("a@x.cn", GOOD))


async def test_a_rolled_back_logout_ends_nothing(auth: Auth, events: RecordedEvents) -> None:
    """With tx= a logout counts once it is committed, here and in the events."""
    tokens = await enter(auth)
    principal = auth.verify(f"Bearer {tokens.access}")

    async def fail(tx: Any) -> None:
        await auth.logout(principal, tx=tx)
        raise KeyError

    with pytest.raises(KeyError):
        await auth._db.run(fail)
    assert auth.verify(f"Bearer {tokens.access}")
    assert "auth.logout" not in events.names
    await auth.refresh(tokens.refresh)


async def test_two_workers_agree_on_a_rotation(db: Database, redis_url: str, configure: Any, store: str) -> None:
    """On the servers' own clocks: two workers refresh with one token at once, and one successor exists."""
    config = configure(session_store=store)
    async with Redis(redis_url, CALM) as redis, Auth(db, redis, config) as one, Auth(db, redis, config) as two:
        tokens = await enter(one)
        done = await asyncio.gather(*((one, two)[number % 2].refresh(tokens.refresh) for number in range(20)))
        assert len({pair.refresh for pair in done}) == 1
        newest = await two.refresh((await two.refresh(done[0].refresh)).refresh)
        with pytest.raises(RefreshReused):
            await one.refresh(tokens.refresh)
        with pytest.raises(SessionRevoked):
            await two.refresh(newest.refresh)


async def test_the_schema_is_checked_at_the_start(memory: Redis, configure: Any) -> None:
    """Without its tables auth does not start, and says which command makes them."""
    async with Database("sqlite://") as db:
        with pytest.raises(SchemaOutdated, match="daydo_auth"):
            async with Auth(db, memory, configure()):
                pass
        await migrate(db, "daydo_auth")
        async with Auth(db, memory, configure()):
            pass


async def test_the_database_goes_away(sqlite: Database, memory: Redis, configure: Any, caplog: Any) -> None:
    """No login without it; tokens of all kinds go on, and health says degraded when looks fail for long."""
    async with Auth(sqlite, memory, configure(revocation_poll_s=0.01)) as auth:
        tokens = await auth.refresh((await enter(auth)).refresh)

        async def gone(*_: object) -> Any:
            from daydo_db import ConnectionLost

            failed.set()
            raise ConnectionLost

        failed = asyncio.Event()
        sqlite.query = gone  # type: ignore[method-assign]
        try:
            with pytest.raises(DbError):
                await auth.login(Password("a@x.cn", GOOD))
            assert (await auth.refresh(tokens.refresh)).subject == "u_1"
            failed.clear()
            await asyncio.wait_for(failed.wait(), 5)
            auth._feed._read_at_s -= 60
            assert (await auth.health()).status == "degraded"
            assert auth.verify(f"Bearer {tokens.access}").subject == "u_1"
        finally:
            del sqlite.query
        assert any("cannot be read" in record.getMessage() for record in caplog.records)
        await auth._feed.read()
        assert (await auth.health()).status == "ok"


def test_it_can_be_entered_in_another_loop(tmp_path: Path, configure: Any) -> None:
    """One noun, left with a hash under way and entered in the next event loop, hashes and drains there too."""
    url = f"sqlite:///{tmp_path / 'auth.db'}"
    db, redis = Database(url), Redis("embedded://memory", CALM)
    auth = Auth(db, redis, configure(bcrypt_rounds=8))

    async def live() -> None:
        async with db, redis:
            await migrate(db, "daydo_auth")
            async with auth:
                hashing = asyncio.create_task(auth.hash(Password("a@x.cn", GOOD)))
                await asyncio.sleep(0)
                assert auth._pool._jobs == 1
            assert auth._pool._jobs == 0, "leaving waited"
            await hashing

    for _ in range(2):
        asyncio.run(live())


async def test_tickets_on_every_redis(sqlite: Database, redis_url: str, configure: Any) -> None:
    """A ticket works once and only within its time; Redis holds neither it nor anything that leads to it."""
    async with Redis(redis_url, CALM) as redis, Auth(sqlite, redis, configure(ticket_ttl_s=60)) as auth:
        principal = auth.verify(f"Bearer {(await enter(auth)).access}")
        ticket = await auth.issue_ticket(principal)
        (key,) = await redis.call("KEYS", "daydo:auth:ticket:*")
        assert ticket.encode() not in key
        assert 59_000 < await redis.call("PTTL", key) <= 60_000
        assert await auth.redeem_ticket(ticket) == replace(principal, way="ticket")
        with pytest.raises(TicketInvalid):
            await auth.redeem_ticket(ticket)
        late = await auth.issue_ticket(principal)
        (key,) = await redis.call("KEYS", "daydo:auth:ticket:*")
        await redis.call("PEXPIRE", key, 0)
        with pytest.raises(TicketInvalid):
            await auth.redeem_ticket(late)


async def test_redis_goes_away(sqlite: Database, configure: Any) -> None:
    """Without Redis no ticket is made and none is believed, and nobody refreshes unless the database counts."""
    async with Redis("redis://127.0.0.1:1/0") as redis, Auth(sqlite, redis, configure()) as auth:
        tokens = await enter(auth)
        with pytest.raises(TicketsUnavailable):
            await auth.issue_ticket(auth.verify(f"Bearer {tokens.access}"))
        with pytest.raises(TicketsUnavailable):
            await auth.redeem_ticket("x" * 43)
        with pytest.raises(SessionsUnavailable) as refused:
            await auth.refresh(tokens.refresh)
        assert refused.value.retry_after_s
        assert auth.verify(f"Bearer {tokens.access}").subject == "u_1"
        async with Auth(sqlite, redis, configure(session_store="sql")) as other:
            assert (await other.refresh(tokens.refresh)).subject == "u_1"


async def test_events_hold_no_secret(auth: Auth, events: RecordedEvents) -> None:
    """What is told of a login, a refusal and a theft names no password, token or whole address."""
    tokens = await enter(auth)
    with pytest.raises(Exception, match="wrong"):
        await auth.login(Password("zhang.san@example.cn", "Wrong-Horse-7"))
    await auth.refresh((await auth.refresh(tokens.refresh)).refresh)
    with pytest.raises(RefreshReused):
        await auth.refresh(tokens.refresh)
    assert events.names == ["auth.registered", "auth.login", "auth.refused", "auth.refresh_reused"]
    told = repr(events.events)
    for secret in (GOOD, "Wrong-Horse-7", "zhang.san", tokens.access, *tokens.refresh.split(".")[2:]):
        assert secret not in told
    assert events.events[-1].data == {"session_id": tokens.session_id, "behind": 2, "cause": "theft"}

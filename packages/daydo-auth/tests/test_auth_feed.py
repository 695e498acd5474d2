from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from daydo_auth import Auth, SessionRevoked, TokenStale
from daydo_auth import feed as feed_module
from daydo_auth.feed import OVERLAP_S
from daydo_db import Database, DbError
from daydo_kernel.testing import ManualClock
from daydo_redis import Redis
from daydo_redis.testing import CALM

NOWHERE = "redis://127.0.0.1:1/0"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - in the other worker nothing can be awaited
            await asyncio.sleep(0.005)


async def change(auth: Auth, kind: Any, name: str, epoch: int = 0, tenant: str = "") -> None:
    await auth._db.run(lambda tx: auth._feed.write(tx, kind, tenant, name, epoch))


async def test_a_logout_reaches_every_worker(db: Database, memory: Redis, configure: Any, clock: ManualClock) -> None:
    """Without Redis: a session that one worker ends is refused by the others at their next look, and by a new one."""
    config = configure(revocation_poll_s=60)
    async with (
        Redis(NOWHERE) as away,
        Auth(db, away, config, clock=clock) as one,
        Auth(db, away, config, clock=clock) as two,
    ):
        tokens = await one.open_session("u_1")
        header = f"Bearer {tokens.access}"
        await one.logout(two.verify(header))
        with pytest.raises(SessionRevoked):
            one.verify(header)
        assert two.verify(header), "not yet read"
        await two._feed.read()
        with pytest.raises(SessionRevoked):
            two.verify(header)
        clock.advance(600)
        async with Auth(db, away, config, clock=clock) as three:
            with pytest.raises(SessionRevoked):
                three.verify(header)


async def test_redis_carries_it_at_once(sqlite: Database, redis_url: str, configure: Any) -> None:
    """With Redis the others know long before their next look, of every kind of change."""
    config = configure(revocation_poll_s=60)
    async with Redis(redis_url, CALM) as redis, Auth(sqlite, redis, config) as one, Auth(sqlite, redis, config) as two:
        await until(lambda: len(redis._pubsub._channels) == 1)
        tokens = await one.open_session("u_1")
        await until(lambda: all(channel.confirmed.is_set() for channel in redis._pubsub._channels.values()))
        await one.logout(one.verify(f"Bearer {tokens.access}"))
        await until(lambda: two._feed.session_ended(tokens.session_id))
        await change(one, "subject", "u_2", 7)
        await until(lambda: two._feed.subject_epoch("", "u_2") == 7)
        assert two._feed.subject_epoch("other", "u_2") == 0


async def test_nonsense_on_the_channel(sqlite: Database, memory: Redis, configure: Any, caplog: Any) -> None:
    """What is no change is a line in the log, and what follows is heard."""
    config = configure(revocation_poll_s=60)
    async with Auth(sqlite, memory, config) as one, Auth(sqlite, memory, config) as two:
        await until(lambda: len(memory._pubsub._channels) == 1)
        for nonsense in (b"", b"{}", b"\xff", b"[1]", b"[" * 10_000):
            await memory.publish("daydo:auth:feed", nonsense)
        await change(one, "session", "ses_9")
        await until(lambda: two._feed.session_ended("ses_9"))
    assert any("no revocation" in record.getMessage() for record in caplog.records)


async def test_missed_messages_are_looked_up(sqlite: Database, memory: Redis, configure: Any) -> None:
    """Where a subscriber may have missed something it reads the table, and need not wait for its next look."""
    config = configure(revocation_poll_s=60)
    async with Redis(NOWHERE) as away, Auth(sqlite, away, config) as one, Auth(sqlite, memory, config) as two:
        await change(one, "session", "ses_9")
        assert not two._feed.session_ended("ses_9")
        await two._feed._hear(b"", missed=True)
        assert two._feed.session_ended("ses_9")


async def test_workers_look_by_themselves(sqlite: Database, configure: Any) -> None:
    """The look happens every revocation_poll_s, on the database's clock."""
    config = configure(revocation_poll_s=0.01)
    async with Redis(NOWHERE) as away, Auth(sqlite, away, config) as one, Auth(sqlite, away, config) as two:
        tokens = await one.open_session("u_1")
        await one.logout(one.verify(f"Bearer {tokens.access}"))
        await until(lambda: two._feed.session_ended(tokens.session_id))


async def test_looks_go_on_after_any_error(sqlite: Database, configure: Any, caplog: Any) -> None:
    """An error that nobody foresaw is logged, and the next look finds what was revoked meanwhile."""
    config = configure(revocation_poll_s=0.01)
    async with Redis(NOWHERE) as away, Auth(sqlite, away, config) as one, Auth(sqlite, away, config) as two:
        failed, read = asyncio.Event(), two._feed._learn

        def broken(*_: Any) -> None:
            failed.set()
            raise OSError("too many open files")

        two._feed._learn = broken  # type: ignore[method-assign]
        await change(one, "session", "ses_9")
        await asyncio.wait_for(failed.wait(), 5)
        two._feed._learn = read  # type: ignore[method-assign]
        await until(lambda: two._feed.session_ended("ses_9"))
    assert any("revocations failed" in record.getMessage() for record in caplog.records)


async def test_a_late_commit_is_found(db: Database, configure: Any, clock: ManualClock) -> None:
    """A change whose transaction commits after the others have looked beyond its time is found by their next look."""
    config = configure(revocation_poll_s=60)
    async with Redis(NOWHERE) as away, Auth(db, away, config, clock=clock) as one:
        other_clock = ManualClock(clock.now_us())
        async with Auth(db, away, config, clock=other_clock) as two:
            other_clock.advance(OVERLAP_S - 1)
            await two._feed.read()
            await change(one, "session", "ses_late")  # by the time of its statement, before the look
            assert not two._feed.session_ended("ses_late")
            await two._feed.read()
            assert two._feed.session_ended("ses_late")


async def test_a_host_that_slept_looks_back_as_far(db: Database, configure: Any, clock: ManualClock) -> None:
    """A suspended host's own clock stood still: what others have revoked meanwhile is found by its first look."""
    config = configure(revocation_poll_s=60)
    async with (
        Redis(NOWHERE) as away,
        Auth(db, away, config, clock=clock) as one,
        Auth(db, away, config, clock=clock) as two,
    ):
        await change(one, "session", "ses_9")
        clock.advance(config.access_ttl_s / 2)
        await two._feed.read()
        assert two._feed.session_ended("ses_9")


async def test_what_is_old_is_forgotten(auth: Auth, clock: ManualClock) -> None:
    """A change is known for revocation_keep_s, and known_since_us says from when on everything is."""
    await change(auth, "session", "ses_9")
    await change(auth, "subject", "u_1", 3)
    began_us = clock.now_us()
    clock.advance(auth.config.revocation_keep_s - 1)
    await auth._feed.read()
    assert auth._feed.session_ended("ses_9")
    assert auth._feed.known_since_us < began_us
    clock.advance(2)
    await auth._feed.read()
    assert not auth._feed.session_ended("ses_9")
    assert auth._feed.subject_epoch("", "u_1") == 0
    assert auth._feed.known_since_us > began_us
    assert auth._feed._changes == {}


@pytest.mark.parametrize("starts_later", [False, True])
async def test_there_is_a_limit_to_what_is_known(
    sqlite: Database, memory: Redis, configure: Any, monkeypatch: Any, starts_later: bool
) -> None:
    """Beyond KNOWN_MAX the oldest go, and known_since_us says so: whoever relies on them asks the database."""
    monkeypatch.setattr(feed_module, "KNOWN_MAX", 5)
    clock = ManualClock()
    async with Auth(sqlite, memory, configure(), clock=clock) as auth:
        for number in range(9):
            clock.advance(1)
            await change(auth, "session", f"ses_{number}")
        feed = auth._feed
        if starts_later:
            await feed.open()
        await feed.read()
        known = [number for number in range(9) if feed.session_ended(f"ses_{number}")]
        assert known
        assert known[-1] == 8
        assert len(known) <= 5
        first_us = clock.now_us() - (8 - known[0]) * 1_000_000
        assert first_us - 1_000_000 <= feed.known_since_us < first_us


async def test_callbacks_hear_a_change_once(sqlite: Database, memory: Redis, configure: Any) -> None:
    """However often and by whatever way a change arrives, who asked for its kind is told once."""
    async with Auth(sqlite, memory, configure()) as auth:
        heard: list[tuple[str, str, int]] = []
        auth._feed.on("key", lambda *change: heard.append(change))
        await change(auth, "key", "key_1", 4, tenant="t")
        await change(auth, "session", "ses_1")
        written = next(iter(auth._feed._changes.values()))
        await auth._feed._hear(msgspec.json.encode(written), missed=False)
        await auth._feed.read()
        await auth._feed.read()
    assert heard == [("t", "key_1", 4)]


async def test_epochs_only_rise(auth: Auth) -> None:
    """Of two changes the later counts, in whichever order they arrive; a token of the newest epoch is good."""
    tokens = await auth.open_session("u_1")
    for epoch in (2, 5, 4):
        await change(auth, "subject", "u_1", epoch)
    assert auth._feed.subject_epoch("", "u_1") == 5
    with pytest.raises(TokenStale):
        auth.verify(f"Bearer {tokens.access}")
    await auth._db.execute("UPDATE daydo_auth_subject SET roles = 'editor', epoch = 5")
    assert auth.verify(f"Bearer {(await auth.open_session('u_1')).access}").roles == ("editor",)


async def test_a_rolled_back_change_is_not_known(auth: Auth) -> None:
    """A change counts from its commit on, and never without."""

    async def fail(tx: Any) -> None:
        await auth._feed.write(tx, "session", "", "ses_9")
        raise KeyError

    with pytest.raises(KeyError):
        await auth._db.run(fail)
    await auth._feed.read()
    assert not auth._feed.session_ended("ses_9")


async def test_old_rows_are_swept(db: Database, memory: Redis, configure: Any, clock: ManualClock) -> None:
    """Rows that no worker reads any more are removed, and those that one may read are not."""
    async with Auth(db, memory, configure(), clock=clock) as auth:
        for number in range(3):
            await change(auth, "session", f"ses_{number}")
        clock.advance(2 * auth.config.revocation_keep_s - 1)
        await change(auth, "session", "ses_new")
        assert await auth._feed.sweep() == 0
        clock.advance(2)
        assert await auth._feed.sweep() == 3
        assert [row[0] for row in (await db.query("SELECT name FROM daydo_auth_revocation")).rows] == ["ses_new"]


async def test_the_table_cannot_be_read(sqlite: Database, memory: Redis, configure: Any) -> None:
    """Auth does not start without knowing what has been revoked."""
    auth = Auth(sqlite, memory, configure())
    await sqlite.execute("DROP TABLE daydo_auth_revocation")
    with pytest.raises(DbError):
        await auth.__aenter__()

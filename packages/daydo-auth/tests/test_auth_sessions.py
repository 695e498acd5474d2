from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from daydo_auth import Auth, RefreshReused, SessionRevoked, SessionsUnavailable, TokenExpired, TokenInvalid, Tokens
from daydo_auth.rotation import RefreshToken, Session
from daydo_auth.sql_sessions import device_name
from daydo_db import ConnectionLost, Database, migrate
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_redis import Redis, RedisUnavailable
from daydo_redis.testing import CALM

WORKER = Path(__file__).parent / "auth_worker.py"


async def key_of(redis: Redis, tokens: Tokens) -> dict[bytes, bytes]:
    words = await redis.call("HGETALL", f"daydo:auth:session:{tokens.session_id}")
    return dict(zip(words[::2], words[1::2], strict=True))


async def put_back(redis: Redis, tokens: Tokens, old: dict[bytes, bytes]) -> None:
    words = [word for pair in old.items() for word in pair]
    await redis.call("HSET", f"daydo:auth:session:{tokens.session_id}", *words)


async def counter_of(db: Database, tokens: Tokens) -> int:
    found = await db.query("SELECT counter FROM daydo_auth_session WHERE id = ?", (tokens.session_id,))
    return int(found.rows[0][0])


async def count_sessions(db: Database) -> int:
    return int((await db.query("SELECT COUNT(*) FROM daydo_auth_session")).rows[0][0])


async def until(ask: Callable[[], Awaitable[Any]], answer: Any) -> None:
    async with asyncio.timeout(10):
        while await ask() != answer:  # noqa: ASYNC110 - what happens in the background cannot be awaited
            await asyncio.sleep(0.005)


async def rotated(auth: Auth, times: int) -> list[Tokens]:
    pairs = [await auth.open_session("u_1")]
    for _ in range(times):
        pairs.append(await auth.refresh(pairs[-1].refresh))
    return pairs


# -- Redis loses or keeps what it should not ---------------------------------------------------------------------------


async def test_a_lost_session_whose_time_is_over_is_expired(
    auth: Auth, memory: Redis, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long this process is held up between the copy that it makes and its next question."""
    [tokens] = await rotated(auth, 0)
    clock.advance(auth.config.refresh_ttl_s)
    await memory.call("FLUSHALL")
    copy = auth._session_store._copy_row  # type: ignore[attr-defined]

    async def copy_and_be_held_up(token: RefreshToken) -> Session | None:
        row: Session | None = await copy(token)
        await asyncio.sleep(0.01)
        return row

    monkeypatch.setattr(auth._session_store, "_copy_row", copy_and_be_held_up)
    with pytest.raises(TokenExpired):
        await auth.refresh(tokens.refresh)


async def test_a_flush_logs_nobody_out(auth: Auth, memory: Redis) -> None:
    """Redis that was emptied: whoever has the newest token goes on, although the database has an older counter."""
    pairs = await rotated(auth, 3)
    await memory.call("FLUSHALL")
    assert await counter_of(auth._db, pairs[0]) == 1
    newest = await auth.refresh(pairs[-1].refresh)
    await auth.refresh(newest.refresh)


async def test_a_fork_after_a_flush_is_seen(auth: Auth, memory: Redis) -> None:
    """Redis that was emptied, and a thief who is first with an old token: the owner's higher counter betrays him."""
    pairs = await rotated(auth, 3)
    await auth._session_store.write_back()
    pairs += [await auth.refresh(pairs[-1].refresh)]
    pairs += [await auth.refresh(pairs[-1].refresh)]
    await memory.call("FLUSHALL")
    stolen = await auth.refresh(pairs[3].refresh)
    with pytest.raises(RefreshReused):
        await auth.refresh(pairs[-1].refresh)
    with pytest.raises(SessionRevoked):
        await auth.refresh(stolen.refresh)


async def test_what_the_database_knows_is_old_after_a_flush(auth: Auth, memory: Redis) -> None:
    """Redis that was emptied, and a token older than the counter in the database: theft, as ever."""
    pairs = await rotated(auth, 3)
    await auth._session_store.write_back()
    await memory.call("FLUSHALL")
    with pytest.raises(RefreshReused):
        await auth.refresh(pairs[0].refresh)


async def test_a_theft_is_not_forgotten_while_the_database_is_away(auth: Auth, memory: Redis) -> None:
    """A theft that could not be written down keeps the session shut, and is written down by whoever comes next."""
    pairs = await rotated(auth, 2)

    async def gone(*_: object) -> Any:
        raise ConnectionLost

    auth._db.run = gone  # type: ignore[method-assign]
    for pair in (pairs[0], pairs[-1]):
        with pytest.raises(ConnectionLost):
            await auth.refresh(pair.refresh)
    del auth._db.run
    with pytest.raises(RefreshReused):
        await auth.refresh(pairs[-1].refresh)
    with pytest.raises(SessionRevoked):
        await auth.refresh(pairs[-1].refresh)


async def test_redis_that_lost_its_last_moments(auth: Auth, memory: Redis) -> None:
    """Redis back with the counter of before the last refreshes, as after a failover: nobody is logged out for it."""
    pairs = await rotated(auth, 2)
    old = await key_of(memory, pairs[0])
    pairs += [await auth.refresh(pairs[-1].refresh)]
    pairs += [await auth.refresh(pairs[-1].refresh)]
    await put_back(memory, pairs[0], old)
    newest = await auth.refresh(pairs[-1].refresh)
    assert (await auth.refresh(pairs[-1].refresh)).refresh == newest.refresh


async def test_redis_that_is_far_behind_the_database(auth: Auth, memory: Redis, clock: ManualClock) -> None:
    """Redis back with a counter of long ago: it takes over the database's before it believes a token of that time."""
    pairs = await rotated(auth, 1)
    old = await key_of(memory, pairs[0])
    for _ in range(3):
        pairs += [await auth.refresh(pairs[-1].refresh)]
    await auth._session_store.write_back()
    await put_back(memory, pairs[0], old)
    clock.advance(auth.config.revocation_keep_s + 1)
    await auth._feed.read()
    with pytest.raises(RefreshReused):
        await auth.refresh(pairs[1].refresh)


@pytest.mark.parametrize("forgotten", [False, True])
async def test_an_ended_session_stays_ended(
    auth: Auth, memory: Redis, clock: ManualClock, configure: Any, forgotten: bool
) -> None:
    """Redis back with a copy from before the end: nobody refreshes by it, not even where the end was long ago."""
    pairs = await rotated(auth, 2)
    old = await key_of(memory, pairs[0])
    await auth.sessions.end("u_1", pairs[0].session_id)
    assert await key_of(memory, pairs[0]) == {}
    await put_back(memory, pairs[0], old)
    if forgotten:
        clock.advance(auth.config.revocation_keep_s + 1)
        await auth._feed.read()
        assert not auth._feed.session_ended(pairs[0].session_id)
    async with Auth(auth._db, memory, configure(), clock=clock) as other:
        for worker in (auth, other):
            with pytest.raises(SessionRevoked):
                await worker.refresh(pairs[-1].refresh)
    if forgotten:
        assert await key_of(memory, pairs[0]) == {}


async def test_an_end_that_redis_did_not_hear_of(
    sqlite: Database, memory: Redis, clock: ManualClock, configure: Any
) -> None:
    """A worker without Redis ends a session: another with Redis refuses it from its next look on."""
    async with (
        Redis("redis://127.0.0.1:1/0") as away,
        Auth(sqlite, memory, configure(revocation_poll_s=60), clock=clock) as one,
        Auth(sqlite, away, configure(revocation_poll_s=60), clock=clock) as two,
    ):
        pairs = await rotated(one, 1)
        await two.sessions.end("u_1", pairs[0].session_id)
        await one._feed.read()
        with pytest.raises(SessionRevoked):
            await one.refresh(pairs[-1].refresh)


async def test_a_copy_stays_checked_while_it_is_used(auth: Auth, memory: Redis, clock: ManualClock) -> None:
    """A session that is refreshed now and then is never read from the database again; one that rested is, once."""
    pair = (await rotated(auth, 1))[-1]
    reads, read = [], auth._rows.read

    async def counting(session_id: str) -> Any:
        reads.append(session_id)
        return await read(session_id)

    auth._rows.read = counting  # type: ignore[method-assign]
    for _ in range(12):
        clock.advance(auth.config.revocation_keep_s / 4)
        await auth._feed.read()
        pair = await auth.refresh(pair.refresh)
    assert reads == []
    clock.advance(auth.config.revocation_keep_s * 2)
    await auth._feed.read()
    pair = await auth.refresh(pair.refresh)
    await auth.refresh(pair.refresh)
    assert len(reads) == 1


async def test_roles_that_changed_long_ago(auth: Auth, clock: ManualClock) -> None:
    """A session that rested through a change of roles, and through its being forgotten, comes back with the new."""
    pair = (await rotated(auth, 1))[-1]
    await auth._db.execute("UPDATE daydo_auth_subject SET roles = 'editor', epoch = epoch + 1")
    clock.advance(auth.config.revocation_keep_s * 2)
    await auth._feed.read()
    assert auth.verify(f"Bearer {(await auth.refresh(pair.refresh)).access}").roles == ("editor",)


@pytest.mark.parametrize("store", ["redis", "sql"])
async def test_nobody_refreshes_for_a_disabled_subject(
    sqlite: Database, memory: Redis, configure: Any, store: str, clock: ManualClock
) -> None:
    """A session that was opened while its subject was being disabled gets no second access token."""
    async with Auth(sqlite, memory, configure(session_store=store), clock=clock) as auth:
        pair = (await rotated(auth, 1))[-1]
        await sqlite.execute("UPDATE daydo_auth_subject SET disabled_at_us = 1, epoch = epoch + 1")
        await sqlite.run(lambda tx: auth._feed.write(tx, "subject", "", "u_1", 1))
        with pytest.raises(SessionRevoked):
            await auth.refresh(pair.refresh)


# -- Redis goes away and comes back ------------------------------------------------------------------------------------


async def test_redis_dies_and_comes_back(sqlite: Database, configure: Any) -> None:
    """A server that is killed: refreshing is refused with a time to try again, and the same token works afterwards."""
    async with Redis("embedded://server") as redis, Auth(sqlite, redis, configure()) as auth:
        pairs = await rotated(auth, 2)
        await auth._session_store.write_back()
        with pytest.raises(RedisUnavailable):
            await redis.call("SHUTDOWN", "NOSAVE")
        with pytest.raises(SessionsUnavailable) as refused:
            await auth.refresh(pairs[-1].refresh)
        assert refused.value.retry_after_s
        assert auth.verify(f"Bearer {pairs[-1].access}")
        async with asyncio.timeout(20):
            while True:
                try:
                    newest = await auth.refresh(pairs[-1].refresh)
                    break
                except SessionsUnavailable:
                    await asyncio.sleep(0.05)
        assert (await auth.refresh(pairs[-1].refresh)).refresh == newest.refresh
        with pytest.raises(RefreshReused):
            await auth.refresh(pairs[0].refresh)


async def test_a_logout_without_redis(sqlite: Database, configure: Any, clock: ManualClock) -> None:
    """Ending a session needs the database alone."""
    async with (
        Redis("redis://127.0.0.1:1/0") as away,
        Auth(sqlite, away, configure(), clock=clock) as auth,
    ):
        tokens = await auth.open_session("u_1")
        await auth.logout(auth.verify(f"Bearer {tokens.access}"))
        with pytest.raises(SessionRevoked):
            await auth.refresh(tokens.refresh)


# -- counters on their way to the database -----------------------------------------------------------------------------


async def test_counters_are_written_back(db: Database, memory: Redis, configure: Any) -> None:
    """By itself, and with all that wait when the worker leaves."""
    async with Auth(db, memory, configure(session_write_back_s=0.01)) as auth:
        pairs = await rotated(auth, 3)
        await until(lambda: counter_of(db, pairs[0]), 4)
    async with Auth(db, memory, configure(session_write_back_s=60)) as auth:
        await auth.refresh(pairs[-1].refresh)
        assert await counter_of(db, pairs[0]) == 4
    assert await counter_of(db, pairs[0]) == 5


async def test_a_late_write_back_takes_nothing_back(auth: Auth, configure: Any, memory: Redis) -> None:
    """What one worker wrote stays, when another arrives with an older counter; and an ended session stays ended."""
    pairs = await rotated(auth, 2)
    late = dict(auth._session_store._waiting)  # type: ignore[attr-defined]
    pairs += [await auth.refresh(pairs[-1].refresh)]
    await auth._session_store.write_back()
    assert await counter_of(auth._db, pairs[0]) == 4
    await auth.sessions.end("u_1", pairs[0].session_id)
    auth._session_store._waiting.update(late)  # type: ignore[attr-defined]
    await auth._session_store.write_back()
    assert await counter_of(auth._db, pairs[0]) == 4
    with pytest.raises(SessionRevoked):
        await auth.refresh(pairs[-1].refresh)


async def test_write_backs_wait_for_the_database(auth: Auth, caplog: Any) -> None:
    """While the database is away counters wait, the newest of each session, and are written when it is back."""
    pairs = await rotated(auth, 1)

    async def gone(*_: object) -> Any:
        raise ConnectionLost

    auth._rows._db.run = gone  # type: ignore[method-assign]
    await auth._session_store.write_back()
    pairs += [await auth.refresh(pairs[-1].refresh)]
    assert len(auth._session_store._waiting) == 1  # type: ignore[attr-defined]
    del auth._rows._db.run
    await auth._session_store.write_back()
    assert await counter_of(auth._db, pairs[0]) == 3
    assert any("cannot be written" in record.getMessage() for record in caplog.records)


async def test_few_write_backs_wait(sqlite: Database, memory: Redis, configure: Any) -> None:
    """No more than write_backs_max wait; the others are counted and their refreshes work."""
    async with Auth(sqlite, memory, configure(write_backs_max=2, session_write_back_s=60)) as auth:
        for _ in range(5):
            await rotated(auth, 2)
        store: Any = auth._session_store
        assert (len(store._waiting), store._dropped.value) == (2, 6)


# -- the table ---------------------------------------------------------------------------------------------------------


async def test_a_stolen_table_refreshes_nothing(db: Database, memory: Redis, configure: Any) -> None:
    """No column of the session table, and nothing in Redis, is a secret of a token."""
    async with Auth(db, memory, configure()) as auth:
        pair = (await rotated(auth, 1))[-1]
        secret, mac = pair.refresh.split(".")[2:]
        stored = repr((await db.query("SELECT * FROM daydo_auth_session")).rows) + repr(await key_of(memory, pair))
    assert secret not in stored
    assert mac not in stored


async def test_expired_sessions_are_swept(db: Database, memory: Redis, configure: Any, clock: ManualClock) -> None:
    """Sessions whose time is over are removed in the background, others stay; their tokens are as good as forged."""
    async with Auth(db, memory, configure(session_ttl_s=100, sweep_s=0.01), clock=clock) as auth:
        old = [await auth.open_session("u_1") for _ in range(3)]
        clock.advance(99)
        young = await auth.open_session("u_1")
        clock.advance(2)
        await until(lambda: count_sessions(db), 1)
        await auth.refresh(young.refresh)
        with pytest.raises(TokenInvalid):
            await auth.refresh(old[0].refresh)


async def test_sweeping_goes_on_where_there_is_more(sqlite: Database, memory: Redis, configure: Any) -> None:
    """One turn removes several batches."""
    clock = ManualClock()
    async with Auth(sqlite, memory, configure(session_ttl_s=60), clock=clock) as auth:
        async with sqlite.transaction() as tx:
            for _ in range(1_200):
                await auth._rows.insert(tx, "", "u_1", "")
        clock.advance(61)
        await auth._sweep()
        assert await count_sessions(sqlite) == 0


# -- inside the caller's transaction -----------------------------------------------------------------------------------


async def test_ending_all_is_part_of_ones_transaction(auth: Auth, events: RecordedEvents) -> None:
    """Rolled back, nothing has ended and nothing was told; Redis has forgotten the copy and goes by the row."""
    pairs = await rotated(auth, 2)
    await auth._session_store.write_back()

    async def fail(tx: Any) -> None:
        assert await auth.sessions.end_all("u_1", tx=tx) == 1
        raise KeyError

    with pytest.raises(KeyError):
        await auth._db.run(fail)
    await auth.refresh(pairs[-1].refresh)
    assert "auth.session_ended" not in events.names


async def test_a_rolled_back_end_loses_no_counter(
    sqlite: Database, memory: Redis, configure: Any, clock: ManualClock
) -> None:
    """What was counted just before is written although Redis has dropped it: an old token is still an old one."""
    async with Auth(sqlite, memory, configure(session_write_back_s=60), clock=clock) as auth:
        pairs = await rotated(auth, 2)

        async def fail(tx: Any) -> None:
            assert await auth.sessions.end_all("u_1", tx=tx) == 1
            raise KeyError

        with pytest.raises(KeyError):
            await sqlite.run(fail)
        await auth._session_store.write_back()
        with pytest.raises(RefreshReused):
            await auth.refresh(pairs[0].refresh)


async def test_a_reason_is_short(auth: Auth) -> None:
    """A reason that would not fit into every database is refused by each."""
    tokens = await auth.open_session("u_1")
    with pytest.raises(ValueError, match="at most 16"):
        await auth.sessions.end("u_1", tokens.session_id, why="x" * 17)
    await auth.sessions.end("u_1", tokens.session_id, why="x" * 16)


async def test_the_row_decides_between_the_end_and_its_commit(
    sqlite: Database, memory: Redis, configure: Any, clock: ManualClock
) -> None:
    """A refresh in the midst of the transaction puts a copy back: after the commit it is gone again."""
    async with Auth(sqlite, memory, configure(), clock=clock) as auth:
        pairs = await rotated(auth, 1)

        async def end(tx: Any) -> None:
            await auth.sessions.end_all("u_1", tx=tx)
            await asyncio.create_task(auth.refresh(pairs[-1].refresh))
            assert await key_of(memory, pairs[0])

        await sqlite.run(end)
        await until(lambda: key_of(memory, pairs[0]), {})


# -- four processes ----------------------------------------------------------------------------------------------------


async def test_four_processes_agree(tmp_path: Path, redis_url: str, configure: Any) -> None:
    """Fifty refreshes with one token in each of four processes: one successor. What one ends all refuse in time."""
    database_url = f"sqlite:///{tmp_path / 'auth.db'}"
    # Redis in process is nobody else's: there the database counts, and is all that tells the others.
    store = "sql" if redis_url.startswith("embedded") else "redis"
    async with Database(database_url) as db, Redis(redis_url, CALM) as redis:
        await migrate(db, "daydo_auth")
        async with Auth(db, redis, configure(session_store=store)) as auth:
            pair = await auth.open_session("u_1")
        workers = await asyncio.gather(*(_start(database_url, redis_url, store) for _ in range(4)))
        try:
            answers = await asyncio.gather(*(_ask(worker, f"refresh {pair.refresh}") for worker in workers))
            assert len(set(answers)) == 1
            newest = answers[0]
            assert " " not in newest
            assert newest.startswith(pair.session_id)
            assert [await _ask(worker, f"verify {pair.access}") for worker in workers] == ["u_1"] * 4
            assert await _ask(workers[0], f"end {pair.session_id}") == "ended"
            for worker in workers:
                await until(partial(_ask, worker, f"verify {pair.access}"), "SessionRevoked")
            assert [await _ask(worker, f"refresh {newest}") for worker in workers] == ["SessionRevoked"] * 4
        finally:
            for worker in workers:
                worker.stdin.close()
                await worker.wait()


async def _start(*arguments: str) -> Any:
    pipe = asyncio.subprocess.PIPE
    worker = await asyncio.create_subprocess_exec(sys.executable, str(WORKER), *arguments, stdin=pipe, stdout=pipe)
    assert await _read(worker) == "ready"
    return worker


async def _ask(worker: Any, question: str) -> str:
    worker.stdin.write(question.encode() + b"\n")
    return await _read(worker)


async def _read(worker: Any) -> str:
    async with asyncio.timeout(30):
        return str((await worker.stdout.readline()).decode().strip())


def test_a_device_is_a_line_of_text() -> None:
    """What moves a cursor, ends a line or is no character is dropped from its name, and then it is cut."""
    assert device_name("\x1b[2JMy\0 \r\nphone\x7f\x85\ud800 手机📱") == "[2JMy phone 手机📱"
    assert device_name("\n" * 100 + "x" * 100) == "x" * 64

"""For tests, ours and yours: a pytest plugin, and the conformance suite of every back end.

``pytest -p daydo_redis.testing`` (or ``pytest_plugins`` in the top conftest.py) gives the fixture ``redis_url``.
A test that asks for it runs once per back end:

- ``memory``: fakeredis in this process;
- ``server``: a private server, started before the header is printed, gone with pytest however that ends;
- ``given``: the server of ``DAYDO_TEST_REDIS_URL``, if set.

Each test finds it empty. On a given server only one scratch database is ever touched, by FLUSHDB: the one its URL
names (``…/9``), or, if the URL names none or 0, the highest of 15 to 1 that is empty when the session starts. One
that holds keys at that moment is not ours and ends the session.

``--embedded`` leaves ``memory`` alone. Otherwise a back end that is missing ends the session with the remedy;
nothing is skipped in silence. A given server takes the place of a private one where no program for that is found.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import redis as driver

from daydo_kernel import new_id

from . import embedded
from .client import Redis
from .config import RedisConfig
from .errors import RedisCommandFailed
from .pubsub import Message

GIVEN_URL = "DAYDO_TEST_REDIS_URL"
START_S = 10.0
_SERVER = pytest.StashKey[embedded.PrivateRedis]()


class Backend(msgspec.Struct, frozen=True):
    """One server under test: ``title`` for the header, and how to get an empty database on it."""

    title: str
    url: str
    empty: Callable[[], object] | None = None


_BACKENDS = pytest.StashKey[dict[str, Backend]]()

# -- the plugin ------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    # daydo_db.testing may have been here first; it means the same.
    with contextlib.suppress(ValueError):
        parser.addoption(
            "--embedded", action="store_true", help="test on the embedded back ends alone (SQLite, Redis in process)"
        )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    alone = config.getoption("--embedded")
    backends = {"memory": _memory()}
    if not alone and (given := os.environ.get(GIVEN_URL)):
        backends["given"] = _given(given)
    if not alone and embedded.find_program() is not None:
        config.stash[_SERVER] = server = embedded.PrivateRedis()
        try:
            server.wait_ready(START_S)
        except RuntimeError as error:
            pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
        backends["server"] = _private(server)
    if not alone and len(backends) == 1:
        pytest.exit(
            "no Redis to test on: install redis-server or valkey-server (Debian: apt install redis-tools), set "
            f"{GIVEN_URL}, or run with --embedded",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )
    config.stash[_BACKENDS] = backends


def pytest_unconfigure(config: pytest.Config) -> None:
    server = config.stash.get(_SERVER, None)
    if server is not None:
        server.stop()


def pytest_report_header(config: pytest.Config) -> str:
    return "redis: " + ", ".join(f"{name} ({it.title})" for name, it in config.stash[_BACKENDS].items())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "redis_url" in metafunc.fixturenames:
        backends: dict[str, Backend] = metafunc.config.stash[_BACKENDS]
        metafunc.parametrize("redis_url", list(backends), indirect=True)


@pytest.fixture(scope="session")
def redis_server_url(pytestconfig: pytest.Config) -> str | None:
    """The URL of a real Redis, for processes that share one; None in a run with ``--embedded``."""
    return next((it.url for it in pytestconfig.stash[_BACKENDS].values() if it.empty is not None), None)


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty Redis, once per back end."""
    backend = request.config.stash[_BACKENDS][request.param]
    if backend.empty is None:
        url = f"{backend.url}/{new_id('test')}"
        yield url
        embedded.forget_memory(url)
    else:
        backend.empty()
        yield backend.url
        backend.empty()


def _memory() -> Backend:
    if not embedded.has_memory():
        pytest.exit(
            "redis in process needs fakeredis with Lua: pip install 'daydo-redis[embedded]'",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )
    import fakeredis  # noqa: PLC0415 (an extra)

    return Backend(f"fakeredis {fakeredis.__version__}", f"{embedded.SCHEME}memory")


def _private(server: embedded.PrivateRedis) -> Backend:
    client = driver.Redis.from_url(server.url)
    return Backend(f"{_version(client)}, private", server.url, client.flushall)


def _given(url: str) -> Backend:
    try:
        database, client = _scratch(url)
    except (driver.RedisError, ValueError) as error:
        pytest.exit(f"{GIVEN_URL} was asked for: {error}", returncode=pytest.ExitCode.USAGE_ERROR)
    return Backend(
        f"{_version(client)}, {GIVEN_URL}, database {database}", _with_database(url, database), client.flushdb
    )


def _scratch(url: str) -> tuple[int, driver.Redis]:
    named = _database(url)
    for database in (named,) if named else range(15, 0, -1):
        client = driver.Redis.from_url(_with_database(url, database), socket_timeout=5, socket_connect_timeout=5)
        if client.dbsize() == 0:
            return database, client
        client.close()
    wanted = f"database {named} holds" if named else "databases 1 to 15 all hold"
    raise ValueError(f"{wanted} keys; name an empty one in the path of the URL, or FLUSHDB one that may be lost")


def _database(url: str) -> int:
    parts = urlsplit(url)
    queried = [word.removeprefix("db=") for word in parts.query.split("&") if word.startswith("db=")]
    return int((queried or [""])[0] or (parts.path.strip("/") if parts.scheme != "unix" else "") or 0)


def _with_database(url: str, database: int) -> str:
    base, _, query = url.partition("?")
    words = [word for word in query.split("&") if word and not word.startswith("db=")]
    return f"{base}?{'&'.join([*words, f'db={database}'])}"


def _version(client: driver.Redis) -> str:
    info: Any = client.info("server")
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}"


# -- the suite -------------------------------------------------------------------------------------------------------

SHORT_S = 5.0  # for what should come at once: generous, because only a failure waits that long


async def eventually(condition: Callable[[], Awaitable[bool] | bool], within_s: float = SHORT_S) -> None:
    """Return as soon as ``condition()`` holds; fail when it does not come to hold in time."""
    pause_s = 0.005
    for _ in range(round(within_s / pause_s)):
        held = condition()
        if await held if inspect.isawaitable(held) else held:
            return
        await asyncio.sleep(pause_s)
    raise AssertionError(f"not so within {within_s} s: {condition}")


class RedisConformance:
    """What every back end does alike. Subclass it where a fixture ``redis`` gives an entered ``Redis``."""

    async def test_value_is_kept_as_bytes(self, redis: Redis) -> None:
        """Text, numbers and bytes go in; bytes come out, every one of them unchanged."""
        every_byte = bytes(range(256))
        values: list[tuple[str | int | float, bytes]] = [("剪图", "剪图".encode()), (7, b"7"), (0.5, b"0.5")]
        for value, stored in values:
            assert await redis.set("k", value)
            assert await redis.get("k") == stored
        await redis.set(every_byte, every_byte)
        assert await redis.get(every_byte) == every_byte

    async def test_missing_key_is_none(self, redis: Redis) -> None:
        """A key that was never set reads None, is taken as None and deleted as 0."""
        assert await redis.get("absent") is None
        assert await redis.take("absent") is None
        assert await redis.delete("absent") == 0
        assert await redis.delete() == 0

    async def test_only_new_keeps_the_first(self, redis: Redis) -> None:
        """The second set with only_new says False and changes nothing."""
        assert await redis.set("k", "first", only_new=True) is True
        assert await redis.set("k", "second", only_new=True) is False
        assert await redis.get("k") == b"first"
        assert await redis.set("k", "third") is True
        assert await redis.get("k") == b"third"

    async def test_ttl_counts_milliseconds(self, redis: Redis) -> None:
        """A lifetime of 1.5 s is neither rounded to a second nor kept for ever, and a plain set removes it."""
        await redis.set("k", "v", ttl_s=1.5)
        assert 1000 < await redis.call("PTTL", "k") <= 1500
        await redis.set("k", "v")
        assert await redis.call("PTTL", "k") == -1
        with pytest.raises(ValueError, match="delete"):
            await redis.set("k", "v", ttl_s=0)

    async def test_expired_key_is_gone(self, redis: Redis) -> None:
        """After its lifetime a key can be set anew with only_new."""
        await redis.set("k", "old", ttl_s=0.001)
        await asyncio.sleep(0.01)
        assert await redis.get("k") is None
        assert await redis.set("k", "new", only_new=True) is True

    async def test_take_gives_to_one(self, redis: Redis) -> None:
        """Of twenty callers that take one ticket exactly one gets it."""
        await redis.set("ticket", "u_7")
        taken = await asyncio.gather(*(redis.take("ticket") for _ in range(20)))
        assert sorted(taken, key=bool) == [None] * 19 + [b"u_7"]

    async def test_delete_counts_what_existed(self, redis: Redis) -> None:
        """Three keys named, two there: 2."""
        await redis.set("a", 1)
        await redis.set("b", 2)
        assert await redis.delete("a", "b", "c") == 2
        assert await redis.get("a") is None

    async def test_answers_come_as_redis_sends_them(self, redis: Redis) -> None:
        """No answer is converted: OK is bytes, a hash a flat list, a score text."""
        assert await redis.call("SET", "k", "v") == b"OK"
        assert await redis.call("HSET", "h", "field", 1) == 1
        assert await redis.call("HGETALL", "h") == [b"field", b"1"]
        assert await redis.call("ZADD", "z", 1.5, "m") == 1
        assert await redis.call("ZSCORE", "z", "m") == b"1.5"
        assert await redis.call(b"LRANGE", "absent", 0, -1) == []

    async def test_error_answers_name_the_command(self, redis: Redis) -> None:
        """A wrong type is RedisCommandFailed, not an exception of the driver, and the connection stays usable."""
        await redis.call("RPUSH", "list", "x")
        with pytest.raises(RedisCommandFailed, match="GET") as caught:
            await redis.get("list")
        assert caught.value.command == "GET"
        with pytest.raises(RedisCommandFailed):
            await redis.call("NOSUCHCOMMAND")
        assert await redis.call("LLEN", "list") == 1

    @pytest.mark.parametrize(
        "command",
        [
            ("SELECT", 1),
            ("multi",),
            (b"SUBSCRIBE", "c"),
            ("BLPOP", "l", 0),
            ("client reply", "OFF"),
            ("CLIENT", "TRACKING", "ON"),
            ("XREAD", "BLOCK", 0, "STREAMS", "s", "$"),
            ("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "block", 0, "STREAMS", "s", ">"),
        ],
    )
    async def test_commands_that_need_their_own_connection_are_refused(
        self, redis: Redis, command: tuple[str | int, ...]
    ) -> None:
        """What blocks or changes a shared connection is refused before it is sent."""
        with pytest.raises(ValueError, match="connection of its own"):
            await redis.call(*command)

    async def test_script_reads_keys_and_args(self, redis: Redis) -> None:
        """KEYS and ARGV arrive as sent, and what the script returns comes back."""
        script = redis.script("redis.call('SET', KEYS[1], ARGV[1]); return {KEYS[1], ARGV[1], 7, false}")
        assert await script(keys=["k"], args=[b"\xff\x00"]) == [b"k", b"\xff\x00", 7, None]
        assert await redis.get("k") == b"\xff\x00"

    async def test_script_survives_a_flush(self, redis: Redis) -> None:
        """A server that has forgotten the script is told it again, and the script runs once."""
        count = redis.script("return redis.call('INCR', KEYS[1])")
        assert await count(keys=["n"]) == 1
        await redis.call("SCRIPT", "FLUSH")
        assert await count(keys=["n"]) == 2
        assert await redis.call("SCRIPT", "EXISTS", count.sha) == [1]
        assert await count(keys=["n"]) == 3

    async def test_failing_script_is_command_failed(self, redis: Redis) -> None:
        """An error raised in Lua carries its words."""
        script = redis.script("return redis.error_reply('TOO MANY')")
        with pytest.raises(RedisCommandFailed, match="TOO MANY"):
            await script()

    async def test_subscriber_hears_everything_in_order(self, redis: Redis) -> None:
        """Once inside the block, all that is published on its channels arrives, and nothing else."""
        async with asyncio.timeout(SHORT_S), redis.subscribe("a", "b") as messages:
            for number in range(50):
                assert await redis.publish("ab"[number % 2], b"%d\xff" % number) == 1
                assert await redis.publish("other", b"noise") == 0
            for number in range(50):
                assert await anext(messages) == Message("ab"[number % 2], b"%d\xff" % number)

    async def test_subscribers_come_and_go(self, redis: Redis) -> None:
        """Two subscribers of a channel hear the same; when one leaves the other stays; then nobody listens."""
        async with asyncio.timeout(SHORT_S), redis.subscribe("c") as stays:
            async with redis.subscribe("c", "d") as leaves:
                await redis.publish("c", b"1")
                assert (await anext(stays)).payload == (await anext(leaves)).payload == b"1"
            await redis.publish("c", b"2")
            assert (await anext(stays)).payload == b"2"

        async def nobody_listens() -> bool:
            return await redis.publish("c", b"3") == 0

        await eventually(nobody_listens)

    async def test_slow_subscriber_is_told_what_it_lost(self, redis_url: str) -> None:
        """Beyond its queue a subscriber loses the oldest messages and reads ``missed`` in their place."""
        async with (
            asyncio.timeout(SHORT_S),
            Redis(redis_url, RedisConfig(pubsub_queue=3)) as redis,
            redis.subscribe("c") as slow,
            redis.subscribe("c") as quick,
        ):
            for number in range(5):
                await redis.publish("c", b"%d" % number)
                assert (await anext(quick)).payload == b"%d" % number
            read = [await anext(slow) for _ in range(4)]
            assert [message.missed for message in read] == [True, False, False, False]
            assert [message.payload for message in read[1:]] == [b"2", b"3", b"4"]

    async def test_leaving_ends_the_iteration(self, redis_url: str) -> None:
        """A stream over a subscription ends when the Redis is left, so shutdown does not hang on it."""
        heard: list[Message] = []
        inside = asyncio.Event()

        async def listen(redis: Redis) -> None:
            async with redis.subscribe("c") as messages:
                inside.set()
                heard.extend([message async for message in messages])

        async with asyncio.timeout(SHORT_S):
            async with Redis(redis_url) as redis:
                listening = asyncio.create_task(listen(redis))
                await inside.wait()
                assert await redis.publish("c", b"1") == 1
            await listening
        assert len(heard) <= 1

    async def test_two_nouns_on_one_url_share_their_data(self, redis: Redis, redis_url: str) -> None:
        """What one service stores the other reads; what it publishes the other hears."""
        async with asyncio.timeout(SHORT_S), Redis(redis_url) as other, other.subscribe("c") as messages:
            await redis.set("k", "v")
            assert await other.get("k") == b"v"
            await redis.publish("c", b"hello")
            assert (await anext(messages)).payload == b"hello"

    async def test_many_calls_at_once_wait_for_their_turn(self, redis_url: str) -> None:
        """Three hundred calls through two slots all get their own answer."""
        async with Redis(redis_url, RedisConfig(pool_size=2, pool_wait_s=SHORT_S)) as redis:
            answers = await asyncio.gather(*(redis.call("ECHO", number) for number in range(300)))
        assert answers == [b"%d" % number for number in range(300)]

    async def test_health_is_ok(self, redis: Redis) -> None:
        """A living server is ok and says how long it took."""
        health = await redis.health()
        assert health.status == "ok"
        assert health.detail["latency_ms"]

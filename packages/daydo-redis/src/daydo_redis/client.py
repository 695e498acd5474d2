"""The noun: one Redis, every call bounded in time and in number."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import redis.exceptions as driver
from redis.asyncio import ConnectionPool
from redis.asyncio import Redis as Client
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from daydo_kernel import Clock, DaydoError, EventSink, Health, Metrics, Part

from . import embedded
from .breaker import Breaker
from .config import RedisConfig
from .deadline import Deadline
from .errors import RedisCommandFailed, RedisTimeout, RedisUnavailable
from .pubsub import Message, PubSub
from .script import Script

Argument = str | bytes | int | float

_OUTCOMES = ("ok", "failed", "timeout", "unavailable", "refused", "cancelled")
# What would leave its mark on a pooled connection, or hold one for as long as it likes.
# fmt: off
_NOT_ON_A_POOL = {
    "ASKING", "AUTH", "BLMOVE", "BLMPOP", "BLPOP", "BRPOP", "BRPOPLPUSH", "BZMPOP", "BZPOPMAX", "BZPOPMIN",
    "DISCARD", "EXEC", "HELLO", "MONITOR", "MULTI", "PSUBSCRIBE", "PSYNC", "PUNSUBSCRIBE", "QUIT", "READONLY",
    "READWRITE", "RESET", "SELECT", "SSUBSCRIBE", "SUBSCRIBE", "SUNSUBSCRIBE", "SYNC", "UNSUBSCRIBE", "UNWATCH",
    "WAIT", "WAITAOF", "WATCH",
}
# fmt: on
_DEPENDS_ON_OPTION = {"CLIENT": {"REPLY", "TRACKING", "CACHING"}, "XREAD": {"BLOCK"}, "XREADGROUP": {"BLOCK"}}


class Redis(Part):
    """One Redis, from a URL or around a client of yours (which stays yours: it is not closed).

    URLs: ``redis://user:password@host:port/db``, ``rediss://…`` (TLS), ``unix:///path?db=0``, and the embedded
    ones: ``embedded://`` (a private server if its program is found, else in process), ``embedded://server``,
    ``embedded://memory``; ``embedded://memory/NAME`` is shared by everything in this process that says NAME.
    Embedded data ends with the process.

    Starting needs no Redis: a service comes up while Redis is down, and its calls say so. While Redis is gone or
    frozen every call raises :class:`RedisUnavailable` or :class:`RedisTimeout` within ``command_timeout_s``, and
    after ``breaker_failures`` of them at once, for ``breaker_open_s`` at a time. Nothing is repeated here: only
    the caller knows whether that is safe.

    ``clock`` is the breaker's, for tests. ``events`` is taken as by every noun; Redis has none to tell.

    Raises:
        ValueError: the URL is none of these.
    """

    def __init__(
        self,
        source: str | Client,
        config: RedisConfig = RedisConfig(),  # noqa: B008 (frozen)
        *,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        self._source = source
        self._config = config
        self._resources = AsyncExitStack()
        self._backend = _check(source, config)
        now_s = time.monotonic if clock is None else lambda: clock.now_us() / 1e6
        self._breaker = Breaker(config.breaker_failures, config.breaker_open_s, now_s)

        self.metrics = Metrics("daydo_redis")
        commands = self.metrics.counter("commands_total", "Calls, by how they ended.", labels=("outcome",))
        self._outcomes = {outcome: commands.cell(outcome) for outcome in _OUTCOMES}
        seconds = self.metrics.histogram("command_seconds", "Time of one call, waiting for its slot included.")
        self._seconds = seconds.cell()
        is_open = self.metrics.gauge("breaker_open", "1 while calls are refused unsent.", merge="max")
        is_open.cell().follow(lambda: float(self._breaker.is_open))
        missed = self.metrics.counter("pubsub_missed_total", "Times a subscriber was told it may have missed messages.")
        self._pubsub = PubSub(self._new_connection, self._spawn, config, missed.cell())

    @property
    def embedded(self) -> bool:
        """Whether the data lives and dies with this process: then more than one worker makes no sense."""
        return isinstance(self._source, str) and self._source.startswith(embedded.SCHEME)

    # -- calls ---------------------------------------------------------------------------------------------------

    async def call(self, *command: Argument) -> Any:
        """Any command, one argument each: ``await redis.call("HSET", "h", "field", 1)``.

        The answer comes as Redis sends it: int, bytes, None or a list of these (around a client of yours that
        speaks RESP3 also dict, float, bool).

        Redis gone: :class:`RedisUnavailable`, or :class:`RedisTimeout` when the command may have been carried out.

        Raises:
            RedisCommandFailed: Redis answered with an error.
            ValueError: the command blocks, or would change the pooled connection that it happens to get.
        """
        _check_pooled(command)
        return await self._send(*command)

    async def get(self, key: str | bytes) -> bytes | None:
        """The value of ``key``, or None. Redis gone: raises; a cache treats that as a miss."""
        value: bytes | None = await self._send("GET", key)
        return value

    async def set(
        self, key: str | bytes, value: Argument, *, ttl_s: float | None = None, only_new: bool = False
    ) -> bool:
        """Store ``value``, for ``ttl_s`` seconds (milliseconds count) or for good.

        False only with ``only_new``: the key existed and stays as it was.
        Redis gone: raises; after :class:`RedisTimeout` the value may have been stored.
        """
        command: list[Argument] = ["SET", key, value]
        if ttl_s is not None:
            if not ttl_s > 0:
                raise ValueError(f"ttl_s must be positive, not {ttl_s}; to remove a key call delete")
            command += ["PX", max(1, round(ttl_s * 1000))]
        if only_new:
            command.append("NX")
        return await self._send(*command) is not None

    async def take(self, key: str | bytes) -> bytes | None:
        """Read and remove in one step: of several callers exactly one gets the value (GETDEL, Redis 6.2).

        Redis gone: raises; after :class:`RedisTimeout` the value may be gone too. What is taken once, like a
        ticket, fails closed.
        """
        value: bytes | None = await self._send("GETDEL", key)
        return value

    async def delete(self, *keys: str | bytes) -> int:
        """Remove ``keys``; how many of them existed. Redis gone: raises, and they may or may not be there."""
        if not keys:
            return 0
        removed: int = await self._send("DEL", *keys)
        return removed

    def script(self, lua: str) -> Script:
        """A Lua script to call again and again; no I/O yet, so make it once, next to what uses it."""
        return Script(self, lua)

    async def publish(self, channel: str, payload: bytes) -> int:
        """Send to those who listen right now; how many server connections that were.

        Redis gone: raises, and nobody hears it. Subscribers that are reconnecting miss it and are told so.
        """
        listeners: int = await self._send("PUBLISH", channel, payload)
        return listeners

    def subscribe(self, *channels: str) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        """Listen: ``async with redis.subscribe("news") as messages: async for message in messages: …``.

        Inside the block every message published is received, in order, or one with ``missed=True`` stands in its
        place: the connection was lost and is back, or this subscriber was more than ``pubsub_queue`` behind.
        Read again then whatever the messages keep up to date. All subscribers share one connection. The iteration
        ends when this Redis is left.

        Redis gone on entry: :class:`RedisUnavailable` or :class:`RedisTimeout`. Gone later: the iteration waits.
        """
        self._require_started()
        if not channels:
            raise ValueError("subscribe to at least one channel")
        return self._pubsub.subscription(channels)

    async def health(self) -> Health:
        """One PING: ``down`` without an answer, ``degraded`` when it is refused. Needs neither INFO nor CONFIG.

        While the breaker is open this says so unasked; afterwards it serves as the probe.
        """
        began = time.perf_counter()
        try:
            await self._send("PING")
        except DaydoError as error:
            return Health(
                status="degraded" if isinstance(error, RedisCommandFailed) else "down",
                detail={"backend": self._backend, "error": str(error)},
            )
        latency_ms = (time.perf_counter() - began) * 1000
        return Health(detail={"backend": self._backend, "latency_ms": round(latency_ms, 3)})

    # -- one call, from slot to outcome --------------------------------------------------------------------------

    async def _send(self, *command: Argument, if_unknown_script: tuple[Argument, ...] = ()) -> Any:
        self._require_started()
        began = time.perf_counter()
        outcome = "cancelled"
        try:
            await self._take_slot()
            try:
                wait_s = self._breaker.admit()
                if wait_s:
                    outcome = "refused"
                    raise RedisUnavailable(reason="breaker open", retry_after_s=wait_s)
                answer = await self._attempt(command, if_unknown_script)
            finally:
                self._slots.release()
            outcome = "ok"
            return answer
        except RedisCommandFailed:
            outcome = "failed"
            raise
        except RedisTimeout:
            outcome = "timeout"
            raise
        except RedisUnavailable:
            outcome = "unavailable" if outcome != "refused" else outcome
            raise
        finally:
            self._outcomes[outcome].inc()
            self._seconds.observe(time.perf_counter() - began)

    async def _take_slot(self) -> None:
        # Not the driver's BlockingConnectionPool: a waiter cancelled in the moment it is woken takes the wake-up
        # with it (asyncio.Condition before Python 3.13), and the next one times out beside a free connection.
        if not self._slots.locked():
            await self._slots.acquire()
            return
        try:
            async with asyncio.timeout(self._config.pool_wait_s):
                await self._slots.acquire()
        except TimeoutError:
            raise RedisUnavailable(reason="pool exhausted", retry_after_s=self._config.pool_wait_s) from None

    async def _attempt(self, command: tuple[Argument, ...], if_unknown_script: tuple[Argument, ...]) -> Any:
        answered: bool | None = None
        try:
            async with Deadline(self._config.command_timeout_s):
                try:
                    answer = await self._execute(*command)
                except driver.NoScriptError:
                    if not if_unknown_script:
                        raise
                    answer = await self._execute(*if_unknown_script)
            answered = True
        except (TimeoutError, driver.TimeoutError) as error:
            answered = False
            raise RedisTimeout(timeout_s=self._config.command_timeout_s) from error
        except driver.MaxConnectionsError as error:
            raise RedisUnavailable(reason="pool exhausted") from error
        except (driver.ConnectionError, OSError) as error:
            answered = False
            raise RedisUnavailable(reason=_reason(error)) from error
        except (driver.ReadOnlyError, driver.ClusterDownError, driver.TryAgainError) as error:
            # Our connections lead to a server that was demoted; new ones find the one in charge.
            answered = True
            await self._drop_idle_connections()
            raise RedisUnavailable(reason="failing over") from error
        except driver.RedisError as error:
            answered = True
            raise RedisCommandFailed(command=_text(command[0]), reason=str(error)) from error
        finally:
            self._breaker.report(answered)
        return answer

    async def _execute(self, *command: Argument) -> Any:
        if self._backend == "memory":
            # Below older drivers fakeredis answers without ever giving way: a loop of calls starves all others.
            await asyncio.sleep(0)
        # The name goes as bytes: the driver then leaves the answer as it came instead of converting it in ways
        # that differ between its versions. NEVER_DECODE: bytes also from a client with decode_responses.
        name, *arguments = command
        name = name.encode() if isinstance(name, str) else name
        return await self._execute_command(name, *arguments, NEVER_DECODE=True)

    async def _drop_idle_connections(self) -> None:
        with contextlib.suppress(driver.RedisError, OSError):
            async with asyncio.timeout(self._config.command_timeout_s):
                await self._pool.disconnect(inuse_connections=False)

    # -- life ----------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._slots = asyncio.Semaphore(self._config.pool_size)
        client = self._source if not isinstance(self._source, str) else await self._open(self._source)
        self._pool: ConnectionPool = client.connection_pool
        self._execute_command: Callable[..., Awaitable[Any]] = client.execute_command

    async def _open(self, url: str) -> Client:
        """A client of our own, in ``_resources`` with all it stands on."""
        if self._backend == "memory":
            client = embedded.memory_client(url, self._config.pool_size)
            # fakeredis forgets an expired key only when somebody comes across it; DBSIZE comes across all of them.
            self._repeat(embedded.SWEEP_S, lambda: self._execute_command("DBSIZE"), "sweep")
        elif self._backend == "server":
            server = embedded.PrivateRedis()
            self._resources.push_async_callback(asyncio.to_thread, server.stop)
            await asyncio.to_thread(server.wait_ready, self._config.embedded_start_s)
            client = Client(connection_pool=_own_pool(server.url, self._config))
        else:
            client = Client(connection_pool=_own_pool(url, self._config))
        self._resources.push_async_callback(self._close_client, client)
        return client

    async def _close_client(self, client: Client) -> None:
        # A frozen server does not say goodbye either (TLS waits for it).
        with contextlib.suppress(driver.RedisError, OSError):
            async with asyncio.timeout(self._config.command_timeout_s):
                await client.aclose(close_connection_pool=True)

    def _new_connection(self) -> AbstractConnection:
        make: Callable[[], AbstractConnection] = self._pool.make_connection
        return make()

    async def _drain(self) -> None:
        self._pubsub.finish()
        for _ in range(self._config.pool_size):
            await self._slots.acquire()

    async def _close(self) -> None:
        await self._resources.aclose()


def _check(source: str | Client, config: RedisConfig) -> str:
    """What stands behind ``source``: ``memory``, ``server``, ``url`` or ``client``."""
    if isinstance(source, Client):
        return "client"
    if not isinstance(source, str):
        raise TypeError(f"Redis takes a URL or a redis.asyncio.Redis, not {type(source).__name__}")
    if source.startswith(embedded.SCHEME):
        return embedded.choose(source)
    try:
        # Connects nothing, but knows every option.
        make: Callable[[], object] = _own_pool(source, config).make_connection
        make()
    except TypeError as error:
        raise ValueError(f"Redis URL: {error}") from None
    database = urlsplit(source).path.strip("/")
    if not source.startswith("unix:") and database and not database.isdecimal():
        raise ValueError(f"Redis URL: the path is the number of a database, not {database!r}")
    return "url"


def _own_pool(url: str, config: RedisConfig) -> ConnectionPool:
    """Connections that leave time, number and repetition to us."""
    options: dict[str, Any] = {
        **parse_url(url),
        "max_connections": config.pool_size,
        "socket_connect_timeout": None,
        "socket_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    return ConnectionPool(**options)


def _check_pooled(command: tuple[Argument, ...]) -> None:
    # The driver splits a first argument like "CLIENT REPLY"; values behind it may be long and stay untouched.
    words = _text(command[0]).upper().split() if command else []
    if not words:
        raise ValueError("call takes a command and its arguments")
    name, *rest = words
    rest += [_text(word).upper() for word in command[1:]] if name in _DEPENDS_ON_OPTION else []
    options = _DEPENDS_ON_OPTION.get(name, set()).intersection(rest)
    if options or name in _NOT_ON_A_POOL:
        raise ValueError(
            f"{' '.join([name, *options])} needs a connection of its own, calls share theirs: "
            "use subscribe, a script, or a redis.asyncio.Redis of yours"
        )


def _reason(error: BaseException) -> str:
    """One of three phrases: the driver's own texts name hosts and users, and these reach clients."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, driver.AuthenticationError | driver.AuthorizationError):
            return "authentication failed"
        if isinstance(link, driver.BusyLoadingError):
            return "loading"
        link = link.__cause__
    return "connection lost"


def _text(word: Argument) -> str:
    return word.decode(errors="replace") if isinstance(word, bytes) else str(word)

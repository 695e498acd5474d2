"""The noun: one Redis, every call bounded in time and in number."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import redis.exceptions as driver
from redis.asyncio.connection import AbstractConnection

from daydo_kernel import Clock, DaydoError, EventSink, Health, Metrics, Part, to_the_end

from . import embedded
from .call import Call
from .calls import Calls
from .commands import shareable
from .config import RedisConfig
from .connect import Source, backend_of, road_to
from .embedded import PrivateRedis
from .errors import RedisCommandFailed, RedisFull
from .pubsub import Message, PubSub
from .roads import MemoryRoad, Road
from .script import Script
from .wire import Argument

log = logging.getLogger("daydo.redis")


class Redis(Part):
    """One Redis, from a URL or around a client of yours (which stays yours: it is not closed).

    URLs: ``redis://user:password@host:port/db``, ``rediss://…`` (TLS), ``unix:///path?db=0``;
    ``redis+sentinel://user:password@host:26379,host2:26379/primary_name/db``, ``redis+cluster://host:port,host2:port``
    and their ``rediss+…`` twins; and the embedded ones: ``embedded://`` (a private server if its program is found,
    else in process), ``embedded://server``, ``embedded://memory``; ``embedded://memory/NAME`` is shared by
    everything in this process that says NAME. Embedded data ends with the process.

    Starting needs no Redis: a service comes up while Redis is down, and its calls say so. While Redis is gone or
    frozen every call raises :class:`RedisUnavailable` or :class:`RedisTimeout` within ``command_timeout_s``, and
    after ``breaker_failures`` of them at once, for ``breaker_open_s`` at a time. Within that time a call is tried
    again only if it was not carried out, or does no harm carried out twice.

    Calls made in one turn of the event loop travel as one packet; each is answered as if it had been alone.

    ``clock`` is the breaker's, for tests. ``events`` is taken as by every noun; Redis has none to tell.

    Raises:
        ValueError: the URL is none of these.
    """

    def __init__(
        self,
        source: Source,
        config: RedisConfig = RedisConfig(),  # noqa: B008 (frozen)
        *,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        self._source = source
        self._config = config
        self._resources = AsyncExitStack()
        self._backend = backend_of(source, config)
        self.metrics = Metrics("daydo_redis")
        now_s = time.monotonic if clock is None else lambda: clock.now_us() / 1e6
        self._calls = Calls(config, self.metrics, now_s)
        missed = self.metrics.counter("pubsub_missed_total", "Times a subscriber was told it may have missed messages.")
        self._pubsub = PubSub(self._spare, self._spawn, config, missed.cell())

    @property
    def embedded(self) -> bool:
        """Whether the data lives and dies with this process: then more than one worker makes no sense."""
        return isinstance(self._source, str) and self._source.startswith(embedded.SCHEME)

    # -- calls ---------------------------------------------------------------------------------------------------

    async def call(self, *command: Argument, merge: bool = True) -> Any:
        """Any command, one argument each: ``await redis.call("HSET", "h", "field", 1)``.

        ``merge`` False: it leaves at once, in no order with what else is asked in this turn; for who has reason to
        believe that there is no company to wait for.

        The answer comes as Redis sends it: int, bytes, None or a list of these (around a client of yours that
        speaks RESP3 also dict, float, bool).

        Redis gone: :class:`RedisUnavailable`, or :class:`RedisTimeout` when the command may have been carried out.

        Raises:
            RedisFull: it has no room for the write.
            RedisCommandFailed: Redis answered with an error.
            ValueError: the command blocks, or would change the pooled connection that it happens to get.
        """
        return await self._send(Call(*shareable(command)), merge)

    async def get(self, key: str | bytes, *, merge: bool = True) -> bytes | None:
        """The value of ``key``, or None. Redis gone: raises; a cache treats that as a miss.

        ``merge``: as :meth:`call`.
        """
        value: bytes | None = await self._send(Call("GET", key, key=key, repeatable=True), merge)
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
        return await self._send(Call(*command, key=key, repeatable=False)) is not None

    async def take(self, key: str | bytes) -> bytes | None:
        """Read and remove in one step: of several callers exactly one gets the value (GETDEL, Redis 6.2).

        Redis gone: raises; after :class:`RedisTimeout` the value may be gone too. What is taken once, like a
        ticket, fails closed.
        """
        value: bytes | None = await self._send(Call("GETDEL", key, key=key, repeatable=False))
        return value

    async def delete(self, *keys: str | bytes) -> int:
        """Remove ``keys``; how many of them existed. On a cluster not all in the same instant.

        Redis gone: raises, and they may or may not be there.
        """
        if not keys:
            return 0
        if self._backend == "cluster" and len(keys) > 1:
            return sum(await asyncio.gather(*map(self.delete, keys)))
        removed: int = await self._send(Call("DEL", *keys, key=keys[0], repeatable=False))
        return removed

    def script(self, lua: str, *, idempotent: bool = False) -> Script:
        """A Lua script to call again and again; no I/O yet, so make it once, next to what uses it.

        ``idempotent`` is your word that running it twice does no more than running it once; then it runs again when
        its answer was lost with the connection.
        """
        return Script(self._send, lua, idempotent=idempotent)

    async def publish(self, channel: str, payload: bytes) -> int:
        """Send to those who listen right now; how many server connections that were.

        Redis gone: raises, and nobody hears it. Subscribers that are reconnecting miss it and are told so.
        """
        listeners: int = await self._send(Call("PUBLISH", channel, payload, repeatable=False))
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
            await self._send(Call("PING", repeatable=True))
        except DaydoError as error:
            return Health(
                status="degraded" if isinstance(error, RedisCommandFailed | RedisFull) else "down",
                detail={"backend": self._backend, "error": str(error)},
            )
        latency_ms = (time.perf_counter() - began) * 1000
        return Health(detail={"backend": self._backend, "latency_ms": round(latency_ms, 3)})

    # -- life ----------------------------------------------------------------------------------------------------

    def _send(self, call: Call, merge: bool = True) -> Awaitable[Any]:
        self._require_started()
        return self._calls.answer(call, merge)

    def _spare(self) -> AbstractConnection:
        return self._road.spare()

    async def _start(self) -> None:
        self._road = await self._open()
        self._calls.open(self._road, self._spawn)

    async def _open(self) -> Road:
        """The road, and in ``_resources`` all it stands on."""
        if self._backend == "memory":
            client: Any = embedded.memory_client(str(self._source), self._config.pool_size)
            road: Road = MemoryRoad(client.connection_pool.make_connection)
            # fakeredis forgets an expired key only when somebody comes across it; DBSIZE comes across all of them.
            self._repeat(embedded.SWEEP_S, lambda: client.execute_command("DBSIZE"), "sweep")
            clients = [client]
        else:
            url = self._source if self._backend != "server" else await self._start_server()
            road, clients = road_to(url, self._config, self._spawn)
        for client in clients:
            self._resources.push_async_callback(self._close_in_time, client.aclose, close_connection_pool=True)
        self._resources.push_async_callback(self._close_in_time, road.aclose)
        return road

    async def _start_server(self) -> str:
        server = embedded.PrivateRedis()
        self._resources.push_async_callback(asyncio.to_thread, server.stop)
        await asyncio.to_thread(server.wait_ready, self._config.embedded_start_s)
        self._repeat(embedded.WATCH_S, lambda: self._revive(server), "embedded server")
        return server.url

    async def _revive(self, server: PrivateRedis) -> None:
        if server.alive:
            return
        log.warning("the private Redis has ended, and its data with it; starting an empty one")
        try:
            # To the end: leaving meanwhile must find the new server, to stop it.
            await to_the_end(asyncio.to_thread(server.start_again, self._config.embedded_start_s))
        except Exception:
            await asyncio.sleep(self._config.embedded_start_s)
            raise

    async def _close_in_time(self, close: Callable[..., Awaitable[None]], **options: bool) -> None:
        # A frozen server does not say goodbye either (TLS waits for it).
        with contextlib.suppress(driver.RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._config.command_timeout_s):
                await close(**options)

    async def _drain(self) -> None:
        self._pubsub.finish()
        await self._calls.drained()

    async def _close(self) -> None:
        await self._resources.aclose()

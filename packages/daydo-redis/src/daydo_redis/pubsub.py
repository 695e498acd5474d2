"""Publish and subscribe over one connection that may come and go.

The server forgets subscriptions with their connection and keeps no message for those who are away. So what a
subscriber can be promised is this: it hears everything, or it hears that it may have missed something.

One task owns the connection. It subscribes to every channel that anybody wants, hands messages to the inboxes
of that channel, asks for a sign of life after silence (a frozen server closes nothing), and after a loss
connects again, with pauses that grow. The server confirms each SUBSCRIBE in the stream of messages itself: what
follows the confirmation is complete. Hence both rules here: a subscriber enters its block once all of its
channels are confirmed, and ``missed`` goes out at the first confirmation after a loss (one SUBSCRIBE names all
channels, and the server carries it out as a whole), so whoever then reads the state anew loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import redis.exceptions as driver
from redis.asyncio.connection import AbstractConnection

from daydo_kernel import Counter

from .config import RedisConfig
from .deadline import Deadline
from .errors import RedisTimeout, RedisUnavailable
from .roads import hang_up

log = logging.getLogger("daydo.redis")

RETRY_MIN_S = 0.05


class Message(msgspec.Struct, frozen=True):
    """One published message; or, with ``missed``, the news that some may be missing at this point."""

    channel: str
    payload: bytes = b""
    missed: bool = False


MISSED = Message(channel="", missed=True)


class Inbox(AsyncIterator[Message]):
    """What one subscriber has yet to read: at most ``bound`` messages, the oldest give way."""

    def __init__(self, bound: int, missed: Counter) -> None:
        self._messages: deque[Message] = deque()
        self._bound = bound
        self._missed = missed
        self._overflowed = False
        self._finished = False
        self._changed = asyncio.Event()

    def put(self, message: Message) -> None:
        if len(self._messages) >= self._bound:
            self._messages.popleft()
            if not self._overflowed:
                self._missed.inc()
            self._overflowed = True
        elif message.missed:
            self._missed.inc()
        self._messages.append(message)
        self._changed.set()

    def finish(self) -> None:
        self._finished = True
        self._changed.set()

    async def __anext__(self) -> Message:
        while True:
            if self._finished:
                raise StopAsyncIteration
            if self._overflowed:
                self._overflowed = False
                return MISSED
            if self._messages:
                return self._messages.popleft()
            self._changed.clear()
            await self._changed.wait()


class _Channel:
    """Who listens, and whether the server has confirmed every SUBSCRIBE that was sent for it."""

    def __init__(self) -> None:
        self.inboxes: set[Inbox] = set()
        self.confirmed = asyncio.Event()


class PubSub:
    """All subscriptions of one :class:`daydo_redis.Redis`."""

    def __init__(
        self,
        connect: Callable[[], AbstractConnection],
        spawn: Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]],
        config: RedisConfig,
        missed: Counter,
    ) -> None:
        self._connect = connect
        self._spawn = spawn
        self._config = config
        self._missed = missed
        self._channels: dict[bytes, _Channel] = {}
        self._unconfirmed: dict[bytes, int] = {}
        self._connection: AbstractConnection | None = None
        self._task: asyncio.Task[Any] | None = None
        self._finished = False
        self._away: set[Inbox] = set()

    @contextlib.asynccontextmanager
    async def subscription(self, names: tuple[str, ...]) -> AsyncIterator[AsyncIterator[Message]]:
        wanted = [name.encode() for name in dict.fromkeys(names)]
        inbox = Inbox(self._config.pubsub_queue, self._missed)
        try:
            await self._enter(wanted, inbox)
            yield inbox
        finally:
            inbox.finish()
            await self._leave(wanted, inbox)

    def finish(self) -> None:
        """End every iteration: the noun is being left."""
        # Said in a flag as well, because a cancellation may get lost: asyncio.wait_for, below fakeredis, swallows
        # one that arrives together with a message (before Python 3.12).
        self._finished = True
        for channel in self._channels.values():
            for inbox in channel.inboxes:
                inbox.finish()

    async def _enter(self, names: list[bytes], inbox: Inbox) -> None:
        fresh = [name for name in names if name not in self._channels]
        for name in names:
            self._channels.setdefault(name, _Channel()).inboxes.add(inbox)
        if self._task is None or self._task.done():
            self._finished = False
            self._task = self._spawn(self._run(), "pubsub")
        try:
            with Deadline(self._config.subscribe_timeout_s):
                if fresh and self._connection is not None:
                    await self._subscribe(self._connection, fresh)
                for name in names:
                    await self._channels[name].confirmed.wait()
        except (driver.RedisError, OSError, TimeoutError) as error:
            if self._connection is None or not isinstance(error, TimeoutError):
                raise RedisUnavailable(reason="connection lost") from error
            raise RedisTimeout(timeout_s=self._config.subscribe_timeout_s) from error

    async def _leave(self, names: list[bytes], inbox: Inbox) -> None:
        self._away.discard(inbox)
        unwanted = []
        for name in names:
            self._channels[name].inboxes.discard(inbox)
            if not self._channels[name].inboxes:
                del self._channels[name]
                unwanted.append(name)
        if unwanted and self._connection is not None:
            # A failure here shows itself to the reader as well, which knows what to do.
            with contextlib.suppress(driver.RedisError, OSError, TimeoutError):
                await self._send(self._connection, b"UNSUBSCRIBE", *unwanted)

    async def _run(self) -> None:
        failures = 0
        while True:
            connection = self._connect()
            connect: Callable[[], Awaitable[None]] = connection.connect
            try:
                with Deadline(self._config.subscribe_timeout_s):
                    await connect()
                failures = 0
                await self._listen(connection)
            except Exception as error:
                # Of any kind: subscribers that hear nothing for ever would be the worst of outcomes.
                expected = isinstance(error, driver.RedisError | OSError)
                if failures == 0 or not expected:
                    what = type(error).__name__
                    log.warning("pub/sub connection lost (%s); connecting again", what, exc_info=not expected)
            finally:
                self._lost()
                await hang_up([connection])
            if self._finished:
                return
            failures += 1
            pause_s = min(self._config.pubsub_retry_max_s, RETRY_MIN_S * 2 ** min(failures, 16))
            # Jitter: the subscribers of a whole fleet lost their server in the same moment.
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311

    def _lost(self) -> None:
        if self._connection is None:
            return
        self._connection = None
        self._unconfirmed.clear()
        for channel in self._channels.values():
            channel.confirmed.clear()
            self._away |= channel.inboxes

    async def _listen(self, connection: AbstractConnection) -> None:
        self._connection = connection
        if self._channels:
            await self._subscribe(connection, list(self._channels))
        asked = False
        while not self._finished:
            answer = await connection.read_response(
                disable_decoding=True,
                timeout=self._config.pubsub_ping_s,
                disconnect_on_error=False,
                push_request=True,
            )
            if answer is not None:
                asked = False
                await self._handle(connection, answer)
            elif asked:
                raise TimeoutError("no sign of life")
            else:
                asked = True
                await self._send(connection, b"PING")

    async def _handle(self, connection: AbstractConnection, answer: Any) -> None:
        if not isinstance(answer, list):
            return  # RESP3 answers PING with a bare PONG
        kind, name = bytes(answer[0]), answer[1]
        channel = self._channels.get(name)
        if kind == b"message" and channel is not None:
            message = Message(name.decode(), answer[2])
            for inbox in channel.inboxes:
                inbox.put(message)
        elif kind == b"message":
            # Its last subscriber was cancelled before it could say goodbye.
            await self._send(connection, b"UNSUBSCRIBE", name)
        elif kind == b"subscribe":
            self._confirm(name, channel)

    def _confirm(self, name: bytes, channel: _Channel | None) -> None:
        self._unconfirmed[name] -= 1
        if self._unconfirmed[name] == 0:
            del self._unconfirmed[name]
            if channel is not None:
                channel.confirmed.set()
        away, self._away = self._away, set()
        for inbox in away:
            inbox.put(MISSED)

    async def _subscribe(self, connection: AbstractConnection, names: list[bytes]) -> None:
        # Confirmations are counted: one may still be on its way from a subscription that has ended since.
        for name in names:
            self._unconfirmed[name] = self._unconfirmed.get(name, 0) + 1
        await self._send(connection, b"SUBSCRIBE", *names)

    async def _send(self, connection: AbstractConnection, *command: bytes) -> None:
        with Deadline(self._config.command_timeout_s):
            await connection.send_command(*command, check_health=False)

"""A Redis that fails on demand, around a real one: set an attribute, and everything behind it behaves so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from daydo_kernel import Health
from daydo_redis import Message, Redis, RedisError, RedisTimeout, RedisUnavailable, Script

Argument = str | bytes | int | float


class FaultyRedis(Redis):
    """``FaultyRedis("embedded://memory/shop")``, then for instance ``redis.gone = True``.

    Attributes:
        gone: calls raise ``RedisUnavailable`` and are not carried out.
        losing: calls are carried out, and then raise ``RedisTimeout``.
        deaf: published messages do not arrive, and nobody is told.
        delay_s: every call takes this long before it is carried out.
        calls: how many were asked for.
    """

    gone = False
    losing = False
    deaf = False
    delay_s = 0.0
    calls = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gate = asyncio.Event()
        self._gate.set()
        self._dropped: set[asyncio.Event] = set()

    def hold(self) -> None:
        """From now on calls wait, as they do for a server that was stopped; unlike there, without end."""
        self._gate.clear()

    def release(self) -> None:
        """Let those that wait go on, in their order."""
        self._gate.set()

    def drop_subscribers(self) -> None:
        """All who listen are told that they may have missed something."""
        for dropped in self._dropped:
            dropped.set()

    # -- what is behind the faults -------------------------------------------------------------------------------

    async def call(self, *command: Argument, merge: bool = True) -> Any:
        return await self._through(partial(super().call, *command, merge=merge))

    async def get(self, key: str | bytes, *, merge: bool = True) -> bytes | None:
        value: bytes | None = await self._through(partial(super().get, key, merge=merge))
        return value

    async def delete(self, *keys: str | bytes) -> int:
        removed: int = await self._through(partial(super().delete, *keys))
        return removed

    async def set(
        self, key: str | bytes, value: Argument, *, ttl_s: float | None = None, only_new: bool = False
    ) -> bool:
        send = partial(super().set, key, value, ttl_s=ttl_s, only_new=only_new)
        stored: bool = await self._through(send)
        return stored

    async def take(self, key: str | bytes) -> bytes | None:
        value: bytes | None = await self._through(partial(super().take, key))
        return value

    async def publish(self, channel: str, payload: bytes) -> int:
        listeners: int = await self._through(partial(super().publish, channel, payload))
        return listeners

    async def health(self) -> Health:
        try:
            health: Health = await self._through(super().health)
        except RedisError as error:
            return Health(status="down", detail={"error": str(error)})
        return health

    def script(self, lua: str, *, idempotent: bool = False) -> Script:
        return _FaultyScript(self, super().script(lua, idempotent=idempotent))

    def subscribe(self, *channels: str) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        return self._subscribe(super().subscribe(*channels))

    @asynccontextmanager
    async def _subscribe(
        self, real: AbstractAsyncContextManager[AsyncIterator[Message]]
    ) -> AsyncIterator[AsyncIterator[Message]]:
        if self.gone:
            raise RedisUnavailable(reason="connection lost")
        dropped = asyncio.Event()
        self._dropped.add(dropped)
        try:
            async with real as messages:
                yield self._heard(messages, dropped)
        finally:
            self._dropped.discard(dropped)

    async def _heard(self, messages: AsyncIterator[Message], dropped: asyncio.Event) -> AsyncIterator[Message]:
        async for message in messages:
            if dropped.is_set():
                dropped.clear()
                yield Message(channel="", missed=True)
            if not self.deaf:
                yield message

    async def _through(self, send: Callable[[], Awaitable[Any]]) -> Any:
        self.calls += 1
        await self._gate.wait()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.gone:
            raise RedisUnavailable(reason="connection lost")
        answer = await send()
        if self.losing:
            raise RedisTimeout(timeout_s=self._config.command_timeout_s)
        return answer


class _FaultyScript(Script):
    def __init__(self, redis: FaultyRedis, real: Script) -> None:
        self._redis = redis
        self._real = real
        self.sha = real.sha

    async def __call__(self, *, keys: Sequence[str | bytes] = (), args: Sequence[Argument] = ()) -> Any:
        return await self._redis._through(lambda: self._real(keys=keys, args=args))

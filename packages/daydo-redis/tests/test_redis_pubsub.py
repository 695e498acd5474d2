"""The one pub/sub connection, with the server's side played by hand where timing decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from daydo_kernel import Counter
from daydo_redis import Message, RedisConfig
from daydo_redis.pubsub import MISSED, Inbox, PubSub


class Wire:
    """A connection whose other end is the test."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, ...]] = []
        self.answers: asyncio.Queue[list[object] | Exception] = asyncio.Queue()

    async def connect(self) -> None: ...

    async def disconnect(self, nowait: bool) -> None: ...

    async def send_command(self, *command: bytes, check_health: bool) -> None:
        assert not check_health, "a health check would read answers that belong to the reader"
        self.sent.append(command)

    async def read_response(self, **_: object) -> list[object]:
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
async def wire() -> Wire:
    return Wire()


@pytest.fixture
async def pubsub(wire: Wire) -> Any:
    tasks: list[asyncio.Task[Any]] = []

    def spawn(work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        tasks.append(asyncio.create_task(work, name=name))
        return tasks[-1]

    connect: Callable[[], Any] = lambda: wire  # noqa: E731 (typed)
    config = RedisConfig(subscribe_timeout_s=5, command_timeout_s=5, pubsub_retry_max_s=0.01)
    yield PubSub(connect, spawn, config, Counter())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_entering_waits_for_its_own_confirmation(wire: Wire, pubsub: PubSub) -> None:
    """A confirmation of an earlier subscription, since ended, does not let the next subscriber in."""
    first = asyncio.create_task(pubsub.subscription(("c",)).__aenter__())
    await settle()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    again = pubsub.subscription(("c",))
    second = asyncio.create_task(again.__aenter__())
    await settle()
    assert wire.sent == [(b"SUBSCRIBE", b"c"), (b"UNSUBSCRIBE", b"c"), (b"SUBSCRIBE", b"c")]

    wire.answers.put_nowait([b"subscribe", b"c", 1])
    wire.answers.put_nowait([b"unsubscribe", b"c", 0])
    await settle()
    assert not second.done()
    wire.answers.put_nowait([b"subscribe", b"c", 1])
    await settle()
    assert second.done()
    await again.__aexit__(None, None, None)


async def test_missed_comes_after_the_new_confirmation(wire: Wire, pubsub: PubSub) -> None:
    """A loss is confessed only when the channels are subscribed again: what is read anew then loses nothing."""
    subscription = pubsub.subscription(("a", "b"))
    entering = asyncio.create_task(subscription.__aenter__())
    for name in (b"a", b"b"):
        wire.answers.put_nowait([b"subscribe", name, 1])
    messages = await entering
    wire.answers.put_nowait([b"message", b"a", b"1"])
    assert await anext(messages) == Message("a", b"1")

    wire.answers.put_nowait(ConnectionResetError())
    reading = asyncio.create_task(anext(messages))
    await asyncio.sleep(0.05)
    assert wire.sent == [(b"SUBSCRIBE", b"a", b"b")] * 2
    assert not reading.done()
    wire.answers.put_nowait([b"subscribe", b"a", 1])
    assert await reading == MISSED
    await subscription.__aexit__(None, None, None)


async def test_unknown_failure_does_not_deafen(wire: Wire, pubsub: PubSub) -> None:
    """Whatever goes wrong in the reader, it connects again and says so."""
    subscription = pubsub.subscription(("c",))
    entering = asyncio.create_task(subscription.__aenter__())
    wire.answers.put_nowait([b"subscribe", b"c", 1])
    messages = await entering
    wire.answers.put_nowait(AttributeError("a bug in a driver"))
    await asyncio.sleep(0.05)
    wire.answers.put_nowait([b"subscribe", b"c", 1])
    assert await anext(messages) == MISSED
    await subscription.__aexit__(None, None, None)


async def test_message_for_nobody_ends_its_subscription(wire: Wire, pubsub: PubSub) -> None:
    """A channel that nobody here listens to any more is unsubscribed when it speaks."""
    subscription = pubsub.subscription(("c",))
    entering = asyncio.create_task(subscription.__aenter__())
    wire.answers.put_nowait([b"subscribe", b"c", 1])
    await entering
    wire.answers.put_nowait([b"message", b"stale", b"1"])
    await settle()
    assert wire.sent[-1] == (b"UNSUBSCRIBE", b"stale")
    await subscription.__aexit__(None, None, None)


async def test_full_inbox_tells_once_and_keeps_the_newest() -> None:
    """However much overflows, there is one ``missed`` in front, then the newest messages in order."""
    missed = Counter()
    inbox = Inbox(2, missed)
    for number in range(5):
        inbox.put(Message("c", b"%d" % number))
    assert [await anext(inbox) for _ in range(3)] == [MISSED, Message("c", b"3"), Message("c", b"4")]
    assert missed.value == 1
    inbox.put(Message("c", b"5"))
    inbox.finish()
    with pytest.raises(StopAsyncIteration):
        await anext(inbox)

"""The edge around any ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from daydo_traffic import Check, Concurrent, Limits, LimitsConfig, Priority, Shedder, ShedderConfig, Window
from daydo_traffic.asgi import VISIT, TrafficMiddleware

CONFIG = LimitsConfig(rules={"ip": Window(limit=2, period_s=60), "open": Concurrent(limit=1)})


class Answer:
    """What was sent."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    async def __call__(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> Any:
        return msgspec.json.decode(self.messages[1]["body"])


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"1")]})
    await send({"type": "http.response.body", "body": b"hello"})


def by_address(scope: Any) -> Sequence[Check]:
    return [Check("ip", scope["client"][0])]


def http(method: str = "GET", **headers: str) -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": "/", "client": ("1.2.3.4", 5), "headers": raw}


async def ask(app: Any, scope: Any) -> Answer:
    answer = Answer()
    await app(scope, None, answer)
    return answer


async def test_limits_and_says_so() -> None:
    """Headers on success; a refusal is a 429 in the house's shape, in the client's language."""
    async with Limits(None, CONFIG) as limits:
        app = TrafficMiddleware(hello, limits=limits, checks=by_address)
        first = await ask(app, http())
        assert (first.status, first.headers["ratelimit"]) == (200, '"ip";r=1;t=60')
        assert first.headers["x-app"] == "1"
        await ask(app, http())
        refused = await ask(app, {**http(), "headers": [(b"accept-language", b"en")]})
        assert refused.status == 429
        assert refused.body["error"] == "traffic.rate_limited"
        assert refused.body["message"].startswith("Too many requests")
        assert refused.headers["retry-after"] == "60"
        assert refused.headers["ratelimit-policy"] == '"ip";q=2;w=60'
        assert int(refused.headers["content-length"]) == len(refused.messages[1]["body"])
        assert [name for name, _ in refused.messages[0]["headers"]].count(b"retry-after") == 1
        assert (await ask(app, http("HEAD"))).messages[1]["body"] == b""


async def test_sheds_before_it_limits() -> None:
    """Under pressure 503 with Retry-After, and no unit is spent; the critical pass."""
    config = ShedderConfig(patience_s=0, in_flight_begin=0, in_flight_max=1, admit_share=0.001)
    async with Limits(None, CONFIG) as limits, Shedder(config) as shedder:

        def priority(scope: Any) -> Priority:
            return Priority.CRITICAL if scope["headers"] else Priority.LOW

        app = TrafficMiddleware(hello, limits=limits, checks=by_address, shedder=shedder, priority=priority)
        with shedder.admit(Priority.CRITICAL):
            shed = await ask(app, http())
            assert (shed.status, shed.headers["retry-after"]) == (503, "1")
            assert shed.body["error"] == "traffic.overloaded"
            assert (await ask(app, http(urgent="yes"))).headers["ratelimit"].startswith('"ip";r=1')
        assert (await shedder.health()).detail["in_flight"] == 0


async def test_leases_last_until_the_answer_is_sent() -> None:
    """A Concurrent rule is held while the application runs, and given back when it fails."""
    gate = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()
        raise ZeroDivisionError

    async with Limits(None, CONFIG) as limits:
        app = TrafficMiddleware(slow, limits=limits, checks=lambda scope: [Check("open", "k")])
        first = asyncio.create_task(ask(app, http()))
        await asyncio.sleep(0)
        assert (await ask(app, http())).body["error"] == "traffic.too_many_at_once"
        gate.set()
        with pytest.raises(ZeroDivisionError):
            await first
        async with limits.admit(Check("open", "k")):
            pass


async def test_the_applications_own_errors_stay_its_own() -> None:
    """A RateLimited raised inside is for the framework inside to answer."""
    async with Limits(None, CONFIG) as limits:

        async def strict(scope: Any, receive: Any, send: Any) -> None:
            for _ in range(3):
                await limits.enforce(Check("ip", "inner"))

        with pytest.raises(Exception, match="Too many requests"):
            await ask(TrafficMiddleware(strict, limits=limits, checks=by_address), http())


async def test_websockets_are_closed_with_the_status() -> None:
    """4000 + status and the error's name, after an accept, so that a browser can read it."""
    async with Limits(None, CONFIG) as limits:
        app = TrafficMiddleware(hello, limits=limits, checks=by_address)
        for _ in range(2):
            await limits.enforce(Check("ip", "1.2.3.4"))
        answer = await ask(app, {**http(), "type": "websocket"})
        assert [message["type"] for message in answer.messages] == ["websocket.accept", "websocket.close"]
        assert answer.messages[1]["code"] == 4429
        assert answer.messages[1]["reason"] == "traffic.rate_limited"


async def test_lifespan_passes() -> None:
    """What is neither HTTP nor a WebSocket is none of its business."""
    answer = await ask(TrafficMiddleware(hello), {"type": "lifespan"})
    assert answer.messages == []


def test_limits_without_checks() -> None:
    """Half a configuration is refused when the application is made."""
    with pytest.raises(ValueError, match="together"):
        TrafficMiddleware(hello, limits=Limits(None))


async def test_a_live_stream_is_not_work() -> None:
    """Server-Sent Events wait: they are shed when they come, and then count no more."""
    inside: list[object] = []

    async def events(scope: Any, receive: Any, send: Any) -> None:
        inside.append((await shedder.health()).detail["in_flight"])
        kind = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        inside.append((await shedder.health()).detail["in_flight"])
        await send({"type": "http.response.body", "body": b""})

    async with Shedder() as shedder:
        app = TrafficMiddleware(events, shedder=shedder, priority=lambda scope: Priority.CRITICAL)
        await ask(app, http())
        assert (await shedder.health()).detail["in_flight"] == 0
    assert inside == [1, 0]


async def test_a_server_that_has_asked_is_not_asked_again() -> None:
    """Its visit goes on with the request; one that claimed to be more than it is, is asked again as what it is."""
    config = ShedderConfig(patience_s=0, in_flight_begin=0, in_flight_max=2, admit_share=0.001)
    async with Shedder(config) as shedder:
        app = TrafficMiddleware(hello, shedder=shedder, priority=lambda scope: Priority.LOW)
        claims = {Priority.LOW: 200, Priority.HIGH: 503}
        for claimed, status in claims.items():
            visit = shedder.admit(claimed if claimed is Priority.HIGH else Priority.CRITICAL)
            visit.priority = claimed
            with shedder.admit(Priority.CRITICAL):
                assert (await ask(app, {**http(), "state": {VISIT: visit}})).status == status
            visit.leave()
            assert (await shedder.health()).detail["in_flight"] == 0

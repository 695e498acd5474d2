from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from daydo_kernel import Health, Metrics, Part
from daydo_kernel.testing import ManualClock
from daydo_observe import Lines, Observe, ObserveConfig


class FakePart(Part):
    """A part whose health the test decides."""

    def __init__(self) -> None:
        super().__init__(drain_s=0)
        self.metrics = Metrics("daydo_fake")
        self.work = self.metrics.counter("work_total", "Work done.").cell()
        self.asked = 0
        self.answer: Callable[[], Awaitable[Health]] = self.well

    async def well(self) -> Health:
        return Health(detail={"pool_free": 3})

    async def health(self) -> Health:
        self.asked += 1
        return await self.answer()


@dataclass
class Answer:
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


def http_scope(path: str, method: str = "GET", headers: dict[str, str] | None = None) -> dict[str, Any]:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "query_string": b"",
        "root_path": "",
        "headers": raw,
        "client": ("203.0.113.9", 5123),
        "server": ("shop.test", 80),
    }


async def request(
    app: Any, path: str, method: str = "GET", headers: dict[str, str] | None = None, receive: Any = None, **scope: Any
) -> Answer:
    """Send one HTTP request into an ASGI application."""
    answer = Answer()

    async def body() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        answer.messages.append(dict(message))

    await app({**http_scope(path, method, headers), **scope}, receive or body, send)
    return answer


async def websocket(app: Any, path: str, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """Open one WebSocket, say ``messages``, and return what came back."""
    sent: list[dict[str, Any]] = []
    incoming = asyncio.Queue[dict[str, Any]]()
    for message in ({"type": "websocket.connect"}, *messages):
        incoming.put_nowait(message)

    async def send(message: Any) -> None:
        sent.append(dict(message))

    scope = http_scope(path) | {"type": "websocket", "scheme": "ws", "subprotocols": []}
    del scope["method"]
    await app(scope, incoming.get, send)
    return sent


class House:
    """An Observe over a memory stream and a manual clock, with what it wrote and counted."""

    def __init__(self, **config: Any) -> None:
        self.stream = io.BytesIO()
        self.clock = ManualClock()
        self.db, self.redis = FakePart(), FakePart()
        self.lines = Lines(self.stream)
        self.observe = Observe(
            ObserveConfig(service="shop", **config),
            parts={"db": self.db, "redis": self.redis},
            lines=self.lines,
            clock=self.clock,
        )

    @property
    def log(self) -> list[dict[str, Any]]:
        self.lines.flush()
        return [msgspec.json.decode(line) for line in self.stream.getvalue().splitlines()]

    def value(self, name: str, *labels: str) -> float:
        """A cell's value; a histogram's number of observations."""
        for family in self.observe.families():
            for cell in family.cells:
                if family.name == name and cell.labels == labels:
                    return sum(cell.values[1:]) if family.kind == "histogram" else cell.values[0]
        raise AssertionError(f"{name}{labels} is not there")

    def labels(self, name: str) -> set[tuple[str, ...]]:
        return {cell.labels for family in self.observe.families() if family.name == name for cell in family.cells}


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def make_house() -> type[House]:
    return House


@pytest.fixture
def get() -> Any:
    return request


@pytest.fixture
def connect() -> Any:
    return websocket

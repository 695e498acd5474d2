"""What happens before there is a request: over sockets, in process."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from reference_app import http_protocol
from reference_app.http_protocol import HouseProtocol

Address = tuple[str, int]


class Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


@pytest.fixture
async def address(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Address]:
    """A server that waits a twentieth of a second for the head of a request."""
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.05)
    monkeypatch.setattr(http_protocol, "LINGER_S", 0.05)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = Server(uvicorn.Config(hello, http=HouseProtocol, lifespan="off", log_config=None, ws="none"))
    serving = asyncio.create_task(server.serve([listener]))
    await server.ready.wait()
    yield listener.getsockname()
    server.should_exit = True
    await serving


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n"])
async def test_who_does_not_say_what_they_want_is_disconnected(address: Address, sent: bytes) -> None:
    """Nothing, half a line, half a head: the server hangs up."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(sent)
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_the_second_head_has_its_time_too(address: Address) -> None:
    """A connection that was used is no better than a new one; between requests the server's own patience holds."""
    reader, writer = await asyncio.open_connection(*address)
    for _ in range(2):
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await reader.readuntil(b"hi")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(0.1)  # longer than a head may take: nothing of one has come
    writer.write(b"GET / HT")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_what_is_no_http_is_refused_in_the_usual_shape(address: Address) -> None:
    """400 with envelope, request id and security headers, even to who goes on sending."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"\x16\x03\x01 no\r\n\r\n" + b"x" * 300_000)
    head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 400 ")
    assert {b"x-content-type-options: nosniff", b"connection: close"} <= set(head.lower().split(b"\r\n"))
    answer = json.loads(body)
    assert (answer["error"], answer["errors"][0]["field"]) == ("kernel.bad_request", "request")
    assert f"x-request-id: {answer['request_id']}".encode() in head

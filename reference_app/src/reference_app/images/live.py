"""Task events as Server-Sent Events and over WebSocket: replayed from a cursor, then live.

An SSE stream carries a comment, a WebSocket a ``{"type": "ping"}`` message, whenever nothing else was said for
``comment_s``, so that proxies keep the connection and clients notice a dead one. Both end when the service drains.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from litestar.connection import WebSocket
from litestar.exceptions import WebSocketDisconnect

from daydo_kernel import Draining

from .dto import TaskEvent

T = TypeVar("T")
Socket = WebSocket[Any, Any, Any]
_PING = b'{"type":"ping"}'
SERVICE_RESTART = 1012  # the code uvicorn itself closes with; IANA WebSocket Close Code registry


async def server_sent(events: AsyncGenerator[TaskEvent, None], comment_s: float) -> AsyncGenerator[bytes, None]:
    """The stream's bytes (WHATWG HTML, §9.2): ``id`` is the cursor, ``event`` the type, ``data`` the event."""
    yield b": open\n\n"
    async with aclosing(with_silences(events, comment_s)) as spaced:
        async for event in spaced:
            if event is None:
                yield b": still here\n\n"
            else:
                data = msgspec.json.encode(event)
                yield b"id: %b\nevent: %b\ndata: %b\n\n" % (event.cursor.encode(), event.type.encode(), data)


async def over_websocket(socket: Socket, events: AsyncGenerator[TaskEvent, None], comment_s: float) -> None:
    """Send ``events`` until they end (then close with 1012) or the client leaves."""
    await socket.accept()
    sending = asyncio.create_task(_send(socket, events, comment_s))
    leaving = asyncio.create_task(_until_disconnected(socket))
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not leaving.done():
            sending.result()
            await socket.close(SERVICE_RESTART, Draining.name)
    finally:
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)


async def with_silences(events: AsyncGenerator[T, None], silence_s: float) -> AsyncGenerator[T | None, None]:
    """``events``, and ``None`` whenever ``silence_s`` passed without one; closes ``events`` at its own end."""
    pending = asyncio.ensure_future(anext(events))
    try:
        while True:
            # A timeout on anext() itself would cancel, and so end, the generator behind it.
            done, _ = await asyncio.wait({pending}, timeout=silence_s)
            if not done:
                yield None
                continue
            try:
                event = pending.result()
            except StopAsyncIteration:
                return
            pending = asyncio.ensure_future(anext(events))
            yield event
    finally:
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
        await events.aclose()


async def _send(socket: Socket, events: AsyncGenerator[TaskEvent, None], comment_s: float) -> None:
    async with aclosing(with_silences(events, comment_s)) as spaced:
        async for event in spaced:
            await socket.send_data(_PING if event is None else msgspec.json.encode(event), mode="text")


async def _until_disconnected(socket: Socket) -> None:
    try:
        while True:
            await socket.receive_data(mode="text")
    except WebSocketDisconnect:
        return

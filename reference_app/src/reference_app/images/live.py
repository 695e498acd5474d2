"""Task events as Server-Sent Events and over WebSocket: replayed from a cursor, then live.

An SSE stream carries a comment, a WebSocket a ``{"type": "ping"}`` message, whenever nothing else was said for
``comment_s``, so that proxies keep the connection and clients notice a dead one. Both end when the service drains, and
when its user would be let in no more, logged out or merely expired: then nothing is sent but a WebSocket's close code,
4401 or 4403.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from litestar.connection import WebSocket
from litestar.exceptions import WebSocketDisconnect

from daydo_auth import AuthError
from daydo_kernel import Draining

from .dto import TaskEvent

T = TypeVar("T")
Socket = WebSocket[Any, Any, Any]
Refused = Callable[[], Coroutine[Any, Any, AuthError]]
"""Waits until whoever listens would be refused; a function, for it begins with the stream."""
_PING = b'{"type":"ping"}'
SERVICE_RESTART = 1012  # the code uvicorn itself closes with; IANA WebSocket Close Code registry


async def server_sent(
    events: AsyncGenerator[TaskEvent, None], comment_s: float, until_refused: Refused
) -> AsyncGenerator[bytes, None]:
    """The stream's bytes (WHATWG HTML, §9.2): ``id`` is the cursor, ``event`` the type, ``data`` the event."""
    yield b": open\n\n"
    refused = asyncio.create_task(until_refused())
    try:
        async with aclosing(with_silences(events, comment_s, refused)) as spaced:
            async for event in spaced:
                if event is None:
                    yield b": still here\n\n"
                else:
                    data = msgspec.json.encode(event)
                    yield b"id: %b\nevent: %b\ndata: %b\n\n" % (event.cursor.encode(), event.type.encode(), data)
    finally:
        await _cancelled(refused)


async def over_websocket(
    socket: Socket, events: AsyncGenerator[TaskEvent, None], comment_s: float, until_refused: Refused
) -> None:
    """Send ``events`` until they end (then close with 1012), the listener is refused, or the client leaves."""
    await socket.accept()
    refused = asyncio.create_task(until_refused())
    sending = asyncio.create_task(_send(socket, events, comment_s, refused))
    leaving = asyncio.create_task(_until_disconnected(socket))
    try:
        await asyncio.wait({sending, leaving, refused}, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            return
        if refused.done():
            await _cancelled(sending)  # a client that reads slowly may hold up a message
            error = refused.result()
            await socket.close(4000 + error.status, error.name)
        else:
            sending.result()
            await socket.close(SERVICE_RESTART, Draining.name)
    finally:
        await _cancelled(sending, leaving, refused)


async def with_silences(
    events: AsyncGenerator[T, None], silence_s: float, over: asyncio.Future[Any]
) -> AsyncGenerator[T | None, None]:
    """``events`` until ``over`` is done, and ``None`` whenever ``silence_s`` passed without one.

    Closes ``events`` at its own end. What has happened but was not yielded when ``over`` is done never is.
    """
    pending = asyncio.ensure_future(anext(events))
    try:
        while True:
            # A timeout on anext() itself would cancel, and so end, the generator behind it.
            await asyncio.wait({pending, over}, timeout=silence_s, return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                return
            if not pending.done():
                yield None
                continue
            try:
                event = pending.result()
            except StopAsyncIteration:
                return
            pending = asyncio.ensure_future(anext(events))
            yield event
    finally:
        await _cancelled(pending)
        await events.aclose()


async def _send(
    socket: Socket, events: AsyncGenerator[TaskEvent, None], comment_s: float, over: asyncio.Future[Any]
) -> None:
    async with aclosing(with_silences(events, comment_s, over)) as spaced:
        async for event in spaced:
            await socket.send_data(_PING if event is None else msgspec.json.encode(event), mode="text")


async def _until_disconnected(socket: Socket) -> None:
    try:
        while True:
            await socket.receive_data(mode="text")
    except WebSocketDisconnect:
        return


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

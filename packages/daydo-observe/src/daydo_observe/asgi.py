"""The wrapper around an ASGI application: outside every framework, so that it sees 404, 405 and what crashes.

What counts as the outcome of an HTTP request, first match wins:

====================================================  ==============================================
the client left, or the task was cancelled, before
the response was sent whole                           499
the response was sent                                 its own status
an exception escaped before anything was sent         what ``render`` makes of it, sent by us
an exception escaped in the middle of the body        500, and the connection breaks
nothing was sent at all                               500, sent by us
====================================================  ==============================================

A WebSocket's outcome is its close code; 1006 where nobody sent one.

A 503 that says when to come again (Retry-After) was meant by whoever sent it: a full queue, load that is shed. It is a
WARNING; every other 5xx is an ERROR.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import lru_cache
from typing import Any, Final

from daydo_kernel import (
    DaydoError,
    InternalError,
    MethodNotAllowed,
    Rendered,
    RequestContext,
    negotiate_locale,
    new_id,
    render,
    reset_context,
    set_context,
)

from .traffic import INTERNAL_CLOSE, OTHER, SOCKET, Traffic

# Loose on purpose: every framework brings scope and message types of its own.
App = Callable[[Any, Any, Any], Awaitable[None]]
Message = MutableMapping[str, Any]
Page = Callable[[Mapping[str, Any]], Awaitable[Rendered]]

CLIENT_LEFT: Final = 499
UNAVAILABLE: Final = 503
_ABNORMAL_CLOSE: Final = 1006
_PATIENCE_S: Final = 0.1
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# W3C Trace Context, level 1: version 00 has exactly four fields, later versions may append more.
_TRACEPARENT = re.compile(
    rb"(?:00|((?!00|ff)[0-9a-f]{2}))-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?(1)(?:-.*)?)"
)

log = logging.getLogger("daydo.observe")


class Edge:
    """An ASGI application around ``app``; answers ``pages`` itself, by exact path."""

    def __init__(self, app: App, traffic: Traffic, pages: Mapping[str, Page], seconds: Callable[[], float]) -> None:
        self._app = app
        self._traffic = traffic
        self._pages = pages
        self._seconds = seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        context = context_of(scope)
        token = set_context(context)
        response = _Response(receive, send, context.request_id, self._seconds)
        page = self._pages.get(scope["path"])
        self._traffic.in_flight.inc()
        status = 500
        try:
            if page is not None:
                scope["path_template"] = scope["path"]
                await response.answer(await _ask(page, scope), scope["method"])
            else:
                await self._app(scope, response.receive, response.send)
                if not response.status and not response.gone:
                    log.error("the application returned without answering")
                    await response.answer(render(InternalError()), scope["method"])
            status = response.outcome
        except asyncio.CancelledError:
            status = response.status if response.complete else CLIENT_LEFT
            raise
        except Exception as error:
            status = await _refuse(error, response, scope["method"])
            if response.status and not response.complete and not response.gone:
                raise  # the server must break the connection, or a cut body looks whole
        finally:
            self._traffic.in_flight.dec()
            self._traffic.finished(
                scope,
                context,
                scope["method"],
                status,
                self._seconds() - response.began,
                response.bytes,
                foreseen=response.foreseen and status == UNAVAILABLE,
                quiet=page is not None and status < 400,
            )
            reset_context(token)

    async def _websocket(self, scope: Any, receive: Any, send: Any) -> None:
        context = context_of(scope)
        token = set_context(context)
        socket = _Socket(receive, send, context.request_id)
        self._traffic.sockets.inc()
        began = self._seconds()
        try:
            await self._app(scope, socket.receive, socket.send)
        except Exception as error:
            if socket.gone:
                log.info("the client left: %s", type(error).__name__)
            else:
                log.exception("an error escaped the application")
                await socket.fail()
        finally:
            self._traffic.sockets.dec()
            self._traffic.finished(
                scope, context, SOCKET, socket.code, self._seconds() - began, socket.bytes, label=socket.label
            )
            reset_context(token)


class _Response:
    """The two channels of one HTTP request, watched. Status 0: nothing sent yet."""

    __slots__ = (
        "_ahead",
        "_receive",
        "_request_id",
        "_seconds",
        "_send",
        "began",
        "bytes",
        "complete",
        "foreseen",
        "gone",
        "status",
    )

    def __init__(self, receive: Any, send: Any, request_id: str, seconds: Callable[[], float]) -> None:
        self._receive = receive
        self._send = send
        self._request_id = (b"x-request-id", request_id.encode())
        self._ahead: Message | None = None
        self._seconds = seconds
        self.began = seconds()
        self.status = 0
        self.bytes = 0
        self.complete = False
        self.foreseen = False
        self.gone = False

    @property
    def outcome(self) -> int:
        return CLIENT_LEFT if self.gone else self.status

    # Not a coroutine function: it hands out the server's own awaitable, which saves a frame for each message.
    def send(self, message: Message) -> Awaitable[None]:
        kind = message["type"]
        if kind == "http.response.body":
            self.bytes += len(message.get("body", b""))
            self.complete = not message.get("more_body")
        elif kind == "http.response.start":
            self.status = message["status"]
            if self.status == UNAVAILABLE:
                self.foreseen = any(name.lower() == b"retry-after" for name, _ in message.get("headers", ()))
            message = {**message, "headers": [*message.get("headers", ()), self._request_id]}
            if self._seconds() - self.began > _PATIENCE_S:
                return self._look_and_send(message)
        elif kind == "http.response.pathsend":
            self.complete = True
        return self._send(message)  # type: ignore[no-any-return]

    async def receive(self) -> Message:
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            return ahead
        message: Message = await self._receive()
        if message["type"] == "http.disconnect" and not self.complete:
            self.gone = True
        return message

    async def _look_and_send(self, message: Message) -> None:
        # A server tells only those who ask that the client left, and a handler that is busy does not ask.
        if self._ahead is None and not self.gone:
            asking = asyncio.ensure_future(self.receive())
            await asyncio.sleep(0)
            if not asking.done():
                asking.cancel()
            elif not self.gone:
                self._ahead = asking.result()
        await self._send(message)

    async def answer(self, rendered: Rendered, method: str) -> None:
        headers = [(name.encode(), value.encode()) for name, value in rendered.headers.items()]
        headers.append((b"content-length", str(len(rendered.body)).encode()))
        await self.send({"type": "http.response.start", "status": rendered.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": b"" if method == "HEAD" else rendered.body})


class _Socket:
    """The two channels of one WebSocket, watched. A refusal before accept has its close code, or an HTTP status."""

    __slots__ = ("_receive", "_request_id", "_send", "bytes", "code", "gone", "label", "over")

    def __init__(self, receive: Any, send: Any, request_id: str) -> None:
        self._receive = receive
        self._send = send
        self._request_id = (b"x-request-id", request_id.encode())
        self.bytes = 0
        self.code = _ABNORMAL_CLOSE
        self.label = ""
        self.over = False
        self.gone = False

    def send(self, message: Message) -> Awaitable[None]:
        kind = message["type"]
        if kind == "websocket.send":
            self.bytes += len(message.get("bytes") or message.get("text") or "")
        elif kind in ("websocket.accept", "websocket.http.response.start"):
            message = {**message, "headers": [*message.get("headers", ()), self._request_id]}
            self._end(message.get("status"))
        elif kind == "websocket.close":
            self._end(message.get("code", 1000))
        return self._send(message)  # type: ignore[no-any-return]

    async def receive(self) -> Message:
        message: Message = await self._receive()
        if message["type"] == "websocket.disconnect" and not self.over:
            self.gone = True
            code = message.get("code") or 1005
            self._end(code)
            # Clients may choose 3000 to 4999 freely: that is no label.
            self.label = "" if 1000 <= code < 1016 else OTHER
        return message

    async def fail(self) -> None:
        if not self.over:
            await self.send({"type": "websocket.close", "code": INTERNAL_CLOSE, "reason": InternalError.name})

    def _end(self, code: int | None) -> None:
        if code is not None and not self.over:
            self.code, self.over = code, True


def context_of(scope: Mapping[str, Any]) -> RequestContext:
    """The request as logs see it: its id, or a new one; its trace; the language it asks for."""
    request_id = language = trace_id = ""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            if _REQUEST_ID.fullmatch(value):
                request_id = value.decode()
        elif name == b"accept-language":
            language = _locale(value)
        elif name == b"traceparent" and (found := _TRACEPARENT.fullmatch(value)):
            trace_id = found[2].decode()
    return RequestContext(request_id=request_id or new_id("req"), locale=language or _locale(b""), trace_id=trace_id)


@lru_cache(maxsize=256)
def _locale(accept_language: bytes) -> str:
    return negotiate_locale(accept_language.decode("latin-1"))


async def _refuse(error: Exception, response: _Response, method: str) -> int:
    """Answer for an application that raised, as far as that is still possible; returns the status to count."""
    if response.gone:
        log.info("the client left: %s", type(error).__name__)
        return CLIENT_LEFT
    if response.status:
        log.error("an error escaped after the response had started", exc_info=error)
        return response.status if response.complete else 500
    rendered = render(error)
    if rendered.status == UNAVAILABLE and isinstance(error, DaydoError) and error.retryable:
        log.warning("refused for now: %s", error.name)
    elif rendered.status >= 500:
        log.error("an error escaped the application", exc_info=error)
    await response.answer(rendered, method)
    return rendered.status


async def _ask(page: Page, scope: Mapping[str, Any]) -> Rendered:
    if scope["method"] not in ("GET", "HEAD"):
        refused = render(MethodNotAllowed())
        return refused._replace(headers={**refused.headers, "allow": "GET, HEAD"})
    return await page(scope)

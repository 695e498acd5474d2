"""The edge for any ASGI application: sheds, limits, and says so in headers.

``TrafficMiddleware(app, limits=limits, checks=checks, shedder=shedder)``, or in Starlette and FastAPI
``app.add_middleware(TrafficMiddleware, limits=…)``. It stands outside of the application, so also answers for paths
that do not exist. Who is asking only you know: ``checks`` is given the ASGI scope and says what to ask of which key;
behind a proxy take the client's address from the header that your proxy sets, and only from that one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from daydo_kernel import DaydoError, Rendered, negotiate_locale, render

from .decision import Check, Decision
from .errors import LimitExceeded, Overloaded
from .limits import Limits
from .shedder import Priority, Shedder

App = Callable[[Any, Any, Any], Awaitable[None]]
Scope = Mapping[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

CLOSE_BASE = 4_000  # a refused WebSocket is closed with this + the HTTP status, as everywhere in daydo


class TrafficMiddleware:
    """``app``, with a shedder and limits in front of it; either may be left out.

    A refusal is answered here (429, 503; a WebSocket is accepted and closed with 4429, 4503), every other HTTP answer
    gets the ``RateLimit`` headers added. :class:`Concurrent` rules hold their lease until the answer is sent or the
    socket closed. WebSockets are shed when they come, and not counted as in flight.
    """

    def __init__(
        self,
        app: App,
        *,
        limits: Limits | None = None,
        checks: Callable[[Scope], Sequence[Check]] | None = None,
        shedder: Shedder | None = None,
        priority: Callable[[Scope], Priority] | None = None,
    ) -> None:
        if (limits is None) != (checks is None):
            raise ValueError("TrafficMiddleware takes limits and checks together, or neither")
        self._app = app
        self._limits = limits
        self._checks = checks
        self._shedder = shedder
        self._priority = priority

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            async with AsyncExitStack() as stack:
                decision = await self._let_in(scope, stack)
                await self._app(scope, receive, with_headers(send, lambda: decision))
        except _Refused as refused:
            await _answer(refused, scope, send)

    async def _let_in(self, scope: Scope, stack: AsyncExitStack) -> Decision | None:
        try:
            if self._shedder is not None:
                priority = self._priority(scope) if self._priority is not None else Priority.NORMAL
                enter(self._shedder, priority, scope, stack)
            if self._limits is None or self._checks is None:
                return None
            return await stack.enter_async_context(self._limits.admit(*self._checks(scope)))
        except (Overloaded, LimitExceeded) as error:
            raise _Refused(error) from error


class _Refused(Exception):
    """We refused; not to be mixed up with the same error from inside the application."""

    def __init__(self, error: DaydoError) -> None:
        super().__init__(str(error))
        self.error = error


def enter(shedder: Shedder, priority: Priority, scope: Scope, stack: AsyncExitStack) -> None:
    """Pass the shedder: for an HTTP request until ``stack`` ends, for a WebSocket at its beginning only.

    Raises:
        Overloaded: not now.
    """
    if scope["type"] == "http":
        stack.enter_context(shedder.admit(priority))
    else:
        with shedder.admit(priority):
            pass


def with_headers(send: Send, decision: Callable[[], Decision | None]) -> Send:
    """``send``, adding the headers of the decision there is when the answer begins."""

    def sending(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start" and (known := decision()) is not None:
            added = [(name.encode(), value.encode()) for name, value in known.headers().items()]
            present = {name.lower() for name, _ in message.get("headers", ())}
            # RateLimit is a list, which may come in several lines; there is one Retry-After, the answer's own.
            added = [pair for pair in added if pair[0] != b"retry-after" or b"retry-after" not in present]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        return send(message)

    return sending


async def _answer(refused: _Refused, scope: Scope, send: Send) -> None:
    error = refused.error
    if scope["type"] == "websocket":
        # A browser learns a close code only from an open socket.
        await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
        await send({"type": "websocket.close", "code": CLOSE_BASE + error.status, "reason": error.name})
        return
    rendered = _render(error, scope)
    headers = [(name.encode(), value.encode()) for name, value in rendered.headers.items()]
    headers.append((b"content-length", str(len(rendered.body)).encode()))
    body = b"" if scope["method"] == "HEAD" else rendered.body
    decision = error.decision if isinstance(error, LimitExceeded) else None
    answer = with_headers(send, lambda: decision)
    await answer({"type": "http.response.start", "status": rendered.status, "headers": headers})
    await answer({"type": "http.response.body", "body": body})


def _render(error: DaydoError, scope: Scope) -> Rendered:
    languages = [value for name, value in scope["headers"] if name == b"accept-language"]
    return render(error, negotiate_locale(languages[0].decode("latin-1") if languages else ""))

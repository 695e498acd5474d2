"""The edge for any ASGI application: sheds, limits, and says so in headers.

``TrafficMiddleware(app, limits=limits, checks=checks, shedder=shedder)``, or in Starlette and FastAPI
``app.add_middleware(TrafficMiddleware, limits=…)``. It stands outside of the application, so also answers for paths
that do not exist. Who is asking only you know: ``checks`` is given the ASGI scope and says what to ask of which key.
For the client's address there is ``daydo_kernel.addresses``, which knows what a proxy may say.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from daydo_kernel import DaydoError, Rendered, negotiate_locale, render

from .decision import Check, Decision
from .errors import FeatureOff, LimitExceeded, Overloaded
from .limits import Limits
from .shedder import Priority, Shedder, Visit

App = Callable[[Any, Any, Any], Awaitable[None]]
Scope = Mapping[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Admit = Callable[[AsyncExitStack], Awaitable[Decision | None]]
"""Asks the limits; what it enters lasts as long as the request. Raises what :func:`refuse` answers."""

VISIT = "daydo_visit"  # in scope["state"]: the Visit of a request that the server has asked the shedder for
_EVENTS = b"text/event-stream"
CLOSE_BASE = 4_000  # a refused WebSocket is closed with this + the HTTP status, as everywhere in daydo


class TrafficMiddleware:
    """``app``, with a shedder and limits in front of it; either may be left out.

    A refusal is answered here (429, 503; a WebSocket is accepted and closed with 4429, 4503), every other HTTP answer
    gets the ``RateLimit`` headers added. :class:`Concurrent` rules hold their lease until the answer is sent or the
    socket closed. WebSockets and Server-Sent Events are shed when they come; while they are open they do not count as
    in flight, for they wait.
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
        priority = Priority.NORMAL if self._priority is None else self._priority(scope)
        await through(
            self._app, scope, receive, send, admit=partial(self._admit, scope), shedder=self._shedder, priority=priority
        )

    async def _admit(self, scope: Scope, stack: AsyncExitStack) -> Decision | None:
        if self._limits is None or self._checks is None:
            return None
        return await stack.enter_async_context(self._limits.admit(*self._checks(scope)))


async def through(
    app: App, scope: Any, receive: Any, send: Send, *, admit: Admit, shedder: Shedder | None, priority: Priority
) -> None:
    """Pass a request on to ``app``, or answer for it: the way through both edges."""
    async with AsyncExitStack() as stack:
        visit = None
        try:
            if shedder is not None:
                visit = _enter(shedder, priority, scope)
                stack.callback(visit.leave)
            decision = await admit(stack)
        except (Overloaded, LimitExceeded, FeatureOff) as error:
            await refuse(error, scope, send)
            return
        await app(scope, receive, with_headers(send, decision, visit))


def _enter(shedder: Shedder, priority: Priority, scope: Scope) -> Visit:
    """Pass the shedder, or go on with the visit of a server that has asked it already. Raises Overloaded."""
    begun: Visit | None = scope.get("state", {}).get(VISIT)
    if begun is not None and begun.priority <= priority:
        return begun.hand_over()
    if begun is not None:  # it claimed to be more than it is
        begun.leave()
    visit = shedder.admit(priority)
    if scope["type"] == "websocket":
        visit.leave()  # it waits from now on
    return visit


def with_headers(send: Send, decision: Decision | None, visit: Visit | None = None) -> Send:
    """``send``, adding the headers of ``decision`` when the answer begins; a live stream leaves the shedder then."""
    headers = decision.headers() if decision is not None else {}
    if not headers and visit is None:
        return send

    def sending(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            present = {name.lower(): value for name, value in message.get("headers", ())}
            if visit is not None and present.get(b"content-type", b"").startswith(_EVENTS):
                visit.leave()
            # RateLimit is a list, which may come in several lines; there is one Retry-After, the answer's own.
            added = [(name.encode(), value.encode()) for name, value in headers.items()]
            added = [pair for pair in added if pair[0] != b"retry-after" or b"retry-after" not in present]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        return send(message)

    return sending


async def refuse(error: DaydoError, scope: Scope, send: Send) -> None:
    """Answer for the application."""
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
    answer = with_headers(send, decision)
    await answer({"type": "http.response.start", "status": rendered.status, "headers": headers})
    await answer({"type": "http.response.body", "body": body})


def _render(error: DaydoError, scope: Scope) -> Rendered:
    languages = [value for name, value in scope["headers"] if name == b"accept-language"]
    return render(error, negotiate_locale(languages[0].decode("latin-1") if languages else ""))

"""The Shield: what stands between the internet and an ASGI application, whatever framework that is written in.

====================================  =================================================================================
what comes                            what becomes of it
====================================  =================================================================================
odd headers, odd paths                refused: what a proxy and this server could read as two different requests
a page of an unlisted origin          no CORS headers, no preflight, no WebSocket, no change with its user's cookies
a body of an unlisted type            refused before it is read
a JSON body                           read whole: of bounded size and depth, no key twice, within ``json_s``
any other body                        handed on as it comes, never buffered: of bounded size, within ``stream_s``
an application that does not answer   cancelled after ``answer_s``; streams that have begun run as long as they like
any answer                            security headers added, an error of the framework or of the server's edge included
====================================  =================================================================================

Whoever sends too slowly or too much is answered, listened to for another ``linger_s`` (a client that is still sending
does not read, and closing at once would destroy the answer on its way), and disconnected.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Annotated, Any, Final

from msgspec import Meta

from daydo_kernel import Config, DaydoError, PayloadTooLarge, negotiate_locale, render

from .errors import HeaderRefused, OriginRefused, RequestTimedOut, RequestTooSlow
from .screening import Head, is_json, read_head, refuse_odd_json, refuse_odd_path

# Loose on purpose: every framework brings scope and message types of its own.
App = Callable[[Any, Any, Any], Awaitable[None]]
Message = MutableMapping[str, Any]
Headers = list[tuple[bytes, bytes]]

CLOSE_BASE: Final = 4_000  # a refused WebSocket is closed with this + the HTTP status, as everywhere in daydo
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_CLOSE: Final = (b"connection", b"close")
_LOOK_S_MAX: Final = 1.0
_DISCARDED_BYTES_MAX: Final = 64 * 1024 * 1024

Origin = Annotated[str, Meta(pattern=r"^https?://[a-z0-9.:\[\]-]{1,255}$")]
MediaType = Annotated[str, Meta(pattern=r"^[a-z]+/[a-z0-9.+-]{1,64}$")]
HeaderName = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$")]
HostName = Annotated[str, Meta(pattern=r"^[a-z0-9.:\[\]-]{1,255}$")]


class ShieldConfig(Config, frozen=True, kw_only=True):
    """What a request may be, and what every answer says.

    Attributes:
        origins: of other sites whose pages may call this service (CORS); the service's own is always one.
        cookies: whether pages of ``origins`` may send cookies.
        allow_headers: request headers that such pages may set.
        expose_headers: answer headers that such pages may read.
        preflight_ttl_s: how long a browser may remember what it may do.
        hosts: names, with the port where it is not the usual one, under which the service may be called; empty: any.
        headers_max: how many headers a request may have.
        header_bytes_max: how long all headers together may be.
        json_bytes_max: how long a JSON body may be.
        json_depth_max: how deep it may nest.
        json_s: how long a JSON body may take to arrive.
        stream_types: media types of other bodies that are taken; these are not buffered.
        stream_bytes_max: how long such a body may be; a route may allow less.
        stream_s: how long such a body may take to arrive, and the answer to begin.
        answer_s: how long the application may take until its answer begins.
        linger_s: how long a refused client that is still sending is listened to, so that it reads its answer.
        content_policy: the Content-Security-Policy of answers that bring none of their own.
        hsts_s: how long browsers shall use https only; said over https. 0: not said.
    """

    origins: Annotated[tuple[Origin, ...], Meta(max_length=64)] = ()
    cookies: bool = False
    allow_headers: Annotated[tuple[HeaderName, ...], Meta(max_length=32)] = (
        "accept-language",
        "authorization",
        "content-type",
        "idempotency-key",
        "last-event-id",
        "x-csrf-token",
        "x-request-id",
    )
    expose_headers: Annotated[tuple[HeaderName, ...], Meta(max_length=32)] = (
        "idempotent-replayed",
        "ratelimit",
        "ratelimit-policy",
        "retry-after",
        "x-request-id",
    )
    preflight_ttl_s: Annotated[int, Meta(ge=0, le=86_400)] = 600
    hosts: Annotated[tuple[HostName, ...], Meta(max_length=64)] = ()
    headers_max: Annotated[int, Meta(ge=8, le=1_000)] = 100
    header_bytes_max: Annotated[int, Meta(ge=1_024, le=1_048_576)] = 16_384
    json_bytes_max: Annotated[int, Meta(ge=1, le=16_777_216)] = 262_144
    json_depth_max: Annotated[int, Meta(ge=1, le=200)] = 32
    json_s: Annotated[float, Meta(gt=0, le=600)] = 10.0
    stream_types: Annotated[tuple[MediaType, ...], Meta(max_length=16)] = ("multipart/form-data",)
    stream_bytes_max: Annotated[int, Meta(ge=1, le=17_179_869_184)] = 67_108_864
    stream_s: Annotated[float, Meta(gt=0, le=3_600)] = 120.0
    answer_s: Annotated[float, Meta(gt=0, le=3_600)] = 60.0
    linger_s: Annotated[float, Meta(ge=0, le=30)] = 2.0
    content_policy: Annotated[str, Meta(max_length=1_024, pattern=r"^[ -~]*$")] = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    hsts_s: Annotated[int, Meta(ge=0, le=63_072_000)] = 31_536_000


class Shield:
    """An ASGI application around ``app``::

        app = Shield(app, ShieldConfig(origins=("https://shop.example.cn",)))

    ``wrap`` is what shall see refusals as well, but stand inside of the security headers:
    ``Shield(app, config, wrap=observe.wrap)`` counts and logs what is refused here.
    """

    def __init__(
        self,
        app: App,
        config: ShieldConfig = ShieldConfig(),  # noqa: B008 - frozen
        *,
        wrap: Callable[[App], App] | None = None,
    ) -> None:
        self.config = config
        self._app = app
        self._inner: App = wrap(self._screened) if wrap is not None else self._screened
        self._stream_types = tuple(name.encode() for name in config.stream_types)
        self._origins = frozenset(origin.encode() for origin in config.origins)
        self._hosts = frozenset(host.encode() for host in config.hosts)
        self._always = security_headers(config)
        self._over_https = [(b"strict-transport-security", b"max-age=%d" % config.hsts_s)] if config.hsts_s else []
        self._preflight = _preflight_headers(config)
        self._watch = _Watch(min(_LOOK_S_MAX, config.json_s, config.stream_s, config.answer_s))
        self._exposed = ", ".join(config.expose_headers).encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self._inner(scope, receive, self._with_headers(scope, send))
        else:
            await self._inner(scope, receive, send)

    def _with_headers(self, scope: Mapping[str, Any], send: Any) -> Any:
        # Not a coroutine function: it hands out the server's own awaitable, which saves a frame for each message.
        def sending(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = self._protected(scope, message.get("headers", ()))
            return send(message)  # type: ignore[no-any-return]

        return sending

    def _protected(self, scope: Mapping[str, Any], headers: Any) -> Headers:
        present = {name for name, _ in headers}
        added = [pair for pair in self._always if pair[0] not in present]
        if b"cache-control" not in present and b"etag" not in present:
            added.append((b"cache-control", b"no-store"))
        if self._over_https and _is_https(scope):
            added += self._over_https
        if self._origins:
            added += self._cors(scope)
        return [*headers, *added]

    def _cors(self, scope: Mapping[str, Any]) -> Headers:
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        if len(origins) != 1 or origins[0] not in self._origins:
            return [(b"vary", b"Origin")]
        credentials = [(b"access-control-allow-credentials", b"true")] if self.config.cookies else []
        return [
            (b"vary", b"Origin"),
            (b"access-control-allow-origin", origins[0]),
            (b"access-control-expose-headers", self._exposed),
            *credentials,
        ]

    async def _screened(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = _Exchange(receive, send, _Patience(self._watch), self.config.linger_s)
        refusal: DaydoError
        try:
            with exchange.patience:
                exchange.patience.last(self.config.json_s)
                try:
                    wanted = await self._enter(scope, exchange)
                except DaydoError as error:
                    refusal = error
                else:
                    if wanted:
                        await self._app(scope, exchange.receive, exchange.send)
                    return
        except TimeoutError:
            if exchange.started or not exchange.patience.is_over:
                raise
            refusal = RequestTooSlow() if exchange.unread else RequestTimedOut()
        await exchange.refuse(refusal, scope)

    async def _enter(self, scope: Any, exchange: _Exchange) -> bool:
        """Make everything ready for the application; False where it is not needed any more.

        Raises:
            DaydoError: why the request is not let in.
        """
        head = self._head(scope)
        exchange.unread = head.length != 0
        origin = head.kept.get(b"origin")
        if origin is not None:
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in head.kept:
                self._require_known(origin, head)
                await exchange.answer(204, self._preflight)
                return False
            if b"cookie" in head.kept and scope["method"] not in SAFE_METHODS:
                self._require_known(origin, head)
        if not exchange.unread:
            exchange.patience.last(self.config.answer_s)
        elif is_json(head, self._stream_types):
            return await self._read_json(head, exchange)
        else:
            exchange.allow(head.length, self.config.stream_bytes_max)
            exchange.patience.last(self.config.stream_s)
        return True

    async def _read_json(self, head: Head, exchange: _Exchange) -> bool:
        exchange.allow(head.length, self.config.json_bytes_max)
        body = await exchange.read()
        if body is None:
            return False
        if body:
            refuse_odd_json(body, self.config.json_depth_max)
        exchange.patience.last(self.config.answer_s)
        return True

    def _head(self, scope: Mapping[str, Any]) -> Head:
        head = read_head(scope, self.config.headers_max, self.config.header_bytes_max)
        refuse_odd_path(scope)
        if self._hosts and head.kept.get(b"host", b"").lower() not in self._hosts:
            raise HeaderRefused(header="Host")
        return head

    def _require_known(self, origin: bytes, head: Head) -> None:
        # A proxy that speaks https to the browser may speak http to us: hosts are compared, not schemes.
        own = origin.partition(b"://")[2]
        if origin not in self._origins and (not own or own != head.kept.get(b"host", b"").lower()):
            raise OriginRefused()

    async def _websocket(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            head = self._head(scope)
            # No CORS guards a WebSocket: the server is the only one who looks where a page comes from.
            if (origin := head.kept.get(b"origin")) is not None:
                self._require_known(origin, head)
        except DaydoError as error:
            # A browser learns a close code only from an open socket.
            await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
            await send({"type": "websocket.close", "code": CLOSE_BASE + error.status, "reason": error.name})
        else:
            await self._app(scope, receive, send)


class _Exchange:
    """One HTTP request and its answer. ``unread``: some of the body is still to come; ``started``: the answer has."""

    __slots__ = ("_body", "_bytes_left", "_linger_s", "_receive", "_send", "patience", "started", "unread")

    def __init__(self, receive: Any, send: Any, patience: _Patience, linger_s: float) -> None:
        self._receive = receive
        self._send = send
        self._linger_s = linger_s
        self._body: bytes | None = None
        self._bytes_left = 0
        self.patience = patience
        self.unread = True
        self.started = False

    def allow(self, length: int, bytes_max: int) -> None:
        """Let so much of the body be received.

        Raises:
            PayloadTooLarge: it says itself that it is longer.
        """
        if length > bytes_max:
            raise PayloadTooLarge()
        self._bytes_left = bytes_max

    async def read(self) -> bytes | None:
        """The whole body, which the application will receive in one piece; None: the client has left.

        Raises:
            PayloadTooLarge: it is longer than was allowed.
        """
        message = await self.receive()
        body: bytes = message.get("body", b"")
        if self.unread:
            chunks = bytearray(body)
            while self.unread:
                if message["type"] != "http.request":
                    return None
                message = await self.receive()
                chunks += message.get("body", b"")
            body = bytes(chunks)
        self._body = body
        return body

    async def receive(self) -> Message:
        """What the application is handed: the body that was read, or the next piece of it.

        Raises:
            PayloadTooLarge: it is longer than was allowed.
        """
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        message: Message = await self._receive()
        if self.unread and message["type"] == "http.request":
            self._bytes_left -= len(message.get("body", b""))
            if self._bytes_left < 0:
                raise PayloadTooLarge()
            self.unread = message.get("more_body", False)
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """What the application answers with. A body that it left unread ends the connection."""
        if message["type"] == "http.response.start":
            self.started = True
            self.patience.last(math.inf)
            if self.unread:
                message["headers"] = [*message.get("headers", ()), _CLOSE]
        elif self.unread and not message.get("more_body"):
            return self._send_and_listen(message)
        return self._send(message)  # type: ignore[no-any-return]

    async def answer(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Our own answer in place of the application's."""
        if self.unread:
            headers = [*headers, _CLOSE]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        end = {"type": "http.response.body", "body": body, "more_body": False}
        await (self._send_and_listen(end) if self.unread else self._send(end))

    async def refuse(self, error: DaydoError, scope: Mapping[str, Any]) -> None:
        """``error``, in the house's envelope."""
        languages = [value for name, value in scope["headers"] if name == b"accept-language"]
        rendered = render(error, negotiate_locale(languages[0].decode("latin-1") if languages else ""))
        headers = [(name.encode(), value.encode()) for name, value in rendered.headers.items()]
        headers.append((b"content-length", str(len(rendered.body)).encode()))
        await self.answer(rendered.status, headers, b"" if scope["method"] == "HEAD" else rendered.body)

    async def _send_and_listen(self, message: Message) -> None:
        await self._send({**message, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(self._linger_s):
                await self._discard()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard(self) -> None:
        bytes_left = _DISCARDED_BYTES_MAX
        while self.unread and bytes_left > 0:
            message = await self._receive()
            bytes_left -= len(message.get("body", b"")) or 1
            self.unread = message["type"] == "http.request" and message.get("more_body", False)


class _Patience:
    """``asyncio.timeout`` for an end that is moved several times: a tenth of its cost, as precise as the watch."""

    __slots__ = ("_requests", "_task", "_watch", "end", "is_over", "loop")

    _task: asyncio.Task[Any]

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch
        self.loop = asyncio.get_running_loop()
        self.end = math.inf
        self.is_over = False

    def last(self, seconds: float) -> None:
        """So long from now on, and no longer."""
        self.end = self.loop.time() + seconds

    def give_up(self) -> None:
        self.end = math.inf
        self.is_over = True
        self._task.cancel()

    def __enter__(self) -> None:
        task = asyncio.current_task(self.loop)
        if task is None:
            raise RuntimeError("the Shield runs in a task")
        self._task, self._requests = task, task.cancelling()
        self._watch.add(self)

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        self._watch.remove(self)
        # Somebody else's cancellation goes on, as it would with asyncio.timeout.
        if self.is_over and self._task.uncancel() <= self._requests and kind is asyncio.CancelledError:
            raise TimeoutError


class _Watch:
    """Looks every ``look_s`` whose patience is over: one timer for all requests, and none while there are none."""

    def __init__(self, look_s: float) -> None:
        self._look_s = look_s
        self._waiting: set[_Patience] = set()
        self._loop: asyncio.AbstractEventLoop | None = None  # where the timer runs

    def add(self, patience: _Patience) -> None:
        if self._loop is not patience.loop:
            self._waiting = set()  # what may be left of another loop that was closed
            self._loop = patience.loop
            self._loop.call_later(self._look_s, self._look, self._loop)
        self._waiting.add(patience)

    def remove(self, patience: _Patience) -> None:
        self._waiting.discard(patience)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for patience in [each for each in self._waiting if each.end <= now]:
            patience.give_up()
        if self._waiting:
            loop.call_later(self._look_s, self._look, loop)
        else:
            self._loop = None


def _is_https(scope: Mapping[str, Any]) -> bool:
    """Also where a proxy says so: who makes it up says it to himself alone."""
    return scope.get("scheme") == "https" or (b"x-forwarded-proto", b"https") in scope["headers"]


def security_headers(config: ShieldConfig) -> Headers:
    """What every answer says; for a server that answers before any application does."""
    policy = [(b"content-security-policy", config.content_policy.encode())] if config.content_policy else []
    return [
        *policy,
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
    ]


def _preflight_headers(config: ShieldConfig) -> Headers:
    return [
        (b"access-control-allow-headers", ", ".join(config.allow_headers).encode()),
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-max-age", str(config.preflight_ttl_s).encode()),
        (b"vary", b"Access-Control-Request-Method, Access-Control-Request-Headers"),
    ]

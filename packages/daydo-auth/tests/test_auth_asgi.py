"""The Shield on its own, around a small application, and before a real server where a socket is what matters."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import uvicorn
from hypothesis import example, given
from hypothesis import strategies as st

from daydo_auth.asgi import Shield, ShieldConfig
from daydo_auth.errors import JsonRefused
from daydo_auth.screening import refuse_odd_json
from daydo_kernel import BadRequest, DaydoError

SHOP = "https://shop.example"
JSON = ("content-type", "application/json")
FORM = ("content-type", "multipart/form-data; boundary=x")
SECURE = {
    "content-security-policy",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
    "referrer-policy",
    "x-content-type-options",
    "x-frame-options",
}


class Answer(msgspec.Struct):
    """What came back of one request, and what the application was handed."""

    status: int = 0
    headers: list[tuple[str, str]] = []
    body: bytes = b""

    @property
    def error(self) -> str:
        return str(json.loads(self.body)["error"])

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


class Echo:
    """Answers with the body it was handed; remembers in how many pieces that came."""

    def __init__(self, *headers: tuple[str, str]) -> None:
        self.called = 0
        self.pieces: list[bytes] = []
        self._headers = [(name.encode(), value.encode()) for name, value in headers]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.called += 1
        more = True
        while more:
            message = await receive()
            self.pieces.append(message["body"])
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": b"".join(self.pieces)})


async def call(
    app: Any, method: str = "GET", path: str = "/", *headers: tuple[str, str], body: bytes = b"", **scope: Any
) -> Answer:
    """One request; a Content-Length is added unless the headers say how long the body is."""
    given_names = {name for name, _ in headers}
    if body and not given_names & {"content-length", "transfer-encoding"}:
        headers = (*headers, ("content-length", str(len(body))))
    pieces = [body[at : at + 1_000] for at in range(0, len(body), 1_000)] or [b""]
    queue = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    queue[-1]["more_body"] = False
    answer = Answer()

    async def receive() -> dict[str, Any]:
        return queue.pop(0) if queue else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = [(name.decode(), value.decode()) for name, value in message["headers"]]
        else:
            answer.body += message.get("body", b"")

    known = {
        "type": "http",
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
    }
    await app({**known, **scope}, receive, send)
    return answer


# What is said with every answer


async def test_every_answer_has_the_security_headers() -> None:
    """A success, a refusal of ours and a preflight alike; over https also that it stays https."""
    shield = Shield(Echo(), ShieldConfig(origins=(SHOP,)))
    preflight = (("origin", SHOP), ("access-control-request-method", "POST"))
    for answer in (
        await call(shield),
        await call(shield, "GET", "/a%2fb"),
        await call(shield, "OPTIONS", "/", *preflight),
    ):
        assert {name for name, _ in answer.headers} >= SECURE
        assert answer.header("cache-control") == "no-store"
        assert answer.header("strict-transport-security") is None
    assert (await call(shield, scheme="https")).header("strict-transport-security") == "max-age=31536000"
    behind_proxy = await call(shield, "GET", "/", ("x-forwarded-proto", "https"))
    assert behind_proxy.header("strict-transport-security") is not None


async def test_an_application_may_say_it_otherwise() -> None:
    """A page with a policy of its own keeps it, and a cacheable file is not made uncacheable."""
    page = await call(Shield(Echo(("content-security-policy", "default-src 'self'"), ("etag", '"1"'))))
    assert [value for name, value in page.headers if name == "content-security-policy"] == ["default-src 'self'"]
    assert page.header("cache-control") is None


async def test_what_wraps_the_shield_sees_refusals() -> None:
    """Whoever counts and logs is told of refusals, and its own answers get the security headers, too."""
    seen: list[int] = []

    def watching(app: Any) -> Any:
        async def watch(scope: Any, receive: Any, send: Any) -> None:
            async def look(message: Any) -> None:
                if message["type"] == "http.response.start":
                    seen.append(message["status"])
                await send(message)

            await app(scope, receive, look)

        return watch

    answer = await call(Shield(Echo(), wrap=watching), "GET", "/a\\b")
    assert seen == [400]
    assert answer.header("x-frame-options") == "DENY"


# Headers, paths, bodies


@pytest.mark.parametrize(
    "headers",
    [
        [("content-length", "2"), ("content-length", "2")],
        [("content-length", "2"), ("transfer-encoding", "chunked")],
        [("transfer-encoding", "gzip, chunked")],
        [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        [("content-length", "-1")],
        [("content-length", "+2")],
        [("content-length", "0x2")],
        [("content-length", "2" * 19)],
        [("content-length", "\xb2")],
        [("content-type", "application/json"), ("content-type", "multipart/form-data")],
        [("host", "a"), ("host", "b")],
        [("origin", SHOP), ("origin", SHOP)],
        [("idempotency-key", "1"), ("idempotency-key", "2")],
        [("x-csrf-token", "1"), ("x-csrf-token", "2")],
        [("x-anything", "a\0b")],
        [("x-anything", "a\x1bb")],
        [("x-anything", "a\x7fb")],
        [("x-anything", "a\nb")],
        [("x-anything", "x" * 20_000)],
        [(f"x-{number}", "") for number in range(101)],
    ],
    ids=lambda headers: str(headers)[:60],
)
async def test_odd_headers_are_refused(headers: list[tuple[str, str]]) -> None:
    """Doubled, contradictory, with controls, too many or too long: 400 before the application is asked."""
    echo = Echo()
    answer = await call(Shield(echo), "POST", "/", *headers)
    assert (answer.status, answer.error, echo.called) == (400, "auth.header_refused", 0)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/a%2fb", "/a/b"),
        (b"/a%5Cb", "/a\\b"),
        (b"/a%00", "/a\0"),
        (b"/a%0d%0ab", "/a\r\nb"),
        (b"/a/../b", "/a/../b"),
        (b"/a/%2e%2E/b", "/a/../b"),
        (b"/a/.%2e", "/a/.."),
        (b"/./a", "/./a"),
        (b"/a%zz", "/a%zz"),
        (b"/a%", "/a%"),
        (b"/%ff", "/\ufffd"),
        (b"/%c0%af", "/\ufffd\ufffd"),
    ],
)
async def test_a_path_that_readers_split_differently_is_refused(raw: bytes, path: str) -> None:
    """An encoded slash, a dot segment, what is no text: 400."""
    answer = await call(Shield(Echo()), "GET", path, raw_path=raw)
    assert (answer.status, answer.error) == (400, "kernel.bad_request")


@pytest.mark.parametrize(
    ("raw", "path"),
    [(b"/a%20b", "/a b"), (b"/%E4%BD%A0", "/你"), (b"/.well-known/x.y", "/.well-known/x.y"), (b"/~a", "/~a")],
)
async def test_an_ordinary_path_passes(raw: bytes, path: str) -> None:
    """Spaces, Chinese, dots within a segment."""
    assert (await call(Shield(Echo()), "GET", path, raw_path=raw)).status == 200


async def test_nul_in_a_query_is_refused() -> None:
    """No text that anybody means has it."""
    assert (await call(Shield(Echo()), query_string=b"q=a%00b")).status == 400
    assert (await call(Shield(Echo()), query_string=b"q=%E4%BD%A0&r=a%2Fb")).status == 200


async def test_a_service_with_names_answers_to_no_other() -> None:
    """With hosts= a forged Host is refused."""
    shield = Shield(Echo(), ShieldConfig(hosts=("api.example.cn",)))
    assert (await call(shield, "GET", "/", ("host", "API.example.cn"))).status == 200
    for headers in ([("host", "evil.example")], []):
        assert (await call(shield, "GET", "/", *headers)).error == "auth.header_refused"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("content-type", "text/plain")],
        [("content-type", "application/x-www-form-urlencoded")],
        [("content-type", "application/jsonp")],
        [("content-type", "text/plain, application/json")],
        [("content-type", "application/json; charset=gbk")],
        [("content-type", "application/json;charset=utf-8;charset=utf-16")],
        [JSON, ("content-encoding", "gzip")],
    ],
)
async def test_a_body_says_what_it_is(headers: list[tuple[str, str]]) -> None:
    """Another media type, another charset, compressed, or nothing said: 415, and the application is not asked."""
    echo = Echo()
    answer = await call(Shield(echo), "POST", "/", *headers, body=b"{}")
    assert (answer.status, echo.called) == (415, 0)


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/merge-patch+json;charset="utf-8"']
)
async def test_json_is_handed_on_in_one_piece(kind: str) -> None:
    """Exactly as it came."""
    echo = Echo()
    body = json.dumps({"text": "x" * 5_000}).encode()
    answer = await call(Shield(echo), "POST", "/", ("content-type", kind), body=body)
    assert (answer.status, answer.body, len(echo.pieces)) == (200, body, 1)


async def test_other_bodies_are_not_buffered() -> None:
    """A form reaches the application piece by piece; a body without a length, too."""
    for headers in ([FORM], [FORM, ("transfer-encoding", "chunked")]):
        echo = Echo()
        answer = await call(Shield(echo), "POST", "/", *headers, body=b"x" * 5_000)
        assert (answer.status, len(answer.body), len(echo.pieces)) == (200, 5_000, 5)


async def test_bodies_have_a_bound() -> None:
    """By what they say of themselves or, where they say nothing, by what comes."""
    echo = Echo()
    shield = Shield(echo, ShieldConfig(json_bytes_max=1_500, stream_bytes_max=2_500))
    for body in (b"[" + b"1," * 800 + b"1]", b"x" * 3_000):
        kind = JSON if body.startswith(b"[") else FORM
        assert (await call(shield, "POST", "/", kind, body=body)).status == 413
    assert echo.called == 0
    chunked = ("transfer-encoding", "chunked")
    assert (await call(shield, "POST", "/", JSON, chunked, body=b" " * 2_000)).status == 413
    assert echo.called == 0
    with pytest.raises(DaydoError, match="too large"):  # inside the application, whose framework renders it
        await call(shield, "POST", "/", FORM, chunked, body=b"x" * 3_000)


# JSON


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"[" * 1_000 + b"]" * 1_000, "auth.json_refused"),
        (b'{"a":' * 1_000 + b"1" + b"}" * 1_000, "auth.json_refused"),
        (b"[" * 100_000, "auth.json_refused"),
        (b'{"a": 1, "a": 2}', "auth.json_refused"),
        (b'{"a": 1, "\\u0061": 2}', "auth.json_refused"),
        (b'{"x": [{"y": {"b": 1, "c": 2, "b": 1}}]}', "auth.json_refused"),
        (b"{", "kernel.bad_request"),
        (b'{"a": 1} x', "kernel.bad_request"),
        (b'{"a": "\xff"}', "kernel.bad_request"),
        ('{"a": 1}'.encode("utf-16"), "kernel.bad_request"),
        (b"9" * 5_000, "kernel.bad_request"),
        (b"\0", "kernel.bad_request"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_json_that_two_readers_could_take_for_two_things_is_refused(body: bytes, error: str) -> None:
    """Too deep, a key twice at any depth, or no JSON: 400 and a field that says why."""
    echo = Echo()
    answer = await call(Shield(echo), "POST", "/", JSON, body=body)
    assert (answer.status, answer.error, echo.called) == (400, error, 0)
    assert json.loads(answer.body)["errors"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def depth_of(value: Any) -> int:
    if isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth_of, inner), default=0)
    return 0


@given(value=VALUES, ascii_only=st.booleans(), limit=st.integers(1, 5))
@example(value=['[[[["', '\\"[', "]}"], ascii_only=True, limit=1)
def test_depth_is_counted_exactly(value: Any, ascii_only: bool, limit: int) -> None:
    """Refused if and only if it nests deeper; brackets within strings are text."""
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        refuse_odd_json(body, limit)
    except JsonRefused:
        assert depth_of(value) > limit
    else:
        assert depth_of(value) <= limit


@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:\\1a', max_size=40).map(str.encode))
def test_whatever_passes_is_json_to_the_decoder_of_the_service(body: bytes) -> None:
    """Nothing else is raised than a refusal, and no JSON passes in which msgspec sees another structure."""
    try:
        refuse_odd_json(body, 8)
    except (BadRequest, JsonRefused):
        return
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return  # NaN and lone surrogates: refused there
    assert value == json.loads(body)


# Other sites' pages


async def test_a_listed_origin_may_read_answers_and_others_may_not() -> None:
    """No answer ever names an origin that is not listed; caches are told that it depends."""
    shield = Shield(Echo(), ShieldConfig(origins=(SHOP,), cookies=True))
    listed = await call(shield, "GET", "/", ("origin", SHOP))
    assert (listed.header("access-control-allow-origin"), listed.header("vary")) == (SHOP, "Origin")
    assert listed.header("access-control-allow-credentials") == "true"
    for origin in ("https://evil.example", "null", "https://shop.example.evil.example", "http://shop.example", "*", ""):
        other = await call(shield, "GET", "/", ("origin", origin))
        assert (other.header("access-control-allow-origin"), other.header("vary")) == (None, "Origin"), origin
    refused = await call(shield, "GET", "/a%2fb", ("origin", SHOP))
    assert refused.header("access-control-allow-origin") == SHOP  # its page may read why


async def test_a_preflight_is_answered_here() -> None:
    """204 with what is allowed for a listed origin, 403 for another; the application sees neither."""
    echo = Echo()
    shield = Shield(echo, ShieldConfig(origins=(SHOP,)))
    asked = ("access-control-request-method", "DELETE")
    allowed = await call(shield, "OPTIONS", "/", ("origin", SHOP), asked)
    assert allowed.status == 204
    assert "DELETE" in str(allowed.header("access-control-allow-methods"))
    assert "idempotency-key" in str(allowed.header("access-control-allow-headers"))
    assert allowed.header("access-control-allow-credentials") is None
    for origin in ("https://evil.example", "null"):
        refused = await call(shield, "OPTIONS", "/", ("origin", origin), asked)
        assert (refused.status, refused.error) == (403, "auth.origin_refused")
        assert refused.header("access-control-allow-methods") is None
    assert echo.called == 0
    assert (await call(shield, "OPTIONS", "/", ("origin", "https://evil.example"))).status == 200  # no preflight


async def test_no_change_by_another_sites_page_with_cookies() -> None:
    """A cookie and a foreign Origin: 403. The own page, a listed one, an app and a mere reading pass."""
    shield = Shield(Echo(), ShieldConfig(origins=(SHOP,)))
    cookie, host = ("cookie", "a=b"), ("host", "api.example")
    for origin, method, status in (
        ("https://evil.example", "POST", 403),
        ("null", "DELETE", 403),
        ("https://api.example.evil.example", "POST", 403),
        (SHOP, "POST", 200),
        ("https://api.example", "POST", 200),
        ("https://evil.example", "GET", 200),
    ):
        answer = await call(shield, method, "/", cookie, host, ("origin", origin))
        assert answer.status == status, (origin, method)
    assert (await call(shield, "POST", "/", cookie, host)).status == 200
    assert (await call(shield, "POST", "/", host, ("origin", "https://evil.example"))).status == 200  # nobody's cookies


async def handshake(app: Any, *headers: tuple[str, str], path: str = "/live") -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    encoded = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": "websocket", "http_version": "1.1", "scheme": "ws", "path": path, "raw_path": path.encode()}
    await app({**scope, "query_string": b"", "headers": encoded}, receive, send)
    return sent


async def accept(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.accept"})


async def test_a_websocket_from_another_sites_page_is_closed() -> None:
    """With cookies or without: 4403. The own page, a listed one and whoever is no browser pass."""
    shield = Shield(accept, ShieldConfig(origins=(SHOP,)))
    host = ("host", "api.example")
    for origin in ("https://evil.example", "null", ""):
        closed = await handshake(shield, host, ("origin", origin), ("cookie", "a=b"))
        assert closed[-1] == {"type": "websocket.close", "code": 4403, "reason": "auth.origin_refused"}
    for headers in ([host], [host, ("origin", SHOP)], [host, ("origin", "https://api.example")]):
        assert await handshake(shield, *headers) == [{"type": "websocket.accept"}]
    assert (await handshake(shield, host, path="/a\\b"))[-1]["code"] == 4400


# Patience


async def never(*_: Any) -> Any:
    await asyncio.Event().wait()


async def test_a_body_that_does_not_come_is_cut_off() -> None:
    """JSON before the application is asked, a form while it reads: 408, and the connection closes."""
    config = ShieldConfig(json_s=0.01, stream_s=0.01, linger_s=0)
    for kind in (JSON, FORM):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        headers = [(kind[0].encode(), kind[1].encode()), (b"content-length", b"9")]
        scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/", "query_string": b""}
        await Shield(Echo(), config)({**scope, "headers": headers}, never, send)
        assert sent[0]["status"] == 408
        assert (b"connection", b"close") in sent[0]["headers"]
        assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_an_application_that_does_not_answer_is_cancelled() -> None:
    """504, and it has been told; one that has begun to answer may go on for as long as it likes."""
    told = asyncio.Event()

    async def hang(scope: Any, receive: Any, send: Any) -> None:
        try:
            await never()
        finally:
            told.set()

    config = ShieldConfig(answer_s=0.01)
    answer = await call(Shield(hang, config))
    assert (answer.status, answer.error, told.is_set()) == (504, "auth.request_timed_out", True)

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(5):
            await asyncio.sleep(0.01)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    assert (await call(Shield(stream, config))).body == b"xxxxx"


async def test_others_cancellations_and_timeouts_stay_theirs() -> None:
    """A server that cancels, and an application whose own timeout escapes, are not taken for our patience."""
    task = asyncio.create_task(call(Shield(never)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def own_timeout(scope: Any, receive: Any, send: Any) -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await call(Shield(own_timeout))


async def test_a_client_that_leaves_half_way_is_not_answered() -> None:
    """Its JSON never became whole: nobody is asked, nothing is sent."""
    echo, sent = Echo(), []
    messages = [{"type": "http.request", "body": b'{"a"', "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"9")]
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/", "query_string": b""}
    await Shield(echo)({**scope, "headers": headers}, receive, send)
    assert (echo.called, sent) == (0, [])


# Before a real server


class Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
    """Serve ``app``; what is yielded sends bytes over a new connection and reads until the server closes it."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_config=None, ws="none", proxy_headers=False)
    server = Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    await server.ready.wait()

    async def exchange(data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(data)
        try:
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()

    yield exchange
    server.should_exit = True
    await serving


async def test_a_slow_client_gets_its_answer_and_loses_its_connection() -> None:
    """Over a socket: the body stops half way, the answer is 408, and the server hangs up by itself."""
    async with served(Shield(Echo(), ShieldConfig(json_s=0.05, linger_s=0.05))) as exchange:
        answer = await exchange(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
        )
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"auth.request_too_slow" in answer


async def test_a_client_that_sends_too_much_reads_why() -> None:
    """Ten megabytes of password: they are not read into memory, yet the 413 reaches who is still sending."""
    body = b'{"password": "' + b"x" * 10_000_000
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    echo = Echo()
    async with served(Shield(echo)) as exchange:
        answer = await exchange(head % len(body) + body)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert echo.called == 0


async def test_a_refusal_by_an_application_that_did_not_read_reaches_who_is_still_sending() -> None:
    """A form whose sender may not: the application answers at once, the connection ends in good order."""

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})

    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data\r\nContent-Length: 5000000\r\n\r\n"
    async with served(Shield(refuse)) as exchange:
        answer = await exchange(head + b"x" * 5_000_000)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer
    assert answer.endswith(b"no")

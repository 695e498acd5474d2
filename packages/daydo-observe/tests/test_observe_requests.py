from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from daydo_kernel import DaydoError, NotFound, get_context, render

REQUESTS = "daydo_http_requests_total"
SECONDS = "daydo_http_request_seconds"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def answering(status: int = 200, body: bytes = b"hello", route: str = "/things/{id}") -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if route:
            scope["path_template"] = route
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": body})

    return app


async def test_one_request_one_line(house: Any, get: Any) -> None:
    """A request leaves one line with its route, path, status, bytes and duration, and one count."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        house.clock.advance(0.25)
        await answering(201)(scope, receive, send)

    await get(house.observe.wrap(app), "/things/7", "POST", {"X-Request-ID": "gate-1"})
    assert house.log == [
        {
            "time": "2023-11-14T22:13:20.250Z",
            "level": "INFO",
            "logger": "daydo.access",
            "service": "shop",
            "request_id": "gate-1",
            "method": "POST",
            "route": "/things/{id}",
            "path": "/things/7",
            "status": 201,
            "duration_ms": 250.0,
            "bytes": 5,
            "client": "203.0.113.9",
        }
    ]
    assert house.value(REQUESTS, "POST", "/things/{id}", "201") == 1
    assert house.value(SECONDS, "POST", "/things/{id}") == 1
    assert house.value("daydo_http_requests_in_flight") == 0


@pytest.mark.parametrize("given", ["req_1", "A.b-c_9", "x" * 64])
async def test_a_good_request_id_is_kept(house: Any, get: Any, given: str) -> None:
    """A well-formed X-Request-ID is used, seen by the application and returned beside its own headers."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(get_context().request_id)
        await answering()(scope, receive, send)

    answer = await get(house.observe.wrap(app), "/", headers={"X-Request-ID": given})
    assert seen == [given]
    assert answer.headers == {"content-type": "text/plain", "x-request-id": given}
    assert get_context() is None


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", 'a"}', "a\tb", "ü", "a/b"])
async def test_a_bad_request_id_is_replaced(house: Any, get: Any, given: str) -> None:
    """Anything that could break a log line or a header is replaced by an id of our own."""
    answer = await get(house.observe.wrap(answering()), "/", headers={"X-Request-ID": given})
    assert answer.headers["x-request-id"].startswith("req_")
    assert house.log[0]["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-what-the-future-will-be-like", TRACE),
        (f"cc-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"00-{TRACE}-00f067aa0ba902b7-01-more", None),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", None),
        ("00-4bf92f-00f067aa0ba902b7-01", None),
        ("", None),
    ],
)
async def test_trace_context(house: Any, get: Any, traceparent: str, trace_id: str | None) -> None:
    """The trace id of a valid traceparent stands in the line; an invalid one is as if absent."""
    await get(house.observe.wrap(answering()), "/", headers={"traceparent": traceparent})
    assert house.log[0].get("trace_id") == trace_id


async def test_the_locale_is_negotiated(house: Any, get: Any) -> None:
    """What we answer ourselves is in the language the client prefers."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise NotFound()

    wrapped = house.observe.wrap(app)
    english = await get(wrapped, "/x", headers={"Accept-Language": "en-GB,zh;q=0.5"})
    chinese = await get(wrapped, "/x")
    assert (english.json["message"], chinese.json["message"]) == ("There is nothing here.", "资源不存在。")


async def test_who_asked(house: Any, get: Any) -> None:
    """The subject that a guard wrote into the context stands in the line."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.create_task(guard())
        await answering()(scope, receive, send)

    async def guard() -> None:
        context = get_context()
        assert context is not None
        context.subject = "u_7"

    await get(house.observe.wrap(app), "/")
    assert house.log[0]["subject"] == "u_7"


async def test_labels_stay_few(house: Any, get: Any) -> None:
    """A thousand unrouted paths and invented methods make one label each."""
    wrapped = house.observe.wrap(answering(404, route=""))
    for number in range(1000):
        await get(wrapped, f"/scan/{number}", f"M{number}" if number % 2 else "GET")
    assert house.labels(REQUESTS) == {("GET", "unrouted", "404"), ("other", "unrouted", "404")}
    assert house.log[0]["path"] == "/scan/0"


class Full(DaydoError, code=50399, name="shop.full", zh="满", en="Full", retryable=True):
    """Refused for the moment."""


class Broken(DaydoError, code=50398, name="shop.broken", zh="坏", en="Broken"):
    """Refused for good."""


@pytest.mark.parametrize(
    ("error", "level", "has_traceback"), [(Full, "WARNING", False), (Broken, "ERROR", True), (OSError, "ERROR", True)]
)
async def test_a_refusal_for_the_moment_wakes_nobody(
    house: Any, get: Any, caplog: Any, error: type[Exception], level: str, has_traceback: bool
) -> None:
    """A declared 503 that may be tried again is a warning in both lines, answered by the framework or by us."""

    async def escaping(scope: Any, receive: Any, send: Any) -> None:
        raise error()

    async def answered(scope: Any, receive: Any, send: Any) -> None:
        rendered = render(error())
        headers = [(name.title().encode(), value.encode()) for name, value in rendered.headers.items()]
        await send({"type": "http.response.start", "status": rendered.status, "headers": headers})
        await send({"type": "http.response.body", "body": rendered.body})

    for app in (escaping, answered):
        await get(house.observe.wrap(app), "/")
    assert [line["level"] for line in house.log] == [level, level]
    assert [(record.levelname, bool(record.exc_info)) for record in caplog.records] == [(level, has_traceback)]


async def test_an_escaping_error_is_answered(house: Any, get: Any, caplog: Any) -> None:
    """An error nobody caught is logged with its traceback and answered as 500 without a word of it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("the secret plan")

    answer = await get(house.observe.wrap(app), "/", headers={"X-Request-ID": "r1"})
    assert (answer.status, answer.json["error"]) == (500, "kernel.internal")
    assert answer.json["request_id"] == answer.headers["x-request-id"] == "r1"
    assert b"plan" not in answer.body
    assert [record.exc_info[1].args for record in caplog.records] == [("the secret plan",)]
    assert (house.log[0]["status"], house.log[0]["level"]) == (500, "ERROR")
    assert house.value(REQUESTS, "GET", "unrouted", "500") == 1


async def test_a_daydo_error_keeps_its_status(house: Any, get: Any, caplog: Any) -> None:
    """A refusal raised outside the framework reads as what it is, and is no alarm in the log."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise NotFound()

    answer = await get(house.observe.wrap(app), "/")
    assert (answer.status, answer.json["code"]) == (404, 40400)
    assert not caplog.records
    assert house.value(REQUESTS, "GET", "unrouted", "404") == 1


async def test_an_error_in_the_middle_of_a_body(house: Any, get: Any, caplog: Any) -> None:
    """Half a body and an error: the connection must break, and the request counts as 500, not 200."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await get(house.observe.wrap(app), "/")
    assert house.log[0]["status"] == 500
    assert len(caplog.records) == 1


async def test_an_error_after_the_answer(house: Any, get: Any, caplog: Any) -> None:
    """A background task that fails after a whole answer is logged; the client had its 200."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answering()(scope, receive, send)
        raise RuntimeError

    await get(house.observe.wrap(app), "/")
    assert house.log[0]["status"] == 200
    assert len(caplog.records) == 1


async def test_silence_is_an_error(house: Any, get: Any, caplog: Any) -> None:
    """An application that returns without answering gets an answer written for it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        return None

    assert (await get(house.observe.wrap(app), "/")).status == 500
    assert house.log[0]["status"] == 500


async def test_a_cancelled_request(house: Any, get: Any) -> None:
    """A request cancelled after five seconds is 499 and took five seconds."""
    entered = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["path_template"] = "/slow"
        entered.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(get(house.observe.wrap(app), "/slow"))
    await entered.wait()
    assert house.value("daydo_http_requests_in_flight") == 1
    house.clock.advance(5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (house.log[0]["status"], house.log[0]["duration_ms"]) == (499, 5000.0)
    assert house.value(REQUESTS, "GET", "/slow", "499") == 1
    assert house.value("daydo_http_requests_in_flight") == 0


async def test_a_client_that_leaves(house: Any, get: Any, caplog: Any) -> None:
    """A stream that ends because its client left is 499; what the application raises then is no error."""
    caplog.set_level(logging.INFO)

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"tick", "more_body": True})
        await receive()

    async def upload(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise ConnectionError

    await get(house.observe.wrap(stream), "/", receive=gone)
    await get(house.observe.wrap(upload), "/", receive=gone)
    assert [line["status"] for line in house.log] == [499, 499]
    assert [record.levelname for record in caplog.records] == ["INFO"]


async def test_a_client_that_did_not_wait(house: Any, get: Any) -> None:
    """A slow handler that never reads: its client left meanwhile, so it is 499, though an answer was sent."""

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        house.clock.advance(3)
        await answering()(scope, receive, send)

    await get(house.observe.wrap(slow), "/", receive=gone)
    assert (house.log[0]["status"], house.log[0]["duration_ms"]) == (499, 3000.0)


async def test_looking_for_the_client_takes_nothing(house: Any, get: Any) -> None:
    """A body that nobody had read yet is still there after we looked; a client that waits is left waiting."""
    read = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        house.clock.advance(3)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        read.append(await receive())
        await send({"type": "http.response.body", "body": b""})

    async def waiting() -> dict[str, str]:
        await asyncio.Event().wait()
        raise AssertionError

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        house.clock.advance(3)
        await answering()(scope, receive, send)

    said = iter([{"type": "http.request", "body": b"hello"}, {"type": "http.disconnect"}])

    async def saying() -> Any:
        return next(said)

    await get(house.observe.wrap(slow), "/", "POST", receive=saying)
    await get(house.observe.wrap(silent), "/", receive=waiting)
    assert read == [{"type": "http.request", "body": b"hello"}]
    assert [line["status"] for line in house.log] == [200, 200]


async def test_a_disconnect_after_the_answer(house: Any, get: Any) -> None:
    """Servers say http.disconnect after every answer: that is no client that left."""

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answering()(scope, receive, send)
        await receive()

    await get(house.observe.wrap(app), "/", receive=gone)
    assert house.log[0]["status"] == 200


async def test_a_path_that_is_not_utf8(house: Any, get: Any) -> None:
    """A path with lone surrogates is written down, not a crash."""
    await get(house.observe.wrap(answering()), "/caf\udce9")
    assert house.log[0]["path"] == "/caf\\udce9"


async def test_lifespan_passes_through(house: Any) -> None:
    """Anything that is neither HTTP nor WebSocket reaches the application untouched."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    await house.observe.wrap(app)({"type": "lifespan"}, 1, 2)
    assert seen == [({"type": "lifespan"}, 1, 2)]


async def test_a_websocket(house: Any, connect: Any) -> None:
    """A socket is one line at its end, with its close code; its life is not in the latency histogram."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["path_template"] = "/live"
        await receive()
        await send({"type": "websocket.accept"})
        assert house.value("daydo_http_sockets_open") == 1
        house.clock.advance(60)
        await send({"type": "websocket.send", "text": "hi"})
        await send({"type": "websocket.close", "code": 4401, "reason": "auth.token_missing"})

    sent = await connect(house.observe.wrap(app), "/live")
    assert sent[0]["headers"][0][0] == b"x-request-id"
    line = house.log[0]
    assert (line["method"], line["status"], line["bytes"], line["duration_ms"]) == ("WEBSOCKET", 4401, 2, 60000.0)
    assert house.value(REQUESTS, "WEBSOCKET", "/live", "4401") == 1
    assert house.labels(SECONDS) == set()
    assert house.value("daydo_http_sockets_open") == 0


@pytest.mark.parametrize(("code", "label"), [(1001, "1001"), (3721, "other"), (4999, "other"), (None, "1005")])
async def test_clients_do_not_make_labels(house: Any, connect: Any, code: int | None, label: str) -> None:
    """The close code a client invents stands in the line, never in a label."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    leave = {"type": "websocket.disconnect"} | ({"code": code} if code else {})
    await connect(house.observe.wrap(app), "/", leave)
    assert house.log[0]["status"] == (code or 1005)
    assert house.labels(REQUESTS) == {("WEBSOCKET", "unrouted", label)}


async def test_a_crashing_websocket(house: Any, connect: Any, caplog: Any) -> None:
    """An error in a socket closes it with 1011 and the error's name, and is logged once."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        raise RuntimeError

    sent = await connect(house.observe.wrap(app), "/")
    assert sent[-1] == {"type": "websocket.close", "code": 1011, "reason": "kernel.internal"}
    assert len(caplog.records) == 1
    assert (house.log[0]["status"], house.log[0]["level"]) == (1011, "ERROR")


async def test_a_refused_handshake(house: Any, connect: Any) -> None:
    """A socket refused with an HTTP answer has that status, and the request id in its headers."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b""})

    sent = await connect(house.observe.wrap(app), "/")
    assert sent[0]["headers"][0][0] == b"x-request-id"
    assert house.log[0]["status"] == 403


async def test_too_many_series(make_house: Any, get: Any) -> None:
    """Beyond max_series every further combination shares one cell named other; nothing is lost."""
    house = make_house(max_series=10)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["path_template"] = scope["path"]  # a framework gone wrong
        await answering(route="")(scope, receive, send)

    wrapped = house.observe.wrap(app)
    for number in range(50):
        await get(wrapped, f"/{number}")
    assert len(house.labels(REQUESTS)) == 11
    assert house.value(REQUESTS, "other", "other", "other") == 40


def test_the_family_of_errors() -> None:
    """All errors of this package can be caught by one name."""
    from daydo_observe import ObserveError, Unhealthy

    assert issubclass(Unhealthy, ObserveError)
    assert issubclass(ObserveError, DaydoError)

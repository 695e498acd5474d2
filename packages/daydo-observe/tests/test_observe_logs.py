from __future__ import annotations

import asyncio
import io
import logging
import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_kernel import RequestContext, reset_context, set_context
from daydo_observe import Lines, configure_logging
from daydo_observe.logs import JsonFormatter, LogLine, encode_line, scrub

CANARY = "canary-5f3a9c"
PHONE = "13812345678"


@pytest.fixture
def stream() -> Iterator[io.BytesIO]:
    """The root logger, set up into memory and put back after the test."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.BytesIO()
    configure_logging("DEBUG", stream, service="shop")
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def read(stream: io.BytesIO) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in stream.getvalue().splitlines()]


def test_a_line(stream: io.BytesIO) -> None:
    """A record is one JSON object with the request it belongs to, written at once."""
    token = set_context(RequestContext(request_id="req_1", trace_id="ab" * 16))
    try:
        logging.getLogger("shop.orders").warning("order %s paid %d fen", "o_1", 500, extra={"channel": "app"})
    finally:
        reset_context(token)
    (line,) = read(stream)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "WARNING",
        "logger": "shop.orders",
        "service": "shop",
        "request_id": "req_1",
        "trace_id": "ab" * 16,
        "message": "order o_1 paid 500 fen",
        "extra": {"channel": "app"},
    }


def test_an_exception_is_in_the_line(stream: io.BytesIO) -> None:
    """A traceback is a field of the same line, not forty lines more."""
    try:
        raise RuntimeError("no")
    except RuntimeError:
        logging.getLogger("shop").exception("it failed")
    (line,) = read(stream)
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("RuntimeError: no")


class Credentials(msgspec.Struct):
    login: str
    password: str


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("password=" + CANARY, ()),
        ('{"access_token": "%s"}', (CANARY,)),
        ("GET /ws?ticket=" + CANARY + "&cursor=1", ()),
        ("connecting to mysql://shop:%s@db/shop", (CANARY,)),
        ("headers %s", ([(b"authorization", b"Basic " + CANARY.encode()), (b"cookie", CANARY.encode())],)),
        ("headers %s", ({"Cookie": f"session={CANARY}; other={CANARY}"},)),
        ("Authorization: Bearer " + CANARY, ()),
        ("who %s", (Credentials("a@x.cn", CANARY),)),
        ("body %s", ({"user": {"password": CANARY, "api_key": CANARY}},)),
        ("%(secret)s", ({"secret": CANARY},)),
        ("session eyJ" + CANARY + "." + CANARY + ".x", ()),
    ],
)
def test_no_secret_leaves_in_a_message(stream: io.BytesIO, message: str, arguments: tuple[Any, ...]) -> None:
    """Canaries: whatever way a secret gets into a log call, it does not get into the line."""
    logging.getLogger("shop").info(message, *arguments)
    assert read(stream)
    assert CANARY.encode() not in stream.getvalue()


def test_no_secret_leaves_in_extra_or_exception(stream: io.BytesIO) -> None:
    """Structs, nested values, URLs and the text of exceptions are redacted as messages are."""
    extra = {
        "who": Credentials("zhang@example.cn", CANARY),
        "call": {"headers": [{"authorization": CANARY}], "url": f"redis://:{CANARY}@cache/0"},
        "phone": PHONE,
    }
    try:
        raise RuntimeError(f"refused token={CANARY} of {PHONE}")
    except RuntimeError:
        logging.getLogger("shop").exception("call of %s failed", PHONE, extra=extra)
    (line,) = read(stream)
    assert line["extra"]["who"] == {"login": "z***@example.cn", "password": "***"}
    assert line["extra"]["phone"] == "138****5678"
    assert line["message"] == "call of 138****5678 failed"
    for secret in (CANARY, PHONE, "zhang@"):
        assert secret.encode() not in stream.getvalue()


async def test_no_secret_leaves_in_an_access_line(house: Any, get: Any) -> None:
    """Canaries in headers, query, body and path: the access line and the metrics hold none of them."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": [(b"set-cookie", CANARY.encode())]})
        await send({"type": "http.response.body", "body": CANARY.encode()})

    headers = {
        "Authorization": f"Bearer {CANARY}",
        "Cookie": CANARY,
        "User-Agent": CANARY,
        "X-Request-ID": CANARY + "!",
    }
    wrapped = house.observe.wrap(app)
    await get(wrapped, f"/users/{PHONE}/eyJ{CANARY}.{CANARY}.x", headers=headers, query_string=CANARY.encode())
    await get(wrapped, "/users/zhang@example.cn")
    shown = str(house.log) + (await get(wrapped, "/metrics")).body.decode()
    assert [line["path"] for line in house.log] == ["/users/138****5678/eyJc***", "/users/z***@example.cn"]
    assert CANARY not in shown
    assert PHONE not in shown


def test_arguments_that_do_not_fit() -> None:
    """A wrong format string costs its arguments, not the line; they are not printed elsewhere either."""
    record = logging.makeLogRecord({"msg": "two %s %s", "args": (CANARY,)})
    line = msgspec.json.decode(JsonFormatter("shop").format(record))
    assert line["message"] == "two %s %s [its arguments do not fit: TypeError]"


def test_an_extra_that_cannot_be_json(stream: io.BytesIO) -> None:
    """Objects become text; what contains itself is named, and the line is written."""
    loop: list[Any] = []
    loop.append(loop)
    logging.getLogger("shop").info("one", extra={"where": object})
    logging.getLogger("shop").info("two", extra={"loop": loop})
    one, two = read(stream)
    assert one["extra"] == {"where": "<class 'object'>"}
    assert two["extra"] == "not loggable: RecursionError"


def test_text_that_is_not_unicode() -> None:
    """The name of a file that is not UTF-8 is written escaped."""
    # Not through a logger: pytest-xdist cannot carry what pytest captures of it.
    record = logging.makeLogRecord({"msg": "cannot read %s", "args": ("caf\udce9.jpg",)})
    line = msgspec.json.decode(JsonFormatter("shop").format(record))
    assert line["message"] == "cannot read caf\\udce9.jpg"


@given(st.text(max_size=9_000), st.text(max_size=9_000), st.none() | st.text(max_size=6_000))
def test_no_line_is_longer_than_a_pipe_takes(message: str, exception: str, extra: str | None) -> None:
    """Whatever the texts, a line is valid JSON of at most 4,096 bytes with its newline."""
    line = LogLine(time="t", level="INFO", logger="l", service="s", message=message, exception=exception, extra=extra)
    encoded = encode_line(line)
    assert len(encoded) < 4_096
    assert b"\n" not in encoded
    assert msgspec.json.decode(encoded)["level"] == "INFO"


@pytest.mark.parametrize("character", ["x", "汉", "\0", '"'])
def test_the_worst_of_texts_fit(character: str) -> None:
    """Texts of which each character takes six bytes of JSON are cut as far as they must."""
    texts = {"message": character * 9_000, "exception": character * 9_000, "extra": {"more": character * 9_000}}
    encoded = encode_line(LogLine(time="t", level="INFO", logger="l", service="s", **texts))
    assert 600 < len(encoded) < 4_096


def test_what_a_long_line_keeps() -> None:
    """A cut message keeps its start, a cut exception its end."""
    line = LogLine(time="t", level="INFO", logger="l", service="s", message="m" * 9_000, exception="e" * 9_000 + "!")
    kept = msgspec.json.decode(encode_line(line))
    assert kept["message"].startswith("mmm")
    assert kept["exception"].endswith("e!")


def test_lines_of_several_workers_do_not_mix(tmp_path: Any) -> None:
    """No write to the stream is longer than 4,096 bytes and each ends with a line's end, whatever is queued."""

    class Recorder(io.BytesIO):
        def __init__(self) -> None:
            super().__init__()
            self.writes: list[bytes] = []

        def write(self, data: Any) -> int:
            self.writes.append(bytes(data))
            return len(data)

    recorder = Recorder()
    lines = Lines(recorder)
    for number in range(2_000):
        lines.write(b"x" * (number % 700 + 1))
    lines.flush()
    assert sum(write.count(b"\n") for write in recorder.writes) == 2_000
    assert all(len(write) <= 4_096 and write.endswith(b"\n") for write in recorder.writes)


def test_a_dead_collector_fails_nothing(house: Any) -> None:
    """Lines that the stream refuses are counted, not raised."""
    reader, writer = os.pipe()
    os.close(reader)
    lines = Lines(os.fdopen(writer, "wb", buffering=0))
    lines.write(b"one")
    lines.write(b"two")
    lines.flush()
    assert lines.lost == 2
    lines._stream.close()
    lines.write(b"three")
    lines.flush()
    assert lines.lost == 3


async def test_the_order_of_lines_holds(make_house: Any, get: Any) -> None:
    """Access lines wait in memory; an application's line pushes out what came before it."""
    house = make_house()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    await get(house.observe.wrap(app), "/first")
    assert house.stream.getvalue() == b""
    house.lines.write(JsonFormatter("shop").format(logging.makeLogRecord({"msg": "second"})).encode())
    assert [line.get("path", line.get("message")) for line in house.log] == ["/first", "second"]


async def test_access_lines_are_flushed_by_themselves(make_house: Any, get: Any) -> None:
    """A quiet service shows its lines after flush_s, and all of them when it leaves."""
    house = make_house(flush_s=0.01)
    written = asyncio.Event()
    house.stream.flush = written.set
    async with house.observe:
        house.lines.write(b'{"n":1}')
        await asyncio.wait_for(written.wait(), 5)
        assert house.stream.getvalue() == b'{"n":1}\n'
    house.lines.write(b'{"n":2}')
    async with house.observe:
        pass
    assert house.stream.getvalue() == b'{"n":1}\n{"n":2}\n'


def test_a_level_that_does_not_exist(stream: io.BytesIO) -> None:
    """A misspelt level stops the start, before anything is replaced."""
    with pytest.raises(ValueError, match="VERBOSE"):
        configure_logging("VERBOSE")


@given(st.text())
def test_scrubbing_never_fails(text: str) -> None:
    """Redaction takes any text, and leaves nothing more to redact."""
    assert scrub(scrub(text)) == scrub(text)

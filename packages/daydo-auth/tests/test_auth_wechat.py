"""WeChat's answers, good, bad, odd, slow and huge. Its simulator is daydo-sandbox; here each answer is scripted."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from daydo_auth import RiskRefused, WeChatCodeInvalid, WeChatUnavailable, WeChatUser
from daydo_kernel import NotStarted

httpx2 = pytest.importorskip("httpx2")

from daydo_auth.wechat import BODY_BYTES_MAX, WeChat, WeChatConfig  # noqa: E402

APPID, SECRET = "wx0123456789abcdef", "secret-of-a-test"
GOOD = {"openid": "o_zhang", "session_key": "c2Vzc2lvbi1rZXk=", "unionid": "union_zhang"}


class Line(httpx2.AsyncBaseTransport):  # type: ignore[misc]
    """A network on which WeChat answers what the test has written, one answer per question."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.asked: list[Any] = []

    async def handle_async_request(self, request: Any) -> Any:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            return await answer()
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        return httpx2.Response(200, content=body, headers={"Content-Type": "text/plain"})

    def says(self, *answers: Any) -> None:
        self.answers = list(answers)


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
async def wechat(line: Line) -> AsyncIterator[WeChat]:
    async with WeChat(WeChatConfig(appid=APPID, secret=SECRET), transport=line) as wechat:
        yield wechat


def counted(wechat: WeChat) -> dict[str, float]:
    return {outcome: cell.value for outcome, cell in wechat._asked.items() if cell.value}


async def test_a_code_names_a_person(wechat: WeChat, line: Line) -> None:
    """One GET with what the protocol wants; openid and unionid come back, the session key does not."""
    line.says(GOOD)
    user = await wechat.code2session("code+/= 1".replace(" ", "_"))
    assert user == WeChatUser(APPID, "o_zhang", "union_zhang")
    (request,) = line.asked
    assert (request.method, request.url.host, request.url.path) == ("GET", "api.weixin.qq.com", "/sns/jscode2session")
    wanted = {"appid": APPID, "secret": SECRET, "js_code": "code+/=_1", "grant_type": "authorization_code"}
    assert dict(request.url.params) == wanted
    assert counted(wechat) == {"ok": 1}


@pytest.mark.parametrize(
    "answer",
    [
        {"openid": "o_1"},
        {"openid": "o_1", "errcode": 0, "errmsg": "ok"},
        {"openid": "o_1", "errcode": "0"},
        {"openid": "o_1", "errcode": None, "unionid": None},
        {"openid": "o_1", "unionid": "", "more": [1, {"x": None}]},
    ],
    ids=str,
)
async def test_success_in_its_many_forms(wechat: WeChat, line: Line, answer: dict[str, Any]) -> None:
    """errcode may be absent, null, 0 or "0"; unionid may be absent, null or empty; what is new is passed over."""
    line.says(answer)
    assert await wechat.code2session("c") == WeChatUser(APPID, "o_1")


@pytest.mark.parametrize(
    ("errcode", "error", "outcome"),
    [
        (40029, WeChatCodeInvalid, "invalid"),
        ("40029", WeChatCodeInvalid, "invalid"),
        (40163, WeChatCodeInvalid, "invalid"),
        (40226, RiskRefused, "risk"),
        (45011, WeChatUnavailable, "limited"),
        (40013, WeChatUnavailable, "misconfigured"),
        (40125, WeChatUnavailable, "misconfigured"),
        (41002, WeChatUnavailable, "misconfigured"),
        (99999, WeChatUnavailable, "odd"),
        (-2, WeChatUnavailable, "odd"),
    ],
)
async def test_the_table_of_errors(wechat: WeChat, line: Line, errcode: Any, error: Any, outcome: str) -> None:
    """Each number means one of three things to a client; an openid beside an error counts for nothing; asked once."""
    line.says(GOOD | {"errcode": errcode, "errmsg": "said"})
    with pytest.raises(error) as refused:
        await wechat.code2session("c")
    assert counted(wechat) == {outcome: 1}
    assert len(line.asked) == 1
    assert refused.value.retry_after_s == (60 if errcode == 45011 else None)


async def test_busy_is_asked_again_once(wechat: WeChat, line: Line) -> None:
    """−1 means that nothing was done: one second attempt, not two."""
    line.says({"errcode": -1, "errmsg": "system error"}, GOOD)
    assert (await wechat.code2session("c")).openid == "o_zhang"
    line.says({"errcode": -1}, {"errcode": -1}, GOOD)
    with pytest.raises(WeChatUnavailable):
        await wechat.code2session("c")
    assert len(line.asked) == 4
    assert counted(wechat) == {"ok": 1, "busy": 1}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>busy</html>",
        b"[]",
        b'"o_1"',
        b"null",
        b"{}",
        b'{"openid": "o_1"',
        b'{"openid": "\xff"}',
        b"[" * 10_000,
        {"openid": ""},
        {"openid": 7},
        {"openid": None},
        {"openid": "o 1"},
        {"openid": "o\n1"},
        {"openid": "é"},
        {"openid": "x" * 129},
        {"openid": "o_1", "unionid": 7},
        {"openid": "o_1", "unionid": "u 1"},
        {"openid": "o_1", "errcode": True},
        {"openid": "o_1", "errcode": 0.0},
        {"openid": "o_1", "errcode": "none"},
        {"openid": "o_1", "errcode": []},
        {"errmsg": "ok"},
    ],
    ids=str,
)
async def test_what_cannot_be_read_is_nobody(wechat: WeChat, line: Line, answer: Any) -> None:
    """An answer that is neither an error nor a person logs nobody in and is not asked for twice."""
    line.says(answer)
    with pytest.raises(WeChatUnavailable):
        await wechat.code2session("c")
    assert counted(wechat) == {"odd": 1}


@pytest.mark.parametrize("status", [201, 302, 404, 500, 502])
async def test_other_statuses(wechat: WeChat, line: Line, status: int) -> None:
    """WeChat says everything in a 200; whatever else answers is not WeChat, and is not followed anywhere."""

    async def answer() -> Any:
        return httpx2.Response(status, json=GOOD, headers={"Location": "http://127.0.0.1/sns/jscode2session"})

    line.says(answer)
    with pytest.raises(WeChatUnavailable):
        await wechat.code2session("c")
    assert len(line.asked) == 1


async def test_a_huge_answer_is_not_read_to_its_end(wechat: WeChat, line: Line) -> None:
    """Reading stops just beyond the bound, however much there would be."""
    sent = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            sent.append(1)
            yield b" " * 1_000

    async def answer() -> Any:
        return httpx2.Response(200, content=endless())

    line.says(answer)
    with pytest.raises(WeChatUnavailable):
        await wechat.code2session("c")
    assert len(sent) == BODY_BYTES_MAX // 1_000 + 1


async def test_slow_answers_share_one_deadline(line: Line) -> None:
    """Two attempts, one of them hanging, end within timeout_s; a lost answer is not asked for again."""

    async def hang() -> Any:
        await asyncio.Event().wait()

    async with WeChat(WeChatConfig(appid=APPID, secret=SECRET, timeout_s=0.05), transport=line) as wechat:
        line.says({"errcode": -1}, hang)
        with pytest.raises(WeChatUnavailable):
            await wechat.code2session("c")
        assert len(line.asked) == 2
        assert counted(wechat) == {"unreachable": 1}


@pytest.mark.parametrize(
    "error", [httpx2.ConnectError("refused"), httpx2.ReadError("lost"), httpx2.ReadTimeout("slow")]
)
async def test_an_unreachable_wechat(wechat: WeChat, line: Line, error: Exception) -> None:
    """The network's errors become one of ours, and the question is not repeated: the code may be used."""
    line.says(error)
    with pytest.raises(WeChatUnavailable):
        await wechat.code2session("c")
    assert len(line.asked) == 1


@pytest.mark.parametrize("code", ["", "a b", "é", "a\n", "x" * 257, "\ud800", "a\0"])
async def test_what_cannot_be_a_code(wechat: WeChat, line: Line, code: str) -> None:
    """It is refused without asking."""
    with pytest.raises(WeChatCodeInvalid):
        await wechat.code2session(code)
    assert line.asked == []


async def test_nothing_secret_is_said(wechat: WeChat, line: Line, caplog: Any) -> None:
    """Neither the secret nor a code nor a session key nor a person shows in logs, errors and reprs."""
    errors = []
    with caplog.at_level(logging.DEBUG):
        for answer in (GOOD, {"errcode": 40125, "errmsg": SECRET}, httpx2.ConnectError(SECRET), b"o_zhang"):
            line.says(answer)
            try:
                errors.append(repr(await wechat.code2session("code_of_zhang")))
            except Exception as error:
                errors += [repr(error), str(error), repr(error.__cause__)]
    shown = f"{caplog.text} {errors} {WeChatConfig(appid=APPID, secret=SECRET)!r}"
    for secret in (SECRET, "code_of_zhang", "c2Vzc2lvbi1rZXk", "o_zhang", "union_zhang"):
        assert secret not in shown
    assert APPID in caplog.text, "the operator must know which"


async def test_over_a_real_connection(caplog: Any, respond: Callable[..., Any]) -> None:
    """The real transport, on loopback: nothing of the URL is logged, connections are closed on leaving."""
    async with respond(json.dumps(GOOD).encode()) as url:
        config = WeChatConfig(appid=APPID, secret=SECRET, base_url=url)
        with caplog.at_level(logging.DEBUG):
            async with WeChat(config) as wechat:
                assert (await wechat.code2session("code_of_zhang")).openid == "o_zhang"
        assert SECRET not in caplog.text
        assert "code_of_zhang" not in caplog.text
    async with WeChat(config) as wechat:
        with pytest.raises(WeChatUnavailable):
            await wechat.code2session("code_of_zhang")


@pytest.fixture
def respond() -> Callable[..., Any]:
    """A server that answers every request with one body."""

    @asynccontextmanager
    async def serve(body: bytes) -> AsyncIterator[str]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
            await reader.read()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            await server.wait_closed()

    return serve


async def test_secrets_are_needed_and_entry_too(line: Line) -> None:
    """Without credentials there is no client; before entry it does not ask."""
    with pytest.raises(ValueError, match="appid"):
        WeChat(WeChatConfig())
    with pytest.raises(NotStarted):
        await WeChat(WeChatConfig(appid=APPID, secret=SECRET), transport=line).code2session("c")


@pytest.mark.parametrize("change", [{"base_url": "ftp://x"}, {"base_url": "https://x\n"}, {"appid": "wx 1"}], ids=str)
def test_odd_settings(change: dict[str, str]) -> None:
    """What cannot work is refused when it is set."""
    with pytest.raises(ValueError, match="WeChatConfig"):
        WeChatConfig(**change)

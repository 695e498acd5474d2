"""WeChat mini-program log-in: ``code2session``, asked over HTTPS. Extra: ``[wechat]``.

Protocol facts are those of WeChat's page "auth.code2Session": GET ``/sns/jscode2session``, an answer that is JSON by
content and text by name, HTTP 200 whatever it says; ``errcode`` may be absent on success. A code works once, for five
minutes. The session key that comes with the answer would let its owner read what the mini-program encrypts: it is
dropped here, unread.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import Annotated, Any, Final
from urllib.parse import urlencode

import httpx2
import msgspec
from msgspec import Meta

from daydo_kernel import Config, Metrics, Part

from .errors import AuthError, RiskRefused, WeChatCodeInvalid, WeChatUnavailable
from .ports import WeChatUser

log = logging.getLogger("daydo.auth")

BODY_BYTES_MAX: Final = 65_536
_PATH: Final = "/sns/jscode2session"
_CODE = re.compile(r"[!-~]{1,256}")
_ID = re.compile(r"[!-~]{1,128}")
_NUMBER = re.compile(r"-?[0-9]{1,9}")

_BUSY: Final = -1
_INVALID: Final = {40029, 40163}  # invalid or expired; been used
_RISK: Final = 40226
_FREQUENCY_S: Final = 60.0  # 45011 is counted by the minute
# What is misconfigured is our own fault, for everybody: a wrong appid or secret, an argument missing, an address that
# is not on the allow-list.
_OUTCOME_OF: Final = {
    _BUSY: "busy",
    45011: "limited",
    **dict.fromkeys((40001, 40013, 40125, 40164, 41002, 41004), "misconfigured"),
}
_OUTCOMES = ("ok", "invalid", "risk", "limited", "busy", "misconfigured", "unreachable", "odd")


class WeChatConfig(Config, frozen=True, kw_only=True):
    """One mini-program and how to ask WeChat about it.

    Attributes:
        appid, secret: of the mini-program, from WeChat's console.
        base_url: of WeChat's API, or of a simulator of it.
        timeout_s: for one question, a second attempt included.
        connections: questions under way at once; more wait, within their time.
        drain_s: how long leaving waits for questions under way.
    """

    appid: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,32}(?!\n)$")] = ""
    secret: Annotated[str, Meta(max_length=128)] = ""
    base_url: Annotated[str, Meta(pattern=r"^https?://[!-~]+(?!\n)$", max_length=256)] = "https://api.weixin.qq.com"
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 5.0
    connections: Annotated[int, Meta(ge=1, le=1_000)] = 20
    drain_s: Annotated[float, Meta(ge=0, le=60)] = 5.0

    def __repr__(self) -> str:
        return f"WeChatConfig(appid={self.appid!r}, secret=***, base_url={self.base_url!r}, …)"


class WeChat(Part):
    """Asks WeChat who is behind a code::

        async with WeChat(WeChatConfig(appid=appid, secret=secret)) as wechat:
            user = await wechat.code2session(code)

    Enter it before the :class:`daydo_auth.Auth` that it is given to. ``transport`` replaces the network, in tests.
    WeChat away: nobody logs in by it (503); whoever is logged in stays so.

    Raises:
        ValueError: ``appid`` or ``secret`` is missing.
    """

    def __init__(self, config: WeChatConfig, *, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        super().__init__(drain_s=config.drain_s)
        if not (config.appid and config.secret):
            raise ValueError("WeChatConfig.appid and .secret are both needed; they stand in the mini-program's console")
        self._config = config
        self._given = transport
        self.metrics = Metrics("daydo_auth_wechat")
        asked = self.metrics.counter("questions_total", "Codes shown to WeChat, by what it said.", ("outcome",))
        self._asked = {outcome: asked.cell(outcome) for outcome in _OUTCOMES}
        self._seconds = self.metrics.histogram("question_seconds", "Time until WeChat had answered.").cell()

    @property
    def appid(self) -> str:
        return self._config.appid

    async def code2session(self, code: str) -> WeChatUser:
        """Use up a code of ``wx.login``; whom WeChat names.

        Only the answer "busy" (−1) is followed by a second attempt, one. A lost answer is not: the code may be used.

        Raises:
            WeChatCodeInvalid: it is unknown, used or expired.
            RiskRefused: WeChat thinks the person dangerous.
            WeChatUnavailable: no usable answer; the log says why.
        """
        self._require_started()
        if not _CODE.fullmatch(code):
            self._asked["invalid"].inc()
            raise WeChatCodeInvalid()
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._config.timeout_s):
                errcode, answer = await self._ask(code)
                if errcode == _BUSY:
                    errcode, answer = await self._ask(code)
        except (TimeoutError, httpx2.TransportError) as error:
            # Neither its text nor its request, which hold the secret and the code, go any further.
            raise self._unavailable("unreachable", type(error).__name__) from None
        except _Unreadable as error:
            raise self._unavailable("odd", str(error)) from None
        self._seconds.observe(time.perf_counter() - began_s)
        if errcode:
            raise self._refusal(errcode)
        self._asked["ok"].inc()
        return WeChatUser(self._config.appid, answer.openid, answer.unionid or "")

    async def _start(self) -> None:
        # A transport and no client: clients log whole URLs, here with the secret; they follow redirects, keep cookies
        # and ask the environment for proxies.
        limits = httpx2.Limits(max_connections=self._config.connections, max_keepalive_connections=4)
        self._transport = self._given or httpx2.AsyncHTTPTransport(limits=limits, trust_env=False)

    async def _close(self) -> None:
        if self._given is None and hasattr(self, "_transport"):
            await self._transport.aclose()

    async def _ask(self, code: str) -> tuple[int, _Answer]:
        """What WeChat said: an error's number, or 0 and whom it named."""
        query = {
            "appid": self._config.appid,
            "secret": self._config.secret,
            "js_code": code,
            "grant_type": "authorization_code",
        }
        url = f"{self._config.base_url.rstrip('/')}{_PATH}?{urlencode(query)}"
        timeout = httpx2.Timeout(self._config.timeout_s).as_dict()
        request = httpx2.Request("GET", url, headers={"Accept": "application/json"}, extensions={"timeout": timeout})
        response = await self._transport.handle_async_request(request)
        try:
            if response.status_code != 200:
                raise _Unreadable(f"HTTP {response.status_code}")
            return _read(await _body(response))
        finally:
            await response.aclose()

    def _refusal(self, errcode: int) -> AuthError:
        if errcode in _INVALID:
            self._asked["invalid"].inc()
            return WeChatCodeInvalid()
        if errcode == _RISK:
            self._asked["risk"].inc()
            return RiskRefused()
        outcome = _OUTCOME_OF.get(errcode, "odd")
        return self._unavailable(outcome, f"errcode {errcode}", _FREQUENCY_S if outcome == "limited" else None)

    def _unavailable(self, outcome: str, why: str, retry_after_s: float | None = None) -> WeChatUnavailable:
        self._asked[outcome].inc()
        level = logging.ERROR if outcome == "misconfigured" else logging.WARNING
        log.log(level, "WeChat log-in of %s: %s (%s)", self._config.appid, outcome, why)
        return WeChatUnavailable(retry_after_s=retry_after_s)


class _Unreadable(Exception):
    """An answer that is none; the message holds nothing of it."""


class _Answer(msgspec.Struct):
    """What we read of an answer. ``session_key`` is not among it, so the decoder skips it."""

    errcode: Any = 0
    openid: str = ""
    unionid: str | None = None


_decode = msgspec.json.Decoder(_Answer).decode


async def _body(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for chunk in response.stream:  # type: ignore[union-attr]
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise _Unreadable(f"more than {BODY_BYTES_MAX} bytes")
    return bytes(body)


def _read(body: bytes) -> tuple[int, _Answer]:
    try:
        answer = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _Unreadable("no JSON of its form") from None
    errcode = _number(answer.errcode)
    if errcode:
        return errcode, answer
    if not _ID.fullmatch(answer.openid) or (answer.unionid and not _ID.fullmatch(answer.unionid)):
        raise _Unreadable("neither an error nor a person")
    return 0, answer


def _number(errcode: Any) -> int:
    """``errcode`` as a number, as which it is documented, or as the text of one; absent and null are 0."""
    if errcode is None:
        return 0
    if isinstance(errcode, str) and _NUMBER.fullmatch(errcode):
        return int(errcode)
    if isinstance(errcode, int) and not isinstance(errcode, bool):
        return errcode
    raise _Unreadable("an errcode that is no number")

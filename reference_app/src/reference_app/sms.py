"""Codes by SMS, through an HTTP gateway: ``POST {"to", "text", "key"}`` with a bearer token.

The gateway answers 200 with ``{"status": "ok"}``, or with another word where it refuses: large ones put refusals into
HTTP 200 too. What may have been sent is never sent again: no retries here, and ``key`` lets a gateway drop repeats that
the network made.
"""

from __future__ import annotations

import logging
from typing import Annotated, Final

import httpx2
import msgspec
from msgspec import Meta

from daydo_kernel import Config, Metrics, Part

log = logging.getLogger("daydo.app")

BODY_BYTES_MAX: Final = 65_536
_PURPOSES: Final = {"login": "登录", "register": "注册", "bind": "绑定手机", "reset": "重置密码", "step_up": "身份验证"}
# Before anything was sent; all other errors of the network leave it open whether the message goes out.
_NOT_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol)


class SmsConfig(Config, frozen=True, kw_only=True):
    """The SMS gateway. Without a ``url`` nobody logs in by SMS.

    Attributes:
        url: where messages are posted.
        token: sent as a bearer token.
        sign: the name in front of each message.
        timeout_s: for one step of a request; the code itself waits no longer than DAYDO_AUTH__CODE_SEND_TIMEOUT_S.
        connections: messages under way at once.
        drain_s: how long leaving waits for them.
    """

    url: Annotated[str, Meta(pattern=r"^(https?://[!-~]+)?(?!\n)$", max_length=512)] = ""
    token: Annotated[str, Meta(pattern=r"^[!-~]{0,512}(?!\n)$")] = ""
    sign: Annotated[str, Meta(min_length=1, max_length=16)] = "daydo"
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 5.0
    connections: Annotated[int, Meta(ge=1, le=1_000)] = 20
    drain_s: Annotated[float, Meta(ge=0, le=60)] = 5.0

    def __repr__(self) -> str:
        return f"SmsConfig(sign={self.sign!r}, …)"


class SmsRefused(Exception):
    """The gateway has not sent it; the message is its word for why."""


class _Answer(msgspec.Struct):
    status: str


class SmsSender(Part):
    """What carries the codes of ``auth.codes`` to phones; a :class:`daydo_auth.Sender`."""

    def __init__(self, config: SmsConfig, *, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        super().__init__(drain_s=config.drain_s)
        self._config = config
        self._given = transport
        self.metrics = Metrics("daydo_app_sms")
        messages = self.metrics.counter("messages_total", "Messages by what the gateway said.", ("outcome",))
        self._messages = {outcome: messages.cell(outcome) for outcome in ("ok", "refused", "unknown")}

    async def send(self, to: str, code: str, purpose: str, *, key: str, ttl_s: float) -> None:
        """Post one message, once.

        Raises:
            SmsRefused: it was not sent.
            TimeoutError: it may have been.
        """
        self._require_started()
        outcome = "unknown"
        try:
            status = await self._post(to, self._text(code, purpose, ttl_s), key)
            outcome = "ok" if status == "ok" else "refused"
        except _NOT_SENT as error:
            outcome, status = "refused", type(error).__name__
        except (httpx2.TransportError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TimeoutError(f"no clear answer from the SMS gateway: {type(error).__name__}") from None
        finally:
            self._messages[outcome].inc()
        if status != "ok":
            log.warning("the SMS gateway has not sent a message: %s", status[:64])
            raise SmsRefused(status[:64])

    async def _start(self) -> None:
        # No client: it would log the URL, follow redirects and ask the environment for proxies.
        limits = httpx2.Limits(max_connections=self._config.connections)
        self._transport = self._given or httpx2.AsyncHTTPTransport(limits=limits, trust_env=False)

    async def _close(self) -> None:
        if self._given is None and hasattr(self, "_transport"):
            await self._transport.aclose()

    async def _post(self, to: str, text: str, key: str) -> str:
        """The gateway's word."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._config.token}"}
        timeout = httpx2.Timeout(self._config.timeout_s).as_dict()
        body = msgspec.json.encode({"to": to, "text": text, "key": key})
        request = httpx2.Request(
            "POST", self._config.url, headers=headers, content=body, extensions={"timeout": timeout}
        )
        response = await self._transport.handle_async_request(request)
        try:
            if 400 <= response.status_code < 500:
                return f"HTTP {response.status_code}"
            if response.status_code != 200:
                raise httpx2.RemoteProtocolError(f"HTTP {response.status_code}")
            return msgspec.json.decode(await _body(response), type=_Answer).status
        finally:
            await response.aclose()

    def _text(self, code: str, purpose: str, ttl_s: float) -> str:
        what = _PURPOSES.get(purpose, "验证")
        return f"【{self._config.sign}】{what}验证码 {code}，{ttl_s / 60:g} 分钟内有效。请勿告诉他人。"


async def _body(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for chunk in response.stream:  # type: ignore[union-attr]
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise httpx2.RemoteProtocolError(f"more than {BODY_BYTES_MAX} bytes")
    return bytes(body)

"""What auth asks of the outside world: somebody who carries a code to a person, and WeChat's word on who is calling."""

from __future__ import annotations

from typing import Protocol

import msgspec


class Sender(Protocol):
    """Carries one-time codes to phones or mailboxes: an SMS gateway, a mail server."""

    async def send(self, to: str, code: str, purpose: str, *, key: str, ttl_s: float) -> None:
        """Hand one message over; once, and without trying again by itself.

        ``to`` is ``13812345678``, ``+447700900123`` or ``a@x.cn``; ``purpose`` chooses the text; ``key`` is new for
        each message, for providers that drop repeats; ``ttl_s`` is what the text may promise. Whatever is raised means
        that nothing was sent, but for TimeoutError: then it may have been. Never put ``code`` into an error or a log.
        """


class StartClean(Protocol):
    """Takes away what somebody has left of themselves with you: a name, a picture, files. See Auth.prove."""

    async def __call__(self, tenant: str, subject: str) -> None:
        """Whoever was ``subject`` cannot get in any more, and somebody else is about to.

        In no transaction. What is raised stops that: the next proof calls again, so do it such that twice is no harm.
        """


class WeChatUser(msgspec.Struct, frozen=True):
    """Whom WeChat named: ``openid`` is theirs in one application, ``unionid`` in all of one owner, if any."""

    appid: str
    openid: str
    unionid: str = ""

    def __repr__(self) -> str:
        return f"WeChatUser(appid={self.appid!r}, ***)"


class WeChatLogin(Protocol):
    """Asks WeChat who is behind the code of ``wx.login``; :class:`daydo_auth.wechat.WeChat` does."""

    async def code2session(self, code: str) -> WeChatUser:
        """Use ``code`` up.

        Raises:
            WeChatCodeInvalid: it is unknown, used or expired.
            RiskRefused: WeChat thinks the person dangerous.
            WeChatUnavailable: no usable answer.
        """

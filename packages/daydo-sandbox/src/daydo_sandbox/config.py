"""The settings of :class:`daydo_sandbox.Sandbox`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from daydo_kernel import Config


class SandboxConfig(Config, frozen=True, kw_only=True):
    """Credentials that it asks for, and its bounds.

    Attributes:
        wechat_appid, wechat_secret: of the one mini-program it knows; an empty secret is made at random.
        wechat_code_ttl_s: life of a WeChat code.
        wechat_codes_max: codes remembered; the oldest are forgotten first.
        sms_token: what the SMS gateway wants as a bearer token; an empty one is made at random.
        sms_messages_max: messages remembered; the oldest are forgotten first.
        faults_max: faults that may wait for requests.
        drain_s: how long leaving may take.
    """

    wechat_appid: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,32}(?!\n)$")] = "wx00000000sandbox"
    wechat_secret: Annotated[str, Meta(max_length=128)] = ""
    wechat_code_ttl_s: Annotated[float, Meta(gt=0, le=86_400)] = 300.0
    wechat_codes_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    sms_token: Annotated[str, Meta(max_length=128)] = ""
    sms_messages_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 1_000
    faults_max: Annotated[int, Meta(ge=1, le=100_000)] = 1_000
    drain_s: Annotated[float, Meta(ge=0, le=60)] = 5.0

    def __repr__(self) -> str:
        return f"SandboxConfig(wechat_appid={self.wechat_appid!r}, …)"

"""WeChat's side of mini-program log-in: what ``GET /sns/jscode2session`` answers, by its documented table.

A code is good once, for five minutes. Errors are HTTP 200; on success ``errcode`` is absent, as it is in life.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from daydo_kernel import Clock

from .config import SandboxConfig
from .faults import Fault

_NO_FAULT = Fault()

BUSY, INVALID, USED, FREQUENT, RISKY = -1, 40029, 40163, 45011, 40226
ERRORS: Final = {
    BUSY: "system error",
    40002: "invalid grant_type",
    40013: "invalid appid",
    40125: "invalid appsecret",
    INVALID: "invalid code",
    USED: "code been used",
    RISKY: "code blocked",
    41002: "appid missing",
    41004: "appsecret missing",
    41008: "missing code",
    FREQUENT: "api minute-quota reach limit  mustslower  retry next minute",
}


class _Issued(msgspec.Struct):
    openid: str
    unionid: str
    until_us: int
    used: bool = False


class WeChatSimulator:
    """``sandbox.wechat``: one mini-program and the codes of its users."""

    def __init__(self, config: SandboxConfig, clock: Clock) -> None:
        self.appid = config.wechat_appid
        self.secret = config.wechat_secret or secrets.token_hex(16)
        self._ttl_us = round(config.wechat_code_ttl_s * 1_000_000)
        self._max = config.wechat_codes_max
        self._clock = clock
        self._codes: dict[str, _Issued] = {}

    def issue_code(self, openid: str = "", *, unionid: str = "") -> str:
        """What ``wx.login`` would hand to the mini-program of ``openid``; without one, of somebody new."""
        code = secrets.token_hex(16)
        while len(self._codes) >= self._max:
            del self._codes[next(iter(self._codes))]
        until_us = self._clock.now_us() + self._ttl_us
        self._codes[code] = _Issued(openid or f"o{secrets.token_urlsafe(20)}", unionid, until_us)
        return code

    def burn(self, code: str) -> bool:
        """Use ``code`` up without asking for anything; whether it was good."""
        found = self._good(code)
        if found is None or found.used:
            return False
        found.used = True
        return True

    def answer(self, query: Mapping[str, str], fault: Fault = _NO_FAULT) -> dict[str, Any]:
        """The JSON that WeChat would send."""
        if errcode := self._complaint(query):
            return error(errcode)
        found = self._good(query["js_code"])
        if found is None:
            return error(INVALID)
        if found.used and not fault.duplicate:
            return error(USED)
        found.used = True
        person = {"openid": found.openid, "session_key": secrets.token_urlsafe(16) + "=="}
        return person | ({"unionid": found.unionid} if found.unionid else {})

    def _complaint(self, query: Mapping[str, str]) -> int:
        for name, errcode in (("appid", 41002), ("secret", 41004), ("js_code", 41008)):
            if not query.get(name):
                return errcode
        if query.get("grant_type") != "authorization_code":
            return 40002
        if query["appid"] != self.appid:
            return 40013
        return 0 if secrets.compare_digest(query["secret"].encode(), self.secret.encode()) else 40125

    def _good(self, code: str) -> _Issued | None:
        found = self._codes.get(code)
        return found if found is not None and self._clock.now_us() < found.until_us else None


def error(errcode: int | str) -> dict[str, Any]:
    """An error as WeChat sends it; ``errcode`` need not be one of its table."""
    known = ERRORS.get(errcode) if isinstance(errcode, int) else None
    return {"errcode": errcode, "errmsg": f"{known or 'unknown'}, rid: sandbox"}

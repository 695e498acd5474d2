"""Sessions of web pages: tokens in cookies that no script can read, and proof that our own page is asking.

A browser sends cookies whoever asks, which is how another site's page could act for its visitor. So a change by cookie
must also bring, in the header ``X-CSRF-Token``, what only our own page can have read: an HMAC of the session's id. It
needs no storage and dies with its session. Apps, mini programs and whoever else sends ``Authorization`` need none:
nothing adds that header by itself.

The names begin with ``__Host-``: browsers then insist on https, on this very host, and on the path ``/``.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from .config import AuthConfig
from .errors import CsrfInvalid, TokenInvalid, TokenMissing
from .model import Tokens

Headers = Iterable[tuple[bytes, bytes]]

ACCESS_COOKIE: Final = "__Host-daydo-access"
REFRESH_COOKIE: Final = "__Host-daydo-refresh"
CSRF_HEADER: Final = "X-CSRF-Token"
_CSRF_HEADER: Final = CSRF_HEADER.lower().encode()
_PURPOSE: Final = b"daydo csrf 1"


class WebCookie(msgspec.Struct, frozen=True):
    """A cookie as a browser is told to keep it: no script reads it, and only https carries it."""

    name: str
    value: str
    ttl_s: int
    same_site: Literal["lax", "strict"]

    def __repr__(self) -> str:
        return f"WebCookie({self.name!r}, ***)"

    @property
    def header(self) -> str:
        """The value of ``Set-Cookie``."""
        keep = f"Path=/; Max-Age={self.ttl_s}; HttpOnly; Secure; SameSite={self.same_site.title()}"
        return f"{self.name}={self.value}; {keep}"


class Cookies:
    """Writes and reads the cookies of web sessions; no I/O."""

    def __init__(self, config: AuthConfig) -> None:
        self._key = hmac.digest(config.pepper.encode(), _PURPOSE, hashlib.sha256)
        self._refresh_ttl_s = round(config.refresh_ttl_s)

    def of(self, tokens: Tokens) -> list[WebCookie]:
        """What logs a page in."""
        return [
            WebCookie(ACCESS_COOKIE, tokens.access, tokens.expires_in_s, "lax"),
            WebCookie(REFRESH_COOKIE, tokens.refresh, self._refresh_ttl_s, "strict"),
        ]

    def gone(self) -> list[WebCookie]:
        """What logs a page out."""
        return [WebCookie(ACCESS_COOKIE, "", 0, "lax"), WebCookie(REFRESH_COOKIE, "", 0, "strict")]

    def csrf_token(self, session_id: str) -> str:
        """What a page of this session sends as ``X-CSRF-Token`` with every change."""
        mac = hmac.digest(self._key, session_id.encode(), hashlib.sha256)
        return urlsafe_b64encode(mac[:24]).decode()

    def require_csrf(self, session_id: str, headers: Headers) -> None:
        """Pass with exactly one header that has the session's token.

        Raises:
            CsrfInvalid: it has not.
        """
        given = [value for name, value in headers if name == _CSRF_HEADER]
        # Bytes on both sides: compare_digest raises on text that is not ASCII.
        if len(given) != 1 or not hmac.compare_digest(given[0], self.csrf_token(session_id).encode()):
            raise CsrfInvalid()


def cookie_of(headers: Headers, name: str) -> str | None:
    """The value of one cookie; None where there is none.

    Raises:
        TokenInvalid: it is there twice.
    """
    wanted = name.encode() + b"="
    found = [
        pair.strip()
        for header, line in headers
        if header == b"cookie"
        for pair in line.split(b";")
        if pair.strip().startswith(wanted)
    ]
    if len(found) > 1:
        raise TokenInvalid()
    return found[0][len(wanted) :].decode("latin-1") if found else None


def refresh_cookie_of(headers: Headers) -> tuple[str, str]:
    """The refresh token of a page, and the id of the session that it says it is of.

    Raises:
        TokenMissing, TokenInvalid: there is none, or two.
    """
    token = cookie_of(headers, REFRESH_COOKIE)
    if not token:
        raise TokenMissing()
    return token, token.partition(".")[0]

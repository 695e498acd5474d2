"""Refresh tokens: what one is, and what one that comes back means. Pure: no I/O, no clock.

A token is ``session.counter.secret.mac``. The secret is the session's own, the same in all its tokens, and the session
keeps no more than its hash and the counter of its newest token. So every token of its past can be recognised without
being stored, and its successor can be made again out of itself: a client whose answer was lost, or a second tab with
the same token, gets *the same* successor and nobody is logged out.

    presented == counter                        the newest: the counter goes up               rotate
    presented == counter - 1, within the window a retry, or a second tab: the same successor  replay
    presented < counter otherwise               somebody has kept an old token                reuse: end the session
    presented > counter                         the store lost its last moments               rotate
      … though the counter was taken from a     two have gone on from one token               reuse: end the session
      token, because the store had lost it

A thief and the owner both hold tokens of one session, so whoever comes second is caught, and both are out.

The mac's key is derived from the pepper, so what we did not make is refused before any I/O, and a stolen database makes
no tokens: it lacks the pepper, and with the pepper it lacks the secrets.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
import secrets
from typing import Literal, NamedTuple

import msgspec

Outcome = Literal["rotate", "replay", "reuse", "revoked", "expired"]

SESSION_ID = r"ses_[0-9A-HJKMNP-TV-Z]{26}"
_TOKEN = re.compile(rf"({SESSION_ID})\.([1-9][0-9]{{0,14}})\.([A-Za-z0-9_-]{{22}})\.([A-Za-z0-9_-]{{43}})")
_PURPOSE = b"daydo-auth refresh 2"
_SECRET_BYTES = 16
_TO_URL = bytes.maketrans(b"+/", b"-_")


class Session(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One login on one device; ``counter`` is that of its newest refresh token. Times are µs UTC, 0 is never.

    Attributes:
        secret_hash: SHA-256 of the secret in its tokens.
        proved_at_us: when the person last proved who they are.
        revoked_at_us: when it was ended, or its subject disabled.
        roles, epoch: the subject's, as of when they were read.
        is_rebuilt: the store had lost the counter and took that of the token it was shown.
    """

    id: str
    tenant: str
    subject: str
    secret_hash: bytes
    counter: int
    proved_at_us: int
    rotated_at_us: int
    refresh_by_us: int
    expires_at_us: int
    revoked_at_us: int = 0
    roles: tuple[str, ...] = ()
    epoch: int = 0
    is_rebuilt: bool = False


class RefreshToken(NamedTuple):
    """A refresh token that we made, taken apart."""

    session_id: str
    counter: int
    secret: str

    def __repr__(self) -> str:
        return f"RefreshToken({self.session_id!r}, {self.counter}, ***)"

    @property
    def secret_hash(self) -> bytes:
        return hash_secret(self.secret)

    @property
    def successor(self) -> RefreshToken:
        return self._replace(counter=self.counter + 1)


class RefreshTokens:
    """Writes and reads refresh tokens under one pepper."""

    def __init__(self, pepper: str) -> None:
        self._mac = Mac(hmac.digest(pepper.encode(), _PURPOSE, "sha256"))

    def write(self, token: RefreshToken) -> str:
        name = f"{token.session_id}.{token.counter}.{token.secret}"
        return f"{name}.{self._mac(name.encode()).decode()}"

    def read(self, text: str) -> RefreshToken | None:
        """The parts of ``text``; None where we did not make it."""
        found = _TOKEN.fullmatch(text)
        if found is None or not hmac.compare_digest(self._mac(text[: found.start(4) - 1].encode()), found[4].encode()):
            return None
        return RefreshToken(found[1], int(found[2]), found[3])


class Mac:
    """HMAC-SHA256 under one key, in base64; the key is taken in once, which is half of the work."""

    def __init__(self, key: bytes) -> None:
        self._begun = hmac.new(key, digestmod="sha256")

    def __call__(self, message: bytes) -> bytes:
        mac = self._begun.copy()
        mac.update(message)
        return url_base64(mac.digest())


def url_base64(data: bytes) -> bytes:
    """Base64 as tokens spell it, without padding; half the time of the standard library's."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL, b"=")


def new_secret() -> str:
    """A session's secret."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def hash_secret(secret: str) -> bytes:
    """What is kept of it."""
    return hashlib.sha256(secret.encode()).digest()


def decide(session: Session, presented: int, now_us: int, window_us: int) -> Outcome:
    """What a genuine token with the counter ``presented`` means now."""
    if session.revoked_at_us:
        return "revoked"
    is_retry = presented == session.counter - 1 and now_us - session.rotated_at_us < window_us
    if presented < session.counter and not is_retry:
        return "reuse"
    if presented > session.counter and session.is_rebuilt:
        return "reuse"
    if now_us >= min(session.refresh_by_us, session.expires_at_us):
        return "expired"
    return "replay" if is_retry else "rotate"

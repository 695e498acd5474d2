"""Refresh tokens: what one is, and what one that comes back means. Pure: no I/O, no clock.

A token is ``session.counter.mac``. The session keeps only the counter of its newest token, so every token of its past
can be recognised without being stored, and the newest can be made again: a client whose answer was lost, or a second
tab with the same token, gets *the same* successor and nobody is logged out.

    presented == counter                        the newest: the counter goes up               rotate
    presented == counter - 1, within the window a retry, or a second tab: the same successor  replay
    anything else                               somebody has kept an old token                reuse: end the session

A thief and the owner both hold tokens of one session, so whoever comes second is caught, and both are out.

The mac's key is derived from the pepper and a salt of the session: a stolen database makes no tokens.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Literal, NamedTuple

import msgspec

Outcome = Literal["rotate", "replay", "reuse", "revoked", "expired"]

_TOKEN = re.compile(r"(ses_[0-9A-HJKMNP-TV-Z]{26})\.([1-9][0-9]{0,14})\.([A-Za-z0-9_-]{43})")
_PURPOSE = b"daydo-auth refresh 1\0"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One login on one device; ``counter`` is that of its newest refresh token. Times are µs UTC, 0 is never."""

    id: str
    tenant: str
    subject: str
    salt: bytes
    counter: int
    rotated_at_us: int
    refresh_by_us: int
    expires_at_us: int
    revoked_at_us: int


class RefreshToken(NamedTuple):
    """A refresh token, taken apart and not yet believed."""

    session_id: str
    counter: int
    mac: str


def parse(token: str) -> RefreshToken | None:
    """The parts of ``token``; None where it is none."""
    found = _TOKEN.fullmatch(token)
    return RefreshToken(found[1], int(found[2]), found[3]) if found else None


def sign(pepper: str, salt: bytes, session_id: str, counter: int) -> str:
    """The refresh token of a session with this counter."""
    key = hmac.digest(pepper.encode(), _PURPOSE + salt, hashlib.sha256)
    name = f"{session_id}.{counter}"
    mac = base64.urlsafe_b64encode(hmac.digest(key, name.encode(), hashlib.sha256)).rstrip(b"=").decode()
    return f"{name}.{mac}"


def is_genuine(token: RefreshToken, pepper: str, salt: bytes) -> bool:
    """Whether we made ``token``."""
    ours = sign(pepper, salt, token.session_id, token.counter)
    return hmac.compare_digest(ours, f"{token.session_id}.{token.counter}.{token.mac}")


def decide(session: Session, presented: int, now_us: int, window_us: int) -> Outcome:
    """What a genuine token with the counter ``presented`` means now."""
    if session.revoked_at_us:
        return "revoked"
    is_retry = presented == session.counter - 1 and now_us - session.rotated_at_us < window_us
    if presented != session.counter and not is_retry:
        return "reuse"
    if now_us >= min(session.refresh_by_us, session.expires_at_us):
        return "expired"
    return "replay" if is_retry else "rotate"

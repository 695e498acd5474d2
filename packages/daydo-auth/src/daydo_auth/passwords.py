"""How a password becomes what is stored, and which passwords are good enough.

The recipe: ``bcrypt(base64(HMAC-SHA256(pepper, NFKC(password))))``. NFKC, because one keyboard sends ``é`` as one
character and the next as two. The HMAC, because bcrypt reads 72 bytes (24 汉字) and no more, and because a stolen
database is then worthless without the pepper. Base64, because bcrypt has trouble with NUL bytes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import unicodedata
from collections.abc import Iterator

import bcrypt

from daydo_kernel import FieldError

MAX_SECRET_CHARS = 1_024
_VERSION = "d1"


class Hasher:
    """The recipe with one pepper. All but :meth:`is_current` take ``2**rounds`` steps: keep them off the event loop."""

    def __init__(self, pepper: str, rounds: int) -> None:
        self._pepper = pepper.encode()
        self._rounds = rounds
        # Hashing with any salt is the work of a check; nobody's password begins like this one.
        self._nobody = bcrypt.gensalt(rounds)

    def hash(self, secret: str) -> str:
        """``secret`` as it is stored: version, then bcrypt's own format."""
        return f"{_VERSION}:{bcrypt.hashpw(self._prepare(secret), bcrypt.gensalt(self._rounds)).decode()}"

    def check(self, secret: str, hashed: str | None) -> bool:
        """Whether ``secret`` is the one in ``hashed``; the same work where there is none."""
        version, _, digest = (hashed or "").partition(":")
        if version != _VERSION:
            bcrypt.hashpw(self._prepare(secret), self._nobody)
            return False
        return bcrypt.checkpw(self._prepare(secret), digest.encode())

    def is_current(self, hashed: str) -> bool:
        """Whether ``hashed`` was made by this recipe with these rounds."""
        return hashed.startswith(f"{_VERSION}:$2b${self._rounds:02d}$")

    def _prepare(self, secret: str) -> bytes:
        normal = unicodedata.normalize("NFKC", secret).encode("utf-8", "surrogatepass")
        return base64.b64encode(hmac.digest(self._pepper, normal, hashlib.sha256))


def weaknesses(policy: str, login: str, secret: str, field: str = "password") -> tuple[FieldError, ...]:
    """The rules of ``policy`` that ``secret`` breaks, in Chinese and English."""
    if len(secret) > MAX_SECRET_CHARS:
        return (
            FieldError(field, f"不得超过 {MAX_SECRET_CHARS} 个字符", f"Must be at most {MAX_SECRET_CHARS} characters"),
        )
    rules = _nist(login, secret) if policy == "nist" else _origin(secret)
    return tuple(FieldError(field, zh, en) for zh, en in rules)


def _origin(secret: str) -> Iterator[tuple[str, str]]:
    if len(secret) < 8:
        yield "至少 8 个字符", "Must be at least 8 characters"
    if not any(map(str.isupper, secret)):
        yield "须包含大写字母", "Needs an upper-case letter"
    if not any(map(str.islower, secret)):
        yield "须包含小写字母", "Needs a lower-case letter"
    if not any(map(str.isdecimal, secret)):
        yield "须包含数字", "Needs a digit"
    if all(character.isalnum() or character.isspace() for character in secret):
        yield "须包含特殊字符", "Needs a special character"


def _nist(login: str, secret: str) -> Iterator[tuple[str, str]]:
    # NIST SP 800-63B-4 §3.1.1.2: 15 characters where the password stands alone, no composition rules, and what is
    # made of the login or of next to nothing is on every attacker's list.
    normal = unicodedata.normalize("NFKC", secret)
    if len(normal) < 15:
        yield "至少 15 个字符", "Must be at least 15 characters"
    name = login.strip().casefold()
    if len(name) >= 3 and name in normal.casefold():
        yield "不得包含账号", "Must not contain the login"
    if len(set(normal)) < 5:
        yield "重复字符过多", "Repeats itself too much"

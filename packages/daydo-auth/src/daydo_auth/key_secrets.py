"""What an API key looks like, and which ones we made. Pure: no I/O, no clock.

A *bearer* key is sent as it is: ``dk_<id>_<secret>``. Its secret is 16 random bytes and a mac over id and these: what
we did not make is refused before any I/O, and scanners for leaked secrets can tell one by its prefix. The database
keeps a hash: neither it nor the pepper alone makes a key.

The secret of a *signing* key is needed in clear to check a signature, so it is stored nowhere but derived from its id
and the pepper. A signature is checked with it before any I/O, too; whether the key is still good is asked only then.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

from daydo_kernel import new_id

from .rotation import url_base64

KEY_ID = r"dk_[0-9A-HJKMNP-TV-Z]{26}"
_BEARER = re.compile(rf"({KEY_ID})_([A-Za-z0-9_-]{{43}})")
_RANDOM_BYTES = _MAC_BYTES = 16
_PURPOSE_BEARER = b"daydo-auth api key 1"
_PURPOSE_SIGNING = b"daydo-auth signing key 1"
_FROM_URL = str.maketrans("-_", "+/")


class BearerKey(NamedTuple):
    """A bearer key that we made, and what is kept of it."""

    id: str
    hashed: bytes


class KeySecrets:
    """Makes and reads keys under one pepper."""

    def __init__(self, pepper: str) -> None:
        self._bearer = hmac.digest(pepper.encode(), _PURPOSE_BEARER, hashlib.sha256)
        self._signing = hmac.digest(pepper.encode(), _PURPOSE_SIGNING, hashlib.sha256)

    def new_bearer(self) -> tuple[str, BearerKey]:
        """(what its owner is shown once, what is kept) of a new key."""
        key_id = new_id("dk")
        text = self._text(key_id, secrets.token_bytes(_RANDOM_BYTES))
        return text, BearerKey(key_id, _hash(text))

    def read_bearer(self, text: str) -> BearerKey | None:
        """The key in ``text``; None where we did not make it."""
        found = _BEARER.fullmatch(text)
        if found is None:
            return None
        random = binascii.a2b_base64(found[2].translate(_FROM_URL) + "=")[:_RANDOM_BYTES]
        # Compared as text: of the spellings that base64 has for these bytes one is right.
        if not hmac.compare_digest(self._text(found[1], random), text):
            return None
        return BearerKey(found[1], _hash(text))

    def signing_secret(self, key_id: str) -> str:
        """The secret that belongs to a signing key, whether or not there is one with this id."""
        return url_base64(hmac.digest(self._signing, key_id.encode(), hashlib.sha256)).decode()

    def _text(self, key_id: str, random: bytes) -> str:
        mac = hmac.digest(self._bearer, key_id.encode() + b"\0" + random, hashlib.sha256)[:_MAC_BYTES]
        return f"{key_id}_{url_base64(random + mac).decode()}"


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()

"""Access tokens: JWT, HS256, and nothing else that calls itself one.

PyJWT checks the signature. Everything around it is checked here, by type: PyJWT itself takes an ``exp`` that is text or
1e30, any ``typ``, any length, and headers nested until Python gives up.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Literal

import jwt
import msgspec

from daydo_kernel import Clock, new_id

from .config import AuthConfig
from .errors import TokenExpired, TokenInvalid, TokenMissing
from .model import Principal

MAX_TOKEN_CHARS = 4_096
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_ALGORITHM = "HS256"


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The only header we read: no ``crit``, no ``jku``, no ``jwk``, no other algorithm."""

    alg: Literal["HS256"]
    kid: str
    typ: Literal["JWT"]


class Claims(msgspec.Struct, frozen=True):
    """What an access token says. Times are whole seconds since 1970."""

    typ: Literal["access"]
    iss: str
    aud: str
    sub: str
    sid: str
    ten: str
    prm: list[str]
    iat: int
    exp: int
    jti: str


_header_of = msgspec.json.Decoder(Header)
_claims_of = msgspec.json.Decoder(Claims)


class AccessTokens:
    """Makes and reads access tokens with a ring of keys; time is this host's, or the clock's."""

    def __init__(self, config: AuthConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._keys = {kid: secret.encode() for kid, secret in config.keys.items()}
        self._signing = next(iter(config.keys))
        self._jws = jwt.PyJWS(algorithms=[_ALGORITHM])

    def issue(self, principal: Principal) -> str:
        """A token that says who ``principal`` is, for ``access_ttl_s``."""
        now_s = self._now_s()
        claims = Claims(
            typ="access",
            iss=self._config.issuer,
            aud=self._config.audience,
            sub=principal.subject,
            sid=principal.session_id,
            ten=principal.tenant,
            prm=sorted(principal.permissions),
            iat=now_s,
            exp=now_s + self._config.access_ttl_s,
            jti=new_id("at"),
        )
        key = self._keys[self._signing]
        return self._jws.encode(msgspec.json.encode(claims), key, _ALGORITHM, {"kid": self._signing})

    def read(self, header: str | None) -> Principal:
        """Whom an Authorization header names.

        Raises:
            TokenMissing: there is no header.
            TokenInvalid: it is not one Bearer token that we signed for this audience.
            TokenExpired: it was.
        """
        if not header:
            raise TokenMissing()
        if len(header) > MAX_TOKEN_CHARS:
            raise TokenInvalid()
        found = _BEARER.fullmatch(header)
        if found is None:
            raise TokenInvalid()
        claims = self._claims(found)
        self._check(claims)
        return Principal(claims.ten, claims.sub, claims.sid, frozenset(claims.prm))

    def _claims(self, found: re.Match[str]) -> Claims:
        try:
            head = _header_of.decode(base64.urlsafe_b64decode(found[1] + "=="))
            key = self._keys.get(head.kid)
            if key is None:
                raise TokenInvalid()
            payload = self._jws.decode(".".join(found.groups()), key, algorithms=[_ALGORITHM])
            return _claims_of.decode(payload)
        except (binascii.Error, msgspec.DecodeError, jwt.PyJWTError, RecursionError, UnicodeDecodeError):
            raise TokenInvalid() from None

    def _check(self, claims: Claims) -> None:
        if claims.iss != self._config.issuer or claims.aud != self._config.audience:
            raise TokenInvalid()
        now_s, skew_s = self._now_s(), self._config.clock_skew_s
        if claims.iat > now_s + skew_s or claims.exp > now_s + self._config.access_ttl_s + skew_s:
            raise TokenInvalid()
        if claims.exp <= now_s:
            raise TokenExpired()

    def _now_s(self) -> int:
        return self._clock.now_us() // 1_000_000

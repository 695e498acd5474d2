"""Access tokens: JWT, HS256, and nothing else that calls itself one.

Reading one is on the path of every request, so it is done here, in a few microseconds, instead of by PyJWT, which takes
several times as long and also an ``exp`` that is text or 1e30, any ``typ`` and any length. What is accepted here PyJWT
accepts too, with the same claims; a test holds the two side by side.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import itertools
import re
import secrets
from typing import Annotated, Literal

import msgspec

from daydo_kernel import Clock

from .config import AuthConfig
from .errors import TokenExpired, TokenInvalid, TokenMissing
from .rotation import Mac, Session, url_base64

MAX_TOKEN_CHARS = 4_096
Name = Annotated[str, msgspec.Meta(min_length=1)]
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +(([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+))\.([A-Za-z0-9_-]{43})")


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The only header we read: no ``crit``, no ``jku``, no ``jwk``, no other algorithm."""

    alg: Literal["HS256"]
    kid: str
    typ: Literal["JWT"]


class Claims(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What an access token says. Times are whole seconds since 1970.

    Attributes:
        sid: the session.
        ten: the tenant.
        rol: the subject's roles; what they permit every worker knows.
        ep: the subject's epoch, which goes up when its roles change.
        rep: the epoch of the tenant's role table as the worker that signed knew it; one that knows less reads it anew.
        aut: when the person last proved who they are.
        nbf: not good before; ours do not say it.
    """

    typ: Literal["access"]
    iss: str
    aud: str
    sub: Name
    sid: Name
    ten: str
    rol: tuple[str, ...]
    ep: int
    rep: int
    iat: int
    exp: int
    jti: str
    aut: int
    nbf: int = 0


_header_of = msgspec.json.Decoder(Header)
_claims_of = msgspec.json.Decoder(Claims)
_write = msgspec.json.Encoder()
_FROM_URL = bytes.maketrans(b"-_", b"+/")


class AccessTokens:
    """Makes and reads access tokens with a ring of keys; time is this host's, or the clock's."""

    def __init__(self, config: AuthConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._keys = {kid: Mac(secret.encode()) for kid, secret in config.keys.items()}
        heads = {kid: url_base64(_write.encode(Header("HS256", kid, "JWT"))).decode() for kid in self._keys}
        self._by_head = {head: self._keys[kid] for kid, head in heads.items()}
        head, self._sign = next(iter(self._by_head.items()))
        self._head = head.encode() + b"."
        # Every token has an id of its own; it is no secret.
        self._name, self._made = secrets.token_urlsafe(9), itertools.count(1)

    def issue(self, session: Session, role_table_epoch: int = 0) -> str:
        """A token for who holds ``session``, for ``access_ttl_s``."""
        now_s = self._clock.now_us() // 1_000_000
        claims = Claims(
            typ="access",
            iss=self._config.issuer,
            aud=self._config.audience,
            sub=session.subject,
            sid=session.id,
            ten=session.tenant,
            rol=session.roles,
            ep=session.epoch,
            rep=role_table_epoch,
            iat=now_s,
            exp=now_s + self._config.access_ttl_s,
            jti=f"{self._name}.{next(self._made)}",
            aut=session.proved_at_us // 1_000_000,
        )
        signed = self._head + url_base64(_write.encode(claims))
        return (signed + b"." + self._sign(signed)).decode()

    def read(self, header: str | None) -> Claims:
        """What the token of an Authorization header says.

        Raises:
            TokenMissing: there is no header.
            TokenInvalid: it is not one Bearer token that we signed for this audience.
            TokenExpired: it was.
        """
        if not header:
            raise TokenMissing()
        if len(header) > MAX_TOKEN_CHARS:
            raise TokenInvalid()
        scheme, _, token = header.partition(" ")
        signed, _, mac = token.rpartition(".")
        head, _, body = signed.partition(".")
        sign = self._by_head.get(head) if scheme == "Bearer" else None
        if sign is None:
            signed, body, mac, sign = self._unusual(header)
        try:
            # Ours is written out and compared as text: of the spellings that base64 has for a mac one is right. What
            # passes is to the letter what we signed, so nothing of it needs to be looked at before.
            if not hmac.compare_digest(sign(signed.encode()), mac.encode()):
                raise TokenInvalid()
            claims = _claims_of.decode(binascii.a2b_base64(body.encode().translate(_FROM_URL) + b"=="))
        except (binascii.Error, msgspec.DecodeError, RecursionError, UnicodeError):
            raise TokenInvalid() from None
        self._check(claims)
        return claims

    def _unusual(self, header: str) -> tuple[str, str, str, Mac]:
        """What is signed, the body, the mac and the key of a header that says what ours do in another spelling."""
        found = _BEARER.fullmatch(header)
        if found is None:
            raise TokenInvalid()
        signed, head, body, mac = found.groups()
        try:
            return signed, body, mac, self._keys[_header_of.decode(base64.urlsafe_b64decode(head + "==")).kid]
        except (KeyError, binascii.Error, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise TokenInvalid() from None

    def _check(self, claims: Claims) -> None:
        config, now_s = self._config, self._clock.now_us() // 1_000_000
        if claims.iss != config.issuer or claims.aud != config.audience:
            raise TokenInvalid()
        latest_s = now_s + config.clock_skew_s
        if max(claims.iat, claims.nbf) > latest_s or claims.exp > latest_s + config.access_ttl_s:
            raise TokenInvalid()
        if claims.exp <= now_s:
            raise TokenExpired()

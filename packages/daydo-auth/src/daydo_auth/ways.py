"""The ways in: which of them a request takes, and whom it names by that.

    Authorization: Bearer <access token>      a person's session
    Authorization: Bearer dk_<id>_<secret>    an API key
    Authorization: bce-auth-v1/…              a request signed with an API key
    Cookie: __Host-daydo-access=…             a person's web page; for a change, its CSRF token too

There is at most one Authorization header, and with it no cookie counts. A signed request is judged from what is cheap
to what is dear: signature, key, body, nonce. So nobody without a secret makes us read a row or a body, and only what is
right in everything else uses up its nonce.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, get_args

import msgspec

from daydo_kernel import Clock, Metrics
from daydo_redis import Redis

from .asgi import SAFE_METHODS
from .config import AuthConfig
from .cookies import ACCESS_COOKIE, Cookies, cookie_of
from .errors import NoncesUnavailable, SignatureInvalid, TokenInvalid
from .keys import Keys
from .model import Principal
from .nonces import Nonces
from .presented import Presented
from .signing import SCHEME, Reason, Signed, check, check_body, parse

_KEY: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +(dk_.*)", re.DOTALL)
_OUTCOMES: Final = ("ok", "unavailable", *get_args(Reason))


class Ways:
    """Decides by the Authorization header."""

    def __init__(
        self,
        redis: Redis,
        config: AuthConfig,
        keys: Keys,
        clock: Clock,
        metrics: Metrics,
        verify: Callable[[str | None], Principal],
    ) -> None:
        self._config = config
        self._keys = keys
        self._clock = clock
        self._verify = verify
        self._nonces = Nonces(redis, config)
        self._cookies = Cookies(config)
        outcomes = metrics.counter("signatures_total", "Signed requests by how they ended.", ("outcome",))
        self._outcomes = {outcome: outcomes.cell(outcome) for outcome in _OUTCOMES}

    async def authenticate(self, presented: Presented) -> Principal:
        """Whom ``presented`` names; see :meth:`daydo_auth.Auth.authenticate`."""
        given = presented.all(b"authorization")
        if len(given) > 1:
            raise TokenInvalid()
        if not given:
            return self._by_cookie(presented)
        header = given[0].decode("latin-1")
        if header.startswith(SCHEME):
            return await self._by_signature(presented, header)
        if (key := _KEY.fullmatch(header)) is not None:
            return await self._keys.prove(key[1])
        return self._verify(header)

    def key_owner(self, presented: Presented) -> str | None:
        """See :meth:`daydo_auth.Auth.key_owner`."""
        given = presented.all(b"authorization")
        if len(given) != 1:
            return None
        header = given[0].decode("latin-1")
        if header.startswith(SCHEME):
            try:
                return self._keys.owner(self._signature_of(presented, header)[0])
            except SignatureInvalid:
                return None
        key = _KEY.fullmatch(header)
        return self._keys.owner_of(key[1]) if key is not None else None

    def _by_cookie(self, presented: Presented) -> Principal:
        cookie = cookie_of(presented.headers, ACCESS_COOKIE) if presented.takes_cookie else None
        if cookie is None:
            return self._verify(None)
        principal = self._verify(f"Bearer {cookie}")
        if presented.method not in SAFE_METHODS:
            self._cookies.require_csrf(principal.session_id, presented.headers)
        return msgspec.structs.replace(principal, way="cookie")

    async def _by_signature(self, presented: Presented, header: str) -> Principal:
        try:
            principal = await self._signer(presented, header)
        except SignatureInvalid as error:
            self._outcomes[error.reason].inc()
            raise
        except NoncesUnavailable:
            self._outcomes["unavailable"].inc()
            raise
        self._outcomes["ok"].inc()
        return principal

    async def _signer(self, presented: Presented, header: str) -> Principal:
        key_id, signed = self._signature_of(presented, header)
        principal = await self._keys.signer(key_id)
        check_body(signed, await presented.body())
        await self._spend(principal, signed)
        self._keys.note(principal, "ok")
        return principal

    def _signature_of(self, presented: Presented, header: str) -> tuple[str, Signed]:
        """(key id, what was signed) of a genuine signature."""
        signature = parse(header)
        signed = check(
            signature,
            self._keys.signing_secret(signature.key_id),
            presented.method,
            presented.path,
            presented.query,
            presented.headers,
            now_s=self._now_s(),
            window_s=self._config.signature_window_s,
            skew_s=self._config.clock_skew_s,
        )
        return signature.key_id, signed

    async def _spend(self, principal: Principal, signed: Signed) -> None:
        good_for_s = signed.until_s - self._now_s()
        if good_for_s <= 0:  # its body came slowly
            raise SignatureInvalid(reason="expired")
        try:
            await self._nonces.spend(principal.key_id, signed.nonce, good_for_s)
        except SignatureInvalid:
            self._keys.note(principal, "replayed")
            raise

    def _now_s(self) -> int:
        return self._clock.now_us() // 1_000_000

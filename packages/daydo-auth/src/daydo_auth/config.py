"""The settings of :class:`daydo_auth.Auth`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta

from daydo_kernel import Config

MIN_SECRET_BYTES = 32
_MIN_DISTINCT = 8
_KID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# 40 of these fit into a token of 4 KB.
Permission = Annotated[str, Meta(pattern=r"^[a-z0-9_.:-]{1,48}$")]
_MAKE_ONE = 'make one: python -c "import secrets; print(secrets.token_urlsafe(48))"'


class AuthConfig(Config, frozen=True, kw_only=True):
    """How tokens, sessions and passwords are.

    Attributes:
        keys: key id → secret of at least 32 bytes. The first signs, all verify: to change keys put the new one first
            and drop the old one after ``access_ttl_s``.
        pepper: mixed into every password and refresh token, at least 32 bytes, kept outside the database. Changing it
            makes all of them worthless.
        issuer, audience: what a token must say of itself.
        access_ttl_s: life of an access token.
        refresh_ttl_s: how long a session may rest between two refreshes.
        session_ttl_s: how long a session may live at all.
        replay_window_s: how long after a rotation the token before it still gets the same successor.
        ticket_ttl_s: life of a ticket.
        clock_skew_s: how far two hosts' clocks may be apart.
        revocation_poll_s: how often a worker reads what others have revoked; the bound on what a logout takes to
            reach all of them.
        bcrypt_rounds: log2 of the work; one more doubles it (12: a quarter of a second).
        hashing_workers: threads that hash; more than cores is no use.
        hashing_queue_max: passwords that may wait for a thread; beyond that HashingSaturated.
        password_policy: ``origin`` (8 characters: upper, lower, digit, special) or ``nist`` (15 characters, no rules of
            composition, nothing obvious).
        default_permissions: what every token carries.
        redis_prefix: the beginning of every key in Redis.
        drain_s: how long leaving waits for passwords being hashed.
    """

    keys: dict[str, str] = {}  # noqa: RUF012 - msgspec copies it for every struct
    pepper: str = ""
    issuer: Annotated[str, Meta(min_length=1, max_length=128)] = "daydo"
    audience: Annotated[str, Meta(min_length=1, max_length=128)] = "daydo"
    access_ttl_s: Annotated[int, Meta(ge=10, le=3_600)] = 900
    refresh_ttl_s: Annotated[float, Meta(ge=60, le=31_536_000)] = 604_800.0
    session_ttl_s: Annotated[float, Meta(ge=60, le=31_536_000)] = 2_592_000.0
    replay_window_s: Annotated[float, Meta(ge=0, le=60)] = 10.0
    ticket_ttl_s: Annotated[float, Meta(ge=1, le=300)] = 60.0
    clock_skew_s: Annotated[int, Meta(ge=0, le=300)] = 30
    revocation_poll_s: Annotated[float, Meta(gt=0, le=60)] = 1.0
    bcrypt_rounds: Annotated[int, Meta(ge=4, le=16)] = 12
    hashing_workers: Annotated[int, Meta(ge=1, le=64)] = 2
    hashing_queue_max: Annotated[int, Meta(ge=0, le=10_000)] = 32
    password_policy: Literal["origin", "nist"] = "origin"  # noqa: S105
    default_permissions: Annotated[tuple[Permission, ...], Meta(max_length=40)] = ()
    redis_prefix: Annotated[str, Meta(min_length=1, max_length=64)] = "daydo:auth:"
    drain_s: Annotated[float, Meta(ge=0, le=60)] = 5.0

    def __repr__(self) -> str:
        return f"AuthConfig(keys={list(self.keys)}, pepper=***, issuer={self.issuer!r}, audience={self.audience!r}, …)"

    def require_secrets(self) -> None:
        """Check keys and pepper.

        Raises:
            ValueError: one is missing, short or obvious; the message says which and how to make one.
        """
        if not self.keys:
            raise ValueError(f'AuthConfig.keys is empty: pass {{"2026-01": secret}}; {_MAKE_ONE}')
        for kid, secret in self.keys.items():
            if not _KID.fullmatch(kid):
                raise ValueError(f"AuthConfig.keys: {kid!r} is no key id; use letters, digits, '.', '_' and '-'")
            _require_strong(f"AuthConfig.keys[{kid!r}]", secret)
        _require_strong("AuthConfig.pepper", self.pepper)


def _require_strong(name: str, secret: str) -> None:
    if len(secret.encode()) < MIN_SECRET_BYTES or len(set(secret)) < _MIN_DISTINCT:
        raise ValueError(f"{name} must be at least {MIN_SECRET_BYTES} random bytes; {_MAKE_ONE}")

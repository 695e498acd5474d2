"""The settings of :class:`daydo_auth.Auth`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta

from daydo_kernel import Config

from .permissions import Grant, Role, RoleName, RoleTable, flaw_of, views_of

MIN_SECRET_BYTES = 32
_MIN_DISTINCT = 8
_KID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FLAWS = {"unknown": "is not among them", "circle": "inherits it in turn"}
_MAKE_ONE = 'make one: python -c "import secrets; print(secrets.token_urlsafe(48))"'


class RoleSpec(Config, frozen=True, kw_only=True):
    """A built-in role: ``RoleSpec(permissions=("quota:*",), inherits=("support",))``."""

    permissions: Annotated[tuple[Grant, ...], Meta(max_length=1_000)] = ()
    inherits: Annotated[tuple[RoleName, ...], Meta(max_length=20)] = ()


class AuthConfig(Config, frozen=True, kw_only=True):
    """How tokens, sessions and passwords are.

    Attributes:
        keys: key id → secret of at least 32 bytes. The first signs, all verify: to change keys put the new one first
            and drop the old one after ``access_ttl_s``.
        pepper: mixed into every password and refresh token, at least 32 bytes, kept outside the database. Changing it
            makes all of them worthless.
        issuer, audience: what a token must say of itself.
        access_ttl_s: life of an access token, and how long a stream is not asked whether its session has expired.
        refresh_ttl_s: how long a session may rest between two refreshes.
        session_ttl_s: how long a session may live at all.
        sessions_per_subject_max: sessions that one subject may have at a time; a new one ends that which has rested
            longest.
        replay_window_s: how long after a rotation the token before it still gets the same successor.
        ticket_ttl_s: life of a ticket.
        clock_skew_s: how far two hosts' clocks may be apart.
        session_store: where refresh tokens are counted: ``redis`` (one call; refreshing fails while Redis is away) or
            ``sql``. Sessions and their end are rows in the database either way.
        session_write_back_s: how often counters in Redis are written to the database, for the day Redis is empty.
        write_backs_max: counters that may wait for that; beyond it the newest are not written.
        revocation_poll_s: how often a worker reads what others have revoked; the bound on what a logout takes to
            reach all of them. Usually Redis carries it at once.
        revocation_keep_s: how long workers remember revocations, at least ``access_ttl_s + clock_skew_s``. A session in
            Redis that was compared with the database longer ago is compared again when it is refreshed.
        sweep_s: how often expired sessions and old revocations are removed, a few batches at a time.
        bcrypt_rounds: log2 of the work; one more doubles it (12: a quarter of a second).
        hashing_workers: threads that hash; more than cores is no use.
        hashing_queue_max: passwords that may wait for a thread; beyond that HashingSaturated.
        password_policy: ``origin`` (8 characters: upper, lower, digit, special) or ``nist`` (15 characters, no rules of
            composition, nothing obvious).
        code_ttl_s: life of a one-time code.
        code_tries: guesses at one code, the right one included.
        code_interval_s: from one code for a login to the next.
        codes_per_login, codes_per_address, codes_per_day: codes within 24 hours for one login, from one address (a /64
            of IPv6; many phones share an IPv4 address), and in all.
        code_wrong_per_address: wrong guesses within 24 hours from one address.
        code_send_timeout_s: how long a sender may take.
        default_permissions: what everybody may do, besides what their roles allow.
        roles: built-in roles by name, the same in all tenants and no row of the table; a tenant may define its own
            of the same name, nobody may change them for all.
        roles_per_subject_max: roles that one subject may have; all their names stand in their tokens.
        permissions_per_role_max: grants that a stored role may have of its own.
        roles_per_tenant_max: roles that may be stored for one tenant.
        roles_max: roles that may be stored at all; every worker keeps them in memory.
        roles_refresh_s: how often a worker reads all roles anew although it heard of no change.
        signature_window_s: how long a signed request is good at most, whatever it says of itself.
        keys_per_subject_max: API keys of one subject that work.
        keys_cached_max: API keys that a worker remembers; others cost a look into the database.
        key_cache_s: how long it does, should no word of a change reach it; also how long known keys outlive a
            database that is away.
        key_use_write_s: how often the last use of keys is written, and told as events.
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
    sessions_per_subject_max: Annotated[int, Meta(ge=1, le=100)] = 50
    replay_window_s: Annotated[float, Meta(ge=0, le=60)] = 10.0
    ticket_ttl_s: Annotated[float, Meta(ge=1, le=300)] = 60.0
    clock_skew_s: Annotated[int, Meta(ge=0, le=300)] = 30
    session_store: Literal["redis", "sql"] = "redis"
    session_write_back_s: Annotated[float, Meta(gt=0, le=60)] = 1.0
    write_backs_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    revocation_poll_s: Annotated[float, Meta(gt=0, le=60)] = 1.0
    revocation_keep_s: Annotated[float, Meta(ge=60, le=86_400)] = 3_600.0
    sweep_s: Annotated[float, Meta(gt=0, le=86_400)] = 60.0
    bcrypt_rounds: Annotated[int, Meta(ge=4, le=16)] = 12
    hashing_workers: Annotated[int, Meta(ge=1, le=64)] = 2
    hashing_queue_max: Annotated[int, Meta(ge=0, le=10_000)] = 32
    password_policy: Literal["origin", "nist"] = "origin"  # noqa: S105
    code_ttl_s: Annotated[float, Meta(ge=30, le=3_600)] = 300.0
    code_tries: Annotated[int, Meta(ge=1, le=10)] = 5
    code_interval_s: Annotated[float, Meta(ge=0, le=3_600)] = 60.0
    codes_per_login: Annotated[int, Meta(ge=1, le=1_000)] = 10
    codes_per_address: Annotated[int, Meta(ge=1, le=100_000)] = 200
    codes_per_day: Annotated[int, Meta(ge=1, le=1_000_000)] = 100_000
    code_wrong_per_address: Annotated[int, Meta(ge=1, le=100_000)] = 200
    code_send_timeout_s: Annotated[float, Meta(gt=0, le=60)] = 5.0
    default_permissions: Annotated[tuple[Grant, ...], Meta(max_length=40)] = ()
    roles: Annotated[dict[RoleName, RoleSpec], Meta(max_length=100)] = {}  # noqa: RUF012 - as above
    roles_per_subject_max: Annotated[int, Meta(ge=1, le=20)] = 16
    permissions_per_role_max: Annotated[int, Meta(ge=1, le=1_000)] = 200
    roles_per_tenant_max: Annotated[int, Meta(ge=1, le=1_000)] = 100
    roles_max: Annotated[int, Meta(ge=1, le=100_000)] = 10_000
    roles_refresh_s: Annotated[float, Meta(gt=0, le=3_600)] = 60.0
    signature_window_s: Annotated[int, Meta(ge=10, le=1_800)] = 300
    keys_per_subject_max: Annotated[int, Meta(ge=1, le=50)] = 20
    keys_cached_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    key_cache_s: Annotated[float, Meta(gt=0, le=3_600)] = 300.0
    key_use_write_s: Annotated[float, Meta(gt=0, le=3_600)] = 60.0
    redis_prefix: Annotated[str, Meta(min_length=1, max_length=64)] = "daydo:auth:"
    drain_s: Annotated[float, Meta(ge=0, le=60)] = 5.0

    @property
    def built_in_roles(self) -> tuple[Role, ...]:
        """``roles`` as roles."""
        return tuple(Role(name, spec.permissions, spec.inherits, is_built_in=True) for name, spec in self.roles.items())

    def __repr__(self) -> str:
        return f"AuthConfig(keys={list(self.keys)}, pepper=***, issuer={self.issuer!r}, audience={self.audience!r}, …)"

    def require_roles(self) -> None:
        """Check what ``roles`` inherit.

        Raises:
            ValueError: a circle, or a role that is not there; the message says where.
        """
        views = list(views_of(self.built_in_roles, RoleTable()).values())
        for name in self.roles:
            if (flaw := flaw_of(views, name)) is not None:
                what, where = flaw
                raise ValueError(f"AuthConfig.roles[{name!r}] inherits {where!r}, which {_FLAWS[what]}")

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

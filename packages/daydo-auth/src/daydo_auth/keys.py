"""API keys: made for a subject, narrowed by scopes, known to every worker, revoked everywhere within a second or so.

A key can never do more than its subject may *now*: it allows what its scopes and the subject's roles both allow, looked
up at each use, so whoever is demoted or disabled takes all their keys along. Nor is one made that is wider than its
subject, for then a promotion would widen it unasked.

What a worker has read of a key it keeps, ``keys_cached_max`` of them at most. The feed drops a key that was revoked; a
subject's epoch tells that its roles have changed, or that it was shut out. An answer that was under way while the feed
dropped something is used but not kept, for it may be from before.
"""

from __future__ import annotations

import hmac
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from daydo_db import Database, Tx, whole
from daydo_kernel import Clock, Event, EventSink, FieldError, Metrics, NotFound, new_id

from .config import AuthConfig
from .errors import AccountDisabled, Forbidden, KeyInvalid, KeyRefused, KeyUnknown
from .feed import Feed
from .key_rows import ApiKey, KeyKind, KeyRows, KeyState
from .key_secrets import KeySecrets
from .key_uses import KeyOutcome, KeyUses
from .model import Principal
from .names import check_names
from .permissions import Permissions, is_grant
from .roles import Roles

MAX_NAME_CHARS: Final = 64
MAX_SCOPES: Final = 40
_DEAD_KEPT: Final = 20
_END_OF_TIME_US: Final = 253_402_300_799_000_000  # of the year 9999


class NewKey(msgspec.Struct, frozen=True):
    """A key that was just made, and its secret, which nobody can show again.

    ``secret`` of a bearer key is all that a client sends; of a signing key it is what it signs with, and ``key.id`` is
    what it names.
    """

    key: ApiKey
    secret: str

    def __repr__(self) -> str:
        return f"NewKey(id={self.key.id!r}, ***)"


class Keys:
    """``auth.keys``: the keys of a subject. Database away: keys that are known here work on for ``key_cache_s``."""

    def __init__(
        self,
        db: Database,
        config: AuthConfig,
        roles: Roles,
        feed: Feed,
        clock: Clock | None,
        host_clock: Clock,
        events: EventSink,
        metrics: Metrics,
        *,
        require_started: Callable[[], None],
    ) -> None:
        self._db = db
        self._config = config
        self._rows = KeyRows(db, clock)
        self._roles = roles
        self._feed = feed
        self._clock = host_clock
        self._events = events
        self._require_started = require_started
        self._secrets = KeySecrets(config.pepper)
        self._uses = KeyUses(db, self._rows, host_clock, events, metrics, config.keys_cached_max)
        self._known: dict[str, tuple[KeyState, int]] = {}
        self._drops = 0
        feed.on("key", self._drop)
        metrics.gauge("keys_known", "API keys that this worker remembers.").cell().follow(lambda: len(self._known))

    # -- managed -------------------------------------------------------------------------------------------------

    async def create(
        self,
        subject: str,
        *,
        name: str,
        scopes: Iterable[str],
        tenant: str = "",
        kind: KeyKind = "bearer",
        expires_at_us: int = 0,
        by: Principal | None = None,
        tx: Tx | None = None,
    ) -> NewKey:
        """A key of ``subject`` that may do what ``scopes`` say; 0 never expires. Show it once, after your commit.

        ``by`` is who asks: they cannot make a key that may do more than they, and a key makes no keys.

        Raises:
            KeyRefused: ``fields`` says what is wrong with name, scopes, kind or expiry, or that there are too many.
            Forbidden: a scope is more than ``subject``, or ``by``, may do.
            PersonRequired: ``by`` came in with a key.
            AccountDisabled: ``subject`` is shut out.
            NotFound: ``by`` is of another tenant.
            ValueError: ``subject`` or ``tenant`` is no name.
        """
        self._require_started()
        check_names(tenant, subject)
        _require_allowed(by, tenant)
        wanted = tuple(sorted(set(scopes)))
        _require_sound(name, wanted, kind)

        async def write(tx: Tx) -> NewKey:
            standing = await self._roles.admit(tx, tenant, subject)
            _require_within(self._roles.permissions(tenant, standing.roles), wanted)
            if by is not None:
                _require_within(by.permissions, wanted)
            now_us, excess = await self._require_room(tx, tenant, subject)
            if expires_at_us and not now_us < expires_at_us <= _END_OF_TIME_US:
                raise _refused("expires_at", "须为将来的时间", "Must be in the future")
            secret, hashed, key_id = self._new_secret(kind)
            key = ApiKey(
                id=key_id,
                tenant=tenant,
                subject=subject,
                kind=kind,
                name=name,
                scopes=wanted,
                created_at_us=now_us,
                expires_at_us=expires_at_us,
            )
            data = {"key_id": key_id, "kind": kind, "scopes": [*wanted], "expires_at_us": expires_at_us}
            with whole(tx):
                if excess:
                    await self._rows.delete(tx, excess)
                await self._rows.insert(tx, key, hashed)
                await self._tell(tx, "key_created", tenant, subject, by, data)
            return NewKey(key, secret)

        return await self._db.run(write, tx=tx)

    async def list(self, subject: str | Principal, *, tenant: str = "") -> list[ApiKey]:
        """The keys of ``subject``, the newest first: all that work, and the last that were revoked or expired."""
        self._require_started()
        name, tenant = _whose(subject, tenant)
        return await self._rows.of(tenant, name)

    async def revoke(
        self,
        subject: str | Principal,
        key_id: str,
        *,
        tenant: str = "",
        by: Principal | None = None,
        tx: Tx | None = None,
    ) -> None:
        """End a key of ``subject``; a second time changes nothing.

        This worker refuses it from the commit on, the others within ``revocation_poll_s``, usually at once.

        Raises:
            KeyUnknown: it is not theirs.
            PersonRequired: ``by``, or the Principal ``subject``, came in with a key.
            NotFound: ``by`` is of another tenant.
        """
        self._require_started()
        asks = subject if isinstance(subject, Principal) else by
        name, tenant = _whose(subject, tenant)
        _require_allowed(asks, tenant)

        async def write(tx: Tx) -> None:
            with whole(tx):
                revoked = await self._rows.revoke(tx, key_id, tenant, name)
                if revoked:
                    await self._feed.write(tx, "key", tenant, key_id)
                    await self._tell(tx, "key_revoked", tenant, name, asks, {"key_id": key_id})
            if revoked is None:
                raise KeyUnknown()

        await self._db.run(write, tx=tx)

    # -- used ----------------------------------------------------------------------------------------------------

    async def prove(self, secret: str) -> Principal:
        """Whom a bearer key speaks for. No I/O for what we did not make, nor for a key that is known here.

        Raises:
            KeyInvalid: forged, revoked, expired, or a key that signs.
            AccountDisabled: its subject is shut out.
            DbError: it is not known here, and the database is away.
        """
        self._require_started()
        presented = self._secrets.read_bearer(secret)
        state = await self._find(presented.id) if presented is not None else None
        if presented is None or state is None or not hmac.compare_digest(state.hashed, presented.hashed):
            self._uses.refused()
            raise KeyInvalid()
        principal = self._admit(state, "bearer")
        self.note(principal, "ok")
        return principal

    # -- for Auth ------------------------------------------------------------------------------------------------

    def signing_secret(self, key_id: str) -> str:
        """What a request in the name of ``key_id`` must be signed with, whether or not there is such a key."""
        return self._secrets.signing_secret(key_id)

    async def signer(self, key_id: str) -> Principal:
        """Whom a signing key speaks for whose signature is genuine. It is no use yet, for the request may be a copy.

        Raises:
            KeyInvalid, AccountDisabled, DbError: as :meth:`prove`.
        """
        state = await self._find(key_id)
        if state is None:
            self._uses.refused()
            raise KeyInvalid()
        return self._admit(state, "signing")

    def owner_of(self, secret: str) -> str | None:
        """:meth:`owner` of a bearer key; None for what we did not make."""
        presented = self._secrets.read_bearer(secret)
        return self.owner(presented.id) if presented is not None else None

    def owner(self, key_id: str) -> str:
        """``tenant/subject`` of a key that is known here, ``key/<id>`` of any other."""
        known = self._known.get(key_id)
        return f"{known[0].key.tenant}/{known[0].key.subject}" if known is not None else f"key/{key_id}"

    def note(self, principal: Principal, outcome: KeyOutcome) -> None:
        """What became of a key's request."""
        self._uses.add(principal.key_id, principal.tenant, principal.subject, outcome)

    async def lives(self, key_ids: Sequence[str]) -> dict[str, int]:
        """How long each of these still works, in µs; one that does not is not among them.

        Raises:
            DbError: the database is away.
        """
        return await self._rows.lives(key_ids)

    async def write_uses(self) -> None:
        """Write and tell the last use of each key."""
        await self._uses.write()

    # -- steps ---------------------------------------------------------------------------------------------------

    async def _require_room(self, tx: Tx, tenant: str, subject: str) -> tuple[int, Sequence[str]]:
        """The time, and which keys to remove for one more: the oldest of those that work no more.

        Raises:
            KeyRefused: there may be no more.
        """
        keys, now_us = await self._rows.lock(tx, tenant, subject)
        if sum(key.works_at(now_us) for key in keys) >= (most := self._config.keys_per_subject_max):
            raise _refused("name", f"最多 {most} 个密钥", f"There may be {most} keys")
        dead = [key.id for key in keys if not key.works_at(now_us)]
        return now_us, dead[: max(0, len(dead) - _DEAD_KEPT)]

    def _new_secret(self, kind: KeyKind) -> tuple[str, bytes, str]:
        """(shown once, what is kept, id)"""
        if kind == "bearer":
            secret, kept = self._secrets.new_bearer()
            return secret, kept.hashed, kept.id
        key_id = new_id("dk")
        return self._secrets.signing_secret(key_id), b"", key_id

    def _admit(self, state: KeyState, kind: KeyKind) -> Principal:
        key, standing = state.key, state.standing
        if key.kind != kind or not key.works_at(self._clock.now_us()):
            self._uses.add(key.id, key.tenant, key.subject, "dead")
            raise KeyInvalid()
        if standing.is_disabled:
            self._uses.add(key.id, key.tenant, key.subject, "disabled")
            raise AccountDisabled()
        return Principal(
            key.tenant,
            key.subject,
            roles=standing.roles,
            permissions=self._roles.permissions(key.tenant, standing.roles) & state.scopes,
            way="key" if kind == "bearer" else "signature",
            key_id=key.id,
            epoch=standing.epoch,
        )

    async def _find(self, key_id: str) -> KeyState | None:
        known = self._known.get(key_id)
        if known is not None and self._is_current(*known):
            return known[0]
        drops = self._drops
        state = await self._rows.read(key_id)
        self._known.pop(key_id, None)
        if state is not None and drops == self._drops:
            self._keep(state)
        return state

    def _is_current(self, state: KeyState, until_us: int) -> bool:
        epoch = self._feed.subject_epoch(state.key.tenant, state.key.subject)
        return (
            state.standing.epoch >= epoch
            and state.read_at_us > self._feed.known_since_us
            and self._clock.now_us() < until_us
        )

    def _keep(self, state: KeyState) -> None:
        if len(self._known) >= self._config.keys_cached_max:
            del self._known[next(iter(self._known))]
        self._known[state.key.id] = state, self._clock.now_us() + round(self._config.key_cache_s * 1e6)

    def _drop(self, _: str, key_id: str, __: int) -> None:
        self._drops += 1
        self._known.pop(key_id, None)

    async def _tell(
        self, tx: Tx, name: str, tenant: str, subject: str, by: Principal | None, data: dict[str, Any]
    ) -> None:
        who = {"by": by.subject} if by is not None else {}
        await self._events.emit(Event(name=f"auth.{name}", tenant=tenant, subject=subject, data=data | who), tx)


def _whose(subject: str | Principal, tenant: str) -> tuple[str, str]:
    return (subject.subject, subject.tenant) if isinstance(subject, Principal) else (subject, tenant)


def _require_allowed(by: Principal | None, tenant: str) -> None:
    if by is not None:
        by.require_person()
        if by.tenant not in ("", tenant):
            raise NotFound()


def _require_within(permissions: Permissions, scopes: Sequence[str]) -> None:
    if (above := next((scope for scope in scopes if not permissions.may(scope)), None)) is not None:
        raise Forbidden(permission=above)


def _require_sound(name: str, scopes: Sequence[str], kind: str) -> None:
    if not 1 <= len(name) <= MAX_NAME_CHARS or any(unicodedata.category(each) in ("Cc", "Cs") for each in name):
        raise _refused("name", f"须为 1 至 {MAX_NAME_CHARS} 个字符", f"Must be 1 to {MAX_NAME_CHARS} characters")
    if not 1 <= len(scopes) <= MAX_SCOPES or not all(map(is_grant, scopes)):
        raise _refused("scopes", f"须为 1 至 {MAX_SCOPES} 个权限", f"Must be 1 to {MAX_SCOPES} permissions")
    if kind not in ("bearer", "signing"):
        raise _refused("kind", "须为 bearer 或 signing", "Must be bearer or signing")


def _refused(field: str, zh: str, en: str) -> KeyRefused:
    return KeyRefused(fields=(FieldError(field, zh, en),))

"""Tickets: what a browser's WebSocket and EventSource send instead of a header, once, within a minute.

A ticket ends up in URLs and so in logs, which is why it dies on first use. Redis holds only its hash. Redis away: no
ticket is made and none is believed; the error is Redis's own.
"""

from __future__ import annotations

import hashlib
import re
import secrets

import msgspec

from daydo_redis import Redis

from .config import AuthConfig
from .errors import TicketInvalid
from .model import Principal
from .permissions import Permissions

_TICKET = re.compile(r"[A-Za-z0-9_-]{43}")


class Held(msgspec.Struct, frozen=True):
    """What a ticket stands for; what the roles permit is looked up when it is used."""

    tenant: str
    subject: str
    session_id: str
    roles: tuple[str, ...]
    proved_at_us: int
    key_id: str
    epoch: int
    within: tuple[str, ...] | None = None
    """What a key narrows the roles to."""

    @classmethod
    def of(cls, principal: Principal, epoch: int) -> Held:
        return cls(
            principal.tenant,
            principal.subject,
            principal.session_id,
            principal.roles,
            principal.proved_at_us,
            principal.key_id,
            epoch,
            tuple(principal.permissions) if principal.key_id else None,
        )

    def principal(self, permissions: Permissions) -> Principal:
        """Whom it stands for, where their roles come to ``permissions`` now."""
        return Principal(
            self.tenant,
            self.subject,
            self.session_id,
            self.roles,
            permissions if self.within is None else permissions & Permissions(self.within),
            "ticket",
            self.proved_at_us,
            self.key_id,
        )


_held_of = msgspec.json.Decoder(Held)


class Tickets:
    def __init__(self, redis: Redis, config: AuthConfig) -> None:
        self._redis = redis
        self._ttl_s = config.ticket_ttl_s
        self._prefix = config.redis_prefix + "ticket:"

    async def issue(self, held: Held) -> str:
        ticket = secrets.token_urlsafe(32)
        await self._redis.set(self._key(ticket), msgspec.json.encode(held), ttl_s=self._ttl_s, only_new=True)
        return ticket

    async def redeem(self, ticket: str) -> Held:
        """Whom the ticket was made for; of several callers exactly one learns it.

        Raises:
            TicketInvalid: unknown, used or expired.
        """
        if not _TICKET.fullmatch(ticket):
            raise TicketInvalid()
        found = await self._redis.take(self._key(ticket))
        if found is None:
            raise TicketInvalid()
        return _held_of.decode(found)

    def _key(self, ticket: str) -> str:
        return self._prefix + hashlib.sha256(ticket.encode()).hexdigest()

"""Tickets: what a browser's WebSocket and EventSource send instead of a header, once, within a minute.

A ticket ends up in URLs and so in logs, which is why it dies on first use. Redis holds only its hash. Redis away: no
ticket is made and none is believed (TicketsUnavailable, 503).
"""

from __future__ import annotations

import hashlib
import re
import secrets

import msgspec

from daydo_redis import Redis, RedisError

from .config import AuthConfig
from .errors import TicketInvalid, TicketsUnavailable
from .model import Principal
from .permissions import Permissions

_TICKET = re.compile(r"[A-Za-z0-9_-]{43}")
_RETRY_AFTER_S = 1.0


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
    def of(cls, principal: Principal) -> Held:
        return cls(
            principal.tenant,
            principal.subject,
            principal.session_id,
            principal.roles,
            principal.proved_at_us,
            principal.key_id,
            principal.epoch,
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
            self.epoch,
        )


_held_of = msgspec.json.Decoder(Held)


class Tickets:
    def __init__(self, redis: Redis, config: AuthConfig) -> None:
        self._redis = redis
        self._ttl_s = config.ticket_ttl_s
        self._prefix = config.redis_prefix + "ticket:"

    async def issue(self, held: Held) -> str:
        """A new ticket for whom ``held`` says.

        Raises:
            TicketsUnavailable: Redis is away.
        """
        ticket = secrets.token_urlsafe(32)
        try:
            await self._redis.set(self._key(ticket), msgspec.json.encode(held), ttl_s=self._ttl_s, only_new=True)
        except RedisError as error:
            raise _unavailable(error) from error
        return ticket

    async def redeem(self, ticket: str) -> Held:
        """Whom the ticket was made for; of several callers exactly one learns it.

        Raises:
            TicketInvalid: unknown, used or expired.
            TicketsUnavailable: Redis is away; the ticket may be used up.
        """
        if not _TICKET.fullmatch(ticket):
            raise TicketInvalid()
        try:
            found = await self._redis.take(self._key(ticket))
        except RedisError as error:
            raise _unavailable(error) from error
        if found is None:
            raise TicketInvalid()
        return _held_of.decode(found)

    def _key(self, ticket: str) -> str:
        return self._prefix + hashlib.sha256(ticket.encode()).hexdigest()


def _unavailable(error: RedisError) -> TicketsUnavailable:
    return TicketsUnavailable(retry_after_s=error.retry_after_s or _RETRY_AFTER_S)

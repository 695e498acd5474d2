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

_TICKET = re.compile(r"[A-Za-z0-9_-]{43}")
_principal_of = msgspec.json.Decoder(Principal)


class Tickets:
    def __init__(self, redis: Redis, config: AuthConfig) -> None:
        self._redis = redis
        self._ttl_s = config.ticket_ttl_s
        self._prefix = config.redis_prefix + "ticket:"

    async def issue(self, principal: Principal) -> str:
        ticket = secrets.token_urlsafe(32)
        await self._redis.set(self._key(ticket), msgspec.json.encode(principal), ttl_s=self._ttl_s, only_new=True)
        return ticket

    async def redeem(self, ticket: str) -> Principal:
        """Whom the ticket was made for; of several callers exactly one learns it.

        Raises:
            TicketInvalid: unknown, used or expired.
        """
        if not _TICKET.fullmatch(ticket):
            raise TicketInvalid()
        found = await self._redis.take(self._key(ticket))
        if found is None:
            raise TicketInvalid()
        return _principal_of.decode(found)

    def _key(self, ticket: str) -> str:
        return self._prefix + hashlib.sha256(ticket.encode()).hexdigest()

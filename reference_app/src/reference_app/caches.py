"""What the service keeps in front of its database, and how each of it stays true.

| space | key | ends |
|---|---|---|
| ``profile`` | tenant and user | in the transaction that writes it: :class:`.accounts.repository.Profiles` |
| ``roles`` | one | in the transaction that defines or drops a role: :class:`RoleNews` |
| ``features`` | the release that shows them | by itself; whoever stores them one day calls ``clear(tx=)`` |

Redis away: profiles and roles are read from the database, features from their source.
"""

from __future__ import annotations

import msgspec

from daydo_auth import RoleSource, RoleTable
from daydo_cache import Cache, CacheError, Policy, Space
from daydo_db import Tx
from daydo_kernel import Event, EventSink

from .accounts.repository import PROFILE_VERSION, ProfileRow
from .images.features import Feature

# Every worker holds the roles compiled, so memory would only be a second, older copy of them.
ROLES = Policy(ttl_s=60.0, local_entries=0, value_max_bytes=8 * 2**20)
_ALL = "all"
_ROLE_EVENTS = ("auth.role_defined", "auth.role_dropped")


class Caches(msgspec.Struct, frozen=True):
    """The spaces of one cache."""

    profiles: Space[ProfileRow]
    roles: Space[RoleTable]
    features: Space[tuple[Feature, ...]]

    @classmethod
    def of(cls, cache: Cache) -> Caches:
        return cls(
            profiles=cache.space("profile", ProfileRow, version=PROFILE_VERSION, ttl_s=300.0),
            roles=cache.space("roles", RoleTable, policy=ROLES),
            features=cache.space("features", tuple[Feature, ...], ttl_s=60.0, grace_s=600.0),
        )


class CachedRoles:
    """A :class:`daydo_auth.RoleSource`: when a role changes one of all workers reads the table, not each of them."""

    def __init__(self, space: Space[RoleTable], table: RoleSource) -> None:
        self._space = space
        self._table = table

    async def load(self) -> RoleTable:
        """The roles as Redis has them, else as the table has them.

        Raises:
            DbError: the table is asked, and cannot be.
        """
        try:
            found = await self._space.get_or_load(_ALL, self._read)
        except CacheError:  # another worker could not load them, or is slow: that says nothing about this one
            found = None
        return found if found is not None else await self._table.load()

    async def _read(self, _: str) -> RoleTable:
        return await self._table.load()


class RoleNews:
    """An event sink in front of another: with a change of roles the cached table ends, in the same transaction."""

    def __init__(self, space: Space[RoleTable], events: EventSink) -> None:
        self._space = space
        self._events = events

    async def emit(self, event: Event, tx: Tx | None = None) -> None:
        if event.name in _ROLE_EVENTS:
            await self._space.invalidate(_ALL, tx=tx)
        await self._events.emit(event, tx)

"""Reads and writes of profiles."""

from __future__ import annotations

from daydo_db import Database, Tx
from daydo_db.piccolo import run

from .tables import Profile


class Profiles:
    """Profiles by id."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, profile: Profile, *, tx: Tx) -> None:
        await run(Profile.insert(profile), tx=tx)

    async def find(self, tenant: str, user_id: str) -> Profile | None:
        query = Profile.objects().where((Profile.tenant == tenant) & (Profile.id == user_id)).first()
        found: Profile | None = await run(query, self._db)
        return found

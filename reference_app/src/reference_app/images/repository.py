"""Reads and writes of uploads."""

from __future__ import annotations

from daydo_db import Database
from daydo_db.piccolo import run

from .tables import Upload


class Uploads:
    """Uploads by owner and id: somebody else's is not found."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, upload: Upload) -> None:
        await run(Upload.insert(upload), self._db)

    async def find(self, tenant: str, subject: str, ids: list[str]) -> dict[str, Upload]:
        ids = [upload_id for upload_id in ids if upload_id.isascii()]  # the column's character set
        if not ids:
            return {}
        owned = (Upload.tenant == tenant) & (Upload.subject == subject) & Upload.id.is_in(ids)
        uploads = await run(Upload.objects().where(owned), self._db)
        return {upload.id: upload for upload in uploads}

    async def owned(self, tenant: str, subject: str, limit: int) -> list[Upload]:
        """Some of a user's, at most ``limit``."""
        owned = (Upload.tenant == tenant) & (Upload.subject == subject)
        found: list[Upload] = await run(Upload.objects().where(owned).limit(limit), self._db)
        return found

    async def remove(self, tenant: str, subject: str, ids: list[str]) -> None:
        """Delete these rows; the files are gone already."""
        owned = (Upload.tenant == tenant) & (Upload.subject == subject) & Upload.id.is_in(ids)
        await run(Upload.delete().where(owned), self._db)

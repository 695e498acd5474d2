"""What a user has here, for an export of their data and for the day they want it gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from daydo_kernel import isoformat
from daydo_pipeline import Owner, Run, Runs
from daydo_pipeline.errors import RunFinished

from .files import Files
from .repository import Uploads

_PAGE = 100
_PAGES_MAX = 1_000
_UPLOADS_MAX = 10_000  # in an export
_BATCH = 500


class ImageBelongings:
    """Uploads, tasks and results of one user."""

    def __init__(self, runs: Runs, uploads: Uploads, files: Files) -> None:
        self._runs = runs
        self._uploads = uploads
        self._files = files

    async def owns(self, tenant: str, subject: str, upload_id: str) -> bool:
        """Whether they have uploaded this."""
        return bool(await self._uploads.find(tenant, subject, [upload_id]))

    async def export(self, tenant: str, subject: str) -> dict[str, Any]:
        """``uploads`` and ``tasks``; the pictures themselves are downloaded one by one."""
        uploads = [
            {
                "upload_id": upload.id,
                "media_type": upload.media_type,
                "size_bytes": upload.size_bytes,
                "created_at": isoformat(upload.created_at_us),
            }
            for upload in await self._uploads.owned(tenant, subject, _UPLOADS_MAX)
        ]
        tasks = [
            {"id": run.id, "feature": run.flow, "status": run.state, "created_at": isoformat(run.created_at_us)}
            async for run in self._all(Owner(tenant, subject))
        ]
        return {"uploads": uploads, "tasks": tasks}

    async def forget(self, tenant: str, subject: str) -> None:
        """Cancel what is under way and delete every picture; that there was a task stays, for the books."""
        owner = Owner(tenant, subject)
        async for run in self._all(owner):
            ended = await self._ended(owner, run)
            if isinstance(ended.output, dict) and ended.output.get("file"):
                self._files.path(ended.output["file"]).unlink(missing_ok=True)
        while uploads := await self._uploads.owned(tenant, subject, _BATCH):
            for upload in uploads:
                self._files.path(f"uploads/{upload.id}").unlink(missing_ok=True)
            await self._uploads.remove(tenant, subject, [upload.id for upload in uploads])

    async def _ended(self, owner: Owner, run: Run) -> Run:
        if run.state not in ("queued", "running"):
            return run
        try:
            return await self._runs.cancel(owner, run.id)
        except RunFinished:
            return await self._runs.get(owner, run.id)

    async def _all(self, owner: Owner) -> AsyncIterator[Run]:
        cursor: str | None = None
        for _ in range(_PAGES_MAX):
            page = await self._runs.list(owner, cursor=cursor, limit=_PAGE)
            for run in page.items:
                yield run
            if (cursor := page.next_cursor) is None:
                return

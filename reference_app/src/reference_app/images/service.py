"""The rules of photo tasks: whose photos, which feature, at what price, and when a result is there."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator
from pathlib import Path

from daydo_db import CommitUnknown
from daydo_kernel import BadRequest, Clock, FieldError, NotFound, Page, SystemClock, new_id
from daydo_pipeline import Owner, Run, RunEvent, Runs

from .config import ImagesConfig
from .errors import ResultNotReady, StoreFull
from .features import Feature
from .files import Files
from .jobs import Expansion, Job
from .repository import Uploads
from .tables import Upload
from .workers import ImageWorkers


class Images:
    """Uploads and tasks of one owner at a time."""

    def __init__(
        self,
        runs: Runs,
        uploads: Uploads,
        files: Files,
        workers: ImageWorkers,
        features: dict[str, Feature],
        config: ImagesConfig,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._runs = runs
        self._uploads = uploads
        self._files = files
        self._workers = workers
        self._config = config
        self._clock = clock or SystemClock()
        self.features = features

    async def keep(self, owner: Owner, photo: bytes) -> Upload:
        """Check a photo and store it.

        Raises:
            ImageError: it is empty, too large, broken, or not a picture we read; nothing is kept.
            StoreFull: the disk is full; nothing is kept.
        """
        upload_id = new_id("upload")
        path = self._files.path(f"uploads/{upload_id}")
        try:
            await asyncio.to_thread(path.write_bytes, photo)
            seen = await self._workers.run("inspect", Job(inputs={"photo": str(path)}))
            upload = Upload(
                id=upload_id,
                tenant=owner.tenant,
                subject=owner.subject,
                media_type=seen.media_type,
                width=seen.width,
                height=seen.height,
                size_bytes=len(photo),
                created_at_us=self._clock.now_us(),
            )
            await self._uploads.add(upload)
        except CommitUnknown:
            raise  # the row may be there, and then it needs its file
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise StoreFull() from error
            raise
        return upload

    async def start(
        self, owner: Owner, feature: str, inputs: dict[str, str], params: dict[str, float], key: str
    ) -> Run:
        """Hold the price and start the task; the same ``key`` returns the same task.

        Raises:
            BadRequest: unknown feature, input or parameter, a missing input, or an upload that is not yours.
            BadExpansion: the parameters of expand grow the picture by nothing.
            QuotaError: the credits do not suffice.
        """
        known = self.features.get(feature)
        if known is None:
            raise BadRequest(fields=(FieldError("feature", "没有这个功能", "There is no such feature"),))
        problems = [*_unknown("inputs", inputs, known.inputs), *_unknown("params", params, known.params)]
        problems += [
            FieldError(f"inputs.{name}", "缺少必填字段", "This field is required")
            for name in known.inputs
            if name not in inputs
        ]
        problems += [
            FieldError(f"params.{name}", "须为 0 到 0.5", "Must be from 0 to 0.5")
            for name, fraction in params.items()
            if not 0 <= fraction <= 0.5
        ]
        uploads = await self._uploads.find(owner.tenant, owner.subject, list(inputs.values()))
        problems += [
            FieldError(f"inputs.{name}", "没有这个上传", "There is no such upload")
            for name, upload_id in inputs.items()
            if upload_id not in uploads
        ]
        if problems:
            raise BadRequest(fields=tuple(problems))
        if known.params:
            Expansion.of(params)
        photos = {name: f"uploads/{upload_id}" for name, upload_id in inputs.items()}
        return await self._runs.start(feature, {**photos, **params}, owner=owner, key=key)

    async def task(self, owner: Owner, task_id: str) -> Run:
        return await self._runs.get(owner, task_id)

    async def tasks(self, owner: Owner, cursor: str | None, limit: int) -> Page[Run]:
        return await self._runs.list(owner, cursor=cursor, limit=limit)

    async def cancel(self, owner: Owner, task_id: str) -> Run:
        return await self._runs.cancel(owner, task_id)

    def events(self, owner: Owner, cursor: str | None) -> AsyncGenerator[RunEvent, None]:
        return self._runs.events(owner, cursor)

    async def result(self, owner: Owner, task_id: str) -> Path:
        """The result's file.

        Raises:
            ResultNotReady: the task has not succeeded.
            NotFound: the file is gone.
        """
        run = await self._runs.get(owner, task_id)
        if run.state != "succeeded" or not isinstance(run.output, dict):
            raise ResultNotReady(state=run.state)
        path = self._files.path(run.output["file"])
        if not path.exists():
            raise NotFound()
        return path


def _unknown(field: str, given: dict[str, str] | dict[str, float], known: tuple[str, ...]) -> list[FieldError]:
    return [FieldError(f"{field}.{name}", "未知字段", "Is not known here") for name in given if name not in known]

"""The local provider: image work on this machine's own processors, under the pipeline's step contract."""

from __future__ import annotations

from typing import Any

import msgspec

from daydo_pipeline import ProviderCall

from .files import Files
from .jobs import Job, Operation
from .workers import ImageWorkers


class LocalProvider:
    """Runs a step by its name (``cutout``, ``erase``, ``expand``) on files named by key.

    Repeating a call writes the same file again, so a retry after a crash costs time and nothing else.
    """

    def __init__(self, workers: ImageWorkers, files: Files) -> None:
        self._workers = workers
        self._files = files

    async def run(self, call: ProviderCall) -> dict[str, Any]:
        """The result's key and size: ``{"file": "results/….png", "width": …, "height": …}``."""
        result = f"results/{call.run_id}.png"
        job = Job(
            inputs={name: str(self._files.path(key)) for name, key in call.inputs.items()},
            params=call.params,
            output=str(self._files.path(result)),
        )
        output = await self._workers.run(msgspec.convert(call.step, Operation), job, call.report)
        return {"file": result, "width": output.width, "height": output.height}

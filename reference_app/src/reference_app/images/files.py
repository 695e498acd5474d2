"""Files by key below one folder; a key is relative, and what does not exist under it cannot be reached."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path

from .jobs import partial

ABANDONED_AFTER_S = 3600.0

_KEY = re.compile(r"[a-z]+/[A-Za-z0-9_]+(\.[a-z]+)?")


class Files:
    """The local disk as a file store: ``uploads/upload_01…``, ``results/run_01….png``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: str) -> Path:
        """Where the file of ``key`` is or shall be; its folder exists.

        Raises:
            ValueError: the key is not ``folder/name[.suffix]``.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a file key")
        path = self._root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def sweep(self) -> None:
        """Remove results that were never finished: a killed service leaves them. Younger ones may be in the making."""
        for path in self._root.glob(partial("*/*")):
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - ABANDONED_AFTER_S:
                    path.unlink()

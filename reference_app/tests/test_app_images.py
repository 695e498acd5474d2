"""The rules of photo tasks, where no request is needed to see them."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from daydo_pipeline import Owner
from reference_app.images.config import ImagesConfig
from reference_app.images.errors import StoreFull
from reference_app.images.files import ABANDONED_AFTER_S, Files
from reference_app.images.service import Images


async def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    """507 and retryable, not an internal error; no half file stays."""

    def half_written(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half_written)
    nothing: Any = None
    images = Images(nothing, nothing, Files(tmp_path), nothing, {}, ImagesConfig())
    with pytest.raises(StoreFull) as refused:
        await images.keep(Owner("main", "user_1"), b"a photo")
    assert (refused.value.status, refused.value.retryable) == (507, True)
    assert list(tmp_path.rglob("upload_*")) == []


@pytest.mark.parametrize("key", ["../etc/passwd", "uploads/../../x", "/etc/passwd", "uploads/", "uploads/a b", ""])
def test_a_key_cannot_leave_the_file_store(tmp_path, key):
    """Keys are made by us, and still not trusted."""
    with pytest.raises(ValueError, match="not a file key"):
        Files(tmp_path).path(key)


def test_results_that_were_never_finished_are_swept(tmp_path):
    """What a killed service left half written goes; what another worker is writing now stays."""
    files = Files(tmp_path)
    left, fresh, whole = (files.path(f"results/{name}.png") for name in ("left", "fresh", "whole"))
    whole.touch()
    for path, age_s in ((left, ABANDONED_AFTER_S + 60), (fresh, 1)):
        part = path.with_name(f"{path.name}.part")
        part.touch()
        os.utime(part, (time.time() - age_s,) * 2)
    files.sweep()
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["fresh.png.part", "whole.png"]

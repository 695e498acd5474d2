"""What goes in and out of the photo routes."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from litestar.datastructures import UploadFile
from msgspec import UNSET, Meta, UnsetType

TaskStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class UploadIn(msgspec.Struct, forbid_unknown_fields=True):
    """One multipart part named ``file``: a JPEG, PNG or WebP picture."""

    file: UploadFile


class UploadOut(msgspec.Struct, kw_only=True):
    """A photo that was checked and kept."""

    upload_id: str
    media_type: str
    width: int
    height: int
    size_bytes: int


class FeatureOut(msgspec.Struct, kw_only=True):
    """What can be done with a photo, and for how many credits."""

    name: str
    title: str
    price: int
    inputs: list[str]
    params: list[str]


class TaskIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A feature, the uploads it works on (input name → upload_id) and its parameters."""

    feature: Annotated[str, Meta(max_length=32)]
    inputs: dict[Annotated[str, Meta(max_length=32)], Annotated[str, Meta(max_length=64)]]
    params: dict[Annotated[str, Meta(max_length=32)], float] = {}


class TaskStep(msgspec.Struct, kw_only=True):
    """One step of a task."""

    name: str
    status: str


class TaskError(msgspec.Struct, kw_only=True):
    """Why a task failed, in the client's language."""

    code: int
    error: str
    message: str


class TaskOut(msgspec.Struct, kw_only=True):
    """A task; ``progress`` goes from 0 to 1. The result is there once it succeeded."""

    id: str
    feature: str
    status: TaskStatus
    progress: float
    steps: list[TaskStep]
    created_at: str
    finished_at: str | UnsetType = UNSET
    error: TaskError | UnsetType = UNSET


class TaskEvent(msgspec.Struct, kw_only=True):
    """One live event: the task's state after it. ``cursor`` resumes a stream after this event."""

    cursor: str
    type: str
    task_id: str
    feature: str
    status: TaskStatus
    progress: float
    at: str
    step: str | UnsetType = UNSET
    error: TaskError | UnsetType = UNSET

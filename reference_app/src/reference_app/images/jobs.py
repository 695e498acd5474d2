"""What a worker is asked and what it answers: the lines that cross the pipe, and nothing heavier to import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from daydo_kernel import FieldError

from .errors import BadExpansion
from .photo import PhotoLimits

Operation = Literal["inspect", "cutout", "erase", "expand"]
OPERATIONS: tuple[str, ...] = get_args(Operation)
Fraction = Annotated[float, Meta(ge=0, le=0.5)]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Files by absolute path: ``inputs`` by name (``photo``; ``mask`` for erase), ``output`` for the result.

    ``params`` are those of :class:`Expansion` for expand; the other operations have none. ``inspect`` writes
    nothing and needs no ``output``.
    """

    inputs: dict[str, str]
    params: dict[str, float] = {}
    output: str = ""


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a job (always a PNG without metadata), or for ``inspect`` the upload as it will be shown."""

    media_type: str
    width: int
    height: int
    size_bytes: int


class Expansion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Margins to add, as fractions of the photo's width (left, right) or height (top, bottom)."""

    left: Fraction = 0.0
    top: Fraction = 0.0
    right: Fraction = 0.0
    bottom: Fraction = 0.0

    @classmethod
    def of(cls, params: dict[str, float]) -> Expansion:
        """``params`` checked.

        Raises:
            BadExpansion: an unknown name, a fraction outside 0..0.5, or no margin at all.
        """
        try:
            expansion = msgspec.convert(params, cls)
        except msgspec.ValidationError as error:
            raise BadExpansion(fields=(FieldError("params", "须为 0 到 0.5 的数", str(error)),)) from None
        if not any(msgspec.structs.astuple(expansion)):
            raise BadExpansion(fields=(FieldError("params", "至少一个大于 0", "At least one is more than 0"),))
        return expansion


def partial(output: str) -> str:
    """Where a result is written before it takes its name; what is found there at a start may go."""
    return f"{output}.part"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One line to a worker."""

    operation: Operation
    job: Job
    limits: PhotoLimits


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The job's result is in place."""

    output: Output


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """An :class:`ImageError`, by number."""

    code: int
    facts: dict[str, Any]
    fields: tuple[FieldError, ...]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A fault of ours, for the log."""

    trace: str


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """The job is under way; ``share`` of it is done, 0 to 1."""

    share: float


Reply = Done | Refused | Failed
Report = Callable[[float], None]

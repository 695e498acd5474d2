"""What goes in and comes out: owners, prices, runs, events. Frozen, and free of anything vendors call their own."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from daydo_kernel import DaydoError

from .errors import StepFailed

JSON = Any
"""None, bool, int, float, str, and lists and string-keyed dicts of them."""

RunPhase = Literal["queued", "running", "succeeded", "failed", "cancelled"]
StepPhase = Literal["waiting", "ready", "running", "succeeded", "failed", "cancelled"]

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
# No spaces: MySQL compares 'a' and 'a ' as equal in these columns.
_IDENTIFIER = re.compile(r"[!-~]{1,64}")
# As long as the subjects of daydo-auth and the accounts of daydo-quota.
_OWNER = re.compile(r"[!-~]{1,128}")


def is_identifier(text: str) -> bool:
    """1 to 64 printable ASCII characters without spaces: what an id, a unit or an idempotency key may be."""
    return _IDENTIFIER.fullmatch(text) is not None


class Owner(msgspec.Struct, frozen=True):
    """Whose runs these are; ``tenant`` may be empty. Every read and write is bounded to one owner.

    Raises:
        ValueError: a part is longer than 128 characters or holds spaces or non-ASCII characters.
    """

    tenant: str
    subject: str

    def __post_init__(self) -> None:
        if not _OWNER.fullmatch(self.subject) or not (self.tenant == "" or _OWNER.fullmatch(self.tenant)):
            raise ValueError(f"{self!r}: tenant and subject take 1 to 128 printable ASCII characters without spaces")


class Cost(msgspec.Struct, frozen=True):
    """The price of one run: ``amount`` integer ``unit``\\ s, reserved at start, charged on success.

    Raises:
        ValueError: the amount is not positive.
    """

    unit: str
    amount: int

    def __post_init__(self) -> None:
        if self.amount <= 0 or not is_identifier(self.unit):
            raise ValueError(
                f"{self!r}: amount is a positive integer, unit a short ASCII name; a free flow has no quota="
            )


class Account(msgspec.Struct, frozen=True):
    """The quota account that pays for a run, in the shape of ``daydo_quota.Account``."""

    tenant: str
    subject: str
    unit: str


class RunError(msgspec.Struct, frozen=True):
    """Why a run failed: the number and name clients switch on, and the words for people."""

    code: int
    name: str
    zh: str
    en: str

    def text(self, locale: str) -> str:
        """The message in ``locale`` (anything that is not ``en…`` reads Chinese)."""
        return self.en if locale.startswith("en") else self.zh

    @classmethod
    def of(cls, error: BaseException, step: str) -> RunError:
        """What a run may tell about ``error``: nothing, unless it is a declared error meant for clients."""
        if not isinstance(error, DaydoError) or error.status == 500:
            error = StepFailed(step=step)
        return cls(error.code, error.name, error.text("zh-CN"), error.text("en"))


class StepState(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a run. ``progress`` 0 to 1; ``attempt`` counts from 1; times in µs UTC."""

    name: str
    state: StepPhase
    progress: float
    attempt: int
    started_at_us: int | None
    finished_at_us: int | None


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it is now. ``output`` is the last step's; ``created`` is False where a key was repeated."""

    id: str
    flow: str
    version: int
    state: RunPhase
    progress: float
    inputs: dict[str, JSON]
    output: JSON
    error: RunError | None
    steps: tuple[StepState, ...]
    created_at_us: int
    finished_at_us: int | None
    created: bool = False


class RunEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One transition of one run, or news of its progress.

    ``name`` is ``run.queued``, ``run.running``, ``run.succeeded``, ``run.failed``, ``run.cancelled``, or
    ``step.running``, ``step.progress``, ``step.succeeded``, ``step.failed``, ``step.cancelled``, ``step.ready``
    (waiting for another attempt). ``state`` and ``progress`` are the run's after it. ``cursor`` resumes a
    stream after this event; an owner's events have gap-free cursors in the order of their commits.
    """

    cursor: str = ""
    name: str
    run_id: str
    flow: str
    state: RunPhase
    progress: float
    at_us: int
    step: str | None = None
    error: RunError | None = None

"""Every transition of a run, decided without I/O and without a clock.

A run and its steps are one value, :class:`RunRow`. Each function here takes the value as it stands, locked,
and returns the value as it shall be, or ``None`` when the caller has no say any more:

    run    queued ─► running ─► succeeded | failed        queued | running ─► cancelled | failed
    step   waiting ─► ready ─► running ─► succeeded | failed
                        ▲────────┘ retry, hand-back, recovery        anything unfinished ─► cancelled

Nothing else changes a run. The store locks the run row, calls one of these, and writes the difference of the
two values in one transaction: changed steps (each by compare-and-set on its fence), the run, the quota
operation (:func:`settlement`) and the events (:func:`facts`). So:

* A step belongs to whoever claimed it last. Every transition of a step adds 1 to its fence; who comes with an
  older fence gets ``None`` and stops. That fences a worker that was paused beyond its lease.
* A run ends once: the terminal states have no way out, and the run row's lock orders all that would end it.
  Therefore a hold is confirmed *or* cancelled, exactly once, in the transaction that ends the run.
* A retry is a new attempt with a new key. A hand-back and a recovery are the same attempt again with the same
  key, because nobody knows what the outside world has already done under it.
* Steps are linear today: completing step n takes 1 from ``deps_left`` of step n + 1, and 0 means ready.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from .errors import RunTimedOut, StepAbandoned
from .values import TERMINAL, Cost, Owner, RunError, RunPhase, StepPhase

Settlement = Literal["confirm", "cancel"]


class StepRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of ``daydo_pipeline_step``; ``output`` and ``error`` are JSON text."""

    n: int
    name: str
    provider: str
    state: StepPhase
    fence: int = 0
    worker_id: str | None = None
    attempt: int = 1
    recoveries: int = 0
    deps_left: int = 0
    wake_at_us: int = 0
    progress: float = 0.0
    output: str | None = None
    error: str | None = None
    started_at_us: int | None = None
    finished_at_us: int | None = None


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of ``daydo_pipeline_run`` with its steps in order."""

    id: str
    owner: Owner
    flow: str
    version: int
    state: RunPhase
    cost: Cost | None
    inputs: str
    output: str | None = None
    error: str | None = None
    created_at_us: int
    deadline_us: int
    finished_at_us: int | None = None
    steps: tuple[StepRow, ...]

    @property
    def progress(self) -> float:
        """0 to 1: the mean of the steps' progress."""
        return sum(step.progress for step in self.steps) / len(self.steps)


def attempt_key(run: RunRow, step: StepRow) -> str:
    """The idempotency key of a step's present attempt: ``run/step/provider/attempt``."""
    return "/".join(part for part in (run.id, step.name, step.provider, str(step.attempt)) if part)


class Fact(NamedTuple):
    """An event to be: its name, and the step it is about."""

    name: str
    step: str | None


def claim(run: RunRow, n: int, *, worker_id: str, now_us: int) -> RunRow | None:
    """A worker takes a ready step; the run is running from now on."""
    step = run.steps[n]
    if run.state in TERMINAL or step.state != "ready" or step.wake_at_us > now_us:
        return None
    started = now_us if step.started_at_us is None else step.started_at_us
    taken = replace(step, state="running", worker_id=worker_id, error=None, started_at_us=started)
    return _with(replace(run, state="running"), taken)


def report(run: RunRow, n: int, fence: int, *, progress: float) -> RunRow | None:
    """The holder says how far it is; progress never goes back."""
    step = _held(run, n, fence)
    if step is None or progress <= step.progress:
        return None
    # Not a transition: the holder keeps its fence.
    return _replace_step(run, replace(step, progress=progress))


def succeed(run: RunRow, n: int, fence: int, *, output: str, now_us: int) -> RunRow | None:
    """The holder delivers: the next step becomes ready, or the run has succeeded."""
    step = _held(run, n, fence)
    if step is None:
        return None
    done = replace(step, state="succeeded", worker_id=None, progress=1.0, output=output, finished_at_us=now_us)
    run = _with(run, done)
    if n + 1 == len(run.steps):
        return replace(run, state="succeeded", output=output, finished_at_us=now_us)
    following = run.steps[n + 1]
    deps_left = following.deps_left - 1
    state: StepPhase = "ready" if deps_left == 0 else "waiting"
    return _with(run, replace(following, state=state, deps_left=deps_left, wake_at_us=now_us))


def fail(run: RunRow, n: int, fence: int, *, error: RunError, now_us: int) -> RunRow | None:
    """The holder gives up: the run has failed."""
    step = _held(run, n, fence)
    return None if step is None else _fail_step(run, step, error, now_us)


def retry(run: RunRow, n: int, fence: int, *, error: RunError, delay_us: int, now_us: int) -> RunRow | None:
    """The holder asks for another attempt after ``delay_us``; a run has no attempts beyond its deadline."""
    step = _held(run, n, fence)
    if step is None:
        return None
    if now_us + delay_us >= run.deadline_us:
        return _fail_step(run, step, RunError.of(RunTimedOut(run_id=run.id), step.name), now_us)
    again = _back(step, wake_at_us=now_us + delay_us, attempt=step.attempt + 1)
    return _with(run, replace(again, error=_encode(error)))


def hand_back(run: RunRow, n: int, fence: int, *, now_us: int) -> RunRow | None:
    """The holder leaves in good order: the same attempt, for anybody, at once."""
    step = _held(run, n, fence)
    return None if step is None else _with(run, _back(step, wake_at_us=now_us))


def recover(run: RunRow, n: int, *, worker_id: str, max_recoveries: int, now_us: int) -> RunRow | None:
    """The holder's lease has expired: the same attempt for anybody, unless this step keeps killing its workers."""
    step = run.steps[n]
    if step.state != "running" or step.worker_id != worker_id:
        return None
    step = replace(step, recoveries=step.recoveries + 1)
    if step.recoveries > max_recoveries:
        error = RunError.of(StepAbandoned(step=step.name, times=step.recoveries), step.name)
        return _fail_step(run, step, error, now_us)
    return _with(run, _back(step, wake_at_us=now_us))


def cancel(run: RunRow, *, now_us: int) -> RunRow | None:
    """The owner changed their mind, before the end."""
    if run.state in TERMINAL:
        return None
    return _close_steps(replace(run, state="cancelled", finished_at_us=now_us), now_us)


def abort(run: RunRow, *, error: RunError, now_us: int) -> RunRow | None:
    """The run can never finish (deadline, missing code): it has failed, whatever its steps were doing."""
    if run.state in TERMINAL:
        return None
    return _close_steps(replace(run, state="failed", error=_encode(error), finished_at_us=now_us), now_us)


def settlement(before: RunRow, after: RunRow) -> Settlement | None:
    """What the transaction that makes ``after`` of ``before`` owes the quota."""
    if after.cost is None or before.state in TERMINAL or after.state not in TERMINAL:
        return None
    return "confirm" if after.state == "succeeded" else "cancel"


def facts(before: RunRow, after: RunRow) -> list[Fact]:
    """What watchers are told: the run's own transition, and steps that start, stop or move on.

    A step that becomes ready or is cancelled without having run is implied by the event beside it.
    """
    told = []
    for old, new in zip(before.steps, after.steps, strict=True):
        if old.state != new.state and "running" in (old.state, new.state):
            told.append(Fact(f"step.{new.state}", new.name))
        elif old.state == new.state and old.progress != new.progress:
            told.append(Fact("step.progress", new.name))
    if before.state == after.state:
        return told
    own = Fact(f"run.{after.state}", None)
    # A run begins before its first step and ends after its last one.
    return [*told, own] if after.state in TERMINAL else [own, *told]


def retry_delay_s(attempt: int, *, base_s: float, max_s: float, jitter: float, asked_s: float | None) -> float:
    """How long to wait after the failed ``attempt`` (from 1): exponential, half of it random.

    ``jitter`` is a random number in [0, 1). What the failing side asked for (``asked_s``) is the least, and
    ``max_s`` bounds both.
    """
    full = min(max_s, base_s * 2.0 ** min(attempt - 1, 30))
    return min(max_s, max(full * (0.5 + jitter / 2), asked_s or 0.0))


def _held(run: RunRow, n: int, fence: int) -> StepRow | None:
    step = run.steps[n]
    return step if step.state == "running" and step.fence == fence else None


def _back(step: StepRow, *, wake_at_us: int, attempt: int | None = None) -> StepRow:
    return replace(
        step, state="ready", worker_id=None, wake_at_us=wake_at_us, attempt=attempt or step.attempt, progress=0.0
    )


def _fail_step(run: RunRow, step: StepRow, error: RunError, now_us: int) -> RunRow:
    text = _encode(error)
    failed = replace(step, state="failed", worker_id=None, error=text, finished_at_us=now_us)
    run = replace(_with(run, failed), state="failed", error=text, finished_at_us=now_us)
    return _close_steps(run, now_us)


def _close_steps(run: RunRow, now_us: int) -> RunRow:
    for step in run.steps:
        if step.state not in TERMINAL:
            run = _with(run, replace(step, state="cancelled", worker_id=None, finished_at_us=now_us))
    return run


def _with(run: RunRow, step: StepRow) -> RunRow:
    """``run`` after a transition of one step: its fence goes up by one."""
    return _replace_step(run, replace(step, fence=step.fence + 1))


def _replace_step(run: RunRow, step: StepRow) -> RunRow:
    return replace(run, steps=(*run.steps[: step.n], step, *run.steps[step.n + 1 :]))


def _encode(error: RunError) -> str:
    return msgspec.json.encode(error).decode()

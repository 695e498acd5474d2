"""Every bound of the engine, in one place."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from daydo_kernel import Config


class RunsConfig(Config, frozen=True, kw_only=True):
    """How :class:`Runs` works.

    Attributes:
        max_parallel: steps this process executes at once; 0 makes it start and watch runs only.
        lease_s: a worker that has not been heard of for so long is dead and its steps are given to others.
        poll_s: how often the database is asked for what other processes have done.
        drain_s: how long an exit waits for running steps before it hands them back.
        backoff_s, backoff_max_s: wait before the second attempt, doubled each time; and its bound.
        max_recoveries: how many workers one step may lose before the run is given up.
        run_deadline_s: a run that has not ended by then fails.
        hold_margin_s: how much longer than the run its hold lives in the quota.
        orphan_s: a ready step whose flow version no running process knows fails its run after so long.
        max_inputs_bytes, max_output_bytes: size of the JSON of a run's inputs, of a step's output.
        max_queued: more ready steps than that, and new runs are refused.
        max_streams: open event streams of this process.
        stream_batch: events read at once per stream.
        progress_s: at most one write of progress per so many seconds.
    """

    max_parallel: Annotated[int, Meta(ge=0, le=1_000)] = 8
    lease_s: Annotated[float, Meta(ge=0.1, le=3_600)] = 15.0
    poll_s: Annotated[float, Meta(ge=0.01, le=60)] = 1.0
    drain_s: Annotated[float, Meta(ge=0.1, le=3_600)] = 10.0
    backoff_s: Annotated[float, Meta(gt=0, le=3_600)] = 0.5
    backoff_max_s: Annotated[float, Meta(gt=0, le=86_400)] = 60.0
    max_recoveries: Annotated[int, Meta(ge=0, le=100)] = 5
    run_deadline_s: Annotated[float, Meta(gt=0, le=30 * 86_400)] = 3_600.0
    hold_margin_s: Annotated[float, Meta(ge=0, le=86_400)] = 600.0
    orphan_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    max_inputs_bytes: Annotated[int, Meta(ge=2, le=1 << 20)] = 16_384
    max_output_bytes: Annotated[int, Meta(ge=2, le=1 << 20)] = 65_536
    max_queued: Annotated[int, Meta(ge=1, le=10_000_000)] = 10_000
    max_streams: Annotated[int, Meta(ge=1, le=1_000_000)] = 2_000
    stream_batch: Annotated[int, Meta(ge=1, le=1_000)] = 100
    progress_s: Annotated[float, Meta(ge=0.01, le=60)] = 0.5

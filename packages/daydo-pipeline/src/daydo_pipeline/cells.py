"""The metric cells of one :class:`Runs`."""

from __future__ import annotations

from collections.abc import Iterable

from daydo_kernel import Metrics

from .flow import Flow

RUN_OUTCOMES = ("started", "succeeded", "failed", "cancelled")
STEP_OUTCOMES = ("succeeded", "failed", "retried", "released", "cancelled")


class Cells:
    """Families with their labels bound; everything known in advance reads 0 from the start.

    Transitions are counted by the process that commits them, so a sum over workers counts each once.
    """

    def __init__(self, metrics: Metrics, flows: Iterable[Flow]) -> None:
        self.runs = metrics.counter("runs_total", "Runs started and ended, by flow and outcome.", ("flow", "outcome"))
        self.steps = metrics.counter("steps_total", "Steps that left a worker.", ("flow", "step", "outcome"))
        self.attempt_seconds = metrics.histogram("attempt_seconds", "Duration of one attempt.", ("flow", "step"))
        self.recovered = metrics.counter("recovered_total", "Steps taken back from dead workers.").cell()
        self.fenced = metrics.counter("fenced_total", "Results refused because the step had another owner.").cell()
        self.unsaved = metrics.counter("commit_retries_total", "Transitions written again after an error.").cell()
        # The database is one, whoever asks it: the greatest of several workers' answers.
        self.ready = metrics.gauge("ready_steps", "Steps waiting for a worker.", merge="max").cell()
        self.ready_age = metrics.gauge("ready_age_seconds", "How long the oldest of them waits.", merge="max").cell()
        self.running = metrics.gauge("running_steps", "Steps this worker executes.").cell()
        self.leased = metrics.gauge("leased_workers", "Workers with a valid lease.").cell()
        self.streams = metrics.gauge("event_streams", "Open event streams.").cell()
        for flow in flows:
            for outcome in RUN_OUTCOMES:
                self.runs.cell(flow.name, outcome)
            for step in flow.steps:
                self.attempt_seconds.cell(flow.name, step.name)
                for outcome in STEP_OUTCOMES:
                    self.steps.cell(flow.name, step.name, outcome)

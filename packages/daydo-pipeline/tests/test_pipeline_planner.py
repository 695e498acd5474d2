"""The planner against random histories: whatever happens in whatever order, a run ends once."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daydo_pipeline import Cost, Owner, RunError, planner
from daydo_pipeline.planner import RunRow, StepRow
from daydo_pipeline.values import TERMINAL

ERROR = RunError(50250, "pipeline.step_failed", "失败", "failed")
DEADLINE = 2_000
WORKERS = st.sampled_from(["w1", "w2"])
STEPS = {"waiting": {"ready", "cancelled"}, "ready": {"running", "cancelled"}}
STEPS["running"] = {"ready", "succeeded", "failed", "cancelled"}
RUNS = {"queued": {"running", "failed", "cancelled"}, "running": {"succeeded", "failed", "cancelled"}}


def new_run(steps: int = 3) -> RunRow:
    return RunRow(
        id="run_1",
        owner=Owner("acme", "u_7"),
        flow="cutout",
        version=1,
        state="queued",
        cost=Cost("credits", 5),
        inputs="{}",
        created_at_us=0,
        deadline_us=DEADLINE,
        steps=tuple(
            StepRow(n=n, name=f"s{n}", provider="", state="waiting" if n else "ready", deps_left=min(n, 1))
            for n in range(steps)
        ),
    )


class Histories(RuleBasedStateMachine):
    """Two workers that come too late again and again, a janitor, and an owner who may cancel."""

    @initialize(steps=st.integers(1, 4))
    def begin(self, steps):
        self.run = new_run(steps)
        self.now_us = 0
        self.settled = []
        self.told = []
        self.tokens = []  # every (n, fence) ever given out

    def become(self, after):
        if after is None:
            return
        before, self.run = self.run, after
        for old, new in zip(before.steps, after.steps, strict=True):
            assert old.state == new.state or new.state in STEPS[old.state]
            assert old.fence <= new.fence
            assert (old.state == new.state) or old.fence < new.fence
        assert before.state == after.state or after.state in RUNS[before.state]
        self.settled += filter(None, [planner.settlement(before, after)])
        self.told += planner.facts(before, after)

    @property
    def ended(self):
        return self.run.state in TERMINAL

    def in_state(self, state):
        return next((step for step in self.run.steps if step.state == state), None)

    def deliver(self, n, fence, action):
        now_us = self.now_us
        more = {
            "succeed": {"output": "1", "now_us": now_us},
            "fail": {"error": ERROR, "now_us": now_us},
            "retry": {"error": ERROR, "delay_us": 50, "now_us": now_us},
            "hand_back": {"now_us": now_us},
            "report": {"progress": now_us / 10_000},
        }[action]
        return getattr(planner, action)(self.run, n, fence, **more)

    @precondition(lambda self: self.in_state("ready"))
    @rule(worker=WORKERS)
    def claim(self, worker):
        step = self.in_state("ready")
        if step.wake_at_us > self.now_us:
            assert planner.claim(self.run, step.n, worker_id=worker, now_us=self.now_us) is None
            self.now_us = step.wake_at_us
        self.become(planner.claim(self.run, step.n, worker_id=worker, now_us=self.now_us))
        assert self.in_state("running").worker_id == worker
        self.tokens.append((step.n, self.run.steps[step.n].fence))

    @precondition(lambda self: self.in_state("running"))
    @rule(action=st.sampled_from(["succeed", "hand_back", "retry", "report", "fail"]))
    def holder_delivers(self, action):
        step = self.in_state("running")
        after = self.deliver(step.n, step.fence, action)
        # A report that brings nothing new is the one refusal a holder may get.
        assert after is not None or action == "report"
        self.become(after)

    @precondition(lambda self: self.in_state("running"))
    @rule(worker=WORKERS)
    def recover(self, worker):
        step = self.in_state("running")
        after = planner.recover(self.run, step.n, worker_id=worker, max_recoveries=2, now_us=self.now_us)
        assert (after is not None) == (step.worker_id == worker)
        self.become(after)

    @precondition(lambda self: not self.ended)
    @rule(how=st.sampled_from(["cancel", "abort"]), sure=st.integers(0, 30))
    def end(self, how, sure):
        if sure == 30:
            more = {"error": ERROR} if how == "abort" else {}
            self.become(getattr(planner, how)(self.run, now_us=self.now_us, **more))
            assert self.ended

    @rule(by=st.integers(1, 100))
    def wait(self, by):
        self.now_us += by

    @invariant()
    def the_late_are_refused(self):
        running = self.in_state("running")
        for n, fence in self.tokens:
            if running is None or (n, fence) != (running.n, running.fence):
                for action in ("succeed", "fail", "retry", "hand_back", "report"):
                    assert self.deliver(n, fence, action) is None

    @invariant()
    def an_end_is_an_end(self):
        if self.ended:
            assert planner.cancel(self.run, now_us=self.now_us) is None
            assert planner.abort(self.run, error=ERROR, now_us=self.now_us) is None
            for step in self.run.steps:
                assert planner.claim(self.run, step.n, worker_id="w1", now_us=self.now_us) is None

    @invariant()
    def books_are_right(self):
        ended = self.run.state in TERMINAL
        assert self.settled == ([] if not ended else ["confirm" if self.run.state == "succeeded" else "cancel"])
        for step in self.run.steps:
            assert (step.worker_id is not None) == (step.state == "running")
            assert (step.output is not None) == (step.state == "succeeded")
            assert not ended or step.state in TERMINAL
        assert ended or any(step.state in ("ready", "running") for step in self.run.steps), "stuck"
        assert sum(step.state in ("ready", "running") for step in self.run.steps) <= 1
        assert (self.run.finished_at_us is not None) == ended
        assert (self.run.error is not None) == (self.run.state == "failed")

    @invariant()
    def watchers_can_follow(self):
        own = [fact.name for fact in self.told if fact.step is None]
        assert own == [f"run.{state}" for state in (["running"] if self.begun else [])] + (
            [f"run.{self.run.state}"] if self.run.state in TERMINAL else []
        )

    @property
    def begun(self) -> bool:
        return any(step.started_at_us is not None for step in self.run.steps)


TestHistories = Histories.TestCase


def test_a_retry_is_a_new_attempt_with_a_new_key():
    """A hand-back and a recovery keep the key, because the outside world may have done the work already."""
    run = planner.claim(new_run(), 0, worker_id="w1", now_us=0)
    first = planner.attempt_key(run, run.steps[0])
    fence = run.steps[0].fence
    back = planner.hand_back(run, 0, fence, now_us=1)
    lost = planner.recover(run, 0, worker_id="w1", max_recoveries=2, now_us=1)
    again = planner.retry(run, 0, fence, error=ERROR, delay_us=10, now_us=1)
    assert planner.attempt_key(back, back.steps[0]) == planner.attempt_key(lost, lost.steps[0]) == first
    assert planner.attempt_key(again, again.steps[0]) != first
    assert (back.steps[0].wake_at_us, again.steps[0].wake_at_us) == (1, 11)
    assert planner.claim(again, 0, worker_id="w1", now_us=10) is None


def test_no_attempt_begins_beyond_the_deadline():
    """A retry that would wake after the run's deadline ends the run now."""
    run = planner.claim(new_run(), 0, worker_id="w1", now_us=0)
    after = planner.retry(run, 0, run.steps[0].fence, error=ERROR, delay_us=DEADLINE, now_us=0)
    assert after.state == "failed"
    assert msgspec.json.decode(after.error)["name"] == "pipeline.run_timed_out"


@given(attempt=st.integers(1, 1_000), jitter=st.floats(0, 1, exclude_max=True), asked=st.none() | st.floats(0, 1e6))
def test_the_wait_before_a_retry_is_bounded(attempt, jitter, asked):
    """At least half the exponential step and what was asked for, never above max_s."""
    delay_s = planner.retry_delay_s(attempt, base_s=0.5, max_s=60, jitter=jitter, asked_s=asked)
    assert min(60, max(0.25, asked or 0)) <= delay_s <= 60


@pytest.mark.parametrize(("attempt", "least", "most"), [(1, 0.25, 0.5), (2, 0.5, 1), (3, 1, 2), (20, 30, 60)])
def test_waits_double(attempt, least, most):
    """0.5 s, 1 s, 2 s, … each with half of it random."""
    ends = [planner.retry_delay_s(attempt, base_s=0.5, max_s=60, jitter=j, asked_s=None) for j in (0, 1)]
    assert ends == [least, most]

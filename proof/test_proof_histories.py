"""Long random histories against the reference model; ``--seed`` repeats them, ``--examples`` says how many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from test_quota_model import History, PlannerUnderTest, running_ledger

SHARDS = range(4)


def explore(under_test: Callable[[], Any], seed: int, examples: int, steps: int) -> None:
    machine = hypothesis.seed(seed)(type("History", (History,), {"under_test": staticmethod(under_test)}))
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("shard", SHARDS)
def test_the_planner_agrees_with_the_model(seed: int, examples: int, shard: int) -> None:
    """One operation at a time, with every invariant checked after each."""
    explore(PlannerUnderTest, seed * len(SHARDS) + shard, examples, steps=50)


@pytest.mark.parametrize("shard", SHARDS)
def test_a_ledger_agrees_with_the_model(database_url: str, seed: int, examples: int, shard: int) -> None:
    """Through SQL, each call by itself or with ``tx=``."""
    with running_ledger(database_url) as under_test:
        explore(under_test, seed * len(SHARDS) + shard, max(1, examples // 10), steps=50)

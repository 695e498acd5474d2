"""The states of one process: all there is without Redis, and a share of it while Redis is away.

At most ``keys_max`` keys are remembered; beyond that the one asked longest ago is forgotten, and starts afresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .planner import Plan, Verdict

Ask = tuple[Plan, str, int]
"""A plan, the full key of its state, the cost."""


class Memory:
    """Decides like ``lua.DECIDE``, in this process."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._states: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._states)

    def decide(self, asks: Sequence[Ask], lease: str, now_us: int) -> tuple[bool, list[Verdict]]:
        """Judge all, charge all or none."""
        states = self._states
        judged = [plan.judge(states.pop(key, None), cost, now_us) for plan, key, cost in asks]
        admitted = True
        for verdict, _ in judged:
            admitted = admitted and verdict.fits
        verdicts = []
        for (plan, key, cost), (verdict, state) in zip(asks, judged, strict=True):
            if admitted:
                verdict, state = plan.charge(state, verdict, cost, lease, now_us)  # noqa: PLW2901
            verdicts.append(verdict)
            if state:
                states[key] = state  # at the end: those at the beginning have not been asked for longest
        self._forget()
        return admitted, verdicts

    def decide_one(self, plan: Plan, key: str, cost: int, lease: str, now_us: int) -> Verdict:
        """The same for one, without loops: most requests have one check, and pass here in microseconds."""
        states = self._states
        verdict, state = plan.judge(states.pop(key, None), cost, now_us)
        if verdict.fits:
            verdict, state = plan.charge(state, verdict, cost, lease, now_us)
        if state:
            states[key] = state
            if len(states) > self._keys_max:
                self._forget()
        return verdict

    def _forget(self) -> None:
        while len(self._states) > self._keys_max:
            del self._states[next(iter(self._states))]

    def forget(self, key: str) -> None:
        """Let ``key`` start afresh."""
        self._states.pop(key, None)

    def renew(self, key: str, lease: str, end_us: int) -> None:
        """Prolong a lease that is still there."""
        leases = self._states.get(key)
        if leases is not None and lease in leases:
            leases[lease] = end_us

    def release(self, key: str, lease: str) -> None:
        """Give a lease back; nothing if it has run out."""
        leases = self._states.get(key)
        if leases is not None and leases.pop(lease, None) is not None and not leases:
            del self._states[key]

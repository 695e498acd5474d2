"""Redis' clock, read between two of its answers.

Several hosts do not agree on the time; they agree on what Redis says. So every record is timed by Redis, and each
process keeps the difference between that and its own monotonic clock, anew with every beat. It is wrong by half a
round trip at most, and by nothing that anybody sets on a host.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from daydo_kernel import Clock


class Timeline:
    """``now_s`` is what this process measures in; Redis is ``ahead_us`` of it. A clock that was passed in replaces
    both."""

    now_s: Callable[[], float]

    def __init__(self, clock: Clock | None) -> None:
        self._clock = clock
        self.ahead_us = 0.0
        self.known = clock is not None
        if clock is None:
            self.now_s = time.monotonic
        else:
            self.now_s = lambda: clock.now_us() / 1e6

    def argument(self) -> str:
        """The time as scripts take it: empty for Redis' own."""
        return "" if self._clock is None else str(self._clock.now_us())

    def heard(self, redis_us: int, asked_s: float) -> None:
        """Redis said ``redis_us`` to a question asked at ``asked_s``."""
        if self._clock is None:
            self.ahead_us = redis_us - (asked_s + self.now_s()) / 2 * 1e6
            self.known = True

    def redis_us(self, at_s: float) -> int:
        """What Redis' clock shows at ``at_s`` of ours."""
        return round(at_s * 1e6 + self.ahead_us)

    def local_s(self, redis_us: int) -> float:
        """When that is by our clock."""
        return (redis_us - self.ahead_us) / 1e6

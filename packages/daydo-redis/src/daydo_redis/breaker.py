"""When to stop asking a server that does not answer. Pure: the time is passed in.

closed --(``failures`` calls in a row without an answer)--> open --(``open_s`` later)--> one probe goes out:
answered → closed, unanswered → open again, given up by its caller → the next call is the probe.

An answer is a sign of life even if it is an error: only silence counts.
"""

from __future__ import annotations

from collections.abc import Callable


class Breaker:
    """``admit`` before a call, ``report`` after it, always both."""

    def __init__(self, failures: int, open_s: float, now_s: Callable[[], float]) -> None:
        self._limit = failures
        self._open_s = open_s
        self._now_s = now_s
        self._failures = 0
        self._open_until_s = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        return self._failures >= self._limit

    def admit(self) -> float:
        """0 when the call may go out, else the seconds after which asking again makes sense."""
        if not self.is_open:
            return 0.0
        wait_s = self._open_until_s - self._now_s()
        if wait_s > 0:
            return wait_s
        if self._probing:
            return self._open_s
        self._probing = True
        return 0.0

    def report(self, answered: bool | None) -> None:
        """Say how an admitted call went; ``None``: its caller gave up before we knew."""
        self._probing = False
        if answered:
            self._failures = 0
        elif answered is False:
            self._failures += 1
            if self.is_open:
                self._open_until_s = self._now_s() + self._open_s

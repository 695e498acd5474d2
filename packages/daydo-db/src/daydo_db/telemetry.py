"""What becomes of statements: counted, timed, and told to whoever listens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

from daydo_kernel import Metrics

from .tx import Result, Statement, Value

_STEP = 1 / 16


class Sent(NamedTuple):
    """One statement that a connection has sent; ``result`` is None where it was given up after ``seconds``."""

    statement: Statement
    args: Sequence[Value]
    seconds: float
    result: Result | None


class Telemetry:
    """Shared by all connections of one database.

    ``commit_s``: how long the server took for a COMMIT lately, in the median, the way to it not counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        statements = metrics.counter("statements_total", "Statements sent, by how they ended.", ("outcome",))
        self._ok, self._failed = statements.cell("ok"), statements.cell("failed")
        self._seconds = metrics.histogram("statement_seconds", "From sending a statement to its last row.").cell()
        kills = metrics.counter("kills_total", "Statements stopped on the server after a cancellation or timeout.")
        self._kills = kills.cell()
        took = "What the server took for a COMMIT lately, in the median, the way to it not counted."
        metrics.gauge("commit_seconds", took, merge="max").cell().follow(lambda: self.commit_s)
        self._listeners: list[tuple[float, Callable[[Sent], None]]] = []
        self._least_s = math.inf
        self.commit_s = 0.0

    @contextmanager
    def listening(self, listener: Callable[[Sent], None], *, least_s: float = 0.0) -> Iterator[None]:
        """Tell ``listener`` of every statement that took ``least_s`` or longer."""
        entry = (least_s, listener)
        self._listeners.append(entry)
        self._find_least()
        try:
            yield
        finally:
            self._listeners.remove(entry)
            self._find_least()

    def done(self, statement: Statement, args: Sequence[Value], seconds: float, result: Result) -> None:
        self._ok.inc()
        self._seconds.observe(seconds)
        if seconds >= self._least_s:
            self._tell(Sent(statement, args, seconds, result))

    def done_all(
        self,
        statements: Sequence[tuple[Statement, Sequence[Value]]],
        results: Sequence[Result],
        ended_s: Sequence[float],
    ) -> None:
        """Those that have a result; ``ended_s`` is when they were sent, then when each was done."""
        for (statement, args), result, (began_s, end_s) in zip(statements, results, pairwise(ended_s), strict=False):
            self.done(statement, args, end_s - began_s, result)
            if statement.verb == "COMMIT":
                self._note_commit(end_s - began_s)

    def _note_commit(self, seconds: float) -> None:
        # The median, by steps: one in a hundred takes a hundred times as long, and says nothing of the next.
        step = 1 + _STEP if seconds > self.commit_s else 1 - _STEP
        self.commit_s = self.commit_s * step or seconds

    def failed(self) -> None:
        self._failed.inc()

    def given_up(self, statement: Statement, args: Sequence[Value], seconds: float) -> None:
        """Cancelled or out of time, and stopped on the server."""
        self._kills.inc()
        self._tell(Sent(statement, args, seconds, None))

    def _find_least(self) -> None:
        self._least_s = min((least_s for least_s, _ in self._listeners), default=math.inf)

    def _tell(self, sent: Sent) -> None:
        for least_s, listener in self._listeners:
            if sent.seconds >= least_s:
                listener(sent)

"""Slow statements: every one counted, one of each kind told with its plan, none of them held up for it.

What listens only counts and puts aside; a task of the database takes it from there, asks for the plan on a connection
of the pool and tells the log and the events. Whatever is in the way of that (a full queue, no free connection, a plan
that takes too long) costs the plan or the report, never the count. Values never leave: neither arguments nor literals.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from daydo_kernel import Event, EventSink, Metrics

from .config import DatabaseConfig
from .connection import Connection
from .errors import DbError
from .fingerprint import Fingerprint, fingerprint
from .plan import Plan, explaining, read_plan
from .telemetry import Sent, Telemetry
from .tx import Dialect

log = logging.getLogger("daydo.db")

# EXPLAIN is ours or a person's. What has no verb is a migration's, and takes as long as the table is large.
_UNWATCHED = frozenset({"EXPLAIN", ""})


class SlowQueries:
    """Of one database; ``connect`` borrows one of its connections."""

    def __init__(
        self,
        dialect: Dialect,
        config: DatabaseConfig,
        metrics: Metrics,
        telemetry: Telemetry,
        events: EventSink,
        connect: Callable[[], AbstractAsyncContextManager[Connection]],
    ) -> None:
        self._dialect = dialect
        self._config = config
        self._telemetry = telemetry
        self._events = events
        self._connect = connect
        self._waiting: asyncio.Queue[tuple[Fingerprint, Sent]] = asyncio.Queue()
        self._told_s: dict[str, float] = {}
        self._counted = metrics.counter(
            "slow_queries_total",
            "Statements that took slow_query_s or longer, or ran out of time.",
            ("fingerprint",),
            max_cells=config.slow_fingerprints_max,
        )

    async def watch(self) -> None:
        """Count and tell, until cancelled; returns at once where ``slow_query_s`` is 0."""
        slow_s = self._config.slow_query_s
        if not slow_s:
            return
        self._waiting = asyncio.Queue(self._config.slow_queue_max)
        self._told_s.clear()
        with self._telemetry.listening(self._hear, least_s=min(slow_s, self._config.statement_timeout_s)):
            while True:
                known, sent = await self._waiting.get()
                try:
                    await self._tell(known, sent)
                except Exception:
                    log.exception("slow statement %s could not be told of", known.id)

    def _hear(self, sent: Sent) -> None:
        """In the caller's path: never waits, never raises."""
        finished_early = sent.result is not None and sent.seconds < self._config.slow_query_s
        if finished_early or sent.statement.verb in _UNWATCHED:
            return
        known = fingerprint(self._dialect.name, sent.statement.text)
        self._counted.cell(known.id).inc()
        now_s = time.monotonic()
        if known.id in self._told_s and now_s < self._told_s[known.id] + self._config.slow_explain_every_s:
            return
        try:
            self._waiting.put_nowait((known, sent))
        except asyncio.QueueFull:
            return  # Counted; the next one of its kind is told.
        self._told_s.pop(known.id, None)  # To the end: the first is the oldest.
        self._told_s[known.id] = now_s
        if len(self._told_s) > self._config.slow_fingerprints_max:
            del self._told_s[next(iter(self._told_s))]

    async def _tell(self, known: Fingerprint, sent: Sent) -> None:
        facts: dict[str, Any] = {
            "fingerprint": known.id,
            "statement": known.text,
            "seconds": round(sent.seconds, 3),
            "given_up": sent.result is None,
        }
        if sent.result is not None:
            facts["rows"] = sent.result.rowcount
        try:
            async with asyncio.timeout(self._config.slow_explain_timeout_s):
                plan = await self._plan(known, sent)
        except (DbError, TimeoutError) as error:
            facts["no_plan"] = type(error).__name__
        else:
            facts["plan"] = [f"{access.table}: {access.how}" for access in plan.accesses]
            facts["scans"], facts["sorts"] = list(plan.scans), plan.sorts
        log.warning("slow statement %s: %.3f s", known.id, sent.seconds, extra={"facts": facts})
        await self._events.emit(Event(name="db.slow_query", data=facts))

    async def _plan(self, known: Fingerprint, sent: Sent) -> Plan:
        explain = explaining(self._dialect.name, sent.statement)
        if explain is None:  # COMMIT, say.
            return Plan()
        async with self._connect() as connection:
            return read_plan(self._dialect.name, known.text, await connection.execute(explain, sent.args))

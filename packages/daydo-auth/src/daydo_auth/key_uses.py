"""The last use of each key, counted in memory and written now and then: a use is no write of its own.

Every ``key_use_write_s`` each key that was used since then is written once, with one event that says how often, in one
transaction. A crash loses what was counted since the last time; a database that is away, nothing.
"""

from __future__ import annotations

import logging
from typing import Final, Literal

import msgspec

from daydo_db import Database, DbError, Tx
from daydo_kernel import Clock, Event, EventSink, Metrics

from .key_rows import KeyRows

log = logging.getLogger("daydo.auth")

KeyOutcome = Literal["ok", "invalid", "dead", "disabled", "replayed"]

_OUTCOMES: Final[tuple[KeyOutcome, ...]] = ("ok", "invalid", "dead", "disabled", "replayed")
_BATCH: Final = 200


class KeyUse(msgspec.Struct):
    """What one key was used for since the last time it was written."""

    tenant: str
    subject: str
    times: int = 0
    used_at_us: int = 0


class KeyUses:
    """Uses by key and outcome; at most ``known_max`` of these wait, further keys are counted in the metric alone."""

    def __init__(
        self, db: Database, rows: KeyRows, clock: Clock, events: EventSink, metrics: Metrics, known_max: int
    ) -> None:
        self._db = db
        self._rows = rows
        self._clock = clock
        self._events = events
        self._known_max = known_max
        self._waiting: dict[tuple[str, KeyOutcome], KeyUse] = {}
        outcomes = metrics.counter("keys_total", "Uses of API keys by how they ended.", ("outcome",))
        self._outcomes = {outcome: outcomes.cell(outcome) for outcome in _OUTCOMES}

    def refused(self) -> None:
        """Something that is no key of ours was shown; nobody's, so nobody is told."""
        self._outcomes["invalid"].inc()

    def add(self, key_id: str, tenant: str, subject: str, outcome: KeyOutcome) -> None:
        """One use of a key that is genuine."""
        self._outcomes[outcome].inc()
        use = self._waiting.get((key_id, outcome))
        if use is None:
            if len(self._waiting) >= self._known_max:
                return
            use = self._waiting[key_id, outcome] = KeyUse(tenant, subject)
        use.times += 1
        use.used_at_us = max(use.used_at_us, self._clock.now_us())

    async def write(self) -> None:
        """Write and tell what has waited. A database that is away is worth a line; then it waits for the next time."""
        waiting, self._waiting = self._waiting, {}
        try:
            while waiting:
                batch = {each: waiting[each] for each in sorted(waiting)[:_BATCH]}
                await self._db.run(lambda tx: self._write(tx, batch))  # noqa: B023 - runs in this turn
                for each in batch:
                    del waiting[each]
        except DbError as error:
            log.warning("the last use of %s API keys cannot be written: %s", len(waiting), error)
        finally:
            self._put_back(waiting)

    async def _write(self, tx: Tx, batch: dict[tuple[str, KeyOutcome], KeyUse]) -> None:
        used = [(key_id, use.used_at_us) for (key_id, outcome), use in batch.items() if outcome == "ok"]
        if used:
            await self._rows.write_uses(tx, used)
        for (key_id, outcome), use in batch.items():
            data = {"key_id": key_id, "times": use.times} | ({} if outcome == "ok" else {"why": outcome})
            name = "auth.key_used" if outcome == "ok" else "auth.key_refused"
            await self._events.emit(Event(name=name, tenant=use.tenant, subject=use.subject, data=data), tx)

    def _put_back(self, waiting: dict[tuple[str, KeyOutcome], KeyUse]) -> None:
        for each, use in waiting.items():
            since = self._waiting.setdefault(each, KeyUse(use.tenant, use.subject))
            since.times += use.times
            since.used_at_us = max(since.used_at_us, use.used_at_us)

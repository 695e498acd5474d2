"""For tests, ours and yours: a clock you set and a sink you can read."""

from __future__ import annotations

from typing import Any

from .events import Event


class ManualClock:
    """Stands still until told otherwise: ``ManualClock()``, ``clock.advance(30)``."""

    def __init__(self, now_us: int = 1_700_000_000_000_000) -> None:
        self._now_us = now_us

    def now_us(self) -> int:
        return self._now_us

    def advance(self, seconds: float) -> None:
        self._now_us += round(seconds * 1_000_000)


class RecordedEvents:
    """An :class:`daydo_kernel.EventSink` that keeps what it was told, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def emit(self, event: Event, tx: Any = None) -> None:
        if tx is not None:
            tx.after_commit(lambda: self.events.append(event))
        else:
            self.events.append(event)

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]

"""Which statement is to be hurt, and how; the same for a server behind a relay and for a SQLite file."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum


class Fault(Enum):
    """What can happen to a statement; each is carried out, not pretended."""

    DEADLOCK = "the server has rolled the transaction back (1213)"
    LOCK_TIMEOUT = "this statement alone was undone (1205); the transaction and its locks are still there"
    STOPPED = "the server stopped the statement at a limit of time (1317)"
    CUT_BEFORE = "the connection broke before the server heard of the statement (2006, 2013)"
    CUT_AFTER = "the server carried the statement out, then the connection broke (2013)"
    SILENT = "the server carried the statement out, its answer never comes, and the client's patience ends"
    CANCELLED = "the task that asked was cancelled while the statement was carried out"


class Aim:
    """A fault for the statement number ``at`` (from 0) that comes by; with -1 for none, to see what comes."""

    def __init__(self, fault: Fault, at: int, cancel: Callable[[], object] = lambda: None) -> None:
        self.fault = fault
        self.cancel = cancel
        self.seen: list[str] = []
        self.hit = ""
        self._at = at

    def hits(self, statement: str) -> bool:
        """Whether it is this one."""
        self.seen.append(" ".join(statement.split()))
        if len(self.seen) - 1 != self._at:
            return False
        self.hit = self.seen[-1]
        return True

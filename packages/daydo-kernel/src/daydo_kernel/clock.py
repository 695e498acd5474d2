"""Time, passed in.

Nouns take ``clock=None``: then time is the *database's*, read in the packet that locks, because the clocks
of several application hosts disagree and money must not. A passed clock replaces it, in tests.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time in microseconds since 1970-01-01 UTC."""

    def now_us(self) -> int: ...


class SystemClock:
    """This host's clock, for what never decides about money: logs, tokens, timestamps of answers."""

    def now_us(self) -> int:
        return time.time_ns() // 1000


def isoformat(now_us: int) -> str:
    """``1700000000123456`` → ``2023-11-14T22:13:20.123Z``."""
    moment = datetime.fromtimestamp(now_us // 1_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{now_us // 1000 % 1000:03d}Z"

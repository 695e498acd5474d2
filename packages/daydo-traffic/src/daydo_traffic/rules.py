"""The rules: data, from a configuration file or an admin page. Times are seconds, limits are units (requests).

As JSON each carries its ``kind``: ``{"kind": "window", "limit": 5, "period_s": 60}``.
"""

from __future__ import annotations

import math
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Meta

from daydo_kernel import Config

US = 1_000_000
# Lua counts in doubles, which are whole numbers up to 2**53; a sum of two such levels must stay below that.
EXACT_MAX = 2**52
WINDOW_LIMIT_MAX = 10_000

Limit = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Period = Annotated[float, Meta(ge=0.001, le=31_622_400)]


class Bursty(Config, frozen=True, kw_only=True, tag_field="kind", tag="bursty"):
    """A token bucket (GCRA): ``limit`` units a period on average, ``burst`` of them at once (0: ``limit``).

    Constant memory a key. In any stretch of time t at most ``burst + t × limit ÷ period_s`` units are let in; so in
    one period up to twice the limit, if it began with a full bucket. Where that is too much: :class:`Window`.
    """

    limit: Limit
    period_s: Period
    burst: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0

    @property
    def burst_units(self) -> int:
        return self.burst or self.limit

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_exact(self.limit, self.period_s, self.burst_units, 0)


class Paced(Config, frozen=True, kw_only=True, tag_field="kind", tag="paced"):
    """A leaky bucket (GCRA): one unit every ``period_s ÷ limit``, never two together.

    A request that comes early is refused, unless its turn is at most ``wait_max_s`` away: then it is let in and told
    how long to wait (``Decision.wait_s``; ``enforce`` and ``admit`` wait for it). For calls to a vendor that wants
    them evenly spaced.
    """

    limit: Limit
    period_s: Period
    wait_max_s: Annotated[float, Meta(ge=0, le=3_600)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_exact(self.limit, self.period_s, self.limit, self.wait_max_s)


class Window(Config, frozen=True, kw_only=True, tag_field="kind", tag="window"):
    """A sliding window: in **every** stretch of ``period_s`` at most ``limit`` units, exactly.

    It remembers each unit it let in, hence the bound on ``limit``. For log-ins, codes, whatever is attacked.
    """

    limit: Annotated[int, Meta(ge=1, le=WINDOW_LIMIT_MAX)]
    period_s: Period


class Concurrent(Config, frozen=True, kw_only=True, tag_field="kind", tag="concurrent"):
    """At most ``limit`` under way at once, over all processes. Only ``admit`` asks it, for it has an end.

    Who is under way holds a lease, renewed while it lasts; after a crash it frees itself within ``lease_s``.
    """

    limit: Annotated[int, Meta(ge=1, le=WINDOW_LIMIT_MAX)]
    lease_s: Annotated[float, Meta(ge=3, le=3_600)] = 60.0


class Daily(Config, frozen=True, kw_only=True, tag_field="kind", tag="daily"):
    """At most ``limit`` units from midnight to midnight in ``zone`` (an IANA name), daylight saving included."""

    limit: Limit
    zone: Annotated[str, Meta(min_length=1, max_length=64)] = "Asia/Shanghai"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            ZoneInfo(self.zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"Daily.zone: {self.zone!r} is no IANA time zone, such as Asia/Shanghai") from None


Rule = Bursty | Paced | Window | Concurrent | Daily


def drip(limit: int, period_s: float) -> tuple[int, int]:
    """``limit`` units a period in whole numbers: a unit weighs ``unit``, and ``drain`` of that goes every µs.

    7 a minute is one every 8571428.571… µs; as (60000000, 7) nothing is rounded.
    """
    period_us = round(period_s * US)
    common = math.gcd(limit, period_us)
    return period_us // common, limit // common


def _check_exact(limit: int, period_s: float, burst: int, wait_s: float) -> None:
    unit, drain = drip(limit, period_s)
    if unit * burst + round(wait_s * US) * drain > EXACT_MAX:
        raise ValueError(
            f"{limit} in {period_s} s cannot be counted exactly; use a smaller burst, a shorter wait or rounder numbers"
        )

"""Four processes attack one key at once, by the clock of Redis."""

from __future__ import annotations

import pytest

from daydo_traffic import Bursty, Window
from daydo_traffic.testing import attack


async def test_not_one_too_many(redis_server_url: str | None) -> None:
    """However many ask, exactly the limit is let in."""
    if redis_server_url is None:
        pytest.skip("processes share a server, and --embedded leaves servers out")
    result = await attack(redis_server_url, Window(limit=150, period_s=600), seconds=0.4)
    assert result.asked > result.admitted
    assert result.admitted == 150


async def test_rates_hold_to_the_unit(redis_server_url: str | None) -> None:
    """What is let in over a time is at most the burst and what has drained in it, fractions counted."""
    if redis_server_url is None:
        pytest.skip("processes share a server, and --embedded leaves servers out")
    result = await attack(redis_server_url, Bursty(limit=700, period_s=3, burst=20), seconds=0.6)
    assert 20 < result.admitted <= 20 + result.seconds * 700 / 3

"""Switches: set by configuration, by people, by breakers."""

from __future__ import annotations

import pytest

from daydo_kernel import render
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_redis import Redis, RedisError
from daydo_redis.testing import eventually
from daydo_traffic import (
    Breaker,
    BreakerConfig,
    FeatureOff,
    Guard,
    Switch,
    Switches,
    SwitchesConfig,
    SwitchUnknown,
)

NOBODY = "redis://127.0.0.1:1"
OFF = Switch(mode="off", answer_zh="试衣维护中，明早恢复。", answer_en="Try-on is back tomorrow.", retry_after_s=600)
CONFIG = SwitchesConfig(switches={"tryon": Switch(), "cutout": Switch(mode="reduced"), "swap": OFF}, refresh_s=0.02)


async def test_require_says_the_stated_answer() -> None:
    """On goes on, reduced says so, off refuses with 503, Retry-After and the switch's own words in both languages."""
    async with Switches(None, CONFIG) as switches:
        assert (switches.require("tryon"), switches.require("cutout")) == ("on", "reduced")
        with pytest.raises(FeatureOff) as off:
            switches.require("swap")
        status, headers, body = render(off.value, "zh-CN")
        assert (status, headers["retry-after"]) == (503, "600")
        assert "试衣维护中" in body.decode()
        assert off.value.text("en") == "Try-on is back tomorrow."
        with pytest.raises(SwitchUnknown):
            switches.require("nix")


async def test_no_words_of_its_own() -> None:
    """A switch that states nothing has a general answer."""
    async with Switches(None, SwitchesConfig(switches={"x": Switch(mode="off")})) as switches:
        with pytest.raises(FeatureOff, match=r"\(x\) is switched off"):
            switches.require("x")


async def test_a_change_reaches_all_processes(redis: Redis) -> None:
    """At once here, within refresh_s elsewhere; and back."""
    events = RecordedEvents()
    async with Switches(redis, CONFIG, events=events) as here, Switches(redis, CONFIG) as there:
        await here.change("tryon", OFF, reason="vendor down")
        assert here.mode("tryon") == "off"
        await eventually(lambda: there.mode("tryon") == "off")
        assert (await there.health()).detail == {"tryon": "off", "cutout": "reduced", "swap": "off"}
        await there.restore("tryon")
        await eventually(lambda: here.mode("tryon") == "on")
    assert events.names == ["traffic.switch_changed"]
    assert events.events[0].data["reason"] == "vendor down"


async def test_redis_away() -> None:
    """What holds goes on to hold, health says that changes are not heard, and a change is refused."""
    async with Redis(NOBODY) as redis, Switches(redis, CONFIG) as switches:
        assert switches.require("tryon") == "on"
        assert (await switches.health()).status == "degraded"
        with pytest.raises(RedisError):
            await switches.change("tryon", OFF)
        assert switches.mode("tryon") == "on"


async def test_a_breaker_turns_a_feature_off(clock: ManualClock) -> None:
    """While it is open, and not longer: half-open the feature is on again, or the probes would never come."""
    breaker = Breaker("vendor", BreakerConfig(calls_min=1, open_s=5), clock=clock)
    guard = Guard("other")
    async with Switches(None, CONFIG) as switches:
        switches.follow("tryon", breaker)
        switches.follow("tryon", guard, "reduced")

        async def broken() -> None:
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await breaker.call(broken)
        assert switches.mode("tryon") == "off"
        assert (await switches.health()).status == "degraded"
        clock.advance(5)
        assert switches.require("tryon") == "on"
        assert (await switches.health()).status == "ok"

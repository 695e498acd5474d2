"""The shedder: who is let in at which pressure, and that it measures the loop."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_kernel import NotStarted
from daydo_redis.testing import eventually
from daydo_traffic import Overloaded, Priority, Shedder, ShedderConfig

CONFIG = ShedderConfig(
    patience_s=0, lag_begin_s=0, lag_max_s=9, in_flight_begin=0, in_flight_max=1_000, admit_share=0.1
)


def pressed(lag_s: float) -> Shedder:
    shedder = Shedder(CONFIG)
    shedder._running = True
    shedder._lag_s = lag_s
    return shedder


def share(shedder: Shedder, priority: Priority) -> float:
    admitted = 0
    for _ in range(1_000):
        try:
            with shedder.admit(priority):
                admitted += 1
        except Overloaded:
            pass
    return admitted / 1_000


@pytest.mark.parametrize(
    ("lag_s", "shares"),
    [
        (0, (1, 1, 1, 1)),
        (1.5, (0.5, 1, 1, 1)),
        (3, (0.1, 1, 1, 1)),
        (4.5, (0.1, 0.5, 1, 1)),
        (7.5, (0.1, 0.1, 0.5, 1)),
        (9, (0.1, 0.1, 0.1, 1)),
        (900, (0.1, 0.1, 0.1, 1)),
    ],
)
def test_doors_close_one_after_the_other(lag_s: float, shares: tuple[float, ...]) -> None:
    """The free ones first, the paying ones last, the critical never; and a share of each is always let in."""
    found = [share(pressed(lag_s), priority) for priority in Priority]
    assert found == pytest.approx(shares, abs=0.003)


def test_requests_under_way_are_pressure_too() -> None:
    """They close the doors as lag does, however quick the loop is."""
    shedder = pressed(0)
    for _ in range(500):
        shedder.enter(Priority.CRITICAL)
    assert share(shedder, Priority.LOW) == pytest.approx(0.1, abs=0.003)
    assert share(shedder, Priority.HIGH) == 1
    for _ in range(500):
        shedder.leave()
    assert share(shedder, Priority.LOW) == 1


def test_who_tries_is_told() -> None:
    """Without an error, but counted as ever; who was refused has nothing to leave."""
    shedder = pressed(7.5)
    told = [shedder.try_enter(Priority.HIGH) for _ in range(100)]
    assert shedder._in_flight == sum(told) == 50
    assert [cell[Priority.HIGH].value for cell in (shedder._admitted, shedder._shed)] == [50, 50]
    assert all(shedder.try_enter(Priority.CRITICAL) for _ in range(100))


def test_a_flood_does_not_fill_the_house() -> None:
    """At in_flight_max a share of those that leave is let in, not of those that come: a tenth of a flood is a flood."""
    shedder = pressed(900)
    for _ in range(1_000):
        shedder.enter(Priority.CRITICAL)
    assert share(shedder, Priority.HIGH) == 0
    admitted = 0
    for _ in range(100):
        shedder.leave()
        shedder.enter(Priority.CRITICAL)
        admitted += share(shedder, Priority.HIGH) > 0
    assert admitted == pytest.approx(10, abs=1)


def test_a_visit_ends_once() -> None:
    """Whoever ends it, and whoever it was handed over to, in whatever order."""
    shedder = pressed(0)
    visit = shedder.admit(Priority.HIGH)
    taken = visit.hand_over()
    visit.leave()
    assert (shedder._in_flight, taken.priority) == (1, Priority.HIGH)
    taken.leave()
    taken.leave()
    assert shedder._in_flight == 0
    late = visit.hand_over()
    assert shedder._in_flight == 1, "its server had let go of it, but the work begins"
    late.leave()
    assert shedder._in_flight == 0


@given(st.lists(st.tuples(st.sampled_from(list(Priority)), st.floats(0, 20)), max_size=200))
def test_in_flight_is_never_wrong(asked: list[tuple[Priority, float]]) -> None:
    """Whoever is refused was never counted; whoever was let in is counted once, errors or not."""
    shedder, inside = pressed(0), 0
    for priority, lag_s in asked:
        shedder._lag_s = lag_s
        try:
            shedder.enter(priority)
        except Overloaded:
            pass
        else:
            inside += 1
        assert shedder._in_flight == inside
    for _ in range(inside):
        shedder.leave()
    assert shedder._in_flight == 0


async def test_it_measures_the_loop() -> None:
    """A loop that is held up has lag, health and metrics say so, and it passes."""
    async with Shedder(ShedderConfig(patience_s=0, probe_s=0.001, lag_begin_s=0.02, lag_max_s=0.2)) as shedder:
        async with asyncio.timeout(10):
            while (await shedder.health()).status == "ok":
                time.sleep(0.1)  # noqa: ASYNC251 (the held-up loop is what is tested)
                await asyncio.sleep(0.002)
            assert shedder.pressure > 0
            await eventually(lambda: shedder.pressure == 0)
    assert (await shedder.health()).status == "down"


async def test_left_it_refuses_and_measures_no_more() -> None:
    """Before and after ``async with`` it raises NotStarted, and leaves no timer behind."""
    shedder = Shedder()
    with pytest.raises(NotStarted):
        shedder.enter()
    async with shedder:
        timer = shedder._timer
    assert timer is not None
    assert shedder._timer is not None
    assert shedder._timer.cancelled()


def test_bounds_in_order() -> None:
    """What begins after its end is refused."""
    with pytest.raises(ValueError, match="lag_begin_s < lag_max_s"):
        ShedderConfig(lag_begin_s=1, lag_max_s=1)
    with pytest.raises(ValueError, match="burst_max"):
        ShedderConfig(in_flight_max=100, burst_max=99, in_flight_begin=1)


def test_a_crowd_is_met_with_patience_and_a_siege_is_not() -> None:
    """Pressure refuses nobody before it has lasted; then it does, and at once when it comes back before it is calm."""
    shedder = Shedder(ShedderConfig(patience_s=1.0, in_flight_begin=0, in_flight_max=100, burst_max=150))
    shedder._running = True
    visits = [shedder.admit() for _ in range(120)]
    assert shedder.pressure == 0
    shedder._endure(0.6)
    shedder._endure(0.5)
    assert shedder.pressure == 1
    with pytest.raises(Overloaded):
        shedder.admit()
    for visit in visits:
        visit.leave()
    shedder._endure(0.9)
    again = [shedder.admit() for _ in range(30)]
    assert shedder.pressure > 0
    for visit in again:
        visit.leave()
    shedder._endure(1.1)
    for _ in range(30):
        shedder.admit()
    assert shedder.pressure == 0


def test_there_is_a_crowd_that_is_too_big_at_any_time() -> None:
    """Beyond ``burst_max`` under way nobody waits to see whether it lasts."""
    shedder = Shedder(ShedderConfig(in_flight_begin=0, in_flight_max=10, burst_max=20, admit_share=0.001))
    shedder._running = True
    for _ in range(20):
        shedder.enter()
    with pytest.raises(Overloaded):
        shedder.enter(Priority.HIGH)
    shedder.enter(Priority.CRITICAL)

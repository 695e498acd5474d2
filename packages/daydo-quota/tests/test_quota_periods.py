"""When periods begin and end: months that are short, clocks that jump, and time that is tiled whatever they do."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daydo_quota import BadCalendar
from daydo_quota.periods import Every, Period, clock_of, period_at

EVERY = st.sampled_from(["day", "week", "month"])
ZONES = st.sampled_from(
    [
        "Asia/Shanghai",
        "Europe/Berlin",
        "America/New_York",
        "America/Sao_Paulo",  # until 2019 its clocks jumped at midnight
        "America/Havana",  # set back from 01:00, so midnight comes twice
        "Australia/Lord_Howe",  # by half an hour
        "America/St_Johns",  # until 2011 at one minute past midnight, into yesterday
        "Africa/Monrovia",  # in 1972 by 44.5 minutes, at midnight
        "Pacific/Apia",  # went without a whole Friday
        "UTC",
    ]
)
# From 1970 to 2100, in microseconds.
MOMENTS = st.integers(0, 4_102_444_800_000_000)


def us(text: str, zone: str = "Asia/Shanghai", fold: int = 0) -> int:
    """The moment at which the clock of ``zone`` shows ``text``."""
    at = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def on(text: str, every: Every, zone: str = "Asia/Shanghai", start: str | None = None) -> tuple[str, str]:
    """(name, its hours) of the period in which ``zone``'s clock shows ``text``."""
    period = period_at(us(text, zone), every, zone, None if start is None else us(start, zone))
    return period.name, f"{(period.end_us - period.start_us) / 3_600_000_000:g} h"


@pytest.mark.parametrize(
    ("every", "begins", "ends"),
    [
        ("day", "2026-03-04T00:00", "2026-03-05T00:00"),
        ("week", "2026-03-02T00:00", "2026-03-09T00:00"),
        ("month", "2026-03-01T00:00", "2026-04-01T00:00"),
    ],
)
def test_a_calendar_period_begins_at_midnight_there(every: Every, begins: str, ends: str) -> None:
    """A day at 00:00, a week on Monday, a month on the first; its first moment is in it, its end is the next one's."""
    period = period_at(us("2026-03-04T15:30"), every, "Asia/Shanghai")
    assert period == (us(begins), us(ends), begins[:10])
    assert period_at(us(begins), every, "Asia/Shanghai") == period
    assert period_at(us(begins) - 1, every, "Asia/Shanghai").end_us == us(begins)
    assert period_at(us(ends), every, "Asia/Shanghai").start_us == us(ends)


def test_a_month_has_as_many_days_as_it_has() -> None:
    """Leap years and the ends of years included."""
    days = [on(text, "month") for text in ("2024-02-29T12:00", "2025-02-28T12:00", "2100-02-01T00:00")]
    assert days == [("2024-02-01", "696 h"), ("2025-02-01", "672 h"), ("2100-02-01", "672 h")]
    assert on("2025-12-31T23:59", "month") == ("2025-12-01", "744 h")


def test_a_month_from_the_31st_begins_on_a_short_months_last_day_and_returns_to_the_31st() -> None:
    """At the hour of its start; counted from there, so that nothing is lost for good in February."""
    start = "2024-01-31T18:30"
    names = [period_at(us(f"{day}T19:00"), "month", "Asia/Shanghai", us(start)).name for day in NINETEENS]
    assert names == ["2024-01-31", "2024-02-29", "2024-02-29", "2024-03-31", "2024-04-30", "2025-02-28", "2025-03-31"]
    assert on("2024-02-29T18:29", "month", start=start)[0] == "2024-01-31"
    assert on("2024-02-29T18:30", "month", start=start)[0] == "2024-02-29"


NINETEENS = ["2024-02-28", "2024-02-29", "2024-03-30", "2024-03-31", "2024-04-30", "2025-02-28", "2025-03-31"]


def test_weeks_and_days_may_be_counted_from_a_start_too() -> None:
    """From its weekday and hour."""
    assert on("2026-03-10T08:59", "week", start="2026-03-03T09:00") == ("2026-03-03", "168 h")
    assert on("2026-03-10T09:00", "week", start="2026-03-03T09:00") == ("2026-03-10", "168 h")
    assert on("2026-03-10T08:59", "day", start="2026-03-03T09:00") == ("2026-03-09", "24 h")


@pytest.mark.parametrize(
    ("at", "zone", "period"),
    [
        ("2024-03-10T12:00", "America/New_York", ("2024-03-10", "23 h")),
        ("2024-11-03T12:00", "America/New_York", ("2024-11-03", "25 h")),
        ("2024-04-07T12:00", "Australia/Lord_Howe", ("2024-04-07", "24.5 h")),
        # Never shown 00:00: its clock went from 23:59:59 to 01:00.
        ("2018-11-04T12:00", "America/Sao_Paulo", ("2018-11-04", "23 h")),
        # 00:00 shown twice, and the day begins at the first.
        ("2024-11-03T12:00", "America/Havana", ("2024-11-03", "25 h")),
        # One minute into the 7th it was 23:01 of the 6th again, and still the 7th's period.
        ("2010-11-07T12:00", "America/St_Johns", ("2010-11-07", "25 h")),
        ("2011-12-29T12:00", "Pacific/Apia", ("2011-12-29", "24 h")),
        ("2011-12-31T12:00", "Pacific/Apia", ("2011-12-31", "24 h")),
    ],
)
def test_a_day_is_as_long_as_its_clock_makes_it(at: str, zone: str, period: tuple[str, str]) -> None:
    """Twenty-three, twenty-four and a half, twenty-five hours; and a day that a zone skipped has none."""
    assert on(at, "day", zone) == period


def test_a_day_whose_midnight_is_jumped_over_begins_at_the_jump() -> None:
    """Monrovia's clocks went from 00:00 to 00:44:30: the day began then, not where 00:00 would have been."""
    before, jump = us("1972-01-06T23:59:59", "Africa/Monrovia"), us("1972-01-07T00:44:30", "Africa/Monrovia")
    assert jump == before + 1_000_000
    assert period_at(before, "day", "Africa/Monrovia").end_us == jump
    # And where the jump begins before midnight: Toronto in 1919 went from 23:30 to 00:30.
    jump = us("1919-03-31T00:30", "America/Toronto")
    assert period_at(jump, "day", "America/Toronto").start_us == jump
    assert period_at(jump - 1, "day", "America/Toronto").name == "1919-03-30"


@given(at_us=MOMENTS, every=EVERY, zone=ZONES, start_us=st.none() | MOMENTS)
@example(us("2010-11-07T00:00:30", "America/St_Johns"), "day", "America/St_Johns", None)
@example(us("2010-11-06T23:30", "America/St_Johns", fold=1), "day", "America/St_Johns", None)
@example(us("2011-12-31T00:00", "Pacific/Apia"), "day", "Pacific/Apia", us("2011-12-01T18:30", "Pacific/Apia"))
@example(us("1972-01-07T01:00", "Africa/Monrovia"), "month", "Africa/Monrovia", us("1971-01-07", "Africa/Monrovia"))
def test_periods_tile_time(at_us: int, every: Every, zone: str, start_us: int | None) -> None:
    """Every moment lies in one period, which ends where the next begins; names go up and none comes twice."""

    def at(moment_us: int) -> Period:
        return period_at(moment_us, every, zone, start_us)

    period = at(at_us)
    assert period.start_us <= at_us < period.end_us
    assert at(period.start_us) == at(period.end_us - 1) == period
    following, before = at(period.end_us), at(period.start_us - 1)
    assert (following.start_us, before.end_us) == (period.end_us, period.start_us)
    assert before.name < period.name < following.name


@given(at_us=MOMENTS, every=EVERY, zone=ZONES, start_us=st.none() | MOMENTS)
def test_a_period_begins_when_its_clock_first_shows_its_beginning(
    at_us: int, every: Every, zone: str, start_us: int | None
) -> None:
    """Its first moment shows the named date or later, and the moment before an earlier time than every later one."""
    clock = clock_of(zone)

    def shown(moment_us: int) -> datetime:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=moment_us)).astimezone(clock)

    period = period_at(at_us, every, zone, start_us)
    assert shown(period.start_us).date().isoformat() >= period.name
    assert shown(period.start_us - 1).replace(tzinfo=None) < shown(period.start_us).replace(tzinfo=None)
    if start_us is None:
        assert shown(period.start_us - 1).date().isoformat() < period.name


@given(every=EVERY, zone=ZONES, start_us=MOMENTS)
def test_the_first_period_from_a_start_begins_there(every: Every, zone: str, start_us: int) -> None:
    """Or an hour earlier, where the clock had shown the same time once before."""
    early_us = start_us - period_at(start_us, every, zone, start_us).start_us
    assert 0 <= early_us <= 3_600_000_000


@pytest.mark.parametrize(
    "zone", ["", "Nowhere/Land", "../../etc/passwd", "/etc/localtime", "Europe", "Asia/上海", "\0"]
)
def test_a_zone_that_is_none_is_said_so(zone: str) -> None:
    """Whatever the machine's files make of the name."""
    with pytest.raises(BadCalendar) as refusal:
        clock_of(zone)
    assert (refusal.value.field, refusal.value.value) == ("zone", zone)

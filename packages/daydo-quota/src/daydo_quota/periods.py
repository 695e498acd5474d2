"""When an allowance's periods begin and end: calendar arithmetic, and nothing of the ledger.

Theory
------
A cycle has an *origin*, a date and time on the wall clock of its zone, and goes on from there by days, weeks or months.
Beginning number ``n`` is the origin and ``n`` steps, read on that clock: a day at 00:00, a Monday, a month's first,
or a customer's own day. A month that has no such day begins on its last; always counted from the origin, so that a
cycle of the 31st returns to the 31st.

The wall clock is not time. Where it jumps forward over a beginning, the period begins at the jump; where it is set back
and shows a beginning twice, at the first. So ``_instant`` is the first moment at which the clock shows that time or
later, beginnings never go backwards, and a period is what lies between two of them: time is tiled without gap or
overlap, whatever a zone does. (A zone that skips a whole day leaves that day's period empty.)

A period's name is the date its beginning bears on the wall clock, and one name means one period of a cycle.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from .errors import BadCalendar

Every = Literal["day", "week", "month"]
Anchor = Literal["calendar", "start"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ORIGINS: dict[Every, datetime] = {
    "day": datetime(1970, 1, 1),  # noqa: DTZ001 - a wall clock's time; so are all without a zone here
    "week": datetime(1970, 1, 5),  # noqa: DTZ001 - a Monday
    "month": datetime(1970, 1, 1),  # noqa: DTZ001
}


class Period(NamedTuple):
    """From ``start_us`` to just before ``end_us``; ``name`` is a date like ``2026-03-01``."""

    start_us: int
    end_us: int
    name: str


def period_at(at_us: int, every: Every, zone: str, starts_at_us: int | None = None) -> Period:
    """The period that ``at_us`` lies in: of the calendar, or counted from ``starts_at_us``.

    Raises:
        BadCalendar: this machine knows no such zone.
    """
    clock = clock_of(zone)
    origin = _ORIGINS[every] if starts_at_us is None else _wall(starts_at_us, clock)
    number = _steps(origin, _wall(at_us, clock), every)
    # The guess is by the wall clock, which may have been set back since: it is one off then.
    while at_us < _instant(_beginning(origin, number, every), clock):
        number -= 1
    while at_us >= _instant(_beginning(origin, number + 1, every), clock):
        number += 1
    start, end = (_beginning(origin, n, every) for n in (number, number + 1))
    return Period(_instant(start, clock), _instant(end, clock), start.date().isoformat())


def clock_of(zone: str) -> ZoneInfo:
    """The zone of an IANA name such as ``Asia/Shanghai``, or BadCalendar."""
    try:
        return ZoneInfo(zone)
    except (ValueError, LookupError, OSError):  # unknown, not a name but a path, the name of a folder
        raise BadCalendar(field="zone", value=zone) from None


def _steps(origin: datetime, wall: datetime, every: Every) -> int:
    if every == "month":
        return (wall.year - origin.year) * 12 + wall.month - origin.month
    return (wall - origin).days // (7 if every == "week" else 1)


def _beginning(origin: datetime, number: int, every: Every) -> datetime:
    if every != "month":
        return origin + timedelta(days=number * (7 if every == "week" else 1))
    years, month = divmod(origin.month - 1 + number, 12)
    first = origin.replace(year=origin.year + years, month=month + 1, day=1)
    return first.replace(day=min(origin.day, _days_in(first)))


def _days_in(first: datetime) -> int:
    """Of the month that begins with ``first``."""
    return ((first + timedelta(days=31)).replace(day=1) - first).days


def _wall(at_us: int, clock: ZoneInfo) -> datetime:
    return (_EPOCH + at_us * _MICROSECOND).astimezone(clock).replace(tzinfo=None)


def _instant(wall: datetime, clock: ZoneInfo) -> int:
    """The first moment at which ``clock`` shows ``wall`` or later."""
    earlier, later = sorted((_us(wall, clock, fold=0), _us(wall, clock, fold=1)))
    if earlier == later or _wall(earlier, clock) == wall:
        return earlier  # shown once, or the first of twice
    # Never shown: the clock jumps over it between the two.
    while later - earlier > 1:
        middle = (earlier + later) // 2
        earlier, later = (earlier, middle) if _wall(middle, clock) >= wall else (middle, later)
    return later


def _us(wall: datetime, clock: ZoneInfo, fold: int) -> int:
    return (wall.replace(tzinfo=clock, fold=fold) - _EPOCH) // _MICROSECOND

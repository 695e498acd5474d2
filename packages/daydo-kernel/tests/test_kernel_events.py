"""Clock and events for tests, ours and our users'."""

from __future__ import annotations

from collections.abc import Callable

from daydo_kernel import Clock, Event, EventSink, NoEvents, SystemClock
from daydo_kernel.testing import ManualClock, RecordedEvents


class Transaction:
    """Just enough of a transaction to commit or forget."""

    def __init__(self) -> None:
        self.after: list[Callable[[], None]] = []

    def after_commit(self, fn: Callable[[], None]) -> None:
        self.after.append(fn)

    def commit(self) -> None:
        for fn in self.after:
            fn()


async def test_nobody_listens_by_default() -> None:
    """The default sink takes every event and does nothing."""
    sink: EventSink = NoEvents()
    await sink.emit(Event(name="shop.opened"))


async def test_events_are_kept_in_order() -> None:
    """A recorded sink tells a test what happened, in order."""
    sink = RecordedEvents()
    await sink.emit(Event(name="shop.opened"))
    await sink.emit(Event(name="shop.closed", subject="u_7"))
    assert sink.names == ["shop.opened", "shop.closed"]
    assert sink.events[1].subject == "u_7"


async def test_event_of_a_transaction_waits_for_its_commit() -> None:
    """An event told with a transaction is not seen before the commit, and never after a rollback."""
    sink, committed, rolled_back = RecordedEvents(), Transaction(), Transaction()
    await sink.emit(Event(name="shop.opened"), tx=committed)
    await sink.emit(Event(name="shop.sold"), tx=rolled_back)
    assert sink.names == []
    committed.commit()
    assert sink.names == ["shop.opened"]


def test_events_do_not_share_data() -> None:
    """Each event's default data is its own."""
    assert Event(name="a").data is not Event(name="b").data


def test_manual_clock_stands_still() -> None:
    """A test's clock moves when it is told to, to the microsecond."""
    clock: Clock = ManualClock(1_000_000)
    assert isinstance(clock, ManualClock)
    assert clock.now_us() == clock.now_us() == 1_000_000
    clock.advance(0.000_001)
    assert clock.now_us() == 1_000_001


def test_system_clock_counts_microseconds() -> None:
    """The host's clock is in microseconds since 1970 and does not run backwards here."""
    first, second = SystemClock().now_us(), SystemClock().now_us()
    assert 1_600_000_000_000_000 < first <= second < 5_000_000_000_000_000

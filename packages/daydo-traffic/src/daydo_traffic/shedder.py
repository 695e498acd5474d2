"""Refusing a part, so that the rest stays quick.

A service that takes in more than it can do serves nobody: everything waits behind everything, and clients are gone
when their answer comes. Two things say that it is so far: **lag**, how late the event loop runs what is due (CPU), and
**in-flight**, how many requests are under way (whatever they wait for). Each gives a pressure from 0 (at its
``…_begin…``) to 1 (at its ``…_max``), and the greater one counts.

Pressure closes the doors one after the other, the first third that of LOW, the second that of NORMAL, the last that of
HIGH; within its third a door closes steadily, so that load and lag find a balance. CRITICAL is never
refused, and of the others at least ``admit_share`` is always let in: a shedder that lets nobody in never learns that
things are better. But a tenth of fifty times the load is still five times the load: once ``in_flight_max`` are under
way, the share is one of those that leave, not of those that come. Shares are kept by counting, not by chance.

A crowd is no overload: two hundred requests that come at once and are answered within half a second need no doors.
So pressure closes none until it has lasted ``patience_s``, and one that comes back is met at once until it has been
gone for as long. ``burst_max`` under way are too many at any time.

Lag is measured by a timer: by how much it was late, smoothed so that one pause of the loop does not close a door; a
measurement counts the more the more time it covers. While the timer is overdue, what it is overdue by is the least
that lag can be: so a crowd that is let in within one turn of the loop is felt within that turn.
"""

from __future__ import annotations

import asyncio
import time
from enum import IntEnum
from types import TracebackType
from typing import Annotated, Literal, Self

from msgspec import Meta

from daydo_kernel import Clock, Config, EventSink, Health, Metrics, Part

from .errors import Overloaded

MEASUREMENT_MAX = 0.5  # of the smoothed lag, however long it took
ROUNDING = 1e-9  # ten tenths are a little less than one


class Priority(IntEnum):
    """Who is refused last: health and payments are CRITICAL, paying users HIGH, free ones NORMAL or LOW."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


class ShedderConfig(Config, frozen=True, kw_only=True):
    """Where refusing begins and ends.

    Attributes:
        lag_begin_s, lag_max_s: lag of the event loop at which it begins, and at which all doors are closed.
        in_flight_begin, in_flight_max: the same for requests under way.
        patience_s: how long pressure lasts before anybody is refused, and has to be gone before it is so again.
        burst_max: requests under way beyond which nobody has patience.
        admit_share: of each priority, let in however late the loop is; at ``in_flight_max``, for each that leaves.
        probe_s: how often lag is measured.
        smooth_s: over how long lag is smoothed.
        retry_after_s: what refused clients are told.
        drain_s: the bound on leaving.
    """

    lag_begin_s: Annotated[float, Meta(ge=0, le=10)] = 0.02
    lag_max_s: Annotated[float, Meta(gt=0, le=60)] = 0.2
    in_flight_begin: Annotated[int, Meta(ge=0, le=1_000_000)] = 500
    in_flight_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 2_000
    patience_s: Annotated[float, Meta(ge=0, le=60)] = 1.0
    burst_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 4_000
    admit_share: Annotated[float, Meta(gt=0, le=1)] = 0.1
    probe_s: Annotated[float, Meta(ge=0.001, le=1)] = 0.01
    smooth_s: Annotated[float, Meta(ge=0.001, le=60)] = 0.1
    retry_after_s: Annotated[float, Meta(ge=0, le=600)] = 1.0
    drain_s: Annotated[float, Meta(ge=0, le=60)] = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lag_begin_s >= self.lag_max_s or self.in_flight_begin >= self.in_flight_max:
            raise ValueError("ShedderConfig: lag_begin_s < lag_max_s and in_flight_begin < in_flight_max")
        if self.burst_max < self.in_flight_max:
            raise ValueError("ShedderConfig: in_flight_max <= burst_max")


class Visit:
    """One request that was let in and counts as under way until it leaves, which it does once."""

    __slots__ = ("_inside", "_shedder", "priority")

    def __init__(self, shedder: Shedder, priority: Priority) -> None:
        self._shedder = shedder
        self._inside = True
        self.priority = priority

    def leave(self) -> None:
        """End it; a second time does nothing."""
        if self._inside:
            self._inside = False
            self._shedder.leave()

    def hand_over(self) -> Visit:
        """The same request for whoever goes on with it: leaving this one does nothing any more."""
        if not self._inside:
            self._shedder.enter(Priority.CRITICAL)
        self._inside = False
        return Visit(self._shedder, self.priority)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


class Shedder(Part):
    """``with shedder.admit(Priority.HIGH): …`` runs the block, or raises :class:`Overloaded`.

    It measures this process's event loop; each worker has one. ``clock`` replaces the monotonic clock, in tests.
    ``events`` is taken as by every noun; a shedder has metrics to tell, not events.
    """

    def __init__(
        self,
        config: ShedderConfig = ShedderConfig(),  # noqa: B008 (frozen)
        *,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        self.config = config
        self._now_s = time.monotonic if clock is None else lambda: clock.now_us() / 1e6
        self._lag_s = 0.0
        self._in_flight = 0
        self._credit = [0.0] * len(Priority)
        self._pressed_s = 0.0
        self._is_patient = config.patience_s > 0
        self._vacancies = 0.0  # left while in_flight_max are under way
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = float("inf")
        self._declare_metrics()

    def _declare_metrics(self) -> None:
        self.metrics = Metrics("daydo_traffic")
        requests = self.metrics.counter("shedder_requests_total", "Requests, by the answer.", ("priority", "outcome"))
        names = [priority.name.lower() for priority in Priority]
        self._admitted = [requests.cell(name, "admitted") for name in names]
        self._shed = [requests.cell(name, "shed") for name in names]
        in_flight = self.metrics.gauge("shedder_in_flight", "Requests under way.")
        in_flight.cell().follow(lambda: float(self._in_flight))
        lag = self.metrics.gauge("shedder_lag_seconds", "How late the event loop is, smoothed.", merge="max")
        lag.cell().follow(lambda: self._lag_s)
        self.metrics.gauge("shedder_pressure", "0: everybody is let in; 1: hardly anybody.", merge="max").cell().follow(
            lambda: self.pressure
        )

    @property
    def pressure(self) -> float:
        """From 0 to 1, as far as it is acted on."""
        if self._in_flight >= self.config.burst_max:
            return 1.0
        return 0.0 if self._is_patient else self._felt()

    def _felt(self) -> float:
        config = self.config
        lag_s = max(self._lag_s, self._now_s() - self._due_s)
        lag = (lag_s - config.lag_begin_s) / (config.lag_max_s - config.lag_begin_s)
        crowd = (self._in_flight - config.in_flight_begin) / (config.in_flight_max - config.in_flight_begin)
        return min(max(lag, crowd, 0.0), 1.0)

    def admit(self, priority: Priority = Priority.NORMAL) -> Visit:
        """A ``with`` block, or whatever ends with ``leave()``, that counts as one request under way.

        Raises:
            Overloaded: it is not let in.
        """
        self.enter(priority)
        return Visit(self, priority)

    def enter(self, priority: Priority = Priority.NORMAL) -> None:
        """Begin a request; :meth:`leave` ends it. For where an object a request is too much.

        Raises:
            Overloaded: and then there is nothing to leave.
        """
        if not self.try_enter(priority):
            raise Overloaded(retry_after_s=self.config.retry_after_s)

    def try_enter(self, priority: Priority = Priority.NORMAL) -> bool:
        """As :meth:`enter`, but tells whether it is let in: for a server, to whom an error a refusal is too much."""
        self._require_started()
        pressure = self.pressure
        if pressure > 0.0 and priority is not Priority.CRITICAL and not self._lets_in(priority, pressure):
            self._shed[priority].inc()
            return False
        self._in_flight += 1
        self._admitted[priority].inc()
        return True

    def leave(self) -> None:
        """End a request that :meth:`enter` let in."""
        if self._in_flight >= self.config.in_flight_max:
            self._vacancies = min(self._vacancies + self.config.admit_share, 1.0)
        self._in_flight -= 1

    def _lets_in(self, priority: Priority, pressure: float) -> bool:
        if self._in_flight >= self.config.in_flight_max:
            return self._takes_vacancy()
        closed = min(max(pressure * 3 - priority, 0.0), 1.0)
        credit = self._credit[priority] + max(1.0 - closed, self.config.admit_share)
        if credit >= 1.0:
            self._credit[priority] = credit - 1.0
            return True
        self._credit[priority] = credit
        return False

    def _takes_vacancy(self) -> bool:
        if self._vacancies < 1.0 - ROUNDING:
            return False
        self._vacancies = 0.0
        return True

    async def health(self) -> Health:
        """``degraded`` while anybody is refused."""
        if not self._running:
            return Health(status="down")
        status: Literal["ok", "degraded"] = "degraded" if self.pressure > 0 else "ok"
        return Health(status=status, detail={"in_flight": self._in_flight, "lag_s": round(self._lag_s, 4)})

    async def _start(self) -> None:
        self._lag_s = self._pressed_s = 0.0
        self._is_patient = self.config.patience_s > 0
        self._arm()

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due_s = float("inf")

    def _arm(self) -> None:
        self._due_s = self._now_s() + self.config.probe_s
        self._timer = asyncio.get_running_loop().call_later(self.config.probe_s, self._probe)

    def _probe(self) -> None:
        lag_s = max(0.0, self._now_s() - self._due_s)
        weight = min(MEASUREMENT_MAX, (lag_s + self.config.probe_s) / self.config.smooth_s)
        self._lag_s += (lag_s - self._lag_s) * weight
        self._arm()
        self._endure(lag_s + self.config.probe_s)

    def _endure(self, elapsed_s: float) -> None:
        patience_s = self.config.patience_s
        elapsed_s = min(elapsed_s, patience_s / 2)  # one long pause of the loop is not pressure that lasts
        change_s = elapsed_s if self._felt() > 0 else -elapsed_s
        self._pressed_s = min(max(self._pressed_s + change_s, 0.0), patience_s)
        if self._pressed_s >= patience_s:
            self._is_patient = False
        elif self._pressed_s <= 0:
            self._is_patient = True

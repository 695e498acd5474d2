"""When to stop calling what fails, and how to find out that it is well again.

closed --(too many of the last calls failed or were slow)--> open --(``open_s`` later)--> half-open:
``probes`` calls go out, the others are refused. All of them well: closed, with an empty memory. One of them not:
open again, twice as long as before, up to ``open_max_s``. A probe whose caller gave up makes room for another.

"The last calls" are the last ``window_calls``, or those of the last ``window_s``; fewer than ``calls_min`` say nothing.
A call counts for the state it began in: one that was sent before the breaker opened changes nothing afterwards.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Annotated, Literal, Protocol

from msgspec import Meta

from daydo_kernel import Clock, Config, Event, EventSink, Health, Metrics, NoEvents

from .errors import CircuitOpen
from .policy import Judge, P, Policy, T, blames_the_other

log = logging.getLogger("daydo.traffic")

SLICES = 10
_GOOD, _FAILED, _SLOW = 0, 1, 2

Share = Annotated[float, Meta(gt=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=100_000)]
Seconds = Annotated[float, Meta(gt=0, le=3_600)]


class BreakerConfig(Config, frozen=True, kw_only=True):
    """When a breaker opens and closes.

    Attributes:
        window: whether the last ``window_calls`` calls are judged, or those of the last ``window_s`` seconds.
        window_calls, window_s: how far its memory goes back; ``window_s`` moves on in tenths of itself.
        calls_min: with fewer calls in memory it stays closed.
        failed_share: this share of failed calls opens it.
        slow_s, slow_share: a call that takes longer is slow, and this share of slow ones opens it too; 0: none is slow.
        open_s, open_max_s: how long it refuses before probing; doubles with every failed probing up to the latter.
        probes: calls that go out at once when half-open, and must all be well.
    """

    window: Literal["calls", "time"] = "calls"
    window_calls: Count = 100
    window_s: Seconds = 10.0
    calls_min: Count = 10
    failed_share: Share = 0.5
    slow_s: Annotated[float, Meta(ge=0, le=3_600)] = 0.0
    slow_share: Share = 0.8
    open_s: Seconds = 5.0
    open_max_s: Seconds = 60.0
    probes: Annotated[int, Meta(ge=1, le=1_000)] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window == "calls" and self.calls_min > self.window_calls:
            raise ValueError("BreakerConfig.calls_min: more than window_calls, so it would never open")


class State(IntEnum):
    """What a breaker does with calls; the number is the metric's."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


# Read on every call; a name of this module is found faster than a member of an enumeration.
_CLOSED, _HALF_OPEN, _OPEN = State.CLOSED, State.HALF_OPEN, State.OPEN


class _Memory(Protocol):
    calls: int
    failed: int
    slow: int
    all_well: bool  # and full of such calls: one more changes nothing

    def add(self, mark: int, now_s: float) -> None:
        """Remember one call, and forget what is too old."""

    def clear(self) -> None:
        """Forget all."""


class _LastCalls:
    """A ring of marks, and how many of each there are."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._ring = bytearray(size)
        self.clear()

    def clear(self) -> None:
        self.calls = self.failed = self.slow = self._at = 0
        self.all_well = False

    def add(self, mark: int, now_s: float) -> None:
        at = self._at
        if self.calls < self._size:
            self.calls += 1
        elif self._ring[at]:
            self._count(self._ring[at], -1)
        self._ring[at] = mark
        self._at = at + 1 if at + 1 < self._size else 0
        if mark:
            self._count(mark, 1)
        self.all_well = not (self.failed or self.slow) and self.calls == self._size

    def _count(self, mark: int, by: int) -> None:
        if mark & _FAILED:
            self.failed += by
        if mark & _SLOW:
            self.slow += by


class _LastSeconds:
    """Ten slices of time: [number of the slice, calls, failed, slow]."""

    all_well = False  # every call counts until it is too old

    def __init__(self, seconds: float) -> None:
        self._slice_s = seconds / SLICES
        self.clear()

    def clear(self) -> None:
        self.calls = self.failed = self.slow = 0
        self._slices: list[list[int]] = []

    def add(self, mark: int, now_s: float) -> None:
        number = int(now_s / self._slice_s)
        while self._slices and self._slices[0][0] <= number - SLICES:
            _, calls, failed, slow = self._slices.pop(0)
            self.calls, self.failed, self.slow = self.calls - calls, self.failed - failed, self.slow - slow
        if not self._slices or self._slices[-1][0] < number:
            self._slices.append([number, 0, 0, 0])
        failed, slow = mark & _FAILED, (mark & _SLOW) // _SLOW
        newest = self._slices[-1]
        newest[1], newest[2], newest[3] = newest[1] + 1, newest[2] + failed, newest[3] + slow
        self.calls, self.failed, self.slow = self.calls + 1, self.failed + failed, self.slow + slow


class Breaker(Policy):
    """One dependency's breaker: ``await breaker.call(fetch, url)``, or ``@breaker`` on a function.

    Failures are the errors that ``is_failure`` says so of; by default all but our own refusals below status 500. A
    cancelled call counts as nothing, and so does one about whose error ``is_failure`` itself raises. ``clock`` replaces
    the monotonic clock, in tests. ``metrics``: where its cells go; by default they are its own. ``events``:
    ``traffic.breaker_opened``, ``traffic.breaker_closed``.
    """

    def __init__(
        self,
        name: str,
        config: BreakerConfig = BreakerConfig(),  # noqa: B008 (frozen)
        *,
        is_failure: Judge = blames_the_other,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self._is_failure = is_failure
        self._now_s = time.monotonic if clock is None else lambda: clock.now_us() / 1e6
        self._events: EventSink = events if events is not None else NoEvents()
        timed = config.window == "time"
        self._memory: _Memory = _LastSeconds(config.window_s) if timed else _LastCalls(config.window_calls)
        self._slow_s = config.slow_s or float("inf")
        self._is_timed = timed or config.slow_s > 0  # else a call that goes well needs no clock
        self._state = _CLOSED
        self._era = 0  # counts changes of state: a call belongs to the one it began in
        self._open_until_s = 0.0
        self._open_s = config.open_s
        self._probes_out = 0
        self._probes_well = 0
        self._declare(metrics if metrics is not None else Metrics("daydo_traffic"))

    def _declare(self, metrics: Metrics) -> None:
        self.metrics = metrics
        calls = metrics.counter("breaker_calls_total", "Calls, by how they ended.", ("breaker", "outcome"))
        self._well, self._slow = calls.cell(self.name, "well"), calls.cell(self.name, "slow")
        self._failed, self._refused = calls.cell(self.name, "failed"), calls.cell(self.name, "refused")
        self._cancelled = calls.cell(self.name, "cancelled")
        state = metrics.gauge("breaker_state", "0 closed, 1 half-open, 2 open.", ("breaker",), merge="max")
        state.cell(self.name).follow(lambda: float(self.state))
        self._opened = metrics.counter("breaker_opened_total", "Times it opened.", ("breaker",)).cell(self.name)

    @property
    def state(self) -> State:
        """As a call of this moment would find it."""
        if self._state is _OPEN and self._now_s() >= self._open_until_s:
            return _HALF_OPEN
        return self._state

    async def call(self, fn: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Await ``fn``, if the breaker lets it.

        Raises:
            CircuitOpen: it does not; ``retry_after_s`` says when to ask again.
        """
        if self._state is not _CLOSED:
            self._admit()
        era = self._era
        began = self._now_s() if self._is_timed else 0.0
        try:
            result = await fn(*args, **kwargs)
        except Exception as error:
            now_s = self._now_s()
            await self._report(self._mark_of(error, era), began, now_s, era)
            raise
        except BaseException:
            self._give_up(era)
            raise
        now_s = self._now_s() if self._is_timed else 0.0
        if self._state is _CLOSED and now_s - began < self._slow_s and era == self._era:
            self._well.value += 1.0
            if not self._memory.all_well:
                self._memory.add(_GOOD, now_s)  # nothing to decide: only a bad call opens a breaker
        else:
            await self._report(_GOOD, began, now_s, era)
        return result

    def health(self) -> Health:
        """``degraded`` unless closed."""
        state = self.state
        status: Literal["ok", "degraded"] = "ok" if state is _CLOSED else "degraded"
        detail: dict[str, str | int | float] = {"breaker": state.name.lower()}
        return Health(status=status, detail=detail | {"calls": self._memory.calls, "failed": self._memory.failed})

    # -- the machine ---------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        now_s = self._now_s()
        if self._state is _OPEN and now_s >= self._open_until_s:
            self._enter(_HALF_OPEN)
        if self._state is _HALF_OPEN and self._probes_out < self.config.probes:
            self._probes_out += 1
            return
        self._refused.inc()
        wait_s = max(self._open_until_s - now_s, 0.0) if self._state is _OPEN else self.config.open_s
        raise CircuitOpen(breaker=self.name, retry_after_s=wait_s)

    def _mark_of(self, error: Exception, era: int) -> int:
        try:
            return _FAILED if self._is_failure(error) else _GOOD
        except BaseException:
            self._give_up(era)  # nobody knows how it went
            raise

    def _give_up(self, era: int) -> None:
        """A call that counts as nothing; a probe makes room for another."""
        self._cancelled.inc()
        if era == self._era:
            self._probes_out = max(0, self._probes_out - 1)

    async def _report(self, mark: int, began: float, now_s: float, era: int) -> None:
        if now_s - began >= self._slow_s:
            mark |= _SLOW
        (self._failed if mark & _FAILED else self._slow if mark else self._well).inc()
        if era != self._era:
            return
        before = self._state
        if before is _HALF_OPEN:
            self._judge_probe(mark, now_s)
        else:
            self._memory.add(mark, now_s)
            if self._is_enough():
                self._open(now_s)
        if self._state is not before:
            await self._tell()

    def _judge_probe(self, mark: int, now_s: float) -> None:
        if mark:
            self._open_s = min(self._open_s * 2, max(self.config.open_max_s, self.config.open_s))
            self._open(now_s)
            return
        self._probes_well += 1
        if self._probes_well >= self.config.probes:
            self._open_s = self.config.open_s
            self._memory.clear()
            self._enter(_CLOSED)

    def _is_enough(self) -> bool:
        memory, config = self._memory, self.config
        if memory.calls < config.calls_min:
            return False
        failed, slow = memory.failed / memory.calls, memory.slow / memory.calls
        return failed >= config.failed_share or (config.slow_s > 0 and slow >= config.slow_share)

    def _open(self, now_s: float) -> None:
        self._open_until_s = now_s + self._open_s
        self._opened.inc()
        self._enter(_OPEN)

    def _enter(self, state: State) -> None:
        self._state = state
        self._era += 1
        self._probes_out = self._probes_well = 0

    async def _tell(self) -> None:
        is_open = self._state is _OPEN
        log.warning("the breaker of %s has %s", self.name, "opened" if is_open else "closed")
        data = {"breaker": self.name, **({"open_s": self._open_s} if is_open else {})}
        await self._events.emit(Event(name=f"traffic.breaker_{'opened' if is_open else 'closed'}", data=data))

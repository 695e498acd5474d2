"""One load per miss: in this process, and over all of them.

A load is a task of the cache, not of whoever asked first: callers wait for it and may give up, one by one, without
ending it. Whoever asks while it is under way joins it, as long as what it reads is known to be young enough; an
invalidation takes it out of sight, so that who asks afterwards starts another.

Before it loads, a flight claims the key (:mod:`.scripts`). Without the lease it follows whoever has it, looking again
after a quarter of the time waited so far. Without Redis it loads alone: one load per process, whose value is kept for
``staleness_s``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

from daydo_kernel import Draining
from daydo_redis import RedisError

from .config import CacheConfig, Policy
from .counts import SpaceCounts
from .errors import LoadFailed, LoadTimeout
from .guard import Claim, Guard, Lease
from .memory import Held
from .record import digits
from .shelf import Missing, Shelf, Sight

K = TypeVar("K", bound=str | int)
T = TypeVar("T")

log = logging.getLogger("daydo.cache")

LoadMany = Callable[[list[Any]], Awaitable[Mapping[Any, Any]]]
_RENEWALS = 3  # within the time of a lease
_FAREWELL_S = 1.0  # that a cancelled loader has to clean up


class Failure(NamedTuple):
    """A load that failed, remembered until ``until_s``; ``trace`` is where."""

    until_s: float
    error: Exception
    trace: TracebackType | None


class Flight(Generic[T]):
    """A load of one key under way. ``asked``: the key as the loader knows it; ``held``: an old value, if there is
    one; ``seen``: the digits of what is not wanted. ``future`` ends with what was loaded."""

    def __init__(self, asked: object, sight: Sight[T], began_s: float) -> None:
        self.asked = asked
        self.held = sight if isinstance(sight, Held) else None
        self.seen = sight.seen if isinstance(sight, Missing) else digits(sight.loaded_us)
        self.away = isinstance(sight, Missing) and sight.away
        self.began_s = began_s
        self.future: asyncio.Future[Held[T]] = asyncio.get_running_loop().create_future()
        self.future.add_done_callback(self._ended)
        self._waiters: set[asyncio.Future[None]] = set()

    def land(self, held: Held[T]) -> None:
        if not self.future.done():
            self.future.set_result(held)

    def crash(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    async def wait(self, wait_s: float) -> None:
        """Return when it has ended, or ``wait_s`` are over; what happens to the caller does not touch it."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(wait_s, _wake, waiter)
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)

    def _ended(self, future: asyncio.Future[Held[T]]) -> None:
        _look_at_error(future)
        for waiter in self._waiters:
            _wake(waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _look_at_error(future: asyncio.Future[Any]) -> None:
    # Nobody may be waiting any more, and asyncio would complain about an error that nobody has seen.
    if not future.cancelled():
        future.exception()


class _Waiting(NamedTuple):
    """Somebody else has the lease."""


_WAITING = _Waiting()


class Flights(Generic[T]):
    """All loads of one space; ``under_way`` is read directly on the hot path."""

    def __init__(
        self,
        space: str,
        config: CacheConfig,
        policy: Policy,
        shelf: Shelf[T],
        counts: SpaceCounts,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
    ) -> None:
        self._space = space
        self._config = config
        self._policy = policy
        self._shelf = shelf
        self._guard: Guard = shelf.guard
        self._timeline = shelf.timeline
        self._counts = counts
        self._spawn = spawn
        self._slots = asyncio.Semaphore(policy.loads_max)
        self.under_way: dict[str, Flight[T]] = {}
        self._failures: dict[str, Failure] = {}

    # -- who asks ------------------------------------------------------------------------------------------------

    def joinable(self, key: str) -> Flight[T] | None:
        """The load of ``key`` under way, if what it will bring is young enough for who asks now."""
        flight = self.under_way.get(key)
        if flight is None or flight.future.done():
            return None
        return flight if self._shelf.link.vouches(flight.began_s, self._timeline.now_s()) else None

    def failure(self, key: str) -> Exception | None:
        """Why the last load failed, while it is remembered."""
        failure = self._failures.get(key)
        if failure is None:
            return None
        if self._timeline.now_s() >= failure.until_s:
            del self._failures[key]
            return None
        # Every raise makes the traceback of an error longer, and everything in it stays in memory.
        return failure.error.with_traceback(failure.trace)

    def launch(self, wanted: Mapping[str, tuple[object, Sight[T]]], load: LoadMany) -> dict[str, Flight[T]]:
        """A flight for each of ``wanted``: those under way, and for the others new ones that share one load."""
        flights: dict[str, Flight[T]] = {}
        fresh: dict[str, Flight[T]] = {}
        for key, (asked, sight) in wanted.items():
            flight = self.joinable(key)
            if flight is None:
                flight = fresh[key] = self.under_way[key] = Flight(asked, sight, self._timeline.now_s())
            flights[key] = flight
        if fresh:
            # Not at the end of the task itself: one that is cancelled before its first turn never runs at all.
            self._spawn(self._fly(fresh, load), f"load {self._space}").add_done_callback(lambda _: self._over(fresh))
        return flights

    def void(self, key: str) -> None:
        """What is under way is not to be joined any more, and an old failure says nothing."""
        self.under_way.pop(key, None)
        self._failures.pop(key, None)

    def part(self) -> None:
        """Nothing that is under way is to be joined any more: its tags are known when it lands."""
        self.under_way.clear()

    def void_all(self) -> None:
        self.under_way.clear()
        self._failures.clear()

    # -- a flight ------------------------------------------------------------------------------------------------

    async def _fly(self, flights: dict[str, Flight[T]], load: LoadMany) -> None:
        try:
            boardings = await self._each(self._board(key, flight) for key, flight in flights.items())
            ours: dict[str, Lease | None] = {}
            theirs = []
            for (key, flight), boarding in zip(flights.items(), boardings, strict=True):
                if isinstance(boarding, _Waiting):
                    theirs.append(self._follow(key, flight, load))
                elif not flight.future.done():
                    ours[key] = boarding
            await self._each([self._load(flights, ours, load), *theirs] if ours else theirs)
        except Exception as error:
            for flight in flights.values():
                flight.crash(error)
            raise  # a loader of many that gave no mapping, or a fault of ours: it is logged

    def _over(self, flights: dict[str, Flight[T]]) -> None:
        for key, flight in flights.items():
            if self.under_way.get(key) is flight:
                del self.under_way[key]
            flight.crash(Draining())  # only those that nobody has settled: the task was cancelled

    async def _each(self, works: Any) -> list[Any]:
        """``gather``, without the tasks where there is only one to do."""
        works = list(works)
        return [await works[0]] if len(works) == 1 else await asyncio.gather(*works)

    async def _board(self, key: str, flight: Flight[T]) -> Lease | _Waiting | None:
        """The lease, or None to load without; a flight whose value was found, or may not be loaded, is settled."""
        if flight.away:
            return None
        try:
            claim = await self._claim(key, flight)
        except RedisError:
            return None
        if claim.says == "wait":
            return _WAITING
        if claim.says.startswith("failed "):
            _, ends_us, reason = claim.says.split(" ", 2)
            error = LoadFailed(space=self._space, reason=reason)
            self._remember(key, error, self._timeline.local_s(int(ends_us)))
            flight.crash(error)
        return claim.lease if claim.says == "load" else None

    async def _claim(self, key: str, flight: Flight[T]) -> Claim:
        """Claim until what is found is no value, or one that is good: then the flight has landed."""
        while True:
            mark, asked_s = self._shelf.news.mark, self._timeline.now_s()
            claim = await self._guard.claim(key, flight.seen)
            if not self._timeline.known:
                self._timeline.heard(claim.now_us, asked_s)
            if claim.value is None:
                return claim
            [sight] = await self._shelf.accept([key], [claim.value], mark, asked_s)
            if isinstance(sight, Held):
                flight.land(sight)
                return claim
            flight.seen = sight.seen

    async def _follow(self, key: str, flight: Flight[T], load: LoadMany) -> None:
        """Wait for another process's load; take over if it does not come to its end."""
        now_s, patience_s = asyncio.get_running_loop().time, self._policy.load_max_s
        began_s, waited_s = now_s(), 0.0
        boarding: Lease | _Waiting | None = _WAITING
        # No timeout around it: that would cancel a call to Redis, which is bounded by itself.
        while isinstance(boarding, _Waiting):
            if waited_s >= patience_s:
                flight.crash(LoadTimeout(space=self._space, timeout_s=patience_s))
                return
            pause_s = min(max(waited_s / 4, self._config.poll_min_s), self._config.poll_max_s)
            await asyncio.sleep(min(pause_s, patience_s - waited_s))
            waited_s = now_s() - began_s
            boarding = await self._board(key, flight)
        if not flight.future.done():
            await self._load({key: flight}, {key: boarding}, load)

    # -- loading -------------------------------------------------------------------------------------------------

    async def _load(self, flights: dict[str, Flight[T]], leases: dict[str, Lease | None], load: LoadMany) -> None:
        """Call the loader once for all of ``leases``, and settle their flights."""
        mark, began_s = self._shelf.news.mark, self._timeline.now_s()
        try:
            values = await self._attended(leases, load, [flights[key].asked for key in leases])
        except Exception as error:
            await self._each(self._failed(key, flights[key], lease, error) for key, lease in leases.items())
            return
        took_s = self._timeline.now_s() - began_s
        self._counts.load_seconds.observe(took_s)
        await self._each(
            self._landed(key, flights[key], lease, values.get(flights[key].asked), took_s, mark, began_s)
            for key, lease in leases.items()
        )

    async def _attended(
        self, leases: dict[str, Lease | None], load: LoadMany, asked: list[object]
    ) -> Mapping[Any, T | None]:
        """The loader's answer; meanwhile the leases are kept, and after ``load_max_s`` it is cancelled."""

        async def in_turn() -> Mapping[Any, T | None]:
            async with self._slots:
                return await load(asked)

        task = asyncio.ensure_future(in_turn())
        task.add_done_callback(_look_at_error)
        left_s, step_s = self._policy.load_max_s, self._config.lease_s / _RENEWALS
        try:
            while left_s > 0:
                await asyncio.wait({task}, timeout=min(step_s, left_s))
                if task.done():
                    break
                left_s -= step_s
                await self._each(self._renew(key, lease) for key, lease in leases.items() if lease is not None)
            else:
                raise LoadTimeout(space=self._space, timeout_s=self._policy.load_max_s)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=_FAREWELL_S)
        if task.cancelled():
            raise LoadFailed(space=self._space, reason="cancelled")
        return task.result()

    async def _renew(self, key: str, lease: Lease) -> None:
        try:
            await self._guard.renew(key, lease)
        except RedisError as error:
            log.debug("a lease of %s was not renewed: %s", self._space, error)

    async def _landed(
        self,
        key: str,
        flight: Flight[T],
        lease: Lease | None,
        value: T | None,
        took_s: float,
        mark: int,
        began_s: float,
    ) -> None:
        try:
            record, body = self._shelf.record(key, value, took_s)
        except Exception as error:  # the type, or the caller's own function that names the tags
            await self._failed(key, flight, lease, error)
            return
        self._counts.loads["absent" if value is None else "ok"].inc()
        loaded_us = self._timeline.redis_us(began_s) if lease is None else lease.since_us
        held = self._shelf.hold(record, body, loaded_us, began_s)
        outcome = "not_stored" if lease is None else await self._store(key, lease, held, body)
        self._counts.fills[outcome].inc()
        if outcome in ("not_stored", "too_large"):
            self._shelf.keep_for_now(key, held, mark)
        flight.land(held)

    async def _store(self, key: str, lease: Lease, held: Held[T], body: bytes) -> str:
        """Into Redis, and into memory."""
        try:
            if len(body) > self._policy.value_max_bytes:
                await self._guard.give_up(key, lease, 0.0, "too large")
                return "too_large"
            mark, asked_s = self._shelf.news.mark, self._timeline.now_s()
            if not await self._guard.fill(key, lease, body, held.dead_s - asked_s):
                return "refused"
            tags = (self._shelf.own_tag, *held.tags)
            if self._shelf.tags.barrier(tags) is None:
                await self._shelf.tags.ask(tags)
        except RedisError:
            return "not_stored"
        barrier = self._shelf.tags.barrier(tags)
        if barrier is not None and lease.since_us > barrier:
            held.checked_s = asked_s
            self._shelf.keep(key, held, mark)
        return "stored"

    async def _failed(self, key: str, flight: Flight[T], lease: Lease | None, error: Exception) -> None:
        self._counts.loads["timeout" if isinstance(error, LoadTimeout) else "failed"].inc()
        if flight.held is not None:
            log.warning("a value of %s was not loaded anew; the old one is served: %r", self._space, error)
        self._remember(key, error, self._timeline.now_s() + self._policy.failure_ttl_s)
        flight.crash(error)
        if lease is not None:
            try:
                await self._guard.give_up(key, lease, self._policy.failure_ttl_s, type(error).__name__)
            except RedisError as gone:
                log.debug("a lease of %s ends by itself: %s", self._space, gone)

    def _remember(self, key: str, error: Exception, until_s: float) -> None:
        if len(self._failures) >= self._policy.failures_max:
            self._failures.clear()
        self._failures[key] = Failure(until_s, error, error.__traceback__)
        held = self._shelf.memory.entries.get(key)
        if held is not None:
            held.soft_s = min(until_s, held.dead_s)  # throttled: until then nobody asks

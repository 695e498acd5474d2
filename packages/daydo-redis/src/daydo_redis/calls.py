"""From a call to its answer: a slot, the breaker, a deadline, what is repeated, and the errors that callers read.

Calls made in one turn of the event loop travel together (see :mod:`.merge`), as one packet over one connection. That
is a pipeline, not a transaction and not an MGET: every command stays itself, so each caller gets the answer or the
error that it would have got alone. What a batch shares is its fate on the way: one slot, one deadline, one report to
the breaker, and if the connection is lost all of those unanswered.

What may be repeated, within the one deadline: anything, if it was never sent (no connection) or the server said that
it did not carry it out (READONLY, MOVED, TRYAGAIN, CLUSTERDOWN, NOSCRIPT); after a lost connection only reads and
scripts declared idempotent. Never after silence: the deadline is over then.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import redis.exceptions as driver
from redis.asyncio.connection import AbstractConnection

from daydo_kernel import DaydoError, Metrics

from .breaker import Breaker
from .call import Call
from .config import RedisConfig
from .deadline import Deadline, Pulse
from .errors import RedisCommandFailed, RedisFull, RedisTimeout, RedisUnavailable
from .merge import Merge
from .roads import Road
from .wire import ASKING, Argument, exchange, text

SCRIPTS_MAX = 10_000  # that a server is believed to know
_OUTCOMES = ("ok", "failed", "timeout", "unavailable", "refused", "cancelled")
_LOST = (driver.ConnectionError, driver.InvalidResponse, OSError)
_DEMOTED = (driver.ReadOnlyError, driver.ClusterDownError)
_NOT_CARRIED_OUT = (*_DEMOTED, driver.TryAgainError, driver.AskError)  # MOVED is a kind of ASK
_NO_ROOM = re.compile(r"(?:^| -)(OOM|MISCONF) ")
# Trying again within milliseconds changes nothing.
_FINAL = (
    driver.AuthenticationError,
    driver.AuthorizationError,
    driver.BusyLoadingError,
    driver.MaxConnectionsError,
)


class Calls:
    """All calls of one :class:`daydo_redis.Redis`."""

    def __init__(self, config: RedisConfig, metrics: Metrics, now_s: Callable[[], float]) -> None:
        self._config = config
        self.breaker = Breaker(config.breaker_failures, config.breaker_open_s, now_s)
        commands = metrics.counter("commands_total", "Calls, by how they ended.", labels=("outcome",))
        self.outcomes = {outcome: commands.cell(outcome) for outcome in _OUTCOMES}
        seconds = metrics.histogram("command_seconds", "Time of one call, waiting for its slot included.")
        self._seconds = seconds.cell()
        self._repeated = metrics.counter("repeats_total", "Calls sent or connected again after a failure.").cell()
        merged = metrics.counter("merged_total", "Calls that travelled together with others.").cell()
        is_open = metrics.gauge("breaker_open", "1 while calls are refused unsent.", merge="max")
        is_open.cell().follow(lambda: float(self.breaker.is_open))
        self._merge = Merge(self._run, config, merged)
        self._known: set[tuple[str | None, Argument]] = set()
        self._under_way = 0

    def open(self, road: Road, spawn: Callable[[Coroutine[Any, Any, None], str], object]) -> None:
        """Answer over ``road`` from now on."""
        self._road = road
        self.slots = asyncio.Semaphore(self._config.pool_size)
        self._quiet = asyncio.Event()
        self._pulse = Pulse(self._config.command_timeout_s)
        self._merge.open(road.place, spawn)

    async def drained(self) -> None:
        """Wait until no call is under way."""
        while self._under_way:
            self._quiet.clear()
            await self._quiet.wait()

    async def answer(self, call: Call, merge: bool) -> Any:
        """What the server says; ``merge`` False: without waiting for company.

        Raises:
            RedisUnavailable, RedisTimeout, RedisFull, RedisCommandFailed
        """
        began = time.perf_counter()
        outcome = "cancelled"
        self._under_way += 1
        try:
            if merge and not self.breaker.is_open:
                await self._merge.send(call)
            else:
                await self._run([call])  # an open breaker: one call is the probe, not a crowd
            outcome = "failed"
            answer = call.result()
            outcome = "ok"
            return answer
        except RedisTimeout:
            outcome = "timeout"
            raise
        except RedisUnavailable as error:
            outcome = "refused" if error.reason == "breaker open" else "unavailable"
            raise
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._quiet.set()
            self.outcomes[outcome].value += 1.0
            self._seconds.observe(time.perf_counter() - began)

    # -- a batch, from slot to outcome ---------------------------------------------------------------------------

    async def _run(self, calls: list[Call]) -> None:
        """Settle every one of ``calls``; raises nothing but a cancellation."""
        try:
            if not await (self._wait_for_slot() if self.slots.locked() else self.slots.acquire()):
                _fail(calls, lambda: RedisUnavailable(reason="pool exhausted", retry_after_s=self._config.pool_wait_s))
                return
            try:
                await self._with_slot(_open(calls))
            finally:
                self.slots.release()
        except BaseException:
            _fail(calls, lambda: RedisUnavailable(reason="connection lost"))
            raise

    async def _wait_for_slot(self) -> bool:
        # Not the driver's BlockingConnectionPool: a waiter cancelled in the moment it is woken takes the wake-up
        # with it (asyncio.Condition before Python 3.13), and the next one times out beside a free connection.
        try:
            async with asyncio.timeout(self._config.pool_wait_s):
                return await self.slots.acquire()
        except TimeoutError:
            return False

    async def _with_slot(self, calls: list[Call]) -> None:
        if not calls:
            return
        if wait_s := self.breaker.admit():
            _fail(calls, lambda: RedisUnavailable(reason="breaker open", retry_after_s=wait_s))
            return
        answered: bool | None = None
        try:
            with Deadline(self._pulse):
                answered = await self._turn(calls)
                if left := _open(calls):
                    answered = await self._again(left, answered)
        except (TimeoutError, driver.TimeoutError) as error:  # the driver's: a client of the caller's is less patient
            answered = False
            _fail(calls, lambda: RedisTimeout(timeout_s=self._config.command_timeout_s), error)
        finally:
            self.breaker.report(answered)
        if self.breaker.is_open:
            # The probe must not go over a connection of before: in its place another server may be in charge.
            await self._road.look_again()

    def _turn(self, calls: list[Call]) -> Awaitable[bool | None]:
        """Send ``calls`` once. Did the server answer? None: it was not asked."""
        return self._round(calls) if self._road.several else self._exchange(None, calls)

    async def _again(self, calls: list[Call], answered: bool | None) -> bool | None:
        """Send what may be sent again, as :meth:`_turn`, and fail what remains."""
        for turn in range(self._config.retries):
            if all(isinstance(call.trouble, _FINAL) for call in calls):
                break
            self._repeated.inc(len(calls))
            pause_s = self._config.retry_pause_s * 2**turn
            await asyncio.sleep(random.uniform(0, pause_s))  # noqa: S311 (the whole fleet repeats right now)
            answered = await self._turn(calls)
            if not (calls := _open(calls)):
                return answered
        for call in calls:
            call.fail(_unavailable(call.trouble), call.trouble)
        return answered

    async def _round(self, calls: list[Call]) -> bool | None:
        """``calls``, each to its server."""
        try:
            await self._road.ready()
        except _LOST as error:
            for call in calls:
                call.trouble = error
            return False
        groups: dict[str | None, list[Call]] = {}
        for call in calls:
            groups.setdefault(self._road.place(call), []).append(call)
        answered: bool | None = None
        for place, group in groups.items():
            answered = await self._exchange(place, group)
        return answered

    async def _exchange(self, place: str | None, calls: list[Call]) -> bool | None:
        try:
            connection = await self._road.take(place)
        except driver.TimeoutError:
            raise
        except (driver.RedisError, OSError) as error:
            return await self._not_sent(place, calls, error)
        try:
            if connection.health_check_interval:
                check: Callable[[], Awaitable[None]] = connection.check_health
                await check()  # the driver's own PING, of which it reads the answer itself
            left = calls
            while left:
                unknown: list[Call] = []
                await self._talk(place, connection, left, unknown)
                left = unknown
        except _LOST as error:
            await self._road.spoil(connection)
            await self._road.look_again(place)
            _lost(calls, error)
            return False
        except BaseException:
            await self._road.spoil(connection)
            raise
        for call in calls:
            if not call.settled and isinstance(call.trouble, _DEMOTED):
                # Our connections lead to a server that was demoted; new ones find the one in charge.
                await self._road.spoil(connection)
                await self._road.look_again(place)
                return True
        await self._road.give(place, connection)
        return True

    async def _not_sent(self, place: str | None, calls: list[Call], error: Exception) -> bool | None:
        # Connected, and then refused (no such database): over a unix socket the driver calls that a lost connection.
        refusal = error.__cause__ if isinstance(error.__cause__, driver.ResponseError) else error
        if not isinstance(refusal, _LOST):
            for call in calls:
                call.fail(_refused(call, refusal), refusal)
            return True
        for call in calls:
            call.trouble = error
        if isinstance(error, driver.MaxConnectionsError):
            return None
        await self._road.look_again(place)
        return False

    def _talk(
        self, place: str | None, connection: AbstractConnection, calls: list[Call], unknown: list[Call]
    ) -> Awaitable[None]:
        """Send; who awaits it has the answers taken, and in ``unknown`` the calls whose script the server misses."""
        packets: list[bytes] = []
        answering: list[Call | None] = []
        for call in calls:
            packets.append(self._packet(place, call))
            answering += (None, call) if call.asking else (call,)
        answering.reverse()

        def take(answer: Any) -> None:
            call = answering.pop()
            if call is None:
                return
            if not isinstance(answer, Exception):
                call.answer(answer)
            elif isinstance(answer, driver.NoScriptError) and call.lua is not None and not call.told:
                unknown.append(call)
                self._known.discard((place, call.words[1]))
            elif isinstance(answer, _NOT_CARRIED_OUT):
                call.trouble = answer
                self._road.redirect(call, answer)
            else:
                call.fail(_refused(call, answer), answer)

        return exchange(connection, packets, len(answering), take)

    def _packet(self, place: str | None, call: Call) -> bytes:
        packet = call.packed
        if call.lua is not None:
            script = (place, call.words[1])
            call.told = script not in self._known
            if call.told:
                # The first call of a script brings its text at once, so that calls behind it stay behind it.
                packet = call.by_text
                if len(self._known) >= SCRIPTS_MAX:
                    self._known.clear()
                self._known.add(script)
        return ASKING + packet if call.asking else packet


def _open(calls: list[Call]) -> list[Call]:
    """Those that somebody waits for."""
    return [call for call in calls if not (call.settled or call.abandoned)]


def _lost(calls: list[Call], error: Exception) -> None:
    for call in calls:
        if call.settled:
            continue
        if call.repeatable:
            call.trouble = error
        else:
            call.fail(RedisUnavailable(reason=_reason(error)), error)


def _fail(calls: list[Call], why: Callable[[], DaydoError], cause: BaseException | None = None) -> None:
    for call in calls:
        if not call.settled:
            call.fail(why(), cause)


def _unavailable(trouble: BaseException | None) -> RedisUnavailable:
    if isinstance(trouble, driver.MaxConnectionsError):
        return RedisUnavailable(reason="pool exhausted")
    if isinstance(trouble, _NOT_CARRIED_OUT):
        return RedisUnavailable(reason="failing over")
    return RedisUnavailable(reason=_reason(trouble))


def _refused(call: Call, error: Exception) -> DaydoError:
    if isinstance(error, driver.BusyLoadingError | driver.AuthenticationError | driver.AuthorizationError):
        return RedisUnavailable(reason=_reason(error))
    if full := _full(error):
        return RedisFull(reason=full)
    reason = str(error)
    if isinstance(error, driver.ClusterCrossSlotError):
        reason = "keys of one call must share a slot; give them one {tag}, as in cart:{u_7} and stock:{u_7}"
    return RedisCommandFailed(command=text(call.words[0]), reason=reason)


def _full(error: Exception) -> str:
    """``OOM`` or ``MISCONF`` where the server has no room for a write, else nothing."""
    if isinstance(error, driver.OutOfMemoryError):
        return "OOM"
    # Before Redis 7 a script's own words stand in front of these.
    found = _NO_ROOM.search(str(error))
    return found[1] if found else ""


def _reason(error: BaseException | None) -> str:
    """One of three phrases: the driver's own texts name hosts and users, and these reach clients."""
    while error is not None:
        if isinstance(error, driver.AuthenticationError | driver.AuthorizationError):
            return "authentication failed"
        if isinstance(error, driver.BusyLoadingError):
            return "loading"
        error = error.__cause__
    return "connection lost"

"""daydo-traffic beside the limiters and breakers that people use, and a service under five times its load.

``redis_64_vs_limits``, ``redis_64_vs_throttled``: decisions a second by 64 tasks on one private server, ours ÷ theirs
(their cheapest strategy with a server; ours is GCRA by the server's clock). ``memory_us``, ``breaker_us``,
``shedder_us``: one operation of ours, the call that it is around included. ``over_admitted``: units let in beyond what
the rules allow, by four processes that attack them.

``goodput_at_5x``: a service whose requests each need 3 ms of the event loop and wait 5 ms meanwhile is offered five
times what it can do, open loop: requests come when they come, and count as good if answered within a second of that.
The ratio is its goodput ÷ the best it reached at loads that it can bear. Time is this process's CPU time, idle time
skipped, so that other processes on the machine make no difference. ``unshed_at_5x`` is the same without a
shedder; ``p99_ms_at_5x`` is of the requests that were let in.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from statistics import median, quantiles
from typing import Any

import limits as limits_rival
from aiolimiter import AsyncLimiter
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from purgatory import AsyncCircuitBreakerFactory
from throttled.asyncio import RateLimiterType, Throttled, per_min
from throttled.asyncio import store as throttled_store

from benchmarks.measure import Comparison, Report, compare, console
from daydo_redis import Redis
from daydo_redis.embedded import PrivateRedis
from daydo_traffic import Breaker, Bursty, Check, Limits, LimitsConfig, Priority, Shedder, Window
from daydo_traffic.asgi import TrafficMiddleware
from daydo_traffic.testing import attack

TASKS = 64
START_S = 10.0
A_LOT = 100_000_000
RULES = LimitsConfig(rules={"ip": Bursty(limit=A_LOT, period_s=60)})

SPIN_S = 0.0015
WAIT_S = 0.005
PATIENCE_S = 1.0
LOAD_S = 3.0
CAPACITY = 1 / (2 * SPIN_S)

Rivals = dict[str, Callable[[], Awaitable[object]]]


async def run() -> Report:
    """Every comparison, on a server that is gone afterwards."""
    report = Report()
    server = PrivateRedis()
    try:
        await asyncio.to_thread(server.wait_ready, START_S)
        memory, breaker, shedder = await _memory(), await _breaker(), await _shedder()
        redis = await _redis(server.url)
        for comparison, base in ((memory, "limits"), (redis, "limits"), (breaker, "bare"), (shedder, "bare")):
            comparison.show(base)
        report.ratios[f"redis_{TASKS}_vs_limits"] = redis.ratio("daydo", "limits")
        report.ratios[f"redis_{TASKS}_vs_throttled"] = redis.ratio("daydo", "throttled-py")
        for name, comparison in (("memory", memory), ("breaker", breaker), ("shedder", shedder)):
            report.figures[f"{name}_us"] = round(median(comparison.cpu_s["daydo"]) * 1e6, 2)
        report.figures |= await _attacked(server.url)
    finally:
        await asyncio.to_thread(server.stop)
    await asyncio.to_thread(_overloaded, report)
    return report


# -- rivals ------------------------------------------------------------------------------------------------------------


async def _memory() -> Comparison:
    item, rival = limits_rival.RateLimitItemPerMinute(A_LOT), FixedWindowRateLimiter(MemoryStorage())
    bucket = AsyncLimiter(A_LOT, 60)
    throttled = Throttled(
        using=RateLimiterType.GCRA.value, quota=per_min(A_LOT), store=throttled_store.MemoryStore(), timeout=-1
    )
    async with Limits(None, RULES) as limits:
        rivals: Rivals = {
            "daydo": lambda: limits.decide(Check("ip", "k")),
            "limits": lambda: rival.hit(item, "k"),
            "aiolimiter": bucket.acquire,
            "throttled-py": lambda: throttled.limit("k"),
        }
        return await compare("One decision in memory", rivals)


async def _redis(url: str) -> Comparison:
    item = limits_rival.RateLimitItemPerMinute(A_LOT)
    path = url.removeprefix("unix://")
    storage = RedisStorage(f"async+redis+unix://{path}", implementation="redispy", max_connections=TASKS)
    rival = FixedWindowRateLimiter(storage)
    store = throttled_store.RedisStore(
        server=f"unix://{path}", options={"CONNECTION_POOL_KWARGS": {"max_connections": TASKS}}
    )
    throttled = Throttled(using=RateLimiterType.GCRA.value, quota=per_min(A_LOT), store=store, timeout=-1)
    async with Redis(url) as redis, Limits(redis, RULES) as limits:
        rivals: Rivals = {
            "daydo": lambda: limits.decide(Check("ip", "k")),
            "limits": lambda: rival.hit(item, "k"),
            "throttled-py": lambda: throttled.limit("k"),
        }
        return await compare(f"One decision in Redis, {TASKS} tasks", rivals, tasks=TASKS)


async def _nothing() -> None:
    return None


async def _breaker() -> Comparison:
    ours = Breaker("bench")
    theirs = await AsyncCircuitBreakerFactory().get_breaker("bench")

    async def with_purgatory() -> None:
        async with theirs:
            await _nothing()

    rivals: Rivals = {"daydo": lambda: ours.call(_nothing), "purgatory": with_purgatory, "bare": _nothing}
    return await compare("One call through a closed breaker", rivals)


async def _shedder() -> Comparison:
    async with Shedder() as shedder:

        async def admitted() -> None:
            with shedder.admit(Priority.CRITICAL):  # the others are refused: this loop of ours never gives way
                await _nothing()

        return await compare("One request past the shedder", {"daydo": admitted, "bare": _nothing})


# -- four processes ----------------------------------------------------------------------------------------------------


async def _attacked(url: str) -> dict[str, float]:
    exact = await attack(url, Window(limit=1_000, period_s=600), seconds=1.0)
    rule = Bursty(limit=7_000, period_s=13, burst=1)
    rate = await attack(url, rule, seconds=2.0)
    most = rule.burst_units + rate.seconds * rule.limit / rule.period_s
    over = max(0, exact.admitted - 1_000) + max(0.0, rate.admitted - most)
    console.print(f"4 processes asked {exact.asked + rate.asked} times; let in beyond the rules: {over:.0f}")
    return {"over_admitted": round(over, 1)}


# -- five times the load -----------------------------------------------------------------------------------------------


class CpuLoop(asyncio.SelectorEventLoop):
    """A loop by the clock of our CPU time: idle time is skipped, and the neighbours' work takes none."""

    def __init__(self) -> None:
        self.skipped_s = 0.0
        super().__init__(_NoWait(self))

    def time(self) -> float:
        return time.process_time() + self.skipped_s

    def now_us(self) -> int:
        """As a daydo Clock."""
        return round(self.time() * 1e6)


class _NoWait(selectors.SelectSelector):
    def __init__(self, loop: CpuLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        self._loop.skipped_s += max(timeout or 0.0, 0.0)
        return super().select(0)


def _overloaded(report: Report) -> None:
    best = max(_offer(share, shed=True)[0] for share in (0.8, 0.9, 1.0))
    good, late_s = _offer(5.0, shed=True)
    unshed, _ = _offer(5.0, shed=False)
    report.ratios["goodput_at_5x"] = round(good / best, 3)
    report.ratios["unshed_at_5x"] = round(unshed / best, 3)
    report.figures["p99_ms_at_5x"] = round(quantiles(late_s, n=100)[98] * 1e3, 1)
    console.print(
        f"good answers a second: {best:.0f} at best, {good:.0f} at 5 ×, {unshed:.0f} at 5 × without a shedder"
    )


def _offer(load: float, *, shed: bool) -> tuple[float, list[float]]:
    """Good answers a second at ``load`` × the capacity, and how late those that were let in came, in seconds."""
    with asyncio.Runner(loop_factory=CpuLoop) as runner:
        late_s = runner.run(_serve(load * CAPACITY, shed=shed))
    return sum(late <= PATIENCE_S for late in late_s) / LOAD_S, late_s


async def _serve(rate: float, *, shed: bool) -> list[float]:
    loop: Any = asyncio.get_running_loop()
    late_s: list[float] = []
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}

    async def service(scope: Any, receive: Any, send: Any) -> None:
        _spin(loop)
        await asyncio.sleep(WAIT_S)
        _spin(loop)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with AsyncExitStack() as stack:
        shedder = await stack.enter_async_context(Shedder(clock=loop)) if shed else None
        app = TrafficMiddleware(service, shedder=shedder)

        async def request(due_s: float) -> None:
            status = 0

            async def send(message: Any) -> None:
                nonlocal status
                status = message.get("status", status)

            await app(scope, None, send)
            if status == 200:
                late_s.append(loop.time() - due_s)

        await _arrivals(loop, request, rate)
    return late_s


def _spin(loop: CpuLoop) -> None:
    until = loop.time() + SPIN_S
    while loop.time() < until:
        pass


async def _arrivals(loop: CpuLoop, request: Callable[[float], Awaitable[None]], rate: float) -> None:
    """Start requests when they are due, however late the loop is; then wait for those that clients still wait for."""
    tasks = set()
    due_s = began = loop.time()
    while due_s < began + LOAD_S:
        while due_s <= loop.time() and due_s < began + LOAD_S:
            tasks.add(asyncio.ensure_future(request(due_s)))
            due_s += 1 / rate
        await asyncio.sleep(max(0.0, min(0.001, due_s - loop.time())))
    _, pending = await asyncio.wait(tasks, timeout=PATIENCE_S)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)

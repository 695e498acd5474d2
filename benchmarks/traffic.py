"""daydo-traffic beside the limiters and breakers that people use, and a service under five times its load.

``redis_64_vs_limits``, ``redis_64_vs_throttled``: decisions a second by 64 tasks on one private server, ours ÷ theirs
(their cheapest strategy with a server; ours is GCRA by the server's clock). ``memory_us``, ``breaker_us``,
``shedder_us``: one operation of ours, the call that it is around included. ``over_admitted``: units let in beyond what
the rules allow, by four processes that attack them.

``goodput_at_5x``: the reference service, a process of its own on SQLite and an embedded Redis with limits out of the
way, is offered five times the photo uploads that it can take, open loop: requests come when they are due, whatever has
become of those before. Good is what is answered well within a second of that. The ratio is its goodput ÷ what it
reached at nine tenths of what it can take, the median of rounds that measure all three one after the other: a machine
that is quicker in one minute than in the next would otherwise be compared with itself. ``p99_ms_at_5x`` is of what was
let in. Client and service share this machine's processors, so that the client's work counts against the service.
``goodput_vs_best_round`` is stricter: the mean of all rounds at five times ÷ the best round at nine tenths.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from operator import truediv
from pathlib import Path
from statistics import mean, median, quantiles
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
from daydo_traffic.testing import attack
from reference_app.server import ServiceProcess
from reference_app.testing import Client, photo

TASKS = 64
START_S = 10.0
A_LOT = 100_000_000
RULES = LimitsConfig(rules={"ip": Bursty(limit=A_LOT, period_s=60)})

# A window remembers each request, so has a limit of its own that a quick machine would meet.
UNLIMITED = {
    "DAYDO_TRAFFIC__LIMIT_FACTOR": "10000",
    "DAYDO_TRAFFIC__LIMITS__RULES": '{"uploads": {"kind": "bursty", "limit": 600, "period_s": 60}}',
}
PATIENCE_S = 1.0
CALIBRATE_S = 1.5
CALIBRATE_TASKS = 16
LOAD_S = 3.0
LOAD_ROUNDS = 5
PHOTO_SIZE = (160, 120)
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)")

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
    await _overloaded(report)
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


class _Connection(asyncio.Protocol):
    """One request at a time; ``answered`` has its status."""

    def __init__(self) -> None:
        self._received = b""
        self.answered: asyncio.Future[int] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if end and len(body) >= int(LENGTH.findall(head.lower())[0]) and self.answered is not None:
            self._received = b""
            self.answered.set_result(int(head[9:12]))
            self.answered = None

    def connection_lost(self, error: Exception | None) -> None:
        if self.answered is not None and not self.answered.done():
            self.answered.set_exception(ConnectionError("the service hung up"))


class _Visitors:
    """Any number of clients of one address, each with a connection that the next one takes over."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._idle: list[_Connection] = []

    async def ask(self) -> int:
        loop = asyncio.get_running_loop()
        while self._idle and self._idle[-1].transport.is_closing():
            self._idle.pop()
        if self._idle:
            connection = self._idle.pop()
        else:
            _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
        connection.answered = answered = loop.create_future()
        connection.transport.write(self._request)
        status = await answered
        self._idle.append(connection)
        return status

    async def capacity(self) -> float:
        """Answers a second to as many as come again at once."""
        until = time.monotonic() + CALIBRATE_S
        answers = 0

        async def insist() -> None:
            nonlocal answers
            while time.monotonic() < until:
                status = await self.ask()
                answers += status < 300  # not in one line: others count while this one waits

        await asyncio.gather(*(insist() for _ in range(CALIBRATE_TASKS)))
        return answers / CALIBRATE_S

    async def offer(self, rate: float) -> list[float]:
        """Ask ``rate`` times a second; how late those that were let in were answered, in seconds."""
        late_s: list[float] = []

        async def visit(due_s: float) -> None:
            with suppress(OSError):
                if await self.ask() < 300:
                    late_s.append(time.monotonic() - due_s)

        tasks = set()
        due_s = began = time.monotonic()
        while due_s < began + LOAD_S:
            while due_s <= time.monotonic() and due_s < began + LOAD_S:
                tasks.add(asyncio.ensure_future(visit(due_s)))
                due_s += 1 / rate
            await asyncio.sleep(max(0.0, min(0.002, due_s - time.monotonic())))
        _, pending = await asyncio.wait(tasks, timeout=2 * PATIENCE_S)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return late_s


async def _overloaded(report: Report) -> None:
    folder = Path(tempfile.mkdtemp(prefix="daydo-bench-"))
    try:
        service = ServiceProcess(folder, UNLIMITED)
        url = (await asyncio.to_thread(service.__enter__)).url
        try:
            visitors = _Visitors(int(url.rpartition(":")[2]), await asyncio.to_thread(_upload, url))
            await visitors.capacity()  # warms up
            capacity: list[float] = []
            bearable: list[float] = []
            overload: list[list[float]] = []
            for _ in range(LOAD_ROUNDS):
                capacity.append(await visitors.capacity())
                bearable.append(_good(await visitors.offer(0.9 * capacity[-1])))
                overload.append(await visitors.offer(5.0 * capacity[-1]))
        finally:
            await asyncio.to_thread(service.__exit__)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    good = [_good(late_s) for late_s in overload]
    late_s = [late for round_ in overload for late in round_]
    report.ratios["goodput_at_5x"] = round(median(map(truediv, good, bearable)), 3)
    report.figures["goodput_vs_best_round"] = round(mean(good) / max(bearable), 3)
    report.figures["p99_ms_at_5x"] = round(quantiles(late_s, n=100)[98] * 1e3, 1)
    rounds = zip(good, bearable, capacity, strict=True)
    shown = [f"{at:.0f} of {best:.0f} (5 × {most:.0f})" for at, best, most in rounds]
    console.print(f"good uploads a second, at 5 × of those at 0.9 ×: {', '.join(shown)}")


def _good(late_s: list[float]) -> float:
    return sum(late <= PATIENCE_S for late in late_s) / LOAD_S


def _upload(url: str) -> bytes:
    """A new user's request, as it goes over the wire."""
    with Client(url) as user:
        request = user.register().http.build_request(
            "POST", "/uploads", files={"file": ("photo.jpg", photo(size=PHOTO_SIZE))}
        )
    head = f"POST {request.url.raw_path.decode()} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"{head}\r\n".encode() + request.read()

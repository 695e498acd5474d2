"""daydo-cache beside what it stands on, and beside what people use instead.

``l1_vs_dict``: hits in memory a second ÷ those of a coroutine that looks into a dict, the limit. ``l1_vs_<rival>``: ÷
the rival's. ``l2_64_vs_redis_py``, ``l2_1_vs_redis_py``: typed hits in Redis a second, 64 tasks and one, ÷ redis-py's
GETs, which decode nothing. ``l2_64_vs_<rival>``: ÷ the rival's hits. ``stampede_slowest_vs_loader``: four processes ask
250 times each for one missing value; the slowest answer ÷ the time of the load (less is better), median of three.
``stampede_loads``: how often it was loaded in the worst of them. ``frozen_ms``: the first answer once Redis is stopped
in its tracks, with a loader that takes no time; ``frozen_next_us``: one after that. ``…_cpu_vs_…``: the ratios of the
same rounds in CPU time of this process, for machines that are busy with others as well.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import cycle
from statistics import median

import aiocache  # type: ignore[import-untyped]
import async_lru
import cashews
import msgspec
from redis.asyncio import Redis as Client

from benchmarks.measure import Comparison, Operation, Report, compare, console
from daydo_cache import Cache, Policy, Space
from daydo_cache.testing import Stampede, stampede
from daydo_redis import Redis
from daydo_redis.embedded import PrivateRedis

TASKS = 64
START_S = 10.0
LOAD_S = 0.05
STAMPEDES = 3
NO_MEMORY = Policy(ttl_s=3600, local_entries=0, early_factor=0)


class User(msgspec.Struct, frozen=True):
    """A value of some 100 bytes, as many are."""

    id: str
    name: str
    tenant: str
    roles: tuple[str, ...]
    created_us: int


ALICE = User(
    "u_7", "Alice Example of Somewhere", "tenant_of_average_length", ("member", "editor"), 1_700_000_000_000_000
)


async def run() -> Report:
    """Every comparison, on a server that is gone afterwards."""
    report = Report()
    port = _free_port()
    server = PrivateRedis(("--port", str(port), "--bind", "127.0.0.1"))  # one of the rivals speaks TCP alone
    url = f"redis://127.0.0.1:{port}/0"
    try:
        await asyncio.to_thread(server.wait_ready, START_S)
        async with Redis(url) as redis, Cache(redis) as cache:
            await _memory(cache.space("memory", User, ttl_s=3600), report)
            await _redis(cache.space("redis", User, policy=NO_MEMORY), url, report)
        await _stampedes(url, report)
        report.figures |= await _frozen(server)
    finally:
        await asyncio.to_thread(server.stop)
    return report


async def _load(_: str) -> User:
    return ALICE


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# -- hits --------------------------------------------------------------------------------------------------------------


async def _memory(space: Space[User], report: Report) -> None:
    known = {"u_7": ALICE}
    lru = async_lru.alru_cache(maxsize=1000)(_load)
    other = aiocache.cached(ttl=3600)(_load)

    async def dictionary(key: str) -> User:
        return known[key]

    rivals: dict[str, Operation] = {
        "daydo": lambda: space.get_or_load("u_7", _load),
        "dict": lambda: dictionary("u_7"),
        "async_lru": lambda: lru("u_7"),
        "aiocache": lambda: other("u_7"),
    }
    comparison = await compare("hit in memory", rivals)
    comparison.show("dict")
    _tell(report, "l1", comparison)


async def _redis(space: Space[User], url: str, report: Report) -> None:
    client = Client.from_url(url, max_connections=TASKS)
    keys = [f"u_{number}" for number in range(TASKS)]
    for key in keys:
        await space.get_or_load(key, _load)
        await client.set(f"plain_{key}", msgspec.msgpack.encode(ALICE))
    turn = cycle(keys)  # every task another key: nobody shares an answer
    async with _rivals(url, keys) as rivals:
        readers: dict[str, Callable[[str], Awaitable[object]]] = {
            "daydo": lambda key: space.get_or_load(key, _load),
            "redis-py": lambda key: client.get(f"plain_{key}"),
            **rivals,
        }
        operations: dict[str, Operation] = {
            name: (lambda read=read: read(next(turn)))  # type: ignore[misc]
            for name, read in readers.items()
        }
        crowd = await compare(f"hit in Redis, {TASKS} tasks", operations, tasks=TASKS)
        crowd.show("redis-py")
        _tell(report, f"l2_{TASKS}", crowd)
        alone = await compare("hit in Redis, 1 task", {name: operations[name] for name in ("daydo", "redis-py")})
        alone.show("redis-py")
        _tell(report, "l2_1", alone)
    await client.aclose()


@asynccontextmanager
async def _rivals(url: str, keys: list[str]) -> AsyncIterator[dict[str, Callable[[str], Awaitable[object]]]]:
    theirs = cashews.Cache()
    theirs.setup(url, max_connections=TASKS)
    other = aiocache.Cache.from_url(f"{url}?pool_max_size={TASKS}")
    other.serializer = aiocache.serializers.PickleSerializer()
    for key in keys:
        await theirs.set(f"cashews_{key}", ALICE)
        await other.set(f"aiocache_{key}", ALICE)
    try:
        yield {
            "cashews": lambda key: theirs.get(f"cashews_{key}"),
            "aiocache": lambda key: other.get(f"aiocache_{key}"),
        }
    finally:
        await theirs.close()
        await other.close()


def _tell(report: Report, what: str, comparison: Comparison) -> None:
    for rival in comparison.wall_s:
        if rival != "daydo":
            name = rival.replace("-", "_")
            report.ratios[f"{what}_vs_{name}"] = comparison.ratio("daydo", rival)
            pairs = zip(comparison.cpu_s["daydo"], comparison.cpu_s[rival], strict=True)
            report.figures[f"{what}_cpu_vs_{name}"] = round(median(their / our for our, their in pairs), 3)
    report.figures[f"{what}_us"] = round(median(comparison.wall_s["daydo"]) * 1e6, 2)


# -- misses ------------------------------------------------------------------------------------------------------------


async def _stampedes(url: str, report: Report) -> None:
    seen: list[Stampede] = []
    for turn in range(STAMPEDES):
        seen.append(await stampede(url, processes=4, gets=250, load_s=LOAD_S, key=f"stampede_{turn}"))
        console.print(f"stampede: {seen[-1].loads} load(s), slowest {seen[-1].slowest_s * 1e3:.0f} ms")
    report.ratios["stampede_slowest_vs_loader"] = round(median(each.slowest_s for each in seen) / LOAD_S, 3)
    report.figures["stampede_loads"] = max(each.loads for each in seen)


async def _frozen(server: PrivateRedis) -> dict[str, float]:
    """How long callers wait when Redis holds its connections and says nothing."""
    async with Redis(server.url) as redis, Cache(redis) as cache:
        space = cache.space("frozen", User)
        await space.get_or_load("warm", _load)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            waits_s = [await _time(space, f"u_{number}") for number in range(50)]
        finally:
            os.kill(server.pid, signal.SIGCONT)
    figures = {"frozen_ms": round(waits_s[0] * 1e3, 1), "frozen_next_us": round(median(waits_s[10:]) * 1e6, 1)}
    console.print(f"frozen server: first answer {figures['frozen_ms']} ms, then {figures['frozen_next_us']} µs")
    return figures


async def _time(space: Space[User], key: str) -> float:
    began = time.perf_counter()
    await space.get_or_load(key, _load)
    return time.perf_counter() - began

"""daydo-redis beside redis-py, which it stands on, over one private server.

``get_1``, ``get_64``, ``eval_64``: our speed ÷ redis-py's, 1 and 64 tasks. redis-py plays with a warm pool of as many
connections as there are tasks; a script is called through its own ``register_script``.
``frozen_ms``: the first call to a server that was stopped in its tracks. ``refused_us``: a call once the breaker is
open. ``*_us``: one operation of ours.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from statistics import median

from redis.asyncio import Redis as Client

from benchmarks.measure import Comparison, Report, compare, console
from daydo_redis import Redis, RedisError
from daydo_redis.embedded import PrivateRedis

TASKS = 64
START_S = 10.0
VALUE = b"v" * 100
LUA = "return redis.call('GET', KEYS[1])"


async def run() -> Report:
    """Every comparison, on a server that is gone afterwards."""
    report = Report()
    server = PrivateRedis()
    try:
        await asyncio.to_thread(server.wait_ready, START_S)
        client = Client.from_url(server.url, max_connections=TASKS)
        async with Redis(server.url) as redis:
            await redis.set("key", VALUE)
            for name, comparison in (
                ("get_1", await _get(redis, client, 1)),
                (f"get_{TASKS}", await _get(redis, client, TASKS)),
                (f"eval_{TASKS}", await _eval(redis, client, TASKS)),
            ):
                comparison.show("redis-py")
                report.ratios[name] = comparison.ratio("daydo", "redis-py")
                report.figures[f"{name}_us"] = round(median(comparison.wall_s["daydo"]) * 1e6, 2)
        await client.aclose()
        report.figures |= await _frozen(server)
    finally:
        await asyncio.to_thread(server.stop)
    return report


async def _get(redis: Redis, client: Client, tasks: int) -> Comparison:
    title = f"GET of {len(VALUE)} bytes, {tasks} task{'s' if tasks > 1 else ''}"
    return await compare(title, {"daydo": lambda: redis.get("key"), "redis-py": lambda: client.get("key")}, tasks=tasks)


async def _eval(redis: Redis, client: Client, tasks: int) -> Comparison:
    ours, theirs = redis.script(LUA), client.register_script(LUA)
    rivals = {"daydo": lambda: ours(keys=["key"]), "redis-py": lambda: theirs(keys=["key"])}
    return await compare(f"EVALSHA of a script that reads, {tasks} tasks", rivals, tasks=tasks)


async def _frozen(server: PrivateRedis) -> dict[str, float]:
    """How long callers wait for a server that holds its connections and says nothing."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        async with Redis(server.url) as redis:
            waits_s = [await _failure_s(redis) for _ in range(50)]
    finally:
        os.kill(server.pid, signal.SIGCONT)
    figures = {"frozen_ms": round(waits_s[0] * 1e3, 1), "refused_us": round(min(waits_s[10:]) * 1e6, 1)}
    console.print(f"frozen server: first call {figures['frozen_ms']} ms, then refused in {figures['refused_us']} µs")
    return figures


async def _failure_s(redis: Redis) -> float:
    began = time.perf_counter()
    try:
        await redis.get("key")
    except RedisError:
        return time.perf_counter() - began
    raise AssertionError("a frozen server has answered")

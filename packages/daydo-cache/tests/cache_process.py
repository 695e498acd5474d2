"""One of two processes that share a number: writes it, invalidates, reads it, and has its connections cut.

``python cache_process.py URL SEED``; prints what was acknowledged when, and what was read when, on the clock that all
processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Never

from daydo_cache import Cache, CacheConfig, Space
from daydo_redis import Redis, RedisConfig, RedisError

BOUND_S = 0.3
RUN_S = 2.0
TRUTH = "two:truth"
PATIENT = RedisConfig(command_timeout_s=2.0, subscribe_timeout_s=2.0, pubsub_retry_max_s=0.1)


class Process:
    """``database`` holds the number; ``numbers`` remembers it."""

    def __init__(self, database: Redis, numbers: Space[int], seed: int) -> None:
        self.database = database
        self.numbers = numbers
        self.dice = random.Random(seed)
        self.written: list[tuple[float, int]] = []
        self.reads: list[tuple[float, int]] = []

    async def load(self, _: str) -> int:
        number = int(await self.database.get(TRUTH) or 0)
        await asyncio.sleep(self.dice.uniform(0, 0.01))
        return number

    async def write(self) -> Never:
        while True:
            await asyncio.sleep(self.dice.uniform(0, 0.05))
            number = await self.database.call("INCR", TRUTH)
            try:
                await self.numbers.invalidate("n")
            except RedisError:
                continue
            self.written.append((time.monotonic(), number))

    async def read(self) -> Never:
        while True:
            asked_s = time.monotonic()
            value = await self.numbers.get_or_load("n", self.load)
            self.reads.append((asked_s, value or 0))
            await asyncio.sleep(self.dice.uniform(0, 0.004))

    async def cut(self) -> Never:
        while True:
            await asyncio.sleep(self.dice.uniform(0.2, 0.6))
            await self.database.call("CLIENT", "KILL", "TYPE", "pubsub")

    async def run(self) -> None:
        tasks = [asyncio.create_task(work()) for work in (self.write, self.read, self.read, self.cut)]
        done, _ = await asyncio.wait(tasks, timeout=RUN_S, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        for task in done:
            task.result()
        await asyncio.gather(*tasks, return_exceptions=True)


async def main(url: str, seed: int) -> None:
    config = CacheConfig(staleness_s=BOUND_S, beats=10, prefix="two")
    async with Redis(url, PATIENT) as database, Redis(url, PATIENT) as redis, Cache(redis, config) as cache:
        process = Process(database, cache.space("number", int, ttl_s=600, grace_s=600), seed)
        await process.run()
    print(json.dumps({"bound_s": BOUND_S, "written": process.written, "reads": process.reads}))  # noqa: T201


asyncio.run(main(sys.argv[1], int(sys.argv[2])))

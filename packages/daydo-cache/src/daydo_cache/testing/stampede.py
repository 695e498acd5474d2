"""Many ask at once for one value that nobody has, in several processes.

``python -m daydo_cache.testing.stampede`` is one of them: it says ``ready``, waits for a line, asks, and prints what it
has seen. A module of yours stands in for the built-in loader as ``target``.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec

from daydo_cache.cache import Cache
from daydo_redis import Redis

Get = Callable[[], Awaitable[object]]
Target = Callable[[Redis, "Order", Callable[[], None]], AbstractAsyncContextManager[Get]]
START_S = 30.0


class Order(msgspec.Struct, frozen=True):
    """What one process shall do: ``gets`` at once, of ``key``, of what ``target`` (``module:name``) opens."""

    url: str
    target: str
    key: str
    gets: int
    load_s: float


class Stampede(msgspec.Struct, frozen=True):
    """What became of it: how often the value was loaded, the slowest and the median answer in seconds, and how many
    different values were seen."""

    loads: int
    slowest_s: float
    median_s: float
    values: int


class _Seen(msgspec.Struct):
    loads: int
    seconds: list[float]
    values: list[str]


@asynccontextmanager
async def built_in(redis: Redis, order: Order, loaded: Callable[[], None]) -> AsyncIterator[Get]:
    """A space with a loader that takes ``load_s``."""
    async with Cache(redis) as cache:
        space = cache.space("stampede", str)

        async def load(key: str) -> str:
            loaded()
            await asyncio.sleep(order.load_s)
            return f"{key} {time.monotonic_ns()}"

        yield lambda: space.get_or_load(order.key, load)


async def stampede(
    url: str,
    *,
    processes: int = 4,
    gets: int = 250,
    load_s: float = 0.05,
    key: str = "stampede",
    target: str = f"{__name__}:built_in",
) -> Stampede:
    """Let ``processes`` ask ``gets`` times each, all at the same moment.

    ``target`` is ``module:name`` of a function like :func:`built_in`: it gets an entered :class:`daydo_redis.Redis`,
    the order and a function to call for every load, and opens to what one get is.

    Raises:
        RuntimeError: a process failed; its standard error is in the message.
    """
    order = msgspec.json.encode(Order(url, target, key, gets, load_s)).decode()
    children = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, order),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(processes)
    ]
    try:
        async with asyncio.timeout(START_S):
            for child in children:
                assert child.stdout is not None
                await child.stdout.readline()
        seen = await asyncio.gather(*map(_ask, children))
    finally:
        for child in children:
            if child.returncode is None:
                child.kill()
                await child.wait()
    seconds = sorted(each for one in seen for each in one.seconds)
    return Stampede(
        loads=sum(one.loads for one in seen),
        slowest_s=seconds[-1],
        median_s=seconds[len(seconds) // 2],
        values=len({value for one in seen for value in one.values}),
    )


async def _ask(child: asyncio.subprocess.Process) -> _Seen:
    out, err = await child.communicate(b"go\n")
    if child.returncode:
        raise RuntimeError(f"a process of the stampede failed: {err.decode(errors='replace')[-2000:]}")
    return msgspec.json.decode(out, type=_Seen)


async def _run(order: Order) -> _Seen:
    module, _, name = order.target.partition(":")
    target: Target = getattr(importlib.import_module(module), name)
    loads = 0

    def loaded() -> None:
        nonlocal loads
        loads += 1

    async with Redis(order.url) as redis, target(redis, order, loaded) as get:
        print("ready", flush=True)  # noqa: T201 (the protocol between us and our parent)
        await asyncio.to_thread(sys.stdin.readline)
        answers = await asyncio.gather(*(_time(get) for _ in range(order.gets)))
    return _Seen(loads, [seconds for seconds, _ in answers], sorted({value for _, value in answers}))


async def _time(get: Get) -> tuple[float, str]:
    began = time.perf_counter()
    value = await get()
    return time.perf_counter() - began, repr(value)


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(asyncio.run(_run(msgspec.json.decode(sys.argv[1], type=Order)))).decode())

"""Loaders that say what was asked of them, and the configurations of tests that are not about time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from daydo_cache import Cache, CacheConfig, Space
from daydo_kernel import Metrics
from daydo_redis.testing import SHORT_S, eventually

PATIENT = CacheConfig(start_wait_s=SHORT_S, staleness_s=10.0, beats=40)


class User(msgspec.Struct, frozen=True):
    id: str
    name: str


class Loader:
    """``users[id]`` is the database; ``asked`` what was asked of it. While ``gate`` is clear it does not answer."""

    def __init__(self, **users: str) -> None:
        self.users = users
        self.asked: list[Any] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.reached = asyncio.Event()

    async def __call__(self, key: Any) -> User | None:
        self.asked.append(key)
        if self.error is not None:
            raise self.error
        name = self.users.get(str(key))  # read before anybody may change it
        self.reached.set()
        await self.gate.wait()
        return None if name is None else User(str(key), name)

    async def many(self, keys: list[Any]) -> Mapping[Any, User]:
        self.asked.append(keys)
        if self.error is not None:
            raise self.error
        return {key: User(str(key), self.users[str(key)]) for key in keys if str(key) in self.users}


def users_of(cache: Cache, **options: Any) -> Space[User]:
    return cache.space("user", User, **options)


async def caught_up(cache: Cache) -> None:
    """Wait until ``cache`` has heard everything that was published so far: a beat comes after it."""
    sent_s = cache._timeline.now_s()
    await cache._link.beat()
    await eventually(lambda: cache._link.vouched_s >= sent_s + cache._link.staleness_s)


def counted(metrics: Metrics, name: str, *labels: str) -> float:
    """The value of one cell."""
    [family] = [family for family in metrics.snapshot() if family.name == f"daydo_cache_{name}"]
    return next((cell.values[0] for cell in family.cells if cell.labels == labels), 0.0)

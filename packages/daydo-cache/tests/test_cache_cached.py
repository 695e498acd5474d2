"""Functions that remember."""

from __future__ import annotations

from typing import Any

import pytest
from cache_loaders import User

from daydo_cache import Cache
from daydo_db import Database


async def test_answer_is_remembered_by_arguments(cache: Cache) -> None:
    """Positional, named and default arguments mean the same call; other values another."""
    calls: list[Any] = []

    @cache.cached(ttl_s=60)
    async def price(feature: str, size: int = 1, *, rush: bool = False) -> int:
        """What it costs."""
        calls.append((feature, size, rush))
        return size * 5

    assert await price("cutout") == 5
    assert await price("cutout", 1) == await price(feature="cutout", size=1, rush=False) == 5
    assert len(calls) == 1
    assert await price("cutout", 2) == 10
    assert await price("cutout", rush=True) == 5
    assert len(calls) == 3
    assert (price.__name__, price.__doc__) == ("price", "What it costs.")


async def test_types_do_not_meet(cache: Cache) -> None:
    """1, "1" and True are three calls."""

    @cache.cached()
    async def kind(value: Any) -> str:
        return type(value).__name__

    assert [await kind(value) for value in (1, "1", True, None, "x" * 2000)] == [
        "int",
        "str",
        "bool",
        "NoneType",
        "str",
    ]


async def test_invalidated_by_arguments(cache: Cache) -> None:
    """The call is made again, also in a transaction that commits."""
    calls = 0

    @cache.cached(name="count")
    async def count(of: str) -> int | None:
        nonlocal calls
        calls += 1
        return calls

    assert await count("a") == await count("a") == 1
    await count.invalidate(of="a")
    assert await count("a") == 2
    async with Database("sqlite://") as db, db.transaction() as tx:
        await count.invalidate_in(tx, "a")
    assert await count("a") == 3
    assert count.space.name == "count"


async def test_method_says_its_key(cache: Cache) -> None:
    """What is no plain argument is left out by ``key``; without it the call says so."""

    class Users:
        @cache.cached(name="by_id", key=lambda self, user_id: user_id)
        async def by_id(self, user_id: str) -> User:
            return User(user_id, "Ann")

        @cache.cached(name="all")
        async def all(self) -> list[User]:
            return []

    users = Users()
    assert await Users.by_id(users, "u_7") == await users.by_id("u_7") == User("u_7", "Ann")
    await users.by_id.invalidate(users, "u_7")
    with pytest.raises(TypeError):
        await users.all()


def test_function_must_say_what_it_returns(cache_without_redis: Cache) -> None:
    """There is no type to store otherwise."""
    with pytest.raises(TypeError, match="annotate"):

        @cache_without_redis.cached()
        async def nothing(x):  # type: ignore[no-untyped-def]
            return x


@pytest.fixture
def cache_without_redis() -> Cache:
    from daydo_redis import Redis

    return Cache(Redis("embedded://memory"))

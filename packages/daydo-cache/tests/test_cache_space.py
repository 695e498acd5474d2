"""One space: what is asked for comes, typed, from the nearest place that has it."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from cache_loaders import Loader, User, counted, users_of

from daydo_cache import BadKey, Cache, CacheConfig, LoadFailed, LoadTimeout, Policy
from daydo_cache.testing import FaultyRedis
from daydo_kernel.testing import ManualClock
from daydo_redis.testing import eventually


class Basket(msgspec.Struct):
    """A value that its holder may change."""

    items: list[str]


# -- hits and misses ---------------------------------------------------------------------------------------------------


async def test_value_is_loaded_once_then_kept(cache: Cache) -> None:
    """The first caller loads, the next ones get the same object out of memory."""
    users, load = users_of(cache), Loader(u_7="Ann")
    first = await users.get_or_load("u_7", load)
    assert first == User("u_7", "Ann")
    assert await users.get_or_load("u_7", load) is first
    assert load.asked == ["u_7"]
    assert counted(cache.metrics, "reads_total", "user", "local") == 1


async def test_other_process_reads_it_from_redis(cache: Cache, redis: FaultyRedis) -> None:
    """What one process loaded another gets without loading."""
    load = Loader(u_7="Ann")
    await users_of(cache).get_or_load("u_7", load)
    async with Cache(redis) as other:
        assert await users_of(other).get_or_load("u_7", load) == User("u_7", "Ann")
        assert counted(other.metrics, "reads_total", "user", "redis") == 1
    assert load.asked == ["u_7"]


async def test_nothing_is_a_value(cache: Cache, redis: FaultyRedis) -> None:
    """That there is no such user is remembered, here and elsewhere."""
    users, load = users_of(cache), Loader()
    assert await users.get_or_load("u_0", load) is None
    assert await users.get_or_load("u_0", load) is None
    async with Cache(redis) as other:
        assert await users_of(other).get_or_load("u_0", load) is None
    assert load.asked == ["u_0"]


async def test_number_is_its_digits(cache: Cache) -> None:
    """7 and "7" are one key; the loader gets what was passed; invalidating one ends both."""
    users, load = users_of(cache), Loader(**{"7": "Ann"})
    assert await users.get_or_load(7, load) is await users.get_or_load("7", load)
    await users.invalidate("7")
    await users.get_or_load(7, load)
    assert load.asked == [7, 7]


@pytest.mark.parametrize("key", ["", "x" * 513, "é" * 257, "\ud800", True, None, 1.5, b"u_7", 10**400])
async def test_bad_key_is_refused_everywhere(cache: Cache, key: Any) -> None:
    """Every method says so before it does anything."""
    users, load = users_of(cache), Loader()
    for call in (
        users.get_or_load(key, load),
        users.get_many_or_load(["u_7", key], load.many),
        users.set(key, None),
        users.invalidate("u_7", key),
    ):
        with pytest.raises(BadKey):
            await call
    assert load.asked == []


@pytest.mark.parametrize("key", ["a b", "}", "{x}", "a:b", "用户", "x" * 512, "k user u_7", "\n"])
async def test_any_text_is_a_key(cache: Cache, redis: FaultyRedis, key: str) -> None:
    """Spaces, braces and colons mean nothing: the value is kept, and its invalidation is heard by others."""
    async with Cache(redis) as other:
        here, there, load = users_of(cache), users_of(other), Loader(**{key: "Ann"})
        for users in (here, there):
            assert await users.get_or_load(key, load) == User(key, "Ann")
        load.users[key] = "Bea"
        await here.invalidate(key)
        await eventually(lambda: key not in there._shelf.memory.entries)
        assert await there.get_or_load(key, load) == User(key, "Bea")
        assert len(load.asked) == 2


# -- types -------------------------------------------------------------------------------------------------------------


async def test_callers_cannot_change_each_others_values(cache: Cache) -> None:
    """A value that can change is handed out as a copy: at the miss, to those who waited, and at every hit."""
    baskets = cache.space("basket", Basket)

    async def load(_: str) -> Basket:
        return Basket(["pear"])

    one, two = await asyncio.gather(*(baskets.get_or_load("b", load) for _ in range(2)))
    three = await baskets.get_or_load("b", load)
    assert one is not None
    one.items.append("worm")
    assert two == three == await baskets.get_or_load("b", load) == Basket(["pear"])


@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        *((kind, True) for kind in (User, tuple[User, ...], tuple[int, str], Decimal, frozenset[str])),
        *((kind, False) for kind in (Basket, list[User], dict[str, int], tuple[Basket], Any)),
    ],
)
async def test_only_what_cannot_change_is_shared(cache: Cache, kind: Any, shares: bool) -> None:
    """Sharing follows from the type, all the way down."""
    assert cache.space("x", kind)._shelf._shares is shares


async def test_wrong_type_fails_where_it_was_loaded(cache: Cache) -> None:
    """A loader that gives something else is told, and nothing is kept."""
    numbers = cache.space("number", int)

    async def load(_: str) -> Any:
        return "seven"

    with pytest.raises(TypeError, match="number"):
        await numbers.get_or_load("n", load)
    with pytest.raises(TypeError):
        await numbers.set("n", "seven")  # type: ignore[arg-type]


async def test_foreign_bytes_are_loaded_over(cache: Cache, redis: FaultyRedis) -> None:
    """What is not one of our records reads as a miss, and the load replaces it."""
    users, load = users_of(cache), Loader(u_7="Ann")
    for rubbish in (b"", b"x", b"0" * 16 + b"\xc1", b"1700000000000000" + b"\x91\x01"):
        await redis.set(users._guard.value_key("u_7"), rubbish)
        assert await users.get_or_load("u_7", load) == User("u_7", "Ann")
        raw = await redis.get(users._guard.value_key("u_7"))
        assert raw != rubbish
        users._forget("u_7")
    assert len(load.asked) == 4


async def test_versions_do_not_read_each_other(cache: Cache, redis: FaultyRedis) -> None:
    """A new version of the type finds nothing of the old one, and each ends the other's values."""
    load = Loader(u_7="Ann")
    old = users_of(cache, version=1)
    await old.get_or_load("u_7", load)
    async with Cache(redis) as deployed:
        new = users_of(deployed, version=2)
        await new.get_or_load("u_7", load)
        assert len(load.asked) == 2
        load.users["u_7"] = "Bea"
        await new.invalidate("u_7")
        await eventually(lambda: not old._shelf.memory.entries)
        assert await old.get_or_load("u_7", load) == User("u_7", "Bea")
        await old.invalidate("u_7")
        assert await redis.get(new._guard.value_key("u_7")) is None


# -- many --------------------------------------------------------------------------------------------------------------


async def test_many_are_loaded_in_one_call(cache: Cache, redis: FaultyRedis) -> None:
    """Memory, Redis and one load together answer; what does not exist is left out and remembered."""
    users, load = users_of(cache), Loader(a="A", b="B", c="C", d="D")
    async with Cache(redis) as other:
        await users_of(other).get_or_load("b", load)
    await users.get_or_load("a", load)
    found = await users.get_many_or_load(["a", "b", "c", "d", "x", "c"], load.many)
    assert found == {key: User(key, key.upper()) for key in "abcd"}
    assert load.asked == ["b", "a", ["c", "d", "x"]]
    assert await users.get_many_or_load(["x", "a"], load.many) == {"a": User("a", "A")}
    assert await users.get_many_or_load([], load.many) == {}
    assert len(load.asked) == 3


async def test_many_and_one_share_a_load(cache: Cache) -> None:
    """Who asks for one key of many that are being loaded waits for that load, and the other way round."""
    users, load = users_of(cache), Loader(a="A", b="B")
    load.gate.clear()
    one = asyncio.create_task(users.get_or_load("a", load))
    await load.reached.wait()
    many = asyncio.create_task(users.get_many_or_load(["a", "b"], load.many))
    await eventually(lambda: len(load.asked) == 2)
    load.gate.set()
    assert await one == User("a", "A")
    assert set(await many) == {"a", "b"}
    assert load.asked == ["a", ["b"]]


# -- time --------------------------------------------------------------------------------------------------------------


async def test_value_expires(redis: FaultyRedis, clock: ManualClock) -> None:
    """After ``ttl_s`` at the latest it is loaded anew; an absent one after its own time."""
    policy = Policy(ttl_s=100, absent_ttl_s=10, early_factor=0, jitter_share=0)
    async with Cache(redis, clock=clock) as cache:
        users, load = users_of(cache, policy=policy), Loader(u_7="Ann")
        for passed_s, asked in ((0, 2), (9.9, 2), (0.2, 3), (89.8, 3), (0.2, 4)):
            clock.advance(passed_s)
            await users.get_or_load("u_7", load)
            if clock.now_us() < 1_700_000_000_000_000 + 11_000_000:
                await users.get_or_load("u_0", load)
            assert len(load.asked) == asked


async def test_lifetimes_are_spread(redis: FaultyRedis, clock: ManualClock) -> None:
    """What is stored together expires apart, and never later than ``ttl_s``."""
    async with Cache(redis, clock=clock) as cache:
        users, load = users_of(cache, policy=Policy(ttl_s=100, jitter_share=0.2)), Loader()
        load.users = {f"u_{number}": "x" for number in range(50)}
        await users.get_many_or_load(load.users, load.many)
        now_s = clock.now_us() / 1e6
        lives = [held.fresh_s - now_s for held in users._shelf.memory.entries.values()]
        assert 80 <= min(lives) < 90 < max(lives) <= 100


async def test_old_value_is_served_while_a_new_one_is_loaded(redis: FaultyRedis, clock: ManualClock) -> None:
    """Within the grace nobody waits, one loads, and afterwards all get the new value."""
    async with Cache(redis, clock=clock) as cache:
        users, load = users_of(cache, ttl_s=100, grace_s=50), Loader(u_7="Ann")
        await users.get_or_load("u_7", load)
        clock.advance(120)
        load.users["u_7"] = "Bea"
        load.gate.clear()
        for _ in range(10):
            assert await users.get_or_load("u_7", load) == User("u_7", "Ann")
        await eventually(lambda: len(load.asked) == 2)
        assert await users.get_or_load("u_7", load) == User("u_7", "Ann")
        load.gate.set()
        await eventually(lambda: users._flights.joinable("u_7") is None)
        assert await users.get_or_load("u_7", load) == User("u_7", "Bea")
        clock.advance(160)
        load.users["u_7"] = "Cid"
        assert await users.get_or_load("u_7", load) == User("u_7", "Cid"), "beyond the grace one waits"


async def test_soft_timeout_prefers_the_new_value(redis: FaultyRedis, clock: ManualClock) -> None:
    """With ``soft_timeout_s`` a load that is quick enough is waited for."""
    async with Cache(redis, clock=clock) as cache:
        policy = Policy(ttl_s=100, grace_s=50, soft_timeout_s=5)
        users, load = users_of(cache, policy=policy), Loader(u_7="Ann")
        await users.get_or_load("u_7", load)
        clock.advance(120)
        load.users["u_7"] = "Bea"
        assert await users.get_or_load("u_7", load) == User("u_7", "Bea")


async def test_failing_loader_leaves_the_old_value(redis: FaultyRedis, clock: ManualClock) -> None:
    """Fail-safe: within the grace the old value is served, and the loader asked once per ``failure_ttl_s``."""
    async with Cache(redis, clock=clock) as cache:
        policy = Policy(ttl_s=100, grace_s=50, soft_timeout_s=5, failure_ttl_s=10, jitter_share=0)
        users, load = users_of(cache, policy=policy), Loader(u_7="Ann")
        await users.get_or_load("u_7", load)
        load.error = OSError("database")
        clock.advance(110)
        for passed_s, asked in ((0, 2), (5, 2), (6, 3)):
            clock.advance(passed_s)
            assert await users.get_or_load("u_7", load) == User("u_7", "Ann")
            assert len(load.asked) == asked
        clock.advance(40)
        with pytest.raises(OSError, match="database"):
            await users.get_or_load("u_7", load)


async def test_hard_timeout_lets_the_load_go_on(cache: Cache) -> None:
    """Who waited too long gets LoadTimeout; the value comes all the same, for the next one."""
    users, load = users_of(cache, policy=Policy(hard_timeout_s=0.02)), Loader(u_7="Ann")
    load.gate.clear()
    with pytest.raises(LoadTimeout) as caught:
        await users.get_or_load("u_7", load)
    assert caught.value.retryable
    load.gate.set()
    await eventually(lambda: bool(users._shelf.memory.entries))
    assert await users.get_or_load("u_7", load) == User("u_7", "Ann")
    assert len(load.asked) == 1


async def test_endless_load_is_cancelled(cache: Cache) -> None:
    """After ``load_max_s`` the loader is cancelled and its callers are told."""
    users, load = users_of(cache, policy=Policy(load_max_s=0.05)), Loader(u_7="Ann")
    load.gate.clear()
    with pytest.raises(LoadTimeout):
        await users.get_or_load("u_7", load)
    assert counted(cache.metrics, "loads_total", "user", "timeout") == 1


async def test_popular_value_is_loaded_before_it_expires(redis: FaultyRedis, clock: ManualClock) -> None:
    """Early: a value in memory is replaced behind the scenes while it is fresh, and nobody waits for that."""
    async with Cache(redis, clock=clock) as cache:
        users = users_of(cache, policy=Policy(ttl_s=100, early_factor=10, jitter_share=0))
        load = Loader(u_7="Ann")

        async def slow(key: str) -> User | None:
            clock.advance(10)
            return await load(key)

        await users.get_or_load("u_7", slow)
        held = users._shelf.memory.entries["u_7"]
        held.early_s = held.soft_s = clock.now_us() / 1e6 + 50  # whatever the dice said
        load.users["u_7"] = "Bea"
        clock.advance(40)
        assert await users.get_or_load("u_7", load) == User("u_7", "Ann")
        clock.advance(20)
        assert await users.get_or_load("u_7", load) == User("u_7", "Ann")
        await eventually(lambda: len(load.asked) == 2 and users._flights.joinable("u_7") is None)
        assert await users.get_or_load("u_7", load) == User("u_7", "Bea")


# -- failures ----------------------------------------------------------------------------------------------------------


async def test_failure_is_shared_and_remembered(redis: FaultyRedis, clock: ManualClock) -> None:
    """All who wait get the loader's own error, so do those who ask soon after; then it is asked again."""
    async with Cache(redis, clock=clock) as cache, Cache(redis, clock=clock) as other:
        users, load = users_of(cache, policy=Policy(failure_ttl_s=10)), Loader(u_7="Ann")
        load.error = OSError("database")
        outcomes = await asyncio.gather(*(users.get_or_load("u_7", load) for _ in range(5)), return_exceptions=True)
        assert outcomes == [load.error] * 5
        with pytest.raises(OSError, match="database"):
            await users.get_or_load("u_7", load)
        with pytest.raises(LoadFailed) as elsewhere:
            await users_of(other).get_or_load("u_7", load)
        assert elsewhere.value.reason == "OSError"
        assert len(load.asked) == 1
        load.error = None
        clock.advance(11)
        assert await users.get_or_load("u_7", load) == User("u_7", "Ann")
        assert await users_of_again(other, load) == User("u_7", "Ann")
        assert len(load.asked) == 2


async def test_remembered_failure_does_not_grow(cache: Cache) -> None:
    """However often it is raised: each time it tells where the loader failed, and nothing of who asked before."""
    users, load = users_of(cache, policy=Policy(failure_ttl_s=60)), Loader()
    load.error = OSError("database")
    lengths = set()
    for _ in range(20):
        with pytest.raises(OSError, match="database") as caught:
            await users.get_or_load("u_7", load)
        lengths.add(len(caught.traceback))
        assert "__call__" in {entry.name for entry in caught.traceback}
    assert max(lengths) < 10


async def users_of_again(cache: Cache, load: Loader) -> User | None:
    value: User | None = await cache._spaces["user"].get_or_load("u_7", load)
    return value


async def test_invalidation_forgets_a_failure(cache: Cache) -> None:
    """What has changed may load now."""
    users, load = users_of(cache, policy=Policy(failure_ttl_s=60)), Loader(u_7="Ann")
    load.error = OSError()
    with pytest.raises(OSError):  # noqa: PT011 (the class says it)
        await users.get_or_load("u_7", load)
    load.error = None
    await users.invalidate("u_7")
    assert await users.get_or_load("u_7", load) == User("u_7", "Ann")


async def test_loader_that_cancels_itself_has_failed(cache: Cache) -> None:
    """A cancellation inside the loader does not look like one of the caller's."""

    async def load(_: str) -> User:
        raise asyncio.CancelledError

    with pytest.raises(LoadFailed, match="could not be loaded"):
        await users_of(cache).get_or_load("u_7", load)


# -- set, bounds -------------------------------------------------------------------------------------------------------


async def test_set_replaces_and_is_heard(cache: Cache, redis: FaultyRedis) -> None:
    """A value that was set is what all get, and loads that began before do not overwrite it."""
    users, load = users_of(cache), Loader(u_7="Ann")
    load.gate.clear()
    waiting = asyncio.create_task(users.get_or_load("u_7", load))
    await load.reached.wait()
    assert await users.set("u_7", User("u_7", "Bea"))
    load.gate.set()
    await waiting
    assert await users.get_or_load("u_7", load) == User("u_7", "Bea")
    async with Cache(redis) as other:
        assert await users_of(other).get_or_load("u_7", load) == User("u_7", "Bea")
    assert await users.set("u_7", None)
    assert await users.get_or_load("u_7", load) is None
    assert len(load.asked) == 1


async def test_large_value_is_served_and_not_stored(cache: Cache, redis: FaultyRedis) -> None:
    """Beyond ``value_max_bytes`` nothing goes to Redis, and nobody is kept waiting for it."""
    users = users_of(cache, policy=Policy(value_max_bytes=100))
    load = Loader(u_7="x" * 200)
    assert await users.get_or_load("u_7", load) == User("u_7", "x" * 200)
    assert await redis.get(users._guard.value_key("u_7")) is None
    assert counted(cache.metrics, "fills_total", "user", "too_large") == 1


async def test_loads_take_turns(cache: Cache) -> None:
    """No more than ``loads_max`` loaders run at once."""
    users = users_of(cache, policy=Policy(loads_max=3))
    running, most = 0, 0

    async def load(key: str) -> User:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return User(key, "x")

    await asyncio.gather(*(users.get_or_load(f"u_{number}", load) for number in range(20)))
    assert most == 3


async def test_space_says_what_it_cannot_be(cache: Cache) -> None:
    """Names twice or malformed, versions below 1, numbers out of bounds and unknown types are refused at once."""
    users_of(cache)
    with pytest.raises(ValueError, match="already"):
        users_of(cache)
    for name in ("", "a b", "{a}", "x" * 65):
        with pytest.raises(ValueError, match="no name"):
            cache.space(name, User)
    with pytest.raises(ValueError, match="counts from 1"):
        cache.space("v", User, version=0)
    with pytest.raises(ValueError, match="ttl_s"):
        cache.space("t", User, ttl_s=-1)
    with pytest.raises(ValueError, match="tag_ttl_s"):
        Cache(cache._redis, CacheConfig(tag_ttl_s=60)).space("t", User, ttl_s=61)
    with pytest.raises(TypeError):
        cache.space("o", list[int] | tuple[int, ...])  # type: ignore[arg-type]

"""What was invalidated is gone, also from where it is just being loaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from cache_loaders import PATIENT, Loader, User, caught_up, counted, users_of

from daydo_cache import BadKey, Cache, CacheConfig, Policy
from daydo_cache.memory import Held
from daydo_cache.testing import FaultyRedis
from daydo_db import Database
from daydo_kernel.testing import ManualClock
from daydo_redis import RedisTimeout, RedisUnavailable
from daydo_redis.testing import CALM, eventually

ANN, BEA = User("u_7", "Ann"), User("u_7", "Bea")
OFTEN = CacheConfig(pending_retry_s=0.01)


@pytest.fixture
async def db() -> AsyncIterator[Database]:
    async with Database("sqlite://") as db:
        yield db


# -- a key -------------------------------------------------------------------------------------------------------------


async def test_fill_is_refused_after_an_invalidation(cache: Cache, redis: FaultyRedis) -> None:
    """A load that began before the change cannot store what it read; who asks afterwards starts another."""
    users, load = users_of(cache), Loader(u_7="Ann")
    load.gate.clear()
    early = asyncio.create_task(users.get_or_load("u_7", load))
    await load.reached.wait()
    load.users["u_7"] = "Bea"
    await users.invalidate("u_7")
    late = asyncio.create_task(users.get_or_load("u_7", load))
    await eventually(lambda: len(load.asked) == 2)
    load.gate.set()
    assert await early == ANN, "it asked before the change"
    assert await late == BEA
    assert await users.get_or_load("u_7", load) == BEA
    async with Cache(redis) as other:
        assert await users_of(other).get_or_load("u_7", load) == BEA
    assert len(load.asked) == 2
    assert counted(cache.metrics, "fills_total", "user", "refused") == 1


async def test_other_process_is_refused_as_well(cache: Cache, redis: FaultyRedis) -> None:
    """The load is here, the change over there."""
    users, load = users_of(cache), Loader(u_7="Ann")
    load.gate.clear()
    early = asyncio.create_task(users.get_or_load("u_7", load))
    await load.reached.wait()
    async with Cache(redis) as other:
        there = users_of(other)
        load.users["u_7"] = "Bea"
        await there.invalidate("u_7")
        load.gate.set()
        assert await early == ANN, "it asked before the change"
        assert await there.get_or_load("u_7", load) == BEA
    assert counted(cache.metrics, "fills_total", "user", "refused") == 1
    assert await users.get_or_load("u_7", load) == BEA


@pytest.mark.parametrize("deaf", [False, True])
async def test_read_under_way_is_not_kept(near: FaultyRedis, far: FaultyRedis, deaf: bool) -> None:
    """The answer of Redis was on its way when the news came: it is served, and not kept in memory."""
    async with Cache(near) as cache, Cache(far) as other:
        here, there, load = users_of(cache), users_of(other), Loader(u_7="Ann")
        await there.get_or_load("u_7", load)
        raw = await near.get(here._guard.value_key("u_7"))
        assert raw is not None
        mark, asked_s = here._shelf.news.mark, here._now_s()
        near.deaf = deaf
        await there.invalidate("u_7")
        if not deaf:
            await eventually(lambda: here._shelf.news.mark > mark)
        [sight] = await here._shelf.accept(["u_7"], [raw], mark, asked_s)
        assert isinstance(sight, Held)
        assert bool(here._shelf.memory.entries) is deaf


@pytest.mark.parametrize("crowded", [False, True])
async def test_news_during_a_read_keep_it_out_of_memory(near: FaultyRedis, crowded: bool) -> None:
    """What was asked for before the news may be of before the change: alone or in a crowd, its caller alone has it."""
    async with Cache(near) as cache:
        users, load = users_of(cache), Loader(u_7="Ann")
        await users.get_or_load("u_7", load)
        for heard in (True, False):
            users._shelf.memory.clear()
            cache._reader._crowded = crowded
            near.hold()
            task = asyncio.create_task(users.get_or_load("u_7", load))
            await eventually(lambda: bool(cache._reader._under_way))
            if heard:
                users._hear("u_7")
            near.release()
            assert await task == ANN
            assert bool(users._shelf.memory.entries) is not heard
        assert load.asked == ["u_7"]


async def test_invalidation_reaches_all_memories(cache: Cache, redis: FaultyRedis) -> None:
    """Other processes drop what they have as soon as they hear of it."""
    async with Cache(redis) as other:
        here, there, load = users_of(cache), users_of(other), Loader(u_7="Ann", u_8="Eve")
        for users in (here, there):
            await users.get_many_or_load(["u_7", "u_8"], load.many)
        load.users["u_7"] = "Bea"
        await here.invalidate("u_7")
        await eventually(lambda: "u_7" not in there._shelf.memory.entries)
        assert await there.get_or_load("u_7", load) == BEA
        assert "u_8" in there._shelf.memory.entries


async def test_cancelled_invalidation_is_still_carried_out(near: FaultyRedis) -> None:
    """Once it has begun, giving up does not leave the old value behind."""
    async with Cache(near) as cache:
        users, load = users_of(cache), Loader(u_7="Ann")
        await users.get_or_load("u_7", load)
        near.hold()
        task = asyncio.create_task(users.invalidate("u_7"))
        await asyncio.sleep(0)
        task.cancel()
        near.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        load.users["u_7"] = "Bea"
        assert await users.get_or_load("u_7", load) == BEA


# -- with a transaction ------------------------------------------------------------------------------------------------


async def test_nothing_is_stored_before_the_commit(cache: Cache, redis: FaultyRedis, db: Database) -> None:
    """Between ``invalidate(tx=)`` and COMMIT values are handed out and not kept; afterwards the new one is."""
    users, load = users_of(cache), Loader(u_7="Ann")
    async with Cache(redis) as other:
        there = users_of(other)
        await there.get_or_load("u_7", load)
        async with db.transaction() as tx:
            await users.invalidate("u_7", tx=tx)
            assert await redis.get(users._guard.value_key("u_7")) is None
            await eventually(lambda: not there._shelf.memory.entries)
            assert await there.get_or_load("u_7", load) == ANN
            assert await redis.get(users._guard.value_key("u_7")) is None
            assert not await users.set("u_7", ANN), "nor can it be set"
            load.users["u_7"] = "Bea"
        await eventually(lambda: counted(cache.metrics, "invalidations_total", "user", "done") == 1)
        await eventually(lambda: not there._shelf.memory.entries)
        assert await there.get_or_load("u_7", load) == BEA
        assert await users.get_or_load("u_7", load) == BEA
        assert len(load.asked) == 3


async def test_load_across_the_commit_is_refused(cache: Cache, db: Database) -> None:
    """What was read before the COMMIT is not stored after it."""
    users, load = users_of(cache), Loader(u_7="Ann")
    load.gate.clear()
    async with db.transaction() as tx:
        early = asyncio.create_task(users.get_or_load("u_7", load))
        await load.reached.wait()
        await users.invalidate("u_7", tx=tx)
    load.users["u_7"] = "Bea"
    assert users._flights.joinable("u_7") is None, "the own process reads its own write at once"
    load.gate.set()
    await early
    assert await users.get_or_load("u_7", load) == BEA


async def test_crash_after_the_commit_leaves_the_barrier(
    near: FaultyRedis, far: FaultyRedis, db: Database, clock: ManualClock
) -> None:
    """The process ends between COMMIT and invalidation: nothing old was left, and values are stored again later."""
    config = CacheConfig(barrier_ttl_s=10)
    async with Cache(near, config, clock=clock) as cache, Cache(far, config, clock=clock) as other:
        users, there, load = users_of(cache), users_of(other), Loader(u_7="Ann")
        for space in (there, users):
            await space.get_or_load("u_7", load)
        async with db.transaction() as tx:
            await users.invalidate("u_7", tx=tx)
            assert not users._shelf.memory.entries, "nobody would tell it that the COMMIT is unknown"
            tx._callbacks.clear()  # type: ignore[attr-defined]  # the crash
            load.users["u_7"] = "Bea"
        await eventually(lambda: not there._shelf.memory.entries)
        assert await there.get_or_load("u_7", load) == BEA
        assert await far.get(there._guard.value_key("u_7")) is None
        clock.advance(11)
        assert await there.get_or_load("u_7", load) == BEA
        assert await far.get(there._guard.value_key("u_7")) is not None


async def test_barred_value_is_kept_for_the_bound_alone(
    near: FaultyRedis, far: FaultyRedis, db: Database, clock: ManualClock
) -> None:
    """What was loaded before a COMMIT that nobody hears of is gone after ``staleness_s``, though the link is fine."""
    config = CacheConfig(barrier_ttl_s=600, staleness_s=2)
    async with Cache(near, config, clock=clock) as cache, Cache(far, config, clock=clock) as other:
        users, there, load = users_of(cache), users_of(other), Loader(u_7="Ann")
        async with db.transaction() as tx:
            await users.invalidate("u_7", tx=tx)
            assert await there.get_or_load("u_7", load) == ANN
            tx._callbacks.clear()  # type: ignore[attr-defined]  # the crash
            load.users["u_7"] = "Bea"
        assert await there.get_or_load("u_7", load) == ANN
        clock.advance(2.1)
        await other._link.beat()
        await eventually(lambda: other._is_linked)
        assert await there.get_or_load("u_7", load) == BEA


async def test_two_transactions_have_two_barriers(cache: Cache, redis: FaultyRedis, db: Database) -> None:
    """The end of one leaves the other's barrier where it is."""
    users, load = users_of(cache), Loader(u_7="Ann")
    await users._guard.invalidate("u_7", "k x user u_7", token="tx_other", bar=True)
    async with db.transaction() as tx:
        await users.invalidate("u_7", tx=tx)
    await eventually(lambda: counted(cache.metrics, "invalidations_total", "user", "done") == 1)
    await users.get_or_load("u_7", load)
    assert await redis.get(users._guard.value_key("u_7")) is None
    await users._guard.invalidate("u_7", "k x user u_7", token="tx_other")
    users._forget("u_7")
    await users.get_or_load("u_7", load)
    assert await redis.get(users._guard.value_key("u_7")) is not None


async def test_rollback_invalidates_nothing_more(cache: Cache, db: Database) -> None:
    """After a rollback no second invalidation comes, and the value is loaded as it was."""
    users, load = users_of(cache), Loader(u_7="Ann")

    async def change() -> None:
        async with db.transaction() as tx:
            await users.invalidate("u_7", tx=tx)
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await change()
    assert await users.get_or_load("u_7", load) == ANN
    assert counted(cache.metrics, "invalidations_total", "user", "done") == 0


# -- tags --------------------------------------------------------------------------------------------------------------


async def test_tag_ends_all_that_carry_it(cache: Cache, redis: FaultyRedis) -> None:
    """Values of two spaces end with their tenant, in every process, in Redis and in memory; the others stay."""
    options = {"tags": lambda key, user: [f"tenant:{user.name}"]}
    async with Cache(redis) as other:
        load = Loader(a="x", b="y")
        spaces = [each.space(name, User, **options) for each in (cache, other) for name in ("one", "two")]
        for space in spaces:
            await space.get_many_or_load(["a", "b"], load.many)
        assert len(load.asked) == 2
        await cache.invalidate_tags("tenant:x")
        await eventually(lambda: not any("a" in space._shelf.memory.entries for space in spaces))
        assert all("b" in space._shelf.memory.entries for space in spaces)
        for space in spaces:
            await space.get_many_or_load(["a", "b"], load.many)
        assert load.asked[2:] == [["a"], ["a"]]


async def test_tag_ends_what_is_being_loaded(cache: Cache, redis: FaultyRedis) -> None:
    """A load that began before the invalidation stores a value that nobody takes."""
    users = users_of(cache, tags=lambda key, user: ["all"])
    load = Loader(u_7="Ann")
    load.gate.clear()
    early = asyncio.create_task(users.get_or_load("u_7", load))
    await load.reached.wait()
    load.users["u_7"] = "Bea"
    await cache.invalidate_tags("all")
    load.gate.set()
    await early
    async with Cache(redis) as other:
        assert await users_of(other, tags=lambda key, user: ["all"]).get_or_load("u_7", load) == BEA
    assert await users.get_or_load("u_7", load) == BEA


async def test_tag_that_cannot_be_read_concerns_its_carriers(near: FaultyRedis, far: FaultyRedis) -> None:
    """Read together: what carries a tag whose time Redis does not say is loaded anew, the others are served."""
    options = {"tags": lambda key, user: [user.name], "policy": Policy(local_entries=0)}
    load = Loader(a="good", b="bad", c="good", d="bad")
    async with Cache(near) as cache:
        await users_of(cache, **options).get_many_or_load(list("abcd"), load.many)
    async with Cache(far) as other:
        await far.set(other._tags._key("bad"), "of another type")
        users, other._reader._crowded = users_of(other, **options), True
        found = await asyncio.gather(*(users.get_or_load(key, load) for key in "abcd"))
    assert found == [User(key, load.users[key]) for key in "abcd"]
    assert sorted(load.asked[1:]) == ["b", "d"]


async def test_nobody_joins_a_load_from_before_a_tag(near: FaultyRedis, far: FaultyRedis) -> None:
    """Who asks after the invalidation does not get what was read before it, neither here nor in another process."""
    tagged = {"tags": lambda key, user: ["all"]}
    async with Cache(near, PATIENT) as cache, Cache(far, PATIENT) as other:
        for asking in (cache, other):
            users, load = asking.space("user", User, **tagged), Loader(u_7="Ann")
            load.gate.clear()
            early = asyncio.create_task(users.get_or_load("u_7", load))
            await load.reached.wait()
            load.users["u_7"] = "Bea"
            await cache.invalidate_tags("all")
            await eventually(lambda users=users: users._flights.joinable("u_7") is None)
            late = asyncio.create_task(users.get_or_load("u_7", load))
            load.gate.set()
            assert (await early, await late) == (ANN, BEA)
            await users.invalidate("u_7")


async def test_clear_ends_a_whole_space(cache: Cache, redis: FaultyRedis) -> None:
    """All values of the space, of no other, also what is not there."""
    load, others = Loader(a="x"), cache.space("other", User)
    async with Cache(redis) as other:
        here, there = users_of(cache), users_of(other)
        for users in (here, there, others):
            await users.get_or_load("a", load)
            await users.get_or_load("absent", load)
        load.users["a"] = "z"
        await here.clear()
        await eventually(lambda: not there._shelf.memory.entries)
        assert await there.get_or_load("a", load) == User("a", "z")
        assert await others.get_or_load("a", load) == User("a", "x")


async def test_tags_of_a_transaction(cache: Cache, redis: FaultyRedis, db: Database) -> None:
    """Before COMMIT nothing with the tag is kept; after it the new value is."""
    users, load = users_of(cache, tags=lambda key, user: ["all"]), Loader(u_7="Ann")
    await users.get_or_load("u_7", load)
    async with db.transaction() as tx:
        await cache.invalidate_tags("all", tx=tx)
        await users.get_or_load("u_7", load)
        await users.get_or_load("u_7", load)
        assert len(load.asked) == 3
        load.users["u_7"] = "Bea"
    await eventually(lambda: counted(cache.metrics, "tag_invalidations_total", "done") == 1)
    await caught_up(cache)
    assert await users.get_or_load("u_7", load) == BEA
    assert await users.get_or_load("u_7", load) == BEA
    assert len(load.asked) == 4


async def test_news_of_a_tag_win_over_an_answer(near: FaultyRedis) -> None:
    """Redis was asked for a tag, news of it come, then the answer: the news are later."""
    async with Cache(near) as cache:
        near.hold()
        calls = near.calls
        asking = asyncio.create_task(cache._tags.ask(["all"]))
        await eventually(lambda: near.calls > calls)
        cache._tags.hear("all", 7)
        near.release()
        await asking
        assert cache._tags.barrier(["all"]) == 7


async def test_tags_are_checked(cache: Cache) -> None:
    """A tag that cannot be one is refused where it is named."""
    users = users_of(cache, tags=lambda key, user: ["*mine"])
    with pytest.raises(BadKey):
        await users.get_or_load("u_7", Loader(u_7="Ann"))
    with pytest.raises(BadKey):
        await cache.invalidate_tags("ok", "")


# -- without Redis -----------------------------------------------------------------------------------------------------


async def test_invalidation_waits_for_redis(near: FaultyRedis, far: FaultyRedis) -> None:
    """It raises, this process stops believing Redis, and when that is back the invalidation is delivered."""
    async with Cache(near, OFTEN) as cache, Cache(far) as other:
        users, there, load = users_of(cache), users_of(other), Loader(u_7="Ann")
        await users.get_or_load("u_7", load)
        await there.get_or_load("u_7", load)
        near.gone = True
        load.users["u_7"] = "Bea"
        with pytest.raises(RedisUnavailable):
            await users.invalidate("u_7")
        assert (await cache.health()).status == "degraded"
        assert await users.get_or_load("u_7", load) == BEA
        near.gone = False
        await eventually(lambda: not cache._pending)
        await eventually(lambda: not there._shelf.memory.entries)
        assert await there.get_or_load("u_7", load) == BEA
        assert counted(cache.metrics, "invalidations_total", "user", "deferred") == 1
        assert counted(cache.metrics, "invalidations_total", "user", "delivered") == 1


async def test_own_writes_are_read_while_redis_is_half_back(near: FaultyRedis) -> None:
    """Redis answers again, but has not yet taken the invalidation: its old value is not believed."""
    async with Cache(near, CacheConfig(pending_retry_s=600)) as cache:
        users, load = users_of(cache), Loader(u_7="Ann")
        await users.get_or_load("u_7", load)
        near.gone = True
        load.users["u_7"] = "Bea"
        with pytest.raises(RedisUnavailable):
            await users.invalidate("u_7")
        near.gone = False
        assert await users.get_or_load("u_7", load) == BEA
        assert await users.get_many_or_load(["u_7"], load.many) == {"u_7": BEA}


async def test_lost_answer_is_not_an_acknowledgement(near: FaultyRedis) -> None:
    """Carried out or not, who knows: it raises and is repeated."""
    async with Cache(near, OFTEN) as cache:
        users = users_of(cache)
        near.losing = True
        with pytest.raises(RedisTimeout):
            await users.invalidate("u_7")
        assert len(cache._pending) == 1
        near.losing = False
        await eventually(lambda: not cache._pending)


async def test_transaction_is_not_stopped_by_a_cache(near: FaultyRedis, db: Database) -> None:
    """Redis is away before COMMIT: the change goes on, and its invalidation is delivered later."""
    async with Cache(near, OFTEN) as cache:
        users, load = users_of(cache), Loader(u_7="Ann")
        await users.get_or_load("u_7", load)
        near.gone = True
        async with db.transaction() as tx:
            await users.invalidate("u_7", tx=tx)
            await cache.invalidate_tags("t", tx=tx)
            load.users["u_7"] = "Bea"
        await eventually(lambda: len(cache._pending) == 2)
        near.gone = False
        await eventually(lambda: not cache._pending)
        assert await users.get_or_load("u_7", load) == BEA


async def test_tag_waits_for_redis(near: FaultyRedis) -> None:
    """Values with the tag are loaded anew each time until Redis has taken it, and no news make them good before."""
    async with Cache(near, CacheConfig(pending_retry_s=600)) as cache:
        users, load = users_of(cache, tags=lambda key, user: ["all"]), Loader(u_7="Ann")
        await users.get_or_load("u_7", load)
        near.gone = True
        with pytest.raises(RedisUnavailable):
            await cache.invalidate_tags("all")
        near.gone = False
        cache._tags.hear("all", 0)
        load.users["u_7"] = "Bea"
        assert await users.get_or_load("u_7", load) == BEA
        await cache._pending.deliver()
        assert await users.get_or_load("u_7", load) == BEA
        assert await users.get_or_load("u_7", load) == BEA
        assert len(load.asked) == 3


async def test_too_many_become_a_whole_space(near: FaultyRedis) -> None:
    """The list is bounded: beyond it the space is invalidated at once when Redis is back."""
    async with Cache(near, CacheConfig(pending_max=10, pending_retry_s=600)) as cache:
        users, load = users_of(cache), Loader(**{f"u_{number}": "x" for number in range(20)})
        await users.get_many_or_load(load.users, load.many)
        near.gone = True
        for number in range(12):
            with pytest.raises(RedisUnavailable):
                await users.invalidate(f"u_{number}")
        assert len(cache._pending) <= 10
        near.gone = False
        load.users = dict.fromkeys(load.users, "y")
        assert await users.get_or_load("u_19", load) == User("u_19", "y")
        await cache._pending.deliver()
        assert not cache._pending
        async with Cache(near) as other:
            assert await users_of(other).get_or_load("u_3", load) == User("u_3", "y")


async def test_tag_that_fails_during_a_delivery_is_delivered_again(near: FaultyRedis) -> None:
    """Redis took the first one before the second was called: the second is neither forgotten nor believed done."""
    async with Cache(near, CacheConfig(pending_retry_s=600)) as cache:
        users, load = users_of(cache, tags=lambda key, user: ["all"]), Loader(u_7="Ann")
        near.gone = True
        with pytest.raises(RedisUnavailable):
            await cache.invalidate_tags("all")
        near.gone = False
        near.hold()
        calls = near.calls
        delivery = asyncio.create_task(cache._pending.deliver())
        await eventually(lambda: near.calls > calls)
        # What the second does when it fails: the gate would hold it as well.
        cache._pending.add_tag("all", cache._delivery("all", ""), cache._counts.tags["delivered"])
        near.release()
        await delivery
        assert len(cache._pending) == 1
        await users.get_or_load("u_7", load)
        await users.get_or_load("u_7", load)
        assert len(load.asked) == 2, "what Redis has is not believed"
        await cache._pending.deliver()
        assert not cache._pending
        await users.get_or_load("u_7", load)
        await users.get_or_load("u_7", load)
        assert len(load.asked) == 3


async def test_cancelled_set_is_still_carried_out(near: FaultyRedis) -> None:
    """Giving up half-way leaves nothing old in memory: what this process does is no news to itself."""
    async with Cache(near) as cache:
        users, load = users_of(cache), Loader(u_7="Ann")
        await users.get_or_load("u_7", load)
        near.hold()
        calls = near.calls
        task = asyncio.create_task(users.set("u_7", BEA))
        await eventually(lambda: near.calls > calls)
        task.cancel()
        await asyncio.sleep(0)
        near.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await users.get_or_load("u_7", load) == BEA
        assert load.asked == ["u_7"]


async def test_news_that_cannot_be_read_end_no_listener(cache: Cache, redis: FaultyRedis) -> None:
    """They may have been an invalidation, so memory goes; and the next ones are heard."""
    async with Cache(redis) as other:
        here, there, load = users_of(cache), users_of(other), Loader(u_7="Ann", u_8="Eve")
        for rubbish in (b"?", b"\xff", b"t node x all"):
            await here.get_or_load("u_8", load)
            assert here._shelf.memory.entries
            await redis.publish("daydo_cache:news", rubbish)
            await eventually(lambda: not here._shelf.memory.entries)
        await here.get_or_load("u_7", load)
        await there.invalidate("u_7")
        await eventually(lambda: not here._shelf.memory.entries)


async def test_leaving_delivers_what_waits(memory_url: str) -> None:
    """The last thing a cache does is to try once more."""
    async with FaultyRedis(memory_url, CALM) as redis:
        async with Cache(redis, CacheConfig(pending_retry_s=600)) as cache:
            users = users_of(cache)
            redis.gone = True
            with pytest.raises(RedisUnavailable):
                await users.invalidate("u_7")
            redis.gone = False
        assert not cache._pending


async def test_set_that_failed_leaves_nothing_old(near: FaultyRedis) -> None:
    """The old value is invalidated as soon as Redis is back."""
    async with Cache(near, OFTEN) as cache:
        users, load = users_of(cache, policy=Policy(local_entries=0)), Loader(u_7="Ann")
        await users.get_or_load("u_7", load)
        near.gone = True
        with pytest.raises(RedisUnavailable):
            await users.set("u_7", BEA)
        near.gone = False
        await eventually(lambda: not cache._pending)
        load.users["u_7"] = "Cid"
        assert await users.get_or_load("u_7", load) == User("u_7", "Cid")

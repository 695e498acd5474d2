"""The pool by itself, over connections that only pretend."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daydo_db import ConnectionLost, Database, DatabaseConfig, PoolTimeout
from daydo_db.pool import Pool


class Pretended:
    def __init__(self) -> None:
        self.usable = True
        self.in_transaction = False
        self.closed = False
        self.pings = 0
        self.ping_s = 0.0
        self.born_s = asyncio.get_running_loop().time()

    async def execute(self, statement: Any, args: Any = ()) -> Any: ...

    async def script(self, text: str) -> Any: ...

    async def ping(self) -> bool:
        self.pings += 1
        await asyncio.sleep(self.ping_s)
        return self.usable and not self.ping_s

    async def close(self) -> None:
        assert not self.closed
        self.closed = True


class World:
    """A pool and everything it ever opened."""

    def __init__(self, size: int = 2, keep: int = 2, **config: Any) -> None:
        self.opened: list[Pretended] = []
        self.connect_s = 0.0
        self.refuse = False
        self.waits: list[float] = []
        self.pool = Pool(self.connect, DatabaseConfig(**config), size=size, keep=keep, observe_wait=self.waits.append)

    async def connect(self) -> Pretended:
        await asyncio.sleep(self.connect_s)
        if self.refuse:
            raise ConnectionLost()
        self.opened.append(Pretended())
        return self.opened[-1]

    @property
    def open(self) -> list[Pretended]:
        return [connection for connection in self.opened if not connection.closed]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_connection_used_last_is_used_next() -> None:
    """The others grow old and can be closed."""
    world = World(size=3)
    first, second = await world.pool.acquire(), await world.pool.acquire()
    world.pool.release(first)
    world.pool.release(second)
    assert await world.pool.acquire() is second


async def test_waiters_are_served_in_order() -> None:
    """Nobody starves."""
    world, served = World(size=1), []
    held = await world.pool.acquire()

    async def ask(number: int) -> None:
        async with world.pool.connection():
            served.append(number)

    tasks = [asyncio.create_task(ask(number)) for number in range(5)]
    await settle()
    assert world.pool.waiting == 5
    tasks[2].cancel()
    world.pool.release(held)
    await asyncio.wait(tasks)
    assert served == [0, 1, 3, 4]
    assert (world.pool.in_use, len(world.opened)) == (0, 1)


async def test_a_slot_handed_to_someone_who_gives_up_in_that_tick_goes_on() -> None:
    """The classic leak."""
    world = World(size=1)
    held = await world.pool.acquire()
    waiter, next_in_line = (asyncio.create_task(world.pool.acquire()) for _ in range(2))
    await settle()
    world.pool.release(held)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert await next_in_line is held


async def test_giving_up_and_giving_back_in_one_tick_do_not_meet() -> None:
    """The one who gave up is passed over before it knows."""
    world = World(size=1)
    held = await world.pool.acquire()
    waiter = asyncio.create_task(world.pool.acquire())
    await settle()
    waiter.cancel()
    world.pool.release(held)
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert (world.pool.in_use, world.pool.waiting) == (0, 0)


async def test_a_failed_connect_gives_its_slot_back() -> None:
    """Refused once is not refused for ever."""
    world = World(size=1)
    world.refuse = True
    with pytest.raises(ConnectionLost):
        await world.pool.acquire()
    world.refuse = False
    await world.pool.acquire()


@pytest.mark.parametrize("fault", ["usable", "in_transaction"])
async def test_a_broken_or_dirty_connection_is_not_kept(fault: str) -> None:
    """Its user may have left a transaction open that nobody will close."""
    world = World()
    connection: Any = await world.pool.acquire()
    setattr(connection, fault, fault != "usable")
    world.pool.release(connection)
    await settle()
    assert (connection.closed, world.pool.idle, world.pool.in_use) == (True, 0, 0)


async def test_surplus_is_closed_when_it_has_been_idle_and_the_minimum_is_not() -> None:
    """The oldest goes first."""
    world = World(size=4, keep=1, pool_idle_s=1e-9)
    held = [await world.pool.acquire() for _ in range(4)]
    for connection in held:
        world.pool.release(connection)
    await asyncio.sleep(0.001)
    world.pool.trim()
    await settle()
    assert world.open == [held[-1]]


async def test_closing_takes_the_connections_of_those_who_stay() -> None:
    """And their late release does no harm."""
    world = World()
    held: Any = await world.pool.acquire()
    await world.pool.close()
    assert held.closed
    world.pool.release(held)
    assert (world.pool.in_use, world.pool.idle) == (0, 0)


async def test_closing_refuses_those_who_wait() -> None:
    """Nothing is opened for them in a pool that nobody will close again."""
    world = World(size=1)
    held = await world.pool.acquire()
    waiting = [asyncio.create_task(world.pool.acquire()) for _ in range(3)]
    await settle()
    waiting[0].cancel()
    await world.pool.close()
    world.pool.release(held)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, ConnectionLost, ConnectionLost]
    assert (world.pool.in_use, world.pool.waiting, len(world.opened)) == (0, 0, 1)


async def test_closing_refuses_the_one_who_was_handed_a_slot_in_that_tick() -> None:
    """It does not open a connection, and its slot goes on."""
    world = World(size=1)
    held = await world.pool.acquire()
    waiting = asyncio.create_task(world.pool.acquire())
    await settle()
    world.pool.release(held)
    await world.pool.close()
    with pytest.raises(ConnectionLost):
        await waiting
    assert (world.pool.in_use, world.open, len(world.opened)) == (0, [], 1)


@pytest.mark.parametrize("idle", [False, True], ids=["connecting", "pinging"])
async def test_closing_takes_a_connection_under_way(idle: bool) -> None:
    """Also where the pool is in use again before it arrives."""
    world = World(size=2, pool_ping_s=1e-9)
    if idle:
        world.pool.release(await world.pool.acquire())
        await asyncio.sleep(0.001)
    world.connect_s = 0.02
    asking = asyncio.create_task(world.pool.acquire())
    await asyncio.sleep(0)
    await world.pool.close()
    world.connect_s = 0.0
    again = await world.pool.acquire()
    with pytest.raises(ConnectionLost):
        await asking
    assert (world.open, world.pool.in_use) == ([again], 1)


Step = tuple[str, int]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["ask", "give", "cancel", "break", "tick", "trim"]), st.integers(0, 9))))
def test_no_sequence_of_events_loses_a_slot(steps: list[Step]) -> None:
    """Asking, giving back, giving up, breaking: in the end all slots are free and nothing is open but the idle."""
    asyncio.run(play(steps))


async def play(steps: list[Step]) -> None:  # noqa: C901 - a table of events reads best as one
    world = World(size=3, keep=1, acquire_timeout_s=5.0)
    asking: list[asyncio.Task[Any]] = []
    held: list[Any] = []

    def collect() -> None:
        for task in [task for task in asking if task.done()]:
            asking.remove(task)
            if not task.cancelled():
                held.append(task.result())

    for what, which in steps:
        collect()
        if what == "ask":
            asking.append(asyncio.create_task(world.pool.acquire()))
        elif what == "give" and held:
            world.pool.release(held.pop(which % len(held)))
        elif what == "cancel" and asking:
            asking[which % len(asking)].cancel()
        elif what == "break" and world.open:
            world.open[which % len(world.open)].usable = False
        elif what == "trim":
            world.pool.trim()
        elif what == "tick":
            await asyncio.sleep(0)
        assert world.pool.in_use <= world.pool.size
        assert len(set(map(id, held))) == len(held)
    while asking or held:
        collect()
        while held:
            world.pool.release(held.pop())
        await asyncio.sleep(0)
    await settle()
    assert (world.pool.in_use, world.pool.waiting) == (0, 0)
    assert len(world.open) == world.pool.idle <= 3
    await world.pool.close()
    assert not world.open


async def test_waiting_is_bounded() -> None:
    """And counted only when it succeeds."""
    world = World(size=1, acquire_timeout_s=0.01)
    await world.pool.acquire()
    with pytest.raises(PoolTimeout):
        await world.pool.acquire()
    assert len(world.waits) == 1


async def test_after_one_dead_connection_the_idle_ones_are_not_asked() -> None:
    """A server that is gone costs one ping, not one for each of them."""
    world = World(size=10, keep=10, pool_ping_s=1e-9)
    for connection in [await world.pool.acquire() for _ in range(10)]:
        world.pool.release(connection)
    for pretended in world.opened:
        pretended.ping_s = 0.01
    await asyncio.sleep(0.001)
    fresh = await world.pool.acquire()
    await settle()
    assert sum(pretended.pings for pretended in world.opened) == 1
    assert world.open == [fresh]


@pytest.mark.parametrize("slow", ["ping", "connect"])
async def test_pinging_and_connecting_are_bounded_too(slow: str) -> None:
    """By acquire_timeout_s and connect_timeout_s together; nothing stays open or taken."""
    world = World(size=1, acquire_timeout_s=0.02, connect_timeout_s=0.02, pool_ping_s=1e-9)
    if slow == "ping":
        world.pool.release(await world.pool.acquire())
        world.opened[0].ping_s = 60
        await asyncio.sleep(0.001)
    world.connect_s = 60
    async with asyncio.timeout(1):
        with pytest.raises(ConnectionLost):
            await world.pool.acquire()
    await settle()
    assert (world.pool.in_use, world.open) == (0, [])


async def test_trimming_survives_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one error would keep every connection for ever."""
    turns, again = iter(range(10)), asyncio.Event()

    def trim(pool: Pool) -> None:
        if next(turns):
            again.set()
        raise RuntimeError("trim")

    monkeypatch.setattr(Pool, "trim", trim)
    async with Database("sqlite://", DatabaseConfig(pool_idle_s=0.01)):
        await asyncio.wait_for(again.wait(), 5)


async def test_a_database_left_with_waiters_closes_and_can_be_entered_again() -> None:
    """They are told, no thread stays, and the next life has its connection."""
    db = Database("sqlite://", DatabaseConfig(drain_s=0.05))

    async def hold() -> None:
        async with db.transaction():
            await asyncio.sleep(0.2)

    async with db:
        tasks = [asyncio.create_task(hold()) for _ in range(3)]
        await asyncio.sleep(0.02)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ConnectionLost] * 3
    assert not [thread for thread in threading.enumerate() if "connection_worker" in thread.name]
    async with db:
        assert (await db.execute("SELECT 1")).rows == [(1,)]

"""The pool by itself, over connections that only pretend."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from daydo_db import ConnectionLost, Database, DatabaseConfig, PoolTimeout
from daydo_db.pool import Pool


class Pretended:
    def __init__(self) -> None:
        self.usable = True
        self.in_transaction = False
        self.closed = False
        self.pings = 0
        self.closes = 0
        self.ping_s = 0.0
        self.born_s = asyncio.get_running_loop().time()

    async def execute(self, statement: Any, args: Any = ()) -> Any: ...

    async def script(self, text: str) -> Any: ...

    async def ping(self) -> bool:
        self.pings += 1
        await asyncio.sleep(self.ping_s)
        return self.usable and not self.ping_s

    async def close(self) -> None:
        self.closes += 1
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


class Line(Pretended):
    """A connection whose ping is answered when the machine says so, else given up after 5 s."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: asyncio.Future[bool] | None = None

    async def ping(self) -> bool:
        self.asked = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(5.0):
                return await self.asked and self.usable
        except TimeoutError:
            return False
        finally:
            self.asked = None


class ClockedLoop(asyncio.SelectorEventLoop):
    """Time passes when it is told to."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s


SIZE, KEEP = 2, 1
CONFIG = DatabaseConfig(acquire_timeout_s=10, connect_timeout_s=5, pool_ping_s=5, pool_idle_s=30, pool_lifetime_s=1800)


class PoolMachine(RuleBasedStateMachine):
    """Everything that can happen to a pool; what must hold after each of it is in the invariants."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = ClockedLoop()
        self.opened: list[Line] = []
        self.connecting: list[asyncio.Future[Line]] = []
        self.asking: list[asyncio.Task[Any]] = []
        self.held: list[Any] = []
        self.failures: list[BaseException | None] = []
        self.pool = Pool(self.connect, CONFIG, size=SIZE, keep=KEEP, observe_wait=lambda _: None)

    async def connect(self) -> Any:
        arriving = self.loop.create_future()
        self.connecting.append(arriving)
        try:
            return await arriving
        finally:
            self.connecting.remove(arriving)

    def settle(self, ticks: int = 12) -> None:
        for _ in range(ticks):
            self.loop.run_until_complete(asyncio.sleep(0))
        for task in [task for task in self.asking if task.done()]:
            self.asking.remove(task)
            if task.cancelled():
                continue
            if task.exception() is None:
                lent = task.result()
                assert (lent.usable, lent.closed) == (True, False), "a broken connection was handed out"
                self.held.append(lent)
            else:
                self.failures.append(task.exception())

    def run(self, fn: Callable[[], object]) -> None:
        """On the loop, as a library that calls the pool would."""

        async def call() -> None:
            fn()

        self.loop.run_until_complete(call())

    @property
    def alive(self) -> list[asyncio.Task[Any]]:
        return [task for task in self.asking if not task.done() and not task.cancelling()]

    @property
    def pinged(self) -> list[asyncio.Future[bool]]:
        return [line.asked for line in self.opened if line.asked is not None and not line.asked.done()]

    @rule(settled=st.booleans())
    def ask(self, settled: bool) -> None:
        self.asking.append(self.loop.create_task(self.pool.acquire()))
        if settled:
            self.settle()

    @precondition(lambda self: len(self.held) < SIZE)
    @rule()
    def lend(self) -> None:
        """The usual course of things, so that the pool is often full."""
        self.ask(settled=True)
        while self.connecting:
            self.connected(0, works=True)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 9), fault=st.sampled_from([None, None, None, "usable", "in_transaction"]))
    def give_back(self, which: int, fault: str | None) -> None:
        connection = self.held.pop(which % len(self.held))
        if fault is not None:
            setattr(connection, fault, fault != "usable")
        fit = connection.usable and fault is None and self.loop.now_s - connection.born_s <= CONFIG.pool_lifetime_s
        first = next(iter(self.alive), None) if self.pool.waiting == len(self.asking) else None
        self.run(lambda: self.pool.release(connection))
        if fit and first is not None:
            self.loop.run_until_complete(asyncio.wait([first]))
            assert first.result() is connection, "not served in order"
        self.settle()

    @precondition(lambda self: self.asking)
    @rule(which=st.integers(0, 9), given_back=st.booleans())
    def give_up(self, which: int, given_back: bool) -> None:
        """Also in the very tick in which a connection is handed over."""
        if given_back and self.held:
            connection = self.held.pop()
            self.run(lambda: self.pool.release(connection))
        self.asking[which % len(self.asking)].cancel()
        self.settle()

    @precondition(lambda self: self.connecting)
    @rule(which=st.integers(0, 9), works=st.booleans())
    def connected(self, which: int, works: bool) -> None:
        arriving = self.connecting[which % len(self.connecting)]
        if works:
            self.run(lambda: self.opened.append(Line()))
            arriving.set_result(self.opened[-1])
        else:
            arriving.set_exception(ConnectionLost())
        self.settle()

    @precondition(lambda self: self.pinged)
    @rule(which=st.integers(0, 9), alive=st.booleans())
    def answered(self, which: int, alive: bool) -> None:
        self.pinged[which % len(self.pinged)].set_result(alive)
        self.settle()

    @precondition(lambda self: self.opened)
    @rule(which=st.integers(0, 99))
    def breaks(self, which: int) -> None:
        self.opened[which % len(self.opened)].usable = False

    @rule(seconds=st.sampled_from([0.1, 4.0, 6.0, 11.0, 31.0, 1801.0]))
    def time_passes(self, seconds: float) -> None:
        waiting = self.alive
        self.loop.now_s += seconds
        self.settle()
        if seconds > CONFIG.acquire_timeout_s:
            assert not set(waiting) & set(self.asking), "waited for longer than acquire_timeout_s"

    @rule()
    def trim(self) -> None:
        self.run(self.pool.trim)
        self.settle()

    @precondition(lambda self: len(self.opened) > SIZE)
    @rule()
    def close(self) -> None:
        self.settle()
        closing = self.loop.create_task(self.pool.close())
        self.settle()
        assert closing.done(), "closing hangs"
        closing.result()
        assert not self.connecting
        assert not self.asking
        assert not [line for line in self.opened if not line.closed]
        for connection in self.held:
            self.run(lambda connection=connection: self.pool.release(connection))  # type: ignore[misc]
        self.held.clear()

    @invariant()
    def never_too_many(self) -> None:
        assert self.pool.open <= SIZE
        assert len(set(map(id, self.held))) == len(self.held), "one connection was lent twice"
        self.settle()
        assert len([line for line in self.opened if not line.closed]) + len(self.connecting) <= SIZE
        assert not [line for line in self.opened if line.closes > 1]

    @invariant()
    def the_books_are_right(self) -> None:
        self.settle()
        assert (self.pool.in_use, self.pool.waiting) == (len(self.held), len(self.asking))

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        self.settle()
        under_way = len(self.connecting) + len(self.pinged)
        assert under_way >= min(len(self.asking), SIZE - len(self.held)), "there is room and nothing is done"
        assert not (self.asking and self.pool.idle and under_way < len(self.asking))

    def teardown(self) -> None:
        """In the end every place is free and can be used again."""
        self.close()
        for _ in range(SIZE):
            self.ask(settled=True)
        while self.connecting:
            self.connected(0, works=True)
        assert len(self.held) == SIZE
        self.close()
        self.loop.close()


TestEverySequenceOfEvents = PoolMachine.TestCase
TestEverySequenceOfEvents.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


async def test_who_waits_for_a_hung_connect_takes_what_is_given_back() -> None:
    """And the connect that ends later serves the next."""
    world = World(size=2)
    held = await world.pool.acquire()
    world.connect_s = 0.05
    waiting = asyncio.create_task(world.pool.acquire())
    await settle()
    world.pool.release(held)
    assert await asyncio.wait_for(waiting, 0.04) is held
    late = await world.pool.acquire()
    assert (late is held, len(world.opened), world.pool.in_use) == (False, 2, 2)


async def test_a_hung_connect_is_not_handed_on() -> None:
    """Who asks later has a connect of their own, and its outcome is theirs."""
    world = World(size=3)
    world.connect_s = 60
    first = asyncio.create_task(world.pool.acquire())
    await settle()
    world.connect_s = 0
    assert await asyncio.wait_for(world.pool.acquire(), 1)
    assert not first.done()
    await world.pool.close()
    with pytest.raises(ConnectionLost):
        await first


async def test_the_minimum_is_opened_ahead_one_by_one() -> None:
    """By the loop that trims; a server that refuses is asked again at its next turn."""
    world = World(size=5, keep=3)
    world.refuse = True
    world.pool.trim()
    await settle()
    assert (world.pool.idle, world.pool.open) == (0, 0)
    world.refuse = False
    world.pool.trim()
    world.pool.trim()
    assert world.pool.open == 1
    await settle()
    await settle()
    assert (world.pool.idle, len(world.opened)) == (3, 3)
    world.pool.trim()
    assert world.pool.open == 3
    await world.pool.close()


async def test_a_connect_that_does_not_hear_of_the_close_is_closed_after_it() -> None:
    """asyncio.wait_for before Python 3.12 can swallow a cancellation."""
    world = World(size=1)
    connect = world.connect

    async def deaf() -> Pretended:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return await connect()

    world.pool._connect = deaf
    asking = asyncio.create_task(world.pool.acquire())
    await settle()
    await world.pool.close()
    with pytest.raises(ConnectionLost):
        await asking
    assert (len(world.opened), world.open, world.pool.open) == (1, [], 0)


async def test_what_dies_of_age_is_replaced_ahead() -> None:
    """The minimum is there when it is needed."""
    world = World(size=2, keep=1, pool_lifetime_s=1e-9)
    world.pool.release(await world.pool.acquire())
    await asyncio.sleep(0.001)
    world.pool.trim()
    await settle()
    assert (world.opened[0].closed, len(world.opened)) == (True, 2)
    await world.pool.close()


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
    """By acquire_timeout_s; nothing stays taken, and closing ends what goes on."""
    world = World(size=1, acquire_timeout_s=0.02, connect_timeout_s=60, pool_ping_s=1e-9)
    if slow == "ping":
        world.pool.release(await world.pool.acquire())
        world.opened[0].ping_s = 60
        await asyncio.sleep(0.001)
    world.connect_s = 60
    async with asyncio.timeout(1):
        with pytest.raises(ConnectionLost):
            await world.pool.acquire()
        await world.pool.close()
    assert (world.pool.in_use, world.pool.open, world.open) == (0, 0, [])


async def test_a_connect_is_given_up_after_connect_timeout_s() -> None:
    """Its place is free again."""
    world = World(size=1, connect_timeout_s=0.02)
    world.connect_s = 60
    with pytest.raises(ConnectionLost):
        await asyncio.wait_for(world.pool.acquire(), 1)
    world.connect_s = 0
    await world.pool.acquire()


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

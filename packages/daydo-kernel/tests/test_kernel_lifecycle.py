"""A part is made without I/O, entered, drained and left, and no task outlives it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from daydo_kernel import Health, NotStarted, Part, running


class Recorder(Part):
    """Writes down which hooks were called, and misbehaves on demand."""

    def __init__(self, name: str, calls: list[str], *, fails: str = "", drain_s: float = 1.0) -> None:
        super().__init__(drain_s=drain_s)
        self.name = name
        self.calls = calls
        self.fails = fails

    async def _start(self) -> None:
        self._record("start")

    async def _drain(self) -> None:
        self._record("drain")

    async def _close(self) -> None:
        self._record("close")

    def _record(self, hook: str) -> None:
        self.calls.append(f"{hook} {self.name}")
        if self.fails == hook:
            raise OSError(f"{hook} {self.name} failed")

    async def work(self) -> str:
        self._require_started()
        return "done"


class Idle(Part):
    """A part with one task that runs until it is cancelled."""

    def __init__(self, drain_s: float = 1.0) -> None:
        super().__init__(drain_s=drain_s)
        self.cancelled = False

    async def _start(self) -> None:
        self.task = self._spawn(self._forever(), "forever")
        await asyncio.sleep(0)

    async def _forever(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def test_made_without_a_loop() -> None:
    """A constructor needs no running loop, so parts can be made at import or in a CLI."""
    Recorder("a", [])


async def test_used_only_inside() -> None:
    """Before entry and after exit a part refuses with its own name and the fix."""
    part = Recorder("a", [])
    with pytest.raises(NotStarted, match="Recorder is not running; enter it first"):
        await part.work()
    async with part:
        assert await part.work() == "done"
    with pytest.raises(NotStarted):
        await part.work()


async def test_health_follows_life() -> None:
    """A part that is not running is down."""
    part = Recorder("a", [])
    assert await part.health() == Health(status="down")
    async with part:
        assert await part.health() == Health(status="ok")
    assert await part.health() == Health(status="down")


async def test_parts_leave_in_reverse() -> None:
    """Parts enter in the order given and leave in reverse: what stands on the database goes first."""
    calls: list[str] = []
    async with running([Recorder("db", calls), Recorder("ledger", calls)]):
        calls.append("serve")
    assert calls == [
        *("start db", "start ledger", "serve"),
        *("drain ledger", "close ledger", "drain db", "close db"),
    ]


async def test_failed_start_unwinds() -> None:
    """When a part fails to start, it is closed, and those before it are drained and closed."""
    calls: list[str] = []
    with pytest.raises(OSError, match="start ledger failed"):
        async with running([Recorder("db", calls), Recorder("ledger", calls, fails="start")]):
            pytest.fail("a service with a part missing must not serve")
    assert calls == ["start db", "start ledger", "close ledger", "drain db", "close db"]


async def test_failed_start_leaves_no_task() -> None:
    """Tasks spawned before the failure are cancelled."""

    class HalfStarted(Idle):
        async def _start(self) -> None:
            await super()._start()
            raise OSError("no schema")

    part = HalfStarted()
    with pytest.raises(OSError, match="no schema"):
        await part.__aenter__()
    assert part.cancelled
    assert await part.health() == Health(status="down")


async def test_entered_once() -> None:
    """A second entry is a mistake in wiring and says so."""
    async with Idle() as part:
        with pytest.raises(RuntimeError, match="already running"):
            await part.__aenter__()
        assert (await part.health()).status == "ok"


async def test_can_be_entered_again_after_exit() -> None:
    """A part that was left can start anew."""
    part = Recorder("a", [])
    async with part:
        pass
    async with part:
        assert await part.work() == "done"


async def test_exit_cancels_tasks() -> None:
    """Leaving a part ends its tasks before the exit returns."""
    part = Idle()
    async with part:
        assert not part.task.done()
    assert part.cancelled
    assert part.task.done()


async def test_drain_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Work that does not end within drain_s is left behind with a warning, and the part still closes."""
    calls: list[str] = []

    class Stuck(Recorder):
        async def _drain(self) -> None:
            await asyncio.Event().wait()

    with caplog.at_level(logging.WARNING, "daydo"):
        async with Stuck("a", calls, drain_s=0.01):
            pass
    assert calls == ["start a", "close a"]
    assert "work was still under way after drain_s=0.01" in caplog.text


async def test_drain_finishes_work() -> None:
    """Work that ends within drain_s is not cancelled."""

    class Busy(Part):
        finished = False

        async def _start(self) -> None:
            self.task = self._spawn(self._work(), "work")

        async def _work(self) -> None:
            await asyncio.sleep(0.01)
            self.finished = True

        async def _drain(self) -> None:
            await self.task

    async with Busy(drain_s=5.0) as part:
        pass
    assert part.finished


@pytest.mark.parametrize("hook", ["drain", "close"])
async def test_failure_on_the_way_out_does_not_stop_the_others(hook: str) -> None:
    """A part whose exit fails is reported, and the parts before it still leave."""
    calls: list[str] = []
    with pytest.raises(OSError, match=f"{hook} ledger failed"):
        async with running([Recorder("db", calls), Recorder("ledger", calls, fails=hook)]):
            pass
    assert calls[-3:] == ["close ledger", "drain db", "close db"]


async def test_error_inside_passes_through() -> None:
    """What went wrong in the body is what the caller sees; the part is drained and closed all the same."""
    calls: list[str] = []
    with pytest.raises(KeyError):
        async with Recorder("a", calls):
            raise KeyError("body")
    assert calls == ["start a", "drain a", "close a"]


async def test_cancelled_while_draining_still_closes() -> None:
    """A second Ctrl-C during the drain cuts the waiting short; connections are let go all the same."""
    calls: list[str] = []
    draining = asyncio.Event()

    class Slow(Recorder):
        async def _drain(self) -> None:
            draining.set()
            await asyncio.Event().wait()

    async def serve() -> None:
        async with Slow("a", calls, drain_s=60):
            pass

    task = asyncio.create_task(serve())
    await draining.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert calls == ["start a", "close a"]


async def test_crashed_task_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """A task that dies of an error says so at once, with its name and traceback; the part goes on."""

    class Crashing(Part):
        async def _start(self) -> None:
            self._spawn(self._crash(), "sweep")

        async def _crash(self) -> None:
            raise ZeroDivisionError("boom")

    async with Crashing(drain_s=1.0) as part:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert "Crashing.sweep stopped with an error" in caplog.text
        assert "boom" in caplog.text
        assert (await part.health()).status == "ok"


class Beating(Part):
    """A part whose regular work fails every other time."""

    def __init__(self) -> None:
        super().__init__(drain_s=1.0)
        self.beats = 0
        self.enough = asyncio.Event()

    async def _start(self) -> None:
        self._repeat(0, self._beat, "beat")

    async def _beat(self) -> None:
        self.beats += 1
        if self.beats == 5:
            self.enough.set()
        if self.beats % 2:
            raise OSError("skipped a beat")


async def test_repeated_work_goes_on_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """A failing turn is logged and costs only itself; leaving the part ends the turns."""
    async with Beating() as part:
        await asyncio.wait_for(part.enough.wait(), 5)
    assert "Beating.beat failed" in caplog.text
    beats = part.beats
    await asyncio.sleep(0)
    assert part.beats == beats


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    """Leaving ends also with a library in between that loses the first cancellation."""

    class Stubborn(Idle):
        async def _forever(self) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.Event().wait()

    async with Stubborn() as part:
        pass
    assert part.task.cancelled()

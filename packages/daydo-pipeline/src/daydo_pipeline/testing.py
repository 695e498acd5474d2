"""For tests, ours and yours: fakes of what a run meets outside, and the suite every database passes.

``RunsConformance`` needs pytest-asyncio in auto mode, and a fixture ``db``: a started ``Database`` with the
tables of ``daydo_pipeline``. Subclass it; each test makes its own ``Runs``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, NamedTuple

import msgspec
import pytest

from daydo_db import CursorInvalid, Database, Tx
from daydo_db.testing import count_statements
from daydo_kernel import BadRequest, DaydoError
from daydo_kernel.testing import ManualClock

from . import (
    Account,
    Cost,
    Flow,
    FlowChanged,
    FlowUnknown,
    InputsInvalid,
    InputsTooLarge,
    KeyConflict,
    Overloaded,
    Owner,
    ProviderCall,
    Run,
    RunEvent,
    RunFinished,
    Runs,
    RunsConfig,
    RunUnknown,
    StepCall,
)
from .values import TERMINAL

OWNER = Owner("acme", "u_7")
QUICK = RunsConfig(poll_s=0.05, lease_s=2.0, drain_s=2.0, backoff_s=0.01, backoff_max_s=0.05, progress_s=0.01)
IDLE = msgspec.structs.replace(QUICK, max_parallel=0)


# The fakes declare no errors of their own: these would be listed among those that clients meet.
CREDITS_SHORT = Overloaded(what="MemoryQuota.credits")
VENDOR_BUSY = Overloaded(what="FakeProvider.busy")
VENDOR_REFUSED = InputsInvalid(flow="FakeProvider.refuses")


class Entry(NamedTuple):
    """One committed operation of :class:`MemoryQuota`."""

    op: str
    key: str
    amount: int


class MemoryQuota:
    """A quota that remembers what was committed: ``entries`` in order. For one process.

    ``credits`` is what may be held or spent in all; ``confirms`` set to an error refuses to charge.
    """

    def __init__(self, credits: int = 1_000_000) -> None:
        self.credits = credits
        self.entries: list[Entry] = []
        self.confirms: DaydoError | None = None

    async def reserve(
        self, account: Account, amount: int, *, key: str, ttl_s: float | None = None, tx: Tx, reason: str = ""
    ) -> None:
        returned = {entry.key for entry in self.entries if entry.op == "cancel"}
        taken = sum(entry.amount for entry in self.entries if entry.op == "reserve" and entry.key not in returned)
        if taken + amount > self.credits:
            raise CREDITS_SHORT
        tx.after_commit(lambda: self.entries.append(Entry("reserve", key, amount)))

    async def confirm(self, account: Account, amount: int | None = None, *, key: str, tx: Tx, reason: str = "") -> None:
        if self.confirms is not None:
            raise self.confirms
        tx.after_commit(lambda: self.entries.append(Entry("confirm", key, amount or 0)))

    async def cancel(self, account: Account, *, key: str, tx: Tx, reason: str = "") -> None:
        tx.after_commit(lambda: self.entries.append(Entry("cancel", key, 0)))

    def operations(self, key: str) -> list[str]:
        """What happened to one hold: ``["reserve", "confirm"]`` or ``["reserve", "cancel"]`` in the end."""
        return [entry.op for entry in self.entries if entry.key == key]

    def settled_once(self) -> bool:
        """Whether every hold was confirmed or cancelled, exactly once."""
        keys = {entry.key for entry in self.entries}
        return all(self.operations(key) in (["reserve", "confirm"], ["reserve", "cancel"]) for key in keys)


class FakeProvider:
    """A vendor that charges once per key and remembers the keys it was asked for.

    Attributes:
        calls: every call, in order.
        charges: calls that cost money, by key: a key seen before is answered from memory.
        busy: so many calls fail with the retryable ``VENDOR_BUSY``, before charging.
        refuses: every call fails with ``VENDOR_REFUSED``, which is final.
        gate: calls wait here after charging; set it, or clear it to make them hang.
    """

    def __init__(self, output: dict[str, Any] | None = None) -> None:
        self.output = {"image": "mask.png"} if output is None else output
        self.calls: list[ProviderCall] = []
        self.charges: Counter[str] = Counter()
        self.busy = 0
        self.refuses = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.stopped = 0

    async def run(self, call: ProviderCall) -> dict[str, Any]:
        self.calls.append(call)
        if self.busy > 0:
            self.busy -= 1
            raise VENDOR_BUSY
        if self.refuses:
            raise VENDOR_REFUSED
        if call.key not in self.charges:
            self.charges[call.key] += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return self.output


async def compose(call: StepCall, mask: str) -> dict[str, str]:
    """The second step of :func:`cutout`."""
    return {"result": f"{mask}+composed"}


def cutout(version: int = 1, *, cost: int = 5, timeout_s: float = 5.0, retries: int = 2) -> Flow:
    """The flow of the suite: a provider's step, then a function's."""
    flow = Flow("cutout", version=version, quota=Cost("credits", cost))
    mask = flow.step("mask", provider="matting", image=flow.input("photo"), timeout_s=timeout_s, retries=retries)
    flow.step("compose", compose, mask=mask["image"])
    return flow


async def finished(runs: Runs, run_id: str, owner: Owner = OWNER, within_s: float = 10.0) -> Run:
    """Wait until a run has ended and this process has counted it; what it is then."""
    run = await until(runs, run_id, lambda run: run.state in TERMINAL, owner, within_s)
    # A reader sees a commit before the task that made it runs its after_commit functions.
    await eventually(lambda: _at_rest(runs._db), within_s)
    return run


def _at_rest(db: Database) -> bool:
    pools = next(family for family in db.metrics.snapshot() if family.name == "daydo_db_pool_in_use")
    return all(cell.values[0] == 0 for cell in pools.cells)


async def until(
    runs: Runs, run_id: str, reached: Callable[[Run], bool], owner: Owner = OWNER, within_s: float = 10.0
) -> Run:
    """Follow a run's events until it is as wanted."""
    async with asyncio.timeout(within_s), aclosing(_following(runs, owner)) as news:
        async for _ in news:
            run = await runs.get(owner, run_id)
            if reached(run):
                return run
    raise AssertionError(f"the stream ended before {run_id} did")


async def eventually(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait for what no event tells."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - any condition
            await asyncio.sleep(0.005)


async def _following(runs: Runs, owner: Owner) -> AsyncGenerator[None, None]:
    """Once now, and again with every event after now."""
    async with aclosing(runs.events(owner, await runs.cursor(owner))) as events:
        yield
        async for _ in events:
            yield


class Bench(NamedTuple):
    """A started ``Runs`` with its fakes."""

    runs: Runs
    provider: FakeProvider
    quota: MemoryQuota

    async def start(self, key: str = "k_1", photo: str = "photo.jpg") -> Run:
        return await self.runs.start("cutout", {"photo": photo}, owner=OWNER, key=key)


@asynccontextmanager
async def bench(
    db: Database,
    *,
    config: RunsConfig = QUICK,
    flows: Sequence[Flow] | None = None,
    provider: FakeProvider | None = None,
    quota: MemoryQuota | None = None,
) -> AsyncIterator[Bench]:
    """Runs of :func:`cutout` on ``db``; share ``provider`` and ``quota`` to play a second process."""
    provider, quota = provider or FakeProvider(), quota or MemoryQuota()
    async with Runs(
        db, config, flows=[cutout()] if flows is None else flows, providers={"matting": provider}, quota=quota
    ) as runs:
        yield Bench(runs, provider, quota)


class RunsConformance:
    """What a run owes its owner, on any database."""

    async def test_a_run_goes_through_its_steps(self, db: Database) -> None:
        """Inputs reach the first step, its output the second, and the last output is the run's."""
        async with bench(db) as b:
            run = await b.start()
            assert (run.state, run.created, run.progress) == ("queued", True, 0.0)
            run = await finished(b.runs, run.id)
            assert (run.state, run.output, run.progress) == ("succeeded", {"result": "mask.png+composed"}, 1.0)
            assert [(step.name, step.state, step.attempt) for step in run.steps] == [
                ("mask", "succeeded", 1),
                ("compose", "succeeded", 1),
            ]
            assert b.provider.calls[0].inputs == {"image": "photo.jpg"}
            assert b.quota.operations(run.id) == ["reserve", "confirm"]

    async def test_a_repeated_start_is_one_run(self, db: Database) -> None:
        """Sixteen starts under one key at once make one run with one hold; one says created."""
        async with bench(db) as b:
            started = await asyncio.gather(*(b.start() for _ in range(16)))
            assert len({run.id for run in started}) == 1
            assert [run.created for run in started].count(True) == 1
            await finished(b.runs, started[0].id)
            again = await b.start()
            assert (again.state, again.created) == ("succeeded", False)
            assert b.quota.operations(again.id) == ["reserve", "confirm"]

    async def test_one_key_two_requests_is_a_conflict(self, db: Database) -> None:
        """A key keeps its first request; another owner's same key is another key."""
        async with bench(db) as b:
            first = await b.start(key="k")
            with pytest.raises(KeyConflict):
                await b.start(key="k", photo="other.jpg")
            other = await b.runs.start("cutout", {"photo": "other.jpg"}, owner=Owner("acme", "u_8"), key="k")
            assert other.created
            assert other.id != first.id

    async def test_owners_are_as_long_as_subjects_and_accounts_elsewhere(self, db: Database) -> None:
        """128 characters of tenant and of subject, all of which count."""
        owner, other = Owner("t" * 128, "s" * 128), Owner("t" * 128, "s" * 127 + "x")
        async with bench(db) as b:
            run = await b.runs.start("cutout", {"photo": "p"}, owner=owner, key="k" * 64)
            assert (await finished(b.runs, run.id, owner)).state == "succeeded"
            assert (await b.runs.list(other)).items == []

    async def test_wrong_inputs_are_named(self, db: Database) -> None:
        """Missing, unknown, oversized and non-JSON inputs and odd keys are refused; nothing is stored."""
        async with bench(db) as b:
            with pytest.raises(InputsInvalid) as refused:
                await b.runs.start("cutout", {"foto": "x"}, owner=OWNER, key="k")
            assert [field.field for field in refused.value.fields] == ["photo", "foto"]
            with pytest.raises(InputsInvalid):
                await b.runs.start("cutout", {"photo": object()}, owner=OWNER, key="k")
            with pytest.raises(InputsTooLarge):
                await b.start(photo="x" * 20_000)
            with pytest.raises(FlowUnknown):
                await b.runs.start("nothing", {}, owner=OWNER, key="k")
            for key in ("", "x" * 65, "with space", "键"):
                with pytest.raises(InputsInvalid):
                    await b.start(key=key)
            assert (await b.runs.list(OWNER)).items == []
            assert b.quota.entries == []

    async def test_a_refusing_quota_leaves_nothing(self, db: Database) -> None:
        """Neither in a transaction of ours nor in the caller's, even if the caller goes on and commits."""
        async with bench(db, quota=MemoryQuota(credits=4)) as b:
            with pytest.raises(Overloaded, match="MemoryQuota"):
                await b.start()
            async with db.transaction() as tx:
                with suppress(Overloaded):
                    await b.runs.start("cutout", {"photo": "p"}, owner=OWNER, key="k", tx=tx)
            assert (await b.runs.list(OWNER)).items == []
            b.quota.credits = 5
            assert (await b.start(key="k")).created

    async def test_start_joins_the_callers_transaction(self, db: Database) -> None:
        """Rolled back, there was no run; committed, it runs."""
        async with bench(db) as b:
            with suppress(ZeroDivisionError):
                async with db.transaction() as tx:
                    await b.runs.start("cutout", {"photo": "p"}, owner=OWNER, key="k", tx=tx)
                    raise ZeroDivisionError
            assert (await b.runs.list(OWNER)).items == []
            assert b.quota.entries == []
            async with db.transaction() as tx:
                run = await b.runs.start("cutout", {"photo": "p"}, owner=OWNER, key="k", tx=tx)
            assert (await finished(b.runs, run.id)).state == "succeeded"

    async def test_a_retryable_error_is_tried_again(self, db: Database) -> None:
        """Each attempt has its own key; the third one wins."""
        async with bench(db) as b:
            b.provider.busy = 2
            run = await finished(b.runs, (await b.start()).id)
            assert run.state == "succeeded"
            assert run.steps[0].attempt == 3
            assert [call.key for call in b.provider.calls] == [f"{run.id}/mask/matting/{n}" for n in (1, 2, 3)]
            states = await db.query("SELECT state, error_name FROM daydo_pipeline_attempt WHERE n = 0 ORDER BY fence")
            busy = ("failed", VENDOR_BUSY.name)
            assert [tuple(row) for row in states.rows] == [busy, busy, ("ok", None)]

    async def test_retries_have_an_end(self, db: Database) -> None:
        """When the last attempt fails the run fails with that error, and the credits come back once."""
        async with bench(db) as b:
            b.provider.busy = 100
            run = await finished(b.runs, (await b.start()).id)
            assert run.state == "failed"
            assert run.error is not None
            assert (run.error.name, run.error.text("en")) == (VENDOR_BUSY.name, str(VENDOR_BUSY))
            assert len(b.provider.calls) == 3
            assert [step.state for step in run.steps] == ["failed", "cancelled"]
            assert b.quota.operations(run.id) == ["reserve", "cancel"]

    async def test_other_errors_are_not_tried_again(self, db: Database) -> None:
        """A declared error ends the run in its own words; an unexpected one says nothing of its cause."""

        async def broken(call: StepCall) -> None:
            raise RuntimeError("secret vendor text")

        flow = Flow("broken")
        flow.step("work", broken)
        async with bench(db, flows=[cutout(), flow]) as b:
            b.provider.refuses = True
            run = await finished(b.runs, (await b.start()).id)
            assert run.error is not None
            assert (run.error.code, len(b.provider.calls)) == (VENDOR_REFUSED.code, 1)
            run = await b.runs.start("broken", {}, owner=OWNER, key="k_2")
            run = await finished(b.runs, run.id)
            assert run.error is not None
            assert run.error.name == "pipeline.step_failed"
            assert "secret" not in run.error.en + run.error.zh

    async def test_a_step_that_cancels_itself_fails(self, db: Database) -> None:
        """A CancelledError nobody asked for must not leave the run without an owner."""

        async def gone(call: StepCall) -> None:
            raise asyncio.CancelledError

        flow = Flow("gone")
        flow.step("work", gone)
        async with bench(db, flows=[flow]) as b:
            run = await finished(b.runs, (await b.runs.start("gone", {}, owner=OWNER, key="k")).id)
            assert run.state == "failed"

    async def test_a_step_has_so_much_time(self, db: Database) -> None:
        """Past timeout_s the call is stopped and the run fails, once: nobody knows what happened outside."""
        async with bench(db, flows=[cutout(timeout_s=0.05)]) as b:
            b.provider.gate.clear()
            run = await finished(b.runs, (await b.start()).id)
            assert run.error is not None
            assert (run.error.name, b.provider.stopped, len(b.provider.calls)) == ("pipeline.step_timed_out", 1, 1)
            assert b.quota.operations(run.id) == ["reserve", "cancel"]

    async def test_output_that_cannot_be_kept_fails_the_run(self, db: Database) -> None:
        """Not JSON, too large, a missing field: the run fails instead of staying half done."""

        async def odd(call: StepCall) -> object:
            return object()

        async def large(call: StepCall) -> str:
            return "x" * 100_000

        flows = [Flow("odd"), Flow("large")]
        flows[0].step("work", odd)
        flows[1].step("work", large)
        async with bench(db, flows=[*flows, cutout()], provider=FakeProvider({})) as b:
            for name, inputs in (("odd", {}), ("large", {}), ("cutout", {"photo": "p"})):
                run = await b.runs.start(name, inputs, owner=OWNER, key=name)
                run = await finished(b.runs, run.id)
                assert run.error is not None
                assert run.error.name == "pipeline.step_failed"

    async def test_a_refused_charge_fails_the_run(self, db: Database) -> None:
        """Work that cannot be charged for is not a success; the hold is cancelled in its place."""
        async with bench(db) as b:
            b.quota.confirms = CREDITS_SHORT
            run = await finished(b.runs, (await b.start()).id)
            assert run.error is not None
            assert run.error.name == CREDITS_SHORT.name
            assert b.quota.operations(run.id) == ["reserve", "cancel"]

    async def test_cancel_stops_a_running_step(self, db: Database) -> None:
        """The call sees CancelledError at once, the hold is cancelled once, a second cancel returns the run."""
        async with bench(db, config=msgspec.structs.replace(QUICK, lease_s=60.0)) as b:
            b.provider.gate.clear()
            run = await b.start()
            await until(b.runs, run.id, lambda run: run.state == "running")
            run = await b.runs.cancel(OWNER, run.id)
            assert (run.state, [step.state for step in run.steps]) == ("cancelled", ["cancelled", "cancelled"])
            assert (await b.runs.cancel(OWNER, run.id)).state == "cancelled"
            await eventually(lambda: b.provider.stopped == 1, within_s=2)
            assert b.quota.operations(run.id) == ["reserve", "cancel"]

    async def test_cancel_comes_too_late(self, db: Database) -> None:
        """A finished run stays finished, and nobody else's run can be touched or seen."""
        async with bench(db) as b:
            run = await finished(b.runs, (await b.start()).id)
            with pytest.raises(RunFinished):
                await b.runs.cancel(OWNER, run.id)
            for stranger in (Owner("acme", "u_8"), Owner("", "u_7")):
                with pytest.raises(RunUnknown):
                    await b.runs.get(stranger, run.id)
                with pytest.raises(RunUnknown):
                    await b.runs.cancel(stranger, run.id)
            for odd in ("run_无", "", "x" * 100):
                with pytest.raises(RunUnknown):
                    await b.runs.get(OWNER, odd)

    async def test_cancel_against_confirm(self, db: Database) -> None:
        """Forty cancellations race forty completions: each hold is settled exactly once, as its run says."""
        async with bench(db) as b:
            b.provider.gate.clear()
            started = [await b.start(key=f"k_{n}") for n in range(40)]
            b.provider.gate.set()

            async def cancel(number: int, run: Run) -> None:
                await asyncio.sleep(0.004 * number)
                with suppress(RunFinished):
                    await b.runs.cancel(OWNER, run.id)

            await asyncio.gather(*(cancel(number, run) for number, run in enumerate(started)))
            states = Counter[str]()
            for run in started:
                ended = await b.runs.get(OWNER, run.id)
                states[ended.state] += 1
                settled = "confirm" if ended.state == "succeeded" else "cancel"
                assert b.quota.operations(run.id) == ["reserve", settled]
            assert states.total() == states["succeeded"] + states["cancelled"] == 40

    async def test_exit_hands_steps_back(self, db: Database) -> None:
        """What is still running at exit goes on elsewhere at once: the same attempt under the same key."""
        config = RunsConfig(poll_s=0.05, lease_s=60.0, drain_s=1.5)
        provider, quota = FakeProvider(), MemoryQuota()
        async with bench(db, config=config, provider=provider, quota=quota) as b:
            provider.gate.clear()
            run = await b.start()
            await until(b.runs, run.id, lambda run: run.state == "running")
        assert provider.stopped == 1
        provider.gate.set()
        async with bench(db, config=config, provider=provider, quota=quota) as b:
            run = await finished(b.runs, run.id)
        assert (run.state, run.steps[0].attempt, provider.charges.total()) == ("succeeded", 1, 1)
        assert len({call.key for call in provider.calls}) == 1
        assert quota.operations(run.id) == ["reserve", "confirm"]
        assert (await db.query("SELECT id FROM daydo_pipeline_worker")).rows == []

    async def test_exit_waits_for_steps_that_end_in_time(self, db: Database) -> None:
        """Within drain_s a running step finishes and its outcome is kept; the next step waits for a restart."""
        async with bench(db) as b:
            b.provider.gate.clear()
            run = await b.start()
            await until(b.runs, run.id, lambda run: run.state == "running")
            asyncio.get_running_loop().call_later(0.1, b.provider.gate.set)
        async with bench(db, config=IDLE) as b:
            run = await b.runs.get(OWNER, run.id)
            assert [step.state for step in run.steps] == ["succeeded", "ready"]

    async def test_a_worker_taken_for_dead_is_fenced(self, db: Database) -> None:
        """Its step goes on elsewhere under the same key; what it delivers later is refused."""
        provider, quota = FakeProvider(), MemoryQuota()
        slow = RunsConfig(poll_s=0.05, lease_s=60.0, drain_s=1.0)
        async with bench(db, config=slow, provider=provider, quota=quota) as first:
            provider.gate.clear()
            run = await first.start()
            await until(first.runs, run.id, lambda run: run.state == "running")
            await db.execute("UPDATE daydo_pipeline_worker SET expires_at_us = 1")
            other = FakeProvider({"image": "other.png"})
            async with bench(db, provider=other, quota=quota) as second:
                run = await finished(second.runs, run.id)
                assert run.output == {"result": "other.png+composed"}
                provider.gate.set()
                await eventually(lambda: _value(first.runs, "daydo_pipeline_fenced_total") == 1)
                assert _value(second.runs, "daydo_pipeline_recovered_total") == 1
                assert await second.runs.get(OWNER, run.id) == run
            assert provider.calls[0].key == other.calls[0].key
        assert quota.operations(run.id) == ["reserve", "confirm"]

    async def test_a_step_that_kills_its_workers_is_given_up(self, db: Database) -> None:
        """After max_recoveries the run fails; without the bound it would take every process down in turn."""
        config = RunsConfig(poll_s=0.02, lease_s=0.3, drain_s=0.1, max_recoveries=2)
        async with bench(db, config=config) as b:
            b.provider.gate.clear()
            run = await b.start()
            for _ in range(3):
                await until(b.runs, run.id, lambda run: run.steps[0].state == "running")
                await db.execute("UPDATE daydo_pipeline_step SET worker_id = 'worker_gone' WHERE state = 'running'")
                await until(b.runs, run.id, lambda run: run.steps[0].state != "running")
            run = await finished(b.runs, run.id)
            assert run.error is not None
            assert run.error.name == "pipeline.step_abandoned"
            assert b.quota.operations(run.id) == ["reserve", "cancel"]

    async def test_two_workers_share_the_work(self, db: Database) -> None:
        """Every step runs once, whoever takes it."""
        provider, quota = FakeProvider(), MemoryQuota()
        async with (
            bench(db, provider=provider, quota=quota) as first,
            bench(db, provider=provider, quota=quota) as second,
        ):
            started = [await (first, second)[n % 2].start(key=f"k_{n}") for n in range(30)]
            for run in started:
                assert (await finished(first.runs, run.id)).state == "succeeded"
            assert Counter(provider.charges.values()) == {1: 30}
            assert len(provider.calls) == 30
        assert quota.settled_once()

    async def test_at_most_max_parallel_steps_run(self, db: Database) -> None:
        """The bound holds however much is ready."""
        async with bench(db, config=RunsConfig(max_parallel=3, poll_s=0.02, drain_s=0.2)) as b:
            b.provider.gate.clear()
            started = [await b.start(key=f"k_{n}") for n in range(6)]
            await eventually(lambda: len(b.provider.calls) == 3)
            await asyncio.sleep(0.1)
            assert len(b.provider.calls) == 3
            b.provider.gate.set()
            for run in started:
                assert (await finished(b.runs, run.id)).state == "succeeded"

    async def test_an_edited_flow_needs_a_new_version(self, db: Database) -> None:
        """Start-up refuses other steps under a stored version; tuning and prices may change."""
        async with bench(db):
            pass
        async with bench(db, flows=[cutout(cost=7, timeout_s=1, retries=0)]):
            pass
        changed = Flow("cutout", quota=Cost("credits", 5))
        changed.step("mask", provider="matting", image=changed.input("photo"))
        with pytest.raises(FlowChanged):
            async with bench(db, flows=[changed]):
                pass

    async def test_a_run_keeps_its_version(self, db: Database) -> None:
        """New runs take the highest version, a run begun before finishes on its own."""
        async with bench(db, config=IDLE) as b:
            old = await b.start()
        second = Flow("cutout", version=2)
        second.step("mask", provider="matting", image=second.input("photo"))
        async with bench(db, flows=[second, cutout()]) as b:
            new = await b.start(key="k_2")
            assert (await finished(b.runs, old.id)).output == {"result": "mask.png+composed"}
            assert (await finished(b.runs, new.id)).output == {"image": "mask.png"}

    async def test_a_run_whose_version_is_gone_fails(self, db: Database) -> None:
        """Nobody waits for code that no longer exists: the run fails and the credits come back."""
        quota = MemoryQuota()
        async with bench(db, config=IDLE, quota=quota) as b:
            run = await b.start()
        config = RunsConfig(poll_s=0.05, lease_s=0.3, drain_s=1.0, orphan_s=0.0)
        async with bench(db, config=config, flows=[cutout(version=2)], quota=quota) as b:
            run = await finished(b.runs, run.id)
        assert run.error is not None
        assert run.error.name == "pipeline.flow_unavailable"
        assert quota.operations(run.id) == ["reserve", "cancel"]

    async def test_a_run_has_a_deadline(self, db: Database) -> None:
        """Past run_deadline_s a run fails, whatever it was waiting for."""
        config = RunsConfig(poll_s=0.05, lease_s=0.3, drain_s=1.0, run_deadline_s=0.4)
        async with bench(db, config=config) as b:
            b.provider.gate.clear()
            run = await finished(b.runs, (await b.start()).id)
            assert run.error is not None
            assert run.error.name == "pipeline.run_timed_out"
            assert b.quota.operations(run.id) == ["reserve", "cancel"]
            await eventually(lambda: b.provider.stopped == 1)

    async def test_events_tell_each_transition_once(self, db: Database) -> None:
        """In the order of their commits, from queued to succeeded; a replay says the same."""
        async with bench(db) as b:
            run = await finished(b.runs, (await b.start()).id)
            replay = await _take(b.runs, 7, "0")
            assert [(event.name, event.step) for event in replay] == [
                ("run.queued", None),
                ("run.running", None),
                ("step.running", "mask"),
                ("step.succeeded", "mask"),
                ("step.running", "compose"),
                ("step.succeeded", "compose"),
                ("run.succeeded", None),
            ]
            assert [event.cursor for event in replay] == [str(n) for n in range(1, 8)]
            assert [event.progress for event in replay] == [0, 0, 0, 0.5, 0.5, 1, 1]
            assert {event.run_id for event in replay} == {run.id}
            assert await _take(b.runs, 2, replay[4].cursor) == replay[5:]
            assert await b.runs.cursor(OWNER) == "7"

    async def test_events_have_no_gaps(self, db: Database) -> None:
        """A reader that follows while sixty runs race on two workers sees every number once, in order."""
        quota, provider = MemoryQuota(), FakeProvider()
        async with (
            bench(db, provider=provider, quota=quota) as first,
            bench(db, provider=provider, quota=quota) as second,
        ):
            reader = asyncio.create_task(_take(second.runs, 60 * 7, "0", within_s=30))
            benches = (first, second)
            await asyncio.gather(*(benches[n % 2].start(key=f"k_{n}") for n in range(60)))
            seen = await reader
        assert [int(event.cursor) for event in seen] == list(range(1, 60 * 7 + 1))
        assert Counter(event.name for event in seen)["run.succeeded"] == 60

    async def test_progress_is_told(self, db: Database) -> None:
        """Reports reach watchers, never go back, and count into the run's progress."""
        written = asyncio.Event()

        async def slow(call: StepCall) -> None:
            call.report(0.5)
            call.report(0.2)
            await written.wait()

        flow = Flow("slow")
        flow.step("work", slow)
        async with bench(db, flows=[flow]) as b:
            run = await b.runs.start("slow", {}, owner=OWNER, key="k")
            events = await _take(b.runs, 4, "0")
            assert (events[-1].name, events[-1].progress) == ("step.progress", 0.5)
            assert (await b.runs.get(OWNER, run.id)).steps[0].progress == 0.5
            written.set()
            assert (await finished(b.runs, run.id)).progress == 1.0

    async def test_streams_end_when_the_service_drains(self, db: Database) -> None:
        """begin_drain() ends them at once, before exit, and lets no new one wait."""
        async with bench(db) as b:
            await finished(b.runs, (await b.start()).id)
            waiting = [asyncio.create_task(_all(b.runs)) for _ in range(3)]
            await asyncio.sleep(0.05)
            b.runs.begin_drain()
            async with asyncio.timeout(1):
                assert await asyncio.gather(*waiting) == [[], [], []]
            assert await _all(b.runs) == []

    async def test_streams_are_bounded(self, db: Database) -> None:
        """One stream more than max_streams is refused, a closed one makes room, and refusals come with the call."""
        async with bench(db, config=RunsConfig(max_streams=1, poll_s=0.05)) as b:
            await b.start()
            async with aclosing(b.runs.events(OWNER, "0")) as stream:
                await anext(stream)
                with pytest.raises(Overloaded):
                    b.runs.events(OWNER)
            assert await _take(b.runs, 1, "0")
            for cursor in ("x", "-1", "9" * 30, "１"):
                with pytest.raises(CursorInvalid):
                    b.runs.events(OWNER, cursor)

    async def test_too_much_waiting_is_refused(self, db: Database) -> None:
        """Beyond max_queued a new run is refused and says when to come again; a repeat is still answered."""
        config = msgspec.structs.replace(IDLE, max_queued=2, lease_s=0.3)
        async with bench(db, config=config) as b:
            started = [await b.start(key=f"k_{n}") for n in range(2)]
            await eventually(lambda: _value(b.runs, "daydo_pipeline_ready_steps") == 2)
            with pytest.raises(Overloaded) as refused:
                await b.start(key="k_2")
            assert refused.value.retry_after_s
            assert (await b.start(key="k_1")).id == started[1].id
            assert [run.id for run in (await b.runs.list(OWNER)).items] == [started[1].id, started[0].id]

    async def test_time_is_the_clock_that_was_passed(self, db: Database) -> None:
        """With a clock, runs are stamped by it and a retry waits for it, whatever the database's clock says."""
        clock = ManualClock()
        provider, config = FakeProvider(), msgspec.structs.replace(QUICK, backoff_s=30.0, backoff_max_s=60.0)
        async with Runs(
            db, config, flows=[cutout()], providers={"matting": provider}, quota=MemoryQuota(), clock=clock
        ) as runs:
            provider.busy = 1
            run = await runs.start("cutout", {"photo": "p"}, owner=OWNER, key="k")
            assert run.created_at_us == clock.now_us()
            await until(runs, run.id, lambda run: run.steps[0].attempt == 2)
            assert len(provider.calls) == 1
            clock.advance(60)
            run = await finished(runs, run.id)
            assert (run.state, run.finished_at_us) == ("succeeded", clock.now_us())

    async def test_lists_are_pages(self, db: Database) -> None:
        """Newest first; the cursor leads on; others' runs are not in them."""
        async with bench(db, config=IDLE) as b:
            started = [(await b.start(key=f"k_{n}")).id for n in range(5)]
            await b.runs.start("cutout", {"photo": "p"}, owner=Owner("acme", "u_8"), key="k")
            page = await b.runs.list(OWNER, limit=3)
            assert [run.id for run in page.items] == started[:1:-1]
            page = await b.runs.list(OWNER, page.next_cursor, limit=3)
            assert ([run.id for run in page.items], page.next_cursor) == (started[1::-1], None)
            theirs = await b.runs.list(OWNER, limit=1)
            for owner, cursor in ((OWNER, "x"), (OWNER, started[2]), (Owner("acme", "u_8"), theirs.next_cursor)):
                with pytest.raises(CursorInvalid):
                    await b.runs.list(owner, cursor)
            for limit in (0, 101):
                with pytest.raises(BadRequest):
                    await b.runs.list(OWNER, limit=limit)

    async def test_a_look_is_one_statement_however_much_there_is(self, db: Database) -> None:
        """A run with its steps, one of them or fifty; a replay of their events."""
        async with bench(db, config=IDLE) as b:
            for n in range(50):
                run = await b.start(key=f"k_{n}")
                if n in (0, 49):
                    with count_statements(db, at_most=1):
                        assert len((await b.runs.list(OWNER)).items) == n + 1
            with count_statements(db, at_most=1):
                assert await b.runs.get(OWNER, run.id)
            with count_statements(db, at_most=1):
                assert len(await _take(b.runs, 50, "0")) == 50

    async def test_metrics_count_what_happened(self, db: Database) -> None:
        """Runs and steps by outcome, and a health that says so."""
        async with bench(db) as b:
            await finished(b.runs, (await b.start()).id)
            b.provider.refuses = True
            await finished(b.runs, (await b.start(key="k_2")).id)
            assert _value(b.runs, "daydo_pipeline_runs_total", "cutout", "started") == 2
            assert _value(b.runs, "daydo_pipeline_runs_total", "cutout", "succeeded") == 1
            assert _value(b.runs, "daydo_pipeline_runs_total", "cutout", "failed") == 1
            assert _value(b.runs, "daydo_pipeline_steps_total", "cutout", "mask", "failed") == 1
            assert _value(b.runs, "daydo_pipeline_leased_workers") == 1
            assert (await b.runs.health()).status == "ok"
        assert (await b.runs.health()).status == "down"


def _value(runs: Runs, name: str, *labels: str) -> float:
    family = next(family for family in runs.metrics.snapshot() if family.name == name)
    return next(cell.values[0] for cell in family.cells if cell.labels == labels)


async def _take(runs: Runs, count: int, cursor: str, within_s: float = 10.0) -> list[RunEvent]:
    events: list[RunEvent] = []
    async with asyncio.timeout(within_s), aclosing(runs.events(OWNER, cursor)) as stream:
        while len(events) < count:
            events.append(await anext(stream))
    return events


async def _all(runs: Runs) -> list[RunEvent]:
    return [event async for event in runs.events(OWNER)]

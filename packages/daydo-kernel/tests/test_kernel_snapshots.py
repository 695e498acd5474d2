"""Several worker processes are scraped as one, and a worker that dies is counted exactly once."""

from __future__ import annotations

import fcntl
import itertools
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from daydo_kernel import FamilySnapshot, Metrics
from daydo_kernel.snapshots import WorkerSnapshots

WORKER = """
import sys
from pathlib import Path
from daydo_kernel import Metrics
from daydo_kernel.snapshots import WorkerSnapshots

metrics = Metrics("daydo_shop")
metrics.counter("sales_total", "Sales.").cell().inc(float(sys.argv[2]))
metrics.gauge("open_sales", "Under way.").cell().set(1)
with WorkerSnapshots(Path(sys.argv[1]), metrics.snapshot):
    print("ready", flush=True)
    sys.stdin.read()
"""


class Crash(BaseException):
    """What a killed process looks like to the files it leaves behind."""


@contextmanager
def worker(directory: Path, sales: int) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that has counted ``sales`` and lives until it is told or killed."""
    command = [sys.executable, "-c", WORKER, str(directory), str(sales)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def observer(directory: Path) -> WorkerSnapshots:
    """A worker of this process that counts nothing itself."""
    return WorkerSnapshots(directory, Metrics("daydo_shop").snapshot)


def total(families: list[FamilySnapshot], name: str) -> float:
    return sum(cell.values[0] for family in families if family.name == name for cell in family.cells)


def test_live_workers_are_added(tmp_path: Path) -> None:
    """One scrape shows the counters and the gauges of every living worker."""
    with worker(tmp_path, 3), worker(tmp_path, 4), observer(tmp_path) as me:
        merged = me.merged()
    assert total(merged, "daydo_shop_sales_total") == 7
    assert total(merged, "daydo_shop_open_sales") == 2


def test_killed_worker_is_counted_exactly_once(tmp_path: Path) -> None:
    """After SIGKILL a worker's counters stay, its gauges go, and further scrapes add nothing."""
    with worker(tmp_path, 3) as doomed, worker(tmp_path, 4), observer(tmp_path) as me:
        assert total(me.merged(), "daydo_shop_sales_total") == 7
        kill(doomed)
        for _ in range(3):
            merged = me.merged()
            assert total(merged, "daydo_shop_sales_total") == 7
            assert total(merged, "daydo_shop_open_sales") == 1


def test_worker_that_leaves_in_good_order_stays_counted(tmp_path: Path) -> None:
    """A worker's last counts are part of the total after its exit."""
    metrics = Metrics("daydo_shop")
    sales = metrics.counter("sales_total", "Sales.").cell()
    with WorkerSnapshots(tmp_path, metrics.snapshot):
        sales.inc(5)
    with observer(tmp_path) as me:
        assert total(me.merged(), "daydo_shop_sales_total") == 5


def test_dead_workers_leave_no_files(tmp_path: Path) -> None:
    """A service whose workers come and go all day keeps a small run directory."""
    for _ in range(5):
        with observer(tmp_path):
            pass
    with observer(tmp_path) as me:
        me.merged()
        assert {path.name for path in tmp_path.iterdir()} == {
            "dead.json",
            "fold.lock",
            f"{me.id}.json",
            f"{me.id}.lock",
        }


def test_own_part_is_fresh(tmp_path: Path) -> None:
    """The worker that is scraped shows what it counted a moment ago, not its last snapshot."""
    metrics = Metrics("daydo_shop")
    sales = metrics.counter("sales_total", "Sales.").cell()
    with WorkerSnapshots(tmp_path, metrics.snapshot) as me:
        sales.inc()
        assert total(me.merged(), "daydo_shop_sales_total") == 1


def test_crash_in_the_middle_of_folding(tmp_path: Path) -> None:
    """A worker killed at any file operation while it folds dead ones loses nothing and counts nothing twice."""
    for step in itertools.count():
        directory = tmp_path / str(step)
        for sales in (3, 4):
            metrics = Metrics("daydo_shop")
            metrics.counter("sales_total", "Sales.").cell().inc(sales)
            with WorkerSnapshots(directory, metrics.snapshot):
                pass
        with observer(directory) as unlucky:
            crashed = crashes_at(step, unlucky.merged)
        with observer(directory) as me:
            for _ in range(2):
                assert total(me.merged(), "daydo_shop_sales_total") == 7
        if not crashed:
            assert step > 8, "folding two workers takes more file operations than this test has interrupted"
            return


def crashes_at(step: int, fold: Callable[[], object]) -> bool:
    """Run ``fold`` and crash before its file operation number ``step``; False if it has fewer."""
    done = itertools.count()

    def crashing(original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            if next(done) == step:
                raise Crash
            return original(*args, **kwargs)

        return operation

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write_bytes", "replace", "unlink"):
            patch.setattr(Path, name, crashing(getattr(Path, name)))
        try:
            fold()
        except Crash:
            return True
        return False


def test_worker_that_has_just_begun_is_not_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape by another worker in the moment before a new one has its lock leaves the new one alive."""
    metrics = Metrics("daydo_shop")
    metrics.counter("sales_total", "Sales.").cell().inc(5)
    lock = fcntl.flock
    with observer(tmp_path) as other:

        def lock_after_a_scrape(descriptor: int, operation: int) -> None:
            monkeypatch.setattr(fcntl, "flock", lock)
            other.merged()
            lock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", lock_after_a_scrape)
        with WorkerSnapshots(tmp_path, metrics.snapshot) as me:
            assert total(other.merged(), "daydo_shop_sales_total") == 5
            assert (tmp_path / f"{me.id}.lock").exists()
        assert total(other.merged(), "daydo_shop_sales_total") == 5


def test_a_stopped_neighbour_does_not_stop_a_scrape(tmp_path: Path) -> None:
    """While somebody else holds the fold, the previous answer is given at once, and nothing is counted twice."""
    with worker(tmp_path, 3), observer(tmp_path) as here:
        assert total(here.merged(), "daydo_shop_sales_total") == 3
        with (tmp_path / "fold.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert total(here.merged(), "daydo_shop_sales_total") == 3
        assert total(here.merged(), "daydo_shop_sales_total") == 3

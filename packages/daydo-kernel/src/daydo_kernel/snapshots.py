"""Metrics of several worker processes, merged without shared memory.

Each worker writes its cells to ``<directory>/<id>.json`` (by rename, so readers never see half a file) while
it holds a lock on ``<id>.lock``. The operating system releases that lock however the worker dies, so a free
lock means a dead worker; its counters are folded into ``dead.json`` exactly once: that file also names the
workers it contains, so a crash between writing it and removing the worker's file cannot count twice.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import msgspec

from .ids import new_id
from .metrics import FamilySnapshot, merge_snapshots

_DEAD = "dead.json"


class _Dead(msgspec.Struct):
    workers: list[str] = []
    families: list[FamilySnapshot] = []


class WorkerSnapshots:
    """This worker's place in the run directory; a context manager that holds its lock.

    ``source`` gives this process's families; ``directory`` is private to one service and empty at its start.
    """

    def __init__(self, directory: Path, source: Callable[[], list[FamilySnapshot]]) -> None:
        self._directory = directory
        self._source = source
        self._merged: list[FamilySnapshot] = []
        self.id = new_id("worker")

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        # Locked before it is there to be found: a lock that is free belongs to a dead worker.
        fresh = self._directory / f"{self.id}.new"
        self._lock = os.open(fresh, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        fresh.rename(fresh.with_suffix(".lock"))
        self.write()
        return self

    def __exit__(self, *exc_info: object) -> None:
        # A worker that leaves in good order looks like a dead one to the others: they fold its counters.
        self.write()
        os.close(self._lock)

    def write(self) -> None:
        """Publish this worker's cells; call it every second."""
        _write(self._directory / f"{self.id}.json", self._source())

    def merged(self) -> list[FamilySnapshot]:
        """All live workers and everything the dead ones counted; this worker's part is fresh.

        While another worker merges (or was stopped in the middle of it) this is the previous answer: reading beside
        it could miss a worker or count one twice, and waiting for it would stop this one too.
        """
        self.write()
        with _try_lock(self._directory / "fold.lock") as alone:
            if alone:
                dead = self._fold()
                live = sorted(self._directory.glob("worker_*.json"), key=lambda path: path.stat().st_mtime_ns)
                self._merged = merge_snapshots([dead.families, *(_read(path) for path in live)])
        return self._merged

    def _fold(self) -> _Dead:
        path = self._directory / _DEAD
        dead = msgspec.json.decode(path.read_bytes(), type=_Dead) if path.exists() else _Dead()
        gone = [worker for worker in self._workers() if worker != self.id and self._is_dead(worker)]
        for worker in gone:
            snapshot = self._directory / f"{worker}.json"
            if worker not in dead.workers and snapshot.exists():
                counted = [family for family in _read(snapshot) if family.kind != "gauge"]
                dead = _Dead([*dead.workers, worker], merge_snapshots([dead.families, counted]))
        if gone:
            _write(path, dead)
            for worker in gone:
                (self._directory / f"{worker}.json").unlink(missing_ok=True)
                (self._directory / f"{worker}.lock").unlink(missing_ok=True)
            dead.workers = []
            _write(path, dead)
        return dead

    def _workers(self) -> list[str]:
        return [path.stem for path in self._directory.glob("worker_*.lock")]

    def _is_dead(self, worker: str) -> bool:
        with _try_lock(self._directory / f"{worker}.lock") as free:
            return free


def _read(path: Path) -> list[FamilySnapshot]:
    return msgspec.json.decode(path.read_bytes(), type=list[FamilySnapshot])


def _write(path: Path, value: object) -> None:
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_bytes(msgspec.json.encode(value))
    fresh.replace(path)


@contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True

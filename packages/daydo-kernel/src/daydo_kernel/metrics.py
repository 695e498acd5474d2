"""Metric cells: an increment is one attribute addition, everything else happens at scrape time.

A noun declares families once and keeps the cells it needs, labels already bound::

    metrics = Metrics("daydo_quota")
    holds = metrics.counter("holds_total", "Holds asked for.", labels=("outcome",))
    held, refused = holds.cell("held"), holds.cell("refused")      # both read 0 from the start
    held.inc()

Nothing here registers globally. :meth:`Metrics.snapshot` is plain data; ``daydo_kernel.prometheus`` prints
it and ``daydo_kernel.snapshots`` merges it over worker processes. Cells belong to one event loop's thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Generic, Literal, Protocol, TypeVar

import msgspec

MAX_CELLS = 1_000
OTHER = "other"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

Kind = Literal["counter", "gauge", "histogram"]
Merge = Literal["sum", "max", "latest"]


class Counter:
    """Only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount

    def values(self) -> list[float]:
        return [self.value]


class Gauge:
    """Goes up and down; or is read from a function at scrape time (:meth:`follow`)."""

    __slots__ = ("_read", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self._read: Callable[[], float] | None = None

    def set(self, value: float) -> None:
        self.value = value

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount

    def dec(self, amount: float = 1.0) -> None:
        self.value -= amount

    def follow(self, read: Callable[[], float]) -> None:
        self._read = read

    def values(self) -> list[float]:
        return [self._read() if self._read is not None else self.value]


class Histogram:
    """Counts per bucket, and the sum; ``bounds`` are upper bounds in the metric's unit, ascending."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def values(self) -> list[float]:
        return [self.sum, *self.counts]


Cell = TypeVar("Cell", Counter, Gauge, Histogram)


class CellSnapshot(msgspec.Struct):
    """``values`` is ``[value]``, or ``[sum, count of bucket 0, …, count above the last bound]``."""

    labels: tuple[str, ...]
    values: list[float]


class FamilySnapshot(msgspec.Struct):
    """One family as data: what a scrape prints and what workers merge."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    merge: Merge = "sum"
    bounds: tuple[float, ...] = ()
    cells: list[CellSnapshot] = []


class Family(Generic[Cell]):
    """All cells of one name. At most ``max_cells``; label values beyond that share one cell named ``other``."""

    def __init__(self, shape: FamilySnapshot, make: Callable[[], Cell], max_cells: int) -> None:
        self.shape = shape
        self._make: Callable[[], Cell] = make
        self._max_cells = max_cells
        self._cells: dict[tuple[str, ...], Cell] = {}

    def cell(self, *labels: str) -> Cell:
        """The cell of these label values, made on first use.

        Raises:
            ValueError: the number of values is not the number of declared labels.
        """
        cell = self._cells.get(labels)
        if cell is None:
            if len(labels) != len(self.shape.labels):
                raise ValueError(f"{self.shape.name} takes the labels {self.shape.labels}, not {labels}")
            if len(self._cells) >= self._max_cells:
                labels = (OTHER,) * len(labels)
            cell = self._cells.setdefault(labels, self._make())
        return cell

    def snapshot(self) -> FamilySnapshot:
        cells = [CellSnapshot(labels, cell.values()) for labels, cell in self._cells.items()]
        return msgspec.structs.replace(self.shape, cells=cells)


class _Snapshots(Protocol):
    def snapshot(self) -> FamilySnapshot: ...


class Metrics:
    """The families of one noun, all named ``<prefix>_<name>``."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._families: dict[str, _Snapshots] = {}

    def counter(
        self, name: str, help: str, labels: tuple[str, ...] = (), max_cells: int = MAX_CELLS
    ) -> Family[Counter]:
        """``name`` ends in ``_total``."""
        if not name.endswith("_total"):
            raise ValueError(f"counter {name} must end in _total")
        return self._add(Family(self._shape(name, "counter", help, labels), Counter, max_cells))

    def gauge(
        self,
        name: str,
        help: str,
        labels: tuple[str, ...] = (),
        merge: Merge = "sum",
        max_cells: int = MAX_CELLS,
    ) -> Family[Gauge]:
        """``merge`` says what several workers' values become: their sum, the greatest, or the newest."""
        return self._add(Family(self._shape(name, "gauge", help, labels, merge=merge), Gauge, max_cells))

    def histogram(
        self,
        name: str,
        help: str,
        labels: tuple[str, ...] = (),
        bounds: tuple[float, ...] = SECONDS,
        max_cells: int = MAX_CELLS,
    ) -> Family[Histogram]:
        """``bounds`` are upper bounds in the unit of the name; the last bucket (+Inf) is implied."""
        if list(bounds) != sorted(set(bounds)):
            raise ValueError(f"histogram {name}: bounds must ascend")
        shape = self._shape(name, "histogram", help, labels, bounds=bounds)
        return self._add(Family(shape, lambda: Histogram(bounds), max_cells))

    def snapshot(self) -> list[FamilySnapshot]:
        return [family.snapshot() for family in self._families.values()]

    def _shape(
        self,
        name: str,
        kind: Kind,
        help: str,
        labels: tuple[str, ...],
        merge: Merge = "sum",
        bounds: tuple[float, ...] = (),
    ) -> FamilySnapshot:
        return FamilySnapshot(f"{self._prefix}_{name}", kind, help, labels, merge, bounds)

    def _add(self, family: Family[Cell]) -> Family[Cell]:
        if family.shape.name in self._families:
            raise ValueError(f"{family.shape.name} is declared twice")
        self._families[family.shape.name] = family
        return family


def merge_snapshots(snapshots: Iterable[list[FamilySnapshot]]) -> list[FamilySnapshot]:
    """One list out of several workers' lists, which come oldest first (that decides ``latest``)."""
    merged: dict[str, FamilySnapshot] = {}
    cells: dict[str, dict[tuple[str, ...], list[float]]] = {}
    for snapshot in snapshots:
        for family in snapshot:
            known = cells.setdefault(family.name, {})
            if family.name in merged and merged[family.name].bounds != family.bounds:
                known.clear()  # buckets that changed between two versions cannot be added; the newer ones win
            merged[family.name] = family
            for cell in family.cells:
                known[cell.labels] = _merge(family.merge, known.get(cell.labels), cell.values)
    return [
        msgspec.structs.replace(family, cells=[CellSnapshot(*cell) for cell in cells[name].items()])
        for name, family in merged.items()
    ]


def _merge(how: Merge, left: list[float] | None, right: list[float]) -> list[float]:
    if left is None or how == "latest":
        return list(right)
    pairs = zip(left, right, strict=True)
    return [max(pair) for pair in pairs] if how == "max" else [a + b for a, b in pairs]

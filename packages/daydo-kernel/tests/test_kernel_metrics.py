"""Cells count, families bound their labels, and the snapshots of workers become one."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_kernel import FamilySnapshot, Metrics
from daydo_kernel.metrics import CellSnapshot, merge_snapshots


def values(families: list[FamilySnapshot], name: str) -> dict[tuple[str, ...], list[float]]:
    """Cell values by label values of the family ``name``."""
    return {cell.labels: cell.values for family in families if family.name == name for cell in family.cells}


def test_cells_read_zero_from_the_start() -> None:
    """A cell that was asked for is there before anything happened, so that rates have a beginning."""
    metrics = Metrics("daydo_shop")
    metrics.counter("sales_total", "Sales.", labels=("outcome",)).cell("paid")
    assert values(metrics.snapshot(), "daydo_shop_sales_total") == {("paid",): [0.0]}


def test_one_cell_a_label_value() -> None:
    """The same label values give the same cell."""
    family = Metrics("daydo_shop").counter("sales_total", "Sales.", labels=("outcome",))
    assert family.cell("paid") is family.cell("paid")
    assert family.cell("paid") is not family.cell("refused")


def test_label_values_are_bounded() -> None:
    """Label values beyond the limit share one cell called ``other``; nothing is lost and nothing grows."""
    metrics = Metrics("daydo_shop")
    family = metrics.counter("sales_total", "Sales.", labels=("city", "shop"), max_cells=2)
    for number in range(100):
        family.cell(f"c{number}", "s").inc()
    counted = values(metrics.snapshot(), "daydo_shop_sales_total")
    assert counted == {("c0", "s"): [1.0], ("c1", "s"): [1.0], ("other", "other"): [98.0]}


def test_wrong_number_of_labels() -> None:
    """A cell takes exactly the declared labels."""
    family = Metrics("daydo_shop").gauge("queue_size", "Waiting.", labels=("line",))
    with pytest.raises(ValueError, match=r"takes the labels \('line',\)"):
        family.cell()


def test_gauge_reads_a_function_at_scrape_time() -> None:
    """A gauge that follows something shows its value at the moment of the snapshot."""
    queue: list[int] = []
    metrics = Metrics("daydo_shop")
    metrics.gauge("queue_size", "Waiting.").cell().follow(lambda: len(queue))
    queue.append(1)
    assert values(metrics.snapshot(), "daydo_shop_queue_size") == {(): [1]}


def test_gauge_goes_both_ways() -> None:
    """A gauge is set, raised and lowered."""
    gauge = Metrics("daydo_shop").gauge("queue_size", "Waiting.").cell()
    gauge.set(5)
    gauge.inc(2)
    gauge.dec()
    assert gauge.values() == [6]


def test_bucket_bounds_are_inclusive() -> None:
    """A value equal to a bound is counted below it, as Prometheus' ``le`` says."""
    histogram = Metrics("daydo_shop").histogram("sale_seconds", "Time.", bounds=(0.1, 1.0)).cell()
    for value in (0.05, 0.1, 0.5, 1.0, 2.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == pytest.approx(3.65)


def test_mistakes_in_declarations() -> None:
    """Names and bounds that Prometheus would misread are refused where they are declared."""
    metrics = Metrics("daydo_shop")
    with pytest.raises(ValueError, match="_total"):
        metrics.counter("sales", "Sales.")
    with pytest.raises(ValueError, match="ascend"):
        metrics.histogram("sale_seconds", "Time.", bounds=(1.0, 0.1))
    metrics.gauge("queue_size", "Waiting.")
    with pytest.raises(ValueError, match="declared twice"):
        metrics.gauge("queue_size", "Waiting.")


@pytest.mark.parametrize(("merge", "expected"), [("sum", 6.0), ("max", 5.0), ("latest", 1.0)])
def test_gauges_merge_as_declared(merge: str, expected: float) -> None:
    """Several workers' gauges become their sum, the greatest, or the newest, as the family says."""
    snapshots = []
    for value in (5.0, 1.0):
        metrics = Metrics("daydo_shop")
        metrics.gauge("level", "Level.", merge=merge).cell().set(value)  # type: ignore[arg-type]
        snapshots.append(metrics.snapshot())
    assert values(merge_snapshots(snapshots), "daydo_shop_level") == {(): [expected]}


def test_merge_keeps_what_only_one_worker_has() -> None:
    """Families and cells known to one worker alone survive the merge."""
    left, right = Metrics("daydo_shop"), Metrics("daydo_shop")
    left.counter("sales_total", "Sales.", labels=("outcome",)).cell("paid").inc()
    right.counter("sales_total", "Sales.", labels=("outcome",)).cell("refused").inc(2)
    right.gauge("queue_size", "Waiting.").cell().set(3)
    merged = merge_snapshots([left.snapshot(), right.snapshot()])
    assert values(merged, "daydo_shop_sales_total") == {("paid",): [1], ("refused",): [2]}
    assert values(merged, "daydo_shop_queue_size") == {(): [3]}


def test_changed_buckets_are_not_added() -> None:
    """During a deployment with new bucket bounds the newer worker's histogram wins, rather than nonsense."""
    old, new = Metrics("daydo_shop"), Metrics("daydo_shop")
    old.histogram("sale_seconds", "Time.", bounds=(1.0, 2.0)).cell().observe(0.5)
    new.histogram("sale_seconds", "Time.", bounds=(3.0, 4.0)).cell().observe(3.5)
    (merged,) = merge_snapshots([old.snapshot(), new.snapshot()])
    assert (merged.bounds, merged.cells) == ((3.0, 4.0), [CellSnapshot((), [3.5, 0, 1, 0])])


@given(st.lists(st.lists(st.floats(0, 100), max_size=20), min_size=1, max_size=5))
def test_merge_counts_everything_once(workers: list[list[float]]) -> None:
    """However observations spread over workers, the merged histogram is that of one worker that saw them all."""
    everything = Metrics("daydo_shop")
    whole = everything.histogram("sale_seconds", "Time.").cell()
    snapshots = []
    for observed in workers:
        metrics = Metrics("daydo_shop")
        cell = metrics.histogram("sale_seconds", "Time.").cell()
        for value in observed:
            cell.observe(value)
            whole.observe(value)
        snapshots.append(metrics.snapshot())
    (merged,) = merge_snapshots(snapshots)
    assert merged.cells[0].values[1:] == whole.counts
    assert merged.cells[0].values[0] == pytest.approx(whole.sum)


def test_snapshot_is_plain_data() -> None:
    """A snapshot goes through JSON and comes back equal: that is how workers exchange it."""
    metrics = Metrics("daydo_shop")
    metrics.histogram("sale_seconds", "Time.", labels=("shop",)).cell("tea").observe(0.2)
    metrics.counter("sales_total", "Sales.").cell().inc()
    snapshot = metrics.snapshot()
    assert msgspec.json.decode(msgspec.json.encode(snapshot), type=list[FamilySnapshot]) == snapshot

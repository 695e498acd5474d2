"""The Prometheus edge: families as data in, the text exposition format out. Extra: ``[prometheus]``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from .metrics import FamilySnapshot


class Collector:
    """A prometheus-client collector over ``source``: ``REGISTRY.register(Collector(ledger.metrics.snapshot))``."""

    def __init__(self, source: Callable[[], Iterable[FamilySnapshot]]) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        for family in self._source():
            yield _convert(family)


def expose(families: Iterable[FamilySnapshot], accept: str = "") -> tuple[bytes, str]:
    """Body and Content-Type of a scrape; OpenMetrics where ``accept`` asks for it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector(lambda: families))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _convert(family: FamilySnapshot) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for cell in family.cells:
            histogram.add_metric(cell.labels, _cumulative(family.bounds, cell.values[1:]), cell.values[0])
        return histogram
    metric: CounterMetricFamily | GaugeMetricFamily
    if family.kind == "counter":
        metric = CounterMetricFamily(family.name, family.help, labels=family.labels)
    else:
        metric = GaugeMetricFamily(family.name, family.help, labels=family.labels)
    for cell in family.cells:
        metric.add_metric(cell.labels, cell.values[0])
    return metric


def _cumulative(bounds: tuple[float, ...], counts: list[float]) -> list[tuple[str, float]]:
    names, total, buckets = [*(str(bound) for bound in bounds), "+Inf"], 0.0, []
    for name, count in zip(names, counts, strict=True):
        total += count
        buckets.append((name, total))
    return buckets

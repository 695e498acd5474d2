"""What a scrape reads is what was counted, in both exposition formats."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from daydo_kernel import Metrics
from daydo_kernel.prometheus import Collector, expose


def shop() -> Metrics:
    metrics = Metrics("daydo_shop")
    sales = metrics.counter("sales_total", "Sales\nand refusals.", labels=("outcome",))
    sales.cell("paid").inc(3)
    sales.cell('odd "value"\\').inc()
    metrics.gauge("queue_size", "Waiting.").cell().set(-1.5)
    histogram = metrics.histogram("sale_seconds", "Time.", labels=("shop",), bounds=(0.1, 1.0)).cell("tea")
    for value in (0.05, 0.5, 0.6, 7.0):
        histogram.observe(value)
    return metrics


def samples(families: list[Metric]) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_text_format_reads_back() -> None:
    """Counters, gauges and cumulative buckets parse back to what the cells hold."""
    body, content_type = expose(shop().snapshot())
    assert content_type.startswith("text/plain")
    read = samples(list(parse(body.decode())))
    assert read == {
        ("daydo_shop_sales_total", ("paid",)): 3,
        ("daydo_shop_sales_total", ('odd "value"\\',)): 1,
        ("daydo_shop_queue_size", ()): -1.5,
        ("daydo_shop_sale_seconds_bucket", ("0.1", "tea")): 1,
        ("daydo_shop_sale_seconds_bucket", ("1.0", "tea")): 3,
        ("daydo_shop_sale_seconds_bucket", ("+Inf", "tea")): 4,
        ("daydo_shop_sale_seconds_count", ("tea",)): 4,
        ("daydo_shop_sale_seconds_sum", ("tea",)): 8.15,
    }


def test_openmetrics_where_asked_for() -> None:
    """A scraper that accepts OpenMetrics gets it, with the same figures."""
    body, content_type = expose(shop().snapshot(), "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert samples(list(parse_openmetrics(body.decode()))) == samples(
        list(parse(expose(shop().snapshot())[0].decode()))
    )


def test_nothing_else_is_exposed() -> None:
    """A scrape shows these families alone: nothing registered globally, no process figures."""
    assert expose([])[0].strip() in (b"", b"# EOF")


def test_collector_joins_an_existing_registry() -> None:
    """A team that has a registry of its own adds ours to it, and it is read anew at each scrape."""
    metrics = Metrics("daydo_shop")
    sales = metrics.counter("sales_total", "Sales.").cell()
    registry = CollectorRegistry()
    registry.register(Collector(metrics.snapshot))
    sales.inc(2)
    assert registry.get_sample_value("daydo_shop_sales_total") == 2

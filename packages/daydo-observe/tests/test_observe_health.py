from __future__ import annotations

import asyncio
from typing import Any

import pytest

from daydo_kernel import Health, Metrics, Part
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_observe import Observe, ObserveConfig


async def never(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("health pages do not reach the application")


async def down() -> Health:
    return Health(status="down", detail={"url": "mysql://shop", "password": "hunter2"})


async def test_the_pages_of_a_healthy_service(house: Any, get: Any) -> None:
    """Everything is up: live, ready, the summary and each part's page answer 200 in the envelope."""
    app = house.observe.wrap(never)
    async with house.observe:
        for path in ("/health", "/health/live", "/health/ready", "/health/db", "/health/redis"):
            answer = await get(app, path)
            assert (answer.status, answer.json["code"], answer.json["data"]["status"]) == (200, 0, "ok")
            assert answer.headers["cache-control"] == "no-store"
            assert answer.json["request_id"] == answer.headers["x-request-id"]
    summary = (await get(app, "/health")).json["data"]
    assert summary == {
        "status": "ok",
        "service": "shop",
        "parts": {
            "db": {"status": "ok", "detail": {"pool_free": 3}},
            "redis": {"status": "ok", "detail": {"pool_free": 3}},
        },
    }


async def test_a_part_is_down(house: Any, get: Any) -> None:
    """Redis is away: the summary and its page say so with 503; live, ready and the database's page do not care."""
    app = house.observe.wrap(never)
    house.redis.answer = down
    async with house.observe:
        statuses = {
            page: (await get(app, f"/health{page}")).status for page in ("", "/live", "/ready", "/db", "/redis")
        }
        assert statuses == {"": 503, "/live": 200, "/ready": 200, "/db": 200, "/redis": 503}
        answer = await get(app, "/health", headers={"Accept-Language": "en"})
    assert answer.json["error"] == "observe.unhealthy"
    assert answer.json["message"] == "Not available: redis"
    assert answer.json["data"]["parts"]["redis"]["status"] == "down"
    assert b"hunter2" not in answer.body


async def test_the_database_is_down(house: Any, get: Any) -> None:
    """Without its database a worker wants no requests, but must not be restarted."""
    app = house.observe.wrap(never)
    house.db.answer = down
    async with house.observe:
        assert (await get(app, "/health/ready")).status == 503
        assert (await get(app, "/health/live")).status == 200


async def test_degraded_still_serves(house: Any, get: Any) -> None:
    """A degraded part shows in the summary; the answer stays 200."""

    async def degraded() -> Health:
        return Health(status="degraded", detail={"replicas_away": 1})

    house.db.answer = degraded
    answer = await get(house.observe.wrap(never), "/health")
    assert (answer.status, answer.json["data"]["status"]) == (200, "degraded")


async def test_a_part_that_hangs(make_house: Any, get: Any) -> None:
    """A probe that does not answer is down after probe_timeout_s, and the page answers."""
    house = make_house(probe_timeout_s=0.01)

    async def hang() -> Health:
        await asyncio.Event().wait()
        raise AssertionError

    house.db.answer = hang
    answer = await get(house.observe.wrap(never), "/health/db")
    assert answer.status == 503
    assert answer.json["data"]["parts"]["db"] == {"status": "down", "detail": {"no_answer_s": 0.01}}


async def test_a_part_that_raises(house: Any, get: Any, caplog: Any) -> None:
    """A part whose health raises, which it must not, is down, and the reason is in the log alone."""

    async def broken() -> Health:
        raise RuntimeError("postgres://u:pw@host")

    house.db.answer = broken
    answer = await get(house.observe.wrap(never), "/health/db")
    assert answer.status == 503
    assert b"pw@host" not in answer.body
    assert len(caplog.records) == 1


async def test_probes_are_cached(make_house: Any, get: Any) -> None:
    """A hundred balancers asking at once ask the part once; a second later it is asked again."""
    house = make_house(health_cache_s=1)
    app = house.observe.wrap(never)
    await asyncio.gather(*(get(app, "/health") for _ in range(100)))
    assert house.db.asked == 1
    house.clock.advance(0.9)
    await get(app, "/health/db")
    assert house.db.asked == 1
    house.clock.advance(0.2)
    await get(app, "/health/db")
    assert house.db.asked == 2


async def test_draining(house: Any, get: Any) -> None:
    """A draining worker is not ready, still alive, and answers the requests that come."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    wrapped = house.observe.wrap(app)
    assert (await get(wrapped, "/health/ready")).status == 503, "not entered yet"
    async with house.observe:
        assert (await get(wrapped, "/health/ready")).status == 200
        house.observe.begin_drain()
        refused = await get(wrapped, "/health/ready")
        assert (refused.status, refused.json["error"]) == (503, "kernel.draining")
        assert (await get(wrapped, "/health/live")).status == 200
        assert (await get(wrapped, "/work")).status == 200
        house.observe.draining = False
        assert (await get(wrapped, "/health/ready")).status == 200


async def test_pages_refuse_other_methods(house: Any, get: Any) -> None:
    """A health page takes GET and HEAD; HEAD has no body but its length."""
    app = house.observe.wrap(never)
    refused = await get(app, "/health/live", "POST")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
    head = await get(app, "/health/live", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) > 0


async def test_pages_are_counted_not_logged(house: Any, get: Any) -> None:
    """Probing every second fills counters, not disks; only a failing probe leaves a line."""
    app = house.observe.wrap(never)
    await get(app, "/health")
    await get(app, "/metrics")
    assert house.log == []
    house.db.answer = down
    house.clock.advance(5)
    await get(app, "/health")
    assert [line["route"] for line in house.log] == ["/health"]
    assert house.value("daydo_http_requests_total", "GET", "/health", "503") == 1


async def test_metrics_of_all_parts(house: Any, get: Any) -> None:
    """/metrics shows every part and our own, as text or as OpenMetrics."""
    app = house.observe.wrap(never)
    house.db.work.inc(3)
    await get(app, "/health/live")
    text = await get(app, "/metrics")
    assert b"daydo_fake_work_total 3.0" in text.body
    assert b'daydo_http_requests_total{method="GET",route="/health/live",status="200"} 1.0' in text.body
    assert text.headers["content-type"].startswith("text/plain")
    modern = await get(app, "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    assert modern.body.endswith(b"# EOF\n")


async def test_metrics_of_two_workers(make_house: Any, get: Any, tmp_path: Any) -> None:
    """Any worker's /metrics is the sum over workers, and keeps what a departed one had counted."""
    one, two = make_house(metrics_dir=str(tmp_path)), make_house(metrics_dir=str(tmp_path))
    page = one.observe.wrap(never)
    async with one.observe:
        async with two.observe:
            one.db.work.inc(1)
            two.db.work.inc(2)
            two.observe._workers.write()  # what its writer does every second
            assert b"daydo_fake_work_total 3.0" in (await get(page, "/metrics")).body
        one.db.work.inc(1)
        assert b"daydo_fake_work_total 4.0" in (await get(page, "/metrics")).body


async def test_cells_are_published_by_themselves(make_house: Any, tmp_path: Any) -> None:
    """A worker that nobody scrapes publishes its cells every metrics_write_s."""
    house = make_house(metrics_dir=str(tmp_path), metrics_write_s=0.01)
    async with house.observe:
        house.db.work.inc(7)
        published = asyncio.Event()
        house.db.metrics.gauge("seen", "Set when the cells are read.").cell().follow(lambda: published.set() or 1.0)
        await asyncio.wait_for(published.wait(), 5)
    (snapshot,) = tmp_path.glob("worker_*.json")
    assert b"7.0" in snapshot.read_bytes()


class Stock(Part):
    metrics = Metrics("shop_stock")


class Database(Part):
    metrics = Metrics("daydo_db")


Database.__module__ = "daydo_db.database"


def test_parts_are_named_by_their_package() -> None:
    """daydo_db.Database is db, a class of yours is itself in lower case, a mapping says what it says."""
    observe = Observe(parts=[Database(drain_s=0), Stock(drain_s=0)])
    assert list(observe._parts) == ["db", "stock"]
    assert list(Observe(parts={"replica": Database(drain_s=0)})._parts) == ["replica"]
    with pytest.raises(ValueError, match="two parts are called 'stock'"):
        Observe(parts=[Stock(drain_s=0), Stock(drain_s=0)])


def test_a_misspelt_ready_part() -> None:
    """ready_parts must name parts that are there."""
    with pytest.raises(ValueError, match="'redsi'"):
        Observe(ObserveConfig(ready_parts=("redsi",)), parts=[Stock(drain_s=0)])


async def test_its_own_life_is_told() -> None:
    """Start and stop of a worker go to the event sink; it can be entered again, and is not draining then."""
    events = RecordedEvents()
    observe = Observe(clock=ManualClock(), events=events)
    for _ in range(2):
        async with observe:
            assert not observe.draining
        assert observe.draining
    assert events.names == ["observe.started", "observe.stopped"] * 2

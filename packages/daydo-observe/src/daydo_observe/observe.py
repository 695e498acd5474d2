"""The noun: what a running service shows of itself."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from daydo_kernel import (
    Clock,
    Config,
    Draining,
    Event,
    EventSink,
    FamilySnapshot,
    Metrics,
    NoEvents,
    Part,
    Rendered,
    SystemClock,
    render,
)
from daydo_kernel.metrics import merge_snapshots
from daydo_kernel.prometheus import expose
from daydo_kernel.snapshots import WorkerSnapshots

from .asgi import App, Edge, Page
from .errors import Unhealthy
from .health import HealthReport, Probe, answer, part_names
from .logs import Lines, binary
from .traffic import Traffic

log = logging.getLogger("daydo.observe")

_JSON = {"content-type": "application/json", "cache-control": "no-store"}
_DEFAULT_READY_PARTS = ("db",)


class ObserveConfig(Config, frozen=True, kw_only=True):
    """How a service shows itself.

    Attributes:
        service: its name in every line.
        probe_timeout_s: a part that does not tell its health within this is down.
        health_cache_s: how old an answer of a part may be; bounds what probing costs the part.
        ready_parts: parts without which this worker wants no requests (where they exist).
        metrics_dir: a directory shared by the workers of one service and empty at its start; "" for one worker.
        metrics_write_s: how often a worker publishes its cells there.
        flush_s: how long an access line may wait in memory, and how many seconds of them a crash may lose.
        max_series: label combinations per family; what is beyond shares one named ``other``.
        drain_s: the bound on leaving.
    """

    service: Annotated[str, Meta(min_length=1, max_length=64)] = "daydo"
    probe_timeout_s: Annotated[float, Meta(gt=0, le=30)] = 2.0
    health_cache_s: Annotated[float, Meta(ge=0, le=60)] = 1.0
    ready_parts: tuple[str, ...] = _DEFAULT_READY_PARTS
    metrics_dir: str = ""
    metrics_write_s: Annotated[float, Meta(gt=0, le=60)] = 1.0
    flush_s: Annotated[float, Meta(gt=0, le=10)] = 0.5
    max_series: Annotated[int, Meta(ge=10, le=100_000)] = 5_000
    drain_s: Annotated[float, Meta(ge=0, le=60)] = 5.0


class Observe(Part):
    """Request ids, access lines, RED metrics and health of one service::

        observe = Observe(ObserveConfig(service="shop"), parts=[db, redis, ledger], lines=configure_logging())
        app = observe.wrap(app)
        async with running([db, redis, ledger, observe]):
            ...

    ``parts`` is a list, each under its package's name (``daydo_db`` → ``db``), or a mapping with names of yours.
    Set ``draining`` (or call :meth:`begin_drain`) when the process is told to stop: balancers leave.

    Raises:
        ValueError: two parts have one name, or ``ready_parts`` names one that is not there.
    """

    def __init__(
        self,
        config: ObserveConfig = ObserveConfig(),  # noqa: B008 - frozen
        *,
        parts: Sequence[Part] | Mapping[str, Part] = (),
        lines: Lines | None = None,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        self.draining = False
        self.metrics = Metrics("daydo")
        self._config = config
        self._parts = part_names(parts)
        missing = set(config.ready_parts) - set(self._parts) - set(_DEFAULT_READY_PARTS)
        if missing:
            raise ValueError(f"ready_parts names {sorted(missing)}, but the parts are {sorted(self._parts)}")
        self._lines = lines if lines is not None else Lines(binary(sys.stderr))
        self._events: EventSink = events if events is not None else NoEvents()
        self._seconds: Callable[[], float] = time.perf_counter
        if clock is not None:
            self._seconds = lambda: clock.now_us() / 1_000_000
        self._traffic = Traffic(
            self.metrics,
            self._lines,
            clock if clock is not None else SystemClock(),
            service=config.service,
            max_series=config.max_series,
        )
        self.metrics.gauge("observe_lines_lost", "Log lines that could not be written.").cell().follow(
            lambda: self._lines.lost
        )
        self._probes = {
            name: Probe(part, timeout_s=config.probe_timeout_s, cache_s=config.health_cache_s, seconds=self._seconds)
            for name, part in self._parts.items()
        }
        self._workers: WorkerSnapshots | None = None
        self._held = ExitStack()

    def wrap(self, app: App) -> Edge:
        """``app`` with everything around it; any ASGI application, and any number of them."""
        pages: dict[str, Page] = {
            "/health": self._summary,
            "/health/live": self._live,
            "/health/ready": self._ready,
            "/metrics": self._scrape,
        }
        for name in self._parts:
            pages[f"/health/{name}"] = self._page_of(name)
        return Edge(app, self._traffic, pages, self._seconds)

    def begin_drain(self) -> None:
        """From now on ``/health/ready`` answers 503; requests that come nevertheless are served."""
        self.draining = True

    def families(self) -> list[FamilySnapshot]:
        """The metrics of this process: all parts and its own."""
        return merge_snapshots([part.metrics.snapshot() for part in (*self._parts.values(), self)])

    async def report(self, *names: str) -> HealthReport:
        """How the named parts are (default: all), asked at the same time; the worst of them is the status."""
        chosen = names or tuple(self._probes)
        found = await asyncio.gather(*(self._probes[name].check() for name in chosen))
        states = {health.status for health in found}
        worst = next((status for status in ("down", "degraded") if status in states), "ok")
        return HealthReport(status=worst, service=self._config.service, parts=dict(zip(chosen, found, strict=True)))

    async def _start(self) -> None:
        if self._config.metrics_dir:
            self._workers = self._held.enter_context(WorkerSnapshots(Path(self._config.metrics_dir), self.families))
            self._repeat(self._config.metrics_write_s, self._publish, "publish")
        self._repeat(self._config.flush_s, self._flush, "flush")
        self.draining = False
        await self._events.emit(Event(name="observe.started", data={"service": self._config.service}))

    async def _drain(self) -> None:
        self.begin_drain()
        await self._events.emit(Event(name="observe.stopped", data={"service": self._config.service}))

    async def _close(self) -> None:
        self._workers = None
        self._held.close()
        self._lines.flush()

    async def _publish(self) -> None:
        if self._workers is not None:
            self._workers.write()

    async def _flush(self) -> None:
        self._lines.flush()

    async def _live(self, scope: Mapping[str, Any]) -> Rendered:
        return Rendered(200, _JSON, answer(HealthReport(status="ok", service=self._config.service)))

    async def _ready(self, scope: Mapping[str, Any]) -> Rendered:
        if self.draining or not self._running:
            return render(Draining())
        needed = [name for name in self._config.ready_parts if name in self._probes]
        if not needed:
            return await self._live(scope)
        return _health_page(await self.report(*needed))

    async def _summary(self, scope: Mapping[str, Any]) -> Rendered:
        return _health_page(await self.report())

    def _page_of(self, name: str) -> Page:
        async def page(scope: Mapping[str, Any]) -> Rendered:
            return _health_page(await self.report(name))

        return page

    async def _scrape(self, scope: Mapping[str, Any]) -> Rendered:
        families = self._workers.merged() if self._workers is not None else self.families()
        accept = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"), "")
        body, content_type = expose(families, accept)
        return Rendered(200, {"content-type": content_type, "cache-control": "no-store"}, body)


def _health_page(report: HealthReport) -> Rendered:
    down = [name for name, health in report.parts.items() if health.status == "down"]
    if not down:
        return Rendered(200, _JSON, answer(report))
    return Rendered(503, _JSON, answer(report, Unhealthy(parts=", ".join(down))))

"""What every finished request leaves behind: two cells and one line, in a few microseconds.

Labels stay few whatever clients send: routes are templates, everything unrouted is one label, methods and the close
codes that clients choose come from a list. Lines are a fixed struct, so nothing has to be searched for secrets but
the path; the query string and the headers are never written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from daydo_kernel import Clock, Counter, Histogram, Metrics, RequestContext, isoformat, redact_text

from .logs import Lines, printable

UNROUTED = "unrouted"
OTHER = "other"
SOCKET = "WEBSOCKET"
INTERNAL_CLOSE = 1011
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", SOCKET})

# Sub-millisecond buckets too: the routes that matter most answer from memory.
BOUNDS_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

_PATH_CHARS = 256
_SUBJECT_CHARS = 128
_LONG_NUMBER = re.compile(r"[0-9]{11}")


class AccessLine(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """One finished request. ``status`` is the close code of a WebSocket; ``path`` is absent where it is the route."""

    time: str
    level: str
    logger: str
    service: str
    request_id: str
    trace_id: str = ""
    method: str
    route: str
    path: str = ""
    status: int
    duration_ms: float
    bytes: int
    subject: str = ""
    client: str = ""


class Traffic:
    """Counts and writes down finished requests."""

    def __init__(self, metrics: Metrics, lines: Lines, clock: Clock, *, service: str, max_series: int) -> None:
        self._requests = metrics.counter(
            "http_requests_total",
            "Finished requests; status is the close code of a WebSocket, 499 a client that left.",
            ("method", "route", "status"),
            max_cells=max_series,
        )
        self._seconds = metrics.histogram(
            "http_request_seconds",
            "Duration of finished HTTP requests.",
            ("method", "route"),
            bounds=BOUNDS_S,
            max_cells=max_series,
        )
        self.in_flight = metrics.gauge("http_requests_in_flight", "HTTP requests being answered.").cell()
        self.sockets = metrics.gauge("http_sockets_open", "WebSocket connections being served.").cell()
        self._lines = lines
        self._clock = clock
        self._service = service
        self._cells: dict[tuple[str, str, int | str], tuple[Counter, Histogram | None]] = {}
        self._second = -1
        self._stamp = ""

    def finished(
        self,
        scope: Mapping[str, Any],
        context: RequestContext,
        method: str,
        status: int,
        seconds: float,
        sent_bytes: int,
        *,
        label: str = "",
        foreseen: bool = False,
        quiet: bool = False,
    ) -> None:
        """Count one request and, unless ``quiet``, write its line; ``label`` replaces the status in metrics.

        ``foreseen`` is a failure that was meant: told at WARNING, which wakes nobody.
        """
        route = route_of(scope)
        requests, histogram = self._bound(method if method in METHODS else OTHER, route, label or status)
        requests.inc()
        if histogram is not None:
            histogram.observe(seconds)
        if quiet:
            return
        failed = not foreseen and (500 <= status < 600 or status == INTERNAL_CLOSE)
        path, client = scope["path"], scope.get("client")
        line = AccessLine(
            time=self._time(),
            level="WARNING" if foreseen else "ERROR" if failed else "INFO",
            logger="daydo.access",
            service=self._service,
            request_id=context.request_id,
            trace_id=context.trace_id,
            method=method[:16],
            route=route,
            path=path_text(path) if path != route else "",
            status=status,
            duration_ms=round(seconds * 1000, 3),
            bytes=sent_bytes,
            subject=context.subject[:_SUBJECT_CHARS],
            client=client[0] if client else "",
        )
        self._lines.write(_encode(line))
        if failed:
            self._lines.flush()

    def _bound(self, method: str, route: str, status: int | str) -> tuple[Counter, Histogram | None]:
        cells = self._cells.get((method, route, status))
        if cells is None:
            # A socket's life is not a latency: it would drown the histogram.
            histogram = None if method == SOCKET else self._seconds.cell(method, route)
            cells = self._cells[method, route, status] = (self._requests.cell(method, route, str(status)), histogram)
        return cells

    def _time(self) -> str:
        now_us = self._clock.now_us()
        second, rest_us = divmod(now_us, 1_000_000)
        if second != self._second:
            self._second, self._stamp = second, isoformat(now_us)[:-4]
        return f"{self._stamp}{rest_us // 1000:03d}Z"


def route_of(scope: Mapping[str, Any]) -> str:
    """The route template the framework left in the scope: Litestar's ``path_template``, FastAPI's ``route.path``."""
    template = scope.get("path_template") or getattr(scope.get("route"), "path", "")
    return template or UNROUTED


def path_text(path: str) -> str:
    """A path fit for a line: at most 256 characters, personal data masked."""
    path = path[:_PATH_CHARS]
    # Looking for what redact_text could mask costs a tenth of masking.
    suspect = "@" in path or "eyJ" in path or _LONG_NUMBER.search(path)
    return redact_text(path) if suspect else path


def _encode(line: AccessLine) -> bytes:
    try:
        return msgspec.json.encode(line)
    except UnicodeEncodeError:  # a path that was not UTF-8
        line.path = printable(line.path)
        return msgspec.json.encode(line)

"""``daydo routes``: every route with who may call it, by which way in, with which permission, limit and CSRF token.

Nothing is opened: what the application declares is read, so it needs no database and no Redis.
"""

from __future__ import annotations

import argparse
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from daydo_auth.litestar import Access, route_postures
from daydo_traffic.litestar import route_limits

from .main import Service, compose
from .settings import load_settings

# Observe answers these, outside of guards and limits: probes and scrapes must get through when nothing else does.
PAGES = ("/health", "/health/live", "/health/ready", "/health/{part}", "/metrics")
_WIDE = 240
_OUTSIDE = "probes and scrapes; keep them off the public proxy"


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report; ``access`` None and ``limits`` () without ``unlimited`` mean that it was forgotten."""

    method: str
    path: str
    access: Access | None
    ways: tuple[str, ...]
    permissions: tuple[str, ...]
    fresh_s: float
    csrf: bool
    limits: tuple[str, ...]
    unlimited: str

    @property
    def is_declared(self) -> bool:
        """Whether somebody has said who may call it, and how often."""
        return self.access is not None and bool(self.limits or self.unlimited)


def add_to(commands: Any) -> None:
    """Add ``routes`` to the commands of ``daydo``."""
    command = commands.add_parser("routes", help="every route: who may call it, way in, permission, limit, CSRF")
    command.add_argument("--json", action="store_true", help="one JSON array instead of the table")
    command.set_defaults(run=_run)


def routes_of(service: Service) -> list[Route]:
    """Every route of ``service``, in the order of the paths."""
    limits = {(limit.method, limit.path): limit for limit in route_limits(service.routes)}
    routes = [
        Route(
            method=posture.method,
            path=posture.path,
            access=posture.access,
            ways=posture.ways,
            permissions=posture.permissions,
            fresh_s=posture.fresh_s,
            csrf=posture.csrf,
            limits=limits[posture.method, posture.path].rules,
            unlimited=limits[posture.method, posture.path].unlimited,
        )
        for posture in route_postures(service.routes)
    ]
    return sorted([*routes, *map(_page, PAGES)], key=lambda route: (route.path, route.method))


def _page(path: str) -> Route:
    return Route(
        method="GET",
        path=path,
        access="anyone",
        ways=(),
        permissions=(),
        fresh_s=0.0,
        csrf=False,
        limits=(),
        unlimited=_OUTSIDE,
    )


def _run(options: argparse.Namespace) -> int:
    routes = routes_of(compose(load_settings()))
    if options.json:
        print(msgspec.json.encode(routes).decode())  # noqa: T201
    else:
        table = _table(routes)
        console = Console()
        # Into a file or a pipe, lines are as long as they are: nobody greps a path that was cut.
        if not console.is_terminal:
            console = Console(width=_WIDE)
        console.print(table)
    return 0 if all(route.is_declared for route in routes) else 1


def _table(routes: list[Route]) -> Table:
    table = Table("route", "who", "way in", "permission", "limit", "CSRF", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for route in routes:
        table.add_row(
            f"{route.method:6} {route.path}",
            _who(route),
            " ".join(route.ways),
            " ".join(route.permissions),
            " ".join(route.limits) or route.unlimited or "UNDECLARED",
            "with cookies" if route.csrf else "",
        )
    return table


def _who(route: Route) -> str:
    if route.access is None:
        return "UNDECLARED"
    return f"{route.access}, proved within {route.fresh_s:g} s" if route.fresh_s else route.access

"""What the routes ask of their callers, read from their guards: for the list of all, and for the OpenAPI document."""

from __future__ import annotations

from typing import Final, Literal, cast

import msgspec
from litestar import Litestar
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.routes import BaseRoute, HTTPRoute, WebSocketRoute
from litestar.types import Guard

from daydo_auth.asgi import SAFE_METHODS
from daydo_auth.model import Way

from .guards import anyone, authenticated, person, ticketed

Access = Literal["anyone", "authenticated", "person", "ticket"]

CSRF: Final = "daydo_csrf"
"""In the ``opt=`` of a route that checks the CSRF token itself."""


class RoutePosture(msgspec.Struct, frozen=True, kw_only=True):
    """Who may call one route.

    Attributes:
        method: ``GET``, …, ``WEBSOCKET``, ``ASGI``.
        access: None where nothing was declared.
        ways: what a caller may show.
        permissions: all of which they need.
        csrf: whether a caller by cookie needs a CSRF token.
        fresh_s: how long ago they may have proved themselves; 0: any time.
    """

    method: str
    path: str
    access: Access | None
    ways: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()
    csrf: bool = False
    fresh_s: float = 0.0


def route_postures(app: Litestar) -> list[RoutePosture]:
    """Who may call each method and path of ``app``, in the order of the paths::

    assert [route for route in route_postures(app) if route.access is None] == []
    """
    return [
        _posture(handler, method, route.path)
        for route in sorted(app.routes, key=lambda route: route.path)
        for handler in _handlers(route)
        for method in _methods(handler)
    ]


def _posture(handler: BaseRouteHandler, method: str, path: str) -> RoutePosture:
    guards = handler.resolve_guards()
    access = access_of(guards)
    by_cookie = access in ("authenticated", "person") and method != "WEBSOCKET"
    return RoutePosture(
        method=method,
        path=path,
        access=access,
        ways=_ways(access, by_cookie=by_cookie),
        permissions=permissions_of(guards),
        csrf=handler.opt.get(CSRF, by_cookie and method not in SAFE_METHODS),
        fresh_s=fresh_s_of(guards),
    )


def access_of(guards: list[Guard]) -> Access | None:
    """The strictest of them; None where none of ours is among them."""
    if person in guards or fresh_s_of(guards):
        return "person"
    if authenticated in guards or any(hasattr(guard, "daydo_permissions") for guard in guards):
        return "authenticated"
    if ticketed in guards:
        return "ticket"
    return "anyone" if anyone in guards else None


def _ways(access: Access | None, *, by_cookie: bool) -> tuple[Way, ...]:
    if access not in ("authenticated", "person"):
        return ("ticket",) if access == "ticket" else ()
    keys: tuple[Way, ...] = ("key", "signature") if access == "authenticated" else ()
    return ("bearer", *(("cookie",) if by_cookie else ()), *keys)


def fresh_s_of(guards: list[Guard]) -> float:
    """The strictest of them; 0 where there is none."""
    return min((guard.daydo_fresh_s for guard in guards if hasattr(guard, "daydo_fresh_s")), default=0.0)


def permissions_of(guards: list[Guard]) -> tuple[str, ...]:
    """All that they ask for."""
    named = [permission for guard in guards for permission in getattr(guard, "daydo_permissions", ())]
    return tuple(dict.fromkeys(named))


def _handlers(route: BaseRoute) -> list[BaseRouteHandler]:
    if not isinstance(route, HTTPRoute):
        return [cast("WebSocketRoute", route).route_handler]
    return [handler for handler in route.route_handlers if not _is_made_by_litestar(handler)]


def _is_made_by_litestar(handler: HTTPRouteHandler) -> bool:
    """Whether it is the answer to OPTIONS that every path has."""
    return handler.fn.__qualname__.startswith("HTTPRoute.create_options_handler")


def _methods(handler: BaseRouteHandler) -> list[str]:
    if isinstance(handler, HTTPRouteHandler):
        return sorted(handler.http_methods)
    return ["WEBSOCKET" if "websocket" in type(handler).__name__.lower() else "ASGI"]

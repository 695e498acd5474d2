"""The whole service on one screen: settings → nouns → routers → plugins → ASGI application.

What a domain is made of stands in its own ``wiring.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import msgspec
from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.types import ASGIApp

from daydo_auth.asgi import Shield
from daydo_auth.litestar import AuthPlugin, ShieldPlugin, live_ticket_handler, permitted
from daydo_cache import Cache
from daydo_db import Database
from daydo_db.backup import Backups
from daydo_db.migrate import migrate
from daydo_db.piccolo import bind
from daydo_kernel import Part, running
from daydo_kernel.addresses import TrustedProxies
from daydo_kernel.litestar import KernelPlugin, refuse_websockets
from daydo_observe import Observe
from daydo_observe.logs import configure_logging
from daydo_quota import Ledger
from daydo_quota.litestar import quota_admin_router, quota_router
from daydo_redis import Redis

from .accounts.tables import TABLES
from .accounts.wiring import people_of
from .admin.routes import admin_routes
from .admin.service import Administration
from .caches import Caches
from .events import LogEvents
from .front_door import front_door
from .images.routes import MAY_WATCH
from .images.tables import Upload
from .images.wiring import studio_of
from .openapi import home, openapi_assets, openapi_config
from .queries import refuse_odd_queries
from .settings import Settings, cursor_key
from .traffic import Callers, Traffic

SCHEMAS = ("daydo_db", "daydo_auth", "daydo_quota", "daydo_pipeline", "reference_app")


class Service(msgspec.Struct, frozen=True):
    """The application, its routes, what to call when the server begins to stop, and how it is to read requests."""

    app: ASGIApp
    routes: Litestar
    begin_drain: Callable[[], None]
    http: type[asyncio.Protocol]


def compose(settings: Settings) -> Service:
    """Wire everything together; nothing is opened before the server starts."""
    lines = configure_logging(settings.log_level, service=settings.observe.service)
    events = LogEvents()

    replicas = settings.database_replicas.split()
    database = msgspec.structs.replace(settings.database, cursor_key=cursor_key(settings.jwt_secret))
    db = Database(settings.resolved_database_url, database, replicas=replicas)
    bind([*TABLES, Upload], db)
    redis = Redis(settings.redis_url, settings.redis)
    cache = Cache(redis, settings.cache)
    caches = Caches.of(cache)
    ledger = Ledger(db, settings.quota, events=events)
    traffic = Traffic(settings.traffic, redis, events)

    studio = studio_of(settings, db, ledger, traffic, caches.features, events=events)
    theirs = studio.belongings
    people = people_of(
        settings, db, redis, caches, ledger, traffic, belongings=[theirs], owns_upload=theirs.owns, events=events
    )
    auth = people.auth
    callers = Callers(auth, TrustedProxies(settings.trusted_proxies.split()))

    parts: dict[str, Part] = {"db": db, "redis": redis, "cache": cache, "auth": auth, "quota": ledger}
    parts |= {**studio.parts, **people.parts}
    if settings.backup.folder:
        parts["backup"] = Backups(db, settings.backup_path, settings.backup)  # only their age; cron makes them
    observe = Observe(settings.observe, parts={**parts, **traffic.parts}, lines=lines)
    api = Router(
        path="/api/v1",
        before_request=refuse_odd_queries,
        route_handlers=[
            *people.routers,
            admin_routes(Administration(db, auth, people.profiles, events=events)),
            live_ticket_handler(auth, permissions=(MAY_WATCH,)),
            Router("/quota", route_handlers=[quota_router(ledger, owner=_owner)], guards=[permitted("quota:read")]),
            quota_admin_router(ledger, _owner, "/admin/quota", guards=[permitted("quota:admin")]),
            Router("/admin", route_handlers=traffic.admin_routers(guards=[permitted("limits:admin")])),
            studio.router,
        ],
    )

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        if settings.on_embedded_database:
            await migrate_schema(settings)
        studio.files.sweep()
        # The plugins enter their own parts, after these.
        async with running([*(part for part in parts.values() if part is not auth), observe]):
            yield

    app = Litestar(
        [api, home, openapi_assets()],
        plugins=[KernelPlugin(), AuthPlugin(auth), ShieldPlugin(), traffic.plugin],
        state=State({"callers": callers}),
        lifespan=[lifespan],
        openapi_config=openapi_config(version("daydo-reference-app")),
        logging_config=None,
    )

    def begin_drain() -> None:
        observe.begin_drain()
        studio.runs.begin_drain()

    def watched(screened: ASGIApp) -> ASGIApp:
        return observe.wrap(traffic.plugin.wrap(screened))  # what the shield refuses is limited, counted and logged

    app_with_edges = Shield(refuse_websockets(app), settings.shield, wrap=watched)
    return Service(app_with_edges, app, begin_drain, front_door(traffic.shedder))


async def migrate_schema(settings: Settings) -> None:
    """Bring the database up to the schema of this code; safe to run twice and in two places at once."""
    async with Database(settings.resolved_database_url, settings.database) as db:
        await migrate(db, *SCHEMAS)


def _owner(connection: Any) -> tuple[str, str]:
    return connection.user.tenant, connection.user.subject

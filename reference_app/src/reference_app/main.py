"""The whole service on one screen: settings → nouns → routers → plugins → ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import msgspec
from litestar import Litestar, Router
from litestar.types import ASGIApp

from daydo_auth import Auth
from daydo_auth.litestar import AuthPlugin, auth_router, authenticated, live_ticket_handler, permitted
from daydo_db import Database
from daydo_db.backup import Backups
from daydo_db.migrate import migrate
from daydo_db.piccolo import bind
from daydo_kernel import Part, running
from daydo_kernel.litestar import KernelPlugin, refuse_websockets
from daydo_observe import Observe
from daydo_observe.logs import configure_logging
from daydo_pipeline import Runs
from daydo_quota import Ledger
from daydo_quota.litestar import quota_admin_router, quota_router
from daydo_redis import Redis

from .accounts.routes import accounts_router
from .accounts.service import Accounts, SignUpCredits
from .accounts.tables import Profile
from .events import LogEvents
from .images.features import PROVIDER, features_of, flow_of
from .images.files import Files
from .images.provider import LocalProvider
from .images.repository import Uploads
from .images.routes import images_router
from .images.service import Images
from .images.tables import Upload
from .images.workers import ImageWorkers
from .openapi import home, openapi_assets, openapi_config
from .queries import refuse_odd_queries
from .settings import Settings, cursor_key, signing_keys

SCHEMAS = ("daydo_db", "daydo_auth", "daydo_quota", "daydo_pipeline", "reference_app")


class Service(msgspec.Struct, frozen=True):
    """The application, and what to call when the server begins to stop."""

    app: ASGIApp
    begin_drain: Callable[[], None]


def compose(settings: Settings) -> Service:
    """Wire everything together; nothing is opened before the server starts."""
    lines = configure_logging(settings.log_level, service=settings.observe.service)
    events = LogEvents()
    keys, pepper = signing_keys(settings.jwt_secret), settings.password_pepper

    replicas = settings.database_replicas.split()
    database = msgspec.structs.replace(settings.database, cursor_key=cursor_key(settings.jwt_secret))
    db = Database(settings.resolved_database_url, database, replicas=replicas)
    bind([Profile, Upload], db)
    redis = Redis(settings.redis_url, settings.redis)
    auth = Auth(db, redis, msgspec.structs.replace(settings.auth, keys=keys, pepper=pepper), events=events)
    ledger = Ledger(db, settings.quota, events=events)

    features = features_of(settings.images)
    flows = [flow_of(feature, settings.images.step_timeout_s) for feature in features.values()]
    files = Files(settings.data_path / "files")
    bound = settings.images.upload_bytes_max
    workers = ImageWorkers(msgspec.structs.replace(settings.image_workers, photo_bytes_max=bound))
    providers = {PROVIDER: LocalProvider(workers, files)}
    runs = Runs(db, settings.pipeline, flows=flows, providers=providers, quota=ledger, events=events)

    sign_up = SignUpCredits(welcome=settings.welcome_credits, daily=settings.daily_credits)
    accounts = Accounts(db, auth, ledger, sign_up)
    images = Images(runs, Uploads(db), files, workers, features, settings.images)

    parts: dict[str, Part] = {"db": db, "redis": redis, "auth": auth, "quota": ledger, "images": workers}
    parts["pipeline"] = runs
    if settings.backup.folder:
        parts["backup"] = Backups(db, settings.backup_path, settings.backup)  # only their age; cron makes them
    observe = Observe(settings.observe, parts=parts, lines=lines)
    api = Router(
        path="/api/v1",
        before_request=refuse_odd_queries,
        route_handlers=[
            accounts_router(accounts),
            auth_router(auth),
            live_ticket_handler(auth),
            Router("/quota", route_handlers=[quota_router(ledger, owner=_owner)], guards=[authenticated]),
            quota_admin_router(ledger, _owner, "/admin/quota", guards=[permitted("quota:admin")]),
            images_router(images, settings.images),
        ],
    )

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        if settings.on_embedded_database:
            await migrate_schema(settings)
        files.sweep()
        # The auth plugin enters its own part, after these.
        async with running([*(part for part in parts.values() if part is not auth), observe]):
            yield

    app = Litestar(
        [api, home, openapi_assets()],
        plugins=[KernelPlugin(), AuthPlugin(auth)],
        lifespan=[lifespan],
        openapi_config=openapi_config(version("daydo-reference-app")),
        logging_config=None,
    )

    def begin_drain() -> None:
        observe.begin_drain()
        runs.begin_drain()

    return Service(observe.wrap(refuse_websockets(app)), begin_drain)


async def migrate_schema(settings: Settings) -> None:
    """Bring the database up to the schema of this code; safe to run twice and in two places at once."""
    async with Database(settings.resolved_database_url, settings.database) as db:
        await migrate(db, *SCHEMAS)


def _owner(connection: Any) -> tuple[str, str]:
    return connection.user.tenant, connection.user.subject

"""The whole service on one screen: settings → nouns → routers → plugins → ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import msgspec
from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.types import ASGIApp

from daydo_auth import Auth, Channel, Sender
from daydo_auth.asgi import Shield
from daydo_auth.litestar import (
    AuthPlugin,
    ShieldPlugin,
    auth_router,
    keys_router,
    live_ticket_handler,
    permitted,
    web_sessions_router,
)
from daydo_auth.role_store import RoleStore
from daydo_auth.wechat import WeChat
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
from daydo_pipeline import Runs
from daydo_quota import Ledger
from daydo_quota.litestar import quota_admin_router, quota_router
from daydo_redis import Redis

from .accounts.config import TENANT, SignUpCredits
from .accounts.invites import Invites
from .accounts.me_routes import me_routes
from .accounts.personal import Personal
from .accounts.privacy import Privacy
from .accounts.repository import Profiles
from .accounts.routes import auth_routes
from .accounts.service import Accounts
from .accounts.tables import TABLES
from .admin.routes import admin_routes
from .admin.service import Administration
from .caches import CachedRoles, Caches, RoleNews
from .events import LogEvents
from .front_door import front_door
from .images.belongings import ImageBelongings
from .images.catalogue import Catalogue, ShippedFeatures
from .images.features import PROVIDER, features_of, flow_of
from .images.files import Files
from .images.provider import LocalProvider
from .images.repository import Uploads
from .images.routes import MAY_WATCH, images_router
from .images.service import Images
from .images.tables import Upload
from .images.workers import ImageWorkers
from .openapi import home, openapi_assets, openapi_config
from .queries import refuse_odd_queries
from .settings import Settings, cursor_key, signing_keys
from .sms import SmsSender
from .traffic import LOGIN, REFRESH, Callers, Traffic

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
    keys, pepper = signing_keys(settings.jwt_secret), settings.password_pepper

    replicas = settings.database_replicas.split()
    database = msgspec.structs.replace(settings.database, cursor_key=cursor_key(settings.jwt_secret))
    db = Database(settings.resolved_database_url, database, replicas=replicas)
    bind([*TABLES, Upload], db)
    redis = Redis(settings.redis_url, settings.redis)
    cache = Cache(redis, settings.cache)
    caches = Caches.of(cache)
    allowed = {"roles": settings.roles, "default_permissions": settings.default_permissions}
    config = msgspec.structs.replace(settings.auth, keys=keys, pepper=pepper, **allowed)
    sms = SmsSender(settings.sms) if settings.sms.url else None
    wechat = WeChat(settings.wechat) if settings.wechat.appid else None
    senders: dict[Channel, Sender] = {"phone": sms} if sms else {}
    auth = Auth(
        db,
        redis,
        config,
        senders=senders,
        wechat=wechat,
        role_source=CachedRoles(caches.roles, RoleStore(db, None)),
        events=RoleNews(caches.roles, events),
    )
    ledger = Ledger(db, settings.quota, events=events)
    callers = Callers(auth, TrustedProxies(settings.trusted_proxies.split()))
    traffic = Traffic(settings.traffic, redis, events)

    features = features_of(settings.images)
    flows = [flow_of(feature, settings.images.step_timeout_s) for feature in features.values()]
    files = Files(settings.data_path / "files")
    bound = settings.images.upload_bytes_max
    workers = ImageWorkers(msgspec.structs.replace(settings.image_workers, photo_bytes_max=bound))
    providers = {PROVIDER: traffic.guarded(LocalProvider(workers, files), PROVIDER, features)}
    runs = Runs(db, settings.pipeline, flows=flows, providers=providers, quota=ledger, events=events)

    sign_up = SignUpCredits(welcome=settings.welcome_credits, daily=settings.daily_credits)
    profiles = Profiles(db, caches.profiles)
    invites = Invites(db, ledger, profiles, settings.invites, events=events)
    may_register = partial(traffic.switches.require, "registration")
    accounts = Accounts(db, auth, ledger, profiles, invites, sign_up, may_register=may_register)
    catalogue = Catalogue(caches.features, ShippedFeatures(features.values()), features.values())
    images = Images(runs, Uploads(db), files, workers, features, settings.images)
    belongings = ImageBelongings(runs, Uploads(db), files)
    personal = Personal(db, auth, profiles, belongings.owns, events=events)
    privacy = Privacy(db, auth, ledger, profiles, invites, [belongings], events=events)

    parts: dict[str, Part] = {"db": db, "redis": redis, "cache": cache, "auth": auth, "quota": ledger}
    parts |= {"images": workers, "pipeline": runs, "invites": invites}
    parts |= {name: part for name, part in (("sms", sms), ("wechat", wechat)) if part is not None}
    if settings.backup.folder:
        parts["backup"] = Backups(db, settings.backup_path, settings.backup)  # only their age; cron makes them
    observe = Observe(settings.observe, parts={**parts, **traffic.parts}, lines=lines)
    api = Router(
        path="/api/v1",
        before_request=refuse_odd_queries,
        route_handlers=[
            auth_routes(accounts),
            me_routes(personal, privacy, invites),
            admin_routes(Administration(db, auth, profiles, events=events)),
            auth_router(auth, refresh_opt=REFRESH),
            keys_router(auth),
            web_sessions_router(auth, tenant=TENANT, login_opt=LOGIN, refresh_opt=REFRESH),
            live_ticket_handler(auth, permissions=(MAY_WATCH,)),
            Router("/quota", route_handlers=[quota_router(ledger, owner=_owner)], guards=[permitted("quota:read")]),
            quota_admin_router(ledger, _owner, "/admin/quota", guards=[permitted("quota:admin")]),
            Router("/admin", route_handlers=traffic.admin_routers(guards=[permitted("limits:admin")])),
            images_router(images, catalogue, settings.images, traffic.switches),
        ],
    )

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        if settings.on_embedded_database:
            await migrate_schema(settings)
        files.sweep()
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
        runs.begin_drain()

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

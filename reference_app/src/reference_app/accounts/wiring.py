"""What this domain is made of, from the settings; nothing is opened here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec
from litestar import Router

from daydo_auth import Auth, AuthConfig, Channel, RoleStore, Sender
from daydo_auth.litestar import auth_router, keys_router, web_sessions_router
from daydo_auth.wechat import WeChat
from daydo_db import Database
from daydo_kernel import EventSink, Part
from daydo_quota import Ledger
from daydo_redis import Redis
from reference_app.caches import CachedRoles, Caches, RoleNews
from reference_app.settings import Settings, signing_keys
from reference_app.sms import SmsSender
from reference_app.traffic import LOGIN, REFRESH, Traffic

from .clean_start import CleanStart
from .config import TENANT, SignUpCredits
from .invites import Invites
from .me_routes import me_routes
from .personal import OwnsUpload, Personal
from .privacy import Belongings, Privacy
from .repository import Profiles
from .routes import auth_routes
from .service import Accounts


class People(msgspec.Struct, frozen=True):
    """Who our users are: ``auth`` knows how they log in, ``profiles`` what is kept of them."""

    auth: Auth
    profiles: Profiles
    invites: Invites
    sms: SmsSender | None
    wechat: WeChat | None
    routers: Sequence[Router]

    @property
    def parts(self) -> dict[str, Part]:
        """What has to run besides ``auth``, in this order."""
        outside = {"sms": self.sms, "wechat": self.wechat}
        return {"invites": self.invites, **{name: part for name, part in outside.items() if part is not None}}


def people_of(
    settings: Settings,
    db: Database,
    redis: Redis,
    caches: Caches,
    ledger: Ledger,
    traffic: Traffic,
    *,
    belongings: Sequence[Belongings],
    owns_upload: OwnsUpload,
    events: EventSink,
) -> People:
    """How users come in and what they do with their accounts, and the routes of it; ``belongings`` of other domains."""
    profiles = Profiles(db, caches.profiles)
    invites = Invites(db, ledger, profiles, settings.invites, events=events)
    sms = SmsSender(settings.sms) if settings.sms.url else None
    wechat = WeChat(settings.wechat) if settings.wechat.appid else None
    senders: dict[Channel, Sender] = {"phone": sms} if sms else {}
    auth = Auth(
        db,
        redis,
        auth_config(settings),
        senders=senders,
        wechat=wechat,
        role_source=CachedRoles(caches.roles, RoleStore(db, None)),
        start_clean=CleanStart(db, profiles, belongings, events=events),
        events=RoleNews(caches.roles, events),
    )
    sign_up = SignUpCredits(welcome=settings.welcome_credits, daily=settings.daily_credits)
    may_register = partial(traffic.switches.require, "registration")
    accounts = Accounts(db, auth, ledger, profiles, invites, sign_up, may_register=may_register)
    personal = Personal(db, auth, profiles, owns_upload, events=events)
    privacy = Privacy(db, auth, ledger, profiles, invites, belongings, events=events)
    routers = [
        auth_routes(accounts),
        me_routes(personal, privacy, invites),
        auth_router(auth, refresh_opt=REFRESH),
        keys_router(auth),
        web_sessions_router(auth, tenant=TENANT, login_opt=LOGIN, refresh_opt=REFRESH),
    ]
    return People(auth=auth, profiles=profiles, invites=invites, sms=sms, wechat=wechat, routers=routers)


def auth_config(settings: Settings) -> AuthConfig:
    """``settings.auth`` with what is written elsewhere in them: secrets, and what everybody and the roles may."""
    return msgspec.structs.replace(
        settings.auth,
        keys=signing_keys(settings.jwt_secret),
        pepper=settings.password_pepper,
        roles=settings.roles,
        default_permissions=settings.default_permissions,
    )

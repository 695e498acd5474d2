"""``daydo admin …``: what makes the first administrator, who makes the others through the API."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import msgspec
from rich.console import Console

from daydo_auth import Auth, AuthConfig
from daydo_db import Database
from daydo_db.piccolo import bind
from daydo_kernel import running
from daydo_redis import Redis

from .accounts.config import TENANT
from .accounts.repository import Profiles
from .accounts.tables import TABLES
from .events import LogEvents
from .settings import Settings, load_settings, signing_keys
from .words import show

_EXIT = """exit status:
  0 done, also where nothing had to be changed; 1 nobody has that login, or no role that name; 2 wrong usage"""


def add_to(commands: Any) -> None:
    """Add the group ``admin`` to the commands of ``daydo``."""
    form = argparse.RawDescriptionHelpFormatter
    group = commands.add_parser("admin", help="who may administer", epilog=_EXIT, formatter_class=form)
    parts = group.add_subparsers(required=True, metavar="COMMAND")
    for name, about in (("grant-role", "let a user have a role"), ("revoke-role", "let a user have it no longer")):
        command = parts.add_parser(name, help=about, epilog=_EXIT, formatter_class=form)
        command.add_argument("login", metavar="LOGIN", help="phone number, e-mail address or user id")
        command.add_argument("role", metavar="ROLE", help="admin, operator, support, or one that was defined")
        command.set_defaults(run=lambda options, grant=name == "grant-role": asyncio.run(_change(options, grant)))


async def _change(options: argparse.Namespace, grant: bool) -> int:
    settings = load_settings()
    db = Database(settings.resolved_database_url, settings.database)
    redis = Redis(settings.redis_url, settings.redis)
    bind(TABLES, db)
    auth = Auth(db, redis, _config(settings), events=LogEvents())
    async with running([db, redis, auth]):
        found = await Profiles(db).look_up(TENANT, options.login)
        if not found:
            Console(stderr=True, highlight=False).print("nobody is registered under this login", style="red")
            return 1
        change = auth.roles.add if grant else auth.roles.remove
        standing = await change(found[0].id, options.role, tenant=TENANT)
    show(("user", "roles"), [(found[0].id, ", ".join(standing.roles))])
    return 0


def _config(settings: Settings) -> AuthConfig:
    keys, pepper = signing_keys(settings.jwt_secret), settings.password_pepper
    return msgspec.structs.replace(settings.auth, keys=keys, pepper=pepper, roles=settings.roles)

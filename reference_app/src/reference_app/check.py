"""``daydo check``: whether the service could start here, and what to do if not."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

from rich.console import Console
from rich.table import Table

from daydo_db import Database
from daydo_kernel import DaydoError, SystemClock
from daydo_redis import Redis

from .main import SCHEMAS
from .settings import Settings

SKEW_WARNING_S = 1.0

Probe = Callable[[Settings], Awaitable[str]]


class Unfit(Exception):
    """A probe found something the service cannot live with; the message says the fix."""


async def check(settings: Settings) -> int:
    """Print one line a probe; the exit status is 1 if any failed."""
    table = Table("check", "result", "detail")
    failed = False
    for name, probe in _PROBES.items():
        try:
            table.add_row(name, "[green]ok[/green]", await probe(settings))
        except (DaydoError, Unfit, OSError) as error:
            failed = True
            table.add_row(name, "[red]failed[/red]", str(error))
    Console().print(table)
    return int(failed)


async def _data_folder(settings: Settings) -> str:
    folder = settings.data_path
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise Unfit(f"{folder} cannot be written; set DAYDO_DATA_DIR")
    space = os.statvfs(folder)
    return f"{folder}, {space.f_bavail * space.f_frsize // 2**20} MiB free"


async def _database(settings: Settings) -> str:
    async with Database(settings.resolved_database_url, settings.database) as db:
        version = "sqlite_version()" if db.dialect.name == "sqlite" else "version()"
        found = (await db.query(f"SELECT {version}, {db.dialect.now_us}")).rows[0]
        skew_s = abs(int(found[1]) - SystemClock().now_us()) / 1_000_000
        if skew_s > SKEW_WARNING_S:
            raise Unfit(f"its clock and this host's differ by {skew_s:.1f} s; synchronise both by NTP")
        return f"{db.dialect.name} {found[0]}, clock differs by {skew_s * 1000:.0f} ms"


async def _schema(settings: Settings) -> str:
    if settings.on_embedded_database:
        return "migrated at start"
    async with Database(settings.resolved_database_url, settings.database) as db:
        for package in SCHEMAS:
            await db.require_schema(package)
    return f"current for {', '.join(SCHEMAS)}"


async def _redis(settings: Settings) -> str:
    async with Redis(settings.redis_url, settings.redis) as redis:
        await redis.call("PING")
        if redis.embedded:
            return "embedded"
        policy = (await redis.call("CONFIG", "GET", "maxmemory-policy"))[1].decode()
        if policy != "noeviction":
            raise Unfit(f"its maxmemory-policy is {policy}; tickets and limits need noeviction")
        return f"answers, {policy}"


_PROBES: dict[str, Probe] = {
    "data folder": _data_folder,
    "database": _database,
    "schema": _schema,
    "redis": _redis,
}

"""``daydo check``: whether the service could start here, and what to do if not."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from daydo_db import Database, DbError
from daydo_kernel import DaydoError, SystemClock
from daydo_redis import Redis

from .main import SCHEMAS
from .settings import Settings
from .words import in_words, place

SKEW_WARNING_S = 1.0
_LOOK_EVERY_S = 0.02

Probe = Callable[[Settings], Awaitable[str]]


class Unfit(Exception):
    """A probe found something the service cannot live with; the message says the fix."""


async def check(settings: Settings) -> int:
    """Print one line a probe; the exit status is 1 if any failed."""
    table = Table("check", "result", "detail")
    failed = False
    for name, probe in _PROBES.items():
        try:
            table.add_row(name, "[green]ok[/green]", escape(await probe(settings)))
        except (DaydoError, Unfit, OSError) as error:
            failed = True
            table.add_row(name, "[red]failed[/red]", escape(in_words(error, settings)))
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


async def _replicas(settings: Settings) -> str:
    replicas = settings.database_replicas.split()
    if not replicas:
        return "none"
    async with Database(settings.resolved_database_url, settings.database) as primary:
        await primary.require_schema("daydo_db")
        await primary.execute(f"UPDATE daydo_db_heartbeat SET at_us = {primary.dialect.now_us} WHERE id = 1")  # noqa: S608
        beat_us = await _heartbeat_us(primary)
    began_s = time.monotonic()
    return ", ".join([await _follows(url, beat_us, began_s, settings) for url in replicas])


async def _follows(url: str, beat_us: int, began_s: float, settings: Settings) -> str:
    """How long the replica at ``url`` took to show what the primary wrote at ``began_s``."""
    name = place(url)
    bound_s = settings.database.replica_lag_s
    try:
        async with Database(url, settings.database) as replica:
            while (shown_us := await _heartbeat_us(replica)) < beat_us:
                if time.monotonic() - began_s > bound_s:
                    behind_s = (beat_us - shown_us) / 1_000_000
                    raise Unfit(f"{name} is {behind_s:.0f} s behind, or does not follow; reads go to the primary")
                await asyncio.sleep(_LOOK_EVERY_S)
    except DbError as error:
        raise Unfit(f"{name}: {in_words(error)}") from error
    except LookupError:
        raise Unfit(f"{name} has no heartbeat of this database: it does not follow") from None
    return f"{name} follows within {time.monotonic() - began_s:.2f} s"


async def _heartbeat_us(db: Database) -> int:
    """The primary's time in the row that measures lag.

    Raises:
        LookupError: the row is not there.
    """
    return int((await db.query("SELECT at_us FROM daydo_db_heartbeat WHERE id = 1")).rows[0][0])


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
    "replicas": _replicas,
    "redis": _redis,
}

"""``daydo db explain``: no statement that we ship reads a table from end to end.

On a scratch database with generated rows everything that sends SQL is done once (:mod:`.explain_walk`), and every
distinct statement of it is explained and executed again, the rows it reads counted beside those it returns.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

from rich.text import Text

from daydo_db import Database
from daydo_db.explain import Examined, Workload, examine, recording
from daydo_db.migrate import migrate
from daydo_kernel import SystemClock, new_id
from daydo_kernel.ids import ALPHABET

from .explain_data import fill, tables
from .explain_walk import walk
from .main import SCHEMAS
from .settings import Settings
from .words import show

ROWS = 20_000
LEFT_BEHIND_S = 3600
_PREFIX = "daydo_explain"
_SCRATCH = re.compile(rf"{_PREFIX}_[0-9a-z]{{26}}")

# Read from end to end on purpose: they hold one row per process, flow version or schema statement, never per user.
SMALL_BY_DESIGN = frozenset({"daydo_pipeline_worker", "daydo_pipeline_def", "daydo_migration"})
# Every worker holds all of them: a statement without a condition reads them all on purpose, one with a condition not.
HELD_WHOLE = frozenset({"daydo_auth_role", "daydo_auth_role_table"})

# A statement may read this many rows for each one it returns, besides a few to find its place.
READ_FACTOR, READ_FREE = 10, 300


class Judged(NamedTuple):
    """``fault`` is empty for a statement that is as it should be."""

    examined: Examined
    fault: str


async def explain(settings: Settings, *, rows: int = ROWS) -> int:
    """Print every statement with its verdict; the exit status is 1 where one scans.

    The scratch database is a temporary file, or a new one on the configured server, dropped afterwards. There the user
    needs all rights on ``daydo_explain_%``: GRANT ALL ON `daydo\\_explain\\_%`.* TO daydo.

    Raises:
        DbError: the server cannot be reached, or refuses to create a database.
    """
    async with scratch(settings.resolved_database_url) as db:
        judged = judge(await examine(db, await walked(db, rows=rows)), await tables(db))
    _print(judged, f"{db.dialect.name}, about {rows} rows a table")
    return int(any(one.fault for one in judged))


@asynccontextmanager
async def scratch(url: str) -> AsyncIterator[Database]:
    """A new empty database beside the one at ``url``, gone afterwards."""
    async with Database("sqlite://" if url.startswith("sqlite:") else url) as own:
        if own.dialect.name == "sqlite":
            yield own
            return
        await _sweep(own)
        name = new_id(_PREFIX).lower()
        await own.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        try:
            async with Database(urlsplit(url)._replace(path=f"/{name}").geturl()) as db:
                yield db
        finally:
            await own.execute(f"DROP DATABASE {name}")


async def _sweep(own: Database) -> None:
    """Drop what a killed run has left behind; one that is going on is younger than that."""
    oldest = f"{_PREFIX}_{_id_head(SystemClock().now_us() - LEFT_BEHIND_S * 1_000_000)}"
    for (name,) in (await own.query("SHOW DATABASES")).rows:
        if _SCRATCH.fullmatch(name) and name < oldest:
            await own.execute(f"DROP DATABASE IF EXISTS {name}")


def _id_head(at_us: int) -> str:
    """How the ids of that time begin, see :mod:`daydo_kernel.ids`."""
    return "".join(ALPHABET[at_us // 1000 >> shift & 0x1F] for shift in range(45, -1, -5)).lower()


async def walked(db: Database, *, rows: int) -> Workload:
    """Migrate and fill ``db``, and record all that the walk sends."""
    await migrate(db, *SCHEMAS)
    people = await fill(db, rows=rows)
    with recording(db) as workload, _quiet_janitor():
        await walk(db, people)
    return workload


@contextmanager
def _quiet_janitor() -> Iterator[None]:
    """It logs that it ends runs of an unknown flow and takes steps from dead workers: here they are made for it."""
    log = logging.getLogger("daydo.pipeline")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def judge(examined: Sequence[Examined], ours: Sequence[str]) -> list[Judged]:
    """The worst first. ``ours`` are the tables that count: a server's catalogue may be read as it likes."""
    judged = [Judged(one, _fault(one, frozenset(ours))) for one in examined]
    return sorted(judged, key=lambda one: (not one.fault, -(one.examined.rows_read or 0), one.examined.statement))


def _fault(examined: Examined, ours: frozenset[str]) -> str:
    if _asks_for_all(examined):
        return ""
    scanned = (set(examined.plan.scans) & ours) - SMALL_BY_DESIGN
    if scanned:
        return f"scans {', '.join(sorted(scanned))}"
    allowed = READ_FACTOR * examined.rows_returned + READ_FREE
    if examined.rows_read is not None and examined.rows_read > allowed:
        return f"reads {examined.rows_read} rows for {examined.rows_returned}"
    return ""


def _asks_for_all(examined: Examined) -> bool:
    read = {access.table for access in examined.plan.accesses}
    return bool(read) and read <= HELD_WHOLE and " WHERE " not in examined.statement


def _print(judged: Sequence[Judged], title: str) -> None:
    rows = []
    for examined, fault in judged:
        plan = "\n".join(f"{access.table}: {access.how}" for access in examined.plan.accesses) or "–"
        read = "–" if examined.rows_read is None else str(examined.rows_read)
        verdict = Text(fault, style="red") if fault else Text("ok", style="green")
        rows.append((verdict, Text(_cut(examined.statement)), Text(plan), read, str(examined.rows_returned)))
    show(("verdict", "statement", "plan", "read", "returned"), rows, title=title)


def _cut(statement: str) -> str:
    return statement if len(statement) <= 300 else f"{statement[:200]} … {statement[-95:]}"

"""``daydo db …``: the schema, backups and statements of the configured database."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich import filesize
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from daydo_db import Database
from daydo_db.backup import Backup, BackupFailed, Backups, Progress, RestoreRefused
from daydo_db.config import parse_url
from daydo_db.migrate import Status, Step, migrate, status
from daydo_kernel import SystemClock

from .main import SCHEMAS
from .settings import Settings, load_settings
from .words import show

NEWEST = "newest"
_STDIN = "-"
# What the library calls an argument, and what it is here.
_OPTIONS = {"force=True": "--force", "while_in_use=True": "--while-in-use"}
_STAGES = {"dump": "Dump", "verify": "Verify by a restore", "restore": "Restore"}
_COLOURS = {"applied": "green", "newer": "green", "pending": "yellow", "half_applied": "red", "edited": "red"}
_UP_TO_DATE = {"applied", "newer"}
_EXIT = """exit status:
  up       0 done, also where nothing was missing; 1 the database refused
  status   0 up to date; 1 something is pending, half applied or edited, or the database does not answer
  backup   0 a verified backup was made; 1 none was, and the earlier ones are as they were; 130 Ctrl-C, likewise
  backups  0 there is one; 1 there is none
  restore  0 done; 1 refused or failed (MySQL: the target may hold a part); 130 Ctrl-C, likewise
  explain  0 no statement scans a table; 1 one does
  2 wrong usage, or a URL that cannot be read; 143 SIGTERM, which does what Ctrl-C does"""


def add_to(commands: Any) -> None:
    """Add the group ``db`` to the subcommands of ``daydo``."""
    form = argparse.RawDescriptionHelpFormatter
    group = commands.add_parser("db", help="schema, backups, query plans", epilog=_EXIT, formatter_class=form)
    parts = group.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[Settings, argparse.Namespace], Awaitable[int]], help: str) -> Any:
        command = parts.add_parser(name, help=help, epilog=_EXIT, formatter_class=form)
        command.set_defaults(run=lambda options: _run(run, options))
        return command

    add("up", _up, "bring the schema up to date")
    add("status", _status, "where each schema file stands")
    add("backup", _backup, "make a backup, verify it by a restore, remove old ones")
    add("backups", _backups, "list the good ones")
    restore = add("restore", _restore, "load a backup into an empty database; stop the service before")
    restore.add_argument("name", metavar="NAME", help=f"as `backups` lists it, or `{NEWEST}`")
    restore.add_argument(
        "--into", metavar="URL", type=_url, help="another database than the configured one; - reads it from stdin"
    )
    restore.add_argument("--force", action="store_true", help="drop everything that the target holds")
    restore.add_argument("--while-in-use", action="store_true", help="MySQL: also while other sessions use the target")
    add("explain", _explain, "does any shipped statement read a whole table? (in a database of its own)")


def _run(run: Callable[[Settings, argparse.Namespace], Awaitable[int]], options: argparse.Namespace) -> int:
    async def main() -> int:
        return await run(load_settings(), options)

    return asyncio.run(main())


def _url(text: str) -> str:
    if text == _STDIN:  # every user of the host can read a command line, and a password in it
        text = sys.stdin.readline().strip()
    try:
        parse_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None  # argparse's own words would repeat a password
    return text


async def _up(settings: Settings, _: argparse.Namespace) -> int:
    console = Console(stderr=True, highlight=False)

    def told(step: Step) -> None:
        if console.is_terminal:
            console.print(str(step), style="dim", markup=False)

    async with Database(settings.resolved_database_url, settings.database) as db:
        applied = await migrate(db, *SCHEMAS, progress=told)
    ran = [(file.package, f"{file.version:04}_{file.name}", str(file.statements)) for file in applied]
    show(("package", "file", "statements"), ran, whole=("file",))
    Console().print("up to date", style="green")
    return 0


async def _status(settings: Settings, _: argparse.Namespace) -> int:
    async with Database(settings.resolved_database_url, settings.database) as db:
        files = await status(db, *SCHEMAS)
    show(("package", "file", "state", "statements"), [_standing(file) for file in files], whole=("file",))
    return int(any(file.state not in _UP_TO_DATE for file in files))


async def _backup(settings: Settings, _: argparse.Namespace) -> int:
    _require_database(settings)
    async with Database(settings.resolved_database_url, settings.database) as db, _backups_of(settings, db) as backups:
        with _bars() as told:
            backup = await backups.create(progress=told)
    show(_HEADERS, [_line(backup)], whole=_WHOLE)
    return 0


async def _backups(settings: Settings, _: argparse.Namespace) -> int:
    found = await _backups_of(settings).list()
    if not found:
        raise FileNotFoundError(f"there is no backup in {settings.backup_path}")
    show(_HEADERS, [_line(backup) for backup in found], whole=_WHOLE)
    return 0


async def _restore(settings: Settings, options: argparse.Namespace) -> int:
    backups, name = _backups_of(settings), options.name
    if name == NEWEST:
        found = await backups.newest()
        if found is None:
            raise FileNotFoundError(f"there is no backup in {settings.backup_path}; one of the future is not taken")
        name = found.name
    url = options.into or settings.resolved_database_url
    try:
        with _bars() as told:
            backup = await backups.restore(
                name, url, force=options.force, while_in_use=options.while_in_use, progress=told
            )
    except RestoreRefused as refused:
        reason = refused.reason
        for argument, option in _OPTIONS.items():
            reason = reason.replace(argument, option)
        raise RestoreRefused(reason=reason) from None
    show(_HEADERS, [_line(backup)], whole=_WHOLE)
    return 0


async def _explain(settings: Settings, _: argparse.Namespace) -> int:
    from .explain import explain  # noqa: PLC0415 - brings the data generator and the walk with it

    return await explain(settings)


def _require_database(settings: Settings) -> None:
    """SQLite would make a new one where the settings name another than they should, and that be backed up.

    Raises:
        BackupFailed: there is none.
    """
    path = parse_url(settings.resolved_database_url).path
    if path and not Path(path).is_file():
        raise BackupFailed(
            reason=f"there is no database {path}; the settings come from the environment and from .env in "
            f"{Path.cwd()}, and DAYDO_DATABASE_URL {'names it' if settings.database_url else 'is not among them'}"
        )


def _backups_of(settings: Settings, db: Database | None = None) -> Backups:
    db = db or Database(settings.resolved_database_url, settings.database)
    return Backups(db, settings.backup_path, settings.backup)


_HEADERS = ("backup", "of", "age", "took", "size", "tables", "rows")
_WHOLE = ("backup", "age")


def _line(backup: Backup) -> tuple[str, ...]:
    age_s = (SystemClock().now_us() - backup.started_us) // 1_000_000
    took_s = (backup.finished_us - backup.started_us) / 1_000_000
    return (
        backup.name,
        backup.server,
        f"{timedelta(seconds=age_s)}",
        f"{took_s:.1f} s",
        filesize.decimal(backup.size_bytes),
        str(len(backup.tables)),
        str(sum(backup.tables.values())),
    )


def _standing(file: Status) -> tuple[str | Text, ...]:
    state = Text(file.state.replace("_", " "), style=_COLOURS[file.state])
    name = f"{file.version:04}_{file.name}" if file.name else f"{file.version:04}"
    return file.package, name, state, f"{file.done}/{file.of}"


@contextmanager
def _bars() -> Iterator[Callable[[Progress], None] | None]:
    """One bar a stage, on a terminal alone."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description:20}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console) as bars:
        known: dict[str, Any] = {}

        def told(progress: Progress) -> None:
            if progress.stage not in known:
                known[progress.stage] = bars.add_task(_STAGES[progress.stage])
            bars.update(known[progress.stage], completed=progress.done_bytes, total=progress.total_bytes)

        yield told

"""``python -m daydo_db up URL daydo_quota …``: the tables of packages, from the command line."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import TextIO

from .config import DatabaseConfig
from .database import Database
from .errors import DbError
from .expand import lint
from .migrate import State, Status, Step, migrate, plan, sql, status

_DIALECTS = ("sqlite", "mysql")
_STDIN = "-"
_COLOURS = {"applied": 32, "newer": 36, "pending": 33, "half_applied": 31, "edited": 31}
_READS: dict[State, str] = {
    "applied": "applied",
    "newer": "applied by newer code",
    "pending": "pending",
    "half_applied": "half applied",
    "edited": "edited",
}
_DONE: frozenset[State] = frozenset({"applied", "newer"})
_EXIT = """exit status:
  up      0 done, also where nothing was missing; 1 the database refused
  status  0 up to date; 1 something is pending, half applied or edited, or the database refused
  lint    0 clean; 1 a file breaks a rule
  2 wrong usage, or files that cannot be read"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit statuses stand in ``--help``."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except ValueError as error:
        parser.error(str(error))
    except DbError as error:
        cause = [] if error.__cause__ is None else [error.__cause__]
        details = [*getattr(error, "__notes__", ()), *cause]
        sys.stderr.write("\n  ".join(map(str, [error, *details])) + "\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m daydo_db", epilog=_EXIT, formatter_class=form)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser(
        "up",
        aliases=["migrate"],
        help="bring the tables of packages to the installed version",
        usage="python -m daydo_db up [--dry-run] [--tls] URL PACKAGE [PACKAGE ...]\n"
        "       python -m daydo_db up --sql {sqlite,mysql} [--after N] [--upto N] PACKAGE [PACKAGE ...]",
    )
    up.add_argument("--dry-run", action="store_true", help="print what would run now, run nothing")
    up.add_argument("--sql", choices=_DIALECTS, help="print the statements of this dialect, run nothing")
    up.add_argument("--after", type=int, default=0, metavar="N", help="with --sql: only files above this number")
    up.add_argument("--upto", type=int, default=9999, metavar="N", help="with --sql: only files up to this number")
    _add_connection(up)
    up.set_defaults(run=_up)

    command = commands.add_parser("status", help="where each schema file stands")
    _add_connection(command)
    command.set_defaults(run=lambda options: asyncio.run(_status(options)))

    command = commands.add_parser("lint", help="does each file leave the version before it running? (expand/contract)")
    command.add_argument("packages", nargs="+", metavar="PACKAGE", help="import names")
    command.set_defaults(run=_lint)
    return parser


def _add_connection(command: argparse.ArgumentParser) -> None:
    command.add_argument("--tls", action="store_true", help="speak TLS to MySQL and verify its certificate")
    command.add_argument("--tls-ca-file", default="", metavar="FILE", help="trust these authorities")
    command.add_argument(
        "targets", nargs="+", metavar="URL PACKAGE", help="the database, then import names; - reads the URL from stdin"
    )


def _database(options: argparse.Namespace) -> tuple[Database, list[str]]:
    url, *packages = options.targets
    if not packages:
        raise ValueError("name the database and at least one package")
    if url == _STDIN:  # every user of the host can read a command line, and a password in it
        url = sys.stdin.readline().strip()
    config = DatabaseConfig(tls=options.tls or bool(options.tls_ca_file), tls_ca_file=options.tls_ca_file)
    return Database(url, config), packages


def _up(options: argparse.Namespace) -> int:
    if options.sql:
        sys.stdout.write(sql(options.sql, *options.targets, after=options.after, upto=options.upto))
        return 0
    return asyncio.run(_plan(options) if options.dry_run else _migrate(options))


async def _migrate(options: argparse.Namespace) -> int:
    db, packages = _database(options)
    line = _ProgressLine(sys.stderr)
    async with db:
        try:
            applied = await migrate(db, *packages, progress=line.show)
        finally:
            line.clear()
    for file in applied:
        sys.stdout.write(f"{file.package} {file.version:04}_{file.name}: {file.statements} statements\n")
    sys.stdout.write("up to date\n")
    return 0


async def _plan(options: argparse.Namespace) -> int:
    db, packages = _database(options)
    async with db:
        steps = await plan(db, *packages)
    for step in steps:
        again = ", may have been applied" if step.again else ""
        sys.stdout.write(f"-- {step}{again}{_warning(step)}\n{step.sql};\n")
    sys.stdout.write("" if steps else "-- up to date\n")
    return 0


async def _status(options: argparse.Namespace) -> int:
    db, packages = _database(options)
    async with db:
        files = await status(db, *packages)
    for file in files:
        name = f"{file.version:04}_{file.name}" if file.name else f"{file.version:04}"
        sys.stdout.write(f"{file.package} {name}: {_coloured(file.state)}{_detail(file)}\n")
    return 0 if all(file.state in _DONE for file in files) else 1


def _lint(options: argparse.Namespace) -> int:
    problems = [problem for package in options.packages for problem in lint(package)]
    for problem in problems:
        sys.stdout.write(f"{problem}\n")
    return 1 if problems else 0


def _detail(file: Status) -> str:
    if file.state == "half_applied":
        where = "a runner died in it, or is at it: it may have been applied" if file.died else "not begun"
        return f", {file.done} of {file.of} statements; statement {file.at} ({where}): {_short(file.sql)}"
    if file.state == "edited":
        return f", statement {file.at} is not the one that ran: {_short(file.sql) or 'gone from the file'}"
    return _warning(file) if file.state == "pending" else ""


def _warning(file: Step | Status) -> str:
    return f" (contract: needs code >= {file.needs} everywhere)" if file.needs else ""


def _short(text: str, room: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= room else f"{line[: room - 1]}…"


def _coloured(state: State) -> str:
    return f"\033[{_COLOURS[state]}m{_READS[state]}\033[0m" if sys.stdout.isatty() else _READS[state]


class _ProgressLine:
    """Which statement runs now: one line that changes in a terminal, a line each in a log."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()

    def show(self, step: Step) -> None:
        line = f"{step}: {_short(step.sql, 60)}"
        self._out.write(f"\r\033[K{line}" if self._terminal else f"{line}\n")
        self._out.flush()

    def clear(self) -> None:
        if self._terminal:
            self._out.write("\r\033[K")
            self._out.flush()


if __name__ == "__main__":
    sys.exit(main())

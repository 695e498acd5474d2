"""``python -m daydo_db migrate URL daydo_quota …``: apply, or with ``--sql DIALECT`` print, the schemas of packages."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from .database import Database
from .errors import DbError
from .migrate import Applied, migrate, sql


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done (also where nothing was missing), 1 the database refused, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m daydo_db")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "migrate",
        help="bring the tables of packages to the installed version",
        usage="%(prog)s URL PACKAGE [PACKAGE ...]\n       %(prog)s --sql {sqlite,mysql} PACKAGE [PACKAGE ...]",
    )
    command.add_argument("--sql", choices=("sqlite", "mysql"), help="print the statements of this dialect, run nothing")
    command.add_argument("targets", nargs="+", metavar="URL PACKAGE", help="the database, then import names")
    options = parser.parse_args(arguments)
    if not options.sql and len(options.targets) < 2:
        command.error("name the database and at least one package")
    try:
        if options.sql:
            sys.stdout.write(sql(options.sql, *options.targets))
            return 0
        applied = asyncio.run(_migrate(*options.targets))
    except ValueError as error:
        command.error(str(error))
    except DbError as error:
        cause = f"\n  {error.__cause__}" if error.__cause__ is not None else ""
        sys.stderr.write(f"{error}{cause}\n")
        return 1
    for file in applied:
        sys.stdout.write(f"{file.package} {file.version:04}_{file.name}: {file.statements} statements\n")
    sys.stdout.write("up to date\n")
    return 0


async def _migrate(url: str, *packages: str) -> list[Applied]:
    async with Database(url) as db:
        return await migrate(db, *packages)


if __name__ == "__main__":
    sys.exit(main())

"""The command ``daydo``: serve, demo, migrate, check, db."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from daydo_kernel import DaydoError

from . import database_cli, demo
from .check import check
from .main import compose, migrate_schema
from .server import SERVE, ServiceDidNotStart, bind, serve, stop_with_parent, supervise
from .settings import Settings, SettingsInvalid, load_settings

# What a worker may take after its last request: each part drains within a bound of its own.
PARTS_DRAIN_S = 60.0
_ERRORS = Console(stderr=True, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, or 1 with the reason on standard error."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except (SettingsInvalid, DaydoError, demo.DemoFailed, ServiceDidNotStart, OSError) as error:
        _ERRORS.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="daydo", description="The daydo reference service.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("serve", help="run the service (settings: environment and .env)")
    command.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)
    command.add_argument("--parent-fd", type=int, help=argparse.SUPPRESS)
    command.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    command.set_defaults(run=_serve)

    command = commands.add_parser("demo", help="register, upload a photo, cut it out, look at the ledger; keep serving")
    command.add_argument("--once", action="store_true", help="exit after the tour; the last line is a JSON summary")
    command.add_argument("--image", type=Path, metavar="FILE", help="your own photo instead of the sample")
    command.set_defaults(run=lambda options: demo.run(once=options.once, image=options.image))

    command = commands.add_parser("migrate", help="bring the database's schema up to date")
    command.set_defaults(run=lambda _: asyncio.run(migrate_schema(load_settings())))

    command = commands.add_parser("check", help="settings, database, schema and Redis: can it run?")
    command.set_defaults(run=lambda _: asyncio.run(check(load_settings())))

    database_cli.add_to(commands)
    return parser


def _serve(options: argparse.Namespace) -> int:
    settings = load_settings()
    if options.listen_fd is not None:
        listener = socket.socket(fileno=options.listen_fd)
    else:
        listener = bind(settings.host, settings.port)
    if options.parent_fd is not None:
        stop_with_parent(options.parent_fd)
    if not options.worker:
        _announce(listener)
    if settings.workers > 1 and not options.worker:
        stop_s = settings.drain_s + PARTS_DRAIN_S
        supervise([*SERVE, "--worker"], listener, settings.workers, _fresh_metrics_dir(settings), stop_s)
        return 0
    service = compose(settings)
    # uvicorn raises the signal again once it has stopped in good order.
    with suppress(KeyboardInterrupt):
        serve(service.app, listener, drain_s=settings.drain_s, begin_drain=service.begin_drain)
    return 0


def _fresh_metrics_dir(settings: Settings) -> dict[str, str]:
    """Where the workers of this start publish their counters; what an earlier start left is removed."""
    folder = settings.data_path / "metrics"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return {"DAYDO_OBSERVE__METRICS_DIR": str(folder)}


def _announce(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    if _ERRORS.is_terminal:  # elsewhere standard error is the log, and holds JSON lines only
        _ERRORS.print(f"daydo is on http://{host}:{port} (API page: /docs, metrics: /metrics); Ctrl-C stops it")


if __name__ == "__main__":
    sys.exit(main())

"""The command ``daydo``: serve, demo, migrate, check, db, routes, admin."""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from daydo_kernel import DaydoError

from . import admin_cli, database_cli, demo, routes_cli
from .check import check
from .main import compose, migrate_schema
from .server import CANNOT_START, SERVE, CannotStart, ServiceDidNotStart, bind, serve, stop_with_parent, supervise
from .settings import Settings, SettingsInvalid, load_settings
from .words import first, in_words

# What a worker may take after its last request: each part drains within a bound of its own.
PARTS_DRAIN_S = 60.0
_ERRORS = Console(stderr=True, highlight=False)

log = logging.getLogger("daydo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, or 1 with the reason on standard error.

    130 after Ctrl-C and 143 after SIGTERM, in good order both.
    """
    options = _parser().parse_args(arguments)
    with _terminated_like_interrupted(options) as terminated:
        try:
            status = int(options.run(options) or 0)
        except SettingsInvalid as error:
            _fail(str(error))
            status = 1
        except (DaydoError, demo.DemoFailed, ServiceDidNotStart, OSError) as error:
            _fail(in_words(error, _settings()))
            status = 1
        except KeyboardInterrupt:
            _fail("stopped")
            status = 130
    return 143 if terminated else status


@contextmanager
def _terminated_like_interrupted(options: argparse.Namespace) -> Iterator[list[int]]:
    """SIGTERM does what Ctrl-C does, so that cron or systemd leave nothing half done either; the list tells.

    `serve` has an order of its own for both.
    """
    terminated: list[int] = []
    if options.run is _serve or threading.current_thread() is not threading.main_thread():
        yield terminated
        return

    def interrupt(number: int, _: object) -> None:
        if terminated:
            return
        terminated.append(number)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # A shell starts what is in its background like that.
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield terminated
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(words: str) -> None:
    _ERRORS.print(words, style="red", markup=False, soft_wrap=True)


def _settings() -> Settings | None:
    with suppress(SettingsInvalid):
        return load_settings()
    return None


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
    routes_cli.add_to(commands)
    admin_cli.add_to(commands)
    return parser


def _serve(options: argparse.Namespace) -> int:
    cannot = CANNOT_START if options.worker else 1
    try:
        settings = load_settings()
        listener = _listener(options, settings)
    except (SettingsInvalid, OSError) as error:
        _fail(f"cannot start: {error}")
        return cannot
    if options.parent_fd is not None:
        stop_with_parent(options.parent_fd)
    if not options.worker:
        _announce(listener)
    if settings.workers > 1 and not options.worker:
        stop_s = settings.drain_s + PARTS_DRAIN_S
        return supervise([*SERVE, "--worker"], listener, settings.workers, _fresh_metrics_dir(settings), stop_s)
    try:
        service = compose(settings)
        # uvicorn raises the signal again once it has stopped in good order.
        with suppress(KeyboardInterrupt):
            serve(service.app, listener, drain_s=settings.drain_s, begin_drain=service.begin_drain, http=service.http)
    except Exception as error:
        _log_why(error, settings)
        return cannot
    return 0


def _listener(options: argparse.Namespace, settings: Settings) -> socket.socket:
    if options.listen_fd is not None:
        return socket.socket(fileno=options.listen_fd)
    return bind(settings.host, settings.port)


def _log_why(error: Exception, settings: Settings) -> None:
    why = first(error.__cause__ or error if isinstance(error, CannotStart) else error)
    # Words are enough for what an operator can mend; anything else is a mistake of ours.
    expected = isinstance(why, DaydoError | OSError | RuntimeError)
    log.critical("cannot start: %s", in_words(why, settings), exc_info=None if expected else why)


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

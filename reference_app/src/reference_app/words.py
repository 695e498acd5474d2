"""What a command tells whoever sits at the terminal, or reads its output with ``cut``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from daydo_db import ConnectionLost, SchemaOutdated
from daydo_db.config import parse_url
from daydo_kernel import DaydoError

from .settings import Settings

Rows = Sequence[Sequence[str | Text]]


def show(headers: Sequence[str], rows: Rows, *, title: str | None = None, whole: Sequence[str] = ()) -> None:
    """A table in a terminal, the columns ``whole`` never wrapped; elsewhere lines of cells between tabs."""
    console = Console()
    if not rows:
        return
    if not console.is_terminal:
        for row in rows:
            print("\t".join(" ".join(str(cell).split()) for cell in row))  # noqa: T201
        return
    table = Table(title=title, show_lines=title is not None)
    for header in headers:
        table.add_column(header, no_wrap=header in whole)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def in_words(error: BaseException, settings: Settings | None = None) -> str:
    """``error`` on one line, with what the server or the driver said.

    ``settings`` tell where the database is that cannot be reached, without its password.
    """
    error = first(error)
    said = [_message(error, settings), *getattr(error, "__notes__", ())]
    if isinstance(error, DaydoError):
        said += _causes(error)
    return " ".join("; ".join(dict.fromkeys(filter(None, said))).split())


def place(database_url: str) -> str:
    """Where that is, without user and password."""
    location = parse_url(database_url)
    return location.path or location.unix_socket or f"{location.host}:{location.port}"


def first(error: BaseException) -> BaseException:
    """The first error of those that left a group of tasks together."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _message(error: BaseException, settings: Settings | None) -> str:
    if isinstance(error, SchemaOutdated):  # Its own command needs a password that it does not know.
        return str(SchemaOutdated(package=error.package, have=error.have, need=error.need, command="daydo db up"))
    if isinstance(error, ConnectionLost) and settings is not None:
        return f"{error} (database: {place(settings.resolved_database_url)})"
    return str(error) or type(error).__name__


def _causes(error: BaseException) -> Iterator[str]:
    cause = error.__cause__
    while cause is not None:
        # The drivers of MySQL say (number, text).
        yield str(cause.args[1]) if len(cause.args) == 2 else str(cause) or type(cause).__name__
        cause = cause.__cause__

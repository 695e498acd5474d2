"""What the database does for a statement: its plan, and the rows it reads for those it returns.

Record a workload, then have each of its statements examined on real data::

    with recording(db) as workload:
        ...                                     # whatever your service does
    for examined in await examine(db, workload):
        print(examined.statement, examined.plan.scans, examined.rows_read, examined.rows_returned)

The plans are read from the tabular form of EXPLAIN, which holds no values; ``FORMAT=JSON`` and ``TREE`` would.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from .connection import Connection
from .database import Database
from .errors import DbError
from .fingerprint import Fingerprint, fingerprint
from .plan import Plan, explaining, read_plan
from .telemetry import Sent
from .tx import SQLITE, Dialect, Statement, Value

EXAMPLES_MAX = 3
_HERE = str(Path(__file__).parent)
_READS = "SHOW SESSION STATUS LIKE 'Handler_read%'"


class Example(msgspec.Struct, frozen=True):
    """One execution of a statement: what it was given, and the rows it returned or matched."""

    statement: Statement
    args: Sequence[Value]
    rows: int


class Workload:
    """The distinct statements of a recording.

    Attributes:
        examples: by fingerprint; of each statement the first execution, the one with the most rows, and the last.
        callers: (file, line) of every call outside this package that a statement went through.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.examples: dict[Fingerprint, list[Example]] = {}
        self.callers: set[tuple[str, int]] = set()

    def hear(self, sent: Sent) -> None:
        """Keep a statement that can be explained."""
        if sent.result is None or explaining(self.dialect.name, sent.statement) is None:
            return
        self._note_callers()
        seen = self.examples.setdefault(fingerprint(self.dialect.name, sent.statement.text), [])
        example = Example(sent.statement, tuple(sent.args), sent.result.rowcount)
        if len(seen) < EXAMPLES_MAX:
            seen.append(example)
            return
        most = max(seen[1:], key=lambda known: known.rows)
        seen[1:] = [most, example]

    def only(self, part: str) -> Workload:
        """Its statements that have ``part`` in their text without values."""
        some = Workload(self.dialect)
        some.examples = {known: seen for known, seen in self.examples.items() if part in known.text}
        return some

    def _note_callers(self) -> None:
        frame = sys._getframe(2)
        while frame is not None:
            if not frame.f_code.co_filename.startswith(_HERE):
                self.callers.add((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back  # type: ignore[assignment]


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """A statement on real data; of several examples, the worst.

    Attributes:
        statement: without its values.
        rows_read: that the server read for it, from tables and from what it put aside; None on SQLite, which does not
            tell.
        rows_returned: or, of a writing statement, matched.
    """

    fingerprint: str
    statement: str
    plan: Plan
    rows_read: int | None
    rows_returned: int


@contextmanager
def recording(db: Database) -> Iterator[Workload]:
    """Keep the distinct statements that ``db`` is sent meanwhile. Their arguments are kept in memory."""
    workload = Workload(db.dialect)
    with db.telemetry.listening(workload.hear):
        yield workload


async def examine(db: Database, workload: Workload) -> list[Examined]:
    """Explain every statement and execute it once more, in a transaction that is rolled back.

    On a connection of its own, and best without other users: on MySQL the rows read are counted by the session.

    Raises:
        DbError: a statement could not be explained.
    """
    async with db._dedicated() as connection:
        return [
            max([await _examine(connection, db.dialect, known, example) for example in examples], key=_badness)
            for known, examples in workload.examples.items()
        ]


async def _examine(connection: Connection, dialect: Dialect, known: Fingerprint, example: Example) -> Examined:
    explain = explaining(dialect.name, example.statement)
    if explain is None:
        raise ValueError(f"{example.statement.verb} statements have no plan")
    plan = read_plan(dialect.name, known.text, await connection.execute(explain, example.args))
    read, returned = await _measure(connection, dialect, example)
    return Examined(fingerprint=known.id, statement=known.text, plan=plan, rows_read=read, rows_returned=returned)


async def _measure(connection: Connection, dialect: Dialect, example: Example) -> tuple[int | None, int]:
    await connection.script("BEGIN IMMEDIATE" if dialect is SQLITE else "START TRANSACTION")
    try:
        before = await _rows_read(connection, dialect)
        try:
            returned = (await connection.execute(example.statement, example.args)).rowcount
        except DbError:
            returned = 0  # An INSERT that was kept the first time.
        after = await _rows_read(connection, dialect)
    finally:
        await connection.script("ROLLBACK")
    return (None if before is None or after is None else after - before), returned


async def _rows_read(connection: Connection, dialect: Dialect) -> int | None:
    if dialect is SQLITE:
        return None
    return sum(int(count) for _, count in (await connection.script(_READS)).rows)


def _badness(examined: Examined) -> tuple[int, int, int]:
    read = examined.rows_read or 0
    return len(examined.plan.scans), read - examined.rows_returned, read

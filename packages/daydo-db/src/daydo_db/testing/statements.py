"""How many statements a piece of code needs; the test against N+1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from daydo_db import Database
from daydo_db.telemetry import Sent

# What a transaction needs anyway; without a verb is what new connections are set up with.
_CONTROL = frozenset({"BEGIN", "START", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", ""})


class Statements(list[Sent]):
    """The statements in the order in which they ended; printing it shows their texts."""

    def __str__(self) -> str:
        return "\n".join([f"{len(self)} statements:", *(f"  {' '.join(sent.statement.text.split())}" for sent in self)])


# Tasks inherit it from the one that starts them.
_counting: ContextVar[tuple[Statements, ...]] = ContextVar("daydo_db.counting", default=())


@contextmanager
def count_statements(db: Database, *, at_most: int | None = None, any_task: bool = False) -> Iterator[Statements]:
    """Collect what the block sends to ``db``; transaction control (BEGIN, COMMIT, …) is not counted.

        with count_statements(db, at_most=3):
            await client.get("/api/v1/tasks")

    Counted are this task and those it starts, so that a sweeper in the background changes nothing. An application that
    is called over a socket or from another thread does not run in this task: ``any_task`` counts everybody's.

    Raises:
        AssertionError: the block sent more than ``at_most``; the message lists them.
    """
    statements = Statements()
    token = _counting.set((*_counting.get(), statements))

    def tell(sent: Sent) -> None:
        ours = any_task or any(counting is statements for counting in _counting.get())
        if ours and sent.statement.verb not in _CONTROL:
            statements.append(sent)

    try:
        with db.telemetry.listening(tell):
            yield statements
    finally:
        _counting.reset(token)
    if at_most is not None and len(statements) > at_most:
        raise AssertionError(f"at most {at_most} were allowed, but here are {statements}")

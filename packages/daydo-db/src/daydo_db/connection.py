"""What the pool and the transactions need of a connection, whichever engine it speaks to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .tx import Dialect, Result, Statement, Value


class Connection(Protocol):
    """One connection. Every error it raises is a :class:`daydo_db.DbError`.

    Attributes:
        born_s: when it was made, on the event loop's clock.
        usable: False once it is broken, once a statement outside a transaction was given up and may still take
            effect, or once its session is not as it was made; it is then closed instead of being used again.
        in_transaction: whether the *server* has a transaction open.
    """

    born_s: float

    @property
    def usable(self) -> bool: ...
    @property
    def in_transaction(self) -> bool: ...
    async def execute(self, statement: Statement, args: Sequence[Value] = ()) -> Result:
        """Run one statement within ``statement_timeout_s``; when cancelled or timed out, stop it on the server."""
        ...

    async def execute_all(
        self, statements: Sequence[tuple[Statement, Sequence[Value]]], timeout_s: float | None = None
    ) -> list[Result]:
        """Run them in order, together within ``timeout_s`` (None: ``statement_timeout_s``); the first that fails ends
        it and raises."""
        ...

    async def script(self, text: str) -> Result:
        """Run a statement as it stands, without placeholders and without a limit of time."""
        ...

    async def ping(self) -> bool:
        """Whether the other end still answers, within ``connect_timeout_s``; never raises."""
        ...

    async def close(self) -> None:
        """Let go of it; bounded in time and never raises."""
        ...


class Engine(Protocol):
    """How connections to one database are made. On one that is not ``writable`` the database refuses to write.

    ``version`` is the server's, known once the first connection is made; ``begin`` opens a transaction;
    ``begins_late``: that locks nothing and may wait for the first statement; ``refused_inside`` holds the verbs that
    would end or silently commit it.
    """

    dialect: Dialect
    version: str
    begin: Statement
    begins_late: bool
    refused_inside: frozenset[str]

    async def connect(self, *, writable: bool) -> Connection: ...
    async def aclose(self) -> None:
        """Let go of everything, within ``connect_timeout_s``; connections can be made again afterwards."""
        ...

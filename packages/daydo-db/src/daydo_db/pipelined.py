"""Transactions of one packet each, one behind the other on one connection.

Theory
------
Between the end of one transaction and the beginning of the next a server waits for its client: the answer travels, is
read, and what follows is written and travels. A transaction that is all in one packet can be sent before the one ahead
of it is answered; then the server goes from the one to the next. Nothing is lost by that: each begins with ROLLBACK AND
CHAIN, which undoes what failed ahead of it, where START TRANSACTION would commit it.

It does not pay where COMMIT takes long. A server syncs the COMMITs of several connections together, and those of one
connection one by one.
"""

from __future__ import annotations

import asyncio

from .connection import Connection
from .pool import Pool
from .telemetry import Telemetry

# Measured with batches of 32: at a millisecond or a little more two connections are as good as one.
_QUICK_S = 0.000_75


class Pipelined:
    """Lends one connection of ``pool`` to all who come; made by :meth:`daydo_db.Database.pipelined`.

    ``possible`` is False where each must have a connection to itself: on SQLite, and with ``pipelining`` off.
    """

    def __init__(self, pool: Pool, telemetry: Telemetry, *, possible: bool) -> None:
        self._pool = pool
        self._telemetry = telemetry
        self.possible = possible
        self._entry = asyncio.Lock()
        self._lent: Connection | None = None
        self._users: dict[Connection, int] = {}

    @property
    def pays(self) -> bool:
        """Whether transactions are done sooner here than at once on connections of their own, as COMMIT goes now."""
        return self.possible and self._telemetry.commit_s < _QUICK_S

    async def acquire(self) -> Connection:
        """As :meth:`Pool.acquire`, and in the order of coming."""
        async with self._entry:
            # Whoever waits for a connection must not wait for ever because this one is never given back.
            if self._lent is None or not self._pool.is_fit(self._lent) or self._pool.waiting:
                self._lent = await self._pool.acquire()
                self._users[self._lent] = 0
            self._users[self._lent] += 1
            return self._lent

    def release(self, connection: Connection) -> None:
        """As :meth:`Pool.release`, by the last who has it."""
        self._users[connection] -= 1
        if self._users[connection]:
            return
        del self._users[connection]
        if connection is self._lent:
            self._lent = None
        self._pool.release(connection)

"""One lease per process: the row that says "this worker lives", renewed every third of ``lease_s``.

Steps carry their worker's id and no time of their own, so a heartbeat writes one row however many steps run.
Others take a step back only after its worker's row has expired or gone (:mod:`daydo_pipeline.janitor`). A
worker that finds its row gone was taken for dead: it drops what it was doing and goes on under a new id.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from daydo_db import Database, Tx
from daydo_kernel import new_id

from .store import Store


class Lease:
    """This process's row in ``daydo_pipeline_worker``."""

    def __init__(self, db: Database, store: Store, lease_s: float, flow_keys: Sequence[str]) -> None:
        self._db = db
        self._store = store
        self._lease_s = lease_s
        self._flows = msgspec.json.encode(list(flow_keys)).decode()
        self._valid_until = 0.0
        self.worker_id = new_id("worker")

    @property
    def valid(self) -> bool:
        """Whether nobody can have taken us for dead yet, by the monotonic clock of this host."""
        return time.monotonic() < self._valid_until

    async def take(self) -> None:
        """Register under a new id."""
        self.worker_id = new_id("worker")
        asked = time.monotonic()
        await self._db.run(self._insert)
        self._valid_until = asked + self._lease_s

    async def renew(self) -> bool:
        """Extend; False: the row is gone, we were taken for dead.

        Late is not lost: while the row is there and locked by us, nobody has declared us dead for good.
        """
        asked = time.monotonic()
        if not await self._db.run(self._extend):
            self._valid_until = 0.0
            return False
        # Counted from before the call: the database may have read its clock right then.
        self._valid_until = asked + self._lease_s
        return True

    async def leave(self) -> None:
        """Remove the row, unless steps still carry its id: then it expires and they are recovered."""
        self._valid_until = 0.0
        await self._db.run(lambda tx: remove_worker(tx, self.worker_id))

    async def holds(self, tx: Tx) -> bool:
        """Whether the row is there and unexpired; locks it, so that nobody declares us dead meanwhile."""
        found = await tx.execute(
            f"SELECT expires_at_us FROM daydo_pipeline_worker WHERE id = ? {tx.dialect.for_update}",  # noqa: S608
            (self.worker_id,),
        )
        return bool(found.rows) and int(found.rows[0][0]) > await self._store.now_us(tx)

    async def _insert(self, tx: Tx) -> None:
        now_us = await self._store.now_us(tx)
        await tx.execute(
            "INSERT INTO daydo_pipeline_worker (id, flows, started_at_us, expires_at_us) VALUES (?, ?, ?, ?)",
            (self.worker_id, self._flows, now_us, self._expiry_us(now_us)),
        )

    async def _extend(self, tx: Tx) -> bool:
        found = await tx.execute(
            f"SELECT expires_at_us FROM daydo_pipeline_worker WHERE id = ? {tx.dialect.for_update}",  # noqa: S608
            (self.worker_id,),
        )
        if not found.rows:
            return False
        await tx.execute(
            "UPDATE daydo_pipeline_worker SET expires_at_us = ? WHERE id = ?",
            (self._expiry_us(await self._store.now_us(tx)), self.worker_id),
        )
        return True

    def _expiry_us(self, now_us: int) -> int:
        return now_us + round(self._lease_s * 1_000_000)


async def remove_worker(tx: Tx, worker_id: str) -> None:
    """Delete a worker's row if no step carries its id."""
    left = await tx.execute("SELECT 1 FROM daydo_pipeline_step WHERE worker_id = ? LIMIT 1", (worker_id,))
    if not left.rows:
        await tx.execute("DELETE FROM daydo_pipeline_worker WHERE id = ?", (worker_id,))

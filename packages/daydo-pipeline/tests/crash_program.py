"""A worker process that the crash tests kill: ``python crash_program.py URL POINT``.

POINT is where it kills itself; ``""`` means it works until it is killed from outside. Its quota and provider
write to tables, so what they did outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import Any

from daydo_db import Database, Tx, UniqueViolation
from daydo_pipeline import Cost, Flow, Owner, ProviderCall, Runs, RunsConfig, StepCall

OWNER = Owner("acme", "u_7")
CONFIG = RunsConfig(lease_s=0.5, poll_s=0.05, drain_s=1.0, max_parallel=4)
POINTS = ("reserve", "started", "called", "charged", "between", "confirm", "confirmed", "committed")
TABLES = (
    "CREATE TABLE test_ledger (id VARCHAR(64) NOT NULL PRIMARY KEY, op VARCHAR(16) NOT NULL, run_id VARCHAR(64))",
    "CREATE TABLE test_charge (op_key VARCHAR(160) NOT NULL PRIMARY KEY, pid BIGINT NOT NULL)",
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class TableQuota:
    """Writes each operation into the transaction it is given; says nothing against doing one twice."""

    def __init__(self, point: str = "") -> None:
        self.point = point
        self.count = 0

    async def _write(self, tx: Tx, op: str, key: str) -> None:
        self.count += 1
        entry = f"{os.getpid()}-{id(self)}-{self.count}"
        await tx.execute("INSERT INTO test_ledger (id, op, run_id) VALUES (?, ?, ?)", (entry, op, key))

    async def reserve(self, account: Any, amount: int, *, key: str, tx: Tx, **more: Any) -> None:
        await self._write(tx, "reserve", key)
        if self.point == "reserve":
            die()

    async def confirm(self, account: Any, amount: int | None = None, *, key: str, tx: Tx, **more: Any) -> None:
        if self.point == "confirm":
            die()
        await self._write(tx, "confirm", key)
        if self.point == "confirmed":
            die()
        if self.point == "committed":
            tx.after_commit(die)

    async def cancel(self, account: Any, *, key: str, tx: Tx, **more: Any) -> None:
        await self._write(tx, "cancel", key)


class TableProvider:
    """A vendor that charges once per key, durably, and then takes ``takes_s``."""

    def __init__(self, db: Database, point: str = "", takes_s: float = 0.0) -> None:
        self.db = db
        self.point = point
        self.takes_s = takes_s

    async def run(self, call: ProviderCall) -> dict[str, Any]:
        if self.point == "called":
            die()
        with contextlib.suppress(UniqueViolation):
            await self.db.execute("INSERT INTO test_charge (op_key, pid) VALUES (?, ?)", (call.key, os.getpid()))
        if self.point == "charged":
            die()
        await asyncio.sleep(self.takes_s)
        return {"image": f"by {os.getpid()}"}


def flows(point: str = "") -> list[Flow]:
    async def compose(call: StepCall, mask: dict[str, str]) -> dict[str, str]:
        if point == "between":
            die()
        return mask

    flow = Flow("cutout", quota=Cost("credits", 5))
    flow.step("compose", compose, mask=flow.step("mask", provider="matting", photo=flow.input("photo")))
    return [flow]


def make_runs(db: Database, config: RunsConfig = CONFIG, point: str = "", takes_s: float = 0.0) -> Runs:
    providers = {"matting": TableProvider(db, point, takes_s)}
    return Runs(db, config, flows=flows(point), providers=providers, quota=TableQuota(point))


async def main(url: str, point: str, takes_s: float) -> None:
    async with Database(url) as db, make_runs(db, CONFIG, point, takes_s) as runs:
        if point:
            if point == "started":
                runs._worker.stop_claiming()
            await runs.start("cutout", {"photo": "p"}, owner=OWNER, key="k_1")
            if point == "started":
                die()
        await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))

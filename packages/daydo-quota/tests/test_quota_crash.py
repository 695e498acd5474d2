"""A process that dies between reserve and confirm: its hold stays until its time, and returns once."""

import asyncio
import signal
import sys

from daydo_db import Database
from daydo_kernel.testing import ManualClock
from daydo_quota import Account, Balance, Ledger
from daydo_quota.testing import check_books

CREDITS = Account("acme", "u_7", "credits")

CLIENT = """
import asyncio, sys
from daydo_db import Database
from daydo_kernel.testing import ManualClock
from daydo_quota import Account, Ledger

async def main(url):
    async with Database(url) as db, Ledger(db, clock=ManualClock()) as ledger:
        async with ledger.hold(Account("acme", "u_7", "credits"), 4, key="task", ttl_s=30):
            print("held", flush=True)
            await asyncio.Event().wait()

asyncio.run(main(sys.argv[1]))
"""


async def test_a_killed_client_loses_its_hold_exactly_on_time(db: Database, database_url: str) -> None:
    """kill −9 between reserve and confirm: held until the last microsecond, then returned once, whoever looks."""
    clock = ManualClock()
    async with Ledger(db, clock=clock) as ledger:
        await ledger.grant(CREDITS, 10, key="order")
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, database_url, stdout=asyncio.subprocess.PIPE
        )
        assert client.stdout is not None
        assert await client.stdout.readline() == b"held\n"
        client.send_signal(signal.SIGKILL)
        await client.wait()
        clock.advance(29.999999)
        assert await ledger.balance(CREDITS) == Balance(available=6, reserved=4)
        clock.advance(0.000001)
        async with Ledger(db, clock=clock) as other:
            everybody = [ledger.sweep(), other.sweep(), ledger.balance(CREDITS), other.balance(CREDITS)]
            await asyncio.gather(*everybody)
        assert await ledger.balance(CREDITS) == Balance(available=10)
        kinds = [entry.kind for entry in (await ledger.history("acme", "u_7")).items]
        assert kinds == ["hold_expired", "held", "granted"]
    await check_books(db)

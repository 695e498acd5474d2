"""Jobs that crash tests repeat: what each leaves is known from its number, whoever did it, however often.

Also a program, a client that is killed while it works: ``python quota_jobs.py URL SEED JOBS`` does jobs 0 … JOBS - 1 in
an order of its own and says the number of each when it is done.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from daydo_db import Database, DbError
from daydo_quota import Account, AccountBusy, Balance, Ledger
from daydo_quota.testing import check_books

SUBJECTS = ("u_1", "u_2", "u_3")
CREDITS = [Account("acme", subject, "credits") for subject in SUBJECTS]
CAPS = [Account("acme", subject, "daily") for subject in SUBJECTS]
OPENING = 1_000_000
TASKS = 16


async def until_definite(call: Callable[[], Awaitable[Any]]) -> Any:
    """What a careful caller does: the same key again until there is an answer."""
    while True:
        try:
            return await call()
        except (DbError, AccountBusy):
            await asyncio.sleep(0.01)


async def open_accounts(ledger: Ledger) -> None:
    for account in (*CREDITS, *CAPS):
        await ledger.grant(account, OPENING, key=f"opening_{account.subject}_{account.unit}")


async def do_job(ledger: Ledger, number: int) -> None:
    """One of five sagas, by ``number``; every call of it again where its answer was lost."""
    key, amount = f"job_{number}", 2 + number % 7
    account, cap = CREDITS[number % 3], CAPS[number % 3]
    match number % 5:
        case 0:
            await until_definite(partial(ledger.reserve, account, amount, key=key))
            await until_definite(partial(ledger.confirm, account, amount - 1, key=key))
        case 1:
            await until_definite(partial(ledger.reserve, account, amount, key=key))
            await until_definite(partial(ledger.cancel, account, key=key))
        case 2:
            await until_definite(partial(ledger.reserve, account, amount, key=key))
            await until_definite(partial(ledger.capture, account, 1, key=f"{key}_part", hold_key=key))
            await until_definite(partial(ledger.confirm, account, 0, key=key))
        case 3:
            await until_definite(partial(ledger.reserve, account, amount, key=key))
            await until_definite(partial(ledger.confirm, account, amount + 1, key=key, overage="available"))
            await until_definite(partial(ledger.refund, account, 2, key=f"{key}_back", hold_key=key))
        case 4:
            await until_definite(partial(ledger.reserve_all, [(account, amount), (cap, 1)], key=key))
            await until_definite(partial(ledger.confirm, cap, key=key))
            await until_definite(partial(ledger.confirm, account, key=key))


def charges(number: int) -> Counter[tuple[str, str]]:
    """What :func:`do_job` charges, by subject and unit."""
    subject, amount = SUBJECTS[number % 3], 2 + number % 7
    units = {0: amount - 1, 1: 0, 2: 1, 3: amount - 1, 4: amount}[number % 5]
    return Counter({(subject, "credits"): units, (subject, "daily"): int(number % 5 == 4)})


async def do_jobs(ledger: Ledger, numbers: Iterable[int], done: Callable[[int], None] = lambda number: None) -> None:
    to_do = iter(numbers)

    async def work() -> None:
        for number in to_do:
            await do_job(ledger, number)
            done(number)

    await asyncio.gather(*(work() for _ in range(TASKS)))


async def check_jobs(db: Database, ledger: Ledger, jobs: int) -> None:
    """Each of the jobs has happened, once; the books agree."""
    spent: Counter[tuple[str, str]] = Counter()
    for number in range(jobs):
        spent += charges(number)
    for account in (*CREDITS, *CAPS):
        charged = spent[account.subject, account.unit]
        assert await ledger.balance(account) == Balance(available=OPENING - charged, spent=charged), account
    kinds = await db.query("SELECT kind, COUNT(*) FROM daydo_quota_entry GROUP BY kind")
    by_kind = Counter(number % 5 for number in range(jobs))
    assert dict(kinds.rows) == {
        "granted": len(CREDITS) + len(CAPS),
        "held": jobs + by_kind[4],
        "confirmed": jobs - by_kind[1] + by_kind[4],
        "cancelled": by_kind[1],
        "captured": by_kind[2],
        "refunded": by_kind[3],
    }
    await check_books(db)


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


async def main(url: str, seed: int, jobs: int) -> None:
    order = list(range(jobs))
    random.Random(seed).shuffle(order)
    async with Database(url) as db, Ledger(db) as ledger:
        await do_jobs(ledger, order, _say)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

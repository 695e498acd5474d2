"""Servers die under the libraries: what was said to be done is done, once, and nothing stays taken."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from victims import Victim

from daydo_db import Database, DatabaseConfig, DbError, migrate
from daydo_db.testing import Backend, fresh_database
from daydo_quota import Account, Ledger
from daydo_redis import Redis, RedisConfig, RedisError

TASKS = 32
ACCOUNTS = 4
KILLS = 3
HEALTHY_WITHIN_S = 5.0


async def until_definite(call: Callable[[], Awaitable[Any]]) -> Any:
    """What a careful caller does: the same key again until there is an answer."""
    while True:
        try:
            return await call()
        except DbError:
            await asyncio.sleep(0.02)


async def healthy_again_s(part: Database | Redis) -> float:
    """Seconds until ``part`` says that it is well."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while (await part.health()).status != "ok":  # noqa: ASYNC110 - a server's state, not an event of ours
        await asyncio.sleep(0.02)
    return loop.time() - began


def gauge(part: Database | Redis, name: str) -> float:
    return sum(
        cell.values[0] for family in part.metrics.snapshot() if family.name.endswith(name) for cell in family.cells
    )


async def test_the_ledger_keeps_its_books_while_its_server_is_killed(mariadb: Victim, tmp_path) -> None:
    """32 customers hold, confirm and cancel through three kills; afterwards every unit is where it was said to be."""
    dice = random.Random(7)
    with fresh_database(Backend("mariadb", "mysql", "", mariadb.url), tmp_path) as url:
        config = DatabaseConfig(pool_max=16, connect_timeout_s=2.0, statement_timeout_s=5.0)
        async with Database(url, config) as db:
            await migrate(db, "daydo_quota")
            async with Ledger(db) as ledger:
                accounts = [Account("acme", f"u_{number}", "credits") for number in range(ACCOUNTS)]
                for account in accounts:
                    await ledger.grant(account, 1_000_000, key=f"opening_{account.subject}")
                spent: Counter[str] = Counter()
                stop = asyncio.Event()
                done = 0

                async def customer(number: int) -> None:
                    nonlocal done
                    account, turn = accounts[number % ACCOUNTS], 0
                    while not stop.is_set():
                        turn += 1
                        key, amount = f"job_{number}_{turn}", dice.randint(1, 9)
                        await until_definite(partial(ledger.reserve, account, amount, key=key))
                        if dice.random() < 0.5:
                            charge = dice.randint(0, amount)
                            await until_definite(partial(ledger.confirm, account, charge, key=key))
                            spent[account.subject] += charge
                        else:
                            await until_definite(partial(ledger.cancel, account, key=key))
                        done += 1

                customers = [asyncio.create_task(customer(number)) for number in range(TASKS)]
                recovered = []
                for _ in range(KILLS):
                    await asyncio.sleep(1.5)
                    await asyncio.to_thread(mariadb.kill)
                    recovered.append(await healthy_again_s(db))
                await asyncio.sleep(1.0)
                stop.set()
                await asyncio.gather(*customers)
                print(f"{done} jobs; healthy {', '.join(f'{seconds:.2f}' for seconds in recovered)} s after the server")

                assert max(recovered) < HEALTHY_WITHIN_S
                for account in accounts:
                    balance = await ledger.balance(account)
                    assert (balance.reserved, balance.spent) == (0, spent[account.subject])
                    assert balance.available == 1_000_000 - balance.spent
            assert (gauge(db, "pool_in_use"), gauge(db, "pool_waiting")) == (0, 0)


async def test_redis_answers_right_or_not_at_all_while_it_is_killed_and_frozen(redis: Victim) -> None:
    """A value read is one that was written or, after the restart of an empty server, none; callers never wait long."""
    async with Redis(redis.url, RedisConfig(pool_size=16)) as client:
        stop = asyncio.Event()
        wrong: list[object] = []
        slow_s = answers = refusals = 0.0
        loop = asyncio.get_running_loop()

        async def caller(number: int) -> None:
            nonlocal slow_s, answers, refusals
            written, turn = {b""}, 0
            add = client.script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
            while not stop.is_set():
                turn += 1
                began = loop.time()
                try:
                    value = f"{number}:{turn}".encode()
                    written.add(value)
                    await client.set(f"k{number}", value)
                    read = await client.get(f"k{number}")
                    if read is not None and read not in written:
                        wrong.append(read)
                    await add(keys=[f"n{number}"], args=[1])
                    answers += 1
                except RedisError:
                    refusals += 1
                    await asyncio.sleep(0.01)
                slow_s = max(slow_s, loop.time() - began)
                await asyncio.sleep(0)

        callers = [asyncio.create_task(caller(number)) for number in range(TASKS)]
        recovered = []
        for hurt in (redis.kill, lambda: redis.freeze(1.5), redis.kill):
            await asyncio.sleep(1.0)
            await asyncio.to_thread(hurt)
            recovered.append(await healthy_again_s(client))
        before = answers
        await asyncio.sleep(0.5)
        stop.set()
        await asyncio.gather(*callers)
        print(f"{answers:.0f} answers, {refusals:.0f} refusals, slowest {slow_s:.2f} s; healthy after {recovered}")

        assert wrong == []
        assert answers > before, "it works again"
        assert refusals > 0, "nothing was tested"
        assert max(recovered) < HEALTHY_WITHIN_S
        await asyncio.gather(*(client.get("k0") for _ in range(4 * TASKS)))  # no slot was lost

"""A program, one worker of several: ``python auth_worker.py DATABASE_URL REDIS_URL STORE``; it does what it reads.

``refresh TOKEN`` fifty times at once, ``verify TOKEN``, ``end SESSION``: one line in, one line out.
"""

from __future__ import annotations

import asyncio
import sys

from daydo_auth import Auth, AuthConfig, AuthError
from daydo_db import Database
from daydo_redis import Redis, RedisConfig

KEY = "test-key-0123456789-abcdefghijklmnop"
PEPPER = "test-pepper-0123456789-abcdefghijkl"


async def answer(auth: Auth, verb: str, what: str) -> str:
    match verb:
        case "refresh":
            pairs = await asyncio.gather(*(auth.refresh(what) for _ in range(50)))
            return " ".join({pair.refresh for pair in pairs})
        case "verify":
            return auth.verify(f"Bearer {what}").subject
        case _:
            await auth.sessions.end("u_1", what)
            return "ended"


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def work(database_url: str, redis_url: str, store: str) -> None:
    config = AuthConfig(keys={"k1": KEY}, pepper=PEPPER, session_store="sql" if store == "sql" else "redis")
    patient = RedisConfig(command_timeout_s=5)
    async with Database(database_url) as db, Redis(redis_url, patient) as redis, Auth(db, redis, config) as auth:
        say("ready")
        while line := await asyncio.to_thread(sys.stdin.readline):
            try:
                said = await answer(auth, *line.split())
            except AuthError as error:
                said = type(error).__name__
            say(said)


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))

"""daydo-auth beside PyJWT, beside the one Redis call that a refresh needs at least, and beside bcrypt itself.

``verify_vs_pyjwt``: our speed in reading an access token and naming its bearer ÷ PyJWT's in checking the same token.
``refresh_vs_evalsha``: refreshes/s ÷ calls/s of the very script that a refresh runs, its keys and arguments at hand and
its answer unread: 64 tasks on one private Redis, both through daydo-redis. ``refresh_vs_hincrby``: beside a script that
counts one field up and does nothing else. ``login_vs_bcrypt``: logins/s ÷ what as many threads as there are cores check
of bcrypt (rounds 10) without anything around it.

``verify_us``, ``permission_us``: one access token, one ``principal.may``. ``refresh_us``, ``login_ms``: one of these,
on the wall. ``lag_p99_ms``: how late the event loop is while logins keep every hashing thread busy.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import cast

import bcrypt
import jwt

from benchmarks.measure import Operation, Report, compare
from daydo_auth import Auth, AuthConfig, Password, RoleSpec
from daydo_auth.redis_sessions import RedisSessions
from daydo_db import Database, migrate
from daydo_redis import Redis
from daydo_redis.embedded import PrivateRedis

TASKS = 64
START_S = 10.0
ROUNDS = 10
PROBE_S = 0.005
CORES = os.cpu_count() or 1
SUBJECT = "u_01KA8N4Z6XJ2V9QK7T3M5B1C0D"
HINCRBY = "return redis.call('HINCRBY', KEYS[1], 'counter', 1)"


async def run() -> Report:
    """Every comparison, on a server and a file that are gone afterwards; about a minute."""
    report = Report()
    server = PrivateRedis()
    try:
        await asyncio.to_thread(server.wait_ready, START_S)
        with tempfile.TemporaryDirectory(prefix="daydo-bench-") as folder:
            async with Redis(server.url) as redis, Database(f"sqlite:///{Path(folder) / 'auth.db'}") as db:
                await migrate(db, "daydo_auth")
                async with Auth(db, redis, _config()) as auth:
                    await _verify(report, auth)
                    await _refresh(report, auth, redis)
                    await _login(report, auth)
    finally:
        await asyncio.to_thread(server.stop)
    return report


def _config() -> AuthConfig:
    return AuthConfig(
        keys={"2026-01": secrets.token_urlsafe(48)},
        pepper=secrets.token_urlsafe(48),
        bcrypt_rounds=ROUNDS,
        hashing_workers=CORES,
        sessions_per_subject_max=100,
        default_permissions=("image:create", "task:read", "task:cancel"),
        roles={"support": RoleSpec(permissions=("user:*",)), "operator": RoleSpec(inherits=("support",))},
    )


async def _verify(report: Report, auth: Auth) -> None:
    await auth.roles.assign(SUBJECT, ["operator"], tenant="acme")
    header = f"Bearer {(await auth.open_session(SUBJECT, tenant='acme')).access}"
    token, secret = header.removeprefix("Bearer "), auth.config.keys["2026-01"]
    principal = auth.verify(header)

    def pyjwt() -> object:
        return jwt.decode(token, secret, algorithms=["HS256"], audience="daydo", issuer="daydo")

    compared = await compare(
        "an access token",
        {
            "daydo": _many(lambda: auth.verify(header), 100),
            "PyJWT": _many(pyjwt, 100),
            "permission": _many(lambda: principal.may("user:disable"), 100),
        },
    )
    compared.show("PyJWT")
    report.ratios["verify_vs_pyjwt"] = compared.ratio("daydo", "PyJWT")
    report.figures["verify_us"] = round(median(compared.wall_s["daydo"]) * 1e4, 2)
    report.figures["permission_us"] = round(median(compared.wall_s["permission"]) * 1e4, 3)


def _many(call: Callable[[], object], times: int) -> Operation:
    """What takes microseconds, so often that awaiting it does not count."""

    async def operation() -> None:
        for _ in range(times):
            call()

    return operation


async def _refresh(report: Report, auth: Auth, redis: Redis) -> None:
    at_rest, store = asyncio.LifoQueue[str](), cast("RedisSessions", auth._session_store)
    for _ in range(TASKS):
        at_rest.put_nowait((await auth.open_session(SUBJECT, tenant="acme")).refresh)

    async def refresh() -> None:
        at_rest.put_nowait((await auth.refresh(at_rest.get_nowait())).refresh)

    prepared = asyncio.LifoQueue[tuple[list[str], list[str | int]]]()
    for _ in range(TASKS):
        token = auth._refresh.read((await auth.refresh((await auth.open_session(SUBJECT)).refresh)).refresh)
        assert token is not None
        prepared.put_nowait(([store._key(token.session_id)], [token.secret_hash.hex(), token.counter, 0]))

    async def evalsha() -> None:
        keys, args = prepared.get_nowait()
        await store._count(keys=keys, args=args)
        prepared.put_nowait((keys, [args[0], int(args[1]) + 1, 0]))

    hincrby = redis.script(HINCRBY)
    rivals = {"refresh": refresh, "EVALSHA": evalsha, "HINCRBY": lambda: hincrby(keys=["bench"])}
    compared = await compare(f"a refresh, {TASKS} tasks", rivals, tasks=TASKS)
    compared.show("EVALSHA")
    report.ratios["refresh_vs_evalsha"] = compared.ratio("refresh", "EVALSHA")
    report.ratios["refresh_vs_hincrby"] = compared.ratio("refresh", "HINCRBY")
    report.figures["refresh_us"] = round(median(compared.wall_s["refresh"]) * 1e6, 1)


async def _login(report: Report, auth: Auth) -> None:
    password = Password("zhang@example.cn", "Correct-Horse-7")
    await auth.register(password, subject="u_2")
    hashed = bcrypt.hashpw(b"Correct-Horse-7", bcrypt.gensalt(ROUNDS))
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(CORES) as threads:
        async with _lag() as lag:

            async def login() -> None:
                lag.watched += 1
                try:
                    await auth.login(password)
                finally:
                    lag.watched -= 1

            async def check() -> None:
                await loop.run_in_executor(threads, bcrypt.checkpw, b"Correct-Horse-7", hashed)

            rivals = {"login": login, "bcrypt": check}
            compared = await compare("a login", rivals, tasks=2 * CORES, rounds=7, round_s=1.5)
    compared.show("bcrypt")
    report.ratios["login_vs_bcrypt"] = compared.ratio("login", "bcrypt")
    report.figures["login_ms"] = round(median(compared.wall_s["login"]) * 1e3, 1)
    report.figures["lag_p99_ms"] = lag.p99_ms


class _Lag:
    """How late a task is that wants to run every ``PROBE_S``, while something is ``watched``."""

    def __init__(self) -> None:
        self.watched = 0
        self._late_s: list[float] = []

    async def probe(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(PROBE_S)
            if self.watched:
                self._late_s.append(time.perf_counter() - began - PROBE_S)

    @property
    def p99_ms(self) -> float:
        return round(quantiles(self._late_s, n=100)[98] * 1e3, 2)


@asynccontextmanager
async def _lag() -> AsyncIterator[_Lag]:
    lag = _Lag()
    task = asyncio.create_task(lag.probe())
    try:
        yield lag
    finally:
        task.cancel()

"""The reference service under load while its database and its Redis die, freeze and come back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from victims import Victim

from daydo_db.testing import Backend, fresh_database
from reference_app.main import migrate_schema
from reference_app.server import ServiceProcess
from reference_app.settings import load_settings
from reference_app.testing import GENEROUS, PASSWORD, photo

USERS = 6
PRICE, WELCOME = 5, 1000
HEALTHY_WITHIN_S = 5.0
# What a client may be told while a server is away: come back later. Anything else is a wrong answer.
COME_BACK = {503, 504}


class User:
    """Somebody who uses the service on and on, repeats what was refused, and checks every answer."""

    def __init__(self, http: httpx.AsyncClient, number: int, seen: Counter[str]) -> None:
        self._http = http
        self._number = number
        self._seen = seen
        self.started: set[str] = set()
        self.wrong: list[str] = []

    async def register(self) -> None:
        body = {"email": f"chaos{self._number}@example.com", "password": PASSWORD}
        session = await self.call("POST", "/auth/register", json=body)
        self.id, self._refresh = session["user"]["id"], session["refresh_token"]
        self._headers = {"Authorization": f"Bearer {session['access_token']}"}
        files = {"file": ("photo.jpg", photo(size=(60, 80)))}
        self._photo = (await self.call("POST", "/uploads", files=files))["upload_id"]

    async def live(self, stop: asyncio.Event) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            me = await self.call("GET", "/users/me")
            self.expect(me["id"] == self.id, f"somebody else's profile: {me}")
            tokens = await self.call("POST", "/auth/refresh", json={"refresh_token": self._refresh})
            self._refresh = tokens["refresh_token"]
            self._headers = {"Authorization": f"Bearer {tokens['access_token']}"}
            await self.call("POST", "/live-tickets")
            if turn % 3 == 0:
                body = {"feature": "cutout", "inputs": {"photo": self._photo}}
                task = await self.call("POST", "/tasks", json=body, key=f"job{turn}")
                self.expect(task["id"] not in self.started, f"two keys, one task: {task}")
                self.started.add(task["id"])
            account = await self.credits()
            total = account["available"] + account["reserved"] + account["spent"]
            self.expect(total == WELCOME, f"credits do not add up: {account}")

    async def credits(self) -> dict[str, Any]:
        accounts = (await self.call("GET", "/quota/accounts"))["items"]
        return next(account for account in accounts if account["unit"] == "credits")

    async def finished(self) -> Counter[str]:
        """How the tasks ended, once all have."""
        while True:
            tasks = [await self.call("GET", f"/tasks/{task}") for task in self.started]
            states = Counter(task["status"] for task in tasks)
            if not states.keys() & {"queued", "running"}:
                return states
            await asyncio.sleep(0.1)

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)

    async def call(self, method: str, path: str, key: str = "", **request: Any) -> Any:
        """The data of a successful answer, asked for until there is one."""
        headers = getattr(self, "_headers", {}) | ({"Idempotency-Key": key} if key else {})
        while True:
            answer = await self._http.request(method, path, headers=headers, **request)
            self._seen[str(answer.status_code)] += 1
            if answer.is_success:
                return answer.json()["data"]
            if path == "/auth/register" and answer.status_code == 409:
                return await self.call("POST", "/auth/login", **request)  # the answer to the first try was lost
            self.expect(answer.status_code in COME_BACK, f"{method} {path}: {answer.status_code} {answer.text}")
            if answer.status_code not in COME_BACK:
                raise AssertionError(self.wrong[-1])
            await asyncio.sleep(0.1)


async def ready_again_s(http: httpx.AsyncClient, workers: int) -> float:
    """Seconds until the service says that it is ready, several times over since several workers answer."""
    began, in_a_row = time.monotonic(), 0
    while in_a_row < 5 * workers:
        answer = await http.get("/health/ready", headers={"Connection": "close"})
        in_a_row = in_a_row + 1 if answer.status_code == 200 else 0
        if not in_a_row:
            await asyncio.sleep(0.05)
    return time.monotonic() - began


async def gauge(http: httpx.AsyncClient, name: str) -> float:
    lines = (await http.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


async def test_no_wrong_answer_and_healthy_within_seconds(mariadb: Victim, redis: Victim, tmp_path: Path) -> None:
    """Users refresh, run tasks and read their ledger through kills and freezes; every credit is accounted for."""
    with fresh_database(Backend("mariadb", "mysql", "", mariadb.url), tmp_path) as url:
        environment = {
            **GENEROUS,
            "DAYDO_DATABASE_URL": url,
            "DAYDO_REDIS_URL": redis.url,
            "DAYDO_WORKERS": "2",
            "DAYDO_WELCOME_CREDITS": str(WELCOME),
            "DAYDO_AUTH__BCRYPT_ROUNDS": "4",
            "DAYDO_PIPELINE__LEASE_S": "3",
        }
        await migrate_schema(load_settings({**environment, "DAYDO_DATA_DIR": str(tmp_path)}, dotenv=tmp_path / ".env"))
        with ServiceProcess(tmp_path, environment) as service:
            await _hurt_and_check(service.url, mariadb, redis)
        assert "Traceback" not in service.log.read_text(), "an error that nobody foresaw"


async def _hurt_and_check(url: str, mariadb: Victim, redis: Victim) -> None:
    seen: Counter[str] = Counter()
    stop = asyncio.Event()
    async with httpx.AsyncClient(base_url=url, timeout=30.0) as probe:
        async with httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=30.0) as http:
            users = [User(http, number, seen) for number in range(USERS)]
            await asyncio.gather(*(user.register() for user in users))
            lives = [asyncio.create_task(user.live(stop)) for user in users]
            recovered = {}
            hurts: dict[str, Callable[[], None]] = {
                "MariaDB killed": mariadb.kill,
                "Redis killed": redis.kill,
                "Redis frozen": lambda: redis.freeze(2.0),
                "MariaDB frozen": lambda: mariadb.freeze(2.0),
                "MariaDB killed again": mariadb.kill,
            }
            for name, hurt in hurts.items():
                await asyncio.sleep(2.0)
                await asyncio.to_thread(hurt)
                recovered[name] = await ready_again_s(probe, workers=2)
            await asyncio.sleep(2.0)
            stop.set()
            await asyncio.gather(*lives)
            ended = [await user.finished() for user in users]
            for user, states in zip(users, ended, strict=True):
                assert user.wrong == []
                account = await user.credits()
                assert account["reserved"] == 0, account
                assert account["spent"] == PRICE * states["succeeded"], (account, states)
        print(f"answers {dict(seen)}; tasks {sum(ended, Counter())}; ready again after {recovered}")
        assert max(recovered.values()) < HEALTHY_WITHIN_S
        assert sum(states["succeeded"] for states in ended) > 0
        await asyncio.sleep(2.5)  # the workers' figures travel once a second
        assert await gauge(probe, "daydo_db_pool_waiting") == 0
        # A worker that looks for runs may hold one at the moment of the snapshot; a leak would hold many.
        assert await gauge(probe, "daydo_db_pool_in_use") <= 2

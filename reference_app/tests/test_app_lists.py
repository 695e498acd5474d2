"""Every list of the API: a fixed number of statements however long it is, and cursors that are their owner's alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from daydo_db import Database
from daydo_db.testing import count_statements
from daydo_pipeline import Owner, Runs
from daydo_quota import Account, Ledger
from reference_app import main
from reference_app.images import wiring
from reference_app.settings import load_settings
from reference_app.testing import PASSWORD

# Composing in this process shows how Litestar's next major version wants the routes spelt; that is not this test's.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STATEMENTS = {"/tasks": 1, "/features": 0, "/quota/accounts": 3, "/quota/history": 2}
PAGED = ("/tasks", "/quota/history")


class Service(NamedTuple):
    http: httpx.AsyncClient
    db: Database
    ledger: Ledger
    runs: Runs


@pytest.fixture
async def service(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """The whole application in this process and task, so that its statements can be counted; tasks are left lying."""
    made: dict[str, Any] = {}

    def remembering(name: str, noun: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: made.setdefault(name, noun(*args, **options))

    environment = {
        "DAYDO_DATABASE_URL": database_url,
        "DAYDO_DATA_DIR": str(tmp_path),
        "DAYDO_AUTH__BCRYPT_ROUNDS": "4",
        "DAYDO_QUOTA__SWEEP_INTERVAL_S": "0",
        "DAYDO_WELCOME_CREDITS": "1000",
    }
    settings = load_settings(environment, dotenv=tmp_path / ".env")
    await main.migrate_schema(settings)
    for place, name in ((main, "Database"), (main, "Ledger"), (wiring, "Runs")):
        monkeypatch.setattr(place, name, remembering(name, getattr(place, name)))
    app = main.compose(settings).app
    transport = httpx.ASGITransport(app)
    async with alive(app), httpx.AsyncClient(transport=transport, base_url="http://test/api/v1") as http:
        made["Runs"].begin_drain()
        yield Service(http, made["Database"], made["Ledger"], made["Runs"])


@asynccontextmanager
async def alive(app: Any) -> AsyncIterator[None]:
    """What a server says to an application at its beginning and end."""
    said: asyncio.Queue[str] = asyncio.Queue()
    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def receive() -> dict[str, str]:
        return {"type": f"lifespan.{await said.get()}"}

    task = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, heard.put))
    try:
        for word in ("startup", "shutdown"):
            said.put_nowait(word)
            answer = await heard.get()
            assert answer["type"] == f"lifespan.{word}.complete", answer
            if word == "startup":
                yield
    finally:
        await task


async def register(service: Service, name: str) -> tuple[Owner, dict[str, str]]:
    """A new user, and the header that says so."""
    body = {"email": f"{name}@example.com", "password": PASSWORD}
    session = (await service.http.post("/auth/register", json=body)).json()["data"]
    [(tenant,)] = (
        await service.db.query("SELECT tenant FROM daydo_quota_account WHERE subject = ?", [session["user"]["id"]])
    ).rows
    return Owner(tenant, session["user"]["id"]), {"Authorization": f"Bearer {session['access_token']}"}


async def fill(service: Service, owner: Owner, tasks: range, units: range) -> None:
    """Tasks that wait, each with its hold, and accounts that something is due for."""
    for number in tasks:
        await service.runs.start("cutout", {"photo": "none"}, owner=owner, key=f"task_{number}")
    for number in units:
        account = Account(owner.tenant, owner.subject, f"unit_{number}")
        await service.ledger.grant(account, 1, key=f"{owner.subject}_{number}")
    await service.db.execute("UPDATE daydo_quota_account SET next_due_at_us = 1 WHERE subject = ?", [owner.subject])


async def lists(service: Service, headers: dict[str, str], **query: Any) -> dict[str, Any]:
    """Every list, read within its number of statements."""
    pages = {}
    for path, at_most in STATEMENTS.items():
        with count_statements(service.db, at_most=at_most) as statements:
            answer = await service.http.get(path, headers=headers, params=query if path in PAGED else {})
        assert statements or not at_most, "none were heard of, so nothing was counted"
        assert answer.status_code == 200, answer.text
        pages[path] = answer.json()["data"]
    return pages


async def test_a_list_of_fifty_takes_as_many_statements_as_a_list_of_one(service: Service) -> None:
    """Tasks with their steps, the balances and the history of several units, first pages and later ones."""
    owner, headers = await register(service, "ann")
    await fill(service, owner, range(1), range(0))
    pages = await lists(service, headers, limit=50)
    assert [len(pages[path]["items"]) for path in ("/tasks", "/quota/accounts", "/quota/history")] == [1, 1, 2]
    await fill(service, owner, range(1, 51), range(6))
    pages = await lists(service, headers, limit=50)
    assert [len(pages[path]["items"]) for path in ("/tasks", "/quota/accounts", "/quota/history")] == [50, 7, 50]
    for path in PAGED:
        with count_statements(service.db, at_most=STATEMENTS[path]):
            query = {"cursor": pages[path]["next_cursor"], "limit": 50}
            answer = await service.http.get(path, headers=headers, params=query)
        rest = answer.json()["data"]
        assert (len(rest["items"]), "next_cursor" in rest) == ({"/tasks": 1, "/quota/history": 8}[path], False)


async def test_a_cursor_is_its_owners_alone_and_its_lists(service: Service) -> None:
    """Everybody else gets the 400 of a cursor that never was, in one form everywhere."""
    owner, ann = await register(service, "ann")
    _, bob = await register(service, "bob")
    await fill(service, owner, range(2), range(0))
    pages = await lists(service, ann, limit=1)
    cursors = {path: pages[path]["next_cursor"] for path in PAGED}
    tries = [(path, bob, cursors[path]) for path in PAGED]
    tries += [("/tasks", ann, cursors["/quota/history"]), ("/quota/history", ann, cursors["/tasks"])]
    tries += [(path, ann, cursors[path][:-1]) for path in PAGED]
    for path, headers, cursor in tries:
        answer = await service.http.get(path, headers=headers, params={"cursor": cursor})
        assert (answer.status_code, answer.json()["error"]) == (400, "db.cursor_invalid")
        assert answer.json()["errors"][0]["field"] == "cursor"


async def test_a_limit_out_of_range_is_refused_by_every_list(service: Service) -> None:
    """The same 400, naming the field."""
    _, headers = await register(service, "ann")
    for path, limit in product(PAGED, ("0", "101", "x")):
        answer = await service.http.get(path, headers=headers, params={"limit": limit})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "limit")

"""The routers: owners see their own balances and history, in the house's envelope."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from litestar import Litestar, post
from litestar.connection import ASGIConnection
from litestar.params import FromPath

from daydo_db import Database
from daydo_kernel import NotFound
from daydo_kernel.litestar import KernelPlugin
from daydo_kernel.testing import ManualClock
from daydo_quota import Account, Ledger
from daydo_quota.litestar import quota_router


def owner(connection: ASGIConnection[Any, Any, Any, Any]) -> tuple[str, str]:
    subject = connection.headers.get("x-subject")
    if subject is None:
        raise NotFound
    return "acme", subject


@pytest.fixture
async def client(db: Database) -> AsyncIterator[httpx.AsyncClient]:
    ledger = Ledger(db, clock=ManualClock())

    @post("/spend/{key:str}", status_code=204)
    async def spend(key: FromPath[str]) -> None:
        async with ledger.hold(Account("acme", "u_7", "credits"), 4, key=key):
            pass

    router = quota_router(ledger, owner, path="/api/v1/quota")
    app = Litestar([router, spend], plugins=[KernelPlugin()], logging_config=None)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with ledger, httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await ledger.grant(Account("acme", "u_7", "credits"), 10, key="order", reason="首充")
        await ledger.grant(Account("acme", "u_8", "credits"), 99, key="other")
        client.headers["x-subject"] = "u_7"
        yield client


@pytest.mark.dialect("sqlite")
async def test_accounts_show_the_owners_balances(client: httpx.AsyncClient) -> None:
    """One item per unit, of the subject that asks and nobody else."""
    assert (await client.post("/spend/task_1")).status_code == 204
    answer = (await client.get("/api/v1/quota/accounts")).json()
    assert (answer["code"], answer["message"]) == (0, "ok")
    balance = {"unit": "credits", "available": 6, "reserved": 0, "spent": 4, "expired": 0, "pending": 0}
    assert answer["data"] == {"items": [balance]}


@pytest.mark.dialect("sqlite")
async def test_history_comes_in_pages(client: httpx.AsyncClient) -> None:
    """Newest first; the last page has no cursor; no internal id is shown."""
    await client.post("/spend/task_1")
    first = (await client.get("/api/v1/quota/history", params={"limit": 2})).json()["data"]
    assert [item["kind"] for item in first["items"]] == ["confirmed", "held"]
    rest = (await client.get("/api/v1/quota/history", params={"cursor": first["next_cursor"]})).json()["data"]
    assert rest == {
        "items": [
            {
                "unit": "credits",
                "seq": 1,
                "kind": "granted",
                "amount": 10,
                "available": 10,
                "reserved": 0,
                "key": "order",
                "reason": "首充",
                "at": "2023-11-14T22:13:20.000Z",
            }
        ]
    }
    assert (await client.get("/api/v1/quota/history", params={"unit": "points"})).json()["data"] == {"items": []}


@pytest.mark.dialect("sqlite")
@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "cursor=nonsense", "unit=" + "x" * 33])
async def test_bad_queries_are_the_clients_fault(client: httpx.AsyncClient, query: str) -> None:
    """400 in the envelope, naming the field."""
    answer = await client.get(f"/api/v1/quota/history?{query}")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == query.partition("=")[0]


@pytest.mark.dialect("sqlite")
async def test_errors_of_the_ledger_have_their_status(client: httpx.AsyncClient) -> None:
    """402 in the caller's language where the quota is not enough."""
    for number in range(2):
        await client.post(f"/spend/task_{number}")
    refused = await client.post("/spend/task_3", headers={"accept-language": "en"})
    assert (refused.status_code, refused.json()["error"]) == (402, "quota.insufficient")
    del client.headers["x-subject"]
    assert (await client.get("/api/v1/quota/accounts")).status_code == 404

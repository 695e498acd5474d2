"""The routers and the guard: owners see, administrators change, and a route costs what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Annotated, Any

import httpx
import pytest
from litestar import Litestar, Request, Router, WebSocket, asgi, get, post, websocket
from litestar.connection import ASGIConnection
from litestar.exceptions import ImproperlyConfiguredException
from litestar.handlers import BaseRouteHandler
from litestar.params import Body, FromPath
from litestar.response import Stream

from daydo_db import Database, Tx
from daydo_kernel import BadRequest, Event, NotFound, NotStarted
from daydo_kernel.litestar import KernelPlugin
from daydo_kernel.testing import ManualClock
from daydo_quota import Account, BadName, BadPolicy, Balance, Ledger
from daydo_quota.litestar import LedgerPlugin, held, holding, quota_admin_router, quota_router
from daydo_quota.testing import check_books

pytestmark = pytest.mark.dialect("sqlite")

CREDITS = Account("acme", "u_7", "credits")
OTHERS = Account("acme", "u_8", "credits")


def owner(connection: ASGIConnection[Any, Any, Any, Any]) -> tuple[str, str]:
    """Whoever the header says."""
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


async def test_accounts_show_the_owners_balances(client: httpx.AsyncClient) -> None:
    """One item per unit, of the subject that asks and nobody else."""
    assert (await client.post("/spend/task_1")).status_code == 204
    answer = (await client.get("/api/v1/quota/accounts")).json()
    assert (answer["code"], answer["message"]) == (0, "ok")
    balance = {"unit": "credits", "available": 6, "reserved": 0, "spent": 4, "expired": 0, "pending": 0, "debt": 0}
    assert answer["data"] == {"items": [balance]}


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


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "cursor=nonsense", "unit=" + "x" * 33])
async def test_bad_queries_are_the_clients_fault(client: httpx.AsyncClient, query: str) -> None:
    """400 in the envelope, naming the field."""
    answer = await client.get(f"/api/v1/quota/history?{query}")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == query.partition("=")[0]


async def test_errors_of_the_ledger_have_their_status(client: httpx.AsyncClient) -> None:
    """402 in the caller's language where the quota is not enough."""
    for number in range(2):
        await client.post(f"/spend/task_{number}")
    refused = await client.post("/spend/task_3", headers={"accept-language": "en"})
    assert (refused.status_code, refused.json()["error"]) == (402, "quota.insufficient")
    del client.headers["x-subject"]
    assert (await client.get("/api/v1/quota/accounts")).status_code == 404


# A route that costs quota


class InLine(list[str]):
    """What the handlers have done."""


@pytest.fixture
def done() -> InLine:
    return InLine()


@pytest.fixture
async def ledger(db: Database) -> AsyncIterator[Ledger]:
    ledger = Ledger(db, clock=ManualClock())
    yield ledger
    await check_books(db)


@asynccontextmanager
async def serving(ledger: Ledger, *handlers: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application with the plugins, as u_7; u_7 and u_8 have ten credits each."""
    app = Litestar([*handlers], plugins=[KernelPlugin(), LedgerPlugin(ledger)], logging_config=None)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with ledger, httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await ledger.grant(CREDITS, 10, key="order")
        await ledger.grant(OTHERS, 10, key="other")
        client.headers.update({"x-subject": "u_7", "accept-language": "en"})
        yield client


def routes(ledger: Ledger, done: InLine) -> list[Any]:
    costs = holding(ledger, {"credits": 4}, owner=owner)

    @post("/pictures", guards=[costs])
    async def make_picture(data: Annotated[dict[str, int], Body()], request: Request[Any, Any, Any]) -> str:
        done.append("picture")
        held(request).charge = data.get("charge")
        return "picture.png"

    @post("/films", guards=[costs])
    async def make_film() -> str:
        done.append("film")
        return "film.mp4"

    @post("/failures/{kind:str}", guards=[costs])
    async def fail(kind: FromPath[str]) -> None:
        raise {"refusal": BadRequest(), "bug": ZeroDivisionError(), "missing": NotFound()}[kind]

    return [make_picture, make_film, fail]


async def test_a_guarded_route_costs_what_it_says(ledger: Ledger, done: InLine) -> None:
    """All of it, or what the handler says; the history names the route."""
    async with serving(ledger, *routes(ledger, done)) as client:
        assert (await client.post("/films")).status_code == 201
        assert await ledger.balance(CREDITS) == Balance(available=6, spent=4)
        assert (await client.post("/pictures", json={"charge": 1})).text == "picture.png"
        assert await ledger.balance(CREDITS) == Balance(available=5, spent=5)
        newest = (await ledger.history("acme", "u_7")).items[0]
        assert (newest.kind, newest.amount, newest.reason) == ("confirmed", 1, "POST /pictures")


async def test_without_enough_units_the_handler_is_not_called(ledger: Ledger, done: InLine) -> None:
    """402 in the envelope, and nothing is held."""
    async with serving(ledger, *routes(ledger, done)) as client:
        answers = [await client.post("/films") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [201, 201, 402]
        assert answers[2].json()["error"] == "quota.insufficient"
        assert done == ["film", "film"]
        assert await ledger.balance(CREDITS) == Balance(available=2, spent=8)


@pytest.mark.parametrize(("kind", "status"), [("refusal", 400), ("bug", 500), ("missing", 404)])
async def test_an_error_costs_nothing(ledger: Ledger, done: InLine, kind: str, status: int) -> None:
    """Whatever the handler raises is answered as ever, and the units are back."""
    async with serving(ledger, *routes(ledger, done)) as client:
        answer = await client.post(f"/failures/{kind}")
        assert (answer.status_code, answer.json()["code"] // 100) == (status, status)
        assert await ledger.balance(CREDITS) == Balance(available=10)


async def test_bad_input_costs_nothing(ledger: Ledger, done: InLine) -> None:
    """A body that cannot be read is found out after the guard; the units return."""
    async with serving(ledger, *routes(ledger, done)) as client:
        answer = await client.post("/pictures", json={"charge": "much"})
        assert answer.status_code == 400
        assert await ledger.balance(CREDITS) == Balance(available=10)
        assert not done


async def test_a_charge_above_the_hold_is_refused_in_place_of_the_answer(ledger: Ledger, done: InLine) -> None:
    """The client never reads a success that was not paid; the body is the house's."""
    async with serving(ledger, *routes(ledger, done)) as client:
        answer = await client.post("/pictures", json={"charge": 5})
        assert (answer.status_code, answer.json()["error"]) == (422, "quota.charge_exceeds_hold")
        assert answer.headers["content-type"] == "application/json"
        assert await ledger.balance(CREDITS) == Balance(available=6, reserved=4)


async def test_a_repeat_under_its_key_is_neither_done_nor_charged_twice(ledger: Ledger, done: InLine) -> None:
    """The key belongs to this owner and this route: others may use the same."""
    key = {"idempotency-key": "k-1"}
    async with serving(ledger, *routes(ledger, done)) as client:
        assert (await client.post("/films", headers=key)).status_code == 201
        repeat = await client.post("/films", headers=key)
        assert (repeat.status_code, repeat.json()["error"]) == (409, "quota.hold_confirmed")
        assert done == ["film"]
        assert (await client.post("/pictures", headers=key, json={})).status_code == 201
        assert (await client.post("/films", headers={**key, "x-subject": "u_8"})).status_code == 201
        assert await ledger.balance(CREDITS) == Balance(available=2, spent=8)
        assert await ledger.balance(OTHERS) == Balance(available=6, spent=4)


async def test_a_key_belongs_to_the_path_it_was_sent_to(ledger: Ledger) -> None:
    """Not to the route: a client that numbers its requests per picture is charged for each, once."""

    @post("/pictures/{number:int}", guards=[holding(ledger, {"credits": 4}, owner=owner)])
    async def draw(number: FromPath[int]) -> None: ...

    key = {"idempotency-key": "k-1"}
    async with serving(ledger, draw) as client:
        answers = [await client.post(f"/pictures/{number}", headers=key) for number in (1, 2, 1)]
        assert [answer.status_code for answer in answers] == [201, 201, 409]
        assert await ledger.balance(CREDITS) == Balance(available=2, spent=8)


async def test_a_guard_on_a_router_charges_its_routes_and_not_their_options(ledger: Ledger, done: InLine) -> None:
    """Litestar's own answer to OPTIONS inherits the guard; a browser asks it before each call."""

    @post("/films")
    async def make_film() -> None:
        done.append("film")

    router = Router("/v1", route_handlers=[make_film], guards=[holding(ledger, {"credits": 4}, owner=owner)])
    async with serving(ledger, router) as client:
        assert (await client.options("/v1/films")).status_code == 204
        assert await ledger.balance(CREDITS) == Balance(available=10)
        assert len((await ledger.history("acme", "u_7")).items) == 1
        assert (await client.post("/v1/films")).status_code == 201
        assert await ledger.balance(CREDITS) == Balance(available=6, spent=4)
        assert done == ["film"]


async def test_requests_without_a_key_are_operations_of_their_own(ledger: Ledger, done: InLine) -> None:
    """Also under the same request id, which a client may send twice."""
    async with serving(ledger, *routes(ledger, done)) as client:
        for _ in range(2):
            assert (await client.post("/films", headers={"x-request-id": "same"})).status_code == 201
        assert await ledger.balance(CREDITS) == Balance(available=2, spent=8)


@pytest.mark.parametrize("keys", [["k" * 65], [""], ["a b"], ["a", "b"]])
async def test_a_key_that_cannot_be_one_is_a_400(ledger: Ledger, done: InLine, keys: list[str]) -> None:
    """Too long, empty, with a space, or two of them; nothing is held."""
    async with serving(ledger, *routes(ledger, done)) as client:
        headers = [("x-subject", "u_7"), *(("idempotency-key", key) for key in keys)]
        answer = await client.post("/films", headers=headers)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "Idempotency-Key")
        assert await ledger.balance(CREDITS) == Balance(available=10)


async def test_a_second_request_while_the_first_works_is_told_to_wait(ledger: Ledger) -> None:
    """409 with Retry-After: a hundred of them at once would be a hundred pictures for one charge."""
    inside, go_on, worked = asyncio.Event(), asyncio.Event(), []

    @post("/slow", guards=[holding(ledger, {"credits": 4}, owner=owner)])
    async def slow() -> None:
        worked.append(1)
        inside.set()
        await go_on.wait()

    async with serving(ledger, slow) as client:
        key = {"idempotency-key": "k-1"}
        first = asyncio.create_task(client.post("/slow", headers=key))
        await inside.wait()
        others = await asyncio.gather(*(client.post("/slow", headers=key) for _ in range(5)))
        assert {(answer.status_code, answer.json()["error"]) for answer in others} == {(409, "quota.hold_open")}
        assert all("retry-after" in answer.headers for answer in others)
        go_on.set()
        assert (await first).status_code == 201
        assert worked == [1]
        assert await ledger.balance(CREDITS) == Balance(available=6, spent=4)


async def test_prices_keys_and_units_may_depend_on_the_request(ledger: Ledger) -> None:
    """Two units are held all or none; a price of 0 holds nothing; a key of yours is taken as it is."""

    def price(connection: ASGIConnection[Any, Any, Any, Any]) -> dict[str, int]:
        return {"credits": int(connection.path_params["size"]), "daily": int(connection.path_params["size"] > 0)}

    def key(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
        return f"print_{connection.path_params['size']}"

    @post("/prints/{size:int}", guards=[holding(ledger, price, owner=owner, key=key, reason="a print")])
    async def make_print(size: FromPath[int]) -> None:
        return None

    async with serving(ledger, make_print) as client:
        assert (await client.post("/prints/0")).status_code == 201
        assert (await client.post("/prints/3")).json()["error"] == "quota.insufficient"
        assert await ledger.balance(CREDITS) == Balance(available=10)
        await ledger.grant(Account("acme", "u_7", "daily"), 1, key="today")
        assert (await client.post("/prints/3")).status_code == 201
        entry = (await ledger.history("acme", "u_7", unit="credits")).items[0]
        assert (entry.key, entry.reason, entry.amount) == ("print_3", "a print", 3)


async def test_guards_run_in_their_order(ledger: Ledger) -> None:
    """One before it that refuses holds nothing; one behind it that refuses costs nothing."""

    async def closed(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        raise NotFound

    costs = holding(ledger, {"credits": 4}, owner=owner)

    @post("/before", guards=[closed, costs])
    async def before() -> None: ...

    @post("/behind", guards=[costs, closed])
    async def behind() -> None: ...

    async with serving(ledger, before, behind) as client:
        for path, lines in (("/before", 1), ("/behind", 3)):
            assert (await client.post(path)).status_code == 404
            assert len((await ledger.history("acme", "u_7")).items) == lines
        assert await ledger.balance(CREDITS) == Balance(available=10)


async def test_the_plugin_runs_the_ledger_and_documents_its_routes(db: Database, done: InLine) -> None:
    """Entered and left with the application; 402 and 409 are in the document of guarded routes alone."""
    ledger = Ledger(db)

    @get("/open")
    async def open_to_all() -> None: ...

    app = Litestar([*routes(ledger, done), open_to_all], plugins=[KernelPlugin(), LedgerPlugin(ledger)])
    with pytest.raises(NotStarted):
        await ledger.balance(CREDITS)
    async with app.lifespan():
        await ledger.balance(CREDITS)
    with pytest.raises(NotStarted):
        await ledger.balance(CREDITS)
    paths = app.openapi_schema.to_schema()["paths"]
    assert {"402", "409", "423"} <= paths["/films"]["post"]["responses"].keys()
    assert "402" not in paths["/open"]["get"]["responses"]


def test_what_could_not_be_settled_is_refused_when_the_application_is_made(db: Database) -> None:
    """A WebSocket has no answer, a mount has no middleware, two holds of one request would be settled apart."""
    costs = holding(Ledger(db), {"credits": 4}, owner=owner)

    @websocket("/live", guards=[costs])
    async def live(socket: WebSocket[Any, Any, Any]) -> None: ...

    @post("/twice", guards=[costs, costs])
    async def twice() -> None: ...

    @asgi("/mount", guards=[costs], copy_scope=True)
    async def mount(scope: Any, receive: Any, send: Any) -> None: ...

    for handler in (live, twice, mount):
        with pytest.raises(ImproperlyConfiguredException, match="holding"):
            Litestar([handler], plugins=[LedgerPlugin(Ledger(db))])


@pytest.mark.parametrize("misspelt", ["overage", "late", "broken_stream"])
def test_a_misspelt_policy_is_refused_when_the_guard_is_made(db: Database, misspelt: str) -> None:
    """Instead of meaning the default on every request."""
    policies: dict[str, Any] = {misspelt: "chrage"}
    with pytest.raises(BadPolicy, match=misspelt):
        holding(Ledger(db), {"credits": 4}, owner=owner, **policies)


async def test_without_the_plugin_nothing_is_held(db: Database, done: InLine) -> None:
    """A forgotten plugin is a loud mistake, not a hold that nothing settles."""
    ledger = Ledger(db)
    app = Litestar(routes(ledger, done), plugins=[KernelPlugin()], logging_config=None)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with ledger, httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await ledger.grant(CREDITS, 10, key="order")
        assert (await client.post("/films", headers={"x-subject": "u_7"})).status_code == 500
        assert await ledger.balance(CREDITS) == Balance(available=10)


# Over a real server, with clients that hang up


@asynccontextmanager
async def server(app: Litestar) -> AsyncIterator[int]:
    """uvicorn in this loop; its port."""
    uvicorn = pytest.importorskip("uvicorn")
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=5)
    running = uvicorn.Server(config)
    running.capture_signals = nullcontext  # they are the test run's
    task = asyncio.create_task(running.serve())
    while not running.started:
        assert not task.done()
        await asyncio.sleep(0.005)
    try:
        yield running.servers[0].sockets[0].getsockname()[1]
    finally:
        running.should_exit = True
        await task


async def settled(ledger: Ledger) -> Balance:
    """The balance once nothing is held any more; the server hears of a lost client a moment later."""
    async with asyncio.timeout(10):
        while (balance := await ledger.balance(CREDITS)).reserved:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return balance


class Connection:
    """A client that can hang up at any moment."""

    @classmethod
    async def ask(cls, port: int, path: str) -> Connection:
        self = cls()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST {path} HTTP/1.1\r\nhost: test\r\nx-subject: u_7\r\ncontent-length: 0\r\n\r\n"
        self.writer.write(head.encode())
        return self

    async def hang_up(self) -> None:
        self.writer.transport.abort()


@pytest.mark.parametrize(("broken_stream", "spent"), [("cancel", 1), ("charge", 3)])
async def test_a_client_that_hangs_up_a_stream_pays_what_was_delivered(
    ledger: Ledger, broken_stream: Any, spent: int
) -> None:
    """The known race of gateways that refund on a disconnect: what was captured, or metered, is charged; no more."""

    @post("/stream", guards=[holding(ledger, {"credits": 4}, owner=owner, broken_stream=broken_stream)])
    async def stream(request: Request[Any, Any, Any]) -> Stream:
        async def words() -> AsyncGenerator[str, None]:
            work = held(request)
            await work.capture(1, key="first_word")
            work.charge = 2
            yield "first "
            await asyncio.Event().wait()

        return Stream(words())

    app = Litestar([stream], plugins=[KernelPlugin(), LedgerPlugin(ledger)], logging_config=None)
    async with server(app) as port:
        await ledger.grant(CREDITS, 10, key="order")
        client = await Connection.ask(port, "/stream")
        assert b"201" in await client.reader.readuntil(b"first ")
        assert await ledger.balance(CREDITS) == Balance(available=6, reserved=3, spent=1)
        await client.hang_up()
        assert await settled(ledger) == Balance(available=10 - spent, spent=spent)


async def test_a_stream_that_is_read_to_its_end_is_charged(ledger: Ledger) -> None:
    """Before its last byte, so that the client that has it finds it charged."""

    @post("/stream", guards=[holding(ledger, {"credits": 4}, owner=owner)])
    async def stream() -> Stream:
        async def words() -> AsyncGenerator[str, None]:
            yield "first "
            yield "last"

        return Stream(words())

    app = Litestar([stream], plugins=[KernelPlugin(), LedgerPlugin(ledger)], logging_config=None)
    async with server(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        await ledger.grant(CREDITS, 10, key="order")
        answer = await client.post("/stream", headers={"x-subject": "u_7"})
        assert answer.text == "first last"
        assert await ledger.balance(CREDITS) == Balance(available=6, spent=4)


async def test_a_stream_that_fails_breaks_off_and_costs_nothing(ledger: Ledger) -> None:
    """The client sees a cut-off answer, never a complete one that was not paid."""

    @post("/stream", guards=[holding(ledger, {"credits": 4}, owner=owner)])
    async def stream() -> Stream:
        async def words() -> AsyncGenerator[str, None]:
            yield "first "
            raise ZeroDivisionError

        return Stream(words())

    app = Litestar([stream], plugins=[KernelPlugin(), LedgerPlugin(ledger)], logging_config=None)
    async with server(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        await ledger.grant(CREDITS, 10, key="order")
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/stream", headers={"x-subject": "u_7"})
        assert await settled(ledger) == Balance(available=10)


async def test_a_client_that_hangs_up_a_plain_answer_pays_for_the_work(ledger: Ledger) -> None:
    """The handler ends its work, and whoever repeats under the key is told so."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    @post("/slow", guards=[holding(ledger, {"credits": 4}, owner=owner)])
    async def slow() -> None:
        inside.set()
        await go_on.wait()

    app = Litestar([slow], plugins=[KernelPlugin(), LedgerPlugin(ledger)], logging_config=None)
    async with server(app) as port:
        await ledger.grant(CREDITS, 10, key="order")
        client = await Connection.ask(port, "/slow")
        await inside.wait()
        await client.hang_up()
        go_on.set()
        assert await settled(ledger) == Balance(available=6, spent=4)


# Administrators


class Sink:
    """Remembers what was committed."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def emit(self, event: Event, tx: Tx | None = None) -> None:
        assert tx is not None
        tx.after_commit(lambda: self.events.append(event))

    def administered(self) -> list[dict[str, Any]]:
        return [
            {"tenant": event.tenant, "subject": event.subject, **event.data}
            for event in self.events
            if event.name == "quota.administered"
        ]


async def admins_only(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    if not connection.headers.get("x-subject", "").startswith("admin"):
        raise NotFound


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
async def admin(db: Database, sink: Sink) -> AsyncIterator[httpx.AsyncClient]:
    ledger = Ledger(db, clock=ManualClock(), events=sink)
    routers = (quota_admin_router(ledger, owner, "/admin", guards=[admins_only]), quota_router(ledger, owner, "/own"))
    async with serving(ledger, *routers) as client:
        client.headers["x-subject"] = "admin:1"
        yield client
    await check_books(db)


async def change(client: httpx.AsyncClient, what: str, key: str = "k-1", **body: Any) -> httpx.Response:
    body = {"subject": "u_7", "unit": "credits", "amount": 5, "reason": "ticket 12", **body}
    return await client.post(f"/admin/{what}", json=body, headers={"idempotency-key": key})


async def credits_of(client: httpx.AsyncClient, subject: str = "u_7") -> dict[str, int]:
    [account] = (await client.get("/admin/accounts", params={"subject": subject})).json()["data"]["items"]
    return {name: account[name] for name in ("available", "spent")}


async def test_an_administrator_grants_charges_and_refunds(admin: httpx.AsyncClient) -> None:
    """Each with a reason; the answers say what is there now."""
    granted = await change(admin, "grants", source="sorry", priority=10, expires_at="2024-01-01T08:00:00+08:00")
    assert granted.status_code == 201
    data = granted.json()["data"]
    assert data.pop("id").startswith("grant_")
    assert data == {
        "subject": "u_7",
        "unit": "credits",
        "key": "admin k-1 admin:1",
        "amount": 5,
        "remaining": 5,
        "source": "sorry",
        "priority": 10,
        "effective_at": "2023-11-14T22:13:20.000Z",
        "expires_at": "2024-01-01T00:00:00.000Z",
    }
    charged = (await change(admin, "charges", amount=12)).json()["data"]
    assert (charged["phase"], charged["charged"], charged["refunded"]) == ("confirmed", 12, 0)
    assert await credits_of(admin) == {"available": 3, "spent": 12}
    refunded = (await change(admin, "refunds", amount=2, hold_key=charged["key"])).json()["data"]
    assert (refunded["id"], refunded["refunded"]) == (charged["id"], 2)
    assert await credits_of(admin) == {"available": 5, "spent": 10}
    assert await credits_of(admin, "u_8") == {"available": 10, "spent": 0}


async def test_a_repeated_change_changes_nothing(admin: httpx.AsyncClient, sink: Sink) -> None:
    """It answers the same and says that it is a repeat; with other figures it conflicts; no event comes twice."""
    for what, more in (("grants", {}), ("charges", {}), ("refunds", {"hold_key": "admin k-1 admin:1"})):
        first, again = [await change(admin, what, **more) for _ in range(2)]
        assert "idempotent-replayed" not in first.headers
        assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
        assert first.json()["data"]["id"] == again.json()["data"]["id"]
        other = await change(admin, what, **more, amount=4)
        assert (other.status_code, other.json()["error"]) == (409, "quota.key_conflict")
    assert await credits_of(admin) == {"available": 15, "spent": 0}
    assert [event["action"] for event in sink.administered()] == ["grant", "charge", "refund"]


async def test_who_did_it_and_why_is_kept(admin: httpx.AsyncClient, sink: Sink) -> None:
    """In the entry, for administrators; in an event of the same transaction. Owners see the reason, and no name."""
    granted = (await change(admin, "grants", reason="抱歉")).json()["data"]
    [event] = sink.administered()
    assert event == {
        "tenant": "acme",
        "subject": "u_7",
        "actor": "admin:1",
        "action": "grant",
        "unit": "credits",
        "amount": 5,
        "reason": "抱歉",
        "key": "admin k-1 admin:1",
        "id": granted["id"],
    }
    line = (await admin.get("/admin/history", params={"subject": "u_7", "limit": 1})).json()["data"]["items"][0]
    assert (line["actor"], line["key"], line["reason"]) == ("admin:1", "admin k-1 admin:1", "抱歉")
    assert (line["available_change"], line["spent_change"]) == (5, 0)
    own = (await admin.get("/own/history?limit=1", headers={"x-subject": "u_7"})).json()["data"]["items"][0]
    assert (own["key"], own["reason"]) == ("admin k-1", "抱歉")
    assert "actor" not in own


async def test_nobody_else_can_make_a_key_that_names_an_administrator(db: Database) -> None:
    """Where clients choose keys, none of theirs shows an actor, and none is in the way of an administrator's."""
    ledger = Ledger(db, clock=ManualClock())
    router = quota_admin_router(ledger, owner, "/admin", guards=[admins_only])
    async with serving(ledger, router) as client:
        client.headers["x-subject"] = "admin"
        await ledger.grant(CREDITS, 1, key="admin:k-1:admin")
        for call in (ledger.grant, ledger.reserve, ledger.charge):
            with pytest.raises(BadName):
                await call(CREDITS, 1, key="admin k-1 admin")
        with pytest.raises(BadName):
            await ledger.capture(CREDITS, 1, key="admin k-1 admin", hold_key="task")
        assert "idempotent-replayed" not in (await change(client, "grants")).headers
        charged = (await change(client, "charges")).json()["data"]
        await ledger.refund(CREDITS, 1, key="ticket", hold_key=charged["key"])
        lines = (await client.get("/admin/history", params={"subject": "u_7"})).json()["data"]["items"]
        assert [(line["kind"], line.get("actor", "")) for line in lines] == [
            ("refunded", ""),
            ("charged", "admin"),
            ("granted", "admin"),
            ("granted", ""),
            ("granted", ""),
        ]
    await check_books(db)


def test_an_administration_that_is_open_to_all_is_not_made(db: Database) -> None:
    """A forgotten guard is told when the application is made, not by whoever grants himself units."""
    with pytest.raises(ImproperlyConfiguredException, match="needs a guard"):
        quota_admin_router(Ledger(db), owner, "/admin", guards=[])
    with pytest.raises(TypeError, match="guards"):
        quota_admin_router(Ledger(db), owner, "/admin")  # type: ignore[call-arg]


async def test_two_administrators_may_use_the_same_key(admin: httpx.AsyncClient) -> None:
    """It is scoped to who uses it."""
    await change(admin, "grants")
    admin.headers["x-subject"] = "admin:2"
    assert "idempotent-replayed" not in (await change(admin, "grants")).headers
    assert await credits_of(admin) == {"available": 20, "spent": 0}


async def test_an_event_that_cannot_be_kept_undoes_the_change(
    admin: httpx.AsyncClient, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No change without its trace."""

    async def full(event: Event, tx: Tx | None = None) -> None:
        if event.name == "quota.administered":
            raise OSError("no space")

    monkeypatch.setattr(sink, "emit", full)
    assert (await change(admin, "grants")).status_code == 500
    assert await credits_of(admin) == {"available": 10, "spent": 0}


async def test_a_charge_takes_no_more_than_there_is(admin: httpx.AsyncClient, sink: Sink) -> None:
    """402, nothing is held, no event."""
    answer = await change(admin, "charges", amount=11)
    assert (answer.status_code, answer.json()["error"]) == (402, "quota.insufficient")
    assert await credits_of(admin) == {"available": 10, "spent": 0}
    assert not sink.administered()


async def test_a_charge_may_leave_a_debt_where_the_administrator_says_so(admin: httpx.AsyncClient) -> None:
    """Credits that were given by mistake and are spent: the next ones pay for them."""
    assert (await change(admin, "charges", amount=12, overage="debt")).status_code == 201
    assert await credits_of(admin) == {"available": 0, "spent": 12}
    await change(admin, "grants", amount=5)
    assert await credits_of(admin) == {"available": 3, "spent": 12}


BAD_CHANGES = [
    ({"subject": ""}, "subject"),
    ({"subject": "a b"}, "subject"),
    ({"unit": "x" * 33}, "unit"),
    ({"amount": 0}, "amount"),
    ({"amount": 2**53}, "amount"),
    ({"amount": 1.5}, "amount"),
    ({"amount": 5.0}, "amount"),
    ({"amount": "5"}, "amount"),
    ({"amount": True}, "amount"),
    ({"priority": "5"}, "priority"),
    ({"expires_at": 4_000_000_000}, "expires_at"),
    ({"reason": ""}, "reason"),
    ({"reason": "x" * 201}, "reason"),
    ({"expires_at": "2024-01-01T00:00:00"}, "expires_at"),
    ({"expires_at": "tomorrow"}, "expires_at"),
    ({"priority": 101}, "priority"),
    ({"tenant": "other"}, "tenant"),
]


@pytest.mark.parametrize(("body", "field"), BAD_CHANGES)
async def test_a_change_that_cannot_be_read_names_the_field(
    admin: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    """400 and nothing changes; an administrator's tenant is no field."""
    answer = await change(admin, "grants", **body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field)
    assert await credits_of(admin) == {"available": 10, "spent": 0}


@pytest.mark.parametrize("key", [None, "", "a b", "k" * 65])
async def test_a_change_needs_a_key(admin: httpx.AsyncClient, key: str | None) -> None:
    """A double click must not grant twice; a space would blur who did it."""
    body = {"subject": "u_7", "unit": "credits", "amount": 5, "reason": "ticket 12"}
    headers = {} if key is None else {"idempotency-key": key}
    answer = await admin.post("/admin/grants", json=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"].lower().replace("_", "-") == "idempotency-key"
    assert await credits_of(admin) == {"available": 10, "spent": 0}


async def test_a_period_that_has_passed_is_refused(admin: httpx.AsyncClient) -> None:
    """The ledger's own refusals come through."""
    answer = await change(admin, "grants", expires_at="2001-01-01T00:00:00Z")
    assert (answer.status_code, answer.json()["error"]) == (422, "quota.bad_period")


async def test_the_guards_keep_everybody_else_out(admin: httpx.AsyncClient) -> None:
    """Of every route."""
    admin.headers["x-subject"] = "u_7"
    for what in ("grants", "charges", "refunds"):
        assert (await change(admin, what, hold_key="x")).status_code == 404
    for what in ("accounts", "history"):
        assert (await admin.get(f"/admin/{what}?subject=u_7")).status_code == 404

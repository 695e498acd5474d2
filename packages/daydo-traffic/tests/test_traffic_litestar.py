"""The Litestar edge: limits per route, a default for every route, and the list that proves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from litestar import Litestar, Request, Router, WebSocket, get, post, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.handlers import BaseRouteHandler
from litestar.testing import TestClient

from daydo_kernel.litestar import KernelPlugin, refuse_websockets
from daydo_traffic import (
    Bursty,
    Concurrent,
    Limits,
    LimitsConfig,
    Priority,
    Rule,
    Shedder,
    ShedderConfig,
    Window,
)
from daydo_traffic.litestar import (
    Connection,
    LimitsPlugin,
    RouteLimit,
    limited,
    prioritized,
    route_limits,
    unlimited,
)

RULES: dict[str, Rule] = {
    "anonymous": Window(limit=2, period_s=60),
    "user": Window(limit=3, period_s=60),
    "login": Window(limit=1, period_s=60),
    "stream": Concurrent(limit=1),
    "costly": Bursty(limit=10, period_s=60),
}


def address(connection: Connection) -> str:
    return connection.headers.get("x-client", "1.2.3.4")


def anonymous(connection: Connection) -> str | None:
    return None if user(connection) else address(connection)


def user(connection: Connection) -> str | None:
    return connection.scope.get("user")


DEFAULT = (RouteLimit("anonymous", by=anonymous), RouteLimit("user", by=user))


async def authenticate(connection: Connection, handler: BaseRouteHandler) -> None:
    """A guard of the innermost layer, as auth's: it comes before the limits nevertheless."""
    connection.scope["user"] = connection.headers["x-user"]


@get("/open")
async def open_to_all() -> str:
    return "hello"


@get("/mine", guards=[authenticate])
async def mine() -> str:
    return "hello"


@post("/login", opt=limited(RouteLimit("login", by=address), *DEFAULT))
async def login() -> str:
    return "token"


@get("/costly", opt=limited(RouteLimit("costly", by=address, cost=5)))
async def costly() -> str:
    return "done"


@get("/free", opt=unlimited("bounded by the cache in front of it"))
async def free() -> str:
    return "hello"


@get("/inherits")
async def inherits() -> str:
    return "hello"


@get("/health", opt={**unlimited("asked by the balancer"), **prioritized(Priority.CRITICAL)})
async def health() -> str:
    return "well"


@get("/crash", opt=limited(RouteLimit("stream", by=address)))
async def crash() -> None:
    raise ZeroDivisionError


@get("/slow", opt=limited(RouteLimit("stream", by=address)))
async def slow(request: Request[Any, Any, Any]) -> str:
    request.app.state.begun.set()
    await request.app.state.gate.wait()
    return "done"


@websocket("/live", opt=limited(RouteLimit("login", by=address)))
async def live(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    await socket.close()


def make(
    shedder: Shedder | None = None, default: tuple[RouteLimit, ...] = DEFAULT, limits: Limits | None = None
) -> Litestar:
    limits = limits if limits is not None else Limits(None, LimitsConfig(rules=RULES))
    inner = Router("/inner", route_handlers=[inherits], opt=limited(RouteLimit("login", by=address)))
    return Litestar(
        [open_to_all, mine, login, costly, free, inner, health, crash, slow, live],
        plugins=[KernelPlugin(), LimitsPlugin(limits, default, shedder=shedder)],
    )


@pytest.fixture
async def app() -> AsyncIterator[Litestar]:
    limits = Limits(None, LimitsConfig(rules=RULES))
    async with limits:  # not app.lifespan(): a fixture leaves in another task than it entered, which anyio refuses
        yield make(limits=limits)


@pytest.fixture
async def client(app: Litestar) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://t"
    ) as it:
        yield it


async def test_default_for_every_route(client: httpx.AsyncClient) -> None:
    """A route that says nothing has the default: here by address, and 429 in the house's shape."""
    answers = [await client.get("/open") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["ratelimit"] == '"anonymous";r=1;t=60'
    assert answers[2].json()["error"] == "traffic.rate_limited"
    assert (answers[2].headers["retry-after"], answers[2].headers["ratelimit"]) == ("60", '"anonymous";r=0;t=60')
    assert (await client.get("/open", headers={"x-client": "5.6.7.8"})).status_code == 200


async def test_users_are_limited_as_users(client: httpx.AsyncClient) -> None:
    """Limits come after the guards of all layers: behind one address every user has an allowance of their own."""
    for who in ("u_1", "u_2"):
        answers = [await client.get("/mine", headers={"x-user": who}) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[0].headers["ratelimit-policy"] == '"user";q=3;w=60'


async def test_own_limits_and_costs(client: httpx.AsyncClient) -> None:
    """A route's own take the default's place, unless it names them too; all are decided at once."""
    assert (await client.post("/login")).headers["ratelimit-policy"] == '"login";q=1;w=60, "anonymous";q=2;w=60'
    assert (await client.post("/login")).status_code == 429
    assert (await client.get("/open")).headers["ratelimit"] == '"anonymous";r=0;t=60'
    assert [(await client.get("/costly")).status_code for _ in range(3)] == [200, 200, 429]
    assert (await client.get("/inner/inherits", headers={"x-client": "9"})).headers["ratelimit"].startswith('"login"')


async def test_no_limit_no_header(client: httpx.AsyncClient) -> None:
    """What says that it is unlimited is, and an unknown path has no route to limit."""
    answers = [await client.get("/free") for _ in range(5)]
    assert {answer.status_code for answer in answers} == {200}
    assert "ratelimit" not in answers[0].headers
    assert (await client.get("/nowhere")).status_code == 404


async def test_leases_end_with_the_request(app: Litestar, client: httpx.AsyncClient) -> None:
    """Held while the handler runs; given back after an answer, and after a crash."""
    app.state.begun, app.state.gate = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(client.get("/slow"))
    await app.state.begun.wait()
    assert (await client.get("/slow")).json()["error"] == "traffic.too_many_at_once"
    app.state.gate.set()
    assert (await first).status_code == 200
    assert [(await client.get("/crash")).status_code for _ in range(2)] == [500, 500]


async def test_every_route_is_listed(app: Litestar) -> None:
    """The list that proves that no route was forgotten: rules, or the reason why there are none."""
    found = {(route.method, route.path): route for route in route_limits(app)}
    assert [route for route in found.values() if not route.rules and not route.unlimited] == []
    assert found["POST", "/login"].rules == ("login", "anonymous", "user")
    assert found["GET", "/inner/inherits"].rules == ("login",)
    assert found["WEBSOCKET", "/live"].rules == ("login",)
    assert found["GET", "/health"].unlimited == "asked by the balancer"
    assert found["OPTIONS", "/open"].rules == ("anonymous", "user")


def test_a_forgotten_route_shows() -> None:
    """Without a default, a route that says nothing has neither rules nor a reason."""
    found = {(route.method, route.path): route for route in route_limits(make(default=()))}
    assert (found["GET", "/open"].rules, found["GET", "/open"].unlimited) == ((), "")


def test_unknown_rules_stop_the_start() -> None:
    """A route that names a rule which does not exist is found when the application is made."""
    with pytest.raises(ValueError, match=r"no rule \['nix'\]"):
        make(default=(RouteLimit("nix", by=address),))
    with pytest.raises(ValueError, match="unlimited"):
        limited()


async def test_shedding_comes_first() -> None:
    """Under pressure 503 before anything is spent; the critical pass; nothing stays in flight."""
    shedder = Shedder(ShedderConfig(in_flight_begin=0, in_flight_max=1, admit_share=0.001))
    app = make(shedder)
    async with app.lifespan(), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        with shedder.admit(Priority.CRITICAL):
            shed = await client.get("/open")
            assert (shed.status_code, shed.headers["retry-after"]) == (503, "1")
            assert shed.json()["error"] == "traffic.overloaded"
            assert (await client.get("/health")).status_code == 200
        assert (await shedder.health()).detail["in_flight"] == 0
        assert (await client.get("/open")).headers["ratelimit"].startswith('"anonymous";r=1')


def test_refusals_are_documented() -> None:
    """The OpenAPI document says which errors a route may be refused with."""
    schema = make(Shedder()).openapi_schema.to_schema()["paths"]
    assert "42945 traffic.rate_limited" in schema["/open"]["get"]["responses"]["429"]["description"]
    assert "42946 traffic.too_many_at_once" in schema["/slow"]["get"]["responses"]["429"]["description"]
    assert "429" not in schema["/free"]["get"]["responses"]
    assert "50345 traffic.overloaded" in schema["/free"]["get"]["responses"]["503"]["description"]


def test_websockets_are_limited() -> None:
    """A refused one is closed with 4429."""
    with TestClient(refuse_websockets(make())) as client:
        with client.websocket_connect("/live"):
            pass
        with client.websocket_connect("/live") as socket, pytest.raises(WebSocketDisconnect) as closed:
            socket.receive()
        assert closed.value.code == 4429

"""The Litestar edge: limits per route, a default for every route, and the list that proves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from litestar import Litestar, Request, Router, WebSocket, get, post, websocket
from litestar.exceptions import ImproperlyConfiguredException, NotAuthorizedException, WebSocketDisconnect
from litestar.handlers import BaseRouteHandler
from litestar.testing import TestClient

from daydo_kernel.litestar import KernelPlugin, refuse_websockets
from daydo_kernel.testing import RecordedEvents
from daydo_traffic import (
    Bursty,
    Concurrent,
    Limits,
    LimitsConfig,
    Priority,
    Rule,
    Shedder,
    ShedderConfig,
    Switch,
    Switches,
    SwitchesConfig,
    Window,
)
from daydo_traffic.litestar import (
    Connection,
    LimitsPlugin,
    RouteLimit,
    limited,
    limits_admin_router,
    prioritized,
    route_limits,
    switched,
    switches_admin_router,
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
    return connection.headers.get("x-user")


DEFAULT = (RouteLimit("anonymous", by=anonymous), RouteLimit("user", by=user))


async def authenticate(connection: Connection, handler: BaseRouteHandler) -> None:
    """A guard, as auth's."""
    if "x-user" not in connection.headers:
        raise NotAuthorizedException


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
    """Behind one address every user has an allowance of their own, and spends nothing of the address's."""
    for who in ("u_1", "u_2"):
        answers = [await client.get("/mine", headers={"x-user": who}) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[0].headers["ratelimit-policy"] == '"user";q=3;w=60'
    assert (await client.get("/open")).headers["ratelimit"] == '"anonymous";r=1;t=60'


async def test_what_a_guard_refuses_was_counted(client: httpx.AsyncClient) -> None:
    """Limits come before guards and body: who guesses tokens is slowed down, and is told so in the headers."""
    answers = [await client.get("/mine") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [401, 401, 429]
    assert answers[0].headers["ratelimit"] == '"anonymous";r=1;t=60'


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
    shedder = Shedder(ShedderConfig(patience_s=0, in_flight_begin=0, in_flight_max=1, admit_share=0.001))
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


async def test_a_granted_preflight_spends_nothing() -> None:
    """A browser asks it on its own before what it was told to; one refused counts, and so does any other OPTIONS."""
    limits = Limits(None, LimitsConfig(rules=RULES))
    app = Litestar([open_to_all], plugins=[KernelPlugin(), LimitsPlugin(limits, DEFAULT)], openapi_config=None)

    async def shield(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "OPTIONS":
            await app(scope, receive, send)
            return
        status = 204 if (b"origin", b"https://ours.example.cn") in scope["headers"] else 403
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    asks = {"Access-Control-Request-Method": "POST"}
    ours, theirs = {"Origin": "https://ours.example.cn", **asks}, {"Origin": "https://theirs.example.cn", **asks}
    async with (
        app.lifespan(),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(limits_plugin(app).wrap(shield)), base_url="http://t"
        ) as client,
    ):
        answers = [await client.options("/open", headers=ours) for _ in range(4)]
        assert {answer.status_code for answer in answers} == {204}
        answers = [await client.options("/open", headers=theirs) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [403, 403, 429]
        assert (await client.options("/open", headers={"Origin": "https://ours.example.cn"})).status_code == 429


async def test_what_no_route_answers_is_limited() -> None:
    """Unknown paths and wrong methods have the default, with its headers; beyond it 429, and 4429 for a socket."""
    limits = Limits(None, LimitsConfig(rules=RULES))
    app = make(limits=limits)
    wrapped: Any = limits_plugin(app).wrap(refuse_websockets(app))
    async with (
        limits,
        httpx.AsyncClient(transport=httpx.ASGITransport(wrapped), base_url="http://t") as client,
    ):
        answers = [await client.get("/nowhere"), await client.delete("/open"), await client.get("/nowhere")]
        assert [answer.status_code for answer in answers] == [404, 405, 429]
        assert answers[0].headers["ratelimit"] == '"anonymous";r=1;t=60'
        assert answers[2].headers["retry-after"] == "60"
        assert (await client.get("/free")).status_code == 200
        sent: list[Any] = []
        scope = {"type": "websocket", "path": "/nowhere", "headers": [(b"x-client", b"1.2.3.4")], "query_string": b""}

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        await wrapped(scope, receive, send)
        assert [(message["type"], message.get("code")) for message in sent] == [
            ("websocket.accept", None),
            ("websocket.close", 4429),
        ]


def limits_plugin(app: Litestar) -> LimitsPlugin:
    return next(plugin for plugin in app.plugins if isinstance(plugin, LimitsPlugin))


async def staff_only(connection: Connection, handler: BaseRouteHandler) -> None:
    if user(connection) != "staff":
        raise NotAuthorizedException


async def test_everything_changes_at_run_time() -> None:
    """Rules and switches, by whom the guard lets in, each change told with who and why; nonsense is refused."""
    heard = RecordedEvents()
    limits = Limits(None, LimitsConfig(rules=RULES), events=heard)
    switches = Switches(None, SwitchesConfig(switches={"shop": Switch()}), events=heard)

    @get("/shop", opt=switched("shop"))
    async def shop() -> str:
        return "open"

    def actor(connection: Connection) -> str:
        return user(connection) or ""

    app = Litestar(
        [
            shop,
            login,
            limits_admin_router(limits, actor, guards=[staff_only]),
            switches_admin_router(switches, actor, guards=[staff_only]),
        ],
        plugins=[KernelPlugin(), LimitsPlugin(limits, switches=switches)],
    )
    transport = httpx.ASGITransport(app)
    async with limits, switches, httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        assert (await client.get("/limits")).status_code == 401
        client.headers["x-user"] = "staff"
        changed = {"rule": {"kind": "window", "limit": 2, "period_s": 60}, "reason": "a fair"}
        assert (await client.put("/limits/login", json=changed)).json()["data"]["rule"]["limit"] == 2
        assert [(await client.post("/login")).status_code for _ in range(3)] == [201, 201, 429]
        forgiven = {"key": "1.2.3.4", "reason": "an office"}
        assert (await client.post("/limits/login/forgiven", json=forgiven)).status_code == 200
        assert (await client.post("/login")).status_code == 201
        assert (await client.delete("/limits/login", params={"reason": "over"})).json()["data"]["changed"] is False
        assert (await client.delete("/limits/login")).status_code == 400
        held = {"rule": {"kind": "concurrent", "limit": 2}, "reason": "no"}
        assert (await client.put("/limits/login", json=held)).json()["error"] == "traffic.rule_of_another_kind"
        assert (await client.put("/limits/nix", json=changed)).json()["error"] == "traffic.rule_unknown"

        off = {"switch": {"mode": "off", "answer_en": "Back at noon."}, "reason": "stock-taking"}
        assert (await client.put("/switches/shop", json=off)).json()["data"]["mode"] == "off"
        refused = await client.get("/shop", headers={"accept-language": "en"})
        assert (refused.status_code, refused.json()["message"]) == (503, "Back at noon.")
        assert [item["mode"] for item in (await client.get("/switches")).json()["data"]["items"]] == ["off"]
        assert (await client.delete("/switches/shop", params={"reason": "done"})).json()["data"]["mode"] == "on"
        assert (await client.get("/shop")).status_code == 200
    assert [(event.name, event.subject, event.data["reason"]) for event in heard.events] == [
        ("traffic.rule_changed", "staff", "a fair"),
        ("traffic.key_forgiven", "staff", "an office"),
        ("traffic.rule_restored", "staff", "over"),
        ("traffic.switch_changed", "staff", "stock-taking"),
        ("traffic.switch_restored", "staff", "done"),
    ]


def test_what_nobody_guards_is_not_made() -> None:
    """An admin router without a guard, and a route with a switch that does not exist."""
    with pytest.raises(ImproperlyConfiguredException, match="needs a guard"):
        limits_admin_router(Limits(None), address, guards=[])
    with pytest.raises(ImproperlyConfiguredException, match="needs a guard"):
        switches_admin_router(Switches(None), address, guards=[])

    @get("/shop", opt=switched("shop"))
    async def shop() -> str:
        return "open"

    with pytest.raises(ValueError, match=r"no switch \['shop'\]"):
        Litestar([shop], plugins=[LimitsPlugin(Limits(None))])

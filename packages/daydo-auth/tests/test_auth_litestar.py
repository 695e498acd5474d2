from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from litestar import Litestar, Request, Router, WebSocket, get, websocket

from daydo_auth import Auth, Password, Principal, Tokens
from daydo_auth.litestar import AuthPlugin, auth_router, authenticated, live_ticket_handler, permitted, ticketed
from daydo_auth.testing import TokenForge
from daydo_kernel import RequestContext, get_context, reset_context, set_context
from daydo_kernel.litestar import KernelPlugin, refuse_websockets
from daydo_kernel.testing import ManualClock

GOOD = "Correct-Horse-7"


@get("/open", sync_to_thread=False)
def open_to_all() -> str:
    return "hello"


@get("/me", guards=[authenticated], sync_to_thread=False)
def me(request: Request[Principal, Any, Any]) -> dict[str, str]:
    context = get_context()
    return {"subject": request.user.subject, "logged": context.subject if context is not None else ""}


@get("/draw", guards=[permitted("image:create")], sync_to_thread=False)
def draw() -> None:
    return None


@get("/rule", guards=[permitted("image:create", "admin")], sync_to_thread=False)
def rule() -> None:
    return None


@get("/stream", guards=[ticketed], sync_to_thread=False)
def stream(request: Request[Principal, Any, Any]) -> str:
    return request.user.subject


@websocket("/live", guards=[ticketed])
async def live(socket: WebSocket[Principal, Any, Any]) -> None:
    await socket.accept()
    await socket.send_text(socket.user.subject)
    await socket.close()


@pytest.fixture
async def auth(sqlite: Any, memory: Any, clock: ManualClock, configure: Any) -> Auth:
    return Auth(sqlite, memory, configure(default_permissions=("image:create",)), clock=clock)


@pytest.fixture
async def app(auth: Auth) -> AsyncIterator[Litestar]:
    routes = [open_to_all, me, draw, rule, stream, live, auth_router(auth), live_ticket_handler(auth)]
    api = Router("/api/v1", route_handlers=routes)
    app = Litestar([api], plugins=[KernelPlugin(), AuthPlugin(auth)], logging_config=None)
    async with auth:  # not app.lifespan(): a fixture leaves in another task than it entered, which anyio refuses
        await auth.register(Password("a@x.cn", GOOD), subject="u_1")
        yield app


@pytest.fixture
async def tokens(app: Litestar, auth: Auth) -> Tokens:
    return await auth.login(Password("a@x.cn", GOOD), device="test")


@pytest.fixture
async def client(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop.test/api/v1") as client:
        yield client


def bearer(tokens: Tokens) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens.access}"}


async def test_the_plugin_runs_auth(sqlite: Any, memory: Any, configure: Any) -> None:
    """Auth runs exactly as long as the application."""
    auth = Auth(sqlite, memory, configure())
    app = Litestar([open_to_all], plugins=[AuthPlugin(auth)], logging_config=None, openapi_config=None)
    async with app.lifespan():
        assert (await auth.health()).status == "ok"
    assert (await auth.health()).status == "down"


async def test_the_guard_lets_the_right_one_in(client: httpx.AsyncClient, tokens: Tokens) -> None:
    """A guarded route knows its caller, and so does the access line; an open one asks nobody."""
    token = set_context(RequestContext(request_id="req_1"))
    try:
        answer = await client.get("/me", headers=bearer(tokens))
    finally:
        reset_context(token)
    assert answer.json() == {"subject": "u_1", "logged": "u_1"}
    assert (await client.get("/open")).status_code == 200


async def test_refusals_are_told_in_the_envelope(client: httpx.AsyncClient, tokens: Tokens, clock: ManualClock) -> None:
    """No token, a bad one, two of them, an old one: 401, each with its own name."""
    good = bearer(tokens)["Authorization"]
    for headers, error in (
        ([], "auth.token_missing"),
        ([("Authorization", "Bearer nonsense")], "auth.token_invalid"),
        ([("Authorization", good), ("Authorization", good)], "auth.token_invalid"),
        ([("Authorization", good), ("Authorization", "")], "auth.token_invalid"),
    ):
        answer = await client.get("/me", headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (401, error)
    clock.advance(900)
    assert (await client.get("/me", headers=bearer(tokens))).json()["error"] == "auth.token_expired"


async def test_the_forge_over_http(client: httpx.AsyncClient, auth: Auth, clock: ManualClock) -> None:
    """Every attack of the forge that HTTP can carry is a 401."""
    for name, header in TokenForge(auth.config, clock).attacks().items():
        if "\n" not in header and "\0" not in header and header.isascii():
            answer = await client.get("/me", headers={"Authorization": header})
            assert answer.status_code == 401, name


async def test_permissions(client: httpx.AsyncClient, tokens: Tokens) -> None:
    """Having the permission passes; lacking one of several is 403 and names it."""
    assert (await client.get("/draw", headers=bearer(tokens))).status_code == 200
    refused = await client.get("/rule", headers=bearer(tokens) | {"Accept-Language": "en"})
    assert (refused.status_code, refused.json()["error"]) == (403, "auth.forbidden")
    assert (await client.get("/rule")).status_code == 401


async def test_refresh_and_logout(client: httpx.AsyncClient, tokens: Tokens) -> None:
    """The router's refresh gives the next pair in the envelope; after its logout neither token works."""
    answer = await client.post("/auth/refresh", json={"refresh_token": tokens.refresh})
    assert (answer.status_code, answer.json()["code"]) == (200, 0)
    pair = answer.json()["data"]
    assert pair["expires_in_s"] == 900
    header = {"Authorization": f"Bearer {pair['access_token']}"}
    out = await client.post("/auth/logout", headers=header)
    assert out.json()["data"] == {"session_id": tokens.session_id}
    for answer in (
        await client.get("/me", headers=header),
        await client.post("/auth/refresh", json={"refresh_token": pair["refresh_token"]}),
    ):
        assert (answer.status_code, answer.json()["error"]) == (401, "auth.session_revoked")


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"refresh_token": 1}', b'{"refresh_token": "x", "more": 1}', b"\xff", b"[" * 10_000]
)
async def test_bad_bodies(client: httpx.AsyncClient, body: bytes) -> None:
    """What is not the body of a refresh is a 400 that says why."""
    answer = await client.post("/auth/refresh", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"] == "kernel.bad_request"


async def test_a_ticket_for_a_stream(client: httpx.AsyncClient, tokens: Tokens) -> None:
    """POST /live-tickets gives a ticket that opens one stream once; two tickets in one URL open none."""
    made = await client.post("/live-tickets", headers=bearer(tokens))
    assert made.status_code == 201
    assert made.json()["data"]["expires_in_s"] == 60
    ticket = made.json()["data"]["ticket"]
    doubled = await client.get(f"/stream?ticket={ticket}&ticket={ticket}")
    assert (doubled.status_code, doubled.json()["error"]) == (401, "auth.ticket_invalid")
    assert (await client.get("/stream", params={"ticket": ticket})).text == "u_1"
    assert (await client.get("/stream", params={"ticket": ticket})).status_code == 401
    assert (await client.get("/stream")).status_code == 401
    assert (await client.post("/live-tickets")).status_code == 401


async def websocket_to(app: Any, query: str) -> list[Any]:
    sent: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/api/v1/live", "raw_path": b"/api/v1/live", "query_string": query.encode()}
    rest = {"headers": [], "subprotocols": [], "root_path": "", "client": ("203.0.113.9", 1), "server": ("shop", 80)}
    await app({**scope, **rest, "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "ws"}, receive, send)
    return sent


async def test_a_ticket_for_a_websocket(app: Litestar, auth: Auth, tokens: Tokens) -> None:
    """A socket opens with a ticket, and is closed with 4401 and the error's name without one."""
    ticket = await auth.issue_ticket(auth.verify(bearer(tokens)["Authorization"]))
    opened = await websocket_to(refuse_websockets(app), f"ticket={ticket}")
    assert [message.get("text") for message in opened] == [None, "u_1", None]
    refused = await websocket_to(refuse_websockets(app), f"ticket={ticket}")
    assert refused[-1] == {"type": "websocket.close", "code": 4401, "reason": "auth.ticket_invalid"}


def test_guarded_routes_are_documented(auth: Auth, app: Litestar) -> None:
    """OpenAPI shows the bearer scheme, which routes need it, and what they refuse; nothing is kept between apps."""
    schema = app.openapi_schema.to_schema()
    assert schema["components"]["securitySchemes"] == {
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    }
    paths = schema["paths"]
    assert paths["/api/v1/me"]["get"]["security"] == [{"bearer": []}]
    assert "40101 auth.token_missing" in paths["/api/v1/me"]["get"]["responses"]["401"]["description"]
    assert "403" in paths["/api/v1/draw"]["get"]["responses"]
    assert "security" not in paths["/api/v1/open"]["get"]
    assert "40107 auth.ticket_invalid" in paths["/api/v1/stream"]["get"]["responses"]["401"]["description"]
    assert "40105 auth.refresh_reused" in paths["/api/v1/auth/refresh"]["post"]["responses"]["401"]["description"]
    plain = Litestar([open_to_all], logging_config=None).openapi_schema.to_schema()
    assert "bearer" not in str(plain)

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from litestar import Litestar, Request, Router, WebSocket, get, websocket

from daydo_auth import Auth, Password, Principal, Tokens
from daydo_auth.litestar import (
    AuthPlugin,
    RoutePosture,
    ShieldPlugin,
    anyone,
    auth_router,
    authenticated,
    live_ticket_handler,
    permitted,
    route_postures,
    ticketed,
    web_sessions_router,
)
from daydo_auth.testing import TokenForge
from daydo_kernel import RequestContext, get_context, reset_context, set_context
from daydo_kernel.litestar import KernelPlugin, refuse_websockets
from daydo_kernel.testing import ManualClock

GOOD = "Correct-Horse-7"


@get("/open", guards=[anyone], sync_to_thread=False)
def open_to_all() -> str:
    return "hello"


@get("/forgotten", sync_to_thread=False)
def forgotten() -> None:
    return None


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
    routes = [open_to_all, forgotten, me, draw, rule, stream, live, auth_router(auth), web_sessions_router(auth)]
    api = Router("/api/v1", route_handlers=[*routes, live_ticket_handler(auth)])
    app = Litestar([api], plugins=[KernelPlugin(), AuthPlugin(auth), ShieldPlugin()], logging_config=None)
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
    schemes = schema["components"]["securitySchemes"]
    assert schemes["bearer"].items() >= {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}.items()
    assert (schemes["cookie"]["in"], schemes["cookie"]["name"]) == ("cookie", "__Host-daydo-access")
    paths = schema["paths"]
    assert paths["/api/v1/me"]["get"]["security"] == [{"bearer": []}, {"cookie": []}, {"signature": []}]
    assert "40101 auth.token_missing" in paths["/api/v1/me"]["get"]["responses"]["401"]["description"]
    assert "403" in paths["/api/v1/draw"]["get"]["responses"]
    logout = paths["/api/v1/auth/logout"]["post"]["responses"]
    assert "40304 auth.csrf_invalid" in logout["403"]["description"]
    assert "security" not in paths["/api/v1/open"]["get"]
    assert "40107 auth.ticket_invalid" in paths["/api/v1/stream"]["get"]["responses"]["401"]["description"]
    assert "40105 auth.refresh_reused" in paths["/api/v1/auth/refresh"]["post"]["responses"]["401"]["description"]
    plain = Litestar([open_to_all], logging_config=None).openapi_schema.to_schema()
    assert "bearer" not in str(plain)


# Sessions of one's own


async def test_sessions_are_listed_and_ended(client: httpx.AsyncClient, auth: Auth, tokens: Tokens) -> None:
    """Two devices: the one that asks is current; the other is ended by its id, and nobody ends a stranger's."""
    phone = await auth.login(Password("a@x.cn", GOOD), device="phone")
    await auth.register(Password("b@x.cn", GOOD), subject="u_2")
    stranger = await auth.login(Password("b@x.cn", GOOD))
    listed = (await client.get("/auth/sessions", headers=bearer(tokens))).json()["data"]["items"]
    assert {(item["id"], item["device"], item["current"]) for item in listed} == {
        (tokens.session_id, "test", True),
        (phone.session_id, "phone", False),
    }
    refused = await client.delete(f"/auth/sessions/{stranger.session_id}", headers=bearer(tokens))
    assert (refused.status_code, refused.json()["error"]) == (404, "auth.session_unknown")
    ended = await client.delete(f"/auth/sessions/{phone.session_id}", headers=bearer(tokens))
    assert ended.json()["data"] == {"session_id": phone.session_id}
    assert (await client.get("/me", headers=bearer(phone))).status_code == 401
    assert (await client.get("/me", headers=bearer(stranger))).status_code == 200


async def test_log_out_everywhere_else(client: httpx.AsyncClient, auth: Auth, tokens: Tokens) -> None:
    """All sessions but the one that asks."""
    others = [await auth.login(Password("a@x.cn", GOOD)) for _ in range(2)]
    assert (await client.delete("/auth/sessions", headers=bearer(tokens))).json()["data"] == {"ended": 2}
    for other in others:
        assert (await client.get("/me", headers=bearer(other))).status_code == 401
    assert (await client.get("/me", headers=bearer(tokens))).status_code == 200


# Web pages


class Page:
    """A browser's page: keeps its cookies, and sends what it is told to."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.cookies: dict[str, str] = {}
        self.csrf = ""

    async def call(self, method: str, path: str, *headers: tuple[str, str], **more: Any) -> httpx.Response:
        sent = [("Cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items()))]
        answer = await self._client.request(method, path, headers=[*sent, *headers], **more)
        for line in answer.headers.get_list("set-cookie"):
            name, _, value = line.split(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
        return answer

    async def change(self, path: str) -> httpx.Response:
        return await self.call("POST", path, ("X-CSRF-Token", self.csrf))


@pytest.fixture
async def page(client: httpx.AsyncClient) -> Page:
    page = Page(client)
    made = await page.call("POST", "/auth/web/login", json={"login": "a@x.cn", "password": GOOD})
    page.csrf = made.json()["data"]["csrf_token"]
    return page


async def test_a_page_is_logged_in_by_cookies_that_no_script_reads(client: httpx.AsyncClient, app: Litestar) -> None:
    """__Host-, HttpOnly, Secure, SameSite; and no token in the body."""
    made = await client.post("/auth/web/login", json={"login": "a@x.cn", "password": GOOD})
    assert made.json()["data"].keys() == {"subject", "csrf_token", "expires_in_s"}
    cookies = [set(line.split("; ")) for line in made.headers.get_list("set-cookie")]
    assert len(cookies) == 2
    for cookie in cookies:
        assert cookie >= {"HttpOnly", "Secure", "Path=/"}
        assert any(part.startswith("__Host-daydo-") for part in cookie)
    assert {part for cookie in cookies for part in cookie if part.startswith("SameSite")} == {
        "SameSite=lax",
        "SameSite=strict",
    }
    wrong = await client.post("/auth/web/login", json={"login": "a@x.cn", "password": "Wrong-Horse-7"})
    assert (wrong.status_code, wrong.headers.get_list("set-cookie")) == (401, [])


async def test_a_page_reads_freely_and_changes_with_its_token(page: Page) -> None:
    """GET needs the cookie alone; POST needs X-CSRF-Token: the session's, once, and whole."""
    assert (await page.call("GET", "/me")).json()["subject"] == "u_1"
    shown = (await page.call("GET", "/auth/web/session")).json()["data"]
    assert (shown["subject"], shown["csrf_token"]) == ("u_1", page.csrf)
    header = "X-CSRF-Token"
    for headers in (
        [],
        [(header, "")],
        [(header, page.csrf[:-1])],
        [(header, page.csrf), (header, page.csrf)],
        [(header, "\xe9\xff")],
    ):
        encoded = [(name, value.encode("latin-1")) for name, value in headers]
        refused = await page.call("POST", "/live-tickets", *encoded)  # type: ignore[arg-type]
        assert (refused.status_code, refused.json()["error"]) == (403, "auth.csrf_invalid"), headers
    assert (await page.change("/live-tickets")).status_code == 201


async def test_another_sessions_token_is_none(page: Page, client: httpx.AsyncClient) -> None:
    """An attacker's own CSRF token does not act for the victim."""
    attacker = await client.post("/auth/web/login", json={"login": "a@x.cn", "password": GOOD})
    refused = await page.call("POST", "/live-tickets", ("X-CSRF-Token", attacker.json()["data"]["csrf_token"]))
    assert refused.json()["error"] == "auth.csrf_invalid"


async def test_a_bearer_needs_no_csrf_token(page: Page, tokens: Tokens) -> None:
    """Whoever sends Authorization is no page of another site; the header decides, not the cookie beside it."""
    both = ("Authorization", bearer(tokens)["Authorization"])
    assert (await page.call("POST", "/live-tickets", both)).status_code == 201
    bad = await page.call("GET", "/me", ("Authorization", "Bearer nonsense"))
    assert (bad.status_code, bad.json()["error"]) == (401, "auth.token_invalid")


async def test_a_page_is_kept_logged_in(page: Page, clock: ManualClock) -> None:
    """After the access token's life the refresh cookie, with the CSRF token, brings the next pair."""
    clock.advance(900)
    assert (await page.call("GET", "/me")).json()["error"] == "auth.token_expired"
    assert (await page.call("POST", "/auth/web/refresh")).json()["error"] == "auth.csrf_invalid"
    kept = await page.change("/auth/web/refresh")
    assert (kept.status_code, kept.json()["data"]["csrf_token"]) == (200, page.csrf)
    assert (await page.call("GET", "/me")).status_code == 200


async def test_a_page_logs_out(page: Page) -> None:
    """The session ends and the cookies are emptied; neither works again."""
    kept = dict(page.cookies)
    assert (await page.change("/auth/web/logout")).status_code == 200
    assert set(page.cookies.values()) == {""}
    page.cookies = kept
    assert (await page.call("GET", "/me")).json()["error"] == "auth.session_revoked"
    assert (await page.change("/auth/web/refresh")).json()["error"] == "auth.session_revoked"


async def test_a_cookie_twice_is_none(page: Page) -> None:
    """Which of two a reader takes is what an attacker would choose."""
    twice = "; ".join(f"__Host-daydo-access={value}" for value in [page.cookies["__Host-daydo-access"]] * 2)
    page.cookies = {}
    assert (await page.call("GET", "/me", ("Cookie", twice))).json()["error"] == "auth.token_invalid"
    assert (await page.call("POST", "/auth/web/refresh")).json()["error"] == "auth.token_missing"


# What the routes are


def test_postures_are_listed(app: Litestar) -> None:
    """Who, by which way, with what; a route that says nothing stands out; CSRF where cookies change something."""
    postures = {(each.method, each.path.removeprefix("/api/v1")): each for each in route_postures(app)}
    assert postures["POST", "/auth/logout"] == RoutePosture(
        method="POST",
        path="/api/v1/auth/logout",
        access="person",
        ways=("bearer", "cookie"),
        csrf=True,
    )
    assert postures["GET", "/rule"].permissions == ("image:create", "admin")
    assert not postures["GET", "/rule"].csrf
    assert (postures["WEBSOCKET", "/live"].access, postures["WEBSOCKET", "/live"].ways) == ("ticket", ("ticket",))
    assert postures["POST", "/auth/web/refresh"].csrf
    assert not any(method == "OPTIONS" for method, _ in postures)
    undeclared = [
        path for (_, path), each in postures.items() if each.access is None and not path.startswith("/schema")
    ]
    assert undeclared == ["/forgotten"]


def test_the_shields_refusals_are_documented(app: Litestar) -> None:
    """With those of the route under one status; only where something is sent for those of bodies."""
    paths = app.openapi_schema.to_schema()["paths"]
    refresh = paths["/api/v1/auth/refresh"]["post"]["responses"]
    assert {"403", "408", "413", "415", "504"} <= refresh.keys()
    assert "40000 kernel.bad_request; 40002 auth.header_refused" in refresh["400"]["description"]
    assert not {"408", "413", "415"} & paths["/api/v1/me"]["get"]["responses"].keys()

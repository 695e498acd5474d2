from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import msgspec
import pytest
from litestar import Litestar, Request, Router, get, post
from litestar.datastructures import UploadFile
from litestar.enums import RequestEncodingType
from litestar.params import Body, FromPath

from daydo_auth import Auth, NewKey, Password, Principal
from daydo_auth.litestar import (
    AuthPlugin,
    auth_router,
    authenticated,
    fresh,
    keys_router,
    live_ticket_handler,
    permitted,
    person,
    route_postures,
    step_up_handler,
    ticketed,
)
from daydo_auth.signing import sign
from daydo_kernel.litestar import KernelPlugin
from daydo_kernel.testing import ManualClock

GOOD = "Correct-Horse-7"


class TaskIn(msgspec.Struct):
    name: str


@post("/tasks/{place:str}", guards=[permitted("image:create")])
async def make_task(
    request: Request[Principal, Any, Any], place: FromPath[str], data: Annotated[TaskIn, Body()]
) -> list[Any]:
    return [request.user.way, place, data.name, request.query_params.getall("tag", [])]


@post("/uploads", guards=[authenticated])
async def upload(data: Annotated[dict[str, UploadFile], Body(media_type=RequestEncodingType.MULTI_PART)]) -> int:
    return len(await data["photo"].read())


@get("/secret", guards=[fresh(300)], sync_to_thread=False)
def secret() -> None:
    return None


@get("/mine", guards=[person], sync_to_thread=False)
def mine() -> None:
    return None


@get("/stream", guards=[ticketed], sync_to_thread=False)
def stream(request: Request[Principal, Any, Any]) -> str:
    return request.user.way


@pytest.fixture
async def auth(sqlite: Any, memory: Any, clock: ManualClock, configure: Any) -> AsyncIterator[Auth]:
    config = configure(default_permissions=("image:create", "image:read"))
    async with Auth(sqlite, memory, config, clock=clock) as auth:
        await auth.register(Password("a@x.cn", GOOD), subject="u_1")
        yield auth


@pytest.fixture
async def app(auth: Auth) -> Litestar:
    doors = [auth_router(auth), keys_router(auth), step_up_handler(auth), live_ticket_handler(auth)]
    # A second guard on the way down, as routers have them: the request must not count twice.
    tasks = Router("/", route_handlers=[make_task], guards=[authenticated])
    api = Router("/api/v1", route_handlers=[*doors, tasks, upload, secret, mine, stream])
    return Litestar([api], plugins=[KernelPlugin(), AuthPlugin(auth)], logging_config=None)


@pytest.fixture
async def client(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.test/api/v1") as client:
        yield client


@pytest.fixture
async def page(auth: Auth) -> dict[str, str]:
    """What a person who has just logged in sends."""
    return {"Authorization": f"Bearer {(await auth.login(Password('a@x.cn', GOOD))).access}"}


def signed(
    client: httpx.AsyncClient, key: NewKey, now_s: int, url: str, body: bytes, content_type: str = "application/json"
) -> httpx.Request:
    headers = {
        "content-type": content_type,
        "x-bce-content-sha256": hashlib.sha256(body).hexdigest(),
        "x-bce-nonce": secrets.token_hex(16),
    }
    request = client.build_request("POST", url, content=body, headers=headers)
    path, _, query = request.url.raw_path.partition(b"?")
    sent = [(name.lower(), value) for name, value in request.headers.raw]
    authorization = sign(key.secret, key.key.id, request.method, path, query, sent, now_s=now_s)
    request.headers["Authorization"] = authorization
    return request


async def test_a_signed_request_over_http(auth: Auth, client: httpx.AsyncClient, clock: ManualClock) -> None:
    """Signed with 汉字, blanks and percent signs all over it gets in once, and its body is still there."""
    key = await auth.keys.create("u_1", name="ci", scopes=["image:create"], kind="signing")
    now_s = clock.now_us() // 1_000_000
    body = '{"name": "抠图"}'.encode()
    request = signed(client, key, now_s, "/tasks/北 京%25?tag=a&tag=b+%2B%E6%B1%89", body)
    answer = await client.send(request)
    assert (answer.status_code, answer.json()) == (201, ["signature", "北 京%", "抠图", ["a", "b +汉"]])
    again = await client.send(request)
    assert (again.status_code, again.json()["code"]) == (401, 40111)
    assert "replayed" in again.json()["message"]
    tampered = signed(client, key, now_s, "/tasks/x", body)
    tampered.stream = httpx.ByteStream(b'{"name": "other!!!"}'[: len(body)])
    assert "body" in (await client.send(tampered)).json()["message"]


async def test_a_signed_upload(auth: Auth, client: httpx.AsyncClient, clock: ManualClock) -> None:
    """A form with a file that was read to compare its hash is read once more by the route."""
    key = await auth.keys.create("u_1", name="ci", scopes=["image:create"], kind="signing")
    form = client.build_request("POST", "/uploads", files={"photo": ("a.png", b"x" * 200_000)})
    body, content_type = form.read(), form.headers["content-type"]
    answer = await client.send(signed(client, key, clock.now_us() // 1_000_000, "/uploads", body, content_type))
    assert (answer.status_code, answer.text) == (201, "200000")


async def test_a_key_over_http(client: httpx.AsyncClient, page: dict[str, str]) -> None:
    """A person makes a key, a program uses it, the person sees and revokes it; its secret is shown once."""
    made = await client.post(
        "/api-keys", json={"name": "持续集成", "scopes": ["image:create"], "expires_in_s": 3600}, headers=page
    )
    assert made.status_code == 201
    new = made.json()["data"]
    assert set(new["key"]) == {"id", "kind", "name", "scopes", "works", "created_at", "expires_at"}
    program = {"Authorization": f"Bearer {new['secret']}"}
    answer = await client.post("/tasks/x", json={"name": "y"}, headers=program)
    assert (answer.status_code, answer.json()[0]) == (201, "key")
    listed = await client.get("/api-keys", headers=page)
    assert [each["id"] for each in listed.json()["data"]["items"]] == [new["key"]["id"]]
    assert new["secret"] not in listed.text
    for _ in range(2):
        assert (await client.delete(f"/api-keys/{new['key']['id']}", headers=page)).status_code == 200
    refused = await client.post("/tasks/x", json={"name": "y"}, headers=program)
    assert (refused.status_code, refused.json()["code"]) == (401, 40110)
    (listed_key,) = (await client.get("/api-keys", headers=page)).json()["data"]["items"]
    assert listed_key["works"] is False
    assert (await client.delete("/api-keys/dk_other", headers=page)).json()["code"] == 40402


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"scopes": ["admin"]}, 40301),
        ({"scopes": []}, 40000),
        ({"scopes": ["A b"]}, 40000),
        ({"name": ""}, 40000),
        ({"name": "a\0"}, 42204),
        ({"kind": "root"}, 40000),
        ({"expires_in_s": 1}, 40000),
        ({"subject": "u_2"}, 40000),
    ],
)
async def test_what_a_key_cannot_be_over_http(
    client: httpx.AsyncClient, page: dict[str, str], change: dict[str, Any], code: int
) -> None:
    """Whatever cannot be a key, or is more than one may, is a clear refusal."""
    answer = await client.post("/api-keys", json={"name": "ci", "scopes": ["image:read"], **change}, headers=page)
    assert answer.json()["code"] == code


async def test_keys_are_no_persons(auth: Auth, client: httpx.AsyncClient) -> None:
    """Sessions, keys and what needs a fresh proof are closed to keys and open to nobody; live tickets are open."""
    new = await auth.keys.create("u_1", name="ci", scopes=["image:create"])
    program = {"Authorization": f"Bearer {new.secret}"}
    closed = [
        ("GET", "/api-keys"),
        ("POST", "/api-keys"),
        ("DELETE", f"/api-keys/{new.key.id}"),
        ("POST", "/auth/step-up"),
        ("POST", "/auth/logout"),
        ("GET", "/auth/sessions"),
        ("DELETE", "/auth/sessions"),
        ("DELETE", "/auth/sessions/ses_1"),
        ("GET", "/secret"),
        ("GET", "/mine"),
    ]
    for method, path in closed:
        answer = await client.request(method, path, headers=program, json={} if method == "POST" else None)
        assert (answer.status_code, answer.json()["code"]) == (403, 40307), path
        assert (await client.request(method, path)).json()["code"] == 40101, path
    ticket = (await client.post("/live-tickets", headers=program)).json()["data"]["ticket"]
    assert (await client.get("/stream", params={"ticket": ticket})).text == "ticket"


async def test_step_up_over_http(client: httpx.AsyncClient, page: dict[str, str], clock: ManualClock) -> None:
    """Too old a proof is refused with its own code; after proving again the new access token passes."""
    clock.advance(300)
    assert (await client.get("/secret", headers=page)).json()["code"] == 40303
    assert (await client.get("/mine", headers=page)).status_code == 200
    for wrong, code in (
        ({"password": "Wrong-Horse-7"}, 40104),
        ({"code": "123456"}, 40109),
        ({}, 40000),
        ({"password": GOOD, "code": "123456"}, 40000),
    ):
        refused = await client.post("/auth/step-up", json={"login": "a@x.cn", **wrong}, headers=page)
        assert refused.json()["code"] == code
    proven = await client.post("/auth/step-up", json={"login": "a@x.cn", "password": GOOD}, headers=page)
    assert (proven.status_code, set(proven.json()["data"])) == (200, {"access_token", "expires_in_s"})
    new = {"Authorization": f"Bearer {proven.json()['data']['access_token']}"}
    assert (await client.get("/secret", headers=new)).status_code == 200
    assert (await client.get("/secret", headers=page)).json()["code"] == 40303


def test_postures_say_keys_and_freshness(app: Litestar) -> None:
    """The list of routes says which of them keys may call, and which want a fresh proof."""
    postures = {(each.method, each.path.removeprefix("/api/v1")): each for each in route_postures(app)}
    assert postures["POST", "/tasks/{place:str}"].ways == ("bearer", "cookie", "key", "signature")
    assert postures["GET", "/mine"].ways == postures["GET", "/secret"].ways == ("bearer", "cookie")
    assert (postures["GET", "/secret"].access, postures["GET", "/secret"].fresh_s) == ("person", 300)
    assert (postures["POST", "/api-keys"].fresh_s, postures["GET", "/api-keys"].fresh_s) == (900, 0)


def test_the_document_says_so_too(app: Litestar) -> None:
    """OpenAPI shows which schemes a route takes, and every status that a way in can end with."""
    schema = app.openapi_schema.to_schema()
    task, made = schema["paths"]["/api/v1/tasks/{place}"]["post"], schema["paths"]["/api/v1/api-keys"]["post"]
    assert task["security"] == [{"bearer": []}, {"cookie": []}, {"signature": []}]
    assert made["security"] == [{"bearer": []}, {"cookie": []}]
    assert {"401", "403", "503"} <= set(task["responses"])
    assert {"401", "403", "422"} <= set(made["responses"])
    assert "40111" in str(task["responses"]["401"])
    assert "40303" in str(made["responses"]["403"])

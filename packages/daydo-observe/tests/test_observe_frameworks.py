"""What the frameworks leave in the scope, and what they answer outside their own middleware."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import fastapi
import pytest
from litestar import Litestar, Request, Router, WebSocket, get, websocket
from litestar.exceptions import NotAuthorizedException
from litestar.response import Stream

from daydo_kernel.litestar import KernelPlugin
from daydo_observe.litestar import ObservePlugin

REQUESTS = "daydo_http_requests_total"


@get("/tasks/{task_id:int}", sync_to_thread=False)
def task(request: Request[Any, Any, Any]) -> dict[str, int]:
    return {"id": request.path_params["task_id"]}


@get("/broken", sync_to_thread=False)
def broken() -> None:
    raise RuntimeError


@get("/private", sync_to_thread=False)
def private() -> None:
    raise NotAuthorizedException


@get("/stream")
async def stream() -> Stream:
    async def ticks() -> Any:
        while True:
            yield b"tick"
            await asyncio.sleep(0)

    return Stream(ticks())


@websocket("/live")
async def live(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    await socket.send_text("hi")
    await socket.close(4000)


@pytest.fixture
def litestar() -> Litestar:
    api = Router("/api/v1", route_handlers=[task, broken, private, stream, live])
    return Litestar([api], plugins=[KernelPlugin()], openapi_config=None)


async def test_litestar_templates(house: Any, litestar: Litestar, get: Any) -> None:
    """A thousand ids are one route; what Litestar answers before its middleware is counted too."""
    app = house.observe.wrap(litestar)
    for number in range(3):
        await get(app, f"/api/v1/tasks/{number}")
    await get(app, "/nope")
    await get(app, "/api/v1/tasks/1", "DELETE")
    await get(app, "/api/v1/tasks/x")
    await get(app, "/api/v1/private")
    refused = await get(app, "/api/v1/broken")
    assert house.labels(REQUESTS) == {
        ("GET", "/api/v1/tasks/{task_id}", "200"),
        ("GET", "unrouted", "404"),
        ("DELETE", "unrouted", "405"),
        ("GET", "/api/v1/private", "401"),
        ("GET", "/api/v1/broken", "500"),
    }
    assert house.value(REQUESTS, "GET", "/api/v1/tasks/{task_id}", "200") == 3
    assert refused.json["request_id"] == refused.headers["x-request-id"]


async def test_litestar_client_leaves_a_stream(house: Any, litestar: Litestar, get: Any) -> None:
    """An endless stream whose client leaves is 499 on its route."""

    async def leaving() -> dict[str, str]:
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    await get(house.observe.wrap(litestar), "/api/v1/stream", receive=leaving)
    assert house.value(REQUESTS, "GET", "/api/v1/stream", "499") == 1


async def test_litestar_websocket(house: Any, litestar: Litestar, connect: Any) -> None:
    """A Litestar socket has its route, its close code and the request id in its handshake."""
    sent = await connect(house.observe.wrap(litestar), "/api/v1/live")
    assert b"x-request-id" in dict(sent[0]["headers"])
    assert house.value(REQUESTS, "WEBSOCKET", "/api/v1/live", "4000") == 1


async def test_litestar_leaves_logging_alone(house: Any) -> None:
    """The plugin enters the noun with the application, and the root logger stays as configure_logging left it."""
    root = logging.getLogger()
    before = list(root.handlers)
    app = Litestar([task], plugins=[ObservePlugin(house.observe)], openapi_config=None)
    async with app.lifespan():
        assert (await house.observe._ready({})).status == 200
    assert house.observe.draining
    assert root.handlers == before


async def test_fastapi_templates(house: Any, get: Any, connect: Any) -> None:
    """FastAPI keeps its route elsewhere; labels, 404, 405, 500 and sockets come out the same."""
    api = fastapi.FastAPI(openapi_url=None)
    router = fastapi.APIRouter(prefix="/api/v1")

    @router.get("/tasks/{task_id}")
    async def one(task_id: int) -> int:
        return task_id

    @router.get("/broken")
    async def fails() -> None:
        raise RuntimeError("the secret plan")

    @router.websocket("/live/{room}")
    async def room(socket: fastapi.WebSocket) -> None:
        await socket.accept()
        await socket.receive_text()

    api.include_router(router)
    app = house.observe.wrap(api)
    await get(app, "/api/v1/tasks/1")
    await get(app, "/api/v1/tasks/x")
    await get(app, "/api/v1/tasks/1", "DELETE")
    await get(app, "/nope")
    failed = await get(app, "/api/v1/broken")
    await connect(app, "/api/v1/live/7", {"type": "websocket.disconnect", "code": 1001})
    assert house.labels(REQUESTS) == {
        ("GET", "/api/v1/tasks/{task_id}", "200"),
        ("GET", "/api/v1/tasks/{task_id}", "422"),
        ("DELETE", "/api/v1/tasks/{task_id}", "405"),
        ("GET", "unrouted", "404"),
        ("GET", "/api/v1/broken", "500"),
        ("WEBSOCKET", "/api/v1/live/{room}", "1001"),
    }
    assert failed.status == 500
    assert b"plan" not in failed.body

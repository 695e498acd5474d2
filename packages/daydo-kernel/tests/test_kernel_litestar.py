"""The Litestar edge: one shape for every answer, the framework's own included, and no input makes a 500."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import pytest
from litestar import Litestar, WebSocket, get, post, websocket
from litestar.datastructures import UploadFile
from litestar.enums import RequestEncodingType
from litestar.exceptions import ClientException, WebSocketDisconnect
from litestar.params import Body
from litestar.testing import TestClient

from daydo_kernel import Envelope, NotFound, ok
from daydo_kernel.litestar import KernelPlugin, read_form, refusals, refuse_websockets


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """What the test route takes."""

    name: Annotated[str, msgspec.Meta(min_length=2)]
    count: int = 1


class Form(msgspec.Struct, forbid_unknown_fields=True):
    """What the form route takes."""

    file: UploadFile


@post("/orders", responses=refusals(NotFound))
async def order(data: Annotated[Order, Body()]) -> Envelope[Order]:
    return ok(data)


@post("/files", before_request=read_form)
async def upload(data: Annotated[Form, Body(media_type=RequestEncodingType.MULTI_PART)]) -> Envelope[int]:
    return ok(len(await data.file.read()))


@get("/broken")
async def broken() -> Envelope[str]:
    raise ValueError("a secret detail")


@get("/teapot")
async def teapot() -> Envelope[str]:
    raise ClientException("short and stout", status_code=418)


@websocket("/refusing")
async def refusing(socket: WebSocket[Any, Any, Any]) -> None:
    raise NotFound


@pytest.fixture
def client() -> Iterator[TestClient[Any]]:
    app = Litestar([order, upload, broken, teapot, refusing], plugins=[KernelPlugin()], logging_config=None)
    with TestClient(refuse_websockets(app), raise_server_exceptions=False) as client:  # type: ignore[arg-type]
        yield client


def test_an_answer_is_wrapped(client: TestClient[Any]) -> None:
    """Code 0, the payload in data."""
    answer = client.post("/orders", json={"name": "tea"})
    assert answer.status_code == 201
    assert (answer.json()["code"], answer.json()["data"]) == (0, {"name": "tea", "count": 1})


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        (b"", "body", "required"),
        (b"{", "body", "not valid JSON"),
        (b'{"name": "\xff"}', "body", "not valid JSON"),
        (b"[" * 10_000, "body", "nested too deeply"),
        (b"[1]", "body", "Must be object"),
        (b"{}", "name", "required"),
        (b'{"name": "x"}', "name", "at least 2"),
        (b'{"name": "tea", "size": 1}', "size", "not known"),
        (b'{"name": "tea", "count": []}', "count", "Must be int"),
    ],
)
def test_a_body_that_cannot_be_read_names_field_and_reason(
    client: TestClient[Any], body: bytes, field: str, said: str
) -> None:
    """400 in words a person understands, in the language asked for."""
    headers = {"Content-Type": "application/json", "Accept-Language": "en"}
    refused = client.post("/orders", content=body, headers=headers)
    assert (refused.status_code, refused.json()["error"]) == (400, "kernel.bad_request")
    [error] = refused.json()["errors"]
    assert error["field"] == field
    chinese = client.post("/orders", content=body, headers=headers | {"Accept-Language": "zh"}).json()["errors"][0]
    assert not chinese["message"].isascii()


def test_json_that_is_not_declared_as_json_is_415(client: TestClient[Any]) -> None:
    """A form or text that happens to be JSON is not read as JSON."""
    assert client.post("/orders", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415


@pytest.mark.parametrize(
    "part",
    [
        b'name="file"\r\n\r\n\xff',
        b'name="file"; filename=""\r\n\r\n\xff\x00',
        b'name="other"\r\n\r\n\xff',
        b'name="file"\r\nContent-Type: text/plain; charset=nope\r\n\r\ntext',
        b"name=\"file\"; filename*=utf-8''a%ff\r\n\r\nx",
    ],
)
def test_a_form_with_undecodable_text_is_400(client: TestClient[Any], part: bytes) -> None:
    """Parts that are not files are text, and text can be broken in many ways."""
    body = b"--B\r\nContent-Disposition: form-data; " + part + b"\r\n--B--\r\n"
    answer = client.post("/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=B"})
    assert answer.status_code == 400, answer.text


def test_the_frameworks_own_refusals_have_our_shape(client: TestClient[Any]) -> None:
    """404, 405 with Allow, and a status we have no class for."""
    assert client.get("/nothing").json()["error"] == "kernel.not_found"
    wrong_method = client.get("/orders")
    assert (wrong_method.status_code, wrong_method.json()["code"]) == (405, 40500)
    assert "POST" in wrong_method.headers["allow"]
    assert client.get("/teapot").json()["code"] == 41800


def test_an_unexpected_error_says_nothing_of_itself(client: TestClient[Any]) -> None:
    """500, and the detail stays in the log."""
    answer = client.get("/broken")
    assert (answer.status_code, answer.json()["error"]) == (500, "kernel.internal")
    assert "secret" not in answer.text


@pytest.mark.parametrize(("path", "name"), [("/refusing", "kernel.not_found"), ("/nothing", "kernel.not_found")])
def test_a_refused_websocket_has_a_code_and_a_name(client: TestClient[Any], path: str, name: str) -> None:
    """4000 + status, told after the handshake so that browsers learn it."""
    with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect(path) as socket:
        socket.receive_text()
    assert (closed.value.code, closed.value.detail) == (4404, name)


def test_refusals_are_documented() -> None:
    """Each status once, with the numbers and names behind it."""
    document = Litestar([order], plugins=[KernelPlugin()], logging_config=None).openapi_schema.to_schema()
    responses = document["paths"]["/orders"]["post"]["responses"]
    assert responses["404"]["description"] == "40400 kernel.not_found"
    assert {"400", "500"} <= responses.keys()

"""The gateway's side, the control API, and the port."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from daydo_kernel import NotStarted
from daydo_sandbox import LABEL, Fault, Sandbox, SandboxConfig
from daydo_sandbox.serving import serving


async def send(client: httpx.AsyncClient, sandbox: Sandbox, key: str, **changes: Any) -> httpx.Response:
    message = {"to": "13812345678", "text": "hello", "key": key} | changes
    return await client.post("/sms/messages", json=message, headers={"Authorization": f"Bearer {sandbox.sms.token}"})


async def arrived(client: httpx.AsyncClient, to: str = "") -> list[str]:
    items = (await client.get("/control/sms/messages", params={"to": to})).json()["items"]
    return [item["key"] for item in items]


async def test_a_message_arrives_once_per_key(client: httpx.AsyncClient, sandbox: Sandbox) -> None:
    """A repeat gets the first answer and no second message; lists are newest first."""
    first = (await send(client, sandbox, "k1")).json()
    assert first["status"] == "ok"
    assert (await send(client, sandbox, "k1")).json() == first
    await send(client, sandbox, "k2", to="+447700900123")
    assert await arrived(client) == ["k2", "k1"]
    assert await arrived(client, "13812345678") == ["k1"]
    await client.delete("/control/sms/messages")
    assert await arrived(client) == []


async def test_the_token_is_asked_for(client: httpx.AsyncClient, sandbox: Sandbox) -> None:
    """Without it, or with another, nothing is delivered."""
    message = {"to": "13812345678", "text": "hello", "key": "k"}
    for token in ({}, {"Authorization": "Bearer no"}, {"Authorization": sandbox.sms.token}):
        assert (await client.post("/sms/messages", json=message, headers=token)).status_code == 401
    assert sandbox.sms.messages() == []


@pytest.mark.parametrize("change", [{"to": "zhang"}, {"text": ""}, {"key": ""}, {"more": 1}, {"to": 1}], ids=str)
async def test_odd_messages(client: httpx.AsyncClient, sandbox: Sandbox, change: dict[str, Any]) -> None:
    """What is no message is refused."""
    assert (await send(client, sandbox, **{"key": "k"} | change)).status_code == 400


async def test_faults_of_the_gateway(client: httpx.AsyncClient, sandbox: Sandbox) -> None:
    """Refused inside HTTP 200; lost; twice; delivered although the answer says otherwise."""
    faults: list[dict[str, Any]] = [
        {"errcode": "limited"},
        {"lost": True},
        {"duplicate": True},
        {"status": 504, "late": True},
    ]
    for fault in faults:
        assert (await client.post("/control/faults", json={"api": "sms"} | fault)).status_code == 204
    answers = [await send(client, sandbox, f"k{number}") for number in range(5)]
    assert [answer.json()["status"] for answer in answers] == ["limited", "ok", "ok", "ok", "ok"]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 504, 200]
    assert await arrived(client) == ["k4", "k3", "k2", "k2"]


async def test_a_delay_holds_one_request(client: httpx.AsyncClient, sandbox: Sandbox) -> None:
    """Who waits does not hold up the next."""
    sandbox.inject("sms", Fault(delay_s=60))
    slow = asyncio.create_task(send(client, sandbox, "slow"))
    for _ in range(100):  # until it has taken the fault
        await asyncio.sleep(0)
    await send(client, sandbox, "quick")
    assert await arrived(client) == ["quick"]
    slow.cancel()


async def test_faults_are_cleared_and_bounded() -> None:
    """More than faults_max are refused; cleared ones never happen."""
    async with Sandbox(SandboxConfig(faults_max=1)) as sandbox:
        transport = httpx.ASGITransport(sandbox)
        async with httpx.AsyncClient(transport=transport, base_url="http://sandbox") as client:
            fault = {"api": "sms", "status": 500}
            statuses = [(await client.post("/control/faults", json=fault)).status_code for _ in range(2)]
            assert statuses == [204, 409]
            await client.delete("/control/faults")
            assert (await send(client, sandbox, "k")).status_code == 200


async def test_everything_is_labelled(client: httpx.AsyncClient) -> None:
    """Every answer says what it is, a 404 too."""
    for path in ("/", "/sns/jscode2session", "/control/sms/messages", "/nowhere"):
        assert (await client.get(path)).headers["x-sandbox"] == LABEL
    assert (await client.get("/")).json()["label"] == LABEL


async def test_asked_before_entry() -> None:
    """A sandbox that was not entered says so."""
    transport = httpx.ASGITransport(Sandbox())
    async with httpx.AsyncClient(transport=transport, base_url="http://sandbox") as client:
        with pytest.raises(NotStarted):
            await client.get("/")


def test_on_a_loopback_port() -> None:
    """It is there inside the block and gone after it; other addresses are refused."""
    with serving(Sandbox()) as url:
        assert httpx.get(url).json()["label"] == LABEL
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    with pytest.raises(ValueError, match="loopback"), serving(Sandbox(), host="0.0.0.0"):
        pass


async def test_reprs_say_nothing(sandbox: Sandbox) -> None:
    """Neither a number nor a secret shows."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(sandbox), base_url="http://sandbox") as client:
        await send(client, sandbox, "k", text="code 123456")
    shown = f"{sandbox.sms.messages()} {SandboxConfig(wechat_secret='s3cret', sms_token='t0ken')}"
    assert not any(secret in shown for secret in ("123456", "13812345678", "s3cret", "t0ken"))

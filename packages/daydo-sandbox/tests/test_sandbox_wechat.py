"""WeChat's side, as its table says."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from daydo_kernel.testing import ManualClock
from daydo_sandbox import Fault, Sandbox, SandboxConfig


def question(sandbox: Sandbox, code: str, **changes: str) -> dict[str, str]:
    good = {"appid": sandbox.wechat.appid, "secret": sandbox.wechat.secret, "js_code": code}
    return good | {"grant_type": "authorization_code"} | changes


async def ask(client: httpx.AsyncClient, sandbox: Sandbox, code: str, **changes: str) -> Any:
    answer = await client.get("/sns/jscode2session", params=question(sandbox, code, **changes))
    assert answer.status_code == 200
    return answer.json()


async def test_a_code_names_its_person_once(client: httpx.AsyncClient, sandbox: Sandbox) -> None:
    """The first question gets openid and session key without an errcode; the second is told that it comes late."""
    code = sandbox.wechat.issue_code("o_zhang", unionid="union_zhang")
    first = await ask(client, sandbox, code)
    assert (first["openid"], first["unionid"]) == ("o_zhang", "union_zhang")
    assert first["session_key"]
    assert "errcode" not in first
    assert (await ask(client, sandbox, code))["errcode"] == 40163


async def test_strangers_are_different(client: httpx.AsyncClient, sandbox: Sandbox) -> None:
    """A code without an openid is somebody new, without a unionid."""
    one, two = [await ask(client, sandbox, sandbox.wechat.issue_code()) for _ in range(2)]
    assert one["openid"] != two["openid"]
    assert "unionid" not in one


async def test_a_code_expires(client: httpx.AsyncClient, sandbox: Sandbox, clock: ManualClock) -> None:
    """Five minutes, to the moment."""
    old, older = sandbox.wechat.issue_code(), sandbox.wechat.issue_code()
    clock.advance(299.999)
    assert "openid" in await ask(client, sandbox, old)
    clock.advance(0.001)
    assert (await ask(client, sandbox, older))["errcode"] == 40029


@pytest.mark.parametrize(
    ("changes", "errcode"),
    [
        ({"appid": "wx_other"}, 40013),
        ({"secret": "guess"}, 40125),
        ({"secret": "é"}, 40125),
        ({"appid": ""}, 41002),
        ({"secret": ""}, 41004),
        ({"js_code": ""}, 41008),
        ({"js_code": "unknown"}, 40029),
        ({"grant_type": "client_credential"}, 40002),
    ],
    ids=str,
)
async def test_what_is_asked_wrongly(
    client: httpx.AsyncClient, sandbox: Sandbox, changes: dict[str, str], errcode: int
) -> None:
    """Each mistake has its number, and leaves the code good."""
    code = sandbox.wechat.issue_code()
    assert (await ask(client, sandbox, code, **changes))["errcode"] == errcode
    assert "openid" in await ask(client, sandbox, code)


async def test_a_burned_code_is_used(client: httpx.AsyncClient, sandbox: Sandbox) -> None:
    """Burning is using without asking; it works once."""
    code = sandbox.wechat.issue_code()
    assert (await client.delete(f"/control/wechat/codes/{code}")).status_code == 204
    assert (await ask(client, sandbox, code))["errcode"] == 40163
    assert (await client.delete(f"/control/wechat/codes/{code}")).status_code == 404


async def test_the_oldest_codes_are_forgotten() -> None:
    """Memory is bounded."""
    async with Sandbox(SandboxConfig(wechat_codes_max=2)) as sandbox:
        codes = [sandbox.wechat.issue_code() for _ in range(3)]
        assert [sandbox.wechat.burn(code) for code in codes] == [False, True, True]


async def test_faults_come_in_order_and_go(client: httpx.AsyncClient, sandbox: Sandbox) -> None:
    """Busy twice, then a proxy's page, then as if nothing had been."""
    code = sandbox.wechat.issue_code()
    sandbox.inject("wechat", Fault(errcode=-1, times=2))
    sandbox.inject("wechat", Fault(status=502, body="<html>"))
    assert [(await ask(client, sandbox, code))["errcode"] for _ in range(2)] == [-1, -1]
    broken = await client.get("/sns/jscode2session", params=question(sandbox, code))
    assert (broken.status_code, broken.text) == (502, "<html>")
    assert "openid" in await ask(client, sandbox, code)


async def test_late_and_duplicate(client: httpx.AsyncClient, sandbox: Sandbox) -> None:
    """A late fault has used the code up, an early one has not; duplicate forgives a used one."""
    code = sandbox.wechat.issue_code("o_1")
    sandbox.inject("wechat", Fault(body_bytes=10, late=True))
    assert (await client.get("/sns/jscode2session", params=question(sandbox, code))).content == b" " * 10
    assert (await ask(client, sandbox, code))["errcode"] == 40163
    sandbox.inject("wechat", Fault(duplicate=True))
    assert (await ask(client, sandbox, code))["openid"] == "o_1"

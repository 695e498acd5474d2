"""The clients of the outside world against its simulators: what one says the other understands, faults included."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from daydo_auth import (
    Auth,
    AuthConfig,
    Code,
    CodeWrong,
    RiskRefused,
    SenderUnavailable,
    WeChatCode,
    WeChatCodeInvalid,
    WeChatUnavailable,
)
from daydo_auth.wechat import WeChat, WeChatConfig
from daydo_db import Database, migrate
from daydo_redis import Redis, RedisConfig
from daydo_sandbox import Fault, Sandbox
from reference_app.main import compose
from reference_app.outside import outside_world
from reference_app.settings import SettingsInvalid, load_settings
from reference_app.sms import BODY_BYTES_MAX, SmsConfig, SmsRefused, SmsSender

PHONE = "13812345678"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
async def sms(sandbox: Sandbox) -> AsyncIterator[SmsSender]:
    config = SmsConfig(url="http://sandbox/sms/messages", token=sandbox.sms.token)
    async with SmsSender(config, transport=httpx2.ASGITransport(sandbox)) as sms:
        yield sms


@pytest.fixture
async def wechat(sandbox: Sandbox) -> AsyncIterator[WeChat]:
    config = WeChatConfig(appid=sandbox.wechat.appid, secret=sandbox.wechat.secret, base_url="http://sandbox")
    async with WeChat(config, transport=httpx2.ASGITransport(sandbox)) as wechat:
        yield wechat


@pytest.fixture
async def auth(sms: SmsSender, wechat: WeChat) -> AsyncIterator[Auth]:
    config = AuthConfig(keys={"k": "key-0123456789-abcdefghijklmnopqrst"}, pepper="pepper-0123456789-abcdefghijklmnop")
    async with Database("sqlite://") as db, Redis("embedded://memory", RedisConfig(command_timeout_s=5)) as redis:
        await migrate(db, "daydo_auth")
        async with Auth(db, redis, config, senders={"phone": sms}, wechat=wechat) as auth:
            yield auth


def code_on(sandbox: Sandbox) -> Code:
    """The last code that has arrived on the phone."""
    found = re.search(r"[0-9]{6}", sandbox.sms.messages(PHONE)[0].text)
    assert found
    return Code(PHONE, found[0])


async def test_a_code_arrives_and_is_good(auth: Auth, sandbox: Sandbox) -> None:
    """From the gateway to a session; the text says for what and how long."""
    await auth.codes.send(f"+86{PHONE}", "bind")
    assert re.fullmatch(
        r"【daydo】绑定手机验证码 [0-9]{6}，5 分钟内有效。请勿告诉他人。", sandbox.sms.messages(PHONE)[0].text
    )
    await auth.link(await auth.prove(code_on(sandbox), purpose="bind"), subject="u_1")


async def test_wechat_from_code_to_session(auth: Auth, sandbox: Sandbox) -> None:
    """Issued, used, replayed and burned codes mean what they should."""
    await auth.link(await auth.prove(WeChatCode(sandbox.wechat.issue_code("o_1", unionid="u"))), subject="u_1")
    code = sandbox.wechat.issue_code("o_1")
    assert (await auth.login(WeChatCode(code))).subject == "u_1"
    burned = sandbox.wechat.issue_code("o_1")
    sandbox.wechat.burn(burned)
    for spent in (code, burned, "never-issued"):
        with pytest.raises(WeChatCodeInvalid):
            await auth.login(WeChatCode(spent))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(errcode=-1, times=2), WeChatUnavailable),
        (Fault(errcode=45011), WeChatUnavailable),
        (Fault(errcode=40226), RiskRefused),
        (Fault(errcode="40029"), WeChatCodeInvalid),
        (Fault(body="<html>"), WeChatUnavailable),
        (Fault(body='{"openid": 7}'), WeChatUnavailable),
        (Fault(body_bytes=1_000_000), WeChatUnavailable),
        (Fault(status=502, late=True), WeChatUnavailable),
    ],
    ids=str,
)
async def test_wechat_in_trouble(auth: Auth, sandbox: Sandbox, fault: Fault, error: type[Exception]) -> None:
    """Each fault is one of our errors."""
    code = WeChatCode(sandbox.wechat.issue_code("o_1"))
    sandbox.inject("wechat", fault)
    with pytest.raises(error):
        await auth.prove(code)


async def test_wechat_is_busy_once(auth: Auth, sandbox: Sandbox) -> None:
    """The second attempt succeeds with the same code."""
    sandbox.inject("wechat", Fault(errcode=-1))
    assert (await auth.prove(WeChatCode(sandbox.wechat.issue_code("o_1")))).login == "o_1"


async def test_a_slow_wechat_is_left(sandbox: Sandbox) -> None:
    """Within timeout_s, whatever it is doing."""
    side = sandbox.wechat
    config = WeChatConfig(appid=side.appid, secret=side.secret, base_url="http://sandbox", timeout_s=0.05)
    sandbox.inject("wechat", Fault(delay_s=60))
    async with WeChat(config, transport=httpx2.ASGITransport(sandbox)) as wechat:
        with pytest.raises(WeChatUnavailable):
            await wechat.code2session(side.issue_code())


@pytest.mark.parametrize("fault", [Fault(errcode="limited"), Fault(status=400), Fault(status=429)], ids=str)
async def test_a_refused_message_leaves_no_code(auth: Auth, sms: SmsSender, sandbox: Sandbox, fault: Fault) -> None:
    """Refused inside HTTP 200 or outside: nothing arrives."""
    sandbox.inject("sms", fault)
    with pytest.raises(SenderUnavailable):
        await auth.codes.send(PHONE, "login")
    assert sandbox.sms.messages() == []
    assert sms._messages["refused"].value == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=504, late=True),
        Fault(body="ok", late=True),
        Fault(body='{"status": 1}', late=True),
        Fault(body_bytes=BODY_BYTES_MAX + 1, late=True),
    ],
    ids=str,
)
async def test_a_message_that_may_have_been_sent_is_good(
    auth: Auth, sms: SmsSender, sandbox: Sandbox, fault: Fault
) -> None:
    """It was posted once, it arrived, and its code works though the client was told to wait."""
    sandbox.inject("sms", fault)
    with pytest.raises(SenderUnavailable):
        await auth.codes.send(PHONE, "login")
    assert len(sandbox.sms.messages()) == 1
    assert (await auth.prove(code_on(sandbox))).login == PHONE
    assert sms._messages["unknown"].value == 1


async def test_a_gateway_that_delivers_twice(auth: Auth, sandbox: Sandbox) -> None:
    """Two messages hold one code, which is good once."""
    sandbox.inject("sms", Fault(duplicate=True))
    await auth.codes.send(PHONE, "login")
    one, two = sandbox.sms.messages(PHONE)
    assert one.text == two.text
    await auth.prove(code_on(sandbox))
    with pytest.raises(CodeWrong):
        await auth.prove(code_on(sandbox))


async def test_nobody_is_there(caplog: Any) -> None:
    """No connection means that nothing was sent, and is said so; neither text nor token is logged."""
    config = SmsConfig(url="http://127.0.0.1:1/sms", token="t0ken")
    with caplog.at_level(logging.DEBUG):
        async with SmsSender(config) as sms:
            with pytest.raises(SmsRefused, match="ConnectError"):
                await sms.send(PHONE, "123456", "login", key="k", ttl_s=300)
    for secret in (PHONE, "123456", "t0ken"):
        assert secret not in f"{caplog.text} {config!r}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Litestar's, of how routes name their body
def test_the_service_is_wired_to_it(tmp_path: Path) -> None:
    """The environment of the simulated world makes a service with a gateway and WeChat; without it there is neither."""
    nowhere = Path("/nonexistent")
    with outside_world() as (sandbox, environment):
        settings = load_settings(environment | {"DAYDO_DATA_DIR": str(tmp_path)}, dotenv=nowhere)
        assert (settings.sms.token, settings.wechat.appid) == (sandbox.sms.token, sandbox.wechat.appid)
        auth = compose(settings).routes.state["daydo_auth"]
        assert auth._proofs._wechat.appid == sandbox.wechat.appid
        assert set(auth.codes._senders) == {"phone"}
    bare = compose(load_settings({"DAYDO_DATA_DIR": str(tmp_path)}, dotenv=nowhere)).routes.state["daydo_auth"]
    assert (bare._proofs._wechat, bare.codes._senders) == (None, {})


def test_half_of_wechat_is_a_mistake(tmp_path: Path) -> None:
    """An appid without its secret does not start, and no secret is shown."""
    half = {"DAYDO_DATA_DIR": str(tmp_path), "DAYDO_WECHAT__SECRET": "s3cret"}
    with pytest.raises(SettingsInvalid, match="DAYDO_WECHAT__APPID") as refused:
        load_settings(half, dotenv=Path("/nonexistent"))
    assert "s3cret" not in str(refused.value)
    with pytest.raises(SettingsInvalid) as refused:
        load_settings(half | {"DAYDO_SMS__TOKEN": "two words"}, dotenv=Path("/nonexistent"))
    assert "two words" not in str(refused.value)

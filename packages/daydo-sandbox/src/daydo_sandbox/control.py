"""The routes: the providers' own, and ``/control`` for whoever runs the test or the demo. Litestar."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from litestar import Litestar, Request, Response, Router, delete, get, post
from litestar.exceptions import HTTPException, NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import Body, PathParameter, QueryParameter
from litestar.types import ASGIApp

from daydo_kernel import Counter

from . import wechat
from .faults import Api, Fault, Faults
from .sms import Message, MessageIn, SmsAnswer, SmsSimulator
from .wechat import WeChatSimulator

_TEXT = "text/plain"
_JSON = "application/json"
_NO_FAULT = Fault()


class CodeIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For whom a code is; without ``openid`` for somebody new."""

    openid: str = ""
    unionid: str = ""


class CodeOut(msgspec.Struct, frozen=True):
    """What ``wx.login`` would have returned."""

    code: str


class FaultIn(Fault, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fault and whose it is."""

    api: Api


class Messages(msgspec.Struct, frozen=True):
    """What has arrived, newest first."""

    items: list[Message]


class Simulators(msgspec.Struct, frozen=True):
    """What the routes play with."""

    wechat: WeChatSimulator
    sms: SmsSimulator
    faults: Faults
    requests: dict[Api, Counter]

    async def meet(self, api: Api) -> Fault:
        """The fault of this request, waited out; one that does nothing where there is none."""
        self.requests[api].inc()
        fault = self.faults.take(api) or _NO_FAULT
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        return fault


def make_app(label: str, simulators: Simulators) -> ASGIApp:
    """All routes as one application."""

    @get("/", sync_to_thread=False)
    def home() -> dict[str, str]:
        return {"label": label, "wechat": "/sns/jscode2session", "sms": "/sms/messages", "control": "/control"}

    parts = (_codes, _messages, _faults)
    control = Router("/control", route_handlers=[route for part in parts for route in part(simulators)])
    return Litestar([home, *_providers(simulators), control], openapi_config=None, logging_config=None)


def _providers(simulators: Simulators) -> list[HTTPRouteHandler]:
    # WeChat names its JSON text/plain.
    @get("/sns/jscode2session", media_type=_TEXT)
    async def jscode2session(request: Request[Any, Any, Any]) -> Response[bytes]:
        fault = await simulators.meet("wechat")
        said: Any = {}
        if fault.late or not fault.answers:
            said = simulators.wechat.answer(dict(request.query_params.items()), fault)
        if fault.errcode is not None:
            said = wechat.error(fault.errcode)
        return _answer(said, fault, _TEXT)

    @post("/sms/messages", status_code=200)
    async def send_sms(data: Annotated[MessageIn, Body()], request: Request[Any, Any, Any]) -> Response[bytes]:
        fault = await simulators.meet("sms")
        if not simulators.sms.knows(request.headers.get("authorization", "")):
            return _answer(SmsAnswer("unauthorized"), Fault(status=401), _JSON)
        said = SmsAnswer("failed")
        if fault.late or not fault.answers:
            said = simulators.sms.accept(data, fault)
        if fault.errcode is not None:
            said = SmsAnswer(str(fault.errcode))
        return _answer(said, fault, _JSON)

    return [jscode2session, send_sms]


def _codes(simulators: Simulators) -> list[HTTPRouteHandler]:
    @post("/wechat/codes", sync_to_thread=False)
    def issue_code(data: Annotated[CodeIn, Body()]) -> CodeOut:
        return CodeOut(simulators.wechat.issue_code(data.openid, unionid=data.unionid))

    @delete("/wechat/codes/{code:str}", sync_to_thread=False)
    def burn_code(code: Annotated[str, PathParameter()]) -> None:
        if not simulators.wechat.burn(code):
            raise NotFoundException("no such code, or it is used or expired")

    return [issue_code, burn_code]


def _messages(simulators: Simulators) -> list[HTTPRouteHandler]:
    @get("/sms/messages", sync_to_thread=False)
    def list_messages(to: Annotated[str, QueryParameter()] = "") -> Messages:
        return Messages(simulators.sms.messages(to))

    @delete("/sms/messages", sync_to_thread=False)
    def clear_messages() -> None:
        simulators.sms.clear()

    return [list_messages, clear_messages]


def _faults(simulators: Simulators) -> list[HTTPRouteHandler]:
    @post("/faults", status_code=204, sync_to_thread=False)
    def inject(data: Annotated[FaultIn, Body()]) -> None:
        values = {name: getattr(data, name) for name in Fault.__struct_fields__}
        try:
            simulators.faults.inject(data.api, Fault(**values))
        except ValueError as error:
            raise HTTPException(str(error), status_code=409) from None

    @delete("/faults", sync_to_thread=False)
    def clear_faults() -> None:
        simulators.faults.clear()

    return [inject, clear_faults]


def _answer(said: Any, fault: Fault, media_type: str) -> Response[bytes]:
    body = msgspec.json.encode(said) if fault.raw is None else fault.raw
    return Response(body, media_type=media_type, status_code=fault.status)

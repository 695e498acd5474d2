"""The Litestar edge: every answer in the house's shape, every refusal documented. Extra: ``[litestar]``.

``Litestar(route_handlers, plugins=[KernelPlugin()])`` and, for WebSockets, ``refuse_websockets(app)`` around it.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from litestar.config.app import AppConfig
from litestar.connection import Request
from litestar.datastructures import FormMultiDict
from litestar.enums import ScopeType
from litestar.exceptions import (
    ClientException,
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    ValidationException,
)
from litestar.openapi.datastructures import ResponseSpec
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.response import Response
from litestar.routes import BaseRoute, HTTPRoute
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from .envelope import ErrorEnvelope, render
from .errors import (
    BadRequest,
    DaydoError,
    FieldError,
    InternalError,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    RequestRefused,
    UnsupportedMediaType,
)
from .fields import field_error

log = logging.getLogger("daydo")
_REFUSAL = "daydo_refusal"


class ApiRequest(Request[Any, Any, Any]):
    """A request whose JSON body is read strictly: declared as JSON, valid UTF-8, of bounded depth."""

    async def json(self) -> Any:
        """The decoded body.

        Raises:
            UnsupportedMediaType: the Content-Type does not say JSON.
            BadRequest: the body is not JSON, or nests deeper than the decoder goes.
        """
        media_type = self.content_type[0]
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise UnsupportedMediaType()
        try:
            return msgspec.json.decode(await self.body())
        except RecursionError:
            nested = FieldError("body", "JSON 嵌套过深", "The JSON is nested too deeply")
            raise BadRequest(fields=(nested,)) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(fields=(field_error(f"JSON is malformed: {error}"),)) from None

    async def form(self) -> FormMultiDict:
        """The decoded form.

        Raises:
            BadRequest: a text part is not in the encoding it names, or the form is cut off.
        """
        try:
            return await super().form()
        except (UnicodeDecodeError, LookupError):
            part = FieldError("body", "表单中有无法解码的文本", "A part of the form is text that cannot be decoded")
            raise BadRequest(fields=(part,)) from None


async def read_form(request: Request[Any, Any, Any]) -> None:
    """The ``before_request=`` of a route that takes a form: Litestar's own reading of it is less careful."""
    await request.form()


class KernelPlugin(InitPlugin, ReceiveRoutePlugin):
    """Renders every exception, the framework's own included, and documents refusals as they are sent."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        app_config.request_class = ApiRequest
        app_config.exception_handlers = {HTTPException: _answer, Exception: _answer, **app_config.exception_handlers}
        app_config.after_exception.append(_remember)
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        if not isinstance(route, HTTPRoute):
            return
        for handler in route.route_handlers:
            if handler.include_in_schema is not False:
                handler.responses = {**refusals(BadRequest, InternalError), **(handler.responses or {})}


def refusals(*errors: type[DaydoError]) -> dict[int, ResponseSpec]:
    """The ``responses=`` of a route that may raise ``errors``: one entry a status, naming them."""
    by_status: dict[int, list[type[DaydoError]]] = {}
    for error in errors:
        by_status.setdefault(error.code // 100, []).append(error)
    return {
        status: ResponseSpec(
            ErrorEnvelope,
            description="; ".join(f"{error.code} {error.name}" for error in group),
            generate_examples=False,
        )
        for status, group in by_status.items()
    }


def refuse_websockets(app: ASGIApp) -> ASGIApp:
    """Close a refused WebSocket with 4000 + HTTP status (4401, 4404, …) and the error's dotted name.

    The handshake is accepted first: a browser learns a close code only from an open socket.
    """

    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.WEBSOCKET:
            await app(scope, receive, send)
            return
        accepted = False

        async def send_refusal(message: Message) -> None:
            nonlocal accepted
            refusal = scope.get(_REFUSAL)
            if message["type"] == "websocket.accept":
                accepted = True
            elif message["type"] == "websocket.close" and isinstance(refusal, DaydoError):
                if not accepted:
                    await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
                message = {"type": "websocket.close", "code": 4000 + refusal.status, "reason": refusal.name}
            await send(message)

        await app(scope, receive, send_refusal)

    return refusing


def translate(error: Exception) -> DaydoError:
    """Litestar's exceptions as ours; anything unexpected is an :class:`InternalError`."""
    match error:
        case DaydoError():
            return error
        case NotFoundException():
            return NotFound()
        case MethodNotAllowedException():
            return MethodNotAllowed()
        case ValidationException():
            return BadRequest(fields=_fields(error))
        case HTTPException(status_code=413):
            return PayloadTooLarge()
        case ClientException(status_code=400):
            return BadRequest(fields=(field_error(error.detail),))
        case HTTPException() if error.status_code < 500:
            return RequestRefused()
        case _:
            return InternalError()


def _fields(error: ValidationException) -> tuple[FieldError, ...]:
    extra = error.extra if isinstance(error.extra, list) else []
    return tuple(_field(item.get("key", ""), item["message"]) for item in extra) or (field_error(error.detail),)


def _field(key: str, message: str) -> FieldError:
    # Litestar says a missing argument as a KeyError's text, and calls the whole body "data".
    name = "body" if key == "data" else key.removeprefix("data.")
    return field_error("missing required field" if message == repr(key) else message, name)


def _answer(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    refusal = translate(error)
    if refusal.status == 500:
        log.error("%s %s failed", request.method, request.scope.get("path_template", "?"), exc_info=error)
    other = error.status_code if isinstance(refusal, RequestRefused) and isinstance(error, HTTPException) else 0
    rendered = render(refusal, status=other)
    headers = {**(getattr(error, "headers", None) or {}), **rendered.headers}
    return Response(rendered.body, status_code=rendered.status, headers=headers, media_type=headers.pop("content-type"))


async def _remember(error: Exception, scope: Scope) -> None:
    scope[_REFUSAL] = translate(error)  # type: ignore[literal-required]

"""Refusing before reading: under overload, parsing a request costs more than there is.

In Python a quarter of what a small request costs is spent before any handler knows of it: parsing, context, routing. A
service that is offered five times its load would spend all its time on saying no. So while the shedder feels pressure,
a request that has come as one whole packet is looked at as bytes, and refused as bytes. What this cannot tell at a
glance (a part of a request, an upgrade, several at once) goes the usual way, and is shed by the plugin. Health and
metrics are never refused.

Whether somebody is logged in, the bytes only claim; the plugin looks at the token, and asks the shedder again where the
claim was false. Refusals here are in ``daydo_traffic_shedder_requests_total{outcome="shed"}`` alone, not among the HTTP
metrics, where answers that take no time would make the service look the quicker the more it refuses. They have the
security headers, but none of CORS: a page of another site sees a failed request in place of a 503.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

import h11

from daydo_auth.asgi import ShieldConfig, security_headers
from daydo_auth.cookies import ACCESS_COOKIE
from daydo_kernel import negotiate_locale, new_id, render
from daydo_traffic import Overloaded, Priority, Shedder, Visit
from daydo_traffic.asgi import VISIT

from .http_protocol import HouseProtocol

_ALWAYS = (b"GET /health", b"GET /metrics", b"HEAD ")  # an answer to HEAD has no body: not worth a second way
_UNUSUAL = (b"\r\nupgrade:", b"\r\ntransfer-encoding:", b"\r\nexpect:")
_SIGNS_OF_A_USER = (b"\r\nauthorization:", ACCESS_COOKIE.lower().encode() + b"=")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,12})[ \t]*(?=\r\n|$)")
_LANGUAGE = re.compile(rb"\r\naccept-language:[ \t]*([^\r\n]*)")
_SAID_ALWAYS = [
    *(f"{name.decode()}: {value.decode()}" for name, value in security_headers(ShieldConfig())),
    "cache-control: no-store",
]


def front_door(shedder: Shedder) -> type[HouseProtocol]:
    """The ``http=`` of a uvicorn whose requests pass ``shedder`` first."""
    return type("FrontDoor", (_FrontDoor,), {"shedder": shedder})


class _FrontDoor(HouseProtocol):
    shedder: Shedder
    _visit: Visit | None = None

    def data_received(self, data: bytes) -> None:
        if self.shedder.pressure > 0.0 and self._is_between_requests() and (priority := claimed(data)) is not None:
            try:
                self._visit = self.shedder.admit(priority)
            except Overloaded as error:
                self._refuse(error, data)
                return
            self.app_state = {**self.app_state, VISIT: self._visit}
        super().data_received(data)

    def on_response_complete(self) -> None:
        self._end_visit()  # before: what comes next may be in the buffer already
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_visit()
        super().connection_lost(exc)

    def _end_visit(self) -> None:
        if self._visit is not None:
            self._visit.leave()
            self._visit = None
            self.app_state = {name: value for name, value in self.app_state.items() if name != VISIT}

    def _is_between_requests(self) -> bool:
        conn = self.conn
        return conn.our_state is conn.their_state is h11.IDLE and not conn.trailing_data[0]

    def _refuse(self, error: Overloaded, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._head_is_here()  # whole, though nobody has parsed it
        self.transport.write(refusal(error, data))
        if b"\r\nconnection: close" in head_of(data):
            self.transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )


def claimed(data: bytes) -> Priority | None:
    """What one whole request claims to be; None where these bytes are no such thing, or are never refused."""
    _, end, body = data.partition(b"\r\n\r\n")
    if not end or data.startswith(_ALWAYS):
        return None
    head = head_of(data)
    if b" http/1.1\r\n" not in head or any(header in head for header in _UNUSUAL):
        return None
    lengths = _LENGTH.findall(head)
    if len(lengths) > 1 or len(body) != (int(lengths[0]) if lengths else 0):
        return None
    return Priority.HIGH if any(sign in head for sign in _SIGNS_OF_A_USER) else Priority.NORMAL


def head_of(data: bytes) -> bytes:
    """What stands before the body, in lower case."""
    return data.partition(b"\r\n\r\n")[0].lower()


def refusal(error: Overloaded, data: bytes) -> bytes:
    """The whole answer, in the language that ``data`` asks for."""
    language = _LANGUAGE.search(head_of(data))
    request_id = new_id("req")
    rendered = render(error, negotiate_locale(language[1].decode("latin-1") if language else ""), request_id)
    headers: dict[str, Any] = {
        **rendered.headers,
        "content-length": len(rendered.body),
        "x-request-id": request_id,
    }
    lines = [f"HTTP/1.1 {rendered.status} {HTTPStatus(rendered.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, *_SAID_ALWAYS, "", ""]).encode("latin-1") + rendered.body

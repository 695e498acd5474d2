"""Refusing before reading: under overload, parsing a request costs more than there is.

In Python a quarter of what a small request costs is spent before any handler knows of it: parsing, context, routing. A
service that is offered five times its load would spend all its time on saying no. So while the shedder feels pressure,
a request that has come as one whole packet is looked at as bytes, and refused by bytes that are made once a second.
What this cannot tell at a glance (a part of a request, an upgrade, several at once) goes the usual way, and is shed by
the plugin. Health and metrics are never refused.

Whether somebody is logged in, the bytes only claim; the plugin looks at the token, and asks the shedder again where the
claim was false. Refusals here are in ``daydo_traffic_shedder_requests_total{outcome="shed"}`` alone, not among the HTTP
metrics, where answers that take no time would make the service look the quicker the more it refuses. Those of one
second share a request id, and one line in the log that has it. They have the security headers, but none of CORS: a page
of another site sees a failed request in place of a 503.
"""

from __future__ import annotations

import logging
import re
import time
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import h11

from daydo_auth.asgi import ShieldConfig, security_headers
from daydo_auth.cookies import ACCESS_COOKIE
from daydo_kernel import negotiate_locale, new_id, render
from daydo_traffic import Overloaded, Priority, Shedder, Visit
from daydo_traffic.asgi import VISIT

from .http_protocol import HouseProtocol

log = logging.getLogger("daydo")

_ALWAYS = (b"GET /health", b"GET /metrics", b"HEAD ")  # an answer to HEAD has no body: not worth a second way
_UNUSUAL = re.compile(rb"\r\n(?:upgrade|transfer-encoding|expect):")
_SIGN_OF_A_USER = re.compile(rb"\r\nauthorization:|%b=" % re.escape(ACCESS_COOKIE.lower().encode()))
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,12})[ \t]*(?=\r\n|$)")
_LANGUAGE = re.compile(rb"\r\naccept-language:[ \t]*([^\r\n]{0,99})")
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
        if self.shedder.pressure > 0.0 and self._is_between_requests() and (head := ordinary(data)):
            priority = claimed(head)
            if not self.shedder.try_enter(priority):
                self._refuse(head)
                return
            self._visit = Visit(self.shedder, priority)
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

    def _refuse(self, head: bytes) -> None:
        self._unset_keepalive_if_required()
        self._head_is_here()  # whole, though nobody has parsed it
        language = _LANGUAGE.search(head)
        locale = _locale(language[1]) if language is not None else ""
        self.transport.write(refusal(locale, self.shedder.config.retry_after_s, int(time.time())))
        if b"\r\nconnection: close" in head:
            self.transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )


def ordinary(data: bytes) -> bytes:
    """The head, in lower case, of what is one whole request; b"" where it is no such thing, or is never refused."""
    end = data.find(b"\r\n\r\n")
    if end < 0 or data.startswith(_ALWAYS):
        return b""
    head = data[:end].lower()
    if b" http/1.1\r\n" not in head or _UNUSUAL.search(head):
        return b""
    lengths = _LENGTH.findall(head)
    if len(lengths) > 1 or len(data) - end - 4 != (int(lengths[0]) if lengths else 0):
        return b""
    return head


def claimed(head: bytes) -> Priority:
    """What a request claims to be."""
    return Priority.HIGH if _SIGN_OF_A_USER.search(head) else Priority.NORMAL


@lru_cache(maxsize=64)
def _locale(language: bytes) -> str:
    return negotiate_locale(language.decode("latin-1"))


@lru_cache(maxsize=4)
def refusal(locale: str, retry_after_s: float, second: int) -> bytes:
    """The whole answer to all who are refused within this ``second``; the log has its request id."""
    request_id = new_id("req")
    log.warning("overloaded: requests are refused, in this second with the id %s", request_id)
    rendered = render(Overloaded(retry_after_s=retry_after_s), locale, request_id)
    headers: dict[str, Any] = {
        **rendered.headers,
        "content-length": len(rendered.body),
        "x-request-id": request_id,
    }
    lines = [f"HTTP/1.1 {rendered.status} {HTTPStatus(rendered.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, *_SAID_ALWAYS, "", ""]).encode("latin-1") + rendered.body

"""HTTP/1.1 as this service speaks it: uvicorn's, with two holes closed that no ASGI application can reach.

What is no HTTP is refused in the house's shape, as everything else is; and a connection that does not send the head of
a request in time is closed. uvicorn itself waits for ever: a few thousand connections that send a byte now and then
would take all there are.
"""

from __future__ import annotations

import asyncio
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from daydo_auth.asgi import ShieldConfig, security_headers
from daydo_kernel import BadRequest, FieldError, new_id, render

HEAD_TIMEOUT_S: Final = 10.0
LINGER_S: Final = 2.0
_SECURITY: Final = security_headers(ShieldConfig())


class HouseProtocol(H11Protocol):
    """The ``http=`` of a uvicorn."""

    _head_timer: asyncio.TimerHandle | None = None
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head_is_here()
        elif self._head_timer is None and self.conn.trailing_data[0]:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP/1.1; the connection ends with that."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # an answer is on its way: a second one would be read as part of it
            return
        request_id = new_id("req")
        why = FieldError("request", "不是有效的 HTTP 请求", "Is not valid HTTP")
        rendered = render(BadRequest(fields=(why,)), request_id=request_id)
        headers = [
            *((name.encode(), value.encode()) for name, value in rendered.headers.items()),
            *_SECURITY,
            (b"content-length", str(len(rendered.body)).encode()),
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        answer = (
            h11.Response(status_code=rendered.status, headers=headers),
            h11.Data(data=rendered.body),
            h11.EndOfMessage(),
        )
        for event in answer:
            self.transport.write(self.conn.send(event) or b"")
        # Closing while the client still sends would destroy the answer on its way.
        self._is_refused = True
        self.transport.write_eof()
        self._head_is_here()
        self._head_timer = self.loop.call_later(LINGER_S, self.transport.close)

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _head_is_here(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

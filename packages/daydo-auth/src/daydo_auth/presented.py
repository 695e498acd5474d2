"""What a request brings along to say who sends it, whatever the framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec


async def _nothing() -> bytes:
    return b""


class Presented(msgspec.Struct, frozen=True, kw_only=True):
    """A request as :meth:`daydo_auth.Auth.authenticate` looks at it.

    Attributes:
        method: as sent, in capitals.
        path: as sent, still percent-encoded, without the query.
        query: as sent, without the question mark.
        headers: in the order sent; names in lower case.
        body: reads the whole body; called for signed requests only, once their signature is known to be genuine. It has
            to be bounded and to leave the body for the handler.
        takes_cookie: whether a web page's cookie counts: never for a WebSocket, which pages of any site may open.
    """

    method: str
    path: bytes
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: Callable[[], Awaitable[bytes]] = _nothing
    takes_cookie: bool = True

    def __repr__(self) -> str:
        return f"Presented({self.method} {self.path!r}, ***)"

    @classmethod
    def of_scope(cls, scope: MutableMapping[str, Any], body: Callable[[], Awaitable[bytes]] = _nothing) -> Presented:
        """The request of an ASGI scope; a WebSocket is opened by a GET."""
        is_http = scope["type"] == "http"
        return cls(
            method=scope["method"] if is_http else "GET",
            # Not every server gives the raw path, and some leave the query on it.
            path=(scope.get("raw_path") or quote(scope["path"]).encode()).partition(b"?")[0],
            query=scope["query_string"],
            headers=list(scope["headers"]),
            body=body,
            takes_cookie=is_http,
        )

    def all(self, name: bytes) -> list[bytes]:
        """The values of every header called ``name``."""
        return [value for each, value in self.headers if each == name]

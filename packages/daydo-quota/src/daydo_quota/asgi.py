"""A hold around one HTTP request, settled by its answer: plain ASGI, for any framework.

:func:`settling` wraps the application (or one route); whoever knows who is asking calls :func:`hold_request` inside it,
before the work. ``daydo_quota.litestar`` makes a guard of the two.

When a hold is settled
----------------------
From 400 on an answer cancels, before its first byte. Below 400 it confirms.

A *plain* answer, whose body (or file) is one message, is confirmed before its first byte. So a client that reads
success has paid, one that reads an error has not, and if the confirm is refused the client reads that refusal instead.
Whether the client is still there does not matter: its work was done, and a repeat under its key tells.

A *stream*, an answer of several messages, is confirmed before its last byte: that is, before its last message, or
before the one that fulfils its Content-Length. A stream that breaks, because its generator raised or the client went,
was not delivered and is cancelled, but for what it captured. ``broken_stream="charge"`` charges what the handler had
put into ``charge`` by then, so that nobody reads all but the last word for nothing.

An exception, a cancelled task and a server that shuts down cancel. A process that dies leaves its holds to their
timeout.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, get_args

from daydo_kernel import BadRequest, FieldError, new_id, render

from . import arguments
from .blocks import OpenHold
from .errors import BadAccounts, HoldOpen
from .ledger import Ledger
from .model import AccountLike, Overage, Policy

log = logging.getLogger("daydo.quota")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

BrokenStream = Literal["cancel", "charge"]
"""What becomes of the hold of a stream that breaks."""

_SEAT = "daydo_quota.seat"
_BODILESS = (204, 205, 304)
_FILES = ("http.response.pathsend", "http.response.zerocopysend")  # extensions: the server reads the file itself
_KEY = re.compile(rb"[!-~]{1,64}")
_BAD_KEY = FieldError(
    "Idempotency-Key", "必须由 1 到 64 个可见 ASCII 字符组成", "Must be 1 to 64 visible ASCII characters"
)


def settling(app: ASGIApp) -> ASGIApp:
    """The middleware: settles what :func:`hold_request` holds further in. ``app.add_middleware(settling)``."""

    async def settle_around(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        seat = scope[_SEAT] = _Seat()
        answer = _Answer(seat, send)
        try:
            await app(scope, receive, answer.send)
        finally:
            # Nothing is open any more where the answer was complete.
            await (seat.end_broken() if answer.begun else seat.cancel())

    return settle_around


async def hold_request(
    scope: Scope,
    ledger: Ledger,
    amounts: Sequence[tuple[AccountLike, int]],
    *,
    key: str,
    ttl_s: float | None = None,
    overage: Overage = "reject",
    late: Policy = "reject",
    broken_stream: BrokenStream = "cancel",
    reason: str = "",
) -> None:
    """Hold ``amounts``, of accounts of different units, until the answer settles them; all or none, once a request.

    Args:
        ttl_s: longer than the work, or the stream, may take.
        overage, late: the confirm's, see :meth:`Ledger.confirm`.
        broken_stream: ``"charge"`` confirms what ``held(scope).charge`` says when a stream breaks.

    Raises:
        InsufficientQuota and what else :meth:`Ledger.hold_all` raises: do not do the work.
        HoldOpen: a request with this key is still being worked on. A second one must not do the work again: it would
            be done twice and charged once.
        HoldConfirmed, HoldCancelled, HoldExpired: a request with this key has ended so.
        BadAccounts: two accounts have one unit, so ``held(scope, unit)`` would not say whose charge is meant.
        BadPolicy: ``overage``, ``late`` or ``broken_stream`` is none that there is.
        RuntimeError: there is no :func:`settling` around this, or the request holds something already.
    """
    seat = scope.get(_SEAT)
    if not isinstance(seat, _Seat):
        raise RuntimeError("nothing would settle this hold: wrap the application in daydo_quota.asgi.settling")
    if seat.works:
        raise RuntimeError("the request holds something already: name all amounts in one call")
    arguments.check_choice("broken_stream", broken_stream, get_args(BrokenStream))
    units = [unit for _, _, unit in arguments.check_accounts([account for account, _ in amounts])]
    if len(set(units)) < len(units):
        raise BadAccounts(most=arguments.MAX_LEGS)
    block = ledger.hold_all(amounts, key=key, ttl_s=ttl_s, overage=overage, late=late, reason=reason)
    await seat.take(block, charges_what_broke=broken_stream == "charge")


def request_key(scope: Scope, tenant: str, subject: str) -> str:
    """A hold's key for this request: its ``Idempotency-Key``, scoped to who asks, to the method and to the path.

    So no client can take the key of another, and the same header at ``/pictures/1`` and at ``/pictures/2`` is two
    operations; the query is no part of it. Without the header each request is an operation of its own.

    Raises:
        BadRequest: the header is not 1 to 64 visible ASCII characters, or comes twice.
    """
    given = [value for name, value in scope.get("headers", ()) if name.lower() == b"idempotency-key"]
    if not given:
        return new_id("http")
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise BadRequest(fields=(_BAD_KEY,))
    # A digest, since together they may be longer than a key. Of these only the path may have a line feed in it, so no
    # two scopes read the same.
    scoped = "\n".join((tenant, subject, scope["method"], scope["path"], given[0].decode()))
    # Servers pass on a path that is no UTF-8 in several ways; one keeps its bytes as lone surrogates.
    return f"http_{hashlib.sha256(scoped.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def held(scope: Scope, unit: str = "") -> OpenHold:
    """The hold around this request: ``held(scope).charge = 2``; that of ``unit``, where there are several.

    Raises:
        KeyError: nothing is held, or not of this unit.
    """
    seat = scope.get(_SEAT)
    works = seat.works if isinstance(seat, _Seat) else {}
    if not unit and len(works) > 1:
        raise KeyError(f"name one of {sorted(works)}")
    return works[unit or next(iter(works), "")]


class _NotDelivered(Exception):
    """Ends a block that must not charge."""


class _Seat:
    """One request's hold, from whoever makes it to whatever settles it first."""

    def __init__(self) -> None:
        self.works: dict[str, OpenHold] = {}
        self._block: AbstractAsyncContextManager[list[OpenHold]] | None = None
        self._charges_what_broke = False

    async def take(self, block: AbstractAsyncContextManager[list[OpenHold]], *, charges_what_broke: bool) -> None:
        works = await block.__aenter__()
        first = works[0].hold
        if not first.created:
            # Another request's: nothing of it may stay here, for an application may answer HoldOpen by a 202.
            await _undo(block)
            raise HoldOpen(key=first.key, expires_at_us=first.expires_at_us)
        self._block, self._charges_what_broke = block, charges_what_broke
        self.works = {work.hold.unit: work for work in works}

    async def confirm(self) -> None:
        block, self._block = self._block, None
        if block is not None:
            await block.__aexit__(None, None, None)

    async def cancel(self) -> None:
        block, self._block = self._block, None
        if block is not None:
            await _undo(block)

    async def end_broken(self) -> None:
        """The stream has begun, and will not end."""
        if not (self._charges_what_broke and any(work.charge for work in self.works.values())):
            await self.cancel()
            return
        for work in self.works.values():
            work.charge = work.charge or 0
        try:
            await self.confirm()
        except Exception:
            log.exception("what a broken stream has cost could not be charged")


async def _undo(block: AbstractAsyncContextManager[list[OpenHold]]) -> None:
    """Cancels what the block has made itself."""
    await block.__aexit__(_NotDelivered, _NotDelivered(), None)


class _Answer:
    """An answer on its way: kept back until its hold is settled, or passed on as it streams."""

    def __init__(self, seat: _Seat, send: Send) -> None:
        self._seat = seat
        self._send = send
        self._start: Message | None = None
        self._left: int | None = None
        self._refused = False
        self.begun = False

    async def send(self, message: Message) -> None:
        if self._refused:
            return  # The handler goes on; its client has been told otherwise.
        if message["type"] == "http.response.start":
            self._start, self._left = message, _length(message)
            if message["status"] >= 400:
                await self._seat.cancel()
            elif self._left is None and message["status"] not in _BODILESS:
                await self._begin()
            return
        if self._completes(message):
            try:
                await self._seat.confirm()
            except Exception as refusal:
                self._refused = True
                if self.begun:
                    raise  # without its last byte, so that the client knows
                await self._refuse(refusal)
                return
        await self._begin()
        await self._send(message)

    def _completes(self, message: Message) -> bool:
        """Whether a client that has this message has the whole body."""
        if message["type"] == "http.response.body":
            if self._left is not None:
                self._left -= len(message.get("body", b""))
                if self._left <= 0:
                    return True
            return not message.get("more_body")
        return message["type"] in _FILES

    async def _begin(self) -> None:
        if self._start is not None:
            start, self._start, self.begun = self._start, None, True
            await self._send(start)

    async def _refuse(self, error: Exception) -> None:
        """In place of the handler's answer: frameworks do not render what is raised while they send."""
        answer = render(error)
        if answer.status >= 500:
            log.error("a hold could not be confirmed", exc_info=error)
        headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        self._start = {"type": "http.response.start", "status": answer.status, "headers": headers}
        await self._begin()
        await self._send({"type": "http.response.body", "body": answer.body, "more_body": False})


def _length(start: Message) -> int | None:
    """How many bytes the body will have, if the answer says so."""
    said = [value for name, value in start.get("headers", ()) if name.lower() == b"content-length"]
    return int(said[0]) if said and said[0].isdigit() else None

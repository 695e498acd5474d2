"""Connections that stay open: who is on them, and when their next request would be refused.

A request is judged once, a stream has to be judged again whenever something is taken away. What the feed tells of a
session, a subject or an API key is looked up here by name, so a logout costs nothing for the streams of others. What
roles come to changes for many at once, and is looked at every ``revocation_poll_s``. No I/O either way.

One future per wait and no task: whoever stops waiting leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from .errors import AuthError
from .feed import Feed, Kind
from .model import Principal

Judge = Callable[[Principal, tuple[str, ...]], AuthError | None]
Name = tuple[Kind, str, str]
_KINDS: Final[tuple[Kind, ...]] = ("session", "subject", "key")


class Watch:
    """One wait for the refusal of ``principal``, who needs ``permissions``."""

    def __init__(self, principal: Principal, permissions: tuple[str, ...]) -> None:
        self.principal = principal
        self.permissions = permissions
        self.refusal: asyncio.Future[AuthError] = asyncio.get_running_loop().create_future()

    def names(self) -> Iterator[Name]:
        """What the feed calls them."""
        who = self.principal
        yield "subject", who.tenant, who.subject
        if who.session_id:
            yield "session", who.tenant, who.session_id
        if who.key_id:
            yield "key", who.tenant, who.key_id


class Watches:
    """Every wait of this worker. ``judge`` says why somebody would be refused now, or None."""

    def __init__(self, feed: Feed, judge: Judge) -> None:
        self._judge = judge
        self._open: dict[Name, set[Watch]] = {}
        for kind in _KINDS:
            feed.on(kind, partial(self._heard, kind))

    async def until_refused(self, principal: Principal, permissions: tuple[str, ...]) -> AuthError:
        """Wait until ``principal`` would be refused; why."""
        # Before the first wait: it may have happened since they were let in.
        if (error := self._judge(principal, permissions)) is not None:
            return error
        watch = Watch(principal, permissions)
        for name in watch.names():
            self._open.setdefault(name, set()).add(watch)
        try:
            return await watch.refusal
        finally:
            self._forget(watch)

    async def look(self) -> None:
        """Judge everybody again, for what the feed has no name for."""
        for watch in {watch for watches in self._open.values() for watch in watches}:
            self._review(watch)

    def _heard(self, kind: Kind, tenant: str, name: str, _: int) -> None:
        for watch in self._open.get((kind, tenant, name), ()):
            self._review(watch)

    def _review(self, watch: Watch) -> None:
        if not watch.refusal.done() and (error := self._judge(watch.principal, watch.permissions)) is not None:
            watch.refusal.set_result(error)

    def _forget(self, watch: Watch) -> None:
        for name in watch.names():
            watches = self._open[name]
            watches.discard(watch)
            if not watches:
                del self._open[name]

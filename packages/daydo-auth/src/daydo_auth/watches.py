"""Connections that stay open: who is on them, and when their next request would be refused.

A request is judged once, a stream has to be judged again whenever something is taken away. What the feed tells of a
session, a subject or an API key is looked up here by name, so a logout costs nothing for the streams of others. What
roles come to changes for many at once, and is looked at every ``revocation_poll_s``. No I/O either way.

Nobody tells of what merely expires. A stream is as good as an access token was when it began, so for ``access_ttl_s``
nothing is asked; then the database is, how long its session or key still lives, and again when that is over: a session
that is refreshed meanwhile lives longer by then. Many streams are one question. Database away: they go on, and it is
asked again.

One future per wait and no task: whoever stops waiting leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from daydo_db import DbError
from daydo_kernel import Clock

from .errors import AuthError, KeyInvalid, TokenExpired
from .feed import Feed, Kind
from .model import Principal

log = logging.getLogger("daydo.auth")

Judge = Callable[[Principal, tuple[str, ...]], AuthError | None]
Lives = Callable[[Sequence[str]], Awaitable[dict[str, int]]]
"""How long each session, or key, of these ids still lives, in µs; without those that are over."""
Name = tuple[Kind, str, str]
_KINDS: Final[tuple[Kind, ...]] = ("session", "subject", "key")
_OVER: Final[dict[Kind, type[AuthError]]] = {"session": TokenExpired, "key": KeyInvalid}
_ASKED_AT_ONCE: Final = 500


class Watch:
    """One wait for the refusal of ``principal``, who needs ``permissions``; good until ``due_us`` unless it is told."""

    def __init__(self, principal: Principal, permissions: tuple[str, ...], due_us: int) -> None:
        self.principal = principal
        self.permissions = permissions
        self.due_us = due_us
        self.refusal: asyncio.Future[AuthError] = asyncio.get_running_loop().create_future()

    def names(self) -> Iterator[Name]:
        """What the feed calls them."""
        who = self.principal
        yield "subject", who.tenant, who.subject
        if who.session_id:
            yield "session", who.tenant, who.session_id
        if who.key_id:
            yield "key", who.tenant, who.key_id

    def id_of(self, kind: Kind) -> str:
        """The session or key that it lives by; "" where it lives by the other."""
        return self.principal.key_id if kind == "key" else self.principal.session_id

    def refuse(self, error: AuthError) -> None:
        """End the wait; the first reason stays."""
        if not self.refusal.done():
            self.refusal.set_result(error)


class Watches:
    """Every wait of this worker. ``judge`` says why somebody would be refused now, or None."""

    def __init__(self, feed: Feed, judge: Judge, lives: Mapping[Kind, Lives], clock: Clock, *, trusted_us: int) -> None:
        self._judge = judge
        self._lives = lives
        self._clock = clock
        self._trusted_us = trusted_us
        self._open: dict[Name, set[Watch]] = {}
        for kind in _KINDS:
            feed.on(kind, partial(self._heard, kind))

    async def until_refused(self, principal: Principal, permissions: tuple[str, ...]) -> AuthError:
        """Wait until ``principal`` would be refused; why."""
        # Before the first wait: it may have happened since they were let in.
        if (error := self._judge(principal, permissions)) is not None:
            return error
        watch = Watch(principal, permissions, self._clock.now_us() + self._trusted_us)
        for name in watch.names():
            self._open.setdefault(name, set()).add(watch)
        try:
            return await watch.refusal
        finally:
            self._forget(watch)

    async def look(self) -> None:
        """Judge everybody again, for what the feed has no name for."""
        for watch in self._all():
            self._review(watch)

    async def look_at_ends(self) -> None:
        """Ask how long those still live who were last known to live until now; what is over is refused."""
        now_us = self._clock.now_us()
        for kind, lives in self._lives.items():
            due = [watch for watch in self._all() if watch.due_us <= now_us and watch.id_of(kind)][:_ASKED_AT_ONCE]
            if not due:
                continue
            try:
                left_us = await lives(sorted({watch.id_of(kind) for watch in due}))
            except DbError as error:
                log.warning("%s streams cannot be asked whether their %s is over: %s", len(due), kind, error)
                continue
            for watch in due:
                if (us := left_us.get(watch.id_of(kind))) is None:
                    watch.refuse(_OVER[kind]())
                else:
                    watch.due_us = now_us + us

    def _all(self) -> set[Watch]:
        return {watch for watches in self._open.values() for watch in watches}

    def _heard(self, kind: Kind, tenant: str, name: str, _: int) -> None:
        for watch in self._open.get((kind, tenant, name), ()):
            self._review(watch)

    def _review(self, watch: Watch) -> None:
        if not watch.refusal.done() and (error := self._judge(watch.principal, watch.permissions)) is not None:
            watch.refuse(error)

    def _forget(self, watch: Watch) -> None:
        for name in watch.names():
            watches = self._open[name]
            watches.discard(watch)
            if not watches:
                del self._open[name]

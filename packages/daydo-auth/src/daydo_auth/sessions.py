"""Sessions: opened by a login, kept alive by refresh tokens, listed by device, ended one or all."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, Protocol

import msgspec

from daydo_db import Database, Tx, whole
from daydo_kernel import Event, EventSink, Metrics

from .errors import AuthError, RefreshReused, SessionRevoked, SessionUnknown, TokenExpired, TokenInvalid
from .feed import Feed
from .model import Principal
from .rotation import Outcome, RefreshToken, Session
from .sql_sessions import SessionInfo, SessionRows

_OUTCOMES = ("rotate", "replay", "reuse", "revoked", "expired", "invalid")
_CAUSES = ("retry", "lost_response", "theft")
_REFUSALS: Final[dict[Outcome, type[AuthError]]] = {
    "reuse": RefreshReused,
    "revoked": SessionRevoked,
    "expired": TokenExpired,
}
_WHY_CHARS_MAX = 16


class SessionStore(Protocol):
    """Where refresh tokens are counted. :class:`daydo_auth.testing.AuthConformance` is what both keep to."""

    async def rotate(self, token: RefreshToken) -> tuple[Session, Outcome] | None:
        """Decide by :func:`daydo_auth.rotation.decide` and count up where that says so, in one step for all callers;
        None where there is no such session with this secret.

        Raises:
            SessionsUnavailable: it cannot be decided at the moment.
        """

    async def forget(self, session_ids: Iterable[str]) -> None:
        """Their rows have changed: drop what is kept beside them. Never raises for want of what it is kept in."""

    async def renew(self, session_id: str) -> None:
        """Its row has changed and it goes on: read anew what is kept beside it. Never raises."""

    async def write_back(self) -> None:
        """Write to the rows what was counted beside them. Database away: it waits for the next time."""


class Sessions:
    """``auth.sessions``: a subject's sessions, and the end of them.

    An ended session refreshes no more from the commit on; its access tokens are refused here at once and by every
    worker within ``revocation_poll_s``.
    """

    def __init__(
        self,
        db: Database,
        rows: SessionRows,
        store: SessionStore,
        feed: Feed,
        events: EventSink,
        metrics: Metrics,
        *,
        require_started: Callable[[], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], Any],
    ) -> None:
        self._db = db
        self._rows = rows
        self._store = store
        self._feed = feed
        self._events = events
        self._require_started = require_started
        self._spawn = spawn
        refreshes = metrics.counter("refreshes_total", "Refreshes by what the token was.", ("outcome",))
        self._refreshes = {outcome: refreshes.cell(outcome) for outcome in _OUTCOMES}
        reuses = metrics.counter("refresh_reuses_total", "Tokens that came again, by what that looks like.", ("cause",))
        self._reuses = {cause: reuses.cell(cause) for cause in _CAUSES}

    async def list(self, subject: str | Principal, *, tenant: str = "") -> list[SessionInfo]:
        """Where ``subject`` is logged in, the last used first, at most 100; a Principal's own is ``current``."""
        self._require_started()
        name, tenant, current = _whose(subject, tenant)
        found = await self._rows.list(tenant, name)
        return [msgspec.structs.replace(each, current=True) if each.id == current else each for each in found]

    async def end(
        self,
        subject: str | Principal,
        session_id: str,
        *,
        tenant: str = "",
        why: str = "ended",
        tx: Tx | None = None,
    ) -> None:
        """End one session of ``subject``; a second time changes nothing.

        Raises:
            SessionUnknown: it is not theirs.
        """
        self._require_started()
        name, tenant, _ = _whose(subject, tenant)

        async def write(tx: Tx) -> None:
            if not await self._rows.belongs_to(tx, session_id, tenant, name):
                raise SessionUnknown()
            await self._end(tx, tenant, name, [session_id], why)

        await self._db.run(write, tx=tx)

    async def end_all(
        self, subject: str, *, tenant: str = "", but: str | None = None, why: str = "ended", tx: Tx | None = None
    ) -> int:
        """End every session of ``subject``, except the one called ``but``; how many these were.

        ``why`` stands in the row and in the event, at most 16 characters.
        """
        self._require_started()

        async def write(tx: Tx) -> int:
            running = [each for each in await self._rows.running(tx, tenant, subject) if each != but]
            return await self._end(tx, tenant, subject, running, why)

        return await self._db.run(write, tx=tx)

    # -- for Auth ------------------------------------------------------------------------------------------------

    async def open(self, tx: Tx, tenant: str, subject: str, device: str) -> tuple[Session, RefreshToken]:
        """A new session and its first token. Where these are too many then, those that have rested longest end."""
        session, token, too_many = await self._rows.insert(tx, tenant, subject, device)
        await self._end(tx, tenant, subject, too_many, "too_many")
        return session, token

    async def rotate(self, token: RefreshToken | None) -> tuple[Session, RefreshToken]:
        """The session of ``token``, counted up, and the token's successor.

        Raises:
            TokenInvalid: there is none, or we did not make the token.
            TokenExpired: the session has rested or lived too long.
            RefreshReused: an older token came back; the session has been ended.
            SessionRevoked: it had been ended before.
            SessionsUnavailable: Redis is away.
        """
        found = None
        if token is not None:
            if self._feed.session_ended(token.session_id):
                self._refreshes["revoked"].inc()
                raise SessionRevoked()
            found = await self._store.rotate(token)
        if token is None or found is None:
            self._refreshes["invalid"].inc()
            raise TokenInvalid()
        session, outcome = found
        if outcome == "reuse" and not await self._end_reused(session, token):
            outcome = "revoked"  # another token of it was quicker
        self._refreshes[outcome].inc()
        if outcome == "replay":
            self._reuses["retry"].inc()
        if (refusal := _REFUSALS.get(outcome)) is not None:
            raise refusal()
        return session, token.successor

    async def _end_reused(self, session: Session, token: RefreshToken) -> bool:
        behind = session.counter - token.counter
        # The last but one, too late: its successor may never have arrived. An older one was surely used before.
        cause = "lost_response" if behind == 1 else "theft"

        async def write(tx: Tx) -> bool:
            about = {"behind": behind, "cause": cause}
            return bool(
                await self._end(tx, session.tenant, session.subject, [session.id], "reuse", "refresh_reused", about)
            )

        ended = await self._db.run(write)
        if ended:
            self._reuses[cause].inc()
        return ended

    async def prove(self, tx: Tx, session_id: str) -> Session:
        """The session, whose person has proven themselves again just now; its next tokens say so, too."""
        session = await self._rows.prove(tx, session_id)
        tx.after_commit(lambda: self._spawn(self._store.renew(session_id), "renew"))
        return session

    async def logout(self, principal: Principal, tx: Tx | None) -> None:
        """End the session that ``principal`` speaks from."""

        async def write(tx: Tx) -> None:
            await self._end(tx, principal.tenant, principal.subject, [principal.session_id], "logout", "logout")

        await self._db.run(write, tx=tx)

    async def _end(
        self,
        tx: Tx,
        tenant: str,
        subject: str,
        session_ids: Sequence[str],
        why: str,
        event: str = "session_ended",
        about: dict[str, Any] | None = None,
    ) -> int:
        if len(why) > _WHY_CHARS_MAX:
            raise ValueError(f"why must be at most {_WHY_CHARS_MAX} characters, not {why[:200]!r}")
        with whole(tx):
            ended = [each for each in session_ids if await self._rows.end(tx, each, why)]
            for session_id in ended:
                await self._feed.write(tx, "session", tenant, session_id)
                data = {"session_id": session_id, **(about or {"why": why})}
                await self._events.emit(Event(name=f"auth.{event}", tenant=tenant, subject=subject, data=data), tx)
            if ended:
                # Before the commit, so that with it nobody refreshes any more; and after it, for somebody may have
                # asked for the row in between. Redis away: the feed tells every worker, and the row whoever starts
                # later.
                await self._store.forget(ended)
                tx.after_commit(lambda: self._forget_again(ended))
        return len(ended)

    def _forget_again(self, session_ids: Sequence[str]) -> None:
        self._spawn(self._store.forget(session_ids), "forget")


def _whose(subject: str | Principal, tenant: str) -> tuple[str, str, str]:
    if isinstance(subject, Principal):
        return subject.subject, subject.tenant, subject.session_id
    return subject, tenant, ""

"""The noun: passwords in, tokens out, and who is calling."""

from __future__ import annotations

import logging
from typing import Any, Final

from daydo_db import Database, Tx
from daydo_kernel import (
    Clock,
    Event,
    EventSink,
    Health,
    Metrics,
    NoEvents,
    Part,
    SystemClock,
    redact_text,
)
from daydo_redis import Redis

from .config import AuthConfig
from .errors import (
    AuthError,
    HashingSaturated,
    LoginUnusable,
    PasswordTooWeak,
    RefreshReused,
    SessionRevoked,
    TokenExpired,
    TokenInvalid,
    WrongCredentials,
)
from .hashing import HashingPool
from .model import HashedPassword, Password, Principal, Tokens
from .passwords import MAX_SECRET_CHARS, Hasher, normalize_login, weaknesses
from .revocations import Revocations
from .rotation import Outcome, RefreshToken, Session, decide, is_genuine, parse, sign
from .store import Store, check_names, device_name
from .tickets import Tickets
from .tokens import AccessTokens

log = logging.getLogger("daydo.auth")

_LOGINS = ("ok", "wrong", "saturated")
_REFRESHES = ("rotate", "replay", "reuse", "revoked", "expired", "invalid")
_REFUSALS: Final[dict[Outcome, type[AuthError]]] = {
    "reuse": RefreshReused,
    "revoked": SessionRevoked,
    "expired": TokenExpired,
}


class Auth(Part):
    """Who is calling: passwords, access and refresh tokens, sessions, tickets::

        auth = Auth(db, redis, AuthConfig(keys={"2026-01": key}, pepper=pepper))
        tokens = await auth.login(Password("a@x.cn", secret), device="phone")
        principal = auth.verify(f"Bearer {tokens.access}")

    A ``subject`` is whatever your application calls a person, visible ASCII of at most 128 characters; auth knows no
    more of them. ``clock`` is for tests: it replaces the database's and this host's. ``events`` hears
    ``auth.registered``, ``.login``, ``.refused``, ``.refresh_reused`` and ``.logout``; all but ``.refused`` in the
    transaction of the change.

    Database away: nobody logs in or refreshes (its errors, 503); access tokens keep working. Redis away: tickets fail.

    Raises:
        ValueError: keys or pepper are missing or weak.
    """

    def __init__(
        self,
        db: Database,
        redis: Redis,
        config: AuthConfig = AuthConfig(),  # noqa: B008 - frozen; refused below for want of secrets
        *,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        config.require_secrets()
        self.config = config
        self._db = db
        self._events: EventSink = events if events is not None else NoEvents()
        host_clock: Clock = clock if clock is not None else SystemClock()

        self.metrics = Metrics("daydo_auth")
        logins = self.metrics.counter("logins_total", "Logins by how they ended.", ("outcome",))
        self._logins = {outcome: logins.cell(outcome) for outcome in _LOGINS}
        refreshes = self.metrics.counter("refreshes_total", "Refreshes by what the token was.", ("outcome",))
        self._refreshes = {outcome: refreshes.cell(outcome) for outcome in _REFRESHES}

        self._hasher = Hasher(config.pepper, config.bcrypt_rounds)
        self._pool = HashingPool(config.hashing_workers, config.hashing_queue_max, self.metrics)
        self._store = Store(db, config, clock)
        self._revoked = Revocations(self._store, config, host_clock, self.metrics)
        self._access = AccessTokens(config, host_clock)
        self._tickets = Tickets(redis, config)

    # -- passwords -----------------------------------------------------------------------------------------------

    async def hash(self, password: Password) -> HashedPassword:
        """Check ``password`` against the policy and hash it; a quarter of a second on a thread.

        Do this before opening the transaction that you hand to :meth:`register`, so that no lock waits for it.

        Raises:
            PasswordTooWeak: ``fields`` says which rules it breaks.
            LoginUnusable: it cannot be a login.
            HashingSaturated: too many at once.
        """
        self._require_started()
        login = normalize_login(password.login)
        if login is None:
            raise LoginUnusable()
        if weak := weaknesses(self.config.password_policy, login, password.secret):
            raise PasswordTooWeak(fields=weak)
        return HashedPassword(login, await self._pool.run(self._hasher.hash, password.secret))

    async def register(
        self, password: Password | HashedPassword, *, subject: str, tenant: str = "", tx: Tx | None = None
    ) -> None:
        """Give ``subject`` a login and a password. After an error in your own ``tx``, roll it back.

        Raises:
            LoginTaken: somebody in this tenant has it.
            SubjectTaken: this subject is registered already.
            PasswordTooWeak, LoginUnusable, HashingSaturated: as :meth:`hash`.
            ValueError: ``subject`` or ``tenant`` is no name.
        """
        self._require_started()
        check_names(tenant, subject)
        ready = password if isinstance(password, HashedPassword) else await self.hash(password)

        async def write(tx: Tx) -> None:
            await self._store.add_password(tx, tenant, ready.login, subject, ready.hashed)
            await self._tell(tx, "registered", tenant, subject)

        await self._db.run(write, tx=tx)

    async def login(self, password: Password, *, device: str = "", tenant: str = "") -> Tokens:
        """Open a session for who knows the password. Unknown logins cost the same work and get the same answer.

        ``device`` is what the list of sessions will call it; 64 characters of it are kept.

        Raises:
            WrongCredentials: no such login, or another password.
            HashingSaturated: too many at once.
        """
        self._require_started()
        login = normalize_login(password.login)
        found = await self._store.find_password(tenant, login) if login is not None else None
        subject, hashed = found if found is not None else ("", "")
        if not await self._check(password.secret, hashed):
            self._logins["wrong"].inc()
            what = {"login": redact_text(login or ""), "known": bool(subject)}
            await self._events.emit(Event(name="auth.refused", tenant=tenant, subject=subject, data=what))
            raise WrongCredentials()
        fresh = await self._rehash(password.secret, hashed)

        async def write(tx: Tx) -> Tokens:
            if fresh:
                await self._store.replace_hash(tx, tenant, subject, hashed, fresh)
            return await self._open(tx, tenant, subject, device)

        return await self._db.run(write)

    # -- sessions ------------------------------------------------------------------------------------------------

    async def open_session(self, subject: str, *, tenant: str = "", device: str = "", tx: Tx | None = None) -> Tokens:
        """Open a session for ``subject`` without asking for a password.

        Only for code that has proven in this very request who is calling, or has just created them: a registration, a
        one-time code, another identity provider. Never with a subject that the request merely names. Whether
        ``subject`` has a password here is not looked at.

        With ``tx`` the session is part of your transaction: hand the tokens out after its commit. The access token
        needs no database, so one from a transaction that was rolled back would be accepted for ``access_ttl_s``.

        Raises:
            ValueError: ``subject`` or ``tenant`` is no name.
        """
        self._require_started()
        check_names(tenant, subject)

        async def write(tx: Tx) -> Tokens:
            return await self._open(tx, tenant, subject, device)

        return await self._db.run(write, tx=tx)

    async def refresh(self, token: str) -> Tokens:
        """The next pair. Of several calls with one token all get the same successor; see :mod:`daydo_auth.rotation`.

        Raises:
            TokenInvalid: we did not make this token.
            TokenExpired: the session has rested or lived too long.
            RefreshReused: an older token came back; the session has been ended.
            SessionRevoked: it had been ended before.
        """
        self._require_started()
        presented = parse(token)
        if presented is None:
            self._refreshes["invalid"].inc()
            raise TokenInvalid()

        async def write(tx: Tx) -> tuple[Session, Outcome] | None:
            return await self._present(tx, presented)

        found = await self._db.run(write)
        if found is None:
            self._refreshes["invalid"].inc()
            raise TokenInvalid()
        session, outcome = found
        self._refreshes[outcome].inc()
        if refusal := _REFUSALS.get(outcome):
            raise refusal()  # only now: an exception inside would have undone the revocation
        return self._tokens(session.tenant, session.subject, session.id, session.salt, presented.counter + 1)

    async def logout(self, principal: Principal, *, tx: Tx | None = None) -> None:
        """End the session of ``principal``; a second time changes nothing.

        This worker refuses its access tokens at once, the others within ``revocation_poll_s``.
        """
        self._require_started()

        async def write(tx: Tx) -> None:
            await self._revoke(tx, principal.session_id, "logout")
            await self._tell(tx, "logout", principal.tenant, principal.subject, session_id=principal.session_id)

        await self._db.run(write, tx=tx)

    def verify(self, header: str | None) -> Principal:
        """Whom an Authorization header names. No I/O.

        Raises:
            TokenMissing, TokenInvalid, TokenExpired: the header.
            SessionRevoked: its session has ended.
        """
        self._require_started()
        principal = self._access.read(header)
        if principal.session_id in self._revoked:
            raise SessionRevoked()
        return principal

    # -- tickets -------------------------------------------------------------------------------------------------

    async def issue_ticket(self, principal: Principal) -> str:
        """A ticket for one connection within ``ticket_ttl_s``. Redis gone: raises its error.

        Raises:
            SessionRevoked: the session has ended.
        """
        self._require_started()
        if principal.session_id in self._revoked:
            raise SessionRevoked()
        return await self._tickets.issue(principal)

    async def redeem_ticket(self, ticket: str) -> Principal:
        """Whom a ticket was made for; it works once. Redis gone: raises its error, nobody gets in.

        Raises:
            TicketInvalid: unknown, used or expired.
            SessionRevoked: the session has ended since.
        """
        self._require_started()
        principal = await self._tickets.redeem(ticket)
        if principal.session_id in self._revoked:
            raise SessionRevoked()
        return principal

    # -- life ----------------------------------------------------------------------------------------------------

    async def health(self) -> Health:
        """``degraded`` while other workers' revocations cannot be read. No I/O."""
        if not self._running:
            return Health(status="down")
        return Health(
            status="degraded" if self._revoked.is_stale else "ok",
            detail={"hashing_waiting": self._pool.waiting, "revocation_lag_s": round(self._revoked.lag_s, 1)},
        )

    async def _start(self) -> None:
        self._pool.open()
        await self._db.require_schema("daydo_auth")
        await self._revoked.read()
        self._repeat(self.config.revocation_poll_s, self._revoked.poll, "revocations")

    async def _drain(self) -> None:
        await self._pool.drained()

    async def _close(self) -> None:
        self._pool.close()

    # -- steps ---------------------------------------------------------------------------------------------------

    async def _check(self, secret: str, hashed: str) -> bool:
        if len(secret) > MAX_SECRET_CHARS:
            return False  # says nothing about the login: it is refused for every one
        try:
            return await self._pool.run(self._hasher.check, secret, hashed)
        except HashingSaturated:
            self._logins["saturated"].inc()
            raise

    async def _rehash(self, secret: str, hashed: str) -> str:
        """``secret`` by today's recipe; "" where ``hashed`` is, or there is no time for it now."""
        if self._hasher.is_current(hashed):
            return ""
        try:
            return await self._pool.run(self._hasher.hash, secret)
        except HashingSaturated:
            return ""

    async def _open(self, tx: Tx, tenant: str, subject: str, device: str) -> Tokens:
        name = device_name(device)
        session_id, salt = await self._store.open_session(tx, tenant, subject, name)
        await self._tell(tx, "login", tenant, subject, session_id=session_id, device=name)
        tx.after_commit(self._logins["ok"].inc)
        return self._tokens(tenant, subject, session_id, salt, 1)

    async def _present(self, tx: Tx, token: RefreshToken) -> tuple[Session, Outcome] | None:
        found = await self._store.lock_session(tx, token.session_id)
        if found is None or not is_genuine(token, self.config.pepper, found[0].salt):
            return None
        session, now_us = found
        outcome = decide(session, token.counter, now_us, round(self.config.replay_window_s * 1_000_000))
        if outcome == "rotate":
            await self._store.rotate(tx, session)
        elif outcome == "reuse":
            await self._revoke(tx, session.id, "reuse")
            behind = session.counter - token.counter
            await self._tell(
                tx, "refresh_reused", session.tenant, session.subject, session_id=session.id, behind=behind
            )
        return session, outcome

    async def _revoke(self, tx: Tx, session_id: str, why: str) -> None:
        await self._store.revoke(tx, session_id, why)
        tx.after_commit(lambda: self._revoked.add(session_id))

    async def _tell(self, tx: Tx, name: str, tenant: str, subject: str, **data: Any) -> None:
        await self._events.emit(Event(name=f"auth.{name}", tenant=tenant, subject=subject, data=data), tx)

    def _tokens(self, tenant: str, subject: str, session_id: str, salt: bytes, counter: int) -> Tokens:
        principal = Principal(tenant, subject, session_id, frozenset(self.config.default_permissions))
        return Tokens(
            access=self._access.issue(principal),
            refresh=sign(self.config.pepper, salt, session_id, counter),
            expires_in_s=self.config.access_ttl_s,
            session_id=session_id,
            subject=subject,
        )

"""The noun: passwords in, tokens out, and who is calling."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from daydo_db import Database, Tx, whole
from daydo_kernel import (
    Clock,
    Event,
    EventSink,
    Health,
    Metrics,
    NoEvents,
    Part,
    SystemClock,
)
from daydo_redis import Redis

from .codes import Codes
from .config import AuthConfig
from .errors import AuthError, Forbidden, KeyInvalid, SessionRevoked, TokenStale, WrongCredentials
from .feed import Feed
from .hashing import HashingPool
from .identities import Identities, IdentityStore
from .keys import Keys
from .login_counts import LoginCounts, Method, method_of
from .logins import Channel
from .model import AccessToken, Code, Credential, HashedPassword, Password, Principal, Proof, Tokens
from .names import check_names
from .passwords import Hasher
from .ports import Sender, StartClean, WeChatLogin
from .presented import Presented
from .proofs import LOG_IN, Proofs
from .redis_sessions import RedisSessions
from .role_store import RoleSource, RoleStore
from .roles import Roles
from .rotation import RefreshToken, RefreshTokens, Session
from .sessions import Sessions, SessionStore
from .sql_sessions import SessionRows, SqlSessions, device_name
from .tickets import Held, Tickets
from .tokens import AccessTokens
from .watches import Watches
from .ways import Ways

log = logging.getLogger("daydo.auth")

_SWEEPS_MAX = 20


class Auth(Part):
    """Who is calling: passwords, access and refresh tokens, sessions, tickets::

        auth = Auth(db, redis, AuthConfig(keys={"2026-01": key}, pepper=pepper))
        tokens = await auth.login(Password("a@x.cn", secret), device="phone")
        principal = auth.verify(f"Bearer {tokens.access}")

    A ``subject`` is whatever your application calls a person, visible ASCII of at most 128 characters; auth knows no
    more of them. ``clock`` is for tests: it replaces the database's and this host's. ``events`` hears what README.md
    lists: every change in its transaction, what is refused or sent by itself. ``start_clean`` is asked before a subject
    that never proved its login becomes somebody else's; see :meth:`prove`.

    Database away: nobody logs in (its errors, 503); access tokens keep working, and so does refreshing where Redis
    counts. Redis away: no codes, tickets or signed requests, and no refreshing unless ``session_store`` is ``sql``.

    Raises:
        ValueError: keys or pepper are missing or weak, or a built-in role inherits what is not there or itself.
    """

    def __init__(
        self,
        db: Database,
        redis: Redis,
        config: AuthConfig = AuthConfig(),  # noqa: B008 - frozen; refused below for want of secrets
        *,
        senders: Mapping[Channel, Sender] | None = None,
        wechat: WeChatLogin | None = None,
        role_source: RoleSource | None = None,
        start_clean: StartClean | None = None,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        config.require_secrets()
        config.require_roles()
        self.config = config
        self._db = db
        self._events: EventSink = events if events is not None else NoEvents()
        self._host_clock: Clock = clock if clock is not None else SystemClock()
        host_clock = self._host_clock

        self.metrics = Metrics("daydo_auth")
        self._logins = LoginCounts(self.metrics)

        self._hasher = Hasher(config.pepper, config.bcrypt_rounds)
        self._pool = HashingPool(config.hashing_workers, config.hashing_queue_max, self.metrics)
        self._feed = Feed(db, redis, config, clock, host_clock, self.metrics)
        self._rows = SessionRows(db, config, clock)
        self._session_store: SessionStore = (
            RedisSessions(self._rows, redis, self._feed, config, clock, self.metrics)
            if config.session_store == "redis"
            else SqlSessions(self._rows, config)
        )
        self.sessions = Sessions(
            db,
            self._rows,
            self._session_store,
            self._feed,
            self._events,
            self.metrics,
            require_started=self._require_started,
            spawn=self._spawn,
        )
        self._access = AccessTokens(config, host_clock)
        self._refresh = RefreshTokens(config.pepper)
        self._tickets = Tickets(redis, config)
        self.roles = Roles(
            db,
            config,
            RoleStore(db, clock),
            self._feed,
            self._events,
            self.metrics,
            source=role_source,
            end_sessions=self.sessions.end_all,
            require_started=self._require_started,
        )
        self.codes = Codes(
            redis, config, senders or {}, clock, self._events, self.metrics, require_started=self._require_started
        )
        identities = IdentityStore(db, clock, self._feed)
        self.identities = Identities(db, identities, self._events, require_started=self._require_started)
        self._proofs = Proofs(
            db,
            config,
            identities,
            self.codes,
            wechat,
            self._hasher,
            self._pool,
            self.sessions,
            self.roles,
            self._events,
            self._open,
            start_clean,
        )

        self.keys = Keys(
            db,
            config,
            self.roles,
            self._feed,
            clock,
            host_clock,
            self._events,
            self.metrics,
            require_started=self._require_started,
        )
        self._ways = Ways(redis, config, self.keys, host_clock, self.metrics, self.verify)
        self._watches = Watches(
            self._feed,
            self._refusal_now,
            {"session": self._rows.lives, "key": self.keys.lives},
            host_clock,
            trusted_us=config.access_ttl_s * 1_000_000,
        )

    # -- who one is ----------------------------------------------------------------------------------------------

    async def hash(self, password: Password) -> HashedPassword:
        """Check ``password`` against the policy and hash it; a quarter of a second on a thread.

        Do this before opening the transaction that you hand to :meth:`register`, so that no lock waits for it.

        Raises:
            PasswordTooWeak: ``fields`` says which rules it breaks.
            LoginUnusable: it cannot be a login.
            HashingSaturated: too many at once.
        """
        self._require_started()
        return await self._proofs.hash(password)

    async def register(
        self, password: Password | HashedPassword, *, subject: str, tenant: str = "", tx: Tx | None = None
    ) -> None:
        """Give ``subject`` a login and a password.

        Nothing shows yet that the login is theirs; see :meth:`prove` for what becomes of it when somebody else does.

        Raises:
            LoginTaken: somebody in this tenant has it.
            SubjectTaken: this subject is registered already.
            PasswordTooWeak, LoginUnusable, HashingSaturated: as :meth:`hash`.
            ValueError: ``subject`` or ``tenant`` is no name.
        """
        self._require_started()
        await self._proofs.register(password, subject, tenant, tx)

    async def prove(
        self,
        credential: Credential,
        *,
        tenant: str = "",
        purpose: str = "login",
        address: str = "",
        by: Principal | None = None,
    ) -> Proof:
        """Use up ``credential``; whose it is. Nothing is opened: go on with :meth:`link` or :meth:`open_session`.

        ``purpose`` is what a code was sent for, ``address`` the client's, ``by`` who asks where that is known. A right
        password proves nothing about its login, a code does. When a code proves a login that was registered and
        never proven, that login is the prover's: unless they speak ``by`` that very subject, its password, keys, roles
        and sessions are gone and ``start_clean`` has taken away the rest, for whoever it was may be somebody else; if
        the subject is proven otherwise, or has left, it keeps everything but the login. Who was shut out keeps it.

        Raises:
            WrongCredentials, CodeWrong, WeChatCodeInvalid: it is not right, any more.
            AccountDisabled: it is right, and its subject is shut out.
            CodesLimited: too many wrong codes from ``address``.
            RiskRefused: WeChat thinks the person dangerous.
            HashingSaturated, WeChatUnavailable, CodesUnavailable: it could not be asked; a code may be used up.
        """
        self._require_started()
        is_login = by is None and purpose == LOG_IN
        with self._logins.refusals(method_of(credential) if is_login else None):
            return await self._proofs.prove(credential, tenant, purpose, address, by)

    async def identify(self, proof: Proof, *, by: Principal | None = None) -> Proof:
        """``proof`` with whose identity it is by now: for who was told LoginTaken by :meth:`link`.

        Two first requests of one person prove at once that they are nobody yet. One of them registers them; the other
        asks this, and opens a session for the same subject. ``by`` as in :meth:`prove`, whose rules hold here, too.

        Raises:
            AccountDisabled: its subject is shut out.
        """
        self._require_started()
        with self._logins.refusals(proof.way if by is None else None):
            return await self._proofs.identify(proof, by)

    async def link(self, proof: Proof, *, subject: str, tx: Tx | None = None) -> None:
        """Make the identity of ``proof`` one of ``subject``'s; a second time, also at once, changes nothing.

        With ``tx`` it is part of your transaction: prove, then create the person, link and open a session in one.

        Raises:
            LoginTaken: somebody else has it, or the unionid that was proven with it; see :meth:`identify`.
            ValueError: ``subject`` is no name.
        """
        self._require_started()
        await self._proofs.link(proof, subject, tx)

    async def login(self, credential: Credential, *, device: str = "", tenant: str = "", address: str = "") -> Tokens:
        """Prove and open a session. Unknown logins cost a password the same work and get the same answer.

        ``device`` is what the list of sessions will call it; 64 characters of it are kept.

        Raises:
            UnknownIdentity: a code or WeChat has proven somebody whom nobody here knows. The credential is used up:
                where such people are registered at once, :meth:`prove` instead.
            AccountDisabled, and what :meth:`prove` raises.
        """
        self._require_started()
        with self._logins.refusals(method_of(credential)):
            return await self._proofs.login(credential, tenant, device, address)

    async def step_up(self, principal: Principal, credential: Credential, *, address: str = "") -> AccessToken:
        """Let a person who is logged in prove themselves again, for what ``principal.require_fresh`` guards.

        The session stays, and so does its refresh token; the new access token, and those of later refreshes, say when
        this was. A code must have been sent for the purpose ``step_up``.

        Raises:
            WrongCredentials: the credential is somebody else's, or what :meth:`prove` raises for a wrong one.
            PersonRequired: ``principal`` came in with a key.
            SessionRevoked: the session has ended.
        """
        self._require_started()
        principal.require_person()
        tenant, subject, session_id = principal.tenant, principal.subject, principal.session_id
        proof = await self.prove(credential, tenant=tenant, purpose="step_up", address=address, by=principal)
        if proof.subject != subject:
            what = {"session_id": session_id, "error": WrongCredentials.name, "why": "step_up"}
            await self._events.emit(Event(name="auth.refused", tenant=tenant, subject=subject, data=what))
            raise WrongCredentials()

        async def write(tx: Tx) -> Session:
            if not await self._rows.belongs_to(tx, session_id, tenant, subject):
                raise SessionRevoked()
            session = await self.sessions.prove(tx, session_id)
            if session.revoked_at_us:
                raise SessionRevoked()
            await self._tell(tx, "stepped_up", tenant, subject, session_id=session_id, way=proof.way)
            return session

        session = await self._db.run(write)
        access = self._access.issue(session, self.roles.epoch(tenant))
        return AccessToken(access, self.config.access_ttl_s, session_id)

    # -- passwords -----------------------------------------------------------------------------------------------

    async def change_password(self, principal: Principal, old: str, new: str, *, tx: Tx | None = None) -> None:
        """Another password, by who knows the old one; ends all their other sessions.

        With ``tx`` the locks of your transaction wait for two hashes.

        Raises:
            PersonRequired: ``principal`` came in with a key.
            WrongCredentials: ``old`` is not the password, or there is none.
            PasswordTooWeak: ``fields`` says which rules ``new`` breaks.
            HashingSaturated: too many at once.
        """
        self._require_started()
        principal.require_person()
        await self._proofs.change_password(principal, old, new, tx)

    async def reset_password(self, code: Code, new: str, *, tenant: str = "", address: str = "") -> None:
        """Another password, or the first, by a code that was sent for the purpose ``reset``; ends all sessions.

        Raises:
            PasswordTooWeak: the code is still good.
            UnknownIdentity: the code was right, and nobody here has this login.
            CodeWrong, CodesLimited, AccountDisabled, HashingSaturated: as :meth:`prove`.
        """
        self._require_started()
        await self._proofs.reset_password(code, new, tenant, address)

    async def set_password(self, subject: str, new: str, *, tenant: str = "", tx: Tx | None = None) -> None:
        """The first password of somebody who came by a code or WeChat.

        Only for whom you have proven in this request, or lately. With ``tx`` your locks wait for a hash.

        Raises:
            SubjectTaken: they have one; change or reset it.
            PasswordTooWeak: ``fields`` says which rules it breaks.
            HashingSaturated: too many at once.
            ValueError: ``subject`` or ``tenant`` is no name.
        """
        self._require_started()
        await self._proofs.set_password(subject, new, tenant, tx)

    async def forget(self, subject: str, *, tenant: str = "", tx: Tx | None = None) -> None:
        """End whatever runs for ``subject`` and delete all that is kept of it; what was told as events stays told.

        Raises:
            ValueError: ``subject`` or ``tenant`` is no name.
        """
        self._require_started()
        await self._proofs.forget(subject, tenant, tx)

    # -- sessions ------------------------------------------------------------------------------------------------

    async def open_session(
        self, subject: str, *, tenant: str = "", device: str = "", proof: Proof | None = None, tx: Tx | None = None
    ) -> Tokens:
        """Open a session for ``subject`` without asking for a password.

        Only for code that has proven in this very request who is calling, or has just created them: a registration, a
        one-time code, another identity provider. Never with a subject that the request merely names. Whether
        ``subject`` has a password here is not looked at.

        With ``tx`` the session is part of your transaction: hand the tokens out after its commit. The access token
        needs no database, so one from a transaction that was rolled back would be accepted for ``access_ttl_s``.

        Beyond ``sessions_per_subject_max`` the session that has rested longest ends. ``proof`` is what has shown who
        they are, and says by what ``logins_total`` counts them; it is not judged again.

        Raises:
            AccountDisabled: ``subject`` is shut out.
            ValueError: ``subject`` or ``tenant`` is no name.
        """
        self._require_started()
        check_names(tenant, subject)

        async def write(tx: Tx) -> Tokens:
            return await self._open(tx, tenant, subject, device, method)

        method = method_of(proof)
        with self._logins.refusals(method):
            return await self._db.run(write, tx=tx)

    async def refresh(self, token: str) -> Tokens:
        """The next pair. Of several calls with one token all get the same successor; see :mod:`daydo_auth.rotation`.

        Raises:
            TokenInvalid: we did not make this token.
            TokenExpired: the session has rested or lived too long.
            RefreshReused: an older token came back; the session has been ended.
            SessionRevoked: it had been ended before.
            SessionsUnavailable: Redis is away; the same token works later.
        """
        self._require_started()
        return self._tokens(*await self.sessions.rotate(self._refresh.read(token)))

    async def logout(self, principal: Principal, *, tx: Tx | None = None) -> None:
        """End the session of ``principal``; a second time changes nothing.

        This worker refuses its access tokens at once, the others within ``revocation_poll_s``.
        """
        self._require_started()
        await self.sessions.logout(principal, tx)

    def verify(self, header: str | None) -> Principal:
        """Whom an Authorization header names. No I/O.

        Raises:
            TokenMissing, TokenInvalid, TokenExpired: the header.
            SessionRevoked: its session has ended.
            TokenStale: the subject's roles have changed since it was made; refresh it.
        """
        self._require_started()
        claims = self._access.read(header)
        self._require_current(claims.ten, claims.sub, claims.sid, claims.ep)
        if claims.rep > self.roles.epoch(claims.ten):
            self.roles.notice(claims.ten, claims.rep)
        return Principal(
            claims.ten,
            claims.sub,
            claims.sid,
            claims.rol,
            self.roles.permissions(claims.ten, claims.rol),
            "bearer",
            claims.aut * 1_000_000,
            epoch=claims.ep,
        )

    async def authenticate(self, presented: Presented) -> Principal:
        """Whom a request names, by whichever way it comes in: access token, API key, signature, or a page's cookie.

        An access token and a page cost no I/O, nor does a key that is known here; a signed request costs one call to
        Redis. See :mod:`daydo_auth.ways` for the order, :mod:`daydo_auth.signing` for what is signed.

        Raises:
            TokenMissing, TokenInvalid, TokenExpired, SessionRevoked, TokenStale: as :meth:`verify`.
            CsrfInvalid: a change by cookie without the page's token.
            KeyInvalid: not a key of ours, or not any more.
            SignatureInvalid: ``reason`` says why.
            AccountDisabled: a key whose subject is shut out.
            NoncesUnavailable: Redis is away and the request is signed.
            DbError: a key that is not known here, and the database is away.
        """
        self._require_started()
        return await self._ways.authenticate(presented)

    def key_owner(self, presented: Presented) -> str | None:
        """Under whose name a limit counts a request by API key or signature. No I/O, so before it is let in.

        ``tenant/subject`` where the key is known here, ``key/<id>`` where it has yet to be read; None where it is
        forged, or there is none. It says nothing about whether the key still works.
        """
        self._require_started()
        return self._ways.key_owner(presented)

    def require_fresh(self, principal: Principal, within_s: float) -> None:
        """``principal.require_fresh`` by this host's clock."""
        principal.require_fresh(within_s, self.now_us())

    def now_us(self) -> int:
        """The time by which tokens and keys are judged here, µs UTC: this host's, or the clock's."""
        return self._host_clock.now_us()

    # -- tickets -------------------------------------------------------------------------------------------------

    async def issue_ticket(self, principal: Principal) -> str:
        """A ticket for one connection within ``ticket_ttl_s``.

        Raises:
            SessionRevoked, KeyInvalid: the session has ended, the key was revoked.
            TokenStale: the subject's roles have changed.
            TicketsUnavailable: Redis is away.
        """
        self._require_started()
        self._require_current(
            principal.tenant, principal.subject, principal.session_id, principal.epoch, principal.key_id
        )
        return await self._tickets.issue(Held.of(principal))

    async def redeem_ticket(self, ticket: str) -> Principal:
        """Whom a ticket was made for; it works once.

        Raises:
            TicketInvalid: unknown, used or expired.
            TicketsUnavailable: Redis is away; nobody gets in.
            SessionRevoked, KeyInvalid: the session has ended since, the key was revoked.
            TokenStale: the subject's roles have changed since.
        """
        self._require_started()
        held = await self._tickets.redeem(ticket)
        self._require_current(held.tenant, held.subject, held.session_id, held.epoch, held.key_id)
        return held.principal(self.roles.permissions(held.tenant, held.roles))

    async def until_refused(self, principal: Principal, *permissions: str) -> AuthError:
        """Wait until the next request of ``principal`` would be refused; with what error. For what stays open.

        That is when their session ends, their API key is revoked, their roles change or do not give ``permissions``
        any more: at once where this worker does it, within ``revocation_poll_s`` where another does, and as long again
        where it is a role's definition. Also when session or key expire: as soon as that, but not in the first
        ``access_ttl_s``, for which an access token would be good, too. Cancel it when the connection ends first.
        """
        self._require_started()
        return await self._watches.until_refused(principal, permissions)

    # -- life ----------------------------------------------------------------------------------------------------

    async def health(self) -> Health:
        """``degraded`` while other workers' revocations cannot be read. No I/O."""
        if not self._running:
            return Health(status="down")
        return Health(
            status="degraded" if self._feed.is_stale else "ok",
            detail={"hashing_waiting": self._pool.waiting, "revocation_lag_s": round(self._feed.lag_s, 1)},
        )

    async def _start(self) -> None:
        self._pool.open()
        await self._db.require_schema("daydo_auth")
        await self._feed.open()
        await self.roles.start()
        self._repeat(self.config.revocation_poll_s, self._feed.look, "revocations")
        self._repeat(self.config.revocation_poll_s, self._watches.look, "watches")
        self._repeat(self.config.revocation_poll_s, self._watches.look_at_ends, "ends of watches")
        self._repeat(self.config.session_write_back_s, self._session_store.write_back, "write back")
        self._repeat(self.config.sweep_s, self._sweep, "sweep")
        self._repeat(self.config.key_use_write_s, self.keys.write_uses, "key uses")
        self._spawn(self._feed.listen(), "listen")
        self._spawn(self._feed.publish(), "publish")
        self._spawn(self.roles.follow(), "roles")

    async def _drain(self) -> None:
        await self._pool.drained()
        await self._session_store.write_back()
        await self.keys.write_uses()

    async def _close(self) -> None:
        self._pool.close()

    # -- steps ---------------------------------------------------------------------------------------------------

    async def _open(self, tx: Tx, tenant: str, subject: str, device: str, method: Method) -> Tokens:
        await self.roles.admit(tx, tenant, subject)
        with whole(tx):
            session, token = await self.sessions.open(tx, tenant, subject, device)
            await self._tell(tx, "login", tenant, subject, session_id=session.id, device=device_name(device))
            self._logins.opened(tx, method)
            return self._tokens(session, token)

    async def _tell(self, tx: Tx, name: str, tenant: str, subject: str, **data: Any) -> None:
        await self._events.emit(Event(name=f"auth.{name}", tenant=tenant, subject=subject, data=data), tx)

    def _tokens(self, session: Session, token: RefreshToken) -> Tokens:
        return Tokens(
            access=self._access.issue(session, self.roles.epoch(session.tenant)),
            refresh=self._refresh.write(token),
            expires_in_s=self.config.access_ttl_s,
            session_id=session.id,
            subject=session.subject,
        )

    def _refusal_now(self, principal: Principal, permissions: tuple[str, ...]) -> AuthError | None:
        tenant, allowed = principal.tenant, self.roles.permissions(principal.tenant, principal.roles)
        try:
            self._require_current(tenant, principal.subject, principal.session_id, principal.epoch, principal.key_id)
            for permission in permissions:
                # Both: a key's are narrower than what its roles come to.
                if not (principal.may(permission) and allowed.may(permission)):
                    raise Forbidden(permission=permission)
        except AuthError as error:
            return error.with_traceback(None)
        return None

    def _require_current(self, tenant: str, subject: str, session_id: str, epoch: int, key_id: str = "") -> None:
        if self._feed.session_ended(session_id):
            raise SessionRevoked()
        if key_id and self._feed.key_ended(key_id):
            raise KeyInvalid()
        if epoch < self._feed.subject_epoch(tenant, subject):
            raise TokenStale()

    async def _sweep(self) -> None:
        """A few batches of what nobody needs any more; more of it waits for the next time."""
        for _ in range(_SWEEPS_MAX):
            if not await self._feed.sweep() + await self._rows.sweep():
                return

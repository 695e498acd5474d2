"""Showing who one is, by a password, a one-time code or WeChat; and what follows from it.

Each credential is used up by one question and ends as a :class:`Proof`: whose identity it is, or that nobody here has
it yet. Whether a login is known is said only to who has proven that it is theirs.

**A login that nobody has proven belongs to whoever does.** Anybody can register a stranger's number with a password of
their own and wait. So when a code first proves such a login:

- by somebody who speaks from a session of that very subject (``by=``): it is marked proven, nothing else;
- if the subject was shut out by others: it keeps the login, and the prover is told AccountDisabled. Nobody comes back
  anew by proving their number at last. After ``roles.enable`` the rules below hold;
- if the subject is otherwise proven (another login, WeChat), or has left by itself: the login is taken from it, nobody
  has it now. Else whoever registered a stranger's number and left would keep the stranger out;
- else the subject is the prover's from here on. First whatever the one before could come back by is gone, and what was
  given to them: password, keys, sessions, roles. Then the application takes away what they have left of themselves
  (:class:`daydo_auth.ports.StartClean`). Only then is the login proven: what fails is done again by the next proof.

A password is checked outside the transaction that acts on it, for it takes long. So the transaction looks again whether
it is still that password, under a lock: a log-in that began before a change of the password does not end after it.

Whatever locks several rows takes them in one order, so that nobody waits for each other: identity, password, role
definitions, subject, API keys, sessions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from daydo_db import Database, Tx, whole
from daydo_kernel import Event, EventSink, FieldError

from .codes import Codes
from .config import AuthConfig
from .errors import (
    AccountDisabled,
    HashingSaturated,
    LoginTaken,
    LoginUnusable,
    PasswordTooWeak,
    RiskRefused,
    SubjectTaken,
    UnknownIdentity,
    WeChatCodeInvalid,
    WeChatUnavailable,
    WrongCredentials,
)
from .hashing import HashingPool
from .identities import LOGIN, UNION, Identity, IdentityStore, mask_identity
from .login_counts import Method
from .logins import mask_login, normalize_login
from .model import Code, Credential, HashedPassword, Password, Principal, Proof, Tokens, WeChatCode
from .names import check_names
from .passwords import MAX_SECRET_CHARS, Hasher, weaknesses
from .ports import StartClean, WeChatLogin
from .roles import Roles
from .sessions import Sessions

T = TypeVar("T")

LOG_IN, RESET = "login", "reset"  # purposes of codes
_ATTEMPTS = 3

Open = Callable[[Tx, str, str, str, Method], Awaitable[Tokens]]


class Proofs:
    """What :class:`daydo_auth.Auth` does with credentials; its verbs say what and why."""

    def __init__(
        self,
        db: Database,
        config: AuthConfig,
        store: IdentityStore,
        codes: Codes,
        wechat: WeChatLogin | None,
        hasher: Hasher,
        pool: HashingPool,
        sessions: Sessions,
        roles: Roles,
        events: EventSink,
        open_session: Open,
        start_clean: StartClean | None,
    ) -> None:
        self._db = db
        self._config = config
        self._store = store
        self._codes = codes
        self._wechat = wechat
        self._hasher = hasher
        self._pool = pool
        self._sessions = sessions
        self._roles = roles
        self._events = events
        self._open = open_session
        self._start_clean = start_clean

    # -- prove, link, log in -------------------------------------------------------------------------------------

    async def prove(
        self, credential: Credential, tenant: str, purpose: str, address: str, by: Principal | None
    ) -> Proof:
        if isinstance(credential, Password):
            subject, login, _ = await self._match(credential, tenant)
            proof = Proof(tenant, LOGIN, login, subject, way="password")
        else:
            proof = await self._prove(credential, tenant, purpose, address, by)
        return await self._admissible(proof)

    async def identify(self, proof: Proof, by: Principal | None) -> Proof:
        if proof.way == "password":
            return proof  # of a subject, not of a login: if that is somebody else's by now, it says nothing about them
        whose = self._known(proof.of(None)) if proof.way == "wechat" else self._settled(proof.of(None), by)
        return await self._admissible(await whose)

    async def link(self, proof: Proof, subject: str, tx: Tx | None) -> None:
        check_names(proof.tenant, subject)

        async def write(tx: Tx) -> None:
            await self._link(tx, proof, _names(proof), subject)

        await self._db.run(write, tx=tx)

    async def login(self, credential: Credential, tenant: str, device: str, address: str) -> Tokens:
        if isinstance(credential, Password):
            return await self._login_by_password(credential, tenant, device)
        return await self._login_by_proof(await self._prove(credential, tenant, LOG_IN, address, None), device)

    async def _login_by_password(self, password: Password, tenant: str, device: str) -> Tokens:
        for _ in range(_ATTEMPTS):
            subject, _, hashed = await self._match(password, tenant)
            fresh = await self._rehash(password.secret, hashed)

            async def write(tx: Tx) -> Tokens | None:
                if await self._store.lock_password(tx, tenant, subject) != hashed:  # noqa: B023 - runs in this turn
                    return None  # changed, or hashed anew by another log-in: look again
                if fresh:  # noqa: B023
                    await self._store.replace_password(tx, tenant, subject, hashed, fresh)  # noqa: B023
                return await self._open(tx, tenant, subject, device, "password")  # noqa: B023

            if (tokens := await self._admitted(tenant, subject, write)) is not None:
                return tokens
        raise WrongCredentials()

    async def _login_by_proof(self, proof: Proof, device: str) -> Tokens:
        async def write(tx: Tx) -> Tokens:
            owner = await self._store.lock(tx, proof.tenant, proof.kind, proof.login)
            if owner is None or owner.subject != proof.subject:
                raise UnknownIdentity()  # never was anybody's, or was taken away since
            return await self._open(tx, proof.tenant, owner.subject, device, proof.way)

        return await self._admitted(proof.tenant, proof.subject or "", write)

    async def _admitted(self, tenant: str, subject: str, write: Callable[[Tx], Awaitable[T]]) -> T:
        try:
            return await self._db.run(write)
        except AccountDisabled:  # told by itself: what was said in the transaction is gone
            await self._refused(tenant, subject, error=AccountDisabled.name)
            raise

    # -- passwords -----------------------------------------------------------------------------------------------

    async def hash(self, password: Password) -> HashedPassword:
        login = normalize_login(password.login)
        if login is None:
            raise LoginUnusable()
        self._require_strong([login], password.secret)
        return HashedPassword(login, await self._pool.run(self._hasher.hash, password.secret))

    async def register(self, password: Password | HashedPassword, subject: str, tenant: str, tx: Tx | None) -> None:
        check_names(tenant, subject)
        ready = password if isinstance(password, HashedPassword) else await self.hash(password)

        async def write(tx: Tx) -> None:
            await self._store.register(tx, tenant, ready.login, subject, ready.hashed)
            with whole(tx):
                await self._tell(tx, "registered", tenant, subject)

        await self._db.run(write, tx=tx)

    async def change_password(self, principal: Principal, old: str, new: str, tx: Tx | None) -> None:
        tenant, subject = principal.tenant, principal.subject
        self._require_strong(await self._logins_of(tenant, subject), new)
        hashed = await self._store.password_of(tenant, subject)
        if not await self._check(old, hashed):
            await self._refused(tenant, subject, why="change_password")
            raise WrongCredentials()
        fresh = await self._pool.run(self._hasher.hash, new)

        async def write(tx: Tx) -> None:
            with whole(tx):
                replaced = await self._store.replace_password(tx, tenant, subject, hashed, fresh)
                if replaced:
                    await self._ended(tx, tenant, subject, "change", but=principal.session_id or None)
            if not replaced:
                raise WrongCredentials()  # changed meanwhile

        await self._db.run(write, tx=tx)

    async def reset_password(self, code: Code, new: str, tenant: str, address: str) -> None:
        login = normalize_login(code.login)
        self._require_strong([login] if login is not None else [], new)
        # Before the code is used up: a full queue must not cost the person their code.
        fresh = await self._pool.run(self._hasher.hash, new)
        proof = await self.prove(code, tenant, RESET, address, None)
        if proof.subject is None:
            raise UnknownIdentity()

        async def write(tx: Tx) -> None:
            owner = await self._store.lock(tx, tenant, LOGIN, proof.login)
            if owner is None or owner.subject != proof.subject:
                raise UnknownIdentity()
            await self._store.drop_password(tx, tenant, owner.subject)
            await self._store.add_password(tx, tenant, owner.subject, fresh)
            await self._ended(tx, tenant, owner.subject, "reset")

        await self._db.run(write)

    async def set_password(self, subject: str, new: str, tenant: str, tx: Tx | None) -> None:
        check_names(tenant, subject)
        self._require_strong(await self._logins_of(tenant, subject), new)
        fresh = await self._pool.run(self._hasher.hash, new)

        async def write(tx: Tx) -> None:
            with whole(tx, but=SubjectTaken):
                await self._store.add_password(tx, tenant, subject, fresh)
            with whole(tx):
                await self._tell(tx, "password_changed", tenant, subject, how="set")

        await self._db.run(write, tx=tx)

    async def forget(self, subject: str, tenant: str, tx: Tx | None) -> None:
        check_names(tenant, subject)

        async def write(tx: Tx) -> None:
            with whole(tx):
                # In this order: a log-in that is quicker than the first is seen by what follows.
                await self._store.forget(tx, tenant, subject)
                await self._roles.hold(tx, tenant, subject)
                await self._store.drop_keys(tx, tenant, subject)
                await self._sessions.end_all(subject, tenant=tenant, why="forgotten", tx=tx)
                await self._store.forget_sessions(tx, tenant, subject)
                await self._roles.forget(tx, tenant, subject)
                await self._tell(tx, "forgotten", tenant, subject)

        await self._db.run(write, tx=tx)

    # -- steps: codes and WeChat ---------------------------------------------------------------------------------

    async def _admissible(self, proof: Proof) -> Proof:
        if proof.subject is not None and (await self._roles.of(proof.subject, tenant=proof.tenant)).is_disabled:
            await self._refused(proof.tenant, proof.subject, error=AccountDisabled.name)
            raise AccountDisabled()
        return proof

    async def _prove(
        self, credential: Code | WeChatCode, tenant: str, purpose: str, address: str, by: Principal | None
    ) -> Proof:
        check_names(tenant, "-")
        if isinstance(credential, Code):
            login = await self._codes.check(credential.login, credential.code, purpose, tenant=tenant, address=address)
            return await self._settled(Proof(tenant, LOGIN, login, None, way="code"), by)
        if self._wechat is None:
            raise WeChatUnavailable()
        try:
            user = await self._wechat.code2session(credential.code)
        except (WeChatCodeInvalid, RiskRefused) as error:
            await self._refused(tenant, "", error=error.name, address=address)
            raise
        return await self._known(
            Proof(tenant, f"wechat:{user.appid}", user.openid, None, way="wechat", union=user.unionid)
        )

    async def _settled(self, proof: Proof, by: Principal | None) -> Proof:
        """``proof`` with the subject whose login it is, once nobody has to give it up any more."""
        found = await self._store.find(proof.tenant, proof.kind, proof.login)
        if found is None or found.verified_at_us:
            return proof.of(found.subject if found is not None else None)

        async def write(tx: Tx) -> tuple[str | None, bool]:
            owner = await self._store.lock(tx, proof.tenant, proof.kind, proof.login)
            if owner is None or owner.verified_at_us:
                return owner.subject if owner is not None else None, False
            return await self._settle(tx, proof, owner, by)

        subject, is_reclaimed = await self._db.run(write)
        if subject is not None and is_reclaimed:
            subject = await self._hand_over(proof, subject)
        return proof.of(subject)

    async def _settle(self, tx: Tx, proof: Proof, owner: Identity, by: Principal | None) -> tuple[str | None, bool]:
        """Whose an unproven login is, and whether it has yet to be handed over: who had it is out by then."""
        tenant, subject = proof.tenant, owner.subject
        if by is not None and (by.tenant, by.subject) == (tenant, subject):
            await self._store.mark_proven(tx, tenant, LOGIN, proof.login)
            return subject, False
        known = await self._store.of(tenant, subject, tx)
        await self._store.lock_password(tx, tenant, subject)
        standing = await self._roles.hold(tx, tenant, subject)
        if standing.is_disabled and not standing.has_left:
            return subject, False
        if standing.has_left or any(each.verified_at_us for each in known):
            await self._store.remove(tx, tenant, LOGIN, proof.login, subject)
            await self._tell(tx, "login_reclaimed", tenant, subject, login=mask_login(proof.login), subject_kept=True)
            return None, False
        if by is not None:
            return subject, False  # theirs for the asking, by logging in with a code; not in passing
        await self._store.drop_password(tx, tenant, subject)
        await self._roles.assign(subject, (), tenant=tenant, tx=tx)
        await self._store.drop_keys(tx, tenant, subject)
        await self._sessions.end_all(subject, tenant=tenant, why="reclaimed", tx=tx)
        return subject, True

    async def _hand_over(self, proof: Proof, subject: str) -> str | None:
        """Let ``subject``, whom nobody can enter as, be the prover's; whose the login is then."""
        tenant = proof.tenant
        if self._start_clean is not None:
            await self._start_clean(tenant, subject)

        async def write(tx: Tx) -> str | None:
            owner = await self._store.lock(tx, tenant, LOGIN, proof.login)
            if owner is None or owner.subject != subject or owner.verified_at_us:
                return owner.subject if owner is not None else None  # by another proof at the same time
            await self._store.mark_proven(tx, tenant, LOGIN, proof.login)
            await self._tell(tx, "login_reclaimed", tenant, subject, login=mask_login(proof.login), subject_kept=False)
            return subject

        return await self._db.run(write)

    async def _known(self, proof: Proof) -> Proof:
        """``proof`` by WeChat with its subject: whoever has the openid, else whoever has the unionid."""
        owners = [await self._store.find(proof.tenant, kind, login) for kind, login in _names(proof)]
        subject = next((owner.subject for owner in owners if owner is not None), None)
        if subject is None or all(owners):
            return proof.of(subject)

        async def write(tx: Tx) -> None:
            # The same person in another application of the same owner, or its first unionid.
            new = [name for name, owner in zip(_names(proof), owners, strict=True) if owner is None]
            await self._link(tx, proof, new, subject)

        try:
            await self._db.run(write)
        except LoginTaken:
            return await self._known(proof)  # linked to somebody in this very moment
        return proof.of(subject)

    async def _link(self, tx: Tx, proof: Proof, names: Sequence[tuple[str, str]], subject: str) -> None:
        is_proven = proof.way != "password"
        with whole(tx, but=LoginTaken):
            owners = await self._take(tx, proof.tenant, names, subject, proven=is_proven)
        with whole(tx):
            for (kind, login), owner in zip(names, owners, strict=True):
                if owner is None:
                    await self._tell(tx, "linked", proof.tenant, subject, kind=kind, login=mask_identity(kind, login))
                elif is_proven and not owner.verified_at_us:
                    await self._store.mark_proven(tx, proof.tenant, kind, login)

    async def _take(
        self, tx: Tx, tenant: str, names: Sequence[tuple[str, str]], subject: str, *, proven: bool
    ) -> list[Identity | None]:
        """Give ``subject`` each of ``names`` that it does not have; for each what there was, None where it is new.

        Raises:
            LoginTaken: somebody else has one; nothing is left of the others.
        """
        owners: list[Identity | None] = []
        for name in names:
            # Locked only where there is a row: a lock on none is one on a gap, and two newcomers would deadlock.
            known = await self._store.exists(tx, tenant, *name)
            owner = await self._store.lock(tx, tenant, *name) if known else None
            if owner is None:
                owner = await self._store.add_or_find(tx, tenant, *name, subject, proven=proven)
            if owner is not None and owner.subject != subject:
                # The caller may catch it and commit the rest of their transaction.
                for taken, was in zip(names, owners, strict=False):
                    if was is None:
                        await self._store.remove(tx, tenant, *taken, subject)
                raise LoginTaken()
            owners.append(owner)
        return owners

    # -- steps: passwords ----------------------------------------------------------------------------------------

    async def _match(self, password: Password, tenant: str) -> tuple[str, str, str]:
        """(subject, login, hashed) of a right password; the same work for a login that nobody has."""
        login = normalize_login(password.login)
        found = await self._store.find_password(tenant, login) if login is not None else None
        subject, hashed = found if found is not None else ("", "")
        if login is None or not await self._check(password.secret, hashed):
            await self._refused(tenant, subject, login=mask_login(login or ""), known=bool(subject))
            raise WrongCredentials()
        return subject, login, hashed

    async def _check(self, secret: str, hashed: str) -> bool:
        if len(secret) > MAX_SECRET_CHARS:
            return False  # says nothing about the login: it is refused for every one
        return await self._pool.run(self._hasher.check, secret, hashed)

    async def _rehash(self, secret: str, hashed: str) -> str:
        """``secret`` by today's recipe; "" where ``hashed`` is, or there is no time for it now."""
        if self._hasher.is_current(hashed):
            return ""
        try:
            return await self._pool.run(self._hasher.hash, secret)
        except HashingSaturated:
            return ""

    def _require_strong(self, logins: list[str], secret: str) -> None:
        policy = self._config.password_policy
        weak: dict[FieldError, None] = {}
        for login in logins or [""]:
            weak |= dict.fromkeys(weaknesses(policy, login, secret))
        if weak:
            raise PasswordTooWeak(fields=tuple(weak))

    async def _logins_of(self, tenant: str, subject: str) -> list[str]:
        return [each.login for each in await self._store.of(tenant, subject) if each.kind == LOGIN]

    async def _ended(self, tx: Tx, tenant: str, subject: str, how: str, but: str | None = None) -> None:
        await self._sessions.end_all(subject, tenant=tenant, but=but, why="password", tx=tx)
        await self._tell(tx, "password_changed", tenant, subject, how=how)

    # -- said ----------------------------------------------------------------------------------------------------

    async def _tell(self, tx: Tx, event: str, tenant: str, subject: str, **data: Any) -> None:
        await self._events.emit(Event(name=f"auth.{event}", tenant=tenant, subject=subject, data=data), tx)

    async def _refused(self, tenant: str, subject: str, **data: Any) -> None:
        await self._events.emit(Event(name="auth.refused", tenant=tenant, subject=subject, data=data))


def _names(proof: Proof) -> list[tuple[str, str]]:
    """The identities that a proof is of: one, and WeChat's unionid."""
    return [(proof.kind, proof.login), *([(UNION, proof.union)] if proof.union else [])]

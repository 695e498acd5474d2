"""Invite codes: made ahead, given out, used once.

A pool of codes lies ready, so that giving one out is two small statements, and a look at the pool tells how many were
taken. Every worker refills it now and then; who holds the lock of the pool's one row does, the others pass. Taking
passes over codes that are being taken at that moment, so nobody waits for anybody; where the pool is empty, a code is
made on the spot.

Using a code up is one conditional UPDATE: of any number at once exactly one finds it unused. Inviters are older members
than whom they invite, so nobody invites themselves, and no chain of invitations closes to a circle.
"""

from __future__ import annotations

import secrets
from typing import Final

import msgspec

from daydo_db import Database, Slice, Tx
from daydo_kernel import Clock, Event, EventSink, Metrics, NotFound, Part, SystemClock
from daydo_quota import Account, Ledger

from .config import CREDITS, TENANT, InvitesConfig
from .errors import AlreadyInvited, InviteInvalid, InviteOwn, InvitesExhausted, InviteTooLate
from .repository import InviteCodes, Profiles, TakenInvite
from .tables import Profile

ALPHABET: Final = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
"""Without 0 and O, 1, I and L, which people mistake for one another."""
CODE_CHARS: Final = 8
_BATCH = 500  # codes of one transaction: nobody waits long behind it
_SEPARATORS = str.maketrans("", "", " -")


class NewInvite(msgspec.Struct, frozen=True):
    """A code to give away; ``created`` is False where the same request had been answered before."""

    invite: TakenInvite
    created: bool


def new_code() -> str:
    """A random code."""
    return "".join(secrets.choice(ALPHABET) for _ in range(CODE_CHARS))


def read_code(text: str) -> str | None:
    """A code as people type it, in its one form; None for what is none."""
    code = text.translate(_SEPARATORS).upper()
    return code if len(code) == CODE_CHARS and set(code) <= set(ALPHABET) else None


class Invites(Part):
    """The invite codes of all users."""

    def __init__(
        self,
        db: Database,
        ledger: Ledger,
        profiles: Profiles,
        config: InvitesConfig,
        *,
        clock: Clock | None = None,
        events: EventSink,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        self._db = db
        self._ledger = ledger
        self._config = config
        self._codes = InviteCodes(db)
        self._profiles = profiles
        self._clock = clock or SystemClock()
        self._events = events
        self.metrics = Metrics("daydo_app_invites")
        self._made = self.metrics.counter("made_total", "Codes put into the pool.").cell()
        given = self.metrics.counter("given_total", "Codes given to users, by where they came from.", ("source",))
        self._given = {source: given.cell(source) for source in ("pool", "spot")}
        self._claimed = self.metrics.counter("claimed_total", "Codes used up by newcomers.").cell()

    async def take(self, tenant: str, user_id: str, key: str) -> NewInvite:
        """A code for ``user_id`` to give away; the same ``key`` returns the same code.

        Raises:
            InvitesExhausted: they have as many unused ones as one may have.
            NotFound: there is no such user.
        """
        self._require_started()

        async def write(tx: Tx) -> NewInvite:
            # One call of a user at a time: neither key nor bound can be passed twice.
            if await self._profiles.lock(tenant, user_id, tx=tx) is None:
                raise NotFound()
            if (known := await self._codes.find_key(tenant, user_id, key, tx=tx)) is not None:
                return NewInvite(known, created=False)
            if await self._codes.count_open(tenant, user_id, tx=tx) >= self._config.open_max:
                raise InvitesExhausted(most=self._config.open_max)
            return NewInvite(await self._give(tenant, user_id, key, tx), created=True)

        return await self._db.run(write)

    async def page(self, tenant: str, user_id: str, cursor: str | None, limit: int) -> Slice[TakenInvite]:
        """The codes that ``user_id`` was given, newest first."""
        return await self._codes.page(tenant, user_id, cursor, limit)

    async def inviter(self, tenant: str, text: str, *, tx: Tx) -> str | None:
        """Whose code that is; None where there is no such code in anybody's hands."""
        code = read_code(text)
        found = await self._codes.find(tenant, code, tx=tx) if code is not None else None
        return found.owner if found is not None else None

    async def claim(self, tenant: str, newcomer: Profile, text: str, *, tx: Tx) -> str:
        """Use a code up for ``newcomer``, who was not invited yet, and grant what it is worth; the inviter's id.

        Raises:
            InviteInvalid: unknown, used, never given out, or of somebody who is gone.
            InviteOwn: it is their own.
            InviteTooLate: its owner registered after them.
        """
        code = read_code(text)
        owner = await self.inviter(tenant, text, tx=tx)
        if code is None or owner is None:
            raise InviteInvalid()
        if owner == newcomer.id:
            raise InviteOwn()
        if not await self._codes.claim(tenant, code, newcomer.id, self._clock.now_us(), tx=tx):
            raise InviteInvalid()
        inviter = await self._profiles.lock(tenant, owner, tx=tx)
        if inviter is None:
            raise InviteInvalid()
        if (inviter.created_at_us, inviter.id) >= (newcomer.created_at_us, newcomer.id):
            raise InviteTooLate()
        await self._reward(tenant, code, owner, newcomer.id, tx)
        tx.after_commit(self._claimed.inc)
        return owner

    async def claim_later(self, tenant: str, user_id: str, text: str) -> str:
        """As :meth:`claim`, for somebody who registered without a code, within ``claim_within_s``; the inviter's id.

        Raises:
            AlreadyInvited: somebody has invited them.
            InviteTooLate: they registered too long ago.
            NotFound: there is no such user.
        """
        self._require_started()

        async def write(tx: Tx) -> str:
            user = await self._profiles.lock(tenant, user_id, tx=tx)
            if user is None:
                raise NotFound()
            if user.referrer_id is not None:
                raise AlreadyInvited()
            if self._clock.now_us() - user.created_at_us > self._config.claim_within_s * 1_000_000:
                raise InviteTooLate()
            owner = await self.claim(tenant, user, text, tx=tx)
            await self._profiles.change(tenant, user_id, {Profile.referrer_id: owner}, tx=tx)
            return owner

        return await self._db.run(write)

    async def forget(self, tenant: str, user_id: str, *, tx: Tx) -> None:
        """The codes of ``user_id`` that nobody has used are gone."""
        await self._codes.remove_open(tenant, user_id, tx=tx)

    async def refill(self) -> int:
        """Bring the pool to its size, unless another worker is at it; how many codes were made."""
        made = 0
        while batch := await self._db.run(self._refill_some):
            made += batch
        return made

    async def _start(self) -> None:
        self._spawn(self.refill(), "first refill")
        self._repeat(self._config.refill_s, self.refill, "refill")

    async def _refill_some(self, tx: Tx) -> int:
        if not await self._codes.hold_pool(TENANT, tx=tx):
            return 0
        missing = self._config.pool_size - await self._codes.count_free(TENANT, tx=tx)
        codes = {new_code() for _ in range(min(missing, _BATCH))}
        if codes:
            # One that is there already, once in a thousand million, fails all; the next turn makes others.
            await self._codes.add(TENANT, sorted(codes), self._clock.now_us(), tx=tx)
            tx.after_commit(lambda: self._made.inc(len(codes)))
        return len(codes)

    async def _give(self, tenant: str, user_id: str, key: str, tx: Tx) -> TakenInvite:
        now_us, source = self._clock.now_us(), "pool"
        code = await self._codes.pick(tenant, tx=tx)
        if code is None:
            code, source = new_code(), "spot"
            await self._codes.add(tenant, [code], now_us, tx=tx)
        await self._codes.take(tenant, code, user_id, key, now_us, tx=tx)
        tx.after_commit(self._given[source].inc)
        return TakenInvite(code=code, taken_at_us=now_us)

    async def _reward(self, tenant: str, code: str, inviter: str, newcomer: str, tx: Tx) -> None:
        worth = ((inviter, self._config.inviter_credits, "invite"), (newcomer, self._config.invited_credits, "invited"))
        for subject, amount, name in worth:
            if amount:
                account = Account(tenant, subject, CREDITS)
                await self._ledger.grant(account, amount, key=f"{name}_{code}", source="invite", tx=tx)
        event = Event(name="account.invited", tenant=tenant, subject=newcomer, data={"inviter": inviter})
        await self._events.emit(event, tx)

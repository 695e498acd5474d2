"""The rules of accounts: what a registration creates, all of it or nothing."""

from __future__ import annotations

import msgspec

from daydo_auth import Auth, Password, Tokens
from daydo_db import Database, Tx
from daydo_kernel import Clock, NotFound, SystemClock, new_id
from daydo_quota import Account, Ledger

from .repository import Profiles
from .tables import Profile

TENANT = "main"
CREDITS = "credits"


class Contact(msgspec.Struct, frozen=True, kw_only=True):
    """A phone number (eleven digits) or an e-mail address (lower case): what a user logs in by."""

    phone: str | None = None
    email: str | None = None

    @classmethod
    def of(cls, phone: str | None, email: str | None) -> Contact:
        """Canonical form of what was typed: ``+86`` and capitals do not make another user."""
        if phone is not None:
            return cls(phone=phone[-11:])
        return cls(email=(email or "").lower())

    @property
    def login(self) -> str:
        return self.phone or self.email or ""


class SignUpCredits(msgspec.Struct, frozen=True, kw_only=True):
    """What a new user is given: ``welcome`` once, ``daily`` each day by Beijing's clock, gone at its end; 0 is none."""

    welcome: int = 0
    daily: int = 0


class Accounts:
    """Registration, log-in and profiles of one tenant."""

    def __init__(
        self, db: Database, auth: Auth, ledger: Ledger, sign_up: SignUpCredits, *, clock: Clock | None = None
    ) -> None:
        self._db = db
        self._auth = auth
        self._ledger = ledger
        self._profiles = Profiles(db)
        self._sign_up = sign_up
        self._clock = clock or SystemClock()

    async def register(self, contact: Contact, password: str, *, device: str) -> tuple[Profile, Tokens]:
        """Create user, log-in, first credits and session in one transaction.

        Raises:
            LoginTaken: the phone number or address belongs to a user.
            PasswordTooWeak: the password breaks the policy.
            HashingSaturated: too many passwords wait to be hashed; nothing is created.
        """
        profile = Profile(
            id=new_id("user"),
            tenant=TENANT,
            phone=contact.phone,
            email=contact.email,
            created_at_us=self._clock.now_us(),
        )
        hashed = await self._auth.hash(Password(contact.login, password))

        async def create(tx: Tx) -> Tokens:
            await self._auth.register(hashed, subject=profile.id, tenant=TENANT, tx=tx)
            await self._profiles.add(profile, tx=tx)
            await self._give(Account(TENANT, profile.id, CREDITS), tx)
            return await self._auth.open_session(profile.id, tenant=TENANT, device=device, tx=tx)

        return profile, await self._db.run(create)

    async def login(self, contact: Contact, password: str, *, device: str) -> tuple[Profile, Tokens]:
        """Open a session.

        Raises:
            WrongCredentials: unknown user or wrong password; the two look and last the same.
        """
        tokens = await self._auth.login(Password(contact.login, password), device=device, tenant=TENANT)
        return await self.profile(TENANT, tokens.subject), tokens

    async def _give(self, account: Account, tx: Tx) -> None:
        given = self._sign_up
        if given.welcome:
            key = f"welcome_{account.subject}"
            await self._ledger.grant(account, given.welcome, key=key, source="promo", tx=tx)
        if given.daily:
            await self._ledger.allow(account, given.daily, key=f"daily_{account.subject}", every="day", tx=tx)

    async def profile(self, tenant: str, user_id: str) -> Profile:
        """The user's profile.

        Raises:
            NotFound: there is none.
        """
        profile = await self._profiles.find(tenant, user_id)
        if profile is None:
            raise NotFound()
        return profile

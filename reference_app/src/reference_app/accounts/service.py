"""The rules of signing up and in: what a registration creates, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from daydo_auth import Auth, Code, CodeSent, LoginTaken, Password, Proof, Tokens, WeChatCode
from daydo_db import Database, Tx
from daydo_kernel import Clock, NotFound, SystemClock, new_id
from daydo_quota import Account, Ledger

from .config import CREDITS, TENANT, SignUpCredits
from .contact import Contact
from .errors import InviteInvalid, ReferrerUnknown
from .invites import Invites
from .repository import Profiles
from .tables import Profile


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """What comes with somebody who signs up or in: their device and address; for newcomers, who sent them."""

    device: str = ""
    address: str = ""
    referrer_id: str | None = None
    invite_code: str | None = None


def _anybody() -> None:
    """Registration is open."""


class Accounts:
    """Registration and every way of logging in, for one tenant.

    ``may_register`` raises while nobody may register: logging in by a code or WeChat registers newcomers, too.
    """

    def __init__(
        self,
        db: Database,
        auth: Auth,
        ledger: Ledger,
        profiles: Profiles,
        invites: Invites,
        sign_up: SignUpCredits,
        *,
        may_register: Callable[[], object] = _anybody,
        clock: Clock | None = None,
    ) -> None:
        self._db = db
        self._auth = auth
        self._ledger = ledger
        self._invites = invites
        self._profiles = profiles
        self._sign_up = sign_up
        self._may_register = may_register
        self._clock = clock or SystemClock()

    async def register(
        self, contact: Contact, password: str, arrival: Arrival, *, code: str | None = None
    ) -> tuple[Profile, Tokens]:
        """Create user, log-in, first credits and session in one transaction; with a ``code`` the phone is proven, too.

        Raises:
            LoginTaken: the phone number or address belongs to a user.
            PasswordTooWeak: the password breaks the policy.
            CodeWrong, CodesLimited: the code is not the one that was sent for the purpose ``register``.
            ReferrerUnknown: there is no such referrer, or it is not whose invite code it is.
            InviteInvalid: the invite code is unknown or used.
            HashingSaturated: too many passwords wait to be hashed; nothing is created.
        """
        await self._require_referrer(arrival.referrer_id)
        hashed = await self._auth.hash(Password(contact.login, password))
        proof = await self._prove_phone(contact, code, arrival) if code is not None else None
        profile = self._newcomer(contact)

        async def create(tx: Tx) -> Tokens:
            await self._welcome(profile, arrival, tx)
            await self._auth.register(hashed, subject=profile.id, tenant=TENANT, tx=tx)
            return await self._admit(profile, proof, arrival, tx)

        return profile, await self._db.run(create)

    async def login(self, contact: Contact, password: str, arrival: Arrival) -> tuple[Profile, Tokens]:
        """Open a session.

        Raises:
            WrongCredentials: unknown user or wrong password; the two look and last the same.
            AccountDisabled: the right password, of somebody who is shut out.
            HashingSaturated: too many at once.
        """
        credential = Password(contact.login, password)
        tokens = await self._auth.login(credential, device=arrival.device, tenant=TENANT, address=arrival.address)
        return await self._profile(tokens.subject), tokens

    async def login_by_code(self, phone: str, code: str, arrival: Arrival) -> tuple[Profile, Tokens]:
        """Open a session for whose phone this is; registers them where it is nobody's yet.

        Raises:
            CodeWrong, CodesLimited: the code is not the one that was sent for the purpose ``login``.
            AccountDisabled: the right code, of somebody who is shut out.
            ReferrerUnknown, InviteInvalid: as :meth:`register`; the code is used up.
        """
        contact = Contact.of(phone, None)
        proof = await self._auth.prove(Code(contact.login, code), tenant=TENANT, address=arrival.address)
        return await self._enter(proof, contact, arrival)

    async def login_by_wechat(self, code: str, arrival: Arrival) -> tuple[Profile, Tokens]:
        """Open a session for whom WeChat names; registers them the first time.

        Raises:
            WeChatCodeInvalid, RiskRefused, WeChatUnavailable: what WeChat says, or does not.
            AccountDisabled, ReferrerUnknown, InviteInvalid: as :meth:`login_by_code`.
        """
        proof = await self._auth.prove(WeChatCode(code), tenant=TENANT, address=arrival.address)
        return await self._enter(proof, Contact(), arrival)

    async def send_code(self, phone: str, purpose: str, *, address: str) -> CodeSent:
        """Send a one-time code to a phone, known or not.

        Raises:
            CodesLimited: too many for this phone, this address or this day.
            SenderUnavailable: it was not sent, or perhaps not.
            LoginUnusable: there is no gateway for this number.
        """
        return await self._auth.codes.send(Contact.of(phone, None).login, purpose, tenant=TENANT, address=address)

    async def reset_password(self, phone: str, code: str, password: str, *, address: str) -> None:
        """Another password by a code sent for ``reset``; ends all sessions. Raises as ``auth.reset_password``."""
        login = Contact.of(phone, None).login
        await self._auth.reset_password(Code(login, code), password, tenant=TENANT, address=address)

    async def _prove_phone(self, contact: Contact, code: str, arrival: Arrival) -> Proof:
        credential = Code(contact.login, code)
        return await self._auth.prove(credential, tenant=TENANT, purpose="register", address=arrival.address)

    async def _enter(self, proof: Proof, contact: Contact, arrival: Arrival) -> tuple[Profile, Tokens]:
        if proof.subject is None:
            try:
                return await self._join(proof, contact, arrival)
            except (LoginTaken, InviteInvalid):  # another request of theirs was quicker, and used their invitation
                proof = await self._auth.identify(proof)
                if proof.subject is None:
                    raise
        tokens = await self._auth.open_session(proof.subject, tenant=TENANT, device=arrival.device, proof=proof)
        return await self._profile(proof.subject), tokens

    async def _join(self, proof: Proof, contact: Contact, arrival: Arrival) -> tuple[Profile, Tokens]:
        self._may_register()
        await self._require_referrer(arrival.referrer_id)
        profile = self._newcomer(contact)

        async def create(tx: Tx) -> Tokens:
            await self._welcome(profile, arrival, tx)
            return await self._admit(profile, proof, arrival, tx)

        return profile, await self._db.run(create)

    def _newcomer(self, contact: Contact) -> Profile:
        now_us = self._clock.now_us()
        return Profile(id=new_id("user"), tenant=TENANT, phone=contact.phone, email=contact.email, created_at_us=now_us)

    async def _require_referrer(self, referrer_id: str | None) -> None:
        if referrer_id is None:
            return
        known = await self._profiles.find(TENANT, referrer_id)
        if known is None or (await self._auth.roles.of(referrer_id, tenant=TENANT)).is_disabled:
            raise ReferrerUnknown()

    async def _welcome(self, profile: Profile, arrival: Arrival, tx: Tx) -> None:
        """Use the invite code up first: of many with one code, all but one stop here and hold nothing."""
        profile.referrer_id = arrival.referrer_id
        if arrival.invite_code is not None:
            inviter = await self._invites.claim(TENANT, profile, arrival.invite_code, tx=tx)
            if arrival.referrer_id not in (None, inviter):
                raise ReferrerUnknown()
            profile.referrer_id = inviter

    async def _admit(self, profile: Profile, proof: Proof | None, arrival: Arrival, tx: Tx) -> Tokens:
        if proof is not None:
            await self._auth.link(proof, subject=profile.id, tx=tx)
            if profile.phone is not None:
                await self._profiles.release_phone(TENANT, profile.phone, tx=tx)
        await self._profiles.add(profile, tx=tx)
        await self._give(Account(TENANT, profile.id, CREDITS), tx)
        return await self._auth.open_session(profile.id, tenant=TENANT, device=arrival.device, proof=proof, tx=tx)

    async def _give(self, account: Account, tx: Tx) -> None:
        given = self._sign_up
        if given.welcome:
            key = f"welcome_{account.subject}"
            await self._ledger.grant(account, given.welcome, key=key, source="promo", tx=tx)
        if given.daily:
            await self._ledger.allow(account, given.daily, key=f"daily_{account.subject}", every="day", tx=tx)

    async def _profile(self, user_id: str) -> Profile:
        profile = await self._profiles.find(TENANT, user_id)
        if profile is None:
            raise NotFound()
        return profile

"""A user's own data: all of it in one document, or all of it gone.

Erasing takes away who somebody was, not what happened: entries of the ledger, finished tasks and used invite codes stay
under an id that leads to nobody any more. Files go before the person, while a failure can still be tried again, and
once more after, for what was uploaded in between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from daydo_auth import Auth, Principal
from daydo_db import Database, Tx
from daydo_kernel import Event, EventSink, NotFound, isoformat
from daydo_quota import Ledger

from .invites import Invites
from .repository import Profiles
from .tables import Profile

_PAGE = 100
ITEMS_MAX = 10_000
"""Of one list in an export."""


class Belongings(Protocol):
    """What another domain keeps of a user."""

    async def export(self, tenant: str, subject: str) -> dict[str, Any]:
        """All of it, as JSON values by name."""

    async def forget(self, tenant: str, subject: str) -> None:
        """Delete it; a second time changes nothing."""


class Privacy:
    """Export and erasure of everything about one user."""

    def __init__(
        self,
        db: Database,
        auth: Auth,
        ledger: Ledger,
        profiles: Profiles,
        invites: Invites,
        belongings: Sequence[Belongings],
        *,
        events: EventSink,
    ) -> None:
        self._db = db
        self._auth = auth
        self._ledger = ledger
        self._invites = invites
        self._profiles = profiles
        self._belongings = belongings
        self._events = events

    async def export(self, user: Principal) -> dict[str, Any]:
        """Everything that is kept about ``user``, unmasked; of each list the newest 10,000 items.

        Raises:
            NotFound: there is no such user.
        """
        tenant, subject = user.tenant, user.subject
        profile = await self._profiles.find(tenant, subject)
        if profile is None:
            raise NotFound()
        document: dict[str, Any] = {
            "profile": _profile(profile),
            "roles": list(user.roles),
            "identities": [
                {"kind": each.kind, "login": each.login, "created_at": isoformat(each.created_at_us)}
                for each in await self._auth.identities.list(subject, tenant=tenant)
            ],
            "sessions": [
                {
                    "id": each.id,
                    "device": each.device,
                    "created_at": isoformat(each.created_at_us),
                    "last_used_at": isoformat(each.last_used_at_us),
                }
                for each in await self._auth.sessions.list(user)
            ],
            "api_keys": [
                {
                    "id": each.id,
                    "name": each.name,
                    "scopes": list(each.scopes),
                    "created_at": isoformat(each.created_at_us),
                }
                for each in await self._auth.keys.list(user)
            ],
            "invites": [item async for item in self._invites_of(tenant, subject)],
            "credits": await self._ledger.accounts(tenant, subject),
            "credit_history": [item async for item in self._entries(tenant, subject)],
        }
        for domain in self._belongings:
            document |= await domain.export(tenant, subject)
        event = Event(name="account.exported", tenant=tenant, subject=subject)
        await self._events.emit(event)
        return document

    async def erase(self, user: Principal) -> None:
        """Delete the person; ends all sessions. After an error, call it again.

        Raises:
            NotFound: there is no such user.
        """
        tenant, subject = user.tenant, user.subject

        async def write(tx: Tx) -> None:
            if not await self._profiles.remove(tenant, subject, tx=tx):
                raise NotFound()
            await self._invites.forget(tenant, subject, tx=tx)
            await self._auth.forget(subject, tenant=tenant, tx=tx)
            await self._events.emit(Event(name="account.erased", tenant=tenant, subject=subject), tx)

        await self._forget_belongings(tenant, subject)
        await self._db.run(write)
        await self._forget_belongings(tenant, subject)

    async def _forget_belongings(self, tenant: str, subject: str) -> None:
        for domain in self._belongings:
            await domain.forget(tenant, subject)

    async def _invites_of(self, tenant: str, subject: str) -> AsyncIterator[dict[str, Any]]:
        cursor: str | None = None
        for _ in range(ITEMS_MAX // _PAGE):
            page = await self._invites.page(tenant, subject, cursor, _PAGE)
            for each in page.rows:
                yield {
                    "code": each.code,
                    "taken_at": isoformat(each.taken_at_us),
                    "claimed_at": isoformat(each.claimed_at_us) if each.claimed_at_us else None,
                }
            if (cursor := page.next_cursor) is None:
                return

    async def _entries(self, tenant: str, subject: str) -> AsyncIterator[dict[str, Any]]:
        cursor: str | None = None
        for _ in range(ITEMS_MAX // _PAGE):
            page = await self._ledger.history(tenant, subject, cursor=cursor, limit=_PAGE)
            for each in page.items:
                yield {
                    "unit": each.unit,
                    "kind": each.kind,
                    "amount": each.amount,
                    "available": each.available,
                    "reserved": each.reserved,
                    "reason": each.reason,
                    "at": isoformat(each.at_us),
                }
            if (cursor := page.next_cursor) is None:
                return


def _profile(profile: Profile) -> dict[str, Any]:
    return {
        "id": profile.id,
        "phone": profile.phone,
        "email": profile.email,
        "nickname": profile.nickname,
        "avatar": profile.avatar,
        "gender": profile.gender,
        "referrer_id": profile.referrer_id,
        "created_at": isoformat(profile.created_at_us),
    }

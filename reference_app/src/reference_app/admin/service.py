"""The rules of administration: nobody acts on themselves, nor on who may do more.

What a role allows, and who may hand it out, daydo-auth decides; every change is an event of its own in the
transaction of the change, with who did it and why.
"""

from __future__ import annotations

import msgspec

from daydo_auth import Auth, Permissions, Principal, Role, SessionInfo, Standing
from daydo_db import Database, Slice, Tx
from daydo_kernel import Event, EventSink, NotFound
from reference_app.accounts.errors import OwnAccount
from reference_app.accounts.repository import ListedProfile, Profiles, listed


class KnownUser(msgspec.Struct, frozen=True):
    """A user, and how they stand."""

    profile: ListedProfile
    standing: Standing


class Administration:
    """Users and roles of the administrator's own tenant; somebody else's are not found."""

    def __init__(self, db: Database, auth: Auth, profiles: Profiles, *, events: EventSink) -> None:
        self._db = db
        self._auth = auth
        self._profiles = profiles
        self._events = events

    async def users(self, by: Principal, cursor: str | None, limit: int) -> Slice[KnownUser]:
        """All, newest first."""
        page = await self._profiles.page(by.tenant, cursor, limit)
        return Slice(await self._known(by.tenant, page.rows), next_cursor=page.next_cursor)

    async def search(self, by: Principal, text: str) -> list[KnownUser]:
        """Whoever has this id, phone number or address; not a part of one."""
        return await self._known(by.tenant, await self._profiles.look_up(by.tenant, text.strip()))

    async def user(self, by: Principal, user_id: str) -> KnownUser:
        """
        Raises:
            NotFound: there is no such user.
        """
        return (await self._known(by.tenant, [await self._require(by, user_id)]))[0]

    async def sessions(self, by: Principal, user_id: str) -> list[SessionInfo]:
        """Where a user is logged in.

        Raises:
            NotFound: there is no such user.
        """
        await self._require(by, user_id)
        return await self._auth.sessions.list(user_id, tenant=by.tenant)

    async def end_sessions(self, by: Principal, user_id: str, reason: str) -> int:
        """Log a user out everywhere; how many sessions that were.

        Raises:
            NotFound: there is no such user.
            Forbidden: they may do what ``by`` may not.
        """
        await self._require(by, user_id)

        async def write(tx: Tx) -> int:
            await self._require_above(by, user_id, tx)
            ended = await self._auth.sessions.end_all(user_id, tenant=by.tenant, why="admin", tx=tx)
            await self._tell(by, user_id, "sessions_ended", reason, tx)
            return ended

        return await self._db.run(write)

    async def disable(self, by: Principal, user_id: str, reason: str) -> KnownUser:
        """Shut a user out. Raises as :meth:`enable`."""
        return await self._let_in(by, user_id, reason, disabled=True)

    async def enable(self, by: Principal, user_id: str, reason: str) -> KnownUser:
        """Let a user log in again.

        Raises:
            NotFound: there is no such user.
            OwnAccount: it is ``by``.
            Forbidden: they may do what ``by`` may not.
        """
        return await self._let_in(by, user_id, reason, disabled=False)

    async def assign(self, by: Principal, user_id: str, roles: list[str], reason: str) -> KnownUser:
        """Give a user exactly ``roles``.

        Raises:
            NotFound: there is no such user.
            OwnAccount: it is ``by``.
            RoleUnknown, RoleInvalid: a role that is none, or too many.
            Forbidden: one that is given or taken allows what ``by`` may not.
        """
        await self._require_other(by, user_id)

        async def write(tx: Tx) -> None:
            await self._auth.roles.assign(user_id, roles, tenant=by.tenant, by=by, tx=tx)
            await self._tell(by, user_id, "roles_assigned", reason, tx)

        await self._db.run(write)
        return await self.user(by, user_id)

    async def roles(self, by: Principal) -> tuple[Role, ...]:
        """The roles that hold here."""
        return await self._auth.roles.list(by.tenant)

    async def define(self, by: Principal, name: str, permissions: list[str], inherits: list[str]) -> Role:
        """Make or change a role. Raises as ``auth.roles.define``."""
        return await self._auth.roles.define(name, permissions=permissions, inherits=inherits, tenant=by.tenant, by=by)

    async def drop(self, by: Principal, name: str) -> None:
        """Delete a role. Raises as ``auth.roles.drop``."""
        await self._auth.roles.drop(name, tenant=by.tenant, by=by)

    async def _let_in(self, by: Principal, user_id: str, reason: str, *, disabled: bool) -> KnownUser:
        await self._require_other(by, user_id)
        change = self._auth.roles.disable if disabled else self._auth.roles.enable

        async def write(tx: Tx) -> None:
            await change(user_id, tenant=by.tenant, by=by, tx=tx)
            await self._tell(by, user_id, "disabled" if disabled else "enabled", reason, tx)

        await self._db.run(write)
        return await self.user(by, user_id)

    async def _require(self, by: Principal, user_id: str) -> ListedProfile:
        profile = await self._profiles.find(by.tenant, user_id)
        if profile is None:
            raise NotFound()
        return listed(profile)

    async def _require_other(self, by: Principal, user_id: str) -> None:
        await self._require(by, user_id)
        if user_id == by.subject:
            raise OwnAccount()

    async def _require_above(self, by: Principal, user_id: str, tx: Tx) -> None:
        standing = await self._auth.roles.of(user_id, tenant=by.tenant, tx=tx)
        theirs: Permissions = self._auth.roles.permissions(by.tenant, standing.roles)
        by.require(*theirs)

    async def _known(self, tenant: str, profiles: list[ListedProfile]) -> list[KnownUser]:
        standings = await self._auth.roles.of_many([each.id for each in profiles], tenant=tenant)
        return [KnownUser(each, standings[each.id]) for each in profiles]

    async def _tell(self, by: Principal, user_id: str, what: str, reason: str, tx: Tx) -> None:
        data = {"by": by.subject, "reason": reason}
        await self._events.emit(Event(name=f"admin.{what}", tenant=by.tenant, subject=user_id, data=data), tx)

"""Reads and writes of profiles and invite codes: one function for each thing that is read or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from daydo_cache import Space
from daydo_db import Database, Keyset, Slice, Tx, UniqueViolation
from daydo_db.piccolo import affected, run

from .contact import Contact
from .tables import Invite, InvitePool, Profile

PROFILE_VERSION = 1
"""Raise it by one when a column of profiles comes, goes or changes its meaning: caches then begin anew."""

ProfileRow = dict[str, Any]
"""A profile as it is cached: its columns by name."""

_LISTED = "id, phone, email, nickname, created_at_us"
_TAKEN = "code, taken_at_us, claimed_at_us"
_SAME_MAX = 20


class ListedProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A user in a list."""

    id: str
    phone: str | None
    email: str | None
    nickname: str | None
    created_at_us: int


class TakenInvite(msgspec.Struct, frozen=True, kw_only=True):
    """A code that somebody has to give away; ``claimed_at_us`` 0: nobody has used it yet."""

    code: str
    taken_at_us: int
    claimed_at_us: int = 0


class Profiles:
    """Profiles by id, and as a list for administrators.

    The only door to their table: what changes one ends what ``cached`` has of it, in the same transaction. So one
    object serves everybody who composes the application. Without ``cached`` every read asks the database.
    """

    def __init__(self, db: Database, cached: Space[ProfileRow] | None = None) -> None:
        self._db = db
        self._cached = cached
        self._newest = Keyset("id DESC", within=["tenant"], name="users", key=db.config.cursor_key)

    async def add(self, profile: Profile, *, tx: Tx) -> None:
        # Nothing to end: nobody has asked for an id that is made here and now.
        await run(Profile.insert(profile), tx=tx)

    async def find(self, tenant: str, user_id: str) -> Profile | None:
        """The profile as it was committed: inside a transaction that changes it, :meth:`lock` it instead."""

        async def load(_: str) -> ProfileRow | None:
            found: ProfileRow | None = await run(Profile.select().where(_is(tenant, user_id)).first(), self._db)
            return found

        key = _key(tenant, user_id)
        row = await (load(key) if self._cached is None else self._cached.get_or_load(key, load))
        return Profile(**row, _exists_in_db=True) if row is not None else None

    async def lock(self, tenant: str, user_id: str, *, tx: Tx) -> Profile | None:
        """The profile, which nobody else changes before the end of ``tx``."""
        found: Profile | None = await run(Profile.objects().where(_is(tenant, user_id)).first().lock_rows(), tx=tx)
        return found

    async def change(self, tenant: str, user_id: str, values: Mapping[Any, Any], *, tx: Tx) -> bool:
        """Write ``values`` (by column); whether there is such a user."""
        await self._end(tenant, user_id, tx)
        return bool(await affected(Profile.update(dict(values)).where(_is(tenant, user_id)), tx=tx))

    async def release_phone(self, tenant: str, phone: str, *, tx: Tx) -> None:
        """Nobody's profile shows ``phone`` any more: another one has proven that it is theirs."""
        having = (Profile.tenant == tenant) & (Profile.phone == phone)
        for row in await run(Profile.select(Profile.id).where(having).lock_rows(), tx=tx):
            await self.change(tenant, row["id"], {Profile.phone: None}, tx=tx)

    async def remove(self, tenant: str, user_id: str, *, tx: Tx) -> bool:
        """Delete the profile; whether there was one."""
        await self._end(tenant, user_id, tx)
        return bool(await affected(Profile.delete().where(_is(tenant, user_id)), tx=tx))

    async def page(self, tenant: str, cursor: str | None, limit: int) -> Slice[ListedProfile]:
        """All users, newest first."""
        select = f"SELECT {_LISTED} FROM app_profile WHERE :page"  # noqa: S608 - the columns are ours
        found = await self._newest.page(self._db, select, within=[tenant], cursor=cursor, limit=limit)
        rows = [_listed(row) for row in found.rows]
        return Slice(rows, next_cursor=found.next_cursor, previous_cursor=found.previous_cursor)

    async def look_up(self, tenant: str, text: str) -> list[ListedProfile]:
        """Whoever has this id, phone number or address, and not a part of one: one, as a rule."""
        if "@" in text:
            condition = Profile.email == Contact.of(None, text).email
        elif text.removeprefix("+").isdecimal():
            condition = Profile.phone == Contact.of(text, None).phone
        else:
            found = await self.find(tenant, text) if text.isascii() else None
            return [listed(found)] if found is not None else []
        query = Profile.objects().where((Profile.tenant == tenant) & condition).limit(_SAME_MAX)
        return [listed(each) for each in await run(query, self._db)]

    async def _end(self, tenant: str, user_id: str, tx: Tx) -> None:
        if self._cached is not None:
            await self._cached.invalidate(_key(tenant, user_id), tx=tx)


class InviteCodes:
    """The pool of codes, and whose codes are whose."""

    def __init__(self, db: Database) -> None:
        self._db = db
        order = ("taken_at_us DESC", "code DESC")
        self._newest = Keyset(*order, within=["tenant", "owner"], name="invites", key=db.config.cursor_key)

    async def hold_pool(self, tenant: str, *, tx: Tx) -> bool:
        """Lock the pool for a refill; False where another worker has it."""
        mine = InvitePool.tenant == tenant
        held = InvitePool.select(InvitePool.tenant).where(mine).lock_rows("UPDATE", skip_locked=True)
        if await run(held, tx=tx):
            return True
        if await run(InvitePool.exists().where(mine), tx=tx):
            return False
        try:
            await run(InvitePool.insert(InvitePool(tenant=tenant)), tx=tx)
        except UniqueViolation:
            return False  # made, and held, by another worker at this moment
        return True

    async def count_free(self, tenant: str, *, tx: Tx) -> int:
        count: int = await run(Invite.count().where(_free(tenant)), tx=tx)
        return count

    async def add(self, tenant: str, codes: Sequence[str], now_us: int, *, tx: Tx) -> None:
        """Put ``codes`` into the pool."""
        await run(Invite.insert(*(Invite(code=code, tenant=tenant, created_at_us=now_us) for code in codes)), tx=tx)

    async def pick(self, tenant: str, *, tx: Tx) -> str | None:
        """Some code of the pool that nobody else is taking at this moment; it is locked. None: there is none."""
        free = Invite.select(Invite.code).where(_free(tenant)).limit(1).lock_rows("UPDATE", skip_locked=True)
        found = await run(free, tx=tx)
        return found[0]["code"] if found else None

    async def take(self, tenant: str, code: str, owner: str, key: str, now_us: int, *, tx: Tx) -> None:
        """Give a picked code to ``owner``."""
        values: dict[Any, Any] = {Invite.owner: owner, Invite.op_key: key, Invite.taken_at_us: now_us}
        await run(Invite.update(values).where((Invite.tenant == tenant) & (Invite.code == code)), tx=tx)

    async def find_key(self, tenant: str, owner: str, key: str, *, tx: Tx) -> TakenInvite | None:
        """The code that ``owner`` was given for ``key``."""
        query = Invite.objects().where(_of(tenant, owner) & (Invite.op_key == key)).first()
        found: Invite | None = await run(query, tx=tx)
        return _taken(found) if found is not None else None

    async def count_open(self, tenant: str, owner: str, *, tx: Tx) -> int:
        """Codes of ``owner`` that nobody has used."""
        count: int = await run(Invite.count().where(_of(tenant, owner) & Invite.claimed_by.is_null()), tx=tx)
        return count

    async def find(self, tenant: str, code: str, *, tx: Tx) -> Invite | None:
        found: Invite | None = await run(
            Invite.objects().where((Invite.tenant == tenant) & (Invite.code == code)).first(), tx=tx
        )
        return found

    async def claim(self, tenant: str, code: str, user_id: str, now_us: int, *, tx: Tx) -> bool:
        """Use ``code`` up; of several at once, exactly one is told True."""
        unused = (Invite.tenant == tenant) & (Invite.code == code)
        unused &= Invite.owner.is_not_null() & Invite.claimed_by.is_null()
        values: dict[Any, Any] = {Invite.claimed_by: user_id, Invite.claimed_at_us: now_us}
        return bool(await affected(Invite.update(values).where(unused), tx=tx))

    async def page(self, tenant: str, owner: str, cursor: str | None, limit: int) -> Slice[TakenInvite]:
        """The codes of ``owner``, newest first."""
        select = f"SELECT {_TAKEN} FROM app_invite WHERE :page"  # noqa: S608 - the columns are ours
        found = await self._newest.page(self._db, select, within=[tenant, owner], cursor=cursor, limit=limit)
        rows = [TakenInvite(code=row[0], taken_at_us=row[1], claimed_at_us=row[2]) for row in found.rows]
        return Slice(rows, next_cursor=found.next_cursor, previous_cursor=found.previous_cursor)

    async def remove_open(self, tenant: str, owner: str, *, tx: Tx) -> None:
        """Delete the codes of ``owner`` that nobody has used."""
        await run(Invite.delete().where(_of(tenant, owner) & Invite.claimed_by.is_null()), tx=tx)


def _key(tenant: str, user_id: str) -> str:
    return f"{tenant}/{user_id}"


def listed(profile: Profile) -> ListedProfile:
    """What a list shows of ``profile``."""
    return ListedProfile(
        id=profile.id,
        phone=profile.phone,
        email=profile.email,
        nickname=profile.nickname,
        created_at_us=profile.created_at_us,
    )


def _is(tenant: str, user_id: str) -> Any:
    return (Profile.tenant == tenant) & (Profile.id == user_id)


def _free(tenant: str) -> Any:
    return (Invite.tenant == tenant) & Invite.owner.is_null()


def _of(tenant: str, owner: str) -> Any:
    return (Invite.tenant == tenant) & (Invite.owner == owner)


def _listed(row: Sequence[Any]) -> ListedProfile:
    return ListedProfile(id=row[0], phone=row[1], email=row[2], nickname=row[3], created_at_us=row[4])


def _taken(invite: Invite) -> TakenInvite:
    return TakenInvite(code=invite.code, taken_at_us=invite.taken_at_us, claimed_at_us=invite.claimed_at_us)

"""Who is known by what: logins, WeChat identities and passwords in the database.

An identity is *proven* once a code or WeChat has shown whose it is. One that was merely typed at a registration is not:
anybody may type a stranger's number. What that means when the stranger comes is decided in :mod:`daydo_auth.proofs`.
Every time is the database's, or the clock's where one was given.
"""

# ruff: noqa: S608 - what is put into statements is the dialect's time and lock, never a value

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from daydo_db import Database, Tx, UniqueViolation, now_sql, whole
from daydo_kernel import Clock, Event, EventSink

from .errors import LoginTaken, LoginUnusable, SubjectTaken
from .feed import Feed
from .logins import mask_login, normalize_login
from .names import check_names

LOGIN: Final = "login"
"""The kind of what a person types: a phone number, an address, a name."""
UNION: Final = "wechat"
"""The kind of a WeChat unionid; ``wechat:<appid>`` is that of an openid."""

_COLUMNS = "kind, login, subject, created_at_us, verified_at_us"
_SHARED: Final = {"sqlite": "", "mysql": "LOCK IN SHARE MODE"}


class Identity(msgspec.Struct, frozen=True):
    """One thing that a subject is known by. ``verified_at_us`` is when it was first proven, 0 for never; µs UTC."""

    kind: str
    login: str
    subject: str
    created_at_us: int
    verified_at_us: int

    def __repr__(self) -> str:
        return f"Identity(kind={self.kind!r}, subject={self.subject!r}, ***)"


class IdentityStore:
    """Statements over one database."""

    def __init__(self, db: Database, clock: Clock | None, feed: Feed) -> None:
        self._db = db
        self._clock = clock
        self._feed = feed

    @property
    def now(self) -> str:
        """SQL for the time."""
        return now_sql(self._db.dialect, self._clock)

    # -- identities ----------------------------------------------------------------------------------------------

    async def find(self, tenant: str, kind: str, login: str) -> Identity | None:
        """Whose ``login`` it is."""
        found = await self._db.query(_FIND, (tenant, kind, login))
        return Identity(*found.rows[0]) if found.rows else None

    async def lock(self, tx: Tx, tenant: str, kind: str, login: str, *, shared: bool = False) -> Identity | None:
        """Whose ``login`` it is, and stays until the end of ``tx``; ``shared``: others may lock it so, too."""
        lock = _SHARED[tx.dialect.name] if shared else tx.dialect.for_update
        found = await tx.execute(f"{_FIND} {lock}", (tenant, kind, login))
        return Identity(*found.rows[0]) if found.rows else None

    async def exists(self, tx: Tx, tenant: str, kind: str, login: str) -> bool:
        """Whether somebody has ``login``, as ``tx`` sees it. Locks nothing."""
        return bool((await tx.execute(_FIND, (tenant, kind, login))).rows)

    async def of(self, tenant: str, subject: str, tx: Tx | None = None) -> list[Identity]:
        """All that ``subject`` is known by, the oldest first."""
        sql = (
            f"SELECT {_COLUMNS} FROM daydo_auth_identity WHERE tenant = ? AND subject = ? "
            f"ORDER BY created_at_us, kind, login {tx.dialect.for_update if tx is not None else ''}"
        )
        found = await (self._db.query(sql, (tenant, subject)) if tx is None else tx.execute(sql, (tenant, subject)))
        return [Identity(*row) for row in found.rows]

    async def add(self, tx: Tx, tenant: str, kind: str, login: str, subject: str, *, proven: bool) -> None:
        """A new identity of ``subject``.

        Raises:
            LoginTaken: somebody has it; nothing was written.
        """
        if await self.add_or_find(tx, tenant, kind, login, subject, proven=proven) is not None:
            raise LoginTaken()

    async def add_or_find(
        self, tx: Tx, tenant: str, kind: str, login: str, subject: str, *, proven: bool
    ) -> Identity | None:
        """A new identity of ``subject``: None. Where somebody has it, this one included: whose it is."""
        now = self.now
        try:
            await tx.execute(
                "INSERT INTO daydo_auth_identity (tenant, kind, login, subject, created_at_us, verified_at_us) "
                f"VALUES (?, ?, ?, ?, {now}, {now if proven else 0})",
                (tenant, kind, login, subject),
            )
        except UniqueViolation:
            # Whatever the snapshot shows, this sees who was quicker. Shared, as is the lock that the INSERT has left:
            # of two who came too late, each would wait for the other to get more.
            return await self.lock(tx, tenant, kind, login, shared=True)
        return None

    async def mark_proven(self, tx: Tx, tenant: str, kind: str, login: str) -> None:
        """It has been proven; the first time stays."""
        await tx.execute(
            f"UPDATE daydo_auth_identity SET verified_at_us = {self.now} "
            "WHERE tenant = ? AND kind = ? AND login = ? AND verified_at_us = 0",
            (tenant, kind, login),
        )

    async def remove(self, tx: Tx, tenant: str, kind: str, login: str, subject: str) -> bool:
        """Take an identity from ``subject``; whether it was theirs."""
        removed = await tx.execute(
            "DELETE FROM daydo_auth_identity WHERE tenant = ? AND kind = ? AND login = ? AND subject = ?",
            (tenant, kind, login, subject),
        )
        return removed.rowcount == 1

    # -- passwords -----------------------------------------------------------------------------------------------

    async def register(self, tx: Tx, tenant: str, login: str, subject: str, hashed: str) -> None:
        """A new login of a new subject.

        Raises:
            LoginTaken, SubjectTaken: nothing is left of it in ``tx``.
        """
        # A plain read: a locking one of a missing row locks a gap at REPEATABLE READ, and two newcomers would deadlock.
        # Where the snapshot is old the INSERT knows better.
        if await self.exists(tx, tenant, LOGIN, login):
            raise LoginTaken()
        with whole(tx, but=LoginTaken):
            await self.add(tx, tenant, LOGIN, login, subject, proven=False)
        with whole(tx, but=SubjectTaken):
            try:
                await self.add_password(tx, tenant, subject, hashed)
            except SubjectTaken:
                # The caller may catch it and commit the rest of their transaction.
                await self.remove(tx, tenant, LOGIN, login, subject)
                raise

    async def find_password(self, tenant: str, login: str) -> tuple[str, str] | None:
        """(subject, hashed) of a login that has a password."""
        found = await self._db.query(
            "SELECT p.subject, p.hashed FROM daydo_auth_identity i "
            "JOIN daydo_auth_password p ON p.tenant = i.tenant AND p.subject = i.subject "
            "WHERE i.tenant = ? AND i.kind = ? AND i.login = ?",
            (tenant, LOGIN, login),
        )
        return (found.rows[0][0], found.rows[0][1]) if found.rows else None

    async def password_of(self, tenant: str, subject: str) -> str:
        """The hash of a subject's password; "" where there is none."""
        found = await self._db.query(_PASSWORD, (tenant, subject))
        return str(found.rows[0][0]) if found.rows else ""

    async def lock_password(self, tx: Tx, tenant: str, subject: str) -> str:
        """The same, and it stays so until the end of ``tx``."""
        found = await tx.execute(f"{_PASSWORD} {tx.dialect.for_update}", (tenant, subject))
        return str(found.rows[0][0]) if found.rows else ""

    async def add_password(self, tx: Tx, tenant: str, subject: str, hashed: str) -> None:
        """The first password of ``subject``.

        Raises:
            SubjectTaken: there is one; nothing was written.
        """
        try:
            await tx.execute(
                "INSERT INTO daydo_auth_password (tenant, subject, hashed, changed_at_us) "
                f"VALUES (?, ?, ?, {self.now})",
                (tenant, subject, hashed),
            )
        except UniqueViolation:
            raise SubjectTaken() from None

    async def replace_password(self, tx: Tx, tenant: str, subject: str, old: str, new: str) -> bool:
        """Another hash in place of ``old``; False where that is not it any more."""
        replaced = await tx.execute(
            f"UPDATE daydo_auth_password SET hashed = ?, changed_at_us = {self.now} "
            "WHERE tenant = ? AND subject = ? AND hashed = ?",
            (new, tenant, subject, old),
        )
        return replaced.rowcount == 1

    async def drop_password(self, tx: Tx, tenant: str, subject: str) -> None:
        """``subject`` has no password any more."""
        await tx.execute("DELETE FROM daydo_auth_password WHERE tenant = ? AND subject = ?", (tenant, subject))

    # -- all of a subject ----------------------------------------------------------------------------------------

    async def drop_keys(self, tx: Tx, tenant: str, subject: str) -> None:
        """Delete the API keys of ``subject``; every worker drops those it holds."""
        where = "FROM daydo_auth_api_key WHERE tenant = ? AND subject = ?"
        keys = await tx.execute(f"SELECT id {where} ORDER BY id {tx.dialect.for_update}", (tenant, subject))
        for (key_id,) in keys.rows:
            await self._feed.write(tx, "key", tenant, key_id)
        await tx.execute(f"DELETE {where}", (tenant, subject))

    async def forget(self, tx: Tx, tenant: str, subject: str) -> None:
        """Delete identities and password; a log-in under way waits for the end of ``tx`` and then fails."""
        for table in ("identity", "password"):
            await tx.execute(f"DELETE FROM daydo_auth_{table} WHERE tenant = ? AND subject = ?", (tenant, subject))

    async def forget_sessions(self, tx: Tx, tenant: str, subject: str) -> None:
        """Delete the rows of sessions that have been ended."""
        await tx.execute("DELETE FROM daydo_auth_session WHERE tenant = ? AND subject = ?", (tenant, subject))


_FIND: Final = f"SELECT {_COLUMNS} FROM daydo_auth_identity WHERE tenant = ? AND kind = ? AND login = ?"
_PASSWORD: Final = "SELECT hashed FROM daydo_auth_password WHERE tenant = ? AND subject = ?"  # noqa: S105


class Identities:
    """``auth.identities``: what a subject is known by. New ones come by :meth:`daydo_auth.Auth.link`."""

    def __init__(
        self, db: Database, store: IdentityStore, events: EventSink, *, require_started: Callable[[], None]
    ) -> None:
        self._db = db
        self._store = store
        self._events = events
        self._require_started = require_started

    async def list(self, subject: str, *, tenant: str = "") -> Sequence[Identity]:
        """All that ``subject`` is known by, the oldest first: for their account's page, or an export of their data."""
        self._require_started()
        return await self._store.of(tenant, subject)

    async def remove(
        self, subject: str, login: str, *, kind: str = LOGIN, tenant: str = "", tx: Tx | None = None
    ) -> bool:
        """Take an identity from ``subject``; whether it was theirs. Sessions stay.

        The last one may go too, and then nobody logs in as ``subject`` any more: ask before.

        Raises:
            LoginUnusable: it cannot be a login.
            ValueError: ``subject`` or ``tenant`` is no name.
        """
        self._require_started()
        check_names(tenant, subject)
        normal = normalize_login(login) if kind == LOGIN else login
        if normal is None:
            raise LoginUnusable()

        async def write(tx: Tx) -> bool:
            with whole(tx):
                removed = await self._store.remove(tx, tenant, kind, normal, subject)
                if removed:
                    what = {"kind": kind, "login": mask_identity(kind, normal)}
                    await self._events.emit(Event(name="auth.unlinked", tenant=tenant, subject=subject, data=what), tx)
            return removed

        return await self._db.run(write, tx=tx)


def mask_identity(kind: str, login: str) -> str:
    """What an event may say of an identity: WeChat's names of people stay here."""
    return mask_login(login) if kind == LOGIN else "***"

"""The three tables. Every time in them is the database's, or the clock's where one was given."""

# ruff: noqa: S608 - what is put into statements is the dialect's time and lock, never a value

from __future__ import annotations

import re
import secrets

from daydo_db import Database, Tx, UniqueViolation, now_sql
from daydo_kernel import Clock, new_id

from .config import AuthConfig
from .errors import LoginTaken, SubjectTaken
from .rotation import Session

MAX_DEVICE_CHARS = 64
_SALT_BYTES = 16
# No spaces: a padding collation would take "a" and "a " for the same subject.
_NAME = re.compile(r"[!-~]{1,128}")
_SESSION = "id, tenant, subject, salt, counter, rotated_at_us, refresh_by_us, expires_at_us, revoked_at_us"


class Store:
    """Statements over one database."""

    def __init__(self, db: Database, config: AuthConfig, clock: Clock | None) -> None:
        self._db = db
        self._clock = clock
        self._refresh_ttl_us = round(config.refresh_ttl_s * 1_000_000)
        self._session_ttl_us = round(config.session_ttl_s * 1_000_000)

    @property
    def now(self) -> str:
        """SQL for the time."""
        return now_sql(self._db.dialect, self._clock)

    async def add_password(self, tx: Tx, tenant: str, login: str, subject: str, hashed: str) -> None:
        """A new login of a new subject.

        Raises:
            LoginTaken, SubjectTaken: roll back what the transaction has done.
        """
        # A plain read: a locking one of a missing row locks a gap at REPEATABLE READ, and two newcomers would deadlock.
        # Where the snapshot is old the INSERT knows better.
        owner = "SELECT subject FROM daydo_auth_identity WHERE tenant = ? AND login = ?"
        if (await tx.execute(owner, (tenant, login))).rows:
            raise LoginTaken()
        try:
            await tx.execute(
                "INSERT INTO daydo_auth_password (tenant, subject, hashed, changed_at_us) "
                f"VALUES (?, ?, ?, {self.now})",
                (tenant, subject, hashed),
            )
        except UniqueViolation:
            raise SubjectTaken() from None
        try:
            await tx.execute(
                f"INSERT INTO daydo_auth_identity (tenant, login, subject, created_at_us) VALUES (?, ?, ?, {self.now})",
                (tenant, login, subject),
            )
        except UniqueViolation:
            raise LoginTaken() from None

    async def find_password(self, tenant: str, login: str) -> tuple[str, str] | None:
        """(subject, hashed) of a login."""
        found = await self._db.query(
            "SELECT p.subject, p.hashed FROM daydo_auth_identity i "
            "JOIN daydo_auth_password p ON p.tenant = i.tenant AND p.subject = i.subject "
            "WHERE i.tenant = ? AND i.login = ?",
            (tenant, login),
        )
        return (found.rows[0][0], found.rows[0][1]) if found.rows else None

    async def replace_hash(self, tx: Tx, tenant: str, subject: str, old: str, new: str) -> None:
        """The same password under a newer recipe, unless it was changed meanwhile."""
        await tx.execute(
            "UPDATE daydo_auth_password SET hashed = ? WHERE tenant = ? AND subject = ? AND hashed = ?",
            (new, tenant, subject, old),
        )

    async def open_session(self, tx: Tx, tenant: str, subject: str, device: str) -> tuple[str, bytes]:
        """(id, salt) of a new session; its counter is 1."""
        session_id, salt = new_id("ses"), secrets.token_bytes(_SALT_BYTES)
        now = self.now
        await tx.execute(
            "INSERT INTO daydo_auth_session (id, tenant, subject, device, salt, counter, created_at_us, rotated_at_us, "
            f"refresh_by_us, expires_at_us, revoked_at_us, revoked_for) VALUES (?, ?, ?, ?, ?, 1, {now}, {now}, "
            f"{now} + ?, {now} + ?, 0, '')",
            (session_id, tenant, subject, device, salt, self._refresh_ttl_us, self._session_ttl_us),
        )
        return session_id, salt

    async def lock_session(self, tx: Tx, session_id: str) -> tuple[Session, int] | None:
        """A session, locked, and the time."""
        found = await tx.execute(
            f"SELECT {_SESSION}, {self.now} FROM daydo_auth_session WHERE id = ? {tx.dialect.for_update}", (session_id,)
        )
        if not found.rows:
            return None
        *columns, now_us = found.rows[0]
        return Session(**dict(zip(_SESSION.split(", "), columns, strict=True))), now_us

    async def rotate(self, tx: Tx, session: Session) -> None:
        """Count a locked session one up."""
        now = self.now
        await tx.execute(
            f"UPDATE daydo_auth_session SET counter = ?, rotated_at_us = {now}, refresh_by_us = {now} + ? "
            "WHERE id = ? AND counter = ?",
            (session.counter + 1, self._refresh_ttl_us, session.id, session.counter),
        )

    async def revoke(self, tx: Tx, session_id: str, why: str) -> None:
        """End a session; the first reason stays."""
        await tx.execute(
            f"UPDATE daydo_auth_session SET revoked_at_us = {self.now}, revoked_for = ? "
            "WHERE id = ? AND revoked_at_us = 0",
            (why, session_id),
        )

    async def revoked_within(self, window_s: float) -> list[str]:
        """Sessions revoked in the last ``window_s``."""
        found = await self._db.query(
            f"SELECT id FROM daydo_auth_session WHERE revoked_at_us > {self.now} - ?", (round(window_s * 1_000_000),)
        )
        return [row[0] for row in found.rows]


def check_names(tenant: str, subject: str) -> None:
    """Check a tenant ("" is one) and a subject as the tables take them.

    Raises:
        ValueError: one is not 1 to 128 visible ASCII characters.
    """
    for what, value in (("tenant", tenant or "-"), ("subject", subject)):
        if not _NAME.fullmatch(value):
            raise ValueError(f"{what} must be 1 to 128 visible ASCII characters, not {value[:200]!r}")


def device_name(device: str) -> str:
    """What a client calls itself, cut and made storable."""
    return device.encode("utf-8", "replace").decode().replace("\0", "")[:MAX_DEVICE_CHARS]

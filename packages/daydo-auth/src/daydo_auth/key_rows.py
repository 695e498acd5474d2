"""The table of API keys. Times are the database's, or the clock's where one was given."""

# ruff: noqa: S608 - what is put into statements is the dialect's time and lock and question marks, never a value

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

import msgspec

from daydo_db import Database, Tx, now_sql
from daydo_kernel import Clock

from .model import Standing
from .permissions import Permissions

KeyKind = Literal["bearer", "signing"]

LISTED_MAX: Final = 100
FOR_EVER_US: Final = 2**62
_COLUMNS: Final = (
    "id",
    "tenant",
    "subject",
    "kind",
    "name",
    "scopes",
    "created_at_us",
    "expires_at_us",
    "revoked_at_us",
    "used_at_us",
)
_OF_SUBJECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM daydo_auth_api_key WHERE tenant = ? AND subject = ?"
_WITH_SUBJECT: Final = (
    f"SELECT {', '.join(f'k.{column}' for column in _COLUMNS)}, k.hashed, "
    "COALESCE(s.roles, ''), COALESCE(s.epoch, 0), COALESCE(s.disabled_at_us, 0), {now} FROM daydo_auth_api_key k "
    "LEFT JOIN daydo_auth_subject s ON s.tenant = k.tenant AND s.subject = k.subject WHERE k.id = ?"
)


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as its owner sees it. Times are µs UTC, 0 is never; the last use is up to ``key_use_write_s`` late."""

    id: str
    tenant: str
    subject: str
    kind: KeyKind
    name: str
    scopes: tuple[str, ...]
    created_at_us: int
    expires_at_us: int
    revoked_at_us: int = 0
    used_at_us: int = 0

    def works_at(self, now_us: int) -> bool:
        """Whether it has neither been revoked nor expired by then."""
        return not self.revoked_at_us and not 0 < self.expires_at_us <= now_us


class KeyState(msgspec.Struct, frozen=True):
    """A key and how its subject stood, as of ``read_at_us`` by the database's clock."""

    key: ApiKey
    hashed: bytes
    scopes: Permissions
    standing: Standing
    read_at_us: int


class KeyRows:
    """Statements over one database."""

    def __init__(self, db: Database, clock: Clock | None) -> None:
        self._db = db
        self._clock = clock

    @property
    def _now(self) -> str:
        return now_sql(self._db.dialect, self._clock)

    async def read(self, key_id: str) -> KeyState | None:
        """A key and its subject in one statement."""
        found = await self._db.query(_WITH_SUBJECT.format(now=self._now), (key_id,))
        if not found.rows:
            return None
        *columns, hashed, roles, epoch, disabled_at_us, now_us = found.rows[0]
        key = _key_of(columns)
        standing = Standing(tuple(roles.split()), epoch, bool(disabled_at_us))
        return KeyState(key, bytes(hashed), Permissions(key.scopes), standing, now_us)

    async def lives(self, key_ids: Sequence[str]) -> dict[str, int]:
        """How long each of these still works, in µs; one that does not is not among them."""
        marks = ", ".join("?" * len(key_ids))
        found = await self._db.query(
            f"SELECT id, expires_at_us, {self._now} FROM daydo_auth_api_key "
            f"WHERE id IN ({marks}) AND revoked_at_us = 0 AND (expires_at_us = 0 OR expires_at_us > {self._now})",
            key_ids,
        )
        return {row[0]: row[1] - row[2] if row[1] else FOR_EVER_US for row in found.rows}

    async def of(self, tenant: str, subject: str) -> list[ApiKey]:
        """The keys of a subject, the newest first."""
        found = await self._db.query(f"{_OF_SUBJECT} ORDER BY id DESC LIMIT {LISTED_MAX}", (tenant, subject))
        return [_key_of(row) for row in found.rows]

    async def lock(self, tx: Tx, tenant: str, subject: str) -> tuple[list[ApiKey], int]:
        """All keys of a subject, the oldest first, and the time."""
        time, found = await tx.execute_all(
            [
                (f"SELECT {self._now}", ()),
                (f"{_OF_SUBJECT} ORDER BY id {tx.dialect.for_update}", (tenant, subject)),
            ]
        )
        return [_key_of(row) for row in found.rows], time.rows[0][0]

    async def insert(self, tx: Tx, key: ApiKey, hashed: bytes) -> None:
        """A new key that has never been used."""
        await tx.execute(
            "INSERT INTO daydo_auth_api_key (id, tenant, subject, kind, name, hashed, scopes, created_at_us, "
            "expires_at_us, revoked_at_us, used_at_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0)",
            (
                key.id,
                key.tenant,
                key.subject,
                key.kind,
                key.name,
                hashed,
                " ".join(key.scopes),
                key.created_at_us,
                key.expires_at_us,
            ),
        )

    async def delete(self, tx: Tx, key_ids: Sequence[str]) -> None:
        """Remove keys that work no more."""
        marks = ", ".join("?" * len(key_ids))
        await tx.execute(f"DELETE FROM daydo_auth_api_key WHERE id IN ({marks})", key_ids)

    async def revoke(self, tx: Tx, key_id: str, tenant: str, subject: str) -> bool | None:
        """End a key: None where it is not theirs, False where it was ended before."""
        found = await tx.execute(
            "SELECT revoked_at_us FROM daydo_auth_api_key WHERE id = ? AND tenant = ? AND subject = ? "
            + tx.dialect.for_update,
            (key_id, tenant, subject),
        )
        if not found.rows:
            return None
        if found.rows[0][0]:
            return False
        await tx.execute(f"UPDATE daydo_auth_api_key SET revoked_at_us = {self._now} WHERE id = ?", (key_id,))
        return True

    async def write_uses(self, tx: Tx, uses: Iterable[tuple[str, int]]) -> None:
        """Write (id, used_at_us), never backwards."""
        statement = "UPDATE daydo_auth_api_key SET used_at_us = ? WHERE id = ? AND used_at_us < ?"
        # Sorted, so that two workers lock in one order.
        await tx.execute_all([(statement, (used_at_us, key_id, used_at_us)) for key_id, used_at_us in sorted(uses)])


def _key_of(row: Sequence[Any]) -> ApiKey:
    named = dict(zip(_COLUMNS, row, strict=True))
    return ApiKey(**named | {"scopes": tuple(named["scopes"].split())})

"""The tables of roles: what roles there are, how often each tenant's have changed, and who has which.

Names are kept in one column, separated by spaces: a subject's roles are always wanted together. Whoever changes
definitions locks the row of "" in ``daydo_auth_role_table`` first, so one change is judged after the other in all
tenants; whoever changes a subject locks its row, which is made where there is none.
"""

# ruff: noqa: S608 - what is put into statements is the dialect's time, lock and upsert, and question marks

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from daydo_db import Database, Tx, now_sql
from daydo_kernel import Clock

from .model import Standing
from .permissions import Role, RoleTable

_ROLE = "tenant, name, inherits, permissions"
_STANDING = "subject, roles, epoch, disabled_at_us, has_left"
# Catching UniqueViolation instead would leave a shared lock, and two who want the row exclusively next would deadlock.
_UNLESS_THERE = {"sqlite": "ON CONFLICT DO NOTHING", "mysql": "ON DUPLICATE KEY UPDATE epoch = epoch"}


class RoleSource(Protocol):
    """Where a worker reads the roles: the table, or your cache in front of it."""

    async def load(self) -> RoleTable:
        """All roles. It may be behind by a moment: a worker that has heard of a later change asks again.

        Raises:
            DbError, or what the cache raises: the worker keeps what it has and asks again.
        """
        ...


class RoleStore:
    """Statements over one database; a :class:`RoleSource`."""

    def __init__(self, db: Database, clock: Clock | None = None) -> None:
        self._db = db
        self._clock = clock
        self._unless_there = _UNLESS_THERE[db.dialect.name]

    # -- roles ---------------------------------------------------------------------------------------------------

    async def load(self) -> RoleTable:
        """All roles, at least as new as the epochs that are given with them."""
        # Epochs first: a change in between then shows in the roles and not in the epochs, which is the harmless way.
        epochs = await self._db.query("SELECT tenant, epoch FROM daydo_auth_role_table")
        roles = await self._db.query(f"SELECT {_ROLE} FROM daydo_auth_role ORDER BY tenant, name")
        return RoleTable(tuple(map(_role, roles.rows)), {row[0]: row[1] for row in epochs.rows})

    async def read_roles(self, tenant: str, tx: Tx | None = None) -> RoleTable:
        """What holds in ``tenant``: its roles and those for all, read without a lock. Without epochs."""
        sql, args = f"SELECT {_ROLE} FROM daydo_auth_role WHERE tenant IN (?, ?)", ("", tenant)
        found = await (self._db.query(sql, args) if tx is None else tx.execute(sql, args))
        return RoleTable(tuple(map(_role, found.rows)))

    async def lock_roles(self, tx: Tx, tenant: str) -> RoleTable:
        """What decides about a change in ``tenant``, held until the end of ``tx``: its roles and those for all; of all
        tenants where it is "". Without epochs."""
        where, args = ("WHERE tenant IN (?, ?)", ("", tenant)) if tenant else ("", ())
        lock = tx.dialect.for_update
        *_, found = await tx.execute_all(
            [
                self._table_row(""),
                (f"SELECT epoch FROM daydo_auth_role_table WHERE tenant = ? {lock}", ("",)),
                (f"SELECT {_ROLE} FROM daydo_auth_role {where} {lock}", args),
            ]
        )
        return RoleTable(tuple(map(_role, found.rows)))

    async def count_roles(self, tx: Tx) -> int:
        """How many are stored."""
        return int((await tx.execute("SELECT COUNT(*) FROM daydo_auth_role")).rows[0][0])

    async def write(self, tx: Tx, role: Role, *, is_new: bool) -> int:
        """Store ``role``; the tenant's new epoch. Call :meth:`lock_roles` first."""
        values = (" ".join(role.inherits), " ".join(role.permissions), role.tenant, role.name)
        await tx.execute(
            "INSERT INTO daydo_auth_role (inherits, permissions, tenant, name, changed_at_us) "
            f"VALUES (?, ?, ?, ?, {self._now})"
            if is_new
            else f"UPDATE daydo_auth_role SET inherits = ?, permissions = ?, changed_at_us = {self._now} "
            "WHERE tenant = ? AND name = ?",
            values,
        )
        return await self._bump(tx, role.tenant)

    async def remove(self, tx: Tx, tenant: str, name: str) -> int:
        """Delete a role; the tenant's new epoch. Call :meth:`lock_roles` first."""
        await tx.execute("DELETE FROM daydo_auth_role WHERE tenant = ? AND name = ?", (tenant, name))
        return await self._bump(tx, tenant)

    async def _bump(self, tx: Tx, tenant: str) -> int:
        *_, found = await tx.execute_all(
            [
                self._table_row(tenant),
                ("UPDATE daydo_auth_role_table SET epoch = epoch + 1 WHERE tenant = ?", (tenant,)),
                (f"SELECT epoch FROM daydo_auth_role_table WHERE tenant = ? {tx.dialect.for_update}", (tenant,)),
            ]
        )
        return int(found.rows[0][0])

    def _table_row(self, tenant: str) -> tuple[str, Sequence[str]]:
        return f"INSERT INTO daydo_auth_role_table (tenant, epoch) VALUES (?, 0) {self._unless_there}", (tenant,)

    # -- subjects ------------------------------------------------------------------------------------------------

    async def standings(self, tenant: str, subjects: Sequence[str], tx: Tx | None = None) -> dict[str, Standing]:
        """How each of ``subjects`` stands, read without a lock."""
        marks = ", ".join("?" * len(subjects))
        sql = f"SELECT {_STANDING} FROM daydo_auth_subject WHERE tenant = ? AND subject IN ({marks})"
        found = await (self._db.query(sql, (tenant, *subjects)) if tx is None else tx.execute(sql, (tenant, *subjects)))
        return dict.fromkeys(subjects, Standing()) | {row[0]: _standing(row) for row in found.rows}

    async def lock_subject(self, tx: Tx, tenant: str, subject: str, epoch: int) -> Standing:
        """How ``subject`` stands, held until the end of ``tx``; who has no row yet begins with ``epoch``."""
        make = (
            "INSERT INTO daydo_auth_subject (tenant, subject, roles, epoch, disabled_at_us, has_left, changed_at_us) "
            f"VALUES (?, ?, '', ?, 0, 0, {self._now}) {self._unless_there}"
        )
        lock = f"SELECT {_STANDING} FROM daydo_auth_subject WHERE tenant = ? AND subject = ? {tx.dialect.for_update}"
        _, found = await tx.execute_all([(make, (tenant, subject, epoch)), (lock, (tenant, subject))])
        return _standing(found.rows[0])

    async def set_roles(self, tx: Tx, tenant: str, subject: str, roles: Iterable[str]) -> None:
        """Give a locked subject these roles and the next epoch."""
        await tx.execute(
            f"UPDATE daydo_auth_subject SET roles = ?, epoch = epoch + 1, changed_at_us = {self._now} "
            "WHERE tenant = ? AND subject = ?",
            (" ".join(roles), tenant, subject),
        )

    async def set_disabled(self, tx: Tx, tenant: str, subject: str, *, disabled: bool, left: bool) -> None:
        """Let a locked subject in or not, and give it the next epoch."""
        await tx.execute(
            f"UPDATE daydo_auth_subject SET disabled_at_us = {self._now if disabled else 0}, has_left = ?, "
            f"epoch = epoch + 1, changed_at_us = {self._now} WHERE tenant = ? AND subject = ?",
            (int(left), tenant, subject),
        )

    async def forget(self, tx: Tx, tenant: str, subject: str) -> None:
        """Delete a subject's row."""
        await tx.execute("DELETE FROM daydo_auth_subject WHERE tenant = ? AND subject = ?", (tenant, subject))

    @property
    def _now(self) -> str:
        return now_sql(self._db.dialect, self._clock)


def _role(row: tuple[Any, ...]) -> Role:
    tenant, name, inherits, permissions = row
    return Role(name, tuple(permissions.split()), tuple(inherits.split()), tenant)


def _standing(row: tuple[Any, ...]) -> Standing:
    _, roles, epoch, disabled_at_us, has_left = row
    return Standing(tuple(roles.split()), epoch, bool(disabled_at_us), bool(has_left))

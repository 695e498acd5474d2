"""Who may do what: roles, who has them, and who is shut out.

A token carries the *names* of its subject's roles. What they come to is looked up in memory, in a table that every
worker holds, so a change of a role counts for tokens that are already out, without asking the database. A change of a
subject's own roles moves the subject's epoch: tokens of before are refused as stale, and refreshing one reads the roles
anew. Both travel by the feed, at once or within ``revocation_poll_s``.

Whoever acts for a person says so by ``by=``: nobody hands out, takes away or shuts out what is above themselves, and
somebody of one tenant does nothing in another; the tenant "" stands above the others.

Database away: nothing changes, and every worker goes on with the roles it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from daydo_db import Database, Tx, whole
from daydo_kernel import Event, EventSink, FieldError, Metrics, NotFound

from .config import AuthConfig
from .errors import AccountDisabled, Forbidden, RoleInvalid, RoleUnknown
from .feed import Feed
from .model import Principal, Standing
from .names import check_names
from .permissions import (
    CompiledRoles,
    Flaw,
    Permissions,
    Role,
    RoleTable,
    View,
    flaw_of,
    grants_of,
    is_grant,
    is_role_name,
    view_of,
    views_of,
)
from .role_store import RoleSource, RoleStore

T = TypeVar("T")

log = logging.getLogger("daydo.auth")

MAX_INHERITED = 20
SUBJECTS_MAX = 100
_FLAWS = {
    "unknown": ("inherits", "没有角色 {name}", "There is no role {name}"),
    "circle": ("inherits", "角色 {name} 已继承本角色", "{name} inherits this role in turn"),
    "needed": ("name", "角色 {name} 继承本角色", "{name} inherits this role; change it first"),
}


class EndSessions(Protocol):
    """Ends every session of a subject in a transaction."""

    async def __call__(self, subject: str, *, tenant: str, why: str, tx: Tx) -> object: ...


class Roles:
    """The part of :class:`daydo_auth.Auth` that knows what a subject may do: ``auth.roles``."""

    def __init__(
        self,
        db: Database,
        config: AuthConfig,
        store: RoleStore,
        feed: Feed,
        events: EventSink,
        metrics: Metrics,
        *,
        source: RoleSource | None,
        end_sessions: EndSessions,
        require_started: Callable[[], None],
    ) -> None:
        self._db = db
        self._config = config
        self._store = store
        self._source: RoleSource = source if source is not None else store
        self._feed = feed
        self._events = events
        self._end_sessions = end_sessions
        self._require_started = require_started
        self._built_in = config.built_in_roles
        self._compiled = self._compile(RoleTable())
        self._awaited: dict[str, int] = {}
        self._behind_since_s: float | None = None
        self._notice_after_s = 0.0
        self._stirred, self._reading = asyncio.Event(), asyncio.Lock()
        feed.on("roles", self._heard)
        metrics.gauge("roles_known", "Stored roles that this worker holds.", merge="max").cell().follow(
            lambda: len(self._compiled.table.roles)
        )
        metrics.gauge(
            "roles_lag_seconds", "Since a change of roles was heard of that is not read yet.", merge="max"
        ).cell().follow(lambda: self.lag_s)

    # -- asked without I/O ---------------------------------------------------------------------------------------

    def permissions(self, tenant: str, roles: tuple[str, ...]) -> Permissions:
        """What ``roles`` come to in ``tenant`` now, with ``default_permissions``. A name that is unknown gives nothing.

        No I/O.
        """
        return self._compiled.permissions(tenant, roles)

    def epoch(self, tenant: str) -> int:
        """Grows with every change of roles that can matter in ``tenant``, as far as this worker knows. No I/O."""
        return self._compiled.epoch(tenant)

    def notice(self, tenant: str, epoch: int) -> None:
        """A token says how far the worker knew that made it: if further than this one, read the roles now. No I/O.

        At most every ``revocation_poll_s``: after a restore of the database tokens may know what is no more.
        """
        now_s = time.monotonic()
        if epoch > self._compiled.epoch(tenant) and now_s >= self._notice_after_s:
            self._notice_after_s = now_s + self._config.revocation_poll_s
            self._stirred.set()

    @property
    def lag_s(self) -> float:
        """Seconds since a change of roles was heard of that this worker has not read yet; 0 where there is none."""
        return 0.0 if self._behind_since_s is None else time.monotonic() - self._behind_since_s

    # -- definitions ---------------------------------------------------------------------------------------------

    async def define(
        self,
        name: str,
        *,
        permissions: Iterable[str],
        inherits: Iterable[str] = (),
        tenant: str = "",
        by: Principal | None = None,
        tx: Tx | None = None,
    ) -> Role:
        """Make a role, or make it so. With "" for all tenants, else for one, where it replaces one of the same name.

        Without ``tx`` this worker goes by it when the call returns, the others within ``revocation_poll_s``.

        Raises:
            RoleInvalid: ``fields`` says why: a name or permission that is none, a parent nobody knows, a circle, a
                limit, or it is built in.
            Forbidden: it gives, or gave before, what ``by`` may not do.
            NotFound: ``by`` is of another tenant.
        """
        self._require_started()
        check_names(tenant, "-")
        _require_at_home(by, tenant)
        role = Role(name, tuple(sorted(set(permissions))), tuple(sorted(set(inherits))), tenant)
        if wrong := [*_wrong(role, self._config.permissions_per_role_max)]:
            raise RoleInvalid(fields=tuple(wrong))

        async def write(tx: Tx) -> Role:
            before = await self._store.lock_roles(tx, tenant)
            old = _stored(before, tenant, name)
            after = RoleTable((*(other for other in before.roles if other is not old), role))
            self._judge(by, role, before, after)
            if old == role:
                return role
            if old is None:
                await self._require_room(tx, before, tenant)
            data = {"role": name, "permissions": [*role.permissions], "inherits": [*role.inherits]}
            with whole(tx):
                epoch = await self._store.write(tx, role, is_new=old is None)
                await self._tell(tx, "role_defined", tenant, by, data)
                await self._feed.write(tx, "roles", tenant, name, epoch)
            return role

        return await self._changed(write, tx)

    async def drop(self, name: str, *, tenant: str = "", by: Principal | None = None, tx: Tx | None = None) -> None:
        """Delete a stored role. In a tenant the one for all tenants, if there is one, holds again.

        Whoever has the role keeps its name, which gives nothing until there is a role of that name again.

        Raises:
            RoleUnknown: it is not stored for ``tenant``.
            RoleInvalid: another role inherits it, or is built in.
            Forbidden: it gave what ``by`` may not do.
            NotFound: ``by`` is of another tenant.
        """
        self._require_started()
        _require_at_home(by, tenant)

        async def write(tx: Tx) -> None:
            before = await self._store.lock_roles(tx, tenant)
            if (old := _stored(before, tenant, name)) is None:
                raise RoleUnknown(role=name[:64])
            self._judge(by, old, before, RoleTable(tuple(role for role in before.roles if role is not old)))
            with whole(tx):
                epoch = await self._store.remove(tx, tenant, name)
                await self._tell(tx, "role_dropped", tenant, by, {"role": name})
                await self._feed.write(tx, "roles", tenant, name, epoch)

        await self._changed(write, tx)

    async def list(self, tenant: str = "") -> tuple[Role, ...]:
        """The roles that hold in ``tenant``, by name: its own, those for all, and the built-in ones. Asks the table."""
        self._require_started()
        view = view_of(self._built_in, await self._store.read_roles(tenant), tenant)
        return tuple(view[name] for name in sorted(view))

    # -- who has them --------------------------------------------------------------------------------------------

    async def assign(
        self, subject: str, roles: Iterable[str], *, tenant: str = "", by: Principal | None = None, tx: Tx | None = None
    ) -> Standing:
        """Let ``subject`` have exactly ``roles``. Access tokens of before become stale if that is a change.

        Raises:
            RoleUnknown: one of them does not hold in ``tenant``.
            RoleInvalid: more than ``roles_per_subject_max``.
            Forbidden: ``by`` may not do what one of the roles that are given or taken allows.
            NotFound: ``by`` is of another tenant.
            ValueError: ``subject`` or ``tenant`` is no name.
        """
        wanted = tuple(roles)
        return await self._reassign(subject, tenant, by, tx, lambda _: wanted)

    async def add(
        self, subject: str, *roles: str, tenant: str = "", by: Principal | None = None, tx: Tx | None = None
    ) -> Standing:
        """Let ``subject`` have ``roles`` besides its others; of two at once both count. Raises as :meth:`assign`."""
        return await self._reassign(subject, tenant, by, tx, lambda had: (*had, *roles))

    async def remove(
        self, subject: str, *roles: str, tenant: str = "", by: Principal | None = None, tx: Tx | None = None
    ) -> Standing:
        """Let ``subject`` have ``roles`` no longer; also those that hold no more. Raises as :meth:`assign`."""
        return await self._reassign(
            subject, tenant, by, tx, lambda had: tuple(role for role in had if role not in roles)
        )

    async def of(self, subject: str, *, tenant: str = "", tx: Tx | None = None) -> Standing:
        """How ``subject`` stands; somebody nobody has heard of has no roles and may log in."""
        return (await self.of_many([subject], tenant=tenant, tx=tx))[subject]

    async def of_many(self, subjects: Sequence[str], *, tenant: str = "", tx: Tx | None = None) -> dict[str, Standing]:
        """How each of at most 100 ``subjects`` stands.

        Raises:
            ValueError: more than 100.
        """
        self._require_started()
        if len(subjects) > SUBJECTS_MAX:
            raise ValueError(f"at most {SUBJECTS_MAX} subjects at a time, not {len(subjects)}")
        return await self._store.standings(tenant, subjects, tx) if subjects else {}

    # -- shut out ------------------------------------------------------------------------------------------------

    async def disable(
        self, subject: str, *, tenant: str = "", by: Principal | None = None, tx: Tx | None = None
    ) -> Standing:
        """Shut ``subject`` out: its sessions end, and no credential opens another. Its roles stay, and so do its
        logins: nobody gets in anew by one of them.

        With ``by`` the subject itself it has left (``has_left``): then a login that it has never proven goes to who
        proves it, or one could keep strangers out by registering their numbers and leaving. Who was shut out cannot
        leave any more; who has left can be shut out.

        Raises:
            Forbidden: ``by`` may not do what ``subject`` may.
            NotFound: ``by`` is of another tenant.
            ValueError: ``subject`` or ``tenant`` is no name.
        """
        return await self._let_in(subject, tenant, by, tx, disabled=True)

    async def enable(
        self, subject: str, *, tenant: str = "", by: Principal | None = None, tx: Tx | None = None
    ) -> Standing:
        """Let ``subject`` log in again. Raises as :meth:`disable`."""
        return await self._let_in(subject, tenant, by, tx, disabled=False)

    async def admit(self, tx: Tx, tenant: str, subject: str) -> Standing:
        """How ``subject`` stands, held until the end of ``tx``, so that nobody is shut out while being let in.

        Raises:
            AccountDisabled: it has been shut out.
        """
        standing = await self._held(tx, tenant, subject)
        if standing.is_disabled:
            raise AccountDisabled()
        return standing

    async def hold(self, tx: Tx, tenant: str, subject: str) -> Standing:
        """How ``subject`` stands, shut out or not; nobody changes that, or opens anything for it, in ``tx``'s time."""
        return await self._held(tx, tenant, subject)

    async def forget(self, tx: Tx, tenant: str, subject: str) -> None:
        """Delete what is kept of ``subject`` here; its sessions are ended elsewhere."""
        await self._store.forget(tx, tenant, subject)

    # -- following the table -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the roles in the loop that will follow them.

        Raises:
            DbError: the database is away.
        """
        self._stirred, self._reading = asyncio.Event(), asyncio.Lock()
        await self.reload()

    async def follow(self) -> None:
        """Read the roles whenever a change was heard of, and every ``roles_refresh_s``; until cancelled."""
        while True:
            wait_s = self._config.revocation_poll_s if self._awaited else self._config.roles_refresh_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._stirred.wait()
            self._stirred.clear()
            await self._try_reload()

    async def reload(self) -> None:
        """Read the roles now. Of a cache, what is older than what is held is passed over.

        Raises:
            DbError: the database is away; what is held stays.
        """
        async with self._reading:  # a slow answer from before must not come last
            table = await self._source.load()
            # The table itself is believed also where it went back in time: somebody has restored it.
            if self._source is self._store or not table.is_behind(self._compiled.table.epochs):
                self._compiled = self._compile(table)
        known = self._compiled.table.epochs
        self._awaited = {tenant: epoch for tenant, epoch in self._awaited.items() if known.get(tenant, 0) < epoch}
        if not self._awaited:
            self._behind_since_s = None

    async def _try_reload(self) -> None:
        try:
            await self.reload()
        except Exception as error:  # a source may be anybody's; the next turn of follow() tries again
            log.warning("roles cannot be read, this worker goes on with those it has: %s", error)

    def _heard(self, tenant: str, _: str, epoch: int) -> None:
        if self._compiled.table.epochs.get(tenant, 0) >= epoch:
            return
        self._awaited[tenant] = max(epoch, self._awaited.get(tenant, 0))
        if self._behind_since_s is None:
            self._behind_since_s = time.monotonic()
        self._stirred.set()

    def _compile(self, table: RoleTable) -> CompiledRoles:
        return CompiledRoles(table, self._built_in, self._config.default_permissions)

    # -- steps ---------------------------------------------------------------------------------------------------

    async def _changed(self, write: Callable[[Tx], Awaitable[T]], tx: Tx | None) -> T:
        done = await self._db.run(write, tx=tx)
        if tx is None:
            await self._try_reload()  # it is done in any case, and will be read as others read it
        return done

    def _judge(self, by: Principal | None, role: Role, before: RoleTable, after: RoleTable) -> None:
        """Whether a definition may change so, in all tenants, and for ``by``."""
        if not role.tenant and any(built_in.name == role.name for built_in in self._built_in):
            raise _invalid("name", "内置角色不可修改", "This role is built in and cannot be changed")
        views = views_of(self._built_in, after)
        if (flaw := flaw_of(views.values(), role.name)) is not None:
            raise _flawed(flaw)
        now, then = view_of(self._built_in, before, role.tenant), views.get(role.tenant, views[""])
        _require_within(by, [*grants_of(now, [role.name]), *grants_of(then, [role.name])])

    async def _require_room(self, tx: Tx, table: RoleTable, tenant: str) -> None:
        most = self._config.roles_per_tenant_max
        if sum(role.tenant == tenant for role in table.roles) >= most:
            raise _invalid("name", f"最多 {most} 个角色", f"There may be {most} roles")
        if await self._store.count_roles(tx) >= self._config.roles_max:
            raise _invalid("name", "角色总数已达上限", "There are as many roles as there may be")

    async def _reassign(
        self,
        subject: str,
        tenant: str,
        by: Principal | None,
        tx: Tx | None,
        change: Callable[[tuple[str, ...]], tuple[str, ...]],
    ) -> Standing:
        self._require_started()
        check_names(tenant, subject)
        _require_at_home(by, tenant)

        async def write(tx: Tx) -> Standing:
            # The definitions first, as where one is changed: two locks in one order.
            view = None if by is None else await self._held_view(tx, tenant)
            had = await self._held(tx, tenant, subject)
            roles = tuple(sorted(set(change(had.roles))))
            if roles == had.roles:
                return had
            if len(roles) > (most := self._config.roles_per_subject_max):
                raise _invalid("roles", f"最多 {most} 个角色", f"There may be {most} roles")
            await self._require_known(tx, tenant, set(roles) - set(had.roles), view)
            if view is not None:
                _require_within(by, grants_of(view, set(roles) ^ set(had.roles)))
            data = {"roles": [*roles], "before": [*had.roles]}
            with whole(tx):
                await self._store.set_roles(tx, tenant, subject, roles)
                await self._tell(tx, "roles_assigned", tenant, by, data, subject)
                await self._feed.write(tx, "subject", tenant, subject, had.epoch + 1)
            return Standing(roles, had.epoch + 1, had.is_disabled, had.has_left)

        return await self._db.run(write, tx=tx)

    async def _let_in(
        self, subject: str, tenant: str, by: Principal | None, tx: Tx | None, *, disabled: bool
    ) -> Standing:
        self._require_started()
        check_names(tenant, subject)
        _require_at_home(by, tenant)
        left = disabled and by is not None and (by.tenant, by.subject) == (tenant, subject)

        async def write(tx: Tx) -> Standing:
            view = None if by is None else await self._held_view(tx, tenant)
            had = await self._held(tx, tenant, subject)
            if view is not None:
                _require_within(by, grants_of(view, had.roles))
            if had.is_disabled == disabled and (left or not had.has_left):
                return had
            with whole(tx):
                await self._store.set_disabled(tx, tenant, subject, disabled=disabled, left=left)
                if disabled:
                    await self._end_sessions(subject, tenant=tenant, why="disabled", tx=tx)
                await self._tell(tx, "account_disabled" if disabled else "account_enabled", tenant, by, {}, subject)
                await self._feed.write(tx, "subject", tenant, subject, had.epoch + 1)
            return Standing(had.roles, had.epoch + 1, disabled, left)

        return await self._db.run(write, tx=tx)

    async def _held(self, tx: Tx, tenant: str, subject: str) -> Standing:
        # Who was forgotten and comes again begins with the epoch of before: a token of 0 would be stale here.
        return await self._store.lock_subject(tx, tenant, subject, self._feed.subject_epoch(tenant, subject))

    async def _held_view(self, tx: Tx, tenant: str) -> View:
        return view_of(self._built_in, await self._store.lock_roles(tx, tenant), tenant)

    async def _require_known(self, tx: Tx, tenant: str, roles: set[str], view: View | None) -> None:
        unknown = roles - (self._compiled.view(tenant) if view is None else view).keys()
        if unknown and view is None:  # defined a moment ago elsewhere, or by this transaction
            # Without a lock: that of the definitions comes before the subject's, which is held by now.
            unknown -= view_of(self._built_in, await self._store.read_roles(tenant, tx), tenant).keys()
        if unknown:
            raise RoleUnknown(role=min(unknown)[:64])

    async def _tell(
        self, tx: Tx, name: str, tenant: str, by: Principal | None, data: dict[str, Any], subject: str = ""
    ) -> None:
        who = {"by": by.subject} if by is not None else {}
        await self._events.emit(Event(name=f"auth.{name}", tenant=tenant, subject=subject, data=data | who), tx)


def _require_at_home(by: Principal | None, tenant: str) -> None:
    if by is not None and by.tenant not in ("", tenant):
        raise NotFound()


def _require_within(by: Principal | None, grants: Iterable[str]) -> None:
    if by is not None and (above := next((grant for grant in grants if not by.may(grant)), None)) is not None:
        raise Forbidden(permission=above)


def _wrong(role: Role, permissions_max: int) -> Iterable[FieldError]:
    if not is_role_name(role.name):
        yield FieldError("name", "须为 1–48 个小写字母、数字或 _ . -", "Must be 1 to 48 of a-z, 0-9, '_', '.' and '-'")
    for number, grant in enumerate(role.permissions[: permissions_max + 1]):
        if not is_grant(grant):
            field = f"permissions[{number}]"
            yield FieldError(field, "不是权限，例如 quota:grant、quota:*", "Is none, like quota:grant or quota:*")
    for field, count, most in (
        ("permissions", len(role.permissions), permissions_max),
        ("inherits", len(role.inherits), MAX_INHERITED),
    ):
        if count > most:
            yield FieldError(field, f"最多 {most} 项", f"May hold {most}")


def _invalid(field: str, zh: str, en: str) -> RoleInvalid:
    return RoleInvalid(fields=(FieldError(field, zh, en),))


def _flawed(flaw: Flaw) -> RoleInvalid:
    what, name = flaw[0], flaw[1][:64]
    field, zh, en = _FLAWS[what]
    return _invalid(field, zh.format(name=name), en.format(name=name))


def _stored(table: RoleTable, tenant: str, name: str) -> Role | None:
    return next((role for role in table.roles if (role.tenant, role.name) == (tenant, name)), None)

"""What a set of grants allows, and what a person's roles come to. Pure: no I/O, no clock.

A *permission* is what code asks for: ``image:create``. A *grant* is what a role gives: a permission, a family of them
(``quota:*`` is everything that begins with ``quota:``, however deep) or everything (``*``). Two grants are always apart
or one inside the other, never half and half. That is what makes the rest short: a set of grants has one smallest form,
the intersection of two sets is again a set of grants, and asking for a grant asks for all of it.

Roles inherit. A role of a tenant replaces the one of the same name that is for all tenants, in that tenant and also for
what inherits it there: names are looked up in the tenant's own *view*. A change is refused if a view would then hold a
circle, or a role that inherits what is not there. Compiling does not count on that: an unknown name gives nothing and a
circle ends, because a table edited by hand must not keep a worker from starting.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

MAX_GRANT_CHARS = 48
MAX_ROLE_CHARS = 48
_GRANT = r"^(\*|[a-z0-9_.-]+(:[a-z0-9_.-]+)*(:\*)?)\Z"
_ROLE = r"^[a-z0-9_.-]+\Z"
Grant = Annotated[str, Meta(pattern=_GRANT, max_length=MAX_GRANT_CHARS)]
RoleName = Annotated[str, Meta(pattern=_ROLE, max_length=MAX_ROLE_CHARS)]

_ANSWERS_MAX = 512
_COMPILED_MAX = 4_096
_is_grant = re.compile(_GRANT)
_is_role = re.compile(_ROLE)


def is_grant(text: str) -> bool:
    """Whether ``text`` is a permission, a family ``x:*`` or ``*``."""
    return len(text) <= MAX_GRANT_CHARS and _is_grant.match(text) is not None


def is_role_name(text: str) -> bool:
    """Whether a role may be called ``text``."""
    return len(text) <= MAX_ROLE_CHARS and _is_role.match(text) is not None


class _Answers(dict[str, bool]):
    """Whether each permission is allowed: a dict's own look-up for what was asked before, and what is granted by name.

    Permissions may hold ids of rows, so there is a limit to what is remembered.
    """

    __slots__ = ("_everything", "_families", "_room")

    def __init__(self, grants: Iterable[str]) -> None:
        super().__init__(dict.fromkeys(grants, True))
        self._everything = "*" in self
        self._families = frozenset(grant[:-1] for grant in self if grant.endswith(":*"))
        self._room = len(self) + _ANSWERS_MAX

    def __missing__(self, permission: str) -> bool:
        answer = self._everything or self.in_family(permission)
        if len(self) < self._room and len(permission) <= MAX_GRANT_CHARS:
            self[permission] = answer
        return answer

    def in_family(self, permission: str) -> bool:
        """Whether a family holds it; one look-up for each of its colons, however many families there are."""
        if not self._families:
            return False
        end = permission.find(":") + 1
        while end:
            if permission[:end] in self._families:
                return True
            end = permission.find(":", end) + 1
        return False

    def is_needless(self, grant: str) -> bool:
        """Whether the others here give ``grant`` too."""
        return grant != "*" and (self._everything or self.in_family(grant.removesuffix(":*")))


class Permissions:
    """A set of grants, made for being asked. Immutable; equal where they allow the same::

    Permissions(["quota:*", "image:create"]).may("quota:grant")   # True
    """

    __slots__ = ("_answers", "_grants")

    def __init__(self, grants: Iterable[str] = ()) -> None:
        given = _Answers(grants)
        self._grants = frozenset(grant for grant in given if not given.is_needless(grant))
        self._answers = _Answers(self._grants)

    def may(self, permission: str) -> bool:
        """Whether ``permission`` is allowed; of a family, whether all of it is."""
        return self._answers[permission]

    def covers(self, grants: Iterable[str]) -> bool:
        """Whether everything that ``grants`` give is allowed here too; another Permissions is such grants."""
        return all(map(self.may, grants))

    def __and__(self, other: Permissions) -> Permissions:
        """What both allow."""
        return Permissions([*filter(other.may, self._grants), *filter(self.may, other._grants)])

    def __iter__(self) -> Iterator[str]:
        """The grants of the smallest form, sorted."""
        return iter(sorted(self._grants))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Permissions) and self._grants == other._grants

    def __hash__(self) -> int:
        return hash(self._grants)

    def __repr__(self) -> str:
        return f"Permissions({sorted(self._grants)})"

    def __reduce__(self) -> tuple[type[Permissions], tuple[list[str]]]:
        return Permissions, (sorted(self._grants),)


class Role(msgspec.Struct, frozen=True):
    """A role as defined: its own grants and the names of the roles whose grants it has besides.

    ``tenant`` "" is for all tenants. ``is_built_in``: it stands in ``AuthConfig.roles``, not in the table.
    """

    name: str
    permissions: tuple[str, ...] = ()
    inherits: tuple[str, ...] = ()
    tenant: str = ""
    is_built_in: bool = False


class RoleTable(msgspec.Struct, frozen=True):
    """All roles that are stored, of all tenants, and how often each tenant's have changed."""

    roles: tuple[Role, ...] = ()
    epochs: dict[str, int] = {}

    def is_behind(self, epochs: Mapping[str, int]) -> bool:
        """Whether a tenant's roles are older here than in ``epochs``."""
        return any(self.epochs.get(tenant, 0) < epoch for tenant, epoch in epochs.items())


View: TypeAlias = Mapping[str, Role]
"""The roles that hold in one tenant, by name."""

Flaw: TypeAlias = tuple[Literal["unknown", "circle", "needed"], str]
"""Why a view may not become so, and the role's name that says where."""


def view_of(built_in: Iterable[Role], table: RoleTable, tenant: str) -> View:
    """What holds in ``tenant``: its own roles before those for all, and those before the built-in ones."""
    views = views_of(built_in, table)
    return views.get(tenant, views[""])


def views_of(built_in: Iterable[Role], table: RoleTable) -> Mapping[str, View]:
    """The views of "" and of every tenant with roles of its own. A stored role never hides a built-in one for all."""
    of_tenants: dict[str, dict[str, Role]] = {"": {}}
    for role in table.roles:
        of_tenants.setdefault(role.tenant, {})[role.name] = role
    for_all = of_tenants.pop("") | {role.name: role for role in built_in}
    return {"": for_all} | {tenant: for_all | own for tenant, own in of_tenants.items()}


def closure(view: View, names: Iterable[str]) -> set[str]:
    """``names`` and all they inherit, as far as ``view`` knows them."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found and (role := view.get(name)) is not None:
            found.add(name)
            waiting += role.inherits
    return found


def grants_of(view: View, names: Iterable[str]) -> Iterator[str]:
    """Every grant of the roles ``names`` and of what they inherit."""
    for name in closure(view, names):
        yield from view[name].permissions


def flaw_of(views: Iterable[View], name: str) -> Flaw | None:
    """What would be wrong about the role ``name``, just defined or dropped, in one of ``views``."""
    for view in views:
        if (role := view.get(name)) is None:
            if (heir := next((other.name for other in view.values() if name in other.inherits), None)) is not None:
                return "needed", heir
            continue
        if (unknown := next((parent for parent in role.inherits if parent not in view), None)) is not None:
            return "unknown", unknown
        if name in closure(view, role.inherits):
            return "circle", next(parent for parent in role.inherits if name in closure(view, [parent]))
    return None


class CompiledRoles:
    """One version of the table, looked up by tenant and names; what was looked up before costs one dict look-up."""

    def __init__(self, table: RoleTable, built_in: Iterable[Role] = (), default: Iterable[str] = ()) -> None:
        self.table = table
        self._views = views_of(built_in, table)
        self._default = tuple(default)
        self._compiled: dict[tuple[str, tuple[str, ...]], Permissions] = {}

    def view(self, tenant: str) -> View:
        """What holds in ``tenant``."""
        return self._views.get(tenant) or self._views[""]

    def permissions(self, tenant: str, names: tuple[str, ...]) -> Permissions:
        """What somebody with the roles ``names`` may do in ``tenant``; the defaults are everybody's."""
        try:
            return self._compiled[tenant, names]
        except KeyError:
            return self._compile(tenant, names)

    def epoch(self, tenant: str) -> int:
        """Grows with every change that can matter in ``tenant``: its own and those for all."""
        epochs = self.table.epochs
        return epochs.get("", 0) + (epochs.get(tenant, 0) if tenant else 0)

    def _compile(self, tenant: str, names: tuple[str, ...]) -> Permissions:
        if len(self._compiled) >= _COMPILED_MAX:
            self._compiled.clear()  # the few that are in use are back with their next request
        # Tenants without roles of their own, and all orders of the same names, share one set and its memory.
        key = (tenant if tenant in self._views else "", tuple(sorted(closure(self.view(tenant), names))))
        found = self._compiled.get(key)
        if found is None:
            found = self._compiled[key] = Permissions([*self._default, *grants_of(self.view(tenant), names)])
        self._compiled[tenant, names] = found
        return found

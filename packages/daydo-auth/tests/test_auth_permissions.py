"""Grants and roles as what they are compiled to, held against the simplest thing that could be meant by them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_auth import Auth, AuthConfig, Forbidden, Principal
from daydo_auth.config import RoleSpec
from daydo_auth.permissions import (
    CompiledRoles,
    Permissions,
    Role,
    RoleTable,
    flaw_of,
    is_grant,
    is_role_name,
    views_of,
)
from daydo_db import Database
from daydo_kernel import NotFound
from daydo_redis import Redis
from daydo_redis.testing import CALM

# Few words, so that grants meet; the last is in no grant, so that a family is more than what is listed.
WORDS = ("a", "b", "other")
ASKED = [
    *WORDS,
    *(f"{x}:{y}" for x in WORDS for y in WORDS),
    *(f"{x}:{y}:{z}" for x in WORDS for y in WORDS for z in WORDS),
]
names = st.lists(st.sampled_from(WORDS[:2]), min_size=1, max_size=3).map(":".join)
grants = st.one_of(names, names.map(lambda name: f"{name}:*"), st.just("*"))
several = st.lists(grants, max_size=6)


def may(given: list[str], permission: str) -> bool:
    """What a set of grants means."""
    return any(
        grant in ("*", permission) or (grant.endswith(":*") and permission.startswith(grant[:-1])) for grant in given
    )


@given(several)
def test_a_set_allows_what_one_of_its_grants_allows(given: list[str]) -> None:
    """Asked for the first time and again, by name and by family, the answer is that of going through the list."""
    compiled = Permissions(given)
    for _ in range(2):
        assert [compiled.may(asked) for asked in ASKED] == [may(given, asked) for asked in ASKED]


@given(several, several)
def test_both_of_two_sets(one: list[str], two: list[str]) -> None:
    """An API key's scopes and its owner's permissions: what both allow, and nothing else."""
    both = Permissions(one) & Permissions(two)
    assert [both.may(asked) for asked in ASKED] == [may(one, asked) and may(two, asked) for asked in ASKED]


@given(several, several)
def test_sets_are_equal_where_they_allow_the_same(one: list[str], two: list[str]) -> None:
    """However they were written, sets that allow the same are equal and hash alike; and one covers what it allows."""
    left, right = Permissions(one), Permissions(two)
    same = all(may(one, asked) == may(two, asked) for asked in [*ASKED, *(f"{asked}:deep" for asked in ASKED), "none"])
    assert (left == right) is same
    assert not same or hash(left) == hash(right)
    assert left.covers(right) == all(may(one, asked) for asked in [*ASKED, "none", *right] if may([*right], asked))


def test_a_wildcard_is_a_family_and_no_pattern() -> None:
    """``quota:*`` is what begins with ``quota:``: not ``quota``, not ``quotas:…``, and a star elsewhere is no grant."""
    compiled = Permissions(["quota:*"])
    assert compiled.may("quota:grant")
    assert compiled.may("quota:grant:large")
    assert not any(map(compiled.may, ("quota", "quotas:grant", "quot", "*", "", ":", "image:quota:grant")))
    for odd in (
        "quota*",
        "*:read",
        "quota:*:read",
        "**",
        "",
        ":",
        "a::b",
        "a:",
        ":*",
        "A",
        "a b",
        "a\n",
        "a" * 49,
        "é",
    ):
        assert not is_grant(odd), odd
    for odd in ("", "a b", "a:b", "A", "a\n", "x" * 49, "*"):
        assert not is_role_name(odd), odd


def test_what_is_asked_is_not_remembered_without_end() -> None:
    """Permissions with ids of rows in them, or long ones, do not fill the memory, and are answered all the same."""
    compiled = Permissions(["doc:*", "a"])
    assert all(compiled.may(f"doc:{number}") for number in range(5_000))
    assert not any(compiled.may(f"image:{number}") for number in range(5_000))
    assert compiled.may("doc:" + "x" * 100_000)
    assert len(compiled._answers) < 600
    assert max(map(len, compiled._answers)) <= 48


def test_permissions_travel() -> None:
    """A copy and a pickle of a set are that set."""
    compiled = Permissions(["quota:*", "quota:read", "a"])
    assert list(compiled) == ["a", "quota:*"]
    assert copy.deepcopy(compiled) == pickle.loads(pickle.dumps(compiled)) == compiled
    assert repr(compiled) == "Permissions(['a', 'quota:*'])"


# -- roles -------------------------------------------------------------------------------------------------------

ROLES = ("r1", "r2", "r3", "r4")
TENANTS = ("", "t1", "t2")
role_of = st.builds(
    Role,
    st.sampled_from(ROLES),
    st.lists(grants, max_size=2).map(tuple),
    st.lists(st.sampled_from(ROLES), max_size=3, unique=True).map(tuple),
    st.sampled_from(TENANTS),
)


def stored(roles: list[Role]) -> RoleTable:
    return RoleTable(tuple({(role.tenant, role.name): role for role in roles}.values()))


def find(table: RoleTable, tenant: str, name: str) -> Role | None:
    """The role of this name that holds in a tenant: its own, else the one for all."""
    for wanted in (tenant, ""):
        for role in table.roles:
            if (role.tenant, role.name) == (wanted, name):
                return role
    return None


def given_by(table: RoleTable, tenant: str, name: str, seen: tuple[str, ...] = ()) -> list[str]:
    role = find(table, tenant, name)
    if role is None or name in seen:
        return []
    return [*role.permissions, *(g for parent in role.inherits for g in given_by(table, tenant, parent, (*seen, name)))]


def goes_in_circles(table: RoleTable, tenant: str, name: str, seen: tuple[str, ...] = ()) -> bool:
    role = find(table, tenant, name)
    return name in seen or (
        role is not None and any(goes_in_circles(table, tenant, parent, (*seen, name)) for parent in role.inherits)
    )


@given(st.lists(role_of, max_size=10), st.lists(st.sampled_from(ROLES), max_size=3))
def test_roles_come_to_what_they_and_their_parents_give(roles: list[Role], held: list[str]) -> None:
    """In every tenant, overrides and all, also in tables that nobody should have written: circles, unknown parents."""
    table = stored(roles)
    compiled = CompiledRoles(table, default=("default",))
    for tenant in (*TENANTS, "a tenant without roles"):
        expected = ["default", *(grant for name in held for grant in given_by(table, tenant, name))]
        for _ in range(2):
            assert compiled.permissions(tenant, tuple(held)) == Permissions(expected)


@given(st.lists(st.one_of(role_of, st.tuples(st.sampled_from(TENANTS), st.sampled_from(ROLES))), max_size=25))
def test_no_change_that_is_let_through_spoils_a_tenant(changes: list[Any]) -> None:
    """However roles are defined and dropped, no tenant ever sees a circle or a role with an unknown parent."""
    table = RoleTable()
    for change in changes:
        tenant, name = change if isinstance(change, tuple) else (change.tenant, change.name)
        others = [role for role in table.roles if (role.tenant, role.name) != (tenant, name)]
        after = RoleTable((*others, change) if isinstance(change, Role) else tuple(others))
        if flaw_of(views_of((), after).values(), name) is None:
            table = after
        for where in TENANTS:
            held = [role for each in ROLES if (role := find(table, where, each)) is not None]
            assert not any(goes_in_circles(table, where, role.name) for role in held)
            assert all(find(table, where, parent) for role in held for parent in role.inherits)


def test_no_good_change_is_refused() -> None:
    """A diamond is no circle, and a flaw that somebody else's tenant has already is not held against a change."""
    a, b, c = Role("a"), Role("b", inherits=("a",)), Role("c", inherits=("a",))
    table = RoleTable((a, b, c, Role("d", inherits=("b", "c")), Role("old", inherits=("gone",), tenant="t1")))
    assert flaw_of(views_of((), table).values(), "d") is None
    assert flaw_of(views_of((), table).values(), "old") == ("unknown", "gone")


def test_a_built_in_role_is_not_hidden_for_all() -> None:
    """A row for all tenants never replaces a built-in role, a tenant's own row does, there alone."""
    built_in = (Role("admin", ("*",), is_built_in=True),)
    table = RoleTable((Role("admin", ("a",)), Role("admin", ("b",), tenant="t1")))
    compiled = CompiledRoles(table, built_in)
    assert compiled.permissions("", ("admin",)) == compiled.permissions("t2", ("admin",)) == Permissions(["*"])
    assert compiled.permissions("t1", ("admin",)) == Permissions(["b"])


def test_tenants_without_roles_share_what_is_compiled() -> None:
    """A thousand tenants and any order of names are one set in memory, and the look-ups themselves are bounded."""
    compiled = CompiledRoles(RoleTable((Role("a", ("x",)), Role("b", ("y",)))))
    assert compiled.permissions("t1", ("a", "b")) is compiled.permissions("t2", ("b", "a", "gone"))
    for number in range(10_000):
        compiled.permissions(f"t{number}", ("a",))
    assert len(compiled._compiled) <= 4_097


def test_an_epoch_grows_with_what_matters_in_a_tenant() -> None:
    """A tenant's epoch moves with its own roles and with those for all, not with its neighbour's."""
    compiled = CompiledRoles(RoleTable(epochs={"": 2, "t1": 3}))
    assert [compiled.epoch(tenant) for tenant in ("", "t1", "t2")] == [2, 5, 2]


# -- configuration -----------------------------------------------------------------------------------------------


def test_built_in_roles_are_checked_at_once(configure: Any) -> None:
    """A circle, an unknown parent, a bad name or permission stops the service with a message that says where."""
    for roles, what in (
        ({"a": RoleSpec(inherits=("b",))}, r"roles\['a'\] inherits 'b', which is not among them"),
        ({"a": RoleSpec(inherits=("b",)), "b": RoleSpec(inherits=("a",))}, "which inherits it in turn"),
        ({"a": RoleSpec(inherits=("a",))}, "which inherits it in turn"),
        ({"A": RoleSpec()}, "AuthConfig.roles"),
    ):
        with pytest.raises(ValueError, match=what):
            Auth(Database("sqlite://"), Redis("embedded://memory", CALM), configure(roles=roles))
    for bad in ({"permissions": ("a b",)}, {"permissions": ("*:a",)}, {"inherits": ("a b",)}):
        with pytest.raises(ValueError, match="RoleSpec"):
            RoleSpec(**bad)
    text = b'{"support": {"permissions": ["users:read"]}, "admin": {"permissions": ["*"], "inherits": ["support"]}}'
    config = msgspec.convert({"roles": msgspec.json.decode(text)}, AuthConfig)
    assert [role.name for role in config.built_in_roles] == ["support", "admin"]
    assert all(role.is_built_in and role.tenant == "" for role in config.built_in_roles)


# -- who is calling ----------------------------------------------------------------------------------------------


def test_a_principal_requires_all_of_what_is_named() -> None:
    """``require`` names the first permission that is missing, and passes with all of them."""
    principal = Principal("acme", "u_1", permissions=Permissions(["quota:*", "image:create"]))
    principal.require("quota:grant", "image:create")
    principal.require()
    with pytest.raises(Forbidden) as refused:
        principal.require("quota:grant", "image:delete", "users:read")
    assert refused.value.permission == "image:delete"
    assert principal.may("quota:read")
    assert not Principal("acme", "u_1").may("quota:read")


def test_another_tenants_row_is_not_there() -> None:
    """Crossing tenants answers 404, as if there were nothing."""
    Principal("acme", "u_1").require_tenant("acme")
    for tenant in ("", "other", "ACME"):
        with pytest.raises(NotFound):
            Principal("acme", "u_1").require_tenant(tenant)

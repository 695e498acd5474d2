"""The roles every installation has, and those that the environment adds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import reference_app
from daydo_auth import AuthConfig
from daydo_auth.permissions import CompiledRoles, RoleTable
from reference_app.roles import EVERYBODY, ROLES
from reference_app.settings import SettingsInvalid, load_settings

SOURCES = Path(reference_app.__file__).parent


def test_each_role_does_its_own() -> None:
    """An admin may do everything, an operator what support may and more, and neither of them may do all."""
    compiled = CompiledRoles(RoleTable(), AuthConfig(roles=ROLES).built_in_roles)
    admin, operator, support = (compiled.permissions("", (name,)) for name in ("admin", "operator", "support"))
    assert admin.covers(operator)
    assert operator.covers(support)
    assert not support.covers(operator)
    assert not operator.covers(admin)


def test_every_guard_is_somebodys() -> None:
    """No route asks for a permission that only ``*`` gives: it would be a word that nobody has spelled that way."""
    asked = {
        permission
        for source in SOURCES.rglob("*.py")
        for guard in re.findall(r"permitted\(([^)]*)\)", source.read_text("utf-8"))
        for permission in re.findall(r'"([^"]+)"', guard)
    }
    compiled = CompiledRoles(RoleTable(), AuthConfig(roles=ROLES).built_in_roles, EVERYBODY)
    given = compiled.permissions("", ("operator", "support"))
    assert asked
    assert sorted(permission for permission in asked if not given.may(permission)) == []


def test_the_environment_adds_roles_and_changes_them(tmp_path: Path) -> None:
    """``DAYDO_AUTH__ROLES`` is JSON; what makes no sense together stops the start with its name and an example."""

    def load(roles: str) -> dict[str, object]:
        environ = {"DAYDO_DATA_DIR": str(tmp_path), "DAYDO_AUTH__ROLES": roles}
        return dict(load_settings(environ, dotenv=tmp_path / ".env").roles)

    added = load('{"auditor": {"inherits": ["support"]}, "support": {"permissions": []}}')
    assert sorted(added) == ["admin", "auditor", "operator", "support"]
    assert added["support"].permissions == ()  # type: ignore[attr-defined]
    for wrong in ('{"support": {"inherits": ["operator"]}}', '{"a": {"permissions": ["A B"]}}', "[]"):
        with pytest.raises(SettingsInvalid, match="DAYDO_AUTH__ROLES"):
            load(wrong)

"""Administration over HTTP: who may do what to whom, and the command that makes the first administrator."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from reference_app.testing import PASSWORD, Client, Town

WHY = {"reason": "asked by phone"}


@pytest.fixture
def user(town: Town) -> Iterator[Client]:
    """A user without roles."""
    with Client(town.url) as client:
        yield client.register()


@pytest.fixture(scope="module")
def admin(town: Town) -> Iterator[Client]:
    """An administrator, made by the command."""
    with Client(town.url) as client:
        yield _with_role(town, client.register(), "admin")


@pytest.fixture(scope="module")
def support(town: Town, admin: Client) -> Iterator[Client]:
    """Somebody of support, made by the administrator."""
    with Client(town.url) as client:
        client.register()
        admin.ok("PUT", f"/admin/users/{client.user_id}/roles", json={"roles": ["support"], **WHY})
        yield _log_in(client)


def _with_role(town: Town, client: Client, role: str) -> Client:
    done = town.command("admin", "grant-role", client.email, role)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split("\t") == [client.user_id, role]
    return _log_in(client)


def _log_in(client: Client) -> Client:
    return client.enter(client.ok("POST", "/auth/login", json={"email": client.email, "password": PASSWORD}))


def refusal(client: Client, method: str, path: str, **request: Any) -> tuple[int, str]:
    answer = client.call(method, path, **request)
    return answer.status_code, answer.json()["error"]


def events(town: Town, name: str, subject: str) -> list[dict[str, Any]]:
    """What the service has said of ``subject`` under ``name``."""
    lines = [json.loads(line) for line in town.log.read_text().splitlines() if f'"message":"{name}"' in line]
    facts = [line["extra"]["facts"] for line in lines]
    return [each for each in facts if each["subject"] == subject]


ROUTES = [
    ("GET", "/admin/users", None),
    ("GET", "/admin/users/{id}", None),
    ("GET", "/admin/users/{id}/sessions", None),
    ("POST", "/admin/users/{id}/sessions/end", WHY),
    ("POST", "/admin/users/{id}/disable", WHY),
    ("POST", "/admin/users/{id}/enable", WHY),
    ("PUT", "/admin/users/{id}/roles", {"roles": ["admin"], **WHY}),
    ("GET", "/admin/roles", None),
    ("PUT", "/admin/roles/friends", {"permissions": ["*"]}),
    ("DELETE", "/admin/roles/friends", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_users_do_not_administer(user, method, path, body):
    """403, to themselves as to others; and 401 for nobody."""
    path = path.replace("{id}", user.user_id)
    assert refusal(user, method, path, json=body) == (403, "auth.forbidden")
    del user.http.headers["Authorization"]
    assert refusal(user, method, path, json=body) == (401, "auth.token_missing")


def test_users_are_listed_newest_first_by_pages_and_masked(admin, town):
    """Each once; a cursor of somebody else's making is refused."""
    with Client(town.url) as client:
        made = [client.register().user_id for _ in range(5)]
        email = client.email
    seen: list[str] = []
    cursor = None
    while not set(made) <= set(seen):
        page = admin.ok("GET", "/admin/users", params={"limit": 2, **({"cursor": cursor} if cursor else {})})
        seen += [each["id"] for each in page["items"]]
        cursor = page["next_cursor"]
    assert [each for each in seen if each in made] == made[::-1]
    assert len(seen) == len(set(seen))
    [found] = admin.ok("GET", "/admin/users", params={"q": email})["items"]
    assert (found["id"], found["email"]) == (made[-1], "u***@example.com")
    assert refusal(admin, "GET", "/admin/users", params={"cursor": "x" * 20}) == (400, "db.cursor_invalid")


@pytest.mark.parametrize("q", ["nobody@example.com", "13900000001", "user_nobody", "%", "' OR 1=1 --", "\u0130"])
def test_who_is_not_there_is_not_found(admin, q):
    """An empty page, whatever is asked for."""
    assert admin.ok("GET", "/admin/users", params={"q": q})["items"] == []
    assert refusal(admin, "GET", "/admin/users/user_nobody") == (404, "kernel.not_found")


def test_a_disabled_user_is_out_at_once_and_back_when_enabled(admin, user, town):
    """With an event that says who did it and why."""
    assert admin.ok("POST", f"/admin/users/{user.user_id}/disable", json=WHY)["disabled"]
    assert refusal(user, "GET", "/users/me")[0] == 401
    login = {"email": user.email, "password": PASSWORD}
    assert refusal(user, "POST", "/auth/login", json=login) == (403, "auth.account_disabled")
    assert not admin.ok("POST", f"/admin/users/{user.user_id}/enable", json=WHY)["disabled"]
    _log_in(user).ok("GET", "/users/me")
    [told] = events(town, "admin.disabled", user.user_id)
    assert (told["by"], told["reason"]) == (admin.user_id, "asked by phone")


def test_a_disabled_user_does_not_come_back_anew_by_their_phone(admin, town):
    """Although they had never proven it: it stays with them, shut out, until they are enabled."""
    phone = f"137{secrets.randbelow(10**8):08d}"
    password, code = {"phone": phone, "password": PASSWORD}, {"phone": phone}
    with Client(town.url) as client:
        client.enter(client.ok("POST", "/auth/register", json=password))
        admin.ok("POST", f"/admin/users/{client.user_id}/disable", json=WHY)
        for path, purpose, body in (
            ("/auth/login", "login", code),
            ("/auth/register", "register", password),
            ("/auth/password-reset", "reset", password),
        ):
            shown = {**body, "code": town.code(client, phone, purpose)}
            assert refusal(client, "POST", path, json=shown) == (403, "auth.account_disabled")
        assert refusal(client, "POST", "/auth/register", json=password) == (409, "auth.login_taken")
        admin.ok("POST", f"/admin/users/{client.user_id}/enable", json=WHY)
        back = client.ok("POST", "/auth/login", json={**code, "code": town.code(client, phone)})
        assert back["user"]["id"] == client.user_id


def test_a_user_who_left_comes_back_through_an_administrator(admin, user):
    """Deactivated by themselves, enabled by somebody else."""
    user.ok("POST", "/users/me/deactivate")
    admin.ok("POST", f"/admin/users/{user.user_id}/enable", json=WHY)
    _log_in(user).ok("GET", "/users/me")


def test_an_administrator_sees_and_ends_a_users_sessions(admin, user):
    """All of them."""
    _log_in(user)
    assert len(admin.ok("GET", f"/admin/users/{user.user_id}/sessions")["items"]) == 2
    assert admin.ok("POST", f"/admin/users/{user.user_id}/sessions/end", json=WHY) == {"ended": 2}
    assert refusal(user, "GET", "/users/me")[0] == 401


def test_a_role_that_is_taken_away_is_gone_for_tokens_that_are_out(admin, user):
    """The old token is stale, and what a refresh gives may do nothing."""
    roles = f"/admin/users/{user.user_id}/roles"
    assert admin.ok("PUT", roles, json={"roles": ["support"], **WHY})["roles"] == ["support"]
    _log_in(user).ok("GET", "/admin/users")
    admin.ok("PUT", roles, json={"roles": [], **WHY})
    assert refusal(user, "GET", "/admin/users") == (401, "auth.token_stale")
    renewed = user.ok("POST", "/auth/refresh", json={"refresh_token": user.session["refresh_token"]})
    user.http.headers["Authorization"] = f"Bearer {renewed['access_token']}"
    assert refusal(user, "GET", "/admin/users") == (403, "auth.forbidden")


def test_nobody_acts_on_who_may_do_more(admin, support, user):
    """Support helps users; to an administrator it does nothing, and it hands out no roles."""
    for what in ("disable", "enable", "sessions/end"):
        refused = refusal(support, "POST", f"/admin/users/{admin.user_id}/{what}", json=WHY)
        assert refused == (403, "auth.forbidden"), what
    admin.ok("GET", "/users/me")
    support.ok("POST", f"/admin/users/{user.user_id}/sessions/end", json=WHY)
    body = {"roles": ["support"], **WHY}
    assert refusal(support, "PUT", f"/admin/users/{user.user_id}/roles", json=body)[0] == 403


def test_an_operator_makes_no_administrator(town, admin):
    """Who may hand out roles hands out none above their own, by definition neither."""
    with Client(town.url) as operator, Client(town.url) as friend:
        operator.register()
        friend.register()
        admin.ok("PUT", f"/admin/users/{operator.user_id}/roles", json={"roles": ["operator"], **WHY})
        _log_in(operator)
        path = f"/admin/users/{friend.user_id}/roles"
        assert refusal(operator, "PUT", path, json={"roles": ["admin"], **WHY}) == (403, "auth.forbidden")
        assert refusal(operator, "PUT", "/admin/roles/mine", json={"permissions": ["*"]})[0] == 403
        assert operator.ok("PUT", path, json={"roles": ["support"], **WHY})["roles"] == ["support"]


def test_an_administrator_does_not_lock_themselves_out(admin):
    """Neither by roles nor by disabling: the last one would be gone."""
    own = f"/admin/users/{admin.user_id}"
    for method, path, body in (("POST", "/disable", WHY), ("PUT", "/roles", {"roles": [], **WHY})):
        assert refusal(admin, method, own + path, json=body) == (409, "accounts.own_account")
    admin.ok("GET", "/admin/users")


def test_a_role_is_defined_given_changed_and_dropped(admin, user):
    """What it allows counts for tokens that are already out."""
    role = "/admin/roles/readers"
    admin.ok("PUT", role, json={"permissions": ["users:read"]})
    assert "readers" in [each["name"] for each in admin.ok("GET", "/admin/roles")["items"]]
    admin.ok("PUT", f"/admin/users/{user.user_id}/roles", json={"roles": ["readers"], **WHY})
    _log_in(user).ok("GET", "/admin/users")
    admin.ok("PUT", role, json={"permissions": []})
    assert refusal(user, "GET", "/admin/users") == (403, "auth.forbidden")
    admin.ok("DELETE", role)
    assert refusal(admin, "DELETE", role) == (404, "auth.role_unknown")
    unknown = refusal(admin, "PUT", f"/admin/users/{user.user_id}/roles", json={"roles": ["readers2"], **WHY})
    assert unknown == (404, "auth.role_unknown")


def test_a_built_in_role_stays_in_the_service(admin):
    """It can be replaced for the tenant, but not dropped."""
    assert refusal(admin, "DELETE", "/admin/roles/admin") == (404, "auth.role_unknown")


def test_the_command_says_whom_it_does_not_know(town, user):
    """An unknown login or role is exit status 1 and a sentence."""
    for arguments in (("nobody@example.com", "admin"), (user.email, "emperor")):
        done = town.command("admin", "grant-role", *arguments)
        assert (done.returncode, bool(done.stderr.strip()), "Traceback" in done.stderr) == (1, True, False)
    assert town.command("admin", "revoke-role", user.email, "support").returncode == 0

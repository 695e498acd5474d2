"""Registration and log-in over HTTP."""

from __future__ import annotations

import secrets

import pytest

from reference_app.testing import PASSWORD


def test_a_new_user_has_a_session_a_masked_profile_and_the_welcome_credits(user):
    """One call creates user, log-in and credits."""
    me = user.ok("GET", "/users/me")
    assert me["id"] == user.user_id
    assert me["email"] == "u***@example.com"
    assert "phone" not in me
    balance = user.credits()
    assert (balance["available"], balance["reserved"], balance["spent"], balance["expired"]) == (100, 0, 0, 0)


def test_the_same_phone_number_is_one_user_however_it_is_written(user, visitor):
    """+86 is not another user."""
    body = {"password": PASSWORD, "phone": f"139{eight_digits()}"}
    first = visitor.ok("POST", "/auth/register", json=body)
    again = visitor.call("POST", "/auth/register", json=body | {"phone": "+86" + body["phone"]})
    assert (again.status_code, again.json()["error"]) == (409, "auth.login_taken")
    login = visitor.ok("POST", "/auth/login", json=body | {"phone": "86" + body["phone"]})
    assert login["user"]["id"] == first["user"]["id"]
    assert login["user"]["phone"] == body["phone"][:3] + "****" + body["phone"][-4:]


def test_a_wrong_password_and_an_unknown_user_get_the_same_answer(user):
    """Nothing tells an attacker which addresses have an account."""
    wrong = user.call("POST", "/auth/login", json={"email": user.email, "password": "Wrong-password-1"})
    unknown = user.call("POST", "/auth/login", json={"email": "nobody@example.com", "password": "Wrong-password-1"})
    assert wrong.status_code == unknown.status_code == 401
    facts = ("code", "error", "message")
    assert [wrong.json()[fact] for fact in facts] == [unknown.json()[fact] for fact in facts]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"password": PASSWORD}, "phone"),
        ({"password": PASSWORD, "phone": "13900000000", "email": "a@example.com"}, "phone"),
        ({"password": PASSWORD, "phone": "12345"}, "phone"),
        ({"password": PASSWORD, "phone": "13711112222\n"}, "phone"),
        ({"password": PASSWORD, "phone": "138٠٠٠٠٠٠٠٠"}, "phone"),
        ({"password": PASSWORD, "email": "not an address"}, "email"),
        ({"password": PASSWORD, "email": "a@example.com\n"}, "email"),
        ({"password": PASSWORD, "email": "x@" + "\u0130" * 60 + ".cn"}, "email"),
        ({"email": "a@example.com"}, "password"),
        ({"password": PASSWORD, "email": "a@example.com", "is_admin": True}, "is_admin"),
        ({"password": 12345678, "email": "a@example.com"}, "password"),
    ],
)
def test_a_registration_that_cannot_be_read_names_the_field(visitor, body, field):
    """400, the field and a sentence; nothing is created."""
    answer = visitor.call("POST", "/auth/register", json=body)
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert all(error["message"] for error in answer.json()["errors"])


def test_a_weak_password_is_refused_with_the_reason(visitor):
    """The policy's rules come back as fields."""
    answer = visitor.call("POST", "/auth/register", json={"email": "weak@example.com", "password": "password"})
    assert (answer.status_code, answer.json()["error"]) == (422, "auth.password_too_weak")


def test_refreshing_gives_a_new_session_and_logging_out_ends_it(visitor):
    """A refresh token works once; after a log-out none does."""
    body = {"email": f"r{eight_digits()}@example.com", "password": PASSWORD}
    session = visitor.ok("POST", "/auth/register", json=body)
    renewed = visitor.ok("POST", "/auth/refresh", json={"refresh_token": session["refresh_token"]})
    visitor.http.headers["Authorization"] = f"Bearer {renewed['access_token']}"
    assert visitor.ok("GET", "/users/me")["id"] == session["user"]["id"]
    visitor.ok("POST", "/auth/logout")
    answer = visitor.call("POST", "/auth/refresh", json={"refresh_token": renewed["refresh_token"]})
    assert answer.status_code == 401


def eight_digits() -> str:
    """Digits nobody else uses in this run."""
    return f"{secrets.randbelow(10**8):08d}"

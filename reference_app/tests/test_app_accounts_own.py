"""One's own account over HTTP: profile, invitations, leaving for a while, all one's data, and being forgotten."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from typing import Any

import jwt
import pytest

from daydo_db import Database
from reference_app.explain_data import tables
from reference_app.settings import load_settings, signing_keys
from reference_app.testing import PASSWORD, Client, Town, photo


@pytest.fixture
def member(town: Town) -> Iterator[Client]:
    """A user who registered by e-mail."""
    with Client(town.url) as client:
        yield client.register()


@pytest.fixture
def friend(town: Town) -> Iterator[Client]:
    """A client that is nobody yet."""
    with Client(town.url) as client:
        yield client


def refusal(client: Client, method: str, path: str, **request: Any) -> tuple[int, str]:
    answer = client.call(method, path, **request)
    return answer.status_code, answer.json()["error"]


def rows_with(town: Town, *words: str) -> list[str]:
    """The tables of the service's database in which one of ``words`` stands anywhere."""

    async def look() -> list[str]:
        url = load_settings(town.environment, dotenv=town.folder / ".env").resolved_database_url
        async with Database(url) as db:
            found = []
            for table in await tables(db):
                rows = (await db.query(f"SELECT * FROM {table}")).rows
                if any(word in str(value) for row in rows for value in row for word in words):
                    found.append(table)
            return found

    return asyncio.run(look())


def long_ago(town: Town, client: Client) -> dict[str, str]:
    """The header of a session of ``client`` whose person has proven themselves an hour ago."""
    settings = load_settings(town.environment, dotenv=town.folder / ".env")
    [(kid, secret)] = signing_keys(settings.jwt_secret).items()
    claims = jwt.decode(client.session["access_token"], options={"verify_signature": False})
    token = jwt.encode(claims | {"aut": claims["aut"] - 3_600}, secret, "HS256", headers={"kid": kid})
    return {"Authorization": f"Bearer {token}"}


# -- profile -----------------------------------------------------------------------------------------------------------


def test_a_profile_changes_in_what_is_named_and_in_nothing_else(town, member):
    """Null takes a field away."""
    upload_id = member.upload(photo())
    member.ok("PATCH", "/users/me", json={"nickname": "  小明 ", "gender": "other", "avatar": upload_id})
    changed = member.ok("PATCH", "/users/me", json={"gender": None})
    assert (changed["nickname"], changed["avatar"], "gender" in changed) == ("小明", upload_id, False)
    assert member.ok("GET", "/users/me") == changed


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"nickname": "   "}, "nickname"),
        ({"nickname": "x" * 33}, "nickname"),
        ({"nickname": "a\u202eb"}, "nickname"),
        ({"nickname": "a\nb"}, "nickname"),
        ({"gender": "robot"}, "gender"),
        ({"avatar": "upload_of_nobody"}, "avatar"),
        ({"phone": "13900000000"}, "phone"),
        ({"id": "user_1"}, "id"),
    ],
)
def test_what_a_profile_cannot_hold_is_refused_by_field(member, body, field):
    """A 400 that names it; nothing changes."""
    answer = member.call("PATCH", "/users/me", json={"gender": "female"} | body)
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert "gender" not in member.ok("GET", "/users/me")


def test_somebody_elses_upload_is_no_avatar(member, friend):
    """It is not even said to exist."""
    upload_id = friend.register().upload(photo())
    assert member.call("PATCH", "/users/me", json={"avatar": upload_id}).status_code == 400


# -- invitations -------------------------------------------------------------------------------------------------------


def test_an_invite_code_brings_both_their_credits_and_works_once(town, member, friend):
    """At registration; the second newcomer is refused and not created."""
    code = member.ok("POST", "/users/me/invites")["code"]
    friend.register(invite_code=f"{code[:4]}-{code[4:]}".lower())
    assert (member.credits()["available"], friend.credits()["available"]) == (130, 120)
    assert friend.session["user"]["referrer_id"] == member.user_id
    email = f"late-{secrets.token_hex(4)}@example.com"
    body = {"email": email, "password": PASSWORD, "invite_code": code}
    assert refusal(friend, "POST", "/auth/register", json=body) == (422, "accounts.invite_invalid")
    assert refusal(friend, "POST", "/auth/login", json={"email": email, "password": PASSWORD})[0] == 401
    assert member.ok("GET", "/users/me/invites")["items"][0]["used_at"]


def test_a_repeated_request_for_a_code_gets_the_same_one(member):
    """By its Idempotency-Key, which it says; another user's key is another code."""
    first, again = (member.call("POST", "/users/me/invites", headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert first.json()["data"]["code"] == again.json()["data"]["code"]
    assert (first.headers.get("idempotent-replayed"), again.headers.get("idempotent-replayed")) == (None, "true")


def test_a_code_can_be_named_later_and_never_ones_own(member, friend):
    """Once."""
    code = member.ok("POST", "/users/me/invites")["code"]
    own = refusal(member, "POST", "/users/me/invites/claim", json={"invite_code": code})
    assert own == (422, "accounts.invite_own")
    friend.register().ok("POST", "/users/me/invites/claim", json={"invite_code": code})
    again = refusal(friend, "POST", "/users/me/invites/claim", json={"invite_code": code})
    assert again == (409, "accounts.already_invited")


def test_a_referrer_is_a_user_and_the_one_whose_code_it_is(member, friend):
    """Unknown ones, and contradictions, are refused; nobody is created and the code stays good."""
    code = member.ok("POST", "/users/me/invites")["code"]
    other = friend.register().user_id
    email = f"new-{secrets.token_hex(4)}@example.com"
    wrong = ({"referrer_id": "user_nobody"}, {"referrer_id": other, "invite_code": code})
    for given in wrong:
        answer = refusal(friend, "POST", "/auth/register", json={"email": email, "password": PASSWORD, **given})
        assert answer == (422, "accounts.referrer_unknown")
    body = {"email": email, "password": PASSWORD, "referrer_id": member.user_id, "invite_code": code}
    assert friend.ok("POST", "/auth/register", json=body)["user"]["referrer_id"] == member.user_id


# -- what cannot be taken back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", "/users/me", None),
        ("GET", "/users/me/export", None),
        ("POST", "/users/me/phone", {"phone": "13900000000", "code": "123456"}),
        ("POST", "/users/me/password", {"new_password": "Another-horse-8"}),
    ],
)
def test_what_cannot_be_taken_back_wants_a_proof_of_today(town, member, method, path, body):
    """A session that somebody has left open somewhere is not enough, though it may look at the profile."""
    old = long_ago(town, member)
    assert refusal(member, method, path, json=body, headers=old) == (403, "auth.step_up_required")
    assert member.call("GET", "/users/me", headers=old).is_success


def test_stepping_up_is_a_proof(town, member, friend):
    """By the password, or a code to one's phone; a wrong password is none, and nor is no proof at all."""
    old = long_ago(town, member)
    for body, refused in (({"password": "Wrong-horse-9"}, 401), ({}, 400), ({"code": "123456"}, 400)):
        assert member.call("POST", "/auth/step-up", json=body, headers=old).status_code == refused
    access = member.ok("POST", "/auth/step-up", json={"password": PASSWORD}, headers=old)["access_token"]
    member.ok("GET", "/users/me/export", headers={"Authorization": f"Bearer {access}"})

    phone = f"136{secrets.randbelow(10**8):08d}"
    friend.enter(friend.ok("POST", "/auth/login", json={"phone": phone, "code": town.code(friend, phone)}))
    old, code = long_ago(town, friend), town.code(friend, phone, "step_up")
    access = friend.ok("POST", "/auth/step-up", json={"code": code}, headers=old)["access_token"]
    assert friend.ok("DELETE", "/users/me", headers={"Authorization": f"Bearer {access}"}) == {"done": True}


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_a_weak_new_password_is_refused_under_its_name(member):
    """The old one beside it is not what is wrong."""
    body = {"old_password": PASSWORD, "new_password": "weak"}
    for given in (body, {"new_password": "weak"}):
        answer = member.call("POST", "/users/me/password", json=given)
        assert (answer.status_code, answer.json()["error"]) == (422, "auth.password_too_weak")
        assert {error["field"] for error in answer.json()["errors"]} == {"new_password"}


def test_a_deactivated_account_lets_nobody_in(town, member):
    """Sessions end; the right password gets 403, a wrong one the 401 of everybody."""
    refresh = {"refresh_token": member.session["refresh_token"]}
    member.ok("POST", "/users/me/deactivate")
    assert refusal(member, "GET", "/users/me")[0] == 401
    assert refusal(member, "POST", "/auth/refresh", json=refresh)[0] == 401
    login = {"email": member.email, "password": PASSWORD}
    assert refusal(member, "POST", "/auth/login", json=login) == (403, "auth.account_disabled")
    wrong = refusal(member, "POST", "/auth/login", json=login | {"password": "Wrong-horse-9"})
    assert wrong == (401, "auth.wrong_credentials")


def test_an_export_holds_everything_unmasked_and_nothing_of_others(town, member, friend):
    """Profile, ways in, sessions, credits and their history, invitations, uploads, tasks; no secrets."""
    friend.register()
    upload_id = member.upload(photo())
    task = member.start("cutout", {"photo": upload_id}).json()["data"]
    member.wait(task["id"])
    code = member.ok("POST", "/users/me/invites")["code"]
    data = member.ok("GET", "/users/me/export")["data"]
    assert data["profile"]["email"] == member.email
    assert [identity["login"] for identity in data["identities"]] == [member.email]
    assert [upload["upload_id"] for upload in data["uploads"]] == [upload_id]
    assert [run["id"] for run in data["tasks"]] == [task["id"]]
    assert [invite["code"] for invite in data["invites"]] == [code]
    assert {"granted", "confirmed"} <= {entry["kind"] for entry in data["credit_history"]}
    assert len(data["sessions"]) == 1
    text = json.dumps(data)
    assert friend.user_id not in text
    assert not any(word in text for word in ("$2b$", "secret", "hashed"))


def test_erasing_leaves_nothing_personal_in_any_table_nor_on_disk(town, friend):
    """Phone, nickname, device and pictures are gone; the ledger's entries stay, and the phone may register anew."""
    phone, nickname, device = f"137{secrets.randbelow(10**8):08d}", secrets.token_hex(8), secrets.token_hex(8)
    code = town.code(friend, phone)
    body = {"phone": phone, "code": code, "device": device}
    friend.enter(friend.ok("POST", "/auth/login", json=body))
    friend.ok("PATCH", "/users/me", json={"nickname": nickname})
    friend.ok("POST", "/users/me/invites")
    upload_id = friend.upload(photo())
    task = friend.start("cutout", {"photo": upload_id}).json()["data"]
    friend.wait(task["id"])
    assert {"app_profile", "daydo_auth_identity", "daydo_auth_session"} <= set(rows_with(town, phone, nickname, device))
    friend.ok("DELETE", "/users/me")
    assert rows_with(town, phone, nickname, device) == []
    assert [
        path for path in (town.folder / "files").rglob("*") if upload_id in path.name or task["id"] in path.name
    ] == []
    assert "daydo_quota_account" in rows_with(town, friend.user_id)
    assert not {"app_profile", "app_upload", "app_invite", "daydo_auth_identity"} & set(rows_with(town, friend.user_id))
    assert refusal(friend, "GET", "/users/me")[0] == 401
    assert phone not in town.log.read_text()
    again = friend.ok("POST", "/auth/login", json={"phone": phone, "code": town.code(friend, phone)})
    assert again["user"]["id"] != friend.user_id

"""Every way of logging in over HTTP, with phones and WeChat played by the simulators."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from reference_app.testing import PASSWORD, TOWN, Client, Town, photo

NEW_PASSWORD = "Another-horse-8"


@pytest.fixture
def somebody(town: Town) -> Iterator[Client]:
    """A client that is nobody yet."""
    with Client(town.url) as client:
        yield client


@pytest.fixture
def member(town: Town) -> Iterator[Client]:
    """A user who registered by e-mail."""
    with Client(town.url) as client:
        yield client.register()


def number() -> str:
    """A phone that nobody else has in this run."""
    return f"138{secrets.randbelow(10**8):08d}"


def by_code(town: Town, client: Client, phone: str, **given: str) -> dict:
    body = {"phone": phone, "code": town.code(client, phone), **given}
    return client.ok("POST", "/auth/login", json=body)


def refusal(client: Client, method: str, path: str, **request) -> tuple[int, str]:
    answer = client.call(method, path, **request)
    return answer.status_code, answer.json()["error"]


def test_a_code_registers_whoever_is_new_and_then_logs_them_in(town, somebody):
    """With the welcome credits, and as one user however often."""
    phone = number()
    first = by_code(town, somebody, phone)
    assert by_code(town, somebody, "+86" + phone)["user"]["id"] == first["user"]["id"]
    assert first["user"]["phone"] == f"138****{phone[-4:]}"
    assert somebody.enter(first).credits()["available"] == 100


def test_a_code_is_good_once_and_only_for_its_phone_and_purpose(town, somebody):
    """The same refusal whatever is wrong."""
    phone, wrong = number(), (401, "auth.code_wrong")
    code = town.code(somebody, phone, "reset")
    assert refusal(somebody, "POST", "/auth/login", json={"phone": phone, "code": code}) == wrong
    code = town.code(somebody, phone)
    assert refusal(somebody, "POST", "/auth/login", json={"phone": number(), "code": code}) == wrong
    somebody.ok("POST", "/auth/login", json={"phone": phone, "code": code})
    assert refusal(somebody, "POST", "/auth/login", json={"phone": phone, "code": code}) == wrong


def test_asking_for_a_code_tells_nobody_whether_the_phone_is_known(town, somebody):
    """Known and unknown phones get the same answer."""
    phone = number()
    by_code(town, somebody, phone)
    known, unknown = (
        somebody.ok("POST", "/auth/sms-codes", json={"phone": each, "purpose": "reset"}) for each in (phone, number())
    )
    assert known == unknown


def test_wechat_registers_the_first_time_and_knows_the_person_again(town, somebody):
    """By openid; its code is good once."""
    issue = town.sandbox.wechat.issue_code
    person = "openid_" + secrets.token_hex(8)
    code = issue(person)
    first = somebody.ok("POST", "/auth/wechat-login", json={"code": code})
    again = somebody.ok("POST", "/auth/wechat-login", json={"code": issue(person)})
    assert again["user"]["id"] == first["user"]["id"]
    assert refusal(somebody, "POST", "/auth/wechat-login", json={"code": code}) == (401, "auth.wechat_code_invalid")
    assert somebody.enter(first).credits()["available"] == 100
    assert "session_key" not in town.log.read_text()


def test_parallel_first_logins_of_one_wechat_person_are_one_user(town, member):
    """Two taps of a newcomer's, or two devices: all get in as the same, who was invited and given credits once."""
    person, invite = "openid_" + secrets.token_hex(8), member.ok("POST", "/users/me/invites")["code"]
    bodies = [{"code": town.sandbox.wechat.issue_code(person), "invite_code": invite} for _ in range(8)]
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(town.url)) for _ in bodies]
        pool = stack.enter_context(ThreadPoolExecutor(len(bodies)))
        sessions = [*pool.map(lambda client, body: client.ok("POST", "/auth/wechat-login", json=body), clients, bodies)]
        assert len({session["user"]["id"] for session in sessions}) == 1
        assert clients[0].enter(sessions[0]).credits()["available"] == 120


def test_a_wechat_user_binds_a_phone_and_sets_a_first_password(town, somebody):
    """Then the phone and that password are a way in, to the same user; the old password is asked for from then on."""
    somebody.enter(somebody.ok("POST", "/auth/wechat-login", json={"code": town.sandbox.wechat.issue_code()}))
    phone = number()
    code = town.code(somebody, phone, "bind")
    assert somebody.ok("POST", "/users/me/phone", json={"phone": phone, "code": code})["phone"].startswith("138****")
    somebody.ok("POST", "/users/me/password", json={"new_password": PASSWORD})
    session = somebody.ok("POST", "/auth/login", json={"phone": phone, "password": PASSWORD})
    assert session["user"]["id"] == somebody.user_id
    assert refusal(somebody, "POST", "/users/me/password", json={"new_password": NEW_PASSWORD}) == (
        409,
        "auth.subject_taken",
    )


def test_another_phone_takes_the_place_of_the_first(town, somebody):
    """The old number logs in as nobody; by a code it registers somebody new."""
    old, new = number(), number()
    somebody.enter(by_code(town, somebody, old))
    code = town.code(somebody, new, "bind")
    somebody.ok("POST", "/users/me/phone", json={"phone": new, "code": code})
    assert by_code(town, somebody, new)["user"]["id"] == somebody.user_id
    assert by_code(town, somebody, old)["user"]["id"] != somebody.user_id


def test_a_phone_of_somebody_else_is_not_bound(town, somebody, member):
    """Although its code was right."""
    phone = number()
    by_code(town, somebody, phone)
    code = town.code(member, phone, "bind")
    answer = refusal(member, "POST", "/users/me/phone", json={"phone": phone, "code": code})
    assert answer == (409, "auth.login_taken")
    assert "phone" not in member.ok("GET", "/users/me")


def test_whoever_registered_somebody_elses_phone_loses_it_to_them(town, somebody):
    """Nobody has proven it: the first code does, and the squatter's password and session end."""
    phone = number()
    squatter = somebody.ok("POST", "/auth/register", json={"phone": phone, "password": PASSWORD})
    owner = by_code(town, somebody, phone)
    assert owner["user"]["id"] == squatter["user"]["id"]
    wrong = refusal(somebody, "POST", "/auth/login", json={"phone": phone, "password": PASSWORD})
    assert wrong == (401, "auth.wrong_credentials")
    ended = refusal(somebody, "POST", "/auth/refresh", json={"refresh_token": squatter["refresh_token"]})
    assert ended == (401, "auth.session_revoked")


def test_wechat_becomes_another_way_in_and_stays_with_who_has_it(town, member, somebody):
    """To the same user; somebody else's WeChat is not taken from them."""
    issue, person = town.sandbox.wechat.issue_code, "openid_" + secrets.token_hex(8)
    member.ok("POST", "/users/me/wechat", json={"code": issue(person)})
    session = somebody.ok("POST", "/auth/wechat-login", json={"code": issue(person)})
    assert session["user"]["id"] == member.user_id
    taken = refusal(somebody.register(), "POST", "/users/me/wechat", json={"code": issue(person)})
    assert taken == (409, "auth.login_taken")


def test_a_squatter_who_is_somebody_by_wechat_keeps_all_but_the_phone(town, somebody):
    """Its owner becomes a user of their own, and the squatter's profile shows it no longer."""
    phone = number()
    body = {"phone": phone, "password": PASSWORD}
    with Client(town.url) as squatter:
        squatter.enter(squatter.ok("POST", "/auth/register", json=body))
        squatter.ok("POST", "/users/me/wechat", json={"code": town.sandbox.wechat.issue_code()})
        owner = by_code(town, somebody, phone)
        assert owner["user"]["id"] != squatter.user_id
        assert "phone" not in squatter.ok("GET", "/users/me")
    assert refusal(somebody, "POST", "/auth/login", json=body)[0] == 401


def test_whoever_gets_back_their_phone_finds_nothing_of_the_stranger(town, somebody):
    """Name, avatar, pictures and roles of who registered it are gone; the welcome credits are not given again."""
    phone = number()
    with Client(town.url) as squatter:
        squatter.enter(squatter.ok("POST", "/auth/register", json={"phone": phone, "password": PASSWORD}))
        upload = squatter.upload(photo())
        squatter.ok("PATCH", "/users/me", json={"nickname": "Squatter", "gender": "other", "avatar": upload})
        task = squatter.start("cutout", {"photo": upload}).json()["data"]["id"]
        assert squatter.wait(task)["status"] == "succeeded"
        assert town.command("admin", "grant-role", squatter.user_id, "support").returncode == 0
    owner = somebody.enter(by_code(town, somebody, phone))
    assert owner.user_id == squatter.user_id
    assert owner.ok("GET", "/users/me").keys() == {"id", "phone", "created_at"}
    assert refusal(owner, "GET", f"/tasks/{task}/result")[0] == 404
    assert refusal(owner, "GET", "/admin/users")[0] == 403
    assert refusal(owner, "PATCH", "/users/me", json={"avatar": upload})[0] == 400
    assert owner.credits()["available"] < 100
    owner.ok("PATCH", "/users/me", json={"nickname": "Owner"})
    by_code(town, somebody, phone)
    assert owner.ok("GET", "/users/me")["nickname"] == "Owner"


def test_a_phone_registered_by_a_stranger_who_left_is_free_for_its_owner(town, somebody):
    """Its account, never proven and deactivated, keeps the owner neither from a code nor from registering."""
    for path, purpose in (("/auth/login", "login"), ("/auth/register", "register")):
        phone = number()
        with Client(town.url) as squatter:
            squatter.enter(squatter.ok("POST", "/auth/register", json={"phone": phone, "password": PASSWORD}))
            squatter.ok("POST", "/users/me/deactivate")
        given = {"password": NEW_PASSWORD} if purpose == "register" else {}
        owner = somebody.ok("POST", path, json={"phone": phone, "code": town.code(somebody, phone, purpose), **given})
        assert owner["user"]["id"] != squatter.user_id
        assert by_code(town, somebody, phone)["user"]["id"] == owner["user"]["id"]


def test_a_phone_that_was_proven_at_registration_keeps_its_password(town, somebody):
    """With a code for ``register`` nobody can take it away later."""
    phone = number()
    code = town.code(somebody, phone, "register")
    session = somebody.ok("POST", "/auth/register", json={"phone": phone, "password": PASSWORD, "code": code})
    assert by_code(town, somebody, phone)["user"]["id"] == session["user"]["id"]
    somebody.ok("POST", "/auth/login", json={"phone": phone, "password": PASSWORD})


def test_a_forgotten_password_is_reset_by_a_code_and_ends_every_session(town, somebody):
    """The old password is gone, and so is whoever knew it."""
    phone = number()
    code = town.code(somebody, phone, "register")
    before = somebody.ok("POST", "/auth/register", json={"phone": phone, "password": PASSWORD, "code": code})
    body = {"phone": phone, "code": town.code(somebody, phone, "reset"), "password": NEW_PASSWORD}
    assert somebody.ok("POST", "/auth/password-reset", json=body) == {"done": True}
    somebody.ok("POST", "/auth/login", json={"phone": phone, "password": NEW_PASSWORD})
    assert refusal(somebody, "POST", "/auth/login", json={"phone": phone, "password": PASSWORD})[0] == 401
    assert refusal(somebody, "POST", "/auth/refresh", json={"refresh_token": before["refresh_token"]})[0] == 401


def test_resetting_says_that_a_phone_is_unknown_only_to_whose_it_is(town, somebody):
    """A wrong code gets the same answer for every phone."""
    phone = number()
    body = {"phone": phone, "password": NEW_PASSWORD}
    code = town.code(somebody, phone, "reset")
    guess = f"{(int(code) + 1) % 10**6:06d}"
    assert refusal(somebody, "POST", "/auth/password-reset", json=body | {"code": guess})[0] == 401
    assert refusal(somebody, "POST", "/auth/password-reset", json=body | {"code": code})[0] == 404


def test_changing_the_password_ends_the_other_sessions(town, member):
    """This one goes on."""
    other = member.ok("POST", "/auth/login", json={"email": member.email, "password": PASSWORD, "device": "tablet"})
    body = {"old_password": PASSWORD, "new_password": NEW_PASSWORD}
    wrong = refusal(member, "POST", "/users/me/password", json=body | {"old_password": NEW_PASSWORD})
    assert wrong == (401, "auth.wrong_credentials")
    member.ok("POST", "/users/me/password", json=body)
    assert [session["current"] for session in member.ok("GET", "/auth/sessions")["items"]] == [True]
    assert refusal(member, "POST", "/auth/refresh", json={"refresh_token": other["refresh_token"]})[0] == 401


def test_one_device_too_many_logs_out_the_one_that_rested_longest(town, member):
    """As the settings say how many there may be."""
    most = int(TOWN["DAYDO_AUTH__SESSIONS_PER_SUBJECT_MAX"])
    login = {"email": member.email, "password": PASSWORD}
    devices = [member.ok("POST", "/auth/login", json={**login, "device": str(number)}) for number in range(most)]
    assert refusal(member, "GET", "/users/me") == (401, "auth.session_revoked")
    assert {each["device"] for each in member.enter(devices[0]).ok("GET", "/auth/sessions")["items"]} == {
        *map(str, range(most))
    }


def test_a_way_in_is_named_exactly_once(town, somebody):
    """Password or code, phone or e-mail."""
    phone = number()
    for body in (
        {"phone": phone},
        {"phone": phone, "password": PASSWORD, "code": "123456"},
        {"email": "a@example.com", "code": "123456"},
        {"phone": phone, "code": "12345"},
    ):
        assert refusal(somebody, "POST", "/auth/login", json=body) == (400, "kernel.bad_request")


def test_the_log_holds_no_code_and_no_phone(town, somebody):
    """Masked, or not at all."""
    phone = number()
    code = town.code(somebody, phone)
    somebody.ok("POST", "/auth/login", json={"phone": phone, "code": code})
    log = town.log.read_text()
    assert phone not in log
    assert f'"{code}"' not in log

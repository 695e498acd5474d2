"""Credits over HTTP: what a failed task leaves in the history, what is free each day, and who may change balances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from reference_app.server import ServiceProcess
from reference_app.testing import Client, encoded, photo


def history(user: Client) -> list[dict[str, Any]]:
    return list(user.ok("GET", "/quota/history")["items"])


def test_the_history_shows_that_a_failed_task_returned_its_credits(user: Client) -> None:
    """Held for the task, cancelled for the task, and the balance is what it was; a task that succeeds is confirmed."""
    blank = encoded(Image.new("RGB", (300, 300), "white"), "PNG")
    failed = user.wait(user.start("cutout", {"photo": user.upload(blank)}).json()["data"]["id"])
    assert failed["status"] == "failed"
    returned, held, _ = history(user)
    assert [(line["kind"], line["key"], line["amount"]) for line in (held, returned)] == [
        ("held", failed["id"], 5),
        ("cancelled", failed["id"], 5),
    ]
    assert [(line["available"], line["reserved"]) for line in (held, returned)] == [(95, 5), (100, 0)]
    done = user.wait(user.start("cutout", {"photo": user.upload(photo())}).json()["data"]["id"])
    assert done["status"] == "succeeded"
    newest = history(user)[0]
    assert (newest["kind"], newest["key"], newest["available"]) == ("confirmed", done["id"], 95)


GIFT = {"unit": "credits", "amount": 30, "reason": "对不起"}


def give(client: Client, subject: str, key: str = "gift-1") -> httpx.Response:
    return client.call(
        "POST", "/admin/quota/grants", json={"subject": subject, **GIFT}, headers={"Idempotency-Key": key}
    )


def test_a_user_is_no_administrator(visitor: Client, user: Client) -> None:
    """403 with the permission that is missing, 401 for somebody unknown; nothing is given."""
    for client, status, error in ((user, 403, "auth.forbidden"), (visitor, 401, "auth.token_missing")):
        answers = [
            client.call("GET", f"/admin/quota/{what}?subject={user.user_id}") for what in ("accounts", "history")
        ]
        answers.append(give(client, user.user_id))
        assert {(answer.status_code, answer.json()["error"]) for answer in answers} == {(status, error)}
    assert user.credits()["available"] == 100


@pytest.fixture(scope="module")
def staffed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A deployment for staff, whose every token carries the permission, with credits that are free each day."""
    settings = {
        "DAYDO_AUTH__BCRYPT_ROUNDS": "4",
        "DAYDO_AUTH__DEFAULT_PERMISSIONS": '["quota:admin"]',
        "DAYDO_WELCOME_CREDITS": "0",
        "DAYDO_DAILY_CREDITS": "7",
    }
    with ServiceProcess(tmp_path_factory.mktemp("staffed"), settings) as process:
        yield process.url


def test_an_administrator_gives_takes_and_returns_credits(staffed: str) -> None:
    """Each once however often it is sent; the owner reads why, and not who."""
    with Client(staffed) as admin, Client(staffed) as user:
        admin.register()
        user.register()
        first, again = give(admin, user.user_id), give(admin, user.user_id)
        assert (first.status_code, again.headers["idempotent-replayed"]) == (201, "true")
        wrong = {"subject": user.user_id, "unit": "credits", "amount": 10, "reason": "twice"}
        taken = admin.ok("POST", "/admin/quota/charges", json=wrong, headers={"Idempotency-Key": "fix-1"})
        assert user.credits()["available"] == 27
        back = {**wrong, "amount": 4, "hold_key": taken["key"]}
        admin.ok("POST", "/admin/quota/refunds", json=back, headers={"Idempotency-Key": "fix-2"})
        balance = user.credits()
        assert (balance["available"], balance["spent"]) == (31, 6)
        lines = admin.ok("GET", "/admin/quota/history", params={"subject": user.user_id})["items"]
        did = [(line["kind"], line["actor"]) for line in lines if line.get("actor")]
        assert did == [(kind, admin.user_id) for kind in ("refunded", "charged", "granted")]
        assert admin.user_id not in str(history(user))
        assert "对不起" in [line["reason"] for line in history(user)]


def test_daily_credits_are_there_without_anybody_granting_them(staffed: str) -> None:
    """They are spent like others, and show as what they are."""
    with Client(staffed) as user:
        user.register()
        assert user.credits()["available"] == 7
        task = user.wait(user.start("cutout", {"photo": user.upload(photo())}).json()["data"]["id"])
        assert task["status"] == "succeeded"
        balance = user.credits()
        assert (balance["available"], balance["spent"]) == (2, 5)
        assert [line["kind"] for line in history(user)] == ["confirmed", "held", "granted"]


def test_an_administrators_bad_input_is_a_400_that_names_it(staffed: str) -> None:
    """And gives nothing."""
    with Client(staffed) as admin:
        admin.register()
        for body, field in (({"amount": 0}, "amount"), ({"reason": ""}, "reason"), ({"tenant": "x"}, "tenant")):
            answer = admin.call(
                "POST",
                "/admin/quota/grants",
                json={"subject": admin.user_id, **GIFT, **body},
                headers={"Idempotency-Key": "k"},
            )
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field)
        assert admin.credits()["available"] == 7

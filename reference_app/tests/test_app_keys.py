"""API keys and signed requests over HTTP: as narrow as their scopes, and never a person."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator

import httpx
import pytest

from daydo_auth.signing import sign
from reference_app.roles import EVERYBODY
from reference_app.testing import Client, Town


@pytest.fixture
def owner(town: Town) -> Iterator[Client]:
    """A user who makes keys."""
    with Client(town.url) as client:
        yield client.register()


def make_key(owner: Client, *scopes: str, kind: str = "bearer") -> tuple[str, str]:
    """(id, secret) of a new key."""
    made = owner.ok("POST", "/api-keys", json={"name": "partner", "scopes": scopes, "kind": kind})
    return made["key"]["id"], made["secret"]


def refusal(client: Client, method: str, path: str, **request) -> tuple[int, str]:
    answer = client.call(method, path, **request)
    return answer.status_code, answer.json()["error"]


def signed(client: Client, key_id: str, secret: str, method: str, path: str, body: bytes = b"") -> httpx.Request:
    """A request of the scheme, complete."""
    request = client.http.build_request(method, path, content=body, headers={"Content-Type": "application/json"})
    del request.headers["Authorization"]
    request.headers["x-bce-content-sha256"] = hashlib.sha256(body).hexdigest()
    request.headers["x-bce-nonce"] = secrets.token_hex(16)
    pairs = [(name.lower(), value) for name, value in request.headers.raw]
    url = request.url
    request.headers["Authorization"] = sign(
        secret, key_id, method, url.raw_path.partition(b"?")[0], url.query, pairs, now_s=int(time.time())
    )
    return request


def test_a_key_does_what_its_scopes_say(town, owner):
    """One for reading sees tasks and credits of its owner, and starts nothing."""
    _, secret = make_key(owner, "image:read", "quota:read")
    with Client(town.url) as machine:
        machine.http.headers["Authorization"] = f"Bearer {secret}"
        assert machine.ok("GET", "/tasks")["items"] == []
        assert machine.credits()["available"] == 100
        task = {"feature": "cutout", "inputs": {"image": "upload_1"}}
        assert refusal(machine, "POST", "/tasks", json=task) == (403, "auth.forbidden")
        assert refusal(machine, "GET", "/users/me") == (403, "auth.forbidden")


def test_a_key_is_not_a_person(town, owner):
    """It makes no keys, ends no sessions, changes no password and erases nobody, whatever its scopes."""
    _, secret = make_key(owner, *EVERYBODY)
    with Client(town.url) as machine:
        machine.http.headers["Authorization"] = f"Bearer {secret}"
        assert machine.ok("GET", "/users/me")["id"] == owner.user_id
        for method, path, body in (
            ("POST", "/api-keys", {"name": "more", "scopes": ["image:read"]}),
            ("DELETE", "/auth/sessions", None),
            ("POST", "/users/me/password", {"old_password": "x", "new_password": "y"}),
            ("DELETE", "/users/me", None),
            ("GET", "/users/me/export", None),
        ):
            assert refusal(machine, method, path, json=body) == (403, "auth.person_required"), path


def test_a_key_gives_nobody_more_than_they_have(town, owner):
    """None is made for more, and one for all they have opens no door of administrators."""
    wide = {"name": "partner", "scopes": ["*"]}
    assert refusal(owner, "POST", "/api-keys", json=wide) == (403, "auth.forbidden")
    _, secret = make_key(owner, *EVERYBODY)
    with Client(town.url) as machine:
        machine.http.headers["Authorization"] = f"Bearer {secret}"
        assert refusal(machine, "GET", "/admin/users") == (403, "auth.forbidden")


def test_a_revoked_key_is_refused(town, owner):
    """At once by the worker that revoked it; the list goes on showing it."""
    key_id, secret = make_key(owner, "image:read")
    owner.ok("DELETE", f"/api-keys/{key_id}")
    with Client(town.url) as machine:
        machine.http.headers["Authorization"] = f"Bearer {secret}"
        assert refusal(machine, "GET", "/tasks") == (401, "auth.key_invalid")
    assert [(key["id"], key["works"]) for key in owner.ok("GET", "/api-keys")["items"]] == [(key_id, False)]


def test_a_signed_request_is_good_once(town, owner):
    """The secret never travels; what was seen on the wire is worth nothing, and the body cannot be exchanged."""
    key_id, secret = make_key(owner, "quota:read", "image:create", "image:read", kind="signing")
    with Client(town.url) as machine:
        machine.http.headers["Authorization"] = ""
        request = signed(machine, key_id, secret, "GET", "/quota/accounts?")
        assert machine.http.send(request).status_code == 200
        assert machine.http.send(request).json()["error"] == "auth.signature_invalid"
        body = b'{"feature": "cutout", "inputs": {"image": "upload_1"}}'
        request = signed(machine, key_id, secret, "POST", "/tasks", body)
        request.stream = httpx.ByteStream(body.replace(b"upload_1", b"upload_2"))
        assert machine.http.send(request).json()["error"] == "auth.signature_invalid"

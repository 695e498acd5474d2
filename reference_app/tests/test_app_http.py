"""The shape of every answer, and what the service says of itself."""

from __future__ import annotations

import json
import re

import pytest

from reference_app.testing import PASSWORD, photo

ENVELOPE = {"code", "message", "error", "request_id", "timestamp"}


@pytest.mark.parametrize(
    ("method", "path", "status", "name"),
    [
        ("GET", "/api/v1/nothing", 404, "kernel.not_found"),
        ("DELETE", "/api/v1/auth/login", 405, "kernel.method_not_allowed"),
        ("GET", "/api/v1/users/me", 401, "auth.token_missing"),
        ("GET", "/api/v1/tasks", 401, "auth.token_missing"),
        ("POST", "/api/v1/uploads", 401, "auth.token_missing"),
    ],
)
def test_every_refusal_has_the_same_shape_in_two_languages(visitor, service, method, path, status, name):
    """Unrouted paths and wrong methods included; Chinese unless English is asked for."""
    texts = []
    for language in ("zh-CN", "en"):
        answer = visitor.http.request(method, f"{service.url}{path}", headers={"Accept-Language": language})
        body = answer.json()
        assert (answer.status_code, body["error"], body["code"] // 100) == (status, name, status)
        assert body.keys() - {"errors"} == ENVELOPE
        assert body["request_id"] == answer.headers["x-request-id"]
        texts.append(body["message"])
    assert re.search(r"[\u4e00-\u9fff]", texts[0])
    assert texts[1].isascii()


BODIES = {
    "empty": b"",
    "broken UTF-8": b'{"email": "\xff\xfe", "password": "x"}',
    "10,000 nested brackets": b"[" * 10_000,
    "half an object": b'{"email": "a@example.com"',
    "a list": b"[1, 2, 3]",
    "null": b"null",
    "a number": b"17",
    "NUL bytes": b"\0" * 100,
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_not_the_expected_json_is_a_400(visitor, name):
    """Never a 500, and the body field says why."""
    answer = visitor.call("POST", "/auth/login", content=BODIES[name], headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["errors"][0]["field"] == "body"


def test_json_under_another_content_type_is_a_415(visitor):
    """text/plain is not JSON, whatever is in it."""
    answer = visitor.call("POST", "/auth/login", content=b"{}", headers={"Content-Type": "text/plain"})
    assert (answer.status_code, answer.json()["error"]) == (415, "kernel.unsupported_media_type")


def test_a_ten_megabyte_password_is_refused(visitor):
    """The body limit comes before any hashing."""
    answer = visitor.call("POST", "/auth/login", json={"email": "a@example.com", "password": "x" * 10_000_000})
    assert answer.status_code in (400, 413)


@pytest.mark.parametrize("path", ["/tasks", "/quota/history"])
@pytest.mark.parametrize("query", ["limit=1e1", "limit=1.0", "limit=%201", "limit=1_0", "limit=1&limit=2"])
def test_a_number_is_written_in_digits_and_once(user, path, query):
    """The framework would take 1e1 for 10, and the last of several."""
    answer = user.call("GET", f"{path}?{query}")
    assert (answer.status_code, answer.json()["error"]) == (400, "kernel.bad_request")
    assert [error["field"] for error in answer.json()["errors"]] == ["limit"]
    assert user.call("GET", f"{path}?limit=10").is_success


def test_a_client_request_id_comes_back_and_a_hostile_one_does_not(visitor):
    """Well-formed ids connect two systems' logs; others are replaced."""
    known = visitor.call("GET", "/features", headers={"X-Request-ID": "shop-42"})
    assert known.headers["x-request-id"] == known.json()["request_id"] == "shop-42"
    hostile = visitor.call("GET", "/features", headers={"X-Request-ID": 'a" b{'})
    assert hostile.headers["x-request-id"].startswith("req_")


def test_health_and_metrics_are_served_beside_the_api(visitor, service):
    """Live needs nothing, ready asks the parts, metrics count what happened under the route's template."""
    for path in ("/health", "/health/live", "/health/ready", "/health/db", "/health/redis"):
        answer = visitor.http.get(f"{service.url}{path}")
        assert (answer.status_code, answer.json()["code"]) == (200, 0), path
    visitor.call("GET", "/tasks/run_1")
    text = visitor.http.get(f"{service.url}/metrics").text
    assert re.search(r'daydo_http_requests_total\{[^}]*route="/api/v1/tasks/\{task_id[^}]*\}"', text)
    assert "daydo_quota_" in text
    assert "daydo_pipeline_" in text


def test_the_openapi_document_describes_every_route_and_its_refusals(visitor, service):
    """3.1, JSON envelopes with schemas, and no address of anybody else's host on the page."""
    document = visitor.http.get(f"{service.url}/docs/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert "/api/v1/tasks/{task_id}/result" in document["paths"]
    start = document["paths"]["/api/v1/tasks"]["post"]["responses"]
    assert {"201", "400", "401", "402"} <= start.keys()
    page = visitor.http.get(f"{service.url}/docs").text
    assert "swagger-ui-bundle.js" in page
    assert not re.search(r"https?://(?!127\.0\.0\.1)", page)
    for asset in re.findall(r'(?:src|href)="(/docs/[^"]+)"', page):
        assert visitor.http.get(f"{service.url}{asset}").status_code == 200, asset


def test_the_first_address_leads_to_the_api_page(visitor, service):
    """Whoever opens the printed URL finds something."""
    answer = visitor.http.get(f"{service.url}/", follow_redirects=True)
    assert (answer.status_code, str(answer.url)) == (200, f"{service.url}/docs")


def test_keep_alive_answers_come_at_once(visitor):
    """Without TCP_NODELAY every answer on a used connection waits 40 ms for an acknowledgement."""
    visitor.ok("GET", "/features")
    elapsed_ms = sorted(visitor.call("GET", "/features").elapsed.total_seconds() * 1000 for _ in range(15))
    assert elapsed_ms[0] < 35


def test_the_log_is_json_lines(user, service):
    """Also after pictures with broken metadata, which imaging libraries like to complain about."""
    broken = photo()[:2] + b"\xff\xe1\x00\x10Exif\x00\x00MM\x00\x2a\x00\x00" + photo()[2:]
    user.call("POST", "/uploads", files={"file": ("a.jpg", broken)})
    for line in service.log.read_text().splitlines():
        json.loads(line)


def test_secrets_never_reach_the_log(user, service):
    """Password, tokens and ticket of a whole session leave no trace in the service's output."""
    ticket = user.ticket()
    user.server_events_closed = user.call("GET", "/tasks/events", params={"ticket": "wrong-" + ticket})
    log = service.log.read_text()
    assert user.user_id in log
    token = user.http.headers["Authorization"].removeprefix("Bearer ")
    for secret in (PASSWORD, token, ticket, user.email):
        assert secret not in log

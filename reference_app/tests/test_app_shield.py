"""What an attacker sends to the composed service, over sockets: every refusal in the house's shape, never a 5xx."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from daydo_auth.testing import TokenForge
from reference_app.routes_cli import PAGES, Route
from reference_app.server import ServiceProcess
from reference_app.settings import load_settings, signing_keys
from reference_app.testing import Client, photo

SECURE = {"content-security-policy", "referrer-policy", "x-content-type-options", "x-frame-options", "x-request-id"}
SHOP = "https://shop.example"
# However busy this host is, nothing is shed.
PATIENT = {
    "DAYDO_AUTH__BCRYPT_ROUNDS": "4",
    "DAYDO_TRAFFIC__SHEDDER__LAG_BEGIN_S": "9",
    "DAYDO_TRAFFIC__SHEDDER__LAG_MAX_S": "60",
}
SECRETS = {
    "DAYDO_JWT_SECRET": "test-secret-0123456789-abcdefghijklm",
    "DAYDO_PASSWORD_PEPPER": "test-pepper-0123456789-abcdefghijklm",
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that lets a body little time, with one page of another site."""
    environment = {
        **SECRETS,
        **PATIENT,
        "DAYDO_TRAFFIC__LIMIT_FACTOR": "10000",
        "DAYDO_SHIELD__ORIGINS": json.dumps([SHOP]),
        "DAYDO_SHIELD__JSON_S": "0.2",
    }
    with ServiceProcess(tmp_path_factory.mktemp("shield"), environment) as process:
        yield process.url


@pytest.fixture(scope="module")
def user(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client.register()


class Answer(NamedTuple):
    """One answer, as far as the server sent it before it hung up."""

    status: int
    headers: dict[str, str]
    body: bytes


def raw(url: str, data: bytes) -> Answer:
    """Send ``data`` as it is over a connection of its own and read until the server closes that."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        connection.sendall(data)
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(status.split()[1]), headers, body)


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    host = () if any(header.lower().startswith("host:") for header in headers) else ("Host: a",)
    return "\r\n".join([line, *host, *headers, "Connection: close", "", ""]).encode("latin-1") + body


JSON = "Content-Type: application/json"
LOGIN = "POST /api/v1/auth/login HTTP/1.1"


def sized(line: str, body: bytes, *headers: str) -> bytes:
    return request(line, f"Content-Length: {len(body)}", *headers, body=body)


NESTED = b'{"email":"a@example.com","password":' + b"[" * 1_000 + b"]" * 1_000 + b"}"
ATTACKS: dict[str, tuple[int, bytes]] = {
    "JSON nested 1,000 deep": (400, sized(LOGIN, NESTED, JSON)),
    "a key twice": (400, sized(LOGIN, b'{"email":"a@example.com","password":"a","password":"b"}', JSON)),
    "a key twice, once escaped": (400, sized(LOGIN, b'{"password":"a","p\\u0061ssword":"b"}', JSON)),
    "JSON as text/plain": (415, sized(LOGIN, b"{}", "Content-Type: text/plain")),
    "JSON as a form": (415, sized(LOGIN, b"{}", "Content-Type: application/x-www-form-urlencoded")),
    "JSON as nothing": (415, sized(LOGIN, b"{}")),
    "UTF-16": (400, sized(LOGIN, '{"a":1}'.encode("utf-16"), JSON)),
    "a password of 10 MB": (413, sized(LOGIN, b'{"password":"' + b"x" * 10_000_000 + b'"}', JSON)),
    "a length and chunks": (400, sized(LOGIN, b"0\r\n\r\n", JSON, "Transfer-Encoding: chunked")),
    "two lengths": (400, request(LOGIN, JSON, "Content-Length: 2", "Content-Length: 3", body=b"{}")),
    "a negative length": (400, request(LOGIN, JSON, "Content-Length: -1", body=b"{}")),
    "a signed length": (400, request(LOGIN, JSON, "Content-Length: +2", body=b"{}")),
    "gzip chunks": (400, request(LOGIN, JSON, "Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n")),
    "a chunk of no length": (400, request(LOGIN, JSON, "Transfer-Encoding: chunked", body=b"zz\r\n{}\r\n0\r\n\r\n")),
    "an unknown coding": (415, sized(LOGIN, b"{}", JSON, "Content-Encoding: br")),
    "two hosts": (400, request("GET /api/v1/features HTTP/1.1", "Host: a", "Host: b")),
    "a folded header": (400, request("GET / HTTP/1.1", "X-A: b\r\n\0c")),
    "an escape in a header": (400, request("GET /api/v1/features HTTP/1.1", "X-A: \x1b[31m")),
    "huge headers": (400, request("GET /api/v1/features HTTP/1.1", *(f"X-{n}: {'x' * 4_000}" for n in range(8)))),
    "many headers": (400, request("GET /api/v1/features HTTP/1.1", *(f"X-{number}: y" for number in range(200)))),
    "no HTTP": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "HTTP/3.7": (400, b"GET / HTTP/3.7 8\r\n\r\n"),
    "NUL in a path": (400, request("GET /api/v1/tasks/%00 HTTP/1.1")),
    "a line end in a path": (400, request("GET /api/v1/tasks/a%0d%0ab HTTP/1.1")),
    "an encoded slash": (400, request("GET /api/v1%2fadmin/limits HTTP/1.1")),
    "dots": (400, request("GET /docs/assets/../../../../etc/passwd HTTP/1.1")),
    "encoded dots": (400, request("GET /docs/assets/%2e%2e/%2e%2e/etc/passwd HTTP/1.1")),
    "a backslash": (400, request("GET /docs/assets/..%5c..%5cetc HTTP/1.1")),
    "half an escape": (400, request("GET /api/v1/features%2 HTTP/1.1")),
    "Latin-1 in a path": (400, request("GET /api/v1/features%e9 HTTP/1.1")),
    "NUL in a query": (400, request("GET /api/v1/features?a=%00 HTTP/1.1")),
    "a long path": (404, request(f"GET /{'a' * 8_000} HTTP/1.1")),
    "nothing there": (404, request("GET /api/v1/nothing HTTP/1.1")),
    "another method": (405, request("DELETE /api/v1/auth/login HTTP/1.1")),
    "no known method": (405, request("BREW /api/v1/features HTTP/1.1")),
    "TRACE": (405, request("TRACE /api/v1/features HTTP/1.1")),
    "no token": (401, request("GET /api/v1/users/me HTTP/1.1")),
    "a head of 200 KB": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"x" * 200_000),
    "a proxy's request": (404, request("GET http://evil.example/api/v1/users/me HTTP/1.1")),
    "a body that never ends": (408, request(LOGIN, JSON, "Content-Length: 99", body=b"{")),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_odd_request_is_refused_in_the_usual_shape(url: str, name: str) -> None:
    """The status that fits, the envelope, a request id, the security headers; and a connection that ends."""
    expected, data = ATTACKS[name]
    answer = raw(url, data)
    assert answer.status == expected, answer
    body = json.loads(answer.body)
    assert body["code"] // 100 == expected
    assert body["request_id"] == answer.headers["x-request-id"]
    assert answer.headers.keys() >= SECURE
    assert "access-control-allow-origin" not in answer.headers


def test_tokens_that_nobody_gave_out_open_nothing(url: str, user: Client) -> None:
    """All attacks of the forge that a header can carry, a refresh token as access token, two headers: 401, or 400
    for what is too long to be a header at all."""
    session = user.ok("POST", "/auth/login", json={"email": user.email, "password": "Correct-horse-7"})
    config = load_settings(SECRETS).auth
    keyed = type(config)(keys=signing_keys(SECRETS["DAYDO_JWT_SECRET"]), pepper=SECRETS["DAYDO_PASSWORD_PEPPER"])
    forged = {name: [header] for name, header in TokenForge(keyed).attacks().items()}
    good = f"Bearer {session['access_token']}"
    forged["a refresh token"] = [f"Bearer {session['refresh_token']}"]
    forged["twice"] = [good, good]
    forged["another first"] = ["Bearer x", good]
    assert raw(url, request("GET /api/v1/users/me HTTP/1.1", f"Authorization: {good}")).status == 200
    for name, values in forged.items():
        if all(value.isascii() and value.isprintable() and value == value.strip() for value in values):
            lines = [f"Authorization: {value}" for value in values]
            answer = raw(url, request("GET /api/v1/users/me HTTP/1.1", *lines))
            assert answer.status == 401 or len(values[0]) > 10_000, name
            assert answer.status in (400, 401), name
            assert json.loads(answer.body)["code"] // 100 == answer.status, name


def test_a_web_session_lives_in_cookies_and_changes_need_its_token(url: str, user: Client) -> None:
    """Log in, read, change: a change without the CSRF token, or with one that is no ASCII, is a 403; then log out."""
    made = user.http.post("/auth/web/login", json={"login": user.email, "password": "Correct-horse-7"})
    cookies = made.headers.get_list("set-cookie")
    assert len(cookies) == 2
    for cookie in cookies:
        assert cookie.startswith("__Host-daydo-")
        assert {"HttpOnly", "Secure", "Path=/"} <= set(cookie.split("; "))
        assert "SameSite=" in cookie
    sent = "Cookie: " + "; ".join(cookie.split(";")[0] for cookie in cookies)
    token = made.json()["data"]["csrf_token"]

    assert raw(url, request("GET /api/v1/users/me HTTP/1.1", sent)).status == 200
    ticket = "POST /api/v1/live-tickets HTTP/1.1"
    for headers in ([], ["X-CSRF-Token: x"], ["X-CSRF-Token: \xe9\xff"], [f"X-CSRF-Token: {token}x"]):
        answer = raw(url, request(ticket, sent, *headers))
        assert (answer.status, json.loads(answer.body)["error"]) == (403, "auth.csrf_invalid"), headers
    assert raw(url, request(ticket, sent, f"X-CSRF-Token: {token}")).status == 201
    foreign = raw(url, request(ticket, sent, f"X-CSRF-Token: {token}", "Origin: https://evil.example"))
    assert (foreign.status, json.loads(foreign.body)["error"]) == (403, "auth.origin_refused")

    refreshed = raw(url, request("POST /api/v1/auth/web/refresh HTTP/1.1", sent, f"X-CSRF-Token: {token}"))
    assert (refreshed.status, json.loads(refreshed.body)["data"]["csrf_token"]) == (200, token)
    assert raw(url, request("POST /api/v1/auth/web/logout HTTP/1.1", sent, f"X-CSRF-Token: {token}")).status == 200
    assert raw(url, request("GET /api/v1/users/me HTTP/1.1", sent)).status == 401


def test_only_listed_origins_are_told_anything(url: str) -> None:
    """A listed page's preflight and call, and a foreign one's, which reads nothing."""
    login = "/api/v1/auth/login HTTP/1.1"
    asked = "Access-Control-Request-Method: POST"
    allowed = raw(url, request("OPTIONS " + login, f"Origin: {SHOP}", asked))
    assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (204, SHOP)
    features = raw(url, request("GET /api/v1/features HTTP/1.1", f"Origin: {SHOP}"))
    assert (features.status, features.headers["access-control-allow-origin"]) == (200, SHOP)
    for origin in ("https://evil.example", "null", f"{SHOP}.evil.example"):
        assert raw(url, request("OPTIONS " + login, f"Origin: {origin}", asked)).status == 403
        other = raw(url, request("GET /api/v1/features HTTP/1.1", f"Origin: {origin}"))
        assert "access-control-allow-origin" not in other.headers
        assert "Origin" in other.headers["vary"]


def test_a_websocket_of_another_sites_page_is_closed(url: str, user: Client) -> None:
    """With a good ticket and cookies: 4403, and the ticket is not even looked at."""
    ticket = user.ticket()
    live = f"{url.replace('http', 'ws', 1)}/api/v1/tasks/events?ticket={ticket}"
    with (
        connect(live, proxy=None, origin="https://evil.example", additional_headers={"Cookie": "a=b"}) as socket,  # type: ignore[arg-type]
        pytest.raises(ConnectionClosed) as closed,
    ):
        socket.recv(timeout=10)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4403, "auth.origin_refused")
    with connect(live, proxy=None, origin=SHOP) as socket:  # type: ignore[arg-type]
        socket.ping().wait(10)


def test_a_forged_forwarded_header_changes_nobodys_address(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Without trusted proxies X-Forwarded-For is text: the sixth log-in of a minute is refused whatever it says."""
    with ServiceProcess(tmp_path_factory.mktemp("forwarded"), PATIENT) as process:
        body = b'{"email":"a@example.com","password":"x"}'
        seen = [
            raw(process.url, sized(LOGIN, body, JSON, f"X-Forwarded-For: 203.0.113.{n}", f"X-Real-IP: 203.0.113.{n}"))
            for n in range(6)
        ]
    assert [answer.status for answer in seen] == [401] * 5 + [429]


def test_a_photo_as_large_as_may_be_is_uploaded_on_a_connection_that_stays(user: Client) -> None:
    """The Shield does not count a form as JSON, nor end the connection of who sent it whole."""
    picture = photo("PNG", size=(1_500, 1_500)) + b"\0" * 2_000_000
    answer = user.call("POST", "/uploads", files={"file": ("a.png", picture)})
    assert answer.status_code == 201, answer.text
    assert answer.headers.get("connection") != "close"


def test_every_route_answers_head_and_options_without_failing(url: str, user: Client) -> None:
    """With a token and without: some may, some may not, none breaks."""
    paths = user.http.get(f"{url}/docs/openapi.json").json()["paths"]
    for path in [*paths, *PAGES, "/", "/docs"]:
        for method in ("HEAD", "OPTIONS"):
            for headers in ({}, {"Authorization": user.http.headers["Authorization"]}):
                answer = user.http.request(method, url + path.replace("{", "").replace("}", ""), headers=headers)
                assert answer.status_code < 500, (method, path)
                assert answer.headers.keys() >= SECURE, (method, path)
                assert method == "OPTIONS" or not answer.content


def test_the_page_runs_no_script_but_its_own(url: str, user: Client) -> None:
    """Its policy names the hash of the one script within it and no host but this one."""
    page = user.http.get(f"{url}/docs")
    policy = page.headers["content-security-policy"]
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    assert "'sha256-" in policy
    assert "http" not in policy
    assert "default-src 'none'" in user.http.get(f"{url}/docs/openapi.json").headers["content-security-policy"]


def daydo_routes(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "reference_app.cli", "routes", *arguments],
        env={"PATH": "/usr/bin:/bin", "DAYDO_DATA_DIR": str(folder), "COLUMNS": "250"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_every_route_says_who_may_call_it_and_how_often(tmp_path: Path) -> None:
    """A route without guard, limit or a reason for none would be open by mistake: `daydo routes` fails then."""
    done = daydo_routes(tmp_path, "--json")
    routes = msgspec.json.decode(done.stdout, type=list[Route])
    assert len(routes) > 30
    forgotten = [f"{route.method} {route.path}" for route in routes if not route.is_declared]
    assert not forgotten, "declare guards=[anyone | authenticated | permitted(…) | ticketed] and a limit"
    assert done.returncode == 0, done.stderr
    for route in routes:
        if "/admin/" in route.path:
            assert route.permissions, route.path
        if route.access == "authenticated" and route.method not in ("GET", "HEAD", "WEBSOCKET"):
            assert route.csrf, route.path


def test_the_table_of_routes_can_be_read(tmp_path: Path) -> None:
    """One line a route, with way in, permission, limit and CSRF."""
    lines = [line.split() for line in daydo_routes(tmp_path).stdout.splitlines()]
    grant = next(line for line in lines if line[:2] == ["POST", "/api/v1/admin/quota/grants"])
    assert {"authenticated", "bearer", "key", "quota:admin", "user", "cookies"} <= set(grant)
    assert ["GET", "/health/live", "anyone"] in [line[:3] for line in lines]

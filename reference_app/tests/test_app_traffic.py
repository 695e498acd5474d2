"""Who may ask how often: every route has a limit, users are limited as users, and all of it changes at run time."""

from __future__ import annotations

import asyncio
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar, get
from litestar.connection import ASGIConnection

from daydo_auth import Principal
from daydo_auth.errors import TokenInvalid
from daydo_kernel.addresses import TrustedProxies
from daydo_traffic.litestar import route_limits
from reference_app.main import compose
from reference_app.server import ServiceProcess
from reference_app.settings import SettingsInvalid, load_settings
from reference_app.testing import PASSWORD, Client, photo
from reference_app.traffic import RULES, Callers

FEW = {
    "anonymous": {"kind": "bursty", "limit": 6, "period_s": 3_600},
    "user": {"kind": "bursty", "limit": 30, "period_s": 3_600},
    "uploads": {"kind": "window", "limit": 2, "period_s": 3_600},
    "live": {"kind": "bursty", "limit": 2, "period_s": 3_600},
}
CALM = {
    "DAYDO_AUTH__BCRYPT_ROUNDS": "4",
    "DAYDO_TRAFFIC__SHEDDER__LAG_BEGIN_S": "5",
    "DAYDO_TRAFFIC__SHEDDER__LAG_MAX_S": "30",
    "DAYDO_REDIS__COMMAND_TIMEOUT_S": "5",
}
STAFF = {"DAYDO_AUTH__DEFAULT_PERMISSIONS": '["limits:admin"]'}
PROXY = {"DAYDO_TRUSTED_PROXIES": "127.0.0.0/8"}


class Visitors:
    """People who come through our proxy, each from an address of their own."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self.log = log
        self._addresses = (f"198.51.100.{number}" for number in range(1, 255))

    def visitor(self, address: str = "") -> Client:
        client = Client(self.url)
        client.http.headers["X-Forwarded-For"] = address or next(self._addresses)
        return client

    def user(self) -> Client:
        return self.visitor().register()


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitors]:
    """A service with few of everything, behind a proxy on this machine, where everybody is staff."""
    folder = tmp_path_factory.mktemp("strict")
    rules = {"DAYDO_TRAFFIC__LIMITS__RULES": json.dumps(FEW)}
    with ServiceProcess(folder, {**CALM, **STAFF, **PROXY, **rules}) as process:
        yield Visitors(process.url, process.log)


def composed(folder: Path) -> Litestar:
    """The routes of the service."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return compose(load_settings({"DAYDO_DATA_DIR": str(folder)}, dotenv=folder / ".env")).routes


# -- declared ----------------------------------------------------------------------------------------------------------


def forgotten(app: Litestar) -> list[str]:
    return [f"{route.method} {route.path}" for route in route_limits(app) if not route.rules and not route.unlimited]


def test_every_route_has_a_limit_or_a_reason(tmp_path):
    """The application as it is composed; a new route has the default, or says why not."""
    app = composed(tmp_path)
    assert forgotten(app) == []
    assert len(route_limits(app)) > 30


def test_a_route_without_a_limit_would_be_found(tmp_path):
    """The test above is not empty by accident: with nothing declared, a new route shows."""

    @get("/new")
    async def new() -> None: ...

    app = composed(tmp_path)
    plugin = app.state["daydo_traffic"]
    app.register(new)
    assert forgotten(app) == []
    plugin.default = ()
    assert "GET /new" in forgotten(app)


def test_routes_have_the_rules_that_are_theirs(tmp_path):
    """Log-ins, codes and work for the processors have limits of their own, beside everybody's."""
    rules = {(route.method, route.path): set(route.rules) for route in route_limits(composed(tmp_path))}
    both = {"anonymous", "user"}
    assert rules["POST", "/api/v1/auth/login"] == {"login", *both}
    assert rules["POST", "/api/v1/auth/register"] == {"register", *both}
    assert rules["POST", "/api/v1/tasks"] == {"tasks", *both}
    assert rules["GET", "/api/v1/tasks"] == both
    assert rules["POST", "/api/v1/uploads"] == {"uploads", *both}
    assert rules["GET", "/api/v1/tasks/events"] == rules["WEBSOCKET", "/api/v1/tasks/events"] == {"live"}
    assert rules["POST", "/api/v1/auth/sms-codes"] == {"sms_codes", *both}
    for secret in ("auth/web/login", "auth/wechat-login", "auth/password-reset", "auth/step-up", "users/me/password"):
        assert rules["POST", f"/api/v1/{secret}"] == {"login", *both}, f"{secret}: who guesses gets five tries"


GOOD, BAD = (b"authorization", b"Bearer good"), (b"authorization", b"Bearer bad")
KEY, COOKIE = (b"authorization", b"Bearer dk_1_x"), (b"cookie", b"a=b; __Host-daydo-access=good")


@pytest.mark.parametrize(
    ("headers", "known"),
    [
        ([GOOD], True),
        ([COOKIE], True),
        ([GOOD, COOKIE], True),
        ([], False),
        ([BAD], False),
        ([BAD, COOKIE], False),
        ([GOOD, BAD], False),
        ([COOKIE, (b"cookie", b"__Host-daydo-access=other")], False),
        ([KEY], False),
    ],
)
def test_callers_are_known_by_token_or_cookie(headers, known):
    """By what costs no I/O; whoever shows anything else counts for their address, until a guard has looked."""

    class Verifier:
        def verify(self, header: str | None) -> Principal:
            if header != "Bearer good":
                raise TokenInvalid
            return Principal("", "u_7")

    auth: Any = Verifier()
    connection: Any = ASGIConnection({"type": "http", "headers": headers})
    principal = Callers(auth, TrustedProxies([])).principal(connection)
    assert (principal is not None) is known


def test_the_limits_are_the_stated_ones():
    """100 a minute by address, 5 log-ins, 3 codes, 20 uploads and tasks."""
    limits = {name: (rule.limit, rule.period_s) for name, rule in RULES.items()}
    assert (limits["anonymous"], limits["login"], limits["sms_codes"]) == ((100, 60), (5, 60), (3, 60))
    assert limits["uploads"] == limits["tasks"] == (20, 60)


def test_rules_come_from_settings(tmp_path):
    """One that is set takes its place among the others; the factor is for all; nonsense stops the start."""
    one = {"DAYDO_TRAFFIC__LIMITS__RULES": '{"login": {"kind": "window", "limit": 7, "period_s": 60}}'}
    settings = load_settings({"DAYDO_DATA_DIR": str(tmp_path), **one, "DAYDO_TRAFFIC__LIMIT_FACTOR": "1000"})
    assert settings.traffic.limits.rules["login"].limit == 7
    assert settings.traffic.limits.rules["tasks"] == RULES["tasks"]
    scaled = settings.traffic.scaled().rules
    assert (scaled["anonymous"].limit, scaled["login"].limit, scaled["uploads"].limit) == (100_000, 7_000, 10_000)
    for name, value, said in (
        (
            "LIMITS__RULES",
            '{"logins": {"kind": "window", "limit": 7, "period_s": 60}}',
            "DAYDO_TRAFFIC__LIMITS: .*logins",
        ),
        ("FEATURES__SWITCHES", '{"nothing": {"mode": "off"}}', "DAYDO_TRAFFIC__FEATURES: .*nothing"),
        ("SHEDDER__LAG_MAX_S", "0.001", "DAYDO_TRAFFIC__SHEDDER: .*lag_begin_s"),
    ):
        with pytest.raises(SettingsInvalid, match=said):
            load_settings({"DAYDO_DATA_DIR": str(tmp_path), f"DAYDO_TRAFFIC__{name}": value})
    with pytest.raises(SettingsInvalid, match="trusts everybody"):
        load_settings({"DAYDO_DATA_DIR": str(tmp_path), "DAYDO_TRUSTED_PROXIES": "0.0.0.0/0"})


# -- asked -------------------------------------------------------------------------------------------------------------


def test_an_address_has_its_allowance_and_is_told(strict):
    """Headers on every answer; 429 with Retry-After beyond; another address is not concerned."""
    with strict.visitor() as visitor:
        answers = [visitor.call("GET", "/features") for _ in range(7)]
        assert [answer.status_code for answer in answers] == [200] * 6 + [429]
        assert answers[0].headers["ratelimit-policy"] == '"anonymous";q=6;w=3600'
        assert answers[0].headers["ratelimit"].startswith('"anonymous";r=5;t=')
        assert answers[6].json()["error"] == "traffic.rate_limited"
        assert int(answers[6].headers["retry-after"]) > 500
    with strict.visitor() as other:
        assert other.call("GET", "/features").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/nothing"), ("GET", "/users/me"), ("GET", "/auth/login"), ("POST", "/auth/refresh")]
)
def test_refusals_are_counted_too(strict, method, path):
    """Unknown paths, missing tokens, wrong methods and bodies of no known type spend the address's allowance."""
    with strict.visitor() as visitor:
        answers = [visitor.call(method, path, content=b"?" if method == "POST" else None) for _ in range(7)]
        assert {answer.status_code for answer in answers[:6]} <= {401, 404, 405, 415}
        assert answers[0].headers["ratelimit"].startswith('"anonymous";r=5;t=')
        assert (answers[6].status_code, answers[6].json()["error"]) == (429, "traffic.rate_limited")


def test_a_granted_preflight_spends_nothing(strict):
    """A page of an origin that may call us has all its allowance for what it asks; other origins are counted."""
    asks = {"Access-Control-Request-Method": "POST"}
    with strict.visitor() as visitor:
        for origin, statuses in ((strict.url, {204}), ("https://elsewhere.example.cn", {403})):
            answers = [visitor.call("OPTIONS", "/features", headers={"Origin": origin, **asks}) for _ in range(4)]
            assert {answer.status_code for answer in answers} == statuses
        assert visitor.call("GET", "/features").headers["ratelimit"].startswith('"anonymous";r=1')


def test_users_are_limited_as_users(strict):
    """Behind one address of a carrier each has an allowance, and a bad token does not make one a user."""
    with strict.user() as first, strict.user() as second, strict.visitor("203.0.113.1") as stranger:
        for user in (first, second):
            user.http.headers["X-Forwarded-For"] = "203.0.113.1"
            answers = [user.call("GET", "/users/me") for _ in range(8)]
            assert {answer.status_code for answer in answers} == {200}
            assert answers[0].headers["ratelimit-policy"] == '"user";q=30;w=3600'
        assert stranger.call("GET", "/features").headers["ratelimit"].startswith('"anonymous";r=5')
        forged = first.http.headers["Authorization"][:-3] + "xxx"
        answer = stranger.call("GET", "/users/me", headers={"Authorization": forged})
        assert (answer.status_code, answer.headers["ratelimit-policy"]) == (401, '"anonymous";q=6;w=3600')


def test_a_key_spends_its_owners_allowance(strict):
    """From whatever address: making keys makes nobody a second user. A forged one counts for its address."""
    with strict.user() as owner, strict.visitor() as machine, strict.visitor() as stranger:
        key = {"name": "partner", "scopes": ["image:create", "image:read"]}
        secret = owner.ok("POST", "/api-keys", json=key)["secret"]
        machine.http.headers["Authorization"] = f"Bearer {secret}"
        assert machine.call("GET", "/tasks").headers["ratelimit-policy"] == '"user";q=30;w=3600'
        assert machine.upload(photo())
        assert owner.upload(photo())
        assert machine.call("POST", "/uploads", files={"file": ("a.jpg", photo())}).status_code == 429
        stranger.http.headers["Authorization"] = f"Bearer {secret[:-3]}xxx"
        answer = stranger.call("GET", "/tasks")
        assert (answer.status_code, answer.headers["ratelimit-policy"]) == (401, '"anonymous";q=6;w=3600')


def test_two_hundred_refreshes_at_once_are_answered(strict):
    """Of one token, from one address of a carrier: all of them, and with one successor."""

    async def refresh_all(token: str) -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=strict.url, limits=limits, timeout=60) as http:
            body = {"refresh_token": token}
            return await asyncio.gather(*(http.post("/api/v1/auth/refresh", json=body) for _ in range(200)))

    with strict.user() as user:
        answers = asyncio.run(refresh_all(user.session["refresh_token"]))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["data"]["refresh_token"] for answer in answers}) == 1


def test_what_a_client_claims_to_be_is_not_believed(strict):
    """Only the last address of X-Forwarded-For is our proxy's word; an IPv6 household is one."""
    with strict.visitor("203.0.113.2") as visitor:
        for number in range(3):
            visitor.call("GET", "/features", headers={"X-Forwarded-For": f"10.0.0.{number}, 203.0.113.2"})
        assert visitor.call("GET", "/features").headers["ratelimit"].startswith('"anonymous";r=2')
    with strict.visitor("2001:db8::1") as visitor:
        for number in range(3):
            visitor.call("GET", "/features", headers={"X-Forwarded-For": f"2001:db8::{number:x}"})
        assert visitor.call("GET", "/features").headers["ratelimit"].startswith('"anonymous";r=2')


def test_logging_in_has_five_tries(strict):
    """Whatever the account, and whoever is right."""
    with strict.visitor() as visitor:
        body = {"email": "nobody@example.com", "password": PASSWORD}
        answers = [visitor.call("POST", "/auth/login", json=body) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [401] * 5 + [429]
        assert '"login";q=5;w=60' in answers[0].headers["ratelimit-policy"]


def test_an_upload_is_refused_before_its_body_is_read(strict):
    """A body that nobody would want to parse is not: 429, not 400."""
    with strict.user() as user:
        assert [user.call("POST", "/uploads", files={"file": ("a.jpg", photo())}).status_code for _ in range(2)] == [
            201
        ] * 2
        answer = user.call("POST", "/uploads", content=b"{", headers={"Content-Type": "multipart/form-data"})
        assert (answer.status_code, answer.json()["error"]) == (429, "traffic.rate_limited")


def test_live_connections_are_limited(strict):
    """A WebSocket that comes too often is closed with 4429; the SSE stream answers 429."""
    with strict.visitor() as visitor:
        for _ in range(2):
            assert visitor.call("GET", "/tasks/events").status_code in (400, 401)
        assert visitor.call("GET", "/tasks/events").status_code == 429


def test_health_and_metrics_are_not_limited(strict):
    """The balancer and Prometheus ask as often as they like, and spend nothing of the address's."""
    with strict.visitor() as visitor:
        for path in ("/health", "/health/live", "/health/ready", "/health/limits", "/metrics"):
            for _ in range(8):
                answer = visitor.http.get(f"{strict.url}{path}")
                assert answer.status_code == 200
                assert "ratelimit" not in answer.headers
        assert visitor.call("GET", "/features").headers["ratelimit"].startswith('"anonymous";r=5')
        metrics = visitor.http.get(f"{strict.url}/metrics").text
        assert re.search(r'daydo_traffic_limit_checks_total\{[^}]*rule="anonymous"', metrics)


# -- changed at run time -----------------------------------------------------------------------------------------------


def test_an_administrator_changes_a_rule_and_back(strict):
    """At once, told as an event with who and why; the list says what was changed."""
    with strict.user() as staff, strict.visitor() as visitor:
        change = {"rule": {"kind": "window", "limit": 1, "period_s": 60}, "reason": "credential stuffing"}
        assert staff.ok("PUT", "/admin/limits/login", json=change)["changed"] is True
        listed = {rule["name"]: rule for rule in staff.ok("GET", "/admin/limits")["items"]}
        assert (listed["login"]["rule"]["limit"], listed["login"]["configured"]["limit"]) == (1, 5)
        assert not listed["tasks"]["changed"]
        body = {"email": "nobody@example.com", "password": PASSWORD}
        assert [visitor.call("POST", "/auth/login", json=body).status_code for _ in range(2)] == [401, 429]
        address = visitor.http.headers["X-Forwarded-For"]
        staff.ok("POST", "/admin/limits/login/forgiven", json={"key": address, "reason": "it was the office"})
        assert visitor.call("POST", "/auth/login", json=body).status_code == 401
        assert staff.ok("DELETE", "/admin/limits/login", params={"reason": "over"})["rule"]["limit"] == 5
        lines = map(json.loads, strict.log.read_text().splitlines())
        events = [line for line in lines if line.get("message", "").startswith("traffic.")]
        facts = [(event["message"], event["extra"]["facts"]) for event in events]
        told = [(name, fact["subject"], fact["reason"]) for name, fact in facts]
        assert told[-3:] == [
            ("traffic.rule_changed", staff.user_id, "credential stuffing"),
            ("traffic.key_forgiven", staff.user_id, "it was the office"),
            ("traffic.rule_restored", staff.user_id, "over"),
        ]


@pytest.mark.parametrize(
    ("path", "rule", "status"),
    [
        ("login", {"kind": "window", "limit": 0, "period_s": 60}, 400),
        ("login", {"kind": "window", "limit": 5}, 400),
        ("login", {"kind": "guess", "limit": 5, "period_s": 60}, 400),
        ("login", {"kind": "daily", "limit": 5, "zone": "Moon/Crater"}, 400),
        ("login", {"kind": "concurrent", "limit": 5}, 422),
        ("logins", {"kind": "window", "limit": 5, "period_s": 60}, 404),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(strict, path, rule, status):
    """And nothing has changed."""
    with strict.user() as staff:
        answer = staff.call("PUT", f"/admin/limits/{path}", json={"rule": rule, "reason": "a test"})
        assert answer.status_code == status
        assert not any(rule["changed"] for rule in staff.ok("GET", "/admin/limits")["items"])


def test_a_feature_is_turned_off_and_says_so(strict):
    """In the words that were set, in both languages, with Retry-After; the rest goes on."""
    with strict.user() as staff:
        off = {
            "mode": "off",
            "answer_zh": "抠图维护中。",
            "answer_en": "Cut-outs are back at noon.",
            "retry_after_s": 90,
        }
        staff.ok("PUT", "/admin/switches/feature.cutout", json={"switch": off, "reason": "the model is being replaced"})
        refused = staff.start("cutout", {"photo": "upload_1"})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "90")
        assert (refused.json()["error"], refused.json()["message"]) == (
            "traffic.feature_off",
            "Cut-outs are back at noon.",
        )
        assert staff.start("erase", {"photo": "upload_1"}).status_code == 400
        staff.ok("DELETE", "/admin/switches/feature.cutout", params={"reason": "done"})
        assert staff.start("cutout", {"photo": "upload_1"}).status_code == 400


def test_registration_is_turned_off_and_uploads_are_turned_down(strict):
    """Registration before its body is looked at; reduced uploads take smaller photos."""
    with strict.user() as staff, strict.visitor() as visitor:
        staff.ok("PUT", "/admin/switches/registration", json={"switch": {"mode": "off"}, "reason": "bots"})
        staff.ok(
            "PUT", "/admin/switches/uploads", json={"switch": {"mode": "reduced"}, "reason": "the disk is filling"}
        )
        nonsense = {"json": {"nothing": "that fits"}}
        assert visitor.call("POST", "/auth/register", **nonsense).json()["error"] == "traffic.feature_off"
        large = photo() + b"\0" * (3 * 1024 * 1024)
        assert staff.call("POST", "/uploads", files={"file": ("a.jpg", large)}).status_code == 413
        for name in ("registration", "uploads"):
            staff.ok("DELETE", f"/admin/switches/{name}", params={"reason": "over"})
        assert visitor.call("POST", "/auth/register", **nonsense).status_code == 400


def test_only_staff_may(tmp_path):
    """Without the permission 403, without a token 401, and nothing has changed."""
    with ServiceProcess(tmp_path, CALM) as process, Client(process.url) as user, Client(process.url) as visitor:
        user.register()
        for path in ("/admin/limits", "/admin/switches"):
            assert visitor.call("GET", path).status_code == 401
            assert user.call("GET", path).status_code == 403
        change = {"rule": {"kind": "window", "limit": 9, "period_s": 60}, "reason": "mine"}
        assert user.call("PUT", "/admin/limits/login", json=change).status_code == 403


def test_nobody_is_believed_without_a_trusted_proxy(tmp_path):
    """By default X-Forwarded-For says nothing: a new address in every request makes no new allowance."""
    with ServiceProcess(tmp_path, CALM) as process, Client(process.url) as visitor:
        for number in range(3):
            answer = visitor.call("GET", "/features", headers={"X-Forwarded-For": f"198.51.100.{number}"})
        assert answer.headers["ratelimit"].startswith('"anonymous";r=97')

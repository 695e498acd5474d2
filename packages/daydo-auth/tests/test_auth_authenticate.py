from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from daydo_auth import (
    AccountDisabled,
    Auth,
    AuthError,
    KeyInvalid,
    NewKey,
    NoncesUnavailable,
    Password,
    PersonRequired,
    Presented,
    SessionRevoked,
    SignatureInvalid,
    StepUpRequired,
    TokenInvalid,
    TokenMissing,
    Tokens,
    WrongCredentials,
)
from daydo_auth.cookies import ACCESS_COOKIE, CSRF_HEADER, Cookies
from daydo_auth.errors import CsrfInvalid
from daydo_auth.testing import SignatureForge
from daydo_db import Database
from daydo_kernel import NotStarted
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_redis import Redis
from daydo_redis.testing import CALM

GOOD = "Correct-Horse-7"


@pytest.fixture
async def auth(
    sqlite: Database, memory: Redis, clock: ManualClock, events: RecordedEvents, configure: Any
) -> AsyncIterator[Auth]:
    config = configure(default_permissions=("image:create",))
    async with Auth(sqlite, memory, config, clock=clock, events=events) as auth:
        yield auth


@pytest.fixture
async def key(auth: Auth) -> NewKey:
    return await auth.keys.create("u_1", name="ci", scopes=["image:create"], kind="signing")


@pytest.fixture
def forge(key: NewKey, clock: ManualClock) -> SignatureForge:
    return SignatureForge(key, clock)


def presented(*authorizations: str, method: str = "GET", **headers: str) -> Presented:
    lines = [(b"authorization", each.encode("latin-1")) for each in authorizations]
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Presented(method=method, path=b"/", query=b"", headers=[*lines, *named])


async def reason(auth: Auth, request: Presented) -> str:
    with pytest.raises(SignatureInvalid) as refused:
        await auth.authenticate(request)
    return str(refused.value.reason)


# -- which way


async def test_every_way_in(auth: Auth, forge: SignatureForge) -> None:
    """A token, a key, a signature and a page's cookie all name the one person, and say how they came in."""
    tokens = await auth.open_session("u_1")
    bearer = await auth.keys.create("u_1", name="ci", scopes=["image:create"])
    requests = {
        "bearer": presented(f"Bearer {tokens.access}"),
        "key": presented(f"bEARER  {bearer.secret}"),
        "signature": forge.request(),
        "cookie": presented(cookie=f"a=b; {ACCESS_COOKIE}={tokens.access}"),
    }
    for way, request in requests.items():
        principal = await auth.authenticate(request)
        assert (principal.way, principal.subject, principal.may("image:create")) == (way, "u_1", True)
        assert bool(principal.key_id) == (way in ("key", "signature"))
    assert await auth.authenticate(requests["bearer"]) == auth.verify(f"Bearer {tokens.access}")


async def test_one_authorization(auth: Auth, forge: SignatureForge) -> None:
    """Two Authorization headers are none, whatever stands in them; without any the answer is: log in."""
    access = (await auth.open_session("u_1")).access
    signature = dict(forge.request().headers)[b"authorization"].decode()
    for two in ((f"Bearer {access}",) * 2, (f"Bearer {access}", signature), (signature, "")):
        with pytest.raises(TokenInvalid):
            await auth.authenticate(presented(*two))
    for nothing in (presented(), presented("")):
        with pytest.raises(TokenMissing):
            await auth.authenticate(nothing)


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ("Bearer dk_", KeyInvalid),
        ("Bearer dk_01JD0000000000000000000000_" + "x" * 43, KeyInvalid),
        ("Bearer dk_\u00e9", KeyInvalid),
        ("Basic dk_x", TokenInvalid),
        ("dk_x", TokenInvalid),
        ("Bearer xdk_x", TokenInvalid),
        ("bce-auth-v2/x", TokenInvalid),
        ("bce-auth-v1", SignatureInvalid),
        ("BCE-AUTH-V1/x", TokenInvalid),
        (" bce-auth-v1/x", TokenInvalid),
    ],
)
async def test_odd_headers(auth: Auth, header: str, error: type[Exception]) -> None:
    """What is none of the ways is an error of ours."""
    with pytest.raises(error):
        await auth.authenticate(presented(header))


async def test_cookies_are_for_pages(auth: Auth) -> None:
    """A change by cookie needs the page's token, a WebSocket takes no cookie, and a header goes before it."""
    tokens = await auth.open_session("u_1")
    cookie = f"{ACCESS_COOKIE}={tokens.access}"
    csrf = {CSRF_HEADER.lower(): Cookies(auth.config).csrf_token(tokens.session_id)}
    assert (await auth.authenticate(presented(method="POST", cookie=cookie, **csrf))).way == "cookie"
    with pytest.raises(CsrfInvalid):
        await auth.authenticate(presented(method="POST", cookie=cookie))
    with pytest.raises(TokenMissing):
        await auth.authenticate(replace(presented(cookie=cookie), takes_cookie=False))
    with pytest.raises(TokenInvalid):
        await auth.authenticate(presented("Bearer x", cookie=cookie))
    other = await auth.open_session("u_2")
    assert (await auth.authenticate(presented(f"Bearer {other.access}", method="POST", cookie=cookie))).subject == "u_2"


def test_the_request_of_a_scope() -> None:
    """An ASGI scope becomes what was sent, with and without a raw path; a WebSocket is a GET that takes no cookie."""
    scope = {"type": "http", "method": "PUT", "path": "/a b/%/汉", "query_string": b"x=1", "headers": [(b"host", b"h")]}
    plain = Presented.of_scope(scope)
    assert (plain.method, plain.path, plain.query) == ("PUT", b"/a%20b/%25/%E6%B1%89", b"x=1")
    assert Presented.of_scope({**scope, "raw_path": b"/a%2Fb?x=1"}).path == b"/a%2Fb"
    socket = Presented.of_scope({**scope, "type": "websocket"})
    assert (socket.method, socket.takes_cookie, plain.takes_cookie) == ("GET", False, True)


async def test_it_must_be_entered_first(sqlite: Database, memory: Redis, configure: Any) -> None:
    """Nothing is authenticated before async with."""
    with pytest.raises(NotStarted):
        await Auth(sqlite, memory, configure()).authenticate(presented())


# -- signed requests


async def test_no_attack_gets_in(auth: Auth, forge: SignatureForge, memory: Redis) -> None:
    """Nothing of the forge gets in, each is an error of ours, and none uses up a nonce."""
    attacks = forge.attacks()
    done = await asyncio.gather(*map(auth.authenticate, attacks.values()), return_exceptions=True)
    let_in = {
        name: result
        for name, result in zip(attacks, done, strict=True)
        if not isinstance(result, SignatureInvalid | TokenInvalid)
    }
    assert let_in == {}
    assert await memory.call("KEYS", "daydo:auth:nonce:*") == []
    assert (await auth.authenticate(forge.request(query="a=1&a=2&b=%E6%B1%89+"))).way == "signature"
    assert auth._ways._outcomes["ok"].value == 1


async def test_a_request_counts_once(auth: Auth, forge: SignatureForge, events: RecordedEvents) -> None:
    """The same request a second time is refused, and told; so is another request with its nonce; a new one is not."""
    request = forge.request()
    await auth.authenticate(request)
    assert await reason(auth, request) == "replayed"
    nonce = dict(request.headers)[b"x-bce-nonce"]
    again = forge.request(path="/v1/other", without=(b"x-bce-nonce",), headers=[(b"x-bce-nonce", nonce)])
    assert await reason(auth, again) == "replayed"
    await auth.authenticate(forge.request())
    await auth.keys.write_uses()
    told = {event.name: event.data for event in events.events}
    assert (told["auth.key_used"]["times"], told["auth.key_refused"]["times"]) == (2, 2)
    assert told["auth.key_refused"]["why"] == "replayed"


async def test_nonces_are_each_keys_own(auth: Auth, forge: SignatureForge, clock: ManualClock) -> None:
    """One client cannot use up another's nonces."""
    other = await auth.keys.create("u_2", name="ci", scopes=["image:create"], kind="signing")
    request = forge.request()
    nonce = dict(request.headers)[b"x-bce-nonce"]
    theirs = SignatureForge(other, clock).request(without=(b"x-bce-nonce",), headers=[(b"x-bce-nonce", nonce)])
    assert (await auth.authenticate(theirs)).subject == "u_2"
    assert (await auth.authenticate(request)).subject == "u_1"


async def test_two_workers_and_one_request(sqlite: Database, redis_url: str, configure: Any) -> None:
    """Of twenty copies that reach two workers at once one gets in."""
    config = configure(default_permissions=("image:create",))
    async with Redis(redis_url, CALM) as redis, Auth(sqlite, redis, config) as one, Auth(sqlite, redis, config) as two:
        new = await one.keys.create("u_1", name="ci", scopes=["image:create"], kind="signing")
        request = SignatureForge(new).request()
        copies = (worker.authenticate(request) for worker in (one, two) for _ in range(10))
        done = await asyncio.gather(*copies, return_exceptions=True)
        names = sorted(getattr(each, "reason", "in") for each in done)
        assert names == ["in"] + ["replayed"] * 19
        (nonce,) = await redis.call("KEYS", "daydo:auth:nonce:*")
        # Until no clock takes it any more: 60 s of life, 30 s of skew.
        assert 85_000 < await redis.call("PTTL", nonce) <= 91_000


async def test_a_nonce_outlives_its_signature(
    auth: Auth, forge: SignatureForge, memory: Redis, clock: ManualClock
) -> None:
    """However long a client says its request is good, and however far its clock is ahead, the copy never is."""
    for ago_s, life_s, kept_s in ((0, 1800, 331), (-30, 1800, 361), (-30, 1, 62), (299, 1800, 32)):
        request = forge.request(ago_s=ago_s, life_s=life_s)
        await auth.authenticate(request)
        (nonce,) = await memory.call("KEYS", "daydo:auth:nonce:*")
        assert kept_s * 1000 - 5_000 < await memory.call("PTTL", nonce) <= kept_s * 1000
        await memory.delete(nonce)


async def test_without_redis_nothing_signed_gets_in(sqlite: Database, configure: Any) -> None:
    """Nobody can tell a request from its copy then: 503 and try again, for keys that are sent as they are nothing."""
    config = configure(default_permissions=("a",))
    async with Redis("redis://127.0.0.1:1/0") as redis, Auth(sqlite, redis, config) as auth:
        signing = await auth.keys.create("u_1", name="ci", scopes=["a"], kind="signing")
        bearer = await auth.keys.create("u_1", name="ci", scopes=["a"])
        with pytest.raises(NoncesUnavailable) as refused:
            await auth.authenticate(SignatureForge(signing).request())
        assert refused.value.retryable
        assert refused.value.retry_after_s == 1
        assert (await auth.authenticate(presented(f"Bearer {bearer.secret}"))).subject == "u_1"
        assert auth._ways._outcomes["unavailable"].value == 1


async def test_the_body_is_read_last(auth: Auth, forge: SignatureForge, memory: Redis) -> None:
    """Without a genuine signature nobody makes us read a body or a row; another body uses up no nonce."""
    read: list[str] = []

    async def body() -> bytes:
        read.append("body")
        return b"other"

    find = auth.keys._rows.read

    async def row(key_id: str) -> Any:
        read.append("row")
        return await find(key_id)

    auth.keys._rows.read = row  # type: ignore[method-assign]
    good = forge.request()
    for request in (forge.request(secret="x"), forge.request(ago_s=400), forge.request(key_id="dk_" + "0" * 26)):
        await reason(auth, replace(request, body=body))
    assert read == []
    assert await reason(auth, replace(good, body=body)) == "body"
    assert read == ["row", "body"]
    assert (await auth.authenticate(good)).subject == "u_1"


async def test_a_body_that_came_slowly(auth: Auth, forge: SignatureForge, clock: ManualClock) -> None:
    """A request whose signature ends while its body arrives is too late: no nonce would be kept for it."""

    async def slow() -> bytes:
        clock.advance(60)
        return b"{}"

    assert await reason(auth, replace(forge.request(), body=slow)) == "expired"


async def test_keys_that_sign_no_more(auth: Auth, key: NewKey, forge: SignatureForge, clock: ManualClock) -> None:
    """A genuine signature of a key that is revoked, expired or its owner's who is shut out does not get in."""
    await auth.authenticate(forge.request())
    await auth.roles.disable("u_1")
    with pytest.raises(AccountDisabled):
        await auth.authenticate(forge.request())
    await auth.roles.enable("u_1")
    await auth.authenticate(forge.request())
    await auth.keys.revoke("u_1", key.key.id)
    with pytest.raises(KeyInvalid):
        await auth.authenticate(forge.request())
    short = await auth.keys.create(
        "u_1", name="ci", scopes=["image:create"], kind="signing", expires_at_us=clock.now_us() + 1_000_000
    )
    await auth.authenticate(SignatureForge(short, clock).request())
    clock.advance(1)
    with pytest.raises(KeyInvalid):
        await auth.authenticate(SignatureForge(short, clock).request())


async def test_kinds_do_not_mix(auth: Auth, key: NewKey, clock: ManualClock) -> None:
    """A key that is sent cannot sign, not even with its own derived secret; one that signs cannot be sent."""
    bearer = await auth.keys.create("u_1", name="ci", scopes=["image:create"])
    derived = auth.keys.signing_secret(bearer.key.id)
    with pytest.raises(KeyInvalid):
        await auth.authenticate(SignatureForge(bearer, clock).request(secret=derived))
    assert await reason(auth, SignatureForge(bearer, clock).request()) == "wrong"
    for sent in (key.secret, f"{key.key.id}_{key.secret}"):
        with pytest.raises(AuthError):
            await auth.authenticate(presented(f"Bearer {sent}"))


async def test_a_key_that_was_never_made(auth: Auth, forge: SignatureForge) -> None:
    """With the pepper alone somebody could sign for any id; there must be a row, too."""
    nobody = "dk_" + "0" * 26
    with pytest.raises(KeyInvalid):
        await auth.authenticate(forge.request(key_id=nobody, secret=auth.keys.signing_secret(nobody)))


async def test_refusals_say_no_secret(auth: Auth, key: NewKey, forge: SignatureForge) -> None:
    """The words of a refusal, in both languages, hold neither the secret nor the right signature."""
    good = forge.request()
    mac = dict(good.headers)[b"authorization"].decode()[-64:]
    with pytest.raises(SignatureInvalid) as refused:
        await auth.authenticate(replace(good, path=b"/v1/other"))
    for locale in ("zh", "en"):
        assert key.secret not in refused.value.text(locale)
        assert mac not in refused.value.text(locale)
        assert "wrong" in refused.value.text(locale)


# -- proving oneself again


@pytest.fixture
async def tokens(auth: Auth) -> Tokens:
    await auth.register(Password("a@x.cn", GOOD), subject="u_1")
    await auth.register(Password("b@x.cn", GOOD), subject="u_2")
    return await auth.login(Password("a@x.cn", GOOD))


async def test_step_up(auth: Auth, tokens: Tokens, clock: ManualClock, events: RecordedEvents) -> None:
    """What is sensitive asks for a fresh proof; after it this session passes, its later tokens too, until it is old."""
    clock.advance(300)
    principal = auth.verify(f"Bearer {tokens.access}")
    with pytest.raises(StepUpRequired, match="300 s"):
        auth.require_fresh(principal, 300)
    auth.require_fresh(principal, 301)
    fresh = await auth.step_up(principal, Password("a@x.cn", GOOD))
    assert (fresh.session_id, fresh.expires_in_s) == (tokens.session_id, auth.config.access_ttl_s)
    assert fresh.access not in repr(fresh)
    clock.advance(60)
    later = (await auth.refresh(tokens.refresh)).access
    for access in (fresh.access, later):
        auth.require_fresh(auth.verify(f"Bearer {access}"), 61)
        with pytest.raises(StepUpRequired):
            auth.require_fresh(auth.verify(f"Bearer {access}"), 60)
    assert events.events[-1].name == "auth.stepped_up"
    assert events.events[-1].data == {"session_id": tokens.session_id, "way": "password"}


async def test_step_up_by_another_person(auth: Auth, tokens: Tokens, clock: ManualClock, events: Any) -> None:
    """Neither a wrong password nor somebody else's right one makes a session fresh."""
    clock.advance(300)
    principal = auth.verify(f"Bearer {tokens.access}")
    for wrong in (Password("a@x.cn", "Wrong-Horse-7"), Password("b@x.cn", GOOD)):
        with pytest.raises(WrongCredentials):
            await auth.step_up(principal, wrong)
    with pytest.raises(StepUpRequired):
        auth.require_fresh(auth.verify(f"Bearer {(await auth.refresh(tokens.refresh)).access}"), 300)
    assert events.names.count("auth.refused") == 2
    assert "auth.stepped_up" not in events.names


async def test_step_up_of_an_ended_session(auth: Auth, tokens: Tokens) -> None:
    """A session that has ended, or was deleted, is not brought back by a proof."""
    principal = auth.verify(f"Bearer {tokens.access}")
    await auth.logout(principal)
    with pytest.raises(SessionRevoked):
        await auth.step_up(principal, Password("a@x.cn", GOOD))
    with pytest.raises(SessionRevoked):
        await auth.step_up(replace(principal, session_id="ses_none"), Password("a@x.cn", GOOD))
    with pytest.raises(SessionRevoked):
        await auth.refresh(tokens.refresh)


async def test_keys_do_not_step_up(auth: Auth, tokens: Tokens) -> None:
    """A key proves nobody: neither fresh nor made so, with the right password at hand."""
    new = await auth.keys.create("u_1", name="ci", scopes=["image:create"])
    key = await auth.keys.prove(new.secret)
    with pytest.raises(PersonRequired):
        await auth.step_up(key, Password("a@x.cn", GOOD))
    with pytest.raises(PersonRequired):
        await auth.change_password(key, GOOD, "Other-Horse-7")
    with pytest.raises(PersonRequired):
        auth.require_fresh(key, 1e9)

from __future__ import annotations

import base64
import hmac
from typing import Any

import jwt
import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from daydo_auth import (
    Auth,
    AuthConfig,
    AuthError,
    Forbidden,
    Password,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
)
from daydo_auth.rotation import Mac, Session
from daydo_auth.testing import TokenForge
from daydo_auth.tokens import AccessTokens
from daydo_kernel import NotStarted
from daydo_kernel.testing import ManualClock

GOOD = "Correct-Horse-7"
KEY = "test-key-0123456789-abcdefghijklmnop"
PEPPER = "test-pepper-0123456789-abcdefghijkl"


def session(**changes: Any) -> Session:
    times = dict.fromkeys(("proved_at_us", "rotated_at_us", "refresh_by_us", "expires_at_us"), 0)
    good = {"id": "ses_1", "tenant": "", "subject": "u", "secret_hash": b"", "counter": 1}
    return Session(**(good | times | changes))


ATTACKS = TokenForge(AuthConfig(keys={"k1": KEY}, pepper=PEPPER), ManualClock()).attacks()


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name: str, configure: Any, clock: ManualClock) -> None:
    """No header of the forge gets in, and each is a 401 of ours, not a crash."""
    tokens = AccessTokens(configure(), clock)
    with pytest.raises((TokenInvalid, TokenExpired)):
        tokens.read(ATTACKS[name])


def test_the_forge_can_make_good_ones(configure: Any, clock: ManualClock) -> None:
    """The attacks fail for what is wrong with them: unchanged, the forge's token is accepted."""
    claims = AccessTokens(configure(), clock).read(f"bEaReR  {TokenForge(configure(), clock).token(rol=['a'])}")
    assert (claims.ten, claims.sub, claims.sid, claims.rol) == ("", "u_1", "ses_1", ("a",))


@pytest.mark.parametrize("header", [None, ""])
def test_nothing_is_missing_not_wrong(header: str | None, configure: Any, clock: ManualClock) -> None:
    """No header at all is its own error: log in."""
    with pytest.raises(TokenMissing):
        AccessTokens(configure(), clock).read(header)


@given(st.text() | st.text(alphabet=st.characters(codec="ascii")).map("Bearer {}".format))
def test_any_text_is_answered(header: str) -> None:
    """Whatever a header says, the answer is an error of ours."""
    with pytest.raises(AuthError):
        AccessTokens(AuthConfig(keys={"k1": KEY}, pepper=PEPPER), ManualClock()).read(header)


def by_pyjwt(token: str, clock: ManualClock) -> dict[str, Any]:
    """What PyJWT says of a token, told to look as closely as it can; times are ours to check, by ``clock``."""
    claims: dict[str, Any] = jwt.decode(
        token,
        KEY,
        algorithms=["HS256"],
        audience="daydo",
        issuer="daydo",
        options={
            "require": ["exp", "iat", "sub", "jti"],
            "verify_exp": False,
            "verify_iat": False,
            "verify_nbf": False,
        },
    )
    assert clock.now_us() // 1_000_000 < claims["exp"]
    assert clock.now_us() // 1_000_000 + 30 >= int(claims.get("nbf", 0))
    return claims


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=5,
)
claim_names = st.sampled_from(
    ["typ", "iss", "aud", "sub", "sid", "ten", "rol", "ep", "rep", "iat", "exp", "jti", "aut", "nbf"]
)
changed_claims = st.dictionaries(claim_names | st.text(max_size=5), json_values, max_size=2)
headers = st.fixed_dictionaries(
    {"alg": st.sampled_from(["HS256", "hs256", "none", "HS512", ""]), "kid": st.sampled_from(["k1", "k2", ""])},
    optional={"typ": st.sampled_from(["JWT", "jwt", "at+jwt"]), "crit": st.just(["exp"]), "x": json_values},
)


@st.composite
def nearly_tokens(draw: st.DrawFn) -> str:
    """A token as an attacker with the key, or with a pair of scissors, would make it."""
    forge = TokenForge(AuthConfig(keys={"k1": KEY}, pepper=PEPPER), ManualClock())
    header = draw(st.just({"alg": "HS256", "kid": "k1", "typ": "JWT"}) | headers)
    good = {"ten": draw(st.text()), "sub": draw(st.text()), "rol": draw(st.lists(st.text(), max_size=3))}
    token = forge.token(header=header, **good | draw(st.just({}) | changed_claims))
    if draw(st.booleans()):
        return token
    at = draw(st.integers(0, len(token)))
    return token[:at] + draw(st.text(alphabet="AQgw_-+/=. ", max_size=2)) + token[at + draw(st.integers(0, 2)) :]


@settings(max_examples=100, deadline=None)
@given(nearly_tokens())
def test_what_we_accept_pyjwt_accepts(token: str) -> None:
    """The quick way in is no wider than PyJWT's: the same token, the same claims, to the last of them."""
    clock = ManualClock()
    try:
        claims = AccessTokens(AuthConfig(keys={"k1": KEY}, pepper=PEPPER), clock).read(f"Bearer {token}")
    except AuthError:
        event("refused")
        return
    event("accepted")
    theirs = by_pyjwt(token.lstrip(" "), clock)  # "Bearer", then one space or several
    ours = msgspec.to_builtins(claims)
    assert {name: theirs[name] for name in ours} == ours | {"rol": list(claims.rol)}


def test_the_comparison_accepts_and_refuses(configure: Any, clock: ManualClock) -> None:
    """The comparison above is not idle: PyJWT takes what it is given there, and only what we signed."""
    token = AccessTokens(configure(), clock).issue(session(roles=("a",)))
    assert by_pyjwt(token, clock)["rol"] == ["a"]
    with pytest.raises(jwt.InvalidTokenError):
        by_pyjwt(token[:-1] + ("A" if token[-1] != "A" else "Q"), clock)


@given(st.binary(min_size=1, max_size=200), st.binary(max_size=300))
def test_a_mac_is_hmac(key: bytes, message: bytes) -> None:
    """The prepared MAC is the standard library's, spelt as JWT spells it."""
    expected = base64.urlsafe_b64encode(hmac.digest(key, message, "sha256")).rstrip(b"=")
    assert Mac(key)(message) == expected


def test_every_character_of_a_mac_counts(configure: Any, clock: ManualClock) -> None:
    """Another character anywhere in the mac is refused, the last one's unused bits included."""
    tokens = AccessTokens(configure(), clock)
    signed, _, mac = tokens.issue(session()).rpartition(".")
    for at, character in enumerate(mac):
        other = chr(ord(character) ^ 1) if (chr(ord(character) ^ 1)).isalnum() else "A" if character != "A" else "B"
        with pytest.raises(TokenInvalid):
            tokens.read(f"Bearer {signed}.{mac[:at]}{other}{mac[at + 1 :]}")


def test_another_spelling_of_the_header(configure: Any, clock: ManualClock) -> None:
    """A header that says the same in another order, as other libraries write it, is as good; a word more is not."""
    tokens, forge = AccessTokens(configure(), clock), TokenForge(configure(), clock)
    body = forge.token().split(".")[1]
    for header, good in (
        (b'{"typ": "JWT", "kid": "k1", "alg": "HS256"}', True),
        (b'{"alg":"HS256","kid":"k1","typ":"JWT","x":1}', False),
        (b'{"alg":"HS256","kid":"k1"}', False),
    ):
        signed = b".".join([base64.urlsafe_b64encode(header).rstrip(b"="), body.encode()])
        text = f"Bearer {(signed + b'.' + Mac(KEY.encode())(signed)).decode()}"
        if good:
            assert tokens.read(text).sub == "u_1"
        else:
            with pytest.raises(TokenInvalid):
                tokens.read(text)


def test_others_can_read_our_tokens(configure: Any) -> None:
    """An access token is a standard JWT: PyJWT alone verifies it."""
    config = configure(default_permissions=("image:create",))
    token = AccessTokens(config, ManualClock(4_000_000_000_000_000)).issue(session(tenant="t", roles=("a",), epoch=3))
    claims = jwt.decode(
        token, KEY, algorithms=["HS256"], audience="daydo", issuer="daydo", options={"verify_iat": False}
    )
    assert (claims["sub"], claims["sid"], claims["ten"], claims["rol"], claims["ep"]) == ("u", "ses_1", "t", ["a"], 3)
    assert claims["exp"] - claims["iat"] == 900
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "kid": "k1", "typ": "JWT"}


def test_changing_keys(configure: Any, clock: ManualClock) -> None:
    """The new key signs, the old one still verifies, and once dropped it does not."""
    new = "another-key-0123456789-abcdefghijklm"
    old = AccessTokens(configure(), clock).issue(session())
    both = AccessTokens(configure(keys={"k2": new, "k1": KEY}), clock)
    assert both.read(f"Bearer {old}").sub == "u"
    fresh = both.issue(session())
    assert jwt.get_unverified_header(fresh)["kid"] == "k2"
    only_new = AccessTokens(configure(keys={"k2": new}), clock)
    assert only_new.read(f"Bearer {fresh}").sub == "u"
    with pytest.raises(TokenInvalid):
        only_new.read(f"Bearer {old}")


def test_clocks_may_differ_a_little(configure: Any, clock: ManualClock) -> None:
    """A token of a host whose clock is ahead by less than clock_skew_s is good here."""
    token = AccessTokens(configure(), clock).issue(session())
    for behind_s, good in ((29, True), (31, False)):
        here = AccessTokens(configure(), ManualClock(clock.now_us() - behind_s * 1_000_000))
        if good:
            assert here.read(f"Bearer {token}")
        else:
            with pytest.raises(TokenInvalid):
                here.read(f"Bearer {token}")


def test_the_longest_token_fits(configure: Any, clock: ManualClock) -> None:
    """As many roles as a subject may have, with the longest names of everything, still make a token that verifies."""
    config = configure(issuer="i" * 128, audience="a" * 128, keys={"k" * 64: KEY})
    roles = tuple(f"{number:02d}{'x' * 46}" for number in range(20))
    long = session(id="ses_" + "0" * 26, tenant="t" * 128, subject="s" * 128, roles=roles, epoch=2**62)
    tokens = AccessTokens(config, clock)
    assert tokens.read(f"Bearer {tokens.issue(long, 2**62)}").rol == roles


def test_a_token_for_later_waits_for_its_time(configure: Any, clock: ManualClock) -> None:
    """``nbf`` of another who signs with our key counts as ``iat`` does: up to clock_skew_s ahead is now."""
    tokens, forge = AccessTokens(configure(), clock), TokenForge(configure(), clock)
    now_s = clock.now_us() // 1_000_000
    assert tokens.read(f"Bearer {forge.token(nbf=now_s + 30)}").nbf == now_s + 30
    with pytest.raises(TokenInvalid):
        tokens.read(f"Bearer {forge.token(nbf=now_s + 31)}")


async def test_permissions_travel_in_the_token(sqlite: Any, memory: Any, configure: Any) -> None:
    """default_permissions stand in every token; require() passes for these and names any other."""
    async with Auth(sqlite, memory, configure(default_permissions=("image:create",))) as auth:
        await auth.register(Password("a@x.cn", GOOD), subject="u_1")
        tokens = await auth.login(Password("a@x.cn", GOOD))
        principal = auth.verify(f"Bearer {(await auth.refresh(tokens.refresh)).access}")
    principal.require("image:create")
    assert principal.may("image:create")
    assert not principal.may("admin")
    with pytest.raises(Forbidden, match="admin"):
        principal.require("admin")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keys": {}}, "keys is empty"),
        ({"keys": {"k1": "short"}}, r"keys\['k1'\] must be at least 32"),
        ({"keys": {"k1": "a" * 64}}, "random"),
        ({"keys": {"k 1": KEY}}, "no key id"),
        ({"pepper": ""}, "pepper must be"),
        ({"pepper": "x" * 31}, "token_urlsafe"),
    ],
)
def test_weak_secrets_stop_the_start(
    changes: dict[str, Any], says: str, sqlite: Any, memory: Any, configure: Any
) -> None:
    """Missing, short or obvious secrets are refused at construction, with a command that makes a good one."""
    with pytest.raises(ValueError, match=says) as refused:
        Auth(sqlite, memory, configure(**changes))
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("changes", [{"bcrypt_rounds": 3}, {"access_ttl_s": 10**6}, {"default_permissions": ("A b",)}])
def test_bounds_of_the_configuration(changes: dict[str, Any], configure: Any) -> None:
    """Values beyond their bounds are refused, with the field's name."""
    with pytest.raises(ValueError, match=next(iter(changes))):
        configure(**changes)


async def test_it_must_be_entered_first(sqlite: Any, memory: Any, configure: Any) -> None:
    """Nothing works before async with or after it."""
    auth = Auth(sqlite, memory, configure())
    with pytest.raises(NotStarted):
        auth.verify("Bearer x")
    assert (await auth.health()).status == "down"
    async with auth:
        assert (await auth.health()).status == "ok"
    with pytest.raises(NotStarted):
        await auth.refresh("x")
    async with auth:
        with pytest.raises(TokenInvalid):
            await auth.refresh("x")

from __future__ import annotations

from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_auth import (
    Auth,
    AuthConfig,
    AuthError,
    Forbidden,
    Password,
    Principal,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
)
from daydo_auth.testing import TokenForge
from daydo_auth.tokens import AccessTokens
from daydo_kernel import NotStarted
from daydo_kernel.testing import ManualClock

GOOD = "Correct-Horse-7"
KEY = "test-key-0123456789-abcdefghijklmnop"
PEPPER = "test-pepper-0123456789-abcdefghijkl"
ATTACKS = TokenForge(AuthConfig(keys={"k1": KEY}, pepper=PEPPER), ManualClock()).attacks()


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name: str, configure: Any, clock: ManualClock) -> None:
    """No header of the forge gets in, and each is a 401 of ours, not a crash."""
    tokens = AccessTokens(configure(), clock)
    with pytest.raises((TokenInvalid, TokenExpired)):
        tokens.read(ATTACKS[name])


def test_the_forge_can_make_good_ones(configure: Any, clock: ManualClock) -> None:
    """The attacks fail for what is wrong with them: unchanged, the forge's token is accepted."""
    principal = AccessTokens(configure(), clock).read(f"bEaReR  {TokenForge(configure(), clock).token(prm=['a'])}")
    assert principal == Principal("", "u_1", "ses_1", frozenset({"a"}))


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


def test_others_can_read_our_tokens(configure: Any) -> None:
    """An access token is a standard JWT: PyJWT alone verifies it."""
    config = configure(default_permissions=("image:create",))
    token = AccessTokens(config, ManualClock(4_000_000_000_000_000)).issue(
        Principal("t", "u", "ses_1", frozenset({"a"}))
    )
    claims = jwt.decode(
        token, KEY, algorithms=["HS256"], audience="daydo", issuer="daydo", options={"verify_iat": False}
    )
    assert (claims["sub"], claims["sid"], claims["ten"], claims["prm"]) == ("u", "ses_1", "t", ["a"])
    assert claims["exp"] - claims["iat"] == 900
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "kid": "k1", "typ": "JWT"}


def test_changing_keys(configure: Any, clock: ManualClock) -> None:
    """The new key signs, the old one still verifies, and once dropped it does not."""
    new = "another-key-0123456789-abcdefghijklm"
    old = AccessTokens(configure(), clock).issue(Principal("", "u", "ses_1"))
    both = AccessTokens(configure(keys={"k2": new, "k1": KEY}), clock)
    assert both.read(f"Bearer {old}").subject == "u"
    fresh = both.issue(Principal("", "u", "ses_1"))
    assert jwt.get_unverified_header(fresh)["kid"] == "k2"
    only_new = AccessTokens(configure(keys={"k2": new}), clock)
    assert only_new.read(f"Bearer {fresh}").subject == "u"
    with pytest.raises(TokenInvalid):
        only_new.read(f"Bearer {old}")


def test_clocks_may_differ_a_little(configure: Any, clock: ManualClock) -> None:
    """A token of a host whose clock is ahead by less than clock_skew_s is good here."""
    token = AccessTokens(configure(), clock).issue(Principal("", "u", "ses_1"))
    for behind_s, good in ((29, True), (31, False)):
        here = AccessTokens(configure(), ManualClock(clock.now_us() - behind_s * 1_000_000))
        if good:
            assert here.read(f"Bearer {token}")
        else:
            with pytest.raises(TokenInvalid):
                here.read(f"Bearer {token}")


def test_the_longest_token_fits(configure: Any, clock: ManualClock) -> None:
    """Forty permissions of 48 characters and the longest names still make a token that verifies."""
    permissions = tuple(f"{number:02d}:{'x' * 45}" for number in range(40))
    config = configure(default_permissions=permissions, issuer="i" * 128, audience="a" * 128, keys={"k" * 64: KEY})
    tokens = AccessTokens(config, clock)
    token = tokens.issue(Principal("t" * 128, "s" * 128, "ses_" + "0" * 26, frozenset(permissions)))
    assert tokens.read(f"Bearer {token}").permissions == set(permissions)


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

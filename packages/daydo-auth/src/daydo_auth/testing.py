"""For tests, ours and yours: what an :class:`daydo_auth.Auth` keeps to on every back end, and a forge of bad tokens.

The suite needs pytest-asyncio in auto mode. Subclass it and give the fixtures ``auth`` (started, with
``clock`` and cheap ``bcrypt_rounds``), ``clock`` (a ManualClock) and ``events`` (RecordedEvents).
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from typing import Any

import pytest

from daydo_db import Tx
from daydo_kernel import Clock, SystemClock
from daydo_kernel.testing import ManualClock, RecordedEvents

from .auth import Auth
from .config import AuthConfig
from .errors import (
    LoginTaken,
    RefreshReused,
    SessionRevoked,
    SubjectTaken,
    TicketInvalid,
    TokenExpired,
    TokenInvalid,
    WrongCredentials,
)
from .model import Password, Principal, Tokens

YEAR_S = 31_536_000


class TokenForge:
    """Access tokens as an attacker would make them; ``keys`` of the configuration sign, as if they had leaked."""

    def __init__(self, config: AuthConfig, clock: Clock | None = None) -> None:
        self._config = config
        self._clock: Clock = clock if clock is not None else SystemClock()
        self._kid, self._secret = next(iter(config.keys.items()))

    def token(
        self,
        *,
        secret: str | None = None,
        digest: str = "sha256",
        header: dict[str, Any] | None = None,
        without: tuple[str, ...] = (),
        **claims: Any,
    ) -> str:
        """A signed token: a good one, changed by ``header`` and ``claims``, minus the names in ``without``."""
        now_s = self._clock.now_us() // 1_000_000
        head = {"alg": "HS256", "kid": self._kid, "typ": "JWT"} | (header or {})
        good = {"typ": "access", "iss": self._config.issuer, "aud": self._config.audience, "sub": "u_1", "sid": "ses_1"}
        body = good | {"ten": "", "prm": [], "iat": now_s, "exp": now_s + 60, "jti": "at_1"} | claims
        for part in (head, body):
            for name in set(without) & set(part):
                del part[name]
        signed = f"{_segment(head)}.{_segment(body)}"
        key = self._secret if secret is None else secret
        return f"{signed}.{_base64(hmac.digest(key.encode(), signed.encode(), digest))}"

    def attacks(self) -> dict[str, str]:
        """Authorization headers that must all be refused, by what is wrong with them."""
        good = self.token()
        head, body, signature = good.split(".")
        now_s = self._clock.now_us() // 1_000_000
        flipped = signature[:9] + ("A" if signature[9] != "A" else "B") + signature[10:]
        other_body = self.token(sub="u_2").split(".")[1]
        tokens = {
            "another signature": f"{head}.{body}.{flipped}",
            "a shortened signature": f"{head}.{body}.{signature[:20]}",
            "another body": f"{head}.{other_body}.{signature}",
            "no signature": f"{head}.{body}.",
            "two segments": f"{head}.{body}",
            "four segments": f"{good}.{signature}",
            "padding": f"{good}=",
            "another secret": self.token(secret="x" * 40),
            "alg none": f"{_segment({'alg': 'none', 'kid': self._kid, 'typ': 'JWT'})}.{body}.",
            "alg none, with a signature": self.token(header={"alg": "none"}),
            "alg nOnE": self.token(header={"alg": "nOnE"}),
            "alg HS512": self.token(header={"alg": "HS512"}, digest="sha512"),
            "alg RS256": self.token(header={"alg": "RS256"}),
            "alg as a list": self.token(header={"alg": ["HS256"]}),
            "no alg": self.token(without=("alg",)),
            "no kid": self.token(without=("kid",)),
            "an unknown kid": self.token(header={"kid": "other"}),
            "a kid that is a path": self.token(header={"kid": "../../dev/null"}),
            "a kid that is a number": self.token(header={"kid": 1}),
            "a key in the header": self.token(header={"jwk": {"kty": "oct", "k": _base64(b"x" * 32)}}),
            "a critical extension": self.token(header={"crit": ["exp"]}),
            "a detached body": self.token(header={"b64": False, "crit": ["b64"]}),
            "a header of brackets": f"{_base64(b'[' * 2000)}.{body}.{signature}",
            "a header that is not JSON": f"{_base64(bytes(range(128, 160)))}.{body}.{signature}",
            "typ refresh": self.token(typ="refresh"),
            "no typ": self.token(without=("typ",)),
            "another issuer": self.token(iss="elsewhere"),
            "another audience": self.token(aud="elsewhere"),
            "a list of audiences": self.token(aud=[self._config.audience]),
            "a subject that is a number": self.token(sub=1),
            "no subject": self.token(without=("sub",)),
            "no session": self.token(without=("sid",)),
            "permissions as text": self.token(prm="admin"),
            "expired": self.token(iat=now_s - 1000, exp=now_s - 1),
            "no exp": self.token(without=("exp",)),
            "exp as text": self.token(exp=str(now_s + 60)),
            "exp as a float": self.token(exp=now_s + 60.5),
            "exp 1e30": self.token(exp=1e30),
            "exp 10**30": self.token(exp=10**30),
            "exp true": self.token(exp=True),
            "exp null": self.token(exp=None),
            "exp in ten years": self.token(exp=now_s + 10 * YEAR_S),
            "made tomorrow": self.token(iat=now_s + 86_400, exp=now_s + 86_460),
            "a body that is a list": self._raw("[]"),
            "a body of brackets": self._raw("[" * 2000),
            "a huge token": self.token(sub="x" * 1_000_000),
        }
        headers = {name: f"Bearer {token}" for name, token in tokens.items()}
        return headers | {
            "another scheme": f"Basic {good}",
            "no scheme": good,
            "the scheme alone": "Bearer",
            "the scheme and a space": "Bearer ",
            "two tokens": f"Bearer {good} {good}",
            "two headers joined": f"Bearer {good}, Bearer {good}",
            "a line break": f"Bearer {good}\n",
            "a tab": f"Bearer\t{good}",
            "a space in front": f" Bearer {good}",
            "digits of another script": f"Bearer {good}\u0661",
            "a NUL": f"Bearer {good}\0",
        }

    def _raw(self, body: str) -> str:
        signed = f"{_segment({'alg': 'HS256', 'kid': self._kid, 'typ': 'JWT'})}.{_base64(body.encode())}"
        return f"{signed}.{_base64(hmac.digest(self._secret.encode(), signed.encode(), 'sha256'))}"


class AuthConformance:
    """What clients of an :class:`daydo_auth.Auth` may rely on."""

    SECRET = "Correct-Horse-7"  # noqa: S105 - a test's

    @pytest.fixture
    async def tokens(self, auth: Auth) -> Tokens:
        await auth.register(Password("a@x.cn", self.SECRET), subject="u_1")
        return await auth.login(Password("a@x.cn", self.SECRET), device="phone")

    def who(self, auth: Auth, tokens: Tokens) -> Principal:
        return auth.verify(f"Bearer {tokens.access}")

    async def test_register_login_verify(self, auth: Auth, tokens: Tokens) -> None:
        """Whoever knows the password gets tokens that name the subject and the session."""
        principal = self.who(auth, tokens)
        assert (principal.subject, principal.session_id) == ("u_1", tokens.session_id)
        assert tokens.expires_in_s == auth.config.access_ttl_s

    async def test_one_error_for_both(self, auth: Auth, tokens: Tokens, events: RecordedEvents) -> None:
        """An unknown login and a wrong password are told apart in the events only."""
        for login, secret in (("a@x.cn", "Wrong-Horse-7"), ("b@x.cn", self.SECRET), ("", ""), ("\ud800", "x" * 9_999)):
            with pytest.raises(WrongCredentials):
                await auth.login(Password(login, secret))
        refused = [event.data for event in events.events if event.name == "auth.refused"]
        assert [data["known"] for data in refused] == [True, False, False, False]

    async def test_logins_are_unique_within_a_tenant(self, auth: Auth, tokens: Tokens) -> None:
        """A login is taken however it is written, and free in another tenant."""
        with pytest.raises(LoginTaken):
            await auth.register(Password(" A@X.CN ", self.SECRET), subject="u_2")
        with pytest.raises(SubjectTaken):
            await auth.register(Password("b@x.cn", self.SECRET), subject="u_1")
        await auth.register(Password("a@x.cn", "Other-Horse-7"), subject="u_1", tenant="acme")
        there = await auth.login(Password("A@x.cn", "Other-Horse-7"), tenant="acme")
        assert self.who(auth, there).tenant == "acme"
        with pytest.raises(WrongCredentials):
            await auth.login(Password("a@x.cn", "Other-Horse-7"))

    async def test_one_of_many_gets_the_login(self, auth: Auth) -> None:
        """Of ten who register one login at once exactly one has it."""
        password = await auth.hash(Password("a@x.cn", self.SECRET))
        done = await asyncio.gather(
            *(auth.register(password, subject=f"u_{number}") for number in range(10)), return_exceptions=True
        )
        assert sorted(type(result).__name__ for result in done) == ["LoginTaken"] * 9 + ["NoneType"]
        assert (await auth.login(Password("a@x.cn", self.SECRET))).subject == f"u_{done.index(None)}"

    async def test_registering_belongs_to_the_transaction(self, auth: Auth, events: RecordedEvents) -> None:
        """With tx= a rollback takes login, password and event with it."""
        password = await auth.hash(Password("a@x.cn", self.SECRET))

        async def fail(tx: Tx) -> None:
            await auth.register(password, subject="u_1", tx=tx)
            raise KeyError

        with pytest.raises(KeyError):
            await auth._db.run(fail)
        with pytest.raises(WrongCredentials):
            await auth.login(Password("a@x.cn", self.SECRET))
        assert events.names == ["auth.refused"]
        await auth.register(password, subject="u_1")

    async def test_a_session_without_a_password(self, auth: Auth, events: RecordedEvents) -> None:
        """Whoever was just registered is logged in by the same transaction; the session is one like any other."""
        password = await auth.hash(Password("a@x.cn", self.SECRET))

        async def sign_up(tx: Tx) -> Tokens:
            await auth.register(password, subject="u_1", tenant="acme", tx=tx)
            return await auth.open_session("u_1", tenant="acme", device="phone", tx=tx)

        tokens = await auth._db.run(sign_up)
        principal = self.who(auth, tokens)
        assert (principal.tenant, principal.subject, principal.session_id) == ("acme", "u_1", tokens.session_id)
        assert events.names == ["auth.registered", "auth.login"]
        assert events.events[-1].data == {"session_id": tokens.session_id, "device": "phone"}
        assert (await auth.refresh(tokens.refresh)).session_id == tokens.session_id
        await auth.logout(principal)
        with pytest.raises(SessionRevoked):
            self.who(auth, tokens)
        assert self.who(auth, await auth.open_session("u_2")).subject == "u_2"
        with pytest.raises(ValueError, match="subject"):
            await auth.open_session("u 2")

    async def test_opening_a_session_belongs_to_the_transaction(self, auth: Auth, events: RecordedEvents) -> None:
        """With tx= a rollback takes session, event and count with it: the refresh token was never ours."""
        opened: list[Tokens] = []

        async def fail(tx: Tx) -> None:
            opened.append(await auth.open_session("u_1", tx=tx))
            raise KeyError

        with pytest.raises(KeyError):
            await auth._db.run(fail)
        assert events.names == []
        assert auth._logins["ok"].value == 0
        with pytest.raises(TokenInvalid):
            await auth.refresh(opened[0].refresh)

    async def test_each_refresh_gives_a_new_pair(self, auth: Auth, clock: ManualClock, tokens: Tokens) -> None:
        """Ten refreshes in a row are ten different pairs of one session."""
        seen = {tokens.refresh}
        for _ in range(10):
            clock.advance(60)
            tokens = await auth.refresh(tokens.refresh)
            seen.add(tokens.refresh)
            assert self.who(auth, tokens).subject == "u_1"
        assert len(seen) == 11

    async def test_two_tabs_stay_logged_in(self, auth: Auth, clock: ManualClock, tokens: Tokens) -> None:
        """Two tabs refresh with one token: both get the same successor, and both go on."""
        first = await auth.refresh(tokens.refresh)
        clock.advance(auth.config.replay_window_s - 1)
        second = await auth.refresh(tokens.refresh)
        assert first.refresh == second.refresh
        third = await auth.refresh(second.refresh)
        assert (await auth.refresh(first.refresh)).refresh == third.refresh

    async def test_parallel_refreshes_have_one_successor(self, auth: Auth, tokens: Tokens) -> None:
        """Thirty refreshes with one token at once: one rotates, the others are given the same."""
        done = await asyncio.gather(*(auth.refresh(tokens.refresh) for _ in range(30)))
        assert len({pair.refresh for pair in done}) == 1
        counted = {outcome: cell.value for outcome, cell in auth._refreshes.items()}
        assert (counted["rotate"], counted["replay"], counted["reuse"]) == (1, 29, 0)

    async def test_an_older_token_ends_the_session(
        self, auth: Auth, clock: ManualClock, tokens: Tokens, events: RecordedEvents
    ) -> None:
        """A token from before the last one was stolen: thief and owner are both out, at once."""
        newest = await auth.refresh((await auth.refresh(tokens.refresh)).refresh)
        with pytest.raises(RefreshReused):
            await auth.refresh(tokens.refresh)
        for token in (newest.refresh, tokens.refresh):
            with pytest.raises(SessionRevoked):
                await auth.refresh(token)
        with pytest.raises(SessionRevoked):
            self.who(auth, newest)
        assert events.names.count("auth.refresh_reused") == 1

    async def test_the_window_closes(self, auth: Auth, clock: ManualClock, tokens: Tokens) -> None:
        """After the window the token before the newest counts as stolen too."""
        await auth.refresh(tokens.refresh)
        clock.advance(auth.config.replay_window_s)
        with pytest.raises(RefreshReused):
            await auth.refresh(tokens.refresh)

    async def test_a_session_ends_by_itself(self, auth: Auth, clock: ManualClock, tokens: Tokens) -> None:
        """A session that rested too long, or has lived its time however busy, asks for the password again."""
        rested = await auth.login(Password("a@x.cn", self.SECRET))
        end_us = clock.now_us() + round(auth.config.session_ttl_s * 1e6)
        while clock.now_us() + auth.config.refresh_ttl_s * 0.9e6 < end_us:
            clock.advance(auth.config.refresh_ttl_s * 0.9)
            tokens = await auth.refresh(tokens.refresh)
        clock.advance((end_us - clock.now_us()) / 1e6)
        for token in (tokens.refresh, rested.refresh):
            with pytest.raises(TokenExpired):
                await auth.refresh(token)

    async def test_a_forged_refresh_token(self, auth: Auth, tokens: Tokens) -> None:
        """Whatever is not exactly a token of ours is invalid, and the session does not notice."""
        session, counter, mac = tokens.refresh.split(".")
        flipped = ("A" if mac[0] != "A" else "B") + mac[1:]
        forged = [f"{session}.2.{mac}", f"{session}.{counter}.{flipped}", f"{session}.0{counter}.{mac}"]
        odd = ["", ".", "a.b.c", tokens.access, tokens.refresh + "=", tokens.refresh + "\n", f"{session}.-1.{mac}"]
        unknown = f"ses_{'0' * 26}.{counter}.{mac}"
        for token in (*forged, *odd, unknown, f"{session}.{'9' * 40}.{mac}", "x" * 100_000, "\ud800"):
            with pytest.raises(TokenInvalid):
                await auth.refresh(token)
        await auth.refresh(tokens.refresh)

    async def test_logout(self, auth: Auth, tokens: Tokens, events: RecordedEvents) -> None:
        """A session that was logged out has no access and no refresh; the other device stays."""
        other = await auth.login(Password("a@x.cn", self.SECRET), device="web")
        principal = self.who(auth, tokens)
        await auth.logout(principal)
        await auth.logout(principal)
        with pytest.raises(SessionRevoked):
            self.who(auth, tokens)
        with pytest.raises(SessionRevoked):
            await auth.refresh(tokens.refresh)
        assert self.who(auth, await auth.refresh(other.refresh)).subject == "u_1"
        assert "auth.logout" in events.names

    async def test_an_access_token_expires(self, auth: Auth, clock: ManualClock, tokens: Tokens) -> None:
        """An access token works until its last second and not in the next."""
        clock.advance(auth.config.access_ttl_s - 1)
        self.who(auth, tokens)
        clock.advance(1)
        with pytest.raises(TokenExpired):
            self.who(auth, tokens)

    async def test_a_ticket_works_once(self, auth: Auth, tokens: Tokens) -> None:
        """Of ten who show one ticket exactly one gets in, as the one it was made for."""
        principal = self.who(auth, tokens)
        ticket = await auth.issue_ticket(principal)
        done = await asyncio.gather(*(auth.redeem_ticket(ticket) for _ in range(10)), return_exceptions=True)
        assert [result for result in done if isinstance(result, Principal)] == [principal]
        assert sum(isinstance(result, TicketInvalid) for result in done) == 9

    async def test_a_ticket_of_an_ended_session(self, auth: Auth, tokens: Tokens) -> None:
        """Logging out takes the tickets along, and what is no ticket is none."""
        principal = self.who(auth, tokens)
        ticket = await auth.issue_ticket(principal)
        await auth.logout(principal)
        with pytest.raises(SessionRevoked):
            await auth.redeem_ticket(ticket)
        with pytest.raises(SessionRevoked):
            await auth.issue_ticket(principal)
        for odd in ("", "x", "x" * 43, "é" * 43, "x" * 100_000):
            with pytest.raises(TicketInvalid):
                await auth.redeem_ticket(odd)


def _segment(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

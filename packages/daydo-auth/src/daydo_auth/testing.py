"""For tests, ours and yours: what an :class:`daydo_auth.Auth` keeps to on every back end, and a forge of bad tokens.

The suite needs pytest-asyncio in auto mode. Subclass it and give the fixtures ``auth`` (started, with
``clock`` and cheap ``bcrypt_rounds``), ``clock`` (a ManualClock) and ``events`` (RecordedEvents).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from daydo_db import Tx
from daydo_kernel import Clock, SystemClock, new_id
from daydo_kernel.testing import ManualClock, RecordedEvents

from .auth import Auth
from .config import AuthConfig
from .errors import (
    LoginTaken,
    RefreshReused,
    SessionRevoked,
    SessionUnknown,
    SubjectTaken,
    TicketInvalid,
    TokenExpired,
    TokenInvalid,
    TokenStale,
    WrongCredentials,
)
from .keys import NewKey
from .model import Password, Principal, Tokens
from .presented import Presented
from .signing import HASH_HEADER, NONCE_HEADER, sign

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
        body = (
            good
            | {"ten": "", "rol": [], "ep": 0, "rep": 0, "iat": now_s, "exp": now_s + 60, "jti": "at_1", "aut": now_s}
            | claims
        )
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
            "an empty subject": self.token(sub=""),
            "an empty session": self.token(sid=""),
            "no subject": self.token(without=("sub",)),
            "no session": self.token(without=("sid",)),
            "roles as text": self.token(rol="admin"),
            "an epoch as text": self.token(ep="0"),
            "an epoch that is true": self.token(ep=True),
            "no epoch": self.token(without=("ep",)),
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
            "good from tomorrow": self.token(nbf=now_s + 86_400),
            "nbf as text": self.token(nbf=str(now_s)),
            "nbf null": self.token(nbf=None),
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


class SignatureForge:
    """Requests signed with ``key``, a signing key, and what an attacker who has seen one would make of it."""

    def __init__(self, key: NewKey, clock: Clock | None = None) -> None:
        self._key = key
        self._clock: Clock = clock if clock is not None else SystemClock()

    def request(
        self,
        method: str = "POST",
        path: str = "/v1/tasks",
        query: str = "",
        body: bytes = b"{}",
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        without: tuple[bytes, ...] = (),
        signed: Sequence[str] = (),
        secret: str = "",
        key_id: str = "",
        ago_s: int = 0,
        life_s: int = 60,
    ) -> Presented:
        """A signed request: a good one with more ``headers``, minus those named in ``without``."""
        good = {
            b"host": b"api.example.cn",
            b"content-type": b"application/json",
            HASH_HEADER: hashlib.sha256(body).hexdigest().encode(),
            NONCE_HEADER: secrets.token_hex(16).encode(),
        }
        sent = [*((name, value) for name, value in good.items() if name not in without), *headers]
        authorization = sign(
            secret or self._key.secret,
            key_id or self._key.key.id,
            method,
            path.encode(),
            query.encode(),
            sent,
            now_s=self._clock.now_us() // 1_000_000 - ago_s,
            life_s=life_s,
            signed=signed,
        )
        return self.with_body(
            Presented(
                method=method,
                path=path.encode(),
                query=query.encode(),
                headers=[*sent, (b"authorization", authorization.encode())],
            ),
            body,
        )

    def with_body(self, request: Presented, body: bytes) -> Presented:
        """The same request with this body."""

        async def read() -> bytes:
            return body

        return replace(request, body=read)

    def with_header(self, request: Presented, name: bytes, value: bytes, *, again: bool = False) -> Presented:
        """The same request with another value of a header, or with one more of it."""
        return replace(
            request, headers=[*(each for each in request.headers if again or each[0] != name), (name, value)]
        )

    def attacks(self) -> dict[str, Presented]:
        """Requests that must all be refused, by what is wrong with them."""
        bare = ["host", "content-type", "x-bce-content-sha256", "x-bce-nonce"]
        other_hash = hashlib.sha256(b"other").hexdigest().encode()
        return {
            "another body": self.with_body(self.request(), b"other"),
            "another body and its hash": self.with_header(
                self.with_body(self.request(), b"other"), HASH_HEADER, other_hash
            ),
            "a body where none was signed": self.with_body(self.request(body=b""), b"{}"),
            "no hash": self.request(without=(HASH_HEADER,)),
            "no nonce": self.request(without=(NONCE_HEADER,)),
            "no host": self.request(without=(b"host",)),
            "an unsigned hash": self.request(signed=[name for name in bare if name != "x-bce-content-sha256"]),
            "an unsigned nonce": self.request(signed=[name for name in bare if name != "x-bce-nonce"]),
            "an unsigned host": self.request(signed=[name for name in bare if name != "host"]),
            "an unsigned content type": self.request(signed=[name for name in bare if name != "content-type"]),
            "another nonce": self.with_header(self.request(), NONCE_HEADER, b"0" * 32),
            "another host": self.with_header(self.request(), b"host", b"evil.example.cn"),
            "two hosts": self.with_header(self.request(), b"host", b"evil.example.cn", again=True),
            "two hashes": self.with_header(self.request(), HASH_HEADER, other_hash, again=True),
            "another method": replace(self.request(), method="DELETE"),
            "another path": replace(self.request(), path=b"/v1/tasks/1"),
            "another query": replace(self.request(query="a=1"), query=b"a=2"),
            "values exchanged": replace(self.request(query="a=1&a=2"), query=b"a=2&a=1"),
            "one more parameter": replace(self.request(), query=b"a=1"),
            "a parameter that is not signed": replace(self.request(), query=b"authorization=x"),
            "expired": self.request(ago_s=61),
            "made tomorrow": self.request(ago_s=-86_400),
            "ten years": self.request(life_s=10 * YEAR_S),
            "ten years, made last year": self.request(life_s=10 * YEAR_S, ago_s=YEAR_S),
            "another secret": self.request(secret="x" * 43),
            "no secret": self.request(secret="\0"),  # noqa: S106
            "another key": self.request(key_id=new_id("dk")),
            "two authorizations": self.with_header(
                self.request(), b"authorization", dict(self.request().headers)[b"authorization"], again=True
            ),
            "a nonce that is a path": self.request(
                without=(NONCE_HEADER,), headers=[(NONCE_HEADER, b"../../../../../../etc")]
            ),
            "bytes beyond ASCII": self.request(
                without=(HASH_HEADER,), headers=[(HASH_HEADER, "é".encode("latin-1") * 64)]
            ),
        }


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
        assert auth._logins.value("other", "ok") == 0
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
        """Two hundred refreshes with one token at once: one rotates, the others are given the same."""
        done = await asyncio.gather(*(auth.refresh(tokens.refresh) for _ in range(200)))
        assert len({pair.refresh for pair in done}) == 1
        counted = {outcome: cell.value for outcome, cell in auth.sessions._refreshes.items()}
        assert (counted["rotate"], counted["replay"], counted["reuse"]) == (1, 199, 0)

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
        session, counter, secret, mac = tokens.refresh.split(".")
        other_mac, other_secret = (("A" if part[0] != "A" else "B") + part[1:] for part in (mac, secret))
        forged = [
            f"{session}.2.{secret}.{mac}",
            f"{session}.{counter}.{secret}.{other_mac}",
            f"{session}.{counter}.{other_secret}.{mac}",
            f"{session}.0{counter}.{secret}.{mac}",
            f"{session}.-1.{secret}.{mac}",
            f"{session}.{'9' * 40}.{secret}.{mac}",
            f"ses_{'0' * 26}.{counter}.{secret}.{mac}",
        ]
        odd = ["", ".", "a.b.c", "a.b.c.d", tokens.access, tokens.refresh + "=", tokens.refresh + "\n"]
        for token in (*forged, *odd, "x" * 100_000, "\ud800"):
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

    async def test_sessions_by_device(self, auth: Auth, clock: ManualClock, tokens: Tokens) -> None:
        """One's sessions are listed with their devices, the last used first, until they are ended or over."""
        clock.advance(60)
        web = await auth.login(Password("a@x.cn", self.SECRET), device="web")
        here = self.who(auth, tokens)
        assert [(each.device, each.current) for each in await auth.sessions.list(here)] == [
            ("web", False),
            ("phone", True),
        ]
        clock.advance(60)
        await auth.refresh(tokens.refresh)
        await auth._session_store.write_back()
        first, *_ = await auth.sessions.list("u_1")
        assert (first.device, first.last_used_at_us - first.created_at_us) == ("phone", 120_000_000)
        await auth.sessions.end(here, web.session_id)
        assert [each.id for each in await auth.sessions.list(here)] == [tokens.session_id]
        clock.advance(auth.config.refresh_ttl_s)
        assert await auth.sessions.list(here) == []

    async def test_the_number_of_sessions_is_bounded(
        self, auth: Auth, clock: ManualClock, tokens: Tokens, events: RecordedEvents
    ) -> None:
        """One more than there may be ends the one that has rested longest, for itself and for all workers; others' and
        those that are over anyway do not count.
        """
        await auth.open_session("u_2")
        opened = [tokens]
        for _ in range(auth.config.sessions_per_subject_max - 1):
            clock.advance(1)
            opened.append(await auth.open_session("u_1"))
        opened[0] = await auth.refresh(opened[0].refresh)
        await auth._session_store.write_back()
        assert "auth.session_ended" not in events.names
        clock.advance(1)
        newest = await auth.open_session("u_1")
        with pytest.raises(SessionRevoked):
            self.who(auth, opened[1])
        with pytest.raises(SessionRevoked):
            await auth.refresh(opened[1].refresh)
        ended = [event for event in events.events if event.name == "auth.session_ended"]
        assert [event.data for event in ended] == [{"session_id": opened[1].session_id, "why": "too_many"}]
        for pair in (opened[0], *opened[2:], newest):
            self.who(auth, pair)
        await auth.refresh(opened[0].refresh)
        clock.advance(auth.config.refresh_ttl_s)
        await auth.open_session("u_1")
        assert events.names.count("auth.session_ended") == 1

    async def test_parallel_logins_do_not_exceed_the_number_of_sessions(self, auth: Auth) -> None:
        """Twenty at once, where there is room for ten: ten sessions end, and no more are left than there may be."""
        most = auth.config.sessions_per_subject_max
        before = [await auth.open_session("u_1") for _ in range(most - 10)]
        opened = await asyncio.gather(*(auth.open_session("u_1") for _ in range(20)))
        left = {each.id for each in await auth.sessions.list("u_1")}
        assert len(left) == most
        ended = [pair for pair in (*before, *opened) if pair.session_id not in left]
        assert len(ended) == 10
        for pair in ended:
            with pytest.raises(SessionRevoked):
                await auth.refresh(pair.refresh)

    async def test_ending_one_session(self, auth: Auth, tokens: Tokens, events: RecordedEvents) -> None:
        """A session ended from elsewhere has no access and no refresh; twice is as good as once."""
        web = await auth.login(Password("a@x.cn", self.SECRET), device="web")
        for _ in range(2):
            await auth.sessions.end(self.who(auth, tokens), web.session_id)
        with pytest.raises(SessionRevoked):
            self.who(auth, web)
        with pytest.raises(SessionRevoked):
            await auth.refresh(web.refresh)
        await auth.refresh(tokens.refresh)
        assert events.names.count("auth.session_ended") == 1

    async def test_others_sessions_are_unknown(self, auth: Auth, tokens: Tokens) -> None:
        """Ending what is somebody else's, in another tenant or nobody's is one and the same error, and ends nothing."""
        stranger = self.who(auth, await auth.open_session("u_2"))
        for whose in (stranger, "u_2"):
            with pytest.raises(SessionUnknown):
                await auth.sessions.end(whose, tokens.session_id)
        with pytest.raises(SessionUnknown):
            await auth.sessions.end("u_1", tokens.session_id, tenant="t2")
        with pytest.raises(SessionUnknown):
            await auth.sessions.end("u_1", "ses_nothing")
        await auth.refresh(tokens.refresh)

    async def test_ending_all_but_one(self, auth: Auth, tokens: Tokens) -> None:
        """All sessions of one subject end, but for the one that stays; others' go on."""
        more = [await auth.open_session("u_1") for _ in range(3)]
        other, elsewhere = await auth.open_session("u_2"), await auth.open_session("u_1", tenant="t2")
        assert await auth.sessions.end_all("u_1", but=tokens.session_id) == 3
        for pair in more:
            with pytest.raises(SessionRevoked):
                await auth.refresh(pair.refresh)
        for pair in (tokens, other, elsewhere):
            await auth.refresh(pair.refresh)
        assert await auth.sessions.end_all("u_1", but=tokens.session_id) == 0

    async def test_roles_are_read_anew(self, auth: Auth, tokens: Tokens) -> None:
        """After a change of roles the old access token is stale, and a refresh gives one that knows them."""
        assert self.who(auth, tokens).roles == ()
        tokens = await auth.refresh(tokens.refresh)
        await self.give_roles(auth, "u_1", "editor", epoch=1)
        with pytest.raises(TokenStale):
            self.who(auth, tokens)
        tokens = await auth.refresh(tokens.refresh)
        assert self.who(auth, tokens).roles == ("editor",)
        await self.give_roles(auth, "u_1", "", epoch=2)
        assert self.who(auth, await auth.refresh(tokens.refresh)).roles == ()

    async def give_roles(self, auth: Auth, subject: str, roles: str, *, epoch: int) -> None:
        """What a change of roles writes."""

        async def write(tx: Tx) -> None:
            await tx.execute("DELETE FROM daydo_auth_subject WHERE subject = ?", (subject,))
            await tx.execute(
                "INSERT INTO daydo_auth_subject "
                "(tenant, subject, roles, epoch, disabled_at_us, has_left, changed_at_us) "
                "VALUES ('', ?, ?, ?, 0, 0, 1)",
                (subject, roles, epoch),
            )
            await auth._feed.write(tx, "subject", "", subject, epoch)

        await auth._db.run(write)

    async def test_a_second_proof_stands_in_the_tokens(self, auth: Auth, clock: ManualClock, tokens: Tokens) -> None:
        """Whoever proves themselves again keeps the session, and the next access token says when that was."""
        tokens = await auth.refresh(tokens.refresh)
        before = self.who(auth, tokens).proved_at_us
        clock.advance(100)
        session = await auth._db.run(lambda tx: auth.sessions.prove(tx, tokens.session_id))
        assert session.proved_at_us == before + 100_000_000
        await auth._session_store.renew(tokens.session_id)
        tokens = await auth.refresh(tokens.refresh)
        assert self.who(auth, tokens).proved_at_us == before + 100_000_000

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
        assert [result for result in done if isinstance(result, Principal)] == [replace(principal, way="ticket")]
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

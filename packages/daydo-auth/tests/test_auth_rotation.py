from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from daydo_auth import Auth, RefreshReused, SessionRevoked, TokenExpired
from daydo_auth.rotation import RefreshToken, RefreshTokens, Session, decide, new_secret
from daydo_db import Database, migrate
from daydo_kernel import running
from daydo_kernel.testing import ManualClock
from daydo_redis import Redis
from daydo_redis.testing import CALM

PEPPER = "test-pepper-0123456789-abcdefghijkl"
WINDOW_US = 10_000_000
REST_US = 1_000_000_000
NAME = "ses_" + "0" * 26


def session(counter: int = 5, **changes: Any) -> Session:
    good = {"id": NAME, "tenant": "", "subject": "u_1", "secret_hash": b"", "proved_at_us": 0, "rotated_at_us": 0}
    times = {"refresh_by_us": REST_US, "expires_at_us": 5 * REST_US}
    return Session(counter=counter, **(good | times | changes))


@given(st.integers(1, 10**15 - 1))
def test_a_token_survives_the_trip(counter: int) -> None:
    """What we write we can take apart and believe; under another pepper, or with any part changed, we do not."""
    tokens, token = RefreshTokens(PEPPER), RefreshToken(NAME, counter, new_secret())
    text = tokens.write(token)
    assert tokens.read(text) == token
    assert RefreshTokens(PEPPER + "x").read(text) is None
    mac = text.rpartition(".")[2]
    for other in (token.successor, token._replace(secret=new_secret()), token._replace(session_id=NAME[:-1] + "1")):
        assert tokens.read(f"{other.session_id}.{other.counter}.{other.secret}.{mac}") is None


@given(st.text())
def test_any_text_is_no_token(text: str) -> None:
    """Reading never fails and never believes."""
    assert RefreshTokens(PEPPER).read(text) is None


def test_the_table() -> None:
    """Newest rotates, the one before replays within the window, an older one ends the session."""
    assert decide(session(), 5, 1, WINDOW_US) == "rotate"
    assert decide(session(), 4, WINDOW_US - 1, WINDOW_US) == "replay"
    assert decide(session(), 4, WINDOW_US, WINDOW_US) == "reuse"
    assert decide(session(), 4, 0, 0) == "reuse"
    assert decide(session(), 3, 1, WINDOW_US) == "reuse"
    assert decide(session(), 6, 1, WINDOW_US) == "rotate"
    assert decide(session(is_rebuilt=True), 6, 1, WINDOW_US) == "reuse"
    assert decide(session(), 5, REST_US, WINDOW_US) == "expired"
    assert decide(session(expires_at_us=7), 5, 7, WINDOW_US) == "expired"
    assert decide(session(revoked_at_us=1), 5, 2, WINDOW_US) == "revoked"


# -- the stores beside a small model -----------------------------------------------------------------------------------

REST_S, LIFE_S, WINDOW_S = 60, 240, 10
Said = Literal["successor", "reuse", "revoked", "expired"]


class World:
    """Two workers on one database and one Redis, for as many sessions as there are examples."""

    def __init__(self, configure: Any, store: str) -> None:
        self.counts_in_redis = store == "redis"
        self.clock = ManualClock()
        self.db, self.redis = Database("sqlite://"), Redis("embedded://memory", CALM)
        # What these do by themselves is left to the rules.
        by_hand = {"session_write_back_s": 60, "revocation_poll_s": 60, "sweep_s": 86_400}
        lives = {"refresh_ttl_s": REST_S, "session_ttl_s": LIFE_S, "replay_window_s": WINDOW_S}
        config = configure(session_store=store, **by_hand, **lives)
        self.workers = [Auth(self.db, self.redis, config, clock=self.clock) for _ in range(2)]


class Model:
    """What a session is to those who hold its tokens, in seconds; ``saved`` is what a lost Redis leaves of it."""

    def __init__(self, now_s: int) -> None:
        self.newest, self.rotated_s, self.rest_s, self.end_s = 1, now_s, now_s + REST_S, now_s + LIFE_S
        self.is_over = self.is_lost = self.is_guess = False
        self.save()

    def save(self) -> None:
        self.saved = (self.newest, self.rotated_s, self.rest_s)

    def present(self, counter: int, now_s: int) -> Said:
        if self.is_over:
            return "revoked"
        if self.is_lost:
            saved, self.rotated_s, self.rest_s = self.saved
            self.is_lost, self.is_guess = False, (saved, counter) != (1, 1)
            self.newest = max(saved, counter)
        retried = counter == self.newest - 1 and now_s < self.rotated_s + WINDOW_S
        if (counter < self.newest and not retried) or (counter > self.newest and self.is_guess):
            self.is_over = True
            return "reuse"
        if now_s >= min(self.rest_s, self.end_s):
            return "expired"
        if not retried:
            self.newest, self.rotated_s, self.rest_s = counter + 1, now_s, now_s + REST_S
        return "successor"


class Rotation(RuleBasedStateMachine):
    """Anybody presents any token of one session's past to any worker, while time passes and Redis forgets."""

    def __init__(self, world: World, runner: asyncio.Runner) -> None:
        super().__init__()
        self.world, self.run = world, runner.run

    @initialize()
    def begin(self) -> None:
        self.model = Model(self.now_s)
        tokens = self.run(self.world.workers[0].open_session("u_1"))
        self.session_id, self.tokens = tokens.session_id, {1: tokens.refresh}

    @property
    def now_s(self) -> int:
        return self.world.clock.now_us() // 1_000_000

    @rule(seconds=st.integers(1, 45))
    def time_passes(self, seconds: int) -> None:
        self.world.clock.advance(seconds)

    @rule(worker=st.integers(0, 1), behind=st.sampled_from((0, 0, 0, 0, 1, 1, 2)))
    def somebody_refreshes(self, worker: int, behind: int) -> None:
        counter = max(1, max(self.tokens) - behind)
        expected, said = self.model.present(counter, self.now_s), self._refresh(worker, counter)
        assert said == expected

    @rule(worker=st.integers(0, 1))
    def it_is_ended(self, worker: int) -> None:
        self.run(self.world.workers[worker].sessions.end("u_1", self.session_id))
        self.model.is_over = True

    @precondition(lambda self: self.world.counts_in_redis)
    @rule()
    def counters_are_written_back(self) -> None:
        for auth in self.world.workers:
            self.run(auth._session_store.write_back())
        if not self.model.is_lost:
            self.model.save()

    @precondition(lambda self: self.world.counts_in_redis)
    @rule()
    def redis_forgets_everything(self) -> None:
        self.run(self.world.redis.call("FLUSHALL"))
        for auth in self.world.workers:  # who crashed with it has not written them
            auth._session_store._waiting.clear()  # type: ignore[attr-defined]
        self.model.is_lost = True

    @invariant()
    def there_is_one_line_of_succession(self) -> None:
        assert len({token.split(".")[2] for token in self.tokens.values()}) == 1

    def _refresh(self, worker: int, counter: int) -> Said:
        try:
            pair = self.run(self.world.workers[worker].refresh(self.tokens[counter]))
        except RefreshReused:
            return "reuse"
        except SessionRevoked:
            return "revoked"
        except TokenExpired:
            return "expired"
        assert pair.refresh == self.tokens.setdefault(counter + 1, pair.refresh)
        return "successor"


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.mark.parametrize("store", ["sql", "redis"])
def test_rotation(store: str, configure: Any, runner: asyncio.Runner) -> None:
    """Both stores say of every token what a model of twenty lines says, whatever happened before."""
    world = World(configure, store)
    life = running([world.db, world.redis])
    runner.run(life.__aenter__())
    runner.run(migrate(world.db, "daydo_auth"))
    workers = running(world.workers)
    runner.run(workers.__aenter__())
    try:
        run_state_machine_as_test(
            lambda: Rotation(world, runner),
            settings=settings(max_examples=40, stateful_step_count=25, deadline=None),
        )
    finally:
        runner.run(workers.__aexit__(None, None, None))
        runner.run(life.__aexit__(None, None, None))

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daydo_auth.rotation import Session, decide, is_genuine, parse, sign

PEPPER = "test-pepper-0123456789-abcdefghijkl"
SALT = b"0123456789abcdef"
WINDOW_US = 10_000_000
REST_US = 1_000_000_000
LIFE_US = 5_000_000_000
NAME = "ses_" + "0" * 26


def session(counter: int = 5, rotated_at_us: int = 0, revoked_at_us: int = 0) -> Session:
    return Session(
        id=NAME,
        tenant="",
        subject="u_1",
        salt=SALT,
        counter=counter,
        rotated_at_us=rotated_at_us,
        refresh_by_us=rotated_at_us + REST_US,
        expires_at_us=LIFE_US,
        revoked_at_us=revoked_at_us,
    )


@given(st.integers(1, 10**15 - 1), st.binary(min_size=16, max_size=16))
def test_a_token_survives_the_trip(counter: int, salt: bytes) -> None:
    """What we sign we can take apart and believe; with another salt, pepper or counter we do not."""
    token = parse(sign(PEPPER, salt, NAME, counter))
    assert token is not None
    assert (token.session_id, token.counter) == (NAME, counter)
    assert is_genuine(token, PEPPER, salt)
    assert not is_genuine(token, PEPPER + "x", salt)
    assert not is_genuine(token, PEPPER, bytes(reversed(salt)) + b"x")
    assert not is_genuine(token._replace(counter=counter + 1), PEPPER, salt)


def test_the_table() -> None:
    """Newest rotates, the one before replays within the window, everything else ends the session."""
    assert decide(session(), 5, 1, WINDOW_US) == "rotate"
    assert decide(session(), 4, WINDOW_US - 1, WINDOW_US) == "replay"
    assert decide(session(), 4, WINDOW_US, WINDOW_US) == "reuse"
    assert decide(session(), 4, 0, 0) == "reuse"
    assert decide(session(), 3, 1, WINDOW_US) == "reuse"
    assert decide(session(), 6, 1, WINDOW_US) == "reuse"
    assert decide(session(), 5, REST_US, WINDOW_US) == "expired"
    assert decide(session(revoked_at_us=1), 5, 2, WINDOW_US) == "revoked"


@dataclass
class Client:
    """Someone who holds tokens of the session: the newest they were given, and all they ever saw."""

    seen: list[int] = field(default_factory=list)


class Rotation(RuleBasedStateMachine):
    """An owner, whose answers may be lost, and a thief who copies a token once, share one session."""

    @initialize()
    def begin(self) -> None:
        self.now_us = 0
        self.session = session(counter=1)
        self.owner, self.thief = Client([1]), Client()
        self.stolen = self.owner_refreshed_since = False

    @rule(us=st.integers(1, 4_000_000))
    def time_passes(self, us: int) -> None:
        self.now_us += us

    @rule(lost=st.booleans())
    def owner_refreshes(self, lost: bool) -> None:
        self._refresh(self.owner, self.owner.seen[-1], lost)
        self.owner_refreshed_since = self.stolen

    @precondition(lambda self: not self.stolen)
    @rule()
    def thief_copies(self) -> None:
        self.stolen = True
        self.thief.seen.append(self.owner.seen[-1])

    @precondition(lambda self: self.stolen)
    @rule()
    def thief_refreshes(self) -> None:
        self._refresh(self.thief, self.thief.seen[-1], lost=False)

    @invariant()
    def an_honest_owner_stays_in(self) -> None:
        """Without a thief, and with retries in time, nobody is ever logged out."""
        if not self.stolen and not self.late_retry:
            assert not self.session.revoked_at_us

    @invariant()
    def never_two_families(self) -> None:
        """No client holds a token newer than the session's counter: there is one line of succession."""
        assert max([*self.owner.seen, *self.thief.seen]) <= self.session.counter

    late_retry = False

    def _refresh(self, client: Client, presented: int, lost: bool) -> None:
        behind = self.session.counter - presented
        in_time = self.now_us - self.session.rotated_at_us < WINDOW_US
        outcome = decide(self.session, presented, self.now_us, WINDOW_US)
        if outcome == "rotate":
            self.session = session(presented + 1, self.now_us)
        elif outcome == "reuse":
            assert behind > 1 or not in_time
            self.late_retry = self.late_retry or client is self.owner
            self.session = session(self.session.counter, self.session.rotated_at_us, revoked_at_us=self.now_us + 1)
        if outcome in ("rotate", "replay") and not lost:
            assert presented + 1 == self.session.counter
            client.seen.append(presented + 1)


TestRotation = Rotation.TestCase
TestRotation.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)

"""Sessions in the database: their rows, which are the truth in either case, and the store that rotates them there.

Rotation is a compare-and-set: read, decide, and count up where the counter is still the one that was read. Nobody
waits for a lock, and of many at once one wins; the others read again and find that theirs was a retry.
"""

# ruff: noqa: S608 - what is put into statements is the dialect's time and lock, never a value

from __future__ import annotations

import hmac
import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from daydo_db import Database, Tx, now_sql
from daydo_kernel import Clock, new_id

from .config import AuthConfig
from .errors import SessionsUnavailable
from .rotation import Outcome, RefreshToken, Session, decide, hash_secret, new_secret

MAX_DEVICE_CHARS = 64
LISTED_MAX = 100
SWEEP_BATCH = 500
_ATTEMPTS = 5
_COLUMNS = (
    "id",
    "tenant",
    "subject",
    "secret_hash",
    "counter",
    "proved_at_us",
    "rotated_at_us",
    "refresh_by_us",
    "expires_at_us",
)
_READ = (
    f"SELECT {', '.join(f's.{column}' for column in _COLUMNS)}, s.revoked_at_us, "
    "COALESCE(u.disabled_at_us, 0), COALESCE(u.roles, ''), COALESCE(u.epoch, 0), {now} FROM daydo_auth_session s "
    "LEFT JOIN daydo_auth_subject u ON u.tenant = s.tenant AND u.subject = s.subject WHERE s.id = ?"
)


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A session as its owner sees it. Times are µs UTC; the last use is a refresh, about a second late with Redis."""

    id: str
    device: str
    created_at_us: int
    last_used_at_us: int
    current: bool = False


class SessionRows:
    """Statements over the session table; times are the database's, or the clock's where one was given."""

    def __init__(self, db: Database, config: AuthConfig, clock: Clock | None) -> None:
        self._db = db
        self._clock = clock
        self._refresh_ttl_us = round(config.refresh_ttl_s * 1e6)
        self._session_ttl_us = round(config.session_ttl_s * 1e6)
        self._sessions_max = config.sessions_per_subject_max

    @property
    def now(self) -> str:
        """SQL for the time."""
        return now_sql(self._db.dialect, self._clock)

    @property
    def _alive(self) -> str:
        """SQL for: it can still be refreshed."""
        return f"revoked_at_us = 0 AND expires_at_us > {self.now} AND refresh_by_us > {self.now}"

    async def insert(self, tx: Tx, tenant: str, subject: str, device: str) -> tuple[Session, RefreshToken, list[str]]:
        """A new session of who has proven themselves just now, its first token, and the sessions that are too many now.

        The caller holds the subject, so that of two at once the second sees what the first has opened. In a transaction
        of yours that has an old snapshot it may not: then the next one finds those as well.
        """
        token = RefreshToken(new_id("ses"), 1, new_secret())
        now = self.now
        insert = (
            "INSERT INTO daydo_auth_session (id, tenant, subject, device, secret_hash, counter, created_at_us, "
            "proved_at_us, rotated_at_us, refresh_by_us, expires_at_us, revoked_at_us, revoked_for) "
            f"VALUES (?, ?, ?, ?, ?, 1, {now}, {now}, {now}, {now} + ?, {now} + ?, 0, '')"
        )
        # Without a lock: at REPEATABLE READ it would be one on gaps, too, and newcomers would wait for each other.
        others = (
            f"SELECT id FROM daydo_auth_session WHERE tenant = ? AND subject = ? AND id <> ? AND {self._alive} "
            "ORDER BY rotated_at_us DESC, id DESC"
        )
        values = (
            token.session_id,
            tenant,
            subject,
            device_name(device),
            hash_secret(token.secret),
            self._refresh_ttl_us,
            self._session_ttl_us,
        )
        _, found, known = await tx.execute_all(
            [
                (insert, values),
                (_READ.format(now=now), (token.session_id,)),
                (others, (tenant, subject, token.session_id)),
            ]
        )
        session, _ = _session_of(found.rows[0])
        return session, token, sorted(row[0] for row in known.rows[self._sessions_max - 1 :])

    async def read(self, session_id: str) -> tuple[Session, int] | None:
        """A session with its subject's roles, and the time."""
        found = await self._db.query(_READ.format(now=self.now), (session_id,))
        return _session_of(found.rows[0]) if found.rows else None

    async def count_up(self, session: Session, counter: int) -> bool:
        """Make ``counter`` the newest; False where somebody else was quicker, or the session has ended."""
        now = self.now
        written = await self._db.execute(
            f"UPDATE daydo_auth_session SET counter = ?, rotated_at_us = {now}, refresh_by_us = {now} + ? "
            "WHERE id = ? AND counter = ? AND revoked_at_us = 0",
            (counter, self._refresh_ttl_us, session.id, session.counter),
        )
        return written.rowcount == 1

    async def catch_up(self, counters: Iterable[tuple[str, int, int, int]]) -> None:
        """Write (id, counter, rotated_at_us, refresh_by_us) that were counted elsewhere; never backwards."""
        statement = (
            "UPDATE daydo_auth_session SET counter = ?, rotated_at_us = ?, refresh_by_us = ? "
            "WHERE id = ? AND counter < ?"
        )
        # Sorted, so that two workers lock in one order.
        updates = [
            (statement, (counter, rotated_us, by_us, session_id, counter))
            for session_id, counter, rotated_us, by_us in sorted(counters)
        ]

        async def write(tx: Tx) -> None:
            await tx.execute_all(updates)

        await self._db.run(write)

    async def prove(self, tx: Tx, session_id: str) -> Session:
        """Its person has proven themselves again, just now; the session, locked, and its subject as it stands."""
        now = self.now
        *_, found = await tx.execute_all(
            [
                (f"UPDATE daydo_auth_session SET proved_at_us = {now} WHERE id = ?", (session_id,)),
                # Without a lock: it would be one on the subject, too, which comes before its sessions.
                (_READ.format(now=now), (session_id,)),
            ]
        )
        return _session_of(found.rows[0])[0]

    async def list(self, tenant: str, subject: str) -> list[SessionInfo]:
        """The sessions that can still be refreshed, the last used first, at most ``LISTED_MAX``."""
        found = await self._db.query(
            "SELECT id, device, created_at_us, rotated_at_us FROM daydo_auth_session WHERE tenant = ? AND subject = ? "
            f"AND {self._alive} ORDER BY rotated_at_us DESC, id DESC LIMIT {LISTED_MAX}",
            (tenant, subject),
        )
        return [
            SessionInfo(id=row[0], device=row[1], created_at_us=row[2], last_used_at_us=row[3]) for row in found.rows
        ]

    async def lives(self, session_ids: Sequence[str]) -> dict[str, int]:
        """How long each of these can still be refreshed, in µs; one that cannot is not among them."""
        marks = ", ".join("?" * len(session_ids))
        found = await self._db.query(
            f"SELECT id, refresh_by_us, expires_at_us, {self.now} FROM daydo_auth_session "
            f"WHERE id IN ({marks}) AND {self._alive}",
            session_ids,
        )
        return {row[0]: min(row[1], row[2]) - row[3] for row in found.rows}

    async def running(self, tx: Tx, tenant: str, subject: str) -> Sequence[str]:
        """All sessions of a subject that have not been ended, locked."""
        found = await tx.execute(
            "SELECT id FROM daydo_auth_session WHERE tenant = ? AND subject = ? AND revoked_at_us = 0 "
            f"ORDER BY id {tx.dialect.for_update}",
            (tenant, subject),
        )
        return [row[0] for row in found.rows]

    async def belongs_to(self, tx: Tx, session_id: str, tenant: str, subject: str) -> bool:
        """Whether a session is theirs, ended or not; locks it."""
        found = await tx.execute(
            "SELECT id FROM daydo_auth_session WHERE id = ? AND tenant = ? AND subject = ? " + tx.dialect.for_update,
            (session_id, tenant, subject),
        )
        return bool(found.rows)

    async def end(self, tx: Tx, session_id: str, why: str) -> bool:
        """End a session; False where it was. The first reason stays."""
        ended = await tx.execute(
            f"UPDATE daydo_auth_session SET revoked_at_us = {self.now}, revoked_for = ? "
            "WHERE id = ? AND revoked_at_us = 0",
            (why, session_id),
        )
        return ended.rowcount == 1

    async def sweep(self) -> int:
        """Remove sessions whose time is over, one batch; how many these were."""
        old = await self._db.query(
            f"SELECT id FROM daydo_auth_session WHERE expires_at_us < {self.now} "
            f"ORDER BY expires_at_us LIMIT {SWEEP_BATCH}"
        )
        if not old.rows:
            return 0
        ids = sorted(row[0] for row in old.rows)
        marks = ", ".join("?" * len(ids))
        return (await self._db.execute(f"DELETE FROM daydo_auth_session WHERE id IN ({marks})", ids)).rowcount


class SqlSessions:
    """The session store without Redis. Database away: nobody refreshes; its errors."""

    def __init__(self, rows: SessionRows, config: AuthConfig) -> None:
        self._rows = rows
        self._window_us = round(config.replay_window_s * 1e6)

    async def rotate(self, token: RefreshToken) -> tuple[Session, Outcome] | None:
        for _ in range(_ATTEMPTS):
            found = await self._rows.read(token.session_id)
            if found is None or not hmac.compare_digest(found[0].secret_hash, token.secret_hash):
                return None
            session, now_us = found
            outcome = decide(session, token.counter, now_us, self._window_us)
            if outcome != "rotate" or await self._rows.count_up(session, token.counter + 1):
                return session, outcome
        raise SessionsUnavailable(retry_after_s=1)

    async def forget(self, session_ids: Iterable[str]) -> None:
        """Nothing is kept beside the rows."""

    async def renew(self, session_id: str) -> None:
        """As above."""

    async def write_back(self) -> None:
        """Nothing waits to be written."""


def device_name(device: str) -> str:
    """What a client calls itself, cut, without what cannot be stored or would act on a terminal or a log."""
    seen = (each for each in device if unicodedata.category(each) not in ("Cc", "Cs"))
    return "".join(itertools.islice(seen, MAX_DEVICE_CHARS))


def _session_of(row: tuple[Any, ...]) -> tuple[Session, int]:
    *session, revoked_at_us, disabled_at_us, roles, epoch, now_us = row
    named = dict(zip(_COLUMNS, session, strict=True))
    # Nobody refreshes for a subject that was disabled.
    ended = {"revoked_at_us": revoked_at_us or disabled_at_us, "roles": tuple(roles.split()), "epoch": epoch}
    return Session(**named, **ended), now_us

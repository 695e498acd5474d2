"""Which sessions have ended while their access tokens still run: known to every worker, asked without I/O.

A worker knows its own revocations at once and reads those of the others every ``revocation_poll_s`` from the index of
the session table. A transaction that revokes may commit a while after its statement's time, so each look reaches back
over the last one by ``OVERLAP_S``. While the database is away nobody can be revoked by others either; tokens then live
to their end, at most ``access_ttl_s``.
"""

from __future__ import annotations

import logging
import time

from daydo_db import DbError
from daydo_kernel import Clock, Metrics

from .config import AuthConfig
from .store import Store

log = logging.getLogger("daydo.auth")

OVERLAP_S = 15.0


class Revocations:
    """Sessions that ended within the life of an access token."""

    def __init__(self, store: Store, config: AuthConfig, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._clock = clock
        self._poll_s = config.revocation_poll_s
        self._keep_s = config.access_ttl_s + config.clock_skew_s
        self._until_us: dict[str, int] = {}
        self._read_at_s: float | None = None
        metrics.gauge(
            "revoked_sessions_known", "Ended sessions whose access tokens may still run.", merge="max"
        ).cell().follow(lambda: len(self._until_us))
        metrics.gauge(
            "revocation_lag_seconds", "Since revocations of other workers were read.", merge="max"
        ).cell().follow(lambda: self.lag_s)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._until_us

    @property
    def lag_s(self) -> float:
        """Seconds since other workers' revocations were read; 0 before the first time."""
        return 0.0 if self._read_at_s is None else time.monotonic() - self._read_at_s

    @property
    def is_stale(self) -> bool:
        return self.lag_s > 5 * self._poll_s + 1

    def add(self, session_id: str) -> None:
        self._until_us.setdefault(session_id, self._clock.now_us() + self._keep_s * 1_000_000)

    async def read(self) -> None:
        """Learn what others have revoked, and forget what no token can name any more.

        Raises:
            DbError: the database is away; nothing is forgotten or lost, the next look reaches back as far.
        """
        began_s = time.monotonic()
        window_s = self._keep_s if self._read_at_s is None else min(self._keep_s, self.lag_s + OVERLAP_S)
        for session_id in await self._store.revoked_within(window_s):
            self.add(session_id)
        self._read_at_s = began_s
        now_us = self._clock.now_us()
        for session_id in [known for known, until_us in self._until_us.items() if until_us <= now_us]:
            del self._until_us[session_id]

    async def poll(self) -> None:
        """One look in the background: a database that is away is worth a line, not a traceback."""
        try:
            await self.read()
        except DbError as error:
            log.warning("revocations of other workers cannot be read: %s", error)

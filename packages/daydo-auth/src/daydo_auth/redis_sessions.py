"""Sessions counted in Redis: one call on one key for a refresh, beside rows in the database that stay the truth.

The key holds a *copy* of the row, and the counter, which only Redis knows to the moment. It may be lost at any time,
and it may be old: Redis comes back with yesterday's data, or was away when a session was ended. Three rules make both
harmless.

**Lost.** What is missing is rebuilt from the row. The row's counter is up to ``session_write_back_s`` behind, so a
genuine token that is not older than it is taken for the newest. Had a thief been first with an old one, the owner shows
up with a higher counter: a fork, which ends the session. (A counter that is lower than a genuine token's without having
been rebuilt is Redis having lost its last moments, and nobody's fault.)

**Old.** A copy says up to when it agreed with the database (``checked``). A worker acts on it only if its feed knows
everything since then, and does not say that the session has ended or its subject's roles have changed; else it reads
the row first. So an ended session cannot come back with an old copy, however long Redis was away.

**Away.** Nobody refreshes (SessionsUnavailable, 503): two who were both let through would fork the session.

Time in here is the Redis server's, or the clock's where one was given.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable

import msgspec

from daydo_db import DbError
from daydo_kernel import Clock, Metrics
from daydo_redis import Redis, RedisError

from .config import AuthConfig
from .errors import SessionsUnavailable
from .feed import OVERLAP_S, Feed
from .rotation import Outcome, RefreshToken, Session
from .sql_sessions import SessionRows

log = logging.getLogger("daydo.auth")

_OVERLAP_US = round(OVERLAP_S * 1e6)
_ATTEMPTS = 4
# Of a copy: who has it made asks again, and must find it there, also of a session whose time is over.
_LEAST_LIFE_MS = 60_000
_WRITE_BACK_BATCH = 200
_RETRY_AFTER_S = 1.0

# What daydo_auth.rotation.decide says, carried out. Numbers are written with %.0f: Lua's own way rounds them.
_ROTATE = """
local s = redis.call('HMGET', KEYS[1], 'secret', 'counter', 'rotated', 'rest', 'end', 'checked', 'rebuilt', 'reused',
                     'about')
if not s[1] then return {'missing'} end
if s[1] ~= ARGV[1] then return {'unknown'} end
if tonumber(s[6]) < tonumber(ARGV[3]) then return {'unchecked'} end
local now = tonumber(ARGV[4])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local counter, presented = tonumber(s[2]), tonumber(ARGV[2])
local retry = presented == counter - 1 and now - tonumber(s[3]) < WINDOW_US
if s[8] or (presented < counter and not retry) or (presented > counter and s[7] == '1') then
  redis.call('HSET', KEYS[1], 'reused', '1')
  return {'reuse', s[9], s[2], s[3], s[4], s[6]}
end
if now >= tonumber(s[4]) then return {'expired', s[9], s[2], s[3], s[4], s[6]} end
if retry then return {'replay', s[9], s[2], s[3], s[4], s[6]} end
local rest = math.min(now + REFRESH_TTL_US, tonumber(s[5]))
local newest, at, by = string.format('%.0f', presented + 1), string.format('%.0f', now), string.format('%.0f', rest)
redis.call('HSET', KEYS[1], 'counter', newest, 'rotated', at, 'rest', by)
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.ceil((rest - now) / 1000)))
return {'rotate', s[9], newest, at, by, s[6]}
"""
# A copy of the row: whole where there was none, else what the database knows better. Nothing in it goes back.
_COPY = """
local s = redis.call('HMGET', KEYS[1], 'counter', 'checked')
if not s[1] then
  if ARGV[9] == '0' then return 0 end
  redis.call('HSET', KEYS[1], 'secret', ARGV[1], 'counter', ARGV[2], 'rotated', ARGV[3], 'rest', ARGV[4],
             'end', ARGV[5], 'checked', ARGV[6], 'rebuilt', ARGV[7], 'about', ARGV[8])
  redis.call('PEXPIRE', KEYS[1], ARGV[9])
  return 1
end
if tonumber(s[1]) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], 'counter', ARGV[2], 'rotated', ARGV[3], 'rest', ARGV[4])
end
if tonumber(s[2]) <= tonumber(ARGV[6]) then
  redis.call('HSET', KEYS[1], 'checked', ARGV[6], 'about', ARGV[8])
end
return 0
"""


class _About(msgspec.Struct, frozen=True, array_like=True):
    """What of a session does not change with a rotation; Redis does not look into it."""

    tenant: str
    subject: str
    proved_at_us: int
    expires_at_us: int
    roles: tuple[str, ...]
    epoch: int


_about_of = msgspec.json.Decoder(_About)


class RedisSessions:
    """The session store with Redis."""

    def __init__(
        self, rows: SessionRows, redis: Redis, feed: Feed, config: AuthConfig, clock: Clock | None, metrics: Metrics
    ) -> None:
        self._rows = rows
        self._redis = redis
        self._feed = feed
        self._clock = clock
        self._prefix = config.redis_prefix + "session:"
        window_us, refresh_ttl_us = round(config.replay_window_s * 1e6), round(config.refresh_ttl_s * 1e6)
        # They stand in the script: each argument costs a microsecond.
        self._count = redis.script(
            _ROTATE.replace("WINDOW_US", str(window_us)).replace("REFRESH_TTL_US", str(refresh_ttl_us))
        )
        self._copy = redis.script(_COPY, idempotent=True)
        self._waiting: dict[str, tuple[int, int, int]] = {}
        self._waiting_max = config.write_backs_max
        metrics.gauge("write_backs_waiting", "Counters in Redis that the database does not have yet.").cell().follow(
            lambda: len(self._waiting)
        )
        self._dropped = metrics.counter(
            "write_backs_dropped_total", "Counters that were not written because too many waited."
        ).cell()

    async def rotate(self, token: RefreshToken) -> tuple[Session, Outcome] | None:
        # How far the feed has read is taken before anything is awaited: what comes later may not be known yet.
        read_until_us = self._feed.read_until_us
        for _ in range(_ATTEMPTS):
            what, answer = await self._ask(token)
            if what == "unknown":
                return None
            if what not in ("missing", "unchecked"):
                return await self._answered(token, what, answer, read_until_us)
            row = await self._copy_row(token)
            if row is None:
                return None
            if row.revoked_at_us:
                return row, "revoked"
        raise SessionsUnavailable(retry_after_s=_RETRY_AFTER_S)

    async def forget(self, session_ids: Iterable[str]) -> None:
        """Drop the copies. Redis away: they are old then, and nobody acts on them."""
        # Counters that wait are written all the same: the transaction that ends these may yet be rolled back.
        ids = list(session_ids)
        try:
            await self._redis.delete(*map(self._key, ids))
        except RedisError as error:
            log.warning("%s ended sessions stay in Redis; workers know of them by the database: %s", len(ids), error)

    async def renew(self, session_id: str) -> None:
        """Bring an existing copy up to date; where that fails it is as it was, and of an earlier proof."""
        try:
            if (found := await self._rows.read(session_id)) is not None:
                await self._write_copy(found[0], found[1] - _OVERLAP_US, 0)
        except (DbError, SessionsUnavailable) as error:
            log.warning("a session's new proof does not stand in Redis: %s", error)

    async def write_back(self) -> None:
        """Write the counters that wait; the others of this store may do so at the same time."""
        while self._waiting:
            batch = dict(list(self._waiting.items())[:_WRITE_BACK_BATCH])
            try:
                await self._rows.catch_up((session_id, *counted) for session_id, counted in batch.items())
            except DbError as error:
                log.warning("%s counters of sessions cannot be written to the database yet: %s", len(batch), error)
                return
            for session_id, counted in batch.items():
                if self._waiting.get(session_id) == counted:
                    del self._waiting[session_id]

    # -- steps ---------------------------------------------------------------------------------------------------

    async def _ask(self, token: RefreshToken) -> tuple[str, list[bytes]]:
        args: list[str | int] = [token.secret_hash.hex(), token.counter, self._feed.known_since_us]
        if self._clock is not None:
            args.append(self._clock.now_us())
        try:
            what, *answer = await self._count(keys=[self._key(token.session_id)], args=args)
        except RedisError as error:
            raise SessionsUnavailable(retry_after_s=error.retry_after_s or _RETRY_AFTER_S) from error
        return what.decode(), answer

    async def _answered(
        self, token: RefreshToken, what: str, answer: list[bytes], read_until_us: int
    ) -> tuple[Session, Outcome]:
        session = _session_of(token, answer)
        outcome: Outcome = what  # type: ignore[assignment]
        if outcome == "rotate":
            self._remember(session)
        if session.epoch < self._feed.subject_epoch(session.tenant, session.subject):
            row = await self._copy_row(token)
            if row is None or row.revoked_at_us:
                return session, "revoked"
            return msgspec.structs.replace(session, roles=row.roles, epoch=row.epoch), outcome
        if outcome == "rotate" and int(answer[4]) < read_until_us - self._feed.keep_us // 2:
            await self._write_copy(session, read_until_us, 0)  # before it gets so old that the row has to be read
        return session, outcome

    async def _copy_row(self, token: RefreshToken) -> Session | None:
        """Read the row and bring Redis up to date; None where there is none with this secret."""
        found = await self._rows.read(token.session_id)
        if found is None or not hmac.compare_digest(found[0].secret_hash, token.secret_hash):
            return None
        session, now_us = found
        if session.revoked_at_us:
            await self.forget([session.id])
            return session
        # The first token of a session that was never refreshed is the newest for certain.
        is_fresh = session.counter == token.counter == 1
        session = msgspec.structs.replace(session, counter=max(session.counter, token.counter), is_rebuilt=not is_fresh)
        lives_us = min(session.refresh_by_us, session.expires_at_us) - now_us
        await self._write_copy(session, now_us - _OVERLAP_US, max(_LEAST_LIFE_MS, lives_us // 1000))
        return session

    async def _write_copy(self, session: Session, checked_us: int, lives_ms: int) -> None:
        """Write what the row says; where Redis has nothing, only if there are ``lives_ms`` for it to live."""
        about = _About(
            session.tenant,
            session.subject,
            session.proved_at_us,
            session.expires_at_us,
            session.roles,
            session.epoch,
        )
        try:
            await self._copy(
                keys=[self._key(session.id)],
                args=[
                    session.secret_hash.hex(),
                    session.counter,
                    session.rotated_at_us,
                    min(session.refresh_by_us, session.expires_at_us),
                    session.expires_at_us,
                    checked_us,
                    int(session.is_rebuilt),
                    msgspec.json.encode(about),
                    lives_ms,
                ],
            )
        except RedisError as error:
            raise SessionsUnavailable(retry_after_s=error.retry_after_s or _RETRY_AFTER_S) from error

    def _remember(self, session: Session) -> None:
        if session.id not in self._waiting and len(self._waiting) >= self._waiting_max:
            self._dropped.inc()
            return
        self._waiting[session.id] = (session.counter, session.rotated_at_us, session.refresh_by_us)

    def _key(self, session_id: str) -> str:
        return self._prefix + session_id


def _session_of(token: RefreshToken, answer: list[bytes]) -> Session:
    about, counter, rotated_at_us, rest_us, _ = answer
    known = _about_of.decode(about)
    return Session(
        id=token.session_id,
        tenant=known.tenant,
        subject=known.subject,
        secret_hash=token.secret_hash,
        counter=int(counter),
        proved_at_us=known.proved_at_us,
        rotated_at_us=int(rotated_at_us),
        refresh_by_us=int(rest_us),
        expires_at_us=known.expires_at_us,
        roles=known.roles,
        epoch=known.epoch,
    )

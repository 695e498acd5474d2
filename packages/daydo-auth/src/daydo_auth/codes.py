"""One-time codes: six digits to a phone or a mailbox, which somebody types back within minutes.

Six digits are guessable, so everything that counts is counted in Redis, in the same Lua call that decides:

- a code is bound to tenant, purpose and login, good once, for ``code_ttl_s`` and for ``code_tries`` guesses, the right
  one included; a new code replaces the old one;
- sending is limited per login (all tenants and purposes together), per address and for the whole service; guessing
  wrong is limited per address. Windows slide: each limit keeps the times of what it has let through.

With the defaults a login can be guessed at 50 times a day, each with a chance of one in a million. Redis holds neither
code nor login, but MACs under the pepper. Sending asks nobody whether the login is known, so neither answer nor time
can tell.

Redis away: nothing is sent and no code is believed (CodesUnavailable, 503). What was lost with its answer counts: a
code may then have been used up, and a limit eaten into.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from daydo_kernel import Clock, Event, EventSink, Metrics, new_id
from daydo_kernel.addresses import address_group
from daydo_redis import Redis, RedisError, Script

from .config import AuthConfig
from .errors import CodesLimited, CodesUnavailable, CodeWrong, LoginUnusable, SenderUnavailable
from .logins import Channel, channel_of, mask_login, normalize_login
from .ports import Sender

log = logging.getLogger("daydo.auth")

DAY_MS: Final = 86_400_000
_DIGITS: Final = 6
_RETRY_AFTER_S: Final = 1.0
_CODE = re.compile(rf"[0-9]{{{_DIGITS}}}")
_PURPOSE = re.compile(r"[a-z][a-z0-9_]{0,31}")
_LIMITS = ("login", "address", "day", "guesses")

# ``now`` is given in tests; the server's clock is one for all workers. Numbers go back as "%.0f": Lua's own way of
# writing 1700000000000 loses digits. A list keeps the times of the last ``most``; if the oldest of these is inside the
# window, the next must wait until it is not.
_COMMON = """
local function now_ms()
  if ARGV[1] ~= '0' then return tonumber(ARGV[1]) end
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local now = now_ms()
local function wait_ms(key, most, window)
  local oldest = redis.call('LINDEX', key, -most)
  if not oldest then return 0 end
  return tonumber(oldest) + window - now
end
local function count(key, most, window)
  redis.call('RPUSH', key, string.format('%.0f', now))
  redis.call('LTRIM', key, -most, -1)
  redis.call('PEXPIRE', key, window)
end
"""

# KEYS code, login, address, day; ARGV now, mac, ttl, interval, per login, per address ('0': unknown), per day.
# Answers {'', 0}, or the name of the limit and how many ms to wait.
_ISSUE = f"""{_COMMON}
local interval, day = tonumber(ARGV[4]), {DAY_MS}
local limits = {{
  {{'login', KEYS[2], 1, interval}}, {{'login', KEYS[2], tonumber(ARGV[5]), day}},
  {{'address', KEYS[3], tonumber(ARGV[6]), day}}, {{'day', KEYS[4], tonumber(ARGV[7]), day}},
}}
local name, longest = '', 0
for _, limit in ipairs(limits) do
  if limit[3] > 0 then
    local wait = wait_ms(limit[2], limit[3], limit[4])
    if wait > longest then name, longest = limit[1], wait end
  end
end
if longest > 0 then return {{name, longest}} end
for number = 2, 4 do
  if limits[number][3] > 0 then count(limits[number][2], limits[number][3], day) end
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'mac', ARGV[2], 'tries', 0, 'until', string.format('%.0f', now + ARGV[3]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {{'', 0}}
"""

# KEYS code, address; ARGV now, mac, tries, wrong per address ('0': unknown), window.
_CHECK = f"""{_COMMON}
local most, window = tonumber(ARGV[4]), tonumber(ARGV[5])
if most > 0 then
  local wait = wait_ms(KEYS[2], most, window)
  if wait > 0 then return {{'guesses', wait}} end
end
local code = redis.call('HMGET', KEYS[1], 'mac', 'until')
if code[1] and tonumber(code[2]) > now then
  if code[1] == ARGV[2] then
    redis.call('DEL', KEYS[1])
    return {{'right', 0}}
  end
  if redis.call('HINCRBY', KEYS[1], 'tries', 1) >= tonumber(ARGV[3]) then redis.call('DEL', KEYS[1]) end
end
if most > 0 then count(KEYS[2], most, window) end
return {{'wrong', 0}}
"""

# KEYS code; ARGV mac. The code of a message that was not sent; not the one that has replaced it.
_FREE = """
if redis.call('HGET', KEYS[1], 'mac') == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class CodeSent(msgspec.Struct, frozen=True):
    """What may be told to whoever asked: how long the code is good, and when they may ask for another, in seconds."""

    ttl_s: float
    again_after_s: float


class Codes:
    """``auth.codes``: send and check one-time codes."""

    def __init__(
        self,
        redis: Redis,
        config: AuthConfig,
        senders: Mapping[Channel, Sender],
        clock: Clock | None,
        events: EventSink,
        metrics: Metrics,
        *,
        require_started: Callable[[], None],
    ) -> None:
        self._config = config
        self._senders = dict(senders)
        self._clock = clock
        self._events = events
        self._require_started = require_started
        # One hash tag: what one call decides on shares a slot of a cluster.
        self._prefix = f"{config.redis_prefix}{{codes}}:"
        self._secret = hmac.digest(config.pepper.encode(), b"daydo one-time codes", "sha256")
        self._issue = redis.script(_ISSUE)
        self._check = redis.script(_CHECK)
        self._free = redis.script(_FREE, idempotent=True)
        sends = metrics.counter("codes_total", "One-time codes asked for, by what became of them.", ("outcome",))
        self._sends = {outcome: sends.cell(outcome) for outcome in ("sent", "limited", "failed", "unknown")}
        checks = metrics.counter("code_checks_total", "One-time codes typed back, by what they were.", ("outcome",))
        self._checks = {outcome: checks.cell(outcome) for outcome in ("right", "wrong", "limited")}

    async def send(self, login: str, purpose: str, *, tenant: str = "", address: str = "") -> CodeSent:
        """Send a new code to a phone or an e-mail address, known here or not.

        ``purpose`` (``login``, ``bind``, ``reset``, …; lower-case letters, digits, ``_``) is what it will be good for;
        ``address`` is the client's, for the limit by address.

        A message that was refused leaves no code, one that may have been sent leaves it good; both count.

        Raises:
            LoginUnusable: neither a phone number nor an e-mail address, or there is no sender for it.
            CodesLimited: too many; ``retry_after_s`` says when.
            SenderUnavailable: it was not sent, or perhaps not. It is never sent again by itself.
            CodesUnavailable: Redis is away, nothing was sent.
            ValueError: ``purpose`` is no name.
        """
        self._require_started()
        if not _PURPOSE.fullmatch(purpose):
            raise ValueError(f"{purpose!r} is no purpose; use a-z, 0-9 and _, at most 32")
        to = normalize_login(login)
        channel = channel_of(to) if to is not None else None
        if to is None or channel is None or channel not in self._senders:
            raise LoginUnusable()
        code = f"{secrets.randbelow(10**_DIGITS):0{_DIGITS}}"
        key, mac = self._code_key(tenant, purpose, to), self._mac("code", tenant, purpose, to, code)
        await self._reserve(key, mac, to, purpose, tenant, address)
        try:
            async with asyncio.timeout(self._config.code_send_timeout_s):
                await self._senders[channel].send(to, code, purpose, key=new_id("code"), ttl_s=self._config.code_ttl_s)
        except TimeoutError:
            # It may arrive yet, so the code stays good; a second message would be one too many.
            self._sends["unknown"].inc()
            log.warning("a code by %s may not have been sent: no answer in time", channel)
            raise SenderUnavailable(retry_after_s=self._config.code_interval_s) from None
        except Exception as error:
            self._sends["failed"].inc()
            # Its text may repeat what was sent.
            log.warning("a code by %s was not sent: %s", channel, type(error).__name__)
            with contextlib.suppress(RedisError):  # nobody has seen the code
                await self._free(keys=[key], args=[mac])
            raise SenderUnavailable(retry_after_s=self._config.code_interval_s) from None
        self._sends["sent"].inc()
        await self._tell("code_sent", tenant, to, purpose, address)
        return CodeSent(self._config.code_ttl_s, self._config.code_interval_s)

    async def check(self, login: str, code: str, purpose: str, *, tenant: str = "", address: str = "") -> str:
        """Use ``code`` up; the normalised login that it proves. Of several callers with one right code one passes.

        Raises:
            CodeWrong: wrong, used, expired, replaced, guessed at too often, or for somebody or something else.
            CodesLimited: too many wrong ones from this ``address``; the code was not looked at.
            CodesUnavailable: Redis is away. The code may be used up.
        """
        self._require_started()
        to = normalize_login(login)
        if to is None or not _CODE.fullmatch(code):
            # Not a guess: this cannot be one of ours, whoever it was for.
            self._checks["wrong"].inc()
            raise CodeWrong()
        limit = self._config.code_wrong_per_address if address else 0
        outcome, wait_ms = await self._ask(
            self._check,
            keys=[self._code_key(tenant, purpose, to), self._address_key("wrong", address)],
            args=[
                self._now_ms(),
                self._mac("code", tenant, purpose, to, code),
                self._config.code_tries,
                limit,
                DAY_MS,
            ],
        )
        if outcome == b"right":
            self._checks["right"].inc()
            return to
        if outcome == b"wrong":
            self._checks["wrong"].inc()
            await self._tell("code_refused", tenant, to, purpose, address, why="wrong")
            raise CodeWrong()
        self._checks["limited"].inc()
        await self._tell("code_refused", tenant, to, purpose, address, why="guesses")
        raise CodesLimited(limit="guesses", retry_after_s=wait_ms / 1000)

    async def _reserve(self, key: str, mac: str, to: str, purpose: str, tenant: str, address: str) -> None:
        config = self._config
        limit, wait_ms = await self._ask(
            self._issue,
            keys=[key, self._prefix + self._mac("login", to), self._address_key("sent", address), f"{self._prefix}day"],
            args=[
                self._now_ms(),
                mac,
                round(config.code_ttl_s * 1000),
                round(config.code_interval_s * 1000),
                config.codes_per_login,
                config.codes_per_address if address else 0,
                config.codes_per_day,
            ],
        )
        if limit:
            self._sends["limited"].inc()
            await self._tell("code_refused", tenant, to, purpose, address, why=limit.decode())
            raise CodesLimited(limit=limit.decode(), retry_after_s=wait_ms / 1000)

    async def _ask(self, script: Script, keys: list[str], args: list[Any]) -> Any:
        try:
            return await script(keys=keys, args=args)
        except RedisError as error:
            raise CodesUnavailable(retry_after_s=error.retry_after_s or _RETRY_AFTER_S) from error

    async def _tell(self, name: str, tenant: str, login: str, purpose: str, address: str, **data: str) -> None:
        said = {"login": mask_login(login), "purpose": purpose, "address": address, **data}
        await self._events.emit(Event(name=f"auth.{name}", tenant=tenant, data=said))

    def _code_key(self, tenant: str, purpose: str, login: str) -> str:
        return self._prefix + self._mac("key", tenant, purpose, login)

    def _address_key(self, what: str, address: str) -> str:
        return self._prefix + self._mac(what, address_group(address))

    def _mac(self, *parts: str) -> str:
        # With their lengths: ("a", "bc") is not ("ab", "c").
        said = "".join(f"{len(part)}:{part}" for part in parts)
        return hmac.digest(self._secret, said.encode("utf-8", "surrogatepass"), "sha256").hex()

    def _now_ms(self) -> int:
        return self._clock.now_us() // 1000 if self._clock is not None else 0

"""The noun: every limit of a request decided at once, for all processes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from daydo_kernel import (
    Clock,
    Config,
    Counter,
    Event,
    EventSink,
    Health,
    Metrics,
    NoEvents,
    Part,
    SystemClock,
    new_id,
    to_the_end,
)
from daydo_redis import Redis, RedisError

from . import lua
from .changes import Changes
from .decision import Check, Decision, Standing
from .errors import LimitExceeded, RateLimited, RuleOfAnotherKind, RuleUnknown, TooManyAtOnce
from .memory import Memory
from .planner import Leases, Verdict, plan
from .rules import US, Concurrent, Rule

log = logging.getLogger("daydo.traffic")

NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
KEY_CHARS_MAX = 64
LIVING_S = 10.0  # how long a silent process still counts
RENEW_S = 1.0


class LimitsConfig(Config, frozen=True, kw_only=True):
    """The rules and their bounds.

    Attributes:
        rules: by name; lower-case letters, digits, ``_ . -``. What is changed at run time lies over them.
        processes: how many share the limits while Redis is away; 0: as many as Redis last counted.
        refresh_s: how long a change of a rule takes to reach all processes.
        local_keys_max: keys remembered in this process, without Redis or while it is away.
        key_prefix: of every key in Redis. Keep its braces on a cluster: what is decided in one call shares a node.
        drain_s: on exit, how long requests that hold leases may take.
    """

    rules: dict[str, Rule] = {}  # noqa: RUF012 - msgspec copies it for every struct
    processes: Annotated[int, Meta(ge=0, le=10_000)] = 0
    refresh_s: Annotated[float, Meta(ge=0.01, le=60)] = 1.0
    local_keys_max: Annotated[int, Meta(ge=100, le=10_000_000)] = 100_000
    key_prefix: Annotated[str, Meta(min_length=1, max_length=64)] = "{daydo_limits}"
    drain_s: Annotated[float, Meta(ge=0, le=60)] = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.rules:
            if not NAME.fullmatch(name):
                raise ValueError(f"LimitsConfig.rules: {name!r} is no name; use a-z, 0-9, _ . - and at most 64 of them")


class _Held(msgspec.Struct):
    """Leases of one admitted request."""

    lease: str
    keys: list[str]
    lengths_us: list[int]
    in_redis: bool
    renew_at_us: int


class _Ruled:
    """A rule by its name, ready to be asked."""

    __slots__ = ("fits", "limit", "name", "needs_end", "plan", "prefix", "refuses", "rule")

    def __init__(self, name: str, rule: Rule, share: int, key_prefix: str, fits: Counter, refuses: Counter) -> None:
        self.name = name
        self.rule = rule
        self.limit = rule.limit
        self.plan = plan(rule, share)
        # The kind is in the key: a rule that becomes one of another kind must not read the other's state.
        self.prefix = f"{key_prefix}:{self.plan.kind}:{name}:"
        self.needs_end = isinstance(rule, Concurrent)
        self.fits = fits
        self.refuses = refuses


Asked = tuple[_Ruled, str, int]
"""A rule, the full key, the cost."""


class Limits(Part):
    """Rate limits::

        limits = Limits(redis, LimitsConfig(rules={"login": Window(limit=5, period_s=60)}))
        await limits.enforce(Check("login", ip))

    All checks of one call are decided in one step, atomically for all processes, by the clock of Redis; either each
    spends its cost or none. ``redis`` None: this process alone, in memory.

    **Redis away** (down, frozen, full, refusing): each process decides by its share, limit ÷ N, N being the processes
    last seen alive (or ``processes``); what does not divide is rounded down, but never below one unit. The first
    calls to a frozen Redis take ``RedisConfig.command_timeout_s`` each, then its breaker answers. When Redis is back it
    knows nothing of what the shares let in meanwhile, nor they of what was spent before: around each change a key can
    get at most one further allowance.

    ``clock`` replaces the clock of Redis, in tests. ``events``: ``traffic.rule_changed``, ``traffic.rule_restored``,
    ``traffic.key_forgiven``, ``traffic.limits_local`` (from now on by shares), ``traffic.limits_shared``.
    """

    def __init__(
        self,
        redis: Redis | None,
        config: LimitsConfig = LimitsConfig(),  # noqa: B008 (frozen)
        *,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        self.config = config
        self._redis = redis
        self._passed_clock = clock
        self._clock = clock if clock is not None else SystemClock()
        self._events: EventSink = events if events is not None else NoEvents()
        self._changes: Changes[Rule] = Changes(redis, f"{config.key_prefix}:rules", Rule, config.rules, _same_end)
        self._memory = Memory(config.local_keys_max)
        self._held: dict[str, _Held] = {}
        self._id = new_id("limits")
        self._processes = config.processes or 1
        self._shared = redis is not None
        if redis is not None:
            self._decide_script = redis.script(lua.DECIDE)
            self._renew_script = redis.script(lua.RENEW, idempotent=True)
            self._refresh_script = redis.script(lua.REFRESH, idempotent=True)
        self._declare_metrics()
        self._tables: dict[int, dict[str, _Ruled]] = {}
        self._table_of = self._changes.current

    def _declare_metrics(self) -> None:
        self.metrics = Metrics("daydo_traffic")
        checks = self.metrics.counter("limit_checks_total", "Checks, by what their rule said.", ("rule", "outcome"))
        self._fits = {name: checks.cell(name, "fits") for name in self.config.rules}
        self._refuses = {name: checks.cell(name, "refuses") for name in self.config.rules}
        local = self.metrics.counter("limit_local_total", "Requests decided by a share, Redis being away.")
        self._local = local.cell()
        by_share = self.metrics.gauge("limits_local", "1 while Redis is away and shares decide.", merge="max")
        by_share.cell().follow(lambda: float(self._redis is not None and not self._shared))
        processes = self.metrics.gauge("limit_processes", "Processes that share the limits.", merge="max")
        processes.cell().follow(lambda: float(self._processes))
        leases = self.metrics.gauge("limit_leases_held", "Requests under way that hold a lease.")
        leases.cell().follow(lambda: float(len(self._held)))
        keys = self.metrics.gauge("limit_local_keys", "Keys remembered in this process.")
        keys.cell().follow(lambda: float(len(self._memory)))

    # -- asking --------------------------------------------------------------------------------------------------

    async def decide(self, *checks: Check) -> Decision:
        """What all rules together say; a refusal is an answer and no error. Redis away: by shares, see the class.

        Raises:
            RuleUnknown: the configuration does not name the rule.
            ValueError: a cost that never fits, one key asked twice, or a :class:`Concurrent` rule (use :meth:`admit`).
        """
        asked = self._asked(checks)
        for ruled, _, _ in asked:
            if ruled.needs_end:
                raise ValueError("a Concurrent rule needs to know the end: async with limits.admit(…)")
        if self._redis is None:
            return self._decide_here(asked, "", 1)
        return await self._decide(asked, "")

    async def enforce(self, *checks: Check) -> Decision:
        """Like :meth:`decide`, but a refusal raises, and a turn of a :class:`Paced` rule is waited for.

        Raises:
            RateLimited: with ``rule``, ``retry_after_s`` and ``decision``.
        """
        decision = await self.decide(*checks)
        await _go_on(decision)
        return decision

    @asynccontextmanager
    async def admit(self, *checks: Check) -> AsyncIterator[Decision]:
        """Like :meth:`enforce` around a block; leases of :class:`Concurrent` rules are held as long as it lasts.

        Redis away at the end: the lease runs out by itself within ``lease_s``.

        Raises:
            RateLimited, TooManyAtOnce: with ``rule``, ``retry_after_s`` and ``decision``; the block does not run.
        """
        asked = self._asked(checks)
        leased = [one for one in asked if one[0].needs_end]
        lease = new_id("lease") if leased else ""
        try:
            decision = await self._decide(asked, lease)
        except asyncio.CancelledError:
            if leased:  # the answer may have been on its way: nobody else knows of this lease
                self._spawn(self._release_in_redis([key for _, key, _ in leased], lease), "release")
            raise
        if not leased or not decision.admitted:
            await _go_on(decision)
            yield decision
            return
        self._hold(lease, leased, in_redis=self._redis is not None and decision.shared)
        try:
            await _go_on(decision)
            yield decision
        finally:
            held = self._held.pop(lease)
            self._given_back.set()
            await to_the_end(self._release(held))

    def _asked(self, checks: Sequence[Check]) -> list[Asked]:
        self._require_started()
        table = self._table(1)
        asked = []
        for check in checks:
            ruled = table.get(check.rule)
            if ruled is None:
                raise RuleUnknown(rule=check.rule)
            cost = check.cost if check.cost == 1 else self._cost(ruled, check.cost)
            asked.append((ruled, ruled.prefix + _short(check.key), cost))
        if len(asked) > 1 and len({key for _, key, _ in asked}) < len(asked):
            raise ValueError("a rule is asked twice for the same key; ask once, with the sum as its cost")
        return asked

    def _cost(self, ruled: _Ruled, cost: int) -> int:
        """``cost``, or all there is, where a rule was turned down below it at run time: the program is not wrong."""
        configured = plan(self.config.rules[ruled.name]).cost_max
        if not 1 <= cost <= configured:
            raise ValueError(f"{ruled.name} takes a cost of 1 to {configured}, not {cost}")
        return min(cost, ruled.plan.cost_max)

    def _table(self, share: int) -> dict[str, _Ruled]:
        """The rules of this moment, for one of ``share`` processes."""
        current = self._changes.current
        if current is not self._table_of:
            self._tables, self._table_of = {}, current
        table = self._tables.get(share)
        if table is None:
            prefix = self.config.key_prefix
            table = self._tables[share] = {
                name: _Ruled(name, rule, share, prefix, self._fits[name], self._refuses[name])
                for name, rule in current.items()
            }
        return table

    # -- deciding ------------------------------------------------------------------------------------------------

    async def _decide(self, asked: list[Asked], lease: str) -> Decision:
        if self._redis is None or not asked:
            return self._decide_here(asked, lease, 1)
        try:
            answer = await self._decide_script(keys=[key for _, key, _ in asked], args=self._words(asked, lease))
        except RedisError as error:
            self._lose(error)
            self._local.inc()
            return self._decide_here(asked, lease, self._processes)
        if not self._shared:
            self._regain()
        verdicts = [Verdict(answer[at] == 1, answer[at + 1], answer[at + 2]) for at in range(1, len(answer), 3)]
        return _decision(asked, answer[0] == 1, verdicts, shared=True)

    def _words(self, asked: list[Asked], lease: str) -> list[str | int]:
        now_us = self._clock.now_us()
        return [self._now_word(), *[ruled.plan.word(cost, lease, now_us) for ruled, _, cost in asked]]

    def _now_word(self) -> str | int:
        return "" if self._passed_clock is None else self._passed_clock.now_us()

    def _decide_here(self, asked: list[Asked], lease: str, share: int) -> Decision:
        if not asked:
            return Decision(admitted=True)
        if share > 1:
            table = self._table(share)
            asked = [(table[ruled.name], key, cost) for ruled, key, cost in asked]
        now_us = self._clock.now_us()
        if len(asked) == 1:
            ruled, key, cost = asked[0]
            verdict = self._memory.decide_one(ruled.plan, key, cost, lease, now_us)
            return _decision(asked, verdict.fits, [verdict], shared=self._redis is None)
        asks = [(ruled.plan, key, cost) for ruled, key, cost in asked]
        admitted, verdicts = self._memory.decide(asks, lease, now_us)
        return _decision(asked, admitted, verdicts, shared=self._redis is None)

    # -- Redis comes and goes ------------------------------------------------------------------------------------

    def _lose(self, error: RedisError) -> None:
        if self._shared:
            self._shared = False
            log.warning("limits are decided by shares of 1/%s, Redis being away: %s", self._processes, error)
            self._tell("traffic.limits_local", processes=self._processes)

    def _regain(self) -> None:
        self._shared = True
        log.warning("limits are decided for all processes again")
        self._tell("traffic.limits_shared")

    def _tell(self, name: str, **data: Any) -> None:
        self._spawn(self._events.emit(Event(name=name, data=data)), "event")

    # -- leases --------------------------------------------------------------------------------------------------

    def _hold(self, lease: str, leased: list[Asked], *, in_redis: bool) -> None:
        lengths_us = [ruled.plan.lease_us for ruled, _, _ in leased if isinstance(ruled.plan, Leases)]
        renew_at_us = self._clock.now_us() + min(lengths_us) // 3
        self._held[lease] = _Held(lease, [key for _, key, _ in leased], lengths_us, in_redis, renew_at_us)

    async def _release(self, held: _Held) -> None:
        if held.in_redis:
            await self._release_in_redis(held.keys, held.lease)
            return
        for key in held.keys:
            self._memory.release(key, held.lease)

    async def _release_in_redis(self, keys: Sequence[str], lease: str) -> None:
        if self._redis is None:
            return
        for key in keys:
            try:
                await self._redis.call("ZREM", key, lease)
            except RedisError as error:
                log.info("a lease is left to run out: %s", error)

    async def _renew(self) -> None:
        now_us = self._clock.now_us()
        for held in [held for held in self._held.values() if held.renew_at_us <= now_us]:
            held.renew_at_us = now_us + min(held.lengths_us) // 3
            pairs = list(zip(held.keys, held.lengths_us, strict=True))
            if held.in_redis:
                words = [word for _, length_us in pairs for word in (held.lease, length_us)]
                await self._renew_script(keys=held.keys, args=[self._now_word(), *words])
            else:
                for key, length_us in pairs:
                    self._memory.renew(key, held.lease, now_us + length_us)

    # -- rules ---------------------------------------------------------------------------------------------------

    @property
    def rules(self) -> dict[str, Rule]:
        """What holds now, by name: the configuration, and over it what was changed."""
        return dict(self._changes.current)

    async def change(self, name: str, rule: Rule, *, by: str = "", reason: str = "") -> None:
        """Replace a rule in all processes: in this one at once, elsewhere within ``refresh_s``.

        What keys have spent so far goes on to count, unless the rule becomes one of another kind. Without Redis only
        this process changes. Redis away: raises its error, and nothing has changed; except that after
        :class:`daydo_redis.RedisTimeout` it may have happened, and then holds everywhere within ``refresh_s``, without
        an event. Say it again: twice does no more than once. ``by`` is the subject of the event.

        Raises:
            RuleUnknown: the configuration does not name the rule.
            RuleOfAnotherKind: :class:`Concurrent` for one that is not, or the other way round.
        """
        self._require_started()
        configured = self._configured(name)
        if not self._changes.fits(configured, rule):
            raise RuleOfAnotherKind(rule=name)
        await self._changes.put(name, rule)
        data = {"rule": name, "to": msgspec.to_builtins(rule), "reason": reason}
        await self._events.emit(Event(name="traffic.rule_changed", subject=by, data=data))

    async def restore(self, name: str, *, by: str = "", reason: str = "") -> None:
        """Back to the rule of the configuration, as :meth:`change`."""
        self._require_started()
        self._configured(name)
        await self._changes.remove(name)
        await self._events.emit(Event(name="traffic.rule_restored", subject=by, data={"rule": name, "reason": reason}))

    async def forgive(self, name: str, key: str, *, by: str = "", reason: str = "") -> None:
        """Forget what ``key`` has spent of a rule: somebody was locked out by mistake.

        In Redis, and in this process; what others have counted by their shares while Redis was away they keep.
        Redis away: raises its error, and nothing is forgotten, or after :class:`daydo_redis.RedisTimeout` perhaps all.

        Raises:
            RuleUnknown: the configuration does not name the rule.
        """
        self._require_started()
        self._configured(name)
        full = self._table(1)[name].prefix + _short(key)
        if self._redis is not None:
            await self._redis.call("DEL", full)
        self._memory.forget(full)
        data = {"rule": name, "key": key, "reason": reason}
        await self._events.emit(Event(name="traffic.key_forgiven", subject=by, data=data))

    def _configured(self, name: str) -> Rule:
        rule = self.config.rules.get(name)
        if rule is None:
            raise RuleUnknown(rule=name)
        return rule

    # -- life ----------------------------------------------------------------------------------------------------

    async def health(self) -> Health:
        """``degraded`` while Redis is away and shares decide."""
        if not self._running:
            return Health(status="down")
        changed = sum(rule != self.config.rules[name] for name, rule in self._changes.current.items())
        detail: dict[str, str | int | float] = {
            "rules": len(self.config.rules),
            "rules_changed": changed,
            "processes": self._processes,
        }
        if self._redis is None or self._shared:
            return Health(detail=detail)
        return Health(status="degraded", detail={**detail, "decided": f"by shares of 1/{self._processes}"})

    async def _start(self) -> None:
        self._given_back = asyncio.Event()
        if self._redis is not None:
            await self._refresh()
            self._repeat(self.config.refresh_s, self._refresh, "refresh")
        self._repeat(RENEW_S, self._renew, "renew")

    async def _refresh(self) -> None:
        """Say that this process lives, count the others, and take over what was changed."""
        living_us = round(max(LIVING_S, 3 * self.config.refresh_s) * US)
        keys = [f"{self.config.key_prefix}:processes", self._changes.key]
        written = self._changes.written
        try:
            processes, fields = await self._refresh_script(keys=keys, args=[self._now_word(), self._id, living_us])
        except RedisError as error:
            self._lose(error)
            return
        self._processes = self.config.processes or max(1, processes)
        self._changes.read(fields, written)
        if not self._shared:
            self._regain()

    async def _drain(self) -> None:
        while self._held:
            self._given_back.clear()
            await self._given_back.wait()

    async def _close(self) -> None:
        if self._redis is not None and self._shared:
            try:
                await self._redis.call("ZREM", f"{self.config.key_prefix}:processes", self._id)
            except RedisError as error:
                log.info("this process counts for some seconds more: %s", error)


def _same_end(configured: Rule, changed: Rule) -> bool:
    """Where a rule is asked, its end is known or it is not."""
    return isinstance(configured, Concurrent) == isinstance(changed, Concurrent)


async def _go_on(decision: Decision) -> None:
    """Wait for the turn, or raise."""
    if not decision.admitted:
        raise refusal(decision)
    if decision.wait_s > 0:
        await asyncio.sleep(decision.wait_s)


def refusal(decision: Decision) -> LimitExceeded:
    """The error for a decision that did not admit: of the rule that lets in last."""
    pairs = zip(decision.standings, decision.policies, strict=True)
    worst, rule = max((pair for pair in pairs if not pair[0].admitted), key=lambda pair: pair[0].retry_after_s)
    kind = TooManyAtOnce if isinstance(rule, Concurrent) else RateLimited
    error = kind(rule=worst.rule, retry_after_s=math.ceil(decision.retry_after_s * 1_000) / 1_000)
    error.decision = decision
    return error


def _decision(asked: list[Asked], admitted: bool, verdicts: list[Verdict], *, shared: bool) -> Decision:
    standings, policies, wait_us = [], [], 0
    for (ruled, _, cost), verdict in zip(asked, verdicts):  # noqa: B905 (one each, and this runs for every request)
        fits = verdict.fits
        (ruled.fits if fits else ruled.refuses).value += 1.0
        outlook = ruled.plan.outlook(verdict, cost, admitted)
        retry_s = 0.0 if fits else outlook.retry_us / US
        standings.append(Standing(ruled.name, fits, ruled.limit, outlook.remaining, outlook.reset_us / US, retry_s))
        policies.append(ruled.rule)
        if outlook.wait_us > wait_us:
            wait_us = outlook.wait_us
    retry_s = 0.0 if admitted else max([standing.retry_after_s for standing in standings])
    return Decision(admitted, tuple(standings), tuple(policies), retry_s, wait_us / US, shared)


def _short(key: str) -> str:
    """``key``, or its digest: it is whatever a client sends, and in Redis must not be as long as the client likes."""
    if len(key) <= KEY_CHARS_MAX and key.isascii():
        return key
    return "#" + hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest()

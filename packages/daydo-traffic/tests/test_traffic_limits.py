"""The noun: asking, changing rules, leases, and what happens without Redis."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from daydo_kernel import NotStarted, new_id
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_redis import Redis, RedisConfig, RedisError, RedisTimeout, embedded
from daydo_redis.testing import eventually
from daydo_traffic import (
    Bursty,
    Check,
    Concurrent,
    Daily,
    Limits,
    LimitsConfig,
    Paced,
    RateLimited,
    Rule,
    RuleOfAnotherKind,
    RuleUnknown,
    TooManyAtOnce,
    Window,
)
from daydo_traffic.changes import Changes
from daydo_traffic.limits import _Held

NOBODY = "redis://127.0.0.1:1"
CALM = RedisConfig(command_timeout_s=10.0)
RULES: dict[str, Rule] = {
    "ip": Bursty(limit=100, period_s=60),
    "login": Window(limit=5, period_s=60),
    "ai": Concurrent(limit=2),
    "day": Daily(limit=10),
}


def value(limits: Limits, name: str, *labels: str) -> float:
    family = next(family for family in limits.metrics.snapshot() if family.name == f"daydo_traffic_{name}")
    return next(cell.values[0] for cell in family.cells if cell.labels == labels)


# -- asking ------------------------------------------------------------------------------------------------------------


async def test_headers_say_where_one_stands(clock: ManualClock) -> None:
    """RateLimit-Policy and RateLimit as the draft has them, on success too; Retry-After on refusal only."""
    rules = {**RULES, "login": Window(limit=1, period_s=60)}
    async with Limits(None, LimitsConfig(rules=rules), clock=clock) as limits:
        checks = Check("ip", "1.2.3.4"), Check("login", "1.2.3.4")
        admitted = (await limits.decide(*checks)).headers()
        assert admitted == {
            "ratelimit-policy": '"ip";q=100;w=60, "login";q=1;w=60',
            "ratelimit": '"ip";r=99;t=1, "login";r=0;t=60',
        }
        clock.advance(10.5)
        refused = (await limits.decide(*checks)).headers()
        assert refused["ratelimit"] == '"ip";r=100, "login";r=0;t=50'
        assert refused["retry-after"] == "50"


async def test_concurrent_and_daily_have_their_own_policy(clock: ManualClock) -> None:
    """A bound on requests under way has a unit of its own and no window; a day is a window of 86400 s."""
    async with (
        Limits(None, LimitsConfig(rules=RULES), clock=clock) as limits,
        limits.admit(Check("ai", "u"), Check("day", "u")) as decision,
    ):
        policy = '"ai";q=2;qu="concurrent-requests", "day";q=10;w=86400'
        assert decision.headers()["ratelimit-policy"] == policy


async def test_nothing_asked_is_admitted() -> None:
    """No check, no limit, no header."""
    async with Limits(None) as limits:
        decision = await limits.enforce()
        assert decision.admitted
        assert decision.headers() == {}


async def test_wrong_questions_are_refused() -> None:
    """An unknown rule, a cost that never fits, a key asked twice, a lease without an end, a noun not entered."""
    limits = Limits(None, LimitsConfig(rules=RULES))
    with pytest.raises(NotStarted):
        await limits.decide(Check("login", "k"))
    async with limits:
        with pytest.raises(RuleUnknown, match="add it to LimitsConfig"):
            await limits.decide(Check("nix", "k"))
        for cost in (0, -1, 6):
            with pytest.raises(ValueError, match="cost of 1 to 5"):
                await limits.decide(Check("login", "k", cost))
        with pytest.raises(ValueError, match="asked twice"):
            await limits.decide(Check("login", "k"), Check("login", "k"))
        with pytest.raises(ValueError, match=r"limits\.admit"):
            await limits.decide(Check("ai", "k"))


def test_names_are_checked() -> None:
    """A name goes into headers, keys and labels, so it is a plain word."""
    for name in ("", "A", 'a"b', "a b", "x" * 65):
        with pytest.raises(ValueError, match="is no name"):
            LimitsConfig(rules={name: Daily(limit=1)})


async def test_a_turn_is_waited_for() -> None:
    """enforce() returns when the turn has come: three calls at 100 a second take two intervals."""
    async with Limits(None, LimitsConfig(rules={"r": Paced(limit=100, period_s=1, wait_max_s=1)})) as limits:
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(limits.enforce(Check("r", "k")) for _ in range(3)))
        assert asyncio.get_running_loop().time() - began >= 0.019


async def test_checks_are_counted(clock: ManualClock) -> None:
    """Every rule's answers, those that fitted beside one that refused included."""
    rules = {"a": Window(limit=2, period_s=60), "b": Window(limit=1, period_s=60)}
    async with Limits(None, LimitsConfig(rules=rules), clock=clock) as limits:
        for _ in range(3):
            await limits.decide(Check("a", "k"), Check("b", "k"))
        assert value(limits, "limit_checks_total", "a", "fits") == 3
        assert value(limits, "limit_checks_total", "b", "refuses") == 2


async def test_memory_is_bounded(clock: ManualClock) -> None:
    """The key asked longest ago is forgotten, not the one that is asked all the time."""
    config = LimitsConfig(rules={"r": Window(limit=2, period_s=60)}, local_keys_max=100)
    async with Limits(None, config, clock=clock) as limits:
        await limits.decide(Check("r", "busy"))
        for number in range(150):
            await limits.decide(Check("r", f"k{number}"), Check("r", f"l{number}"))
            await limits.decide(Check("r", "busy"))
        assert value(limits, "limit_local_keys") == 100
        assert not (await limits.decide(Check("r", "busy"))).admitted


# -- changing rules ----------------------------------------------------------------------------------------------------


async def test_a_change_reaches_all_processes(redis: Redis) -> None:
    """At once where it is made, within refresh_s elsewhere, and a process that starts later has it too."""
    events = RecordedEvents()
    config = LimitsConfig(rules=RULES, refresh_s=0.02)
    async with Limits(redis, config, events=events) as here, Limits(redis, config) as there:
        tighter = Window(limit=1, period_s=60)
        await here.change("login", tighter, reason="under attack")
        assert here.rules["login"] == tighter
        await eventually(lambda: there.rules["login"] == tighter)
        assert [(await there.decide(Check("login", "k"))).admitted for _ in range(2)] == [True, False]
        async with Limits(redis, config) as later:
            assert later.rules["login"] == tighter
            assert (await later.health()).detail["rules_changed"] == 1
        await there.restore("login")
        await eventually(lambda: here.rules == RULES)
    assert events.events[0].data == {
        "rule": "login",
        "to": {"kind": "window", "limit": 1, "period_s": 60},
        "reason": "under attack",
    }


async def test_spent_units_survive_a_change(redis: Redis, clock: ManualClock) -> None:
    """Whoever has spent 3 of 5 has spent 3 of 4 after the change: it gives nobody a fresh start."""
    rules: dict[str, Rule] = {"b": Bursty(limit=5, period_s=60), "w": Window(limit=5, period_s=60)}
    async with Limits(redis, LimitsConfig(rules=rules), clock=clock) as limits:
        await limits.decide(Check("b", "k", 3), Check("w", "k", 3))
        await limits.change("b", Bursty(limit=4, period_s=7))
        await limits.change("w", Window(limit=4, period_s=90))
        decision = await limits.decide(Check("b", "k"), Check("w", "k"))
        assert [standing.remaining for standing in decision.standings] == [0, 0]


async def test_a_change_that_cannot_be_read_changes_nothing(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """A value of a newer version, or rubbish, leaves the configured rule in force, and is logged once."""
    config = LimitsConfig(rules=RULES, refresh_s=60)
    async with Limits(redis, config) as limits:
        await redis.call("HSET", "{daydo_limits}:rules", "login", b'{"kind":"future"}', "unheard", b"{}")
        for _ in range(3):
            await limits._refresh()
        assert limits.rules == RULES
    assert len([record for record in caplog.records if "cannot be read" in record.message]) == 1


async def test_a_change_of_another_kind_changes_nothing(redis: Redis) -> None:
    """A change outlives a deploy that gives its rule an end, or takes it away: then the configured rule holds."""
    async with Limits(redis, LimitsConfig(rules={"r": Bursty(limit=9, period_s=60), "s": Concurrent(limit=9)})) as old:
        await old.change("r", Bursty(limit=1, period_s=60))
        await old.change("s", Concurrent(limit=1))
    rules: dict[str, Rule] = {"r": Concurrent(limit=2), "s": Window(limit=2, period_s=60)}
    async with Limits(redis, LimitsConfig(rules=rules)) as limits:
        assert limits.rules == rules
        assert [(await limits.decide(Check("s", "k"))).admitted for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("shared", [True, False])
async def test_a_change_beyond_all_numbers_refuses(redis: Redis, shared: bool) -> None:
    """Who has spent a thousand million is far over a limit of one a year, and is told nothing absurd."""
    config = LimitsConfig(rules={"r": Bursty(limit=10**9, period_s=1)})
    async with Limits(redis if shared else None, config, clock=ManualClock()) as limits:
        await limits.decide(Check("r", "k", cost=10**9))
        await limits.change("r", Bursty(limit=1, period_s=31_622_400))
        decision = await limits.decide(Check("r", "k"))
        assert (decision.admitted, decision.standings[0].remaining) == (False, 0)
        assert decision.retry_after_s > 31_622_400


async def test_a_change_without_redis_is_refused() -> None:
    """It raises, and nothing has changed: half of the processes with another rule is what nobody wants."""
    async with Redis(NOBODY) as redis, Limits(redis, LimitsConfig(rules=RULES)) as limits:
        with pytest.raises(RedisError):
            await limits.change("login", Window(limit=1, period_s=1))
        with pytest.raises(RuleUnknown):
            await limits.change("nix", Window(limit=1, period_s=1))
        assert limits.rules == RULES


async def test_without_redis_a_change_is_local() -> None:
    """One process in memory can change its rules as well."""
    async with Limits(None, LimitsConfig(rules=RULES)) as limits:
        await limits.change("login", Window(limit=1, period_s=60))
        assert [(await limits.decide(Check("login", "k"))).admitted for _ in range(2)] == [True, False]


# -- leases ------------------------------------------------------------------------------------------------------------


async def test_leases_end_with_their_block(redis: Redis) -> None:
    """By its end, an error or a cancellation; and the refused hold nothing."""
    async with Limits(redis, LimitsConfig(rules=RULES)) as limits:
        check = Check("ai", "u")

        async def work(forever: bool) -> None:
            async with limits.admit(check):
                if forever:
                    await asyncio.Event().wait()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await work(forever=False)
        tasks = [asyncio.create_task(work(forever=True)) for _ in range(2)]
        await eventually(lambda: value(limits, "limit_leases_held") == 2)
        with pytest.raises(TooManyAtOnce):
            await work(forever=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert value(limits, "limit_leases_held") == 0
        assert await redis.call("EXISTS", "{daydo_limits}:c:ai:u") == 0


async def test_impatience_leaves_no_lease(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is cancelled, and cancelled again while it gives its lease back, has given it back."""
    gate, reached, call = asyncio.Event(), asyncio.Event(), redis.call

    async def held_up(*command: str) -> object:
        reached.set()
        await gate.wait()
        return await call(*command)

    async with Limits(redis, LimitsConfig(rules=RULES)) as limits:

        async def work() -> None:
            async with limits.admit(Check("ai", "u")):
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await eventually(lambda: value(limits, "limit_leases_held") == 1)
        monkeypatch.setattr(redis, "call", held_up)
        task.cancel()
        await reached.wait()
        task.cancel()
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await call("EXISTS", "{daydo_limits}:c:ai:u") == 0


@pytest.mark.parametrize("shared", [True, False])
async def test_leases_are_renewed(redis: Redis, clock: ManualClock, shared: bool) -> None:
    """Work that takes longer than its lease keeps it."""
    source = redis if shared else None
    config = LimitsConfig(rules={"r": Concurrent(limit=1, lease_s=30)})
    async with Limits(source, config, clock=clock) as limits, limits.admit(Check("r", "k")):
        for _ in range(5):
            clock.advance(20)
            await limits._renew()
        with pytest.raises(TooManyAtOnce):
            async with limits.admit(Check("r", "k")):
                raise AssertionError("the lease was lost")


async def test_a_late_renewal_revives_nothing(redis: Redis, clock: ManualClock) -> None:
    """A renewal that was under way when the lease was given back does not bring it back."""
    async with Limits(redis, LimitsConfig(rules={"r": Concurrent(limit=1)}), clock=clock) as limits:
        async with limits.admit(Check("r", "k")):
            (held,) = limits._held.values()
        stale = _Held(held.lease, held.keys, held.lengths_us, held.in_redis, 0)
        limits._held[held.lease] = stale
        await limits._renew()
        del limits._held[held.lease]
        async with limits.admit(Check("r", "k")):
            pass


# -- without Redis -----------------------------------------------------------------------------------------------------


async def test_shares_decide_while_redis_is_away() -> None:
    """Nobody there: each of 4 processes lets in a quarter of the limit, at least one unit, and says so."""
    events = RecordedEvents()
    rules: dict[str, Rule] = {"w": Window(limit=9, period_s=60), "few": Daily(limit=2), "c": Concurrent(limit=8)}
    config = LimitsConfig(rules=rules, processes=4)
    async with Redis(NOBODY) as redis, Limits(redis, config, events=events) as limits:
        decisions = [await limits.decide(Check("w", "k")) for _ in range(4)]
        assert [decision.admitted for decision in decisions] == [True, True, False, False]
        assert not decisions[0].shared
        assert [(await limits.decide(Check("few", "k"))).admitted for _ in range(2)] == [True, False]
        async with limits.admit(Check("c", "k")), limits.admit(Check("c", "k")):
            with pytest.raises(TooManyAtOnce):
                async with limits.admit(Check("c", "k")):
                    raise AssertionError("a third of a quarter of eight")
        async with limits.admit(Check("c", "k")):
            pass
        assert (await limits.health()).status == "degraded"
        assert value(limits, "limits_local") == 1
        await asyncio.sleep(0)
    assert events.names == ["traffic.limits_local"]


async def test_processes_are_counted(redis: Redis) -> None:
    """N is how many Redis has seen alive lately; one that leaves counts no longer."""
    config = LimitsConfig(rules=RULES, refresh_s=0.02)
    async with Limits(redis, config) as first:
        async with Limits(redis, config), Limits(redis, config) as third:
            await eventually(lambda: value(first, "limit_processes") == 3)
            assert (await third.health()).detail["processes"] == 3
        await eventually(lambda: value(first, "limit_processes") == 1)


async def test_redis_freezes_and_comes_back(server: embedded.PrivateRedis) -> None:
    """A frozen Redis costs a bounded time and then none; back again, the shared limits hold where they stood."""
    events = RecordedEvents()
    config = RedisConfig(command_timeout_s=0.2, breaker_open_s=0.1)
    rules = LimitsConfig(rules={"w": Window(limit=4, period_s=600)}, processes=2, refresh_s=60)
    async with Redis(server.url, config) as redis, Limits(redis, rules, events=events) as limits:
        assert [(await limits.decide(Check("w", "k"))).admitted for _ in range(3)] == [True] * 3
        os.kill(server.pid, signal.SIGSTOP)
        try:
            while (await limits.decide(Check("w", "other"))).shared:
                pass
            assert not (await limits.decide(Check("w", "other"), Check("w", "more"))).shared
        finally:
            os.kill(server.pid, signal.SIGCONT)

        async def is_back() -> bool:
            return (await limits.decide(Check("w", "another"))).shared

        await eventually(is_back)
        assert value(limits, "limits_local") == 0
        decisions = [await limits.decide(Check("w", "k")) for _ in range(2)]
        assert [(decision.admitted, decision.shared) for decision in decisions] == [(True, True), (False, True)]
    assert events.names[:2] == ["traffic.limits_local", "traffic.limits_shared"]


async def test_change_that_timed_out_may_have_happened(server: embedded.PrivateRedis) -> None:
    """No answer within the time: an error, the old rule here, no event; what Redis has carried out then holds."""
    events = RecordedEvents()
    strict = Window(limit=1, period_s=60)
    config = LimitsConfig(rules=RULES, refresh_s=0.02)
    async with (
        Redis(server.url, RedisConfig(command_timeout_s=0.1, breaker_open_s=0.05)) as redis,
        Limits(redis, config, events=events) as limits,
    ):
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(RedisTimeout):
                await limits.change("login", strict)
            assert limits.rules["login"] == RULES["login"]
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await eventually(lambda: limits.rules["login"] == strict)
    assert "traffic.rule_changed" not in events.names


async def test_redis_is_flushed(redis: Redis) -> None:
    """What was spent is forgotten, scripts load again, and everything goes on."""
    async with Limits(redis, LimitsConfig(rules=RULES)) as limits:
        for _ in range(2):
            assert [(await limits.decide(Check("login", "k"))).admitted for _ in range(6)] == [True] * 5 + [False]
            await redis.call("FLUSHDB")
            await redis.call("SCRIPT", "FLUSH")


async def test_keys_expire(redis: Redis) -> None:
    """Nothing stays in Redis longer than it says something."""
    rules: dict[str, Rule] = {
        "b": Bursty(limit=1, period_s=0.05),
        "w": Window(limit=1, period_s=0.05),
        "c": Concurrent(limit=1, lease_s=3),
        "d": Daily(limit=1),
    }
    async with Limits(redis, LimitsConfig(rules=rules)) as limits:
        async with limits.admit(*(Check(name, "k") for name in rules)):
            ttls = {name: await redis.call("PTTL", f"{{daydo_limits}}:{name}:{name}:k") for name in ("w", "c", "d")}
            ttls["b"] = await redis.call("PTTL", "{daydo_limits}:g:b:k")
        assert 0 < ttls["b"] <= 52
        assert 0 < ttls["w"] <= 52
        assert 0 < ttls["c"] <= 3_001
        assert 0 < ttls["d"] <= 86_400_001


async def test_leaving_waits_for_leases() -> None:
    """Exit gives work under way drain_s, and then goes."""
    ended = asyncio.Event()

    async def work(limits: Limits) -> None:
        async with limits.admit(Check("ai", "u")):
            ended.set()
            await asyncio.sleep(0.02)

    async with Limits(None, LimitsConfig(rules=RULES)) as limits:
        task = asyncio.create_task(work(limits))
        await ended.wait()
    assert value(limits, "limit_leases_held") == 0
    await task


async def test_calls_of_one_turn_travel_together(redis_url: str) -> None:
    """64 requests of one moment are one packet for Redis, and still exactly the limit is let in."""
    async with Redis(redis_url, CALM) as redis, Limits(redis, LimitsConfig(rules=RULES)) as limits:
        decisions = await asyncio.gather(*(limits.decide(Check("login", "k")) for _ in range(64)))
        assert sum(decision.admitted for decision in decisions) == 5
        merged = next(family for family in redis.metrics.snapshot() if family.name == "daydo_redis_merged_total")
        assert merged.cells[0].values[0] >= 64


async def test_prefixes_keep_services_apart(redis: Redis) -> None:
    """Two services on one Redis share nothing if their prefixes differ."""
    one, two = (LimitsConfig(rules=RULES, key_prefix="{" + new_id("p") + "}") for _ in range(2))
    async with Limits(redis, one) as first, Limits(redis, two) as second:
        for _ in range(5):
            await first.enforce(Check("login", "k"))
        with pytest.raises(RateLimited):
            await first.enforce(Check("login", "k"))
        await second.enforce(Check("login", "k"))


async def test_a_rule_turned_down_below_a_cost_still_lets_it_in(clock: ManualClock) -> None:
    """An administrator's smaller limit makes no error of a program's larger cost: it takes all there is."""
    async with Limits(None, LimitsConfig(rules={"r": Window(limit=10, period_s=60)}), clock=clock) as limits:
        await limits.change("r", Window(limit=2, period_s=60))
        assert (await limits.decide(Check("r", "k", cost=5))).admitted
        assert not (await limits.decide(Check("r", "k"))).admitted


async def test_a_rule_keeps_its_end(redis: Redis) -> None:
    """What is asked without an end cannot become one that needs it, nor the other way round; nothing has changed."""
    rules: dict[str, Rule] = {"plain": Window(limit=1, period_s=60), "held": Concurrent(limit=1)}
    async with Limits(redis, LimitsConfig(rules=rules)) as limits:
        with pytest.raises(RuleOfAnotherKind):
            await limits.change("plain", Concurrent(limit=9))
        with pytest.raises(RuleOfAnotherKind):
            await limits.change("held", Daily(limit=9))
        assert limits.rules == rules


@pytest.mark.parametrize("rule", [Window(limit=1, period_s=60), Bursty(limit=1, period_s=60), Daily(limit=1)])
async def test_a_forgiven_key_starts_afresh(redis: Redis, rule: Rule) -> None:
    """It alone, for all processes and this one."""
    config = LimitsConfig(rules={"r": rule})
    async with Limits(redis, config) as limits, Limits(redis, config) as elsewhere:
        for key in ("a", "b", "长" * 99):
            await limits.enforce(Check("r", key))
        await elsewhere.forgive("r", "长" * 99, reason="an office")
        assert [(await limits.decide(Check("r", key))).admitted for key in ("a", "b", "长" * 99)] == [
            False,
            False,
            True,
        ]
        with pytest.raises(RuleUnknown):
            await limits.forgive("nix", "a")


async def test_a_change_is_not_undone_by_what_was_read_before_it() -> None:
    """An answer of Redis that was asked for before our own write is older than it."""
    changes: Changes[Rule] = Changes(None, "k", Rule, {"r": Window(limit=1, period_s=60)})
    asked = changes.written
    await changes.put("r", Window(limit=2, period_s=60))
    changes.read([], asked)
    assert changes.current["r"].limit == 2
    changes.read([], changes.written)
    assert changes.current["r"].limit == 1


async def test_a_request_that_gives_up_leaves_no_lease(redis: Redis) -> None:
    """Cancelled while Redis answers: the lease that may have been taken is given back, not left for a minute."""
    async with Limits(redis, LimitsConfig(rules={"r": Concurrent(limit=1)})) as limits:

        async def hold() -> None:
            async with limits.admit(Check("r", "k")):
                raise AssertionError("it was cancelled before")

        for _ in range(5):
            task = asyncio.create_task(hold())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        async def is_free() -> bool:
            return int(await redis.call("ZCARD", "{daydo_limits}:c:r:k")) == 0

        await eventually(is_free)
        async with limits.admit(Check("r", "k")):
            pass

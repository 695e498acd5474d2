"""How a :class:`daydo_cache.Cache` and its spaces behave: every bound they keep."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from daydo_kernel import Config

Seconds = Annotated[float, Meta(gt=0, le=600)]
Count = Annotated[int, Meta(ge=1, le=10_000_000)]
LIFE_MAX_S = 2_592_000.0  # 30 days
Life = Annotated[float, Meta(gt=0, le=LIFE_MAX_S)]


class CacheConfig(Config, frozen=True, kw_only=True):
    """What all spaces of a cache share.

    Attributes:
        prefix: what our keys and channels in Redis begin with. Pub/sub knows no databases: give two services on one
            server two prefixes.
        staleness_s: the bound. What was invalidated is not served from memory longer than this, whatever breaks.
        beats: how often within ``staleness_s`` the news of invalidations is proved to arrive.
        start_wait_s: how long entering waits for the first proof; the cache starts without it, too.
        lease_s: after this a process that loaded and died gives way to another. Renewed while a load lasts.
        barrier_ttl_s: how long ``invalidate(tx=)`` keeps values from being stored if its transaction never says that
            it was committed: the longest of your transactions.
        poll_min_s, poll_max_s: pause between two looks for a value that another process loads; a quarter of the time
            waited so far, within these.
        tag_ttl_s: how long the time of a tag's last invalidation is kept; no value may live longer.
        merge_max: keys read in one MGET.
        pending_max: invalidations kept for a Redis that is away; beyond that whole spaces are invalidated instead.
        pending_retry_s: pause between two attempts to deliver them.
        news_max: invalidations remembered to compare with reads under way.
        drain_s: on exit, how long loads and invalidations under way may take.
    """

    prefix: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^{}\s]+$")] = "daydo_cache"
    staleness_s: Annotated[float, Meta(ge=0.1, le=600)] = 2.0
    beats: Annotated[int, Meta(ge=2, le=100)] = 4
    start_wait_s: Seconds = 0.5
    lease_s: Seconds = 3.0
    barrier_ttl_s: Seconds = 10.0
    poll_min_s: Seconds = 0.005
    poll_max_s: Seconds = 0.1
    tag_ttl_s: Annotated[float, Meta(gt=0, le=2 * LIFE_MAX_S)] = 2_678_400.0
    merge_max: Count = 128
    pending_max: Count = 10_000
    pending_retry_s: Seconds = 0.5
    news_max: Count = 10_000
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = 5.0


class Policy(Config, frozen=True, kw_only=True):
    """How one space loads and keeps its values.

    Attributes:
        ttl_s: a value is fresh for this long at most.
        grace_s: for this long after that it is still served, while one process loads it anew or fails to.
        absent_ttl_s: the same as ``ttl_s`` for "there is no such thing"; it has no grace.
        failure_ttl_s: a loader that failed is not asked again for this long, in any process.
        jitter_share: ``ttl_s`` is shortened by up to this share, at random, so that what was stored together does
            not expire together.
        early_factor: values in memory are loaded anew a little before they expire, at random and the earlier the
            longer the load takes: by this factor (XFetch); 0 turns it off.
        soft_timeout_s: who has an old value waits this long for a new one, then takes the old one.
        hard_timeout_s: who has none waits this long, then :class:`daydo_cache.LoadTimeout`; the load goes on.
        load_max_s: longest time of a load, waiting for its slot included; then it is cancelled.
        loads_max: calls of the loader at once in this process; more wait.
        local_entries, local_bytes: bounds of what this process keeps in memory; 0 entries: nothing.
        local_ttl_s: after this a value in memory is compared with Redis, also while the news arrive.
        value_max_bytes: larger values are not stored in Redis, and kept in memory for ``staleness_s`` alone.
        failures_max: failures remembered.
    """

    ttl_s: Life = 300.0
    grace_s: Annotated[float, Meta(ge=0, le=LIFE_MAX_S)] = 0.0
    absent_ttl_s: Life = 30.0
    failure_ttl_s: Annotated[float, Meta(ge=0, le=600)] = 1.0
    jitter_share: Annotated[float, Meta(ge=0, le=1)] = 0.05
    early_factor: Annotated[float, Meta(ge=0, le=10)] = 1.0
    soft_timeout_s: Annotated[float, Meta(ge=0, le=600)] = 0.0
    hard_timeout_s: Seconds = 5.0
    load_max_s: Seconds = 30.0
    loads_max: Annotated[int, Meta(ge=1, le=10_000)] = 64
    local_entries: Annotated[int, Meta(ge=0, le=10_000_000)] = 10_000
    local_bytes: Annotated[int, Meta(ge=0, le=100_000_000_000)] = 64 * 2**20
    local_ttl_s: Seconds = 60.0
    value_max_bytes: Annotated[int, Meta(ge=1, le=100_000_000)] = 262_144
    failures_max: Count = 1_000

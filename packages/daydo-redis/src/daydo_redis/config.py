"""How :class:`daydo_redis.Redis` behaves: every bound it keeps."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from daydo_kernel import Config

Seconds = Annotated[float, Meta(gt=0, le=600)]
Count = Annotated[int, Meta(ge=1, le=100_000)]


class RedisConfig(Config, frozen=True, kw_only=True):
    """The defaults fit a Redis in the same data centre; raise both timeouts for one that is further away (20 ms
    away with TLS and a password a first call takes 100 ms, being five round trips).

    Attributes:
        command_timeout_s: one call, from the moment it has a slot until its answer, connecting included; counted in
            sixteenths, of which the one that has begun already is free.
        subscribe_timeout_s: entering a subscription, connecting included.
        pool_size: calls under way at once, and so connections for them. More calls wait.
        pool_wait_s: how long a call waits for its slot before ``RedisUnavailable``.
        breaker_failures: this many calls in a row without an answer open the breaker.
        breaker_open_s: how long calls are then refused at once, before one probe may go out.
        merge_max: calls made in one turn of the event loop that travel as one packet; 1 sends each alone.
        merge_max_bytes: size of such a packet; a call larger than that goes alone.
        retries: how often a call is tried again that was not carried out, or may be carried out twice. All of it
            within ``command_timeout_s``.
        retry_pause_s: longest pause before the first of them; doubles each time, and its length is random.
        pubsub_queue: messages kept for a subscriber that is behind; older ones are dropped and reported as missed.
        pubsub_ping_s: silence after which the pub/sub connection is asked for a sign of life; as long again
            without one and it counts as lost.
        pubsub_retry_max_s: longest pause between two attempts to reconnect.
        embedded_start_s: time an embedded server has to come up.
        drain_s: on exit, how long calls under way may take.
    """

    command_timeout_s: Seconds = 0.08
    subscribe_timeout_s: Seconds = 0.2
    pool_size: Count = 50
    pool_wait_s: Seconds = 0.5
    breaker_failures: Count = 3
    breaker_open_s: Seconds = 1.0
    merge_max: Count = 128
    merge_max_bytes: Annotated[int, Meta(ge=1, le=100_000_000)] = 262_144
    retries: Annotated[int, Meta(ge=0, le=10)] = 2
    retry_pause_s: Annotated[float, Meta(gt=0, le=60)] = 0.01
    pubsub_queue: Count = 1_000
    pubsub_ping_s: Seconds = 2.0
    pubsub_retry_max_s: Seconds = 1.0
    embedded_start_s: Seconds = 10.0
    drain_s: Seconds = 2.0

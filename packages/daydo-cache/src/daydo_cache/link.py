"""How a process knows that it hears of invalidations: the bound on staleness, and why it holds.

Scripts that invalidate also publish, in the same step. Every process listens, and several times within
``staleness_s`` it publishes a *beat* to itself, over the same subscription. Redis delivers in order: a beat that
arrives proves that everything published before it has arrived. So when the beat that was sent at time s is here, all
invalidations before s are known, and what is in memory may be served until ``s + staleness_s``: whatever it misses is
younger than the bound. No beat, no memory: then values are read from Redis again, or, if that is away as well, only
what was loaded less than ``staleness_s`` ago is served.

After a gap (a connection that was lost and is back, a queue that ran over) :class:`daydo_redis.Redis` says so, and
everything in memory goes.

On a cluster messages take their way from node to node in no order between nodes; there the bound is ``local_ttl_s``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from daydo_kernel import DaydoError
from daydo_redis import Message, Redis, RedisError

from . import scripts
from .config import CacheConfig
from .guard import channel
from .timeline import Timeline

log = logging.getLogger("daydo.cache")

RETRY_S = 0.25
NEVER = float("-inf")


class Link:
    """``hear`` takes the news of others, ``lost`` is told that some may be missing.

    ``vouched_s``: until then (our clock) what is in memory is known to be true enough.
    """

    def __init__(
        self,
        redis: Redis,
        config: CacheConfig,
        timeline: Timeline,
        origin: str,
        hear: Callable[[str], None],
        lost: Callable[[], None],
    ) -> None:
        self._redis = redis
        self._timeline = timeline
        self._hear = hear
        self._lost = lost
        self._news = channel(config)
        self._own = f"{config.prefix}:beat:{origin}"
        self._beat = redis.script(scripts.BEAT, idempotent=True)
        self.staleness_s = config.staleness_s
        self.vouched_s = NEVER
        self.decided = asyncio.Event()

    def vouches(self, since_s: float, now_s: float) -> bool:
        """Whether something that was true at ``since_s`` may still be served."""
        return now_s < self.vouched_s or now_s < since_s + self.staleness_s

    async def listen(self) -> None:
        """Hear the news, for ever."""
        while True:
            try:
                async with self._redis.subscribe(self._news, self._own) as messages:
                    self._lost()  # until now nobody listened
                    await self.beat()
                    async for message in messages:
                        self._take(message)
            except DaydoError as error:
                log.warning("news of invalidations cannot be heard (%s); values in memory are not used", error)
            self.decided.set()
            await asyncio.sleep(RETRY_S)

    async def beat(self) -> None:
        """Say something to ourselves; also tells what time it is at Redis'."""
        asked_s = self._timeline.now_s()
        try:
            redis_us = await self._beat(args=[self._timeline.argument(), self._own, repr(asked_s)])
        except RedisError as error:
            log.debug("no beat: %s", error)
        else:
            self._timeline.heard(redis_us, asked_s)

    def _take(self, message: Message) -> None:
        if message.missed:
            self._lost()
        elif message.channel == self._own:
            self.vouched_s = max(self.vouched_s, float(message.payload) + self.staleness_s)
            self.decided.set()
        else:
            self._hear_news(message.payload)

    def _hear_news(self, payload: bytes) -> None:
        try:
            self._hear(payload.decode())
        except ValueError:
            log.warning("news that cannot be read, of another version or not of a cache at all: memory is cleared")
            self._lost()

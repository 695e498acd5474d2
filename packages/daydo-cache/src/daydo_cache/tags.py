"""When each tag was last invalidated, as far as this process knows.

A tag is a time (see :mod:`.scripts`): a value whose load began later is good. Here the times are kept in memory, under
the same rule as values: news change them, and without news they are good for ``staleness_s``.

A space has a tag of its own, ``*name``, which every value in it carries without saying so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import NamedTuple

from daydo_redis import Redis

from . import scripts
from .config import CacheConfig
from .guard import channel
from .link import Link
from .news import News
from .timeline import Timeline

FOREVER_US = 2**62


class Barrier(NamedTuple):
    """Values loaded until ``us`` (Redis' clock) are no good; known to be so at ``checked_s`` (ours)."""

    us: int
    checked_s: float


class Tags:
    """``told`` is called with a tag that was invalidated. Calls raise :class:`daydo_redis.RedisError`."""

    def __init__(
        self,
        redis: Redis,
        config: CacheConfig,
        timeline: Timeline,
        link: Link,
        origin: str,
        told: Callable[[str], None],
    ) -> None:
        self._redis = redis
        self._timeline = timeline
        self._now_s = timeline.now_s
        self._link = link
        self._origin = origin
        self._told = told
        self._head = f"{config.prefix}:tag:{{"
        self._channel = channel(config)
        self._barrier_us = round(config.barrier_ttl_s * 1e6)
        self._keep_us = round(config.tag_ttl_s * 1e6)
        self._tag = redis.script(scripts.TAG, idempotent=True)
        self._bound = config.news_max
        self._known: dict[str, Barrier] = {}
        self._distrusted: dict[str, int] = {}  # since which of the news
        self._news = News(config.news_max)

    def barrier(self, tags: Iterable[str]) -> int | None:
        """The latest of them, or None if that is not known."""
        latest = 0
        now_s = self._now_s()
        linked = now_s < self._link.vouched_s
        for tag in tags:
            if tag in self._distrusted:
                return FOREVER_US
            known = self._known.get(tag)
            if known is None or not (linked or self._link.vouches(known.checked_s, now_s)):
                return None
            if known.us > latest:
                latest = known.us
        return latest

    async def ask(self, tags: Iterable[str]) -> None:
        """Read them from Redis."""
        await asyncio.gather(*map(self._ask, tags))

    async def invalidate(self, tag: str, *, token: str = "", bar: bool = False) -> None:
        """All values with ``tag`` end. ``bar``: and those loaded from now on, until the same ``token`` comes without
        it."""
        now, barrier_us = self._timeline.argument(), self._barrier_us if bar else 0
        distrusted = self._distrusted.get(tag)
        latest = await self._tag(
            keys=[self._key(tag)], args=[now, token, barrier_us, self._keep_us, self._channel, tag, self._origin]
        )
        if self._distrusted.get(tag) == distrusted:  # another one may have failed meanwhile
            self._distrusted.pop(tag, None)
        # What is known may already be later than this answer; when it becomes earlier again the news say.
        known = self._known.get(tag)
        if known is None or known.us < latest:
            self.hear(tag, latest)

    def hear(self, tag: str, us: int) -> None:
        """News, in the order in which it happened."""
        self._news.note(tag)
        self._learn(tag, us, self._now_s())
        self._told(tag)

    def distrust(self, tag: str) -> None:
        """Take every value with ``tag`` for bad until it was invalidated at Redis', which is away."""
        self._news.note(tag)
        self._distrusted[tag] = self._news.mark
        self._told(tag)

    def forget(self) -> None:
        """News may be missing. What was distrusted remains so."""
        self._news.note_all()
        self._known.clear()

    async def _ask(self, tag: str) -> None:
        mark, asked_s = self._news.mark, self._now_s()
        times = await self._redis.call("HVALS", self._key(tag))
        if self._news.quiet(tag, mark):
            self._learn(tag, max(map(int, times), default=0), asked_s)

    def _learn(self, tag: str, us: int, checked_s: float) -> None:
        if len(self._known) >= self._bound and tag not in self._known:
            self.forget()
        self._known[tag] = Barrier(us, checked_s)

    def _key(self, tag: str) -> str:
        return f"{self._head}{tag}}}"

"""Invalidations that Redis has not taken: kept, and delivered when it is back.

Until then this process does not believe what Redis has under these names. The number is bounded; where one space has
too many, the whole space takes their place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from daydo_kernel import Counter
from daydo_redis import RedisError

from .shelf import own_tag

log = logging.getLogger("daydo.cache")

Deliver = Callable[[], Awaitable[object]]
_AT_ONCE = 64


class Pending:
    """``distrust`` is told of a tag that waits here."""

    def __init__(self, bound: int, distrust: Callable[[str], None]) -> None:
        self._bound = bound
        self._distrust = distrust
        self._keys: dict[tuple[str, str], tuple[Deliver, Deliver, Counter]] = {}
        self._tags: dict[str, tuple[Deliver, Counter]] = {}

    def __len__(self) -> int:
        return len(self._keys) + len(self._tags)

    def covers(self, space: str, key: str) -> bool:
        """Whether Redis may have an old value of ``key``."""
        return (space, key) in self._keys or own_tag(space) in self._tags

    def add_key(self, space: str, key: str, deliver: Deliver, clear: Deliver, counter: Counter) -> None:
        """``clear`` invalidates the whole space instead."""
        self._keys[space, key] = (deliver, clear, counter)
        if len(self._keys) <= self._bound:
            return
        log.error("more than %d invalidations wait for Redis; whole spaces are invalidated instead", self._bound)
        for (each, _), (_, clear_it, its_counter) in list(self._keys.items()):
            self.add_tag(own_tag(each), clear_it, its_counter)
        self._keys.clear()

    def add_tag(self, tag: str, deliver: Deliver, counter: Counter) -> None:
        self._tags[tag] = (deliver, counter)
        self._distrust(tag)

    async def deliver(self) -> None:
        """Try again what waits; stops at the first that fails."""
        try:
            for tag, (deliver, counter) in list(self._tags.items()):
                await deliver()
                self._tags.pop(tag, None)
                counter.inc()
            while self._keys:
                batch = list(self._keys.items())[:_AT_ONCE]
                await asyncio.gather(*(deliver() for _, (deliver, _, _) in batch))
                for name, entry in batch:
                    if self._keys.get(name) is entry:
                        del self._keys[name]
                    entry[2].inc()
        except RedisError as error:
            log.debug("%d invalidations still wait: %s", len(self), error)

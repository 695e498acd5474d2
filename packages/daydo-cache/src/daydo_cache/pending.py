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
        self._spaces: dict[str, tuple[Deliver, Counter]] = {}

    def __len__(self) -> int:
        return len(self._keys) + len(self._tags) + len(self._spaces)

    def covers(self, space: str, key: str) -> bool:
        """Whether Redis may have an old value of ``key``."""
        if not self._keys and not self._tags and not self._spaces:
            return False  # every read asks
        return (space, key) in self._keys or space in self._spaces or own_tag(space) in self._tags

    def add_key(self, space: str, key: str, deliver: Deliver, clear: Deliver, counter: Counter) -> None:
        """``clear`` invalidates the whole space instead."""
        self._keys[space, key] = (deliver, clear, counter)
        if len(self._keys) <= self._bound:
            return
        log.error("more than %d invalidations wait for Redis; whole spaces are invalidated instead", self._bound)
        wholes = {each: (clear_it, its_counter) for (each, _), (_, clear_it, its_counter) in self._keys.items()}
        self._keys.clear()
        for each, entry in wholes.items():
            self._spaces[each] = entry
            self._distrust(own_tag(each))

    def add_tag(self, tag: str, deliver: Deliver, counter: Counter) -> None:
        self._tags[tag] = (deliver, counter)
        self._distrust(tag)

    async def deliver(self) -> None:
        """Try again what waits; stops at the first that fails."""
        try:
            await self._deliver(self._tags)
            await self._deliver(self._spaces)
            while self._keys:
                batch = list(self._keys.items())[:_AT_ONCE]
                await asyncio.gather(*(deliver() for _, (deliver, _, _) in batch))
                for name, entry in batch:
                    if self._keys.get(name) is entry:
                        del self._keys[name]
                    entry[2].inc()
        except RedisError as error:
            log.debug("%d invalidations still wait: %s", len(self), error)

    async def _deliver(self, waiting: dict[str, tuple[Deliver, Counter]]) -> None:
        for name, entry in list(waiting.items()):
            deliver, counter = entry
            await deliver()
            if waiting.get(name) is entry:  # and not a later one, which has failed meanwhile
                del waiting[name]
            counter.inc()

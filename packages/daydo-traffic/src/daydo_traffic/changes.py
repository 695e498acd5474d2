"""What was changed at run time, for all processes: a hash in Redis, one field a name, JSON as the value.

Every process reads it every ``refresh_s``; so a change holds everywhere within that time, and survives restarts as
long as Redis keeps its data. Redis away: what was read last goes on to hold. Redis emptied: the configuration holds
again. Two people who change different names do not disturb each other; of two who change the same one the later wins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from daydo_redis import Redis

log = logging.getLogger("daydo.traffic")

T = TypeVar("T")


class Changes(Generic[T]):
    """Named values of ``type``, over those of the configuration. ``redis`` None: in this process alone.

    ``fits(configured, changed)``: whether the one may stand for the other. A change lives longer than a configuration.
    """

    def __init__(
        self,
        redis: Redis | None,
        key: str,
        type: object,
        configured: dict[str, T],
        fits: Callable[[T, T], bool] = lambda configured, changed: True,
    ) -> None:
        self.key = key
        self.configured = configured
        self.current = dict(configured)
        self.fits = fits
        self._redis = redis
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(type)
        self._refused: dict[str, bytes] = {}  # what was complained of already
        self.written = 0  # by this process: what Redis was asked for before a write of ours is older than the write

    async def put(self, name: str, value: T) -> None:
        """Here at once, elsewhere within ``refresh_s``. Redis away: raises, and nothing has changed here; after a
        time-out Redis may have it, and the next :meth:`read` brings it."""
        if self._redis is not None:
            await self._redis.call("HSET", self.key, name, msgspec.json.encode(value))
        self.written += 1
        self.current = {**self.current, name: value}

    async def remove(self, name: str) -> None:
        """Back to the configuration. Redis away: as :meth:`put`."""
        if self._redis is not None:
            await self._redis.call("HDEL", self.key, name)
        self.written += 1
        self.current = {**self.current, name: self.configured[name]}

    def read(self, fields: Sequence[bytes], written: int) -> None:
        """Take over what Redis holds (name, value, name, value, …), as asked for when ``written`` was read."""
        if written != self.written:
            return  # the next turn knows of it
        current = dict(self.configured)
        for raw, encoded in zip(fields[::2], fields[1::2], strict=True):
            name = raw.decode(errors="replace")
            if name not in current:
                continue  # of another version of the application, which knows more names
            try:
                changed = self._decoder.decode(encoded)
                if not self.fits(self.configured[name], changed):
                    raise ValueError("of a kind that cannot stand for the configured one")
                current[name] = changed
            except (msgspec.MsgspecError, ValueError, UnicodeDecodeError) as error:
                self._complain(name, encoded, error)
        if current != self.current:
            self.current = current

    def _complain(self, name: str, encoded: bytes, error: Exception) -> None:
        if self._refused.get(name) != encoded:
            self._refused[name] = encoded
            log.error("the change of %s in %s cannot be read, the configuration holds: %s", name, self.key, error)

"""What is there of one space, in memory and in Redis, and whether it is good."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Generic, TypeVar

import msgspec

from daydo_redis import RedisError

from .config import Policy
from .guard import Guard
from .link import Link
from .memory import Held, Memory
from .news import News
from .reader import Reader
from .record import DIGITS, Codec, Record
from .tags import Tags
from .timeline import Timeline

T = TypeVar("T")

TagsOf = Callable[[str, T], Iterable[str]]


class Sight(msgspec.Struct, Generic[T], frozen=True):
    """What looking for a value has shown.

    ``held``: a good one, fresh or within its grace. ``seen``: the digits of what is in Redis, good or not. ``away``:
    Redis could not be asked, or not be believed.
    """

    held: Held[T] | None = None
    seen: bytes = b""
    away: bool = False


NOTHING: Sight[Any] = Sight()
AWAY: Sight[Any] = Sight(away=True)


class Shelf(Generic[T]):
    """Memory, Redis and tags of one space, taken together."""

    def __init__(
        self,
        space: str,
        policy: Policy,
        codec: Codec[T],
        memory: Memory[T],
        *,
        guard: Guard,
        reader: Reader,
        tags: Tags,
        tags_of: TagsOf[T] | None,
        link: Link,
        news: News,
        timeline: Timeline,
    ) -> None:
        self.own_tag = own_tag(space)
        self._own_tags = (self.own_tag,)
        self._ttl_s = policy.local_ttl_s
        self._keeps = policy.local_entries > 0
        self._shares = codec.shares
        self._policy = policy
        self._codec = codec
        self._decode = codec.decode
        self._tags_of = tags_of
        self.is_tagged = tags_of is not None
        self._early_factor = policy.early_factor
        self.memory = memory
        self.guard = guard
        self.reader = reader
        self.tags = tags
        self.link = link
        self.news = news
        self.timeline = timeline

    # -- reading -------------------------------------------------------------------------------------------------

    def ask(self, key: str) -> Awaitable[bytes | None]:
        """What Redis has under ``key``, when awaited; do that at once. Raises RedisError."""
        return self.reader.read(self.guard.value_key(key))

    async def look_many(self, keys: list[str]) -> list[Sight[T]]:
        """Read the values of ``keys`` from Redis."""
        mark, asked_s = self.news.mark, self.timeline.now_s()
        try:
            values = await self.reader.read_many([self.guard.value_key(key) for key in keys])
            return [
                NOTHING if raw is None else await self.accept(key, raw, mark, asked_s)
                for key, raw in zip(keys, values, strict=True)
            ]
        except RedisError:
            return [AWAY] * len(keys)

    async def accept(self, key: str, raw: bytes, mark: int, asked_s: float) -> Sight[T]:
        """What Redis had under ``key`` when it was asked at ``asked_s``; kept in memory if it is good.

        Raises:
            RedisError: its tags are not known, and Redis does not say.
        """
        sight = self.judge(key, raw, mark, asked_s)
        if sight is not None:
            return sight
        if not self.timeline.known:
            await self.link.beat()
        await self.tags.ask((self.own_tag, *self._codec.decode(raw[DIGITS:]).tags))
        return self.judge(key, raw, mark, asked_s) or Sight(seen=raw[:DIGITS])

    def judge(self, key: str, raw: bytes, mark: int, asked_s: float) -> Sight[T] | None:
        """As :meth:`accept`, without asking Redis: None if its tags are not known."""
        seen, body = raw[:DIGITS], raw[DIGITS:]
        try:
            loaded_us = int(seen)
            record = self._decode(body)
        except (ValueError, msgspec.DecodeError):
            return Sight(seen=seen)  # not one of ours; a load puts it right
        barrier = self.tags.barrier((self.own_tag, *record.tags) if record.tags else self._own_tags)
        if barrier is None:
            return None
        if loaded_us <= barrier:
            return Sight(seen=seen)
        held = self.hold(record, body, loaded_us, asked_s)
        if asked_s >= held.dead_s:
            return Sight(seen=seen)
        if self._keeps:
            self.keep(key, held, mark)
        return Sight(held, seen)

    # -- making --------------------------------------------------------------------------------------------------

    def record(self, key: str, value: T | None, took_s: float) -> tuple[Record[T], bytes]:
        """A record of ``value``, from now on, and its bytes.

        Raises:
            TypeError: it is not of this space's type.
        """
        policy = self._policy
        life_s = policy.ttl_s if value is not None else policy.absent_ttl_s
        life_s *= 1 - policy.jitter_share * random.random()  # noqa: S311 (spreads load, keeps no secret)
        fresh_us = self.timeline.redis_us(self.timeline.now_s() + life_s)
        dead_us = fresh_us + (round(policy.grace_s * 1e6) if value is not None else 0)
        tags = tuple(self._tags_of(key, value)) if self._tags_of is not None and value is not None else ()
        try:
            body = self._codec.encode(Record(fresh_us, dead_us, took_s, tags, value))
            return self._codec.decode(body), body
        except msgspec.ValidationError as error:
            raise TypeError(
                f"a {type(value).__name__} is not what the space of {self.own_tag[1:]} holds: {error}"
            ) from error

    def hold(self, record: Record[T], body: bytes, loaded_us: int, checked_s: float) -> Held[T]:
        """``record`` in the form in which it is handed out and kept in memory."""
        ahead_us = self.timeline.ahead_us
        soft_s = checked_s + self._ttl_s
        early_s = fresh_s = (record.fresh_us - ahead_us) / 1e6
        if self._early_factor and record.took_s:
            # XFetch (Vattani et al., VLDB 2015), thrown once for each process instead of for each hit.
            early_s += record.took_s * self._early_factor * math.log(1 - random.random())  # noqa: S311
        if early_s < soft_s:
            soft_s = early_s
        shares = self._shares
        return Held(
            record.value if shares else None,
            None if shares else body,
            loaded_us,
            record.tags,
            len(body),
            checked_s,
            soft_s,
            early_s,
            fresh_s,
            (record.dead_us - ahead_us) / 1e6,
        )

    def value(self, held: Held[T]) -> T | None:
        """What a caller gets."""
        return held.value if held.body is None else self._codec.decode(held.body).value

    # -- keeping in memory ---------------------------------------------------------------------------------------

    def keep(self, key: str, held: Held[T], mark: int) -> None:
        """Put ``held`` into memory unless something was heard of it since ``mark``."""
        if not self.news.quiet(key, mark):
            return
        before = self.memory.entries.get(key)
        if before is not None and before.loaded_us == held.loaded_us:
            # The dice were thrown already, and who failed to load it anew shall not try again at once.
            held.early_s = before.early_s
            held.soft_s = max(before.soft_s, min(held.early_s, held.checked_s + self._policy.local_ttl_s))
        self.memory.put(key, held)

    def keep_for_now(self, key: str, held: Held[T], mark: int) -> None:
        """The same for a value that Redis does not have: nobody else would say when it changes."""
        held.soft_s = min(held.soft_s, held.checked_s + self.link.staleness_s)
        held.dead_s = min(held.dead_s, held.soft_s)
        self.keep(key, held, mark)

    def drop(self, key: str) -> None:
        """Forget ``key``, and what is being read of it."""
        self.news.note(key)
        self.memory.drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self.news.note_all()
        self.memory.clear()


def own_tag(space: str) -> str:
    """The tag that every value of ``space`` carries."""
    return f"*{space}"

"""What is there of one space, in memory and in Redis, and whether it is good."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Generic, TypeVar

import msgspec

from daydo_redis import RedisError

from .config import Policy
from .guard import Guard
from .link import Link
from .memory import Held, Memory
from .news import News
from .record import DIGITS, Codec, Record
from .tags import Tags
from .timeline import Timeline

T = TypeVar("T")

TagsOf = Callable[[str, T], Iterable[str]]


class Missing(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Looking for a value has shown no good one.

    ``seen``: the digits of what is in Redis instead. ``away``: Redis could not be asked, or not be believed.
    """

    seen: bytes = b""
    away: bool = False


# What looking for a value has shown: a good one, fresh or within its grace; or none.
Sight = Held[T] | Missing

# Told apart by ``is``: a Missing is equal to itself alone.
NOTHING = Missing()
UNKNOWN = Missing()  # it carries a tag of which is not known when it was invalidated
AWAY = Missing(away=True)


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
        self.tags = tags
        self.link = link
        self.news = news
        self.timeline = timeline

    # -- reading -------------------------------------------------------------------------------------------------

    async def accept(
        self, keys: Collection[str], values: Sequence[bytes | None], mark: int, asked_s: float
    ) -> list[Sight[T]]:
        """What Redis had under ``keys`` when it was asked at ``asked_s``; kept in memory where it is good."""
        sights = self.judge(keys, values, mark, asked_s)
        return await self.judge_again(keys, values, mark, asked_s) if UNKNOWN in sights else sights

    async def judge_again(
        self, keys: Collection[str], values: Sequence[bytes | None], mark: int, asked_s: float
    ) -> list[Sight[T]]:
        """The same when their tags have been asked for; a value with one of which Redis does not say when it was
        invalidated is not taken for good.
        """
        await self._ask_tags([raw for raw in values if raw is not None])
        return [
            Missing((raw or b"")[:DIGITS]) if sight is UNKNOWN else sight
            for raw, sight in zip(values, self.judge(keys, values, mark, asked_s), strict=True)
        ]

    async def _ask_tags(self, raws: list[bytes]) -> None:
        """Ask for the barriers that are not known, of all that ``raws`` carry."""
        if not self.timeline.known:
            await self.link.beat()
        tags = {self.own_tag}
        for raw in raws:
            with contextlib.suppress(msgspec.DecodeError):
                tags.update(self._decode(raw[DIGITS:]).tags)
        await asyncio.gather(*(self._ask_tag(tag) for tag in tags if self.tags.barrier((tag,)) is None))

    async def _ask_tag(self, tag: str) -> None:
        # One by one: what other values carry is none of its business.
        with contextlib.suppress(RedisError):
            await self.tags.ask((tag,))

    def judge(self, keys: Collection[str], values: Sequence[bytes | None], mark: int, asked_s: float) -> list[Sight[T]]:
        """The values as :meth:`accept` takes them, :data:`UNKNOWN` among them."""
        # One loop, and what is the same for all before it: every hit in Redis comes this way.
        own_us, decode, hold = self.tags.barrier(self._own_tags), self._decode, self.hold
        sights: list[Sight[T]] = []
        for key, raw in zip(keys, values, strict=True):
            if raw is None:
                sights.append(NOTHING)
                continue
            seen, body = raw[:DIGITS], raw[DIGITS:]
            try:
                loaded_us = int(seen)
                record = decode(body)
            except (ValueError, msgspec.DecodeError):
                sights.append(Missing(seen))  # not one of ours; a load puts it right
                continue
            barrier_us = own_us if not record.tags else self.tags.barrier((self.own_tag, *record.tags))
            if barrier_us is None:
                sights.append(UNKNOWN)
            elif loaded_us > barrier_us and asked_s < (held := hold(record, body, loaded_us, asked_s)).dead_s:
                if self._keeps:
                    self.keep(key, held, mark)
                sights.append(held)
            else:
                sights.append(Missing(seen))
        return sights

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

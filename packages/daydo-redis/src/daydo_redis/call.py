"""One call: what is asked, and what has become of it."""

from __future__ import annotations

import asyncio
from typing import Any

from .commands import only_reads
from .wire import Argument, pack


class Call:
    """``words`` on their way: settled once, by an answer or by an error.

    ``repeatable``: asking again does no harm, so a lost answer is asked for again. ``key`` is what a cluster goes by.
    ``lua`` is the text behind the hash of an EVALSHA, for a server that does not know it, and ``told`` whether it was
    sent instead. ``waiter`` is there while somebody waits for a call that was merged with others; ``trouble`` is why
    it has not been settled so far. ``place`` and ``asking`` are where a cluster has sent it (MOVED, ASK).

    Raises:
        TypeError: a word is neither text, bytes nor a number.
    """

    # Defaults here, not in __init__: there are many calls, and few of them ever have any of this.
    place: str | None = None
    asking = False
    told = False
    waiter: asyncio.Future[None] | None = None
    trouble: Exception | None = None
    settled = False
    _value: Any = None
    _error: Exception | None = None

    def __init__(
        self,
        *words: Argument,
        key: str | bytes | None = None,
        lua: str | None = None,
        repeatable: bool | None = None,
    ) -> None:
        self.words = words
        self.packed = pack(words)
        self.key = key
        self.lua = lua
        self.repeatable = only_reads(words) if repeatable is None else repeatable

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits any more."""
        return self.waiter is not None and self.waiter.cancelled()

    def fail(self, error: Exception, cause: BaseException | None = None) -> None:
        error.__cause__ = cause
        self._error = error
        self.answer(None)  # Settled; result() raises the error.

    def answer(self, value: Any) -> None:
        self._value = value
        self.settled = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    @property
    def by_text(self) -> bytes:
        """As bytes, an EVALSHA with its text in place of its hash; the server then knows it."""
        return pack(("EVAL", self.lua or "", *self.words[2:]))

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value

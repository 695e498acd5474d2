"""What a library's call owes a transaction that is not its own.

Calls in one take turns, whichever tasks and packages they are of: each is decided on what the one before has written. A
call that fails half-way cannot undo its half, so that transaction can only be rolled back then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from weakref import WeakKeyDictionary

from .tx import Tx

_turns: WeakKeyDictionary[Tx, asyncio.Lock] = WeakKeyDictionary()
_calls: ContextVar[tuple[tuple[Tx, asyncio.Lock], ...]] = ContextVar("daydo_db_calls", default=())
"""Around this task, the innermost first: the transaction of each, and the turns of the calls from within it."""


@asynccontextmanager
async def taking_turns(tx: Tx) -> AsyncIterator[None]:
    """One call at a time in ``tx``. Calls from within it, by an event sink or another library, are part of it, and take
    turns among themselves."""
    around = _calls.get()
    turn = next((within for known, within in around if known is tx), None)
    async with turn or _turns.setdefault(tx, asyncio.Lock()):
        outside = _calls.set(((tx, asyncio.Lock()), *around))
        try:
            yield
        finally:
            _calls.reset(outside)


@contextmanager
def whole(tx: Tx, *, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """What fails in the block, ``but`` in one way, has left half of itself: ``tx`` must not be committed any more."""
    try:
        yield
    except but:
        raise
    except BaseException as error:
        tx.set_rollback_only(error)
        raise

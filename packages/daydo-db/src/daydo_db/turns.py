"""What a library's call owes a transaction that is not its own.

Calls in one take turns, whichever tasks and packages they are of: each is decided on what the one before has written. A
call that fails half-way cannot undo its half, so that transaction can only be rolled back then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from weakref import WeakKeyDictionary

from .tx import Tx

_turns: WeakKeyDictionary[Tx, asyncio.Lock] = WeakKeyDictionary()


class _Call:
    """One that is under way in ``tx``, and the turns of those from within it. Once it has ended it is in none."""

    __slots__ = ("turns", "tx")

    def __init__(self, tx: Tx) -> None:
        self.tx: Tx | None = tx
        self.turns = asyncio.Lock()


_calls: ContextVar[tuple[_Call, ...]] = ContextVar("daydo_db_calls", default=())
"""Around this task, the innermost first. A task that outlives a call still has it here."""


@asynccontextmanager
async def taking_turns(tx: Tx) -> AsyncIterator[None]:
    """One call at a time in ``tx``. Calls from within it, by an event sink or another library, are part of it, and take
    turns among themselves: those of its own task and of the tasks that it starts, and should await. Whoever else calls
    waits for its end, so it must not wait for them."""
    around = tuple(call for call in _calls.get() if call.tx is not None)
    turn = next((call.turns for call in around if call.tx is tx), None)
    async with turn or _turns.setdefault(tx, asyncio.Lock()):
        call = _Call(tx)
        outside = _calls.set((call, *around))
        try:
            yield
        finally:
            call.tx = None
            with suppress(ValueError):  # A generator may be left in another context than it was entered in.
                _calls.reset(outside)


@contextmanager
def whole(tx: Tx, *, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """What fails in the block has left half of itself, and ``tx`` must not be committed any more.

    ``but``: the one error that says that nothing was left.
    """
    try:
        yield
    except but:
        raise
    except BaseException as error:
        tx.set_rollback_only(error)
        raise

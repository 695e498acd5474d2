"""Transactions in which one step of a call fails; the test against what is left half-done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from itertools import count

from daydo_db import Dialect, Result, TransactionAborted, Tx, Value


class FailingTx:
    """``tx``, of which the step number ``at`` ends with ``error``. Steps are its statements, and calls of :meth:`step`.

    An ``Exception`` is raised instead of sending the statement, as a database refuses it; any other, a cancellation,
    after it, as when a caller goes while its answer is on the way.
    """

    def __init__(self, tx: Tx, at: int, error: BaseException) -> None:
        self._tx = tx
        self._steps_left = at
        self._error = error
        self.has_failed = False

    @property
    def dialect(self) -> Dialect:
        return self._tx.dialect

    async def execute(self, sql: str, args: Sequence[Value] = ()) -> Result:
        if isinstance(self._error, Exception):
            self.step()
            return await self._tx.execute(sql, args)
        result = await self._tx.execute(sql, args)
        self.step()
        return result

    async def execute_all(
        self, statements: Sequence[tuple[str, Sequence[Value]]], *, commit_within_s: float | None = None
    ) -> list[Result]:
        """One by one; what is to be committed along is committed by whoever opened ``tx``."""
        return [await self.execute(*statement) for statement in statements]

    def after_commit(self, fn: Callable[[], None]) -> None:
        self._tx.after_commit(fn)

    def set_rollback_only(self, because: BaseException) -> None:
        self._tx.set_rollback_only(because)

    def step(self) -> None:
        """For what is no statement: an event sink that stores in the transaction calls it.

        Raises:
            BaseException: the ``error``, if it is the step that fails.
        """
        self._steps_left -= 1
        if self._steps_left == 0:
            self.has_failed = True
            raise self._error


async def fail_each_step(
    begin: Callable[[], AbstractAsyncContextManager[Tx]],
    call: Callable[[FailingTx], Awaitable[object]],
    error: BaseException,
) -> AsyncIterator[int]:
    """Let ``call`` fail at one step after the other, each in a transaction of its own, bear that and commit.

    Yields the number of each step that failed, when its transaction has ended; then there must be nothing of the call.
    Ends with a call that did not fail, of which all is there:

        async def place(tx):
            await orders.place(order, tx=tx)

        before = await rows_of(db)
        async for step in fail_each_step(db.transaction, place, asyncio.CancelledError()):
            assert await rows_of(db) == before, f"at step {step}"
        assert await rows_of(db) != before
    """
    for at in count(1):
        with suppress(TransactionAborted):
            async with begin() as tx:
                failing = FailingTx(tx, at, error)
                with suppress(type(error)):
                    await call(failing)
        if not failing.has_failed:
            return
        yield at

"""Blocks: ``async with ledger.hold(…)``. A hold is made before them and settled after them, whatever comes between.

Theory
------
The caller's task may be cancelled at any moment, and a hold that nobody settles keeps its units until its timeout. So
what is asked of the database runs in tasks of its own, and the caller only waits for them:

*Reserving* goes on when its caller is cancelled. Only its answer tells whether the hold was made, and by this call; if
so it is cancelled, before the cancellation goes on.

*Settling* goes on, too. A caller that is cancelled once waits for its end; one that is cancelled again does not, and
then leaving the ledger does. Errors that no caller is left to hear of are logged.

*Leaving* the ledger does not cancel those tasks. It ends them: the batcher answers all whom it no longer serves, and
only it knows of whom something was written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from daydo_db import CommitUnknown, DbError
from daydo_kernel import new_id

from . import arguments
from .errors import AccountBusy, HoldCancelled, HoldConfirmed, HoldExpired, LedgerLeft, QueueFull
from .model import Hold, Overage, Policy
from .ops import Cancel, Capture, Confirm, Extend
from .rows import AccountKey

if TYPE_CHECKING:
    from .ledger import Ledger

log = logging.getLogger("daydo.quota")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


class OpenHold:
    """What ``async with ledger.hold(…) as work`` gives; ``work.hold`` is as it was when the block began."""

    def __init__(self, ledger: Ledger, hold: Hold) -> None:
        self._ledger = ledger
        self._charge: int | None = None
        self.hold = hold

    @property
    def charge(self) -> int | None:
        """Set it to charge less than what is left at the end (None: all of it).

        Raises:
            BadAmount: it is set to what is no number of units, here and not after the work.
        """
        return self._charge

    @charge.setter
    def charge(self, amount: int | None) -> None:
        self._charge = None if amount is None else arguments.check_amount(amount, field="charge", least=0)

    async def capture(self, amount: int, *, key: str, reason: str = "") -> Hold:
        """:meth:`Ledger.capture` of this hold: charged also if the block fails later."""
        op = Capture(
            id=new_id("capture"),
            account=_owner(self),
            key=arguments.check_key(key),
            hold_key=self.hold.key,
            amount=arguments.check_amount(amount),
            reason=arguments.check_reason(reason),
        )
        hold: Hold = await self._ledger._do(op, None)  # also while the ledger drains
        return hold

    async def extend(self, ttl_s: float) -> Hold:
        """:meth:`Ledger.extend` of this hold."""
        op = Extend(account=_owner(self), key=self.hold.key, ttl_us=self._ledger._ttl_us(ttl_s))
        hold: Hold = await self._ledger._do(op, None)
        return hold


class Terms(NamedTuple):
    """On which a block is settled."""

    overage: Overage
    late: Policy
    reason: str

    def confirm(self, work: OpenHold) -> Confirm:
        return Confirm(
            account=_owner(work),
            key=work.hold.key,
            amount=work.charge,
            reason=self.reason,
            overage=self.overage,
            late=self.late,
        )

    def cancel(self, work: OpenHold) -> Cancel:
        return Cancel(id=new_id("hold"), account=_owner(work), key=work.hold.key, reason=self.reason)


class _Unsettled(NamedTuple):
    key: str
    error: Exception


T = TypeVar("T")
_Reserve = Callable[[], Awaitable[list[Hold]]]
_Settlement = Callable[[OpenHold], Confirm | Cancel]


class Blocks:
    """A ledger's open blocks, those that begin and those that are still being settled included."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._open = 0
        self._none_open = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Anew: an Event belongs to the first loop that waited for it, and this may be another."""
        self._none_open = asyncio.Event()
        if not self._open:
            self._none_open.set()

    async def ended(self) -> None:
        """Wait until none is open."""
        await self._none_open.wait()

    async def answered(self) -> None:
        """Wait for those who asked the batcher, which has been left."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    @asynccontextmanager
    async def around(self, reserve: _Reserve, terms: Terms) -> AsyncIterator[list[OpenHold]]:
        """Confirm what ``reserve`` makes when the block ends, cancel it when it raises."""
        self._enter()
        try:
            works = await self._reserved(reserve, terms)
            for work in works:
                _require_open(work.hold)
            try:
                yield works
            except BaseException:
                _log_unsettled(await self._to_the_end(self._cancel(works, terms)))
                raise
            failures = await self._to_the_end(self._settle(works, terms.confirm))
            _log_unsettled(failures[1:])
            for failure in failures[:1]:
                raise failure.error
        finally:
            self._leave()

    async def _reserved(self, reserve: _Reserve, terms: Terms) -> list[OpenHold]:
        self._ledger.db.require_outside()  # Asked of our task; the one that reserves has no transaction.
        making = self._begin(self._make(reserve))
        try:
            made = await asyncio.shield(making)
        except asyncio.CancelledError:
            await self._to_the_end(self._give_back(making, terms))
            raise
        if isinstance(made, Exception):
            raise made
        return made

    async def _make(self, reserve: _Reserve) -> list[OpenHold] | Exception:
        """Errors are returned, for the task that raises them is the caller's."""
        try:
            return [OpenHold(self._ledger, hold) for hold in await reserve()]
        except Exception as error:
            return error

    async def _give_back(self, making: asyncio.Task[list[OpenHold] | Exception], terms: Terms) -> list[_Unsettled]:
        made = await making
        return [] if isinstance(made, Exception) else await self._cancel(made, terms)

    async def _cancel(self, works: Sequence[OpenHold], terms: Terms) -> list[_Unsettled]:
        """Those that are ours: another block under the same key may have made them."""
        return await self._settle([work for work in works if work.hold.created], terms.cancel)

    async def _to_the_end(self, settling: Coroutine[Any, Any, list[_Unsettled]]) -> list[_Unsettled]:
        """Settle although our task is cancelled; the cancellation goes on afterwards. Returns what went wrong."""
        self._enter()  # It may outlive the block, if our task is cancelled twice; then leaving waits for it.
        task = self._begin(settling)
        task.add_done_callback(lambda _: self._leave())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_unheard)
            await asyncio.wait([task])
            raise

    async def _settle(self, works: Sequence[OpenHold], settlement: _Settlement) -> list[_Unsettled]:
        asked = (self._patiently(settlement(work)) for work in works)
        errors = await asyncio.gather(*asked, return_exceptions=True)
        return [
            _Unsettled(work.hold.key, error)
            for work, error in zip(works, errors, strict=True)
            if isinstance(error, Exception)
        ]

    async def _patiently(self, op: Confirm | Cancel) -> None:
        """Ask again for ``settle_timeout_s``: a moment without the account must not decide whether work is charged."""
        now_s = asyncio.get_running_loop().time
        until_s, pause_s = now_s() + self._ledger.config.settle_timeout_s, _FIRST_PAUSE_S
        in_doubt: CommitUnknown | None = None
        while True:
            try:
                await self._ledger._do(op, None)
                return
            except (AccountBusy, QueueFull, LedgerLeft, DbError) as error:
                in_doubt = error if isinstance(error, CommitUnknown) else in_doubt
                # The key makes the repeat safe.
                again = isinstance(error, CommitUnknown) or (error.retryable and not isinstance(error, LedgerLeft))
                if not again or now_s() + pause_s > until_s:
                    raise (in_doubt or error) from error.__cause__
            await self._ledger._batcher.left_within(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _enter(self) -> None:
        self._open += 1
        self._none_open.clear()

    def _leave(self) -> None:
        self._open -= 1
        if not self._open:
            self._none_open.set()


def _owner(work: OpenHold) -> AccountKey:
    return work.hold.tenant, work.hold.subject, work.hold.unit


def _require_open(hold: Hold) -> None:
    if hold.phase == "confirmed":
        raise HoldConfirmed(key=hold.key, hold_id=hold.id, captured=hold.captured)
    if hold.phase == "expired":
        raise HoldExpired(key=hold.key, hold_id=hold.id, expired_at_us=hold.expires_at_us)
    if hold.phase != "open":
        raise HoldCancelled(key=hold.key, hold_id=hold.id)


def _log_unheard(task: asyncio.Task[list[_Unsettled]]) -> None:
    """Of a task that nobody awaits any more."""
    if not task.cancelled() and task.exception() is None:
        _log_unsettled(task.result())


def _log_unsettled(failures: Iterable[_Unsettled]) -> None:
    for key, error in failures:
        if isinstance(error, HoldConfirmed):
            log.warning("hold %s was confirmed although its block failed", key)
        else:
            log.error("hold %s could not be settled; it will time out", key, exc_info=error)

"""Group commit: whatever calls are waiting are written together, in one transaction.

Theory
------
A call puts its operation into a *line* and waits for its answer. There is no timer: a batch is what came while the one
before was being written. A call alone is written at once, and many at once share one COMMIT.

The *main* line has more than one writer, so that one batch is decided here while the server carries out another.

*Drafts.* A batch of the main line is first decided without asking the database, where that can be, and written in one
packet (``draft.py``). If that was not right nothing is kept, and its calls come again in front, to be *read* and
decided anew.

*Behind one another.* A draft is decided on what those before it will leave, and sent behind them on their connection,
before they are answered: so the server goes from one to the next. If one fails so do those on its accounts behind it.
Each writer takes its share of the calls. One that is not answered soon, for a key that somebody is claiming or a disk
that is stuck, is given up, for others wait along.

*Side by side.* Where COMMIT takes long, batches have connections of their own, for then a server syncs their COMMITs
together. So do those that are read. None of them is on an account that another batch has: so batches of this process
never wait for one another's accounts. Each writer takes its share of the accounts; calls on one busy account are one
batch after the other.

*Order.* An account's calls are decided in the order in which they came, as long as nothing fails. What is written again
after a lost connection, a deadlock or a key that was claimed elsewhere may come behind what was asked after it.

*Somebody else's lock.* A batch locks its accounts without waiting. An account that another transaction has (a caller's
with ``tx=``, another process's) gets a *lane*, a line of its own that does wait; its calls queue there, in their order,
until the lane is empty. A call on several accounts waits in the lane of one, and those on the others do not wait for
it. So an open transaction stalls its own account alone. A call that has waited ``busy_timeout_s`` raises
:class:`AccountBusy`. New accounts share one lane: making a row may wait for another who makes the same. The main line
waits for nothing but what no look can tell, a key that somebody is claiming at the same time, and that for
``busy_timeout_s`` at most: then its calls, too, go on in lanes. (COMMIT was on its way with them, so whoever gives up
there is told ``CommitUnknown``.)

*Failures.* A call is answered by its transaction's ``after_commit``, hence exactly if it is committed. What the server
has undone (a deadlock, a lost connection) is written again. So is what may or may not be kept (``CommitUnknown``): the
keys make the repeat safe. After any other error the batch is halved and each half written by itself, in order, until
the error has only its own operation left: nobody fails for another's sake.

*Leaving* the ledger cancels what writes. A transaction whose COMMIT is on its way ends all the same, and answers its
calls; all others are answered ``LedgerLeft``, and those of a COMMIT that does not end ``CommitUnknown``.

*Callers that go.* A cancelled caller's call is taken out while it waits; once its batch is being written it is written
with it, and nobody hears the answer.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Container, Coroutine, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count, islice
from operator import attrgetter
from typing import Any, NamedTuple

from daydo_db import (
    CommitUnknown,
    ConnectionLost,
    Database,
    Deadlock,
    LockTimeout,
    Pipelined,
    PoolTimeout,
    QueryTimeout,
    StorageFull,
    Tx,
    UniqueViolation,
)

from .draft import Overtaken
from .errors import AccountBusy, LedgerLeft, QueueFull
from .ops import Op, accounts_of
from .rows import AccountKey, Outcome

# The database's trouble, not an operation's: halving the batch would only double it.
_EVERYBODYS = (ConnectionLost, Deadlock, LockTimeout, PoolTimeout, StorageFull)


# Two batches of so few accounts, or calls, cost more than one.
_LEAST_SHARE = 8
_LEAST_CALLS = 16
# Whose time is over when its turn comes still gets an account that is free by then.
_LEAST_S = 0.05
_SHARED_PATIENCE = 0.25


class Blocked(Exception):
    """Another transaction has what this one needs."""


class Written(NamedTuple):
    """``outcomes`` of the operations in their order, None for those that touch ``held`` or ``missing`` accounts."""

    outcomes: list[Outcome | None]
    held: set[AccountKey]
    missing: set[AccountKey]


Tell = Callable[[Sequence[Outcome | None]], None]
"""Takes the outcomes, as in :class:`Written`, once they are committed."""

WriteDraft = Callable[[Tx, float, Tell], Awaitable[None]]
"""Write what is decided already, in a transaction, within so many seconds. What is to be told is registered first.

Raises:
    Overtaken: it was decided wrongly; nothing was changed.
    CommitUnknown: as of ``Write``.
"""

Decide = Callable[[Sequence[Op]], WriteDraft | None]
"""Operations, without asking the database; None where that cannot be."""

Write = Callable[[Sequence[Op], Tx, float, bool, Tell], Awaitable[Written]]
"""Decide operations and write them in a transaction. Wait so many seconds at most for what others have locked; for
their accounts only if the next says so, else these are left out and the transaction is committed at once. What is to be
told is registered before anything is written: whoever is cancelled meanwhile is told by the commit alone.

Raises:
    LockTimeout: something that others have locked was not had.
    CommitUnknown: caused by QueryTimeout, it took too long, perhaps for the same reason.
"""

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class Bounds(NamedTuple):
    """``writers`` of the main line, ``lanes`` waited in at a time, ``batch`` calls in a transaction, ``queue`` calls in
    all."""

    writers: int
    lanes: int
    batch: int
    queue: int
    retries: int
    busy_timeout_s: float


class _Call:
    """An operation, and the caller who waits for its answer. ``number`` is its place among all; ``read``: it is not to
    be drafted."""

    __slots__ = ("accounts", "answer", "in_doubt", "number", "op", "read", "waits_since_s")

    def __init__(self, op: Op, number: int, *, read: bool = False) -> None:
        self.op = op
        self.number = number
        self.read = read
        self.accounts = accounts_of(op)
        self.answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.in_doubt = False  # It may have been committed.
        self.waits_since_s = math.inf  # In a lane, on the loop's clock.

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(CommitUnknown() if self.in_doubt else error)


class _Batch(NamedTuple):
    """``behind``: it is sent behind those of the line that are ``behind``, too, and may be on accounts of theirs."""

    calls: list[_Call]
    accounts: set[AccountKey]
    behind: bool


class _Line:
    """Calls in their order. ``patient``: its batches wait for accounts; ``shared``: it is of several accounts.

    ``at_work`` of its ``writers`` are, on the batches ``under_way``.
    """

    __slots__ = ("at_work", "calls", "name", "patient", "shared", "under_way", "writers")

    def __init__(self, name: str, *, patient: bool, shared: bool, writers: int = 1) -> None:
        self.name, self.patient, self.shared, self.writers = name, patient, shared, writers
        self.calls: deque[_Call] = deque()
        self.at_work = 0
        self.under_way: list[_Batch] = []

    def is_free(self, call: _Call, *, behind: bool) -> bool:
        """Whether a batch could be on its accounts now."""
        others = [batch.accounts for batch in self.under_way if not (behind and batch.behind)]
        return all([accounts.isdisjoint(call.accounts) for accounts in others])  # noqa: C419 - half the time

    def take(self, most: int, *, behind: bool = False) -> _Batch:
        """A writer's next batch: its share, all of it to be drafted or all to be read."""
        enough = most * self.writers  # Beyond these a share is as large as a batch may be.
        read = self._reads_next(enough, behind=behind)
        behind = behind and not read
        under_way = set[AccountKey]().union(*[batch.accounts for batch in self.under_way])
        if behind:
            most, share = min(most, max(_LEAST_CALLS, self._share_of_calls())), enough
        else:
            asked = _accounts_in(islice(self.calls, enough))
            share = max(_LEAST_SHARE, math.ceil(len(asked | under_way) / self.writers))
        mine, others = set[AccountKey](), set[AccountKey]()
        batch, left = list[_Call](), list[_Call]()
        while self.calls and len(batch) < most and len(batch) + len(left) < enough:
            call = self.calls.popleft()
            if call.answer.done():
                continue
            room = call.read == read and (len(mine) < share or mine.issuperset(call.accounts))
            free = under_way.isdisjoint(call.accounts) or self.is_free(call, behind=behind)
            if room and free and others.isdisjoint(call.accounts):
                batch.append(call)
                mine.update(call.accounts)
            else:
                left.append(call)
                others.update(call.accounts)  # What is asked about them later must not come before this.
        self.calls.extendleft(reversed(left))
        return _Batch(batch, mine, behind)

    def _reads_next(self, enough: int, *, behind: bool) -> bool:
        """Whether the first call that can be taken is one to be read."""
        for call in islice(self.calls, enough):
            if not call.answer.done() and self.is_free(call, behind=behind and not call.read):
                return call.read
        return False

    def _share_of_calls(self) -> int:
        calls = len(self.calls) + sum([len(batch.calls) for batch in self.under_way])
        return math.ceil(calls / self.writers)

    def add(self, *calls: _Call) -> None:
        """Behind those that were asked before; they may have been taken already, and come again."""
        late = bool(self.calls) and calls[0].number < self.calls[-1].number
        self.calls.extend(calls)
        if late:
            self.calls = deque(sorted(self.calls, key=attrgetter("number")))


class Batcher:
    """Writes the operations of many callers together, from one entering of the ledger to its leaving."""

    def __init__(
        self,
        db: Database,
        may_draft: Callable[[Op], bool],
        decide: Decide,
        write: Write,
        spawn: Spawn,
        bounds: Bounds,
        behind: Pipelined | None,
    ) -> None:
        """``may_draft``: whether all is remembered that ``decide`` needs. Drafts are sent ``behind`` one another there
        (None: never)."""
        self._db = db
        self._behind = behind
        self._numbers = count()
        self._may_draft = may_draft
        self._decide = decide
        self._write = write
        self._spawn = spawn
        self._bounds = bounds
        # SQLite has one writer and no locks on rows: whoever is in a transaction has every account.
        writers = bounds.writers if db.dialect.skip_locked else 1
        self._main = _Line("flush", patient=False, shared=True, writers=writers)
        self._newcomers = _Line("newcomers", patient=True, shared=True)
        self._lanes: dict[AccountKey, _Line] = {}
        self._turns = asyncio.Semaphore(bounds.lanes)
        self._calls: set[_Call] = set()
        self._under_way: set[_Call] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._left = asyncio.Event()

    async def ask(self, op: Op) -> Outcome:
        """The outcome of ``op``, once it is committed.

        Raises:
            InsideTransaction: the task has a transaction open on this database.
            AccountBusy, QueueFull, LedgerLeft: nothing was changed.
            DbError: as :meth:`daydo_db.Database.run`.
        """
        self._db.require_outside()
        if self._left.is_set():
            raise LedgerLeft()
        if len(self._calls) >= self._bounds.queue:
            raise QueueFull(size=self._bounds.queue)
        # Those that must be read do not take others along.
        call = _Call(op, next(self._numbers), read=not self._may_draft(op))
        self._calls.add(call)
        self._idle.clear()
        try:
            self._append(self._line_of(call), call)
            return await call.answer
        finally:
            self._calls.discard(call)
            if not self._calls:
                self._idle.set()

    async def drained(self) -> None:
        """Wait until nobody waits for an answer."""
        await self._idle.wait()

    async def left_within(self, seconds: float) -> None:
        """Wait until the ledger is left, or so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._left.wait()

    def leave(self) -> None:
        """Answer those who still wait; whatever worked for them has been stopped, or does not let itself be."""
        self._refuse()
        for call in self._under_way:
            call.fail(CommitUnknown())

    def _refuse(self, work: asyncio.Task[None] | None = None) -> None:
        """Of a ``work`` that is cancelled: the ledger is being left, and those wait in vain of whom nothing is written.

        Whom a transaction is under way for, that one answers.
        """
        if work is not None and not work.cancelled():
            return
        self._left.set()
        for call in self._calls - self._under_way:
            call.fail(LedgerLeft())

    # Lines

    def _line_of(self, call: _Call) -> _Line:
        for account in call.accounts:
            if (lane := self._lanes.get(account)) is not None:
                return lane
        return self._main

    def _append(self, line: _Line, call: _Call) -> None:
        if line.patient and call.waits_since_s == math.inf:
            call.waits_since_s = _now_s()
        line.add(call)
        if not line.at_work or (line.at_work < line.writers and line.is_free(call, behind=self._go_behind(line))):
            line.at_work += 1
            self._spawn(self._work(line), line.name).add_done_callback(self._refuse)

    def _go_behind(self, line: _Line) -> bool:
        return line is self._main and self._behind is not None and self._behind.pays

    async def _work(self, line: _Line) -> None:
        try:
            if line.shared:
                await self._work_off(line)
            else:
                await self._work_in_turns(line)
        finally:
            line.at_work -= 1
            self._close(line)

    async def _work_in_turns(self, lane: _Line) -> None:
        """A batch each turn: a lane that never gets its account must not keep the others from theirs."""
        async with self._turns:
            for call in lane.calls:  # Waiting for the first turn is not waiting for the account.
                call.waits_since_s = _now_s()
            await self._settle(lane.take(self._bounds.batch), lane)
        while lane.calls:
            async with self._turns:
                await self._settle(lane.take(self._bounds.batch), lane)

    async def _work_off(self, line: _Line) -> None:
        while (batch := line.take(self._bounds.batch, behind=self._go_behind(line))).calls:
            line.under_way.append(batch)
            try:
                await self._settle(batch, line)
            finally:
                line.under_way.remove(batch)
            if line.patient:
                # They are no longer new: what is asked next about those of whom nobody waits here need not come here.
                self._close(line, batch.accounts - _accounts_in(line.calls))
            # Those who were just answered ask their next question now; a batch later they would make two of half size.
            await asyncio.sleep(0)

    def _close(self, lane: _Line, accounts: Container[AccountKey] | None = None) -> None:
        """``lane`` is no longer that of ``accounts`` (None: of any)."""
        for account in [account for account, line in self._lanes.items() if line is lane]:
            if accounts is None or account in accounts:
                del self._lanes[account]

    def _move(
        self, calls: Iterable[_Call], accounts: set[AccountKey], source: _Line, lane: _Line | None = None
    ) -> None:
        """From ``source`` to the lanes of ``accounts`` (or to ``lane``), and behind them those that came later."""
        moved = set[AccountKey]()
        for call in calls:
            account = next(account for account in call.accounts if account in accounts)
            self._lanes.setdefault(account, lane or _Line("lane", patient=True, shared=False))
            self._enter_lane(call, self._lanes[account])
            moved.add(account)
        for line in {source, self._main} if moved else ():
            later = list(line.calls)
            line.calls.clear()
            for call in later:
                if moved.isdisjoint(call.accounts):
                    line.calls.append(call)
                else:
                    self._enter_lane(call, self._line_of(call))

    def _put_back(self, calls: Iterable[_Call]) -> None:
        """Of the main line, to be read next; those whose account has got a lane meanwhile wait there."""
        again = []
        for call in calls:
            call.read = True
            if (line := self._line_of(call)) is self._main:
                again.append(call)
            else:
                self._enter_lane(call, line)
        if again:
            self._main.add(*again)

    def _enter_lane(self, call: _Call, lane: _Line) -> None:
        call.waits_since_s = _now_s()
        self._append(lane, call)

    # Batches

    async def _settle(self, batch: _Batch, line: _Line) -> None:
        """Answer every call of ``batch``, see it into a lane, or put it back to be read."""
        parts = deque([batch.calls])
        while parts:
            calls = [call for call in parts.popleft() if not call.answer.done()]
            reads = line.patient or any(call.read for call in calls)
            if not calls:
                continue
            self._under_way.update(calls)
            try:
                await (self._commit(calls, line) if reads else self._commit_draft(calls, line, behind=batch.behind))
            except Overtaken:
                self._put_back(calls)
            except Blocked:
                self._wait_on(calls, line)
            except _EVERYBODYS as error:
                for call in calls:
                    call.fail(error)
            except Exception as error:
                if len(calls) == 1:
                    calls[0].fail(error)
                else:
                    half = len(calls) // 2
                    parts.extendleft((calls[half:], calls[:half]))
            finally:
                self._under_way.difference_update(calls)

    async def _commit(self, calls: list[_Call], line: _Line) -> None:
        repeats_left, claims_left = self._bounds.retries, self._bounds.retries + 1
        while calls := [call for call in calls if not call.answer.done()]:
            try:
                write = partial(self._write_in, calls, line)
                written = await self._db.run(write, retries=self._bounds.retries)
            except CommitUnknown as error:
                _doubt(calls, error, line)
                if not repeats_left:
                    raise
                repeats_left -= 1
            except UniqueViolation:
                # Another transaction took a key since it was looked up. Now the key will be found.
                if not claims_left:
                    raise
                claims_left -= 1
            else:
                self._see_into_lanes(calls, line, written)
                return

    async def _commit_draft(self, calls: list[_Call], line: _Line, *, behind: bool) -> None:
        """Decide them without asking, and write that.

        Raises:
            Overtaken: that could not be, or did not come true.
        """
        patience_s, tell = self._patience_s(calls, line, behind=behind), partial(_tell, calls)

        async def write(tx: Tx) -> None:
            # Not before there is a connection: whoever gets one first is first, and what follows is decided on that.
            draft = self._decide([call.op for call in calls])
            if draft is None:
                raise Overtaken
            await draft(tx, patience_s, tell)

        try:
            others = self._behind if behind else None
            await self._db.run(write, retries=self._bounds.retries, behind=others)
        except CommitUnknown as error:
            _doubt(calls, error, line)
            raise Overtaken from error

    async def _write_in(self, calls: list[_Call], line: _Line, tx: Tx) -> Written:
        ops, patience_s = [call.op for call in calls], self._patience_s(calls, line)
        try:
            return await self._write(ops, tx, patience_s, line.patient, partial(_tell, calls))
        except LockTimeout as error:
            raise Blocked from error

    def _see_into_lanes(self, calls: list[_Call], line: _Line, written: Written) -> None:
        if not written.held and not written.missing:
            return
        left = [call for call, outcome in zip(calls, written.outcomes, strict=True) if outcome is None]
        held = [call for call in left if any(account in written.held for account in call.accounts)]
        self._move(held, written.held, line)
        newcomers = [call for call in left if written.held.isdisjoint(call.accounts)]
        self._move(newcomers, written.missing, line, self._newcomers)

    def _wait_on(self, calls: list[_Call], line: _Line) -> None:
        """Their transaction was blocked: in a lane of their own they go on waiting, in front, or give up."""
        if line.shared:
            accounts = _accounts_in(calls)
            self._close(line, accounts)
            self._move(calls, accounts, line)
            return
        patient = []
        for call in calls:
            waited_s = _now_s() - call.waits_since_s
            if waited_s < self._bounds.busy_timeout_s:
                patient.append(call)
            else:
                call.fail(AccountBusy(unit=call.accounts[0][2], waited_s=round(waited_s, 1)))
        line.calls.extendleft(reversed(patient))

    def _patience_s(self, calls: list[_Call], line: _Line, *, behind: bool = False) -> float:
        if behind or (line.patient and line.shared):  # Others wait along; whoever must wait longer does so in a lane.
            return self._bounds.busy_timeout_s * _SHARED_PATIENCE
        if not line.patient:  # COMMIT is in it, and a disk may take its time.
            return self._bounds.busy_timeout_s
        since_s = min(call.waits_since_s for call in calls)
        return max(_LEAST_S, since_s + self._bounds.busy_timeout_s - _now_s())


def _doubt(calls: Iterable[_Call], error: CommitUnknown, line: _Line) -> None:
    for call in calls:
        call.in_doubt = True
    if line.shared and isinstance(error.__cause__, QueryTimeout):
        raise Blocked from error


def _accounts_in(calls: Iterable[_Call]) -> set[AccountKey]:
    return {account for call in calls for account in call.accounts}


def _tell(calls: Sequence[_Call], outcomes: Sequence[Outcome | None]) -> None:
    for call, outcome in zip(calls, outcomes, strict=True):
        if outcome is not None and not call.answer.done():
            call.answer.set_result(outcome)


def _now_s() -> float:
    return asyncio.get_running_loop().time()

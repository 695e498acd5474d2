"""A barrier for the steps of a saga: each done at most once, undone at most once, and never done after its undo.

A saga changes several databases, one local transaction each, and takes back what it has done if a later step cannot
be. Its messages come twice, late, or in the wrong order: a ``do`` again after a lost answer, an ``undo`` for a step
that never began, and that step's ``do`` an hour later. The ledger's own calls bear all of this by their keys. For
the other steps there is the barrier, called first in the step's own transaction, in the step's own database::

    async def ship(saga: str, tx: Tx) -> None:
        if await barrier(tx, saga=saga, step="ship", action="do"):
            await tx.execute("INSERT INTO parcel …")

    async def unship(saga: str, tx: Tx) -> None:
        if await barrier(tx, saga=saga, step="ship", action="undo"):
            await tx.execute("DELETE FROM parcel …")

Its row commits with the step or not at all, so True means: do it now. False is success too: there is nothing (more)
to do, answer "done".

Theory
------
One row per (saga, step, action), and nothing but INSERTs: a unique key is checked against what is committed at any
isolation level and however old the caller's snapshot is, and it waits for a transaction that has the same key in hand.
An ``undo`` first makes its own row; whoever finds that one is a repeat. Then it tries the row of the ``do``. If it is
there, the step was done, and is undone now. If not, the undo has just made it: an empty undo, and what it leaves is
the tombstone at which a late ``do`` is refused. Nobody who was refused asks for a row that another one wants: shared
locks left by refusals never have to become exclusive ones, so duplicates in parallel do not deadlock. (They may where
the first of them rolls back; ``db.run`` repeats that, as any ``Deadlock``.)
"""

from __future__ import annotations

from typing import Literal, get_args

from daydo_db import Database, Tx, UniqueViolation, now_sql

from . import arguments

Action = Literal["do", "undo"]

_MAX_SAGA = 128
_MAX_STEP = 64
_MAX_AGE_S = 3_155_760_000  # a hundred years


async def barrier(tx: Tx, *, saga: str, step: str, action: Action) -> bool:
    """Whether ``action`` of this step is to be carried out now, in ``tx``.

    A ``do`` is refused if it was done, or if its ``undo`` came first; an ``undo`` if it was undone, or if there is
    nothing to undo. A step that was undone is over: begin another saga, or name another step.

    Args:
        tx: the step's transaction, ours or an enlisted session, at any isolation level, on a database with this
            package's tables. Call this before you read what the step decides on.
        saga: up to 128 visible ASCII characters, unique in that database: ``order_9``.
        step: up to 64, unique in the saga: ``ship``.

    Raises:
        BadName: ``saga`` or ``step`` cannot be stored.
        ValueError: ``action`` is neither of the two.
        DbError: with ``tx`` as it is after any such error.
    """
    arguments.check_name("saga", saga, _MAX_SAGA)
    arguments.check_name("step", step, _MAX_STEP)
    if action not in get_args(Action):
        raise ValueError(f"action is 'do' or 'undo', not {action!r}")
    if not await _first(tx, saga, step, action, by=action):
        return False
    return action == "do" or not await _first(tx, saga, step, "do", by="undo")


async def forget(db: Database, *, older_than_s: float, rows: int = 1000) -> int:
    """Delete about ``rows`` of the oldest barrier rows that are older than ``older_than_s``; returns how many.

    Call it now and then, until it returns 0. A message that comes later than ``older_than_s`` after its saga would be
    carried out once more: let it be far longer than any queue keeps one.

    Raises:
        ValueError: ``older_than_s`` is not above 0, or more than a hundred years.
    """
    if not 0 < older_than_s <= _MAX_AGE_S:  # nor is NaN
        raise ValueError(f"older_than_s is above 0 and at most {_MAX_AGE_S}, not {older_than_s!r}")
    before_us = f"{now_sql(db.dialect, None)} - {round(older_than_s * 1_000_000)}"

    async def delete(tx: Tx) -> int:
        found = await tx.execute(
            f"SELECT at_us FROM daydo_quota_barrier WHERE at_us < {before_us} ORDER BY at_us LIMIT ?",  # noqa: S608
            (rows,),
        )
        if not found.rows:
            return 0
        return (await tx.execute("DELETE FROM daydo_quota_barrier WHERE at_us <= ?", found.rows[-1])).rowcount

    return await db.run(delete)


async def _first(tx: Tx, saga: str, step: str, action: Action, *, by: Action) -> bool:
    try:
        await tx.execute(
            "INSERT INTO daydo_quota_barrier (saga, step, action, made_by, at_us) "  # noqa: S608
            f"VALUES (?, ?, ?, ?, {now_sql(tx.dialect, None)})",
            (saga, step, action, by),
        )
    except UniqueViolation:
        return False
    return True

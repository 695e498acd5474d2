"""Loading by many keys at once, instead of one statement per row of a list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from .database import Database
from .tx import Tx, Value, compile_statement

K = TypeVar("K", int, str, bytes)

_MARK = ":keys"


async def load_many(
    where: Database | Tx, select: str, keys: Iterable[K], args: Sequence[Value] = (), *, batch: int = 512
) -> dict[K, list[tuple[Any, ...]]]:
    """The rows of every key, in one statement per ``batch`` keys.

        tags = await load_many(db, "SELECT note_id, word FROM tag WHERE note_id IN (:keys) ORDER BY word", note_ids)
        for note in notes:
            print(note.title, [word for _, word in tags[note.id]])

    Args:
        select: its first column is the key; ``:keys`` stands for the keys of one batch.
        keys: asked for once each, however often they are named.
        args: for its other placeholders.
        batch: keys of a statement, at most 10,000. Batches are read one after another.

    Returns:
        Every key in the order of ``keys``, with its rows in the order of the statement; none is an empty list.

    Raises:
        ValueError: a row came back under a key that was not asked for.
        DbError: as :meth:`Tx.execute`.
    """
    head, mark, tail = select.partition(_MARK)
    if not mark or not 1 <= batch <= 10_000:
        raise ValueError(f"the SELECT needs IN ({_MARK}), and a batch has 1 to 10,000 keys")
    before: int = compile_statement(where.dialect.name, head).placeholders
    found: dict[K, list[tuple[Any, ...]]] = {key: [] for key in keys}
    asked = list(found)
    for start in range(0, len(asked), batch):
        some: list[K] = _padded(asked[start : start + batch])
        sql = f"{head}{', '.join('?' * len(some))}{tail}"
        values: list[Value] = [*args[:before], *some, *args[before:]]
        result = await (where.query(sql, values) if isinstance(where, Database) else where.execute(sql, values))
        for row in result.rows:
            if row[0] not in found:
                raise ValueError("a key came back that was not asked for; select it first, compare it exactly")
            found[row[0]].append(row)
    return found


def _padded(keys: list[K]) -> list[K]:
    """Up to a power of two, so that a server and its statistics see ten texts and not five hundred."""
    wanted = 1 << (len(keys) - 1).bit_length()
    return keys + keys[-1:] * (wanted - len(keys))

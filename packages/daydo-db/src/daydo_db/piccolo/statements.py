"""From a Piccolo query to one statement of ours.

Piccolo composes templates (``QueryString``) and would have the engine number the placeholders. Here a query
becomes a :class:`PiccoloStatement`: its own template plus what running it takes to know: whether it writes,
whether it locks, which columns are booleans (both databases store 0 and 1), and what an INSERT answers.

Every template is looked at once, cached: names quoted for the dialect (backticks on MySQL, so that a session
without ANSI_QUOTES reads names and not strings), and syntax refused that one of the two databases lacks or,
worse, reads as something else: ``||`` is OR in a plain MySQL session.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from string import Formatter
from typing import Any, cast

from piccolo.columns import Boolean, Column
from piccolo.columns.m2m import M2MSelect
from piccolo.columns.readable import Readable
from piccolo.query import Count, Delete, Exists, Insert, Objects, Select, Update
from piccolo.query.base import Query
from piccolo.query.mixins import LockRowsDelegate, LockStrength
from piccolo.querystring import QueryString

from daydo_db.tx import DialectName, Result, Value

from .errors import Unsupported

# What no template may hold; table and column names are lower-case, so none of these can be one.
_REFUSED = {
    "COUNT(DISTINCT({},": ("counting distinct over several columns", "a column that holds the pair"),
    "COUNT(DISTINCT({} ": ("counting distinct over several columns", "a column that holds the pair"),
    " || ": ("joining strings in SQL", "Python, or tx.execute with each dialect's own SQL"),
    " / ": ("dividing in SQL", "Python; SQLite truncates integers where MySQL does not"),
    " ^ ": ("a power in SQL", "Python; MySQL reads ^ as exclusive or"),
    " -> ": ("reading inside JSON", "a column of its own for what you search by"),
    " #> ": ("reading inside JSON", "a column of its own for what you search by"),
    "::": ("a PostgreSQL cast", "a column of the right type"),
    "CAST(": ("Cast", "a column of the right type"),
    "CONCAT(": ("Concat", "Python"),
    "AVG(": ("Avg", "Sum and Count; MySQL rounds an average to four places"),
    "LENGTH(": ("Length", "len() in Python; MySQL counts bytes where SQLite counts characters"),
    "REVERSE(": ("Reverse", "Python"),
    "ILIKE": ("ILIKE", "a column that holds the text in lower case"),
    " ANY (": ("an array column", "a table of its own"),
    " ALL (": ("an array column", "a table of its own"),
    "DISTINCT ON": ("DISTINCT ON", "group_by, or a query per group"),
    "RETURNING": ("RETURNING", "affected(query), then a select in the same transaction"),
}


class PiccoloStatement(QueryString):
    """A query made ready for one of our databases."""

    __slots__ = ("answer", "booleans", "locks", "writes")

    def __init__(
        self,
        query: QueryString,
        *,
        writes: bool = False,
        locks: bool = False,
        booleans: tuple[int, ...] = (),
        answer: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__("{}", query)
        self.writes, self.locks, self.booleans, self.answer = writes, locks, booleans, answer

    def compile_string(self, engine_type: str = "") -> tuple[str, list[Any]]:
        """SQL with ``?`` placeholders, and its arguments; a frozen query is compiled once."""
        if self._frozen_compiled_strings is not None:
            return self._frozen_compiled_strings
        parts: list[str] = []
        args: list[Value] = []
        _write(self, "mysql" if engine_type == "mysql" else "sqlite", parts, args)
        return "".join(parts), args

    def rows(self, result: Result) -> list[dict[str, Any]]:
        """What Piccolo takes for the driver's answer."""
        if self.answer is not None:
            return self.answer
        rows: list[Any] = result.rows
        if self.booleans:
            rows = [list(row) for row in rows]
            for row in rows:
                for position in self.booleans:
                    row[position] = None if row[position] is None else bool(row[position])
        return [dict(zip(result.columns, row, strict=True)) for row in rows]


def _write(query: QueryString, dialect: DialectName, parts: list[str], args: list[Value]) -> None:
    values = iter(query.args)
    for text, has_value in _pieces(query.template, dialect):
        parts.append(text)
        if not has_value:
            continue
        value = next(values)
        if isinstance(value, QueryString):
            _write(value, dialect, parts, args)
        else:
            parts.append("?")
            args.append(value)


@lru_cache(maxsize=1024)
def _pieces(template: str, dialect: DialectName) -> tuple[tuple[str, bool], ...]:
    for token, (what, instead) in _REFUSED.items():
        if token in template:
            raise Unsupported(what=what, instead=instead)
    return tuple((_quoted(text, dialect), field is not None) for text, field, _, _ in Formatter().parse(template))


def _quoted(text: str, dialect: DialectName) -> str:
    if dialect == "sqlite":
        return text
    # Odd parts stand between single quotes: text, not names.
    parts = text.split("'")
    parts[::2] = [part.replace('"', "`") for part in parts[::2]]
    return "'".join(parts)


def prepare(query: Query[Any, Any]) -> PiccoloStatement:
    """The one statement that ``query`` stands for.

    Raises:
        Unsupported: it is of a kind, or has a clause, that this edge leaves out.
    """
    kind = _KINDS.get(type(query))
    if kind is None:
        raise Unsupported(what=f"Piccolo's {type(query).__name__}", instead="tx.execute with SQL")
    return kind(query)


def _select(query: Select[Any]) -> PiccoloStatement:
    if query.offset_delegate._offset and not query.limit_delegate._limit:
        raise Unsupported(what="offset without limit", instead="limit as well, or better a condition on the last key")
    for column in query.columns_delegate.selected_columns:
        if isinstance(column, M2MSelect | Readable):
            raise Unsupported(what=type(column).__name__, instead="a select on the joined table")
    lock = query.lock_rows_delegate._lock_rows
    if lock is None:
        text = query.default_querystrings[0]
    elif lock.lock_strength is not LockStrength.update or lock.nowait or lock.of:
        raise Unsupported(what="a lock other than FOR UPDATE", instead="lock_rows(), with skip_locked=True if need be")
    else:
        unlocked = copy.copy(query)
        unlocked.lock_rows_delegate = LockRowsDelegate()
        text = unlocked.default_querystrings[0]
        if query.engine_type == "mysql":
            text = QueryString("{} FOR UPDATE SKIP LOCKED" if lock.skip_locked else "{} FOR UPDATE", text)
    columns = query.columns_delegate.selected_columns
    booleans = tuple(position for position, column in enumerate(columns) if isinstance(column, Boolean))
    return PiccoloStatement(text, locks=lock is not None, booleans=booleans)


def _objects(query: Objects[Any]) -> PiccoloStatement:
    # It asks a Select of its own, which has come through prepare() by now; so does Count.
    return cast("PiccoloStatement", query.default_querystrings[0])


def _exists(query: Exists[Any]) -> PiccoloStatement:
    return PiccoloStatement(query.default_querystrings[0])


def _insert(query: Insert[Any]) -> PiccoloStatement:
    if query.on_conflict_delegate._on_conflict.on_conflict_items:
        raise Unsupported(what="ON CONFLICT", instead="insert, and on UniqueViolation select with lock_rows()")
    rows = query.add_delegate._add
    if not rows:
        raise ValueError(f"nothing to insert into {query.table.__name__}")
    meta = query.table._meta
    columns = ",".join(f'"{column._meta.db_column_name}"' for column in meta.columns)
    values = ",".join(["{}"] * len(rows))
    text = f"INSERT INTO {meta.get_formatted_tablename()} ({columns}) VALUES {values}"  # noqa: S608 - names only
    # Every value was made by the application, so nothing needs to come back to be returned.
    returning = query.returning_delegate._returning
    returned = [] if returning is None else returning.columns
    answer = [
        {column._alias or column._meta.db_column_name: getattr(row, column._meta.name) for column in returned}
        for row in rows
    ]
    return PiccoloStatement(QueryString(text, *(row.querystring for row in rows)), writes=True, answer=answer)


def _change(query: Update[Any] | Delete) -> PiccoloStatement:
    columns: list[Column] = query.where_delegate.get_where_columns()  # type: ignore[no-untyped-call]
    if any(column._meta.call_chain for column in columns):
        raise Unsupported(
            what=f"{type(query).__name__} through a join", instead="a select of the keys, then is_in(keys)"
        )
    return PiccoloStatement(query.default_querystrings[0], writes=True)


_KINDS: dict[type, Callable[[Any], PiccoloStatement]] = {
    Select: _select,
    Objects: _objects,
    Count: _objects,
    Exists: _exists,
    Insert: _insert,
    Update: _change,
    Delete: _change,
}

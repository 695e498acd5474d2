"""From a Piccolo query to one statement of ours.

Piccolo composes templates (``QueryString``) and would have the engine number the placeholders. Here a query
becomes a :class:`PiccoloStatement`: its own template plus what running it takes to know: whether it writes,
whether it locks, and how the values of its columns come back.

Every template is looked at once, cached: names quoted for the dialect (backticks on MySQL, so that a session
without ANSI_QUOTES reads names and not strings), and syntax refused that one of the two databases lacks or,
worse, reads as something else: ``||`` is OR in a plain MySQL session.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import lru_cache
from string import Formatter
from typing import Any, cast

from piccolo.columns import Column
from piccolo.columns.m2m import M2MSelect
from piccolo.columns.readable import Readable
from piccolo.query import Count as CountRows
from piccolo.query import Delete, Exists, Insert, Objects, Select, Update
from piccolo.query.base import Query
from piccolo.query.functions import Count, Max, Min
from piccolo.query.mixins import LockRows, LockRowsDelegate, LockStrength
from piccolo.querystring import QueryString

from daydo_db.tx import DialectName, Value

from .errors import Unsupported
from .kinds import Convert, adapted, kind_of_column, stored

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
    "EXTRACT(": ("Extract", "Python"),
    "strftime(": ("Strftime, or a column ± a timedelta", "Python, and a value"),
    "AT TIME ZONE": ("AtTimeZone", "Python"),
    "ROUND(": ("Round", "Python"),
    "CEIL(": ("Ceil", "Python; not every SQLite has it"),
    "FLOOR(": ("Floor", "Python; not every SQLite has it"),
    "AVG(": ("Avg", "Sum and Count; MySQL rounds an average to four places"),
    "LENGTH(": ("Length", "len() in Python; MySQL counts bytes where SQLite counts characters"),
    "REVERSE(": ("Reverse", "Python"),
    "ILIKE": ("ILIKE", "a column that holds the text in lower case"),
    " ANY (": ("an array column", "a table of its own"),
    " ALL (": ("an array column", "a table of its own"),
    "DISTINCT ON": ("DISTINCT ON", "group_by, or a query per group"),
    "RETURNING": ("RETURNING", "affected(query), then a select in the same transaction"),
}


# Each position of a row whose values are converted, and how.
Converters = tuple[tuple[int, Convert], ...]


class PiccoloStatement(QueryString):
    """A query made ready for one of our databases."""

    __slots__ = ("converters", "locks", "writes")

    def __init__(
        self, query: QueryString, *, writes: bool = False, locks: bool = False, converters: Converters = ()
    ) -> None:
        super().__init__("{}", query)
        self.writes, self.locks, self.converters = writes, locks, converters

    def compile_string(self, engine_type: str = "") -> tuple[str, list[Any]]:
        """SQL with ``?`` placeholders, and its arguments; a frozen query is compiled once."""
        if self._frozen_compiled_strings is not None:
            return self._frozen_compiled_strings
        parts: list[str] = []
        args: list[Value] = []
        write(self, "mysql" if engine_type == "mysql" else "sqlite", parts, args)
        return "".join(parts), args


def write(query: QueryString, dialect: DialectName, parts: list[str], args: list[Value]) -> None:
    """Append the text and the arguments of a template and of those within it."""
    values = iter(query.args)
    for text, has_value in _pieces(query.template, dialect):
        parts.append(text)
        if not has_value:
            continue
        value = next(values)
        if isinstance(value, QueryString):
            write(value, dialect, parts, args)
        else:
            parts.append("?")
            args.append(adapted(value))


@lru_cache(maxsize=1024)
def _pieces(template: str, dialect: DialectName) -> tuple[tuple[str, bool], ...]:
    for token, (what, instead) in _REFUSED.items():
        if token in template:
            raise Unsupported(what=what, instead=instead)
    # A backslash escapes on MySQL by itself.
    template = template.replace(" LIKE {}", " LIKE {} ESCAPE '\\'") if dialect == "sqlite" else template
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
    else:
        unlocked = copy.copy(query)
        unlocked.lock_rows_delegate = LockRowsDelegate()
        text = unlocked.default_querystrings[0]
        if query.engine_type == "mysql":
            text = QueryString("{}" + _lock(lock), text)
        else:
            _lock(lock)
    columns = query.columns_delegate.selected_columns
    loads = ((position, _load(column)) for position, column in enumerate(columns))
    converters = tuple((position, load) for position, load in loads if load is not None)
    return PiccoloStatement(text, locks=lock is not None, converters=converters)


def _lock(lock: LockRows) -> str:
    """A locking clause for MySQL and MariaDB. On SQLite the transaction is the lock, and it is held already."""
    if lock.of:
        raise Unsupported(what="lock_rows(of=…)", instead="a select of that table alone")
    how = " NOWAIT" if lock.nowait else " SKIP LOCKED" if lock.skip_locked else ""
    if lock.lock_strength is LockStrength.update:
        return f" FOR UPDATE{how}"
    if lock.lock_strength is LockStrength.share:
        return f" /*M! LOCK IN SHARE MODE */ /*!80001 FOR SHARE */{how}"
    raise Unsupported(what=f"FOR {lock.lock_strength.value}", instead='lock_rows("UPDATE") or lock_rows("SHARE")')


def _load(selected: object) -> Convert | None:
    """How a selected value comes back: by the very column it comes from, whatever its name."""
    if isinstance(selected, Column):
        return kind_of_column(selected).load
    if not isinstance(selected, QueryString):
        return None
    loads = {load for load in (kind_of_column(column).load for column in selected.columns) if load is not None}
    if not loads or isinstance(selected, Count):
        return None
    if isinstance(selected, Min | Max) and len(loads) == 1:
        return loads.pop()
    # An expression over dates is a text on SQLite and a date on MySQL; over booleans it is a number on both.
    if loads != {bool}:
        raise Unsupported(what=f"{selected.template} over dates or UUIDs", instead="the columns, and Python")
    return None


def _objects(query: Objects[Any]) -> PiccoloStatement:
    # It asks a Select of its own, which has come through prepare() by now; so does Count.
    return cast("PiccoloStatement", query.default_querystrings[0])


def _exists(query: Exists[Any]) -> PiccoloStatement:
    return PiccoloStatement(query.default_querystrings[0])


def _insert(query: Insert[Any]) -> PiccoloStatement:
    raise Unsupported(what="freezing an insert, or an insert inside another query", instead="run(query, …)")


def _update(query: Update[Any]) -> PiccoloStatement:
    _require_own_columns(query)
    values = in_order(query.values_delegate._values)
    names = ", ".join(f'"{column._meta.db_column_name}" = {{}}' for column, _ in values)
    new = (stored(value, column) for column, value in values)
    text = QueryString(f"UPDATE {query.table._meta.get_formatted_tablename()} SET {names}", *new)  # noqa: S608 - names only
    return _where(query, text)


def _delete(query: Delete) -> PiccoloStatement:
    _require_own_columns(query)
    return _where(query, QueryString(f"DELETE FROM {query.table._meta.get_formatted_tablename()}"))  # noqa: S608


def _where(query: Update[Any] | Delete, text: QueryString) -> PiccoloStatement:
    if query.returning_delegate._returning is not None:
        what, instead = _REFUSED["RETURNING"]
        raise Unsupported(what=what, instead=instead)
    where = query.where_delegate._where
    if where is not None:
        text = QueryString("{} WHERE {}", text, where.querystring_for_update_and_delete)
    return PiccoloStatement(text, writes=True)


def _require_own_columns(query: Update[Any] | Delete) -> None:
    columns: list[Column] = query.where_delegate.get_where_columns()  # type: ignore[no-untyped-call]
    if any(column._meta.call_chain for column in columns):
        raise Unsupported(
            what=f"{type(query).__name__} through a join", instead="a select of the keys, then is_in(keys)"
        )


def in_order(values: dict[Column, Any]) -> list[tuple[Column, Any]]:
    """Assignments so ordered that each reads what the row held before.

    SQLite reads old values only; MySQL assigns from left to right, and ``SET n = n + 1, m = n`` reads the new ``n``.

    Raises:
        Unsupported: two that each read what the other sets.
    """
    left = list(values.items())
    if len(left) < 2 or not any(isinstance(value, QueryString | Column) for value in values.values()):
        return left
    ordered: list[tuple[Column, Any]] = []
    while left:
        free = next(
            (one for one in left if not any(_reads(other[1], one[0]) for other in left if other is not one)), None
        )
        if free is None:
            raise Unsupported(what="an update that swaps columns", instead="a select with lock_rows() and two values")
        left = [one for one in left if one is not free]  # == of columns is a condition
        ordered.append(free)
    return ordered


def _reads(value: object, column: Column) -> bool:
    if isinstance(value, Column):
        return bool(value._meta.db_column_name == column._meta.db_column_name)
    if not isinstance(value, QueryString):
        return False
    name = rf"\b{re.escape(column._meta.db_column_name)}\b"
    return re.search(name, value.template) is not None or any(_reads(part, column) for part in value.args)


_KINDS: dict[type, Callable[[Any], PiccoloStatement]] = {
    Select: _select,
    Objects: _objects,
    CountRows: _objects,
    Exists: _exists,
    Insert: _insert,
    Update: _update,
    Delete: _delete,
}

"""INSERT, of one row or many, and what it does where a row is there already.

Written here and not by Piccolo: its text asks for the keys with RETURNING, which MySQL lacks and nobody needs, since
every value was made by the application. ON CONFLICT, too, is spelled in two ways on MySQL and MariaDB; version
comments hold both, so that the text needs no knowledge of the server (an enlisted session would not tell).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from piccolo.columns import JSON, Column
from piccolo.constraints import Unique
from piccolo.query import Insert
from piccolo.query.mixins import OnConflictAction, OnConflictItem
from piccolo.querystring import QueryString
from piccolo.table import Table

from daydo_db.tx import DialectName

from .errors import Unsupported
from .kinds import PLAIN, kind_of_column, stored
from .statements import write

_INSTEAD_OF_UPSERT = "insert, and on UniqueViolation select with lock_rows()"


class _Writer(NamedTuple):
    """How the value of one column leaves a row; ``simple`` where a plain value needs nothing."""

    name: str
    column: Column
    simple: bool


class InsertStatement(NamedTuple):
    """Text, arguments, and what Piccolo would have been answered."""

    sql: str
    args: list[Any]
    answer: list[dict[str, Any]]
    inserts_all: bool


def insert_statement(query: Insert[Any], dialect: DialectName) -> InsertStatement:
    """The one statement that inserts all rows of ``query``.

    Raises:
        Unsupported: a conflict clause that SQLite and MySQL would not agree on.
        ValueError: no rows, or a value that does not fit its column.
    """
    rows = query.add_delegate._add
    if not rows:
        raise ValueError(f"nothing to insert into {query.table.__name__}")
    args: list[Any] = []
    table: Any = query.table
    sql = f"{_head(table, dialect)}{','.join(_rows(table, rows, dialect, args))}"
    conflicts = query.on_conflict_delegate._on_conflict.on_conflict_items
    answer = _answer(query)
    if not conflicts:
        return InsertStatement(sql, args, answer, True)
    conflict = _checked(query.table, conflicts)
    parts = [sql]
    _conflict(query.table, conflict, dialect, parts, args)
    # Which rows a DO NOTHING left out only a RETURNING could tell.
    updates = conflict.action is OnConflictAction.do_update
    return InsertStatement("".join(parts), args, answer if updates else [], updates)


@lru_cache(maxsize=1024)
def _head(table: type[Any], dialect: DialectName) -> str:
    names = ",".join(_quoted(column._meta.db_column_name, dialect) for column in table._meta.columns)
    return f"INSERT INTO {_quoted(table._meta.tablename, dialect)} ({names}) VALUES "  # noqa: S608 - names only


@lru_cache(maxsize=1024)
def _writers(table: type[Any]) -> tuple[_Writer, ...]:
    return tuple(
        _Writer(column._meta.name, column, kind_of_column(column).store is None and not isinstance(column, JSON))
        for column in table._meta.columns
    )


def _rows(table: type[Table], rows: list[Table], dialect: DialectName, args: list[Any]) -> Iterator[str]:
    writers = _writers(table)
    plain = f"({','.join('?' * len(writers))})"
    for row in rows:
        expressions: dict[int, QueryString] = {}
        values: list[Any] = []
        held = row.__dict__  # where Piccolo's descriptors keep a row's values
        for name, column, simple in writers:
            value = held[name]
            if not simple or type(value) not in PLAIN:
                value = stored(value, column)
                if isinstance(value, QueryString):
                    expressions[len(values)] = value
            values.append(value)
        if not expressions:
            args += values
            yield plain
        else:
            yield _computed(values, dialect, args)


def _computed(values: list[Any], dialect: DialectName, args: list[Any]) -> str:
    parts: list[str] = []
    for position, value in enumerate(values):
        parts.append("," if position else "(")
        if isinstance(value, QueryString):
            write(value, dialect, parts, args)
        else:
            parts.append("?")
            args.append(value)
    return f"{''.join(parts)})"


def _answer(query: Insert[Any]) -> list[dict[str, Any]]:
    returning = query.returning_delegate._returning
    columns = [] if returning is None else returning.columns
    wanted = [(column._alias or column._meta.db_column_name, column._meta.name) for column in columns]
    return [{label: getattr(row, name) for label, name in wanted} for row in query.add_delegate._add]


def _checked(table: type[Table], conflicts: list[OnConflictItem]) -> OnConflictItem:
    """The one clause, sure to mean the same: MySQL's fires on any unique key, so there must be no other."""
    conflict = conflicts[0]
    if len(conflicts) > 1 or conflict.where is not None or isinstance(conflict.target, str):
        raise Unsupported(what="ON CONFLICT with a WHERE, a constraint's name or a second clause", instead="one target")
    keys = _unique_keys(table)
    if len(keys) > 1:
        raise Unsupported(what=f"ON CONFLICT on a table with {len(keys)} unique keys", instead=_INSTEAD_OF_UPSERT)
    target = conflict.target
    if target is not None:
        columns = target if isinstance(target, tuple) else (target,)
        if {column._meta.db_column_name for column in columns} != keys[0]:
            raise Unsupported(what="ON CONFLICT on columns that are no unique key", instead=f"{sorted(keys[0])}")
    return conflict


def _unique_keys(table: type[Table]) -> list[set[str]]:
    singles = [column for column in table._meta.columns if column._meta.primary_key or column._meta.unique]
    several = [constraint for constraint in table._meta.constraints if isinstance(constraint, Unique)]
    keys = [{column._meta.db_column_name} for column in singles]
    return keys + [set(constraint.get_column_names()) for constraint in several]  # type: ignore[no-untyped-call]


def _conflict(
    table: type[Table], conflict: OnConflictItem, dialect: DialectName, parts: list[str], args: list[Any]
) -> None:
    key = _quoted(table._meta.primary_key._meta.db_column_name, dialect)
    if dialect == "sqlite":
        parts.append(f" ON CONFLICT ({key}) {conflict.action.value if conflict.action else ''}")
    else:
        # The alias must name the columns too, or a name without a table would be ambiguous on MySQL.
        names = ", ".join(f"_n{position}" for position in range(len(table._meta.columns)))
        parts.append(f" /*!80019 AS _new ({names}) */ ON DUPLICATE KEY UPDATE ")
    if conflict.action is not OnConflictAction.do_update:
        parts.append("" if dialect == "sqlite" else f"{key} = {key}")
        return
    if not conflict.values:
        raise ValueError("DO UPDATE needs values=[…]: the columns to take from the new row, or (column, value)")
    parts.append(" SET " if dialect == "sqlite" else "")
    for position, value in enumerate(conflict.values):
        column, new = value if isinstance(value, tuple) else (value, None)
        parts.append(f"{', ' if position else ''}{_quoted(column._meta.db_column_name, dialect)} = ")
        if not isinstance(value, tuple):
            parts.append(_excluded(table, column, dialect))
        else:
            new = stored(new, column)
            write(new if isinstance(new, QueryString) else QueryString("{}", new), dialect, parts, args)


def _excluded(table: type[Table], column: Column, dialect: DialectName) -> str:
    """The value that the new row would have had."""
    name = _quoted(column._meta.db_column_name, dialect)
    if dialect == "sqlite":
        return f"EXCLUDED.{name}"
    names = [other._meta.db_column_name for other in table._meta.columns]
    return f"/*M! VALUES({name}) */ /*!80019 _new._n{names.index(column._meta.db_column_name)} */"


def _quoted(name: str, dialect: DialectName) -> str:
    return f'"{name}"' if dialect == "sqlite" else f"`{name}`"

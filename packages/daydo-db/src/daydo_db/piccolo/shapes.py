"""The shape of a query: all that its SQL text depends on, apart from its values.

Piccolo composes a query's text anew each time it runs, which costs more than the driver. But the text of
``Image.select().where(Image.id == x)`` is the same for every ``x``. So a query is walked here, once, into a *key*
(classes, names, operators, numbers of values) and its *values* in the order of their placeholders; the text that
Piccolo wrote for the first query of a key serves all others.

Two rules keep that true. The key names whatever the walk passes that is not a value, each node under a tag of its
own and with its length, and of an expression also what its text does not show: its class and columns, which decide
about joins and how values come back. So two different queries never read alike. And what the walk does not know has
no shape: :class:`NoShape` sends it the long way round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from string import Formatter
from typing import Any

from piccolo.columns import Column
from piccolo.columns.combination import UNDEFINED, And, Or, Where, WhereRaw
from piccolo.query import Count, Delete, Exists, Objects, Select, Update
from piccolo.query.base import Query
from piccolo.querystring import QueryString, Selectable

from .kinds import PLAIN, Convert, adapted, kind_of, stored
from .statements import in_order

Key = tuple[Any, ...]


class NoShape(Exception):
    """This query has to be composed each time."""


def shape(query: Query[Any, Any]) -> tuple[Key, list[Any]]:
    """The key of a query and its values as the database takes them.

    Raises:
        NoShape: it holds something unknown here.
        ValueError: a value does not fit its column.
    """
    walk = _WALKS.get(type(query))
    if walk is None:
        raise NoShape
    key: list[Any] = [type(query), query.table]
    args: list[Any] = []
    walk(query, key, args)
    return tuple(key), args


def _select(query: Select[Any], key: list[Any], args: list[Any]) -> None:
    columns = query.columns_delegate.selected_columns
    distinct = query.distinct_delegate._distinct
    if distinct.on or query.as_of_delegate._as_of:
        raise NoShape
    # Piccolo puts the table's own list there while it composes a select of everything.
    if columns is query.table._meta.columns:
        columns = ()
    key += (query.exclude_secrets, distinct.enabled, len(columns))
    for column in columns:
        _selected(column, key, args)
    _condition(query.where_delegate._where, key, args)
    group_by = query.group_by_delegate._group_by
    if group_by is None:
        key.append(None)
    else:
        _expressions(group_by.columns, key, args)
    _condition(query.having_delegate._where, key, args)
    _tail(query, key, args)


def _objects(query: Objects[Any], key: list[Any], args: list[Any]) -> None:
    if query.as_of_delegate._as_of:
        raise NoShape
    _expressions(query.prefetch_delegate.fk_columns, key, args)
    _condition(query.where_delegate._where, key, args)
    _tail(query, key, args)


def _tail(query: Select[Any] | Objects[Any], key: list[Any], args: list[Any]) -> None:
    order = query.order_by_delegate._order_by.order_by_items
    key.append(len(order))
    for item in order:
        key.append(item.ascending)
        _expressions(item.columns, key, args)
    limit, offset = query.limit_delegate._limit, query.offset_delegate._offset
    lock = query.lock_rows_delegate._lock_rows
    # As they are written: True equals 1 and is another text.
    key += (limit and f"{limit.number}", offset and f"{offset.number}")
    if lock is not None:
        key += (lock.lock_strength, lock.nowait, lock.skip_locked, lock.of)


def _count(query: Count, key: list[Any], args: list[Any]) -> None:
    _expressions(() if query.column is None else (query.column,), key, args)
    _expressions(query._distinct or (), key, args)
    _condition(query.where_delegate._where, key, args)


def _exists(query: Exists[Any], key: list[Any], args: list[Any]) -> None:
    _condition(query.where_delegate._where, key, args)


def _delete(query: Delete, key: list[Any], args: list[Any]) -> None:
    if query.returning_delegate._returning is not None:
        raise NoShape
    _condition(query.where_delegate._where, key, args)


def _update(query: Update[Any], key: list[Any], args: list[Any]) -> None:
    if query.returning_delegate._returning is not None:
        raise NoShape
    values = query.values_delegate._values
    key.append(len(values))
    for column, value in in_order(values):
        _column(column, key)
        _value(stored(value, column), None, key, args)
    _condition(query.where_delegate._where, key, args)


def _condition(node: Any, key: list[Any], args: list[Any]) -> None:
    kind = type(node)
    if kind is Where:
        key.append(node.operator)
        column = node.column
        _column(column, key)
        store = kind_of(column._meta._table, column._meta._name).store
        if node.value is not UNDEFINED:
            _value(node.value, store, key, args)
        if node.values is not UNDEFINED:
            _values(node.values, store, key, args)
    elif kind is And or kind is Or:
        key.append(kind)
        _condition(node.first, key, args)
        _condition(node.second, key, args)
    elif kind is WhereRaw:
        key.append(kind)
        _value(node.querystring, None, key, args)
    elif node is None:
        key.append(None)
    else:
        raise NoShape


def _values(values: Any, store: Convert | None, key: list[Any], args: list[Any]) -> None:
    if isinstance(values, QueryString):
        _value(values, None, key, args)
        return
    members: list[Any] = []
    for value in values:
        _value(value, store, members, args)
    # The usual list, of values alone, is told by its length: the key of a long one stays short.
    plain = members.count("?") == len(members) == len(values)
    key += ("values", len(values)) if plain else ("list", len(values), *members)


def _value(value: Any, store: Convert | None, key: list[Any], args: list[Any]) -> None:
    """What stands for a placeholder: a value, or a column or an expression in its place."""
    if type(value) in PLAIN:
        key.append("?")
        args.append(value if store is None or value is None else store(value))
    elif isinstance(value, QueryString):
        _require_ordinary(type(value))
        if value._frozen_compiled_strings is not None:
            raise NoShape
        parts = value.args[: _fields(value.template)]
        key += ("expression", type(value), value.template, len(value.columns), len(parts))
        for column in value.columns:
            _column(column, key)
        for part in parts:
            _value(part, None, key, args)
    elif isinstance(value, Column):
        _column(value, key)
    else:
        key.append("?")
        args.append(adapted(value) if store is None else store(value))


def _expressions(columns: Sequence[Any], key: list[Any], args: list[Any]) -> None:
    key.append(len(columns))
    for column in columns:
        _value(column, None, key, args)


def _selected(column: Selectable, key: list[Any], args: list[Any]) -> None:
    key.append(getattr(column, "_alias", None))
    if not isinstance(column, Column | QueryString):
        raise NoShape
    _value(column, None, key, args)


def _column(column: Column, key: list[Any]) -> None:
    meta = column._meta
    for foreign_key in meta.call_chain:
        target = foreign_key._foreign_key_meta
        joined = target.resolved_references, target.resolved_target_column._meta._name
        key += ("join", foreign_key._meta._table, foreign_key._meta._name, *joined)
    key += (meta._table, meta._name)


@lru_cache(maxsize=256)
def _require_ordinary(kind: type[QueryString]) -> None:
    """A QueryString that writes itself in another way than by its template has no shape."""
    for name in ("get_select_string", "get_where_string", "bundle"):
        if getattr(kind, name) is not getattr(QueryString, name):
            raise NoShape


@lru_cache(maxsize=1024)
def _fields(template: str) -> int:
    """How many of its arguments a template uses; Piccolo's ``!= None`` brings one too many."""
    return sum(field is not None for _, field, _, _ in Formatter().parse(template))


_WALKS: dict[type, Callable[[Any, list[Any], list[Any]], None]] = {
    Select: _select,
    Objects: _objects,
    Count: _count,
    Exists: _exists,
    Update: _update,
    Delete: _delete,
}

"""How the values of a column stand in the database, and how they come back: one meaning on all servers.

Most kinds need nothing. The others are here: both databases keep 0 and 1 for a boolean, SQLite has no dates, and
a text that one database would read as a date and the other compare letter by letter must not get that far.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple

from piccolo.columns import JSON, UUID, Boolean, Column, Date, ForeignKey, Timestamptz
from piccolo.querystring import QueryString
from piccolo.table import Table
from piccolo.utils.sql_values import convert_to_sql_value

Convert = Callable[[Any], Any]

# What every driver takes as it is. Not the subclasses of str and int: an Enum member is one.
PLAIN = frozenset({type(None), bool, int, float, str, bytes})


class Kind(NamedTuple):
    """Converters of a column's values that are not None: to the database, and from it."""

    store: Convert | None = None
    load: Convert | None = None


def _store_moment(value: object) -> str:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError(f"a Timestamptz takes a datetime that knows its zone, not {value!r}")
    # Of one width, so that the order of the texts is the order of the moments.
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def _load_moment(value: str | datetime) -> datetime:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.replace(tzinfo=UTC)


def _store_day(value: object) -> str:
    if isinstance(value, str):
        return date.fromisoformat(value).isoformat()
    if isinstance(value, datetime) or not isinstance(value, date):
        raise ValueError(f"a Date takes a date, not {value!r}")
    return value.isoformat()


def _load_day(value: str | date) -> date:
    return date.fromisoformat(value) if isinstance(value, str) else value


def _store_uuid(value: object) -> str:
    return str(value if isinstance(value, uuid.UUID) else uuid.UUID(str(value)))


_PLAIN_KIND = Kind()
_KINDS: dict[type[Column], Kind] = {
    Boolean: Kind(load=bool),
    Timestamptz: Kind(_store_moment, _load_moment),
    Date: Kind(_store_day, _load_day),
    UUID: Kind(_store_uuid, uuid.UUID),
}


@lru_cache(maxsize=4096)
def kind_of(table: type[Table], name: str) -> Kind:
    """The kind of the column ``name`` of ``table``; a foreign key is of the kind of what it refers to."""
    return kind_of_column(table._meta.get_column_by_name(name))


def kind_of_column(column: Column) -> Kind:
    """As :func:`kind_of`."""
    while isinstance(column, ForeignKey):
        column = column._foreign_key_meta.resolved_target_column
    return next((kind for known, kind in _KINDS.items() if isinstance(column, known)), _PLAIN_KIND)


def stored(value: Any, column: Column) -> Any:
    """A value for ``column``: of a row, or of an UPDATE. Tables, members of enumerations and JSON as well."""
    if isinstance(value, QueryString | Column):
        return value
    if type(value) not in PLAIN or isinstance(column, JSON):
        value = convert_to_sql_value(value, column)
    store = kind_of_column(column).store
    return adapted(value) if value is None or store is None else store(value)


def adapted(value: Any) -> Any:
    """A value of which no column is known, in raw SQL or a function, by its own type alone."""
    if type(value) in PLAIN:
        return value
    match value:
        case Enum():
            return adapted(value.value)
        case datetime():
            return _store_moment(value)
        case date():
            return value.isoformat()
        case uuid.UUID():
            return str(value)
        case bytearray() | memoryview():
            return bytes(value)
    return value

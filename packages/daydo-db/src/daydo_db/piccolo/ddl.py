"""SQL text from Table classes, to be committed as numbered schema files.

Piccolo's own DDL is not used: its SQLite side fails on table-level constraints, and MySQL before 9.0 parses
an inline ``REFERENCES`` and ignores it. So every constraint stands at table level, under a name that is
unique in the schema, and a type that would behave differently on the two databases is refused here instead
of surprising somebody later.

Text is compared byte by byte and without padding on both: SQLite does so by itself, MySQL and MariaDB name
the fitting collation differently, which is what the two version comments at the end of a table are for.
``utf8mb4_bin``, known to both, would call ``'a '`` a duplicate of ``'a'``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import Enum
from hashlib import blake2s
from typing import Any

from piccolo.columns import BigInt, Boolean, Char, Column, ForeignKey, Integer, SmallInt, Text, Varchar
from piccolo.columns.base import OnDelete, OnUpdate
from piccolo.columns.combination import Combination, Undefined, Where, WhereRaw
from piccolo.constraints import Check, Constraint, Unique
from piccolo.querystring import QueryString
from piccolo.table import Table

from daydo_db.tx import Dialect

from .columns import Id, Index
from .errors import Unsupported

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TABLE_OPTIONS = {
    "sqlite": "",
    "mysql": " ENGINE=InnoDB DEFAULT CHARSET=utf8mb4"
    " /*M! COLLATE=utf8mb4_nopad_bin */ /*!80017 COLLATE=utf8mb4_0900_bin */",
}
_ASCII = " CHARACTER SET ascii COLLATE ascii_bin"
_INSTEAD = {
    "Serial": "a primary key made by the application: Id(primary_key=True) and daydo_kernel.new_id()",
    "UUID": "Id() and daydo_kernel.new_id()",
    "Numeric": "BigInt in the smallest unit (fen, credits)",
    "Timestamp": "BigInt named …_us: microseconds since 1970 UTC",
    "Timestamptz": "BigInt named …_us: microseconds since 1970 UTC",
    "Char": "Varchar, which keeps trailing spaces",
    "JSON": "Text, encoded and decoded by msgspec",
}


def ddl(table: type[Table], dialect: Dialect) -> list[str]:
    """``CREATE TABLE`` and its ``CREATE INDEX`` statements, without closing semicolons.

    The same class gives the same text on every run and machine.

    Raises:
        Unsupported: a column type, constraint or name that does not mean the same on SQLite and MySQL.
    """
    if table._meta.schema:
        raise Unsupported(what="a table in a schema", instead="a prefix in the table's name")
    name = _name(table._meta.tablename)
    lines = [*(_column(column, dialect) for column in table._meta.columns), *_constraints(table, dialect)]
    body = ",\n".join(f"  {line}" for line in lines)
    return [f"CREATE TABLE {name} (\n{body}\n){_TABLE_OPTIONS[dialect.name]}", *_indexes(table)]


def schema(tables: Iterable[type[Table]], dialect: Dialect) -> str:
    """The text of a schema file that creates ``tables`` in the order given: those referred to come first."""
    return "\n".join(f"{statement};\n" for table in tables for statement in ddl(table, dialect))


def _column(column: Column, dialect: Dialect) -> str:
    parts = [_name(column._meta.db_column_name), _type(column, dialect)]
    if not column._meta.null:
        parts.append("NOT NULL")
    default = _default(column)
    if default is not None:
        text = _literal(default, dialect)
        # MySQL takes a default for its TEXT types only as an expression.
        parts.append(f"DEFAULT ({text})" if isinstance(column, Text) and dialect.name == "mysql" else f"DEFAULT {text}")
    return " ".join(parts)


def _type(column: Column, dialect: Dialect) -> str:
    mysql = dialect.name == "mysql"
    match column:
        case ForeignKey():
            return _type(column._foreign_key_meta.resolved_target_column, dialect)
        case Varchar() if not isinstance(column, Char):
            if not column.length:
                raise _unsupported(column, "a Varchar without a length", "Varchar(length=…), or Text")
            ascii_only = isinstance(column, Id) or column._meta.primary_key
            return f"VARCHAR({column.length}){_ASCII if ascii_only else ''}" if mysql else "TEXT"
        case Text():
            if column._meta.unique or column._meta.index or column._meta.primary_key:
                raise _unsupported(column, "an index over a Text", "Varchar(length=…)")
            return "MEDIUMTEXT" if mysql else "TEXT"
        case BigInt():
            return "BIGINT" if mysql else "INTEGER"
        case SmallInt():
            return "SMALLINT" if mysql else "INTEGER"
        case Integer():
            return "INTEGER"
        case Boolean():
            return "BOOLEAN"
    kinds = [kind.__name__ for kind in type(column).__mro__]
    instead = next((_INSTEAD[kind] for kind in kinds if kind in _INSTEAD), "Varchar, Text, BigInt or Boolean")
    raise _unsupported(column, f"the type {kinds[0]}", instead)


def _default(column: Column) -> str | int | None:
    """The column's default where the database can know it too: an older version of the code needs it there."""
    default = getattr(column, "default", None)
    default = default.value if isinstance(default, Enum) else default
    if default is None or callable(default) or column._meta.primary_key:
        return None
    if not isinstance(default, str | int):
        raise _unsupported(column, f"the default {default!r}", "a str, int, bool or a function")
    return default


def _constraints(table: type[Table], dialect: Dialect) -> Iterator[str]:
    columns = table._meta.columns
    keys = [column._meta.db_column_name for column in columns if column._meta.primary_key]
    if len(keys) != 1:
        raise Unsupported(what=f"{len(keys)} primary keys in {table.__name__}", instead="one Id and a Unique([…])")
    yield f"PRIMARY KEY ({keys[0]})"
    for column in columns:
        name = column._meta.db_column_name
        if column._meta.unique and not column._meta.primary_key:
            yield _constraint(table, f"{name}_unique", f"UNIQUE ({name})")
    for constraint in table._meta.constraints:
        if not isinstance(constraint, Index):
            yield _constraint(table, constraint._meta.name, _rule(constraint, dialect))
    for foreign_key in table._meta.foreign_key_columns:
        yield _constraint(table, f"{foreign_key._meta.db_column_name}_fk", _reference(foreign_key))


def _rule(constraint: Constraint, dialect: Dialect) -> str:
    match constraint:
        case Unique(nulls_distinct=True):
            columns: list[str] = constraint.get_column_names()  # type: ignore[no-untyped-call]
            return f"UNIQUE ({', '.join(columns)})"
        case Unique():
            raise Unsupported(what="nulls_distinct=False", instead="a column that is never null")
        case Check():
            return f"CHECK ({_condition(constraint.condition, dialect)})"
    raise Unsupported(what=f"the constraint {type(constraint).__name__}", instead="Unique, Check or Index")


def _constraint(table: type[Table], name: str, text: str) -> str:
    return f"CONSTRAINT {_qualified(table, name)} {text}"


def _reference(column: ForeignKey[Any]) -> str:
    meta = column._foreign_key_meta
    if OnDelete.set_default is meta.on_delete or OnUpdate.set_default is meta.on_update:
        raise _unsupported(column, "SET DEFAULT", "SET NULL, as InnoDB does not know it")
    target = meta.resolved_target_column._meta
    text = f"FOREIGN KEY ({column._meta.db_column_name}) REFERENCES "
    text += f"{meta.resolved_references._meta.tablename} ({target.db_column_name})"
    if meta.on_delete is not OnDelete.no_action:
        text += f" ON DELETE {meta.on_delete.value}"
    if meta.on_update is not OnUpdate.no_action:
        text += f" ON UPDATE {meta.on_update.value}"
    return text


def _indexes(table: type[Table]) -> Iterator[str]:
    for column in table._meta.columns:
        if column._meta.index and not (column._meta.unique or column._meta.primary_key):
            yield _index(table, f"{column._meta.db_column_name}_index", [column._meta.db_column_name])
    for constraint in table._meta.constraints:
        if isinstance(constraint, Index):
            yield _index(table, constraint._meta.name, constraint.get_column_names())


def _index(table: type[Table], name: str, columns: list[str]) -> str:
    return f"CREATE INDEX {_qualified(table, name)} ON {table._meta.tablename} ({', '.join(columns)})"


def _condition(condition: object, dialect: Dialect) -> str:
    """A CHECK's condition. Piccolo's own text quotes names, does not escape strings and loses IN lists."""
    match condition:
        case str():
            return condition
        case Combination():
            sides = (_side(side, condition, dialect) for side in (condition.first, condition.second))
            return f" {condition.operator} ".join(sides)
        case Where() if not isinstance(condition.values, QueryString):
            values: list[Any] = [] if isinstance(condition.values, Undefined) else list(condition.values)
            return condition.operator.template.format(
                name=condition.column._meta.db_column_name,
                value="" if isinstance(condition.value, Undefined) else _operand(condition.value, dialect),
                values=", ".join(_operand(value, dialect) for value in values),
            )
        case WhereRaw():
            return _operand(condition.querystring, dialect)
    raise Unsupported(what=f"{type(condition).__name__} in a Check", instead="comparisons, & and |, or a str of SQL")


def _side(side: object, parent: Combination, dialect: Dialect) -> str:
    text = _condition(side, dialect)
    return f"({text})" if isinstance(side, Combination) and side.operator != parent.operator else text


def _operand(value: object, dialect: Dialect) -> str:
    if isinstance(value, Column):
        return value._meta.db_column_name
    if isinstance(value, QueryString):
        return value.template.format(*(_operand(argument, dialect) for argument in value.args)).replace('"', "")
    return _literal(value, dialect)


def _literal(value: object, dialect: Dialect) -> str:
    match value:
        case bool():
            return "TRUE" if value else "FALSE"
        case int():
            return str(value)
        case str() if value.isprintable():
            text = value.replace("'", "''")
            return f"'{text}'" if dialect.name == "sqlite" else "'" + text.replace("\\", "\\\\") + "'"
    raise Unsupported(what=f"the value {value!r} in SQL text", instead="a printable str, an int or a bool")


def _qualified(table: type[Table], name: str) -> str:
    """``table_name``, since SQLite's indexes and MySQL's constraints share one namespace; hashed beyond 64."""
    full = f"{table._meta.tablename}_{name}"
    if len(full) > 64:
        full = f"{full[:55]}_{blake2s(full.encode(), digest_size=4).hexdigest()}"
    return _name(full)


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise Unsupported(what=f"the name {name!r}", instead="at most 64 lower-case letters, digits and underscores")
    return name


def _unsupported(column: Column, what: str, instead: str) -> Unsupported:
    return Unsupported(what=f"{what} ({column._meta.table.__name__}.{column._meta.name})", instead=instead)

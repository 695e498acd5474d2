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

import math
import re
import uuid
from collections.abc import Iterable
from enum import Enum
from hashlib import blake2s
from typing import Any, Literal, NamedTuple

from piccolo.columns import (
    JSON,
    UUID,
    BigInt,
    Boolean,
    Bytea,
    Column,
    Date,
    ForeignKey,
    Integer,
    Real,
    SmallInt,
    Text,
    Timestamptz,
    Varchar,
)
from piccolo.columns.base import OnDelete, OnUpdate
from piccolo.columns.combination import Combination, Undefined, Where, WhereRaw
from piccolo.columns.defaults.base import Default
from piccolo.constraints import Check, Constraint, Unique
from piccolo.querystring import QueryString
from piccolo.table import Table

from daydo_db.tx import SQLITE, Dialect, DialectName

from .columns import Id, Index
from .errors import Unsupported
from .kinds import adapted
from .reserved import RESERVED

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TABLE_OPTIONS = {
    "sqlite": "",
    "mysql": " ENGINE=InnoDB DEFAULT CHARSET=utf8mb4"
    " /*M! COLLATE=utf8mb4_nopad_bin */ /*!80017 COLLATE=utf8mb4_0900_bin */",
}
_ASCII = " CHARACTER SET ascii COLLATE ascii_bin"
# Subclasses first.
_TYPES: dict[type[Column], dict[DialectName, str]] = {
    BigInt: {"mysql": "BIGINT", "sqlite": "INTEGER"},
    SmallInt: {"mysql": "SMALLINT", "sqlite": "INTEGER"},
    Integer: {"mysql": "INTEGER", "sqlite": "INTEGER"},
    Boolean: {"mysql": "BOOLEAN", "sqlite": "BOOLEAN"},
    Real: {"mysql": "DOUBLE", "sqlite": "REAL"},
    Text: {"mysql": "MEDIUMTEXT", "sqlite": "TEXT"},
    JSON: {"mysql": "MEDIUMTEXT", "sqlite": "TEXT"},
    Bytea: {"mysql": "MEDIUMBLOB", "sqlite": "BLOB"},
    UUID: {"mysql": f"CHAR(36){_ASCII}", "sqlite": "TEXT"},
    Timestamptz: {"mysql": "DATETIME(6)", "sqlite": "TEXT"},
    Date: {"mysql": "DATE", "sqlite": "TEXT"},
}
# MySQL indexes a beginning of these only, and keeps their defaults as expressions.
_LONG = (Text, JSON, Bytea)
_INSTEAD = {
    "Serial": "a primary key made by the application: Id(primary_key=True) and daydo_kernel.new_id()",
    "Numeric": "BigInt in the smallest unit (fen, credits); SQLite would keep a float",
    "Timestamp": "Timestamptz, or BigInt named …_us: microseconds since 1970 UTC",
    "Time": "Integer named …_s: seconds since midnight",
    "Interval": "BigInt named …_us: microseconds",
    "Char": "Varchar, which keeps trailing spaces",
    "JSONB": "JSON, which is kept as the text that was stored",
    "Array": "a table of its own",
}


class Rule(NamedTuple):
    """A constraint or an index, under its full name; ``text`` is what follows the name in SQL."""

    kind: Literal["unique", "check", "foreign", "index"]
    name: str
    columns: tuple[str, ...]
    text: str


def ddl(table: type[Table], dialect: Dialect) -> list[str]:
    """``CREATE TABLE`` and its ``CREATE INDEX`` statements, without closing semicolons.

    The same class gives the same text on every run and machine.

    Raises:
        Unsupported: a column type, constraint or name that does not mean the same on SQLite and MySQL.
    """
    if table._meta.schema:
        raise Unsupported(what="a table in a schema", instead="a prefix in the table's name")
    create = create_table(table, checked_name(table._meta.tablename), dialect)
    return [create, *(create_index(table, index) for index in indexes(table))]


def create_table(table: type[Table], tablename: str, dialect: Dialect) -> str:
    """``CREATE TABLE`` alone, under another name if need be."""
    lines = [definition(column, dialect) for column in table._meta.columns]
    lines.append(f"PRIMARY KEY ({primary_key(table)})")
    lines += (f"CONSTRAINT {rule.name} {rule.text}" for rule in constraints(table, dialect))
    body = ",\n".join(f"  {line}" for line in lines)
    return f"CREATE TABLE {tablename} (\n{body}\n){_TABLE_OPTIONS[dialect.name]}"


def create_index(table: type[Table], index: Rule) -> str:
    """``CREATE INDEX``."""
    return f"CREATE INDEX {index.name} ON {table._meta.tablename} {index.text}"


def schema(tables: Iterable[type[Table]], dialect: Dialect) -> str:
    """The text of a schema file that creates ``tables`` in the order given: those referred to come first."""
    return "\n".join(f"{statement};\n" for table in tables for statement in ddl(table, dialect))


def definition(column: Column, dialect: Dialect) -> str:
    """A column's line in ``CREATE TABLE``."""
    parts = [checked_name(column._meta.db_column_name), column_type(column, dialect)]
    if not column._meta.null:
        parts.append("NOT NULL")
    text = default_text(column, dialect)
    if text is not None:
        expression = isinstance(column, _LONG) and dialect.name == "mysql"
        parts.append(f"DEFAULT ({text})" if expression else f"DEFAULT {text}")
    return " ".join(parts)


def default_text(column: Column, dialect: Dialect) -> str | None:
    """The literal that the database puts where a column is left out."""
    default = _default(column)
    return None if default is None else _literal(default, dialect)


def column_type(column: Column, dialect: Dialect) -> str:
    """A column's type."""
    if isinstance(column, ForeignKey):
        return column_type(column._foreign_key_meta.resolved_target_column, dialect)
    kinds = [kind.__name__ for kind in type(column).__mro__]
    instead = next((_INSTEAD[kind] for kind in kinds if kind in _INSTEAD), None)
    if instead is None and isinstance(column, Varchar):
        return _varchar(column, dialect)
    types = next((types for kind, types in _TYPES.items() if isinstance(column, kind)), None)
    if instead is not None or types is None:
        raise _unsupported(column, f"the type {kinds[0]}", instead or "Varchar, Text, BigInt or Boolean")
    if isinstance(column, _LONG) and (column._meta.unique or column._meta.index or column._meta.primary_key):
        raise _unsupported(column, f"an index over a {kinds[0]}", "Varchar(length=…)")
    return types[dialect.name]


def _varchar(column: Varchar, dialect: Dialect) -> str:
    if not column.length:
        raise _unsupported(column, "a Varchar without a length", "Varchar(length=…), or Text")
    if dialect.name == "sqlite":
        return "TEXT"
    ascii_only = isinstance(column, Id) or column._meta.primary_key
    return f"VARCHAR({column.length}){_ASCII if ascii_only else ''}"


def _default(column: Column) -> str | int | float | bytes | None:
    """The column's default where the database can know it too: an older version of the code needs it there."""
    default = getattr(column, "default", None)
    default = default.value if isinstance(default, Enum) else default
    if default is None or callable(default) or isinstance(default, Default) or column._meta.primary_key:
        return None
    if isinstance(default, uuid.UUID):
        return str(default)
    if not isinstance(default, str | int | float | bytes):
        raise _unsupported(column, f"the default {default!r}", "a str, int, float, bool, bytes or a function")
    return default


def primary_key(table: type[Table]) -> str:
    """The name of the one column that is the key."""
    keys = [column._meta.db_column_name for column in table._meta.columns if column._meta.primary_key]
    if len(keys) != 1:
        raise Unsupported(what=f"{len(keys)} primary keys in {table.__name__}", instead="one Id and a Unique([…])")
    return keys[0]


def constraints(table: type[Table], dialect: Dialect) -> list[Rule]:
    """Everything at table level but the primary key."""
    rules: list[Rule] = []
    for column in table._meta.columns:
        name = column._meta.db_column_name
        if column._meta.unique and not column._meta.primary_key:
            rules.append(Rule("unique", _qualified(table, f"{name}_unique"), (name,), f"UNIQUE ({name})"))
    for constraint in table._meta.constraints:
        if not isinstance(constraint, Index):
            rules.append(_rule(table, constraint, dialect))  # noqa: PERF401 - reads on below
    for foreign_key in table._meta.foreign_key_columns:
        name = foreign_key._meta.db_column_name
        rules.append(Rule("foreign", _qualified(table, f"{name}_fk"), (name,), _reference(foreign_key)))
    return rules


def indexes(table: type[Table]) -> list[Rule]:
    """The indexes, one for every foreign key among them.

    MySQL would make one by itself, under a name and at times of its own choosing; SQLite makes none, and each DELETE
    of a row referred to would read the whole table.
    """
    named = [
        Rule("index", _qualified(table, constraint._meta.name), tuple(columns), f"({', '.join(columns)})")
        for constraint in table._meta.constraints
        if isinstance(constraint, Index) and (columns := constraint.get_column_names())
    ]
    uniques = [rule.columns for rule in constraints(table, SQLITE) if rule.kind == "unique"]
    led = {columns[0] for columns in (*uniques, *(rule.columns for rule in named))} | {primary_key(table)}
    singles = []
    for column in table._meta.columns:
        name, meta = column._meta.db_column_name, column._meta
        needed = isinstance(column, ForeignKey) and name not in led
        if (meta.index or needed) and not (meta.unique or meta.primary_key):
            singles.append(Rule("index", _qualified(table, f"{name}_index"), (name,), f"({name})"))
    return singles + named


def _rule(table: type[Table], constraint: Constraint, dialect: Dialect) -> Rule:
    name = _qualified(table, constraint._meta.name)
    match constraint:
        case Unique(nulls_distinct=True):
            columns: list[str] = constraint.get_column_names()  # type: ignore[no-untyped-call]
            return Rule("unique", name, tuple(columns), f"UNIQUE ({', '.join(columns)})")
        case Unique():
            raise Unsupported(what="nulls_distinct=False", instead="a column that is never null")
        case Check():
            return Rule("check", name, (), f"CHECK ({_condition(constraint.condition, dialect)})")
    raise Unsupported(what=f"the constraint {type(constraint).__name__}", instead="Unique, Check or Index")


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
    value = adapted(value)
    match value:
        case bool():
            return "TRUE" if value else "FALSE"
        case int():
            return str(value)
        case float() if math.isfinite(value):
            return repr(value)
        case bytes():
            return f"X'{value.hex()}'"
        case str() if value.isprintable():
            text = value.replace("'", "''")
            return f"'{text}'" if dialect.name == "sqlite" else "'" + text.replace("\\", "\\\\") + "'"
    raise Unsupported(what=f"the value {value!r} in SQL text", instead="printable text, bytes, a bool, a finite number")


def _qualified(table: type[Table], name: str) -> str:
    """``table_name``, since SQLite's indexes and MySQL's constraints share one namespace; hashed beyond 64."""
    full = f"{table._meta.tablename}_{name}"
    if len(full) > 64:
        full = f"{full[:55]}_{blake2s(full.encode(), digest_size=4).hexdigest()}"
    return checked_name(full)


def checked_name(text: str) -> str:
    """A name that needs no quotes anywhere."""
    if not _NAME.fullmatch(text):
        raise Unsupported(what=f"the name {text!r}", instead="at most 64 lower-case letters, digits and underscores")
    if text in RESERVED:
        raise Unsupported(what=f"the reserved word {text!r} as a name", instead=f"{text}_ or a better word")
    return text


def _unsupported(column: Column, what: str, instead: str) -> Unsupported:
    return Unsupported(what=f"{what} ({column._meta.table.__name__}.{column._meta.name})", instead=instead)

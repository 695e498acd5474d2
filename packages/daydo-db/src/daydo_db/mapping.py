"""What drivers say, in our words: the one table for both engines.

It reads numbers and texts, no driver's classes but sqlite3's, so it also serves ``daydo_db.sqlalchemy``, whose session
brings its own driver.

Servers repeat in their messages what they were sent, and whoever logs an error logs its cause. So the driver's own text
is kept only where it is known to hold names and no values.
"""

from __future__ import annotations

import re
import sqlite3

from .errors import (
    CheckViolation,
    ConnectionLost,
    DbError,
    Deadlock,
    ForeignKeyViolation,
    LockTimeout,
    NotNullViolation,
    QueryTimeout,
    StatementFailed,
    StorageFull,
    UniqueViolation,
)

_SHOWN = 200

# Numbers of MySQL and MariaDB. 1020: the row changed since the snapshot (MariaDB ≥ 11.6). 3572: NOWAIT.
# 4025 and 3819 are the two servers' CHECK. 1040, 1203, 1226: no room for another connection.
_DEADLOCK = {1213, 1020, 1614}
_LOCK_TIMEOUT = {1205, 3572}
_QUERY_TIMEOUT = {1317, 1969, 3024}
_LOST = {0, 1040, 1053, 1077, 1079, 1152, 1158, 1159, 1160, 1161, 1203, 1226, 1927, 2000, 2002, 2003, 2006, 2012}
_LOST |= {2013, 2014, 2026, 2055, 3169, 4031}
# Read only: it was the primary once. A new connection finds the one that is. 1290 stands for many options.
_READ_ONLY = {1290, 1836}
_READ_ONLY_OPTION = re.compile("read[-_ ]only", re.IGNORECASE)
_UNIQUE = {1022, 1062, 1169, 1586}
_FOREIGN_KEY = {1216, 1217, 1451, 1452, 1761, 1762}
_FULL = {1021, 1114}
_CHECK = {3819, 4025}
_NOT_NULL = {1048, 1364}

# Messages that hold names of databases, tables, columns, keys, variables and users, or nothing. Not among them: columns
# that a query names itself (1060, 1166), for `SELECT ?` names one by its value.
_NAMES_ONLY = frozenset(
    {1005, 1007, 1008, 1020, 1021, 1022, 1040, 1044, 1045, 1046, 1048, 1049, 1050, 1051, 1052, 1053, 1054, 1061, 1065}
    | {1066, 1068, 1071, 1072, 1075, 1091, 1100, 1109, 1114, 1115, 1118, 1136, 1142, 1143, 1146, 1153, 1158, 1159, 1160}
    | {1161, 1169, 1170, 1171, 1176, 1193, 1203, 1205, 1206, 1213, 1215, 1216, 1217, 1222, 1226, 1227, 1235, 1241, 1242}
    | {1264, 1267, 1290, 1305, 1317, 1318, 1364, 1370, 1406, 1418, 1419, 1451, 1452, 1614, 1792, 1836, 1927, 1969, 2000}
    | {2002, 2003, 2006, 2012, 2013, 2014, 2026, 2055, 3024, 3169, 3572, 3819, 4025, 4031}
)
# And those that hold a value at a known place.
_DUPLICATE = re.compile(r"(Duplicate entry) '.*'( for key '[^']*')", re.DOTALL)
_WITH_VALUES = {1062: _DUPLICATE, 1586: _DUPLICATE, 1064: re.compile(r"(.*?) near '.*'( at line \d+)", re.DOTALL)}
_SQLITE_NAMES_ONLY = re.compile(
    r"SQLITE_(?:BUSY|LOCKED|READONLY|FULL|IOERR|NOTADB|INTERRUPT|CANTOPEN)"
    r"|SQLITE_CONSTRAINT_(?:UNIQUE|PRIMARYKEY|ROWID|NOTNULL|CHECK|FOREIGNKEY|DATATYPE)$"
)
# What SQLite says of a statement. Parameters are bound and never part of it, so words that are were ours.
_SQLITE_WORDS = re.compile(
    r"(?:no such (?:table|column|function|index|view|trigger|collation sequence): |ambiguous column name: )(.+)"
    r"|duplicate column name: (.+)|(?:table|index|view|trigger) (.+) already exists"
    r'|table (.+) has no column named (.+)|near "(.+)": syntax error',
    re.DOTALL,
)
_SQLITE_MODULE = ("You can only execute one statement", "Cannot operate on a closed", "Incorrect number of bindings")
_LAST_NAME = re.compile(r"for key ['`\"]?([^'`\"]*)['`\"]?$")
_CONSTRAINT = re.compile(r"(?:CONSTRAINT|constraint) [`'\"]([^`'\"]*)[`'\"]")
_FIRST_NAME = re.compile(r"'([^']*)'")


def without_values(number: int, message: str) -> str:
    """What of a server's message may be shown to anybody: empty where it might hold a value."""
    if number in _NAMES_ONLY:
        return message
    known = _WITH_VALUES.get(number)
    match = known.fullmatch(message) if known is not None else None
    return " …".join(match.groups()) if match else ""


def was_refused(error: ConnectionLost | QueryTimeout) -> bool:
    """Whether the server said, instead of doing anything, that it is read only: then nothing is unknown."""
    cause = error.__cause__
    return cause is not None and bool(cause.args) and cause.args[0] in _READ_ONLY


def from_mysql(number: int, message: str, sql: str = "") -> DbError:
    """The error for a number and message of MySQL or MariaDB; ``sql`` is the statement without parameters."""
    message = without_values(number, message)
    if number in _UNIQUE:
        return UniqueViolation(constraint=_find(_LAST_NAME, message))
    if number in _FOREIGN_KEY:
        return ForeignKeyViolation(constraint=_find(_CONSTRAINT, message))
    if number in _CHECK:
        return CheckViolation(constraint=_find(_CONSTRAINT, message))
    if number in _NOT_NULL:
        return NotNullViolation(constraint=_find(_FIRST_NAME, message))
    if number in _DEADLOCK:
        return Deadlock()
    if number in _LOCK_TIMEOUT:
        return LockTimeout()
    if number in _QUERY_TIMEOUT:
        return QueryTimeout()
    if number in _LOST or (number in _READ_ONLY and _READ_ONLY_OPTION.search(message)):
        return ConnectionLost()
    if number in _FULL:
        return StorageFull()
    return StatementFailed(reason=f"MySQL error {number}", statement=_shown(sql))


def from_sqlite(error: sqlite3.Error, sql: str = "") -> DbError:
    """The error for what the sqlite3 module raised; ``sql`` is the statement without parameters.

    Takes values out of ``error`` itself, which will be the cause.
    """
    name = getattr(error, "sqlite_errorname", "")  # Absent where the module itself complains, not the library.
    if not _may_be_shown(name, str(error), sql):
        error.args = (name,)
    detail = str(error).partition(": ")[2].removeprefix("index ").strip("'")
    match name:
        case "SQLITE_CONSTRAINT_UNIQUE" | "SQLITE_CONSTRAINT_PRIMARYKEY" | "SQLITE_CONSTRAINT_ROWID":
            return UniqueViolation(constraint=detail)
        case "SQLITE_CONSTRAINT_FOREIGNKEY" | "SQLITE_CONSTRAINT_TRIGGER":
            return ForeignKeyViolation(constraint="")
        case "SQLITE_CONSTRAINT_CHECK":
            return CheckViolation(constraint=detail)
        case "SQLITE_CONSTRAINT_NOTNULL":
            return NotNullViolation(constraint=detail.rpartition(".")[2])
        case "SQLITE_INTERRUPT":
            return QueryTimeout()
        case "SQLITE_FULL":
            return StorageFull()
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return LockTimeout()
    return StatementFailed(reason=name or "sqlite3 module", statement=_shown(sql))


def _may_be_shown(name: str, message: str, sql: str) -> bool:
    if not name:
        return message.startswith(_SQLITE_MODULE)
    if _SQLITE_NAMES_ONLY.match(name):
        return True
    words = _SQLITE_WORDS.fullmatch(message)
    return words is not None and all(word in sql for word in words.groups() if word)


def _find(pattern: re.Pattern[str], message: str) -> str:
    match = pattern.search(message)
    return match[1] if match else ""


def _shown(sql: str) -> str:
    text = " ".join(sql.split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"

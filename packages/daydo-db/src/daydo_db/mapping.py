"""What drivers say, in our words: the one table for both engines.

It reads error numbers only, so it also serves ``daydo_db.sqlalchemy``, whose session brings its own driver.
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
# Read only: it was the primary once. A new connection finds the one that is.
_LOST |= {1290, 1836}
_UNIQUE = {1022, 1062, 1169, 1586}
_FOREIGN_KEY = {1216, 1217, 1451, 1452, 1761, 1762}
_FULL = {1021, 1114}
_CHECK = {3819, 4025}
_NOT_NULL = {1048, 1364}

# Values stand between the quotes of these messages; names of constraints and columns stand after them.
_VALUE = re.compile(r"(entry) '.*'(?= for key )|(near) '.*'(?= at line )|(value:?|value is) '.*'", re.DOTALL)
_LAST_NAME = re.compile(r"for key ['`\"]?([^'`\"]*)['`\"]?$")
_CONSTRAINT = re.compile(r"(?:CONSTRAINT|constraint) [`'\"]([^`'\"]*)[`'\"]")
_FIRST_NAME = re.compile(r"'([^']*)'")


def without_values(message: str) -> str:
    """A server's message with the parameters it quotes taken out."""
    return _VALUE.sub(lambda match: f"{match[match.lastindex or 0]} …", message)


def from_mysql(number: int, message: str, sql: str = "") -> DbError:
    """The error for a number and message of MySQL or MariaDB; ``sql`` is the statement without parameters."""
    if number in _UNIQUE:
        return UniqueViolation(constraint=_find(_LAST_NAME, without_values(message)))
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
    if number in _LOST:
        return ConnectionLost()
    if number in _FULL:
        return StorageFull()
    return StatementFailed(reason=f"MySQL error {number}", statement=_shown(sql))


def from_sqlite(error: sqlite3.Error, sql: str = "") -> DbError:
    """The error for what the sqlite3 module raised; ``sql`` is the statement without parameters."""
    name = getattr(error, "sqlite_errorname", "")  # Absent where the module itself complains, not the library.
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


def _find(pattern: re.Pattern[str], message: str) -> str:
    match = pattern.search(message)
    return match[1] if match else ""


def _shown(sql: str) -> str:
    text = " ".join(sql.split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"

"""SQLite and MySQL under one explicit transaction; see README.md."""

from .batch import load_many
from .clock import now_sql, read_now_us
from .config import DatabaseConfig
from .database import Database
from .errors import (
    CheckViolation,
    CommitUnknown,
    ConnectionLost,
    CursorInvalid,
    DbError,
    Deadlock,
    ForeignKeyViolation,
    InsideTransaction,
    LockTimeout,
    NotNullViolation,
    PoolTimeout,
    QueryTimeout,
    SchemaEdited,
    SchemaOutdated,
    StatementFailed,
    StorageFull,
    TransactionAborted,
    UniqueViolation,
)
from .migrate import Applied, migrate
from .paging import Cursors, Cut, Keyset, Slice
from .pipelined import Pipelined
from .transaction import Transaction
from .turns import taking_turns, whole
from .tx import MYSQL, SQLITE, Dialect, Result, Tx, Value

__all__ = [
    "MYSQL",
    "SQLITE",
    "Applied",
    "CheckViolation",
    "CommitUnknown",
    "ConnectionLost",
    "CursorInvalid",
    "Cursors",
    "Cut",
    "Database",
    "DatabaseConfig",
    "DbError",
    "Deadlock",
    "Dialect",
    "ForeignKeyViolation",
    "InsideTransaction",
    "Keyset",
    "LockTimeout",
    "NotNullViolation",
    "Pipelined",
    "PoolTimeout",
    "QueryTimeout",
    "Result",
    "SchemaEdited",
    "SchemaOutdated",
    "Slice",
    "StatementFailed",
    "StorageFull",
    "Transaction",
    "TransactionAborted",
    "Tx",
    "UniqueViolation",
    "Value",
    "load_many",
    "migrate",
    "now_sql",
    "read_now_us",
    "taking_turns",
    "whole",
]

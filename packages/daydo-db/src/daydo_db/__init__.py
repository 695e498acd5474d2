"""SQLite and MySQL under one explicit transaction; see README.md."""

from .clock import now_sql, read_now_us
from .config import DatabaseConfig
from .database import Database
from .errors import (
    CheckViolation,
    CommitUnknown,
    ConnectionLost,
    DbError,
    Deadlock,
    ForeignKeyViolation,
    InsideTransaction,
    LockTimeout,
    NotNullViolation,
    PoolTimeout,
    QueryTimeout,
    SchemaOutdated,
    StatementFailed,
    StorageFull,
    TransactionAborted,
    UniqueViolation,
)
from .migrate import Applied, migrate
from .transaction import Transaction
from .tx import MYSQL, SQLITE, Dialect, Result, Tx, Value

__all__ = [
    "MYSQL",
    "SQLITE",
    "Applied",
    "CheckViolation",
    "CommitUnknown",
    "ConnectionLost",
    "Database",
    "DatabaseConfig",
    "DbError",
    "Deadlock",
    "Dialect",
    "ForeignKeyViolation",
    "InsideTransaction",
    "LockTimeout",
    "NotNullViolation",
    "PoolTimeout",
    "QueryTimeout",
    "Result",
    "SchemaOutdated",
    "StatementFailed",
    "StorageFull",
    "Transaction",
    "TransactionAborted",
    "Tx",
    "UniqueViolation",
    "Value",
    "migrate",
    "now_sql",
    "read_now_us",
]

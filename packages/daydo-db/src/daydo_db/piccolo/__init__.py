"""Piccolo's tables and queries on :class:`daydo_db.Database`, the same on SQLite and MySQL. Extra: ``[piccolo]``."""

from .changes import changes
from .columns import Id, Index
from .ddl import ddl, schema
from .engine import DatabaseEngine
from .errors import Unsupported
from .running import affected, bind, run

__all__ = ["DatabaseEngine", "Id", "Index", "Unsupported", "affected", "bind", "changes", "ddl", "run", "schema"]

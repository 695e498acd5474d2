"""What a table needs to say and Piccolo has no word for."""

from __future__ import annotations

from typing import Any, NoReturn

from piccolo.columns import Column, Varchar
from piccolo.constraints import Constraint

from .errors import Unsupported


class Id(Varchar):
    """An id made by the application: ASCII, compared byte by byte, required.

    Text primary keys and foreign keys to them are stored that way by themselves; declare ``Id`` where a
    column holds an id without being a key (``run_id = Id()``).
    """

    def __init__(self, length: int = 40, default: Any = None, **kwargs: Any) -> None:
        super().__init__(length=length, default=default, **kwargs)


class Index(Constraint):
    """An index over several columns: ``by_owner = Index([tenant, subject, created_at_us])``."""

    def __init__(self, columns: list[Column], name: str | None = None) -> None:
        self.columns = columns
        super().__init__(name=name, columns=columns)

    def get_column_names(self) -> list[str]:
        """The columns' names in the database, in order."""
        return [column._meta.db_column_name for column in self.columns]

    def serialise_self(self) -> None:
        self._meta.params["columns"] = self.get_column_names()

    @property
    def ddl(self) -> NoReturn:
        raise Unsupported(what="Piccolo's own DDL", instead="daydo_db.piccolo.ddl(table, dialect)")

    def _table_str(self) -> str:
        return f"{self._meta._name} = Index({self.get_column_names()})"

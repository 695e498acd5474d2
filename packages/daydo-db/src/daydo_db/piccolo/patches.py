"""The three attributes of Piccolo that are replaced, all in this file.

Piccolo knows its engines by name in closed if-chains, so an engine from outside cannot say how its queries
are written. Each replacement serves tables bound to our engine and hands everything else to the original.
They are held true by a contract test, and by the pin: another minor version of Piccolo is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, cast

from piccolo.columns import Column
from piccolo.columns.combination import Where
from piccolo.query.base import DDL, Query
from piccolo.querystring import QueryString

from .engine import DatabaseEngine
from .errors import Unsupported
from .statements import prepare

MADE_FOR = "1.38"

_querystrings = cast("property", Query.__dict__["querystrings"])
_ddl = cast("property", DDL.__dict__["ddl"])
_ilike = Column.ilike


def install() -> None:
    """Put the replacements in place; again is harmless.

    Raises:
        ImportError: the installed Piccolo is not one they were made for.
    """
    found = version("piccolo")
    if found.split(".")[:2] != MADE_FOR.split("."):
        raise ImportError(
            f"daydo_db.piccolo is made for Piccolo {MADE_FOR}, not {found}: pip install daydo-db[piccolo]"
        )
    Query.querystrings = property(querystrings)  # type: ignore[method-assign, assignment]
    DDL.ddl = property(ddl)  # type: ignore[method-assign, assignment]
    Column.ilike = ilike  # type: ignore[method-assign]


def querystrings(self: Query[Any, Any]) -> Sequence[QueryString]:
    """In place of ``Query.querystrings``."""
    if not isinstance(self.table._meta._db, DatabaseEngine):
        return cast("Sequence[QueryString]", _querystrings.__get__(self))
    return [prepare(self)] if self._frozen_querystrings is None else self._frozen_querystrings


def ddl(self: DDL) -> Sequence[str]:
    """In place of ``DDL.ddl``."""
    if not isinstance(self.table._meta._db, DatabaseEngine):
        return cast("Sequence[str]", _ddl.__get__(self))
    raise Unsupported(
        what=f"Piccolo's {type(self).__name__} of a table",
        instead="ddl(table, dialect) in a numbered schema file",
    )


def ilike(self: Column, value: str) -> Where:
    """In place of ``Column.ilike``, which would quietly become a LIKE."""
    if not isinstance(self._meta.table._meta._db, DatabaseEngine):
        return _ilike(self, value)
    raise Unsupported(what="ILIKE", instead="a column that holds the text in lower case")

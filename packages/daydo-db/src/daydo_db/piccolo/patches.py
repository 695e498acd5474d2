"""The attributes of Piccolo that are replaced, all in this file.

Piccolo knows its engines by name in closed if-chains, so an engine from outside cannot say how its queries
are written. Each replacement serves tables bound to our engine and hands everything else to the original.
They are held true by a contract test, and by the pin: another minor version of Piccolo is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, cast

from piccolo.columns import Column
from piccolo.columns.column_types import TimedeltaDelegate
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
_run = Query._run
_timedelta = TimedeltaDelegate.get_querystring


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
    Query._run = run  # type: ignore[method-assign]
    Column.ilike = ilike  # type: ignore[method-assign]
    TimedeltaDelegate.get_querystring = timedelta  # type: ignore[method-assign]


def querystrings(self: Query[Any, Any]) -> Sequence[QueryString]:
    """In place of ``Query.querystrings``."""
    if not isinstance(self.table._meta._db, DatabaseEngine):
        return cast("Sequence[QueryString]", _querystrings.__get__(self))
    return [prepare(self)] if self._frozen_querystrings is None else self._frozen_querystrings


async def run(self: Query[Any, Any], node: str | None = None, in_pool: bool = True) -> Any:
    """In place of ``Query._run``, which would compose the text anew and look at each row twice."""
    engine = self.table._meta._db
    if not isinstance(engine, DatabaseEngine):
        return await _run(self, node, in_pool)
    if node is not None:
        raise Unsupported(what="node=", instead="a Database of its own, and run(query, database)")
    return await engine.run(self, in_pool)


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


def timedelta(self: TimedeltaDelegate, column: Column, *args: Any, **kwargs: Any) -> QueryString:
    """In place of ``TimedeltaDelegate.get_querystring``, which knows no MySQL."""
    if not isinstance(column._meta.table._meta._db, DatabaseEngine):
        return _timedelta(self, column, *args, **kwargs)
    raise Unsupported(what="a column ± a timedelta", instead="Python, and a value")

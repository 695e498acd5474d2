"""Bind tables to a database; run queries on it or in an explicit transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar, cast

from piccolo.query import Delete, Update
from piccolo.query.base import FrozenQuery
from piccolo.query.methods.objects import GetOrCreate
from piccolo.table import Table

from daydo_db.database import Database
from daydo_db.tx import Tx

from .ddl import ddl
from .engine import DatabaseEngine
from .errors import Unsupported
from .patches import install
from .statements import prepare

T_co = TypeVar("T_co", covariant=True)


class Runnable(Protocol[T_co]):
    """Any query of Piccolo: what it gives when awaited."""

    async def run(self, node: str | None = None, in_pool: bool = True) -> T_co: ...


def bind(tables: Iterable[type[Table]], database: Database) -> None:
    """Let ``tables`` run on ``database``; once at composition, before it is started or after.

    Piccolo keeps an engine per class, so a process has one database per table; binding again moves it.

    Raises:
        Unsupported: a table that would not behave the same on SQLite and MySQL.
        ImportError: the installed Piccolo is not the one this edge is made for.
    """
    install()
    engine = DatabaseEngine(database)
    for table in tables:
        ddl(table, database.dialect)
        table._meta.db = engine


async def run(query: Runnable[T_co], database: Database | None = None, *, tx: Tx | None = None) -> T_co:
    """What Piccolo would give for ``query``, run in ``tx``, else on ``database``, else where it is bound.

    Outside a transaction a read goes through ``database.query`` and a write commits by itself.

    Raises:
        Unsupported: a query that SQLite and MySQL would not agree on.
        ValueError: its table is not bound, or to the other dialect.
        DbError: what the database said.
    """
    _engine(query)
    if isinstance(query, GetOrCreate):
        raise Unsupported(what="get_or_create", instead="insert, and on UniqueViolation select with lock_rows()")
    where = tx if tx is not None else database
    return await query.run(in_pool=True if where is None else cast("bool", where))


async def affected(query: Update[Any] | Delete, database: Database | None = None, *, tx: Tx | None = None) -> int:
    """Run an UPDATE or DELETE and tell how many rows it met, also those it did not change.

    (In a caller's SQLAlchemy session: as that session counts.) The way to a conditional change::

        moved = await affected(Task.update({Task.state: "running"}).where(Task.id == id, Task.state == "queued"), tx=tx)
    """
    engine = _engine(query)
    query._validate()  # type: ignore[no-untyped-call]
    result = await engine.execute(prepare(query), tx if tx is not None else database or engine.database)
    return result.rowcount


def _engine(query: object) -> DatabaseEngine:
    """The engine of a query's table. Another kind of engine would overlook the transaction and run outside it."""
    query = query.query if isinstance(query, FrozenQuery) else query
    owners = (getattr(query, name, None) for name in ("table", "table_class", "row", "instance"))
    table = next((owner for owner in owners if owner is not None), None)
    engine = None if table is None else table._meta._db
    if not isinstance(engine, DatabaseEngine):
        raise ValueError(f"bind its tables to a Database before running {type(query).__name__}")
    return engine

"""Bind tables to a database; run queries on it or in an explicit transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar, cast

from piccolo.columns.combination import And, Where
from piccolo.columns.m2m import M2MAddRelated, M2MGetRelated, M2MRemoveRelated
from piccolo.columns.operators.comparison import Equal
from piccolo.query import Delete, Update
from piccolo.query.base import FrozenQuery
from piccolo.query.methods.objects import GetOrCreate
from piccolo.table import Table

from daydo_db.database import Database
from daydo_db.errors import UniqueViolation
from daydo_db.tx import Tx

from .ddl import ddl
from .engine import DatabaseEngine, Reader
from .errors import Unsupported
from .patches import install

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


async def run(
    query: Runnable[T_co], database: Database | None = None, *, tx: Tx | None = None, replica: bool = False
) -> T_co:
    """What Piccolo would give for ``query``, run in ``tx``, else on ``database``, else where it is bound.

    Outside a transaction a read goes through ``database.query``, with its ``replica``, and a write commits by itself.
    ``get_or_create`` outside a transaction is several statements, each by itself; it is safe against another that
    creates the same row where a unique key says what the same is.

    Raises:
        Unsupported: a query that SQLite and MySQL would not agree on.
        ValueError: its table is not bound, or to the other dialect.
        DbError: what the database said.
    """
    engine = _engine(query)
    if isinstance(query, M2MGetRelated | M2MAddRelated | M2MRemoveRelated):
        raise Unsupported(what="many-to-many", instead="a select, insert or delete on the joining table")
    if tx is not None:
        if replica:
            raise ValueError("a transaction reads what it reads; leave replica= away")
        where: object = tx
    else:
        where = Reader(database or engine.database) if replica else database or True
    if isinstance(query, GetOrCreate):
        return cast("T_co", await _get_or_create(query, where))
    return await query.run(in_pool=cast("bool", where))


async def _get_or_create(query: GetOrCreate[Any], where: object) -> Table:
    """Look, and then insert, as Piccolo does. Of two at once one insert fails, and that one looks again."""
    in_pool = cast("bool", where)
    found: Table | None = await query.query.get(query.where).run(in_pool=in_pool)
    if found is None:
        made: Table = query.table_class(_data={**query.defaults, **_values(query.where)})
        try:
            await made.save().run(in_pool=in_pool)
        except UniqueViolation:
            if not isinstance(where, Database | Reader | bool):
                # Only a locking read sees the other's row in a transaction that has read before.
                query.query.lock_rows()
            found = await query.query.first().run(in_pool=in_pool)
            if found is None:
                raise
        else:
            if query.query.prefetch_delegate.fk_columns:
                made = await query.query.first().run(in_pool=in_pool) or made
            made._was_created = True
            return made
    found._was_created = False
    return found


def _values(where: Any) -> dict[Any, Any]:
    """What a row must hold to meet the condition, as far as it says so with ``==``."""
    if isinstance(where, And):
        values = where.get_column_values()
    elif isinstance(where, Where) and where.operator is Equal:
        values = {where.column: where.value}
    else:
        values = {}
    return {column: value for column, value in values.items() if not column._meta.call_chain}


async def affected(query: Update[Any] | Delete, database: Database | None = None, *, tx: Tx | None = None) -> int:
    """Run an UPDATE or DELETE and tell how many rows it met, also those it did not change.

    (In a caller's SQLAlchemy session: as that session counts.) The way to a conditional change::

        moved = await affected(Task.update({Task.state: "running"}).where(Task.id == id, Task.state == "queued"), tx=tx)
    """
    engine = _engine(query)
    query._validate()  # type: ignore[no-untyped-call]
    where = tx if tx is not None else database
    composed, args = engine.composed(query)
    result = await engine.send(composed, args, engine.place(True if where is None else where))
    return result.rowcount


def _engine(query: object) -> DatabaseEngine:
    """The engine of a query's table. Another kind of engine would overlook the transaction and run outside it."""
    query = query.query if isinstance(query, FrozenQuery) else query
    table = getattr(query, "table", None)
    if table is None:
        owners = (getattr(query, name, None) for name in ("table_class", "row", "instance", "target_row"))
        table = next((owner for owner in owners if owner is not None), None)
    engine = None if table is None else table._meta._db
    if not isinstance(engine, DatabaseEngine):
        raise ValueError(f"bind its tables to a Database before running {type(query).__name__}")
    return engine

"""The engine that Piccolo's tables are bound to: our Database, its pool, its transactions, its errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn, cast

from piccolo.engine.base import BaseTransaction, Engine
from piccolo.query import Count as CountRows
from piccolo.query import Exists, Insert, Objects, Select
from piccolo.query.base import Query
from piccolo.querystring import QueryString
from piccolo.table import Table

from daydo_db.database import Database
from daydo_db.tx import Result, Tx

from .errors import Unsupported
from .insert import insert_statement
from .shapes import Key, NoShape, shape
from .statements import Converters, PiccoloStatement, prepare

# Texts kept per database; the oldest goes first. Longer ones, of lists of thousands of values, are composed each time.
_KEPT = 1024
_KEPT_CHARS_MAX = 16_384
# What SQLite takes at most; one bound for all.
_VALUES = 32_766


class Composed(NamedTuple):
    """All that running a query of one shape takes to know."""

    sql: str
    writes: bool
    locks: bool
    converters: Converters


class Reader(NamedTuple):
    """A database of which a read may also be answered by a replica."""

    database: Database


class DatabaseEngine(Engine[BaseTransaction]):
    """What a bound table's ``_meta.db`` is; made by ``bind``.

    It holds no connection and no current transaction. Where a query runs arrives as ``in_pool``, the one
    argument that Piccolo carries from ``run()`` to the engine: a transaction or database from ``run(query, …)``,
    True from a bare ``await``, False from ``run_sync()``.
    """

    __slots__ = ("_kept", "database")

    def __init__(self, database: Database) -> None:
        # Piccolo's own constructor would ask the server for its version, and so connect at import.
        self.database = database
        self.engine_type = database.dialect.name
        self.log_queries = self.log_responses = False
        self.min_version_number = 0
        self.query_id = 0
        self._kept: dict[Key, Composed] = {}
        self.current_transaction: ContextVar[BaseTransaction | None] = ContextVar("daydo_db_piccolo", default=None)

    async def run(self, query: Query[Any, Any], where: object) -> Any:
        """What Piccolo would give for ``query``. ``where`` is what arrived as ``in_pool``.

        Raises:
            Unsupported: a query that SQLite and MySQL would not agree on.
            DbError: what the database said.
        """
        query._validate()  # type: ignore[no-untyped-call]
        place = self.place(where)
        if isinstance(query, Insert):
            return await self._insert(query, place)
        composed, args = self.composed(query)
        result = await self.send(composed, args, place)
        if isinstance(query, CountRows):
            return result.rows[0][0]
        if isinstance(query, Exists):
            return bool(result.rows[0][0])
        if composed.writes:
            return []
        output = cast("Select[Any] | Objects[Any]", query).output_delegate._output
        if isinstance(query, Objects) and query.prefetch_delegate.fk_columns:
            output.nested = True  # Piccolo says so while it composes, which a kept text saves
        if output.nested or output.load_json:
            if isinstance(query, Select) and not query.columns_delegate.selected_columns:
                query.columns_delegate.selected_columns = query.table._meta.columns  # likewise
            return await query._process_results(_dicts(composed, result))
        if isinstance(query, Objects):
            return _objects(query.table, composed, result)
        return _dicts(composed, result)

    def composed(self, query: Query[Any, Any]) -> tuple[Composed, list[Any]]:
        """The text of a query, composed once per shape, and this query's values."""
        if query._frozen_querystrings is not None:
            return self._compiled(query._frozen_querystrings[0])
        try:
            key, args = shape(query)
        except NoShape:
            return self._compose(query)
        composed = self._kept.get(key)
        if composed is None:
            composed, values = self._compose(query)
            if len(values) != len(args):
                return composed, values
            if len(composed.sql) > _KEPT_CHARS_MAX:
                return composed, args
            if len(self._kept) == _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = composed
        return composed, args

    def _compose(self, query: Query[Any, Any]) -> tuple[Composed, list[Any]]:
        return self._compiled(prepare(query))

    def _compiled(self, querystring: QueryString) -> tuple[Composed, list[Any]]:
        if not isinstance(querystring, PiccoloStatement):
            raise Unsupported(what="a bare QueryString", instead="tx.execute with SQL")
        sql, args = querystring.compile_string(self.engine_type)
        return Composed(sql, querystring.writes, querystring.locks, querystring.converters), args

    async def send(self, composed: Composed, args: list[Any], where: Database | Reader | Tx) -> Result:
        """Run a statement in a transaction, or by itself on a database."""
        if len(args) > _VALUES:
            raise Unsupported(what=f"{len(args)} values in one statement", instead=f"portions of at most {_VALUES}")
        replica = isinstance(where, Reader)
        where = where.database if isinstance(where, Reader) else where
        if composed.writes or not isinstance(where, Database):
            return await where.execute(composed.sql, args)
        if composed.locks:
            raise Unsupported(what="lock_rows() outside a transaction", instead="run(query, tx=tx)")
        return await where.query(composed.sql, args, replica=replica)

    async def _insert(self, query: Insert[Any], where: Database | Reader | Tx) -> list[dict[str, Any]]:
        statement = insert_statement(query, self.database.dialect.name)
        await self.send(Composed(statement.sql, True, False, ()), statement.args, where)
        if statement.inserts_all:
            for row in query.add_delegate._add:
                row._exists_in_db = True
        return statement.answer

    def place(self, where: object) -> Database | Reader | Tx:
        """The transaction or database that arrived as ``in_pool``."""
        if where is True:
            return self.database
        if where is False:
            raise Unsupported(what="run_sync()", instead="await")
        place = cast("Database | Reader | Tx", where)
        dialect = place.database.dialect if isinstance(place, Reader) else place.dialect
        if dialect.name != self.engine_type:
            raise ValueError(f"the table is bound to {self.engine_type} and cannot run on {dialect.name}")
        return place

    async def run_querystring(self, querystring: QueryString, in_pool: object = True) -> list[dict[str, Any]]:
        composed, args = self._compiled(querystring)
        return _dicts(composed, await self.send(composed, args, self.place(in_pool)))

    async def run_ddl(self, ddl: str, in_pool: bool = True) -> NoReturn:
        raise Unsupported(what="Piccolo's DDL", instead="ddl(table, dialect) in a numbered schema file")

    def transaction(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise Unsupported(what="Piccolo's transaction()", instead="database.transaction() and run(query, tx=tx)")

    def atomic(self) -> NoReturn:
        raise Unsupported(what="Piccolo's atomic()", instead="database.transaction() and run(query, tx=tx)")

    async def batch(self, query: Any, batch_size: int = 100, node: str | None = None) -> NoReturn:
        raise Unsupported(what="batch()", instead="where(key > last).order_by(key).limit(n) in a loop")

    async def get_version(self) -> float:
        return self.get_version_sync()

    def get_version_sync(self) -> float:
        # Piccolo asks in order to gate clauses by version; prepare() decides about those.
        return math.inf

    async def prep_database(self) -> None:
        """Nothing: our migrations do."""


def _rows(composed: Composed, result: Result) -> list[Any]:
    if not composed.converters:
        return result.rows
    rows: list[Any] = [list(row) for row in result.rows]
    for row in rows:
        for position, load in composed.converters:
            if row[position] is not None:
                row[position] = load(row[position])
    return rows


def _dicts(composed: Composed, result: Result) -> list[dict[str, Any]]:
    columns = result.columns
    return [dict(zip(columns, row, strict=True)) for row in _rows(composed, result)]


def _objects(table: type[Table], composed: Composed, result: Result) -> list[Table]:
    if table.__init__ is not Table.__init__ or table.__setitem__ is not Table.__setitem__:
        return [table(**row, _exists_in_db=True) for row in _dicts(composed, result)]
    names = [column._meta.name for column in table._meta.columns]
    return [_object(table, names, row) for row in _rows(composed, result)]


def _object(table: type[Table], names: list[str], row: Iterable[Any]) -> Table:
    """As Piccolo's constructor would make it, which looks for every column by two names and asks for its default."""
    made = table.__new__(table)
    made._exists_in_db, made._was_created = True, None
    made.__dict__.update(zip(names, row, strict=True))
    return made

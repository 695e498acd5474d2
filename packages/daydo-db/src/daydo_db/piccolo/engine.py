"""The engine that Piccolo's tables are bound to: our Database, its pool, its transactions, its errors."""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import Any, NoReturn, cast

from piccolo.engine.base import BaseTransaction, Engine
from piccolo.querystring import QueryString

from daydo_db.database import Database
from daydo_db.tx import Result, Tx

from .errors import Unsupported
from .statements import PiccoloStatement


class DatabaseEngine(Engine[BaseTransaction]):
    """What a bound table's ``_meta.db`` is; made by ``bind``.

    It holds no connection and no current transaction. Where a query runs arrives as ``in_pool``, the one
    argument that Piccolo carries from ``run()`` to the engine: a transaction or database from ``run(query, …)``,
    True from a bare ``await``, False from ``run_sync()``.
    """

    __slots__ = ("database",)

    def __init__(self, database: Database) -> None:
        # Piccolo's own constructor would ask the server for its version, and so connect at import.
        self.database = database
        self.engine_type = database.dialect.name
        self.log_queries = self.log_responses = False
        self.min_version_number = 0
        self.query_id = 0
        self.current_transaction: ContextVar[BaseTransaction | None] = ContextVar("daydo_db_piccolo", default=None)

    async def run_querystring(self, querystring: QueryString, in_pool: object = True) -> list[dict[str, Any]]:
        if in_pool is False:
            raise Unsupported(what="run_sync()", instead="await")
        if not isinstance(querystring, PiccoloStatement):
            raise Unsupported(what="a bare QueryString", instead="tx.execute with SQL")
        where = self.database if in_pool is True else cast("Database | Tx", in_pool)
        return querystring.rows(await self.execute(querystring, where))

    async def execute(self, statement: PiccoloStatement, where: Database | Tx) -> Result:
        """Run a statement in a transaction, or by itself on a database."""
        if where.dialect.name != self.engine_type:
            raise ValueError(f"the table is bound to {self.engine_type} and cannot run on {where.dialect.name}")
        sql, args = statement.compile_string(self.engine_type)
        if not isinstance(where, Database) or statement.writes:
            return await where.execute(sql, args)
        if statement.locks:
            raise Unsupported(what="lock_rows() outside a transaction", instead="run(query, tx=tx)")
        return await where.query(sql, args)

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

"""The noun: a database, and every way of talking to it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

from daydo_kernel import Clock, EventSink, Health, Metrics, NoEvents, Part, to_the_end

from .config import DatabaseConfig, Location, parse_url
from .connection import Connection, Engine
from .errors import (
    CommitUnknown,
    ConnectionLost,
    DbError,
    Deadlock,
    InsideTransaction,
    LockTimeout,
    PoolTimeout,
    QueryTimeout,
    SchemaOutdated,
    StatementFailed,
    TransactionAborted,
)
from .mapping import was_refused
from .migrate import require_schema
from .pipelined import Pipelined
from .pool import Pool
from .replicas import Replicas, heart_beats
from .slow import SlowQueries
from .sqlite import SqliteEngine
from .telemetry import Telemetry
from .transaction import OUTCOMES, Transaction
from .turns import taking_turns
from .tx import (
    MYSQL,
    SQLITE,
    Dialect,
    Result,
    Statement,
    Tx,
    Value,
    bind,
    compile_statement,
    require_passing,
)

T = TypeVar("T")

_RETRIED = (Deadlock, LockTimeout, ConnectionLost)
_TRIM_EVERY_S = 5.0
# Alone, each of these would leave a transaction open on a connection that goes back to the pool.
_REFUSED_ALONE = frozenset(
    {"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE", "LOCK", "UNLOCK", "XA"}
)


class Database(Part):
    """``sqlite:///file.db``, ``sqlite://`` (a private temporary file) or ``mysql://user:pw@host:3306/name``.

    ``replicas`` are URLs of servers that follow the one at ``url``; a ``query(…, replica=True)`` may go to one of them.
    ``clock`` stamps migrations, None meaning the database's own; ``events`` hears ``db.migrated`` and
    ``db.slow_query``.

    Raises:
        ValueError: a URL cannot be read, SQLite is to have replicas, or one is named twice.
    """

    def __init__(
        self,
        url: str,
        config: DatabaseConfig = DatabaseConfig(),  # noqa: B008 - frozen
        *,
        replicas: Sequence[str] = (),
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        self.config = config
        self.clock = clock
        self.events: EventSink = events if events is not None else NoEvents()
        self.location: Location = parse_url(url)
        self.dialect: Dialect = self.location.dialect
        self._inside: dict[asyncio.Task[Any] | None, Transaction] = {}
        self._declare_metrics()
        self._engine = _engine(self.location, config, self.telemetry)
        self._engines = [self._engine]
        if self.dialect is SQLITE:
            self._writers = self._pool("writer", 1, keep=1, writable=True)
            self._readers = self._pool("reader", config.sqlite_readers, keep=config.sqlite_readers, writable=False)
            self._pools = [self._writers, self._readers]
        else:
            self._writers = self._readers = self._pool("main", config.pool_max, keep=config.pool_min, writable=True)
            self._pools = [self._writers]
        self._replicas = self._follow(replicas)
        self._slow = SlowQueries(
            self.dialect, config, self.metrics, self.telemetry, self.events, self._readers.connection
        )

    def __repr__(self) -> str:
        return f"Database({str(self.location)!r})"

    def pipelined(self) -> Pipelined:
        """Where transactions of one packet each follow one another: see :meth:`transaction`."""
        possible = self.config.pipelining and self._engine.begins_late
        return Pipelined(self._writers, self.telemetry, possible=possible)

    @asynccontextmanager
    async def transaction(self, *, behind: Pipelined | None = None) -> AsyncIterator[Transaction]:
        """Open a transaction; leaving commits it, an exception rolls it back and passes on.

        MySQL: READ COMMITTED. SQLite: IMMEDIATE on the one writer. A cancellation during COMMIT waits for
        its answer first. The connection is given back however the block ends.

        One ``behind`` others is a single ``execute_all(…, commit_within_s=…)``. It goes out at once on the connection
        they share, and is carried out after those that went before, whatever became of them. Where that is not
        possible (SQLite, ``pipelining`` off) it has a connection to itself.

        Raises:
            InsideTransaction: this task already has one open here.
            PoolTimeout, ConnectionLost: no connection.
            TransactionAborted: the block swallowed an error that had ended the transaction.
            CommitUnknown: the answer to COMMIT never came.
        """
        self._require_started()
        self.require_outside()
        task = asyncio.current_task()
        lender = self._writers if behind is None or not behind.possible else behind
        connection = await lender.acquire()
        tx = self._inside[task] = Transaction(self._engine, connection, single_packet=behind is not None)
        try:
            await tx.begin()
            yield tx
            if tx.outcome != "committed":
                await to_the_end(tx.commit())
        except BaseException:
            await to_the_end(tx.rollback())
            raise
        finally:
            del self._inside[task]
            lender.release(connection)
            self._replicas.wrote()
            self._transactions.cell(tx.outcome).inc()
            if tx.outcome == "committed":
                tx.run_callbacks()

    async def execute(self, sql: str, args: Sequence[Value] = ()) -> Result:
        """One writing statement, committed by itself.

        Raises:
            InsideTransaction: this task has a transaction open here; use its ``execute``.
            CommitUnknown: the connection broke, or time ran out, before the answer came.
            StatementFailed: besides the usual, what would change the connection for whoever has it next (``SET``,
                ``USE``), and a procedure that left a transaction open.
            DbError: as :meth:`Tx.execute`.
        """
        self._require_started()
        self.require_outside()
        statement, args = self._prepare(sql, args)
        async with self._writers.connection() as connection:
            try:
                result = await connection.execute(statement, args)
            except (ConnectionLost, QueryTimeout) as error:
                if was_refused(error):
                    raise
                raise CommitUnknown() from error
            finally:
                self._replicas.wrote()
            if connection.in_transaction:
                reason = "it left a transaction open, which is rolled back"
                raise StatementFailed(reason=reason, statement=statement.text[:200])
            return result

    async def query(self, sql: str, args: Sequence[Value] = (), *, replica: bool = False) -> Result:
        """One reading statement outside any transaction; it sees what is committed.

        ``replica`` says that the answer may be a moment old, at most ``replica_lag_s``: a replica may give it, except
        to a request (without one: a task) that has just written. What something is decided on is read without.

        Raises:
            StatementFailed: besides the usual, a statement that writes; that is for ``execute``.
            DbError: as :meth:`Tx.execute`.
        """
        self._require_started()
        statement, args = self._prepare(sql, args)
        if statement.writes:
            reason = f"{statement.verb} writes; db.query only reads, use db.execute"
            raise StatementFailed(reason=reason, statement=statement.text[:200])
        if replica and (chosen := self._replicas.choose()) is not None:
            try:
                async with chosen.pool.connection() as connection:
                    return await connection.execute(statement, args)
            except (ConnectionLost, PoolTimeout, StatementFailed) as error:  # the last: its tables may be behind, too
                self._replicas.failed(chosen, error)
        async with self._readers.connection() as connection:
            return await connection.execute(statement, args)

    async def run(
        self,
        fn: Callable[[Tx], Awaitable[T]],
        *,
        tx: Tx | None = None,
        retries: int | None = None,
        behind: Pipelined | None = None,
    ) -> T:
        """Call ``fn`` in a transaction; the pattern of every writing call of a library.

        With ``tx`` it is ``await fn(tx)``: the caller's transaction, no retry, no commit; calls in it take turns, see
        :mod:`daydo_db.turns`. Without, ``fn`` runs in one of its own and runs again, at most ``retries`` times (None:
        the configuration's ``run_retries``), where the server undid it (``Deadlock``, ``LockTimeout``) or the
        connection broke before COMMIT. So ``fn`` has no effect outside the database. ``behind`` is for those.

        Raises:
            DbError: as :meth:`transaction`, and whatever ``fn`` raises.
        """
        if tx is not None:
            async with taking_turns(tx):
                return await fn(tx)
        wait_s = self.config.retry_wait_s
        retries = self.config.run_retries if retries is None else retries
        while True:
            own = None
            try:
                async with self.transaction(behind=behind) as own:
                    return await fn(own)
            except DbError as error:
                kept = own is not None and own.outcome in ("committed", "unknown")  # by ``fn`` itself
                if kept or not retries or not _was_undone(error):
                    raise
            self._retries.inc()
            # Jitter, so that two that collided do not collide again; not a secret.
            await asyncio.sleep(random.uniform(0, wait_s))  # noqa: S311
            retries, wait_s = retries - 1, wait_s * 2

    def require_outside(self) -> None:
        """Check that this task has no transaction open here; for those who write through another task.

        Raises:
            InsideTransaction: it has, and waiting for the other task might be waiting for itself.
        """
        if asyncio.current_task() in self._inside:
            raise InsideTransaction()

    async def require_schema(self, package: str) -> None:
        """Check that the tables of ``package`` are there in this code's version, or a later one.

        Raises:
            SchemaOutdated: they are not; the message is the command to run.
        """
        self._require_started()
        await require_schema(self, package)

    async def health(self) -> Health:
        """One ``SELECT 1`` within ``health_timeout_s``. ``degraded`` where only the pool is exhausted."""
        detail: dict[str, str | int | float] = {
            "dialect": self.dialect.name,
            "in_use": self._writers.in_use,
            "idle": self._writers.idle,
            "waiting": self._writers.waiting,
        }
        if not self._running:
            return Health(status="down", detail=detail)
        started_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self.config.health_timeout_s):
                await self.query("SELECT 1")
        except (DbError, TimeoutError) as error:
            exhausted = isinstance(error, TimeoutError | PoolTimeout) and self._readers.in_use == self._readers.size
            return Health(status="degraded" if exhausted else "down", detail=detail | {"error": type(error).__name__})
        elapsed_ms = (asyncio.get_running_loop().time() - started_s) * 1000
        if self._replicas.stale:
            detail["replicas_left_out"] = ", ".join(self._replicas.stale)
        status: Literal["ok", "degraded"] = "degraded" if self._replicas.stale else "ok"
        return Health(
            status=status, detail=detail | {"version": self._engine.version, "latency_ms": round(elapsed_ms, 2)}
        )

    @asynccontextmanager
    async def _dedicated(self) -> AsyncIterator[Connection]:
        """A writing connection as it is, for the migration runner: autocommit, no transaction."""
        self._require_started()
        self.require_outside()
        async with self._writers.connection() as connection:
            yield connection

    async def _start(self) -> None:
        async with self._writers.connection():
            pass  # A wrong password or an unreachable server shows now, not at the first request.
        if self._replicas:
            await self._require_heartbeat()
            await self._replicas.beat()
            self._repeat(self.config.replica_beat_s, self._replicas.beat, "beat")
        self._repeat(min(_TRIM_EVERY_S, self.config.pool_idle_s), self._trim, "trim")
        self._spawn(self._slow.watch(), "slow")

    async def _require_heartbeat(self) -> None:
        async with self._writers.connection() as connection:
            if not await heart_beats(connection):
                command = f'python -m daydo_db migrate "{self.location}" daydo_db'
                raise SchemaOutdated(package="daydo_db", have=0, need=1, command=command)

    async def _drain(self) -> None:
        await asyncio.gather(*(pool.drained() for pool in self._pools))

    async def _close(self) -> None:
        # At once: each is bounded by itself, and so are all of them.
        await asyncio.gather(*(pool.close() for pool in self._pools))
        await asyncio.gather(*(engine.aclose() for engine in self._engines))

    async def _trim(self) -> None:
        for pool in self._pools:
            pool.trim()

    def _prepare(self, sql: str, args: Sequence[Value]) -> tuple[Statement, Sequence[Value]]:
        statement = compile_statement(self.dialect.name, sql)
        if statement.verb in _REFUSED_ALONE:
            raise StatementFailed(
                reason=f"{statement.verb} outside db.transaction() would stay on a pooled connection",
                statement=statement.text[:200],
            )
        require_passing(statement)
        return bind(statement, args)

    def _pool(self, name: str, size: int, keep: int, *, writable: bool, engine: Engine | None = None) -> Pool:
        server = engine or self._engine
        pool = Pool(
            lambda: server.connect(writable=writable),
            self.config,
            size=size,
            keep=keep,
            observe_wait=self._waits.cell(name).observe,
        )
        self._in_use.cell(name).follow(lambda: pool.in_use)
        self._idle.cell(name).follow(lambda: pool.idle)
        self._waiting.cell(name).follow(lambda: pool.waiting)
        return pool

    def _follow(self, urls: Sequence[str]) -> Replicas:
        pools: dict[str, Pool] = {}
        for location in map(parse_url, urls):
            if location.dialect is not MYSQL or self.dialect is not MYSQL:
                raise ValueError("replicas are for MySQL; a SQLite file has none")
            engine = _engine(location, self.config, self.telemetry)
            name = location.unix_socket or f"{location.host}:{location.port}"
            if name in pools:
                raise ValueError(f"{name} is named twice among the replicas")
            pools[name] = self._pool(name, self.config.pool_max, self.config.pool_min, writable=False, engine=engine)
            self._engines.append(engine)
        if not pools:
            return Replicas(self._writers, pools, self.config, self.metrics)
        if self.config.replica_beat_s * 2 > self.config.replica_lag_s:
            raise ValueError("replica_beat_s is at most half of replica_lag_s")
        # Of its own, so that a crowd on the other does not make replicas look old.
        heartbeat = self._pool("heartbeat", 1, 1, writable=True)
        self._pools += [heartbeat, *pools.values()]
        return Replicas(heartbeat, pools, self.config, self.metrics)

    def _declare_metrics(self) -> None:
        self.metrics = Metrics("daydo_db")
        pool = ("pool",)
        self._in_use = self.metrics.gauge("pool_in_use", "Connections handed out.", pool)
        self._idle = self.metrics.gauge("pool_idle", "Connections open and free.", pool)
        self._waiting = self.metrics.gauge("pool_waiting", "Tasks waiting for a connection.", pool)
        self._waits = self.metrics.histogram("pool_acquire_seconds", "Time until a connection was had.", pool)
        self._transactions = self.metrics.counter("transactions_total", "Transactions by how they ended.", ("outcome",))
        for outcome in OUTCOMES:
            self._transactions.cell(outcome)
        self._retries = self.metrics.counter("retries_total", "Transactions repeated by run().").cell()
        self.telemetry = Telemetry(self.metrics)


def _was_undone(error: BaseException | None) -> bool:
    """Whether nothing of the transaction was kept, so that repeating it is right."""
    return isinstance(error, _RETRIED) or (isinstance(error, TransactionAborted) and _was_undone(error.__cause__))


def _engine(location: Location, config: DatabaseConfig, telemetry: Telemetry) -> Engine:
    if location.dialect is SQLITE:
        return SqliteEngine(location, config, telemetry)
    if not location.name:
        raise ValueError("database URL: name a database, mysql://user:password@host:3306/name")
    try:
        from .mysql import MysqlEngine  # noqa: PLC0415 - aiomysql is an extra
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(f"{missing.name}: a mysql:// URL needs pip install 'daydo-db[mysql]'") from missing
    return MysqlEngine(location, config, telemetry)

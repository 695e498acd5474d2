"""daydo-db against what one would use instead: aiomysql alone, and SQLAlchemy 2 on aiomysql.

The raw rival is the driver with its own pool and its plain tuple cursor: the least that any of the others does.
Piccolo tables and SQLAlchemy build their query anew in each operation, as code in a request handler does, and give
back a dict and a mapped object. The server is a private MariaDB without durability, or the first server of
``DAYDO_TEST_MYSQL_URL``: the fewer the disk's milliseconds, the more of the client shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import aiomysql  # type: ignore[import-untyped]
from piccolo.columns import BigInt, Boolean, Integer, Text, Varchar
from piccolo.table import Table
from sqlalchemy import BigInteger, String, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from daydo_db import Database, DatabaseConfig, Transaction
from daydo_db.config import parse_url
from daydo_db.paging import Keyset
from daydo_db.piccolo import Id, Index, bind, ddl
from daydo_db.piccolo import run as run_query
from daydo_db.testing.servers import find_servers, fresh_database

from .measure import Comparison, Operation, Report, compare

TASKS = 32
KEYS = 1000
DEEP_ROWS = 1_000_000
PAGE = 50
START_US = 1_760_000_000_000_000
RECENT = Keyset("created_at_us DESC", "id DESC", within=["owner"], name="events", key="bench")
OWNER = "user_1"

_COLUMNS = "id, owner, state, note, width, height, created_at_us, public"


class Image(Table, tablename="bench_image"):
    """Eight columns of the usual kinds."""

    id = Id(primary_key=True)
    owner = Id()
    state = Varchar(length=12, default="new")
    note = Text(default="")
    width = Integer(default=0)
    height = Integer(default=0)
    created_at_us = BigInt(default=0)
    public = Boolean(default=False)


class Base(DeclarativeBase):
    """Of SQLAlchemy's classes."""


class MappedImage(Base):
    """The same table."""

    __tablename__ = "bench_image"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str]
    state: Mapped[str]
    note: Mapped[str]
    width: Mapped[int]
    height: Mapped[int]
    created_at_us: Mapped[int] = mapped_column(BigInteger)
    public: Mapped[bool]


class Event(Table, tablename="bench_event"):
    """What the deep page is a page of: the events of one owner, newest first."""

    id = Id(primary_key=True)
    owner = Id()
    created_at_us = BigInt(default=0)
    note = Varchar(length=40, default="")

    newest = Index([owner, created_at_us, id])  # noqa: A003 - the column


class Rivals:
    """The same operations in each rival's words."""

    def __init__(self, raw: aiomysql.Pool, db: Database, engine: AsyncEngine) -> None:
        self.raw, self.db = raw, db
        self.sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(engine, expire_on_commit=False)
        self._turn = count()
        self._fresh = count()

    def _key(self) -> str:
        return f"image_{next(self._turn) % KEYS:026}"

    def _image(self) -> dict[str, Any]:
        return {
            "id": f"fresh_{next(self._fresh):026}",
            "owner": "user_00000000000000000000000007",
            "state": "ready",
            "note": "a photo of the old harbour, taken in the rain",
            "width": 1920,
            "height": 1080,
            "created_at_us": START_US,
            "public": True,
        }

    async def raw_select(self) -> object:
        async with self.raw.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute(f"SELECT {_COLUMNS} FROM bench_image WHERE id = %s", (self._key(),))
            return await cursor.fetchone()

    async def query_select(self) -> object:
        found = await self.db.query(f"SELECT {_COLUMNS} FROM bench_image WHERE id = ?", (self._key(),))
        return found.rows[0]

    async def piccolo_select(self) -> object:
        return await run_query(Image.select().where(Image.id == self._key()).first(), self.db)

    async def sqlalchemy_select(self) -> object:
        async with self.sessions() as session:
            return await session.scalar(select(MappedImage).where(MappedImage.id == self._key()))

    async def raw_insert(self) -> None:
        image = self._image()
        async with self.raw.acquire() as connection, connection.cursor() as cursor:
            await connection.begin()
            await cursor.execute(
                f"INSERT INTO bench_image ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
                tuple(image.values()),
            )
            await connection.commit()

    async def execute_insert(self) -> None:
        image = self._image()
        async with self.db.transaction() as tx:
            await tx.execute(
                f"INSERT INTO bench_image ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                tuple(image.values()),
            )

    async def piccolo_insert(self) -> None:
        async with self.db.transaction() as tx:
            await run_query(Image.insert(Image(**self._image())), tx=tx)

    async def sqlalchemy_insert(self) -> None:
        async with self.sessions() as session, session.begin():
            session.add(MappedImage(**self._image()))

    @asynccontextmanager
    async def raw_inside(self, tasks: int) -> AsyncIterator[Operation]:
        """SELECT in transactions that are open already, one to a task."""
        async with AsyncExitStack() as stack:
            free = [await stack.enter_async_context(self.raw.acquire()) for _ in range(tasks)]
            for connection in free:
                await connection.begin()

            async def select_one() -> object:
                connection = free.pop()
                async with connection.cursor() as cursor:
                    await cursor.execute(f"SELECT {_COLUMNS} FROM bench_image WHERE id = %s", (self._key(),))
                    row = await cursor.fetchone()
                free.append(connection)
                return row

            yield select_one
            for connection in free:
                await connection.rollback()

    @asynccontextmanager
    async def execute_inside(self, tasks: int) -> AsyncIterator[Operation]:
        """The same on our transactions; each is held open by a task of its own."""
        done, free = asyncio.Event(), list[Transaction]()
        all_open = asyncio.Barrier(tasks + 1)

        async def hold() -> None:
            async with self.db.transaction() as tx:
                free.append(tx)
                await all_open.wait()
                await done.wait()

        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(hold())
            await all_open.wait()

            async def select_one() -> object:
                tx = free.pop()
                found = await tx.execute(f"SELECT {_COLUMNS} FROM bench_image WHERE id = ?", (self._key(),))
                free.append(tx)
                return found.rows[0]

            yield select_one
            done.set()


async def run() -> Report:
    """Measure against the first server there is; about two and a half minutes."""
    with ExitStack() as stack:
        backend = next(find_servers(stack.callback))
        url = stack.enter_context(fresh_database(backend, Path()))
        async with _rivals(url) as rivals:
            await _fill(rivals.db)
            report = Report()
            for tasks in (1, TASKS):
                await _measure(report, rivals, tasks)
            await _measure_pages(report, rivals.db)
    return report


@asynccontextmanager
async def _rivals(url: str) -> AsyncIterator[Rivals]:
    at = parse_url(url)
    login = {"host": at.host, "port": at.port, "user": at.user, "password": at.password, "db": at.name}
    raw = await aiomysql.create_pool(minsize=TASKS, maxsize=TASKS, autocommit=True, charset="utf8mb4", **login)
    engine = create_async_engine(url.replace("mysql:", "mysql+aiomysql:", 1), pool_size=TASKS)
    # No statement here is slow, but a laptop that sleeps in the middle is not to be told so.
    async with Database(url, DatabaseConfig(pool_min=TASKS, pool_max=TASKS, statement_timeout_s=120)) as db:
        bind([Image, Event], db)
        yield Rivals(raw, db, engine)
    await engine.dispose()
    raw.close()
    await raw.wait_closed()


async def _fill(db: Database) -> None:
    for table in (Image, Event):
        for statement in ddl(table, db.dialect)[:1]:
            await db.execute(statement)
    await run_query(
        Image.insert(*(Image(id=f"image_{number:026}", owner=f"user_{number % 7}") for number in range(KEYS))), db
    )
    # Two times a thousand: MariaDB stops a recursion there without a word.
    digits = "WITH RECURSIVE digit (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM digit WHERE n < 999)"
    for start in range(0, DEEP_ROWS, 100_000):
        await db.execute(
            f"INSERT INTO bench_event (owner, id, created_at_us, note) {digits} "
            "SELECT ?, CONCAT('event_', LPAD(? + a.n * 1000 + b.n, 26, '0')), ? + a.n * 1000 + b.n, "
            "'something happened' FROM digit a, digit b WHERE a.n < 100",
            (OWNER, start, START_US + start),
        )
    for statement in ddl(Event, db.dialect)[1:]:
        await db.execute(statement)
    await db.execute("ANALYZE TABLE bench_event, bench_image")


async def _measure(report: Report, rivals: Rivals, tasks: int) -> None:
    select_by_key = {
        "raw aiomysql": rivals.raw_select,
        "db.query": rivals.query_select,
        "Piccolo on ours": rivals.piccolo_select,
        "SQLAlchemy 2": rivals.sqlalchemy_select,
    }
    _note(report, f"select_{tasks}", await _compared(f"SELECT by key, {tasks} tasks", select_by_key, tasks))
    insert = {
        "raw aiomysql": rivals.raw_insert,
        "Tx.execute": rivals.execute_insert,
        "Piccolo on ours": rivals.piccolo_insert,
        "SQLAlchemy 2": rivals.sqlalchemy_insert,
    }
    _note(report, f"insert_{tasks}", await _compared(f"BEGIN, INSERT, COMMIT, {tasks} tasks", insert, tasks))
    async with rivals.raw_inside(tasks) as raw, rivals.execute_inside(tasks) as ours:
        title = f"SELECT in an open transaction, {tasks} tasks"
        inside = await _compared(title, {"raw aiomysql": raw, "Tx.execute": ours}, tasks)
    report.ratios[f"execute_{tasks}"] = inside.ratio("Tx.execute", "raw aiomysql")
    report.figures[f"execute_{tasks}_us"] = _us(inside, "Tx.execute")


async def _measure_pages(report: Report, db: Database) -> None:
    select_events = "SELECT id, created_at_us, note FROM bench_event WHERE"
    late = f"{select_events} created_at_us < ? AND :page"
    oldest = await RECENT.page(db, late, (START_US + 2 * PAGE,), within=[OWNER], limit=PAGE)

    async def first_page() -> int:
        return len((await RECENT.page(db, f"{select_events} :page", within=[OWNER], limit=PAGE)).rows)

    async def deep_page() -> int:
        cursor = oldest.next_cursor
        return len((await RECENT.page(db, f"{select_events} :page", within=[OWNER], cursor=cursor, limit=PAGE)).rows)

    assert await first_page() == await deep_page() == PAGE  # an empty page would be a fast one
    pages = await compare(f"a page of {PAGE} rows of {DEEP_ROWS:,}", {"the first": first_page, "the last": deep_page})
    pages.show("the first")
    report.ratios["deep_page"] = round(1 / pages.ratio("the last", "the first"), 3)
    report.figures["deep_page_us"] = _us(pages, "the last")


async def _compared(title: str, operations: Mapping[str, Operation], tasks: int) -> Comparison:
    comparison = await compare(title, operations, tasks=tasks)
    comparison.show("raw aiomysql")
    return comparison


def _note(report: Report, name: str, comparison: Comparison) -> None:
    report.ratios[name] = comparison.ratio("Piccolo on ours", "raw aiomysql")
    report.ratios[f"sqlalchemy_{name}"] = comparison.ratio("SQLAlchemy 2", "raw aiomysql")
    report.figures[f"{name}_us"] = _us(comparison, "Piccolo on ours")
    report.figures[f"raw_{name}_us"] = _us(comparison, "raw aiomysql")


def _us(comparison: Comparison, name: str) -> float:
    return round(median(comparison.wall_s[name]) * 1e6, 1)

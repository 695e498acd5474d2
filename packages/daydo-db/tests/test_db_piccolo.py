from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from piccolo.columns import (
    BigInt,
    Boolean,
    Column,
    ForeignKey,
    Integer,
    SmallInt,
    Text,
    Timestamp,
    Timestamptz,
    Varchar,
)
from piccolo.columns.column_types import TimedeltaDelegate
from piccolo.engine.sqlite import SQLiteEngine
from piccolo.query.base import DDL, Query
from piccolo.query.functions import Avg, Cast, Length, Max, Round, Sum, Upper
from piccolo.query.functions.aggregate import Count
from piccolo.query.methods.delete import DeletionError
from piccolo.querystring import QueryString
from piccolo.table import Table
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from daydo_db import Database, InsideTransaction, Tx, UniqueViolation
from daydo_db.piccolo import Id, Unsupported, affected, bind, ddl, patches, run
from daydo_db.sqlalchemy import enlist


class State(StrEnum):
    NEW = "new"
    READY = "ready"


class User(Table, tablename="shop_user"):
    id = Id(primary_key=True)
    email = Varchar(length=120, unique=True, default=None)
    active = Boolean(default=True)


class Image(Table, tablename="shop_image"):
    id = Id(primary_key=True)
    owner = ForeignKey(User)
    state = Varchar(length=12, default=State.NEW, choices=State)
    note = Text()
    width = Integer()
    pages = SmallInt(default=1)
    size = BigInt()
    public = Boolean(default=False, null=True)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as db:
        bind([User, Image], db)
        for table in (User, Image):
            for statement in ddl(table, db.dialect):
                await db.execute(statement)
        await User.insert(User(id="u1", email="ann@example.org"), User(id="u2", email="bob@example.org", active=False))
        await Image.insert(
            Image(id="i1", owner="u1", width=10, size=2**53 - 1, public=True),
            Image(id="i2", owner="u1", width=20, note='50% of "it\'s" \\ ?', state=State.READY),
            Image(id="i3", owner="u2", width=30, public=None),
        )
        yield db


async def test_select_gives_dicts_with_pythons_types(db: Database) -> None:
    """Rows come back as they went in: booleans as bool, big integers exact, text with every awkward character."""
    rows = await run(Image.select().order_by(Image.id), db)
    first = Image(id="i1", owner="u1", width=10, size=2**53 - 1, public=True)
    assert rows[0] == first.to_dict()
    assert [row["public"] for row in rows] == [True, False, None]
    assert rows[0]["public"] is True
    assert rows[1]["note"] == '50% of "it\'s" \\ ?'


async def test_where_order_limit(db: Database) -> None:
    """Conditions combine, lists and nulls work, order and limit hold, and so does a cursor."""
    wide = Image.select(Image.id).where((Image.width > 10) & ((Image.owner == "u1") | (Image.public.is_null())))
    assert await run(wide.order_by(Image.width, ascending=False), db) == [{"id": "i3"}, {"id": "i2"}]
    some = Image.select(Image.id).where(Image.id.is_in(["i1", "i3", "i9"]), Image.state != State.READY)
    assert await run(some.order_by(Image.id).output(as_list=True), db) == ["i1", "i3"]
    assert await run(Image.select(Image.id).where(Image.id > "i1").order_by(Image.id).limit(1), db) == [{"id": "i2"}]
    assert await run(Image.select(Image.id).where(Image.note.like("50%")).first(), db) == {"id": "i2"}
    inner = Image.select(Image.owner).where(Image.width == 30)
    assert await run(User.select(User.id).where(User.id.is_in(inner)), db) == [{"id": "u2"}]


async def test_objects_save_and_remove(db: Database) -> None:
    """An object is inserted by its first save, updated by the next, and gone after remove."""
    async with db.transaction() as tx:
        image = Image(id="i4", owner="u1", width=1)
        assert await run(image.save(), tx=tx) == [{"id": "i4"}]
        image.width = 2
        await run(image.save(), tx=tx)
        found = await run(Image.objects().get(Image.id == "i4"), tx=tx)
        assert found is not None
        assert (found.width, found._exists_in_db) == (2, True)
        created = await run(Image.objects().create(id="i5", owner="u1"), tx=tx)
        assert created._exists_in_db
        await run(found.remove(), tx=tx)
    assert [image.id for image in await run(Image.objects().order_by(Image.id), db)] == ["i1", "i2", "i3", "i5"]


async def test_insert_answers_without_asking(db: Database) -> None:
    """The keys and columns asked for come back, also from MySQL, which has no RETURNING."""
    rows = [User(id=f"n{number}", email=f"{number}@example.org") for number in range(3)]
    assert await run(User.insert(*rows), db) == [{"id": "n0"}, {"id": "n1"}, {"id": "n2"}]
    assert all(row._exists_in_db for row in rows)
    more = User.insert(User(id="n3", email="3@example.org")).returning(User.id, User.email.as_alias("mail"))
    assert await run(more, db) == [{"id": "n3", "mail": "3@example.org"}]
    with pytest.raises(ValueError, match="nothing to insert"):
        await run(User.insert(), db)


async def test_update_and_delete(db: Database) -> None:
    """Both change what they name and nothing else; without a condition they must be forced."""
    await run(Image.update({Image.width: Image.width + 5, Image.state: State.READY}).where(Image.owner == "u1"), db)
    assert await run(Image.select(Image.width).order_by(Image.id).output(as_list=True), db) == [15, 25, 30]
    await run(Image.delete().where(Image.id == "i1"), db)
    assert await run(Image.count(), db) == 2
    with pytest.raises(DeletionError):
        await run(Image.delete(), db)
    await run(Image.delete(force=True), db)
    assert await run(Image.count(), db) == 0


async def test_affected_counts_the_rows_met(db: Database) -> None:
    """The number of rows matched, also where nothing changed: the answer to a conditional update."""
    assert await affected(Image.update({Image.width: 10}).where(Image.id == "i1"), db) == 1
    claim = Image.update({Image.state: State.READY}).where(Image.id == "i1", Image.state == State.NEW)
    async with db.transaction() as tx:
        assert await affected(claim, tx=tx) == 1
        assert await affected(claim, tx=tx) == 0
    assert await affected(Image.delete().where(Image.owner == "u1")) == 2
    with pytest.raises(DeletionError):
        await affected(Image.delete())


async def test_exists_count_and_aggregates(db: Database) -> None:
    """Counts are integers and sums too, where MySQL would say Decimal."""
    assert await run(Image.exists().where(Image.width == 30), db) is True
    assert await run(Image.exists().where(Image.width == 31), db) is False
    assert await run(Image.count().where(Image.owner == "u1"), db) == 2
    assert await run(Image.count(distinct=[Image.owner]), db) == 2
    totals = Image.select(Image.owner, Sum(Image.width), Max(Image.width, alias="widest"), Count(alias="images"))
    rows = await run(totals.group_by(Image.owner).order_by(Image.owner), db)
    assert rows[0] == {"owner": "u1", "sum": 30, "widest": 20, "images": 2}
    assert type(rows[0]["sum"]) is int
    assert await run(Image.select(Upper(Image.state)).where(Image.id == "i1"), db) == [{"upper": "NEW"}]


async def test_joins_along_foreign_keys(db: Database) -> None:
    """Columns of the table referred to come along, by dotted name or nested, booleans included."""
    joined = Image.select(Image.id, Image.owner.email, Image.owner.active).where(Image.owner.email.like("bob%"))
    assert await run(joined, db) == [{"id": "i3", "owner.email": "bob@example.org", "owner.active": False}]
    nested = await run(joined.output(nested=True), db)
    assert nested == [{"id": "i3", "owner": {"email": "bob@example.org", "active": False}}]
    image = await run(Image.objects(Image.owner).get(Image.id == "i3"), db)
    assert image is not None
    assert image.owner.email == "bob@example.org"


async def test_frozen_queries_run_again_and_again(db: Database) -> None:
    """A frozen query is compiled once and still takes an explicit transaction."""
    frozen = Image.select(Image.id, Image.public).where(Image.owner == "u1").order_by(Image.id).freeze()
    expected = [{"id": "i1", "public": True}, {"id": "i2", "public": False}]
    assert await run(frozen, db) == expected
    async with db.transaction() as tx:
        assert await run(frozen, tx=tx) == expected
    assert await run(Image.count().where(Image.owner == "u1").freeze(), db) == 2
    assert await run(Image.exists().where(Image.owner == "u9").freeze(), db) is False
    last = await run(Image.objects(Image.owner).order_by(Image.id, ascending=False).first().freeze(), db)
    assert (last.id, last.owner.active) == ("i3", False)


async def test_a_transaction_is_explicit(db: Database) -> None:
    """What runs with tx= is undone with it; a bare await inside is refused for writes and reads what is committed."""

    class Undo(Exception): ...

    async def attempt(tx: Tx) -> None:
        await run(Image.delete(force=True), tx=tx)
        assert await run(Image.count(), tx=tx) == 0
        assert await Image.count() == 3
        with pytest.raises(InsideTransaction):
            await Image.delete(force=True)
        with pytest.raises(InsideTransaction):
            await run(Image.objects().create(id="i9", owner="u1"), db)
        raise Undo

    with pytest.raises(Undo):
        await db.run(attempt)
    assert await Image.count() == 3


async def test_everything_of_an_object_stays_in_the_transaction(db: Database) -> None:
    """What Piccolo asks on the way (refresh, related objects) runs in the same transaction."""
    async with db.transaction() as tx:
        await run(User.update({User.email: "new@example.org"}).where(User.id == "u1"), tx=tx)
        image = await run(Image.objects().get(Image.id == "i1"), tx=tx)
        assert image is not None
        owner = await run(image.get_related(Image.owner), tx=tx)
        assert owner is not None
        assert owner.email == "new@example.org"
        await run(Image.update({Image.width: 99}).where(Image.id == "i1"), tx=tx)
        await run(image.refresh(), tx=tx)
        assert image.width == 99


async def test_rows_are_locked_in_a_transaction_only(db: Database, database_url: str) -> None:
    """lock_rows() locks on MySQL, is nothing on SQLite, where the transaction is the lock, and else is refused."""
    locked = Image.select(Image.width).where(Image.id == "i1").lock_rows()
    async with db.transaction() as tx:
        assert await run(locked, tx=tx) == [{"width": 10}]
        free = Image.objects().order_by(Image.id).lock_rows(skip_locked=True).first()
        found = await run(free, tx=tx)
        assert found is not None
        if db.dialect.name == "mysql":
            async with Database(database_url) as other, other.transaction() as second:
                passed = await run(Image.select(Image.id).order_by(Image.id).lock_rows(skip_locked=True), tx=second)
                assert passed == [{"id": "i2"}, {"id": "i3"}]
    with pytest.raises(Unsupported, match="tx="):
        await run(locked, db)


async def test_errors_are_ours(db: Database) -> None:
    """A duplicate through Piccolo is the UniqueViolation of every other way in."""
    with pytest.raises(UniqueViolation):
        await run(User.insert(User(id="u9", email="ann@example.org")), db)


async def test_runs_on_the_database_given(db: Database, tmp_path: Path) -> None:
    """run(query, other) goes elsewhere than where the table is bound, as long as it is the same dialect."""
    async with Database(f"sqlite:///{tmp_path / 'other.db'}") as other:
        for statement in ddl(User, other.dialect):
            await other.execute(statement)
        if db.dialect.name == "sqlite":
            assert await run(User.count(), other) == 0
        else:
            with pytest.raises(ValueError, match="bound to mysql"):
                await run(User.count(), other)
    assert await run(User.count()) == 2


async def test_runs_in_a_plain_sqlalchemy_session(db: Database, database_url: str) -> None:
    """Names are names also without ANSI_QUOTES, where double quotes would make them strings."""
    url = database_url.replace("sqlite:", "sqlite+aiosqlite:", 1).replace("mysql:", "mysql+aiomysql:", 1)
    engine = create_async_engine(url)
    async with AsyncSession(engine) as session, session.begin():
        tx = await enlist(session)
        await run(Image.update({Image.note: 'say "x"'}).where(Image.id == "i1"), tx=tx)
        rows = await run(Image.select(Image.note, Image.owner.email).where(Image.id == "i1"), tx=tx)
    await engine.dispose()
    assert rows == [{"note": 'say "x"', "owner.email": "ann@example.org"}]


Ask = Callable[[], Any]


@pytest.mark.parametrize(
    ("ask", "instead"),
    [
        (lambda: Image.raw("SELECT 1"), "tx.execute"),
        (lambda: Image.update({Image.width: 1}, force=True).returning(Image.id), "affected"),
        (lambda: Image.delete(force=True).returning(Image.id), "affected"),
        (lambda: Image.delete().where(Image.owner.email == "x"), "is_in"),
        (lambda: User.insert(User(id="x", email="y")).on_conflict(action="DO NOTHING"), "UniqueViolation"),
        (
            lambda: Image.insert(Image(id="x", owner="u1")).on_conflict("a_name", "DO UPDATE", [Image.note]),
            "one target",
        ),
        (lambda: Image.insert(Image(id="x", owner="u1")).on_conflict(Image.owner, "DO UPDATE", [Image.note]), "'id'"),
        (lambda: Image.insert(*[Image(id="x", owner="u1")] * 4_100), "portions"),
        (lambda: Image.update({Image.note: Image.note + "!"}, force=True), "Python"),
        (lambda: Image.update({Image.width: Image.width / 2}, force=True), "Python"),
        (lambda: Image.select(Cast(Image.width, Varchar())), "column"),
        (lambda: Image.select(Length(Image.note)), "Python"),
        (lambda: Image.select(Avg(Image.width)), "Sum"),
        (lambda: Image.select(Image.get_readable()), "joined table"),
        (lambda: Image.select().offset(5), "limit"),
        (lambda: Image.select().lock_rows("KEY SHARE"), "SHARE"),
        (lambda: Image.select().lock_rows(of=(User,)), "alone"),
        (lambda: Image.select(Round(Image.width)), "Python"),
        (lambda: Image.update({Image.width: Image.size, Image.size: Image.width}, force=True), "lock_rows()"),
        (lambda: Image(id="x", owner="u1", _exists_in_db=True).update_self({Image.width: Image.width + 1}), "affected"),
        (lambda: Image.count(distinct=[Image.owner, Image.state]), "a column"),
        (lambda: Image.select().where(QueryString("state || note = 'x'")), "Python"),
        (lambda: Image.create_table(), "ddl(table, dialect)"),
        (lambda: Image.alter().drop_column(Image.note), "ddl(table, dialect)"),
        (lambda: Image.create_index([Image.note]), "ddl(table, dialect)"),
        (lambda: Image.table_exists(), "tx.execute"),
        (lambda: Image.select().where(Image.note.ilike("x")), "lower case"),
    ],
)
@pytest.mark.parametrize("url", ["sqlite://", "mysql://nobody@127.0.0.1:1/nowhere"], ids=["sqlite", "mysql"])
async def test_refuses_what_the_databases_do_not_agree_on(url: str, ask: Ask, instead: str) -> None:
    """Each part left out is refused for both databases, before either is asked, naming what to write instead."""
    db = Database(url)  # never entered: whatever got as far as the database would raise NotStarted
    bind([User, Image], db)

    async def attempt() -> None:
        query = ask()
        await (query.run() if isinstance(query, DDL) else run(query, db))

    with pytest.raises(Unsupported) as refused:
        await attempt()
    assert instead in refused.value.facts["instead"]


async def test_refuses_piccolos_own_ways_around_the_database(db: Database) -> None:
    """Its transactions, batches and blocking calls would bypass ours."""
    engine = Image._meta.db
    for attempt in (engine.transaction, engine.atomic):
        with pytest.raises(Unsupported, match="tx=tx"):
            attempt()
    with pytest.raises(Unsupported, match="in a loop"):
        await Image.select().batch()
    with pytest.raises(Unsupported, match="await"):
        Image.select().run_sync()


async def test_an_unbound_table_says_so(db: Database, tmp_path: Path) -> None:
    """Neither a table nobody bound nor one on Piccolo's own engine, which would run outside the transaction."""

    class Loose(Table, tablename="shop_loose"):
        id = Id(primary_key=True)

    class Theirs(Table, tablename="shop_theirs", db=SQLiteEngine(path=str(tmp_path / "theirs.db"))):
        id = Id(primary_key=True)

    async with db.transaction() as tx:
        for table in (Loose, Theirs):
            for query in (
                table.select(),
                table.objects().first(),
                table.objects().create(id="x"),
                table(id="x").save(),
            ):
                with pytest.raises(ValueError, match="bind its tables"):
                    await run(query, tx=tx)
        with pytest.raises(ValueError, match="bind its tables"):
            await affected(Theirs.delete(force=True), tx=tx)


def test_binding_checks_the_table() -> None:
    """A table with a column that would differ is refused when it is bound, not when a request needs it."""

    class Odd(Table, tablename="shop_odd"):
        id = Id(primary_key=True)
        at = Timestamp()

    with pytest.raises(Unsupported, match="microseconds"):
        bind([Odd], Database("sqlite://"))


def test_the_replaced_attributes_are_what_we_think_they_are() -> None:
    """The contract with Piccolo 1.38: five attributes, defined where we replace them and nowhere below."""
    patches.install()
    patches.install()
    assert Query.__dict__["querystrings"].fget is patches.querystrings
    assert DDL.__dict__["ddl"].fget is patches.ddl
    assert Query.__dict__["_run"] is patches.run
    assert Column.__dict__["ilike"] is patches.ilike
    assert TimedeltaDelegate.__dict__["get_querystring"] is patches.timedelta
    below = [kind for base in (Query, DDL, Column) for kind in every_subclass(base)]
    assert len(below) > 40
    assert not [kind for kind in below if {"querystrings", "_run", "ilike"} & set(kind.__dict__)]
    assert not [kind for kind in every_subclass(DDL) if "ddl" in kind.__dict__]


def test_the_replaced_attributes_are_called_as_we_think_they_are() -> None:
    """The originals' own text, as far as we lean on it: what calls them, and what they take."""
    assert parameters(patches._run) == parameters(patches.run) == ["self", "node", "in_pool"]
    assert parameters(patches._ilike) == parameters(patches.ilike) == ["self", "value"]
    assert parameters(patches._timedelta) == ["self", "column", "operator", "value", "engine_type"]
    assert "return await self._run(node=node, in_pool=in_pool)" in inspect.getsource(Query.run)
    assert "querystrings = self.querystrings" in inspect.getsource(Query.freeze)
    assert "values = values.querystrings[0]" in inspect.getsource(Column.is_in)
    assert "self.timedelta_delegate.get_querystring(" in inspect.getsource(Timestamptz.__add__)


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def every_subclass(kind: type) -> set[type]:
    return {deeper for below in kind.__subclasses__() for deeper in (below, *every_subclass(below))}


async def test_other_engines_keep_piccolos_own_ways(tmp_path: Path) -> None:
    """A table on Piccolo's SQLite engine is served by the originals: its DDL, RETURNING and raw SQL still work."""
    patches.install()

    class Theirs(Table, tablename="theirs", db=SQLiteEngine(path=str(tmp_path / "theirs.db"))):
        name = Varchar()

    await Theirs.create_table()
    assert await Theirs.insert(Theirs(name="a")) == [{"id": 1}]
    assert await Theirs.update({Theirs.name: "b"}, force=True).returning(Theirs.name) == [{"name": "b"}]
    assert await Theirs.raw("SELECT 1 AS one") == [{"one": 1}]
    with pytest.warns(Warning, match="ILIKE"):
        assert await Theirs.select(Theirs.name).where(Theirs.name.ilike("B")) == [{"name": "b"}]


def test_another_piccolo_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Private parts may change with every minor version, so another one is an error at start."""
    monkeypatch.setattr(patches, "version", lambda name: "1.39.0")
    with pytest.raises(ImportError, match=r"made for Piccolo 1\.38, not 1\.39\.0"):
        patches.install()


def test_importing_and_binding_touch_nothing() -> None:
    """In a fresh process: no asyncpg, no connection, no file, although the database of the URL does not exist."""
    code = """
import sys
from piccolo.table import Table
from daydo_db import Database
from daydo_db.piccolo import Id, bind

class User(Table, tablename="shop_user"):
    id = Id(primary_key=True)

bind([User], Database("mysql://nobody@localhost:1/nowhere"))
User.select().where(User.id == "x").querystrings
assert "asyncpg" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_asyncpg_is_not_installed() -> None:
    """Piccolo's own driver has no place here."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('asyncpg') is not None)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from piccolo.columns import JSON, UUID, Boolean, Bytea, Date, DoublePrecision, ForeignKey, Integer, Timestamptz, Varchar
from piccolo.query.functions import Coalesce, Max, Min
from piccolo.table import Table
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from daydo_db import Database, InsideTransaction, LockTimeout, UniqueViolation
from daydo_db.piccolo import Id, Unsupported, affected, bind, ddl, run
from daydo_db.sqlalchemy import enlist

UID, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)
MOMENT = datetime(2026, 3, 1, 12, 30, 5, 123456, tzinfo=UTC)


class Maker(Table, tablename="kind_maker"):
    id = UUID(primary_key=True)
    seen = Integer(default=7)
    public = Varchar(length=9, default="maker")


class Thing(Table, tablename="kind_thing"):
    id = Id(primary_key=True)
    maker = ForeignKey(Maker, null=True)
    public = Boolean(default=True)
    seen = Timestamptz(null=True, default=None)
    born = Date(null=True, default=None)
    uid = UUID(null=True, default=None)
    weight = DoublePrecision(null=True, default=None)
    doc = JSON(null=True, default=None)
    data = Bytea(null=True, default=None)
    n = Integer(default=0)
    m = Integer(default=0)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as db:
        bind([Maker, Thing], db)
        for table in (Maker, Thing):
            for statement in ddl(table, db.dialect):
                await db.execute(statement)
        await run(Maker.insert(Maker(id=UID)), db)
        yield db


def thing(id: str = "t1", **values: Any) -> Thing:
    return Thing(id=id, **values)


async def test_every_kind_comes_back_as_it_went_in(db: Database) -> None:
    """From a dict, an object, a join and a maximum alike: exact to the microsecond, the bit and the byte."""
    values: dict[str, Any] = {
        "maker": UID,
        "public": False,
        "seen": MOMENT,
        "born": date(2024, 2, 29),
        "uid": OTHER,
        "weight": 0.1 + 0.2,
        "doc": '{"a": [1, "\\u00e4"]}',
        "data": bytes(range(256)),
    }
    await run(Thing.insert(thing(**values)), db)
    found = await run(Thing.objects().first(), db)
    (row,) = await run(Thing.select(), db)
    assert found is not None
    for name, value in values.items():
        assert (name, row[name], type(row[name])) == (name, value, type(value))
        assert (name, getattr(found, name)) == (name, value)
    assert found.seen.tzinfo is UTC
    latest = await run(Thing.select(Max(Thing.seen), Min(Thing.born), Max(Thing.uid, alias="uid")), db)
    assert latest == [{"max": MOMENT, "min": date(2024, 2, 29), "uid": OTHER}]
    (nulls,) = await run(Thing.insert(thing("t2")).returning(Thing.seen, Thing.uid, Thing.doc), db)
    assert set(nulls.values()) == {None}


async def test_values_compare_as_what_they_are(db: Database) -> None:
    """Moments of any zone, dates, UUIDs and bytes in conditions, lists and updates, also written as text."""
    await run(Thing.insert(thing(seen=MOMENT, born=date(2024, 2, 29), uid=UID, data=b"\0'")), db)
    elsewhere = MOMENT.astimezone(timezone(timedelta(hours=9)))
    for condition in (
        Thing.seen == elsewhere,
        Thing.seen.is_in([elsewhere]),
        Thing.seen > elsewhere - timedelta(microseconds=1),
        Thing.seen == elsewhere.isoformat(),
        Thing.born == date(2024, 2, 29),
        Thing.born == "20240229",
        Thing.uid == UID,
        Thing.uid == str(UID).upper(),
        Thing.data == b"\0'",
    ):
        assert await run(Thing.count().where(condition), db) == 1, condition
    assert await affected(Thing.update({Thing.seen: elsewhere + timedelta(days=1)}).where(Thing.uid == UID), db) == 1
    assert await run(Thing.select(Thing.seen).output(as_list=True), db) == [MOMENT + timedelta(days=1)]


@pytest.mark.parametrize(
    "values",
    [{"seen": MOMENT.replace(tzinfo=None)}, {"seen": "soon"}, {"born": MOMENT}, {"born": "2024-1-1"}, {"uid": "x"}],
    ids=str,
)
async def test_a_value_that_databases_would_read_differently_is_refused(db: Database, values: dict[str, Any]) -> None:
    """A moment without a zone, a date with a time, a text that is neither: an error before anything is sent."""
    (column,) = values
    with pytest.raises(ValueError, match=r"Timestamptz|isoformat|Date|UUID"):
        await run(Thing.insert(thing(**values)), db)
    with pytest.raises(ValueError, match=r"Timestamptz|isoformat|Date|UUID"):
        await run(Thing.count().where(getattr(Thing, column) == values[column]), db)


async def test_an_expression_over_dates_is_refused(db: Database) -> None:
    """It would be a text on SQLite and a date on MySQL; so would date arithmetic."""
    with pytest.raises(Unsupported, match="Python"):
        await run(Thing.select(Coalesce(Thing.seen, Thing.seen)), db)
    with pytest.raises(Unsupported, match="timedelta"):
        Thing.seen + timedelta(days=1)


async def test_json_is_loaded_where_asked(db: Database) -> None:
    """Stored as the text it was; output(load_json=True) gives Python's objects."""
    await run(Thing.insert(thing(doc={"b": 1, "a": [None]})), db)
    assert await run(Thing.select(Thing.doc), db) == [{"doc": '{"b": 1, "a": [null]}'}]
    assert await run(Thing.select(Thing.doc).output(load_json=True), db) == [{"doc": {"b": 1, "a": [None]}}]
    found = await run(Thing.objects().output(load_json=True).first(), db)
    assert found is not None
    assert found.doc == {"b": 1, "a": [None]}


async def test_joined_columns_of_one_name_keep_their_own_kinds(db: Database) -> None:
    """Both tables have ``public`` and ``seen``, of different types; each value is read as its own column's."""
    await run(Thing.insert(thing(maker=UID, seen=MOMENT)), db)
    query = Thing.select(Thing.maker.public, Thing.public, Thing.seen, Thing.maker.seen, Thing.maker.id)
    (row,) = await run(query, db)
    assert row == {"maker.public": "maker", "public": True, "seen": MOMENT, "maker.seen": 7, "maker.id": UID}
    for _ in range(2):  # composed, and then from the text that was kept
        nested = await run(Thing.objects(Thing.maker).first(), db)
        assert nested is not None
        assert (nested.public, nested.seen) == (True, MOMENT)
        assert (nested.maker.public, nested.maker.seen, nested.maker.id) == ("maker", 7, UID)


async def test_an_update_reads_what_was_there_before(db: Database) -> None:
    """MySQL assigns from left to right and would read the new value; the order written makes no difference."""
    for n, values in enumerate(({Thing.n: Thing.n + 1, Thing.m: Thing.n}, {Thing.m: Thing.n, Thing.n: Thing.n + 1})):
        await run(Thing.insert(thing(f"t{n}", n=5)), db)
        await run(Thing.update(values).where(Thing.id == f"t{n}"), db)
        assert await run(Thing.select(Thing.n, Thing.m).where(Thing.id == f"t{n}"), db) == [{"n": 6, "m": 5}]


async def test_like_takes_a_backslash_for_an_escape(db: Database) -> None:
    """As MySQL does by itself and SQLite only if told."""
    await run(Maker.insert(Maker(id=OTHER, public="50%")), db)
    count = Maker.count()
    assert await run(count.where(Maker.public.like("50\\%")), db) == 1
    assert await run(Maker.count().where(Maker.public.like("m\\%")), db) == 0
    assert await run(Maker.count().where(Maker.public.not_like("50\\%")), db) == 1


async def test_upsert_on_the_only_key(db: Database) -> None:
    """DO UPDATE takes the new row's value, a given one or one computed from the old; DO NOTHING leaves the row."""
    await run(Thing.insert(thing(n=1, m=10)), db)
    changes = [Thing.n, (Thing.m, Thing.m + 5), (Thing.seen, MOMENT), (Thing.public, False)]
    upsert = Thing.insert(thing(n=2), thing("t2", n=3)).on_conflict(Thing.id, "DO UPDATE", changes)
    assert await run(upsert, db) == [{"id": "t1"}, {"id": "t2"}]
    ask = Thing.select(Thing.n, Thing.m, Thing.seen, Thing.public).order_by(Thing.id)
    assert await run(ask, db) == [
        {"n": 2, "m": 15, "seen": MOMENT, "public": False},
        {"n": 3, "m": 0, "seen": None, "public": True},
    ]
    for target in (None, Thing.id, (Thing.id,)):
        left_out = thing(n=99)
        assert await run(Thing.insert(left_out, thing("t3")).on_conflict(target, "DO NOTHING"), db) == []
        assert not left_out._exists_in_db
    assert await run(Thing.select(Thing.n).order_by(Thing.id).output(as_list=True), db) == [2, 3, 0]


async def test_get_or_create(db: Database) -> None:
    """Created once, with the condition's values and the defaults, in the transaction given."""
    where = (Thing.id == "t1") & (Thing.n == 4)
    async with db.transaction() as tx:
        made = await run(Thing.objects().get_or_create(where, defaults={Thing.m: 6}), tx=tx)
        assert (made.id, made.n, made.m, made._was_created, made._exists_in_db) == ("t1", 4, 6, True, True)
        again = await run(Thing.objects(Thing.maker).get_or_create(where, defaults={Thing.m: 7}), tx=tx)
        assert (again.m, again._was_created) == (6, False)
        with pytest.raises(InsideTransaction):
            await run(Thing.objects().get_or_create(Thing.id == "t2"), db)
    owned = await run(Thing.objects(Thing.maker).get_or_create((Thing.id == "t2") & (Thing.maker == UID)), db)
    assert (owned.maker.id, owned._was_created) == (UID, True)
    with pytest.raises(UniqueViolation):
        await run(Thing.objects().get_or_create((Thing.id == "t1") & (Thing.n == 5)), db)


@pytest.fixture
def raced(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another creates the row between the look and the insert of the first get_or_create."""
    save = Thing.save

    class Late:
        def __init__(self, late: Thing, *args: Any) -> None:
            self.late = late

        async def run(self, *, in_pool: Any) -> None:
            monkeypatch.setattr(Thing, "save", save)
            await asyncio.create_task(run(Thing.insert(thing(n=1)), db))
            await self.late.save().run(in_pool=in_pool)

    monkeypatch.setattr(Thing, "save", lambda row: Late(row))


@pytest.mark.usefixtures("raced")
async def test_get_or_create_loses_a_race_gracefully(db: Database) -> None:
    """Whoever comes second gets what the first one made."""
    found = await run(Thing.objects().get_or_create(Thing.id == "t1"), db)
    assert (found.n, found._was_created) == (1, False)


@pytest.mark.dialect("mysql")
@pytest.mark.usefixtures("raced")
async def test_get_or_create_sees_what_came_after_its_first_read(db: Database, database_url: str) -> None:
    """At REPEATABLE READ, as in a caller's session, only a locking read finds the row that stands in the way."""
    engine = create_async_engine(database_url.replace("mysql:", "mysql+aiomysql:", 1))
    async with AsyncSession(engine) as session, session.begin():
        found = await run(Thing.objects().get_or_create(Thing.id == "t1"), tx=await enlist(session))
    await engine.dispose()
    assert (found.n, found._was_created) == (1, False)


@pytest.mark.dialect("mysql")
async def test_locks_are_what_they_say(db: Database, database_url: str) -> None:
    """Two may share a row, none may take it from them; NOWAIT says so at once, on MySQL and MariaDB."""
    await run(Thing.insert(thing()), db)
    shared = Thing.select(Thing.id).where(Thing.n == 0).lock_rows("SHARE", nowait=True)
    async with Database(database_url) as other, db.transaction() as tx:
        assert await run(shared, tx=tx) == [{"id": "t1"}]
        async with other.transaction() as second:
            assert await run(Thing.objects().lock_rows("SHARE", skip_locked=True), tx=second) != []
            assert await run(Thing.objects().lock_rows(skip_locked=True), tx=second) == []
        with pytest.raises(LockTimeout):
            async with other.transaction() as second:
                await run(Thing.select().lock_rows(nowait=True), tx=second)


@pytest.mark.dialect("sqlite")
async def test_locks_are_nothing_on_sqlite(db: Database) -> None:
    """The transaction holds the one lock there is."""
    await run(Thing.insert(thing()), db)
    async with db.transaction() as tx:
        for strength in ("SHARE", "UPDATE"):
            assert await run(Thing.select(Thing.id).lock_rows(strength, nowait=True), tx=tx) == [{"id": "t1"}]


async def test_a_read_may_go_to_a_replica(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """replica=True reaches Database.query; a write goes where writes go, a transaction refuses it."""
    asked: list[bool] = []
    query = db.query

    async def listening(*args: Any, replica: bool = False) -> Any:
        asked.append(replica)
        return await query(*args)

    monkeypatch.setattr(db, "query", listening)
    await run(Thing.insert(thing()), db, replica=True)
    assert await run(Thing.count(), db, replica=True) == 1
    assert await run(Thing.count(), replica=True) == 1
    assert await run(Thing.count(), db) == 1
    assert asked == [True, True, False]
    async with db.transaction() as tx:
        with pytest.raises(ValueError, match="replica"):
            await run(Thing.count(), tx=tx, replica=True)

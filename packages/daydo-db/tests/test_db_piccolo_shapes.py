"""The text kept for a shape, held against the text Piccolo writes and against Piccolo's own engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from piccolo.columns import JSON, BigInt, Boolean, Date, ForeignKey, Integer, Secret, Text, Timestamptz, Varchar
from piccolo.columns.combination import WhereRaw
from piccolo.engine.sqlite import SQLiteEngine
from piccolo.query.functions import Coalesce, Count, Max, Min, Sum, Upper
from piccolo.querystring import QueryString
from piccolo.table import Table

from daydo_db import Database
from daydo_db.piccolo import DatabaseEngine, Id, affected, bind, ddl, run
from daydo_db.piccolo.shapes import NoShape, shape


def tables(prefix: str) -> tuple[type[Table], type[Table]]:
    """Two tables, one referring to the other; ours and Piccolo's are alike."""
    columns = {"id": Id(primary_key=True), "name": Varchar(length=9), "score": Integer(), "open": Boolean()}
    owner = type("Owner", (Table,), columns, tablename=f"{prefix}_owner")  # type: ignore[call-overload]
    columns = {
        "id": Id(primary_key=True),
        "owner": ForeignKey(owner),
        "name": Varchar(length=9, null=True),
        "score": BigInt(null=True),
        "open": Boolean(null=True),
        "day": Date(null=True),
        "seen": Timestamptz(null=True),
        "note": Text(db_column_name="remark"),
    }
    return owner, type("Item", (Table,), columns, tablename=f"{prefix}_item")  # type: ignore[call-overload]


OWNER, ITEM = tables("shape")
THEIR_OWNER, THEIR_ITEM = tables("shape")

Make = Callable[[type[Table]], Any]
"""A query, or a part of one, of whichever of the two ``Item`` tables."""

DAY, MOMENT = date(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)
names = st.sampled_from(["", "a", "b", "ab", "a%", "it's", "ü", '"', "?", "{}", "\\"])
scores = st.integers(-2, 4) | st.sampled_from([2**50, -(2**50)])
days = st.integers(0, 2).map(lambda n: DAY + timedelta(days=n))
moments = st.integers(0, 2).map(lambda n: MOMENT + timedelta(hours=n))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "name": names,
    "score": scores,
    "open": st.booleans(),
    "day": days,
    "seen": moments,
    "note": names,
    "owner": st.sampled_from(["o1", "o2"]),
    "owner.name": names,
    "owner.score": scores,
    "owner.open": st.booleans(),
}


def column(table: type[Table], path: str) -> Any:
    found: Any = table
    for name in path.split("."):
        found = getattr(found, name)
    return found


KINDS = ["compare", "compare", "in", "null", "like", "raw", "computed", "columns", "and", "or"]


@st.composite
def conditions(draw: st.DrawFn, joins: bool, depth: int = 2) -> Make:
    kind = draw(st.sampled_from(KINDS))
    if kind in ("and", "or") and depth:
        first, second = draw(conditions(joins, depth - 1)), draw(conditions(joins, depth - 1))
        return lambda t: first(t) & second(t) if kind == "and" else first(t) | second(t)
    path = draw(st.sampled_from([path for path in VALUES if joins or "." not in path]))
    value = draw(VALUES[path])
    if kind == "in":
        values = draw(st.lists(VALUES[path], min_size=1, max_size=3))
        wanted = draw(st.booleans())
        return lambda t: column(t, path).is_in(values) if wanted else column(t, path).not_in(values)
    if kind == "null":
        return lambda t: column(t, path).is_null() if depth else column(t, path).is_not_null()
    if kind == "like":
        pattern = draw(st.sampled_from(["a%", "%b", "_", "%"]))
        return lambda t: column(t, "name").like(pattern) if depth else column(t, "name").not_like(pattern)
    if kind == "raw":
        number = draw(st.integers(-3, 3))
        return lambda t: WhereRaw("{} * {} > {}", t.score, number, 1)  # type: ignore[attr-defined]
    if kind == "computed":
        number = draw(st.integers(-3, 3))
        return lambda t: WhereRaw("{}", QueryString("{} > 0", Coalesce(t.score, 1) + number))  # type: ignore[attr-defined]
    if kind == "columns":
        return lambda t: t.name == t.note  # type: ignore[attr-defined]
    operator = draw(st.sampled_from(["__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"]))
    return lambda t: getattr(column(t, path), operator)(value)


@st.composite
def selects(draw: st.DrawFn) -> Make:
    paths = draw(st.lists(st.sampled_from([*VALUES, "id"]), max_size=4, unique=True))
    alias = draw(st.booleans())
    conditions_ = draw(st.lists(conditions(True), max_size=2))
    order = draw(st.lists(st.sampled_from(["name", "score", "owner.name"]), max_size=2, unique=True))
    ascending, distinct, grouped = draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from([False, False, True]))
    limit, offset = draw(st.none() | st.integers(0, 3)), draw(st.integers(0, 2))

    def make(t: type[Table]) -> Any:
        if grouped:
            totals = (Count(), Sum(column(t, "score")), Max(column(t, "score")), Min(column(t, "name"), alias="first"))
            return t.select(t.owner.name, *totals).where(*(c(t) for c in conditions_)).group_by(t.owner.name)  # type: ignore[attr-defined]
        chosen = [column(t, path) for path in paths]
        if alias and chosen:
            chosen[0] = chosen[0].as_alias("other")
        if chosen:
            chosen += [column(t, "id"), Upper(column(t, "owner"))]
        query = t.select(*chosen).where(*(condition(t) for condition in conditions_))
        query = query.distinct() if distinct else query
        for path in () if distinct else order:  # MySQL wants what it orders by among what is distinct
            query = query.order_by(column(t, path), ascending=ascending)
        query = query.order_by(column(t, "id"))
        if limit is not None:
            query = query.limit(limit).offset(offset)
        return query

    return make


@st.composite
def others(draw: st.DrawFn) -> Make:
    condition = draw(conditions(True))
    kind = draw(st.sampled_from(["objects", "prefetch", "first", "count", "distinct", "exists", "inner", "list"]))
    made: dict[str, Make] = {
        "objects": lambda t: t.objects().where(condition(t)).order_by(column(t, "id")),
        "prefetch": lambda t: t.objects(column(t, "owner")).where(condition(t)).order_by(column(t, "id")),
        "first": lambda t: t.objects().where(condition(t)).order_by(column(t, "id"), ascending=False).first(),
        "count": lambda t: t.count().where(condition(t)),
        "distinct": lambda t: t.count(distinct=[column(t, "name")]).where(condition(t)),
        "exists": lambda t: t.exists().where(condition(t)),
        "inner": lambda t: t.select().where(column(t, "id").is_in(t.select(column(t, "id")).where(condition(t)))),
        "list": lambda t: t.select(column(t, "id")).where(condition(t)).order_by(column(t, "id")).output(as_list=True),
    }
    return made[kind]


@st.composite
def writes(draw: st.DrawFn) -> Make:
    condition = draw(conditions(False))
    if draw(st.sampled_from([True, False, False])):
        return lambda t: t.delete().where(condition(t))
    paths = draw(st.lists(st.sampled_from(["name", "open", "day", "seen", "note"]), max_size=3, unique=True))
    values = {path: draw(VALUES[path]) for path in paths}
    step = draw(st.integers(-2, 2))

    def make(t: type[Table]) -> Any:
        changes = {column(t, path): value for path, value in values.items()}
        return t.update({**changes, column(t, "score"): column(t, "score") + step}).where(condition(t))

    return make


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            path: values if path in ("note", "owner") else st.none() | values
            for path, values in VALUES.items()
            if "." not in path
        }
    ),
    max_size=8,
).map(lambda rows: [{"id": f"i{position}", **row} for position, row in enumerate(rows)])


@pytest.mark.parametrize("url", ["sqlite://", "mysql://nobody@127.0.0.1:1/nowhere"], ids=["sqlite", "mysql"])
def test_the_kept_text_is_the_text_piccolo_writes(url: str) -> None:
    """However shapes repeat with other values, in whatever order: same text, same values, same conversions."""
    bind([OWNER, ITEM], Database(url))
    engine = ITEM._meta.db
    assert isinstance(engine, DatabaseEngine)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(selects() | others() | writes(), min_size=1, max_size=4))
    def check(makes: list[Make]) -> None:
        for make in makes:
            query, again = (getattr(made, "query", made) for made in (make(ITEM), make(ITEM)))
            assert engine.composed(query) == engine._compose(again)

    check()
    assert len(engine._kept) > 50


def test_results_are_piccolos_own(database_url: str, tmp_path: Path) -> None:
    """The same queries on Piccolo's own SQLite engine, reads and writes mixed, end in the same rows."""
    theirs = SQLiteEngine(path=str(tmp_path / "theirs.db"))
    db = Database(database_url)
    bind([OWNER, ITEM], db)
    for table in (THEIR_OWNER, THEIR_ITEM):
        table._meta.db = theirs

    with asyncio.Runner() as runner:
        runner.run(db.__aenter__())
        runner.run(filled(db))

        @settings(max_examples=25, deadline=None)
        @given(ROWS, st.lists(selects() | others() | writes(), min_size=1, max_size=8))
        def check(rows: list[dict[str, Any]], makes: list[Make]) -> None:
            runner.run(play(db, rows, makes))

        try:
            check()
        finally:
            runner.run(db.__aexit__(None, None, None))


async def filled(db: Database) -> None:
    for table in (OWNER, ITEM):
        for statement in ddl(table, db.dialect):
            await db.execute(statement)
    for table in (THEIR_OWNER, THEIR_ITEM):
        await table.create_table()
    for table in (OWNER, THEIR_OWNER):
        await table.insert(table(id="o1", name="a", score=1, open=True), table(id="o2", name="ü", score=-2, open=False))


async def play(db: Database, rows: list[dict[str, Any]], makes: list[Make]) -> None:
    """Each query on both; what they left in the table at the end."""
    for table in (ITEM, THEIR_ITEM):
        await table.delete(force=True)
        if rows:
            await table.insert(*(table(**row) for row in rows))
    for make in [*makes, lambda t: t.select()]:
        assert comparable(await run(make(ITEM), db)) == comparable(await make(THEIR_ITEM))


RECORD: Any = type(
    "Record",
    (Table,),
    {
        "id": Id(primary_key=True),
        "owner": ForeignKey(OWNER),
        "name": Secret(length=9),
        "open": Boolean(null=True),
        "day": Date(null=True),
        "seen": Timestamptz(null=True),
        "data": JSON(null=True),
    },
    tablename="shape_record",  # type: ignore[call-overload]
)
# Each pair reads alike and is not the same; so do neighbours among the clauses.
_MADE_OF: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
    (lambda: RECORD.day, lambda: QueryString('"shape_record"."day"')),
    (lambda: RECORD.open, lambda: QueryString('"shape_record"."open"')),
    (lambda: RECORD.seen, lambda: RECORD.day),
    (lambda: RECORD.owner.open, lambda: QueryString('"shape_record$owner"."open"')),
    (lambda: RECORD.id, lambda: "id"),
]
_WRITTEN: list[tuple[Callable[[Any], Any], Callable[[Any], Any]]] = [
    (lambda of: Min(of, alias="m"), lambda of: QueryString("MIN({})", of, alias="m")),
    (lambda of: Max(of, alias="m"), lambda of: Max(of, alias="n")),
    (lambda of: Max(of, alias="m"), lambda of: Min(of, alias="m")),
    (lambda of: QueryString("{}", Min(of), alias="m"), lambda of: QueryString("{}", of, alias="m")),
    (lambda of: Count(of, alias="m"), lambda of: QueryString("COUNT({})", of, alias="m")),
]
_CLAUSES: list[Callable[[Any], Any]] = [
    lambda q: q.limit(1),
    lambda q: q.limit(True),
    lambda q: q.limit(2).offset(1),
    lambda q: q.limit(2).offset(True),
    lambda q: q.distinct(),
    lambda q: q.group_by(),
    lambda q: q.group_by(RECORD.owner),
    lambda q: q.group_by(QueryString("{}", RECORD.owner)),
    lambda q: q.order_by(RECORD.day),
    lambda q: q.order_by(RECORD.day, ascending=False),
    lambda q: q.order_by(QueryString("{}", RECORD.day)),
    lambda q: q.where(RECORD.day.is_null()),
    lambda q: q.where(RECORD.id.is_in(["r1", "r2"])),
    lambda q: q.where(RECORD.id.is_in(["r1", QueryString("{}", "r2")])),
    lambda q: q.where(WhereRaw("{} = {}", RECORD.owner.name, "a")),
    lambda q: q.where(WhereRaw("{} = {}", QueryString('"shape_record$owner"."name"'), "a")),
    lambda q: q.having(WhereRaw("{} = {}", RECORD.owner.name, "a")),
    lambda q: q.output(nested=True),
    lambda q: q.output(load_json=True),
    lambda q: q.output(as_list=True),
    lambda q: q.output(as_json=True),
    lambda q: q.callback(len),
    lambda q: q.lock_rows(),
    lambda q: q.lock_rows("SHARE"),
    lambda q: q.first(),
    lambda q: q.freeze(),
]


_KINDS: list[Callable[[], Any]] = [
    lambda: RECORD.select(),
    lambda: RECORD.select(exclude_secrets=True),
    lambda: RECORD.select(RECORD.owner.name, RECORD.name, RECORD.data),
    lambda: RECORD.objects(),
    lambda: RECORD.objects(RECORD.owner),
]


@st.composite
def alike(draw: st.DrawFn) -> list[Callable[[], Any]]:
    """Reads of which one may be taken for another."""
    made_of, written = draw(st.sampled_from(_MADE_OF)), draw(st.sampled_from(_WRITTEN))
    kinds = draw(st.sampled_from([None, *pairwise(_KINDS)]))
    clauses = draw(st.sampled_from([None, *pairwise(_CLAUSES)]))
    always = draw(st.none() | st.sampled_from(_CLAUSES))

    def one(number: int) -> Callable[[], Any]:
        first, second, third = number & 1, number >> 1 & 1, number >> 2

        def make() -> Any:
            query = kinds[first]() if kinds else RECORD.select(written[first](made_of[second]()))
            query = clauses[third](query) if clauses else query
            return always(query) if always else query

        return make

    return [one(number) for number in draw(st.permutations(range(8)))]


async def outcome(make: Callable[[], Any], db: Database) -> str:
    """What comes of a read, to the types of its values, or how it fails."""
    try:
        async with db.transaction() as tx:
            found = await run(make(), tx=tx)
    except Exception as error:
        return type(error).__name__
    if isinstance(found, list):
        return repr([row.to_dict() if isinstance(row, Table) else row for row in found])
    return repr(found.to_dict() if isinstance(found, Table) else found)


def test_no_query_is_taken_for_another(database_url: str) -> None:
    """Whatever ran before it, a read gives what it gives alone: same rows, same types, same refusal."""
    db = Database(database_url)
    bind([OWNER, RECORD], db)
    engine = RECORD._meta.db
    with asyncio.Runner() as runner:
        runner.run(db.__aenter__())
        runner.run(recorded(db))

        @settings(max_examples=150, deadline=None)
        @given(alike())
        def check(makes: list[Callable[[], Any]]) -> None:
            alone = []
            for make in makes:
                engine._kept.clear()
                alone.append(runner.run(outcome(make, db)))
            engine._kept.clear()
            assert [runner.run(outcome(make, db)) for make in makes] == alone

        try:
            check()
        finally:
            runner.run(db.__aexit__(None, None, None))


async def recorded(db: Database) -> None:
    for table in (OWNER, RECORD):
        for statement in ddl(table, db.dialect):
            await db.execute(statement)
    await OWNER.insert(OWNER(id="o1", name="a", score=1, open=True), OWNER(id="o2", name="b", score=2, open=False))
    await RECORD.insert(
        RECORD(id="r1", owner="o1", name="x", open=True, day=DAY, seen=MOMENT, data={"a": [1]}),
        RECORD(id="r2", owner="o2", name="y", open=None, day=None, seen=None, data=None),
        RECORD(id="r3", owner="o1", name="z", open=False, day=DAY + timedelta(days=1), seen=MOMENT, data="[]"),
    )


async def test_json_is_loaded_also_when_the_text_was_kept() -> None:
    """A select of everything learns its columns while it is composed, which the second time it is not."""
    async with Database("sqlite://") as db:
        bind([OWNER, RECORD], db)
        await recorded(db)
        for _ in range(2):
            found = await run(RECORD.select().where(RECORD.id == "r1").output(load_json=True), db)
            assert found[0]["data"] == {"a": [1]}


def test_what_is_not_known_has_no_shape() -> None:
    """An expression that writes itself in its own way is composed each time, not mistaken for another."""

    class Odd(QueryString):
        def get_select_string(self, engine_type: str, with_alias: bool = True) -> QueryString:
            return QueryString("1")

    bind([OWNER, ITEM], Database("sqlite://"))
    with pytest.raises(NoShape):
        shape(ITEM.select(Odd("2")))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda t: t.select(t.id), lambda t: t.select(t.name)),
        (lambda t: t.select(t.id), lambda t: t.select(t.id.as_alias("name"))),
        (lambda t: t.select(t.owner), lambda t: t.select(t.owner.id)),
        (lambda t: t.select(t.name), lambda t: t.select(t.owner.name)),
        (lambda t: t.select(t.name.join_on(OWNER.id).score), lambda t: t.select(t.name.join_on(OWNER.name).score)),
        (lambda t: t.select(), lambda t: t.select().distinct()),
        (lambda t: t.select(t.id).order_by(t.id), lambda t: t.select(t.id).order_by(t.id, ascending=False)),
        (lambda t: t.select(t.id).order_by(t.id), lambda t: t.select(t.id).group_by(t.id)),
        (lambda t: t.select().limit(1), lambda t: t.select().limit(2)),
        (lambda t: t.select().limit(1), lambda t: t.select().limit(True)),
        (lambda t: t.select(t.id), lambda t: t.select(t.id).group_by()),
        (lambda t: t.select(Min(t.day)), lambda t: t.select(Max(t.day))),
        (lambda t: t.select(Min(t.day)), lambda t: t.select(QueryString("MIN({})", t.day, alias="min"))),
        (
            lambda t: t.select(QueryString("MIN({})", t.day)),
            lambda t: t.select(QueryString("MIN({})", QueryString('"shape_item"."day"'))),
        ),
        (lambda t: t.select().where(t.score.is_in([1, 2])), lambda t: t.select().where(t.score.is_in([1, t.score]))),
        (lambda t: t.select().limit(1), lambda t: t.select().limit(1).offset(1)),
        (lambda t: t.select().lock_rows(), lambda t: t.select().lock_rows("SHARE")),
        (lambda t: t.select().lock_rows(), lambda t: t.select().lock_rows(skip_locked=True)),
        (lambda t: t.select().where(t.score == 1), lambda t: t.select().where(t.score == t.owner.score)),
        (lambda t: t.select().where(t.score == 1), lambda t: t.select().where(t.score != 1)),
        (lambda t: t.select().where(t.score.is_in([1])), lambda t: t.select().where(t.score.is_in([1, 1]))),
        (lambda t: t.select().where(t.score.is_null()), lambda t: t.select().where(t.score.is_not_null())),
        (lambda t: t.select().where(WhereRaw("score > {}", 1)), lambda t: t.select().where(WhereRaw("score < {}", 1))),
        (
            lambda t: t.select().where((t.score == 1) & ((t.score == 2) | (t.score == 3))),
            lambda t: t.select().where(((t.score == 1) & (t.score == 2)) | (t.score == 3)),
        ),
        (lambda t: t.select().where(t.score == 1), lambda t: t.select().group_by(t.score).having(t.score == 1)),
        (lambda t: t.count(), lambda t: t.count(t.score)),
        (lambda t: t.count(t.score), lambda t: t.count(distinct=[t.score])),
        (lambda t: t.objects(), lambda t: t.objects(t.owner)),
        (lambda t: t.update({t.score: 1}), lambda t: t.update({t.score: t.score + 1})),
        (lambda t: t.select(), lambda t: t.objects()),
    ],
)
def test_different_queries_have_different_shapes(one: Make, other: Make) -> None:
    """Whatever differs in the text differs in the key; values alone do not."""
    bind([OWNER, ITEM], Database("sqlite://"))
    assert shape(one(ITEM))[0] != shape(other(ITEM))[0]
    assert shape(one(ITEM))[0] == shape(one(ITEM))[0]
    assert shape(ITEM.select().where(ITEM.score == 1))[0] == shape(ITEM.select().where(ITEM.score == 2))[0]  # type: ignore[attr-defined]


async def test_no_more_texts_are_kept_than_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller's ever new limits push out the oldest text, and each still runs."""
    monkeypatch.setattr("daydo_db.piccolo.engine._KEPT", 3)
    async with Database("sqlite://") as db:
        bind([OWNER], db)
        await db.execute(ddl(OWNER, db.dialect)[0])
        engine = OWNER._meta.db
        assert isinstance(engine, DatabaseEngine)
        for limit in (1, 2, 3, 4, 5, 1):
            assert await run(OWNER.select().limit(limit), db) == []
        assert len(engine._kept) == 3
        assert await affected(OWNER.delete(force=True), db) == 0


async def test_a_long_list_is_composed_each_time_and_not_kept() -> None:
    """A thousand lengths of long lists would be a thousand long texts; the key of a short one is short."""
    async with Database("sqlite://") as db:
        bind([OWNER], db)
        await db.execute(ddl(OWNER, db.dialect)[0])
        await OWNER.insert(OWNER(id="o1", name="a", score=1, open=True))
        engine = OWNER._meta.db
        assert isinstance(engine, DatabaseEngine)
        score: Any = OWNER.score  # type: ignore[attr-defined]
        for length in (1_000, 10_000, 10_001):
            assert await run(OWNER.count().where(score.is_in([*range(length)])), db) == 1
        [(key, kept)] = engine._kept.items()
        assert len(key) < 20
        assert len(kept.sql) < 4_000


def comparable(result: Any) -> Any:
    """Rows in any order, objects as dicts; the queries order where it shows."""
    if isinstance(result, list):
        return sorted((comparable(row) for row in result), key=repr)
    if isinstance(result, Table):
        return {name: comparable(value) for name, value in result.to_dict().items()}
    return result

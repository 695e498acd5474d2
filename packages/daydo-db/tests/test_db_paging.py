"""Pages by keyset: none repeats, skips, scans or sorts, and a cursor is good for its own list alone."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import AsyncIterator, Sequence
from functools import cmp_to_key
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daydo_db import SQLITE, CursorInvalid, Cursors, Database, DatabaseConfig, Keyset, Slice
from daydo_db.paging import CURSOR_CHARS_MAX
from daydo_db.testing import count_statements
from daydo_kernel import BadRequest

KEY = "a key of this test"
COLUMNS = ("id", "owner", "n", "word", "ratio", "raw")
SELECT = "SELECT id, owner, n, word, ratio, raw FROM item WHERE :page"
ORDERS: list[tuple[str, ...]] = [
    ("id",),
    ("id DESC",),
    ("n DESC", "id DESC"),
    ("n", "id"),
    ("n DESC", "id"),
    ("n", "id DESC"),
    ("word DESC", "n", "id DESC"),
    ("raw", "word", "id"),
    ("raw DESC", "id"),
]

Row = tuple[Any, ...]
ROWS = st.tuples(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(["ann", "bob"]),
    st.integers(-2, 2),
    st.sampled_from(["", "a", "b", "é", "😀"]),
    st.sampled_from([-1.5, 0.0, 0.1, 1e300]),
    st.sampled_from([b"", b"\0", b"\xff%s'\\"]),
)
TABLES = st.lists(ROWS, max_size=14, unique_by=lambda row: row[0])
SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as db:
        text = "VARCHAR(20) NOT NULL" if db.dialect is SQLITE else "VARCHAR(20) COLLATE utf8mb4_bin NOT NULL"
        raw = "BLOB NOT NULL" if db.dialect is SQLITE else "VARBINARY(20) NOT NULL"
        await db.execute(
            f"CREATE TABLE item (id BIGINT PRIMARY KEY, owner {text}, n BIGINT NOT NULL, word {text}, "
            f"ratio DOUBLE NOT NULL, raw {raw})"
        )
        yield db


def keyset(*columns: str, key: str = KEY, name: str = "items") -> Keyset:
    return Keyset(*columns, within=["owner"], name=name, key=key)


async def fill(db: Database, rows: Sequence[Row]) -> None:
    await db.execute("DELETE FROM item")
    await insert(db, rows)


async def insert(db: Database, rows: Sequence[Row]) -> None:
    if rows:
        marks = ", ".join(["(?, ?, ?, ?, ?, ?)"] * len(rows))
        await db.execute(f"INSERT INTO item VALUES {marks}", [value for row in rows for value in row])


def in_order(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    def compare(one: Row, other: Row) -> int:
        for column in columns:
            name, _, direction = column.partition(" ")
            a, b = one[COLUMNS.index(name)], other[COLUMNS.index(name)]
            if a != b:
                return (-1 if a < b else 1) * (-1 if direction else 1)
        return 0

    return sorted((row for row in rows if row[1] == "ann"), key=cmp_to_key(compare))


async def page(db: Database, order: Keyset, cursor: str | None = None, limit: int = 2) -> Slice[Row]:
    return await order.page(db, SELECT, within=["ann"], cursor=cursor, limit=limit)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=TABLES, columns=st.sampled_from(ORDERS), sizes=SIZES)
async def test_a_walk_sees_every_row_once_in_order_and_the_way_back_is_its_reverse(
    db: Database, rows: list[Row], columns: tuple[str, ...], sizes: list[int]
) -> None:
    """Whatever the page sizes, the directions, the types and the duplicates; another owner's rows are not in it."""
    await fill(db, rows)
    expected, order = in_order(rows, columns), keyset(*columns)
    forward = [await page(db, order, limit=sizes[0])]
    while forward[-1].next_cursor:
        forward.append(await page(db, order, forward[-1].next_cursor, sizes[len(forward) % len(sizes)]))
    assert [row for part in forward for row in part.rows] == expected
    assert [part.previous_cursor is not None for part in forward] == [False] + [True] * (len(forward) - 1)
    back = [forward[-1]]
    while back[-1].previous_cursor:
        back.append(await page(db, order, back[-1].previous_cursor, sizes[len(back) % len(sizes)]))
    assert [row for part in reversed(back) for row in part.rows] == expected
    assert all(part.next_cursor for part in back[1:])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=TABLES, newcomers=TABLES, columns=st.sampled_from(ORDERS), forward=st.booleans(), data=st.data())
async def test_rows_that_come_and_go_never_move_another(
    db: Database, rows: list[Row], newcomers: list[Row], columns: tuple[str, ...], forward: bool, data: st.DataObject
) -> None:
    """Either way: what stays is seen once, a newcomer at most once, and the order never breaks."""
    await fill(db, rows)
    order, known = keyset(*columns), {row[0] for row in rows}
    newcomers = [row for row in newcomers if row[0] not in known]
    part, stays, seen = await page(db, order), in_order(rows, columns), list[Row]()
    while not forward and part.next_cursor:
        part = await page(db, order, part.next_cursor)
    while True:
        seen = [*seen, *part.rows] if forward else [*part.rows, *seen]
        if newcomers and data.draw(st.booleans()):
            await insert(db, [newcomers.pop()])
        if stays and data.draw(st.booleans()):
            gone = stays.pop(data.draw(st.integers(0, len(stays) - 1)))
            await db.execute("DELETE FROM item WHERE id = ?", [gone[0]])
        cursor = part.next_cursor if forward else part.previous_cursor
        if cursor is None:
            break
        part = await page(db, order, cursor, data.draw(st.integers(1, 3)))
    assert seen == in_order(set(seen), columns)
    assert set(stays) <= set(seen)


async def test_from_an_empty_page_the_way_back_begins_with_the_cursors_own_row(db: Database) -> None:
    """All that followed has gone: nothing is lost on the way back, and nothing invented."""
    rows = [(number, "ann", 0, "", 0.0, b"") for number in range(4)]
    await fill(db, rows)
    order = keyset("n", "id")
    first = await page(db, order)
    last = await page(db, order, first.next_cursor)
    await db.execute("DELETE FROM item WHERE id > 1")
    empty = await page(db, order, first.next_cursor)
    assert (empty.rows, empty.next_cursor) == ([], None)
    assert (await page(db, order, empty.previous_cursor, 1)).rows == [rows[1]]
    await db.execute("DELETE FROM item WHERE id < 2")
    before = await page(db, order, last.previous_cursor)
    assert (before.rows, before.previous_cursor) == ([], None)
    await insert(db, rows)
    assert (await page(db, order, before.next_cursor)).rows == rows[2:]
    assert (await page(db, order, empty.previous_cursor)).rows == rows[:2]


async def test_an_empty_list_is_one_page(db: Database) -> None:
    """Without a cursor to anywhere."""
    assert await page(db, keyset("id")) == Slice([])


# Cursors


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), key=st.sampled_from(["", KEY]))
async def test_whatever_is_not_exactly_a_cursor_of_this_list_is_refused(
    db: Database, data: st.DataObject, key: str
) -> None:
    """Tampered, truncated, invented, spelt differently, over-long: CursorInvalid before any statement, never a 500."""
    order = keyset("word", "id", key=key)
    real = order.cut(SQLITE, within=["ann"], limit=1).slice([("é", 7), ("z", 8)], lambda row: row).next_cursor
    assert real
    at = data.draw(st.integers(0, len(real) - 1))
    letters = st.characters(codec="utf-8")
    fake = data.draw(
        st.one_of(
            st.just(real[:at]),
            letters.map(lambda letter: real[:at] + letter + real[at + 1 :]),
            letters.map(lambda letter: real[:at] + letter + real[at:]),
            st.text(max_size=100),
            st.binary(max_size=100).map(lambda raw: base64.urlsafe_b64encode(raw).decode().rstrip("=")),
            st.sampled_from([real + "=", real + "\n", " " + real, real * 3, "A" * 100_000, "\ud800"]),
        ).filter(lambda text: text != real)
    )
    with count_statements(db, at_most=0), pytest.raises(CursorInvalid) as refused:
        await page(db, order, fake)
    assert (refused.value.status, refused.value.fields[0].field) == (400, "cursor")


async def test_a_cursor_is_good_for_its_owner_its_list_its_order_and_its_filters(db: Database) -> None:
    """Anybody may see his own cursor and try it elsewhere."""
    await fill(db, [(number, "ann", 0, "", 0.0, b"") for number in range(3)])
    first = await keyset("id").page(db, SELECT, within=["ann"], scope=["open"], limit=1)
    cursor = first.next_cursor
    assert (await keyset("id").page(db, SELECT, within=["ann"], scope=["open"], cursor=cursor)).rows[0][0] == 1
    elsewhere: list[tuple[Keyset, list[str], list[str]]] = [
        (keyset("id"), ["bob"], ["open"]),
        (keyset("id"), ["ann"], ["done"]),
        (keyset("id"), ["ann"], []),
        (keyset("id"), ["ann", "open"], []),
        (keyset("id DESC"), ["ann"], ["open"]),
        (keyset("n"), ["ann"], ["open"]),
        (keyset("id", name="others"), ["ann"], ["open"]),
        (keyset("id", key="another key"), ["ann"], ["open"]),
    ]
    for order, within, scope in elsewhere:
        with pytest.raises((CursorInvalid, ValueError)) as refused:
            await order.page(db, SELECT, within=within, scope=scope, cursor=cursor)
        assert isinstance(refused.value, CursorInvalid) or len(within) == 2, "a caller's mistake, not a client's"


def test_while_a_key_changes_both_are_good_and_the_new_one_signs() -> None:
    """``new,old``: a rolling restart refuses nobody; afterwards the old key is worth nothing."""
    old, both, new = (Cursors("list", int, key=key) for key in ("old", "new,old", "new"))
    assert both.open(old.seal(7)) == new.open(both.seal(7)) == 7
    with pytest.raises(CursorInvalid):
        new.open(old.seal(7))


def test_a_key_is_never_shown() -> None:
    """Configurations are logged."""
    assert "hunter2" not in repr(DatabaseConfig(cursor_key="hunter2"))


@pytest.mark.parametrize("value", [2**63, 0.1, float("nan"), float("inf"), None, True, [1], "two values"])
async def test_without_a_key_even_a_forgery_is_no_500(db: Database, value: Any) -> None:
    """Who has read the code can sign with the empty key; what he sends still must be a position."""
    order = keyset("id", key="")
    forger = Cursors(order._cursors._name, Any, key="")  # type: ignore[arg-type]
    forged = forger.seal([False, False, [1, 2] if value == "two values" else [value]], ["ann"])
    with pytest.raises(CursorInvalid):
        await page(db, order, forged)


@pytest.mark.parametrize("before", [b"", b"\x93\xc2\xc2", b"\x93\xc2\xc2\x91", b"\x94\xc2\xc2\x91\x01"])
@pytest.mark.parametrize("nested", [b"\x91" * 5_000 + b"\x01", b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff"])
def test_no_forgery_is_too_deep_or_too_long(before: bytes, nested: bytes) -> None:
    """A few thousand bytes that nest as deep, or tell of four thousand million members: refused like any other."""
    for forged in (keyset("id", key="")._cursors, Cursors("anything", Any, key="")):  # type: ignore[arg-type]
        body = before + nested
        cursor = base64.urlsafe_b64encode(forged._sign(b"", body, ["ann"]) + body).decode().rstrip("=")
        with pytest.raises(CursorInvalid):
            forged.open(cursor, ["ann"])


async def test_a_limit_that_is_none_is_the_clients_400(db: Database) -> None:
    """Refused with the field's name, not trimmed: a client that asks for 500 would take 100 for all there is."""
    for limit in (0, -1, 101, 1.5, "10", True):
        with pytest.raises(BadRequest) as refused:
            await page(db, keyset("id"), limit=limit)
        assert refused.value.fields[0].field == "limit"


async def test_mistakes_of_the_caller_are_told_apart_from_the_clients(db: Database) -> None:
    """They are the programmer's to see, at once."""
    await fill(db, [(number, "ann", 0, "", 0.0, b"") for number in range(3)])
    for columns in ((), ("id; DROP TABLE item",), ("id desc",), ("LOWER(word)",)):
        with pytest.raises(ValueError, match="column"):
            keyset(*columns)
    with pytest.raises(ValueError, match=":page"):
        await keyset("id").page(db, "SELECT id FROM item", within=["ann"])
    with pytest.raises(ValueError, match="select id once"):
        await keyset("id").page(db, "SELECT n FROM item WHERE :page", within=["ann"])
    for limit in (1, 50):
        with pytest.raises(TypeError, match="NoneType"):
            await keyset("id").page(db, "SELECT NULL AS id FROM item WHERE :page", within=["ann"], limit=limit)
    with pytest.raises(ValueError, match="characters"):
        Cursors("list", str, key=KEY).seal("x" * CURSOR_CHARS_MAX)


async def test_a_float_is_no_key_and_nothing_is_within_null(db: Database) -> None:
    """MySQL prints a FLOAT shorter than it is kept, so pages would end early or never; ``= NULL`` finds no row."""
    await db.execute("CREATE TABLE reading (id BIGINT PRIMARY KEY, owner VARCHAR(9), degrees FLOAT NOT NULL)")
    await db.execute("INSERT INTO reading VALUES (1, 'ann', 0.1), (2, 'ann', 0.1), (3, NULL, 0.1)")
    warmest = keyset("degrees DESC", "id")
    for limit in (1, 50):
        with pytest.raises(TypeError, match="degrees is a float"):
            await warmest.page(db, "SELECT id, degrees FROM reading WHERE :page", within=["ann"], limit=limit)
    for value in (None, 0.1):
        with pytest.raises(TypeError, match="owner is a"):
            await keyset("id").page(db, "SELECT id FROM reading WHERE :page", within=[value])  # type: ignore[list-item]


async def test_a_page_is_read_inside_a_transaction_too(db: Database) -> None:
    """With placeholders on both sides of the mark, under an alias, with what the transaction has written."""
    select = "SELECT * FROM (SELECT i.id, i.word FROM item i WHERE i.word <> ? AND :page) i WHERE i.word <> ?"
    order = Keyset("i.id DESC", within=["i.owner"], name="items", key=KEY)
    async with db.transaction() as tx:
        for number in range(4):
            row = (number, "ann", 0, "abcd"[number], 0.0, b"")
            await tx.execute("INSERT INTO item VALUES (?, ?, ?, ?, ?, ?)", row)
        first = await order.page(tx, select, ["b", "none"], within=["ann"], limit=2)
        assert [row[0] for row in first.rows] == [3, 2]
        rest = await order.page(tx, select, ["b", "none"], within=["ann"], cursor=first.next_cursor)
        assert [row[0] for row in rest.rows] == [0]


# Cost

LONG = 32_000
LIMIT = 20


@pytest.fixture
async def long(db: Database) -> Database:
    """32,000 rows in one list, five to a value of n, wide enough that reading the whole table looks cheap."""
    await db.execute("INSERT INTO item VALUES (0, 'ann', 0, 'w', 0.5, 'xxxxxxxxxxxxxxx')")
    for power in range(15):
        await db.execute(f"INSERT INTO item SELECT id + {1 << power}, owner, n, word, ratio, raw FROM item")
    await db.execute(f"DELETE FROM item WHERE id >= {LONG}")
    await db.execute("UPDATE item SET n = id % 6400")
    await db.execute("CREATE INDEX item_id ON item (owner, id)")
    await db.execute("CREATE INDEX item_plain ON item (owner, n, id)")
    await db.execute("CREATE INDEX item_mixed ON item (owner, n DESC, id)")
    await db.execute("CREATE INDEX item_back ON item (owner, n, id DESC)")
    await db.execute("ANALYZE" if db.dialect is SQLITE else "ANALYZE TABLE item")
    return db


async def test_no_page_reads_more_than_it_shows(long: Database) -> None:
    """At the beginning, in the middle, near the end, both ways: rows come out of an index, none is passed over.

    Each server's planner has its own way to get this wrong; this is the test that says the SQL suits all of them.
    """
    for columns in (("n DESC", "id DESC"), ("n", "id"), ("id DESC",), ("n DESC", "id")):
        order, places = keyset(*columns), [COLUMNS.index(column.partition(" ")[0]) for column in columns]
        for depth in (2 * LIMIT, LONG // 2, LONG - 2 * LIMIT):
            sql = f"SELECT {', '.join(COLUMNS)} FROM item ORDER BY {', '.join(columns)} LIMIT 1 OFFSET ?"
            [row] = (await long.query(sql, [depth])).rows
            values = [row[place] for place in places]
            cut = order.cut(long.dialect, within=["ann"], limit=1)
            after = cut.slice([row, row], lambda _, values=values: values).next_cursor
            shown = await page(long, order, after, LIMIT)
            for cursor in (None, after, shown.previous_cursor):
                part, read = await cost(long, order, cursor)
                assert len(part.rows) == LIMIT
                assert read <= 3 * LIMIT, f"{read} rows read for {LIMIT} around row {depth} by {columns}"


async def cost(db: Database, order: Keyset, cursor: str | None) -> tuple[Slice[Row], int]:
    """A page, and how many rows the server looked at for it."""
    if db.dialect is SQLITE:
        return await sqlite_cost(db, order, cursor)
    async with db.transaction() as tx:
        before = await handler_reads(tx)
        part = await order.page(tx, SELECT, within=["ann"], cursor=cursor, limit=LIMIT)
        after = await handler_reads(tx)
    new = {name: after[name] - before[name] for name in after}
    # What a pushed-down condition turns away inside the engine is not among the reads.
    return part, new.pop("Handler_icp_attempts", 0) - 2 * new.get("Handler_icp_match", 0) + sum(new.values())


async def handler_reads(tx: Any) -> dict[str, int]:
    sql = "SHOW SESSION STATUS WHERE Variable_name LIKE 'Handler_read%' OR Variable_name LIKE 'Handler_icp%'"
    return {name: int(value) for name, value in (await tx.execute(sql)).rows}


async def sqlite_cost(db: Database, order: Keyset, cursor: str | None) -> tuple[Slice[Row], int]:
    with count_statements(db) as statements:
        part = await order.page(db, SELECT, within=["ann"], cursor=cursor, limit=LIMIT)
    [sent] = statements
    connection = sqlite3.connect(db.location.path)
    try:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sent.statement.text}", sent.args)]
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        connection.set_progress_handler(count, 10)
        connection.execute(sent.statement.text, sent.args).fetchall()
    finally:
        connection.close()
    assert all(line.startswith("SEARCH") for line in plan), plan
    # A row takes ten to twenty steps of SQLite's machine.
    return part, steps // 2

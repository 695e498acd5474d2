from __future__ import annotations

import re
from typing import Any

import pytest
from piccolo.columns import BigInt, Boolean, ForeignKey, Integer, Real, SmallInt, Text, Varchar
from piccolo.constraints import Check, Unique
from piccolo.table import Table

from daydo_db import MYSQL, SQLITE, Database, Dialect
from daydo_db.piccolo import Id, Index, Unsupported, changes, ddl


class Owner(Table, tablename="shop_owner"):
    id = Id(primary_key=True)
    code = Varchar(length=20, unique=True, default=None)


def version(**columns: Any) -> type[Table]:
    return type("Thing", (Table,), {"id": Id(primary_key=True), **columns}, tablename="shop_thing")  # type: ignore[call-overload, no-any-return]


def plain(**columns: Any) -> type[Table]:
    return version(name=Varchar(length=20), n=Integer(null=True, default=None), **columns)


def owned(*constraints: str, **fk: Any) -> type[Table]:
    owner, size = ForeignKey(Owner, null=True, **fk), Integer(default=0)
    rules = {
        "unique": {"one": Unique([owner, size])},
        "index": {"found": Index([owner, size])},
        "other": {"found": Index([size, owner])},
    }
    chosen = {name: rule for constraint in constraints for name, rule in rules[constraint].items()}
    return version(name=Varchar(length=20), n=Integer(null=True, default=None), owner=owner, size=size, **chosen)


NAME, N = Varchar(length=20), Integer(null=True, default=None)

CASES: dict[str, tuple[type[Table], type[Table], dict[str, Any]]] = {
    "nothing": (plain(), plain(), {}),
    "a column comes": (plain(), version(name=Varchar(length=20), size=BigInt(default=7), n=N), {}),
    "a column that may be null comes": (plain(), plain(note=Text(null=True, default=None)), {}),
    "a long column comes": (plain(), plain(note=Text(default="it's")), {}),
    "a unique column comes": (plain(), plain(code=Varchar(length=9, null=True, default=None, unique=True)), {}),
    "a column goes": (plain(size=BigInt(default=7)), plain(), {"dropped": {"size"}}),
    "an indexed column goes": (plain(size=BigInt(default=7, index=True)), plain(), {"dropped": {"size"}}),
    "a unique column goes": (
        plain(code=Varchar(length=9, null=True, default=None, unique=True)),
        plain(),
        {"dropped": {"code"}},
    ),
    "a column gets another name": (
        plain(size=BigInt(default=7)),
        plain(bytes=BigInt(default=7)),
        {"renamed": {"size": "bytes"}},
    ),
    "an indexed column gets another name": (
        plain(size=BigInt(default=7, index=True)),
        plain(bytes=BigInt(default=7, index=True)),
        {"renamed": {"size": "bytes"}},
    ),
    "a checked column gets another name": (
        plain(size=(size := BigInt(default=7)), small=Check("size < 9")),
        plain(bytes=BigInt(default=7), small=Check("bytes < 9")),
        {"renamed": {"size": "bytes"}},
    ),
    "an integer grows": (plain(size=SmallInt(default=7)), plain(size=BigInt(default=7)), {}),
    "a boolean becomes a number": (plain(size=Boolean(default=True)), plain(size=Integer(default=1)), {}),
    "an integer becomes a float": (plain(size=Integer(default=7)), plain(size=Real(default=7.5)), {}),
    "a text grows": (plain(), version(name=Varchar(length=80), n=N), {}),
    "a text becomes long": (plain(), version(name=Text(), n=N), {}),
    "a unique text becomes long": (
        version(name=Varchar(length=20, unique=True), n=N),
        version(name=Text(), n=N),
        {},
    ),
    "an id becomes a text": (plain(code=Id(null=True)), plain(code=Varchar(length=80, null=True, default=None)), {}),
    "a default changes": (plain(size=BigInt(default=7)), plain(size=BigInt(default=8)), {}),
    "a default goes": (plain(size=BigInt(default=7)), plain(size=BigInt(default=None)), {}),
    "nulls are filled": (plain(), version(name=Varchar(length=20), n=Integer(default=5)), {}),
    "nulls are allowed": (plain(), version(name=Varchar(length=20, null=True), n=N), {}),
    "an index comes": (plain(), version(name=Varchar(length=20, index=True), n=N), {}),
    "an index goes": (version(name=Varchar(length=20, index=True), n=N), plain(), {}),
    "an index changes": (owned("index"), owned("other"), {}),
    "a unique comes": (plain(), version(name=Varchar(length=20, unique=True), n=N), {}),
    "a unique goes": (version(name=Varchar(length=20, unique=True), n=N), plain(), {}),
    "a check comes": (plain(), plain(some=Check("n > 0")), {}),
    "a check changes": (plain(some=Check("n > 0")), plain(some=Check("n > 1")), {}),
    "a check goes": (plain(some=Check("n > 0")), plain(), {}),
    "a foreign key comes": (plain(), plain(owner=ForeignKey(Owner, null=True)), {}),
    "a foreign key goes": (plain(owner=ForeignKey(Owner, null=True)), plain(), {"dropped": {"owner"}}),
    "a foreign key leans on another index": (owned(), owned("index"), {}),
    "a foreign key loses the index it leant on": (owned("index"), owned(), {}),
    "a foreign key leans on a unique": (owned("index"), owned("unique"), {}),
    "a column takes the name of one that goes": (
        plain(size=BigInt(default=7), bytes=BigInt(default=1)),
        plain(size=BigInt(default=7)),
        {"renamed": {"bytes": "size"}, "dropped": {"size"}},
    ),
    "so it does with all that hangs on the name": (
        plain(
            size=(first := BigInt(null=True, default=None, index=True)),
            bytes=(second := BigInt(null=True, default=None, index=True)),
            both=Unique([first, second]),
            some=Check("size > 0"),
        ),
        plain(
            size=(first := BigInt(null=True, default=None, index=True)),
            both=Unique([first]),
            some=Check("size > 0"),
        ),
        {"renamed": {"bytes": "size"}, "dropped": {"size"}},
    ),
    "the other name for what goes is taken": (
        plain(size=BigInt(default=7), bytes=BigInt(default=1), size_gone=BigInt(default=2)),
        plain(size=BigInt(default=1), size_gone=BigInt(default=2)),
        {"renamed": {"bytes": "size"}, "dropped": {"size"}},
    ),
    "names move up": (
        plain(
            a=BigInt(default=1, index=True),
            b=(chained := BigInt(null=True, default=None)),
            c=BigInt(null=True, default=None, unique=True),
            found=Index([chained]),
            some=Check("b > 0"),
        ),
        plain(
            b=BigInt(default=1),
            c=(chained := BigInt(null=True, default=None, unique=True)),
            d=BigInt(null=True, default=None),
            found=Index([chained]),
            some=Check("b > 0"),
        ),
        {"renamed": {"a": "b", "b": "c", "c": "d"}},
    ),
    "names move up where nothing else changes": (
        plain(a=BigInt(default=0), b=BigInt(default=0)),
        plain(b=BigInt(default=0), c=BigInt(default=0)),
        {"renamed": {"a": "b", "b": "c"}},
    ),
    "much at once": (
        plain(size=SmallInt(default=7, index=True), code=Id(null=True)),
        version(
            owner=ForeignKey(Owner, null=True),
            label=Varchar(length=90, unique=True),
            bytes=BigInt(default=7, index=True),
            some=Check("bytes > 0"),
            n=Integer(default=1),
        ),
        {"renamed": {"name": "label", "size": "bytes"}, "dropped": {"code"}},
    ),
}


async def test_a_changed_table_is_like_a_new_one_and_keeps_its_rows(database_url: str) -> None:
    """Whatever changed, the server describes the table as if the new version had created it."""
    async with Database(database_url) as db, db._dedicated() as connection:
        await apply(connection, ddl(Owner, db.dialect))
        if db.dialect is SQLITE:
            await connection.script("PRAGMA foreign_keys=OFF")
        for case, (before, after, options) in CASES.items():
            await apply(connection, ddl(before, db.dialect))
            await connection.script("INSERT INTO shop_thing (id, name, n) VALUES ('a', 'ann', 3), ('b', 'bob', 4)")
            if before._meta.get_column_by_name("n")._meta.null and not after._meta.get_column_by_name("n")._meta.null:
                await connection.script("UPDATE shop_thing SET n = NULL WHERE id = 'b'")
            statements = changes(before, after, db.dialect, **options)
            await apply(connection, statements)
            changed = await described(connection)
            name = options.get("renamed", {}).get("name", "name")
            rows = (await connection.script(f"SELECT id, {name}, n FROM shop_thing ORDER BY id")).rows
            await apply(connection, ["DROP TABLE shop_thing", *ddl(after, db.dialect)])
            assert (case, changed) == (case, await described(connection))
            filled = after._meta.get_column_by_name("n").get_default_value() or 4
            assert (case, rows) == (case, [("a", "ann", 3), ("b", "bob", filled)])
            # SQLite has one text and one integer, whatever their length.
            assert db.dialect is SQLITE or bool(statements) == (case != "nothing"), case
            await connection.script("DROP TABLE shop_thing")


async def test_values_follow_their_columns_through_names_that_others_had(database_url: str) -> None:
    """``a`` becomes ``b``, ``b`` becomes ``c``, the old ``c`` goes: every value stands under its new name."""
    before = plain(a=BigInt(default=0), b=BigInt(default=0), c=BigInt(default=0))
    options: dict[str, Any] = {"renamed": {"a": "b", "b": "c"}, "dropped": {"c"}}
    plainly = plain(b=BigInt(default=0), c=BigInt(default=0))
    checked = plain(b=BigInt(default=0), c=BigInt(default=0), some=Check("c > b"))  # a rebuild on SQLite
    async with Database(database_url) as db, db._dedicated() as connection:
        for after in (plainly, checked):
            await apply(connection, ddl(before, db.dialect))
            await connection.script("INSERT INTO shop_thing (id, name, a, b, c) VALUES ('x', 'ann', 1, 2, 3)")
            await apply(connection, changes(before, after, db.dialect, **options))
            found = await connection.script("SELECT b, c FROM shop_thing")
            assert found.rows == [(1, 2)]
            await connection.script("DROP TABLE shop_thing")


async def apply(connection: Any, statements: list[str]) -> None:
    for statement in statements:
        await connection.script(statement)


async def described(connection: Any) -> list[str]:
    """The table as its server sees it; in what order columns and keys were made is nobody's business."""
    if connection.__class__.__name__ == "MysqlConnection":
        ((_, text),) = (await connection.script("SHOW CREATE TABLE shop_thing")).rows
        return sorted(line.strip().rstrip(",") for line in text.splitlines())
    found = [str(row[1:]) for row in (await connection.script("PRAGMA table_info(shop_thing)")).rows]
    for _, index, unique, *_ in (await connection.script("PRAGMA index_list(shop_thing)")).rows:
        columns = [row[2] for row in (await connection.script(f"PRAGMA index_info({index})")).rows]
        found.append(f"{'' if index.startswith('sqlite') else index} {unique} {columns}")
    keys = await connection.script("PRAGMA foreign_key_list(shop_thing)")
    found += [str(row[2:]) for row in keys.rows]
    ((text,),) = (await connection.script("SELECT sql FROM sqlite_master WHERE name = 'shop_thing'")).rows
    return sorted(found + re.findall(r"CONSTRAINT \w+ \w+ .*?(?=,?\n)", text))


SMALL, KEY = SmallInt(default=0), Id(primary_key=True)


@pytest.mark.parametrize(
    ("before", "after", "options", "instead"),
    [
        (plain(), version(name=Varchar(length=20)), {}, "dropped"),
        (plain(), version(label=Varchar(length=20), n=N), {}, "renamed"),
        (plain(), plain(size=BigInt(default=None)), {}, "default"),
        (plain(), version(name=Varchar(length=20), n=Integer(default=None)), {}, "default"),
        (plain(), version(name=Varchar(length=19), n=N), {}, "new column"),
        (plain(), version(name=Id(null=True), n=N), {}, "new column"),
        (plain(), version(name=Varchar(length=20), n=SmallInt(null=True, default=None)), {}, "new column"),
        (plain(), version(name=Varchar(length=20), n=Varchar(length=9, null=True, default=None)), {}, "new column"),
        (plain(size=BigInt()), plain(size=Real()), {}, "new column"),
        (plain(note=Text()), plain(note=Varchar(length=999)), {}, "new column"),
        (
            plain(a=BigInt(), b=BigInt()),
            plain(a=BigInt(), b=BigInt()),
            {"renamed": {"a": "b", "b": "a"}},
            "another name in between",
        ),
        (plain(a=BigInt(), b=BigInt()), plain(b=BigInt()), {"renamed": {"a": "b"}}, "dropped"),
        (plain(), type("Other", (Table,), {"id": KEY}, tablename="shop_other"), {}, "new table"),  # type: ignore[call-overload]
        (
            plain(),
            type("Thing", (Table,), {"key": Id(primary_key=True)}, tablename="shop_thing"),  # type: ignore[call-overload]
            {"dropped": {"id", "name", "n"}},
            "new table",
        ),
    ],
)
@pytest.mark.parametrize("dialect", [SQLITE, MYSQL], ids=["sqlite", "mysql"])
def test_refuses_to_lose_data_unsaid(
    before: type[Table], after: type[Table], options: dict[str, Any], instead: str, dialect: Dialect
) -> None:
    """A column gone without a word, a narrower type, NULLs with nothing to fill them: each names the way in steps."""
    with pytest.raises(Unsupported) as refused:
        changes(before, after, dialect, **options)
    assert instead in refused.value.facts["instead"]


def test_a_name_that_is_not_there_is_a_mistake() -> None:
    """A typing error in ``renamed`` or ``dropped`` is not passed over."""
    for options in ({"dropped": {"nam"}}, {"renamed": {"nam": "name"}}, {"renamed": {"name": "nam"}}):
        with pytest.raises(ValueError, match="shop_thing has no nam"):
            changes(plain(), plain(), MYSQL, **options)  # type: ignore[arg-type]


def test_renamed_and_dropped_that_contradict_each_other_are_a_mistake() -> None:
    """Whatever was meant, nobody's column is dropped on a guess."""
    before = plain(a=BigInt(default=0), b=BigInt(default=0))
    for after, options in (
        (plain(b=BigInt(default=0)), {"renamed": {"a": "b"}, "dropped": {"a", "b"}}),
        (plain(c=BigInt(default=0)), {"renamed": {"a": "c", "b": "c"}}),
        (plain(a=BigInt(default=0), b=BigInt(default=0)), {"dropped": {"b"}}),
    ):
        for dialect in (SQLITE, MYSQL):
            with pytest.raises(ValueError, match="shop_thing: one column is"):
                changes(before, after, dialect, **options)  # type: ignore[arg-type]


def test_text_of_a_change() -> None:
    """Plain changes are plain statements on both."""
    before = plain(size=SmallInt(default=7))
    after = version(name=Varchar(length=20, index=True), size=BigInt(default=7), n=N, public=Boolean(default=False))
    assert changes(before, after, MYSQL) == [
        "ALTER TABLE shop_thing ADD COLUMN public BOOLEAN NOT NULL DEFAULT FALSE AFTER n",
        "ALTER TABLE shop_thing MODIFY COLUMN size BIGINT NOT NULL DEFAULT 7",
        "CREATE INDEX shop_thing_name_index ON shop_thing (name)",
    ]
    # On SQLite every integer has 64 bits.
    assert changes(before, after, SQLITE) == [
        "ALTER TABLE shop_thing ADD COLUMN public BOOLEAN NOT NULL DEFAULT FALSE",
        "CREATE INDEX shop_thing_name_index ON shop_thing (name)",
    ]

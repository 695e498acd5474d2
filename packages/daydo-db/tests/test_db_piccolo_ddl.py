from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from piccolo.columns import (
    JSON,
    JSONB,
    UUID,
    Array,
    BigInt,
    Boolean,
    Bytea,
    Char,
    Date,
    DoublePrecision,
    ForeignKey,
    Integer,
    Interval,
    Numeric,
    OnDelete,
    Serial,
    SmallInt,
    Text,
    Time,
    Timestamp,
    Timestamptz,
    Varchar,
)
from piccolo.constraints import Check, Unique
from piccolo.table import Table

from daydo_db import MYSQL, SQLITE, CheckViolation, Database, ForeignKeyViolation, UniqueViolation, migrate
from daydo_db.piccolo import Id, Index, Unsupported, ddl, schema


class User(Table, tablename="shop_user"):
    id = Id(primary_key=True)
    email = Varchar(length=120, unique=True, default=None)


class Image(Table, tablename="shop_image"):
    id = Varchar(length=40, primary_key=True, default=None)
    owner = ForeignKey(User, null=False, on_delete=OnDelete.restrict)
    run_id = Id(null=True)
    state = Varchar(length=12, default="new")
    note = Text(default="it's \\ 50%")
    width = Integer(default=1, index=True)
    pages = SmallInt(default=1)
    created_at_us = BigInt(default=None)
    public = Boolean(default=False)

    one_per_run = Unique([owner, run_id])
    known_state = Check(state.is_in(["new", "ready"]) & (width > 0) | (state == "it's"))
    few_pages = Check("pages < 100")
    newest = Index([owner, created_at_us])


IMAGE_SQLITE = """\
CREATE TABLE shop_image (
  id TEXT NOT NULL,
  owner TEXT NOT NULL,
  run_id TEXT,
  state TEXT NOT NULL DEFAULT 'new',
  note TEXT NOT NULL DEFAULT 'it''s \\ 50%',
  width INTEGER NOT NULL DEFAULT 1,
  pages INTEGER NOT NULL DEFAULT 1,
  created_at_us INTEGER NOT NULL,
  public BOOLEAN NOT NULL DEFAULT FALSE,
  PRIMARY KEY (id),
  CONSTRAINT shop_image_one_per_run UNIQUE (owner, run_id),
  CONSTRAINT shop_image_known_state CHECK ((state IN ('new', 'ready') AND width > 0) OR state = 'it''s'),
  CONSTRAINT shop_image_few_pages CHECK (pages < 100),
  CONSTRAINT shop_image_owner_fk FOREIGN KEY (owner) REFERENCES shop_user (id) ON DELETE RESTRICT ON UPDATE CASCADE
);

CREATE INDEX shop_image_width_index ON shop_image (width);

CREATE INDEX shop_image_newest ON shop_image (owner, created_at_us);
"""

IMAGE_MYSQL = """\
CREATE TABLE shop_image (
  id VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  owner VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  run_id VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin,
  state VARCHAR(12) NOT NULL DEFAULT 'new',
  note MEDIUMTEXT NOT NULL DEFAULT ('it''s \\\\ 50%'),
  width INTEGER NOT NULL DEFAULT 1,
  pages SMALLINT NOT NULL DEFAULT 1,
  created_at_us BIGINT NOT NULL,
  public BOOLEAN NOT NULL DEFAULT FALSE,
  PRIMARY KEY (id),
  CONSTRAINT shop_image_one_per_run UNIQUE (owner, run_id),
  CONSTRAINT shop_image_known_state CHECK ((state IN ('new', 'ready') AND width > 0) OR state = 'it''s'),
  CONSTRAINT shop_image_few_pages CHECK (pages < 100),
  CONSTRAINT shop_image_owner_fk FOREIGN KEY (owner) REFERENCES shop_user (id) ON DELETE RESTRICT ON UPDATE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 /*M! COLLATE=utf8mb4_nopad_bin */ /*!80017 COLLATE=utf8mb4_0900_bin */;

CREATE INDEX shop_image_width_index ON shop_image (width);

CREATE INDEX shop_image_newest ON shop_image (owner, created_at_us);
"""


def test_text_for_sqlite() -> None:
    """A table with everything in it reads as if written by hand."""
    assert schema([Image], SQLITE) == IMAGE_SQLITE


def test_text_for_mysql() -> None:
    """The same table for MySQL and MariaDB: ids in ASCII, text binary and unpadded, every constraint named."""
    assert schema([Image], MYSQL) == IMAGE_MYSQL


def test_text_of_every_kind_of_column() -> None:
    """What each type is called on both, and that only fixed defaults go into the database."""

    class Kinds(Table, tablename="shop_kinds"):
        id = UUID(primary_key=True)
        seen = Timestamptz()
        born = Date(null=True, default=None)
        weight = DoublePrecision(default=0.5)
        doc = JSON()
        data = Bytea(default=b"it's")

    lines = [
        (column.partition(" ")[2], other.partition(" ")[2])
        for column, other in zip(
            ddl(Kinds, SQLITE)[0].splitlines()[1:7], ddl(Kinds, MYSQL)[0].splitlines()[1:7], strict=True
        )
    ]
    assert [(one.strip(" ,"), other.strip(" ,")) for one, other in lines] == [
        ("id TEXT NOT NULL", "id CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL"),
        ("seen TEXT NOT NULL", "seen DATETIME(6) NOT NULL"),
        ("born TEXT", "born DATE"),
        ("weight REAL NOT NULL DEFAULT 0.5", "weight DOUBLE NOT NULL DEFAULT 0.5"),
        ("doc TEXT NOT NULL DEFAULT '{}'", "doc MEDIUMTEXT NOT NULL DEFAULT ('{}')"),
        ("data BLOB NOT NULL DEFAULT X'69742773'", "data MEDIUMBLOB NOT NULL DEFAULT (X'69742773')"),
    ]


def test_a_foreign_key_has_an_index() -> None:
    """Unless another key leads with its column: a DELETE of what it refers to must not read the whole table."""

    class Bare(Table, tablename="shop_bare"):
        id = Id(primary_key=True)
        owner = ForeignKey(User)

    for dialect in (SQLITE, MYSQL):
        assert ddl(Bare, dialect)[1:] == ["CREATE INDEX shop_bare_owner_index ON shop_bare (owner)"]
        assert not [text for text in ddl(Image, dialect) if "owner_index" in text]


def test_needs_no_engine() -> None:
    """The text comes from the class alone: nothing is bound, nothing is connected."""
    assert User._meta._db is None
    assert ddl(User, SQLITE) == [
        """\
CREATE TABLE shop_user (
  id TEXT NOT NULL,
  email TEXT NOT NULL,
  PRIMARY KEY (id),
  CONSTRAINT shop_user_email_unique UNIQUE (email)
)"""
    ]


async def test_the_servers_take_it_and_mean_it(database_url: str) -> None:
    """Defaults fill in, and unique, check and foreign key are enforced on every back end."""
    insert = "INSERT INTO shop_image (id, owner, run_id, created_at_us{}) VALUES ('{}', '{}', '{}', 1{})"
    async with Database(database_url) as db:
        for statement in (*ddl(User, db.dialect), *ddl(Image, db.dialect)):
            await db.execute(statement)
        await db.execute("INSERT INTO shop_user (id, email) VALUES ('u1', 'a@example.org')")
        await db.execute(insert.format("", "i1", "u1", "r1", ""))
        row = await db.query("SELECT state, note, width, pages, public FROM shop_image")
        assert row.rows == [("new", "it's \\ 50%", 1, 1, 0)]
        with pytest.raises(UniqueViolation):
            await db.execute(insert.format("", "i2", "u1", "r1", ""))
        with pytest.raises(CheckViolation) as refused:
            await db.execute(insert.format(", state", "i3", "u1", "r3", ", 'odd'"))
        assert refused.value.constraint == "shop_image_known_state"
        with pytest.raises(ForeignKeyViolation):
            await db.execute(insert.format("", "i4", "nobody", "r4", ""))
        with pytest.raises(ForeignKeyViolation):
            await db.execute("DELETE FROM shop_user")


async def test_the_migration_runner_takes_it(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text, committed as a numbered schema file of a package, is what ``migrate`` creates the tables from."""
    for dialect in (SQLITE, MYSQL):
        folder = tmp_path / "piccolo_shop" / "schema" / dialect.name
        folder.mkdir(parents=True)
        (folder / "0001_tables.sql").write_text(schema([User, Image], dialect), encoding="utf-8")
    (tmp_path / "piccolo_shop" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    async with Database(database_url) as db:
        await migrate(db, "piccolo_shop")
        await db.execute("INSERT INTO shop_user (id, email) VALUES ('u1', 'a@example.org')")
        assert await migrate(db, "piccolo_shop") == []


async def test_text_is_compared_byte_by_byte_and_unpadded(database_url: str) -> None:
    """Case, accents and trailing spaces tell two texts apart, as on SQLite so on MySQL."""
    emails = ["a@x", "A@x", "á@x", "a@x ", "a@x\t"]
    async with Database(database_url) as db:
        for statement in ddl(User, db.dialect):
            await db.execute(statement)
        for number, email in enumerate(emails):
            await db.execute("INSERT INTO shop_user (id, email) VALUES (?, ?)", (f"u{number}", email))
        for email in emails:
            found = await db.query("SELECT email FROM shop_user WHERE email = ?", (email,))
            assert found.rows == [(email,)]


def test_long_names_are_hashed() -> None:
    """A generated name beyond MySQL's 64 characters is cut and stays unique."""

    class Long(Table, tablename="shop_" + "l" * 50):
        id = Id(primary_key=True)
        first_of_two_quite_long_names = Integer(index=True)
        first_of_two_quite_long_names_more = Integer(index=True)

    names = [statement.split()[2] for statement in ddl(Long, MYSQL)[1:]]
    assert all(len(name) == 64 for name in names)
    assert len(set(names)) == 2


def table(make: Callable[[], dict[str, Any]]) -> type[Table]:
    return type("Odd", (Table,), {"id": Id(primary_key=True), **make()}, tablename="shop_odd")  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("make", "instead"),
    [
        (lambda: {"x": Timestamp()}, "Timestamptz"),
        (lambda: {"x": Time()}, "seconds since midnight"),
        (lambda: {"x": Interval()}, "microseconds"),
        (lambda: {"x": JSONB()}, "JSON"),
        (lambda: {"x": Array(base_column=Integer())}, "a table of its own"),
        (lambda: {"x": Numeric()}, "smallest unit"),
        (lambda: {"x": Bytea(index=True)}, "Varchar"),
        (lambda: {"x": Char()}, "Varchar"),
        (lambda: {"x": Varchar(length=None)}, "length="),
        (lambda: {"x": Text(index=True)}, "Varchar"),
        (lambda: {"x": Varchar(default="line\nline")}, "printable"),
        (lambda: {"x": Id(primary_key=True)}, "Unique"),
        (lambda: {"x": Integer(db_column_name="Camel")}, "lower-case"),
        (lambda: {"rank": Integer()}, "better word"),
        (lambda: {"x": ForeignKey(User, on_delete=OnDelete.set_default)}, "SET NULL"),
        (lambda: {"x": (x := Integer()), "y": Unique([x], nulls_distinct=False)}, "never null"),
    ],
)
@pytest.mark.parametrize("dialect", [SQLITE, MYSQL], ids=["sqlite", "mysql"])
def test_refuses_what_would_differ(make: Callable[[], dict[str, Any]], instead: str, dialect: Any) -> None:
    """What means different things on the two databases is refused for both, and the error names what to write."""
    with pytest.raises(Unsupported) as refused:
        ddl(table(make), dialect)
    assert instead in refused.value.facts["instead"]


def test_refuses_a_serial_key() -> None:
    """A table without a key of its own would get Piccolo's serial one; ids come from the application here."""

    class Keyless(Table, tablename="shop_keyless"):
        n = Integer()

    class Numbered(Table, tablename="shop_numbered"):
        id = Serial(primary_key=True)

    for odd in (Keyless, Numbered):
        with pytest.raises(Unsupported, match="new_id"):
            ddl(odd, SQLITE)

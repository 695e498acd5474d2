"""Schema files: taken apart without a database, and judged by whether the version before survives them."""

from __future__ import annotations

import importlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_package import ORDERS, ToyPackage

from daydo_db import MYSQL, Database, DbError, SchemaOutdated, migrate
from daydo_db.expand import check_file, lint
from daydo_db.migrate import status
from daydo_db.schema_files import checksum, parse_file, schema_files, split
from daydo_db.tx import DialectName

BOTH: list[DialectName] = ["sqlite", "mysql"]
each_dialect = pytest.mark.parametrize("dialect", BOTH)


# -- taking apart ------------------------------------------------------------------------------------------------------


@each_dialect
@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("SELECT 1; SELECT 2;\n", ["SELECT 1", "SELECT 2"]),
        ("SELECT ';\n-- no comment\n';\n", ["SELECT ';\n-- no comment\n'"]),
        ("SELECT 'it''s; fine';", ["SELECT 'it''s; fine'"]),
        ('SELECT "a;b", `c;d` FROM t;', ['SELECT "a;b", `c;d` FROM t']),
        ("-- first;\nSELECT 1 -- ;\n, 2; -- last", ["SELECT 1  \n, 2"]),
        ("SELECT /* ; \n ' */ 1;", ["SELECT   1"]),
        ("SELECT 1;\r\n\r\n-- x\r\nSELECT\r\n2;\r\n", ["SELECT 1", "SELECT\n2"]),
        (";;\n", []),
        ("", []),
    ],
)
def test_a_statement_ends_where_a_semicolon_is_code(dialect: DialectName, text: str, statements: list[str]) -> None:
    """Not in a literal, a quoted name or a comment; comments are no part of it."""
    assert split(dialect, text) == statements


def test_the_dialects_differ_in_what_is_a_comment_or_a_literal() -> None:
    """Backslashes, ``#``, ``--`` without a space, names in brackets, and what MySQL executes."""
    assert split("mysql", r"SELECT 'it\'s; fine'; # it's;") == [r"SELECT 'it\'s; fine'"]
    assert split("mysql", "SELECT 3--1;") == ["SELECT 3--1"]
    assert split("mysql", "CREATE TABLE t (id INT) /*!80017 COMMENT ';' */;") == [
        "CREATE TABLE t (id INT) /*!80017 COMMENT ';' */"
    ]
    assert split("sqlite", "SELECT 'back\\'; SELECT [a;'b];") == ["SELECT 'back\\'", "SELECT [a;'b]"]
    assert split("sqlite", "SELECT 3--1;\n;") == ["SELECT 3"]


@each_dialect
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("CREATE TABLE x (id INTEGER)", "does not end with ;"),
        ("SELECT 1; SELECT 2\n", "does not end with ;"),
        ("SELECT 'half;\n", "never closed"),
        ("SELECT 1; /* half;", "never closed"),
        ("BEGIN;", "opens and ends transactions itself"),
        ("SET FOREIGN_KEY_CHECKS = 0;", "after a crash"),
        ("PRAGMA foreign_keys = OFF;", "after a crash"),
        ("DELIMITER //;", "end with ;"),
        ("CREATE TRIGGER t BEFORE INSERT ON x BEGIN SELECT 1; END;", "CREATE TRIGGER is refused; write both places"),
        ("create definer = root@localhost procedure p() SELECT 1;", "PROCEDURE is refused"),
    ],
)
def test_what_cannot_be_run_safely_is_refused(dialect: DialectName, text: str, complaint: str) -> None:
    """The message names the file and what to do."""
    with pytest.raises(ValueError, match=f"shop {dialect}/0002_bad.sql: .*{complaint}"):
        parse_file(dialect, "shop", "0002_bad.sql", text)


@each_dialect
def test_a_table_may_be_named_like_what_is_refused(dialect: DialectName) -> None:
    """``event`` is a fine name."""
    text = "CREATE TABLE event (trigger_id INTEGER)"
    assert split(dialect, f"{text};") == [text]


def test_a_byte_order_mark_and_windows_line_ends_are_an_editors(toy: ToyPackage) -> None:
    """The same statements, and the same checksums."""
    toy.write("0001_orders.sql", ORDERS)
    (plain,) = schema_files("mysql", toy.name)
    toy.write("0001_orders.sql", b"\xef\xbb\xbf" + ORDERS.replace("\n", "\r\n").encode())
    assert schema_files("mysql", toy.name) == [plain]


def test_numbers_and_names_are_not_left_to_chance(toy: ToyPackage) -> None:
    """Two branches that took one number, and a file that would be passed over."""
    toy.write("0001_orders.sql", ORDERS)
    toy.write("0001_users.sql", ORDERS)
    with pytest.raises(ValueError, match="0001_users has the number of orders; give it the next one"):
        schema_files("sqlite", toy.name)
    toy.remove("0001_users.sql")
    toy.write("2_users.sql", ORDERS)
    with pytest.raises(ValueError, match=r"2_users\.sql is not named like 0001_name\.sql"):
        schema_files("sqlite", toy.name)


@given(
    values=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\r\\")), min_size=1, max_size=5),
    space=st.sampled_from([" ", "\n", "\r\n  ", " -- it's; a comment\n", "/* ;' */", '\n-- "\n']),
)
def test_any_text_in_a_literal_comes_through(values: list[str], space: str) -> None:
    """SQLite reads back what was written, whatever stands between the words, and the checksum sees the values alone."""
    written = ["SELECT{}'{}'".format(space, value.replace("'", "''")) for value in values]
    statements = split("sqlite", "".join(f"{text};{space}" for text in written) + "\n;")
    with closing(sqlite3.connect(":memory:")) as other:
        assert [other.execute(statement).fetchone()[0] for statement in statements] == values
    plain = ["SELECT '{}'".format(value.replace("'", "''")) for value in values]
    assert [checksum("sqlite", text) for text in statements] == [checksum("sqlite", text) for text in plain]


# -- expand, then contract ---------------------------------------------------------------------------------------------

FIRST = {
    "sqlite": "CREATE TABLE shop_order (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL, code TEXT NOT NULL);\n"
    "CREATE INDEX shop_order_code ON shop_order (code);\n",
    "mysql": "CREATE TABLE shop_order (id INT NOT NULL PRIMARY KEY, amount BIGINT NOT NULL, code VARCHAR(9) NOT NULL, "
    "CONSTRAINT shop_order_positive CHECK (id > 0)) ENGINE=InnoDB;\n"
    "CREATE INDEX shop_order_code ON shop_order (code);\n",
}
NEW_TABLE = "CREATE TABLE shop_note (id INTEGER NOT NULL, body VARCHAR(20));\n"
EXPANDS = [
    NEW_TABLE + "CREATE UNIQUE INDEX shop_note_body ON shop_note (body);\n",
    NEW_TABLE.replace("note", "brief") + "DROP TABLE shop_brief;\n",
    "CREATE INDEX shop_order_amount ON shop_order (amount);",
    "ALTER TABLE shop_order ADD COLUMN note VARCHAR(20);",
    "ALTER TABLE shop_order ADD remark VARCHAR(20) NOT NULL DEFAULT 'not null';",
    "UPDATE shop_order SET amount = amount + 1;",
    "INSERT INTO shop_order (id, amount, code) VALUES (98, 1, 'x');",
]
EXPANDS_MYSQL = [
    "ALTER TABLE shop_order ADD COLUMN a INT, ADD COLUMN b DECIMAL(9, 2) NOT NULL DEFAULT 0, ALGORITHM=INPLACE;",
    "ALTER TABLE shop_order ADD COLUMN twice BIGINT GENERATED ALWAYS AS (amount * 2) STORED;",
    "ALTER TABLE shop_order ADD INDEX shop_order_both (amount, id);",
    "ALTER TABLE shop_order DROP CONSTRAINT shop_order_positive;",
    "ALTER TABLE shop_order ALTER COLUMN amount SET DEFAULT 4;",
    "INSERT INTO shop_order SET id = 99, amount = 1, code = 'x';",
]
CONTRACTS = [
    "DROP TABLE shop_order;",
    "ALTER TABLE shop_order RENAME TO shop_orders;",
    "ALTER TABLE shop_order RENAME COLUMN amount TO amount_fen;",
    "DELETE FROM shop_order;\nCREATE UNIQUE INDEX shop_order_once ON shop_order (code);",
]
CONTRACTS_SQLITE = ["DROP INDEX shop_order_code; ALTER TABLE shop_order DROP COLUMN code;"]
CONTRACTS_MYSQL = [
    "ALTER TABLE shop_order ADD (a INT, note VARCHAR(20) NOT NULL);",
    "ALTER TABLE shop_order ADD COLUMN a INT, ADD COLUMN note VARCHAR(20) NOT NULL;",
    "ALTER TABLE shop_order DROP COLUMN code;",
    "ALTER TABLE shop_order CHANGE amount amount_fen BIGINT NOT NULL;",
    "ALTER TABLE shop_order MODIFY amount BIGINT NOT NULL, MODIFY code INT NOT NULL;",
    "RENAME TABLE shop_order TO shop_orders;",
    "ALTER TABLE shop_order ADD CONSTRAINT shop_order_much CHECK (amount > 1000000);",
    "ALTER TABLE shop_order ADD UNIQUE KEY shop_order_once (code);",
]


class VersionOne:
    """The code of the release before: it names its columns, and knows nothing of what came later."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def work(self, day: int = 0) -> list[int]:
        await self._db.require_schema(ToyPackage.name)
        for number in (1, 2):
            insert = "INSERT INTO shop_order (id, amount, code) VALUES (?, ?, ?)"
            await self._db.execute(insert, (day * 100 + number, number * 10, f"day{day}"))
        await self._db.execute("UPDATE shop_order SET amount = amount - 1 WHERE id = ?", (day * 100 + 2,))
        rows = await self._db.query("SELECT amount FROM shop_order WHERE code = ? ORDER BY id", (f"day{day}",))
        return [amount for (amount,) in rows.rows]


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as db:
        yield db


@pytest.fixture
def shop(toy: ToyPackage) -> ToyPackage:
    for dialect, text in FIRST.items():
        toy.write("0001_orders.sql", text, dialects=(dialect,))
    return toy


async def on_the_next_schema(db: Database, shop: ToyPackage, second: str) -> list[str]:
    """Bring the tables to version 2, then be the code of version 1 again; what the linter said of version 2."""
    shop.write("0002_next.sql", second, dialects=(db.dialect.name,))
    await migrate(db, shop.name)
    shop.remove("0002_next.sql")
    file = parse_file(db.dialect.name, shop.name, "0002_next.sql", second)
    return [problem.rule for problem in check_file(db.dialect.name, file)]


async def test_the_version_before_runs_on_an_expanded_schema(db: Database, shop: ToyPackage) -> None:
    """It starts, writes and reads after each kind of expansion; and the linter has nothing to say."""
    await migrate(db, shop.name)
    for day, text in enumerate([*EXPANDS, *(EXPANDS_MYSQL if db.dialect is MYSQL else ())], 2):
        name = f"{day:04}_next.sql"
        assert check_file(db.dialect.name, parse_file(db.dialect.name, shop.name, name, text)) == []
        shop.write(name, text, dialects=(db.dialect.name,))
        await migrate(db, shop.name)
        shop.remove(name)
        assert await VersionOne(db).work(day) == [10, 19], text
    assert {file.state for file in await status(db, shop.name)} == {"applied", "newer"}


@pytest.mark.parametrize("second", CONTRACTS)
async def test_the_linter_names_what_breaks_the_version_before(db: Database, shop: ToyPackage, second: str) -> None:
    """It does break; so each rule is there for a reason."""
    (rule,) = await on_the_next_schema(db, shop, second)
    assert "contract: needs code" in rule or "nullable" in rule
    with pytest.raises(DbError):
        await VersionOne(db).work()


@pytest.mark.dialect("mysql")
@pytest.mark.parametrize("second", CONTRACTS_MYSQL)
async def test_the_linter_reads_the_clauses_of_mysql(db: Database, shop: ToyPackage, second: str) -> None:
    """Each of them, however many one ALTER TABLE has."""
    assert await on_the_next_schema(db, shop, second)
    with pytest.raises(DbError):
        await VersionOne(db).work()


@pytest.mark.dialect("sqlite")
@pytest.mark.parametrize("second", CONTRACTS_SQLITE)
async def test_the_linter_reads_the_statements_of_sqlite(db: Database, shop: ToyPackage, second: str) -> None:
    """A dropped index and a dropped column."""
    assert len(await on_the_next_schema(db, shop, second)) == 2
    with pytest.raises(DbError):
        await VersionOne(db).work()


async def test_the_new_version_refuses_the_old_schema(db: Database, shop: ToyPackage) -> None:
    """Naming the command; so a deployment that forgot to migrate stops at its start, not at its first customer."""
    await migrate(db, shop.name)
    shop.write("0002_next.sql", EXPANDS[3])
    with pytest.raises(SchemaOutdated, match="run: python -m daydo_db migrate") as caught:
        await db.require_schema(shop.name)
    assert (caught.value.have, caught.value.need) == (1, 2)


@each_dialect
@pytest.mark.parametrize("line", ["-- contract: needs code >= 0.3", "-- expand: nobody reads it"])
def test_a_first_line_says_that_it_is_meant(dialect: DialectName, line: str) -> None:
    """A contraction, or one that only looks like it; further down the line means nothing."""
    text = "DROP TABLE shop_order;\n"
    assert check_file(dialect, parse_file(dialect, "shop", "0002_drop.sql", f"{line}\n{text}")) == []
    assert check_file(dialect, parse_file(dialect, "shop", "0002_drop.sql", f"\n{line}\n{text}"))
    assert check_file(dialect, parse_file(dialect, "shop", "0002_drop.sql", f"SELECT 1;\n{line}\n{text}"))


@pytest.mark.parametrize(("release", "early"), [("0.2.9", 2), ("0.3.0", 2), ("0.3.7rc1", 2), ("0.4.0", 0), ("1.0", 0)])
def test_a_contraction_waits_for_the_release_after(shop: ToyPackage, release: str, early: int) -> None:
    """When 0.3 brings it, 0.2 still runs while it is applied."""
    shop.write("0002_drop.sql", "-- contract: needs code >= 0.3\nALTER TABLE shop_order DROP COLUMN code;\n")
    about = shop.path / f"{shop.name}-{release}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {shop.name}\nVersion: {release}\n")
    importlib.invalidate_caches()
    assert ["belongs to a later release" in problem.rule for problem in lint(shop.name)] == [True] * early


@each_dialect
@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("INSERT INTO shop_order VALUES (1, 2, 'x')", "name them"),
        ("INSERT IGNORE INTO shop_order SELECT id, 1, 'x' FROM shop_note", "name them"),
        ("REPLACE INTO shop_order (SELECT id FROM shop_note)", "name them"),
        ("INSERT INTO shop_order (id, amount) SELECT * FROM shop_note", "by position"),
    ],
)
@pytest.mark.parametrize("line", ["", "-- contract: needs code >= 0.3\n"])
def test_columns_are_named_always(dialect: DialectName, statement: str, rule: str, line: str) -> None:
    """In the first file and in one that contracts as well."""
    for name in ("0001_first.sql", "0002_second.sql"):
        (problem,) = check_file(dialect, parse_file(dialect, "shop", name, f"{line}{statement};"))
        assert rule in problem.rule
        assert str(problem).startswith(f"shop/schema/{dialect}/{name}, statement 1: ")


@pytest.mark.parametrize("clause", ["ADD INDEX (a)", "ADD UNIQUE (a)", "ADD CHECK (a > 0)", "ADD KEY(a), ADD b INT"])
def test_what_a_crash_would_add_twice_needs_a_name(clause: str) -> None:
    """The server finds a name for it each time; nothing says 'exists already'."""
    problems = check_file("mysql", parse_file("mysql", "shop", "0001_x.sql", f"ALTER TABLE t {clause};"))
    assert ["name it" in problem.rule for problem in problems] == [True]


@pytest.mark.parametrize("fills", ["DEFAULT 0", "GENERATED ALWAYS AS (a + 1) STORED", "AS (a + 1)", "AUTO_INCREMENT"])
def test_a_column_that_fills_itself_may_be_not_null(fills: str) -> None:
    """In parentheses, a comma and a NOT NULL of another clause do not count."""
    text = f"ALTER TABLE t ADD COLUMN b DECIMAL(9, 2) {fills} NOT NULL, ADD COLUMN c INT CHECK (c IS NOT NULL);"
    problems = check_file("mysql", parse_file("mysql", "shop", "0002_x.sql", text))
    assert [problem.rule for problem in problems] == []


def test_a_version_means_the_same_on_both_dialects(shop: ToyPackage) -> None:
    """A file that exists for one only is named; a package for one dialect alone is fine."""
    assert lint(shop.name) == []
    shop.write("0002_note.sql", EXPANDS[3], dialects=("mysql",))
    (problem,) = lint(shop.name)
    assert str(problem) == (
        f"{shop.name}/schema/mysql/0002_note.sql: schema/sqlite has no file of this name; "
        "a version means the same on both"
    )
    for file in (shop.folder / "schema" / "sqlite").iterdir():
        file.unlink()
    (shop.folder / "schema" / "sqlite").rmdir()
    assert lint(shop.name) == []

"""Compiling placeholders, and reading URLs: text in, text out."""

from __future__ import annotations

import asyncio
import re
import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daydo_db import Database, DatabaseConfig, PoolTimeout, SchemaOutdated
from daydo_db.config import parse_url
from daydo_db.tx import DialectName, Value, bind, compile_statement

CODE = st.sampled_from(["SELECT 1", " a = b ", "(", ")", " + ", "\n", "é", " 7 % 2 ", " - ", "\x00"])
HIDDEN = {
    "sqlite": ["'it''s ? %'", '"a?""b"', "`a?`", "[a?]", "-- ? don't\n", "--?\n", "/* ? ' */", "'\\'"],
    "mysql": ["'it''s ? %'", '"a?""b"', "`a?`", "-- ? don't\n", '# ? "\n', "/* ? ' */", "'\\'?'", "'\\\\'"],
}


@pytest.mark.parametrize("dialect", ["sqlite", "mysql"])
@given(data=st.data())
def test_exactly_the_marks_in_code_are_placeholders(dialect: DialectName, data: st.DataObject) -> None:
    """Whatever stands around them, and the rest of the text is unchanged."""
    parts = data.draw(st.lists(st.one_of(st.just("?"), CODE, st.sampled_from(HIDDEN[dialect])), max_size=12))
    statement = compile_statement(dialect, "".join(parts))
    assert statement.placeholders == parts.count("?")
    if dialect == "sqlite":
        assert statement.text == "".join(parts)
    else:
        arguments = [f"<{number}>" for number in range(statement.placeholders)]
        rest = iter(arguments)
        assert statement.text % tuple(arguments) == "".join(next(rest) if part == "?" else part for part in parts)


@given(st.text(alphabet="?'\"`-#/*[]\\% a\n"))
def test_nothing_of_any_text_is_lost(sql: str) -> None:
    """What is not closed is the server's to complain about."""
    statement = compile_statement("mysql", sql)
    assert statement.text % (("?",) * statement.placeholders) == sql
    assert compile_statement("sqlite", sql).text == sql


# What ends, escapes or opens something in one dialect or the other, and a letter whose last byte in GBK is a backslash.
TEXTS = st.one_of(st.text(), st.text(alphabet="'\"\\%s?;`-#/*[](),\0\n\r\x1a纗🎈"))
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), TEXTS, st.binary(max_size=20))


def test_any_value_arrives_as_it_is(database_url: str) -> None:
    """Texts and integers alone, or others among them; in a short statement and in one that is not remembered."""
    with asyncio.Runner() as runner:
        db = runner.run(Database(database_url).__aenter__())

        async def echo(some: list[list[Value]], comment: str) -> list[tuple[object, ...]]:
            places = [", ".join(f"? AS c{at}" for at, _ in enumerate(values)) for values in some]
            texts = [f"SELECT {each}, '%s' AS same /* {comment} */" for each in places]
            asked = list(zip(texts, some, strict=True))
            async with db.transaction() as tx:
                together = [result.rows[0] for result in await tx.execute_all(asked)]
                assert [(await tx.execute(*one)).rows[0] for one in asked] == together
            return together

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(
            st.lists(
                st.one_of(
                    st.lists(st.one_of(TEXTS, st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=6),
                    st.lists(VALUES, min_size=1, max_size=6),
                ),
                min_size=2,
                max_size=4,
            ),
            st.sampled_from(["", "?" * 5_000]),
        )
        def check(some: list[list[Value]], comment: str) -> None:
            assert runner.run(echo(some, comment)) == [(*values, "%s") for values in some]

        try:
            check()
        finally:
            runner.run(db.__aexit__(None, None, None))


def test_what_was_looked_at_is_what_is_sent() -> None:
    """A list that changes while its statement waits for its turn puts nothing unseen into it."""
    args: list[Value] = [1]
    statement, bound = bind(compile_statement("mysql", "SELECT ?"), args)
    args[0] = "1 OR 1"
    assert bound == (1,)
    assert statement.kinds is not None
    assert not any(statement.kinds.texts)


def test_sqlite_agrees_with_our_count() -> None:
    """The engine itself says how many bindings a statement takes."""
    sql = 'SELECT ?, \'?\', "id?", [a?], `b?`, ? -- ?\n /* ? */ FROM (SELECT 1 AS "id?", 2 AS [a?], 3 AS `b?`)'
    with pytest.raises(sqlite3.ProgrammingError) as caught:
        sqlite3.connect(":memory:").execute(sql)
    wanted = re.search(r"uses (\d+)", str(caught.value))
    assert wanted is not None
    assert int(wanted[1]) == compile_statement("sqlite", sql).placeholders == 2


@pytest.mark.parametrize(
    ("sql", "verb"),
    [
        ("select 1", "SELECT"),
        ("  -- note\n (SELECT 1)", "SELECT"),
        ("/* a */ /* b */drop table x", "DROP"),
        ("# note\nDROP TABLE x", "DROP"),
        ("/*! DROP TABLE x */", "DROP"),
        ("/*M!100100 DROP TABLE x */", "DROP"),
        ("", ""),
    ],
)
def test_the_verb_of_a_statement_is_found_behind_comments(sql: str, verb: str) -> None:
    """And inside those that MySQL executes."""
    assert compile_statement("mysql", sql).verb == verb


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite://", "sqlite://"),
        ("sqlite:///data/x.db", "sqlite:///data/x.db"),
        ("sqlite:////var/data/my%20shop.db", "sqlite:////var/data/my shop.db"),
        ("mysql://shop:p%40ss%2Fw%3Ard@db.example:3307/shop", "mysql://shop:***@db.example:3307/shop"),
        ("mysql://shop@localhost/shop", "mysql://shop@localhost:3306/shop"),
        ("mysql://root@/x?unix_socket=/run/my.sock", "mysql://root@localhost:3306/x?unix_socket=/run/my.sock"),
    ],
)
def test_urls_are_read_and_shown_without_password(url: str, shown: str) -> None:
    """Percent-decoded, and safe to log."""
    assert f"{Database(url)!r}" == f"Database('{shown}')"


def test_a_password_is_percent_decoded() -> None:
    """So that it may hold any character."""
    assert parse_url("mysql://u:p%40ss%2Fw%3Ard@h/x").password == "p@ss/w:rd"


def test_a_busy_pool_tells_clients_to_wait_and_operators_what_to_do() -> None:
    """The figures and the advice are for the log, the words for whoever asked."""
    busy = PoolTimeout(waited_s=10.0, size=100)
    assert busy.text("en") == "The database is busy; please try again shortly."
    assert not re.search("[0-9]", busy.text("zh"))
    assert "within 10.0 s (100 in all)" in str(busy)
    assert "pool_max" in str(busy)


def test_a_command_with_a_masked_password_says_so() -> None:
    """It cannot be run as it is printed."""
    for url, said in (("mysql://u:***@h:3306/x", True), ("sqlite:///x.db", False)):
        command = f'python -m daydo_db migrate "{url}" daydo_quota'
        outdated = SchemaOutdated(package="daydo_quota", have=0, need=1, command=command)
        assert str(outdated).endswith("in place of ***)") is said


@pytest.mark.parametrize("login", ["u:S3cr#et/Pw", "u:S3cr/et", "u:12/S3cr", "u:12#S3cr", "u:12?S3cr=1", "u:[S3cr"])
def test_a_password_that_ends_the_login_too_early_is_not_repeated(login: str) -> None:
    """Neither by urllib's words; ours tell how to write it."""
    with pytest.raises(ValueError, match="%23 %2F %3F %40 %3A") as caught:
        parse_url(f"mysql://{login}@h:3306/x")
    assert "S3cr" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "shop.db",
        "postgres://u:hunter2@h/x",
        "mysql://u:hunter2@h",
        "mysql://u:hunter2@h/",
        "mysql://u:hunter2@h:port/x",
        "mysql://u:hunter2@h/x/y",
        "mysql://u:hunter2@h/x?charset=utf8",
        "mysql:///x",
        "sqlite:///:memory:",
        "sqlite://host/x",
        "sqlite:///x?mode=ro",
    ],
)
def test_a_bad_url_is_refused_without_repeating_its_password(url: str) -> None:
    """At construction, before any I/O."""
    with pytest.raises(ValueError, match="database URL") as caught:
        Database(url)
    assert "hunter2" not in str(caught.value)


def test_config_is_bounded() -> None:
    """Zero connections is a mistake, not a setting."""
    with pytest.raises(ValueError, match="pool_max"):
        DatabaseConfig(pool_max=0)


@pytest.mark.parametrize(
    ("sql", "writes"),
    [
        ("SELECT 1", False),
        ("EXPLAIN UPDATE t SET n = 1", False),
        ("WITH x AS (SELECT 'UPDATE' AS a) SELECT REPLACE(a, 'A', 'B') FROM x", False),
        ("insert into t values (1)", True),
        ("/*! REPLACE INTO t VALUES (1) */", True),
        ("TRUNCATE t", True),
        ("WITH x AS (SELECT (1) AS a), y AS (SELECT 2) UPDATE t, x SET n = a", True),
        ("WITH x AS (SELECT 1 AS a) DELETE FROM t WHERE n IN (SELECT a FROM x)", True),
    ],
)
@pytest.mark.parametrize("dialect", ["sqlite", "mysql"])
def test_a_statement_that_writes_is_known(dialect: DialectName, sql: str, writes: bool) -> None:
    """By its verb, also where table expressions precede it."""
    if dialect == "mysql" or "/*!" not in sql:
        assert compile_statement(dialect, sql).writes is writes


@pytest.mark.parametrize(
    ("dialect", "sql", "lasts"),
    [
        ("mysql", "set names gbk", True),
        ("mysql", "/*!40101 SET autocommit = 0 */", True),
        ("mysql", "CREATE TEMPORARY TABLE t (x INT)", True),
        ("mysql", "FLUSH TABLES t WITH READ LOCK", True),
        ("mysql", "IF 1 THEN SET autocommit = 0; END IF", True),
        ("mysql", "FLUSH PRIVILEGES", False),
        ("mysql", "CREATE TABLE temporary (x INT)", False),
        ("mysql", "UPDATE t SET n = 1", False),
        ("mysql", "SHOW VARIABLES", False),
        ("sqlite", "ATTACH 'x.db' AS x", True),
        ("sqlite", "PRAGMA foreign_keys = OFF", True),
        ("sqlite", "PRAGMA main.query_only(0)", True),
        ("sqlite", "CREATE TEMP TABLE t (x)", True),
        ("sqlite", "PRAGMA foreign_keys", False),
        ("sqlite", "PRAGMA main.table_info(t)", False),
        ("sqlite", "PRAGMA user_version = 7", False),
    ],
)
def test_a_statement_that_lasts_is_known(dialect: DialectName, sql: str, lasts: bool) -> None:
    """It would meet whoever has the connection next."""
    assert compile_statement(dialect, sql).lasts is lasts


def test_a_long_text_is_not_kept() -> None:
    """Inserts of a thousand different lengths would otherwise stay in memory."""
    short, long = (f"INSERT INTO t VALUES {', '.join(['(?, ?)'] * rows)}" for rows in (2, 2000))
    assert compile_statement("mysql", short) is compile_statement("mysql", short)
    assert compile_statement("mysql", long) is not compile_statement("mysql", long)
    assert compile_statement("mysql", long) == compile_statement("mysql", long)

"""The text under which a statement is counted and told of: no value in it, one for all of a kind."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daydo_db.fingerprint import _TOKENS, _fingerprint, fingerprint, normalise
from daydo_db.tx import DialectName, compile_statement

DIALECTS: tuple[DialectName, ...] = ("sqlite", "mysql")
SECRET = "7351"

both = pytest.mark.parametrize("dialect", DIALECTS)
dialects = st.sampled_from(DIALECTS)

# Pieces that SQL is made of, in any order: what the normaliser must not stumble over.
_PIECES = (
    "SELECT IN VALUES OR a t1 ( ) , . - + * / ? '' 'x' \"n\" `n` [n] -- # /* */ ' \" ` \\ … 1 0x1F 1e-5 .5 @ $ : ; "
    "(?) (?,?) (a=?) <= = _utf8mb4 X'ab' é % [ ] FROM INTO AS SET DISTINCT JOIN UPDATE CONFLICT"
)
pieces = st.sampled_from([*_PIECES.split(), " ", "\n"])


@given(dialects, st.lists(pieces, max_size=25).map("".join) | st.text(max_size=60))
@example("sqlite", "((?),(?)) , ((?),(?),(?))")
@example("mysql", "- - 5")
def test_what_is_normalised_stays_as_it_is(dialect: DialectName, sql: str) -> None:
    """Twice is as once, whatever the text: two processes never disagree about a name."""
    once = normalise(dialect, sql)
    assert normalise(dialect, once) == once


def _quoted(dialect: DialectName, text: str) -> str:
    return "'" + (text.replace("\\", "\\\\") if dialect == "mysql" else text).replace("'", "''") + "'"


_FORMS = (
    "7",
    "-7",
    "+ 7",
    "7.25",
    ".7",
    "7e10",
    "1.7E-9",
    "0x7",
    "X'7'",
    "_binary X'7'",
    "_utf8mb4'7'",
    "N'7'",
    "b'7'",
)
literals = st.one_of(
    st.tuples(st.just("text"), st.text(alphabet="ab'\\\"`-#/* \n?%é;()", max_size=12)),
    st.tuples(
        st.just("code"),
        st.sampled_from([form.replace("7", SECRET) for form in _FORMS]),
    ),
)


@given(dialects, st.lists(literals, min_size=1, max_size=4))
def test_no_literal_survives_and_none_makes_a_difference(dialect: DialectName, values: list[tuple[str, str]]) -> None:
    """Strings with quotes, backslashes and comment marks, numbers of every kind: a question mark is left of each."""
    written = [_quoted(dialect, f"{SECRET}{text}{SECRET}") if kind == "text" else text for kind, text in values]
    sql = "SELECT a FROM t WHERE " + " AND ".join(f"c = {value}" for value in written)
    expected = "SELECT a FROM t WHERE " + " AND ".join(["c = ?"] * len(written))
    assert normalise(dialect, sql) == expected


@both
@pytest.mark.parametrize("rest", ["", " AND d = 1"])
@pytest.mark.parametrize(
    "open_end", ["'ann", '"ann', "`ann", "/* ann", '"ann""b', "`ann``b", "'ann''b", "'\\ann", "'ann\\"]
)
def test_what_is_never_closed_is_a_value_to_its_end(dialect: DialectName, open_end: str, rest: str) -> None:
    """A statement that was cut off in the middle of a value does not show the half of it."""
    assert "ann" not in normalise(dialect, f"SELECT a FROM t WHERE c = {open_end}{rest}")


@both
@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ('SELECT "t"."a" FROM t WHERE b = "ann"', 'SELECT "t"."a" FROM t WHERE b = ?'),
        ('SELECT "ann", "ann" AS "a", "t" . "a", x."ann@x.cn"', 'SELECT ?, ? AS "a", "t"."a", x.?'),
        (
            'SELECT COUNT(*) AS "n" FROM "t" "u" JOIN "v" "w" ON "ann"',
            'SELECT COUNT(*) AS "n" FROM "t" "u" JOIN "v" "w" ON ?',
        ),
        ('SELECT a FROM (SELECT b FROM "t" WHERE "ann" = b)', 'SELECT a FROM (SELECT b FROM "t" WHERE ? = b)'),
        (
            'UPDATE "t" SET "a" = "ann", "b" = f("ann", "ann") WHERE c = d, "ann"',
            'UPDATE "t" SET "a" = ?, "b" = f(?, ?) WHERE c = d, ?',
        ),
        ('INSERT INTO "t" ("a","b") VALUES ("ann", "ann")', 'INSERT INTO "t"("a", "b") VALUES (?, ?)'),
        ('VALUES (1) ON CONFLICT ("a") DO UPDATE SET "b" = 1', 'VALUES (?) ON CONFLICT("a") DO UPDATE SET "b" = ?'),
        ('a IS DISTINCT FROM "ann" OR TRIM("ann" FROM "ann")', "a IS DISTINCT FROM ? OR TRIM(? FROM ?)"),
        ('SELECT t.set, "ann" INTO OUTFILE "ann"', "SELECT t.set, ? INTO OUTFILE ?"),
        ('SET PASSWORD = "ann"', "SET PASSWORD = ?"),
    ],
)
def test_double_quotes_show_only_what_must_be_a_name(dialect: DialectName, sql: str, text: str) -> None:
    """SQLite takes the others for text where there is no such column, and people rely on it."""
    assert normalise(dialect, sql) == text


def test_sqlite_agrees_with_what_we_take_for_a_text() -> None:
    """The point of it: this finds ann by name, so her name is a value."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE person (name TEXT)")
    connection.execute("INSERT INTO person VALUES ('ann')")
    sql = 'SELECT "name" FROM person WHERE name = "ann"'
    try:
        rows = connection.execute(sql).fetchall()
    except sqlite3.OperationalError:  # built without that habit
        rows = [("ann",)]
    connection.close()
    assert rows == [("ann",)]
    assert "ann" not in normalise("sqlite", sql)


@both
@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("select  a,b\n from t where c=1;", "select a, b from t where c = ?"),
        ("SELECT COUNT( * ) FROM `we ird` /* for ann */ -- ann\n", "SELECT COUNT(*) FROM `we ird`"),
        ("SELECT a - 5, -5, a -5, f(-5), (a)-5", "SELECT a - ?, ?, a - ?, f(?), (a) - ?"),
        ("SELECT utf8mb4, t1.c2 FROM t1", "SELECT utf8mb4, t1.c2 FROM t1"),
        ("a IN (1) OR a IN(1, 'x', ?) OR a NOT IN (-1, 2)", "a IN (…) OR a IN (…) OR a NOT IN (…)"),
        ("(a, b) IN ((1, 2), (3, 4))", "(a, b) IN (…)"),
        ("a IN (SELECT b FROM t WHERE c = 1)", "a IN (SELECT b FROM t WHERE c = ?)"),
        ("INSERT INTO t (a, b) VALUES (1, 'x'), (2,'y')", "INSERT INTO t(a, b) VALUES (?, ?), …"),
        ("WHERE (a = ? AND b = ?) OR (a=1 AND b=2) OR (a = ? AND b = ?)", "WHERE (a = ? AND b = ?) OR …"),
        ("SELECT a || 'x', a <= 5, a <=> 6, a->>'$.b'", "SELECT a || ?, a <= ?, a <=> ?, a ->> ?"),
    ],
)
def test_the_form_of_a_statement(dialect: DialectName, sql: str, text: str) -> None:
    """White space, comments and the lengths of lists go; names, operators and what they bind stay."""
    if dialect == "sqlite" or "#" not in sql:
        assert normalise(dialect, sql) == text


def test_both_dialects_agree_on_the_name_of_a_statement() -> None:
    """A library statement is looked up under one fingerprint wherever it ran; per cent signs do not disturb."""
    sql = "SELECT a FROM t WHERE b LIKE '5%' AND c % 2 = ? AND d = '%s'"
    ids = {fingerprint(dialect, compile_statement(dialect, sql).text) for dialect in DIALECTS}
    assert len(ids) == 1
    assert ids.pop().text == "SELECT a FROM t WHERE b LIKE ? AND c % ? = ? AND d = ?"


def test_backslashes_end_a_text_where_the_dialect_says_so() -> None:
    r"""``'\'`` is a whole text on SQLite and the beginning of one on MySQL."""
    assert normalise("sqlite", r"SELECT '\', a, 'x'") == "SELECT ?, a, ?"
    assert normalise("mysql", r"SELECT '\', a, 'y'") == "SELECT ? y ?"
    assert normalise("mysql", rf"SELECT 'it\'s {SECRET}', a") == "SELECT ?, a"


_TOO_LONG = 120_000


@both
@pytest.mark.parametrize("piece", ["@", "$:", "[", "_a", "'", '"', "`", "/*", "-", "@_a ", "[a"])
def test_no_text_costs_more_than_its_length(dialect: DialectName, piece: str) -> None:
    """This would run for minutes if each of these pieces made the reader look at all that follow."""
    tokens = _TOKENS[dialect].finditer(piece * (_TOO_LONG // len(piece)))
    assert sum(found.end() - found.start() for found in tokens) == _TOO_LONG


def test_what_is_kept_is_bounded_by_what_is_read() -> None:
    """However long the statements were, no more of them stays in memory than the part that names them."""
    _fingerprint.cache_clear()
    rows = ["INSERT INTO t (a, b) VALUES " + ", ".join(["(?, ?)"] * count) for count in range(40_000, 40_010)]
    assert len({fingerprint("sqlite", sql) for sql in rows}) == 1
    assert _fingerprint.cache_info().currsize == 1


def test_a_huge_statement_costs_little_and_keeps_one_name() -> None:
    """Of a bulk INSERT the first part is read: more rows do not make another statement."""
    rows = ["INSERT INTO t (a, b) VALUES " + ", ".join(["(?, ?)"] * count) for count in (40_000, 50_000)]
    assert len({fingerprint("sqlite", sql) for sql in rows}) == 1


def test_a_bracket_that_is_never_closed_is_a_value_to_the_end_on_sqlite() -> None:
    """As a quote is; on MySQL a bracket opens nothing."""
    assert normalise("sqlite", "SELECT a FROM t WHERE c = [ann") == "SELECT a FROM t WHERE c = ?"


@given(st.integers(1, 30), st.integers(1, 30))
def test_lists_of_any_length_are_one_statement(one: int, other: int) -> None:
    """So the number of fingerprints does not grow with the data."""
    texts = {normalise("sqlite", f"SELECT a FROM t WHERE b IN ({', '.join('?' * count)})") for count in (one, other)}
    assert len(texts) == 1

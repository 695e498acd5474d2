# ruff: noqa: PT012 - the block that raises is the test
"""Our reading of the MySQL protocol against the driver's own, on real servers and in pieces of every size."""

from __future__ import annotations

import asyncio
import json
import string
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import aiomysql
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymysql.err import MySQLError, OperationalError

from daydo_db import Database, StatementFailed
from daydo_db.config import parse_url
from daydo_db.mysql import _Login, literal
from daydo_db.packets import IN_TRANSACTION, PING, QUERY, Answer, Shape, Shapes, Wire
from daydo_db.tx import Result, Statement

COLUMNS = {
    "tiny": "TINYINT",
    "small": "SMALLINT UNSIGNED",
    "medium": "MEDIUMINT",
    "whole": "INTEGER",
    "big": "BIGINT",
    "huge": "BIGINT UNSIGNED",
    "yes": "BOOLEAN",
    "bits": "BIT(12)",
    "yr": "YEAR",
    "single": "FLOAT",
    "double_": "DOUBLE",
    "money": "DECIMAL(20, 4)",
    "units": "DECIMAL(30, 0)",
    "day": "DATE",
    "at": "DATETIME(6)",
    "second": "DATETIME",
    "stamp": "TIMESTAMP(3) NULL",
    "span": "TIME(6)",
    "fixed": "CHAR(10)",
    "varied": "VARCHAR(300)",
    "latin": "VARCHAR(20) CHARACTER SET latin1",
    "words": "TEXT",
    "code": "VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin",
    "raw": "VARBINARY(300)",
    "padded": "BINARY(8)",
    "blob_": "LONGBLOB",
    "choice": "ENUM('a', 'b c', '漢')",
    "set_": "SET('x', 'y', 'z')",
    "doc": "JSON",
    "place": "POINT",
}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=70)
values = {
    "tiny": st.integers(-128, 127),
    "small": st.integers(0, 65535),
    "medium": st.integers(-(2**23), 2**23 - 1),
    "whole": st.integers(-(2**31), 2**31 - 1),
    "big": st.integers(-(2**63), 2**63 - 1),
    "huge": st.integers(0, 2**63 - 1),
    "yes": st.booleans(),
    "bits": st.integers(0, 4095),
    "yr": st.sampled_from([1901, 2026, 2155]),
    "single": st.floats(-(2.0**90), 2.0**90, width=32),
    "double_": st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not x or abs(x) > 1e-300),
    "money": st.decimals(-(10**15), 10**15, places=4).map(str),
    "units": st.integers(-(2**63), 2**63 - 1),
    "day": st.dates().map(str),
    "at": st.datetimes().map(str),
    "second": st.datetimes().map(lambda at: str(at.replace(microsecond=0))),
    "stamp": st.sampled_from(["1970-01-02 00:00:01.000", "2026-03-29 02:30:00.123", "2037-12-31 23:59:59.999"]),
    "span": st.sampled_from(["-838:59:59", "838:59:59", "00:00:00.000001", "-00:00:01.5", "25:00:00"]),
    "fixed": st.text(string.ascii_letters, max_size=10),
    "varied": texts,
    "latin": st.text(string.ascii_letters + "äöüßé", max_size=20),
    "words": texts,
    "code": st.text(string.printable.replace("\\", ""), max_size=40),
    "raw": st.binary(max_size=300),
    "padded": st.binary(max_size=8),
    "blob_": st.one_of(st.binary(max_size=300), st.integers(65_000, 66_000).map(lambda n: b"\xfb" * n)),
    "choice": st.sampled_from(["a", "b c", "漢"]),
    "set_": st.sampled_from(["", "x", "x,z"]),
    "doc": st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | texts, st.lists, max_leaves=4).map(json.dumps),
}
rows = st.fixed_dictionaries({name: st.none() | value for name, value in values.items()})


async def driver_of(url: str) -> Any:
    """The driver as it is, with the one rule of ours: a DECIMAL without a fraction is an integer."""
    at = parse_url(url)
    driver = await aiomysql.connect(
        host=at.host, port=at.port, user=at.user, password=at.password, db=at.name, charset="utf8mb4", autocommit=True
    )
    kinds = (0, 246)
    decimal = driver.decoders[246]
    driver.decoders = {**driver.decoders, **dict.fromkeys(kinds, lambda s: decimal(s) if "." in s else int(s))}
    return driver


async def driver_says(driver: Any, sql: str) -> Result:
    async with driver.cursor() as cursor:
        await cursor.execute(sql)
        if cursor.description is None:
            return Result((), [], cursor.rowcount, cursor.lastrowid)
        found = list(await cursor.fetchall())
        return Result(tuple(column[0] for column in cursor.description), found, len(found))


async def wire_of(url: str) -> tuple[_Login, Wire]:
    at = parse_url(url)
    login = _Login(host=at.host, port=at.port, user=at.user, password=at.password, db=at.name)
    return login, await login.wire()


class Recorded(Wire):
    """A wire that keeps what came."""

    came = b""

    def buffer_updated(self, nbytes: int) -> None:
        self.came += bytes(self._buffer[:nbytes])
        super().buffer_updated(nbytes)


def assert_same(ours: Result, theirs: Result) -> None:
    assert ours == theirs
    assert [[type(value) for value in row] for row in ours.rows] == [
        [type(value) for value in row] for row in theirs.rows
    ]


@pytest.fixture
async def both(database_url: str) -> AsyncIterator[tuple[Any, Wire, Recorded]]:
    """The driver, and a wire of ours, on one database."""
    driver = await driver_of(database_url)
    login, wire = await wire_of(database_url)
    recorded = Recorded(wire._transport, wire.status)
    yield driver, wire, recorded
    driver.close()
    await recorded.quit()
    login.close()


def play_back(came: bytes, sizes: list[int], shapes: Shapes) -> Answer:
    """Decode ``came`` in pieces of these sizes, over and over again."""
    answer, at, turn = Answer("q", shapes), 0, 0
    while at < len(came):
        piece = came[at : at + sizes[turn % len(sizes)]]
        at, turn = at + len(piece), turn + 1
        assert answer.feed(piece) is (at == len(came)), "complete too early or too late"
    return answer


def test_a_switch_that_is_refused_ends_the_connection() -> None:
    """The statement behind it may have been carried out, and no later one would be understood as it is meant."""
    refused = b"\xff\x15\x04#HY000no"
    answer = Answer("q", Shapes(), preceded=True)
    with pytest.raises(OperationalError, match="refused"):
        answer.feed(len(refused).to_bytes(3, "little") + b"\x01" + refused)


@pytest.mark.dialect("mysql")
def test_every_type_reads_as_the_driver_reads_it(database_url: str) -> None:
    """Values, NULLs, types, column names; first when the shape is new, then when it is known, then in pieces."""
    with asyncio.Runner() as runner:
        driver = runner.run(driver_of(database_url))
        login, wire = runner.run(wire_of(database_url))

        async def recorded() -> Recorded:
            return Recorded(wire._transport, wire.status)

        ours = runner.run(recorded())
        declared = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        runner.run(driver_says(driver, f"CREATE TABLE every (id INTEGER AUTO_INCREMENT PRIMARY KEY, {declared})"))

        @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(rows, max_size=3), st.lists(st.integers(1, 90), min_size=1, max_size=5))
        def check(some: list[dict[str, Any]], sizes: list[int]) -> None:
            runner.run(driver_says(driver, "DELETE FROM every"))
            for row in some:
                written = ", ".join(map(literal, row.values()))
                point = "ST_PointFromText('POINT(1 2)')"
                insert = f"INSERT INTO every ({', '.join(row)}, place) VALUES ({written}, {point})"
                runner.run(ours.ask(QUERY + insert.encode(), "insert", Shapes(), 5))
            sql = "SELECT every.*, SUM(whole) OVER () total, doc doc2, CAST(doc AS CHAR) FROM every ORDER BY id"
            theirs = runner.run(driver_says(driver, sql))
            shapes = Shapes()
            for _ in range(2):
                ours.came = b""
                assert_same(runner.run(ours.ask(QUERY + sql.encode(), "q", shapes, 5)), theirs)
            for known in (shapes, Shapes()):
                [again] = play_back(ours.came, sizes, known).results
                assert_same(again, theirs)

        check()
        driver.close()
        runner.run(ours.quit())
        login.close()


@pytest.mark.dialect("mysql")
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 WHERE 1 = 0",
        "SELECT NULL, '', 0, 'a' AS `二`",
        "SELECT REPEAT('x', 250), REPEAT('x', 251), REPEAT('x', 252), REPEAT('x', 65535), REPEAT('x', 65536)",
        "SELECT " + ", ".join(f"{n} AS c{n}" for n in range(300)),
        "SELECT CAST('2026-01-01' AS DATETIME), CAST('x' AS BINARY), JSON_ARRAY(1, 'a')",
        "SET @a = 1",
        "SHOW VARIABLES LIKE 'v%'",
        "SELECT n, REPEAT('y', n) FROM (SELECT 0 n UNION SELECT 255 UNION SELECT 256) t ORDER BY n",
    ],
)
async def test_these_answers_are_the_drivers(both: tuple[Any, Wire, Recorded], sql: str) -> None:
    """Also cut into single bytes."""
    driver, _, ours = both
    theirs = await driver_says(driver, sql)
    assert_same(await ours.ask(QUERY + sql.encode(), "q", Shapes(), 5), theirs)
    [single] = play_back(ours.came, [1], Shapes()).results
    assert_same(single, theirs)


@pytest.mark.dialect("mysql")
async def test_a_date_that_is_none_is_text(both: tuple[Any, Wire, Recorded]) -> None:
    """As the driver has it: 0000-00-00 is in many an old table."""
    driver, _, ours = both
    await driver_says(driver, "CREATE TABLE old (day DATE, at DATETIME(3))")
    await driver_says(driver, "SET sql_mode = ''")
    await driver_says(driver, "INSERT INTO old VALUES ('0000-00-00', '2026-00-31 00:00:00')")
    theirs = await driver_says(driver, "SELECT * FROM old")
    assert theirs.rows == [("0000-00-00", "2026-00-31 00:00:00.000")]
    assert_same(await ours.ask(QUERY + b"SELECT * FROM old", "q", Shapes(), 5), theirs)


@pytest.mark.dialect("mysql")
async def test_values_beyond_a_packet_go_both_ways(both: tuple[Any, Wire, Recorded]) -> None:
    """17 MB in several packets; also exactly as much as a packet holds, and one less and more."""
    driver, _, _ = both
    [(allowed,)] = (await driver_says(driver, "SELECT @@GLOBAL.max_allowed_packet")).rows
    await driver_says(driver, f"SET GLOBAL max_allowed_packet = {max(allowed, 64 * 1024 * 1024)}")
    login, wire = await wire_of(f"mysql://{driver.user}@{driver.host}:{driver.port}/{driver.db}")
    shapes = Shapes()
    for size in (2**24 - 10, 2**24 - 9, 17_000_000):  # Around the value, its row needs 8 bytes.
        sql = b"SELECT REPEAT('x', %d), 'end'" % size
        [(value, end)] = (await wire.ask(QUERY + sql, "repeat", shapes, 60)).rows
        assert (len(value), value.count("x"), end) == (size, size, "end")
    for size in (2**24 - 20, 2**24 - 19, 17_000_000):  # And around this one the command needs 18.
        sent = b"SELECT LENGTH('" + b"y" * size + b"')"
        assert (await wire.ask(QUERY + sent, "length", shapes, 60)).rows == [(size,)]
    assert (await wire.ask(QUERY + b"SELECT 1", "one", shapes, 5)).rows == [(1,)]
    await driver_says(driver, f"SET GLOBAL max_allowed_packet = {allowed}")
    await wire.quit()
    login.close()


@pytest.mark.dialect("mysql")
async def test_an_error_in_the_middle_of_the_rows_is_the_servers(both: tuple[Any, Wire, Recorded]) -> None:
    """It has sent some by then; the connection stays in step."""
    _, _, ours = both
    two, three = "SELECT 1 n UNION SELECT 2", "SELECT 1 n UNION SELECT 2 UNION SELECT 3"
    sql = f"SELECT n, (SELECT 1 FROM ({two}) t WHERE s.n = 3) FROM ({three}) s"
    with pytest.raises(MySQLError, match="1242"):
        await ours.ask(QUERY + sql.encode(), "q", Shapes(), 5)
    assert (await ours.ask(QUERY + b"SELECT 7", "seven", Shapes(), 5)).rows == [(7,)]
    with pytest.raises(MySQLError, match="1064"):
        await ours.ask(QUERY + b"SELEC", "q", Shapes(), 5)
    assert await ours.ask(PING, "", Shapes(), 5) == Result()


@pytest.mark.dialect("mysql")
async def test_a_procedure_may_give_several_results(both: tuple[Any, Wire, Recorded]) -> None:
    """The first one counts, all of them are read, and the status is that after the last."""
    driver, _, ours = both
    await driver_says(driver, "CREATE PROCEDURE p() BEGIN SELECT 1 AS a; START TRANSACTION; SELECT 2 AS b, 3 AS c; END")
    for _ in range(2):
        assert await ours.ask(QUERY + b"CALL p()", "call", Shapes(), 5) == Result(("a",), [(1,)], 1)
    assert ours.status & IN_TRANSACTION
    assert await ours.ask(QUERY + b"ROLLBACK", "rollback", Shapes(), 5) == Result()


@pytest.mark.dialect("mysql")
async def test_the_status_is_read_after_rows_too(both: tuple[Any, Wire, Recorded]) -> None:
    """A function that commits inside a SELECT does not exist; a SELECT says that the transaction is open."""
    _, _, ours = both
    shapes = Shapes()
    for sql, inside in (("SELECT 1", 0), ("START TRANSACTION", 1), ("SELECT 1", 1), ("ROLLBACK", 0), ("SELECT 1", 0)):
        await ours.ask(QUERY + sql.encode(), sql, shapes, 5)
        assert ours.status & IN_TRANSACTION == inside


@pytest.mark.dialect("mysql")
async def test_a_shape_that_changed_is_read_anew(database_url: str) -> None:
    """One statement, two sets of columns: what is remembered is only ever compared."""
    async with Database(database_url) as db:
        await db.execute("CREATE TABLE t (a INTEGER)")
        await db.execute("INSERT INTO t VALUES (1)")
        for _ in range(2):
            assert (await db.query("SELECT * FROM t")).rows == [(1,)]
        await db.execute("ALTER TABLE t MODIFY a VARCHAR(5), ADD COLUMN b DECIMAL(4, 2) DEFAULT 0.5")
        for _ in range(2):
            result = await db.query("SELECT * FROM t")
            assert (result.columns, result.rows) == (("a", "b"), [("1", Decimal("0.50"))])


def packet(number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes((number,)) + payload


COLUMN = b"\x03def\x00\x00\x00\x01a\x00\x0c\x3f\x00\x0b\x00\x00\x00\x03\x00\x00\x00\x00\x00"
END = b"\xfe\x00\x00\x02\x00"
ROWS = packet(1, b"\x01") + packet(2, COLUMN) + packet(3, END) + packet(4, b"\x0242") + packet(5, END)


@pytest.mark.parametrize(
    "came",
    [
        packet(2, END),
        packet(0, b"\xff\x1d\x04#08S01shutdown"),
        packet(1, b"\xfb/etc/passwd"),
        packet(1, b""),
        packet(1, b"\x01") + packet(2, COLUMN[:9]),
        packet(1, b"\x01") + packet(2, COLUMN) + packet(3, b"\x0242"),
        ROWS.replace(b"\x0242", b"\x0142"),
        ROWS.replace(b"\x0242", b"\x0542"),
        ROWS.replace(packet(4, b"\x0242"), packet(4, b"\x02")),
        ROWS.replace(b"\x0242", b"\x02no"),
    ],
    ids=["order", "shutdown", "local infile", "empty", "short column", "no end", "short", "long", "bare", "no number"],
)
def test_what_is_no_answer_is_refused(came: bytes) -> None:
    """Never a wrong value, never a wait for ever; a file of ours is never sent."""
    assert play_back(ROWS, [3], Shapes()).results[0] == Result(("a",), [(42,)], 1)
    for size in (len(came), 1):
        with pytest.raises((MySQLError, ValueError, LookupError)):
            play_back(came, [size], Shapes())


def test_a_known_shape_is_not_read_again() -> None:
    """What the same bytes mean is remembered, for the statement they belong to."""
    shapes = Shapes()
    play_back(ROWS, [3], shapes)
    known = shapes.get("q")
    assert known is not None
    assert ROWS.startswith(known.block)
    shapes.put("q", known._replace(columns=("remembered",)))
    assert play_back(ROWS, [len(ROWS)], shapes).results[0] == Result(("remembered",), [(42,)], 1)


def test_a_large_shape_is_not_kept() -> None:
    """Nor one of a long text: there may be thousands, each as long."""
    shapes, shape = Shapes(), Shape(b"x" * 100, 2, ("a",), [int])
    shapes.put("q", shape)
    shapes.put("wide", shape._replace(block=b"x" * 10_000))
    shapes.put("q" * 10_000, shape)
    assert shapes.get("q") is shape
    assert shapes.get("wide") is shapes.get("q" * 10_000) is None


class Script(asyncio.Protocol):
    """A server that has logged us in and says what it is told."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.closed = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for piece in self.pieces:
            if piece:
                self.transport.write(piece)
            else:
                self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set()


async def wired(script: Script) -> tuple[Wire, Any]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: script, "127.0.0.1", 0)
    transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname()[:2])
    return Wire(transport, 0), server


async def test_an_answer_that_breaks_off_is_a_lost_connection() -> None:
    """Half of the rows are no rows."""
    wire, server = await wired(Script(ROWS[:-3], b""))
    with pytest.raises(MySQLError, match="2013"):
        await wire.ask(QUERY + b"SELECT 1", "q", Shapes(), 5)
    assert wire.lost
    with pytest.raises(MySQLError, match="2013"):
        await wire.ask(QUERY + b"SELECT 1", "q", Shapes(), 5)
    server.close()


async def test_an_answer_that_cannot_be_read_ends_the_connection() -> None:
    """Nobody knows where the next answer would begin."""
    script = Script(ROWS.replace(b"\x0242", b"\x0542"))
    wire, server = await wired(script)
    with pytest.raises(MySQLError, match="2013"):
        await wire.ask(QUERY + b"SELECT 1", "q", Shapes(), 5)
    await asyncio.wait_for(script.closed.wait(), 2)
    server.close()


async def test_words_that_nobody_asked_for_end_the_connection() -> None:
    """Behind an answer, which still counts, or out of the blue: they would be taken for the next statement's."""
    fine, late = packet(1, b"\x00\x01\x00\x02\x00\x00\x00"), packet(0, b"\xff\x1d\x04#08S01shutdown")
    wire, server = await wired(Script(fine + late))
    assert await wire.ask(QUERY + b"x", "q", Shapes(), 5) == Result((), [], 1)
    assert wire.lost
    script = Script(fine)
    idle, another = await wired(script)
    await idle.ask(QUERY + b"x", "q", Shapes(), 5)
    script.transport.write(late)
    await asyncio.wait_for(script.closed.wait(), 2)
    assert idle.lost
    server.close()
    another.close()


async def test_one_timer_serves_all_statements() -> None:
    """It wakes up for the last one only, and earlier where a later command has less time."""
    answer = packet(1, b"\x00\x00\x00\x02\x00\x00\x00")
    script = Script(answer)
    wire, server = await wired(script)
    await wire.ask(QUERY + b"x", "q", Shapes(), 60)
    timer = wire._timer
    await wire.ask(QUERY + b"x", "q", Shapes(), 60)
    assert wire._timer is timer
    script.pieces.clear()
    with pytest.raises(TimeoutError):
        await wire.ask(PING, "", Shapes(), 0.01)
    wire.abort()
    server.close()


async def test_a_command_without_a_limit_is_not_ended_by_the_one_before() -> None:
    """Whose timer may still run."""
    answer = packet(1, b"\x00\x00\x00\x02\x00\x00\x00")
    script = Script(answer)
    wire, server = await wired(script)
    await wire.ask(QUERY + b"x", "q", Shapes(), 0.01)
    script.pieces.clear()
    asking = asyncio.create_task(wire.ask(QUERY + b"x", "q", Shapes(), None))
    await asyncio.wait([asking], timeout=0.1)
    script.transport.write(answer)
    assert await asking == Result()
    wire.abort()
    server.close()


async def test_answers_to_several_commands_come_in_any_pieces() -> None:
    """Each gets its own, in the order in which they were asked."""
    error = packet(1, b"\xff\x9a\x06#22003out of range: 5")
    script = Script()
    wire, server = await wired(script)
    asking = [asyncio.create_task(wire.ask(QUERY + b"x", "q", Shapes(), 5)) for _ in range(3)]
    await asyncio.sleep(0.05)
    for byte in ROWS + error + ROWS:
        script.transport.write(bytes([byte]))
        await asyncio.sleep(0)
    first, failed, last = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(first, Result)
    assert first == last
    assert isinstance(failed, MySQLError)
    assert not wire.lost
    wire.abort()
    server.close()


async def test_a_late_answer_is_not_the_next_ones() -> None:
    """Whoever is behind one that ran out of time has lost the connection with it."""
    script = Script()
    wire, server = await wired(script)
    asking = [asyncio.create_task(wire.ask(QUERY + b"x", "q", Shapes(), within_s)) for within_s in (0.05, 60)]
    await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    script.transport.write(ROWS)
    slow, behind = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(slow, TimeoutError)
    assert isinstance(behind, MySQLError)
    assert wire.lost
    server.close()


async def test_the_time_of_a_command_begins_when_it_is_the_first() -> None:
    """A server that is busy with the one ahead has not begun with it."""
    answer = packet(1, b"\x00\x00\x00\x02\x00\x00\x00")
    script = Script()
    wire, server = await wired(script)
    asking = [asyncio.create_task(wire.ask(QUERY + b"x", "q", Shapes(), 0.5)) for _ in range(3)]
    for _ in asking:
        await asyncio.sleep(0.3)
        script.transport.write(answer)
    assert await asyncio.gather(*asking) == [Result()] * 3
    wire.abort()
    server.close()


async def test_an_error_tells_its_sqlstate() -> None:
    """Where its message is not to be shown, it is what remains beside the number."""
    wire, server = await wired(Script(packet(1, b"\xff\x9a\x06#22003out of range: 5")))
    with pytest.raises(MySQLError, match="1690") as caught:
        await wire.ask(QUERY + b"x", "q", Shapes(), 5)
    assert caught.value.__notes__ == ["SQLSTATE 22003"]
    wire.abort()
    server.close()


@pytest.mark.dialect("mysql")
async def test_a_session_without_backslashes_is_refused(database_url: str) -> None:
    """There the way in which text is escaped would let it break out."""
    async with Database(database_url) as db:
        with pytest.raises(StatementFailed, match="NO_BACKSLASH_ESCAPES"):
            async with db._dedicated() as connection:
                await connection.script("SET SESSION sql_mode = 'NO_BACKSLASH_ESCAPES'")
                await connection.execute(Statement("SELECT %s", 1, "SELECT"), ("\\' OR 1 = 1 -- ",))
        assert (await db.query("SELECT ?", ("\\' OR 1 = 1 -- ",))).rows == [("\\' OR 1 = 1 -- ",)]

"""Migrations: applied once, whatever happens in between and whoever else is at it."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from toy_package import NOTE, ORDERS, ToyPackage, look

from daydo_db import (
    SQLITE,
    Applied,
    ConnectionLost,
    Database,
    DatabaseConfig,
    DbError,
    LockTimeout,
    NotNullViolation,
    SchemaEdited,
    SchemaOutdated,
    StatementFailed,
    StorageFull,
    migrate,
)
from daydo_db.migrate import Status, plan, sql, statements, status
from daydo_kernel.testing import ManualClock, RecordedEvents

# One of each: tables, columns, indexes and constraints that come, change, and go; and data in between.
EVERYTHING = {
    "mysql": """
CREATE TABLE shop_order (id INT NOT NULL, amount BIGINT NOT NULL, code VARCHAR(9), old INT) ENGINE=InnoDB;
ALTER TABLE shop_order ADD PRIMARY KEY (id);
CREATE TABLE shop_item (id INT NOT NULL PRIMARY KEY, order_id INT NOT NULL) ENGINE=InnoDB;
ALTER TABLE shop_item ADD CONSTRAINT shop_item_order FOREIGN KEY (order_id) REFERENCES shop_order (id);
CREATE INDEX shop_order_amount ON shop_order (amount);
INSERT INTO shop_order (id, amount, code) VALUES (1, 1, 'a;b');
INSERT INTO shop_item (id, order_id) VALUES (1, 1);
ALTER TABLE shop_order ADD COLUMN note VARCHAR(20), ADD COLUMN weight INT NOT NULL DEFAULT 3;
UPDATE shop_order SET amount = amount + 1;
ALTER TABLE shop_order ADD CONSTRAINT shop_order_positive CHECK (amount > 0);
ALTER TABLE shop_order MODIFY note VARCHAR(200) DEFAULT 'none';
ALTER TABLE shop_order RENAME COLUMN code TO sku;
ALTER TABLE shop_order CHANGE weight weight_g BIGINT;
CREATE UNIQUE INDEX shop_order_sku ON shop_order (sku);
ALTER TABLE shop_order RENAME INDEX shop_order_amount TO shop_order_by_amount;
ALTER TABLE shop_order DROP COLUMN old;
ALTER TABLE shop_item DROP FOREIGN KEY shop_item_order;
DROP INDEX shop_item_order ON shop_item;
ALTER TABLE shop_item RENAME TO shop_line;
RENAME TABLE shop_line TO shop_lines;
UPDATE shop_lines SET order_id = order_id + 1;
CREATE VIEW shop_view AS SELECT id FROM shop_order;
DROP VIEW shop_view;
ALTER TABLE shop_order DROP CONSTRAINT shop_order_positive;
ALTER TABLE shop_lines DROP PRIMARY KEY;
CREATE TABLE shop_gone (id INT);
DROP TABLE shop_gone;
""",
    "sqlite": """
CREATE TABLE shop_order (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL, code TEXT, old INTEGER);
CREATE TABLE shop_item (id INTEGER PRIMARY KEY, order_id INTEGER NOT NULL REFERENCES shop_order (id) ON DELETE CASCADE);
CREATE INDEX shop_order_amount ON shop_order (amount);
INSERT INTO shop_order (id, amount, code) VALUES (1, 1, 'a;b');
INSERT INTO shop_item (id, order_id) VALUES (1, 1);
ALTER TABLE shop_order ADD COLUMN note TEXT;
UPDATE shop_order SET amount = amount + 1;
ALTER TABLE shop_order RENAME COLUMN code TO sku;
ALTER TABLE shop_order DROP COLUMN old;
CREATE TABLE shop_order_new (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL CHECK (amount > 0), sku TEXT, note TEXT);
INSERT INTO shop_order_new (id, amount, sku, note) SELECT id, amount, sku, note FROM shop_order;
DROP TABLE shop_order;
ALTER TABLE shop_order_new RENAME TO shop_order;
CREATE UNIQUE INDEX shop_order_sku ON shop_order (sku);
CREATE TABLE shop_gone (id INTEGER);
DROP TABLE shop_gone;
""",
}


@pytest.fixture
def shop(toy: ToyPackage) -> ToyPackage:
    toy.write("0001_orders.sql", ORDERS)
    return toy


@pytest.fixture
def everything(toy: ToyPackage) -> ToyPackage:
    """All kinds of statements, in two files."""
    for dialect, text in EVERYTHING.items():
        lines = text.strip().splitlines(keepends=True)
        toy.write("0001_begin.sql", "".join(lines[:5]), dialects=(dialect,))
        toy.write("0002_go_on.sql", "".join(lines[5:]), dialects=(dialect,))
    return toy


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as db:
        yield db


async def amounts(db: Database) -> list[int]:
    return [amount for (amount,) in (await db.query("SELECT amount FROM shop_order")).rows]


async def states(db: Database, shop: ToyPackage) -> list[str]:
    return [file.state for file in await status(db, shop.name)]


async def finished(database_url: str, shop: ToyPackage) -> dict[str, Any]:
    """What an undisturbed run leads to, looked at and removed again."""
    async with Database(database_url) as db:
        await migrate(db, shop.name)
        seen = await look(db)
        for table in ("shop_lines", "shop_item", "shop_order", "daydo_migration"):
            await db.execute(f"DROP TABLE IF EXISTS {table}")
    return seen


# -- once --------------------------------------------------------------------------------------------------------------


async def test_what_is_missing_is_applied_once(db: Database, shop: ToyPackage) -> None:
    """The second run finds nothing to do; a new file later is applied alone."""
    assert await migrate(db, shop.name) == [Applied(shop.name, 1, "orders", 3)]
    assert await migrate(db, shop.name) == []
    shop.write("0002_note.sql", NOTE)
    assert await migrate(db, shop.name) == [Applied(shop.name, 2, "note", 2)]
    assert (await db.query("SELECT id, amount, note FROM shop_order")).rows == [("100% ?; first", 2, None)]


async def test_outdated_tables_stop_the_start_with_the_command_to_run(db: Database, shop: ToyPackage) -> None:
    """Without tables, with old ones, with the right ones, and with newer ones."""
    with pytest.raises(SchemaOutdated, match=f"python -m daydo_db migrate .* {shop.name}") as caught:
        await db.require_schema(shop.name)
    assert (caught.value.have, caught.value.need) == (0, 1)
    await migrate(db, shop.name)
    await db.require_schema(shop.name)
    shop.write("0002_note.sql", NOTE)
    with pytest.raises(SchemaOutdated) as caught:
        await db.require_schema(shop.name)
    assert (caught.value.have, caught.value.need) == (1, 2)
    await migrate(db, shop.name)
    shop.remove("0002_note.sql")
    await db.require_schema(shop.name)


async def test_a_clock_stamps_and_a_sink_hears(database_url: str, shop: ToyPackage) -> None:
    """Without a clock the database's own time is taken."""
    heard = RecordedEvents()
    async with Database(database_url, clock=ManualClock(1_000_000), events=heard) as db:
        await migrate(db, shop.name)
        stamps = (await db.query("SELECT DISTINCT changed_at_us FROM daydo_migration")).rows
    assert (stamps, heard.names) == ([(1_000_000,)], ["db.migrated"])


async def test_packages_must_exist_and_have_a_schema(db: Database) -> None:
    """The message says what a name looks like."""
    with pytest.raises(ValueError, match="not installed"):
        await migrate(db, "daydo-quota")
    with pytest.raises(ValueError, match=r"0001_name\.sql"):
        await migrate(db, "asyncio")


# -- death and rerun ---------------------------------------------------------------------------------------------------


class Deaths:
    """Lets a runner die before, and another one after, each packet that no runner has died at yet."""

    def __init__(self, die: Callable[[], BaseException]) -> None:
        self._die = die
        self._died: set[object] = set()

    async def run(self, database_url: str, shop: ToyPackage) -> int:
        """Run until one comes to the end; how many did not."""
        for died in range(1000):
            db = Database(database_url)
            self._put_into(db)
            async with db:
                try:
                    await migrate(db, shop.name)
                except (ConnectionLost, asyncio.CancelledError):
                    continue
                assert died == len(self._died)
                return died
        raise AssertionError("a runner never comes further than the one before")

    def _put_into(self, db: Database) -> None:
        connect = db._engine.connect

        async def fragile(*, writable: bool) -> Any:
            connection: Any = await connect(writable=writable)
            for name in ("script", "execute"):
                setattr(connection, name, self._cut(connection, getattr(connection, name)))
            return connection

        setattr(db._engine, "connect", fragile)  # noqa: B010 - it is a method to the type checker

    def _cut(self, connection: Any, send: Callable[..., Any]) -> Callable[..., Any]:
        async def fragile(*packet: Any) -> Any:
            if self._first(packet, "before"):
                await connection.close()
                raise self._die()
            answer = await send(*packet)
            if self._first(packet, "after"):
                await connection.close()
                raise self._die()
            return answer

        return fragile

    def _first(self, packet: tuple[Any, ...], moment: str) -> bool:
        death = (*packet, moment)
        known = death in self._died
        self._died.add(death)
        return not known


@pytest.mark.parametrize("die", [ConnectionLost, asyncio.CancelledError])
async def test_a_death_at_any_packet_is_healed_by_running_again(
    database_url: str, everything: ToyPackage, die: Callable[[], BaseException]
) -> None:
    """Before and after every single one, row keeping and locks included; the end is that of an undisturbed run."""
    wanted = await finished(database_url, everything)
    died = await Deaths(die).run(database_url, everything)
    async with Database(database_url) as db:
        assert await look(db) == wanted
        assert await plan(db, everything.name) == []
        least = 2 * len([key for key in wanted["rows of daydo_migration"] if key[3] == "done"])
    assert died > 2 * least, "each statement has a packet of its own and one for its row at least"


async def test_a_killed_command_is_healed_by_the_next(database_url: str, everything: ToyPackage) -> None:
    """SIGKILL while the server works on a statement, several times over; each row of data is there once."""
    wanted = await finished(database_url, everything)
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    for _ in range(3):
        process = everything.start("up", database_url, everything.name)
        assert process.stderr is not None
        for _ in range(moments.randrange(1, 9)):
            process.stderr.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    code, _, err = everything.run("up", database_url, everything.name)
    assert code == 0, f"seed {seed}: {err}"
    async with Database(database_url) as db:
        assert await look(db) == wanted, f"seed {seed}"


async def test_two_processes_at_once_apply_each_statement_once(database_url: str, everything: ToyPackage) -> None:
    """The second waits, and then finds it done."""
    wanted = await finished(database_url, everything)
    first, second = (everything.start("up", database_url, everything.name) for _ in range(2))
    outputs = [first.communicate()[0], second.communicate()[0]]
    assert (first.returncode, second.returncode) == (0, 0)
    assert sorted(map(len, map(str.splitlines, outputs))) == [1, 3], outputs
    async with Database(database_url) as db:
        assert await look(db) == wanted


async def test_many_runners_at_once_apply_each_statement_once(database_url: str, shop: ToyPackage) -> None:
    """In tasks of one process, too."""
    shop.write("0002_note.sql", NOTE)

    async def run() -> list[Applied]:
        async with Database(database_url) as db:
            return await migrate(db, shop.name)

    runs = await asyncio.gather(*(run() for _ in range(4)))
    assert sorted(len(applied) for applied in runs) == [0, 0, 0, 2]


async def test_the_wait_for_another_runner_ends(database_url: str, db: Database, shop: ToyPackage) -> None:
    """After ``migrate_wait_s`` the answer is LockTimeout, and nothing was touched; who waits longer gets its turn."""
    held, release = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with db._dedicated() as connection:
            from daydo_db.migrate import _mysql_alone, _sqlite_alone

            async with (_sqlite_alone if db.dialect is SQLITE else _mysql_alone)(connection, 1):
                held.set()
                await release.wait()

    holder = asyncio.create_task(hold())
    await held.wait()
    patient = DatabaseConfig(lock_timeout_s=1)
    impatient = DatabaseConfig(migrate_wait_s=0.1, lock_timeout_s=1)
    async with Database(database_url, patient) as waiting, Database(database_url, impatient) as other:
        waiter = asyncio.create_task(migrate(waiting, shop.name))
        with pytest.raises(LockTimeout):
            await migrate(other, shop.name)
        assert await states(other, shop) == ["pending"]
        release.set()
        await holder
        assert await waiter, "it waits longer than one lock_timeout_s"
        assert await migrate(other, shop.name) == []


# -- refused -----------------------------------------------------------------------------------------------------------


async def test_a_refused_statement_can_be_corrected(db: Database, shop: ToyPackage) -> None:
    """It leaves no trace that a rerun would take for a crash; what came before stays or goes as the engine allows."""
    await migrate(db, shop.name)
    good = "CREATE TABLE shop_more (id INTEGER);\n"
    shop.write("0002_bad.sql", good + "ALTER TABLE shop_order ADD COLUMN amount BIGINT;\n")
    for _ in range(2):
        with pytest.raises(StatementFailed) as caught:
            await migrate(db, shop.name)
        assert caught.value.__notes__ == [f"in statement {shop.name} 0002_bad 2/2"]
    begun = (await status(db, shop.name))[1]
    assert (begun.state, begun.done) == (("pending", 0) if db.dialect is SQLITE else ("half_applied", 1))
    assert not begun.died
    shop.write("0002_bad.sql", good + "ALTER TABLE shop_order ADD COLUMN other BIGINT;\n")
    assert await migrate(db, shop.name) == [Applied(shop.name, 2, "bad", 2 if db.dialect is SQLITE else 1)]


async def test_a_refused_change_of_data_leaves_no_part_of_itself(db: Database, shop: ToyPackage) -> None:
    """It and its row in the table of migrations are one transaction."""
    shop.write("0002_bad.sql", "INSERT INTO shop_order (id, amount) VALUES ('a', 1), ('b', NULL);\n")
    with pytest.raises(NotNullViolation):
        await migrate(db, shop.name)
    await asyncio.create_task(db.execute("SELECT 1"))
    with pytest.raises((SchemaOutdated, DbError)):
        await db.require_schema(shop.name)


async def test_a_foreign_table_of_that_name_is_not_taken_for_ours(db: Database, shop: ToyPackage) -> None:
    """Only a crash of our own makes 'exists already' acceptable."""
    await db.execute("CREATE TABLE shop_order (other INTEGER)")
    with pytest.raises(StatementFailed) as caught:
        await migrate(db, shop.name)
    assert caught.value.__notes__ == [f"in statement {shop.name} 0001_orders 1/3"]


@pytest.mark.dialect("mysql")
async def test_a_misspelled_name_is_not_taken_for_gone_after_a_crash(db: Database, shop: ToyPackage) -> None:
    """'Unknown column' and 'no such table' mean "done already" where something is renamed, and nowhere else."""
    shop.write("0002_bad.sql", "CREATE INDEX shop_order_x ON shop_ordre (amount);\n")
    with pytest.raises(StatementFailed):
        await migrate(db, shop.name)
    (step,) = await plan(db, shop.name)
    from daydo_db.schema_files import checksum

    await db.execute(
        "INSERT INTO daydo_migration (package, version, statement, state, checksum, changed_at_us) "
        "VALUES (?, 2, 1, 'started', ?, 0)",
        (shop.name, checksum("mysql", step.sql)),
    )
    assert (await plan(db, shop.name))[0].again
    with pytest.raises(StatementFailed):
        await migrate(db, shop.name)


async def limit(db: Database, pages: int) -> None:
    async with db._dedicated() as connection:
        await connection.script(f"PRAGMA max_page_count = {pages}")


@pytest.mark.dialect("sqlite")
async def test_a_full_disk_leaves_the_tables_as_they_were(db: Database, shop: ToyPackage) -> None:
    """All of the run is undone, foreign keys are enforced again, and with more room it comes to its end."""
    await migrate(db, shop.name)
    before = await look(db)
    fill = "INSERT INTO shop_order (id, amount) VALUES (hex(randomblob(400000)), 1);\n"
    shop.write("0002_much.sql", f"CREATE TABLE shop_more (id INTEGER);\n{fill}")
    await limit(db, 20)
    with pytest.raises(StorageFull):
        await migrate(db, shop.name)
    assert await look(db) == before
    assert (await db.execute("PRAGMA foreign_keys")).rows == [(1,)]
    await limit(db, 100000)
    assert await migrate(db, shop.name) == [Applied(shop.name, 2, "much", 2)]


# -- references --------------------------------------------------------------------------------------------------------

REFERENCED = """
CREATE TABLE shop_order (id INTEGER PRIMARY KEY, amount INTEGER NOT NULL);
CREATE TABLE shop_item (id INTEGER PRIMARY KEY, order_id INTEGER NOT NULL REFERENCES shop_order (id) ON DELETE CASCADE);
INSERT INTO shop_order (id, amount) VALUES (1, 5), (2, 6);
INSERT INTO shop_item (id, order_id) VALUES (10, 1), (20, 2);
"""
REBUILD = """-- expand: the same columns, amount may be empty now
CREATE TABLE shop_order_new (id INTEGER PRIMARY KEY, amount INTEGER);
INSERT INTO shop_order_new (id, amount) SELECT id, amount FROM shop_order {where};
DROP TABLE shop_order;
ALTER TABLE shop_order_new RENAME TO shop_order;
"""


@pytest.mark.dialect("sqlite")
async def test_a_table_that_others_point_at_is_made_anew(db: Database, toy: ToyPackage) -> None:
    """DROP TABLE deletes nothing behind a cascade, and the references lead to the new table afterwards."""
    toy.write("0001_orders.sql", REFERENCED)
    await migrate(db, toy.name)
    toy.write("0002_optional.sql", REBUILD.format(where=""))
    await migrate(db, toy.name)
    assert (await db.query("SELECT id, order_id FROM shop_item")).rows == [(10, 1), (20, 2)]
    await db.execute("DELETE FROM shop_order WHERE id = 1")
    assert (await db.query("SELECT id, order_id FROM shop_item")).rows == [(20, 2)], "foreign keys are enforced again"


@pytest.mark.dialect("sqlite")
async def test_a_reference_that_would_lead_nowhere_undoes_the_run(db: Database, toy: ToyPackage) -> None:
    """The message says between which tables, and how many; the next run finds all as it was."""
    toy.write("0001_orders.sql", REFERENCED)
    await migrate(db, toy.name)
    before = await look(db)
    toy.write("0002_lossy.sql", REBUILD.format(where="WHERE id = 1"))
    with pytest.raises(StatementFailed, match="1 of shop_item to shop_order; nothing was applied"):
        await migrate(db, toy.name)
    assert await look(db) == before
    assert (await db.execute("PRAGMA foreign_keys")).rows == [(1,)]


# -- edited files, status, plan ----------------------------------------------------------------------------------------


async def test_an_applied_file_that_was_edited_stops_the_run(db: Database, shop: ToyPackage) -> None:
    """Comments, line ends and white space may change; a word may not, and nothing else is applied meanwhile."""
    await migrate(db, shop.name)
    shop.write(
        "0001_orders.sql", f"-- better said\n{ORDERS}".replace("\n", "\r\n").replace("amount BIGINT", "amount  BIGINT")
    )
    assert await states(db, shop) == ["applied"]
    shop.write("0001_orders.sql", ORDERS.replace("', 1)", "', 2)"))
    shop.write("0002_note.sql", NOTE)
    for asked in (migrate, plan):
        with pytest.raises(SchemaEdited) as caught:
            await asked(db, shop.name)
        assert (caught.value.file, caught.value.statement) == (f"{shop.name} 0001_orders", 3)
    assert await states(db, shop) == ["edited", "pending"]
    await db.execute("UPDATE daydo_migration SET checksum = ''")  # the runbook's way to accept it
    assert await states(db, shop) == ["applied", "pending"]
    await migrate(db, shop.name)


async def test_a_statement_taken_from_an_applied_file_is_missed(db: Database, shop: ToyPackage) -> None:
    """It is in the database and no file says so."""
    await migrate(db, shop.name)
    shop.write("0001_orders.sql", ORDERS.rpartition("INSERT")[0])
    (file,) = await status(db, shop.name)
    assert (file.state, file.at, file.sql) == ("edited", 3, "")


@pytest.mark.dialect("mysql")
async def test_a_statement_edited_after_a_runner_died_in_it_is_not_believed(db: Database, shop: ToyPackage) -> None:
    """'Exists already' would be said about the old text."""
    await migrate(db, shop.name)
    shop.write("0002_note.sql", NOTE)
    await migrate(db, shop.name)
    await db.execute("UPDATE daydo_migration SET state = 'started' WHERE version = 2 AND statement = 1")
    await db.execute("DELETE FROM daydo_migration WHERE version = 2 AND statement = 2")
    file = (await status(db, shop.name))[1]
    assert (file.state, file.done, file.of, file.at, file.died) == ("half_applied", 0, 2, 1, True)
    shop.write("0002_note.sql", NOTE.replace("VARCHAR(100)", "VARCHAR(200)"))
    with pytest.raises(SchemaEdited):
        await migrate(db, shop.name)
    shop.write("0002_note.sql", NOTE)
    assert await migrate(db, shop.name) == [Applied(shop.name, 2, "note", 2)]


async def test_status_and_plan_only_look(db: Database, shop: ToyPackage) -> None:
    """Not even the table of migrations is made; afterwards everything reads applied."""
    empty = await look(db)
    assert await status(db, shop.name) == [
        Status(shop.name, 1, "orders", "pending", 0, 3, at=1, sql=(await plan(db, shop.name))[0].sql)
    ]
    assert [(str(step), step.again) for step in await plan(db, shop.name)] == [
        (f"{shop.name} 0001_orders {number}/3", False) for number in (1, 2, 3)
    ]
    assert await look(db) == empty
    await migrate(db, shop.name)
    assert await status(db, shop.name) == [Status(shop.name, 1, "orders", "applied", 3, 3)]
    shop.write("0002_note.sql", NOTE)
    await migrate(db, shop.name)
    shop.remove("0002_note.sql")
    assert (await status(db, shop.name))[1] == Status(shop.name, 2, "", "newer", 2, 2)


async def test_progress_is_told_before_each_statement(db: Database, shop: ToyPackage) -> None:
    """In the order of the plan."""
    told = await plan(db, shop.name)
    heard: list[Any] = []
    await migrate(db, shop.name, progress=heard.append)
    assert heard == told


# -- the script --------------------------------------------------------------------------------------------------------


async def test_the_statements_for_other_tools_lead_to_the_same_state(db: Database, shop: ToyPackage) -> None:
    """Release by release, as Alembic would; then the service starts and our own runner finds nothing to do."""
    shop.write("0002_note.sql", NOTE)
    for release in (1, 2):
        for statement in statements(db.dialect.name, shop.name, after=release - 1, upto=release):
            await db.execute(statement.replace("?", "x"))
    await db.require_schema(shop.name)
    await db.execute("UPDATE shop_order SET id = '100% ?; first'")
    by_hand = await look(db)
    for table in ("shop_order", "daydo_migration"):
        await db.execute(f"DROP TABLE {table}")
    await migrate(db, shop.name)
    assert await look(db) == by_hand


async def test_alembic_can_run_them(database_url: str, shop: ToyPackage) -> None:
    """Through SQLAlchemy's text(), where a colon or a percent sign would be a parameter; the how-to shows it."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    from sqlalchemy.ext.asyncio import create_async_engine

    shop.write("0002_colon.sql", "INSERT INTO shop_order (id, amount) VALUES ('a:b 100%s :c ::d \\:e', 2);\n")
    url = database_url.replace("mysql://", "mysql+aiomysql://").replace("sqlite://", "sqlite+aiosqlite://")
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        for statement in statements(engine.dialect.name, shop.name):  # type: ignore[arg-type]
            await connection.execute(sqlalchemy.text(statement.replace(":", r"\:")))
    await engine.dispose()
    async with Database(database_url) as db:
        assert await migrate(db, shop.name) == []
        ids = {name for (name,) in (await db.query("SELECT id FROM shop_order")).rows}
        assert {name.replace("\\", "") for name in ids} == {"100% ?; first", "a:b 100%s :c ::d :e"}


def test_the_script_is_the_same_statements(shop: ToyPackage) -> None:
    """With ``;`` and a heading for each file."""
    shop.write("0002_note.sql", NOTE)
    script = sql("mysql", shop.name, after=1)
    assert f"-- {shop.name} 0002_note\n" in script
    assert "0001_orders" not in script
    for statement in statements("mysql", shop.name, after=1):
        assert f"{statement};\n" in script

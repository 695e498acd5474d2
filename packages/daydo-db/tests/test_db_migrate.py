"""Migrations: applied once, whatever happens in between and whoever else is at it."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daydo_db import (
    Applied,
    ConnectionLost,
    Database,
    DbError,
    NotNullViolation,
    SchemaOutdated,
    StatementFailed,
    migrate,
)
from daydo_db.__main__ import main
from daydo_db.migrate import sql
from daydo_kernel.testing import ManualClock, RecordedEvents

FIRST = """-- The shop's orders; a semicolon in a comment ends nothing;
CREATE TABLE shop_order (
  id VARCHAR(40) NOT NULL PRIMARY KEY,
  -- fen; never a float
  amount BIGINT NOT NULL
);
CREATE INDEX shop_order_amount ON shop_order (amount);

INSERT INTO shop_order (id, amount) VALUES ('100% ?; first', 1);
"""
SECOND = "ALTER TABLE shop_order ADD COLUMN note VARCHAR(100);\nUPDATE shop_order SET amount = amount + 1;\n"
STATEMENTS = 5


class Shop:
    """An importable package whose schema files the test writes."""

    name = "shop_of_a_test"

    def __init__(self, folder: Path) -> None:
        self.folder = folder / self.name
        self.folder.mkdir()
        (self.folder / "__init__.py").write_text("")
        self.write("0001_orders.sql", FIRST)

    def write(self, file: str, text: str) -> None:
        for dialect in ("sqlite", "mysql"):
            target = self.folder / "schema" / dialect
            target.mkdir(parents=True, exist_ok=True)
            (target / file).write_text(text)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.syspath_prepend(tmp_path)
    yield Shop(tmp_path)
    sys.modules.pop(Shop.name, None)


@pytest.fixture
async def db(database_url: str) -> Any:
    async with Database(database_url) as db:
        yield db


async def amounts(db: Database) -> list[int]:
    return [amount for (amount,) in (await db.query("SELECT amount FROM shop_order")).rows]


async def test_what_is_missing_is_applied_once(db: Database, shop: Shop) -> None:
    """The second run finds nothing to do; a new file later is applied alone."""
    assert await migrate(db, shop.name) == [Applied(shop.name, 1, "orders", 3)]
    assert await migrate(db, shop.name) == []
    shop.write("0002_note.sql", SECOND)
    assert await migrate(db, shop.name) == [Applied(shop.name, 2, "note", 2)]
    assert (await db.query("SELECT id, amount, note FROM shop_order")).rows == [("100% ?; first", 2, None)]


async def test_outdated_tables_stop_the_start_with_the_command_to_run(db: Database, shop: Shop) -> None:
    """Without tables, with old ones, with the right ones, and with newer ones."""
    with pytest.raises(SchemaOutdated, match=f"python -m daydo_db migrate .* {shop.name}") as caught:
        await db.require_schema(shop.name)
    assert (caught.value.have, caught.value.need) == (0, 1)
    await migrate(db, shop.name)
    await db.require_schema(shop.name)
    shop.write("0002_note.sql", SECOND)
    with pytest.raises(SchemaOutdated) as caught:
        await db.require_schema(shop.name)
    assert (caught.value.have, caught.value.need) == (1, 2)
    await migrate(db, shop.name)
    for dialect in ("sqlite", "mysql"):
        (shop.folder / "schema" / dialect / "0002_note.sql").unlink()
    await db.require_schema(shop.name)


async def test_two_runners_at_once_apply_each_statement_once(database_url: str, shop: Shop) -> None:
    """The second waits, and then finds it done."""
    shop.write("0002_note.sql", SECOND)

    async def run() -> list[Applied]:
        async with Database(database_url) as db:
            return await migrate(db, shop.name)

    runs = await asyncio.gather(*(run() for _ in range(4)))
    assert sorted(len(applied) for applied in runs) == [0, 0, 0, 2]


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("crash_at", range(1, 24))
async def test_a_crash_anywhere_is_healed_by_running_again(
    db: Database, shop: Shop, monkeypatch: pytest.MonkeyPatch, crash_at: int, answered: bool
) -> None:
    """Cut off before or after any packet to the server; the rerun ends in the same state."""
    shop.write("0002_note.sql", SECOND)
    connect, sent = db._engine.connect, 0

    async def fragile(*, writable: bool) -> Any:
        connection: Any = await connect(writable=writable)
        for name in ("script", "execute"):
            monkeypatch.setattr(connection, name, cut(connection, getattr(connection, name)))
        return connection

    def cut(connection: Any, send: Any) -> Any:
        async def counted(*args: Any) -> Any:
            nonlocal sent
            sent += 1
            if sent < crash_at:
                return await send(*args)
            if sent == crash_at and answered:
                await send(*args)
            await connection.close()
            raise ConnectionLost()

        return counted

    await db._writers.close()
    monkeypatch.setattr(db._engine, "connect", fragile)
    try:
        await migrate(db, shop.name)
        crashed = False
    except ConnectionLost:
        crashed = True
    monkeypatch.setattr(db._engine, "connect", connect)
    await db._writers.close()
    again = await migrate(db, shop.name)
    assert crashed or not again
    assert await amounts(db) == [2]
    await db.require_schema(shop.name)
    rows = (await db.query("SELECT state, COUNT(*) FROM daydo_migration GROUP BY state")).rows
    assert rows == [("done", STATEMENTS)]
    if crash_at == 23:
        assert not crashed, "the range does not reach past the last packet any more"


async def test_a_refused_statement_can_be_corrected(db: Database, shop: Shop) -> None:
    """It leaves no trace that a rerun would take for a crash; what came before stays or goes as the engine allows."""
    await migrate(db, shop.name)
    shop.write("0002_bad.sql", "ALTER TABLE shop_order ADD COLUMN amount BIGINT;\n")
    for _ in range(2):
        with pytest.raises(StatementFailed):
            await migrate(db, shop.name)
    shop.write("0002_bad.sql", "ALTER TABLE shop_order ADD COLUMN other BIGINT;\n")
    assert await migrate(db, shop.name) == [Applied(shop.name, 2, "bad", 1)]


async def test_a_refused_change_of_data_leaves_no_part_of_itself(db: Database, shop: Shop) -> None:
    """It and its row in the table of migrations are one transaction."""
    shop.write("0002_bad.sql", "INSERT INTO shop_order (id, amount) VALUES ('a', 1), ('b', NULL);\n")
    with pytest.raises(NotNullViolation):
        await migrate(db, shop.name)
    await asyncio.create_task(db.execute("SELECT 1"))
    with pytest.raises((SchemaOutdated, DbError)):
        await db.require_schema(shop.name)


async def test_a_foreign_table_of_that_name_is_not_taken_for_ours(db: Database, shop: Shop) -> None:
    """Only a crash of our own makes 'exists already' acceptable."""
    await db.execute("CREATE TABLE shop_order (other INTEGER)")
    with pytest.raises(StatementFailed):
        await migrate(db, shop.name)


async def test_the_printed_script_leads_to_the_same_state(db: Database, shop: Shop) -> None:
    """A DBA runs it by hand, and the service starts."""
    script = sql(db.dialect.name, shop.name)
    for statement in script.replace("?", "x").split(";\n")[:-1]:
        await db.execute("\n".join(line for line in statement.splitlines() if not line.startswith("--")))
    await db.require_schema(shop.name)
    assert await migrate(db, shop.name) == []


async def test_a_clock_stamps_and_a_sink_hears(database_url: str, shop: Shop) -> None:
    """Without a clock the database's own time is taken."""
    heard = RecordedEvents()
    async with Database(database_url, clock=ManualClock(1_000_000), events=heard) as db:
        await migrate(db, shop.name)
        stamps = (await db.query("SELECT DISTINCT changed_at_us FROM daydo_migration")).rows
    assert (stamps, heard.names) == ([(1_000_000,)], ["db.migrated"])


@pytest.mark.parametrize("text", ["CREATE TABLE x (id INTEGER)", "SELECT 1; SELECT 2\n"])
async def test_a_file_without_its_last_semicolon_is_refused(db: Database, shop: Shop, text: str) -> None:
    """Half a statement is a lost merge, not a migration."""
    shop.write("0002_bad.sql", text)
    with pytest.raises(ValueError, match="0002_bad"):
        await migrate(db, shop.name)


async def test_packages_must_exist_and_have_a_schema(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what a name looks like."""
    with pytest.raises(ValueError, match="not installed"):
        await migrate(db, "daydo-quota")
    with pytest.raises(ValueError, match=r"0001_name\.sql"):
        await migrate(db, "asyncio")


@pytest.mark.dialect("sqlite")
def test_the_command_line_applies_and_prints(database_url: str, shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice is fine, and what it prints is SQL."""
    assert main(["migrate", database_url, shop.name]) == 0
    assert main(["migrate", database_url, shop.name]) == 0
    assert capsys.readouterr().out == f"{shop.name} 0001_orders: 3 statements\nup to date\nup to date\n"
    assert main(["migrate", "--sql", "sqlite", shop.name]) == 0
    sqlite3.connect(":memory:").executescript(capsys.readouterr().out)


@pytest.mark.dialect("sqlite")
def test_the_command_line_fails_with_a_sentence(
    database_url: str, shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong usage is status 2, a refusal by the database 1; neither shows a stack trace."""
    for arguments in ([database_url], ["postgres://x", shop.name], [database_url, "not_there"]):
        with pytest.raises(SystemExit) as caught:
            main(["migrate", *arguments])
        assert caught.value.code == 2
    shop.write("0002_bad.sql", "CREATE TABLE shop_order (id INTEGER);\n")
    assert main(["migrate", database_url, shop.name]) == 1
    assert "already exists" in capsys.readouterr().err


@pytest.mark.dialect("sqlite")
def test_it_runs_as_a_module(database_url: str) -> None:
    """As the message of SchemaOutdated says."""
    command = [sys.executable, "-m", "daydo_db", "migrate", database_url, "not_there"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "not_there is not installed" in done.stderr) == (2, True)

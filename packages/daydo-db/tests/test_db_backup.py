"""A backup counts once it has been restored; whatever goes wrong leaves none that looks good."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import daydo_db.backup.mysql
import daydo_db.mysql
from daydo_db import Database, DatabaseConfig, StatementFailed, UniqueViolation
from daydo_db.backup import (
    Backup,
    BackupBusy,
    BackupDamaged,
    BackupFailed,
    Backups,
    BackupsConfig,
    BackupToolMissing,
    BackupUnknown,
    RestoreFailed,
    RestoreRefused,
    kept,
)
from daydo_db.backup.folder import Folder
from daydo_db.backup.mysql import Tools, find_tools, option_file
from daydo_db.backup.work import Work
from daydo_db.config import parse_url
from daydo_db.testing import Backend, fresh_database
from daydo_kernel import Health, new_id
from daydo_kernel.testing import ManualClock, RecordedEvents

DAY_US = 86_400_000_000
TABLES = {
    "sqlite": (
        """CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT NOT NULL, raw BLOB,
        twice INTEGER GENERATED ALWAYS AS (LENGTH(name) * 2) STORED)""",
        "CREATE TABLE child (id INTEGER PRIMARY KEY, parent_id INTEGER REFERENCES parent (id), n INTEGER UNIQUE)",
        "CREATE TRIGGER counted AFTER INSERT ON child BEGIN UPDATE child SET n = NEW.id + 1000 WHERE id = NEW.id; END",
        "CREATE VIEW pairs AS SELECT p.name, c.n FROM parent p JOIN child c ON c.parent_id = p.id",
    ),
    "mysql": (
        """CREATE TABLE parent (id BIGINT PRIMARY KEY, name VARCHAR(80) NOT NULL, raw LONGBLOB,
        twice BIGINT GENERATED ALWAYS AS (CHAR_LENGTH(name) * 2) STORED)""",
        """CREATE TABLE child (id BIGINT PRIMARY KEY, parent_id BIGINT, n BIGINT, UNIQUE (n),
        CONSTRAINT known_parent FOREIGN KEY (parent_id) REFERENCES parent (id))""",
        "CREATE TRIGGER counted BEFORE INSERT ON child FOR EACH ROW BEGIN SET NEW.n = NEW.id + 1000; END",
        "CREATE VIEW pairs AS SELECT p.name, c.n FROM parent p JOIN child c ON c.parent_id = p.id",
        "CREATE PROCEDURE answer() BEGIN SELECT 42; END",
        # Were it to run in the scratch database, no backup of this one would ever be verified.
        "CREATE EVENT sweep ON SCHEDULE EVERY 1 SECOND DISABLE DO DELETE FROM child",
    ),
}
NAMES = ('it\'s \\ a "name";\n-- with\r\n lines', "汉字 é 😀", "")
EVERY_BYTE = bytes(range(256)) * 4


async def fill(db: Database, rows: int = 0) -> None:
    """One of everything that gets lost in backups, and ``rows`` big rows that cannot be packed."""
    for statement in TABLES[db.dialect.name]:
        await db.execute(statement)
    for number, name in enumerate(NAMES, 1):
        await db.execute("INSERT INTO parent (id, name, raw) VALUES (?, ?, ?)", (number, name, EVERY_BYTE))
        await db.execute("INSERT INTO child (id, parent_id) VALUES (?, ?)", (number, number))
    for number in range(rows):
        values = (100 + number, "big", os.urandom(50_000))
        await db.execute("INSERT INTO parent (id, name, raw) VALUES (?, ?, ?)", values)


async def content(db: Database) -> list[Any]:
    tables = ("SELECT * FROM parent ORDER BY id", "SELECT * FROM child ORDER BY id", "SELECT * FROM pairs ORDER BY n")
    return [(await db.query(sql)).rows for sql in tables]


@pytest.fixture
async def db(database_url: str) -> Any:
    async with Database(database_url) as db:
        if db.dialect.name == "mysql":
            server = db._engine.version
            try:
                find_tools(server)
            except BackupToolMissing as missing:
                if server.startswith("MySQL"):  # given by hand; a MariaDB brings its client with it
                    pytest.skip(str(missing))
                raise
        yield db


@pytest.fixture
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A second database on the same back end."""
    backend: Backend = request.node.callspec.params["database_url"]
    folder = tmp_path / "other"
    folder.mkdir()
    with fresh_database(backend, folder) as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "backups"


@pytest.fixture
def replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put a shell script in the place of a program; ``$REAL`` in it is the program itself."""
    programs = tmp_path / "programs"

    def replace(program: str, script: str) -> Path:
        real = shutil.which(program)
        assert real, program
        programs.mkdir(exist_ok=True)
        fake = programs / program
        version = '[ "$1" = --version ] && exec "$REAL" --version'
        fake.write_text(f"#!/bin/bash\nREAL={real}\nHERE={programs}\n{version}\n{script}\n")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        return programs

    return replace


async def programs_of(db: Database) -> tuple[str, str]:
    tools = find_tools(db._engine.version)
    return Path(tools.dump).name, Path(tools.client).name


def left_in(folder: Path) -> list[str]:
    """Everything but the lock."""
    return sorted(entry.name for entry in folder.iterdir() if entry.name != ".daydo-lock") if folder.exists() else []


@pytest.fixture(autouse=True)
def scratch_names(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The scratch databases of this test; other runs may have theirs on the same server."""
    names: set[str] = set()

    def recorded(prefix: str) -> str:
        name = new_id(prefix)
        names.add(name.lower())
        return name

    monkeypatch.setattr(daydo_db.backup.mysql, "new_id", recorded)
    return names


async def left_on(db: Database, names: set[str]) -> list[str]:
    if db.dialect.name == "sqlite":
        return []
    rows = await db.query("SELECT schema_name FROM information_schema.schemata")
    return [name for (name,) in rows.rows if name in names]


# -- what comes back ---------------------------------------------------------------------------------------------------


async def test_everything_comes_back(db, folder, empty_url):
    """Bytes, emoji, generated columns, foreign keys, views, triggers, routines and events are restored and work."""
    await fill(db)
    async with Backups(db, folder) as backups:
        backup = await backups.create()
        assert await backups.list() == [backup]
        assert backup.tables == {"child": 3, "parent": 3}
        assert backup.compared == ["child", "parent"]
        await backups.restore(backup.name, empty_url)
    async with Database(empty_url) as restored:
        assert await content(restored) == await content(db)
        await restored.execute("INSERT INTO child (id, parent_id) VALUES (9, 1)")
        assert (await restored.query("SELECT n FROM child WHERE id = 9")).rows == [(1009,)]
        with pytest.raises(UniqueViolation):
            await restored.execute("UPDATE child SET n = 1001 WHERE id = 2")
        if db.dialect.name == "mysql":
            assert (await restored.execute("CALL answer()")).rows == [(42,)]
            events = "SELECT event_name FROM information_schema.events WHERE event_schema = DATABASE()"
            assert (await restored.query(events)).rows == [("sweep",)]
            assert backup.verified_bytes < backup.content_bytes


async def test_a_backup_under_writes_is_one_moment(db, folder, empty_url):
    """Money that moves from table to table while the dump runs is all there in the copy; the writer never waits."""
    await fill(db, rows=20)  # in the table between the two
    for table in ("bank", "purse"):
        await db.execute(f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, coins BIGINT NOT NULL)")
        await db.execute(f"INSERT INTO {table} (id, coins) VALUES (1, 1000)")
    moved = threading.Event()

    async def move() -> None:
        while True:
            async with db.transaction() as tx:
                await tx.execute("UPDATE bank SET coins = coins - 1 WHERE id = 1")
                await tx.execute("UPDATE purse SET coins = coins + 1 WHERE id = 1")
            moved.set()

    def wait_for_a_move(progress) -> None:
        """The dump stands still after each piece until another coin has moved."""
        if progress.stage == "dump":
            moved.clear()
            assert moved.wait(10.0), "the writer waits for the backup"

    async with Backups(db, folder) as backups:
        writer = asyncio.create_task(move())
        backup = await backups.create(progress=wait_for_a_move)
        writer.cancel()
        await backups.restore(backup.name, empty_url)
    assert {"bank", "purse"}.isdisjoint(backup.compared) or db.dialect.name == "sqlite"
    async with Database(empty_url) as restored:
        coins = (await restored.query("SELECT (SELECT coins FROM bank) + (SELECT coins FROM purse)")).rows
    assert coins == [(2000,)]


async def test_files_are_private_and_say_what_is_in_them(db, folder):
    """A backup is all of everybody's data: nobody else reads it. The manifest tells versions, rows, checksum."""
    await fill(db)
    async with Backups(db, folder) as backups:
        backup = await backups.create()
    files = [folder / backup.name, *(folder / backup.name).iterdir()]
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {
        backup.name: 0o700,
        backup.file: 0o600,
        "manifest.json": 0o600,
    }
    manifest = json.loads((folder / backup.name / "manifest.json").read_text())
    assert manifest["tables"] == {"child": 3, "parent": 3}
    data = (folder / backup.name / backup.file).read_bytes()
    assert (manifest["size_bytes"], manifest["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


async def test_migrations_are_in_the_manifest(db, folder):
    """Which code fits a backup can be told without restoring it."""
    await db.execute(
        "CREATE TABLE daydo_migration (package VARCHAR(64), version INT, statement INT, state VARCHAR(8), "
        "PRIMARY KEY (package, version, statement))"
    )
    for version, state in ((1, "done"), (2, "done"), (3, "started")):
        await db.execute("INSERT INTO daydo_migration VALUES ('daydo_quota', ?, 1, ?)", (version, state))
    async with Backups(db, folder) as backups:
        assert (await backups.create()).migrations == {"daydo_quota": 2}


@pytest.mark.dialect("mysql")
async def test_the_password_is_on_no_command_line(db, folder, replaced):
    """Every process of the host can read command lines; the login goes through a private file, whatever is in it."""
    dump, _ = await programs_of(db)
    seen = replaced(dump, 'echo "$@" >> "$HERE/seen"; stat -c %a "${1#*=}" >> "$HERE/modes"; exec "$REAL" "$@"')
    password = "a\"b'c\\d#e;f %é\\n"
    user = new_id("u")[:30].lower()
    literal = password.replace("\\", "\\\\").replace("'", "''")
    await db.execute(f"CREATE USER '{user}'@'%' IDENTIFIED BY '{literal}'")
    try:
        await db.execute(f"GRANT ALL ON *.* TO '{user}'@'%'")
        server = f"{db.location.host}:{db.location.port}/{db.location.name}"
        url = f"mysql://{user}:{quote(password, safe='')}@{server}"
        async with Database(url) as other, Backups(other, folder) as backups:
            await fill(other)
            await backups.create()
        said = (seen / "seen").read_text()
        assert "--defaults-file=" in said
        assert 'a"b' not in said
        assert set((seen / "modes").read_text().split()) == {"600"}
    finally:
        await db.execute(f"DROP USER '{user}'@'%'")


@pytest.mark.dialect("mysql")
async def test_the_copy_is_verified_on_another_server(db, folder, empty_url, scratch_names):
    """With verify_url the production server makes no database: its user needs no right to, and holds no second copy."""
    await fill(db)
    user = new_id("u")[:30].lower()
    await db.execute(f"CREATE USER '{user}'@'%' IDENTIFIED BY 'secret'")
    try:
        await db.execute(f"GRANT SELECT, SHOW VIEW, TRIGGER, EVENT ON {db.location.name}.* TO '{user}'@'%'")
        url = f"mysql://{user}:secret@{db.location.host}:{db.location.port}/{db.location.name}"
        async with Database(url) as production:
            async with Backups(production, folder) as backups:
                with pytest.raises(StatementFailed):
                    await backups.create()
            async with Backups(production, folder, BackupsConfig(verify_url=empty_url)) as backups:
                backup = await backups.create()
    finally:
        await db.execute(f"DROP USER '{user}'@'%'")
    assert backup.tables == {"child": 3, "parent": 3}
    assert await left_on(db, scratch_names) == []


@pytest.mark.dialect("mysql")
async def test_a_server_of_another_version_verifies_nothing(db, folder, empty_url, monkeypatch):
    """Another version writes another dump of the same rows; it is told so, and not as a difference."""
    other = f"{db._engine.version.split()[0]} 99.0.0"
    async with Backups(db, folder, BackupsConfig(verify_url=empty_url)) as backups:
        monkeypatch.setattr(daydo_db.mysql, "_version", lambda _: other)
        with pytest.raises(BackupFailed, match=f"verify_url is {other}"):
            await backups.create()
    assert left_in(folder) == []


@pytest.mark.dialect("sqlite")
@pytest.mark.parametrize("strange", ["a#1", "b?x", "c%20d"])
async def test_a_strange_folder_is_not_another_database(db, tmp_path, strange):
    """SQLite opens URIs; a character with a meaning there would have an empty database verified instead."""
    await fill(db)
    target = tmp_path / strange / "copy.db"
    before = set(tmp_path.iterdir())
    async with Backups(db, tmp_path / strange) as backups:
        backup = await backups.create()
        assert backup.tables == {"child": 3, "parent": 3}
        for _ in range(2):  # the second finds a database there
            await backups.restore(backup.name, f"sqlite:///{quote(str(target))}", force=True)
    with contextlib.closing(sqlite3.connect(target)) as copy:
        assert copy.execute("SELECT COUNT(*) FROM parent").fetchall() == [(3,)]
    assert set(tmp_path.iterdir()) == {*before, tmp_path / strange}


@pytest.mark.dialect("mysql")
async def test_a_column_that_takes_its_collation_from_its_table_is_the_same_once_reloaded(db, folder, empty_url):
    """MySQL words it anew after a reload: `COLLATE x` becomes `CHARACTER SET y COLLATE x`; rows are not read so."""
    words = "\n  `a` text CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
    collation = "utf8mb4_0900_bin" if db._engine.version.startswith("MySQL") else "utf8mb4_bin"
    await db.execute(
        f"""CREATE TABLE plain (id VARCHAR(40) PRIMARY KEY, kind ENUM('a', 'it''s (b)', 'c COLLATE x') NOT NULL,
        `od``d` TEXT COMMENT 'x COLLATE utf8mb4_bin', short VARCHAR(3) GENERATED ALWAYS AS (LEFT(id, 3)) STORED,
        tight CHAR(4) CHARACTER SET ascii COLLATE ascii_bin
        ) DEFAULT CHARSET=utf8mb4 COLLATE={collation}"""
    )
    await db.execute("INSERT INTO plain (id, kind, `od``d`) VALUES ('1', 'it''s (b)', ?)", (words,))
    async with Backups(db, folder) as backups:
        backup = await backups.create()
        await backups.restore(backup.name, empty_url)
    async with Database(empty_url) as restored:
        assert (await restored.query("SELECT `od``d` FROM plain")).rows == [(words,)]


@pytest.mark.dialect("mysql")
@pytest.mark.parametrize(
    "script",
    [
        "sed 's/ COLLATE ascii_bin/ /'",
        "sed '/  .a. text/s/ CHARACTER SET utf8mb4 / /'",
        "sed 's/.short. varchar(3)/`short` varchar(4)/'",
    ],
    ids=["collation", "rows", "type"],
)
async def test_nothing_else_may_differ(db, folder, replaced, script):
    """Nor may rows that read like a definition."""
    await db.execute(
        "CREATE TABLE plain (id INT PRIMARY KEY, short VARCHAR(3), note TEXT, "
        "tight CHAR(4) CHARACTER SET ascii COLLATE ascii_bin)"
    )
    await db.execute("INSERT INTO plain (id, note) VALUES (1, '  `a` text CHARACTER SET utf8mb4 COLLATE utf8mb4_bin')")
    replaced((await programs_of(db))[1], f'{script} | "$REAL" "$@"')
    async with Backups(db, folder) as backups:
        with pytest.raises(BackupFailed, match=r"gives another dump|gives a dump of"):
            await backups.create()


# -- what is refused ---------------------------------------------------------------------------------------------------


async def test_an_empty_database_is_no_backup_and_evicts_none(db, folder, empty_url):
    """Wrong settings name another database, an empty one: with keep_last=1 the real backup would be gone."""
    await fill(db)
    config = BackupsConfig(keep_last=1, keep_days=0)
    async with Backups(db, folder, config) as backups:
        good = await backups.create()
    await db.execute("DROP VIEW pairs")
    for table in ("child", "parent"):
        await db.execute(f"DROP TABLE {table}")
    async with Backups(db, folder, config) as backups:
        with pytest.raises(BackupFailed, match="holds no table; is it the right database"):
            await backups.create()
        assert await backups.list() == [good]
    assert left_in(folder) == [good.name]


async def test_a_folder_is_of_one_database(db, folder, empty_url, tmp_path):
    """Another one's backup would count as the newest, and retention remove ours for it."""
    await fill(db)
    async with Backups(db, folder, BackupsConfig(keep_last=1, keep_days=0)) as backups:
        good = await backups.create()
        assert good.database == (db.location.name or Path(db.location.path).name)
    await refuses(f"sqlite:///{tmp_path / 'wrong.db'}", folder)
    if db.dialect.name == "mysql":
        await refuses(empty_url, folder)
    assert left_in(folder) == [good.name]


async def refuses(url: str, folder: Path) -> None:
    async with Database(url) as wrong, Backups(wrong, folder, BackupsConfig(keep_last=1, keep_days=0)) as backups:
        await fill(wrong)
        with pytest.raises(BackupFailed, match="holds backups of another database"):
            await backups.create()


@pytest.mark.dialect("sqlite")
async def test_a_database_may_move_and_keep_its_backups(db, folder, tmp_path):
    """Its folder, as a server, is where it is today."""
    await fill(db)
    async with Backups(db, folder) as backups:
        await backups.create()
        (tmp_path / "moved").mkdir()
        moved = tmp_path / "moved" / Path(db.location.path).name
        await backups.restore((await backups.list())[0].name, f"sqlite:///{moved}")
    async with Database(f"sqlite:///{moved}") as there, Backups(there, folder) as backups:
        await backups.create()
        assert len(await backups.list()) == 2


@pytest.mark.dialect("mysql")
async def test_nothing_is_dropped_under_a_service(db, folder, empty_url):
    """It would go on writing to the half-restored tables; who knows better says so."""
    await fill(db)
    async with Backups(db, folder) as backups:
        backup = await backups.create()
        async with Database(empty_url) as service:
            await service.execute("CREATE TABLE precious (id BIGINT)")
            with pytest.raises(RestoreRefused, match=r"is in use: .* by while_in_use=True"):
                await backups.restore(backup.name, empty_url, force=True)
            assert (await service.query("SELECT COUNT(*) FROM precious")).rows == [(0,)]
            await backups.restore(backup.name, empty_url, force=True, while_in_use=True)
        await backups.restore(backup.name, empty_url, force=True)


async def test_a_target_that_holds_something_is_left_alone(db, folder, empty_url):
    """Without force nothing is lost; with it the target becomes the backup, and what was there is gone."""
    await fill(db)
    async with Backups(db, folder) as backups:
        backup = await backups.create()
        async with Database(empty_url) as target:
            await target.execute("CREATE TABLE precious (id BIGINT)")
        with pytest.raises(RestoreRefused):
            await backups.restore(backup.name, empty_url)
        async with Database(empty_url) as target:
            assert (await target.query("SELECT COUNT(*) FROM precious")).rows == [(0,)]
        await backups.restore(backup.name, empty_url, force=True)
    async with Database(empty_url) as target:
        assert await content(target) == await content(db)
        with pytest.raises(StatementFailed):
            await target.query("SELECT COUNT(*) FROM precious")


@pytest.mark.parametrize("damage", ["shorter", "longer", "flipped", "gone"])
@pytest.mark.dialect("sqlite")
async def test_a_damaged_file_is_found_before_the_target_is_touched(db, folder, empty_url, damage):
    """Length and checksum are compared first."""
    await fill(db)
    async with Backups(db, folder) as backups:
        backup = await backups.create()
        async with Database(empty_url) as target:
            await target.execute("CREATE TABLE precious (id BIGINT)")
        path = folder / backup.name / backup.file
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        path.unlink()
        if damage != "gone":
            path.write_bytes({"shorter": whole[:-1], "longer": whole + b"x", "flipped": flipped}[damage])
        with pytest.raises(BackupDamaged):
            await backups.restore(backup.name, empty_url, force=True)
    async with Database(empty_url) as target:
        assert (await target.query("SELECT COUNT(*) FROM precious")).rows == [(0,)]


@pytest.mark.dialect("sqlite")
@pytest.mark.parametrize("name", ["daydo-20260101T000000Z", "../daydo-20260101T000000Z", "", "daydo"])
async def test_an_unknown_name_is_no_path(db, folder, name):
    """Names of backups are looked up, not joined."""
    async with Backups(db, folder) as backups:
        with pytest.raises(BackupUnknown):
            await backups.restore(name, "sqlite:///x.db")


@pytest.mark.dialect("mysql")
async def test_a_backup_goes_back_to_its_own_kind(db, folder, tmp_path):
    """SQL of one make is not loaded into another."""
    await fill(db)
    async with Backups(db, folder) as backups:
        backup = await backups.create()
        with pytest.raises(RestoreRefused, match="the target is sqlite"):
            await backups.restore(backup.name, f"sqlite:///{tmp_path / 'x.db'}")


@pytest.mark.dialect("mysql")
async def test_a_table_that_no_snapshot_holds_is_named(db, folder):
    """MyISAM rows in a dump without locks are of no one moment."""
    await db.execute("CREATE TABLE old_one (id BIGINT) ENGINE=MyISAM")
    async with Backups(db, folder) as backups:
        with pytest.raises(BackupFailed, match="old_one is a table of MyISAM"):
            await backups.create()


@pytest.mark.parametrize(
    ("server", "said"), [("MySQL 9.7.0", "MySQL's own mysqldump"), ("MariaDB 10.11.6", "mariadb-dump")]
)
def test_the_other_makes_tool_is_not_taken(tmp_path, monkeypatch, server, said):
    """MariaDB's dump of a MySQL table with a generated column exits with 0 and cannot be restored."""
    other = "MariaDB 10.11" if server.startswith("MySQL") else "MySQL 9.7"
    for name in ("mysqldump", "mysql"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho {name} of {other}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupToolMissing, match=said) as missing:
        find_tools(server)
    assert missing.value.package.startswith(
        "mysql-community-client" if server.startswith("MySQL") else "mariadb-client"
    )


@pytest.mark.parametrize("script", ["#!/bin/sh\nexec sleep 60\n", "no program"])
def test_a_program_that_does_not_say_whose_it_is_fails_in_words(tmp_path, monkeypatch, script):
    """It hangs, or cannot be run at all."""
    (tmp_path / "mysqldump").write_text(script)
    (tmp_path / "mysqldump").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(daydo_db.backup.mysql, "_VERSION_S", 0.01)
    with pytest.raises(BackupFailed, match="mysqldump --version: "):
        find_tools("MySQL 9.7.0")


def test_tls_is_asked_of_the_programs_as_of_the_driver():
    """With tls=True neither program may fall back to plaintext, or take any certificate."""
    location = parse_url("mysql://u:p@db:3306/shop")
    config = DatabaseConfig(tls=True, tls_ca_file="/ca.pem")
    for mariadb, wanted in ((True, "ssl-verify-server-cert"), (False, "ssl-mode=VERIFY_IDENTITY")):
        with option_file(location, config, Tools("", "", mariadb)) as path:
            lines = Path(path).read_text().splitlines()
        assert wanted in lines
        assert 'ssl-ca="/ca.pem"' in lines


# -- what goes wrong ---------------------------------------------------------------------------------------------------

DIES = '"$REAL" "$@" | head -c 3000; kill -9 $$'
LIES = """exec "$REAL" "$@" > >(sed 's/😀/?/')"""
SAYS = """echo "ERROR 1062 (23000) at line 7: Duplicate entry 'ann' for key 'email'" >&2; exit 1"""
LOSES = """sed "/^INSERT INTO .child/,/;$/d" | "$REAL" "$@" """


@pytest.mark.dialect("mysql")
@pytest.mark.parametrize(
    ("program", "script", "said"),
    [
        (0, DIES, "ended with -9"),
        (0, "echo some rows; exit 0", "no backup|ended with|another dump|other rows|dump of"),
        (0, LIES.replace("exec ", "").replace(" > >(", " | ").rstrip(")"), "parent has other rows once restored"),
        (1, LOSES, "gives another dump|gives a dump of"),
        (1, """sed 's/NEW.id + 1000/NEW.id + 1001/' | "$REAL" "$@" """, "the first difference lies within"),
        (1, "exit 0", "gives another dump|gives a dump of|ended with"),
        (1, SAYS, r"ERROR 1062 \(23000\) at line 7: Duplicate entry … for key 'email'$"),
    ],
    ids=[
        "dump dies",
        "dump is no dump",
        "dump lies",
        "client loses rows",
        "client alters",
        "client does nothing",
        "client fails",
    ],
)
async def test_a_tool_that_fails_or_lies_leaves_no_backup(db, folder, replaced, program, script, said, scratch_names):
    """Not its exit status decides, but the restored copy; and no scratch database stays."""
    await fill(db)
    replaced((await programs_of(db))[program], script)
    async with Backups(db, folder) as backups:
        with pytest.raises(BackupFailed, match=said):
            await backups.create()
        assert await backups.list() == []
    assert left_in(folder) == []
    assert await left_on(db, scratch_names) == []


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_leaves_no_backup_and_keeps_the_last(db, folder, scratch_names):
    """The file cannot grow any more: the new backup fails in words, the old one stays."""
    await fill(db)
    async with Backups(db, folder, BackupsConfig(keep_last=1, keep_days=0)) as backups:
        good = await backups.create()
        for number in range(10):
            values = (50 + number, "big", os.urandom(50_000))
            await db.execute("INSERT INTO parent (id, name, raw) VALUES (?, ?, ?)", values)
        with files_of_at_most(100_000), pytest.raises(BackupFailed):
            await backups.create()
        assert await backups.list() == [good]
    assert left_in(folder) == [good.name]
    assert await left_on(db, scratch_names) == []


def give_up(task: asyncio.Task[Any]) -> None:
    """Cancel ``task`` from the thread that works for it, which goes on when it has heard: else small work were done."""
    heard = threading.Event()
    loop = task.get_loop()
    loop.call_soon_threadsafe(task.cancel)
    loop.call_soon_threadsafe(loop.call_later, 0.05, heard.set)
    heard.wait(10)


@pytest.mark.parametrize("stage", ["dump", "verify"])
async def test_a_cancelled_backup_leaves_nothing(db, folder, stage, scratch_names):
    """Neither files, nor a scratch database, nor a program that goes on; and the next one works."""
    await fill(db, rows=8)
    async with Backups(db, folder) as backups:

        def cancel(progress):
            if progress.stage == stage:
                give_up(task)

        task = asyncio.create_task(backups.create(progress=cancel))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert left_in(folder) == []
        assert await left_on(db, scratch_names) == []
        await backups.create()


async def test_a_backup_that_takes_too_long_is_given_up(db, folder):
    """timeout_s bounds it, programs and all."""
    await fill(db, rows=5)
    async with Backups(db, folder, BackupsConfig(timeout_s=0.001)) as backups:
        with pytest.raises(BackupFailed, match=r"timeout_s=0\.001"):
            await backups.create()
    assert left_in(folder) == []


async def test_what_a_killed_backup_left_is_swept_up_by_the_next(db, folder, scratch_names):
    """SIGKILL runs no clean-up: the half-made folder and the scratch database go with the next backup."""
    scratch = new_id("daydo_scratch").lower()
    scratch_names.add(scratch)
    half = folder / ".daydo-20260101T000000Z.partial"
    half.mkdir(parents=True)
    (half / "daydo.sql.gz").write_bytes(b"half")
    await fill(db)
    (folder / ".daydo-lock").write_text(scratch)
    if db.dialect.name == "mysql":
        await db.execute(f"CREATE DATABASE {scratch}")
    async with Backups(db, folder) as backups:
        assert await backups.list() == []
        backup = await backups.create()
    assert left_in(folder) == [backup.name]
    assert await left_on(db, scratch_names) == []


@pytest.mark.dialect("mysql")
async def test_an_interrupted_restore_is_not_taken_for_a_whole_one(db, folder, empty_url):
    """MySQL keeps a part of it; so the next restore refuses, and with force begins afresh."""
    await fill(db, rows=16)
    async with Backups(db, folder) as backups:
        backup = await backups.create()

        def cancel(progress):
            if progress.done_bytes > progress.total_bytes // 2:
                give_up(task)

        task = asyncio.create_task(backups.restore(backup.name, empty_url, progress=cancel))
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(RestoreRefused):
            await backups.restore(backup.name, empty_url)
        await backups.restore(backup.name, empty_url, force=True)
    async with Database(empty_url) as target:
        assert await content(target) == await content(db)


@pytest.mark.dialect("mysql")
async def test_a_restore_that_loses_rows_says_so(db, folder, empty_url, replaced):
    """The client ends with 0 and has not loaded everything: the rows are counted."""
    await fill(db)
    async with Backups(db, folder) as backups:
        backup = await backups.create()
        replaced((await programs_of(db))[1], LOSES)
        with pytest.raises(RestoreFailed, match="child has not the rows it should"):
            await backups.restore(backup.name, empty_url)


@pytest.mark.dialect("sqlite")
async def test_an_interrupted_restore_keeps_the_old_file(db, folder, tmp_path, empty_url):
    """SQLite's target is the old database until it is the whole new one; a stale log beside it is not applied."""
    await fill(db, rows=16)
    target = Path(parse_url(empty_url).path)
    async with Database(empty_url) as old:
        await old.execute("CREATE TABLE precious (id BIGINT)")
    async with Backups(db, folder) as backups:
        backup = await backups.create()

        def cancel(progress):
            give_up(task)

        task = asyncio.create_task(backups.restore(backup.name, empty_url, force=True, progress=cancel))
        with pytest.raises(asyncio.CancelledError):
            await task
        async with Database(empty_url) as old:
            assert (await old.query("SELECT COUNT(*) FROM precious")).rows == [(0,)]
        target.with_name(target.name + "-wal").write_bytes(b"the old database's")
        await backups.restore(backup.name, empty_url, force=True)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    async with Database(empty_url) as restored:
        assert await content(restored) == await content(db)


def killed_with_rows_in_its_log(target: Path) -> None:
    """A service that committed a hundred rows to ``target`` and was killed before they left the log."""
    script = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE precious (id INTEGER)")
db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
db.executemany("INSERT INTO precious VALUES (?)", [(n,) for n in range(100)])
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script, str(target)], check=False).returncode == 9
    assert target.with_name(target.name + "-wal").stat().st_size


@pytest.mark.dialect("sqlite")
async def test_a_restore_that_fails_at_the_end_keeps_every_committed_row(db, folder, tmp_path, monkeypatch):
    """Also those that were still in the log beside the file."""
    await fill(db)
    target = tmp_path / "target.db"
    killed_with_rows_in_its_log(target)
    rename = Path.rename

    def refused(path: Path, to: Path) -> Path:
        if to == target:
            raise OSError(1, "Operation not permitted")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refused)
    async with Backups(db, folder) as backups:
        backup = await backups.create()
        with pytest.raises(RestoreFailed, match="not permitted"):
            await backups.restore(backup.name, f"sqlite:///{target}", force=True)
    with contextlib.closing(sqlite3.connect(target)) as old:
        assert old.execute("SELECT COUNT(*) FROM precious").fetchall() == [(100,)]


@pytest.mark.dialect("sqlite")
async def test_a_database_in_use_is_not_replaced(db, folder, empty_url):
    """A service that goes on would write to a file that nobody finds any more; idle, too, it has it open."""
    await fill(db)
    async with Backups(db, folder) as backups:
        backup = await backups.create()
        async with Database(empty_url) as service:
            await service.execute("CREATE TABLE precious (id BIGINT)")
            with pytest.raises(RestoreRefused, match="is open in another program"):
                await backups.restore(backup.name, empty_url, force=True)
            await service.execute("INSERT INTO precious (id) VALUES (1)")
            assert (await service.query("SELECT COUNT(*) FROM precious")).rows == [(1,)]
        await backups.restore(backup.name, empty_url, force=True)
    async with Database(empty_url) as restored:
        assert await content(restored) == await content(db)


@pytest.mark.dialect("sqlite")
async def test_nobody_writes_to_a_database_that_is_being_replaced(db, folder, empty_url):
    """What a service that is started too early wrote to the old file would be lost."""
    await fill(db)
    target = parse_url(empty_url).path
    said: list[str] = []

    def write(progress) -> None:
        if progress.stage == "restore":
            with contextlib.closing(sqlite3.connect(target, timeout=0)) as service:
                with pytest.raises(sqlite3.OperationalError) as refused:
                    service.execute("INSERT INTO precious VALUES (1)")
                said.append(str(refused.value))

    async with Backups(db, folder) as backups:
        backup = await backups.create()
        async with Database(empty_url) as old:
            await old.execute("CREATE TABLE precious (id BIGINT)")
        await backups.restore(backup.name, empty_url, force=True, progress=write)
    assert set(said) == {"database is locked"}


@pytest.mark.dialect("sqlite")
async def test_what_sqlite_cannot_read_is_not_thrown_away(db, folder, tmp_path):
    """Somebody may still get rows out of it and its log; it is moved away by hand."""
    await fill(db)
    target = tmp_path / "target.db"
    files = {target: b"no database" * 1000, target.with_name("target.db-wal"): b"its log"}
    for path, data in files.items():
        path.write_bytes(data)
    async with Backups(db, folder) as backups:
        backup = await backups.create()
        with pytest.raises(RestoreRefused, match="move it away"):
            await backups.restore(backup.name, f"sqlite:///{target}", force=True)
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.dialect("sqlite")
@pytest.mark.parametrize("log", ["-wal", "-journal"])
async def test_a_log_without_its_database_is_not_applied_to_the_new_one(db, folder, tmp_path, log):
    """The file was removed by hand and its log was not."""
    await fill(db)
    target = tmp_path / "target.db"
    target.with_name(target.name + log).write_bytes(b"the old database's")
    async with Backups(db, folder) as backups:
        backup = await backups.create()
        await backups.restore(backup.name, f"sqlite:///{target}")
    assert [path.name for path in tmp_path.glob("target.db*")] == ["target.db"]


@pytest.mark.dialect("sqlite")
async def test_a_linked_database_is_replaced_behind_its_link(db, folder, tmp_path):
    """The link goes on to lead to the disk that the operator chose."""
    await fill(db)
    (tmp_path / "disk").mkdir()
    link, target = tmp_path / "linked.db", tmp_path / "disk" / "target.db"
    link.symlink_to(target)
    async with Backups(db, folder) as backups:
        backup = await backups.create()
        await backups.restore(backup.name, f"sqlite:///{link}")
    assert link.is_symlink()
    assert target.is_file()


async def test_retention_takes_nothing_out_of_a_running_restore(db, folder, empty_url, monkeypatch):
    """The backup goes between the check and the first row, the target is dropped already: all of it is restored."""
    await fill(db)
    check = Folder.check

    def checked_then_removed(self: Folder, backup: Backup, *data: Any) -> None:
        check(self, backup, *data)
        shutil.rmtree(folder / backup.name)

    async with Backups(db, folder) as backups:
        backup = await backups.create()
        async with Database(empty_url) as target:
            await target.execute("CREATE TABLE precious (id BIGINT)")
        monkeypatch.setattr(Folder, "check", checked_then_removed)
        await backups.restore(backup.name, empty_url, force=True)
    async with Database(empty_url) as target:
        assert await content(target) == await content(db)


@pytest.mark.dialect("sqlite")
async def test_a_backup_that_is_not_safely_on_disk_is_none(db, folder, monkeypatch):
    """ "Nothing is kept" holds to the last step, when its name is there already."""
    await fill(db)
    sync = daydo_db.backup.folder.sync

    def broken(path: Path) -> None:
        if path == folder:
            raise OSError(5, "Input/output error")
        sync(path)

    async with Backups(db, folder) as backups:
        monkeypatch.setattr(daydo_db.backup.folder, "sync", broken)
        with pytest.raises(BackupFailed, match="Input/output error"):
            await backups.create()
        assert await backups.list() == []
    assert left_in(folder) == []


@pytest.mark.dialect("sqlite")
async def test_one_backup_at_a_time(db, folder):
    """A second one in the same folder is refused at once; the first is not disturbed."""
    await fill(db)
    async with Backups(db, folder) as first, Backups(db, folder) as second:
        both = await asyncio.gather(first.create(), second.create(), return_exceptions=True)
    assert {type(result) for result in both} == {Backup, BackupBusy}


# -- what stays --------------------------------------------------------------------------------------------------------

moments = st.lists(st.integers(min_value=0, max_value=40 * DAY_US), max_size=60, unique=True)


@given(moments=moments, last=st.integers(1, 10), days=st.integers(0, 20))
def test_the_newest_and_one_a_day_stay(moments, last, days):
    """The newest ones, the newest of each of the days up to the newest's, and nothing else."""
    stays = kept(moments, last=last, days=days)
    assert stays >= set(sorted(moments)[-last:])
    if moments:
        newest_day = max(moments) // DAY_US
        for day in {moment // DAY_US for moment in moments}:
            of_day = [moment for moment in moments if moment // DAY_US == day]
            assert (max(of_day) in stays) >= (newest_day - day < days)
    assert len(stays) <= last + days


@given(moments=moments, last=st.integers(1, 10), days=st.integers(0, 20))
def test_clearing_up_after_each_backup_or_once_at_the_end_keeps_the_same(moments, last, days):
    """A missed clean-up is made up for; an extra one takes nothing more."""
    left: set[int] = set()
    for moment in sorted(moments):
        left = kept({*left, moment}, last=last, days=days)
    assert left == kept(moments, last=last, days=days)


@pytest.mark.dialect("sqlite")
async def test_old_backups_go_and_what_is_not_ours_stays(db, folder):
    """Only finished backups of ours are counted, and only they are removed."""
    clock = ManualClock()
    await fill(db)
    strange = [folder / "daydo-notes", folder / "daydo-20200101T000000Z", folder / "dump.sql.gz"]
    for path in strange:
        path.mkdir(parents=True)
    config = BackupsConfig(keep_last=2, keep_days=3)
    made = []
    async with Backups(db, folder, config, clock=clock) as backups:
        for _ in range(10):
            made.append((await backups.create()).name)
            clock.advance(43_200.0)
        names = [backup.name for backup in await backups.list()]
    assert names[-2:] == made[-2:]
    assert len(names) == 3  # the two newest are of two days; one more for the third
    assert set(left_in(folder)) == {*names, *(path.name for path in strange)}


@pytest.mark.dialect("sqlite")
async def test_what_cannot_be_removed_stops_no_backup(db, folder, tmp_path, caplog, monkeypatch):
    """An old one, or what a killed backup left: it is told in the log, and the others go."""
    clock = ManualClock()
    await fill(db)
    (folder / ".daydo-20200101T000000Z.partial").mkdir(parents=True)
    remove = shutil.rmtree
    stuck: list[str] = [".daydo-20200101T000000Z.partial"]

    def refused(path: Path, **options: Any) -> None:
        if Path(path).name in stuck:
            raise OSError(1, "Operation not permitted")
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", refused)
    async with Backups(db, folder, BackupsConfig(keep_last=1, keep_days=0), clock=clock) as backups:
        first = await backups.create()
        stuck.append(f".{first.name}.partial")
        for _ in range(3):
            clock.advance(60.0)
            last = await backups.create()
        assert await backups.list() == [last]
    assert left_in(folder) == sorted([*stuck, last.name])
    assert f"{first.name} in {folder} could not be removed" in caplog.text
    assert f"{stuck[0]} in {folder}, of an earlier backup, could not be removed" in caplog.text


@pytest.mark.dialect("sqlite")
async def test_a_folder_that_cannot_be_read_after_a_backup_is_no_failure(db, folder, caplog, monkeypatch):
    """The backup is there; only the old ones stay for now."""
    await fill(db)
    readable = Folder.backups
    async with Backups(db, folder) as backups:

        def unreadable(self: Folder) -> list[Backup]:
            if found := readable(self):
                raise OSError(5, "Input/output error")
            return found

        with monkeypatch.context() as broken:
            broken.setattr(Folder, "backups", unreadable)
            backup = await backups.create()
        assert await backups.list() == [backup]
    assert "old backups were not looked for" in caplog.text


@pytest.mark.dialect("sqlite")
async def test_a_link_is_no_backup_and_not_followed(db, folder, tmp_path, caplog):
    """An operator moved one to another disk and left a link: it is not listed, not removed, and in nobody's way."""
    clock = ManualClock()
    await fill(db)
    elsewhere = tmp_path / "elsewhere"
    async with Backups(db, folder, BackupsConfig(keep_last=1, keep_days=0), clock=clock) as backups:
        moved = await backups.create()
        (folder / moved.name).rename(elsewhere)
        links = [folder / moved.name, folder / ".daydo-20200101T000000Z.partial"]
        for link in links:
            link.symlink_to(elsewhere)
        again = await backups.create()  # of the same second: the name is taken
        assert again.name == f"{moved.name}-2"
        clock.advance(60.0)
        last = await backups.create()
        assert await backups.list() == [last]
        with pytest.raises(BackupUnknown):
            await backups.restore(moved.name, f"sqlite:///{tmp_path / 'x.db'}")
    assert all(link.is_symlink() for link in links)
    assert sorted(path.name for path in elsewhere.iterdir()) == [moved.file, "manifest.json"]
    assert ".daydo-20200101T000000Z.partial" in caplog.text


@pytest.mark.dialect("sqlite")
async def test_a_clock_that_went_back_costs_no_backup(db, folder, caplog):
    """The one just made stays; one of a later moment is told in the log and moves no window of days."""
    clock = ManualClock(400 * DAY_US)
    await fill(db)
    async with Backups(db, folder, BackupsConfig(keep_last=1, keep_days=3), clock=clock) as backups:
        clock.advance(100 * 86_400.0)
        ahead = await backups.create()
        clock.advance(-100 * 86_400.0)
        made = []
        for _ in range(5):
            made.append(await backups.create())
            assert await backups.list() == [*made[-3:], ahead]
            assert gauges(backups)["daydo_db_backup_age_seconds"] == 0.0
            clock.advance(86_400.0)
        assert f"{ahead.name} in {folder}: of a later moment than {made[-1].name}" in caplog.text
    async with Backups(db, folder, clock=clock) as looking:
        assert gauges(looking)["daydo_db_backup_age_seconds"] == 86_400.0


@pytest.mark.dialect("sqlite")
async def test_the_newest_is_never_one_of_the_future(db, folder):
    """It was made while a clock was wrong, and may be the oldest of all."""
    clock = ManualClock()
    await fill(db)
    async with Backups(db, folder, clock=clock) as backups:
        assert await backups.newest() is None
        clock.advance(86_400.0)
        ahead = await backups.create()
        clock.advance(-86_400.0)
        assert await backups.newest() is None
        now = await backups.create()
        assert await backups.newest() == now
        clock.advance(86_401.0)
        assert await backups.newest() == ahead


# -- what is told ------------------------------------------------------------------------------------------------------


@pytest.mark.dialect("sqlite")
async def test_a_broken_manifest_is_told(db, folder, caplog):
    """Whoever lists or restores the newest hears that one is left out, and which."""
    await fill(db)
    async with Backups(db, folder) as backups:
        good, bad = await backups.create(), await backups.create()
        (folder / bad.name / "manifest.json").write_text("{}")
        assert await backups.newest() == good
    assert f"{bad.name} in {folder} is left out" in caplog.text
    assert good.name not in caplog.text.replace(bad.name, "")


@pytest.mark.dialect("sqlite")
async def test_a_folder_that_is_a_file_is_called_one(db, tmp_path):
    """Not an unknown backup, not "File exists"."""
    await fill(db)
    file = tmp_path / "file"
    file.write_text("")
    async with Backups(db, file) as backups:
        with pytest.raises(NotADirectoryError, match="it is a file"):
            await backups.list()
        with pytest.raises(NotADirectoryError, match="it is a file"):
            await backups.restore("daydo-20260101T000000Z", "sqlite:///x.db")
        with pytest.raises(BackupFailed, match="it is a file"):
            await backups.create()


def gauges(backups: Backups) -> dict[str, float]:
    return {family.name: family.cells[0].values[0] for family in backups.metrics.snapshot()}


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not reached():  # noqa: ASYNC110 - a thread reads the folder
            await asyncio.sleep(0.01)


@pytest.mark.dialect("sqlite")
async def test_the_age_is_that_of_the_newest_and_huge_without_one(db, folder):
    """A folder without a backup is too old for every alert; another process's backup is seen at the next look."""
    clock = ManualClock()
    await fill(db)
    config = BackupsConfig(look_every_s=0.01)
    async with Backups(db, folder, config, clock=clock) as watching, Backups(db, folder, clock=clock) as making:
        assert gauges(watching)["daydo_db_backup_age_seconds"] > 10 * 365 * 86_400
        backup = await making.create()
        clock.advance(90.0)
        assert gauges(making)["daydo_db_backup_age_seconds"] == 90.0
        await until(lambda: gauges(watching)["daydo_db_backup_age_seconds"] == 90.0)
        assert gauges(watching)["daydo_db_backup_size_bytes"] == backup.size_bytes
        (folder / backup.name / "manifest.json").unlink()
        await until(lambda: gauges(watching)["daydo_db_backup_age_seconds"] != 90.0)


@pytest.mark.dialect("sqlite")
async def test_health_is_that_of_the_newest_backup(db, folder):
    """Degraded without any, and when the newest is too old; the service goes on serving."""
    clock = ManualClock()
    await fill(db)
    backups = Backups(db, folder, BackupsConfig(max_age_s=3600.0), clock=clock)
    assert (await backups.health()).status == "down"
    async with backups:
        assert await backups.health() == Health(status="degraded", detail={"newest": "none"})
        backup = await backups.create()
        clock.advance(3600.0)
        assert await backups.health() == Health(status="ok", detail={"newest": backup.name, "age_s": 3600.0})
        clock.advance(1.0)
        assert (await backups.health()).status == "degraded"


@pytest.mark.dialect("sqlite")
async def test_a_backup_is_an_event(db, folder):
    """Whoever keeps an audit log hears of it."""
    heard = RecordedEvents()
    await fill(db)
    async with Backups(db, folder, events=heard) as backups:
        backup = await backups.create()
    (event,) = heard.events
    assert (event.name, event.data["name"], event.data["rows"]) == ("db.backed_up", backup.name, 6)


async def test_a_private_temporary_database_cannot_be_backed_up(folder):
    """There is no file that anybody could name."""
    async with Database("sqlite://") as db, Backups(db, folder) as backups:
        with pytest.raises(BackupFailed, match="name a file"):
            await backups.create()


async def test_work_that_is_given_up_twice_is_waited_for():
    """A second cancellation must not leave the thread alone with files that are being cleaned up."""
    begun, end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def function() -> None:
        loop.call_soon_threadsafe(begun.set)
        end.wait(30)

    task = asyncio.create_task(Work(None).run(function))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
    end.set()
    with pytest.raises(asyncio.CancelledError):
        await task

"""A backup counts once it has been restored; whatever goes wrong leaves none that looks good."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import daydo_db.backup.mysql
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
from daydo_db.backup.mysql import Tools, find_tools, option_file, server_of
from daydo_db.config import parse_url
from daydo_db.testing import Backend, fresh_database
from daydo_kernel import new_id
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
            server = await server_of(db)
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
    tools = find_tools(await server_of(db))
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
    """Money that moves from row to row while the dump runs is all there in the copy, and the writer never waits."""
    await fill(db, rows=20)
    await db.execute("CREATE TABLE purse (id BIGINT PRIMARY KEY, coins BIGINT NOT NULL)")
    for number in range(10):
        await db.execute("INSERT INTO purse (id, coins) VALUES (?, 100)", (number,))
    moved = 0

    async def move() -> None:
        nonlocal moved
        while True:
            async with db.transaction() as tx:
                await tx.execute("UPDATE purse SET coins = coins - 1 WHERE id = ?", (moved % 10,))
                await tx.execute("UPDATE purse SET coins = coins + 1 WHERE id = ?", ((moved + 7) % 10,))
                await tx.execute("INSERT INTO purse (id, coins) VALUES (?, 0)", (1000 + moved,))
            moved += 1

    during = []
    async with Backups(db, folder) as backups:
        writer = asyncio.create_task(move())
        backup = await backups.create(progress=lambda progress: during.append((progress.stage, moved)))
        writer.cancel()
        await backups.restore(backup.name, empty_url)
    assert during[-1][1] > during[0][1], "nothing was written meanwhile; this test shows nothing"
    async with Database(empty_url) as restored:
        coins, rows = (await restored.query("SELECT SUM(coins), COUNT(*) FROM purse")).rows[0]
    assert (coins, rows) == (1000, backup.tables["purse"])


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


# -- what is refused ---------------------------------------------------------------------------------------------------


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
    with pytest.raises(BackupToolMissing, match=said):
        find_tools(server)


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
        (1, "echo 'ERROR 1064 (42000): You have an error' >&2; exit 1", "ERROR 1064"),
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


@pytest.mark.parametrize("stage", ["dump", "verify"])
async def test_a_cancelled_backup_leaves_nothing(db, folder, stage, scratch_names):
    """Neither files, nor a scratch database, nor a program that goes on; and the next one works."""
    await fill(db, rows=20)
    loop = asyncio.get_running_loop()

    async with Backups(db, folder) as backups:

        def cancel(progress):
            if progress.stage == stage:
                loop.call_soon_threadsafe(task.cancel)

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
    await fill(db, rows=40)
    loop = asyncio.get_running_loop()
    async with Backups(db, folder) as backups:
        backup = await backups.create()

        def cancel(progress):
            if progress.done_bytes > progress.total_bytes // 2:
                loop.call_soon_threadsafe(task.cancel)

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
    await fill(db, rows=40)
    target = Path(parse_url(empty_url).path)
    async with Database(empty_url) as old:
        await old.execute("CREATE TABLE precious (id BIGINT)")
    loop = asyncio.get_running_loop()
    async with Backups(db, folder) as backups:
        backup = await backups.create()

        def cancel(progress):
            loop.call_soon_threadsafe(task.cancel)

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


# -- what is told ------------------------------------------------------------------------------------------------------


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

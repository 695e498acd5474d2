"""``daydo db``: what it says, what it exits with, and what it leaves."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx
import pytest

import reference_app.explain
from reference_app.cli import main
from reference_app.server import ServiceProcess

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def daydo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in an empty folder with nothing but these settings; status, output, errors."""
    for name in [name for name in os.environ if name.startswith("DAYDO_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAYDO_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["db", *arguments])
        return status, *capsys.readouterr()

    return run


def tables(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT name FROM sqlite_master ORDER BY name")]


def test_status_asks_for_up_and_is_satisfied_by_it(daydo):
    """A script can tell by the exit status; the lines are for `cut`."""
    before = daydo("status")
    assert before[0] == 1
    assert "daydo_quota\t0001_ledger\tpending\t0/" in before[1]
    up = daydo("up")
    assert up[0] == 0
    assert up[1].splitlines()[-1] == "up to date"
    after = daydo("status")
    assert after[0] == 0
    assert {line.split("\t")[2] for line in after[1].splitlines()} == {"applied"}
    assert daydo("up") == (0, "up to date\n", "")


def test_a_backup_is_made_listed_and_restored(daydo, tmp_path):
    """The configured database is refused as a target while it holds something; another one becomes a copy."""
    for command in (("backups",), ("restore", "newest")):
        status, _, said = daydo(*command)
        assert (status, f"there is no backup in {tmp_path / 'data' / 'backups'}" in said) == (1, True)
    daydo("up")
    made = daydo("backup")
    assert made[0] == 0, made[2]
    name = made[1].split("\t")[0]
    assert (tmp_path / "data" / "backups" / name / "daydo.db.gz").is_file()
    status, listed, _ = daydo("backups")
    assert (status, listed.split("\t")[0]) == (0, name)

    status, _, said = daydo("restore", "newest")
    assert status == 1
    assert "; --force replaces it" in said
    copy = tmp_path / "copy.db"
    assert daydo("restore", name, "--into", f"sqlite:///{copy}")[0] == 0
    assert tables(copy) == tables(tmp_path / "data" / "daydo.db")
    assert daydo("restore", name, "--force")[0] == 0


def test_what_fails_is_said_in_words(daydo, monkeypatch, tmp_path):
    """No traceback, status 1."""
    daydo("up")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DAYDO_BACKUP__FOLDER", str(tmp_path / "file"))
    status, _, said = daydo("backup")
    assert status == 1
    assert "No backup was made" in said
    status, _, said = daydo("restore", "daydo-20260101T000000Z")
    assert status == 1
    assert "it is a file; backups need a folder" in said
    monkeypatch.setenv("DAYDO_BACKUP__FOLDER", str(tmp_path / "folder"))
    status, _, said = daydo("restore", "daydo-20260101T000000Z")
    assert status == 1
    assert "no backup named daydo-20260101T000000Z" in said


def test_a_backup_makes_no_database(daydo, tmp_path, monkeypatch):
    """Cron without the settings: not an empty database that is backed up and takes the real backup's place."""
    status, _, said = daydo("backup")
    assert (status, "DAYDO_DATABASE_URL is not among them" in said) == (1, True)
    monkeypatch.setenv("DAYDO_DATABASE_URL", f"sqlite:///{tmp_path / 'misspelt.db'}")
    assert daydo("backup")[0] == 1
    assert not [*tmp_path.rglob("*.db"), *tmp_path.rglob("backups")]


def test_a_url_with_a_password_is_read_from_standard_input(daydo, tmp_path, monkeypatch):
    """Every user of the host can read a command line; one that cannot be read is a wrong usage, and not repeated."""
    daydo("up")
    daydo("backup")
    copy = tmp_path / "copy.db"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"sqlite:///{copy}\n"))
    assert daydo("restore", "newest", "--into", "-")[0] == 0
    assert tables(copy) == tables(tmp_path / "data" / "daydo.db")
    monkeypatch.setattr("sys.stdin", io.StringIO("postgres://user:hunter2@host/shop\n"))
    with pytest.raises(SystemExit) as end:
        daydo("restore", "newest", "--into", "-")
    assert end.value.code == 2


def test_a_broken_backup_is_told_on_standard_error(daydo, tmp_path):
    """The newest good one is another than the operator thinks."""
    daydo("up")
    daydo("backup")
    bad = tmp_path / "data" / "backups" / "daydo-20300101T000000Z"
    bad.mkdir()
    command = [sys.executable, "-m", "reference_app.cli", "db", "backups"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"{bad.name} in {bad.parent} is left out" in ran.stderr


def test_old_backups_go_as_the_settings_say(daydo, monkeypatch):
    """DAYDO_BACKUP__KEEP_LAST and KEEP_DAYS reach the library."""
    monkeypatch.setenv("DAYDO_BACKUP__KEEP_LAST", "2")
    monkeypatch.setenv("DAYDO_BACKUP__KEEP_DAYS", "0")
    daydo("up")
    made = [daydo("backup")[1].split("\t")[0] for _ in range(4)]
    assert [line.split("\t")[0] for line in daydo("backups")[1].splitlines()] == made[-2:]


def test_explain_is_handed_on_with_its_verdict(daydo, monkeypatch):
    """Its exit status is the command's."""

    async def explain(settings: object) -> int:
        return 1

    monkeypatch.setattr(reference_app.explain, "explain", explain)
    assert daydo("explain")[0] == 1


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_ends_a_command_as_ctrl_c_does(daydo, monkeypatch, request, ctrl_c):
    """What was begun is cleaned up; status 143, also in a shell's background, where Ctrl-C means nothing."""
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, ctrl_c)))
    cleaned = []

    async def explain(settings: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)
        finally:
            cleaned.append(True)
        return 0

    monkeypatch.setattr(reference_app.explain, "explain", explain)
    before = signal.getsignal(signal.SIGTERM)
    status, _, said = daydo("explain")
    assert (status, cleaned, said) == (143, [True], "stopped\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_the_server_said_is_told(daydo, monkeypatch):
    """And where it should be, without the password."""
    monkeypatch.setenv("DAYDO_DATABASE_URL", "mysql://daydo:hunter2@127.0.0.1:1/daydo")
    status, _, said = daydo("status")
    assert status == 1
    assert said.startswith("The database cannot be reached")
    assert "(database: 127.0.0.1:1)" in said
    assert "Connect call failed" in said
    assert "hunter2" not in said


def test_a_url_that_cannot_be_read_is_wrong_usage(daydo, capsys):
    """Status 2, and the URL is not repeated."""
    with pytest.raises(SystemExit) as end:
        daydo("restore", "newest", "--into", "mysql://u:S3cr#et@h/x")
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "--into: database URL: write mysql://" in said
    assert "S3cr" not in said


def test_help_says_what_the_exit_statuses_mean(daydo, capsys):
    """For those who write the cron job."""
    with pytest.raises(SystemExit) as end:
        daydo("backup", "--help")
    assert end.value.code == 0
    assert "0 a verified backup was made" in capsys.readouterr().out


def test_a_terminal_gets_a_table_and_a_bar(daydo, tmp_path):
    """Colour and boxes where somebody looks; the plain lines of the other tests elsewhere."""
    daydo("up")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "reference_app.cli", "db", "backup"]
    environment = {
        "PATH": os.environ["PATH"],
        "DAYDO_DATA_DIR": str(tmp_path / "data"),
        "TERM": "xterm",
        "COLUMNS": "100",
    }
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=tmp_path, env=environment):
        os.close(theirs)
        said = bytearray()
        while chunk := _read(ours):
            said += chunk
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
    assert "Verify by a restore" in text
    assert re.search(r"│ daydo-\d{8}T\d{6}Z │ SQLite", text)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # the other end is gone
        return b""


def test_the_service_tells_the_age_of_the_newest_backup(tmp_path):
    """Huge while the folder is empty, so that an alert on the age fires before the first backup too."""
    with ServiceProcess(tmp_path, {"DAYDO_BACKUP__FOLDER": str(tmp_path / "backups")}) as service:
        text = httpx.get(f"{service.url}/metrics").text
    age = re.search(r"^daydo_db_backup_age_seconds ([0-9.e+]+)$", text, re.MULTILINE)
    assert age is not None
    assert float(age[1]) > 1e9

"""The plugin itself: it says what runs, refuses to skip in silence, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

SLEEPER = """
import time
def test_sleep(database_url):
    if database_url.startswith("mysql"):
        print("sleeping", flush=True)
        time.sleep(60)
"""


def run_pytest(folder: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    (folder / "test_inner.py").write_text(SLEEPER)
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "daydo_db.testing", "-s", "-c", os.devnull, *options, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={
            **os.environ,
            "PYTEST_ADDOPTS": "",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "DAYDO_TEST_MYSQL_URL": "",
            "TMPDIR": str(folder),
            **environment,
        },
    )


def servers(folder: Path) -> list[int]:
    """MariaDB processes with this folder in their command line; the watchdog has it too."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if command.split(b"\0")[0].endswith(b"mariadbd") and str(folder).encode() in command:
            found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
@pytest.mark.skipif(shutil.which("mariadbd", path="/usr/sbin:/usr/bin") is None, reason="needs a local mariadbd")
def test_a_killed_pytest_leaves_neither_server_nor_folder(tmp_path: Path) -> None:
    """SIGKILL gives nobody a chance to clean up but the watchdog."""
    inner = run_pytest(tmp_path)
    assert inner.stdout is not None
    while "sleeping" not in inner.stdout.readline():
        assert inner.poll() is None
    (folder,) = tmp_path.glob("daydo-mariadb-*")
    assert len(servers(folder)) == 1
    inner.kill()
    inner.wait()
    inner.stdout.close()
    deadline = time.monotonic() + 20
    while (servers(folder) or folder.exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (servers(folder), folder.exists()) == ([], False)


def test_embedded_means_sqlite_alone(tmp_path: Path) -> None:
    """And the header says so."""
    output = run_pytest(tmp_path, "--embedded").communicate(timeout=60)[0]
    assert "databases: SQLite 3." in output
    assert "1 passed" in output


def test_a_missing_server_fails_the_run_and_says_how_to_get_one(tmp_path: Path) -> None:
    """Tests that did not run must not look like tests that passed."""
    (tmp_path / "conftest.py").write_text("import shutil\nshutil.which = lambda name, **options: None\n")
    inner = run_pytest(tmp_path)
    output = inner.communicate(timeout=60)[0]
    assert inner.returncode != 0
    assert "apt-get install mariadb-server-core" in output


def test_a_given_server_that_does_not_answer_fails_the_run(tmp_path: Path) -> None:
    """With its URL, without its password."""
    inner = run_pytest(tmp_path, DAYDO_TEST_MYSQL_URL="mysql://u:hunter2@127.0.0.1:1")
    output = inner.communicate(timeout=60)[0]
    assert inner.returncode != 0
    assert "mysql://u:***@127.0.0.1:1" in output
    assert "hunter2" not in output

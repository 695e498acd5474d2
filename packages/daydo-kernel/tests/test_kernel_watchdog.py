"""A private server ends with us, whatever ends us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from daydo_kernel.watchdog import PrivateServer

# A server that notes its process id in the file it is given, and waits.
SERVER = """
import os, signal, sys, time
from pathlib import Path
{before}
Path(sys.argv[1]).write_text(str(os.getpid()))
while True:
    time.sleep(60)
"""
OWNER = """
import sys
from pathlib import Path
from daydo_kernel.watchdog import PrivateServer
PrivateServer([sys.executable, "-c", sys.argv[3], sys.argv[2]], Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""


def wait_until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def pid_in(note: Path) -> int:
    wait_until(lambda: note.exists() and note.read_text() != "")
    return int(note.read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "data").write_text("rows")
    return folder


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_server_ends_with_its_owner(tmp_path: Path, folder: Path, number: signal.Signals) -> None:
    """However the owning process is killed, the server stops and its folder is removed."""
    note = tmp_path / "pid"
    command = [sys.executable, "-c", OWNER, str(folder), str(note), SERVER.format(before="")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        server = pid_in(note)
        owner.send_signal(number)
    wait_until(lambda: not alive(server))
    wait_until(lambda: not folder.exists())


def test_stop_waits_for_server_and_folder(tmp_path: Path, folder: Path) -> None:
    """After stop() there is no process and no folder."""
    note = tmp_path / "pid"
    server = PrivateServer([sys.executable, "-c", SERVER.format(before=""), str(note)], folder)
    pid = pid_in(note)
    assert server.alive
    server.stop()
    assert not server.alive
    assert not alive(pid)
    assert not folder.exists()


def test_stubborn_server_is_killed(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ignores the polite signal is killed after a bounded wait."""
    note = tmp_path / "pid"
    ignoring = SERVER.format(before="signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    watchdog = "import sys; from daydo_kernel import watchdog; watchdog.STOP_S = 0.2; sys.exit(watchdog.main())"
    command = [sys.executable, "-c", watchdog, "--folder", str(folder), "--", sys.executable, "-c", ignoring, str(note)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        pid = pid_in(note)
        process.communicate()
    assert not alive(pid)
    assert not folder.exists()


def test_signals_to_the_group_do_not_orphan_the_server(tmp_path: Path, folder: Path) -> None:
    """The watchdog itself outlives SIGINT, SIGTERM and SIGHUP: only our end of the pipe decides."""
    note = tmp_path / "pid"
    server = PrivateServer([sys.executable, "-c", SERVER.format(before=""), str(note)], folder)
    pid = pid_in(note)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(server._process.pid, number)
    assert server.alive
    assert alive(pid)
    server.stop()
    assert not alive(pid)


def test_server_that_ends_by_itself(folder: Path) -> None:
    """A server that fails at start is seen as not alive, and its folder goes."""
    server = PrivateServer([sys.executable, "-c", "raise SystemExit(3)"], folder)
    wait_until(lambda: not server.alive)
    server.stop()
    assert not folder.exists()


def test_program_under_another_name(tmp_path: Path, folder: Path) -> None:
    """``argv0`` is the name the program sees itself called by."""
    note = tmp_path / "name"
    script = f"tr '\\0' ' ' < /proc/$$/cmdline > {note}; exec sleep 60"
    server = PrivateServer(["/bin/sh", "-c", script], folder, argv0="redis-server")
    wait_until(lambda: note.exists() and note.read_text() != "")
    server.stop()
    assert note.read_text().startswith("redis-server -c ")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone offers it")
def test_server_does_not_outlive_a_killed_watchdog(tmp_path: Path, folder: Path) -> None:
    """SIGKILL gives a watchdog no time to do anything: the system ends the server."""
    note = tmp_path / "pid"
    server = PrivateServer([sys.executable, "-c", SERVER.format(before=""), str(note)], folder)
    pid = pid_in(note)
    os.kill(server._process.pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid))
    server.stop()

"""A service that cannot start, and workers that cannot: one line that says why, an end, no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis as Client

from daydo_db.testing import fresh_database
from daydo_redis.embedded import PrivateRedis
from reference_app.server import ServiceProcess
from reference_app.testing import Client as User

NOBODY_LISTENS = {"DAYDO_DATABASE_URL": "mysql://daydo:hunter2@127.0.0.1:1/daydo"}
SUPERVISE = """
import sys
from reference_app import server
server.RESTART_DELAY_S = 0.05
sys.exit(server.supervise([sys.executable, "-c", sys.argv[1]], server.bind("127.0.0.1", 0), 2, {}, 5.0))
"""
# Two workers start; one of them dies, its place cannot be filled twice, then it can.
WORKER = """
import os, sys
from reference_app.server import CANNOT_START
notes = os.open("starts", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(notes, b"x")
number = os.lseek(notes, 0, os.SEEK_CUR)
if number in (1, 3, 4):
    sys.exit(1 if number == 1 else CANNOT_START)
os.read(int(sys.argv[2].partition("=")[2]), 1)
"""


def serve(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "reference_app.cli", "serve"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "DAYDO_DATA_DIR": str(folder), "DAYDO_PORT": "0", **settings},
        capture_output=True,
        text=True,
        timeout=60,
    )


def reasons(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The log's lines above INFO."""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all("Traceback" not in str(line) for line in lines)
    return [line["message"] for line in lines if line["level"] != "INFO"]


def test_a_database_that_does_not_answer_is_said_in_one_line(tmp_path):
    """With the place and the system's own words, without the password; status 1."""
    done = serve(tmp_path, **NOBODY_LISTENS)
    [reason] = reasons(done)
    assert reason.startswith("cannot start: The database cannot be reached")
    assert "127.0.0.1:1" in reason
    assert "Connect call failed" in reason
    assert "hunter2" not in done.stderr
    assert done.returncode == 1


def test_an_outdated_schema_names_the_command_that_mends_it(tmp_path, database_backends):
    """As it can be typed: the library's own has a *** where the password was."""
    servers = [backend for backend in database_backends if backend.dialect == "mysql"]
    if not servers:
        pytest.skip("asked for the embedded back ends alone")
    with fresh_database(servers[0], tmp_path) as url:
        done = serve(tmp_path, DAYDO_DATABASE_URL=url)
    [reason] = reasons(done)
    assert reason.startswith("cannot start: The tables of ")
    assert reason.endswith("run: daydo db up")
    assert done.returncode == 1


def test_an_address_that_is_taken_is_said_in_one_line(tmp_path):
    """Before there is a log."""
    with ServiceProcess(tmp_path) as service:
        done = serve(tmp_path, DAYDO_PORT=service.url.rpartition(":")[2])
    assert done.returncode == 1
    assert done.stderr.startswith("cannot start: ")
    assert done.stderr.count("\n") == 1


def test_several_workers_that_cannot_start_end_the_parent(tmp_path):
    """They are not started again and again."""
    done = serve(tmp_path, **NOBODY_LISTENS, DAYDO_WORKERS="2", DAYDO_REDIS_URL="redis://127.0.0.1:1/0")
    found = reasons(done)
    assert 1 <= len(found) <= 2
    assert all(reason.startswith("cannot start: ") for reason in found)
    assert done.returncode == 1


def test_a_worker_that_dies_later_is_replaced_until_it_comes_up(tmp_path):
    """Also when what it needs is away for a while: the others go on serving."""
    command = [sys.executable, "-c", SUPERVISE, WORKER]
    with subprocess.Popen(command, cwd=tmp_path) as parent:
        deadline = time.monotonic() + 30
        while not ((starts := tmp_path / "starts").exists() and len(starts.read_text()) >= 5):
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(30) == 0


def test_a_full_redis_is_an_outage_of_live_tickets_alone(tmp_path, pytestconfig):
    """503 with Retry-After, for tickets are kept nowhere else, and no traceback in the log."""
    if pytestconfig.getoption("--embedded"):
        pytest.skip("needs a server to fill")
    server = PrivateRedis()
    try:
        server.wait_ready(10.0)
        with ServiceProcess(tmp_path, {"DAYDO_REDIS_URL": server.url}) as service, User(service.url) as user:
            user.register()
            with Client.from_url(server.url) as client:
                client.config_set("maxmemory", "1")
            answer = user.call("POST", "/live-tickets")
            assert (answer.status_code, answer.json()["error"]) == (503, "auth.tickets_unavailable")
            assert "retry-after" in answer.headers
            assert user.call("GET", "/tasks").is_success
            assert "Traceback" not in service.log.read_text()
    finally:
        server.stop()

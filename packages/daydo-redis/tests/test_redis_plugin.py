"""The pytest plugin, in a pytest of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from daydo_redis.embedded import PrivateRedis
from daydo_redis.testing import GIVEN_URL

TESTS = """
import redis

def test_finds_it_empty(redis_url, record_property):
    if redis_url.startswith("embedded"):
        return
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")

def test_finds_it_empty_again(redis_url):
    test_finds_it_empty(redis_url, None)
"""
NO_PROGRAM = """
from daydo_redis import embedded
embedded.find_program = lambda: None
"""
OPTION_TAKEN = """
def pytest_addoption(parser):
    parser.addoption("--embedded", action="store_true")
"""


class Inner:
    """A folder with tests, and how to run pytest there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "test_inner.py").write_text(TESTS)
        (folder / "no_program.py").write_text(NO_PROGRAM)
        (folder / "option_taken.py").write_text(OPTION_TAKEN)

    def start(self, *arguments: str, given: str = "") -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name != GIVEN_URL}
        environment["PYTHONPATH"] = os.pathsep.join([str(self.folder), *sys.path])
        environment |= {GIVEN_URL: given} if given else {}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-v", *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, given: str = "") -> tuple[int, str]:
        process = self.start(*arguments, given=given)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output


@pytest.fixture
def inner(tmp_path: Path) -> Iterator[Inner]:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    return Inner(tmp_path)


def test_runs_on_every_back_end_and_names_them(inner: Inner, server: PrivateRedis) -> None:
    """In process and private server, each empty for each test; the header says so."""
    code, output = inner.run("-p", "daydo_redis.testing")
    assert code == 0, output
    assert re.search(
        r"^redis: memory \(fakeredis [\d.]+\), server \((Redis|Valkey) [\d.]+, private\)$", output, re.MULTILINE
    )
    assert re.search(r"4 passed", output)


def test_embedded_alone_where_asked(inner: Inner) -> None:
    """--embedded runs in process only, also where another plugin has registered the option before."""
    code, output = inner.run("-p", "option_taken", "-p", "daydo_redis.testing", "--embedded")
    assert code == 0, output
    assert "2 passed" in output
    assert "[server]" not in output


def test_missing_server_ends_the_session(inner: Inner) -> None:
    """No program and no URL: nothing runs, and the message says what to install."""
    code, output = inner.run("-p", "no_program", "-p", "daydo_redis.testing")
    assert code != 0
    assert "redis-tools" in output
    assert "--embedded" in output
    assert "passed" not in output


def test_unreachable_given_server_ends_the_session(inner: Inner) -> None:
    """A server that was asked for and does not answer is a failure, not a skip."""
    code, output = inner.run("-p", "daydo_redis.testing", given="redis://127.0.0.1:1")
    assert code != 0
    assert GIVEN_URL in output
    assert "passed" not in output


def test_given_server_loses_nothing(inner: Inner, server: PrivateRedis) -> None:
    """Of a given server only an empty scratch database is used; what it holds elsewhere stays."""
    kept = {0: b"zero", 15: b"fifteen"}
    for database, value in kept.items():
        with redis.Redis.from_url(server.url, db=database) as client:
            client.set("kept", value)
    code, output = inner.run("-p", "no_program", "-p", "daydo_redis.testing", given=server.url)
    assert code == 0, output
    assert re.search(rf"given \(Redis [\d.]+, {GIVEN_URL}, database 14\)", output)
    assert "4 passed" in output
    for database, value in kept.items():
        with redis.Redis.from_url(server.url, db=database) as client:
            assert client.get("kept") == value

    code, output = inner.run("-p", "daydo_redis.testing", given=f"{server.url}?db=15")
    assert code != 0
    assert "database 15 holds keys" in output


def test_killed_pytest_leaves_no_server(inner: Inner, server: PrivateRedis, tmp_path: Path) -> None:
    """SIGKILL of pytest in the middle of a test takes the private server and its folder along."""
    (tmp_path / "test_inner.py").write_text(
        "import time\ndef test_hangs(redis_url):\n    print('AT', redis_url, flush=True)\n    time.sleep(60)\n"
    )
    process = inner.start("-p", "daydo_redis.testing", "-s", "-k", "server")
    assert process.stdout is not None
    folder = next(Path(line.split("unix://")[1].strip()).parent for line in process.stdout if "unix://" in line)
    pid = int((folder / "redis.pid").read_text())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    until = time.monotonic() + 10
    while folder.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)

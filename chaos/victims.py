"""Servers to kill: each comes up again by itself, on the same port, as a supervisor would bring it up."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from daydo_db.testing import PrivateMariaDB
from daydo_kernel.watchdog import PrivateServer
from daydo_redis.embedded import find_program

# What was committed must survive a kill; the server for ordinary tests need not care.
DURABLE = ("--innodb-flush-log-at-trx-commit=2", "--innodb-doublewrite=ON")
REDIS = """trap 'kill $server; wait $server; exit' TERM
while :; do "$program" --port "$port" --bind 127.0.0.1 --dir "$folder" --save "" & server=$!
echo $server > "$folder/pid"; wait $server && exit; done"""


class Victim:
    """A server that will be hurt."""

    def __init__(self, url: str, port: int, pid: Callable[[], int]) -> None:
        self.url = url
        self._port = port
        self._pid = pid

    def kill(self) -> None:
        """SIGKILL; returns when its successor accepts connections."""
        os.kill(self._pid(), signal.SIGKILL)
        time.sleep(0.05)
        wait_for(self._port)

    def freeze(self, seconds: float) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        os.kill(self._pid(), signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self._pid(), signal.SIGCONT)


def wait_for(port: int) -> None:
    """Block until somebody listens."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            time.sleep(0.02)
        else:
            return


@contextmanager
def mariadb_to_kill() -> Iterator[Victim]:
    program = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
    if program is None:
        raise FileNotFoundError("chaos needs mariadbd")
    server = PrivateMariaDB(program, *DURABLE, restarts=True)
    try:
        server.wait()
        yield Victim(server.url, server.port, lambda: server.pid)
    finally:
        server.stop()


@contextmanager
def redis_to_kill() -> Iterator[Victim]:
    found = find_program()
    if found is None:
        raise FileNotFoundError("chaos needs redis-server or valkey-server")
    program, argv0 = found
    folder = Path(tempfile.mkdtemp(prefix="daydo-chaos-"))
    if argv0 is not None:  # the shell below cannot say how a program is called
        (folder / argv0).symlink_to(program)
        program = str(folder / argv0)
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = f'folder="$1" program="$2" port="$3"\n{REDIS}'
    server = PrivateServer(["/bin/sh", "-c", script, "sh", str(folder), program, str(port)], folder)
    try:
        wait_for(port)
        yield Victim(f"redis://127.0.0.1:{port}/0", port, lambda: int((folder / "pid").read_text()))
    finally:
        server.stop()

"""Keeps a child server from outliving us, whatever kills us.

``python -m daydo_kernel.watchdog --folder DIR -- COMMAND …`` runs COMMAND and reads its own standard input,
the other end of which only we hold. When that end closes — exit, crash, SIGKILL — the server is stopped and
DIR is removed.

Should the watchdog itself be killed, Linux kills the server (PR_SET_PDEATHSIG); DIR then stays. That is the second line
and not the first, because a server that changes its user loses it, other systems have nothing like it, and it neither
asks politely nor cleans up.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

STOP_S = 10.0
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class PrivateServer:
    """A server process of our own in a private folder; :meth:`stop` ends it and removes the folder.

    ``argv0`` is the name the program sees itself called by (Debian's redis-check-rdb is redis-server under
    another name). Output goes to ``folder/server.log``.
    """

    def __init__(self, command: Sequence[str], folder: Path, argv0: str | None = None) -> None:
        self.folder = folder
        self.log = folder / "server.log"
        watchdog = [sys.executable, "-m", "daydo_kernel.watchdog", "--folder", str(folder)]
        if argv0 is not None:
            watchdog += ["--argv0", argv0]
        with self.log.open("ab") as output:
            # A session of its own: Ctrl-C at the terminal is for us, the server ends when we do.
            self._process = subprocess.Popen(
                [*watchdog, "--", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """Close our end and wait until server and folder are gone."""
        self._process.communicate()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m daydo_kernel.watchdog", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="removed after the server has ended")
    parser.add_argument("--argv0", help="the name the program sees itself called by")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    # Only the closing pipe ends a watchdog: a polite signal to a process group must not orphan the server.
    # (Handlers that do nothing, not SIG_IGN: the server would inherit that, and could not be stopped politely.)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    command = [options.argv0 or options.command[0], *options.command[1:]]
    server = subprocess.Popen(
        command,
        executable=options.command[0],
        stdin=subprocess.DEVNULL,
        preexec_fn=_dies_with_us(),  # noqa: PLW1509 (no thread has been started yet)
    )
    threading.Thread(target=_stop_at_eof, args=(server,), daemon=True).start()
    code = server.wait()
    shutil.rmtree(options.folder, ignore_errors=True)
    return code


def _dies_with_us() -> Callable[[], None] | None:
    """What the server runs between fork and exec; the libraries it needs are loaded before the fork."""
    if sys.platform != "linux":
        return None
    prctl, watchdog = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != watchdog:  # It was gone before we asked.
            os._exit(1)

    return ask


def _stop_at_eof(server: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    server.terminate()
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()


if __name__ == "__main__":
    sys.exit(main())

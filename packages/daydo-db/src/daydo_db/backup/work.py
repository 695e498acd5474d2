"""Slow work in a thread, with programs that end when the work is given up."""

from __future__ import annotations

import asyncio
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple, TypeVar

from daydo_db.mapping import without_values
from daydo_kernel import to_the_end

from .errors import BackupFailed

T = TypeVar("T")
Stage = Literal["dump", "verify", "restore"]

CHUNK = 1 << 18
# Clients repeat the statement that failed, with people's data in it; only the lines of the program itself are shown.
_OWN_LINE = re.compile(r"^(?:ERROR\b|[a-z]*(?:mysql|mariadb)[a-z-]*:).*", re.MULTILINE)
# In them a server's message comes behind its number: "ERROR 1366 (22007) at line 7: …", "Got error: 1045: …".
_SERVER_SAID = re.compile(r"(?P<head>\berror:? (?P<number>\d+)\b[^:]*: )(?P<message>.*)", re.IGNORECASE)


class Progress(NamedTuple):
    """Where long work is; ``total_bytes`` is None where nobody can know it."""

    stage: Stage
    done_bytes: int
    total_bytes: int | None


Told = Callable[[Progress], None]
"""Hears of progress, in the thread that works."""


class Stopped(Exception):
    """The work was given up; raised in its thread."""


class Work:
    """Runs one function after another in a thread; a cancellation kills what they started and waits for them."""

    def __init__(self, told: Told | None) -> None:
        self._told = told
        self._stopped = threading.Event()
        self._programs: set[subprocess.Popen[bytes]] = set()

    async def run(self, function: Callable[[], T]) -> T:
        thread = asyncio.ensure_future(asyncio.to_thread(function))
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            self._stop()
            try:
                # It must not touch files and databases that are being cleaned up, however often we are cancelled.
                await to_the_end(asyncio.wait({thread}))
            finally:
                thread.exception()
            raise

    def tell(self, stage: Stage, done_bytes: int, total_bytes: int | None) -> None:
        """Called once a chunk: also where a stopped work ends.

        Raises:
            Stopped: the work was given up.
        """
        if self._stopped.is_set():
            raise Stopped
        if self._told is not None:
            self._told(Progress(stage, done_bytes, total_bytes))

    @contextmanager
    def program(
        self, command: Sequence[str], *, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A running program, waited for at the end and killed where the block fails.

        Raises:
            BackupFailed: its exit status is not 0; the reason is what it said.
        """
        read_all = True
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=said)
            self._programs.add(process)
            try:
                if self._stopped.is_set():
                    raise Stopped
                yield process
            except BrokenPipeError:
                read_all = False  # it ended too early, and most likely says why
            except BaseException:
                process.kill()
                raise
            finally:
                for pipe in (process.stdin, process.stdout):
                    _close(pipe)
                process.wait()
                self._programs.discard(process)
            if process.returncode or not read_all:
                raise BackupFailed(reason=f"{Path(command[0]).name} ended with {process.returncode}: {_own(said)}")

    def _stop(self) -> None:
        self._stopped.set()
        for process in list(self._programs):
            process.kill()


def _close(pipe: IO[bytes] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except BrokenPipeError:
        return


def _own(said: IO[bytes]) -> str:
    said.seek(0)
    lines = _OWN_LINE.findall(said.read(1 << 16).decode(errors="replace"))
    return " | ".join(_SERVER_SAID.sub(_without_values, line) for line in lines[-3:]) or "it said nothing"


def _without_values(said: re.Match[str]) -> str:
    return said["head"] + (without_values(int(said["number"]), said["message"]) or "…")

"""Serving: uvicorn in this process, or several workers under one parent; nobody outlives the parent.

A stop has an order: open streams are told to end, requests under way finish within ``drain_s``, then the
parts drain. A worker reads a pipe whose other end only its parent holds; when the parent dies, however it
dies, the pipe closes and the worker stops as if it had been asked to.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import uvicorn
from litestar.types import ASGIApp

from .settings import is_setting

SERVE = (sys.executable, "-m", "reference_app.cli", "serve")
RESTART_DELAY_S = 1.0
START_TIMEOUT_S = 30.0
CANNOT_START = os.EX_CONFIG  # the exit status of a worker that never served
_UVICORN_FAILED = "Application startup failed. Exiting."


class DrainingServer(uvicorn.Server):
    """A uvicorn server that says when it begins to stop, before it waits for open connections."""

    def __init__(self, config: uvicorn.Config, begin_drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._begin_drain = begin_drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._begin_drain()
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A listening address; port 0 takes a free one."""
    # The protocol is named because asyncio sets TCP_NODELAY only where it is; without it an answer waits 40 ms.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.set_inheritable(True)
    return listener


class CannotStart(Exception):
    """The application did not come up; the reason is the ``__cause__``."""


def serve(
    app: ASGIApp,
    listener: socket.socket,
    *,
    drain_s: float,
    begin_drain: Callable[[], None],
    http: type[asyncio.Protocol],
) -> None:
    """Serve ``app`` in this process until SIGINT or SIGTERM, speaking ``http``.

    Raises:
        CannotStart: it never served.
    """
    start = _Start(app)
    config = uvicorn.Config(
        start,
        http=http,
        lifespan="on",
        log_config=None,
        access_log=False,
        ws="wsproto",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=round(drain_s) or 1,
    )
    # Its last word on a failed start says nothing that ours does not.
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg != _UVICORN_FAILED)
    try:
        DrainingServer(config, begin_drain).run(sockets=[listener])
    except SystemExit:  # newer uvicorns leave so after a failed start, older ones return
        if start.error is None:
            raise
    if start.error is not None:
        raise CannotStart() from start.error


class _Start:
    """``app``, whose failure to start is kept as it is; the framework would send its traceback as a text."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.error: BaseException | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        failed = False

        async def send_words(message: Any) -> None:
            nonlocal failed
            if message["type"] == "lifespan.startup.failed":
                failed = True
                message["message"] = ""
            await send(message)

        try:
            await self._app(scope, receive, send_words)
        except BaseException as error:
            if failed:
                self.error = error
            raise


def stop_with_parent(pipe: int) -> None:
    """Stop this process, in good order, when the other end of ``pipe`` closes."""

    def watch() -> None:
        os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def supervise(
    command: Sequence[str], listener: socket.socket, workers: int, environment: Mapping[str, str], stop_s: float
) -> int:
    """Run ``workers`` processes of ``command`` on ``listener``; restart those that die; stop them together.

    Each gets ``--listen-fd``, ``--parent-fd`` and ``environment`` on top of ours. Returns when SIGINT or SIGTERM has
    ended them all; one that is not gone ``stop_s`` after that is killed.

    The exit status: 0, or 1 if one of the first workers ended with ``CANNOT_START``; then none is wanted. One that
    takes the place of a worker that has served is tried again: what it misses at the moment was there before.
    """
    theirs, ours = os.pipe()
    arguments = [*command, f"--listen-fd={listener.fileno()}", f"--parent-fd={theirs}"]

    def start() -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C reaches the parent alone, which stops everybody in order.
        return subprocess.Popen(
            arguments,
            env={**os.environ, **environment},
            pass_fds=(listener.fileno(), theirs),
            start_new_session=True,
        )

    # A list, not an Event: setting that in a signal handler can dead-lock with the main thread's own wait for it.
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: stopping.append(received))
    first = children = [start() for _ in range(workers)]
    status = 0
    while not stopping:
        time.sleep(RESTART_DELAY_S)
        if any(child.poll() == CANNOT_START for child in first):
            status = 1
            break
        children = [child if child.poll() is None else start() for child in children]
    os.close(ours)
    for child in children:
        _end(child, stop_s)
    return status


def _end(child: subprocess.Popen[bytes], stop_s: float) -> None:
    try:
        child.wait(stop_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


class ServiceProcess:
    """The service as a child process on a free loopback port, for the demo and for tests.

    A context manager: it starts ``daydo serve`` in ``folder`` with ``environment`` and nothing else from ours that
    is a setting, and ends it at exit. It also ends when this process dies, whatever kills it.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        ours = {name: value for name, value in os.environ.items() if not is_setting(name)}
        self._environment = {**ours, "DAYDO_DATA_DIR": str(folder), **(environment or {})}
        self.log = folder / "service.log"
        self.url = ""

    def __enter__(self) -> Self:
        """Return when the service accepts connections.

        Raises:
            ServiceDidNotStart: it ended instead, or took longer than 30 s; the message holds its log.
        """
        listener = bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        theirs, self._pipe = os.pipe()
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*SERVE, f"--listen-fd={listener.fileno()}", f"--parent-fd={theirs}"],
                env=self._environment,
                cwd=self._folder,
                stdout=output,
                stderr=output,
                pass_fds=(listener.fileno(), theirs),
                start_new_session=True,
            )
        os.close(theirs)
        listener.close()
        self.url = f"http://127.0.0.1:{port}"
        if not self._wait_until_listening(port):
            self.__exit__()
            raise ServiceDidNotStart(self.log.read_text())
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._pipe)
        self.process.wait()

    def _wait_until_listening(self, port: int) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            except OSError:
                time.sleep(0.05)
            else:
                return True
        return False


class ServiceDidNotStart(Exception):
    """The service ended before it listened; the message is its log."""

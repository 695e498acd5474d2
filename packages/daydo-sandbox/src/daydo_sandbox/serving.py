"""A sandbox on a loopback port, beside synchronous code: a demo, a test of a whole service. Extra: ``[serve]``."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterator

import uvicorn

from .sandbox import Sandbox

_START_S = 30.0


@contextlib.contextmanager
def serving(sandbox: Sandbox, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Run ``sandbox`` on a thread of its own; its URL. Port 0 takes a free one.

    Raises:
        ValueError: ``host`` is no loopback address: whoever reaches a sandbox reads every message.
        RuntimeError: it did not come up.
    """
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"a sandbox listens on loopback only, not on {host}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        config = uvicorn.Config(
            sandbox, lifespan="off", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=1
        )
        server = _Server(config)
        thread = threading.Thread(target=_run, args=(sandbox, server, listener), name="daydo-sandbox", daemon=True)
        thread.start()
        named = f"[{host}]" if ":" in host else host
        try:
            if not server.listens.wait(_START_S):
                raise RuntimeError(f"the sandbox did not come up within {_START_S:g} s")
            yield f"http://{named}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(_START_S)


class _Server(uvicorn.Server):
    """One that says when it listens, and leaves signals to the program around it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _run(sandbox: Sandbox, server: _Server, listener: socket.socket) -> None:
    async def run() -> None:
        async with sandbox:
            await server.serve(sockets=[listener])

    asyncio.run(run())

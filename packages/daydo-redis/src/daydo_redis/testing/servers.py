"""Several servers of our own, to fail over between and to spread keys over. Each dies with this process."""

from __future__ import annotations

import contextlib
import functools
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis as driver

from daydo_kernel import watchdog
from daydo_redis.embedded import PrivateRedis, find_program

START_S = 10.0
SLOTS = 16_384
BUS_OFFSET = 10_000  # a cluster node also listens this far above its port
_HOST = "127.0.0.1"


class PrivateSentinel:
    """A primary, a replica, and a sentinel that promotes the replica within a second or two.

    ``name`` is what the sentinel calls them; ``url`` leads to whoever is in charge. A second sentinel stands in the
    URL, at a port where nobody listens: one that is gone must not matter.
    """

    name = "shop"

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as failed:
            failed.push(self._stack.__exit__)
            self.primary_port, self.replica_port, self.port, dead = _free_ports(4)
            self.url = f"redis+sentinel://{_HOST}:{dead},{_HOST}:{self.port}/{self.name}"
            self.primary = self._start(self.primary_port)
            self.replica = self._start(self.replica_port, "--replicaof", f"{_HOST} {self.primary_port}")
            # Only now, because a sentinel asks rarely who follows whom.
            _until(lambda: self.ask(self.replica_port).info("replication")["master_link_status"] == "up")
            self._start_sentinel()
            _until(self._knows_replica)
            failed.pop_all()

    def ask(self, port: int) -> Any:
        """A plain client of the server at ``port``, to look behind the scenes."""
        return self._stack.enter_context(contextlib.closing(_client(port)))

    def in_charge(self) -> int:
        """The port of whom the sentinel takes for the primary."""
        address = self.ask(self.port).execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        return int(address[1])

    def stop(self) -> None:
        self._stack.close()

    def _start(self, port: int, *arguments: str) -> PrivateRedis:
        quick = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        server = PrivateRedis(["--port", str(port), "--bind", _HOST, *quick, *arguments])
        self._stack.callback(server.stop)
        server.wait_ready(START_S)
        return server

    def _start_sentinel(self) -> None:
        found = find_program()
        assert found is not None, "the servers have just been started with it"
        program, argv0 = found
        folder = Path(tempfile.mkdtemp(prefix="daydo-redis-"))
        watched = f"sentinel monitor {self.name} {_HOST} {self.primary_port} 1"
        bounds = f"sentinel down-after-milliseconds {self.name} 300\nsentinel failover-timeout {self.name} 1000"
        settings = folder / "sentinel.conf"
        settings.write_text(f"port {self.port}\nbind {_HOST}\ndir {folder}\n{watched}\n{bounds}\n")
        sentinel = watchdog.PrivateServer([program, str(settings), "--sentinel"], folder, argv0)
        self._stack.callback(sentinel.stop)

    def _knows_replica(self) -> bool:
        replicas = self.ask(self.port).execute_command("SENTINEL", "REPLICAS", self.name)
        return any(dict(zip(words[::2], words[1::2], strict=True))["flags"] == "slave" for words in replicas)


class PrivateCluster:
    """Three nodes that share the slots evenly; ``url`` names two of them."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as failed:
            failed.push(self._stack.__exit__)
            self.ports = _free_ports(3, with_bus=True)
            self.url = f"redis+cluster://{_HOST}:{self.ports[0]},{_HOST}:{self.ports[1]}"
            self.nodes = [self._start(port) for port in self.ports]
            for number, port in enumerate(self.ports):
                client = self.ask(port)
                first, end = number * SLOTS // 3, (number + 1) * SLOTS // 3
                client.execute_command("CLUSTER", "ADDSLOTS", *range(first, end))
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER", "MEET", _HOST, self.ports[0])
            for port in self.ports:
                _until(functools.partial(self._is_whole, port))
            failed.pop_all()

    def ask(self, port: int) -> Any:
        """A plain client of the node at ``port``, to look behind the scenes."""
        return self._stack.enter_context(contextlib.closing(_client(port)))

    def stop(self) -> None:
        self._stack.close()

    def _start(self, port: int) -> PrivateRedis:
        words = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no")
        server = PrivateRedis(["--port", str(port), "--bind", _HOST, *words])
        self._stack.callback(server.stop)
        server.wait_ready(START_S)
        return server

    def _is_whole(self, port: int) -> bool:
        said = self.ask(port).execute_command("CLUSTER", "INFO")
        return {"cluster_state:ok", f"cluster_slots_ok:{SLOTS}", "cluster_known_nodes:3"} <= set(said.split("\r\n"))


def _client(port: int) -> driver.Redis:
    return driver.Redis(port=port, host=_HOST, socket_timeout=START_S, protocol=2, decode_responses=True)


def _until(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + START_S
    while True:
        with contextlib.suppress(driver.RedisError, KeyError):
            if condition():
                return
        if time.monotonic() > until_s:
            raise RuntimeError(f"the private servers did not find each other within {START_S} s")
        time.sleep(0.02)


def _free_ports(count: int, *, with_bus: bool = False) -> list[int]:
    """Ports that nobody listens on; ``with_bus``: nor ``BUS_OFFSET`` above them."""
    with contextlib.ExitStack() as held:
        return [next(_free(held, with_bus)) for _ in range(count)]


def _free(held: contextlib.ExitStack, with_bus: bool) -> Iterator[int]:
    while True:
        probe = held.enter_context(socket.socket())
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        if not with_bus:
            yield port
        elif port + BUS_OFFSET < 2**16:
            bus = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                bus.bind((_HOST, port + BUS_OFFSET))
                yield port

"""The way to a cluster: 16384 slots over several servers, any of which may move.

The driver's cluster client reads who serves what; the connections are ours, so that calls to one node travel
together. A server that is asked for what it does not serve says who does (MOVED, ASK) without doing anything: such a
call goes there next, and the map is read anew behind it. So a key that is guessed wrongly costs a detour, never an
answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import redis.exceptions as driver
from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from .call import Call
from .commands import first_key
from .roads import connected, hang_up
from .wire import is_stale, text

log = logging.getLogger("daydo.redis")

LOOK_PAUSE_S = 0.2  # between two readings of the map, which cost some milliseconds of CPU each


class ClusterRoad:
    """To whoever serves the key. ``spawn`` runs a task of the noun; ``ours``: the client is closed with it."""

    several = True

    def __init__(
        self,
        cluster: RedisCluster,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        *,
        ours: bool,
    ) -> None:
        self._cluster = cluster
        self._nodes = cluster.nodes_manager
        self._spawn = spawn
        self._ours = ours
        self._idle: dict[str, list[AbstractConnection]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._look_not_before_s = 0.0
        self._trouble: Exception | None = None
        self._stale = True
        self._turn = 0
        self._closed = False

    # -- the map -------------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        if not self._stale:
            return
        self._look()
        if self._looking is not None:
            await asyncio.wait({self._looking})
        if not self._nodes.slots_cache:
            raise driver.ConnectionError("no node of the cluster answers") from self._trouble

    def place(self, call: Call) -> str | None:
        if call.place is not None and self._node(call.place) is not None:
            return call.place
        if not self._nodes.slots_cache:
            return None
        key = call.key if call.key is not None else first_key(call.words)
        if key is None:
            return self._any().name
        try:
            node = self._nodes.get_node_from_slot(key_slot(key if isinstance(key, bytes) else text(key).encode()))
        except driver.RedisClusterException:
            return None
        name: str = node.name
        return name

    def redirect(self, call: Call, answer: Exception) -> None:
        self._stale = True
        if isinstance(answer, driver.AskError):
            call.place = f"{answer.host}:{answer.port}"
            call.asking = not isinstance(answer, driver.MovedError)
            self._look()

    async def look_again(self, place: str | None = None) -> None:
        self._stale = True
        self._turn += 1
        for name in [place] if place is not None else list(self._idle):
            await hang_up(self._idle.pop(name, ()))

    def _look(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if (self._looking is None or self._looking.done()) and now_s >= self._look_not_before_s:
            self._look_not_before_s = now_s + LOOK_PAUSE_S
            # A task: a call that runs out of time must not leave the map half read for ever.
            self._looking = self._spawn(self._read_map(), "cluster map")

    async def _read_map(self) -> None:
        try:
            await self._nodes.initialize()
        except Exception as error:
            # RedisClusterException is none of the driver's RedisErrors; its words name hosts.
            if self._trouble is None:
                log.warning("the map of the cluster cannot be read: %s", error)
            self._trouble = error
        else:
            self._stale = False
            self._trouble = None

    def _node(self, name: str) -> ClusterNode | None:
        node: ClusterNode | None = self._nodes.nodes_cache.get(name)
        return node

    def _any(self) -> ClusterNode:
        """One that can answer what concerns no key: another one after each failure."""
        nodes = self._cluster.get_primaries() or list(self._nodes.startup_nodes.values())
        node: ClusterNode = nodes[self._turn % len(nodes)]
        return node

    # -- connections ---------------------------------------------------------------------------------------------

    async def take(self, place: str | None) -> AbstractConnection:
        node = None if place is None else self._node(place)
        if node is None:
            raise driver.ConnectionError("no node of the cluster serves this slot")
        idle = self._idle.get(node.name, [])
        while idle:
            connection = idle.pop()
            if not is_stale(connection):
                return connection
            await hang_up([connection])
        return await connected(_connection_to(node))

    async def give(self, place: str | None, connection: AbstractConnection) -> None:
        if self._closed or place is None:
            await hang_up([connection])
        else:
            self._idle.setdefault(place, []).append(connection)

    async def spoil(self, connection: AbstractConnection) -> None:
        await hang_up([connection])

    def spare(self) -> AbstractConnection:
        self._turn += 1
        return _connection_to(self._any())

    async def aclose(self) -> None:
        self._closed = True
        await self.look_again()
        if self._ours:
            for attribute in ("nodes_cache", "startup_nodes"):
                await self._nodes.aclose(attribute)


def _connection_to(node: ClusterNode) -> AbstractConnection:
    """As the driver would make it, except that time and repetition are left to us."""
    options = {
        name: value for name, value in node.connection_kwargs.items() if not name.startswith(("maint_", "oss_cluster_"))
    }
    options |= {"protocol": 2, "retry": Retry(NoBackoff(), 0), "socket_timeout": None, "socket_connect_timeout": None}
    connection: AbstractConnection = node.connection_class(**options)
    return connection

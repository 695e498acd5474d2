"""From what the user names — a URL, or a client of theirs — to a road.

Constructing connects nothing, so that a URL which cannot work fails at once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import SplitResult, urlsplit

from redis.asyncio import ConnectionPool, RedisCluster
from redis.asyncio import Redis as Client
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from . import embedded
from .cluster import ClusterRoad
from .config import RedisConfig
from .roads import BorrowedRoad, OwnRoad, Road

Source = str | Client | RedisCluster
Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]

SENTINEL_PORT = 26379
NODE_PORT = 6379

_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_OPTIONS = re.compile(r"(\w+=[^&]*(&|$))*")
_WRITE = (
    "write redis://user:password@host:6379/0, the port a number; "
    "in user and password write # / ? @ : [ ] % as %23 %2F %3F %40 %3A %5B %5D %25"
)


def backend_of(source: Source, config: RedisConfig) -> str:
    """What stands behind ``source``: ``memory``, ``server``, ``url``, ``sentinel``, ``cluster`` or ``client``.

    Raises:
        ValueError: a URL that cannot work.
        TypeError: neither a URL nor a client.
    """
    if isinstance(source, Client):
        return "client"
    if isinstance(source, RedisCluster):
        return "cluster"
    if not isinstance(source, str):
        raise TypeError(f"Redis takes a URL, a redis.asyncio.Redis or a RedisCluster, not {type(source).__name__}")
    if source.startswith(embedded.SCHEME):
        return embedded.choose(source)
    _check(source)
    try:
        if _kind(source) == "cluster":
            _cluster(source, config)
            return "cluster"
        pool, _ = _pool(source, config)
        # Connects nothing, but knows every option.
        make: Callable[[], object] = pool.make_connection
        make()
    except _UrlInvalid:
        raise
    except (TypeError, ValueError):
        # Not the driver's words: they quote what cannot be used, and that may be a part of a password.
        raise _UrlInvalid("an option after the ? is none of redis-py's, or has no value that it takes") from None
    return _kind(source)


def road_to(source: Source, config: RedisConfig, spawn: Spawn) -> tuple[Road, list[Client]]:
    """The road to ``source`` (not an embedded one), and the clients to close after it."""
    if isinstance(source, Client):
        return BorrowedRoad(source.connection_pool), []
    if isinstance(source, RedisCluster):
        return ClusterRoad(source, spawn, ours=False), []
    if _kind(source) == "cluster":
        return ClusterRoad(_cluster(source, config), spawn, ours=True), []
    pool, clients = _pool(source, config)
    return OwnRoad(pool.make_connection), clients


class _UrlInvalid(ValueError):
    def __init__(self, words: str) -> None:
        super().__init__(f"Redis URL: {words}")


def _check(url: str) -> None:
    """That ``url`` reads as it was meant; the words of a refusal repeat nothing of it."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise _UrlInvalid(f"it starts with {', '.join(f'{known}://' for known in _SCHEMES)} or {embedded.SCHEME}")
    try:
        parts = urlsplit(url)
        for name in parts.netloc.rpartition("@")[2].split(","):
            _ = urlsplit(f"//{name}").port
    except ValueError:
        raise _UrlInvalid(_WRITE) from None
    # An @ this late: the login ended too early, at a / # or ? of the password. (Options of a URL with a login may
    # have one in their values.)
    login = "@" in parts.netloc
    late = scheme != "unix" and ("@" in parts.path or ("@" in parts.query and not login))
    if late or parts.fragment or not _OPTIONS.fullmatch(parts.query):
        raise _UrlInvalid(_WRITE)


def _kind(url: str) -> str:
    scheme = url.partition("://")[0]
    return scheme.partition("+")[2] if scheme.endswith(("+sentinel", "+cluster")) else "url"


def _pool(url: str, config: RedisConfig) -> tuple[ConnectionPool, list[Client]]:
    """What makes connections to the server of ``url``, and the clients that it asks on the way."""
    if _kind(url) == "sentinel":
        return _sentinel(url, config)
    database = urlsplit(url).path.strip("/")
    options = {**parse_url(url), **_patience()}
    if not url.startswith("unix:") and database and not database.isdecimal():
        raise _UrlInvalid("the path is the number of a database")
    return ConnectionPool(**options), []


def _patience() -> dict[str, Any]:
    """Options that leave time and repetition to us."""
    return {
        "socket_connect_timeout": None,
        "socket_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }


def _sentinel(url: str, config: RedisConfig) -> tuple[ConnectionPool, list[Client]]:
    parts, hosts, options = _several(url, SENTINEL_PORT)
    name, _, database = parts.path.strip("/").partition("/")
    if not name or (database and not database.isdecimal()):
        raise _UrlInvalid("the path of a sentinel URL is /primary_name or /primary_name/0")
    asked = {word: value for word, value in options.items() if word.startswith("ssl")}
    for word in ("username", "password"):
        if f"sentinel_{word}" in options:
            asked[word] = options.pop(f"sentinel_{word}")
    # One after the other they are asked who is in charge; a frozen one must leave time for the rest of the call.
    share_s = config.command_timeout_s / (len(hosts) + 1)
    asked |= {**_patience(), "socket_timeout": share_s, "socket_connect_timeout": share_s}
    make_sentinel: Callable[..., Any] = Sentinel
    make_pool: Callable[..., ConnectionPool] = SentinelConnectionPool
    sentinel = make_sentinel(hosts, sentinel_kwargs=asked)
    return make_pool(name, sentinel, **{**options, **_patience(), "db": int(database or 0)}), sentinel.sentinels


def _cluster(url: str, config: RedisConfig) -> RedisCluster:
    parts, hosts, options = _several(url, NODE_PORT)
    if parts.path.strip("/") not in ("", "0"):
        raise _UrlInvalid("a cluster has one database, 0")
    # Of the connections that read the map alone; see ClusterRoad.
    options |= {**_patience(), "socket_timeout": config.command_timeout_s / 2}
    options["socket_connect_timeout"] = options["socket_timeout"]
    return RedisCluster(startup_nodes=[ClusterNode(*host) for host in hosts], require_full_coverage=False, **options)


def _several(url: str, port: int) -> tuple[SplitResult, list[tuple[str, int]], dict[str, Any]]:
    """The parts of a URL that names several hosts, these hosts, and the driver's options of the rest."""
    parts = urlsplit(url)
    user, at, names = parts.netloc.rpartition("@")
    hosts = []
    for name in names.split(","):
        host = urlsplit(f"//{name}")
        if not host.hostname:
            raise _UrlInvalid(f"{parts.scheme}:// names hosts, as host:port,host2:port")
        hosts.append((host.hostname, host.port or port))
    secure = parts.scheme.startswith("rediss")
    known = parse_url(f"{'rediss' if secure else 'redis'}://{user}{at}host?{parts.query}")
    ours = ("host", "port", "connection_class", "db")
    options: dict[str, Any] = {word: value for word, value in known.items() if word not in ours}
    return parts, hosts, {**options, "ssl": True} if secure else options

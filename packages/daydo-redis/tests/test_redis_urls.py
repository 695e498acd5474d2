"""Which URLs there are, and what the driver makes of them."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio.connection import SSLConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from daydo_redis import Redis, RedisConfig
from daydo_redis.connect import _cluster, _sentinel, backend_of

CONFIG = RedisConfig(command_timeout_s=0.09)


@pytest.mark.parametrize(
    ("url", "backend"),
    [
        ("redis://h/3", "url"),
        ("redis+sentinel://a,b:1,[::1]:2/shop", "sentinel"),
        ("rediss+sentinel://u:p@a/shop/2?ssl_cert_reqs=none", "sentinel"),
        ("redis+cluster://a:1,b", "cluster"),
        ("rediss+cluster://u:p@a:1/0", "cluster"),
    ],
)
def test_good_url_is_known_without_asking_anybody(url: str, backend: str) -> None:
    """The constructor knows what stands behind a URL, and connects nothing."""
    assert backend_of(url, CONFIG) == backend
    assert not Redis(url).embedded


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis+sentinel://a:1", "/primary_name"),
        ("redis+sentinel://a:1/shop/first", "/primary_name"),
        ("redis+sentinel:///shop", "names hosts"),
        ("redis+sentinel://a:1,/shop", "names hosts"),
        ("redis+sentinel://a:port/shop", "port"),
        ("redis+sentinel://a/shop?x=1", "x"),
        ("redis+cluster://a/3", "one database"),
        ("redis+cluster://a?x=1", "x"),
        ("http+cluster://a", "no such scheme"),
        ("redis+magic://a", "schemes"),
    ],
)
def test_bad_url_is_refused_at_once(url: str, words: str) -> None:
    """What cannot work is a ValueError of the constructor that says what is missing."""
    with pytest.raises(ValueError, match=words):
        Redis(url)


def test_sentinel_url_says_everything() -> None:
    """User, password, database and TLS are the server's; sentinels have logins of their own, and share the time."""
    url = "rediss+sentinel://u:p%40w@a,b:7/shop/2?ssl_cert_reqs=none&sentinel_password=s&client_name=me"
    pool, sentinels = _sentinel(url, CONFIG)
    assert pool.service_name == "shop"
    options: dict[str, Any] = pool.connection_kwargs
    assert (options["username"], options["password"], options["db"]) == ("u", "p@w", 2)
    assert isinstance(pool.make_connection(), SentinelManagedSSLConnection)
    asked = [sentinel.connection_pool for sentinel in sentinels]
    assert [(it.connection_kwargs["host"], it.connection_kwargs["port"]) for it in asked] == [("a", 26379), ("b", 7)]
    assert all(issubclass(it.connection_class, SSLConnection) for it in asked)
    for it in asked:
        assert it.connection_kwargs["password"] == "s"
        assert it.connection_kwargs["socket_timeout"] == pytest.approx(0.03)
        assert it.connection_kwargs["retry"]._retries == 0

    plain, _ = _sentinel("redis+sentinel://a/shop", CONFIG)
    assert type(plain.make_connection()) is SentinelManagedConnection


def test_cluster_url_says_everything() -> None:
    """User, password and TLS hold for every node; the driver's own patience for none."""
    cluster = _cluster("rediss+cluster://u:p%40w@a,b:7?ssl_cert_reqs=none", CONFIG)
    assert [(node.host, node.port) for node in cluster.nodes_manager.startup_nodes.values()] == [("a", 6379), ("b", 7)]
    for node in cluster.nodes_manager.startup_nodes.values():
        assert node.connection_class is SSLConnection
        assert (node.connection_kwargs["username"], node.connection_kwargs["password"]) == ("u", "p@w")
        assert node.connection_kwargs["socket_timeout"] == pytest.approx(0.045)


def test_something_else_is_a_type_error() -> None:
    """Neither a URL nor a client: said at once, and with the name of what it was."""
    with pytest.raises(TypeError, match="not int"):
        Redis(7)  # type: ignore[arg-type]

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
        ("redis+sentinel://a:port/shop", "port a number"),
        ("redis+sentinel://a/shop?x=1", "option"),
        ("redis+cluster://a/3", "one database"),
        ("redis+cluster://a?x=1", "option"),
        ("http+cluster://a", "embedded://"),
        ("redis+magic://a", "rediss\\+sentinel://"),
        ("localhost:6379", "redis\\+cluster://"),
    ],
)
def test_bad_url_is_refused_at_once(url: str, words: str) -> None:
    """What cannot work is a ValueError of the constructor that says what is missing."""
    with pytest.raises(ValueError, match=words):
        Redis(url)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel", "redis+cluster"])
@pytest.mark.parametrize("login", [":S3cr#et/x", "u:S3cr/et", "u:12/S3cr", "u:S3cr?et=1", "u:[S3cr"])
def test_refused_url_is_not_repeated(scheme: str, login: str) -> None:
    """A password with a # / or ? ends the login too early: the words tell how to write it, and not what it is."""
    with pytest.raises(ValueError, match="%23 %2F %3F %40 %3A") as caught:
        Redis(f"{scheme}://{login}@h:1/0")
    assert "S3cr" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://u:a@b?S3cr=1@h/1", "redis://h?S3cr=1", "redis://h?db=S3cr", "redis://h/S3cr", "embedded://S3cr"]
)
def test_refused_part_is_not_repeated(url: str) -> None:
    """Nor is anything else of a URL, for who knows where in it the password is."""
    with pytest.raises(ValueError, match="Redis URL") as caught:
        Redis(url)
    assert "S3cr" not in str(caught.value)


def test_option_of_a_url_with_a_login_may_hold_an_at_sign() -> None:
    """It cannot be mistaken for the end of a login."""
    assert backend_of("redis+sentinel://u:p@a/shop?sentinel_password=p@w", CONFIG) == "sentinel"


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

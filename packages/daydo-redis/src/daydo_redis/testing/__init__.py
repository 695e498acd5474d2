"""For tests, ours and yours: a pytest plugin, and the conformance suite of every back end.

``pytest -p daydo_redis.testing`` (or ``pytest_plugins`` in the top conftest.py) gives the fixture ``redis_url``.
A test that asks for it runs once per back end:

- ``memory``: fakeredis in this process;
- ``server``: a private server, started before the header is printed, gone with pytest however that ends;
- ``given``: the server of ``DAYDO_TEST_REDIS_URL``, if set.

Each test finds it empty. On a given server only one scratch database is ever touched, by FLUSHDB: the one its URL
names (``…/9``), or, if the URL names none or 0, the highest of 15 to 1 that is empty when the session starts. One
that holds keys at that moment is not ours and ends the session.

``--embedded`` leaves ``memory`` alone. Otherwise a back end that is missing ends the session with the remedy;
nothing is skipped in silence. A given server takes the place of a private one where no program for that is found.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import redis as driver

from daydo_kernel import new_id
from daydo_redis import embedded

from .servers import PrivateCluster, PrivateSentinel
from .suites import CALM, SHORT_S, RedisConformance, RoutedConformance, eventually

__all__ = [
    "CALM",
    "GIVEN_URL",
    "SHORT_S",
    "START_S",
    "Backend",
    "PrivateCluster",
    "PrivateSentinel",
    "RedisConformance",
    "RoutedConformance",
    "eventually",
]

GIVEN_URL = "DAYDO_TEST_REDIS_URL"
START_S = 10.0
_SERVER = pytest.StashKey[embedded.PrivateRedis]()


class Backend(msgspec.Struct, frozen=True):
    """One server under test: ``title`` for the header, and how to get an empty database on it."""

    title: str
    url: str
    empty: Callable[[], object] | None = None


_BACKENDS = pytest.StashKey[dict[str, Backend]]()

# -- the plugin ------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    # daydo_db.testing may have been here first; it means the same.
    with contextlib.suppress(ValueError):
        parser.addoption(
            "--embedded", action="store_true", help="test on the embedded back ends alone (SQLite, Redis in process)"
        )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    alone = config.getoption("--embedded")
    backends = {"memory": _memory()}
    if not alone and (given := os.environ.get(GIVEN_URL)):
        backends["given"] = _given(given)
    if not alone and embedded.find_program() is not None:
        config.stash[_SERVER] = server = embedded.PrivateRedis()
        try:
            server.wait_ready(START_S)
        except RuntimeError as error:
            pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
        backends["server"] = _private(server)
    if not alone and len(backends) == 1:
        pytest.exit(
            "no Redis to test on: install redis-server or valkey-server (Debian: apt install redis-tools), set "
            f"{GIVEN_URL}, or run with --embedded",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )
    config.stash[_BACKENDS] = backends


def pytest_unconfigure(config: pytest.Config) -> None:
    server = config.stash.get(_SERVER, None)
    if server is not None:
        server.stop()


def pytest_report_header(config: pytest.Config) -> str:
    return "redis: " + ", ".join(f"{name} ({it.title})" for name, it in config.stash[_BACKENDS].items())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "redis_url" in metafunc.fixturenames:
        backends: dict[str, Backend] = metafunc.config.stash[_BACKENDS]
        metafunc.parametrize("redis_url", list(backends), indirect=True)


@pytest.fixture(scope="session")
def redis_server_url(pytestconfig: pytest.Config) -> str | None:
    """The URL of a real Redis, for processes that share one; None in a run with ``--embedded``."""
    return next((it.url for it in pytestconfig.stash[_BACKENDS].values() if it.empty is not None), None)


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty Redis, once per back end."""
    backend = request.config.stash[_BACKENDS][request.param]
    if backend.empty is None:
        url = f"{backend.url}/{new_id('test')}"
        yield url
        embedded.forget_memory(url)
    else:
        backend.empty()
        yield backend.url
        backend.empty()


def _memory() -> Backend:
    if not embedded.has_memory():
        pytest.exit(
            "redis in process needs fakeredis with Lua: pip install 'daydo-redis[embedded]'",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )
    import fakeredis  # noqa: PLC0415 (an extra)

    return Backend(f"fakeredis {fakeredis.__version__}", f"{embedded.SCHEME}memory")


def _private(server: embedded.PrivateRedis) -> Backend:
    client = driver.Redis.from_url(server.url)
    return Backend(f"{_version(client)}, private", server.url, client.flushall)


def _given(url: str) -> Backend:
    try:
        database, client = _scratch(url)
    except (driver.RedisError, ValueError) as error:
        pytest.exit(f"{GIVEN_URL} was asked for: {error}", returncode=pytest.ExitCode.USAGE_ERROR)
    return Backend(
        f"{_version(client)}, {GIVEN_URL}, database {database}", _with_database(url, database), client.flushdb
    )


def _scratch(url: str) -> tuple[int, driver.Redis]:
    named = _database(url)
    for database in (named,) if named else range(15, 0, -1):
        client = driver.Redis.from_url(_with_database(url, database), socket_timeout=5, socket_connect_timeout=5)
        if client.dbsize() == 0:
            return database, client
        client.close()
    wanted = f"database {named} holds" if named else "databases 1 to 15 all hold"
    raise ValueError(f"{wanted} keys; name an empty one in the path of the URL, or FLUSHDB one that may be lost")


def _database(url: str) -> int:
    parts = urlsplit(url)
    queried = [word.removeprefix("db=") for word in parts.query.split("&") if word.startswith("db=")]
    return int((queried or [""])[0] or (parts.path.strip("/") if parts.scheme != "unix" else "") or 0)


def _with_database(url: str, database: int) -> str:
    base, _, query = url.partition("?")
    words = [word for word in query.split("&") if word and not word.startswith("db=")]
    return f"{base}?{'&'.join([*words, f'db={database}'])}"


def _version(client: driver.Redis) -> str:
    info: Any = client.info("server")
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}"

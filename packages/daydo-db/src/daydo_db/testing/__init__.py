"""For tests, ours and yours: real databases by themselves, and the suites that every back end passes.

A pytest plugin: ``pytest -p daydo_db.testing``. It offers the fixture ``database_url``, a fresh empty database
per test on SQLite and on each MySQL-like server: those in ``DAYDO_TEST_MYSQL_URL`` (several are separated by
spaces), else a private MariaDB that lives as long as pytest does, even where pytest is killed. A server that
cannot be had fails the run; ``--embedded`` asks for SQLite alone. ``@pytest.mark.dialect("mysql")`` keeps a
test to one dialect.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from .database_suite import DatabaseConformance
from .failing import FailingTx, fail_each_step
from .servers import Backend, PrivateMariaDB, find_backends, fresh_database
from .statements import Statements, count_statements
from .tx_suite import TxConformance

__all__ = [
    "Backend",
    "DatabaseConformance",
    "FailingTx",
    "PrivateMariaDB",
    "Statements",
    "TxConformance",
    "count_statements",
    "database_backends",
    "database_url",
    "fail_each_step",
    "fresh_database",
]

_backends = pytest.StashKey[list[Backend]]()
_INPUT = "daydo_databases"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("daydo")
    # daydo_redis.testing declares the same option; the first to come wins.
    try:
        group.addoption("--embedded", action="store_true", help="SQLite and the embedded Redis alone")
    except ValueError:
        return


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "dialect(name): run on back ends of this dialect only (sqlite, mysql)")
    if config.option.collectonly or config.option.help:
        config.stash[_backends] = [Backend("sqlite", "sqlite", "")]
        return
    given = getattr(config, "workerinput", {}).get(_INPUT)
    config.stash[_backends] = list(find_backends(config)) if given is None else msgspec.convert(given, list[Backend])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Under pytest-xdist the controller has the servers; its workers share them."""
    node.workerinput[_INPUT] = msgspec.to_builtins(node.config.stash[_backends])


def pytest_report_header(config: pytest.Config) -> str:
    return "databases: " + ", ".join(backend.version for backend in config.stash[_backends])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database_url" in metafunc.fixturenames:
        wanted = {marker.args[0] for marker in metafunc.definition.iter_markers("dialect")}
        backends = [backend for backend in metafunc.config.stash[_backends] if not wanted or backend.dialect in wanted]
        metafunc.parametrize("database_url", backends, ids=[backend.id for backend in backends], indirect=True)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh, empty database, removed after the test."""
    with fresh_database(request.param, tmp_path) as url:
        yield url


@pytest.fixture(scope="session")
def database_backends(pytestconfig: pytest.Config) -> list[Backend]:
    """All back ends of this run, for fixtures that live longer than a test; see :func:`fresh_database`."""
    return pytestconfig.stash[_backends]

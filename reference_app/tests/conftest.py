"""The service as a process of its own, on the embedded default and on MariaDB with Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from daydo_db.testing import Backend, fresh_database
from reference_app.main import migrate_schema
from reference_app.outside import outside_world
from reference_app.server import ServiceProcess
from reference_app.settings import load_settings
from reference_app.testing import GENEROUS, TOWN, Client, Deployment, Town


@pytest.fixture(scope="session")
def shared_backends(
    database_backends: list[Backend], redis_server_url: str | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The settings of a deployment that several processes can share; its database is migrated."""
    servers = [backend for backend in database_backends if backend.dialect == "mysql"]
    if not servers or redis_server_url is None:
        pytest.skip("asked for the embedded back ends alone")
    folder = tmp_path_factory.mktemp("shared")
    with fresh_database(servers[0], folder) as url:
        environment = {"DAYDO_DATABASE_URL": url, "DAYDO_REDIS_URL": redis_server_url}
        migrated = {**environment, "DAYDO_DATA_DIR": str(folder)}
        asyncio.run(migrate_schema(load_settings(migrated, dotenv=folder / ".env")))
        yield environment


@pytest.fixture(scope="module", params=["embedded", "mariadb-redis"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A running service, shared by the tests of one module."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    environment = request.getfixturevalue("shared_backends") if request.param == "mariadb-redis" else {}
    with ServiceProcess(folder, {**environment, **GENEROUS, "DAYDO_AUTH__BCRYPT_ROUNDS": "4"}) as process:
        yield Deployment(process.url, folder, process.log)


@pytest.fixture(scope="module", params=["embedded", "mariadb-redis"])
def town(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """A running service whose users have phones and WeChat: the simulators are its outside world."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    shared = request.getfixturevalue("shared_backends") if request.param == "mariadb-redis" else {}
    with outside_world() as (sandbox, outside):
        environment = {**shared, **outside, **GENEROUS, **TOWN, "DAYDO_DATA_DIR": str(folder)}
        with ServiceProcess(folder, environment) as process:
            yield Town(process.url, folder, process.log, environment, sandbox)


@pytest.fixture
def visitor(service: Deployment) -> Iterator[Client]:
    """Somebody who has no account."""
    with Client(service.url) as client:
        yield client


@pytest.fixture
def user(service: Deployment) -> Iterator[Client]:
    """A fresh user with the welcome credits."""
    with Client(service.url) as client:
        yield client.register()


@pytest.fixture
def stranger(service: Deployment) -> Iterator[Client]:
    """Another fresh user."""
    with Client(service.url) as client:
        yield client.register()

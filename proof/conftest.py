"""Options of the long tests, and the shorter ones they are made of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from daydo_db import Database, migrate

sys.path.insert(0, str(Path(__file__).parents[1] / "packages" / "daydo-quota" / "tests"))
pytest.register_assert_rewrite("daydo_quota.testing", "quota_jobs", "test_quota_crash", "test_quota_model")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("proof")
    group.addoption("--seed", type=int, default=0, help="of everything that is random here")
    group.addoption("--examples", type=int, default=400, help="random histories per shard; a tenth of it through SQL")
    group.addoption("--rounds", type=int, default=2, help="how often clients and servers are killed anew")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "round_seed" in metafunc.fixturenames:
        seed, rounds = metafunc.config.option.seed, metafunc.config.option.rounds
        metafunc.parametrize("round_seed", [seed * 1_000 + number for number in range(rounds)])


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.option.seed)


@pytest.fixture
def examples(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.option.examples)


@pytest.fixture
async def migrated_url(database_url: str) -> str:
    """A fresh database with the ledger's tables."""
    async with Database(database_url) as db:
        await migrate(db, "daydo_quota")
    return database_url

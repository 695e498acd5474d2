"""The servers that these tests hurt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from victims import Victim, mariadb_to_kill, redis_to_kill


@pytest.fixture
def mariadb() -> Iterator[Victim]:
    with mariadb_to_kill() as victim:
        yield victim


@pytest.fixture
def redis() -> Iterator[Victim]:
    with redis_to_kill() as victim:
        yield victim

"""The crash matrix: clients and servers killed with SIGKILL, again and again; ``--rounds`` says how often."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_quota_crash import kill_clients, kill_server

from daydo_db import Database


@pytest.mark.dialect("mysql")
@pytest.mark.parametrize("processes", [1, 2, 4])
async def test_killed_clients_lose_and_double_nothing(migrated_url: str, processes: int, round_seed: int) -> None:
    """So many processes do the same jobs on the same accounts and die; a survivor repeats them all."""
    async with Database(migrated_url) as db:
        await kill_clients(db, migrated_url, processes, jobs=400, seed=round_seed)


async def test_a_server_that_is_killed_often_loses_and_doubles_nothing(tmp_path: Path, round_seed: int) -> None:
    """Work goes on through eight kills; whoever has no answer asks again with the same key."""
    await kill_server(tmp_path, kills=8, jobs=1_800)

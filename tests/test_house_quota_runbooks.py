"""What is typed in at night runs, on every database, and says what the page says it does."""

import asyncio
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daydo_db import Database, migrate
from daydo_kernel.testing import ManualClock
from daydo_quota import Account, Ledger, LedgerConfig

PAGES = Path(__file__).parents[1] / "runbooks"
CREDITS = Account("acme", "u_7", "credits")
NAMES = ("QuotaBooksDisagree", "QuotaHoldsStuck")


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as db:
        await migrate(db, "daydo_quota")
        yield db


def blocks(name: str, language: str) -> list[str]:
    page = (PAGES / f"{name}.md").read_text("utf-8")
    return [
        textwrap.dedent(found)
        for found in re.findall(rf"^ *```{language}\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL)
    ]


async def typed_in(command: str, url: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-c", command],
        env={**os.environ, "PATH": path, "DAYDO_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_its_parts(name: str) -> None:
    """The first line in both languages, its own name, and the five parts in their order."""
    first, _, *lines = (PAGES / f"{name}.md").read_text("utf-8").splitlines()
    assert re.search(r"[\u4e00-\u9fff].* / [A-Z]", first)
    heads = [line for line in lines if line.startswith("#")]
    assert heads == [f"# {name}", "## 中文摘要", "## Meaning", "## Impact", "## Diagnosis", "## Mitigation"]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_names_metrics_and_settings_that_exist(name: str) -> None:
    """A metric of the ledger, or a field of its configuration."""
    page = (PAGES / f"{name}.md").read_text("utf-8")
    families = {family.name for family in Ledger(Database("sqlite://")).metrics.snapshot()}
    tables = {"daydo_quota_account", "daydo_quota_grant", "daydo_quota_hold", "daydo_quota_entry", "daydo_quota_upkeep"}
    named = {found.removesuffix("_count") for found in re.findall(r"daydo_quota_\w+", page)}
    assert named - tables <= families
    fields = {found.lower() for found in re.findall(r"DAYDO_QUOTA__(\w+)", page)}
    assert fields <= set(LedgerConfig.__struct_fields__)


@pytest.mark.parametrize("name", NAMES)
async def test_its_statements_run(db: Database, name: str) -> None:
    """On every database as they stand there; what reads finds the account that is spoken of."""
    async with Ledger(db, LedgerConfig(sweep_interval_s=0), clock=ManualClock()) as ledger:
        for number in range(7):
            await ledger.grant(Account("acme", f"u_{number}", "credits"), 5, key=f"order_{number}")
            await ledger.reserve(Account("acme", f"u_{number}", "credits"), 2, key=f"task_{number}")
    statements = [part for block in blocks(name, "sql") for part in re.split(r";\n", block) if part.strip()]
    assert statements
    for statement in statements:
        if statement.startswith("UPDATE"):
            assert (await db.execute(statement)).rowcount == 1
        else:
            assert (await db.query(statement)).rows


async def test_the_audit_by_hand_names_what_is_wrong(db: Database, database_url: str) -> None:
    """Beside a running service, of one tenant."""
    [command] = blocks("QuotaBooksDisagree", "bash")
    async with Ledger(db) as ledger:
        await ledger.grant(CREDITS, 5, key="order")
        assert "disagreement=None" in await typed_in(command, database_url)
        await db.execute("UPDATE daydo_quota_account SET spent = 1")
        assert "an account differs from the sum of its grants" in await typed_in(command, database_url)


async def test_the_sweep_by_hand_frees_stuck_holds(db: Database, database_url: str) -> None:
    """And says at the end that nothing is stuck any more."""
    [command] = blocks("QuotaHoldsStuck", "bash")
    async with Ledger(db, LedgerConfig(sweep_interval_s=0), clock=ManualClock()) as ledger:
        await ledger.grant(CREDITS, 5, key="order")
        await ledger.reserve(CREDITS, 2, key="task")  # by a clock that is behind: overdue already
    said = await typed_in(command, database_url)
    assert said.startswith("1\n")
    assert "'stuck_hold_s': 0.0" in said

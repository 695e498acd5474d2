"""No statement that we ship reads a table from end to end, and none escapes this."""

from __future__ import annotations

import ast
import importlib
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from daydo_db import Database
from daydo_db.explain import Examined, Workload, examine
from daydo_db.plan import Access, Plan
from daydo_kernel import new_id
from reference_app import explain as explaining
from reference_app.explain import Judged, explain, judge, scratch, walked
from reference_app.explain_data import tables
from reference_app.settings import Settings

ROWS = 3_000  # Enough for every planner to prefer an index to the table.
FEW_ROWS = 1_000  # For SQLite, which does not count.

SHIPPED = ("daydo_auth", "daydo_quota", "daydo_pipeline", "reference_app")
# Modules that send SQL in tests, in probes of the command line, or to look at a database: never for a user.
NOT_WALKED = {
    "testing.py": "suites for users' tests, as are folders of that name",
    "check.py": "daydo check: one statement about version and clock, of no table",
    "explain_data.py": "generates the data that the walk finds",
    "explain.py": "makes and drops the scratch database",
}

# What keeps statements fast: each index, and a part of the statement that needs it.
INDEXES = {
    "daydo_quota_account_due": "next_due_at_us <=",
    "daydo_quota_barrier_at": "FROM daydo_quota_barrier WHERE at_us <",
    "daydo_auth_session_subject": "FROM daydo_auth_session WHERE tenant = ? AND subject = ?",
    "daydo_auth_session_expiry": "FROM daydo_auth_session WHERE expires_at_us <",
    "daydo_auth_revocation_time": "FROM daydo_auth_revocation WHERE at_us >",
    "daydo_auth_api_key_subject": "FROM daydo_auth_api_key WHERE tenant = ? AND subject = ?",
    "app_upload_by_owner": "app_upload",
    "daydo_pipeline_run_deadline": "deadline_us <=",
    "daydo_pipeline_step_worker": "FROM daydo_pipeline_step WHERE worker_id = ?",
    "daydo_pipeline_step_ready": "AND flow_key IN",
}
# Without these, another index gives all rows of a tenant: that shows where the server counts the rows it reads.
COUNTED_INDEXES = {
    "daydo_auth_identity_subject": "FROM daydo_auth_identity WHERE tenant = ? AND subject = ?",
    "app_profile_by_phone": "phone",
    "app_profile_by_email": "email",
    "app_invite_by_owner": "SELECT code, taken_at_us, claimed_at_us FROM app_invite",
    "app_invite_by_key": "`op_key` = ?",
    "app_invite_by_claim": "COUNT(*)",
}


async def _judged(db: Database, workload: Workload) -> list[Judged]:
    return judge(await examine(db, workload), await tables(db))


async def test_no_shipped_statement_scans_and_a_missing_index_shows(database_url: str) -> None:
    """On generated data, through every call; then without an index, the same examination finds who needed it."""
    async with scratch(database_url) as db:
        workload = await walked(db, rows=ROWS)
        assert [(judged.fault, judged.examined) for judged in await _judged(db, workload) if judged.fault] == []
        assert sorted(_sites() - _reached(workload)) == []
        assert _touched(workload) >= set(await tables(db)) - {"sqlite_sequence", "sqlite_stat1", "daydo_db_heartbeat"}
        for index, needs_it in (INDEXES | (COUNTED_INDEXES if db.dialect.name == "mysql" else {})).items():
            await _drop(db, index)
            assert any(judged.fault for judged in await _judged(db, workload.only(needs_it))), f"{index} is not missed"


async def _drop(db: Database, index: str) -> None:
    table = max((name for name in await tables(db) if index.startswith(f"{name}_")), key=len)
    await db.execute(f"DROP INDEX {index}" + (f" ON {table}" if db.dialect.name == "mysql" else ""))


def _touched(workload: Workload) -> set[str]:
    return {word for known in workload.examples for word in re.findall(r"\w+", known.text)}


def _reached(workload: Workload) -> set[str]:
    """The places, out of :func:`_sites`, that have sent a statement."""
    return {
        _site(path, node)
        for path, node in _calls()
        if any((str(path), line) in workload.callers for line in range(node.lineno, (node.end_lineno or 0) + 1))
    }


def _sites() -> set[str]:
    return {_site(path, node) for path, node in _calls()}


def _site(path: Path, node: ast.Call) -> str:
    return f"{path.parent.name}/{path.name}:{node.lineno}"


def _calls() -> Iterator[tuple[Path, ast.Call]]:
    """Every call in the sources that sends: ``x.execute(…)``, ``x.query(…)``; in a repository ``run(query, …)``."""
    for package in SHIPPED:
        for path in sorted(Path(str(importlib.import_module(package).__file__)).parent.rglob("*.py")):
            if path.name not in NOT_WALKED and path.parent.name != "testing":
                for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                    if isinstance(node, ast.Call) and _sends(path, node.func):
                        yield path, node


def _sends(path: Path, called: ast.expr) -> bool:
    if isinstance(called, ast.Attribute):
        is_page = called.attr == "page" and path.name == "repository.py"
        return called.attr in ("execute", "execute_all", "query") or is_page
    return path.name == "repository.py" and isinstance(called, ast.Name) and called.id in ("run", "affected")


def test_the_sources_are_looked_through() -> None:
    """The list of places is not empty by mistake."""
    files = {site.partition("/")[2].partition(":")[0] for site in _sites()}
    assert {"store.py", "ledger.py", "history.py", "janitor.py", "stream.py", "repository.py"} <= files
    assert {"sql_sessions.py", "feed.py", "role_store.py", "identities.py", "key_rows.py"} <= files


@pytest.mark.parametrize(("condition", "fault"), [("", ""), (" WHERE name = ?", "scans daydo_auth_role")])
def test_what_workers_hold_is_read_whole_only_where_all_of_it_is_asked_for(condition: str, fault: str) -> None:
    """All roles are read by whoever asks for all: one who wants some of them has to use the index."""
    scan = Access(table="daydo_auth_role", how="SCAN", scan=True)
    examined = Examined(
        fingerprint="",
        statement=f"SELECT permissions FROM daydo_auth_role{condition}",
        plan=Plan(accesses=(scan,)),
        rows_read=10_000,
        rows_returned=1,
    )
    assert [judged.fault for judged in judge([examined], ["daydo_auth_role"])] == [fault]


async def test_the_command_prints_the_verdicts(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Exit status 0, and the plans beside the statements: a line each, for `cut`. Nothing is said of made-up rows."""
    assert await explain(Settings(), rows=FEW_ROWS) == 0
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    printed = capsys.readouterr().out
    assert {(line.split("\t")[0], len(line.split("\t"))) for line in printed.splitlines()} == {("ok", 5)}
    assert "daydo_quota_account" in printed
    assert "scans" not in printed


async def test_the_command_fails_where_a_statement_scans(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With fewer tables that may be read whole, those that are come out, first and by name."""
    monkeypatch.setattr(explaining, "SMALL_BY_DESIGN", frozenset[str]())
    assert await explain(Settings(), rows=FEW_ROWS) == 1
    assert "scans" in capsys.readouterr().out


@pytest.mark.dialect("mysql")
async def test_the_scratch_database_is_gone_afterwards(database_url: str) -> None:
    """Also when the work on it fails; the configured database is not touched."""
    async with Database(database_url) as own:
        names = []
        with suppress(LookupError):
            async with scratch(database_url) as db:
                names.append(db.location.name)
                await db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
                raise LookupError
        assert set(names).isdisjoint(found for (found,) in (await own.query("SHOW DATABASES")).rows)
        assert len(names) == 1
        assert await tables(own) == []


@pytest.mark.dialect("mysql")
async def test_what_a_killed_run_has_left_goes_with_the_next_one(database_url: str) -> None:
    """Only what is ours and old: a younger database may be another run's, at this moment."""
    old, young = f"daydo_explain_{'0' * 26}", new_id("daydo_explain").lower()
    foreign = f"daydo_explain_{'0' * 25}"
    async with Database(database_url) as own:
        for name in (old, young, foreign):
            await own.execute(f"CREATE DATABASE IF NOT EXISTS {name}")
        try:
            async with scratch(database_url):
                found = {name for (name,) in (await own.query("SHOW DATABASES")).rows}
            assert (old in found, young in found, foreign in found) == (False, True, True)
        finally:
            for name in (old, young, foreign):
                await own.execute(f"DROP DATABASE IF EXISTS {name}")

"""Every package's schema leaves the version before it running; so does the code that will be the version before."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from daydo_db import Database, migrate
from daydo_db.expand import lint

ROOT = Path(__file__).parents[1]
# Suites shipped in `testing` make tables of their own.
SOURCES = [
    path
    for folder in ("packages/*/src", "reference_app/src")
    for path in sorted(ROOT.glob(f"{folder}/**/*.py"))
    if "testing" not in (path.stem, path.parent.name)
]
SCHEMAS = sorted({path.parent.name for path in ROOT.glob("**/src/*/schema")})
BY_POSITION = re.compile(r"\b(?:INSERT|REPLACE)(?: OR \w+)?(?: IGNORE)? INTO [\w{}]+ +(?:VALUES|SELECT)\b")


def test_there_are_schemas() -> None:
    """A pattern that finds nothing would pass everything."""
    assert {"daydo_auth", "daydo_pipeline", "daydo_quota", "reference_app"} <= set(SCHEMAS)


@pytest.mark.parametrize("package", SCHEMAS)
def test_schema_files_expand_before_they_contract(package: str) -> None:
    """``python -m daydo_db lint`` has nothing to say; docs/how-to/migrations.md tells what to do where it has."""
    assert list(map(str, lint(package))) == []


def test_code_names_the_columns_it_writes() -> None:
    """INSERT without a list of columns stops working on the next release's schema: name the columns."""
    by_position = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and BY_POSITION.search(" ".join(str(node.value).split()))
    ]
    assert by_position == []


@pytest.mark.dialect("mysql")
async def test_the_runbooks_statements_run(database_url: str) -> None:
    """Typed in at night, on MySQL and on MariaDB; they touch nothing that is not named."""
    page = (ROOT / "docs" / "how-to" / "migrations.md").read_text("utf-8")
    typed = re.findall(r"^((?:SELECT|UPDATE) .*);$", page, re.MULTILINE)
    assert len(typed) == 4
    async with Database(database_url) as db:
        await migrate(db, "daydo_db")
        for statement in typed:
            await db.execute(statement)
        await db.require_schema("daydo_db")

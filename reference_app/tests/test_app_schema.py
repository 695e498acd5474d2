"""The numbered SQL of the domains is what their tables say."""

from __future__ import annotations

from importlib.resources import files

import pytest

from daydo_db import MYSQL, SQLITE
from daydo_db.piccolo import schema
from reference_app.accounts.tables import TABLES
from reference_app.images.tables import Upload


@pytest.mark.parametrize("dialect", [SQLITE, MYSQL], ids=["sqlite", "mysql"])
@pytest.mark.parametrize(("file", "tables"), [("0001_accounts", TABLES), ("0002_images", (Upload,))])
def test_the_first_version_of_a_schema_is_the_ddl_of_its_tables(file, tables, dialect):
    """Whoever changes a table adds a numbered file; whoever changes only one of the two learns it here."""
    text = (files("reference_app") / "schema" / dialect.name / f"{file}.sql").read_text()
    assert text == schema([*tables], dialect)

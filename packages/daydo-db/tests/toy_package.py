"""An importable package whose schema files a test writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from daydo_db import SQLITE, Database

ORDERS = """-- The shop's orders; a semicolon in a comment ends nothing;
CREATE TABLE shop_order (
  id VARCHAR(40) NOT NULL PRIMARY KEY,
  -- fen; never a float
  amount BIGINT NOT NULL
);
CREATE INDEX shop_order_amount ON shop_order (amount);

INSERT INTO shop_order (id, amount) VALUES ('100% ?; first', 1);
"""
NOTE = "ALTER TABLE shop_order ADD COLUMN note VARCHAR(100);\nUPDATE shop_order SET amount = amount + 1;\n"


class ToyPackage:
    """``shop_of_a_test``, importable in this process and, with :meth:`run`, in others."""

    name = "shop_of_a_test"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path / self.name
        self.folder.mkdir()
        (self.folder / "__init__.py").write_text("")

    def write(self, file: str, text: str | bytes, *, dialects: tuple[str, ...] = ("sqlite", "mysql")) -> None:
        for dialect in dialects:
            target = self.folder / "schema" / dialect
            target.mkdir(parents=True, exist_ok=True)
            (target / file).write_bytes(text if isinstance(text, bytes) else text.encode())

    def remove(self, file: str) -> None:
        for target in self.folder.glob(f"schema/*/{file}"):
            target.unlink()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The real command line in a process of its own."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.path), *sys.path])}
        command = [sys.executable, "-m", "daydo_db", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate()
        return process.returncode, out, err


async def look(db: Database) -> dict[str, Any]:
    """Every table as the server describes it and holds it; what the runner keeps for itself without its times."""
    if db.dialect is SQLITE:
        rows = (await db.query("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")).rows
        seen: dict[str, Any] = dict(rows)
        names = [name for name, sql in rows if sql.startswith("CREATE TABLE")]
    else:
        names = [name for (name,) in (await db.query("SHOW TABLES")).rows]
        seen = {name: (await db.query(f"SHOW CREATE TABLE {name}")).rows[0][1] for name in names}
    for name in names:
        columns = "package, version, statement, state, checksum" if name == "daydo_migration" else "*"
        seen[f"rows of {name}"] = sorted((await db.query(f"SELECT {columns} FROM {name}")).rows, key=repr)
    return seen

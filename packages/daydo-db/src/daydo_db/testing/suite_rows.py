"""The rows that both suites write and look at."""

from __future__ import annotations

from daydo_db.database import Database
from daydo_db.tx import Tx

SUITE_TABLE = {
    "sqlite": (
        """CREATE TABLE suite_row (
             id INTEGER PRIMARY KEY, name TEXT NOT NULL, n INTEGER, share REAL, note TEXT, raw BLOB,
             CONSTRAINT suite_name UNIQUE (name), CONSTRAINT suite_share CHECK (share >= -0.5))""",
        "CREATE TABLE suite_part (id INTEGER PRIMARY KEY, row_id INTEGER NOT NULL REFERENCES suite_row (id))",
    ),
    "mysql": (
        """CREATE TABLE suite_row (
             id BIGINT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(100) NOT NULL, n BIGINT, share DOUBLE,
             note TEXT CHARACTER SET utf8mb4, raw BLOB,
             CONSTRAINT suite_name UNIQUE (name), CONSTRAINT suite_share CHECK (share >= -0.5)) ENGINE=InnoDB""",
        """CREATE TABLE suite_part (
             id BIGINT AUTO_INCREMENT PRIMARY KEY, row_id BIGINT NOT NULL,
             CONSTRAINT suite_points FOREIGN KEY (row_id) REFERENCES suite_row (id)) ENGINE=InnoDB""",
    ),
}


class Stop(Exception):
    """Raised by a test to leave a block."""


async def add_row(tx: Tx, name: str, n: int = 0) -> None:
    await tx.execute("INSERT INTO suite_row (name, n) VALUES (?, ?)", (name, n))


async def names_of(db: Database) -> list[str]:
    return [name for (name,) in (await db.query("SELECT name FROM suite_row ORDER BY name")).rows]


async def names_in(tx: Tx) -> list[tuple[str]]:
    return (await tx.execute("SELECT name FROM suite_row")).rows

"""Whose time it is: the database's, unless a clock was passed in."""

from __future__ import annotations

from daydo_kernel import Clock

from .database import Database
from .tx import Dialect, Tx


def now_sql(dialect: Dialect, clock: Clock | None) -> str:
    """An SQL expression for the time in µs UTC, to be read in the packet that locks."""
    return dialect.now_us if clock is None else str(clock.now_us())


async def read_now_us(where: Database | Tx, clock: Clock | None) -> int:
    """The time in µs UTC, where no other statement can carry it; costs a round trip without a clock."""
    if clock is not None:
        return clock.now_us()
    sql = f"SELECT {where.dialect.now_us}"
    result = await (where.query(sql) if isinstance(where, Database) else where.execute(sql))
    return int(result.rows[0][0])

"""EXPLAIN, asked and read: which tables a statement reads through which index, and which from end to end."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

import msgspec

from .tx import DialectName, Result, Statement

MANY_ROWS = 500
"""An index read from end to end, or a sort, counts from this estimate on: below, it is the cheapest thing to do."""

# Tabular: JSON and TREE show the values that rows are compared with. None of these executes the statement.
_EXPLAIN = {"sqlite": "EXPLAIN QUERY PLAN ", "mysql": "EXPLAIN FORMAT=TRADITIONAL "}
_asked = itertools.count()
_EXPLAINABLE = frozenset({"SELECT", "INSERT", "REPLACE", "UPDATE", "DELETE", "WITH"})

_ACCESS = re.compile(r"(SCAN|SEARCH) (?:TABLE )?(\w+)(?: AS (\w+))?(.*)")
_DERIVED = re.compile(r"(?:CO-ROUTINE|MATERIALIZE) (\w+)")
# Not tables of the database: rows written in the statement, virtual tables.
_NO_TABLE = re.compile(r"SCAN (?:TABLE )?(?:CONSTANT ROW|\d+ CONSTANT ROWS?|\d+-ROW |SUBQUERY|.*VIRTUAL TABLE)")
_NAMED = re.compile(r"\b(?:FROM|JOIN|UPDATE|INTO) [\"`]?(\w+)[\"`]?(?: (?:AS )?[\"`]?(\w+))?", re.IGNORECASE)


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How one table is read.

    Attributes:
        how: in the engine's own words; no values in it.
        scan: from end to end, the table or an index of it.
        rows: the server's estimate; None on SQLite.
    """

    table: str
    how: str
    scan: bool
    rows: int | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """``sorts``: the server puts rows aside and sorts them (on MySQL: many rows)."""

    accesses: tuple[Access, ...] = ()
    sorts: bool = False

    @property
    def scans(self) -> tuple[str, ...]:
        """The tables that are read from end to end."""
        return tuple(sorted({access.table for access in self.accesses if access.scan}))


def explaining(dialect: DialectName, statement: Statement) -> Statement | None:
    """The statement that asks for the plan of ``statement``, with the same arguments; None: it has no plan."""
    if statement.verb not in _EXPLAINABLE:
        return None
    # Never the same text twice: SQLite's driver keeps compiled statements, and an EXPLAIN does not notice that an
    # index has come or gone since.
    fresh = f"/* {next(_asked)} */ " if dialect == "sqlite" else ""
    return Statement(f"{_EXPLAIN[dialect]}{fresh}{statement.text}", statement.placeholders, "EXPLAIN")


def read_plan(dialect: DialectName, statement: str, explained: Result) -> Plan:
    """What EXPLAIN said; ``statement`` tells which tables its aliases stand for."""
    aliases = {alias or table: table for table, alias in _NAMED.findall(statement)}
    return (_read_sqlite if dialect == "sqlite" else _read_mysql)(aliases, explained)


def _read_mysql(aliases: Mapping[str, str], explained: Result) -> Plan:
    accesses, sorts = [], False
    for values in explained.rows:
        row = dict(zip(explained.columns, values, strict=True))
        table, rows = str(row["table"] or "<none>"), int(row["rows"] or 0)
        extra = str(row["Extra"] or "")
        sorts = sorts or ("filesort" in extra and rows >= MANY_ROWS)
        # "<derived2>" is what another line has put aside; the line of an INSERT reads nothing.
        if table.startswith("<") or row["type"] is None or row["rows"] is None:
            continue
        whole = row["type"] == "ALL" or (row["type"] == "index" and rows >= MANY_ROWS)
        how = " ".join(filter(None, [row["type"], row["key"], extra]))
        accesses.append(Access(table=aliases.get(table, table), how=how, scan=whole, rows=rows))
    return Plan(accesses=tuple(accesses), sorts=sorts)


def _read_sqlite(aliases: Mapping[str, str], explained: Result) -> Plan:
    lines = [(parent, str(detail)) for _, parent, _, detail in explained.rows]
    derived = {(parent, found[1]) for parent, detail in lines if (found := _DERIVED.match(detail))}
    accesses = []
    for parent, detail in lines:
        found = _ACCESS.match(detail)
        if found is None or _NO_TABLE.match(detail) or (parent, found[2]) in derived:
            continue
        name = found[3] or found[2]
        # An automatic index is made for this one execution, by reading the whole table; and a search without an index
        # is how a MIN or MAX over all rows is called.
        whole = found[1] == "SCAN" or "AUTOMATIC" in found[4] or "USING" not in found[4]
        accesses.append(Access(table=aliases.get(name, found[2]), how=f"{found[1]}{found[4]}", scan=whole))
    return Plan(accesses=tuple(accesses), sorts=any("TEMP B-TREE" in detail for _, detail in lines))

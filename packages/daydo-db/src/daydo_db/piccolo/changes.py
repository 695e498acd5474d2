"""From one version of a Table class to the next: the statements for a numbered schema file.

What comes out is what a fresh database would have, and no statement loses data that was not said to go: a column
that is gone is either ``renamed`` or ``dropped``, by name; a type only widens; NULLs that may no longer be are
filled with the column's default, and without one refused.

MySQL commits every DDL statement by itself, so each statement here does one thing, in an order in which every step
stands alone: constraints that would be in the way go first, an index that a foreign key leans on goes after its
successor has come. SQLite can add, rename and drop a plain column and an index; all else is its documented rebuild:
a new table, a copy, and the old name. The migration runner switches ``foreign_keys`` off for that and checks them
before COMMIT.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping

from piccolo.columns import Column
from piccolo.table import Table

from daydo_db.tx import MYSQL, SQLITE, Dialect

from .ddl import (
    Rule,
    checked_name,
    column_type,
    constraints,
    create_index,
    create_table,
    default_text,
    definition,
    indexes,
    primary_key,
)
from .errors import Unsupported

# Each type holds all values of those before it.
_WIDER = (
    ("BOOLEAN", "SMALLINT", "INTEGER", "BIGINT"),
    ("BOOLEAN", "SMALLINT", "INTEGER", "DOUBLE"),
)
_VARCHAR = re.compile(r"VARCHAR\((\d+)\)(.*)")


def changes(
    before: type[Table],
    after: type[Table],
    dialect: Dialect,
    *,
    renamed: Mapping[str, str] | None = None,
    dropped: Collection[str] = (),
) -> list[str]:
    """The statements that lead from ``before`` to ``after``, without closing semicolons; empty where nothing changes.

    Both are versions of one table: same name, same primary key. Rows survive.

    Args:
        renamed: columns' new names by their old ones, as they are called in the database. A new name may have been
            that of a column which is itself renamed or dropped.
        dropped: columns that go, with all they hold.

    Raises:
        Unsupported: a change that would lose data or is not the same on both databases; it names the way in steps.
        ValueError: ``renamed`` and ``dropped`` do not fit the two versions, or each other.
    """
    return _Change(before, after, dialect, dict(renamed or {}), dropped).statements()


class _Change:
    """The two versions side by side; columns and rules by name, those of ``before`` under their new names."""

    def __init__(
        self,
        before: type[Table],
        after: type[Table],
        dialect: Dialect,
        renamed: dict[str, str],
        dropped: Collection[str],
    ) -> None:
        self.table, self.dialect = after, dialect
        self.tablename = checked_name(after._meta.tablename)
        self.new = _columns(after)
        self._require_named(before, renamed, set(dropped))
        self.renamed = _one_by_one({**renamed, **self._set_aside(before, renamed, dropped)})
        self.old = {self.renamed.get(name, name): column for name, column in _columns(before).items()}
        self.old_rules = _by_name(self._moved(rule) for rule in (*constraints(before, dialect), *indexes(before)))
        self.new_rules = _by_name((*constraints(after, dialect), *indexes(after)))
        for name in self.added:
            self._require_filled(name)
        for name in self.old.keys() & self.new.keys():
            self._require_wider(name)

    def statements(self) -> list[str]:
        if self.dialect is not SQLITE:
            return list(self._mysql())
        return list(self._rebuilt() if self._needs_rebuild() else self._sqlite())

    @property
    def added(self) -> list[str]:
        return [name for name in self.new if name not in self.old]

    @property
    def gone(self) -> list[str]:
        return [name for name in self.old if name not in self.new]

    @property
    def altered(self) -> list[str]:
        both = [name for name in self.new if name in self.old]
        return [name for name in both if self._definition(self.old[name], name) != self._definition(self.new[name])]

    def _mysql(self) -> Iterator[str]:
        alter, rules = f"ALTER TABLE {self.tablename}", self._rules_that_go()
        replaced = {rule.name for rule in self._rules_that_come()}
        keys = [rule for rule in rules if rule.kind in ("unique", "index") and rule.name not in replaced]
        referring = {rule.columns[0] for rule in self.new_rules.values() if rule.kind == "foreign"}
        leant_on = [rule for rule in keys if rule.columns[0] in referring]
        yield from (f"{alter} DROP FOREIGN KEY {rule.name}" for rule in rules if rule.kind == "foreign")
        yield from (f"{alter} DROP CONSTRAINT {rule.name}" for rule in rules if rule.kind == "check")
        yield from (f"{alter} DROP INDEX {rule.name}" for rule in keys if rule not in leant_on)
        yield from (f"{alter} RENAME COLUMN {old} TO {new}" for old, new in self.renamed.items())
        for name in self.added:
            yield f"{alter} ADD COLUMN {self._definition(self.new[name])}{self._place(name)}"
        for name in self.altered:
            if self._fills(name):
                yield f"UPDATE {self.tablename} SET {name} = {self._default(name)} WHERE {name} IS NULL"  # noqa: S608
            yield f"{alter} MODIFY COLUMN {self._definition(self.new[name])}"
        yield from self._mysql_keys()
        yield from (f"{alter} DROP INDEX {rule.name}" for rule in leant_on)
        yield from (f"{alter} DROP COLUMN {name}" for name in self.gone)
        for rule in self._rules_that_come():
            if rule.kind in ("check", "foreign"):
                yield f"{alter} ADD CONSTRAINT {rule.name} {rule.text}"

    def _mysql_keys(self) -> Iterator[str]:
        alter = f"ALTER TABLE {self.tablename}"
        for rule in self._rules_that_come():
            unique = "UNIQUE " if rule.kind == "unique" else ""
            if rule.kind not in ("unique", "index"):
                continue
            if rule.name in self.old_rules:
                # In one statement, for a foreign key may lean on it.
                yield f"{alter} DROP INDEX {rule.name}, ADD {unique}INDEX {rule.name} ({', '.join(rule.columns)})"
            elif unique:
                yield f"{alter} ADD CONSTRAINT {rule.name} {rule.text}"
            else:
                yield create_index(self.table, rule)

    def _needs_rebuild(self) -> bool:
        changed = [*self._rules_that_go(), *self._rules_that_come()]
        plain = all(self.new[name]._meta.null or self._default(name) for name in self.added)
        return bool(self.altered) or not plain or any(rule.kind != "index" for rule in changed)

    def _sqlite(self) -> Iterator[str]:
        yield from (f"DROP INDEX {rule.name}" for rule in self._rules_that_go())
        for old, new in self.renamed.items():
            yield f"ALTER TABLE {self.tablename} RENAME COLUMN {old} TO {new}"
        yield from (f"ALTER TABLE {self.tablename} DROP COLUMN {name}" for name in self.gone)
        for name in self.added:
            yield f"ALTER TABLE {self.tablename} ADD COLUMN {self._definition(self.new[name])}"
        yield from (create_index(self.table, rule) for rule in self._rules_that_come())

    def _rebuilt(self) -> Iterator[str]:
        rebuilt = checked_name(f"{self.tablename[:58]}_new")
        before = {new: old for old, new in self.renamed.items()}
        kept = [name for name in self.new if name in self.old]
        values = [before.get(name, name) for name in kept]
        values = [
            f"COALESCE({value}, {self._default(name)})" if self._fills(name) else value
            for name, value in zip(kept, values, strict=True)
        ]
        yield create_table(self.table, rebuilt, self.dialect)
        yield f"INSERT INTO {rebuilt} ({', '.join(kept)}) SELECT {', '.join(values)} FROM {self.tablename}"  # noqa: S608
        yield f"DROP TABLE {self.tablename}"
        yield f"ALTER TABLE {rebuilt} RENAME TO {self.tablename}"
        yield from (create_index(self.table, rule) for rule in self.new_rules.values() if rule.kind == "index")

    def _rules_that_go(self) -> list[Rule]:
        """Also those whose columns change their type: MySQL leaves none in a foreign key's way."""
        return [rule for name, rule in self.old_rules.items() if self._differs(rule, self.new_rules.get(name))]

    def _rules_that_come(self) -> list[Rule]:
        return [rule for name, rule in self.new_rules.items() if self._differs(rule, self.old_rules.get(name))]

    def _differs(self, rule: Rule, other: Rule | None) -> bool:
        altered = rule.kind == "foreign" and not set(self.altered).isdisjoint(rule.columns)
        return rule != other or altered

    def _moved(self, rule: Rule) -> Rule:
        """A rule of ``before`` as it stands once the columns have been renamed.

        A CHECK does not follow, and the same words mean other columns then: it goes, and comes again.
        """
        if rule.kind == "check":
            return rule._replace(columns=tuple(name for name in self.renamed if re.search(rf"\b{name}\b", rule.text)))
        columns = tuple(self.renamed.get(name, name) for name in rule.columns)
        text = rule.text.replace(f"({', '.join(rule.columns)})", f"({', '.join(columns)})", 1)
        return Rule(rule.kind, rule.name, columns, text)

    def _definition(self, column: Column, name: str | None = None) -> str:
        text = definition(column, self.dialect)
        return text if name is None else f"{name} {text.partition(' ')[2]}"

    def _default(self, name: str) -> str | None:
        return default_text(self.new[name], self.dialect)

    def _fills(self, name: str) -> bool:
        return self.old[name]._meta.null and not self.new[name]._meta.null

    def _place(self, name: str) -> str:
        names = list(self.new)
        position = names.index(name)
        return f" AFTER {names[position - 1]}" if position else " FIRST"

    def _set_aside(self, before: type[Table], renamed: dict[str, str], dropped: Collection[str]) -> dict[str, str]:
        """Other names for the dropped columns whose own name another gets: they go at the end, as all dropped do."""
        aside: dict[str, str] = {}
        for name in sorted(set(dropped) & set(renamed.values())):
            taken = _columns(before).keys() | self.new.keys() | set(aside.values())
            names = (f"{name[:54]}_gone{number or ''}" for number in itertools.count())
            aside[name] = next(free for free in names if free not in taken)
        return aside

    def _require_named(self, before: type[Table], renamed: dict[str, str], dropped: set[str]) -> None:
        if before._meta.tablename != self.tablename:
            raise Unsupported(what="renaming a table", instead="a new table, and statements of yours that copy")
        if renamed.get(primary_key(before), primary_key(before)) != primary_key(self.table):
            raise Unsupported(what="another primary key", instead="a new table, and statements of yours that copy")
        old, targets = _columns(before).keys(), set(renamed.values())
        unknown = (renamed.keys() | dropped) - old | targets - self.new.keys()
        if unknown:
            raise ValueError(f"{self.tablename} has no {', '.join(sorted(unknown))}")
        stays = self.new.keys() - targets
        if renamed.keys() & dropped or dropped & stays or len(targets) < len(renamed):
            raise ValueError(f"{self.tablename}: one column is renamed and dropped, dropped and kept, or made of two")
        lost = old - renamed.keys() - dropped - stays
        if lost:
            names = ", ".join(sorted(lost))
            raise Unsupported(what=f"dropping {names} unsaid", instead="renamed={old: new} or dropped={name}")

    def _require_filled(self, name: str) -> None:
        if not self.new[name]._meta.null and self._default(name) is None:
            raise Unsupported(what=f"a new column {name} that rows must fill", instead="default=… or null=True")

    def _require_wider(self, name: str) -> None:
        # By MySQL's types on both: SQLite's own would not tell a SMALLINT from a BIGINT.
        old, new = (column_type(column, MYSQL) for column in (self.old[name], self.new[name]))
        if old != new and self.new[name]._meta.primary_key:
            raise Unsupported(what="another type of primary key", instead="a new table, and statements that copy")
        if old != new and not _is_wider(old, new):
            raise Unsupported(
                what=f"changing {name} from {old} to {new}",
                instead="a new column, a statement of yours that fills it, and dropped={name} in a later version",
            )
        if self._fills(name) and self._default(name) is None:
            raise Unsupported(what=f"NOT NULL for {name}, which may hold NULLs", instead="default=…, which fills them")


def _one_by_one(renamed: dict[str, str]) -> dict[str, str]:
    """In an order in which every new name is free when its turn comes."""
    left, ordered = dict(renamed), dict[str, str]()
    while left:
        free = [old for old, new in left.items() if new not in left]
        if not free:
            names = ", ".join(sorted(left))
            raise Unsupported(what=f"renaming {names} in a circle", instead="two versions, another name in between")
        ordered |= {old: left.pop(old) for old in free}
    return ordered


def _is_wider(old: str, new: str) -> bool:
    if any(old in row and new in row and row.index(old) < row.index(new) for row in _WIDER):
        return True
    from_text = _VARCHAR.fullmatch(old)
    if from_text is None:
        return False
    to_text = _VARCHAR.fullmatch(new)
    if to_text is None:
        return new == "MEDIUMTEXT"
    # ASCII is part of UTF-8, not the other way round.
    return int(to_text[1]) >= int(from_text[1]) and to_text[2] in ("", from_text[2])


def _columns(table: type[Table]) -> dict[str, Column]:
    return {column._meta.db_column_name: column for column in table._meta.columns}


def _by_name(rules: Iterator[Rule] | Collection[Rule]) -> dict[str, Rule]:
    return {rule.name: rule for rule in rules}

"""Expand, then contract: what a schema file may do while the version before it still runs.

Migrations run before the new code does, so for a while, and after a rollback, version N-1 of the code works on
schema N. A file after the first therefore only adds what old code does not notice: tables, plain indexes, columns
that are nullable or have a default. What takes away or tightens comes a release after the last code that needs it,
in a file whose first line says so::

    -- contract: needs code >= 0.3

Whether a statement contracts cannot always be told from its text (a type that only becomes wider; on SQLite a table
made anew with all its columns). Then the first line says why old code does not notice::

    -- expand: note becomes longer, nothing reads its type

The rules read SQL text alone; they know no tables but those that the same file creates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

import msgspec

from .schema_files import SchemaFile, masked, schema_files, schema_folder
from .tx import DialectName

_NAME = r'(?:IF (?:NOT )?EXISTS )?((?:[\w$]+|"[^"]+"|`[^`]+`|\[[^\]]+\])(?: ?\. ?(?:[\w$]+|"[^"]+"|`[^`]+`))?)'
_CREATES = re.compile(rf"CREATE (?:OR REPLACE )?(?:TEMP(?:ORARY)? )?TABLE {_NAME}", re.IGNORECASE)
_UNIQUE_INDEX = re.compile(rf"CREATE (?:OR REPLACE )?UNIQUE INDEX {_NAME} ON {_NAME}", re.IGNORECASE)
_ALTERS = re.compile(rf"ALTER (?:ONLINE |IGNORE )*TABLE {_NAME} (.*)", re.IGNORECASE)
_TAKES_AWAY = re.compile(rf"(DROP TABLE|DROP VIEW|RENAME TABLE|TRUNCATE TABLE|TRUNCATE) {_NAME}", re.IGNORECASE)
_DROPS_INDEX = re.compile(rf"DROP INDEX {_NAME}(?: ON {_NAME})?", re.IGNORECASE)

# Clauses of ALTER TABLE. What is not listed takes away or tightens.
_ADDS_INDEX = re.compile(r"ADD (?:(?:FULLTEXT |SPATIAL )?(?:INDEX|KEY)|FULLTEXT|SPATIAL)\b", re.IGNORECASE)
_ADDS_CONSTRAINT = re.compile(r"ADD (?:CONSTRAINT|UNIQUE|PRIMARY|FOREIGN|CHECK|PARTITION)\b", re.IGNORECASE)
_ADDS_SEVERAL = re.compile(r"ADD (?:COLUMN )?\(", re.IGNORECASE)
_ADDS_COLUMN = re.compile(r"ADD (?:COLUMN )?", re.IGNORECASE)
_HARMLESS = re.compile(
    r"ALTER (?:COLUMN )?\S+ SET DEFAULT|ALTER INDEX|DROP (?:CONSTRAINT|CHECK|FOREIGN KEY)"
    r"|ALGORITHM\b|LOCK\b|COMMENT\b|AUTO_INCREMENT\b|ENGINE\b|ROW_FORMAT\b",
    re.IGNORECASE,
)
_UNNAMED = re.compile(
    r"ADD (?:(?:UNIQUE |FULLTEXT |SPATIAL )?(?:INDEX|KEY)|UNIQUE|FULLTEXT|SPATIAL|FOREIGN KEY|CHECK) ?\(",
    re.IGNORECASE,
)
_NOT_NULL = re.compile(r"\bNOT NULL\b", re.IGNORECASE)
_FILLS_ITSELF = re.compile(r"\b(DEFAULT|GENERATED|AS ?\(|AUTO_INCREMENT)", re.IGNORECASE)
_INSERTS = re.compile(
    rf"(?:INSERT|REPLACE)\b(?: OR \w+)?(?: IGNORE)?(?: INTO)? {_NAME} ?(\((?! ?SELECT)|SET\b|DEFAULT\b)?", re.IGNORECASE
)
_STAR = re.compile(r"\bSELECT (?:ALL |DISTINCT )?(?:\w+\.)?\*", re.IGNORECASE)

_CONTRACT = "in a later release, with a first line like '-- contract: needs code >= 0.3'"


class Problem(msgspec.Struct, frozen=True):
    """A rule that a schema file breaks; ``rule`` names what to do instead.

    ``file`` is like ``shop/schema/mysql/0002_note.sql``; ``statement`` counts from 1, 0 being the file itself.
    """

    file: str
    statement: int
    sql: str
    rule: str

    def __str__(self) -> str:
        where = f"{self.file}, statement {self.statement}" if self.statement else self.file
        return f"{where}: {self.rule}" + (f"\n    {self.sql}" if self.sql else "")


def lint(package: str) -> list[Problem]:
    """Check the schema files of a package, on each dialect it has.

    Raises:
        ValueError: it is not importable, has no schema, or a file cannot be read.
    """
    folder = schema_folder(package)
    dialects: list[DialectName] = ["sqlite", "mysql"]
    shipped = {each: schema_files(each, package) for each in dialects if folder.joinpath(each).is_dir()}
    if not shipped:
        raise ValueError(f"{package} has no folder schema/sqlite or schema/mysql")
    return [
        *_on_one_side(package, shipped),
        *_too_early(package, shipped),
        *(problem for dialect, files in shipped.items() for file in files for problem in check_file(dialect, file)),
    ]


def check_file(dialect: DialectName, file: SchemaFile) -> list[Problem]:
    """The rules that one file breaks. The first one creates, so nothing runs on what was before it."""
    judged = file.version > 1 and not file.needs and not file.reason
    own: set[str] = set()
    problems = []
    for number, text in enumerate(file.statements, 1):
        statement = masked(dialect, text)
        if created := _CREATES.match(statement):
            own.add(_plain(created[1]))
        rules = [*_always(statement, dialect), *(_contracts(statement, own) if judged else ())]
        problems += [Problem(_path(dialect, file), number, statement[:100], rule) for rule in rules]
    return problems


def _on_one_side(package: str, shipped: dict[DialectName, list[SchemaFile]]) -> Iterator[Problem]:
    names = {dialect: {f"{file.version:04}_{file.name}.sql" for file in files} for dialect, files in shipped.items()}
    for dialect, here in names.items():
        for other in names.keys() - {dialect}:
            for name in sorted(here - names[other]):
                rule = f"schema/{other} has no file of this name; a version means the same on both"
                yield Problem(f"{package}/schema/{dialect}/{name}", 0, "", rule)


def _too_early(package: str, shipped: dict[DialectName, list[SchemaFile]]) -> Iterator[Problem]:
    """A contraction in the release that first can do without: the release before still runs when it is applied."""
    try:
        release = _numbers(metadata.version(package))
    except metadata.PackageNotFoundError:
        return  # Not installed as a distribution of this name, so there is no release to compare with.
    for dialect, files in shipped.items():
        for file in files:
            needs = _numbers(file.needs)
            if needs and release[: len(needs)] <= needs:
                rule = f"it needs code >= {file.needs}, so it belongs to a later release than this one"
                yield Problem(_path(dialect, file), 0, "", rule)


def _numbers(version: str) -> tuple[int, ...]:
    begin = re.match(r"[\d.]*", version)
    return tuple(int(number) for number in (begin[0] if begin else "").split(".") if number)


def _path(dialect: DialectName, file: SchemaFile) -> str:
    return f"{file.package}/schema/{dialect}/{file.version:04}_{file.name}.sql"


def _always(statement: str, dialect: DialectName) -> Iterator[str]:
    inserts = _INSERTS.match(statement)
    if inserts and not inserts[2]:
        yield "INSERT without a list of columns breaks when a column is added; name them"
    if _STAR.search(statement) and not _CREATES.match(statement):
        yield "SELECT * copies columns by position; name them"
    altered = _ALTERS.match(statement)
    if dialect == "mysql" and altered and any(_UNNAMED.match(clause) for clause in _clauses(altered[2])):
        yield "after a crash an index or constraint without a name is added a second time; name it"


def _contracts(statement: str, own: set[str]) -> Iterator[str]:
    taken = _TAKES_AWAY.match(statement)
    if taken and _plain(taken[2]) not in own:
        yield f"{taken[1].upper()} takes from the version before what it uses; do it {_CONTRACT}"
    dropped = _DROPS_INDEX.match(statement)
    if dropped and _plain(dropped[2] or "") not in own:
        yield f"DROP INDEX takes speed or uniqueness from the version before; do it {_CONTRACT}"
    unique = _UNIQUE_INDEX.match(statement)
    if unique and _plain(unique[2]) not in own:
        yield f"a unique index refuses rows that the version before may write; add it {_CONTRACT}"
    altered = _ALTERS.match(statement)
    if altered and _plain(altered[1]) not in own:
        yield from filter(None, map(_clause_contracts, _clauses(altered[2])))


def _clause_contracts(clause: str) -> str:
    if _ADDS_INDEX.match(clause) or _HARMLESS.match(clause):
        return ""
    if _ADDS_CONSTRAINT.match(clause):
        return f"a constraint refuses rows that the version before may write; add it {_CONTRACT}"
    if _ADDS_SEVERAL.match(clause):
        return "write an ADD for each column, so that each can be judged"
    if _ADDS_COLUMN.match(clause):
        if _NOT_NULL.search(clause) and not _FILLS_ITSELF.search(clause):
            return "the version before does not fill a new column; make it nullable or give it a DEFAULT"
        return ""
    return (
        f"{' '.join(clause.split()[:2]).upper()} changes what the version before uses; do it {_CONTRACT}, "
        "or say in a first line '-- expand: …' why it does not notice"
    )


def _clauses(text: str) -> list[str]:
    """The parts of an ALTER TABLE, split at the commas outside parentheses; what stands inside is left out."""
    flat, depth = "", 0
    for character in text:
        depth -= character == ")"
        flat += character if depth == 0 else ""
        depth += character == "("
    return [clause.strip() for clause in flat.split(",")]


def _plain(name: str) -> str:
    return re.sub(r'["`\[\]]', "", name).lower()

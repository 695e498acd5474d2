"""A package's numbered SQL files, read and taken apart. Pure but for the reading.

A statement ends with ``;`` wherever that is code: not in a literal, a quoted name or a comment. Comments are no part
of a statement (what MySQL executes in ``/*! … */`` is), so they may be written later without the file counting as
changed. What cannot be repeated after a crash, or would change the session behind the runner's back, is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import pairwise
from typing import NamedTuple

from .tx import DialectName, compile_statement

_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_HEADER = re.compile(r"-- (?:contract: needs code >= (?P<needs>\d+(?:\.\d+)*)|expand: (?P<reason>\S.*))\s*?(?:\n|$)")
_LITERALS = {"sqlite": r"'(?:[^']|'')*'|\[[^\]]*\]", "mysql": r"'(?:[^'\\]|''|\\.)*'"}
_LINE_COMMENTS = {"sqlite": "--", "mysql": r"(?:--(?=\s|$)|\#)"}
_TOKENS = {
    dialect: re.compile(
        rf"""(?P<kept>{_LITERALS[dialect]}|"(?:[^"]|"")*"|`(?:[^`]|``)*`|/\*(?:M?!|\+).*?\*/)"""
        rf"|(?P<line>(?<=\n)[ \t]*{comment}[^\n]*\n)|(?P<comment>{comment}[^\n]*|/\*.*?\*/)"
        r"|(?P<end>;)|(?P<open>['\"`]|/\*)",
        re.DOTALL | re.MULTILINE,
    )
    for dialect, comment in _LINE_COMMENTS.items()
}

_ONE_TRANSACTION = "the runner opens and ends transactions itself"
_SESSION = "it would not be there any more after a crash, and would outlive the run on this connection"
_REFUSED = {
    **dict.fromkeys(("BEGIN", "START", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE", "XA"), _ONE_TRANSACTION),
    **dict.fromkeys(("SET", "USE", "PRAGMA", "ATTACH", "DETACH", "LOCK", "UNLOCK"), _SESSION),
    "DELIMITER": "statements end with ;",
    "VACUUM": "it cannot run inside a transaction",
}
_ROUTINE = re.compile(
    r"CREATE (?:OR REPLACE )?(?:DEFINER ?= ?\S+ )?(?:TEMP(?:ORARY)? |AGGREGATE )?(TRIGGER|PROCEDURE|FUNCTION|EVENT)\b",
    re.IGNORECASE,
)


class SchemaFile(NamedTuple):
    """One file of one dialect.

    ``needs`` is the oldest code that runs on what a contracting file leaves, else empty; ``reason`` says why a
    running older version does not notice a file that looks as if it contracts.
    """

    package: str
    version: int
    name: str
    statements: list[str]
    needs: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.package} {self.version:04}_{self.name}"


def schema_files(dialect: DialectName, package: str) -> list[SchemaFile]:
    """The files of a package by number.

    Raises:
        ValueError: there is no such package or no file for this dialect, two files have one number, a name is not
            like ``0001_name.sql``, or a file cannot be taken apart.
    """
    folder = schema_folder(package) / dialect
    found = sorted(_sql_files(folder, package, dialect), key=lambda entry: entry.name)
    if not found:
        raise ValueError(f"{package} has no files like schema/{dialect}/0001_name.sql")
    # A byte order mark is an editor's; line ends are made one by reading as text.
    read = [parse_file(dialect, package, entry.name, entry.read_text("utf-8-sig")) for entry in found]
    for one, other in pairwise(read):
        if one.version == other.version:
            raise ValueError(f"{other} has the number of {one.name}; give it the next one")
    return read


def schema_folder(package: str) -> Traversable:
    """Where a package keeps the files of its dialects.

    Raises:
        ValueError: there is no such package.
    """
    try:
        module = import_module(package)
    except ModuleNotFoundError:
        raise ValueError(f"{package} is not installed; name packages as they are imported, like daydo_quota") from None
    return files(module) / "schema"


def parse_file(dialect: DialectName, package: str, file_name: str, text: str) -> SchemaFile:
    """Take one file apart; ``file_name`` is like ``0001_name.sql``.

    Raises:
        ValueError: the last statement has no ``;``, a quote stays open, or a statement is one that is refused.
    """
    match = _FILE.fullmatch(file_name)
    if match is None:
        raise ValueError(f"{package}: {dialect}/{file_name} is not named like 0001_name.sql")
    try:
        statements = split(dialect, text)
    except ValueError as error:
        raise ValueError(f"{package} {dialect}/{file_name}: {error}") from None
    header = _HEADER.match(text)
    needs, reason = (header["needs"] or "", header["reason"] or "") if header else ("", "")
    return SchemaFile(package, int(match[1]), match[2], statements, needs, reason)


def split(dialect: DialectName, text: str) -> list[str]:
    """The statements of a script, without ``;`` and without comments.

    Raises:
        ValueError: as :func:`parse_file`.
    """
    statements, parts, at = [], [], 0
    text = f"\n{text}\n".replace("\r\n", "\n")
    for token in _TOKENS[dialect].finditer(text):
        parts.append(text[at : token.start()])
        at = token.end()
        match token.lastgroup:
            case "kept":
                parts.append(token[0])
            case "comment":
                parts.append(" ")
            case "open":
                raise ValueError(f"{token[0]} is never closed: {_begin(text[token.start() :])}")
            case "end":
                statements.append("".join(parts).strip())
                parts.clear()
    rest = ("".join(parts) + text[at:]).strip()
    if rest:
        raise ValueError(f"the last statement does not end with ; : {_begin(rest)}")
    for statement in filter(None, statements):
        _check(dialect, statement)
    return [statement for statement in statements if statement]


def checksum(dialect: DialectName, statement: str) -> str:
    """What tells an edited statement from the one that ran; blind to white space and line ends between words."""
    return hashlib.sha256(_normal(dialect, statement).encode()).hexdigest()[:16]


def masked(dialect: DialectName, statement: str) -> str:
    """The statement with every literal emptied and white space made one space, for looking at its grammar."""
    text = _TOKENS[dialect].sub(lambda token: "''" if token[0].startswith("'") else token[0], statement)
    return " ".join(text.split())


def _normal(dialect: DialectName, statement: str) -> str:
    pieces, at = [], 0
    for token in _TOKENS[dialect].finditer(statement):
        pieces += [*statement[at : token.start()].split(), token[0]]
        at = token.end()
    return " ".join([*pieces, *statement[at:].split()])


def _sql_files(folder: Traversable, package: str, dialect: str) -> Iterator[Traversable]:
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name.lower().endswith(".sql"):
            if _FILE.fullmatch(entry.name) is None:
                raise ValueError(f"{package}: {dialect}/{entry.name} is not named like 0001_name.sql")
            yield entry


def _check(dialect: DialectName, statement: str) -> None:
    verb = compile_statement(dialect, statement).verb
    if verb in _REFUSED:
        raise ValueError(f"{verb} is refused, {_REFUSED[verb]}: {_begin(statement)}")
    routine = _ROUTINE.match(masked(dialect, statement))
    if routine is not None:
        raise ValueError(
            f"CREATE {routine[1].upper()} is refused; write both places in one transaction of the code instead: "
            f"{_begin(statement)}"
        )


def _begin(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:60]}…"

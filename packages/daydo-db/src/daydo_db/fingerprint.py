"""One text, and one short name, for all statements that differ in their values only.

The text can be shown to anybody who may see the schema: no literal is in it, for callers may have put values there.
Between double quotes SQLite reads a text where no column has that name, and so does a MySQL session without
ANSI_QUOTES: what stands there is shown only where no text can stand, as in ``FROM "t"`` or ``"t"."a"``.
Literals become ``?``, comments and whitespace go, lists of any length become ``(…)`` after IN and ``(?, ?), …``
elsewhere. So a library statement has one fingerprint on both dialects, however many rows it was called for.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from .tx import DialectName

# Longer statements are lists of rows; their first part says which statement it is.
_READ_MAX = 16_384
_SHOWN_MAX = 4_096

# What is not closed is cut off or broken: it counts as a literal to its end. Anything that begins with a digit is one.
_COMMENT = r"/\*.*?(?:\*/|\Z)"
# Possessive, or bounded: no text, however made, may take more than a few steps per character.
_PREFIX = r"(?:_[A-Za-z0-9]++\s*+)?[xXbBnN]?"
_NUMBER = r"(?:\d|\.\d)(?:[eE][+-]\d|[\w.$])*+"
_REST = rf"""
    |(?P<literal>\?\d*|{_NUMBER}|"(?:[^"]|"")*+\Z|`(?:[^`]|``)*+\Z)
    |(?P<quoted>"(?:[^"]|"")*+")
    |(?P<word>[@:$]{{0,2}}+[^\W\d][\w$]*+)
    |(?P<operator><=>|->>|->|<=|>=|<>|!=|\|\||&&|<<|>>|:=|.)
"""
_TOKENS = {
    "sqlite": re.compile(
        rf"(?P<gap>\s+|{_COMMENT}|--[^\n]*)|(?P<text>{_PREFIX}'(?:[^']|'')*+(?:'|\Z))"
        rf"|(?P<name>`(?:[^`]|``)*+`|\[[^\]]*+\])|(?P<open>\[[^\]]*+\Z)" + _REST,
        re.DOTALL | re.VERBOSE,
    ),
    "mysql": re.compile(
        rf"(?P<gap>\s+|{_COMMENT}|--(?=\s|\Z)[^\n]*|\#[^\n]*)|(?P<text>{_PREFIX}'(?:[^'\\]|''|\\(?:.|\Z))*+(?:'|\Z))"
        rf"|(?P<name>`(?:[^`]|``)*+`)" + _REST,
        re.DOTALL | re.VERBOSE,
    ),
}
_PLAIN_NAME = re.compile(r'"[\w$]{1,64}"')
_DOT = re.compile(r"\s*+\.(?!\d)")
# A name follows these; after the name of a table its alias may come.
_BEFORE_NAME = frozenset({"AS", "FROM", "INTO", "JOIN", "TABLE", "UPDATE"})
_BEFORE_TABLE = frozenset({"FROM", "JOIN", "UPDATE"})
_CLAUSES = frozenset({"FROM", "ON", "RETURNING", "SELECT", "SET", "VALUES", "WHERE"})
_WORD = re.compile(r"[@:$\"`\[\w]")
_LIST = re.compile(r"(?=\([^)])[?,…() ]+")
# After these a sign belongs to the number behind it, and a parenthesis is no argument list.
_KEYWORDS = frozenset(
    (  # noqa: SIM905 - a list of words reads better as words
        "ALL AND ANY AS BETWEEN BY CASE DISTINCT DIV ELSE ESCAPE EXCEPT EXISTS FROM HAVING IN INTERSECT INTERVAL INTO "
        "IS JOIN LIKE LIMIT MOD NOT OFFSET ON OR REGEXP RETURNING RLIKE SELECT SET THEN UNION UPDATE USING VALUE "
        "VALUES WHEN WHERE WITH XOR"
    ).split()
)
_MORE = "…"
_COMPILED = re.compile("%[s%]")


class Fingerprint(NamedTuple):
    """``id`` is 12 hexadecimal digits, the same in every process; ``text`` is the statement without its values."""

    id: str
    text: str


def fingerprint(dialect: DialectName, compiled: str) -> Fingerprint:
    """Of a :class:`Statement`'s text."""
    return _fingerprint(dialect, compiled[:_READ_MAX])


@lru_cache(maxsize=512)
def _fingerprint(dialect: DialectName, text: str) -> Fingerprint:
    if dialect == "mysql":
        text = _COMPILED.sub(lambda found: "?" if found[0] == "%s" else "%", text)
    text = normalise(dialect, text)
    return Fingerprint(blake2b(text.encode("utf-8", "replace"), digest_size=6).hexdigest(), text[:_SHOWN_MAX])


def normalise(dialect: DialectName, sql: str) -> str:
    """The statement without its values; the same again for what this returns."""
    groups: list[list[str]] = [[]]
    setting = False
    for found in _TOKENS[dialect].finditer(sql):
        kind, piece = found.lastgroup, found[0]
        if kind == "gap":
            continue
        if len(groups) == 1 and groups[0][-1:] != ["."] and piece.upper() in _CLAUSES:
            setting = piece.upper() == "SET"
        if kind in ("text", "literal", "open"):
            _add_literal(groups[-1])
        elif kind == "quoted":
            named = _PLAIN_NAME.fullmatch(piece) and (
                _DOT.match(sql, found.end()) or _is_place_of_name(groups, setting)
            )
            groups[-1].append(piece) if named else _add_literal(groups[-1])
        elif piece == "(":
            groups.append([])
        elif piece == ")" and len(groups) > 1:
            inner = groups.pop()
            _add_group(groups[-1], f"({_join(inner)})")
        else:
            groups[-1].append(piece)
    while len(groups) > 1:
        inner = groups.pop()
        _add_group(groups[-1], f"({_join(inner)})")
    while groups[0] and groups[0][-1] == ";":
        groups[0].pop()
    return _join(groups[0])


def _is_place_of_name(groups: list[list[str]], setting: bool) -> bool:
    """Whether what comes next can only be a name; ``setting`` after ``UPDATE … SET``."""
    *_, before, last = "", "", *(token.upper() for token in groups[-1][-2:])
    if last == ".":
        return True
    if last in _BEFORE_NAME or before in _BEFORE_TABLE:
        # IS DISTINCT FROM and TRIM(… FROM …) compare and cut values.
        valued = before == "DISTINCT" or (len(groups) > 1 and groups[-1][0].upper() not in ("SELECT", "WITH"))
        return last != "," and not (valued and "FROM" in (before, last))
    if len(groups) == 1:
        return setting and last in ("SET", ",")
    outer = [token.upper() for token in groups[-2][-2:]]
    return last in ("", ",") and (outer[:1] == ["INTO"] or outer[-1:] == ["CONFLICT"])


def _add_literal(tokens: list[str]) -> None:
    while tokens and tokens[-1] in ("-", "+") and not (len(tokens) > 1 and _is_operand(tokens[-2])):
        tokens.pop()
    tokens.append("?")


def _add_group(tokens: list[str], group: str) -> None:
    if tokens and tokens[-1].upper() == "IN" and _LIST.fullmatch(group):
        group = f"({_MORE})"
    if tokens and tokens[-1].upper() in (",", "OR"):
        if tokens[-2:-1] == [group]:
            tokens.append(_MORE)
            return
        if tokens[-4:] == [group, tokens[-1], _MORE, tokens[-1]]:
            tokens.pop()
            return
    tokens.append(group)


def _is_operand(token: str) -> bool:
    return token[0] in "?(" or (_WORD.match(token) is not None and token.upper() not in _KEYWORDS)


def _join(tokens: list[str]) -> str:
    pieces: list[str] = []
    before = ""
    for token in tokens:
        close = token in (",", ".", ";") or before == "."
        call = token[0] == "(" and before != "" and before[0] not in "?(" and _is_operand(before)
        pieces.append(token if close or call or not before else f" {token}")
        before = token
    return "".join(pieces)

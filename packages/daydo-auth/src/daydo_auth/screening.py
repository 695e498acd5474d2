"""What a request may look like before anybody acts on it. Pure: bytes in, a refusal or nothing.

Each rule is a difference between two readers that an attacker lives on: a proxy and this server that see two different
lengths or paths, a check and a handler that see two different values of one JSON key, a decoder that recurses where
another counts. What only one reader would understand is refused; nothing is repaired.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final

import msgspec

from daydo_kernel import BadRequest, FieldError, UnsupportedMediaType

from .errors import HeaderRefused, JsonRefused

# What decides who is asking, from where, and what the body is. Authorization is the guards' to refuse, with a 401.
_ONCE: Final = frozenset(
    {
        b"access-control-request-method",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"idempotency-key",
        b"origin",
        b"transfer-encoding",
        b"x-csrf-token",
    }
)
_KEPT: Final = _ONCE | {b"cookie"}
_CONTROLS: Final = bytes({*range(0x20), 0x7F} - {ord("\t")})
_LENGTH_DIGITS_MAX: Final = 18
# Encoded slashes and controls, anything that is not an escape, dot segments written either way, backslashes.
_ODD_PATH: Final = re.compile(
    rb"%(?:2[fF]|5[cC]|[01][0-9a-fA-F]|7[fF]|(?![0-9a-fA-F]{2}))|[\x00-\x20\x7f\\]|/(?:\.|%2[eE]){1,2}(?:/|$)"
)
_JSON_TYPE: Final = re.compile(rb"application/(?:[a-z0-9.+-]+\+)?json", re.IGNORECASE)
_UTF_8: Final = re.compile(rb"\s*(?:charset\s*=\s*\"?utf-?8\"?)?\s*", re.IGNORECASE)
# Matches from any quotation mark, if need be to the end: otherwise broken strings cost the square of their length.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_AS_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_NAME_CHARS_MAX: Final = 64


class Head(msgspec.Struct, frozen=True):
    """What the headers of a request say of it; ``length`` -1: unknown until the body has ended."""

    kept: dict[bytes, bytes]
    length: int


def read_head(scope: Mapping[str, Any], headers_max: int, bytes_max: int) -> Head:
    """The headers that matter, each once.

    Raises:
        HeaderRefused: too many or too long, one of them twice, with control characters, or a length that is none.
    """
    headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
    text = b"".join(chain.from_iterable(headers))
    if len(headers) > headers_max or len(text) > bytes_max:
        raise HeaderRefused(header="*")
    if len(text.translate(None, _CONTROLS)) != len(text):  # much faster than searching for one of them
        raise HeaderRefused(header=_with_control(headers))
    kept: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _KEPT:
            if name in kept and name in _ONCE:
                raise HeaderRefused(header=_shown(name))
            kept[name] = value
    return Head(kept, _length(scope, kept))


def refuse_odd_path(scope: Mapping[str, Any]) -> None:
    """Pass only what every reader splits into the same segments.

    Raises:
        BadRequest: an encoded slash or control, a backslash, a dot segment, what is not UTF-8; NUL in the query.
    """
    raw: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
    if _ODD_PATH.search(raw) or "\ufffd" in scope["path"]:
        raise BadRequest(fields=(FieldError("path", "地址中有不允许的字符", "Has characters that no path here has"),))
    if b"%00" in scope["query_string"]:
        raise BadRequest(fields=(FieldError("query", "不允许出现 NUL", "May not have NUL"),))


def is_json(head: Head, others: Sequence[bytes]) -> bool:
    """Whether the body says that it is JSON; otherwise it is of one of the ``others``.

    Raises:
        UnsupportedMediaType: of none, in another encoding than UTF-8, or compressed.
    """
    kind, _, parameters = head.kept.get(b"content-type", b"").partition(b";")
    if head.kept.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaType()
    if _JSON_TYPE.fullmatch(kind.strip()):
        if not _UTF_8.fullmatch(parameters):
            raise UnsupportedMediaType()
        return True
    if kind.strip().lower() not in others:
        raise UnsupportedMediaType()
    return False


def refuse_odd_json(body: bytes, depth_max: int) -> None:
    """Pass JSON that nests at most ``depth_max`` deep and in which no object names a key twice.

    Raises:
        JsonRefused: too deep, or a key twice.
        BadRequest: it is no JSON at all.
    """
    # Most bodies have fewer brackets than may nest.
    if body.count(b"{") + body.count(b"[") > depth_max and _is_deeper(body, depth_max):
        nested = FieldError("body", f"JSON 嵌套不得超过 {depth_max} 层", f"Nests deeper than {depth_max}")
        raise JsonRefused(fields=(nested,))
    try:
        _check_keys(body.decode("utf-8"))
    except (ValueError, RecursionError):
        malformed = FieldError("body", "不是有效的 JSON", "Is not valid JSON")
        raise BadRequest(fields=(malformed,)) from None


def _length(scope: Mapping[str, Any], kept: Mapping[bytes, bytes]) -> int:
    """How long the body will be; -1 where only its end tells."""
    given, coding = kept.get(b"content-length"), kept.get(b"transfer-encoding")
    if given is not None:
        if not given.isdigit() or len(given) > _LENGTH_DIGITS_MAX:
            raise HeaderRefused(header="Content-Length")
        if coding is not None:
            raise HeaderRefused(header="Transfer-Encoding")
        return int(given)
    if coding is not None:
        if coding.lower() != b"chunked":
            raise HeaderRefused(header="Transfer-Encoding")
        return -1
    # HTTP/1 says so when there is a body; later versions need not.
    return 0 if scope.get("http_version", "1.1")[:1] == "1" else -1


def _is_deeper(body: bytes, depth_max: int) -> bool:
    """Each round takes away the innermost pairs of all branches, in C: what is left after ``depth_max`` is deeper."""
    brackets = _STRING.sub(b"", body).translate(_AS_SQUARE, _NOT_BRACKETS)
    for _ in range(depth_max):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) > 1 and len(dict(pairs)) < len(pairs):
        raise JsonRefused(fields=(FieldError(_printable(_repeated(pairs)), "键重复出现", "Is named twice"),))


def _repeated(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    return ""


_check_keys: Final = json.JSONDecoder(object_pairs_hook=_unique).decode


def _with_control(headers: Sequence[tuple[bytes, bytes]]) -> str:
    return next((_shown(name) for name, value in headers if value.translate(None, _CONTROLS) != value), "*")


def _shown(name: bytes) -> str:
    return name.decode("latin-1")[:_NAME_CHARS_MAX].title()


def _printable(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name[:_NAME_CHARS_MAX])

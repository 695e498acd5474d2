"""What may be part of a key in Redis."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .errors import BadKey

KEY_MAX_BYTES = 512
NUMBER_MAX_BITS = 1_024
_SPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def text_of(key: object) -> str:
    """``key`` as text.

    Raises:
        BadKey: it is neither text nor a whole number, empty, longer than 512 bytes (a number: 1024 bits), or no
            Unicode.
    """
    if type(key) is str and 0 < len(key) <= KEY_MAX_BYTES and key.isascii():
        return key
    if type(key) is int and key.bit_length() <= NUMBER_MAX_BITS:
        return str(key)
    return _checked("key", key)


def tag_of(tag: object) -> str:
    """The same for a tag, which does not begin with ``*``: such are ours.

    Raises:
        BadKey: as above.
    """
    text = _checked("tag", tag)
    if text.startswith("*"):
        raise BadKey(field="tag", most=KEY_MAX_BYTES)
    return text


def tags_of(tags: Sequence[object]) -> list[str]:
    return [tag_of(tag) for tag in tags]


def check_space(name: str) -> str:
    """
    Raises:
        ValueError: the name of a space is 1 to 64 letters, digits, ``_``, ``.`` or ``-``.
    """
    if not _SPACE.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a space: take 1 to 64 letters, digits, '_', '.' and '-'")
    return name


def _checked(field: str, text: object) -> str:
    if isinstance(text, str):
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            size = 0
        if 0 < size <= KEY_MAX_BYTES:
            return str.__str__(text)
    raise BadKey(field=field, most=KEY_MAX_BYTES)

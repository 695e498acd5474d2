"""One form per login: however a phone number is written, it is one account, and counts against one limit."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from daydo_kernel import mask_email, mask_phone, redact_text

MAX_LOGIN_CHARS = 254

Channel = Literal["phone", "email"]

_PUNCTUATION = str.maketrans("", "", " ().-/\u00a0\u2010\u2011\u2012\u2013\u2014")
_MAINLAND = re.compile(r"(?:(?:\+|00)?86)?(1[3-9][0-9]{9})")
_ABROAD = re.compile(r"(?:\+|00)([1-9][0-9]{6,14})")
_PHONE = re.compile(r"1[3-9][0-9]{9}|\+[1-9][0-9]{6,14}")
# Addresses that every mail system delivers; quoted local parts, comments and other scripts are refused for codes.
_ATOM = r"[a-z0-9!#$%&'*+/=?^_`{|}~-]+"
_EMAIL = re.compile(rf"{_ATOM}(?:\.{_ATOM})*@(?:[a-z0-9-]{{1,63}}\.)+[a-z0-9-]{{2,63}}")


def normalize_login(login: str) -> str | None:
    """The one form of a login; None for what cannot be one.

    ``A@X.cn`` is ``a@x.cn``; ``+86 138-1234-5678`` is ``13812345678``, a number of another country ``+447700900123``.
    """
    normal = unicodedata.normalize("NFKC", login[: MAX_LOGIN_CHARS + 1]).strip().casefold()
    # Folding may leave what composes again: only the second time is it a fixed point.
    normal = unicodedata.normalize("NFKC", normal)
    if not (1 <= len(normal) <= MAX_LOGIN_CHARS and _is_text(normal)):
        return None
    return _phone(normal) or normal


def channel_of(login: str) -> Channel | None:
    """How a normalised login can be reached; None for a mere name."""
    if _PHONE.fullmatch(login):
        return "phone"
    return "email" if _EMAIL.fullmatch(login) else None


def mask_login(login: str) -> str:
    """A normalised login for events: phone numbers and addresses masked."""
    if channel_of(login) == "phone":
        return mask_phone(login)
    return mask_email(login) if "@" in login else redact_text(login)


def _phone(login: str) -> str | None:
    digits = login.translate(_PUNCTUATION)
    if found := _MAINLAND.fullmatch(digits):
        return found[1]
    return f"+{found[1]}" if (found := _ABROAD.fullmatch(digits)) else None


def _is_text(text: str) -> bool:
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)

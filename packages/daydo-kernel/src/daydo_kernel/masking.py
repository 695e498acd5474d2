"""Personal data made unreadable before it reaches a response, a log line or an alert."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
_SECRET_KEY = re.compile(
    r"pass(word|wd|phrase)|secret|token|authorization|cookie|api_?key|private_?key|pepper|session_?key|ticket|signature",
    re.IGNORECASE,
)
# Order matters: an id card's 18 digits contain runs that look like a phone number. Every pattern starts only
# where a run of its characters starts, or is bounded: hostile text must not cost quadratic time.
_PATTERNS = (
    (re.compile(r"eyJ[\w-]{2,1024}\.[\w-]+\.[\w-]*|(?<=Bearer )\S+"), lambda found: mask_token(found[0])),
    (re.compile(r"(?<![\w.+-])[\w.+-]++@[\w-]+(?:\.[\w-]+)+"), lambda found: mask_email(found[0])),
    (re.compile(r"(?<!\d)\d{17}[\dXx](?![\dXx])"), lambda found: mask_id_card(found[0])),
    (
        re.compile(r"(?<!\d)(?:(?:\+|00)?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d)"),
        lambda found: mask_phone(found[0].replace(" ", "").replace("-", "")),
    ),
)


def mask_phone(phone: str) -> str:
    """``13812345678`` → ``138****5678``; a country code stays."""
    return f"{phone[:-8]}****{phone[-4:]}" if len(phone) >= 11 else HIDDEN


def mask_email(email: str) -> str:
    """``zhang.san@example.cn`` → ``z***@example.cn``."""
    local, at, domain = email.rpartition("@")
    return f"{local[:1]}{HIDDEN}@{domain}" if at else HIDDEN


def mask_id_card(number: str) -> str:
    """``11010519491231002X`` → ``110***********002X``."""
    return f"{number[:3]}{'*' * 11}{number[-4:]}" if len(number) == 18 else HIDDEN


def mask_token(token: str) -> str:
    """The first four characters, enough to tell two apart: ``eyJh***``."""
    return f"{token[:4]}{HIDDEN}" if len(token) > 12 else HIDDEN


def redact_text(text: str) -> str:
    """Mask every token, e-mail address, id card and phone number inside free text."""
    for pattern, mask in _PATTERNS:
        text = pattern.sub(mask, text)
    return text


def redact(value: Any) -> Any:
    """A copy of a JSON-like value: secrets by key, personal data by pattern, at any depth."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {
            redact_text(key) if isinstance(key, str) else key: HIDDEN if _SECRET_KEY.search(str(key)) else redact(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value

"""What is wrong with an input, said to a person: msgspec's messages in Chinese and English."""

from __future__ import annotations

import re

from .errors import FieldError

_RULES: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), zh, en)
    for pattern, zh, en in (
        (r"Missing required \w+ parameter '(?P<name>.+?)' for", "缺少必填字段", "This field is required"),  # Litestar's
        (r"missing required field(?: `(?P<name>.+)`)?", "缺少必填字段", "This field is required"),
        (r"contains unknown field `(?P<name>.+)`", "未知字段", "This field is not known here"),
        (r"of length >= (\d+)", "长度不得少于 {0}", "Must be at least {0} long"),
        (r"of length <= (\d+)", "长度不得超过 {0}", "Must be at most {0} long"),
        (r"matching regex", "格式不正确", "Is not of the right form"),
        (r"Expected `\w+` >= (\S+)", "不得小于 {0}", "Must be at least {0}"),
        (r"Expected `\w+` <= (\S+)", "不得大于 {0}", "Must be at most {0}"),
        (r"Invalid enum value (.+)", "取值无效：{0}", "Is not one of the allowed values: {0}"),
        (r"Expected `(.+)`, got `(.+)`", "类型应为 {0}，实际为 {1}", "Must be {0}, not {1}"),
        (r"malformed|truncated|UTF-8|utf-8", "不是有效的 JSON", "Is not valid JSON"),
    )
)


def field_error(message: str, path: str = "") -> FieldError:
    """A :class:`FieldError` out of a msgspec message; a missing or unknown field is named itself."""
    for pattern, zh, en in _RULES:
        if found := pattern.search(message):
            name = found.groupdict().get("name")
            field = name if name and path in ("", "body") else ".".join(filter(None, (path, name)))
            return FieldError(field or "body", zh.format(*found.groups()), en.format(*found.groups()))
    return FieldError(path or "body", "取值无效", message or "Is not valid")

"""The one error of this edge."""

from __future__ import annotations

from daydo_db.errors import DbError


class Unsupported(
    DbError,
    code=50125,
    name="db.unsupported",
    zh="不支持{what}，请改用：{instead}",
    en="{what} is not supported here; use {instead}.",
):
    """Part of Piccolo that this edge leaves out on both databases, so that code runs on both or on none.

    Attributes:
        what: the thing asked for.
        instead: what to write in its place.
    """

    what: str
    instead: str

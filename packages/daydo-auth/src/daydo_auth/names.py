"""Names as the tables take them."""

from __future__ import annotations

import re

# No spaces: a padding collation would take "a" and "a " for the same subject.
_NAME = re.compile(r"[!-~]{1,128}")


def check_names(tenant: str, subject: str) -> None:
    """Check a tenant ("" is one) and a subject as the tables take them.

    Raises:
        ValueError: one is not 1 to 128 visible ASCII characters.
    """
    for what, value in (("tenant", tenant or "-"), ("subject", subject)):
        if not _NAME.fullmatch(value):
            raise ValueError(f"{what} must be 1 to 128 visible ASCII characters, not {value[:200]!r}")

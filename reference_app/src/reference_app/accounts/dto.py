"""What goes in and out of the account routes."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

# (?!\n)$ is the end of the text both in Python, where a lone $ stops before a last newline, and in ECMAScript.
PhoneText = Annotated[
    str,
    Meta(pattern=r"^(\+?86)?1[3-9][0-9]{9}(?!\n)$", max_length=20, description="a mobile number of mainland China"),
]
EmailText = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(?!\n)$",
        max_length=254,
        description="an ASCII address",
    ),
]
PasswordText = Annotated[str, Meta(min_length=1, max_length=1024)]
Device = Annotated[str, Meta(max_length=64, description="shown in the user's list of sessions")]


class Credentials(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Exactly one of ``phone`` and ``email``, and the password."""

    phone: PhoneText | None = None
    email: EmailText | None = None
    password: PasswordText
    device: Device = "web"


class RegisterIn(Credentials, kw_only=True, forbid_unknown_fields=True):
    """A new user."""


class LoginIn(Credentials, kw_only=True, forbid_unknown_fields=True):
    """A known user."""


class UserOut(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A user as shown to that user; phone and e-mail are masked."""

    id: str
    phone: str | None = None
    email: str | None = None
    created_at: str


class SessionOut(msgspec.Struct, kw_only=True):
    """A new session: the access token goes into ``Authorization: Bearer``, the refresh token into safe storage."""

    user: UserOut
    access_token: str
    refresh_token: str
    expires_in_s: int

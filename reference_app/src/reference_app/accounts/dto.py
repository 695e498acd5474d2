"""What goes in and out of the account routes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

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
CodeText = Annotated[str, Meta(pattern=r"^[0-9]{6}(?!\n)$", description="the six digits of a one-time code")]
WeChatText = Annotated[str, Meta(pattern=r"^[!-~]{1,128}(?!\n)$", description="what `wx.login` gave")]
IdText = Annotated[str, Meta(pattern=r"^[0-9A-Za-z_]{1,40}(?!\n)$")]
InviteText = Annotated[
    str,
    Meta(pattern=r"^[0-9A-Za-z -]{8,16}(?!\n)$", description="eight letters and digits, in any case"),
]
Device = Annotated[str, Meta(max_length=64, description="shown in the user's list of sessions")]
Gender = Literal["female", "male", "other"]
Purpose = Literal["login", "register", "bind", "reset", "step_up"]


class ArrivalIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What newcomers may say of who sent them."""

    device: Device = "web"
    referrer_id: IdText | None = None
    invite_code: InviteText | None = None


class RegisterIn(ArrivalIn, kw_only=True, forbid_unknown_fields=True):
    """A new user: exactly one of ``phone`` and ``email``, and a password. A ``code`` proves the phone at once."""

    phone: PhoneText | None = None
    email: EmailText | None = None
    password: PasswordText
    code: CodeText | None = None

    def __repr__(self) -> str:
        return "RegisterIn(***)"


class LoginIn(ArrivalIn, kw_only=True, forbid_unknown_fields=True):
    """``phone`` or ``email`` and ``password``; or ``phone`` and ``code``, which registers newcomers."""

    phone: PhoneText | None = None
    email: EmailText | None = None
    password: PasswordText | None = None
    code: CodeText | None = None

    def __repr__(self) -> str:
        return "LoginIn(***)"


class WeChatLoginIn(ArrivalIn, kw_only=True, forbid_unknown_fields=True):
    """Somebody in the mini-program."""

    code: WeChatText

    def __repr__(self) -> str:
        return "WeChatLoginIn(***)"


class SmsCodeIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where to send a code, and what it is to be good for."""

    phone: PhoneText
    purpose: Purpose = "login"


class SmsCodeOut(msgspec.Struct, kw_only=True):
    """The same whether the phone is known or not."""

    expires_in_s: float
    again_after_s: float


class PasswordResetIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A new password, by a code that was sent for ``reset``."""

    phone: PhoneText
    code: CodeText
    password: PasswordText

    def __repr__(self) -> str:
        return "PasswordResetIn(***)"


class UserOut(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A user as shown to that user; phone and e-mail are masked."""

    id: str
    phone: str | None = None
    email: str | None = None
    nickname: str | None = None
    avatar: str | None = None
    gender: str | None = None
    referrer_id: str | None = None
    created_at: str


class SessionOut(msgspec.Struct, kw_only=True):
    """A new session: the access token goes into ``Authorization: Bearer``, the refresh token into safe storage."""

    user: UserOut
    access_token: str
    refresh_token: str
    expires_in_s: int


class ProfileIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What shall change; null takes it away. ``avatar`` is an upload of one's own."""

    nickname: Annotated[str, Meta(min_length=1, max_length=64)] | UnsetType | None = UNSET
    avatar: IdText | UnsetType | None = UNSET
    gender: Gender | UnsetType | None = UNSET

    def given(self) -> dict[str, str | None]:
        """The fields that are there, by name."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in fields.items() if value is not UNSET}


class PhoneIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A phone to bind, by a code that was sent to it for ``bind``."""

    phone: PhoneText
    code: CodeText


class WeChatIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One's WeChat, by what ``wx.login`` gave."""

    code: WeChatText

    def __repr__(self) -> str:
        return "WeChatIn(***)"


class PasswordIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Another password; whoever came by a code or WeChat has no old one."""

    old_password: PasswordText | None = None
    new_password: PasswordText

    def __repr__(self) -> str:
        return "PasswordIn(***)"


class StepUpIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One's password, or a code that was sent to one's phone for ``step_up``."""

    password: PasswordText | None = None
    code: CodeText | None = None

    def __repr__(self) -> str:
        return "StepUpIn(***)"


class AccessOut(msgspec.Struct, kw_only=True):
    """An access token in place of the one before; the refresh token stays."""

    access_token: str
    expires_in_s: int


class DoneOut(msgspec.Struct, kw_only=True):
    """It is done."""

    done: bool = True


class ExportOut(msgspec.Struct, kw_only=True):
    """Everything that is kept about a user, unmasked, by kind."""

    exported_at: str
    data: dict[str, Any]


class InviteClaimIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whose invitation somebody follows who has registered without it."""

    invite_code: InviteText


class InviteOut(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A code to give away; it works once."""

    code: str
    taken_at: str
    used_at: str | None = None

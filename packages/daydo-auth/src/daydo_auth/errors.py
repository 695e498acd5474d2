"""What auth refuses, one class per broken condition; each says no more to a client than it may know."""

from __future__ import annotations

from daydo_kernel import DaydoError


class AuthError(DaydoError):
    """Everything auth raises on purpose."""


class TokenMissing(
    AuthError,
    code=40101,
    name="auth.token_missing",
    zh="请先登录。",
    en="Log in first: send Authorization: Bearer <access token>.",
):
    """No Authorization header."""


class TokenInvalid(
    AuthError,
    code=40102,
    name="auth.token_invalid",
    zh="登录凭证无效，请重新登录。",
    en="This token is not valid; log in again.",
):
    """Forged, mangled, of the wrong type, for somebody else, or more than one of them. Which it was is not said."""


class TokenExpired(
    AuthError,
    code=40103,
    name="auth.token_expired",
    zh="登录已过期。",
    en="This token has expired; refresh it or log in again.",
):
    """A genuine token whose time is over: refresh an access token, log in again for a refresh token."""


class WrongCredentials(
    AuthError, code=40104, name="auth.wrong_credentials", zh="账号或密码错误。", en="Login or password is wrong."
):
    """No such login, or another password; deliberately one error."""


class RefreshReused(
    AuthError,
    code=40105,
    name="auth.refresh_reused",
    zh="检测到登录凭证被重复使用，为安全起见已退出登录，请重新登录。",
    en="This refresh token was used before; its session has been ended for safety. Log in again.",
):
    """A refresh token older than the last one came back: stolen, or copied. The session is revoked."""


class SessionRevoked(
    AuthError,
    code=40106,
    name="auth.session_revoked",
    zh="登录已失效，请重新登录。",
    en="This session has ended; log in again.",
):
    """Logged out, or ended for safety."""


class TicketInvalid(
    AuthError,
    code=40107,
    name="auth.ticket_invalid",
    zh="连接票据无效或已使用。",
    en="This ticket is unknown, used or expired; ask for a new one.",
):
    """A ticket works once, within its minute."""


class Forbidden(
    AuthError,
    code=40301,
    name="auth.forbidden",
    zh="没有权限：{permission}",
    en="This needs the permission {permission}.",
):
    """Known, but not allowed."""

    permission: str


class LoginTaken(AuthError, code=40901, name="auth.login_taken", zh="该账号已被注册。", en="This login is taken."):
    """Somebody has registered it, in this tenant."""


class SubjectTaken(
    AuthError, code=40902, name="auth.subject_taken", zh="该用户已设置密码。", en="This subject has a password already."
):
    """A subject is registered once."""


class PasswordTooWeak(
    AuthError,
    code=42201,
    name="auth.password_too_weak",
    zh="密码不符合要求。",
    en="This password does not meet the rules.",
):
    """``fields`` says which rules."""


class LoginUnusable(
    AuthError, code=42202, name="auth.login_unusable", zh="账号格式不正确。", en="This cannot be a login."
):
    """Empty, longer than 254 characters, or not text."""


class HashingSaturated(
    AuthError,
    code=50301,
    name="auth.hashing_saturated",
    zh="登录人数较多，请稍后重试。",
    en="Too many logins at this moment; try again shortly.",
    retryable=True,
):
    """The queue for password hashing is full; ``retry_after_s`` is about when it will not be."""

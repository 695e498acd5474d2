"""What auth refuses, one class per broken condition; each says no more to a client than it may know."""

from __future__ import annotations

from daydo_kernel import DaydoError


class AuthError(DaydoError):
    """Everything auth raises on purpose."""


class JsonRefused(
    AuthError,
    code=40001,
    name="auth.json_refused",
    zh="JSON 嵌套过深或含有重复的键。",
    en="The JSON nests too deeply or names a key twice.",
):
    """Two readers could take it for two different things, or one could fall over it; ``fields`` says which."""


class HeaderRefused(
    AuthError,
    code=40002,
    name="auth.header_refused",
    zh="请求头 {header} 无法接受。",
    en="The request header {header} cannot be accepted.",
):
    """Given twice, contradictory, too long, or with characters that no header has."""

    header: str


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


class TokenStale(
    AuthError,
    code=40108,
    name="auth.token_stale",
    zh="权限已变更，请刷新登录凭证。",
    en="Your roles have changed since this token was made; refresh it.",
):
    """A genuine access token from before its subject's roles changed; a refresh gives one that knows them."""


class CodeWrong(
    AuthError,
    code=40109,
    name="auth.code_wrong",
    zh="验证码错误或已失效，请重新获取。",
    en="This code is wrong, used or expired; ask for a new one.",
):
    """Wrong, used, expired, replaced, guessed at too often, or for another person or purpose: one error."""


class KeyInvalid(
    AuthError,
    code=40110,
    name="auth.key_invalid",
    zh="API 密钥无效或已失效。",
    en="This API key is not valid (any more).",
):
    """Forged, mangled, revoked, expired, or of the other kind. Which it was is not said."""


class SignatureInvalid(
    AuthError,
    code=40111,
    name="auth.signature_invalid",
    zh="请求签名无效：{reason}。",
    en="This request is not signed as it must be: {reason}.",
):
    """``reason`` is one of :data:`daydo_auth.signing.Reason`; none of them says more than whoever signs knows."""

    reason: str


class WeChatCodeInvalid(
    AuthError,
    code=40112,
    name="auth.wechat_code_invalid",
    zh="微信登录凭证无效或已使用，请重试。",
    en="WeChat does not take this code (any more); call wx.login again.",
):
    """Unknown to WeChat, used, expired, or not of its form."""


class Forbidden(
    AuthError,
    code=40301,
    name="auth.forbidden",
    zh="没有权限：{permission}",
    en="This needs the permission {permission}.",
):
    """Known, but not allowed."""

    permission: str


class StepUpRequired(
    AuthError,
    code=40303,
    name="auth.step_up_required",
    zh="此操作需要在 {within_s:g} 秒内验证过身份。",
    en="Prove again who you are for this: it is longer than {within_s:g} s ago.",
):
    """Known and allowed, but they proved themselves too long ago for something so sensitive: see Auth.step_up."""

    within_s: float


class RiskRefused(
    AuthError,
    code=40305,
    name="auth.risk_refused",
    zh="微信提示该账号存在风险，暂时无法登录。",
    en="WeChat considers this account a risk; it cannot log in at present.",
):
    """WeChat answered 40226."""


class PersonRequired(
    AuthError,
    code=40307,
    name="auth.person_required",
    zh="API 密钥不能执行此操作，请登录后再试。",
    en="An API key cannot do this; log in.",
):
    """Sessions, keys and passwords are a person's to manage: a stolen key must not make itself another way in."""


class KeyUnknown(
    AuthError, code=40402, name="auth.key_unknown", zh="API 密钥不存在。", en="There is no such API key of yours."
):
    """No key of this subject has this id; whether somebody else's has is not said."""


class UnknownIdentity(
    AuthError,
    code=40404,
    name="auth.unknown_identity",
    zh="该账号尚未注册。",
    en="Nobody is registered under this identity yet.",
):
    """A code or WeChat has proven who is calling, and nobody here is that. A wrong proof never gets so far."""


class CsrfInvalid(
    AuthError,
    code=40304,
    name="auth.csrf_invalid",
    zh="页面已过期，请刷新后重试。",
    en="Send the CSRF token of this session in the header X-CSRF-Token.",
):
    """A change by cookie without the session's token in a header: perhaps another site's page asked for it."""


class OriginRefused(
    AuthError,
    code=40306,
    name="auth.origin_refused",
    zh="不接受来自该网站的请求。",
    en="Pages of this origin are not listed here.",
):
    """A browser says that a page of another site asks, and that site is not among the listed origins."""


class RequestTooSlow(
    AuthError,
    code=40801,
    name="auth.request_too_slow",
    zh="请求发送过慢，连接已关闭。",
    en="The request took too long to arrive.",
    retryable=True,
):
    """The body was not there in time; the connection is closed."""


class AccountDisabled(
    AuthError,
    code=40302,
    name="auth.account_disabled",
    zh="账号已停用，请联系客服。",
    en="This account is disabled; ask support.",
):
    """Said only to who has proven that the account is theirs."""


class SessionUnknown(
    AuthError, code=40401, name="auth.session_unknown", zh="会话不存在。", en="There is no such session of yours."
):
    """No session of this subject has this id; whether somebody else's has is not said."""


class RoleUnknown(
    AuthError, code=40403, name="auth.role_unknown", zh="角色 {role} 不存在。", en="There is no role {role} here."
):
    """No role of this name holds in this tenant."""

    role: str


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


class CodesLimited(
    AuthError,
    code=42901,
    name="auth.codes_limited",
    zh="验证码请求过于频繁，请稍后再试。",
    en="Too many codes; try again later.",
    retryable=True,
):
    """Too many codes for one login, from one address or in all, or too many wrong ones from one address."""

    limit: str


class RoleInvalid(AuthError, code=42203, name="auth.role_invalid", zh="角色定义不正确。", en="This role cannot be so."):
    """``fields`` says why: a name, a permission, what it inherits, a limit."""


class KeyRefused(
    AuthError, code=42204, name="auth.key_refused", zh="API 密钥不能这样创建。", en="An API key cannot be so."
):
    """``fields`` says why: its name, what it may do, when it expires, or how many there are."""


class HashingSaturated(
    AuthError,
    code=50301,
    name="auth.hashing_saturated",
    zh="登录人数较多，请稍后重试。",
    en="Too many logins at this moment; try again shortly.",
    retryable=True,
):
    """The queue for password hashing is full; ``retry_after_s`` is about when it will not be."""


class SenderUnavailable(
    AuthError,
    code=50302,
    name="auth.sender_unavailable",
    zh="验证码可能未能发出，请稍后重试。",
    en="The code may not have been sent; try again shortly.",
    retryable=True,
):
    """The gateway refused the message, or did not answer in time: then it may arrive yet, and works."""


class WeChatUnavailable(
    AuthError,
    code=50303,
    name="auth.wechat_unavailable",
    zh="微信登录暂时不可用，请稍后重试。",
    en="WeChat cannot be asked at the moment; call wx.login again and retry.",
    retryable=True,
):
    """No usable answer from WeChat in time; ``retry_after_s`` where WeChat limits us. The code may be used up."""


class RequestTimedOut(
    AuthError,
    code=50401,
    name="auth.request_timed_out",
    zh="处理超时，请稍后重试。",
    en="This took too long; look whether it was done before you repeat it.",
):
    """The application did not begin its answer in time and was cancelled."""


class SessionsUnavailable(
    AuthError,
    code=50304,
    name="auth.sessions_unavailable",
    zh="暂时无法刷新登录，请稍后重试。",
    en="Tokens cannot be refreshed at the moment; try again shortly. The access token goes on working.",
    retryable=True,
):
    """Redis, which counts refresh tokens, did not answer; the same token works when it does."""


class CodesUnavailable(
    AuthError,
    code=50306,
    name="auth.codes_unavailable",
    zh="验证码服务暂时不可用，请稍后重试。",
    en="Codes can be neither sent nor checked at the moment; try again shortly.",
    retryable=True,
):
    """Redis, which counts codes and guesses, did not answer. A code may be used up, a limit eaten into."""


class TicketsUnavailable(
    AuthError,
    code=50307,
    name="auth.tickets_unavailable",
    zh="暂时无法建立连接，请稍后重试。",
    en="Tickets can be neither made nor taken at the moment; try again shortly, with a new one.",
    retryable=True,
):
    """Redis, which knows the tickets, did not answer. The ticket may be used up."""


class NoncesUnavailable(
    AuthError,
    code=50305,
    name="auth.nonces_unavailable",
    zh="暂时无法验证签名请求，请重新签名后重试。",
    en="Signed requests cannot be checked at the moment; sign it anew, with another nonce, and try again.",
    retryable=True,
):
    """Redis, which knows the nonces, did not answer. The request was not carried out; its nonce may count as used."""

"""Registering and logging in: JSON in, rules elsewhere, envelope out."""

from __future__ import annotations

from litestar import Controller, Router, post
from litestar.di import NamedDependency, Provide
from litestar.params import SkipValidation

from daydo_auth import (
    AccountDisabled,
    CodesLimited,
    CodesUnavailable,
    CodeWrong,
    HashingSaturated,
    LoginTaken,
    LoginUnusable,
    PasswordTooWeak,
    RiskRefused,
    SenderUnavailable,
    Tokens,
    UnknownIdentity,
    WeChatCodeInvalid,
    WeChatUnavailable,
    WrongCredentials,
)
from daydo_auth.litestar import anyone
from daydo_kernel import BadRequest, Envelope, FieldError, isoformat, mask_email, mask_phone, ok
from daydo_kernel.litestar import ApiRequest, refusals
from reference_app.traffic import LOGIN, REGISTER, SMS_CODES, callers_of

from .contact import Contact
from .dto import (
    ArrivalIn,
    DoneOut,
    LoginIn,
    PasswordResetIn,
    RegisterIn,
    SessionOut,
    SmsCodeIn,
    SmsCodeOut,
    UserOut,
    WeChatLoginIn,
)
from .errors import InviteInvalid, InviteTooLate, ReferrerUnknown
from .service import Accounts, Arrival
from .tables import Profile

Service = NamedDependency[SkipValidation[Accounts]]
_SENT_BY = (ReferrerUnknown, InviteInvalid, InviteTooLate)


class AuthController(Controller):
    path = "/auth"
    tags = ("accounts",)
    guards = (anyone,)

    @post(
        "/register",
        opt=REGISTER,
        summary="Register",
        responses=refusals(
            LoginTaken, PasswordTooWeak, HashingSaturated, CodeWrong, CodesLimited, CodesUnavailable, *_SENT_BY
        ),
    )
    async def register(self, data: RegisterIn, request: ApiRequest, accounts: Service) -> Envelope[SessionOut]:
        """Create a user by phone number or e-mail address and password, with the first credits."""
        contact = _contact(data)
        if data.code is not None and contact.phone is None:
            raise _bad("code", "只能用于手机号", "Is for a phone")
        profile, tokens = await accounts.register(contact, data.password, _arrival(data, request), code=data.code)
        return ok(_session(profile, tokens))

    @post(
        "/login",
        opt=LOGIN,
        summary="Log in",
        status_code=200,
        responses=refusals(
            WrongCredentials, CodeWrong, CodesLimited, CodesUnavailable, AccountDisabled, HashingSaturated, *_SENT_BY
        ),
    )
    async def login(self, data: LoginIn, request: ApiRequest, accounts: Service) -> Envelope[SessionOut]:
        """Open a session by password or SMS code. An unknown user and a wrong password get the same answer; a code
        registers whoever is new.
        """
        contact, arrival = _contact(data), _arrival(data, request)
        match data.password, data.code, contact.phone:
            case str(password), None, _:
                found = await accounts.login(contact, password, arrival)
            case None, str(code), str(phone):
                found = await accounts.login_by_code(phone, code, arrival)
            case _:
                raise _bad("password", "请填写密码，或手机号与验证码", "Give a password, or phone and code")
        return ok(_session(*found))

    @post(
        "/wechat-login",
        opt=LOGIN,
        summary="Log in by WeChat",
        status_code=200,
        responses=refusals(WeChatCodeInvalid, RiskRefused, AccountDisabled, LoginTaken, WeChatUnavailable, *_SENT_BY),
    )
    async def wechat_login(self, data: WeChatLoginIn, request: ApiRequest, accounts: Service) -> Envelope[SessionOut]:
        """Open a session for a user of the mini-program; the first time registers them."""
        return ok(_session(*await accounts.login_by_wechat(data.code, _arrival(data, request))))

    @post(
        "/sms-codes",
        opt=SMS_CODES,
        summary="Send a one-time code",
        status_code=200,
        responses=refusals(CodesLimited, LoginUnusable, SenderUnavailable, CodesUnavailable),
    )
    async def sms_code(self, data: SmsCodeIn, request: ApiRequest, accounts: Service) -> Envelope[SmsCodeOut]:
        """The answer is the same whether somebody is registered with this phone or not."""
        sent = await accounts.send_code(data.phone, data.purpose, address=callers_of(request).address(request))
        return ok(SmsCodeOut(expires_in_s=sent.ttl_s, again_after_s=sent.again_after_s))

    @post(
        "/password-reset",
        opt=LOGIN,
        summary="Set a new password by a code",
        status_code=200,
        responses=refusals(
            CodeWrong,
            CodesLimited,
            CodesUnavailable,
            PasswordTooWeak,
            UnknownIdentity,
            AccountDisabled,
            HashingSaturated,
        ),
    )
    async def reset_password(self, data: PasswordResetIn, request: ApiRequest, accounts: Service) -> Envelope[DoneOut]:
        """Ends all sessions. Whether the phone is known is said only to who has the right code."""
        address = callers_of(request).address(request)
        await accounts.reset_password(data.phone, data.code, data.password, address=address)
        return ok(DoneOut())


def auth_routes(accounts: Accounts) -> Router:
    """The application's own routes below ``/auth``."""
    dependencies = {"accounts": Provide(lambda: accounts, sync_to_thread=False)}
    return Router(path="/", route_handlers=[AuthController], dependencies=dependencies)


def shown(profile: Profile) -> UserOut:
    """A profile as its user sees it."""
    return UserOut(
        id=profile.id,
        phone=mask_phone(profile.phone) if profile.phone else None,
        email=mask_email(profile.email) if profile.email else None,
        nickname=profile.nickname,
        avatar=profile.avatar,
        gender=profile.gender,
        referrer_id=profile.referrer_id,
        created_at=isoformat(profile.created_at_us),
    )


def _contact(data: RegisterIn | LoginIn) -> Contact:
    if (data.phone is None) == (data.email is None):
        raise _bad("phone", "phone 与 email 必须且只能填写一个", "Give exactly one of phone and email")
    return Contact.of(data.phone, data.email)


def _arrival(data: ArrivalIn, request: ApiRequest) -> Arrival:
    return Arrival(
        device=data.device,
        address=callers_of(request).address(request),
        referrer_id=data.referrer_id,
        invite_code=data.invite_code,
    )


def _bad(field: str, zh: str, en: str) -> BadRequest:
    return BadRequest(fields=(FieldError(field, zh, en),))


def _session(profile: Profile, tokens: Tokens) -> SessionOut:
    return SessionOut(
        user=shown(profile),
        access_token=tokens.access,
        refresh_token=tokens.refresh,
        expires_in_s=tokens.expires_in_s,
    )

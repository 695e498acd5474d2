"""The account routes: JSON in, rules elsewhere, envelope out."""

from __future__ import annotations

from litestar import Controller, Router, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import SkipValidation

from daydo_auth import HashingSaturated, LoginTaken, PasswordTooWeak, Tokens, WrongCredentials
from daydo_auth.litestar import authenticated
from daydo_kernel import BadRequest, Envelope, FieldError, isoformat, mask_email, mask_phone, ok
from daydo_kernel.litestar import ApiRequest, refusals

from .dto import Credentials, LoginIn, RegisterIn, SessionOut, UserOut
from .service import Accounts, Contact
from .tables import Profile

Service = NamedDependency[SkipValidation[Accounts]]


class AuthController(Controller):
    path = "/auth"
    tags = ("accounts",)

    @post("/register", summary="Register", responses=refusals(LoginTaken, PasswordTooWeak, HashingSaturated))
    async def register(self, data: RegisterIn, accounts: Service) -> Envelope[SessionOut]:
        """Create a user by phone number or e-mail address and password, with the first credits."""
        profile, tokens = await accounts.register(_contact(data), data.password, device=data.device)
        return ok(_session(profile, tokens))

    @post("/login", summary="Log in", status_code=200, responses=refusals(WrongCredentials, HashingSaturated))
    async def login(self, data: LoginIn, accounts: Service) -> Envelope[SessionOut]:
        """Open a session. An unknown user and a wrong password get the same answer."""
        profile, tokens = await accounts.login(_contact(data), data.password, device=data.device)
        return ok(_session(profile, tokens))


class UsersController(Controller):
    path = "/users"
    tags = ("accounts",)
    guards = (authenticated,)

    @get("/me", summary="My profile")
    async def me(self, request: ApiRequest, accounts: Service) -> Envelope[UserOut]:
        """The user the access token stands for."""
        return ok(_user(await accounts.profile(request.user.tenant, request.user.subject)))


def accounts_router(accounts: Accounts) -> Router:
    """The routes below ``/auth`` and ``/users``."""
    return Router(
        path="/",
        route_handlers=[AuthController, UsersController],
        dependencies={"accounts": Provide(lambda: accounts, sync_to_thread=False)},
    )


def _contact(data: Credentials) -> Contact:
    if (data.phone is None) == (data.email is None):
        either = FieldError("phone", "phone 与 email 必须且只能填写一个", "Give exactly one of phone and email")
        raise BadRequest(fields=(either,))
    return Contact.of(data.phone, data.email)


def _user(profile: Profile) -> UserOut:
    return UserOut(
        id=profile.id,
        phone=mask_phone(profile.phone) if profile.phone else None,
        email=mask_email(profile.email) if profile.email else None,
        created_at=isoformat(profile.created_at_us),
    )


def _session(profile: Profile, tokens: Tokens) -> SessionOut:
    return SessionOut(
        user=_user(profile),
        access_token=tokens.access,
        refresh_token=tokens.refresh,
        expires_in_s=tokens.expires_in_s,
    )

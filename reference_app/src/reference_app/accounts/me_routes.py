"""What users do with their own account, over HTTP."""

from __future__ import annotations

from typing import Annotated

from litestar import Controller, Router, delete, get, patch, post
from litestar.di import NamedDependency, Provide
from litestar.params import Parameter, SkipValidation
from litestar.response import Response

from daydo_auth import (
    AccountDisabled,
    CodesLimited,
    CodesUnavailable,
    CodeWrong,
    HashingSaturated,
    LoginTaken,
    PasswordTooWeak,
    RiskRefused,
    StepUpRequired,
    SubjectTaken,
    WeChatCodeInvalid,
    WeChatUnavailable,
    WrongCredentials,
)
from daydo_auth.litestar import fresh, permitted, person
from daydo_db.paging import CURSOR_CHARS_MAX
from daydo_kernel import Envelope, NotFound, Page, SystemClock, isoformat, new_id, ok
from daydo_kernel.litestar import ApiRequest, refusals
from reference_app.traffic import LOGIN, callers_of

from .config import FRESH_S
from .dto import (
    AccessOut,
    DoneOut,
    ExportOut,
    InviteClaimIn,
    InviteOut,
    PasswordIn,
    PhoneIn,
    ProfileIn,
    StepUpIn,
    UserOut,
    WeChatIn,
)
from .errors import AlreadyInvited, InviteInvalid, InviteOwn, InvitesExhausted, InviteTooLate
from .invites import Invites
from .personal import Personal
from .privacy import Privacy
from .repository import TakenInvite
from .routes import shown

FRESH = fresh(FRESH_S)
Own = NamedDependency[SkipValidation[Personal]]
Data = NamedDependency[SkipValidation[Privacy]]
Codes = NamedDependency[SkipValidation[Invites]]


class MeController(Controller):
    path = "/users/me"
    tags = ("accounts",)

    @get("/", guards=[permitted("profile:read")], summary="My profile", responses=refusals(NotFound))
    async def me(self, request: ApiRequest, personal: Own) -> Envelope[UserOut]:
        """The user the access token stands for."""
        return ok(shown(await personal.profile(request.user)))

    @patch("/", guards=[person], summary="Change my profile", responses=refusals(NotFound))
    async def change(self, data: ProfileIn, request: ApiRequest, personal: Own) -> Envelope[UserOut]:
        """Nickname, avatar and gender; what is not named stays."""
        return ok(shown(await personal.change(request.user, data.given())))

    @delete("/", guards=[FRESH], summary="Erase me", status_code=200, responses=refusals(NotFound))
    async def erase(self, request: ApiRequest, privacy: Data) -> Envelope[DoneOut]:
        """Everything personal is deleted, all sessions end. Ledger entries stay, under an id that is nobody's."""
        await privacy.erase(request.user)
        return ok(DoneOut())

    @get("/export", guards=[FRESH], summary="All data about me", responses=refusals(NotFound))
    async def export(self, request: ApiRequest, privacy: Data) -> Response[Envelope[ExportOut]]:
        """One document, unmasked."""
        data = await privacy.export(request.user)
        document = ExportOut(exported_at=isoformat(SystemClock().now_us()), data=data)
        headers = {"Cache-Control": "no-store", "Content-Disposition": 'attachment; filename="my-data.json"'}
        return Response(ok(document), headers=headers)

    @post(
        "/phone",
        guards=[FRESH],
        opt=LOGIN,
        summary="Bind a phone",
        status_code=200,
        responses=refusals(CodeWrong, CodesLimited, CodesUnavailable, LoginTaken, NotFound),
    )
    async def bind_phone(self, data: PhoneIn, request: ApiRequest, personal: Own) -> Envelope[UserOut]:
        """In place of the one I had, by a code that was sent to it for ``bind``."""
        address = callers_of(request).address(request)
        return ok(shown(await personal.bind_phone(request.user, data.phone, data.code, address=address)))

    @post(
        "/wechat",
        guards=[FRESH],
        opt=LOGIN,
        summary="Bind my WeChat",
        status_code=200,
        responses=refusals(WeChatCodeInvalid, RiskRefused, WeChatUnavailable, LoginTaken),
    )
    async def bind_wechat(self, data: WeChatIn, request: ApiRequest, personal: Own) -> Envelope[DoneOut]:
        """As another way in, beside what I have."""
        await personal.bind_wechat(request.user, data.code)
        return ok(DoneOut())

    @post(
        "/password",
        guards=[person],
        opt=LOGIN,
        summary="Change my password",
        status_code=200,
        responses=refusals(WrongCredentials, SubjectTaken, PasswordTooWeak, HashingSaturated, StepUpRequired),
    )
    async def set_password(self, data: PasswordIn, request: ApiRequest, personal: Own) -> Envelope[DoneOut]:
        """Ends my other sessions. Without an old password only for who has none."""
        await personal.set_password(request.user, data.old_password, data.new_password)
        return ok(DoneOut())

    @post("/deactivate", guards=[person], summary="Deactivate my account", status_code=200)
    async def deactivate(self, request: ApiRequest, personal: Own) -> Envelope[DoneOut]:
        """All sessions end and nobody logs in, until an administrator enables the account again."""
        await personal.deactivate(request.user)
        return ok(DoneOut())


class StepUpController(Controller):
    path = "/auth/step-up"
    tags = ("accounts",)
    guards = (person,)

    @post(
        "/",
        opt=LOGIN,
        summary="Prove again who I am",
        status_code=200,
        responses=refusals(
            WrongCredentials, CodeWrong, CodesLimited, CodesUnavailable, HashingSaturated, AccountDisabled, NotFound
        ),
    )
    async def step_up(self, data: StepUpIn, request: ApiRequest, personal: Own) -> Envelope[AccessOut]:
        """For what asks for it with 403 ``auth.step_up_required``; the session stays."""
        address = callers_of(request).address(request)
        access = await personal.step_up(request.user, data.password, data.code, address=address)
        return ok(AccessOut(access_token=access.access, expires_in_s=access.expires_in_s))


class InvitesController(Controller):
    path = "/users/me/invites"
    tags = ("accounts",)
    guards = (person,)

    @post("/", summary="A new invite code", responses=refusals(InvitesExhausted, NotFound))
    async def take(
        self,
        request: ApiRequest,
        invites: Codes,
        idempotency_key: Annotated[
            str | None,
            Parameter(
                header="Idempotency-Key", pattern=r"^[!-~]{1,64}(?!\n)$", description="a repeat gets the same code"
            ),
        ] = None,
    ) -> Response[Envelope[InviteOut]]:
        """To give away; it works once. Without an Idempotency-Key every call gives another."""
        user, key = request.user, idempotency_key or new_id("once")
        taken = await invites.take(user.tenant, user.subject, key)
        headers = {} if taken.created else {"Idempotent-Replayed": "true"}
        return Response(ok(_invite(taken.invite)), headers=headers)

    @get("/", summary="My invite codes")
    async def invites(
        self,
        request: ApiRequest,
        invites: Codes,
        cursor: Annotated[str | None, Parameter(max_length=CURSOR_CHARS_MAX)] = None,
        limit: Annotated[int, Parameter(ge=1, le=100)] = 20,
    ) -> Envelope[Page[InviteOut]]:
        """Newest first."""
        page = await invites.page(request.user.tenant, request.user.subject, cursor, limit)
        return ok(Page(items=[_invite(invite) for invite in page.rows], next_cursor=page.next_cursor))

    @post(
        "/claim",
        opt=LOGIN,
        summary="Say who invited me",
        status_code=200,
        responses=refusals(InviteInvalid, InviteOwn, InviteTooLate, AlreadyInvited, NotFound),
    )
    async def claim(self, data: InviteClaimIn, request: ApiRequest, invites: Codes) -> Envelope[DoneOut]:
        """Once, soon after registering, by the code of an older member."""
        await invites.claim_later(request.user.tenant, request.user.subject, data.invite_code)
        return ok(DoneOut())


def me_routes(personal: Personal, privacy: Privacy, invites: Invites) -> Router:
    """The routes below ``/users/me``."""
    return Router(
        path="/",
        route_handlers=[MeController, StepUpController, InvitesController],
        dependencies={
            "personal": Provide(lambda: personal, sync_to_thread=False),
            "privacy": Provide(lambda: privacy, sync_to_thread=False),
            "invites": Provide(lambda: invites, sync_to_thread=False),
        },
    )


def _invite(invite: TakenInvite) -> InviteOut:
    used_at = isoformat(invite.claimed_at_us) if invite.claimed_at_us else None
    return InviteOut(code=invite.code, taken_at=isoformat(invite.taken_at_us), used_at=used_at)

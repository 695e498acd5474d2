"""Users and roles for administrators, over HTTP."""

from __future__ import annotations

from typing import Annotated

from litestar import Controller, Router, delete, get, post, put
from litestar.di import NamedDependency, Provide
from litestar.params import Parameter, SkipValidation

from daydo_auth import Role, RoleInvalid, RoleUnknown
from daydo_auth.litestar import permitted
from daydo_db.paging import CURSOR_CHARS_MAX
from daydo_kernel import Envelope, NotFound, Page, isoformat, mask_email, mask_phone, ok
from daydo_kernel.litestar import ApiRequest, refusals
from reference_app.accounts.dto import DoneOut
from reference_app.accounts.errors import OwnAccount

from .dto import AdminSessionOut, AdminUserOut, EndedOut, ReasonIn, RoleIn, RoleOut, RolesIn
from .service import Administration, KnownUser

Service = NamedDependency[SkipValidation[Administration]]
UserId = Annotated[str, Parameter(pattern=r"^[0-9A-Za-z_]{1,40}(?!\n)$")]
RolePath = Annotated[str, Parameter(pattern=r"^[a-z0-9_.-]{1,48}(?!\n)$")]

READ, WRITE, ROLES = permitted("users:read"), permitted("users:write"), permitted("roles:write")


class AdminUsersController(Controller):
    path = "/admin/users"
    tags = ("administration",)

    @get("/", guards=[READ], summary="Users")
    async def users(
        self,
        request: ApiRequest,
        administration: Service,
        q: Annotated[str | None, Parameter(min_length=1, max_length=254, description="an id, phone or address")] = None,
        cursor: Annotated[str | None, Parameter(max_length=CURSOR_CHARS_MAX)] = None,
        limit: Annotated[int, Parameter(ge=1, le=100)] = 20,
    ) -> Envelope[Page[AdminUserOut]]:
        """Newest first; or with ``q`` whoever that is, on one page."""
        if q is not None:
            return ok(Page(items=[_user(each) for each in await administration.search(request.user, q)]))
        page = await administration.users(request.user, cursor, limit)
        return ok(Page(items=[_user(each) for each in page.rows], next_cursor=page.next_cursor))

    @get("/{user_id:str}", guards=[READ], summary="A user", responses=refusals(NotFound))
    async def user(self, user_id: UserId, request: ApiRequest, administration: Service) -> Envelope[AdminUserOut]:
        return ok(_user(await administration.user(request.user, user_id)))

    @get("/{user_id:str}/sessions", guards=[READ], summary="A user's sessions", responses=refusals(NotFound))
    async def sessions(
        self, user_id: UserId, request: ApiRequest, administration: Service
    ) -> Envelope[Page[AdminSessionOut]]:
        """The last used first, at most 100."""
        found = [
            AdminSessionOut(
                id=each.id,
                device=each.device,
                created_at=isoformat(each.created_at_us),
                last_used_at=isoformat(each.last_used_at_us),
            )
            for each in await administration.sessions(request.user, user_id)
        ]
        return ok(Page(items=found))

    @post(
        "/{user_id:str}/sessions/end",
        guards=[WRITE],
        status_code=200,
        summary="Log a user out everywhere",
        responses=refusals(NotFound),
    )
    async def end_sessions(
        self, user_id: UserId, data: ReasonIn, request: ApiRequest, administration: Service
    ) -> Envelope[EndedOut]:
        return ok(EndedOut(ended=await administration.end_sessions(request.user, user_id, data.reason)))

    @post(
        "/{user_id:str}/disable",
        guards=[WRITE],
        status_code=200,
        summary="Shut a user out",
        responses=refusals(NotFound, OwnAccount),
    )
    async def disable(
        self, user_id: UserId, data: ReasonIn, request: ApiRequest, administration: Service
    ) -> Envelope[AdminUserOut]:
        """Ends all sessions; no credential opens another."""
        return ok(_user(await administration.disable(request.user, user_id, data.reason)))

    @post(
        "/{user_id:str}/enable",
        guards=[WRITE],
        status_code=200,
        summary="Let a user in again",
        responses=refusals(NotFound, OwnAccount),
    )
    async def enable(
        self, user_id: UserId, data: ReasonIn, request: ApiRequest, administration: Service
    ) -> Envelope[AdminUserOut]:
        return ok(_user(await administration.enable(request.user, user_id, data.reason)))

    @put(
        "/{user_id:str}/roles",
        guards=[ROLES],
        summary="Give a user roles",
        responses=refusals(NotFound, OwnAccount, RoleUnknown, RoleInvalid),
    )
    async def assign(
        self, user_id: UserId, data: RolesIn, request: ApiRequest, administration: Service
    ) -> Envelope[AdminUserOut]:
        """These and no others; none that allows more than one's own. Tokens that are out become stale."""
        return ok(_user(await administration.assign(request.user, user_id, data.roles, data.reason)))


class AdminRolesController(Controller):
    path = "/admin/roles"
    tags = ("administration",)

    @get("/", guards=[READ], summary="Roles")
    async def roles(self, request: ApiRequest, administration: Service) -> Envelope[Page[RoleOut]]:
        return ok(Page(items=[_role(role) for role in await administration.roles(request.user)]))

    @put("/{name:str}", guards=[ROLES], summary="Make or change a role", responses=refusals(RoleInvalid))
    async def define(
        self, name: RolePath, data: RoleIn, request: ApiRequest, administration: Service
    ) -> Envelope[RoleOut]:
        """None that allows, or allowed, more than one's own."""
        return ok(_role(await administration.define(request.user, name, data.permissions, data.inherits)))

    @delete(
        "/{name:str}",
        guards=[ROLES],
        status_code=200,
        summary="Delete a role",
        responses=refusals(RoleUnknown, RoleInvalid),
    )
    async def drop(self, name: RolePath, request: ApiRequest, administration: Service) -> Envelope[DoneOut]:
        """Whoever has it keeps its name, which allows nothing."""
        await administration.drop(request.user, name)
        return ok(DoneOut())


def admin_routes(administration: Administration) -> Router:
    """The routes below ``/admin/users`` and ``/admin/roles``."""
    dependencies = {"administration": Provide(lambda: administration, sync_to_thread=False)}
    return Router(path="/", route_handlers=[AdminUsersController, AdminRolesController], dependencies=dependencies)


def _user(known: KnownUser) -> AdminUserOut:
    profile = known.profile
    return AdminUserOut(
        id=profile.id,
        phone=mask_phone(profile.phone) if profile.phone else None,
        email=mask_email(profile.email) if profile.email else None,
        nickname=profile.nickname,
        roles=list(known.standing.roles),
        disabled=known.standing.is_disabled,
        created_at=isoformat(profile.created_at_us),
    )


def _role(role: Role) -> RoleOut:
    return RoleOut(
        name=role.name,
        permissions=list(role.permissions),
        inherits=list(role.inherits),
        built_in=role.is_built_in,
    )

"""What users do with their own account: profile, phone, password, leaving for a while."""

from __future__ import annotations

import unicodedata
from collections.abc import Awaitable, Callable
from typing import Any

from daydo_auth import AccessToken, Auth, Code, Password, PasswordTooWeak, Principal, WeChatCode
from daydo_db import Database, Tx
from daydo_kernel import BadRequest, Event, EventSink, FieldError, NotFound

from .config import FRESH_S
from .contact import Contact
from .repository import Profiles
from .tables import Profile

OwnsUpload = Callable[[str, str, str], Awaitable[bool]]
"""Whether (tenant, user) has the upload of this id."""


class Personal:
    """One's own account; each call names whose."""

    def __init__(
        self, db: Database, auth: Auth, profiles: Profiles, owns_upload: OwnsUpload, *, events: EventSink
    ) -> None:
        self._db = db
        self._auth = auth
        self._profiles = profiles
        self._owns_upload = owns_upload
        self._events = events

    async def profile(self, user: Principal) -> Profile:
        """
        Raises:
            NotFound: there is none.
        """
        profile = await self._profiles.find(user.tenant, user.subject)
        if profile is None:
            raise NotFound()
        return profile

    async def change(self, user: Principal, values: dict[str, str | None]) -> Profile:
        """Write those of ``nickname``, ``avatar`` and ``gender`` that are given; None takes one away.

        Raises:
            BadRequest: a nickname of nothing visible, or an avatar that is no upload of theirs.
            NotFound: there is no such user.
        """
        if values.get("nickname") is not None:
            values["nickname"] = _nickname(values["nickname"] or "")
        if (avatar := values.get("avatar")) and not await self._owns_upload(user.tenant, user.subject, avatar):
            raise BadRequest(fields=(FieldError("avatar", "没有这个上传", "There is no such upload"),))
        columns = {getattr(Profile, name): value for name, value in values.items()}
        if columns:
            await self._write(user, "profile_changed", columns, fields=sorted(values))
        return await self.profile(user)

    async def bind_phone(self, user: Principal, phone: str, code: str, *, address: str) -> Profile:
        """Make a phone number theirs, in place of the one they had, by a code that was sent to it for ``bind``.

        Raises:
            CodeWrong, CodesLimited: as ``auth.prove``.
            LoginTaken: it is somebody else's.
            NotFound: there is no such user.
        """
        login = Contact.of(phone, None).login
        proof = await self._auth.prove(Code(login, code), tenant=user.tenant, purpose="bind", address=address, by=user)

        async def write(tx: Tx) -> None:
            before = await self._profiles.lock(user.tenant, user.subject, tx=tx)
            if before is None:
                raise NotFound()
            await self._auth.link(proof, subject=user.subject, tx=tx)
            if before.phone not in (None, login):
                await self._auth.identities.remove(user.subject, before.phone, tenant=user.tenant, tx=tx)
            await self._profiles.release_phone(user.tenant, login, tx=tx)
            await self._profiles.change(user.tenant, user.subject, {Profile.phone: login}, tx=tx)
            await self._tell(user, "phone_bound", tx)

        await self._db.run(write)
        return await self.profile(user)

    async def bind_wechat(self, user: Principal, code: str) -> None:
        """Let their WeChat be a way in, too.

        Raises:
            WeChatCodeInvalid, RiskRefused, WeChatUnavailable: as ``auth.prove``.
            LoginTaken: it is somebody else's.
        """
        proof = await self._auth.prove(WeChatCode(code), tenant=user.tenant, by=user)

        async def write(tx: Tx) -> None:
            await self._auth.link(proof, subject=user.subject, tx=tx)
            await self._tell(user, "wechat_bound", tx)

        await self._db.run(write)

    async def set_password(self, user: Principal, old: str | None, new: str) -> None:
        """Another password by who knows the old one, or the first by who has none. Ends other sessions.

        Raises:
            WrongCredentials: ``old`` is not the password.
            SubjectTaken: ``old`` is missing, and there is one.
            StepUpRequired: it is the first password, and they proved themselves too long ago.
            PasswordTooWeak, HashingSaturated: as ``auth.change_password``.
        """
        if old is None:
            self._auth.require_fresh(user, FRESH_S)
        try:
            if old is not None:
                await self._auth.change_password(user, old, new)
            else:
                await self._auth.set_password(user.subject, new, tenant=user.tenant)
        except PasswordTooWeak as error:
            # As the client calls it, who may have sent two.
            fields = tuple(FieldError("new_password", field.zh, field.en) for field in error.fields)
            raise PasswordTooWeak(fields=fields) from None

    async def step_up(self, user: Principal, password: str | None, code: str | None, *, address: str) -> AccessToken:
        """Prove themselves again, by their password or a code that was sent to their phone for ``step_up``.

        Raises:
            BadRequest: neither or both are given, or they have nothing that it could belong to.
            WrongCredentials, CodeWrong, CodesLimited, HashingSaturated: as ``auth.step_up``.
        """
        profile = await self.profile(user)
        login = profile.phone if code is not None else profile.phone or profile.email
        if (password is None) == (code is None) or login is None:
            either = FieldError("password", "请填写密码或手机验证码", "Give the password, or a code sent to your phone")
            raise BadRequest(fields=(either,))
        credential = Password(login, password) if password is not None else Code(login, code or "")
        return await self._auth.step_up(user, credential, address=address)

    async def deactivate(self, user: Principal) -> None:
        """End all sessions and let nobody log in as ``user`` until an administrator lets them.

        A phone that they never proved is free for who does.
        """

        async def write(tx: Tx) -> None:
            await self._auth.roles.disable(user.subject, tenant=user.tenant, by=user, tx=tx)
            await self._tell(user, "deactivated", tx)

        await self._db.run(write)

    async def _write(self, user: Principal, what: str, columns: dict[Any, Any], **said: Any) -> None:
        async def write(tx: Tx) -> None:
            if not await self._profiles.change(user.tenant, user.subject, columns, tx=tx):
                raise NotFound()
            await self._tell(user, what, tx, **said)

        await self._db.run(write)

    async def _tell(self, user: Principal, what: str, tx: Tx, **said: Any) -> None:
        event = Event(name=f"account.{what}", tenant=user.tenant, subject=user.subject, data=said)
        await self._events.emit(event, tx)


def _nickname(text: str) -> str:
    """``text`` without spaces around it.

    Raises:
        BadRequest: nothing is left, or it has characters that are not seen: they change what others around them say.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if not name or len(name) > 32 or any(unicodedata.category(each)[0] in "CZ" and each != " " for each in name):
        field = FieldError("nickname", "须为 1 至 32 个可见字符", "Must be 1 to 32 visible characters")
        raise BadRequest(fields=(field,))
    return name

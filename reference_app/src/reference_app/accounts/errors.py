"""What can go wrong with accounts and invitations."""

from __future__ import annotations

from daydo_kernel import DaydoError


class AccountError(DaydoError):
    """What the rules of accounts may refuse."""


class AlreadyInvited(
    AccountError,
    code=40970,
    name="accounts.already_invited",
    zh="已填写过邀请人。",
    en="Somebody has invited you already; that does not change.",
):
    """Who invited a user is said once."""


class InvitesExhausted(
    AccountError,
    code=40971,
    name="accounts.invites_exhausted",
    zh="你有 {most} 个邀请码尚未使用，请先使用。",
    en="{most} of your invite codes are not used yet; give these away first.",
):
    """A user has as many open codes as one may have."""

    most: int


class OwnAccount(
    AccountError,
    code=40972,
    name="accounts.own_account",
    zh="不能对自己的账号执行此操作。",
    en="Administrators do not do this to themselves; ask another one.",
):
    """Shutting oneself out, or changing one's own roles: the last administrator would be gone."""


class InviteInvalid(
    AccountError,
    code=42270,
    name="accounts.invite_invalid",
    zh="邀请码无效或已被使用。",
    en="This invite code is unknown or used.",
):
    """Unknown, never given out, used, or of a user who is gone: one error, so that guessing tells nothing."""


class InviteOwn(
    AccountError,
    code=42271,
    name="accounts.invite_own",
    zh="不能使用自己的邀请码。",
    en="This invite code is your own.",
):
    """Nobody invites themselves."""


class InviteTooLate(
    AccountError,
    code=42272,
    name="accounts.invite_too_late",
    zh="注册已久或早于邀请人，不能再填写邀请码。",
    en="You registered too long ago, or before who invites you; invite codes are for newcomers.",
):
    """Inviters are older members than whom they invite, which leaves no room for circles."""


class ReferrerUnknown(
    AccountError,
    code=42273,
    name="accounts.referrer_unknown",
    zh="推荐人不存在。",
    en="There is no such referrer.",
):
    """``referrer_id`` names nobody who could have referred this user, or another one than the invite code does."""

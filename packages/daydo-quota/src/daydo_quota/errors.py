"""Every way a ledger says no. Texts may reach the account's owner; all facts are attributes."""

from __future__ import annotations

from daydo_kernel import DaydoError


class QuotaError(DaydoError):
    """Root of this package's errors."""


class InsufficientQuota(
    QuotaError,
    code=40230,
    name="quota.insufficient",
    zh="额度不足：需要 {amount}，可用 {available}。",
    en="Not enough quota: {amount} needed, {available} available.",
):
    """The account cannot cover the hold, or what a confirm may take beyond it. Nothing was remembered: the same key may
    be tried again after a top-up. ``subject`` and ``unit`` say which account lacks, ``amount`` what it was to give."""

    subject: str
    unit: str
    amount: int
    available: int


class HoldUnknown(
    QuotaError,
    code=40430,
    name="quota.hold_unknown",
    zh="预留不存在，请先预留额度。",
    en="There is no such hold; reserve first.",
):
    """A confirm, capture, extension or refund names a key under which this account never held anything."""

    key: str


class AllowanceUnknown(
    QuotaError,
    code=40431,
    name="quota.allowance_unknown",
    zh="周期额度不存在。",
    en="There is no such allowance.",
):
    """A disallow names a key under which this account was never allowed anything."""

    key: str


class KeyConflict(
    QuotaError,
    code=40930,
    name="quota.key_conflict",
    zh="该幂等键已用于参数不同的另一次操作，请换一个键。",
    en="This idempotency key was used with other parameters; use a new key for a new operation.",
):
    """The key exists in this tenant, and its operation differed in account, amount, dates or another parameter."""

    key: str


class HoldExpired(
    QuotaError,
    code=40931,
    name="quota.hold_expired",
    zh="预留已超时，额度已退回，请重新发起。",
    en="The hold has timed out and its quota was returned; reserve again under a new key, or with a longer ttl_s.",
):
    """A confirm, capture, extension or second saga came after the hold's time, which was ``expired_at_us``."""

    key: str
    hold_id: str
    expired_at_us: int


class HoldCancelled(
    QuotaError,
    code=40932,
    name="quota.hold_cancelled",
    zh="预留已取消，请换一个键重新发起。",
    en="The hold was cancelled; reserve again under a new key.",
):
    """Cancelled, possibly before it was ever made: a reserve that arrives after its cancel is refused."""

    key: str
    hold_id: str


class HoldConfirmed(
    QuotaError,
    code=40933,
    name="quota.hold_confirmed",
    zh="预留已结算，不能再更改。",
    en="The hold was confirmed and can no longer be changed.",
):
    """A cancel, capture or extension came after the confirm; ``captured`` units were charged."""

    key: str
    hold_id: str
    captured: int


class HoldOpen(
    QuotaError,
    code=40934,
    name="quota.hold_open",
    zh="相同幂等键的请求仍在处理中，请稍后再查。",
    en="A request with this key is still being worked on; ask again later under the same key.",
    retryable=True,
):
    """A second request came while the first one's hold was open. If nobody works on it any more, because its process
    has died, the hold times out at ``expires_at_us``."""

    key: str
    expires_at_us: int


class BadPolicy(
    QuotaError,
    code=40030,
    name="quota.bad_policy",
    zh="{field} 只能是以下之一：{known}。",
    en="{field} must be one of: {known}.",
):
    """``overage``, ``late`` or ``broken_stream`` is none of the words that it may be here."""

    field: str
    known: str


class BadAmount(
    QuotaError,
    code=42230,
    name="quota.bad_amount",
    zh="{field} 必须是 {least} 到 {most} 之间的整数。",
    en="{field} must be a whole number from {least} to {most}.",
):
    """``amount``, ``charge`` or ``priority`` is not an ``int``, or outside its bounds."""

    field: str
    least: int
    most: int


class ChargeExceedsHold(
    QuotaError,
    code=42231,
    name="quota.charge_exceeds_hold",
    zh="结算数量 {amount} 超过预留数量 {held}。",
    en="The charge of {amount} exceeds the {held} held.",
):
    """A capture or confirm asks for more than the ``held`` units that the hold still has.

    Hold the greatest possible amount and confirm what was used, or confirm with ``overage="available"``.
    """

    key: str
    amount: int
    held: int


class BalanceLimit(
    QuotaError,
    code=42232,
    name="quota.balance_limit",
    zh="账户累计额度已达上限 {most}。",
    en="The account's lifetime total has reached its limit of {most}.",
):
    """One more grant, allowance or debt would lift the account's totals over what JSON can say exactly (2⁵³ − 1)."""

    most: int


class BadName(
    QuotaError,
    code=42233,
    name="quota.bad_name",
    zh="{field} 必须由 1 到 {most} 个可见 ASCII 字符组成，不含空格。",
    en="{field} must be 1 to {most} visible ASCII characters without spaces.",
):
    """A tenant, subject, unit, key or source cannot be stored; of these only the tenant may be empty."""

    field: str
    most: int


class BadPeriod(
    QuotaError,
    code=42234,
    name="quota.bad_period",
    zh="有效期不正确：结束时间必须晚于现在和开始时间，预留时长必须大于 0 且不超过上限。",
    en="The period is not valid: it must end after now and after its start, and a hold lasts more than 0 seconds "
    "and at most max_hold_ttl_s.",
):
    """``field`` is ``effective_at_us``, ``expires_at_us``, ``starts_at_us``, ``until_us`` or ``ttl_s``."""

    field: str


class BadReason(
    QuotaError,
    code=42235,
    name="quota.bad_reason",
    zh="原因必须是最多 {most} 个字符的有效文本。",
    en="The reason must be valid text of at most {most} characters.",
):
    """``reason`` is kept in the account's history, so it is bounded, and Unicode without lone surrogates."""

    most: int


class RefundExceedsCharge(
    QuotaError,
    code=42236,
    name="quota.refund_exceeds_charge",
    zh="退还数量 {amount} 超过已扣除且未退还的数量 {charged}。",
    en="The refund of {amount} exceeds the {charged} that are charged and not yet refunded.",
):
    """All refunds of a hold together never exceed what it was charged."""

    key: str
    amount: int
    charged: int


class BadAccounts(
    QuotaError,
    code=42237,
    name="quota.bad_accounts",
    zh="一次预留必须包含同一租户的 1 到 {most} 个不同账户；围绕 HTTP 请求的预留，单位也须各不相同。",
    en="One hold covers 1 to {most} different accounts of one tenant; around an HTTP request of different units, too.",
):
    """A ``reserve_all`` names no account, one of them twice, two tenants, or too many; or the hold of a request, where
    the unit says whose charge is meant, two accounts of one unit."""

    most: int


class BadCalendar(
    QuotaError,
    code=42238,
    name="quota.bad_calendar",
    zh="周期设置不正确：周期为 day、week 或 month，起点为 calendar 或 start，时区为 IANA 名称（如 Asia/Shanghai）。",
    en="The calendar is not valid: every is day, week or month, anchor is calendar or start, zone is an IANA name such "
    "as Asia/Shanghai that this machine knows.",
):
    """``field`` is ``every``, ``anchor`` or ``zone``; for a zone ``value`` is what was looked for."""

    field: str
    value: str


class AllowanceLimit(
    QuotaError,
    code=42239,
    name="quota.allowance_limit",
    zh="一个账户最多可有 {most} 个周期额度。",
    en="An account may have at most {most} allowances at a time; disallow one first.",
):
    """Allowances that are over do not count."""

    most: int


class AccountBusy(
    QuotaError,
    code=42330,
    name="quota.account_busy",
    zh="账户正被占用，请稍后重试。",
    en="The account is in use by another transaction; nothing was changed. Try again, and keep transactions "
    "that pass tx= short.",
    retryable=True,
):
    """Another transaction, a caller's with ``tx=`` or another process's, has had the account for ``waited_s``."""

    unit: str
    waited_s: float


class QueueFull(
    QuotaError,
    code=50330,
    name="quota.queue_full",
    zh="已有 {size} 个请求在等待，请稍后重试。",
    en="{size} calls are waiting to be written already; nothing was changed. Try again shortly.",
    retryable=True,
):
    """More calls at once than the database keeps up with; ``queue_max`` bounds them, so that they fail at once."""

    size: int


class LedgerLeft(
    QuotaError,
    code=50331,
    name="quota.ledger_left",
    zh="服务正在关闭，请稍后重试。",
    en="The ledger was left before this call was written; nothing was changed. Repeat it, under the same key.",
    retryable=True,
):
    """The call was still waiting when ``drain_s`` was over."""


class BooksDisagree(
    QuotaError,
    code=50030,
    name="quota.books_disagree",
    zh="账户 {account_id} 的余额与其额度批次不一致。",
    en="Account {account_id} disagrees with its grants; nothing was changed. Was a table edited by hand?",
):
    """The account's row and its grants' rows differ: a fault of ours or of a hand, never of the caller."""

    account_id: int

"""What may be asked of a ledger; checked before any statement runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Self, get_args

from .errors import BadAccounts, BadAmount, BadCalendar, BadName, BadPeriod, BadPolicy, BadReason
from .model import AccountLike, Overage, Policy
from .periods import Anchor, Every, clock_of
from .rows import MAX_UNITS, NEVER_US, AccountKey

MAX_OWNER = 128
MAX_UNIT = 32
MAX_KEY = 200
MAX_SOURCE = 32
MAX_REASON = 200
MAX_PRIORITY = 100
MAX_ZONE = 64
MAX_LEGS = 16

_OVERAGES, _POLICIES = get_args(Overage), get_args(Policy)
_WORDS = re.compile(r"[!-~]+( [!-~]+)*")
# Half of a character: Python keeps it in a text, UTF-8 cannot write it.
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def check_account(account: AccountLike) -> AccountKey:
    """(tenant, subject, unit), or BadName."""
    tenant, subject = check_owner(account.tenant, account.subject)
    return tenant, subject, check_name("unit", account.unit, MAX_UNIT)


def check_owner(tenant: str, subject: str) -> tuple[str, str]:
    """(tenant, subject), or BadName."""
    return (
        check_name("tenant", tenant, MAX_OWNER) if tenant else "",
        check_name("subject", subject, MAX_OWNER),
    )


def check_accounts(accounts: Sequence[AccountLike]) -> list[AccountKey]:
    """As :func:`check_account` each; BadAccounts if they cannot be held together."""
    keys = [check_account(account) for account in accounts]
    together = len({key[0] for key in keys}) == 1 and len(set(keys)) == len(keys)
    if not together or len(keys) > MAX_LEGS:
        raise BadAccounts(most=MAX_LEGS)
    return keys


class OwnKey(str):
    """A key that this package makes itself, of words with a space between them.

    No caller's key has a space, whatever its client sends: so nobody takes such a key before us, and what stands in it
    is what we have put there. :meth:`Ledger.allow` gives its grants keys of two words in the same way.
    """

    __slots__ = ()

    def __new__(cls, *words: str) -> Self:
        key = " ".join(check_name("key", word, MAX_KEY) for word in words)
        if len(key) > MAX_KEY:
            raise BadName(field="key", most=MAX_KEY)
        return super().__new__(cls, key)


def check_key(key: str) -> str:
    if isinstance(key, OwnKey):
        return str(key)  # Drivers look at the type.
    return check_name("key", key, MAX_KEY)


def check_hold_key(hold_key: str) -> str:
    """The key of a hold to refund: it takes no key, so it may be one of our own, as text."""
    if not isinstance(hold_key, str) or len(hold_key) > MAX_KEY or not _WORDS.fullmatch(hold_key):
        raise BadName(field="hold_key", most=MAX_KEY)
    return str.__str__(hold_key)


def check_name(field: str, value: str, most: int) -> str:
    """1 to ``most`` visible ASCII characters, or BadName; of a subclass, such as an enumeration's, the str itself."""
    if type(value) is not str:
        # Drivers and encoders look at the type.
        value = str.__str__(value) if isinstance(value, str) else ""
    # No spaces: a padding collation would take "a" and "a " for the same key.
    visible = value.isascii() and value.isprintable() and " " not in value
    if not visible or not 0 < len(value) <= most:
        raise BadName(field=field, most=most)
    return value


def check_amount(amount: int, *, field: str = "amount", least: int = 1, most: int = MAX_UNITS) -> int:
    if type(amount) is not int or not least <= amount <= most:
        raise BadAmount(field=field, least=least, most=most)
    return amount


def check_choice(field: str, value: str, known: Sequence[str]) -> None:
    """BadPolicy for a word that is none of ``known``: a misspelt one would mean the first."""
    if value not in known:
        raise BadPolicy(field=field, known=", ".join(known))


def check_policies(overage: Overage, late: Policy) -> None:
    """BadPolicy for what no confirm can be told."""
    check_choice("overage", overage, _OVERAGES)
    check_choice("late", late, _POLICIES)


def check_reason(reason: str) -> str:
    if not isinstance(reason, str) or len(reason) > MAX_REASON or _SURROGATE.search(reason):
        raise BadReason(most=MAX_REASON)
    return reason


def check_instant(field: str, at_us: int | None) -> int | None:
    if at_us is not None and (type(at_us) is not int or not 0 <= at_us < NEVER_US):
        raise BadPeriod(field=field)
    return at_us


def check_calendar(every: Every, zone: str, anchor: Anchor) -> None:
    """BadCalendar for what is no period."""
    for field, value, known in (("every", every, get_args(Every)), ("anchor", anchor, get_args(Anchor))):
        if value not in known:
            raise BadCalendar(field=field, value=str(value))
    # Bounded before it is looked for, for it is the name of a file.
    if not isinstance(zone, str) or len(zone) > MAX_ZONE:
        raise BadCalendar(field="zone", value=str(zone)[:MAX_ZONE])
    clock_of(zone)


def check_ttl(ttl_s: float, most_s: float) -> int:
    """Microseconds."""
    try:
        ttl_us = round(ttl_s * 1_000_000) if 0 < ttl_s <= most_s else 0
    except TypeError:  # no number
        ttl_us = 0
    if not ttl_us:
        raise BadPeriod(field="ttl_s")
    return ttl_us

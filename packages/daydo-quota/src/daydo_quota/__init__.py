"""A ledger for credits, points and tokens; see README.md."""

from .errors import (
    BadAmount,
    BadName,
    BadPeriod,
    BadReason,
    BalanceLimit,
    BooksDisagree,
    ChargeExceedsHold,
    HoldCancelled,
    HoldConfirmed,
    HoldExpired,
    HoldUnknown,
    InsufficientQuota,
    KeyConflict,
    QuotaError,
)
from .ledger import Ledger, LedgerConfig
from .model import Account, AccountBalance, AccountLike, Balance, Entry, Grant, Hold, OpenHold

__all__ = [
    "Account",
    "AccountBalance",
    "AccountLike",
    "BadAmount",
    "BadName",
    "BadPeriod",
    "BadReason",
    "Balance",
    "BalanceLimit",
    "BooksDisagree",
    "ChargeExceedsHold",
    "Entry",
    "Grant",
    "Hold",
    "HoldCancelled",
    "HoldConfirmed",
    "HoldExpired",
    "HoldUnknown",
    "InsufficientQuota",
    "KeyConflict",
    "Ledger",
    "LedgerConfig",
    "OpenHold",
    "QuotaError",
]

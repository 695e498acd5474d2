"""What time does by itself, in the order in which it was due; ``planner.py`` has the theory."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter

from .book import Book, next_moment, room_in
from .ops import GrantUnits
from .periods import Period, period_at
from .rows import NEVER_US, AccountRow, AllowanceRow, GrantRow, Notice, owner_of

# At an instant's tie holds go first: what they return is there for what follows.
_HOLD_TIMES_OUT, _GRANT_BEGINS, _NOTICE, _GRANT_ENDS = range(4)


def catch_up(book: Book, account: AccountRow) -> None:
    """Whatever was due up to now, dated when it was due.

    Raises:
        BooksDisagree: a hold's grant is not there; nothing has changed.
    """
    grants = book.grants_of(account)
    next_hold_us = book.next_hold_us.get(account.id, NEVER_US)
    # A sweeper brings only some of the overdue holds; then time has come no further than the next of them.
    until_us = min(book.now_us, next_hold_us - 1)
    opened = [row for row in book.holds.values() if row.account_id == account.id and row.phase == "open"]
    overdue = [row for row in opened if row.expires_at_us <= book.now_us]
    for row in overdue:
        book.require_grants(account, row)
    due = [
        *((row.expires_at_us, _HOLD_TIMES_OUT, row.id) for row in overdue),
        *((row.effective_at_us, _GRANT_BEGINS, row.id) for row in grants if row.effective_at_us <= until_us),
        *((row.notice_at_us, _NOTICE, row.id) for row in grants if row.notice_at_us <= until_us),
        *((row.expires_at_us, _GRANT_ENDS, row.id) for row in grants if row.expires_at_us <= until_us),
    ]
    for at_us, together in groupby(sorted(due), key=itemgetter(0)):
        for _, what, row_id in together:
            _let_happen(book, account, at_us, what, row_id)
        book.repay(account, at_us)
    account.next_due_at_us = min(
        next_hold_us,
        *(row.effective_at_us for row in grants if row.phase == "pending"),
        *(next_moment(row) for row in grants if row.phase == "live" and row.remaining),
        NEVER_US,
    )


def _let_happen(book: Book, account: AccountRow, at_us: int, what: int, row_id: str) -> None:
    if what == _HOLD_TIMES_OUT:
        book.resolve(account, book.holds[row_id], "expired", "hold_expired", at_us, "")
        return
    row = book.grants[row_id]
    if what == _GRANT_BEGINS and row.phase == "pending":
        book.activate(account, row, at_us)
    elif what == _NOTICE and row.phase == "live" and row.remaining:
        _tell_of_its_end(book, account, row)
    elif what == _GRANT_ENDS and row.phase == "live":
        book.expire(account, row, at_us)


def _tell_of_its_end(book: Book, account: AccountRow, row: GrantRow) -> None:
    book.touch(row).notice_at_us = NEVER_US
    facts = {"id": row.id, "key": row.op_key, "amount": row.remaining, "expires_at_us": row.expires_at_us}
    book.notices.append(Notice(account.id, "expiring", facts))


def renew(book: Book, account: AccountRow) -> None:
    """The units of the periods we are in, for those allowances that have not granted them yet.

    Once everything that was due has been done, and dated now: a period's units begin to be when somebody asks for the
    account in that period.
    """
    mine = book.allowances_of(account)
    # All before anything changes: a zone may be unknown to this machine.
    renewals = [(row, _period_of(row, book.now_us)) for row in mine if row.next_at_us <= book.now_us]
    for row, period in renewals:
        if period is None:
            book.touch(row).next_at_us = NEVER_US
        else:
            _grant_period(book, account, row, period)
    account.renews_at_us = min((row.next_at_us for row in mine), default=NEVER_US)
    book.repay(account, book.now_us)


def renewable(book: Book, account: AccountRow) -> int:
    """The units that :func:`renew` would make available."""
    rows = [row for row in book.allowances_of(account) if row.next_at_us <= book.now_us]
    periods = [(row, _period_of(row, book.now_us)) for row in rows]
    units = sum(row.amount for row, period in periods if period is not None and period.name > row.period)
    return max(0, units - account.debt)


def _period_of(row: AllowanceRow, now_us: int) -> Period | None:
    """None where the allowance has ended."""
    if now_us >= row.until_us:
        return None
    return period_at(now_us, row.every, row.zone, row.starts_at_us if row.anchor == "start" else None)


def _grant_period(book: Book, account: AccountRow, row: AllowanceRow, period: Period) -> None:
    book.touch(row).next_at_us = period.end_us if period.end_us < row.until_us else NEVER_US
    # By its name and not by its time: a clock that is set back, or another table of zones, must not grant it again.
    if period.name <= row.period:
        return
    row.period = period.name
    amount, ends_us = min(row.amount, room_in(account)), min(period.end_us, row.until_us)
    if amount:
        op = GrantUnits(
            id=f"{row.id}_{period.name}",
            account=owner_of(account),
            key=f"{row.id} {period.name}",  # No caller can give a key with a space.
            amount=amount,
            source=row.source,
            priority=row.priority,
            effective_at_us=None,
            expires_at_us=ends_us,
            reason=row.reason,
        )
        book.add_grant(account, book.new_grant(account, op, book.now_us, ends_us), op.reason)

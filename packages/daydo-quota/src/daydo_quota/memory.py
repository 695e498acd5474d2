"""What this process knows of accounts, so that a batch need not read what was written here.

Every transaction that changes an account, or anything that belongs to it, leaves a random *stamp* in the account's row.
A batch locks the row and looks at the stamp: where it is the one that this process left, nobody has written since, and
what was written then is what stands there now. A counter would not do. A server that was restored, or that lost its
last second in a crash, comes to the same count again with other rows.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Collection, Mapping
from itertools import chain

from .ops import Op, accounts_of, settled_key
from .rows import AccountKey, AccountRow, GrantRow, HoldRow, Plan, State, owner_of

_STAMP_BITS = 53  # So many any reader of JSON keeps.
_MOST_DOUBTS = 64


def new_stamp() -> int:
    """Not of a generator that forks would share; never 0, which is what stands there at first and after a repair."""
    return secrets.randbits(_STAMP_BITS) or 1


class Sheet:
    """An account, all its grants that are not closed, by id, and by key those of its open holds that were met here.

    It is the memory's own and changes with what the main line writes, which has each account in one batch at a time; a
    lane's batch leaves a new one in its place. The rows in it never change.

    ``to_see``: so often it is to be seen in the database that nobody else has written, before that is believed unseen.
    ``doubts``: how often that was last asked for.
    """

    __slots__ = ("account", "doubts", "grants", "holds", "size", "to_see")

    def __init__(self, account: AccountRow) -> None:
        self.account = account
        self.grants: dict[str, GrantRow] = {}
        self.holds: dict[str, HoldRow] = {}
        self.size = 0
        self.to_see = self.doubts = 0

    def doubt(self) -> None:
        self.to_see = self.doubts = min(2 * self.doubts or 1, _MOST_DOUBTS)

    def seen(self) -> None:
        self.to_see -= self.to_see > 0

    def note_grant(self, row: GrantRow) -> None:
        if row.phase == "closed":
            self.grants.pop(row.id, None)
        else:
            self.grants[row.id] = row

    def note_hold(self, row: HoldRow) -> None:
        if row.phase == "open":
            self.holds[row.op_key] = row
        else:
            self.holds.pop(row.op_key, None)


def sheets_of(state: State, complete: Collection[int]) -> dict[int, Sheet]:
    """By id, of the accounts of which ``state`` has all that a sheet must have."""
    sheets = {row.id: Sheet(row) for row in state.accounts.values() if row.id in complete}
    for grant in state.grants:
        if (sheet := sheets.get(grant.account_id)) is not None:
            sheet.note_grant(grant)
    for hold in state.holds:
        if (sheet := sheets.get(hold.account_id)) is not None:
            sheet.note_hold(hold)
    return sheets


def open_hold(op: Op, known: Mapping[AccountKey, Sheet]) -> HoldRow | None:
    """The open hold that ``op`` is about; of what a key may name that is the one thing to know."""
    key = settled_key(op)
    if key is None or (sheet := known.get(accounts_of(op)[0])) is None:
        return None
    return sheet.holds.get(key)


class Memory:
    """Sheets of at most ``most`` rows; the account that was in no batch for longest is forgotten first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._sheets: OrderedDict[AccountKey, Sheet] = OrderedDict()

    def get(self, owner: AccountKey) -> Sheet | None:
        return self._sheets.get(owner)

    def learn(self, sheets: Mapping[int, Sheet], written: Plan) -> None:
        """``written`` is committed, or sent to be, and was decided on ``sheets``, by account id."""
        for grant in chain(written.new_grants, written.grants):
            if (sheet := sheets.get(grant.account_id)) is not None:
                sheet.note_grant(grant)
        for hold in chain(written.new_holds, written.holds):
            if (sheet := sheets.get(hold.account_id)) is not None:
                sheet.note_hold(hold)
        for account in written.accounts:
            if (sheet := sheets.get(account.id)) is not None:
                sheet.account = account
        for sheet in sheets.values():
            self._keep(owner_of(sheet.account), sheet)
        while self._size > self._most:
            self._size -= self._sheets.popitem(last=False)[1].size

    def forget(self, owner: AccountKey) -> None:
        if (known := self._sheets.pop(owner, None)) is not None:
            self._size -= known.size

    def _keep(self, owner: AccountKey, sheet: Sheet) -> None:
        if (before := self._sheets.get(owner)) is not None:
            sheet.to_see, sheet.doubts = before.to_see, before.doubts
        self.forget(owner)
        sheet.size = 1 + len(sheet.grants) + len(sheet.holds)
        if sheet.account.stamp and sheet.size <= self._most:
            self._sheets[owner] = sheet
            self._size += sheet.size

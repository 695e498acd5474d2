"""The tables under the planner: what a batch must know, read under its accounts' locks, and what it decided, written.

The account row's lock is the only mutex: grants, holds and entries of an account change only under it. Everything after
that lock is read plainly, at READ COMMITTED or as SQLite's one writer. (A caller's own transaction is another matter:
``enlisted.py``.)

Here a batch waits for its accounts; in one that waits for nobody (``free.py``) most of what is read is remembered
instead. Both write in one packet: the rows that claim keys, the entries, then of the rows that are there the columns
that changed.

Whoever waits for several accounts locks them in the order of their owners, so that two wait for each other in turn and
never in a circle. A batch that waits for nobody may take them in any order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from itertools import chain, groupby
from operator import attrgetter, sub
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec.structs import astuple

from daydo_db import Database, LockTimeout, NotNullViolation, Result, Tx, Value, now_sql
from daydo_kernel import Clock

from .errors import BooksDisagree
from .memory import Sheet, new_stamp, sheets_of
from .ops import (
    Allow,
    Cancel,
    Capture,
    Charge,
    Confirm,
    Disallow,
    Extend,
    GrantUnits,
    Op,
    Refund,
    Reserve,
    ReserveAll,
    accounts_of,
)
from .rows import (
    DEBT,
    NEVER_US,
    AccountKey,
    AccountRow,
    AllowanceRow,
    AmendmentRow,
    ChangingRow,
    EntryRow,
    GrantRow,
    HoldRow,
    Plan,
    State,
    owner_of,
    read_parts,
    written_parts,
)

ALL_DUE = 2**31 - 1
"""As a limit: every overdue hold, because an operation must see the account exactly as it is now."""

# More would make texts that are too long to be remembered in their compiled form.
_ROWS = 64
# A write that nobody is in the way of may take this long, however little patience is left.
_LEAST_WRITE_S = 0.5

Row = TypeVar("Row", AccountRow, GrantRow, HoldRow, AmendmentRow, AllowanceRow)
Batched = TypeVar("Batched")
AnyRow = AccountRow | GrantRow | HoldRow | AmendmentRow | AllowanceRow | EntryRow
Asked = tuple[str, Sequence[Value]]
Ask = Callable[[str, Sequence[Value]], Awaitable[Result]]

TABLES: dict[type[AnyRow], str] = {
    AccountRow: "daydo_quota_account",
    GrantRow: "daydo_quota_grant",
    HoldRow: "daydo_quota_hold",
    AmendmentRow: "daydo_quota_amendment",
    AllowanceRow: "daydo_quota_allowance",
    EntryRow: "daydo_quota_entry",
}
# 0 or '' in most rows, and by default.
_OFTEN_EMPTY: dict[type[AnyRow], frozenset[str]] = {
    GrantRow: frozenset(),
    HoldRow: frozenset({"leg", "captured", "final", "refunded"}),
    AmendmentRow: frozenset(),
    AllowanceRow: frozenset(),
    EntryRow: frozenset(
        {"hold_key", "reason", "available", "reserved", "spent", "expired", "debt"}
        | {"available_change", "reserved_change", "spent_change", "expired_change", "debt_change"}
    ),
}
# Written as what they change by, which many rows have in common.
_COUNTS: dict[type[AnyRow], frozenset[str]] = {
    AccountRow: frozenset({"pending", "available", "reserved", "spent", "expired", "debt", "seq"}),
    GrantRow: frozenset({"remaining", "held", "spent", "expired"}),
}
# More than so many groups of rows are told apart one by one.
_MOST_GROUPS = 4
_KEYED_BY: dict[type[AnyRow], str] = {
    GrantRow: "tenant = ? AND",
    HoldRow: "tenant = ? AND",
    AmendmentRow: "tenant = ? AND kind = ? AND",
    AllowanceRow: "tenant = ? AND",
}

# The two ways of "make it unless it is there": catching UniqueViolation instead would leave a shared lock on the other
# transaction's row, and two newcomers who both want it exclusively next would deadlock.
_UNLESS_THERE = {"sqlite": "ON CONFLICT DO NOTHING", "mysql": "ON DUPLICATE KEY UPDATE id = id"}
# A small table would otherwise be scanned, and every row locked on the way.
_BY_OWNER = {"sqlite": "", "mysql": "FORCE INDEX (daydo_quota_account_owner)"}
_CLAIMED = attrgetter("tenant", "op_key")
# How many rows the statement before has found.
_FOUND = {"sqlite": "changes()", "mysql": "ROW_COUNT()"}
BY_ID = {"sqlite": "", "mysql": "FORCE INDEX (PRIMARY)"}


class Reading(NamedTuple):
    """What a batch may be decided on.

    ``ready``: the operations, but those on accounts in ``held``, which other transactions have, or ``missing``, which
    an operation would open. ``sheets``: what may be remembered once the batch is committed, by account id.
    """

    ready: Sequence[Op]
    state: State
    now_us: int
    held: set[AccountKey]
    missing: set[AccountKey]
    sheets: dict[int, Sheet]


class Store:
    """One transaction of ours and its view of the tables.

    Whatever others have locked, an account or a key that they have claimed, is waited for ``patience_s`` at most (None:
    the database's ``lock_timeout_s``).
    """

    locking = ""
    """At the end of what is read under the accounts' locks."""

    def __init__(self, tx: Tx, clock: Clock | None, patience_s: float | None = None) -> None:
        self.tx = tx
        self._clock = clock
        self._patience_s = patience_s
        self._dialect = tx.dialect.name

    async def read(self, ops: Sequence[Op]) -> Reading:
        """What ``ops`` are decided on, read after the locks were had.

        Raises:
            LockTimeout: an account was not had in time.
        """
        async with _patient(self._patience_s):
            accounts = await self._lock_all(ops)
        found = await self._look_up(Lookups(ops, [row.id for row in accounts.values()]))
        state, now_us = await self._complete(ops, accounts, found, ALL_DUE)
        return Reading(ops, state, now_us, set(), set(), sheets_of(state, found.complete))

    async def read_due(self, account_id: int, limit: int) -> tuple[State, int]:
        """The first ``limit`` overdue holds of an account; an empty state if another process has the account."""
        lock = f"{select(AccountRow)} {BY_ID[self._dialect]} WHERE id = ? {self._free}"
        locked, now = await self.tx.execute_all([(lock, [account_id]), (f"SELECT {self._now}", ())])
        accounts = {owner_of(row): row for row in rows_of(AccountRow, locked.rows)}
        return await self._complete([], accounts, Found(int(now.rows[0][0])), limit)

    async def write(self, plan: Plan, *, last: bool = False) -> None:
        """All of it. The rows that claim keys come first, so that a refused one has nothing to undo.

        ``last``: nothing follows in the transaction, so it is committed with it. A wrong second writer would fail here:
        (account, seq) and (op_id, step) are unique.

        Raises:
            UniqueViolation: another transaction claimed a key since it was looked up.
            LockTimeout: another transaction is claiming a key, or has locked its neighbours.
            CommitUnknown: the same, of the ``last``: whether it was had in the end is not known.
            BooksDisagree: a row that was read, or is remembered, is not there any more.
        """
        try:
            await self._send(self._writes(plan), last=last)
        except NotNullViolation as error:
            raise BooksDisagree(account_id=plan.accounts[0].id) from error

    async def _send(self, asked: Sequence[Asked], *, last: bool) -> list[Result]:
        patience_s = None if self._patience_s is None else max(_LEAST_WRITE_S, self._patience_s)
        async with _patient(None if last else patience_s):
            return await self.tx.execute_all(asked, commit_within_s=patience_s if last else None)

    def _writes(self, plan: Plan) -> list[Asked]:
        return [*self._claims(plan), *inserts(plan.entries), *self._changes(plan, checked=True)]

    def _claims(self, plan: Plan) -> list[Asked]:
        # Grants last: where a renewal comes with what is asked, the key that was asked for is claimed before it. Each
        # table's in one order: two batches that claim the same keys wait for each other in turn and never in a circle.
        made = (plan.new_holds, plan.new_amendments, plan.new_allowances, plan.new_grants)
        return [insert for rows in made for insert in inserts(sorted(rows, key=_CLAIMED))]

    def _changes(self, plan: Plan, *, checked: bool = False) -> Iterator[Asked]:
        """``checked``: the accounts, which come last and whose rows are locked, refuse if a row before was not there.

        Not in a session of somebody else's, which may count the rows that differ instead of those that are there.
        """
        stamp, changed = new_stamp(), None
        for account in plan.accounts:
            account.stamp = stamp
        tables: tuple[Sequence[ChangingRow], ...] = (plan.grants, plan.holds, plan.allowances, plan.accounts)
        for rows in tables:
            for some in batched(rows):
                yield _update_of(self._dialect, some, plan.before, changed)
                changed = len(some) if checked else None

    # Locks

    async def _lock_all(self, ops: Sequence[Op]) -> dict[AccountKey, AccountRow]:
        keys, opened = sorted({key for op in ops for key in accounts_of(op)}), opening(ops)
        rows = await self._lock_together(keys)
        known = {owner_of(row) for row in rows}
        if new := [key for key in keys if key in opened and key not in known]:
            await self._open(new)
            rows += await self._lock_together(new)
        return {owner_of(row): row for row in rows}

    async def _lock_together(self, keys: Sequence[AccountKey]) -> list[AccountRow]:
        where = f"{_BY_OWNER[self._dialect]} WHERE {_any(OWNED, keys)} {self.tx.dialect.for_update}"
        return await self._fetch(AccountRow, f"{select(AccountRow)} {where}", _flat(keys))

    def _lock_owners(self, keys: Sequence[AccountKey]) -> Asked:
        """Of accounts that nobody has."""
        where = f"{_BY_OWNER[self._dialect]} WHERE {_any(OWNED, keys)} {self._free}"
        return f"{select(AccountRow)} {where}", _flat(keys)

    @property
    def _free(self) -> str:
        return f"{self.tx.dialect.for_update} {self.tx.dialect.skip_locked}"

    async def _open(self, keys: Sequence[AccountKey]) -> None:
        places = ", ".join(["(?, ?, ?)"] * len(keys))
        insert = f"INSERT INTO daydo_quota_account (tenant, subject, unit) VALUES {places}"  # noqa: S608
        await self.tx.execute(f"{insert} {_UNLESS_THERE[self._dialect]}", _flat(keys))

    async def _existing(self, keys: Sequence[AccountKey]) -> set[AccountKey]:
        select = f"SELECT tenant, subject, unit FROM daydo_quota_account WHERE {_any(OWNED, keys)}"  # noqa: S608
        result = await self.tx.execute(select, _flat(keys))
        return {(tenant, subject, unit) for tenant, subject, unit in result.rows}

    # What is read only where it is needed

    async def _complete(
        self, ops: Sequence[Op], accounts: dict[AccountKey, AccountRow], found: Found, limit: int
    ) -> tuple[State, int]:
        """The state, with what overdue, owing and renewing accounts and refunds need besides."""
        due = [row.id for row in accounts.values() if row.next_due_at_us <= found.now_us]
        grants = [*found.grants, *await self._unfinished_grants(sorted({*due} - found.complete))]
        grants += await self._charged_grants(ops, found.holds, {row.id for row in grants})
        holds, next_hold_us = list(found.holds), {}
        for account_id in due:
            overdue, next_hold_us[account_id] = await self._overdue_holds(account_id, found.now_us, limit)
            holds += overdue
        holds += await self._of_accounts(HoldRow, _OWING, [row.id for row in accounts.values() if row.debt])
        renewing = _renewing(ops, accounts, found.now_us)
        allowances = [*found.allowances, *await self._of_accounts(AllowanceRow, _RUNNING, renewing)]
        return State(accounts, grants, holds, next_hold_us, found.amendments, allowances), found.now_us

    async def _look_up(self, lookups: Lookups) -> Found:
        """What is there, and the time: after all locks were had."""
        time, *results = await self.tx.execute_all([(f"SELECT {self._now}", ()), *lookups.asked])
        return lookups.read(results, int(time.rows[0][0]))

    async def _unfinished_grants(self, account_ids: Sequence[int]) -> list[GrantRow]:
        return await self._of_accounts(GrantRow, _UNFINISHED, account_ids)

    async def _of_accounts(self, table: type[Row], condition: str, account_ids: Sequence[int]) -> list[Row]:
        if not account_ids:
            return []
        return await self._among(table, _of_accounts(condition, account_ids), account_ids)

    async def _among(self, table: type[Row], where: str, args: Sequence[Value], first: int = ALL_DUE) -> list[Row]:
        """Of accounts that are locked; the ``first`` to expire."""
        ordered = "" if first == ALL_DUE else f"ORDER BY expires_at_us LIMIT {first}"
        return await self._fetch(table, f"{select(table)} WHERE {where} {ordered} {self.locking}", args)

    async def _charged_grants(self, ops: Sequence[Op], holds: Sequence[HoldRow], known: set[str]) -> list[GrantRow]:
        """Where refunds go: also to grants that are closed."""
        refunded = {(op.account[0], op.hold_key) for op in ops if isinstance(op, Refund)}
        if not refunded:
            return []
        parts = [part for row in holds if (row.tenant, row.op_key) in refunded for part in row.parts]
        ids = sorted({part.grant_id for part in parts if part.used > part.refunded} - known - {DEBT})
        return await self._by_id(GrantRow, ids)

    async def _by_id(self, table: type[Row], ids: Sequence[Value]) -> list[Row]:
        if not ids:
            return []
        return await self._fetch(table, f"{select(table)} WHERE id IN ({marks(ids)}) {self.locking}", ids)

    async def _overdue_holds(self, account_id: int, now_us: int, limit: int) -> tuple[list[HoldRow], int]:
        overdue = await self._among(HoldRow, _OVERDUE, (account_id, now_us), limit)
        if len(overdue) == limit:
            # What happens at one instant happens together.
            now_us = overdue[-1].expires_at_us
            overdue = await self._among(HoldRow, _OVERDUE, (account_id, now_us))
        return overdue, await self._next_hold_us(account_id, now_us)

    async def _next_hold_us(self, account_id: int, now_us: int) -> int:
        return await next_hold_us(self.tx.execute, account_id, now_us)

    async def _fetch(self, table: type[Row], sql: str, args: Sequence[Value]) -> list[Row]:
        return rows_of(table, (await self.tx.execute(sql, args)).rows)

    @property
    def _now(self) -> str:
        # Not in a statement that waits for locks: MySQL's time is that of its start, and that may be a while ago.
        return now_sql(self.tx.dialect, self._clock)


@asynccontextmanager
async def _patient(patience_s: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(patience_s):
            yield
    except TimeoutError:
        raise LockTimeout() from None


class Found(msgspec.Struct):
    """What every batch reads, some rows twice; of the accounts in ``complete`` all unfinished grants are there."""

    now_us: int
    grants: list[GrantRow] = []
    holds: list[HoldRow] = []
    amendments: list[AmendmentRow] = []
    allowances: list[AllowanceRow] = []
    complete: set[int] = set()

    def join(self, later: Found) -> None:
        self.now_us = later.now_us
        self.grants += later.grants
        self.holds += later.holds
        self.amendments += later.amendments
        self.allowances += later.allowances
        self.complete |= later.complete


_Keyed = GrantRow | HoldRow | AmendmentRow | AllowanceRow


class Lookups:
    """The statements that read a :class:`Found`: what the keys of ``ops`` name, and unfinished grants by account.

    ``about``: the operations of which the holds must be looked up, if not of all.
    """

    def __init__(self, ops: Sequence[Op], ids: Collection[int], about: Sequence[Op] | None = None) -> None:
        self._ids = ids
        self._tables: list[type[_Keyed]] = []
        self.asked: list[Asked] = []
        self._ask_keys(GrantRow, ops)
        self._ask_keys(HoldRow, ops if about is None else about)
        self._ask_keys(AmendmentRow, ops)
        self._ask_keys(AllowanceRow, ops)
        if ids:
            self._tables.append(GrantRow)
            self.asked.append((f"{select(GrantRow)} WHERE {_of_accounts(_UNFINISHED, ids)}", sorted(ids)))

    def read(self, results: Sequence[Result], now_us: int) -> Found:
        rows: dict[type, list[Any]] = {GrantRow: [], HoldRow: [], AmendmentRow: [], AllowanceRow: []}
        for table, result in zip(self._tables, results, strict=True):
            rows[table] += rows_of(table, result.rows)
        amended, allowed = rows[AmendmentRow], rows[AllowanceRow]
        return Found(now_us, rows[GrantRow], rows[HoldRow], amended, allowed, set(self._ids))

    def _ask_keys(self, table: type[_Keyed], ops: Sequence[Op]) -> None:
        if keys := keys_of(table, ops):
            condition, args = by_key(table, keys)
            self._tables.append(table)
            self.asked.append((f"{select(table)} WHERE {condition}", args))


async def read_unlocked(db: Database, accounts: Sequence[AccountRow], now_us: int) -> dict[int, State]:
    """What CatchUps at ``now_us`` are decided on, by account, outside any transaction and without a lock; for looking.

    Two statements, and one more where an account renews or is in debt, each with the account's row in it: where it is
    the same in all and as in ``accounts``, nobody has written in between and all belongs together. Accounts that
    somebody has written to are left out.
    """
    ids = [row.id for row in accounts]
    grants = await db.query(_beside_accounts(GrantRow, ids, _UNFINISHED), ids)
    overdue = await db.query(_beside_accounts(HoldRow, ids, "phase = 'open' AND expires_at_us <= ?"), [now_us, *ids])
    results = [grants, overdue]
    holds_of, allowances_of = _by_account(HoldRow, overdue), dict[int, list[AllowanceRow]]()
    if any(row.debt for row in accounts):
        results.append(await db.query(_beside_accounts(HoldRow, ids, _OWING), ids))
        for account_id, owing in _by_account(HoldRow, results[-1]).items():
            holds_of[account_id] = holds_of.get(account_id, []) + owing
    if any(row.renews_at_us <= now_us for row in accounts):
        results.append(await db.query(_beside_accounts(AllowanceRow, ids, _RUNNING), ids))
        allowances_of = _by_account(AllowanceRow, results[-1])
    grants_of = _by_account(GrantRow, grants)
    seen = [AccountRow(*row[:_ACCOUNT_WIDTH]) for result in results for row in result.rows]
    known = {row.id: row for row in accounts}
    changed = {row.id for row in seen if row != known[row.id]}
    return {
        row.id: State(
            accounts={owner_of(row): row},
            grants=grants_of[row.id],
            holds=holds_of[row.id],
            allowances=allowances_of.get(row.id, []),
        )
        for row in accounts
        if row.id not in changed
    }


async def next_hold_us(ask: Ask, account_id: int, now_us: int) -> int:
    """When the first of an account's open holds expires of those that do so after ``now_us``."""
    [(next_us,)] = (await ask(_NEXT_HOLD, (account_id, now_us))).rows
    return NEVER_US if next_us is None else int(next_us)


def _renewing(ops: Sequence[Op], accounts: dict[AccountKey, AccountRow], now_us: int) -> list[int]:
    """The accounts of which the allowances must be known that are not over; those without any have none to be read."""
    renewing = {key: row for key, row in accounts.items() if row.renews_at_us < NEVER_US}
    if not renewing:
        return []
    asked = {op.account for op in ops if isinstance(op, Allow | Disallow)}
    return [row.id for key, row in renewing.items() if row.renews_at_us <= now_us or key in asked]


@lru_cache
def select(table: type[AnyRow]) -> str:
    return f"SELECT {', '.join(table.__struct_fields__)} FROM {TABLES[table]}"  # noqa: S608 - names of ours


_OVERDUE = "account_id = ? AND phase = 'open' AND expires_at_us <= ?"
_NEXT_HOLD = (
    "SELECT MIN(expires_at_us) FROM daydo_quota_hold WHERE account_id = ? AND phase = 'open' AND expires_at_us > ?"
)


# Before all other phases in the alphabet: so this is one range of the index, and not one for each phase.
_UNFINISHED = "phase > 'closed'"
_OWING = "phase = 'owing'"
_RUNNING = f"next_at_us < {NEVER_US}"
_ACCOUNT_WIDTH = len(AccountRow.__struct_fields__)


def _of_accounts(condition: str, account_ids: Collection[int]) -> str:
    return f"account_id IN ({marks(account_ids)}) AND {condition}"


def _beside_accounts(table: type[Row], account_ids: Sequence[int], condition: str) -> str:
    columns = [f"a.{name}" for name in AccountRow.__struct_fields__]
    columns += [f"its.{name}" for name in table.__struct_fields__]
    return (
        f"SELECT {', '.join(columns)} FROM {TABLES[AccountRow]} a "  # noqa: S608 - names of ours
        f"LEFT JOIN {TABLES[table]} its ON its.account_id = a.id AND {condition} WHERE a.id IN ({marks(account_ids)})"
    )


def _by_account(table: type[Row], result: Result) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {row[0]: [] for row in result.rows}
    for row in rows_of(table, [row[_ACCOUNT_WIDTH:] for row in result.rows if row[_ACCOUNT_WIDTH] is not None]):
        found[row.account_id].append(row)  # type: ignore[attr-defined]  # never accounts themselves
    return found


def rows_of(table: type[Row], found: Iterable[Sequence[Any]]) -> list[Row]:
    rows = [table(*row) for row in found]
    for row in rows:
        if isinstance(row, HoldRow):
            row.parts = read_parts(row.parts, row.captured)  # type: ignore[arg-type]  # text, as it came
    return rows


def marks(values: Collection[object]) -> str:
    return ",".join("?" * len(values))


OWNED = "tenant = ? AND subject = ? AND unit = ?"


def by_key(table: type[AnyRow], keys: Sequence[tuple[str, ...]]) -> tuple[str, list[Value]]:
    """A condition for rows with these keys, which are sorted, and its arguments."""
    conditions, args = [], list[Value]()
    for prefix, some in groupby(keys, key=lambda key: key[:-1]):
        names = [key[-1] for key in some]
        conditions.append(f"{_KEYED_BY[table]} op_key IN ({marks(names)})")
        args += [*prefix, *names]
    return " OR ".join(conditions), args


def _any(condition: str, keys: Sequence[object]) -> str:
    return " OR ".join([condition] * len(keys))


def _flat(keys: Iterable[Sequence[str]]) -> list[Value]:
    return [part for key in keys for part in key]


def batched(rows: Sequence[Batched]) -> Iterator[Sequence[Batched]]:
    return (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))


def inserts(rows: Sequence[AnyRow]) -> Iterator[Asked]:
    for some in batched(rows):
        table = type(some[0])
        columns = zip(table.__struct_fields__, zip(*map(astuple, some), strict=True), strict=True)
        # To read a literal costs a server more than to fill in a default.
        often_empty = _OFTEN_EMPTY[table]
        used = {name: _written(name, values) for name, values in columns if name not in often_empty or any(values)}
        yield _insert(table, tuple(used), len(some)), list(chain.from_iterable(zip(*used.values(), strict=True)))


class _Change(NamedTuple):
    """The shape of an UPDATE of so many ``rows``: columns that change ``alike`` in all of them or ``apart``.

    ``sizes``: of groups of rows in which those change alike, too; empty where the groups are too many. ``checked``: it
    depends on how many rows the statement before it has found.
    """

    table: type[AnyRow]
    alike: Sequence[str]
    apart: Sequence[str]
    sizes: Sequence[int]
    rows: int
    checked: bool


def _update_of(
    dialect: str, rows: Sequence[ChangingRow], before: Mapping[int | str, ChangingRow], found: int | None
) -> Asked:
    """All ``rows`` in one statement, provided that the one before it has found so many (None: whatever it did)."""
    table, ids = type(rows[0]), [row.id for row in rows]
    changed = _changed_columns(rows, [before[row_id] for row_id in ids])
    alike = {name: values[0] for name, values in changed.items() if values.count(values[0]) == len(values)}
    apart = {name: values for name, values in changed.items() if name not in alike}
    sizes, cases = _cases(ids, apart)
    change = _Change(table, tuple(alike), tuple(apart), sizes, len(ids), checked=found is not None)
    args = [*alike.values(), *cases, *ids]
    if found is not None:
        args.insert(len(alike) - 1 if table is AccountRow else len(args), found)
    return _update(dialect, change), args


def _changed_columns(rows: Sequence[ChangingRow], before: Sequence[ChangingRow]) -> dict[str, Sequence[Value]]:
    """What is written into those that differ in any row, by column: new values, or what counts have changed by."""
    old, new = (zip(*map(astuple, some), strict=True) for some in (before, rows))
    columns = zip(rows[0].__struct_fields__, old, new, strict=True)
    written = {name: (_written(name, was), _written(name, now)) for name, was, now in columns if was != now}
    counts = _COUNTS.get(type(rows[0]), ())
    return {
        name: tuple(map(sub, now, was)) if name in counts else now for name, (was, now) in written.items() if was != now
    }


def _cases(ids: Sequence[int | str], apart: Mapping[str, Sequence[Value]]) -> tuple[tuple[int, ...], Sequence[Value]]:
    """Which rows get which values: the sizes of :class:`_Change` and the arguments of its cases."""
    groups: dict[tuple[Value, ...], list[int | str]] = {}
    for row_id, own in zip(ids, zip(*apart.values(), strict=True), strict=False):
        groups.setdefault(own, []).append(row_id)
    if len(groups) > _MOST_GROUPS:
        return (), [value for values in apart.values() for case in zip(ids, values, strict=True) for value in case]
    *few, most = sorted(groups.items(), key=lambda group: len(group[1])) or [((), [])]
    args = list[Value]()
    for column in range(len(apart)):
        for own, members in few:
            args += [*members, own[column]]
        args.append(most[0][column])
    return tuple(len(members) for _, members in few), args


def _written(name: str, values: Sequence[Any]) -> Sequence[Value]:
    return tuple(map(written_parts, values)) if name == "parts" else values


@lru_cache(maxsize=1024)
def _insert(table: type[AnyRow], names: Sequence[str], count: int) -> str:
    places = ", ".join([f"({marks(names)})"] * count)
    return f"INSERT INTO {TABLES[table]} ({', '.join(names)}) VALUES {places}"  # noqa: S608 - names of ours


# A table of the new values to join with (JSON_TABLE, VALUES) costs a server more than to go through the cases, and to
# find a row in a list less than to compare it with one after the other.
@lru_cache(maxsize=4096)
def _update(dialect: str, change: _Change) -> str:
    counts = _COUNTS.get(change.table, ())
    groups = "".join(f"WHEN id IN ({marks(range(size))}) THEN ? " for size in change.sizes)
    own = f"CASE {groups}ELSE ? END" if change.sizes else f"CASE id {'WHEN ? THEN ? ' * change.rows}END"
    values = dict.fromkeys(change.alike, "?") | dict.fromkeys(change.apart, own)
    conditions = [f"id IN ({marks(range(change.rows))})"]
    if change.checked and change.table is AccountRow:
        values["stamp"] = f"CASE WHEN {_FOUND[dialect]} = ? THEN ? END"  # Which may not be NULL.
    elif change.checked:
        conditions.append(f"{_FOUND[dialect]} = ?")
    values |= {name: f"{name} + {value}" for name, value in values.items() if name in counts}
    changes = ", ".join(f"{name} = {value}" for name, value in values.items())
    # By its key, for a small table would be scanned and the rows of others waited for.
    rows = f"{TABLES[change.table]} {BY_ID[dialect]}"
    return f"UPDATE {rows} SET {changes} WHERE {' AND '.join(conditions)}"  # noqa: S608 - names of ours


def opening(ops: Sequence[Op]) -> set[AccountKey]:
    """The accounts that are made if they are not there."""
    opened = {op.account for op in ops if isinstance(op, GrantUnits | Allow | Cancel)}
    return opened | {op.account for op in ops if isinstance(op, Charge) and op.overage == "debt"}


def keys_of(table: type[AnyRow], ops: Sequence[Op]) -> list[tuple[str, ...]]:
    """The keys of rows of ``table`` that ``ops`` name, to be made or to be there."""
    named = _NAMED[table]
    return sorted({name(op) for op in ops if (name := named.get(type(op))) is not None})


def _own(op: Any) -> tuple[str, ...]:
    return op.account[0], op.key


def _of_the_hold(op: Any) -> tuple[str, ...]:
    return op.account[0], op.hold_key


# Tables, for to try one class after the other, for each of hundreds of operations, takes many times as long.
_NAMED: dict[type[AnyRow], dict[type[Op], Callable[[Any], tuple[str, ...]]]] = {
    GrantRow: {GrantUnits: _own},
    HoldRow: {
        ReserveAll: lambda op: (op.legs[0].account[0], op.key),
        **dict.fromkeys((Reserve, Charge, Cancel, Confirm, Extend), _own),
        **dict.fromkeys((Capture, Refund), _of_the_hold),
    },
    AmendmentRow: {
        Capture: lambda op: (op.account[0], "capture", op.key),
        Refund: lambda op: (op.account[0], "refund", op.key),
    },
    AllowanceRow: dict.fromkeys((Allow, Disallow), _own),
}

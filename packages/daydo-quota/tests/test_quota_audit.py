"""Whatever number of the books is damaged, the audit names it; and nothing that is sound, whoever writes meanwhile."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from itertools import permutations
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daydo_db import Database, DbError, Tx, UniqueViolation, migrate
from daydo_kernel.testing import ManualClock
from daydo_quota import Account, BooksDisagree, Disagreement, Hold, Ledger, LedgerConfig, QuotaError
from daydo_quota.audit import Auditor, Place
from daydo_quota.testing import check_books

QUIET = LedgerConfig(sweep_interval_s=0, audit_interval_s=0, roll_up_rows=4)
HOUR_US = 3_600_000_000
NEVER_US = 2**53 - 1

KEYS = {
    "account": ("id",),
    "grant": ("id",),
    "allowance": ("id",),
    "hold": ("id",),
    "amendment": ("id",),
    "entry": ("account_id", "seq"),
}
# Numbers that nothing else can prove, and that move no unit.
FREE = {
    ("account", "next_due_at_us"),  # may be early: it says when to look. That it is not late has a test of its own.
    ("account", "stamp"),  # another is as random
    ("grant", "notice_at_us"),  # when a notice is given
    ("hold", "expires_at_us"),  # while it is open it may be extended, and afterwards nobody asks
    ("allowance", "created_at_us"),  # where the start was given
}
# Texts that nothing else can prove; the README says so.
FREE_TEXTS = {
    ("allowance", "id"),
    ("allowance", "op_key"),
    ("allowance", "period"),
    ("allowance", "reason"),
    ("hold", "fingerprint"),
    ("hold", "parts"),  # of a hold that is over only the sums, which are numbers
    ("amendment", "fingerprint"),
    ("entry", "step"),  # where all it does is to be unique
    ("entry", "reason"),
}
MOVES = list(permutations(("remaining", "held", "spent", "expired"), 2))


class Damage(NamedTuple):
    """``changes`` to numbers of one row, which ``key`` finds; ``kind`` is what sort of row of its table it is."""

    table: str
    key: tuple[Any, ...]
    changes: dict[str, int]
    accounts: set[int]
    kind: str


async def live_a_little(ledger: Ledger, clock: ManualClock, account: Account) -> None:
    """Every kind of entry, every phase of a grant and of a hold."""
    name, now_us = account.subject, clock.now_us()
    await ledger.grant(account, 20, key=f"{name}_order")
    await ledger.grant(account, 5, key=f"{name}_promo", priority=1, expires_at_us=now_us + HOUR_US)
    await ledger.grant(account, 6, key=f"{name}_gift", effective_at_us=now_us + HOUR_US)
    await ledger.grant(account, 7, key=f"{name}_next", effective_at_us=now_us + 48 * HOUR_US)
    await ledger.reserve(account, 7, key=f"{name}_done")
    await ledger.capture(account, 2, key=f"{name}_page", hold_key=f"{name}_done")
    await ledger.confirm(account, 8, key=f"{name}_done", overage="available")
    await ledger.refund(account, 3, key=f"{name}_back", hold_key=f"{name}_done")
    await ledger.reserve(account, 1, key=f"{name}_late", ttl_s=1)
    await ledger.reserve(account, 2, key=f"{name}_lost", ttl_s=1)
    clock.advance(1)
    await ledger.confirm(account, key=f"{name}_late", late="available")
    await ledger.reserve(account, 3, key=f"{name}_no")
    await ledger.capture(account, 1, key=f"{name}_some", hold_key=f"{name}_no")
    await ledger.cancel(account, key=f"{name}_no")
    await ledger.cancel(account, key=f"{name}_never_made")
    clock.advance(3600)
    await ledger.allow(account, 4, key=f"{name}_daily", every="day", zone="UTC")
    await ledger.charge(account, 40, key=f"{name}_big", overage="debt")
    await ledger.grant(account, 5, key=f"{name}_part")
    await ledger.charge(account, 3, key=f"{name}_bigger", overage="debt")
    await ledger.refund(account, 1, key=f"{name}_forgiven", hold_key=f"{name}_bigger")
    if not name.endswith("_owes"):
        await ledger.grant(account, 30, key=f"{name}_pays")
        await ledger.reserve(account, 4, key=f"{name}_open", ttl_s=7200)
        await ledger.capture(account, 1, key=f"{name}_first", hold_key=f"{name}_open")


async def damages(db: Database) -> list[Damage]:
    """One for every number of every row; and units that moved within a grant, where CHECK lets no single number go."""
    found = []
    for table, key in KEYS.items():
        result = await db.query(f"SELECT * FROM daydo_quota_{table}")
        for row in result.rows:
            values = dict(zip(result.columns, row, strict=True))
            account = values["id"] if table == "account" else values["account_id"]
            place = tuple(values[name] for name in key)
            kind = str(values.get("kind", values.get("phase", "")))
            for name, value in values.items():
                if isinstance(value, int) and (table, name) not in FREE and not _unproven(table, name, values):
                    accounts = {account, account + 1, account - 1} if name in ("id", "account_id") else {account}
                    found += [Damage(table, place, {name: by}, accounts, kind) for by in (1, -1)]
            if table == "grant":
                found += [Damage(table, place, {left: -1, right: 1}, {account}, kind) for left, right in MOVES]
    return found


def _unproven(table: str, name: str, values: dict[str, Any]) -> bool:
    # Whose key is closed; no unit was ever in it.
    return table == "hold" and name in ("account_id", "id", "op_key") and values["phase"] == "tombstone"


def only_entries_proved(damage: Damage) -> bool:
    return (damage.table, *damage.changes) == ("hold", "account_id") or any(
        name.endswith("at_us") for name in damage.changes
    )


async def told_of(db: Database, damage: Damage, rows: int) -> Disagreement | str | None:
    """What an audit says while the damage lasts; a text where the database itself does not let it happen."""
    names = KEYS[damage.table]
    key = dict(zip(names, damage.key, strict=True))
    moved = {name: value + damage.changes[name] if name in damage.changes else value for name, value in key.items()}
    try:
        await change(db, damage.table, key, damage.changes)
    except DbError as refusal:
        return type(refusal).__name__
    try:
        return (await Auditor(db, None, accounts=2, rows=rows).run()).disagreement
    finally:
        await change(db, damage.table, moved, {name: -by for name, by in damage.changes.items()})


async def change(db: Database, table: str, key: dict[str, Any], changes: dict[str, int]) -> None:
    edits = ", ".join(f"{name} = {name} + {by}" for name, by in changes.items())
    where = " AND ".join(f"{name} = ?" for name in key)
    assert (await db.execute(f"UPDATE daydo_quota_{table} SET {edits} WHERE {where}", [*key.values()])).rowcount == 1


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.mark.parametrize("rolled_up", [False, True], ids=["all_entries", "rolled_up"])
def test_every_damaged_number_is_named(database_url: str, runner: asyncio.Runner, rolled_up: bool) -> None:
    """Any one number of any row, by one, and units moved within a grant: the account is named, or no database lets it.

    Where entries were rolled up, what only they proved is left out: times, and whose an uncharged hold is.
    """
    clock, db = ManualClock(), Database(database_url)
    accounts = [Account("acme", name, "credits") for name in ("u_7", "u_8_owes")]

    async def open_books() -> list[list[Damage]]:
        await db.__aenter__()
        await migrate(db, "daydo_quota")
        config = LedgerConfig(sweep_interval_s=0, audit_interval_s=0, entries_kept_s=1800 if rolled_up else 0)
        async with Ledger(db, config, clock=clock) as ledger:
            for account in accounts:
                await live_a_little(ledger, clock, account)
            removed = await ledger.upkeep.roll_up()
            assert (removed > 10) == rolled_up
        await check_books(db)
        found = await damages(db)
        kinds = dict[tuple[str, ...], list[Damage]]()
        for one in found:
            if not (rolled_up and only_entries_proved(one)):
                kinds.setdefault((one.table, one.kind, *one.changes), []).append(one)
        return list(kinds.values())

    refused = set[str]()

    try:
        every = runner.run(open_books())

        @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.sampled_from(every).flatmap(st.sampled_from), st.sampled_from([3, 1000]))
        def any_is_named(damage: Damage, rows: int) -> None:
            is_named(damage, rows)

        def is_named(damage: Damage, rows: int) -> None:
            told = runner.run(told_of(db, damage, rows))
            if isinstance(told, str):
                refused.add(told)
            else:
                assert told is not None
                assert told.account_id in damage.accounts

        any_is_named()
        # Where a statement costs least, one of each kind besides.
        for alike in every if database_url.startswith("sqlite") else ():
            is_named(alike[-1], 1000)
        assert refused <= {"StatementFailed", "UniqueViolation", "CheckViolation"}
        runner.run(check_books(db))
    finally:
        runner.run(db.__aexit__(None, None, None))


class Edit(NamedTuple):
    """Of the text ``name`` of ``row``, to ``text``."""

    table: str
    row: dict[str, Any]
    name: str
    text: str


async def text_edits(db: Database) -> list[Edit]:
    """Of each kind of row one for every text: by what stands in another row, and by what stands in none."""
    found = dict[tuple[str, str, str, int], Edit]()
    for table in KEYS:
        result = await db.query(f"SELECT * FROM daydo_quota_{table}")
        rows = [dict(zip(result.columns, row, strict=True)) for row in result.rows]
        for row in rows:
            kind = str(row.get("kind", row.get("phase", "")))
            for name, text in row.items():
                if isinstance(text, str) and (table, name) not in FREE_TEXTS and not _unproven(table, name, row):
                    others = sorted({other[name] for other in rows} - {text})
                    for number, new in enumerate((f"{text}x", *others[:1], *others[-1:])):
                        found[table, kind, name, number] = Edit(table, row, name, new)
    return list(found.values())


async def write_text(db: Database, edit: Edit) -> Edit:
    """Returns the way back."""
    key = {name: edit.row[name] for name in KEYS[edit.table]}
    where = " AND ".join(f"{name} = ?" for name in key)
    await db.execute(f"UPDATE daydo_quota_{edit.table} SET {edit.name} = ? WHERE {where}", [edit.text, *key.values()])
    return Edit(edit.table, {**edit.row, edit.name: edit.text}, edit.name, edit.row[edit.name])


@pytest.mark.dialect("sqlite")
async def test_every_damaged_text_is_named(db: Database) -> None:
    """Whose a row is, its key, its kind and its phase: else a repeat would be taken for a first time."""
    clock = ManualClock()
    async with Ledger(db, QUIET, clock=clock) as ledger:
        for name in ("u_7", "u_8_owes"):
            await live_a_little(ledger, clock, Account("acme", name, "credits"))
        edits, refused = await text_edits(db), 0
        for edit in edits:
            try:
                back = await write_text(db, edit)
            except UniqueViolation:
                refused += 1
                continue
            assert (await ledger.audit()).disagreement is not None, edit
            await write_text(db, back)
        assert len(edits) - refused > 150
    await check_books(db)


async def test_the_audit_of_a_tenant_names_a_row_that_was_given_to_another(db: Database) -> None:
    """To whom a row belongs is what its account says, not the row alone."""
    async with Ledger(db, QUIET, clock=ManualClock()) as ledger:
        account = Account("acme", "u_7", "credits")
        await ledger.grant(account, 9, key="order")
        await ledger.reserve(account, 5, key="task")
        await ledger.capture(account, 2, key="page", hold_key="task")
        await ledger.allow(account, 1, key="daily", every="day")
        for table in ("grant", "hold", "amendment", "allowance"):
            await db.execute(f"UPDATE daydo_quota_{table} SET tenant = 'other'")
            for tenant in ("acme", "other"):
                assert (await ledger.audit(tenant)).disagreement is not None, (table, tenant)
            await db.execute(f"UPDATE daydo_quota_{table} SET tenant = 'acme'")
        assert (await ledger.audit("acme")).disagreement is None


async def test_no_account_looks_too_late(db: Database) -> None:
    """A later time to look would let what is due wait: a hold's time-out, a grant's beginning and end, a renewal."""
    clock = ManualClock()
    async with Ledger(db, QUIET, clock=clock) as ledger:
        await live_a_little(ledger, clock, Account("acme", "u_7", "credits"))
        for column in ("next_due_at_us", "renews_at_us"):
            [(before,)] = (await db.query(f"SELECT {column} FROM daydo_quota_account")).rows
            assert before < NEVER_US
            await db.execute(f"UPDATE daydo_quota_account SET {column} = {NEVER_US}")
            told = (await ledger.audit()).disagreement
            assert told is not None
            assert told.complaint == "an account would look too late"
            await db.execute(f"UPDATE daydo_quota_account SET {column} = ?", [before])
        assert (await ledger.audit()).disagreement is None


@pytest.mark.parametrize(
    "edit", ["DELETE FROM daydo_quota_{} WHERE id = ?", "UPDATE daydo_quota_{} SET account_id = 999 WHERE id = ?"]
)
@pytest.mark.parametrize("table", ["grant", "hold", "amendment"])
async def test_a_row_that_is_lost_is_missed(db: Database, table: str, edit: str) -> None:
    """Also when it was closed long ago and its entries were rolled up."""
    clock = ManualClock()
    account = Account("acme", "u_7", "credits")
    async with Ledger(db, LedgerConfig(sweep_interval_s=0, entries_kept_s=60), clock=clock) as ledger:
        await ledger.grant(account, 9, key="first")
        await ledger.reserve(account, 5, key="task")
        await ledger.capture(account, 2, key="page", hold_key="task")
        await ledger.confirm(account, key="task")
        clock.advance(3600)
        assert await ledger.upkeep.roll_up() == 3
        await check_books(db)
        [(row_id,)] = (await db.query(f"SELECT id FROM daydo_quota_{table}")).rows
        await db.execute(edit.format(table), [row_id])
        assert (await ledger.audit()).disagreement is not None


SOUND, BROKEN = Account("acme", "u_8", "credits"), Account("acme", "u_7", "credits")


async def damage(ledger: Ledger, db: Database) -> int:
    """Of two accounts that are alike one loses a grant: a hold of its units is open, and a charge was paid by it."""
    for account in (SOUND, BROKEN):
        name = account.subject
        await ledger.grant(account, 5, key=f"first_{name}", priority=1)
        await ledger.grant(account, 50, key=f"second_{name}", priority=2)
        await ledger.charge(account, 1, key=f"whole_{name}")
        await ledger.charge(account, 6, key=f"charged_{name}")
        await ledger.reserve(account, 4, key=f"open_{name}", ttl_s=600)
    await db.execute("DELETE FROM daydo_quota_grant WHERE op_key = 'second_u_7'")
    [(account_id,)] = (await db.query("SELECT id FROM daydo_quota_account WHERE subject = 'u_7'")).rows
    return int(account_id)


Settle = Callable[[Ledger, Tx | None], Awaitable[Hold]]


@pytest.mark.parametrize("enlisted", [False, True], ids=["batched", "enlisted"])
@pytest.mark.parametrize(
    "settle",
    [
        lambda ledger, tx: ledger.confirm(BROKEN, key="open_u_7", tx=tx),
        lambda ledger, tx: ledger.confirm(BROKEN, 5, key="open_u_7", overage="debt", tx=tx),
        lambda ledger, tx: ledger.capture(BROKEN, 1, key="page", hold_key="open_u_7", tx=tx),
        lambda ledger, tx: ledger.cancel(BROKEN, key="open_u_7", tx=tx),
        lambda ledger, tx: ledger.refund(BROKEN, 6, key="back", hold_key="charged_u_7", tx=tx),
    ],
    ids=["confirm", "overage", "capture", "cancel", "refund"],
)
async def test_a_grant_that_is_lost_refuses_what_needs_it(db: Database, settle: Settle, enlisted: bool) -> None:
    """The error names the account, nothing is written, and others that were asked at once have their answer."""
    async with Ledger(db, QUIET) as ledger:
        account_id = await damage(ledger, db)
        before = await rows_of(db, account_id)
        if enlisted:
            async with db.transaction() as tx:
                with pytest.raises(BooksDisagree) as refused:
                    await settle(ledger, tx)
            refusal: object = refused.value
        else:
            refusal, hold = await asyncio.gather(
                settle(ledger, None), ledger.confirm(SOUND, key="open_u_8"), return_exceptions=True
            )
            assert isinstance(hold, Hold)
        assert isinstance(refusal, BooksDisagree)
        assert refusal.account_id == account_id
        assert await rows_of(db, account_id) == before


async def rows_of(db: Database, account_id: int) -> list[tuple[Any, ...]]:
    found = list((await db.query("SELECT * FROM daydo_quota_account WHERE id = ?", [account_id])).rows)
    for table in ("grant", "hold", "amendment", "entry"):
        sql = f"SELECT * FROM daydo_quota_{table} WHERE account_id = ?"
        found += (await db.query(sql, [account_id])).rows
    return found


async def test_what_does_not_need_the_lost_grant_goes_on(db: Database) -> None:
    """A longer time for the hold, and the refund of a charge that another grant has paid."""
    async with Ledger(db, QUIET) as ledger:
        await damage(ledger, db)
        assert (await ledger.extend(BROKEN, key="open_u_7", ttl_s=700)).created
        assert (await ledger.refund(BROKEN, 1, key="back", hold_key="whole_u_7")).refunded == 1


async def test_an_entry_that_is_lost_is_missed(db: Database) -> None:
    """The first, one in the middle, the last, and the one that others were rolled up into."""
    clock = ManualClock()
    async with Ledger(db, LedgerConfig(sweep_interval_s=0, entries_kept_s=1800), clock=clock) as ledger:
        await live_a_little(ledger, clock, Account("acme", "u_7", "credits"))
        for rolled_up in (False, True):
            seqs = [row[0] for row in (await db.query("SELECT seq FROM daydo_quota_entry ORDER BY seq")).rows]
            for seq in (seqs[0], seqs[len(seqs) // 2], seqs[-1]):
                await db.execute("UPDATE daydo_quota_entry SET account_id = 999 WHERE seq = ?", [seq])
                assert (await ledger.audit()).disagreement is not None, (rolled_up, seq)
                await db.execute("UPDATE daydo_quota_entry SET account_id = 1 WHERE seq = ?", [seq])
            await ledger.upkeep.roll_up()
        assert (await ledger.audit()).disagreement is None


async def test_a_row_without_entries_is_named(db: Database) -> None:
    """A hold that was put there by hand, timed out and harmless to every sum, never was one."""
    clock = ManualClock()
    async with Ledger(db, QUIET, clock=clock) as ledger:
        await live_a_little(ledger, clock, Account("acme", "u_7", "credits"))
        names = (await db.query("SELECT * FROM daydo_quota_hold")).columns
        values = [f"'forged_{name}'" if name in ("id", "op_key") else name for name in names]
        copy = f"SELECT {', '.join(values)} FROM daydo_quota_hold WHERE op_key = 'u_7_lost'"
        await db.execute(f"INSERT INTO daydo_quota_hold ({', '.join(names)}) {copy}")
        told = (await ledger.audit()).disagreement
        assert told is not None
        assert told.row == "forged_id"


async def test_no_entry_can_pose_as_a_roll_up(db: Database) -> None:
    """One with entries before it has taken nobody's place."""
    clock = ManualClock()
    async with Ledger(db, QUIET, clock=clock) as ledger:
        await live_a_little(ledger, clock, Account("acme", "u_7", "credits"))
        posing = "UPDATE daydo_quota_entry SET kind = 'rolled_up', amount = 0 WHERE kind IN ('activated', 'repaid')"
        assert (await db.execute(posing)).rowcount > 1
        told = (await ledger.audit()).disagreement
        assert told is not None
        assert told.complaint == "an entry's balances do not follow from the one before"


async def test_an_audit_beside_writers_complains_of_nothing(db: Database) -> None:
    """Between any two of its steps the accounts are written to, also the rows that have gone by, and rolled up."""
    clock, chance = ManualClock(), random.Random(4)
    accounts = [Account("acme", f"u_{number}", "credits") for number in range(3)]
    async with Ledger(db, LedgerConfig(sweep_interval_s=0, entries_kept_s=600, roll_up_rows=4), clock=clock) as ledger:
        for account in accounts:
            await live_a_little(ledger, clock, account)
        auditor = Auditor(db, None, accounts=2, rows=3)
        place: Place | None = Place()
        number, stages = 0, set[str]()
        while place is not None and number < 400:
            number += 1
            stages.add(place.stage)
            step = await auditor.step(place)
            assert step.found is None, (step.found, place)
            place = step.place
            if number < 120 or number % 4 == 0:
                await write_something(ledger, clock, chance.choice(accounts), number, chance)
        assert place is None, "it comes to its end, for it reads faster than others write"
        assert stages == {"accounts", "grants", "allowances", "holds", "amendments", "entries", "charges"}
    await check_books(db)


async def write_something(
    ledger: Ledger, clock: ManualClock, account: Account, number: int, chance: random.Random
) -> None:
    name = account.subject
    clock.advance(chance.choice((0, 0, 1, 30)))
    try:
        match number % 6:
            case 0:
                await ledger.grant(account, 5, key=f"more_{number}", expires_at_us=clock.now_us() + 40_000_000)
            case 1:
                await ledger.refund(account, 1, key=f"refund_{number}", hold_key=f"{name}_done")
            case 2:
                await ledger.reserve(account, 2, key=f"task_{number}", ttl_s=20)
            case 3:
                await ledger.confirm(account, 1, key=f"task_{number - 1}")
            case 4:
                await ledger.charge(account, 2, key=f"charge_{number}", overage="debt")
            case _:
                await ledger.upkeep.roll_up()
    except QuotaError:
        pass  # others come through


async def test_a_hot_accounts_charges_are_added_up_in_slices(db: Database) -> None:
    """More holds than a statement may read: the sum is that of one moment though others charge and refund meanwhile."""
    account = Account("acme", "hot", "credits")
    async with Ledger(db, QUIET, clock=ManualClock()) as ledger:
        await ledger.grant(account, 1000, key="order")
        for number in range(30):
            await ledger.charge(account, 3, key=f"charge_{number}")
        auditor = Auditor(db, None, accounts=10, rows=7)
        place, slices = Place("charges"), 0
        while True:
            step = await auditor.step(place)
            assert step.found is None
            if step.place is None:
                break
            place, slices = step.place, slices + 1
            await ledger.refund(account, 1, key=f"back_{slices}", hold_key=f"charge_{slices}")
            if slices < 9:
                await ledger.charge(account, 2, key=f"later_{slices}")
        assert slices >= 5
        await db.execute("UPDATE daydo_quota_hold SET captured = captured + 1 WHERE op_key = 'charge_7'")
        place = Place("charges")
        while (step := await auditor.step(place)).found is None and step.place is not None:
            place = step.place
        assert step.found is not None
        assert step.found.complaint == "what is spent is not what the holds were charged"


async def test_an_account_that_is_rolled_up_between_two_slices_begins_anew(db: Database) -> None:
    """What its entries said about the slices that had gone by is lost; a sum without it would be a false alarm."""
    account, clock = Account("acme", "hot", "credits"), ManualClock()
    async with Ledger(db, LedgerConfig(sweep_interval_s=0, entries_kept_s=60), clock=clock) as ledger:
        await ledger.grant(account, 1000, key="order")
        for number in range(20):
            await ledger.charge(account, 3, key=f"charge_{number}")
        auditor = Auditor(db, None, accounts=10, rows=7)
        place = (await auditor.step(Place("charges"))).place
        assert place is not None
        assert place.row_id
        await ledger.refund(account, 1, key="back", hold_key="charge_0")
        await ledger.charge(account, 1, key="later")
        clock.advance(3600)
        assert await ledger.upkeep.roll_up() == 22
        step = await auditor.step(place)
        assert (step.place, step.found) == (Place("charges", place.account_id - 1), None)
        while step.place is not None:
            step = await auditor.step(step.place)
            assert step.found is None

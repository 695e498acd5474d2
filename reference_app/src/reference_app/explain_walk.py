"""Every public call of the libraries and repositories that sends SQL, made once on generated data.

A test compares what was sent with the places in the sources that send: a query that is not walked fails it.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from daydo_db import Database
from daydo_db.piccolo import bind
from daydo_kernel import Draining, Page, new_id
from daydo_pipeline import Owner, ProviderCall, Run, Runs, RunsConfig
from daydo_quota import Account, Entry, InsufficientQuota, Ledger, LedgerConfig
from daydo_quota.rows import NEVER_US
from daydo_quota.saga import Action, barrier, forget

from .accounts.config import CREDITS, TENANT
from .accounts.tables import TABLES
from .explain_accounts import walk_accounts
from .explain_data import People
from .explain_steps import PAGE, WAIT_S, leaf, sent
from .images.config import ImagesConfig
from .images.features import PROVIDER, features_of, flow_of
from .images.repository import Uploads
from .images.tables import Upload


async def walk(db: Database, people: People) -> None:
    """All of it; ``db`` holds what :mod:`reference_app.explain_data` makes and is given up afterwards."""
    bind([*TABLES, Upload], db)
    ledger = Ledger(db, LedgerConfig(sweep_interval_s=0, audit_interval_s=0))
    async with ledger:
        await walk_accounts(db, ledger, people)
        await _walk_quota(db, ledger, people)
        await _walk_time(db, ledger)
        await _walk_sagas(db)
        await _walk_uploads(db, people)
        await _walk_runs(db, ledger, people)
    await _walk_roll_up(db, people)


async def _walk_quota(db: Database, ledger: Ledger, people: People) -> None:
    await ledger.balance(Account(TENANT, people.due, CREDITS))
    while await ledger.sweep():
        pass
    await ledger.health()
    for subject in (people.whale, people.others[-1]):
        account = Account(TENANT, subject, CREDITS)
        await ledger.grant(account, 50, key=new_id("walk"))
        async with ledger.hold(account, 5, key=new_id("walk")) as hold:
            hold.charge = 3
        with suppress(InsufficientQuota):
            await ledger.reserve(account, 10**9, key=new_id("walk"))
        bought = new_id("walk")
        async with ledger.hold_all([(account, 4)], key=bought) as (work,):
            await work.capture(1, key=new_id("walk"))
            await work.extend(600)
        await ledger.refund(account, 2, key=new_id("walk"), hold_key=bought)
        await ledger.charge(account, 1, key=new_id("walk"))
        async with db.transaction() as tx:
            grant, first, second = new_id("walk"), new_id("walk"), new_id("walk")
            for _ in range(2):  # The second time the key is known.
                await ledger.grant(account, 5, key=grant, tx=tx)
            await ledger.reserve(account, 2, key=first, tx=tx)
            await ledger.confirm(account, key=first, tx=tx)
            await ledger.reserve(account, 2, key=second, tx=tx)
            await ledger.cancel(account, key=second, tx=tx)
            await ledger.balance(account, tx=tx)
        await ledger.balance(account)
        await ledger.accounts(TENANT, subject)
        await leaf(partial(_history, ledger, subject))
        await ledger.history(TENANT, subject, unit=CREDITS)
    await ledger.grant(Account(TENANT, new_id("user"), CREDITS), 1, key=new_id("walk"))
    async with db.transaction() as tx:
        await ledger.grant(Account(TENANT, new_id("user"), CREDITS), 1, key=new_id("walk"), tx=tx)


async def _walk_time(db: Database, ledger: Ledger) -> None:
    """An account with a debt and an allowance, whose time has come."""
    account = Account(TENANT, new_id("user"), CREDITS)
    await ledger.allow(account, 5, key=new_id("walk"), every="month")
    await ledger.charge(account, 8, key=new_id("walk"), overage="debt")
    ended = new_id("walk")
    await ledger.allow(account, 5, key=ended, every="day", starts_at_us=NEVER_US - 1)
    await ledger.disallow(account, key=ended)
    come = "UPDATE daydo_quota_account SET next_due_at_us = 1, renews_at_us = 1 WHERE tenant = ? AND subject = ?"
    await db.execute(come, [TENANT, account.subject])
    await ledger.balance(account)
    await ledger.grant(account, 9, key=new_id("walk"))


async def _walk_roll_up(db: Database, people: People) -> None:
    config = LedgerConfig(sweep_interval_s=0, audit_interval_s=0, entries_kept_s=86_400, roll_up_accounts=10)
    async with Ledger(db, config) as ledger:
        page = await ledger.history(TENANT, people.whale, limit=PAGE)
        await ledger.upkeep.roll_up_all()
        await ledger.history(TENANT, people.whale, cursor=page.next_cursor)  # what followed it is gone


async def _walk_sagas(db: Database) -> None:
    saga = new_id("walk")
    actions: tuple[Action, ...] = ("do", "do", "undo")
    for action in actions:
        await db.run(partial(barrier, saga=saga, step="ship", action=action))
    while await forget(db, older_than_s=86_400):
        pass


async def _history(ledger: Ledger, subject: str, cursor: str | None) -> Page[Entry]:
    return await ledger.history(TENANT, subject, cursor=cursor, limit=PAGE)


async def _walk_uploads(db: Database, people: People) -> None:
    uploads = Uploads(db)
    upload = Upload(
        id=new_id("upload"),
        tenant=TENANT,
        subject=people.whale,
        media_type="image/png",
        width=1,
        height=1,
        size_bytes=1,
        created_at_us=1,
    )
    await uploads.add(upload)
    await uploads.find(TENANT, people.whale, [upload.id, new_id("upload")])
    await uploads.owned(TENANT, people.whale, PAGE)
    await uploads.remove(TENANT, people.whale, [upload.id])


class _StandIn:
    """The image workers' place: succeeds, fails once, or goes on for ever, as the input asks."""

    async def run(self, call: ProviderCall) -> dict[str, Any]:
        call.report(0.5)
        if call.inputs["photo"] == "endless":
            await asyncio.Event().wait()
        if call.inputs["photo"] == "flaky" and call.attempt == 1:
            raise Draining()  # any error that says it is worth another attempt
        return {"file": ""}


async def _walk_runs(db: Database, ledger: Ledger, people: People) -> None:
    flows = [flow_of(feature, 60.0) for feature in features_of(ImagesConfig()).values()]
    # Fast heartbeats, so that each loop has turned before the walk is over.
    config = RunsConfig(lease_s=0.6, poll_s=0.05, progress_s=0.01, backoff_s=0.01)
    whale = Owner(TENANT, people.whale)
    async with Runs(db, config, flows=flows, providers={PROVIDER: _StandIn()}, quota=ledger) as runs:
        cursor = await runs.cursor(whale)
        started = await runs.start("cutout", {"photo": ""}, owner=whale, key="plain")
        await runs.start("cutout", {"photo": ""}, owner=whale, key="plain")
        flaky = await runs.start("cutout", {"photo": "flaky"}, owner=whale, key="flaky")
        endless = await runs.start("cutout", {"photo": "endless"}, owner=whale, key="endless")
        with suppress(InsufficientQuota):
            await runs.start("cutout", {"photo": ""}, owner=Owner(TENANT, new_id("user")), key="poor")
        await _follow(runs, whale, cursor, {started.id, flaky.id}, endless)
        await sent(db, "FROM daydo_pipeline_step WHERE worker_id = ?")  # The heartbeat's last statement.
        async with aclosing(runs.events(whale)) as live:
            waits = asyncio.ensure_future(anext(live))
            await sent(db, "SELECT tenant, subject, seq FROM daydo_pipeline_owner")  # Has another process told more?
            waits.cancel()
            await asyncio.wait([waits])
        await runs.get(whale, started.id)
        await runs.cancel(whale, endless.id)
        await leaf(lambda cursor: runs.list(whale, cursor=cursor, limit=PAGE))
        await _follow(runs, whale, "0", {endless.id}, None)


async def _follow(runs: Runs, owner: Owner, cursor: str, ends: set[str], runs_on: Run | None) -> None:
    """Read events until the runs ``ends`` are over and ``runs_on`` has told of its progress."""
    waiting = ends | ({runs_on.id} if runs_on else set())
    async with asyncio.timeout(WAIT_S), aclosing(runs.events(owner, cursor)) as events:
        async for event in events:
            told = event.name == "step.progress" if runs_on and event.run_id == runs_on.id else event.name in _OVER
            if told:
                waiting.discard(event.run_id)
            if not waiting:
                return


_OVER = ("run.succeeded", "run.failed", "run.cancelled")

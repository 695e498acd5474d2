# ruff: noqa: PT012 - the block that raises is the test
"""Inside an SQLAlchemy session: MySQL's default isolation level, an old snapshot, none of our session settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from daydo_db import Database, TransactionAborted, Tx
from daydo_db.sqlalchemy import enlist
from daydo_kernel.testing import ManualClock
from daydo_quota import Account, Balance, HoldUnknown, InsufficientQuota, Ledger, LedgerConfig
from daydo_quota.testing import InTransaction, LedgerConformance, check_books


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    url = database_url.replace("sqlite:", "sqlite+aiosqlite:").replace("mysql:", "mysql+aiomysql:")
    options = {"isolation_level": "REPEATABLE READ"} if "mysql" in url else {}
    engine = create_async_engine(url, pool_size=50, **options)
    yield engine
    await engine.dispose()


@pytest.fixture
async def own(db: Database, clock: ManualClock) -> AsyncIterator[Ledger]:
    async with Ledger(db, clock=clock) as ledger:
        yield ledger
    await check_books(db)


class TestInASession(LedgerConformance):
    """Every call in a session that has read the ledger's tables before, so that its snapshot is old."""

    @pytest.fixture
    def ledger(self, own: Ledger, engine: AsyncEngine) -> InTransaction:
        sessions = async_sessionmaker(engine)

        @asynccontextmanager
        async def enlisted() -> AsyncIterator[Tx]:
            async with sessions.begin() as session:
                tx = await enlist(session)
                await session.execute(text("SELECT COUNT(*) FROM daydo_quota_account"))
                yield tx

        return InTransaction(own, enlisted)


@pytest.mark.dialect("mysql")
async def test_an_old_snapshot_does_not_oversell(own: Ledger, engine: AsyncEngine) -> None:
    """A caller at REPEATABLE READ that still sees ten credits is refused what another one has taken since."""
    account = Account("acme", "u_7", "credits")
    await own.grant(account, 10, key="order")
    async with async_sessionmaker(engine).begin() as session:
        tx = await enlist(session)
        seen = text("SELECT available FROM daydo_quota_account")
        assert await session.scalar(seen) == 10
        await own.reserve(account, 10, key="first")
        assert await session.scalar(seen) == 10, "the snapshot is meant to be old"
        with pytest.raises(InsufficientQuota):
            await own.reserve(account, 1, key="second", tx=tx)
        await own.cancel(account, key="first", tx=tx)
        assert (await own.reserve(account, 10, key="third", tx=tx)).created
        assert await session.scalar(seen) == 0
    assert await own.balance(account) == Balance(reserved=10)


@pytest.mark.dialect("mysql")
@pytest.mark.parametrize("ask", ["a balance", "a hold", "another's hold"])
async def test_looking_for_what_is_not_there_is_in_nobodys_way(
    db: Database, own: Ledger, engine: AsyncEngine, ask: str
) -> None:
    """A locking read of it would lock the gap, and newcomers would wait until the session ends."""
    known, nobody = Account("acme", "b_known", "credits"), Account("acme", "m_nobody", "credits")
    await own.grant(known, 1, key="f_known")
    async with async_sessionmaker(engine).begin() as session:
        tx = await enlist(session)
        if ask == "a balance":
            assert await own.balance(nobody, tx=tx) == Balance()
        elif ask == "a hold":
            with pytest.raises(InsufficientQuota):
                await own.reserve(known, 2, key="m_task", tx=tx)
        else:
            with pytest.raises(HoldUnknown):
                await own.confirm(nobody, key="m_task", tx=tx)
        async with Ledger(db, LedgerConfig(busy_timeout_s=0.5)) as others:
            for name in ("a", "n", "z"):
                newcomer = Account("acme", f"{name}_new", "credits")
                await others.grant(newcomer, 1, key=f"{name}_order")
                await others.reserve(newcomer, 1, key=f"{name}_task")


@pytest.mark.dialect("mysql")
async def test_a_session_that_cannot_write_an_entry_keeps_no_key_of_it(own: Ledger, engine: AsyncEngine) -> None:
    """Its connection's character set has not the letters of the reason; whoever bears that and commits is stopped."""
    account = Account("acme", "u_7", "credits")
    narrow = create_async_engine(engine.url.update_query_dict({"charset": "latin1"}))
    with pytest.raises(TransactionAborted):
        async with async_sessionmaker(narrow).begin() as session:
            tx = await enlist(session)
            with suppress(Exception):
                await own.grant(account, 20, key="order", tx=tx, reason="生日快乐")
    await narrow.dispose()
    assert (await own.grant(account, 20, key="order")).created


class TickingClock(ManualClock):
    """Each look is a microsecond later."""

    def now_us(self) -> int:
        self.advance(1e-6)
        return super().now_us()


@pytest.mark.dialect("mysql")
async def test_a_repeat_that_renews_an_allowance_is_a_repeat(db: Database, engine: AsyncEngine) -> None:
    """The snapshot does not show the original. Its key says so, before the new period's units are granted."""
    account, clock = Account("acme", "u_7", "credits"), TickingClock()
    async with Ledger(db, clock=clock) as ledger:
        await ledger.allow(account, 10, key="daily", every="day")
        async with async_sessionmaker(engine).begin() as session:
            tx = await enlist(session)
            await session.execute(text("SELECT COUNT(*) FROM daydo_quota_account"))
            await ledger.reserve(account, 1, key="task", ttl_s=200_000)
            clock.advance(86_400)
            assert not (await ledger.reserve(account, 1, key="task", ttl_s=200_000, tx=tx)).created
        assert await ledger.balance(account) == Balance(available=10, reserved=1, expired=9)
    await check_books(db)


@pytest.mark.dialect("mysql")
async def test_a_repeat_that_renews_an_allowance_pays_what_is_owed_once(
    db: Database, own: Ledger, engine: AsyncEngine, clock: ManualClock
) -> None:
    """The key shows the repeat before the new period's units are there: granted again beside themselves, they would pay
    the debt from one of the two and be charged for it in the other."""
    account = Account("acme", "u_7", "credits")
    await own.allow(account, 10, key="daily", every="day")
    async with async_sessionmaker(engine).begin() as session:
        tx = await enlist(session)
        await session.execute(text("SELECT COUNT(*) FROM daydo_quota_account"))
        await own.charge(account, 3, key="task")
        assert (await own.charge(account, 11, key="next", overage="debt")).owed == 4
        clock.advance(86_400)
        assert not (await own.charge(account, 3, key="task", tx=tx)).created
    assert await own.balance(account) == Balance(available=6, spent=14)
    await check_books(db)


@pytest.mark.dialect("mysql")
async def test_an_old_snapshot_sees_what_is_overdue(own: Ledger, engine: AsyncEngine, clock: ManualClock) -> None:
    """Holds made after a caller's snapshot time out for it too, and none of those still open is forgotten."""
    account = Account("acme", "u_7", "credits")
    await own.grant(account, 10, key="order")
    async with async_sessionmaker(engine).begin() as session:
        tx = await enlist(session)
        await session.execute(text("SELECT COUNT(*) FROM daydo_quota_hold"))
        await own.reserve(account, 6, key="stranded", ttl_s=10)
        await own.reserve(account, 4, key="stranded_longer", ttl_s=20)
        clock.advance(10)
        assert (await own.reserve(account, 6, key="next", ttl_s=60, tx=tx)).created
    clock.advance(10)
    assert await own.balance(account) == Balance(available=4, reserved=6)


@pytest.mark.dialect("mysql")
async def test_an_old_snapshot_answers_repeats(own: Ledger, engine: AsyncEngine) -> None:
    """What was done since the snapshot is the answer to its repeat, not a refusal for want of what it took."""
    account = Account("acme", "u_7", "credits")
    await own.grant(account, 4, key="order")
    async with async_sessionmaker(engine).begin() as session:
        tx = await enlist(session)
        await session.execute(text("SELECT COUNT(*) FROM daydo_quota_hold"))
        await own.reserve(account, 4, key="task")
        await own.capture(account, 4, key="page", hold_key="task")
        assert not (await own.reserve(account, 4, key="task", tx=tx)).created
        assert (await own.capture(account, 4, key="page", hold_key="task", tx=tx)).captured == 4
        await own.cancel(account, key="task", tx=tx)
    assert await own.balance(account) == Balance(spent=4)


@pytest.mark.dialect("mysql")
async def test_an_old_snapshot_grants_no_period_twice(own: Ledger, engine: AsyncEngine, clock: ManualClock) -> None:
    """A caller whose snapshot is older than the day's grant, or than the allowance, finds both there."""
    account = Account("acme", "u_7", "credits")
    await own.allow(account, 5, key="free", every="day")
    clock.advance(86_400)
    async with async_sessionmaker(engine).begin() as session:
        tx = await enlist(session)
        await session.execute(text("SELECT COUNT(*) FROM daydo_quota_grant"))
        await own.charge(account, 2, key="first")
        await own.allow(account, 1, key="more", every="day")
        with pytest.raises(InsufficientQuota):
            await own.charge(account, 5, key="too_much", tx=tx)
        assert not (await own.allow(account, 1, key="more", every="day", tx=tx)).created
        assert (await own.disallow(account, key="more", tx=tx)).created
        assert (await own.charge(account, 4, key="second", tx=tx)).created
    assert await own.balance(account) == Balance(spent=6, expired=5)
    clock.advance(86_400)
    assert await own.balance(account) == Balance(available=5, spent=6, expired=5)


@pytest.mark.dialect("mysql")
async def test_an_old_snapshot_pays_what_is_owed(own: Ledger, engine: AsyncEngine) -> None:
    """Debts made after a caller's snapshot are paid by what it grants, and by what it refunds."""
    account = Account("acme", "u_7", "credits")
    await own.charge(account, 2, key="first", overage="debt")
    async with async_sessionmaker(engine).begin() as session:
        tx = await enlist(session)
        await session.execute(text("SELECT COUNT(*) FROM daydo_quota_hold"))
        await own.charge(account, 3, key="second", overage="debt")
        assert (await own.grant(account, 4, key="order", tx=tx)).remaining == 0
        assert (await own.charge(account, 3, key="second", overage="debt", tx=tx)).owed == 1
        await own.refund(account, 2, key="back", hold_key="first", tx=tx)
    assert await own.balance(account) == Balance(available=1, spent=3)


async def test_a_rollback_takes_everything_with_it(own: Ledger, engine: AsyncEngine) -> None:
    """Rows, history and counters of a call in a transaction that is rolled back never were."""
    account = Account("acme", "u_7", "credits")
    session = async_sessionmaker(engine)()
    await own.grant(account, 50, key="order", tx=await enlist(session))
    await session.rollback()
    await session.close()
    assert await own.balance(account) == Balance()
    assert not (await own.history("acme", "u_7")).items
    [grants] = [family for family in own.metrics.snapshot() if family.name == "daydo_quota_grants_total"]
    assert all(cell.values == [0.0] for cell in grants.cells)

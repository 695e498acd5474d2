"""Invite codes on every back end: a pool that several workers fill, and codes that exactly one newcomer can use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_db import Database
from daydo_db.migrate import migrate
from daydo_db.piccolo import bind
from daydo_kernel import NoEvents, new_id
from daydo_kernel.testing import ManualClock
from daydo_quota import Account, Ledger, LedgerConfig
from reference_app.accounts.config import CREDITS, TENANT, InvitesConfig
from reference_app.accounts.errors import (
    AlreadyInvited,
    InviteInvalid,
    InviteOwn,
    InvitesExhausted,
    InviteTooLate,
)
from reference_app.accounts.invites import ALPHABET, CODE_CHARS, Invites, new_code, read_code
from reference_app.accounts.repository import Profiles
from reference_app.accounts.tables import TABLES, Profile

DAY_US = 86_400_000_000
CONFIG = InvitesConfig(pool_size=30, refill_s=3_600, open_max=3, inviter_credits=7, invited_credits=5)
# Refilled by hand: the pool of most tests stays empty.
NO_POOL = InvitesConfig(pool_size=1, refill_s=3_600, open_max=100, claim_within_s=7 * 86_400)


class Club(NamedTuple):
    db: Database
    ledger: Ledger
    profiles: Profiles
    clock: ManualClock

    def invites(self, config: InvitesConfig = CONFIG) -> Invites:
        return Invites(self.db, self.ledger, self.profiles, config, clock=self.clock, events=NoEvents())

    async def member(self) -> str:
        """A new user, a moment younger than the one before."""
        self.clock.advance(1.0)
        profile = Profile(id=new_id("user"), tenant=TENANT, created_at_us=self.clock.now_us())
        await self.db.run(lambda tx: self.profiles.add(profile, tx=tx))
        return profile.id

    async def credits(self, user_id: str) -> int:
        return (await self.ledger.balance(Account(TENANT, user_id, CREDITS))).available

    async def count(self, condition: str) -> int:
        return int((await self.db.query(f"SELECT COUNT(*) FROM app_invite WHERE {condition}")).rows[0][0])

    async def free(self) -> int:
        return await self.count("owner IS NULL")


@pytest.fixture
async def club(database_url: str) -> AsyncIterator[Club]:
    """Tables and ledger, and a clock that only tests move."""
    async with Database(database_url) as db:
        await migrate(db, "daydo_quota", "reference_app")
        bind(TABLES, db)
        async with Ledger(db, LedgerConfig(sweep_interval_s=0, audit_interval_s=0)) as ledger:
            yield Club(db, ledger, Profiles(db), ManualClock())


@given(st.integers(0, 3), st.sampled_from(["", "-", " "]), st.booleans())
def test_a_code_reads_the_same_however_it_is_typed(at: int, separator: str, lower: bool) -> None:
    """Small letters, a hyphen or a space in the middle; its alphabet has nothing that looks like something else."""
    code = new_code()
    typed = code[: at * 2] + separator + code[at * 2 :]
    assert read_code(typed.lower() if lower else typed) == code
    assert set(code).isdisjoint("0O1IL")


@given(st.text(max_size=20))
def test_what_is_no_code_is_none(text: str) -> None:
    """Whatever is read is a code; the rest is None, and no error."""
    read = read_code(text)
    assert read is None or (len(read) == CODE_CHARS and set(read) <= set(ALPHABET))


async def test_several_workers_fill_the_pool_to_its_size_and_not_beyond(club: Club) -> None:
    """Eight at once, twice; and after some were taken only these are made anew."""
    workers = [club.invites() for _ in range(8)]
    made = await asyncio.gather(*(worker.refill() for worker in workers))
    while await workers[0].refill():
        pass
    assert await club.free() == CONFIG.pool_size
    assert sum(made) <= CONFIG.pool_size
    owner = await club.member()
    async with workers[0] as invites:
        for key in ("a", "b"):
            await invites.take(TENANT, owner, key)
    await asyncio.gather(*(worker.refill() for worker in workers))
    while await workers[0].refill():
        pass
    assert (await club.free(), await club.count("owner IS NOT NULL")) == (CONFIG.pool_size, 2)


async def test_many_who_take_at_once_get_codes_of_their_own(club: Club) -> None:
    """From a pool that is too small for all of them: the rest is made on the spot."""
    members = [await club.member() for _ in range(12)]
    async with club.invites(InvitesConfig(pool_size=5, refill_s=3_600)) as invites:
        taken = await asyncio.gather(*(invites.take(TENANT, each, "k") for each in members))
    assert len({each.invite.code for each in taken}) == 12
    assert await club.count("owner IS NOT NULL") == 12


async def test_the_same_key_gets_the_same_code_also_at_once(club: Club) -> None:
    """A retry is no second code."""
    member = await club.member()
    async with club.invites() as invites:
        taken = await asyncio.gather(*(invites.take(TENANT, member, "k") for _ in range(6)))
    assert len({each.invite.code for each in taken}) == 1
    assert sum(each.created for each in taken) == 1


async def test_nobody_hoards_codes_also_not_at_once(club: Club) -> None:
    """A bound on the unused ones; a used one makes room."""
    member, friend = await club.member(), await club.member()
    async with club.invites() as invites:
        got = await asyncio.gather(*(invites.take(TENANT, member, f"k{n}") for n in range(8)), return_exceptions=True)
        taken = [each for each in got if not isinstance(each, BaseException)]
        assert [type(each) for each in got if isinstance(each, BaseException)] == [InvitesExhausted] * 5
        await invites.claim_later(TENANT, friend, taken[0].invite.code)
        await invites.take(TENANT, member, "another")


async def test_of_sixteen_newcomers_with_one_code_exactly_one_wins(club: Club) -> None:
    """And only that one, and the inviter, are rewarded, once."""
    inviter = await club.member()
    newcomers = [await club.member() for _ in range(16)]
    async with club.invites() as invites:
        code = (await invites.take(TENANT, inviter, "k")).invite.code
        claims = (invites.claim_later(TENANT, each, code) for each in newcomers)
        ended = await asyncio.gather(*claims, return_exceptions=True)
    assert [each for each in ended if isinstance(each, str)] == [inviter]
    assert {type(each) for each in ended if not isinstance(each, str)} == {InviteInvalid}
    assert (await club.credits(inviter), sum([await club.credits(each) for each in newcomers])) == (7, 5)
    invited = [(await club.profiles.find(TENANT, each)).referrer_id for each in newcomers]  # type: ignore[union-attr]
    assert sorted(filter(None, invited)) == [inviter]


async def test_nobody_invites_themselves_or_an_older_member(club: Club) -> None:
    """So no two invite each other, and no longer circle closes; the code stays good for somebody else."""
    old, young, youngest = [await club.member() for _ in range(3)]
    async with club.invites(NO_POOL) as invites:
        of_old, of_young = [(await invites.take(TENANT, each, "k")).invite.code for each in (old, young)]
        with pytest.raises(InviteOwn):
            await invites.claim_later(TENANT, old, of_old)
        await invites.claim_later(TENANT, young, of_old)
        with pytest.raises(InviteTooLate):
            await invites.claim_later(TENANT, old, of_young)
        assert await invites.claim_later(TENANT, youngest, of_young) == young


async def test_who_invited_somebody_is_said_once_and_soon(club: Club) -> None:
    """Not a second time, and not when the time is over."""
    inviter, friend, late = [await club.member() for _ in range(3)]
    async with club.invites(NO_POOL) as invites:
        first, second = [(await invites.take(TENANT, inviter, key)).invite.code for key in ("a", "b")]
        await invites.claim_later(TENANT, friend, first)
        with pytest.raises(AlreadyInvited):
            await invites.claim_later(TENANT, friend, second)
        club.clock.advance(7 * 86_400.0 + 1)
        with pytest.raises(InviteTooLate):
            await invites.claim_later(TENANT, late, second)


async def test_a_code_that_lies_in_the_pool_is_nobodys_yet(club: Club) -> None:
    """Guessing one that was never given out is as good as guessing nothing."""
    newcomer = await club.member()
    async with club.invites() as invites:
        await invites.refill()
        [(code,)] = (await club.db.query("SELECT code FROM app_invite WHERE owner IS NULL LIMIT 1")).rows
        for wrong in (code, new_code(), "no code"):
            with pytest.raises(InviteInvalid):
                await invites.claim_later(TENANT, newcomer, wrong)


async def test_the_list_of_ones_codes_turns_pages(club: Club) -> None:
    """Newest first, each once, and nobody else's."""
    member, other = await club.member(), await club.member()
    async with club.invites(NO_POOL) as invites:
        codes = []
        for number in range(5):
            club.clock.advance(1.0)
            codes.append((await invites.take(TENANT, member, f"k{number}")).invite.code)
        await invites.take(TENANT, other, "k")
        seen, cursor = [], None
        for _ in range(3):
            page = await invites.page(TENANT, member, cursor, 2)
            seen += [each.code for each in page.rows]
            cursor = page.next_cursor
    assert (seen, cursor) == (codes[::-1], None)

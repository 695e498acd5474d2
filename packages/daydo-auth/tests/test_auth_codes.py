"""One-time codes: single use, few guesses, few messages, for all workers together, and nothing told to strangers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daydo_auth import AuthConfig, CodesLimited, CodesUnavailable, CodeWrong, LoginUnusable, SenderUnavailable
from daydo_auth.codes import Codes
from daydo_auth.logins import channel_of, mask_login, normalize_login
from daydo_kernel import Metrics
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_redis import Redis
from daydo_redis.testing import CALM

PHONE = "13812345678"


class Outbox:
    """A sender that keeps what it sends, or fails as it is told."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, str, str]] = []
        self.error: Exception | None = None

    async def send(self, to: str, code: str, purpose: str, *, key: str, ttl_s: float) -> None:
        self.sent.append((to, code, purpose, key))
        if self.error is not None:
            raise self.error

    @property
    def code(self) -> str:
        return self.sent[-1][1]

    @property
    def wrong(self) -> str:
        return f"{(int(self.code) + 1) % 1_000_000:06}"


class Worker:
    """One process' codes on a Redis that others share."""

    def __init__(self, redis: Redis, config: Any, clock: ManualClock | None) -> None:
        self.out, self.events, self.metrics = Outbox(), RecordedEvents(), Metrics("test")
        senders: Any = {"phone": self.out, "email": self.out}
        self.codes = Codes(redis, config, senders, clock, self.events, self.metrics, require_started=lambda: None)

    def counted(self, family: str) -> dict[str, float]:
        cells = {"sends": self.codes._sends, "checks": self.codes._checks}[family]
        return {outcome: cell.value for outcome, cell in cells.items() if cell.value}


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis(redis_url, CALM) as redis:
        yield redis


@pytest.fixture
def worker(redis: Redis, configure: Any, clock: ManualClock) -> Worker:
    return Worker(redis, configure(), clock)


@pytest.fixture
def near(memory: Redis, configure: Any, clock: ManualClock) -> Worker:
    """For what does not depend on the kind of Redis."""
    return Worker(memory, configure(), clock)


# -- one code ----------------------------------------------------------------------------------------------------------


async def test_a_code_works_once(worker: Worker) -> None:
    """The right code passes and is used up; what was sent is six digits to the number in its one form."""
    sent = await worker.codes.send("+86 138-1234-5678", "login")
    assert (sent.ttl_s, sent.again_after_s) == (300, 60)
    assert worker.out.sent[0][0] == PHONE
    assert await worker.codes.check("8613812345678", worker.out.code, "login") == PHONE
    with pytest.raises(CodeWrong):
        await worker.codes.check(PHONE, worker.out.code, "login")
    assert worker.counted("checks") == {"right": 1, "wrong": 1}


async def test_a_code_expires(worker: Worker, clock: ManualClock) -> None:
    """To the moment, by the clock that also limits."""
    await worker.codes.send(PHONE, "login")
    clock.advance(299.999)
    await worker.codes.check(PHONE, worker.out.code, "login")
    await worker.codes.send(PHONE, "login")
    clock.advance(300)
    with pytest.raises(CodeWrong):
        await worker.codes.check(PHONE, worker.out.code, "login")


async def test_a_code_is_for_one_person_one_purpose_and_one_tenant(worker: Worker) -> None:
    """Shown for anything else it is wrong, and stays good for what it is."""
    await worker.codes.send(PHONE, "login", tenant="acme")
    code = worker.out.code
    for login, purpose, tenant in (
        ("13912345678", "login", "acme"),
        (PHONE, "reset", "acme"),
        (PHONE, "login", ""),
        (PHONE, "login", "acm"),
    ):
        with pytest.raises(CodeWrong):
            await worker.codes.check(login, code, purpose, tenant=tenant)
    await worker.codes.check(PHONE, code, "login", tenant="acme")


async def test_names_do_not_run_into_one_another(near: Worker) -> None:
    """Tenant "a" and purpose "bc" are not tenant "ab" and purpose "c"."""
    await near.codes.send(PHONE, "bc", tenant="a")
    with pytest.raises(CodeWrong):
        await near.codes.check(PHONE, near.out.code, "c", tenant="ab")


@pytest.mark.parametrize(
    "code", ["", "12345", "1234567", "12345a", "１２３４５６", "123456\n", "\ud800", "0" * 100_000]
)
async def test_what_cannot_be_a_code(near: Worker, code: str) -> None:
    """It is wrong without being counted as a guess."""
    await near.codes.send(PHONE, "login")
    for _ in range(10):
        with pytest.raises(CodeWrong):
            await near.codes.check(PHONE, code, "login")
    await near.codes.check(PHONE, near.out.code, "login")


async def test_a_new_code_replaces_the_old(worker: Worker, clock: ManualClock) -> None:
    """There is one good code at a time, with all its guesses."""
    await worker.codes.send(PHONE, "login")
    old = worker.out.code
    for _ in range(4):
        with pytest.raises(CodeWrong):
            await worker.codes.check(PHONE, worker.out.wrong, "login")
    clock.advance(60)
    await worker.codes.send(PHONE, "login")
    while worker.out.code == old:
        clock.advance(60)
        await worker.codes.send(PHONE, "login")
    with pytest.raises(CodeWrong):
        await worker.codes.check(PHONE, old, "login")
    await worker.codes.check(PHONE, worker.out.code, "login")


# -- guesses -----------------------------------------------------------------------------------------------------------


async def test_the_fifth_guess_is_the_last(worker: Worker, clock: ManualClock) -> None:
    """Four wrong ones leave the fifth to be right; after five wrong ones the right one is wrong."""
    for wrong, passes in ((4, True), (5, False)):
        await worker.codes.send(PHONE, "login")
        for _ in range(wrong):
            with pytest.raises(CodeWrong):
                await worker.codes.check(PHONE, worker.out.wrong, "login")
        if passes:
            await worker.codes.check(PHONE, worker.out.code, "login")
        else:
            with pytest.raises(CodeWrong):
                await worker.codes.check(PHONE, worker.out.code, "login")
        clock.advance(60)


async def test_parallel_guesses_are_counted_together(redis_url: str, configure: Any) -> None:
    """Guesses at once over four workers: after four of them the right code passes, after five it does not, ever."""
    async with (
        Redis(redis_url, CALM) as one,
        Redis(redis_url, CALM) as two,
        Redis(redis_url, CALM) as three,
        Redis(redis_url, CALM) as four,
    ):
        config = configure(code_interval_s=0, codes_per_login=1_000)
        workers = [Worker(redis, config, None) for redis in (one, two, three, four)]
        first = workers[0]

        async def guess(times: int) -> None:
            await first.codes.send(PHONE, "login")
            guesses = (workers[number % 4].codes.check(PHONE, first.out.wrong, "login") for number in range(times))
            results = await asyncio.gather(*guesses, return_exceptions=True)
            assert {type(result) for result in results} == {CodeWrong}

        for _ in range(5):
            await guess(4)
            await first.codes.check(PHONE, first.out.code, "login")
            for times in (5, 60):
                await guess(times)
                with pytest.raises(CodeWrong):
                    await first.codes.check(PHONE, first.out.code, "login")


async def test_parallel_use_has_one_winner(redis_url: str, configure: Any) -> None:
    """Of thirty who show the right code at once, over two workers, one passes."""
    async with Redis(redis_url, CALM) as one, Redis(redis_url, CALM) as two:
        workers = [Worker(redis, configure(), None) for redis in (one, two)]
        await workers[0].codes.send(PHONE, "login")
        code = workers[0].out.code
        results = await asyncio.gather(
            *(workers[number % 2].codes.check(PHONE, code, "login") for number in range(30)), return_exceptions=True
        )
        assert results.count(PHONE) == 1
        assert sum(isinstance(result, CodeWrong) for result in results) == 29


async def test_wrong_guesses_are_limited_by_address(redis: Redis, configure: Any, clock: ManualClock) -> None:
    """Guessing at many phones from one network stops, whoever they are; other networks go on, it too a day later."""
    worker = Worker(redis, configure(code_wrong_per_address=3), clock)
    await worker.codes.send(PHONE, "login")
    for number in range(3):
        with pytest.raises(CodeWrong):
            await worker.codes.check(f"139000000{number:02}", "123456", "login", address=f"2001:db8:1:1::{number}")
    with pytest.raises(CodesLimited) as refused:
        await worker.codes.check(PHONE, worker.out.code, "login", address="2001:db8:1:1:ffff::1")
    assert refused.value.retry_after_s == 86_400
    await worker.codes.check(PHONE, worker.out.code, "login", address="2001:db8:1:2::1")
    clock.advance(86_400)
    with pytest.raises(CodeWrong):
        await worker.codes.check(PHONE, "123456", "login", address="2001:db8:1:1::")


# -- messages ----------------------------------------------------------------------------------------------------------

SPELLINGS = [
    "+8613812345678",
    "008613812345678",
    "8613812345678",
    "138 1234 5678",
    "（138）1234—5678",
    "１３８1234５６７８",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_a_limit_is_not_passed_by_spelling(near: Worker, spelling: str) -> None:
    """However the number is written, in whatever tenant and for whatever purpose, it is the same phone."""
    await near.codes.send(PHONE, "login")
    with pytest.raises(CodesLimited) as refused:
        await near.codes.send(spelling, "reset", tenant="acme")
    assert refused.value.retry_after_s == 60
    assert len(near.out.sent) == 1


@given(st.sampled_from(["", "+86", "0086", "86"]), st.lists(st.sampled_from(" -.()\u2011"), max_size=12), st.randoms())
def test_one_phone_has_one_form(prefix: str, noise: list[str], random: Any) -> None:
    """Punctuation anywhere, and the country's code or none, make no other phone."""
    text = list(prefix + PHONE)
    for mark in noise:
        text.insert(random.randrange(len(text) + 1), mark)
    assert normalize_login("".join(text)) == PHONE


@pytest.mark.parametrize(
    "login",
    [
        "zhang",
        "138\u200b12345678",
        "1381234567",
        "23812345678",
        "a@x",
        "a b@x.cn",
        "a@x.cn.",
        "é@x.cn",
        "a@-",
        '"a"@x.cn',
    ],
)
async def test_a_code_needs_a_phone_or_a_mailbox(near: Worker, login: str) -> None:
    """Whatever else may be a login cannot be sent a code, and so no odd spelling reaches anybody."""
    with pytest.raises(LoginUnusable):
        await near.codes.send(login, "login")
    assert near.out.sent == []


def test_channels_and_masks() -> None:
    """What is a phone, what a mailbox, and how little events say of them."""
    logins = [PHONE, "+447700900123", "a.b+c@x.cn", "zhang"]
    assert [channel_of(login) for login in logins] == ["phone", "phone", "email", None]
    assert [mask_login(login) for login in logins] == ["138****5678", "+4477****0123", "a***@x.cn", "zhang"]


async def test_a_minute_and_a_day_per_phone(worker: Worker, clock: ManualClock) -> None:
    """One a minute and ten in any 24 hours: the eleventh waits until the first is a day old."""
    began_us = clock.now_us()
    for _ in range(10):
        await worker.codes.send(PHONE, "login")
        with pytest.raises(CodesLimited) as refused:
            await worker.codes.send(PHONE, "login")
        assert refused.value.limit == "login"
        clock.advance(3_600)
    with pytest.raises(CodesLimited) as refused:
        await worker.codes.send(PHONE, "login")
    assert refused.value.retry_after_s == 86_400 - (clock.now_us() - began_us) / 1e6
    clock.advance(refused.value.retry_after_s)
    await worker.codes.send(PHONE, "login")
    with pytest.raises(CodesLimited):
        await worker.codes.send(PHONE, "login")


async def test_limits_by_address_and_for_all(redis: Redis, configure: Any, clock: ManualClock) -> None:
    """One network asks for three phones a day, everybody together for five; a refusal uses up nothing."""
    worker = Worker(redis, configure(codes_per_address=3, codes_per_day=5), clock)

    async def send(number: int, address: str) -> str:
        try:
            await worker.codes.send(f"139000000{number:02}", "login", address=address)
        except CodesLimited as refused:
            return str(refused.limit)
        return "sent"

    assert [await send(number, "2001:db8::1") for number in range(5)] == ["sent"] * 3 + ["address"] * 2
    assert [await send(3, "::ffff:192.0.2.1"), await send(4, "192.0.2.1")] == ["sent"] * 2
    assert [await send(number, "") for number in (5, 6)] == ["day"] * 2
    assert worker.counted("sends") == {"sent": 5, "limited": 4}
    clock.advance(86_400)
    assert await send(5, "2001:db8::2") == "sent"


async def test_parallel_requests_send_one_message(redis_url: str, configure: Any) -> None:
    """Twenty requests for one phone at once, over two workers: one message."""
    async with Redis(redis_url, CALM) as one, Redis(redis_url, CALM) as two:
        workers = [Worker(redis, configure(), None) for redis in (one, two)]
        sends = [workers[number % 2].codes.send(PHONE, "login") for number in range(20)]
        results = await asyncio.gather(*sends, return_exceptions=True)
        assert Counter(type(result).__name__ for result in results) == {"CodeSent": 1, "CodesLimited": 19}
        assert sum(len(worker.out.sent) for worker in workers) == 1


class Model:
    """The same rules, written down plainly: every time is kept, nothing is clever."""

    def __init__(self) -> None:
        self.now_s = 0
        self.sent: list[tuple[int, str, str]] = []
        self.wrong: list[tuple[int, str]] = []
        self.live: dict[str, list[int]] = {}  # login → good until, wrong guesses

    def send(self, login: str, address: str) -> bool:
        day = [each for each in self.sent if each[0] > self.now_s - 86_400]
        mine = [each for each in day if each[1] == login]
        near = [each for each in day if each[2] == address != ""]
        recent = [each for each in mine if each[0] > self.now_s - 60]
        if recent or len(mine) >= 3 or len(near) >= 4 or len(day) >= 6:
            return False
        self.sent.append((self.now_s, login, address))
        self.live[login] = [self.now_s + 300, 0]
        return True

    def check(self, login: str, address: str, *, right: bool) -> str:
        if len([each for each in self.wrong if each[0] > self.now_s - 86_400 and each[1] == address != ""]) >= 7:
            return "limited"
        until_s, guesses = self.live.get(login, [0, 0])
        if right and self.now_s < until_s and guesses < 5:
            del self.live[login]
            return "right"
        if login in self.live:
            self.live[login][1] += 1
        self.wrong.append((self.now_s, address))
        return "wrong"


LOGINS, ADDRESSES = ["13800000001", "13800000002", "a@x.cn"], ["", "192.0.2.1", "192.0.2.2"]
STEPS = st.one_of(
    st.tuples(st.just("send"), st.sampled_from(LOGINS), st.sampled_from(ADDRESSES)),
    st.tuples(st.just("check"), st.sampled_from(LOGINS), st.sampled_from(ADDRESSES), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([1, 59, 60, 299, 300, 43_200, 86_340])),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(STEPS, max_size=60))
def test_codes_follow_a_plain_model(steps: list[Any]) -> None:
    """Whatever is sent, typed and waited for, each answer is the one that a list of all times would give."""
    limits = {"codes_per_login": 3, "codes_per_address": 4, "codes_per_day": 6, "code_wrong_per_address": 7}
    config = AuthConfig(pepper="test-pepper-0123456789-abcdefghijkl", **limits)

    async def follow() -> None:
        clock, model, newest = ManualClock(), Model(), dict.fromkeys(LOGINS, "000000")
        async with Redis("embedded://memory", CALM) as redis:
            worker = Worker(redis, config, clock)
            for what, *details in steps:
                if what == "wait":
                    model.now_s += details[0]
                    clock.advance(details[0])
                elif what == "send":
                    login, address = details
                    assert await sent(worker, login, address) == model.send(login, address)
                    newest |= {to: code for to, code, *_ in worker.out.sent}
                else:
                    login, address, right = details
                    code = newest[login] if right else f"{(int(newest[login]) + 1) % 10**6:06}"
                    assert await checked(worker, login, code, address) == model.check(login, address, right=right)

    asyncio.run(follow())


async def sent(worker: Worker, login: str, address: str) -> bool:
    try:
        await worker.codes.send(login, "login", address=address)
    except CodesLimited:
        return False
    return True


async def checked(worker: Worker, login: str, code: str, address: str) -> str:
    try:
        await worker.codes.check(login, code, "login", address=address)
    except CodeWrong:
        return "wrong"
    except CodesLimited:
        return "limited"
    return "right"


# -- senders -----------------------------------------------------------------------------------------------------------


async def test_a_failed_message_leaves_no_code(worker: Worker, caplog: Any) -> None:
    """What was not sent is not good, but counts; nothing of it is in the error or the log."""
    worker.out.error = RuntimeError("no credit for 123456 to 13812345678")
    with caplog.at_level(logging.DEBUG), pytest.raises(SenderUnavailable) as failed:
        await worker.codes.send(PHONE, "login")
    assert failed.value.__cause__ is None
    assert PHONE not in caplog.text
    assert worker.out.code not in caplog.text
    with pytest.raises(CodeWrong):
        await worker.codes.check(PHONE, worker.out.code, "login")
    with pytest.raises(CodesLimited):
        await worker.codes.send(PHONE, "login")
    assert worker.counted("sends") == {"failed": 1, "limited": 1}


async def test_a_failed_message_frees_only_its_own_code(near: Worker, configure: Any, memory: Redis) -> None:
    """A slow failure does not take away the code that has replaced it."""
    slow = Worker(memory, configure(code_interval_s=0), None)
    quick = Worker(memory, configure(code_interval_s=0), None)

    async def replaced(to: str, code: str, purpose: str, *, key: str, ttl_s: float) -> None:
        await quick.codes.send(PHONE, "login")
        raise RuntimeError

    slow.out.send = replaced  # type: ignore[method-assign]
    with pytest.raises(SenderUnavailable):
        await slow.codes.send(PHONE, "login")
    await quick.codes.check(PHONE, quick.out.code, "login")


async def test_an_ambiguous_timeout_is_not_repeated(worker: Worker) -> None:
    """The message may arrive, so it was sent once, its code is good, and the client is told to wait."""
    worker.out.error = TimeoutError()
    with pytest.raises(SenderUnavailable) as failed:
        await worker.codes.send(PHONE, "login")
    assert failed.value.retry_after_s == 60
    assert len(worker.out.sent) == 1
    await worker.codes.check(PHONE, worker.out.code, "login")
    assert worker.counted("sends") == {"unknown": 1}


async def test_a_sender_that_hangs_is_left(memory: Redis, configure: Any) -> None:
    """After code_send_timeout_s the client has its answer."""
    worker = Worker(memory, configure(code_send_timeout_s=0.01), None)

    async def hang(to: str, code: str, purpose: str, *, key: str, ttl_s: float) -> None:
        await asyncio.Event().wait()

    worker.out.send = hang  # type: ignore[method-assign]
    with pytest.raises(SenderUnavailable):
        await worker.codes.send(PHONE, "login")


async def test_no_sender_no_code(memory: Redis, configure: Any) -> None:
    """Where nobody carries mail, an address is no login for a code."""
    events = RecordedEvents()
    codes = Codes(memory, configure(), {"phone": Outbox()}, None, events, Metrics("test"), require_started=lambda: None)
    with pytest.raises(LoginUnusable):
        await codes.send("a@x.cn", "login")


@pytest.mark.parametrize("purpose", ["", "Login", "a b", "x" * 33, "login\n", "1"])
async def test_odd_purposes(near: Worker, purpose: str) -> None:
    """A purpose is a name that the application chose; another is its mistake."""
    with pytest.raises(ValueError, match="purpose"):
        await near.codes.send(PHONE, purpose)


# -- what strangers learn ----------------------------------------------------------------------------------------------


async def test_redis_away(configure: Any, clock: ManualClock) -> None:
    """Nothing is sent and no code is believed."""
    async with Redis("redis://127.0.0.1:1") as redis:
        worker = Worker(redis, configure(), clock)
        with pytest.raises(CodesUnavailable) as refused:
            await worker.codes.send(PHONE, "login")
        assert refused.value.retry_after_s
        with pytest.raises(CodesUnavailable):
            await worker.codes.check(PHONE, "123456", "login")
        assert worker.out.sent == []


async def test_redis_holds_neither_code_nor_phone(redis: Redis, configure: Any) -> None:
    """Whoever reads Redis learns no number and no code, not even by trying all million."""
    worker = Worker(redis, configure(), None)
    await worker.codes.send(PHONE, "login", address="192.0.2.1")
    keys = await redis.call("KEYS", "*")
    stored = str([keys, [await redis.call("HGETALL", key) for key in keys if await redis.call("TYPE", key) == b"hash"]])
    assert len(keys) == 4
    assert all(b":{codes}:" in key for key in keys), "one slot of a cluster"
    assert not any(said in stored for said in (PHONE, worker.out.code, "192.0.2.1"))
    ttls_ms = [await redis.call("PTTL", key) for key in keys]
    assert all(0 < ttl_ms <= 86_400_000 for ttl_ms in ttls_ms)
    # Under another pepper the same code has another mac.
    other = Worker(redis, configure(pepper="other-pepper-0123456789-abcdefghijkl"), None)
    with pytest.raises(CodeWrong):
        await other.codes.check(PHONE, worker.out.code, "login")


async def test_events_say_who_without_saying(near: Worker) -> None:
    """Sent, limited and wrong are told, with a masked number and never a code."""
    await near.codes.send(PHONE, "login", tenant="acme", address="192.0.2.1")
    with pytest.raises(CodesLimited):
        await near.codes.send(PHONE, "login", tenant="acme")
    with pytest.raises(CodeWrong):
        await near.codes.check(PHONE, near.out.wrong, "login", tenant="acme")
    said = {"login": "138****5678", "purpose": "login", "address": ""}
    assert [(event.name, event.tenant, event.data) for event in near.events.events] == [
        ("auth.code_sent", "acme", said | {"address": "192.0.2.1"}),
        ("auth.code_refused", "acme", said | {"why": "login"}),
        ("auth.code_refused", "acme", said | {"why": "wrong"}),
    ]

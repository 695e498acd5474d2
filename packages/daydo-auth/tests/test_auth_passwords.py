from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_auth import (
    Auth,
    HashedPassword,
    HashingSaturated,
    LoginUnusable,
    Password,
    PasswordTooWeak,
    WrongCredentials,
)
from daydo_auth.hashing import HashingPool
from daydo_auth.logins import normalize_login
from daydo_auth.passwords import Hasher, weaknesses
from daydo_kernel import Metrics, render

PEPPER = "test-pepper-0123456789-abcdefghijkl"
GOOD = "Correct-Horse-7"


@pytest.fixture
def hasher() -> Hasher:
    return Hasher(PEPPER, 4)


@given(st.text(max_size=200))
def test_whoever_knows_it_gets_in(secret: str) -> None:
    """Any text at all is a password that checks, and one character more is another."""
    hasher = Hasher(PEPPER, 4)
    hashed = hasher.hash(secret)
    assert hasher.check(secret, hashed)
    assert not hasher.check(secret + "x", hashed)


@pytest.mark.parametrize(
    ("one", "other"),
    [("汉" * 25 + "a", "汉" * 25 + "b"), ("a" * 72 + "b", "a" * 72 + "c"), ("a\0b", "a\0c"), ("", "\0")],
)
def test_every_character_counts(hasher: Hasher, one: str, other: str) -> None:
    """bcrypt's limit of 72 bytes and its NUL do not show: passwords that differ late are different."""
    assert not hasher.check(other, hasher.hash(one))


def test_keyboards_may_differ(hasher: Hasher) -> None:
    """é typed as one character or as two, and full-width digits, are the same password."""
    assert hasher.check("cafe\u0301１２", hasher.hash("caf\u00e912"))


def test_a_stolen_database_is_not_enough(hasher: Hasher) -> None:
    """Without the pepper the right password does not check."""
    assert not Hasher(PEPPER + "x", 4).check(GOOD, hasher.hash(GOOD))


@pytest.mark.parametrize("hashed", ["", None, "d9:$2b$04$abc", "$2b$04$abc"])
def test_what_we_did_not_store_never_checks(hasher: Hasher, hashed: str | None) -> None:
    """No hash, or one of a recipe unknown here: false, after the usual work."""
    assert not hasher.check(GOOD, hashed)


def test_the_same_work_for_nobody() -> None:
    """A check against no hash takes as long as one against a real hash."""
    hasher = Hasher(PEPPER, 8)
    hashed = hasher.hash(GOOD)

    def best_s(against: str | None) -> float:
        took = []
        for _ in range(5):
            began = time.process_time()
            hasher.check("Wrong-Horse-7", against)
            took.append(time.process_time() - began)
        return min(took)

    assert 0.5 < best_s(None) / best_s(hashed) < 2


def test_recipes_are_told_apart(hasher: Hasher) -> None:
    """A hash of other rounds is not current, in either direction."""
    assert hasher.is_current(hasher.hash(GOOD))
    assert not hasher.is_current(Hasher(PEPPER, 5).hash(GOOD))
    assert not Hasher(PEPPER, 10).is_current(hasher.hash(GOOD))


@pytest.mark.parametrize(
    ("secret", "broken"),
    [
        (GOOD, []),
        ("Aa1!aaaa", []),
        ("Aa1汉字漢字漢", ["Needs a special character"]),
        ("Aa1 aaaaa", ["Needs a special character"]),
        ("Aa1!aaa", ["Must be at least 8 characters"]),
        ("aa1!aaaa", ["Needs an upper-case letter"]),
        ("AA1!AAAA", ["Needs a lower-case letter"]),
        ("Aaa!aaaa", ["Needs a digit"]),
        (
            "",
            ["Must be at least 8 characters"]
            + [
                f"Needs {what}"
                for what in ("an upper-case letter", "a lower-case letter", "a digit", "a special character")
            ],
        ),
        ("Aa1!" * 257, ["Must be at most 1024 characters"]),
    ],
)
def test_the_policy_of_the_origin(secret: str, broken: list[str]) -> None:
    """Eight characters with upper, lower, digit and special; every broken rule is named."""
    assert [field.en for field in weaknesses("origin", "a@x.cn", secret)] == broken


@pytest.mark.parametrize(
    ("secret", "broken"),
    [
        ("correct horse battery", []),
        ("正确的马电池订书针今天真的好", ["Must be at least 15 characters"]),
        ("a" * 20, ["Repeats itself too much"]),
        ("MyNameIs-Zhang.San-yes", ["Must not contain the login"]),
    ],
)
def test_the_policy_of_nist(secret: str, broken: list[str]) -> None:
    """NIST SP 800-63B-4: length instead of composition, and nothing obvious."""
    assert [field.en for field in weaknesses("nist", "zhang.san", secret)] == broken


async def test_a_weak_password_is_explained(auth: Auth) -> None:
    """The refusal is a 422 whose fields say in the client's language what is missing."""
    with pytest.raises(PasswordTooWeak) as refused:
        await auth.register(Password("a@x.cn", "Aa1"), subject="u_1")
    rendered = render(refused.value, "zh-CN")
    assert rendered.status == 422
    assert "至少 8 个字符" in rendered.body.decode()
    assert "须包含特殊字符" in rendered.body.decode()


@pytest.mark.parametrize("login", ["", "  ", "x" * 255, "a\nb", "a\0", "\ud800", "ﷺ" * 254])
async def test_what_cannot_be_a_login(auth: Auth, login: str) -> None:
    """Empty, too long, or with control characters: refused before anything is hashed."""
    with pytest.raises(LoginUnusable):
        await auth.register(Password(login, GOOD), subject="u_1")


@given(st.text(max_size=300))
def test_a_login_has_one_form(login: str) -> None:
    """Normalising twice is normalising once."""
    once = normalize_login(login)
    assert once is None or normalize_login(once) in (once, None)


@pytest.mark.parametrize(("tenant", "subject"), [("", ""), ("", "u 1"), ("", "ü"), ("", "x" * 129), ("a b", "u_1")])
async def test_names_that_no_table_can_tell_apart(auth: Auth, tenant: str, subject: str) -> None:
    """A subject or tenant that is not visible ASCII is the caller's mistake and says so."""
    with pytest.raises(ValueError, match="visible ASCII"):
        await auth.register(Password("a@x.cn", GOOD), subject=subject, tenant=tenant)


async def test_rehash_on_login(sqlite: Any, memory: Any, configure: Any) -> None:
    """Raising the rounds takes effect for each user at their next login, and for nobody who fails to log in."""

    async def stored() -> str:
        return (await sqlite.query("SELECT hashed FROM daydo_auth_password")).rows[0][0]

    async with Auth(sqlite, memory, configure(bcrypt_rounds=4)) as auth:
        await auth.register(Password("a@x.cn", GOOD), subject="u_1")
    async with Auth(sqlite, memory, configure(bcrypt_rounds=5)) as auth:
        with pytest.raises(WrongCredentials):
            await auth.login(Password("a@x.cn", "Wrong-Horse-7"))
        assert (await stored()).startswith("d1:$2b$04$")
        await auth.login(Password("a@x.cn", GOOD))
        assert (await stored()).startswith("d1:$2b$05$")
        await auth.login(Password("a@x.cn", GOOD))


async def test_a_prepared_password_holds_no_lock(auth: Auth) -> None:
    """What hash() returns registers inside a transaction without hashing there."""
    prepared = await auth.hash(Password("A@x.cn", GOOD))
    assert isinstance(prepared, HashedPassword)
    auth._pool.close = auth._pool.run = None  # type: ignore[method-assign,assignment]
    try:
        async with auth._db.transaction() as tx:
            await auth.register(prepared, subject="u_1", tx=tx)
    finally:
        del auth._pool.close, auth._pool.run
    assert (await auth.login(Password("a@x.cn", GOOD))).subject == "u_1"


def test_secrets_do_not_show(configure: Any) -> None:
    """Neither passwords nor tokens nor keys are in a repr."""
    from daydo_auth import Tokens

    shown = repr(
        [Password("a@x.cn", GOOD), HashedPassword("a@x.cn", "d1:h"), configure(), Tokens("A", "R", 1, "s", "u")]
    )
    for secret in (GOOD, "a@x.cn", "d1:h", PEPPER, "test-key", "'A'", "'R'"):
        assert secret not in shown


class Gate:
    """Work that waits until it is let go."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun = threading.Semaphore(0)
        self.done = 0

    def __call__(self) -> int:
        self.begun.release()
        self.open.wait(10)
        self.done += 1
        return self.done


async def test_saturation_is_refused_in_advance() -> None:
    """Two threads and a queue of three: the sixth is told when to come back, and the queue then empties."""
    pool, gate = HashingPool(2, 3, Metrics("daydo_auth")), Gate()
    jobs = [asyncio.create_task(pool.run(gate)) for _ in range(5)]
    await asyncio.sleep(0)
    assert pool.waiting == 3
    with pytest.raises(HashingSaturated) as refused:
        await pool.run(gate)
    assert refused.value.retry_after_s == pytest.approx(0.25 * 5 / 2)
    gate.open.set()
    assert sorted(await asyncio.gather(*jobs)) == [1, 2, 3, 4, 5]
    await pool.drained()
    assert pool.waiting == 0
    pool.close()


async def test_who_gives_up_leaves_the_queue() -> None:
    """A cancelled login that still waited is never hashed; one on a thread keeps its place until it is done."""
    pool, gate = HashingPool(1, 1, Metrics("daydo_auth")), Gate()
    running, waiting = (asyncio.create_task(pool.run(gate)) for _ in range(2))
    await asyncio.to_thread(gate.begun.acquire)
    for job in (waiting, running):
        job.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    await asyncio.sleep(0.01)
    assert pool._jobs == 1
    gate.open.set()
    await asyncio.wait_for(pool.drained(), 5)
    assert gate.done == 1
    pool.close()


async def test_a_login_burst_is_answered(sqlite: Any, memory: Any, configure: Any) -> None:
    """Beyond the queue logins are refused with 503 and Retry-After, counted, and nobody waits for ever."""
    async with Auth(sqlite, memory, configure(hashing_workers=1, hashing_queue_max=2, bcrypt_rounds=8)) as auth:
        done = await asyncio.gather(*(auth.login(Password("a@x.cn", GOOD)) for _ in range(12)), return_exceptions=True)
        kinds = {type(result) for result in done}
        assert kinds == {WrongCredentials, HashingSaturated}
        saturated = [result for result in done if isinstance(result, HashingSaturated)]
        assert auth._logins.value("password", "saturated") == len(saturated) >= 1
        assert int(render(saturated[0]).headers["retry-after"]) >= 1


async def test_the_loop_stays_free(sqlite: Any, memory: Any, configure: Any) -> None:
    """While passwords are hashed the event loop turns; inline hashing would stop it for each of them."""
    async with Auth(sqlite, memory, configure(bcrypt_rounds=8)) as auth:
        logins = asyncio.gather(*(auth.login(Password("a@x.cn", GOOD)) for _ in range(8)), return_exceptions=True)
        turns = 0
        while not logins.done():
            await asyncio.sleep(0.001)
            turns += 1
        await logins
    assert turns > 5

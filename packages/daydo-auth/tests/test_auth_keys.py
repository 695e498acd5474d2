from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_auth import (
    AccountDisabled,
    Auth,
    Forbidden,
    KeyInvalid,
    KeyRefused,
    KeyUnknown,
    NewKey,
    PersonRequired,
    Principal,
    RoleSpec,
)
from daydo_auth.key_secrets import KeySecrets
from daydo_db import ConnectionLost, Database
from daydo_kernel import NotFound
from daydo_kernel.testing import ManualClock, RecordedEvents
from daydo_redis import Redis
from daydo_redis.testing import CALM

PEPPER = "test-pepper-0123456789-abcdefghijkl"
ROLES = {
    "editor": RoleSpec(permissions=("image:*", "quota:read")),
    "viewer": RoleSpec(permissions=("image:read",)),
    "admin": RoleSpec(permissions=("*",)),
}


@pytest.fixture
async def auth(sqlite: Database, memory: Redis, clock: ManualClock, events: RecordedEvents, configure: Any) -> Any:
    async with Auth(sqlite, memory, configure(roles=ROLES), clock=clock, events=events) as auth:
        await auth.roles.assign("u_1", ["editor"])
        yield auth


async def make(auth: Auth, *scopes: str, subject: str = "u_1", **options: Any) -> NewKey:
    return await auth.keys.create(subject, name="ci", scopes=scopes or ("image:*",), **options)


async def used_at(auth: Auth, key: NewKey) -> int:
    return next(each.used_at_us for each in await auth.keys.list("u_1") if each.id == key.key.id)


def count_reads(auth: Auth) -> list[str]:
    """Every key that is looked up in the database from now on."""
    read, asked = auth.keys._rows.read, []

    async def counted(key_id: str) -> Any:
        asked.append(key_id)
        return await read(key_id)

    auth.keys._rows.read = counted  # type: ignore[method-assign]
    return asked


# -- what a key is


async def test_a_key_speaks_for_its_subject(db: Database, memory: Redis, configure: Any) -> None:
    """On every database a key is made, used, listed and revoked; it says who, by what, and within which scopes."""
    async with Auth(db, memory, configure(roles=ROLES)) as auth:
        await auth.roles.assign("u_1", ["editor"], tenant="acme")
        new = await auth.keys.create("u_1", tenant="acme", name="持续集成", scopes=["quota:read", "image:create"])
        principal = await auth.keys.prove(new.secret)
        assert (principal.tenant, principal.subject, principal.way) == ("acme", "u_1", "key")
        assert (principal.key_id, principal.session_id, principal.proved_at_us) == (new.key.id, "", 0)
        assert principal.may("image:create")
        assert not principal.may("image:delete")
        assert new.secret.startswith(f"{new.key.id}_")
        assert new.secret not in repr(new)
        await auth.keys.write_uses()
        (listed,) = await auth.keys.list("u_1", tenant="acme")
        assert (listed.name, listed.kind, listed.scopes) == ("持续集成", "bearer", ("image:create", "quota:read"))
        assert listed.used_at_us >= listed.created_at_us > 0
        assert await auth.keys.list("u_1") == []
        await auth.keys.revoke("u_1", new.key.id, tenant="acme")
        with pytest.raises(KeyInvalid):
            await auth.keys.prove(new.secret)
        (listed,) = await auth.keys.list("u_1", tenant="acme")
        assert listed.revoked_at_us > 0


async def test_the_database_holds_no_key(auth: Auth, sqlite: Database) -> None:
    """Of a bearer key a hash is kept, of a signing key nothing; a stolen table opens no door."""
    bearer, signing = await make(auth), await make(auth, kind="signing")
    rows = dict((await sqlite.query("SELECT id, hashed FROM daydo_auth_api_key")).rows)
    assert rows == {bearer.key.id: hashlib.sha256(bearer.secret.encode()).digest(), signing.key.id: b""}
    tables = repr((await sqlite.query("SELECT * FROM daydo_auth_api_key")).rows)
    for secret in (bearer.secret, signing.secret, bearer.secret[30:]):
        assert secret not in tables


async def test_a_row_alone_is_no_key(auth: Auth, sqlite: Database) -> None:
    """Who can write the table but lacks the pepper still makes no key: what they hash is not ours."""
    new = await make(auth)
    forged = f"{new.key.id}_{secrets.token_urlsafe(32)}"
    await sqlite.execute("UPDATE daydo_auth_api_key SET hashed = ?", (hashlib.sha256(forged.encode()).digest(),))
    for secret in (forged, new.secret):
        with pytest.raises(KeyInvalid):
            await auth.keys.prove(secret)


@given(st.binary(min_size=32, max_size=32), st.text())
def test_keys_we_did_not_make(random: bytes, text: str) -> None:
    """No other bytes behind a genuine id make a key, nor does any text; one made is read back, by its pepper alone."""
    keys = KeySecrets(PEPPER)
    secret, kept = keys.new_bearer()
    assert keys.read_bearer(secret) == kept
    assert keys.read_bearer(f"{kept.id}_{secrets.token_urlsafe(32)}") is None
    assert keys.read_bearer(text) is None
    assert KeySecrets(PEPPER + "!").read_bearer(secret) is None
    assert KeySecrets(PEPPER + "!").signing_secret(kept.id) != keys.signing_secret(kept.id)


def test_a_key_has_one_spelling() -> None:
    """Base64 spells the last bits in four ways; one of them is the key, so nobody counts or logs it as four."""
    keys = KeySecrets(PEPPER)
    secret, _ = keys.new_bearer()
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    good = [letter for letter in letters if keys.read_bearer(secret[:-1] + letter)]
    assert good == [secret[-1]]
    assert keys.read_bearer(secret + "=") is None
    assert keys.read_bearer(secret + "\n") is None


async def test_forged_keys_cost_nothing(auth: Auth) -> None:
    """Ten thousand random keys: not one look into the database, not one event, nothing remembered."""
    asked = count_reads(auth)
    real = await make(auth)
    forged = [f"{real.key.id}_{secrets.token_urlsafe(32)}" for _ in range(10_000)]
    done = await asyncio.gather(*map(auth.keys.prove, forged), return_exceptions=True)
    assert {type(each) for each in done} == {KeyInvalid}
    assert asked == []
    assert not auth.keys._known
    assert not auth.keys._uses._waiting


# -- what is remembered


async def test_known_keys_cost_no_io(auth: Auth, clock: ManualClock) -> None:
    """A key is read once and then known for key_cache_s."""
    new, asked = await make(auth), count_reads(auth)
    for _ in range(5):
        await auth.keys.prove(new.secret)
    assert len(asked) == 1
    clock.advance(auth.config.key_cache_s - 1)
    await auth.keys.prove(new.secret)
    assert len(asked) == 1
    clock.advance(1)
    await auth.keys.prove(new.secret)
    assert len(asked) == 2


async def test_what_the_feed_has_forgotten_is_asked_again(auth: Auth, clock: ManualClock) -> None:
    """A key read before what the feed still knows might have missed a change: the database is asked again."""
    new, asked = await make(auth), count_reads(auth)
    await auth.keys.prove(new.secret)
    clock.advance(1)
    auth._feed.known_since_us = clock.now_us() - 1
    await auth.keys.prove(new.secret)
    await auth.keys.prove(new.secret)
    assert len(asked) == 2


async def test_few_keys_are_remembered(sqlite: Database, memory: Redis, configure: Any) -> None:
    """keys_cached_max bounds what is remembered and what waits to be written; the keys beyond it work as well."""
    config = configure(default_permissions=("image:*",), keys_cached_max=3)
    async with Auth(sqlite, memory, config) as auth:
        made = [await make(auth, subject=f"u_{number}") for number in range(8)]
        for _ in range(2):
            for new in made:
                assert (await auth.keys.prove(new.secret)).subject == new.key.subject
        assert len(auth.keys._known) == 3
        assert len(auth.keys._uses._waiting) == 3


async def test_an_answer_from_before_is_not_kept(auth: Auth) -> None:
    """A look-up that a revocation overtakes may still be used; the next request sees the revocation."""
    new = await make(auth)
    read = auth.keys._rows.read

    async def slow(key_id: str) -> Any:
        state = await read(key_id)
        await auth.keys.revoke("u_1", key_id)
        return state

    auth.keys._rows.read = slow  # type: ignore[method-assign]
    await auth.keys.prove(new.secret)
    auth.keys._rows.read = read  # type: ignore[method-assign]
    with pytest.raises(KeyInvalid):
        await auth.keys.prove(new.secret)


async def test_the_database_goes_away(auth: Auth, sqlite: Database, clock: ManualClock) -> None:
    """Known keys work on for key_cache_s; others, and those afterwards, are the database's error and never a yes."""
    known, unknown = await make(auth), await make(auth)
    await auth.keys.prove(known.secret)

    async def gone(*_: object, **__: object) -> Any:
        raise ConnectionLost

    sqlite.query = gone  # type: ignore[method-assign]
    try:
        assert (await auth.keys.prove(known.secret)).subject == "u_1"
        with pytest.raises(ConnectionLost):
            await auth.keys.prove(unknown.secret)
        clock.advance(auth.config.key_cache_s)
        with pytest.raises(ConnectionLost):
            await auth.keys.prove(known.secret)
    finally:
        del sqlite.query


# -- how wide it is


async def test_no_wider_than_its_subject(auth: Auth) -> None:
    """A scope that its subject, or who asks, may not do is refused; a family counts as all that is in it."""
    for scope in ("user:read", "*", "quota:*"):
        with pytest.raises(Forbidden) as refused:
            await make(auth, "image:read", scope)
        assert refused.value.permission == scope
    viewer = Principal("", "u_2", "ses_1", permissions=auth.roles.permissions("", ("viewer",)))
    with pytest.raises(Forbidden, match="quota:read"):
        await make(auth, "image:read", "quota:read", by=viewer)
    assert await auth.keys.list("u_1") == []
    assert (await make(auth, "image:read", by=viewer)).key.scopes == ("image:read",)


async def test_a_demoted_owner_takes_their_keys_along(auth: Auth) -> None:
    """What a key may do shrinks and grows with its subject's roles, and never beyond its scopes."""
    new = await make(auth, "image:*", "quota:read")
    assert (await auth.keys.prove(new.secret)).may("image:delete")
    await auth.roles.assign("u_1", ["viewer"])
    principal = await auth.keys.prove(new.secret)
    assert [*principal.permissions] == ["image:read"]
    await auth.roles.assign("u_1", ["admin"])
    assert [*(await auth.keys.prove(new.secret)).permissions] == ["image:*", "quota:read"]
    await auth.roles.assign("u_1", [])
    assert [*(await auth.keys.prove(new.secret)).permissions] == []


async def test_a_role_that_changes_changes_keys(auth: Auth) -> None:
    """A role that gives less makes its people's keys do less, at once and without reading them anew."""
    await auth.roles.define("drawer", permissions=["image:create", "image:delete"])
    await auth.roles.assign("u_1", ["drawer"])
    new = await make(auth, "image:create", "image:delete")
    assert (await auth.keys.prove(new.secret)).may("image:delete")
    await auth.roles.define("drawer", permissions=["image:create"])
    principal = await auth.keys.prove(new.secret)
    assert principal.may("image:create")
    assert not principal.may("image:delete")


async def test_a_disabled_owner(auth: Auth) -> None:
    """Who is shut out is shut out with all their keys, makes none, and has them back when let in again."""
    new = await make(auth)
    await auth.keys.prove(new.secret)
    await auth.roles.disable("u_1")
    with pytest.raises(AccountDisabled):
        await auth.keys.prove(new.secret)
    with pytest.raises(AccountDisabled):
        await make(auth)
    await auth.roles.enable("u_1")
    assert (await auth.keys.prove(new.secret)).subject == "u_1"


async def test_a_forgotten_owner(auth: Auth, sqlite: Database) -> None:
    """Nothing is left of the keys of somebody who is forgotten."""
    new = await make(auth)
    await auth.keys.prove(new.secret)
    await auth.forget("u_1")
    with pytest.raises(KeyInvalid):
        await auth.keys.prove(new.secret)
    await auth.keys.write_uses()
    assert (await sqlite.query("SELECT id FROM daydo_auth_api_key")).rows == []


# -- how long it lasts


async def test_keys_expire(auth: Auth, clock: ManualClock) -> None:
    """A key works until it expires and not a moment longer, also where it is known already."""
    new = await make(auth, expires_at_us=clock.now_us() + 60_000_000)
    await auth.keys.prove(new.secret)
    clock.advance(59.999)
    await auth.keys.prove(new.secret)
    clock.advance(0.001)
    with pytest.raises(KeyInvalid):
        await auth.keys.prove(new.secret)


async def test_revoked_in_another_worker(sqlite: Database, redis_url: str, configure: Any) -> None:
    """What one worker revokes another, that knows the key already, refuses soon: by Redis, or by the next look."""
    config = configure(default_permissions=("image:*",), revocation_poll_s=0.05)
    async with Redis(redis_url, CALM) as redis, Auth(sqlite, redis, config) as one, Auth(sqlite, redis, config) as two:
        new = await make(one)
        await two.keys.prove(new.secret)
        await one.keys.revoke("u_1", new.key.id)
        with pytest.raises(KeyInvalid):
            await one.keys.prove(new.secret)

        async def use_it_on() -> None:
            while True:
                await two.keys.prove(new.secret)
                await asyncio.sleep(0.01)

        with pytest.raises(KeyInvalid):
            await asyncio.wait_for(use_it_on(), 5)


async def test_revoking_belongs_to_the_transaction(auth: Auth, sqlite: Database, events: RecordedEvents) -> None:
    """With tx= a rollback takes a new key and a revocation with it, their events too; a second end changes nothing."""
    new, made = await make(auth), []

    async def fail(tx: Any) -> None:
        await auth.keys.revoke("u_1", new.key.id, tx=tx)
        made.append(await make(auth, tx=tx))
        raise KeyError

    with pytest.raises(KeyError):
        await sqlite.run(fail)
    await auth.keys.prove(new.secret)
    with pytest.raises(KeyInvalid):
        await auth.keys.prove(made[0].secret)
    for _ in range(2):
        await auth.keys.revoke("u_1", new.key.id)
    told = [name for name in events.names if name.startswith("auth.key_")]
    assert told == ["auth.key_created", "auth.key_revoked"]


# -- whose it is


async def test_others_keys_are_unknown(auth: Auth) -> None:
    """Somebody else's key, one of another tenant, and none at all give one answer, and go on."""
    new = await make(auth)
    await auth.roles.assign("u_1", ["editor"], tenant="acme")
    person = Principal("acme", "u_1", "ses_1", permissions=auth.roles.permissions("acme", ("admin",)))
    for subject, options in (("u_2", {}), ("u_1", {"tenant": "acme"}), (person, {})):
        with pytest.raises(KeyUnknown):
            await auth.keys.revoke(subject, new.key.id, **options)
    with pytest.raises(KeyUnknown):
        await auth.keys.revoke("u_1", "dk_nothing")
    with pytest.raises(NotFound):
        await make(auth, by=person)
    with pytest.raises(NotFound):
        await auth.keys.revoke("u_1", new.key.id, by=person)
    assert (await auth.keys.prove(new.secret)).tenant == ""


async def test_keys_manage_no_keys(auth: Auth) -> None:
    """A stolen key makes no other key, ends none, and is no person; neither is a ticket that was made with it."""
    new = await make(auth)
    key = await auth.keys.prove(new.secret)
    ticket = await auth.redeem_ticket(await auth.issue_ticket(key))
    for principal in (key, ticket):
        with pytest.raises(PersonRequired):
            principal.require_person()
        with pytest.raises(PersonRequired):
            await make(auth, by=principal)
        with pytest.raises(PersonRequired):
            await auth.keys.revoke(principal, new.key.id)
        with pytest.raises(PersonRequired):
            await auth.keys.revoke("u_1", new.key.id, by=principal)
        with pytest.raises(PersonRequired):
            principal.require_fresh(1e9, 0)
    assert [*ticket.permissions] == ["image:*"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["Image:Read"]}, "scopes"),
        ({"scopes": ["image:read quota:read"]}, "scopes"),
        ({"scopes": [f"image:{number}" for number in range(41)]}, "scopes"),
        ({"kind": "root"}, "kind"),
        ({"expires_at_us": 1}, "expires_at"),
        ({"expires_at_us": -1}, "expires_at"),
        ({"expires_at_us": 2**62}, "expires_at"),
    ],
)
async def test_what_a_key_cannot_be(auth: Auth, changes: dict[str, Any], field: str) -> None:
    """A name, scopes, kind or expiry that cannot be is refused with the name of the field, and nothing is made."""
    with pytest.raises(KeyRefused) as refused:
        await auth.keys.create("u_1", **{"name": "ci", "scopes": ["image:read"], **changes})
    assert [each.field for each in refused.value.fields] == [field]
    assert await auth.keys.list("u_1") == []


async def test_so_many_keys(db: Database, memory: Redis, configure: Any) -> None:
    """One subject has keys_per_subject_max keys that work, also where many are made at once; of those that work no
    more the last are kept."""
    async with Auth(db, memory, configure(default_permissions=("image:*",), keys_per_subject_max=3)) as auth:
        done = await asyncio.gather(*(make(auth) for _ in range(6)), return_exceptions=True)
        assert sorted(type(each).__name__ for each in done) == ["KeyRefused"] * 3 + ["NewKey"] * 3
        for _ in range(25):
            for key in await auth.keys.list("u_1"):
                if not key.revoked_at_us:
                    await auth.keys.revoke("u_1", key.id)
            await make(auth)
        keys = await auth.keys.list("u_1")
        assert [bool(key.revoked_at_us) for key in keys] == [False] + [True] * 20


# -- its last use


async def test_uses_are_written_together(auth: Auth, clock: ManualClock, events: RecordedEvents) -> None:
    """A thousand uses of two keys are two updates and two events, which say how often; then nothing is left to do."""
    one, two = await make(auth), await make(auth)
    clock.advance(7)
    for _ in range(500):
        await auth.keys.prove(one.secret)
        await auth.keys.prove(two.secret)
    assert await used_at(auth, one) == 0
    written = auth.keys._rows.write_uses
    calls = []

    async def counted(tx: Any, uses: Any) -> None:
        calls.append([*uses])
        await written(tx, calls[-1])

    auth.keys._rows.write_uses = counted  # type: ignore[method-assign]
    await auth.keys.write_uses()
    await auth.keys.write_uses()
    assert [len(call) for call in calls] == [2]
    assert await used_at(auth, one) == await used_at(auth, two) == clock.now_us()
    told = [(event.subject, event.data) for event in events.events if event.name == "auth.key_used"]
    assert told == [("u_1", {"key_id": new.key.id, "times": 500}) for new in (one, two)]


async def test_an_older_use_takes_nothing_back(auth: Auth, sqlite: Database, clock: ManualClock) -> None:
    """Two workers write in any order; the later use stays."""
    new = await make(auth)
    await auth.keys.prove(new.secret)
    await sqlite.execute("UPDATE daydo_auth_api_key SET used_at_us = ?", (clock.now_us() + 5,))
    await auth.keys.write_uses()
    assert await used_at(auth, new) == clock.now_us() + 5


async def test_uses_wait_for_the_database(auth: Auth, sqlite: Database, events: RecordedEvents, caplog: Any) -> None:
    """While the database is away uses are kept, counted on, and written when it is back."""
    new = await make(auth)
    await auth.keys.prove(new.secret)

    async def gone(*_: object, **__: object) -> Any:
        raise ConnectionLost

    sqlite.run = gone  # type: ignore[method-assign]
    await auth.keys.write_uses()
    del sqlite.run
    assert any("cannot be written" in record.getMessage() for record in caplog.records)
    await auth.keys.prove(new.secret)
    await auth.keys.write_uses()
    assert events.events[-1].data == {"key_id": new.key.id, "times": 2}


async def test_uses_are_written_on_the_way_out(sqlite: Database, memory: Redis, configure: Any) -> None:
    """Leaving writes what was used since the last time."""
    config = configure(default_permissions=("image:*",))
    async with Auth(sqlite, memory, config) as auth:
        new = await make(auth)
        await auth.keys.prove(new.secret)
    assert (await sqlite.query("SELECT used_at_us FROM daydo_auth_api_key")).rows[0][0] > 0


async def test_refusals_are_told_together(auth: Auth, events: RecordedEvents, clock: ManualClock) -> None:
    """A dead key that somebody goes on using is one event now and then, and no use; a forged one is nobody's."""
    new = await make(auth)
    await auth.keys.revoke("u_1", new.key.id)
    for secret in [new.secret] * 9 + ["dk_forged"]:
        with pytest.raises(KeyInvalid):
            await auth.keys.prove(secret)
    await auth.keys.write_uses()
    assert events.names[-1] == "auth.key_refused"
    assert events.events[-1].data == {"key_id": new.key.id, "times": 9, "why": "dead"}
    assert events.names.count("auth.key_refused") == 1
    assert await used_at(auth, new) == 0
    assert auth.keys._uses._outcomes["dead"].value == 9
    assert auth.keys._uses._outcomes["invalid"].value == 1


async def test_events_hold_no_key(auth: Auth, events: RecordedEvents) -> None:
    """What is told of a key names its id and never its secret."""
    made = [await make(auth), await make(auth, kind="signing")]
    await auth.keys.prove(made[0].secret)
    await auth.keys.write_uses()
    told = repr(events.events)
    for new in made:
        assert new.key.id in told
        assert new.secret not in told

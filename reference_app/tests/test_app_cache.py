"""What is cached: profiles, roles, features. True on every worker, read once, and there without Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from secrets import token_urlsafe
from typing import NamedTuple

import pytest

from daydo_auth import Auth, AuthConfig, RoleTable
from daydo_auth.role_store import RoleStore
from daydo_cache import Cache, CacheConfig
from daydo_cache.testing import FaultyRedis
from daydo_db import ConnectionLost, Database, migrate
from daydo_db.piccolo import bind
from daydo_db.testing import Backend, count_statements, fresh_database
from daydo_kernel import NoEvents, new_id
from daydo_redis.embedded import forget_memory
from reference_app.accounts.repository import PROFILE_VERSION, Profiles
from reference_app.accounts.tables import TABLES, Profile
from reference_app.caches import CachedRoles, Caches, RoleNews
from reference_app.images.catalogue import Catalogue
from reference_app.images.config import ImagesConfig
from reference_app.images.features import Feature, features_of
from reference_app.server import ServiceProcess
from reference_app.settings import load_settings
from reference_app.testing import GENEROUS, Client

TENANT = "main"
PATIENCE_S = 10.0  # the bound is two seconds; what lasted until its TTL would take a minute at least


class Worker(NamedTuple):
    """What one process of the service has between a request and the database, put together as the service does."""

    db: Database
    redis: FaultyRedis
    cache: Cache
    caches: Caches
    auth: Auth
    profiles: Profiles


@pytest.fixture(params=["embedded", "mariadb-redis"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A database of this test's own, and a Redis that two workers can share."""
    if request.param == "embedded":
        redis_url = f"embedded://memory/{new_id('test')}"
        yield f"sqlite:///{tmp_path / 'daydo.db'}", redis_url
        forget_memory(redis_url)
        return
    request.getfixturevalue("shared_backends")  # skips where servers are left out
    backends: list[Backend] = request.getfixturevalue("database_backends")
    with fresh_database(next(each for each in backends if each.dialect == "mysql"), tmp_path) as database_url:
        yield database_url, request.getfixturevalue("redis_server_url")


async def enter_worker(stack: AsyncExitStack, urls: tuple[str, str], prefix: str) -> Worker:
    db = await stack.enter_async_context(Database(urls[0]))
    redis = await stack.enter_async_context(FaultyRedis(urls[1]))
    cache = Cache(redis, CacheConfig(prefix=prefix, staleness_s=0.5))
    caches = Caches.of(cache)
    await stack.enter_async_context(cache)
    source, events = CachedRoles(caches.roles, RoleStore(db, None)), RoleNews(caches.roles, NoEvents())
    config = AuthConfig(
        keys={"k": token_urlsafe(48)}, pepper=token_urlsafe(48), redis_prefix=prefix, revocation_poll_s=0.2
    )
    auth = await stack.enter_async_context(Auth(db, redis, config, role_source=source, events=events))
    return Worker(db, redis, cache, caches, auth, Profiles(db, caches.profiles))


@pytest.fixture
async def workers(urls: tuple[str, str]) -> AsyncIterator[tuple[Worker, Worker]]:
    """Two workers of one deployment."""
    async with Database(urls[0]) as db:
        await migrate(db, "daydo_db", "daydo_auth", "reference_app")
        bind(TABLES, db)
    prefix = new_id("test")
    async with AsyncExitStack() as stack:
        yield await enter_worker(stack, urls, prefix), await enter_worker(stack, urls, prefix)


@pytest.fixture
async def user_id(workers: tuple[Worker, Worker]) -> str:
    """Somebody called Ann."""
    db, profiles = workers[0].db, workers[0].profiles
    ann = Profile(id=new_id("user"), tenant=TENANT, nickname="Ann", phone="13900000000", created_at_us=1)
    async with db.transaction() as tx:
        await profiles.add(ann, tx=tx)
    return str(ann.id)


async def rename(worker: Worker, user_id: str, name: str) -> None:
    async with worker.db.transaction() as tx:
        assert await worker.profiles.change(TENANT, user_id, {Profile.nickname: name}, tx=tx)


async def name_of(worker: Worker, user_id: str) -> str | None:
    profile = await worker.profiles.find(TENANT, user_id)
    return profile.nickname if profile is not None else None


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await holds():  # noqa: ASYNC110 - what another worker does is not ours to be told of
            await asyncio.sleep(0.005)


async def until_name(worker: Worker, user_id: str, name: str | None) -> None:
    async def holds() -> bool:
        return await name_of(worker, user_id) == name

    await until(holds)


# -- profiles ----------------------------------------------------------------------------------------------------------


async def test_a_profile_is_read_once_for_all_who_ask(workers, user_id):
    """A hundred readers on two workers are one statement; what they get is theirs to change."""
    one, two = workers
    await one.profiles.find(TENANT, new_id("user"))  # connections are there
    with count_statements(one.db, any_task=True) as first, count_statements(two.db, any_task=True) as second:
        found = await asyncio.gather(
            *(worker.profiles.find(TENANT, user_id) for worker in workers for _ in range(50)),
        )
    reads = [sent for sent in [*first, *second] if "app_profile" in sent.statement.text]
    assert len(reads) == 1
    assert {profile.nickname for profile in found} == {"Ann"}
    found[0].nickname = "Zoe"
    assert await name_of(one, user_id) == "Ann"


async def test_everybody_gets_their_own(workers, user_id):
    """Nobody another's profile, and nobody of another tenant any."""
    one, _ = workers
    bob = Profile(id=new_id("user"), tenant=TENANT, nickname="Bob", created_at_us=1)
    async with one.db.transaction() as tx:
        await one.profiles.add(bob, tx=tx)
    for worker in workers:
        assert await name_of(worker, user_id) == "Ann"
        assert await name_of(worker, bob.id) == "Bob"
        assert await worker.profiles.find("another", user_id) is None


async def test_what_is_cached_is_all_of_the_profile(workers, user_id):
    """A column that the cache forgot would be None for a few minutes, now and then."""
    _, two = workers
    fresh = await Profiles(two.db).find(TENANT, user_id)
    for _ in range(2):
        known = await two.profiles.find(TENANT, user_id)
        assert known.to_dict() == fresh.to_dict()
    assert known._exists_in_db


async def test_a_change_on_one_worker_is_seen_by_the_other(workers, user_id):
    """At once where it was made, within the bound where it was not."""
    one, two = workers
    assert await name_of(one, user_id) == await name_of(two, user_id) == "Ann"
    await rename(one, user_id, "Bea")
    assert await name_of(one, user_id) == "Bea"
    await until_name(two, user_id, "Bea")


async def test_a_change_that_was_rolled_back_is_seen_by_nobody(workers, user_id):
    """Neither before nor after."""
    one, two = workers

    async def change_of_mind() -> None:
        async with one.db.transaction() as tx:
            await one.profiles.change(TENANT, user_id, {Profile.nickname: "Bea"}, tx=tx)
            assert await name_of(two, user_id) == "Ann"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await change_of_mind()
    assert await name_of(one, user_id) == await name_of(two, user_id) == "Ann"


async def test_what_is_read_while_a_change_is_open_is_not_kept(workers, user_id):
    """The old name, read a moment before the COMMIT, must not be stored after it."""
    one, two = workers
    async with one.db.transaction() as tx:
        await one.profiles.change(TENANT, user_id, {Profile.nickname: "Bea"}, tx=tx)
        assert await name_of(two, user_id) == "Ann"
    await until_name(two, user_id, "Bea")
    assert await name_of(one, user_id) == "Bea"


async def test_whoever_loses_a_phone_is_seen_without_it(workers, user_id):
    """Another user proves the number theirs: the one who had it is not the one who writes."""
    one, two = workers
    assert (await two.profiles.find(TENANT, user_id)).phone == "13900000000"
    async with one.db.transaction() as tx:
        await one.profiles.release_phone(TENANT, "13900000000", tx=tx)
    assert (await one.profiles.find(TENANT, user_id)).phone is None

    async def is_without() -> bool:
        return (await two.profiles.find(TENANT, user_id)).phone is None

    await until(is_without)


async def test_who_is_erased_is_not_served(workers, user_id):
    """Not by the worker that erased them, not by the others, and Redis holds nothing of them."""
    one, two = workers
    assert await name_of(one, user_id) == await name_of(two, user_id) == "Ann"
    async with one.db.transaction() as tx:
        assert await one.profiles.remove(TENANT, user_id, tx=tx)
    assert await one.profiles.find(TENANT, user_id) is None
    await until_name(two, user_id, None)
    kept = [await one.redis.get(key) or b"" for key in await one.redis.call("KEYS", f"*{user_id}}}:{PROFILE_VERSION}")]
    assert not any(b"Ann" in value for value in kept)


async def test_redis_is_dead_and_profiles_are_right(workers, user_id):
    """They come from the database: also those that were cached, and those that change meanwhile."""
    one, two = workers
    assert await name_of(one, user_id) == await name_of(two, user_id) == "Ann"
    one.redis.gone = two.redis.gone = True
    await rename(one, user_id, "Bea")
    assert await name_of(one, user_id) == "Bea"
    await until_name(two, user_id, "Bea")
    assert (await one.cache.health()).status == "degraded"
    one.redis.gone = two.redis.gone = False
    await until_name(two, user_id, "Bea")
    await rename(two, user_id, "Cid")
    await until_name(one, user_id, "Cid")


def test_the_version_of_profiles_goes_with_their_columns():
    """Workers of two releases must not read each other's rows: whoever changes the columns raises the version."""
    columns = "id tenant phone email nickname avatar gender referrer_id created_at_us"
    assert (PROFILE_VERSION, [column._meta.name for column in Profile._meta.columns]) == (1, columns.split())


# -- roles -------------------------------------------------------------------------------------------------------------


def may(worker: Worker, permission: str) -> bool:
    return worker.auth.roles.permissions(TENANT, ("editor",)).may(permission)


async def until_may(worker: Worker, permission: str, *, so: bool = True) -> None:
    async def holds() -> bool:
        return may(worker, permission) is so

    await until(holds)


async def test_a_role_that_changes_is_read_once_for_all_workers(workers):
    """Who asks after the change reads the table and keeps it for all; the others do not ask the database."""
    one, two = workers
    await one.auth.roles.define("editor", permissions=["text:write"])
    await until_may(two, "text:write")

    async def asks_no_table() -> bool:
        with count_statements(two.db) as sent:
            await two.auth.roles.reload()
        return not sent

    await until(asks_no_table)
    assert may(two, "text:write")


async def test_a_permission_that_is_taken_away_is_gone_on_all_workers(workers):
    """The one that did it when the call returns, the others within a second and one read."""
    one, two = workers
    await one.auth.roles.define("editor", permissions=["text:write", "text:delete"])
    await until_may(two, "text:delete")
    await two.auth.roles.define("editor", permissions=["text:write"])
    assert not may(two, "text:delete")
    await until_may(one, "text:delete", so=False)
    await two.auth.roles.drop("editor")
    assert not may(two, "text:write")
    await until_may(one, "text:write", so=False)


async def test_redis_is_dead_and_roles_are_right(workers):
    """Changes are heard of through the database, and read there."""
    one, two = workers
    await one.auth.roles.define("editor", permissions=["text:write", "text:delete"])
    await until_may(two, "text:delete")
    one.redis.gone = two.redis.gone = True
    await one.auth.roles.define("editor", permissions=["text:write"])
    assert not may(one, "text:delete")
    await until_may(two, "text:delete", so=False)


class Table:
    """A table of roles; it can be away."""

    def __init__(self) -> None:
        self.table = RoleTable(epochs={"": 1})
        self.is_away = False

    async def load(self) -> RoleTable:
        if self.is_away:
            raise ConnectionLost
        return self.table


async def test_a_worker_that_cannot_read_roles_keeps_no_other_from_it(urls):
    """The failure is remembered for a second, for all processes; this one asks the table itself."""
    prefix = new_id("test")
    async with AsyncExitStack() as stack:
        sources = []
        for _ in range(2):
            redis = await stack.enter_async_context(FaultyRedis(urls[1]))
            cache = Cache(redis, CacheConfig(prefix=prefix))
            space = Caches.of(cache).roles
            await stack.enter_async_context(cache)
            sources.append((CachedRoles(space, table := Table()), table))
        (broken, lost), (whole, there) = sources
        lost.is_away = True
        with pytest.raises(ConnectionLost):
            await broken.load()
        assert await whole.load() == there.table


# -- features ----------------------------------------------------------------------------------------------------------


class Editable:
    """Definitions that an administrator may edit."""

    def __init__(self, features: tuple[Feature, ...]) -> None:
        self.features = features
        self.reads = 0

    async def load(self) -> tuple[Feature, ...]:
        self.reads += 1
        return self.features


async def test_features_are_read_once_and_each_release_shows_its_own(workers):
    """Two workers, one read; at other prices there is another key; whoever edits them ends what is cached."""
    one, two = workers
    cheap, dear = (tuple(features_of(ImagesConfig(cutout_credits=price)).values()) for price in (1, 9))
    source, other = Editable(cheap), Editable(dear)
    here, there = Catalogue(one.caches.features, source, cheap), Catalogue(two.caches.features, source, cheap)
    next_release = Catalogue(two.caches.features, other, dear)
    assert await here.features() == await there.features() == cheap
    assert await next_release.features() == dear
    assert (source.reads, other.reads) == (1, 1)
    source.features = cheap[:1]
    await one.caches.features.clear()
    assert await here.features() == cheap[:1]


# -- the service -------------------------------------------------------------------------------------------------------


def test_the_cache_is_a_part_with_settings(tmp_path):
    """``DAYDO_CACHE__…`` reaches it."""
    environ = {"DAYDO_DATA_DIR": str(tmp_path), "DAYDO_CACHE__STALENESS_S": "0.5", "DAYDO_CACHE__PREFIX": "shop"}
    settings = load_settings(environ, dotenv=tmp_path / ".env")
    assert (settings.cache.staleness_s, settings.cache.prefix) == (0.5, "shop")


@pytest.fixture(scope="module")
def two_urls(shared_backends: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Two processes of one deployment, each with an address of its own."""
    secrets = {name: token_urlsafe(48) for name in ("DAYDO_JWT_SECRET", "DAYDO_PASSWORD_PEPPER")}
    environment = {**shared_backends, **secrets, **GENEROUS, "DAYDO_AUTH__BCRYPT_ROUNDS": "4"}
    with ExitStack() as stack:
        folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
        yield [stack.enter_context(ServiceProcess(folder, environment)).url for folder in folders]


def test_two_processes_agree_on_a_profile(two_urls):
    """Renamed through one, seen through the other; erased through one, not served by the other."""
    with Client(two_urls[0]) as here, Client(two_urls[1]) as there:
        here.register()
        there.http.headers["Authorization"] = here.http.headers["Authorization"]
        assert "nickname" not in there.ok("GET", "/users/me")
        assert here.ok("PATCH", "/users/me", json={"nickname": "Bea"})["nickname"] == "Bea"
        until_seen(lambda: there.ok("GET", "/users/me").get("nickname") == "Bea")
        here.ok("DELETE", "/users/me")
        assert here.call("GET", "/users/me").status_code in (401, 404)
        until_seen(lambda: there.call("GET", "/users/me").status_code in (401, 404))


def test_the_cache_is_watched(two_urls):
    """Its health and its metrics are those of a part."""
    with Client(two_urls[0]) as client:
        client.ok("GET", "/features")
        assert client.http.get(f"{two_urls[0]}/health/cache").json()["data"]["parts"]["cache"]["status"] == "ok"
        metrics = client.http.get(f"{two_urls[0]}/metrics").text
    assert "daydo_cache_reads_total{" in metrics
    assert 'space="features"' in metrics


def until_seen(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)

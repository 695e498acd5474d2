"""A hold around a request: what kind of answer, and what kind of end, charges and what returns."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import pytest

from daydo_db import Database
from daydo_kernel import BadRequest
from daydo_kernel.testing import ManualClock
from daydo_quota import (
    Account,
    BadAccounts,
    BadPolicy,
    Balance,
    ChargeExceedsHold,
    HoldCancelled,
    HoldConfirmed,
    HoldOpen,
    InsufficientQuota,
    Ledger,
)
from daydo_quota.asgi import ASGIApp, Message, Receive, Scope, Send, held, hold_request, request_key, settling
from daydo_quota.testing import check_books

pytestmark = pytest.mark.dialect("sqlite")

CREDITS = Account("acme", "u_7", "credits")
CAP = Account("acme", "u_7", "daily")
LENGTH = (b"content-length", b"5")
LAST = {"type": "http.response.body", "body": b"hello", "more_body": False}

Handler = Callable[[Scope, Send], Awaitable[None]]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def ledger(db: Database, clock: ManualClock) -> AsyncIterator[Ledger]:
    async with Ledger(db, clock=clock) as ledger:
        await ledger.grant(CREDITS, 10, key="order")
        yield ledger
    await check_books(db)


def costing(ledger: Ledger, handler: Handler, **options: Any) -> ASGIApp:
    """An application whose every request costs up to four credits."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await hold_request(scope, ledger, [(CREDITS, 4)], **{"key": "task", **options})
        await handler(scope, send)

    return settling(app)


class Seen(list[tuple[Message, Balance]]):
    """What a client has received so far, each with the balance at that moment."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def ask(self, app: ASGIApp) -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            self.append((message, await self.ledger.balance(CREDITS)))

        await app({"type": "http", "method": "POST"}, receive, send)

    @property
    def status(self) -> int:
        return int(self[0][0]["status"])

    @property
    def balances(self) -> list[Balance]:
        return [balance for _, balance in self]


@pytest.fixture
def seen(ledger: Ledger) -> Seen:
    return Seen(ledger)


def start(status: int, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def chunk(text: bytes) -> Message:
    return {"type": "http.response.body", "body": text, "more_body": True}


def plain(status: int) -> Handler:
    async def handler(scope: Scope, send: Send) -> None:
        await send(start(status) if status in (204, 304) else start(status, LENGTH))
        await send(LAST)

    return handler


HELD, FREE, PAID = Balance(available=6, reserved=4), Balance(available=10), Balance(available=6, spent=4)


@pytest.mark.parametrize("status", [200, 201, 204, 303, 304])
async def test_a_client_that_reads_success_has_paid(ledger: Ledger, seen: Seen, status: int) -> None:
    """The confirm is committed before the first byte, so a client that looks at once sees it."""
    await seen.ask(costing(ledger, plain(status)))
    assert seen.status == status
    assert seen.balances == [PAID, PAID]


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
async def test_a_client_that_reads_an_error_has_its_units(ledger: Ledger, seen: Seen, status: int) -> None:
    """They are back before the first byte."""
    await seen.ask(costing(ledger, plain(status)))
    assert seen.status == status
    assert seen.balances == [FREE, FREE]


async def test_an_exception_returns_everything_and_goes_on(ledger: Ledger, seen: Seen) -> None:
    """Whatever renders errors outside of this finds the exception it expects."""

    async def fails(scope: Scope, send: Send) -> None:
        held(scope).charge = 3
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await seen.ask(costing(ledger, fails, broken_stream="charge"))
    assert await ledger.balance(CREDITS) == FREE


async def test_a_handler_that_never_answers_is_not_paid(ledger: Ledger, seen: Seen) -> None:
    """It returned without an answer; the server will say 500."""

    async def forgets(scope: Scope, send: Send) -> None:
        return None

    await seen.ask(costing(ledger, forgets))
    assert await ledger.balance(CREDITS) == FREE


async def test_a_cancelled_request_returns_everything(ledger: Ledger, seen: Seen) -> None:
    """A server that stops, or a time limit around the handler."""
    inside = asyncio.Event()

    async def hangs(scope: Scope, send: Send) -> None:
        inside.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(seen.ask(costing(ledger, hangs)))
    await inside.wait()
    assert await ledger.balance(CREDITS) == HELD
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await ledger.balance(CREDITS) == FREE


async def test_a_handler_charges_less(ledger: Ledger, seen: Seen) -> None:
    """What it sets ``charge`` to."""

    async def cheap(scope: Scope, send: Send) -> None:
        held(scope).charge = 1
        await plain(200)(scope, send)

    await seen.ask(costing(ledger, cheap))
    assert seen.balances == [Balance(available=9, spent=1)] * 2


async def test_a_refused_confirm_is_what_the_client_reads(ledger: Ledger, seen: Seen, clock: ManualClock) -> None:
    """It was promised no success yet: the refusal takes the answer's place, in the envelope."""

    async def slow(scope: Scope, send: Send) -> None:
        clock.advance(60)
        await plain(200)(scope, send)

    await seen.ask(costing(ledger, slow, ttl_s=30))
    assert seen.status == 409
    assert json.loads(seen[1][0]["body"])["error"] == "quota.hold_expired"
    assert len(seen) == 2
    assert await ledger.balance(CREDITS) == FREE


async def test_a_stream_begins_at_once_and_is_charged_before_its_last_byte(ledger: Ledger, seen: Seen) -> None:
    """Its beginning does not wait for the first chunk, and its units stay held as long as it lasts."""

    async def streams(scope: Scope, send: Send) -> None:
        await send(start(200))
        assert len(seen) == 1
        await send(chunk(b"he"))
        await send(chunk(b"llo"))
        held(scope).charge = 3
        await send({"type": "http.response.body"})

    await seen.ask(costing(ledger, streams))
    assert seen.balances == [HELD, HELD, HELD, Balance(available=7, spent=3)]


def breaking(*, by_exception: bool, charge: int | None = None, capture: int = 0) -> Handler:
    """A stream that ends after its first chunk: it raises, or returns as frameworks do once the client has gone."""

    async def handler(scope: Scope, send: Send) -> None:
        await send(start(200))
        await send(chunk(b"he"))
        held(scope).charge = charge
        if capture:
            await held(scope).capture(capture, key="chunk_1")
        if by_exception:
            raise ZeroDivisionError

    return handler


@pytest.mark.parametrize("by_exception", [True, False])
@pytest.mark.parametrize(
    ("capture", "charge", "broken_stream", "spent"),
    [
        (0, None, "cancel", 0),
        (0, 3, "cancel", 0),
        (1, 3, "cancel", 1),
        (0, 3, "charge", 3),
        (1, 2, "charge", 3),
        (0, None, "charge", 0),
        (0, 0, "charge", 0),
        (1, None, "charge", 1),
        (0, 5, "charge", None),
    ],
)
async def test_a_stream_that_breaks_costs_what_was_said_to_be_delivered(
    ledger: Ledger,
    seen: Seen,
    clock: ManualClock,
    by_exception: bool,
    capture: int,
    charge: int | None,
    broken_stream: str,
    spent: int | None,
) -> None:
    """What was captured, and with ``"charge"`` what was metered; more than was held is left to the timeout."""
    app = costing(
        ledger,
        breaking(by_exception=by_exception, charge=charge, capture=capture),
        broken_stream=broken_stream,
        ttl_s=30,
    )
    try:
        await seen.ask(app)
    except ZeroDivisionError:
        assert by_exception
    if spent is None:
        assert await ledger.balance(CREDITS) == HELD
        clock.advance(30)
    assert await ledger.balance(CREDITS) == Balance(available=10 - (spent or 0), spent=spent or 0)


async def test_a_stream_whose_confirm_is_refused_never_ends(ledger: Ledger, seen: Seen) -> None:
    """No last byte: the client knows that it has not got everything."""

    async def streams(scope: Scope, send: Send) -> None:
        await send(start(200))
        held(scope).charge = 5
        await send({"type": "http.response.body"})

    with pytest.raises(ChargeExceedsHold):
        await seen.ask(costing(ledger, streams))
    assert [message["type"] for message, _ in seen] == ["http.response.start"]


async def test_a_second_request_under_the_key_does_no_work(ledger: Ledger, seen: Seen) -> None:
    """While the first one works, after it has succeeded, and after it has failed; the books do not move."""
    worked = []

    async def first(scope: Scope, send: Send) -> None:
        with pytest.raises(HoldOpen):
            await Seen(ledger).ask(costing(ledger, works))
        assert await ledger.balance(CREDITS) == HELD
        await plain(200)(scope, send)

    async def works(scope: Scope, send: Send) -> None:
        worked.append(1)
        await plain(500)(scope, send)

    await seen.ask(costing(ledger, first))
    with pytest.raises(HoldConfirmed):
        await seen.ask(costing(ledger, works))
    assert await ledger.balance(CREDITS) == PAID
    await seen.ask(costing(ledger, works, key="fails"))
    with pytest.raises(HoldCancelled):
        await seen.ask(costing(ledger, works, key="fails"))
    assert worked == [1]


async def test_an_application_that_answers_202_meanwhile_settles_nothing_of_the_first(
    ledger: Ledger, seen: Seen
) -> None:
    """The first request's hold is its own, whatever the second one is told."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(HoldOpen):
            await hold_request(scope, ledger, [(CREDITS, 4)], key="task")
        with pytest.raises(KeyError):
            held(scope)
        await plain(202)(scope, send)

    async def first(scope: Scope, send: Send) -> None:
        second = Seen(ledger)
        await second.ask(settling(app))
        assert second.balances == [HELD, HELD]
        assert await ledger.balance(CREDITS) == HELD
        held(scope).charge = 1
        await plain(200)(scope, send)

    await seen.ask(costing(ledger, first))
    assert seen.balances == [Balance(available=9, spent=1)] * 2


@pytest.mark.parametrize("kind", ["pathsend", "zerocopysend"])
async def test_a_file_that_the_server_sends_is_charged_before_it(ledger: Ledger, seen: Seen, kind: str) -> None:
    """Its message is the last one; and where the charge is refused, the file is not sent."""
    file = {"type": f"http.response.{kind}"}

    async def sends(scope: Scope, send: Send) -> None:
        await send(start(200, LENGTH))
        await send(file)

    async def sends_what_costs_more(scope: Scope, send: Send) -> None:
        held(scope).charge = 5
        await sends(scope, send)

    await seen.ask(costing(ledger, sends))
    assert seen.balances == [PAID, PAID]
    refused = Seen(ledger)
    await refused.ask(costing(ledger, sends_what_costs_more, key="dear"))
    assert refused.status == 422
    assert file not in [message for message, _ in refused]


async def test_an_answer_in_chunks_is_charged_before_its_last_byte(ledger: Ledger, seen: Seen) -> None:
    """Its Content-Length tells which chunk that is in; a client that hangs up after it has paid."""

    async def chunks(scope: Scope, send: Send) -> None:
        await send(start(200, LENGTH))
        await send(chunk(b"he"))
        await send(chunk(b"llo"))
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await seen.ask(costing(ledger, chunks))
    assert seen.balances == [HELD, HELD, PAID]
    assert await ledger.balance(CREDITS) == PAID


@pytest.mark.parametrize("begun", [True, False])
async def test_after_a_refusal_nothing_of_the_answer_is_sent(ledger: Ledger, seen: Seen, begun: bool) -> None:
    """A handler that goes on, whatever was raised, cannot finish what was not paid."""

    async def goes_on(scope: Scope, send: Send) -> None:
        held(scope).charge = 5
        await send(start(200, LENGTH))
        if begun:
            await send(chunk(b"he"))
        with pytest.raises(ChargeExceedsHold) if begun else nullcontext():
            await send(chunk(b"llo" if begun else b"hello"))
        await send({"type": "http.response.body"})

    await seen.ask(costing(ledger, goes_on))
    assert seen.status == (200 if begun else 422)
    assert len(seen) == 2
    assert b"llo" not in seen[1][0]["body"]


def asked(*keys: bytes, method: str = "POST", path: str = "/pictures/1") -> Scope:
    return {"method": method, "path": path, "headers": [(b"idempotency-key", key) for key in keys]}


def test_a_requests_key_is_scoped_to_who_asks_and_what_for() -> None:
    """The same header of another owner, method or path names another operation; without it every request does."""
    key = request_key(asked(b"k-1"), "acme", "u_7")
    assert key == request_key(asked(b"k-1"), "acme", "u_7")
    others = [
        request_key(asked(b"k-1"), "acme", "u_8"),
        request_key(asked(b"k-1"), "other", "u_7"),
        request_key(asked(b"k-1", method="PUT"), "acme", "u_7"),
        request_key(asked(b"k-1", path="/pictures/2"), "acme", "u_7"),
        request_key(asked(b"k-1", path="/\udcff"), "acme", "u_7"),  # no UTF-8, as some servers tell it
        request_key(asked(b"k-2"), "acme", "u_7"),
        request_key(asked(), "acme", "u_7"),
        request_key(asked(), "acme", "u_7"),
    ]
    assert len({key, *others}) == 9


@pytest.mark.parametrize("keys", [[b""], [b"a b"], ["é".encode()], [b"k" * 65], [b"k\n"], [b"a", b"a"]])
def test_a_header_that_is_no_key_is_the_clients_fault(keys: list[bytes]) -> None:
    """It is told which header."""
    with pytest.raises(BadRequest) as refused:
        request_key(asked(*keys), "acme", "u_7")
    assert refused.value.fields[0].field == "Idempotency-Key"


async def test_several_units_are_held_all_or_none(ledger: Ledger, seen: Seen) -> None:
    """And each has its charge, by its name."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await hold_request(scope, ledger, [(CREDITS, 4), (CAP, 1)], key="both")
        with pytest.raises(KeyError, match="credits"):
            held(scope)
        held(scope, "credits").charge = 2
        await plain(200)(scope, send)

    with pytest.raises(InsufficientQuota):
        await seen.ask(settling(app))
    assert await ledger.balance(CREDITS) == FREE
    await ledger.grant(CAP, 1, key="today")
    await seen.ask(settling(app))
    assert seen.balances == [Balance(available=8, spent=2)] * 2
    assert await ledger.balance(CAP) == Balance(spent=1)


async def test_two_accounts_of_one_unit_are_refused_before_anything_is_held(ledger: Ledger, seen: Seen) -> None:
    """``held(scope, "credits").charge`` could only be one of theirs, and the other would be charged in full."""
    teams = Account("acme", "team_1", "credits")
    await ledger.grant(teams, 10, key="team")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await hold_request(scope, ledger, [(CREDITS, 4), (CAP, 1), (teams, 4)], key="both")

    await ledger.grant(CAP, 1, key="today")
    with pytest.raises(BadAccounts, match="different units"):
        await seen.ask(settling(app))
    assert [entry.kind for entry in (await ledger.history("acme", "u_7", unit="credits")).items] == ["granted"]


@pytest.mark.parametrize("misspelt", ["overage", "late", "broken_stream"])
async def test_a_misspelt_policy_is_refused_before_the_work(ledger: Ledger, seen: Seen, misspelt: str) -> None:
    """Not after it, when there is nothing left to do but to give the work away."""
    with pytest.raises(BadPolicy) as refused:
        await seen.ask(costing(ledger, plain(200), **{misspelt: "avaliable"}))
    assert refused.value.field == misspelt
    assert (await ledger.history("acme", "u_7")).items[0].kind == "granted"
    assert seen == []


async def test_of_a_broken_stream_only_what_was_metered_is_charged(ledger: Ledger, seen: Seen) -> None:
    """A unit whose charge nobody has set was not delivered."""
    await ledger.grant(CAP, 1, key="today")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await hold_request(scope, ledger, [(CREDITS, 4), (CAP, 1)], key="both", broken_stream="charge")
        held(scope, "credits").charge = 2
        await send(start(200))

    await seen.ask(settling(app))
    assert await ledger.balance(CREDITS) == Balance(available=8, spent=2)
    assert await ledger.balance(CAP) == Balance(available=1)


async def test_a_hold_that_nothing_would_settle_is_not_made(ledger: Ledger, seen: Seen) -> None:
    """Without the middleware, or a second time in a request: a mistake of the programmer's, told at once."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await hold_request(scope, ledger, [(CREDITS, 4)], key="one")
        await hold_request(scope, ledger, [(CREDITS, 4)], key="two")

    with pytest.raises(RuntimeError, match="settling"):
        await seen.ask(app)
    with pytest.raises(RuntimeError, match="one call"):
        await seen.ask(settling(app))
    assert await ledger.balance(CREDITS) == FREE


async def test_a_request_that_holds_nothing_passes_through(ledger: Ledger, seen: Seen) -> None:
    """Also one that is no HTTP request."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(KeyError):
            held(scope)
        if scope["type"] == "http":
            await plain(200)(scope, send)

    await seen.ask(settling(app))
    assert [message["type"] for message, _ in seen] == ["http.response.start", "http.response.body"]
    await settling(app)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]

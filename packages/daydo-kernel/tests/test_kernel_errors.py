"""Errors carry their own number, name and words."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from daydo_kernel import DaydoError, Draining, FieldError, KernelError, NotFound, NotStarted, declared_errors


class ShopError(DaydoError):
    """A family, as a user of the library declares it."""


class ShopClosed(
    ShopError,
    code=40980,
    name="shop.closed",
    zh="{shop} 已打烊，{hours} 小时后开门。",
    en="{shop} is closed; come back in {hours} hours.",
    retryable=True,
):
    shop: str
    hours: int


def refuse() -> None:
    raise ShopClosed(shop="Tea", hours=3, retry_after_s=10_800)


def test_facts_become_attributes_and_words() -> None:
    """The facts given to an error are its attributes and fill both texts; str() is the English one."""
    error = ShopClosed(shop="Tea", hours=3)
    assert (error.shop, error.hours) == ("Tea", 3)
    assert str(error) == error.text("en-GB") == "Tea is closed; come back in 3 hours."
    assert error.text("zh-CN") == error.text("") == error.text("fr") == "Tea 已打烊，3 小时后开门。"


def test_facts_that_no_text_names_are_for_the_log() -> None:
    """str() tells the operator what the client is not told."""
    error = ShopClosed(shop="Tea", hours=3, cause="flood")
    assert str(error) == "Tea is closed; come back in 3 hours. (cause=flood)"
    assert "flood" not in error.text("en") + error.text("zh-CN")


def test_number_holds_status() -> None:
    """The HTTP status is the number without its last two digits."""
    assert (ShopClosed.code, ShopClosed(shop="", hours=0).status) == (40980, 409)


def test_missing_fact_is_the_programmers_mistake() -> None:
    """An error raised without one of its facts says which one is missing."""
    with pytest.raises(TypeError, match="ShopClosed needs the fact 'hours'"):
        ShopClosed(shop="Tea")


def test_family_is_not_raised() -> None:
    """A family has no number, so it cannot be raised, only caught."""
    with pytest.raises(TypeError, match="family"):
        ShopError()
    with pytest.raises(ShopError):
        refuse()


def test_braces_in_facts_are_harmless() -> None:
    """What a user typed is never a template."""
    assert str(NotStarted(part="{code.__class__} {0}")).startswith("{code.__class__} {0} is not running")


def test_survives_pickling() -> None:
    """An error keeps class, facts, fields and waiting time through pickle."""
    fields = (FieldError("photo", "缺少", "missing"),)
    twin = pickle.loads(pickle.dumps(ShopClosed(shop="Tea", hours=3, retry_after_s=1.5, fields=fields)))
    assert isinstance(twin, ShopClosed)
    assert (twin.shop, twin.hours, twin.retry_after_s, twin.fields) == ("Tea", 3, 1.5, fields)


def test_survives_a_process_pool() -> None:
    """An error raised in a worker process arrives as itself."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        future = pool.submit(_fail_in_worker)
        with pytest.raises(NotStarted) as caught:
            future.result()
    assert caught.value.part == "Ledger"


def _fail_in_worker() -> None:
    raise NotStarted(part="Ledger")


def test_declaration_is_complete() -> None:
    """Number, name and both texts are declared together."""
    with pytest.raises(TypeError, match="declared together"):

        class Nameless(ShopError, code=40981, zh="错", en="wrong"):
            pass


def test_number_is_an_http_error() -> None:
    """A number outside 4xx and 5xx is refused at import."""
    with pytest.raises(TypeError, match="not an HTTP error status"):

        class Fine(ShopError, code=20081, name="shop.fine", zh="好", en="fine"):
            pass


def test_both_texts_name_the_same_facts() -> None:
    """A text that forgets a fact is refused at import."""
    with pytest.raises(TypeError, match="different facts"):

        class Forgetful(ShopError, code=40982, name="shop.forgetful", zh="{shop} 错", en="wrong"):
            pass


@pytest.mark.parametrize(("code", "name"), [(40980, "shop.other"), (40983, "shop.closed")])
def test_number_and_name_are_unique(code: int, name: str) -> None:
    """Two errors never share a number or a name; the message says who has it."""
    with pytest.raises(TypeError, match=r"is taken by .*ShopClosed"):

        class Copy(ShopError, code=code, name=name, zh="错", en="wrong"):
            pass


@pytest.mark.parametrize("fact", ["code", "name", "status", "facts", "args", "retry_after_s"])
def test_fact_does_not_hide_an_attribute(fact: str) -> None:
    """A fact called like one of the error's own attributes is refused at import."""
    with pytest.raises(TypeError, match=f"fact '{fact}'"):
        type("Shadow", (ShopError,), {}, code=40984, name="shop.shadow", zh=f"{{{fact}}}", en=f"{{{fact}}}")


def test_declared_errors_come_in_order() -> None:
    """The reference page lists errors by number, families left out."""
    errors = declared_errors()
    codes = [error.code for error in errors]
    assert codes == sorted(set(codes))
    assert {NotFound, Draining, ShopClosed} <= set(errors)
    assert not {DaydoError, KernelError, ShopError} & set(errors)

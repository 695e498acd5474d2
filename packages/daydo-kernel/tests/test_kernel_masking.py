"""Personal data and secrets do not survive redaction."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_kernel import mask_email, mask_id_card, mask_phone, mask_token, redact, redact_text

phones = st.from_regex(r"1[3-9][0-9]{9}", fullmatch=True)
id_cards = st.from_regex(r"[1-9][0-9]{16}[0-9X]", fullmatch=True)
emails = st.from_regex(r"[a-z][a-z0-9.+-]{2,12}[a-z0-9]@[a-z0-9]{1,10}(\.[a-z]{2,5}){1,2}", fullmatch=True)
tokens = st.from_regex(r"eyJ[A-Za-z0-9_-]{10,40}\.[A-Za-z0-9_-]{10,40}\.[A-Za-z0-9_-]{10,40}", fullmatch=True)
# What may stand around a number in a sentence: anything but digits and letters of its own alphabet.
around = st.text(st.characters(exclude_categories=["Cs", "N", "L"], exclude_characters="@.+-_"), max_size=10)


def test_masks_keep_what_support_needs() -> None:
    """A masked value can still be told from another by the person who owns it."""
    assert mask_phone("13812345678") == "138****5678"
    assert mask_phone("+8613812345678") == "+86138****5678"
    assert mask_email("zhang.san@example.cn") == "z***@example.cn"
    assert mask_id_card("11010519491231002X") == "110***********002X"
    assert mask_token("eyJhbGciOiJFZERTQSJ9") == "eyJh***"


@pytest.mark.parametrize("mask", [mask_phone, mask_email, mask_id_card, mask_token])
@pytest.mark.parametrize("value", ["", "1", "short"])
def test_what_does_not_fit_is_hidden_whole(mask: Any, value: str) -> None:
    """A value too short for its kind is hidden altogether, never shown."""
    assert mask(value) == "***"


@given(around, phones, around)
def test_no_phone_survives(before: str, phone: str, after: str) -> None:
    """Wherever a mobile number stands in a text, its middle is gone."""
    assert redact_text(f"{before}{phone}{after}") == f"{before}{mask_phone(phone)}{after}"


@pytest.mark.parametrize(
    "text", ["+86 138 1234 5678", "138-1234-5678", "008613812345678", "+86-13812345678", "手机13812345678号"]
)
def test_phones_as_people_write_them(text: str) -> None:
    """Country codes, spaces and dashes do not carry a number past the filter."""
    assert re.sub(r"\D", "", redact_text(text))[-7:] != "2345678"
    assert redact_text(text) != text


@given(around, id_cards, around)
def test_no_id_card_survives(before: str, number: str, after: str) -> None:
    """An id card number is masked as a whole, although a phone number may hide inside its digits."""
    assert redact_text(f"{before}{number}{after}") == f"{before}{mask_id_card(number)}{after}"


@given(around, emails, around)
def test_no_email_survives(before: str, email: str, after: str) -> None:
    """Of an address only the first letter and the domain remain."""
    assert email.partition("@")[0] not in redact_text(f"{before} {email} {after}")


@given(tokens)
def test_no_token_survives(token: str) -> None:
    """Neither a bare JWT nor one after Bearer is readable."""
    for text in (token, f"Authorization: Bearer {token}", f"got {token}!"):
        assert token[8:] not in redact_text(text)


def test_opaque_bearer_tokens_go_too() -> None:
    """Any credential after Bearer is masked, also one that is no JWT."""
    assert "s3cr3t" not in redact_text("Authorization: Bearer abcs3cr3tabcdef")


@pytest.mark.parametrize("text", ["order_1381234567", "2023-11-14T22:13:20", "1700000000123456", "a@b", "v1.2.3"])
def test_ordinary_text_stays(text: str) -> None:
    """Ids, times and versions are not mistaken for personal data."""
    assert redact_text(text) == text


@given(phones, st.recursive(st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_redaction_reaches_any_depth(phone: str, other: Any) -> None:
    """A number nested in lists, tuples, keys and values is found."""
    value = {"a": [other, (phone, {"b": f"call {phone}", phone: 1})]}
    assert phone not in repr(redact(value))


@pytest.mark.parametrize(
    "key", ["password", "newPassword", "access_token", "Authorization", "apiKey", "api_key", "wx_session_key", "SECRET"]
)
def test_secrets_are_hidden_by_their_name(key: str) -> None:
    """Whatever stands under a name that sounds like a secret is hidden, of any type."""
    assert redact({key: ["plain"], "other": 1}) == {key: "***", "other": 1}


def test_redaction_copies() -> None:
    """The caller's own value is not changed."""
    value = {"phones": ["13812345678"]}
    redact(value)
    assert value == {"phones": ["13812345678"]}


@pytest.mark.parametrize(
    "text", ["a-" * 50_000, "a." * 50_000, "+" * 100_000, "1" * 100_000, "eyJ" * 33_000, "a@" * 50_000]
)
def test_hostile_text_costs_linear_time(text: str) -> None:
    """Text made to confuse the patterns is read in one pass."""
    started = time.process_time()
    redact_text(text)
    assert time.process_time() - started < 1

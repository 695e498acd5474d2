"""msgspec's refusals become words for people, in both languages."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from daydo_kernel.fields import field_error


class Order(msgspec.Struct, forbid_unknown_fields=True):
    sku: Annotated[str, Meta(min_length=2, max_length=4, pattern="^[a-z]+$")]
    count: Annotated[int, Meta(ge=1, le=9)] = 1
    kind: Literal["gift", "sale"] = "sale"


@pytest.mark.parametrize(
    ("body", "field", "zh", "en"),
    [
        ({}, "sku", "缺少必填字段", "This field is required"),
        ({"sku": "ab", "colour": 1}, "colour", "未知字段", "This field is not known here"),
        ({"sku": "a"}, "body", "长度不得少于 2", "Must be at least 2 long"),
        ({"sku": "abcde"}, "body", "长度不得超过 4", "Must be at most 4 long"),
        ({"sku": "AB"}, "body", "格式不正确", "Is not of the right form"),
        ({"sku": "ab", "count": 0}, "body", "不得小于 1", "Must be at least 1"),
        ({"sku": "ab", "count": 10}, "body", "不得大于 9", "Must be at most 9"),
        ({"sku": "ab", "kind": "loan"}, "body", "取值无效：'loan'", "Is not one of the allowed values: 'loan'"),
        ({"sku": 5}, "body", "类型应为 str，实际为 int", "Must be str, not int"),
    ],
)
def test_every_rule_has_words(body: object, field: str, zh: str, en: str) -> None:
    """Each kind of refusal names the field and says in two languages what is wrong with it."""
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(body, Order)
    message = str(caught.value).partition(" - at ")[0]
    assert field_error(message).field in (field, "body")
    assert (field_error(message).zh, field_error(message).en) == (zh, en)


def test_broken_json_is_said_plainly() -> None:
    """A body that is no JSON at all is said to be that."""
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(b"{")
    assert field_error(str(caught.value)).en == "Is not valid JSON"


def test_path_and_name_join() -> None:
    """A field missing inside another is named by its whole path."""
    assert field_error("Object missing required field `sku`", "items[2]").field == "items[2].sku"
    missing = field_error("Missing required header parameter 'idempotency-key' for path /api/v1/grants")
    assert (missing.field, missing.en) == ("idempotency-key", "This field is required")


def test_unknown_refusals_keep_their_words() -> None:
    """A refusal without a rule still names its field."""
    assert field_error("Odd", "items[0]").field == "items[0]"
    assert field_error("Odd").field == "body"

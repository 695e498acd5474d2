"""A configuration is never wrong once it exists."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from daydo_kernel import Config


class RetryConfig(Config, frozen=True, kw_only=True):
    attempts: Annotated[int, Meta(ge=1, le=10)] = 3


class ShopConfig(Config, frozen=True, kw_only=True):
    hold_ttl_s: Annotated[float, Meta(gt=0, le=86_400)] = 300.0
    name: Annotated[str, Meta(min_length=1)] = "shop"
    retry: RetryConfig = RetryConfig()


def test_defaults_hold() -> None:
    """Every field has a default, so the bare class is a configuration."""
    assert ShopConfig() == ShopConfig(hold_ttl_s=300.0, name="shop", retry=RetryConfig(attempts=3))


@pytest.mark.parametrize("value", [0, -1, 86_401, float("nan"), "300", None])
def test_bounds_hold_on_construction(value: Any) -> None:
    """A value outside its bounds is refused with the class and the field's name."""
    with pytest.raises(ValueError, match=r"ShopConfig\.hold_ttl_s: "):
        ShopConfig(hold_ttl_s=value)


def test_bounds_hold_while_decoding() -> None:
    """What an environment or a file says obeys the same bounds."""
    assert msgspec.convert({"retry": {"attempts": 2}}, ShopConfig).retry.attempts == 2
    with pytest.raises(msgspec.ValidationError, match="attempts"):
        msgspec.convert({"retry": {"attempts": 11}}, ShopConfig)


def test_unknown_fields_are_refused() -> None:
    """A misspelt name is an error, not a default."""
    with pytest.raises(msgspec.ValidationError, match="hold_ttl"):
        msgspec.convert({"hold_ttl": 5}, ShopConfig)
    with pytest.raises(TypeError):
        ShopConfig(hold_ttl=5)  # type: ignore[call-arg]


def test_frozen() -> None:
    """A configuration can be shared because nobody can change it."""
    with pytest.raises(AttributeError):
        ShopConfig().name = "other"  # type: ignore[misc]


def test_replaced_fields_are_checked_too() -> None:
    """`msgspec.structs.replace` makes a new configuration and checks it."""
    with pytest.raises(ValueError, match="attempts"):
        msgspec.structs.replace(RetryConfig(), attempts=0)

"""The base of every configuration struct: frozen, keyword-only, and never wrong once it exists."""

from __future__ import annotations

from typing import get_type_hints

import msgspec


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Subclass it, give every field a unit in its name and a default, and bounds by ``Annotated``::

        class QuotaConfig(Config, frozen=True, kw_only=True):
            hold_ttl_s: Annotated[float, Meta(gt=0, le=86_400)] = 300.0

    msgspec checks constraints only while decoding; this base checks them on construction too.

    Raises:
        ValueError: a value is outside its bounds; the message names class, field and bound.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, Config):
                continue
            try:
                msgspec.convert(value, hints[name])
            except msgspec.ValidationError as error:
                raise ValueError(f"{type(self).__name__}.{name}: {error}") from None

"""A value as Redis keeps it: sixteen digits, then MessagePack. Typed both ways, and never pickle.

The digits are the time at which the value's load began, in µs of Redis' clock: what the scripts compare. Behind them
stands a :class:`Record`. What a loader returns takes the way through these bytes at once, so a value of the wrong type
fails where it was loaded, and a miss gives the same as a hit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import inspect

T = TypeVar("T")

DIGITS = 16
_IMMUTABLE = (
    *(inspect.NoneType, inspect.BoolType, inspect.IntType, inspect.FloatType, inspect.StrType, inspect.BytesType),
    *(inspect.DateTimeType, inspect.DateType, inspect.TimeType, inspect.TimeDeltaType, inspect.UUIDType),
    *(inspect.DecimalType, inspect.EnumType, inspect.LiteralType),
)


def digits(us: int) -> bytes:
    """``us`` as it stands in front of a record."""
    return b"%0*d" % (DIGITS, us)


class Record(msgspec.Struct, Generic[T], array_like=True, frozen=True, gc=False):
    """``value`` is None for "there is no such thing". Times are µs of Redis' clock.

    Attributes:
        fresh_us: until then it is served without a question.
        dead_us: from then on it is nothing.
        took_s: how long its load took.
        tags: with whose invalidation it ends.
    """

    fresh_us: int
    dead_us: int
    took_s: float
    tags: tuple[str, ...]
    value: T | None


class Codec(Generic[T]):
    """Values of one type to bytes (the part behind the digits) and back.

    ``decode`` raises ``msgspec.DecodeError`` for what is no record of this type. ``shares``: nothing of that type can
    change, so all callers may have the same object.

    Raises:
        TypeError: msgspec does not know the type.
    """

    def __init__(self, type_: Any) -> None:
        decoder: Any = msgspec.msgpack.Decoder(Record[type_ | None])
        # The library's own methods: every hit in Redis decodes.
        self.decode: Callable[[bytes], Record[T]] = decoder.decode
        self.encode: Callable[[Record[T]], bytes] = msgspec.msgpack.Encoder().encode
        self.shares = _is_immutable(inspect.type_info(type_), ())


def _is_immutable(info: inspect.Type, above: tuple[object, ...]) -> bool:
    if isinstance(info, inspect.StructType):
        if info.cls in above:
            return True  # said by whoever is above
        frozen: bool = info.cls.__struct_config__.frozen
        return frozen and all(_is_immutable(field.type, (*above, info.cls)) for field in info.fields)
    if isinstance(info, inspect.UnionType):
        return all(_is_immutable(each, above) for each in info.types)
    if isinstance(info, inspect.TupleType):
        return all(_is_immutable(each, above) for each in info.item_types)
    if isinstance(info, inspect.VarTupleType | inspect.FrozenSetType):
        return _is_immutable(info.item_type, above)
    return isinstance(info, _IMMUTABLE)

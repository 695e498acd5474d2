"""A function that remembers: ``@cache.cached(ttl_s=60)``."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from hashlib import blake2b
from types import MethodType
from typing import Any, Generic, ParamSpec, TypeVar, cast

import msgspec

from daydo_db import Tx

from .names import KEY_MAX_BYTES
from .space import Space

P = ParamSpec("P")
T = TypeVar("T")

_NAME_MAX = 64
KeyOf = Callable[..., str | int]


class Cached(Generic[P, T]):
    """Called like the function it stands for. ``space`` holds the values.

    The key is made of the arguments as JSON, so they must be plain: text, numbers, dates, Structs, lists of these; what
    is left out counts as its default. For anything else, ``self`` among it, say ``key=`` when decorating.

    Raises (when called):
        TypeError: the arguments do not fit the function, or make no key.
        CacheError: as :meth:`Space.get_or_load`.
    """

    def __init__(self, function: Callable[P, Awaitable[T]], space: Space[Any], key: KeyOf | None) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._signature = inspect.signature(function)
        parameters = self._signature.parameters.values()
        plain = all(each.kind is each.POSITIONAL_OR_KEYWORD for each in parameters)
        self._complete = len(parameters) if plain else -1
        self._key = key
        self.space = space

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        async def load(_: str | int) -> T:
            return await self._function(*args, **kwargs)

        return cast("T", await self.space.get_or_load(self._key_of(args, kwargs), load))

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """As a method. What else it has takes ``self`` first: ``await users.by_id.invalidate(users, 7)``."""
        return self if instance is None else MethodType(self, instance)

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """What the function says of these arguments has changed: :meth:`Space.invalidate`."""
        await self.space.invalidate(self._key_of(args, kwargs))

    async def invalidate_in(self, tx: Tx, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """The same, with the COMMIT of ``tx``."""
        await self.space.invalidate(self._key_of(args, kwargs), tx=tx)

    def _key_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | int:
        if self._key is not None:
            return self._key(*args, **kwargs)
        values: object = args
        if kwargs or len(args) != self._complete:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            values = [*bound.args, bound.kwargs] if bound.kwargs else bound.args
        text = msgspec.json.encode(values, order="deterministic")
        return text.decode() if len(text) <= KEY_MAX_BYTES else blake2b(text, digest_size=32).hexdigest()


def type_of(function: Callable[..., Any]) -> Any:
    """What ``function`` says it returns.

    Raises:
        TypeError: it does not say, or nothing.
    """
    returns = inspect.signature(function, eval_str=True).return_annotation
    if returns in (inspect.Signature.empty, None):
        raise TypeError(f"annotate what {function.__qualname__} returns: its values are stored as that type")
    return returns


def name_of(function: Callable[..., Any]) -> str:
    """A name for the space of ``function``: module and name, the end of it if that is long."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{function.__module__}.{function.__qualname__}")[-_NAME_MAX:]

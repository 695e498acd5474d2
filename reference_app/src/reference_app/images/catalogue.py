"""What clients are shown of the features.

Today they stand in the code: looking them up needs no cache, and this one saves nothing. It is here for the day on
which an administrator edits titles: then a :class:`FeatureSource` reads a table, and nothing else changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

import msgspec

from daydo_cache import Space

from .features import Feature


class FeatureSource(Protocol):
    """Where the features are defined."""

    async def load(self) -> tuple[Feature, ...]:
        """All of them, in the order in which they are shown."""
        ...


class ShippedFeatures:
    """Those of the code, at the configured prices."""

    def __init__(self, features: Iterable[Feature]) -> None:
        self._features = tuple(features)

    async def load(self) -> tuple[Feature, ...]:
        return self._features


class Catalogue:
    """The features of ``source``, through a cache.

    ``shipped`` are what this process can do and charges. Of another release, or at other prices, they have another key:
    during a deploy neither side shows what the other one charges.
    """

    def __init__(self, space: Space[tuple[Feature, ...]], source: FeatureSource, shipped: Iterable[Feature]) -> None:
        self._space = space
        self._source = source
        self._release = hashlib.sha256(msgspec.json.encode(list(shipped))).hexdigest()[:16]

    async def features(self) -> tuple[Feature, ...]:
        """All of them.

        Raises:
            What the source raises, LoadFailed, LoadTimeout: there is no older answer either.
        """
        return await self._space.get_or_load(self._release, self._load) or ()

    async def _load(self, _: str) -> tuple[Feature, ...]:
        return await self._source.load()

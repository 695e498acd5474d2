"""The photo features as data: what each takes, what it costs, and its flow."""

from __future__ import annotations

from typing import Any

import msgspec

from daydo_pipeline import Cost, Flow

from .config import ImagesConfig

UNIT = "credits"
PROVIDER = "local"


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """``inputs`` are photos by name, all required; ``params`` are fractions of the photo's side, 0 to 0.5."""

    name: str
    title_zh: str
    title_en: str
    price: int
    inputs: tuple[str, ...] = ("photo",)
    params: tuple[str, ...] = ()

    def title(self, locale: str) -> str:
        return self.title_en if locale.startswith("en") else self.title_zh


def features_of(config: ImagesConfig) -> dict[str, Feature]:
    """All features by name, at the prices of ``config``."""
    features = (
        Feature(name="cutout", title_zh="抠图", title_en="Cut-out", price=config.cutout_credits),
        Feature(name="erase", title_zh="消除", title_en="Erase", price=config.erase_credits, inputs=("photo", "mask")),
        Feature(
            name="expand",
            title_zh="扩图",
            title_en="Expand",
            price=config.expand_credits,
            params=("left", "top", "right", "bottom"),
        ),
    )
    return {feature.name: feature for feature in features}


def flow_of(feature: Feature, step_timeout_s: float) -> Flow:
    """One step, done by the local provider, which knows it by the feature's name."""
    flow = Flow(feature.name, version=1, quota=Cost(UNIT, feature.price) if feature.price else None)
    photos: dict[str, Any] = {name: flow.input(name) for name in feature.inputs}
    params = {name: flow.input(name, default=0.0) for name in feature.params}
    flow.step(feature.name, provider=PROVIDER, params=params, timeout_s=step_timeout_s, **photos)
    return flow

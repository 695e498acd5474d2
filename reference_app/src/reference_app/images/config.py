"""What the photo features cost and how large things may be."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from daydo_kernel import Config

Credits = Annotated[int, Meta(ge=0, le=1_000_000)]


class ImagesConfig(Config, frozen=True, kw_only=True):
    """Prices in credits; sizes in bytes; intervals in seconds."""

    cutout_credits: Credits = 5
    erase_credits: Credits = 8
    expand_credits: Credits = 10
    upload_bytes_max: Annotated[int, Meta(ge=1_024, le=100 * 1024 * 1024)] = 10 * 1024 * 1024
    step_timeout_s: Annotated[float, Meta(gt=0, le=600)] = 60.0
    stream_comment_s: Annotated[float, Meta(gt=0, le=60)] = 15.0

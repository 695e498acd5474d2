"""What the photo features cost and how large things may be."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from daydo_kernel import Config

Credits = Annotated[int, Meta(ge=0, le=1_000_000)]


class ImagesConfig(Config, frozen=True, kw_only=True):
    """What the features cost, and their bounds.

    Attributes:
        cutout_credits: price of a cut-out; 0 makes it free.
        erase_credits: price of erasing; 0 makes it free.
        expand_credits: price of expanding; 0 makes it free.
        upload_bytes_max: a larger upload is refused.
        step_timeout_s: how long a task's step may take, waiting for a worker included.
        stream_comment_s: a live stream in which nothing happened for so long says that it is still there.
    """

    cutout_credits: Credits = 5
    erase_credits: Credits = 8
    expand_credits: Credits = 10
    upload_bytes_max: Annotated[int, Meta(ge=1_024, le=100 * 1024 * 1024)] = 10 * 1024 * 1024
    step_timeout_s: Annotated[float, Meta(gt=0, le=600)] = 60.0
    stream_comment_s: Annotated[float, Meta(gt=0, le=60)] = 15.0

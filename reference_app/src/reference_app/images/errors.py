"""What can go wrong with a picture, or with the processes that work on it."""

from __future__ import annotations

from daydo_kernel import DaydoError


class ImageError(DaydoError):
    """What an upload, an operation on pictures or a worker may raise."""


class EmptyImage(
    ImageError,
    code=40060,
    name="images.empty",
    zh="文件是空的，请重新选择图片。",
    en="The file is empty; choose a picture and upload it again.",
):
    """0 bytes."""


class BadExpansion(
    ImageError,
    code=40061,
    name="images.bad_expansion",
    zh="扩图参数不正确：left、top、right、bottom 各为 0 到 0.5，且至少一个大于 0。",
    en="left, top, right and bottom are 0 to 0.5 each, and at least one is more than 0.",
):
    """How far a picture is to grow cannot be read, or is nothing at all. ``fields`` says which."""


class ImageTooLarge(
    ImageError,
    code=41360,
    name="images.too_large",
    zh="图片过大：{actual}，上限为 {limit}，请缩小后再上传。",
    en="The picture is too large: {actual} of at most {limit}; make it smaller and try again.",
):
    """More bytes, pixels or pixels on one side than allowed; decided before a pixel is decoded."""

    actual: str
    limit: str


class UnsupportedImage(
    ImageError,
    code=41560,
    name="images.unsupported",
    zh="无法识别的图片，仅支持 JPEG、PNG、WebP（按文件内容判断，与文件名无关）。",
    en="This is not a JPEG, PNG or WebP picture (by its content, whatever its name).",
):
    """The content is no picture of a kind we read."""


class BrokenImage(
    ImageError,
    code=42260,
    name="images.broken",
    zh="图片已损坏或不完整，请重新导出后上传。",
    en="The picture is damaged or incomplete; export it again and upload that.",
):
    """It begins like a picture but cannot be decoded to its end."""


class MaskMismatch(
    ImageError,
    code=42261,
    name="images.mask_mismatch",
    zh="蒙版为 {mask}，与图片 {photo} 的宽高比不一致。",
    en="The mask is {mask}, the picture {photo}: their proportions differ; draw the mask on this picture.",
):
    """The mask was drawn on another picture. ``mask`` and ``photo`` read ``width × height``."""

    mask: str
    photo: str


class EmptyMask(
    ImageError,
    code=42262,
    name="images.empty_mask",
    zh="蒙版没有可擦除的区域，请用白色涂出要擦除的部分。",
    en="The mask marks nothing, or everything; paint white what is to be erased.",
):
    """No pixel of the mask is white enough to mean erase, or none is left to fill from."""


class NothingToCutOut(
    ImageError,
    code=42263,
    name="images.nothing_to_cut_out",
    zh="没有找到可以抠出的主体，请换一张主体清晰的图片。",
    en="Nothing stands out in this picture; try one with a clear subject.",
):
    """A uniform picture, one too small, or one that is all subject."""


class WorkerCrashed(
    ImageError,
    code=50360,
    name="images.worker_crashed",
    zh="图片处理中断，请重试。",
    en="The process working on this picture ended; please try again.",
    retryable=True,
):
    """The worker died under this job (memory, a signal); another one has taken its place."""


class JobTimedOut(
    ImageError,
    code=50361,
    name="images.job_timed_out",
    zh="图片处理超过 {timeout_s} 秒，已停止，请重试。",
    en="Working on this picture took more than {timeout_s} s and was stopped; please try again.",
    retryable=True,
):
    """The job ran into ``ImageWorkersConfig.timeout_s``; its worker was replaced."""

    timeout_s: float


class WorkersBusy(
    ImageError,
    code=50362,
    name="images.workers_busy",
    zh="图片处理繁忙，请稍后重试。",
    en="All image workers are busy; please try again shortly.",
    retryable=True,
):
    """``queue_max`` jobs are waiting already; ``retry_after_s`` says when to come back."""


class ResultNotReady(
    ImageError,
    code=40960,
    name="images.result_not_ready",
    zh="任务当前状态为 {state}，暂无结果。",
    en="The task is {state}; a result is there only once it has succeeded.",
):
    """The result of a task that is not finished, failed or was cancelled."""

    state: str


class StoreFull(
    ImageError,
    code=50760,
    name="images.store_full",
    zh="存储空间不足，请稍后重试。",
    en="There is no room to keep the picture; please try again later.",
    retryable=True,
):
    """The disk of the file store is full."""

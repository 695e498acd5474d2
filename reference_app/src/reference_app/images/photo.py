"""Uploaded pictures: what they are, before a pixel is decoded; and their pixels, whole or not at all.

The order matters. Size, type (by content, never by name) and dimensions are read from the header, so that a
small file that unfolds to gigabytes is refused for the price of a few hundred bytes. Only then is it decoded,
to the end, and turned into what the operations take: upright, 8-bit, RGB or RGBA, in sRGB. Nothing else of the
file survives: no EXIF (where a photo was taken), no profile, no text.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from PIL import Image, ImageCms
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from daydo_kernel import Config

from .errors import BrokenImage, EmptyImage, ImageTooLarge, UnsupportedImage

# Everything Pillow's readers raise on bytes that are not what they seem.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PhotoLimits(Config, frozen=True, kw_only=True):
    """How large a picture may be. ``side_px_max`` is what OpenCV's 16-bit coordinates hold."""

    bytes_max: Annotated[int, Meta(ge=1)] = 10 * 1024 * 1024
    pixels_max: Annotated[int, Meta(ge=1, le=200_000_000)] = 40_000_000
    side_px_max: Annotated[int, Meta(ge=1, le=32_766)] = 32_766


DEFAULT = PhotoLimits()


class PhotoInfo(msgspec.Struct, frozen=True, kw_only=True):
    """``width`` and ``height`` as stored, before the orientation is applied."""

    media_type: str
    width: int
    height: int
    size_bytes: int


def check_photo(photo: Path | bytes, limits: PhotoLimits = DEFAULT) -> PhotoInfo:
    """What the header says; decodes nothing.

    Raises:
        EmptyImage: 0 bytes.
        UnsupportedImage: neither JPEG nor PNG nor WebP.
        ImageTooLarge: more bytes, pixels or pixels on a side than ``limits``.
        BrokenImage: the header is damaged.
    """
    return _open(photo, limits)[0]


def read_photo(photo: Path | bytes, limits: PhotoLimits = DEFAULT) -> Image.Image:
    """The decoded picture (of an animation the first frame), upright, as RGB, or RGBA where it is transparent.

    Raises:
        ImageError: as :func:`check_photo`; ``BrokenImage`` also where the pixels end too early.
    """
    _, image = _open(photo, limits)
    try:
        image.load()
    except _DAMAGE as error:
        raise BrokenImage from error
    upright = _UPRIGHT.get(_orientation(image))
    plain = _eight_bit(image)
    return plain if upright is None else plain.transpose(upright)


def read_mask(mask: Path | bytes, limits: PhotoLimits = DEFAULT) -> Image.Image:
    """A picture as grey values, upright; what is transparent counts as black.

    Raises:
        ImageError: as :func:`read_photo`.
    """
    image = read_photo(mask, limits)
    if image.mode == "RGBA":
        ground = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(ground, image)
    return image.convert("L")


def _open(photo: Path | bytes, limits: PhotoLimits) -> tuple[PhotoInfo, ImageFile]:
    size_bytes = len(photo) if isinstance(photo, bytes) else photo.stat().st_size
    if size_bytes == 0:
        raise EmptyImage
    if size_bytes > limits.bytes_max:
        raise ImageTooLarge(actual=f"{size_bytes / 2**20:.1f} MiB", limit=f"{limits.bytes_max / 2**20:.1f} MiB")
    content = photo if isinstance(photo, bytes) else photo.read_bytes()
    media_type, reader = _kind(content)
    if (canvas := _webp_canvas(content)) is not None:
        _check_size(*canvas, limits)
    # Image.open would warn or raise at limits of its own, process-wide, without saying the dimensions.
    try:
        image = reader(BytesIO(content))
    except _DAMAGE as error:
        raise BrokenImage from error
    _check_size(*image.size, limits)
    return PhotoInfo(media_type=media_type, width=image.width, height=image.height, size_bytes=size_bytes), image


def _kind(content: bytes) -> tuple[str, Callable[[BytesIO], ImageFile]]:
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg", JpegImageFile
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png", PngImageFile
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp", WebPImageFile
    raise UnsupportedImage


def _webp_canvas(content: bytes) -> tuple[int, int] | None:
    """The size an extended WebP claims (RFC 9649 §2.7); libwebp would reserve memory for it on opening."""
    if content[:4] != b"RIFF" or content[12:16] != b"VP8X" or len(content) < 30:
        return None
    return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")


def _check_size(width: int, height: int, limits: PhotoLimits) -> None:
    if width < 1 or height < 1:
        raise BrokenImage
    if width * height > limits.pixels_max:
        raise ImageTooLarge(actual=f"{width} × {height} px", limit=f"{limits.pixels_max / 1e6:g} MP")
    if max(width, height) > limits.side_px_max:
        raise ImageTooLarge(actual=f"{width} × {height} px", limit=f"{limits.side_px_max} px")


def _orientation(image: ImageFile) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:
        return 1  # a camera's broken notes are no reason to refuse its picture


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip instead of scaling
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        transparent = image.convert("RGBA")
        alpha = transparent.getchannel("A")
        colours = _in_srgb(transparent.convert("RGB"), image.info.get("icc_profile"))
        if alpha.getextrema() == (255, 255):
            return colours
        colours.putalpha(alpha)
        return colours
    return _in_srgb(image, image.info.get("icc_profile")).convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours of a wider or printer's space as a screen shows them; without this, dropping the profile fades them."""
    if not profile or image.mode not in ("RGB", "CMYK"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
    except (ImageCms.PyCMSError, *_DAMAGE):
        return image

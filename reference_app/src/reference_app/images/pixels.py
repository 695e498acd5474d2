"""Arrays that are pictures: their types, and making them smaller, larger, softer and whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]  # height × width × 3 or 4 (RGB, RGBA), or height × width (grey)
Mask: TypeAlias = NDArray[np.bool_]  # height × width
Plane: TypeAlias = NDArray[np.float32]  # height × width, or × 3 or 4; 0..1

TILE_PX = 256  # full-size work goes in tiles of this side: floats of a whole 40-megapixel photo take gigabytes


def as_plane(array: object) -> Plane:
    """What OpenCV returned, which its stubs type as an array of anything, as the ``float32`` it is."""
    return np.asarray(array, np.float32)


def as_pixels(picture: object) -> Pixels:
    """The same for ``uint8``; also of a Pillow image."""
    return np.asarray(picture, np.uint8)


def unit(pixels: Pixels) -> Plane:
    """0..255 as 0..1."""
    return as_plane(pixels) / np.float32(255)


def shrink(picture: Pixels, longest_px: int) -> Pixels:
    """``picture`` with its longer side at most ``longest_px``; the shorter stays at least 1."""
    height, width = picture.shape[:2]
    scale = longest_px / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return as_pixels(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def enlarge(plane: Plane, width: int, height: int) -> Plane:
    return as_plane(cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR))


def tiles(rows: slice, columns: slice) -> Iterator[tuple[slice, slice]]:
    """The rectangle in pieces of at most ``TILE_PX`` on either side."""
    for top in range(rows.start, rows.stop, TILE_PX):
        for left in range(columns.start, columns.stop, TILE_PX):
            yield slice(top, min(top + TILE_PX, rows.stop)), slice(left, min(left + TILE_PX, columns.stop))


def part_of_enlarged(plane: Plane, full: tuple[int, int], rows: slice, columns: slice) -> Plane:
    """What ``enlarge`` to ``full`` (height, width) would hold at ``rows`` and ``columns``, without the rest."""
    down, across = plane.shape[0] / full[0], plane.shape[1] / full[1]
    # Centres of pixels meet centres of pixels, hence the halves.
    place = np.array([[across, 0, (columns.start + 0.5) * across - 0.5], [0, down, (rows.start + 0.5) * down - 0.5]])
    size = (columns.stop - columns.start, rows.stop - rows.start)
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return as_plane(cv2.warpAffine(plane, place, size, flags=how, borderMode=cv2.BORDER_REPLICATE))


def mean(plane: Plane, radius: int) -> Plane:
    size = 2 * radius + 1
    return as_plane(cv2.boxFilter(plane, -1, (size, size), borderType=cv2.BORDER_REFLECT))


def grow(mask: Mask, by_px: int) -> Mask:
    """``mask`` grown (or, below 0, shrunk) by a disc; beyond the picture's border it goes on as it is there."""
    size = 2 * abs(by_px) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    change = cv2.dilate if by_px > 0 else cv2.erode
    return np.asarray(change(mask.astype(np.uint8), kernel)) > 0


def fill_in(colour: Plane, known: Mask) -> Plane:
    """``colour`` where ``known``; elsewhere a smooth surface through what is known around.

    Halved again and again until everything is known, then enlarged again under the finer colours and smoothed
    a little at each size: nearly a membrane, in the time of a few blurs.
    """
    weight = known.astype(np.float32)
    return _pull_push(colour * weight[:, :, None], weight)


def _pull_push(total: Plane, weight: Plane) -> Plane:
    height, width = weight.shape
    colour = as_plane(total / np.maximum(weight, 1e-6)[:, :, None])
    if weight.min() > 0 or max(height, width) == 1:
        return colour
    half = ((width + 1) // 2, (height + 1) // 2)
    coarse_total, coarse_weight = (
        as_plane(cv2.resize(plane, half, interpolation=cv2.INTER_AREA)) for plane in (total, weight)
    )
    filled = enlarge(_pull_push(coarse_total, coarse_weight), width, height)
    sure = np.minimum(1, 2 * weight)[:, :, None]
    for _ in range(4):  # lets the surface settle on its rim
        filled = as_plane(sure * colour + (1 - sure) * mean(filled, 1))
    return filled

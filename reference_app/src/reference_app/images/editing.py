"""Erase and expand, without a generative model: honest repairs, no invention.

**Erase** heals. For each marked spot the surroundings are searched for the place whose rim looks most like
the rim of the spot; its texture is copied at full size and its colours are bent to meet the spot's rim on all
sides. Where nothing nearby fits, thin spots (wires, scratches) are inpainted from their rim inwards (Telea,
2004) and wide ones become a smooth surface through their rim, with the photo's own grain: plain, but no
invention. **Expand** mirrors the picture's outer strip outwards and lets it melt away with distance, so that
the new margin carries the scene's colours and light but no second set of things.

Everything here is a pure function of arrays; a picture's transparency is treated as a fourth colour.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import EmptyMask, MaskMismatch
from .pixels import (
    Mask,
    Pixels,
    Plane,
    as_pixels,
    as_plane,
    fill_in,
    grow,
    part_of_enlarged,
    shrink,
    tiles,
    unit,
)

Scalar = TypeVar("Scalar", np.uint8, np.float32)

HEAL_PX = 512  # the search happens on a copy of a spot's surroundings of at most this size
SPOTS_PX = 1024  # spots are told apart on a mask of at most this size
GRAIN_PX = 1024
SPOTS_MAX = 32  # more than these are healed as one
THIN_PX = 6  # half the width of a spot that is inpainted rather than bridged
EXPAND_PX = 768
_FITS = 0.09  # mean difference of two rims (0..1) above which a copy would show
_EVEN = 0.09  # spread of the light (0..1) up to which a place counts as one texture


def fit_mask(mask: Pixels, photo: Pixels) -> Mask:
    """Where the grey picture ``mask`` is white, at the size of ``photo``.

    Raises:
        MaskMismatch: the proportions differ by more than rounding explains.
        EmptyMask: nothing is marked, or everything.
    """
    (mask_height, mask_width), (height, width) = mask.shape[:2], photo.shape[:2]
    slack = max(0.01 * width * mask_height, 1.0 * width, 1.0 * height)
    if abs(mask_width * height - mask_height * width) > slack:
        raise MaskMismatch(mask=f"{mask_width} × {mask_height}", photo=f"{width} × {height}")
    marked = np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)) >= 128
    if not marked.any() or marked.all():
        raise EmptyMask
    return marked


# ---- erase ---------------------------------------------------------------------------------------------


class _Box(NamedTuple):
    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


class _Patch(NamedTuple):
    """What goes over a spot: with ``shift`` the photo that far down and right plus ``plane``, else ``plane``
    and noise of strength ``grain``. ``plane`` is small and covers ``around``.
    """

    around: _Box
    plane: Plane
    shift: tuple[int, int] | None
    grain: float


def erase(photo: Pixels, marked: Mask) -> Pixels:
    """``photo`` without what is ``marked`` (see :func:`fit_mask`); all other pixels stay as they are."""
    # Outlines drawn by hand cut corners, and an object's edge shines into its neighbours.
    margin = max(1, round(max(photo.shape[:2]) / 400))
    labels, boxes = _spots(marked, margin)
    result = photo.copy()
    for spot, box in enumerate(boxes, 1):
        patch = _patch_for(photo, marked, labels == spot, box, margin)
        for part in tiles(*box.area):
            _paste(result, photo, marked, labels == spot, patch, part, margin)
    return result


def _spots(marked: Mask, margin: int) -> tuple[NDArray[np.int32], list[_Box]]:
    """A small map that numbers the separate spots from 1, each with its margin, and their boxes at full size."""
    whole = marked.shape
    covered = shrink(marked.astype(np.uint8) * 255, SPOTS_PX)
    down, across = covered.shape[0] / whole[0], covered.shape[1] / whole[1]
    roomy = grow(covered > 0, ceil(2 * margin * max(down, across)) + 1)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(roomy.astype(np.uint8), connectivity=8)
    if count - 1 > SPOTS_MAX:
        return roomy.astype(np.int32), [_Box(0, 0, *whole)]
    boxes = []
    for left, top, width, height in stats[1:, :4].tolist():
        right, bottom = ceil((left + width) / across), ceil((top + height) / down)
        boxes.append(_Box(int(top / down), int(left / across), min(whole[0], bottom), min(whole[1], right)))
    return labels.astype(np.int32), boxes


def _bounds(mask: Mask) -> _Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return _Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def _patch_for(photo: Pixels, marked: Mask, spots: Mask, box: _Box, margin: int) -> _Patch:
    """Made of what surrounds ``box`` and is not marked, on a small copy."""
    reach = max(24, 2 * (box.bottom - box.top), 2 * (box.right - box.left))
    around = _Box(
        max(0, box.top - reach),
        max(0, box.left - reach),
        min(photo.shape[0], box.bottom + reach),
        min(photo.shape[1], box.right + reach),
    )
    small = shrink(photo[around.area], HEAL_PX)
    size = small.shape[:2]
    scale = (around.bottom - around.top) / size[0], (around.right - around.left) / size[1]
    covered = shrink(marked[around.area].astype(np.uint8) * 255, HEAL_PX)
    hole = grow(covered > 0, ceil(margin / max(scale)))
    if hole.all():
        hole = covered > covered.min()
    spot = hole & _near(spots, marked.shape, around, size)
    colour = unit(small)
    shift = _similar_place(colour, spot if spot.any() else hole, hole)
    if shift is None:
        return _Patch(around, _inpaint(small, hole), None, _grain(photo[around.area], marked[around.area]))
    bend = fill_in(colour - _moved(colour, *shift), ~hole)
    return _Patch(around, bend, (round(shift[0] * scale[0]), round(shift[1] * scale[1])), 0.0)


def _near(small: NDArray[np.bool_], whole: tuple[int, ...], box: _Box, size: tuple[int, ...]) -> Mask:
    """``small``, a map of the ``whole``, at the pixels of a picture of ``size`` that shows ``box``."""
    rows = (box.top + (np.arange(size[0]) + 0.5) * (box.bottom - box.top) / size[0]) * small.shape[0] / whole[0]
    columns = (box.left + (np.arange(size[1]) + 0.5) * (box.right - box.left) / size[1]) * small.shape[1] / whole[1]
    at: Mask = small[rows.astype(np.intp)[:, None], columns.astype(np.intp)[None, :]]
    return at


def _paste(
    result: Pixels,
    photo: Pixels,
    marked: Mask,
    spots: Mask,
    patch: _Patch,
    part: tuple[slice, slice],
    margin: int,
) -> None:
    """The patch over one tile: whole where it is marked, fading out over the margin."""
    rows, columns = part
    above, before = min(rows.start, 3 * margin), min(columns.start, 3 * margin)
    wider = marked[rows.start - above : rows.stop + 3 * margin, columns.start - before : columns.stop + 3 * margin]
    if not wider.any():
        return
    height, width = rows.stop - rows.start, columns.stop - columns.start
    soft = as_plane(cv2.GaussianBlur(grow(wider, margin).astype(np.float32), (0, 0), margin / 2))
    share = np.maximum(soft[above : above + height, before : before + width], marked[part])
    share *= _near(spots, marked.shape, _Box(rows.start, columns.start, rows.stop, columns.stop), (height, width))
    box = patch.around
    inner = slice(rows.start - box.top, rows.stop - box.top), slice(columns.start - box.left, columns.stop - box.left)
    filled = part_of_enlarged(patch.plane, (box.bottom - box.top, box.right - box.left), *inner)
    if patch.shift is not None:
        down = np.clip(np.arange(rows.start, rows.stop) + patch.shift[0], box.top, box.bottom - 1)
        across = np.clip(np.arange(columns.start, columns.stop) + patch.shift[1], box.left, box.right - 1)
        filled += unit(photo[down[:, None], across[None, :]])
    elif patch.grain:
        noise = np.random.default_rng((rows.start, columns.start)).normal(0, patch.grain, (height, width, 1))
        filled[:, :, :3] += noise
    before_it = as_plane(result[part])
    result[part] = (before_it + (filled * 255 - before_it) * share[:, :, None] + 0.5).clip(0, 255)


def _similar_place(colour: Plane, spot: Mask, hole: Mask) -> tuple[int, int] | None:
    """How far (down, right) a place is whose rim resembles that of ``spot``; None where there is none."""
    width = max(2, round(max(spot.shape) / 40))
    patch = grow(spot, width)
    rim = patch & ~hole
    box = _bounds(patch)
    if not rim.any() or box.bottom - box.top >= hole.shape[0] or box.right - box.left >= hole.shape[1]:
        return None
    rim_here, patch_here = rim[box.area].astype(np.float32), patch[box.area].astype(np.float32)
    searched = np.ascontiguousarray(colour[:, :, :3])
    misfit = cv2.matchTemplate(searched, searched[box.area], cv2.TM_SQDIFF, mask=cv2.merge([rim_here] * 3))
    misfit = misfit / (3 * rim_here.sum())
    # A place that overlaps a hole has nothing to give. One whose light changes across it holds a thing, and
    # copied it would be there twice: only texture heals, more detail than light; a rim can vouch for no more.
    overlap = cv2.matchTemplate(hole.astype(np.float32), patch_here, cv2.TM_CCORR)
    grey = as_plane(cv2.cvtColor(fill_in(searched, ~hole), cv2.COLOR_RGB2GRAY))
    light = as_plane(cv2.GaussianBlur(grey, (0, 0), max(2.0, max(spot.shape) / 64)))
    if light[rim].std() > _EVEN or light[rim].var() > 0.5 * grey[rim].var():
        return None
    misfit = np.where(_variance(light, patch_here) < _EVEN**2, misfit, np.inf)
    misfit = np.where(overlap < 0.5, misfit, np.inf)
    row, column = np.unravel_index(int(np.argmin(misfit)), misfit.shape)
    # Two pieces of one texture differ by its own contrast however well they are chosen.
    if not misfit[row, column] <= _FITS**2 + 1.5 * float(grey[box.area][rim[box.area]].var()):
        return None
    return int(row) - box.top, int(column) - box.left


def _variance(grey: Plane, shape: Plane) -> Plane:
    """The variance of ``grey`` under ``shape``, for every place the shape may take."""
    share = as_plane(shape / shape.sum())
    average, square = (as_plane(cv2.matchTemplate(plane, share, cv2.TM_CCORR)) for plane in (grey, grey * grey))
    return np.maximum(square - average * average, 0)


def _moved(pixels: NDArray[Scalar], down: int, across: int) -> NDArray[Scalar]:
    """What is ``down`` and ``across`` pixels further on, at each pixel; the edge repeats beyond the edge."""
    height, width = pixels.shape[:2]
    rows = np.clip(np.arange(height) + down, 0, height - 1)
    columns = np.clip(np.arange(width) + across, 0, width - 1)
    return pixels[rows[:, None], columns[None, :]]


def _inpaint(pixels: Pixels, hole: Mask) -> Plane:
    marks = hole.astype(np.uint8)
    if cv2.distanceTransform(marks, cv2.DIST_L2, 3).max() > THIN_PX:
        return fill_in(unit(pixels), ~hole)
    planes = [cv2.inpaint(np.ascontiguousarray(pixels[:, :, :3]), marks, 5, cv2.INPAINT_TELEA)]
    if pixels.shape[2] == 4:
        planes.append(cv2.inpaint(np.ascontiguousarray(pixels[:, :, 3]), marks, 5, cv2.INPAINT_TELEA))
    return unit(np.dstack(planes))


def _grain(photo: Pixels, hole: Mask) -> float:
    """How strong the photo's own noise is (0..1): a surface without any looks pasted on."""
    sample = np.ascontiguousarray(photo[:GRAIN_PX, :GRAIN_PX, :3])
    grey = unit(as_pixels(cv2.cvtColor(sample, cv2.COLOR_RGB2GRAY)))
    fine = (grey - as_plane(cv2.GaussianBlur(grey, (0, 0), 1)))[~hole[:GRAIN_PX, :GRAIN_PX]]
    # The median ignores edges, which are no grain.
    return 1.5 * float(np.median(np.abs(fine))) if fine.size else 0.0


# ---- expand --------------------------------------------------------------------------------------------


def expand(photo: Pixels, left: float, top: float, right: float, bottom: float) -> Pixels:
    """``photo`` with margins of these fractions of its width or height added; its own pixels stay as they are."""
    height, width = photo.shape[:2]
    margins = _Box(round(top * height), round(left * width), round(bottom * height), round(right * width))
    down, across = _folded(height, margins.top, margins.bottom), _folded(width, margins.left, margins.right)
    result: Pixels = photo[down[:, None], across[None, :]]
    small = shrink(result, EXPAND_PX).astype(np.float32)
    melted = [np.asarray(cv2.GaussianBlur(small, (0, 0), sigma), np.float32) for sigma in (2, 8, 24, 48)]
    below, beside = margins.top + height, margins.left + width
    whole_height, whole_width = result.shape[:2]
    for rows, columns in (
        (slice(0, margins.top), slice(0, whole_width)),
        (slice(below, whole_height), slice(0, whole_width)),
        (slice(margins.top, below), slice(0, margins.left)),
        (slice(margins.top, below), slice(beside, whole_width)),
    ):
        for part in tiles(rows, columns):
            level = _level(part, margins, below, beside, reach=0.3 * max(height, width)) * len(melted)
            blended = result[part].astype(np.float32)
            for index, blurred in enumerate(melted):
                share = (level - index).clip(0, 1)[:, :, None]
                blended += (part_of_enlarged(blurred, result.shape[:2], *part) - blended) * share
            result[part] = (blended + 0.5).clip(0, 255)
    return result


def _folded(length: int, before: int, after: int) -> NDArray[np.intp]:
    """Where to look in a picture of ``length`` for each pixel of the longer one: its rim strip, to and fro."""
    strip = max(1, round(0.12 * length))
    place = np.arange(-before, length + after)
    beyond = np.where(place < 0, -place, place - length + 1)
    inwards = strip - np.abs(strip - beyond % (2 * strip))  # 0..strip, mirrored at both ends
    folded = np.where(place < 0, inwards, np.where(place >= length, length - inwards, place))
    return folded.clip(0, length - 1)


def _level(part: tuple[slice, slice], margins: _Box, below: int, beside: int, reach: float) -> Plane:
    """0 at the picture's edge to 1 at ``reach`` pixels from it, rising fast at first."""
    rows, columns = np.arange(part[0].start, part[0].stop), np.arange(part[1].start, part[1].stop)
    down = np.maximum(np.maximum(margins.top - rows, rows - below + 1), 0)[:, None]
    across = np.maximum(np.maximum(margins.left - columns, columns - beside + 1), 0)[None, :]
    away: Plane = (np.hypot(down, across) / max(1.0, reach)).clip(0, 1).astype(np.float32)
    return away**0.6

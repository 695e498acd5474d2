"""Cut-out, erase and expand as pure functions of arrays, and as operations on files."""

from __future__ import annotations

import contextlib
from importlib.metadata import distribution
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from reference_app.images.editing import erase, expand, fit_mask
from reference_app.images.errors import BadExpansion, EmptyMask, ImageTooLarge, MaskMismatch, NothingToCutOut
from reference_app.images.jobs import Expansion, Job, Operation, Output, Request
from reference_app.images.matting import cut_out, find_faces
from reference_app.images.operations import perform
from reference_app.images.photo import PhotoLimits
from reference_app.images.pixels import Mask, Pixels, fill_in


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    cv2.setNumThreads(1)


def sample(name: str) -> Path:
    """A real photo from scikit-image's wheel, which is never imported."""
    return Path(str(distribution("scikit-image").locate_file(f"skimage/data/{name}")))


def pixels_of(path: Path) -> Pixels:
    return np.asarray(Image.open(path).convert("RGB"))


def grass(height: int, width: int, seed: int = 1) -> Pixels:
    """A textured background: soft green noise."""
    noise = np.random.default_rng(seed).normal(0, 1, (height, width)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 2)
    soft = soft / soft.std() * 14
    return cast("Pixels", np.dstack([70 + soft, 120 + soft, 60 + soft]).clip(0, 255).astype(np.uint8))


def disc_on_grass(height: int, width: int) -> tuple[Pixels, Mask]:
    """A bright ball in the grass, with an anti-aliased edge, and where it is."""
    y, x = np.mgrid[:height, :width]
    radius = 0.3 * min(height, width)
    distance = radius - np.hypot(y - height * 0.52, x - width * 0.48)
    alpha = distance.clip(0, 1)[:, :, None]
    ball = np.dstack([230 - y * 60 / height, 190 - y * 60 / height, 60 + 0 * y])
    return (ball * alpha + grass(height, width) * (1 - alpha)).astype(np.uint8), distance > 0.5


def overlap(left: Mask, right: Mask) -> float:
    """Intersection over union."""
    return float((left & right).sum() / (left | right).sum())


def checked(result: Pixels, photo: Pixels) -> NDArray[np.uint8]:
    assert result.dtype == np.uint8
    assert result.shape == (*photo.shape[:2], 4)
    return result[:, :, 3]


# ---- cut-out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(200, 300), (480, 640), (1500, 1100)])
def test_a_ball_is_cut_out_of_the_grass(height: int, width: int) -> None:
    """The alpha covers the ball to within a few pixels at every size, and is soft only at its edge."""
    photo, truth = disc_on_grass(height, width)
    alpha = checked(cut_out(photo), photo)
    assert overlap(alpha > 127, truth) > 0.97
    soft = (alpha > 12) & (alpha < 243)
    assert soft.mean() < 0.02
    assert np.median(alpha[truth]) == 255
    assert np.median(alpha[~truth]) == 0


def test_a_persons_face_leads_to_her_whole_figure() -> None:
    """The astronaut comes out with hair, suit and collar; flag, shuttle and wall stay behind."""
    photo = pixels_of(sample("astronaut.png"))
    assert len(find_faces(photo)) == 1
    alpha = checked(cut_out(photo), photo)
    inside = {"face": (110, 225), "hair": (40, 225), "collar": (240, 230), "chest": (330, 200), "sleeve": (420, 100)}
    outside = {"flag": (100, 20), "flag low": (480, 8), "shuttle": (150, 415), "wall": (60, 340), "corner": (5, 505)}
    assert {name: int(alpha[place]) for name, place in inside.items()} == dict.fromkeys(inside, 255)
    assert {name: int(alpha[place]) for name, place in outside.items()} == dict.fromkeys(outside, 0)
    hair_edge = alpha[20:110, 145:310]
    assert 150 < np.count_nonzero((hair_edge > 25) & (hair_edge < 230)) < 3_000


def test_a_thing_without_a_face_is_found_by_its_contrast() -> None:
    """Cup, saucer and spoon come out of the table."""
    photo = pixels_of(sample("coffee.png"))
    alpha = checked(cut_out(photo), photo)
    y, x = np.mgrid[:400, :600]
    saucer = ((x - 278) / 200) ** 2 + ((y - 222) / 165) ** 2 < 1
    assert overlap(alpha > 127, saucer | (np.hypot(x - 290, y - 110) < 100)) > 0.9


def test_the_old_background_does_not_shine_through_the_edge() -> None:
    """Half-transparent pixels carry the ball's colour, not the grass's."""
    photo, _ = disc_on_grass(480, 640)
    result = cut_out(photo)
    edge = (result[:, :, 3] > 60) & (result[:, :, 3] < 200)
    assert edge.any()
    red, green = (result[:, :, channel][edge].astype(int).mean() for channel in (0, 1))
    before = photo[edge].astype(int).mean(axis=0)
    assert red > green + 20
    assert red - green > before[0] - before[1] + 5


def test_what_was_transparent_stays_transparent() -> None:
    """An upload's own transparency bounds the result's."""
    photo, truth = disc_on_grass(200, 300)
    own = np.full((200, 300), 255, np.uint8)
    own[:, :150] = 0
    alpha = checked(cut_out(np.dstack([photo, own])), photo)
    assert alpha[:, :150].max() == 0
    assert alpha[truth & (own > 0)].mean() > 240


def test_the_same_photo_gives_the_same_cut_out() -> None:
    """GrabCut draws random samples; a retry must not change the picture."""
    photo, _ = disc_on_grass(200, 300)
    assert np.array_equal(cut_out(photo), cut_out(photo))


def test_an_enlarged_matte_has_no_seams() -> None:
    """Inside the ball no pixel is less than opaque, whichever tile or band it fell into."""
    photo, truth = disc_on_grass(1500, 1100)
    core = cv2.erode(truth.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    assert cut_out(photo)[:, :, 3][core].min() == 255


@pytest.mark.parametrize(
    "photo",
    [
        pytest.param(np.zeros((1, 1, 3), np.uint8), id="1×1"),
        pytest.param(grass(1, 1000), id="1×1000"),
        pytest.param(grass(1000, 1), id="1000×1"),
        pytest.param(np.full((300, 200, 3), 130, np.uint8), id="uniform"),
        pytest.param(np.full((300, 200, 4), 130, np.uint8), id="uniform and transparent"),
        pytest.param(np.zeros((300, 200, 3), np.uint8), id="black"),
    ],
)
def test_nothing_to_cut_out_is_said(photo: Pixels) -> None:
    """A picture without a subject is refused in words, not returned empty."""
    with pytest.raises(NothingToCutOut):
        cut_out(photo)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), channels=st.sampled_from([3, 4]), seed=st.integers(0, 99))
def test_any_small_picture_is_cut_out_or_refused(height: int, width: int, channels: int, seed: int) -> None:
    """Whatever the size and content: a valid result or the one clear error."""
    random = np.random.default_rng(seed)
    photo = random.integers(0, 256, (height, width, channels), np.uint8)
    photo[height // 4 : height // 2 + 1, width // 4 : width // 2 + 1, :3] = random.integers(0, 256, 3)
    with contextlib.suppress(NothingToCutOut):
        checked(cut_out(photo), photo)


# ---- erase ---------------------------------------------------------------------------------------------


def test_a_spot_disappears_and_the_rest_is_untouched() -> None:
    """A pebble in the grass is gone, its place looks like grass, every pixel away from it is as before."""
    clean = grass(300, 400)
    photo = clean.copy()
    cv2.circle(photo, (150, 140), 22, (250, 250, 255), -1)
    mask = np.zeros((300, 400), np.uint8)
    cv2.circle(mask, (150, 140), 24, 255, -1)
    result = erase(photo, fit_mask(mask, photo))
    hole = mask > 0
    away = cv2.dilate(mask, np.ones((9, 9), np.uint8)) == 0
    assert np.array_equal(result[away], photo[away])
    for channel in range(3):
        assert abs(result[:, :, channel][hole].mean() - clean[:, :, channel].mean()) < 8
        assert 6 < result[:, :, channel][hole].std() < 28


def test_light_is_continued_across_a_spot() -> None:
    """On a plain wall with a gradient the patch continues the gradient."""
    photo = np.repeat(np.linspace(40, 220, 400).astype(np.uint8)[None, :], 200, 0)[:, :, None].repeat(3, 2)
    clean = photo.copy()
    photo[70:120, 150:250] = (255, 0, 0)
    mask = np.zeros((200, 400), np.uint8)
    mask[66:124, 146:254] = 255
    result = erase(photo, fit_mask(mask, photo)).astype(int)
    assert np.abs(result - clean).max() < 20


def test_no_second_thing_appears_where_one_was_erased() -> None:
    """The shuttle beside the astronaut is not replaced by half of her face."""
    photo = pixels_of(sample("astronaut.png"))
    mask = np.zeros((512, 512), np.uint8)
    mask[0:290, 350:475] = 255
    assert len(find_faces(erase(photo, fit_mask(mask, photo)))) == 1


def test_a_wire_is_inpainted_at_any_length() -> None:
    """A thin diagonal line over the whole picture goes without a trace."""
    photo = np.full((300, 300, 3), (90, 140, 200), np.uint8)
    cv2.line(photo, (0, 20), (299, 280), (0, 0, 0), 3)
    mask = np.zeros((300, 300), np.uint8)
    cv2.line(mask, (0, 20), (299, 280), 255, 7)
    assert np.abs(erase(photo, fit_mask(mask, photo)).astype(int) - (90, 140, 200)).max() < 8


def test_many_spots_are_healed_at_once() -> None:
    """A hundred specks take one pass."""
    clean = grass(300, 300)
    photo, mask = clean.copy(), np.zeros((300, 300), np.uint8)
    for y in range(15, 300, 30):
        for x in range(15, 300, 30):
            cv2.circle(photo, (x, y), 3, (255, 255, 255), -1)
            cv2.circle(mask, (x, y), 4, 255, -1)
    assert erase(photo, fit_mask(mask, photo)).max() < 220


def test_transparency_survives_erasing() -> None:
    """The fourth channel is healed like a colour and stays where it was elsewhere."""
    photo = np.dstack([grass(100, 120), np.full((100, 120), 200, np.uint8)])
    mask = np.zeros((100, 120), np.uint8)
    mask[40:60, 50:70] = 255
    result = erase(photo, fit_mask(mask, photo))
    assert np.abs(result[:, :, 3].astype(int) - 200).max() <= 2


def test_a_smaller_mask_of_the_same_proportions_fits() -> None:
    """Clients draw on a preview; the mask is brought to the photo's size."""
    photo = grass(301, 400)
    mask = np.zeros((75, 100), np.uint8)
    mask[20:40, 50:70] = 255
    marked = fit_mask(mask, photo)
    assert marked.shape == (301, 400)
    assert marked[120, 240]
    assert not marked[20, 20]


@pytest.mark.parametrize(("height", "width"), [(400, 300), (300, 300), (1, 400), (300, 500)])
def test_a_mask_of_another_picture_is_refused(height: int, width: int) -> None:
    """Other proportions mean another picture; the message has both sizes."""
    with pytest.raises(MaskMismatch, match=f"{width} × {height}.*400 × 300"):
        fit_mask(np.full((height, width), 255, np.uint8), grass(300, 400))


@pytest.mark.parametrize("value", [0, 100, 255])
def test_a_mask_that_marks_nothing_or_everything_is_refused(value: int) -> None:
    """There is nothing to erase, or nothing to fill from."""
    with pytest.raises(EmptyMask):
        fit_mask(np.full((300, 400), value, np.uint8), grass(300, 400))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(2, 60),
    channels=st.sampled_from([3, 4]),
    share=st.floats(0.02, 0.98),
    seed=st.integers(0, 99),
)
def test_any_mask_on_any_small_picture_is_erased(
    height: int, width: int, channels: int, share: float, seed: int
) -> None:
    """Holes at the rim, holes that leave one pixel, pictures of one row: always a whole picture."""
    random = np.random.default_rng(seed)
    photo = random.integers(0, 256, (height, width, channels), np.uint8)
    marked = random.random((height, width)) < share
    marked[0, 0], marked[-1, -1] = True, False
    result = erase(photo, marked)
    assert result.shape == photo.shape
    assert result.dtype == np.uint8


def test_a_filled_surface_meets_its_rim() -> None:
    """The surface over a hole in a tilted plane is that plane, nearly."""
    plane = np.dstack([np.linspace(0, 1, 80, dtype=np.float32)[None, :].repeat(60, 0)] * 3)
    known = np.ones((60, 80), bool)
    known[20:40, 25:55] = False
    filled = fill_in(np.where(known[:, :, None], plane, np.float32(9)), known)
    assert np.abs(filled - plane).max() < 0.08
    assert np.array_equal(filled[known], plane[known])


# ---- expand --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["astronaut.png", "coffee.png"])
def test_the_photo_stands_unchanged_in_its_wider_picture(name: str) -> None:
    """Margins have the sizes asked for, join the photo without a step, and grow calmer outwards."""
    photo = pixels_of(sample(name))
    height, width = photo.shape[:2]
    result = expand(photo, 0.25, 0.1, 0.5, 0.0)
    left, top = round(0.25 * width), round(0.1 * height)
    assert result.shape == (height + top, width + left + round(0.5 * width), 3)
    assert np.array_equal(result[top:, left : left + width], photo)
    grey = result.mean(axis=2)
    inside = np.abs(np.diff(grey[top:, left : left + width], axis=1)).mean()
    beside = np.abs(grey[top:, left + 1] - grey[top:, left]).mean()
    assert np.abs(grey[top:, left - 1] - grey[top:, left]).mean() < 1.1 * beside
    assert np.abs(np.diff(grey[top:, : left // 3], axis=1)).mean() < inside / 4


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    channels=st.sampled_from([3, 4]),
    margins=st.tuples(*[st.floats(0, 0.5)] * 4),
)
def test_any_small_picture_expands(
    height: int, width: int, channels: int, margins: tuple[float, float, float, float]
) -> None:
    """Also one of a single pixel, on all sides or on none."""
    photo = np.random.default_rng(height).integers(0, 256, (height, width, channels), np.uint8)
    left, top, right, bottom = margins
    result = expand(photo, left, top, right, bottom)
    assert result.shape == (
        height + round(top * height) + round(bottom * height),
        width + round(left * width) + round(right * width),
        channels,
    )
    kept = result[round(top * height) :, round(left * width) :][:height, :width]
    assert np.array_equal(kept, photo)


@pytest.mark.parametrize("params", [{}, {"left": 0.0}, {"left": 0.6}, {"top": -0.1}, {"wide": 0.2}])
def test_margins_are_checked(params: dict[str, float]) -> None:
    """No margin, too much of one, or an unknown one: a refusal that names the field."""
    with pytest.raises(BadExpansion) as refused:
        Expansion.of(params)
    assert refused.value.fields[0].field == "params"


# ---- on files ------------------------------------------------------------------------------------------


def do(
    operation: Operation,
    job: Job,
    limits: PhotoLimits = PhotoLimits(),  # noqa: B008 - frozen
) -> Output:
    told: list[float] = []
    output = perform(Request(operation=operation, job=job, limits=limits), told.append)
    assert told == sorted(told)
    assert all(0 < share < 1 for share in told)
    return output


@pytest.mark.parametrize("operation", ["cutout", "erase", "expand"])
def test_results_carry_no_metadata(operation: Operation, tmp_path: Path) -> None:
    """Where a photo was taken, its profile and its notes do not reach the result: pixels alone do."""
    photo, mask, output = tmp_path / "photo", tmp_path / "mask", tmp_path / "result"
    exif, notes = Image.Exif(), PngInfo()
    exif[0x010E] = "SECRET place"
    notes.add_text("Comment", "SECRET words")
    picture, truth = disc_on_grass(100, 150)
    Image.fromarray(picture).save(photo, "PNG", exif=exif, pnginfo=notes, dpi=(300, 300))
    Image.fromarray(truth).save(mask, "PNG")
    job = Job(
        inputs={"photo": str(photo), "mask": str(mask)},
        params={"left": 0.2} if operation == "expand" else {},
        output=str(output),
    )
    done = do(operation, job)
    content = output.read_bytes()
    assert (done.media_type, done.size_bytes) == ("image/png", len(content))
    chunks, at = [], 8
    while at < len(content):
        chunks.append(content[at + 4 : at + 8])
        at += 12 + int.from_bytes(content[at : at + 4], "big")
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}
    with Image.open(output) as result:
        assert result.size == (done.width, done.height)
        assert result.mode == ("RGBA" if operation == "cutout" else "RGB")
        kept = np.asarray(result.convert("RGB"))[50, 72 + (30 if operation == "expand" else 0)]
    if operation != "erase":  # the middle of the ball: its colours are in their order
        assert kept.tolist() == picture[50, 72].tolist()
    assert not list(tmp_path.glob("*.part"))


def test_inspecting_tells_the_size_as_shown(tmp_path: Path) -> None:
    """A photo taken upright is upright, also in numbers."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = tmp_path / "photo"
    Image.new("RGB", (60, 40)).save(photo, "JPEG", exif=exif)
    seen = do("inspect", Job(inputs={"photo": str(photo)}))
    assert (seen.media_type, seen.width, seen.height) == ("image/jpeg", 40, 60)


def test_expanding_beyond_the_pixel_limit_is_refused(tmp_path: Path) -> None:
    """The bound holds for results as for uploads, and is checked before the result is made."""
    photo = tmp_path / "photo"
    Image.new("RGB", (100, 100)).save(photo, "PNG")
    job = Job(inputs={"photo": str(photo)}, params={"left": 0.5, "right": 0.5}, output=str(tmp_path / "result"))
    with pytest.raises(ImageTooLarge, match="200 × 100"):
        do("expand", job, PhotoLimits(pixels_max=15_000))
    assert not (tmp_path / "result").exists()

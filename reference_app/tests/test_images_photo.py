"""Uploads, good and bad, before and after decoding."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from reference_app.images.errors import BrokenImage, EmptyImage, ImageError, ImageTooLarge, UnsupportedImage
from reference_app.images.photo import PhotoLimits, check_photo, read_mask, read_photo

RED, BLUE = (200, 30, 20), (10, 40, 220)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def two_tone(width: int = 64, height: int = 32) -> Image.Image:
    """Red, with a blue left half."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (0, 0, width // 2, height))
    return image


def near(left: object, right: tuple[int, ...]) -> bool:
    assert isinstance(left, tuple)
    return all(abs(a - b) <= 12 for a, b in zip(left, right, strict=True))


def png_header(width: int, height: int) -> bytes:
    """A PNG that ends where its pixels should begin."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return start + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize(("kind", "media_type"), [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/webp")])
def test_type_is_found_by_content(kind: str, media_type: str, tmp_path: Path) -> None:
    """A picture is known by its content, whatever the file is called."""
    file = tmp_path / "holiday.txt"
    file.write_bytes(encoded(two_tone(), kind))
    info = check_photo(file)
    assert (info.media_type, info.width, info.height) == (media_type, 64, 32)
    assert info.size_bytes == file.stat().st_size
    assert read_photo(file).size == (64, 32)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        pytest.param(b"", EmptyImage, id="0 bytes"),
        pytest.param(b"just some text, called .png", UnsupportedImage, id="text"),
        pytest.param(encoded(two_tone(), "GIF"), UnsupportedImage, id="gif"),
        pytest.param(encoded(two_tone(), "BMP"), UnsupportedImage, id="bmp"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", UnsupportedImage, id="svg"),
        pytest.param(b"\x89PNG\r\n\x1a\n", BrokenImage, id="png signature alone"),
        pytest.param(b"\xff\xd8\xff\xe0" + b"\0" * 100, BrokenImage, id="jpeg signature alone"),
        pytest.param(b"RIFF\x10\0\0\0WEBPVP8 \0\0\0\0", BrokenImage, id="webp signature alone"),
        pytest.param(png_header(20_000, 20_000), ImageTooLarge, id="400 megapixels"),
        pytest.param(png_header(8_000, 5_001), ImageTooLarge, id="just above 40 megapixels"),
        pytest.param(png_header(33_000, 1), ImageTooLarge, id="too long a side"),
        pytest.param(png_header(2**31 - 1, 2**31 - 1), ImageTooLarge, id="the largest a PNG can claim"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + b"x" * (11 * 2**20), ImageTooLarge, id="11 MiB"),
    ],
)
def test_bad_uploads_are_refused_by_their_header(content: bytes, error: type[ImageError]) -> None:
    """Each bad upload has its own refusal, and none is decoded to find out."""
    with pytest.raises(error) as refused:
        check_photo(content)
    assert 400 <= refused.value.status < 500
    assert refused.value.text("zh-CN")


def test_a_decompression_bomb_is_refused_unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 kB that unfold to 400 megapixels are refused from the header: no pixel is ever decoded."""
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(bomb) < 100_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageTooLarge, match="20000 × 20000 px of at most 40 MP"):
        read_photo(bomb)


def test_a_webp_that_claims_a_huge_canvas_never_reaches_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canvas of an extended WebP is read before libwebp would reserve memory for it."""
    side = (16_000_000 - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + side + side
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile._open", lambda self: pytest.fail("opened"))
    with pytest.raises(ImageTooLarge):
        check_photo(b"RIFF" + struct.pack("<I", len(body)) + body)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_pictures_are_broken(kind: str) -> None:
    """A picture that ends too early is refused, not filled up with grey."""
    noise = Image.effect_noise((256, 256), 80).convert("RGB")
    whole = encoded(noise, kind)
    read_photo(whole)
    for share in (0.3, 0.6, 0.95):
        with pytest.raises(BrokenImage):
            read_photo(whole[: int(len(whole) * share)])


def test_damaged_pixels_are_broken() -> None:
    """Bytes flipped inside a PNG's data are noticed."""
    whole = bytearray(encoded(two_tone(), "PNG"))
    start = whole.index(b"IDAT") + 6
    whole[start : start + 8] = b"\xff" * 8
    with pytest.raises(BrokenImage):
        read_photo(bytes(whole))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured(orientation: int) -> None:
    """Whichever way the camera was held, blue comes out on the left."""
    turn_back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = two_tone()
    stored = upright.transpose(turn_back[orientation]) if orientation in turn_back else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    seen = read_photo(encoded(stored, "PNG", exif=exif))
    assert seen.size == (64, 32)
    assert seen.getpixel((5, 16)) == BLUE
    assert seen.getpixel((60, 16)) == RED


def test_broken_camera_notes_do_not_matter() -> None:
    """A picture with unreadable EXIF is a picture."""
    assert read_photo(encoded(two_tone(), "JPEG", exif=b"Exif\0\0garbage")).size == (64, 32)


def test_a_multi_picture_jpeg_is_its_first_picture() -> None:
    """Phones append a second picture (depth, gain map) to their JPEGs."""
    both = encoded(two_tone(), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert check_photo(both).media_type == "image/jpeg"
    assert read_photo(both).size == (64, 32)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    """Of a moving picture the first frame is taken."""
    moving = encoded(two_tone(), kind, save_all=True, append_images=[Image.new("RGB", (64, 32), (0, 255, 0))])
    assert near(read_photo(moving).getpixel((60, 16)), RED)


GREY_16 = Image.frombytes("I;16", (64, 32), struct.pack("<2048H", *(value * 31 for value in range(2048))))


@pytest.mark.parametrize(
    ("make", "mode", "pixel"),
    [
        pytest.param(lambda: encoded(two_tone().convert("L"), "PNG"), "RGB", (80, 80, 80), id="grey"),
        pytest.param(
            lambda: encoded(two_tone().convert("1", dither=Image.Dither.NONE), "PNG"), "RGB", (0, 0, 0), id="1 bit"
        ),
        pytest.param(lambda: encoded(two_tone().quantize(4), "PNG"), "RGB", RED, id="palette"),
        pytest.param(lambda: encoded(two_tone().convert("CMYK"), "JPEG"), "RGB", RED, id="cmyk"),
        pytest.param(lambda: encoded(two_tone().convert("YCbCr"), "JPEG", quality=95), "RGB", RED, id="ycbcr"),
        pytest.param(lambda: encoded(two_tone().convert("RGBA"), "PNG"), "RGB", RED, id="opaque alpha"),
        pytest.param(lambda: encoded(GREY_16, "PNG"), "RGB", (123, 123, 123), id="16-bit grey"),
    ],
)
def test_every_kind_of_pixel_becomes_8_bit_colour(
    make: Callable[[], bytes], mode: str, pixel: tuple[int, int, int]
) -> None:
    """Grey, palette, CMYK, 16 bits: the operations see RGB."""
    seen = read_photo(make())
    assert seen.mode == mode
    assert near(seen.getpixel((60, 15)), pixel)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_kept(mode: str) -> None:
    """What was transparent stays so, also where a palette says it."""
    image = two_tone().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    if mode == "P":
        stored = encoded(two_tone().quantize(2), "PNG", transparency=bytes([0, 0]))
    else:
        stored = encoded(image.convert(mode), "PNG")
    seen = read_photo(stored)
    assert seen.mode == "RGBA"
    assert seen.getchannel("A").getpixel((60, 0)) in range(10)


def test_wide_colours_are_converted_not_faded() -> None:
    """A photo in another colour space looks the same without its profile."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    plain = read_photo(encoded(two_tone(), "PNG"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert read_photo(encoded(two_tone(), "PNG", icc_profile=srgb)).tobytes() == plain.tobytes()
    # A profile that does not fit, and one that is no profile, are ignored.
    for profile in (lab.tobytes(), b"no profile"):
        assert read_photo(encoded(two_tone(), "PNG", icc_profile=profile)).tobytes() == plain.tobytes()
    swapped = _profile_with_red_and_blue_swapped(srgb)
    seen = read_photo(encoded(two_tone(), "PNG", icc_profile=swapped))
    assert near(seen.getpixel((60, 16)), RED[::-1])


def _profile_with_red_and_blue_swapped(profile: bytes) -> bytes:
    """An sRGB profile of another name whose red primary is called blue and the reverse."""
    swapped = profile.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    return swapped.replace("sRGB".encode("utf-16-be"), "tRGB".encode("utf-16-be"))


def test_a_text_bomb_is_broken() -> None:
    """A PNG whose text unfolds to gigabytes is refused, not unfolded."""
    notes = PngInfo()
    notes.add_text("note", "a" * 100_000_000, zip=True)
    with pytest.raises(BrokenImage):
        read_photo(encoded(two_tone(), "PNG", pnginfo=notes))


def test_a_mask_is_grey_and_transparent_is_black() -> None:
    """A mask painted in white on nothing erases where it is white."""
    painted = Image.new("RGBA", (10, 10), (255, 255, 255, 0))
    painted.paste((255, 255, 255, 255), (0, 0, 5, 10))
    mask = read_mask(encoded(painted, "PNG"))
    assert (mask.mode, mask.getpixel((2, 5)), mask.getpixel((8, 5))) == ("L", 255, 0)


def test_limits_are_the_callers() -> None:
    """Bounds are values, and the message names them."""
    with pytest.raises(ImageTooLarge, match=r"64 × 32 px of at most 0\.001 MP"):
        check_photo(encoded(two_tone(), "PNG"), PhotoLimits(pixels_max=1_000))
    with pytest.raises(ValueError, match=r"PhotoLimits\.pixels_max"):
        PhotoLimits(pixels_max=0)

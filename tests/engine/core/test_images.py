"""The one image reader: every mode and orientation in, upright RGB out, and a named refusal for everything else."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from engine.core.errors import DataError
from engine.core.images import FORMATS, MISSING, ImageError, inspect_image, read_image
from engine.core.storage import sha256_file

LIMIT = 100_000_000


def read(path, **options):
    return read_image(path, **({"max_pixels": LIMIT} | options))


def refusal(path, *, limit=LIMIT):
    """The reason both functions give; they must agree."""
    reasons = []
    for function in (read_image, inspect_image):
        with pytest.raises(ImageError) as caught:
            function(path, max_pixels=limit)
        reasons.append(caught.value.reason)
        assert str(path) in str(caught.value)
    assert reasons[0] == reasons[1]
    return reasons[0]


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def promise(kind, content, width, height):
    """The same file, its header promising another size."""
    content = bytearray(content)
    if kind == "JPEG":
        start = content.index(b"\xff\xc0") + 5
        content[start : start + 4] = struct.pack(">HH", height, width)
    elif kind == "PNG":
        content[16:24] = struct.pack(">II", width, height)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    else:  # a lossy WebP: 14 bits each, behind the RIFF and chunk headers and the frame tag
        content[26:30] = struct.pack("<HH", width, height)
    return bytes(content)


@pytest.fixture
def photo(draw):
    return Image.fromarray(draw(1))


# --- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_read_image_gives_writable_rgb_whatever_the_file_is_called(tmp_path, photo, kind):
    path = tmp_path / "photo.jpg"
    photo.save(path, kind, quality=95)
    image = read(path)
    assert image.dtype == np.uint8
    assert image.shape == (72, 96, 3)
    assert image.flags.writeable
    assert np.abs(image.astype(int) - np.asarray(photo).astype(int)).mean() < 4


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"),
        ("L", "PNG"),
        ("L", "JPEG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("CMYK", "JPEG"),
        ("YCbCr", "JPEG"),
    ],
)
def test_read_image_turns_every_mode_into_the_rgb_of_the_picture(tmp_path, photo, mode, kind):
    path = tmp_path / "photo"
    converted = photo.convert(mode)
    converted.save(path, kind)
    expected = np.asarray(converted.convert("RGB")).astype(int)
    assert np.abs(read(path).astype(int) - expected).mean() < 5
    assert inspect_image(path, max_pixels=LIMIT).thumbnail.shape == (16, 18)


def test_read_image_scales_sixteen_bits_instead_of_clipping(tmp_path):
    values = np.array([[0, 255, 40_000, 65_535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert read(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 0, 156, 255]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_read_image_lays_transparency_on_white(tmp_path, kind):
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "clear", kind)
    assert (read(tmp_path / "clear") == 255).all()


def test_read_image_lays_a_transparent_palette_entry_on_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    pixels = read(tmp_path / "palette.png")
    assert pixels[0, 0].tolist() == [40, 50, 60]
    assert pixels[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("endian", ["<", ">"])
def test_photos_stand_upright(tmp_path, photo, kind, orientation, endian):
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F] = "a maker's name, so that the orientation is not the first entry"
    exif[0x0112] = orientation
    path = tmp_path / "turned"
    photo.save(path, kind, exif=exif.tobytes())
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    image, facts = read(path), inspect_image(path, max_pixels=LIMIT)
    np.testing.assert_array_equal(image, np.asarray(expected))
    assert (facts.width, facts.height) == expected.size
    grey = np.asarray(expected.convert("L").resize((18, 16), Image.Resampling.BOX)).astype(int)
    assert np.abs(facts.thumbnail.astype(int) - grey).mean() < 4


def test_read_image_takes_the_first_frame(tmp_path, draw):
    frames = [Image.fromarray(draw(seed)) for seed in (1, 2)]
    for kind in ("PNG", "WEBP", "MPO"):
        path = tmp_path / f"moving.{kind}"
        frames[0].save(
            path, kind, save_all=True, append_images=frames[1:], **({} if kind == "MPO" else {"duration": 9})
        )
        assert np.abs(read(path).astype(int) - draw(1).astype(int)).mean() < 4


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (15, 10)])
def test_tiny_and_thin_photos_are_read(tmp_path, size):
    for kind in ("JPEG", "PNG"):
        Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "thin", kind)
        assert read(tmp_path / "thin", cover=224).shape == (size[1], size[0], 3)
        facts = inspect_image(tmp_path / "thin", max_pixels=LIMIT)
        assert (facts.width, facts.height) == size


@pytest.mark.parametrize("cover", [1, 50, 75, 76, 150, 300, 301, 600, 601, 5000])
def test_cover_decodes_at_the_smallest_scale_that_still_covers(tmp_path, draw, cover):
    Image.fromarray(draw(3, (800, 600))).save(tmp_path / "large.jpg")
    height, width, _ = read(tmp_path / "large.jpg", cover=cover).shape
    assert (width, height) in [(100, 75), (200, 150), (400, 300), (800, 600)]
    assert height >= min(cover, 600)
    assert height == 75 or height / 2 < cover


def test_cover_leaves_other_formats_whole(tmp_path, draw):
    Image.fromarray(draw(3, (80, 60))).save(tmp_path / "small.png")
    assert read(tmp_path / "small.png", cover=4).shape == (60, 80, 3)


def test_inspect_image_measures_and_hashes(tmp_path, photo):
    photo.save(tmp_path / "photo.jpg")
    facts = inspect_image(tmp_path / "photo.jpg", max_pixels=LIMIT)
    assert (facts.width, facts.height) == (96, 72)
    assert facts.sha256 == sha256_file(tmp_path / "photo.jpg")
    assert facts.thumbnail.dtype == np.uint8


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_missing_file_an_empty_file_and_a_folder_have_their_reasons(tmp_path):
    (tmp_path / "empty.jpg").touch()
    assert refusal(tmp_path / "none.jpg") == MISSING
    assert refusal(tmp_path / "empty.jpg") == "empty file"
    assert refusal(tmp_path) == "cannot be read (Is a directory)"


@pytest.mark.faults
@pytest.mark.parametrize(("kind", "reason"), [("JPEG", "truncated"), ("PNG", "truncated"), ("WEBP", "damaged")])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_cut_off_files_are_refused(tmp_path, draw, kind, reason, share):
    content = encode(Image.fromarray(draw(1, (640, 480))), kind)
    (tmp_path / "cut.jpg").write_bytes(content[: int(share * len(content))])
    assert refusal(tmp_path / "cut.jpg").startswith(reason)


@pytest.mark.faults
def test_a_cut_off_progressive_jpeg_is_refused(tmp_path, draw):
    content = encode(Image.fromarray(draw(1, (640, 480))), "JPEG", progressive=True)
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    assert refusal(tmp_path / "cut.jpg") == "truncated"


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF", "ICO", "PPM"])
def test_other_formats_are_refused_by_the_decoders_allowed(tmp_path, photo, kind):
    (tmp_path / "photo.jpg").write_bytes(encode(photo, kind))
    assert refusal(tmp_path / "photo.jpg") == "not an image (JPEG, PNG, WEBP)"


@pytest.mark.faults
@pytest.mark.parametrize(
    "content",
    [b"<!doctype html><title>404</title>", b"<svg xmlns='x'/>", b"SIMPLE  =   T", b"\0", b"\xff\xd8", b"\xff\xd8\xff"],
    ids=["HTML", "SVG", "FITS", "NUL", "two bytes", "three bytes"],
)
def test_what_is_no_image_is_refused(tmp_path, content):
    (tmp_path / "photo.jpg").write_bytes(content)
    assert refusal(tmp_path / "photo.jpg").startswith(("not an image", "damaged", "truncated"))


@pytest.mark.faults
@pytest.mark.parametrize("kind", FORMATS)
def test_the_pixel_limit_is_the_callers(tmp_path, draw, kind):
    Image.fromarray(draw(1, (40, 30))).save(tmp_path / "photo", kind)
    assert read(tmp_path / "photo", max_pixels=1200).shape == (30, 40, 3)
    assert refusal(tmp_path / "photo", limit=1199).startswith("too large")


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("side", "reason"), [(10_000, "truncated"), (10_001, "too large: 100"), (20_000, "too large")])
def test_a_huge_header_with_a_tiny_body_is_refused(tmp_path, photo, kind, side, reason):
    (tmp_path / "bomb.jpg").write_bytes(promise(kind, encode(photo, kind), side, side))
    assert refusal(tmp_path / "bomb.jpg").startswith(reason)


@pytest.mark.faults
def test_a_huge_header_costs_no_memory(tmp_path, photo):
    for kind, side in [("JPEG", 10_000), ("JPEG", 20_000), ("PNG", 10_000), ("PNG", 20_000), ("WEBP", 13_000)]:
        (tmp_path / f"{kind}{side}").write_bytes(promise(kind, encode(photo, kind), side, side))
    # A child of its own, so that the memory of this process' other tests is not in the way.
    script = """if True:
        import resource, sys
        from pathlib import Path
        from engine.core.images import ImageError, inspect_image, read_image
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in Path(sys.argv[1]).iterdir():
            for function in (read_image, inspect_image):
                try:
                    function(path, max_pixels=100_000_000)
                except ImageError as error:
                    print(path.name, error.reason)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    child = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    *refused, megabytes = child.stdout.splitlines()
    assert len(refused) == 10
    assert int(megabytes) < 50


def test_a_true_photo_just_below_the_limit_raises_no_bomb_warning(tmp_path):
    Image.new("L", (9_500, 9_500), 90).save(tmp_path / "wide.jpg", quality=30)  # 90 MP, where Pillow begins to warn
    assert inspect_image(tmp_path / "wide.jpg", max_pixels=LIMIT).width == 9_500
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (89_478_485, False)


@pytest.mark.faults
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("cut", [7, 9, 13, 17, 20])
def test_a_damaged_exif_block_leaves_the_photo_as_it_lies(tmp_path, photo, kind, cut):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    photo.save(tmp_path / "photo", kind, exif=content[:cut] if kind != "WEBP" else content[6:cut])
    assert read(tmp_path / "photo").shape == (72, 96, 3)
    assert inspect_image(tmp_path / "photo", max_pixels=LIMIT).width == 96


def test_an_image_error_is_a_data_error_with_a_remedy(tmp_path):
    with pytest.raises(DataError, match=r"none\.jpg: missing — replace the photo") as caught:
        read(tmp_path / "none.jpg")
    assert caught.value.exit_code == 3


@pytest.mark.faults
@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(FORMATS),
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    keep=st.floats(0.05, 1),
)
def test_damaged_bytes_give_an_array_or_an_image_error_and_nothing_else(tmp_path_factory, kind, damage, keep):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))
    content = bytearray(encode(noise, kind))
    for place, value in damage:
        content[int(place * len(content))] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[: int(keep * len(content))])
    for function in (read_image, inspect_image):
        try:
            function(path, max_pixels=1_000_000)
        except ImageError as error:
            assert error.reason  # noqa: PT017 - either outcome is right


@pytest.mark.real
def test_real_originals_are_read_whole_and_scaled(mini):
    for path in sorted((mini / "fullres").glob("*.jpg"))[:6]:
        facts = inspect_image(path, max_pixels=LIMIT)
        height, width, _ = read(path, cover=224).shape
        assert min(width, height) >= min(224, facts.width, facts.height)
        assert abs(width / height - facts.width / facts.height) < 0.02

"""Photos on disk to arrays: the one reader of the whole project.

In goes the path of a JPEG, PNG or WebP file; out comes a uint8 [H, W, 3] RGB array that stands upright, or an
`ImageError` that says in a few words why the photo cannot be used. Nothing is written.

Pillow's decoders are called by name, not through `Image.open`: only these three formats can ever run, the pixel limit
is the caller's alone, and nothing has to be silenced in the warning filters, which threads share.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from engine.core.errors import DataError
from engine.core.storage import sha256_file

FORMATS = ("JPEG", "PNG", "WEBP")
MISSING = "missing"  # the reason of a photo that is named somewhere and not on disk
THUMBNAIL = (16, 18)  # rows, columns: halves to the 8 x 9 of a 64-bit difference hash

_JPEG_PIXELS_PER_BYTE = 512  # Huffman coding spends at least one bit on a block of 8 x 8
_INSPECTED = 2 * max(THUMBNAIL)  # shorter side to decode: with half of it a copy at 60 % looked like another picture
_ORIENTATION = 0x0112  # EXIF 2.3, table 4
_TURNS = {  # EXIF orientation -> what makes the photo stand upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BROKEN = (  # what Pillow's decoders raise on damaged bytes; a MemoryError is not the photo's fault
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    UserWarning,  # a malformed APNG chunk, where warnings are errors
)


class ImageError(DataError):
    """A photo that cannot be used.

    Args:
        path: the photo.
        reason: in a few words, as `bad_images.csv` shows it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}", hint="replace the photo, or remove its row from the CSV")
        self.path = path
        self.reason = reason


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """What the catalog wants to know of a photo.

    Attributes:
        width: upright, in pixels.
        height: upright, in pixels.
        sha256: hex, of the file's bytes.
        thumbnail: uint8 [16, 18] grey, upright, squeezed to this shape whatever the photo's own.
    """

    width: int
    height: int
    sha256: str
    thumbnail: NDArray[np.uint8]


class _Jpeg(JpegImageFile):
    """A JPEG whose EXIF block is left alone: Pillow looks for a resolution there, and warns when it is damaged."""

    def _read_dpi_from_exif(self) -> None:
        """Nothing here needs the resolution."""


_DECODERS: dict[bytes, Callable[[BinaryIO], ImageFile]] = {
    b"\xff\xd8\xff": _Jpeg,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"RIFF": WebPImageFile,
}


def read_image(path: Path, *, max_pixels: int, cover: int | None = None) -> NDArray[np.uint8]:
    """Read a photo.

    Grey, palette, CMYK and 16-bit photos become 8-bit RGB (16 bits are scaled, not clipped); transparency is laid on
    white, as a browser shows it; of an animation the first frame is read.

    Args:
        path: a JPEG, PNG or WebP file, whatever its name ends in.
        max_pixels: a header that promises more is refused before anything is decoded.
        cover: pixels; a JPEG is decoded at the smallest DCT scale (1/8, 1/4, 1/2, 1) at which its shorter side still
            is at least this long, which costs a fraction of the time. None: at full size.

    Returns:
        uint8 [H, W, 3] RGB, upright, writable.

    Raises:
        ImageError: when the file is missing, empty, of another format, too large, truncated or damaged.
    """
    with _opened(path, max_pixels) as image:
        if cover is not None:
            image.draft(None, (cover, cover))
        return np.array(_upright(image).convert("RGB"))


def inspect_image(path: Path, *, max_pixels: int) -> ImageFacts:
    """Measure a photo and decode it to its last row, at the cheapest scale.

    Raises:
        ImageError: as `read_image`.
    """
    with _opened(path, max_pixels) as image:
        size = image.size
        image.draft("L", (_INSPECTED, _INSPECTED))
        small = _upright(image).convert("L").resize(THUMBNAIL[::-1], Image.Resampling.BOX)
        width, height = reversed(size) if _orientation(image) >= 5 else size  # 5 to 8 swap the sides
        return ImageFacts(width, height, sha256_file(path), np.array(small))


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[ImageFile]:
    """The photo with its header read; whatever breaks inside the block becomes an ImageError."""
    try:
        with path.open("rb") as handle:
            image = _identify(path, handle)
            pixels = image.width * image.height
            if pixels > max_pixels:
                raise ImageError(path, f"too large: {pixels / 1e6:,.0f} MP")
            if isinstance(image, JpegImageFile) and pixels > _JPEG_PIXELS_PER_BYTE * path.stat().st_size:
                raise ImageError(path, "truncated")  # libjpeg would fill the rest with grey and say nothing
            yield image
    except _BROKEN as error:
        raise ImageError(path, _reason(error)) from error


def _identify(path: Path, handle: BinaryIO) -> ImageFile:
    prefix = handle.read(8)
    handle.seek(0)
    if not prefix:
        raise ImageError(path, "empty file")
    for magic, decoder in _DECODERS.items():
        if prefix.startswith(magic):
            return decoder(handle)
    raise ImageError(path, f"not an image ({', '.join(FORMATS)})")


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return MISSING
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror})"
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit for WebP, above 178 MP
        return "too large"
    if "truncated" in str(error).lower():
        return "truncated"
    return f"damaged ({error!s:.60})"


def _upright(image: ImageFile) -> Image.Image:
    """Decode, to mode L or RGB."""
    image.load()
    turn = _TURNS.get(_orientation(image))  # after load: a PNG may carry its EXIF behind the pixels
    flat = _flatten(image)
    return flat if turn is None else flat.transpose(turn)


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "L" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation 1..8; 1 (upright) when there is none or its block is damaged."""
    tiff = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}4xI", tiff)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(count):  # each 12 bytes: tag, type, number of values, the value
            tag, value = struct.unpack_from(f"{order}H6xH", tiff, start + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return int(value)
    except struct.error:
        return 1
    return 1

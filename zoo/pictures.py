"""Pictures for a user to look at: photos with their labels, and class sizes before and after a sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

TEXT = 15  # pixels: read without effort, and a landmark's id fits below a tile of 128
# blue and orange: colour-blind eyes tell them apart
INK, FAINT, BEFORE, AFTER = "#222222", "#dddddd", "#1f6fb4", "#d9541e"
_SIZE = (900, 520)  # pixels of a plot: a browser or a README shows it unshrunk
_PLOT = (70, 50, 870, 460)  # pixels of its axes: left, top, right, bottom
_GAP = 8  # pixels


def batch_picture(images: Tensor, labels: Sequence[str], *, columns: int = 8, tile: int = 128) -> Image.Image:
    """The photos of a batch in rows, each with its label below.

    Photos are enlarged without smoothing, so one sees the pixels that a network sees.

    Args:
        images: uint8 or float [B, 3, S, S] RGB in 0..255, on any device, B at least 1.
        labels: one per photo, in any script; what is wider than a tile is cut off.
        columns: photos in a row.
        tile: pixels of the side of a photo in the picture.

    Raises:
        ValueError: when there are not as many labels as photos.
    """
    font = ImageFont.load_default(TEXT)
    across = min(columns, len(labels))
    width, height = tile + _GAP, tile + 2 * TEXT
    sheet = Image.new("RGB", (across * width + _GAP, math.ceil(len(labels) / columns) * height + _GAP), "white")
    pixels = images.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()  # [B, S, S, 3]
    for number, (photo, label) in enumerate(zip(pixels, labels, strict=True)):
        left, top = _GAP + number % columns * width, _GAP + number // columns * height
        sheet.paste(Image.fromarray(photo).resize((tile, tile), Image.Resampling.BOX), (left, top))
        sheet.paste(_text_strip(label, tile, font), (left, top + tile))
    return sheet


def neighbours_picture(
    photos: Sequence[NDArray[np.uint8]], labels: Sequence[Sequence[str]], *, tile: int
) -> Image.Image:
    """A photo and its neighbours in a row, each whole and in its own shape, with lines of text below; the first framed.

    Args:
        photos: uint8 [H, W, 3] RGB, at least one.
        labels: lines for each photo, in any script; what is wider than a tile is cut off.
        tile: pixels of a photo's longer side in the picture.

    Raises:
        ValueError: when there are not as many labels as photos.
    """
    font = ImageFont.load_default(TEXT)
    height = tile + max(len(lines) for lines in labels) * 2 * TEXT
    sheet = Image.new("RGB", (len(photos) * (tile + _GAP) + _GAP, height + 2 * _GAP), "white")
    for number, (photo, lines) in enumerate(zip(photos, labels, strict=True)):
        left = _GAP + number * (tile + _GAP)
        whole = ImageOps.pad(Image.fromarray(photo), (tile, tile), color="white")
        sheet.paste(whole, (left, _GAP))
        for line, text in enumerate(lines):
            sheet.paste(_text_strip(text, tile, font), (left, 2 * _GAP + tile + line * 2 * TEXT))
    edge = _GAP // 2
    ImageDraw.Draw(sheet).rectangle((edge, edge, _GAP + tile + edge, _GAP + tile + edge), outline=AFTER, width=3)
    return sheet


def _text_strip(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    strip = Image.new("RGB", (width, 2 * TEXT - _GAP), "white")
    printable = "".join(letter if letter.isprintable() else " " for letter in text)  # one line, no lone surrogates
    ImageDraw.Draw(strip).text((0, 0), printable, INK, font)
    return strip


def class_sizes_picture(before: NDArray[np.generic], after: NDArray[np.generic]) -> Image.Image:
    """What a sampler makes of the class sizes: both curves over the classes, largest first, on a log scale.

    Args:
        before: photos of each class, [C], with at least one of them above 0.
        after: of the same classes, mean photos that an epoch shows, [C] (`zoo.samplers.sampled_sizes`); drawn as the
            mean over equally large classes.

    Returns:
        RGB, 900 x 520 pixels. A class that is not shown at all lies on the lower axis.
    """
    sizes, kind = np.unique(before, return_inverse=True)
    mean = np.bincount(kind, after) / np.bincount(kind)  # [sizes] shown
    values = np.stack([sizes, mean])[:, np.sort(kind)[::-1]].astype(float)  # [2, C]
    positive = values[values > 0]
    low = math.floor(math.log10(positive.min()))
    high = max(math.ceil(math.log10(positive.max())), low + 1)
    picture = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(picture)
    _draw_axes(draw, low, high, values.shape[1])
    draw.line(_curve(values[1], low, high), AFTER, width=5)  # wide and below: seen even where nothing changes
    draw.line(_curve(values[0], low, high), BEFORE, width=3)
    return picture


def _curve(values: NDArray[np.float64], low: int, high: int) -> list[tuple[float, float]]:
    """The corners of a line with one step per class."""
    heights = [_down(math.log10(value) if value > 0 else low, low, high) for value in values]
    edges = [_across(number, len(values)) for number in range(len(values) + 1)]
    return [(x, y) for i, y in enumerate(heights) for x in edges[i : i + 2]]


def _draw_axes(draw: ImageDraw.ImageDraw, low: int, high: int, classes: int) -> None:
    font = ImageFont.load_default(TEXT)
    left, top, right, bottom = _PLOT
    digits = (1, 2, 5) if high - low <= 2 else (1,)
    for value in [10**power * digit for power in range(low, high) for digit in digits] + [10**high]:
        y = _down(math.log10(value), low, high)
        draw.line((left, y, right, y), FAINT)
        draw.text((left - 8, y), f"{value:,.6g}", INK, font, anchor="rm")
    for rank in _ticks(classes):
        x = _across(rank - 0.5, classes)
        draw.line((x, bottom, x, bottom + 5), INK)
        draw.text((x, bottom + 8), f"{rank:,}", INK, font, anchor="mt")
    draw.line((left, top, left, bottom, right, bottom), INK)
    draw.text((left, top - 8), "photos per landmark and epoch", INK, font, anchor="ls")
    draw.text((right, _SIZE[1] - 12), "landmarks, largest first", INK, font, anchor="rs")
    for words, colour, x in (("photos there are", BEFORE, right - 170), ("photos shown", AFTER, right)):
        draw.text((x, top - 8), words, colour, font, anchor="rs")


def _ticks(classes: int) -> list[int]:
    """Round ranks, at most ten of them, and the first."""
    magnitude = 10 ** max(math.floor(math.log10(classes)) - 1, 0)
    step = next(magnitude * digit for digit in (1, 2, 5, 10, 20) if classes / (magnitude * digit) <= 10)
    return [1, *(rank for rank in range(step, classes + 1, step) if rank > 1)]


def _across(number: float, classes: int) -> float:
    return _PLOT[0] + (_PLOT[2] - _PLOT[0]) * number / classes


def _down(logarithm: float, low: int, high: int) -> float:
    return _PLOT[3] - (_PLOT[3] - _PLOT[1]) * (logarithm - low) / (high - low)

"""Test-time views of a photo: the photo itself, its mirror image, crops of it, and it nearer or farther.

Every view has the shape of the batch it is made from, so it suits networks that take one input size only.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.nn import functional

from engine.core.errors import ConfigError, did_you_mean
from zoo.recipe import CROPS, MIRRORED_CROPS, SINGLE_VIEWS, VIEW_GROUPS, VIEWS

CROP = 7 / 8  # of the side: 224 of 256 pixels, the crop that networks for ImageNet are commonly tested with
NEAR, FAR = 1.25, 0.75  # how large things look in a zoomed view
_PLACES = ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1))  # top and left of the crop, in margins of the one in the centre
_CUTS = {name: (CROP, *place) for name, place in zip(CROPS, _PLACES, strict=True)} | {"zoom-in": (1 / NEAR, 1, 1)}
_MIRRORED = {"flip": "plain"} | dict(zip(MIRRORED_CROPS, CROPS, strict=True))


def expand_views(names: Iterable[str]) -> tuple[str, ...]:
    """The single views that some names stand for, in order, each once: a view asked for twice weighs no more.

    Args:
        names: of `VIEWS`.

    Raises:
        ConfigError: for an unknown name, with its nearest neighbours.

    >>> expand_views(["plain", "scales", "zoom-in"])
    ('plain', 'zoom-out', 'zoom-in')
    """
    single: list[str] = []
    for name in names:
        if name not in VIEWS:
            raise ConfigError(f"unknown view '{name}' — {did_you_mean(name, VIEWS)}")
        single.extend(VIEW_GROUPS.get(name, (name,)))
    return tuple(dict.fromkeys(single))


def view_batch(batch: Tensor, name: str) -> Tensor:
    """One view of every photo of a batch.

    - plain, flip: the photo, and its mirror image.
    - crop-top-left … crop-centre, also with -flip: a square of `CROP` of the side, enlarged to S.
    - zoom-in: the central 1 / 1.25 of the side, enlarged to S.
    - zoom-out: the photo shrunk to 0.75 of its side, amid its own reflection, as training's augmentation shows it.

    Args:
        batch: uint8 or float [B, 3, S, S] in 0..255.
        name: a single view, from `expand_views`.

    Returns:
        [B, 3, S, S] in 0..255; plain and flip in the batch's type, the resized ones in float32.

    Raises:
        ConfigError: for an unknown name, or one that stands for several views.
    """
    if name not in SINGLE_VIEWS:
        raise ConfigError(f"'{name}' is not a single view — {did_you_mean(name, SINGLE_VIEWS)}")
    if name == "plain":
        return batch
    if name in _MIRRORED:
        return view_batch(batch, _MIRRORED[name]).flip(-1)
    return _zoom_out(batch) if name == "zoom-out" else _crop(batch, *_CUTS[name])


def _crop(batch: Tensor, share: float, down: int, right: int) -> Tensor:
    size = batch.shape[-1]
    margin = _margin(size, share)
    side = size - 2 * margin
    top, left = down * margin, right * margin
    return _resize(batch[..., top : top + side, left : left + side], size)


def _zoom_out(batch: Tensor) -> Tensor:
    margin = _margin(batch.shape[-1], FAR)
    return functional.pad(_resize(batch, batch.shape[-1] - 2 * margin), (margin,) * 4, mode="reflect")


def _margin(size: int, share: float) -> int:
    """Pixels on each side of a central square of about that share of the side; whole ones, so that it is central."""
    return round(size * (1 - share) / 2)


def _resize(batch: Tensor, side: int) -> Tensor:
    return functional.interpolate(batch.float(), size=(side, side), mode="bilinear", antialias=True)

"""Photos made worse for training: shrunk to a few pixels and back, then with the artefacts of a JPEG file.

Some photos of the challenge are thumbnails; a network that has seen only sharp ones reads them badly. Every photo draws
its degradation from its own generator, keyed by (seed, epoch, photo), as in `zoo.augment` and independent of it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from zoo.augment import draw_uniform
from zoo.recipe import DegradeConfig

_DRAWS = 3  # uniform numbers per photo: whether, side, quality
_STREAM = 1  # the augmentation has 0


def draw_degradations(seed: int, epoch: int, photos: Sequence[int]) -> NDArray[np.float32]:
    """Uniform numbers 0..1, [B, 3], that depend on (seed, epoch, photo) only: whether, how small, how compressed."""
    return draw_uniform(seed, epoch, photos, count=_DRAWS, stream=_STREAM)


def degrade_batch(batch: Tensor, drawn: NDArray[np.float32], config: DegradeConfig) -> Tensor:
    """Degrade some photos of a batch; the others stay as they are.

    Args:
        batch: uint8 or float [B, 3, S, S] RGB in 0..255; never changed itself.
        drawn: [B, 3] in 0..1, from `draw_degradations`.
        config: how often and how far.

    Returns:
        Like the batch in type, shape and device; the very batch when no photo is degraded. A degraded photo has whole
        values, as decoded from a file.
    """
    chosen = np.flatnonzero(drawn[:, 0] < config.probability)
    if len(chosen) == 0:
        return batch
    degraded = batch.clone()
    for photo in chosen:
        _, largeness, fineness = drawn[photo].tolist()
        side = _side(largeness, config.smallest, batch.shape[-1])
        lowest, highest = config.quality
        quality = lowest + int(fineness * (highest - lowest + 1))
        degraded[photo] = _compressed(_shrunk_and_back(batch[photo], side), quality)
    return degraded


def _side(largeness: float, smallest: int, size: int) -> int:
    """Log-uniform from `smallest` to `size` pixels: as often from 16 to 32 as from 64 to 128."""
    low = min(smallest, size)
    return round(low * math.pow(size / low, largeness))


def _shrunk_and_back(photo: Tensor, side: int) -> Tensor:
    """[3, S, S] -> float [3, S, S] with the detail of `side` pixels."""
    size = photo.shape[-1]
    small = functional.interpolate(photo[None].float(), size=(side, side), mode="bilinear", antialias=True)
    return functional.interpolate(small, size=(size, size), mode="bilinear")[0]


def _compressed(photo: Tensor, quality: int) -> Tensor:
    """Float [3, S, S] in 0..255 -> uint8 [3, S, S] on the CPU, through a JPEG file in memory.

    One photo of 128 px takes Pillow 0.8 ms on one core; kornia's differentiable codec took 7 ms for each of a batch.
    """
    pixels = photo.round().clamp(0, 255).to("cpu", torch.uint8).permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)

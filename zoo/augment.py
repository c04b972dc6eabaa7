"""Augmentation of a batch on its device, all geometry in one resampling.

Every photo draws its changes from its own generator, keyed by (seed, epoch, photo), so that a resumed run, another
batch size or another order of photos repeats them exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from kornia.enhance import adjust_brightness, adjust_contrast, adjust_saturation_with_gray_subtraction
from kornia.geometry.transform import get_affine_matrix2d, warp_affine
from numpy.typing import NDArray
from torch import Tensor

from zoo.recipe import AugmentConfig

_DRAWS = 9  # uniform numbers per photo: each column below has its own


def draw_changes(seed: int, epoch: int, photos: Sequence[int]) -> NDArray[np.float32]:
    """Uniform numbers 0..1, [B, 9], that depend on (seed, epoch, photo) only."""
    return draw_uniform(seed, epoch, photos, count=_DRAWS, stream=0)


def draw_uniform(seed: int, epoch: int, photos: Sequence[int], *, count: int, stream: int) -> NDArray[np.float32]:
    """Uniform numbers 0..1, [B, count], that depend on (seed, epoch, photo, stream) only; streams never meet."""
    counter = [0, 0, 0, stream]
    keys = (np.random.Philox(key=[(seed << 32) + epoch, photo], counter=counter) for photo in photos)
    return np.stack([np.random.Generator(key).random(count, dtype=np.float32) for key in keys])


def augment_batch(images: Tensor, draws: NDArray[np.float32], config: AugmentConfig) -> Tensor:
    """Shift, rotate, zoom, stretch and flip in one warp, then brightness, contrast and saturation.

    Args:
        images: uint8 [B, 3, H, W] RGB.
        draws: [B, 9] in 0..1, from `draw_changes`.
        config: how far each change may go.

    Returns:
        float32 [B, 3, H, W], 0..255, like the input but for its type; the border is reflected.
    """
    pixels = images.float() / 255.0
    if not config.enabled:
        return pixels * 255.0
    uniform = torch.from_numpy(draws).to(pixels.device)
    signed = uniform * 2 - 1
    height, width = pixels.shape[-2:]
    shift = signed[:, :2] * config.shift * torch.tensor([width, height], device=pixels.device)
    low, high = config.scale
    zoom = low * (high / low) ** uniform[:, 2]  # log-uniform: as often half the size as twice
    ratio = (1 + config.stretch) ** signed[:, 3]
    side = torch.where(uniform[:, 4] < config.flip, -1.0, 1.0)
    scale = torch.stack([zoom * ratio.sqrt() * side, zoom / ratio.sqrt()], dim=1)  # [B, 2] x, y
    center = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=pixels.device).expand(len(pixels), 2)
    matrix = get_affine_matrix2d(shift, center, scale, signed[:, 5] * config.rotate)[:, :2]  # [B, 2, 3]
    warped = warp_affine(pixels, matrix, (height, width), padding_mode="reflection")
    warped = adjust_brightness(warped, signed[:, 6] * config.brightness, clip_output=False)
    warped = adjust_contrast(warped, 1 + signed[:, 7] * config.contrast, clip_output=False)
    warped = adjust_saturation_with_gray_subtraction(warped, 1 + signed[:, 8] * config.saturation)
    augmented: Tensor = warped.clamp(0, 1) * 255.0
    return augmented

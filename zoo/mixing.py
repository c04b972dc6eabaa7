"""Mixup and CutMix: two photos of a batch in one, and the loss of both their classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.recipe import TrainConfig


@dataclass(frozen=True, eq=False)
class Mix:
    """A mixed batch.

    Attributes:
        batch: like the one that was mixed.
        partner: int64 [B], the photo that each one was mixed with.
        share: how much of each photo is its own, 0..1.
    """

    batch: Tensor
    partner: Tensor
    share: float


def mix_batch(batch: Tensor, config: TrainConfig) -> Mix | None:
    """Mix a batch as a recipe asks, or not at all; torch's own generator draws, on the CPU.

    The share is drawn from Beta(alpha, alpha), one for the batch. Mixup: share * x + (1 - share) * partner (Zhang et
    al. 2018, arXiv 1710.09412, equation 1). CutMix: a rectangle of the partner covers 1 - share of x, as much of it as
    the photo's border leaves (Yun et al. 2019, arXiv 1905.04899, equation 2). With both, either is as likely.

    Args:
        batch: photos float [B, 3, S, S], or for mixup alone embeddings [B, D].
        config: mixup and cutmix, the alphas; None switches one off.
    """
    if not (config.mixup or config.cutmix):
        return None
    cuts = bool(config.cutmix) and (not config.mixup or bool(torch.rand(()) < 0.5))
    alpha = config.cutmix if cuts else config.mixup
    share = float(torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha)).sample())
    partner = torch.randperm(len(batch)).to(batch.device)
    if cuts:
        mask = _rectangle(batch.shape[-2], batch.shape[-1], 1 - share).to(batch.device)
        return Mix(torch.where(mask, batch[partner], batch), partner, 1 - float(mask.float().mean()))
    return Mix(torch.lerp(batch[partner], batch, share), partner, share)


def _rectangle(height: int, width: int, area: float) -> Tensor:
    """Bool [H, W]: a rectangle of the picture's shape and `area` of its size, about a random centre, cut at its border.

    The exact pixels follow the paper's code: side sqrt(area) of each axis.
    """
    y, x = (torch.rand(2) * torch.tensor([height, width])).tolist()
    half_height, half_width = (round(area**0.5 * side) / 2 for side in (height, width))
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    inside: Tensor = ((rows - y).abs() < half_height)[:, None] & ((columns - x).abs() < half_width)
    return inside

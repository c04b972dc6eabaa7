"""Poolings that timm does not have: a feature map [B, C, H, W] of the backbone in, one vector per photo out."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn


class GeM(nn.Module):
    """Generalised-mean pooling: the p-th root of the mean p-th power of each channel, with one learned p.

    Radenović, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation" (2019), equation 2. At p = 1
    it is the average, and it approaches the maximum as p grows. Powers are taken in fp32 and of values divided by their
    channel's maximum, so that neither a large p nor half precision overflows.

    Args:
        p: at the start; 3 is the paper's.
        eps: the least activation: a root has no finite gradient at 0.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W], where negative counts as zero -> [B, C] of the same type."""
        counting = features.device.type == "meta"  # which knows no autocast
        with nullcontext() if counting else torch.autocast(features.device.type, enabled=False):
            p = self.p.float()
            positive = features.float().clamp_min(self.eps)
            highest = positive.detach().amax(dim=(2, 3), keepdim=True)  # cancels out, so it needs no gradient
            mean = (positive / highest).pow(p).mean(dim=(2, 3)).pow(1 / p)  # [B, C] in 0..1
            return (mean * highest.flatten(1)).to(features.dtype)


class FlatPool(nn.Sequential):
    """Average pooling to a few cells that keep their place: [B, C, H, W] -> [B, C * side * side].

    Args:
        side: cells per side; 4 makes 32,768 features of ResNet-50's 2,048 channels, as in the challenge's slides. A map
            with fewer cells is repeated up to it.
    """

    def __init__(self, side: int = 4) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(side), nn.Flatten())


def make_pooling(name: str) -> nn.Module:
    """The pooling of a name, from [B, C, H, W] to one vector per photo; for timm's own, which a backbone does, nothing.

    >>> make_pooling("flat")(torch.zeros(2, 3, 7, 7)).shape
    torch.Size([2, 48])
    """
    pooling: nn.Module = {"gem": GeM, "flat": FlatPool}.get(name, nn.Identity)()
    return pooling

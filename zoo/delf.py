"""DELF, attentive local features (Noh et al. 2017, arXiv 1612.06321), on any backbone's feature map.

In: feature maps [B, C, h, w], in the paper those of a ResNet's conv4 (`backbone.stage = 3`, stride 16). Out: the pooled
vector that a linear head trains by, then `LocalFeatures` for `zoo.local`. A cell of conv4 is 16 pixels wide, so pairs
are verified with `threshold` about that much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.core.errors import DataError
from zoo.local import LocalFeatures

HIDDEN = 512  # channels between the two attention layers, the paper's
SCALES = tuple(2 ** (power / 2) for power in range(-4, 3))  # 0.25 to 2 in steps of sqrt 2, the paper's seven
DIM = 40  # of a whitened descriptor, the paper's
MIN_VARIANCE = 1e-9  # of unit vectors along a direction; what is left below it is rounding of float32 features


class AttentionPool(nn.Module):
    """The features of all places, weighed by a learned attention: y = sum_n alpha(f_n) f_n (equation 1).

    A linear head makes it the paper's logits, and landmark labels alone teach the attention. It sees the features f_n
    as they are; in the sum they have unit length, so that alpha alone decides how much a place counts. The sum is over
    places of one photo, never over the batch.

    Args:
        channels: C of the feature map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Conv2d(channels, HIDDEN, 1), nn.ReLU(), nn.Conv2d(HIDDEN, 1, 1), nn.Softplus())

    def attention(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> alpha [B, h, w], above 0."""
        alpha: Tensor = self.score(features)
        return alpha[:, 0]

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C]."""
        directions = functional.normalize(features, dim=1)
        return torch.einsum("bhw,bchw->bc", self.attention(features).to(directions.dtype), directions)


@dataclass(frozen=True, eq=False)
class Whitening:
    """Principal directions divided by their spread, and unit length before and after, as in the paper.

    Attributes:
        mean: float32 [C] of the descriptors of unit length.
        basis: float32 [C, E].
    """

    mean: Tensor
    basis: Tensor

    def project(self, descriptors: Tensor) -> Tensor:
        """[..., C] -> [..., E]; identity covariance over the descriptors it was fitted to."""
        centred = functional.normalize(descriptors.float(), dim=-1) - self.mean.to(descriptors.device)
        return centred @ self.basis.to(descriptors.device)

    def __call__(self, descriptors: Tensor) -> Tensor:
        """[..., C] -> [..., E] of unit length."""
        return functional.normalize(self.project(descriptors), dim=-1)


def fit_whitening(descriptors: Tensor, dim: int = DIM) -> Whitening:
    """Learn the reduction from descriptors of training photos.

    Args:
        descriptors: [N, C], a few hundred per kept direction are plenty.
        dim: E.

    Raises:
        DataError: when they span fewer than E directions.
    """
    directions = functional.normalize(descriptors.double(), dim=1)
    mean = directions.mean(dim=0)
    centred = directions - mean
    spread, axes = torch.linalg.eigh(centred.T @ centred / max(len(centred) - 1, 1))  # ascending variances
    rank = int((spread > MIN_VARIANCE).sum())
    if rank < dim:
        raise DataError(
            f"{len(descriptors)} descriptors span {rank} directions, fewer than the {dim} to keep",
            hint="give more training photos or keep fewer directions",
        )
    basis = axes[:, -dim:] / spread[-dim:].sqrt()
    return Whitening(mean.float(), basis.flip(1).float())


@dataclass(frozen=True)
class Grid:
    """Where the cells of a feature map lie in the photo.

    Attributes:
        stride: pixels of the photo between neighbouring cells.
        offset: pixel that the first cell's receptive field is centred on, in x and in y.
    """

    stride: float
    offset: float

    @classmethod
    def at_scale(cls, scale: float, stride: int = 16) -> Grid:
        """The grid of a ResNet's map of the photo resized by `scale`: its padding centres cell i on pixel stride * i.

        >>> Grid.at_scale(1.0)
        Grid(stride=16.0, offset=0.0)
        """
        return cls(stride / scale, 0.5 / scale - 0.5)


@torch.inference_mode()
def keypoints(
    pool: AttentionPool,
    maps: Sequence[Tensor],
    grids: Sequence[Grid],
    whitening: Whitening,
    *,
    count: int,
    radius: float = 8.0,
) -> list[LocalFeatures]:
    """The places of highest attention over all scales, none nearer to a higher one than `radius`.

    Only places above the photo's mean attention are taken, so a map without any structure has no keypoints.

    Args:
        pool: trained.
        maps: [B, C, h, w] of the same B photos, one per scale.
        grids: one per map.
        whitening: of the descriptors.
        count: K.
        radius: pixels of the photo; 8 is half a cell of conv4, so neighbours in a map at full size all survive.
    """
    places = torch.cat([_places(*pair) for pair in zip(maps, grids, strict=True)])  # [P, 2]
    attention = torch.cat([pool.attention(features).flatten(1) for features in maps], dim=1)  # [B, P]
    features = torch.cat([features.flatten(2).mT for features in maps], dim=1)  # [B, P, C]
    photos = []
    for alpha, described in zip(attention, features, strict=True):
        kept = suppress(places, alpha, radius)[:count]
        photos.append(LocalFeatures.from_tensors(places[kept], whitening(described[kept]), alpha[kept]))
    return photos


def _places(features: Tensor, grid: Grid) -> Tensor:
    """x, y [h * w, 2] in pixels of the photo, row by row as `flatten` has them."""
    height, width = features.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (torch.stack([x, y], dim=-1).flatten(0, 1) * grid.stride + grid.offset).to(features.device)


def suppress(places: Tensor, scores: Tensor, radius: float) -> Tensor:
    """Greedy non-maximum suppression among the places whose score is above the mean.

    Args:
        places: [P, 2] pixels.
        scores: [P].
        radius: pixels; of two nearer places the lower one goes.

    Returns:
        int64 indices into `places`, highest score first.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] > scores.mean() * (1 + 1e-5)]  # equal numbers differ from their mean by rounding
    near = (torch.cdist(places[order], places[order]) < radius).cpu()  # [P, P]
    alive = torch.ones(len(order), dtype=torch.bool)
    for index in range(len(order)):
        if alive[index]:
            alive[index + 1 :] &= ~near[index, index + 1 :]
    return order[alive.to(order.device)]

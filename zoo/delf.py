"""DELF, attentive local features (Noh et al. 2017, arXiv 1612.06321), on any backbone's feature map.

In: feature maps [B, C, h, w], in the paper those of a ResNet's conv4 (`backbone.stage = 3`, stride 16). Out: the pooled
vector that a linear head trains by, then `LocalFeatures` for `zoo.local`. Nothing here touches the disk:
`zoo.delf_photos` describes the photos of a member.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.core.errors import ConfigError, DataError
from zoo.local import LocalFeatures

HIDDEN = 512  # channels between the two attention layers, the paper's
DIM = 40  # of a whitened descriptor, the paper's
RADIUS = (
    6.0  # pixels: under half a cell of conv4, so neighbours survive even at twice the size, and few twins across scales
)
STRIP = 64, 1024  # height and width of the trial picture: receptive fields of conv4 are some 300 pixels wide
DARK = 1e-4  # of its pixels: sums over a hundred residual blocks stay below the bound of a ReLU6
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
    """Where the cells of a network's map lie in what it is given; the same along both axes.

    Attributes:
        stride: pixels between neighbouring cells.
        offset: pixel that the first cell's receptive field is centred on: 0 where padding is as wide on either side,
            as a ResNet's, `stride` - 1 where it is wider behind, as TensorFlow's.
    """

    stride: int
    offset: float

    def fit(self, height: float, width: float) -> tuple[int, int]:
        """The nearest height and width that are whole cells; TensorFlow's padding would change with any other."""
        rows, columns = (max(1, round(side / self.stride)) for side in (height, width))
        return rows * self.stride, columns * self.stride

    def places(self, height: int, width: int, zoom: tuple[float, float] = (1.0, 1.0)) -> Tensor:
        """Centres of the cells of a map, x and y in pixels of the photo, [h * w, 2], row by row as `flatten` has them.

        Args:
            height: h.
            width: w.
            zoom: pixels of what the network was given per pixel of the photo, along x and y.

        >>> Grid(16, 15.0).places(1, 2, (2.0, 2.0)).tolist()
        [[7.25, 7.25], [15.25, 7.25]]
        """
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        cells = torch.stack([x, y], dim=-1).flatten(0, 1)
        return (cells * self.stride + self.offset + 0.5) / torch.tensor(zoom) - 0.5


def measure_grid(network: nn.Module) -> Grid:
    """Where the cells of a convolutional network's map lie, asked of the network itself, as paddings differ.

    In a copy whose kernels are all flat, the gradient of a cell is its receptive field, blurred towards the middle:
    its centre of mass is the centre, whatever was learned. Numbers are small, so that bounded activations let the
    gradient through and gates stay half open.

    Args:
        network: from normalised float [B, 3, H, W] to a map [B, C, h, w].

    Raises:
        ConfigError: when a cell does not depend on the pixels in such a way.
    """
    flat = copy.deepcopy(network).cpu().float().eval().requires_grad_(requires_grad=False)
    for module in flat.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    strip = torch.rand(1, 3, *STRIP, generator=torch.Generator().manual_seed(0)) * DARK
    with torch.inference_mode(mode=False), torch.enable_grad():
        row = flat(strip.requires_grad_())[0].sum(dim=(0, 1))  # [w]
        middle = len(row) // 2
        (gradient,) = torch.autograd.grad(row[middle], strip)
    mass = gradient[0].double().sum(dim=(0, 1))  # [W]
    centre = float((mass * torch.arange(len(mass))).sum() / mass.sum())
    stride = STRIP[1] // len(row)
    if not abs(centre - stride * (middle + 0.5)) <= stride:  # also of NaN
        raise ConfigError(
            "the places that the network's features describe cannot be told", hint="use a convolutional network"
        )
    return Grid(stride, round(centre - stride * middle))


@torch.inference_mode()
def keypoints(
    pool: AttentionPool,
    maps: Sequence[Tensor],
    places: Sequence[Tensor],
    reduce: Callable[[Tensor], Tensor],
    *,
    count: int,
    radius: float = RADIUS,
) -> list[LocalFeatures]:
    """The places of highest attention over all scales, none nearer to a higher one than `radius`.

    Only places above the photo's mean attention are taken, so a map without any structure has no keypoints.

    Args:
        pool: trained.
        maps: [B, C, h, w] of the same B photos, one per scale.
        places: [h * w, 2] of each map's cells in the photo, x and y in pixels.
        reduce: descriptors [..., C] to what is kept of them, of unit length; a `Whitening`.
        count: K.
        radius: pixels of the photo.
    """
    everywhere = torch.cat(list(places))  # [P, 2]
    attention = torch.cat([pool.attention(features).flatten(1) for features in maps], dim=1).float()  # [B, P]
    features = torch.cat([features.flatten(2).mT for features in maps], dim=1)  # [B, P, C]
    photos = []
    for alpha, described in zip(attention.cpu(), features, strict=True):
        kept = suppress(everywhere, alpha, radius)[:count]
        photos.append(LocalFeatures.from_tensors(everywhere[kept], reduce(described[kept]).cpu(), alpha[kept]))
    return photos


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
    apart = (torch.cdist(places[order], places[order]) >= radius).numpy()  # [P, P]
    alive = np.ones(len(order), dtype=bool)
    for index in range(len(order)):
        if alive[index]:
            alive[index + 1 :] &= apart[index, index + 1 :]
    return order[torch.from_numpy(alive)]

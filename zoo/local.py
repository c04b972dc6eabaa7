"""Local features of photos, geometric verification of pairs, and what verified pairs say about landmarks.

In: photos uint8 [H, W, 3]. Out: `LocalFeatures` per photo, inlier counts per pair of photos, and logits that a
retrieval and the counts make together. Nothing here touches the disk. SIFT needs no training; `zoo.delf` holds the
trained kind, which the same verifier serves.

Letters: B photos, K keypoints, D descriptor width, N photos that one query is compared with, M matches, T hypotheses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from kornia.feature import (
    LAFOrienter,
    SIFTDescriptor,
    extract_patches_from_pyramid,
    hessian_response,
    laf_from_center_scale_ori,
)
from kornia.filters import gaussian_blur2d
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from zoo.recipe import LocalConfig

SIGMA = 1.6  # pixels of a pyramid level: the blur that Lowe (2004, section 3.3) found most repeatable
RADIUS = 12.0  # pixels of a pyramid level that a descriptor sees around its keypoint; 16 and 20 were no better
PATCH = 20  # samples per side of that neighbourhood, about one per pixel; 32 took twice the time and was no better
LEVEL_STEP = 2**0.5  # between pyramid levels, so no structure is further than 2 ** 0.25 from one that sees it sharply
PEAK = 5  # pixels of a pyramid level per side of the window in which a keypoint is the strongest
MIN_RESPONSE = 1e-5  # determinant of the Hessian of a picture in 0..1; the noise of a flat sky stays below
MAX_ENLARGE = 2.0  # Lowe's doubled first octave; 4 found more keypoints and no more true pairs
MAX_ZOOM = 4.0  # of length between two photos; beyond it a pair of SIFT descriptors agrees by chance only
MAX_STRETCH = 3.0  # longer to shorter axis of an affine map: a facade seen from 70 degrees aside
SAMPLE = 3  # pairs of points that fix an affine map


@dataclass(frozen=True, eq=False)
class LocalFeatures:
    """The keypoints of one photo, strongest first; K may be 0.

    Attributes:
        positions: float32 [K, 2], x and y in pixels of the photo at the size it was extracted at.
        descriptors: float16 [K, D] of unit length: half the memory of float32, and angles to a thousandth.
        scores: float32 [K], strength of the detection, above 0, descending; comparable within a kind only.
    """

    positions: NDArray[np.float32]
    descriptors: NDArray[np.float16]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.positions)

    @classmethod
    def from_tensors(cls, positions: Tensor, descriptors: Tensor, scores: Tensor) -> LocalFeatures:
        """The keypoints of a photo [K, 2], [K, D], [K] whose score is above 0."""
        found = scores > 0
        return cls(
            positions[found].float().cpu().numpy(),
            descriptors[found].half().cpu().numpy(),
            scores[found].float().cpu().numpy(),
        )


def fit_longest(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] to `size` pixels on the longest side, keeping its shape; enlarged at most twice.

    >>> fit_longest(np.zeros((100, 400, 3), np.uint8), 256).shape
    (64, 256, 3)
    >>> fit_longest(np.zeros((10, 15, 3), np.uint8), 256).shape
    (20, 30, 3)
    """
    height, width = image.shape[:2]
    zoom = min(size / max(height, width), MAX_ENLARGE)
    fitted = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    return np.array(Image.fromarray(image).resize(fitted, Image.Resampling.BICUBIC, reducing_gap=2.0))


@torch.inference_mode()
def sift_features(
    images: Sequence[NDArray[np.uint8]], config: LocalConfig, *, device: torch.device
) -> list[LocalFeatures]:
    """RootSIFT (Lowe 2004; Arandjelovic and Zisserman 2012) at the peaks of the Hessian's determinant.

    Args:
        images: uint8 [H, W, 3] RGB photos of any sizes, computed as one batch of squares.
        config: size, keypoints, upright.
        device: where the batch is computed.

    Returns:
        One `LocalFeatures` per photo, with positions in pixels of `fit_longest(image, config.size)`.
    """
    fitted = [fit_longest(image, config.size) for image in images]
    sides = torch.tensor([[image.shape[1], image.shape[0]] for image in fitted], device=device)  # [B, 2]
    grey = torch.stack([_grey_square(image, config.size) for image in fitted]).to(device)  # [B, 1, S, S]
    centres, radii, scores = detect(grey, sides, config.keypoints)
    frames = laf_from_center_scale_ori(centres, radii[..., None, None])  # [B, K, 2, 3]
    if not config.upright:
        frames = LAFOrienter().to(device)(frames, grey)
    patches = extract_patches_from_pyramid(grey, frames, PATCH)  # [B, K, 1, P, P]
    descriptors = SIFTDescriptor(PATCH).to(device)(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
    return [LocalFeatures.from_tensors(*photo) for photo in zip(centres, descriptors, scores, strict=True)]


def _grey_square(image: NDArray[np.uint8], size: int) -> Tensor:
    """Float [1, S, S] in 0..1; what the photo does not fill repeats its border."""
    grey = torch.from_numpy(np.array(Image.fromarray(image).convert("L"))).float() / 255
    missing = (0, size - grey.shape[1], 0, size - grey.shape[0])
    return functional.pad(grey[None, None], missing, mode="replicate")[0]


def detect(grey: Tensor, sides: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The strongest blobs and corners at several scales: peaks of det H, positive on a blurred picture.

    One detector runs over a pyramid of shrinking pictures; with a fixed blur in each level's own pixels the responses
    are normalised for scale (Lindeberg 1998). A keypoint's whole neighbourhood lies inside the photo, so
    very small photos have none.

    Args:
        grey: float [B, 1, S, S] in 0..1.
        sides: [B, 2] width and height of the photo inside its square, from the top left.
        count: K.

    Returns:
        centres [B, K, 2] and radii [B, K] in pixels, responses [B, K] descending, 0 where there is no keypoint.
    """
    found = []
    side = grey.shape[-1]
    while side > 2 * RADIUS:
        found.append(_detect_level(grey, sides, side, count))
        side = round(side / LEVEL_STEP)
    centres, radii, scores = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    scores, order = scores.topk(min(count, scores.shape[1]), dim=1)
    return _rows(centres, order), radii.gather(1, order), scores


def _detect_level(grey: Tensor, sides: Tensor, side: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """`detect` on the picture shrunk to `side` pixels."""
    step = grey.shape[-1] / side  # pixels of the photo per pixel of the level
    small = functional.interpolate(grey, size=(side, side), mode="bilinear", antialias=True)
    response = hessian_response(gaussian_blur2d(small, (9, 9), (SIGMA, SIGMA)))[:, 0]  # [B, s, s]
    peak = response == functional.max_pool2d(response, PEAK, stride=1, padding=PEAK // 2)
    axis = (torch.arange(side, device=grey.device) + 0.5) * step - 0.5  # [s] the level's pixels in the photo's
    reach = RADIUS * step
    inside = (axis >= reach) & (axis + reach <= sides[..., None] - 1)  # [B, 2, s]
    valid = peak & (response > MIN_RESPONSE) & inside[:, :1] & inside[:, 1:].mT
    scores, place = (response * valid).flatten(1).topk(min(count, side * side), dim=1)
    centres = torch.stack([axis[place % side], axis[place // side]], dim=2)
    return centres, torch.full_like(scores, reach), scores


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of table [N, K, E] by index [N, ...] -> [N, ..., E]."""
    flat = index.flatten(1)[..., None].expand(-1, -1, table.shape[2])
    return table.gather(1, flat).reshape(*index.shape, table.shape[2])


@dataclass(frozen=True, eq=False)
class Matches:
    """Matched points of one query and N photos; rows end with padding.

    Attributes:
        source: float64 [N, M, 2] positions in the query.
        target: float64 [N, M, 2] positions in the other photo.
        count: int64 [N] matches before the padding.
    """

    source: Tensor
    target: Tensor
    count: Tensor


def match(
    query: LocalFeatures, others: Sequence[LocalFeatures], ratio: float, device: torch.device | None = None
) -> Matches:
    """Mutual nearest neighbours whose distance is below `ratio` times that of the second nearest (Lowe 2004, 7.1).

    Args:
        query: at least one keypoint.
        others: N photos, at least one; without keypoints they get no match.
        ratio: 0..1, of Euclidean distances.
        device: where to compute; the CPU when None.
    """
    width = max(2, *map(len, others))  # two columns: a lone keypoint has no second nearest, so it passes the ratio
    descriptors = torch.zeros(len(others), width, query.descriptors.shape[1])
    positions = torch.zeros(len(others), width, 2, dtype=torch.float64)
    for row, other in enumerate(others):
        descriptors[row, : len(other)] = torch.from_numpy(other.descriptors)
        positions[row, : len(other)] = torch.from_numpy(other.positions)
    missing = torch.arange(width) >= torch.tensor([len(other) for other in others])[:, None]  # [N, K']
    queries = torch.from_numpy(query.descriptors).float().to(device)
    cosine = queries @ descriptors.to(device).mT  # [K, D] x [N, D, K'] -> [N, K, K']
    cosine = cosine.masked_fill(missing[:, None].to(device), -torch.inf)
    top, nearest = cosine.topk(2, dim=2)
    mutual = cosine.argmax(dim=1).gather(1, nearest[..., 0]) == torch.arange(len(query), device=device)
    distance = (2 - 2 * top).clamp_min(0)  # squared; half precision leaves cosines a little above 1
    good = mutual & (distance[..., 0] < ratio**2 * distance[..., 1])  # [N, K]; inf < inf drops empty photos
    count = good.sum(dim=1)
    first = good.byte().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]  # [N, M] the good ones
    source = torch.from_numpy(query.positions).double().to(device)[first]
    return Matches(source, _rows(positions.to(device), nearest[..., 0].gather(1, first)), count)


@dataclass(frozen=True, eq=False)
class Verification:
    """What RANSAC found between a query and N photos.

    Attributes:
        inliers: int64 [N] matches that one affine map explains; 0 when no sane map was found.
        maps: float64 [N, 2, 3] from (x, y, 1) in the query to (x, y) in the other photo; NaN where there is none.
    """

    inliers: NDArray[np.int64]
    maps: NDArray[np.float64]


@torch.inference_mode()
def verify(
    query: LocalFeatures,
    others: Sequence[LocalFeatures],
    config: LocalConfig,
    *,
    seed: int,
    device: torch.device | None = None,
) -> Verification:
    """Match a query with N photos and find each pair's best affine map by RANSAC (Fischler and Bolles 1981).

    All pairs are computed at once. The map is fitted to three random matches, and the best one fitted again to its
    inliers; maps that mirror, zoom by more than `MAX_ZOOM` or stretch by more than `MAX_STRETCH` are not believed. A
    pair's result depends on the pair and the seed only.

    Args:
        query: its keypoints; fewer than three have no inliers.
        others: N photos.
        config: ratio, threshold, hypotheses.
        seed: of the samples.
        device: where to compute; the CPU when None.
    """
    nothing = Verification(np.zeros(len(others), np.int64), np.full((len(others), 2, 3), np.nan))
    if len(query) < SAMPLE or max(map(len, others), default=0) < SAMPLE:
        return nothing
    pairs = match(query, others, config.ratio, device)
    if pairs.source.shape[1] < SAMPLE:
        return nothing
    chance = torch.rand(config.hypotheses, SAMPLE, generator=torch.Generator().manual_seed(seed))
    sample = (chance.to(device) * pairs.count[:, None, None]).long()  # [N, T, 3]
    maps = _solve(_homogeneous(_rows(pairs.source, sample)), _rows(pairs.target, sample))  # [N, T, 3, 2]
    obeys = _obeying(maps, pairs, config.threshold)  # [N, T, M]
    best = obeys.sum(dim=2).argmax(dim=1)
    every = torch.arange(len(others), device=device)
    first = maps[every, best][:, None]  # [N, 1, 3, 2]
    both = torch.cat([first, _refit(pairs, obeys[every, best])], dim=1)
    counts, choice = _obeying(both, pairs, config.threshold).sum(dim=2).flip(1).max(dim=1)  # a tie goes to the refit
    chosen = both.flip(1)[every, choice].mT
    chosen = chosen.masked_fill((counts == 0)[:, None, None], torch.nan)
    return Verification(counts.cpu().numpy(), chosen.cpu().numpy())


def _homogeneous(points: Tensor) -> Tensor:
    return functional.pad(points, (0, 1), value=1.0)


def _solve(system: Tensor, right: Tensor) -> Tensor:
    """Solutions [..., 3, 2]; a singular system gives infinities or NaN, which obey nothing, instead of an error."""
    solution: Tensor = torch.linalg.solve_ex(system, right).result
    return solution


def _obeying(maps: Tensor, pairs: Matches, threshold: float) -> Tensor:
    """Which matches each of [N, T, 3, 2] maps explains: bool [N, T, M]."""
    linear = maps[..., :2, :]
    area = linear[..., 0, 0] * linear[..., 1, 1] - linear[..., 0, 1] * linear[..., 1, 0]  # s1 * s2, of its axes
    squares = linear.square().sum(dim=(-2, -1))  # s1 ** 2 + s2 ** 2
    sane = (area > MAX_ZOOM**-2) & (area < MAX_ZOOM**2) & (squares <= area * (MAX_STRETCH + 1 / MAX_STRETCH))
    error = (_homogeneous(pairs.source)[:, None] @ maps - pairs.target[:, None]).square().sum(dim=3)  # [N, T, M]
    real = torch.arange(error.shape[2], device=error.device) < pairs.count[:, None]  # [N, M]
    return (error <= threshold**2) & sane[..., None] & real[:, None]


def _refit(pairs: Matches, obeys: Tensor) -> Tensor:
    """The least-squares maps [N, 1, 3, 2] of some matches, bool [N, M]."""
    points = _homogeneous(pairs.source)
    weighted = (points * obeys[..., None]).mT  # [N, 3, M]
    return _solve(weighted @ points, weighted @ pairs.target)[:, None]


def inliers(
    query: LocalFeatures,
    others: Sequence[LocalFeatures],
    config: LocalConfig,
    *,
    seed: int,
    device: torch.device | None = None,
) -> NDArray[np.int64]:
    """Inlier counts int64 [N] of a query and N photos; see `verify`."""
    return verify(query, others, config, seed=seed, device=device).inliers


def rerank(
    logits: NDArray[np.float32], classes: NDArray[np.int64], counts: NDArray[np.int64], config: LocalConfig
) -> NDArray[np.float32]:
    """Add to the landmarks' logits what the photos that verify say: weight * log(1 + inliers) of the best one.

    The best photo and not the sum: one training photo from the query's side of the landmark is enough, and a landmark
    does not win by having many photos.

    Args:
        logits: [Q, C] of the retrieval.
        classes: [Q, N] the class of each query's verified training photos, -1 where there is none.
        counts: [Q, N] their inliers; fewer than `config.minimum` say nothing.
        config: minimum, weight.

    Returns:
        float32 [Q, C], nowhere below the given logits.

    >>> config = LocalConfig(minimum=8)
    >>> logits = np.zeros((1, 3), np.float32)
    >>> rerank(logits, np.array([[2, 2, 1]]), np.array([[19, 9, 7]]), config).round(2)
    array([[0., 0., 3.]], dtype=float32)
    """
    speaks = (classes >= 0) & (counts >= config.minimum)
    query, _ = np.nonzero(speaks)
    evidence = np.zeros_like(logits, dtype=np.float32)
    np.maximum.at(evidence, (query, classes[speaks]), np.log1p(counts[speaks]).astype(np.float32))
    return (logits + config.weight * evidence).astype(np.float32)

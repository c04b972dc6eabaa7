"""The second look of a member: its nearest training photos are verified by local features, and its logits re-ranked.

`local/<key>/<shard>.npy` holds the keypoints of up to `SHARD` photos in catalog order, [n, K] records of position,
descriptor and score; a photo's rest is zero. All folds and members with the same SIFT features share them, see
`zoo.shards`; DELF features are a fold's own, see `zoo.delf_photos`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.core.config import flatten
from engine.core.images import read_image
from engine.core.interrupt import StopRequest
from engine.core.progress import Advance, Progress
from engine.core.runs import Run
from engine.core.storage import sha256_json
from zoo.heads import Compared, Tell
from zoo.local import LocalFeatures, inliers, rerank, sift_features
from zoo.photo_heads import NeighbourHead
from zoo.recipe import LocalConfig
from zoo.shards import Series, make_shards
from zoo.sources import Rows

SHARD = 1024  # photos: 82 MB at 300 keypoints, and the most that an interruption costs
BATCH = 16  # photos described at a time: their patches take 0.1 GB
WIDTH = 128  # of a SIFT descriptor
EXTRACTION = ("size", "keypoints", "upright")  # the settings that features depend on
VERSION = 1  # raised when a change of code changes features or counts


def point_type(width: int) -> np.dtype[np.void]:
    """A keypoint as a record, with a descriptor of some width."""
    return np.dtype([("position", np.float32, 2), ("descriptor", np.float16, width), ("score", np.float32)])


def fill_points(points: NDArray[np.void], photos: Sequence[LocalFeatures]) -> None:
    """Write the features of the first photos into records [n, K] of zeros."""
    for row, found in enumerate(photos):
        points["position"][row, : len(found)] = found.positions
        points["descriptor"][row, : len(found)] = found.descriptors
        points["score"][row, : len(found)] = found.scores


@dataclass(frozen=True, eq=False)
class LocalStore:
    """The local features of photos, read from disk when they are asked for by the photo's row.

    Attributes:
        shards: of `SHARD` photos each, the last one of what is left; records [n, K].
        size: photos in a full shard.
        places: row -> place among the photos of the shards; None where these are all photos in their order.
    """

    shards: Sequence[NDArray[np.void]]
    size: int
    places: Mapping[int, int] | None = None

    def __getitem__(self, row: int) -> LocalFeatures:
        place = row if self.places is None else self.places[row]
        points = self.shards[place // self.size][place % self.size]
        points = points[points["score"] > 0]
        return LocalFeatures(*(np.ascontiguousarray(points[name]) for name in ("position", "descriptor", "score")))


def describe_photos(
    run: Run,
    config: LocalConfig,
    paths: Sequence[Path],
    hashes: Sequence[str],
    *,
    max_pixels: int,
    device: torch.device,
    progress: Progress,
    stop: StopRequest,
) -> LocalStore:
    """Extract every photo's SIFT features, shard by shard; shards that are whole and fresh are not made again.

    Args:
        run: where the shards go.
        config: size, keypoints, upright.
        paths: the photos' files.
        hashes: SHA-256 of each, what a shard is made from.
        max_pixels: limit of the photo reader.
        device: where features are computed.
        progress: told of each batch.
        stop: looked at after each shard.

    Raises:
        KeyboardInterrupt: when asked to stop; finished shards are kept.
    """

    def make(part: slice, advance: Advance) -> NDArray[np.void]:
        return extract(paths[part], config, max_pixels, device, advance)

    return LocalStore(make_shards(run, local_series(config), hashes, make, progress=progress, stop=stop), SHARD)


def local_series(config: LocalConfig) -> Series:
    """The shards of the SIFT features that some settings ask for."""
    made_from = {f"local.{name}": value for name, value in flatten(config).items() if name in EXTRACTION}
    key = f"sift-{config.size}-{sha256_json(made_from)[:8]}"
    return Series(f"local/{key}", "local features", f"describe {key}", SHARD, made_from | {"version": VERSION})


def extract(
    paths: Sequence[Path], config: LocalConfig, max_pixels: int, device: torch.device, advance: Advance
) -> NDArray[np.void]:
    """The SIFT features of some photos, records [n, K]."""
    points = np.zeros((len(paths), config.keypoints), point_type(WIDTH))
    for start in range(0, len(paths), BATCH):
        part = paths[start : start + BATCH]
        images = [read_image(path, max_pixels=max_pixels, cover=config.size) for path in part]
        fill_points(points[start:], sift_features(images, config, device=device))
        advance(len(part), "")
    return points


@dataclass(frozen=True, eq=False)
class Verifier:
    """Compares queries with photos; pairs it has seen are not compared again, as fold models share most of theirs.

    Attributes:
        store: the features of all photos.
        config: how pairs are compared, and what inliers say.
        seed: of the samples.
        device: where pairs are compared.
    """

    store: LocalStore
    config: LocalConfig
    seed: int
    device: torch.device
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    def count_inliers(self, query: int, photos: Sequence[int]) -> list[int]:
        """The inliers of a photo with each of some others, all by their rows."""
        new = [photo for photo in photos if (query, photo) not in self._known]
        others = [self.store[photo] for photo in new]
        found = inliers(self.store[query], others, self.config, seed=self.seed, device=self.device)
        self._known.update(zip([(query, photo) for photo in new], found.tolist(), strict=True))
        return [self._known[query, photo] for photo in photos]

    def rerank_batch(
        self, head: NeighbourHead, indexed: Rows, queries: Rows, compared: Compared, logits: Tensor
    ) -> tuple[Tensor, Tell]:
        """Verify the nearest training photos of some queries, and add what they say to the logits.

        Args:
            head: filled with the photos of `indexed`, in their order.
            indexed: rows of the training photos, [N].
            queries: rows of the queries, [B].
            compared: of the queries and these photos, from `head.compare`.
            logits: [B, C].

        Returns:
            Logits float32 [B, C], and what tells of candidates: the head's evidence, and `inliers` by `most_inliers`.
        """
        if self.config.cosine_weight is not None:
            logits = logits + self.config.cosine_weight * head.nearest_cosines(compared)
        nearest = head.nearest(compared, self.config.candidates)  # [B, V]
        classes = head.get_buffer("targets")[nearest]
        pairs = zip(queries.tolist(), indexed[nearest.cpu().numpy()].tolist(), strict=True)
        counts = np.array([self.count_inliers(query, photos) for query, photos in pairs])
        refined = torch.from_numpy(rerank(logits.cpu().numpy(), classes.cpu().numpy(), counts, self.config))

        def tell(candidates: Tensor) -> dict[str, Tensor]:
            most = most_inliers(classes, torch.from_numpy(counts).to(classes.device), candidates)
            return head.evidence(compared, candidates) | {"inliers": most}

        return refined.to(logits.device), tell


def most_inliers(classes: Tensor, counts: Tensor, candidates: Tensor) -> Tensor:
    """log(1 + inliers) of each candidate's best verified photo, and 0 where none of its photos was verified.

    Few inliers count too, unlike in `zoo.local.rerank`: how many are too few is left to the reader of this evidence.

    Args:
        classes: of each query's verified photos, int64 [B, V].
        counts: their inliers, int64 [B, V].
        candidates: int64 [B, K].

    Returns:
        float32 [B, K].

    >>> most_inliers(torch.tensor([[2, 2, 1]]), torch.tensor([[19, 9, 7]]), torch.tensor([[0, 1, 2]])).round(decimals=2)
    tensor([[0.0000, 2.0800, 3.0000]])
    """
    is_own = classes[:, None] == candidates[..., None]  # [B, K, V]
    return torch.where(is_own, counts[:, None], 0).amax(dim=2).float().log1p()

"""What a network is fed, in training and at prediction: photos, or embeddings that were made once.

Training and prediction know only this interface, so a frozen and a fine-tuned member share every line of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from zoo.augment import augment_batch, draw_changes
from zoo.degrade import degrade_batch, draw_degradations
from zoo.photos import Photos, photo_loader
from zoo.recipe import AugmentConfig
from zoo.views import expand_views, view_batch

Rows = NDArray[np.int64]  # positions in the catalog's usable photos


class Source(Protocol):
    """Batches for some rows."""

    def train_batches(self, rows: Rows, *, epoch: int, batch_size: int, size: int | None = None) -> Iterator[Tensor]:
        """Randomly changed batches in the order of `rows`; the same for the same epoch; photos in pixels of `size`."""

    def view_batches(self, rows: Rows, *, batch_size: int) -> Iterator[list[Tensor]]:
        """For each batch in the order of `rows`, its test-time views."""

    def in_one_view(self) -> Source:
        """The same in the first of its views only, which takes a fraction of the time."""


@dataclass(frozen=True, eq=False)
class PhotoSource:
    """Photos, augmented on the device for training and seen in the recipe's views at prediction.

    Attributes:
        photos: the decoded photos.
        augment: the recipe's augmentation.
        views: names of `zoo.views`.
        seed: of the augmentation.
        device: where batches go.
        workers: decoding processes; 0 decodes in this one.
    """

    photos: Photos
    augment: AugmentConfig
    views: Sequence[str]
    seed: int
    device: torch.device
    workers: int = 0

    def _batches(self, rows: Rows, batch_size: int) -> Iterator[Tensor]:
        pin = self.device.type == "cuda"
        loader = photo_loader(self.photos, rows.tolist(), batch_size=batch_size, workers=self.workers, pin_memory=pin)
        for batch in loader:
            yield batch.to(self.device, non_blocking=pin)

    def train_batches(self, rows: Rows, *, epoch: int, batch_size: int, size: int | None = None) -> Iterator[Tensor]:
        """uint8 photos -> augmented float [B, 3, S, S] in 0..255, S pixels of `size`, or of the photos as decoded."""
        start = 0
        for batch in self._batches(rows, batch_size):
            part = rows[start : start + len(batch)].tolist()
            start += len(batch)
            seen = _resized(self._degraded(batch, epoch, part), size)
            yield augment_batch(seen, draw_changes(self.seed, epoch, part), self.augment)

    def _degraded(self, batch: Tensor, epoch: int, photos: list[int]) -> Tensor:
        config = self.augment.degrade
        if not (self.augment.enabled and config.probability):
            return batch
        return degrade_batch(batch, draw_degradations(self.seed, epoch, photos), config)

    def view_batches(self, rows: Rows, *, batch_size: int) -> Iterator[list[Tensor]]:
        """Photos [B, 3, S, S] in 0..255, once per view."""
        views = expand_views(self.views)
        for batch in self._batches(rows, batch_size):
            yield [view_batch(batch, view) for view in views]

    def in_one_view(self) -> PhotoSource:
        """The same photos, not decoded again."""
        return replace(self, views=expand_views(self.views)[:1])


def _resized(batch: Tensor, size: int | None) -> Tensor:
    """uint8 [B, 3, H, W] -> uint8 [B, 3, size, size], smoothed where it shrinks; as it is when no size is asked."""
    if size is None or batch.shape[-2:] == (size, size):
        return batch
    return interpolate(batch, (size, size), mode="bilinear", antialias=True)


@dataclass(frozen=True, eq=False)
class EmbeddingSource:
    """Embeddings of every photo and view; training takes one view of a photo at random in each epoch.

    Attributes:
        embeddings: float16 [N, V, D].
        seed: of the choice of views.
        device: where batches go.
    """

    embeddings: NDArray[np.float16]
    seed: int
    device: torch.device

    def train_batches(self, rows: Rows, *, epoch: int, batch_size: int, size: int | None = None) -> Iterator[Tensor]:
        """Embeddings float [B, D], one view each; `size` was settled when they were made."""
        del size
        chance = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        # drawn for every photo, so that a resumed epoch's remaining rows get the views they would have had
        views = chance.integers(self.embeddings.shape[1], size=len(self.embeddings))[rows]
        for start in range(0, len(rows), batch_size):
            part = slice(start, start + batch_size)
            yield torch.from_numpy(self.embeddings[rows[part], views[part]].astype(np.float32)).to(self.device)

    def view_batches(self, rows: Rows, *, batch_size: int) -> Iterator[list[Tensor]]:
        """Embeddings float [B, D], once per view."""
        for start in range(0, len(rows), batch_size):
            batch = self.embeddings[rows[start : start + batch_size]].astype(np.float32)  # [B, V, D]
            yield [torch.from_numpy(batch[:, view]).to(self.device) for view in range(batch.shape[1])]

    def in_one_view(self) -> EmbeddingSource:
        """The same embeddings, not copied."""
        return replace(self, embeddings=self.embeddings[:, :1])

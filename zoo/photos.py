"""Photos as a dataset: decoded, fitted to a square, uint8, and kept in memory when they fit there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine.core.images import read_image

CACHE_BYTES = 2 << 30  # 2 GiB of decoded photos: landmarks by the ten thousand at 128 px, and a modest machine has it


class Photos(Dataset[Tensor]):
    """The photos of some catalog rows as uint8 [3, S, S] tensors.

    Decoded photos are kept when all fit into `CACHE_BYTES`, so that later epochs and folds decode nothing twice.

    Args:
        paths: files, in catalog order.
        size: S in pixels.
        fit: stretch to the square, or crop its centre.
        max_pixels: limit of the reader.
        keep: False for photos that are read only once.
        share: keep them in shared memory, which decoding processes need and containers often have little of.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        size: int,
        fit: Literal["stretch", "crop"],
        max_pixels: int,
        keep: bool = True,
        share: bool = False,
    ) -> None:
        self.paths = list(paths)
        self.size = size
        self.fit = fit
        self.max_pixels = max_pixels
        self._kept: Tensor | None = None
        if keep and len(self.paths) * 3 * size * size <= CACHE_BYTES:
            self._kept = _zeros((len(self.paths), 3, size, size), torch.uint8, share=share)
            self._is_kept = _zeros((len(self.paths),), torch.bool, share=share)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def are_kept(self) -> bool:
        """Whether a photo is read from its file only once."""
        return self._kept is not None

    def __getitem__(self, index: int) -> Tensor:
        if self._kept is None:
            return self._read(index)
        if not self._is_kept[index]:
            self._kept[index] = self._read(index)
            self._is_kept[index] = True
        return self._kept[index]

    def _read(self, index: int) -> Tensor:
        image = read_image(self.paths[index], max_pixels=self.max_pixels, cover=self.size)
        return torch.from_numpy(fit_square(image, self.size, self.fit)).permute(2, 0, 1).contiguous()


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, *, share: bool) -> Tensor:
    tensor = torch.zeros(shape, dtype=dtype)
    if share:
        tensor.share_memory_()  # type: ignore[no-untyped-call] # torch leaves it untyped
    return tensor


def fit_square(image: NDArray[np.uint8], size: int, fit: Literal["stretch", "crop"]) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] to [size, size, 3], the whole photo or its central square."""
    height, width = image.shape[:2]
    box = (0.0, 0.0, float(width), float(height))
    if fit == "crop":
        side = min(height, width)
        box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    return np.array(resized)


def photo_loader(
    photos: Photos, order: Sequence[int], *, batch_size: int, workers: int, pin_memory: bool
) -> DataLoader[Tensor]:
    """Batches uint8 [B, 3, S, S] of the photos in a given order; the last one may be smaller."""
    subset = torch.utils.data.Subset(photos, list(order))
    return DataLoader(subset, batch_size=batch_size, shuffle=False, num_workers=workers, pin_memory=pin_memory)

"""A member's own local features of the photos: DELF by the network that a fold has trained, see `zoo.delf`.

In a run:

    zoo/<member>/fold<k>/local/whitening.safetensors    of descriptors of the fold's training photos
    zoo/<member>/fold<k>/local/<shard>.npy              keypoints, records [n, K] as `zoo.verification` keeps them

Each fold has its own: what another fold's model sees of a photo cannot be compared with what this one's does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from engine.core.config import flatten
from engine.core.errors import ConfigError
from engine.core.images import read_image
from engine.core.progress import Advance
from engine.core.runs import Run
from engine.core.storage import sha256_json, write_bytes
from zoo.context import Context
from zoo.delf import DIM, AttentionPool, Grid, Whitening, fit_whitening, keypoints, measure_grid
from zoo.local import MAX_ENLARGE, LocalFeatures
from zoo.network import Embedder, Network
from zoo.recipe import LocalConfig, Recipe
from zoo.shards import Series, count_missing, make_shards
from zoo.sources import Rows
from zoo.verification import SHARD, LocalStore, fill_points, point_type

CHUNK = 128  # photos read at a time, to find such of the same shape among them: 0.15 GB at 640 x 640 pixels
BATCH = 16  # photos of one shape per forward pass, as many as a frozen member embeds
WHITENED = 256  # photos that the whitening is learned from …
PER_PHOTO = 64  # … and keypoints of each, the strongest: 400 for each of the 40 directions that are kept
EXTRACTION = ("kind", "size", "scales", "keypoints")  # the settings that features depend on
VERSION = 1  # raised when a change of code changes features

Reduce = Callable[[Tensor], Tensor]  # descriptors [..., C] -> [..., E] of unit length


@dataclass(frozen=True, eq=False)
class Describer:
    """A trained network that finds and describes keypoints.

    Attributes:
        network: from photos [B, 3, H, W] in 0..255 to maps [B, C, h, w].
        pool: its attention.
        grid: where the cells of the maps lie.
        config: size, scales, keypoints.
        accelerator: device and precision.
    """

    network: nn.Module
    pool: AttentionPool
    grid: Grid
    config: LocalConfig
    accelerator: Accelerator

    @classmethod
    def of(cls, model: Network, config: LocalConfig, accelerator: Accelerator) -> Describer:
        """By the model of a member with attention.

        Raises:
            ConfigError: when it has none, or its network does not say where a feature lies.
        """
        embed = model.embed
        if not isinstance(embed, Embedder) or not isinstance(embed.pool, AttentionPool):
            raise ConfigError("local.kind = 'delf' goes with backbone.pooling = 'attention'")
        network = Embedder(embed.backbone).eval().to(accelerator.device)
        return cls(network, embed.pool, measure_grid(embed.backbone), config, accelerator)

    def describe(self, images: Sequence[NDArray[np.uint8]], reduce: Reduce) -> list[LocalFeatures]:
        """Features of uint8 [H, W, 3] photos, with positions in pixels of the photo at `fit(H, W)`."""
        shapes = [self.fit(*image.shape[:2]) for image in images]
        found: dict[int, LocalFeatures] = {}
        for shape, alike in groupby(sorted(range(len(images)), key=shapes.__getitem__), key=shapes.__getitem__):
            rows = list(alike)
            for start in range(0, len(rows), BATCH):
                batch = rows[start : start + BATCH]
                features = self._describe_alike([images[row] for row in batch], shape, reduce)
                found.update(zip(batch, features, strict=True))
        return [found[row] for row in range(len(images))]

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a photo at scale 1: `config.size` on the longest side, enlarged at most twice.

        Its shape is kept but for the rounding to whole cells, which an affine map between two photos takes in.
        """
        zoom = min(self.config.size / max(height, width), MAX_ENLARGE)
        return self.grid.fit(height * zoom, width * zoom)

    @torch.inference_mode()
    def _describe_alike(
        self, images: Sequence[NDArray[np.uint8]], shape: tuple[int, int], reduce: Reduce
    ) -> list[LocalFeatures]:
        """Features of photos that have one height and width at scale 1."""
        maps, places = [], []
        for scale in self.config.scales:
            height, width = self.grid.fit(shape[0] * scale, shape[1] * scale)
            resized = np.stack([_resize(image, height, width) for image in images])
            with self.accelerator.autocast():
                features = self.network(torch.from_numpy(resized).movedim(3, 1).to(self.accelerator.device))
            maps.append(features.float())
            places.append(self.grid.places(features.shape[2], features.shape[3], (width / shape[1], height / shape[0])))
        return keypoints(self.pool, maps, places, reduce, count=self.config.keypoints)

    def extract(
        self, paths: Sequence[Path], whitening: Whitening, max_pixels: int, advance: Advance
    ) -> NDArray[np.void]:
        """Features of some files, records [n, K]."""
        points = np.zeros((len(paths), self.config.keypoints), point_type(whitening.basis.shape[1]))
        for start in range(0, len(paths), CHUNK):
            images = self.read(paths[start : start + CHUNK], max_pixels)
            fill_points(points[start:], self.describe(images, whitening))
            advance(len(images), "")
        return points

    def read(self, paths: Sequence[Path], max_pixels: int) -> list[NDArray[np.uint8]]:
        """Photos, as large as the largest scale needs them."""
        cover = round(self.config.size * max(self.config.scales))
        return [read_image(path, max_pixels=max_pixels, cover=cover) for path in paths]

    def learn_whitening(self, paths: Sequence[Path], max_pixels: int, advance: Advance) -> Whitening:
        """The whitening of the strongest keypoints of some photos.

        Raises:
            DataError: when they have too few.
        """
        descriptors = []
        for start in range(0, len(paths), CHUNK):
            images = self.read(paths[start : start + CHUNK], max_pixels)
            found = self.describe(images, partial(functional.normalize, dim=-1))
            descriptors += [torch.from_numpy(photo.descriptors[:PER_PHOTO]) for photo in found]
            advance(len(images), "")
        together = torch.cat(descriptors)
        return fit_whitening(together, min(DIM, together.shape[1]))


def _resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0))


def describe_own(
    context: Context, recipe: Recipe, config: LocalConfig, fold: int, model: Network, *, rows: Rows, learned: Rows,
    weights: str,
) -> LocalStore:  # fmt: skip
    """Describe photos by a fold's own model, shard by shard; what is whole and fresh is not made again.

    Args:
        context: where and how.
        recipe: the member.
        config: its section `local`.
        fold: the model's.
        model: trained, in evaluation mode.
        rows: the photos to describe, each once.
        learned: the photos that the model learned from.
        weights: SHA-256 of the model's weights.

    Raises:
        DataError: when the training photos have too few keypoints to learn a whitening from.
        KeyboardInterrupt: when asked to stop; finished shards are kept.
    """
    photos, run = context.photos, context.run
    describer = Describer.of(model, config, context.accelerator)
    series = own_series(recipe.name, config, fold, weights)
    spread = np.linspace(0, len(learned) - 1, min(WHITENED, len(learned))).astype(np.int64)
    whitening = _whitening(context, describer, series, learned[spread])

    def make(part: slice, advance: Advance) -> NDArray[np.void]:
        return describer.extract([photos.paths[row] for row in rows[part]], whitening, context.max_pixels, advance)

    hashes = [photos.hashes[row] for row in rows]
    shards = make_shards(run, _whitened(run, series), hashes, make, progress=context.progress, stop=context.stop)
    return LocalStore(shards, series.size, {int(row): place for place, row in enumerate(rows)})


def own_series(member: str, config: LocalConfig, fold: int, weights: str) -> Series:
    """The shards of a fold's features, before they are whitened."""
    settings = {f"local.{name}": value for name, value in flatten(config).items() if name in EXTRACTION}
    inputs = settings | {"weights": weights, "version": VERSION}
    return Series(
        f"zoo/{member}/fold{fold}/local", "local features", f"describe {member} fold {fold + 1}", SHARD, inputs
    )


def count_missing_own(run: Run, series: Series, hashes: Sequence[str]) -> int:
    """How many photos `describe_own` would describe."""
    return len(hashes) if run.find(_name(series)) is None else count_missing(run, _whitened(run, series), hashes)


def _name(series: Series) -> str:
    """Of a series' whitening in the run."""
    return f"{series.folder}/whitening.safetensors"


def _whitened(run: Run, series: Series) -> Series:
    """With the whitening that is there: learned anew, even a direction's sign may be another."""
    return dataclasses.replace(series, inputs={**series.inputs, "whitening": run.entry(_name(series)).sha256})


def _whitening(context: Context, describer: Describer, series: Series, rows: Rows) -> Whitening:
    """The one on disk, or learned now from some photos."""
    run, photos, name = context.run, context.photos, _name(series)
    inputs = {**series.inputs, "photos": sha256_json([photos.hashes[row] for row in rows])}
    if not run.is_fresh(name, inputs):
        with context.progress.task(f"whitening to {series.label}", len(rows), "photo") as advance:
            paths = [photos.paths[row] for row in rows]
            learned = describer.learn_whitening(paths, context.max_pixels, advance)
        write_bytes(run.path(name), save({"mean": learned.mean, "basis": learned.basis.contiguous()}))
        run.record(name, kind="whitening", version=VERSION, inputs=inputs)
    return Whitening(**load_file(run.path(name)))

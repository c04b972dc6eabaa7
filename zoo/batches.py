"""What training sees, as pictures: an augmented batch, and the class sizes before and after the sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from zoo.mixing import Mix, mix_batch
from zoo.photo_set import Lesson, PhotoSet, lesson_of
from zoo.photos import Photos
from zoo.pictures import batch_picture, class_sizes_picture
from zoo.recipe import Recipe
from zoo.samplers import epoch_order, sampled_sizes
from zoo.sources import PhotoSource
from zoo.training import count_steps, seed_step, size_in_epoch

EPOCHS = 10  # that sizes are averaged over: samplers that draw at random settle within a few per cent
BANDS = (1, 2, 4, 10, 20, 40, 80, 160, 320)  # the least photos of each band of sizes: doubling, and rare ones apart
TILE, MIXED_TILE = 128, 160  # pixels: wide enough for a landmark's id, and for two of them with a share


@dataclass(frozen=True, eq=False)
class TrainingView:
    """What the first fold's training sees.

    Attributes:
        batch: photos with their landmarks; one that is mixed with both, and the share of its own: `a 70 % + b`.
        sizes: photos per class, there are and shown in an epoch.
        bands: the same as numbers, per band of class sizes.
    """

    batch: Image.Image
    sizes: Image.Image
    bands: list[dict[str, Any]]


def view_training(
    photos: PhotoSet, recipe: Recipe, *, seed: int, epoch: int, count: int, max_pixels: int
) -> TrainingView:
    """Draw a batch of the model of fold 0 as an epoch begins, mixed as training in one process mixes it.

    A frozen backbone sees photos unchanged; what may be mixed there are its embeddings.

    Args:
        photos: of the run.
        recipe: the member.
        seed: of the run.
        epoch: from 0.
        count: photos to show, at most as many as an epoch has.
        max_pixels: limit of the photo reader.
    """
    lesson = lesson_of(photos, recipe, 0)
    seen, labels = _draw_photos(photos, recipe, lesson, seed=seed, epoch=epoch, count=count, max_pixels=max_pixels)
    train = recipe.train
    shown = sampled_sizes(lesson.targets, train.sampler, seed=seed, epochs=EPOCHS, batch_size=train.batch_size)
    return TrainingView(
        batch_picture(seen, labels, tile=MIXED_TILE if _mixes_photos(recipe) else TILE),
        class_sizes_picture(lesson.counts, shown),
        _in_bands(lesson.counts, shown),
    )


def _mixes_photos(recipe: Recipe) -> bool:
    return bool(recipe.train.mixup or recipe.train.cutmix) and not recipe.backbone.frozen


def _draw_photos(
    photos: PhotoSet, recipe: Recipe, lesson: Lesson, *, seed: int, epoch: int, count: int, max_pixels: int
) -> tuple[Tensor, list[str]]:
    """The first photos of an epoch, float [count, 3, S, S] in 0..255, and what stands below each."""
    train, given, mixes = recipe.train, recipe.input, _mixes_photos(recipe)
    steps = count_steps(lesson.targets, train, seed=seed, processes=1, label=recipe.name)
    order = epoch_order(lesson.targets, train.sampler, seed=seed, epoch=epoch, batch_size=train.batch_size)
    order = order[: math.ceil(count / steps.batch) * steps.batch if mixes else count]  # partners are of a whole batch
    decoded = Photos(photos.paths, size=given.size, fit=given.fit, max_pixels=max_pixels, keep=False)
    augment = recipe.augment.model_copy(update={"enabled": recipe.augment.enabled and not recipe.backbone.frozen})
    source = PhotoSource(decoded, augment, ("plain",), seed, torch.device("cpu"))
    names = [*lesson.landmarks, "none"]
    images: list[Tensor] = []
    labels: list[str] = []
    batches = source.train_batches(
        lesson.rows[order], epoch=epoch, batch_size=steps.batch, size=size_in_epoch(train, epoch)
    )
    for number, batch in enumerate(batches):
        own = [names[target] for target in lesson.targets[order[number * steps.batch :][: len(batch)]]]
        seed_step(seed, epoch * steps.per_epoch + number)
        mix = mix_batch(batch, train) if mixes else None
        images.append(batch if mix is None else mix.batch)
        labels += own if mix is None else _mixed_labels(own, mix)
    return torch.cat(images)[:count], labels[:count]


def _mixed_labels(own: Sequence[str], mix: Mix) -> list[str]:
    """Whose photos a mixed batch shows, and how much of the first.

    >>> _mixed_labels(["a", "b"], Mix(torch.zeros(2, 3, 8, 8), torch.tensor([1, 0]), 0.7))
    ['a 70 % + b', 'b 70 % + a']
    """
    return [f"{name} {mix.share * 100:.0f} % + {own[partner]}" for name, partner in zip(own, mix.partner, strict=True)]


def _in_bands(there: NDArray[np.int64], shown: NDArray[np.float64]) -> list[dict[str, Any]]:
    band = np.searchsorted(BANDS, there, side="right") - 1
    rows = []
    for number in np.unique(band):
        inside = band == number
        last = BANDS[number + 1] - 1 if number + 1 < len(BANDS) else None
        label = f"{BANDS[number]}-{last}" if last is not None else f"{BANDS[number]} or more"
        rows.append(
            {
                "photos": label if last != BANDS[number] else str(last),
                "classes": int(inside.sum()),
                "there": int(there[inside].sum()),
                "shown": round(float(shown[inside].sum()), 1),
            }
        )
    return rows

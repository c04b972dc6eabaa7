"""What training sees, as pictures: an augmented batch, and the class sizes before and after the sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from zoo.photo_set import PhotoSet, lesson_of
from zoo.photos import Photos
from zoo.pictures import batch_picture, class_sizes_picture
from zoo.recipe import Recipe
from zoo.samplers import epoch_order, sampled_sizes
from zoo.sources import PhotoSource

EPOCHS = 10  # that sizes are averaged over: samplers that draw at random settle within a few per cent
BANDS = (1, 2, 4, 10, 20, 40, 80, 160, 320)  # the least photos of each band of sizes: doubling, and rare ones apart


@dataclass(frozen=True, eq=False)
class TrainingView:
    """What the first fold's training sees.

    Attributes:
        batch: photos with their landmarks.
        sizes: photos per class, there are and shown in an epoch.
        bands: the same as numbers, per band of class sizes.
    """

    batch: Image.Image
    sizes: Image.Image
    bands: list[dict[str, Any]]


def view_training(
    photos: PhotoSet, recipe: Recipe, *, seed: int, epoch: int, count: int, max_pixels: int
) -> TrainingView:
    """Draw a batch of the model of fold 0 as an epoch begins; a frozen backbone sees photos unchanged.

    Args:
        photos: of the run.
        recipe: the member.
        seed: of the run.
        epoch: from 0.
        count: photos to show, at most as many as an epoch has.
        max_pixels: limit of the photo reader.
    """
    lesson = lesson_of(photos, recipe, 0)
    train, given = recipe.train, recipe.input
    order = epoch_order(lesson.targets, train.sampler, seed=seed, epoch=epoch, batch_size=train.batch_size)[:count]
    decoded = Photos(photos.paths, size=given.size, fit=given.fit, max_pixels=max_pixels, keep=False)
    augment = recipe.augment.model_copy(update={"enabled": recipe.augment.enabled and not recipe.backbone.frozen})
    source = PhotoSource(decoded, augment, ("plain",), seed, torch.device("cpu"))
    images = torch.cat(list(source.train_batches(lesson.rows[order], epoch=epoch, batch_size=32)))
    names = [*lesson.landmarks, "none"]
    shown = sampled_sizes(lesson.targets, train.sampler, seed=seed, epochs=EPOCHS, batch_size=train.batch_size)
    return TrainingView(
        batch_picture(images, [names[target] for target in lesson.targets[order]]),
        class_sizes_picture(lesson.counts, shown),
        _in_bands(lesson.counts, shown),
    )


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

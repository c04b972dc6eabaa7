"""The photos of a run as arrays, and what of them each fold's model is taught and asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.errors import DataError
from engine.core.storage import sha256_json
from zoo.recipe import Recipe
from zoo.sources import Rows

Part = Literal["oof", "test"]
PARTS: tuple[Part, ...] = ("oof", "test")
NOT_IN_FOLDS = -1  # the fold of a test photo
LEFT_OUT = -2  # the fold of a photo that no model is taught and none is asked


@dataclass(frozen=True, eq=False)
class PhotoSet:
    """The usable photos of a run, one element per photo, in catalog order.

    Attributes:
        ids: photo ids, [N].
        paths: their files.
        hashes: SHA-256 of each file.
        landmarks: landmark ids; empty text for photos without one, and for test photos.
        groups: duplicate groups: photos that show the same picture share one.
        folds: 0 … F-1, or `NOT_IN_FOLDS` for test photos, or `LEFT_OUT`.
    """

    ids: NDArray[np.object_]
    paths: list[Path]
    hashes: list[str]
    landmarks: NDArray[np.object_]
    groups: NDArray[np.int64]
    folds: NDArray[np.int64]

    @classmethod
    def from_tables(cls, photos: pd.DataFrame, folds: pd.DataFrame, data: Path) -> PhotoSet:
        """Lay usable catalog rows and their folds side by side."""
        fold = photos["id"].map(folds.set_index("id")["fold"]).fillna(NOT_IN_FOLDS)
        return cls(
            ids=photos["id"].to_numpy(object),
            paths=[data / path for path in photos["path"]],
            hashes=photos["sha256"].tolist(),
            landmarks=photos["landmark_id"].fillna("").to_numpy(object),
            groups=photos["duplicate_group"].to_numpy(np.int64),
            folds=fold.to_numpy(np.int64),
        )

    @cached_property
    def training_digest(self) -> str:
        """What every training is made from: the training photos, their labels and folds."""
        rows = np.flatnonzero(self.folds >= 0)
        return sha256_json([[self.hashes[row], self.landmarks[row], int(self.folds[row])] for row in rows])

    def rows_of(self, part: Part, fold: int) -> Rows:
        """The photos that a fold's model scores: its held-out fold, or the test set."""
        return np.flatnonzero(self.folds == (fold if part == "oof" else NOT_IN_FOLDS))

    def training_rows(self, fold: int, *, negatives: bool) -> Rows:
        """The photos that a fold's model learns from."""
        inside = (self.folds != fold) & (self.folds >= 0)
        return np.flatnonzero(inside if negatives else inside & (self.landmarks != ""))

    def known_landmarks(self, fold: int, *, at_least: int = 1) -> list[str]:
        """The landmarks with that many photos in a fold's training part, sorted: the classes of its model."""
        names, sizes = np.unique(self.landmarks[self.training_rows(fold, negatives=False)], return_counts=True)
        return [str(name) for name in names[sizes >= at_least]]

    @property
    def fold_count(self) -> int:
        """F."""
        return int(self.folds.max()) + 1


@dataclass(frozen=True, eq=False)
class Lesson:
    """What the model of a fold is taught.

    Attributes:
        landmarks: those it tells apart, sorted: its first classes.
        none_class: the class after them, of photos without a landmark; None when it has none.
        rows: the photos that it learns from, [N].
        targets: the class of each, int [N].
    """

    landmarks: list[str]
    none_class: int | None
    rows: Rows
    targets: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Photos of each class, [C], none of them 0."""
        return np.bincount(self.targets)


def lesson_of(photos: PhotoSet, recipe: Recipe, fold: int) -> Lesson:
    """What a recipe's model of a fold is taught; photos of dropped landmarks are left out, not taught as nothing.

    Raises:
        DataError: when the recipe drops every landmark.
    """
    known = known_landmarks(photos, recipe, fold)
    position = {landmark: index for index, landmark in enumerate(known)}
    rows = photos.training_rows(fold, negatives=True)
    if recipe.head.none_class and (photos.landmarks[rows] == "").any():
        position[""] = len(known)
    classes = np.array([position.get(landmark, -1) for landmark in photos.landmarks[rows]], dtype=np.int64)
    return Lesson(known, position.get(""), rows[classes >= 0], classes[classes >= 0])


def known_landmarks(photos: PhotoSet, recipe: Recipe, fold: int) -> list[str]:
    """The landmarks that a recipe's model of a fold tells apart, sorted: those it does not drop.

    Raises:
        DataError: when it drops all of them.
    """
    known = photos.known_landmarks(fold, at_least=recipe.train.min_photos)
    if not known:
        raise DataError(
            f"{recipe.name}: no landmark has {recipe.train.min_photos} photos in the training part of fold {fold + 1}",
            hint="lower train.min_photos",
        )
    return known

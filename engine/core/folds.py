"""Cross-validation folds: the catalog in, a fold per training photo out (`tables.FOLDS`), and what follows from it.

Folds are made as hard as the test set: a picture and its copies share a fold; photos without a landmark are spread
over all folds; and some landmarks are kept whole in one fold, so that its models never saw them, as the test set has
landmarks that training lacks. The right answer to such a query is none (`oof_truth`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.catalog import usable
from engine.core.config import FoldsConfig
from engine.core.duplicates import connected, pairs_of_equals
from engine.core.errors import ArtifactError, DataError

TEST_FOLD = -1  # stands for "the models that answer the test set", in `class_sizes`

_GIANT = 40  # photos; keeping a larger landmark out of a fold's training would cost more than it teaches
_NOT_GIANT = 0.8  # where nearly all landmarks are larger than that: this share of them, the smaller ones
_UNSEEN = "?"  # two strata besides the landmarks; neither is a legal landmark id
_NONLANDMARK = ""


def make_folds(catalog: pd.DataFrame, config: FoldsConfig, *, seed: int) -> pd.DataFrame:
    """Split the usable train and nonlandmark photos into folds.

    Each landmark is spread as evenly as its size allows, as are the photos without one, the landmarks that are unseen
    in their fold (those kept whole, and those of one picture), and the folds' sizes.

    Args:
        catalog: `tables.CATALOG`; the order of its rows does not matter.
        config: how many folds, and which share of the landmarks with two or more photos is kept whole in one fold:
            drawn from those with at most 40 photos.
        seed: which landmarks and photos go where.

    Returns:
        `tables.FOLDS`: id, fold (0..count-1), sorted by id.

    Raises:
        DataError: when there are fewer pictures than folds, or fewer than two landmarks.
    """
    photos = usable(catalog, "train", "nonlandmark").sort_values("id")
    labels = photos["landmark_id"].fillna(_NONLANDMARK).to_numpy(dtype=str)
    sizes = pd.Series(labels[labels != _NONLANDMARK]).value_counts().sort_index()
    rng = np.random.default_rng(seed)
    held_out = _draw_held_out(sizes, config.unseen_share, rng)
    units = _units(photos["duplicate_group"].to_numpy(), labels, held_out)
    _check_enough(len(photos), len(np.unique(units)), len(sizes), config.count)
    folds = _spread(units, labels, config.count, rng)
    return pd.DataFrame({"id": photos["id"].to_numpy(), "fold": folds.astype(np.int16)})


def class_sizes(catalog: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """How many photos of each landmark the models that answer a fold were trained on.

    Returns:
        fold, landmark_id, size (float32, > 0): for each fold the photos in all other folds; for fold -1 the mean of
        that over the folds, which is what the models that answer the test set saw.

    Raises:
        ArtifactError: when the folds name photos that the catalog has not.
    """
    inside = _photos_per_fold(catalog, folds)
    outside = (-inside).add(inside.sum(axis="columns"), axis="index")
    outside[TEST_FOLD] = outside.mean(axis="columns")
    long = outside.melt(var_name="fold", value_name="size", ignore_index=False).reset_index()  # [L, F + 1] -> rows
    long = long[long["size"] > 0].astype({"fold": np.int16, "size": np.float32})
    return long[["fold", "landmark_id", "size"]].sort_values(["fold", "landmark_id"], ignore_index=True)


def oof_truth(catalog: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """The right answer to every training photo, asked of models that never saw its fold.

    Returns:
        id, fold, landmark_id, unseen, in the order of `folds`. The landmark is null for a photo without one and for a
        photo whose landmark the training part of its fold lacks; `unseen` tells the latter.

    Raises:
        ArtifactError: when the folds name photos that the catalog has not.
    """
    truth = _labelled(catalog, folds)
    inside = _photos_per_fold(catalog, folds)
    one_fold = inside.index[(inside > 0).sum(axis="columns") == 1]
    truth["unseen"] = truth["landmark_id"].isin(one_fold)
    truth["landmark_id"] = truth["landmark_id"].mask(truth["unseen"])
    return truth[["id", "fold", "landmark_id", "unseen"]]


def fold_notes(catalog: pd.DataFrame, folds: pd.DataFrame) -> list[str]:
    """What a user should know of the folds, one sentence each."""
    truth = oof_truth(catalog, folds)
    inside = _photos_per_fold(catalog, folds)
    sizes = truth["fold"].value_counts()
    single = int((inside.sum(axis="columns") == 1).sum())
    whole = int(((inside > 0).sum(axis="columns") == 1).sum()) - single
    return [
        f"{len(truth):,} photos in {len(sizes)} folds of {sizes.min():,} to {sizes.max():,}",
        f"{single} landmarks have one photo, {whole} more stand in one fold: unseen in it, their right answer is none",
        f"{truth['landmark_id'].notna().mean():.0%} of the photos show a landmark that their fold's models know",
    ]


def _draw_held_out(sizes: pd.Series[int], share: float, rng: np.random.Generator) -> NDArray[np.str_]:
    """Landmarks to keep whole in one fold; `sizes` maps landmark to photos, sorted by landmark."""
    several = sizes[sizes >= 2].sort_values(kind="stable")
    wanted = round(share * len(several))
    pool = several[several <= _GIANT]
    if len(pool) < wanted:
        pool = several.head(int(_NOT_GIANT * len(several)))
    names = np.sort(pool.index.to_numpy(dtype=str))
    return rng.choice(names, size=min(wanted, len(names)), replace=False)


def _units(groups: NDArray[np.int64], labels: NDArray[np.str_], held_out: NDArray[np.str_]) -> NDArray[np.int64]:
    """What has to share a fold, as the first row of each photo's unit: copies, and all of a held-out landmark."""
    copies = pairs_of_equals(groups, np.ones(len(groups), dtype=bool))
    whole = pairs_of_equals(labels, np.isin(labels, held_out))
    return connected(len(groups), np.concatenate([copies, whole], axis=1))


def _check_enough(photos: int, pictures: int, landmarks: int, count: int) -> None:
    if pictures < count:
        raise DataError(
            f"{photos} usable training photos, {pictures} without their copies, cannot fill {count} folds",
            hint="add photos, or set folds.count lower",
        )
    if landmarks < 2:
        raise DataError(
            f"the usable training photos show {landmarks} landmark(s); two are the fewest that can be told apart",
            hint="look into landmark_id of train.csv, and into bad_images.csv",
        )


def _spread(
    units: NDArray[np.int64], labels: NDArray[np.str_], count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The fold of each photo: one stratum after the other, each unit to where its stratum has the fewest photos."""
    firsts, sizes = np.unique(units, return_counts=True)
    table = pd.DataFrame({"unit": firsts, "size": sizes, "stratum": _strata(labels[firsts])})
    table = table.iloc[rng.permutation(len(table))].sort_values("size", ascending=False, kind="stable")
    # Unseen landmarks first: they come in the largest pieces. Then from the largest landmark to the smallest, whose
    # few photos go where the folds still differ.
    rank = table.groupby("stratum")["size"].transform("sum").astype(float).mask(table["stratum"] == _UNSEEN, np.inf)
    table = table.assign(rank=-rank).sort_values(["rank", "stratum"], kind="stable")
    filled = [0] * count
    fold_of = np.empty(len(units), dtype=np.int64)
    for _, stratum in table.groupby("stratum", sort=False):
        fold_of[stratum["unit"].to_numpy()] = _deal(stratum["size"].tolist(), filled)
    return fold_of[units]


def _strata(labels: NDArray[np.str_]) -> NDArray[np.str_]:
    """What is spread together, per unit: a landmark; all landmarks of one unit, which are unseen in their fold; none.

    >>> _strata(np.array(["a", "a", "b", "c", ""])).tolist()
    ['a', 'a', '?', '?', '']
    """
    names, which, units = np.unique(labels, return_inverse=True, return_counts=True)
    unseen = (units == 1) & (names != _NONLANDMARK)
    return np.where(unseen, _UNSEEN, names)[which]


def _deal(sizes: Iterable[int], filled: list[int]) -> list[int]:
    """Give each unit to the fold that has least of the stratum, then least in all; `filled` is brought up to date."""
    dealt = [0] * len(filled)
    chosen = []
    for size in sizes:
        fold = min(range(len(filled)), key=lambda k: (dealt[k], filled[k]))
        dealt[fold] += size
        filled[fold] += size
        chosen.append(fold)
    return chosen


def _labelled(catalog: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """id, fold, landmark_id, in the order of the folds."""
    labelled = folds.merge(catalog[["id", "landmark_id"]], on="id", how="left", indicator="found")
    unknown = labelled.loc[labelled["found"] != "both", "id"]
    if len(unknown):
        raise ArtifactError(
            f"folds.parquet: {len(unknown)} photos are not in the catalog, the first is {unknown.iloc[0]}",
            hint="run 'engine train-zoo' again: the folds belong to other data",
        )
    return labelled[["id", "fold", "landmark_id"]]


def _photos_per_fold(catalog: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """[L, F]: photos of each landmark in each fold."""
    labelled = _labelled(catalog, folds)
    table = pd.crosstab(labelled["landmark_id"], labelled["fold"])
    return table.reindex(columns=np.unique(folds["fold"]), fill_value=0)  # a fold may have no landmark at all

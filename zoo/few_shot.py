"""How well members know a landmark of which they saw one, two, three or five photos.

Ordinary folds cannot tell: a landmark with one photo is unseen when that photo is held out. So some landmarks with many
photos are cut down: a fold's model learns from a few of their photos and is asked for all those in its held-out fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from engine.core.config import ValidationConfig
from engine.core.errors import DataError
from engine.core.gap import percentile_interval
from zoo.context import Context
from zoo.members import run_fold
from zoo.photo_set import LEFT_OUT, PhotoSet
from zoo.recipe import Recipe

LEAST_PHOTOS = 20  # of a landmark that is cut: each of five folds then asks for four or so
SHARE = 1 / 3  # of those landmarks are cut; the others stay whole, as rare landmarks stand among large ones


@dataclass(frozen=True)
class FewShotRow:
    """How often a member is right about landmarks it saw a few photos of.

    Attributes:
        member: its name; `mean` is the mean of all members' scores.
        shots: photos it saw of each of them.
        accuracy: share of the photos whose best candidate is right, 0..1, whatever its score.
        low: of the bootstrap interval, over landmarks.
        high: of the interval.
        photos: that were asked for.
        landmarks: that were cut.
    """

    member: str
    shots: int
    accuracy: float
    low: float
    high: float
    photos: int
    landmarks: int


def cut_landmarks(photos: PhotoSet, seed: int) -> list[str]:
    """A third of the landmarks with `LEAST_PHOTOS` photos or more, drawn by the seed, sorted.

    Those that are held whole in one fold do not count: the only model that is asked for them never saw one.

    Raises:
        DataError: when there are fewer than three such landmarks.
    """
    inside = photos.folds >= 0
    there = pd.Series(photos.folds[inside]).groupby(photos.landmarks[inside]).agg(["size", "nunique"])
    there = there[(there.index != "") & (there["size"] >= LEAST_PHOTOS) & (there["nunique"] > 1)]
    large = there.index.tolist()
    if len(large) < 1 / SHARE:
        raise DataError(
            f"{len(large)} landmarks have {LEAST_PHOTOS} training photos, too few to cut some of them down",
            hint="a few-shot evaluation needs at least three",
        )
    return sorted(np.random.default_rng(seed).choice(large, size=round(len(large) * SHARE), replace=False).tolist())


def with_few_photos(photos: PhotoSet, cut: Sequence[str], *, shots: int, fold: int, seed: int) -> PhotoSet:
    """The photos as a fold's model is to see them: of each cut landmark `shots` photos outside its fold, no more.

    Fewer shots are the first of more, and no two are duplicates of each other.

    Args:
        photos: all photos.
        cut: from `cut_landmarks`.
        shots: photos to leave.
        fold: whose model it is.
        seed: of the choice.
    """
    folds = photos.folds.copy()
    for number, landmark in enumerate(cut):
        rows = np.flatnonzero((photos.landmarks == landmark) & (photos.folds >= 0) & (photos.folds != fold))
        shuffled = np.random.default_rng([seed, fold, number]).permutation(rows)
        first = np.sort(np.unique(photos.groups[shuffled], return_index=True)[1])  # one of each group
        folds[np.setdiff1d(rows, shuffled[first[:shots]])] = LEFT_OUT
    return replace(photos, folds=folds)


def evaluate_few_shot(
    context: Context,
    recipes: Sequence[Recipe],
    config: ValidationConfig,
    *,
    shots: Sequence[int],
    folds: Sequence[int],
) -> list[FewShotRow]:
    """Train every member on cut landmarks and count how often it is right about them; finished work is not redone.

    Args:
        context: of the run; models go to `zoo/<member>.<shots>-shot/`.
        recipes: the members.
        config: of the intervals.
        shots: photos to leave of each cut landmark, each its own evaluation.
        folds: whose held-out photos are asked for; empty for all.
    """
    cut = cut_landmarks(context.photos, context.seed)
    rows = []
    for count in shots:
        tables = []
        for recipe in recipes:
            named = recipe.model_copy(update={"name": f"{recipe.name}.{count}-shot"})
            for fold in folds or range(context.photos.fold_count):
                few = with_few_photos(context.photos, cut, shots=count, fold=fold, seed=context.seed)
                answers = run_fold(replace(context, photos=few), named, fold)
                tables.append(answers.assign(member=recipe.name))
        rows += _count_right(pd.concat(tables), context.photos, cut, config, shots=count, seed=context.seed)
    return rows


def _count_right(
    answers: pd.DataFrame, photos: PhotoSet, cut: Sequence[str], config: ValidationConfig, *, shots: int, seed: int
) -> list[FewShotRow]:
    truth = pd.Series(photos.landmarks, index=photos.ids)
    answers = answers[answers["query"].map(truth).isin(cut)]
    mean = answers.groupby(["query", "landmark_id"], as_index=False)["score"].sum().assign(member="mean")
    rows = []
    for member, table in pd.concat([answers, mean]).groupby("member", sort=False):
        ranked = table.sort_values(["score", "landmark_id"], ascending=[False, True])
        best = ranked.drop_duplicates("query").set_index("query")["landmark_id"]
        shown = truth[best.index]
        right = (best == shown).groupby(shown.to_numpy()).agg(["sum", "count"]).to_numpy(float)  # [landmarks, 2]
        chance = np.random.default_rng(seed)
        drawn = right[chance.integers(len(right), size=(config.bootstrap, len(right)))].sum(axis=1)
        interval = percentile_interval(drawn[:, 0] / drawn[:, 1], config.confidence_level)
        accuracy = right[:, 0].sum() / right[:, 1].sum()
        rows.append(FewShotRow(str(member), shots, float(accuracy), interval.low, interval.high, len(best), len(right)))
    return rows

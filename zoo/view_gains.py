"""What test-time views are worth: trained members score their held-out folds once more, in other views.

Nothing is trained. Local verification, which comes after the views, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from engine.core.config import ValidationConfig
from engine.core.errors import ConfigError, did_you_mean
from engine.core.gap import (
    Difference,
    ScoredQueries,
    align,
    bootstrap_difference,
    prevalence_weights,
    score_queries,
)
from engine.core.runs import TRAIN_ZOO
from engine.core.tables import CANDIDATES
from zoo.context import Context
from zoo.members import answers_of, score_in_views, weights_of
from zoo.recipe import Recipe
from zoo.views import expand_views

VERSION = 1  # of the tables in `views/`
# what people call a way of test-time augmentation -> the views that are averaged
AUGMENTATIONS: Mapping[str, tuple[str, ...]] = {
    "none": ("plain",),
    "flip": ("plain", "flip"),
    "five-crop": ("five-crop",),
    "ten-crop": ("ten-crop",),
    "scales": ("plain", "scales"),
}


@dataclass(frozen=True)
class ViewGain:
    """A member in some views.

    Attributes:
        member: its name.
        views: a name of `AUGMENTATIONS`.
        passes: through the network per photo.
        gap: out of fold.
        gain: over the first of the names that were asked for; None for that one itself.
    """

    member: str
    views: str
    passes: int
    gap: float
    gain: Difference | None


def check_augmentations(names: Sequence[str]) -> None:
    """Refuse names that are not in `AUGMENTATIONS`, and none at all.

    Raises:
        ConfigError: with the nearest names.
    """
    if not names:
        raise ConfigError("--tta: no views were named", hint="for example --tta none,flip,ten-crop,scales")
    for name in names:
        if name not in AUGMENTATIONS:
            raise ConfigError(f"--tta: unknown views '{name}' — {did_you_mean(name, AUGMENTATIONS)}")


def measure_views(
    context: Context, recipes: Sequence[Recipe], truth: pd.DataFrame, config: ValidationConfig, names: Sequence[str]
) -> list[ViewGain]:
    """The cross-validated GAP of members in each of some views, and what each gains over the first; scores are kept.

    Args:
        context: of the run; scores go to `views/<member>/<views>/fold<k>.parquet`.
        recipes: the members, trained.
        truth: id, landmark_id (null: no landmark that the query's models know).
        config: prevalence, resamples and level of the intervals.
        names: of `AUGMENTATIONS`.

    Raises:
        ArtifactError: when a member is not trained yet.
        KeyboardInterrupt: when asked to stop; what is scored is kept.
    """
    weights = prevalence_weights(truth["landmark_id"].notna().to_numpy(), config.prevalence)
    rows = []
    for recipe in recipes:
        scored = {name: align(_answers(context, recipe, name), truth, weights=weights) for name in names}
        first = scored[names[0]]
        for name in names:
            gain = None if name == names[0] else _compare(scored[name], first, config, context.seed)
            passes = len(expand_views(AUGMENTATIONS[name]))
            rows.append(ViewGain(recipe.name, name, passes, score_queries(scored[name]), gain))
    return rows


def _compare(ours: ScoredQueries, theirs: ScoredQueries, config: ValidationConfig, seed: int) -> Difference:
    return bootstrap_difference(
        ours, theirs, resamples=config.bootstrap, level=config.confidence_level, rng=np.random.default_rng(seed)
    )


def _answers(context: Context, recipe: Recipe, views: str) -> pd.DataFrame:
    """A member's best candidate for every query out of fold."""
    run, tables = context.run, []

    @cache  # made when the first fold is missing
    def score() -> Callable[[int], pd.DataFrame]:
        return score_in_views(context, recipe, AUGMENTATIONS[views])

    with context.progress.task(f"{recipe.name}, {views}", context.photos.fold_count, "fold") as advance:
        for fold in range(context.photos.fold_count):
            name = f"views/{recipe.name}/{views}/fold{fold}.parquet"
            inputs = _made_from(context, recipe, fold, views)
            if not run.is_fresh(name, inputs):
                run.save_table(name, score()(fold), CANDIDATES, inputs)
                if context.stop.requested:
                    raise KeyboardInterrupt
            tables.append(run.load_table(name, CANDIDATES, made_by="engine leaderboard --tta"))
            advance(1, "")
    return answers_of(pd.concat(tables))


def _made_from(context: Context, recipe: Recipe, fold: int, views: str) -> dict[str, Any]:
    return {
        "weights": context.run.hash_of(weights_of(recipe, fold), made_by=TRAIN_ZOO),
        "photos": context.photos.training_digest,
        "views": list(expand_views(AUGMENTATIONS[views])),
        "version": VERSION,
    }

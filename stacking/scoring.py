"""A way to fit to its answers laid over the truth: what every study of the stack is scored with.

In: rows of `stacking.features.build_rows`, queries, a `Fit`. Out: `ScoredQueries`, whose GAP `engine.core.gap` knows.
Nothing here touches the disk.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.config import ValidationConfig
from engine.core.errors import DataError
from engine.core.gap import (
    FloatArray,
    Interval,
    ScoredQueries,
    align,
    bootstrap_gap,
    prevalence_weights,
    score_queries,
)
from stacking.answers import pick_answers
from stacking.baselines import Fit
from stacking.evaluate import cross_predict


def lay_answers(answers: pd.DataFrame, queries: pd.DataFrame, config: ValidationConfig) -> ScoredQueries:
    """Answers over their truth, weighted as `weigh_queries` does, as the leaderboard's are.

    Args:
        answers: `engine.core.tables.ANSWERS`.
        queries: id, and of `weigh_queries`.
        config: the shares.
    """
    return align(answers, queries, weights=weigh_queries(queries, config))


def weigh_queries(queries: pd.DataFrame, config: ValidationConfig) -> FloatArray:
    """Weights that make queries stand for a test set with other shares of their three kinds; a known landmark's is 1.

    Args:
        queries: landmark_id (null: no landmark that the query's models know), and where its share is asked for unseen,
            whether the photo shows a landmark all the same.
        config: prevalence, the share of known landmarks among all; unseen, the share of the others that show one.

    Returns:
        [Q] weights, in the queries' order.

    Raises:
        DataError: when a share is asked for and the queries to weigh are all of one kind.
    """
    shows = queries["landmark_id"].notna().to_numpy()
    weights = prevalence_weights(shows, config.prevalence)
    if config.unseen is not None:
        unseen = queries["unseen"].to_numpy(dtype=bool)[~shows]
        if unseen.all() or not unseen.any():
            raise DataError(
                f"a share of {config.unseen} unseen landmarks needs them and photos of nothing: "
                f"of {len(unseen)} queries without a known landmark {np.count_nonzero(unseen)} show an unseen one",
                hint="raise folds.unseen_share or add photos without a landmark, or leave validation.unseen unset",
            )
        weights[~shows] *= np.where(unseen, config.unseen / unseen.mean(), (1 - config.unseen) / (1 - unseen.mean()))
    return weights


def score_part(queries: ScoredQueries, inside: NDArray[np.bool_]) -> float | None:
    """The GAP of some queries [Q] alone, 0..1; None where none of them shows a landmark."""
    part = ScoredQueries(**{each.name: getattr(queries, each.name)[inside] for each in fields(queries)})
    return score_queries(part) if part.has_landmark.any() else None


def draw_interval(queries: ScoredQueries, config: ValidationConfig, seed: int) -> Interval:
    """The bootstrap interval of the queries' GAP; of one seed all answers are scored on the same resamples.

    Raises:
        DataError: when no query shows a landmark.
    """
    rng = np.random.default_rng(seed)
    return bootstrap_gap(queries, resamples=config.bootstrap, level=config.confidence_level, rng=rng)


def score_fit(rows: pd.DataFrame, queries: pd.DataFrame, fit: Fit, config: ValidationConfig) -> ScoredQueries:
    """The answers of a way to fit, each by a model that was fitted without the query's fold.

    Args:
        rows: [N] of `build_rows`.
        queries: id, fold, landmark_id.
        fit: makes a model of rows and which of them are right.
        config: of `weigh_queries`.

    Raises:
        DataError: as `cross_predict` and `weigh_queries`.
    """
    answers = pick_answers(rows, cross_predict(rows, queries, fit), queries, decided_by="fit")
    return lay_answers(answers, queries, config)

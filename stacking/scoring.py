"""A way to fit to its answers laid over the truth: what every study of the stack is scored with.

In: rows of `stacking.features.build_rows`, queries, a `Fit`. Out: `ScoredQueries`, whose GAP `engine.core.gap` knows.
Nothing here touches the disk.
"""

from __future__ import annotations

import pandas as pd

from engine.core.config import ValidationConfig
from engine.core.gap import ScoredQueries, align, prevalence_weights
from stacking.answers import pick_answers
from stacking.baselines import Fit
from stacking.evaluate import cross_predict


def lay_answers(answers: pd.DataFrame, queries: pd.DataFrame, config: ValidationConfig) -> ScoredQueries:
    """Answers over their truth, weighted to the prevalence asked for, as the leaderboard's are.

    Args:
        answers: `engine.core.tables.ANSWERS`.
        queries: id, landmark_id (null: no landmark that the query's models know).
        config: prevalence.
    """
    weights = prevalence_weights(queries["landmark_id"].notna().to_numpy(), config.prevalence)
    return align(answers, queries, weights=weights)


def score_fit(rows: pd.DataFrame, queries: pd.DataFrame, fit: Fit, config: ValidationConfig) -> ScoredQueries:
    """The answers of a way to fit, each by a model that was fitted without the query's fold.

    Args:
        rows: [N] of `build_rows`.
        queries: id, fold, landmark_id.
        fit: makes a model of rows and which of them are right.
        config: prevalence.

    Raises:
        DataError: as `cross_predict`, and when all queries are of one kind and a prevalence is asked for.
    """
    answers = pick_answers(rows, cross_predict(rows, queries, fit), queries, decided_by="fit")
    return lay_answers(answers, queries, config)

"""Answers left blank below a confidence, and what that costs.

In: answers, their truth. Out: answers, some of them none; the cost of a few thresholds. Nothing here touches the disk.

GAP never rewards a blank: an answer below the threshold is ranked behind all that stay, so it takes nothing from them,
and if it is right it adds its precision. Blanking is for whoever reads the answers, who may prefer none to a bad one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from engine.core.config import ValidationConfig
from engine.core.gap import Difference, bootstrap_difference, score_queries
from stacking.scoring import lay_answers

THRESHOLDS: Final = (0.05, 0.1, 0.2, 0.5)  # hardly ever right, to wrong as often as right
QUANTILES: Final = (0.1, 0.25, 0.5, 0.75)  # shares of the answers to blank


@dataclass(frozen=True)
class BlankingCost:
    """What blanking the answers below one confidence costs.

    Attributes:
        threshold: the confidence.
        blanked: the share of the answers that fall below it, 0..1.
        gap: of what is left.
        difference: that GAP minus the one without blanking, over the same resamples; never above 0.
    """

    threshold: float
    blanked: float
    gap: float
    difference: Difference


def blank_below(answers: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """The answers, with no landmark and confidence 0 wherever the confidence is below the threshold.

    >>> answers = pd.DataFrame({"id": ["a", "b"], "landmark_id": ["7", "8"], "confidence": [0.2, 0.4]})
    >>> blank_below(answers, 0.4)["confidence"].tolist()
    [0.0, 0.4]

    Args:
        answers: `engine.core.tables.ANSWERS`.
        threshold: on the confidences' scale.
    """
    low = answers["confidence"] < threshold
    return answers.assign(landmark_id=answers["landmark_id"].mask(low), confidence=answers["confidence"].mask(low, 0.0))


def blanking_costs(
    answers: pd.DataFrame, queries: pd.DataFrame, config: ValidationConfig, *, seed: int
) -> list[BlankingCost]:
    """What it costs to blank below `THRESHOLDS`, and below the `QUANTILES` of the confidences; by rising threshold.

    Args:
        answers: `engine.core.tables.ANSWERS`, out of fold.
        queries: id, landmark_id (null: no landmark that the query's models know).
        config: prevalence, resamples and level of the intervals.
        seed: of the resamples, which are the same for every threshold.

    Raises:
        DataError: when no query shows a landmark.
    """
    whole = lay_answers(answers, queries, config)
    confidence = whole.confidence[whole.answered]
    thresholds = list(THRESHOLDS)
    if len(confidence):
        thresholds += np.quantile(confidence, QUANTILES).tolist()
    costs = []
    for threshold in sorted(set(thresholds)):
        left = lay_answers(blank_below(answers, threshold), queries, config)
        difference = bootstrap_difference(
            left, whole, resamples=config.bootstrap, level=config.confidence_level, rng=np.random.default_rng(seed)
        )
        blanked = np.count_nonzero(confidence < threshold) / max(len(confidence), 1)
        costs.append(BlankingCost(threshold, float(blanked), score_queries(left), difference))
    return costs

"""What the other queries of a test set tell: landmarks that too many photos fall onto, and how many show one at all.

In: answers to all queries of one test set, their presence (`stacking.prevalence`), class sizes. Out: the same answers
with other confidences, labels as they were. Nothing here touches the disk.

Everything else in this package answers a photo alike whatever it is asked together with. These do not, so they are for
a test set that is complete when it is answered, and only when asked for.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq

from engine.core.config import ValidationConfig
from engine.core.errors import DataError
from stacking.evaluate import Entry
from stacking.prevalence import correct_answers
from stacking.scoring import weigh_queries

SMOOTHING: Final = 10.0  # answers: a landmark of one photo that is answered twice is no news, thirty times is
STRENGTH: Final = 0.5  # of the demotion: half the surplus, in log-odds; see `demote_frequent` for what more of it costs

Weights = NDArray[np.floating[Any]]


def estimate_prevalence(presence: pd.Series[float], *, trained: float, weights: Weights | None = None) -> float:
    """What share of a test set shows a known landmark, from the queries' presence alone, without labels.

    The share that makes the test set most likely when only the share differs from the folds': Saerens, Latinne and
    Decaestecker, "Adjusting the outputs of a classifier to new a priori probabilities" (2002,
    doi 10.1162/089976602753284446). With a = presence / trained and b = (1 - presence) / (1 - trained), proportional to
    how likely the query is among those that show one and those that do not, the log-likelihood of a share s is
    sum ln(s a + (1 - s) b). Their EM climbs it step by step; it is concave in s, so its one maximum, where EM stops,
    is found as the root of its slope.

    Args:
        presence: [Q] calibrated, 0..1, Q at least 1; the order never matters.
        trained: the share among the queries that it was learned from, between 0 and 1.
        weights: [Q] how many queries each stands for; 1 when None.

    Returns:
        The share, at least half a query and at most all but half a query of Q.

    Raises:
        DataError: when there is no query, or `trained` is not between 0 and 1.
    """
    if not (len(presence) and 0 < trained < 1):
        raise DataError(f"no prevalence can be estimated from {len(presence)} queries and a trained share of {trained}")
    values = presence.to_numpy(dtype=np.float64)
    counts = np.ones(len(values)) if weights is None else weights
    order = np.lexsort((counts, values))  # sums depend on the order in their last digit
    shown, hidden = values[order] / trained, (1 - values[order]) / (1 - trained)

    def slope(share: float) -> float:
        return float(np.sum(counts[order] * (shown - hidden) / (share * shown + (1 - share) * hidden)))

    low = 0.5 / len(values)
    if slope(low) <= 0:
        return low
    if slope(1 - low) >= 0:
        return 1 - low
    return float(brentq(slope, low, 1 - low))


def demote_frequent(
    answers: pd.DataFrame, sizes: pd.Series[float], *, strength: float = STRENGTH, weights: Weights | None = None
) -> pd.DataFrame:
    """Lower the confidence of landmarks that are answered far more often than their class size predicts.

    Photos without a landmark fall onto a few landmarks again and again. GLR 2019's third place took a landmark that was
    answered 30 times or more in the test set for none, as one drops stop words: private GAP .351 to .363 (Ozaki and
    Yokoo, arXiv 1906.04087; https://speakerdeck.com/smly/recognition-under-a-noisy-and-diverse-dataset). Here without a
    step: of A answers, n are of a landmark with the share f of all training photos, and its odds change by

        odds' = odds * min(1, (A f + c) / (n + c)) ^ strength        with c = SMOOTHING

    at strength 1 as if the surplus over the A f that its size predicts were wrong. Confidences stay within 0..1, those
    of one landmark keep their order unless there are weights, and at strength 0 nothing changes.

    A stack that was taught what shows nothing leaves little to win. On landmarks-mini, over 100 drawn test sets with
    3 % of landmark photos, GAP changed by -.001 at strength .5, -.003 at 1 and -.007 at 2, standard errors .0004 to
    .0016; on top of a correction to the known share, which won .018, by +.0004, -.0006 and -.0039.

    Args:
        answers: `engine.core.tables.ANSWERS` of the whole test set, calibrated.
        sizes: training photos by landmark id; a landmark that is missing has 0.
        strength: >= 0.
        weights: [Q] how many queries each stands for, in the answers' order; 1 when None.

    Raises:
        DataError: when the strength is negative or not a number.
    """
    if not strength >= 0:
        raise DataError(f"a strength of {strength} would promote frequent landmarks", hint="give a number from 0 up")
    landmark = answers["landmark_id"]
    counts = np.ones(len(answers)) if weights is None else weights
    # sorted before each sum: the rows' order never matters; a query without an answer is in no group
    given = pd.Series(counts, index=answers.index).sort_values().groupby(landmark).sum()
    expected = sizes.reindex(given.index, fill_value=0.0) / sizes.sort_values().sum() * given.sort_values().sum()
    # by other queries, and once by itself: a query that stands for many must not be told by its own weight
    found = landmark.map(given).to_numpy(dtype=np.float64) - counts + 1
    ratio = (landmark.map(expected).to_numpy(dtype=np.float64) + SMOOTHING) / (found + SMOOTHING)
    factor = np.where(landmark.notna(), np.minimum(ratio, 1.0), 1.0) ** strength
    p = answers["confidence"].to_numpy()
    return answers.assign(confidence=np.where(factor < 1, p * factor / (p * factor + (1 - p)), p))


def correct_to_test(
    answers: pd.DataFrame, presence: pd.Series[float], *, trained: float, weights: Weights | None = None
) -> tuple[pd.DataFrame, float]:
    """Correct the confidences to the share of landmark photos that the test set itself suggests.

    Args:
        answers: `engine.core.tables.ANSWERS` of the whole test set, calibrated.
        presence: 0..1, by query id; a query that is missing has 0.
        trained: the share among the queries that both were learned from.
        weights: [Q] how many queries each stands for, in the answers' order; 1 when None.

    Returns:
        The answers, and that share.
    """
    asked = presence.reindex(answers["id"], fill_value=0.0)
    wanted = estimate_prevalence(asked, trained=trained, weights=weights)
    return correct_answers(answers, asked, trained=trained, wanted=wanted), wanted


def enter_transductive(
    answers: pd.DataFrame,
    queries: pd.DataFrame,
    presence: pd.Series[float],
    class_sizes: pd.DataFrame,
    config: ValidationConfig,
    *,
    strength: float = STRENGTH,
) -> list[Entry]:
    """What each would be worth, out of fold: every fold's queries are taken for a test set of their own.

    Where the configuration wants another share of landmark photos than the folds have, each query counts as many times
    in these test sets as it does in the GAP.

    Args:
        answers: `engine.core.tables.ANSWERS`, out of fold, calibrated.
        queries: id, fold, and of `weigh_queries`.
        presence: of `stacking.prevalence.cross_presence`.
        class_sizes: fold, landmark_id, size: training photos that the fold's models saw.
        config: of `weigh_queries`.
        strength: of `demote_frequent`.

    Returns:
        Three entries for the leaderboard: each alone, and the demotion on top of the correction.
    """
    asked = queries.set_index("id").loc[answers["id"]]
    shows, fold = asked["landmark_id"].notna().to_numpy(), asked["fold"].to_numpy()
    weights = weigh_queries(asked, config)
    size = class_sizes.set_index("landmark_id").groupby("fold")["size"]
    parts: dict[str, list[pd.DataFrame]] = {"demoted": [], "corrected": [], "corrected and demoted": []}
    for held in np.unique(fold):
        mine = fold == held
        part, counts, sizes = answers[mine], weights[mine], size.get_group(held)
        corrected, _ = correct_to_test(part, presence, trained=float(shows[~mine].mean()), weights=counts)
        parts["demoted"].append(demote_frequent(part, sizes, strength=strength, weights=counts))
        parts["corrected"].append(corrected)
        parts["corrected and demoted"].append(demote_frequent(corrected, sizes, strength=strength, weights=counts))
    return [
        Entry(f"stack {name}", "stack", pd.concat(tables).sort_values("id", ignore_index=True), 0.0)
        for name, tables in parts.items()
    ]

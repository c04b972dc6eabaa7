"""The score: global average precision (GAP), its intervals, and its slow reference.

    GAP = 1/M * sum_i P(i) * rel(i)

over the answers by confidence descending, ties by id ascending: P(i) is the precision among the first i, rel(i) is 1
when answer i is right, M the number of queries that show a landmark of the training set. A query without an answer is
not ranked but counts in M; a wrong answer after all others costs nothing. From the challenge's evaluation page,
https://www.kaggle.com/c/landmark-recognition-challenge/overview/evaluation.

In: arrays over answers, or the tables answers and truth, joined by id. Out: numbers. Nothing here touches the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine.core.errors import DataError, raise_problems

FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]
TextArray = NDArray[np.str_]
IdArray = TextArray | NDArray[np.integer[Any]]  # text, or its rank: integers sort twice as fast where many are tied


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class ScoredQueries:
    """A set of answers laid over its truth: one element per query [Q], in the truth's order.

    Attributes:
        ids: the queries.
        answered: whether there is an answer.
        confidence: of the answer, any order-preserving scale; 0 where there is none.
        correct: whether the answer is right; no answer is never right, not even where no landmark is shown.
        has_landmark: whether the query shows a landmark of the training set.
        weights: how much the query counts, >= 0; 1 unless the sample is made to stand for another population.
    """

    ids: TextArray
    answered: BoolArray
    confidence: FloatArray
    correct: BoolArray
    has_landmark: BoolArray
    weights: FloatArray

    @property
    def positives(self) -> float:
        """M: the weight of all queries that show a landmark."""
        return float(self.weights[self.has_landmark].sum())


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """One GAP minus another over the same queries.

    Attributes:
        estimate: on the queries themselves.
        low: lower end of the interval.
        high: upper end of the interval.
        p_value: two-sided, 0..1: how often resampling turns the sign, at least 2 / (resamples + 1).
    """

    estimate: float
    low: float
    high: float
    p_value: float


def gap(
    confidence: FloatArray,
    correct: BoolArray,
    ids: IdArray,
    *,
    positives: float,
    weights: FloatArray | None = None,
) -> float:
    """The exact GAP of N answers, 0..1.

    With weights, P(i) is the weighted precision: the weight of the right ones among the first i over the weight of all.

    >>> confidence, correct = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    >>> round(gap(confidence, correct, np.array(["a", "b", "c"]), positives=4), 4)  # (1/1 + 2/3) / 4
    0.4167

    Args:
        confidence: [N], any order-preserving scale.
        correct: [N].
        ids: [N], each once, as text or as integers that sort alike; they decide between equal confidences.
        positives: M, the (weighted) number of queries that show a landmark, answered or not.
        weights: [N], >= 0; all 1 when None.

    Raises:
        DataError: when the arrays differ in length, a confidence is NaN, a weight is negative or not finite, or M is
            not above 0.
    """
    _require_positives(positives)
    if not len(confidence) == len(correct) == len(ids):
        raise DataError(f"{len(confidence)} confidences, {len(correct)} outcomes, {len(ids)} ids: wanted one of each")
    order = rank_answers(confidence, ids)
    return _sum_precisions(correct[order], _as_weights(weights, len(order))[order]) / positives


def gap_reference(
    confidence: FloatArray,
    correct: BoolArray,
    ids: IdArray,
    *,
    positives: float,
    weights: FloatArray | None = None,
) -> float:
    """What `gap` computes, as the plain loop its definition reads like; for tests and for trust."""
    _require_positives(positives)
    rows = zip(confidence, ids, correct, _as_weights(weights, len(confidence)), strict=True)
    seen = right = total = 0.0
    for _, _, is_right, weight in sorted(rows, key=lambda row: (-row[0], row[1])):
        seen += weight
        if is_right and weight > 0:
            right += weight
            total += weight * right / seen
    return float(total / positives)


def rank_answers(confidence: FloatArray, ids: IdArray) -> NDArray[np.intp]:
    """The challenge's order of answers: row numbers [N], confidence descending, then id ascending.

    Args:
        confidence: [N].
        ids: [N], each once, as text or as integers that sort alike.

    Raises:
        DataError: when a confidence is NaN.
    """
    if unordered := int(np.isnan(confidence).sum()):
        raise DataError(
            f"{unordered} of {len(confidence)} confidences are NaN, which has no place in a ranking",
            hint="leave the query without an answer, or correct what made the number",
        )
    order = np.argsort(-confidence)  # unstable, four times faster than stable; ties are put in order below
    ranked = confidence[order]
    equal = ranked[1:] == ranked[:-1]
    if equal.any():
        tied = np.zeros(len(order), dtype=np.bool_)
        tied[1:] |= equal
        tied[:-1] |= equal
        rows = order[tied]
        order[tied] = rows[np.lexsort((ids[rows], -confidence[rows]))]
    return order


def align(answers: pd.DataFrame, truth: pd.DataFrame, *, weights: FloatArray | None = None) -> ScoredQueries:
    """Lay answers over their truth, by id; the order of rows never matters.

    Args:
        answers: columns id, landmark_id (null: no answer), confidence; a query may be absent.
        truth: columns id, landmark_id (null: shows no landmark of the training set), one row per query.
        weights: [Q], in the truth's order.

    Raises:
        DataError: on an id given twice, an id that is no query, a confidence of NaN, or bad weights.
    """
    queries = pd.Index(truth["id"])
    raise_problems(DataError, _misfits(answers, queries), hint="make the answers again, one for each query")
    laid = answers.set_index("id")[["landmark_id", "confidence"]].reindex(queries)
    given, shown = (table["landmark_id"].to_numpy(dtype=object) for table in (laid, truth))
    answered, has_landmark = pd.notna(given), pd.notna(shown)
    both = answered & has_landmark  # so that none never equals none
    correct = np.zeros(len(queries), dtype=np.bool_)
    correct[both] = given[both] == shown[both]
    return ScoredQueries(
        ids=queries.to_numpy(dtype=np.str_),
        answered=answered,
        confidence=np.where(answered, laid["confidence"].to_numpy(dtype=np.float64), 0.0),
        correct=correct,
        has_landmark=has_landmark,
        weights=_as_weights(weights, len(queries)),
    )


def _misfits(answers: pd.DataFrame, queries: pd.Index[str]) -> list[str]:
    """What keeps answers from being laid over queries, one line each."""
    ids = answers["id"]
    unordered = answers["landmark_id"].notna() & answers["confidence"].isna()
    return [
        *(f"truth: id '{i}' stands there twice" for i in queries[queries.duplicated()]),
        *(f"answers: id '{i}' stands there twice" for i in ids[ids.duplicated()]),
        *(f"answers: id '{i}' is not a query of the truth" for i in ids[~ids.isin(queries)]),
        *(f"answers: id '{i}' has confidence NaN" for i in ids[unordered]),
    ]


def score_queries(queries: ScoredQueries) -> float:
    """The GAP of aligned answers, 0..1.

    Raises:
        DataError: when no query shows a landmark.
    """
    _require_positives(queries.positives)
    order = _ranked_rows(queries)
    return _sum_precisions(queries.correct[order], queries.weights[order]) / queries.positives


def score_answers(answers: pd.DataFrame, truth: pd.DataFrame, *, weights: FloatArray | None = None) -> float:
    """The GAP of a table of answers against a table of truth; see `align` for both.

    >>> truth = pd.DataFrame({"id": ["a", "b", "c"], "landmark_id": ["7", None, "8"]})
    >>> answers = pd.DataFrame({"id": ["a", "b"], "landmark_id": ["7", "7"], "confidence": [0.5, 0.9]})
    >>> score_answers(answers, truth)  # the wrong answer is first, one landmark is not found: (1/2) / 2
    0.25

    Raises:
        DataError: as `align`, and when no query shows a landmark.
    """
    return score_queries(align(answers, truth, weights=weights))


def prevalence_weights(has_landmark: BoolArray, prevalence: float | None) -> FloatArray:
    """Weights that make queries stand for a population in which another share of queries shows a landmark.

    Queries with a landmark keep weight 1; those without share one weight.

    >>> prevalence_weights(np.array([True, True, False]), 0.25)
    array([1., 1., 6.])

    Args:
        has_landmark: [Q].
        prevalence: the weighted share of queries with a landmark, between 0 and 1; None leaves every weight at 1.

    Returns:
        [Q] weights.

    Raises:
        DataError: when the share is not between 0 and 1, or all queries are of one kind, which no weight can change.
    """
    weights = np.ones(len(has_landmark))
    if prevalence is None:
        return weights
    if not 0 < prevalence < 1:
        raise DataError(f"prevalence {prevalence} is not between 0 and 1", hint="give the share of landmark photos")
    if has_landmark.all() or not has_landmark.any():
        raise DataError(
            f"a prevalence of {prevalence} needs queries with a landmark and queries without, there is only one kind",
            hint="add photos without a landmark (train_nonlandmark.csv), or leave prevalence unset",
        )
    with_landmark = np.count_nonzero(has_landmark)
    weights[~has_landmark] = (1 - prevalence) / prevalence * with_landmark / (len(weights) - with_landmark)
    return weights


def bootstrap_gap(queries: ScoredQueries, *, resamples: int, level: float, rng: np.random.Generator) -> Interval:
    """The percentile bootstrap interval of a GAP, over all queries, answered or not.

    A query that is drawn twice is two answers with one confidence. A resample in which no query shows a landmark has no
    GAP and is drawn again. Time grows with queries x resamples (about 5 s at 117,703 x 1,000), memory with queries.

    Args:
        queries: from `align`.
        resamples: how many.
        level: share of resamples between the ends, e.g. 0.95.
        rng: where the resamples come from.

    Raises:
        DataError: when no query shows a landmark.
    """
    order = _ranked_rows(queries)
    values = [_resampled_gap(queries, order, counts) for counts in _draw_counts(queries, resamples, rng)]
    return percentile_interval(np.array(values), level)


def bootstrap_difference(
    ours: ScoredQueries, theirs: ScoredQueries, *, resamples: int, level: float, rng: np.random.Generator
) -> Difference:
    """How much better one set of answers is than another, on the same resamples of the same queries.

    Args:
        ours: from `align`.
        theirs: from `align` with the same truth and weights.
        resamples: how many.
        level: share of resamples between the ends, e.g. 0.95.
        rng: where the resamples come from.

    Raises:
        DataError: when the two are not about the same queries, or no query shows a landmark.
    """
    if not all(np.array_equal(getattr(ours, n), getattr(theirs, n)) for n in ("ids", "has_landmark", "weights")):
        raise DataError("two sets of answers are compared over different queries", hint="align both with one truth")
    our_order, their_order = _ranked_rows(ours), _ranked_rows(theirs)
    values = np.array(
        [
            _resampled_gap(ours, our_order, counts) - _resampled_gap(theirs, their_order, counts)
            for counts in _draw_counts(ours, resamples, rng)
        ]
    )
    rarer_side = min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0))
    interval = percentile_interval(values, level)
    return Difference(
        estimate=score_queries(ours) - score_queries(theirs),
        low=interval.low,
        high=interval.high,
        p_value=min(1.0, 2 * (rarer_side + 1) / (resamples + 1)),  # the sample itself counts, so it is never 0
    )


def _sum_precisions(correct: BoolArray, weights: FloatArray) -> float:
    """The sum of w_i * P(i) over the right answers of a ranking."""
    hits = np.flatnonzero(correct & (weights > 0))  # without weight nothing is counted, and P may be 0 / 0
    right = weights[hits]
    precision = np.cumsum(right) / np.cumsum(weights)[hits]
    return float(np.sum(right * precision))  # not a BLAS product, whose last digit depends on the threads


def _ranked_rows(queries: ScoredQueries) -> NDArray[np.intp]:
    """The rows of the answered queries, best first."""
    rows = np.flatnonzero(queries.answered)
    return rows[rank_answers(queries.confidence[rows], queries.ids[rows])]


def _draw_counts(queries: ScoredQueries, resamples: int, rng: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """How often each query is drawn [Q], for every resample."""
    _require_positives(queries.positives)
    size = len(queries.ids)
    counting = queries.has_landmark & (queries.weights > 0)
    for _ in range(resamples):
        counts = np.zeros(size, dtype=np.intp)
        while not counts[counting].any():
            counts = np.bincount(rng.integers(size, size=size), minlength=size)
        yield counts


def _resampled_gap(queries: ScoredQueries, order: NDArray[np.intp], counts: NDArray[np.intp]) -> float:
    drawn = np.repeat(order, counts[order])
    positives = np.sum((queries.weights * counts)[queries.has_landmark])
    return float(_sum_precisions(queries.correct[drawn], queries.weights[drawn]) / positives)


def percentile_interval(values: FloatArray, level: float) -> Interval:
    """The interval that holds the middle `level` of resampled values, [R]."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _require_positives(positives: float) -> None:
    if not positives > 0:  # also refuses NaN
        raise DataError(
            f"GAP divides by the number of queries that show a landmark, which is {positives:g}",
            hint="check that the truth names landmarks",
        )


def _as_weights(weights: FloatArray | None, size: int) -> FloatArray:
    if weights is None:
        return np.ones(size)
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (size,) or not (np.isfinite(array) & (array >= 0)).all():
        raise DataError(f"weights have to be {size} finite numbers >= 0", hint="give one per row, in the rows' order")
    return array

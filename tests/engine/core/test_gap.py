"""GAP: its worked example, its laws, its independent judges (a plain loop, scikit-learn), and its intervals."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from engine.core.errors import DataError
from engine.core.gap import (
    ScoredQueries,
    _draw_counts,
    align,
    bootstrap_difference,
    bootstrap_gap,
    gap,
    gap_reference,
    prevalence_weights,
    rank_answers,
    score_answers,
    score_queries,
)

laws = settings(deadline=None, max_examples=100)


@dataclass(frozen=True)
class Ranking:
    confidence: np.ndarray
    correct: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    positives: float

    def gap(self, judge=gap, *, weighted=True):
        weights = self.weights if weighted else None
        return judge(self.confidence, self.correct, self.ids, positives=self.positives, weights=weights)

    def take(self, rows):
        return replace(self, **{n: getattr(self, n)[rows] for n in ("confidence", "correct", "ids", "weights")})


@st.composite
def rankings(draw, *, ties=True, min_size=0):
    size = draw(st.integers(min_size, 12))
    levels = st.integers(-3, 3).map(float) if ties else st.floats(-1e6, 1e6)
    confidence = draw(st.lists(levels, min_size=size, max_size=size, unique=not ties))
    ids = draw(st.lists(st.text("0123456789abcdef", min_size=1, max_size=3), min_size=size, max_size=size, unique=True))
    correct = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    weights = draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=size, max_size=size))
    return Ranking(
        np.array(confidence, dtype=float),
        np.array(correct, dtype=bool),
        np.array(ids, dtype=np.str_),
        np.array(weights, dtype=float),
        positives=sum(correct) * 3.0 + draw(st.integers(1, 5)),
    )


def _answers(rows):
    return pd.DataFrame(rows, columns=["id", "landmark_id", "confidence"])


def _truth(**landmarks):
    return pd.DataFrame({"id": list(landmarks), "landmark_id": list(landmarks.values())})


def _queries(rng, size=60, skill=0.5):
    confidence, has_landmark = rng.random(size).round(2), rng.random(size) < 0.6
    answered = rng.random(size) < 0.8
    correct = answered & has_landmark & (rng.random(size) < skill + 0.4 * confidence)
    weights = np.where(has_landmark, 1.0, 2.5)
    ids = rng.permutation([f"{i:03}" for i in range(size)])
    return ScoredQueries(ids, answered, confidence, correct, has_landmark, weights)


# ---- the worked example


def test_gap_of_an_example_worked_by_hand():
    # rank     1     2      3     4      5
    # right    yes   no     yes   no     yes
    # P        1/1          2/3          3/5     and one of the M = 4 landmarks has no answer
    confidence = np.array([0.5, 0.9, 0.6, 0.7, 0.8])
    correct = np.array([True, True, False, True, False])
    ids = np.array(list("abcde"))
    assert gap(confidence, correct, ids, positives=4) == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)


def test_weighted_gap_of_an_example_worked_by_hand():
    # the wrong answer in between counts three times: P = 2/2, then (2 + 1) / (2 + 3 + 1)
    confidence, correct = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    value = gap(confidence, correct, np.array(list("abc")), positives=4, weights=np.array([2.0, 3.0, 1.0]))
    assert value == pytest.approx((2 * 1 + 1 * 0.5) / 4)


def test_gap_is_one_when_every_landmark_is_found_before_the_first_mistake():
    assert gap(np.array([3.0, 2.0, -1.0]), np.array([True, True, False]), np.array(list("abc")), positives=2) == 1.0


# ---- laws


@laws
@given(rankings())
def test_gap_equals_the_slow_reference_with_ties_and_weights(ranking):
    assert ranking.gap() == pytest.approx(ranking.gap(gap_reference), abs=1e-12)
    assert ranking.gap(weighted=False) == pytest.approx(ranking.gap(gap_reference, weighted=False), abs=1e-12)


@laws
@given(rankings(ties=False, min_size=1))
def test_gap_equals_average_precision_times_hits_over_m_without_ties(ranking):
    hits = np.count_nonzero(ranking.correct)
    assume(hits)
    expected = average_precision_score(ranking.correct, ranking.confidence) * hits / ranking.positives
    assert ranking.gap(weighted=False) == pytest.approx(expected, abs=1e-12)


@laws
@given(rankings(ties=False, min_size=1))
def test_weighted_gap_equals_weighted_average_precision(ranking):
    hits = ranking.weights[ranking.correct].sum()
    assume(hits > 0)
    with warnings.catch_warnings():  # 0/0 in the first ranks when their weight is 0, which scikit-learn then mends
        warnings.simplefilter("ignore", RuntimeWarning)
        average = average_precision_score(ranking.correct, ranking.confidence, sample_weight=ranking.weights)
    assert ranking.gap() == pytest.approx(average * hits / ranking.positives, abs=1e-12)


@laws
@given(rankings(), st.booleans())
def test_a_wrong_answer_appended_last_never_changes_gap(ranking, ties_with_the_last):
    lowest = ranking.confidence.min(initial=0.0)
    longer = Ranking(
        np.append(ranking.confidence, lowest if ties_with_the_last else lowest - 1),
        np.append(ranking.correct, False),
        np.append(ranking.ids, "zzz"),  # after every other id
        np.append(ranking.weights, 1.0),
        ranking.positives,
    )
    assert longer.gap() == ranking.gap()


@laws
@given(rankings(), st.data())
def test_a_strictly_increasing_change_of_confidence_never_changes_gap(ranking, data):
    levels, position = np.unique(ranking.confidence, return_inverse=True)
    steps = data.draw(st.lists(st.floats(-1e9, 1e9), min_size=len(levels), max_size=len(levels), unique=True))
    changed = replace(ranking, confidence=np.sort(np.array(steps, dtype=float))[position])
    assert changed.gap() == ranking.gap()


@laws
@given(rankings(), st.randoms(use_true_random=False))
def test_permuting_rows_never_changes_gap(ranking, random):
    rows = list(range(len(ranking.ids)))
    random.shuffle(rows)
    assert ranking.take(np.array(rows, dtype=int)).gap() == ranking.gap()


@laws
@given(rankings())
def test_gap_lies_between_zero_and_one(ranking):
    assert 0 <= ranking.gap() <= 1


# ---- ties


@pytest.mark.faults
def test_ties_are_broken_by_id_ascending():
    confidence, correct = np.array([0.5, 0.5]), np.array([True, False])
    assert gap(confidence, correct, np.array(["a", "b"]), positives=1) == 1.0
    assert gap(confidence, correct, np.array(["b", "a"]), positives=1) == 0.5


def test_rank_answers_orders_ties_among_many_as_a_full_sort_does():
    rng = np.random.default_rng(0)
    confidence = rng.integers(0, 300, 5_000) / 300  # long enough for the vectorised, unstable sort
    ids = rng.permutation([f"{i:04x}" for i in range(5_000)])
    assert rank_answers(confidence, ids).tolist() == np.lexsort((ids, -confidence)).tolist()


def test_rank_answers_takes_ids_as_objects_or_as_their_ranks():
    ids, confidence = np.array(["b", "a", "c"], dtype=object), np.array([1.0, 1.0, 2.0])
    assert rank_answers(confidence, ids).tolist() == [2, 1, 0]
    assert rank_answers(confidence, np.array([1, 0, 2])).tolist() == [2, 1, 0]


# ---- bad input


@pytest.mark.faults
def test_gap_of_no_answers_is_zero():
    empty = np.array([])
    assert gap(empty, empty.astype(bool), empty.astype(np.str_), positives=3) == 0.0


@pytest.mark.faults
@pytest.mark.parametrize("positives", [0, -1, float("nan")])
@pytest.mark.parametrize("judge", [gap, gap_reference])
def test_gap_without_labelled_queries_is_a_named_error(judge, positives):
    with pytest.raises(DataError, match="number of queries that show a landmark"):
        judge(np.array([1.0]), np.array([False]), np.array(["a"]), positives=positives)


@pytest.mark.faults
def test_a_confidence_of_nan_is_an_error():
    with pytest.raises(DataError, match="1 of 2 confidences are NaN"):
        gap(np.array([0.5, np.nan]), np.array([True, False]), np.array(["a", "b"]), positives=1)


@pytest.mark.faults
@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, np.nan], [1.0, np.inf]])
def test_weights_that_are_no_weights_are_an_error(weights):
    with pytest.raises(DataError, match="2 finite numbers >= 0"):
        gap(np.array([0.5, 0.4]), np.array([True, False]), np.array(["a", "b"]), positives=1, weights=np.array(weights))


@pytest.mark.faults
def test_arrays_of_unequal_length_are_an_error():
    with pytest.raises(DataError, match="2 confidences, 3 outcomes, 2 ids"):
        gap(np.array([0.5, 0.4]), np.array([True, False, True]), np.array(["a", "b"]), positives=1)


# ---- tables


def test_score_answers_joins_by_id_whatever_the_order_of_rows():
    truth = _truth(a="7", b="8", c=None, d="9")
    answers = _answers([("d", "9", 0.1), ("c", "7", 0.5), ("a", "7", 0.9)])
    expected = (1 + 2 / 3) / 3
    assert score_answers(answers, truth) == pytest.approx(expected)
    assert score_answers(answers[::-1], truth.sample(frac=1, random_state=0)) == pytest.approx(expected)


def test_gap_counts_unanswered_queries_in_m():
    truth = _truth(a="7", b="8", c="9")
    some = _answers([("a", "7", 0.9)])
    blank = _answers([("a", "7", 0.9), ("b", None, 0.99), ("c", None, float("nan"))])
    assert score_answers(some, truth) == score_answers(blank, truth) == pytest.approx(1 / 3)


@pytest.mark.faults
@pytest.mark.parametrize("dtype", [object, "string"])
def test_no_answer_to_a_query_without_a_landmark_is_not_a_hit(dtype):
    truth = _truth(a=None, b="7").astype({"landmark_id": dtype})
    queries = align(_answers([("a", None, 0.9), ("b", "7", 0.1)]).astype({"landmark_id": dtype}), truth)
    assert queries.correct.tolist() == [False, True]
    assert queries.answered.tolist() == [False, True]
    assert score_queries(queries) == 1.0


@pytest.mark.faults
def test_score_answers_without_any_answer_is_zero():
    assert score_answers(_answers([]), _truth(a="7", b=None)) == 0.0


@pytest.mark.faults
def test_align_names_every_problem_together():
    answers = _answers([("a", "7", 0.5), ("a", "8", 0.4), ("x", None, 0.0), ("b", "7", float("nan"))])
    with pytest.raises(DataError) as caught:
        align(answers, pd.concat([_truth(a="7", b=None, c=None), _truth(c="8")]))
    for said in ("truth: id 'c' stands there twice", "answers: id 'a' stands there twice"):
        assert said in str(caught.value)
    for said in ("answers: id 'x' is not a query of the truth", "answers: id 'b' has confidence NaN"):
        assert said in str(caught.value)


@pytest.mark.faults
def test_score_answers_without_labelled_queries_is_a_named_error():
    with pytest.raises(DataError, match="number of queries that show a landmark"):
        score_answers(_answers([("a", "7", 0.5)]), _truth(a=None))


def test_score_answers_uses_weights_in_the_order_of_the_truth():
    truth, answers = _truth(a=None, b="7"), _answers([("b", "7", 0.1), ("a", "7", 0.9)])
    assert score_answers(answers, truth, weights=np.array([3.0, 1.0])) == pytest.approx(1 / 4)


# ---- prevalence


@laws
@given(st.lists(st.booleans(), min_size=2).filter(lambda kinds: 0 < sum(kinds) < len(kinds)), st.floats(0.01, 0.99))
def test_prevalence_weights_give_the_asked_share_and_leave_landmarks_at_one(kinds, prevalence):
    has_landmark = np.array(kinds)
    weights = prevalence_weights(has_landmark, prevalence)
    assert (weights[has_landmark] == 1).all()
    assert weights[has_landmark].sum() / weights.sum() == pytest.approx(prevalence)


def test_prevalence_none_leaves_all_weights_at_one():
    assert prevalence_weights(np.array([True, False]), None).tolist() == [1.0, 1.0]


@pytest.mark.faults
@pytest.mark.parametrize("kinds", [[True, True], [False, False], []])
def test_a_prevalence_that_no_weight_can_reach_is_an_error(kinds):
    with pytest.raises(DataError, match="only one kind"):
        prevalence_weights(np.array(kinds, dtype=bool), 0.5)


@pytest.mark.faults
@pytest.mark.parametrize("prevalence", [0.0, 1.0, -0.1, float("nan")])
def test_a_prevalence_outside_zero_and_one_is_an_error(prevalence):
    with pytest.raises(DataError, match="not between 0 and 1"):
        prevalence_weights(np.array([True, False]), prevalence)


# ---- the bootstrap


def _resampled_by_hand(queries, counts):
    rows = [row for row in range(len(counts)) if queries.answered[row] for _ in range(counts[row])]
    positives = sum(counts[row] * queries.weights[row] for row in range(len(counts)) if queries.has_landmark[row])
    return gap_reference(
        queries.confidence[rows], queries.correct[rows], queries.ids[rows],
        positives=positives, weights=queries.weights[rows],
    )  # fmt: skip


def test_bootstrap_interval_is_that_of_a_plain_loop_over_the_same_resamples():
    queries = _queries(np.random.default_rng(1))
    draws = list(_draw_counts(queries, 50, np.random.default_rng(2)))
    assert {int(counts.sum()) for counts in draws} == {len(queries.ids)}
    low, high = np.quantile([_resampled_by_hand(queries, counts) for counts in draws], [0.05, 0.95])
    interval = bootstrap_gap(queries, resamples=50, level=0.9, rng=np.random.default_rng(2))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)


def test_bootstrap_difference_is_that_of_a_plain_loop_over_the_same_resamples():
    ours = _queries(np.random.default_rng(1))
    theirs = replace(ours, confidence=np.random.default_rng(3).random(60))
    draws = _draw_counts(ours, 50, np.random.default_rng(2))
    values = np.array([_resampled_by_hand(ours, counts) - _resampled_by_hand(theirs, counts) for counts in draws])
    found = bootstrap_difference(ours, theirs, resamples=50, level=0.9, rng=np.random.default_rng(2))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])), abs=1e-12)
    assert found.estimate == score_queries(ours) - score_queries(theirs)
    assert found.p_value == pytest.approx(2 * (min((values <= 0).sum(), (values >= 0).sum()) + 1) / 51)


def test_bootstrap_interval_holds_the_gap_and_widens_with_the_level():
    queries = _queries(np.random.default_rng(4), size=300)
    wide, narrow = (
        bootstrap_gap(queries, resamples=200, level=level, rng=np.random.default_rng(0)) for level in (0.99, 0.5)
    )
    assert wide.low < narrow.low < score_queries(queries) < narrow.high < wide.high


def test_bootstrap_interval_covers_the_true_gap_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    population = score_queries(_queries(rng, size=200_000))
    intervals = [bootstrap_gap(_queries(rng, size=200), resamples=100, level=0.8, rng=rng) for _ in range(100)]
    covered = sum(interval.low <= population <= interval.high for interval in intervals)
    assert 68 <= covered <= 92  # binomial(100, 0.8) leaves this range once in 300 trials


def test_difference_of_equal_answers_is_zero_and_of_better_ones_is_above_zero():
    better = _queries(np.random.default_rng(6), size=300)
    lost = better.correct & (np.random.default_rng(7).random(300) < 0.7)
    worse = replace(better, correct=lost)
    same = bootstrap_difference(better, better, resamples=100, level=0.95, rng=np.random.default_rng(0))
    assert (same.estimate, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    gain = bootstrap_difference(better, worse, resamples=100, level=0.95, rng=np.random.default_rng(0))
    assert 0 < gain.low < gain.estimate < gain.high
    assert gain.p_value == pytest.approx(2 / 101)


@pytest.mark.faults
def test_bootstrap_draws_again_when_no_landmark_was_drawn():
    queries = align(_answers([("a", "7", 0.5)]), _truth(a="7", b=None, c=None, d=None))
    interval = bootstrap_gap(queries, resamples=50, level=0.95, rng=np.random.default_rng(0))
    assert (interval.low, interval.high) == (1, 1)


@pytest.mark.faults
def test_bootstrap_without_labelled_queries_is_a_named_error():
    queries = align(_answers([("a", "7", 0.5)]), _truth(a=None))
    with pytest.raises(DataError, match="number of queries that show a landmark"):
        bootstrap_gap(queries, resamples=10, level=0.95, rng=np.random.default_rng(0))


@pytest.mark.faults
def test_difference_over_different_queries_is_an_error():
    one, other = (align(_answers([]), truth) for truth in (_truth(a="7"), _truth(b="7")))
    with pytest.raises(DataError, match="different queries"):
        bootstrap_difference(one, other, resamples=10, level=0.95, rng=np.random.default_rng(0))
